"""The judges of lesson 03: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.losses.contrastive import contrastive_loss
from ldm_tutor.nn.transformer import causal_mask
from ldm_tutor.shapes import Tensor

NUM_BLIND = 32  # pairs in the batch of blind_loss
NUM_PAIRS = 64
MATCH, MISMATCH = 0.6, 0.2  # the cosines of enough_scale
SCALE_CHOICES = (1, 5, 10, 15, 20, 30, 100)
TARGET_LOSS = 0.1
_NOTHING = "your function returns nothing yet: end it with `return` and the result"


def _as_tensor(result: Any) -> Tensor | None:
    """The learner's result as a tensor of doubles, None where it is no array of numbers."""
    try:
        got = torch.as_tensor(result).detach()
        return None if got.is_complex() else got.to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return None


def _close(got: Tensor | None, wanted: Tensor) -> bool:
    if got is None or got.shape != wanted.shape:
        return False
    return bool((got - wanted).abs().max() < 1e-4)  # a NaN is close to nothing


def _has_nan(got: Tensor) -> bool:
    return not bool(torch.isfinite(got).all())


# ---------------------------------------------------------------- blind_loss

_BLIND_SLIPS = {
    math.log2(NUM_BLIND): "5 is the logarithm to base 2, the answer in bits; cross-entropy uses the natural one",
    math.log10(NUM_BLIND): "that is the logarithm to base 10; cross-entropy uses the natural one, math.log",
    2 * math.log(NUM_BLIND): "twice too much: the loss is the mean of both directions, not their sum, and each picture "
    "chooses among its row's sentences, not among all pairs",
    0.5 * math.log(NUM_BLIND): "you took half of one direction; the half belongs before the sum of two equal parts",
    -math.log(NUM_BLIND): "the size is right and the sign is not: the logarithm of a share is negative, the loss its "
    "opposite",
    1 / NUM_BLIND: "that is the share that the right sentence gets; the loss is minus its logarithm",
    NUM_BLIND: "that is how many sentences there are; the loss is the logarithm of it",
    math.log(NUM_BLIND - 1): "the right sentence counts too: the softmax is shared by all sentences of the batch",
    math.log(64): "that is the lesson's batch of 64; here there are 32",
    0: "0 is the loss of a CLIP that is always right and quite sure; this one knows nothing",
}


def judge_blind_loss(answer: Any) -> Verdict:
    """Judge the contrastive loss of equal similarities in a batch of NUM_BLIND."""
    try:
        value = float(answer)
    except (TypeError, ValueError, RuntimeError):
        return look_again("the answer is one number, such as 2.5")
    if math.isclose(value, math.log(NUM_BLIND), abs_tol=0.011):
        return passed("ln(32): whoever sees this number in a training log knows that nothing is being learned")
    for slip, reason in _BLIND_SLIPS.items():
        if math.isclose(value, slip, abs_tol=0.011, rel_tol=0.003):
            return look_again(reason)
    return look_again(f"give each of the {NUM_BLIND} sentences the same share, then take minus the natural logarithm")


# ---------------------------------------------------------------- cosine_matrix


