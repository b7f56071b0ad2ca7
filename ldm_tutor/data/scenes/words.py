"""Sentences about scenes: describe a scene in words, and read a sentence back into a request."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache

from ldm_tutor.data.scenes.requests import RELATIONS, ObjectRequest, Request, is_related
from ldm_tutor.data.scenes.world import COLORS, KINDS, Scene, SceneObject
from ldm_tutor.errors import ConfigError

__all__ = ["ObjectRequest", "Request", "describe", "parse", "request_text", "unknown_words", "vocabulary"]

# The first phrase of each entry is the canonical one; describe uses all of them.
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium",), "large": ("large", "big", "huge")}
PLACE_PHRASES = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "middle": ("in the middle", "in the center"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
BACKGROUND_PHRASES = {
    "day": ("on a sunny day", "by day", "in daylight"),
    "night": ("at night", "by night"),
    "sunset": ("at sunset",),
    "snow": ("in the snow",),
    "beach": ("on the beach", "by the sea"),
    "moon": ("on the moon",),
}
RELATION_PHRASES = {
    "left of": ("to the left of",),
    "right of": ("to the right of",),
    "in front of": ("in front of",),
    "behind": ("behind",),
}
COUNTS = {"two": 2}
_Table = Mapping[str, Mapping[str, Sequence[str]]]
# Understood besides the phrases above, made of the same words.
_LOOSE: _Table = {
    "relation": {"left of": ("left of", "on the left of"), "right of": ("right of", "on the right of")},
    "place": {
        "left": ("left", "to the left", "at the left"),
        "right": ("right", "to the right", "at the right"),
        "middle": ("middle", "center", "at the center"),
        "top": ("top", "on top", "on the top"),
        "bottom": ("bottom", "on the bottom"),
    },
    "background": {
        "day": ("sunny", "day", "daylight", "sunny day"),
        "night": ("night",),
        "sunset": ("sunset",),
        "snow": ("snow",),
        "beach": ("beach", "sea", "at the beach", "at the sea"),
        "moon": ("moon",),
    },
}
_FILLERS = ("a", "an", "the", "and", "there", "is", "picture", "of")
_ARTICLES = ("a", "an", "the", *COUNTS)


def plural(kind: str) -> str:
    """The plural of a kind's name."""
    return f"{kind}s"


# ---------------------------------------------------------------- describing


def describe(scene: Scene, seed: int | str) -> str:
    """One true sentence about the scene; `seed` chooses the wording. Raises ConfigError for a scene without objects."""
    if not scene.objects:
        raise ConfigError("the scene has no objects, expected at least one to describe")
    rng = random.Random(f"words {seed}")
    if len(scene.objects) == 1:
        text = _name(scene.objects[0], rng, place=rng.random() < 0.65)
    elif len(scene.objects) == 2:
        text = _describe_two(scene.objects, rng)
    else:
        with_places = rng.random() < 0.3
        order = sorted(scene.objects, key=lambda each: each.x) if with_places else list(scene.objects)
        names = [_name(each, rng, place=with_places) for each in order]
        text = f"{', '.join(names[:-1])} and {names[-1]}"
    if rng.random() >= 0.9:
        return f"a picture of {text}" if rng.random() < 0.1 else text
    where = rng.choice(BACKGROUND_PHRASES[scene.background])
    form = rng.random()
    if form < 0.10:
        return f"{where} there {'are' if text.startswith('two') else 'is'} {text}"
    if form < 0.16:
        return f"{where}, {text}"
    framed = form < 0.24 and len(scene.objects) < 3  # three objects fill the text encoder's context already
    return f"a picture of {text} {where}" if framed else f"{text} {where}"


def _describe_two(objects: Sequence[SceneObject], rng: random.Random) -> str:
    first, second = rng.sample(objects, 2)
    if (first.kind, first.color, first.size) == (second.kind, second.color, second.size):
        size = _say_size(first, rng)
        return " ".join(filter(None, ("two", size, first.color, plural(first.kind))))
    form = rng.random()
    relations = [each for each in RELATIONS if is_related(each, first, second, slack=1.4)]
    if relations and form < 0.6:
        relation = relations[-1] if rng.random() < 0.75 else rng.choice(relations)
        phrase = rng.choice(RELATION_PHRASES[relation])
        return f"{_name(first, rng)} {phrase} {_name(second, rng)}"
    places = first.place != second.place and form < 0.85
    return f"{_name(first, rng, place=places)} and {_name(second, rng, place=places)}"


def _say_size(each: SceneObject, rng: random.Random) -> str | None:
    said = rng.random() < (0.4 if each.size == "medium" else 0.75)
    return rng.choice(SIZE_WORDS[each.size]) if said else None


def _name(each: SceneObject, rng: random.Random, place: bool = False) -> str:
    words = _with_article(filter(None, (_say_size(each, rng), each.color, each.kind)))
    return f"{words} {rng.choice(PLACE_PHRASES[each.place])}" if place else words


def _with_article(words: Iterable[str]) -> str:
    text = " ".join(words)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def request_text(request: Request) -> str:
    """The canonical sentence of a request: parse(request_text(request)) == request."""
    names, objects = [], list(request.objects)
    while objects:
        first = objects[0]
        same = next((k for k, each in enumerate(objects) if each != first), len(objects))
        words = [each for each in (first.size, first.color) if each]
        count = 1 if request.relation and len(objects) == len(request.objects) else min(same, max(COUNTS.values()))
        if request.relation and len(objects) == len(request.objects) - 1:
            count = 1
        if count == 1:
            name = _with_article([*words, first.kind])
        else:
            name = " ".join((next(w for w, n in COUNTS.items() if n == count), *words, plural(first.kind)))
        names.append(f"{name} {PLACE_PHRASES[first.place][0]}" if first.place else name)
        del objects[:count]
    if request.relation:
        names[:2] = [f"{names[0]} {RELATION_PHRASES[request.relation][0]} {names[1]}"]
    text = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"{text} {BACKGROUND_PHRASES[request.background][0]}" if request.background else text


