"""The judges of lesson 02: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional as F

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.lessons.lesson_02_kit import held_out_scenes, reconstruct, sharpen
from ldm_tutor.losses.adversarial import adaptive_weight
from ldm_tutor.losses.reconstruction import feature_distance
from ldm_tutor.metrics.pictures import high_frequency_energy
from ldm_tutor.shapes import Tensor


def _number(answer: Any) -> float | None:
    """Return the answer as a number, None where it is none."""
    try:
        return float(answer.detach() if isinstance(answer, Tensor) else answer)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)


# ---------------------------------------------------------------- one_answer

_L2_SLIPS = {
    0.3: "the sign is turned: -1 is the more frequent of the two",
    0.0: "that is the mean of the three values; the mean of the ten pictures counts -1 six times and 1 three times",
    -1.0: "-1 is the most frequent value; a squared error is smallest at the mean of all ten",
    -0.33: "the 0 is a picture too: divide by ten, not by nine",
    0.9: "that is the mean of the sizes, without their signs",
}
_L1_SLIPS = {
    0.0: "0 lies in the middle of the three values; the median counts pictures, so that half of the ten lie below it",
    -0.3: "that is the mean again; for an absolute error each picture pulls equally hard, however far away it is",
    1.0: "1 is right for three of ten pictures, and as far away as possible from six",
    -0.5: "the fifth and the sixth of the ten, in order, are both -1; so is the median",
}


def judge_one_answer(answer: Any) -> Verdict:
    """Judge the pair (l2, l1) for a pixel that is -1 in six, 0 in one and 1 in three of ten pictures: (-0.3, -1)."""
    try:
        l2, l1 = (_number(each) for each in answer)
    except (TypeError, ValueError):
        return look_again("the answer has two numbers: (l2, l1)")
    if l2 is None or l1 is None:
        return look_again("the answer has two numbers: (l2, l1)")
    if _near(l2, -1) and _near(l1, -0.3):
        return look_again("the right two numbers, the wrong way round: first L2's answer, then L1's")
    if not _near(l2, -0.3):
        for slip, reason in _L2_SLIPS.items():
            if abs(l2 - slip) < 0.005:
                return look_again(f"L2: {reason}")
        return look_again("L2: the answer is the mean of the ten pictures; add them up, each with its sign")
    if not _near(l1, -1):
        for slip, reason in _L1_SLIPS.items():
            if abs(l1 - slip) < 0.005:
                return look_again(f"the first is right. L1: {reason}")
        return look_again("the first is right. L1: put the ten pictures in order; which value stands in the middle?")
    return passed("L2 answers -0.3, a grey that no picture has; L1 answers -1, which six of ten have")


# ---------------------------------------------------------------- receptive_field

_NETWORKS: tuple[tuple[tuple[int, int], ...], ...] = (  # (kernel, stride) of each layer, the first layer first
    ((4, 2), (4, 2), (4, 2), (4, 1), (4, 1)),
    ((4, 2), (4, 2), (4, 1), (4, 1)),
    ((7, 1), (3, 2), (5, 3), (2, 1)),
    ((3, 2),),
)
Layers = Sequence[tuple[int, int]]


def receptive_field(layers: Layers) -> int:
    """Return how many pixels wide the patch is that one output sees; (kernel, stride) per layer, the first first."""
    field = 1
    for kernel, stride in reversed(layers):
        field = (field - 1) * stride + kernel
    return field


def _forward_slip(layers: Layers) -> int:
    field = 1
    for kernel, stride in layers:
        field = (field - 1) * stride + kernel
    return field


def _jump_first(layers: Layers) -> int:
    field, jump = 1, 1
    for kernel, stride in layers:
        jump *= stride
        field += (kernel - 1) * jump
    return field


def _whole_kernels(layers: Layers) -> int:
    field = 1
    for kernel, stride in reversed(layers):
        field = field * stride + kernel
    return field


_FIELD_SLIPS: tuple[tuple[Callable[[Layers], float], str], ...] = (
    (_forward_slip, "you walk from the picture to the verdict; begin at the verdict, with the last layer"),
    (
        lambda layers: 1 + sum(kernel - 1 for kernel, _ in layers),
        "that forgets the strides: behind a stride of 2, one step to the side is two pixels",
    ),
    (
        _jump_first,
        "a layer's own stride does not widen its own kernel, only those of the layers behind it: add first, then "
        "multiply",
    ),
    (
        _whole_kernels,
        "n neighbours in the layer above have n - 1 gaps of one stride between them, not n: (n - 1) * stride + kernel",
    ),
    (lambda layers: sum(kernel for kernel, _ in layers), "kernels overlap: a second 4x4 kernel adds 3, not 4"),
    (
        lambda layers: math.prod(stride for _, stride in layers),
        "that is the distance between two neighbouring patches, the product of the strides; how wide is one patch?",
    ),
    (lambda layers: receptive_field(layers) - 1, "one too few: a verdict without any layer sees 1 pixel, not 0"),
    (lambda layers: receptive_field(layers) ** 2, "that is the number of pixels in the patch; its width is asked for"),
)


def judge_receptive_field(my_field: Any) -> Verdict:
    """Judge a function: layers -> the width in pixels of what one output sees."""
    if not callable(my_field):
        return look_again("the answer is a function: my_field(layers)")
    got = []
    for layers in _NETWORKS:
        result = my_field(list(layers))
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and a number of pixels")
        value = _number(result)
        if value is None:
            return look_again(f"your function returns a {type(result).__name__}: return one number of pixels")
        got.append(value)
    if all(value == receptive_field(layers) for value, layers in zip(got, _NETWORKS, strict=True)):
        return passed("70 pixels for the paper's critic, 34 for ours, and right for other kernels and strides")
    for slip, reason in _FIELD_SLIPS:
        if all(value == slip(layers) for value, layers in zip(got, _NETWORKS, strict=True)):
            return look_again(reason)
    if len(set(got)) == 1:
        return look_again("every network gets the same number: use the kernels and strides in `layers`")
    wrong = next(k for k, value in enumerate(got) if value != receptive_field(_NETWORKS[k]))
    wanted = receptive_field(_NETWORKS[wrong])
    return look_again(f"for the layers {list(_NETWORKS[wrong])} it is {wanted} pixels, yours is {got[wrong]:g}")


# ---------------------------------------------------------------- feature_gap

_Distance = Callable[[Tensor, Tensor], Tensor]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1, eps=1e-5)


def _whole(x: Tensor) -> Tensor:
    return x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _over_positions(x: Tensor) -> Tensor:
    return x / x.norm(dim=(2, 3), keepdim=True)


_GAP_SLIPS: tuple[tuple[_Distance, str], ...] = (
    (
        lambda a, b: (_whole(a) - _whole(b)).square().mean(dim=(1, 2, 3)),
        "both faults are still there: each position has a length of its own, and squares are summed over channels",
    ),
    (
        lambda a, b: (_unit(a) - _unit(b)).square().mean(dim=(1, 2, 3)),
        "lengths are right. One fault is left: sum the squares over the channels, take the mean over positions only",
    ),
    (
        lambda a, b: (_whole(a) - _whole(b)).square().sum(dim=1).mean(dim=(1, 2)),
        "the sum is right. One fault is left: each position has a vector and a length of its own, over the channels",
    ),
    (
        lambda a, b: (a - b).square().sum(dim=1).mean(dim=(1, 2)),
        "the vectors are not divided by their lengths, so that strong features drown the weak ones",
    ),
    (
        lambda a, b: (_unit(a) - _unit(b)).square().sum(dim=(1, 2, 3)),
        "you sum over positions too: a picture twice as wide would be twice as far away; take the mean over positions",
    ),
    (
        lambda a, b: (_unit(a) - _unit(b)).square().sum(dim=1).sqrt().mean(dim=(1, 2)),
        "that is the length of the difference; eq. 1 has its square",
    ),
    (
        lambda a, b: (_unit(a) - _unit(b)).abs().sum(dim=1).mean(dim=(1, 2)),
        "you take absolute values where the squares belong",
    ),
    (
        lambda a, b: 1 - (_unit(a) * _unit(b)).sum(dim=1).mean(dim=(1, 2)),
        "one minus the cosine is exactly half of the squared distance of unit vectors: you are a factor of 2 away",
    ),
    (
        lambda a, b: (F.normalize(a, dim=2) - F.normalize(b, dim=2)).square().sum(dim=1).mean(dim=(1, 2)),
        "you normalise along the rows; the vector at a position runs over the channels, dim=1",
    ),
    (
        lambda a, b: (_over_positions(a) - _over_positions(b)).square().sum(dim=1).mean(dim=(1, 2)),
        "you normalise each channel over the positions; the vector at a position runs over the channels, dim=1",
    ),
    (
        lambda a, b: (a / a.square().sum(1, True) - b / b.square().sum(1, True)).square().sum(1).mean(dim=(1, 2)),
        "you divide by the sum of squares; the length is its root",
    ),
)


def judge_feature_gap(my_gap: Any) -> Verdict:
    """Judge a function (a, b) -> (batch,) against `feature_distance`, also where a feature vector is zero."""
    if not callable(my_gap):
        return look_again("the answer is a function: my_gap(a, b)")
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(3, 6, 5, 4, generator=generator) for _ in range(2))
    given = a.clone(), b.clone()
    result = my_gap(*given)
    if is_missing(result):
        return not_done("your function returns nothing yet: end it with `return` and one number per picture")
    if not (torch.equal(given[0], a) and torch.equal(given[1], b)):
        return look_again("your function changes the features that it was given: write a = a / ..., not a /= ...")
    got = _floats(result)
    if got is None:
        return look_again(f"your function returns a {type(result).__name__}: return a tensor, one number per picture")
    right = feature_distance(a, b)
    if got.dim() == 0 and _close(got, right.mean()):
        return look_again("you average over the batch too: return one number per picture, shape (b,)")
    if got.shape != right.shape:
        return look_again(f"the result has the shape {tuple(got.shape)}: return one number per picture, shape (b,)")
    if not _close(got, right):
        for slip, reason in _GAP_SLIPS:
            if _close(got, slip(a, b)):
                return look_again(reason)
        first, wanted = float(got[0]), float(right[0])
        return look_again(f"for the first pair of feature maps the distance is {wanted:.3f}, yours is {first:.3f}")
    a[0, :, 0, 0] = 0.0  # a position at which no feature fires
    empty = _floats(my_gap(a, b))
    if empty is None or not bool(empty.isfinite().all()):
        return look_again("right, until no feature fires at some position: you divide 0 by 0; add a small number there")
    if not bool(((empty - feature_distance(a, b)).abs() < 1e-2).all()):
        return look_again("right, until no feature fires at some position: a vector of zeros should stay zeros")
    return passed("every position counts alike, whatever its strength, and no position divides by zero")


# ---------------------------------------------------------------- balance

_Ratio = Callable[[Tensor, Tensor], float]  # gradients of reconstruction and adversary
_BALANCE_SLIPS: tuple[tuple[_Ratio, str], ...] = (
    (lambda rec, adv: float(adv.norm() / rec.norm()), "upside down: the weight multiplies the adversary's gradient"),
    (
        lambda rec, adv: float(rec.norm().square() / (adv.norm().square() + 1e-4)),
        "you divide squared lengths: take the root, or .norm()",
    ),
    (
        lambda rec, adv: float(rec.abs().sum() / adv.abs().sum()),
        "you add up absolute values; the norm is the root of the sum of squares",
    ),
    (lambda rec, adv: float(rec.abs().max() / adv.abs().max()), "you compare the largest entries; take the norms"),
    (lambda rec, adv: float(rec.mean() / adv.mean()), "you compare means, in which signs cancel; take the norms"),
    (
        lambda rec, adv: 0.5 * float(rec.norm() / adv.norm()),
        "half of it: the recipe's weight of 0.5 comes on top, outside of this function",
    ),
    (lambda rec, adv: 1.0, "1 is what the weight would be for gradients of equal length; these are not"),
)


def judge_balance(my_balance: Any) -> Verdict:
    """Judge a function (reconstruction, adversarial, last_layer) -> the adaptive weight, and what it leaves behind."""
    if not callable(my_balance):
        return look_again("the answer is a function: my_balance(reconstruction, adversarial, last_layer)")
    for seed, stretch in ((0, 1.0), (1, 40.0), (2, 0.2)):
        layer, rec, adv = _two_losses(seed, stretch)
        try:
            result = my_balance(rec, adv, layer)
        except RuntimeError as error:
            if "a second time" not in str(error):
                raise
            return look_again("your first autograd.grad uses the graph up: pass retain_graph=True, both times")
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the weight")
        value = _number(result)
        if value is None:
            return look_again(f"your function returns a {type(result).__name__}: return one number, the weight")
        if layer.grad is not None:
            return look_again("your function leaves a gradient in last_layer.grad: torch.autograd.grad, not backward()")
        try:
            (rec + adv).backward()
        except RuntimeError:
            return look_again("the graph is gone after your function, backward() fails: retain_graph=True, both times")
        layer, rec, adv = _two_losses(seed, stretch)
        wanted = float(adaptive_weight(rec, adv, layer))
        if not math.isclose(value, wanted, rel_tol=0.01):
            return look_again(_why_not_balance(value, wanted, seed, stretch))
    told = "right, until the adversary's gradient vanishes:"
    for size in (0.1, 100.0):  # with the second, the weight reaches its limit
        layer, rec, _ = _two_losses(3, 1.0)
        value = _number(my_balance(size * rec, (0 * layer).sum(), layer))
        if value is None or not math.isfinite(value):
            return look_again(f"{told} then you divide by 0. Add 1e-4 beneath, clamp at 10,000")
        layer, rec, _ = _two_losses(3, 1.0)
        wanted = float(adaptive_weight(size * rec, (0 * layer).sum(), layer))
        if size < 1 and not math.isclose(value, wanted, rel_tol=0.01):
            return look_again(f"{told} add 1e-4 to its length, and it is {wanted:.0f} here, yours is {value:.0f}")
        if value > 1.001e4:
            return look_again(f"{told} {value:.0f} should be clamped at 10,000")
    return passed("the two gradients get the same length, the graph survives, and a vanishing gradient is no disaster")


def _two_losses(seed: int, stretch: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer and two losses that depend on it in different ways: (last_layer, reconstruction, adversarial)."""
    generator = torch.Generator().manual_seed(seed)
    layer = torch.randn(3, 4, generator=generator).requires_grad_()
    x = torch.randn(4, 16, generator=generator)
    target = torch.randn(3, 16, generator=generator)
    made = layer @ x
    verdicts = (made * torch.randn(3, 16, generator=generator)).tanh() * stretch
    return layer, (made - target).abs().mean(), -verdicts.mean()