def judge_cosine_matrix(my_cosines: Any) -> Verdict:
    """Judge a function (n, d), (m, d) -> (n, m) of cosines."""
    if not callable(my_cosines):
        return look_again("the answer is a function: my_cosines(a, b)")
    generator = torch.Generator().manual_seed(3)
    a = 3 * torch.randn(5, 7, generator=generator) + 1
    b = 0.5 * torch.randn(4, 7, generator=generator) - 0.5
    given = a.clone(), b.clone()
    try:
        result = my_cosines(*given)
    except RuntimeError:
        square = torch.randn(7, 7, generator=generator)
        lengths = square.norm(dim=1)
        if _close(_as_tensor(my_cosines(square, square)), (square / lengths).double() @ (square / lengths).double().T):
            return look_again("the lengths have to stand as a column, one beside each row: norm(dim=1, keepdim=True)")
        pairs = _as_tensor(my_cosines(a[:4], b))  # as many rows on both sides: does it run then?
        if pairs is None or pairs.ndim > 1:
            raise
        return look_again("you compare row with row, so both sets need as many; compare every a with every b")
    if is_missing(result):
        return not_done(_NOTHING)
    if not (torch.equal(given[0], a) and torch.equal(given[1], b)):
        return look_again("your function changes the vectors it was given: write a = a / length, not a /= length")
    got = _as_tensor(result)
    if got is None:
        return look_again(f"your function returns a {type(result).__name__}: return a tensor of shape (n, m)")
    x, y = a.double(), b.double()
    wanted = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    if _close(got, wanted):
        many = F.normalize(torch.randn(3, 512, generator=generator), dim=1)
        if not _close(torch.as_tensor(my_cosines(many, many)).detach().double(), (many @ many.T).double()):
            return look_again("right for vectors of 7 numbers and not for 512: does a size stand in your code?")
        return passed("cosines in every cell, for sets of different size and vectors of any length")
    if _close(got, wanted.T):
        return look_again("the matrix lies on its side: a row for each of a, a column for each of b, so a @ b.T")
    if _close(got, x @ y.T):
        return look_again("these are dot products of the raw vectors: divide each vector by its own length first")
    if _close(got, F.normalize(x, dim=1) @ y.T) or _close(got, x @ F.normalize(y, dim=1).T):
        return look_again("only one of the two sets has been normalised: divide the other one by its lengths too")
    if _close(got, F.normalize(x, dim=0) @ F.normalize(y, dim=0).T):
        return look_again("you normalised the columns: the length of a vector is along dim=1, each row on its own")
    if _close(got, x / x.norm() @ (y / y.norm()).T):
        return look_again("you divided by the length of the whole set: each row by its own, norm(dim=1, keepdim=True)")
    squared = (x / x.square().sum(1, keepdim=True)) @ (y / y.square().sum(1, keepdim=True)).T
    if _close(got, squared):
        return look_again("you divided by the sum of squares: the length is its square root")
    if _close(got, wanted.softmax(dim=1)):
        return look_again("right until the softmax: that belongs into the loss, a cosine is what comes before it")
    if got.shape != wanted.shape:
        return look_again(f"5 vectors against 4 give the shape {tuple(got.shape)} and should give (5, 4)")
    return look_again("the shape is right; compare one cell with the dot product of two vectors over both lengths")


# ---------------------------------------------------------------- symmetric_loss


def judge_symmetric_loss(my_loss: Any) -> Verdict:
    """Judge a function (cosines, temperature) -> symmetric contrastive loss."""
    if not callable(my_loss):
        return look_again("the answer is a function: my_loss(cosines, temperature)")
    generator = torch.Generator().manual_seed(4)
    for number, temperature in ((6, 0.25), (3, 2.0), (9, 0.07)):
        cosines = torch.rand(number, number, generator=generator) * 1.6 - 0.8
        given = cosines.clone()
        result = my_loss(given, temperature)
        if is_missing(result):
            return not_done(_NOTHING)
        if not torch.equal(given, cosines):
            return look_again("your function changes the matrix it was given: compute a new one, without /= and *=")
        got = _as_tensor(result)
        if got is None or got.numel() != 1:
            return look_again("the loss is one number: average over the rows and over both directions")
        if problem := _loss_slip(got.reshape(()), cosines.double(), temperature):
            return look_again(problem)
    huge = my_loss(torch.eye(4), 0.001)
    if not bool(torch.isfinite(torch.as_tensor(huge).detach()).all()):
        return look_again("right for mild numbers; exp overflows for large ones: use log_softmax or cross_entropy")
    return passed("both directions, averaged, at three temperatures, and it survives large numbers")


_TWICE = "you took the softmax twice: cross_entropy has one inside, so give it the logits"


