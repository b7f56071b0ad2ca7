"""CLIP's image tower: a picture cut into patches, read by a transformer, summed up in one vector."""

from __future__ import annotations

import torch
from torch import nn

from ldm_tutor.config import ImageEncoderConfig
from ldm_tutor.errors import ShapeError
from ldm_tutor.nn.transformer import TransformerLayer
from ldm_tutor.shapes import Float, Pictures, Tensor


class ImageEncoder(nn.Module):
    """Vision transformer: pictures (b, 3, picture_size, picture_size) to the class token's vector (b, width)."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        num_patches = (config.picture_size // config.patch_size) ** 2
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(config.width**-0.5 * torch.randn(config.width))
        self.position_embedding = nn.Embedding(num_patches + 1, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, num_heads=config.num_heads, mlp_width=config.mlp_width)
            for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pictures: Pictures) -> Float[Tensor, "b d"]:
        size = self.config.picture_size
        if pictures.shape[-2:] != (size, size):
            raise ShapeError("ImageEncoder pictures", given=tuple(pictures.shape), expected=f"(b, 3, {size}, {size})")
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)  # b c h w -> b (h w) c
        first = self.class_embedding.expand(len(pictures), 1, -1)
        x = self.norm_in(torch.cat([first, patches], dim=1) + self.position_embedding.weight)
        for layer in self.layers:
            x = layer(x)
        return self.norm_out(x[:, 0])
