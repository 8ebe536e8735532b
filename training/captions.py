"""Captions: for a class, what a person might type to find it, and which other classes the same words fit."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from colours import COLOURS, SYNONYMS
from emoji_set import Emoji, aliases, emoji_set, languages, names_and_keywords
from labels import GROUPS, SUBGROUPS, noun
from shapes import COUNT_WORDS, Synthetic, synthetic_classes

TEMPLATES = (
    "{}",
    "a {}",
    "{} emoji",
    "a drawing of {}",
    "a picture of {}",
    "an emoji of {}",
    "the {}",
    "an icon of {}",
)
#: Words that name no thing: "face with rolling eyes" is not found by "with".
STOPWORDS = frozenset(
    {
        "a",
        "an",
        "and",
        "at",
        "for",
        "from",
        "in",
        "into",
        "of",
        "off",
        "on",
        "or",
        "other",
        "over",
        "the",
        "to",
        "under",
    }
    | {"up", "with", "without"}
)
COLOUR_WORDS = {word: colour for colour, words in SYNONYMS.items() for word in words}


@dataclass(frozen=True)
class Caption:
    """A text and the classes it fits. `colour` says that it names a colour seen, which a colourless drawing has not."""

    text: str
    fits: np.ndarray  # (classes,) bool
    colour: bool


class Captions:
    """Draws random captions of the classes: first the emoji, in the order of `emoji_set()`, then the synthetic ones."""

    def __init__(self, colours: list[list[str]]) -> None:
        """colours: for each emoji, the colours seen in its drawings, most of it first."""
        self.emoji = emoji_set()
        self.synthetic = synthetic_classes()
        self.classes = len(self.emoji) + len(self.synthetic)
        self._fits: dict[str, set[int]] = defaultdict(set)
        self._words: dict[str, set[int]] = defaultdict(set)
        self.colours: list[list[str]] = [*colours, *(list(what.colours) for what in self.synthetic)]
        self.has_colour = np.zeros((len(COLOURS), self.classes), bool)
        for index, names in enumerate(self.colours):
            self.has_colour[[COLOURS.index(name) for name in names], index] = True
        self._names: list[list[str]] = []
        self._keywords: list[list[str]] = []
        self._phrases: list[list[str]] = []
        self._foreign: list[list[str]] = [[] for _ in self.emoji]
        self._gather_english()
        self._gather_foreign()
        #: Emoji whose very name is a colour: never shown without their colour.
        self.coloured_name = np.array(
            [bool(set(re.findall(r"[a-z]+", emoji.name.lower())) & set(COLOUR_WORDS)) for emoji in self.emoji]
            + [True] * len(self.synthetic)
        )

    def _gather_english(self) -> None:
        other_names = aliases()
        for index, emoji in enumerate(self.emoji):
            self._names.append([emoji.name, *other_names.get(emoji.hexcode, ()), emoji.character])
            phrases = [*SUBGROUPS[emoji.subgroup], *GROUPS[emoji.group], emoji.group_title, emoji.subgroup_title]
            self._phrases.append(phrases)
            words = [word for name in self._names[-1] for word in re.findall(r"\w+", name.lower())]
            words += [word for tag in emoji.keywords for word in re.findall(r"\w+", tag.lower())]
            words = [word for word in dict.fromkeys(words) if word not in STOPWORDS]
            self._keywords.append(list(dict.fromkeys([*emoji.keywords, *words])))
            for text in (*self._names[-1], *emoji.keywords, *phrases):
                self._fits[text.lower()].add(index)
            for word in (*words, *(noun(phrase) for phrase in phrases)):
                self._words[word].add(index)
                self._fits[word].add(index)
        for index, what in enumerate(self.synthetic, start=len(self.emoji)):
            if what.shape:
                self._words[what.shape].add(index)
                self._fits[what.shape].add(index)

    def _gather_foreign(self) -> None:
        for language in languages()[1:]:
            translated = names_and_keywords(language)
            for index, emoji in enumerate(self.emoji):
                name, keywords = translated.get(emoji.hexcode, ("", ()))
                # A name is worth as much as all the keywords.
                texts = [name] * max(1, len(keywords)) + list(keywords)
                self._foreign[index] += [text for text in texts if text]
                for text in texts:
                    self._fits[text.lower()].add(index)

    def all_texts(self) -> list[str]:
        """What the tokenizer is trained on: every text there is, and the English ones often enough to come first."""
        english = [text for lists in (self._names, self._keywords, self._phrases) for texts in lists for text in texts]
        colours = list(COLOUR_WORDS) * 50
        return sorted(text for text in self._fits if text) + english * 4 + colours

    def _mask(self, owners: set[int]) -> np.ndarray:
        mask = np.zeros(self.classes, bool)
        mask[list(owners)] = True
        return mask

    def fits(self, text: str) -> np.ndarray:
        """Which classes an exact name, keyword or phrase belongs to: (classes,) bool."""
        return self._mask(self._fits[text.lower()])

    def draw(self, index: int, chance: random.Random) -> Caption:
        """A random caption of class `index`."""
        if index >= len(self.emoji):
            return self._of_synthetic(index, chance)
        kind = chance.random()
        if kind < 0.40:
            return self._plain(self.emoji[index].name, chance)
        if kind < 0.50:
            return self._plain(chance.choice(self._names[index]), chance)
        if kind < 0.68:
            return self._of_keywords(index, chance)
        if kind < 0.78:
            return self._plain(chance.choice(self._phrases[index]), chance, template=0.2)
        if kind < 0.88 and self.colours[index]:
            return self._of_colour(index, chance)
        return self._plain(chance.choice(self._foreign[index]), chance, template=0.0)

    def _plain(self, text: str, chance: random.Random, template: float = 0.35) -> Caption:
        fits = self.fits(text)
        named = bool(set(re.findall(r"[a-z]+", text.lower())) & set(COLOUR_WORDS))
        if chance.random() < template:
            text = chance.choice(TEMPLATES).format(text)
        return Caption(text, fits, named)

    def _of_keywords(self, index: int, chance: random.Random) -> Caption:
        """One to three keywords in any order, and the classes that have them all."""
        keywords = self._keywords[index]
        chosen = chance.sample(keywords, min(len(keywords), chance.choice((1, 1, 1, 2, 2, 3))))
        fits = self.fits(chosen[0])
        for keyword in chosen[1:]:
            fits &= self.fits(keyword)
        return Caption(" ".join(chosen), fits, bool(set(chosen) & set(COLOUR_WORDS)))

    def _of_colour(self, index: int, chance: random.Random) -> Caption:
        """ "purple", "purple and gold", "something purple", "red fruit"."""
        colours = self.colours[index][:3]
        first = chance.choice(colours)
        fits = self.has_colour[COLOURS.index(first)].copy()
        word = chance.choice(SYNONYMS[first])
        kind = chance.random()
        if kind < 0.3 and len(colours) > 1:
            second = chance.choice([colour for colour in colours if colour != first])
            fits &= self.has_colour[COLOURS.index(second)]
            text = chance.choice(("{} and {}", "{} and {}", "{} {}")).format(word, chance.choice(SYNONYMS[second]))
        elif kind < 0.5:
            text = chance.choice(("{}", "something {}", "a {} thing", "{} colour", "mostly {}")).format(word)
        else:
            thing = chance.choice(
                (noun(self._phrases[index][0]), noun(chance.choice(self._phrases[index])), self._thing(index, chance))
            )
            fits &= self._mask(self._words[thing])
            text = chance.choice(("{} {}", "a {} {}", "{} {}")).format(word, thing)
        fits[index] = True
        return Caption(text, fits, True)

    def _thing(self, index: int, chance: random.Random) -> str:
        emoji: Emoji = self.emoji[index]
        words = [word for word in re.findall(r"\w+", emoji.name.lower()) if word not in STOPWORDS]
        return chance.choice(words) if words else noun(self._phrases[index][0])

    def _of_synthetic(self, index: int, chance: random.Random) -> Caption:
        """ "a red circle", "two green squares", "plain blue", "purple and gold"."""
        what: Synthetic = self.synthetic[index - len(self.emoji)]
        words = [chance.choice(SYNONYMS[colour]) for colour in what.colours]
        fits = np.logical_and.reduce([self.has_colour[COLOURS.index(colour)] for colour in what.colours])
        if len(words) == 2:
            chance.shuffle(words)
            text = chance.choice(("{} and {}", "{} and {}", "{} with {}", "{} {}")).format(*words)
            return Caption(text, fits, True)
        if what.shape is None:
            forms = ("plain {}", "{}", "the colour {}", "the color {}", "all {}", "a {} background", "{} color")
            form = chance.choice(forms)
            if form != "{}":
                fits = self._mask({index})
            return Caption(form.format(words[0]), fits, True)
        shape = what.shape
        if chance.random() < 0.15:
            return Caption(words[0], fits, True)
        fits &= self._mask(self._words[shape])
        if what.count == 1:
            text = chance.choice(("{} {}", "a {} {}", "one {} {}", "a plain {} {}")).format(words[0], shape)
            if text.startswith(("one", "a plain")):
                fits = self._mask({index})
        elif chance.random() < 0.7:
            number = chance.choice((COUNT_WORDS[what.count], COUNT_WORDS[what.count], str(what.count)))
            text = f"{number} {words[0]} {plural(shape)}"
            fits = self._mask({index})
        else:
            text = f"{words[0]} {plural(shape)}"
            fits = self._mask({index - what.count + other for other in (2, 3)})
        fits[index] = True
        return Caption(text, fits, True)


def plural(shape: str) -> str:
    """ "cross" -> "crosses"."""
    return shape + ("es" if shape.endswith("s") else "s")
