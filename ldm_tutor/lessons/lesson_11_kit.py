"""The study of lesson 11, one command for each part, and the figures that the lesson makes of it.

    python -m ldm_tutor.lessons.lesson_11_kit pixels patches f2 f4 f8 f16     # train, six minutes of one thread each
    python -m ldm_tutor.lessons.lesson_11_kit costs                           # what each costs, side by side

Every run writes one JSON file and six pictures into data/weights/lesson_11; the lesson reads these. The latents are
those of lesson 01's autoencoders (data/weights/lesson_01); `--autoencoders FOLDER` takes others.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.data.scenes.datasets import ScenePictures, render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import load_judge
from ldm_tutor.metrics.fid import frechet_distance, judge_features
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.shapes import Pictures
from ldm_tutor.training.study import (
    LatentSpace,
    PixelSpace,
    Space,
    StudyData,
    build_stage,
    cost_of,
    draw,
    run,
    seconds_side_by_side,
)
from ldm_tutor.weights.course_clip import load_course_clip
from ldm_tutor.weights.files import atomic_file, load_model
from ldm_tutor.weights.shipped import resolve, shipped_folder

Report = dict[str, Any]

RUNS = ("pixels", "patches", "f2", "f4", "f8", "f16")
SECONDS = (60.0, 120.0, 240.0, 360.0)  # of one thread, when a run is looked at
NUM_SCENES, NUM_TEST, NUM_REFERENCE, NUM_SHOWN = 12_000, 128, 4000, 8  # scenes drawn; six in ten hold one object
NUM_STEPS, GUIDANCE, BATCH = 10, 3.0, 32
_log = logging.getLogger("ldm_tutor.lessons.lesson_11_kit")


def one_object(num: int, split: str, seed: int = 0) -> ScenePictures:
    """Return those of the first `num` scenes of a split that hold a single object: what six minutes can learn."""
    drawn = render_scenes(num, split, seed)
    rows = [i for i, scene in enumerate(drawn.scenes) if len(scene.objects) == 1]
    return ScenePictures(drawn.pictures[rows], [drawn.captions[i] for i in rows], [drawn.scenes[i] for i in rows])


def space_of(name: str, pictures: torch.Tensor, autoencoders: Path) -> Space:
    """Return the space called `name`, one of RUNS; ConfigError for another name."""
    if name == "pixels":
        return PixelSpace(pictures)
    if name == "patches":
        return PixelSpace(pictures, patch=4)
    if name not in RUNS:
        raise ConfigError("lesson 11's study: unknown run", given=name, expected=f"one of {RUNS}")
    return LatentSpace(load_model(autoencoders / f"autoencoder_{name}.safetensors", "autoencoder"))


class Exam:
    """The held-out sentences, and what the judge says about pictures drawn for them."""

    def __init__(self, judge: Judge, num: int = NUM_TEST, num_reference: int = NUM_REFERENCE) -> None:
        test = one_object(3 * num, "test")
        self.judge, self.captions = judge, test.captions[:num]
        self.real = to_float(test.pictures[:num])
        self.requests = [parse(caption) for caption in self.captions]
        self.reference = judge_features(judge, to_float(one_object(num_reference, "train", 1).pictures))
        self.num = len(self.captions)

    def grade(self, pictures: Pictures) -> Report:
        """Return accuracy (all, object, color, background) with intervals, and the distance of the judge's features."""
        found = attribute_accuracy(read_pictures(self.judge, pictures), self.requests)
        report: Report = {name: found[name].to_dict() for name in ("all", "object", "color", "background")}
        report["fid"] = round(frechet_distance(judge_features(self.judge, pictures), self.reference), 3)
        return report


class Study:
    """One run: its space, its model, and the report that grows with it. It goes on where `scratch` says it stopped."""

    def __init__(self, name: str, exam: Exam, data: StudyData, tokenizer: Tokenizer, autoencoders: Path) -> None:
        self.name, self.exam = name, exam
        self.space = space_of(name, data.pictures, autoencoders)
        self.stage = build_stage(self.space, data, batch_size=BATCH)
        with torch.inference_mode():
            self.context = data.text_encoder(tokenizer(exam.captions))
            self.empty = data.text_encoder(data.empty)
        self.made = exam.real

    def look(self, unet: UNet) -> Report:
        """Draw the exam's sentences and grade them."""
        seeds = list(range(self.exam.num))
        self.made = draw(
            unet, self.space, self.context, self.empty, seeds, num_steps=NUM_STEPS, guidance=GUIDANCE, batch_size=BATCH
        )
        return self.exam.grade(self.made)

    def begin(self) -> Report:
        """Return the report of a run that has not begun: settings, and what its space alone loses of real pictures."""
        exam, space = self.exam, self.space
        with torch.inference_mode():
            kept = space.moments(((exam.real + 1) * 127.5).round().byte())[:, : space.shape[0]].float()
            through = torch.cat([space.to_pictures(space.scale_factor * part) for part in kept.split(BATCH)])
        quality = float(psnr(through, exam.real).mean())
        return {
            "name": self.name,
            "shape": list(space.shape),
            "settings": {**self.stage.settings, "num_steps": NUM_STEPS, "guidance": GUIDANCE},
            "num_test": exam.num,
            "real": exam.grade(exam.real),
            "ceiling": {**exam.grade(through), "psnr": round(min(quality, 99.0), 2)},
            "rows": [],
        }

    def train(self, until: float, folder: Path, scratch: Path) -> Report:
        """Train up to `until` seconds, look, and write `study_<name>.json` and `pictures_<name>.png`."""
        path = folder / f"study_{self.name}.json"
        begun = path.is_file() and (scratch / self.name).is_dir()
        report = json.loads(path.read_text(encoding="utf-8")) if begun else self.begin()
        if report["rows"] and report["rows"][-1]["seconds"] >= until:
            return report
        for row in run(self.stage, scratch / self.name, self.look, [until]):
            report["rows"].append({**row, "loss": round(row["loss"], 5)})
            _log.info("%s %s", self.name, row)
        write_text(path, json.dumps(report, indent=1) + "\n")
        write_pictures(folder / f"pictures_{self.name}.png", self.made)
        return report


