"""The bill: how the paper's models were trained, what work that is, and how many GPU-days it comes to.

Work is counted, from fake tensors, as multiply-adds. Days follow from a rate: one that was measured, or a GPU's peak
times a *utilisation*, the share of the peak that a training reaches. That share is an assumption, and shown as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ldm_tutor.config import AutoencoderConfig, BertEncoderConfig, TextEncoderConfig, UNetConfig, sd_v1
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.nn.work import work_of
from ldm_tutor.presets import churches256, text2img_1p4b, unconditional256
from ldm_tutor.training.learner import scaled_lr

DAY = 86_400.0
BACKWARD = 3  # forward, and backward with twice its work: gradients of inputs and of weights
V100_PER_A100 = 2.2  # by how much the paper takes an A100-day for more than a V100-day (table 18)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU by its data sheet: 16-bit multiply-adds per second at its peak, and watts. Two operations each."""

    name: str
    peak: float
    watts: float
    gigabytes: int


GPUS = {
    "V100": Gpu(name="V100", peak=125e12 / 2, watts=300, gigabytes=32),
    "A100": Gpu(name="A100", peak=312e12 / 2, watts=400, gigabytes=80),
    "H100": Gpu(name="H100", peak=989e12 / 2, watts=700, gigabytes=80),
}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run: this many steps on pictures with this side, in pixels."""

    steps: int
    side: int


@dataclass(frozen=True, kw_only=True)
class PaperRun:
    """How a published denoiser was trained. `batch_size` is of all GPUs together; `base_lr` is times the batch, or 0.

    `reported_days`: what the source says it took, on `reported_on`; None where it says nothing.
    """

    name: str
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    text: TextEncoderConfig | BertEncoderConfig | None = None  # CLIP's is frozen, BERT is trained along
    batch_size: int
    lr: float
    base_lr: float = 0.0
    warmup: int = 0
    ema_decay: float = 0.9999
    phases: tuple[Phase, ...]
    reported_days: float | None = None
    reported_on: str = "V100"
    source: str

    def __post_init__(self) -> None:
        by_rule = scaled_lr(self.base_lr, self.batch_size, 1, "linear")
        if self.base_lr and abs(by_rule - self.lr) > 0.01 * self.lr:
            raise ConfigError(f"PaperRun {self.name}: lr", given=self.lr, expected=f"{by_rule:g} = base_lr * batch")

    @property
    def num_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def num_pictures(self) -> int:
        """Pictures that the run looks at, each time counted."""
        return self.num_steps * self.batch_size


@cache
def paper_runs() -> dict[str, PaperRun]:
    """Return the published runs whose batch, learning rate and steps are known."""
    faces, church, words, diffusion = unconditional256(), churches256(), text2img_1p4b(), sd_v1()
    faces_parts: dict[str, Any] = {"unet": faces.unet, "autoencoder": faces.autoencoder}
    runs = (
        PaperRun(
            name="CelebA-HQ, LDM-4", **faces_parts, batch_size=48, lr=9.6e-5, base_lr=2e-6,
            phases=(Phase(steps=410_000, side=256),), reported_days=14.4, source="Rombach et al. 2022, tables 12, 18",
        ),
        PaperRun(
            name="FFHQ, LDM-4", **faces_parts, batch_size=42, lr=8.4e-5, base_lr=2e-6,
            phases=(Phase(steps=635_000, side=256),), reported_days=26, source="Rombach et al. 2022, tables 12, 18",
        ),
        PaperRun(
            name="LSUN-churches, LDM-8", unet=church.unet, autoencoder=church.autoencoder, batch_size=96, lr=5e-5,
            warmup=10_000, phases=(Phase(steps=500_000, side=256),), reported_days=18,
            source="Rombach et al. 2022, tables 12, 18",
        ),
        PaperRun(
            name="text to image, 1.45B", unet=words.unet, autoencoder=words.autoencoder,
            text=words.condition if isinstance(words.condition, BertEncoderConfig) else None,
            batch_size=680, lr=1e-4, phases=(Phase(steps=390_000, side=256),),
            source="Rombach et al. 2022, table 15",
        ),
        PaperRun(
            name="Stable Diffusion v1-4", unet=diffusion.unet, autoencoder=diffusion.autoencoder,
            text=diffusion.clip.text, batch_size=2048, lr=1e-4,
            warmup=10_000,
            phases=(Phase(steps=237_000, side=256), Phase(steps=194_000 + 515_000 + 225_000, side=512)),
            reported_days=150_000 / 24, reported_on="A100", source="CompVis/stable-diffusion, model card",
        ),
    )  # fmt: skip
    return {run.name: run for run in runs}


def find_run(name: str) -> PaperRun:
    """Return a published run by its name; ConfigError lists them."""
    if name not in paper_runs():
        raise ConfigError("unknown run", given=name, expected=f"one of {list(paper_runs())}")
    return paper_runs()[name]


# ---------------------------------------------------------------- work


@dataclass(frozen=True)
class PictureWork:
    """Multiply-adds of one picture's training step: what is trained, forward and backward; what is frozen, forward."""

    unet: int
    encoder: int  # of the autoencoder
    text: int

    def total(self, cached: bool) -> int:
        """All of it; with `cached` latents the autoencoder has done its part before, once, and is not counted."""
        return self.unet + self.text + (0 if cached else self.encoder)


