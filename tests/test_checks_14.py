"""The exercises of lesson 14: right answers in several styles pass, each typical slip gets its own diagnosis."""

import json
import random

import numpy as np
import pytest
import torch

from ldm_tutor.lessons import lesson_14_judges as judges
from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.lessons.lesson_14_robots import COPIED, suspects
from ldm_tutor.metrics.nearest import nearest


def give(name, answer):
    return getattr(check.your_own_pictures, name)(answer)


def slips(name, cases):
    for answer, diagnosis in cases:
        verdict = give(name, answer)
        assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, (diagnosis, verdict)


# --- views


@pytest.mark.parametrize("answer", [240, 240.0, "240", np.float32(240), torch.tensor(240), 450 * 32 / 60], ids=repr)
def test_views_right(answer):
    assert give("views", answer).state == PASS


def test_views_slips():
    cases = [(14400, "share them out"), (7.5, "batch size is missing"), (450, "would need batches of all")]
    cases += [(32 / 60, "in one step"), (60 * 450 / 32, "upside down"), (60 / 32, "one round"), (4.27, "upside down")]
    slips("views", [*cases, (100, "divided by"), ("often", "one number"), ([240, 1], "one number")])


# --- rows


def by_loop(raw):
    rows, bad = [], []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            row["file_name"]
            rows.append(row)
        except (ValueError, TypeError, KeyError):
            bad.append(number)
    return rows, bad


def by_helper(raw):
    def parse(line):
        try:
            row = json.loads(str(line, "utf-8"))
        except ValueError:
            return None
        return row if isinstance(row, dict) and "file_name" in row else None

    numbered = [(n, parse(line)) for n, line in enumerate(raw.splitlines(), 1) if line.strip()]
    return tuple(row for _, row in numbered if row), np.array([n for n, row in numbered if row is None])


def by_text(raw):
    lines = raw.decode("utf-8", errors="surrogateescape").replace("\r", "").split("\n")
    return by_loop("\n".join(lines).encode("utf-8", errors="surrogateescape"))


@pytest.mark.parametrize("answer", [by_loop, by_helper, by_text])
def test_rows_right(answer):
    assert give("rows", answer).state == PASS


def changed(**options):
    """A reader with one fault."""

    def read(raw):
        rows, bad = [], []
        for number, line in enumerate(raw.split(b"\n"), start=options.get("start", 1)):
            if not line.strip():
                bad += [number] if options.get("empty") else []
                continue
            try:
                row = json.loads(line.decode(options.get("code", "utf-8"), errors=options.get("errors", "strict")))
                if not options.get("any_row") and not isinstance(row, dict):
                    raise ValueError
                rows.append(row)
            except ValueError:
                if options.get("stop"):
                    break
                bad += [number] if options.get("names", True) else []
        return rows, bad

    return read


def test_rows_slips():
    cases = [
        (changed(errors="ignore"), "not UTF-8"),
        (changed(code="latin-1"), "not UTF-8"),
        (changed(stop=True), "inside of the loop"),
        (changed(start=0), "count lines from 1"),
        (changed(empty=True), "line 5 is empty"),
        (changed(names=False), "nobody repairs"),
        (changed(any_row=True), "a text and no row"),
        (lambda raw: by_loop(raw)[0], "a list of dictionaries"),
        (lambda raw: ([], [2, 3, 6]), "0 rows"),
        (lambda raw: (by_loop(raw)[0], [2, 3]), "three lines are broken"),
        (lambda raw: json.loads(raw.decode("latin-1")), "stops with"),
        (lambda raw: by_loop(raw.decode("utf-8").encode()), "decode each in a `try`"),
        (lambda raw: by_loop(b"\n".join(line for line in raw.splitlines() if line)), "number the lines first"),
        ("rows", "a function"),
    ]
    slips("rows", cases)


# --- scale


def drawn(mean, logvar):
    generator = torch.Generator().manual_seed(3)
    return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)


def in_numpy(mean, logvar):
    return 1 / np.std(drawn(mean, logvar).numpy())


def by_variances(mean, logvar):
    return (mean.var() + logvar.exp().mean()) ** -0.5


@pytest.mark.parametrize("answer", [lambda m, v: 1 / drawn(m, v).std(), in_numpy, by_variances])
def test_scale_right(answer):
    assert give("scale", answer).state == PASS


def test_scale_slips():
    def wrong_sigma(mean, logvar):
        return mean + logvar.exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))

    cases = [
        (lambda m, v: wrong_sigma(m, v).std(), "both faults"),
        (lambda m, v: 1 / wrong_sigma(m, v).std(), "logvar / 2"),
        (lambda m, v: drawn(m, v).std(), "undoes it"),
        (lambda m, v: 1 / m.std(), "noise out"),
        (lambda m, v: 1 / drawn(m, v).var(), "over the variance"),
        (lambda m, v: 1 / drawn(m, v).square().mean().sqrt(), "root mean square"),
        (lambda m, v: 1 / v.exp().mean().sqrt(), "noise alone"),
        (lambda m, v: 1 / (m + v / 2 * torch.randn_like(m)).std(), "its exp() is missing"),
        (lambda m, v: 1 / (m + v.sqrt() * torch.randn_like(m)).std(), "not a number"),
        (lambda m, v: 0.18215, "expected"),
        (lambda m, v: m, "one number"),
        (lambda m, v: m.zero_(), "changes what it was given"),
        (0.18215, "a function"),
    ]
    slips("scale", cases)


