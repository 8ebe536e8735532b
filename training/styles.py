"""The drawing styles: which package each comes from, its licence, and which of its icons draws which emoji."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import packages
from emoji_set import aliases, emoji_set, plain
from packages import Package


@dataclass(frozen=True)
class Style:
    """A set of drawings by one hand. `colour` is False for black-and-white sets."""

    name: str
    package: Package
    licence: str
    author: str
    colour: bool = True


#: Every style trained on that exists as SVG. All permissive. OpenMoji is not here: it is held out (see evaluate.py).
SVG_STYLES = (
    Style("noto", packages.NOTO, "Apache-2.0", "Google LLC"),
    Style("noto-v1", packages.NOTO_V1, "Apache-2.0", "Google LLC"),
    Style("twemoji", packages.TWEMOJI, "CC-BY-4.0", "Twitter, Inc and other contributors"),
    Style("fluent-flat", packages.FLUENT_FLAT, "MIT", "Microsoft Corporation"),
    Style("fluent", packages.FLUENT, "MIT", "Microsoft Corporation"),
    Style("fluent-high-contrast", packages.FLUENT_HIGH_CONTRAST, "MIT", "Microsoft Corporation", colour=False),
    Style("emojione", packages.EMOJIONE, "CC-BY-4.0", "Emoji One, EmojiTwo"),
    Style("emojione-monotone", packages.EMOJIONE_MONOTONE, "CC-BY-4.0", "Emoji One, EmojiTwo", colour=False),
    Style("fxemoji", packages.FXEMOJI, "Apache-2.0", "Mozilla"),
    Style("streamline", packages.STREAMLINE, "CC-BY-4.0", "Streamline"),
)

#: Icon names whose wording nothing else explains.
RENAMED = {
    "flag-england": "1F3F4-E0067-E0062-E0065-E006E-E0067-E007F",
    "flag-scotland": "1F3F4-E0067-E0062-E0073-E0063-E0074-E007F",
    "flag-wales": "1F3F4-E0067-E0062-E0077-E006C-E0073-E007F",
}


def slug(name: str) -> str:
    """A name with nothing but lower-case letters and digits: "St. Martin" -> "stmartin"."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("&", "and").replace("#", "pound"))


@cache
def _names_to_hexcodes() -> dict[str, str]:
    """Every known name of every emoji, as a slug -> plain hexcode. The better source wins where two disagree."""
    wanted = {plain(emoji.hexcode) for emoji in emoji_set()}
    found: dict[str, str] = {}
    for emoji in emoji_set():
        found.setdefault(slug(emoji.name), plain(emoji.hexcode))
    for package in (packages.NOTO, packages.TWEMOJI, packages.FLUENT_FLAT):
        for code, name in _read(package, "chars.json").items():
            if plain(code) in wanted:
                found.setdefault(slug(name), plain(code))
        for alias, target in _read(package, "icons.json").get("aliases", {}).items():
            if slug(target["parent"]) in found and not set(target) - {"parent"}:
                found.setdefault(slug(alias), found[slug(target["parent"])])
    for hexcode, names in aliases().items():
        if plain(hexcode) in wanted:
            for name in names:
                found.setdefault(slug(name), plain(hexcode))
    return found


def _read(package: Package, file: str) -> Any:
    return json.loads((packages.fetch(package) / file).read_text(encoding="utf-8"))


def _hexcode_of(icon: str) -> str | None:
    """The emoji that an icon name means: "flag-for-japan", "man-singer-2", "sleuthspy"; None when nothing fits."""
    if icon in RENAMED:
        return RENAMED[icon]
    known = _names_to_hexcodes()
    bases = [icon, re.sub(r"-\d$", "", icon), icon.replace("flag-for-", "flag-"), f"flag-{icon}"]
    for base in bases:
        for candidate in (base, f"{base}-face", f"face-{base}", base.removesuffix("-face"), base.replace("-with", "")):
            if slug(candidate) in known:
                return known[slug(candidate)]
    return None


def drawings(style: Style) -> list[tuple[str, str]]:
    """(plain hexcode, SVG document) of every icon of `style` that draws an emoji of the set; some have several."""
    icons = _read(style.package, "icons.json")
    # The two Fluent sets share their icon names, but only the flat one says which emoji each draws.
    characters = _read(packages.FLUENT_FLAT if style.name == "fluent" else style.package, "chars.json")
    pairs = [(plain(code), name) for code, name in characters.items()]
    if not pairs:
        pairs = [(hexcode, name) for name in icons["icons"] if (hexcode := _hexcode_of(name))]
    wanted = {plain(emoji.hexcode) for emoji in emoji_set()}
    found = []
    for hexcode, name in dict.fromkeys(pairs):
        icon = icons["icons"].get(name)
        if icon is None or hexcode not in wanted:
            continue
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        left, top = icon.get("left", 0), icon.get("top", 0)
        found.append(
            (
                hexcode,
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}" color="#000">{icon["body"]}</svg>',
            )
        )
    return found
