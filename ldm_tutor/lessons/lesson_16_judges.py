"""The judges of lesson 16: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.lessons.lesson_10_judges import as_numbers, close
from ldm_tutor.shapes import Tensor

# ---------------------------------------------------------------- ends

_THROUGH_EPS_SLIPS = {
    9.9: "both square roots are missing: x_t holds sqrt(alpha_bar) of x0 and sqrt(1 - alpha_bar) of eps",
    9.97: "you divide by alpha_bar; x0 is in x_t with its square root, so divide by that",
    0.1: "what is left of x_t without its noise is sqrt(alpha_bar) x0: it must still be divided, and the error with it",
    0.01: "sqrt(alpha_bar) multiplies x0 on the way into x_t; on the way back to x0 one divides by it",
}
_THROUGH_V_SLIPS = {
    0.995: "you divide here as well; the formula with v, sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v, divides nothing",
    0.01: "sqrt(alpha_bar) stands before x_t, which is known exactly; which factor stands before v?",
    0.0: "some error is left: v is wrong by 0.1, and it has a factor",
}


def judge_ends(answer: Any) -> Verdict:
    """Judge the pair (through_eps, through_v): 0.1 sqrt(0.99) / 0.1 = 0.995 and 0.1 sqrt(0.99) = 0.0995."""
    values = _numbers(answer, 2)
    if values is None or min(values) < 0:
        return look_again("the answer has two numbers without a sign: (through_eps, through_v)")
    through_eps, through_v = values
    right_eps, right_v = 0.1 * math.sqrt(0.99 / 0.01), 0.1 * math.sqrt(0.99)
    if abs(through_eps - right_v) < 0.006 and abs(through_v - right_eps) < 0.012:
        return look_again("the right two numbers, exchanged: the answer is (through_eps, through_v)")
    if abs(through_eps - right_eps) > 0.012:
        generic = "solve x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps for x0"
        return look_again(f"through eps: {_slip(through_eps, _THROUGH_EPS_SLIPS, 0.035) or generic}")
    if abs(through_v - right_v) > 0.006:
        generic = "x0 is sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v"
        return look_again(f"through eps it is right; through v: {_slip(through_v, _THROUGH_V_SLIPS, 0.007) or generic}")
    return passed("the noise's error comes out ten times as large, v's as it was: there v is almost -x0 itself")


# ---------------------------------------------------------------- v_both


def judge_v_both(my_both: Any) -> Verdict:
    """Judge a function (x_t, v, alpha_bar) -> (x0, eps): Salimans and Ho 2022, appendix D."""
    if not callable(my_both):
        return look_again("the answer is a function: my_both(x_t, v, alpha_bar)")
    x0, eps = _draws(16, 2)
    cases: list[Any] = []
    for alpha_bar in (0.9, torch.tensor(0.7), 0.02, 0.0, 1.0, torch.tensor(0.0), torch.tensor(1.0)):
        r, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        x, v = r * x0 + s * eps, r * eps - s * x0
        result = my_both(x.clone(), v.clone(), alpha_bar)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return x0, eps`")
        try:
            first, second = (as_numbers(each) for each in result)
        except (TypeError, ValueError, RuntimeError):
            return look_again("return two things: x0 and eps")
        if first is None or second is None or first.shape != x.shape or second.shape != x.shape:
            return look_again(f"return two tensors, x0 and eps, each with the shape of x_t, {tuple(x.shape)}")
        cases.append((first, second, _both_slips(x, v, r, s)))
    if reason := _why_not_both(cases[:3], x0, eps):
        return look_again(reason)
    if _why_not_both(cases[3:], x0, eps):
        return look_again("right in between; where alpha_bar is 0 or 1 it is not: with v there is nothing to divide by")
    return passed("x0 and eps from one answer, also at both ends: v turns x_t by a right angle, and nothing is divided")


def _both_slips(x: Tensor, v: Tensor, r: float, s: float) -> dict[str, tuple[Tensor, Tensor]]:
    """What x0 and eps become by each slip; r and s are the roots of alpha_bar and of 1 - alpha_bar."""
    return {
        "the square roots are missing": (r**2 * x - s**2 * v, s**2 * x + r**2 * v),
        "the sign before v is turned: v holds eps with a plus, x0 with a minus": (r * x + s * v, s * x - r * v),
        "the two factors are exchanged": (s * x - r * v, r * x + s * v),
        "that takes v for the other one of the two; it is a mixture of both": ((x - s * v) / r, (x - r * v) / s),
        "divided, though the roots' squares add up to 1": ((r * x - s * v) / r, (s * x + r * v) / s),
        "that is the other one of the two; x0 comes first, then eps": (s * x + r * v, r * x - s * v),
        "that is v as it came": (v, v),
    }


def _why_not_both(cases: list[Any], x0: Tensor, eps: Tensor) -> str:
    """Name the likely slip behind three answers (x0, eps, what slips give); an empty text where all are right."""
    for place, told, right in ((0, "x0", x0), (1, "x0 is right; eps", eps)):
        if not all(close(case[place], right) for case in cases):
            generic = "solve x_t and v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 for both"
            found = (why for why in cases[0][2] if all(close(case[place], case[2][why][place]) for case in cases))
            return f"{told}: {next(found, generic)}"
    return ""


# ---------------------------------------------------------------- walk


class _Velocity:
    """A velocity by a formula of x and t; it keeps the times at which it is asked."""

    def __init__(self, formula: Callable[[Tensor, float], Tensor]) -> None:
        self.formula, self.times = formula, list[float]()

    def __call__(self, x: Any, t: Any) -> Tensor:
        try:
            place, time = torch.as_tensor(x), float(t)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError("velocity(x, t) takes the latents first, then the time, one number") from None
        self.times.append(time)
        return self.formula(place, time)


_WALKS = (4, 7, 1)
_FAULTS = {
    "up": "time runs the wrong way: the walk begins in noise, and noise is at t = 1",
    "whole": "each step takes the whole velocity; one of num_steps equal steps goes only 1 / num_steps of the way",
    "plus": "velocity points from clean latents to noise, and you walk the other way: take it away",
}
_LEFT = ("one fault is left", "two faults are left", "all three faults are still there; the first")


def _wave(x: Tensor, t: float) -> Tensor:
    return 3 * t**2 + torch.sin(2 * x)


def _walk(x: Tensor, n: int, faults: tuple[str, ...]) -> Tensor:
    """Walk along `_wave` by n steps of Euler, or do what some faults make of it."""
    for k in range(n):
        length = 1.0 if "whole" in faults else 1 / n
        x = x + (length if "plus" in faults else -length) * _wave(x, k / n if "up" in faults else 1 - k / n)
    return x


def judge_walk(my_walk: Any) -> Verdict:
    """Judge a function (velocity, x, num_steps) -> x at t = 0, after equal steps of Euler from t = 1."""
    if not callable(my_walk):
        return look_again("the answer is a function: my_walk(velocity, x, num_steps)")
    x, x0 = _draws(17, 2)
    got, asked = [], []
    for n in _WALKS:
        velocity = _Velocity(_wave)
        result = _like(my_walk(velocity, x.clone(), n), x, "x where the walk ends")
        if isinstance(result, Verdict):
            return result
        got.append(result)
        asked.append(velocity.times)

    def agrees(*faults: str) -> bool:
        return all(close(one, _walk(x, n, faults)) for one, n in zip(got, _WALKS, strict=True))

    for count, told in enumerate(_LEFT, 1):
        for left in combinations(_FAULTS, count):
            if agrees(*left):
                return look_again(f"{told}: {'; and '.join(_FAULTS[each] for each in left[: 4 - count])}")
    for times, n in zip(asked, _WALKS, strict=True):
        if reason := _why_not_times(times, n):
            return look_again(reason)
    if not agrees():
        return look_again("the times are right; x should move by (t_next - t) times velocity, from where it stands")
    end = _like(my_walk(_Velocity(lambda x, t: (x - x0) / t), x.clone(), 5), x, "x where the walk ends")
    if isinstance(end, Verdict) or not close(end, x0):
        return look_again("right for one velocity; with an ideal one, (x - x0) / t, the walk should end in x0")
    return passed("the three faults are gone: asked at the right times, and an ideal velocity leads to x0")


def _why_not_times(times: list[float], n: int) -> str:
    """Say what is wrong with the times of a walk of n steps; an empty text where nothing is."""
    right = [1 - k / n for k in range(n)]
    if not times:
        return "your walk never asks velocity: call velocity(x, t) in every step"
    if len(times) != n:
        why = "; does `return` stand inside the loop?" if len(times) == 1 else ""
        why = "; the walk ends at t = 0, and nothing is asked there" if times[-1] == 0 else why
        return f"with num_steps = {n} velocity is asked {len(times)} times: it should be once per step{why}"
    slips = {
        "": right,
        "time runs from 1000 to 0 in your walk; this velocity wants it from 1 to 0": [1000 * t for t in right],
        "you ask at the end of each step; Euler asks where it begins, first at t = 1": [t - 1 / n for t in right],
        f"you ask at t = {times[0]:.2f} in every step: time has to move with k": [times[0]] * n,
        _FAULTS["up"]: sorted(times),
    }
    said, wanted = (", ".join(f"{t:.2f}" for t in each[:4]) for each in (times, right))
    found = (why for why, those in slips.items() if close(torch.tensor(times), torch.tensor(those)))
    return next(found, f"with num_steps = {n} the times should begin with {wanted}; yours with {said}")


# ---------------------------------------------------------------- heun

_STEPS = ((1.0, 0.8), (0.6, 0.25), (0.3, 0.05))


def _heun(x: Tensor, t: float, n: float) -> dict[str, Tensor]:
    """What a step from t to n becomes by each slip; without one by the empty text."""
    h, a = n - t, _wave(x, t)
    e = x + h * a
    b = _wave(e, n)
    return {
        "": x + h * (a + b) / 2,
        "that is Euler's step: ask a second time, at its end, and take the mean": e,
        "you ask the second time at t; at the end of the step it is t_next": x + h * (a + _wave(e, t)) / 2,
        "you ask the second time for the old x; put in where Euler's step ends": x + h * (a + _wave(x, n)) / 2,
        "you take the sum of both answers; the mean is half of it": x + h * (a + b),
        "that is the midpoint method; Heun asks at the end": x + h * _wave((x + e) / 2, (t + n) / 2),
        "you walk with the second answer alone; take the mean of both": x + h * b,
        "the mean is added to where Euler's step ends; begin at x again": e + h * (a + b) / 2,
        "both signs are turned: t_next - t is negative, as it should be": x - h * (a + _wave(x - h * a, n)) / 2,
        "the sign is turned on the way to Euler's end": x + h * (a + _wave(x - h * a, n)) / 2,
        "the sign is turned in the last line": x - h * (a + b) / 2,
        "the length of the step, t_next - t, is missing in the last line": x + (a + b) / 2,
        "you return the x that you were given": x,
    }


def judge_heun(my_heun: Any) -> Verdict:
    """Judge a function (velocity, x, t, t_next) -> x at t_next: Karras et al. 2022, algorithm 1."""
    if not callable(my_heun):
        return look_again("the answer is a function: my_heun(velocity, x, t, t_next)")
    (x,) = _draws(18, 1)
    got, counts = list[Tensor](), [0]
    for t, t_next in (*_STEPS, (0.2, 0.0)):
        if t_next == 0 and (reason := _why_not_heun(got, x, max(counts))):
            return look_again(reason)
        velocity = _Velocity(_wave)
        result = _like(my_heun(velocity, x.clone(), t, t_next), x, "x at t_next")
        if isinstance(result, Verdict):
            return result
        got.append(result)
        counts.append(len(velocity.times))
    if 0.0 in velocity.times:
        return look_again("right above 0; to t_next = 0 it asks at t = 0, and the task wants Euler's step alone there")
    if not close(got[-1], x - 0.2 * _wave(x, 0.2)):
        return look_again("right above 0; to t_next = 0 the step should be Euler's, the whole of it, and yours is not")
    if counts[-1] != 1:
        return look_again(f"right; but to t_next = 0 it asks {counts[-1]} times, where Euler asks once")
    return passed("two answers make a step of second order; the last has one, as the task asks")


def _why_not_heun(got: list[Tensor], x: Tensor, most: int) -> str:
    """Name the likely slip behind steps that end above 0; an empty text where they are right."""
    wanted = [_heun(x, *step) for step in _STEPS]
    generic = "this is not Heun's step: from x, (t_next - t) times the mean of the answers at both ends of Euler's step"
    found = (why for why in wanted[0] if all(close(one, each[why]) for one, each in zip(got, wanted, strict=True)))
    more = f"the step is right; but it asks {most} times, and each is a whole network: keep the first answer"
    return next(found, generic) or (more if most > 2 else "")


# ---------------------------------------------------------------- block

_Layer = Callable[[Any], Tensor]
_BRANCH_SLIPS = {
    "one": "scale 0 should change nothing: multiply by (1 + scale)",
    "flat": "a shift is (b, d) and meets the tokens instead of the pictures: give it an axis for them, [:, None]",
    "gate": "the gate is missing: it multiplies what the branch adds",
    "residual": "x itself is lost: the branch is added to it",
    "order": "shift and scale are exchanged: in six the shift comes first",
    "norm": "the norm is missing: the branch reads norm(x), scaled and shifted",
    "outside": "scale and shift come after the norm: norm(x) * (1 + scale) + shift",
    "early": "the gate comes last: it multiplies what attention or mlp gives, not what they read",
}
_WHOLE_SLIPS = {
    "old": "the second branch reads the old x: it should read what the first has made of it",
    "same": "the second branch uses the first three vectors: it has three of its own",
    "second": "the second branch is missing: norm, mlp and the second three",
    "lost": "the second branch is added to the old x, so what the first has added is lost",
    "functions": "attention belongs to the first branch and mlp to the second",
    "cut": "six is cut the wrong way: each of the six pieces is d numbers side by side",
}


def _branch(x: Tensor, read: Tensor, three: tuple[Tensor, ...], norm: _Layer, layer: _Layer, slip: str) -> Tensor:
    """Return x + gate * layer(norm(read) * (1 + scale) + shift), or what a slip makes of it."""
    shift, scale, gate = three if slip == "flat" and len(x) == x.shape[1] else (each[:, None] for each in three)
    shift, scale = (scale, shift) if slip == "order" else (shift, scale)
    h = read if slip in ("norm", "outside") else norm(read)
    h = h * (scale if slip == "one" else 1 + scale) + shift
    out = layer(norm(h) if slip == "outside" else gate * h if slip == "early" else h)
    out = out if slip in ("gate", "early") else gate * out
    return out if slip == "residual" else x + out


def _block(x: Tensor, six: Tensor, layers: tuple[_Layer, ...], one: str = "", two: str = "", whole: str = "") -> Tensor:
    """Return what a block makes of x, with a slip in branch one, in branch two or in the whole."""
    norm, attention, mlp = layers
    layer_1, layer_2 = (mlp, attention) if whole == "functions" else (attention, mlp)
    pieces = six.unflatten(1, (-1, 6)).unbind(-1) if whole == "cut" else six.chunk(6, dim=-1)
    y = _branch(x, x, pieces[:3], norm, layer_1, one)
    read, three = x if whole == "old" else y, pieces[:3] if whole == "same" else pieces[3:]
    return y if whole == "second" else _branch(x if whole == "lost" else y, read, three, norm, layer_2, two)


def judge_block(my_block: Any) -> Verdict:
    """Judge a function (x, six, norm, attention, mlp) -> x after a block of adaLN-Zero: Peebles and Xie 2023."""
    if not callable(my_block):
        return look_again("the answer is a function: my_block(x, six, norm, attention, mlp)")
    for b, n, d in ((4, 4, 8), (2, 5, 8), (1, 6, 12)):  # first as many tokens as pictures: a missing axis is not seen
        generator = torch.Generator().manual_seed(b)
        x, six = 2 * torch.randn(b, n, d, generator=generator) + 1, torch.randn(b, 6 * d, generator=generator)
        layers = _layers(*torch.randn(2, d, d, generator=generator))
        result = _like(my_block(x.clone(), six.clone(), *layers), x, "x after both branches")
        if isinstance(result, Verdict):
            return result
        if close(result, _block(x, six, layers)):
            continue
        if reason := _why_not_block(result, x, six, layers):
            return look_again(reason)
        if not close(torch.as_tensor(my_block(x.clone(), 0 * six, *layers)), x):
            return look_again("zeros in six should give x back, since both gates are 0; yours changes it")
        return look_again(f"for {b} pictures of {n} tokens it is not right: compare each branch with the task")
    return passed("two branches, each shifted, scaled and gated by the time; with zeros in six it would change nothing")


def _layers(mix: Tensor, turn: Tensor) -> tuple[_Layer, ...]:
    """Return a norm, an attention and an mlp that are quick and unlike each other."""
    return (
        lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
        lambda x: torch.softmax(x @ x.transpose(-1, -2) / 8, dim=-1) @ (x @ mix),
        lambda x: torch.tanh(x @ turn),
    )


def _why_not_block(found: Tensor, x: Tensor, six: Tensor, layers: tuple[_Layer, ...]) -> str:
    for slip, reason in _BRANCH_SLIPS.items():
        for one, two, where in ((slip, slip, ""), (slip, "", "first branch: "), ("", slip, "second branch: ")):
            if close(found, _block(x, six, layers, one, two)):
                return where + reason
    return next((why for slip, why in _WHOLE_SLIPS.items() if close(found, _block(x, six, layers, whole=slip))), "")


# ---------------------------------------------------------------- tokens

_TOKEN_SLIPS = {
    (256, 1024): "the right two, exchanged: larger patches are fewer",
    (32, 16): "that is how many lie side by side; there are as many rows of them",
    (2048, 1024): "a patch of 2 is 2 wide and 2 high, and takes 4 places, not 2",
    (65536, 16384): "those are patches of the picture's pixels; a DiT reads the latents, 64 x 64",
}
_TOKEN_FACTORS = {
    4.0: "there are 4 times fewer tokens; the map has a row *and* a column for each",
    2.0: "the sides are half as long, the tokens a quarter; and the map is tokens x tokens",
    1 / 16: "turned round: by which factor is it smaller?",
    1 / 4: "turned round, and it is the tokens' factor: the map is tokens x tokens",
}


def judge_tokens(answer: Any) -> Verdict:
    """Judge (with_2, with_4, factor): 32 x 32 = 1,024 tokens, 16 x 16 = 256, and 4 x 4 = 16."""
    values = _numbers(answer, 3)
    if values is None:
        return look_again("the answer has three numbers: (with_2, with_4, factor)")
    with_2, with_4, factor = values
    if (with_2, with_4) != (1024, 256):
        slip = "a side of 64 holds 64 / patch patches, and there are as many rows of them"
        if with_2 == 4096:
            slip = "4,096 are the places of the latents, patches of 1; and all channels of a patch are one token"
        if 64 in (with_2, with_4):
            slip = "64 is one side of the latents; how many patches lie along it, and in how many rows?"
        return look_again(_TOKEN_SLIPS.get((round(with_2), round(with_4)), slip))
    if abs(factor - 16) > 1e-6:
        slip = _slip(factor, _TOKEN_FACTORS, 0.01) or "that of 1,024 x 1,024 against 256 x 256"
        return look_again(f"the tokens are right; the factor: {slip}")
    return passed("a quarter of the tokens, a sixteenth of every attention map: patches decide what a DiT costs")


# ---------------------------------------------------------------- helpers


def _draws(seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 5, 5, generator=generator) for _ in range(count)]


def _numbers(answer: Any, count: int) -> list[float] | None:
    """Return so many finite numbers, None where the answer is something else."""
    try:
        values = [float(each) for each in answer]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _slip(found: float, slips: dict[float, str], tolerance: float) -> str:
    return next((reason for value, reason in slips.items() if abs(found - value) < tolerance), "")


def _like(result: Any, x: Tensor, what: str) -> Tensor | Verdict:
    """Return a result as a tensor of the shape of x, or the verdict on what is wrong with it."""
    if is_missing(result):
        return not_done(f"your function returns nothing yet: end it with `return` and {what}")
    tensor = as_numbers(result)
    if tensor is None:
        return look_again(f"your function returns a {type(result).__name__}: return {what}, alone, as a tensor")
    if tensor.shape != x.shape:
        return look_again(f"the result has the shape {tuple(tensor.shape)}; x has {tuple(x.shape)}")
    return tensor
