"""Holes for inpainting: strokes of a brush, boxes, and the places of objects. 1 is hole, 0 is picture.

Every mask comes from a seeded generator, so that a training or a measurement can be repeated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from ldm_tutor.errors import ConfigError
from ldm_tutor.shapes import Float, Tensor

Mask = Float[Tensor, "1 H W"]


def free_form_mask(side: int, rng: random.Random, *, num_strokes: tuple[int, int] = (1, 3)) -> Mask:
    """Return strokes of a brush, as Yu et al. 2019 (arXiv 1806.03589) draw them: a turning line of changing width."""
    picture = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(*num_strokes)):
        x, y = rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.9) * side
        angle, width = rng.uniform(0, 2 * math.pi), rng.uniform(0.09, 0.22) * side
        for _ in range(rng.randint(2, 5)):
            angle += rng.uniform(-1.2, 1.2)
            length = rng.uniform(0.12, 0.3) * side
            to_x, to_y = x + length * math.cos(angle), y + length * math.sin(angle)
            pen.line((x, y, to_x, to_y), fill=1, width=max(1, round(width)))
            pen.ellipse((to_x - width / 2, to_y - width / 2, to_x + width / 2, to_y + width / 2), fill=1)
            x, y = min(max(to_x, 0), side), min(max(to_y, 0), side)
    return torch.from_numpy(np.array(picture)).float()[None]


def box_mask(side: int, rect: Sequence[float], *, margin: float = 0.0) -> Mask:
    """Return a mask of the pixels that touch the rectangle (x0, y0, x1, y1), in fractions, grown by `margin`."""
    x0, y0, x1, y1 = (float(value) for value in rect)
    if not (x0 < x1 and y0 < y1):
        raise ConfigError("box_mask", given=tuple(rect), expected="x0 < x1 and y0 < y1")
    left, top = (max(0, math.floor((value - margin) * side)) for value in (x0, y0))
    right, bottom = (min(side, math.ceil((value + margin) * side)) for value in (x1, y1))
    mask = torch.zeros(1, side, side)
    mask[:, top:bottom, left:right] = 1
    return mask


def random_box_mask(side: int, rng: random.Random, *, share: tuple[float, float] = (0.2, 0.6)) -> Mask:
    """Return a box of random place, its width and height each a share of the side."""
    width, height = rng.uniform(*share), rng.uniform(*share)
    x0, y0 = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return box_mask(side, (x0, y0, x0 + width, y0 + height))


def grown(mask: Float[Tensor, "... H W"], pixels: int) -> Float[Tensor, "... H W"]:
    """Return the mask with a border of `pixels` more around every hole."""
    if pixels < 0:
        raise ConfigError("grown: pixels", given=pixels, expected="0 or more")
    return F.max_pool2d(mask, 2 * pixels + 1, stride=1, padding=pixels) if pixels else mask


def background_mask(foreground: Tensor, rng: random.Random, *, tries: int = 40, least: float = 0.03) -> Mask | None:
    """Return strokes or a box that touch no object of `foreground` (H, W), 0 on the background; None if none is found.

    What is left of a random hole after a border of two pixels round the objects is cut away, if it is `least` of the
    picture or more.
    """
    side = foreground.shape[-1]
    near = grown((foreground > 0).float()[None], 2)
    for _ in range(tries):
        mask = free_form_mask(side, rng) if rng.random() < 0.5 else random_box_mask(side, rng)
        mask = mask * (1 - near)
        if float(mask.mean()) >= least:
            return mask
    return None
