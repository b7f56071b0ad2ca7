"""The judges of lesson 09: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from ldm_tutor.attention_maps.plan import Change, Injection
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.metrics.editing import background_psnr, outside, seen_thing
from ldm_tutor.metrics.reading import read_pictures
from ldm_tutor.nn.attention import Row
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.shapes import Tensor

GENTLE_SOURCE, GENTLE_TARGET, GENTLE_SEED = "a large yellow house in the snow", "a large yellow rocket in the snow", 22
GENTLE_DB = 44.0  # what the background has to keep
GENTLE_ANSWER = (0.8, 0.0)

# ---------------------------------------------------------------- how_many_steps


def judge_how_many_steps(answer: Any) -> Verdict:
    """Judge (steps, rows): 40 steps (int(0.8 * 51)), 2 rows of 6."""
    try:
        steps, rows = (float(each) for each in answer)
    except (TypeError, ValueError, RuntimeError):
        return look_again("the answer is two numbers: (steps, rows)")
    if (steps, rows) == (40, 2):
        return passed("int(40.8) is 40, so steps 0 to 39; of six rows only the targets' two that see their sentence")
    if steps in (40.8, 41):
        return look_again("0.8 * 51 is 40.8, and int cuts off what stands behind the point")
    if steps in (39, 50, 51):
        return look_again("the bound of 0.8 falls on step int(0.8 * 51); count the steps from 0 to just before it")
    if steps == 10:
        return look_again("those are the steps that are left alone; asked is how many take over")
    if rows == 6:
        return look_again("the batch has six rows; the source's and those without the sentence are not edited")
    if rows == 4:
        return look_again("that counts both rows of each target; the one without the sentence is never edited")
    if rows in (1, 3):
        return look_again("there are two targets, each with one row that sees its sentence; the source is not edited")
    return look_again("the steps are int(0.8 * 51); the rows are those of the targets that see their sentence")


# ---------------------------------------------------------------- take_over


def judge_take_over(my_take_over: Any) -> Verdict:
    """Judge a function (probs, rows, mapper) -> maps with the target's conditional row replaced."""
    if not callable(my_take_over):
        return look_again("the answer is a function: my_take_over(probs, rows, mapper)")
    generator = torch.Generator().manual_seed(3)
    orders = (((1, 0), (0, 1), (1, 1), (0, 0)), ((0, 0), (1, 0), (0, 1), (1, 1)), ((0, 1), (1, 1)))
    for order in orders:
        rows = tuple(Row(prompt, bool(seen)) for prompt, seen in order)
        probs = torch.randn(len(rows), 2, 5, 6, generator=generator).softmax(-1)
        mapper = torch.rand(6, 6, generator=generator)
        given = probs.clone()
        result = my_take_over(given, rows, mapper.clone())
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the maps")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        if got.shape != probs.shape:
            return look_again(f"the maps have the shape {tuple(got.shape)}, expected {tuple(probs.shape)}")
        source, target = (rows.index(Row(prompt, True)) for prompt in (0, 1))
        right = probs.clone()
        right[target] = probs[source] @ mapper
        if not _close(got, right):
            return look_again(_why_not_taken(got, probs, rows, mapper, right))
        if not torch.equal(given, probs):
            return look_again("the result is right, but the maps that came in have changed: clone first")
    return passed("one row is replaced, wherever it stands in the batch, and the others are as they were")


def _why_not_taken(got: Tensor, probs: Tensor, rows: Sequence[Row], mapper: Tensor, right: Tensor) -> str:
    source, target = (rows.index(Row(prompt, True)) for prompt in (0, 1))
    slips: list[tuple[Callable[[Tensor], Any], str]] = [
        (lambda x: None, "nothing has changed: the target's row takes the source's map"),
        (lambda x: x.__setitem__(target, probs[source]), "the mapper is missing: the source's map times it"),
        (
            lambda x: x.__setitem__(target, probs[target] @ mapper),
            "that is the target's own map, not the source's",
        ),
        (lambda x: x.__setitem__(target, probs[source] @ mapper.T), "the mapper is the wrong way round: maps @ mapper"),
        (
            lambda x: x.__setitem__(source, probs[target] @ mapper),
            "you edit the source; the target is to change",
        ),
        (
            lambda x: x.__setitem__(1, probs[0] @ mapper),
            "you take the first two rows; look at what rows says",
        ),
        (
            lambda x: x.__setitem__(-1, probs[-2] @ mapper),
            "you take the last two rows; look at what rows says",
        ),
    ]
    hidden = [k for k, row in enumerate(rows) if row == Row(1, False)]
    if hidden:
        free = rows.index(Row(0, False))

        def both(x: Tensor) -> None:
            x[target], x[hidden[0]] = probs[source] @ mapper, probs[free] @ mapper

        def unseen(x: Tensor) -> None:
            x[hidden[0]] = probs[free] @ mapper

        def all_rows(x: Tensor) -> None:
            x[target] = x[hidden[0]] = probs[source] @ mapper

        slips += [
            (both, "the rows without the sentence are edited too; only those with conditional=True are"),
            (all_rows, "the target's row without its sentence is edited too; only the one with conditional=True is"),
            (unseen, "you have edited the rows that do not see their sentence; it is the others"),
        ]
    for change, reason in slips:
        wrong = probs.clone()
        change(wrong)
        if _close(got, wrong):
            return reason
    renormed = right / right.sum(-1, keepdim=True)
    if _close(got[target], renormed[target]):
        return "you divide the rows afterwards; the map is taken over as it is"
    if not bool(torch.isfinite(got).all()):
        return "your maps have values that are not numbers (NaN)"
    others = [k for k in range(len(rows)) if k != target]
    if _close(got[target], right[target]):
        return "the target's row is right; another row has changed, and none should"
    if _close(got[others], probs[others]):
        return "the other rows are as they were; the target's is not probs[source] @ mapper yet"
    return "find the two rows with conditional=True; the target's becomes probs[source] @ mapper, the others stay"


