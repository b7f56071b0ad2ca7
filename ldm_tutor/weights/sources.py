"""A model from wherever people have it: a diffusers folder, a CompVis single file, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm_tutor.config import ModelConfig, TextEncoderConfig
from ldm_tutor.errors import WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.word_pieces import WordPieces
from ldm_tutor.presets import PaperModel
from ldm_tutor.weights.checkpoint_file import SUFFIXES, open_checkpoint
from ldm_tutor.weights.compvis import load_compvis
from ldm_tutor.weights.diffusers_folder import INDEX, DiffusersParts, load_diffusers, read_tokenizer
from ldm_tutor.weights.files import KINDS, METADATA_KEY
from ldm_tutor.weights.hub import is_hub_name, local_place
from ldm_tutor.weights.text2img_folder import Text2ImgParts, is_text2img, load_text2img, read_words


def is_foreign(place: str | Path) -> bool:
    """Say whether `open_model` is what opens this: a hub name, a diffusers folder, or a file that is not ours.

    A file with the name of a part, such as `unet.safetensors`, is taken for ours, broken or not.
    """
    if is_hub_name(place):
        return True
    path = Path(place).expanduser()
    if path.is_dir():
        return (path / INDEX).is_file()
    if not path.is_file() or path.suffix not in SUFFIXES or path.name in {f"{kind}.safetensors" for kind in KINDS}:
        return False
    return path.suffix != ".safetensors" or METADATA_KEY not in open_checkpoint(path).metadata


def open_model(
    place: str | Path,
    *,
    model: ModelConfig | PaperModel | None = None,
    tokenizer: str | Path | None = None,
    ema: bool | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> DiffusersParts | Text2ImgParts:
    """Read a model that is told by words: U-Net, autoencoder, text encoder, tokenizer and noise schedule.

    The words are CLIP's or, of the paper's text2img_1p4b and a folder of diffusers' LDMTextToImagePipeline, BERT's. A
    single file has neither settings nor words: `model` says which it is, and `tokenizer` is a folder with the files of
    CLIP's or BERT's, a vocab.txt of BERT's, or the hub name of a model that has them. `ema`: see `load_compvis`.
    `dtype` None as on disk. WeightsError where something is missing.
    """
    path = local_place(place)
    if (path / INDEX).is_file():
        return (load_text2img if is_text2img(path) else load_diffusers)(path, device, dtype)
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise WeightsError(
            f"{path}: no model of another program",
            given=sorted(each.name for each in path.iterdir())[:8] if path.is_dir() else str(path),
            expected=f"a folder with {INDEX}, a single file ({', '.join(SUFFIXES)}), or a name on the hub (owner/name)",
        )
    if model is None or tokenizer is None:
        raise WeightsError(
            f"{path}: a single file has neither settings nor words in it",
            given={"model": None if model is None else model.name, "tokenizer": tokenizer},
            expected="the preset that it is, and a folder (or a hub name) with the tokenizer's files",
        )
    parts = load_compvis(path, model, ema=ema, device=device, dtype=dtype)
    unet, autoencoder, text_encoder = parts.unet, parts.autoencoder, parts.condition
    assert unet is not None and isinstance(autoencoder, Autoencoder)
    if isinstance(text_encoder, BertEncoder):
        size, length = text_encoder.config.vocab_size, text_encoder.config.context_length
        words = WordPieces(read_words(_words_at(tokenizer), size), length)
        return Text2ImgParts(words, text_encoder, unet, autoencoder, parts.schedule, parts.picture_size)
    assert isinstance(text_encoder, TextEncoder)
    return DiffusersParts(
        tokenizer=_tokenizer(tokenizer, text_encoder.config),
        text_encoder=text_encoder,
        unet=unet,
        autoencoder=autoencoder,
        schedule=parts.schedule,
        picture_size=parts.picture_size,
    )


def _words_at(place: str | Path) -> Path:
    root = local_place(place)
    return root / "tokenizer" if (root / "tokenizer").is_dir() else root


def _tokenizer(place: str | Path, config: TextEncoderConfig) -> Tokenizer:
    root = _words_at(place)
    tokenizer = read_tokenizer(root)
    if tokenizer.vocab_size > config.vocab_size or tokenizer.context_length > config.context_length:
        raise WeightsError(
            f"{root}: a tokenizer of another model",
            given=f"{tokenizer.vocab_size} tokens, {tokenizer.context_length} in a sentence",
            expected=f"at most {config.vocab_size} tokens and {config.context_length} in a sentence",
        )
    return tokenizer
