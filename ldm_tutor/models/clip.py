"""CLIP: a text tower and an image tower whose vectors point the same way for a sentence and its picture."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import ClipConfig
from ldm_tutor.errors import WeightsError
from ldm_tutor.models.image_encoder import ImageEncoder
from ldm_tutor.models.text_encoder import TextEncoder, pick_end
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.shapes import Float, Int, Pictures, Tensor, Tokens


class Clip(nn.Module):
    """Both towers, their projections into one space of `embed_dim` numbers, and the learned temperature.

    `end_id` is the tokenizer's end token, whose vector sums up the sentence.
    """

    def __init__(self, config: ClipConfig, *, end_id: int) -> None:
        super().__init__()
        self.config = config
        self.end_id = end_id
        self.text = TextEncoder(config.text)
        self.image = ImageEncoder(config.image)
        self.text_projection = nn.Linear(config.text.width, config.embed_dim, bias=False)
        self.image_projection = nn.Linear(config.image.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.text_projection.weight, std=config.text.width**-0.5)
        nn.init.normal_(self.image_projection.weight, std=config.image.width**-0.5)

    def embed_text(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        """Return one unit vector per sentence."""
        summary = pick_end(self.text(tokens), tokens, self.end_id)
        return F.normalize(self.text_projection(summary), dim=-1)

    def embed_pictures(self, pictures: Pictures) -> Float[Tensor, "b d"]:
        """Return one unit vector per picture; pictures in [-1, 1]."""
        return F.normalize(self.image_projection(self.image(pictures)), dim=-1)

    def forward(
        self, pictures: Float[Tensor, "pictures 3 H W"], tokens: Int[Tensor, "sentences n"]
    ) -> Float[Tensor, "pictures sentences"]:
        """Return the similarity of every picture with every sentence, times the scale, 1 / temperature, at most 100."""
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        return scale * self.embed_pictures(pictures) @ self.embed_text(tokens).T


def check_tokenizer(tokenizer: Tokenizer, clip: Clip, where: str) -> None:
    """Raise WeightsError unless the tokenizer of the folder `where` is the one that its CLIP was trained with."""
    text = clip.config.text
    if tokenizer.vocab_size > text.vocab_size:
        expected = f"at most {text.vocab_size}"
        told = f"the tokenizer in {where} has more tokens than the text encoder"
        raise WeightsError(told, given=tokenizer.vocab_size, expected=expected)
    if tokenizer.context_length != text.context_length:
        told = f"the tokenizer in {where} frames sentences otherwise than the text encoder reads them"
        raise WeightsError(told, given=tokenizer.context_length, expected=f"{text.context_length} tokens")
    if tokenizer.end_id != clip.end_id:
        told = f"the tokenizer in {where} and its CLIP do not belong together"
        raise WeightsError(told, given=tokenizer.end_id, expected=f"the end token {clip.end_id}")
