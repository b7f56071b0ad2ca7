"""The judges of lesson 08: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.sampling.loop import sample
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Tensor

CENTRE, SPREAD = 1.0, 0.8  # of the right one of the two bells; the left one is its mirror image
HALF, NEAR = SPREAD / 2, 0.01  # the spread to find in half_spread, and how near is near enough


def _number(answer: Any) -> float | None:
    """Return the answer as a number, None where it is none."""
    try:
        return float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None


def _as_tensor(result: Any) -> Tensor | None:
    """Return a result as a tensor of numbers, None where it is none."""
    try:
        return torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError):
        return None


def _close(got: Tensor, wanted: Tensor) -> bool:
    return bool(((got.double() - wanted.double()).abs() < 1e-4).all())


# ---------------------------------------------------------------- same_pull


def judge_same_pull(answer: Any) -> Verdict:
    """Judge the pair (scale, rows) for w = 0.5 and 250 steps: 1.5 and 500."""
    try:
        scale, rows = (_number(each) for each in answer)
    except (TypeError, ValueError):
        return look_again("the answer has two numbers: (scale, rows)")
    if scale is None or rows is None:
        return look_again("the answer has two numbers: (scale, rows)")
    if abs(scale - 500) < 1e-6 and abs(rows - 1.5) < 1e-6:
        return look_again("the right two numbers, the wrong way round: first the scale, then the rows")
    if not abs(scale - 1.5) < 1e-6:
        slips = {
            0.5: "0.5 is w itself; w counts what is added to plain sampling, our scale s is 1 there: s = 1 + w",
            -0.5: "s = w - 1 has the sign turned: plain sampling is w = 0 and s = 1",
            2.0: "1 / w has nothing to do with it: plain sampling is w = 0 and s = 1, and both grow by the same steps",
            1.0: "s = 1 is plain sampling, w = 0; a w of 0.5 pulls harder",
        }
        for slip, reason in slips.items():
            if abs(scale - slip) < 1e-6:
                return look_again(reason)
        return look_again("the scale is not right: write eps_c + w (eps_c - eps_u) as eps_u + s (eps_c - eps_u)")
    if abs(rows - 500) < 1e-6:
        return passed("s = 1 + w = 1.5, and two rows in each of 250 steps are 500: guidance doubles the work")
    if abs(rows - 250) < 1e-6:
        return look_again("the scale is right; 250 rows would be enough without guidance: each step needs two answers")
    if abs(rows - 375) < 1e-6:
        return look_again("the scale is right; the work does not depend on it: two rows per step for every s but 1")
    return look_again(
        "the scale is right; how many answers of the U-Net does one guided step need, and how many steps?"
    )


# ---------------------------------------------------------------- drop_sentences

_ROWS, _LENGTH = 4000, 8


def judge_drop_sentences(my_drop: Any) -> Verdict:
    """Judge a function (tokens, empty, share, generator) -> tokens with whole sentences dropped now and then."""
    if not callable(my_drop):
        return look_again("the answer is a function: my_drop(tokens, empty, share, generator)")
    tokens = torch.randint(10, 900, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(8))
    empty = torch.arange(1, _LENGTH + 1)[None]
    for share in (0.1, 0.3, 0.0, 1.0):
        given = tokens.clone(), empty.clone()
        result = my_drop(*given, share, torch.Generator().manual_seed(3))
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the tokens")
        if not (torch.equal(given[0], tokens) and torch.equal(given[1], empty)):
            return look_again("your function changes the tokens that it was given: make new ones, with torch.where")
        got = _as_tensor(result)
        if got is None or got.is_floating_point() or got.dtype == torch.bool:
            return look_again("return the tokens: whole numbers, as they came in")
        if got.shape != tokens.shape:
            return look_again(f"the result has the shape {tuple(got.shape)}, the tokens have {tuple(tokens.shape)}")
        if reason := _why_not_dropped(got, tokens, empty, share):
            return look_again(reason)
    same, other = (_as_tensor(my_drop(tokens, empty, 0.3, torch.Generator().manual_seed(k))) for k in (3, 4))
    again = _as_tensor(my_drop(tokens, empty, 0.3, torch.Generator().manual_seed(3)))
    if same is None or again is None or not torch.equal(same, again):
        return look_again("the same generator drops other sentences each time: pass `generator` to torch.rand")
    if other is None or torch.equal(same, other):
        return look_again("another generator drops the same sentences: use the argument `generator`")
    counts = set()
    for k in range(4):
        hidden = _as_tensor(my_drop(tokens, empty, 0.3, torch.Generator().manual_seed(k)))
        counts.add(None if hidden is None else int((hidden == empty).all(dim=1).sum()))
    if len(counts) == 1:
        return look_again("every batch loses the same number of sentences, a batch of one none or all: throw coins")
    return passed("whole sentences go, each by a coin of its own, in the share asked for, and you get the same again")


def _why_not_dropped(got: Tensor, tokens: Tensor, empty: Tensor, share: float) -> str:
    """Say what is wrong with the dropped tokens, an empty text where nothing is."""
    dropped = (got == empty).all(dim=1)
    kept = (got == tokens).all(dim=1)
    if not bool((dropped | kept).all()):
        strange = got[~(dropped | kept)]
        if not strange.any():
            return "your dropped rows are zeros; 0 is a token like any other: put the empty sentence there"
        mixed = ((got == empty) | (got == tokens)).all()
        if mixed:
            return "some rows are half sentence, half empty: throw one coin per sentence, (b, 1), not one per token"
        return "some rows are neither their own sentence nor the empty one"
    found = float(dropped.float().mean())
    if 0 < share < 1 and found in (0.0, 1.0):
        return (
            f"with the share {share} {'nothing' if found == 0 else 'everything'} is dropped: every sentence of the "
            "batch needs a coin of its own, torch.rand(b)"
        )
    if abs(found - share) > 0.03:
        if abs(found - (1 - share)) < 0.03:
            return f"you keep the share {share} and drop the rest: drop where the random number is *below* the share"
        return f"the share of dropped sentences should be {share:.2f}, yours is {found:.2f}"
    count = int(dropped.sum())
    if 0 < count < len(got) and bool(dropped[:count].all() | dropped[-count:].all()):
        return "you always drop the rows at one end of the batch: each sentence needs a coin of its own"
    return ""


# ---------------------------------------------------------------- one_call


class _Unet:
    """A stand-in for the U-Net: an answer for each row that depends on its latents, its time and its sentence."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, latents: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.calls += 1
        if not len(latents) == len(t) == len(context):
            raise ValueError(f"the U-Net got {len(latents)} latents, {len(t)} times and {len(context)} contexts")
        word = context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return torch.sin(latents + 3 * word) + t.view(-1, 1, 1, 1) / 1000 * torch.cos(latents * word)


