"""The judges of lesson 11: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.metrics.fid import frechet_distance
from ldm_tutor.metrics.figures import share
from ldm_tutor.metrics.precision_recall import precision_recall
from ldm_tutor.shapes import Tensor

GAP, SPREADS = 3.0, (1.0, 2.0)  # of the two bells in two_bells: how far apart, and how wide
RIGHT, HALF_WIDTH = 0.8, 0.05  # in enough: the share that is right, and how wide the interval may be to each side


def _number(answer: Any) -> float | None:
    """Return the answer as one real number, None where it is none."""
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None


def _near(got: float, wanted: float, rel: float = 1e-3) -> bool:
    return abs(got - wanted) <= rel * max(1.0, abs(wanted))


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Slips = tuple[tuple[Callable[..., Any], str], ...]


def _slip(got: float, given: tuple[Any, ...], right: float, slips: Slips) -> str:
    """Return the diagnosis of the slip that gives the same number, an empty text where none does."""
    for slip, reason in slips:
        value = _number(slip(*given))
        if value is not None and _near(got, value) and not _near(value, right):
            return reason
    return ""


def _judge_number_function(
    answer: Any, name: str, cases: list[tuple[tuple[Any, ...], float]], slips: Slips, done: str, otherwise: str
) -> Verdict:
    """Judge a function that returns one number, on several cases, each with its right number."""
    if not callable(answer):
        return look_again(f"the answer is a function: {name}")
    for given, right in cases:
        copies = tuple(each.clone() if isinstance(each, Tensor) else each for each in given)
        result = answer(*copies)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the number")
        if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(given, copies, strict=True)):
            return look_again("your function changes what it was given: work on new tensors")
        got = _number(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__} that is not one number: return one")
        if got != got:
            return look_again(
                "your function returns NaN: a root of something slightly below zero? clamp what must not be negative"
            )
        if not _near(got, right):
            reason = _slip(got, given, right, slips)
            return look_again(reason or f"{otherwise} (expected {right:.4f}, yours is {got:.4f})")
    return passed(done)


# ---------------------------------------------------------------- two_bells

_TWO_BELLS = {
    9.0: "9 is the squared gap of the means alone: the spreads differ as well",
    1.0: "1 is what the spreads add: the means are 3 apart as well",
    4.0: "square the gap of the means: 3 apart adds 9, not 3",
    12.0: "take the difference of the spreads, not of the variances: (1 - 2)^2, where 1 and 4 are the variances",
    18.0: "you squared the difference of the variances; it is the spreads: (1 - 2)^2",
    14.0: "the middle term is missing: 1 + 4 - 2 x 1 x 2, so that equal spreads add nothing",
    10**0.5: "the root is not taken: the Fréchet distance of the papers is the squared one",
    5.0: "the means are 3 apart, which adds 9; the spreads add (1 - 2)^2",
}


def judge_two_bells(answer: Any) -> Verdict:
    """Judge the Fréchet distance of two bells: 9 + 1."""
    got = _number(answer)
    if got is None:
        return look_again("the answer is one number")
    if _near(got, GAP**2 + (SPREADS[0] - SPREADS[1]) ** 2):
        return passed("9 from the means and (1 - 2)^2 = 1 from the spreads: 10")
    for slip, reason in _TWO_BELLS.items():
        if _near(got, slip):
            return look_again(reason)
    return look_again("in one dimension it is (difference of the means)^2 + (difference of the spreads)^2")


# ---------------------------------------------------------------- frechet


def _cov(a: Tensor) -> Tensor:
    return torch.cov(a.T)


def _gap(a: Tensor, b: Tensor) -> Tensor:
    return (a.mean(dim=0) - b.mean(dim=0)).square().sum()


def _root_of_parts(a: Tensor, b: Tensor) -> Tensor:
    product = (_cov(a) @ _cov(b)).clamp(min=0).sqrt()
    return _gap(a, b) + _cov(a).trace() + _cov(b).trace() - 2 * product.trace()


def _with_counts(a: Tensor, b: Tensor) -> float:
    """The distance with covariances that divide by n."""
    few = [(n - 1) / n for n in (len(a), len(b))]
    parts = [x.mean(dim=0) + f**0.5 * (x - x.mean(dim=0)) for x, f in zip((a, b), few, strict=True)]
    return frechet_distance(*parts)


_FRECHET: Slips = (
    (lambda a, b: _gap(a, b), "that is the gap of the means alone: the covariances are missing"),
    (
        lambda a, b: frechet_distance(a, b) - float(_gap(a, b)),
        "that is what the covariances add: the squared gap of the means is missing",
    ),
    (
        lambda a, b: _gap(a, b).sqrt() + frechet_distance(a, b) - _gap(a, b),
        "the gap of the means enters squared: do not take its root",
    ),
    (
        lambda a, b: _gap(a, b) + _cov(a).trace() + _cov(b).trace(),
        "the last term is missing: - 2 trace of the root; two equal sets must give 0",
    ),
    (
        lambda a, b: _gap(a, b) + (a.std(dim=0) - b.std(dim=0)).square().sum(),
        "you compare the spreads of each feature alone; how the features go together (the covariances) counts too",
    ),
    (
        lambda a, b: (frechet_distance(a, b) + _gap(a, b) + _cov(a).trace() + _cov(b).trace()) / 2,
        "the root is subtracted twice, once for each cloud",
    ),
    (
        lambda a, b: (a.mean() - b.mean()) ** 2 + frechet_distance(a, b) - _gap(a, b),
        "the mean is a vector, one number for each feature: take it over the pictures only (dim=0)",
    ),
    (_root_of_parts, "the root of a matrix is not the root of its entries: take it through the eigenvalues"),
    (lambda a, b: frechet_distance(a, b) ** 0.5, "the root is not taken at the end: papers report the squared one"),
    (_with_counts, "nearly: your covariance divides by n; torch.cov and the references divide by n - 1"),
    (
        lambda a, b: _gap(a, b) + (_cov(a) - _cov(b)).square().sum(),
        "that is the squared difference of the covariances, entry by entry: the formula has their traces and a root",
    ),
)


def judge_frechet(my_fid: Any) -> Verdict:
    """Judge a function (features, features) -> Fréchet distance."""
    mix = _random(5, 5, seed=3)
    first = _random(40, 5, seed=1) @ mix
    second = 1.5 * _random(60, 5, seed=2) @ mix.roll(1, 0) + 0.4
    cases: list[tuple[tuple[Any, ...], float]] = [
        ((a, b), frechet_distance(a, b)) for a, b in ((first, second), (second, first), (first, first.clone()))
    ]
    return _judge_number_function(
        my_fid,
        "my_fid(a, b)",
        cases,
        _FRECHET,
        "means, covariances and the root of their product: equal to the package's",
        "not the distance: |mean_a - mean_b|^2 + trace(C_a + C_b - 2 root(C_a C_b))",
    )


# ---------------------------------------------------------------- balls


def _share(made: Tensor, real: Tensor, k: int, dim: int = 1) -> Tensor:
    radius = torch.cdist(real, real).kthvalue(k, dim=1).values
    return (torch.cdist(made, real) <= radius).any(dim=dim).double().mean()


_BALLS: Slips = (
    (
        lambda made, real, k: _share(made, real, k, dim=0),
        "both faults are still there: what is nearest to a vector, and over what does `any` look?",
    ),
    (
        lambda made, real, k: _share(made, real, k),
        "one fault is left: each vector is its own nearest one, at distance 0, so the k-th neighbour is number k + 1",
    ),
    (
        lambda made, real, k: _share(made, real, k + 1, dim=0),
        "one fault is left: `any` over dim=0 asks which balls are hit; ask for each drawn picture whether it is in one",
    ),
    (
        lambda made, real, k: precision_recall(made, real, k).recall,
        "that is recall: the balls belong to the real pictures, and the drawn ones are looked up in them",
    ),
    (
        lambda made, real, k: (
            (torch.cdist(made, real) <= torch.cdist(real, real).kthvalue(k + 1, dim=1).values).double().mean()
        ),
        "you average over all pairs; a picture counts as soon as it is inside any one ball",
    ),
    (
        lambda made, real, k: (
            (torch.cdist(made, real) <= torch.cdist(real, real).kthvalue(k + 1, dim=1).values)
            .all(dim=1)
            .double()
            .mean()
        ),
        "`all` asks for pictures that are inside every ball: one ball is enough",
    ),
)


def judge_balls(my_precision: Any) -> Verdict:
    """Judge a function (made, real, k) -> precision."""
    real, made = _random(40, 2, seed=5), 1.3 * _random(30, 2, seed=6) + 0.5
    cases: list[tuple[tuple[Any, ...], float]] = [
        ((made, real, k), precision_recall(made, real, k).precision) for k in (2, 3, 1)
    ]
    return _judge_number_function(
        my_precision,
        "my_precision(made, real, k)",
        cases,
        _BALLS,
        "each real vector has its ball, itself not counted, and a drawn picture is in as soon as one ball holds it",
        "not the precision: the share of drawn vectors that lie in at least one ball of the real ones",
    )


# ---------------------------------------------------------------- limit


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return intercept and slope of the least squares line."""
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean()), float(slope)


