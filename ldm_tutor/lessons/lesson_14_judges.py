"""The judges of lesson 14: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.lessons.lesson_14_robots import COPIED, NUM_SUSPECTS
from ldm_tutor.metrics.nearest import nearest
from ldm_tutor.shapes import Tensor

STEPS, BATCH, NUM = 450, 32, 60  # in views: a run, and how many pictures it has


def _number(answer: Any) -> float | None:
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _called(function: Any, name: str, *given: Any) -> Any:
    """Return what a learner's function gives for copies of its inputs, or the verdict where it gives nothing."""
    if not callable(function):
        return look_again(f"the answer is a function: {name}")
    copies = tuple(each.clone() if isinstance(each, Tensor) else each for each in given)
    result = function(*copies)
    if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(given, copies, strict=True)):
        return look_again("your function changes what it was given: work on new tensors")
    if is_missing(result) and not isinstance(result, (list, tuple)):
        return not_done("your function returns nothing yet: end it with `return`")
    return result


def _numbers(result: Any) -> list[int] | None:
    """Return an answer as whole numbers: a list, tuple, array or tensor of one axis; None for anything else."""
    try:
        if isinstance(result, Tensor) and (result.dim() != 1 or result.dtype == torch.bool):
            return None
        if isinstance(result, (str, bytes, dict)):
            return None
        values = [float(each) for each in result]
    except (TypeError, ValueError, RuntimeError):
        return None
    return [int(value) for value in values] if all(value == int(value) for value in values) else None


# ---------------------------------------------------------------- views

_VIEWS = {
    STEPS * BATCH: "that is how many pictures went by in all: share them out over the pictures of the folder",
    STEPS / NUM: "each step takes a whole batch: the batch size is missing",
    STEPS: "once per step would need batches of all pictures: a step takes the batch size, of the pictures there are",
    BATCH / NUM: "that is how often a picture is taken in one step; the run has many",
    NUM * STEPS / BATCH: "upside down: more pictures mean fewer looks at each, larger batches more",
    NUM / BATCH: "that is how many steps one round through the folder takes",
    NUM * BATCH / STEPS: "upside down: more steps mean more looks at each picture",
}


def judge_views(answer: Any) -> Verdict:
    """Judge how often a run sees each picture: steps times batch over pictures."""
    got = _number(answer)
    if got is None:
        return look_again("the answer is one number")
    if abs(got - STEPS * BATCH / NUM) < 0.6:
        return passed(f"{STEPS} x {BATCH} / {NUM}: each picture 240 times. Nobody forgets a face seen so often")
    for slip, reason in _VIEWS.items():
        if abs(got - slip) < 0.02 * max(1.0, slip) + 1e-6:
            return look_again(reason)
    return look_again("pictures that went by in all, divided by the pictures that there are")


# ---------------------------------------------------------------- rows

_GOOD = ({"file_name": "a.png", "text": "a cat"}, {"file_name": "café.png", "text": "ein Bär"})
_TABLE = (
    json.dumps(_GOOD[0]).encode(),
    b'{"file_name": "b.png", "text": "caf\xe9"}',
    b'{"file_name": "c.png", "te',
    json.dumps(_GOOD[1], ensure_ascii=False).encode(),
    b"",
    b'"b.png"',
)
_BAD = [2, 3, 6]  # lines counted from 1; the empty one is none


def judge_rows(my_rows: Any) -> Verdict:
    """Judge a function bytes -> (rows, numbers of broken lines)."""
    for raw in (b"\n".join(_TABLE) + b"\n", b"\r\n".join(_TABLE)):
        try:
            result = _called(my_rows, "my_rows(raw)", raw)
        except UnicodeDecodeError:
            return look_again("a line that is not UTF-8 stops you: split into lines first, then decode each in a `try`")
        if isinstance(result, Verdict):
            return result
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            return look_again("return two things: the list of rows, and the list of the broken lines' numbers")
        rows, bad = result
        verdict = _rows_verdict(rows, bad)
        if verdict is not None:
            return verdict
    return passed("two rows are read, three lines named, and the run goes on")


