"""The judges of lesson 01: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.shapes import Tensor
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve

NUM_LOOKS, LEAST_READ, MOST_DB = 48, 0.9, 25.0  # pictures, share that must be read, PSNR that must be lost


def _number(answer: Any) -> float | None:
    """Return the answer as a number, None where it is none."""
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None


def _as_tensor(result: Any) -> Tensor | None:
    """Return a result as a tensor of numbers with a point, None where it is none."""
    try:
        tensor = torch.as_tensor(result)
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.is_floating_point() else None


def _close(got: Tensor, wanted: Tensor, tolerance: float = 1e-3) -> bool:
    got, wanted = got.detach().double(), wanted.detach().double()
    return got.shape == wanted.shape and bool(((got - wanted).abs() <= tolerance * (1 + wanted.abs())).all())


# ---------------------------------------------------------------- latent_size

_SIZE_SLIPS = {
    6144: "6144 is the number of positions, 96 x 64; at each of them stand 4 numbers",
    196608: "you divide by f once; f shortens both sides, so there are 768 / 8 times 512 / 8 positions",
    16384: "that is a picture of 512 x 512 pixels; here one side is longer",
    36864: "that is a picture of 768 x 768 pixels; here one side is shorter",
    18432: "three colours are what the picture has; the latents of this autoencoder have 4 channels",
    98304: "with f = 8 the sides have 768 / 8 and 512 / 8 positions; you divide by 4",
    48: "48 is how many times fewer they are; the question is how many there are",
    1179648: "that is the number of the picture's own numbers, 768 x 512 x 3",
    393216: "that is the number of pixels; the grid of latents is smaller, f shortens each side",
    49152: "the encoder gives mean and log variance, 49152 numbers; the latents, drawn from them, are half of that",
}


def judge_latent_size(answer: Any) -> Verdict:
    """Judge the number of latent numbers of KL-f8 with 4 channels for a picture of 768 x 512: 24576."""
    value = _number(answer)
    if value is None or not math.isfinite(value):
        return look_again("the answer is one whole number")
    if abs(value - 24576) < 1e-6:
        return passed("96 x 64 positions x 4 channels = 24576, 48 times fewer than the picture's own 768 x 512 x 3")
    for slip, reason in _SIZE_SLIPS.items():
        if abs(value - slip) < 1e-6:
            return look_again(reason)
    return look_again("how many positions has the grid, and how many numbers stand at each?")


# ---------------------------------------------------------------- kl

_Formula = Callable[[Tensor, Tensor], Tensor]
_PARTS: tuple[tuple[_Formula, str], ...] = (
    (lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v), ""),
    (lambda m, v: m**2 + v.exp() - 1 - v, "the half in front is missing"),
    (lambda m, v: -0.5 * (m**2 + v.exp() - 1 - v), "the sign is turned: a divergence is never negative"),
    (lambda m, v: 0.5 * (m**2 + (0.5 * v).exp() - 1 - v), "sigma stands where sigma squared, exp(logvar), belongs"),
    (lambda m, v: 0.5 * (m**2 + (2 * v).exp() - 1 - v), "you square twice: exp(logvar) is sigma squared already"),
    (
        lambda m, v: 0.5 * (m**2 + (2 * v).exp() - 1 - 2 * v),
        "you take exp(logvar) for sigma: it is the variance, so square nothing and double nothing",
    ),
    (lambda m, v: 0.5 * (m**2 + v**2 - 1 - (v**2).log()), "you take logvar for sigma: sigma is exp(logvar / 2)"),
    (lambda m, v: 0.5 * (m**2 + v - 1 - v.log()), "you take logvar for the variance: the variance is exp(logvar)"),
    (lambda m, v: 0.5 * (m**2 + v.exp() - 1 - 0.5 * v), "log sigma squared is logvar itself, without another half"),
    (lambda m, v: 0.5 * (m**2 + v.exp() - v), "the 1 is missing: at mean 0 and sigma 1 the divergence must be 0"),
    (lambda m, v: 0.5 * (m + v.exp() - 1 - v), "the mean must be squared"),
    (lambda m, v: 0.5 * (m**2 + v.exp() - 1 + v), "the sign of the logarithm is wrong: small clouds must cost more"),
)


def judge_kl(my_kl: Any) -> Verdict:
    """Judge a function (mean, logvar) -> divergence from N(0, I), one number per picture."""
    if not callable(my_kl):
        return look_again("the answer is a function: my_kl(mean, logvar)")
    generator = torch.Generator().manual_seed(1)
    mean, logvar = (torch.randn(5, 3, 4, 2, generator=generator) for _ in range(2))
    given = mean.clone(), logvar.clone()
    result = my_kl(*given)
    if is_missing(result):
        return not_done("your function returns nothing yet: end it with `return` and the divergence")
    if not (torch.equal(given[0], mean) and torch.equal(given[1], logvar)):
        return look_again("your function changes what it was given: write x = x**2, not x **= 2")
    got = _as_tensor(result)
    if got is None:
        return look_again(f"your function returns a {type(result).__name__}: return a tensor, one number per picture")
    each = _PARTS[0][0](mean, logvar)
    if got.shape == mean.shape:
        return look_again("that is one number per latent number: sum over channels, rows and columns")
    if got.numel() == 1 and _close(got.reshape(()), each.sum()):
        return look_again("you sum over the whole batch; every picture has a divergence of its own: flatten(1).sum(1)")
    if got.shape != (5,):
        return look_again(f"the result has the shape {tuple(got.shape)}; five pictures give five numbers, shape (5,)")
    if not bool(got.isfinite().all()):
        return look_again("there are values that are not numbers: logvar is a logarithm already, take none of it")
    if _close(got, each.flatten(1).mean(1)):
        return look_again("you take the mean over the latent numbers; the divergence of independent numbers is a sum")
    for formula, reason in _PARTS:
        wrong = formula(mean, logvar).flatten(1)
        if reason and (_close(got, wrong.sum(1)) or _close(got, wrong.mean(1))):
            return look_again(reason)
    if not _close(got, each.flatten(1).sum(1)):
        off = float((got - each.flatten(1).sum(1)).abs().max())
        return look_again(
            f"yours is off by up to {off:.2f} for five pictures; try mean 0 and logvar 0, where it must be 0"
        )
    return passed("right for every picture, and 0 where the cloud is the standard one")


# ---------------------------------------------------------------- sample


def judge_sample(my_sample: Any) -> Verdict:
    """Judge a function (mean, logvar, generator) -> latents drawn so that gradients reach mean and logvar."""
    if not callable(my_sample):
        return look_again("the answer is a function: my_sample(mean, logvar, generator)")
    mean = torch.linspace(-2, 2, 4).view(4, 1, 1, 1).repeat(1, 2, 64, 64).requires_grad_()
    logvar = torch.tensor([-3.0, 1.0]).view(1, 2, 1, 1).repeat(4, 1, 64, 64).requires_grad_()
    result = my_sample(mean, logvar, torch.Generator().manual_seed(2))
    if is_missing(result):
        return not_done("your function returns nothing yet: end it with `return` and the latents")
    got = _as_tensor(result)
    if got is None:
        return look_again(f"your function returns a {type(result).__name__}: return the latents as a tensor")
    if got.shape != mean.shape:
        return look_again(f"the result has the shape {tuple(got.shape)}, mean has {tuple(mean.shape)}")
    noise = (got.detach() - mean.detach()) / (0.5 * logvar.detach()).exp()
    if reason := _why_not_normal(noise, logvar.detach()):
        return look_again(reason)
    again, other = (my_sample(mean, logvar, torch.Generator().manual_seed(seed)) for seed in (2, 3))
    if not torch.equal(got, again):
        return look_again("the same generator gives other latents each time: pass `generator` to torch.randn")
    if torch.equal(got, other):
        return look_again("another generator gives the same latents: use the argument `generator`")
    if not got.requires_grad:
        return look_again("no gradient comes back: something cuts it off, such as detach(), no_grad() or torch.normal")
    slopes = torch.autograd.grad(got.sum(), (mean, logvar), allow_unused=True)
    wanted = torch.ones_like(mean), 0.5 * (0.5 * logvar.detach()).exp() * noise
    for name, slope, right in zip(("mean", "logvar"), slopes, wanted, strict=True):
        if slope is None or not bool(slope.any()):
            return look_again(f"the latents are right, but no gradient reaches {name}: it is cut off on the way")
        if not _close(slope, right, 1e-2):
            return look_again(f"the latents are right, but the gradient at {name} is not that of mean + sigma x noise")
    return passed("mean + sigma x noise, fresh noise for every number, and the gradient reaches mean and logvar")


def _why_not_normal(noise: Tensor, logvar: Tensor) -> str:
    """Name what is wrong with noise that should be standard normal, number by number; "" where nothing is."""
    if not bool(noise.isfinite().all()):
        return "there are values that are not numbers: logvar may be negative, so take no root and no logarithm of it"
    if float(noise.abs().max()) < 1e-6:
        return "these are the means themselves, without noise"
    if torch.allclose(noise[0], noise[1], atol=1e-3):
        return "all pictures get the same noise: draw it in the shape of the whole batch, mean.shape"
    if torch.allclose(noise, noise[..., :1, :1].expand_as(noise), atol=1e-3):
        return "all positions get the same noise: every latent number has its own, so draw it in the shape of mean"
    spread = noise.std(dim=(0, 2, 3))
    sigma = (0.5 * logvar[0, :, 0, 0]).exp()
    for factor, reason in (
        (sigma, "your noise is multiplied by exp(logvar), the variance; sigma is its root, exp(logvar / 2)"),
        (logvar[0, :, 0, 0].abs() / sigma, "your noise is multiplied by logvar; sigma is exp(logvar / 2)"),
        (1 / sigma, "your noise is not scaled: multiply it by sigma, exp(logvar / 2)"),
        (sigma**3, "you square sigma twice over: exp(logvar / 2) is sigma"),
        (torch.full_like(sigma, 12**-0.5), "torch.rand draws evenly from 0 to 1; normal noise is torch.randn"),
    ):
        if bool(((spread / factor - 1).abs() < 0.05).all()):
            return reason
    if not bool(((spread - 1).abs() < 0.05).all()):
        return f"sigma is {float(sigma[0]):.2f} in the first channel, your latents spread by {spread[0] * sigma[0]:.2f}"
    if float(noise.mean().abs()) > 0.05:
        return "the noise has a mean: use torch.randn, whose mean is 0, and add it to `mean` unchanged"
    if float(noise.abs().max()) < 2.5:
        return "the spread is right, but the noise is not normal: torch.randn, not torch.rand"
    return ""


# ---------------------------------------------------------------- scale


def judge_scale(my_scale: Any) -> Verdict:
    """Judge a function latents -> the one factor that gives them unit standard deviation."""
    if not callable(my_scale):
        return look_again("the answer is a function: my_scale(latents)")
    generator = torch.Generator().manual_seed(5)
    widths = torch.tensor([0.5, 8.0, 3.0]).view(1, 3, 1, 1)
    strengths = torch.linspace(0.5, 1.5, 64).view(64, 1, 1, 1)  # pictures differ too
    latents = 2.0 + strengths * widths * torch.randn(64, 3, 8, 8, generator=generator)
    result = my_scale(latents.clone())
    if is_missing(result):
        return not_done("your function returns nothing yet: end it with `return` and the factor")
    tensor = _as_tensor(result)
    if tensor is not None and tensor.shape == latents.shape:
        return look_again("those are the latents, scaled; return the factor itself")
    if tensor is not None and tensor.numel() > 1:
        return look_again("return one factor for all channels together: latents.std() without dim")
    value = _number(result)
    if value is None:
        return look_again(f"your function returns a {type(result).__name__}: return one number")
    std = float(latents.std())
    slips = {
        std: "that is the standard deviation; the latents are multiplied by the factor, so it is one over it",
        1 / std**2: "that is one over the variance; the factor is one over its root",
        std**2: "that is the variance; the factor is one over its root",
        1 / float(latents.square().mean().sqrt()): "you leave the mean in: the spread is taken round the mean, std()",
        1 / float(latents.std(dim=(0, 2, 3)).mean()): "you average over channels; take the spread of all numbers",
        float((1 / latents.std(dim=(0, 2, 3))).mean()): "you average over channels; take the spread of all numbers",
        1 / float(latents.flatten(1).std(dim=1).mean()): "you average over pictures; take the spread of all numbers",
        float((1 / latents.flatten(1).std(dim=1)).mean()): "you average over pictures; take the spread of all numbers",
        1 / float(latents.abs().max()): "the largest number is one outlier; the schedule counts with the spread",
        1 / float(latents[0].std()): "that is the spread of one picture; take all that you are given",
        0.18215: "0.18215 belongs to another autoencoder; measure the latents that you are given",
    }
    if abs(value * std - 1) < 2e-3:
        return passed(f"times {value:.3f}, these latents have the standard deviation {value * std:.2f}")
    for slip, reason in slips.items():
        if math.isfinite(value) and abs(value - slip) < 2e-3 * abs(slip):
            return look_again(reason)
    return look_again(f"multiplied by your factor, the latents have the spread {value * std:.2f} instead of 1.00")


# ---------------------------------------------------------------- noise_limit


@lru_cache(maxsize=64)
def looks(strength: float) -> tuple[float, float]:
    """Share of pictures that the judge reads right after noise of this strength on the latents, and their PSNR."""
    test = render_scenes(NUM_LOOKS, "test")
    pictures, requests = to_float(test.pictures), [parse(caption) for caption in test.captions]
    autoencoder = load_model(resolve() / "autoencoder.safetensors", "autoencoder")
    with torch.inference_mode():
        latents = autoencoder.encode(pictures).mean
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        made = autoencoder.decode(latents + strength * noise).clamp(-1, 1)
    right = attribute_accuracy(read_pictures(load_judge(), made), requests)["all"].value
    return right, float(psnr(made, pictures).mean())


def judge_noise_limit(answer: Any) -> Verdict:
    """Judge a strength of noise at which the judge reads nearly everything although the PSNR has fallen."""
    strength = _number(answer)
    if strength is None or not 0 <= strength <= 5:
        return look_again("the answer is one number, the standard deviation of the noise, from 0 to 5")
    right, decibel = looks(round(strength, 4))
    told = f"with noise of {strength:g} the judge reads {right:.0%} right, at {decibel:.1f} dB"
    if right < LEAST_READ:
        return look_again(f"{told}: it has to read {LEAST_READ:.0%} at least; take less noise")
    if decibel >= MOST_DB:
        return look_again(f"{told}: that is still a good copy, PSNR has to fall below {MOST_DB:g} dB; take more noise")
    return passed(f"{told}: the copy is poor, and what it shows is still there")
