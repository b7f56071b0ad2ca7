"""Draw many scenes into arrays; free of torch, so that worker processes start quickly."""

from __future__ import annotations

import numpy as np

from ldm_tutor.data.scenes.draw import draw, draw_masks
from ldm_tutor.data.scenes.sampling import sample_scene

Task = tuple[int, int, str, int, int, bool]  # first index, count, split, seed, resolution, with masks
Drawn = tuple[np.ndarray, np.ndarray | None]


def render_chunk(task: Task) -> Drawn:
    """Draw the scenes of a task: pictures uint8 (count, R, R, 3) and, if asked for, foreground uint8 (count, R, R)."""
    start, count, split, seed, resolution, with_masks = task
    pictures = np.empty((count, resolution, resolution, 3), dtype=np.uint8)
    foreground = np.zeros((count, resolution, resolution), dtype=np.uint8) if with_masks else None
    for row in range(count):
        scene = sample_scene(start + row, split, seed)
        pictures[row] = draw(scene, resolution)
        if foreground is not None:
            for number, mask in enumerate(draw_masks(scene, resolution), start=1):
                foreground[row][mask] = number
    return pictures, foreground
