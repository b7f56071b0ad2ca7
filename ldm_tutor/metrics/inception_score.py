"""The Inception score: is each picture clearly something, and is everything there? (Salimans et al. 2016,
arXiv 1606.03498, section 4.)

It needs a classifier's probabilities and no real pictures at all. With Inception's 1,008 outputs it is the papers'
score; with the judge's nine kinds, as here, it lies between 1 and 9 and compares only with itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.models.judge import Judge, as_seen
from ldm_tutor.shapes import Float, Pictures, Tensor


@dataclass(frozen=True)
class InceptionScore:
    """The mean over the splits, and the spread between them (0 with a single split), as papers write 20.03 +- .33."""

    value: float
    spread: float


def inception_score(probabilities: Float[Tensor, "n k"], splits: int = 10) -> InceptionScore:
    """Return exp(mean KL(p(y|x) || p(y))), computed in float64 on `splits` equal parts of the rows.

    Each row holds the probabilities of k classes and adds up to 1. The rows are taken in their order: shuffle pictures
    that come sorted. Raises ShapeError for rows that are no probabilities, ConfigError for more splits than rows.
    """
    p = probabilities.double()
    if p.dim() != 2 or not bool(((p >= 0).all()) & ((p.sum(dim=1) - 1).abs() < 1e-3).all()):
        raise ShapeError("inception_score", given=tuple(p.shape), expected="(n, k), rows that add up to 1")
    if not 1 <= splits <= len(p):
        raise ConfigError("inception_score: splits", given=splits, expected=f"1 to {len(p)}, the number of pictures")
    scores = []
    for k in range(splits):
        part = p[k * len(p) // splits : (k + 1) * len(p) // splits]
        marginal = part.mean(dim=0)  # p(y)
        scores.append(_kl(part, marginal).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(float(values.mean()), float(values.std(correction=0)))


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) per row; a class with p = 0 adds nothing."""
    return torch.xlogy(p, p).sum(dim=1) - torch.xlogy(p, q).sum(dim=1)


@torch.inference_mode()
def judge_probabilities(judge: Judge, pictures: Pictures, batch_size: int = 128) -> Float[Tensor, "n kinds"]:
    """Return what the judge takes the main object for: its probabilities of the kinds where it is surest of a centre.

    Pictures in [-1, 1] of 64 pixels or more; float64, on the CPU.
    """
    device, found = next(judge.parameters()).device, []
    for part in pictures.split(batch_size):
        maps = judge(as_seen(part.to(device).float()))
        best = maps.heat.flatten(1).argmax(dim=1)
        kinds = maps.kind.flatten(2)[torch.arange(len(part), device=device), :, best]
        found.append(kinds.cpu().double().softmax(dim=1))
    return torch.cat(found)
