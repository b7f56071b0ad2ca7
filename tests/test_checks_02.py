"""The exercises of lesson 02: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.lessons.lesson_02_judges import fine_share, receptive_field
from ldm_tutor.losses.adversarial import adaptive_weight
from ldm_tutor.losses.reconstruction import feature_distance


def give(name, answer):
    return getattr(check.sharp_reconstructions, name)(answer)


def expect(name, answer, diagnosis):
    verdict = give(name, answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- one_answer

VALUES = [-1] * 6 + [0] + [1] * 3


@pytest.mark.parametrize(
    "answer",
    [(-0.3, -1), [-0.3, -1.0], (Fraction(-3, 10), -1), np.array([-0.3, -1]), torch.tensor([-0.3, -1.0]),
     (statistics.mean(VALUES), statistics.median(VALUES))],
    ids=repr,
)  # fmt: skip
def test_one_answer_right(answer):
    assert give("one_answer", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((-1, -0.3), "wrong way round"),
        ((0.3, -1), "the sign is turned"),
        ((0, -1), "mean of the three values"),
        ((-1, -1), "most frequent"),
        ((-1 / 3, -1), "the 0 is a picture too"),
        ((0.9, -1), "without their signs"),
        ((-0.3, 0), "middle of the three values"),
        ((-0.3, -0.3), "that is the mean again"),
        ((-0.3, 1), "three of ten"),
        ((-0.3, -0.5), "the fifth and the sixth"),
        ((-0.3, 0.7), "which value stands in the middle"),
        ((5, -1), "the mean of the ten pictures"),
        ((-0.3, -1, 0), "two numbers"),
        (-0.3, "two numbers"),
    ],
)
def test_one_answer_slips(answer, diagnosis):
    expect("one_answer", answer, diagnosis)


# --- receptive_field


def with_a_jump(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field


def recursive(layers):
    if not layers:
        return 1
    (kernel, stride), *rest = layers
    return (recursive(rest) - 1) * stride + kernel


def by_gradient(layers):
    """Send ones through convolutions of ones, and count the pixels that one output depends on."""
    x = torch.zeros(1, 1, 1, 200, requires_grad=True)
    y = x
    for kernel, stride in layers:
        y = F.conv2d(y, torch.ones(1, 1, 1, kernel), stride=(1, stride))
    y[0, 0, 0, 0].backward()
    return torch.tensor(float((x.grad > 0).sum()))


@pytest.mark.parametrize("answer", [with_a_jump, recursive, by_gradient, receptive_field])
def test_receptive_field_right(answer):
    assert give("receptive_field", answer).state == PASS


def forwards(layers):
    field = 1
    for kernel, stride in layers:
        field = (field - 1) * stride + kernel
    return field


def multiplied_first(layers):
    field, jump = 1, 1
    for kernel, stride in layers:
        jump *= stride
        field += (kernel - 1) * jump
    return field


def without_gaps(layers):
    field = 1
    for kernel, stride in reversed(layers):
        field = field * stride + kernel
    return field


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (forwards, "begin at the verdict"),
        (lambda layers: 1 + sum(kernel - 1 for kernel, _ in layers), "forgets the strides"),
        (multiplied_first, "add first, then multiply"),
        (without_gaps, "n - 1 gaps"),
        (lambda layers: sum(kernel for kernel, _ in layers), "kernels overlap"),
        (lambda layers: math.prod(stride for _, stride in layers), "product of the strides"),
        (lambda layers: receptive_field(layers) - 1, "one too few"),
        (lambda layers: receptive_field(layers) ** 2, "its width"),
        (lambda layers: 70, "every network gets the same"),
        (lambda layers: receptive_field(layers) + len(layers) - 5, "pixels, yours is"),
        (lambda layers: [1, 2], "return one number"),
        (70, "the answer is a function"),
    ],
)
def test_receptive_field_slips(answer, diagnosis):
    expect("receptive_field", answer, diagnosis)


# --- feature_gap


def by_einsum(a, b):
    u = a / a.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-5)
    v = b / b.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-5)
    return torch.einsum("bchw,bchw->b", u - v, u - v) / (a.shape[2] * a.shape[3])


def by_cosine(a, b):
    """2 - 2 cos, which is the same for vectors of length 1; a vector of zeros counts as length 0."""
    alike = F.cosine_similarity(a, b, dim=1, eps=1e-8)
    lengths = sum((each.norm(dim=1) > 0).float() for each in (a, b))
    return (lengths - 2 * alike).mean(dim=(1, 2))


def by_loop(a, b):
    gaps = []
    for one, other in zip(a, b, strict=True):
        one, other = (F.normalize(each.flatten(1), dim=0, eps=1e-5) for each in (one, other))
        gaps.append(((one - other) ** 2).sum(dim=0).mean())
    return torch.stack(gaps)


@pytest.mark.parametrize("answer", [by_einsum, by_cosine, by_loop, feature_distance])
def test_feature_gap_right(answer):
    assert give("feature_gap", answer).state == PASS


def whole(x):
    return x / x.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def unit(x):
    return F.normalize(x, dim=1)


def over_places(x):
    return x / x.norm(dim=(2, 3), keepdim=True)


def no_root(x):
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-8)


def changing(a, b):
    a /= a.norm(dim=1, keepdim=True)
    return (a - unit(b)).square().sum(dim=1).mean(dim=(1, 2))


def bare(x):
    return x / x.norm(dim=1, keepdim=True)


def shifted(x):
    return (x + 1e-9) / (x + 1e-9).norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (lambda a, b: (whole(a) - whole(b)).square().mean(dim=(1, 2, 3)), "both faults"),
        (lambda a, b: (unit(a) - unit(b)).square().mean(dim=(1, 2, 3)), "sum the squares over the channels"),
        (lambda a, b: (whole(a) - whole(b)).square().sum(dim=1).mean(dim=(1, 2)), "the sum is right"),
        (lambda a, b: (a - b).square().sum(dim=1).mean(dim=(1, 2)), "not divided by their lengths"),
        (lambda a, b: (unit(a) - unit(b)).square().sum(dim=(1, 2, 3)), "sum over positions too"),
        (lambda a, b: (unit(a) - unit(b)).norm(dim=1).mean(dim=(1, 2)), "eq. 1 has its square"),
        (lambda a, b: (unit(a) - unit(b)).abs().sum(dim=1).mean(dim=(1, 2)), "absolute values"),
        (lambda a, b: 1 - F.cosine_similarity(a, b, dim=1).mean(dim=(1, 2)), "factor of 2"),
        (lambda a, b: (F.normalize(a, dim=2) - F.normalize(b, dim=2)).square().sum(dim=1).mean(dim=(1, 2)), "dim=1"),
        (lambda a, b: (over_places(a) - over_places(b)).square().sum(dim=1).mean(dim=(1, 2)), "over the positions"),
        (lambda a, b: (no_root(a) - no_root(b)).square().sum(dim=1).mean(dim=(1, 2)), "the length is its root"),
        (lambda a, b: feature_distance(a, b).mean(), "one number per picture"),
        (lambda a, b: (unit(a) - unit(b)).square().sum(dim=1), "the result has the shape"),
        (lambda a, b: (bare(a) - bare(b)).square().sum(dim=1).mean(dim=(1, 2)), "divide 0 by 0"),
        (lambda a, b: (shifted(a) - shifted(b)).square().sum(dim=1).mean(dim=(1, 2)), "should stay zeros"),
        (lambda a, b: 3 * feature_distance(a, b), "for the first pair"),
        (changing, "changes the features"),
        (0.5, "the answer is a function"),
    ],
)
def test_feature_gap_slips(answer, diagnosis):
    expect("feature_gap", answer, diagnosis)


# --- balance


def gradients(rec, adv, layer):
    return [torch.autograd.grad(each, layer, retain_graph=True)[0] for each in (rec, adv)]


def in_python(rec, adv, layer):
    of_rec, of_adv = (math.sqrt(float((g**2).sum())) for g in gradients(rec, adv, layer))
    return min(of_rec / (of_adv + 1e-4), 10_000)


def in_numpy(rec, adv, layer):
    of_rec, of_adv = (np.linalg.norm(g.numpy()) for g in gradients(rec, adv, layer))
    return np.clip(of_rec / (of_adv + 1e-4), 0, 1e4)


@pytest.mark.parametrize("answer", [in_python, in_numpy, adaptive_weight])
def test_balance_right(answer):
    assert give("balance", answer).state == PASS


def ratio(change):
    return lambda rec, adv, layer: change(*gradients(rec, adv, layer))


def with_backward(rec, adv, layer):
    rec.backward(retain_graph=True)
    first = layer.grad.norm().item()
    layer.grad = None
    adv.backward(retain_graph=True)
    return first / (layer.grad.norm().item() + 1e-4)


def without_graph(rec, adv, layer):
    of_rec = torch.autograd.grad(rec, layer, retain_graph=True)[0].norm()
    return of_rec / (torch.autograd.grad(adv, layer)[0].norm() + 1e-4)


def with_one_graph(rec, adv, layer):
    of_rec = torch.autograd.grad(rec, layer)[0].norm()
    return of_rec / (torch.autograd.grad(adv, layer)[0].norm() + 1e-4)


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (ratio(lambda r, a: a.norm() / (r.norm() + 1e-4)), "upside down"),
        (ratio(lambda r, a: (r**2).sum() / ((a**2).sum() + 1e-6)), "squared lengths"),
        (ratio(lambda r, a: (r**2).sum() / ((a**2).sum() + 1e-4)), "squared lengths"),
        (ratio(lambda r, a: r.abs().sum() / (a.abs().sum() + 1e-4)), "absolute values"),
        (ratio(lambda r, a: r.abs().max() / a.abs().max()), "largest entries"),
        (ratio(lambda r, a: r.mean() / a.mean()), "signs cancel"),
        (ratio(lambda r, a: 0.5 * r.norm() / (a.norm() + 1e-4)), "comes on top"),
        (lambda rec, adv, layer: 1.0, "gradients of equal length"),
        (lambda rec, adv, layer: rec / adv, "ratio of the two losses"),
        (ratio(lambda r, a: 7 * r.norm() / a.norm()), "the weight should be"),
        (ratio(lambda r, a: r.norm() / a.norm()), "you divide by 0"),
        (ratio(lambda r, a: (r.norm() / a.norm()).clamp(max=1e4)), "add 1e-4 to its length"),
        (ratio(lambda r, a: r.norm() / (a.norm() + 1e-6)), "add 1e-4 to its length"),
        (ratio(lambda r, a: r.norm() / (a.norm() + 1e-4)), "clamped"),
        (with_backward, "last_layer.grad"),
        (without_graph, "retain_graph"),
        (with_one_graph, "uses the graph up"),
        (lambda rec, adv, layer: math.inf, "not a finite number"),
        (2.0, "the answer is a function"),
    ],
)
def test_balance_slips(answer, diagnosis):
    expect("balance", answer, diagnosis)


# --- sharpen


def test_sharpening_adds_energy_steadily():
    shares = [fine_share(amount) for amount in (0, 1, 2, 4, 8)]
    assert shares == sorted(shares)
    assert shares[0] < 0.3 and shares[-1] > 1.2


@pytest.mark.parametrize("answer", [2.35, np.float32(2.3), torch.tensor(2.35), "2.35", Fraction(47, 20)], ids=repr)
def test_sharpen_right(answer):
    assert give("sharpen", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [(0, "more"), (1, "more"), (8, "less"), (50, "less"), (-2, "blurs"), (1e6, "no picture"), (math.nan, "one number")],
)
def test_sharpen_slips(answer, diagnosis):
    expect("sharpen", answer, diagnosis)
