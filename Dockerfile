# An image with the models baked in: no PyTorch, no network, not root, under 600 MB with CLIP.
#
#   docker build -t datasette-vision .
#   docker run --rm -p 8080:8080 --memory 512m --read-only --tmpfs /tmp datasette-vision
#
# docs/deploy.md tells the rest: other models, databases baked in, Fly.io, Cloud Run.

# What to bake: names of the catalogue, or name=source: a repository of the hub, or a folder below /weights.
ARG MODELS="clip"
ARG PRECISION=auto
ARG PYTHON=3.11

# What setup.py requires, apart from the rest of it.
FROM python:${PYTHON}-slim AS requirements
COPY docker/packages.py setup.py /
RUN python3 /packages.py /setup.py deploy >/server.txt && python3 /packages.py /setup.py bake >/bake.txt

# The packages of the server, in versions that were tested together.
FROM python:${PYTHON}-slim AS packages
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY docker/constraints.txt ./
COPY --from=requirements /server.txt ./
RUN python3 -m venv --without-pip /opt/datasette \
 && pip --python /opt/datasette/bin/python install -c constraints.txt -r server.txt dumb-init

# What models are made of and with.
FROM scratch AS making
# Folders of weights, for MODELS such as clip=/weights/clip-vit-base-patch32.
COPY docker/weights /weights
# The folders of the package that make models, and no other: changing the rest bakes nothing again.
COPY docker/bake.py /build/
COPY datasette_vision/__init__.py datasette_vision/errors.py /build/datasette_vision/
COPY datasette_vision/util /build/datasette_vision/util
COPY datasette_vision/images /build/datasette_vision/images
COPY datasette_vision/vectors /build/datasette_vision/vectors
COPY datasette_vision/models /build/datasette_vision/models
COPY datasette_vision/engine /build/datasette_vision/engine
COPY datasette_vision/install /build/datasette_vision/install
COPY datasette_vision/bake /build/datasette_vision/bake
# The pictures that precisions are compared over.
COPY datasette_vision/demo/emoji.zip /build/datasette_vision/demo/

# PyTorch for the CPU and what exports models, in the builder only.
FROM packages AS baker
ARG PIP_FIND_LINKS
ARG TORCH_SPEC=torch
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=requirements /bake.txt ./
RUN pip --python /opt/datasette/bin/python install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH_SPEC" \
 && pip --python /opt/datasette/bin/python install -c constraints.txt -r bake.txt
COPY --from=making / /
ARG MODELS
ARG PRECISION
RUN ORT_DISABLE_TELEMETRY=1 PYTHONPATH=/build /opt/datasette/bin/python bake.py /models "$PRECISION" $MODELS

# The packages again, without what a server never loads, byte-compiled.
FROM packages AS slim
COPY docker/slim.py ./
RUN /opt/datasette/bin/python slim.py /opt/datasette/lib/python3*/site-packages

# This package.
FROM packages AS code
ARG PIP_FIND_LINKS
COPY setup.py pyproject.toml README.md LICENSE ./
COPY datasette_vision ./datasette_vision
RUN pip install --no-deps --target /code . \
 && /opt/datasette/bin/python -m compileall -q --invalidation-mode unchecked-hash /code

# The server: what changes least comes first.
FROM python:${PYTHON}-slim AS server
ARG PYTHON
ENV PATH=/opt/datasette/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
COPY --from=slim /opt/datasette /opt/datasette
# The official image comes without compiled files of the standard library: those that a server needs, made by needing
# them. Nothing but /tmp stays open to everybody.
RUN python -c "import datasette.cli, uvicorn.protocols.http.auto, uvicorn.lifespan.on, onnxruntime, tokenizers" \
 && datasette --memory --get /_memory.json >/dev/null && rm -rf /tmp/.cache && chmod 755 /var/tmp /run/lock
COPY --from=baker /models /models
COPY metadata.json docker/settings.json /app/
COPY --from=code /code /opt/datasette/lib/python${PYTHON}/site-packages
ENV PYTHONDONTWRITEBYTECODE=1 \
    # Offline: everything is here.
    HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 ORT_DISABLE_TELEMETRY=1 \
    DATASETTE_VISION_MODELS=/models \
    # Not a heap for every thread, nor threads for a linear algebra that is not used.
    MALLOC_ARENA_MAX=2 OPENBLAS_NUM_THREADS=1
USER 10001:10001
WORKDIR /tmp
# Every file of every model against its digest, and its answers against those recorded when it was made.
RUN datasette vision verify
EXPOSE 8080
# Process 1 gets no signal that it does not ask for, and Python asks only once it has started: a SIGTERM before that
# would be lost.
ENTRYPOINT ["dumb-init", "--single-child", "--"]
CMD ["datasette", "serve", "/app", "--memory", "--cors", "--host", "0.0.0.0", "--port", "8080"]

# The databases of docker/data, and one for each folder of pictures in it, embedded here and now.
FROM server AS filled
USER root
COPY docker/fill.py docker/data /source/
RUN mv /source/fill.py /tmp/ && python /tmp/fill.py /source /filled /app/metadata.json

FROM server
COPY --from=filled /filled /app
