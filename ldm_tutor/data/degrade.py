"""From a good picture to a bad small one: what super-resolution learns to undo.

`shrink` is the clean way. `degrade` is a light version of BSRGAN's (Zhang et al. 2021, arXiv 2103.14006), as the
published super-resolution model was trained: in a quarter of the cases half the size first; then, in random order,
blur twice, a first change of size (in 80%), the change to the final size, Gaussian noise, JPEG (in 90%); in the end the
final size again, and JPEG.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.nn import functional as F

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.shapes import Float, Num, Pictures, Tensor

FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
NOISE_LEVELS = (1, 2)  # standard deviation, of 255 grey values
JPEG_QUALITY = (80, 95)
BLUR_RADIUS = (0.1, 1.2)  # pixels of the large picture


@dataclass(frozen=True)
class Step:
    """One step of a degradation: `name` (resize, blur, noise, jpeg), its strength, and the filter of a resize."""

    name: str
    amount: float
    filter: str = ""


def random_steps(side: int, small: int, rng: random.Random) -> tuple[Step, ...]:
    """Return the steps that take a picture of `side` pixels to one of `small`, in the order in which they are done."""
    factor = side / small
    half = [Step("resize", 0.5, _filter(rng))] if rng.random() < 0.25 else []
    steps = [Step("blur", rng.uniform(*BLUR_RADIUS)), Step("blur", rng.uniform(*BLUR_RADIUS))]
    if rng.random() < 0.8:
        steps.append(Step("resize", 1 / rng.uniform(1, factor), _filter(rng)))
    steps += [Step("to", small, _filter(rng)), Step("noise", rng.uniform(*NOISE_LEVELS))]
    if rng.random() < 0.9:
        steps.append(Step("jpeg", rng.randint(*JPEG_QUALITY)))
    rng.shuffle(steps)
    return (*half, *steps, Step("to", small, _filter(rng)), Step("jpeg", rng.randint(*JPEG_QUALITY)))


def run_steps(picture: np.ndarray, steps: Sequence[Step], rng: random.Random) -> np.ndarray:
    """Return the picture, uint8 (H, W, 3), after each of `steps`; `rng` gives the noise."""
    image = Image.fromarray(picture)
    for step in steps:
        if step.name == "blur":
            image = image.filter(ImageFilter.GaussianBlur(step.amount * image.width / picture.shape[1]))
        elif step.name == "noise":
            noise = np.random.default_rng(rng.getrandbits(32)).normal(0, step.amount, (image.height, image.width, 3))
            noisy = np.asarray(image, dtype=np.float32) + noise
            image = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
        elif step.name == "jpeg":
            packed = io.BytesIO()
            image.save(packed, "JPEG", quality=int(step.amount))
            image = Image.open(packed).convert("RGB")
        elif step.name in ("resize", "to"):
            share = step.amount if step.name == "resize" else step.amount / image.width
            size = (max(8, round(image.width * share)), max(8, round(image.height * share)))
            image = image.resize(size, FILTERS[step.filter])
        else:
            raise ConfigError("degrade: step", given=step.name, expected="blur, resize, to, noise or jpeg")
    return np.array(image)


def degrade(pictures: Num[Tensor, "b 3 H W"], small: int, seeds: Sequence[int]) -> Num[Tensor, "b 3 h w"]:
    """Return uint8 pictures of `small` x `small` pixels, each degraded in its own way, which its seed fixes."""
    if pictures.dtype != torch.uint8 or pictures.dim() != 4 or pictures.shape[-1] != pictures.shape[-2]:
        given = (pictures.dtype, tuple(pictures.shape))
        raise ShapeError("degrade: pictures", given=given, expected="square uint8 pictures (b, 3, H, H)")
    if len(seeds) != len(pictures) or not 8 <= small < pictures.shape[-1]:
        numbers = (len(seeds), len(pictures), small)
        raise ConfigError("degrade", given=numbers, expected="one seed per picture, a side of 8 or more, smaller")
    rows = []
    for picture, seed in zip(pictures.permute(0, 2, 3, 1).numpy(), seeds, strict=True):
        rng = random.Random(f"degrade {seed}")
        rows.append(run_steps(picture, random_steps(picture.shape[0], small, rng), rng))
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def shrink(pictures: Pictures, factor: int) -> Float[Tensor, "b 3 h w"]:
    """Return the pictures shrunk cleanly: the mean of each `factor` x `factor` square."""
    if pictures.shape[-1] % factor or pictures.shape[-2] % factor:
        raise ShapeError("shrink", given=tuple(pictures.shape), expected=f"sides that are multiples of {factor}")
    return F.avg_pool2d(pictures, factor)


def enlarge(pictures: Pictures, factor: int) -> Float[Tensor, "b 3 H W"]:
    """Return the pictures enlarged by bicubic interpolation, kept in [-1, 1]: the baseline of super-resolution."""
    return F.interpolate(pictures, scale_factor=factor, mode="bicubic", align_corners=False).clamp(-1, 1)


def back_project(pictures: Pictures, small: Pictures, rounds: int = 8) -> Pictures:
    """Return the pictures corrected so that, shrunk, they are `small`: x + up(small - down(x)), `rounds` times.

    Irani and Peleg 1991. `down` is the mean of each square (`shrink`), `up` is bicubic; kept in [-1, 1].
    """
    factor = pictures.shape[-1] // small.shape[-1]
    for _ in range(rounds):
        missing = small - shrink(pictures, factor)
        pictures = (pictures + F.interpolate(missing, scale_factor=factor, mode="bicubic")).clamp(-1, 1)
    return pictures


def _filter(rng: random.Random) -> str:
    return rng.choice(tuple(FILTERS))
