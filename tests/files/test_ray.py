"""files/ray/job.py: the same embeddings and errors on a cluster as in one process, whatever dies on the way.

The cluster is three nodes on this machine. It takes minutes, and Ray: the tests are skipped where that is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from datasette.cli import cli  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from datasette_vision.config.settings import Config  # noqa: E402
from datasette_vision.engine.vision import Vision  # noqa: E402
from datasette_vision.errors import ConfigError, VisionError  # noqa: E402
from datasette_vision.files import embed_files, model_transfer  # noqa: E402
from datasette_vision.files.embed_files import Job  # noqa: E402
from datasette_vision.files.parquet import open_shard, shards  # noqa: E402
from datasette_vision.files.ray import cluster as ray_cluster  # noqa: E402
from datasette_vision.files.ray import job as ray_job  # noqa: E402
from datasette_vision.files.storage import place  # noqa: E402
from tests import pictures  # noqa: E402

# Ray's own affairs.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

COUNT = 240
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


def content(number: int) -> bytes:
    if number % 24 == 23:
        return b"nonsense" if number % 48 == 23 else pictures.jpeg(seed=number)[:300]
    return pictures.jpeg(300 + number, 200, seed=number)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        (folder / f"{number:03}.jpg").write_bytes(content(number))
    return folder


@pytest.fixture(scope="module")
def expected(photos: Path, fake_models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process without Ray makes of them."""
    out = tmp_path_factory.mktemp("expected") / "out"
    vision = Vision(Config(models_dir=str(fake_models)))
    embed_files.embed_files(Job((str(photos),), str(out), "fake"), vision)
    vision.close()
    found = rows(out)
    assert len(found) == COUNT
    assert sum(row["error"] is not None for row in found) == 10
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def run(photos: Path, out: Path, fake_models: Path, cluster: Cluster) -> Callable[..., embed_files.EmbedFilesSummary]:
    def run(inputs: object = photos, config: Config | None = None, **options: Any) -> embed_files.EmbedFilesSummary:
        job = Job((str(inputs),), str(out), "fake", rows_per_file=options.pop("rows_per_file", 16))
        workers = ray_job.Workers(images_per_block=8, **{"minimum": 2, "maximum": 3, **options})
        return ray_job.embed_files_on_ray(
            job, config or Config(models_dir=str(fake_models)), workers=workers, quiet=True
        )

    return run


def rows(out: Path) -> list[dict[str, Any]]:
    found = [row for shard in shards(place(str(out))) for row in open_shard(shard).read().to_pylist()]
    return sorted(found, key=lambda row: row["path"])


def test_three_nodes(
    run: Callable[..., embed_files.EmbedFilesSummary], out: Path, expected: list[dict[str, Any]]
) -> None:
    """The same to the bit; a second time there is nothing to do."""
    summary = run().summary
    assert (summary.embedded, summary.unchanged, summary.failed) == (COUNT - 10, 0, 10)
    assert len(summary.failures) == 10
    assert rows(out) == expected
    summary = run().summary
    assert (summary.embedded, summary.unchanged, summary.failed) == (0, COUNT, 0)
    assert rows(out) == expected


def test_a_node_is_killed_in_the_middle(
    run: Callable[..., embed_files.EmbedFilesSummary], out: Path, expected: list[dict[str, Any]], cluster: Cluster
) -> None:
    """Every image once, with what it would have had."""
    node = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    killed: list[int] = []

    def kill() -> None:
        while not list(out.glob("part-*")):
            time.sleep(0.02)
        killed.append(len(list(out.glob("part-*"))))
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    summary = run(minimum=4, maximum=4).summary
    thread.join()
    assert killed
    assert killed[0] < COUNT // 16  # there was work left to do
    assert rows(out) == expected
    assert (summary.embedded, summary.failed) == (COUNT - 10, 10)


