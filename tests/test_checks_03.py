"""The exercises of lesson 03: right answers pass in more than one style, typical slips get their own diagnosis."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldm_tutor.lessons import lesson_03_kit as kit
from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.lessons.lesson_03_judges import SCALE_CHOICES, TARGET_LOSS, made_up_loss
from ldm_tutor.lessons.progress import VARIABLE
from ldm_tutor.losses.contrastive import contrastive_loss


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "progress.json"))


def judge(address, answer):
    return getattr(check.clip, address.removeprefix("clip."))(answer)


# --- one by one


@pytest.mark.parametrize(
    "answer", [math.log(32), 3.47, "3.466", np.float32(3.4657), torch.tensor(3.4657), -math.log(1 / 32)]
)
def test_blind_loss_right(answer):
    assert check.clip.blind_loss(answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (5, "base 2"),
        (1.51, "base 10"),
        (2 * math.log(32), "the mean of both"),
        (0.5 * math.log(32), "half of one direction"),
        (-math.log(32), "the sign"),
        (1 / 32, "the share"),
        (32, "how many sentences"),
        (math.log(31), "counts too"),
        (4.16, "batch of 64"),
        (0, "always right"),
        (17, "natural logarithm"),
        ("many", "one number"),
    ],
)
def test_blind_loss_slips(answer, diagnosis):
    verdict = check.clip.blind_loss(answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


def loop_cosines(a, b):
    rows = []
    for x in a.tolist():
        lengths = math.sqrt(sum(v * v for v in x))
        rows.append([sum(v * w for v, w in zip(x, y, strict=True)) / lengths / math.hypot(*y) for y in b.tolist()])
    return rows


def unit(x, dim=1):
    return x / x.norm(dim=dim, keepdim=True)


COSINES_RIGHT = {
    "normalize": lambda a, b: F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T,
    "cosine_similarity": lambda a, b: F.cosine_similarity(a[:, None], b[None], dim=2),
    "divide after": lambda a, b: (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None]),
    "einsum": lambda a, b: torch.einsum("nd,md->nm", unit(a), unit(b)),
    "numpy": lambda a, b: unit(a).numpy() @ unit(b).numpy().T,
    "lists": loop_cosines,
}
COSINES_SLIPS = {
    "raw vectors": lambda a, b: a @ b.T,
    "row with row": lambda a, b: F.cosine_similarity(a, b),
    "RuntimeError": lambda a, b: a @ b,
    "only one": lambda a, b: unit(a) @ b.T,
    "only one ": lambda a, b: a @ unit(b).T,
    "on its side": lambda a, b: unit(b) @ unit(a).T,
    "normalised the columns": lambda a, b: unit(a, 0) @ unit(b, 0).T,
    "as a column": lambda a, b: (a / a.norm(dim=1)) @ (b / b.norm(dim=1)).T,
    "whole set": lambda a, b: (a / a.norm()) @ (b / b.norm()).T,
    "square root": lambda a, b: (a / a.square().sum(1, keepdim=True)) @ (b / b.square().sum(1, keepdim=True)).T,
    "softmax": lambda a, b: (unit(a) @ unit(b).T).softmax(dim=1),
    "should give (5, 4)": lambda a, b: unit(a) @ unit(a).T,
    "both lengths": lambda a, b: 2 * unit(a) @ unit(b).T,
    "changes the vectors": lambda a, b: a.div_(a.norm(dim=1, keepdim=True)) @ unit(b).T,
    "does a size stand": lambda a, b: (unit(a) @ unit(b).T) * (1 if a.shape[1] == 7 else 2),
    "a function": 3,
}


@pytest.mark.parametrize("style", COSINES_RIGHT)
def test_cosine_matrix_right(style):
    assert check.clip.cosine_matrix(COSINES_RIGHT[style]).state == PASS


@pytest.mark.parametrize("diagnosis", COSINES_SLIPS)
def test_cosine_matrix_slips(diagnosis):
    verdict = check.clip.cosine_matrix(COSINES_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis.strip() in verdict.message


def rows_of(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)))


def by_hand(cosines, temperature):
    logits, total = cosines / temperature, 0.0
    for i in range(len(logits)):
        total -= logits[i].log_softmax(0)[i] + logits[:, i].log_softmax(0)[i]
    return float(total) / (2 * len(logits))


LOSS_RIGHT = {
    "package": lambda c, t: contrastive_loss(c / t),
    "by hand": by_hand,
    "log_softmax": lambda c, t: -((c / t).log_softmax(0).diag() + (c / t).log_softmax(1).diag()).mean() / 2,
    "logsumexp": lambda c, t: (
        (torch.logsumexp(c / t, 0) + torch.logsumexp(c / t, 1)).mean() / 2 - (c / t).diag().mean()
    ),
    "one element": lambda c, t: contrastive_loss(c / t).reshape(1),
}
LOSS_SLIPS = {
    "only the pictures": lambda c, t: rows_of(c / t),
    "only the sentences": lambda c, t: rows_of(c.T / t),
    "halve the sum": lambda c, t: rows_of(c / t) + rows_of(c.T / t),
    "take their mean": lambda c, t: contrastive_loss(c / t) * len(c),
    "the sign": lambda c, t: -contrastive_loss(c / t),
    "multiplies where it divides": lambda c, t: contrastive_loss(c * t),
    "does not listen": lambda c, t: contrastive_loss(c),
    "took exp": lambda c, t: contrastive_loss(c * math.exp(t)),
    "softmax twice": lambda c, t: contrastive_loss((c / t).softmax(dim=1)),
    "whole matrix": lambda c, t: -(c / t).flatten().log_softmax(0).reshape(c.shape).diag().mean(),
    "forget the rest": lambda c, t: -(c / t).diag().mean(),
    "exp overflows": lambda c, t: (
        -(((c / t).exp() / (c / t).exp().sum(0)).diag().log() + ((c / t).exp().T / (c / t).exp().sum(1)).diag().log())
        .mean() / 2
    ),
    "is one number": lambda c, t: (c / t).log_softmax(1).diag(),
    "not a number": lambda c, t: math.inf,
    "yours is": lambda c, t: torch.tensor(7.0),
    "changes the matrix": lambda c, t: contrastive_loss(c.div_(t)),
    "a function": "loss",
}  # fmt: skip


@pytest.mark.parametrize("style", LOSS_RIGHT)
def test_symmetric_loss_right(style):
    assert check.clip.symmetric_loss(LOSS_RIGHT[style]).state == PASS


@pytest.mark.parametrize("diagnosis", LOSS_SLIPS)
def test_symmetric_loss_slips(diagnosis):
    verdict = check.clip.symmetric_loss(LOSS_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


def test_the_softmax_is_found_twice_in_one_direction_and_in_both():
    shares = (lambda c, t: rows_of((c / t).softmax(1)),
              lambda c, t: (rows_of((c / t).softmax(1)) + rows_of((c.T / t).softmax(1))) / 2)  # fmt: skip
    assert all("softmax twice" in check.clip.symmetric_loss(each).message for each in shares)


MASK_RIGHT = {
    "tril": lambda n: torch.ones(n, n, dtype=torch.bool).tril(),
    "compare": lambda n: torch.arange(n)[:, None] >= torch.arange(n)[None],
    "not triu": lambda n: ~torch.triu(torch.ones(n, n), diagonal=1).bool(),
    "numpy": lambda n: np.tril(np.ones((n, n), dtype=bool)),
    "loop": lambda n: torch.tensor([[column <= row for column in range(n)] for row in range(n)]),
}
MASK_SLIPS = {
    "upside down": lambda n: torch.ones(n, n).triu().bool(),
    "itself too": lambda n: torch.ones(n, n).tril(-1).bool(),
    "other way round": lambda n: torch.ones(n, n).triu(1).bool(),
    "nothing is hidden": lambda n: torch.ones(n, n).bool(),
    "type bool": lambda n: torch.ones(n, n).tril(),
    "a row and a column": lambda n: torch.ones(n).bool(),
    "k + 1 times": lambda n: torch.eye(n).bool(),
    "a function": torch.ones(4, 4).tril().bool(),
}


@pytest.mark.parametrize("style", MASK_RIGHT)
def test_mask_fault_right(style):
    assert check.clip.mask_fault(MASK_RIGHT[style]).state == PASS


@pytest.mark.parametrize("diagnosis", MASK_SLIPS)
def test_mask_fault_slips(diagnosis):
    verdict = check.clip.mask_fault(MASK_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


@pytest.mark.parametrize("answer", [20, 20.0, "20", np.int64(20), torch.tensor(20)], ids=repr)
def test_enough_scale_right(answer):
    assert check.clip.enough_scale(answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (15, "still 0.15"),
        (1, "still 3.7"),
        (30, "a smaller one"),
        (100, "a smaller one"),
        (0.05, "choose one of"),
        ([1, 2], "one number"),
    ],
)
def test_enough_scale_slips(answer, diagnosis):
    verdict = check.clip.enough_scale(answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


def test_the_scales_are_worth_trying():
    losses = [made_up_loss(scale) for scale in SCALE_CHOICES]
    assert losses == sorted(losses, reverse=True) and losses[0] > TARGET_LOSS > losses[-1]
    assert losses[4] == pytest.approx(math.log(1 + 63 * math.exp(-20 * 0.4)), abs=1e-5)


# --- the kit of the lesson


def test_the_words_of_the_kit():
    assert (kit.a("orange cat"), kit.a("red cat")) == ("an orange cat", "a red cat")
    for choices, wordings in kit.questions().values():
        assert len(choices) == len(wordings) and all(wordings)
    near = ["a red cat on the left at night", "a red cat on the right at night", "a blue dog"]
    assert kit.need_of_place(near) == (pytest.approx(2 / 3), 2)
    assert kit.need_of_place(near, size=1)[1] == 0


def test_the_scenes_of_the_kit():
    pictures, names = kit.side_by_side(3)
    assert pictures.shape == (3, 3, 64, 64) and len(names) == 3 and all(len(set(each)) == 4 for each in names)
    pictures, own, of_twin = kit.twins(3)
    assert pictures.shape == (6, 3, 64, 64) and len(own) == len(of_twin) == 3
    assert all(one != other for one, other in zip(own, of_twin, strict=True))


def test_the_numbers_of_the_kit():
    assert kit.top1(torch.eye(6), size=3) == (1, 1)
    assert kit.top1(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), size=2) == (0.5, 0.5)
    assert kit.smooth([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]
    patches = torch.arange(12.0).reshape(2, 2, 3, 1, 1)
    assert kit.tiles(patches).shape == (3, 4, 4) and kit.tiles(patches)[0, 3, 3] == 9
