"""The paper's study in miniature: one budget, spent in pixels, in patches of pixels, and in latents of f = 2 to 16.

Rombach et al. 2022, section 4.1. What is equal in all runs: the data and their sentences, the text encoder, the batch,
the learning rate, the noise schedule, the seeds, the seconds of one CPU thread, and (within 7%) the parameters of the
U-Net. What differs is the grid on which it works, and so its multiply-adds and the steps that fit into the seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from ldm_tutor.config import UNetConfig
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.dit import DiTConfig, make_denoiser
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.work import work_of
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Context, Latents, Pictures, Tensor, Tokens
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.stages.denoiser import NO_SPREAD, DenoiserStage, cache_moments

SIDE = 64
MANY = 10**9  # steps: the run ends by the clock


class Space(Protocol):
    """Where a model works: how pictures become what it sees, and how that becomes pictures again."""

    name: str
    shape: tuple[int, int, int]  # channels, height, width of one picture in this space
    scale_factor: float  # 1 / standard deviation of the training pictures here

    def moments(self, pictures: Tensor) -> Tensor:
        """Return mean and log variance of uint8 pictures, float16, as `DenoiserStage` takes them."""
        ...

    def to_pictures(self, latents: Latents) -> Pictures:
        """Return pictures clamped to [-1, 1] from scaled values of this space."""
        ...


class PixelSpace:
    """Pixels themselves (patch 1), or patches of patch x patch pixels, each of them one position with many channels."""

    def __init__(self, pictures: Tensor, patch: int = 1) -> None:
        if patch < 1 or pictures.shape[-1] % patch:
            raise ConfigError("PixelSpace: patch", given=patch, expected=f"a divisor of {pictures.shape[-1]}")
        self.name = "pixels" if patch == 1 else "patches"
        self.patch = patch
        side = pictures.shape[-1] // patch
        self.shape = (3 * patch * patch, side, side)
        self.scale_factor = 1 / float(to_float(pictures[:512]).std())

    def moments(self, pictures: Tensor) -> Tensor:
        """Return the pixels as means, and log variances that say: exactly these."""
        parts = []
        for chunk in pictures.split(512):
            mean = F.pixel_unshuffle(to_float(chunk), self.patch).half()
            parts.append(torch.cat([mean, torch.full_like(mean, NO_SPREAD)], dim=1))
        return torch.cat(parts)

    def to_pictures(self, latents: Latents) -> Pictures:
        """Return pictures clamped to [-1, 1] from scaled pixels or patches."""
        return F.pixel_shuffle(latents / self.scale_factor, self.patch).clamp(-1, 1)


class LatentSpace:
    """The latents of a frozen autoencoder."""

    def __init__(self, autoencoder: Autoencoder, side: int = SIDE) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        f = autoencoder.config.downsampling
        self.name = f"f{f}"
        self.shape = (autoencoder.config.latent_channels, side // f, side // f)
        self.scale_factor = autoencoder.config.scale_factor

    def moments(self, pictures: Tensor) -> Tensor:
        """Return the encoder's means and log variances."""
        return cache_moments(self.autoencoder, pictures, device=torch.device("cpu"), dtype=torch.float32)

    @torch.inference_mode()
    def to_pictures(self, latents: Latents) -> Pictures:
        """Return decoded pictures."""
        return self.autoencoder.to_pictures(latents)


def unet_for(shape: tuple[int, int, int], context_dim: int) -> UNetConfig:
    """Return the study's U-Net for a grid: finest levels come and go with the grid, the coarse part stays.

    A level of 32 and one of 48 channels at grids of at most 16 carry nearly all parameters; finer grids get levels of
    16 channels before them. Attention only at grids of at most 16.
    """
    channels, side, _ = shape
    finer = {64: (1, 1), 32: (1,), 16: (1,), 8: (), 4: ()}
    if side not in finer:
        raise ConfigError("unet_for: grid", given=side, expected=f"one of {sorted(finer)}")
    mult = (*finer[side], 2, 3)
    return UNetConfig(
        in_channels=channels,
        out_channels=channels,
        channels=16,
        channel_mult=mult,
        num_res_blocks=1,
        attention_levels=(len(mult) - 2, len(mult) - 1),
        num_heads=2,
        context_dim=context_dim,
        norm_groups=8,
    )


class StudyStage(DenoiserStage):
    """The course's own denoiser stage with a constant learning rate, so that every moment of a run is a fair end."""

    def train_step(self, generator: torch.Generator, progress: float) -> dict[str, float]:
        """Make one step; how far the run is makes no difference."""
        return super().train_step(generator, 0.0)


