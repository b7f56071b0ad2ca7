"""The patients of lesson 15: the shipped model, each with one fault planted into it, as users really make them.

Nothing here raises, and no shape is wrong. `admit("healthy")` and `admit("A")` to `admit("E")` are examined in the
lesson, "X", "Y" and "Z" in its exercises. `FAULTS` says in words what can be wrong; `fault_of` who has what.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ldm_tutor.config import sd_v1
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import Attention, Call, current_call
from ldm_tutor.nn.blocks import ResBlock
from ldm_tutor.pipeline import Pipeline, load_pipeline
from ldm_tutor.plots.figures import COLORS, figure_style
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Context, Latents, Pictures, Tensor

FOREIGN_SCALE = sd_v1().autoencoder.scale_factor  # 0.18215
Denoiser = Callable[[Latents, int, int], Latents]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A latent diffusion model as its user has put it together; what an instrument may ask of it.

    `prepare`: what is done to a picture, in [-1, 1], before the autoencoder sees it. `rows`: in which order the
    sentences of a batch reach the U-Net. `swapped`: whether guidance takes its two answers the wrong way round.
    `reads_x0`: whether the sampler takes what the U-Net says for clean latents.
    """

    unet: UNet
    autoencoder: Autoencoder
    pipeline: Pipeline
    schedule: NoiseSchedule
    scale_factor: float
    prepare: Callable[[Pictures], Pictures] = lambda pictures: pictures
    rows: Callable[[int], Sequence[int]] = range
    swapped: bool = False
    reads_x0: bool = False

    @torch.inference_mode()
    def encode(self, pictures: Pictures) -> Latents:
        """Return the scaled latents of pictures, without the draw."""
        return self.scale_factor * self.autoencoder.encode(self.prepare(pictures)).mode()

    @torch.inference_mode()
    def decode(self, latents: Latents) -> Pictures:
        """Return the pictures of scaled latents."""
        return self.autoencoder.decode(latents / self.scale_factor).clamp(-1, 1)

    def embed(self, sentences: Sequence[str]) -> Context:
        """Return the vectors of the sentences, one row for each picture."""
        return self.pipeline.embed([sentences[k] for k in self.rows(len(sentences))])

    @torch.inference_mode()
    def noise_in(self, x_t: Latents, t: int, context: Context) -> Latents:
        """Return the noise that the U-Net sees in latents which all have the time step t."""
        return self.unet(x_t, torch.full((len(x_t),), float(t)), context)

    def denoiser(self, context: Context, scale: float) -> Denoiser:
        """Return the guided denoiser that `sample` takes."""
        empty = self.pipeline.embed([""])
        guided = Guided(self.unet, context, empty, 1 - scale if self.swapped else scale)
        return torch.inference_mode()(guided.__call__)

    def walk(self, denoiser: Denoiser, seeds: Sequence[int], num_steps: int = 10) -> Latents:
        """Walk from the noise of these seeds to scaled latents, by what `denoiser` sees; with DDPM, as the pipeline."""
        noise = PictureNoise(seeds)
        start = noise.initial(self.pipeline.config.latent_shape)

        def read(x: Latents, t: int, step: int) -> Latents:
            answer, a = denoiser(x, t, step), float(self.schedule.alpha_bar[t])
            return (x - a**0.5 * answer) / (1 - a) ** 0.5 if self.reads_x0 else answer

        with torch.inference_mode():
            *_, state = sample(read, start, self.schedule, sampler="ddpm", num_steps=num_steps, noise=noise)
        return state.latents

    def draw(self, sentences: Sequence[str], seeds: Sequence[int], scale: float = 2) -> Pictures:
        """Draw a picture for each sentence and seed, in ten steps of DDPM."""
        return self.decode(self.walk(self.denoiser(self.embed(sentences), scale), seeds))


class _WrongAxis(Attention):
    """Attention whose softmax runs over the positions that ask, in place of the words that answer."""

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        context = x if context is None else context
        q, k, v = (self._split(each) for each in (self.to_q(x), self.to_k(context), self.to_v(context)))
        probs = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-2)
        if self.tap is not None and self.site is not None and grid is not None:
            self.tap(Call(self.site, grid, current_call()), probs)
        return self.to_out((probs @ v).transpose(1, 2).flatten(2))


