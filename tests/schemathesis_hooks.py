"""What schemathesis makes up where the description says "image": small pictures. For tests of OpenAPI."""

import base64
import struct
import zlib

import schemathesis
from hypothesis import strategies


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(colour: bytes) -> bytes:
    """A PNG of one pixel, of three bytes of colour."""
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + colour)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND")


files = strategies.binary(min_size=3, max_size=3).map(png)
as_base64 = files.map(lambda file: base64.b64encode(file).decode())
as_text = as_base64 | as_base64.map(lambda text: "data:image/png;base64," + text)
schemathesis.openapi.format("image", as_text)
schemathesis.openapi.format("binary", files)
embeddings = strategies.lists(strategies.floats(0.5, 1, width=32), min_size=256, max_size=256)
schemathesis.openapi.format(
    "embedding", embeddings.map(lambda floats: base64.b64encode(struct.pack("<256f", *floats)).decode())
)


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leave out forms that are meant to be wrong: an empty array or a number of the wrong kind is lost in a form."""
    is_form = (case.media_type or "").startswith(("application/x-www-form-urlencoded", "multipart/form-data"))
    return not (is_form and case.meta is not None and case.meta.generation.mode.is_negative)
