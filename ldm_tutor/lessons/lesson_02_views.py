"""The figures of lesson 02: crops side by side, curves and bars of the runs, the map of verdicts and its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.plots.figures import COLORS, figure_style, picture_grid, to_uint8
from ldm_tutor.shapes import Pictures, Tensor

Layers = list[tuple[int, int]]
Log = dict[str, list[float]]
_ENDS = (-2.0, 2.0)  # verdicts beyond are drawn as these


def layers_of(critic: nn.Module) -> Layers:
    """Return (kernel, stride) of a critic's convolutions, the one next to the picture first."""
    return [(m.kernel_size[0], m.stride[0]) for m in critic.modules() if isinstance(m, nn.Conv2d)]


def patch_of(index: int, layers: Layers, padding: int = 1) -> tuple[int, int]:
    """Return where along one side the patch of verdict number `index` begins and ends: pixels, beyond the edge too."""
    begin, width = index, 1
    for kernel, stride in reversed(layers):
        begin, width = begin * stride - padding, (width - 1) * stride + kernel
    return begin, begin + width


def crops(pictures: Mapping[str, Pictures], places: Sequence[tuple[int, int, int]], side: int = 24) -> Figure:
    """Show the same places of several sets of pictures, enlarged: a row for each place (picture, top, left)."""
    cells, titles = [], []
    for row, top, left in places:
        for name, batch in pictures.items():
            if not (0 <= top <= batch.shape[-2] - side and 0 <= left <= batch.shape[-1] - side):
                raise ConfigError("crops: a place outside of the picture", given=(top, left), expected=f"{side} inside")
            cells.append(batch[row : row + 1, :, top : top + side, left : left + side])
            titles.append(name)
    return picture_grid(cells, titles, columns=len(pictures), scale=6)


def verdict_figure(picture: Pictures, verdicts: Tensor, layers: Layers, row: int, column: int) -> Figure:
    """Draw a picture (1, 3, H, W) with the patch of one verdict, the map (h, w) of all verdicts, and the patch.

    Blue says real, red says made, white is undecided.
    """
    if verdicts.dim() != 2 or not (0 <= row < verdicts.shape[0] and 0 <= column < verdicts.shape[1]):
        raise ShapeError(
            "verdict_figure: row and column of a verdict",
            given=(row, column),
            expected=f"inside of {tuple(verdicts.shape)}",
        )
    pixels = to_uint8(picture)[0]
    (top, bottom), (left, right) = patch_of(row, layers), patch_of(column, layers)
    inside = pixels[max(top, 0) : bottom, max(left, 0) : right]
    with figure_style():
        figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.1))
        frame: dict[str, Any] = {"fill": False, "lw": 2.5, "ec": COLORS["orange"]}
        axes[0].imshow(pixels)
        axes[0].add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **frame))
        axes[0].set_title("picture, and the patch")
        axes[0].set(xlim=(-0.5, pixels.shape[1] - 0.5), ylim=(pixels.shape[0] - 0.5, -0.5))
        shown = axes[1].imshow(verdicts.detach().numpy(), cmap="RdBu", vmin=_ENDS[0], vmax=_ENDS[1])
        axes[1].add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))
        axes[1].set_title(f"verdicts: here {float(verdicts[row, column]):.1f}")
        figure.colorbar(shown, ax=axes[1], label="made       real", shrink=0.8)
        axes[2].imshow(inside)
        axes[2].set_title("the patch")
        for panel in axes:
            panel.set(xticks=[], yticks=[])
            panel.grid(visible=False)
    return figure


_LINES = ("-", "--", ":", "-.", (0, (1, 1)))  # told apart without colour too


def balance_figure(logs: Mapping[str, Log]) -> Figure:
    """Draw the adaptive weight and the critic's loss over the steps of the runs given, by their names."""
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(9, 2.8))
        for (name, log), line in zip(logs.items(), _LINES, strict=False):
            at = [k for k, value in enumerate(log["balance"]) if value > 0]
            axes[0].plot([log["step"][k] for k in at], [log["balance"][k] for k in at], linestyle=line, label=name)
            axes[1].plot([log["step"][k] for k in at], [log["critic"][k] for k in at], linestyle=line)
        axes[0].set(yscale="log", xlabel="step", title="the factor")
        axes[1].set(xlabel="step", title="the critic's hinge loss")
        axes[0].legend()
    return figure


def progress_figure(logs: Mapping[str, Log], fine: float) -> Figure:
    """Draw PSNR, distance and fine energy (as a share of `fine`) on held-out scenes over the steps of each run."""
    panels = {"psnr": "PSNR in dB", "distance": "perceptual distance", "fine": "fine energy, share"}
    with figure_style():
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 2.9))
        for panel, (what, title) in zip(axes, panels.items(), strict=True):
            unit = fine if what == "fine" else 1.0
            for (name, log), line in zip(logs.items(), _LINES, strict=False):
                panel.plot(log["step"], [value / unit for value in log[what]], linestyle=line, label=name)
            panel.set(title=title, xlabel="step")
        axes[1].set(ylim=(0, 2))
        axes[0].legend(fontsize=9)
    return figure


def bars_figure(table: Mapping[str, Sequence[float]], forms: Mapping[str, str]) -> Figure:
    """Draw one panel of bars per title in `forms`, one bar per name, all from 0; the k-th shows table[name][k].

    `forms`: for each title how its values are written, such as "{:.1f}".
    """
    with figure_style():
        figure, axes = plt.subplots(1, len(forms), figsize=(10, 2.4), sharey=True)
        for k, (panel, (title, form)) in enumerate(zip(axes, forms.items(), strict=True)):
            values = [each[k] for each in table.values()]
            drawn = panel.barh(list(table), values, color=list(COLORS.values())[: len(table)])
            panel.bar_label(drawn, [form.format(value) for value in values], padding=3)
            panel.set(title=title, xlim=(0, 1.35 * max(values)), xticks=[])
            panel.spines["bottom"].set_visible(False)
            panel.grid(visible=False)
        axes[0].invert_yaxis()
    return figure
