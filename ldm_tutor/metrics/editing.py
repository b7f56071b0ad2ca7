"""Does an edit change what it should, and nothing else? Swaps, refinements, re-weighted and ignored words, judged.

The pictures are drawn, so no truth is known but the sentences: the judge reads the pictures, and the box of an object
is the one that it finds. Every edit has companions that are drawn beside the same source, such as the target sentence
with the same seed and nothing taken over (`reprompt`), the edit without self-attention (`no_self`), and without local
blend (`no_blend`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from typing import Any

import torch

from ldm_tutor.attention_maps.plan import SWAP, Change, Injection
from ldm_tutor.data.scenes.requests import Request
from ldm_tutor.data.scenes.sampling import caption_for
from ldm_tutor.data.scenes.words import parse, request_text
from ldm_tutor.data.scenes.world import BACKGROUNDS, COLORS, HELD_OUT, KINDS, PLACES, SIZES
from ldm_tutor.metrics.figures import mean, share
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.reading import Reading, SeenThing, read_pictures
from ldm_tutor.models.judge import Judge, as_seen
from ldm_tutor.models.tokenizer import split_words
from ldm_tutor.shapes import Bool, Pictures, Tensor

EDITS = ("swap", "refine", "reweight", "ignore")
NOTHING = Injection(cross=0.0, self_=0.0, threshold=None)  # the same seed, and that is all
FACTORS = (0.0, 0.5, 1.0, 2.0)
CHANCE = {"object": len(KINDS), "color": len(COLORS), "size": len(SIZES), "place": len(PLACES)}
CHANCE |= {"background": len(BACKGROUNDS)}
EDGE = 2  # pixels around a box that belong to it: the outline, and what the decoder smears
COLOR_SLACK = 0.02  # a probability that falls by less has not fallen: near 1 it has nowhere to go
CLEAN = 60.0  # dB; pictures that are nearer than this count as this near


@dataclass(frozen=True)
class Case:
    """One edit to be judged: `changes` by the name of the way; `asked` is what the target sentence asks for.

    `group`: what changes (of requests.GROUPS). `old` and `new`: the kind of the object that changes, before and after.
    `places`: whether the sentence says where things are.
    """

    edit: str
    changes: Mapping[str, Change]
    asked: Request
    group: str
    old: str
    new: str
    places: bool


def cases(edit: str, num: int, seed: int, injection: Injection | None = None) -> list[Case]:
    """Return `num` cases of an edit (one of EDITS), from held-out sentences; case number i is drawn with seed + i."""
    makers = {"swap": _swaps, "refine": _refinements, "reweight": _reweightings, "ignore": _ignored}
    return list(islice(makers[edit](seed, injection), num))


def _captions(seed: int) -> Iterator[tuple[str, Request, random.Random]]:
    """Yield held-out sentences of different objects, what they ask for, and a source of choices for each."""
    for index in count():
        caption = caption_for(index, "test", seed)
        request = parse(caption)
        kinds = [each.kind for each in request.objects]
        if len(set(kinds)) == len(kinds) and all(split_words(caption).count(kind) == 1 for kind in kinds):
            yield caption, request, random.Random(f"edit {seed} {index}")


def _names_places(request: Request) -> bool:
    return request.relation is not None or any(each.place for each in request.objects)


def _swaps(seed: int, injection: Injection | None) -> Iterator[Case]:
    """Exchange one kind for another; sentences that name places and sentences that do not take turns."""
    waiting: dict[bool, list[Case]] = {True: [], False: []}
    number = 0
    for caption, request, rng in _captions(seed):
        old = rng.choice(request.objects)
        others = [each.kind for each in request.objects]
        free = [kind for kind in KINDS if kind not in others and (kind, old.color) not in HELD_OUT]
        new = rng.choice(free)
        target = " ".join(new if word == old.kind else word for word in split_words(caption)).replace(" ,", ",")
        changes = {
            "edit": Change(source=caption, target=target, injection=injection),
            "no_self": Change(source=caption, target=target, injection=replace(injection or SWAP, self_=0.0)),
            "no_blend": Change(source=caption, target=target, injection=replace(injection or SWAP, threshold=None)),
            "reprompt": Change(source=caption, target=target, injection=NOTHING),
        }
        made = Case("swap", changes, parse(target), "object", old.kind, new, _names_places(request))
        waiting[made.places].append(made)
        while waiting[number % 2 == 1]:
            yield _seeded(waiting[number % 2 == 1].pop(0), seed + number)
            number += 1


def _refinements(seed: int, injection: Injection | None) -> Iterator[Case]:
    """Add the word for one attribute to a sentence without it."""
    number = 0
    for _, request, rng in _captions(seed + 1):
        first = request.objects[0]
        named = [name for name in ("color", "size", "place") if getattr(first, name)]
        named += ["background"] * (request.background is not None)
        if not named or (request.relation and "place" in named):
            continue
        group = rng.choice(named)
        if group == "background":
            before = replace(request, background=None)
        else:
            without: dict[str, Any] = {group: None}
            before = replace(request, objects=(replace(first, **without), *request.objects[1:]))
        source, target = request_text(before), request_text(request)
        if parse(source) != before or parse(target) != request:
            continue
        changes = {
            "edit": Change(source=source, target=target, method="refine", injection=injection),
            "reprompt": Change(source=source, target=target, method="refine", injection=NOTHING),
        }
        made = Case("refine", changes, request, group, first.kind, first.kind, _names_places(request))
        yield _seeded(made, seed + number)
        number += 1


def _reweightings(seed: int, injection: Injection | None) -> Iterator[Case]:
    """Multiply what the colour word of a single object gets."""
    number = 0
    for caption, request, _ in _captions(seed + 2):
        thing = request.objects[0]
        if len(request.objects) > 1 or thing.color is None:
            continue
        changes = {
            f"{way} {factor:g}": Change(
                source=caption, weights={thing.color: factor}, deep=way == "edit", injection=injection
            )
            for way in ("edit", "token")
            for factor in FACTORS
            if factor != 1
        }
        yield _seeded(Case("reweight", changes, request, "color", thing.kind, thing.kind, False), seed + number)
        number += 1


def _ignored(seed: int, injection: Injection | None) -> Iterator[Case]:
    """Ignore the word of one attribute of a single object: a colour in every second case."""
    number = 0
    for caption, request, rng in _captions(seed + 3):
        thing = request.objects[0]
        if len(request.objects) > 1:
            continue
        words = split_words(caption)
        named = {"object": [thing.kind], "background": [w for w in words if w in _BACKGROUND_WORDS]}
        named |= {"size": [w for w in words if w in _SIZE_WORDS], "place": [w for w in words if w in _PLACE_WORDS]}
        usable = [name for name, found in named.items() if len(found) == 1]
        group = "color" if number % 2 == 0 or not usable else rng.choice(usable)
        word = str(thing.color) if group == "color" else named[group][0]
        changes = {
            name: Change(source=caption, ignore=[word], deep=deep, injection=how)
            for name, deep, how in (("edit", True, injection), ("free", True, NOTHING), ("token", False, NOTHING))
        }
        yield _seeded(Case("ignore", changes, request, group, thing.kind, thing.kind, False), seed + number)
        number += 1


_BACKGROUND_WORDS = ("night", "sunset", "snow", "beach", "sea", "moon", "day", "daylight")
_SIZE_WORDS = ("small", "little", "tiny", "medium", "large", "big", "huge")
_PLACE_WORDS = ("left", "right", "middle", "center", "top", "bottom")


def _seeded(case: Case, seed: int) -> Case:
    return replace(case, changes={name: replace(each, seed=seed) for name, each in case.changes.items()})


# ---------------------------------------------------------------- one picture


def seen_thing(reading: Reading, kind: str) -> SeenThing | None:
    """Return the object of a kind that the judge is most sure of; None where it sees none."""
    return max((each for each in reading.objects if each.kind == kind), key=lambda each: each.score, default=None)


def outside(boxes: Sequence[tuple[float, float, float, float]], side: int) -> Bool[Tensor, "H W"]:
    """Return the pixels that lie outside all boxes, which are given as fractions of the side and grown by EDGE."""
    mask = torch.ones(side, side, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        left, top = (max(0, int(v * side) - EDGE) for v in (x0, y0))
        right, bottom = (min(side, int(v * side) + 1 + EDGE) for v in (x1, y1))
        mask[top:bottom, left:right] = False
    return mask


def background_psnr(before: Pictures, after: Pictures, mask: Bool[Tensor, "H W"]) -> float:
    """Return the PSNR over the pixels of a mask, in dB, at most CLEAN."""
    kept = [each[..., mask][..., None] for each in (before, after)]  # b 3 k 1
    return min(CLEAN, float(psnr(*kept)))


@torch.inference_mode()
def color_margin(
    judge: Judge, pictures: Pictures, centres: Sequence[tuple[float, float]], colors: Sequence[str]
) -> list[float]:
    """Return how clearly the judge sees a colour at a centre (x, y): its logit less that of the best other colour.

    Above 0 it is the colour that the judge would name; 3 stands for odds of 20 to 1.
    """
    maps = judge(as_seen(pictures.to(next(judge.parameters()).device).float())).color.cpu()
    side, made = maps.shape[-1], []
    for row, (x, y), color in zip(maps, centres, colors, strict=True):
        column, line = (min(side - 1, max(0, int(v * side))) for v in (x, y))
        logits, own = row[:, line, column], COLORS.index(color)
        others = torch.cat([logits[:own], logits[own + 1 :]])
        made.append(float(logits[own] - others.max()))
    return made


def is_rising(values: Sequence[float], slack: float = 0.0) -> bool:
    """Whether no value lies below the one before it by more than `slack`."""
    return all(later >= earlier - slack for earlier, later in pairwise(values))


# ---------------------------------------------------------------- many


class Tally:
    """Collects what happened, case by case; `report` gives every figure."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.hits: dict[str, list[bool]] = {}
        self.values: dict[str, list[float]] = {}

    def add(self, group: Sequence[Case], before: Pictures, after: Mapping[str, Pictures]) -> None:
        """Take in cases of one edit: the sources' pictures, and by the name of the way the edited ones."""
        read = read_pictures(self.judge, before)
        others = {name: read_pictures(self.judge, pictures) for name, pictures in after.items()}
        margins = self._margins(group, before, after, read) if group and group[0].edit == "reweight" else {}
        for k, case in enumerate(group):
            ways = {name: readings[k] for name, readings in others.items()}
            if case.edit == "swap":
                self._swap(case, read[k], ways, before[k : k + 1], {n: each[k : k + 1] for n, each in after.items()})
            elif case.edit == "refine":
                for name, reading in ways.items():
                    missing = case.asked.missing(reading.objects, reading.background)
                    self._hit(f"refine{_way(name)}_new_attribute", not missing.pop(case.group))
                    self._hit(f"refine{_way(name)}_rest_kept", not any(missing.values()))
            elif case.edit == "ignore":
                for name, reading in {"source": read[k], **ways}.items():
                    missing = case.asked.missing(reading.objects, reading.background)
                    self._hit(f"ignore.{case.group}.{name}", not missing.pop(case.group))
                    missing.pop("count", None)
                    for other, gone in missing.items():
                        self._hit(f"ignore.{case.group}.{name}_others", not gone)
                        self._hit(f"ignore.{case.group}.{name}_others_{other}", not gone)
            elif k in margins:
                for name, values in margins[k].items():
                    sure = [1 / (1 + math.exp(-value)) for value in values]
                    self._hit(f"reweight{_way(name)}_monotone", is_rising(sure, COLOR_SLACK))
                    self._hit(f"reweight{_way(name)}_margin_monotone", is_rising(values))
                    for factor, value in zip(FACTORS, sure, strict=True):
                        self.values.setdefault(f"reweight{_way(name)}_color.{factor:g}", []).append(value)

    def _swap(
        self, case: Case, source: Reading, ways: Mapping[str, Reading], before: Pictures, after: Mapping[str, Pictures]
    ) -> None:
        names = "swap_named_places" if case.places else "swap"
        old, levels = seen_thing(source, case.old), {}
        kinds = {each.kind for each in case.asked.objects} - {case.new}
        was = case.asked.missing(source.objects, source.background)
        was.pop("object")
        there = old is not None and not any(was.values())
        for name, reading in ways.items():
            missing = case.asked.missing(reading.objects, reading.background)
            missing.pop("object")
            new = seen_thing(reading, case.new)
            rest = not any(missing.values()) and kinds <= {each.kind for each in reading.objects}
            self._hit(f"{names}{_way(name)}_new_object", new is not None)
            self._hit(f"{names}{_way(name)}_old_gone", seen_thing(reading, case.old) is None)
            self._hit(f"{names}{_way(name)}_rest_kept", rest)
            if there:
                self._hit(f"{names}{_way(name)}_rest_kept_where_it_was", rest)
            if old is not None:
                mask = outside([old.box] + ([new.box] if new is not None else []), before.shape[-1])
                if bool(mask.any()):
                    levels[name] = background_psnr(before, after[name], mask)
                    self.values.setdefault(f"{names}{_way(name)}_background_psnr", []).append(levels[name])
        for name in set(levels) - {"reprompt"}:
            if "reprompt" in levels:
                key = f"{names}{_way(name)}_background_psnr_gain_db"
                self.values.setdefault(key, []).append(levels[name] - levels["reprompt"])

    def _margins(
        self, group: Sequence[Case], before: Pictures, after: Mapping[str, Pictures], read: Sequence[Reading]
    ) -> dict[int, dict[str, list[float]]]:
        """Return, for the cases whose object the judge finds in the source, the colour's margin over FACTORS by way."""
        found = {k: thing for k, case in enumerate(group) if (thing := seen_thing(read[k], case.old)) is not None}
        made: dict[int, dict[str, list[float]]] = {k: {} for k in found}
        centres = [(thing.x, thing.y) for thing in found.values()]
        colors = [str(group[k].asked.objects[0].color) for k in found]
        for way in ("edit", "token") if found else ():
            columns = [before if factor == 1 else after[f"{way} {factor:g}"] for factor in FACTORS]
            table = [color_margin(self.judge, each[list(found)], centres, colors) for each in columns]
            for n, k in enumerate(found):
                made[k][way] = [column[n] for column in table]
        return made

    def _hit(self, name: str, hit: bool) -> None:
        self.hits.setdefault(name, []).append(bool(hit))

    def report(self) -> dict[str, Any]:
        """Return the figures as {value, interval, num}."""
        made: dict[str, Any] = {name: share(hits).to_dict() for name, hits in self.hits.items()}
        made |= {name: mean(values).to_dict() for name, values in self.values.items()}
        return made


def _way(name: str) -> str:
    return "" if name == "edit" else f"_{name}"
