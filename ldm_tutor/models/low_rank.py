"""Low-rank differences: W + up down, two thin matrices beside each weight of a network that stays as it is.

Hu et al. 2021 (arXiv 2106.09685), section 4.1. Added up, they are an ordinary weight: what draws has no extra layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.shapes import Tensor

PACE = 0.5  # how far a step of Adam on `up` moves the weight itself, as a share of the learning rate


class LowRank(nn.Module):
    """The difference for one weight: (out, in) of a linear layer or (out, in, k, k) of a convolution.

    `down` starts random, `up` at zero, so that at the start the difference is exactly zero. The spread of `down` gives
    each layer the same pace, whatever its size and rank (in place of the paper's factor alpha / r).
    """

    def __init__(self, shape: tuple[int, ...], rank: int) -> None:
        super().__init__()
        num_in = math.prod(shape[1:])
        if not 1 <= rank:
            raise ConfigError("LowRank: rank", given=rank, expected="1 or more")
        self.shape = tuple(shape)
        rank = min(rank, shape[0], num_in)
        self.down = nn.Parameter(torch.empty(rank, num_in))
        self.up = nn.Parameter(torch.zeros(shape[0], rank))
        nn.init.normal_(self.down, std=PACE * rank**-0.5)

    def forward(self) -> Tensor:
        """Return the difference, in the weight's shape."""
        return (self.up @ self.down).view(self.shape)


class Differences(nn.Module):
    """One `LowRank` for every weight of `shapes` (name -> shape) that is a matrix or a convolution.

    Names are stored with "/" for ".", which a module's name may not hold.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], rank: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name.replace(".", "/"): LowRank(shape, rank) for name, shape in shapes.items()})

    def forward(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all of `weights`, each with its difference added where there is one."""
        merged = dict(weights)
        for key, part in self.parts.items():
            name = key.replace("/", ".")
            if name not in merged or tuple(merged[name].shape) != part.shape:
                given = tuple(merged[name].shape) if name in merged else None
                raise ShapeError(f"low-rank difference of {name}", given=given, expected=f"a weight of {part.shape}")
            merged[name] = merged[name] + part().to(merged[name].dtype)
        return merged


def weight_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of linear layers and convolutions."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            found[f"{name}.weight"] = tuple(module.weight.shape)
    return found
