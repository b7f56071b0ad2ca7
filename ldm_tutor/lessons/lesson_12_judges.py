"""The judges of lesson 12: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ldm_tutor.config import sd_v1
from ldm_tutor.lessons import lesson_12_kit as kit
from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.blocks import SpatialTransformer
from ldm_tutor.nn.embeddings import timestep_embedding
from ldm_tutor.shapes import Tensor
from ldm_tutor.weights.names import UNET_DIFFUSERS
from ldm_tutor.widgets.budget import budget

# ---------------------------------------------------------------- training_memory

UNET_SIZE, MODEL_SIZE = 859_520_964, 1_066_235_307
_MEMORY_SLIPS = (
    (20 * UNET_SIZE / 2**30, "that is in GiB (2**30 bytes); a GB has 1e9 bytes"),
    (4 * UNET_SIZE / 1e9, "those are the weights alone; training keeps gradients, Adam's two means and the average"),
    (8 * UNET_SIZE / 1e9, "weights and gradients; Adam keeps two more numbers for each, and the average is a fifth"),
    (12 * UNET_SIZE / 1e9, "three numbers per parameter; there are five: count Adam's two, and the average"),
    (16 * UNET_SIZE / 1e9, "four numbers per parameter: one is missing. Adam has two means, and the average is a copy"),
    (10 * UNET_SIZE / 1e9, "those are five numbers of 2 bytes; in float32 each takes 4"),
    (20 * MODEL_SIZE / 1e9, "you counted the whole model; text encoder and autoencoder are not trained here"),
    (24 * UNET_SIZE / 1e9, "six numbers per parameter; there are five, since the moving average is one copy"),
    (5 * UNET_SIZE / 1e9, "five numbers per parameter, and each takes 4 bytes"),
)


def judge_training_memory(answer: Any) -> Verdict:
    """Judge the GB of weights, gradients, Adam's two means and the average: 5 x 4 bytes each, 17.2."""
    value = _number(answer)
    if value is None:
        return look_again("the answer is one number, in GB")
    right = 20 * UNET_SIZE / 1e9
    if abs(value - right) < 0.06:
        return passed(f"five numbers of 4 bytes for each parameter: {right:.2f} GB, before any picture is looked at")
    if abs(value / 1e9 - right) < 0.06:
        return look_again("the number of bytes is right; the answer is in GB, divide by 1e9")
    for slip, reason in _MEMORY_SLIPS:
        if abs(value - slip) < 0.06:
            return look_again(reason)
    return look_again("weight, gradient, Adam's two means, the average: how many bytes is that for each parameter?")


# ---------------------------------------------------------------- transformer_size

SIZES = ((32, 48), (64, 64), (320, 768), (96, 24))


@lru_cache(maxsize=8)
def _true_size(channels: int, context_dim: int) -> int:
    with torch.device("meta"):
        block = SpatialTransformer(channels, num_heads=1, context_dim=context_dim, depth=1, norm_groups=1)
    return sum(parameter.numel() for parameter in block.parameters())


_SIZE_SLIPS: tuple[tuple[Callable[[int, int], int], str], ...] = (  # what is too much, by (channels, context_dim)
    (lambda c, m: 6 * c, "you gave Q, K and V biases in both attentions; in the U-Net they have none"),
    (lambda c, m: 3 * c, "three biases too many: one of the attentions has biases on Q, K and V, which it should not"),
    (lambda c, m: 2 * c * (c - m), "K and V of the cross-attention read the context: context_dim x c, not c x c"),
    (lambda c, m: 2 * m * (m - c), "K and V of the cross-attention give c numbers: context_dim x c"),
    (lambda c, m: c * m - c * c, "Q of the cross-attention reads the picture: c x c; only K and V read the context"),
    (lambda c, m: c * (c - m), "both K and V of the cross-attention read the context, not one of them"),
    (lambda c, m: -4 * c * c - 4 * c, "the gate is missing: the first layer of the feed-forward gives 8 c numbers"),
    (lambda c, m: 4 * c * c, "the second layer of the feed-forward reads 4 c numbers: the gate has been used up"),
    (lambda c, m: -8 * c, "the norms are missing: four, with a scale and a shift for each channel"),
    (lambda c, m: -6 * c, "the three norms inside the block are missing"),
    (lambda c, m: -4 * c, "each norm has a scale and a shift for every channel: 2 c numbers"),
    (lambda c, m: -2 * c, "a norm is missing, or the biases of the two convolutions, or of the attentions' way out"),
    (lambda c, m: -2 * c * c - 2 * c, "the two 1 x 1 convolutions are missing"),
    (lambda c, m: -9 * c, "the biases of the feed-forward are missing: 8 c and c"),
    (lambda c, m: -c * c - c, "a c x c matrix with its bias is missing: a convolution, or the way out of an attention"),
    (lambda c, m: 16 * c * c, "the convolutions have a kernel of 1 x 1, not 3 x 3"),
)


