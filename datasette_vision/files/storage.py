"""Local files and object stores: one way to list, read and write them.

A file's address is its absolute path, or a URI of any scheme that pyarrow or fsspec supports: s3://, gs://, hf://,
abfs://… Web addresses are refused: addresses in an untrusted table are not fetched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasette_vision.errors import ExtraMissing, InvalidArgument, StorageFailed, VisionError
from datasette_vision.util.listing import FILE, FOLDER, LINK, local_entries, walk
from datasette_vision.util.partial_files import remove_leftovers, unfinished

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C:\ is a drive
# Stores in which a file appears when it is closed. Elsewhere partial files are visible, and a rename avoids that.
WHOLE_WHEN_CLOSED = ("s3://", "gs://", "gcs://", "abfs://", "abfss://", "az://", "hf://")

# The suffix of unfinished files.
PARTIAL_SUFFIX = ".part"


@dataclass(frozen=True)
class Place:
    """A file or folder: its file system, and its path there.

    `path` begins with `base`, the file system's name for the `root` of an address: "bucket" for "s3://bucket". Both are
    empty on this machine. `options` are those of the URI, such as endpoint_override=localhost:9000.
    """

    filesystem: Any  # pyarrow.fs.FileSystem
    path: str
    root: str = ""
    base: str = ""
    options: str = ""

    @property
    def address(self) -> str:
        """Return the address as shown to people."""
        return self.root + self.path[len(self.base) :]

    @property
    def uri(self) -> str:
        """Return an address that opens the same place from anywhere, including the options."""
        return f"{self.address}?{self.options}" if self.options else self.address

    def at(self, path: str) -> Place:
        """Return another path of the same file system."""
        return dataclasses.replace(self, path=path)

    def child(self, name: str) -> Place:
        """Return the entry `name` of this folder."""
        return self.at(f"{self.path.rstrip('/')}/{name}")

    def kind(self) -> str:
        """Return "file", "folder" or "nothing". Raises StorageFailed."""
        with storage_errors(self.address):
            return _kind(self.filesystem.get_file_info(self.path))

    def files(self, hidden: tuple[str, ...] = (".",)) -> Iterator[Place]:
        """Yield the files in this folder and below, except hidden names. Raises StorageFailed.

        In the order of util/listing.py. Links to files are followed, because data sets use them; links to folders are
        not.
        """
        for path, kind in walk(self.path, self._entries, hidden):
            if kind == FILE or (kind == LINK and os.path.isfile(path)):  # noqa: PTH113
                yield self.at(path)

    def _entries(self, folder: str) -> list[tuple[str, str]]:
        with storage_errors(self.address):
            if not self.root:  # not pyarrow, which does not support names that are not UTF-8
                return local_entries(folder)
            from pyarrow import fs

            return [(info.path, _kind(info)) for info in self.filesystem.get_file_info(fs.FileSelector(folder))]

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return the content; for a file larger than `max_bytes`, one byte more than that. Raises StorageFailed."""
        with storage_errors(self.address):
            if not self.root:  # pyarrow takes three times as long to open a local file
                with Path(self.path).open("rb", buffering=0) as file:
                    return _all(file.read, max_bytes)
            with self.filesystem.open_input_stream(self.path) as stream:
                return _all(stream.read, max_bytes)

    def write(self, content: Any) -> None:
        """Write a file that appears under its name completely or not at all, replacing an old one.

        `content` is bytes or a pyarrow.Buffer. Raises StorageFailed.
        """
        with storage_errors(self.address):
            if self.root.startswith(WHOLE_WHEN_CLOSED):
                with self.filesystem.open_output_stream(self.path) as stream:
                    stream.write(content)
                return
            if not self.root:
                with unfinished(Path(self.path), PARTIAL_SUFFIX) as temporary:
                    with self.filesystem.open_output_stream(str(temporary)) as stream:
                        stream.write(content)
                    with temporary.open("rb") as whole:
                        os.fsync(whole.fileno())
                return
            folder, _, name = self.path.rpartition("/")
            other = f"{folder}/.{name}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
            try:
                with self.filesystem.open_output_stream(other) as stream:
                    stream.write(content)
                self.filesystem.move(other, self.path)
            except BaseException:
                with contextlib.suppress(Exception):
                    self.filesystem.delete_file(other)
                raise

    def remove(self) -> None:
        """Remove a file. Raises StorageFailed."""
        with storage_errors(self.address):
            self.filesystem.delete_file(self.path)

    def clear_up(self) -> None:
        """Remove partial files of killed processes in this local folder. Raises StorageFailed."""
        if not self.root:
            with storage_errors(self.address):
                remove_leftovers(Path(self.path), f".*{PARTIAL_SUFFIX}")

    def make_folder(self) -> None:
        """Create a folder and its parents, if missing. Raises StorageFailed."""
        with storage_errors(self.address):
            if not self.root.startswith(WHOLE_WHEN_CLOSED):  # those have no folders, and we do not create buckets
                self.filesystem.create_dir(self.path, recursive=True)


