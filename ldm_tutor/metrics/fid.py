"""The Fréchet distance between two sets of feature vectors (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

With Inception's features it is the FID of the papers; with the judge's features, as here, its numbers compare only
with each other. Few pictures push it up, so it is always shown beside the distance of real from real pictures.
"""

from __future__ import annotations

import torch

from ldm_tutor.errors import ShapeError
from ldm_tutor.models.judge import Judge, as_seen
from ldm_tutor.shapes import Float, Pictures, Tensor


@torch.inference_mode()
def judge_features(judge: Judge, pictures: Pictures, batch_size: int = 128) -> Float[Tensor, "n d"]:
    """Return the judge's feature vector of each picture in [-1, 1], of 64 pixels or more; float64, on the CPU."""
    device = next(judge.parameters()).device
    seen = (as_seen(part.to(device).float()) for part in pictures.split(batch_size))
    return torch.cat([judge.embed(part).cpu().double() for part in seen])


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Return |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)), from float64 features.

    Raises ShapeError where the widths differ or a set has fewer than two vectors.
    """
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(
            "frechet_distance", given=(tuple(a.shape), tuple(b.shape)), expected="two or more vectors of one width"
        )
    a, b = a.double(), b.double()
    gap = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root_a = _root(cov_a)
    # (C_a C_b)^(1/2) and (C_a^(1/2) C_b C_a^(1/2))^(1/2) have the same trace; the second is symmetric
    mixed = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    return float(gap + cov_a.trace() + cov_b.trace() - 2 * mixed)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
