"""The study of lesson 16, one command; `lesson_16_show` has what the lesson shows of it.

    python -m ldm_tutor.lessons.lesson_16_kit                      # five runs, four minutes of one thread each

What is equal in all runs: data, sentences, latents, text encoder, batch, learning rate, seeds, the seconds of one
thread, and (within 4%) the parameters. What differs is the question that the network is asked, and in one run the
network. Every run writes one JSON file and a strip of pictures into data/weights/lesson_16.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons.lesson_11_kit import NUM_SCENES, Exam, Report, one_object, write_pictures, write_text
from ldm_tutor.models.dit import DiTConfig
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.sampling.velocity import sample_flow, sees_noise
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Latents, Pictures
from ldm_tutor.training.objectives import FlowStage, VelocityStage
from ldm_tutor.training.study import LatentSpace, Space, StudyData, StudyStage, build_stage, cost_of, run
from ldm_tutor.weights.course_clip import load_course_clip
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve, shipped_folder

SECONDS = (30.0, 60.0, 120.0, 240.0)  # of one thread, when a run is looked at
CALLS = (5, 10, 20, 40)  # how often the network is asked per picture, at the end
NUM_CALLS, GUIDANCE, BATCH = 20, 3.0, 32
LABELS = {
    "noise": "noise",
    "noise_weighed": "noise, weighed",
    "v": "v",
    "flow": "flow",
    "dit": "flow, DiT",
}
RUNS = tuple(LABELS)
RULES = {name: ("euler", "heun") if name in ("flow", "dit") else ("ddim", "dpm++") for name in RUNS}
DIT = DiTConfig(side=16, width=88, depth=4, num_heads=4, context_dim=128)  # as many parameters as the study's U-Net
_log = logging.getLogger("ldm_tutor.lessons.lesson_16_kit")


class FlowStudy(FlowStage, StudyStage):
    """Flow matching at a constant learning rate."""


class VelocityStudy(VelocityStage, StudyStage):
    """v-prediction at a constant learning rate."""


def build(name: str, space: Space, data: StudyData) -> StudyStage:
    """Return a fresh run's stage, as in lesson 11; ConfigError for a name that is not in RUNS."""
    if name not in RUNS:
        raise ConfigError("lesson 16's study: unknown run", given=name, expected=f"one of {RUNS}")
    kinds: dict[str, type[StudyStage]] = {"v": VelocityStudy, "flow": FlowStudy, "dit": FlowStudy}
    return build_stage(
        space,
        data,
        batch_size=BATCH,
        kind=kinds.get(name, StudyStage),
        config=DIT if name == "dit" else None,
        balance_steps=name == "noise_weighed",
    )


def walk(name: str, denoiser: Guided, noise: Latents, rule: str, num_calls: int) -> Latents:
    """Return what a run's network makes of noise when it is asked `num_calls` times, by a rule of RULES."""
    schedule = NoiseSchedule()
    if rule in ("euler", "heun"):
        num_steps = num_calls if rule == "euler" else (num_calls + 1) // 2  # heun asks twice, but once in the last step
        return list(sample_flow(denoiser, noise, sampler=rule, num_steps=num_steps))[-1].latents
    answer = sees_noise(denoiser, schedule) if name == "v" else denoiser
    end = {"final_alpha_one": True} if rule == "ddim" else {}
    states = sample(answer, noise, schedule, sampler=rule, num_steps=num_calls, spacing="trailing", **end)  # type: ignore[arg-type]
    return list(states)[-1].latents


class Study:
    """One run and its report, which grows with it. It goes on where `scratch` says it stopped."""

    def __init__(self, name: str, exam: Exam, data: StudyData, tokenizer: Tokenizer, space: Space) -> None:
        self.name, self.exam, self.space = name, exam, space
        self.stage = build(name, space, data)
        with torch.inference_mode():
            self.context = data.text_encoder(tokenizer(exam.captions))
            self.empty = data.text_encoder(data.empty)
        self.made = exam.real

    @torch.inference_mode()
    def draw(self, net: Any, rule: str, num_calls: int) -> Pictures:
        """Draw the exam's sentences, number i from the noise of seed i."""
        made = []
        for start in range(0, self.exam.num, BATCH):
            seeds = list(range(start, min(start + BATCH, self.exam.num)))
            denoiser = Guided(net, self.context[seeds], self.empty, GUIDANCE)
            noise = PictureNoise(seeds).initial(self.space.shape)
            made.append(self.space.to_pictures(walk(self.name, denoiser, noise, rule, num_calls)))
        return torch.cat(made)

    def look(self, net: Any) -> Report:
        """Grade what the simplest rule draws."""
        self.made = self.draw(net, RULES[self.name][0], NUM_CALLS)
        return self.exam.grade(self.made)

    def train(self, seconds: Sequence[float], folder: Path, scratch: Path) -> Report:
        """Train, look at each of `seconds`, ask more and less often at the end, and write report and pictures."""
        report: Report = {
            "name": self.name,
            "settings": {**self.stage.settings, "guidance": GUIDANCE, "num_calls": NUM_CALLS},
            "parameters": sum(each.numel() for each in self.stage.learner.network.parameters()),
            "multiply_adds": cost_of(self.stage.config, self.space.shape[1]).multiply_adds,
            "num_test": self.exam.num,
            "real": self.exam.grade(self.exam.real),
            "rows": [],
            "calls": {},
        }
        for row in run(self.stage, scratch / self.name, self.look, seconds):
            report["rows"].append({**row, "loss": round(row["loss"], 5)})
            _log.info("%s %s", self.name, row)
        write_pictures(folder / f"pictures_{self.name}.png", self.made)
        for rule in RULES[self.name]:
            graded = {num: self.exam.grade(self.draw(self.stage.learner.ema, rule, num)) for num in CALLS}
            report["calls"][rule] = {str(num): grade for num, grade in graded.items()}
        write_text(folder / f"study_{self.name}.json", json.dumps(report, indent=1) + "\n")
        return report


def study(names: Sequence[str], folder: Path, scratch: Path, seconds: Sequence[float] = SECONDS) -> None:
    """Train the runs one after the other, on the latents and the sentences of the shipped model."""
    weights = resolve()
    clip, tokenizer = load_course_clip(weights)
    space = LatentSpace(load_model(weights / "autoencoder.safetensors", "autoencoder"))
    exam, scenes = Exam(load_judge()), one_object(NUM_SCENES, "train")
    data = StudyData(scenes.pictures, tokenizer(scenes.captions)[:, None], tokenizer.empty(1), clip.text)
    for name in names:
        Study(name, exam, data, tokenizer, space).train(seconds, folder, scratch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the runs that are named; without a name all of them."""
    parser = argparse.ArgumentParser(prog="python -m ldm_tutor.lessons.lesson_16_kit", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="run", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--out", type=Path, default=shipped_folder("lesson_16"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/lesson_16"), help="of checkpoints; go on from there")
    parser.add_argument("--seconds", type=float, nargs="+", default=list(SECONDS))
    given = parser.parse_args(arguments)
    if unknown := [each for each in given.runs if each not in RUNS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(RUNS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)  # the study's seconds are those of one thread
    given.out.mkdir(parents=True, exist_ok=True)
    study(given.runs or RUNS, given.out, given.scratch, given.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
