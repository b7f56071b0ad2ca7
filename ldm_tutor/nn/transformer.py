"""The pre-norm transformer layer of CLIP's two towers (Radford et al. 2021, arXiv 2103.00020) and of LDM's BERT."""

from __future__ import annotations

import torch
from torch import nn

from ldm_tutor.nn.attention import Attention
from ldm_tutor.shapes import Bool, Float, Tensor


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x): CLIP's quick approximation of GELU."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x * torch.sigmoid(1.702 * x)


class TransformerLayer(nn.Module):
    """norm, self-attention, add; norm, two linear layers, add. The defaults are CLIP's."""

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        mlp_width: int,
        head_channels: int | None = None,
        qkv_bias: bool = True,
        activation: type[nn.Module] = QuickGELU,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = Attention(dim=width, num_heads=num_heads, head_channels=head_channels, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_width)
        self.activation = activation()
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "n n"] | None = None) -> Float[Tensor, "b n d"]:
        x = x + self.self_attn(self.norm1(x), mask=mask)
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


def causal_mask(length: int, device: torch.device | None = None) -> Bool[Tensor, "n n"]:
    """Return a (length, length) mask that lets each token see itself and the tokens before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
