"""Random numbers that belong to a picture: the same seed gives the same picture in any batch and on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ldm_tutor.errors import ConfigError
from ldm_tutor.shapes import Float, Tensor

_WORD = 2**32  # torch's generator on the CPU reads the low 32 bits of its seed
_GOLDEN = 0x9E3779B9  # odd, so that k -> k * _GOLDEN mod 2^32 meets every word once


class PictureNoise:
    """Standard normal noise for pictures with the given seeds (0 to 2^32 - 1, one per picture).

    Nothing is kept between calls: what `at` returns depends on the seed and the step alone, so that a resumed run
    needs no generator state. Draws are float32 on the CPU, one generator per picture; move them with `.to(latents)`.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _WORD:
                raise ConfigError("PictureNoise: seed", given=seed, expected="a whole number, 0 to 2^32 - 1")

    def initial(self, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
        """Return the noise that pictures of `shape` (c, h, w) start from: what torch.manual_seed(seed) gives."""
        return self._draw(self.seeds, shape)

    def at(self, step: int, shape: Sequence[int]) -> Float[Tensor, "b ..."]:
        """Return the noise that a step adds to pictures of `shape` (c, h, w); `step` counts from 0.

        The generator's seed is mix(mix(seed) + (step + 1) * 0x9E3779B9 mod 2^32), where mix shuffles the 32-bit words
        one to one: two steps of one picture, or two pictures at one step, never share a generator.
        """
        return self._draw([_mix(_mix(seed) + (step + 1) * _GOLDEN) for seed in self.seeds], shape)

    @staticmethod
    def _draw(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        numbers: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever PyTorch's defaults are set to
        drawn = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **numbers) for seed in seeds]
        return torch.stack(drawn) if drawn else torch.empty(0, *shape, **numbers)


def _mix(word: int) -> int:
    """Shuffle the 32-bit words one to one, near ones far apart: MurmurHash3's last rounds (Appleby, public domain)."""
    word %= _WORD
    word = (word ^ word >> 16) * 0x85EBCA6B % _WORD
    word = (word ^ word >> 13) * 0xC2B2AE35 % _WORD
    return word ^ word >> 16
