"""The U-Net denoiser: noisy latents, a time step and a sentence in; the noise it sees out.

Down: at each level residual blocks (with attention where the configuration says so), then half the side.
Middle. Up: the same levels back, each block also reading what the way down put aside (skips).
Rombach et al. 2022 (arXiv 2112.10752), section 3.3; sizes from `UNetConfig`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import UNetConfig
from ldm_tutor.errors import ShapeError
from ldm_tutor.nn.attention import Site, WithSites
from ldm_tutor.nn.blocks import (
    Downsample,
    PictureAttention,
    ResBlock,
    SpatialTransformer,
    Upsample,
    double,
    halve,
    zero_init,
)
from ldm_tutor.nn.embeddings import TimeMLP
from ldm_tutor.shapes import Context, FeatureMap, Float, Latents, Tensor, Times


class Level(nn.Module):
    """What the two ways share: residual blocks, and one spatial transformer behind each where there is attention."""

    def __init__(self, config: UNetConfig, channels: list[tuple[int, int]], *, attention: bool) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(_res_block(config, i, o) for i, o in channels)
        self.transformers = nn.ModuleList(_transformer(config, o) for _, o in channels if attention)

    def block(self, index: int, x: FeatureMap, t_emb: Tensor, context: Context | None) -> Float[Tensor, "b out h w"]:
        """Run residual block `index`, and its transformer if there is one."""
        x = self.res_blocks[index](x, t_emb)
        return self.attend(index, x, context) if len(self.transformers) else x

    def attend(self, index: int, x: FeatureMap, context: Context | None) -> FeatureMap:
        """Run transformer `index`; without a context it is plain self-attention."""
        transformer = self.transformers[index]
        return transformer(x) if context is None else transformer(x, context)


class DownLevel(Level):
    """One level on the way down; `downsample` is missing at the last one."""

    def __init__(self, config: UNetConfig, channels: list[tuple[int, int]], *, attention: bool, last: bool) -> None:
        super().__init__(config, channels, attention=attention)
        self.downsample = None if last else _downsample(config, channels[-1][1])

    def forward(self, x: FeatureMap, t_emb: Tensor, context: Context | None) -> tuple[Tensor, list[Tensor]]:
        """Return the feature map for the next level, and all that the way up will read (the skips)."""
        skips: list[Tensor] = []
        for index in range(len(self.res_blocks)):
            x = self.block(index, x, t_emb, context)
            skips.append(x)
        if self.downsample is not None:
            x = _resized(self.downsample, x, t_emb)
            skips.append(x)
        return x, skips


class MiddleLevel(Level):
    """The coarsest feature map: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__(config, [(channels, channels)] * 2, attention=False)
        self.transformers.append(_transformer(config, channels))

    def forward(self, x: FeatureMap, t_emb: Tensor, context: Context | None) -> FeatureMap:
        x = self.attend(0, self.res_blocks[0](x, t_emb), context)
        return self.res_blocks[1](x, t_emb)


class UpLevel(Level):
    """One level on the way up; each block takes one skip from the way down."""

    def __init__(self, config: UNetConfig, channels: list[tuple[int, int]], *, attention: bool, last: bool) -> None:
        super().__init__(config, channels, attention=attention)
        self.upsample = None if last else _upsample(config, channels[-1][1])

    def forward(self, x: FeatureMap, skips: list[Tensor], t_emb: Tensor, context: Context | None) -> Tensor:
        for index in range(len(self.res_blocks)):
            x = self.block(index, torch.cat([x, skips.pop()], dim=1), t_emb, context)
        return x if self.upsample is None else _resized(self.upsample, x, t_emb)


def _res_block(
    config: UNetConfig, in_channels: int, out_channels: int, resize: Callable[[Tensor], Tensor] | None = None
) -> ResBlock:
    return ResBlock(
        in_channels,
        out_channels,
        time_dim=4 * config.channels,
        norm_groups=config.norm_groups,
        eps=1e-5,
        scale_shift=config.scale_shift_norm,
        resize=resize,
    )


def _downsample(config: UNetConfig, channels: int) -> Downsample | ResBlock:
    return _res_block(config, channels, channels, halve) if config.resblock_updown else Downsample(channels)


def _upsample(config: UNetConfig, channels: int) -> Upsample | ResBlock:
    return _res_block(config, channels, channels, double) if config.resblock_updown else Upsample(channels)


def _resized(layer: nn.Module, x: FeatureMap, t_emb: Tensor) -> Float[Tensor, "b c h2 w2"]:
    return layer(x, t_emb) if isinstance(layer, ResBlock) else layer(x)


