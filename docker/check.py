"""Builds the image from a clean checkout, and proves what docs/deploy.md says of it. Needs no package.

python docker/check.py build TAG [--model NAME=FOLDER] [--torch SPEC] [--torch-index URL]
python docker/check.py run TAG [--max-mb 600]

`--model` bakes weights that are here instead of CLIP from the hub. Ends with 0 when all is well, and with 75 when no
engine can be used here, having said why.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from containers import Engine, Running, Unavailable, Way
from engines import find

ROOT = Path(__file__).resolve().parent.parent
UNAVAILABLE = 75
TEXT = "select hex(vision_embed('purple and gold')) as x"
# Counts until the time limit of a query stops it.
ENDLESS = "with recursive c(x) as (select 1 union all select x + 1 from c) select count(*) from c"
# Serves within the container, and asks there: nothing outside can be reached, nor reach it.
ALONE = """
import json, subprocess, sys, time, urllib.request
deadline = time.monotonic() + 60
server = subprocess.Popen(["datasette", "serve", "/app", "--memory", "--port", "8001"], stdout=sys.stderr)
while True:
    assert server.poll() is None and time.monotonic() < deadline
    try:
        rows = json.load(urllib.request.urlopen("http://127.0.0.1:8001" + sys.argv[1]))
        break
    except urllib.error.HTTPError:
        raise
    except OSError:
        time.sleep(0.05)
server.terminate()
server.wait()
print(json.dumps({"rows": rows, "routes": open("/proc/net/route").read().splitlines()[1:]}))
"""


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def build(engine: Engine, tag: str, arguments: dict[str, str], model: str | None) -> None:
    """Build from what git knows, not from what lies about; `model` is NAME=FOLDER."""
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder) / "context"
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(command, cwd=ROOT, text=True).splitlines():
            if (ROOT / name).is_file():
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, context / name)
        if model is not None:
            name, _, source = model.partition("=")
            shutil.copytree(source, context / "docker/weights" / name)
            arguments = {**arguments, "MODELS": f"{name}=/weights/{name}"}
        engine.build(context, tag, arguments)


def ask(
    container: Running, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Ask the container, and return status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=120)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def query(sql: str) -> str:
    """Return the path of a query."""
    return "/_memory.json?" + urllib.parse.urlencode({"sql": sql, "_shape": "array"})


def first_answer(container: Running, path: str) -> bytes:
    """Ask until there is an answer, as Fly's proxy does while a machine starts."""
    while True:
        try:
            status, _, body = ask(container, path)
        except OSError:
            if container.ended() is not None:
                raise AssertionError(f"ended by itself:\n{container.output()}") from None
            time.sleep(0.005)
            continue
        assert status == 200, (status, body)
        return body


def changed(folder: Path, duration: str, limit_ms: int) -> dict[Path, str]:
    """Write the deployed configuration with another silence and time limit, and return what to mount."""
    metadata = json.loads((ROOT / "metadata.json").read_text("utf-8"))
    metadata["plugins"]["datasette-scale-to-zero"]["duration"] = duration
    settings = json.loads((ROOT / "docker/settings.json").read_text("utf-8"))
    settings["sql_time_limit_ms"] = limit_ms
    files = {folder / "metadata.json": metadata, folder / "settings.json": settings}
    for path, value in files.items():
        path.write_text(json.dumps(value), "utf-8")
        path.chmod(0o644)
    folder.chmod(0o755)
    return {path: f"/app/{path.name}" for path in files}


def inside(engine: Engine, tag: str) -> None:
    """What the image holds, and what its user may do."""
    user = engine.shell(tag, "id", "-u").strip()
    assert user == "10001", user
    say(f"runs as user {user}, not root")
    # What its user may not even look into, it may not write to either.
    tree = (
        "find / -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -writable ! -type l -print 2>&-; true"
    )
    found = engine.shell(tag, "sh", "-c", tree)
    writable = [path for path in found.split() if path != "/tmp" and not path.startswith("/tmp/")]
    assert not writable, writable
    say("nothing is writable but /tmp")
    program = (
        "import importlib.util as u; print([n for n in ('torch', 'transformers', 'onnx', 'pip') if u.find_spec(n)])"
    )
    assert engine.shell(tag, "/opt/datasette/bin/python", "-c", program).strip() == "[]"
    say("no PyTorch, no transformers, no pip")
    answer = json.loads(engine.shell(tag, "/opt/datasette/bin/python", "-c", ALONE, query(TEXT)))
    assert answer["routes"] == [], answer
    assert answer["rows"][0]["x"], answer
    say("starts, and embeds a text, with no network")