@dataclass(frozen=True)
class StudyData:
    """What all runs share: uint8 pictures, their sentences as tokens, the empty one, and the frozen text encoder."""

    pictures: Tensor
    tokens: Tensor
    empty: Tokens
    text_encoder: TextEncoder


def build_stage(
    space: Space,
    data: StudyData,
    *,
    batch_size: int = 32,
    seed: int = 0,
    kind: type[StudyStage] = StudyStage,
    config: UNetConfig | DiTConfig | None = None,
    balance_steps: bool = True,
) -> StudyStage:
    """Return a fresh run's stage, of another `kind` or with another network than `unet_for` where they are given.

    Warm-up is short: the slowest runs have some hundred steps in all.
    """
    torch.manual_seed(seed)
    stage = kind(
        unet_for(space.shape, data.text_encoder.config.width) if config is None else config,
        space.moments(data.pictures),
        space.scale_factor,
        data.text_encoder,
        data.tokens,
        data.empty,
        device=torch.device("cpu"),
        dtype=torch.float32,
        batch_size=batch_size,
        peak_lr=2e-3,
        balance_steps=balance_steps,
    )
    stage.learner.warmup = 50
    return stage


Look = Callable[[UNet], dict[str, Any]]


def run(
    stage: StudyStage,
    folder: Path,
    look: Look,
    at: Sequence[float],
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> Iterator[dict[str, Any]]:
    """Train and yield a row at each of the times `at` (seconds of this process's `clock`, looking not counted).

    A row has step, seconds, the mean noise loss since the row before, and what `look` says about the running average
    of the weights. A run whose checkpoint is in `folder` goes on from there.
    """
    notes: dict[str, Any] = {"spent": 0.0}
    for mark in sorted(at):
        losses: list[float] = []
        resume = (folder / f"{stage.name}.checkpoint").is_file()
        records = train(stage, Budget(steps=MANY), folder, seed=seed, resume=resume, save_every=math.inf, notes=notes)
        while not losses or notes["spent"] < mark:
            start = clock()
            record = next(records)
            notes["spent"] += clock() - start
            losses.append(record.values["loss"])
        records.close()  # type: ignore[attr-defined]  # a generator; it writes the checkpoint
        row = {"step": record.step, "seconds": round(notes["spent"], 2), "loss": sum(losses) / len(losses)}
        yield row | look(stage.learner.ema)


@torch.inference_mode()
def draw(
    unet: UNet,
    space: Space,
    context: Context,
    empty: Context,
    seeds: list[int],
    *,
    num_steps: int = 10,
    guidance: float = 3.0,
    batch_size: int = 32,
) -> Pictures:
    """Draw one picture per row of `context`; number i starts from the noise of seeds[i]."""
    schedule, made = NoiseSchedule(), []
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        denoiser = Guided(unet, context[part], empty, guidance)
        noise = PictureNoise(seeds[part]).initial(space.shape)
        *_, last = sample(denoiser, noise, schedule, sampler="dpm++", num_steps=num_steps)
        made.append(space.to_pictures(last.latents))
    return torch.cat(made)


# ---------------------------------------------------------------- what a model costs


@dataclass(frozen=True)
class Cost:
    """What one U-Net costs on its grid. Multiply-adds are counted for one picture, forward."""

    parameters: int
    multiply_adds: int
    training_bytes: int  # weights, optimiser, running average, and the most that one step holds on its way


def cost_of(config: UNetConfig | DiTConfig, side: int, *, batch_size: int = 32, tokens: int = 32) -> Cost:
    """Count what a U-Net, or a DiT, costs; nothing is run, and the numbers are the same on every machine."""

    def build(b: int) -> Callable[[], Tensor]:
        unet = make_denoiser(config)
        latents, t = torch.randn(b, config.in_channels, side, side), torch.full((b,), 500.0)
        context = None if config.context_dim is None else torch.randn(b, tokens, config.context_dim)
        return lambda: unet(latents, t, context)

    def training_step() -> Callable[[], None]:
        forward = build(batch_size)

        def step() -> None:
            with torch.enable_grad():
                forward().square().mean().backward()

        return step

    with torch.device("meta"):
        parameters = sum(each.numel() for each in make_denoiser(config).parameters())
    kept = 4 * 4 * parameters  # float32: weights, two moments of the optimiser, running average
    return Cost(parameters, work_of(lambda: build(1)).multiply_adds, kept + work_of(training_step).peak_bytes)


def seconds_side_by_side(
    jobs: dict[str, Callable[[], object]], repeats: int = 5, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Return the median seconds of each job, measured in turns, so that what disturbs one disturbs all."""
    for job in jobs.values():
        job()  # warms up
    seen: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = clock()
            job()
            seen[name].append(clock() - start)
    return {name: sorted(values)[len(values) // 2] for name, values in seen.items()}
