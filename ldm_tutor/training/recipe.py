"""The whole recipe: judge, autoencoder, CLIP, denoiser, in the order in which each needs the one before.

Every stage can be trained alone; it then takes what it needs from the same folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from ldm_tutor.config import JudgeConfig
from ldm_tutor.data.captioned import CaptionedPictures
from ldm_tutor.data.scenes.datasets import ScenePictures, render_scenes
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.sampling import caption_for, exchanged_twin, near_twin, sample_scene
from ldm_tutor.data.scenes.words import describe
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.training import full_size
from ldm_tutor.training.learner import scaled_lr
from ldm_tutor.training.loop import Budget, Stage, run_stage
from ldm_tutor.training.memory import STAGES as COUNTED
from ldm_tutor.training.memory import check_memory
from ldm_tutor.training.options import MOST_SCENES, OUTPUTS, SCENES_SIDE, TrainingOptions, eye, needed, place
from ldm_tutor.training.own_pictures import SHARES as OWN_SHARES
from ldm_tutor.training.own_pictures import WARMUP as OWN_WARMUP
from ldm_tutor.training.own_pictures import (
    fingerprint,
    own_pictures,
    own_tokens,
    ready_for_text,
)
from ldm_tutor.training.presets import with_larger_patches
from ldm_tutor.training.processes import ALONE
from ldm_tutor.training.stages.autoencoder import AutoencoderStage
from ldm_tutor.training.stages.clip import WORD_DROPOUT, ClipStage
from ldm_tutor.training.stages.denoiser import BATCH_SIZE, PEAK_LR, DenoiserStage, cache_moments
from ldm_tutor.training.stages.judge import JudgeStage
from ldm_tutor.weights.files import atomic_file, load_model, read_header

log = logging.getLogger(__name__)

STAGES = ("perceptual", "judge", "autoencoder", "clip", "denoiser")
TOLD = 40_000  # sentences of scenes from which the tokenizer learns its merges; more bring no new word
TWO_OBJECTS = 2.5  # the denoiser takes a scene of two objects this many times as often: they have more to tell apart


def train_stage(name: str, budget: Budget, options: TrainingOptions, *, resume: bool = False) -> list[Path]:
    """Train one stage of STAGES within `budget`; return the paths of the weights it wrote."""
    if name not in STAGES:
        raise ConfigError("stage", given=name, expected=f"one of {STAGES} or all")
    if options.team.size > 1 and name != "denoiser":
        return _by_the_first(name, budget, options, resume)
    if options.full_size and name not in full_size.STAGES:
        raise ConfigError(f"a full-size preset has no stage {name!r}", expected=f"one of {full_size.STAGES}")
    if options.full_size and options.data is None:
        raise ConfigError("a full-size preset learns from pictures of your own", fix="--data FOLDER")
    if options.preset is not None and name in COUNTED:
        check_memory(name, options, *place(options))
    torch.manual_seed(options.seed)  # first weights
    stage = _build(name, options)
    if options.data is not None:
        stage.settings["data"] = fingerprint(own_pictures(options.data, options.side(name)))
        for learner in stage.learners.values() if not options.full_size else ():
            learner.warmup = min(learner.warmup, OWN_WARMUP)
    before = _start_of(name, options)
    if before is not None and not resume:
        kind = "judge" if name == "perceptual" else OUTPUTS[name].removesuffix(".safetensors")
        learner = next(iter(stage.learners.values()))
        weights = full_size.start_weights(before, name) if options.full_size else load_model(needed(before, name), kind)
        if isinstance(weights, Clip) and options.preset is not None:
            weights = with_larger_patches(weights, options.model.clip)
        learner.load_weights(weights)
    written = run_stage(
        stage,
        budget,
        options.folder,
        seed=options.seed,
        resume=resume,
        show_progress=options.show_progress,
        save_every=options.save_every,
        team=options.team,
    )
    if options.full_size and name == "denoiser" and options.team.is_main:
        assert options.preset is not None
        coder, frozen = full_size.frozen_parts(options)
        written += full_size.write_whole(options.folder, options.preset, stage.learners["unet"].ema, coder, frozen)
    return written


def _by_the_first(name: str, budget: Budget, options: TrainingOptions, resume: bool) -> list[Path]:
    """Train a stage in the first process alone: the rows of its batches need each other, and it is short.

    CLIP compares every row with every other, the critic's norms take means over the batch, the judge divides by the
    number of objects in it.
    """
    written: list[Path] = []
    with options.team.main_first():
        if options.team.is_main:
            log.info("%s: its batch cannot be shared out; the first process trains, the others wait", name)
            written = train_stage(name, budget, dataclasses.replace(options, team=ALONE), resume=resume)
    return written


def train_all(minutes: float, options: TrainingOptions, *, resume: bool = False) -> Iterator[tuple[str, list[Path]]]:
    """Train every stage in turn, sharing out `minutes` by the recipe's shares; yield each stage's name and its weights.

    With pictures of one's own these are autoencoder, CLIP and denoiser, by OWN_SHARES.

    With `resume`, finished stages are skipped and a broken-off one goes on from its checkpoint.
    """
    Budget(minutes=minutes)  # a bad number is refused before anything starts
    shares = options.course.shares if options.data is None else OWN_SHARES
    for name in shares if options.preset is not None else ():
        if name in COUNTED:  # and too little memory for a later stage too
            check_memory(name, options, *place(options))
    for name in shares:
        done = options.folder / OUTPUTS[name]
        if resume and done.is_file():
            log.info("%s is already there: %s", name, done)
            yield name, [done]
            continue
        broken_off = resume and (options.folder / f"{name}.checkpoint").is_file()
        yield name, train_stage(name, Budget(minutes=minutes * shares[name]), options, resume=broken_off)


def _build(name: str, options: TrainingOptions) -> Stage:
    if options.data is not None and name in ("perceptual", "judge"):
        raise ConfigError(
            f"the stage {name!r} learns from scenes, whose contents are known to the last pixel",
            fix="with pictures of your own train autoencoder, clip and denoiser; the course's perceptual network helps",
        )
    device, dtype = place(options)
    if options.full_size:
        return full_size.build(name, options, device, dtype)
    model = options.model
    if name in ("perceptual", "judge"):
        # The smaller network gets other first weights, so that no measurement is taken with what a loss has used.
        torch.manual_seed(options.seed + len(name))
        config = JudgeConfig(channels=16 if name == "perceptual" else 24)
        return JudgeStage(config, _judge_scenes(options), device=device, dtype=dtype, name=name)
    if name == "autoencoder":
        pictures = _train_pictures(options).pictures
        recipe = dataclasses.replace(options.course.coder, decoder_only=options.decoder_only)
        coder = model.autoencoder
        if options.decoder_only:  # so its encoder, and with it the scale of the latents, is that of `start_from`
            assert options.start_from is not None
            kept = read_header(needed(options.start_from, "autoencoder"))["config"]["scale_factor"]
            coder = dataclasses.replace(coder, scale_factor=kept)
        return AutoencoderStage(coder, pictures, eye(options), device=device, dtype=dtype, recipe=recipe)
    if name == "clip":
        data = _train_pictures(options) if options.data is None else _told_pictures(options)
        if (before := _start_of(name, options)) is not None:
            tokenizer = Tokenizer.load(before / "tokenizer")
        else:
            told = data.captions if options.data else data.captions[:TOLD]
            tokenizer = Tokenizer.train(
                told, vocab_size=model.clip.text.vocab_size, context_length=model.clip.text.context_length
            )
        if isinstance(data, CaptionedPictures):
            data = ready_for_text(data, tokenizer)
        twins = _twins(options) if options.data is None else None
        dropout = WORD_DROPOUT if twins else 0.0
        return ClipStage(model.clip, data, twins, tokenizer, device=device, dtype=dtype, word_dropout=dropout)
    return _build_denoiser(options, device, dtype)


def _start_of(name: str, options: TrainingOptions) -> Path | None:
    """Return the folder whose weights this stage begins with, None for random ones.

    CLIP's first layer has a row per token. With words of one's own it can only begin with a CLIP of the same form.
    """
    before = options.start_from
    if before is None or options.data is None or name != "clip":
        return before
    same = read_header(needed(before, "clip"))["config"] == options.model.clip.to_dict()
    if not same:
        log.info("clip: %s has another vocabulary, so it begins anew, with the words of %s", before, options.data)
    return before if same else None


def _build_denoiser(options: TrainingOptions, device: torch.device, dtype: torch.dtype) -> DenoiserStage:
    _render.cache_clear()  # the pictures of the stages before: a gigabyte
    autoencoder = load_model(needed(options.folder, "autoencoder"), "autoencoder").to(device, dtype)
    clip = load_model(needed(options.folder, "clip"), "clip")
    tokenizer = Tokenizer.load(options.folder / "tokenizer")
    moments, foreground = cached_moments(options, autoencoder, device, dtype, options.folder)
    if options.data is None:
        tokens, often = caption_tokens(options.num_scenes, options.seed, tokenizer), _picture_weights(options)
    else:
        tokens, often = own_tokens(_told_pictures(options).captions, tokenizer), None
    return DenoiserStage(
        options.model.unet,
        moments,
        autoencoder.config.scale_factor,
        clip.text,
        tokens,
        tokenizer.empty(1),
        device=device,
        dtype=dtype,
        schedule=options.model.schedule,
        picture_weights=often,
        position_weights=None if foreground is None else 1 + options.course.foreground_weight * foreground,
        weighed_until=options.course.foreground_until,
        batch_size=options.batch_size,
        peak_lr=scaled_lr(PEAK_LR, options.batch_size, BATCH_SIZE, options.lr_rule or options.course.lr_rule),
        team=options.team,
        accumulate=options.accumulate,
    )


def _picture_weights(options: TrainingOptions) -> torch.Tensor:
    scenes_drawn = (sample_scene(i, "train", options.seed) for i in range(options.num_scenes))
    return torch.tensor([1.0 if len(scene.objects) == 1 else TWO_OBJECTS for scene in scenes_drawn])


def cached_moments(
    options: TrainingOptions, autoencoder: Autoencoder, device: torch.device, dtype: torch.dtype, weights: Path
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the latents' moments of all training pictures and, where the recipe weighs it, their foreground.

    The foreground is (n, 1, h, w), the part of each latent position that things cover. Both are kept in a file, so that
    a resumed run starts at once. `weights`: the folder from which the autoencoder was loaded.
    """
    if options.data is not None:
        return cache_moments(autoencoder, _told_pictures(options).pictures, device=device, dtype=dtype), None
    with options.team.main_first():  # one makes the file, the others read it
        kept = _kept_latents(options, autoencoder, device, dtype, weights)
    return kept["moments"], kept["foreground"].float() if "foreground" in kept else None


