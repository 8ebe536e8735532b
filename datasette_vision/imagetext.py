"""Images that travel as text: in a query parameter, in JSON, in a table's TEXT column."""

from __future__ import annotations

import base64
import contextlib
import re
import urllib.parse

from .errors import InvalidImage
from .imageformats import foreign, sniff

_DATA_URI = re.compile(r"data:([^,]{0,1000}),", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def from_text(text: str) -> bytes:
    """The bytes of an image that travels as text: a `data:` URI, or bare base64.

    Base64 may be standard or URL-safe, padded or not, and broken into lines. A "+" that a query string has turned into
    a space is put back. A data: URI's media type is ignored: the bytes decide. Raises InvalidImage.
    """
    if not isinstance(text, str):
        raise InvalidImage(f"expected text, found {type(text).__name__}")
    uri = _DATA_URI.match(text.lstrip())
    payload = text.lstrip()[uri.end() :] if uri else text
    if uri and not uri[1].lower().rstrip().endswith(";base64"):
        try:
            data = urllib.parse.unquote_to_bytes(payload)
        except UnicodeEncodeError as reason:
            raise InvalidImage(f"this data: URI has characters that cannot be bytes: {_quote(text)}") from reason
    elif uri:
        found = _from_base64(urllib.parse.unquote(payload) if "%" in payload else payload)
        if found is None:
            raise InvalidImage(f"this data: URI is not valid base64: {_quote(payload)}")
        data = found
    else:
        # Any word is valid base64, so bare base64 has to be an image as well.
        data = _from_base64(payload) or b""
        if not sniff(data) and not foreign(data):
            raise InvalidImage(f"this text is no image: expected a data: URI or base64, found {_quote(text)}")
    if not data:
        raise InvalidImage("this data: URI is empty")
    return data


def _quote(text: str) -> str:
    return repr(text[:40]) + (f"… ({len(text)} characters)" if len(text) > 40 else "")


def _from_base64(text: str) -> bytes | None:
    """Bytes of base64 in either alphabet, or None."""
    with contextlib.suppress(ValueError):
        # As most write it: looking for other ways takes twenty times as long.
        return base64.b64decode(text, validate=True) or None
    text = re.sub(r"\s*[\r\n\t\f\v]\s*", "", text.strip())
    if " " in text:
        groups = text.split(" ")
        lengths = {len(group) for group in groups[:-1]}
        # Groups of one length are layout; at any other place a space was a "+" before a query string was parsed.
        layout = len(lengths) == 1 and (len(groups) > 2 or len(text) % 4 == 1)
        text = text.replace(" ", "" if layout else "+")
    text = text.replace("-", "+").replace("_", "/")
    if not _BASE64.fullmatch(text):
        return None
    text = text.rstrip("=")
    return None if len(text) % 4 == 1 else base64.b64decode(text + "=" * (-len(text) % 4))
