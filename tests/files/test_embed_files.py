"""files/embed_files.py and `datasette vision embed-files`, in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from datasette.cli import cli

pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
import pyarrow.parquet as pq  # noqa: E402

from datasette_vision.bulk.tally import Summary  # noqa: E402
from datasette_vision.engine.vision import Vision  # noqa: E402
from datasette_vision.files import embed_files  # noqa: E402
from datasette_vision.files.embed_files import Job  # noqa: E402
from datasette_vision.files.parquet import open_shard, shards  # noqa: E402
from datasette_vision.files.storage import place  # noqa: E402
from datasette_vision.images import decode as images  # noqa: E402
from datasette_vision.tables.schema import content_hash  # noqa: E402
from datasette_vision.vectors import embedding as vectors  # noqa: E402
from tests import fakes, pictures  # noqa: E402

COUNT = 30
BROKEN = {7: b"nonsense", 17: b"", 27: pictures.jpeg(seed=27)[:200]}


def content(number: int) -> bytes:
    if number in BROKEN:
        return BROKEN[number]
    return pictures.jpeg(60 + number, 48, seed=number) if number % 2 else pictures.png(40, 50 + number, seed=number)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(COUNT):
        path = tmp_path / "photos" / str(number % 3) / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(number))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def run(fake_models: Path, out: Path) -> Any:
    def run(*arguments: object, output: object = out, model: str = "fake") -> Result:
        options = ["--output", str(output), "--model", model, "--models-dir", str(fake_models), "--quiet"]
        return CliRunner().invoke(cli, ["vision", "embed-files", *map(str, arguments), *options])

    return run


def rows(out: object) -> list[dict[str, Any]]:
    found = [row for shard in shards(place(str(out))) for row in open_shard(shard).read().to_pylist()]
    return sorted(found, key=lambda row: row["path"])


def check(found: list[dict[str, Any]], fake_vision: Vision, name: Any = lambda number: f"{number:02}.jpg") -> None:
    """Each image once, with the embedding, the size and the digest that it has by itself."""
    assert len(found) == COUNT
    by_name = {row["path"].rpartition("/")[2]: row for row in found}
    for number in range(COUNT):
        row = by_name[name(number)]
        assert row["digest"] == content_hash(content(number))
        if number in BROKEN:
            assert row["embedding"] is row["width"] is row["height"] is None or images.info(content(number))
            assert row["error"] == images.error(content(number))
        else:
            assert row["error"] is None
            info = images.info(content(number))
            assert (row["width"], row["height"]) == (info["width"], info["height"])
            assert vectors.to_blob(row["embedding"]) == vectors.to_blob(fake_vision.embed_image(content(number)))


def test_a_folder(run: Any, photos: Path, out: Path, fake_vision: Vision) -> None:
    result = run(photos)
    assert result.exit_code == 3, result.output
    assert "27 embedded, 0 unchanged, 3 failed;" in result.output
    assert "1 files that are not images were left out" in result.output
    assert f"  {photos}/1/07.jpg: not an image of a known format" in result.output
    found = rows(out)
    check(found, fake_vision)
    assert found[0]["path"] == f"{photos}/0/00.jpg"


def test_a_second_time_nothing_is_done(run: Any, photos: Path, out: Path) -> None:
    run(photos)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (photos / "0" / "00.jpg").write_bytes(b"what is known is not read again")
    result = run(photos)
    assert result.exit_code == 0
    assert "0 embedded, 30 unchanged, 0 failed;" in result.output
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_it_goes_on_with_what_is_new(run: Any, photos: Path, out: Path, fake_vision: Vision) -> None:
    assert "9 embedded, 0 unchanged, 1 failed;" in run(photos / "0").output
    result = run(photos)
    assert "18 embedded, 10 unchanged, 2 failed;" in result.output
    check(rows(out), fake_vision)


def test_an_image_in_two_inputs_is_one(run: Any, photos: Path, out: Path, fake_vision: Vision) -> None:
    assert "27 embedded, 0 unchanged, 3 failed;" in run(photos / "0", f"{photos}/**/*.jpg", photos).output
    check(rows(out), fake_vision)


def test_errors_are_tried_again_when_asked(run: Any, photos: Path, out: Path) -> None:
    run(photos)
    (photos / "1" / "07.jpg").write_bytes(content(1))
    assert "30 unchanged" in run(photos).output
    result = run(photos, "--retry-errors")
    assert "1 embedded, 27 unchanged, 2 failed;" in result.output
    assert len(rows(out)) == COUNT
    assert sum(row["error"] is not None for row in rows(out)) == 2


def test_what_moved_can_be_passed_over(run: Any, photos: Path, out: Path) -> None:
    run(photos)
    photos.rename(photos.with_name("pictures"))
    result = run(photos.with_name("pictures"), "--skip", "digest")
    assert "0 embedded, 30 unchanged, 0 failed;" in result.output
    assert "27 embedded" in run(photos.with_name("pictures")).output


def test_small_files(run: Any, photos: Path, out: Path, fake_vision: Vision) -> None:
    run(photos, "--rows-per-file", 4)
    assert len(list(out.iterdir())) == 8
    check(rows(out), fake_vision)


@pytest.mark.parametrize("kind", ["bytes", "struct", "paths"])
def test_parquet(run: Any, photos: Path, out: Path, tmp_path: Path, fake_vision: Vision, kind: str) -> None:
    numbers = range(COUNT)
    columns: dict[str, Any] = {
        "bytes": {"image": [content(number) for number in numbers]},
        "struct": {"image": [{"bytes": content(number), "path": None} for number in numbers]},
        "paths": {"file_name": [f"photos/{number % 3}/{number:02}.jpg" for number in numbers]},
    }[kind]
    pq.write_table(pa.table(columns), tmp_path / "data.parquet", row_group_size=7)
    assert "27 embedded, 0 unchanged, 3 failed;" in run(tmp_path / "data.parquet").output
    names = (lambda number: f"{number:02}.jpg") if kind == "paths" else (lambda number: f"data.parquet#{number}")
    check(rows(out), fake_vision, names)
    assert "30 unchanged" in run(tmp_path / "data.parquet").output


def test_from_a_store_to_a_store(run: Any, fake_vision: Vision) -> None:
    store = place(f"memory://{uuid.uuid4().hex}")
    for number in range(COUNT):
        store.child(f"photos/{number:02}.jpg").write(content(number))
    result = run(f"{store.address}/photos/*.jpg", output=f"{store.address}/out")
    assert "27 embedded, 0 unchanged, 3 failed;" in result.output
    check(rows(f"{store.address}/out"), fake_vision)
    assert "30 unchanged" in run(f"{store.address}/photos", output=f"{store.address}/out").output


def test_what_cannot_be_read_is_a_row(run: Any, out: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "large.jpg").write_bytes(b"\xff\xd8" + b"x" * 2_100_000)
    names = ["none.jpg", "folder.jpg", "large.jpg", "http://example.com/a.jpg", "nosuch://a/b.jpg"]
    pq.write_table(pa.table({"path": names}), tmp_path / "list.parquet")
    result = run(tmp_path / "list.parquet", "--max-image-mb", 2)
    assert result.exit_code == 3
    assert "0 embedded, 0 unchanged, 5 failed;" in result.output
    reasons = {row["path"]: row["error"] for row in rows(out)}
    assert reasons["none.jpg"] == "cannot be read: No such file or directory"
    assert reasons["folder.jpg"] == "cannot be read: it is not a regular file"
    assert reasons["large.jpg"].startswith("an image of 2.1 MB is more than the 2 MB allowed")
    assert "web addresses are not fetched" in reasons["http://example.com/a.jpg"]
    assert "neither pyarrow" in reasons["nosuch://a/b.jpg"]


def test_too_large_in_a_store(run: Any) -> None:
    store = place(f"memory://{uuid.uuid4().hex}")
    store.child("photos/large.jpg").write(b"\xff\xd8" + b"x" * 2_100_000)
    run(f"{store.address}/photos", "--max-image-mb", 2, output=f"{store.address}/out")
    assert rows(f"{store.address}/out")[0]["error"] == "an image of more than the 2 MB allowed (max_image_mb)"


def test_models_are_not_mixed(run: Any, photos: Path) -> None:
    run(photos)
    result = run(photos, model="fake-labels")
    assert result.exit_code == 2
    assert "embeddings of fake, not of fake-labels: choose another --output" in result.output


def test_mistakes_are_named(run: Any, photos: Path, out: Path) -> None:
    assert run(photos, model="nosuch").exit_code == 4
    result = run(photos, model="fake-classifier")
    assert result.exit_code == 2
    assert "makes no embeddings" in result.output
    result = run(photos / "none")
    assert result.exit_code == 2
    assert "none: there is no such file or folder" in result.output
    for text in ("0", "3:2", "x", "1:2:3"):
        result = run(photos, "--ray", "--concurrency", text)
        assert result.exit_code == 2, text
        assert "expected a number of workers, or MIN:MAX" in result.output


def test_without_ray(run: Any, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "datasette_vision.files.ray.job", raising=False)
    result = run(photos, "--ray")
    assert result.exit_code == 11
    assert "--ray needs Ray: pip install 'datasette-vision[ray]'" in result.output


def test_what_was_embedded_is_written_when_something_fails(
    photos: Path, out: Path, fake_vision: Vision, counting: fakes.CountingLoads
) -> None:
    """An error that is no image's ends the job; what came before it need not be done again."""
    seen = 0

    def on_progress(summary: Summary) -> None:
        nonlocal seen
        seen = summary.done
        if seen == 12:
            raise KeyboardInterrupt

    job = Job((str(photos),), str(out), "fake")
    with pytest.raises(KeyboardInterrupt):
        embed_files.embed_files(job, fake_vision, on_progress=on_progress)
    assert len(rows(out)) == 12
    assert embed_files.embed_files(job, fake_vision).summary.unchanged == 12
    check(rows(out), fake_vision)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another thing there")
