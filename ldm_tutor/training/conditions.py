"""Training a condition on scenes: `ldm-tutor train denoiser --condition layout`.

What the steered U-Net reads is computed once and kept in the folder: the pictures' latents, sentences, boxes, masks and
masked latents, small pictures, label maps.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ldm_tutor.conditions.channels import HOLE_FORMS, hide, shrink_masks
from ldm_tutor.config import (
    CONDITIONS,
    BertEncoderConfig,
    ClassEncoderConfig,
    ConditionConfig,
    ScheduleConfig,
    SemanticEncoderConfig,
    UNetConfig,
)
from ldm_tutor.data.boxes import SCENES_BOXES, scene_boxes, tokenize_boxes
from ldm_tutor.data.degrade import degrade, shrink
from ldm_tutor.data.maps import LABELS, label_maps
from ldm_tutor.data.masks import background_mask, box_mask, free_form_mask, random_box_mask
from ldm_tutor.data.scenes.datasets import ScenePictures, render_scenes, to_float
from ldm_tutor.data.scenes.sampling import sample_scene
from ldm_tutor.data.scenes.world import KINDS, Scene
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.shapes import Tensor
from ldm_tutor.training.learner import pick_device, pick_dtype
from ldm_tutor.training.loop import Budget, run_stage
from ldm_tutor.training.options import SCENES_SIDE, TrainingOptions
from ldm_tutor.training.recipe import cached_moments, caption_tokens
from ldm_tutor.training.stages.condition import RECIPES, ConditionStage
from ldm_tutor.weights.files import atomic_file, load_model, read_header, sha256_of
from ldm_tutor.weights.shipped import resolve

log = logging.getLogger(__name__)

MINUTES = {"layout": 22.0, "inpainting": 13.0, "upscaling": 13.0, "class": 5.0, "semantic": 7.0}  # unless told
_CHUNK = 2_000  # scenes drawn at once
_CLEAN = 0.5  # share of small pictures that are shrunk cleanly
_CLASSES = len(KINDS) + 1  # the last means "no class"
# What a training hole covers: an object's place, background alone, strokes, a box anywhere, everything.
HOLES = {"object": 0.45, "background": 0.22, "strokes": 0.13, "box": 0.12, "all": 0.08}


def condition_config(kind: str, unet: UNetConfig, rank: int | None = None) -> ConditionConfig:
    """Return the course's condition `kind` of CONDITIONS for a U-Net of scenes; `rank` None: its recipe's."""
    if kind not in CONDITIONS:
        raise ConfigError("condition", given=kind, expected=f"one of {CONDITIONS}")
    rank = RECIPES[kind].rank if rank is None else rank
    config = ConditionConfig(kind=kind, unet=unet, rank=rank, convolutions=RECIPES[kind].convolutions)
    width = unet.context_dim or 0
    if kind == "layout":
        boxes = BertEncoderConfig(
            vocab_size=SCENES_BOXES.size, context_length=SCENES_BOXES.length, width=width, num_layers=2, num_heads=4,
            head_channels=max(1, width // 4),
        )  # fmt: skip
        return dataclasses.replace(config, boxes=boxes)
    if kind == "class":
        return dataclasses.replace(config, classes=ClassEncoderConfig(num_classes=_CLASSES, width=width))
    if kind == "inpainting":
        return dataclasses.replace(config, extra_channels=1 + unet.out_channels)
    labels = SemanticEncoderConfig(num_labels=len(LABELS)) if kind == "semantic" else None
    return dataclasses.replace(config, extra_channels=3, labels=labels)


def train_condition(
    kind: str, budget: Budget, options: TrainingOptions, *, rank: int | None = None, resume: bool = False
) -> list[Path]:
    """Train the condition `kind` within `budget`; return the path of the file it wrote, `<kind>.safetensors`.

    The model to steer is that of `options.start_from`, or the shipped one; it stays as it is.
    """
    stage = _build(kind, options, rank)
    return run_stage(
        stage,
        budget,
        options.folder,
        seed=options.seed,
        resume=resume,
        show_progress=options.show_progress,
        save_every=options.save_every,
    )


def _build(kind: str, options: TrainingOptions, rank: int | None) -> ConditionStage:
    device = pick_device(options.device)
    dtype = pick_dtype(options.precision, device)
    folder = resolve(options.start_from)
    base = load_model(folder / "unet.safetensors", "unet")
    config = condition_config(kind, base.config, rank)
    recipe = dataclasses.replace(RECIPES[kind], rank=config.rank)
    clip = load_model(folder / "clip.safetensors", "clip")
    if (side := clip.config.image.picture_size) != SCENES_SIDE:
        raise ConfigError("a condition is learned from scenes of 64 pixels", given=f"a model of {side}", expected="64")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    autoencoder = load_model(folder / "autoencoder.safetensors", "autoencoder").to(device, dtype)
    made_of = {"autoencoder": sha256_of(folder / "autoencoder.safetensors")}
    inputs = kept_inputs(kind, options, autoencoder, made_of, device, dtype)
    schedule = read_header(folder / "unet.safetensors")["metadata"].get("schedule", ScheduleConfig().to_dict())
    torch.manual_seed(options.seed)  # first weights
    return ConditionStage(
        config,
        base,
        cached_moments(options, autoencoder, device, dtype, folder)[0],
        autoencoder.config.scale_factor,
        clip.text,
        caption_tokens(options.num_scenes, options.seed, tokenizer),
        tokenizer.empty(1),
        inputs,
        recipe=recipe,
        device=device,
        dtype=dtype,
        schedule=ScheduleConfig.from_dict(schedule),
        picture_weights=_picture_weights(kind, options, recipe.repeats),
        words=_kind_words(clip, tokenizer) if kind in ("layout", "class") else None,
    )


@torch.no_grad()
def _kind_words(clip: Clip, tokenizer: Tokenizer) -> Tensor:
    """Return the vector of each kind's last token in "a <kind>": what the U-Net reads where that kind is named."""
    tokens = tokenizer([f"a {kind}" for kind in KINDS])
    ends = (tokens == tokenizer.end_id).int().argmax(dim=1)
    return clip.text(tokens)[torch.arange(len(tokens)), ends - 1]


