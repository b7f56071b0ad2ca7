"""The exercises of lesson 07: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldm_tutor.lessons import lesson_07_judges as judges
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.lessons.lesson_07 import EXERCISES
from ldm_tutor.weights.shipped import shipped_folder

MINE = {each.name: each for each in EXERCISES}
TABLE = {("down.1.block0.layer0.cross", 0): 0.4, ("up.1.block0.layer0.cross", 0): 0.9}
TABLE |= {("up.1.block0.layer0.cross", 1): 0.98, ("up.1.block0.layer0.cross", 2): 0.97}
REAL_TABLE = judges.head_table
needs_weights = pytest.mark.skipif(not shipped_folder().exists(), reason="the shipped weights are not there")


@pytest.fixture(autouse=True)
def made_up_heads(monkeypatch):
    """The table of heads is made up here; the real one is measured in a test of its own."""
    monkeypatch.setattr(judges, "head_table", lambda: TABLE)


def give(name, answer):
    return MINE[name].check(answer)


# --- one_weight


@pytest.mark.parametrize("answer", [0.576, 0.58, np.float32(0.5761), torch.tensor(0.576), "0.576"])
def test_one_weight_right(answer):
    assert give("one_weight", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (0.965, "left out the root"),
        (0.391, "divided by d"),
        (0.731, "there are three"),
        (0.5, "without a softmax"),
        (7.389, "divide by the sum"),
        (2, "scaled score"),
        (0.212, "one of the other two"),
        (0.424, "together"),
        (1.7, "larger than 0"),
        (0.1, "root of d"),
        ([0.5, 0.2], "one number"),
    ],
)
def test_one_weight_slips(answer, diagnosis):
    verdict = give("one_weight", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


# --- attend


def hide(scores, mask, value=-math.inf):
    return scores if mask is None else scores.masked_fill(~mask, value)


def in_loops(q, k, v, mask=None):
    out = torch.zeros(len(q), v.shape[1])
    for i in range(len(q)):
        seen = [j for j in range(len(k)) if mask is None or mask[i, j]]
        powers = [math.exp(float(q[i] @ k[j]) / q.shape[1] ** 0.5) for j in seen]
        for j, power in zip(seen, powers, strict=True):
            out[i] += power / sum(powers) * v[j]
    return out


ATTEND_RIGHT = {
    "loops": in_loops,
    "torch": lambda q, k, v, mask=None: F.scaled_dot_product_attention(
        q[None, None], k[None, None], v[None, None], attn_mask=mask
    )[0, 0],
    "einsum": lambda q, k, v, mask=None: torch.einsum(
        "nm,md->nd", hide(torch.einsum("nd,md->nm", q, k) / math.sqrt(q.shape[-1]), mask).softmax(1), v
    ),
    "large minus": lambda q, k, v, mask=None: hide(q @ k.T * q.shape[-1] ** -0.5, mask, -1e9).softmax(-1) @ v,
    "numpy": lambda q, k, v, mask=None: hide(q @ k.T / q.shape[-1] ** 0.5, mask).softmax(-1).numpy() @ v.numpy(),
}


@pytest.mark.parametrize("way", ATTEND_RIGHT)
def test_attend_right(way):
    assert give("attend", ATTEND_RIGHT[way]).state == PASS


def scores(q, k):
    return q @ k.T / q.shape[-1] ** 0.5


ATTEND_WRONG = {
    "1 / sqrt(d) is missing": lambda q, k, v, mask=None: hide(q @ k.T, mask).softmax(-1) @ v,
    "divide by d": lambda q, k, v, mask=None: hide(q @ k.T / q.shape[-1], mask).softmax(-1) @ v,
    "number of tokens": lambda q, k, v, mask=None: hide(q @ k.T / len(k) ** 0.5, mask).softmax(-1) @ v,
    "over the positions": lambda q, k, v, mask=None: hide(scores(q, k), mask).softmax(0) @ v,
    "upside down": lambda q, k, v, mask=None: (
        (scores(q, k) if mask is None else scores(q, k).masked_fill(mask, -1e9)).softmax(-1) @ v
    ),
    "after the softmax": lambda q, k, v, mask=None: (scores(q, k).softmax(-1) * (1 if mask is None else mask)) @ v,
    "a score of 0": lambda q, k, v, mask=None: hide(scores(q, k), mask, 0).softmax(-1) @ v,
    "mask is not used": lambda q, k, v, mask=None: scores(q, k).softmax(-1) @ v,
    "the values v": lambda q, k, v, mask=None: hide(scores(q, k), mask).softmax(-1) @ k,
    "softmax is missing": lambda q, k, v, mask=None: hide(scores(q, k), mask, 0) @ v,
    "expected (6, 16)": lambda q, k, v, mask=None: scores(q, k),
    "on lines of their own": lambda q, k, v, mask=None: q,
    "not numbers": lambda q, k, v, mask=None: q / 0,
    "right without a mask": lambda q, k, v, mask=None: hide(scores(q, k), mask, -1).softmax(-1) @ v,
}


@pytest.mark.parametrize("diagnosis", ATTEND_WRONG)
def test_attend_slips(diagnosis):
    verdict = give("attend", ATTEND_WRONG[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- split_heads

SPLIT_RIGHT = {
    "view": lambda x, h: x.view(*x.shape[:2], h, -1).permute(0, 2, 1, 3),
    "chunks": lambda x, h: torch.stack(x.chunk(h, dim=-1), dim=1),
    "numpy": lambda x, h: x.numpy().reshape(*x.shape[:2], h, -1).swapaxes(1, 2),
}
SPLIT_WRONG = {
    "cuts the positions": lambda x, h: x.reshape(len(x), h, x.shape[1], -1),
    "swap axes": lambda x, h: x.unflatten(-1, (h, -1)),
    "blocks": lambda x, h: x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2),
    "reverse": lambda x, h: x.unflatten(-1, (h, -1)).transpose(1, 2).flip(1),
    "expected (b, heads, n, d)": lambda x, h: x,
    "head h at position i": lambda x, h: -x.unflatten(-1, (h, -1)).transpose(1, 2),
}


@pytest.mark.parametrize("way", SPLIT_RIGHT)
def test_split_heads_right(way):
    assert give("split_heads", SPLIT_RIGHT[way]).state == PASS


@pytest.mark.parametrize("diagnosis", SPLIT_WRONG)
def test_split_heads_slips(diagnosis):
    verdict = give("split_heads", SPLIT_WRONG[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- ignore_word


def zeroed(probs, token):
    kept = probs.clone()
    kept[..., token] = 0
    return kept


def in_place(probs, token):
    probs[..., token] = 0
    return probs / probs.sum(-1, keepdim=True)


def blank_a_position(probs, token):
    kept = probs.clone()
    if token < kept.shape[-2]:
        kept[..., token, :] = 0
    return kept


IGNORE_RIGHT = {
    "by the logarithm": lambda probs, token: zeroed(probs, token).log().softmax(-1),
    "by what is gone": lambda probs, token: zeroed(probs, token) / (1 - probs[..., token, None]),
    "numpy": lambda probs, token: zeroed(probs, token).numpy() / zeroed(probs, token).numpy().sum(-1, keepdims=True),
}
IGNORE_WRONG = {
    "old map": lambda probs, token: probs,
    "divide by what is left": zeroed,
    "evenly": lambda probs, token: zeroed(probs + probs[..., token, None] / (probs.shape[-1] - 1), token),
    "over the positions": lambda probs, token: (
        zeroed(probs, token) / zeroed(probs, token).sum(-2, keepdim=True).clamp_min(1e-9)
    ),
    "second softmax": lambda probs, token: zeroed(probs, token).softmax(-1),
    "a position": blank_a_position,
    "work on a copy": in_place,
    "still has weight": lambda probs, token: probs / 2,
    "lost their proportions": lambda probs, token: 0 * probs,
    "the shape": lambda probs, token: probs[..., :-1],
}


@pytest.mark.parametrize("way", IGNORE_RIGHT)
def test_ignore_word_right(way):
    assert give("ignore_word", IGNORE_RIGHT[way]).state == PASS


@pytest.mark.parametrize("diagnosis", IGNORE_WRONG)
def test_ignore_word_slips(diagnosis):
    verdict = give("ignore_word", IGNORE_WRONG[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- best_head


@pytest.mark.parametrize(
    "answer",
    [("up.1.block0.layer0.cross", 1), ["up.1.block0.layer0.cross", 2], ("up.1.block0.layer0.cross", torch.tensor(1))],
)
def test_best_head_right(answer):
    assert give("best_head", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (("up.1.block0.layer0.cross", 0), "there is a better one"),
        (("down.1.block0.layer0.cross", 0), "worse than chance"),
        (("up.1", 0), "no layer of this name"),
        (("up.1.block0.layer0.cross", 4), "heads are 0 to 2"),
        (("up.1.block0.layer0.cross", "two"), "number of a head"),
        ("up.1.block0.layer0.cross", "a pair"),
    ],
)
def test_best_head_slips(answer, diagnosis):
    verdict = give("best_head", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


@needs_weights
def test_the_shipped_model_has_a_head_that_finds_the_objects():
    table = REAL_TABLE()
    assert len({name for name, _ in table}) >= 3 and max(table.values()) > 0.85 > min(table.values())