def _rows_verdict(rows: Any, bad: Any) -> Verdict | None:
    found, numbers = (list(rows) if isinstance(rows, (list, tuple)) else None), _numbers(bad)
    if found is None or numbers is None:
        return look_again("rows is a list of dictionaries, and the broken lines are a list of whole numbers")
    if "b.png" in found:
        return look_again('line 6 is JSON, but a text and no row: ask for a dictionary with a "file_name"')
    if any(isinstance(row, dict) and row.get("file_name") == "b.png" for row in found):
        return look_again(
            "line 2 is not UTF-8, and you made something of it all the same: a caption with holes is a wrong caption"
        )
    if found != list(_GOOD):
        if len(found) == 1 and found[0] == _GOOD[0]:
            return look_again("the reading ends at the first broken line: put the `try` inside of the loop")
        if any(isinstance(row, dict) and str(row.get("file_name", "")).startswith("caf") for row in found):
            return look_again("read the bytes as UTF-8: names and captions have letters beyond ASCII")
        return look_again(f"expected the rows of a.png and café.png, yours are {len(found)} rows")
    if numbers == [n - 1 for n in _BAD]:
        return look_again("count lines from 1, as every editor does")
    if numbers == [2, 3, 5]:
        return look_again("line 6 has the number 5 with you: number the lines first, then skip the empty ones")
    if 5 in numbers:
        return look_again("line 5 is empty, and that is no fault: skip it without a word")
    if not numbers:
        return look_again("the rows are right; now say which lines you left out: nobody repairs what is not named")
    if sorted(numbers) != _BAD:
        return look_again(f"three lines are broken, 2, 3 and 6; yours are {numbers}")
    return None


# ---------------------------------------------------------------- scale

Slips = tuple[tuple[Callable[..., Tensor], str], ...]


def _drawn_std(mean: Tensor, logvar: Tensor) -> Tensor:
    """The standard deviation of latents drawn from the posteriors, without drawing."""
    return (mean.var(correction=0) + logvar.exp().mean()).sqrt()


_SCALE: Slips = (
    (lambda m, v: (m.var() + v.exp().square().mean()).sqrt(), "both faults are still there"),
    (lambda m, v: 1 / (m.var() + v.exp().square().mean()).sqrt(),
     "one fault is left: logvar is the logarithm of the variance, so sigma is (logvar / 2).exp()"),
    (_drawn_std, "one fault is left: that is the latents' standard deviation; the scale factor undoes it"),
    (lambda m, v: 1 / (m.var() + (v / 2).square().mean()).sqrt(),
     "logvar / 2 is the logarithm of sigma: its exp() is missing"),
    (lambda m, v: 1 / m.std(), "the latents are drawn: mean + sigma * noise; you left the noise out"),
    (lambda m, v: 1 / _drawn_std(m, v).square(), "1 over the variance: the factor multiplies numbers, so it is 1 over "
     "their standard deviation"),
    (lambda m, v: 1 / (m.square().mean() + v.exp().mean()).sqrt(),
     "you took the root mean square: the standard deviation leaves the latents' own mean out"),
    (lambda m, v: 1 / v.exp().mean().sqrt(), "that is the noise alone: the means differ from picture to picture too"),
)  # fmt: skip


def judge_scale(my_scale: Any) -> Verdict:
    """Judge a function (mean, logvar) -> 1 / standard deviation of the drawn latents."""
    for seed, spread, cloud in ((1, 0.7, 0.5), (2, 4.0, -0.5)):
        mean = spread * _random(60, 4, 16, 16, seed=seed) + 1.5
        logvar = cloud + 0.2 * _random(60, 4, 16, 16, seed=seed + 10)
        result = _called(my_scale, "my_scale(mean, logvar)", mean, logvar)
        if isinstance(result, Verdict):
            return result
        got = _number(result)
        if got is None:
            return look_again("return one number, the scale factor")
        right = float(1 / _drawn_std(mean, logvar))
        if got != got or abs(got - right) > 0.01 * right:
            return look_again(_scale_slip(got, right, mean, logvar))
    return passed("1 over the spread of what the U-Net will really see, noise of the posterior included")


def _scale_slip(got: float, right: float, mean: Tensor, logvar: Tensor) -> str:
    if got != got:
        return "not a number: logvar is a logarithm, and may be negative; sigma is (logvar / 2).exp()"
    for slip, reason in _SCALE:
        value = float(slip(mean, logvar))
        if abs(got - value) <= 0.01 * abs(value) and abs(value - right) > 0.01 * right:
            return reason
    return f"expected {right:.3f}: 1 over the standard deviation of mean + sigma * noise; yours is {got:.3f}"


# ---------------------------------------------------------------- one_each


