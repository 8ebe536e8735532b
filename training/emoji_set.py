"""The set of emoji that everything here is about, with their names, keywords and groups in 25 languages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import packages

#: Subgroups of Unicode's "component" group (skin tones, hair styles) are parts of emoji, not emoji.
COMPONENT_GROUP = "component"


@dataclass(frozen=True)
class Emoji:
    """One base emoji: no skin-tone variant, no component."""

    hexcode: str  # as emojibase writes it: "1F431", "2764-FE0F-200D-1F525"
    character: str
    name: str  # the English label
    keywords: tuple[str, ...]
    group: str  # "animals-nature"
    subgroup: str  # "cat-face"
    group_title: str  # "animals & nature"
    subgroup_title: str  # "cat faces"


def plain(hexcode: str) -> str:
    """A hexcode without variation selectors, upper case: what file names of all the sources agree on."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def emoji_set() -> tuple[Emoji, ...]:
    """The emoji, in Unicode order: every entry of emojibase's English data that belongs to one of the nine groups
    (so no component and no lone regional indicator) and has a drawing in emoji-datasource-google 16. 1,906 of them.
    """
    folder = packages.fetch(packages.EMOJIBASE)
    messages = _read(folder / "en" / "messages.json")
    groups = {entry["order"]: entry for entry in messages["groups"]}
    subgroups = {entry["order"]: entry for entry in messages["subgroups"]}
    drawn = set(google_drawings())
    found = []
    for entry in sorted(_read(folder / "en" / "data.json"), key=lambda entry: entry.get("order", 0)):
        if "group" not in entry or groups[entry["group"]]["key"] == COMPONENT_GROUP:
            continue
        if plain(entry["hexcode"]) not in drawn:
            continue
        group, subgroup = groups[entry["group"]], subgroups[entry["subgroup"]]
        found.append(
            Emoji(
                hexcode=entry["hexcode"],
                character=entry["emoji"],
                name=entry["label"],
                keywords=tuple(entry.get("tags", ())),
                group=group["key"],
                subgroup=subgroup["key"],
                group_title=group["message"],
                subgroup_title=subgroup["message"],
            )
        )
    return tuple(found)


def google_drawings() -> dict[str, Path]:
    """Plain hexcode -> 64-pixel PNG of Noto, from emoji-datasource-google."""
    folder = packages.fetch(packages.GOOGLE_PNG) / "img" / "google" / "64"
    return {plain(path.stem): path for path in folder.glob("*.png")}


def twitter_drawings() -> dict[str, Path]:
    """Plain hexcode -> 64-pixel PNG of Twemoji, from emoji-datasource-twitter."""
    folder = packages.fetch(packages.TWITTER_PNG) / "img" / "twitter" / "64"
    return {plain(path.stem): path for path in folder.glob("*.png")}


def openmoji_drawings() -> dict[str, Path]:
    """Plain hexcode -> SVG of OpenMoji: the held-out style. Only evaluate.py may call this."""
    folder = packages.fetch(packages.OPENMOJI) / "color" / "svg"
    return {plain(path.stem): path for path in folder.glob("*.svg")}


def languages() -> list[str]:
    """The language folders of emojibase, English first."""
    folder = packages.fetch(packages.EMOJIBASE)
    found = sorted(path.parent.name for path in folder.glob("*/data.json") if path.parent.name != "en")
    return ["en", *found]


def names_and_keywords(language: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Hexcode -> (name, keywords) in one language, for the emoji that it has a name for."""
    entries = _read(packages.fetch(packages.EMOJIBASE) / language / "data.json")
    return {entry["hexcode"]: (entry["label"], tuple(entry.get("tags", ()))) for entry in entries if entry.get("label")}


def aliases() -> dict[str, tuple[str, ...]]:
    """Hexcode -> other English names: the shortcodes people type (":thinking:") and Unicode's character names."""
    folder = packages.fetch(packages.EMOJIBASE)
    found: dict[str, list[str]] = {}
    for source in ("cldr", "emojibase", "github", "iamcal", "joypixels"):
        for hexcode, codes in _read(folder / "en" / "shortcodes" / f"{source}.json").items():
            for code in [codes] if isinstance(codes, str) else codes:
                found.setdefault(hexcode, []).append(code.replace("_", " ").replace("-", " ").strip())
    for hexcode, name in _read(folder / "meta" / "unicode-names.json").items():
        found.setdefault(hexcode, []).append(name.lower())
    return {hexcode: tuple(dict.fromkeys(names)) for hexcode, names in found.items()}
