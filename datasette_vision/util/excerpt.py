"""How a message quotes a text that somebody sent: its beginning, whatever is in it."""

from __future__ import annotations


def excerpt(text: str, length: int = 40) -> str:
    """Return the first characters of a text in quotes, and how long it is where that is not all of it.

    Characters that cannot be printed are escaped, in at most twice `length`.
    """
    shown = repr(text[:length])
    if len(shown) > 2 * length:
        shown = shown[: 2 * length] + "…" + shown[0]
    return shown if len(text) <= length else f"{shown}… ({len(text)} characters)"
