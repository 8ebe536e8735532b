"""Images as text: in a query parameter, in JSON, in a table's TEXT column."""

from __future__ import annotations

import base64
import contextlib
import re

import numpy as np

from datasette_vision.errors import InvalidImage
from datasette_vision.images.formats import foreign, sniff
from datasette_vision.util.excerpt import excerpt

_DATA_URI = re.compile(r"data:([^,]{0,1000}),", re.IGNORECASE)
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
# Bytes of percent-encoded text to decode at a time.
PERCENT_PIECE = 1 << 18
# Characters of base64 to process in one step.
TEXT_PIECE = 1 << 16
_BREAK_AND_SPACES = re.compile("\n +")
# White space that no encoder writes. Only texts up to this length are searched for it.
_ODD_SPACES = tuple(mark for mark in map(chr, range(0x3001)) if mark.isspace() and mark not in " \r\n\t\f\v")
ODD_SPACES_CHARS = 100_000

# For each byte: its value as a digit in base 16, or -1.
_HEX_DIGIT = np.full(256, -1, np.int16)
_HEX_DIGIT[np.frombuffer(b"0123456789abcdef", np.uint8)] = range(16)
_HEX_DIGIT[np.frombuffer(b"ABCDEF", np.uint8)] = range(10, 16)


def from_text(text: str) -> bytes:
    """The bytes of an image in text form: a `data:` URI, or bare base64.

    Base64 may be standard or URL-safe, padded or not, and broken into lines. A "+" that a query string has turned into
    a space is restored. The media type of a data: URI is ignored: the bytes decide. Raises InvalidImage.
    """
    if not isinstance(text, str):
        raise InvalidImage(f"expected text, found {type(text).__name__}")
    uri = _DATA_URI.match(text.lstrip())
    payload = text.lstrip()[uri.end() :] if uri else text
    if uri and not uri[1].lower().rstrip().endswith(";base64"):
        try:
            data = _percent_decoded(payload)
        except UnicodeEncodeError as reason:
            raise InvalidImage(f"this data: URI has characters that cannot be bytes: {excerpt(text)}") from reason
    elif uri:
        found = _from_base64(_unescaped(payload))
        if found is None:
            raise InvalidImage(f"this data: URI is not valid base64: {excerpt(payload)}")
        data = found
    else:
        # Any word is valid base64, so the bytes of bare base64 must also be an image.
        data = _from_base64(payload) or b""
        if not sniff(data) and not foreign(data):
            raise InvalidImage(f"this text is not an image: expected a data: URI or base64, found {excerpt(text)}")
    if not data:
        raise InvalidImage("this data: URI is empty")
    return data


def _from_base64(text: str) -> bytes | None:
    """The bytes of base64 in either alphabet, or None."""
    with contextlib.suppress(ValueError):
        # The usual form first: checking for others takes several times as long.
        return base64.b64decode(text, validate=True) or None
    try:
        encoded = _without_line_breaks(text).encode("ascii").translate(_STANDARD_ALPHABET)
    except UnicodeEncodeError:
        return None
    spaces, first = encoded.count(b" "), encoded.find(b" ")
    if spaces:
        # Groups of equal length are layout. Elsewhere a space was a "+" before a query string was parsed.
        groups = encoded[first :: first + 1][:spaces] == b" " * spaces
        layout = groups and (spaces > 1 or (len(encoded) - spaces) % 4 == 0)
        encoded = encoded.replace(b" ", b"" if layout else b"+")
    padding = len(encoded) - len(encoded.rstrip(b"="))
    if padding > 2 or (len(encoded) - padding) % 4 == 1:
        return None
    encoded = encoded[: len(encoded) - padding]
    with contextlib.suppress(ValueError):
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True) or None
    return None


def _without_line_breaks(text: str) -> str:
    """A text without its line breaks, and without the spaces at the ends of lines.

    It takes time proportional to the text, in short steps, so that other threads get their turns: a regular expression
    for this is quadratic on a run of spaces, and a loop over millions of lines takes seconds.
    """
    text = _replaced_piecewise(text.strip(), "\r\t\f\v", "\n")
    if len(text) <= ODD_SPACES_CHARS and any(space in text for space in _ODD_SPACES):
        return "".join(line.strip() for line in text.split("\n"))
    if "\n" not in text:
        return text
    # Spaces before a line break come after it when read backwards.
    text = _without_spaces_behind_breaks(_without_spaces_behind_breaks(text)[::-1])[::-1]
    return _replaced_piecewise(text, "\n", "")


def _replaced_piecewise(text: str, marks: str, by: str) -> str:
    """Replace each of `marks`. One call of str.replace() for the whole text would hold the GIL for too long."""
    pieces = []
    for start in range(0, len(text), TEXT_PIECE):
        piece = text[start : start + TEXT_PIECE]
        for mark in marks:
            piece = piece.replace(mark, by)
        pieces.append(piece)
    return "".join(pieces)


def _without_spaces_behind_breaks(text: str) -> str:
    pieces: list[str] = []
    is_behind = False
    for start in range(0, len(text), TEXT_PIECE):
        piece = text[start : start + TEXT_PIECE]
        if is_behind:
            piece = piece.lstrip(" ")
        if piece:
            piece = _BREAK_AND_SPACES.sub("\n", piece)
            is_behind = piece.endswith("\n")
            pieces.append(piece)
    return "".join(pieces)


def _unescaped(text: str) -> str:
    """Percent-decoded text. Lone surrogates, which base64 does not contain, become question marks."""
    return (
        _percent_decoded(text.encode("utf-8", "replace").decode()).decode("utf-8", "replace") if "%" in text else text
    )


def _percent_decoded(text: str) -> bytes:
    """The bytes of percent-encoded text, as from urllib.parse.unquote_to_bytes(). Raises UnicodeEncodeError.

    That function makes an object of every escape, and of 30 MB two gigabytes. This one works on pieces.
    """
    encoded = text.encode("utf-8")
    decoded, start = bytearray(), 0
    while start < len(encoded):
        end = start + PERCENT_PIECE
        cut = encoded.rfind(b"%", end - 2, end)  # an escape is three bytes: do not split it
        end = cut if cut > start else end
        piece = np.frombuffer(encoded[start:end], np.uint8)
        escapes = np.flatnonzero(piece[:-2] == ord("%"))
        high, low = _HEX_DIGIT[piece[escapes + 1]], _HEX_DIGIT[piece[escapes + 2]]
        valid = (high >= 0) & (low >= 0)
        escapes = escapes[valid]
        kept = np.ones(len(piece), np.bool_)
        kept[escapes + 1] = kept[escapes + 2] = False
        piece = piece.copy()
        piece[escapes] = 16 * high[valid] + low[valid]
        decoded += piece[kept].tobytes()
        start = end
    return bytes(decoded)