def _softmax_twice(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """What comes out when shares go into cross_entropy: the pictures' half, and both halves in two ways."""
    rows = F.cross_entropy(logits.softmax(dim=1), target)
    return rows, (rows + F.cross_entropy(logits.T.softmax(dim=1), target)) / 2, contrastive_loss(logits.softmax(dim=1))


def _loss_slip(got: Tensor, cosines: Tensor, temperature: float) -> str:
    """Name what is wrong with a loss ('' if nothing is)."""
    logits = cosines / temperature
    target = torch.arange(len(cosines))
    wanted = contrastive_loss(logits)
    if _close(got, wanted):
        return ""
    if _has_nan(got):
        return "your loss is not a number (NaN or infinite): use log_softmax or cross_entropy instead of log(exp(...))"
    rows, columns = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    own = logits.diag()
    slips: tuple[tuple[Tensor, str], ...] = (
        (rows, "only the pictures choose: add the other direction, the same with logits.T, and halve the sum"),
        (columns, "only the sentences choose: the softmax runs down the columns; add the direction along the rows"),
        (rows + columns, "both directions are there; the loss is their mean, so halve the sum"),
        (wanted * len(cosines), "you added the rows up: take their mean, so that the batch size does not matter"),
        (-wanted, "the size is right and the sign is not: a loss is minus the mean logarithm"),
        (contrastive_loss(cosines * temperature), "the temperature multiplies where it divides: cosines / temperature"),
        (contrastive_loss(cosines), "your loss does not listen to the temperature: divide the cosines by it first"),
        (
            contrastive_loss(cosines * math.exp(temperature)),
            "you took exp of the temperature: here it is given as it is; CLIP keeps the logarithm of the scale",
        ),
        *((value, _TWICE) for value in _softmax_twice(logits, target)),
        (
            -logits.flatten().log_softmax(0).reshape(logits.shape).diag().mean(),
            "the softmax runs over the whole matrix: it runs along each row, and then along each column",
        ),
        (-own.mean(), "you reward the diagonal and forget the rest: divide by the sum over the row (a softmax)"),
    )
    for value, reason in slips:
        if _close(got, value):
            return reason
    return f"at temperature {temperature} the loss of the {len(cosines)} pairs is {wanted:.3f}, yours is {got:.3f}"


# ---------------------------------------------------------------- mask_fault


def judge_mask_fault(my_mask: Any) -> Verdict:
    """Judge a function length -> causal mask, bool, True where a token may look."""
    if not callable(my_mask):
        return look_again("the answer is a function: my_mask(length)")
    for length in (4, 1, 7):
        result = my_mask(length)
        if is_missing(result):
            return not_done(_NOTHING)
        got = _as_tensor(result)
        wanted = causal_mask(length)
        if got is None or got.shape != wanted.shape:
            shape = None if got is None else tuple(got.shape)
            return look_again(f"for {length} tokens the shape is {shape}: a row and a column for each token")
        if torch.as_tensor(result).dtype != torch.bool:
            return look_again("a mask is of type bool: end with .bool(), or ones(..., dtype=torch.bool)")
        seen = got.bool()
        if torch.equal(seen, wanted):
            continue
        if torch.equal(seen, wanted.T):
            return look_again("upside down: here a token looks only at itself and what comes after it; keep the lower "
                              "left corner")  # fmt: skip
        if torch.equal(seen, wanted.tril(-1)):
            return look_again("a token may look at itself too: the diagonal belongs to the mask")
        if torch.equal(seen, ~wanted):
            return look_again("the other way round: True means 'may look' here, and you mark what is forbidden")
        if bool(seen.all()):
            return look_again("every token sees every other: nothing is hidden yet")
        return look_again("row k has k + 1 times True, from the left: row 0 sees itself, the last row sees all")
    return passed("each token sees itself and what came before, at every length")


# ---------------------------------------------------------------- enough_scale


def judge_enough_scale(answer: Any) -> Verdict:
    """Judge the smallest of SCALE_CHOICES whose loss on the made-up cosines is below TARGET_LOSS."""
    try:
        value = float(answer)
    except (TypeError, ValueError, RuntimeError):
        return look_again(f"the answer is one number of {', '.join(map(str, SCALE_CHOICES))}")
    if value not in SCALE_CHOICES:
        return look_again(f"choose one of {', '.join(map(str, SCALE_CHOICES))}")
    losses = {scale: made_up_loss(scale) for scale in SCALE_CHOICES}
    if losses[int(value)] >= TARGET_LOSS:
        return look_again(
            f"at scale {value:g} the loss is still {losses[int(value)]:.2f}: a gap of {MATCH - MISMATCH:.1f} between "
            "the cosines has to be stretched further"
        )
    smallest = min(scale for scale, loss in losses.items() if loss < TARGET_LOSS)
    if value > smallest:
        return look_again(f"scale {value:g} is enough, and a smaller one is too: try the next choice below")
    return passed(f"a gap of {MATCH - MISMATCH:.1f} times {smallest} outweighs {NUM_PAIRS - 1} rivals")


def made_up_loss(scale: float) -> float:
    """The contrastive loss at a scale, of NUM_PAIRS pairs with cosine MATCH, all else MISMATCH."""
    cosines = torch.full((NUM_PAIRS, NUM_PAIRS), MISMATCH).fill_diagonal_(MATCH)
    return float(contrastive_loss(scale * cosines))
