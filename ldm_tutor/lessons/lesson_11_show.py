"""What lesson 11 shows of its study: curves, tables and pictures, from the files that `lesson_11_kit` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.lesson_11_kit import RUNS
from ldm_tutor.metrics.precision_recall import PrecisionRecall
from ldm_tutor.plots.figures import figure_style
from ldm_tutor.weights.shipped import shipped_folder

Report = dict[str, Any]

MEASURES = {
    "background": "background right",
    "color": "colour right",
    "object": "object right",
    "fid": "FID (lower is better)",
    "loss": "noise loss",
}
AXES = {"seconds": "seconds of one thread", "step": "training steps"}
LABELS = {"pixels": "pixels (f = 1)", "patches": "pixels, 4x4 patches"} | {
    f"f{f}": f"latents, f = {f}" for f in (2, 4, 8, 16)
}
_TICKS = {"seconds": (30, 60, 120, 240, 360), "step": (30, 100, 300, 1000, 3000)}
_LINES = ("o-", "s--", "^:", "D-", "v-.", "x-")


def load_study(folder: Path | None = None) -> dict[str, Report]:
    """Return the reports of all runs that are there, by name; ConfigError where there is none."""
    place = folder or shipped_folder("lesson_11")
    found = {name: place / f"study_{name}.json" for name in RUNS}
    study = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.is_file()}
    if not study:
        raise ConfigError(
            "the study of lesson 11", given=f"no study_*.json in {place.name}",
            fix="get it again with git, or make it: python -m ldm_tutor.lessons.lesson_11_kit",
        )  # fmt: skip
    return study


def load_costs(folder: Path | None = None) -> dict[str, Report]:
    """Return what each run's model costs, by name; ConfigError where it is not there."""
    path = (folder or shipped_folder("lesson_11")) / "costs.json"
    if not path.is_file():
        raise ConfigError("the costs of lesson 11", given="no costs.json", fix="lesson_11_kit costs")
    costs: dict[str, Report] = json.loads(path.read_text(encoding="utf-8"))
    return costs


def value_of(row: Report, what: str) -> float:
    """Return one measure of a row: a share, a distance or the loss."""
    value = row[what]["value"] if isinstance(row[what], dict) else row[what]
    return float(value)


def curve(report: Report, what: str, axis: str = "seconds") -> tuple[list[float], list[float]]:
    """Return the places on `axis` (of AXES) and the values of one run."""
    return [row[axis] for row in report["rows"]], [value_of(row, what) for row in report["rows"]]


def at(report: Report, what: str, place: float, axis: str = "step") -> float | None:
    """Return a measure between two looks, by a straight line; None before the first look and behind the last."""
    x, y = curve(report, what, axis)
    return float(np.interp(place, x, y)) if x and x[0] <= place <= x[-1] else None


def study_figure(study: dict[str, Report], measures: Sequence[str], axis: str = "seconds") -> Figure:
    """Draw measures over time or over steps, one line per run, with the level of real scenes in grey."""
    with figure_style():
        figure, axes = plt.subplots(1, len(measures), figsize=(1.5 + 3.9 * len(measures), 3.3), squeeze=False)
        for panel, what in zip(axes[0], measures, strict=True):
            for (name, report), line in zip(study.items(), _LINES, strict=False):
                panel.plot(*curve(report, what, axis), line, label=LABELS[name])
            if what != "loss":
                real = value_of(next(iter(study.values()))["real"], what)
                panel.axhline(real, color="0.5", linewidth=1, label="real scenes")
            panel.set(xscale="log", xlabel=AXES[axis], title=MEASURES[what])
            panel.minorticks_off()
            panel.set_xticks(_TICKS[axis], [str(tick) for tick in _TICKS[axis]])
            panel.set_ylim(*((0, 1.05) if what in ("background", "color", "object") else (0, None)))
        axes[0][-1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def ceiling_figure(study: dict[str, Report]) -> Figure:
    """Draw what each space alone does to real scenes: colour, object and background right, and the FID."""
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.2))
        x = np.arange(len(study))
        for k, what in enumerate(("background", "color", "object")):
            shares = [value_of(each["ceiling"], what) for each in study.values()]
            axes[0].bar(x + 0.27 * (k - 1), shares, 0.25, label=what, hatch=("", "//", "..")[k], edgecolor="white")
        axes[1].bar(x, [value_of(each["ceiling"], "fid") for each in study.values()], 0.6, color="C3")
        axes[0].set(title="real scenes, there and back: share right", ylim=(0, 1.3))
        axes[0].legend(fontsize=9, ncols=3)
        axes[1].set(title="their FID")
        for panel in axes:
            panel.set_xticks(x, list(study))
    return figure


