"""The judges of lesson 10: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.world import Scene, SceneObject
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.metrics.editing import background_psnr, outside, seen_thing
from ldm_tutor.metrics.reading import read_pictures
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.shapes import Pictures, Tensor

CAT = Scene(objects=(SceneObject.put("cat", "pink", "large", "middle"),), background="day", seed=3)
STRENGTH_SENTENCE, STRENGTH_SEED, STRENGTH_STEPS = "a large white dog in the middle on a sunny day", 5, 10
STRENGTH_DB = 27.0  # what the background has to keep
STRENGTH_ANSWER = 0.7

# ---------------------------------------------------------------- channels

_LATENT, _WIDTH = 8, 192
_CHANNEL_SLIPS = {
    16: "the mask is missing: it is one channel of its own",
    9: "those are Stable Diffusion's, whose latents have 4 channels; these have 8",
    12: "the masked picture does not come in as pixels: it goes through the autoencoder, to 8 channels",
    19: "the mask is one channel, not one per colour",
    24: "the mask is one channel, not one per latent channel",
    8: "those are the noisy latents alone; the mask and the masked picture's latents come on top",
}
_WEIGHT_SLIPS = {
    9 * 17 * _WIDTH: "that is the whole first convolution; asked is what the widening adds",
    9 * 9 * _WIDTH + _WIDTH: "biases belong to the outputs; the widening adds none",
    9 * 8 * _WIDTH: "9 channels are new, the mask is one of them",
    17 * _WIDTH: "a 3 x 3 kernel has 9 weights for each pair of channels",
    9 * 5 * _WIDTH: "5 new channels are Stable Diffusion's; here the masked picture alone has 8",
}


def judge_channels(answer: Any) -> Verdict:
    """Judge (channels, weights): 8 + 1 + 8 channels come in, and 3 * 3 * 9 * 192 weights are new."""
    try:
        channels, weights = (float(each) for each in answer)
    except (TypeError, ValueError, RuntimeError):
        return look_again("the answer is two numbers: (channels that come in, weights that are added)")
    new = _LATENT + 1
    right = _LATENT + new, 9 * new * _WIDTH
    if (channels, weights) == right:
        return passed(f"8 noisy, 1 mask and 8 masked are {right[0]}; the 9 new ones cost {right[1]:,} weights")
    if channels != right[0]:
        return look_again(_CHANNEL_SLIPS.get(int(_finite(channels)), "noisy latents, mask, latents of the masked one"))
    if weights == new * _WIDTH:
        return look_again("a 3 x 3 kernel has 9 weights for each pair of channels")
    more = "the channels are right; each new one meets each of the 192 outputs with a 3 x 3 kernel"
    return look_again(_WEIGHT_SLIPS.get(int(_finite(weights)), more))


def _finite(value: float) -> float:
    return value if abs(value) < 1e12 else -1.0


# ---------------------------------------------------------------- box_tokens

Corners = tuple[float, float, float, float]
_Slip = Callable[[int, Corners, int], Sequence[int]]


def _at(x: float, y: float, side: int) -> int:
    return round(y * (side - 1)) * side + round(x * (side - 1))


def right_tokens(kind: int, box: Corners, side: int) -> list[int]:
    """Return the three tokens of one box: its class, its top-left and its bottom-right corner on the grid."""
    x0, y0, x1, y1 = box
    return [kind, _at(x0, y0, side), _at(x1, y1, side)]


def _by(place: Callable[[float, float, int], int]) -> _Slip:
    return lambda kind, box, side: [kind, place(box[0], box[1], side), place(box[2], box[3], side)]


_BOX_SLIPS: tuple[tuple[_Slip, str], ...] = (
    (
        _by(lambda x, y, side: _at(y, x, side)),
        "x and y are exchanged: the row, which is y, is multiplied by the side",
    ),
    (
        lambda kind, box, side: right_tokens(kind, (*box[2:], *box[:2]), side),
        "the corners are exchanged: the top-left one comes first",
    ),
    (
        lambda kind, box, side: right_tokens(kind, (box[0], box[1], box[2] - box[0], box[3] - box[1]), side),
        "the last token is the bottom-right corner; you give it width and height",
    ),
    (
        lambda kind, box, side: right_tokens(kind, (box[0], box[3], box[2], box[1]), side),
        "those are the bottom-left and the top-right corner; asked are top-left and bottom-right",
    ),
    (
        lambda kind, box, side: [*right_tokens(kind, box, side)[1:], kind],
        "the class comes first, then the two corners",
    ),
    (
        _by(lambda x, y, side: round(y * side) * side + round(x * side)),
        "the grid has places 0 to side - 1: multiply by side - 1 before rounding",
    ),
    (
        _by(lambda x, y, side: min(side - 1, int(y * side)) * side + min(side - 1, int(x * side))),
        "that is the cell in which the corner lies; the published form rounds to the nearest of side - 1 steps",
    ),
    (
        _by(lambda x, y, side: int(y * (side - 1)) * side + int(x * (side - 1))),
        "int cuts off what stands behind the point: round",
    ),
    (
        _by(lambda x, y, side: round(y * (side - 1)) * (side - 1) + round(x * (side - 1))),
        "a row has `side` places, so the row's number is multiplied by side, not by side - 1",
    ),
    (
        _by(lambda x, y, side: round(y * (side - 1)) + round(x * (side - 1))),
        "two places get the same number: multiply the row by side before you add the column",
    ),
    (
        lambda kind, box, side: [kind, *(each + 1 for each in right_tokens(kind, box, side)[1:])],
        "places are counted from 0",
    ),
)


def judge_box_tokens(my_tokens: Any) -> Verdict:
    """Judge a function (kind, box, side) -> three whole numbers, for several grids and boxes."""
    if not callable(my_tokens):
        return look_again("the answer is a function: my_box_tokens(kind, box, side)")
    generator = torch.Generator().manual_seed(10)
    cases: list[tuple[int, Corners, int]] = []
    for side in (90, 32, 8):
        a, b, c, d = torch.rand(4, generator=generator).tolist()
        cases.append((side % 7, (min(a, b), 0.6 * min(c, d), max(a, b), max(c, d)), side))
    cases.append((2, (0.0, 0.0, 1.0, 1.0), 32))  # last: the whole picture hides some slips
    for kind, box, side in cases:
        result = my_tokens(kind, box, side)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the three tokens")
        got = as_numbers(result)
        if got is None or got.dim() != 1:
            return look_again(f"your function returns a {type(result).__name__}: return three whole numbers")
        if len(got) != 3:
            return look_again(f"{len(got)} tokens; a box has three: class, top-left, bottom-right")
        right = right_tokens(kind, box, side)
        if got.tolist() == right:
            continue
        for slip, reason in _BOX_SLIPS:
            if got.tolist() == list(slip(kind, box, side)):
                return look_again(reason)
        if got[1:].tolist() == right[1:]:
            return look_again(f"the corners are right; the first token is the class, {kind}")
        told = ", ".join(f"{value:.2f}" for value in box)
        return look_again(f"for ({told}) on a grid of {side} the tokens are {right}, yours {[*map(int, got.tolist())]}")
    return passed("class, top-left, bottom-right: right on grids of 8, 32 and 90 places a side")


# ---------------------------------------------------------------- widen


def judge_widen(my_widen: Any) -> Verdict:
    """Judge a function (weight, extra) -> a weight with `extra` more input channels, all zero, behind the others."""
    if not callable(my_widen):
        return look_again("the answer is a function: my_widen(weight, extra)")
    generator = torch.Generator().manual_seed(4)
    for out, width, extra in ((6, 4, 5), (5, 3, 3), (8, 4, 1)):
        weight = torch.randn(out, width, 3, 3, generator=generator)
        given = weight.clone()
        result = my_widen(given, extra)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the weight")
        got = as_numbers(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        wanted = (out, width + extra, 3, 3)
        if got.shape != wanted:
            turned = got.shape == (out + extra, width, 3, 3)
            more = ": you have added outputs, not inputs; a weight is (out, in, height, width)" if turned else ""
            return look_again(f"the weight has the shape {tuple(got.shape)}, expected {wanted}{more}")
        old, new = got[:, :width], got[:, width:]
        if close(old, weight) and not bool(new.any()):
            if not torch.equal(given, weight):
                return look_again("the result is right, but the weight that came in has changed: build a new one")
            continue
        return look_again(_why_not_widened(got, weight, extra))
    return passed("the old channels keep their weights, and whatever comes in by the new ones changes nothing yet")


def _why_not_widened(got: Tensor, weight: Tensor, extra: int) -> str:
    width = weight.shape[1]
    if close(got[:, extra:], weight):
        return "the new channels stand in front; the noisy latents come first, so the new weights go behind the old"
    if not bool(got.any()):
        return "everything is zero: the old weights have to stay, only the new ones are zero"
    if not close(got[:, :width], weight):
        if close(got[:, :width].sum(1), weight.sum(1)) or close(got.sum(1), weight.sum(1)):
            return "you share the old weights out; the old channels keep exactly theirs"
        return "the old weights have changed; the U-Net no longer computes what it had learned"
    new = got[:, width:]
    if not bool(torch.isfinite(new).all()):
        return "the new weights are not numbers: torch.empty is not zero"
    copies = weight.repeat(1, 1 + extra // width, 1, 1)[:, :extra]
    if close(new, copies):
        return "the new channels have a copy of the old weights, so the mask would be read as if it were latents"
    return "the old weights are right; the new ones have to be zero, so that at first nothing changes"


# ---------------------------------------------------------------- strength


def cat_picture() -> Pictures:
    """Return the painted pink cat, (1, 3, 64, 64)."""
    return to_float(torch.from_numpy(draw(CAT, 64)).permute(2, 0, 1)[None])


@lru_cache(maxsize=32)
def strength_result(strength: float) -> tuple[bool, bool, float]:
    """Redraw the cat with this strength; return whether a dog is seen, whether it is white, and the PSNR in dB."""
    picture = cat_picture()
    redrawn = load_pipeline().redraw(
        picture, [STRENGTH_SENTENCE], [STRENGTH_SEED], strength=strength, num_steps=STRENGTH_STEPS
    )
    thing = seen_thing(read_pictures(load_judge(), redrawn)[0], "dog")
    level = background_psnr(picture, redrawn, outside([each.box for each in CAT.objects], 64))
    return thing is not None, thing is not None and thing.color == "white", level


def judge_strength(answer: Any) -> Verdict:
    """Judge a strength: the redrawn picture shows a white dog, and the background is kept."""
    try:
        strength = round(float(answer), 4)
    except (TypeError, ValueError, RuntimeError):
        return look_again("the answer is one number: the strength, such as 0.5")
    if not 0 <= strength <= 1:
        return look_again("the strength is a share of the steps: 0 (keep) to 1 (forget)")
    seen, white, level = strength_result(strength)
    if not seen:
        return look_again("the judge sees no dog: too much of the cat is left in the noisy latents. Take more")
    if not white:
        return look_again("the judge sees a dog, and it is not white yet; take a little more")
    if level < STRENGTH_DB:
        return look_again(f"there is a white dog, and the background keeps {level:.0f} dB only: take less")
    return passed(f"a white dog, and the background keeps {level:.0f} dB")


def as_numbers(result: Any) -> Tensor | None:
    """Return a result as float numbers, None where it is none."""
    try:
        made = torch.as_tensor(result)
        return None if made.dtype == torch.bool or made.is_complex() else made.detach().float()
    except (TypeError, ValueError, RuntimeError):
        return None


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape and, up to rounding, the same numbers."""
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-4)
