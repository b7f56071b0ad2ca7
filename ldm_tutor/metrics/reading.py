"""What the judge sees in a picture, in words, and whether that is what a sentence asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ldm_tutor.data.scenes.requests import Request
from ldm_tutor.data.scenes.world import BACKGROUNDS, COLORS, KINDS, SIZES, place_of
from ldm_tutor.errors import ShapeError
from ldm_tutor.metrics.figures import Measured, share
from ldm_tutor.models.judge import Judge, as_seen
from ldm_tutor.shapes import Pictures

THRESHOLD = 0.4  # least probability of a centre for an object to count


@dataclass(frozen=True)
class SeenThing:
    """One object that the judge found; positions are fractions of the picture's side, y down."""

    kind: str
    color: str
    size: str
    x: float
    y: float
    box: tuple[float, float, float, float]
    score: float  # how sure the judge is that there is an object, 0 to 1

    @property
    def place(self) -> str:
        """The place word of the centre."""
        return place_of(self.x, self.y)


@dataclass(frozen=True)
class Reading:
    """Everything that the judge found in one picture."""

    objects: tuple[SeenThing, ...]
    background: str


@torch.inference_mode()
def read_pictures(judge: Judge, pictures: Pictures, batch_size: int = 128) -> list[Reading]:
    """Return the judge's reading of each picture, (b, 3, H, W) in [-1, 1]; larger ones are shrunk to 64 pixels."""
    readings: list[Reading] = []
    device = next(judge.parameters()).device
    for part in pictures.split(batch_size):
        maps = judge(as_seen(part.to(device).float()))
        heat = maps.heat.sigmoid()
        peaks = (heat == F.max_pool2d(heat[:, None], 5, stride=1, padding=2)[:, 0]) & (heat > THRESHOLD)
        side = heat.shape[-1]
        found: list[list[SeenThing]] = [[] for _ in range(len(part))]
        for row, j, i in peaks.nonzero().tolist():
            cell = (row, slice(None), j, i)
            dx, dy = maps.offset[cell].tolist()
            x, y = (i + dx) / side, (j + dy) / side
            w, h = maps.extent[cell].tolist()
            found[row].append(
                SeenThing(
                    kind=KINDS[int(maps.kind[cell].argmax())],
                    color=COLORS[int(maps.color[cell].argmax())],
                    size=SIZES[int(maps.size[cell].argmax())],
                    x=x,
                    y=y,
                    box=(x - w / 2, y - h / 2, x + w / 2, y + h / 2),
                    score=float(heat[row, j, i]),
                )
            )
        backgrounds = maps.background.argmax(dim=1).tolist()
        readings += [Reading(tuple(f), BACKGROUNDS[b]) for f, b in zip(found, backgrounds, strict=True)]
    return readings


def attribute_accuracy(readings: Sequence[Reading], requests: Sequence[Request]) -> dict[str, Measured]:
    """Return the share of pictures that show everything asked for ("all"), and the share per attribute.

    An attribute's share counts only the sentences that name it; "count" says whether the number of objects is right.
    """
    if len(readings) != len(requests):
        raise ShapeError("attribute_accuracy", given=(len(readings), len(requests)), expected="one request per picture")
    hits: dict[str, list[bool]] = {"all": []}
    for reading, request in zip(readings, requests, strict=True):
        missing = request.missing(reading.objects, reading.background)
        hits["all"].append(not any(missing.values()))
        for name, is_missing in missing.items():
            hits.setdefault(name, []).append(not is_missing)
    return {name: share(values) for name, values in hits.items()}