def study(
    names: Sequence[str], folder: Path, autoencoders: Path, scratch: Path, seconds: Sequence[float] = SECONDS
) -> None:
    """Train the runs in turns, each to the first of `seconds`, then each to the second, and so on."""
    weights = resolve()
    clip, tokenizer = load_course_clip(weights)
    exam, scenes = Exam(load_judge()), one_object(NUM_SCENES, "train")
    data = StudyData(scenes.pictures, tokenizer(scenes.captions)[:, None], tokenizer.empty(1), clip.text)
    runs = [Study(name, exam, data, tokenizer, autoencoders) for name in names]
    for until in sorted(seconds):
        for each in runs:
            each.train(until, folder, scratch)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_pictures(path: Path, made: Pictures) -> None:
    """Write the first NUM_SHOWN pictures side by side, as a PNG."""
    from PIL import Image

    strip = torch.cat(list(((made[:NUM_SHOWN].permute(0, 2, 3, 1) + 1) * 127.5).round().byte()), dim=1)
    with atomic_file(path) as temporary:
        Image.fromarray(strip.numpy()).save(temporary, format="PNG")


def costs(folder: Path, autoencoders: Path, repeats: int = 5) -> Report:
    """Count and measure what each run's model costs, all of them in turns in this process, and write `costs.json`."""
    scenes = one_object(64, "train")
    weights = resolve()
    clip, tokenizer = load_course_clip(weights)
    data = StudyData(scenes.pictures, tokenizer(scenes.captions)[:, None], tokenizer.empty(1), clip.text)
    context, empty = clip.text(tokenizer(scenes.captions[:8])).detach(), clip.text(tokenizer.empty(1)).detach()
    report: Report = {}
    steps: dict[str, Callable[[], object]] = {}
    drawings: dict[str, Callable[[], object]] = {}
    decodings: dict[str, Callable[[], object]] = {}
    for name in RUNS:
        space = space_of(name, scenes.pictures, autoencoders)
        stage = build_stage(space, data, batch_size=BATCH)
        cost = cost_of(stage.config, space.shape[1], batch_size=BATCH)
        report[name] = {
            "shape": list(space.shape),
            "parameters": cost.parameters,
            "multiply_adds": cost.multiply_adds,
            "training_mb": round(cost.training_bytes / 2**20, 1),
        }
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(8, *space.shape, generator=generator)
        steps[name] = partial(stage.train_step, generator, 0.0)
        given = stage.learner.ema, space, context, empty, list(range(8))
        drawings[name] = partial(draw, *given, num_steps=NUM_STEPS, guidance=GUIDANCE)
        decodings[name] = partial(space.to_pictures, noise)
    for what, jobs, per in (("step", steps, 1), ("picture", drawings, 8), ("decoding", decodings, 8)):
        for name, seconds in seconds_side_by_side(jobs, repeats).items():
            report[name][f"seconds_per_{what}"] = float(f"{seconds / per:.3g}")
    write_text(folder / "costs.json", json.dumps(report, indent=1) + "\n")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are named; without a name all runs and then the costs."""
    parser = argparse.ArgumentParser(prog="python -m ldm_tutor.lessons.lesson_11_kit", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join((*RUNS, 'costs'))}")
    parser.add_argument("--out", type=Path, default=shipped_folder("lesson_11"))
    parser.add_argument("--autoencoders", type=Path, default=shipped_folder("lesson_01"))
    parser.add_argument(
        "--scratch", type=Path, default=Path("runs/lesson_11"), help="checkpoints; delete to start anew"
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=list(SECONDS))
    given = parser.parse_args(arguments)
    if unknown := [each for each in given.parts if each not in (*RUNS, "costs")]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join((*RUNS, 'costs'))}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)  # the study's seconds are those of one thread
    names = given.parts or [*RUNS, "costs"]
    if runs := [each for each in names if each != "costs"]:
        study(runs, given.out, given.autoencoders, given.scratch, given.seconds)
    if "costs" in names:
        costs(given.out, given.autoencoders)
    return 0


if __name__ == "__main__":
    sys.exit(main())