# ---------------------------------------------------------------- mapper


def swap_mapper(old_counts: Sequence[int], new_counts: Sequence[int], m: int) -> Tensor:
    """Return P as the exercise asks for it."""
    mapper, i, j = torch.zeros(m, m), 1, 1
    mapper[0, 0] = 1
    for old, new in zip(old_counts, new_counts, strict=True):
        mapper[i : i + old, j : j + new] = torch.eye(old) if old == new else 1 / new
        i, j = i + old, j + new
    for k in range(m - i):
        mapper[i + k, min(j + k, m - 1)] = 1
    return mapper


_SWAPS: tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...] = (
    ((1, 1, 1), (1, 1, 1), 8),
    ((1, 1, 1), (1, 3, 1), 9),
    ((1, 3, 1), (1, 1, 1), 9),
    ((2, 2), (2, 2), 7),
    ((1, 2, 1, 1), (1, 3, 1, 1), 12),
)


def judge_mapper(my_mapper: Any) -> Verdict:
    """Judge a function (old_counts, new_counts, m) -> (m, m)."""
    if not callable(my_mapper):
        return look_again("the answer is a function: my_swap_mapper(old_counts, new_counts, m)")
    for old, new, m in _SWAPS:
        result = my_mapper(list(old), list(new), m)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the matrix")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        if got.shape != (m, m):
            return look_again(f"the shape is {tuple(got.shape)}, expected (m, m) = {(m, m)}")
        right = swap_mapper(old, new, m)
        if not _close(got, right):
            return look_again(_why_not_mapped(got, right, old, new, m))
    return passed("P is right for swaps of equal counts, to more tokens and to fewer")


def _why_not_mapped(got: Tensor, right: Tensor, old: Sequence[int], new: Sequence[int], m: int) -> str:
    case = f"for words of {list(old)} tokens that become {list(new)}"
    if _close(got, right.T):
        return f"your matrix is turned over {case}: rows are the source's tokens, columns the target's"
    if _close(got[1:, 1:], right[1:, 1:]) and float(got[0, 0]) != 1:
        return "the start mark is missing: P[0, 0] = 1"
    if _close(got, torch.eye(m)):
        return f"you return the identity {case}; the words behind the swapped one have moved"
    first_old, first_new = 1 + sum(old), 1 + sum(new)
    if _close(got[:first_old, :first_new], right[:first_old, :first_new]):
        if not bool(got[first_old:].any()):
            return "the words are right; the end marks are missing"
        if float(got.sum()) < float(right.sum()) - 0.5:
            return f"{case} some end marks have no column and are lost: give what does not fit to the last one"
        return f"the words are right {case}; the end marks begin at {first_old} before and at {first_new} after"
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        i, j = 1 + sum(old[:index]), 1 + sum(new[:index])
        block, wanted = got[i : i + before, j : j + after], right[i : i + before, j : j + after]
        if before == after and not _close(block, wanted):
            if _close(got[i : i + before, i : i + before], wanted):
                return f"{case}, word {index} stands in its old columns; count j on by the new counts"
            return f"{case}, word {index} has equal counts and is mapped one to one"
        if before != after and not _close(block, wanted):
            if _close(block, torch.ones_like(block)):
                return f"{case}, each new token gets the whole look; share it: 1 / {after}"
            if _close(block, torch.full_like(block, 1 / before)):
                return f"{case} you divide by the old count {before}; each of the {after} new tokens gets 1 / {after}"
            return f"{case}, the block of word {index} should be {before} x {after} with 1 / {after} everywhere"
    return f"{case}, something outside of the words' blocks is not zero"


