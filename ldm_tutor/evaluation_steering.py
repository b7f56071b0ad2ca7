"""How well do boxes, holes and small pictures steer? `ldm-tutor evaluate layout | inpainting | upscaling`.

Each figure stands beside its baseline, and the judge beside what it sees on true scenes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ldm_tutor.data.boxes import scene_boxes
from ldm_tutor.data.degrade import degrade, enlarge, shrink
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import draw_many, reconstruct
from ldm_tutor.metrics import steering as measure
from ldm_tutor.metrics.figures import mean, share
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.reading import read_pictures
from ldm_tutor.models.judge import SIDE, Judge
from ldm_tutor.shapes import Context, Latents, Pictures, Tensor
from ldm_tutor.steering import Steered, repaint

Report = dict[str, Any]
BATCH = 64  # pictures drawn at once


def _check_side(steered: Steered) -> None:
    if (side := steered.pipeline.config.picture_size) != SIDE:
        raise ConfigError("conditions are measured on scenes of their own size", given=side, expected=f"{SIDE} pixels")


def evaluate_layout(
    steered: Steered, judge: Judge, *, num: int = 512, seed: int = 0, wrap: Any = None, **settings: Any
) -> Report:
    """Draw the layouts of `num` held-out scenes, their true boxes, and read the boxes back.

    Boxes alone; boxes with the scene's sentence; beside them the sentence alone, drawn by the plain model, and the
    judge on the true scenes and on decoded ones. `settings` go to `Steered.from_boxes`.
    """
    show = wrap or (lambda batches, **_: batches)
    _check_side(steered)
    scenes = render_scenes(num, "test", seed)
    layouts = [scene_boxes(scene) for scene in scenes.scenes]
    pipeline = steered.pipeline

    def boxes(rows: range) -> Pictures:
        return steered.from_boxes([layouts[i] for i in rows], [seed + i for i in rows], **settings)

    def both(rows: range) -> Pictures:
        told = [scenes.captions[i] for i in rows]
        return steered.from_boxes([layouts[i] for i in rows], [seed + i for i in rows], prompts=told, **settings)

    plain = {name: value for name, value in settings.items() if name != "guidance"}
    alone = torch.cat(list(show(draw_many(pipeline, scenes.captions, seed=seed, **plain), desc="sentence alone")))
    true = to_float(scenes.pictures)
    made = {
        "": _batches(boxes, num, show, "boxes"),
        "with_sentence": _batches(both, num, show, "boxes and sentence"),
        "baseline_sentence_alone": alone,
        "judge_on_true_scenes": true,
        "judge_on_decoded_scenes": reconstruct(pipeline, scenes),
    }
    report: Report = {}
    for name, pictures in made.items():
        found = measure.boxes_found(read_pictures(judge, pictures), layouts)
        report |= found if not name else {name: found}
    return report | {"settings": {"num": num, "seed": seed, **settings}}


def evaluate_inpainting(
    steered: Steered, judge: Judge, *, num: int = 512, seed: int = 0, wrap: Any = None, **settings: Any
) -> Report:
    """Hide an object in each of `num` held-out scenes, and make a hole in the background of as many; fill both.

    With the scene's sentence; the background also without. Beside `Steered.inpaint`: `repaint`, which needs no
    training, and filling with the mean colour. No way sees what it is to fill: the holes of the pictures that it is
    given hold the mean colour already (an encoder would carry traces of the truth over the hole's edge). `settings` go
    to all ways of drawing.
    """
    show = wrap or (lambda batches, **_: batches)
    _check_side(steered)
    scenes = render_scenes(num, "test", seed, with_masks=True)
    pictures = to_float(scenes.pictures)
    hidden = measure.hidden_objects(scenes, pictures, seed)
    background = measure.background_holes(num, seed)

    def fill(cases: measure.HoleCases, way: Callable[..., Pictures], name: str, told: bool = True) -> Pictures:
        def part(rows: range) -> Pictures:
            cut = slice(rows.start, rows.stop)
            prompts = cases.captions[cut] if told else None
            given = measure.mean_filled(cases.pictures[cut], cases.masks[cut])
            return way(given, cases.masks[cut], [seed + i for i in rows], prompts=prompts, **settings)

        return _batches(part, len(cases.masks), show, name)

    def naive(*given: Any, **more: Any) -> Pictures:
        return repaint(steered.pipeline, *given, **more)

    objects = fill(hidden, steered.inpaint, "hidden objects")
    filled = fill(background, steered.inpaint, "background")
    silent = fill(background, steered.inpaint, "background, no sentence", told=False)
    naive_objects = fill(hidden, naive, "hidden objects, untrained")
    naive_filled = fill(background, naive, "background, untrained")
    flat = measure.mean_filled(background.pictures, background.masks)

    def quality(made: Pictures) -> torch.Tensor:
        return measure.hole_psnr(made, background.pictures, background.masks)

    found = measure.object_found(judge, objects, hidden)
    naive_found = measure.object_found(judge, naive_objects, hidden)
    empty = measure.object_found(judge, measure.mean_filled(pictures, hidden.masks), hidden)
    kept = measure.same_outside(objects, pictures, hidden.masks)
    kept += measure.same_outside(filled, background.pictures, background.masks)
    return {
        "object_found": found["object"],
        "object_found_with_its_color": found["with_its_color"],
        "object_found_untrained": naive_found["object"],
        "object_found_mean_filled": empty["object"],
        "object_found_true_scenes": measure.object_found(judge, pictures, hidden)["object"],
        "outside_unchanged": share(kept).to_dict(),
        "background_psnr_db": mean(quality(filled).tolist()).to_dict(),
        "background_psnr_db_no_sentence": mean(quality(silent).tolist()).to_dict(),
        "background_psnr_db_untrained": mean(quality(naive_filled).tolist()).to_dict(),
        "background_psnr_db_mean_filled": mean(quality(flat).tolist()).to_dict(),
        "gain_over_mean_db": mean((quality(filled) - quality(flat)).tolist()).to_dict(),
        "gain_over_untrained_db": mean((quality(filled) - quality(naive_filled)).tolist()).to_dict(),
        "settings": {"num": num, "seed": seed, **settings},
    }


def evaluate_upscaling(
    steered: Steered, judge: Judge, *, num: int = 512, seed: int = 0, wrap: Any = None, **settings: Any
) -> Report:
    """Shrink `num` held-out scenes to a quarter of the side, and make them large again; beside it, bicubic.

    The clean way of shrinking, drawn so that the result fits the small picture; the same with the plain U-Net, which
    has learned nothing about small pictures (`untrained`); without any correction (`drawn`); and degraded small
    pictures, uncorrected. `settings` go to `Steered.upscale`.
    """
    show = wrap or (lambda batches, **_: batches)
    _check_side(steered)
    pictures = render_scenes(num, "test", seed).pictures
    true, factor = to_float(pictures), steered.pipeline.config.autoencoder.downsampling
    small = shrink(true, factor)
    bad = to_float(degrade(pictures, small.shape[-1], [seed + i for i in range(num)]))

    plain = steered.pipeline.unet

    def deaf(latents: Latents, t: Tensor, context: Context) -> Latents:
        return plain(latents[:, : plain.config.in_channels], t, context)

    untrained = dataclasses.replace(steered, unet=deaf)  # type: ignore[arg-type]

    def large(given: Pictures, way: Steered, consistent: bool) -> Callable[[range], Pictures]:
        return lambda rows: way.upscale(
            given[rows.start : rows.stop], [seed + i for i in rows], consistent=consistent, **settings
        )

    made = _batches(large(small, steered, True), num, show, "small pictures")
    naive = _batches(large(small, untrained, True), num, show, "small pictures, untrained")
    drawn = _batches(large(small, steered, False), num, show, "small pictures, uncorrected")
    worst = _batches(large(bad, steered, False), num, show, "degraded small pictures")
    bicubic, bad_bicubic = enlarge(small, factor), enlarge(bad, factor)

    def figures(ours: Pictures, baseline: Pictures) -> Report:
        near, far = (measure.distances(judge, each, true).tolist() for each in (ours, baseline))
        sharp, soft = psnr(ours, true), psnr(baseline, true)
        return {
            "perceptual_ratio": measure.ratio(near, far).to_dict(),
            "perceptual": mean(near).to_dict(),
            "perceptual_bicubic": mean(far).to_dict(),
            "psnr_db": mean(sharp.tolist()).to_dict(),
            "psnr_db_bicubic": mean(soft.tolist()).to_dict(),
            "psnr_gain_db": mean((sharp - soft).tolist()).to_dict(),
        }

    def fits(pictures: Pictures) -> dict[str, Any]:
        return mean(measure.consistency(pictures, small).tolist()).to_dict()

    return {
        **figures(made, bicubic),
        "consistency_db": fits(made),
        "consistency_db_bicubic": fits(bicubic),
        "untrained": figures(naive, bicubic) | {"consistency_db": fits(naive)},
        "drawn": figures(drawn, bicubic) | {"consistency_db": fits(drawn)},
        "degraded": figures(worst, bad_bicubic),
        "settings": {"num": num, "seed": seed, **settings},
    }


def _batches(draw: Callable[[range], Pictures], num: int, show: Any, name: str) -> Pictures:
    """Return the pictures of `draw(rows)` for all `num` rows, in batches."""
    starts = show(range(0, num, BATCH), desc=name)
    return torch.cat([draw(range(start, min(num, start + BATCH))).cpu() for start in starts])
