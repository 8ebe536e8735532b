"""Texts of any kind through the tokenizers and the text tower, and BLOBs of any kind in the cells of pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidText
from datasette_vision.images import perceptual_hash
from datasette_vision.models.store import ModelStore
from datasette_vision.plugin.pages import cells
from tests.fuzz import strategies as own
from tests.fuzz.properties import assert_linear, fuzz

LONGEST = 50_000


@pytest.fixture(scope="module")
def visions(fake_models: Path) -> Iterator[dict[str, Vision]]:
    found = {
        "fake": Vision(Config(default_model="fake", max_text_chars=LONGEST), store=ModelStore(fake_models)),
        "tiny-emoji": Vision(Config(max_text_chars=LONGEST)),
    }
    yield found
    for vision in found.values():
        vision.close()


@pytest.mark.parametrize("name", ["fake", "tiny-emoji"])
@fuzz(own.any_text | st.builds(str.__mul__, own.units, st.integers(0, 5000)))
def test_any_text_is_embedded(visions: dict[str, Vision], name: str, text: str) -> None:
    vision = visions[name]
    try:
        vector = vision.embed_text(text)
    except InvalidText:
        assert len(text) > LONGEST
        return
    assert abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) < 1e-5
    service = vision.services.dual_encoder(name)
    ids = service.tokenise(text)
    assert ids == service.tokenise(text)
    assert 1 <= len(ids) <= service.manifest.text.context_length
    (batched,) = vision.embed_texts([text])
    np.testing.assert_allclose(batched, vector, atol=1e-5)


@pytest.mark.parametrize("name", ["fake", "tiny-emoji"])
@fuzz(own.units | own.plain_texts.filter(bool), weight=0.1)
def test_tokenising_takes_time_in_proportion(visions: dict[str, Vision], name: str, repeated: str) -> None:
    service = visions[name].services.dual_encoder(name)
    assert_linear(lambda count: service.tokenise(repeated * count), 5_000 // len(repeated))


@fuzz(
    own.embeddings(8) | own.any_image | own.good_images | st.binary(max_size=300) | own.json_values,
    own.plain_texts | st.just("embedding"),
)
def test_any_value_in_a_cell(value: Any, column: str) -> None:
    """Of a query, whose rows belong to no table: nothing is asked of Datasette."""
    html = cells.render(SimpleNamespace(), {}, value, column, None, "demo")
    if hasattr(html, "__await__"):
        with pytest.raises(StopIteration) as done:
            html.send(None)
        html = done.value.value
    assert html is None or "<script" not in str(html)
    if html is not None:
        assert str(html).count("<img ") <= 1
        assert str(html).count('"') % 2 == 0


@fuzz(
    st.lists(st.binary(min_size=perceptual_hash.HASH_BYTES, max_size=perceptual_hash.HASH_BYTES), max_size=8),
    st.lists(st.integers(0, 127), max_size=6),
)
def test_groups_of_hashes(hashes: list[bytes], flips: list[int]) -> None:
    for flip in flips:  # some that are close to the first
        if hashes:
            near = bytearray(hashes[0])
            near[flip // 8] ^= 1 << flip % 8
            hashes = [*hashes, bytes(near)]
    groups = perceptual_hash.groups(hashes)
    assert len(groups) == len(hashes)
    assert all(0 <= group <= position for position, group in enumerate(groups))
    assert (groups[groups] == groups).all()
    for position, group in enumerate(groups):
        assert all(groups[other] == group for other in range(len(hashes)) if hashes[other] == hashes[position])
