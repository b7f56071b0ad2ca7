"""The judges of lesson 13: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.shapes import Tensor
from ldm_tutor.training.bill import bill

# ---------------------------------------------------------------- average

COUNTS = ((4, 4), (6, 2), (5, 1, 2))


def _gradients(counts: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(counts) + len(counts))
    return [torch.randn(3, 4, generator=generator) for _ in counts]


def _weighted(gradients: list[Tensor], weights: list[float]) -> Tensor:
    return torch.stack([weight * gradient for gradient, weight in zip(gradients, weights, strict=True)]).sum(dim=0)


_AVERAGE_SLIPS: tuple[tuple[Callable[[list[Tensor], list[int]], Tensor], str], ...] = (
    (
        lambda g, n: _weighted(g, [1 / len(n)] * len(n)),
        "that is the plain mean of the means: it is right for equal shares only, and gives a row in a small share too "
        "much weight",
    ),
    (lambda g, n: _weighted(g, [1.0] * len(n)), "those means added up; nobody has divided, so the step is too long"),
    (lambda g, n: _weighted(g, [float(k) for k in n]), "that is the sum over all rows; divide it by their number"),
    (
        lambda g, n: _weighted(g, [k / len(n) for k in n]),
        "the sum over all rows divided by the number of processes; divide by the number of rows",
    ),
    (
        lambda g, n: _weighted(g, [k / max(n) for k in n]),
        "you divide by the largest count; divide by the sum of the counts",
    ),
    (
        lambda g, n: _weighted(g, [1 / k for k in n]),
        "you divided by the counts; a mean of many rows counts more, not less",
    ),
    (
        lambda g, n: _weighted(g, [1 / sum(n)] * len(n)),
        "you divided the means by the number of all rows; multiply each by its count first",
    ),
    (lambda g, n: g[0], "that is the first process's gradient alone: the others' rows are missing"),
)


def judge_average(my_average: Any) -> Verdict:
    """Judge a function (gradients, counts) -> the mean gradient of all rows."""
    if not callable(my_average):
        return look_again("the answer is a function: my_average(gradients, counts)")
    results = []
    for counts in COUNTS:
        result = my_average([gradient.clone() for gradient in _gradients(counts)], list(counts))
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the average")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        if got.shape != (3, 4):
            return look_again(f"the shape is {tuple(got.shape)}, expected that of each gradient, (3, 4)")
        results.append(got)
    given = [(_gradients(counts), list(counts)) for counts in COUNTS]
    right = [_weighted(g, [k / sum(n) for k in n]) for g, n in given]
    if _all_close(results, right):
        return passed("right for equal and for unequal shares: sums add up, means do not")
    for slip, reason in _AVERAGE_SLIPS:
        if _all_close(results, [slip(g, n) for g, n in given]):
            return look_again(reason)
    if not all(bool(each.isfinite().all()) for each in results):
        return look_again("your average has values that are not numbers (NaN or infinite)")
    return look_again("not the mean over all rows yet: try two processes with one row each, then with 3 and 1")


# ---------------------------------------------------------------- rows

SHARES = ((8, 2), (7, 2), (10, 4), (3, 3), (32, 5))


def judge_rows(my_rows: Any) -> Verdict:
    """Judge a function (batch, rank, size) -> the rows of a process."""
    if not callable(my_rows):
        return look_again("the answer is a function: my_rows(batch, rank, size)")
    for batch, size in SHARES:
        shares = []
        for rank in range(size):
            result = my_rows(batch, rank, size)
            if is_missing(result):
                return not_done("your function returns nothing yet: end it with `return` and a range")
            rows = _whole_numbers(range(batch)[result] if isinstance(result, slice) else result)
            if rows is None:
                return look_again(f"your function returns a {type(result).__name__}: return a range or a list of rows")
            shares.append(rows)
        if reason := _why_not_shares(shares, batch, size):
            return look_again(f"batch {batch}, {size} processes: {reason}")
    return passed(f"every row once, and even shares, for {len(SHARES)} batches")


def _why_not_shares(shares: list[list[int]], batch: int, size: int) -> str:
    flat = [row for share in shares for row in share]
    sizes = [len(share) for share in shares]
    if outside := [row for row in flat if not 0 <= row < batch]:
        return f"row {outside[0]} is not in the batch; rows are numbered from 0 to {batch - 1}"
    if len(set(map(tuple, shares))) == 1 and size > 1:
        return "all processes have the same rows: nothing is shared, and the batch is smaller than you think"
    if missing := sorted(set(range(batch)) - set(flat)):
        return f"nobody computes row {missing[0]}, the {len(missing)} left over by the division"
    if twice := [row for row in flat if flat.count(row) > 1]:
        return f"row {twice[0]} is computed more than once"
    if max(sizes) - min(sizes) > 1:
        if sizes.count(max(sizes)) == 1:
            return f"the shares have {sizes} rows: one process has all that is left over, and the others wait for it"
        return f"the shares have {sizes} rows: one process is left with too few, and waits for the others"
    return ""


# ---------------------------------------------------------------- bfloat16


def judge_bfloat16(answer: Any) -> Verdict:
    """Judge where 0.5 ends after a hundred rounded updates of +0.001: at 0.5."""
    value = _number(answer)
    if value is None:
        return look_again("the answer is one number, the value of the weight")
    if abs(value - 0.5) < 1e-9:
        return passed("it has not moved: the next number is 0.50390625, and each update rounds back")
    slips = (
        (0.6, "that is exact arithmetic; in bfloat16 the sum is rounded after each update"),
        (float(torch.tensor(0.6).bfloat16()), "that is the exact sum, rounded once at the end; each is rounded"),
        (0.501, "that is a single update, and not yet rounded"),
        (0.50390625, "that is the next number after 0.5; an update of 0.001 is less than half way to it"),
        (0.5 + 100 * 2**-8, "that would be one spacing per update; 0.001 is about a quarter of one, and rounds to 0"),
        (0.5 + 100 * 2**-9, "the spacing above 0.5 is 2**-8, and an update of less than half of it rounds to 0"),
        (0.0, "the weight does not lose what it has: 0.5 is a number of bfloat16"),
    )
    for slip, reason in slips:
        if abs(value - slip) < 1e-4:
            return look_again(reason)
    return look_again("which numbers does bfloat16 have between 0.5 and 0.51, and to which does 0.501 round?")


# ---------------------------------------------------------------- half_life


def judge_half_life(answer: Any) -> Verdict:
    """Judge log(0.5) / log(0.9999) = 6931 steps."""
    value = _number(answer)
    if value is None:
        return look_again("the answer is one whole number of steps")
    if abs(value - 6931.1) <= 1.2:
        return passed("6,931 steps: about ln 2 / (1 - decay)")
    slips = (
        (10_000, "that is 1 / (1 - decay): then the share has fallen to 1/e = 0.37, not to one half"),
        (5_000, "half of 1 / (1 - decay) would hold if the share fell in a straight line; it shrinks by a factor"),
        (693, "that is the half-life of 0.999; the decay here has four nines"),
        (-6931, "the sign: both logarithms are negative, and their quotient is positive"),
        (3010, "one of your logarithms is natural, the other to the base 10"),
        (15_959, "one of your logarithms is natural, the other to the base 10"),
        (13_863, "that is a quarter: two half-lives"),
    )
    for slip, reason in slips:
        if abs(value - slip) <= max(2.0, abs(slip) * 0.002):
            return look_again(reason)
    return look_again("solve 0.9999 ** n = 0.5 for n")


# ---------------------------------------------------------------- save

OLD, NEW = b"the old checkpoint", [b"the new ", b"checkpoint", b" is longer"]


class _PowerCut(Exception):
    pass


def _pieces(stop_after: int | None, error: type[BaseException] = _PowerCut) -> Iterator[bytes]:
    for number, piece in enumerate(NEW):
        if number == stop_after:
            raise error
        yield piece


def judge_save(my_save: Any) -> Verdict:
    """Judge a function (path, pieces) that leaves the old file or the new one, whatever happens."""
    if not callable(my_save):
        return look_again("the answer is a function: my_save(path, pieces)")
    with tempfile.TemporaryDirectory(prefix="ldm_tutor_save_") as folder:
        path = Path(folder).resolve() / "weights"
        for before in (None, OLD):  # the folder is empty, or holds an old file
            if before is not None:
                path.write_bytes(before)
            result = my_save(path, _pieces(None))
            now = path.read_bytes() if path.is_file() else None
            if now in (before, None):
                written = "the file is as it was" if before else "there is no file"
                if is_missing(result):
                    return not_done(f"your function returns and {written}: write the pieces and put them in place")
                return look_again(f"{written} after my_save; what it returns does not matter")
            if now != b"".join(NEW):
                return look_again(f"the file is not the pieces, one after the other: it begins with {now[:24]!r}")
            if left := _others(path):
                return look_again(f"after a good save, {left} is left in the folder")
            path.unlink()
        for stop_after, error in ((0, _PowerCut), (1, _PowerCut), (2, KeyboardInterrupt)):
            path.write_bytes(OLD)
            swallowed = True
            try:
                my_save(path, _pieces(stop_after, error))
            except (_PowerCut, KeyboardInterrupt):
                swallowed = False
            if reason := _why_not_saved(path, swallowed, stop_after, error):
                return look_again(reason)
        with _watch(path) as done:
            my_save(path, _pieces(None))
        for what, reason in _DONE_TO_THE_OLD.items():
            if what in done:
                return look_again(reason)
    return passed("old or new, never a part, and nothing left behind: after three breaks and three good saves")


def _why_not_saved(path: Path, swallowed: bool, stop_after: int, error: type[BaseException]) -> str:
    now = path.read_bytes() if path.is_file() else None
    what = "Ctrl-C" if error is KeyboardInterrupt else "an error"
    if now is None:
        return f"{what} after {stop_after} pieces: the old file is gone, and there is no new one"
    if now == b"" and stop_after == 0:
        return 'an error before the first piece: the old file is empty; open(path, "wb") has emptied it at once'
    if now != OLD:
        return f"{what} after {stop_after} pieces: the file holds a part, {now[:24]!r}, and the old one is lost"
    if left := _others(path):
        return f"{what} after {stop_after} pieces: the old file is whole, but {left} is left in the folder"
    if swallowed:
        return f"{what} came, and my_save returned as if all were well: clean up in `finally`, and let it pass"
    return ""


# No error comes between two pieces here, so only what was done to the old file itself tells.
_DONE_TO_THE_OLD = {
    "written": "the old file itself is written over: if the power goes in that moment, both are lost. Write beside it, "
    "then os.replace",
    "gone": "the old file is taken away before the new one is in its place: if the power goes between the two, there "
    "is none. os.replace does both in one",
}
_watched: list[tuple[Path, list[str]]] = []  # the file that `_watch` watches, and what has been done to it


@cache
def _listen() -> None:
    sys.addaudithook(_note)  # it stays for good, so there is one


@contextmanager
def _watch(path: Path) -> Iterator[list[str]]:
    """Note in the list whether `path` is opened for writing, or removed or renamed."""
    _listen()
    _watched.append((path, []))
    try:
        yield _watched[-1][1]
    finally:
        _watched.pop()


def _note(event: str, given: tuple[Any, ...]) -> None:
    if not _watched or event not in ("open", "os.remove", "os.rename") or not isinstance(given[0], (str, os.PathLike)):
        return
    path, done = _watched[-1]
    if os.path.abspath(os.fspath(given[0])) != str(path):
        return
    if event != "open":
        done.append("gone")
    elif set(given[1] or "") & set("wax+") or (given[1] is None and given[2] & (os.O_WRONLY | os.O_RDWR)):
        done.append("written")


def _others(path: Path) -> str:
    return ", ".join(sorted(each.name for each in path.parent.iterdir() if each != path))


# ---------------------------------------------------------------- gpus


def judge_gpus(answer: Any) -> Verdict:
    """Judge the least number of A100s for SD v1-4 in 14 days, at 40% of the peak, with cached latents."""
    value = _number(answer)
    if value is None:
        return look_again("the answer is one whole number of GPUs")
    run, gpu = "Stable Diffusion v1-4", "A100"
    days = bill(run, gpu, 0.4, cached=True).gpu_days
    right = math.ceil(days / 14)
    if value == right:
        return passed(f"{right} GPUs: {days:,.0f} GPU-days in {days / right:.1f} days, if they share without loss")
    slips = (
        (days / 14, "that is GPU-days over days, and GPUs come whole: round up"),
        (right - 1, "with one GPU fewer than the answer it takes longer than 14 days: round up"),
        (math.ceil(bill(run, gpu, 0.4).gpu_days / 14), "that is with the latents encoded at every step: cached=True"),
        (math.ceil(bill(run, gpu, 1.0, cached=True).gpu_days / 14), "that is at the full peak; you reach 40% of it"),
        (math.ceil(bill(run, gpu, 0.3, cached=True).gpu_days / 14), "that is at 30% of the peak; you reach 40%"),
        (days, "that is the number of GPU-days: so many GPUs need one day. You have 14"),
        (math.ceil(days / 7), "that is for one week; you have two"),
        (math.ceil(bill(run, "H100", 0.4, cached=True).gpu_days / 14), "those are H100s"),
        (math.ceil(bill(run, "V100", 0.4, cached=True).gpu_days / 14), "those are V100s"),
    )
    for slip, reason in slips:
        if abs(value - slip) < 0.6 if slip != int(slip) else value == slip:
            return look_again(reason)
    return look_again(f"with {value:g} GPUs it takes {days / value:.1f} days" if value > 0 else "a number above 0")


# ---------------------------------------------------------------- reading answers


def _number(answer: Any) -> float | None:
    try:
        value = float(answer)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _as_tensor(result: Any) -> Tensor | None:
    try:
        tensor = torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return tensor.double() if tensor.is_floating_point() else None


def _whole_numbers(result: Any) -> list[int] | None:
    """Return a range, list, array or tensor of whole numbers as a list, None where it is none."""
    if isinstance(result, (str, bytes, dict)):
        return None
    try:
        rows = [row.item() if hasattr(row, "item") else row for row in result]
    except (TypeError, ValueError, RuntimeError):
        return None
    return rows if all(isinstance(row, int) and not isinstance(row, bool) for row in rows) else None


def _all_close(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(bool(torch.allclose(a, b.double(), atol=1e-5)) for a, b in zip(found, wanted, strict=True))
