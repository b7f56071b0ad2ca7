"""The law of the scenes: index, split and seed determine one scene and its caption."""

from __future__ import annotations

import dataclasses
import random

from ldm_tutor.data.scenes.requests import is_related
from ldm_tutor.data.scenes.words import describe, parse
from ldm_tutor.data.scenes.world import (
    BACKGROUNDS,
    COLORS,
    DECOR_VARIANTS,
    HELD_OUT,
    KINDS,
    PLACE_CENTRES,
    PLACES,
    SIZE_SCALES,
    SIZES,
    Scene,
    SceneObject,
    check_choice,
    extent,
    fit_inside,
)
from ldm_tutor.errors import ConfigError

SPLITS = ("train", "test", "unseen", "three")
MIN_VISIBLE = 0.6  # share of an object's box that later boxes leave free
MIRRORED = 0.8  # how often `exchanged_twin` is the mirror image, where the sentence can tell
SWAPPED_COLORS = 0.7  # how often, otherwise, the colours of two things are exchanged, where they can be

_HELD_OUT = tuple(sorted(HELD_OUT))
_SEEN = tuple((kind, color) for kind in KINDS for color in COLORS if (kind, color) not in HELD_OUT)

Pair = tuple[str, str]


def sample_scene(index: int, split: str = "train", seed: int = 0) -> Scene:
    """The scene number `index` of a split (one of SPLITS).

    train and test: one (60%) or two objects, no held-out pair of kind and colour; unseen: one object with a held-out
    pair, in 30% with an ordinary second one; three: three ordinary objects side by side.
    """
    check_choice("split", split, SPLITS)
    if index < 0:
        raise ConfigError(f"index is {index}, expected 0 or more")
    rng = random.Random(f"scene {seed} {split} {index}")
    background, decor = rng.choice(BACKGROUNDS), rng.randrange(DECOR_VARIANTS)
    if split == "three":
        pairs = rng.sample(_SEEN, 3)
        layout = _three
    elif split == "unseen":
        pairs = [rng.choice(_HELD_OUT)]
        if rng.random() < 0.3:
            pairs.append(rng.choice(_SEEN))
            rng.shuffle(pairs)
        layout = _one if len(pairs) == 1 else _beside if rng.random() < 0.53 else _in_front
    else:
        draw = rng.random()
        pairs = [rng.choice(_SEEN)] if draw < 0.6 else rng.sample(_SEEN, 2)
        layout = _one if draw < 0.6 else _beside if draw < 0.78 else _in_front if draw < 0.94 else _twice
    while True:
        objects = layout(rng, pairs)
        if objects is not None and _visible(objects):
            return Scene(objects=objects, background=background, seed=decor)


def caption_for(index: int, split: str = "train", seed: int = 0) -> str:
    """The caption of scene number `index` of a split."""
    return describe(sample_scene(index, split, seed), f"{seed} {split} {index}")


def near_twin(index: int, split: str = "train", seed: int = 0) -> tuple[Scene, str]:
    """A scene that differs from number `index` of a split only in what is easily overlooked, and its caption.

    The same things before the same background, but elsewhere, of other sizes, in the other order, or (two things, now
    and then) with their colours exchanged; never a held-out pair. The caption tells the twins apart where some wording
    can. A batch of twins teaches CLIP words such as "left" and "behind", which random batches hardly ever need.
    """
    scene = sample_scene(index, split, seed)
    rng = random.Random(f"twin {seed} {split} {index}")
    pairs = [(each.kind, each.color) for each in scene.objects]
    if len(set(pairs)) == 2:
        (first, second), exchange = pairs, rng.random() < 0.3
        exchanged = [(first[0], second[1]), (second[0], first[1])]
        pairs = exchanged if exchange and not HELD_OUT & set(exchanged) else pairs
        rng.shuffle(pairs)
    while True:
        layout = _one if len(pairs) == 1 else _twice if pairs[0] == pairs[1] else rng.choice((_beside, _in_front))
        objects = layout(rng, pairs)
        if objects is not None and _visible(objects):
            twin = Scene(objects=objects, background=scene.background, seed=rng.randrange(DECOR_VARIANTS))
            for _ in range(5):
                caption = describe(twin, rng.randrange(2**32))
                if not parse(caption).is_met_by(scene.objects, scene.background):
                    break
            return twin, caption


