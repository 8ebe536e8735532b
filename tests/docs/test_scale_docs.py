"""docs/scale.md: the examples with other engines run, and find what is there to be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from datasette_vision.bulk.pipeline import config_for_bulk
from datasette_vision.config.settings import Config
from datasette_vision.demo.demo import read_archive
from datasette_vision.engine.vision import Vision

pytest.importorskip("pyarrow", reason="the extra parquet is not installed")

from datasette_vision.files import embed_files
from tests.paths import ROOT

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `embeddings`, made of the demo's pictures."""
    folder = tmp_path_factory.mktemp("scale")
    (folder / "emoji").mkdir()
    for emoji in list(read_archive())[:400]:
        (folder / "emoji" / f"{emoji.name.replace('/', ' ')}.webp").write_bytes(emoji.image)
    (folder / "emoji" / "broken.webp").write_bytes(b"nonsense")
    vision = Vision(config_for_bulk(Config()))
    job = embed_files.Job((str(folder / "emoji"),), str(folder / "embeddings"), "tiny-emoji")
    assert embed_files.embed_files(job, vision).summary.failed == 1
    vision.close()
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["lancedb", "qdrant_client"])
def test_engines(engine: str, embeddings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    monkeypatch.chdir(embeddings)
    (example,) = [text for text in EXAMPLES if engine in text]
    names: dict[str, object] = {}
    exec(compile(example, engine, "exec"), names)
    found = names["paths"]
    assert isinstance(found, list)
    assert len(found) == 10
    assert Path(found[0]).stem == "purple heart"
    assert len(set(found)) == 10
