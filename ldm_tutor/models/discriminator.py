"""PatchGAN (Isola et al. 2017, arXiv 1611.07004): says of every patch, not of the whole picture, whether it is real."""

from __future__ import annotations

from torch import nn

from ldm_tutor.config import DiscriminatorConfig
from ldm_tutor.shapes import Float, Tensor


class PatchDiscriminator(nn.Module):
    """4x4 convolutions only, so each output number sees one patch (70 pixels wide with three strided layers).

    Pictures (b, 3, H, W) in [-1, 1] to verdicts (b, 1, h, w): positive says real, negative says made.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(config.picture_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, config.num_layers + 1):
            out = config.channels * min(2**n, 8)
            stride = 2 if n < config.num_layers else 1
            layers += [
                nn.Conv2d(width, out, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.LeakyReLU(0.2),
            ]
            width = out
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)

    def forward(self, pictures: Float[Tensor, "b c H W"]) -> Float[Tensor, "b 1 h w"]:
        return self.layers(pictures)