@cache
def picture_work(name: str, side: int) -> PictureWork:
    """Count one picture's share of a training step of a published run, at a side in pixels."""
    run = find_run(name)
    f = run.autoencoder.downsampling

    def denoise() -> Callable[[], Any]:
        unet, latents = UNet(run.unet), torch.empty(1, run.unet.in_channels, side // f, side // f)
        length = run.text.context_length if run.text is not None else 1
        context = torch.empty(1, length, run.unet.context_dim) if run.unet.context_dim else None
        return lambda: unet(latents, torch.empty(1), context)

    def encode() -> Callable[[], Any]:
        plain = type(run.autoencoder) is AutoencoderConfig
        autoencoder: Any = Autoencoder(run.autoencoder) if plain else VQAutoencoder(run.autoencoder)  # type: ignore[arg-type]
        picture = torch.empty(1, 3, side, side)
        return lambda: autoencoder.encode(picture)

    def read() -> Callable[[], Any]:
        if run.text is None:
            return lambda: None
        encoder = BertEncoder(run.text) if isinstance(run.text, BertEncoderConfig) else TextEncoder(run.text)
        tokens = torch.zeros(1, run.text.context_length, dtype=torch.long)
        return lambda: encoder(tokens)

    unet, encoder, text = (work_of(make).multiply_adds for make in (denoise, encode, read))
    return PictureWork(BACKWARD * unet, encoder, text * (BACKWARD if isinstance(run.text, BertEncoderConfig) else 1))


def run_work(name: str, cached: bool = False) -> float:
    """Return the multiply-adds of a whole published run."""
    run = find_run(name)
    return float(
        sum(picture_work(name, phase.side).total(cached) * phase.steps * run.batch_size for phase in run.phases)
    )


# ---------------------------------------------------------------- days


@dataclass(frozen=True)
class Bill:
    """What a run comes to: days of one GPU, days on the wall with all of them, and energy of the GPUs alone."""

    gpu_days: float
    wall_days: float
    kilowatt_hours: float


def bill(name: str, gpu: str, utilisation: float, num_gpus: int = 1, cached: bool = False) -> Bill:
    """Return the bill of a published run at a stated share (above 0, up to 1) of a GPU's 16-bit peak.

    It takes the GPUs to share the work without loss, and to draw their full power: the one flatters, the other does
    the opposite.
    """
    if gpu not in GPUS:
        raise ConfigError("bill: unknown GPU", given=gpu, expected=f"one of {list(GPUS)}")
    if not 0 < utilisation <= 1:
        raise ConfigError("bill: utilisation", given=utilisation, expected="above 0, at most 1")
    if num_gpus < 1:
        raise ConfigError("bill: num_gpus", given=num_gpus, expected="1 or more")
    days = run_work(name, cached) / (GPUS[gpu].peak * utilisation) / DAY
    return Bill(days, days / num_gpus, days * 24 * GPUS[gpu].watts / 1000)


def days_at(name: str, pictures_per_second: float) -> float:
    """Return the days that a published run takes at a measured rate of training."""
    if not 0 < pictures_per_second < float("inf"):
        raise ConfigError("days_at: pictures per second", given=pictures_per_second, expected="a positive number")
    return find_run(name).num_pictures / pictures_per_second / DAY


def implied_utilisation(name: str, cached: bool = False) -> float:
    """Return which share of the 16-bit peak of the GPU in question the reported days come to."""
    run = find_run(name)
    if run.reported_days is None:
        raise ConfigError(f"{name}: its source reports no days")
    return run_work(name, cached) / (GPUS[run.reported_on].peak * run.reported_days * DAY)


def parameters_of(name: str) -> int:
    """Return the number of the U-Net's parameters in a published run."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(find_run(name).unet).parameters())


def kept_bytes(name: str, num_gpus: int = 1, sharded: bool = False) -> float:
    """Return the bytes that each GPU keeps all the time: float32 weight, gradient, two of Adam, running average."""
    return 5 * 4 * parameters_of(name) / (num_gpus if sharded else 1)
