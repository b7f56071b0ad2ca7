"""Lesson 07's study: does it pay to have CLIP before the U-Net? Three text towers under the same small U-Net.

    python -m ldm_tutor.lessons.lesson_07_study

Frozen CLIP; a tower of the same size from random numbers, trained along with the U-Net; the same tower from the same
random numbers, frozen (the control). Equal in all: pictures, sentences, first weights of the U-Net, random numbers of
each step, batch, learning rate, number of steps. The arms take turns, from each of STOPS to the next, so that a run
that ends early is still a fair comparison, and a run that was stopped goes on.

Measured at each stop: what the judge finds in pictures drawn for held-out sentences; and, on held-out scenes, how much
the noise loss grows when each is told with another scene's sentence. Written into data/weights/lesson_07:
`measured.json`, and for each arm a strip of pictures and a log of the loss. Some ten minutes of one thread per arm.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.scenes.sampling import caption_for, sample_scene
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons.lesson_05_kit import SEED, clean_latents, encoded_scenes, losses_at, one_object_scenes
from ldm_tutor.metrics.figures import mean
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.pipeline import Pipeline, load_pipeline
from ldm_tutor.plots.figures import figure_style, picture_grid
from ldm_tutor.shapes import Context, Latents, Pictures, Tensor, Tokens
from ldm_tutor.training.learner import Learner
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.study import LatentSpace, StudyStage, draw, unet_for
from ldm_tutor.weights.files import atomic_file, write_sums
from ldm_tutor.weights.shipped import resolve, shipped_folder

Report = dict[str, Any]

ARMS = {"clip": "CLIP, frozen", "along": "random, trained along", "random": "random, frozen"}
STOPS = (200, 400, 800, 1600, 3200)  # steps after which the judge looks
NUM_TEST, NUM_SHOWN = 128, 8  # sentences that are drawn at each stop, and pictures of them that are kept
BATCH_SIZE, UNET_LR, TEXT_LR, WARMUP = 16, 2e-3, 1e-3, 50  # the text tower's rate is that of CLIP's own training
GUIDANCE, DRAWING_STEPS, LOG_EVERY = 3.0, 10, 50
TIMES = (200, 500, 800)  # at which the noise loss is measured, with the right sentence and with another one
ASPECTS = ("all", "object", "color", "background")
_log = logging.getLogger("ldm_tutor.lessons.lesson_07_study")


def tower(arm: str, clip_text: TextEncoder, seed: int = SEED) -> TextEncoder:
    """Return the text tower that an arm begins with: CLIP's, or one of its size with random first weights."""
    if arm not in ARMS:
        raise ConfigError("lesson 07's study: unknown arm", given=arm, expected=f"one of {sorted(ARMS)}")
    with torch.random.fork_rng():
        torch.manual_seed(1000 + seed)
        made = TextEncoder(clip_text.config)
    if arm == "clip":
        made.load_state_dict(clip_text.state_dict())
    return made


