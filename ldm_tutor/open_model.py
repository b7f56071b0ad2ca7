"""A pipeline from wherever a model lies: our folder, a diffusers folder, a CompVis single file, a name on the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm_tutor.config import FOREIGN_DRAWING, PRESETS, ClipConfig, ImageEncoderConfig, ModelConfig
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tuning import tune
from ldm_tutor.pipeline import Pipeline, load_pipeline
from ldm_tutor.presets import sd_v1_inpainting
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.weights.diffusers_folder import DiffusersParts
from ldm_tutor.weights.sources import is_foreign, open_model

FILE_PRESETS = {**PRESETS, "sd_v1_inpainting": sd_v1_inpainting}  # what a single file can be


def open_pipeline(
    place: str | Path | None = None,
    *,
    preset: str = "sd_v1",
    tokenizer: str | Path | None = None,
    ema: bool | None = None,
    device: str = "cpu",
) -> Pipeline:
    """Return the model at `place`, ours or another program's, ready to draw; None is the model that the course ships.

    `preset`, `tokenizer` and `ema` are for a single file, see `open_parts`. WeightsError and ConfigError say what is
    missing, broken or of another kind.
    """
    if place is None or not is_foreign(place):
        return load_pipeline(place, device)
    parts = open_parts(place, preset=preset, tokenizer=tokenizer, ema=ema, device=device)
    return pipeline_of(parts, name=Path(place).stem)


def open_parts(
    place: str | Path,
    *,
    preset: str = "sd_v1",
    tokenizer: str | Path | None = None,
    ema: bool | None = None,
    device: str = "cpu",
) -> DiffusersParts:
    """Return the parts of another program's model. A single file has neither settings nor words in it.

    So `preset` says which of FILE_PRESETS it is, `tokenizer` names a folder (or a model on the hub) with CLIP's
    vocabulary, and `ema` picks the moving average or the trained weights (see `load_compvis`).
    """
    if preset not in FILE_PRESETS:
        raise ConfigError("--preset: unknown model", given=preset, expected=f"one of {sorted(FILE_PRESETS)}")
    return open_model(place, model=FILE_PRESETS[preset](), tokenizer=tokenizer, ema=ema, device=device)


def pipeline_of(parts: DiffusersParts, name: str = "foreign") -> Pipeline:
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
    unet, autoencoder = tune(parts.unet), tune(parts.autoencoder)
    return Pipeline(config, parts.tokenizer, clip, unet, autoencoder, NoiseSchedule(parts.schedule), FOREIGN_DRAWING)
