"""How fast is this machine? A few training steps and one picture, and what they say about the lessons."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BATCH, NUM_STEPS = 64, 4  # training steps measured, after one that warms up
DRAWING_STEPS = 20


@dataclass(frozen=True)
class Speed:
    """Pictures per second that the scenes U-Net trains on, and seconds to draw one picture in 20 steps."""

    trained: float
    drawn: float


# What `ldm-tutor doctor` says on the machine on which the lessons' seconds were taken (Intel Xeon, 2 processors).
# Provisional: taken with OMP_NUM_THREADS=1 while a training ran beside it; take it again on two quiet cores.
REFERENCE = Speed(trained=60.0, drawn=1.08)


def measure(device: torch.device, dtype: torch.dtype) -> Speed:
    """Train and draw with fresh weights, whose numbers take as long as those of trained ones; about ten seconds."""
    return Speed(trained=BATCH / _training_step(device, dtype), drawn=_picture(device))


def slowdown(here: Speed, reference: Speed = REFERENCE) -> float:
    """Return how many times longer than on the reference machine a lesson takes, which both trains and draws."""
    return ((reference.trained / here.trained) * (here.drawn / reference.drawn)) ** 0.5


def _training_step(device: torch.device, dtype: torch.dtype) -> float:
    import torch

    from ldm_tutor.config import scenes
    from ldm_tutor.losses.denoising import noise_loss
    from ldm_tutor.models.unet import UNet
    from ldm_tutor.training.learner import Learner

    model = scenes()
    learner = Learner(UNet(model.unet), peak_lr=1e-3, device=device, dtype=dtype)
    latents = torch.randn(BATCH, *model.latent_shape).to(device, dtype)
    context = torch.randn(BATCH, model.clip.text.context_length, model.clip.text.width).to(device, dtype)
    noise, t = torch.randn(latents.shape).to(device), torch.full((BATCH,), 500.0, device=device)
    times = []
    for _ in range(1 + NUM_STEPS):
        start = time.perf_counter()
        loss = noise_loss(learner.net(latents, t, context), noise).mean()
        loss.backward()
        learner.step(0.0)
        loss.item()  # waits until the device has done it
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _picture(device: torch.device) -> float:
    import torch

    from ldm_tutor.config import scenes
    from ldm_tutor.models.autoencoder import Autoencoder
    from ldm_tutor.models.unet import UNet
    from ldm_tutor.sampling.guidance import Guided
    from ldm_tutor.sampling.loop import sample
    from ldm_tutor.schedule import NoiseSchedule

    model = scenes()
    unet, autoencoder = UNet(model.unet).to(device).eval(), Autoencoder(model.autoencoder).to(device).eval()
    context = torch.randn(1, model.clip.text.context_length, model.clip.text.width).to(device)
    denoiser = Guided(unet, context, torch.zeros_like(context), 4.0)
    noise = torch.randn(1, *model.latent_shape).to(device)
    with torch.inference_mode():
        denoiser(noise, 500, 0)  # warms up
        start = time.perf_counter()
        *_, last = sample(denoiser, noise, NoiseSchedule(), sampler="dpm++", num_steps=DRAWING_STEPS)
        autoencoder.to_pictures(last.latents).cpu()
        return time.perf_counter() - start
