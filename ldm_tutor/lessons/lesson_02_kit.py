"""The five autoencoders of lesson 02: equal in everything but their loss. How they are trained, kept and opened.

    python -m ldm_tutor.lessons.lesson_02_kit runs/lesson_02

trains all of them (half an hour of one CPU core), writes what the lesson needs to data/weights/lesson_02,
the weights as float16, and skips a run that is already finished.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import AutoencoderConfig, DiscriminatorConfig
from ldm_tutor.data.scenes.datasets import ScenePictures, render_scenes, to_float
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.data.scenes.world import Scene, SceneObject
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.evaluation import load_judge
from ldm_tutor.losses.adversarial import adaptive_weight, generator_loss
from ldm_tutor.losses.reconstruction import PIXEL_LOSSES, PerceptualDistance
from ldm_tutor.metrics.pictures import high_frequency_energy, psnr
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.discriminator import PatchDiscriminator
from ldm_tutor.shapes import Pictures, Tensor
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.stages.autoencoder import AutoencoderRecipe, AutoencoderStage
from ldm_tutor.weights.files import atomic_file, load_model, save_model, write_sums
from ldm_tutor.weights.shipped import resolve, shipped_folder

Row = dict[str, float]

CODER = AutoencoderConfig(channels=8, channel_mult=(1, 2, 4, 4), num_res_blocks=1, norm_groups=4, mid_attention=False)
CRITIC = DiscriminatorConfig(channels=24, num_layers=2)
NUM_STEPS, BATCH_SIZE, NUM_SCENES, NUM_HELD_OUT = 6000, 4, 24_000, 32
LOG_EVERY = 300
LOOK_AT = (300, 900, 1800, 3000, 4500, NUM_STEPS)  # steps after which the same two pictures are kept
NUM_KEPT = 2


def _recipe(**changes: Any) -> AutoencoderRecipe:
    plain: dict[str, Any] = {"perceptual_weight": 0.0, "adversarial_weight": 0.0, "kl_weight": 1e-7}
    return AutoencoderRecipe(**{**plain, "batch_size": BATCH_SIZE, **changes})


RUNS: dict[str, AutoencoderRecipe] = {
    "l2": _recipe(pixel_loss="l2"),
    "l1": _recipe(),
    "perceptual": _recipe(perceptual_weight=0.2),
    "adversary": _recipe(perceptual_weight=0.2, adversarial_weight=0.5, adversarial_start=0.5),
    "adversary_at_0": _recipe(perceptual_weight=0.2, adversarial_weight=0.5, adversarial_start=0.0),
}

NAMES = {
    "l2": "L2",
    "l1": "L1",
    "perceptual": "perceptual",
    "adversary": "late critic",
    "adversary_at_0": "early critic",
}


def lesson_folder() -> Path:
    """Return the folder of this lesson's shipped weights and logs."""
    return shipped_folder("lesson_02")


def loss_network() -> PerceptualDistance:
    """Return the perceptual distance of the losses. What measures is the judge, another network."""
    return PerceptualDistance(load_model(resolve() / "perceptual.safetensors", "judge"))


# ---------------------------------------------------------------- training


