"""The paper's own text-to-picture model, with its BERT-style encoder, as the folder that diffusers opens, and back.

`LDMTextToImagePipeline` is the class; it takes for granted an autoencoder of factor 8 and 77 tokens. For the paper's
other models (classes, boxes, maps, retrieval) diffusers has no pipeline that reads their condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.config import ScheduleConfig
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.word_pieces import WordPieces
from ldm_tutor.weights import foreign
from ldm_tutor.weights.compvis import CompvisParts
from ldm_tutor.weights.diffusers_folder import (
    DIFFUSERS_WEIGHTS,
    INDEX,
    SAMPLER,
    SCHEDULER_CONFIG,
    TRANSFORMERS_WEIGHTS,
    read_config,
    read_index,
    read_json,
    read_part,
    read_picture_size,
    write_json,
    write_weights,
)

PIPELINE = "LDMTextToImagePipeline"
FACTOR, TOKENS = 8, 77
VOCAB, _TOKENIZER, _TOKENIZER_CONFIG = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
_MARKS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_CLASSES = {
    "vqvae": ("diffusers", "AutoencoderKL"),
    "bert": ("latent_diffusion", "LDMBertModel"),
    "tokenizer": ("transformers", "BertTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}
_UNCASED = {"do_lower_case": (True,), "strip_accents": (None, True), "tokenize_chinese_chars": (True,)}


@dataclass(frozen=True)
class Text2ImgParts:
    """What such a folder holds of a model; `picture_size` in pixels, None where the folder does not say."""

    tokenizer: WordPieces
    text_encoder: BertEncoder
    unet: UNet
    autoencoder: Autoencoder
    schedule: ScheduleConfig
    picture_size: int | None


def is_text2img(folder: Path) -> bool:
    """Say whether a folder of diffusers holds this kind of model, by its name or by the text encoder that it lists."""
    index = read_json(folder / INDEX)
    return index.get("_class_name") == PIPELINE or "bert" in index


def load_text2img(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32
) -> Text2ImgParts:
    """Read a folder that diffusers or `export_text2img` wrote; models in evaluation mode, `dtype` None as on disk.

    WeightsError names the file, and the class, the setting or the tensor, where one is missing, broken, of another
    architecture or of another size.
    """
    root = Path(folder)
    index = read_index(root, _CLASSES)
    classes = {name: kind for name, (_, kind) in _CLASSES.items() if name != "scheduler"}  # of it the noise is read
    for name, wanted in {"_class_name": PIPELINE, **classes}.items():
        said = index.get(name)
        given = said[-1] if isinstance(said, list) and said else said
        if given not in (wanted, f"{wanted}Fast"):
            raise WeightsError(f"{root / INDEX}: {name} is of another class", given=given, expected=wanted)
    unet = read_part(root / "unet" / DIFFUSERS_WEIGHTS, foreign.unet_config, UNet, device, dtype)
    autoencoder = read_part(root / "vqvae" / DIFFUSERS_WEIGHTS, foreign.autoencoder_config, Autoencoder, device, dtype)
    bert = read_part(root / "bert" / TRANSFORMERS_WEIGHTS, foreign.bert_config, BertEncoder, device, dtype)
    width, channels, length = unet.config.context_dim, unet.config.out_channels, bert.config.context_length
    if (width, channels) != (bert.config.width, autoencoder.config.latent_channels) or length < TOKENS:
        raise WeightsError(
            f"the parts in {root} do not fit together",
            given={"cross_attention_dim": width, "out_channels": channels, "max_position_embeddings": length},
            expected=f"the text encoder's width {bert.config.width}, "
            f"the autoencoder's {autoencoder.config.latent_channels} channels, {TOKENS} tokens or more",
        )
    return Text2ImgParts(
        tokenizer=WordPieces(read_words(root / "tokenizer", bert.config.vocab_size), TOKENS),
        text_encoder=bert,
        unet=unet,
        autoencoder=autoencoder,
        schedule=read_config(root / "scheduler" / SCHEDULER_CONFIG, foreign.schedule_config),
        picture_size=read_picture_size(root / "unet", autoencoder),
    )


def check_text2img(condition: Any, autoencoder: Any, name: str) -> None:
    """Raise ConfigError, which says what to do, for a model that diffusers' class cannot be."""
    wanted = "a BERT-style text encoder of 77 tokens on the latents of a KL autoencoder of factor 8 (text2img_1p4b)"
    condition, autoencoder = (getattr(each, "config", each) for each in (condition, autoencoder))
    length = getattr(condition, "context_length", None)
    kind = f"{type(autoencoder).__name__.removesuffix('Config')} of factor {autoencoder.downsampling}"
    if length != TOKENS or kind != f"Autoencoder of factor {FACTOR}":
        told = "none" if condition is None else type(condition).__name__.removesuffix("Config")
        raise ConfigError(
            f"{name}: diffusers has no pipeline that reads this model's condition",
            given={"condition": told, "tokens": length, "autoencoder": kind},
            expected=wanted,
            fix="--format compvis writes it as one file",
        )


