"""What lesson 05 shows with: its figures, and the small helpers behind its experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from ldm_tutor.config import UNetConfig
from ldm_tutor.nn.blocks import ResBlock
from ldm_tutor.plots.figures import COLORS, INK, bars, figure_style
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Float, Tensor

Module = TypeVar("Module", bound=nn.Module)
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (1, 1)), (0, (6, 2)))


def noise_like(x: Tensor, seed: int) -> Tensor:
    """Return standard normal noise of the shape of `x`, the same for the same seed."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def shuffled(module: Module) -> Module:
    """Give every weight a random value, also where training starts from zero, so that nothing hides behind a 0."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return module


def learn_to_wake(inputs: Float[Tensor, "t d"], wanted: Float[Tensor, " t"], num_steps: int = 400) -> Tensor:
    """Let two hidden layers of 64 learn `wanted` from `inputs`, one row per time; return what they answer, (t,)."""
    torch.manual_seed(0)
    layers = (nn.Linear(inputs.shape[1], 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    network, generator = nn.Sequential(*layers), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(num_steps):
        rows = torch.randint(len(inputs), (256,), generator=generator)
        loss = (network(inputs[rows])[:, 0] - wanted[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network(inputs)[:, 0].detach()


def plot(axes: Any, x: Sequence[float], curves: Mapping[str, Any], **labels: Any) -> None:
    """Draw named curves over `x`, told apart by colour and by line; `labels` go to the axes."""
    for (name, y), line in zip(curves.items(), _LINES, strict=False):
        axes.plot(x, y, linestyle=line, label=name)
    axes.set(**labels)
    axes.legend(fontsize=9)


def wave_table(waves: Float[Tensor, "t d"]) -> Figure:
    """Draw the time embedding: one column per time, one row per wave."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(6.4, 2.4))
        image = axes.imshow(waves.T.numpy(), aspect="auto", cmap="cividis", vmin=-1, vmax=1, interpolation="nearest")
        half = waves.shape[1] // 2
        axes.set(xlabel="t", yticks=[half / 2 - 0.5, 1.5 * half - 0.5], yticklabels=["cos", "sin"])
        axes.axhline(half - 0.5, color="white", linewidth=1.5)
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes)
    return figure


def by_time(losses: Mapping[int, Sequence[float]], times: Sequence[int], schedule: NoiseSchedule) -> Figure:
    """Draw the noise loss over t, by training steps, and beside it the signal-to-noise ratio of the repaired latents.

    An error in the noise is an error 1 / SNR times as large in the latents, whose spread is 1.
    """
    snr = schedule.signal_to_noise()[list(times)]
    with figure_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2))
        plot(left, times, {_steps(n): each for n, each in losses.items()}, xlabel="t", title="noise loss")
        decibels = {_steps(n): 10 * (snr / torch.tensor(each)).log10() for n, each in losses.items()}
        plot(right, times, decibels, xlabel="t", title="repaired latents, dB")
        left.get_legend().remove()
    return figure


def by_training(curves: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]]) -> Figure:
    """Draw what was measured over the training steps: a panel per aspect, a line per kind of weights."""
    titles = {"loss": "noise loss", "object": "pictures with the right kind", "all": "pictures all right"}
    with figure_style():
        figure, panels = plt.subplots(1, len(curves), figsize=(3.6 * len(curves), 3))
        for panel, (what, by_kind) in zip(panels, curves.items(), strict=True):
            for (kind, (steps, values)), line in zip(by_kind.items(), ("o-", "s--"), strict=True):
                panel.plot([max(each, 6) for each in steps], values, line, label={"ema": "EMA"}.get(kind, kind))
            panel.set(title=titles[what], xscale="log", xlabel="training steps", ylim=(0, 1.05))
            panel.set_xticks([6, *steps[1:]], ["0", *(f"{each:,}" for each in steps[1:])])
            panel.minorticks_off()
        panels[0].legend()
    return figure


def _steps(number: int) -> str:
    return f"{number:,} steps"


