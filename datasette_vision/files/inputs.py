"""The inputs of `datasette vision embed-files`: folders, globs, files, and Parquet with images or paths in a column.

An input is listed as units, small enough to be sent to another machine, where a unit becomes its images. So one machine
and a cluster work in the same way.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasette_vision.errors import InvalidArgument
from datasette_vision.files.parquet import SUFFIX, batches, open_shard
from datasette_vision.files.storage import SCHEME, Place, place, storage_errors
from datasette_vision.images.formats import has_image_suffix
from datasette_vision.util.listing import glob_regex, split_glob

# Common names for a column of images, and for one of paths, most reliable first.
CONTENT_NAMES = ("image", "bytes", "content", "img", "picture", "photo", "data", "jpg", "jpeg", "png", "webp")
PATH_NAMES = ("path", "uri", "image_path", "file_path", "filepath", "file", "file_name", "filename", "key", "image")

ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class Image:
    """An image to be embedded: its content, or where to read it, or an error.

    `path` is the path in its output row.
    """

    path: str
    uri: str | None = None
    content: bytes | None = None
    error: str | None = None


@dataclass(frozen=True)
class Unit:
    """An image file, or a row group of a Parquet file: its number, its first row in the file, its number of rows."""

    uri: str
    row_group: int | None = None
    first: int = 0
    rows: int = 1

    def images(self, column: str | None = None) -> Iterator[Image]:
        """Yield the images, for a Parquet file those in `column`. Raises InvalidArgument, StorageFailed."""
        if self.row_group is None:
            yield _file(place(self.uri))
        else:
            yield from _rows(self, column)


class Inputs:
    """All inputs of a job, in order. `ignored` counts the files in folders that are not images, once listed."""

    def __init__(self, inputs: Sequence[str], *, column: str | None = None, output: Place | None = None) -> None:
        self.inputs = tuple(inputs)
        self.column = column
        self.ignored = 0
        self._output = output

    def units(self) -> Iterator[Unit]:
        """Yield the units to read.

        Raises InvalidArgument for an input that does not exist, or a Parquet file without a column of images or paths,
        and StorageFailed.
        """
        self.ignored = 0
        for text in self.inputs:
            found = self._units_of(text)
            first = next(found, None)
            if first is None:
                raise InvalidArgument(f"{text}: there are no images, and no Parquet files")
            yield first
            yield from found

    def _units_of(self, text: str) -> Iterator[Unit]:
        base, pattern = folder_and_pattern(text)
        where = place(base)
        if pattern is not None:
            files = self._below(where)
            matches = re.compile(glob_regex(pattern)).fullmatch
            for file in files:
                if matches(file.path[len(where.path.rstrip("/")) + 1 :]):
                    yield from self._units_of_file(file)
            return
        kind = where.kind()
        if kind == "nothing":
            raise InvalidArgument(f"{where.address}: there is no such file or folder")
        if kind == "file":
            yield from self._units_of_file(where)
            return
        # A folder of images may hold Parquet files of all kinds; a data set is Parquet files without images.
        tables: list[Place] = []
        files = self._below(where)
        for file in files:
            if has_image_suffix(file.path):
                self.ignored += len(tables)
                images = (other for other in itertools.chain([file], files) if self._is_image(other))
                yield from (Unit(image.uri) for image in images)
                return
            if file.path.endswith(SUFFIX):
                tables.append(file)
            else:
                self.ignored += 1
        for table in tables:
            if not table.path.rpartition("/")[2].startswith("_"):
                yield from self._units_of_file(table)

    def _is_image(self, file: Place) -> bool:
        if has_image_suffix(file.path):
            return True
        self.ignored += 1
        return False

    def _below(self, folder: Place) -> Iterator[Place]:
        """Yield the files of a folder, except those that this job writes."""
        own = None if self._output is None else self._output.address.rstrip("/") + "/"
        for file in folder.files():
            if own is None or not file.address.startswith(own):
                yield file

    def _units_of_file(self, file: Place) -> Iterator[Unit]:
        if not file.path.endswith(SUFFIX):
            yield Unit(file.uri)
            return
        table = open_shard(file)
        Column.choose(
            table.schema_arrow, self.column, file.address
        )  # so that a mistake shows here, not on another machine
        first = 0
        for number in range(table.num_row_groups):
            rows = table.metadata.row_group(number).num_rows
            yield Unit(file.uri, number, first, rows)
            first += rows


@dataclass(frozen=True)
class Column:
    """The column of a Parquet file with the images or their paths, and the one with their names."""

    name: str
    is_content: bool
    is_struct: bool = False  # {"bytes", "path"}, as in datasets of Hugging Face
    names: str | None = None

    @staticmethod
    def choose(schema: Any, wanted: str | None, address: str) -> Column:
        """Return the wanted column, or detect it. Raises InvalidArgument if there is none.

        `schema` is a pyarrow.Schema.
        """
        kinds = {field.name: _kind(field.type) for field in schema}
        names = "path" if kinds.get("path") == "text" else None
        if wanted is not None:
            if kinds.get(wanted) is None:
                held = "no column" if wanted not in kinds else "neither images nor paths in the column"
                raise InvalidArgument(f"{address}: there is {held} {wanted}; its columns are: {', '.join(kinds)}")
            return Column(wanted, kinds[wanted] != "text", kinds[wanted] == "struct", names)
        content = [name for name, kind in kinds.items() if kind in {"bytes", "struct"}]
        if len(content) > 1:
            content = [name for name in CONTENT_NAMES if name in content]
        if content:
            return Column(content[0], True, kinds[content[0]] == "struct", names)
        for name in PATH_NAMES:
            if kinds.get(name) == "text":
                return Column(name, False, False, name)
        raise InvalidArgument(
            f"{address}: which column has the images, or their paths? Name it with --column; columns:"
            f" {', '.join(kinds)}"
        )


def folder_and_pattern(text: str) -> tuple[str, str | None]:
    """Split an input as split_glob() does, keeping the options after a URI. An existing path is not a pattern.

    In a URI only * and [ form a pattern, because ? begins its options.
    """
    scheme = SCHEME.match(text)
    remote = scheme is not None and scheme[1].lower() != "file"
    text, mark, options = text.partition("?") if remote else (text, "", "")
    if not remote and place(text).kind() != "nothing":  # a folder may be called [2024]
        return text, None
    folder, pattern = split_glob(text, "*[" if remote else "*?[")
    return folder + mark + options, pattern


def _file(file: Place) -> Image:
    try:
        file.address.encode()
    except UnicodeEncodeError:
        name = os.fsencode(file.address).decode("utf-8", "backslashreplace")
        return Image(name, error="its name is not UTF-8, which a row's path must be: rename it")
    return Image(file.address, uri=file.uri)


def _rows(unit: Unit, wanted: str | None) -> Iterator[Image]:
    file = place(unit.uri)
    table = open_shard(file)
    column = Column.choose(table.schema_arrow, wanted, file.address)
    needed = list(dict.fromkeys(name for name in (column.name, column.names) if name is not None))
    folder = file.at(file.path.rpartition("/")[0])
    number = unit.first
    for batch in batches(file, table, ROWS_AT_A_TIME, row_groups=[unit.row_group], columns=needed):
        with storage_errors(file.address):
            rows = batch.to_pylist()
        for row in rows:
            name = row.get(column.names) if column.names else None
            yield _image(f"{file.address}#{number}" if name is None else name, row[column.name], column, folder)
            number += 1


def _image(name: str, value: Any, column: Column, folder: Place) -> Image:
    if column.is_struct and value is not None:
        value = value["bytes"]
    if value is None:
        return Image(name, error=f"the column {column.name} is null")
    if column.is_content:
        return Image(name, content=value)
    # An invalid address shows when it is read: opening a store may take time.
    is_whole = SCHEME.match(value) or value.startswith("/")
    return Image(name, uri=value if is_whole else folder.child(value).uri)


def _kind(type_: Any) -> str | None:
    from pyarrow import types

    if types.is_dictionary(type_):
        type_ = type_.value_type
    if types.is_binary(type_) or types.is_large_binary(type_):
        return "bytes"
    if types.is_string(type_) or types.is_large_string(type_):
        return "text"
    if types.is_struct(type_) and type_.get_field_index("bytes") >= 0 and _kind(type_.field("bytes").type) == "bytes":
        return "struct"
    return None
