"""CLIP, both towers and the tokenizer, as the folder that transformers opens, and such a folder as ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.shapes import Float, Pictures, Tensor
from ldm_tutor.weights import foreign
from ldm_tutor.weights.diffusers_folder import (
    read_config,
    read_json,
    read_tokenizer,
    read_weights,
    write_json,
    write_weights,
)
from ldm_tutor.weights.hub import local_place

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What OpenAI's models were trained on: per channel, of pictures in [0, 1].
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_OLD_END_ID = 2  # stands in OpenAI's published settings and means the last token


@dataclass(frozen=True)
class ClipParts:
    """CLIP and the tokenizer that numbers its words; None where the folder has none."""

    clip: Clip
    tokenizer: Tokenizer | None


def load_clip(
    place: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32
) -> ClipParts:
    """Read a folder of transformers' CLIPModel, or one by its name on the hub; in evaluation mode.

    Published models want their pictures as `normalized` gives them. WeightsError names the file, and the setting or
    the tensor, where one is missing, broken, of another architecture or of another size.
    """
    root = local_place(place)
    config = read_config(root / CONFIG, foreign.clip_config)
    has_words = any((root / name).exists() for name in ("vocab.json", "tokenizer.json"))
    tokenizer = read_tokenizer(root) if has_words else None
    end_id = read_json(root / CONFIG).get("text_config", {}).get("eos_token_id", _OLD_END_ID)
    if tokenizer is not None:
        end_id = tokenizer.end_id
    elif end_id == _OLD_END_ID:
        end_id = config.text.vocab_size - 1
    clip = read_weights(root / WEIGHTS, config, lambda each: Clip(each, end_id=end_id), device, dtype)
    return ClipParts(clip, tokenizer)


def export_clip(folder: str | Path, clip: Clip, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> Path:
    """Write a folder that transformers' CLIPModel.from_pretrained and CLIPTokenizer.from_pretrained open; return it."""
    root = Path(folder)
    arguments = foreign.clip_arguments(clip.config, start_id=tokenizer.start_id, end_id=tokenizer.end_id)
    for part in ("text_config", "vision_config"):
        arguments[part] |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": clip.config.embed_dim}
    write_json(root / CONFIG, {"architectures": ["CLIPModel"], "model_type": "clip", **arguments})
    write_weights(root / WEIGHTS, clip, clip.config, dtype)
    tokenizer.save(root)
    return root


def normalized(pictures: Pictures) -> Float[Tensor, "b 3 H W"]:
    """Return pictures in [-1, 1] as OpenAI's CLIP wants them: in units of its training pictures' spread."""
    mean, std = (torch.tensor(each).view(3, 1, 1).to(pictures) for each in (MEAN, STD))
    return ((pictures + 1) / 2 - mean) / std