_LIMIT: Slips = (
    (
        lambda n, v: v[-1],
        "that is the value at the largest number of pictures, still too high: draw the line to 1/n = 0",
    ),
    (lambda n, v: v.min(), "that is the smallest value: draw the line on to 1/n = 0"),
    (lambda n, v: v.mean(), "that is the mean of the values: they fall with n, and the end of the fall is asked for"),
    (lambda n, v: _line(n, v)[0], "you draw the line over n; its value at n = 0 means nothing: draw it over 1/n"),
    (lambda n, v: _line(1 / n, v)[1], "that is the slope of the line; its value at 1/n = 0 is asked for"),
    (lambda n, v: _line(1 / n.sqrt(), v)[0], "the excess falls as 1/n, not as 1/sqrt(n)"),
    (
        lambda n, v: v[-1] - (v[0] - v[-1]) / (1 / n[0] - 1 / n[-1]) / n[-1],
        "you use the first and the last point only: a least squares line uses all of them",
    ),
)


def judge_limit(my_limit: Any) -> Verdict:
    """Judge a function (counts, values) -> the FID at infinitely many pictures, by a line over 1/n."""
    cases: list[tuple[tuple[Any, ...], float]] = []
    for seed, limit, slope in ((1, 7.0, 400.0), (2, 0.5, 90.0)):
        counts = torch.tensor([50.0, 100.0, 200.0, 400.0, 1000.0], dtype=torch.float64)
        values = limit + slope / counts + 0.3 * _random(5, seed=seed)
        cases.append(((counts, values), _line(1 / counts, values)[0]))
    return _judge_number_function(
        my_limit,
        "my_limit(counts, values)",
        cases,
        _LIMIT,
        "a line over 1/n, read at 0: what the FID would be with as many pictures as you like",
        "not the value at 1/n = 0 of the least squares line over 1/n",
    )


