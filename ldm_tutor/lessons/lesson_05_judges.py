"""The judges of lesson 05: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons import lesson_05_kit as kit
from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.lessons.lesson_05_show import noise_like, shuffled
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.nn.blocks import ResBlock
from ldm_tutor.nn.embeddings import timestep_embedding
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.shapes import Tensor

NUM_LOOKS, MANY, FEW = 64, 48, 24  # scenes that are looked at, and what counts as seen and as not seen
LITTLE, MUCH = 100, 6400  # training steps that are compared


def _as_tensor(result: Any) -> Tensor | None:
    """Return a result as a tensor of floating-point numbers, None where it is none."""
    try:
        tensor = torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.is_floating_point() else None


def _close(got: Tensor, wanted: Tensor, tolerance: float = 1e-3) -> bool:
    return got.shape == wanted.shape and bool(((got.double() - wanted.double()).abs() < tolerance).all())


# ---------------------------------------------------------------- skip_channels

SKIP_CHANNELS = (96, 96, 96, 72, 72, 48)
_CHANNEL_SLIPS: dict[tuple[int, ...], str] = {
    (48, 48, 48, 48, 48, 24): "those are the widths that come from below; beside each lies a skip, and both go in",
    (48, 48, 48, 24, 24, 24): "those are the skips alone; the map from below goes in with each of them",
    (48, 48, 48, 48, 24, 24): "that is what comes out of each block; what goes in is the map from below and a skip",
    (48, 72, 72, 96, 96, 96): "the right numbers, and the order is from fine to coarse; the way up starts at the "
    "coarsest map",
    (72, 72, 72, 96, 96, 72): "you take the skips from the front of the list; the way up takes the last one first",
    (96, 96, 96, 96, 72, 48): "you take each skip for as wide as its level; the halved map that level 1 starts with "
    "still has the 24 channels of level 0",
    (96, 96, 96, 96, 48, 48): "you take each skip for as wide as its level; the halved map that level 1 starts with "
    "still has the 24 channels of level 0, and the first block of the finest level still gets 48 from below",
    (96, 96, 96, 96, 96, 48): "you take each skip for as wide as the map from below; two of them have 24 channels",
    (96, 96, 96, 72, 48, 48): "the first block of the finest level still gets 48 channels from below: doubling the "
    "side does not change the width",
    (72, 72, 72, 96, 96, 48): "look at where the list of the way down ends: its last maps are the widest",
}


def judge_skip_channels(answer: Any) -> Verdict:
    """Judge the channels that enter each residual block on the way up of `kit.CONFIG`."""
    try:
        numbers = tuple(round(float(each)) for each in answer)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return look_again("the answer is a list of six whole numbers, in the order of running")
    if numbers == SKIP_CHANNELS:
        return passed("each block reads the map from below and the last skip that is left, side by side")
    if len(numbers) == 3:
        return look_again("three numbers are one per level; on the way up each level has two blocks, one per skip")
    if len(numbers) != len(SKIP_CHANNELS):
        return look_again(f"you give {len(numbers)} numbers; the way up has six residual blocks, two on each level")
    if numbers in _CHANNEL_SLIPS:
        return look_again(_CHANNEL_SLIPS[numbers])
    wrong = next(k for k, (one, other) in enumerate(zip(numbers, SKIP_CHANNELS, strict=True)) if one != other)
    return look_again(
        f"right up to block number {wrong}, counted from 0; write down the list of the way down, six maps with their "
        "channels, and take one from its end for each block"
    )


# ---------------------------------------------------------------- time_wave

_T = torch.tensor([0, 1, 7, 250, 999])
_Wave = Callable[[Tensor, int], Tensor]


def _angles(t: Tensor, dim: int, base: float = 10000.0, last: int = 0) -> Tensor:
    half = dim // 2
    return t.double()[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / (half - last))


def _both(angles: Tensor) -> Tensor:
    return torch.cat([angles.cos(), angles.sin()], dim=1)


_WAVE_SLIPS: tuple[tuple[_Wave, str], ...] = (
    (
        lambda t, d: torch.cat([_angles(t, d).sin(), _angles(t, d).cos()], dim=1),
        "your halves are the wrong way round: the cosines come first here, then the sines. (Other codes have it your "
        "way; trained weights know only one)",
    ),
    (
        lambda t, d: torch.stack([_angles(t, d).cos(), _angles(t, d).sin()], dim=2).flatten(1),
        "cosine and sine take turns in yours; here all cosines come first, then all sines",
    ),
    (
        lambda t, d: torch.stack([_angles(t, d).sin(), _angles(t, d).cos()], dim=2).flatten(1),
        "sine and cosine take turns in yours; here all cosines come first, then all sines",
    ),
    (
        lambda t, d: _both(_angles(t, d, last=1)),
        "your slowest wave is 1/10000 exactly: you divide by half - 1 where half belongs",
    ),
    (
        lambda t, d: _both(_angles(t, d, base=100.0)),
        "your waves do not get slow enough: you divide k by d, and it should be d / 2",
    ),
    (
        lambda t, d: _both(t.double()[:, None] * 10000 ** (torch.arange(d // 2, dtype=torch.float64) / (d // 2))),
        "your waves get faster with k: the exponent has a minus",
    ),
    (lambda t, d: _both(2 * math.pi * _angles(t, d)), "there is no 2 pi in these waves: the angle is t times omega"),
    (lambda t, d: _both(_angles(t, d) / 1000), "you divide t by 1000 first; the waves take t as it is"),
    (lambda t, d: _both(_angles(t, d, base=math.e)), "your base is e: 10000 belongs there, or its logarithm"),
    (lambda t, d: _angles(t, d).cos().repeat(1, 2), "the second half is cosine too; it should be the sine"),
    (lambda t, d: _angles(t, d).repeat(1, 2), "those are the angles; take their cosine and their sine"),
)


def judge_time_wave(my_wave: Any) -> Verdict:
    """Judge a function (t, dim) -> (b, dim): the time embedding of the LDM code."""
    if not callable(my_wave):
        return look_again("the answer is a function: my_time_wave(t, dim)")
    for dim in (8, 24):
        given = _T.clone()
        result = my_wave(given, dim)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the waves")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of waves")
        if not torch.equal(given, _T):
            return look_again("your function changes the t that it was given: write t.float(), not t *= ...")
        wanted = timestep_embedding(_T, dim)
        if got.shape != wanted.shape:
            told = f"the result has the shape {tuple(got.shape)}, it should be {tuple(wanted.shape)}"
            return look_again(told + ": it lies on its side" * (got.shape == wanted.T.shape))
        if not bool(torch.isfinite(got).all()):
            return look_again("your waves have values that are not numbers (NaN)")
        if not _close(got, wanted):
            for slip, reason in _WAVE_SLIPS:
                if _close(got, slip(_T, dim)):
                    return look_again(reason)
            row, column = divmod(int((got.double() - wanted).abs().argmax()), dim)
            return look_again(
                f"at t = {int(_T[row])}, wave {column} of {dim}, yours is {float(got[row, column]):.3f} and it should "
                f"be {float(wanted[row, column]):.3f}"
            )
    return passed("all waves are right, for two widths: cosines first, from fast to slow")


# ---------------------------------------------------------------- res_block

_Forward = Callable[[Any, Tensor, Tensor], Tensor]


def block_for(c_in: int, c_out: int) -> ResBlock:
    """Return the package's residual block with random weights; where the widths are equal its shortcut hands on."""
    block = shuffled(ResBlock(c_in, c_out, time_dim=12, norm_groups=2, eps=1e-5))
    if block.shortcut is None:
        block.shortcut = nn.Identity()  # type: ignore[assignment]
    return block.requires_grad_(False)


