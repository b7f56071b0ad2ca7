"""The autoencoders that lesson 01 compares: `python -m ldm_tutor.lessons.lesson_01_study`.

Four that shrink the side by f = 2, 4, 8 and 16, four to eight minutes of a core each; f = 2 with five weights of the
KL, half a minute each. All begin with the outer layers of the shipped autoencoder, those whose size does not depend on
f; the layers round the latents are new in every one. The four, and the five, learn from the same batches, by the
course's own stage and training loop: L1, perceptual distance and KL, no adversary. What is there already is skipped,
and a run that was broken off goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ldm_tutor.config import AutoencoderConfig
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.shapes import Pictures
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.stages.autoencoder import AutoencoderRecipe, AutoencoderStage
from ldm_tutor.weights.files import atomic_file, load_model, read_header, save_model, write_sums
from ldm_tutor.weights.shipped import resolve, shipped_folder

log = logging.getLogger("ldm_tutor.lessons.lesson_01_study")

FOLDER = "lesson_01"  # in data/weights
NUM_WATCHED = 32
# Widths, one entry per level, and latent channels. The latents hold 3072, 1024, 512 and 256 numbers, of the picture's
# 12288. f = 2 goes without attention, which would have 1,024 positions to compare.
SHAPES: dict[int, tuple[tuple[int, ...], int]] = {
    2: ((1, 2), 3),
    4: ((1, 2, 4), 4),
    8: ((1, 2, 4, 2), 8),
    16: ((1, 2, 4, 2, 2), 16),
}
KL_WEIGHTS = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One autoencoder of the study."""

    f: int
    kl_weight: float = 1e-6
    steps: int = 2000
    num_scenes: int = 16_000
    watch_every: int = 50

    def config(self) -> AutoencoderConfig:
        """Return its sizes; the scale factor is measured when it is trained."""
        mult, latent_channels = SHAPES[self.f]
        return AutoencoderConfig(
            channels=16,
            channel_mult=mult,
            num_res_blocks=1,
            latent_channels=latent_channels,
            mid_attention=self.f > 2,
            norm_groups=4,
            scale_factor=1.0,
        )

    def recipe(self) -> AutoencoderRecipe:
        """Return the weights of its losses: the course's own, but for the KL's, and without an adversary."""
        return AutoencoderRecipe(kl_weight=self.kl_weight, adversarial_weight=0.0, batch_size=8, peak_lr=5e-3)


TRIALS = {f"autoencoder_f{f}": Trial(f) for f in SHAPES}
TRIALS |= {f"autoencoder_kl_{weight:.0e}": Trial(2, weight, 400, 4000, 20) for weight in KL_WEIGHTS}


def study_folder() -> Path:
    """Return where the study's weights and logs lie: `data/weights/lesson_01`."""
    return shipped_folder(FOLDER)


def load_trial(name: str) -> Autoencoder:
    """Return one autoencoder of the study, by its name in TRIALS."""
    if name not in TRIALS:
        raise ConfigError("load_trial: unknown autoencoder", given=name, expected=f"one of {list(TRIALS)}")
    return load_model(resolve(name=FOLDER) / f"{name}.safetensors", "autoencoder")