# ---------------------------------------------------------------- enough


def half_width(num: int, right: float = RIGHT) -> float:
    """Return half the width of Wilson's interval when a share `right` of `num` is right."""
    hits = round(right * num)
    low, high = share([True] * hits + [False] * (num - hits)).interval or (0.0, 1.0)
    return (high - low) / 2


_ENOUGH = (
    (376, 396, "that many are needed at a share of 0.5, where the interval is widest; here it is 0.8"),
    (930, 1000, "that makes the whole interval 0.05 wide; 0.05 to each side is asked for"),
    (
        56,
        68,
        "that gives 0.1 to each side: the width falls with the square root, so half of it needs four times as many",
    ),
    (160, 180, "that is enough in 90 of 100 cases; the interval of `share` is for 95"),
    (420, 430, "that is enough in 99 of 100 cases; the interval of `share` is for 95"),
)


def judge_enough(answer: Any) -> Verdict:
    """Judge the least number of sentences for an interval of 0.05 to each side of 0.8: about 245."""
    got = _number(answer)
    if got is None:
        return look_again("the answer is one number: how many sentences")
    if 232 <= got <= 258:
        return passed(f"about 245 sentences: half the width of the interval is {half_width(245):.3f} there")
    for low, high, reason in _ENOUGH:
        if low <= got <= high:
            return look_again(reason)
    if not 1 <= got < 10**6:
        return look_again("a number of sentences: some hundreds")
    wide = half_width(int(got))
    way = "too few" if wide > HALF_WIDTH else "more than needed"
    return look_again(f"{int(got)} sentences are {way}: half the width of the interval is {wide:.3f} there")