def read_words(place: Path, num_tokens: int) -> list[str]:
    """Return BERT's words, of a vocab.txt or of a tokenizer's folder, old or new; WeightsError for anything else."""
    if not place.is_dir():
        return _read_lines(place, num_tokens)
    path = place / _TOKENIZER_CONFIG
    settings = read_json(path) if path.exists() else {}
    for name, allowed in _UNCASED.items():
        if (value := settings.get(name, allowed[0])) not in allowed:
            raise WeightsError(f"{path}: {name}", given=value, expected=f"{allowed[0]}: our tokenizer is uncased")
    path = place / _TOKENIZER
    if (place / VOCAB).exists() or not path.exists():
        return _read_lines(place / VOCAB, num_tokens)
    model = read_json(path).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    numbers = [each for each in vocab.values() if type(each) is int] if isinstance(vocab, dict) else []
    if not isinstance(vocab, dict) or sorted(numbers) != list(range(len(vocab))):
        problem = f"{path}: no vocabulary of BERT's form"
        raise WeightsError(problem, expected="model.vocab, with a number from 0 on for each word")
    return _checked(sorted(vocab, key=vocab.__getitem__), path, num_tokens)


def _read_lines(path: Path, num_tokens: int) -> list[str]:
    try:
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path}: no vocabulary to be read ({type(error).__name__})", expected=f"BERT's {VOCAB}, one word a line"
        ) from error
    return _checked(words, path, num_tokens)


def _checked(words: list[str], path: Path, num_tokens: int) -> list[str]:
    lacking = sorted(set(_MARKS.values()) - set(words))
    if lacking or len(words) > num_tokens:
        raise WeightsError(
            f"{path}: not the vocabulary of this model", given=f"{len(words)} words, without {lacking}",
            expected=f"at most {num_tokens} words, with {sorted(_MARKS.values())}",
        )  # fmt: skip
    return words


def export_text2img(
    folder: str | Path,
    parts: CompvisParts,
    vocabulary: Sequence[str],
    *,
    dtype: torch.dtype | None = None,
    wrap: Callable[[Iterable[Any]], Iterable[Any]] = tuple,
) -> Path:
    """Write the folder that `DiffusionPipeline.from_pretrained` and `load_text2img` open; return it.

    `dtype` and `wrap`: see `export_diffusers`. ConfigError for another kind of model.
    """
    root, bert, autoencoder, unet = Path(folder), parts.condition, parts.autoencoder, parts.unet
    check_text2img(bert, autoencoder, "export_text2img")
    assert isinstance(bert, BertEncoder) and isinstance(autoencoder, Autoencoder) and isinstance(unet, UNet)
    arguments = {
        "unet": foreign.unet_arguments(unet.config, parts.picture_size // FACTOR),
        "vqvae": foreign.autoencoder_arguments(autoencoder.config, parts.picture_size),
        "bert": {"architectures": ["LDMBertModel"], "model_type": "ldmbert", **foreign.bert_arguments(bert.config)},
    }
    (root / INDEX).unlink(missing_ok=True)
    for name, network in wrap([("unet", unet), ("vqvae", autoencoder), ("bert", bert)]):
        own = {} if name == "bert" else {"_class_name": _CLASSES[name][1]}
        write_json(root / name / "config.json", own | arguments[name])
        file = TRANSFORMERS_WEIGHTS if name == "bert" else DIFFUSERS_WEIGHTS
        extra = _unused_head(bert, dtype) if name == "bert" else None
        write_weights(root / name / file, network, network.config, dtype, extra=extra)
    (root / "tokenizer").mkdir(parents=True, exist_ok=True)
    (root / "tokenizer" / VOCAB).write_text("\n".join(vocabulary) + "\n", encoding="utf-8", newline="\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": TOKENS, **_MARKS}
    write_json(root / "tokenizer" / _TOKENIZER_CONFIG, settings)
    scheduler = {"_class_name": "DDIMScheduler", **SAMPLER, **foreign.schedule_arguments(parts.schedule)}
    write_json(root / "scheduler" / SCHEDULER_CONFIG, scheduler)
    index = {"_class_name": PIPELINE} | {name: list(where) for name, where in _CLASSES.items()}
    write_json(root / INDEX, index)
    return root


def _unused_head(bert: BertEncoder, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return zeros for the head over the vocabulary that their class has and nobody uses."""
    size, kind = (bert.config.vocab_size, bert.config.width), dtype or bert.norm_out.weight.dtype
    return {"to_logits.weight": torch.zeros(size, dtype=kind), "to_logits.bias": torch.zeros(size[:1], dtype=kind)}
