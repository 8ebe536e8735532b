"""Digests of files, read in parts: weights may be larger than memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

READ_BYTES = 1 << 20


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal. Raises OSError."""
    return _of(path, hashlib.sha256())


def git_blob(path: Path) -> str:
    """Return git's name for a file's content: the SHA-1 of a header with its size, then the content. Raises OSError."""
    return _of(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False))


def _of(path: Path, digest: hashlib._Hash) -> str:
    with path.open("rb") as stream:
        while part := stream.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()