def limit(engine: Engine, tag: str) -> int:
    """Return the MiB that a container is given, or 0 where no limit can be set, having said so."""
    try:
        with engine.run(tag, Way(memory_mib=512, command=("true",))) as container:
            container.wait(60)
    except Unavailable as error:
        say(f"without a memory limit: {error}")
        return 0
    return 512


def over_http(engine: Engine, tag: str) -> bytes:
    """What a browser and a robot see. Returns the answer of a text embedding."""
    with engine.run(tag, Way(memory_mib=limit(engine, tag))) as container:
        answer = first_answer(container, query(TEXT))
        status, headers, _ = ask(container, query("select 1"), Origin="https://observablehq.com")
        assert (status, headers.get("access-control-allow-origin")) == (200, "*"), (status, headers)
        say("another origin may read (CORS)")
        assert ask(container, "/robots.txt")[2].split() == b"User-agent: * Disallow: /".split()
        say("robots are asked to stay away")
        foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        form = {**foreign, "Cookie": "ds_actor=x", "Content-Type": "application/x-www-form-urlencoded"}
        for path in ("/-/logout", "/-/vision/embed"):
            status, _, _ = ask(container, path, "POST", b"text=purple", **form)
            assert status == 403, (path, status)
        say("what another site posts with a person's cookies is refused")
        question = json.dumps({"text": "purple and gold"}).encode()
        status, headers, body = ask(
            container, "/-/vision/embed", "POST", question, **foreign, **{"Content-Type": "application/json"}
        )
        assert (status, headers.get("access-control-allow-origin")) == (200, "*"), (status, body)
        say("what it posts without them is answered")
        container.terminate()
        container.wait(30)
        assert "Application shutdown complete" in container.output(), container.output()
        say("SIGTERM ends it in good order")
    return answer


def asleep(engine: Engine, tag: str, expected: bytes) -> None:
    """It sleeps when nobody asks, and not before; awake again, it answers the same."""
    with (
        tempfile.TemporaryDirectory() as folder,
        engine.run(tag, Way(mounts=changed(Path(folder), "5s", 12_000))) as container,
    ):
        assert first_answer(container, query(TEXT)) == expected
        statuses: list[int] = []
        slow = threading.Thread(target=lambda: statuses.append(ask(container, query(ENDLESS))[0]))
        slow.start()
        slow.join()
        assert statuses == [400], statuses  # Datasette's own time limit, not the end of the server
        assert container.ended() is None
        say("a request longer than the silence is finished")
        assert container.wait(60) == 0
        say("idle for 5 s, it exits with 0; started again, it answers the same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("build")
    making.add_argument("tag")
    making.add_argument("--model")
    making.add_argument("--torch")
    making.add_argument("--torch-index")
    running = verbs.add_parser("run")
    running.add_argument("tag")
    running.add_argument("--max-mb", type=float, default=600)
    options = parser.parse_args()
    try:
        engine = find()
    except Unavailable as error:
        say(f"skipped: {error}")
        sys.exit(UNAVAILABLE)
    if options.verb == "build":
        given: dict[str, Any] = {"TORCH_SPEC": options.torch, "TORCH_INDEX": options.torch_index}
        build(engine, options.tag, {name: value for name, value in given.items() if value is not None}, options.model)
        return
    size = engine.size_mb(options.tag)
    assert size <= options.max_mb, f"{size:.0f} MB"
    say(f"{size:.0f} MB")
    with engine.prepared(options.tag):
        inside(engine, options.tag)
        asleep(engine, options.tag, over_http(engine, options.tag))


if __name__ == "__main__":
    main()
