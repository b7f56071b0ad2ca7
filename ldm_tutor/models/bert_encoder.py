"""The text encoder of the paper's own models: a transformer without a mask, trained together with the U-Net.

Rombach et al. 2022 (arXiv 2112.10752), section 4.3.1 and appendix E.2.1. It takes its name from the tokenizer.
"""

from __future__ import annotations

from torch import nn

from ldm_tutor.config import BertEncoderConfig
from ldm_tutor.errors import ShapeError
from ldm_tutor.nn.transformer import TransformerLayer
from ldm_tutor.shapes import Context, Tokens


class BertEncoder(nn.Module):
    """Transformer over tokens (b, n), n at most context_length; returns (b, n, width) after the last norm.

    Every token sees every other, padding included. The published files also hold a head over the vocabulary that
    nothing uses; it is left out here.
    """

    def __init__(self, config: BertEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(
                config.width,
                num_heads=config.num_heads,
                head_channels=config.head_channels,
                mlp_width=4 * config.width,
                qkv_bias=False,
                activation=nn.GELU,
            )
            for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, tokens: Tokens) -> Context:
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ShapeError(
                "BertEncoder tokens", given=tuple(tokens.shape), expected=f"at most {self.config.context_length} tokens"
            )
        x = self.token_embedding(tokens) + self.position_embedding.weight[:length]
        for layer in self.layers:
            x = layer(x)
        return self.norm_out(x)
