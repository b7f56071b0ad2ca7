"""The judges of lesson 06: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.lessons.lesson_06_kit import SCHEDULE, grid_error
from ldm_tutor.sampling.steps import timestep_grid
from ldm_tutor.shapes import Tensor

GRID_STEPS, GRID_ERROR = 10, 0.02
_SHAPE = (6, 4, 5, 5)


# ---------------------------------------------------------------- how_many_steps

_STEP_SLIPS = {
    (80, 320): "the right numbers, the wrong way round: the first-order sampler is the one that needs more",
    (320, 320): "for the second order, twice the steps leave a quarter of the error, so far fewer are enough",
    (80, 80): "that is right for the second order; at first order the error only halves when the steps double",
    (320, 160): "at second order 16 times less takes 4 times the steps, the root of 16, not half as many as at first",
    (320, 1280): "the order does not multiply the steps: a second-order sampler needs fewer, not more",
    (320, 5120): "the error falls with the square of the steps: take the root of 16, not its square",
    (16, 4): "those are the factors; the question is how many steps, starting from 20",
    (300, 60): "those are the steps to add; the question is how many there are in all",
}


def judge_how_many_steps(answer: Any) -> Verdict:
    """Judge (steps at order 1, steps at order 2) for a sixteenth of the error at 20 steps: (320, 80)."""
    values = _numbers(answer)
    if values is None or len(values) != 2:
        return look_again("the answer is a pair of whole numbers: (steps at first order, steps at second order)")
    first, second = values
    if (first, second) == (320, 80):
        return passed("a sixteenth of the error: 16 times the steps at first order, 4 times at second order")
    if slip := _STEP_SLIPS.get((round(first), round(second)) if all(map(math.isfinite, values)) else (0, 0)):
        return look_again(slip)
    if first == 320:
        return look_again("the first is right; at second order, twice the steps leave a quarter of the error")
    if second == 80:
        return look_again("the second is right; at first order, twice the steps leave half of the error")
    return look_again("from 0.08 to 0.005 is a factor of 16. By how much do the steps grow at each order?")


# ---------------------------------------------------------------- ddim

_Step = Callable[[Tensor, Tensor, Tensor, float, float, float], Tensor]  # (x, eps, noise, a, a_prev, eta)


def _x0(x: Tensor, eps: Tensor, a: float) -> Tensor:
    return (x - math.sqrt(1 - a) * eps) / math.sqrt(a)


def _variance(a: float, a_prev: float) -> float:
    return (1 - a_prev) / (1 - a) * (1 - a / a_prev)


def _root(value: float) -> float:
    return math.sqrt(value) if value >= 0 else math.nan


def _ddim(x: Tensor, eps: Tensor, noise: Tensor, a: float, a_prev: float, eta: float) -> Tensor:
    fresh = eta**2 * _variance(a, a_prev)
    return math.sqrt(a_prev) * _x0(x, eps, a) + _root(1 - a_prev - fresh) * eps + _root(fresh) * noise


_DDIM_SLIPS: tuple[tuple[_Step, str], ...] = (
    (
        lambda x, e, n, a, p, eta: _ddim(x, e, n, a, p, 0.0) + eta * math.sqrt(_variance(a, p)) * n,
        "you add fresh noise and keep all of the old: under the root of eps, subtract the fresh variance, or the noise "
        "gets too strong from step to step",
    ),
    (
        lambda x, e, n, a, p, eta: (
            math.sqrt(p) * _x0(x, e, a)
            + _root(1 - p - eta**2 * _variance(a, p)) * e
            + eta**2 * _variance(a, p) * n
        ),
        "your fresh noise is weighted by its variance: the weight of a noise is the root of its variance",
    ),
    (
        lambda x, e, n, a, p, eta: (
            math.sqrt(p) * _x0(x, e, a)
            + _root(1 - p - eta * math.sqrt(_variance(a, p))) * e
            + eta * math.sqrt(_variance(a, p)) * n
        ),
        "under the root of eps you subtract the spread of the fresh noise: subtract its variance, the square",
    ),
    (
        lambda x, e, n, a, p, eta: (
            math.sqrt(p) * _x0(x, e, a)
            + _root(1 - p - eta * _variance(a, p)) * e
            + _root(eta * _variance(a, p)) * n
        ),
        "eta multiplies the spread of the fresh noise, so the variance carries eta squared",
    ),
    (lambda x, e, n, a, p, eta: _ddim(x, e, n, a, p, 0.0), "right for eta = 0; for others the fresh noise is missing"),
    (lambda x, e, n, a, p, eta: _ddim(x, e, n, a, p, 1.0), "right for eta = 1 only: multiply the spread by eta"),
    (
        lambda x, e, n, a, p, eta: _ddim(x, e, n, a, p, eta) + (1 - math.sqrt(p)) * _x0(x, e, a),
        "x0_hat goes back in without its weight, the root of a_prev",
    ),
    (
        lambda x, e, n, a, p, eta: _ddim(x, e, n, a, p, eta) + (p - math.sqrt(p)) * _x0(x, e, a),
        "the weight of x0_hat is a_prev without its root",
    ),
    (
        lambda x, e, n, a, p, eta: _ddim(x, e, n, a, p, eta) + (math.sqrt(a) - math.sqrt(p)) * _x0(x, e, a),
        "x0_hat goes back in with the weight of t: at the next time it is the root of a_prev",
    ),
    (
        lambda x, e, n, a, p, eta: (
            math.sqrt(p) * _x0(x, e, a) + _root(1 - a - eta**2 * _variance(a, p)) * e + eta * _root(_variance(a, p)) * n
        ),
        "eps goes back in with the noise level of t: at the next time it is 1 - a_prev; nothing gets cleaner yet",
    ),
    (
        lambda x, e, n, a, p, eta: _ddim(x, e, n, a, p, eta) + math.sqrt(p) * (1 - 1 / math.sqrt(a)) * (
            x - math.sqrt(1 - a) * e
        ),
        "you subtract the noise and do not divide by the root of a: that is not x0_hat yet",
    ),
)  # fmt: skip
_JUMPS = ((0.5, 0.6), (0.1, 0.3), (0.9, 0.95), (0.005, 0.05))


def judge_ddim(my_ddim: Any) -> Verdict:
    """Judge a function (x_t, eps, noise, a, a_prev, eta) -> x_prev: Song et al. 2021, eq. 12 and 16."""
    if not callable(my_ddim):
        return look_again("the answer is a function: my_ddim_step(x_t, eps, noise, a, a_prev, eta)")
    x, eps, noise = _three_draws(1)
    cases = [(a, p, eta) for a, p in _JUMPS for eta in (0.0, 0.6, 1.0)]
    got = []
    for a, p, eta in cases:
        result = my_ddim(x.clone(), eps.clone(), noise.clone(), a, p, eta)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and x_prev")
        tensor = _as_tensor(result)
        if tensor is None:
            return look_again(f"your function returns a {type(result).__name__}: return x_prev as a tensor")
        if tensor.shape != x.shape:
            return look_again(f"the result has the shape {tuple(tensor.shape)}, x_t has {_SHAPE}")
        got.append(tensor)

    def agrees(step: _Step) -> bool:
        return all(_close(one, step(x, eps, noise, *case)) for one, case in zip(got, cases, strict=True))

    if agrees(_ddim):
        return _at_the_clean_end(my_ddim, x, eps, noise)
    for slip, reason in _DDIM_SLIPS:
        if agrees(slip):
            return look_again(reason)
    if not all(bool(torch.isfinite(each).all()) for each in got):
        return look_again(
            "your result has values that are not numbers (NaN): a root of something negative. The fresh variance is "
            "(1 - a_prev) / (1 - a) * (1 - a / a_prev) at eta 1, which is never above 1 - a_prev"
        )
    right = [_close(one, _ddim(x, eps, noise, *case)) for one, case in zip(got, cases, strict=True)]
    if all(ok for ok, (_, _, eta) in zip(right, cases, strict=True) if eta == 0):
        return look_again("right for eta = 0. For eta > 0: fresh variance in, the same variance out of eps")
    return look_again("not right at eta = 0 yet: x_prev is root(a_prev) times x0_hat plus root(1 - a_prev) times eps")


def _at_the_clean_end(my_ddim: Callable[..., Any], x: Tensor, eps: Tensor, noise: Tensor) -> Verdict:
    for eta in (0.0, 1.0):
        last = _as_tensor(my_ddim(x.clone(), eps.clone(), noise.clone(), 0.9, 1.0, eta))
        if last is None or not _close(last, _x0(x, eps, 0.9)):
            return look_again(
                "right between two noisy times; at a_prev = 1, the clean end, x0_hat alone should be left"
            )
    return passed("right for every eta: the noise level of the next time is kept, part old noise and part fresh")


# ---------------------------------------------------------------- two_m

_TwoM = Callable[[Tensor, Tensor, Tensor, float, float, float], Tensor]  # (x, x0, x0_before, a_before, a, a_prev)
_TRIPLES = ((0.3, 0.5, 0.6), (0.01, 0.05, 0.3), (0.6, 0.7, 0.95), (0.1, 0.4, 0.5))


def _log_snr(a: float) -> float:
    return 0.5 * math.log(a / (1 - a))


def _two_m(
    x: Tensor, x0: Tensor, before: Tensor, b: float, a: float, p: float, *, flip: bool = False, grow: bool = False,
    back: bool = False, extra: float = 1.0, sigma_flip: bool = False, no_alpha: bool = False, lam: float = 1.0,
) -> Tensor:  # fmt: skip
    """The step of DPM-Solver++(2M), or what a slip makes of it."""
    h, h_before = lam * (_log_snr(p) - _log_snr(a)), lam * (_log_snr(a) - _log_snr(b))
    r = h / h_before if flip else h_before / h
    lean = extra / (2 * r)
    aim = (1 - lean) * x0 + lean * before if back else (1 + lean) * x0 - lean * before
    sigmas = math.sqrt((1 - a) / (1 - p)) if sigma_flip else math.sqrt((1 - p) / (1 - a))
    return sigmas * x - (1.0 if no_alpha else math.sqrt(p)) * math.expm1(h if grow else -h) * aim


_TWO_M_SLIPS: tuple[tuple[dict[str, Any], str], ...] = (
    (
        {"flip": True, "grow": True},
        "both faults are still there. Compare with step 5: which way round is r, and is it exp of h or of minus h?",
    ),
    ({"flip": True}, "one fault is left: r is the step before over this step, h_before / h, and yours is upside down"),
    (
        {"grow": True},
        "one fault is left: the weight of the aim is 1 - exp(-h), which is -expm1(-h), not -expm1(h)",
    ),
    ({"back": True}, "your aim leans back to x0_before: extrapolate forward, more than 1 of x0_hat, minus x0_before"),
    ({"extra": 0.0}, "you aim at x0_hat alone: that is the first-order step, DDIM"),
    ({"extra": 2.0}, "you extrapolate to the end of the step; the middle stands for the whole step, so divide by 2 r"),
    ({"sigma_flip": True}, "the quotient of the two sigmas is upside down: x shrinks as the noise gets less"),
    ({"no_alpha": True}, "the weight of the aim is missing the root of a_prev"),
    ({"lam": 2.0}, "your h is twice too large: the log-SNR here is of alpha over sigma, with the half in front"),
)


def judge_two_m(two_m: Any) -> Verdict:
    """Judge a function (x_t, x0_hat, x0_before, a_before, a, a_prev) -> x_prev: Lu et al. 2022, algorithm 2."""
    if not callable(two_m):
        return look_again("the answer is a function: two_m(x_t, x0_hat, x0_before, a_before, a, a_prev)")
    draws = _three_draws(2)
    got = []
    for triple in _TRIPLES:
        result = two_m(*(each.clone() for each in draws), *triple)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and x_prev")
        tensor = _as_tensor(result)
        if tensor is None:
            return look_again(f"your function returns a {type(result).__name__}: return x_prev as a tensor")
        if tensor.shape != _SHAPE:
            return look_again(f"the result has the shape {tuple(tensor.shape)}, x_t has {_SHAPE}")
        got.append(tensor)

    def agrees(**slips: Any) -> bool:
        return all(_close(one, _two_m(*draws, *case, **slips)) for one, case in zip(got, _TRIPLES, strict=True))

    if agrees():
        return passed("both faults are gone: the step is the one of DPM-Solver++(2M), on even and uneven grids")
    for slips, reason in _TWO_M_SLIPS:
        if agrees(**slips):
            return look_again(reason)
    if not all(bool(torch.isfinite(each).all()) for each in got):
        return look_again("your result has values that are not numbers (NaN): which root or log goes wrong?")
    return look_again("this is not the step of 2M: change only the line of r and the exponent; the rest was right")


# ---------------------------------------------------------------- redraw_start

_STRENGTHS = (0.2, 0.5, 0.75, 1.0)


def judge_redraw_start(my_start: Any) -> Verdict:
    """Judge a function (latents, noise, strength, grid, alpha_bar) -> (x_t, start_at), as `Pipeline.redraw` has it."""
    if not callable(my_start):
        return look_again("the answer is a function: my_start(latents, noise, strength, grid, alpha_bar)")
    latents, noise, _ = _three_draws(3)
    table = SCHEDULE.alpha_bar
    for num_steps in (20, 8):
        grid = timestep_grid(SCHEDULE, num_steps)
        for strength in _STRENGTHS:
            result = my_start(latents.clone(), noise.clone(), strength, list(grid), table.clone())
            if is_missing(result):
                return not_done("your function returns nothing yet: end it with `return x_t, start_at`")
            if not isinstance(result, (tuple, list)) or len(result) != 2:
                return look_again("your function should return two things: x_t and start_at")
            x_t, start = _as_tensor(result[0]), _number(result[1])
            if x_t is None or start is None or x_t.shape != latents.shape:
                return look_again("return x_t, a tensor of the shape of the latents, and start_at, a whole number")
            if reason := _why_not_start(x_t, start, latents, noise, strength, grid, table):
                return look_again(reason)
    try:
        kept, start = my_start(latents.clone(), noise.clone(), 0.0, list(grid), table.clone())
        kept = _as_tensor(kept)
    except Exception as error:  # a learner's code may raise anything
        return look_again(
            f"right for strength above 0; for strength 0 it stops: {type(error).__name__}. No step is left then, "
            "so there is no grid[start_at]: return the latents as they are"
        )
    if _number(start) != len(grid) or kept is None or not _close(kept, latents):
        return look_again("right for strength above 0; strength 0 keeps the latents, and start_at is len(grid)")
    return passed("the right place on the grid, and noised as training noised; strength 0 keeps, strength 1 forgets")


def _why_not_start(
    x_t: Tensor, start: float, latents: Tensor, noise: Tensor, strength: float, grid: list[int], table: Tensor
) -> str | None:
    """Name the likely slip behind a start; None where it is right."""
    total = len(grid)
    right = total - round(strength * total)
    told = f"with {total} steps and strength {strength} the run should start at step {right}, yours at {start:g}"
    if start != right:
        if start == round(strength * total):
            return f"{told}: strength is the share of steps that run, so total minus that share is skipped"
        if start == total - int(strength * total):
            return f"{told}: round the number of steps that run, int alone cuts it off"
        return told
    a = float(table[grid[right]])
    if _close(x_t, math.sqrt(a) * latents + math.sqrt(1 - a) * noise):
        return None
    if _close(x_t, a * latents + (1 - a) * noise):
        return "alpha_bar stands where its square root belongs, for both weights (lesson 04)"
    if _close(x_t, noise) or _close(x_t, latents):
        return "x_t should be the latents with noise added, at the time where the run starts"
    if _close(x_t, latents + math.sqrt(1 - a) * noise):
        return "the latents do not shrink: their weight is the root of alpha_bar (lesson 04)"
    if _close(x_t, math.sqrt(1 - strength) * latents + math.sqrt(strength) * noise) or _close(
        x_t, (1 - strength) * latents + strength * noise
    ):
        return "you mix by the strength itself; the weights come from alpha_bar at the time grid[start_at]"
    for shift in (-1, 1):
        if 0 <= right + shift < total:
            b = float(table[grid[right + shift]])
            if _close(x_t, math.sqrt(b) * latents + math.sqrt(1 - b) * noise):
                return "noised to the time of the step beside it: the U-Net is told grid[start_at], so stand there"
    for t in (round(strength * 1000) - 1, round(strength * 1000), round(strength * 999)):
        b = float(table[min(max(t, 0), 999)])
        if _close(x_t, math.sqrt(b) * latents + math.sqrt(1 - b) * noise):
            return "noised to strength times 1000; the run has steps on a grid only, so take the time grid[start_at]"
    return (
        f"start_at is right; x_t should stand at the time grid[start_at] = {grid[right]}, with the roots of alpha_bar"
    )


# ---------------------------------------------------------------- better_grid


def judge_better_grid(answer: Any) -> Verdict:
    """Judge a list of GRID_STEPS falling time steps from 999 on, by the error of DPM-Solver++(2M) on it."""
    values = _numbers(answer)
    if values is None or any(value != value // 1 for value in values):
        return look_again(f"the answer is a list of {GRID_STEPS} whole numbers, the time steps from noisy to clean")
    grid = [int(value) for value in values]
    if len(grid) != GRID_STEPS:
        return look_again(f"your grid has {len(grid)} time steps; the comparison is fair with {GRID_STEPS}")
    if grid[0] == 0 or grid == sorted(grid):
        return look_again("your grid rises; a run goes from noise to clean, so start with 999 and fall")
    if grid[0] != 999:
        return look_again(f"your grid starts at {grid[0]}; the noise that you start from belongs to 999")
    if any(not 0 <= t <= 999 for t in grid) or any(t <= u for t, u in pairwise(grid)):
        return look_again("each time step has to be below the one before it, and all lie between 0 and 999")
    error, even = grid_error(grid), grid_error(timestep_grid(SCHEDULE, GRID_STEPS, "trailing"))
    told = f"your grid misses by {error:.4f}, the even one by {even:.4f}"
    if error <= GRID_ERROR:
        return passed(f"{told}: closer steps where the log-SNR moves fast, at the clean end")
    if grid[-1] > 20:
        return look_again(f"{told}. Your last leap goes from t = {grid[-1]} to clean; how far is that in log-SNR?")
    leaps = [(_log_snr(float(SCHEDULE.alpha_bar[u])) - _log_snr(float(SCHEDULE.alpha_bar[t])), t, u)
             for t, u in pairwise(grid)]  # fmt: skip
    size, t, u = max(leaps)
    return look_again(f"{told}. Your widest leap is from t = {t} to {u}, {size:.1f} units of log-SNR; share it out")


# ---------------------------------------------------------------- helpers


def _three_draws(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second, third = (torch.randn(_SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    return first, second, third


def _number(answer: Any) -> float | None:
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _numbers(answer: Any) -> list[float] | None:
    """Return a list, tuple, array or tensor as finite numbers, None where it is none."""
    if isinstance(answer, (str, bytes, dict)):
        return None
    try:
        values = [_number(each) for each in answer]
    except TypeError:
        return None
    good = [value for value in values if value is not None and math.isfinite(value)]
    return good if good and len(good) == len(values) else None


def _as_tensor(result: Any) -> Tensor | None:
    """Return a result as a tensor of numbers, None where it is none."""
    try:
        tensor = torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.is_floating_point() else None


def _close(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool(((got.double() - wanted.double()).abs() < tolerance * (1 + wanted.abs())).all())
