"""The exercises of lesson 13: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math
import os
import shutil
import tempfile

import numpy as np
import pytest
import torch

from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.lessons.lesson_13 import EXERCISES

MINE = {each.name: each for each in EXERCISES}
FUNCTIONS = ("average", "rows", "save")


def give(name, answer):
    return MINE[name].check(answer)


def assert_diagnosis(name, answer, diagnosis):
    verdict = give(name, answer)
    assert verdict.state == LOOK_AGAIN
    assert diagnosis in verdict.message, verdict.message


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "result",
    [
        "text", object(), math.nan, torch.full((3, 4), math.nan), torch.zeros(3, 4, dtype=torch.long), torch.zeros(1),
        -1, {}, [1.5], np.zeros((3, 4)), 10**400, [True, False], range(2, 2), slice(0, None),
    ],
    ids=lambda result: type(result).__name__,
)  # fmt: skip
def test_no_result_raises(name, result):
    assert give(name, lambda *given: result).state == LOOK_AGAIN


# --- average


def by_stack(gradients, counts):
    weights = torch.tensor(counts, dtype=torch.float32) / sum(counts)
    return torch.einsum("r,rab->ab", weights, torch.stack(gradients))


def by_loop(gradients, counts):
    total = torch.zeros_like(gradients[0])
    rows = 0
    for k in range(len(gradients)):
        total += counts[k] * gradients[k]
        rows += counts[k]
    return total / rows


def by_numpy(gradients, counts):
    return np.average([each.numpy() for each in gradients], axis=0, weights=counts)


@pytest.mark.parametrize("answer", [by_stack, by_loop, by_numpy])
def test_average_right(answer):
    assert give("average", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (lambda g, n: sum(g) / len(g), "plain mean of the means"),
        (lambda g, n: sum(g), "nobody has divided"),
        (lambda g, n: sum(k * x for k, x in zip(n, g, strict=True)), "sum over all rows; divide"),
        (lambda g, n: sum(k * x for k, x in zip(n, g, strict=True)) / len(n), "number of processes"),
        (lambda g, n: sum(k * x for k, x in zip(n, g, strict=True)) / max(n), "largest count"),
        (lambda g, n: sum(x / k for k, x in zip(n, g, strict=True)), "counts more, not less"),
        (lambda g, n: sum(g) / sum(n), "multiply each by its count first"),
        (lambda g, n: g[0], "first process's gradient alone"),
        (lambda g, n: torch.cat(g), "the shape is (6, 4)"),
        (lambda g, n: by_loop(g, n) * math.nan, "not numbers"),
        (lambda g, n: 2.2 * by_loop(g, n), "not the mean over all rows"),
    ],
)
def test_average_slips(answer, diagnosis):
    assert_diagnosis("average", answer, diagnosis)


# --- rows


def rest_to_the_first(batch, rank, size):
    share, rest = divmod(batch, size)
    start = rank * share + min(rank, rest)
    return list(range(start, start + share + (rank < rest)))


RIGHT_ROWS = [
    rest_to_the_first,
    lambda batch, rank, size: range(rank, batch, size),
    lambda batch, rank, size: slice(batch * rank // size, batch * (rank + 1) // size),
    lambda batch, rank, size: torch.arange(batch).tensor_split(size)[rank],
    lambda batch, rank, size: np.array_split(np.arange(batch), size)[rank],
]


@pytest.mark.parametrize("answer", RIGHT_ROWS)
def test_rows_right(answer):
    assert give("rows", answer).state == PASS


def all_to_the_last(batch, rank, size):
    share = batch // size
    return range(rank * share, batch if rank == size - 1 else (rank + 1) * share)


def without_the_rest(batch, rank, size):
    return range(rank * (batch // size), (rank + 1) * (batch // size))


def overlapping(batch, rank, size):
    return range(max(0, batch * rank // size - 1), batch * (rank + 1) // size)


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (without_the_rest, "nobody computes row 6"),
        (lambda batch, rank, size: range(batch), "all processes have the same rows"),
        (lambda batch, rank, size: range(rank * -(-batch // size), (rank + 1) * -(-batch // size)), "not in the batch"),
        (lambda batch, rank, size: range(batch * rank // size, batch * (rank + 1) // size + 1), "not in the batch"),
        (all_to_the_last, "one process has all that is left over"),
        (lambda batch, rank, size: torch.arange(batch).chunk(size)[rank], "3, 1] rows: one process is left with"),
        (overlapping, "more than once"),
        (lambda batch, rank, size: range(1 + batch * rank // size, 1 + batch * (rank + 1) // size), "not in the batch"),
        (lambda batch, rank, size: torch.tensor([0.5]), "return a range or a list"),
    ],
)  # fmt: skip
def test_rows_slips(answer, diagnosis):
    assert_diagnosis("rows", answer, diagnosis)


# --- the numbers


@pytest.mark.parametrize("answer", [0.5, 1 / 2, torch.tensor(0.5).bfloat16(), np.float64(0.5), "0.5"])
def test_bfloat16_right(answer):
    assert give("bfloat16", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (0.6, "exact arithmetic"),
        (0.6015625, "rounded once at the end"),
        (0.501, "single update"),
        (0.50390625, "less than half way"),
        (0.890625, "one spacing per update"),
        (0.0, "does not lose"),
        (0.7, "which numbers does bfloat16 have"),
        (math.nan, "one number"),
    ],
)
def test_bfloat16_slips(answer, diagnosis):
    assert_diagnosis("bfloat16", answer, diagnosis)


@pytest.mark.parametrize("answer", [6931, 6932, math.log(2) / 1e-4, "6931", torch.tensor(6931)])
def test_half_life_right(answer):
    assert give("half_life", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (10_000, "1/e"),
        (5_000, "straight line"),
        (693, "four nines"),
        (math.log(0.5) / -math.log(0.9999), "the sign"),
        (math.log10(0.5) / math.log(0.9999), "to the base 10"),
        (13_863, "a quarter"),
        (42, "solve 0.9999"),
    ],
)
def test_half_life_slips(answer, diagnosis):
    assert_diagnosis("half_life", answer, diagnosis)


@pytest.mark.parametrize("answer", [33, 33.0, np.int64(33), "33"])
def test_gpus_right(answer):
    assert give("gpus", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (32, "round up"),
        (32.52, "GPUs come whole"),
        (48, "cached=True"),
        (13, "full peak"),
        (44, "at 30%"),
        (455, "number of GPU-days"),
        (454.78, "number of GPU-days"),
        (65, "one week"),
        (100, "with 100 GPUs it takes 4.5 days"),
        (-5, "above 0"),
    ],
)
def test_gpus_slips(answer, diagnosis):
    assert_diagnosis("gpus", answer, diagnosis)


# --- save


def by_rename(path, pieces):
    beside = path.parent / f".{path.name}.part"
    try:
        beside.write_bytes(b"".join(pieces))
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def in_memory_first(path, pieces):
    content = b"".join(pieces)  # nothing is touched until all is there
    other = path.with_suffix(".new")
    try:
        other.write_bytes(content)
        os.replace(other, path)
    finally:
        other.unlink(missing_ok=True)


def by_hand(path, pieces):
    beside = f"{path}.{os.getpid()}"
    try:
        number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(number, "wb") as file:
            file.writelines(pieces)
        os.rename(beside, path)
    except BaseException:
        os.remove(beside)
        raise


@pytest.mark.parametrize("answer", [by_rename, in_memory_first, by_hand])
def test_save_right(answer):
    assert give("save", answer).state == PASS


def plain(path, pieces):
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)


def delete_first(path, pieces):
    path.unlink(missing_ok=True)
    by_rename(path, pieces)


def leftover(path, pieces):
    beside = path.with_name("weights.tmp")
    with open(beside, "wb") as file:
        for piece in pieces:
            file.write(piece)
    os.replace(beside, path)


def only_errors(path, pieces):
    beside = path.with_name("weights.tmp")
    try:
        with open(beside, "wb") as file:
            for piece in pieces:
                file.write(piece)
        os.replace(beside, path)
    except Exception:
        beside.unlink()
        raise


def swallowing(path, pieces):
    try:
        by_rename(path, pieces)
    except BaseException:
        return None


def backup_left(path, pieces):
    if path.exists():
        os.replace(path, path.with_name("weights.bak"))
    by_rename(path, pieces)


def appending(path, pieces):
    with open(path, "ab") as file:
        for piece in pieces:
            file.write(piece)


def last_piece_only(path, pieces):
    for piece in pieces:
        path.write_bytes(piece)


def all_in_one_write(path, pieces):
    path.write_bytes(b"".join(pieces))


def copied_over(path, pieces):
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(pieces)
        file.flush()
        shutil.copyfile(file.name, path)


def removed_before(path, pieces):
    beside = path.with_name("weights.tmp")
    try:
        beside.write_bytes(b"".join(pieces))
        path.unlink(missing_ok=True)
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (plain, "has emptied it at once"),
        (all_in_one_write, "the old file itself is written over"),
        (copied_over, "the old file itself is written over"),
        (removed_before, "taken away before the new one"),
        (delete_first, "the old file is gone"),
        (leftover, "weights.tmp is left"),
        (only_errors, "Ctrl-C after 2 pieces: the old file is whole, but weights.tmp is left"),
        (swallowing, "as if all were well"),
        (backup_left, "weights.bak is left"),
        (appending, "not the pieces"),
        (last_piece_only, "not the pieces"),
        (lambda path, pieces: True, "there is no file"),
        (lambda path, pieces: path.with_name("other").write_bytes(b"".join(pieces)), "there is no file"),
    ],
)
def test_save_slips(answer, diagnosis):
    assert_diagnosis("save", answer, diagnosis)
