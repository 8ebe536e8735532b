"""Write datasette_vision/demo/emoji.zip: every emoji of the set as a small WebP picture, with its names.

    python training/make_demo_data.py

The pictures are Noto's, as emoji-datasource-google ships them. The archive is reproducible: same input, same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from emoji_set import emoji_set, google_drawings, plain

TARGET = Path(__file__).resolve().parent.parent / "datasette_vision" / "demo" / "emoji.zip"

NOTICES = """\
The pictures in this archive are emoji drawings of the Noto project by Google LLC, taken from the npm package
emoji-datasource-google 16.0.0 and converted to WebP. Noto's emoji images are under the Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0), its fonts under the SIL Open Font License 1.1
(https://openfontlicense.org); see https://github.com/googlefonts/noto-emoji. Flags are under public domain or
otherwise exempt from copyright (https://github.com/googlefonts/noto-emoji/tree/main/third_party/region-flags).

The packaging by Cal Henderson (emoji-datasource) is under the MIT licence: Copyright (c) 2013 Cal Henderson.

Names, keywords and groups in emoji.json come from the npm package emojibase-data 17.0.0, under the MIT licence:
Copyright (c) 2017-present Miles Johnson; they derive from Unicode CLDR, Copyright (c) Unicode, Inc., under the
Unicode License v3 (https://www.unicode.org/license.txt).
"""


def to_webp(path: Path) -> bytes:
    """A PNG file as WebP bytes, alpha kept: lossless or lossy, whichever is smaller."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    candidates = []
    for options in ({"quality": 88, "alpha_quality": 95}, {"lossless": True, "quality": 100}):
        target = io.BytesIO()
        picture.save(target, "WEBP", method=6, **options)
        candidates.append(target.getvalue())
    return min(candidates, key=len)


def write(target: Path) -> None:
    """Write the archive to `target`."""
    drawings = google_drawings()
    listing = []
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:

        def add(name: str, content: bytes, compression: int) -> None:
            information = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            information.external_attr = 0o644 << 16
            archive.writestr(information, content, compress_type=compression)

        for emoji in emoji_set():
            file = f"{emoji.hexcode}.webp"
            add(file, to_webp(drawings[plain(emoji.hexcode)]), zipfile.ZIP_STORED)
            listing.append(
                {
                    "hexcode": emoji.hexcode,
                    "emoji": emoji.character,
                    "name": emoji.name,
                    "group": emoji.group,
                    "subgroup": emoji.subgroup,
                    "keywords": list(emoji.keywords),
                    "file": file,
                }
            )
        add("emoji.json", json.dumps(listing, ensure_ascii=False, indent=1).encode(), zipfile.ZIP_DEFLATED)
        add("NOTICES.txt", NOTICES.encode(), zipfile.ZIP_DEFLATED)
    print(f"{target}: {len(listing)} emoji, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=TARGET)
    write(parser.parse_args().target)
