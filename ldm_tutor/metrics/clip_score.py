"""The CLIP score: how much a picture and its sentence point the same way (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ldm_tutor.errors import ShapeError
from ldm_tutor.metrics.figures import Measured, mean
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.shapes import Float, Pictures, Tensor

WEIGHT = 100.0  # times the cosine, as libraries report it; the paper's own weight is 2.5


def clip_scores(
    pictures: Float[Tensor, "n d"], sentences: Float[Tensor, "n d"], weight: float = WEIGHT
) -> Float[Tensor, " n"]:
    """Return weight x max(cosine, 0) of each picture's vector with its own sentence's, float64, on the CPU."""
    if pictures.dim() != 2 or pictures.shape != sentences.shape:
        raise ShapeError(
            "clip_scores", given=(tuple(pictures.shape), tuple(sentences.shape)), expected="one sentence per picture"
        )
    return weight * F.cosine_similarity(pictures.cpu().double(), sentences.cpu().double(), dim=1).clamp(min=0)


@torch.inference_mode()
def clip_score(
    clip: Clip, tokenizer: Tokenizer, pictures: Pictures, captions: Sequence[str], batch_size: int = 128
) -> Measured:
    """Return the mean CLIP score of pictures in [-1, 1] with their captions, and its interval.

    Numbers of two CLIPs do not compare. A CLIP that has helped to train a model is no neutral judge of it.
    """
    if len(pictures) != len(captions):
        raise ShapeError("clip_score", given=(len(pictures), len(captions)), expected="one caption per picture")
    scores: list[float] = []
    device = clip.logit_scale.device
    for start in range(0, len(captions), batch_size):
        part = slice(start, start + batch_size)
        tokens = tokenizer(list(captions[part])).to(device)
        drawn = clip.embed_pictures(pictures[part].to(device).float())
        scores += clip_scores(drawn, clip.embed_text(tokens)).tolist()
    return mean(scores)


@torch.inference_mode()
def clip_features(clip: Clip, pictures: Pictures, batch_size: int = 128) -> Float[Tensor, "n d"]:
    """Return CLIP's unit vector of each picture, float64, on the CPU: another feature network for FID and its kin."""
    device = clip.logit_scale.device
    parts = pictures.split(batch_size)
    return torch.cat([clip.embed_pictures(part.to(device).float()).cpu().double() for part in parts])
