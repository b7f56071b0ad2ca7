"""The full-size presets on pictures of one's own: the same stages, the published losses and rates, and whole models.

What stays as it is while a denoiser learns, text encoder and autoencoder, may come from another model: the published
ones were trained on far more than a folder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm_tutor.config import ModelConfig
from ldm_tutor.data.captioned import CaptionedPictures
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Latents, Tensor
from ldm_tutor.training.loop import Stage
from ldm_tutor.training.options import OUTPUTS, TrainingOptions, eye, needed
from ldm_tutor.training.own_pictures import own_pictures, own_tokens
from ldm_tutor.training.presets import PaperRecipe, TrainingPreset
from ldm_tutor.training.processes import Team
from ldm_tutor.training.stages.autoencoder import AutoencoderStage
from ldm_tutor.training.stages.denoiser import DenoiserStage, cache_moments
from ldm_tutor.weights import foreign
from ldm_tutor.weights.clip_folder import load_clip
from ldm_tutor.weights.compvis import save_compvis
from ldm_tutor.weights.course_clip import load_course_clip
from ldm_tutor.weights.diffusers_folder import INDEX, export_diffusers, read_config, read_tokenizer, read_weights
from ldm_tutor.weights.files import atomic_file, load_model
from ldm_tutor.weights.hub import local_place

STAGES = ("autoencoder", "denoiser")  # those of a full-size preset; its text encoder is taken, not trained
_DIFFUSERS: dict[str, tuple[str, Any, Any]] = {
    "autoencoder": ("vae", foreign.autoencoder_config, Autoencoder),
    "denoiser": ("unet", foreign.unet_config, UNet),
}
NUM_SAMPLES, SAMPLE_STEPS = 4, 50  # pictures drawn at the end by a model that no sentence tells what to draw


def start_weights(place: Path, stage: str) -> Any:
    """Return the network with which a stage begins: of a folder of ours, or of one of diffusers."""
    if not (place / INDEX).is_file():
        return load_model(needed(place, stage))
    name, read, model = _DIFFUSERS[stage]
    config = read_config(place / name / "config.json", read)
    return read_weights(place / name / "diffusion_pytorch_model.safetensors", config, model, "cpu", torch.float32)


@dataclass(frozen=True)
class FrozenParts:
    """What a denoiser takes from another model. `autoencoder` is None where that has none."""

    text_encoder: TextEncoder
    tokenizer: Tokenizer
    autoencoder: Autoencoder | None


def read_frozen(place: str | Path, preset: TrainingPreset) -> FrozenParts:
    """Read text encoder, tokenizer and autoencoder from our folder, one of diffusers, CLIP's of transformers, or a hub.

    The U-Net that may lie there is not read. WeightsError for what is missing, ConfigError for another text encoder
    than the preset's.
    """
    root, autoencoder = local_place(place), None
    if (root / INDEX).is_file():
        config = read_config(root / "text_encoder" / "config.json", foreign.text_config)
        text = read_weights(root / "text_encoder" / "model.safetensors", config, TextEncoder, "cpu", torch.float32)
        autoencoder = start_weights(root, "autoencoder")
        tokenizer: Tokenizer | None = read_tokenizer(root / "tokenizer")
    elif (root / "clip.safetensors").is_file():
        clip, tokenizer = load_course_clip(root)
        text = clip.text
        if (root / "autoencoder.safetensors").is_file():
            autoencoder = load_model(root / "autoencoder.safetensors", "autoencoder")
    else:
        parts = load_clip(root)
        text, tokenizer = parts.clip.text, parts.tokenizer
    if tokenizer is None:
        raise WeightsError(
            f"--frozen {root}: no tokenizer in it", expected="vocab.json and merges.txt beside the weights"
        )
    model = preset.model
    assert isinstance(model, ModelConfig)  # a preset that reads
    if text.config != model.clip.text:
        raise ConfigError(
            f"--frozen {root}: another text encoder than that of {preset.name}",
            given=text.config.to_dict(),
            expected=str(model.clip.text.to_dict()),
        )
    return FrozenParts(text, tokenizer, autoencoder)


def autoencoder_stage(
    preset: TrainingPreset,
    pictures: Tensor,
    perceptual: PerceptualDistance,
    *,
    batch_size: int,
    rule: str | None,
    decoder_only: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> AutoencoderStage:
    """Return the training of a full-size preset's autoencoder on pictures, uint8 (N, 3, S, S)."""
    paper = _paper(preset)
    rate = preset.rate("autoencoder", batch_size, rule)
    recipe = dataclasses.replace(paper.coder, batch_size=batch_size, peak_lr=rate, decoder_only=decoder_only)
    config, critic = preset.model.autoencoder, paper.critic
    return AutoencoderStage(
        config, pictures, perceptual, device=device, dtype=dtype, recipe=recipe, discriminator=critic
    )


