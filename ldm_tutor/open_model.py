"""A pipeline from wherever a model lies: our folder, a diffusers folder, a CompVis single file, a name on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ldm_tutor.config import FOREIGN_DRAWING, PRESETS, ClipConfig, ImageEncoderConfig, ModelConfig
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tuning import tune
from ldm_tutor.pipeline import BertPipeline, DrawingPipeline, Pipeline, load_pipeline
from ldm_tutor.presets import PaperModel, sd_v1_inpainting, text2img_1p4b
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.weights.diffusers_folder import DiffusersParts
from ldm_tutor.weights.sources import is_foreign, open_model
from ldm_tutor.weights.text2img_folder import Text2ImgParts

FILE_PRESETS: dict[str, Callable[[], ModelConfig | PaperModel]] = {  # what a single file can be
    **PRESETS,
    "sd_v1_inpainting": sd_v1_inpainting,
    "text2img_1p4b": text2img_1p4b,
}
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
FULL_SIZE = 100_000_000  # parameters of a U-Net; a smaller one is fast enough in float32


def open_pipeline(
    place: str | Path | None = None,
    *,
    preset: str = "sd_v1",
    tokenizer: str | Path | None = None,
    ema: bool | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> DrawingPipeline:
    """Return the model at `place`, ours or another program's, ready to draw; None is the model that the course ships.

    It is a `Pipeline`, or a `BertPipeline` for the paper's text2img_1p4b, a single file or a folder of diffusers'
    LDMTextToImagePipeline. `preset`, `tokenizer` and `ema` are for a single file, see `open_parts`. `precision`: one
    of PRECISIONS, the number type of U-Net and text encoder, see `drawing_dtype`; the autoencoder stays in float32,
    because in float16 Stable Diffusion's can overflow. WeightsError and ConfigError say what is missing, broken or of
    another kind.
    """
    where = torch.device(device)
    _check_precision(precision, where)
    if place is None or not is_foreign(place):
        pipeline = load_pipeline(place, device)
        _settle(precision, where, pipeline.unet, pipeline.text_encoder, pipeline.autoencoder)
        return pipeline
    plain = precision == "float32" or (precision == "auto" and where.type != "cuda")
    on_disk = torch.float32 if plain else None  # no detour over float32, which takes twice the memory of half precision
    parts = open_parts(place, preset=preset, tokenizer=tokenizer, ema=ema, device=device, dtype=on_disk)
    _settle(precision, where, parts.unet, parts.text_encoder, parts.autoencoder)
    return pipeline_of(parts, name=Path(place).stem)


def drawing_dtype(precision: str, device: torch.device, num_parameters: int) -> torch.dtype:
    """Return the number type to draw in with a U-Net of so many parameters; ConfigError for one that cannot be.

    "auto" is float32, and on CUDA from FULL_SIZE parameters on bfloat16, or float16 where the GPU has no bfloat16. The
    course's model is far below: one seed gives one picture on every device.
    """
    _check_precision(precision, device)
    if precision != "auto":
        return getattr(torch, precision)
    if device.type != "cuda" or num_parameters < FULL_SIZE:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ConfigError("--precision: unknown number type", given=precision, expected=f"one of {PRECISIONS}")
    if precision == "float16" and device.type == "cpu":
        raise ConfigError(
            "--precision: a CPU computes in float16 slowly, or not at all", given=precision,
            expected="float32, or bfloat16 for half the memory", fix="or --device cuda",
        )  # fmt: skip


def _settle(precision: str, device: torch.device, unet: nn.Module, text: nn.Module, autoencoder: nn.Module) -> None:
    """Give each network its number type, in place. Of our own CLIP that is the text tower alone, which draws."""
    dtype = drawing_dtype(precision, device, sum(each.numel() for each in unet.parameters()))
    unet.to(dtype)
    text.to(dtype)
    autoencoder.float()


def open_parts(
    place: str | Path,
    *,
    preset: str = "sd_v1",
    tokenizer: str | Path | None = None,
    ema: bool | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> DiffusersParts | Text2ImgParts:
    """Return the parts of another program's model, `dtype` None as on disk.

    A single file has neither settings nor words in it. So `preset` says which of FILE_PRESETS it is, `tokenizer` names
    a place of its words (see `sources.open_model`), and `ema` picks the moving average or the trained weights
    (see `load_compvis`).
    """
    if preset not in FILE_PRESETS:
        raise ConfigError("--preset: unknown model", given=preset, expected=f"one of {sorted(FILE_PRESETS)}")
    return open_model(place, model=FILE_PRESETS[preset](), tokenizer=tokenizer, ema=ema, device=device, dtype=dtype)


def pipeline_of(parts: DiffusersParts | Text2ImgParts, name: str = "foreign") -> DrawingPipeline:
    """Return a foreign model's parts as a pipeline; CLIP's image tower, which takes no part in drawing, has no numbers.

    ConfigError where the picture's size is not known, and for a U-Net that wants more than noisy latents.
    """
    if parts.picture_size is None:
        raise ConfigError(
            f"{name}: the folder does not say how large its pictures are", given={"sample_size": None},
            expected='"sample_size" in unet/config.json: the side of its latents, such as 64',
        )  # fmt: skip
    latents, wanted = parts.autoencoder.config.latent_channels, parts.unet.config.in_channels
    if wanted != latents:
        raise ConfigError(
            f"{name}: a U-Net that a sentence alone does not feed, as of a model for inpainting",
            given=f"{wanted} channels in", expected=f"the {latents} channels of the latents",
        )  # fmt: skip
    unet, autoencoder = tune(parts.unet), tune(parts.autoencoder)
    if isinstance(parts, Text2ImgParts):
        paper = PaperModel(
            name=name,
            picture_size=parts.picture_size,
            autoencoder=autoencoder.config,
            unet=unet.config,
            condition=parts.text_encoder.config,
            schedule=parts.schedule,
        )
        schedule = NoiseSchedule(parts.schedule)
        return BertPipeline(paper, parts.tokenizer, parts.text_encoder, unet, autoencoder, schedule)
    image = ImageEncoderConfig(picture_size=64, patch_size=32, width=16, num_layers=1, num_heads=2, mlp_width=16)
    with torch.device("meta"):  # such a model has no image tower: this one stands in for it
        clip = Clip(ClipConfig(text=parts.text_encoder.config, image=image), end_id=parts.tokenizer.end_id)
    clip.text = parts.text_encoder
    config = ModelConfig(
        name=name,
        picture_size=parts.picture_size,
        autoencoder=parts.autoencoder.config,
        clip=clip.config,
        unet=parts.unet.config,
        schedule=parts.schedule,
    )
    return Pipeline(config, parts.tokenizer, clip, unet, autoencoder, NoiseSchedule(parts.schedule), FOREIGN_DRAWING)