def _wide(t: Tensor) -> Tensor:
    return t[:, :, None, None]


def _block(
    block: Any, x: Tensor, t_emb: Tensor, *, time: str = "before norm2", activate: bool = True, shortcut: bool = True,
    first: bool = True, second: bool = True, norm2: bool = True,
) -> Tensor:  # fmt: skip
    """Run the block with one thing left out or in another place."""
    t = _wide(block.time_proj(F.silu(t_emb) if activate else t_emb))
    h = block.norm1(x)
    h = block.conv1(F.silu(h) if first else h)
    if time == "times":
        h = h * t
    elif time == "before norm2":
        h = h + t
    h = block.norm2(h) if norm2 else h
    if time == "after norm2":
        h = h + t
    h = block.conv2(F.silu(h) if second else h)
    if shortcut:
        h = h + block.shortcut(x)
    return h + t if time == "at the end" else h


_BLOCK_SLIPS: tuple[tuple[_Forward, str], ...] = (
    (lambda b, x, t: _block(b, x, t, time="none"), "your block never hears of the time: add time_proj(silu(t_emb))"),
    (
        lambda b, x, t: _block(b, x, t, activate=False),
        "the time vector goes in without its SiLU: time_proj(F.silu(t_emb))",
    ),
    (
        lambda b, x, t: _block(b, x, t, time="after norm2"),
        "you add the time after the second norm; it belongs before it, right behind the first convolution",
    ),
    (
        lambda b, x, t: _block(b, x, t, time="at the end"),
        "you add the time at the very end; it belongs behind the first convolution, before the second norm",
    ),
    (lambda b, x, t: _block(b, x, t, time="times"), "you multiply by the time; it is added"),
    (lambda b, x, t: _block(b, x, t, shortcut=False), "the input is missing at the end: add block.shortcut(x)"),
    (lambda b, x, t: _block(b, x, t, first=False), "the SiLU between norm1 and conv1 is missing"),
    (lambda b, x, t: _block(b, x, t, second=False), "the SiLU between norm2 and conv2 is missing"),
    (lambda b, x, t: _block(b, x, t, norm2=False), "the second norm is missing"),
    (
        lambda b, x, t: x + _block(b, x, t, shortcut=False),
        "you add x itself; block.shortcut(x) makes its channels as many as the result's",
    ),
)


