"""The judges of lesson 04: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ldm_tutor.config import ScheduleConfig
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.world import Scene, SceneObject
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.metrics.reading import read_pictures
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Tensor

HOUSE = SceneObject(kind="house", color="blue", size="large", x=0.5, y=0.36, scale=0.5)
BICYCLE = SceneObject(kind="bicycle", color="red", size="small", x=0.42, y=0.76, scale=0.26)
PAIR = Scene(objects=(HOUSE, BICYCLE), background="day")
NUM_LOOKS, MANY, FEW = 32, 24, 8  # looks at the pair, and what counts as seen and as hidden


def _number(answer: Any) -> float | None:
    """Return the answer as a number, None where it is none."""
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None


# ---------------------------------------------------------------- half_way

_HALF_WAY_SLIPS = {
    68: "68 steps leave 0.505 of the variance, a little more than half, and 69 leave 0.4998. (The step with the "
    "index 68 is the 69th; the question is how many steps.)",
    50: "50 times 0.01 is 0.5, but the steps do not add up like that: each also shrinks the noise of those before",
    100: "100 times 0.01 is 1, but the picture shrinks at every step too, so the two meet earlier",
    138: "after 138 steps half of the amplitude is left, so a quarter of the variance; SNR compares variances",
    139: "after 139 steps half of the amplitude is left, so a quarter of the variance; SNR compares variances",
    34: "you shrink the variance by 0.99 squared; 0.99 is already what one step leaves of the variance",
    35: "you shrink the variance by 0.99 squared; 0.99 is already what one step leaves of the variance",
    459: "that leaves a hundredth of the picture; the question is when a half is left",
}


def judge_half_way(answer: Any) -> Verdict:
    """Judge the number of steps with beta 0.01 after which picture and noise have the same variance: 69."""
    value = _number(answer)
    if value is None:
        return look_again("the answer is one whole number")
    if 68.9 <= value <= 69:
        return passed("0.99 multiplied 69 times is one half: picture and noise have the same variance, SNR 1, 0 dB")
    for slip, reason in _HALF_WAY_SLIPS.items():
        if abs(value - slip) < 0.5:
            return look_again(reason)
    if value < 1:
        return look_again("the answer is a number of steps, so 1 or more")
    return look_again("what is left of the picture's variance after n steps? Set it to one half and solve for n")


# ---------------------------------------------------------------- add_noise

_SHAPE = (256, 4, 4, 4)
_Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_ADD_NOISE_SLIPS: tuple[tuple[_Formula, str], ...] = (  # (a, x0, noise, t) -> what the slip gives
    (
        lambda a, x0, noise, t: a * x0 + (1 - a) * noise,
        "you multiply by alpha_bar and 1 - alpha_bar where their square roots belong",
    ),
    (lambda a, x0, noise, t: a * x0 + (1 - a).sqrt() * noise, "the picture's weight is alpha_bar without its root"),
    (lambda a, x0, noise, t: a.sqrt() * x0 + (1 - a) * noise, "the noise's weight is 1 - alpha_bar without its root"),
    (
        lambda a, x0, noise, t: a.sqrt() * x0 + noise,
        "your noise is not scaled: its weight is the root of 1 - alpha_bar",
    ),
    (lambda a, x0, noise, t: x0 + (1 - a).sqrt() * noise, "your picture does not shrink: its weight is a root too"),
    (
        lambda a, x0, noise, t: a.sqrt() * x0 + (1 - a.sqrt()) * noise,
        "the noise's weight is 1 - sqrt(alpha_bar): subtract first, then take the root",
    ),
    (
        lambda a, x0, noise, t: (1 - a).sqrt() * x0 + a.sqrt() * noise,
        "the two weights are the wrong way round: at t = 0 nearly all is picture",
    ),
    (
        lambda a, x0, noise, t: a.sqrt() * x0 - (1 - a).sqrt() * noise,
        "your noise is subtracted; the U-Net of the next lesson will look for noise that was added",
    ),
    (
        lambda a, x0, noise, t: (1 - t / 1000) * x0 + t / 1000 * noise,
        "that is the straight fade of the beginning; the weights come from alpha_bar",
    ),
)


def judge_add_noise(my_add_noise: Any) -> Verdict:
    """Judge a function (x0, noise, t, alpha_bar) -> x_t against the closed form, on two schedules."""
    if not callable(my_add_noise):
        return look_again("the answer is a function: my_add_noise(x0, noise, t, alpha_bar)")
    generator = torch.Generator().manual_seed(4)
    x0, noise = (torch.randn(_SHAPE, generator=generator) for _ in range(2))
    t = torch.randint(1, 999, _SHAPE[:1], generator=generator)
    for kind in ("scaled_linear", "cosine"):
        table = NoiseSchedule(ScheduleConfig(kind=kind)).alpha_bar
        given = x0.clone(), noise.clone(), t.clone(), table.clone()
        result = my_add_noise(*given)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and x_t")
        if not all(torch.equal(now, was) for now, was in zip(given, (x0, noise, t, table), strict=True)):
            return look_again("your function changes what it was given: write x = a * x, not x *= a")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return x_t as a tensor")
        if got.shape != x0.shape:
            return look_again(
                f"the result has the shape {tuple(got.shape)}, x0 has {_SHAPE}: give alpha_bar[t] the shape "
                "(b, 1, 1, 1), so that each picture gets its own factor"
            )
        if not _close(got, _jump(x0, noise, t, table)):
            return look_again(_why_not_x_t(my_add_noise, got, x0, noise, t, table, kind))
        if got.dtype != x0.dtype:
            return look_again(
                f"the numbers are right, but x_t has become {got.dtype} like the table: convert the weights with "
                ".to(x0) before you multiply"
            )
    return passed("your jump is right for every picture at its own t, on two schedules, and the variance stays 1")


def _jump(x0: Tensor, noise: Tensor, t: Tensor, table: Tensor) -> Tensor:
    a = table[t].view(-1, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def _why_not_x_t(
    my_add_noise: Callable[..., Any], got: Tensor, x0: Tensor, noise: Tensor, t: Tensor, table: Tensor, kind: str
) -> str:
    """Name the likely slip behind a result of the right shape, with the variance that it leads to."""
    if not bool(torch.isfinite(got).all()):
        return "your result has values that are not numbers (NaN): which root is taken of something negative?"
    if kind != "scaled_linear":
        return "right for one schedule and wrong for another: use the table `alpha_bar` that your function is given"
    a = table[t].view(-1, 1, 1, 1)
    time = t.view(-1, 1, 1, 1)
    for slip, reason in _ADD_NOISE_SLIPS:
        if _close(got, slip(a, x0, noise, time)):
            return reason + _variance_at_500(my_add_noise, table)
    for shift, name in ((-1, "t - 1"), (1, "t + 1")):
        if _close(got, _jump(x0, noise, t + shift, table)):
            return f"your factors are those of {name}: the table counts from 0 as t does, so look up alpha_bar[t]"
    if _close(got, _jump(x0, noise, t[:1].expand(len(t)), table)):
        return "every picture gets the time of the first one: look up alpha_bar[t] for the whole batch at once"
    betas = 1 - table / torch.cat([torch.ones(1, dtype=table.dtype), table[:-1]])
    if _close(got, _jump(x0, noise, t, 1 - betas)):
        return "that is one single step: the product over all steps up to t, alpha_bar[t], makes the jump"
    other, twice = torch.flip(noise, (0,)), _as_tensor(my_add_noise(x0, noise, t, table))
    if twice is None or not _close(twice, got):
        return "two calls give two results: do not draw noise inside, use the argument `noise`"
    moved = _as_tensor(my_add_noise(x0, other, t, table))
    if moved is None or _close(moved, got):
        return "other noise gives the same result: use the argument `noise`"
    return f"your weights are not those of the closed form{_variance_at_500(my_add_noise, table)}"


def _variance_at_500(my_add_noise: Callable[..., Any], table: Tensor) -> str:
    generator = torch.Generator().manual_seed(5)
    x0, noise = (torch.randn(_SHAPE, generator=generator) for _ in range(2))
    got = _as_tensor(my_add_noise(x0, noise, torch.full(_SHAPE[:1], 500), table))
    if got is None or abs(float(got.var()) - 1) < 0.05:
        return ""
    return f" (the variance at t = 500 should be 1.00, yours is {float(got.var()):.2f})"


# ---------------------------------------------------------------- zero_terminal


def judge_zero_terminal(zero_terminal: Any) -> Verdict:
    """Judge a function alpha_bar -> alpha_bar whose last entry is 0, first entry kept: Lin et al. 2023, section 3.1."""
    if not callable(zero_terminal):
        return look_again("the answer is a function: zero_terminal(alpha_bar)")
    for first, last in ((0.00085, 0.012), (0.0015, 0.0195)):
        table = NoiseSchedule(ScheduleConfig(beta_start=first, beta_end=last)).alpha_bar
        given = table.clone()
        result = zero_terminal(given)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the new alpha_bar")
        if not torch.equal(given, table):
            return look_again("your function changes the table that it was given: work on a copy")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return the new table as a tensor")
        if got.shape != table.shape:
            return look_again(f"the new table has the shape {tuple(got.shape)}, the old one {tuple(table.shape)}")
        signal = table.sqrt()
        shifted = signal - signal[-1]
        right = (shifted * signal[0] / shifted[0]) ** 2
        if not _close(got, right, 1e-5):
            return look_again(_why_not_zero_terminal(got, right, table))
    return passed("nothing is left at the last step, the first step is as it was, and the amplitude falls as before")


def _why_not_zero_terminal(got: Tensor, right: Tensor, table: Tensor) -> str:
    signal = table.sqrt()
    shifted = signal - signal[-1]
    only_last = torch.cat([table[:-1], torch.zeros(1, dtype=table.dtype)])
    slips = (
        (shifted, "two faults are left: these are amplitudes, so square them; and the first one has shrunk"),
        (right.sqrt(), "shift and stretch are right, and what you return are amplitudes: square them to get alpha_bar"),
        (
            shifted**2,
            f"the last entry is 0, but the first has fallen from {table[0]:.4f} to {shifted[0] ** 2:.4f}: "
            "when you stretch, signal[0] has been shifted already; keep its old value",
        ),
        (
            (shifted / shifted[0]) ** 2,
            f"your first entry is 1, the old one is {table[0]:.4f}: stretch back to the old value, not to 1",
        ),
        (
            (table - table[-1]) * table[0] / (table[0] - table[-1]),
            "you shift alpha_bar itself; shift its root, the amplitude, and square at the end",
        ),
        (only_last, "only the last entry is changed: the step before it would have to destroy everything at once"),
        (table, "this is the old table: its last entry is not 0"),
    )
    for slip, reason in slips:
        if _close(got, slip, 1e-5):
            return reason
    if not abs(float(got[-1])) < 1e-5:
        return f"the last entry should be 0, yours is {float(got[-1]):.5f}"
    if not abs(float(got[0] - table[0])) < 1e-5:
        return f"the first entry should stay {table[0]:.4f}, yours is {float(got[0]):.4f}"
    return "both ends are right, but not what is between: shift and stretch the roots, each by one number, then square"


# ---------------------------------------------------------------- posterior_variance

_PAIRS = ((499, 500), (0, 1), (10, 20), (200, 999), (700, 703))
_CLEAN = ((-1, 0), (-1, 10), (-1, 999))
_VARIANCE_SLIPS: tuple[tuple[Callable[[float, float, float], float], str], ...] = (  # (a_s, a_t, a before t)
    (
        lambda a_s, a_t, _: 1 - a_t / a_s,
        "that is the noise of the way forward from s to t; x_0 is known too, which makes it smaller: "
        "multiply by (1 - alpha_bar[s]) / (1 - alpha_bar[t])",
    ),
    (
        lambda a_s, a_t, before: (1 - a_s) / (1 - a_t) * (1 - a_t / before),
        "right for neighbours; over a gap the noise added is 1 - alpha_bar[t] / alpha_bar[s], not the last step's beta",
    ),
    (
        lambda a_s, a_t, before: (1 - before) / (1 - a_t) * (1 - a_t / before),
        "that is the variance one step back from t, whatever s is: alpha_bar[s] belongs where alpha_bar[t - 1] stands",
    ),
    (
        lambda a_s, a_t, before: 1 - a_t / before,
        "that is beta of the last step; the gap and the knowledge of x_0 are missing",
    ),
    (lambda a_s, a_t, _: math.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)), "that is a root; a variance is asked for"),
    (
        lambda a_s, a_t, _: (1 - a_t) / (1 - a_s) * (1 - a_t / a_s),
        "the quotient in front is upside down: knowing x_0 makes the variance smaller, never larger",
    ),
    (
        lambda a_s, a_t, _: (1 - a_s) / (1 - a_t) * (a_s - a_t),
        "the noise added between s and t is 1 less a ratio, alpha_bar[t] / alpha_bar[s], not the difference of the two",
    ),
    (lambda a_s, a_t, _: 1 - a_s, "that is the variance of x_s when x_0 alone is known; x_t says something too"),
    (
        lambda a_s, a_t, _: (1 - a_s) / (1 - a_t) * (1 - a_s / a_t),
        "that is negative: the picture's share falls by alpha_bar[t] / alpha_bar[s], which is below 1",
    ),
)


def judge_posterior_variance(my_variance: Any) -> Verdict:
    """Judge a function (s, t, alpha_bar) -> variance of x_s given x_t and x_0: DDPM eq. 7 for any s < t."""
    if not callable(my_variance):
        return look_again("the answer is a function: my_posterior_variance(s, t, alpha_bar)")
    table = NoiseSchedule().alpha_bar
    got = []
    for s, t in _PAIRS:
        result = my_variance(s, t, table.clone())
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the variance")
        value = _number(result)
        if value is None:
            return look_again(f"your function returns a {type(result).__name__}: return one number, the variance")
        got.append(value)
    known = [(float(table[s]), float(table[t]), float(table[t - 1])) for s, t in _PAIRS]
    right = [(1 - a_s) / (1 - a_t) * (1 - a_t / a_s) for a_s, a_t, _ in known]
    if not _all_near(got, right):
        for slip, reason in _VARIANCE_SLIPS:
            if _all_near(got, [slip(*each) for each in known]):
                return look_again(reason)
        worst = max(range(len(got)), key=lambda k: abs(got[k] - right[k]) if math.isfinite(got[k]) else math.inf)
        s, t = _PAIRS[worst]
        return look_again(f"from t = {t} back to s = {s} the variance is {right[worst]:.4f}, yours is {got[worst]:.4f}")
    for s, t in _CLEAN:
        try:
            value = _number(my_variance(s, t, table.clone()))
        except Exception as error:  # a learner's code may raise anything
            return look_again(f"right for s from 0 on; for s = -1, the clean picture, it stops: {type(error).__name__}")
        if value is None or not abs(value) < 1e-9:
            return look_again(
                "right for s from 0 on; for s = -1 the variance is 0, since x_0 is known. In Python, alpha_bar[-1] is "
                "the last entry of the table, not the one before the first"
            )
    return passed("right for neighbours, over gaps, and at the clean end, where nothing is uncertain")


def _all_near(got: list[float], wanted: list[float]) -> bool:
    return all(math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-9) for one, other in zip(got, wanted, strict=True))


# ---------------------------------------------------------------- hide_the_bicycle


@lru_cache(maxsize=64)
def looks(t: int) -> tuple[int, int]:
    """In how many of NUM_LOOKS noisy versions of PAIR at time t the judge finds the blue house, and the red bicycle."""
    picture = to_float(torch.from_numpy(draw(PAIR, 64)).permute(2, 0, 1)[None])
    noise = PictureNoise(range(NUM_LOOKS)).initial((3, 64, 64))
    x_t = NoiseSchedule().add_noise(picture.expand(NUM_LOOKS, -1, -1, -1), noise, torch.full((NUM_LOOKS,), t))
    readings = read_pictures(load_judge(), x_t)
    wanted = ((each.kind, each.color) for each in (HOUSE, BICYCLE))
    house, bicycle = (
        sum(any((seen.kind, seen.color) == each for seen in reading.objects) for reading in readings) for each in wanted
    )
    return house, bicycle


def judge_hide_the_bicycle(answer: Any) -> Verdict:
    """Judge a time at which the judge finds the house in most noisy pictures and the bicycle in few."""
    t = _number(answer)
    if t is None or t != t // 1 or not 0 <= t <= 999:
        return look_again("the answer is one time step, a whole number from 0 to 999")
    house, bicycle = looks(int(t))
    told = f"at t = {int(t)} the judge finds the house in {house} and the bicycle in {bicycle} of {NUM_LOOKS} pictures"
    if bicycle > FEW:
        return look_again(f"{told}: the bicycle is not hidden yet, it may be found in {FEW} at most; go to a larger t")
    if house < MANY:
        return look_again(f"{told}: the house is going too, it has to be found in {MANY} at least; go to a smaller t")
    return passed(f"{told}: the fine bicycle is gone, the coarse house still stands")


def _as_tensor(result: Any) -> Tensor | None:
    """Return a result as a tensor of numbers, None where it is none."""
    try:
        tensor = torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.is_floating_point() else None


def _close(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool(((got.double() - wanted.double()).abs() < tolerance).all())
