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

    `context`: (b, m, d), one sentence per picture; None for a U-Net without a context. `empty_context`: (1, m, d) or
    (b, m, d), the empty sentence, or a negative prompt; it may be None where the scale is 1. `channels`: (b, k, h, w),
    what is concatenated behind the latents, and `empty_channels` the same for the other row (None: the same channels).
    At scale 1 the U-Net runs once on the sentences alone; otherwise once on [empty, sentences], 2 b rows. Every call
    declares its rows to the attention taps. The U-Net computes in the number type of the context; what comes back has
    that of the latents.
    Raises ConfigError for a scale that is not finite, ShapeError where batch or context lengths do not fit.
    """

    def __init__(
        self,
        unet: Callable[..., Latents],
        context: Context | None,
        empty_context: Float[Tensor, "one_or_b m d_context"] | None,
        scale: float,
        channels: Latents | None = None,
        empty_channels: Float[Tensor, "one_or_b k h w"] | None = None,
    ) -> None:
        if not math.isfinite(scale):
            raise ConfigError("Guided: scale", given=scale, expected="a finite number (1 is no guidance)")
        if context is None and channels is None:
            raise ConfigError("Guided: neither a context nor channels", given=None, expected="one of them, or both")
        if context is not None and context.dim() != 3:
            raise ShapeError("Guided: context", given=tuple(context.shape), expected="(batch, tokens, width)")
        if context is not None and empty_context is None and scale != 1:
            raise ConfigError("Guided: empty_context is missing", given=None, expected=f"a context, for scale {scale}")
        if context is None and empty_context is not None:
            raise ConfigError("Guided: empty_context without a context", given=tuple(empty_context.shape))
        _check_like("empty_context", empty_context, context)
        _check_like("empty_channels", empty_channels, channels)
        if context is not None and channels is not None and len(context) != len(channels):
            given = (len(context), len(channels))
            raise ShapeError("Guided: context and channels", given=given, expected="one of each per picture")
        self.unet = unet
        self.context, self.empty_context = context, empty_context
        self.channels = channels
        self.empty_channels = channels if empty_channels is None else empty_channels
        self.scale = float(scale)

    @property
    def num_pictures(self) -> int:
        """How many pictures are drawn: b."""
        return len(self.context if self.context is not None else self.channels)  # type: ignore[arg-type]

    def __call__(self, latents: Latents, t: float, step: int) -> Latents:
        """Return the guided noise; `step` is the running step, for the taps."""
        b = self.num_pictures
        if latents.shape[0] != b:
            raise ShapeError("Guided: one context per picture", given=latents.shape[0], expected=f"{b} pictures")
        conditional = tuple(Row(prompt, conditional=True) for prompt in range(b))
        given = self._with(latents, self.channels)
        if self.scale == 1 or (self.empty_context is None and self.empty_channels is self.channels):
            return self._call(given, self.context, CallInfo(step, t, conditional))
        rows = tuple(Row(prompt, conditional=False) for prompt in range(b)) + conditional
        context = None
        if self.context is not None and self.empty_context is not None:
            context = torch.cat([self.empty_context.expand(b, -1, -1).to(self.context), self.context])
        both = torch.cat([self._with(latents, self.empty_channels), given])
        eps_uncond, eps_cond = self._call(both, context, CallInfo(step, t, rows)).chunk(2)
        return guide(eps_uncond, eps_cond, self.scale)

    @staticmethod
    def _with(latents: Latents, channels: Latents | None) -> Float[Tensor, "b c_all h w"]:
        if channels is None:
            return latents
        if channels.shape[-2:] != latents.shape[-2:]:
            given = tuple(channels.shape[-2:])
            raise ShapeError("Guided: side of the channels", given=given, expected=f"{tuple(latents.shape[-2:])}")
        return torch.cat([latents, channels.expand(len(latents), -1, -1, -1).to(latents)], dim=1)

    def _call(self, latents: Latents, context: Context | None, info: CallInfo) -> Latents:
        t = torch.full((latents.shape[0],), float(info.t or 0), device=latents.device)
        with declare_call(info):
            if context is None:
                return self.unet(latents, t)
            return self.unet(latents.to(context.dtype), t, context).to(latents.dtype)


def _check_like(name: str, empty: Tensor | None, given: Tensor | None) -> None:
    """Raise ShapeError unless `empty` is of the shape of `given`, or of one row of it."""
    if empty is None:
        return
    shape = (0,) if given is None else tuple(given.shape)
    if tuple(empty.shape) not in ((1, *shape[1:]), shape):
        expected = f"(1 or {', '.join(map(str, shape))})"
        raise ShapeError(f"Guided: {name}", given=tuple(empty.shape), expected=expected)