def denoiser_stage(
    preset: TrainingPreset,
    data: CaptionedPictures,
    autoencoder: Autoencoder | VQAutoencoder,
    frozen: FrozenParts | None,
    *,
    batch_size: int,
    rule: str | None,
    device: torch.device,
    dtype: torch.dtype,
    team: Team,
    accumulate: int,
) -> DenoiserStage:
    """Return the training of a full-size preset's U-Net. `frozen`: None for a model without sentences."""
    paper, expected = _paper(preset), preset.model.autoencoder
    if dataclasses.replace(autoencoder.config, scale_factor=expected.scale_factor) != expected:
        raise ConfigError(
            f"the autoencoder is of another size than that of {preset.name}",
            given=autoencoder.config.to_dict(),
            expected=str(expected.to_dict()),
        )
    moments = cache_moments(autoencoder.to(device, dtype), data.pictures, device=device, dtype=dtype)
    return DenoiserStage(
        preset.model.unet,
        moments,
        autoencoder.config.scale_factor,
        None if frozen is None else frozen.text_encoder,
        None if frozen is None else own_tokens(data.captions, frozen.tokenizer),
        None if frozen is None else frozen.tokenizer.empty(1),
        device=device,
        dtype=dtype,
        schedule=preset.model.schedule,
        batch_size=batch_size,
        peak_lr=preset.rate("denoiser", batch_size, rule),
        drop_share=paper.drop_share,
        balance_steps=False,
        descent=paper.descent,
        team=team,
        accumulate=accumulate,
    )


def build(name: str, options: TrainingOptions, device: torch.device, dtype: torch.dtype) -> Stage:
    """Return a stage of the full-size preset that the options name."""
    assert options.preset is not None and options.data is not None
    preset = options.preset
    shared: dict[str, Any] = {"batch_size": options.batch_size, "rule": options.lr_rule}
    shared |= {"device": device, "dtype": dtype}
    if name == "autoencoder":
        pictures = own_pictures(options.data, options.side(name)).pictures
        return autoencoder_stage(preset, pictures, eye(options), decoder_only=options.decoder_only, **shared)
    coder, frozen = frozen_parts(options)
    data = own_pictures(options.data, options.side(name))
    data = data.with_captions() if preset.reads else data
    return denoiser_stage(preset, data, coder, frozen, team=options.team, accumulate=options.accumulate, **shared)


def frozen_parts(options: TrainingOptions) -> tuple[Any, FrozenParts | None]:
    """Return the parts that stay as they are while a full-size denoiser learns; the folder's own autoencoder first."""
    assert options.preset is not None
    frozen = None
    if options.preset.reads:
        if options.frozen is None:
            raise ConfigError(
                f"the denoiser of {options.preset.name} reads sentences with a text encoder that is not trained here",
                fix="--frozen PLACE: a folder, or a name on the hub, that has it (as openai/clip-vit-large-patch14)",
            )
        frozen = read_frozen(options.frozen, options.preset)
    if (options.folder / OUTPUTS["autoencoder"]).is_file() or frozen is None or frozen.autoencoder is None:
        return load_model(needed(options.folder, "autoencoder")), frozen
    return frozen.autoencoder, frozen


def write_whole(
    folder: Path,
    preset: TrainingPreset,
    unet: UNet,
    autoencoder: Autoencoder | VQAutoencoder,
    frozen: FrozenParts | None,
) -> list[Path]:
    """Write what other commands open: a diffusers folder; without sentences a single file, and some pictures.

    Of a model without sentences four pictures (DDIM, 50 steps) are drawn here, since `draw` wants a sentence.
    """
    autoencoder = autoencoder.float()
    if frozen is not None and isinstance(autoencoder, Autoencoder):
        place = export_diffusers(
            folder / "diffusers",
            tokenizer=frozen.tokenizer,
            text_encoder=frozen.text_encoder.float(),
            unet=unet,
            autoencoder=autoencoder,
            schedule=preset.model.schedule,
            picture_size=preset.model.picture_size,
        )
        return [place]
    file = folder / f"{preset.name}.safetensors"
    save_compvis(file, unet=unet, autoencoder=autoencoder, condition=None, schedule=preset.model.schedule)
    picture = folder / "samples.png"
    with atomic_file(picture) as temporary:
        _side_by_side(draw_freely(preset, unet, autoencoder)).save(temporary, format="PNG")
    return [file, picture]


@torch.inference_mode()
def draw_freely(preset: TrainingPreset, unet: UNet, autoencoder: Autoencoder | VQAutoencoder) -> Tensor:
    """Return pictures (NUM_SAMPLES, 3, H, W) in [-1, 1] that a U-Net without a context draws from noise."""
    device = next(unet.parameters()).device
    seeds = range(NUM_SAMPLES)

    def denoiser(latents: Latents, t: int, step: int) -> Latents:
        return unet(latents, torch.full((len(latents),), float(t), device=device))

    noise = PictureNoise(list(seeds)).initial(preset.model.latent_shape).to(device)
    states = sample(denoiser, noise, NoiseSchedule(preset.model.schedule), sampler="ddim", num_steps=SAMPLE_STEPS)
    *_, last = states
    autoencoder = autoencoder.to(device)
    return torch.cat([autoencoder.to_pictures(row[None]).cpu() for row in last.latents])


def _side_by_side(pictures: Tensor) -> Image.Image:
    row = torch.cat(list(pictures), dim=2)  # (3, H, n W)
    return Image.fromarray(((row + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def _paper(preset: TrainingPreset) -> PaperRecipe:
    if preset.paper is None:
        raise ConfigError(f"preset {preset.name!r} is trained by the course's recipe")
    return preset.paper
