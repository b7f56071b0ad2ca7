"""What lesson 14 shows of the long run on photographs, CIFAR-10: drawn and measured once by

    python -m ldm_tutor.lessons.lesson_14_photos runs/cifar runs/cifar10/train runs/cifar10/test

from the weights in the first folder, the photographs that they have seen, and others. It writes data/weights/cifar10:
a sheet of drawn pictures, measured.json, logs and a model card. The weights and the photographs are not kept.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ldm_tutor.data.captioned import CaptionedPictures
from ldm_tutor.data.folders import read_pictures
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.evaluation import draw_many
from ldm_tutor.lessons.lesson_14_kit import (
    Report,
    keep_report,
    read_report,
    reconstructions,
    share_of,
    tiles,
    trainings,
    untile,
)
from ldm_tutor.metrics.clip_score import clip_features
from ldm_tutor.metrics.fid import frechet_distance
from ldm_tutor.metrics.figures import Measured, share
from ldm_tutor.metrics.nearest import nearest
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.shapes import Float, Pictures, Tensor
from ldm_tutor.training.model_card import model_card
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve, shipped_folder

PER_CLASS, SHOWN, HELD_OUT = 50, 8, 1000
SETTINGS: dict[str, Any] = {"num_steps": 20, "guidance": 3.0}
COMMANDS = (
    "ldm-tutor data check runs/cifar10/train",
    "ldm-tutor train all --data runs/cifar10/train --start-from data/weights/scenes --minutes 60 --threads 1 \\",
    "    --out runs/cifar",
    "python -m ldm_tutor.lessons.lesson_14_photos runs/cifar runs/cifar10/train runs/cifar10/test",
)
log = logging.getLogger("ldm_tutor.lessons.lesson_14_photos")


def some_of(data: CaptionedPictures, num: int, seed: int = 0) -> CaptionedPictures:
    """Return `num` of the pictures by chance, or all where there are fewer."""
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:num]
    captions, names = ([told[k] for k in chosen.tolist()] for told in (data.captions, data.names))
    return CaptionedPictures(data.pictures[chosen], captions, names, data.form)


@torch.inference_mode()
def named_right(clip: Clip, tokenizer: Tokenizer, features: Tensor, captions: Sequence[str]) -> Measured:
    """Return the share of pictures, given as CLIP's vectors, to which its own caption is the nearest of all."""
    names = sorted(set(captions))
    answers = (features @ clip.embed_text(tokenizer(names)).double().cpu().T).argmax(dim=1)
    return share([names[int(k)] == caption for k, caption in zip(answers, captions, strict=True)])


def distances(pictures: Pictures, seen: Tensor) -> Float[Tensor, " n"]:
    """Return how far each picture in [-1, 1] is from the nearest of `seen` (uint8), compared at half the size."""
    small = torch.cat([F.avg_pool2d(to_float(part), 2) for part in seen.split(4096)])
    return nearest(F.avg_pool2d(pictures, 2), small)[1]


def measure(weights: Path, seen: CaptionedPictures, others: CaptionedPictures) -> tuple[Report, Pictures]:
    """Measure the model in `weights`; return the report and the drawn pictures, PER_CLASS of each name in a row."""
    pipeline = load_pipeline(weights)
    clip, tokenizer = pipeline.clip, pipeline.tokenizer
    names = sorted(set(seen.captions))
    wanted = [name for name in names for _ in range(PER_CLASS)]
    drawn = torch.cat(list(draw_many(pipeline, wanted, batch_size=25, **SETTINGS)))
    sets = {"held_out": some_of(others, HELD_OUT), "seen": some_of(seen, len(wanted))}
    vectors = {name: clip_features(clip, to_float(each.pictures)) for name, each in sets.items()}
    vectors["drawn"] = clip_features(clip, drawn)
    real = to_float(sets["held_out"].pictures)
    shipped = load_model(resolve() / "autoencoder.safetensors", "autoencoder")
    report: Report = {
        "names": names,
        "num_seen": len(seen),
        "num_drawn": len(drawn),
        "num_held_out": len(sets["held_out"]),
        "shown": SHOWN,
        "settings": SETTINGS,
        "psnr": {
            which: round(float(psnr(reconstructions(each, sets["held_out"].pictures), real).mean()), 2)
            for which, each in (("shipped_autoencoder", shipped), ("autoencoder", pipeline.autoencoder))
        },
        "named_right": {
            "held_out": named_right(clip, tokenizer, vectors["held_out"], sets["held_out"].captions).to_dict(),
            "drawn": named_right(clip, tokenizer, vectors["drawn"], wanted).to_dict(),
        },
        "fid_clip": {
            which: round(frechet_distance(vectors[which], vectors["held_out"]), 4) for which in ("drawn", "seen")
        },
        "distance_to_nearest_seen": {
            which: round(float(distances(each, seen.pictures).mean()), 4)
            for which, each in (("drawn", drawn), ("held_out", real[: len(wanted)]))
        },
        "trainings": trainings(weights),
    }  # fmt: skip
    return report, drawn


