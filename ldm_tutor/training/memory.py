"""How much memory a training takes, counted before it starts, and a refusal where this machine has less.

For each weight it is known: itself, its gradient, two numbers of Adam, its running average. What backward needs of a
row is counted from fake tensors (`nn.work`), times BORROWED for what kernels and the allocator take beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from ldm_tutor.config import (
    AutoencoderConfig,
    ClipConfig,
    DiscriminatorConfig,
    JudgeConfig,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
    VQAutoencoderConfig,
)
from ldm_tutor.errors import ConfigError
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.discriminator import PatchDiscriminator
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.nn.work import work_of
from ldm_tutor.shapes import Tensor
from ldm_tutor.training.options import MOST_SCENES, TrainingOptions
from ldm_tutor.training.own_pictures import count_pictures
from ldm_tutor.training.presets import TrainingPreset
from ldm_tutor.training.stages.autoencoder import COURSE_CRITIC
from ldm_tutor.training.stages.clip import BATCH_SIZE as CLIP_BATCH

# Of the counted bytes of a row. Measured with one CPU thread on the preset `middle`: the process grew by 1.5 times the
# count in the denoiser's steps, by 1.6 times in the autoencoder's, whose critic takes part. No GPU was at hand.
BORROWED = 1.6
STAGES = ("autoencoder", "clip", "denoiser")  # whose memory is counted; the others are the same for every preset
PERCEPTUAL = JudgeConfig(channels=16)  # the network that compares pictures for the autoencoder


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a training takes on its device.

    `shared`: for the weights that learn: themselves, gradients, optimiser, average; a sharded team shares them out.
    `frozen`: of networks that stay as they are. `per_row`: for each row that is computed at once. `data`: pictures and
    latents, in main memory.
    """

    parameters: int
    shared: int
    frozen: int
    per_row: int
    data: int = 0

    def total(self, rows: int, processes: int = 1) -> int:
        """Return the bytes on the device with `rows` at once, in each of the `processes` that share the weights."""
        return self.frozen + self.shared // processes + rows * self.per_row

    def most_rows(self, free: float, processes: int = 1) -> int:
        """Return how many rows at once fit into `free` bytes; 0 where not even one does."""
        return max(0, int((free - self.total(0, processes)) // self.per_row))


def stage_need(
    preset: TrainingPreset, stage: str, dtype: torch.dtype, num_pictures: int = 0, *, own: bool = False
) -> Need:
    """Return what a stage of a preset takes (one of STAGES) with so many pictures in main memory, `own` or scenes."""
    model, paper = preset.model, preset.paper
    pictures = 2 * 3 * num_pictures * preset.side(stage) ** 2  # twice for a moment, when they are put together
    if stage == "autoencoder":
        critic = COURSE_CRITIC if paper is None else paper.critic
        averaged = paper is None or paper.coder.descent is None or paper.coder.descent.ema_decay is not None
        need = coder_need(model.autoencoder, critic, preset.side(stage), dtype, averaged=averaged)
        return dataclasses.replace(need, data=pictures)
    if stage == "clip" and isinstance(model, ModelConfig):
        data = pictures if own else 2 * pictures  # of scenes there are twins, as many
        return dataclasses.replace(clip_need(model.clip, dtype), data=data)
    text = model.clip.text if isinstance(model, ModelConfig) else None
    latents = 2 * 2 * 2 * num_pictures * math.prod(model.latent_shape)  # mean and log variance, 16 bits, twice
    kept = latents + (pictures if own else 0)  # scenes are drawn and encoded a few thousand at a time
    return dataclasses.replace(unet_need(model.unet, model.latent_shape[1], text, dtype), data=kept)


def unet_need(
    config: UNetConfig, side: int, text: TextEncoderConfig | None, dtype: torch.dtype, *, averaged: bool = True
) -> Need:
    """Return what training a U-Net on latents of side x side takes; the text encoder computes and is kept as it is."""

    def make() -> Callable[[], Any]:
        unet, latents, t = UNet(config), torch.randn(1, config.in_channels, side, side), torch.zeros(1)
        length = text.context_length if text is not None else 1
        context = None if config.context_dim is None else torch.randn(1, length, config.context_dim)
        return lambda: unet(latents, t, context)

    parameters = _count(lambda: UNet(config))
    frozen = 0 if text is None else dtype.itemsize * _count(lambda: TextEncoder(text))
    return _need(parameters, make, dtype, averaged=averaged, frozen=frozen)


def coder_need(
    config: AutoencoderConfig, critic: DiscriminatorConfig, side: int, dtype: torch.dtype, *, averaged: bool = True
) -> Need:
    """Return what training an autoencoder with its critic takes, on pictures of side x side."""

    def coder() -> Any:
        return VQAutoencoder(config) if isinstance(config, VQAutoencoderConfig) else Autoencoder(config)

    def make() -> Callable[[], Any]:
        network, patches, eye = coder(), PatchDiscriminator(critic), PerceptualDistance(Judge(PERCEPTUAL))
        real = torch.randn(1, config.picture_channels, side, side)

        def forward() -> Any:
            encoded = network.encode(real)
            made = network.decode(encoded if isinstance(encoded, Tensor) else encoded.mean)
            return made, eye(made, real), patches(made)

        return forward

    parameters = _count(coder) + _count(lambda: PatchDiscriminator(critic))
    return _need(parameters, make, dtype, averaged=averaged)


def clip_need(config: ClipConfig, dtype: torch.dtype) -> Need:
    """Return what training both towers takes."""

    def clip() -> Clip:
        return Clip(config, end_id=config.text.vocab_size - 1)

    def make() -> Callable[[], Any]:
        network, side, length = clip(), config.image.picture_size, config.text.context_length
        pictures, tokens = torch.randn(1, 3, side, side), torch.zeros(1, length, dtype=torch.long)
        return lambda: (network.image(pictures), network.text(tokens))

    return _need(_count(clip), make, dtype, averaged=True)


def _need(
    parameters: int, make: Callable[[], Callable[[], Any]], dtype: torch.dtype, *, averaged: bool, frozen: int = 0
) -> Need:
    fast = 0 if dtype == torch.float32 else dtype.itemsize  # the copy that computes
    weights = (4 + 8 + (4 if averaged else 0) + fast) * parameters
    gradients = (4 + fast) * parameters
    per_row = int(BORROWED * _held_for_backward(make, dtype))
    return Need(parameters=parameters, frozen=frozen, shared=weights + gradients, per_row=per_row)


def _held_for_backward(make: Callable[[], Callable[[], Any]], dtype: torch.dtype) -> int:
    """Return the bytes that live when the forward pass of one row has ended and backward still needs them."""

    def with_gradients() -> Callable[[], Any]:
        forward = make()

        def run() -> Any:
            with torch.enable_grad():
                return forward()

        return run

    return work_of(with_gradients, dtype).peak_bytes


def _count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


# ---------------------------------------------------------------- what there is


def free_bytes(device: torch.device) -> int:
    """Return what is free on a device now: of a GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_fits(
    need: Need, rows: int, device: torch.device, processes: int = 1, *, cure: Callable[[int], str] = lambda n: ""
) -> None:
    """Raise ConfigError where `need` is more than is free, with both figures and, from `cure`, what would fit.

    `cure` says what to ask for, so that the n rows that fit are computed at once; n is 0 where not one does.
    """
    gpu = device.type == "cuda"
    free, free_main = free_bytes(device), free_bytes(torch.device("cpu"))
    data = 0 if gpu else need.data
    if (wanted := need.total(rows, processes) + data) > free:
        most = need.most_rows(free - data, processes)
        least = f"one row alone takes {gigabytes(need.total(1, processes) + data)}; " if most == 0 else ""
        raise ConfigError(
            f"not enough memory on {device} for {rows} rows at once, {gigabytes(need.per_row)} each, and "
            f"{gigabytes(need.total(0, processes) + data)} whatever the batch: {gigabytes(wanted)}",
            given=f"{gigabytes(free)} free",
            fix=least + cure(most),
        )
    if gpu and need.data > free_main:
        raise ConfigError(
            f"not enough main memory: pictures and latents take {gigabytes(need.data)}",
            given=f"{gigabytes(free_main)} free",
            fix="learn from fewer pictures",
        )


def need_of(name: str, options: TrainingOptions, dtype: torch.dtype) -> Need:
    """Return what a stage of the options' preset takes, with as many pictures as they name."""
    assert options.preset is not None
    if options.data is not None:
        count = count_pictures(options.data)
    else:
        count = 0 if options.full_size else options.num_scenes
        count = count if name == "denoiser" else min(count, MOST_SCENES)
    return stage_need(options.preset, name, dtype, count, own=options.data is not None)


def rows_at_once(name: str, options: TrainingOptions) -> int:
    """Return how many rows of a batch a process computes at once."""
    if name == "autoencoder":
        return options.batch_size if options.full_size else options.course.coder.batch_size
    if name == "clip":
        return CLIP_BATCH
    pieces = options.team.pieces(options.batch_size, options.accumulate)
    return max(piece.stop - piece.start for piece in pieces)


def check_memory(name: str, options: TrainingOptions, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError where a stage of a preset takes more memory than there is; nothing has been read or drawn."""
    team = options.team

    def cure(most: int) -> str:
        if name == "clip":
            return "what fits: fewer --num-scenes, or fewer pictures"
        if most == 0:
            return "train a smaller --preset, on more memory, or share the weights out: accelerate launch --use_fsdp"
        if name == "denoiser":
            return f"what fits: --accumulate {-(-options.batch_size // (most * team.size))}, {most} rows at once"
        return (
            f"what fits: --batch {most}" if options.full_size else "what fits: a smaller --preset, fewer --num-scenes"
        )

    need, rows = need_of(name, options, dtype), rows_at_once(name, options)
    check_fits(need, rows, device, team.size if team.sharded else 1, cure=cure)


def gigabytes(num_bytes: float) -> str:
    """Return bytes as GB, two digits at least: 16.3 GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"
