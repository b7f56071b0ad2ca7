"""What lesson 03 shows and asks with: its figures, questions for zero-shot classification, scenes with two objects."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch.nn import functional as F

from ldm_tutor.config import ClipConfig, ImageEncoderConfig, TextEncoderConfig
from ldm_tutor.data.scenes.datasets import ScenePictures, to_float
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.sampling import caption_for, near_twin, sample_scene
from ldm_tutor.data.scenes.words import BACKGROUND_PHRASES, PLACE_PHRASES, parse
from ldm_tutor.data.scenes.world import BACKGROUNDS, COLORS, HELD_OUT, KINDS, PLACES, SIZES, Scene, SceneObject
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.plots.figures import figure_style
from ldm_tutor.shapes import Pictures, Tensor, Tokens

Curve = tuple[Sequence[float], Sequence[float]]
_MARKS = (":", "--", "-.")


def curves(
    curves: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    *,
    marks: Mapping[str, float] | None = None,
    at: Mapping[str, float] | None = None,
    log: bool = False,
    bottom: float | None = 0,
) -> Figure:
    """Curves by name, each (x, y). `marks`: heights of horizontal lines; `at`: places of vertical ones."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(7, 3.1))
        for name, (xs, ys) in curves.items():
            axes.plot(xs, ys, label=name, marker="o" if len(xs) < 10 else "")
        for style, (name, height) in zip(_MARKS, (marks or {}).items(), strict=False):
            axes.axhline(height, ls=style, lw=1.2, color="black", label=name)
        for style, (name, place) in zip(_MARKS, (at or {}).items(), strict=False):
            axes.axvline(place, ls=style, lw=1.2, color="black", label=name)
        if log:
            axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(bottom, None))
        if len(curves) > 1 or marks or at:
            axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def matrices(
    values: Sequence[Tensor],
    titles: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    least: float = -1,
    axes: tuple[str, str] = ("sentence", "picture"),
    unit: str = "cosine",
) -> Figure:
    """Matrices side by side, all on one scale from `least` to 1; `axes` names the columns and the rows."""
    with figure_style():
        figure, row = plt.subplots(1, len(values), figsize=(3.1 * len(values) + 0.9, 3.3), squeeze=False)
        for place, matrix, title in zip(row[0], values, titles, strict=True):
            image = place.imshow(matrix.detach().float().numpy(), cmap="cividis", vmin=least, vmax=1)
            place.set(title=title, xlabel=axes[0], ylabel=axes[1])
            place.grid(visible=False)
            if labels is not None:
                place.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
                place.set_yticks(range(len(labels)), labels)
        figure.colorbar(image, ax=row, label=unit)
    return figure


def tiles(patches: Tensor) -> Tensor:
    """Patches (n, n, 3, s, s) laid out as a picture with white gaps of two pixels between them."""
    rows, columns, colors, side, _ = patches.shape
    pitch = side + 2
    wall = torch.full((colors, rows * pitch - 2, columns * pitch - 2), 1.0)
    for y in range(rows):
        for x in range(columns):
            wall[:, y * pitch : y * pitch + side, x * pitch : x * pitch + side] = patches[y, x]
    return wall


