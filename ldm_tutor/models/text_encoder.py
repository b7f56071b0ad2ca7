"""CLIP's text tower: token numbers in, one vector per token out. The U-Net reads all of them."""

from __future__ import annotations

import torch
from torch import nn

from ldm_tutor.config import TextEncoderConfig
from ldm_tutor.errors import ShapeError
from ldm_tutor.nn.transformer import TransformerLayer, causal_mask
from ldm_tutor.shapes import Context, Tokens


class TextEncoder(nn.Module):
    """Causal transformer over tokens (b, n), n at most context_length; returns (b, n, width) after the last norm.

    Padding is not masked: the reference model's U-Net attends to all 77 vectors, and so does ours to its own.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, num_heads=config.num_heads, mlp_width=config.mlp_width)
            for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, tokens: Tokens) -> Context:
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ShapeError(
                "TextEncoder tokens", given=tuple(tokens.shape), expected=f"at most {self.config.context_length} tokens"
            )
        x = self.token_embedding(tokens) + self.position_embedding.weight[:length]
        mask = causal_mask(length, tokens.device)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm_out(x)


def pick_end(vectors: Context, tokens: Tokens, end_id: int) -> torch.Tensor:
    """Return the vector at each sentence's first end token, shape (b, d): CLIP's summary of the sentence."""
    first_end = (tokens == end_id).int().argmax(dim=1)
    return vectors[torch.arange(len(tokens), device=tokens.device), first_end]
