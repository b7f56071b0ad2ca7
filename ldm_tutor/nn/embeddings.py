"""How a time step becomes a vector that a residual block can add."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.shapes import Float, Tensor, Times


def timestep_embedding(t: Times, dim: int) -> Float[Tensor, "b {dim}"]:
    """Return [cos | sin] of t at dim / 2 frequencies from 1 down to 1 / 10000, float32, shape (b, dim).

    The order and spacing of the LDM code: freq_k = exp(-ln(10000) k / half), k = 0 .. half - 1.
    """
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_embedding(side: int, dim: int) -> Float[Tensor, "n {dim}"]:
    """Return a wave for each place of a side x side grid, row by row: (side * side, dim), float32.

    The first half tells the column, the second the row; each is [sin | cos] at dim / 4 frequencies from 1 down to
    nearly 1 / 10000, as in DiT (Peebles and Xie 2023, arXiv 2212.09748).
    """
    freqs = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    waves = torch.arange(side, dtype=torch.float64)[:, None] * freqs
    along = torch.cat([waves.sin(), waves.cos()], dim=-1).float()  # (side, dim / 2)
    return torch.cat([along.repeat(side, 1), along.repeat_interleave(side, dim=0)], dim=-1)


class TimeMLP(nn.Module):
    """Two linear layers that turn the wave of `timestep_embedding` into what the blocks read: (b, dim) to (b, width).

    `width` is 4 dim unless it is given.
    """

    def __init__(self, dim: int, width: int | None = None) -> None:
        super().__init__()
        self.dim = dim
        width = 4 * dim if width is None else width
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Times) -> Float[Tensor, "b d"]:
        wave = timestep_embedding(t, self.dim).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(wave)))