def place(address: str) -> Place:
    """Return the place of an address. A relative path is relative to the working directory.

    Raises InvalidArgument for an unsupported scheme, ExtraMissing without pyarrow, StorageFailed.
    """
    match = SCHEME.match(address)
    if match is None or match[1].lower() == "file":
        path = address[match.end() :] if match else address
        if match and not path.startswith("/"):
            raise InvalidArgument(f"{address}: expected file:///, with the path of a local file")
        # Not resolve(): a row's path keeps links, as the user sees it.
        return Place(_local(), Path(os.path.abspath(Path(path).expanduser())).as_posix())  # noqa: PTH100
    scheme = match[1].lower()
    if scheme in {"http", "https", "ftp"}:
        raise InvalidArgument(
            f"{address}: web addresses are not fetched: download them first, for example with img2dataset"
        )
    rest, _, options = address[match.end() :].partition("?")
    root, _, below = rest.partition("/")
    filesystem, base = _remote(scheme, root, options)
    path = f"{base}/{below}".rstrip("/") if below else base
    return Place(filesystem, path, f"{scheme}://{root}", base, options)


@functools.cache
def _local() -> Any:
    return _pyarrow_fs().LocalFileSystem()


@functools.cache
def _remote(scheme: str, root: str, options: str) -> tuple[Any, str]:
    """Return (file system, path) of a bucket, cached: a file system holds connections, and looks up a bucket's
    location.
    """
    fs = _pyarrow_fs()
    address = f"{scheme}://{root}" + (f"?{options}" if options else "")
    with storage_errors(address):
        try:
            filesystem, path = fs.FileSystem.from_uri(address)
            return filesystem, path.rstrip("/")
        except (ValueError, NotImplementedError) as error:  # pyarrow's ArrowInvalid is a ValueError
            reason = error
        import fsspec

        try:
            found, path = fsspec.core.url_to_fs(address)
        except ImportError as error:
            raise ExtraMissing(f"{address}: {error}") from None
        except ValueError as error:
            raise InvalidArgument(f"{address}: neither pyarrow ({reason}) nor fsspec ({error}) can read it") from None
        return fs.PyFileSystem(fs.FSSpecHandler(found)), path.rstrip("/")


def _pyarrow_fs() -> Any:
    try:
        from pyarrow import fs  # heavy: imported when files are listed, never at start
    except ImportError:
        raise ExtraMissing("Parquet and object stores need pyarrow: pip install 'datasette-vision[parquet]'") from None
    return fs


@contextlib.contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turn errors of file systems into one line that names the place."""
    try:
        yield
    except FileNotFoundError:
        raise StorageFailed(f"{address}: there is no such file") from None
    except PermissionError:
        raise StorageFailed(f"{address}: access is denied") from None
    except OSError as error:  # includes pyarrow's errors of object stores
        raise StorageFailed(f"{address}: {_brief(error.strerror or error)}") from None
    except Exception as error:
        if isinstance(error, VisionError):
            raise
        # fsspec's file systems raise the errors of their libraries.
        raise StorageFailed(f"{address}: {type(error).__name__}: {_brief(error)}") from error


def _brief(reason: object) -> str:
    return " ".join(str(reason).split())[:300]


def _all(read: Callable[[int | None], bytes], max_bytes: int | None) -> bytes:
    parts = []
    left = None if max_bytes is None else max_bytes + 1
    while left is None or left > 0:
        part = read(left)
        if not part:
            break
        parts.append(part)
        left = None if left is None else left - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _kind(entry: Any) -> str:
    from pyarrow import fs

    return {fs.FileType.File: FILE, fs.FileType.Directory: FOLDER}.get(entry.type, "nothing")