def judge_one_each(my_batch: Any) -> Verdict:
    """Judge a function (captions, size) -> numbers of `size` pictures with different captions, by chance."""
    names = ["red", "blue", "green", "Red", "grey", "pink"]
    captions = [names[k % 6] for k in range(40)] + ["rare"]
    seen: set[int] = set()
    for _ in range(60):
        result = _called(my_batch, "my_batch(captions, size)", captions, 5)
        if isinstance(result, Verdict):
            return result
        chosen = _numbers(result)
        if chosen is None or any(not 0 <= k < len(captions) for k in chosen):
            return look_again("return the numbers of pictures, a list or a tensor of whole numbers from 0 on")
        words = [captions[k].lower() for k in chosen]
        if len(set(chosen)) < len(chosen):
            return look_again("the same picture stands in the batch twice")
        if len(set(words)) < len(words):
            plain = len({captions[k] for k in chosen}) == len(chosen)
            fix = "compare captions as the tokenizer reads them: Red and red are one" if plain else "keep one of them"
            return look_again(f"two pictures of the batch have one caption, and the loss calls one wrong; {fix}")
        if len(chosen) != 5:
            return look_again(f"the batch has {len(chosen)} pictures; 5 were asked for, and there are captions enough")
        seen |= set(chosen)
    if len(seen) == 5:
        return look_again("every call returns the same pictures: choose by chance")
    if len(seen) < 30 or 40 not in seen:
        return look_again("some pictures are never chosen: let chance choose the captions, and among their pictures")
    return passed("different captions in every batch, and every picture has its turn")


# ---------------------------------------------------------------- nearest

_NEAREST: tuple[tuple[Callable[[Tensor, Tensor], Iterable[int]], str], ...] = (
    (lambda made, train: nearest(train, made)[0].tolist(),
     "the other way round: for each drawn picture the number of a training picture"),
    (lambda made, train: torch.cdist(made.flatten(1), train.flatten(1)).argmax(dim=1).tolist(), "that is the farthest"),
    (lambda made, train: (made.flatten(1) @ train.flatten(1).T).argmax(dim=1).tolist(),
     "the largest product is not the nearest: a bright picture has a large product with everything"),
    (lambda made, train: (made.flatten(1).mean(1)[:, None] - train.flatten(1).mean(1)).abs().argmin(dim=1).tolist(),
     "you compare the pictures' means, or differences of both signs cancel: subtract pixel by pixel, then square"),
    (lambda made, train: torch.cdist(made.mean((2, 3)), train.mean((2, 3))).argmin(dim=1).tolist(),
     "you compare mean colours: subtract pixel by pixel, then square"),
    (lambda made, train: torch.cdist(made.flatten(1), train.flatten(1), p=1).argmin(dim=1).tolist(),
     "you add up the sizes of the differences: square them first, so that one large one counts more than many small"),
)  # fmt: skip


def judge_nearest(my_nearest: Any) -> Verdict:
    """Judge a function (made, train) -> for each drawn picture the number of the nearest training picture."""
    for seed, (n, m), bright in ((3, (7, 11), 0.2), (4, (5, 9), 2.0)):
        train = _random(m, 3, 8, 8, seed=seed) + bright * _random(m, 1, 1, 1, seed=seed + 1)
        order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))[:n]
        made = train[order] + 0.3 * _random(n, 3, 8, 8, seed=seed + 2)
        patched = made[:3].clone()  # beside a picture that is 0.3 off everywhere one that is far off in four pixels
        patched[:, :, :2, :2] += 2.0
        train = torch.cat([patched, train, made[:3] + 0.3])
        result = _called(my_nearest, "my_nearest(made, train)", made, train)
        if isinstance(result, Verdict):
            return result
        got, right = _numbers(result), nearest(made, train)[0].tolist()
        if got is None:
            return look_again("return a whole number for each drawn picture: the place of its nearest training picture")
        if got != right:
            for slip, reason in _NEAREST:
                if got == list(slip(made, train)):
                    return look_again(reason)
            if len(got) != n:
                return look_again(f"{n} pictures were drawn and you return {len(got)} numbers: one for each")
            return look_again("not the nearest: the smallest sum of squared differences over all pixels")
    return passed("the nearest training picture of each, and the first thing to look at in a model of your own")


# ---------------------------------------------------------------- copied


def judge_copied(answer: Any) -> Verdict:
    """Judge which of the suspects are copies."""
    got = _numbers([answer] if _number(answer) is not None else answer)
    if got is None:
        return look_again("the answer is a list of numbers from 0 to 7, such as [0, 3]")
    found = set(got)
    if found == set(COPIED):
        return passed("three memories among eight robots; their distance to the nearest training picture tells")
    if found == {k + 1 for k in COPIED}:
        return look_again("count from 0, as Python does")
    if found == set(range(NUM_SUSPECTS)) - set(COPIED):
        return look_again("the other way round: those are the new ones; copies lie near a training picture")
    if found > set(COPIED):
        return look_again("all copies are among yours, and new robots too: look for the gap between near and far")
    if found < set(COPIED):
        return look_again(
            "these are copies, but not all: a copy may be darker, moved a little, or noisy, and its distance is not 0"
        )
    return look_again("sort the eight by their distance to the nearest training picture and look at the gap")
