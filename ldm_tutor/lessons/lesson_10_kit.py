"""What lesson 10 needs beside its own code: painted scenes, boxes and holes on pictures, and two diagrams."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from ldm_tutor.conditions.channels import Masks
from ldm_tutor.data.boxes import Box, Rect, scene_boxes
from ldm_tutor.data.degrade import random_steps, run_steps
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.world import Scene
from ldm_tutor.errors import ShapeError
from ldm_tutor.plots.figures import COLORS, INK, Pixels, enlarge, figure_style, to_uint8
from ldm_tutor.shapes import Float, Int, Pictures, Tensor
from ldm_tutor.widgets.boxes import with_boxes

_WORDS = {"resize": "size", "to": "size", "jpeg": "JPEG, quality"}
_GREY, _DARK = 150, 110  # the two greys of a hole's checks
_CHECK = 4  # pixels of one


def paint(*scenes: Scene, side: int = 64) -> Pictures:
    """Return the scenes as the course's own code paints them, (b, 3, side, side) in [-1, 1]."""
    painted = np.stack([draw(scene, side) for scene in scenes])
    return to_float(torch.from_numpy(painted).permute(0, 3, 1, 2).contiguous())


def box_holes(rects: Sequence[tuple[int, int, int, int]], side: int = 64) -> Masks:
    """Return one mask per rectangle (x0, y0, x1, y1) in pixels, 1 inside of it: (b, 1, side, side)."""
    masks = torch.zeros(len(rects), 1, side, side)
    for mask, (x0, y0, x1, y1) in zip(masks, rects, strict=True):
        mask[:, y0:y1, x0:x1] = 1
    return masks


def with_holes(pictures: Pictures, masks: Masks) -> list[Pixels]:
    """Return the pictures as bytes, their holes as a board of grey checks, which no scene has."""
    rows, columns = np.indices(pictures.shape[-2:]) // _CHECK
    checks = np.where((rows + columns) % 2, _GREY, _DARK).astype(np.uint8)[..., None]
    holes = masks.permute(0, 2, 3, 1).numpy() > 0.5
    return [np.where(hole, checks, picture) for picture, hole in zip(to_uint8(pictures), holes, strict=True)]


def boxed(pictures: Pictures, layouts: Sequence[Sequence[Box]], scale: int = 3) -> list[Pixels]:
    """Return the pictures enlarged, with the asked boxes on them as the studio draws them."""
    both = zip(enlarge(to_uint8(pictures), scale), layouts, strict=True)
    return [with_boxes(pixels, layout) for pixels, layout in both]


def asked(scenes: Sequence[Scene]) -> list[list[Box]]:
    """Return the true boxes of scenes as layouts to ask for."""
    return [scene_boxes(scene) for scene in scenes]


def psnr_inside(pictures: Pictures, truth: Pictures, masks: Masks) -> Float[Tensor, " b"]:
    """Return the PSNR in dB over the pixels of each hole."""
    if pictures.shape != truth.shape or masks.shape[-2:] != truth.shape[-2:]:
        given = (tuple(pictures.shape), tuple(truth.shape), tuple(masks.shape))
        raise ShapeError("psnr_inside", given=given, expected="pictures, truth and masks of one size")
    error = ((pictures - truth) / 2).square().mean(dim=1, keepdim=True) * masks
    return -10 * (error.sum(dim=(1, 2, 3)) / masks.sum(dim=(1, 2, 3))).log10()


def mean_fill(pictures: Pictures, masks: Masks) -> Pictures:
    """Return the pictures with each hole filled with the mean colour of what lies outside of it."""
    outside = 1 - masks
    mean = (pictures * outside).sum(dim=(2, 3), keepdim=True) / outside.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return torch.where(masks > 0.5, mean, pictures)