def _without_time(pipeline: Pipeline) -> dict[str, Any]:
    unet = copy.deepcopy(pipeline.unet)
    for block in unet.modules():
        if isinstance(block, ResBlock) and block.time_proj is not None:
            for parameter in block.time_proj.parameters():
                parameter.data.zero_()
    return {"unet": unet}


def _wrong_axis(pipeline: Pipeline) -> dict[str, Any]:
    unet = copy.deepcopy(pipeline.unet)
    for site, layer in unet.attention_layers():
        if site.kind == "cross":
            layer.__class__ = _WrongAxis
    return {"unet": unet}


def _other_schedule(pipeline: Pipeline) -> dict[str, Any]:
    config = pipeline.schedule.config
    return {"schedule": NoiseSchedule(dataclasses.replace(config, kind="linear"))}


def _dark_pictures(_: Pipeline) -> dict[str, Any]:
    return {"prepare": lambda pictures: (pictures + 1) / 2}


def _next_sentence(_: Pipeline) -> dict[str, Any]:
    return {"rows": lambda num: [*range(1, num), 0]}


FAULTS: Mapping[str, tuple[str, Callable[[Pipeline], dict[str, Any]]]] = {
    "scale": ("the scale factor of another model", lambda _: {"scale_factor": FOREIGN_SCALE}),
    "time": ("no time reaches the blocks of the U-Net", _without_time),
    "swapped": ("guidance with its two answers swapped", lambda _: {"swapped": True}),
    "axis": ("cross-attention with its softmax over the wrong axis", _wrong_axis),
    "answer": ("the U-Net's noise is read as clean latents", lambda _: {"reads_x0": True}),
    "sentence": ("every picture gets its neighbour's sentence", _next_sentence),
    "schedule": ("another noise schedule than in training", _other_schedule),
    "pixels": ("pixels from 0 to 1 where the autoencoder expects -1 to 1", _dark_pictures),
}
_SICK = ("time", "scale", "axis", "swapped", "answer", "schedule", "sentence", "pixels")
_WHO = dict(zip("ABCDEXYZ", _SICK, strict=True))


def fault_of(name: str) -> str:
    """Return which of FAULTS a patient has."""
    if name not in _WHO:
        raise ConfigError("no such patient", given=name, expected=f"one of {['healthy', *_WHO]}")
    return _WHO[name]


@lru_cache(maxsize=1)
def _shipped() -> Pipeline:
    return load_pipeline()


def admit(name: str) -> Patient:
    """Return a patient by its name; ConfigError names those that there are."""
    pipeline = _shipped()
    healthy = Patient(
        unet=pipeline.unet,
        autoencoder=pipeline.autoencoder,
        pipeline=pipeline,
        schedule=pipeline.schedule,
        scale_factor=pipeline.autoencoder.config.scale_factor,
    )
    if name == "healthy":
        return healthy
    return dataclasses.replace(healthy, **FAULTS[fault_of(name)][1](pipeline))


def with_scale(patient: Patient, scale_factor: float) -> Patient:
    """Return the same patient with another scale factor."""
    return dataclasses.replace(patient, scale_factor=scale_factor)


def chart(readings: Mapping[str, Mapping[str, float]], alarms: Mapping[str, Mapping[str, bool]]) -> Figure:
    """Return a table of readings, patients downwards and instruments across; where there is an alarm, a dark field."""
    patients, instruments = list(readings), list(next(iter(readings.values())))
    fields = [[float(alarms[patient][each]) for each in instruments] for patient in patients]
    with figure_style():
        figure, axes = plt.subplots(figsize=(1.25 * len(instruments) + 1.2, 0.45 * len(patients) + 0.8))
        axes.imshow(fields, cmap=ListedColormap(["#F4F4F0", COLORS["vermilion"]]), vmin=0, vmax=1, aspect="auto")
        for row, patient in enumerate(patients):
            for column, each in enumerate(instruments):
                alarm = alarms[patient][each]
                text = f"{readings[patient][each]:.2f}" + (" !" if alarm else "")
                axes.text(column, row, text, ha="center", va="center", weight="bold" if alarm else "normal",
                          color="white" if alarm else "#222222")  # fmt: skip
        axes.set_xticks(range(len(instruments)), [each.replace("_", "\n") for each in instruments])
        axes.set_yticks(range(len(patients)), patients)
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure
