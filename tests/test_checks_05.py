"""The exercises of lesson 05: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.lessons import lesson_05_judges as judges
from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.weights.shipped import shipped_folder

needs_weights = pytest.mark.skipif(
    not (shipped_folder().exists() and shipped_folder("lesson_05").exists()), reason="the shipped weights are not there"
)


@pytest.fixture(autouse=True)
def judge_with_made_up_eyes(monkeypatch):
    """Little training is enough up to t = 300, much up to t = 700; the real counts are tested on their own."""
    monkeypatch.setattr(judges, "looks", lambda t: (60 if t <= 300 else 10, 60 if t <= 700 else 20))


def give(name, answer):
    return getattr(check.unet_denoiser, name)(answer)


# --- skip_channels

RIGHT = [96, 96, 96, 72, 72, 48]


@pytest.mark.parametrize(
    "answer", [RIGHT, tuple(RIGHT), np.array(RIGHT), torch.tensor(RIGHT), torch.tensor(RIGHT).float(), map(int, RIGHT)],
    ids=lambda answer: type(answer).__name__,
)  # fmt: skip
def test_skip_channels_right(answer):
    assert give("skip_channels", answer).state == PASS


def test_skip_channels_are_those_of_the_unet():
    unet = judges.kit.UNet(judges.kit.CONFIG)
    assert [block.conv1.in_channels for level in unet.up for block in level.res_blocks] == RIGHT


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ([48, 48, 48, 48, 48, 24], "from below"),
        ([48, 48, 48, 24, 24, 24], "skips alone"),
        ([48, 48, 48, 48, 24, 24], "comes out"),
        (RIGHT[::-1], "from fine to coarse"),
        ([72, 72, 72, 96, 96, 72], "from the front"),
        ([96, 96, 96, 96, 48, 48], "as wide as its level"),
        ([96, 72, 48], "one per level"),
        ([96] * 5, "5 numbers"),
        ([96, 96, 96, 72, 72, 72], "block number 5"),
        (96, "a list of six"),
    ],
)
def test_skip_channels_slips(answer, diagnosis):
    verdict = give("skip_channels", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


# --- time_wave


def wave_in_a_loop(t, dim):
    return [
        [trig(float(each) * 10000 ** (-2 * k / dim)) for trig in (math.cos, math.sin) for k in range(dim // 2)]
        for each in t
    ]


def angles(t, dim, base=10000.0):
    return t.double()[:, None] * base ** (-torch.arange(dim // 2) / (dim // 2))


def both(a):
    return torch.cat([a.cos(), a.sin()], dim=1)


WAVE_RIGHT = {
    "loop": wave_in_a_loop,
    "numpy": lambda t, d: np.concatenate([np.cos(angles(t, d).numpy()), np.sin(angles(t, d).numpy())], axis=1),
    "float64": lambda t, d: both(angles(t, d)),
    "complex": lambda t, d: torch.view_as_real(torch.polar(torch.ones(()).double(), angles(t, d))).mT.flatten(1),
    "package": judges.timestep_embedding,
}
WAVE_SLIPS = {
    "wrong way round": lambda t, d: both(angles(t, d)).roll(d // 2, dims=1),
    "take turns": lambda t, d: torch.stack([angles(t, d).cos(), angles(t, d).sin()], dim=2).flatten(1),
    "half - 1": lambda t, d: both(t[:, None] * 10000 ** (-torch.arange(d // 2) / (d // 2 - 1))),
    "d / 2": lambda t, d: both(t[:, None] * 10000 ** (-torch.arange(d // 2) / d)),
    "minus": lambda t, d: both(t.double()[:, None] * 10000 ** (torch.arange(d // 2).double() / (d // 2))),
    "2 pi": lambda t, d: both(2 * math.pi * angles(t, d)),
    "by 1000": lambda t, d: both(angles(t, d) / 1000),
    "second half is cosine": lambda t, d: torch.cat([angles(t, d).cos()] * 2, dim=1),
    "angles": lambda t, d: angles(t, d).repeat(1, 2),
    "on its side": lambda t, d: both(angles(t, d)).T,
    "shape (5, 4)": lambda t, d: angles(t, d).cos() if d == 8 else both(angles(t, d)),
    "at t = ": lambda t, d: both(angles(t, d)) * 0.5,
    "changes the t": lambda t, d: both(angles(t.add_(1), d)),
    "not numbers": lambda t, d: both(angles(t, d)) * math.nan,
}


@pytest.mark.parametrize("style", WAVE_RIGHT)
def test_time_wave_right(style):
    assert give("time_wave", WAVE_RIGHT[style]).state == PASS


@pytest.mark.parametrize("diagnosis", WAVE_SLIPS)
def test_time_wave_slips(diagnosis):
    verdict = give("time_wave", WAVE_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- res_block


def by_functions(block, x, t_emb):
    def norm(layer, value):
        return F.group_norm(value, layer.num_groups, layer.weight, layer.bias, layer.eps)

    h = F.conv2d(F.silu(norm(block.norm1, x)), block.conv1.weight, block.conv1.bias, padding=1)
    h += F.linear(t_emb * t_emb.sigmoid(), block.time_proj.weight, block.time_proj.bias).unsqueeze(-1).unsqueeze(-1)
    return F.conv2d(F.silu(norm(block.norm2, h)), block.conv2.weight, block.conv2.bias, padding=1) + block.shortcut(x)


def in_sequence(block, x, t_emb):
    h = nn.Sequential(block.norm1, nn.SiLU(), block.conv1)(x)
    h = h + nn.Sequential(nn.SiLU(), block.time_proj)(t_emb).view(len(x), -1, 1, 1)
    return nn.Sequential(block.norm2, nn.SiLU(), block.conv2)(h) + block.shortcut(x)


def block_like(x, first=F.silu, second=F.silu, time=F.silu):
    def run(block, x, t_emb):
        h = block.conv1(first(block.norm1(x))) + block.time_proj(time(t_emb))[:, :, None, None]
        return block.conv2(second(block.norm2(h))) + block.shortcut(x)

    return run


def same(value):
    return value


def late_time(block, x, t_emb):
    h = block.norm2(block.conv1(F.silu(block.norm1(x)))) + block.time_proj(F.silu(t_emb))[:, :, None, None]
    return block.conv2(F.silu(h)) + block.shortcut(x)


BLOCK_RIGHT = {
    "functions": by_functions,
    "sequence": in_sequence,
    "the block itself": lambda b, x, t: b(x, t),
    "numpy": lambda b, x, t: in_sequence(b, x, t).numpy(),
}
BLOCK_SLIPS = {
    "never hears of the time": lambda b, x, t: b(x, None),
    "without its SiLU": block_like(None, time=same),
    "after the second norm": late_time,
    "at the very end": lambda b, x, t: b(x, None) + b.time_proj(F.silu(t))[:, :, None, None],
    "input is missing": lambda b, x, t: b(x, t) - b.shortcut(x),
    "between norm1 and conv1": block_like(None, first=same),
    "between norm2 and conv2": block_like(None, second=same),
    "do not fit": lambda b, x, t: b.conv1(F.silu(b.norm1(x))) + b.time_proj(F.silu(t)),
    "has the shape": lambda b, x, t: b(x, t)[:1],
    "the numbers are not": lambda b, x, t: 2 * b(x, t),
    "changes what it was given": lambda b, x, t: b(x.mul_(1.5), t),
}


@pytest.mark.parametrize("style", BLOCK_RIGHT)
def test_res_block_right(style):
    assert give("res_block", BLOCK_RIGHT[style]).state == PASS


@pytest.mark.parametrize("diagnosis", BLOCK_SLIPS)
def test_res_block_slips(diagnosis):
    verdict = give("res_block", BLOCK_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


def test_res_block_without_the_shortcuts_convolution():
    verdict = give("res_block", lambda b, x, t: b(x, t) - b.shortcut(x) + x)
    assert verdict.state == LOOK_AGAIN and "block.shortcut" in verdict.message


# --- ema


def mean(keep):
    def rule(average, current, n, decay=0.999):
        k = keep(n, decay)
        return [k * old + (1 - k) * new for old, new in zip(average, current, strict=True)]

    return rule


def ramp(n):
    return (1 + n) / (10 + n)


def in_place(average, current, n, decay=0.999):
    for old, new in zip(average, current, strict=True):
        old.lerp_(new, 1 - min(decay, ramp(n)))
    return average


EMA_RIGHT = {
    "plain": mean(lambda n, d: min(d, ramp(n))),
    "in place": in_place,
    "tuple": lambda a, c, n, d: tuple(mean(lambda n, d: min(d, ramp(n)))(a, c, n, d)),
    "torch": lambda a, c, n, d: torch._foreach_lerp(a, c, 1 - min(d, ramp(n))),
}
EMA_SLIPS = {
    "both faults": mean(lambda n, d: 1 - max(d, ramp(n))),
    "share of the *old*": mean(lambda n, d: 1 - min(d, ramp(n))),
    "hardly moves": mean(lambda n, d: max(d, ramp(n))),
    "without the warm-up": mean(lambda n, d: d),
    "no upper end": mean(lambda n, d: ramp(n)),
    "one too small": mean(lambda n, d: min(d, n / (9 + n))),
    "hand the new weights on": lambda a, c, n, d: c,
    "never moves": lambda a, c, n, d: a,
    "one too large": mean(lambda n, d: min(d, ramp(n + 1))),
    "no other is heard": mean(lambda n, d: min(0.999, ramp(n))),
    "at n = 20000 with decay 0.999 an average of 1 that meets a 2 should become 1.001, yours is 1.500": mean(
        lambda n, d: 0.5
    ),
    "yours is nan": mean(lambda n, d: math.nan),
    "as many averages": lambda a, c, n, d: a[:1],
    "the shape of what": lambda a, c, n, d: [each.flatten()[:1] for each in a],
    "changes the current": lambda a, c, n, d: [each.zero_() for each in c],
}


@pytest.mark.parametrize("style", EMA_RIGHT)
def test_ema_right(style):
    assert give("ema", EMA_RIGHT[style]).state == PASS


@pytest.mark.parametrize("diagnosis", EMA_SLIPS)
def test_ema_slips(diagnosis):
    verdict = give("ema", EMA_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- worth_training


@pytest.mark.parametrize("answer", [500, 500.0, np.int64(600), torch.tensor(700), "400"], ids=repr)
def test_worth_training_right(answer):
    assert give("worth_training", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [(100, "larger t"), (300, "larger t"), (800, "smaller t"), (999, "smaller t"), (1000, "0 to 999"), (4.5, "whole")],
)
def test_worth_training_slips(answer, diagnosis):
    verdict = give("worth_training", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


@needs_weights
@pytest.mark.slow
def test_the_real_counts_leave_room_for_a_right_answer(monkeypatch):
    monkeypatch.undo()
    judges.looks.cache_clear()
    early, right, late = (judges.looks(t) for t in (100, 600, 950))
    assert early[0] > judges.FEW and right[0] <= judges.FEW and right[1] >= judges.MANY and late[1] < judges.MANY
    assert give("worth_training", 600).state == PASS