def doors_figure() -> Figure:
    """Draw the U-Net with its two doors: channels beside the latents on the left, tokens from below."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(8.4, 3.6))
        axes.set(xlim=(0, 10), ylim=(0, 4.4))
        axes.axis("off")
        _box(axes, 5.2, 2.75, 1.7, 1.2, "U-Net", "#D6E9F5", 13)
        _box(axes, 2.2, 3.35, 2.2, 0.6, "noisy latents", "white")
        _box(axes, 2.2, 2.15, 2.9, 0.95, "hole: mask, masked picture\nsmall picture\nlabel map", "#FBE5D6", 9.5)
        _box(axes, 5.2, 0.6, 5.6, 0.85, "words  ·  boxes  ·  class", "#E2F0D9")
        for start, end in (((3.3, 3.35), (4.35, 3.0)), ((3.65, 2.15), (4.35, 2.55)), ((5.2, 1.03), (5.2, 2.15))):
            arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=INK, shrinkA=0, shrinkB=0)
            axes.add_patch(arrow)
        axes.add_patch(
            FancyArrowPatch((6.05, 2.75), (7.2, 2.75), arrowstyle="-|>", mutation_scale=14, color=INK, shrinkA=0)
        )
        axes.text(7.3, 2.75, "the noise in\nthe latents", va="center", fontsize=10.5)
        axes.text(0.7, 4.1, "channels: concatenated, place by place", fontsize=11, color=COLORS["vermilion"])
        axes.text(5.4, 1.55, "tokens: read by cross-attention", fontsize=11, color=COLORS["green"])
    return figure


def _box(
    axes: plt.Axes, x: float, y: float, wide: float, tall: float, text: str, face: str, size: float = 10.5
) -> None:
    corner = (x - wide / 2, y - tall / 2)
    style = "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch(corner, wide, tall, boxstyle=style, fc=face, ec=INK, lw=1.3))
    axes.text(x, y, text, ha="center", va="center", fontsize=size)


def grid_figure(picture: Pictures, box: Rect, back: Rect, grid: int) -> Figure:
    """Draw a picture with its grid of places, a box, and the box that its tokens stand for."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(4.6, 4.6))
        axes.imshow(to_uint8(picture)[0], extent=(0, 1, 1, 0))
        places = np.linspace(0, 1, grid)
        rows, columns = np.meshgrid(places, places)
        axes.scatter(columns, rows, s=2, color="white", alpha=0.6)
        for rect, color, line, name in ((box, "black", "-", "asked"), (back, COLORS["vermilion"], "--", "from tokens")):
            x0, y0, x1, y1 = rect
            axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], line, color=color, linewidth=2, label=name)
        axes.grid(visible=False)
        axes.set(xlim=(0, 1), ylim=(1, 0), xlabel="x", ylabel="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def degradation(picture: Int[Tensor, "3 H W"], small: int, seed: int) -> tuple[list[Pixels], list[str]]:
    """Return a picture after each step of its degradation, all enlarged to one size, and what each step was."""
    rng = random.Random(f"degrade {seed}")
    pixels = picture.permute(1, 2, 0).numpy()
    side, steps = 3 * pixels.shape[0], random_steps(pixels.shape[0], small, rng)
    made, names = [_to(pixels, side)], ["as it is"]
    for step in steps:
        pixels = run_steps(pixels, [step], rng)
        made.append(_to(pixels, side))
        amount = {"blur": f"{step.amount:.1f} pixels", "noise": f"{step.amount:.1f} of 255", "jpeg": f"{step.amount:.0f}"}
        names.append(f"{_WORDS.get(step.name, step.name)}, {amount.get(step.name, f'{len(pixels)} pixels a side')}")
    return made, names


def _to(pixels: Pixels, side: int) -> Pixels:
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST))


def map_colors(maps: Int[Tensor, "b H W"]) -> list[Pixels]:
    """Return label maps as bytes (H, W, 3), one colour per label."""
    table = (np.asarray(colormaps["tab20"].colors) * 255).round().astype(np.uint8)
    return [table[each.long().numpy() % len(table)] for each in maps]


def curve_figure(
    knob: Sequence[float], curves: Mapping[str, Sequence[float]], xlabel: str, ylabel: str, top: float | None = None
) -> Figure:
    """Draw one or more curves over a knob, told apart by marker and line."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(5.8, 2.9))
        for (name, values), line in zip(curves.items(), ("o-", "s--", "^:", "d-."), strict=False):
            axes.plot(knob, values, line, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if top is not None:
            axes.set_ylim(0, top)
        if len(curves) > 1:
            axes.legend(fontsize=9)
    return figure
