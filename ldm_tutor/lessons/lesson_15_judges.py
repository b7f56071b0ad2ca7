"""The judges of lesson 15: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.lessons.lesson_15_kit import FAULTS, FOREIGN_SCALE, fault_of
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Tensor


def _number(answer: Any) -> float | None:
    """Return the answer as a number, None where it is none."""
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None


# ---------------------------------------------------------------- foreign_scale

RAW = 4.0


def judge_foreign_scale(answer: Any) -> Verdict:
    """Judge the pair (spread, times): 4 x 0.18215 = 0.73 and 1 / 0.18215 / 4 = 1.37."""
    try:
        given, times = (_number(each) for each in answer)
    except (TypeError, ValueError):
        return look_again("the answer has two numbers: (spread, times)")
    if given is None or times is None:
        return look_again("the answer has two numbers: (spread, times)")
    right = RAW * FOREIGN_SCALE
    if abs(given - 1) < 0.01:
        return look_again("a spread of 1 is what the *right* factor, 1 / 4, would give; this one was copied")
    if abs(given - RAW / FOREIGN_SCALE) < 0.1:
        return look_again("on the way in one multiplies by the scale factor; the division is on the way out")
    if abs(given - right) > 0.01:
        return look_again("the spread is not right: scaling multiplies every latent number, and so their spread")
    if abs(times - 1 / right) < 0.01:
        return passed("0.73 where the noise has 1, and 1.37 times too large for the decoder: hard, over-drawn pictures")
    slips = {
        right: "turned round: latents of spread 1 are *divided* by the factor, which makes them larger",
        1 / FOREIGN_SCALE: "that is their spread after the division; how many times the decoder's 4 is it?",
        1.0: "they would fit if the copied factor were the right one; the decoder knows a spread of 4",
        RAW: "4 is what the decoder knows; what does it get?",
    }
    for slip, reason in slips.items():
        if abs(times - slip) < 0.01:
            return look_again(f"the spread is right; the second number: {reason}")
    return look_again("the spread is right; drawn latents have 1, are divided by the factor, and should have 4")


# ---------------------------------------------------------------- rows


def judge_rows(my_rows_off: Any) -> Verdict:
    """Judge a function (heads, positions, words) -> by how much the worst row misses the sum 1."""
    if not callable(my_rows_off):
        return look_again("the answer is a function: my_rows_off(probs)")
    generator = torch.Generator().manual_seed(15)
    scores = torch.randn(4, 16, 10, generator=generator)
    sound, wrong_axis = scores.softmax(dim=-1), scores.softmax(dim=-2)
    less, both = sound.clone(), sound.clone()
    less[1, 3] *= 0.5
    both[0, 0] *= 0.4
    both[2, 5] *= 1.4
    square = torch.randn(2, 12, 12, generator=generator).softmax(dim=-1)
    for name, probs in {"sound": sound, "square": square, "both": both, "less": less, "axis": wrong_axis}.items():
        result = my_rows_off(probs.clone())
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and a number")
        found = _number(result)
        if found is None:
            return look_again("return one number, for the worst of all rows and heads")
        wanted = float((probs.sum(dim=-1) - 1).abs().max())
        if abs(found - wanted) < 1e-4:
            continue
        if reason := _why_not_rows(probs, found, name):
            return look_again(reason)
        return look_again(f"for maps whose worst row misses 1 by {wanted:.2f}, yours says {found:.2f}")
    return passed("it is 0 for sound maps, also for square ones, and sees a single bad row of a single head")


def _why_not_rows(probs: Tensor, found: float, name: str) -> str:
    off = probs.sum(dim=-1) - 1
    columns = float((probs.sum(dim=-2) - 1).abs().max())
    slips = {
        "you add up over the positions; a row is one position, and its *words* add up to 1: the last axis": columns,
        "a row that adds up to too little is as wrong as one with too much: take abs() before max()": float(off.max()),
        "the sign is turned: by how much it misses 1 is a distance, abs()": -float(off.abs().max()),
        "a mean hides the one bad row among many good ones: take the largest": float(off.abs().mean()),
        "too much and too little cancel in your mean: take the largest distance": float(off.mean()),
        "you return the sum itself; the distance from 1 is asked": float(probs.sum(dim=-1).max()),
    }
    if name == "sound" and abs(found - float(probs.max())) < 1e-4:
        return "that is the largest single number; add up each row first"
    return next((reason for reason, value in slips.items() if abs(found - value) < 1e-4), "")


# ---------------------------------------------------------------- ideal


def judge_ideal(my_denoiser: Any) -> Verdict:
    """Judge a function (x0, alpha_bar) -> denoiser that knows the noise in every x_t of x0."""
    if not callable(my_denoiser):
        return look_again("the answer is a function: my_denoiser(x0, alpha_bar)")
    schedule, generator = NoiseSchedule(), torch.Generator().manual_seed(3)
    x0 = 1.5 * torch.randn(2, 4, 8, 8, generator=generator) + 0.3
    denoiser = my_denoiser(x0.clone(), schedule.alpha_bar.clone())
    if is_missing(denoiser):
        return not_done("your function returns nothing yet: it returns the inner function")
    if not callable(denoiser):
        return look_again("return the function itself, without calling it: `return noise_in`")
    for t in (20, 500, 980):
        noise = torch.randn(x0.shape, generator=generator)
        x_t = schedule.add_noise(x0, noise, torch.full((2,), t))
        result = denoiser(x_t.clone(), t, 0)
        if is_missing(result):
            return not_done("the inner function returns nothing yet")
        try:
            found = torch.as_tensor(result).float()
        except (TypeError, ValueError, RuntimeError):
            return look_again("the inner function returns a tensor, as large as x_t")
        if found.shape != x0.shape:
            return look_again(f"the noise has the shape {tuple(found.shape)}; it should have that of x_t")
        if not bool(((found - noise).abs() < 1e-2).all()):
            return look_again(_why_not_noise(found, x_t, x0, float(schedule.alpha_bar[t]), t))
    for sampler in ("ddim", "dpm++", "ddpm"):
        start = torch.randn(x0.shape, generator=generator)
        *_, state = sample(denoiser, start, schedule, sampler=sampler, num_steps=7, noise=PictureNoise([1, 2]))
        if float((state.latents - x0).abs().max()) > 0.2:
            return look_again(f"in a walk of {sampler} it does not lead to x0: does it use the t that it is given?")
    return passed("three samplers, from any start, in seven steps, end in x0: whatever goes wrong now is not theirs")


def _why_not_noise(found: Tensor, x_t: Tensor, x0: Tensor, a: float, t: int) -> str:
    slips = {
        "without the square roots: x_t holds sqrt(alpha_bar) of x0 and sqrt(1 - alpha_bar) of noise": (x_t - a * x0)
        / (1 - a),
        "one square root is missing, beneath: divide by sqrt(1 - alpha_bar)": (x_t - a**0.5 * x0) / (1 - a),
        "one square root is missing, above: take away sqrt(alpha_bar) times x0": (x_t - a * x0) / (1 - a) ** 0.5,
        "what is left must still be divided by sqrt(1 - alpha_bar)": x_t - a**0.5 * x0,
        "x0 is in x_t with the factor sqrt(alpha_bar), not as a whole": (x_t - x0) / (1 - a) ** 0.5,
        "the sign is turned: noise is what x_t has beyond x0": -(x_t - a**0.5 * x0) / (1 - a) ** 0.5,
        "that is x0; the noise is asked, the other part of x_t": x0,
    }
    for reason, wrong in slips.items():
        if bool(((found - wrong).abs() < 1e-3).all()):
            return reason
    return f"at t = {t} your noise is not the one that was added: solve the closed form of x_t for the noise"


# ---------------------------------------------------------------- training_step


def judge_training_step(my_step: Any) -> Verdict:
    """Judge a function (mean, scale_factor, noise, t, alpha_bar) -> (x_t, what the U-Net should answer)."""
    if not callable(my_step):
        return look_again("the answer is a function: my_step(mean, scale_factor, noise, t, alpha_bar)")
    alpha_bar, generator = NoiseSchedule().alpha_bar.float(), torch.Generator().manual_seed(5)
    mean, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    mean, t, scale = 4 * mean + 0.5, torch.tensor([30, 400, 950]), 0.23
    result = my_step(mean.clone(), scale, noise.clone(), t.clone(), alpha_bar.clone())
    if is_missing(result):
        return not_done("your function returns nothing yet: it returns two tensors")
    try:
        x_t, goal = (torch.as_tensor(each).float() for each in result)
    except (TypeError, ValueError, RuntimeError):
        return look_again("return two tensors: the noisy latents, and what the U-Net should answer")
    if x_t.shape != mean.shape or goal.shape != mean.shape:
        return look_again(f"both have the shape of the latents, {tuple(mean.shape)}; yours {tuple(x_t.shape)}")
    a = alpha_bar[t][:, None, None, None]
    root, rest = a.sqrt(), (1 - a).sqrt()
    right = root * scale * mean + rest * noise
    if not torch.allclose(x_t, right, atol=1e-4):
        slips = {
            "the scale factor makes the noise smaller too: it belongs to the latents alone": scale
            * (root * mean + rest * noise),
            "x_t still has both of its faults: look at its spread at t = 400, it should be near 1": scale
            * (a * mean + (1 - a) * noise),
            "without the square roots the variance of x_t falls in the middle: sqrt(a) and sqrt(1 - a)": a
            * scale
            * mean
            + (1 - a) * noise,
            "the latents are not scaled: they spread by 4 here, beside noise that spreads by 1": root * mean
            + rest * noise,
            "divided by the scale factor where one multiplies: that is the way out, before the decoder": root
            * mean
            / scale
            + rest * noise,
            "latents and noise have each other's factor: at t = 30 there should be hardly any noise": rest
            * scale
            * mean
            + root * noise,
        }
        for reason, wrong in slips.items():
            if torch.allclose(x_t, wrong, atol=1e-4):
                return look_again(reason)
        wanted, found = float(right[1].std()), float(x_t[1].std())
        return look_again(f"x_t is not right: at t = 400 it should spread by {wanted:.2f}, yours by {found:.2f}")
    if torch.allclose(goal, noise, atol=1e-5):
        return passed("scaled latents, square roots, and the noise as the answer: what the shipped U-Net has learned")
    if torch.allclose(goal, mean, atol=1e-5) or torch.allclose(goal, scale * mean, atol=1e-5):
        return look_again("x_t is right; but that answer is the clean latents, and our samplers expect the noise")
    if torch.allclose(goal, -noise, atol=1e-5):
        return look_again("x_t is right; the answer is the noise as it was added, with its sign")
    return look_again("x_t is right; the answer should be the noise that is in it")


# ---------------------------------------------------------------- diagnose

_REASONS = {
    "time": "a clock that stands still answers the same for every time step; look at told(kit.admit(...)) itself",
    "scale": "then the spread would raise the first alarm",
    "swapped": "then guidance at scale 1 would not be the plain answer",
    "axis": "then rows of attention maps would not add up to 1",
    "answer": "then the ideal walk would not arrive",
    "sentence": "then the right words would do more harm than the neighbour's: a reading of `sentence` below 1",
    "schedule": "then the clock would go, and go wrong: the lowest point of told(...) would not be at 500",
    "pixels": "then the round trip would raise an alarm: the picture is changed before the autoencoder sees it",
}


def judge_diagnose(answer: Any) -> Verdict:
    """Judge the faults of X, Y and Z by their names in FAULTS."""
    if not isinstance(answer, Mapping) or set(answer) != set("XYZ"):
        return look_again("the answer is a dictionary with the keys 'X', 'Y' and 'Z'")
    if any(is_missing(each) for each in answer.values()):
        return not_done("a fault for each of X, Y and Z, by its name in kit.FAULTS")
    unknown = [each for each in answer.values() if not isinstance(each, str) or each not in FAULTS]
    if unknown:
        return look_again(f"{unknown[0]!r} is not one of the faults: {', '.join(FAULTS)}")
    for name in "XYZ":
        if answer[name] != fault_of(name):
            return look_again(f"{name} does not have {answer[name]!r}: {_REASONS[answer[name]]}")
    return passed("all three, and two of them draw flawless pictures: now look at them, and be surprised")
