"""The exercises of lesson 04: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ldm_tutor.config import ScheduleConfig
from ldm_tutor.lessons import lesson_04_judges as judges
from ldm_tutor.lessons.checks import check, solution
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.weights.shipped import shipped_folder

needs_weights = pytest.mark.skipif(not shipped_folder().exists(), reason="the shipped weights are not there")


@pytest.fixture(autouse=True)
def judge_with_made_up_eyes(monkeypatch):
    """The judge sees the bicycle up to t = 200 and the house up to t = 500; the real one is tested on its own."""
    monkeypatch.setattr(judges, "looks", lambda t: (32 if t <= 500 else 3, 32 if t <= 200 else 1))


def give(name, answer):
    return getattr(check.forward_noising, name)(answer)


# --- half_way


@pytest.mark.parametrize(
    "answer",
    [69, 69.0, np.int64(69), torch.tensor(69), Fraction(69), math.log(0.5) / math.log(0.99), "69"],
    ids=lambda answer: type(answer).__name__,
)
def test_half_way_right(answer):
    assert give("half_way", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (50, "do not add up"),
        (100, "the picture shrinks"),
        (138, "amplitude"),
        (138.6, "amplitude"),
        (68, "index 68"),
        (35, "0.99 squared"),
        (459, "hundredth"),
        (0.5, "1 or more"),
        (70, "solve for n"),
        ([69, 70], "one whole number"),
    ],
)
def test_half_way_slips(answer, diagnosis):
    verdict = give("half_way", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


# --- add_noise


def wide(alpha_bar, t):
    return alpha_bar[t].view(-1, 1, 1, 1)


def in_a_loop(x0, noise, t, alpha_bar):
    rows = []
    for row, eps, step in zip(x0, noise, t.tolist(), strict=True):
        a = float(alpha_bar[step])
        rows.append(math.sqrt(a) * row + math.sqrt(1 - a) * eps)
    return torch.stack(rows)


def with_numpy(x0, noise, t, alpha_bar):
    a = alpha_bar.numpy()[t.numpy()][:, None, None, None].astype("float32")
    return np.sqrt(a) * x0.numpy() + np.sqrt(1 - a) * noise.numpy()


ADD_NOISE_RIGHT = {
    "loop": in_a_loop,
    "numpy": with_numpy,
    "powers": lambda x0, e, t, ab: wide(ab, t).float() ** 0.5 * x0 + (1 - wide(ab, t).float()) ** 0.5 * e,
    "gathered": lambda x0, e, t, ab: (
        torch.lerp(x0 * 0, x0, wide(ab, t).sqrt().float())
        + torch.gather(1 - ab, 0, t).sqrt().float()[:, None, None, None] * e
    ),
    "with gradients": lambda x0, e, t, ab: in_a_loop(x0.requires_grad_(), e, t, ab),
    "package": lambda x0, e, t, ab: with_table(ab).add_noise(x0, e, t),
}
ADD_NOISE_SLIPS = {
    "where their square roots belong (the variance at t = 500 should be 1.00, yours is 0.60)": (
        lambda x0, e, t, ab: (wide(ab, t) * x0 + (1 - wide(ab, t)) * e).float()
    ),
    "the picture's weight is alpha_bar without its root": (
        lambda x0, e, t, ab: (wide(ab, t) * x0 + (1 - wide(ab, t)).sqrt() * e).float()
    ),
    "the noise's weight is 1 - alpha_bar without its root": (
        lambda x0, e, t, ab: (wide(ab, t).sqrt() * x0 + (1 - wide(ab, t)) * e).float()
    ),
    "your noise is not scaled": lambda x0, e, t, ab: (wide(ab, t).sqrt() * x0 + e).float(),
    "does not shrink": lambda x0, e, t, ab: (x0 + (1 - wide(ab, t)).sqrt() * e).float(),
    "subtract first": lambda x0, e, t, ab: (wide(ab, t).sqrt() * x0 + (1 - wide(ab, t).sqrt()) * e).float(),
    "wrong way round": lambda x0, e, t, ab: ((1 - wide(ab, t)).sqrt() * x0 + wide(ab, t).sqrt() * e).float(),
    "is subtracted": lambda x0, e, t, ab: (wide(ab, t).sqrt() * x0 - (1 - wide(ab, t)).sqrt() * e).float(),
    "straight fade": lambda x0, e, t, ab: x0 + t.view(-1, 1, 1, 1) / 1000 * (e - x0),
    "those of t - 1": lambda x0, e, t, ab: in_a_loop(x0, e, t - 1, ab),
    "those of t + 1": lambda x0, e, t, ab: in_a_loop(x0, e, t + 1, ab),
    "the time of the first one": lambda x0, e, t, ab: in_a_loop(x0, e, t[:1].expand(len(t)), ab),
    "one single step": lambda x0, e, t, ab: in_a_loop(x0, e, t, ab / torch.cat([ab.new_ones(1), ab[:-1]])),
    "do not draw noise inside": lambda x0, e, t, ab: in_a_loop(x0, torch.randn_like(x0), t, ab),
    "use the argument `noise`": lambda x0, e, t, ab: in_a_loop(x0, torch.ones_like(x0), t, ab),
    "right for one schedule and wrong for another": lambda x0, e, t, ab: NoiseSchedule().add_noise(x0, e, t),
    "has become torch.float64": lambda x0, e, t, ab: wide(ab, t).sqrt() * x0 + (1 - wide(ab, t)).sqrt() * e,
    "give alpha_bar[t] the shape": lambda x0, e, t, ab: in_a_loop(x0, e, t, ab)[:1],
    "write x = a * x": lambda x0, e, t, ab: x0.mul_(wide(ab, t).sqrt()).add_((1 - wide(ab, t)).sqrt() * e),
    "NaN": lambda x0, e, t, ab: in_a_loop(x0, e, t, ab) * math.nan,
    "not those of the closed form": lambda x0, e, t, ab: 0.7 * x0 + 0.7 * e,
    "return x_t as a tensor": lambda x0, e, t, ab: "x_t",
}


def with_table(alpha_bar):
    schedule = NoiseSchedule()
    schedule.alpha_bar = alpha_bar
    return schedule


@pytest.mark.parametrize("style", ADD_NOISE_RIGHT)
def test_add_noise_right(style):
    verdict = give("add_noise", ADD_NOISE_RIGHT[style])
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", ADD_NOISE_SLIPS)
def test_add_noise_slips(diagnosis):
    verdict = give("add_noise", ADD_NOISE_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- zero_terminal


def planted(alpha_bar):
    signal = alpha_bar.sqrt()
    signal = signal - signal[-1]
    signal = signal * signal[0] / (signal[0] - signal[-1])
    return signal


def straight(alpha_bar):
    s = alpha_bar.sqrt()
    return s[0] * (s - s[-1]) / (s[0] - s[-1])


def straight_in_numpy(alpha_bar):
    s = np.sqrt(alpha_bar)
    return np.interp(s, [s[-1], s[0]], [0, s[0]]) ** 2


def in_place(alpha_bar):
    alpha_bar.sqrt_().sub_(alpha_bar[-1].clone())
    return alpha_bar**2


ZERO_RIGHT = {
    "one line": lambda ab: straight(ab) ** 2,
    "numpy": lambda ab: straight_in_numpy(ab.numpy()),
    "list": lambda ab: (straight(ab) ** 2).tolist(),
    "single precision": lambda ab: straight(ab.float()).square(),
    "stretch written out": lambda ab: (ab.sqrt() * 1 - ab[-1].sqrt()).div(1 - (ab[-1] / ab[0]).sqrt()).pow(2),
}
ZERO_SLIPS = {
    "two faults are left": planted,
    "square them to get alpha_bar": straight,
    "keep its old value": lambda ab: planted(ab) ** 2,
    "not to 1": lambda ab: (straight(ab) / ab[0].sqrt()) ** 2,
    "shift its root": lambda ab: (ab - ab[-1]) * ab[0] / (ab[0] - ab[-1]),
    "only the last entry": lambda ab: torch.cat([ab[:-1], ab.new_zeros(1)]),
    "the old table": lambda ab: ab,
    "work on a copy": in_place,
    "the last entry should be 0": lambda ab: 0.5 * ab + 0.1,
    "the first entry should stay": lambda ab: (straight(ab) * 0.9) ** 2,
    "both ends are right": lambda ab: ab[0] * torch.linspace(1, 0, 1000, dtype=torch.float64) ** 2,
    "has the shape": lambda ab: straight(ab)[:-1] ** 2,
    "a function": 0.0,
}


@pytest.mark.parametrize("style", ZERO_RIGHT)
def test_zero_terminal_right(style):
    verdict = give("zero_terminal", ZERO_RIGHT[style])
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", ZERO_SLIPS)
def test_zero_terminal_slips(diagnosis):
    verdict = give("zero_terminal", ZERO_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- posterior_variance


def before(s, ab):
    return float(ab[s]) if s >= 0 else 1.0


def by_precision(s, t, ab):
    """Two witnesses: the past says 1 - a_s, the future says (1 - a_t / a_s) / (a_t / a_s)."""
    a_s, a_t = before(s, ab), float(ab[t])
    if a_s == 1:
        return 0.0
    keep = a_t / a_s
    return 1 / (1 / (1 - a_s) + keep / (1 - keep))


def with_a_longer_table(s, t, ab):
    ab = torch.cat([torch.ones(1, dtype=ab.dtype), ab])
    return (1 - ab[s + 1]) / (1 - ab[t + 1]) * (1 - ab[t + 1] / ab[s + 1])


def by_betas(s, t, ab):
    betas = 1 - ab / torch.cat([ab.new_ones(1), ab[:-1]])
    return np.float64((1 - before(s, ab)) / (1 - ab[t]) * (1 - torch.prod(1 - betas[s + 1 : t + 1])))


def slip(formula):
    return lambda s, t, ab: formula(before(s, ab), float(ab[t]), before(t - 1, ab))


VARIANCE_SLIPS = {
    "way forward from s to t": slip(lambda a_s, a_t, b: 1 - a_t / a_s),
    "right for neighbours": slip(lambda a_s, a_t, b: (1 - a_s) / (1 - a_t) * (1 - a_t / b)),
    "whatever s is": slip(lambda a_s, a_t, b: (1 - b) / (1 - a_t) * (1 - a_t / b)),
    "beta of the last step": slip(lambda a_s, a_t, b: 1 - a_t / b),
    "that is a root": slip(lambda a_s, a_t, b: math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))),
    "upside down": slip(lambda a_s, a_t, b: (1 - a_t) / max(1 - a_s, 1e-9) * (1 - a_t / a_s)),
    "not the difference": slip(lambda a_s, a_t, b: (1 - a_s) / (1 - a_t) * (a_s - a_t)),
    "x_0 alone": slip(lambda a_s, a_t, b: 1 - a_s),
    "that is negative": slip(lambda a_s, a_t, b: (1 - a_s) / (1 - a_t) * (1 - a_s / a_t)),
    "the last entry of the table": lambda s, t, ab: (1 - ab[s]) / (1 - ab[t]) * (1 - ab[t] / ab[s]),
    "it stops: KeyError": lambda s, t, ab: by_precision({k: k for k in range(1000)}[s], t, ab),
    "the variance is": slip(lambda a_s, a_t, b: 0.01),
    "yours is nan": slip(lambda a_s, a_t, b: math.nan),
    "return one number": lambda s, t, ab: ab,
}


@pytest.mark.parametrize("mine", [by_precision, with_a_longer_table, by_betas])
def test_posterior_variance_right(mine):
    verdict = give("posterior_variance", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", VARIANCE_SLIPS)
def test_posterior_variance_slips(diagnosis):
    verdict = give("posterior_variance", VARIANCE_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


def test_the_formula_is_the_one_of_a_simulated_crowd():
    """Over a gap, from x_7 back to x_3: the spread of x_3 among those that land near one x_7."""
    table = NoiseSchedule(ScheduleConfig(num_steps=10, kind="linear", beta_start=0.05, beta_end=0.3)).alpha_bar
    generator = torch.Generator().manual_seed(0)
    past, step = torch.randn(2, 1_000_000, generator=generator, dtype=torch.float64)
    a_s, a_t = float(table[3]), float(table[7])
    x_s = math.sqrt(a_s) * 1.5 + math.sqrt(1 - a_s) * past
    x_t = math.sqrt(a_t / a_s) * x_s + math.sqrt(1 - a_t / a_s) * step
    crowd = x_s[(x_t - 0.5).abs() < 0.02]
    assert float(crowd.var()) == pytest.approx(by_precision(3, 7, table), rel=0.05)


# --- hide_the_bicycle


@pytest.mark.parametrize("answer", [300, 400.0, np.int64(350), torch.tensor(450), "300"], ids=repr)
def test_hide_the_bicycle_right(answer):
    assert give("hide_the_bicycle", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (0, "go to a larger t"),
        (200, "the bicycle in 32 of 32"),
        (501, "go to a smaller t"),
        (999, "the house in 3"),
        (1000, "0 to 999"),
        (300.5, "a whole number"),
        ("half", "a whole number"),
        (0.3, "a whole number"),
    ],
)
def test_hide_the_bicycle_slips(answer, diagnosis):
    verdict = give("hide_the_bicycle", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


@needs_weights
def test_the_real_judge_leaves_room_for_an_answer(monkeypatch):
    monkeypatch.undo()
    seen = {t: judges.looks(t) for t in (0, 100, 400, 900)}
    assert seen[0] == (32, 32)
    assert give("hide_the_bicycle", 100).state == LOOK_AGAIN
    assert give("hide_the_bicycle", 900).state == LOOK_AGAIN
    names = {}
    exec(str(solution("forward_noising.hide_the_bicycle")), names)
    assert 200 <= names["answer"] <= 600
    assert give("hide_the_bicycle", names["answer"]).state == PASS
