"""The exercises of lesson 10: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldm_tutor.lessons import lesson_10_judges as judges
from ldm_tutor.lessons.exercises import LOOK_AGAIN, NOT_DONE, PASS
from ldm_tutor.lessons.lesson_10 import EXERCISES
from ldm_tutor.weights.shipped import shipped_folder

MINE = {each.name: each for each in EXERCISES}
FUNCTIONS = ("box_tokens", "widen", "stack", "dropped")
REAL_RESULT = judges.strength_result
needs_weights = pytest.mark.skipif(not shipped_folder().exists(), reason="the shipped weights are not there")


def made_up(strength):
    """No drawing: a dog from 0.55 on, white from 0.65 on, and the background falls."""
    return strength > 0.55, strength > 0.65, 45 - 22 * strength


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    monkeypatch.setattr(judges, "strength_result", made_up)


def give(name, answer):
    return MINE[name].check(answer)


def check_slip(name, answer, diagnosis):
    verdict = give(name, answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- all of them


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_are_not_written_return_nothing_or_rubbish(name):
    def unwritten(*arguments):
        raise NotImplementedError

    assert give(name, unwritten).state == NOT_DONE
    assert give(name, lambda *arguments: None).state == NOT_DONE
    for rubbish in ("text", object(), {}, [["a"]], torch.tensor(math.nan), torch.zeros(3), torch.zeros(3).long(), True):
        verdict = give(name, lambda *arguments, rubbish=rubbish: rubbish)
        assert verdict.state == LOOK_AGAIN, (rubbish, verdict)


# --- channels


@pytest.mark.parametrize("answer", [(17, 15552), [17.0, 15_552.0], torch.tensor([17, 15552]), ("17", "15552")])
def test_channels_right(answer):
    assert give("channels", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((16, 15552), "mask is missing"),
        ((9, 15552), "Stable Diffusion's, whose latents have 4"),
        ((12, 15552), "does not come in as pixels"),
        ((19, 15552), "not one per colour"),
        ((24, 15552), "not one per latent channel"),
        ((8, 15552), "noisy latents alone"),
        ((3, 15552), "noisy latents, mask"),
        ((17, 29376), "whole first convolution"),
        ((17, 1728), "3 x 3 kernel has 9 weights"),
        ((17, 3264), "3 x 3 kernel has 9 weights"),
        ((17, 15744), "adds none"),
        ((17, 13824), "9 channels are new"),
        ((17, 8640), "5 new channels"),
        ((17, 1), "each new one meets"),
        (17, "two numbers"),
        ((17, math.inf), "each new one meets"),
    ],
)
def test_channels_slips(answer, diagnosis):
    check_slip("channels", answer, diagnosis)


# --- box_tokens


def by_divmod(kind, box, side):
    scaled = torch.tensor(box, dtype=torch.float64).mul(side - 1).round().long()
    return torch.cat([torch.tensor([kind]), scaled[[1, 3]] * side + scaled[[0, 2]]])


def by_numpy(kind, box, side):
    columns, rows = np.rint(np.array(box).reshape(2, 2) * (side - 1)).T.astype(int)
    return np.array([kind, *np.ravel_multi_index((rows, columns), (side, side))])


def by_search(kind, box, side):
    places = [k / (side - 1) for k in range(side)]
    nearest = [min(range(side), key=lambda k, value=value: abs(places[k] - value)) for value in box]
    return kind, nearest[1] * side + nearest[0], nearest[3] * side + nearest[2]


@pytest.mark.parametrize("way", [by_divmod, by_numpy, by_search], ids=lambda way: way.__name__)
def test_box_tokens_right(way):
    assert give("box_tokens", way).state == PASS


def at(x, y, side):
    return round(y * (side - 1)) * side + round(x * (side - 1))


def corners(place):
    return lambda kind, b, side: [kind, place(b[0], b[1], side), place(b[2], b[3], side)]


BOX_WRONG = {
    "x and y are exchanged": corners(lambda x, y, side: at(y, x, side)),
    "corners are exchanged": lambda kind, b, side: [kind, at(b[2], b[3], side), at(b[0], b[1], side)],
    "width and height": lambda kind, b, side: [kind, at(b[0], b[1], side), at(b[2] - b[0], b[3] - b[1], side)],
    "bottom-left": lambda kind, b, side: [kind, at(b[0], b[3], side), at(b[2], b[1], side)],
    "class comes first": lambda kind, b, side: [at(b[0], b[1], side), at(b[2], b[3], side), kind],
    "multiply by side - 1": corners(lambda x, y, side: round(y * side) * side + round(x * side)),
    "the cell": corners(lambda x, y, side: min(side - 1, int(y * side)) * side + min(side - 1, int(x * side))),
    "int cuts off": corners(lambda x, y, side: int(y * (side - 1)) * side + int(x * (side - 1))),
    "not by side - 1": corners(lambda x, y, side: round(y * (side - 1)) * (side - 1) + round(x * (side - 1))),
    "the same number": corners(lambda x, y, side: round(y * (side - 1)) + round(x * (side - 1))),
    "counted from 0": lambda kind, b, side: [kind, at(b[0], b[1], side) + 1, at(b[2], b[3], side) + 1],
    "first token is the class": lambda kind, b, side: [kind + 1, at(b[0], b[1], side), at(b[2], b[3], side)],
    "2 tokens; a box has three": lambda kind, b, side: [at(b[0], b[1], side), at(b[2], b[3], side)],
    "three whole numbers": lambda kind, b, side: 3,
    "the tokens are": lambda kind, b, side: [kind, 0, 1],
}


@pytest.mark.parametrize("diagnosis", BOX_WRONG)
def test_box_tokens_slips(diagnosis):
    check_slip("box_tokens", BOX_WRONG[diagnosis], diagnosis)


# --- widen


def zeros(weight, extra):
    return torch.zeros(weight.shape[0], extra, 3, 3)


def by_assignment(weight, extra):
    made = torch.zeros(weight.shape[0], weight.shape[1] + extra, 3, 3)
    made[:, : weight.shape[1]] = weight
    return made


def by_padding(weight, extra):
    return F.pad(weight, (0, 0, 0, 0, 0, extra))


def by_arrays(weight, extra):
    return np.concatenate([weight.numpy(), np.zeros((len(weight), extra, 3, 3))], axis=1)


@pytest.mark.parametrize("way", [by_assignment, by_padding, by_arrays], ids=lambda way: way.__name__)
def test_widen_right(way):
    assert give("widen", way).state == PASS


def in_place(weight, extra):
    made = torch.cat([weight, zeros(weight, extra)], dim=1)
    weight.zero_()
    return made


def shared_out(weight, extra):
    share = weight[:, :1] / (extra + 1)
    return torch.cat([share, weight[:, 1:], share.expand(-1, extra, -1, -1)], dim=1)


WIDEN_WRONG = {
    "stand in front": lambda w, extra: torch.cat([zeros(w, extra), w], dim=1),
    "everything is zero": lambda w, extra: torch.zeros(len(w), w.shape[1] + extra, 3, 3),
    "added outputs": lambda w, extra: torch.cat([w, w.new_zeros(extra, *w.shape[1:])], dim=0),
    "share the old weights out": shared_out,
    "no longer computes": lambda w, extra: torch.cat([0.5 * w, zeros(w, extra)], dim=1),
    "copy of the old": lambda w, extra: torch.cat([w, w, w], dim=1)[:, : w.shape[1] + extra],
    "new ones have to be zero": lambda w, extra: torch.cat([w, 0.02 * torch.randn(len(w), extra, 3, 3)], dim=1),
    "not numbers": lambda w, extra: torch.cat([w, zeros(w, extra) * math.nan], dim=1),
    "has changed": in_place,
    "has the shape": lambda w, extra: w,
}


@pytest.mark.parametrize("diagnosis", WIDEN_WRONG)
def test_widen_slips(diagnosis):
    check_slip("widen", WIDEN_WRONG[diagnosis], diagnosis)


# --- stack


def stack(noisy, picture, mask, encode, scale, *, hole=False, signed=False, swapped=False, plain=False):
    small = F.interpolate(mask, size=noisy.shape[-2:], mode="nearest")
    masked = encode(picture * (mask if hole else 1 - mask)) * (1 if plain else scale)
    small = 2 * small - 1 if signed else small
    return torch.cat([noisy, masked, small] if swapped else [noisy, small, masked], dim=1)


def stack_where(noisy, picture, mask, encode, scale):
    hidden = torch.where(mask > 0.5, torch.zeros_like(picture), picture)
    made = noisy.new_zeros(len(noisy), 9, *noisy.shape[2:])
    made[:, :4], made[:, 4:5], made[:, 5:] = noisy, mask[:, :, ::8, ::8], encode(hidden).mul(scale)
    return made


def stack_fill(noisy, picture, mask, encode, scale):
    hidden = picture.clone().masked_fill_(mask.bool(), 0)
    return torch.cat([noisy, F.interpolate(mask, scale_factor=1 / 8), encode(hidden) * scale], 1)


@pytest.mark.parametrize("way", [stack, stack_where, stack_fill], ids=lambda way: way.__name__)
def test_stack_right(way):
    assert give("stack", way).state == PASS


def with_faults(**faults):
    return lambda *given: stack(*given, **faults)


def changed_mask(noisy, picture, mask, encode, scale):
    made = stack(noisy, picture, mask, encode, scale)
    mask.neg_()
    return made


def masked_latents(noisy, picture, mask, encode, scale):
    small = mask[..., ::8, ::8]
    return torch.cat([noisy, small, scale * encode(picture) * (1 - small)], dim=1)


def nothing_masked(noisy, picture, mask, encode, scale):
    return torch.cat([noisy, mask[..., ::8, ::8], scale * encode(picture)], dim=1)


STACK_WRONG = {
    "4 faults are left": with_faults(hole=True, signed=True, swapped=True, plain=True),
    "3 faults are left": with_faults(hole=True, signed=True, plain=True),
    "2 faults are left": with_faults(swapped=True, plain=True),
    "one fault is left: the picture keeps the hole": with_faults(hole=True),
    "one fault is left: Stable Diffusion's mask is 0 and 1": with_faults(signed=True),
    "one fault is left: the mask stands behind": with_faults(swapped=True),
    "one fault is left: the masked picture's latents": with_faults(plain=True),
    "show what is in the hole": nothing_masked,
    "mask the picture before the encoder": masked_latents,
    "noisy latents come first": lambda n, p, m, e, s: stack(n, p, m, e, s).roll(4, dims=1),
    "mask channel is upside down": lambda n, p, m, e, s: torch.cat(
        [n, 1 - m[..., ::8, ::8], s * e(p * (1 - m))], dim=1
    ),
    "all but one thing is right": lambda n, p, m, e, s: torch.cat(
        [n, F.max_pool2d(m, 8), s * e(p * (1 - m))], dim=1
    ),
    "the order is": lambda n, p, m, e, s: torch.cat([n, m[..., ::8, ::8], 3 * s * e(p * (1 - m))], dim=1),
    "has changed": changed_mask,
    "have the shape": lambda n, p, m, e, s: n,
}


@pytest.mark.parametrize("diagnosis", STACK_WRONG)
def test_stack_slips(diagnosis):
    check_slip("stack", STACK_WRONG[diagnosis], diagnosis)


# --- dropped


def two_calls(unet, latents, t, given, dropped, scale):
    a, b = (unet(torch.cat([latents, each[1]], dim=1), t, each[0]) for each in (given, dropped))
    return scale * a + (1 - scale) * b


def one_batch(unet, latents, t, given, dropped, scale):
    context, channels = (torch.cat([without, with_it]) for without, with_it in zip(dropped, given, strict=True))
    x = torch.cat([torch.cat([latents, latents]), channels], dim=1)
    without, with_it = unet(x, torch.cat([t, t]), context).chunk(2)
    return torch.lerp(without, with_it, scale)


@pytest.mark.parametrize("way", [two_calls, one_batch], ids=lambda way: way.__name__)
def test_dropped_right(way):
    assert give("dropped", way).state == PASS


def mixed(pick_with, pick_without, start="without", scale_of=lambda scale: scale, ahead=False):
    def way(unet, latents, t, given, dropped, scale):
        def see(pick):
            context, channels = pick(given, dropped)
            x = [channels, latents] if ahead else [latents, channels]
            return unet(torch.cat(x, dim=1), t, context)

        with_it, without = see(pick_with), see(pick_without)
        return (without if start == "without" else 0) + scale_of(scale) * (with_it - without)

    return way


GIVEN, DROPPED = (lambda g, d: g), (lambda g, d: d)
DROPPED_WRONG = {
    "exchanged": mixed(DROPPED, GIVEN),
    "both halves have the given channels": mixed(GIVEN, lambda g, d: (d[0], g[1])),
    "both halves have the given context": mixed(GIVEN, lambda g, d: (g[0], d[1])),
    "given channels are not used": mixed(lambda g, d: (g[0], d[1]), DROPPED),
    "given context is not used": mixed(lambda g, d: (d[0], g[1]), DROPPED),
    "the scale is not used": mixed(GIVEN, DROPPED, scale_of=lambda scale: 1),
    "noise without the condition": mixed(GIVEN, DROPPED, scale_of=lambda scale: 0),
    "one length too far": mixed(GIVEN, DROPPED, scale_of=lambda scale: scale + 1),
    "the way starts there": mixed(GIVEN, DROPPED, start="nowhere"),
    "not an answer times the scale": lambda u, x, t, g, d, s: s * u(torch.cat([x, g[1]], 1), t, g[0]),
    "stand in front": mixed(GIVEN, DROPPED, ahead=True),
    "two halves of the batch together": lambda u, x, t, g, d, s: torch.cat([x, x]),
    "call the U-Net with each pair": mixed(GIVEN, DROPPED, scale_of=lambda scale: 0.5 * scale),
}


@pytest.mark.parametrize("diagnosis", DROPPED_WRONG)
def test_dropped_slips(diagnosis):
    check_slip("dropped", DROPPED_WRONG[diagnosis], diagnosis)


# --- strength


@pytest.mark.parametrize("answer", [0.7, "0.75", torch.tensor(0.8), np.float32(0.7)])
def test_strength_right(answer):
    assert give("strength", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (0.3, "sees no dog"),
        (0.6, "not white yet"),
        (0.95, "24 dB only"),
        (7, "share of the steps"),
        (-0.1, "share of the steps"),
        ((0.7, 0.8), "one number"),
        ("much", "one number"),
    ],
)
def test_strength_slips(answer, diagnosis):
    check_slip("strength", answer, diagnosis)


@needs_weights
@pytest.mark.slow
def test_the_shipped_model_agrees_with_the_solution():
    seen, white, level = REAL_RESULT(judges.STRENGTH_ANSWER)
    assert seen and white and level >= judges.STRENGTH_DB
    assert not REAL_RESULT(0.4)[0]
    assert REAL_RESULT(1.0)[2] < judges.STRENGTH_DB