# ---------------------------------------------------------------- blend


def judge_blend(my_blend: Any) -> Verdict:
    """Judge a function (latents, field, threshold) -> latents with the source outside the field."""
    if not callable(my_blend):
        return look_again("the answer is a function: my_blend(latents, field, threshold)")
    generator = torch.Generator().manual_seed(5)
    for scale, threshold in ((0.5, 0.3), (4.0, 0.5), (0.02, 0.3)):
        latents = torch.randn(2, 4, 6, 6, generator=generator)
        field = scale * torch.rand(6, 6, generator=generator)
        given = latents.clone()
        result = my_blend(given, field.clone(), threshold)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the latents")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        if got.shape != latents.shape:
            return look_again(f"the latents have the shape {tuple(got.shape)}, expected {tuple(latents.shape)}")
        mask, plain = field > threshold * field.max(), field > threshold
        right = torch.stack([latents[0], torch.where(mask, latents[1], latents[0])])
        if _close(got, right):
            if not torch.equal(given, latents):
                return look_again("the result is right, but the latents that came in have changed: clone first")
            continue
        turned = torch.where(mask, latents[0], latents[1])
        reasons = (
            (torch.where(plain, latents[0], latents[1]), "neither of the two faults is mended yet"),
            (
                turned,
                "the threshold is right now; the sides are exchanged: where the mask is True, the target stays",
            ),
            (
                torch.where(plain, latents[1], latents[0]),
                "the sides are right now; the threshold is a share: compare with threshold * field.max()",
            ),
            (
                torch.where(field > threshold * field.mean(), latents[1], latents[0]),
                "a share of the largest value, not of the mean",
            ),
            (latents[1], "nothing is blended: outside of the mask the target takes the source's latents"),
            (latents[0], "the target is the source everywhere: where the mask is True it keeps its own"),
        )
        if not _close(got[0], latents[0]):
            return look_again("the source (row 0) has changed; only the target is blended")
        for wrong, reason in reasons:
            if _close(got[1], wrong):
                return look_again(reason)
        return look_again("row 1 should be torch.where(field > threshold * field.max(), target, source)")
    return passed("inside the field the target stays, outside it is the source, for fields of any size")


# ---------------------------------------------------------------- gentle


@lru_cache(maxsize=32)
def gentle_result(cross: float, self_: float) -> tuple[int, bool, float]:
    """Draw the swap with these shares; return how many new things are seen, if the old one is gone, and the PSNR."""
    old, new = (next(w for w in text.split() if w in ("house", "rocket")) for text in (GENTLE_SOURCE, GENTLE_TARGET))
    injection = Injection(cross=cross, self_=self_, threshold=None)
    change = Change(source=GENTLE_SOURCE, target=GENTLE_TARGET, seed=GENTLE_SEED, injection=injection)
    before, after = load_pipeline().edit_many([change], num_steps=10)
    source, target = read_pictures(load_judge(), torch.cat([before, after]))
    things = [(each, old) for each in source.objects] + [(each, new) for each in target.objects]
    boxes = [thing.box for thing, kind in things if thing.kind == kind]
    mask = outside(boxes, before.shape[-1])  # of all of them, as the lesson's own `background` counts
    count = sum(thing.kind == new for thing in target.objects)
    return count, seen_thing(target, old) is None, background_psnr(before, after, mask)


def judge_gentle(answer: Any) -> Verdict:
    """Judge (cross, self): the drawn swap shows the new thing, once and alone, and keeps the background."""
    try:
        cross, self_ = (round(float(each), 4) for each in answer)
    except (TypeError, ValueError, RuntimeError):
        return look_again("the answer is two shares: (cross, self), such as (0.5, 0.5)")
    if not (0 <= cross <= 1 and 0 <= self_ <= 1):
        return look_again("both are shares of the steps: 0 to 1")
    count, gone, level = gentle_result(cross, self_)
    if not count:
        return look_again("the judge does not see the new thing: it is held too fast in the old one's maps; take less")
    if not gone:
        return look_again("the judge still sees the old thing beside the new one; take less of the maps")
    if count > 1:
        return look_again("the new thing is there twice, where the old one was and beside it; take less of self")
    if level < GENTLE_DB:
        kept = f"{level:.2f} of {GENTLE_DB:g} dB only"
        return look_again(f"the new thing is there, and the background keeps {kept}; more of cross, or less of self")
    return passed(f"the new thing is there once, the old one gone, and the background keeps {level:.0f} dB")


def _as_tensor(result: Any) -> Tensor | None:
    """Return a result as float numbers, None where it is none."""
    try:
        made = torch.as_tensor(result)
        return None if made.dtype == torch.bool or made.is_complex() else made.detach().float()
    except (TypeError, ValueError, RuntimeError):
        return None


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-4)
