"""What the autoencoder is trained on: pixels, features, and a Gaussian that stays near N(0, I)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn import functional as F

from ldm_tutor.models.judge import Judge
from ldm_tutor.shapes import FeatureMap, Float, Pictures, Tensor


def feature_distance(a: FeatureMap, b: FeatureMap) -> Float[Tensor, " b"]:
    """Return the mean squared distance of unit-length feature vectors, averaged over positions; shape (b,).

    Zhang et al. 2018 (arXiv 1801.03924), eq. 1, with equal weights.
    """
    a, b = F.normalize(a.float(), dim=1, eps=1e-5), F.normalize(b.float(), dim=1, eps=1e-5)
    return (a - b).square().sum(dim=1).mean(dim=(1, 2))


def l1_loss(pictures: Pictures, others: Pictures) -> Float[Tensor, ""]:
    """Return the mean absolute difference. Of all constant answers to a doubt, the median makes it least."""
    return (pictures - others).float().abs().mean()


def l2_loss(pictures: Pictures, others: Pictures) -> Float[Tensor, ""]:
    """Return the mean squared difference. Of all constant answers to a doubt, the mean makes it least."""
    return (pictures - others).float().square().mean()


PIXEL_LOSSES: dict[str, Callable[[Pictures, Pictures], Float[Tensor, ""]]] = {"l1": l1_loss, "l2": l2_loss}


class PerceptualDistance(nn.Module):
    """Distance of two pictures as a small network sees them: the sum of `feature_distance` over its feature maps.

    The network is one that the project trained on scenes; the published LPIPS uses VGG16 and learned weights.
    """

    def __init__(self, network: Judge) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, pictures: Pictures, others: Pictures) -> Float[Tensor, " b"]:
        seen, other = self.network.features(pictures), self.network.features(others)
        return sum((feature_distance(a, b) for a, b in zip(seen, other, strict=True)), start=pictures.new_zeros(()))
