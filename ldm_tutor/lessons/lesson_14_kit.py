"""What lesson 14 shows of the long run on emoji: drawn and measured once by

    python -m ldm_tutor.lessons.lesson_14_kit runs/emoji runs/emoji_few runs/emoji_words runs/emoji_pictures

from the weights in the first folder, and the pictures that the U-Net, CLIP and the autoencoder have seen. It writes
data/weights/emoji: two sheets of pictures, measured.json, logs and a model card. The weights themselves are large and
not kept; the card has the commands.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm_tutor.data.captioned import CaptionedPictures
from ldm_tutor.data.folders import read_pictures
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import draw_many
from ldm_tutor.metrics.clip_score import clip_features, clip_score
from ldm_tutor.metrics.fid import frechet_distance
from ldm_tutor.metrics.figures import share
from ldm_tutor.metrics.nearest import nearest
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.retrieval import retrieval_top1
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.pipeline import Pipeline, load_pipeline
from ldm_tutor.plots.figures import to_uint8
from ldm_tutor.shapes import Pictures, Tensor
from ldm_tutor.training.model_card import PARTS, model_card, write_card
from ldm_tutor.weights.files import atomic_file, load_model, read_header
from ldm_tutor.weights.shipped import resolve, shipped_folder

Report = dict[str, Any]

COLUMNS = 8
NEW_NAMES = (
    "green banana", "red pear", "green strawberry", "red lemon",
    "green cat face", "red bear face", "cat", "green apple",
)  # fmt: skip
# "green apple" has been seen: it stands among the new ones as a control.
SETTINGS: dict[str, Any] = {"num_steps": 12, "guidance": 3.0}
COMMANDS = (
    "python -m ldm_tutor.lessons.lesson_14_emoji noto-emoji-128.zip runs/emoji_pictures",
    'python -m ldm_tutor.lessons.lesson_14_emoji noto-emoji-128.zip runs/emoji_words fruit "animal faces" \\',
    '    hearts "circles and squares"',
    'python -m ldm_tutor.lessons.lesson_14_emoji noto-emoji-128.zip runs/emoji_few fruit "animal faces"',
    "ldm-tutor train autoencoder --data runs/emoji_pictures --start-from data/weights/scenes --minutes 12 \\",
    "    --threads 1 --out runs/emoji",
    "ldm-tutor train clip --data runs/emoji_words --steps 60 --threads 1 --out runs/emoji",
    "ldm-tutor train denoiser --data runs/emoji_few --start-from data/weights/scenes --minutes 48 \\",
    "    --threads 1 --out runs/emoji",
    "python -m ldm_tutor.lessons.lesson_14_kit runs/emoji runs/emoji_few runs/emoji_words runs/emoji_pictures",
)
log = logging.getLogger("ldm_tutor.lessons.lesson_14_kit")


@torch.inference_mode()
def reconstructions(autoencoder: Autoencoder, pictures: Tensor) -> Pictures:
    """Return uint8 pictures sent through an autoencoder and back, in [-1, 1]."""
    return torch.cat([autoencoder(to_float(part)).clamp(-1, 1) for part in pictures.split(32)])


def draw_all(pipeline: Pipeline, names: Sequence[str], seed: int = 0) -> Pictures:
    """Draw every name once; picture number i has the seed `seed` + i."""
    return torch.cat(list(draw_many(pipeline, list(names), seed=seed, batch_size=16, **SETTINGS)))


def nearest_report(drawn: Pictures, data: CaptionedPictures) -> Report:
    """Return what the nearest training pictures of `drawn` say: how often it is the right one, and how near.

    `drawn` has one picture per training picture, in their order. Beside it, how far a training picture is from the
    nearest other one: a copy is much nearer than that.
    """
    real = to_float(data.pictures)
    index, distance = nearest(drawn, real)
    among = torch.cdist(real.flatten(1).double(), real.flatten(1).double()) / real[0].numel() ** 0.5
    among.fill_diagonal_(torch.inf)
    right = [data.captions[int(k)] == caption for k, caption in zip(index, data.captions, strict=True)]
    return {
        "right_name": share(right).to_dict(),
        "nearest": [data.captions[int(k)] for k in index],
        "distance": round(float(distance.mean()), 4),
        "distance_between_training_pictures": round(float(among.min(dim=1).values.mean()), 4),
    }


def measure(
    weights: Path, seen: CaptionedPictures, words: CaptionedPictures, everything: CaptionedPictures
) -> tuple[Report, dict[str, Pictures]]:
    """Measure the model in `weights`; return the report, and the pictures drawn for seen and for new names."""
    pipeline = load_pipeline(weights)
    drawn, new = draw_all(pipeline, seen.captions), draw_all(pipeline, NEW_NAMES)
    real = to_float(seen.pictures)
    clip, tokenizer = pipeline.clip, pipeline.tokenizer
    shipped = load_model(resolve() / "autoencoder.safetensors", "autoencoder")
    quality = {
        which: round(float(psnr(reconstructions(autoencoder, each.pictures), to_float(each.pictures)).mean()), 2)
        for which, autoencoder, each in (
            ("shipped_autoencoder", shipped, seen),
            ("autoencoder", pipeline.autoencoder, seen),
            ("autoencoder_all_emoji", pipeline.autoencoder, everything),
        )
    }
    found = retrieval_top1(clip, to_float(words.pictures), tokenizer(words.captions), len(words))
    features = {name: clip_features(clip, each) for name, each in (("real", real), ("drawn", drawn))}
    shuffled = seen.captions[1:] + seen.captions[:1]
    report: Report = {
        "num_names": len(seen),
        "num_autoencoder": len(everything),
        "num_words": len(words),
        "names": seen.captions,
        "new_names": list(NEW_NAMES),
        "settings": SETTINGS,
        "psnr": quality,
        "retrieval": {name: value.to_dict() for name, value in found.items()},
        "fid_clip": round(frechet_distance(features["drawn"], features["real"]), 4),
        "clip_score": {
            "real": clip_score(clip, tokenizer, real, seen.captions).to_dict(),
            "drawn": clip_score(clip, tokenizer, drawn, seen.captions).to_dict(),
            "wrong_names": clip_score(clip, tokenizer, real, shuffled).to_dict(),
        },
        "nearest": nearest_report(drawn, seen),
        "trainings": trainings(weights),
    }
    return report, {"drawn": drawn, "new": new}


def trainings(weights: Path) -> dict[str, dict[str, Any]]:
    """Return steps, pictures and seconds of each stage, from the headers of the weights."""
    return {
        stage: {key: read_header(weights / file)["metadata"].get(key) for key in ("steps", "samples", "seconds")}
        for stage, file in PARTS.items()
    }


# ---------------------------------------------------------------- kept with the course


def tiles(pictures: Pictures, columns: int = COLUMNS) -> Image.Image:
    """Return pictures in [-1, 1] side by side without gaps, so that `untile` can cut them apart again."""
    pixels = to_uint8(pictures)
    n, h, w, _ = pixels.shape
    sheet = np.full((-(-n // columns) * h, columns * w, 3), 255, np.uint8)
    for k, each in enumerate(pixels):
        row, column = divmod(k, columns)
        sheet[row * h : (row + 1) * h, column * w : (column + 1) * w] = each
    return Image.fromarray(sheet)


def untile(path: Path, num: int, columns: int = COLUMNS, side: int = 64) -> list[np.ndarray]:
    """Return the first `num` pictures of a sheet that `tiles` made, as bytes (side, side, 3)."""
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    places = (divmod(k, columns) for k in range(num))
    return [sheet[r * side : (r + 1) * side, c * side : (c + 1) * side] for r, c in places]


def read_report(folder: Path) -> Report:
    """Return what `keep` wrote as measured.json; ConfigError where it is not there."""
    path = folder / "measured.json"
    if not path.is_file():
        raise ConfigError(f"{path} is not there", fix="get it again with git (git checkout data/weights)")
    report: Report = json.loads(path.read_text(encoding="utf-8"))
    return report


def keep_report(folder: Path, report: Report, sheets: dict[str, Image.Image], weights: Path, card: str) -> None:
    """Write the report, the sheets by their names, the logs of the three stages and the card into `folder`."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    for name, sheet in sheets.items():
        with atomic_file(folder / f"{name}.png") as temporary:
            sheet.save(temporary, format="PNG", optimize=True)
    for stage in PARTS:
        text = (weights / f"{stage}.csv").read_text(encoding="utf-8")
        (folder / "logs" / f"{stage}.csv").write_text(text, encoding="utf-8", newline="\n")
    with atomic_file(folder / "measured.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    write_card(folder / "MODEL_CARD.md", card)


def load_emoji(folder: Path | None = None) -> tuple[Report, dict[str, list[np.ndarray]]]:
    """Return what the long run has measured, and its drawn pictures: "drawn" for seen names, "new" for new ones."""
    folder = shipped_folder("emoji") if folder is None else folder
    report = read_report(folder)
    counts = {"drawn": len(report["names"]), "new": len(report["new_names"])}
    return report, {name: untile(folder / f"{name}.png", count) for name, count in counts.items()}


def told_of(report: Report) -> str:
    """Return in words how much of its pictures the model has kept."""
    near = report["nearest"]
    return "\n".join(
        [
            f"nearest training picture has the right name: {share_of(near['right_name'])}",
            f"distance to it {near['distance']:.2f}, between training pictures "
            f"{near['distance_between_training_pictures']:.2f}",
            f"PSNR in dB: { {name: round(value, 1) for name, value in report['psnr'].items()} }",
        ]
    )


def load_logs(folder: Path | None = None) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """Return the logs of the long run: (stage, value) to steps and values."""
    folder = shipped_folder("emoji") if folder is None else folder
    found: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for path in sorted((folder / "logs").glob("*.csv")):
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        steps = [int(row["step"]) for row in rows]
        for name in rows[0] if rows else ():
            found[path.stem, name] = steps, [float(row[name]) for row in rows]
    return found


def _commands(weights: Path) -> Sequence[str]:
    """Return the commands that made `weights`: those in its COMMANDS.txt, if there is one, else COMMANDS."""
    told = weights / "COMMANDS.txt"
    return told.read_text(encoding="utf-8").splitlines() if told.is_file() else COMMANDS


def card(report: Report, weights: Path) -> str:
    """Return the model card of the emoji model."""
    score, near = report["clip_score"], report["nearest"]
    return model_card(
        "emoji",
        data=f"{report['num_names']} drawings of Google's Noto Emoji (fruit and animal faces), 64 x 64 pixels on "
        f"white, each with its Unicode name; CLIP saw {report['num_words']} (hearts, circles and squares too), the "
        f"autoencoder {report['num_autoencoder']}. `ldm_tutor/lessons/lesson_14_emoji.py` says which.",
        data_licence="Apache 2.0 by the project's README, OFL 1.1 by its licence file",
        commands=_commands(weights),
        weights=weights,
        measured={
            "PSNR of the shipped autoencoder, seen emoji": f"{report['psnr']['shipped_autoencoder']} dB",
            "PSNR after fine-tuning, seen emoji": f"{report['psnr']['autoencoder']} dB",
            f"CLIP finds the name of a picture among {report['num_words']}": share_of(
                report["retrieval"]["picture_to_text"]
            ),
            "nearest training picture of a drawn one has its name": share_of(near["right_name"]),
            "distance to it (root mean square, 0 to 2)": str(near["distance"]),
            "the same from one training picture to another": str(near["distance_between_training_pictures"]),
            "CLIP score, drawn / real / real with wrong names": " / ".join(
                f"{score[name]['value']:.0f}" for name in ("drawn", "real", "wrong_names")
            ),
            "Fréchet distance to the training pictures, own CLIP's features": f"{report['fid_clip']:.3f}",
        },
        limits=(
            "It has seen one picture per name, many times over, and is meant to know them by heart: what it draws are "
            "its memories of Google's drawings, not new emoji.",
            "It knows no other names. For new combinations of known words see `new.png`.",
            "Its own CLIP judges it: a judge who has sat in the same lessons.",
            "The weights are not kept with the course; the commands above make them anew.",
        ),
        machine="one of two CPU cores, shared with other work, in bfloat16; minutes are those of the clock",
    )


def share_of(value: dict[str, Any]) -> str:
    """Return a share and its number in words, for a card."""
    return f"{value['value']:.0%} of {value['num']}"


def keep(folder: Path, report: Report, pictures: dict[str, Pictures], weights: Path) -> None:
    """Write the report, the sheets, the logs and the card into `folder`."""
    sheets = {name: tiles(each) for name, each in pictures.items()}
    keep_report(folder, report, sheets, weights, card(report, weights))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, measure and keep."""
    parser = argparse.ArgumentParser(prog="python -m ldm_tutor.lessons.lesson_14_kit", description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("seen", type=Path, help="the pictures that the U-Net has seen")
    parser.add_argument("words", type=Path, help="the pictures that CLIP has seen")
    parser.add_argument("everything", type=Path, help="the pictures that the autoencoder has seen")
    parser.add_argument("--out", type=Path, default=shipped_folder("emoji"))
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    side = load_pipeline(given.weights).config.picture_size
    data = (read_pictures(place, side) for place in (given.seen, given.words, given.everything))
    report, pictures = measure(given.weights, *data)
    keep(given.out, report, pictures, given.weights)
    log.info("%s: %s have the right nearest picture", given.out, share_of(report["nearest"]["right_name"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