class TowerStage(StudyStage):
    """The denoiser's training; with `trained_along` the gradient goes on into the text tower, which learns too."""

    def __init__(self, *arguments: Any, trained_along: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.learner.warmup = WARMUP
        self.text_learner: Learner[TextEncoder] | None = None
        if trained_along:
            self.text_encoder.requires_grad_(True)
            made = Learner(self.text_encoder, peak_lr=TEXT_LR, device=self.device, dtype=self.dtype, warmup=WARMUP)
            self.text_learner = self.learners["text"] = made
        self.settings |= {"trained_along": trained_along}

    def context_of(self, tokens: Tokens) -> Context:
        """Return the sentences' vectors, with what their gradient needs where the tower learns."""
        return super().context_of(tokens) if self.text_learner is None else self.text_learner.net(tokens)

    def train_step(self, generator: torch.Generator, progress: float) -> dict[str, float]:
        """Make one step of the U-Net, and of the tower where it learns."""
        values = super().train_step(generator, progress)
        if self.text_learner is not None:
            self.text_learner.step(0.0)
        return values

    @property
    def reader(self) -> TextEncoder:
        """The tower that sentences are drawn with: the running average where it learns."""
        return self.text_encoder if self.text_learner is None else self.text_learner.ema


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all arms share: latents of the training scenes and their sentences, the judge, and the sentences to draw."""

    pipeline: Pipeline
    space: LatentSpace
    moments: Tensor
    tokens: Tensor
    judge: Judge
    captions: list[str]
    x0: Latents  # of the held-out scenes that the captions tell of

    def grade(self, pictures: Pictures) -> Report:
        """Return the shares that the judge finds right, with their intervals."""
        found = attribute_accuracy(read_pictures(self.judge, pictures), [parse(each) for each in self.captions])
        return {name: found[name].to_dict() for name in ASPECTS}

    def listening(self, unet: UNet, context: Context) -> Report:
        """Return how much the noise loss on held-out scenes grows when each is told with another one's sentence."""
        noise = torch.randn(self.x0.shape, generator=torch.Generator().manual_seed(SEED + 1))
        own, other = (
            torch.stack([losses_at(unet, self.x0, noise, t, each, self.pipeline.schedule) for t in TIMES]).mean(dim=0)
            for each in (context, context.roll(1, dims=0))
        )
        return {"loss": mean(own.tolist()).to_dict(), "gap": mean((other - own).tolist()).to_dict()}


def make_bench(scratch: Path) -> Bench:
    """Take those of lesson 05's training scenes that hold one object, once for all arms."""
    pipeline = load_pipeline()
    moments = encoded_scenes(pipeline, scratch)
    rows = [i for i in range(len(moments)) if len(sample_scene(i, "train", SEED).objects) == 1]
    tokens = pipeline.tokenizer([caption_for(i, "train", SEED) for i in rows])[:, None]
    test = one_object_scenes(NUM_TEST)
    x0 = clean_latents(pipeline, to_float(test.pictures))
    space = LatentSpace(pipeline.autoencoder)
    return Bench(pipeline, space, moments[rows], tokens, load_judge(), test.captions, x0)


class Arm:
    """One arm's training: what it has learned so far lies in `scratch`, what was measured in `folder`."""

    def __init__(self, name: str, bench: Bench, folder: Path, scratch: Path, seed: int = SEED) -> None:
        self.name, self.bench, self.folder, self.scratch, self.seed = name, bench, folder, scratch / name, seed
        text, pipeline = tower(name, bench.pipeline.text_encoder, seed), bench.pipeline
        torch.manual_seed(seed)  # the U-Net's first weights, the same in all arms
        self.stage = TowerStage(
            unet_for(bench.space.shape, text.config.width), bench.moments, bench.space.scale_factor, text,
            bench.tokens, pipeline.tokenizer.empty(1), device=torch.device("cpu"), dtype=torch.float32,
            schedule=pipeline.config.schedule, batch_size=BATCH_SIZE, peak_lr=UNET_LR, trained_along=name == "along",
        )  # fmt: skip
        self.log: Report = {"rows": [], "losses": [], "seconds": 0.0}

    def train(self, until: int) -> None:
        """Train up to `until` steps; seconds in the log are the processor's, so that other work does not count."""
        resume = (self.scratch / f"{self.stage.name}.checkpoint").is_file()
        records = train(self.stage, Budget(steps=until), self.scratch, seed=self.seed, resume=resume, notes=self.log)
        start = time.process_time()
        for record in records:
            self.log["losses"].append(record.values["loss"])
            self.log["seconds"] += time.process_time() - start
            start = time.process_time()
            if record.step % LOG_EVERY == 0:
                mean = sum(self.log["losses"]) / len(self.log["losses"])
                self.log["rows"].append([record.step, round(self.log["seconds"], 1), float(f"{mean:.5g}")])
                self.log["losses"] = []
        if (done := self.stage.learner.num_updates) != until:
            raise ConfigError(
                f"lesson 07's study: {self.scratch} is further than the stop to be measured", given=done,
                expected=f"at most {until} steps, or its row in {self.folder / 'measured.json'}",
                fix="delete the folder to start anew",
            )  # fmt: skip
        head = ("step", "seconds", "loss")
        path = self.folder / "logs" / f"{self.name}.csv"
        with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *self.log["rows"]])

    @torch.inference_mode()
    def look(self) -> Report:
        """Draw the held-out sentences with the running averages, keep a strip of the first, and let the judge read."""
        bench, reader, unet = self.bench, self.stage.reader.eval(), self.stage.learner.ema
        tokenizer, seeds = bench.pipeline.tokenizer, list(range(len(bench.captions)))
        context, empty = reader(tokenizer(bench.captions)), reader(tokenizer.empty(1))
        made = draw(unet, bench.space, context, empty, seeds, num_steps=DRAWING_STEPS, guidance=GUIDANCE)
        _write_strip(self.folder / f"pictures_{self.name}.png", made[:NUM_SHOWN])
        return bench.grade(made) | bench.listening(unet, context)


