"""Scenes as PyTorch data sets: a fixed list, an endless stream, and many pictures at once in memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ldm_tutor.data.scenes.draw import check_resolution, draw
from ldm_tutor.data.scenes.rendering import Drawn, Task, render_chunk
from ldm_tutor.data.scenes.sampling import SPLITS, caption_for, sample_scene
from ldm_tutor.data.scenes.world import Scene, check_choice
from ldm_tutor.errors import ConfigError

_CHUNK = 250  # scenes rendered per task


def to_float(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 pictures, 0 to 255, as float32 in [-1, 1]; any shape."""
    return pictures.float().div_(127.5).sub_(1.0)


def _item(index: int, split: str, seed: int, resolution: int) -> dict[str, Any]:
    picture = torch.from_numpy(draw(sample_scene(index, split, seed), resolution))
    return {
        "picture": to_float(picture.permute(2, 0, 1).contiguous()),
        "caption": caption_for(index, split, seed),
        "index": index,
    }


def _check(**values: int) -> None:
    for name, value in values.items():
        lowest = 0 if name in ("start", "num_workers") else 1
        if not isinstance(value, int) or value < lowest:
            raise ConfigError(f"{name} is {value!r}, expected an integer >= {lowest}")


class Scenes(Dataset[dict[str, Any]]):
    """A list of scenes: items are picture, float32 (3, R, R) in [-1, 1], caption and index."""

    def __init__(self, num_scenes: int, split: str = "train", seed: int = 0, resolution: int = 64) -> None:
        _check(num_scenes=num_scenes)
        check_choice("split", split, SPLITS)
        check_resolution(resolution)
        self.num_scenes, self.split, self.seed, self.resolution = num_scenes, split, seed, resolution

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _item(self._index(index), self.split, self.seed, self.resolution)

    def scene(self, index: int) -> Scene:
        """The full description of one scene."""
        return sample_scene(self._index(index), self.split, self.seed)

    def _index(self, index: int) -> int:
        if not -self.num_scenes <= index < self.num_scenes:
            raise IndexError(f"index is {index}, expected 0 to {self.num_scenes - 1}")
        return int(index) % self.num_scenes


class SceneStream(IterableDataset[dict[str, Any]]):
    """Endless scenes from number `start` on, as items of Scenes; the workers of a loader share them without overlap.

    Workers take turns by blocks of `block` scenes. With block = the loader's batch size, the batches are the same for
    any number of workers, and a run goes on at start = batches seen * batch size.
    """

    def __init__(
        self, split: str = "train", seed: int = 0, resolution: int = 64, start: int = 0, block: int = 1
    ) -> None:
        _check(start=start, block=block)
        check_choice("split", split, SPLITS)
        check_resolution(resolution)
        self.split, self.seed, self.resolution, self.start, self.block = split, seed, resolution, start, block

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            first = self.start + turn * self.block
            for index in range(first, first + self.block):
                yield _item(index, self.split, self.seed, self.resolution)
            turn += workers


@dataclass(frozen=True)
class ScenePictures:
    """Rendered scenes: pictures uint8 (N, 3, R, R), captions, scenes and, if asked for, foreground uint8 (N, R, R).

    foreground is 0 on the background and k on the visible pixels of object number k (1 for scene.objects[0]).
    """

    pictures: torch.Tensor
    captions: list[str]
    scenes: list[Scene]
    foreground: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)


def render_scenes(
    num_scenes: int,
    split: str = "train",
    seed: int = 0,
    resolution: int = 64,
    num_workers: int = 0,
    start: int = 0,
    progress: bool = False,
    with_masks: bool = False,
) -> ScenePictures:
    """Render scenes start, start + 1, ... into memory, in `num_workers` processes (0: in this one).

    `progress` shows a bar; `with_masks` adds the foreground. Raises ConfigError for a bad number or split.
    """
    _check(num_scenes=num_scenes, num_workers=num_workers, start=start)
    check_choice("split", split, SPLITS)
    check_resolution(resolution)
    pictures = np.empty((num_scenes, resolution, resolution, 3), dtype=np.uint8)
    foreground = np.empty((num_scenes, resolution, resolution), dtype=np.uint8) if with_masks else None
    firsts = range(0, num_scenes, _CHUNK)
    tasks = [(start + first, min(_CHUNK, num_scenes - first), split, seed, resolution, with_masks) for first in firsts]
    for first, (drawn, masks) in zip(firsts, _run(tasks, num_workers, progress), strict=True):
        pictures[first : first + len(drawn)] = drawn
        if foreground is not None and masks is not None:
            foreground[first : first + len(drawn)] = masks
    indices = range(start, start + num_scenes)
    return ScenePictures(
        pictures=torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(),
        captions=[caption_for(index, split, seed) for index in indices],
        scenes=[sample_scene(index, split, seed) for index in indices],
        foreground=None if foreground is None else torch.from_numpy(foreground),
    )


def _run(tasks: list[Task], num_workers: int, progress: bool) -> Iterator[Drawn]:
    if num_workers == 0:
        yield from _bar(map(render_chunk, tasks), len(tasks), progress)
        return
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from _bar(pool.map(render_chunk, tasks), len(tasks), progress)


def _bar(results: Iterator[Drawn], total: int, progress: bool) -> Iterator[Drawn]:
    if not progress:
        return results
    from tqdm.auto import tqdm

    return iter(tqdm(results, total=total, desc="drawing scenes"))
