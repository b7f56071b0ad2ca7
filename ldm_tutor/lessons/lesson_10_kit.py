"""What lesson 10 needs beside its own code: painted scenes, boxes and holes on pictures, diagrams, measured figures.

The figures are those that `ldm-tutor evaluate layout --num 512 --steps 10 --json measured_layout.json` has written (and
the same for inpainting and upscaling); they lie beside the shipped weights of the conditions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from ldm_tutor.conditions.channels import Masks
from ldm_tutor.data.boxes import Box, Rect, scene_boxes
from ldm_tutor.data.degrade import Step, random_steps, run_steps
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.world import Scene
from ldm_tutor.errors import ConfigError
from ldm_tutor.plots.figures import COLORS, INK, Pixels, enlarge, figure_style, to_uint8
from ldm_tutor.shapes import Int, Pictures, Tensor
from ldm_tutor.weights.shipped import shipped_folder
from ldm_tutor.widgets.boxes import with_boxes

Report = dict[str, Any]

MEASURED = ("layout", "inpainting", "upscaling")  # what `ldm-tutor evaluate` measures, one file each
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
        figure, axes = plt.subplots(figsize=(3.6, 3.6))
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
    whole = picture.permute(1, 2, 0).numpy()
    side, made, names = 3 * whole.shape[0], [], []
    for count in range(len(random_steps(whole.shape[0], small, random.Random(f"degrade {seed}"))) + 1):
        rng = random.Random(f"degrade {seed}")  # from the start: what a step does depends on those before it
        steps = random_steps(whole.shape[0], small, rng)[:count]
        pixels = run_steps(whole, steps, rng)
        made.append(np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)))
        names.append(_told(steps[-1], len(pixels)) if steps else "as it is")
    return made, names


def _told(step: Step, side: int) -> str:
    told = {"blur": f"blur, {step.amount:.1f} pixels", "noise": f"noise, {step.amount:.1f} of 255"}
    told["jpeg"] = f"JPEG, quality {step.amount:.0f}"
    return told.get(step.name, f"size, {side} pixels")


def map_colors(maps: Int[Tensor, "b H W"]) -> list[Pixels]:
    """Return label maps as bytes (H, W, 3), one colour per label."""
    table = (colormaps["tab20"](np.arange(20))[:, :3] * 255).round().astype(np.uint8)
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


# ---------------------------------------------------------------- measured in number


def load_measured(folder: Path | None = None) -> dict[str, Report]:
    """Return the figures of MEASURED that are there, name -> {value, interval, num}; ConfigError for a broken file."""
    made = {}
    for name in MEASURED:
        path = (shipped_folder("conditions") if folder is None else folder) / f"measured_{name}.json"
        if not path.exists():
            continue
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            made[name] = dict(report.get("figures", report))
            _entry(made[name], _FIRST[name])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            command = f"ldm-tutor evaluate {name} --num 512 --steps 10 --json {path.name}"
            raise ConfigError(
                f"the figures of lesson 10 in {path.name}",
                given=type(error).__name__,
                fix=f"get them again with git, or measure them: {command}",
            ) from error
    return made


def _entry(report: Report, name: str) -> tuple[float, float, float]:
    """Return value, low and high of one figure; a dot goes into a group: `degraded.perceptual`."""
    for part in name.split("."):
        report = report[part]
    value = report["value"]
    low, high = report["interval"] or (value, value)
    return float(value), float(low), float(high)


SHOWN = {  # what the lesson prints
    "layout": ("object_in_box", "mean_iou", "with_sentence.object_in_box", "with_sentence.mean_iou", "nothing_more"),
    "inpainting": ("object_found", "outside_unchanged", "gain_over_mean_db", "gain_over_untrained_db"),
    "upscaling": ("perceptual_ratio", "psnr_gain_db", "consistency_db", "degraded.perceptual_ratio"),
}
_FIRST = {"layout": "mean_iou", "inpainting": "object_found", "upscaling": "perceptual_ratio"}
_PANELS: tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...] = (
    (
        "layout",
        "boxes: object in its box (left), mean IoU (right)",
        {
            "sentence\nalone": ("baseline_sentence_alone.object_in_box", "baseline_sentence_alone.mean_iou"),
            "boxes": ("object_in_box", "mean_iou"),
            "both": ("with_sentence.object_in_box", "with_sentence.mean_iou"),
            "painted": ("judge_on_true_scenes.object_in_box", "judge_on_true_scenes.mean_iou"),
        },
    ),
    (
        "inpainting",
        "holes: the hidden object is there again",
        {
            "mean\ncolour": ("object_found_mean_filled",),
            "put back": ("object_found_untrained",),
            "trained": ("object_found",),
            "painted": ("object_found_true_scenes",),
        },
    ),
    (
        "inpainting",
        "holes in the background: PSNR inside, dB",
        {
            "mean\ncolour": ("background_psnr_db_mean_filled",),
            "put back": ("background_psnr_db_untrained",),
            "trained, no\nsentence": ("background_psnr_db_no_sentence",),
            "trained": ("background_psnr_db",),
        },
    ),
    (
        "upscaling",
        "small pictures: perceptual distance",
        {
            "bicubic": ("perceptual_bicubic",),
            "drawn": ("drawn.perceptual",),
            "corrected": ("perceptual",),
            "plain,\ncorrected": ("untrained.perceptual",),
            "degraded,\nbicubic": ("degraded.perceptual_bicubic",),
            "degraded,\ndrawn": ("degraded.perceptual",),
        },
    ),
)


def measured_figure(measured: Mapping[str, Report]) -> Figure:
    """Draw what was measured, each beside its baselines, with intervals."""
    there = [panel for panel in _PANELS if panel[0] in measured]
    if not there:
        raise ConfigError("measured_figure: nothing is measured", given=list(measured), expected=f"some of {MEASURED}")
    rows, columns = (len(there) + 1) // 2, min(2, len(there))
    with figure_style():
        figure, panels = plt.subplots(rows, columns, figsize=(5.25 * columns, 3.3 * rows), squeeze=False)
        for axes in panels.flat[len(there) :]:
            axes.axis("off")
        for axes, (kind, title, ways) in zip(panels.flat, there, strict=False):
            for x, names in enumerate(ways.values()):
                wide = 0.7 / len(names)
                for k, name in enumerate(names):
                    value, low, high = _entry(measured[kind], name)
                    place, bars = x + wide * (k - (len(names) - 1) / 2), [[value - low], [high - value]]
                    axes.bar(place, value, wide, color=f"C{k}", yerr=bars, capsize=3)
                    label = f"{value:.0f}" if value > 5 else f"{value:.2f}"
                    axes.text(place, high, label, ha="center", va="bottom", fontsize=9)
            axes.set_xticks(range(len(ways)), list(ways), fontsize=9 if len(ways) < 6 else 8)
            axes.set_title(title)
            axes.margins(y=0.12)
            axes.grid(visible=False, axis="x")
    return figure


def told(measured: Mapping[str, Report], kind: str, name: str) -> str:
    """Say one figure: its value, its interval and the number of cases."""
    report = measured[kind]
    for part in name.split("."):
        report = report[part]
    value, low, high = _entry(measured[kind], name)
    return f"{kind}: {name.replace('_', ' ')} {value:.2f} ({low:.2f} to {high:.2f}) of {report['num']}"
