"""Training on pictures of your own: what the stages need from a folder instead of the course's scenes."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from functools import lru_cache

import torch

from ldm_tutor.config import ModelConfig, scenes
from ldm_tutor.data.captioned import CaptionedPictures, summary
from ldm_tutor.data.folders import TORCHVISION, find_entries, read_pictures
from ldm_tutor.models.tokenizer import Tokenizer, split_words

log = logging.getLogger(__name__)

VOCABULARY = 2048  # at most; a small folder has fewer words
WARMUP = 50  # steps, at most: a run on some hundred pictures is short
SHARES = {"autoencoder": 0.15, "clip": 0.08, "denoiser": 0.77}  # of the minutes of `train all --data`


def own_config(base: ModelConfig | None = None) -> ModelConfig:
    """Return the course's model, or `base`, with room for more words: captions of pictures use more than scenes do."""
    model = base or scenes()
    text = dataclasses.replace(model.clip.text, vocab_size=VOCABULARY)
    return dataclasses.replace(model, name="own", clip=dataclasses.replace(model.clip, text=text))


def count_pictures(source: str) -> int:
    """Return how many picture files a folder has, before one is read; 0 where that would take reading them all."""
    if source.startswith(TORCHVISION):
        return 0
    form, entries = find_entries(source, lambda _: None)
    return 0 if form == "shards" else sum(1 for _ in entries)


@lru_cache(maxsize=2)
def own_pictures(source: str, side: int) -> CaptionedPictures:
    """Return all good pictures of `source`, side x side; read once per process. What is left out goes to the log."""
    data = read_pictures(source, side)
    if told := summary(data):
        log.warning("%s: %d pictures are used; ldm-tutor data check says more\n%s", source, len(data), told)
    return data


def fingerprint(data: CaptionedPictures) -> str:
    """Return a short hash of pictures and captions: a run is only resumed on the data that it began with."""
    digest = hashlib.sha256(data.pictures.numpy().tobytes())
    digest.update("\0".join(data.captions).encode("utf-8"))
    return digest.hexdigest()[:16]


def fit_captions(captions: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Return the captions, each one that is too long for the text encoder cut after its last whole word that fits."""
    room = tokenizer.context_length - 2
    fitted, cut = [], 0
    for caption in captions:
        pieces = tokenizer.pieces(caption)
        if len(pieces) > room:
            cut += 1
            caption = " ".join(split_words(caption)[: pieces[room][1]]) or _start_of_word(caption, tokenizer, room)
        fitted.append(caption)
    if cut:
        log.warning("%d captions are longer than %d tokens; their ends are cut off", cut, room)
    return fitted


def _start_of_word(word: str, tokenizer: Tokenizer, room: int) -> str:
    """Return as much of a single endless word as fits; a piece of a word may need more tokens than inside of it."""
    return next(word[:n] for n in range(len(word), 0, -1) if 0 < len(tokenizer.encode(word[:n])) <= room)


def ready_for_text(data: CaptionedPictures, tokenizer: Tokenizer) -> CaptionedPictures:
    """Return the pictures that have a caption, with captions that fit."""
    told = data.with_captions()
    return dataclasses.replace(told, captions=fit_captions(told.captions, tokenizer))


def own_tokens(captions: Sequence[str], tokenizer: Tokenizer) -> torch.Tensor:
    """Return (n, 1, context_length): one caption per picture."""
    return tokenizer(fit_captions(captions, tokenizer))[:, None]