def study(folder: Path, scratch: Path, stops: Sequence[int] = STOPS, arms: Sequence[str] = tuple(ARMS)) -> Report:
    """Train the arms in turns, from stop to stop, and write `measured.json` after each look; return what is in it."""
    bench, path = make_bench(scratch), folder / "measured.json"
    report: Report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"arms": {}}
    running = [Arm(name, bench, folder, scratch) for name in arms]
    report["settings"] = {
        "unet": running[0].stage.config.to_dict(), "num_pictures": len(bench.moments), "num_test": len(bench.captions),
        "times": list(TIMES), "batch_size": BATCH_SIZE, "unet_lr": UNET_LR, "text_lr": TEXT_LR, "guidance": GUIDANCE,
        "drawing_steps": DRAWING_STEPS, "seed": SEED, "captions": bench.captions[:NUM_SHOWN],
        "parameters": {"unet": _count(running[0].stage.learner.ema), "text": _count(running[0].stage.text_encoder)},
    }  # fmt: skip
    for until in sorted(stops):
        for arm in running:
            rows = report["arms"].setdefault(arm.name, {"rows": []})["rows"]
            if any(row["step"] >= until for row in rows):
                continue
            arm.train(until)
            rows.append({"step": until, "seconds": round(arm.log["seconds"], 1), **arm.look()})
            _log.info("%s, %d steps: %s", arm.name, until, {name: rows[-1][name]["value"] for name in ASPECTS})
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8", newline="\n")
    write_sums(folder)
    return report


def _count(network: UNet | TextEncoder) -> int:
    return sum(each.numel() for each in network.parameters())


def _write_strip(path: Path, made: Pictures) -> None:
    from PIL import Image

    strip = torch.cat(list(((made.permute(0, 2, 3, 1) + 1) * 127.5).round().byte()), dim=1)
    with atomic_file(path) as temporary:
        Image.fromarray(strip.numpy()).save(temporary, format="PNG")


# ---------------------------------------------------------------- read again


def load_measured(folder: Path | None = None) -> Report:
    """Return what was measured at the stops that all arms have reached; ConfigError where there is none."""
    path = resolve(folder, "lesson_07") / "measured.json"
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
        steps = {name: [row["step"] for row in report["arms"].get(name, {"rows": []})["rows"]] for name in ARMS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the figures of lesson 07 in {path.name}", given=type(error).__name__,
            fix="get them again with git, or make them: python -m ldm_tutor.lessons.lesson_07_study",
        ) from error  # fmt: skip
    common = set.intersection(*map(set, steps.values()))
    if not common:
        raise ConfigError(
            "the figures of lesson 07: no stop that all arms have reached", given=steps,
            fix="let it go on: python -m ldm_tutor.lessons.lesson_07_study",
        )  # fmt: skip
    for name in ARMS:
        report["arms"][name]["rows"] = [row for row in report["arms"][name]["rows"] if row["step"] in common]
    return report