def _kept_latents(
    options: TrainingOptions, autoencoder: Autoencoder, device: torch.device, dtype: torch.dtype, weights: Path
) -> dict[str, torch.Tensor]:
    path, side = options.folder / "latents.safetensors", options.model.picture_size
    masked = options.course.foreground_weight > 0
    made_of = {
        "autoencoder": hashlib.sha256(needed(weights, "autoencoder").read_bytes()).hexdigest(),
        "num_scenes": str(options.num_scenes),
        "seed": str(options.seed),
    } | ({} if side == SCENES_SIDE else {"picture_size": str(side)}) | ({"foreground": "1"} if masked else {})
    if path.is_file():
        with safe_open(path, framework="pt") as there:
            if there.metadata() == made_of:
                return {name: there.get_tensor(name) for name in there.keys()}
    moments, foreground, chunk = [], [], max(250, 5_000 * SCENES_SIDE**2 // side**2)
    for start in range(0, options.num_scenes, chunk):
        count = min(chunk, options.num_scenes - start)
        drawn = render_scenes(
            count, "train", options.seed, side, options.num_workers, start=start, with_masks=masked
        )
        moments.append(cache_moments(autoencoder, drawn.pictures, device=device, dtype=dtype))
        if drawn.foreground is not None:
            covered = (drawn.foreground > 0).float()[:, None]
            foreground.append(F.avg_pool2d(covered, autoencoder.config.downsampling).half())
        log.info("encoded %d of %d pictures", start + count, options.num_scenes)
    kept = {"moments": torch.cat(moments)} | ({"foreground": torch.cat(foreground)} if masked else {})
    with atomic_file(path) as temporary:
        save_file(kept, temporary, metadata=made_of)
    return kept


def caption_tokens(num_scenes: int, seed: int, tokenizer: Tokenizer, variants: int = 3) -> torch.Tensor:
    """Return (num_scenes, variants, context_length) token numbers: each training scene told in several wordings."""
    told = [tokenizer([caption_for(i, "train", seed) for i in range(num_scenes)])]
    for variant in range(1, variants):
        told.append(
            tokenizer([describe(sample_scene(i, "train", seed), f"{seed}/{i}/{variant}") for i in range(num_scenes)])
        )
    return torch.stack(told, dim=1)


def _train_pictures(options: TrainingOptions) -> ScenePictures | CaptionedPictures:
    if options.data is not None:
        return own_pictures(options.data, options.model.picture_size)
    return _render(min(options.num_scenes, MOST_SCENES), "train", options, options.model.picture_size)


def _told_pictures(options: TrainingOptions) -> CaptionedPictures:
    """Return those of one's own pictures that have a caption: CLIP and the U-Net learn from no others."""
    return own_pictures(options.data or "", options.model.picture_size).with_captions()


def _twins(options: TrainingOptions) -> ScenePictures:
    count, side = min(options.num_scenes, MOST_SCENES), options.model.picture_size
    told = [(near_twin, exchanged_twin)[index % 2](index, "train", options.seed) for index in range(count)]
    pictures = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for row, (scene, _) in zip(pictures, told, strict=True):
        row.copy_(torch.from_numpy(draw(scene, side)).permute(2, 0, 1))
    return ScenePictures(
        pictures=pictures,
        captions=[caption for _, caption in told],
        scenes=[scene for scene, _ in told],
    )


def _judge_scenes(options: TrainingOptions) -> ScenePictures:
    """Return scenes of every kind, held-out pairs and threes too: who judges must know them all."""
    n = options.num_scenes
    counts = {"train": min(n, 20_000), "unseen": min(n, 8_000), "three": min(n, 4_000)}
    parts = [_render(count, split, options, SCENES_SIDE) for split, count in counts.items()]
    return ScenePictures(
        pictures=torch.cat([part.pictures for part in parts]),
        captions=[caption for part in parts for caption in part.captions],
        scenes=[scene for part in parts for scene in part.scenes],
    )


@lru_cache(maxsize=4)
def _render(count: int, split: str, options: TrainingOptions, side: int) -> ScenePictures:
    return render_scenes(count, split, options.seed, side, options.num_workers, progress=options.show_progress)
