"""The figures of lesson 12."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn

from ldm_tutor.nn.work import Work
from ldm_tutor.plots.figures import COLORS, figure_style

LAST_BIT = 1e-9  # what a figure on a logarithmic axis shows in the place of 0
STAGES = ("ends", *(f"down.{k}" for k in range(4)), "mid", *(f"up.{k}" for k in range(4)))
KINDS = {
    "time_": "time", "res_blocks": "residual blocks", "self_attn": "self-attention", "cross_attn": "cross-attention",
    "feed_forward": "feed-forward", "transformers": "norms, projections", "": "resampling, ends",
}  # fmt: skip
# Rombach et al. 2022, table 2: text to picture on MS-COCO, billions of parameters and FID.
COCO = {
    "CogView": (4, 27.10), "LAFITE": (0.075, 26.94), "GLIDE": (6, 12.24), "Make-A-Scene": (4, 11.84),
    "LDM": (1.45, 23.31), "LDM, guided": (1.45, 12.63),
}  # fmt: skip


def parameters_by_level(unet: nn.Module) -> dict[str, dict[str, float]]:
    """Return the millions of parameters of a U-Net of ours with four levels, by level and by what they do."""
    table: dict[str, dict[str, float]] = {stage: defaultdict(float) for stage in STAGES}
    for name, value in unet.named_parameters():
        stage = next((stage for stage in STAGES if name.startswith(f"{stage}.")), "ends")
        table[stage][next(kind for key, kind in KINDS.items() if key in name)] += value.numel() / 1e6
    return table


def order_figure(order: Sequence[int]) -> Figure:
    """Draw the place of each tensor in their list over its place in ours."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(4.6, 4.2))
        axes.plot(order, ".", markersize=3, color=COLORS["blue"])
        axes.plot([0, len(order)], [0, len(order)], color=COLORS["vermilion"], linewidth=1)
        axes.set(xlabel="place in our list", ylabel="place of the same tensor in theirs")
    return figure


def ladder_figure(ladders: Mapping[str, Mapping[str, float]], tolerance: float, title: str = "") -> Figure:
    """Draw differences by block, one line per name, over a logarithmic axis; 0 is drawn at LAST_BIT."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(9.6, 4))
        for k, (name, values) in enumerate(ladders.items()):
            heights = [max(value, LAST_BIT) for value in values.values()]
            marks: dict[str, Any] = {"marker": "os^vDx"[k % 6], "markersize": 3.5, "linewidth": 1.4}
            axes.plot(heights, ("-", "--", ":", "-.")[k % 4], label=name, **marks)
        names = list(next(iter(ladders.values())))
        axes.axhline(tolerance, color=COLORS["black"], linewidth=1)
        axes.text(1.01, tolerance, "tolerance", va="center", fontsize=9, transform=axes.get_yaxis_transform())
        axes.set(yscale="log", ylim=(LAST_BIT / 2, 10), ylabel="difference / scale", title=title)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.legend(fontsize=8, ncols=2)
    return figure


def stacked_figure(values: Mapping[str, Mapping[str, float]], unit: str, title: str = "") -> Figure:
    """Draw a horizontal bar for every name, cut into its named pieces."""
    kinds = list(dict.fromkeys(kind for pieces in values.values() for kind in pieces))
    hatches = ("", "//", "..", "xx", "\\\\", "--", "oo")
    with figure_style():
        figure, axes = plt.subplots(figsize=(9, 1.1 + 0.34 * len(values)))
        start = dict.fromkeys(values, 0.0)
        for k, kind in enumerate(kinds):
            widths = [pieces.get(kind, 0) for pieces in values.values()]
            color = list(COLORS.values())[k % 7]
            look: dict[str, Any] = {"color": color, "hatch": hatches[k % 7], "edgecolor": "white", "label": kind}
            axes.barh(list(values), widths, left=list(start.values()), **look)
            for name, width in zip(values, widths, strict=True):
                start[name] += width
        axes.invert_yaxis()
        axes.set(xlabel=unit, title=title, xlim=(0, 1.04 * max(start.values())))
        axes.grid(axis="y", visible=False)
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def maps_figure(sides: Sequence[int]) -> Figure:
    """Draw the float32 size of one self-attention map of SD v1 (8 heads) by the side of the picture, for each level."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(8, 3.2))
        for level, line in zip(range(3), ("o-", "s--", "^:"), strict=True):
            maps = [4 * 8 * ((side // 8 >> level) ** 2) ** 2 / 1e9 for side in sides]
            axes.plot(sides, maps, line, label=f"level {level}")
        axes.plot(sides, [4 * 4 * (side // 8) ** 2 / 1e9 for side in sides], "k-.", label="the latents themselves")
        axes.set(xlabel="side of the picture, pixels", ylabel="GB in float32", yscale="log", xscale="log")
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.minorticks_off()
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def traces_figure(works: Mapping[str, Work]) -> Figure:
    """Draw what is alive after each operation of several calls, beside each other."""
    with figure_style():
        figure, row = plt.subplots(1, len(works), figsize=(9.6, 3))
        for axes, (name, work) in zip(row, works.items(), strict=True):
            axes.fill_between(range(len(work.live_bytes)), [each / 1e6 for each in work.live_bytes], alpha=0.6)
            axes.set(title=name, xlabel="operation", ylabel="MB alive")
    return figure


def seconds_figure(predicted: Mapping[str, float], measured: Mapping[str, float]) -> Figure:
    """Draw predicted and measured seconds as pairs of marks on a logarithmic axis, on which a bar has no foot."""
    names = list(predicted)
    with figure_style():
        figure, axes = plt.subplots(figsize=(7, 2.6))
        for label, mark, values in (("predicted", "o", predicted), ("measured", "s", measured)):
            axes.plot([values[name] for name in names], range(len(names)), mark, markersize=8, label=label)
        for place, name in enumerate(names):
            for value, align in zip(sorted([predicted[name], measured[name]]), ("right", "left"), strict=True):
                axes.annotate(
                    f"{value:.2g} s", (value, place), (9 if align == "left" else -9, 0), textcoords="offset points",
                    ha=align, va="center", fontsize=9,
                )  # fmt: skip
        low, high = (pick([*predicted.values(), *measured.values()]) for pick in (min, max))
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="seconds", xscale="log", xlim=(low / 2.5, high * 2.5), ylim=(len(names) - 0.5, -0.5))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def coco_figure() -> Figure:
    """Draw FID over parameters of the models in COCO."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(6, 3.2))
        for name, (billions, fid) in COCO.items():
            latent = name.startswith("LDM")
            color, marker = (COLORS["vermilion"], "D") if latent else (COLORS["blue"], "o")
            axes.scatter(billions, fid, s=45, color=color, marker=marker)
            low = name == "Make-A-Scene"
            place: dict[str, Any] = {"va": "top", "ha": "right"} if low else {"va": "bottom", "ha": "left"}
            axes.annotate(f" {name} ", (billions, fid), fontsize=9, **place)
        limits: dict[str, Any] = {"xscale": "log", "xlim": (0.05, 14), "ylim": (8, 30)}
        axes.set(xlabel="parameters, billions", ylabel="FID, lower is better", **limits)
    return figure