def test_a_worker_is_killed(
    run: Callable[..., embed_files.EmbedFilesSummary], out: Path, expected: list[dict[str, Any]]
) -> None:
    """The process that holds a model goes as if memory had run out; another takes its place."""
    from ray.util.state import list_actors

    def kill() -> None:
        while not list(out.glob("part-*")):
            time.sleep(0.02)
        alive = list_actors(filters=[("state", "=", "ALIVE")])
        os.kill(next(actor.pid for actor in alive if "MapWorker" in actor.class_name), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    run()
    thread.join()
    assert rows(out) == expected


@pytest.mark.parametrize("kind", ["bytes", "paths"])
def test_parquet(
    run: Callable[..., embed_files.EmbedFilesSummary], photos: Path, out: Path, tmp_path: Path, kind: str,
    expected: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Rows of Parquet files are images in tasks of their own; half of them are known already."""
    names = [str(photos / f"{number:03}.jpg") for number in range(COUNT)]
    columns: dict[str, Any] = {"path": names}
    if kind == "bytes":
        columns["image"] = [content(number) for number in range(COUNT)]
    for part in range(2):
        half = {name: values[part * COUNT // 2 :][: COUNT // 2] for name, values in columns.items()}
        pq.write_table(pa.table(half), tmp_path / f"{part}.parquet", row_group_size=50)
    assert run(tmp_path / "0.parquet").summary.total == COUNT // 2
    summary = run(f"{tmp_path}/*.parquet").summary
    assert (summary.unchanged, summary.done) == (COUNT // 2, COUNT)
    assert rows(out) == expected


def test_a_model_is_sent_where_there_is_none(
    run: Callable[..., embed_files.EmbedFilesSummary],
    out: Path,
    expected: list[dict[str, Any]],
    fake_models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only this process is told of the models folder: the nodes have another environment."""
    monkeypatch.setenv("DATASETTE_VISION_MODELS", str(fake_models))
    mark = model_transfer.fingerprint(Vision(Config()).store.find("fake").manifest)
    sent = model_transfer.default_folder() / mark
    shutil.rmtree(sent, ignore_errors=True)
    run(config=Config())
    assert rows(out) == expected
    assert (sent / "fake" / "manifest.json").is_file()
    shutil.rmtree(sent)


def test_what_is_no_images_fault_ends_the_job_with_its_own_error(
    run: Callable[..., embed_files.EmbedFilesSummary], cluster: Cluster
) -> None:
    """A node says that it has a GPU, and its ONNX Runtime has no provider for one."""
    node = cluster.add_node(**NODE, num_gpus=1)
    cluster.wait_for_nodes()
    with pytest.raises(ConfigError, match=r"providers: the installed ONNX Runtime has .*, not CUDAExecutionProvider"):
        run(minimum=1, maximum=1, gpus=1.0)
    cluster.remove_node(node)


def test_no_cluster_there(photos: Path, out: Path, fake_models: Path, cluster: Cluster) -> None:
    ray.shutdown()
    try:
        with pytest.raises(VisionError, match=r"^Ray at 127\.0\.0\.1:1: "):
            ray_job.embed_files_on_ray(
                Job((str(photos),), str(out), "fake"), Config(models_dir=str(fake_models)), address="127.0.0.1:1"
            )
    finally:
        ray.init(address=cluster.address, log_to_driver=False)


def test_the_environment_of_a_cluster_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = "RAY_idle_worker_killing_time_threshold_ms"
    monkeypatch.setenv(milliseconds, "1")  # so that it is what it was, afterwards
    monkeypatch.delenv(milliseconds)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    ray_cluster.settle()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"  # as the person wants it
    assert int(os.environ[milliseconds]) > 1000


def test_on_this_machine(
    photos: Path, out: Path, fake_models: Path, expected: list[dict[str, Any]], cluster: Cluster
) -> None:
    """`--ray` without an address starts Ray, and stops it."""
    ray.shutdown()
    try:
        command = ["vision", "embed-files", str(photos), "-o", str(out), "-m", "fake", "--ray", "-q"]
        result = CliRunner().invoke(cli, [*command, "--models-dir", str(fake_models), "--concurrency", "1:2"])
        assert result.exit_code == 3, result.output
        assert "230 embedded, 0 unchanged, 10 failed;" in result.output
        assert rows(out) == expected
        assert not ray.is_initialized()
    finally:
        ray.init(address=cluster.address, log_to_driver=False)


def test_parquet_on_a_machine_of_one_core(
    photos: Path, out: Path, fake_models: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one worker takes the one core, and what reads the images finds room all the same."""
    monkeypatch.setattr(ray_cluster, "available_cores", lambda: 1)
    images = [path.read_bytes() for path in sorted(photos.iterdir())]
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet", row_group_size=50)
    ray.shutdown()
    try:
        done = ray_job.embed_files_on_ray(
            Job((str(tmp_path / "images.parquet"),), str(out), "fake"), Config(models_dir=str(fake_models)), quiet=True
        )
        assert (done.summary.embedded, done.summary.failed) == (230, 10)
    finally:
        ray.init(address=cluster.address, log_to_driver=False)


def test_ctrl_c(photos: Path, out: Path, fake_models: Path, expected: list[dict[str, Any]]) -> None:
    """What was written stays, and the next run, without Ray at that, does the rest."""
    import subprocess

    command = [sys.executable, "-m", "datasette", "vision", "embed-files", str(photos), "-o", str(out), "-m", "fake"]
    command += ["--models-dir", str(fake_models), "--rows-per-file", "8", "-q"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        [*command, "--ray", "--concurrency", "1"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not list(out.glob("part-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (130, 3), output.decode()
    if process.returncode == 130:
        assert b"Stopped: results that were written stay. To continue: datasette" in output
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    assert rows(out) == expected
