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


class TimeMLP(nn.Module):
    """Two linear layers that turn the wave of `timestep_embedding` into what the blocks add: (b, dim) to (b, 4 dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, 4 * dim)
        self.linear_2 = nn.Linear(4 * dim, 4 * dim)

    def forward(self, t: Times) -> Float[Tensor, "b d"]:
        wave = timestep_embedding(t, self.dim).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(wave)))