def judge_res_block(my_block: Any) -> Verdict:
    """Judge a function (block, x, t_emb) -> the residual block's answer, with and without a change of width."""
    if not callable(my_block):
        return look_again("the answer is a function: my_res_block(block, x, t_emb)")
    for c_in, c_out in ((4, 6), (4, 4)):
        block = block_for(c_in, c_out)
        x, t_emb = noise_like(torch.zeros(3, c_in, 5, 5), 2), noise_like(torch.zeros(3, 12), 3)
        given = x.clone(), t_emb.clone()
        try:
            result = my_block(block, *given)
        except RuntimeError as error:
            if "size of tensor" in str(error):
                return look_again(
                    "two tensors that you add do not fit: the time needs the shape (b, c, 1, 1), and the input goes "
                    "through block.shortcut"
                )
            raise
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the new map")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a feature map")
        if not all(torch.equal(now, was) for now, was in zip(given, (x, t_emb), strict=True)):
            return look_again("your function changes what it was given: write h = h + t, not h += t on the input")
        wanted = _block(block, x, t_emb)
        if got.shape != wanted.shape:
            return look_again(f"the result has the shape {tuple(got.shape)}, it should be {tuple(wanted.shape)}")
        if not _close(got, wanted):
            for slip, reason in _BLOCK_SLIPS:
                if (c_in == c_out or slip is not _BLOCK_SLIPS[-1][0]) and _close(got, slip(block, x, t_emb)):
                    return look_again(reason)
            return look_again("the shape is right, the numbers are not: norm, SiLU, convolution, time, and once more")
    return passed("the block is right, where the width changes and where it stays")


# ---------------------------------------------------------------- ema

_STEPS = (0, 1, 5, 50, 8989, 20_000)  # at 8990 the two parts of the minimum are equal
_Mean = Callable[[float, float, int, float], float]
_EMA_SLIPS: tuple[tuple[_Mean, str], ...] = (
    (
        lambda old, new, n, d: (1 - max(d, (1 + n) / (10 + n))) * old + max(d, (1 + n) / (10 + n)) * new,
        "both faults are still there: which of the two should weigh more, the average or the new weights? And which "
        "of the two decays belongs at the beginning?",
    ),
    (
        lambda old, new, n, d: (1 - min(d, (1 + n) / (10 + n))) * old + min(d, (1 + n) / (10 + n)) * new,
        "the average is nearly thrown away at each step: the decay is the share of the *old* that stays",
    ),
    (
        lambda old, new, n, d: max(d, (1 + n) / (10 + n)) * old + (1 - max(d, (1 + n) / (10 + n))) * new,
        "your average hardly moves at the beginning, when the weights are still random: take the smaller decay",
    ),
    (
        lambda old, new, n, d: d * old + (1 - d) * new,
        "without the warm-up the first random weights stay in the average for thousands of steps",
    ),
    (
        lambda old, new, n, d: (1 + n) / (10 + n) * old + (1 - (1 + n) / (10 + n)) * new,
        "your decay has no upper end: late in a run it should not rise above `decay`",
    ),
    (
        lambda old, new, n, d: min(d, n / (9 + n)) * old + (1 - min(d, n / (9 + n))) * new,
        "your n is one too small: the formula is (1 + n) / (10 + n)",
    ),
    (
        lambda old, new, n, d: min(d, (2 + n) / (11 + n)) * old + (1 - min(d, (2 + n) / (11 + n))) * new,
        "your n is one too large: n steps are done already, and the formula is (1 + n) / (10 + n)",
    ),
    (
        lambda old, new, n, d: min(0.999, (1 + n) / (10 + n)) * old + (1 - min(0.999, (1 + n) / (10 + n))) * new,
        "right with a decay of 0.999, and no other is heard: take the argument `decay`, not the number",
    ),
    (lambda old, new, n, d: new, "you hand the new weights on; an average remembers the old ones"),
    (lambda old, new, n, d: old, "your average never moves"),
)


