"""models/catalog.py: each row says all that a person needs to choose, and fits where it is shown."""

from __future__ import annotations

import math

import pytest

from datasette_vision.install.requests import REPOSITORY
from datasette_vision.models.catalog import CATALOG, CLIP_LOGIT_SCALE, CatalogRow, catalog_row
from datasette_vision.models.manifest import NAME_PATTERN
from datasette_vision.models.tasks import DUAL_ENCODER, FORMS


def test_what_the_catalogue_holds() -> None:
    assert [row.name for row in CATALOG] == [
        "clip",
        "clip-b16",
        "clip-l14",
        "siglip2",
        "mobileclip",
        "clip-multilingual",
        "resnet-50",
        "vit-base",
        "food101",
        "nsfw",
    ]


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_a_row(row: CatalogRow) -> None:
    assert NAME_PATTERN.fullmatch(row.name)
    assert row.task in FORMS
    for repository in (row.source, row.original, row.text_source):
        assert repository is None or REPOSITORY.fullmatch(repository)
    assert row.licence
    assert 0 < row.megabytes < 10_000
    assert 1 < row.dimensions <= 2048
    assert len(row.description) <= 76
    assert catalog_row(row.name) is row
    # Without its scale a dual encoder's scores mean nothing, and its graphs do not hold it.
    assert (row.logit_scale is not None) == (row.task == DUAL_ENCODER)
    assert ("bake" in row.description) == row.bakes


def test_no_such_row() -> None:
    assert catalog_row("clip-b32") is None


def test_the_scales() -> None:
    assert math.isclose(math.exp(4.6052), CLIP_LOGIT_SCALE, rel_tol=1e-4)
    siglip2 = catalog_row("siglip2")
    assert siglip2 is not None
    assert math.isclose(math.exp(4.724453449249268), siglip2.logit_scale or 0, rel_tol=1e-6)
