"""What lesson 16 shows: animals made of points, its figures, and its study, from the files of `lesson_16_kit`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ldm_tutor.data.scenes.draw import draw_masks
from ldm_tutor.data.scenes.world import Scene, SceneObject
from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.lesson_11_kit import Report
from ldm_tutor.lessons.lesson_11_show import value_of
from ldm_tutor.lessons.lesson_16_kit import CALLS, LABELS, RULES, RUNS
from ldm_tutor.plots.figures import Pixels, figure_style, signed_map
from ldm_tutor.shapes import Bool, Float, Latents, Tensor
from ldm_tutor.weights.shipped import shipped_folder

_LINES = ("o-", "s--", "^:", "D-", "v-.")
_PLAIN_LINES = ("-", "--", ":", "-.")


# ---------------------------------------------------------------- animals made of points


def silhouette(left: str = "cat", right: str = "dog", side: int = 128) -> Bool[Tensor, "side side"]:
    """Return which pixels of a square picture belong to two objects of these kinds, side by side."""
    objects = tuple(SceneObject.put(kind, "white", "medium", at) for kind, at in ((left, "left"), (right, "right")))
    return torch.from_numpy(draw_masks(Scene(objects=objects, background="night"), side).any(axis=0))


def points_in(shape: Bool[Tensor, "h w"], num: int, seed: int) -> Float[Tensor, "num 2"]:
    """Return points spread evenly over a shape, (x right, y up), in units of its own standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    places = shape.nonzero().float()  # row, column
    chosen = places[torch.randint(len(places), (num,), generator=generator)]
    chosen = chosen + torch.rand(chosen.shape, generator=generator) - 0.5
    middle, unit = _frame(places)
    return torch.stack([chosen[:, 1] - middle[1], middle[0] - chosen[:, 0]], dim=1) / unit


