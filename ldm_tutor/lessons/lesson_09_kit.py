"""What lesson 09 needs beside its own code: the table of an alignment, and how sure the judge is of a colour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldm_tutor.errors import ConfigError
from ldm_tutor.metrics.editing import color_margin
from ldm_tutor.metrics.reading import SeenThing
from ldm_tutor.models.judge import Judge
from ldm_tutor.plots.figures import COLORS, figure_style
from ldm_tutor.shapes import Float, Pictures, Tensor


def alignment_figure(
    best: Float[Tensor, "rows columns"],
    first: Sequence[str],
    second: Sequence[str],
    pairs: Sequence[tuple[int, int]],
) -> Figure:
    """Draw the table of Needleman and Wunsch with its numbers, and a ring around each pair that belongs together."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(6.4, 4.2))
        axes.imshow(best, cmap="cividis", aspect="auto")
        middle = (float(best.min()) + float(best.max())) / 2
        for i, row in enumerate(best.tolist()):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="w" if value < middle else "k")
        rows, columns = [i + 1 for i, _ in pairs], [j + 1 for _, j in pairs]
        axes.scatter(columns, rows, s=420, facecolors="none", edgecolors=COLORS["vermilion"], linewidths=2.5)
        axes.set_xticks(range(len(second) + 1), ["", *second], rotation=30, ha="right")
        axes.set_yticks(range(len(first) + 1), ["", *first])
        axes.set(xlabel="target", ylabel="source")
        axes.grid(visible=False)
    return figure


def color_sure(judge: Judge, pictures: Pictures, thing: SeenThing | None, color: str) -> list[float]:
    """Return how sure the judge is, 0 to 1, that what stands where `thing` was has the colour, in each picture."""
    if thing is None:
        raise ConfigError("color_sure: the judge has found no such thing", given=None, fix="take another seed")
    count = len(pictures)
    margins = color_margin(judge, pictures, [(thing.x, thing.y)] * count, [color] * count)
    return [1 / (1 + math.exp(-margin)) for margin in torch.tensor(margins).clamp(-50, 50).tolist()]
