"""The judges of lesson 10's two exercises on the U-Net's input: stacking the channels, and what is dropped."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.lessons.lesson_10_judges import as_numbers, close
from ldm_tutor.shapes import Tensor

# ---------------------------------------------------------------- stack

_FAULTS = {
    "hole": "the picture keeps the hole and loses the rest: a mask is 1 in the hole, so multiply by 1 - mask",
    "range": "Stable Diffusion's mask is 0 and 1; from -1 to 1 it is in the paper's own model",
    "order": "the mask stands behind the noisy latents, before the masked picture's latents",
    "scale": "the masked picture's latents are not multiplied by the scale",
}


def stacked(
    noisy: Tensor, picture: Tensor, mask: Tensor, encode: Callable[[Tensor], Tensor], scale: float, *faults: str
) -> Tensor:
    """Return the nine channels of Stable Diffusion's inpainting model, or what some of the four faults make of them."""
    factor = mask.shape[-1] // noisy.shape[-1]
    masked = encode(picture * (mask if "hole" in faults else 1 - mask)) * (1 if "scale" in faults else scale)
    small = mask[..., ::factor, ::factor]  # nearest
    small = 2 * small - 1 if "range" in faults else small
    return torch.cat([noisy, masked, small] if "order" in faults else [noisy, small, masked], dim=1)