# --- one_each


def by_shuffled_dictionary(captions, size):
    order = random.sample(range(len(captions)), len(captions))
    one = list({captions[k].lower(): k for k in order}.values())
    return random.sample(one, size)


def by_tensor(captions, size):
    names = sorted({caption.casefold() for caption in captions})
    kinds = torch.tensor([names.index(caption.casefold()) for caption in captions])
    order = torch.randperm(len(captions))
    kinds = kinds[order]
    first = [int((kinds == kind).nonzero()[0]) for kind in torch.randperm(len(names))[:size].tolist()]
    return order[first]


@pytest.mark.parametrize("answer", [by_shuffled_dictionary, by_tensor])
def test_one_each_right(answer):
    assert give("one_each", answer).state == PASS


def test_one_each_slips():
    def case_matters(captions, size):
        order = random.sample(range(len(captions)), len(captions))
        return list({captions[k]: k for k in order}.values())[:size]

    def same_again(captions, size):
        return list({caption.lower(): k for k, caption in enumerate(captions)}.values())[:size]

    def only_common(captions, size):
        order = random.sample(range(12), 12)
        return list({captions[k].lower(): k for k in order}.values())[:size]

    cases = [
        (lambda captions, size: random.sample(range(len(captions)), size), "one caption"),
        (lambda captions, size: [3] * size, "same picture"),
        (case_matters, "Red and red"),
        (same_again, "by chance"),
        (only_common, "never chosen"),
        (lambda captions, size: by_shuffled_dictionary(captions, size)[:3], "3 pictures"),
        (lambda captions, size: ["red", "blue"], "numbers of pictures"),
        (lambda captions, size: [100, 1, 2, 3, 4], "numbers of pictures"),
        ([1, 2], "a function"),
    ]
    slips("one_each", cases)


# --- nearest


def by_two_loops(made, train):
    return [min(range(len(train)), key=lambda k: float((one - train[k]).square().sum())) for one in made]


def by_broadcast(made, train):
    return (made[:, None] - train[None]).square().flatten(2).sum(dim=2).argmin(dim=1).numpy()


@pytest.mark.parametrize("answer", [by_two_loops, by_broadcast, lambda made, train: nearest(made, train)[0]])
def test_nearest_right(answer):
    assert give("nearest", answer).state == PASS


def test_nearest_slips():
    table = lambda made, train: torch.cdist(made.flatten(1), train.flatten(1))  # noqa: E731
    cases = [
        (lambda made, train: table(made, train).argmin(dim=0), "other way round"),
        (lambda made, train: table(made, train).argmax(dim=1), "farthest"),
        (lambda made, train: (made.flatten(1) @ train.flatten(1).T).argmax(dim=1), "largest product"),
        (lambda made, train: (made.mean((1, 2, 3))[:, None] - train.mean((1, 2, 3))).abs().argmin(1), "means"),
        (lambda made, train: torch.cdist(made.mean((2, 3)), train.mean((2, 3))).argmin(1), "mean colours"),
        (lambda made, train: (made[:, None] - train).abs().sum((2, 3, 4)).argmin(1), "add up the sizes"),
        (lambda made, train: (made[:, None] - train).sum((2, 3, 4)).abs().argmin(1), "both signs cancel"),
        (lambda made, train: table(made, train).min(dim=1).values, "whole number"),
        (lambda made, train: [0], "one for each"),
        (lambda made, train: [0] * len(made), "not the nearest"),
        (lambda made, train: made, "whole number"),
        (lambda made, train: made.zero_(), "changes what it was given"),
        (3, "a function"),
    ]
    slips("nearest", cases)


# --- copied


@pytest.mark.parametrize(
    "answer", [list(COPIED), set(COPIED), (6, 4, 1), torch.tensor(COPIED), np.array(COPIED), [1.0, 4.0, 6.0]], ids=repr
)
def test_copied_right(answer):
    assert give("copied", answer).state == PASS


def test_the_copies_can_be_found_and_the_others_are_far():
    made, train = suspects()
    distance = nearest(made, train)[1]
    copies = distance[list(COPIED)]
    others = [float(far) for k, far in enumerate(distance) if k not in COPIED]
    assert made.shape == (8, 3, 64, 64) and train.shape == (60, 3, 64, 64)
    assert 0.02 < float(copies.min()) and float(copies.max()) < 0.7 * min(others)


def test_copied_slips():
    cases = [
        ([2, 5, 7], "count from 0"),
        ([0, 2, 3, 5, 7], "other way round"),
        ([1, 4, 6, 0], "new robots too"),
        ([4], "not all"),
        (1, "not all"),
        ([0, 2], "look at the gap"),
        ("one", "a list of numbers"),
        (torch.zeros(2, 2), "a list of numbers"),
    ]
    slips("copied", cases)


def test_the_judges_know_their_own_numbers():
    assert judges.STEPS * judges.BATCH / judges.NUM == 240
