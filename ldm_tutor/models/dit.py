"""A transformer in the place of the U-Net: latents cut into patches, each a token, and all blocks alike.

Peebles and Xie 2023 (DiT, arXiv 2212.09748); where there is a context, its words are read by a cross-attention
between self-attention and MLP, as in PixArt-alpha (Chen et al. 2023, arXiv 2310.00426).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import Config, UNetConfig
from ldm_tutor.errors import ShapeError
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import Attention, Site, WithSites
from ldm_tutor.nn.blocks import zero_init
from ldm_tutor.nn.embeddings import TimeMLP, grid_embedding
from ldm_tutor.shapes import Context, Float, Int, Latents, Tensor, Times

WAVE = 256  # width of the wave of the time, before the two layers that read it
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class DiTConfig(Config):
    """A transformer in the place of the U-Net: latents of `side` x `side`, cut into patches of `patch_size`.

    `context_dim`: width of the sentence's vectors for cross-attention, None without. `num_classes`: how many classes
    the time vector can be joined by, one of them standing for none; None without.
    """

    in_channels: int = 4
    out_channels: int = 4
    side: int = 32
    patch_size: int = 2
    width: int = 1152
    depth: int = 28
    num_heads: int = 16
    context_dim: int | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.side % self.patch_size == 0, "side", f"a multiple of patch_size={self.patch_size}")
        self._need(self.width % self.num_heads == 0, "width", f"a multiple of num_heads={self.num_heads}")
        self._need(self.width % 4 == 0, "width", "a multiple of 4: sine and cosine, for row and column")


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]
) -> Float[Tensor, "b n d"]:
    """Return x (1 + scale) + shift: the same for all tokens of a picture. Zeros change nothing."""
    return x * (1 + scale[:, None]) + shift[:, None]


def patchify(latents: Latents, patch: int) -> Float[Tensor, "b n values"]:
    """Cut latents into patches of patch x patch, row by row: (b, h w / patch^2, c patch^2), channels outermost."""
    return F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Float[Tensor, "b n values"], patch: int, grid: tuple[int, int]) -> Latents:
    """Put tokens (b, n, patch^2 c), channels innermost, back into latents on a grid of patches."""
    values = tokens.unflatten(2, (patch * patch, -1)).transpose(2, 3).flatten(2)  # channels outermost
    return F.pixel_shuffle(values.transpose(1, 2).unflatten(2, grid), patch)


class Mlp(nn.Module):
    """Two linear layers with GELU (its tanh form) between them, four times as wide in the middle."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """adaLN-Zero: the time vector says how each norm is shifted and scaled, and how much each branch adds.

    That is six vectors from one linear layer, which starts at zero; so a new block changes nothing.
    """

    def __init__(self, width: int, *, num_heads: int, context_dim: int | None) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.self_attn = Attention(dim=width, num_heads=num_heads, qkv_bias=True)
        self.norm_cross = nn.LayerNorm(width) if context_dim else None
        self.cross_attn = Attention(dim=width, num_heads=num_heads, context_dim=context_dim) if context_dim else None
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.mlp = Mlp(width)

    def forward(
        self, x: Float[Tensor, "b n d"], time: Float[Tensor, "b d"], context: Context | None, grid: tuple[int, int]
    ) -> Float[Tensor, "b n d"]:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(time)).chunk(6, dim=1)
        x = x + gate_1[:, None] * self.self_attn(modulate(self.norm1(x), shift_1, scale_1), grid=grid)
        if self.cross_attn is not None and self.norm_cross is not None:
            x = x + self.cross_attn(self.norm_cross(x), context, grid=grid)
        return x + gate_2[:, None] * self.mlp(modulate(self.norm2(x), shift_2, scale_2))


class DiT(WithSites):
    """Noisy latents, a time and a sentence (or a class) in, what `out_channels` are trained to say out.

    The time is read as the U-Net reads it, 0 to 1000. Stands wherever a U-Net stands: `Guided`, `watch`, the training
    stages. Raises ShapeError for latents, a context or classes that do not fit.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.patch_in = nn.Linear(config.in_channels * patch**2, width)
        self.time_mlp = TimeMLP(WAVE, width)
        self.classes = nn.Embedding(config.num_classes, width) if config.num_classes else None
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads=config.num_heads, context_dim=config.context_dim) for _ in range(config.depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=EPS)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, config.out_channels * patch**2)
        self._init_weights()
        self._name_sites()

    @property
    def places(self) -> Float[Tensor, "n d"]:
        """What is added to each token for its place; fixed, and made anew at each call, so no file holds it."""
        return grid_embedding(self.config.side // self.config.patch_size, self.config.width)

    def forward(
        self, latents: Latents, t: Times, context: Context | None = None, classes: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        self._check(latents, context, classes)
        patch = self.config.patch_size
        grid = (latents.shape[2] // patch, latents.shape[3] // patch)
        x = self.patch_in(patchify(latents, patch)) + self.places.to(latents)
        time = self.time_mlp(t)
        if self.classes is not None:
            time = time + self.classes(classes)
        for block in self.blocks:
            x = block(x, time, context, grid)
        shift, scale = self.modulation_out(F.silu(time)).chunk(2, dim=1)
        return unpatchify(self.patch_out(modulate(self.norm_out(x), shift, scale)), patch, grid)

    def _init_weights(self) -> None:
        """Xavier for linear layers, and zeros where a branch ends: a new DiT says 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.time_mlp.linear_1, self.time_mlp.linear_2, self.classes):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
        zero_init(self.modulation_out, self.patch_out)
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            zero_init(block.modulation)
            if block.cross_attn is not None:
                zero_init(block.cross_attn.to_out)

    def _name_sites(self) -> None:
        for number, block in enumerate(self.blocks):
            assert isinstance(block, DiTBlock)
            for kind, layer in (("self", block.self_attn), ("cross", block.cross_attn)):
                if layer is not None:
                    layer.site = Site(f"mid.block{number}.layer0.{kind}", "mid", 0, kind, self.config.num_heads)

    def _check(self, latents: Latents, context: Context | None, classes: Tensor | None) -> None:
        config, b = self.config, latents.shape[0]
        if tuple(latents.shape[1:]) != (config.in_channels, config.side, config.side):
            expected = f"(b, {config.in_channels}, {config.side}, {config.side})"
            raise ShapeError("DiT latents", given=tuple(latents.shape), expected=expected)
        given = None if context is None else (context.shape[0], context.shape[-1])
        if given != (None if config.context_dim is None else (b, config.context_dim)):
            expected_context = "none" if config.context_dim is None else f"({b}, tokens, {config.context_dim})"
            shape = None if context is None else tuple(context.shape)
            raise ShapeError("DiT context", given=shape, expected=expected_context)
        shape = None if classes is None else tuple(classes.shape)
        if shape != (None if config.num_classes is None else (b,)):
            raise ShapeError("DiT classes", given=shape, expected="none" if config.num_classes is None else f"({b},)")


def make_denoiser(config: UNetConfig | DiTConfig) -> UNet | DiT:
    """Return the network that a configuration describes, with fresh weights."""
    return DiT(config) if isinstance(config, DiTConfig) else UNet(config)
