"""Precision and recall of a set of pictures: does it look real, and is all of reality there?

Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2. The region that a set covers is the union of balls: one round
each of its vectors, as wide as the way to the vector's k-th nearest neighbour in the set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.shapes import Bool, Float, Tensor


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares, 0 to 1: of drawn pictures inside the real region, and of real ones inside the drawn region."""

    precision: float
    recall: float


def precision_recall(made: Float[Tensor, "n d"], real: Float[Tensor, "m d"], k: int = 3) -> PrecisionRecall:
    """Return precision and recall of the features of drawn pictures against those of real ones.

    The more vectors a set has the smaller are its balls: compare only sets of one size, n = m at best. Raises
    ShapeError where the widths differ, ConfigError where a set has no k-th neighbour.
    """
    if made.dim() != 2 or real.dim() != 2 or made.shape[1] != real.shape[1]:
        raise ShapeError(
            "precision_recall",
            given=(tuple(made.shape), tuple(real.shape)),
            expected="two sets of one width",
        )
    if not 1 <= k < min(len(made), len(real)):
        raise ConfigError(
            "precision_recall: k", given=k, expected=f"1 to {min(len(made), len(real)) - 1}, fewer than the vectors"
        )
    precision = inside(made, real, k).double().mean()
    recall = inside(real, made, k).double().mean()
    return PrecisionRecall(float(precision), float(recall))


def inside(points: Float[Tensor, "n d"], of: Float[Tensor, "m d"], k: int = 3) -> Bool[Tensor, " n"]:
    """Return for each point whether it lies in the region that the set `of` covers."""
    points, of = points.double(), of.double()
    radius = _distances(of, of).kthvalue(k + 1, dim=1).values  # the nearest of all is the vector itself
    return (_distances(points, of) <= radius).any(dim=1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return all distances, (n, m), without the loss of digits that the fast way through a matrix product has."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
