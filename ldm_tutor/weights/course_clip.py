"""CLIP and its tokenizer from a folder of the course's own weights. A published CLIP is read by `clip_folder`."""

from __future__ import annotations

from pathlib import Path

from ldm_tutor.models.clip import Clip, check_tokenizer
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve


def load_course_clip(folder: str | Path | None = None, device: str = "cpu") -> tuple[Clip, Tokenizer]:
    """Load both from a folder, which needs no U-Net; without one, the shipped ones.

    Raises WeightsError naming the file where one is missing or broken, or where the two do not belong together.
    """
    root = resolve(folder)
    clip = load_model(root / "clip.safetensors", "clip", device=device)
    tokenizer = Tokenizer.load(root / "tokenizer")
    check_tokenizer(tokenizer, clip, str(root))
    return clip, tokenizer
