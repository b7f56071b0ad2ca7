"""What the judge is trained on: centres on a heat map, and what stands at each centre."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ldm_tutor.models.judge import JudgeMaps
from ldm_tutor.shapes import Float, Int, Tensor


@dataclass(frozen=True)
class JudgeTargets:
    """The truth on the judge's grid. `rows`, `ys`, `xs` name the cell of every object in the batch (k objects)."""

    heat: Float[Tensor, "b h w"]  # 1 at a centre, falling off like a Gaussian around it
    rows: Int[Tensor, " k"]
    ys: Int[Tensor, " k"]
    xs: Int[Tensor, " k"]
    kind: Int[Tensor, " k"]
    color: Int[Tensor, " k"]
    size: Int[Tensor, " k"]
    offset: Float[Tensor, "k 2"]
    extent: Float[Tensor, "k 2"]
    background: Int[Tensor, " b"]


def judge_loss(maps: JudgeMaps, truth: JudgeTargets) -> Float[Tensor, ""]:
    """Return the sum of all terms: focal loss on the heat map, cross-entropies, and L1 on offset and extent."""
    cells = (truth.rows, slice(None), truth.ys, truth.xs)
    p = maps.heat.sigmoid().clamp(1e-5, 1 - 1e-5)
    at_centre = truth.heat == 1
    found = torch.where(at_centre, (1 - p) ** 2 * p.log(), (1 - truth.heat) ** 4 * p**2 * (1 - p).log())
    return (
        -found.sum() / len(truth.rows)
        + F.cross_entropy(maps.kind[cells], truth.kind)
        + F.cross_entropy(maps.color[cells], truth.color)
        + F.cross_entropy(maps.size[cells], truth.size)
        + F.cross_entropy(maps.background, truth.background)
        + F.l1_loss(maps.offset[cells], truth.offset)
        + 5 * F.l1_loss(maps.extent[cells], truth.extent)
    )
