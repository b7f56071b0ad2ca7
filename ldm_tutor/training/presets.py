"""Models of other sizes than the course's own, and how each is trained: what `ldm-tutor train --preset` starts.

`small` is the course's model with less to compute; `middle` and `middle256` are the course's on larger pictures; all
three are trained by the course's recipe. The full-size ones are trained as the paper's were (Rombach et al. 2022,
tables 12 and 15, and the published configurations): batch, learning rate, optimiser, average, conditioning dropout,
losses. What differs from the paper is said by `departures`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm_tutor.config import ClipConfig, DiscriminatorConfig, ModelConfig, VQAutoencoderConfig, scenes, sd_v1
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.clip import Clip
from ldm_tutor.presets import PaperModel, unconditional256
from ldm_tutor.training.bill import PaperRun, find_run
from ldm_tutor.training.learner import Descent, scaled_lr
from ldm_tutor.training.stages.autoencoder import AutoencoderRecipe
from ldm_tutor.training.stages.denoiser import BATCH_SIZE, PEAK_LR

SHARES = {"perceptual": 0.012, "judge": 0.028, "autoencoder": 0.25, "clip": 0.06, "denoiser": 0.65}  # of the minutes

BASE_LR = 4.5e-6  # of every autoencoder of the paper: times its batch
CODER_SIDE = 256  # pixels, of the pictures on which every autoencoder of the paper was trained
CODER_DESCENT = Descent(betas=(0.5, 0.9), weight_decay=0.0, ema_decay=None)  # of an autoencoder and of its critic
KL_LOSS = AutoencoderRecipe(
    perceptual_weight=1.0, kl_weight=1e-6, summed=True, adversarial_weight=0.5, adversarial_step=50_001, batch_size=24,
    peak_lr=24 * BASE_LR, descent=CODER_DESCENT,
)  # fmt: skip
VQ_LOSS = AutoencoderRecipe(
    perceptual_weight=1.0, codebook_weight=1.0, adversarial_weight=0.75, adversarial_step=0, batch_size=8,
    peak_lr=8 * BASE_LR, descent=CODER_DESCENT,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PaperRecipe:
    """How a full-size model is trained. `run`: the published training of its denoiser.

    `drop_share`: how often the denoiser gets the empty sentence. `coder`: the autoencoder's losses and learning rate.
    """

    run: PaperRun
    coder: AutoencoderRecipe
    drop_share: float = 0.0
    coder_side: int = CODER_SIDE
    critic: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    @property
    def descent(self) -> Descent:
        """How the denoiser's weights change: AdamW, the rate constant after a warm-up, a long average."""
        return Descent(ema_decay=self.run.ema_decay, warmup=max(1, self.run.warmup))


@dataclass(frozen=True, kw_only=True)
class CourseRecipe:
    """The course's own recipe: the autoencoder's losses, and `shares`, the part of the minutes that each stage has.

    `batch_size`: rows of the denoiser's batches; `lr_rule`: what a size other than the course's does to its rate.
    `foreground_weight`: in scenes, the squared error of the noise counts by so much more where a thing is. A thing
    covers a tenth of a picture, and a short training would see little else than scenery. No published model does it:
    their pictures come without masks. From the share `foreground_until` of the run on all counts alike, since a U-Net
    that has only learned things draws some where there should be none.
    """

    coder: AutoencoderRecipe = AutoencoderRecipe()
    batch_size: int = BATCH_SIZE
    lr_rule: str = "fixed"
    foreground_weight: float = 0.0
    foreground_until: float = 1.0
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES, hash=False)


