"""What a condition adds to a U-Net: an encoder, input channels, and low-rank differences to its weights.

Added to the U-Net it started from, it gives an ordinary `UNet` that reads 4 + extra channels. It is what is trained,
and what is stored: a few per cent of the U-Net's numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from ldm_tutor.config import ConditionConfig, UNetConfig
from ldm_tutor.models.class_encoder import ClassEncoder
from ldm_tutor.models.layout_encoder import LayoutEncoder
from ldm_tutor.models.low_rank import Differences, weight_shapes
from ldm_tutor.models.semantic_encoder import SemanticEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.shapes import Tensor

_IN = "conv_in"


class Condition(nn.Module):
    """The trained part of a condition of `config`; with rank 0 it holds a whole U-Net instead of differences.

    `encoder` is None where the condition is only concatenated. The weights that read the new channels start at zero,
    as the differences do: at the start, the steered U-Net draws what the plain one draws.
    """

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module | None = None
        if config.boxes is not None:
            self.encoder = LayoutEncoder(config.boxes)
        elif config.classes is not None:
            self.encoder = ClassEncoder(config.classes)
        elif config.labels is not None:
            self.encoder = SemanticEncoder(config.labels)
        with torch.device("meta"):
            shapes = weight_shapes(UNet(config.unet))
        del shapes[f"{_IN}.weight"]
        if not config.convolutions:
            shapes = {name: shape for name, shape in shapes.items() if ".transformers." in name}
        self.differences = Differences(shapes, config.rank) if config.rank else None
        self.unet = None if config.rank else UNet(steered_config(config))
        self.new_channels: nn.Parameter | None = None
        if config.rank and config.extra_channels:
            self.new_channels = nn.Parameter(torch.zeros(config.unet.channels, config.extra_channels, 3, 3))

    def start_from(self, base: Mapping[str, Tensor]) -> None:
        """Take over the weights of the U-Net to start from, where the condition has weights of its own (rank 0)."""
        if self.unet is not None:
            self.unet.load_state_dict(_widened(base, None, self.config))

    def weights(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the steered U-Net's weights, made of `base`, those of the U-Net it started from."""
        if self.differences is None or self.unet is not None:
            return dict(self.unet.named_parameters()) if self.unet is not None else dict(base)
        return self.differences(_widened(base, self.new_channels, self.config))


def steered_config(config: ConditionConfig) -> UNetConfig:
    """Return the configuration of the U-Net that draws: the condition's, with its extra channels."""
    return dataclasses.replace(config.unet, in_channels=config.unet.in_channels + config.extra_channels)


@torch.no_grad()
def steered_unet(condition: Condition, base: UNet) -> UNet:
    """Return the ordinary U-Net that `condition` makes of `base`, in evaluation mode; `base` stays as it is."""
    with torch.device("meta"):
        unet = UNet(steered_config(condition.config))
    weights = {name: value.detach().clone() for name, value in condition.weights(base.state_dict()).items()}
    unet.load_state_dict(weights, assign=True)
    return unet.eval()


def fingerprint(unet: UNet) -> str:
    """Return 16 hexadecimal digits that tell a U-Net's weights, as float16, from all others."""
    digest = hashlib.sha256()
    for name, value in sorted(unet.state_dict().items()):
        digest.update(name.encode() + value.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _widened(base: Mapping[str, Tensor], new: Tensor | None, config: ConditionConfig) -> dict[str, Tensor]:
    """Return `base` with input weights for the extra channels: `new`, or zeros."""
    weights = dict(base)
    if config.extra_channels:
        old = weights[f"{_IN}.weight"]
        if new is None:
            more = old.new_zeros(len(old), config.extra_channels, *old.shape[2:])
        else:
            more = new.to(old.dtype)
        weights[f"{_IN}.weight"] = torch.cat([old, more], dim=1)
    return weights
