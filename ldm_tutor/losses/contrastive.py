"""CLIP's loss: in a batch, each picture must pick its sentence and each sentence its picture."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ldm_tutor.shapes import Float, Tensor


def contrastive_loss(logits: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Return the mean of both cross-entropies over the similarity matrix; pair i stands on the diagonal.

    Radford et al. 2021 (arXiv 2103.00020), figure 3. A blind guess scores ln(n).
    """
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