def u_diagram(config: UNetConfig, side: int) -> Figure:
    """Draw a U-Net of a configuration as a U: a box per level and way, its map's side and channels, and the skips."""
    levels = len(config.channel_mult)
    with figure_style():
        figure, axes = plt.subplots(figsize=(8.6, 0.95 * levels + 0.8))
        axes.set(xlim=(-0.3, 9.9), ylim=(-levels - 0.35, 0.45))
        axes.axis("off")
        places = {}
        for level, mult in enumerate(config.channel_mult):
            for way, x in (("down", 1.5 + 0.55 * level), ("up", 6.3 - 0.55 * level)):
                text = f"{side >> level} x {side >> level}, {config.channels * mult} channels"
                places[way, level] = _box(axes, x, -level, text, COLORS["sky"])
        bottom = f"middle: {side >> levels - 1} x {side >> levels - 1}, {config.channels * config.channel_mult[-1]}"
        places["mid", levels - 1] = _box(axes, 3.9, -levels, bottom, COLORS["orange"])
        for level in range(levels):
            (x1, y1), (x2, _) = places["down", level], places["up", level]
            kept = config.num_res_blocks + 1  # the first convolution or the halved map comes on top of the blocks
            _arrow(axes, (x1 + 0.95, y1), (x2 - 0.95, y1), dashed=True)
            axes.text((x1 + x2) / 2, y1 + 0.06, f"{kept} skips", ha="center", va="bottom", fontsize=9)
            if level + 1 < levels:
                _arrow(axes, (x1, y1 - 0.24), (places["down", level + 1][0], y1 - 0.76))
                _arrow(axes, (places["up", level + 1][0], y1 - 0.76), (x2, y1 - 0.24))
        _arrow(axes, (places["down", levels - 1][0], 1 - levels - 0.24), (3.5, -levels + 0.24))
        _arrow(axes, (4.3, -levels + 0.24), (places["up", levels - 1][0], 1 - levels - 0.24))
        _arrow(axes, (-0.25, 0), (0.55, 0))
        _arrow(axes, (7.25, 0), (8.05, 0))
        axes.text(-0.25, 0.1, "$x_t$", ha="left", va="bottom")
        axes.text(8.1, 0, "the noise it sees", ha="left", va="center")
        axes.text(5.0, -levels, "(t goes to every block)", ha="left", va="center", fontsize=9)
    return figure


def _box(axes: Any, x: float, y: float, text: str, color: str) -> tuple[float, float]:
    axes.add_patch(Rectangle((x - 0.95, y - 0.24), 1.9, 0.48, facecolor=color, alpha=0.35, edgecolor=INK))
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5)
    return x, y


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], dashed: bool = False) -> None:
    style = {"arrowstyle": "-|>", "color": INK, "linestyle": "--" if dashed else "-", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def parameter_bars(unet: nn.Module) -> tuple[Figure, dict[str, float]]:
    """Draw how many parameters each part of a U-Net has, and return shares of the whole by kind of layer.

    Works on the meta device. `widest levels`: the middle and all levels of the greatest width, both ways.
    """
    ways: Any = unet
    levels = len(ways.down)
    parts: dict[str, Any] = {f"down, level {k}": level for k, level in enumerate(ways.down)}
    parts |= {"middle": ways.mid} | {f"up, level {levels - 1 - k}": level for k, level in enumerate(ways.up)}
    counts = {name: count(part) for name, part in parts.items()}
    whole = count(unet)
    widths = {name: max(each.conv1.out_channels for each in _residual(part)) for name, part in parts.items()}
    shares = {
        "residual blocks": sum(count(each) for each in _residual(unet)) / whole,
        "attention": sum(count(each) for part in parts.values() for each in part.transformers) / whole,
        "widest levels": sum(counts[name] for name, width in widths.items() if width == max(widths.values())) / whole,
    }
    names = [f"{name} ({widths[name]:,} channels)" for name in counts]
    colors = ["blue"] * levels + ["orange"] + ["green"] * levels
    millions = [each / 1e6 for each in counts.values()]
    figure = bars(names, millions, form="{:,.0f}", unit="million", width=8, colors=colors)
    return figure, shares


def count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _residual(module: nn.Module) -> list[Any]:
    return [each for each in module.modules() if isinstance(each, ResBlock)]
