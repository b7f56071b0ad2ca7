"""The KL autoencoder: a picture becomes a small grid of latents, and latents become a picture again.

Rombach et al. 2022, section 3.1 and appendix G. The encoder does not give one latent but a Gaussian per position
(mean and log variance); a weak KL term keeps it near N(0, I).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import AutoencoderConfig
from ldm_tutor.errors import ShapeError
from ldm_tutor.nn.blocks import Downsample, PictureAttention, ResBlock, Upsample
from ldm_tutor.shapes import FeatureMap, Float, Latents, Pictures, Tensor


class DiagonalGaussian:
    """The encoder's answer: independent normal distributions, one per latent number.

    `mean` and `logvar` have shape (b, latent_channels, h, w); logvar is kept in [-30, 20].
    """

    def __init__(self, moments: Float[Tensor, "b c2 h w"]) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, generator: torch.Generator | None = None) -> Latents:
        """Draw mean + std x noise: the reparameterisation that lets gradients through."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32, device="cpu").to(self.mean)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Latents:
        """Return the most likely latents: the mean."""
        return self.mean

    def kl(self) -> Float[Tensor, " b"]:
        """Return the divergence from N(0, I), summed over all latent numbers of a picture, in nats; shape (b,)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(dim=1)


class CoderLevel(nn.Module):
    """Residual blocks of one level (with attention behind each, if any), and the change of size behind them, if any."""

    def __init__(
        self,
        config: AutoencoderConfig,
        channels: list[tuple[int, int]],
        resize: nn.Module | None,
        *,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(_res_block(config, i, o) for i, o in channels)
        self.attentions = nn.ModuleList(
            PictureAttention(o, norm_groups=config.norm_groups) for _, o in channels if attention
        )
        self.resize = resize

    def forward(self, x: FeatureMap) -> Float[Tensor, "b out h_out w_out"]:
        for index, block in enumerate(self.res_blocks):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[index](x)
        return x if self.resize is None else self.resize(x)


class CoderMiddle(nn.Module):
    """The coarsest feature map: residual block, attention, residual block."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(_res_block(config, channels, channels) for _ in range(2))
        self.attention = PictureAttention(channels, norm_groups=config.norm_groups) if config.mid_attention else None

    def forward(self, x: FeatureMap) -> FeatureMap:
        x = self.res_blocks[0](x)
        if self.attention is not None:
            x = self.attention(x)
        return self.res_blocks[1](x)


def _res_block(config: AutoencoderConfig, in_channels: int, out_channels: int) -> ResBlock:
    return ResBlock(in_channels, out_channels, time_dim=None, norm_groups=config.norm_groups, eps=1e-6)


class Encoder(nn.Module):
    """Pictures (b, 3, H, W) to moments (b, moment_channels, H / f, W / f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        self.conv_in = nn.Conv2d(config.picture_channels, config.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        width = config.channels
        for level, out in enumerate(widths):
            channels = [(width, out)] + [(out, out)] * (config.num_res_blocks - 1)
            resize = None if level == len(widths) - 1 else Downsample(out, asymmetric=True)
            attention = level in config.attention_levels
            self.levels.append(CoderLevel(config, channels, resize, attention=attention))
            width = out
        self.mid = CoderMiddle(config, width)
        self.norm_out = nn.GroupNorm(config.norm_groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.moment_channels, 3, padding=1)

    def forward(self, pictures: Float[Tensor, "b c H W"]) -> Float[Tensor, "b moments h w"]:
        x = self.conv_in(pictures)
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents (b, latent_channels, h, w) to pictures (b, 3, f h, f w); one residual block more per level."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = CoderMiddle(config, width)
        self.levels = nn.ModuleList()  # in the order of running: the coarsest level first
        for level in reversed(range(len(widths))):
            out = widths[level]
            channels = [(width, out)] + [(out, out)] * config.num_res_blocks
            resize = None if level == 0 else Upsample(out)
            attention = level in config.attention_levels
            self.levels.append(CoderLevel(config, channels, resize, attention=attention))
            width = out
        self.norm_out = nn.GroupNorm(config.norm_groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.picture_channels, 3, padding=1)

    def forward(self, latents: Latents) -> Float[Tensor, "b out H W"]:
        x = self.mid(self.conv_in(latents))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def check_sides(pictures: Float[Tensor, "b c H W"], config: AutoencoderConfig, place: str) -> None:
    """Raise ShapeError for pictures of other channels, or whose height or width is no multiple of the factor f."""
    f, channels = config.downsampling, config.picture_channels
    if pictures.dim() != 4 or pictures.shape[1] != channels:
        raise ShapeError(place, given=tuple(pictures.shape), expected=f"(b, {channels}, H, W)")
    if pictures.shape[2] % f or pictures.shape[3] % f:
        raise ShapeError(place, given=tuple(pictures.shape), expected=f"height and width to be multiples of {f}")


class Autoencoder(nn.Module):
    """Encoder, decoder, and the scale that gives the latents unit standard deviation.

    `encode` and `decode` are the bare network (what the losses see). `to_latents` and `to_pictures` are what the
    diffusion model uses: scaled latents in, pictures clamped to [-1, 1] out.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, pictures: Float[Tensor, "b c H W"]) -> DiagonalGaussian:
        """Return the distribution of (unscaled) latents of pictures in [-1, 1]; H and W must be multiples of f."""
        check_sides(pictures, self.config, "Autoencoder.encode")
        return DiagonalGaussian(self.quant_conv(self.encoder(pictures)))

    def decode(self, latents: Latents) -> Float[Tensor, "b out H W"]:
        """Return pictures, about in [-1, 1] and not clamped, from unscaled latents."""
        return self.decoder(self.post_quant_conv(latents))

    def to_latents(self, pictures: Pictures, generator: torch.Generator | None = None) -> Latents:
        """Return scaled latents, sampled as the LDM code does for training and for picture-to-picture."""
        return self.config.scale_factor * self.encode(pictures).sample(generator)

    def to_pictures(self, latents: Latents) -> Pictures:
        """Return pictures clamped to [-1, 1] from scaled latents."""
        return self.decode(latents / self.config.scale_factor).clamp(-1, 1)

    def forward(self, pictures: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        return self.decode(self.encode(pictures).mode())
