"""Has a model learned its pictures by heart? Ask for the training picture that is nearest to each drawn one."""

from __future__ import annotations

import torch

from ldm_tutor.errors import ShapeError
from ldm_tutor.metrics.figures import Measured, share
from ldm_tutor.shapes import Float, Int, Tensor


def nearest(made: Tensor, others: Tensor) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Return for each of `made` the number of the nearest of `others`, and how far it is: root mean square.

    Both are pictures or feature vectors; in [-1, 1] a distance of 2 is black against white.
    """
    if made.shape[1:] != others.shape[1:] or not len(made) or not len(others):
        raise ShapeError("nearest", given=(tuple(made.shape), tuple(others.shape)), expected="two sets of one shape")
    a, b = made.flatten(1).double(), others.flatten(1).double()
    found = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    return found.indices, found.values / a.shape[1] ** 0.5


def copy_share(made: Tensor, trained: Tensor, held_out: Tensor) -> Measured:
    """Return the share of `made` whose nearest training picture is nearer than its nearest held-out picture.

    A model that draws new pictures is as near to ones it has not seen: half. Who copies comes to 1 (the question of
    Meehan, Chaudhuri, Dasgupta 2020, arXiv 2004.05675). Both sets must be of one size: more pictures are nearer.
    """
    if len(trained) != len(held_out):
        raise ShapeError(
            "copy_share: sets of different size", given=(len(trained), len(held_out)), expected="equally many pictures"
        )
    to_trained, to_held_out = nearest(made, trained)[1], nearest(made, held_out)[1]
    return share((to_trained < to_held_out).tolist())