def build_stage(name: str, pictures: Tensor, seed: int = 0) -> AutoencoderStage:
    """Return the run `name` before its first step: the same first weights in every run."""
    if name not in RUNS:
        raise ConfigError("lesson 02: unknown run", given=name, expected=f"one of {sorted(RUNS)}")
    torch.manual_seed(seed)
    return AutoencoderStage(
        CODER,
        pictures,
        loss_network(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        recipe=RUNS[name],
        discriminator=CRITIC,
    )


def look(stage: AutoencoderStage, held_out: Pictures) -> Row:
    """Return how a run does on held-out pictures: the averaged autoencoder, and the balance of its two losses.

    `balance` is the adaptive weight, before it is multiplied by the recipe's; 0 where the run has no adversary.
    """
    with torch.inference_mode():
        made = stage.coder.ema(held_out).clamp(-1, 1)
        row = {
            "psnr": psnr(made, held_out).mean().item(),
            "distance": stage.perceptual(made, held_out).mean().item(),
            "fine": high_frequency_energy(made).mean().item(),
        }
    row["balance"] = row["verdict_real"] = row["verdict_made"] = 0.0
    if stage.recipe.adversarial_weight > 0 and stage.critic.num_updates > 0:
        net, real = stage.coder.net, held_out[:8]
        critic = stage.critic.net.eval()
        made = net(real)
        verdicts = critic(made)
        pixel = PIXEL_LOSSES[stage.recipe.pixel_loss](made, real)
        reconstruction = pixel + stage.recipe.perceptual_weight * stage.perceptual(made, real).mean()
        balance = adaptive_weight(reconstruction, generator_loss(verdicts), net.decoder.conv_out.weight)
        row |= {"balance": balance.item(), "verdict_made": verdicts.mean().item()}
        row["verdict_real"] = critic(real).mean().item()
        critic.train()
    return row


def run(name: str, folder: Path, *, num_steps: int = NUM_STEPS, num_scenes: int = NUM_SCENES, seed: int = 0) -> None:
    """Train one run and write into `folder`: weights, the critic if there was one, the log, and the kept pictures."""
    held_out = to_float(render_scenes(NUM_HELD_OUT, "test", seed).pictures)
    stage = build_stage(name, render_scenes(num_scenes, "train", seed).pictures, seed)
    rows: list[Row] = []
    kept: list[Tensor] = []
    sums: Row = {}
    started = time.process_time()
    for record in train(stage, Budget(steps=num_steps), folder / name, seed=seed, save_every=600.0):
        for key, value in record.values.items():
            sums[key] = sums.get(key, 0.0) + value
        if record.step % LOG_EVERY == 0 or record.step == num_steps:
            since = record.step - (rows[-1]["step"] if rows else 0)
            losses = {key: value / since for key, value in sums.items()}
            losses["pixel"] = losses.pop(stage.recipe.pixel_loss)
            core = {"step": record.step, "samples": record.samples, "seconds": time.process_time() - started}
            rows.append({**core, **losses, **look(stage, held_out)})
            sums = {}
            _log.info("%s %s", name, {key: round(value, 4) for key, value in rows[-1].items()})
        if record.step in LOOK_AT:
            with torch.inference_mode():
                made = stage.coder.net(held_out[:NUM_KEPT]).clamp(-1, 1)
            kept.append(((made + 1) * 127.5).round().to(torch.uint8))
    history = {"steps": num_steps, "samples": num_steps * BATCH_SIZE, "seconds": rows[-1]["seconds"]}
    stage.finish(folder / name, history)
    if stage.critic.num_updates > 0:
        save_critic(folder / name / "critic.safetensors", stage.critic.network)
    if kept:
        save_file({"pictures": torch.stack(kept)}, folder / name / "kept.safetensors")
    with (
        atomic_file(folder / name / "log.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: float(f"{value:.5g}") for key, value in row.items()} for row in rows)


def save_critic(path: Path, critic: PatchDiscriminator, dtype: torch.dtype | None = None) -> None:
    """Write a discriminator of the size CRITIC; `dtype` is the type of its weights on disk, None: as they are."""
    state = critic.state_dict()
    if dtype is not None:
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    with atomic_file(path) as temporary:
        save_file(state, temporary)


def ship(folder: Path, target: Path) -> None:
    """Write what `run` left in `folder` to `target`: weights as float16, logs, kept pictures, SHA256SUMS."""
    missing = [name for name in RUNS if not (folder / name / "log.csv").is_file()]
    if missing:
        raise WeightsError(f"{folder}: runs that are not finished", given=missing, expected="none")
    (target / "logs").mkdir(parents=True, exist_ok=True)
    kept = {}
    for name in RUNS:
        model = load_model(folder / name / "autoencoder.safetensors", "autoencoder")
        path = target / f"{name}.safetensors"
        save_model(path, model, kind="autoencoder", config=model.config, dtype=torch.float16)
        if (folder / name / "critic.safetensors").is_file():
            save_critic(target / f"{name}_critic.safetensors", _open_critic(folder / name / "critic.safetensors"),
                        torch.float16)  # fmt: skip
        kept[name] = _tensors(folder / name / "kept.safetensors")["pictures"]
        log_text = (folder / name / "log.csv").read_text(encoding="utf-8")
        (target / "logs" / f"{name}.csv").write_text(log_text, encoding="utf-8", newline="\n")
    with atomic_file(target / "kept.safetensors") as temporary:
        save_file(kept, temporary)
    write_sums(target)


# ---------------------------------------------------------------- what the lesson opens


def load_coder(name: str, folder: Path | None = None) -> Autoencoder:
    """Return the finished autoencoder of a run, in evaluation mode."""
    return load_model(_known(name, folder), "autoencoder")


def load_critic(name: str = "adversary", folder: Path | None = None) -> PatchDiscriminator:
    """Return the discriminator at the end of a run, in evaluation mode; WeightsError where the run had none."""
    return _open_critic(_known(name, folder).with_name(f"{name}_critic.safetensors"))


def load_log(name: str, folder: Path | None = None) -> dict[str, list[float]]:
    """Return a run's log as columns: step, losses, and what `look` saw on held-out pictures."""
    path = _known(name, folder).parent / "logs" / f"{name}.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


def load_kept(name: str, folder: Path | None = None) -> Pictures:
    """Return the held-out pictures 0 and 1 as a run drew them after LOOK_AT steps: (6, 2, 3, 64, 64) in [-1, 1]."""
    kept = _tensors(_known(name, folder).with_name("kept.safetensors"))[name]
    return to_float(kept.flatten(0, 1)).unflatten(0, kept.shape[:2])


@torch.inference_mode()
def reconstruct(name: str, pictures: Pictures, folder: Path | None = None) -> Pictures:
    """Return what a run's autoencoder makes of pictures, within [-1, 1]: encode, take the mean, decode."""
    coder = load_coder(name, folder)
    return torch.cat([coder(part).clamp(-1, 1) for part in pictures.split(64)])


def held_out_scenes(num: int) -> Pictures:
    """Return the first `num` scenes that no training has seen, (num, 3, 64, 64) in [-1, 1]."""
    return to_float(render_scenes(num, "test").pictures)


@torch.inference_mode()
def measure(made: Pictures, scenes: ScenePictures) -> tuple[float, float, float, float]:
    """Return how good reconstructions are: PSNR in dB, perceptual distance, fine energy, share with all kinds found.

    The distance and the reading are the judge's, which no loss has used; fine energy is a share of the scenes' own.
    """
    judge = load_judge()
    ruler, real = PerceptualDistance(judge), to_float(scenes.pictures)
    distance = torch.cat([ruler(a, b) for a, b in zip(made.split(32), real.split(32), strict=True)])
    found = attribute_accuracy(read_pictures(judge, made), [parse(caption) for caption in scenes.captions])
    energy = high_frequency_energy(made).mean() / high_frequency_energy(real).mean()
    return float(psnr(made, real).mean()), float(distance.mean()), float(energy), found["object"].value


def cars() -> Pictures:
    """Return the same scene nine times, (9, 3, 64, 64) in [-1, 1]: its car stands a pixel further right each time."""
    middle = SceneObject(kind="car", color="red", size="medium", x=0.5, y=0.5, scale=0.4)
    things = [dataclasses.replace(middle, x=0.5 + k / 64) for k in range(-4, 5)]
    drawn = [torch.from_numpy(draw(Scene(objects=(thing,), background="day"), 64)) for thing in things]
    return to_float(torch.stack(drawn).permute(0, 3, 1, 2))


def sharpen(pictures: Pictures, amount: float) -> Pictures:
    """Add `amount` times what a 3x3 mean takes away: every difference between neighbours grows. 0 changes nothing."""
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (pictures + amount * (pictures - blurred)).clamp(-1, 1)


LPIPS_BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}  # published LPIPS: file it stands on


def published_lpips() -> tuple[str, nn.Module] | None:
    """Return the published LPIPS, (b, 3, H, W) twice to (b, 1, 1, 1), and its backbone's name; nothing is downloaded.

    None where no backbone lies in torch's cache. `python -c "import lpips; lpips.LPIPS(net='vgg')"` puts VGG16 there.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for name, file in LPIPS_BACKBONES.items():
        if list(cache.glob(f"{file}-*.pth")):
            import lpips

            with warnings.catch_warnings(), contextlib.redirect_stdout(None):  # it announces itself
                warnings.simplefilter("ignore")
                return name, lpips.LPIPS(net=name, verbose=False).eval()
    return None


def _known(name: str, folder: Path | None) -> Path:
    if name not in RUNS:
        raise ConfigError("lesson 02: unknown run", given=name, expected=f"one of {sorted(RUNS)}")
    return (folder or lesson_folder()) / f"{name}.safetensors"


def _open_critic(path: Path) -> PatchDiscriminator:
    critic = PatchDiscriminator(CRITIC)
    try:
        critic.load_state_dict(_tensors(path))
    except RuntimeError as error:
        raise WeightsError(f"{path.name}: not a discriminator of this lesson", fix="get the file again") from error
    return critic.eval()


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path.name}: cannot be read ({error})", fix="get the file again, or train again"
        ) from error


_log = logging.getLogger("ldm_tutor.lessons.lesson_02_kit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not yet finished in the folder given, and ship all of it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    folder = Path(given[0] if given else "runs/lesson_02")
    for name in RUNS:
        if not (folder / name / "log.csv").is_file():
            run(name, folder)
    ship(folder, lesson_folder())
    return 0


if __name__ == "__main__":
    sys.exit(main())