def share_inside(shape: Bool[Tensor, "h w"], points: Float[Tensor, "num 2"]) -> float:
    """Return the share of points that lie in the shape, or within one pixel of it."""
    middle, unit = _frame(shape.nonzero().float())
    rows = (middle[0] - unit * points[:, 1]).round().long()
    columns = (middle[1] + unit * points[:, 0]).round().long()
    height, width = shape.shape
    there = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    wide = torch.nn.functional.max_pool2d(shape[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
    return float((there & wide[rows.clamp(0, height - 1), columns.clamp(0, width - 1)]).float().mean())


def _frame(places: Float[Tensor, "n 2"]) -> tuple[Tensor, Tensor]:
    """Return the middle of a shape's pixels, and the standard deviation that becomes the unit."""
    return places.mean(dim=0), places.std(dim=0).mean()


def clouds(named: dict[str, Tensor], columns: int = 5) -> Figure:
    """Draw clouds of points beside each other, all on the same square."""
    rows = -(-len(named) // columns)
    with figure_style():
        figure, axes = plt.subplots(rows, columns, figsize=(2.0 * columns, 2.2 * rows), squeeze=False)
        for panel in axes.flat:
            panel.axis("off")
        for panel, (name, points) in zip(axes.flat, named.items(), strict=False):
            panel.scatter(points[:, 0], points[:, 1], s=1.5, color="C0", linewidths=0)
            panel.set(title=name, xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
    return figure


def ways(named: Mapping[str, Float[Tensor, "steps n 2"]], starts: Float[Tensor, "n 2"]) -> Figure:
    """Draw the ways of points, (steps, points, 2), each set on a panel of its own, and where they start."""
    with figure_style():
        figure, axes = plt.subplots(1, len(named), figsize=(3.7 * len(named), 3.6), sharex=True, sharey=True)
        for panel, (title, way) in zip(axes, named.items(), strict=True):
            panel.plot(way[..., 0], way[..., 1], color="C0", linewidth=0.7)
            panel.scatter(starts[:, 0], starts[:, 1], s=8, color="C1")
            panel.set(title=title, aspect="equal")
    return figure


# ---------------------------------------------------------------- figures


def curves(
    x: Sequence[float], named: Mapping[str, Any], *, marks: bool = False, kind: str = "plot", **labels: Any
) -> Figure:
    """Draw named curves over x, told apart by colour and line; `kind` is plot, semilogy or semilogx."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(6.6, 2.8))
        for (name, y), line in zip(named.items(), _LINES if marks else _PLAIN_LINES, strict=False):
            getattr(axes, kind)(x, y, line, label=name)
        if kind == "semilogx":
            axes.set_xticks(x, [str(each) for each in x])
            axes.minorticks_off()
        axes.set(**labels)
        axes.legend()
    return figure


def quarter_circle() -> Figure:
    """Draw the way from a picture to noise as a quarter of a circle, with its velocity as arrows."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(3.6, 3.4))
        turn = np.linspace(0, math.pi / 2, 50)
        axes.plot(np.cos(turn), np.sin(turn), color="0.6")
        for phi in (0.0, math.pi / 4, math.pi / 2):
            dx, dy = -0.3 * math.sin(phi), 0.3 * math.cos(phi)
            axes.arrow(math.cos(phi), math.sin(phi), dx, dy, width=0.012, color="C1")
        axes.text(0.92, 0.02, "picture: v is the noise", ha="right", fontsize=9)
        axes.text(-0.35, 1.1, "noise: v is minus the picture", fontsize=9)
        axes.set(xlabel="share of x0", ylabel="share of noise", xlim=(-0.4, 1.15), ylim=(-0.1, 1.35), aspect="equal")
    return figure


def cut(latents: Latents, tokens: Float[Tensor, "b n values"], patch: int) -> Figure:
    """Draw the first latent channel with the cuts between patches, and the tokens as columns of numbers."""
    side, scale = latents.shape[-1], 8
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(7, 3.4))
        axes[0].imshow(signed_map(latents[0, 0], scale=scale))
        for k in range(1, side // patch):
            for line in (axes[0].axhline, axes[0].axvline):
                line(scale * patch * k - 0.5, color="black", linewidth=0.8)
        axes[1].imshow(tokens[0].T, aspect="auto", cmap="PuOr", vmin=-3, vmax=3)
        axes[0].set(title="a latent channel, cut", xticks=[], yticks=[])
        axes[1].set(title="the tokens", xlabel="token", ylabel="number")
        for panel in axes:
            panel.grid(visible=False)
    return figure


# ---------------------------------------------------------------- the study


def load_study(folder: Path | None = None) -> dict[str, Report]:
    """Return the reports of all runs, by name; ConfigError where one is not there."""
    place = folder or shipped_folder("lesson_16")
    paths = {name: place / f"study_{name}.json" for name in RUNS}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        fix = "get it again with git, or make it: python -m ldm_tutor.lessons.lesson_16_kit"
        raise ConfigError("the study of lesson 16", given=f"no {', '.join(missing)}", fix=fix)
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}


def size_table(reports: Mapping[str, Report]) -> str:
    """Say each run's parameters, work and steps, a line for each."""
    lines = []
    for name, report in reports.items():
        size, work = f"{report['parameters'] / 1e3:.0f} thousand", f"{report['multiply_adds'] / 1e6:.0f} million"
        steps = f"{report['rows'][-1]['step']:,}"
        lines.append(f"{LABELS[name]:15} {size} parameters, {work} multiply-adds, {steps} steps")
    return "\n".join(lines)


def _told_share(what: str, share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{what} {share['value']:.0%} ({low:.0%} to {high:.0%})"


def mark_table(reports: Mapping[str, Report]) -> str:
    """Say what each run got right at its end, with intervals, and its FID, a line for each."""
    lines = []
    for name, report in reports.items():
        last = report["rows"][-1]
        right = ", ".join(_told_share(what, last[what]) for what in ("object", "color", "background"))
        lines.append(f"{LABELS[name]:15} right: {right}; FID {last['fid']:.0f}")
    return "\n".join(lines)


def pictures_of(name: str, folder: Path | None = None) -> list[Pixels]:
    """Return the pictures of a run, drawn at its end for the first sentences of the exam."""
    strip = np.asarray(Image.open((folder or shipped_folder("lesson_16")) / f"pictures_{name}.png").convert("RGB"))
    return [strip[:, start : start + strip.shape[0]] for start in range(0, strip.shape[1], strip.shape[0])]


def study_figure(reports: dict[str, Report], measures: dict[str, str]) -> Figure:
    """Draw measures (name to title) over the seconds of training, one line per run, real scenes in grey."""
    with figure_style():
        figure, axes = plt.subplots(1, len(measures), figsize=(1.5 + 3.6 * len(measures), 3.2), squeeze=False)
        for panel, (what, title) in zip(axes[0], measures.items(), strict=True):
            for (name, report), line in zip(reports.items(), _LINES, strict=True):
                x = [row["seconds"] for row in report["rows"]]
                panel.plot(x, [value_of(row, what) for row in report["rows"]], line, label=LABELS[name])
            panel.axhline(value_of(next(iter(reports.values()))["real"], what), color="0.5", linewidth=1, label="real")
            panel.set(xlabel="seconds of one thread", title=title)
            panel.set_ylim(0, None if what == "fid" else 1.05)
        axes[0][-1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def calls_figure(reports: dict[str, Report], what: str, title: str) -> Figure:
    """Draw a measure over the number of calls: left each run's simple rule, right the one of second order."""
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.2), sharey=True)
        for panel, order in zip(axes, (0, 1), strict=True):
            for (name, report), line in zip(reports.items(), _LINES, strict=True):
                graded = report["calls"][RULES[name][order]]
                label = f"{LABELS[name]} ({RULES[name][order]})"
                panel.plot(CALLS, [value_of(graded[str(num)], what) for num in CALLS], line, label=label)
            panel.set(xscale="log", xlabel="calls of the network per picture", ylim=(0, None))
            panel.set_xticks(CALLS, [str(num) for num in CALLS])
            panel.minorticks_off()
            panel.legend(fontsize=8)
        axes[0].set(title=f"{title}, first order")
        axes[1].set(title=f"{title}, second order")
    return figure