def judge_ema(my_ema: Any) -> Verdict:
    """Judge a function (average, current, n, decay) -> new averages, at the beginning and late in a run."""
    if not callable(my_ema):
        return look_again("the answer is a function: my_ema(average, current, n, decay)")
    olds, news = [torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])], [torch.tensor([2.0, 5.0]), torch.tensor([[-1.0]])]
    got: dict[tuple[int, float], list[Tensor]] = {}
    for n in _STEPS:
        for decay in (0.999, 0.9):
            current = [each.clone() for each in news]
            result = my_ema([each.clone() for each in olds], current, n, decay)
            if is_missing(result):
                return not_done("your function returns nothing yet: end it with `return` and the list of averages")
            if not isinstance(result, Sequence) or len(result) != len(olds):
                return look_again("return a list with as many averages as it was given")
            rows = [_as_tensor(each) for each in result]
            if not all(row is not None and row.shape == old.shape for row, old in zip(rows, olds, strict=True)):
                return look_again("each average has the shape of what it averages")
            if not all(torch.equal(now, was) for now, was in zip(current, news, strict=True)):
                return look_again("your function changes the current weights; training goes on with those")
            got[n, decay] = [row for row in rows if row is not None]
    right = {(n, d): 1 + (1 - min(d, (1 + n) / (10 + n))) for n, d in got}  # what 1 becomes when it meets a 2
    if _fits(got, olds, news, lambda old, new, n, d: old + (right[n, d] - 1) * (new - old)):
        return passed("quick while n is small, slow later, and the old weighs more than the new")
    for slip, reason in _EMA_SLIPS:
        if _fits(got, olds, news, slip):
            return look_again(reason)
    ones = {case: float(rows[0].flatten()[0]) for case, rows in got.items()}
    worst = max(right, key=lambda case: abs(ones[case] - right[case]) if math.isfinite(ones[case]) else math.inf)
    return look_again(
        f"at n = {worst[0]} with decay {worst[1]} an average of 1 that meets a 2 should become {right[worst]:.3f}, "
        f"yours is {ones[worst]:.3f}"
    )


def _fits(got: dict[tuple[int, float], list[Tensor]], olds: list[Tensor], news: list[Tensor], rule: Any) -> bool:
    return all(
        _close(row, rule(old, new, n, decay), 1e-5)
        for (n, decay), rows in got.items()
        for row, old, new in zip(rows, olds, news, strict=True)
    )


# ---------------------------------------------------------------- worth_training


@lru_cache(maxsize=64)
def looks(t: int) -> tuple[int, int]:
    """In how many of NUM_LOOKS repaired scenes at t the judge names the kind, after LITTLE and after MUCH training."""
    pipeline, test = load_pipeline(), kit.one_object_scenes(NUM_LOOKS)
    x0, context = kit.clean_latents(pipeline, to_float(test.pictures)), pipeline.embed(test.captions)
    times = torch.full((NUM_LOOKS,), t)
    x_t = pipeline.schedule.add_noise(x0, noise_like(x0, 1), times)
    counts = []
    for steps in (LITTLE, MUCH):
        with torch.inference_mode():
            eps_hat = kit.load_snapshots()[steps](x_t, times, context)
        pictures = pipeline.decode(pipeline.schedule.x0_from_eps(x_t, eps_hat, times))
        found = attribute_accuracy(read_pictures(load_judge(), pictures), [parse(each) for each in test.captions])
        counts.append(round(found["object"].value * found["object"].num))
    return counts[0], counts[1]


def judge_worth_training(answer: Any) -> Verdict:
    """Judge a time at which the judge names most objects after much training, and few after little."""
    try:
        t = float(answer)
    except (TypeError, ValueError, RuntimeError):
        t = math.nan
    if not (t == t // 1 and 0 <= t <= 999):
        return look_again("the answer is one time step, a whole number from 0 to 999")
    little, much = looks(int(t))
    told = f"at t = {int(t)} the judge names {little} of {NUM_LOOKS} after {LITTLE} steps, {much} after {MUCH} steps"
    if much < MANY:
        return look_again(f"{told}: it should be {MANY} or more after {MUCH:,}; go to a smaller t")
    if little > FEW:
        return look_again(f"{told}: little training does as well here, it may name {FEW} at most; go to a larger t")
    return passed(f"{told}: here the training pays")
