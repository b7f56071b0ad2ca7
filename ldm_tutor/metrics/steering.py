"""Does a condition steer? Boxes read back from pictures, objects in holes, and small pictures made large.

The judge that reads the boxes is proved first: `boxes_found` on true scenes gives what the ruler itself can see.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldm_tutor.conditions.channels import mean_filled as mean_filled  # a baseline here, and what hides a hole there
from ldm_tutor.data.boxes import Box, overlap, scene_boxes
from ldm_tutor.data.degrade import shrink
from ldm_tutor.data.masks import background_mask, box_mask
from ldm_tutor.data.scenes.datasets import ScenePictures, render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.errors import ConfigError
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.metrics.figures import Measured, mean, share
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.reading import Reading, SeenThing, read_pictures
from ldm_tutor.models.judge import Judge, as_seen
from ldm_tutor.shapes import Float, Pictures, Tensor

Report = dict[str, Any]
_RESAMPLED = 1000  # bootstrap samples of an interval
HOLE_MARGIN = (0.03, 0.08)  # of a hole round an object's box, fractions of the side


# ---------------------------------------------------------------- boxes


def seen_in(objects: Sequence[SeenThing], box: Box) -> SeenThing | None:
    """Return the seen object of the box's kind whose centre lies in the box, the nearest in overlap; None without."""
    inside = [
        each for each in objects if each.kind == box.kind and box.x0 <= each.x <= box.x1 and box.y0 <= each.y <= box.y1
    ]
    return max(inside, key=lambda each: overlap(each.box, box.rect), default=None)


def best_overlap(objects: Sequence[SeenThing], box: Box) -> float:
    """Return the largest intersection over union of the box with a seen object of its kind; 0 if there is none."""
    return max((overlap(each.box, box.rect) for each in objects if each.kind == box.kind), default=0.0)


def boxes_found(readings: Sequence[Reading], layouts: Sequence[Sequence[Box]]) -> Report:
    """Return how well the pictures keep to their layouts.

    `object_in_box`: boxes in which the judge finds an object of the kind asked for; `all_in_boxes`: layouts of which
    that is true for every box; `mean_iou`: of the box asked for and the box read from the picture, 0 where there is no
    such object; `nothing_more`: layouts with as many objects as boxes.
    """
    if len(readings) != len(layouts):
        raise ConfigError("boxes_found", given=(len(readings), len(layouts)), expected="one layout per picture")
    hits, ious, whole, counts = [], [], [], []
    for reading, layout in zip(readings, layouts, strict=True):
        found = [seen_in(reading.objects, box) is not None for box in layout]
        hits += found
        whole.append(all(found))
        ious += [best_overlap(reading.objects, box) for box in layout]
        counts.append(len(reading.objects) == len(layout))
    figures = {"object_in_box": share(hits), "all_in_boxes": share(whole), "mean_iou": mean(ious)}
    figures["nothing_more"] = share(counts)
    return {name: figure.to_dict() for name, figure in figures.items()}


# ---------------------------------------------------------------- holes


@dataclass(frozen=True)
class HoleCases:
    """Pictures with one hole each: `masks` (n, 1, H, W), sentences, and for hidden objects their box and colour."""

    pictures: Pictures
    masks: Float[Tensor, "n 1 H W"]
    captions: list[str]
    boxes: list[Box]
    colors: list[str]


def hidden_objects(scenes: ScenePictures, pictures: Pictures, seed: int) -> HoleCases:
    """Return one case per scene: a box-shaped hole hides one object that the sentence names, drawn by chance."""
    masks, boxes, colors = [], [], []
    for number, scene in enumerate(scenes.scenes):
        rng = random.Random(f"hidden {seed} {number}")
        chosen = rng.randrange(len(scene.objects))
        box = scene_boxes(scene)[chosen]
        masks.append(box_mask(pictures.shape[-1], box.rect, margin=rng.uniform(*HOLE_MARGIN)))
        boxes.append(box)
        colors.append(scene.objects[chosen].color)
    return HoleCases(pictures, torch.stack(masks), scenes.captions, boxes, colors)