def _transformer(config: UNetConfig, channels: int) -> SpatialTransformer | PictureAttention:
    if config.context_dim is None:
        num_heads = config.heads_at(channels)
        return PictureAttention(channels, num_heads=num_heads, norm_groups=config.norm_groups, eps=1e-5)
    return SpatialTransformer(
        channels,
        num_heads=config.heads_at(channels),
        context_dim=config.context_dim,
        depth=config.transformer_depth,
        norm_groups=config.norm_groups,
    )


class UNet(WithSites):
    """Predicts the noise in noisy latents, given the time step and the sentence.

    Shapes: latents (b, in_channels, h, w), t (b,), context (b, m, context_dim); returns (b, out_channels, h, w).
    h and w must divide by 2 to the number of levels minus one; ShapeError otherwise. A U-Net whose context_dim is
    None takes no context. What is concatenated (a mask, a small picture) are latent channels beyond out_channels.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * mult for mult in config.channel_mult]
        num_levels = len(widths)
        self.time_mlp = TimeMLP(config.channels)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)

        skip_widths, width = [widths[0]], widths[0]
        self.down = nn.ModuleList()
        for level, out in enumerate(widths):
            channels = [(width, out)] + [(out, out)] * (config.num_res_blocks - 1)
            last = level == num_levels - 1
            self.down.append(DownLevel(config, channels, attention=level in config.attention_levels, last=last))
            skip_widths += [out] * (config.num_res_blocks + (not last))
            width = out

        self.mid = MiddleLevel(config, width)

        self.up = nn.ModuleList()  # in the order of running: the coarsest level first
        for level in reversed(range(num_levels)):
            channels = []
            for _ in range(config.num_res_blocks + 1):
                channels.append((width + skip_widths.pop(), widths[level]))
                width = widths[level]
            self.up.append(UpLevel(config, channels, attention=level in config.attention_levels, last=level == 0))

        self.norm_out = nn.GroupNorm(config.norm_groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)
        self._init_zeros()
        self._name_sites()

    def forward(self, latents: Latents, t: Times, context: Context | None = None) -> Float[Tensor, "b out h w"]:
        self._check(latents, t, context)
        t_emb = self.time_mlp(t)
        x = self.conv_in(latents)
        skips = [x]
        for down in self.down:
            x, new_skips = down(x, t_emb, context)
            skips += new_skips
        x = self.mid(x, t_emb, context)
        for up in self.up:
            x = up(x, skips, t_emb, context)
        return self.conv_out(F.silu(self.norm_out(x)))

    def _init_zeros(self) -> None:
        for module in self.modules():
            if isinstance(module, ResBlock):
                zero_init(module.conv2)
            elif isinstance(module, SpatialTransformer):
                zero_init(module.proj_out)
            elif isinstance(module, PictureAttention):
                zero_init(module.attn.to_out)
        zero_init(self.conv_out)

    def _name_sites(self) -> None:
        num_levels = len(self.down)
        stages: list[tuple[str, int, Level]] = [("down", level, part) for level, part in enumerate(self.down)]  # type: ignore[misc]
        stages.append(("mid", num_levels - 1, self.mid))
        stages += [("up", num_levels - 1 - index, part) for index, part in enumerate(self.up)]  # type: ignore[misc]
        for stage, level, part in stages:
            where = "mid" if stage == "mid" else f"{stage}.{level}"
            for b, transformer in enumerate(part.transformers):
                for n, kind, layer in transformer.attention_layers():  # type: ignore[operator]
                    name = f"{where}.block{b}.layer{n}.{kind}"
                    layer.site = Site(name, stage, level, kind, layer.num_heads)

    def _check(self, latents: Latents, t: Times, context: Context | None) -> None:
        factor = 2 ** (len(self.down) - 1)
        if latents.shape[1] != self.config.in_channels or latents.shape[2] % factor or latents.shape[3] % factor:
            raise ShapeError(
                "UNet latents",
                given=tuple(latents.shape),
                expected=f"(b, {self.config.in_channels}, h, w) with h and w multiples of {factor}",
            )
        if t.dim() != 1 or len(t) not in (1, len(latents)):
            raise ShapeError("UNet t", given=tuple(t.shape), expected=f"(1,) or ({len(latents)},)")
        width = self.config.context_dim
        if width is None:
            fits = context is None
        else:
            fits = context is not None and context.dim() == 3
            fits = fits and (context.shape[0], context.shape[-1]) == (latents.shape[0], width)  # type: ignore[union-attr]
        if not fits:
            raise ShapeError(
                "UNet context",
                given=None if context is None else tuple(context.shape),
                expected="none" if width is None else f"({latents.shape[0]}, tokens, {width})",
            )
