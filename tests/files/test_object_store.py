"""Embedding from an object store into one: S3 as pyarrow speaks it, against a server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from datasette.cli import cli

pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
moto = pytest.importorskip("moto.server", reason="moto[server], a server that speaks S3, is not installed")

import urllib.request  # noqa: E402

from datasette_vision.engine.vision import Vision  # noqa: E402
from datasette_vision.files.inputs import Inputs  # noqa: E402
from datasette_vision.files.parquet import open_shard, shards  # noqa: E402
from datasette_vision.files.storage import place  # noqa: E402
from datasette_vision.vectors import embedding as vectors  # noqa: E402
from tests import pictures  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The options of a URI that lead to the server, where there is a bucket "bucket"."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")).close()
    yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


def test_from_s3_to_s3(options: str, fake_models: Path, fake_vision: Vision) -> None:
    for number in range(12):
        content = b"nonsense" if number == 5 else pictures.jpeg(seed=number)
        place(f"s3://bucket/photos/{number % 2}/{number:02}.jpg{options}").write(content)
    place(f"s3://bucket/photos/notes.txt{options}").write(b"no image")

    def run(source: str) -> str:
        command = ["vision", "embed-files", f"s3://bucket/{source}{options}", "-o", f"s3://bucket/out{options}"]
        return CliRunner().invoke(cli, [*command, "-m", "fake", "--models-dir", str(fake_models), "-q"]).output

    output = run("photos/1/*.jpg")
    assert "5 embedded, 0 unchanged, 1 failed;" in output
    assert "  s3://bucket/photos/1/05.jpg: not an image of a known format" in output
    assert "6 embedded, 6 unchanged, 0 failed;" in run("photos")
    (first, second) = shards(place(f"s3://bucket/out{options}"))
    rows = sorted(
        [*open_shard(first).read().to_pylist(), *open_shard(second).read().to_pylist()], key=lambda row: row["path"]
    )
    assert [row["path"] for row in rows] == [
        f"s3://bucket/photos/{half}/{number:02}.jpg" for half in range(2) for number in range(half, 12, 2)
    ]
    blob = vectors.to_blob(fake_vision.embed_image(pictures.jpeg(seed=2)))
    assert vectors.to_blob(rows[1]["embedding"]) == blob


def test_a_bucket_that_is_not_there(options: str, tmp_path: Path) -> None:
    command = ["vision", "embed-files", f"s3://nosuch/photos{options}", "-o", str(tmp_path / "out"), "-q"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2
    assert "s3://nosuch/photos: there is no such file or folder" in result.output


def test_what_is_listed_can_be_opened_elsewhere(options: str) -> None:
    """A unit carries the options of its store; what people see does not."""
    place(f"s3://bucket/a.jpg{options}").write(b"a")
    (unit,) = Inputs([f"s3://bucket/*.jpg{options}"]).units()
    assert unit.uri == f"s3://bucket/a.jpg{options}"
    (image,) = unit.images()
    assert (image.path, image.uri) == ("s3://bucket/a.jpg", unit.uri)