def judge_transformer_size(my_count: Any) -> Verdict:
    """Judge a function (channels, context_dim) -> parameters of a SpatialTransformer of depth 1."""
    if not callable(my_count):
        return look_again("the answer is a function: my_count(channels, context_dim)")
    errors = []
    for channels, context_dim in SIZES:
        result = my_count(channels, context_dim)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the sum")
        value = _number(result)
        if value is None:
            return look_again(f"your function returns a {type(result).__name__}: return one whole number")
        errors.append(value - _true_size(channels, context_dim))
    if not any(errors):
        return passed(f"right for {len(SIZES)} sizes; at 320 channels it is {_true_size(320, 768):,}")
    for slip, reason in _SIZE_SLIPS:
        if errors == [slip(*size) for size in SIZES]:
            return look_again(reason)
    wrong = next(k for k, error in enumerate(errors) if error)
    (c, m), error = SIZES[wrong], errors[wrong]
    direction = "too many" if error > 0 else "too few"
    times = f", {abs(error) / c:g} times c" if abs(error) % c == 0 else ""
    return look_again(f"my_count({c}, {m}): {abs(error):,.0f} {direction}{times}; the class has {_true_size(c, m):,}")


# ---------------------------------------------------------------- their_name

_PIECES = {  # where the first wrong name has this piece, the reason
    "time_proj": "time_proj is time_emb_proj there",
    "shortcut": "shortcut is conv_shortcut there",
    "feed_forward": "feed_forward.proj_in and proj_out are ff.net.0.proj and ff.net.2 there",
    "to_out": "to_out is to_out.0 there: its second part is a dropout without numbers",
    "self_attn": "self_attn is attn1, cross_attn is attn2",
    "cross_attn": "self_attn is attn1, cross_attn is attn2",
    ".blocks.": "blocks is transformer_blocks there; take care not to meet res_blocks or down_blocks",
    "transformers": "transformers is attentions there",
    "downsample": "downsample is downsamplers.0 there: a list of one",
    "upsample": "upsample is upsamplers.0 there: a list of one",
    "res_blocks": "res_blocks is resnets there",
    "time_mlp": "time_mlp is time_embedding there",
    "norm_out": "norm_out is conv_norm_out there",
    "mid": "mid is mid_block there",
    "": "down.0 is down_blocks.0, up.0 is up_blocks.0; conv_in and conv_out stay",
}


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    with torch.device("meta"):
        return tuple(UNet(sd_v1().unet).state_dict())


def judge_their_name(my_name: Any) -> Verdict:
    """Judge a function our name -> diffusers' name, on every parameter of the SD v1 U-Net."""
    if not callable(my_name):
        return look_again("the answer is a function: my_name(name)")
    wrong: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for name in _names():
        result = my_name(name)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the new name")
        if not isinstance(result, str):
            return look_again(f"your function returns a {type(result).__name__}: return a string")
        if result != UNET_DIFFUSERS.to_foreign(name):
            wrong.append((name, result))
        seen.setdefault(result, name)
    if not wrong:
        return passed(f"all {len(_names())} names, each met once: a bijection")
    name, result = min(wrong, key=lambda pair: (_num_differences(*pair), len(pair[0])))
    told = f"{len(wrong)} of {len(_names())} are not right yet, such as {name}: you say {result!r}"
    if len(seen) < len(_names()):
        told += f" (and {len(_names()) - len(seen)} names come out twice)"
    if all(result == name for name, result in wrong):
        told = f"{len(wrong)} of {len(_names())} names come back as they were, such as {name}"
    reason = next(reason for piece, reason in _PIECES.items() if piece in name and _is_wrong(piece, name, result))
    return look_again(f"{told}: {reason}")


