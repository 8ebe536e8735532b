"""The contents of a column (images, texts, or paths of image files), and how to read its values."""

from __future__ import annotations

from datasette_vision.errors import InvalidArgument, InvalidImage, Unreadable
from datasette_vision.images import decode as images
from datasette_vision.images.formats import has_image_suffix
from datasette_vision.tables.file_content import Base, read_image
from datasette_vision.tables.rows import SourceRow, SourceTable

IMAGES, TEXTS, PATHS = "images", "texts", "paths"


def choose_column(source: SourceTable, base: Base | None, used: list[str]) -> str:
    """Return the column to embed: that of `used` (the columns that were embedded before), or the one that holds images.

    With the folder `base`, the one that holds paths of files in it. Raises InvalidArgument unless there is exactly one.
    """
    candidates = [column for column in source.columns if column in used]
    if len(candidates) != 1:
        candidates = [column for column in source.columns if _holds_images(source.samples(column), base)]
    if len(candidates) != 1:
        found = f"{', '.join(candidates)} do" if candidates else "none does"
        raise InvalidArgument(
            f"choose with --column what to embed of {source.name} ({', '.join(source.columns)}):"
            f" of the columns that could hold {'paths' if base else 'images'}, {found}"
        )
    return candidates[0]


def kind(source: SourceTable, column: str, base: Base | None, where: str | None = None) -> str:
    """Return what a column holds, judging by its first values: IMAGES, TEXTS, or with the folder `base` PATHS.

    Raises InvalidArgument for texts that look like names of image files.
    """
    if base is not None:
        return PATHS
    samples = source.samples(column, where)
    texts = [value for value in samples if isinstance(value, str)]
    if not texts or _holds_images(samples, None):
        return IMAGES
    # If paths were embedded as texts, they would replace the embeddings of the images.
    names = [text for text in texts if has_image_suffix(text)]
    if len(names) > len(texts) / 2:
        raise InvalidArgument(f"{column} holds names of files, such as {names[0]!r}: name their folder with --base")
    return TEXTS


class ContentReader:
    """Reads the content of a column's rows: the bytes of an image file, or of a text."""

    def __init__(self, kind: str, base: Base | None, max_bytes: int) -> None:
        self._kind = kind
        self._base = base
        self._max_bytes = max_bytes

    def __call__(self, row: SourceRow) -> bytes:
        """Return a row's content, and remove it from the row. Raises OSError, Unreadable or InvalidImage."""
        value = row.take()
        if value is None:  # it was not read
            raise InvalidImage(
                f"an image of {row.size / 1e6:.1f} MB is more than the {self._max_bytes / 1e6:g} MB allowed"
                " (max_image_mb)"
            )
        if self._base is not None:
            if not isinstance(value, (str, bytes)):
                raise Unreadable(f"expected the path of a file, found {_shown(row)}")
            row.label = value if isinstance(value, str) else value.decode("utf-8", "replace")
            return read_image(self._base.find(value), self._max_bytes)
        if self._kind == TEXTS:
            if not isinstance(value, str):
                raise Unreadable(f"expected a text, found {_shown(row)}")
            return value.encode("utf-8", "surrogateescape")
        if isinstance(value, str):
            return images.from_text(value)
        if not isinstance(value, bytes):
            raise Unreadable(f"expected an image, found {_shown(row)}")
        return value


def _holds_images(samples: list[object], base: Base | None) -> bool:
    if base is not None:
        return any(isinstance(value, (str, bytes)) and _is_file(base, value) for value in samples)
    return any(
        images.sniff(value) is not None if isinstance(value, bytes) else _is_data_uri(value) for value in samples
    )


def _is_file(base: Base, path: str | bytes) -> bool:
    try:
        return bool(path) and base.find(path).is_file()
    except (OSError, Unreadable):
        return False


def _is_data_uri(value: object) -> bool:
    return isinstance(value, str) and value[:5].lower() == "data:"


def _shown(row: SourceRow) -> str:
    return {"blob": "a BLOB", "text": "a text", "integer": "an integer", "real": "a number"}[row.kind]
