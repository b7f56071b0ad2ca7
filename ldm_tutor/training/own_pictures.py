"""Training on pictures of your own: what the stages need from a folder instead of the course's scenes."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import lru_cache
from pathlib import Path

import torch

from ldm_tutor.config import ModelConfig, scenes
from ldm_tutor.data.folders import CaptionedPictures, read_folder
from ldm_tutor.models.tokenizer import Tokenizer

VOCABULARY = 2048  # at most; a small folder has fewer words
SHARES = {"autoencoder": 0.15, "clip": 0.08, "denoiser": 0.77}  # of the minutes of `train all --data`


def own_config() -> ModelConfig:
    """Return the course's model with room for more words: captions of real pictures use more than scenes do."""
    model = scenes()
    text = dataclasses.replace(model.clip.text, vocab_size=VOCABULARY)
    return dataclasses.replace(model, name="own", clip=dataclasses.replace(model.clip, text=text))


@lru_cache(maxsize=2)
def own_pictures(folder: Path, side: int) -> CaptionedPictures:
    """Return all good pictures of `folder`, side x side; read once per process."""
    return read_folder(folder, side)


def fingerprint(data: CaptionedPictures) -> str:
    """Return a short hash of pictures and captions: a run is only resumed on the data that it began with."""
    digest = hashlib.sha256(data.pictures.numpy().tobytes())
    digest.update("\0".join(data.captions).encode("utf-8"))
    return digest.hexdigest()[:16]


def own_tokens(captions: list[str], tokenizer: Tokenizer) -> torch.Tensor:
    """Return (n, 1, context_length): one caption per picture."""
    return tokenizer(captions)[:, None]