def _num_differences(name: str, result: str) -> int:
    """In how many pieces a wrong name differs from the right one: the nearest miss is the most telling."""
    right, given = (re.split(r"[.]", each) for each in (UNET_DIFFUSERS.to_foreign(name), result))
    return abs(len(right) - len(given)) + sum(a != b for a, b in zip(right, given, strict=False))


def _is_wrong(piece: str, name: str, result: str) -> bool:
    """Whether what this piece of our name becomes is missing in the answer."""
    becomes = {
        "time_proj": ".time_emb_proj.", "shortcut": ".conv_shortcut.", "to_out": ".to_out.0.",
        "self_attn": ".attn1.", "cross_attn": ".attn2.", ".blocks.": ".transformer_blocks.", "transformers":
        ".attentions.", "downsample": ".downsamplers.0.", "upsample": ".upsamplers.0.", "res_blocks": ".resnets.",
        "time_mlp": "time_embedding.", "norm_out": "conv_norm_out.", "mid": "mid_block.",
    }  # fmt: skip
    if piece == "feed_forward":
        return not re.search(r"\.ff\.net\.(0\.proj|2)\.(weight|bias)$", result)
    return piece == "" or becomes[piece] not in result


# ---------------------------------------------------------------- time_wave


def _wave(t: Tensor, half: int, steps: float, base: float = 10000.0) -> Tensor:
    freqs = torch.exp(-math.log(base) * torch.arange(half) / steps)
    return t.float()[:, None] * freqs