def pictures_of(name: str, folder: Path | None = None) -> list[Any]:
    """Return what a run drew at its last look, as arrays (64, 64, 3), one per sentence."""
    path = (folder or shipped_folder("lesson_11")) / f"pictures_{name}.png"
    strip = np.asarray(Image.open(path).convert("RGB"))
    side = strip.shape[0]
    return [strip[:, k : k + side] for k in range(0, strip.shape[1], side)]


def look_at(report: Report, seconds: float) -> Report:
    """Return the first look of a run at or after `seconds`; ConfigError where it was not trained so long."""
    for row in report["rows"]:
        if row["seconds"] >= seconds:
            return dict(row)
    raise ConfigError(f"the run {report['name']} has no look", given=f"{seconds} seconds", expected="fewer")


def minute_table(study: dict[str, Report], seconds: float = 60) -> str:
    """Return what each run has reached after `seconds`, one line each."""
    lines = []
    for name, report in study.items():
        row = look_at(report, seconds)
        shares = ", ".join(f"{what} {value_of(row, what):.0%}" for what in ("background", "color", "object"))
        lines.append(f"{LABELS[name]:20} {row['step']:4} steps: right are {shares}; FID {row['fid']:.0f}")
    return "\n".join(lines)


def ceiling_table(study: dict[str, Report]) -> str:
    """Return what is left of real scenes after each space alone, one line each."""
    lines = []
    for name, report in study.items():
        row = report["ceiling"]
        shares = ", ".join(f"{what} {value_of(row, what):.0%}" for what in ("background", "color", "object"))
        lines.append(f"{LABELS[name]:20} right are {shares}; FID {row['fid']:.0f}, PSNR {row['psnr']:.1f} dB")
    return "\n".join(lines)


def cost_table(costs: dict[str, Report]) -> str:
    """Return what each model costs by count, one line each."""
    lines = []
    for name, cost in costs.items():
        channels, side, _ = cost["shape"]
        lines.append(
            f"{LABELS[name]:20} {channels:2} x {side:2} x {side:2}: {cost['parameters']:,} parameters, "
            f"{cost['multiply_adds'] / 1e6:5.1f} million multiply-adds a pass, "
            f"{cost['training_mb']:4.0f} MB for a batch of 32"
        )
    return "\n".join(lines)


def cost_figure(costs: dict[str, Report]) -> Figure:
    """Draw milliseconds per training step and per drawn picture."""
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(9.4, 3))
        titles = {"step": "ms per training step of 32", "picture": "ms per drawn picture, 10 steps"}
        for panel, (what, title) in zip(axes, titles.items(), strict=True):
            values = [1000 * cost[f"seconds_per_{what}"] for cost in costs.values()]
            panel.barh(list(costs), values)
            for k, value in enumerate(values):
                panel.text(value, k, f" {value:.0f}", va="center")
            panel.invert_yaxis()
            panel.set(title=title, xlim=(0, 1.2 * max(values)))
    return figure


def board_figure(board: Any, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draw a table of numbers from 0 to 1 as a coloured board, each number written into its cell."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(1.2 * len(columns), 0.6 * len(rows) + 0.4))
        axes.imshow(np.asarray(board), cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(np.asarray(board)):
            color = "black" if value > 0.5 else "white"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(columns)), list(columns))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.grid(visible=False)
    return figure


def map_figure(found: dict[str, PrecisionRecall]) -> Figure:
    """Draw precision over recall, one mark per set of pictures."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(5.6, 3.6))
        for (name, each), mark in zip(found.items(), "os^Dvx", strict=False):
            axes.plot(each.recall, each.precision, mark, markersize=9, label=name)
        axes.set(xlabel="recall: is everything there?", ylabel="precision: does it look real?")
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