def background_holes(num: int, seed: int) -> HoleCases:
    """Return `num` held-out scenes with a hole that touches no object; scenes without room for one are passed over."""
    pictures: list[Tensor] = []
    masks: list[Tensor] = []
    captions: list[str] = []
    start = 0
    while len(pictures) < num:
        scenes = render_scenes(num - len(pictures), "test", seed, start=start, with_masks=True)
        assert scenes.foreground is not None
        for number, foreground in enumerate(scenes.foreground):
            mask = background_mask(foreground, random.Random(f"background {seed} {start + number}"))
            if mask is not None:
                pictures.append(to_float(scenes.pictures[number]))
                masks.append(mask)
                captions.append(scenes.captions[number])
        start += len(scenes)
    return HoleCases(torch.stack(pictures), torch.stack(masks), captions, [], [])


def object_found(judge: Judge, drawn: Pictures, cases: HoleCases) -> Report:
    """Return how often the hidden kind is in its hole again, and in the colour that its sentence names."""
    kinds, colors = [], []
    for reading, mask, box, color, caption in zip(
        read_pictures(judge, drawn), cases.masks, cases.boxes, cases.colors, cases.captions, strict=True
    ):
        seen = [each for each in reading.objects if each.kind == box.kind and _is_hole(mask, each)]
        kinds.append(bool(seen))
        if any(asked.kind == box.kind and asked.color == color for asked in parse(caption).objects):
            colors.append(any(each.color == color for each in seen))
    return {"object": share(kinds).to_dict(), "with_its_color": share(colors).to_dict()}


def hole_psnr(drawn: Pictures, pictures: Pictures, masks: Float[Tensor, "n 1 H W"]) -> Float[Tensor, " n"]:
    """Return the PSNR per picture over the pixels of the hole alone, in dB, at most 60."""
    wrong = ((drawn - pictures) / 2).square() * masks
    error = wrong.flatten(1).sum(dim=1) / (3 * masks.flatten(1).sum(dim=1))
    return -10 * error.clamp(min=1e-6).log10()


def same_outside(drawn: Pictures, pictures: Pictures, masks: Float[Tensor, "n 1 H W"]) -> list[bool]:
    """Tell for each picture whether every byte outside the hole is the one that was given."""
    kept = masks.expand_as(pictures) < 0.5
    same = (to_bytes(drawn) == to_bytes(pictures)) | ~kept
    return same.flatten(1).all(dim=1).tolist()


# ---------------------------------------------------------------- small pictures


def to_bytes(pictures: Pictures) -> Tensor:
    """Return pictures in [-1, 1] as they are saved: uint8."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def as_saved(pictures: Pictures) -> Pictures:
    """Return pictures after the way to bytes and back."""
    return to_bytes(pictures).float() / 127.5 - 1


@torch.inference_mode()
def distances(judge: Judge, pictures: Pictures, others: Pictures) -> Float[Tensor, " n"]:
    """Return the perceptual distance per picture, as the judge sees it: no loss has ever used its features.

    Pictures of 64 pixels or more, larger ones shrunk; on the CPU, wherever the judge is.
    """
    measure, device = PerceptualDistance(judge), next(judge.parameters()).device
    pairs = zip(pictures.split(64), others.split(64), strict=True)
    return torch.cat([measure(*(as_seen(each.to(device).float()) for each in pair)).cpu() for pair in pairs])


def consistency(drawn: Pictures, small: Pictures) -> Float[Tensor, " n"]:
    """Return the PSNR of the saved result, shrunk again, against the small picture, in dB, at most 60."""
    again = shrink(as_saved(drawn), drawn.shape[-1] // small.shape[-1])
    return psnr(again, small).clamp(max=60)


def ratio(values: Sequence[float], others: Sequence[float], seed: int = 0) -> Measured:
    """Return mean(values) / mean(others) of paired cases, with its 95% bootstrap interval."""
    a, b = torch.tensor(values), torch.tensor(others)
    if len(a) != len(b) or not len(a):
        raise ConfigError("ratio", given=(len(a), len(b)), expected="as many values as others, at least one")
    rows = torch.randint(len(a), (_RESAMPLED, len(a)), generator=torch.Generator().manual_seed(seed))
    low, high = (a[rows].mean(dim=1) / b[rows].mean(dim=1)).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Measured(float(a.mean() / b.mean()), (low, high), len(a))


def _is_hole(mask: Tensor, seen: SeenThing) -> bool:
    side = mask.shape[-1]
    row, column = (min(side - 1, max(0, int(value * side))) for value in (seen.y, seen.x))
    return bool(mask[0, row, column] > 0.5)
