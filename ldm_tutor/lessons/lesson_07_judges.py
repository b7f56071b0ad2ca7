"""The judges of lesson 07: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.metrics.grounding import auc, find_cases, look, word_fields
from ldm_tutor.nn.attention import attention_probs
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.shapes import Tensor

NUM_SCENES, TIME = 16, 400  # what the exercise on heads is judged on
CLOSE = 0.02  # a head this near to the best one counts as found

# ---------------------------------------------------------------- one_weight

_DOTS, _WIDTH = (8.0, 4.0, 4.0), 16


def _share(scale: float, dots: tuple[float, ...] = _DOTS) -> float:
    powers = [math.exp(each * scale) for each in dots]
    return powers[0] / sum(powers)


_WEIGHT_SLIPS = (
    (_share(1), "you left out the root of d: with d = 16, each product is divided by 4 before the softmax"),
    (_share(1 / _WIDTH), "you divided by d; it is divided by the root of d, which is 4"),
    (_share(1 / 4, _DOTS[:2]), "that is right for two tokens; there are three, and all of them share the weight"),
    (0.5, "8 of 16 is a share without a softmax; each product goes through the exponential first"),
    (math.exp(2), "that is the exponential of the score; divide by the sum over all three tokens"),
    (2.0, "that is the scaled score; the softmax turns the three scores into weights that sum to 1"),
    ((1 - _share(1 / 4)) / 2, "that is the weight of one of the other two tokens"),
    (1 - _share(1 / 4), "that is what the other two get together"),
)


def judge_one_weight(answer: Any) -> Verdict:
    """Judge the weight of the first of three tokens with products 8, 4, 4 at d = 16: about 0.58."""
    try:
        value = float(answer)
    except (TypeError, ValueError, RuntimeError):
        return look_again("the answer is one number, the weight of the first token")
    right = _share(1 / 4)
    if abs(value - right) < 0.006:
        return passed(f"the scores are 2, 1 and 1, and the softmax gives the first {right:.3f} of the look")
    for slip, reason in _WEIGHT_SLIPS:
        if abs(value - slip) < 0.006:
            return look_again(reason)
    if not 0 < value < 1:
        return look_again("a weight of a softmax is larger than 0 and smaller than 1")
    return look_again("divide each product by the root of d, take the exponentials, divide the first by their sum")


# ---------------------------------------------------------------- attend

_Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def _masked(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return _scores(q, k).masked_fill(~mask, -torch.inf)


_ATTEND_SLIPS: tuple[tuple[_Formula, str], ...] = (  # (q, k, v, mask) -> what the slip gives
    (
        lambda q, k, v, mask: (q @ k.transpose(-1, -2)).masked_fill(~mask, -torch.inf).softmax(-1) @ v,
        "1 / sqrt(d) is missing: the scores are too large and the softmax looks at one token only",
    ),
    (
        lambda q, k, v, mask: (_scores(q, k) / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf).softmax(-1) @ v,
        "you divide by d; divide by its root",
    ),
    (
        lambda q, k, v, mask: (
            (_scores(q, k) * math.sqrt(q.shape[-1] / v.shape[-2])).masked_fill(~mask, -torch.inf).softmax(-1) @ v
        ),
        "you divide by the root of the number of tokens; it is the width of a query, q.shape[-1]",
    ),
    (
        lambda q, k, v, mask: _masked(q, k, mask).softmax(-2).nan_to_num(0) @ v,
        "your softmax runs over the positions; each position shares its look out over the tokens, the last axis",
    ),
    (
        lambda q, k, v, mask: _scores(q, k).masked_fill(mask, -torch.inf).softmax(-1).nan_to_num(0) @ v,
        "your mask is upside down: it is True where a position may look",
    ),
    (
        lambda q, k, v, mask: (_scores(q, k).softmax(-1) * mask) @ v,
        "you mask after the softmax, so the weights no longer sum to 1: put -inf into the scores before it",
    ),
    (
        lambda q, k, v, mask: (_scores(q, k) * mask).softmax(-1) @ v,
        "a score of 0 is not 'do not look': its exponential is 1. Put -inf there",
    ),
    (lambda q, k, v, mask: _scores(q, k).softmax(-1) @ v, "your mask is not used"),
    (lambda q, k, v, mask: _masked(q, k, mask).softmax(-1) @ k, "you hand over the keys; the values v are handed over"),
    (
        lambda q, k, v, mask: _masked(q, k, mask).nan_to_num(neginf=0) @ v,
        "the softmax is missing: the scores are no weights yet",
    ),
)


def judge_attend(my_attend: Any) -> Verdict:
    """Judge a function (q, k, v, mask) -> (n, d): softmax(q k^T / sqrt(d)) v, mask True where one may look, or None."""
    if not callable(my_attend):
        return look_again("the answer is a function: my_attend(q, k, v, mask=None)")
    generator = torch.Generator().manual_seed(7)
    for n, m, d in ((6, 5, 16), (5, 5, 5), (12, 7, 32)):
        q, k, v = (2 * torch.randn(length, d, generator=generator) for length in (n, m, m))
        mask = torch.rand(n, m, generator=generator) < 0.6
        rows = torch.arange(n)
        mask[rows, rows % m], mask[rows, (rows + 1) % m] = True, False  # some allowed and some not, for each position
        for given in (None, mask):
            result = my_attend(q.clone(), k.clone(), v.clone(), None if given is None else given.clone())
            if is_missing(result):
                return not_done("your function returns nothing yet: end it with `return` and the mixture of values")
            got = _as_tensor(result)
            if got is None:
                return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
            if got.shape != q.shape:
                return look_again(
                    f"the result has the shape {tuple(got.shape)}, expected {tuple(q.shape)}: one mixture of the "
                    "values for each position"
                )
            used = torch.ones_like(mask) if given is None else given
            right = attention_probs(q[None, None], k[None, None], used)[0, 0] @ v
            if not _close(got, right):
                return look_again(_why_not_attention(got, q, k, v, used, given is not None))
    return passed("your attention is right for three shapes, with a mask and without")


def _why_not_attention(got: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, masked: bool) -> str:
    for slip, reason in _ATTEND_SLIPS:
        if _close(got, slip(q, k, v, mask)):
            return reason
    if not bool(torch.isfinite(got).all()):
        return "your result has values that are not numbers (NaN): a row whose scores are all -inf has no softmax"
    if masked:
        return "right without a mask; with one, the forbidden scores should be -inf before the softmax"
    return "this is not softmax(q k^T / sqrt(d)) v: compute scores, weights and mixture on lines of their own and look"


# ---------------------------------------------------------------- split_heads


def judge_split_heads(my_split: Any) -> Verdict:
    """Judge a function (x, num_heads): (b, n, heads * d) -> (b, heads, n, d), each head a block of channels."""
    if not callable(my_split):
        return look_again("the answer is a function: split_heads(x, num_heads)")
    for b, n, heads, d in ((2, 6, 3, 4), (1, 5, 5, 5), (3, 4, 2, 8)):
        x = torch.arange(b * n * heads * d, dtype=torch.float32).view(b, n, heads * d)
        result = my_split(x.clone(), heads)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the heads")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        parts = x.unflatten(2, (heads, d))  # b n heads d
        if got.shape != (b, heads, n, d):
            if got.shape == parts.shape and torch.equal(got, parts):
                return look_again("the split is right, and the axes stand as (b, n, heads, d): swap axes 1 and 2")
            return look_again(f"the shape is {tuple(got.shape)}, expected (b, heads, n, d) = {(b, heads, n, d)}")
        if torch.equal(got, parts.transpose(1, 2)):
            continue
        if torch.equal(got, x.reshape(b, heads, n, d)):
            return look_again(
                "the shape is right and the numbers are not: this cuts the positions into heads, so a head holds all "
                "channels of some positions. Split the last axis first, then swap"
            )
        if torch.equal(got, x.unflatten(2, (d, heads)).permute(0, 3, 1, 2)):
            return look_again(
                "your heads take channels that lie apart; the weights expect blocks: head 0 has the first d channels"
            )
        if torch.equal(got, parts.transpose(1, 2).flip(1)):
            return look_again("your heads are in the reverse order")
        return look_again("the shape is right and the numbers are not: head h at position i is x[:, i, h * d:][:, :d]")
    return passed("each head has its own block of channels, at every position, also where n equals the number of heads")


# ---------------------------------------------------------------- ignore_word


def judge_ignore_word(my_ignore: Any) -> Verdict:
    """Judge a function (probs, token) -> probs as if the token had been masked before the softmax."""
    if not callable(my_ignore):
        return look_again("the answer is a function: my_ignore(probs, token)")
    generator = torch.Generator().manual_seed(8)
    for heads, n, m, token in ((2, 6, 5, 2), (3, 4, 4, 0), (1, 9, 8, 7)):
        scores = 2 * torch.randn(2, heads, n, m, generator=generator)
        probs = scores.softmax(-1)
        given = probs.clone()
        result = my_ignore(given, token)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the new map")
        if not torch.equal(given, probs):
            return look_again("your function changes the map that it was given: work on a copy, probs.clone()")
        got = _as_tensor(result)
        if got is None or got.shape != probs.shape:
            given_back = type(result).__name__ if got is None else tuple(got.shape)
            return look_again(f"you return {given_back}; return a map of the shape {tuple(probs.shape)}")
        hidden = scores.clone()
        hidden[..., token] = -torch.inf
        if not _close(got, hidden.softmax(-1)):
            return look_again(_why_not_ignored(got, probs, token))
    return passed("zero and divided by what is left: the same as a score of minus infinity before the softmax")


def _why_not_ignored(got: Tensor, probs: Tensor, token: int) -> str:
    zeroed = probs.clone()
    zeroed[..., token] = 0
    m = probs.shape[-1]
    spread = zeroed + probs[..., token, None] / (m - 1)
    spread[..., token] = 0
    row = probs.clone()
    row[..., token, :] = 0 if token < probs.shape[-2] else row[..., token % probs.shape[-2], :]
    slips = (
        (probs, "this is the old map"),
        (zeroed, "the token has no weight, but the rows no longer sum to 1: divide by what is left"),
        (spread, "you share the lost weight out evenly; a softmax keeps the proportions of the others: divide"),
        (zeroed / zeroed.sum(-2, keepdim=True).clamp_min(1e-9), "you divide by sums over the positions: use dim=-1"),
        (zeroed.softmax(-1), "a second softmax over weights flattens them: only divide by the sum"),
        (row, "you blanked a position; the tokens are on the last axis: probs[..., token]"),
        (probs.log().index_fill(-1, torch.tensor([token]), 0).softmax(-1), "a score of 0 is not minus infinity"),
    )
    for slip, reason in slips:
        if _close(got, slip):
            return reason
    if not bool(torch.isfinite(got).all()):
        return "your map has values that are not numbers (NaN)"
    if float(got[..., token].abs().max()) > 1e-6:
        return f"token {token} still has weight: up to {float(got[..., token].max()):.2f}"
    return "the token is hidden, but the others have lost their proportions: divide each row by its own sum"


# ---------------------------------------------------------------- best_head


@lru_cache(maxsize=1)
def head_table() -> dict[tuple[str, int], float]:
    """Mean AUC of an object's word by layer and head, on NUM_SCENES held-out scenes at time TIME."""
    pipe, scenes = load_pipeline(), render_scenes(NUM_SCENES, "test", with_masks=True)
    with torch.inference_mode():
        latents = pipe.autoencoder.to_latents(to_float(scenes.pictures), torch.Generator().manual_seed(0))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    records = look(pipe.unet, pipe.embed(scenes.captions), latents, noise, pipe.schedule, [TIME])
    cases = find_cases(pipe.tokenizer, scenes)
    values = [
        auc(word_fields(records, case.row, case.tokens, (64, 64)).flatten(0, 1), case.mask)  # every layer has 4 heads
        for case in cases
    ]
    means = torch.stack(values).mean(dim=0).view(len(records), -1)
    names = [record.call.site.name for record in records]
    return {(name, head): float(means[k, head]) for k, name in enumerate(names) for head in range(means.shape[1])}