def _picture_weights(kind: str, options: TrainingOptions, repeats: float) -> Tensor:
    """Return how often each scene is taken: for classes only those of one object."""
    two = 0.0 if kind == "class" else repeats
    counts = [len(sample_scene(i, "train", options.seed).objects) for i in range(options.num_scenes)]
    return torch.tensor([1.0 if count == 1 else two for count in counts])


# ---------------------------------------------------------------- what the condition reads


def kept_inputs(
    kind: str,
    options: TrainingOptions,
    autoencoder: Autoencoder,
    made_of: dict[str, str],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return the inputs of every training scene; kept in `<kind>.inputs.safetensors`, for a resumed run."""
    path = options.folder / f"{kind}.inputs.safetensors"
    made_of = {**made_of, "num_scenes": str(options.num_scenes), "seed": str(options.seed)}
    if path.is_file():
        with safe_open(path, framework="pt") as kept:
            if kept.metadata() == made_of:
                return {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
    makers: dict[str, Callable[[int, int], dict[str, Tensor]]] = {
        "layout": lambda start, count: _boxes(_scenes(options, start, count), options.seed + start),
        "class": lambda start, count: _classes(_scenes(options, start, count)),
        "semantic": lambda start, count: _labels(_drawn(options, start, count, with_masks=True)),
        "upscaling": lambda start, count: _small(_drawn(options, start, count), start, autoencoder.config.downsampling),
        "inpainting": lambda start, count: _holes(
            _drawn(options, start, count, with_masks=True), options.seed, start, autoencoder, device, dtype
        ),
    }
    parts = []
    for start in range(0, options.num_scenes, _CHUNK):
        count = min(_CHUNK, options.num_scenes - start)
        parts.append(makers[kind](start, count))
        log.info("%s: inputs of %d of %d pictures", kind, start + count, options.num_scenes)
    inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    with atomic_file(path) as temporary:
        save_file(inputs, temporary, metadata=made_of)
    return inputs


def _scenes(options: TrainingOptions, start: int, count: int) -> list[Scene]:
    return [sample_scene(index, "train", options.seed) for index in range(start, start + count)]


def _drawn(options: TrainingOptions, start: int, count: int, with_masks: bool = False) -> ScenePictures:
    return render_scenes(
        count, "train", options.seed, num_workers=options.num_workers, start=start, with_masks=with_masks
    )


def _boxes(scenes: list[Scene], seed: int) -> dict[str, Tensor]:
    shuffle = random.Random(f"boxes {seed}")
    return {"boxes": tokenize_boxes([scene_boxes(scene) for scene in scenes], shuffle=shuffle).short()}


def _classes(scenes: list[Scene]) -> dict[str, Tensor]:
    return {"classes": torch.tensor([KINDS.index(scene.objects[0].kind) for scene in scenes], dtype=torch.int16)}


def _labels(drawn: ScenePictures) -> dict[str, Tensor]:
    assert drawn.foreground is not None
    return {"labels": label_maps(drawn.scenes, drawn.foreground)}


def _small(drawn: ScenePictures, start: int, factor: int) -> dict[str, Tensor]:
    """Return small pictures, half of them shrunk cleanly and half degraded, in an order that the number fixes."""
    side = drawn.pictures.shape[-1] // factor
    clean = shrink(drawn.pictures.float(), factor).round().to(torch.uint8)
    keep = torch.tensor([random.Random(f"clean {start + i}").random() < _CLEAN for i in range(len(drawn))])
    rows = (~keep).nonzero().flatten().tolist()
    if rows:
        clean[rows] = degrade(drawn.pictures[rows], side, [start + row for row in rows])
    return {"small": clean}


@torch.inference_mode()
def _holes(
    drawn: ScenePictures, seed: int, start: int, autoencoder: Autoencoder, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    form, factor = HOLE_FORMS["scenes"], autoencoder.config.downsampling
    assert drawn.foreground is not None
    masks = torch.stack(
        [
            training_hole(scene, front, random.Random(f"hole {seed} {start + i}"))
            for i, (scene, front) in enumerate(zip(drawn.scenes, drawn.foreground, strict=True))
        ]
    )
    masked = []
    for pictures, holes in zip(drawn.pictures.split(128), masks.split(128), strict=True):
        hidden = hide(to_float(pictures), holes, form).to(device, dtype)
        masked.append((autoencoder.config.scale_factor * autoencoder.encode(hidden).mode()).half().cpu())
    return {"mask": shrink_masks(masks, factor, form).to(torch.uint8), "masked": torch.cat(masked)}


def training_hole(scene: Scene, foreground: Tensor, rng: random.Random) -> Tensor:
    """Return a hole of one of the sorts HOLES, (1, H, W)."""
    side = foreground.shape[-1]
    sort = rng.choices(tuple(HOLES), tuple(HOLES.values()))[0]
    if sort == "object":
        boxes = scene_boxes(scene)
        chosen = boxes if rng.random() < 0.1 else [rng.choice(boxes)]
        return torch.stack([object_hole(side, box.rect, rng) for box in chosen]).amax(dim=0)
    if sort == "background":
        mask = background_mask(foreground, rng)
        if mask is not None:
            return mask
    if sort == "all":
        return torch.ones(1, side, side)
    return random_box_mask(side, rng) if sort == "box" else free_form_mask(side, rng)


def object_hole(side: int, rect: tuple[float, float, float, float], rng: random.Random) -> Tensor:
    """Return a box that hides the whole object at `rect`, larger than it by chance, and not the same all round."""
    x0, y0, x1, y1 = rect
    more = [rng.uniform(0.02, 0.1) for _ in range(4)]
    return box_mask(side, (x0 - more[0], y0 - more[1], x1 + more[2], y1 + more[3]))
