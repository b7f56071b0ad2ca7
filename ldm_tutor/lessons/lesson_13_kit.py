"""What lesson 13 needs beside its own code: data, launching and killing processes, and its figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from ldm_tutor.config import UNetConfig
from ldm_tutor.data.scenes.datasets import render_scenes
from ldm_tutor.errors import TutorError
from ldm_tutor.lessons.lesson_13_worker import INPUTS
from ldm_tutor.losses.denoising import noise_loss
from ldm_tutor.models.autoencoder import DiagonalGaussian
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.work import work_of
from ldm_tutor.plots.figures import COLORS, figure_style
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Tensor
from ldm_tutor.training.bill import BACKWARD
from ldm_tutor.training.stages.denoiser import cache_moments
from ldm_tutor.weights.course_clip import load_course_clip
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve

CPU = torch.device("cpu")
LAUNCH = (
    *("-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)
PLAIN, SHARDED = ("--multi_gpu",), ("--use_fsdp", "--fsdp_version", "2")
_TIMEOUT = 300.0  # seconds after which a launched training counts as stuck


# ---------------------------------------------------------------- data


class Batches:
    """Scenes as latents, with their sentences: what every training of this lesson looks at."""

    def __init__(self, num_scenes: int) -> None:
        folder = resolve()
        self.scenes = render_scenes(num_scenes, "train", 13)
        self.autoencoder = load_model(folder / "autoencoder.safetensors", "autoencoder")
        clip, self.tokenizer = load_course_clip(folder)
        self.text_encoder = clip.text
        self.moments = cache_moments(self.autoencoder, self.scenes.pictures, device=CPU, dtype=torch.float32)
        self.scale_factor = self.autoencoder.config.scale_factor
        self.tokens = self.tokenizer(self.scenes.captions)
        with torch.no_grad():
            self.context = self.text_encoder(self.tokens)
        self.schedule = NoiseSchedule()

    def draw(self, batch_size: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a batch of step `seed`: noisy latents, times, context, and the noise to be found."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(self.moments), (batch_size,), generator=generator)
        x0 = self.scale_factor * DiagonalGaussian(self.moments[chosen].float()).sample(generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(self.schedule.num_steps, (batch_size,), generator=generator)
        return self.schedule.add_noise(x0, noise, t), t.float(), self.context[chosen], noise

    def exam(self, unet: UNet, batch_size: int = 96) -> float:
        """Return the noise loss on a batch that no training draws."""
        x_t, t, context, noise = self.draw(batch_size, 999_999)
        with torch.no_grad():
            return float(noise_loss(unet(x_t, t, context), noise).mean())

    def keep(self, folder: Path) -> Path:
        """Write what the worker needs into a new folder; return it."""
        folder.mkdir(parents=True)
        inputs = {"moments": self.moments, "tokens": self.tokens, "empty": self.tokenizer.empty(1)}
        save_file(inputs | {"scale": torch.tensor(self.scale_factor)}, folder / INPUTS)
        return folder


def training_bytes(config: UNetConfig, batch_size: int, side: int, tokens: int) -> int:
    """Return the most memory that one training step's own tensors take, without the weights; counted and not run."""

    def make() -> Callable[[], None]:
        forward = _forward(config, batch_size, side, tokens)

        def step() -> None:
            with torch.enable_grad():
                forward().square().mean().backward()

        return step

    return work_of(make).peak_bytes


def step_work(config: UNetConfig, batch_size: int, side: int, tokens: int) -> int:
    """Return the multiply-adds of one training step, forward and backward, counted and not run."""
    return BACKWARD * work_of(lambda: _forward(config, batch_size, side, tokens)).multiply_adds


def _forward(config: UNetConfig, batch_size: int, side: int, tokens: int) -> Callable[[], Tensor]:
    unet = UNet(config)
    latents, t = torch.randn(batch_size, config.in_channels, side, side), torch.zeros(batch_size)
    context = torch.randn(batch_size, tokens, config.context_dim or 1)
    return lambda: unet(latents, t, context)


# ---------------------------------------------------------------- processes


