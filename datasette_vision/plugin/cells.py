"""Pictures in table cells."""

from __future__ import annotations

import base64
from typing import Any

from markupsafe import Markup

# Larger ones would make a page of 100 rows too heavy: those stay Datasette's download links.
MAX_INLINE_BYTES = 64 * 1024
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "AVIF": "image/avif"}
HTML = '<img src="data:{};base64,{}" alt="{} image, {:,} bytes" style="max-width:128px;max-height:128px">'


def render(value: Any) -> Markup | None:
    """Return a small image BLOB as an <img>, None for anything else."""
    if not isinstance(value, bytes) or not 12 <= len(value) <= MAX_INLINE_BYTES:
        return None
    from datasette_vision.images import sniff  # heavy: Pillow

    kind = sniff(value)
    if kind not in MEDIA_TYPES:
        return None
    return Markup(HTML.format(MEDIA_TYPES[kind], base64.b64encode(value).decode(), kind, len(value)))
