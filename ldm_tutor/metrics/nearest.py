"""Has a model learned its pictures by heart? Ask for the training picture that is nearest to each drawn one."""

from __future__ import annotations

import torch

from ldm_tutor.errors import ShapeError
from ldm_tutor.shapes import Float, Int, Tensor


def nearest(made: Tensor, others: Tensor) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Return for each of `made` the number of the nearest of `others`, and how far it is: root mean square.

    Both are pictures or feature vectors; in [-1, 1] a distance of 2 is black against white. Compare it with the same
    from held-out pictures: who copies is nearer to the training set than reality is (the question of Meehan,
    Chaudhuri, Dasgupta 2020, arXiv 2004.05675).
    """
    if made.shape[1:] != others.shape[1:] or not len(made) or not len(others):
        raise ShapeError("nearest", given=(tuple(made.shape), tuple(others.shape)), expected="two sets of one shape")
    a, b = made.flatten(1).double(), others.flatten(1).double()
    found = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    return found.indices, found.values / a.shape[1] ** 0.5
