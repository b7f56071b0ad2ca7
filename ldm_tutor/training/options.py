"""What a training is asked for, where its files lie, and on which device it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ldm_tutor.config import ModelConfig, scenes
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.training.learner import LR_RULES, pick_device, pick_dtype
from ldm_tutor.training.own_pictures import own_config
from ldm_tutor.training.presets import CourseRecipe, TrainingPreset
from ldm_tutor.training.processes import ALONE, Team
from ldm_tutor.training.stages.denoiser import BATCH_SIZE
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve

MOST_SCENES = 80_000  # of which autoencoder and CLIP learn; the denoiser sees more
SCENES_SIDE = 64  # pixels: what the judge and the perceptual network see, whatever the model's size
OUTPUTS = {
    "perceptual": "perceptual.safetensors",
    "judge": "judge.safetensors",
    "autoencoder": "autoencoder.safetensors",
    "clip": "clip.safetensors",
    "denoiser": "unet.safetensors",
}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What all stages share. `num_scenes` scales the data: the denoiser sees this many pictures, the others less.

    `start_from`: a folder of weights to train further, instead of random first weights. `decoder_only`: the
    autoencoder's encoder stays as it is, and with it the latents that a U-Net knows. `data`: pictures and captions
    to learn from instead of scenes, a folder or what else `ldm_tutor.data.folders` reads. `preset`: a model of another
    size; `frozen`: where a full-size one finds the parts that stay as they are (`full_size.read_frozen`).

    For the denoiser: `batch_size` rows in all, shared by the `team`, by each of it in `accumulate` pieces; `lr_rule`:
    what another batch size does to the learning rate, None for nothing, or what the preset says. For a full-size
    preset both hold for the autoencoder too. A checkpoint is written every `save_every` seconds.
    """

    folder: Path
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    num_scenes: int = 100_000
    num_workers: int = 0
    show_progress: bool = True
    start_from: Path | None = None
    decoder_only: bool = False
    config: ModelConfig | None = None
    preset: TrainingPreset | None = None
    frozen: str | None = None
    data: str | None = None
    batch_size: int = BATCH_SIZE
    accumulate: int = 1
    lr_rule: str | None = None
    save_every: float = 120.0
    team: Team = ALONE

    def __post_init__(self) -> None:
        self.team.pieces(self.batch_size, self.accumulate)  # refuses what does not go round
        if self.lr_rule is not None and self.lr_rule not in LR_RULES:
            raise ConfigError("--lr-rule", given=self.lr_rule, expected=f"one of {LR_RULES}")
        if self.num_scenes < 64:
            raise ConfigError("--num-scenes", given=self.num_scenes, expected="64 or more")
        if self.decoder_only and self.start_from is None:
            raise ConfigError("--decoder-only keeps an encoder", fix="say with --start-from which")

    @property
    def full_size(self) -> bool:
        """Whether a published model is trained, by its own recipe."""
        return self.preset is not None and self.preset.paper is not None

    @property
    def course(self) -> CourseRecipe:
        """The course's own recipe, as the preset has it; no part of it is for a full-size model."""
        return CourseRecipe() if self.preset is None else self.preset.course

    @property
    def model(self) -> ModelConfig:
        """The model to train; unless another is given the course's own, with room for more words for own pictures."""
        base = scenes() if self.preset is None else self.preset.model
        assert isinstance(base, ModelConfig)  # the full-size ones have `full_size`
        return self.config or (base if self.data is None else own_config(base))

    def side(self, stage: str) -> int:
        """The side, in pixels, of the pictures that a stage learns from; judge and perceptual network see scenes."""
        if stage in ("perceptual", "judge"):
            return SCENES_SIDE
        return self.preset.side(stage) if self.preset is not None else self.model.picture_size


def place(options: TrainingOptions) -> tuple[torch.device, torch.dtype]:
    """Return the device and the type of numbers that the options ask for, one type for the whole team."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.precision, device)
    dtype = torch.bfloat16 if options.team.lead(float(dtype == torch.bfloat16)) else torch.float32  # one for all
    return device, dtype


def needed(folder: Path, stage: str) -> Path:
    """Return the path of a stage's weights; WeightsError, which says how to make them, where they are not there."""
    path = folder / OUTPUTS[stage]
    if not path.is_file():
        raise WeightsError(
            f"{path} is missing: this stage builds on {stage!r}",
            fix=f"run ldm-tutor train {stage} --out {folder} first",
        )
    return path


def eye(options: TrainingOptions) -> PerceptualDistance:
    """Return the network that compares pictures: the folder's own, the shipped one for other pictures and sizes."""
    own = (options.folder / OUTPUTS["perceptual"]).is_file()
    home = options.folder if own or (options.data is None and options.preset is None) else resolve()
    return PerceptualDistance(load_model(needed(home, "perceptual"), "judge"))