@dataclass(frozen=True, kw_only=True)
class TrainingPreset:
    """A model to train, by its name. `paper` None: by the course's own recipe, on scenes or on one's own pictures."""

    name: str
    model: ModelConfig | PaperModel
    paper: PaperRecipe | None = None
    course: CourseRecipe = CourseRecipe()

    @property
    def reads(self) -> bool:
        """Whether sentences tell the model what to draw."""
        return self.model.unet.context_dim is not None

    def side(self, stage: str) -> int:
        """Return the side, in pixels, of the pictures that a stage learns from."""
        return self.paper.coder_side if self.paper and stage == "autoencoder" else self.model.picture_size

    def published(self, stage: str) -> tuple[int, float, str]:
        """Return a full-size stage's batch, its learning rate, and the rule by which another batch changes that."""
        if self.paper is None:
            raise ConfigError(f"preset {self.name!r}: trained by the course's recipe, not by a published one")
        if stage == "autoencoder":
            return self.paper.coder.batch_size, self.paper.coder.peak_lr, "linear"
        run = self.paper.run
        return run.batch_size, run.lr, "linear" if run.base_lr else "fixed"

    def rate(self, stage: str, batch_size: int, rule: str | None = None) -> float:
        """Return the learning rate for a batch, by the preset's own rule unless another is given."""
        reference, lr, own = self.published(stage)
        return scaled_lr(lr, batch_size, reference, rule or own)

    def departures(self, stage: str) -> list[str]:
        """Return what is otherwise than in the published training, a sentence each."""
        if self.paper is None:
            note = "the judge and the perceptual network see scenes of 64 pixels: `evaluate` shrinks larger ones first"
            return [note] if self.model.picture_size > 64 else []
        if stage == "autoencoder":
            return [
                "instead of LPIPS (VGG-16 and its learned weights) the course's perceptual network compares pictures",
                "pictures are cut to their middle square; the paper took random cuts of larger ones",
            ]
        told = ["latents are encoded once and kept, not anew at every step"]
        if self.reads:
            told.append("a tenth of the sentences is dropped all along; the model card's first phases dropped none")
            told.append(f"one size throughout; the model card's first phase had {self.paper.run.phases[0].side} pixels")
        return told


def small() -> ModelConfig:
    """Return the course's model with less to compute: a thin finest level in the U-Net, larger patches for CLIP.

    The latents are of the same form, 16 x 16 x 4. Two processor cores train it from nothing in 90 minutes.
    """
    model = scenes()
    unet = dataclasses.replace(model.unet, channels=32, channel_mult=(1, 3, 5))
    clip = dataclasses.replace(model.clip, image=dataclasses.replace(model.clip.image, patch_size=16))
    return dataclasses.replace(model, name="small", clip=clip, unet=unet)