def steps_of(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Return the lines that a process has written so far, one per step."""
    path = folder / f"steps.{rank}.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def losses_of(folder: Path, rank: int = 0) -> list[float]:
    """Return the loss of each step, once; where a step was made twice, the second time."""
    by_step = {row["step"]: row["loss"] for row in steps_of(folder, rank)}
    return [by_step[step] for step in sorted(by_step)]


def start(folder: Path, steps: int, team: Sequence[str] = (), restarts: int = 0) -> subprocess.Popen[bytes]:
    """Start the worker in a process of its own, or with `team` PLAIN or SHARDED in two; their words go to a file."""
    module = ("-m", "ldm_tutor.lessons.lesson_13_worker", str(folder), str(steps))
    launch = (*LAUNCH, *team, "--max_restarts", str(restarts)) if team else ()
    # Standalone: a meeting point on a free port, so that launches beside each other do not meet by mistake.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PET_STANDALONE": "1"}
    with open(folder / "said.log", "ab") as said:
        return subprocess.Popen([sys.executable, *launch, *module], env=environment, stdout=said, stderr=said)


def finish(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Wait for what `start` gave; return its exit code, negative where a signal ended it."""
    try:
        return process.wait(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        process.kill()
        said = (folder / "said.log").read_text(encoding="utf-8", errors="replace")[-500:]
        raise TutorError(f"the training in {folder.name} is stuck", given=said) from error


def kill_after(process: subprocess.Popen[bytes], folder: Path, step: int, rank: int = 0) -> int:
    """Kill -9 the worker `rank` once it has made `step` steps; return how many it had made in fact."""
    until = time.monotonic() + _TIMEOUT
    while time.monotonic() < until:
        rows = steps_of(folder, rank)
        if rows and rows[-1]["step"] >= step:
            os.kill(rows[-1]["pid"], signal.SIGKILL)
            return rows[-1]["step"]
        if process.poll() is not None:
            said = (folder / "said.log").read_text(encoding="utf-8", errors="replace")[-500:]
            raise TutorError(f"the training in {folder.name} ended before step {step}", given=said)
        time.sleep(0.01)
    raise TutorError(f"the training in {folder.name} has not reached step {step}")


# ---------------------------------------------------------------- figures


def curves_figure(
    curves: Mapping[str, Sequence[float] | tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str
) -> Figure:
    """Lines by name, each of values, or of places and values; every second one dashed, so that equal ones are seen."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(7, 2.9))
        for number, (name, curve) in enumerate(curves.items()):
            xs, ys = curve if isinstance(curve, tuple) else (range(1, len(curve) + 1), curve)
            style: dict[str, Any] = {"linestyle": ("-", "--", ":", "-.")[number % 4], "linewidth": 3 - 0.4 * number}
            axes.plot(xs, ys, label=name, **style)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend()
    return figure


def ring_figure(history: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """For each moment: how many processes' numbers are in each part (columns) that a process (rows) holds."""
    with figure_style():
        figure, panels = plt.subplots(1, len(history), figsize=(1.75 * len(history), 2.2))
        for axes, held, title in zip(panels, history, titles, strict=True):
            axes.imshow(held, cmap="Blues", vmin=0, vmax=len(held))
            for row in range(held.shape[0]):
                for column in range(held.shape[1]):
                    count = int(held[row, column])
                    ink = "white" if count > 0.6 * len(held) else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=9)
            axes.set(title=title, xticks=[], yticks=[])
            axes.grid(visible=False)
        panels[0].set(xlabel="part", ylabel="process")
    return figure


def stacked_bars(rows: Mapping[str, Mapping[str, float]], xlabel: str) -> Figure:
    """Horizontal bars made of pieces; `rows[name][piece]`."""
    shades = (COLORS["blue"], COLORS["orange"], COLORS["green"])
    with figure_style():
        figure, axes = plt.subplots(figsize=(7.4, 0.9 + 0.42 * len(rows)))
        for name, pieces in rows.items():
            left = 0.0
            for shade, (piece, value) in zip(shades, pieces.items(), strict=False):
                first = name == next(iter(rows))
                axes.barh(name, value, left=left, color=shade, label=piece if first else None)
                left += value
        axes.invert_yaxis()
        axes.set(xlabel=xlabel)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(shades))
    return figure


def log_bars(values: Mapping[str, float], xlabel: str) -> Figure:
    """Horizontal bars on a logarithmic axis, the last in another colour."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(7, 2.4))
        shades = [COLORS["orange"]] * (len(values) - 1) + [COLORS["blue"]]
        axes.barh(list(values), list(values.values()), color=shades)
        axes.set(xscale="log", xlabel=xlabel)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return figure
