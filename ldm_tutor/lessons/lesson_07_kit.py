"""What lesson 07 needs beside its own code: catching a module's input, and the figures of its measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn

from ldm_tutor.errors import ConfigError
from ldm_tutor.plots.figures import figure_style
from ldm_tutor.shapes import Float, Tensor

NAMES = {"mean_auc": "mean AUC", "mean_iou": "mean best IoU", "pointing_accuracy": "pointing accuracy"}


def noise_like(x: Tensor, seed: int) -> Tensor:
    """Return standard normal noise of the shape of x, the same for the same seed."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def catch(module: nn.Module, run: Callable[[], Any]) -> tuple[Any, ...]:
    """Return what `module` is given, as positional inputs, the first time that it is called while `run()` works."""
    caught: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, given: caught.append(given))
    try:
        with torch.inference_mode():
            run()
    finally:
        handle.remove()
    if not caught:
        raise ConfigError("catch: the module was not called", given=type(module).__name__)
    return caught[0]


def short(layer: str) -> str:
    """Return a layer's name without what all of them share: `up.1.block0`."""
    return layer.removesuffix(".layer0.cross")


def token_table(probs: Float[Tensor, "n m"], labels: Sequence[str]) -> Figure:
    """Draw an attention map, tokens down, positions across."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(7.2, 4.2))
        image = axes.imshow(probs.T[: len(labels)].cpu(), cmap="cividis", aspect="auto")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="position, row by row of the feature map", title="what each position looks at")
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label="weight")
    return figure


def controls_figure(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the three figures of several reports of `Tally` beside each other, with their intervals."""
    with figure_style():
        figure, row = plt.subplots(1, 3, figsize=(10, 2.9))
        for axes, (name, title) in zip(row, NAMES.items(), strict=True):
            for k, each in enumerate(reports.values()):
                value, (low, high) = each[name]["value"], each[name]["interval"]
                axes.bar(k, value, yerr=[[value - low], [high - value]], capsize=4)
            axes.set(title=title, ylim=(0, 1.05))
            axes.set_xticks(range(len(reports)), list(reports), rotation=30, ha="right")
        row[0].axhline(0.5, color="0.4", linestyle="--", linewidth=1)
    return figure


def layers_figure(aucs: Float[Tensor, "case time layer head"], layers: Sequence[str], times: Sequence[int]) -> Figure:
    """Draw mean AUC by layer and head, and over t: all single maps, the best layer and the worst."""
    table, curves = aucs.mean(dim=(0, 1)), aucs.mean(dim=(0, 3))  # layer head; time layer
    order = table.mean(dim=1)
    with figure_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=[1.25, 1])
        image = left.imshow(table, cmap="cividis", vmin=0.3, vmax=1, aspect="auto")
        left.set_yticks(range(len(layers)), [short(name) for name in layers])
        left.set(xlabel="head", title="mean AUC", xticks=range(table.shape[1]))
        left.grid(visible=False)
        figure.colorbar(image, ax=left)
        for number, line in ((int(order.argmax()), "o-"), (int(order.argmin()), "s--")):
            right.plot(times, curves[:, number], line, label=short(layers[number]))
        right.plot(times, curves.mean(dim=1), "^:", label="mean of all")
        right.axhline(0.5, color="0.4", linestyle="--", linewidth=1)
        right.set(xlabel="t", ylabel="AUC of single maps", ylim=(0.3, 1.02))
        right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
    return figure
