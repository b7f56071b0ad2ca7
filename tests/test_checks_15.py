"""The exercises of lesson 15: right answers in several styles pass, each typical slip gets its own diagnosis."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, NOT_DONE, PASS

SCALE = 0.18215


def give(name, answer):
    return getattr(check.clinic, name)(answer)


def rejected(name, answer, diagnosis):
    verdict = give(name, answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- foreign_scale


@pytest.mark.parametrize(
    "answer",
    [(0.7286, 1.3725), [0.73, 1.37], (Fraction(18215 * 4, 100000), np.float64(1 / SCALE / 4)),
     torch.tensor([0.73, 1.37]), ("0.73", "1.37")],
    ids=lambda answer: type(answer).__name__,
)  # fmt: skip
def test_foreign_scale_right(answer):
    assert give("foreign_scale", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((1, 1.37), "right* factor"),
        ((4 / SCALE, 1.37), "the division is on the way out"),
        ((0.18, 1.37), "multiplies every latent number"),
        ((0.73, 0.73), "turned round"),
        ((0.73, 1 / SCALE), "after the division"),
        ((0.73, 1), "the copied factor were the right one"),
        ((0.73, 4), "what does it get"),
        ((0.73, 2), "should have 4"),
        ((0.73,), "two numbers"),
        (0.73, "two numbers"),
        (("small", 1), "two numbers"),
    ],
    ids=repr,
)
def test_foreign_scale_slips(answer, diagnosis):
    rejected("foreign_scale", answer, diagnosis)


# --- rows


def by_rows(probs):
    return max(abs(float(row.sum()) - 1) for head in probs for row in head)


ROWS = {
    "torch": lambda probs: (probs.sum(-1) - 1).abs().max(),
    "number": lambda probs: float(torch.max(torch.abs(probs.sum(dim=2) - 1))),
    "loops": by_rows,
    "numpy": lambda probs: np.abs(probs.numpy().sum(-1) - 1).max(),
}


@pytest.mark.parametrize("style", ROWS)
def test_rows_right(style):
    assert give("rows", ROWS[style]).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (lambda probs: (probs.sum(-2) - 1).abs().max(), "the last axis"),
        (lambda probs: (probs.sum(-1) - 1).max(), "abs() before max()"),
        (lambda probs: -(probs.sum(-1) - 1).abs().max(), "sign is turned"),
        (lambda probs: (probs.sum(-1) - 1).abs().mean(), "a mean hides"),
        (lambda probs: (probs.sum(-1) - 1).mean(), "cancel in your mean"),
        (lambda probs: probs.sum(-1).max(), "the sum itself"),
        (lambda probs: probs.max(), "largest single number"),
        (lambda probs: 0.0, "yours says 0.00"),
        (lambda probs: probs.sum(-1), "return one number"),
        (0.5, "is a function"),
    ],
)
def test_rows_slips(answer, diagnosis):
    rejected("rows", answer, diagnosis)


# --- ideal


def by_formula(x0, alpha_bar):
    return lambda x_t, t, step: (x_t - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()


class ByClass:
    def __init__(self, x0, alpha_bar):
        self.x0, self.signal = x0, alpha_bar**0.5

    def __call__(self, x_t, t, step):
        s = self.signal[t]
        return (x_t - s * self.x0) / (1 - s**2) ** 0.5


def inner(formula):
    """A wrong denoiser from a formula of x_t, x0 and alpha_bar at t."""
    return lambda x0, alpha_bar: lambda x_t, t, step: formula(x_t, x0, float(alpha_bar[t]))


@pytest.mark.parametrize("answer", [by_formula, ByClass])
def test_ideal_right(answer):
    assert give("ideal", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (inner(lambda x, x0, a: (x - a * x0) / (1 - a)), "without the square roots"),
        (inner(lambda x, x0, a: (x - a**0.5 * x0) / (1 - a)), "beneath"),
        (inner(lambda x, x0, a: (x - a * x0) / (1 - a) ** 0.5), "above"),
        (inner(lambda x, x0, a: x - a**0.5 * x0), "still be divided"),
        (inner(lambda x, x0, a: (x - x0) / (1 - a) ** 0.5), "not as a whole"),
        (inner(lambda x, x0, a: (a**0.5 * x0 - x) / (1 - a) ** 0.5), "sign is turned"),
        (inner(lambda x, x0, a: x0), "that is x0"),
        (inner(lambda x, x0, a: 0 * x), "solve the closed form"),
        (inner(lambda x, x0, a: x.mean()), "should have that of x_t"),
        (inner(lambda x, x0, a: "noise"), "returns a tensor"),
        (lambda x0, alpha_bar: x0, "return the function itself"),
        (lambda x0, alpha_bar: lambda x_t, t, step: (x_t - alpha_bar[500] ** 0.5 * x0) / (1 - alpha_bar[500]) ** 0.5,
         "not the one that was added"),
        (3, "is a function"),
    ],
)  # fmt: skip
def test_ideal_slips(answer, diagnosis):
    rejected("ideal", answer, diagnosis)


def test_ideal_not_done():
    assert give("ideal", lambda x0, alpha_bar: None).state == NOT_DONE
    assert give("ideal", lambda x0, alpha_bar: lambda x_t, t, step: None).state == NOT_DONE


# --- training_step


def parts(alpha_bar, t):
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a, a.sqrt(), (1 - a).sqrt()


def made(formula, goal=lambda mean, scale, noise: noise):
    def my_step(mean, scale_factor, noise, t, alpha_bar):
        return formula(mean, scale_factor, noise, *parts(alpha_bar, t)), goal(mean, scale_factor, noise)

    return my_step


def right(mean, scale, noise, a, root, rest):
    return root * scale * mean + rest * noise


def by_pictures(mean, scale_factor, noise, t, alpha_bar):
    rows = [alpha_bar[k] ** 0.5 * scale_factor * m + (1 - alpha_bar[k]) ** 0.5 * n
            for m, n, k in zip(mean, noise, t, strict=True)]  # fmt: skip
    return [torch.stack(rows), noise]


@pytest.mark.parametrize("answer", [made(right), by_pictures])
def test_training_step_right(answer):
    assert give("training_step", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (made(lambda m, s, n, a, root, rest: s * (a * m + (1 - a) * n)), "x_t still has both of its faults"),
        (made(lambda m, s, n, a, root, rest: s * (root * m + rest * n)), "the noise smaller too"),
        (made(lambda m, s, n, a, root, rest: a * s * m + (1 - a) * n), "without the square roots"),
        (made(lambda m, s, n, a, root, rest: root * m + rest * n), "not scaled"),
        (made(lambda m, s, n, a, root, rest: root * m / s + rest * n), "the way out"),
        (made(lambda m, s, n, a, root, rest: rest * s * m + root * n), "each other's factor"),
        (made(lambda m, s, n, a, root, rest: n), "should spread by"),
        (made(right, lambda m, s, n: m), "clean latents"),
        (made(right, lambda m, s, n: s * m), "clean latents"),
        (made(right, lambda m, s, n: -n), "with its sign"),
        (made(right, lambda m, s, n: n**2), "the noise that is in it"),
        (lambda mean, scale, noise, t, alpha_bar: mean, "two tensors"),
        (lambda mean, scale, noise, t, alpha_bar: (mean[:, :1], noise), "shape of the latents"),
        (7, "is a function"),
    ],
)
def test_training_step_slips(answer, diagnosis):
    rejected("training_step", answer, diagnosis)


# --- diagnose

DIAGNOSIS = {"X": "schedule", "Y": "sentence", "Z": "pixels"}


def test_diagnose_right():
    assert give("diagnose", DIAGNOSIS).state == PASS
    assert give("diagnose", dict(reversed(DIAGNOSIS.items()))).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (DIAGNOSIS | {"X": "time"}, "stands still"),
        (DIAGNOSIS | {"X": "scale"}, "spread would raise"),
        (DIAGNOSIS | {"Y": "swapped"}, "scale 1"),
        (DIAGNOSIS | {"Y": "axis"}, "add up to 1"),
        (DIAGNOSIS | {"Z": "answer"}, "would not arrive"),
        (DIAGNOSIS | {"Z": "schedule"}, "would not be at 500"),
        (DIAGNOSIS | {"X": "pixels", "Z": "schedule"}, "round trip"),
        (DIAGNOSIS | {"X": "sentence"}, "below 1"),
        (DIAGNOSIS | {"X": "flu"}, "not one of the faults"),
        ({"X": "schedule"}, "keys"),
        ("schedule", "keys"),
    ],
)
def test_diagnose_slips(answer, diagnosis):
    rejected("diagnose", answer, diagnosis)


def test_diagnose_not_done():
    assert give("diagnose", {"X": ..., "Y": ..., "Z": ...}).state == NOT_DONE