_ONE_CALL_SLIPS: tuple[tuple[Callable[[Tensor, Tensor, float], Tensor], str], ...] = (  # (u, c, s)
    (
        lambda u, c, s: u + s * (c - u) + (c - u),
        "one pull too many: eps_cond + s (...) counts from the sentence's answer; our scale counts from eps_uncond, "
        "so that s = 1 gives eps_cond",
    ),
    (
        lambda u, c, s: u + s * (u - c),
        "neither of the two faults is mended yet: compare what comes out at scale 0 and at scale 1 with what should",
    ),
    (
        lambda u, c, s: c + s * (u - c),
        "the two chunks are swapped: the halves come out in the order in which they went in",
    ),
    (lambda u, c, s: s * (c - u), "that is the pull alone: it has to be added to eps_uncond"),
    (lambda u, c, s: c, "that is the sentence's answer alone, scale 1: the scale does nothing"),
    (lambda u, c, s: u, "that is the answer to the empty sentence, scale 0: the scale does nothing"),
    (lambda u, c, s: s * c, "you multiply the answer to the sentence; multiply the difference of the two answers"),
    (lambda u, c, s: (1 - s) * c + s * u, "the two answers have each other's weights"),
    (lambda u, c, s: (u + s * c) / (1 + s), "that is a mean of the two answers; guidance goes beyond the second one"),
)


def judge_one_call(my_guided: Any) -> Verdict:
    """Judge a function (unet, latents, t, context, empty, scale) -> guided noise, in one call of the U-Net."""
    if not callable(my_guided):
        return look_again("the answer is a function: my_guided(unet, latents, t, context, empty, scale)")
    generator = torch.Generator().manual_seed(8)
    latents = torch.randn(3, 4, 4, 4, generator=generator)
    context, empty = torch.randn(3, 5, 6, generator=generator), torch.randn(1, 5, 6, generator=generator)
    t = torch.tensor([100.0, 500.0, 900.0])
    unet = _Unet()
    eps_u, eps_c = unet(latents, t, empty.expand(3, -1, -1)), unet(latents, t, context)
    calls = 0
    for scale in (4.0, 0.5, -2.0):
        unet = _Unet()
        result = my_guided(unet, latents.clone(), t.clone(), context.clone(), empty.clone(), scale)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the guided noise")
        got = _as_tensor(result)
        if got is None or not got.is_floating_point():
            return look_again(f"your function returns a {type(result).__name__}: return the noise as a tensor")
        if got.shape != latents.shape:
            return look_again(
                f"the result has the shape {tuple(got.shape)}, the latents have {tuple(latents.shape)}: the two halves "
                "of the batch become one"
            )
        if not _close(got, eps_u + scale * (eps_c - eps_u)):
            for slip, reason in _ONE_CALL_SLIPS:
                if _close(got, slip(eps_u, eps_c, scale)):
                    return look_again(reason)
            if not bool(torch.isfinite(got).all()):
                return look_again("your result has values that are not numbers (NaN)")
            return look_again("your noise is not eps_uncond + scale * (eps_cond - eps_uncond), row by row")
        calls = max(calls, unet.calls)
    if calls > 1:
        return look_again(f"the numbers are right, with {calls} calls of the U-Net: one call on 2 b rows is asked for")
    return passed("one call on two rows per picture, the halves in their order, and scale 1 is the sentence itself")


