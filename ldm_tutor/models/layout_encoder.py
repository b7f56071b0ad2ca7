"""Box tokens to a context: the small transformer that reads class, top left and bottom right of each box.

Rombach et al. 2022 (arXiv 2112.10752), section 4.3.2: a transformer without a mask over the tokens of
`ldm_tutor.data.boxes`, trained with the U-Net. Its layers are those of `BertEncoder`.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ldm_tutor.config import BertEncoderConfig
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.nn.blocks import zero_init
from ldm_tutor.shapes import Float, Tensor

_SPREAD = 0.5  # size of the first vectors of places
_SLOT = 0.1  # and of those that tell the three tokens of a box apart


class LayoutEncoder(BertEncoder):
    """`BertEncoder` over box tokens (b, n), whose token vectors start as waves over the grid of places.

    Token row * side + column stands for a place of a side x side grid, side = floor(sqrt(vocab_size)). With random
    first vectors each of those thousand tokens would have to learn alone where it is; with waves, neighbours are alike
    from the start. The first row, whose numbers the classes share, and "none" start random (classes may start as words:
    `start_as_words`). What a layer adds is zero at first.
    """

    def __init__(self, config: BertEncoderConfig) -> None:
        super().__init__(config)
        table = self.token_embedding.weight
        if table.is_meta:
            return
        side = math.isqrt(config.vocab_size)
        with torch.no_grad():
            table.normal_(std=_SPREAD)
            table[side : side * side] = _SPREAD * place_waves(side, config.width)[side:]
            self.position_embedding.weight.normal_(std=_SLOT)
            for layer in self.layers:
                zero_init(layer.self_attn.to_out, layer.fc2)  # type: ignore[union-attr,arg-type]

    @torch.no_grad()
    def start_as_words(self, words: Float[Tensor, "classes d"], norm: nn.LayerNorm) -> None:
        """Let each class start as a word that the U-Net knows: `words`, vectors that the text encoder's `norm` gave.

        So a box's class token says "cat" as the sentence's word does, and only where is left to learn.
        """
        self.norm_out.load_state_dict(norm.state_dict())
        self.token_embedding.weight[: len(words)] = (words - norm.bias) / norm.weight


def place_waves(side: int, width: int) -> Float[Tensor, "places width"]:
    """Return one vector per place of a side x side grid: sines and cosines of row and column, from slow to fast."""
    quarter = max(1, width // 4)
    speeds = math.pi * 2 ** torch.linspace(-1, math.log2(max(2, side / 2)) - 1, quarter)
    at = torch.arange(side) / max(1, side - 1)
    angles = at[:, None] * speeds  # side quarter
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    both = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return math.sqrt(2) * torch.nn.functional.pad(both, (0, max(0, width - both.shape[1])))[:, :width]
