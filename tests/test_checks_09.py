"""The exercises of lesson 09: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math

import numpy as np
import pytest
import torch

from ldm_tutor.lessons import lesson_09_judges as judges
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.lessons.lesson_09 import EXERCISES
from ldm_tutor.weights.shipped import shipped_folder

MINE = {each.name: each for each in EXERCISES}
REAL_RESULT = judges.gentle_result
needs_weights = pytest.mark.skipif(not shipped_folder().exists(), reason="the shipped weights are not there")


def made_up(cross, self_):
    """No drawing: all of cross loses the new thing, much of self doubles it, little of cross has fewer decibels."""
    return int(cross < 0.95) * (1 + (self_ > 0.3)), self_ < 0.9, 34 + 20 * cross


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    monkeypatch.setattr(judges, "gentle_result", made_up)


def give(name, answer):
    return MINE[name].check(answer)


# --- how_many_steps


@pytest.mark.parametrize("answer", [(40, 2), [40.0, 2], torch.tensor([40, 2]), ("40", "2")])
def test_how_many_steps_right(answer):
    assert give("how_many_steps", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((41, 2), "int cuts off"),
        ((40.8, 2), "int cuts off"),
        ((39, 2), "just before it"),
        ((10, 2), "left alone"),
        ((40, 6), "are not edited"),
        ((40, 4), "both rows of each target"),
        ((40, 3), "the source is not edited"),
        ((40, 1), "two targets"),
        ((7, 9), "int(0.8 * 51)"),
        (40, "two numbers"),
    ],
)
def test_how_many_steps_slips(answer, diagnosis):
    verdict = give("how_many_steps", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


# --- take_over


def rows_by_loop(probs, rows, mapper):
    source = target = 0
    for k, row in enumerate(rows):
        if row.conditional and row.prompt == 0:
            source = k
        if row.conditional and row.prompt == 1:
            target = k
    return torch.stack([probs[source] @ mapper if k == target else each for k, each in enumerate(probs)])


def seen(rows):
    return {row.prompt: k for k, row in enumerate(rows) if row.conditional}


def by_einsum(probs, rows, mapper):
    made = probs.clone()
    made[seen(rows)[1]] = torch.einsum("hnm,mk->hnk", probs[seen(rows)[0]], mapper)
    return made


def by_numpy(probs, rows, mapper):
    made = probs.numpy().copy()
    made[seen(rows)[1]] = made[seen(rows)[0]] @ mapper.numpy()
    return made


@pytest.mark.parametrize("way", [rows_by_loop, by_einsum, by_numpy], ids=lambda way: way.__name__)
def test_take_over_right(way):
    assert give("take_over", way).state == PASS


def replaced(row, value):
    """A function that puts value(probs, rows, mapper) into row(rows)."""

    def way(probs, rows, mapper):
        made = probs.clone()
        made[row(rows)] = value(probs, rows, mapper)
        return made

    return way


def target_of(rows):
    return seen(rows)[1]


def mapped(probs, rows, mapper):
    return probs[seen(rows)[0]] @ mapper


def both_halves(probs, rows, mapper):
    made, place = probs.clone(), {(row.prompt, row.conditional): k for k, row in enumerate(rows)}
    for each in {row.conditional for row in rows}:
        made[place[1, each]] = probs[place[0, each]] @ mapper
    return made


def every_target(probs, rows, mapper):
    made = probs.clone()
    for k, row in enumerate(rows):
        if row.prompt == 1:
            made[k] = mapped(probs, rows, mapper)
    return made


def in_place(probs, rows, mapper):
    probs[target_of(rows)] = mapped(probs, rows, mapper)
    return probs


def unseen_rows(probs, rows, mapper):
    made, place = probs.clone(), {(row.prompt, row.conditional): k for k, row in enumerate(rows)}
    made[place[1, False]] = probs[place[0, False]] @ mapper
    return made


def normed(probs, rows, mapper):
    made = mapped(probs, rows, mapper)
    return made / made.sum(-1, keepdim=True)


def spoilt(probs, rows, mapper):
    made = by_einsum(probs, rows, mapper)
    made[seen(rows)[0]] = 0
    return made


TAKE_WRONG = {
    "nothing has changed": lambda probs, rows, mapper: probs,
    "mapper is missing": replaced(target_of, lambda probs, rows, mapper: probs[seen(rows)[0]]),
    "not the source's": replaced(target_of, lambda probs, rows, mapper: probs[seen(rows)[1]] @ mapper),
    "wrong way round": replaced(target_of, lambda probs, rows, mapper: probs[seen(rows)[0]] @ mapper.T),
    "you edit the source": replaced(
        lambda rows: seen(rows)[0], lambda probs, rows, mapper: probs[seen(rows)[1]] @ mapper
    ),
    "first two rows": replaced(lambda rows: 1, lambda probs, rows, mapper: probs[0] @ mapper),
    "last two rows": lambda probs, rows, mapper: torch.cat([probs[:-1], (probs[-2] @ mapper)[None]]),
    "are edited too": both_halves,
    "row without its sentence is edited too": every_target,
    "it is the others": unseen_rows,
    "divide the rows": replaced(target_of, normed),
    "clone first": in_place,
    "another row has changed": spoilt,
    "not probs[source] @ mapper yet": replaced(target_of, lambda probs, rows, mapper: 0),
    "not numbers": replaced(target_of, lambda probs, rows, mapper: math.nan),
    "the shape": lambda probs, rows, mapper: probs[:-1],
}


@pytest.mark.parametrize("diagnosis", TAKE_WRONG)
def test_take_over_slips(diagnosis):
    verdict = give("take_over", TAKE_WRONG[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- mapper


def spans(counts):
    starts = np.cumsum([1, *counts])
    return list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))


def build(old, new, m, block=None, ends=True, start=True, new_starts=True):
    made = torch.zeros(m, m)
    if start:
        made[0, 0] = 1
    for (a, b), (c, d) in zip(spans(old), spans(new if new_starts else old), strict=True):
        width = d - c
        made[a:b, c:d] = torch.eye(b - a) if b - a == width else (block or (lambda o, n: 1 / n))(b - a, width)
    i, j = 1 + sum(old), 1 + sum(new)
    for k in range(m - i if ends else 0):
        if ends is True or j + k < m:
            made[i + k, min(j + k, m - 1)] = 1
    return made


def by_index(old, new, m):
    made = [[0.0] * m for _ in range(m)]
    made[0][0] = 1.0
    for (a, b), (c, d) in zip(spans(old), spans(new), strict=True):
        for i in range(a, b):
            for j in range(c, d):
                made[i][j] = float(i - a == j - c) if b - a == d - c else 1 / (d - c)
    for k, i in enumerate(range(1 + sum(old), m)):
        made[i][min(m - 1, 1 + sum(new) + k)] = 1.0
    return made


MAPPER_RIGHT = {"blocks": build, "lists": by_index, "numpy": lambda old, new, m: np.array(by_index(old, new, m))}
MAPPER_WRONG = {
    "turned over": lambda old, new, m: build(old, new, m).T,
    "start mark is missing": lambda old, new, m: build(old, new, m, start=False),
    "you return the identity": lambda old, new, m: torch.eye(m),
    "end marks are missing": lambda old, new, m: build(old, new, m, ends=False),
    "give what does not fit": lambda old, new, m: build(old, new, m, ends="lost"),
    "share it: 1 / 3": lambda old, new, m: build(old, new, m, block=lambda o, n: 1.0),
    "divide by the old count": lambda old, new, m: build(old, new, m, (lambda o, n: 1 / o) if 2 in old else None),
    "mapped one to one": lambda old, new, m: build(old, new, m) * (1 if 2 not in old else 0.5),
    "expected (m, m)": lambda old, new, m: build(old, new, m)[:-1],
}


@pytest.mark.parametrize("way", MAPPER_RIGHT)
def test_mapper_right(way):
    assert give("mapper", MAPPER_RIGHT[way]).state == PASS


@pytest.mark.parametrize("diagnosis", MAPPER_WRONG)
def test_mapper_slips(diagnosis):
    verdict = give("mapper", MAPPER_WRONG[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


def test_the_packages_mapper_is_the_exercises():
    from tiny import make_pipeline

    from ldm_tutor.attention_maps.align import align_swap, sentence_words

    tokenizer = make_pipeline().tokenizer
    for one, other in (("a red cat at night", "a red zebra at night"), ("a quagga", "a cat")):
        counts = [[len(places) for _, places in sentence_words(tokenizer, each)] for each in (one, other)]
        made = judges.swap_mapper(*counts, 32)
        assert torch.equal(align_swap(tokenizer, one, other).mapper, made)


# --- blend


def masks(field, threshold):
    return field > threshold * field.max()


BLEND_RIGHT = {
    "stack": lambda x, field, t: torch.stack([x[0], torch.where(masks(field, t), x[1], x[0])]),
    "arithmetic": lambda x, field, t: torch.stack([x[0], x[0] + masks(field, t).float() * (x[1] - x[0])]),
    "divided field": lambda x, field, t: torch.stack([x[0], torch.where(field / field.max() > t, x[1], x[0])]),
}
BLEND_WRONG = {
    "neither of the two": lambda x, field, t: torch.stack([x[0], torch.where(field > t, x[0], x[1])]),
    "sides are exchanged": lambda x, field, t: torch.stack([x[0], torch.where(masks(field, t), x[0], x[1])]),
    "threshold is a share": lambda x, field, t: torch.stack([x[0], torch.where(field > t, x[1], x[0])]),
    "not of the mean": lambda x, field, t: torch.stack([x[0], torch.where(field > t * field.mean(), x[1], x[0])]),
    "nothing is blended": lambda x, field, t: x,
    "the source everywhere": lambda x, field, t: x[[0, 0]],
    "source (row 0) has changed": lambda x, field, t: torch.where(masks(field, t), x[[1, 1]], x[[0, 0]]),
    "row 1 should be": lambda x, field, t: torch.stack([x[0], 2 * x[1]]),
    "the shape": lambda x, field, t: x[0],
}


def blend_in_place(x, field, t):
    x[1] = torch.where(masks(field, t), x[1], x[0])
    return x


BLEND_WRONG["clone first"] = blend_in_place


@pytest.mark.parametrize("way", BLEND_RIGHT)
def test_blend_right(way):
    assert give("blend", BLEND_RIGHT[way]).state == PASS


@pytest.mark.parametrize("diagnosis", BLEND_WRONG)
def test_blend_slips(diagnosis):
    verdict = give("blend", BLEND_WRONG[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- gentle


@pytest.mark.parametrize("answer", [(0.8, 0.0), [0.6, 0.1], torch.tensor([0.9, 0.0]), ("0.8", "0.2")])
def test_gentle_right(answer):
    assert give("gentle", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((1.0, 0.5), "does not see the new thing"),
        ((0.8, 0.95), "the old thing beside"),
        ((0.8, 0.4), "there twice"),
        ((0.1, 0.1), "36.00 of 44 dB only"),
        ((1.5, 0.1), "shares of the steps"),
        ((0.5,), "two shares"),
        (0.5, "two shares"),
    ],
)
def test_gentle_slips(answer, diagnosis):
    verdict = give("gentle", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


@needs_weights
@pytest.mark.slow
def test_the_shipped_model_agrees_with_the_solution():
    count, old_gone, level = REAL_RESULT(*judges.GENTLE_ANSWER)
    assert count == 1 and old_gone and level >= judges.GENTLE_DB
    assert REAL_RESULT(0.0, 0.0)[2] < judges.GENTLE_DB and REAL_RESULT(0.0, 0.4)[0] == 2