# ---------------------------------------------------------------- reading


@lru_cache(maxsize=1)
def _lexicon() -> dict[tuple[str, ...], tuple[str, str]]:
    """Every phrase, as a tuple of words, with its role and meaning."""
    entries: dict[tuple[str, ...], tuple[str, str]] = {}
    said: _Table = {
        "size": SIZE_WORDS,
        "place": PLACE_PHRASES,
        "background": BACKGROUND_PHRASES,
        "relation": RELATION_PHRASES,
    }
    for table in (said, _LOOSE):
        for role, meanings in table.items():
            for meaning, phrases in meanings.items():
                for phrase in phrases:
                    entries[tuple(phrase.split())] = role, meaning
    entries |= {(color,): ("color", color) for color in COLORS}
    entries |= {(kind,): ("kind", kind) for kind in KINDS}
    entries |= {(plural(kind),): ("kind", kind) for kind in KINDS}
    entries |= {(word,): ("article", word) for word in _ARTICLES}
    return entries | {("and",): ("break", "and"), (",",): ("break", ",")}


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """All words of the grammar, sorted; the comma is not among them."""
    words = {word for phrase in _lexicon() for word in phrase if word != ","}
    return tuple(sorted(words | set(_FILLERS) | {"are"}))


def unknown_words(sentence: str) -> list[tuple[str, list[str]]]:
    """The words that are not in the vocabulary, in order, each with up to three similar known words."""
    words = dict.fromkeys(word for word in _words(sentence) if word != "," and word not in vocabulary())
    return [(word, get_close_matches(word, vocabulary(), n=3, cutoff=0.6)) for word in words]


def _words(sentence: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|,", sentence.lower())


def _markers(sentence: str) -> list[tuple[str, str]]:
    """The known phrases of a sentence in order, the longest first at each word, as (role, meaning)."""
    words, lexicon = _words(sentence), _lexicon()
    longest = max(map(len, lexicon))
    markers, start = [], 0
    while start < len(words):
        for length in range(min(longest, len(words) - start), 0, -1):
            if found := lexicon.get(tuple(words[start : start + length])):
                markers.append(found)
                break
        start += length
    return markers


class _Reader:
    """Collects the objects of a sentence, marker by marker."""

    def __init__(self) -> None:
        self.objects: list[ObjectRequest] = []
        self.last = 0  # how many objects the last noun stands for
        self.waiting: dict[str, str] = {}  # attributes still without an object
        self.count = 1
        self.background: str | None = None
        self.relation: tuple[str, int] | None = None  # with the index of the object before it
        self.open = False  # whether a place may still belong to the last noun

    def read(self, role: str, meaning: str) -> None:
        if role == "break":
            self.open = False
        elif role == "article":
            self.give_back("color", "size")
            self.count = COUNTS.get(meaning, self.count if meaning == "the" else 1)
        elif role == "background":
            if self.background not in (None, meaning):
                raise ConfigError(f"the sentence names the backgrounds {self.background} and {meaning}, expected one")
            self.background = meaning
        elif role == "relation":
            if self.relation:
                raise ConfigError(f"the sentence says {self.relation[0]!r} and {meaning!r}, expected one relation")
            if self.objects:
                self.relation = meaning, len(self.objects) - 1
            self.open = False
        elif role == "kind":
            self.objects += [ObjectRequest(meaning, **self.waiting)] * self.count
            self.last, self.count, self.waiting, self.open = self.count, 1, {}, True
        elif role == "place" and self.open and self.objects[-1].place is None:
            self.waiting["place"] = meaning
            self.give_back("place")
        else:
            self.waiting[role] = meaning

    def give_back(self, *roles: str) -> None:
        """Give waiting attributes to the last noun where it lacks them."""
        for role in roles:
            if self.objects and role in self.waiting and getattr(self.objects[-1], role) is None:
                value = {role: self.waiting.pop(role)}
                self.objects[-self.last :] = [replace(each, **value) for each in self.objects[-self.last :]]

    def finish(self) -> Request:
        objects, relation = self.objects, None
        if self.relation:
            relation, before = self.relation
            if before + 1 >= len(objects):  # "on the left of the picture": nothing follows, so it is a place
                if relation in ("left of", "right of"):
                    self.waiting.setdefault("place", relation.split()[0])
                relation = None
        self.give_back("place", "color", "size")
        if relation and before:
            objects = [objects[before], objects[before + 1], *objects[:before], *objects[before + 2 :]]
        return Request(tuple(objects), self.background, relation)


def parse(sentence: str) -> Request:
    """Read a sentence in free order; words outside the vocabulary are ignored (`unknown_words` lists them).

    Raises ConfigError when it names no object, two backgrounds or two relations.
    """
    reader = _Reader()
    for role, meaning in _markers(sentence):
        reader.read(role, meaning)
    if not reader.objects:
        raise ConfigError(
            f"no object found in {sentence!r}, expected at least one of: {', '.join(KINDS)}"
            + "".join(f"; did you mean {near[0]!r} for {word!r}?" for word, near in unknown_words(sentence) if near)
        )
    return reader.finish()
