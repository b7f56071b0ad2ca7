"""The small training that lesson 13 starts as processes of its own, alone or in a team, kills, and starts again.

python -m ldm_tutor.lessons.lesson_13_worker FOLDER STEPS       alone, or under accelerate launch
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from ldm_tutor.config import UNetConfig
from ldm_tutor.models.unet import UNet
from ldm_tutor.training.learner import Learner
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.processes import Team, join, local
from ldm_tutor.training.stages.denoiser import DenoiserStage
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve

INPUTS = "inputs.safetensors"
BATCH = 16
SAVE_EVERY = 0.1  # seconds


def small_unet(context_dim: int) -> UNetConfig:
    """Return the configuration of the U-Net that this lesson trains."""
    return UNetConfig(
        channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(1,),
        num_heads=2,
        context_dim=context_dim,
        norm_groups=4,
    )


def build_stage(folder: Path, team: Team, accumulate: int = 1) -> DenoiserStage:
    """Return the course's own denoiser stage with the small U-Net, on the latents and sentences kept in `folder`."""
    inputs = load_file(folder / INPUTS)
    clip = load_model(resolve() / "clip.safetensors", "clip")
    torch.manual_seed(0)
    stage = DenoiserStage(
        small_unet(clip.text.config.width),
        inputs["moments"],
        float(inputs["scale"]),
        clip.text,
        inputs["tokens"][:, None],
        inputs["empty"],
        device=torch.device("cpu"),
        dtype=torch.float32,
        batch_size=BATCH,
        peak_lr=2e-3,
        team=team,
        accumulate=accumulate,
    )
    stage.learner.warmup = 20
    return stage


def held_numbers(learner: Learner[UNet]) -> int:
    """Return how many numbers of the weights lie in this process."""
    return sum(local(parameter).numel() for parameter in learner.network.parameters())


def main(folder: Path, steps: int) -> None:
    """Train up to `steps`, from the checkpoint where there is one; write one line per step into a file per process."""
    torch.set_num_threads(1)
    team = join("cpu")
    stage = build_stage(folder, team)
    resume = (folder / "denoiser.checkpoint").is_file()
    records = train(stage, Budget(steps=steps), folder, resume=resume, save_every=SAVE_EVERY, team=team)
    held = held_numbers(stage.learner)
    with open(folder / f"steps.{team.rank}.jsonl", "a", encoding="utf-8") as file:
        for record in records:
            row = {"step": record.step, "loss": record.values["loss"], "pid": os.getpid(), "held": held}
            file.write(json.dumps(row) + "\n")
            file.flush()
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
