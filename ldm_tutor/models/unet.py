"""The U-Net denoiser: noisy latents, a time step and a sentence in; the noise it sees out.

Down: at each level residual blocks (with attention where the configuration says so), then half the side.
Middle. Up: the same levels back, each block also reading what the way down put aside (skips).
Rombach et al. 2022 (arXiv 2112.10752), section 3.3; sizes from `UNetConfig`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import UNetConfig
from ldm_tutor.errors import ShapeError
from ldm_tutor.nn.attention import Attention, Site
from ldm_tutor.nn.blocks import Downsample, ResBlock, SpatialTransformer, Upsample, zero_init
from ldm_tutor.nn.embeddings import TimeMLP
from ldm_tutor.shapes import Context, FeatureMap, Float, Latents, Tensor, Times


class Level(nn.Module):
    """What the two ways share: residual blocks, and one spatial transformer behind each where there is attention."""

    def __init__(self, config: UNetConfig, channels: list[tuple[int, int]], *, attention: bool) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ResBlock(i, o, time_dim=4 * config.channels, norm_groups=config.norm_groups, eps=1e-5) for i, o in channels
        )
        self.transformers = nn.ModuleList(_transformer(config, o) for _, o in channels if attention)

    def block(self, index: int, x: FeatureMap, t_emb: Tensor, context: Context) -> Float[Tensor, "b out h w"]:
        """Run residual block `index`, and its transformer if there is one."""
        x = self.res_blocks[index](x, t_emb)
        return self.transformers[index](x, context) if len(self.transformers) else x


class DownLevel(Level):
    """One level on the way down; `downsample` is missing at the last one."""

    def __init__(self, config: UNetConfig, channels: list[tuple[int, int]], *, attention: bool, last: bool) -> None:
        super().__init__(config, channels, attention=attention)
        self.downsample = None if last else Downsample(channels[-1][1])

    def forward(self, x: FeatureMap, t_emb: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
        """Return the feature map for the next level, and all that the way up will read (the skips)."""
        skips: list[Tensor] = []
        for index in range(len(self.res_blocks)):
            x = self.block(index, x, t_emb, context)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x, skips


class MiddleLevel(Level):
    """The coarsest feature map: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__(config, [(channels, channels)] * 2, attention=False)
        self.transformers.append(_transformer(config, channels))

    def forward(self, x: FeatureMap, t_emb: Tensor, context: Context) -> FeatureMap:
        x = self.transformers[0](self.res_blocks[0](x, t_emb), context)
        return self.res_blocks[1](x, t_emb)


class UpLevel(Level):
    """One level on the way up; each block takes one skip from the way down."""

    def __init__(self, config: UNetConfig, channels: list[tuple[int, int]], *, attention: bool, last: bool) -> None:
        super().__init__(config, channels, attention=attention)
        self.upsample = None if last else Upsample(channels[-1][1])

    def forward(self, x: FeatureMap, skips: list[Tensor], t_emb: Tensor, context: Context) -> Tensor:
        for index in range(len(self.res_blocks)):
            x = self.block(index, torch.cat([x, skips.pop()], dim=1), t_emb, context)
        return x if self.upsample is None else self.upsample(x)


def _transformer(config: UNetConfig, channels: int) -> SpatialTransformer:
    return SpatialTransformer(
        channels,
        num_heads=config.num_heads,
        context_dim=config.context_dim,
        depth=config.transformer_depth,
        norm_groups=config.norm_groups,
    )


class UNet(nn.Module):
    """Predicts the noise in noisy latents, given the time step and the sentence.

    Shapes: latents (b, in_channels, h, w), t (b,), context (b, m, context_dim); returns (b, out_channels, h, w).
    h and w must divide by 2 to the number of levels minus one; ShapeError otherwise.
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

    def forward(self, latents: Latents, t: Times, context: Context) -> Float[Tensor, "b out h w"]:
        self._check(latents, context)
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

    def sites(self) -> tuple[Site, ...]:
        """Return the address of every attention layer, in the order of running."""
        return tuple(site for site, _ in self.attention_layers())

    def attention_layers(self) -> tuple[tuple[Site, Attention], ...]:
        """Return every attention layer with its address, in the order of running."""
        layers = [m for m in self.modules() if isinstance(m, Attention)]
        return tuple((layer.site, layer) for layer in layers if layer.site is not None)

    def _init_zeros(self) -> None:
        for module in self.modules():
            if isinstance(module, ResBlock):
                zero_init(module.conv2)
            elif isinstance(module, SpatialTransformer):
                zero_init(module.proj_out)
        zero_init(self.conv_out)

    def _name_sites(self) -> None:
        num_levels = len(self.down)
        stages: list[tuple[str, int, Level]] = [("down", level, part) for level, part in enumerate(self.down)]  # type: ignore[misc]
        stages.append(("mid", num_levels - 1, self.mid))
        stages += [("up", num_levels - 1 - index, part) for index, part in enumerate(self.up)]  # type: ignore[misc]
        for stage, level, part in stages:
            for b, transformer in enumerate(part.transformers):
                for n, block in enumerate(transformer.blocks):  # type: ignore[arg-type, union-attr]
                    for kind, layer in (("self", block.self_attn), ("cross", block.cross_attn)):
                        where = "mid" if stage == "mid" else f"{stage}.{level}"
                        name = f"{where}.block{b}.layer{n}.{kind}"
                        layer.site = Site(name, stage, level, kind, layer.num_heads)

    def _check(self, latents: Latents, context: Context) -> None:
        factor = 2 ** (len(self.down) - 1)
        if latents.shape[1] != self.config.in_channels or latents.shape[2] % factor or latents.shape[3] % factor:
            raise ShapeError(
                "UNet latents",
                given=tuple(latents.shape),
                expected=f"(b, {self.config.in_channels}, h, w) with h and w multiples of {factor}",
            )
        if context.shape[0] != latents.shape[0] or context.shape[-1] != self.config.context_dim:
            raise ShapeError(
                "UNet context",
                given=tuple(context.shape),
                expected=f"({latents.shape[0]}, tokens, {self.config.context_dim})",
            )
