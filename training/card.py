"""NOTICE and MODEL_CARD.md of the model folder. The card's numbers stand between markers; evaluate.py writes them."""

from __future__ import annotations

from pathlib import Path

from packages import EMOJIBASE, GOOGLE_PNG, TWITTER_PNG
from styles import SVG_STYLES

BEGIN = "<!-- evaluation: written by training/evaluate.py -->"
END = "<!-- end of evaluation -->"

NOTICE = """\
tiny-emoji
Copyright the datasette-vision contributors. Licensed under the Apache License, Version 2.0.

The weights were trained from scratch. No drawing is contained in this folder. They were trained on:

{drawings}
- emoji names, keywords and groups: npm {emojibase}, MIT, Copyright (c) 2017-present Miles Johnson;
  derived from Unicode CLDR, Unicode License v3, Copyright (c) Unicode, Inc.

Evaluated on, and never trained on: OpenMoji (https://openmoji.org), npm openmoji@17.0.0, CC BY-SA 4.0.
"""


def write_notice(folder: Path) -> None:
    """Write NOTICE: whose drawings and names the model learned from."""
    lines = [
        "- Noto emoji by Google LLC, Apache-2.0; "
        f"npm {GOOGLE_PNG.name}@{GOOGLE_PNG.version} (packaging: MIT, Cal Henderson)",
        "- Twemoji by Twitter, Inc and other contributors, CC-BY-4.0; "
        f"npm {TWITTER_PNG.name}@{TWITTER_PNG.version} (packaging: MIT, Cal Henderson)",
    ]
    lines += [
        f"- {style.name} by {style.author}, {style.licence}; npm {style.package.name}@{style.package.version}"
        for style in SVG_STYLES
    ]
    text = NOTICE.format(drawings="\n".join(lines), emojibase=f"{EMOJIBASE.name}@{EMOJIBASE.version}")
    (folder / "NOTICE").write_text(text, encoding="utf-8")


def update_card(folder: Path, evaluation: str) -> None:
    """Put `evaluation` between the markers of MODEL_CARD.md. Raises `ValueError` when they are not there once each."""
    path = folder / "MODEL_CARD.md"
    card = path.read_text(encoding="utf-8")
    if card.count(BEGIN) != 1 or card.count(END) != 1:
        raise ValueError(f"{path} must have each marker once: {BEGIN} and {END}")
    head, rest = card.split(BEGIN)
    _, tail = rest.split(END)
    path.write_text(f"{head}{BEGIN}\n{evaluation}\n{END}{tail}", encoding="utf-8")