def judge_time_wave(my_wave: Any) -> Verdict:
    """Judge a function (t, dim) -> [cos | sin] at the frequencies of the LDM code."""
    if not callable(my_wave):
        return look_again("the answer is a function: my_wave(t, dim)")
    for dim, times in ((32, (0, 1, 400, 999)), (320, (3, 250)), (8, (7,))):
        t = torch.tensor(times)
        result = my_wave(t.clone(), dim)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the wave")
        got = _as_tensor(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        right = timestep_embedding(t, dim)
        if got.shape != right.shape:
            return look_again(f"the shape is {tuple(got.shape)}, expected {tuple(right.shape)}")
        if not _close(got, right):
            return look_again(_why_not_wave(got, t, dim // 2))
    return passed("the wave of the LDM code, for three widths: cosines first, k divided by half")


def _why_not_wave(got: Tensor, t: Tensor, half: int) -> str:
    right, short, rising = _wave(t, half, half), _wave(t, half, half - 1), _wave(t, half, -half)
    mixed = "cos and sin alternate in yours; they stand in two halves"
    slips = (
        (torch.cat([short.sin(), short.cos()], dim=-1), "nothing has changed yet: the order and the spacing are wrong"),
        (torch.cat([right.sin(), right.cos()], dim=-1), "the frequencies are right; the cosines come first"),
        (torch.cat([short.cos(), short.sin()], dim=-1), "the order is right; divide k by half, not by half - 1"),
        (torch.stack([right.cos(), right.sin()], dim=-1).flatten(1), mixed),
        (torch.stack([right.sin(), right.cos()], dim=-1).flatten(1), mixed),
        (torch.cat([right.cos(), right.cos()], dim=-1), "both halves are cosines; the second is sines"),
        (torch.cat([right.sin(), right.sin()], dim=-1), "both halves are sines; the first is cosines"),
        (_cos_sin(_wave(t, half, 2 * half)), "you divide k by dim; it is half, dim // 2"),
        (_cos_sin(_wave(t, half, half + 1)), "you divide k by half + 1; it is half"),
        (_cos_sin(rising), "your frequencies rise; the sign in the exponential is minus"),
        (_cos_sin(_wave(t / 1000, half, half)), "you divide t by 1000; it goes in as it is, 0 to 999"),
        (_cos_sin(2 * math.pi * right), "there is no 2 pi in this wave"),
        (right.repeat(1, 2), "those are the angles; take their cosines and sines"),
    )  # fmt: skip
    for slip, reason in slips:
        if _close(got, slip):
            return reason
    if not bool(torch.isfinite(got).all()):
        return "your wave has values that are not numbers (NaN or infinite)"
    return "not yet [cos | sin] of t exp(-ln(10000) k / half): look at t = 0 first, where the cosines are 1"


def _cos_sin(angles: Tensor) -> Tensor:
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


# ---------------------------------------------------------------- culprit


@lru_cache(maxsize=1)
def _mystery_ladder() -> dict[str, float]:
    suspect, honest, inputs = kit.mystery()
    return kit.ladder(kit.pair_up(suspect, honest), lambda: suspect(*inputs), lambda: honest(*inputs))


def judge_culprit(answer: Any) -> Verdict:
    """Judge the name of the block in which the wrong layer sits: the first on the ladder."""
    if not isinstance(answer, str):
        return look_again("the answer is the name of a block, a string such as 'down.0.res_blocks.0'")
    ladder = _mystery_ladder()
    guilty = kit.first_above(ladder, 1e-5)
    if answer in (guilty, f"{guilty}.blocks.0", f"{guilty}.blocks.0.norm2"):
        return passed(f"{guilty}: a norm in it adds 1e-2 to the variance. All that comes later only inherits")
    if answer == UNET_DIFFUSERS.to_foreign(f"{guilty}.norm.weight").removesuffix(".norm.weight"):
        return look_again(f"that is the name in the other library; ours is {guilty}")
    if answer not in ladder:
        return look_again(f"there is no block of this name; there are {', '.join(list(ladder)[:3])} and so on")
    if ladder[answer] <= 1e-5:
        return look_again(f"{answer} agrees with its counterpart to {max(ladder[answer], 1e-9):.0e}: it is innocent")
    largest = max(ladder, key=ladder.__getitem__)
    if answer == largest:
        return look_again(f"{answer} has the largest difference, and has inherited it: look for the first that has any")
    if answer == list(ladder)[-1]:
        return look_again("that is the end of the network, where every fault arrives: look for the first")
    return look_again(f"{answer} differs, but an earlier block does too: it only inherits")


# ---------------------------------------------------------------- largest_picture

LIMIT = 8e9


@lru_cache(maxsize=64)
def peak_bytes(side: int) -> int:
    """Predicted peak of drawing one guided SD v1 picture in float32."""
    return budget("SD v1", "float32", side, side).peak_bytes


def judge_largest_picture(answer: Any) -> Verdict:
    """Judge the side of the largest square picture whose predicted peak stays within 8e9 bytes."""
    value = _number(answer)
    if value is None:
        return look_again("the answer is one number: the side of the picture in pixels")
    if not 64 <= value <= 4096:
        return look_again("the answer is a side in pixels, such as 512")
    if value % 64:
        near = round(value / 64) * 64
        return look_again(f"the sides of a picture divide by 64: {near} would, {value:g} does not")
    side = int(value)
    peak, beyond = peak_bytes(side), peak_bytes(side + 64)
    if peak > LIMIT:
        told = f"{side} x {side} pixels need {peak / 1e9:.2f} GB"
        if peak <= 8 * 2**30:
            return look_again(f"{told}: within 8 GiB, and above 8 GB of 1e9 bytes")
        return look_again(f"{told}, more than 8: the decoder's maps grow with the area")
    if beyond <= LIMIT:
        half = " (was that with the weights in bfloat16, or the U-Net alone?)" if side >= 1600 else ""
        return look_again(f"{side} fits with {peak / 1e9:.2f} GB, and so does {side + 64}, {beyond / 1e9:.2f}{half}")
    return passed(f"{side} x {side} pixels: {peak / 1e9:.2f} GB, and {side + 64} would need {beyond / 1e9:.2f}")


# ---------------------------------------------------------------- helpers


def _number(answer: Any) -> float | None:
    try:
        value = float(answer)
    except (TypeError, ValueError, RuntimeError):
        return None
    return value if math.isfinite(value) else None


def _as_tensor(result: Any) -> Tensor | None:
    """Return a result as a tensor of numbers, None where it is none."""
    try:
        tensor = torch.as_tensor(result).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.is_floating_point() else None


def _close(got: Tensor, wanted: Tensor, tolerance: float = 1e-3) -> bool:
    return got.shape == wanted.shape and bool(((got.double() - wanted.double()).abs() < tolerance).all())
