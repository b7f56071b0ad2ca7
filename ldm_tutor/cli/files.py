"""What commands write: pictures and JSON, checked before the work begins and put in place in one move."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_tutor.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from PIL import Image

GAP = 2  # pixels between two pictures of a sheet, before enlarging


def check_out(path: Path, suffix: str, option: str = "--out") -> Path:
    """Return `path` if a file with this suffix can be written there; ConfigError that says why not otherwise."""
    path = path.expanduser()
    try:
        if path.is_dir():
            raise ConfigError(f"{option}: this is a folder", given=str(path), expected=f"a file such as name{suffix}")
        if path.suffix.lower() != suffix:
            raise ConfigError(
                f"{option}: another type of file", given=str(path), expected=f"a name that ends in {suffix}"
            )
        if not path.parent.is_dir():
            raise ConfigError(
                f"{option}: there is no folder {path.parent}",
                given=str(path),
                fix="make the folder first, or choose another",
            )
        if path.exists() and not os.access(path, os.W_OK):
            raise ConfigError(f"{option}: the file that is there is write-protected", given=str(path))
        _try_to_write(path.parent)
    except OSError as error:
        raise _refused(option, path, error) from error
    return path


def check_folder(path: Path, option: str = "--out") -> Path:
    """Return the folder `path`, made if need be, if files can be written there; ConfigError otherwise."""
    path = path.expanduser()
    try:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{option}: this is a file", given=str(path), expected="a folder")
        path.mkdir(parents=True, exist_ok=True)
        _try_to_write(path)
    except OSError as error:
        raise _refused(option, path, error) from error
    return path


def _try_to_write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"1")


def _refused(option: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{option}: nothing can be written there ({error.strerror})",
        given=str(path),
        expected="a place where you may write",
    )


def sheet(pictures: torch.Tensor, columns: int, scale: int) -> Image.Image:
    """Return uint8 pictures (n, 3, h, w) side by side in rows, each pixel enlarged to a square of scale x scale."""
    import numpy as np
    from PIL import Image

    n, _, h, w = pictures.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = np.full((rows * (h + GAP) - GAP, columns * (w + GAP) - GAP, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = number // columns * (h + GAP), number % columns * (w + GAP)
        canvas[top : top + h, left : left + w] = picture
    return Image.fromarray(canvas.repeat(scale, axis=0).repeat(scale, axis=1))


def write_png(picture: Image.Image, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a PNG; whatever goes wrong, the file that was there stays. `notes` go into the file as text."""
    from PIL.PngImagePlugin import PngInfo

    from ldm_tutor.weights.files import atomic_file

    info = PngInfo()
    for name, text in (notes or {}).items():
        info.add_itxt(name, text)
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write JSON; whatever goes wrong, the file that was there stays."""
    from ldm_tutor.weights.files import atomic_file

    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as aligned text: the first column to the left, the others to the right; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
