"""What a model costs before you have it: parameters, memory, multiply-adds and time, and a widget to explore them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn

from ldm_tutor.config import BertEncoderConfig, ModelConfig, TextEncoderConfig, scenes, sd_v1
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.work import Work, work_of
from ldm_tutor.plots.figures import COLORS, check_alt, figure_style
from ldm_tutor.presets import PaperModel, text2img_1p4b
from ldm_tutor.widgets.live import LiveFigure, make_control

MODELS: dict[str, Callable[[], ModelConfig | PaperModel]] = {
    "scenes": scenes,
    "SD v1": sd_v1,
    "text2img 1.45B": text2img_1p4b,
}
NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIDES = (256, 384, 512, 640, 768, 1024)  # pixels
PARTS = ("text encoder", "U-Net", "autoencoder")
NUM_STEPS = 50


@dataclass(frozen=True)
class Budget:
    """What drawing costs, by part (see PARTS). Nothing of it is measured: it is counted from fake tensors.

    `working_bytes`: the most that one call of a part holds beside the weights, in numbers of the weights' type.
    `multiply_adds`: of one call of the text encoder and of the decoder, and of one step of the U-Net, guided (two rows
    per picture). `map_bytes`: the largest attention map of the U-Net, all heads and rows, if a kernel wrote it down.
    """

    parameters: dict[str, int]
    weight_bytes: dict[str, int]
    working_bytes: dict[str, int]
    multiply_adds: dict[str, int]
    map_bytes: int

    @property
    def peak_bytes(self) -> int:
        """All weights together, and the most that one part needs while it works."""
        return sum(self.weight_bytes.values()) + max(self.working_bytes.values())

    def total_multiply_adds(self, num_steps: int = NUM_STEPS) -> int:
        """Those of a whole drawing of `num_steps` steps."""
        return sum(count * (num_steps if part == "U-Net" else 1) for part, count in self.multiply_adds.items())


@cache
def budget(model: str, numbers: str = "float32", height: int = 512, width: int = 512, batch: int = 1) -> Budget:
    """Return the budget of drawing `batch` guided pictures of height x width pixels with one of MODELS.

    `numbers`: the type of weights and working numbers, one of NUMBERS. ConfigError for a size that the networks cannot
    have, and for unknown names.
    """
    for what, given, known in (("model", model, MODELS), ("numbers", numbers, NUMBERS)):
        if given not in known:
            raise ConfigError(f"budget: unknown {what}", given=given, expected=f"one of {list(known)}")
    if not isinstance(batch, int) or batch < 1:
        raise ConfigError("budget: batch", given=batch, expected="1 or more pictures")
    config = MODELS[model]()
    factor = config.autoencoder.downsampling * 2 ** (len(config.unet.channel_mult) - 1)
    if min(height, width) < factor or height % factor or width % factor:
        raise ConfigError("budget: picture size", given=(height, width), expected=f"multiples of {factor}")
    works = {part: work_of_part(model, part, height, width) for part in PARTS}
    rows = {"text encoder": batch + 1, "U-Net": 2 * batch, "autoencoder": batch}
    parameters = {part: _parameters(model, part) for part in PARTS}
    size = NUMBERS[numbers].itemsize
    return Budget(
        parameters=parameters,
        weight_bytes={part: size * number for part, number in parameters.items()},
        working_bytes={part: rows[part] * work.peak_bytes * size // 4 for part, work in works.items()},
        multiply_adds={part: rows[part] * work.multiply_adds for part, work in works.items()},
        map_bytes=2 * batch * size * _map_numbers(config, height, width),
    )


@cache
def work_of_part(model: str, part: str, height: int, width: int) -> Work:
    """Return the work of one float32 call of a part (PARTS) of one of MODELS, for one picture of height x width pixels.

    Of the text encoder: one sentence; of the U-Net: one row; of the autoencoder: decoding.
    """
    config = MODELS[model]()
    f, text = config.autoencoder.downsampling, _text_config(config)

    def encode() -> Callable[[], Any]:
        encoder, tokens = _text_encoder(text), torch.zeros(1, text.context_length, dtype=torch.long)
        return lambda: encoder(tokens)

    def denoise() -> Callable[[], Any]:
        unet, context = UNet(config.unet), torch.empty(1, text.context_length, text.width)
        latents = torch.empty(1, config.unet.in_channels, height // f, width // f)
        return lambda: unet(latents, torch.empty(1), context)

    def decode() -> Callable[[], Any]:
        autoencoder = Autoencoder(config.autoencoder)
        latents = torch.empty(1, config.autoencoder.latent_channels, height // f, width // f)
        return lambda: autoencoder.decode(latents)

    return work_of({"text encoder": encode, "U-Net": denoise, "autoencoder": decode}[part])


@cache
def _parameters(model: str, part: str) -> int:
    config = MODELS[model]()
    with torch.device("meta"):
        if part == "text encoder":
            network: nn.Module = _text_encoder(_text_config(config))
        else:
            network = UNet(config.unet) if part == "U-Net" else Autoencoder(config.autoencoder)
    return sum(parameter.numel() for parameter in network.parameters())


def _text_config(config: ModelConfig | PaperModel) -> TextEncoderConfig | BertEncoderConfig:
    found = config.clip.text if isinstance(config, ModelConfig) else config.condition
    if not isinstance(found, (TextEncoderConfig, BertEncoderConfig)):
        raise ConfigError("budget: a model without a text encoder", given=config.name)
    return found


def _text_encoder(config: TextEncoderConfig | BertEncoderConfig) -> nn.Module:
    return TextEncoder(config) if isinstance(config, TextEncoderConfig) else BertEncoder(config)


def _map_numbers(config: ModelConfig | PaperModel, height: int, width: int) -> int:
    """Numbers of the largest self-attention map, one row of the batch: heads x positions x positions."""
    unet, f = config.unet, config.autoencoder.downsampling
    level = min(unet.attention_levels, default=len(unet.channel_mult) - 1)
    positions = (height // f // 2**level) * (width // f // 2**level)
    return unet.heads_at(unet.channels * unet.channel_mult[level]) * positions**2


# ---------------------------------------------------------------- the widget


class BudgetExplorer:
    """Draws and tells the budget for a machine that does `rate` multiply-adds in a second."""

    def __init__(self, rate: float) -> None:
        if not 0 < rate < float("inf"):
            raise ConfigError("BudgetExplorer: rate", given=rate, expected="multiply-adds in a second, above 0")
        self.rate = float(rate)

    def caption(self, model: str, numbers: str, side: int, batch: int) -> str:
        """Say in words what the figure shows."""
        found = budget(model, numbers, side, side, batch)
        work = found.total_multiply_adds()
        return (
            f"{model}, {numbers}, {batch} of {side} x {side} pixels: {sum(found.parameters.values()):,} parameters, "
            f"{gigabytes(found.peak_bytes)} at the peak ({gigabytes(sum(found.weight_bytes.values()))} of weights), "
            f"{work / 1e12:,.2f}e12 multiply-adds in {NUM_STEPS} guided steps: about {duration(work / self.rate)} at "
            f"{self.rate / 1e9:,.0f}e9 a second. The largest attention map, written down: "
            f"{gigabytes(found.map_bytes)}."
        )

    def draw(self, model: str, numbers: str, side: int, batch: int) -> Figure:
        """Draw parameters, memory and multiply-adds by part."""
        found = budget(model, numbers, side, side, batch)
        shades = dict(zip(PARTS, (COLORS["orange"], COLORS["blue"], COLORS["green"]), strict=True))
        with figure_style():
            figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.9), width_ratios=[1, 1.2, 1])
            _columns(left, {part: found.parameters[part] / 1e6 for part in PARTS}, shades, "million parameters")
            work = {part: found.multiply_adds[part] * (NUM_STEPS if part == "U-Net" else 1) / 1e12 for part in PARTS}
            _columns(right, work, shades, f"1e12 multiply-adds, {NUM_STEPS} steps")
            base = 0.0
            for part in PARTS:
                middle.barh("weights", found.weight_bytes[part] / 1e9, left=base, color=shades[part], label=part)
                base += found.weight_bytes[part] / 1e9
                middle.barh(f"{part} at work", found.working_bytes[part] / 1e9, color=shades[part], alpha=0.6)
            middle.barh("largest map", found.map_bytes / 1e9, color="white", edgecolor=COLORS["vermilion"], hatch="//")
            middle.invert_yaxis()
            middle.set(xlabel="GB", title=f"{gigabytes(found.peak_bytes)} at the peak")
            middle.grid(axis="y", visible=False)
        return figure


def _columns(axes: Any, values: dict[str, float], shades: dict[str, str], title: str) -> None:
    names = [part.replace(" ", "\n") for part in values]
    axes.bar(names, list(values.values()), color=[shades[part] for part in values])
    for place, value in enumerate(values.values()):
        axes.text(place, value, f"{value:,.3g}", ha="center", va="bottom", fontsize=9)
    axes.set(title=title, ylim=(0, 1.15 * max(values.values())))
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", labelsize=9)


def budget_explorer(rate: float, alt: str, model: str = "SD v1", side: int = 512) -> None:
    """Show the budget with a choice of model, numbers, picture size and batch; `rate`: see BudgetExplorer."""
    check_alt(alt)
    explorer = BudgetExplorer(rate)
    controls: dict[str, list[Any]] = {"model": list(MODELS), "numbers": list(NUMBERS), "side": list(SIDES)}
    widgets = {name: make_control(name, control) for name, control in controls.items()}
    for name, value in (("model", model), ("side", side)):
        if value not in controls[name]:
            raise ConfigError(f"budget_explorer: {name}", given=value, expected=f"one of {controls[name]}")
        widgets[name].value = value
    widgets["batch"] = make_control("batch", (1, 8, 1))
    LiveFigure(explorer.draw, alt, explorer.caption, widgets).show()


def gigabytes(num_bytes: float) -> str:
    """Return bytes as text, in GB (1e9 bytes) or, below a tenth of one, in MB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Return seconds as text, in the unit that fits."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
