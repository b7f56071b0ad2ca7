"""Does CLIP find the sentence of a picture, and the picture of a sentence, in a batch?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm_tutor.data.scenes.requests import Request
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.data.scenes.world import Scene
from ldm_tutor.metrics.figures import Measured, share
from ldm_tutor.models.clip import Clip
from ldm_tutor.shapes import Pictures, Tokens


@torch.inference_mode()
def retrieval_top1(clip: Clip, pictures: Pictures, tokens: Tokens, batch_size: int = 64) -> dict[str, Measured]:
    """Return the share of right first answers in full batches, both ways: picture_to_text and text_to_picture."""
    device = clip.logit_scale.device
    to_text: list[bool] = []
    to_picture: list[bool] = []
    for start in range(0, len(pictures) - batch_size + 1, batch_size):
        part = slice(start, start + batch_size)
        logits = clip(pictures[part].to(device), tokens[part].to(device)).cpu()
        own = torch.arange(batch_size)
        to_text += (logits.argmax(dim=1) == own).tolist()
        to_picture += (logits.argmax(dim=0) == own).tolist()
    return {"picture_to_text": share(to_text), "text_to_picture": share(to_picture)}


@torch.inference_mode()
def told_apart(clip: Clip, pictures: Pictures, right: Tokens, wrong: Tokens, batch_size: int = 128) -> Measured:
    """Return the share of pictures that are nearer to their right sentence than to a wrong one; a guess has a half."""
    device = clip.logit_scale.device
    answers: list[bool] = []
    for rows in torch.arange(len(pictures)).split(batch_size):
        seen = clip.embed_pictures(pictures[rows].to(device))
        near, far = ((seen * clip.embed_text(told[rows].to(device))).sum(dim=1) for told in (right, wrong))
        answers += (near > far).tolist()
    return share(answers)


def distinct_batches(captions: Sequence[str], scenes: Sequence[Scene], batch_size: int = 64) -> list[int]:
    """Return indices whose batches of `batch_size` hold no sentence that is also true of another picture in it.

    "a red cat" fits every picture with one red cat; no reader could tell which is meant, so such pairs are kept apart.
    """
    chosen: list[int] = []
    batch: list[tuple[Request, Scene, int]] = []
    for index, (caption, scene) in enumerate(zip(captions, scenes, strict=True)):
        request = parse(caption)
        clash = any(
            request.is_met_by(other.objects, other.background) or told.is_met_by(scene.objects, scene.background)
            for told, other, _ in batch
        )
        if clash:
            continue
        batch.append((request, scene, index))
        if len(batch) == batch_size:
            chosen += [number for _, _, number in batch]
            batch = []
    return chosen