def test_ctrl_c(photos: Path, out: Path, fake_models: Path, fake_vision: Vision) -> None:
    """It ends in good order, says how to go on, and the next run does the rest."""
    pipe = photos / "2" / "29z.jpg"
    for number in range(400):
        (photos / "2" / f"x{number:04}.jpg").write_bytes(pictures.jpeg(600, 400, seed=number))
    assert not pipe.exists()
    command = ["vision", "embed-files", str(photos), "-o", str(out), "-m", "fake", "--models-dir", str(fake_models)]
    command += ["--rows-per-file", "5", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "datasette", *command], stderr=subprocess.PIPE, text=True)
    while not (out.is_dir() and list(out.glob("part-*"))):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Stopped: results that were written stay. To continue: datasette" in errors
    there = len(rows(out))
    assert 0 < there < COUNT + 400
    done = subprocess.run([sys.executable, "-m", "datasette", *command, "-q"], capture_output=True, text=True)
    assert f"{there} unchanged" in done.stdout, done.stderr
    paths = [row["path"] for row in rows(out)]
    assert len(paths) == len(set(paths)) == COUNT + 400
    check([row for row in rows(out) if "/x" not in row["path"]], fake_vision)


def test_into_a_table_and_on_from_there(run: Any, photos: Path, out: Path, fake_models: Path, tmp_path: Path) -> None:
    """What was imported is known to `datasette vision embed`: it embeds only what has changed since."""
    run(photos)
    database = str(tmp_path / "photos.db")

    def vision(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["vision", *arguments])
        assert result.exit_code in (0, 3), result.output
        return result.output

    vision("import-embeddings", database, "photos", str(out), "--create", "--base", str(photos), "--quiet")
    (photos / "0" / "00.jpg").write_bytes(content(1))
    options = ["--column", "path", "--base", str(photos), "--model", "fake", "--models-dir", str(fake_models)]
    assert "1 embedded (1 identical to another), 26 unchanged, 3 failed;" in vision(
        "embed", database, "photos", *options
    )