def judge_best_head(answer: Any) -> Verdict:
    """Judge a pair (name of a layer, head counted from 0): its AUC may be CLOSE below the best one."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or not isinstance(answer[0], str):
        return look_again("the answer is a pair: the name of a layer and the number of a head, from 0 on")
    name = str(answer[0])
    try:
        head = int(answer[1])
    except (TypeError, ValueError, RuntimeError):
        return look_again("the second part of the answer is the number of a head, from 0 on")
    table = head_table()
    layers = list(dict.fromkeys(each for each, _ in table))
    if name not in layers:
        return look_again(f"there is no layer of this name with cross-attention; there are {', '.join(layers)}")
    if (name, head) not in table:
        return look_again(f"this layer's heads are 0 to {max(h for each, h in table if each == name)}")
    value, best = table[name, head], max(table.values())
    told = f"head {head} of {name} has an AUC of {value:.2f} on {NUM_SCENES} scenes at t = {TIME}"
    if value < 0.5:
        return look_again(f"{told}: that is worse than chance, it looks away from the object")
    if value < best - CLOSE:
        return look_again(f"{told}; there is a better one, with {best:.2f}. Sort all layers and heads by their mean")
    return passed(f"{told}, and no other is clearly better")


def _as_tensor(result: Any) -> Tensor | None:
    """Return a result as a tensor of numbers, None where it is none."""
    try:
        tensor = torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.is_floating_point() else None


def _close(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return got.shape == wanted.shape and bool(((got.double() - wanted.double()).abs() < tolerance).all())