def load_strip(arm: str, folder: Path | None = None) -> Pictures:
    """Return the pictures that an arm drew at its last stop, (n, 3, 64, 64) in [-1, 1]."""
    import numpy as np
    from PIL import Image

    with Image.open(resolve(folder, "lesson_07") / f"pictures_{arm}.png") as picture:
        strip = torch.from_numpy(np.array(picture.convert("RGB")))
    side = strip.shape[0]
    return (strip.unflatten(1, (-1, side)).permute(1, 3, 0, 2) / 127.5 - 1).contiguous()


def curve(report: Report, arm: str, aspect: str) -> tuple[list[int], list[float], list[list[float]]]:
    """Return steps, shares, and the shares' intervals of one arm; `aspect` is one of ASPECTS."""
    rows = report["arms"][arm]["rows"]
    return (
        [row["step"] for row in rows],
        [row[aspect]["value"] for row in rows],
        [row[aspect]["interval"] for row in rows],
    )


def towers_figure(report: Report, aspects: Sequence[str] = ("background", "color", "object")) -> Figure:
    """Draw the shares over the steps of training, one line per arm, with their intervals."""
    titles = {"all": "whole sentence right", "color": "colour right", "object": "object right",
              "background": "background right"}  # fmt: skip
    with figure_style():
        figure, axes = plt.subplots(1, len(aspects), figsize=(1 + 3.2 * len(aspects), 3.2), squeeze=False)
        for panel, aspect in zip(axes[0], aspects, strict=True):
            for (arm, label), line in zip(ARMS.items(), ("o-", "s--", "^:"), strict=True):
                steps, values, intervals = curve(report, arm, aspect)
                low, high = zip(*intervals, strict=True)
                (drawn,) = panel.plot(steps, values, line, label=label)
                panel.fill_between(steps, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
            panel.set(title=titles[aspect], xlabel="training steps", ylim=(0, 1.05))
        axes[0][-1].legend(fontsize=9, loc="upper left")  # where the curves are low
    return figure


def strips_figure(report: Report, number: int = 4, folder: Path | None = None) -> Figure:
    """Draw a row of pictures per arm, as after its last stop, for the first `number` sentences."""
    captions = report["settings"]["captions"][:number]
    first, *others = ARMS.values()
    titles = [f"{first}: {each}" for each in captions] + [label for label in others for _ in captions]
    pictures = [each for arm in ARMS for each in load_strip(arm, folder)[:number]]
    return picture_grid(pictures, titles, columns=number, scale=2)


def told(report: Report, aspects: Sequence[str] = ("background", "color", "all")) -> list[str]:
    """Return a line per arm with its shares after its last stop, and one for what training along costs."""
    last = {arm: report["arms"][arm]["rows"][-1] for arm in ARMS}
    lines = []
    for arm, row in last.items():
        shares = ", ".join(f"{aspect} {row[aspect]['value']:.0%}" for aspect in aspects)
        more = row["gap"]["value"] / row["loss"]["value"]
        lines.append(f"{ARMS[arm]:21} {row['step']} steps: {shares}; another scene's sentence: {more:.0%} more loss")
    slower = last["along"]["seconds"] / last["clip"]["seconds"]
    return [*lines, f"a step of {ARMS['along']!r} takes {slower:.1f} times as long"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and measure the arms."""
    parser = argparse.ArgumentParser(
        prog="python -m ldm_tutor.lessons.lesson_07_study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=shipped_folder("lesson_07"), help="where the results go")
    parser.add_argument(
        "--scratch", type=Path, default=Path("runs/lesson_07"), help="checkpoints; delete to start anew"
    )
    parser.add_argument("--stops", type=int, nargs="+", default=list(STOPS), help="steps after which the judge looks")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    study(given.out, given.scratch, given.stops)
    return 0


if __name__ == "__main__":
    sys.exit(main())