# ---------------------------------------------------------------- pull_and_push

_Noise = tuple[Tensor, Tensor, Tensor]
_PUSH_SLIPS: tuple[tuple[Callable[[Tensor, Tensor, Tensor, float, float], Tensor], str], ...] = (  # (e, c, n, s, p)
    (
        lambda e, c, n, s, p: e + s * (c - e) + p * (n - e),
        "you pull towards the negative text too: its part is subtracted",
    ),
    (
        lambda e, c, n, s, p: n + s * (c - n),
        "that is the usual negative prompt, in the place of the empty sentence: here the two strengths are separate",
    ),
    (
        lambda e, c, n, s, p: e + s * (c - e) - p * n,
        "you subtract the whole answer to the negative text: subtract only how it differs from the empty sentence's",
    ),
    (
        lambda e, c, n, s, p: e + s * (c - e) - p * (n - c),
        "your push starts at the sentence's answer; both ways are counted from the empty sentence's",
    ),
    (lambda e, c, n, s, p: s * (c - e) - p * (n - e), "that is pull and push alone: add them to eps_empty"),
    (
        lambda e, c, n, s, p: c + s * (c - e) - p * (n - e),
        "you start at the sentence's answer: start at eps_empty, so that scale 1 and push 0 give the sentence",
    ),
    (lambda e, c, n, s, p: e + s * (c - e), "the push does nothing yet"),
    (lambda e, c, n, s, p: e + s * (c - n), "`push` does nothing, and the negative text is subtracted `scale` times"),
    (lambda e, c, n, s, p: e + p * (c - e) - s * (n - e), "scale and push have changed places"),
    (
        lambda e, c, n, s, p: e + s * (e - c) - p * (e - n),
        "both differences are turned around: the way *to* a text is its answer minus eps_empty",
    ),
)


def judge_pull_and_push(my_noise: Any) -> Verdict:
    """Judge (eps_empty, eps_sentence, eps_negative, scale, push) -> eps_empty + scale (...) - push (...)."""
    if not callable(my_noise):
        return look_again("the answer is a function: my_noise(eps_empty, eps_sentence, eps_negative, scale, push)")
    e, c, n = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(9))
    for scale, push in ((4.0, 1.5), (1.0, 0.0), (0.5, 3.0)):
        result = my_noise(e.clone(), c.clone(), n.clone(), scale, push)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the noise")
        got = _as_tensor(result)
        if got is None or not got.is_floating_point() or got.shape != e.shape:
            return look_again(f"return the noise, a tensor of the shape of eps_empty, {tuple(e.shape)}")
        if not _close(got, e + scale * (c - e) - push * (n - e)):
            for slip, reason in _PUSH_SLIPS:
                if _close(got, slip(e, c, n, scale, push)):
                    return look_again(reason)
            if not bool(torch.isfinite(got).all()):
                return look_again("your result has values that are not numbers (NaN)")
            return look_again("start at eps_empty, add scale times one difference, subtract push times the other")
    return passed("pull and push each have a strength of their own; scale 1 and push 0 give the plain sentence")


# ---------------------------------------------------------------- half_spread


def _noise_in(x: Tensor, a: float, scale: float) -> Tensor:
    """The exact guided noise in x, for two bells of equal weight, the class being the right one."""
    variance = a * SPREAD**2 + 1 - a
    left, right = (math.sqrt(1 - a) * (x - sign * math.sqrt(a) * CENTRE) / variance for sign in (-1, 1))
    chance = torch.sigmoid(2 * math.sqrt(a) * CENTRE * x / variance)
    both = (1 - chance) * left + chance * right
    return both + scale * (right - both)


@lru_cache(maxsize=64)
def sampled_spread(scale: float) -> float:
    """The spread of what 250 DDIM steps with exact scores make of pure noise at this scale, without randomness."""
    places = (torch.arange(1001, dtype=torch.float64) + 0.5) / 1001
    x = torch.special.ndtri(places).view(-1, 1, 1, 1)
    schedule = NoiseSchedule()
    for state in sample(
        lambda x, t, step: _noise_in(x, float(schedule.alpha_bar[t]), scale), x, schedule, num_steps=250
    ):
        x = state.latents
    return float(x.std())


def judge_half_spread(answer: Any) -> Verdict:
    """Judge a scale at which the guided samples of the toy class have half of its spread."""
    scale = _number(answer)
    if scale is None or not math.isfinite(scale):
        return look_again("the answer is one number, a guidance scale")
    if not 1 <= scale <= 100:
        return look_again("the answer is a guidance scale, from 1 to 100: at 1 the samples have the class's own spread")
    found = sampled_spread(scale)
    told = f"at scale {scale:g} the samples have the spread {found:.2f}, the class has {SPREAD:.2f}"
    if abs(found - HALF) <= NEAR:
        return passed(f"{told}: half of the variety is gone, and nothing but the scale has changed")
    return look_again(
        f"{told}: {HALF:.2f} is wanted, within {NEAR}; try a {'larger' if found > HALF else 'smaller'} one"
    )
