"""The exercises of lesson 06: right answers in several styles pass, each typical slip gets its own diagnosis."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import lesson_06_kit as kit
from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.lessons.lesson_06_judges import GRID_ERROR
from ldm_tutor.sampling.steps import ddim_step, dpmpp_2m_step, timestep_grid
from ldm_tutor.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
TABLE = SCHEDULE.alpha_bar


def give(name, answer):
    return getattr(check.sampling, name)(answer)


def expect(name, answer, diagnosis):
    verdict = give(name, answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- how_many_steps


@pytest.mark.parametrize(
    "answer", [(320, 80), [320, 80], (320.0, Fraction(80)), np.array([320, 80]), torch.tensor([320, 80])], ids=repr
)
def test_how_many_steps_right(answer):
    assert give("how_many_steps", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((80, 320), "wrong way round"),
        ((320, 320), "a quarter"),
        ((80, 80), "only halves"),
        ((320, 160), "root of 16"),
        ((320, 1280), "fewer"),
        ((320, 5120), "not its square"),
        ((16, 4), "those are the factors"),
        ((300, 60), "in all"),
        ((320, 79), "the first is right"),
        ((321, 80), "the second is right"),
        ((1, 2), "a factor of 16"),
        (320, "a pair"),
        ((320, 80, 1), "a pair"),
    ],
)
def test_how_many_steps_slips(answer, diagnosis):
    expect("how_many_steps", answer, diagnosis)


# --- ddim


def by_package(x_t, eps, noise, a, a_prev, eta):
    """The step of the package, on a schedule of two times with these alpha_bars."""
    table = NoiseSchedule()
    table.alpha_bar = torch.tensor([a_prev, a], dtype=torch.float64)
    t_prev = None if a_prev == 1 else 0
    return ddim_step(x_t, eps, 1, t_prev, _small(table), eta, noise, final_alpha_one=True).x_prev


def _small(table):
    class Two:
        num_steps, alpha_bar = 2, table.alpha_bar

    return Two()


def in_numpy(x_t, eps, noise, a, a_prev, eta):
    x_t, eps, noise = (each.numpy() for each in (x_t, eps, noise))
    sigma = eta * np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)
    guess = x_t / np.sqrt(a) - np.sqrt(1 / a - 1) * eps
    return np.sqrt(a_prev) * guess + np.sqrt(1 - a_prev - sigma**2) * eps + sigma * noise


def ddim(eps_part=None, fresh_part=None, x0_part=None):
    """A step with one part replaced: functions of (a, a_prev, v, eta), where v is the fresh variance at eta 1."""

    def step(x_t, eps, noise, a, a_prev, eta):
        v = (1 - a_prev) / (1 - a) * (1 - a / a_prev)
        x0_hat = (x_t - (1 - a) ** 0.5 * eps) / a**0.5
        parts = [
            x0_part(a, a_prev, v, eta) if x0_part else a_prev**0.5,
            eps_part(a, a_prev, v, eta) if eps_part else (1 - a_prev - eta**2 * v) ** 0.5,
            fresh_part(a, a_prev, v, eta) if fresh_part else eta * v**0.5,
        ]
        return parts[0] * x0_hat + parts[1] * eps + parts[2] * noise

    return step


def undivided(x_t, eps, noise, a, a_prev, eta):
    v = eta**2 * (1 - a_prev) / (1 - a) * (1 - a / a_prev)
    return a_prev**0.5 * (x_t - (1 - a) ** 0.5 * eps) + (1 - a_prev - v) ** 0.5 * eps + v**0.5 * noise


DDIM_SLIPS = {
    "keep all of the old": ddim(eps_part=lambda a, p, v, eta: (1 - p) ** 0.5),
    "weighted by its variance": ddim(fresh_part=lambda a, p, v, eta: eta**2 * v),
    "you subtract the spread": ddim(eps_part=lambda a, p, v, eta: max(1 - p - eta * v**0.5, 0) ** 0.5),
    "eta squared": ddim(lambda a, p, v, eta: (1 - p - eta * v) ** 0.5, lambda a, p, v, eta: (eta * v) ** 0.5),
    "for others the fresh noise is missing": ddim(lambda a, p, v, eta: (1 - p) ** 0.5, lambda *_: 0.0),
    "right for eta = 1 only": ddim(lambda a, p, v, eta: (1 - p - v) ** 0.5, lambda a, p, v, eta: v**0.5),
    "without its weight": ddim(x0_part=lambda *_: 1.0),
    "a_prev without its root": ddim(x0_part=lambda a, p, v, eta: p),
    "with the weight of t": ddim(x0_part=lambda a, p, v, eta: a**0.5),
    "the noise level of t": ddim(lambda a, p, v, eta: (1 - a - eta**2 * v) ** 0.5),
    "that is not x0_hat yet": undivided,
    "right for eta = 0. For eta > 0": ddim(fresh_part=lambda a, p, v, eta: 3 * eta),
    "not right at eta = 0": lambda x, e, n, a, p, eta: x,
    "has the shape": lambda x, e, n, a, p, eta: x[0],
    "NaN": lambda x, e, n, a, p, eta: x * math.nan,
    "the clean end": lambda x, e, n, a, p, eta: in_numpy(x, e, n, a, p, eta) if p < 1 else x,
}


@pytest.mark.parametrize("mine", [by_package, in_numpy, ddim()], ids=["package", "numpy", "by parts"])
def test_ddim_right(mine):
    verdict = give("ddim", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", DDIM_SLIPS)
def test_ddim_slips(diagnosis):
    if diagnosis == "you subtract the spread":  # its root is of something negative, so NaN may come first
        verdict = give("ddim", DDIM_SLIPS[diagnosis])
        assert verdict.state == LOOK_AGAIN and ("spread" in verdict.message or "eta" in verdict.message), verdict
        return
    expect("ddim", DDIM_SLIPS[diagnosis], diagnosis)


# --- two_m


def lam(a):
    return 0.5 * math.log(a / (1 - a))


def two_m_by_package(x_t, x0_hat, x0_before, a_before, a, a_prev):
    class Three:
        num_steps, alpha_bar = 3, torch.tensor([a_prev, a, a_before], dtype=torch.float64)

    eps = (x_t - a**0.5 * x0_hat) / (1 - a) ** 0.5
    return dpmpp_2m_step(x_t, eps, 1, 0, Three(), 2, x0_before).x_prev


def two_m(r=None, grow=False, lean=1.0, back=False, sigmas=None, weight=None, clock=lam):
    def step(x_t, x0_hat, x0_before, a_before, a, a_prev):
        h, h_before = clock(a_prev) - clock(a), clock(a) - clock(a_before)
        ratio = r(h, h_before) if r else h_before / h
        k = lean / (2 * ratio)
        aim = (1 - k) * x0_hat + k * x0_before if back else (1 + k) * x0_hat - k * x0_before
        shrink = ((1 - a_prev) / (1 - a)) ** 0.5
        alpha = 1.0 if weight else a_prev**0.5
        return (1 / shrink if sigmas else shrink) * x_t - alpha * math.expm1(h if grow else -h) * aim

    return step


def upside_down(h, h_before):
    return h / h_before


TWO_M_SLIPS = {
    "both faults are still there": two_m(r=upside_down, grow=True),
    "yours is upside down": two_m(r=upside_down),
    "-expm1(-h), not -expm1(h)": two_m(grow=True),
    "leans back": two_m(back=True),
    "at x0_hat alone": two_m(lean=0.0),
    "to the end of the step": two_m(lean=2.0),
    "of the two sigmas": two_m(sigmas=True),
    "missing the root of a_prev": two_m(weight=True),
    "twice too large": two_m(clock=lambda a: 2 * lam(a)),
    "change only the line of r": lambda *given: given[0],
    "has the shape": lambda *given: given[0][:2],
    "NaN": lambda *given: given[0] * math.nan,
}


@pytest.mark.parametrize("mine", [two_m_by_package, two_m()], ids=["package", "formula"])
def test_two_m_right(mine):
    verdict = give("two_m", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", TWO_M_SLIPS)
def test_two_m_slips(diagnosis):
    expect("two_m", TWO_M_SLIPS[diagnosis], diagnosis)


# --- redraw_start


def start(first=None, time=None, weights=None, keep=True):
    """A start with one part replaced: first(n, strength), time(grid, start, strength), weights(a, strength)."""

    def my_start(latents, noise, strength, grid, alpha_bar):
        n = len(grid)
        at = first(n, strength) if first else n - round(strength * n)
        if keep and at == n:
            return latents, at
        t = time(grid, at, strength) if time else grid[at]
        a = float(alpha_bar[t])
        one, other = weights(a, strength) if weights else (a**0.5, (1 - a) ** 0.5)
        return one * latents + other * noise, at

    return my_start


def start_with_schedule(latents, noise, strength, grid, alpha_bar):
    steps = round(strength * len(grid))
    if steps == 0:
        return [latents, len(grid)]
    t = torch.full((len(latents),), grid[-steps])
    return [SCHEDULE.add_noise(latents, noise, t), np.int64(len(grid) - steps)]


START_SLIPS = {
    "the share of steps that run": start(first=lambda n, s: round(s * n), time=lambda grid, at, s: grid[min(at, 7)]),
    "round the number of steps": start(first=lambda n, s: n - int(s * n)),
    "should start at step": start(first=lambda n, s: max(n - round(s * n) - 1, 0)),
    "where its square root belongs": start(weights=lambda a, s: (a, 1 - a)),
    "the latents with noise added": start(weights=lambda a, s: (0.0, 1.0)),
    "the latents do not shrink": start(weights=lambda a, s: (1.0, (1 - a) ** 0.5)),
    "you mix by the strength": start(weights=lambda a, s: (1 - s, s)),
    "the time of the step beside it": start(time=lambda grid, at, s: grid[min(at + 1, len(grid) - 1)]),
    "strength times 1000": start(time=lambda grid, at, s: round(s * 1000) - 1),
    "should stand at the time": start(weights=lambda a, s: (a**0.5, 0.5)),
    "for strength 0 it stops: IndexError": start(keep=False),
    "strength 0 keeps the latents": lambda x, n, s, grid, table: start()(x, n, s, grid, table) if s else (n, len(grid)),
    "return two things": lambda x, n, s, grid, table: x,
    "a whole number": lambda x, n, s, grid, table: (x, "first"),
}


@pytest.mark.parametrize("mine", [start(), start_with_schedule], ids=["formula", "schedule"])
def test_redraw_start_right(mine):
    verdict = give("redraw_start", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", START_SLIPS)
def test_redraw_start_slips(diagnosis):
    expect("redraw_start", START_SLIPS[diagnosis], diagnosis)


# --- better_grid


SQUARES = [round(999 * (1 - i / 10) ** 2) for i in range(10)]


@pytest.mark.parametrize("grid", [SQUARES, tuple(SQUARES), np.array(SQUARES), torch.tensor(SQUARES)], ids=type)
def test_better_grid_right(grid):
    assert give("better_grid", grid).state == PASS


@pytest.mark.parametrize(
    ("grid", "diagnosis"),
    [
        (timestep_grid(SCHEDULE, 10, "trailing"), "last leap goes from t = 99"),
        ([999, 990, 980, 970, 960, 950, 940, 930, 920, 10], "widest leap is from t = 920 to 10"),
        (SQUARES[::-1], "rises"),
        (SQUARES[:-1], "9 time steps"),
        (timestep_grid(SCHEDULE, 10), "starts at 901"),
        ([999, *SQUARES[:-1]], "below the one before"),
        ([999.5, *SQUARES[1:]], "whole numbers"),
        ([*SQUARES[:-1], -5], "between 0 and 999"),
        (10, "a list of 10"),
    ],
)
def test_better_grid_slips(grid, diagnosis):
    expect("better_grid", grid, diagnosis)


def test_the_grid_error_vanishes_with_all_steps_and_falls_with_their_square():
    assert kit.grid_error(timestep_grid(SCHEDULE, 1000)) < 2e-3
    errors = [kit.grid_error([*range(999, 99, -step), *range(99, -1, -1)]) for step in (100, 50)]
    assert errors[0] > errors[1]
    assert kit.grid_error(timestep_grid(SCHEDULE, 10, "trailing")) > 3 * GRID_ERROR


# --- the figures that come with the lesson


def test_the_shipped_figures_are_whole():
    report = kit.load_figures()
    assert report["num"] >= 32 and report["num_reference"] >= 500 and report["weights"] == kit.weights_mark()
    for row in report["rows"]:
        low, high = row["all"]["interval"]
        assert (
            0 <= low <= row["all"]["value"] <= high <= 1 and row["distance"] > 0 and row["all"]["num"] == report["num"]
        )
    assert report["real"]["all"]["value"] > 0.9 and report["real"]["distance"] > 0
    steps, shares = kit.curve(report, "ddim", "all")
    assert steps == list(kit.STEPS["ddim"]) and len(shares) == len(steps)
    assert kit.quality_table(report).count("\n") == len(report["rows"])


def test_figures_that_are_not_whole_are_named(tmp_path):
    with pytest.raises(ConfigError, match="lesson_06_kit"):
        kit.load_figures(tmp_path / "nothing.json")
    report = kit.load_figures()
    broken = tmp_path / "broken.json"
    for rows, word in (([], "missing"), ([{}], "KeyError"), (3, "TypeError")):
        broken.write_text(json.dumps(report | {"rows": rows}), encoding="utf-8")
        with pytest.raises(ConfigError, match=word):
            kit.load_figures(broken)


def test_pictures_are_judged_one_by_one():
    scenes = render_scenes(3, "test")
    captions = ["a red car", *scenes.captions[1:]]  # scene 0 has a dog and a house
    told, more = kit.judged(to_float(scenes.pictures), captions)
    assert told.startswith("2 of 3 ") and more == [0]


def test_measuring_gives_the_same_form(shipped):
    pipeline, judge = shipped
    report = kit.measure(pipeline, judge, steps={"ddim": (1,)}, num=2, num_reference=4)
    assert set(report) == set(kit.load_figures())
    assert [row["num_steps"] for row in report["rows"]] == [1]
    assert set(report["rows"][0]) == set(kit.load_figures()["rows"][0])


@pytest.fixture
def shipped():
    from ldm_tutor.evaluation import load_judge
    from ldm_tutor.pipeline import load_pipeline
    from ldm_tutor.weights.shipped import shipped_folder

    if not shipped_folder().exists():
        pytest.skip("the shipped weights are not there")
    return load_pipeline(), load_judge()