def middle(side: int = 128) -> ModelConfig:
    """Return the course's model for scenes of 128 or 256 pixels: the same channels and f = 4, so a larger grid.

    CLIP cuts the larger picture into as many patches as the small one, 8 x 8. The parameters are as many as before, but
    for CLIP's first layer, whose patches are larger.
    """
    model = scenes()
    image = model.clip.image
    larger = dataclasses.replace(image, picture_size=side, patch_size=image.patch_size * side // image.picture_size)
    clip = dataclasses.replace(model.clip, image=larger)
    return dataclasses.replace(model, name="middle" if side == 128 else f"middle{side}", picture_size=side, clip=clip)


def with_larger_patches(clip: Clip, config: ClipConfig) -> Clip:
    """Return `clip` as one of `config`, whose pictures and patches are larger by one factor: it sees them shrunk.

    Each weight of the first layer is shared out over the pixels that take the place of one. Any other difference
    between the two is left for the learner to refuse.
    """
    times, rest = divmod(config.image.patch_size, clip.config.image.patch_size)
    if times < 2 or rest or config.image.picture_size != times * clip.config.image.picture_size:
        return clip
    image = dataclasses.replace(
        clip.config.image, picture_size=config.image.picture_size, patch_size=config.image.patch_size
    )
    larger = Clip(dataclasses.replace(clip.config, image=image), end_id=clip.end_id)
    state, name = dict(clip.state_dict()), "image.patch_embedding.weight"
    state[name] = state[name].repeat_interleave(times, dim=2).repeat_interleave(times, dim=3) / times**2
    larger.load_state_dict(state)
    return larger.eval()


def _scenes() -> TrainingPreset:
    return TrainingPreset(name="scenes", model=scenes())


def _small() -> TrainingPreset:
    shares = {"perceptual": 0.01, "judge": 0.025, "autoencoder": 0.13, "clip": 0.13, "denoiser": 0.705}
    course = _things_first(coder=AutoencoderRecipe(batch_size=8), shares=shares)
    return TrainingPreset(name="small", model=small(), course=course)


def _things_first(**settings: Any) -> CourseRecipe:
    """Return the recipe in which, in the first two thirds of the U-Net's run, things count six times as much."""
    return CourseRecipe(batch_size=64, lr_rule="root", foreground_weight=5.0, foreground_until=2 / 3, **settings)


def _middle(side: int) -> TrainingPreset:
    model = middle(side)
    return TrainingPreset(name=model.name, model=model)


def _sd_v1() -> TrainingPreset:
    paper = PaperRecipe(run=find_run("Stable Diffusion v1-4"), coder=KL_LOSS, drop_share=0.1)
    return TrainingPreset(name="sd_v1", model=sd_v1(), paper=paper)


def _celebahq() -> TrainingPreset:
    model = unconditional256("celebahq")
    assert isinstance(model.autoencoder, VQAutoencoderConfig)
    return TrainingPreset(
        name="celebahq", model=model, paper=PaperRecipe(run=find_run("CelebA-HQ, LDM-4"), coder=VQ_LOSS)
    )


TRAINING_PRESETS: dict[str, Callable[[], TrainingPreset]] = {
    "scenes": _scenes,
    "small": _small,
    "middle": lambda: _middle(128),
    "middle256": lambda: _middle(256),
    "sd_v1": _sd_v1,
    "celebahq": _celebahq,
}


def find_preset(name: str) -> TrainingPreset:
    """Return the training preset called `name`; ConfigError lists them all, and the nearest names."""
    if name in TRAINING_PRESETS:
        return TRAINING_PRESETS[name]()
    near = difflib.get_close_matches(name.lower(), TRAINING_PRESETS, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(
        "--preset: no training of this name", given=name, expected=f"one of {list(TRAINING_PRESETS)}{meant}"
    )


def _course_lines(course: CourseRecipe, stage: str, batch_size: int, rule: str | None) -> list[tuple[str, str]]:
    if stage == "clip":
        return []
    rate, rows = course.coder.peak_lr, course.coder.batch_size
    if stage == "denoiser":
        rate, rows = scaled_lr(PEAK_LR, batch_size, BATCH_SIZE, rule or course.lr_rule), batch_size
    lines = [("batch", f"{rows} rows"), ("learning rate", f"{rate:g} at its highest, falling to a fiftieth")]
    if stage == "denoiser" and course.foreground_weight:
        until = "" if course.foreground_until >= 1 else f", for the first {course.foreground_until:.0%} of the run"
        lines.append(("loss", f"{1 + course.foreground_weight:g} times as much where a thing is, in scenes{until}"))
    return lines


def recipe_lines(preset: TrainingPreset, stage: str, batch_size: int, rule: str | None = None) -> list[tuple[str, str]]:
    """Return what a stage is trained with, as pairs of a name and its value in words."""
    paper = preset.paper
    if paper is None:
        own_lines = _course_lines(preset.course, stage, batch_size, rule)
        return [("recipe", "the course's own, as for scenes of 64 pixels"), *own_lines]
    reference, lr, own = preset.published(stage)
    rate = preset.rate(stage, batch_size, rule)
    told = "" if batch_size == reference else f"; published: {lr:g} for {reference}, rule {rule or own!r}"
    lines = [("batch", f"{batch_size} rows"), ("learning rate", f"{rate:g}, constant{told}")]
    descent = CODER_DESCENT if stage == "autoencoder" else paper.descent
    if descent.warmup > 1:
        lines.append(("warm-up", f"{descent.warmup:,} steps"))
    name = "AdamW" if descent.weight_decay else "Adam"
    cut = "not cut" if math.isinf(descent.max_norm) else f"cut to {descent.max_norm:g}"
    lines.append(
        ("optimiser", f"{name}, betas {descent.betas}, weight decay {descent.weight_decay:g}, gradients {cut}")
    )
    decay = descent.ema_decay
    lines.append(("average", "none" if decay is None else f"min({decay}, (1 + n) / (10 + n)) after n steps"))
    if stage != "autoencoder":
        lines.append(("loss", "squared error of the noise, all steps alike"))
        lines.append(("dropped sentences", f"{paper.drop_share:.0%}" if preset.reads else "there are none"))
        return lines
    coder = paper.coder
    if isinstance(preset.model.autoencoder, VQAutoencoderConfig):
        rest = f"{coder.codebook_weight:g} codebook, means over the picture"
    else:
        rest = f"{coder.kl_weight:g} KL, sums over the picture"
    lines.append(("loss", f"L1 + {coder.perceptual_weight:g} perceptual + {rest}"))
    lines.append(("adversary", f"{coder.adversarial_weight:g}, balanced, from step {coder.adversarial_step:,} on"))
    return lines
