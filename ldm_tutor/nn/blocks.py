"""The blocks that the autoencoder and the U-Net are made of. Shapes of the reference code, section by section.

GroupNorm's eps differs on purpose: 1e-5 in the U-Net's residual and plain attention blocks, 1e-6 in the spatial
transformer and the autoencoder. Layers that end a residual branch of the U-Net start at zero, so that a new block
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.nn.attention import Attention
from ldm_tutor.shapes import Context, FeatureMap, Float, Tensor

STRIP = 2**22  # numbers of a doubled map that a folded `Upsample` makes at once: what its kernel borrows stays small


def zero_init(*layers: nn.Module) -> None:
    """Set weight and bias of each layer to zero."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def silu(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return SiLU of numbers that nobody else will read, such as a norm's answer: in their place, without gradients."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def halve(x: FeatureMap) -> Float[Tensor, "b c h_half w_half"]:
    """Halve height and width: the mean of each 2x2 square."""
    return F.avg_pool2d(x, 2)


def double(x: FeatureMap) -> Float[Tensor, "b c h_double w_double"]:
    """Double height and width: each number four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def fold_doubling(weight: Float[Tensor, "out c 3 3"]) -> Float[Tensor, "c out 4 4"]:
    """Return the weight of a transposed convolution (stride 2, padding 1) that is `double` and then this convolution.

    In the doubled map a window of 3x3 pixels lies on 2x2 different numbers. So 16 products per small pixel give what 36
    give there, and the doubled map is never made.
    """
    for dim in (2, 3):
        first, middle, last = weight.unbind(dim)
        weight = torch.stack([last, middle + last, first + middle, first], dim)
    return weight.transpose(0, 1)


class ResBlock(nn.Module):
    """norm, SiLU, convolution; add the time vector; norm, SiLU, convolution; add the input.

    `time_dim` is None in the autoencoder, which knows no time. `scale_shift`: the time vector scales and shifts what
    the second norm gives, instead of being added before it. `resize` (`halve` or `double`) changes the side of both
    ways, before the first convolution and of the input (Dhariwal and Nichol 2021, arXiv 2105.05233, section 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_dim: int | None,
        norm_groups: int,
        eps: float,
        scale_shift: bool = False,
        resize: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resize = resize
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        time_channels = 2 * out_channels if scale_shift else out_channels
        self.time_proj = nn.Linear(time_dim, time_channels) if time_dim else None
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: FeatureMap, t_emb: Float[Tensor, "b time"] | None = None) -> Float[Tensor, "b out h2 w2"]:
        h = silu(self.norm1(x))
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = self.conv1(h)
        if self.time_proj is None or t_emb is None:
            h = self.norm2(h)
        else:
            t = self.time_proj(F.silu(t_emb))[:, :, None, None]  # b c -> b c 1 1
            if self.scale_shift:
                scale, shift = t.chunk(2, dim=1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + t)
        h = self.conv2(silu(h))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class Downsample(nn.Module):
    """Halve height and width by a strided convolution.

    The U-Net pads all four sides; the autoencoder pads right and bottom only (`asymmetric`), as its weights expect.
    """

    def __init__(self, channels: int, *, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: FeatureMap) -> Float[Tensor, "b c h_half w_half"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution.

    `folded` (see `models.tuning.tune`): both at once, with `fold_doubling`, on a CPU and where the map has more
    positions than channels, since folding costs too. The same numbers up to rounding.
    """

    folded = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: FeatureMap) -> Float[Tensor, "b c h_double w_double"]:
        if self.folded and x.device.type == "cpu" and x.shape[2] * x.shape[3] > x.shape[1]:
            return self._folded(x)
        return self.conv(double(x))

    def _folded(self, x: FeatureMap) -> Float[Tensor, "b c h_double w_double"]:
        """Fold, and go through the map in strips of rows, each with a row of its neighbours, which is cut off again."""
        weight, bias, height = fold_doubling(self.conv.weight), self.conv.bias, x.shape[2]
        rows = max(1, STRIP // (4 * len(weight) * x.shape[3] * len(x)))
        if rows >= height or torch.is_grad_enabled():
            return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        shape = (len(x), weight.shape[1], 2 * height, 2 * x.shape[3])
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        for top in range(0, height, rows):
            above = min(top, 1)
            strip = F.conv_transpose2d(x[:, :, top - above : top + rows + 1], weight, bias, stride=2, padding=1)
            part = out[:, :, 2 * top : 2 * (top + rows)]
            part.copy_(strip[:, :, 2 * above : 2 * above + part.shape[2]])
        return out


class PictureAttention(nn.Module):
    """Self-attention over all positions of a feature map, between norm and residual.

    The autoencoder's has one head and eps 1e-6; that of a U-Net without a context eps 1e-5.
    """

    def __init__(self, channels: int, *, num_heads: int = 1, norm_groups: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=eps)
        self.attn = Attention(dim=channels, num_heads=num_heads, qkv_bias=True)

    def forward(self, x: FeatureMap) -> FeatureMap:
        grid = (x.shape[2], x.shape[3])
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # b c h w -> b (h w) c
        return x + self.attn(tokens, grid=grid).transpose(1, 2).unflatten(2, grid)  # b (h w) c -> b c h w

    def attention_layers(self) -> Iterator[tuple[int, str, Attention]]:
        """Yield the attention layers with the number of their block and their kind, in the order of running."""
        yield 0, "self", self.attn


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202): value x GELU(gate) at four times the width, then back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, 8 * dim)
        self.proj_out = nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention between positions, cross-attention to the words, a feed-forward layer; each added to its input."""

    def __init__(self, dim: int, *, num_heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim=dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = Attention(dim=dim, num_heads=num_heads, context_dim=context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim)

    def forward(self, x: Float[Tensor, "b n d"], context: Context, grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        x = x + self.self_attn(self.norm1(x), grid=grid)
        x = x + self.cross_attn(self.norm2(x), context, grid=grid)
        return x + self.feed_forward(self.norm3(x))


def to_tokens(conv: nn.Conv2d, x: FeatureMap) -> Float[Tensor, "b n out"]:
    """Return what a 1x1 convolution makes of a feature map, as tokens: (b, c, h, w) to (b, h w, out).

    On a CPU in bfloat16 it is computed as the linear layer that it is, 4% of a training step (`docs/speed.txt`).
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return F.linear(x.flatten(2).transpose(1, 2), conv.weight.flatten(1), conv.bias)
    return conv(x).flatten(2).transpose(1, 2)


def to_map(conv: nn.Conv2d, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> FeatureMap:
    """Return what a 1x1 convolution makes of tokens, as a feature map of the sides `grid`; see `to_tokens`."""
    if tokens.device.type == "cpu" and tokens.dtype == torch.bfloat16:
        return F.linear(tokens, conv.weight.flatten(1), conv.bias).transpose(1, 2).unflatten(2, grid)
    return conv(tokens.transpose(1, 2).unflatten(2, grid))


class SpatialTransformer(nn.Module):
    """A feature map read as h x w tokens, through `depth` transformer blocks, and back into a feature map."""

    def __init__(self, channels: int, *, num_heads: int, context_dim: int, depth: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, num_heads=num_heads, context_dim=context_dim) for _ in range(depth)
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: FeatureMap, context: Context) -> FeatureMap:
        grid = (x.shape[2], x.shape[3])
        tokens = to_tokens(self.proj_in, self.norm(x))
        for block in self.blocks:
            tokens = block(tokens, context, grid)
        return x + to_map(self.proj_out, tokens, grid)

    def attention_layers(self) -> Iterator[tuple[int, str, Attention]]:
        """Yield the attention layers with the number of their block and their kind, in the order of running."""
        for number, block in enumerate(self.blocks):
            yield number, "self", block.self_attn  # type: ignore[misc]
            yield number, "cross", block.cross_attn  # type: ignore[misc]
