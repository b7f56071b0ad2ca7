"""Label maps: what every pixel of a scene shows, a background or a kind of object."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm_tutor.data.scenes.world import BACKGROUNDS, KINDS, Scene
from ldm_tutor.errors import ShapeError
from ldm_tutor.shapes import Num, Tensor

LABELS = (*BACKGROUNDS, *KINDS)


def label_maps(scenes: Sequence[Scene], foreground: Num[Tensor, "b H W"]) -> Num[Tensor, "b H W"]:
    """Return numbers of LABELS per pixel, uint8: `foreground` (see ScenePictures) in the words of a label map."""
    if len(scenes) != len(foreground):
        given = (len(scenes), len(foreground))
        raise ShapeError("label_maps", given=given, expected="one foreground per scene")
    maps = torch.empty(foreground.shape, dtype=torch.uint8)
    for number, scene in enumerate(scenes):
        names = [scene.background, *(each.kind for each in scene.objects)]
        table = torch.tensor([LABELS.index(name) for name in names], dtype=torch.uint8)
        maps[number] = table[foreground[number].long()]
    return maps
