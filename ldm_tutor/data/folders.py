"""Folders of pictures and captions: an imagefolder with metadata.jsonl, or one folder per class."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class CaptionedPictures:
    """Pictures uint8 (N, 3, S, S), their captions ("" where there is none) and where each came from."""

    pictures: torch.Tensor
    captions: list[str]
    names: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def read_folder(folder: Path, side: int) -> CaptionedPictures:
    """Return the pictures of a folder with metadata.jsonl, on white, side x side."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    made = []
    for row in rows:
        with Image.open(folder / row["file_name"]) as opened:
            picture = opened.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture)
        made.append(np.asarray(canvas.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)))
    pictures = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()
    return CaptionedPictures(pictures, [row["text"] for row in rows], [row["file_name"] for row in rows])
