"""docs/pages.md says what is so: every argument is in it, its examples run, and its pictures are there and small."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from datasette_vision.plugin.pages.image_route import IMAGE_SIZES, MAX_AGE_S
from datasette_vision.plugin.search.embedded_table import LARGE
from datasette_vision.plugin.search.request import DEFAULT_SIZE, LESS, OWN_ARGUMENTS
from tests.paths import ROOT
from tests.plugin.search.test_page import make

PAGE = (ROOT / "docs" / "pages.md").read_text("utf-8")


@pytest.mark.parametrize("name", OWN_ARGUMENTS)
def test_every_argument_is_documented(name: str) -> None:
    assert re.search(rf"^\| [^|]*`{name}`", PAGE, re.MULTILINE)


def test_numbers_are_those_of_the_code() -> None:
    assert f"| {DEFAULT_SIZE}, and 1 |" in PAGE
    assert f"| 1, and {abs(LESS):g} |" in PAGE
    assert f"up to {LARGE:,} rows" in PAGE
    assert (
        f"`?_size={IMAGE_SIZES[0]}`, {', '.join(f'`{size}`' for size in IMAGE_SIZES[1:-1])} or `{IMAGE_SIZES[-1]}`"
        in PAGE
    )
    assert MAX_AGE_S == 5 * 60


@pytest.mark.asyncio
async def test_the_example_runs(demo_path: Path) -> None:
    found = re.search(r"```bash\ncurl '([^']+)'\n```\n\n```json\n(.*?)```", PAGE, re.DOTALL)
    assert found
    address, shown = urlsplit(found.group(1)), json.loads(found.group(2))
    answer = (await make(demo_path).client.get(f"{address.path}?{address.query}")).json()
    assert list(answer) == list(shown)
    assert list(answer["rows"][0]) == list(shown["rows"][0])
    for key in ("path", "label"):
        assert answer["rows"][0][key] == shown["rows"][0][key]
    assert round(answer["rows"][0]["similarity"], 2) == shown["rows"][0]["similarity"]
    for key in ("ok", "database", "table", "column", "model", "next", "parameters"):
        assert answer[key] == shown[key]


@pytest.mark.parametrize("name", re.findall(r"\]\((docs/[^)]+\.webp)\)", (ROOT / "README.md").read_text("utf-8")))
def test_screenshots_are_there_and_small(name: str) -> None:
    assert (ROOT / name).stat().st_size < 200_000
    with Image.open(ROOT / name) as picture:
        assert picture.width >= 600
