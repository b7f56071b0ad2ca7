"""The judge: reads from a 64x64 picture which objects it shows, in which colour and size, where, and before what.

It looks for object centres on a heat map, as CenterNet does (Zhou et al. 2019, arXiv 1904.07850), and reads kind,
colour, size and box at each centre; so it can count, and two objects do not confuse each other. A smaller one with
another seed serves as the feature network of the perceptual distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import JudgeConfig
from ldm_tutor.nn.blocks import Downsample, ResBlock, Upsample
from ldm_tutor.shapes import FeatureMap, Float, Pictures, Tensor

SIDE = 64  # pixels: it has learned what sizes mean in pictures of this side
STRIDE = 4  # pixels between neighbouring cells of the judge's grid


@dataclass(frozen=True)
class JudgeMaps:
    """The judge's raw answer on its grid of (h, w) = (H / 4, W / 4) cells; everything but `background` is per cell."""

    heat: Float[Tensor, "b h w"]  # logit: an object's centre is here
    kind: Float[Tensor, "b kinds h w"]
    color: Float[Tensor, "b colors h w"]
    size: Float[Tensor, "b sizes h w"]
    offset: Float[Tensor, "b 2 h w"]  # of the centre from the cell's upper left corner, (x, y) in cells
    extent: Float[Tensor, "b 2 h w"]  # (width, height) as fractions of the picture's side
    background: Float[Tensor, "b backgrounds"]


def as_seen(pictures: Pictures) -> Float[Tensor, "b 3 h w"]:
    """Return pictures as the judge knows them: larger ones shrunk to SIDE, each pixel the mean of those it covers."""
    if pictures.shape[-1] <= SIDE:
        return pictures
    return F.interpolate(pictures, (SIDE, SIDE), mode="area")


def _block(in_channels: int, out_channels: int) -> ResBlock:
    return ResBlock(in_channels, out_channels, time_dim=None, norm_groups=8, eps=1e-6)


class Judge(nn.Module):
    """Convolutional network with outputs at a quarter of the picture's side, which must be a multiple of 8."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.stem = nn.Conv2d(3, c, 3, stride=2, padding=1)
        self.at_half = _block(c, c)
        self.down_1 = Downsample(c)
        self.at_quarter = _block(c, 2 * c)
        self.down_2 = Downsample(2 * c)
        self.at_eighth = nn.Sequential(_block(2 * c, 4 * c), _block(4 * c, 4 * c))
        self.up = Upsample(4 * c)
        self.fused = _block(6 * c, 4 * c)
        self.norm_out = nn.GroupNorm(8, 4 * c)
        self.widths = (1, config.num_kinds, config.num_colors, config.num_sizes, 2, 2)
        self.heads = nn.Conv2d(4 * c, sum(self.widths), 1)
        self.background = nn.Linear(8 * c, config.num_backgrounds)

    def features(self, pictures: Pictures) -> tuple[FeatureMap, ...]:
        """Return feature maps at 1/2, 1/4, 1/8 and again 1/4 of the side, from edges to meaning."""
        half = self.at_half(self.stem(pictures))
        quarter = self.at_quarter(self.down_1(half))
        eighth = self.at_eighth(self.down_2(quarter))
        fused = self.fused(torch.cat([self.up(eighth), quarter], dim=1))
        return half, quarter, eighth, fused

    def embed(self, pictures: Pictures) -> Float[Tensor, "b d"]:
        """Return one vector of 8 x channels numbers per picture: mean and maximum of the last feature map."""
        return self._summary(self._last(pictures))

    def forward(self, pictures: Pictures) -> JudgeMaps:
        x = self._last(pictures)
        heat, kind, color, size, offset, extent = self.heads(x).float().split(self.widths, dim=1)
        return JudgeMaps(
            heat.squeeze(1),
            kind,
            color,
            size,
            offset.sigmoid(),
            extent.sigmoid(),
            self.background(self._summary(x)).float(),
        )

    def _last(self, pictures: Pictures) -> FeatureMap:
        return F.silu(self.norm_out(self.features(pictures)[-1]))

    @staticmethod
    def _summary(x: FeatureMap) -> Float[Tensor, "b d"]:
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
