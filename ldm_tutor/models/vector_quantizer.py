"""The autoencoder with a codebook: each latent vector gives way to the nearest of a fixed number of learned ones.

van den Oord et al. 2017 (arXiv 1711.00937), eq. 3; Esser et al. 2021 (VQGAN, arXiv 2012.09841). Latent diffusion
runs on the features before the codebook, and decoding looks them up first (Rombach et al. 2022, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import VQAutoencoderConfig
from ldm_tutor.models.autoencoder import Decoder, Encoder, check_sides
from ldm_tutor.shapes import Float, Int, Latents, Pictures, Tensor

BETA = 0.25  # weight of the second term of the loss


@dataclass(frozen=True)
class Quantized:
    """`latents` (b, c, h, w) as the codebook has them, `indices` (b, h, w) into it, and the mean loss of both terms."""

    latents: Tensor
    indices: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Codebook of `size` vectors of `dim` numbers; features (b, dim, h, w) in.

    The loss is |sg(z_q) - z|^2 + beta |z_q - sg(z)|^2 with z the features, z_q their codes and sg "no gradient": in the
    paper beta stands before the other term; the published models were trained with it here. The gradient of what
    comes after passes through to the features as if nothing had been looked up.
    """

    def __init__(self, *, size: int, dim: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(size, dim)
        nn.init.uniform_(self.codebook.weight, -1 / size, 1 / size)

    def nearest(self, features: Latents) -> Int[Tensor, "b h w"]:
        """Return the index of the code at the smallest distance from each feature vector, found in float32.

        The distances of near codes differ by less than bfloat16 can tell.
        """
        b, _, h, w = features.shape
        codes = self.codebook.weight.float()
        z = features.permute(0, 2, 3, 1).flatten(0, 2).float()  # b c h w -> (b h w) c
        distances = codes.pow(2).sum(dim=1) - 2 * z @ codes.T  # + |z|^2, the same for every code
        return distances.argmin(dim=1).view(b, h, w)

    def look_up(self, indices: Int[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        """Return the codes at `indices`."""
        return self.codebook(indices).permute(0, 3, 1, 2)  # b h w c -> b c h w

    def forward(self, features: Latents) -> Quantized:
        indices = self.nearest(features)
        codes = self.look_up(indices)
        loss = F.mse_loss(features, codes.detach()) + BETA * F.mse_loss(codes, features.detach())
        return Quantized(features + (codes - features).detach(), indices, loss)


class VQAutoencoder(nn.Module):
    """Encoder, codebook, decoder. `encode` gives the features before the codebook; `decode` looks them up first.

    `to_latents` and `to_pictures` are what the diffusion model uses: scaled features in, pictures in [-1, 1] out.
    """

    def __init__(self, config: VQAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = VectorQuantizer(size=config.codebook_size, dim=config.latent_channels)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, pictures: Float[Tensor, "b c H W"]) -> Float[Tensor, "b latent h w"]:
        """Return the (unscaled) features of pictures in [-1, 1]; ShapeError where H or W is no multiple of f."""
        check_sides(pictures, self.config, "VQAutoencoder.encode")
        return self.quant_conv(self.encoder(pictures))

    def decode(self, features: Latents) -> Float[Tensor, "b out H W"]:
        """Return pictures, about in [-1, 1] and not clamped, from unscaled features."""
        return self.decoder(self.post_quant_conv(self.quantizer(features).latents))

    def to_latents(self, pictures: Pictures, generator: torch.Generator | None = None) -> Latents:
        """Return scaled features; nothing is random here, and `generator` is the KL autoencoder's."""
        return self.config.scale_factor * self.encode(pictures)

    def to_pictures(self, latents: Latents) -> Pictures:
        """Return pictures clamped to [-1, 1] from scaled features."""
        return self.decode(latents / self.config.scale_factor).clamp(-1, 1)

    def forward(self, pictures: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        return self.decode(self.encode(pictures))
