"""A label map becomes channels beside the latents: one channel per label, shrunk, then mixed down to a few.

Rombach et al. 2022 (arXiv 2112.10752), section 4.3.2 and its published configuration: two halvings and a 1x1
convolution without a bias, from 182 labels to 3 channels.
"""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import SemanticEncoderConfig
from ldm_tutor.errors import ConfigError
from ldm_tutor.shapes import Float, Num, Tensor


class SemanticEncoder(nn.Module):
    """Label numbers (b, H, W), 0 to num_labels - 1, to channels (b, channels, H / f, W / f) with f = 2^num_halvings."""

    def __init__(self, config: SemanticEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.mix = nn.Conv2d(config.num_labels, config.channels, 1, bias=False)

    def forward(self, labels: Num[Tensor, "b H W"]) -> Float[Tensor, "b c h w"]:
        low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
        if low < 0 or high >= self.config.num_labels:
            expected = f"0 to {self.config.num_labels - 1}"
            raise ConfigError("SemanticEncoder: label number", given=[low, high], expected=expected)
        maps = F.one_hot(labels.long(), self.config.num_labels).permute(0, 3, 1, 2)
        x = maps.to(self.mix.weight.dtype)
        for _ in range(self.config.num_halvings):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        return self.mix(x)
