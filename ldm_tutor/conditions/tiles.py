"""One step of a large picture in overlapping tiles, each of the size that the model was trained on.

Rombach et al. 2022 (arXiv 2112.10752), section 4.3.2 and appendix D.1: the noise of each tile is predicted alone and
the predictions are averaged where tiles overlap, at every step; so the tiles agree before there is a picture.
"""

from __future__ import annotations

import torch

from ldm_tutor.conditions.given import Conditioned, Conditioning
from ldm_tutor.errors import ConfigError
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.shapes import Float, Latents, Tensor


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles begin so that they cover `length`: every `stride`, and one at the end."""
    if not 1 <= stride <= tile:
        raise ConfigError("tile_starts: stride", given=stride, expected=f"1 to the tile, {tile}")
    return [0] if length <= tile else [*range(0, length - tile, stride), length - tile]


def tile_weight(tile: int) -> Float[Tensor, "tile tile"]:
    """Return how much each place of a tile counts: a pyramid, most in the middle and never 0."""
    place = torch.arange(tile) + 0.5
    ramp = torch.minimum(place, place.flip(0)) / (tile / 2)
    return ramp[:, None] * ramp


class Tiled(Guided):
    """A `Conditioned` with channels of any size, run tile by tile; the same call, `(latents, t, step) -> eps`."""

    def __init__(self, whole: Guided, tile: int, stride: int | None = None) -> None:
        if whole.channels is None:
            raise ConfigError("Tiled: a condition without channels", expected="channels as large as the latents")
        super().__init__(
            whole.unet, whole.context, whole.empty_context, whole.scale, whole.channels, whole.empty_channels
        )
        self.tile, self.stride = tile, stride or tile // 2

    def __call__(self, latents: Latents, t: float, step: int) -> Latents:
        """Return the noise, averaged over the tiles."""
        total, weight = torch.zeros_like(latents), latents.new_zeros(1, 1, *latents.shape[-2:])
        ramp = tile_weight(self.tile).to(latents)
        for top in tile_starts(latents.shape[-2], self.tile, self.stride):
            for left in tile_starts(latents.shape[-1], self.tile, self.stride):
                where = (..., slice(top, top + self.tile), slice(left, left + self.tile))
                total[where] += self._at(where)(latents[where], t, step) * ramp
                weight[where] += ramp
        return total / weight

    def _at(self, where: tuple) -> Conditioned:
        """Return the denoiser of one tile."""
        channels, empty = self.channels, self.empty_channels
        assert channels is not None
        given = Conditioning(self.context, channels[where])
        dropped = None
        if self.context is None or self.empty_context is not None:
            dropped = Conditioning(self.empty_context, None if empty is None else empty[where])
        return Conditioned(self.unet, given, dropped, self.scale)
