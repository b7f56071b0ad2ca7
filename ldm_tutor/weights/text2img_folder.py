"""The paper's own text-to-picture model, with its BERT-style encoder, as the folder that diffusers opens.

`LDMTextToImagePipeline` is the class; it takes for granted an autoencoder of factor 8 and 77 tokens. For the paper's
other models (classes, boxes, maps, retrieval) diffusers has no pipeline that reads their condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.weights import foreign
from ldm_tutor.weights.compvis import CompvisParts
from ldm_tutor.weights.diffusers_folder import INDEX, SAMPLER, write_json, write_weights

FACTOR, TOKENS = 8, 77
VOCAB = "vocab.txt"
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


def read_vocabulary(place: Path, num_tokens: int) -> list[str]:
    """Return BERT's words, one a line, from a file or from `vocab.txt` in a folder; WeightsError for anything else."""
    path = place / VOCAB if place.is_dir() else place
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path}: no vocabulary to be read ({type(error).__name__})", expected=f"BERT's {VOCAB}, one word a line"
        ) from error
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
    vocabulary: list[str],
    *,
    dtype: torch.dtype | None = None,
    wrap: Callable[[Iterable[Any]], Iterable[Any]] = tuple,
) -> Path:
    """Write the folder that `DiffusionPipeline.from_pretrained` opens as LDMTextToImagePipeline; return it.

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
        file = "model.safetensors" if name == "bert" else "diffusion_pytorch_model.safetensors"
        extra = _unused_head(bert, dtype) if name == "bert" else None
        write_weights(root / name / file, network, network.config, dtype, extra=extra)
    (root / "tokenizer").mkdir(parents=True, exist_ok=True)
    (root / "tokenizer" / VOCAB).write_text("\n".join(vocabulary) + "\n", encoding="utf-8", newline="\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": TOKENS, **_MARKS}
    write_json(root / "tokenizer" / "tokenizer_config.json", settings)
    scheduler = {"_class_name": "DDIMScheduler", **SAMPLER, **foreign.schedule_arguments(parts.schedule)}
    write_json(root / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_class_name": "LDMTextToImagePipeline"} | {name: list(where) for name, where in _CLASSES.items()}
    write_json(root / INDEX, index)
    return root


def _unused_head(bert: BertEncoder, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return zeros for the head over the vocabulary that their class has and nobody uses."""
    size, kind = (bert.config.vocab_size, bert.config.width), dtype or bert.norm_out.weight.dtype
    return {"to_logits.weight": torch.zeros(size, dtype=kind), "to_logits.bias": torch.zeros(size[:1], dtype=kind)}
