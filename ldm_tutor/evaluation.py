"""How good is a model? Every figure of `ldm-tutor evaluate`, with its interval and the number of cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.data.scenes.datasets import ScenePictures, render_scenes, to_float
from ldm_tutor.data.scenes.sampling import caption_for, exchanged_twin, near_twin
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.data.scenes.world import COLORS, HELD_OUT, KINDS, Scene
from ldm_tutor.metrics import editing
from ldm_tutor.metrics.fid import frechet_distance, judge_features
from ldm_tutor.metrics.figures import Measured, mean
from ldm_tutor.metrics.grounding import Tally, find_cases, look, untrained_like, word_fields
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.probing import noun_vectors, read_nouns, side_difference
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.metrics.retrieval import distinct_batches, retrieval_top1, told_apart
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.pipeline import Pipeline
from ldm_tutor.shapes import Pictures
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve

Report = dict[str, Any]


def load_judge(folder: str | Path | None = None, device: str = "cpu") -> Judge:
    """Load the judge of a folder of weights; without one, the shipped judge."""
    return load_model(resolve(folder) / "judge.safetensors", "judge", device=device)


def draw_many(
    pipeline: Pipeline, captions: list[str], *, seed: int = 0, batch_size: int = 64, **settings: Any
) -> Iterator[Pictures]:
    """Yield the pictures of `captions` batch by batch; picture number i has the seed `seed` + i."""
    for start in range(0, len(captions), batch_size):
        part = captions[start : start + batch_size]
        yield pipeline.draw(part, [seed + start + i for i in range(len(part))], **settings)


def evaluate_pictures(
    pipeline: Pipeline,
    judge: Judge,
    *,
    num: int = 256,
    seed: int = 0,
    num_reference: int = 2000,
    wrap: Any = None,
    **settings: Any,
) -> Report:
    """Draw `num` held-out sentences, and as many with unseen pairs, and measure what came of them.

    `settings` go to `Pipeline.draw`; `wrap` (such as tqdm) may show progress over an iterable of batches.
    Returns attribute accuracy (overall, by number of objects, per attribute, unseen pairs), the same for the real
    pictures and for decoded ones (the ceilings), FID with its floor, and seconds per picture. The judge sees pictures
    of a larger model shrunk to 64 pixels.
    """
    show = wrap or (lambda batches, **_: batches)
    side = pipeline.config.picture_size
    test = render_scenes(num, "test", seed, side)
    unseen = render_scenes(num, "unseen", seed, side)
    start = time.perf_counter()
    made = _collect(show(draw_many(pipeline, test.captions, seed=seed, **settings), desc="held-out sentences"))
    seconds = (time.perf_counter() - start) / num
    made_unseen = _collect(show(draw_many(pipeline, unseen.captions, seed=seed, **settings), desc="unseen pairs"))

    accuracy = _accuracies(judge, made, test)
    decoded = reconstruct(pipeline, test)
    reference = judge_features(judge, to_float(render_scenes(num_reference, "train", seed + 1, side).pictures))
    return {
        "attribute_accuracy": accuracy,
        "attribute_accuracy_unseen_pairs": _accuracies(judge, made_unseen, unseen),
        "ceiling_real": _accuracies(judge, to_float(test.pictures), test)["all"],
        "ceiling_decoded": _accuracies(judge, decoded, test)["all"],
        "fid": {
            "value": round(frechet_distance(judge_features(judge, made), reference), 4), "interval": None, "num": num
        },
        "fid_floor": {
            "value": round(frechet_distance(judge_features(judge, to_float(test.pictures)), reference), 4),
            "interval": None,
            "num": num,
        },
        "seconds_per_picture": Measured(seconds, None, num).to_dict(),
        "settings": {"num": num, "seed": seed, "num_reference": num_reference, **settings},
    }  # fmt: skip


def evaluate_autoencoder(pipeline: Pipeline, judge: Judge, *, num: int = 512, seed: int = 0) -> Report:
    """Measure reconstructions of held-out scenes: PSNR in dB, what the judge reads from them, the latents' spread."""
    test = render_scenes(num, "test", seed, pipeline.config.picture_size)
    real = to_float(test.pictures)
    made = reconstruct(pipeline, test)
    with torch.inference_mode():
        latents = torch.cat(
            [pipeline.autoencoder.to_latents(part.to(pipeline.device), _rng()) for part in real.split(64)]
        )
    return {
        "psnr": mean(psnr(made, real).tolist()).to_dict(),
        "attribute_accuracy_decoded": _accuracies(judge, made, test),
        "latent_mean": Measured(float(latents.mean()), None, num).to_dict(),
        "latent_std": Measured(float(latents.std()), None, num).to_dict(),
    }


