"""Stage two: CLIP learns which sentence belongs to which picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldm_tutor.config import ClipConfig
from ldm_tutor.data.captioned import CaptionedPictures
from ldm_tutor.data.scenes.datasets import ScenePictures, to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.losses.contrastive import contrastive_loss
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer, clean
from ldm_tutor.shapes import Tensor, Tokens
from ldm_tutor.training.learner import Learner
from ldm_tutor.weights.files import save_model

BATCH_SIZE = 128
WORD_DROPOUT = 0.15  # for sentences of scenes; chosen with nine more pairs left out of the training


class ClipStage:
    """Contrastive training of both towers on pictures and their sentences.

    Half of each batch are random `scenes`, the other half their `twins` (see `near_twin` and `exchanged_twin`), which
    look alike and are told apart by a word or two: what random batches alone teach is too little for a U-Net.
    Without twins, as with pictures of one's own, a batch has each caption once: two pictures of one caption are no
    right and wrong answer. `word_dropout`: in half of the sentences each token is left out with this chance.
    """

    name = "clip"

    def __init__(
        self,
        config: ClipConfig,
        scenes: ScenePictures | CaptionedPictures,
        twins: ScenePictures | None,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int = BATCH_SIZE,
        peak_lr: float = 1e-3,
        word_dropout: float = 0.0,
    ) -> None:
        self.word_dropout = word_dropout
        self.config, self.tokenizer = config, tokenizer
        self.device, self.dtype = device, dtype
        self.halves = [(data.pictures, tokenizer(data.captions)) for data in (scenes, twins) if data is not None]
        self.num_pairs = len(scenes) if twins is None else min(len(scenes), len(twins))
        self.kind_of = torch.tensor([0] if twins else _numbered(scenes.captions))
        self.num_kinds = int(self.kind_of.max()) + 1
        if not twins and self.num_kinds < 2:
            told = f"all say {scenes.captions[0]!r}"
            raise ConfigError("CLIP tells captions apart", given=told, expected="two different captions or more")
        self.batch_size = batch_size if twins else min(batch_size, self.num_kinds)
        self.settings: dict[str, Any] = {
            "config": config.to_dict(),
            "batch_size": self.batch_size,
            "peak_lr": peak_lr,
            "num_pictures": self.num_pairs,
            "precision": str(dtype),
            "word_dropout": word_dropout,
        }
        clip = Clip(config, end_id=tokenizer.end_id)
        self.learner = Learner(clip, peak_lr=peak_lr, device=device, dtype=dtype)
        self.learners: dict[str, Learner[Any]] = {"clip": self.learner}

    def train_step(self, generator: torch.Generator, progress: float) -> dict[str, float]:
        if len(self.halves) == 2:
            chosen = torch.randint(self.num_pairs, (self.batch_size // 2,), generator=generator)
        else:
            chosen = self._one_per_caption(generator)
        pictures = to_float(torch.cat([pictures[chosen] for pictures, _ in self.halves]))
        tokens = torch.cat([tokens[chosen] for _, tokens in self.halves])
        if self.word_dropout:
            tokens = drop_words(tokens, self.tokenizer.end_id, self.word_dropout, generator)
        logits = self.learner.net(pictures.to(self.device, self.dtype), tokens.to(self.device)).float()
        loss = contrastive_loss(logits)
        loss.backward()
        self.learner.step(progress)
        right = logits.argmax(dim=1).cpu() == torch.arange(len(tokens))
        return {"loss": loss.item(), "top1": right.float().mean().item()}

    def _one_per_caption(self, generator: torch.Generator) -> Tensor:
        """Return the numbers of batch_size pictures with different captions, by chance."""
        shuffled = torch.randperm(self.num_pairs, generator=generator)
        by_kind = shuffled[self.kind_of[shuffled].argsort(stable=True)]
        ends = torch.bincount(self.kind_of, minlength=self.num_kinds).cumsum(0) - 1
        return by_kind[ends][torch.randperm(self.num_kinds, generator=generator)[: self.batch_size]]

    def finish(self, folder: Path, history: dict[str, Any]) -> list[Path]:
        self.tokenizer.save(folder / "tokenizer")  # first: with the weights there, the stage counts as finished
        path = folder / "clip.safetensors"
        metadata = {**history, "end_id": self.tokenizer.end_id}
        save_model(path, self.learner.ema, kind="clip", config=self.config, metadata=metadata)
        return [path, folder / "tokenizer"]


def drop_words(tokens: Tokens, end_id: int, share: float, generator: torch.Generator) -> Tokens:
    """Leave each token between the first and the end token out with the chance `share`, in half of the rows.

    What is left moves together. "a green dog in the snow" becomes now "a dog in the snow", now "a green in the snow":
    so a word is learned for itself and not only beside the words that it was seen with (word dropout, Iyyer et al.
    2015, of a whole sentence's vectors).
    """
    inner = (tokens != end_id) & (torch.arange(tokens.shape[1]) > 0)
    rows = torch.rand(len(tokens), 1, generator=generator) < 0.5
    dropped = inner & rows & (torch.rand(tokens.shape, generator=generator) < share)
    return tokens.masked_fill(dropped, end_id).gather(1, dropped.int().argsort(dim=1, stable=True))


def _numbered(captions: list[str]) -> list[int]:
    """Return the number of each caption, the same for the same words."""
    number_of: dict[str, int] = {}
    return [number_of.setdefault(clean(caption), len(number_of)) for caption in captions]
