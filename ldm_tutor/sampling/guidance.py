"""Classifier-free guidance: the U-Net seen as a denoiser that follows its sentence more, or less, than it learned."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.nn.attention import CallInfo, Row, declare_call
from ldm_tutor.shapes import Context, Float, Latents, Tensor


def guide(eps_uncond: Latents, eps_cond: Latents, scale: float) -> Latents:
    """Return eps_u + s (eps_c - eps_u): Ho and Salimans 2022 (arXiv 2207.12598), eq. 6, with s = 1 + their w."""
    return eps_uncond + scale * (eps_cond - eps_uncond)


class Guided:
    """A U-Net, its sentences and a guidance scale as one denoiser `(latents, t, step) -> eps` for `sample`.

    `context`: (b, m, d), one sentence per picture. `empty_context`: (1, m, d) or (b, m, d), the empty sentence, or a
    negative prompt; it may be None where the scale is 1. At scale 1 the U-Net runs once on the sentences alone;
    otherwise once on [empty, sentences], 2 b rows. Every call declares its rows to the attention taps.
    Raises ConfigError for a scale that is not finite, ShapeError where batch or context lengths do not fit.
    """

    def __init__(
        self,
        unet: Callable[[Latents, Tensor, Context], Latents],
        context: Context,
        empty_context: Float[Tensor, "one_or_b m d_context"] | None,
        scale: float,
    ) -> None:
        if not math.isfinite(scale):
            raise ConfigError("Guided: scale", given=scale, expected="a finite number (1 is no guidance)")
        if context.dim() != 3:
            raise ShapeError("Guided: context", given=tuple(context.shape), expected="(batch, tokens, width)")
        if empty_context is None and scale != 1:
            raise ConfigError("Guided: empty_context is missing", given=None, expected=f"a context, for scale {scale}")
        b, m, d = context.shape
        if empty_context is not None and tuple(empty_context.shape) not in ((1, m, d), (b, m, d)):
            raise ShapeError(
                "Guided: empty_context", given=tuple(empty_context.shape), expected=f"(1 or {b}, {m}, {d})"
            )
        self.unet = unet
        self.context = context
        self.empty_context = empty_context
        self.scale = float(scale)

    def __call__(self, latents: Latents, t: int, step: int) -> Latents:
        """Return the guided noise; `step` is the running step, for the taps."""
        b = self.context.shape[0]
        if latents.shape[0] != b:
            raise ShapeError("Guided: one context per picture", given=latents.shape[0], expected=f"{b} pictures")
        conditional = tuple(Row(prompt, conditional=True) for prompt in range(b))
        if self.empty_context is None or self.scale == 1:
            return self._call(latents, self.context, CallInfo(step, t, conditional))
        rows = tuple(Row(prompt, conditional=False) for prompt in range(b)) + conditional
        context = torch.cat([self.empty_context.expand(b, -1, -1).to(self.context), self.context])
        eps_uncond, eps_cond = self._call(torch.cat([latents, latents]), context, CallInfo(step, t, rows)).chunk(2)
        return guide(eps_uncond, eps_cond, self.scale)

    def _call(self, latents: Latents, context: Context, info: CallInfo) -> Latents:
        t = torch.full((latents.shape[0],), float(info.t or 0), device=latents.device)
        with declare_call(info):
            return self.unet(latents, t, context)
