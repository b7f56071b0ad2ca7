"""The exercises of lesson 12: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math

import numpy as np
import pytest
import torch

from ldm_tutor.lessons import lesson_12_judges as judges
from ldm_tutor.lessons import lesson_12_kit as kit
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.lessons.lesson_12 import EXERCISES
from ldm_tutor.weights.names import UNET_DIFFUSERS
from ldm_tutor.widgets import budget as budget_module

MINE = {each.name: each for each in EXERCISES}
FUNCTIONS = ("transformer_size", "their_name", "time_wave")


def give(name, answer):
    return MINE[name].check(answer)


# --- all of them


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "result",
    [
        "text", object(), math.nan, torch.full((4, 32), math.nan), torch.zeros(4, 32, dtype=torch.long),
        torch.zeros(1), -1, {}, [1.0], np.zeros((4, 32)), 10**400,
    ],
    ids=lambda result: type(result).__name__,
)  # fmt: skip
def test_no_result_raises(name, result):
    assert give(name, lambda *given: result).state == LOOK_AGAIN


# --- training_memory


@pytest.mark.parametrize("answer", [17.2, 17.19, np.float32(17.19), torch.tensor(17.2), "17.2", 20 * 0.859520964])
def test_training_memory_right(answer):
    assert give("training_memory", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (16.0, "GiB"),
        (3.44, "weights alone"),
        (6.88, "weights and gradients"),
        (10.3, "three numbers"),
        (13.75, "one is missing"),
        (8.6, "2 bytes"),
        (21.3, "whole model"),
        (20.6, "six numbers"),
        (4.3, "each takes 4 bytes"),
        (20 * 859_520_964, "divide by 1e9"),
        (100, "how many bytes"),
        ([1, 2], "one number"),
    ],
)
def test_training_memory_slips(answer, diagnosis):
    verdict = give("training_memory", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


# --- transformer_size


def size(c, m, *, qkv_bias=0, context=None, q=None, gate=2, back=4, norms=4, norm=2, convs=2, kernel=1, ff_bias=1):
    context = m if context is None else context
    total = norms * norm * c + convs * (kernel**2 * c * c + c)
    total += 4 * c * c + c + (c if q is None else q) * c + 2 * context * c + c * c + c + 3 * qkv_bias * c
    return total + 4 * gate * c * c + back * c * c + ff_bias * (4 * gate * c + c)


SIZE_RIGHT = {
    "by hand": lambda c, m: size(c, m),
    "expanded": lambda c, m: 20 * c * c + 2 * m * c + 21 * c,
    "a float": lambda c, m: 20.0 * c**2 + 2 * m * c + 21 * c,
    "a tensor": lambda c, m: torch.tensor(20 * c * c + 2 * m * c + 21 * c, dtype=torch.long),
}
SIZE_WRONG = {
    "both attentions": lambda c, m: size(c, m, qkv_bias=2),
    "one of the attentions": lambda c, m: size(c, m, qkv_bias=1),
    "not c x c": lambda c, m: size(c, m, context=c),
    "Q of the cross-attention": lambda c, m: size(c, m, q=m),
    "the gate is missing": lambda c, m: size(c, m, gate=1),
    "has been used up": lambda c, m: size(c, m, back=8),
    "the norms are missing": lambda c, m: size(c, m, norms=0),
    "inside the block": lambda c, m: size(c, m, norms=1),
    "a scale and a shift": lambda c, m: size(c, m, norm=1),
    "a norm is missing": lambda c, m: size(c, m, norms=3),
    "the two 1 x 1": lambda c, m: size(c, m, convs=0),
    "biases of the feed-forward": lambda c, m: size(c, m, ff_bias=0),
    "a c x c matrix": lambda c, m: size(c, m, convs=1),
    "not 3 x 3": lambda c, m: size(c, m, kernel=3),
    "not one of them": lambda c, m: size(c, m) + c * c - c * m,
    "too many, 5 times c": lambda c, m: size(c, m) + 5 * c,
    "too few": lambda c, m: 0,
}


@pytest.mark.parametrize("way", SIZE_RIGHT)
def test_transformer_size_right(way):
    assert give("transformer_size", SIZE_RIGHT[way]).state == PASS


@pytest.mark.parametrize("diagnosis", SIZE_WRONG)
def test_transformer_size_slips(diagnosis):
    verdict = give("transformer_size", SIZE_WRONG[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- their_name

PIECES = [
    ("down.", "down_blocks."), ("up.", "up_blocks."), ("mid.", "mid_block."), ("time_mlp.", "time_embedding."),
    ("norm_out.", "conv_norm_out."), ("res_blocks.", "resnets."), ("time_proj.", "time_emb_proj."),
    ("shortcut.", "conv_shortcut."), ("transformers.", "attentions."), (".blocks.", ".transformer_blocks."),
    ("self_attn.", "attn1."), ("cross_attn.", "attn2."), (".to_out.", ".to_out.0."),
    ("feed_forward.proj_in.", "ff.net.0.proj."), ("feed_forward.proj_out.", "ff.net.2."),
    ("downsample.", "downsamplers.0."), ("upsample.", "upsamplers.0."),
]  # fmt: skip


def by_pieces(name, pieces=PIECES):
    words = name.split(".")
    table = {ours.strip("."): theirs.strip(".") for ours, theirs in pieces if "feed" not in ours}
    table = {word: new for word, new in table.items() if word != "feed_forward"}
    done = ".".join(table.get(word, word) for word in words)
    for ours, theirs in pieces:
        if "feed" in ours:
            done = done.replace(ours, theirs)
    return done


def without(piece):
    return lambda name: by_pieces(name, [pair for pair in PIECES if piece not in pair[0]])


NAME_RIGHT = {"the package": UNET_DIFFUSERS.to_foreign, "words in a table": by_pieces}
NAME_WRONG = {
    "come back as they were": lambda name: name,
    "transformer_blocks there": without(".blocks"),
    "ff.net.0.proj": without("feed_forward"),
    "a dropout without numbers": without("to_out"),
    "attn1": without("self_attn"),
    "cross_attn is attn2": without("cross_attn"),
    "downsamplers.0": without("downsample"),
    "upsamplers.0": without("upsample"),
    "resnets there": without("res_blocks"),
    "time_emb_proj there": without("time_proj"),
    "conv_shortcut there": without("shortcut"),
    "attentions there": without("transformers"),
    "time_embedding there": without("time_mlp"),
    "conv_norm_out there": without("norm_out"),
    "mid_block there": without("mid."),
    "down_blocks.0": without("down."),
    "come out twice": lambda name: by_pieces(name).replace("attn2", "attn1"),
    "686 of 686": lambda name: "conv_in.weight",
}


@pytest.mark.parametrize("way", NAME_RIGHT)
def test_their_name_right(way):
    assert give("their_name", NAME_RIGHT[way]).state == PASS


@pytest.mark.parametrize("diagnosis", NAME_WRONG)
def test_their_name_slips(diagnosis):
    verdict = give("their_name", NAME_WRONG[diagnosis])
    if diagnosis == "686 of 686":
        diagnosis = "685 of 686"  # one of them is called so
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- time_wave


def wave(t, dim, steps=None, base=10000.0, sign=-1.0, order=("cos", "sin"), factor=1.0):
    half = dim // 2
    freqs = torch.exp(sign * math.log(base) * torch.arange(half) / (half if steps is None else steps(half)))
    angles = factor * t.float()[:, None] * freqs
    return torch.cat([getattr(angles, name)() for name in order], dim=-1)


def alternating(t, dim):
    halves = wave(t, dim).chunk(2, dim=-1)
    return torch.stack(halves, dim=-1).flatten(1)


WAVE_RIGHT = {
    "powers": lambda t, dim: torch.cat(
        [f(t[:, None] / 10000 ** (torch.arange(dim // 2) / (dim // 2))) for f in (torch.cos, torch.sin)], dim=1
    ),
    "outer, shifted": lambda t, dim: torch.sin(
        torch.outer(t.double(), 1e4 ** -(torch.arange(dim) % (dim // 2) / (dim // 2)).double())
        + math.pi / 2 * (torch.arange(dim) < dim // 2)
    ),
    "numpy": lambda t, dim: wave(t, dim).numpy(),
}
WAVE_WRONG = {
    "nothing has changed": lambda t, dim: wave(t, dim, steps=lambda half: half - 1, order=("sin", "cos")),
    "the cosines come first": lambda t, dim: wave(t, dim, order=("sin", "cos")),
    "the order is right": lambda t, dim: wave(t, dim, steps=lambda half: half - 1),
    "alternate": alternating,
    "both halves are cosines": lambda t, dim: wave(t, dim, order=("cos", "cos")),
    "both halves are sines": lambda t, dim: wave(t, dim, order=("sin", "sin")),
    "divide k by dim": lambda t, dim: wave(t, dim, steps=lambda half: 2 * half),
    "half + 1": lambda t, dim: wave(t, dim, steps=lambda half: half + 1),
    "frequencies rise": lambda t, dim: wave(t, dim, sign=1.0),
    "divide t by 1000": lambda t, dim: wave(t, dim, factor=0.001),
    "no 2 pi": lambda t, dim: wave(t, dim, factor=2 * math.pi),
    "those are the angles": lambda t, dim: wave(t, dim, order=("float", "float")),
    "look at t = 0": lambda t, dim: wave(t, dim, base=1000.0),
    "expected (4, 32)": lambda t, dim: wave(t, dim // 2),
}


@pytest.mark.parametrize("way", WAVE_RIGHT)
def test_time_wave_right(way):
    assert give("time_wave", WAVE_RIGHT[way]).state == PASS


@pytest.mark.parametrize("diagnosis", WAVE_WRONG)
def test_time_wave_slips(diagnosis):
    verdict = give("time_wave", WAVE_WRONG[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- culprit


@pytest.mark.parametrize("answer", [kit.CULPRIT, f"{kit.CULPRIT}.blocks.0", f"{kit.CULPRIT}.blocks.0.norm2"])
def test_culprit_right(answer):
    assert give("culprit", answer).state == PASS


def test_culprit_slips():
    ladder = judges._mystery_ladder()
    largest = max(ladder, key=ladder.get)
    between = next(name for name, value in ladder.items() if value > 1e-5 and name not in (kit.CULPRIT, largest))
    cases = {
        largest: "has inherited it",
        between: "an earlier block does too",
        "conv_out": "the end of the network" if largest != "conv_out" else "has inherited it",
        "down.0.res_blocks.0": "innocent",
        "up_blocks.1.attentions.1": "in the other library",
        "up": "no block of this name",
        7: "a string",
    }
    for answer, diagnosis in cases.items():
        verdict = give("culprit", answer)
        assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


def test_the_guilty_block_is_not_the_one_that_differs_most():
    ladder = judges._mystery_ladder()
    assert kit.first_above(ladder, 1e-5) == kit.CULPRIT != max(ladder, key=ladder.get)
    assert all(
        value == 0 for name, value in ladder.items() if list(ladder).index(name) < list(ladder).index(kit.CULPRIT)
    )


# --- largest_picture


@pytest.fixture
def made_up_budget(monkeypatch):
    monkeypatch.setattr(judges, "peak_bytes", lambda side: 4.3e9 + 0.8e9 * (side / 512) ** 2)


@pytest.mark.parametrize("answer", [1088, 1088.0, np.int64(1088), torch.tensor(1088), "1088"])
def test_largest_picture_right(answer, made_up_budget):
    assert give("largest_picture", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (512, "and so does 576"),
        (1152, "within 8 GiB"),
        (1216, "grow with the area"),
        (1100, "divide by 64: 1088"),
        (8, "a side in pixels"),
        ((1088, 1088), "one number"),
    ],
)
def test_largest_picture_slips(answer, diagnosis, made_up_budget):
    verdict = give("largest_picture", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


def test_the_real_peak_is_the_budget(monkeypatch):
    asked = []
    monkeypatch.setattr(judges, "budget", lambda *given: asked.append(given) or budget_module.budget("scenes"))
    judges.peak_bytes.cache_clear()
    try:
        assert judges.peak_bytes(768) == budget_module.budget("scenes").peak_bytes
    finally:
        judges.peak_bytes.cache_clear()
    assert asked == [("SD v1", "float32", 768, 768)]


# --- the kit


@pytest.mark.parametrize("fault", kit.FAULTS)
def test_every_fault_changes_the_model_and_not_its_weights(fault):
    _, model, inputs = kit.mystery()
    broken = kit.plant(model, fault)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), broken.parameters(), strict=True))
    with torch.no_grad():
        assert not torch.equal(model(*inputs), broken(*inputs))


def test_borrowed_weights_are_one_piece_of_memory():
    from ldm_tutor.models.unet import UNet

    _, model, inputs = kit.mystery()
    with torch.device("meta"):
        empty = UNet(model.config)
    num_bytes = kit.borrow(empty)
    storages = {value.untyped_storage().data_ptr() for value in empty.parameters() if value.ndim > 1}
    assert len(storages) == 1 and num_bytes == 4 * max(value.numel() for value in empty.parameters())
    with torch.no_grad():
        assert bool(empty(*inputs).isfinite().all())


def test_memory_is_measured():
    with kit.peak_memory() as risen:
        block = torch.ones(30_000_000)
        block += 1
    assert 60e6 < risen["bytes"] < 400e6
    assert kit.matmul_rate(side=128, rounds=2) > 1e6