def exchanged_twin(index: int, split: str = "train", seed: int = 0) -> tuple[Scene, str]:
    """Scene number `index` of a split with something exchanged, and its caption, in the wording of the scene's own.

    Where the sentence says left or right it may be the mirror image. Of two things of different kind and colour mostly
    the colours change hands. Else one thing becomes another of the same colour, or takes another colour. Never a
    held-out pair. Between a scene and this twin CLIP has nothing to go by but that: so it learns each word, which
    colour is whose, and who stands where.
    """
    scene = sample_scene(index, split, seed)
    rng = random.Random(f"exchanged {seed} {split} {index}")
    if rng.random() < MIRRORED:
        objects = tuple(dataclasses.replace(each, x=1 - each.x) for each in scene.objects)
        twin, caption = _told(dataclasses.replace(scene, objects=objects), index, split, seed)
        if not parse(caption).is_met_by(scene.objects, scene.background):
            return twin, caption
    pairs = [(each.kind, each.color) for each in scene.objects]
    if len({kind for kind, _ in pairs}) == len({color for _, color in pairs}) == 2 and rng.random() < SWAPPED_COLORS:
        swapped = [(kind, color) for (kind, _), (_, color) in zip(pairs, reversed(pairs), strict=True)]
        if not HELD_OUT & set(swapped):
            objects = tuple(
                dataclasses.replace(each, color=color) for each, (_, color) in zip(scene.objects, swapped, strict=True)
            )
            return _told(dataclasses.replace(scene, objects=objects), index, split, seed)
    while True:
        chosen = rng.randrange(len(scene.objects))
        old = scene.objects[chosen]
        kind, color = (rng.choice(KINDS), old.color) if rng.random() < 0.5 else (old.kind, rng.choice(COLORS))
        if (kind, color) in HELD_OUT | set(pairs):
            continue
        x, y = fit_inside(kind, old.scale, old.x, old.y)
        new = dataclasses.replace(old, kind=kind, color=color, x=x, y=y)
        objects = (*scene.objects[:chosen], new, *scene.objects[chosen + 1 :])
        if new.place == old.place and _visible(objects):
            return _told(dataclasses.replace(scene, objects=objects), index, split, seed)


def _told(twin: Scene, index: int, split: str, seed: int) -> tuple[Scene, str]:
    return twin, describe(twin, f"{seed} {split} {index}")


def _put(rng: random.Random, pair: Pair, size: str, x: float, y: float, spread: float = 0.03) -> SceneObject:
    kind, color = pair
    scale = rng.choice(SIZE_SCALES[size])
    x, y = fit_inside(kind, scale, x + rng.uniform(-0.03, 0.03), y + rng.uniform(-spread, spread))
    return SceneObject(kind=kind, color=color, size=size, x=x, y=y, scale=scale, flip=rng.random() < 0.5)


def _back_to_front(objects: list[SceneObject]) -> tuple[SceneObject, ...]:
    return tuple(sorted(objects, key=lambda each: each.box[3]))


def _one(rng: random.Random, pairs: list[Pair]) -> tuple[SceneObject, ...] | None:
    place = rng.choice(PLACES)
    each = _put(rng, pairs[0], rng.choice(SIZES), *PLACE_CENTRES[place])
    return (each,) if each.place == place else None


def _beside(rng: random.Random, pairs: list[Pair]) -> tuple[SceneObject, ...] | None:
    objects = [
        _put(rng, pair, rng.choice(SIZES), *PLACE_CENTRES[place])
        for pair, place in zip(pairs, ("left", "right"), strict=True)
    ]
    return _back_to_front(objects) if [each.place for each in objects] == ["left", "right"] else None


def _in_front(rng: random.Random, pairs: list[Pair]) -> tuple[SceneObject, ...] | None:
    x = rng.uniform(0.35, 0.65)
    back = _put(rng, pairs[0], rng.choice(("medium", "large")), x, 0.36)
    front = _put(rng, pairs[1], rng.choice(("small", "medium")), x + rng.uniform(-0.2, 0.2), 0.70)
    return (back, front) if is_related("in front of", front, back, slack=1.4) else None


def _twice(rng: random.Random, pairs: list[Pair]) -> tuple[SceneObject, ...] | None:
    size = rng.choice(SIZES)
    objects = [_put(rng, pairs[0], size, *PLACE_CENTRES[place]) for place in ("left", "right")]
    return _back_to_front(objects) if [each.place for each in objects] == ["left", "right"] else None


def _three(rng: random.Random, pairs: list[Pair]) -> tuple[SceneObject, ...] | None:
    centre = rng.choice(("middle", "bottom"))
    spots = ((0.21, 0.5), PLACE_CENTRES[centre], (0.79, 0.5))
    objects = [
        _put(rng, pair, rng.choice(("small", "medium")), *spot, spread=0.03 if spot[0] == 0.5 else 0.08)
        for pair, spot in zip(pairs, spots, strict=True)
    ]
    return _back_to_front(objects) if [each.place for each in objects] == ["left", centre, "right"] else None


def _visible(objects: tuple[SceneObject, ...]) -> bool:
    """Whether later boxes leave at least MIN_VISIBLE of each object's box free."""
    for index, each in enumerate(objects):
        width, height = extent(each.kind, each.scale)
        x0, y0, x1, y1 = each.box
        hidden = 0.0
        for other in objects[index + 1 :]:
            a0, b0, a1, b1 = other.box
            hidden += max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
        if hidden > (1 - MIN_VISIBLE) * width * height:
            return False
    return True
