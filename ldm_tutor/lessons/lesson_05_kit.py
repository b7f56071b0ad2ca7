"""The training that lesson 05 looks back on: one small U-Net from nothing, kept at growing numbers of steps.

    python -m ldm_tutor.lessons.lesson_05_kit

draws scenes, encodes them once with the shipped autoencoder, trains the package's U-Net with the package's loop, keeps
the running average at STOPS, measures it and the raw weights, and writes data/weights/lesson_05: some 20 minutes on one
CPU core that has nothing else to do. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ldm_tutor.config import UNetConfig
from ldm_tutor.data.scenes.datasets import ScenePictures, render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import draw_many, load_judge
from ldm_tutor.losses.denoising import noise_loss
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.unet import UNet
from ldm_tutor.pipeline import Pipeline, load_pipeline
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Context, Float, Latents, Pictures, Tensor
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.recipe import caption_tokens
from ldm_tutor.training.ship import machine
from ldm_tutor.training.stages.denoiser import DenoiserStage, cache_moments
from ldm_tutor.weights.files import atomic_file, load_model, save_model, write_sums
from ldm_tutor.weights.shipped import resolve, shipped_folder

Report = dict[str, Any]

CONFIG = UNetConfig(
    channels=24,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_levels=(1, 2),
    num_heads=4,
    context_dim=128,
    norm_groups=8,
)
STOPS = (25, 100, 400, 1600, 6400)  # steps after which the weights are kept; before the first step the answer is 0
NUM_SCENES, CHUNK = 12_000, 2000  # scenes to train on, and how many of them are drawn at a time
BATCH_SIZE, PEAK_LR, SEED, LOG_EVERY = 32, 1.5e-3, 0, 25
NUM_DRAWN, GUIDANCE, DRAWING_STEPS = 128, 3.0, 12  # pictures that are drawn at each stop, and how
TIMES = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)  # at which the loss is measured
KINDS = ("ema", "raw")
ASPECTS = ("loss", "object", "all")  # what is measured at each stop
Network = Callable[[Latents, Tensor, Context], Latents]
_log = logging.getLogger("ldm_tutor.lessons.lesson_05_kit")


def encoded_scenes(pipeline: Pipeline, folder: Path) -> Float[Tensor, "n c2 h w"]:
    """Return the moments of the first NUM_SCENES training scenes; they are kept in `folder`, for the next time."""
    path = folder / "latents.safetensors"
    if not path.is_file():
        parts = []
        for start in range(0, NUM_SCENES, CHUNK):
            pictures = render_scenes(CHUNK, "train", SEED, start=start).pictures
            parts.append(cache_moments(pipeline.autoencoder, pictures, device=pipeline.device, dtype=torch.float32))
            _log.info("%d of %d scenes encoded", start + CHUNK, NUM_SCENES)
        with atomic_file(path) as temporary:
            save_file({"moments": torch.cat(parts)}, temporary)
    return load_file(path)["moments"]


def build_stage(pipeline: Pipeline, folder: Path) -> DenoiserStage:
    """Return the training at its beginning; the encoded scenes are kept in `folder`."""
    moments = encoded_scenes(pipeline, folder)
    torch.manual_seed(SEED)  # the first weights
    return DenoiserStage(
        CONFIG,
        moments,
        pipeline.autoencoder.config.scale_factor,
        pipeline.text_encoder,
        caption_tokens(NUM_SCENES, SEED, pipeline.tokenizer),
        pipeline.tokenizer.empty(1),
        device=pipeline.device,
        dtype=torch.float32,
        batch_size=BATCH_SIZE,
        peak_lr=PEAK_LR,
    )


def train_and_keep(stage: DenoiserStage, folder: Path) -> None:
    """Train up to the last of STOPS; at each keep the running average and the raw weights, and log the loss."""
    resume = (folder / f"{stage.name}.checkpoint").is_file()
    rows: Report = {"rows": [], "losses": []}
    for record in train(stage, Budget(steps=STOPS[-1]), folder, seed=SEED, resume=resume, notes=rows):
        rows["losses"].append(record.values["loss"])
        if record.step % LOG_EVERY == 0:
            mean = sum(rows["losses"]) / len(rows["losses"])
            rows["rows"].append([record.step, record.samples, round(record.seconds, 1), float(f"{mean:.5g}")])
            rows["losses"] = []
            with atomic_file(folder / "denoiser.csv") as temporary, open(temporary, "w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([("step", "samples", "seconds", "loss"), *rows["rows"]])
        if record.step in STOPS:
            for kind, network in {"ema": stage.learner.ema, "raw": stage.learner.network}.items():
                metadata = {"steps": record.step, "weights": kind}
                save_model(_kept(folder, record.step, kind), network, kind="unet", config=CONFIG, metadata=metadata)
            _log.info("%d steps, %.0f seconds, loss %.4f", record.step, record.seconds, rows["rows"][-1][-1])


def _kept(folder: Path, steps: int, kind: str) -> Path:
    return folder / f"unet_{steps:05d}_{kind}.safetensors"


# ---------------------------------------------------------------- what each stop can do


def measure(
    pipeline: Pipeline, judge: Judge, network: UNet, *, num: int = NUM_DRAWN, num_drawn: int = NUM_DRAWN
) -> Report:
    """Measure a U-Net on held-out scenes with one object: its loss at TIMES on `num` of them, and what it draws.

    `loss` is the noise loss, averaged over all steps by the trapezoid of `loss_by_t`; `all` and `object` are the shares
    of `num_drawn` drawn pictures that show all of their sentence, and the right kind of object.
    """
    test = one_object_scenes(max(num, num_drawn))
    x0 = clean_latents(pipeline, to_float(test.pictures[:num]))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    context = pipeline.embed(test.captions[:num])
    by_t = [float(losses_at(network, x0, noise, t, context, pipeline.schedule).mean()) for t in TIMES]
    settings: Report = {"sampler": "dpm++", "num_steps": DRAWING_STEPS, "guidance": GUIDANCE, "batch_size": 32}
    drawn = dataclasses.replace(pipeline, unet=network)
    made = torch.cat(list(draw_many(drawn, test.captions[:num_drawn], **settings)))
    found = attribute_accuracy(read_pictures(judge, made), [parse(caption) for caption in test.captions[:num_drawn]])
    loss = torch.trapezoid(torch.tensor(by_t), torch.tensor(TIMES, dtype=torch.float32)) / (TIMES[-1] - TIMES[0])
    return {
        "loss": round(float(loss), 4),
        "loss_by_t": [round(each, 4) for each in by_t],
        "all": found["all"].to_dict(),
        "object": found["object"].to_dict(),
    }


def one_object_scenes(num: int) -> ScenePictures:
    """Return the first `num` held-out scenes with one object."""
    found = render_scenes(3 * num, "test")
    chosen = [k for k, scene in enumerate(found.scenes) if len(scene.objects) == 1][:num]
    if len(chosen) < num:
        raise ConfigError("one_object_scenes", given=len(chosen), expected=f"{num} of {3 * num} scenes with one object")
    return ScenePictures(
        pictures=found.pictures[chosen],
        captions=[found.captions[k] for k in chosen],
        scenes=[found.scenes[k] for k in chosen],
    )


@torch.inference_mode()
def clean_latents(pipeline: Pipeline, pictures: Pictures) -> Latents:
    """Return the scaled latents of pictures, the means without a random part."""
    scale = pipeline.autoencoder.config.scale_factor
    return torch.cat([scale * pipeline.autoencoder.encode(part).mode() for part in pictures.split(64)])


@torch.inference_mode()
def losses_at(
    network: Network, x0: Latents, noise: Latents, t: int, context: Context, schedule: NoiseSchedule
) -> Float[Tensor, " b"]:
    """Return the noise loss of each picture at one time step."""
    times = torch.full((len(x0),), t)
    return noise_loss(network(schedule.add_noise(x0, noise, times), times, context), noise)


# ---------------------------------------------------------------- shipped, and read again


def snapshot_folder(folder: Path | None = None) -> Path:
    """Return the folder of the kept weights; WeightsError where it is not there."""
    return resolve(folder, "lesson_05")


def load_snapshots(folder: Path | None = None) -> dict[int, UNet]:
    """Return the running averages by the number of training steps; 0 is the U-Net before its first step."""
    torch.manual_seed(SEED)
    networks = {0: UNet(CONFIG).eval()}
    for steps in STOPS:
        networks[steps] = load_model(_kept(snapshot_folder(folder), steps, "ema"), "unet")
    return networks


def load_measured(folder: Path | None = None) -> Report:
    """Return what was measured at the stops; ConfigError where it is not there or not whole."""
    path = snapshot_folder(folder) / "measured.json"
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
        there = {(row["steps"], row["weights"]) for row in report["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the figures of lesson 05 in {path.name}", given=type(error).__name__,
            fix="get them again with git, or make them: python -m ldm_tutor.lessons.lesson_05_kit",
        ) from error  # fmt: skip
    if missing := {(steps, kind) for steps in (0, *STOPS) for kind in KINDS} - there:
        raise ConfigError("the figures of lesson 05: stops that are missing", given=sorted(missing), expected="none")
    return report


def measured_curve(report: Report, weights: str, what: str) -> tuple[list[int], list[float]]:
    """Return numbers of steps and values; `weights` is ema or raw, `what` loss, all or object."""
    rows = sorted((row for row in report["rows"] if row["weights"] == weights), key=lambda row: row["steps"])
    return [row["steps"] for row in rows], [row[what] if what == "loss" else row[what]["value"] for row in rows]


def ship(pipeline: Pipeline, run: Path, target: Path) -> None:
    """Measure every stop of a finished run, and write the running averages as float16, the figures and the log."""
    judge = load_judge()
    torch.manual_seed(SEED)
    before = measure(pipeline, judge, UNet(CONFIG).eval())
    rows: list[Report] = [{"steps": 0, "weights": kind, **before} for kind in KINDS]  # no step, no difference yet
    for steps in STOPS:
        for kind in KINDS:
            network = load_model(_kept(run, steps, kind), "unet")
            if kind == "ema":
                metadata = {"steps": steps, "weights": kind}
                path = _kept(target, steps, kind)
                save_model(path, network, kind="unet", config=CONFIG, metadata=metadata, dtype=torch.float16)
                network = load_model(path, "unet")
            rows.append({"steps": steps, "weights": kind, **measure(pipeline, judge, network)})
            _log.info("%d steps, %s: loss %.3f, all %.2f", steps, kind, rows[-1]["loss"], rows[-1]["all"]["value"])
    settings = {"num_drawn": NUM_DRAWN, "guidance": GUIDANCE, "drawing_steps": DRAWING_STEPS, "times": list(TIMES)}
    (target / "logs").mkdir(parents=True, exist_ok=True)
    for path, text in {
        target / "measured.json": json.dumps({**settings, "rows": rows}, indent=1) + "\n",
        target / "logs" / "denoiser.csv": (run / "denoiser.csv").read_text(encoding="utf-8"),
        target / "MODEL_CARD.md": _CARD.format(
            count=sum(each.numel() for each in UNet(CONFIG).parameters()), scenes=NUM_SCENES, batch=BATCH_SIZE,
            rate=PEAK_LR, last=STOPS[-1], stops=", ".join(map(str, STOPS)), machine=json.dumps(machine()),
        ),
    }.items():  # fmt: skip
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    write_sums(target)


_CARD = """# Model card: lesson 05

One U-Net of {count:,} parameters, the package's class at a small size, kept on its way: the running average after
{stops} training steps. For lesson 05, which shows what more training does; to draw with, take the model in `scenes`.
MIT licence.

Made by `python -m ldm_tutor.lessons.lesson_05_kit`: {scenes:,} training scenes, encoded by the shipped autoencoder,
sentences read by the shipped CLIP, batches of {batch}, noise loss with `step_weight`, AdamW with a peak learning rate
of {rate} and half a cosine down over {last:,} steps, running average 0.999, seed 0, float32, one thread. Machine:
`{machine}`. `measured.json` has the figures of the running average and of the raw weights at each stop,
`logs/denoiser.csv` the loss.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, keep, measure and ship."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/lesson_05"), help="where the training keeps its state")
    parser.add_argument("--out", type=Path, default=shipped_folder("lesson_05"), help="where the results go")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    chosen.run.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline()
    if not all(_kept(chosen.run, steps, kind).is_file() for steps in STOPS for kind in KINDS):
        train_and_keep(build_stage(pipeline, chosen.run), chosen.run)
    ship(pipeline, chosen.run, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
