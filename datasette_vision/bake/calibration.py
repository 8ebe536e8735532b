"""Images and texts by which the ranges of activations are found: others than those that prove the result."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from datasette_vision.install import samples


def calibration_images() -> Iterator[Image.Image]:
    """Yield RGB images of the same kinds as samples.sample_images(), but different ones."""
    yield from samples.drawings(first=1)
    yield from samples.imitated_photographs(seed=1)


def calibration_texts() -> Iterator[str]:
    """Yield the names of those drawings, and one text that is longer than any tower reads."""
    names = samples.drawing_names(first=1)
    yield from names
    yield ", ".join(names * 10)
