"""One interface for all conditions: tokens for the cross-attention, channels beside the latents, or both.

Rombach et al. 2022 (arXiv 2112.10752), section 3.3 and figure 3: whatever steers the model comes in by one of these two
ways. For guidance a condition also says what it looks like when it is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.shapes import Context, Latents


@dataclass(frozen=True)
class Conditioning:
    """What the U-Net is given: a context (b, m, d), channels (b, k, h, w) behind the latents, or both."""

    context: Context | None = None
    channels: Latents | None = None

    def __post_init__(self) -> None:
        if self.context is None and self.channels is None:
            raise ConfigError("Conditioning of nothing", given=None, expected="a context, channels, or both")

    def with_tokens(self, more: Context) -> Conditioning:
        """Return the same with `more` tokens (b, m2, d) behind those of the context."""
        if self.context is None:
            return Conditioning(more, self.channels)
        if (more.dim(), more.shape[0], more.shape[-1]) != (3, len(self.context), self.context.shape[-1]):
            expected = f"({len(self.context)}, tokens, {self.context.shape[-1]})"
            raise ShapeError("Conditioning.with_tokens", given=tuple(more.shape), expected=expected)
        return Conditioning(torch.cat([self.context, more.to(self.context)], dim=1), self.channels)


class Conditioned(Guided):
    """A U-Net and what steers it as one denoiser `(latents, t, step) -> eps` for `sample`.

    `given` and `dropped` are of one form; guidance goes from the noise of `dropped` to that of `given` and `scale`
    times as far. Where `dropped` has no channels, those of `given` stand in both rows.
    """

    def __init__(
        self,
        unet: Callable[..., Latents],
        given: Conditioning,
        dropped: Conditioning | None = None,
        scale: float = 1.0,
    ) -> None:
        if dropped is not None and (dropped.context is None) != (given.context is None):
            raise ConfigError("Conditioned: a context in one of given and dropped", expected="in both, or in neither")
        context, channels = (None, None) if dropped is None else (dropped.context, dropped.channels)
        super().__init__(unet, given.context, context, scale, given.channels, channels)