def trial_log(name: str) -> dict[str, list[float]]:
    """Return what was written down while it learned: step, losses, and what `watch` says, as columns."""
    with open(resolve(name=FOLDER) / "logs" / f"{name}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {column: [float(row[column]) for row in rows] for column in rows[0]}


@torch.inference_mode()
def watch(autoencoder: Autoencoder, pictures: Pictures) -> dict[str, float]:
    """Return PSNR in dB, and per latent number: KL in nats, its two parts, root mean square of the mean, mean sigma.

    The parts: `kl_mean` is mean^2 / 2, `kl_spread` is (sigma^2 - 1 - log sigma^2) / 2.
    """
    posterior = autoencoder.encode(pictures)
    made = autoencoder.decode(posterior.mean).clamp(-1, 1)
    square, logvar = posterior.mean.square().mean(), posterior.logvar
    spread = 0.5 * (logvar.exp() - 1 - logvar).mean()
    values = {
        "psnr": psnr(made, pictures).mean(),
        "kl_per_number": 0.5 * square + spread,
        "kl_mean": 0.5 * square,
        "kl_spread": spread,
        "rms_mean": square.sqrt(),
        "sigma": (0.5 * logvar).exp().mean(),
    }
    return {name: float(value) for name, value in values.items()}


def take_outer_layers(autoencoder: Autoencoder, other: Autoencoder) -> list[str]:
    """Copy from `other` the layers outside the innermost level and middle, where they fit; return the copied names.

    Levels are counted from the pictures: the decoder's last one belongs to the encoder's first.
    """
    theirs, copied = other.state_dict(), []
    last, their_last = len(autoencoder.encoder.levels) - 1, len(other.encoder.levels) - 1
    for name, value in autoencoder.state_dict().items():
        part, layer, *rest = name.split(".")
        source = name
        if layer == "levels":
            level = int(rest[0]) if part == "encoder" else last - int(rest[0])
            if level == last:
                continue
            rest[0] = str(level if part == "encoder" else their_last - level)
            source = ".".join([part, layer, *rest])
        elif name.startswith("encoder.conv_in") or name.startswith(("decoder.norm_out", "decoder.conv_out")):
            pass
        else:
            continue
        if source in theirs and theirs[source].shape == value.shape:
            value.copy_(theirs[source])
            copied.append(name)
    return copied


def run_trial(name: str, pictures: torch.Tensor, folder: Path, target: Path) -> Path:
    """Train one of TRIALS on uint8 `pictures` in `folder`; write its float16 weights and its log to `target`."""
    trial, device = TRIALS[name], torch.device("cpu")
    pictures = pictures[: trial.num_scenes]
    torch.manual_seed(0)  # first weights
    perceptual = PerceptualDistance(load_model(resolve() / "perceptual.safetensors", "judge"))
    stage = AutoencoderStage(
        trial.config(), pictures, perceptual, device=device, dtype=torch.float32, recipe=trial.recipe()
    )
    start = Autoencoder(trial.config())
    take_outer_layers(start, load_model(resolve() / "autoencoder.safetensors", "autoencoder"))
    stage.coder.load_weights(start)
    stage.coder.net.to(memory_format=torch.channels_last)  # the same numbers, a fifth faster on a CPU
    perceptual.to(memory_format=torch.channels_last)
    watched = to_float(render_scenes(NUM_WATCHED, "test").pictures)
    notes: dict[str, list[dict[str, float]]] = {"rows": []}
    resume = (folder / "autoencoder.checkpoint").is_file()
    seconds = 0.0
    run = train(stage, Budget(steps=trial.steps), folder, resume=resume, notes=notes, save_every=60)
    with contextlib.closing(run) as records:  # stopped half way, it leaves a checkpoint
        for record in records:
            seconds = record.seconds
            if record.step == 1 or record.step % trial.watch_every == 0:
                values = {**record.values, **watch(stage.coder.ema, watched)}
                values.pop("critic")  # there is none
                notes["rows"].append({"step": record.step, **{key: float(f"{v:.5g}") for key, v in values.items()}})
    made = stage.finish(folder, {"seed": 0, "steps": trial.steps, "seconds": round(seconds, 1)})[0]
    header = read_header(made)
    metadata = {**header["metadata"], "recipe": dataclasses.asdict(trial.recipe()), "num_scenes": len(pictures)}
    config = AutoencoderConfig.from_dict(header["config"])
    path = target / f"{name}.safetensors"
    _write_log(target / "logs" / f"{name}.csv", notes["rows"])
    save_model(path, load_model(made), kind="autoencoder", config=config, metadata=metadata, dtype=torch.float16)
    return path


def is_done(name: str, target: Path) -> bool:
    """Whether `target` holds this autoencoder, trained as long as TRIALS says."""
    path = target / f"{name}.safetensors"
    return path.is_file() and read_header(path)["metadata"]["steps"] == TRIALS[name].steps


def _write_log(path: Path, rows: Sequence[dict[str, float]]) -> None:
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the autoencoders named, or all that are not there yet; the exit code is 1 where something is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    names = list(sys.argv[1:] if arguments is None else arguments) or list(TRIALS)
    target, runs = study_folder(), Path("runs") / FOLDER
    try:
        unknown = [name for name in names if name not in TRIALS]
        if unknown:
            raise ConfigError("no such autoencoder", given=unknown, expected=f"some of {list(TRIALS)}")
        missing = [name for name in names if not is_done(name, target)]
        most = max((TRIALS[name].num_scenes for name in missing), default=1)
        pictures = render_scenes(most).pictures
        for name in missing:
            path = run_trial(name, pictures, runs / name, target)
            shutil.rmtree(runs / name)
            write_sums(target)
            log.info("%s: scale factor %.4f", path, read_header(path)["config"]["scale_factor"])
    except TutorError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