def _why_not_balance(value: float, wanted: float, seed: int, stretch: float) -> str:
    layer, rec, adv = _two_losses(seed, stretch)
    of_rec, of_adv = (torch.autograd.grad(each, layer, retain_graph=True)[0] for each in (rec, adv))
    for slip, reason in _BALANCE_SLIPS:
        if math.isclose(value, slip(of_rec, of_adv), rel_tol=0.02):
            return reason
    losses = float((rec / adv).detach())
    if math.isclose(abs(value), abs(losses), rel_tol=5e-3):
        return "that is the ratio of the two losses; what pulls at the weights are their gradients"
    if not math.isfinite(value):
        return "your weight is not a finite number"
    return f"the weight should be {wanted:.3g} here, yours is {value:.3g}"


# ---------------------------------------------------------------- sharpen

NUM_SHARPENED, NEAR = 24, 0.05


@lru_cache(maxsize=1)
def _blurry() -> tuple[Tensor, float]:
    """Return what the L2 autoencoder makes of held-out scenes, and the fine energy of the scenes themselves."""
    real = held_out_scenes(NUM_SHARPENED)
    return reconstruct("l2", real), float(high_frequency_energy(real).mean())


def fine_share(amount: float) -> float:
    """Return the fine energy of the L2 autoencoder's pictures, sharpened by `amount`, as a share of the scenes' own."""
    made, wanted = _blurry()
    return float(high_frequency_energy(sharpen(made, amount)).mean()) / wanted


def judge_sharpen(answer: Any) -> Verdict:
    """Judge an amount of sharpening that gives the L2 pictures the fine energy of real scenes, within 5%."""
    amount = _number(answer)
    if amount is None or not math.isfinite(amount):
        return look_again("the answer is one number, the amount of sharpening")
    if amount < 0:
        return look_again("a negative amount blurs: sharpening adds what a blur takes away, so the amount is above 0")
    if amount > 1000:
        return look_again("so much is no picture any more; look between 0 and 20")
    share = fine_share(amount)
    told = f"sharpened by {amount:g}, the pictures have {share:.0%} of the fine energy of real scenes"
    if share < 1 - NEAR:
        return look_again(f"{told}: more")
    if share > 1 + NEAR:
        return look_again(f"{told}: less")
    return passed(f"{told}. Energy is not detail: now compare their perceptual distance with that of the other runs")


def _floats(result: Any) -> Tensor | None:
    """Return a result as a tensor of numbers, None where it is none."""
    try:
        tensor = torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.is_floating_point() else None


def _close(got: Tensor, wanted: Tensor) -> bool:
    return got.shape == wanted.shape and bool(((got.double() - wanted.double()).abs() < 1e-4).all())