def evaluate_clip(
    clip: Clip, tokenizer: Tokenizer, *, num: int = 4096, seed: int = 0, num_probe: int = 4000, batch_size: int = 64
) -> Report:
    """Measure retrieval top-1 both ways in batches of distinct sentences, from `num` held-out scenes.

    And in how many of them the picture is nearer to its own sentence than to that of its twin, which is false of it:
    the same things otherwise arranged, or one thing exchanged, the latter for scenes with unseen pairs too. And from
    how many nouns' vectors kind and colour can be read, by a probe that has seen `num_probe` other sentences. And how
    far *left* is from *right*, at the word and at the end token.
    """
    side = clip.config.image.picture_size
    test, unseen = (render_scenes(num, split, seed, side) for split in ("test", "unseen"))
    chosen = distinct_batches(test.captions, test.scenes, batch_size)
    tokens = tokenizer([test.captions[i] for i in chosen])
    found = retrieval_top1(clip, to_float(test.pictures[chosen]), tokens, batch_size)

    def twins(scenes: ScenePictures, twin_of: Callable[..., tuple[Scene, str]], split: str) -> Measured:
        wrong = [twin_of(index, split, seed)[1] for index in range(len(scenes))]
        asked = [parse(told) for told in wrong]
        false = [i for i, scene in enumerate(scenes.scenes) if not asked[i].is_met_by(scene.objects, scene.background)]
        right, other = (tokenizer([told[i] for i in false]) for told in (scenes.captions, wrong))
        return told_apart(clip, to_float(scenes.pictures[false]), right, other)

    found |= {
        "rearranged_twins": twins(test, near_twin, "test"),
        "exchanged_twins": twins(test, exchanged_twin, "test"),
        "exchanged_twins_of_unseen_pairs": twins(unseen, exchanged_twin, "unseen"),
    }
    seen = {(kind, color) for kind in KINDS for color in COLORS} - HELD_OUT
    known = noun_vectors(clip, tokenizer, [caption_for(index, "train", seed) for index in range(num_probe)], seen)
    found |= {
        "nouns": read_nouns(known, noun_vectors(clip, tokenizer, test.captions, seen)),
        "nouns_of_unseen_pairs": read_nouns(known, noun_vectors(clip, tokenizer, unseen.captions, HELD_OUT)),
    }
    at_the_word, at_the_end = side_difference(clip, tokenizer, test.captions)
    found |= {"left_from_right_at_the_word": at_the_word, "left_from_right_at_the_end": at_the_end}
    return {name: value.to_dict() for name, value in found.items()}


def evaluate_judge(judge: Judge, *, num: int = 2000, seed: int = 0) -> Report:
    """Measure what the judge reads from real held-out scenes, from unseen pairs, and from three objects."""
    return {
        split: _accuracies(judge, to_float(scenes.pictures), scenes)
        for split in ("test", "unseen", "three")
        for scenes in [render_scenes(num, split, seed)]
    }


def evaluate_grounding(
    pipeline: Pipeline,
    *,
    num: int = 500,
    seed: int = 0,
    times: tuple[int, ...] = (50, 250, 450, 650, 850),
    batch_size: int = 64,
    wrap: Any = None,
) -> Report:
    """Measure whether a word looks at its object, on `num` held-out scenes noised to `times`; nothing is drawn.

    Each object that its sentence names once is a case: its word's attention map, averaged over all layers, heads and
    times, against its true mask. Beside it the same for another word, for the centre prior and for an untrained U-Net.
    """
    show = wrap or (lambda batches, **_: batches)
    untrained, tally = untrained_like(pipeline.unet, seed), Tally()
    for start in show(range(0, num, batch_size), desc="scenes"):
        side = pipeline.config.picture_size
        scenes = render_scenes(min(batch_size, num - start), "test", seed, side, start=start, with_masks=True)
        with torch.inference_mode():
            latents = pipeline.autoencoder.to_latents(to_float(scenes.pictures).to(pipeline.device), _rng())
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed + start)).to(latents)
        given = pipeline.embed(scenes.captions), latents, noise, pipeline.schedule, times
        records, blank = look(pipeline.unet, *given), look(untrained, *given)
        for case in find_cases(pipeline.tokenizer, scenes):
            size = case.mask.shape[0], case.mask.shape[1]
            own, other = (word_fields(records, case.row, places, size) for places in (case.tokens, case.others))
            tally.add(case, own, other, word_fields(blank, case.row, case.tokens, size), records)
    return tally.report()


def evaluate_editing(
    pipeline: Pipeline,
    judge: Judge,
    *,
    num: int = 300,
    seed: int = 0,
    batch_size: int = 6,
    wrap: Any = None,
    **settings: Any,
) -> Report:
    """Draw `num` cases of each edit (swaps, refinements, re-weighted, ignored words); the judge says how it went.

    `settings` go to `Pipeline.edit_many`. See `ldm_tutor.metrics.editing` for what is compared with what.
    """
    show = wrap or (lambda batches, **_: batches)
    tally = editing.Tally(judge)
    for edit in editing.EDITS:
        made = editing.cases(edit, num, seed)
        for start in show(range(0, num, batch_size), desc=edit):
            part = made[start : start + batch_size]
            ways = list(part[0].changes)
            changes = [case.changes[way] for case in part for way in ways]
            before, after = (each.cpu() for each in pipeline.edit_many(changes, **settings))
            tally.add(part, before[:: len(ways)], {way: after[k :: len(ways)] for k, way in enumerate(ways)})
    return tally.report() | {"settings": {"num": num, "seed": seed, **settings}}


def _accuracies(judge: Judge, pictures: Pictures, scenes: ScenePictures) -> dict[str, Any]:
    readings = read_pictures(judge, pictures)
    requests = [parse(caption) for caption in scenes.captions]
    report = {name: value.to_dict() for name, value in attribute_accuracy(readings, requests).items()}
    for number, name in ((1, "one_object"), (2, "two_objects")):
        rows = [i for i, request in enumerate(requests) if len(request.objects) == number]
        if rows:
            part = attribute_accuracy([readings[i] for i in rows], [requests[i] for i in rows])
            report[name] = part["all"].to_dict()
    return report


@torch.inference_mode()
def reconstruct(pipeline: Pipeline, scenes: ScenePictures) -> Pictures:
    """Return the scenes as the autoencoder gives them back: the best that can be drawn through it."""
    parts = to_float(scenes.pictures).split(64)
    return torch.cat([pipeline.autoencoder(part.to(pipeline.device)).clamp(-1, 1).cpu() for part in parts])


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _collect(batches: Iterable[Pictures]) -> Pictures:
    return torch.cat([batch.cpu() for batch in batches])