def judge_stack(my_stack: Any) -> Verdict:
    """Judge a function (noisy, picture, mask, encode, scale) -> nine channels in Stable Diffusion's form."""
    if not callable(my_stack):
        return look_again("the answer is a function: my_stack(noisy, picture, mask, encode, scale)")
    generator = torch.Generator().manual_seed(6)
    layer = nn.Conv2d(3, 4, 8, stride=8)
    nn.init.normal_(layer.weight, std=0.2, generator=generator)
    for scale, shape in ((0.18215, (2, 3, 32, 32)), (0.7, (1, 3, 16, 24))):

        def encode(pictures: Tensor) -> Tensor:
            with torch.no_grad():
                return layer(pictures)

        picture = 2 * torch.rand(shape, generator=generator) - 1
        mask = (torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.4).float()
        noisy = torch.randn(shape[0], 4, shape[2] // 8, shape[3] // 8, generator=generator)
        given = noisy.clone(), picture.clone(), mask.clone()
        result = my_stack(*given, encode, scale)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the channels")
        got = as_numbers(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        right = stacked(noisy, picture, mask, encode, scale)
        if got.shape != right.shape:
            return look_again(f"the channels have the shape {tuple(got.shape)}, expected {tuple(right.shape)}")
        if not close(got, right):
            return look_again(_why_not_stacked(got, noisy, picture, mask, encode, scale))
        if not all(torch.equal(a, b) for a, b in zip(given, (noisy, picture, mask), strict=True)):
            return look_again("the result is right, but what came in has changed: work on copies")
    return passed("noisy latents 4, mask 1 from 0 to 1, and 4 of the picture without its hole, in units of the latents")


def _why_not_stacked(
    got: Tensor, noisy: Tensor, picture: Tensor, mask: Tensor, encode: Callable[[Tensor], Tensor], scale: float
) -> str:
    for number in range(1, 5):
        for chosen in product((False, True), repeat=4):
            faults = [name for name, is_in in zip(_FAULTS, chosen, strict=True) if is_in]
            if len(faults) == number and close(got, stacked(noisy, picture, mask, encode, scale, *faults)):
                left = "one fault is left" if number == 1 else f"{number} faults are left, one of them"
                return f"{left}: {_FAULTS[faults[0]]}"
    if close(got[:, 5:], encode(picture) * scale):
        return "the masked latents show what is in the hole: multiply the picture by 1 - mask before you encode it"
    if close(got[:, 5:], encode(picture) * scale * (1 - mask[..., ::8, ::8])):
        return "mask the picture before the encoder, not its latents: those near the edge have seen the hole"
    if not close(got[:, :4], noisy):
        return "the noisy latents come first, unchanged"
    if got.shape[1] == 9 and close(got[:, 4:5], 1 - mask[..., ::8, ::8]):
        return "the mask channel is upside down: it is 1 in the hole"
    if close(got, torch.cat([noisy, F.max_pool2d(mask, 8), scale * encode(picture * (1 - mask))], dim=1)):
        return (
            "all but one thing is right: Stable Diffusion takes the upper left pixel of each square, "
            "mask[..., ::factor, ::factor]; the largest of each is this course's own form"
        )
    return "the order is noisy latents, mask, scale * encode(picture without its hole)"


# ---------------------------------------------------------------- dropped


class _Probe(nn.Module):
    """A U-Net's stand-in: reads channels, time and context, each in its own way, and counts nothing else."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(extra)
        self.register_buffer("weight", torch.randn(4, 4 + extra, 1, 1, generator=generator))
        self.register_buffer("words", torch.randn(4, 6, generator=generator))

    def forward(self, latents: Tensor, t: Tensor, context: Tensor) -> Tensor:
        read = (context.tanh().mean(dim=1) @ self.words.T)[:, :, None, None]  # type: ignore[operator]
        return torch.tanh(F.conv2d(latents, self.weight) + read + t.view(-1, 1, 1, 1).float() / 1000)  # type: ignore[arg-type]


_Pair = tuple[Tensor, Tensor]


def judge_dropped(my_guided: Any) -> Verdict:
    """Judge a function (unet, latents, t, given, dropped, scale) -> guided noise; both are (context, channels)."""
    if not callable(my_guided):
        return look_again("the answer is a function: my_guided(unet, latents, t, given, dropped, scale)")
    generator = torch.Generator().manual_seed(12)
    for b, extra, scale in ((2, 5, 4.0), (1, 3, 1.5)):
        unet = _Probe(extra)
        latents = torch.randn(b, 4, 6, 6, generator=generator)
        given, dropped = (
            (torch.randn(b, 7, 6, generator=generator), torch.randn(b, extra, 6, 6, generator=generator))
            for _ in range(2)
        )
        t = torch.full((b,), 400)
        result = my_guided(unet, latents.clone(), t.clone(), given, dropped, scale)
        if is_missing(result):
            return not_done("your function returns nothing yet: end it with `return` and the noise")
        got = as_numbers(result)
        if got is None:
            return look_again(f"your function returns a {type(result).__name__}: return a tensor of numbers")
        right = guided(unet, latents, t, given, dropped, scale)
        if got.shape != right.shape:
            twice = got.shape[0] == 2 * b and got.shape[1:] == right.shape[1:]
            more = ": put the two halves of the batch together" if twice else ""
            return look_again(f"the noise has the shape {tuple(got.shape)}, expected {tuple(right.shape)}{more}")
        if not close(got, right):
            return look_again(_why_not_guided(got, unet, latents, t, given, dropped, scale))
    return passed("the same line guides words, boxes, masks and small pictures: only what is dropped differs")


def guided(unet: nn.Module, latents: Tensor, t: Tensor, given: _Pair, dropped: _Pair, scale: float) -> Tensor:
    """Return the noise seen with what is dropped, plus scale times the way to the noise seen with what is given."""
    with_it, without = (
        unet(torch.cat([latents, channels], dim=1), t, context) for context, channels in (given, dropped)
    )
    return without + scale * (with_it - without)


def _why_not_guided(
    got: Tensor, unet: nn.Module, latents: Tensor, t: Tensor, given: _Pair, dropped: _Pair, scale: float
) -> str:
    mixed, other = (dropped[0], given[1]), (given[0], dropped[1])

    def ahead(pair: _Pair) -> Tensor:
        return unet(torch.cat([pair[1], latents], dim=1), t, pair[0])

    slips = (
        (guided(unet, latents, t, dropped, given, scale), "given and dropped are exchanged: it moves away from what is"
         " asked for"),
        (guided(unet, latents, t, given, mixed, scale), "both halves have the given channels; the second one takes"
         " those of `dropped`"),
        (guided(unet, latents, t, given, other, scale), "both halves have the given context; the second one takes"
         " that of `dropped`"),
        (guided(unet, latents, t, other, dropped, scale), "the given channels are not used"),
        (guided(unet, latents, t, mixed, dropped, scale), "the given context is not used"),
        (guided(unet, latents, t, given, dropped, 1.0), "that is the noise with the condition; the scale is not used"),
        (guided(unet, latents, t, given, dropped, 0.0), "that is the noise without the condition"),
        (guided(unet, latents, t, given, dropped, scale + 1), "you go one length too far: with scale 1 the result is"
         " the noise with the condition"),
        (guided(unet, latents, t, given, dropped, scale) - guided(unet, latents, t, given, dropped, 0.0),
         "the noise without the condition is missing: the way starts there"),
        (scale * guided(unet, latents, t, given, dropped, 1.0), "guidance is a way from one answer past the other, not"
         " an answer times the scale"),
        (ahead(dropped) + scale * (ahead(given) - ahead(dropped)), "the channels stand in front of the noisy latents;"
         " they come behind them"),
    )  # fmt: skip
    return next(
        (reason for wrong, reason in slips if close(got, wrong)),
        "call the U-Net with each pair (channels behind the latents), then without + scale * (with - without)",
    )
