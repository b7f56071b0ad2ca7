"""Channels beside the latents, in the order and the range of values that each model was trained with.

A model that reads its mask where another has its picture draws rubbish without an error, so the order is data here and
not a habit: ours and Stable Diffusion's [z | mask | masked], the paper's [z | masked | mask], the small picture's
[z | small].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.shapes import Float, Latents, Pictures, Tensor

Masks = Float[Tensor, "b 1 H W"]  # 1 is hole, 0 is picture


@dataclass(frozen=True)
class HoleForm:
    """How a model of inpainting is told of its hole.

    `order`: of "mask" and "masked" behind the noisy latents. `mask_values`: what stands for picture and for hole.
    `fill`: the pixel value in the hole of the masked picture, before it is encoded. `shrink`: a latent position is hole
    if its upper left pixel is ("nearest"), or if any pixel is ("cover").
    """

    order: tuple[str, str]
    mask_values: tuple[float, float]
    fill: float
    shrink: str

    def __post_init__(self) -> None:
        if sorted(self.order) != ["mask", "masked"] or self.shrink not in ("nearest", "cover"):
            raise ConfigError("HoleForm", given=(self.order, self.shrink), expected="mask, masked; nearest or cover")


HOLE_FORMS = {
    "scenes": HoleForm(("mask", "masked"), (0.0, 1.0), 0.0, "cover"),
    "sd": HoleForm(("mask", "masked"), (0.0, 1.0), 0.0, "nearest"),
    "ldm": HoleForm(("masked", "mask"), (-1.0, 1.0), -1.0, "nearest"),
}


def hole_form(name: str) -> HoleForm:
    """Return a form of HOLE_FORMS; ConfigError for another name."""
    if name not in HOLE_FORMS:
        raise ConfigError("hole_form", given=name, expected=f"one of {sorted(HOLE_FORMS)}")
    return HOLE_FORMS[name]


def check_masks(pictures: Pictures, masks: Masks, place: str = "masks") -> None:
    """Raise ShapeError or ConfigError unless there is one mask per picture, of its size, of zeros and ones."""
    expected = (len(pictures), 1, *pictures.shape[-2:])
    if tuple(masks.shape) != expected:
        raise ShapeError(f"{place}: one mask of the picture's size", given=tuple(masks.shape), expected=f"{expected}")
    if not bool(((masks == 0) | (masks == 1)).all()):
        values = (float(masks.min()), float(masks.max()))
        raise ConfigError(f"{place}: values", given=values, expected="0 (picture) and 1 (hole) only")


def check_pictures(pictures: Pictures, place: str, numbers: tuple[int, ...] = ()) -> None:
    """Raise ShapeError or ConfigError unless these are colour pictures in [-1, 1], as many as one of `numbers` says."""
    if pictures.dim() != 4 or pictures.shape[1] != 3 or not pictures.numel():
        raise ShapeError(place, given=tuple(pictures.shape), expected="(b, 3, H, W)")
    if numbers and len(pictures) not in numbers:
        raise ShapeError(f"{place}: how many", given=len(pictures), expected=" or ".join(map(str, sorted({*numbers}))))
    largest = float(pictures.abs().max())  # NaN where one is NaN
    if not largest <= 1.001:
        raise ConfigError(f"{place}: pixel values", given=largest, expected="numbers in [-1, 1]")


def hide(pictures: Pictures, masks: Masks, form: HoleForm) -> Pictures:
    """Return the pictures with the hole filled with the form's value."""
    return torch.where(masks.to(pictures.device) > 0.5, torch.full_like(pictures, form.fill), pictures)


def mean_filled(pictures: Pictures, masks: Masks) -> Pictures:
    """Return the pictures with each hole filled with the mean colour of the rest; the baseline of inpainting too."""
    rest = 1 - masks.to(pictures)
    color = (pictures * rest).sum(dim=(2, 3), keepdim=True) / rest.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return torch.where(rest < 0.5, color, pictures)


def shrink_masks(masks: Masks, factor: int, form: HoleForm) -> Float[Tensor, "b 1 h w"]:
    """Return masks at the latents' size, in the form's values."""
    masks = masks.float()  # there is no pooling of bools
    small = F.max_pool2d(masks, factor) if form.shrink == "cover" else masks[..., ::factor, ::factor]
    low, high = form.mask_values
    return low + (high - low) * (small > 0.5).float()


def hole_channels(masks: Float[Tensor, "b 1 h w"], masked: Latents, form: HoleForm) -> Latents:
    """Return mask (already of the latents' size and in the form's values) and masked latents in the form's order."""
    parts = {"mask": masks.to(masked), "masked": masked}
    return torch.cat([parts[name] for name in form.order], dim=1)


@torch.no_grad()
def clean_latents(autoencoder: Autoencoder | VQAutoencoder, pictures: Pictures) -> Latents:
    """Return the pictures' scaled latents without chance: the mean of a KL autoencoder, the features of a VQ one."""
    encoded = autoencoder.encode(pictures.to(next(autoencoder.parameters()).device))
    return autoencoder.config.scale_factor * (encoded if isinstance(encoded, Tensor) else encoded.mode())


@torch.no_grad()
def inpainting_channels(
    autoencoder: Autoencoder | VQAutoencoder, pictures: Pictures, masks: Masks, form: str | HoleForm = "scenes"
) -> Latents:
    """Return what an inpainting U-Net reads behind the noisy latents: the mask, and the masked picture's latents.

    Their mean, scaled as all latents are; `pictures` in [-1, 1], `masks` 1 in the hole.
    """
    check_masks(pictures, masks, "inpainting_channels")
    form = hole_form(form) if isinstance(form, str) else form
    masked = clean_latents(autoencoder, hide(pictures, masks, form))
    return hole_channels(shrink_masks(masks, autoencoder.config.downsampling, form), masked, form)


def padded(small: Pictures, least: int, most: int) -> tuple[Pictures, tuple[int, int]]:
    """Return small pictures, grown at the lower right to sides of `least` or more, and their own height and width.

    Raises ShapeError for what is no colour picture, or has a side above `most`.
    """
    check_pictures(small, "upscale: the small pictures")
    height, width = small.shape[-2:]
    if max(height, width) > most:
        expected = f"sides of at most {most} pixels"
        raise ShapeError("upscale: the small pictures", given=tuple(small.shape), expected=expected)
    more = (0, max(0, least - width), 0, max(0, least - height))
    return F.pad(small, more, mode="replicate"), (height, width)


def small_picture_channels(small: Pictures, side: tuple[int, int]) -> Latents:
    """Return the small picture itself, in [-1, 1], as channels of latents of `side`; ShapeError for another size."""
    if small.dim() != 4 or small.shape[1] != 3 or tuple(small.shape[-2:]) != tuple(side):
        expected = f"(b, 3, {side[0]}, {side[1]})"
        raise ShapeError("upscaling: the small pictures", given=tuple(small.shape), expected=expected)
    check_pictures(small, "upscaling: the small pictures")
    return small
