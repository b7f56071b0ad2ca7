"""The exercises of lesson 11: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ldm_tutor.lessons import lesson_11_judges as judges
from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.metrics.fid import frechet_distance
from ldm_tutor.metrics.precision_recall import inside, precision_recall


def give(name, answer):
    return getattr(check.measuring, name)(answer)


def slips(name, cases):
    for answer, diagnosis in cases:
        verdict = give(name, answer)
        assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, (diagnosis, verdict)


# --- two_bells


@pytest.mark.parametrize("answer", [10, 10.0, Fraction(10), np.float32(10), torch.tensor(10.0), "10"], ids=repr)
def test_two_bells_right(answer):
    assert give("two_bells", answer).state == PASS


def test_two_bells_slips():
    cases = [(9, "means alone"), (1, "what the spreads add"), (4, "square the gap"), (12, "not of the variances")]
    cases += [(18, "it is the spreads"), (14, "middle term"), (10**0.5, "root is not taken"), (5, "which adds 9")]
    slips("two_bells", [*cases, (7.7, "in one dimension"), ("many", "one number"), ((9, 1), "one number")])


# --- frechet


def by_symmetric_root(a, b):
    values, vectors = torch.linalg.eigh(torch.cov(a.T))
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp(min=0).sqrt().sum()
    return (a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * cross


def by_numpy(a, b):
    a, b = a.numpy(), b.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * roots


def by_singular_values(a, b):
    a0, b0 = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    cross = torch.linalg.svdvals(a0 @ b0.T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + a0.square().sum() + b0.square().sum() - 2 * cross)


@pytest.mark.parametrize("answer", [by_symmetric_root, by_numpy, by_singular_values, frechet_distance])
def test_frechet_right(answer):
    assert give("frechet", answer).state == PASS


def gap(a, b):
    return (a.mean(0) - b.mean(0)).square().sum()


def changing(a, b):
    a -= a.mean(0)
    return frechet_distance(a, b)


def test_frechet_slips():
    cov = lambda x: torch.cov(x.T)  # noqa: E731
    cases = [
        (gap, "means alone"),
        (lambda a, b: frechet_distance(a, b) - gap(a, b), "squared gap of the means is missing"),
        (lambda a, b: frechet_distance(a, b) - gap(a, b) + gap(a, b).sqrt(), "enters squared"),
        (lambda a, b: gap(a, b) + cov(a).trace() + cov(b).trace(), "last term is missing"),
        (lambda a, b: gap(a, b) + (a.std(0) - b.std(0)).square().sum(), "each feature alone"),
        (
            lambda a, b: (
                gap(a, b) + cov(a).trace() + cov(b).trace() - torch.linalg.eigvals(cov(a) @ cov(b)).real.sqrt().sum()
            ),
            "subtracted twice",
        ),
        (lambda a, b: (a.mean() - b.mean()) ** 2 + frechet_distance(a, b) - gap(a, b), "the mean is a vector"),
        (lambda a, b: frechet_distance(a, b) ** 0.5, "not taken at the end"),
        (lambda a, b: gap(a, b) + (cov(a) - cov(b)).square().sum(), "entry by entry"),
        (lambda a, b: (a - b).square().sum(), "stops with RuntimeError"),
        (lambda a, b: 3.0, "not the distance"),
        (lambda a, b: cov(a), "not one number"),
        (lambda a, b: math.nan, "NaN"),
        (changing, "changes what it was given"),
        (42, "a function"),
    ]
    slips("frechet", cases)


# --- balls


def by_package(made, real, k):
    return precision_recall(made, real, k).precision


def by_loop(made, real, k):
    hits = 0
    radii = [sorted(float((r - s).norm()) for s in real)[k] for r in real]
    for m in made:
        hits += any(float((m - r).norm()) <= radius for r, radius in zip(real, radii, strict=True))
    return hits / len(made)


def by_sort(made, real, k):
    return inside(made, real, k).numpy().mean()


@pytest.mark.parametrize("answer", [by_package, by_loop, by_sort])
def test_balls_right(answer):
    assert give("balls", answer).state == PASS


def near(made, real, k):
    return torch.cdist(made, real) <= torch.cdist(real, real).kthvalue(k, dim=1).values


def test_balls_slips():
    cases = [
        (lambda m, r, k: near(m, r, k).any(dim=0).float().mean(), "both faults"),
        (lambda m, r, k: near(m, r, k).any(dim=1).float().mean(), "its own nearest"),
        (lambda m, r, k: near(m, r, k + 1).any(dim=0).float().mean(), "dim=0"),
        (lambda m, r, k: precision_recall(m, r, k).recall, "that is recall"),
        (lambda m, r, k: near(m, r, k + 1).float().mean(), "all pairs"),
        (lambda m, r, k: near(m, r, k + 1).all(dim=1).float().mean(), "one ball is enough"),
        (lambda m, r, k: 0.5, "not the precision"),
        (lambda m, r, k: near(m, r, k), "not one number"),
        ("text", "a function"),
    ]
    slips("balls", cases)


# --- limit


def by_polyfit(counts, values):
    return np.polyfit(1 / counts.numpy(), values.numpy(), 1)[1]


def by_lstsq(counts, values):
    table = torch.stack([torch.ones_like(counts), 1 / counts], dim=1)
    return torch.linalg.lstsq(table, values[:, None]).solution[0]


@pytest.mark.parametrize("answer", [by_polyfit, by_lstsq])
def test_limit_right(answer):
    assert give("limit", answer).state == PASS


def test_limit_slips():
    fit = lambda x, y, which: np.polyfit(x.numpy(), y.numpy(), 1)[which]  # noqa: E731
    cases = [
        (lambda n, v: v[-1], "largest number"),
        (lambda n, v: v.mean(), "mean of the values"),
        (lambda n, v: fit(n, v, 1), "draw it over 1/n"),
        (lambda n, v: fit(1 / n, v, 0), "slope"),
        (lambda n, v: fit(1 / n.sqrt(), v, 1), "not as 1/sqrt"),
        (lambda n, v: v[-1] - (v[0] - v[-1]) / (1 / n[0] - 1 / n[-1]) / n[-1], "first and the last"),
        (lambda n, v: 0.0, "least squares line over 1/n"),
        (lambda n, v: v, "not one number"),
        (None.__class__, "stops with"),
    ]
    slips("limit", cases)


# --- enough


@pytest.mark.parametrize("answer", [245, 240.0, np.int64(250), "245", Fraction(250)], ids=repr)
def test_enough_right(answer):
    assert give("enough", answer).state == PASS


def test_enough_is_what_share_says():
    assert judges.half_width(250) < judges.HALF_WIDTH < judges.half_width(235)


def test_enough_slips():
    cases = [(385, "at a share of 0.5"), (983, "whole interval"), (62, "0.1 to each side"), (173, "90 of 100")]
    cases += [(425, "99 of 100"), (100, "too few"), (700, "more than needed"), (-3, "some hundreds")]
    slips("enough", [*cases, ("many", "one number")])