# ---------------------------------------------------------------- kept with the course


def load_photos(folder: Path | None = None) -> tuple[Report, dict[str, list[np.ndarray]]]:
    """Return what the run has measured, and the pictures drawn of each name, as bytes."""
    folder = shipped_folder("cifar10") if folder is None else folder
    report = read_report(folder)
    shown, names = report["shown"], report["names"]
    drawn = untile(folder / "drawn.png", len(names) * shown, shown)
    return report, {name: drawn[k * shown : (k + 1) * shown] for k, name in enumerate(names)}


def told_of_photos(report: Report) -> str:
    """Return the report in words, a line for each thing."""
    right, far, fid, db = (report[key] for key in ("named_right", "distance_to_nearest_seen", "fid_clip", "psnr"))
    num_seen = report["num_seen"]
    lines = [f"photographs to learn from: {num_seen:,}"]
    for stage, run in report["trainings"].items():
        minutes, times = (run["seconds"] or 0) / 60, (run["samples"] or 0) / num_seen
        lines.append(f"{stage}: {minutes:.0f} minutes, each photograph {times:.1f} times")
    lines += [
        f"autoencoder, PSNR of held-out photographs: shipped {db['shipped_autoencoder']:.1f} dB, "
        f"trained further {db['autoencoder']:.1f} dB",
        f"CLIP names right: {share_of(right['held_out'])} held-out photographs, {share_of(right['drawn'])} drawn ones",
        f"distance to the nearest photograph seen: drawn {far['drawn']:.2f}, held out {far['held_out']:.2f}",
        f"Fréchet distance to held-out photographs: drawn {fid['drawn']:.3f}, seen photographs {fid['seen']:.3f}",
    ]
    return "\n".join(lines)


def card(report: Report, weights: Path) -> str:
    """Return the model card of the model of photographs."""
    right, far, fid = report["named_right"], report["distance_to_nearest_seen"], report["fid_clip"]
    return model_card(
        "cifar10",
        data=f"{report['num_seen']:,} photographs of CIFAR-10 (Krizhevsky 2009), 32 x 32 pixels enlarged to 64 x 64, "
        "each with the name of its class.",
        data_licence="for research and teaching",
        commands=COMMANDS,
        weights=weights,
        measured={
            f"PSNR of the shipped autoencoder, {report['num_held_out']:,} held-out photographs":
                f"{report['psnr']['shipped_autoencoder']} dB",
            "PSNR after fine-tuning, the same": f"{report['psnr']['autoencoder']} dB",
            "own CLIP names a held-out photograph right": share_of(right["held_out"]),
            "own CLIP names a drawn picture right": share_of(right["drawn"]),
            "Fréchet distance to held-out photographs, own CLIP's features, drawn / seen photographs":
                f"{fid['drawn']:.3f} / {fid['seen']:.3f}",
            "distance to the nearest of all seen photographs (root mean square, 0 to 2), drawn / held out":
                f"{far['drawn']:.3f} / {far['held_out']:.3f}",
        },
        limits=(
            "An hour of one core: cars, horses, ships and trucks can be told at once, cats, dogs and deer seldom.",
            "It knows ten words.",
            "Its own CLIP judges it, and that CLIP itself is often wrong about photographs.",
            "The weights are not kept with the course; the commands above make them anew.",
        ),
        machine="one core of two, the other one with other work",
    )  # fmt: skip


def keep(folder: Path, report: Report, drawn: Pictures, weights: Path) -> None:
    """Write the report, a sheet of SHOWN pictures a name, the logs and the card into `folder`."""
    shown = drawn.view(len(report["names"]), -1, *drawn.shape[1:])[:, :SHOWN].flatten(0, 1)
    keep_report(folder, report, {"drawn": tiles(shown, SHOWN)}, weights, card(report, weights))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, measure and keep."""
    parser = argparse.ArgumentParser(prog="python -m ldm_tutor.lessons.lesson_14_photos", description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("seen", type=Path, help="the photographs that the model has seen")
    parser.add_argument("others", type=Path, help="photographs that it has not seen")
    parser.add_argument("--out", type=Path, default=shipped_folder("cifar10"))
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    side = load_pipeline(given.weights).config.picture_size
    report, drawn = measure(given.weights, *(read_pictures(place, side) for place in (given.seen, given.others)))
    keep(given.out, report, drawn, given.weights)
    log.info("%s: %s of the drawn pictures are named right", given.out, share_of(report["named_right"]["drawn"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