def smooth(values: Sequence[float], width: int = 10) -> list[float]:
    """The mean of each value and the up to `width` - 1 before it."""
    parts = [values[max(0, k + 1 - width) : k + 1] for k in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def a(words: str) -> str:
    """The words with their article: an orange ball."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def questions() -> dict[str, tuple[tuple[str, ...], list[list[str]]]]:
    """For each attribute: its possible values, and for each value several wordings that name it."""
    return {
        "background": (BACKGROUNDS, [[f"{a(k)} {BACKGROUND_PHRASES[b][0]}" for k in KINDS] for b in BACKGROUNDS]),
        "color": (COLORS, [[a(f"{c} {k}") for k in KINDS] for c in COLORS]),
        "kind": (KINDS, [[a(f"{c} {k}") for c in COLORS] for k in KINDS]),
        "size": (SIZES, [[a(f"{s} {k}") for k in KINDS] for s in SIZES]),
        "place": (PLACES, [[f"{a(k)} {PLACE_PHRASES[p][0]}" for k in KINDS] for p in PLACES]),
    }


def side_by_side(number: int, seed: int = 0) -> tuple[Pictures, list[tuple[str, str, str, str]]]:
    """Draw scenes with an object on the left and one on the right, of different kind and colour.

    Each comes with four names: left and right as they are, then with their colours swapped. No name is a pair of kind
    and colour that training never showed: it would give the false sentence away.
    """
    rng = random.Random(seed)
    pictures: list[Tensor] = []
    names: list[tuple[str, str, str, str]] = []
    while len(names) < number:
        (k1, k2), (c1, c2) = rng.sample(KINDS, 2), rng.sample(COLORS, 2)
        if {(k1, c1), (k2, c2), (k1, c2), (k2, c1)} & HELD_OUT:
            continue
        objects = SceneObject.put(k1, c1, place="left"), SceneObject.put(k2, c2, place="right")
        scene = Scene(objects=objects, background=rng.choice(BACKGROUNDS), seed=rng.randrange(24))
        pictures.append(torch.from_numpy(draw(scene)).permute(2, 0, 1))
        names.append((a(f"{c1} {k1}"), a(f"{c2} {k2}"), a(f"{c2} {k1}"), a(f"{c1} {k2}")))
    return to_float(torch.stack(pictures)), names


def twins(number: int) -> tuple[Pictures, list[str], list[str]]:
    """Return pictures of `number` test scenes and then of their near twins, the scenes' sentences and the twins'.

    Only pairs of which neither sentence is true of the other picture.
    """
    scenes, others, own, of_twin = [], [], [], []
    for index in itertools.count():
        scene, told = sample_scene(index, "test"), caption_for(index, "test")
        twin, says = near_twin(index, "test")
        fits = (
            parse(told).is_met_by(twin.objects, twin.background),
            parse(says).is_met_by(scene.objects, scene.background),
        )
        if not any(fits):
            scenes.append(scene)
            others.append(twin)
            own.append(told)
            of_twin.append(says)
        if len(own) == number:
            break
    drawn = [torch.from_numpy(draw(scene)).permute(2, 0, 1) for scene in scenes + others]
    return to_float(torch.stack(drawn)), own, of_twin


def top1(scores: Tensor, size: int = 64) -> tuple[float, float]:
    """Return the share of right first answers in batches of `size`: picture to sentence, sentence to picture."""
    blocks = [scores[i : i + size, i : i + size] for i in range(0, len(scores) - size + 1, size)]
    own = torch.arange(size)
    right = [torch.cat([block.argmax(dim) == own for block in blocks]) for dim in (1, 0)]
    return float(right[0].float().mean()), float(right[1].float().mean())


def small_config(tokenizer: Tokenizer) -> ClipConfig:
    """Return a CLIP that trains in seconds: width 64, two layers per tower, 16 patches."""
    tower = {"width": 64, "num_layers": 2, "num_heads": 4, "mlp_width": 128}
    text = TextEncoderConfig(vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length, **tower)
    return ClipConfig(text=text, image=ImageEncoderConfig(picture_size=64, patch_size=16, **tower), embed_dim=64)


def need_of_place(sentences: Sequence[str], size: int = 64) -> tuple[float, int]:
    """Return the share of sentences that say a place or a relation, and how many need it.

    A sentence needs it where another one in its batch of `size` is the same in all else: kinds, colours, sizes,
    background.
    """
    requests = [parse(sentence) for sentence in sentences]
    says = [each.asks_for("place") or each.asks_for("relation") for each in requests]
    rest = [
        (sorted(f"{thing.kind} {thing.color} {thing.size}" for thing in each.objects), each.background)
        for each in requests
    ]
    batches = [rest[start : start + size] for start in range(0, len(rest), size)]
    return sum(says) / len(says), sum(batch.count(each) > 1 for batch in batches for each in batch)


@torch.inference_mode()
def embed(clip: Clip, pictures: Pictures, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Return the arrows of pictures and of sentences, 128 at a time."""
    return (
        torch.cat([clip.embed_pictures(part) for part in pictures.split(128)]),
        torch.cat([clip.embed_text(part) for part in tokens.split(128)]),
    )


@torch.inference_mode()
def arrows(clip: Clip, tokenizer: Tokenizer, wordings: Sequence[Sequence[str]]) -> Tensor:
    """Return one arrow per class: the mean over its wordings, made a unit vector again."""
    means = [clip.embed_text(tokenizer(each)).mean(dim=0) for each in wordings]
    return F.normalize(torch.stack(means), dim=1)


def single_objects(scenes: ScenePictures) -> tuple[Pictures, dict[str, list[str]]]:
    """Return the pictures with one object, and for each attribute of `questions` its true value in each picture."""
    chosen = [k for k, scene in enumerate(scenes.scenes) if len(scene.objects) == 1]
    things = [scenes.scenes[k].objects[0] for k in chosen]
    truth = {name: [getattr(thing, name) for thing in things] for name in ("color", "kind", "size", "place")}
    truth["background"] = [scenes.scenes[k].background for k in chosen]
    return to_float(scenes.pictures[chosen]), truth
