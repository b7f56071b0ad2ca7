"""The robots of lesson 14: a folder of pictures that no model of the course has seen, drawn here and then spoiled."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ldm_tutor.shapes import Pictures

COLORS = {"red": (214, 64, 52), "green": (74, 160, 84), "blue": (62, 108, 190), "yellow": (232, 184, 44)}
EYES = ("round", "square", "sleepy")
ANTENNAS = ("no antenna", "one antenna", "two antennas")
SIDE, FINER = 96, 3  # pixels of a file; how much finer it is drawn before it is scaled down
_DARK, _LIGHT, _PAPER = (40, 44, 52), (250, 250, 244), (244, 240, 228)


@dataclass(frozen=True)
class Robot:
    """What a robot looks like and where its head is; dx, dy and grow are shares of the picture's side."""

    color: str
    eyes: str
    antennas: str
    dx: float = 0.0
    dy: float = 0.0
    grow: float = 1.0

    @property
    def caption(self) -> str:
        """Its sentence: a green robot with square eyes and two antennas."""
        return sentence(self.color, self.eyes, self.antennas)


def sentence(color: str, eyes: str, antennas: str) -> str:
    """Return the caption of a robot with these features."""
    return f"a {color} robot with {eyes} eyes and {antennas}"


def robots(num: int, seed: int = 0) -> list[Robot]:
    """Return `num` robots by chance, the same for the same seed."""
    dice = random.Random(f"robots/{seed}")
    return [
        Robot(
            dice.choice(list(COLORS)),
            dice.choice(EYES),
            dice.choice(ANTENNAS),
            dice.uniform(-0.05, 0.05),
            dice.uniform(-0.03, 0.05),
            dice.uniform(0.9, 1.08),
        )
        for _ in range(num)
    ]


def draw_robot(robot: Robot) -> Image.Image:
    """Draw a robot's head on paper, SIDE x SIDE."""
    size = SIDE * FINER
    image = Image.new("RGB", (size, size), _PAPER)
    pen = ImageDraw.Draw(image)

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        x, y = 0.5 + robot.dx, 0.55 + robot.dy
        left, top, right, bottom = (robot.grow * each for each in (x0, y0, x1, y1))
        return (x + left) * size, (y + top) * size, (x + right) * size, (y + bottom) * size

    color = COLORS[robot.color]
    line = round(0.02 * size)
    for place in {"no antenna": (), "one antenna": (0.0,), "two antennas": (-0.15, 0.15)}[robot.antennas]:
        pen.rectangle(box(place - 0.012, -0.4, place + 0.012, -0.25), fill=_DARK)
        pen.ellipse(box(place - 0.05, -0.46, place + 0.05, -0.36), fill=color, outline=_DARK, width=line)
    pen.rounded_rectangle(box(-0.3, -0.27, 0.3, 0.27), radius=0.07 * size, fill=color, outline=_DARK, width=line)
    for side in (-1, 1):
        ear = sorted((side * 0.3, side * 0.37))
        pen.rectangle(box(ear[0], -0.08, ear[1], 0.08), fill=_DARK)
        eye = box(side * 0.14 - 0.08, -0.17, side * 0.14 + 0.08, -0.01)
        if robot.eyes == "square":
            pen.rectangle(eye, fill=_LIGHT, outline=_DARK, width=line)
        else:
            pen.ellipse(eye, fill=_LIGHT, outline=_DARK, width=line)
        if robot.eyes == "sleepy":
            pen.chord(eye, 180, 360, fill=_DARK)
        pen.ellipse(box(side * 0.14 - 0.03, -0.1, side * 0.14 + 0.03, -0.04), fill=_DARK)
    pen.rounded_rectangle(box(-0.15, 0.1, 0.15, 0.19), radius=0.02 * size, fill=_LIGHT, outline=_DARK, width=line)
    for place in (-0.05, 0.05):
        pen.rectangle(box(place - 0.008, 0.1, place + 0.008, 0.19), fill=_DARK)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def write_robots(folder: Path, num: int, seed: int = 0) -> list[Robot]:
    """Write `num` robots and their metadata.jsonl into `folder`; return them."""
    folder.mkdir(parents=True, exist_ok=True)
    made, rows = robots(num, seed), []
    for number, robot in enumerate(made):
        name = f"robot_{number:03d}.png"
        draw_robot(robot).save(folder / name)
        rows.append({"file_name": name, "text": robot.caption})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return made


def spoil(folder: Path) -> None:
    """Add to a folder of robots what real folders have: broken, odd and doubled files, and captions with faults."""
    whole = draw_robot(Robot("red", "round", "one antenna"))
    extra: list[bytes] = []

    def add(name: str, text: Any) -> None:
        extra.append(json.dumps({"file_name": name, "text": text}).encode())

    whole.save(folder / "whole.jpg", quality=95)
    (folder / "cut_off.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:900])
    (folder / "whole.jpg").unlink()
    (folder / "letter.png").write_bytes(b"Dear friend, this is no picture.")
    (folder / "empty.png").write_bytes(b"")
    for name in ("cut_off.jpg", "letter.png", "empty.png"):
        add(name, "a red robot with round eyes and one antenna")
    whole.convert("L").save(folder / "grey.png")
    whole.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen_bits.png")
    whole.resize((5, 5)).save(folder / "tiny.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right by a quarter to see it as it was
    whole.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)
    blink = draw_robot(Robot("red", "sleepy", "one antenna"))
    whole.save(folder / "blinks.gif", save_all=True, append_images=[blink], duration=400)
    for name in ("grey.png", "print.jpg", "sixteen_bits.png", "tiny.png", "turned.jpg", "blinks.gif"):
        add(name, "a red robot with round eyes and one antenna")
    (folder / "robot_000_copy.png").write_bytes((folder / "robot_000.png").read_bytes())
    add("robot_000_copy.png", "the same robot again")
    whole.save(folder / "silent.png")
    add("silent.png", "")
    whole.save(folder / "unlisted.png")
    whole.save(folder / "chatty.png")
    add("chatty.png", "a red robot that " + "thinks and thinks and " * 12 + "says nothing")
    add("lost.png", "a robot that went away")
    extra.append(b'{"file_name": "silent.png", "text": "caf\xe9 robot"}')
    extra.append(b'{"file_name": "robot_001.png", "te')
    with open(folder / "metadata.jsonl", "ab") as file:
        file.write(b"\n".join(extra) + b"\n")


# ---------------------------------------------------------------- for an exercise

NUM_SUSPECTS, COPIED = 8, (1, 4, 6)  # how many robots a model is said to have drawn, and which of them are copies


def _as_pictures(drawn: Iterable[Robot]) -> Pictures:
    pixels = torch.from_numpy(np.stack([np.asarray(draw_robot(each).resize((64, 64))) for each in drawn]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@cache
def suspects() -> tuple[Pictures, Pictures]:
    """Return eight pictures that a model is said to have drawn, and the 60 that it was trained on.

    Some of the eight are training pictures, darkened, moved by half a pixel, or noised; the others are new robots.
    """
    train = _as_pictures(robots(60, seed=5))
    made = _as_pictures(robots(NUM_SUSPECTS, seed=6))
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(7))
    moved = (train[42] + train[42].roll(1, dims=-1)) / 2
    hidden = (train[17] * 0.9 - 0.05, moved, train[8] + 0.12 * noise)
    for place, copy in zip(COPIED, hidden, strict=True):
        made[place] = copy
    return made.clamp(-1, 1), train
