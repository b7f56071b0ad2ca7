"""What lesson 06 measures on more pictures than a lesson can draw: quality against steps, one row for each sampler.

    python -m ldm_tutor.lessons.lesson_06_kit

draws NUM held-out sentences with every sampler and number of steps and writes figure_data/sampling.json: some twenty
minutes on one CPU core. Every point has the same sentences and seeds, so that two points differ by the sampler alone.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import draw_many, load_judge
from ldm_tutor.metrics.fid import frechet_distance, judge_features
from ldm_tutor.metrics.figures import share
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.models.condition import fingerprint
from ldm_tutor.models.judge import Judge
from ldm_tutor.pipeline import Pipeline, load_pipeline
from ldm_tutor.plots.figures import figure_style
from ldm_tutor.sampling.steps import dpmpp_2m_step
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Pictures, Tensor
from ldm_tutor.weights.files import atomic_file, load_model
from ldm_tutor.weights.shipped import resolve

Report = dict[str, Any]

STEPS: dict[str, tuple[int, ...]] = {"ddpm": (4, 8, 16, 32, 64), "ddim": (4, 8, 16, 32), "dpm++": (4, 8, 16, 32)}
NUM, NUM_REFERENCE = 256, 1000
LUMP_MEAN, LUMP_SPREAD = 1.0, 0.25  # the numbers of the exercise better_grid are drawn from this Gaussian
SCHEDULE = NoiseSchedule()
PATH = Path(__file__).with_name("figure_data") / "sampling.json"
_log = logging.getLogger("ldm_tutor.lessons.lesson_06_kit")


def weights_mark() -> str:
    """Return a fingerprint of the shipped U-Net's weights: which model some figures belong to."""
    return fingerprint(load_model(resolve() / "unet.safetensors", "unet"))


def measure(
    pipeline: Pipeline,
    judge: Judge,
    *,
    steps: dict[str, tuple[int, ...]] | None = None,
    num: int = NUM,
    num_reference: int = NUM_REFERENCE,
) -> Report:
    """Draw `num` held-out sentences at every point of `steps` (sampler: numbers of steps) and measure them.

    A row has the share of pictures that show all of their sentence, the share with the right kinds of object, and the
    Frechet distance of the judge's features. `real` and `decoded` are the same for the scenes themselves and for the
    scenes after the autoencoder: with few pictures the distance is far above 0 even there.
    """
    test = render_scenes(num, "test")
    requests = [parse(caption) for caption in test.captions]
    reference = judge_features(judge, to_float(render_scenes(num_reference, "train", 1).pictures))

    def look(pictures: Pictures) -> Report:
        found = attribute_accuracy(read_pictures(judge, pictures), requests)
        distance = frechet_distance(judge_features(judge, pictures), reference)
        return {
            "all": found["all"].to_dict(),
            "object": found["object"].to_dict(),
            "distance": round(distance, 3),
        }

    guidance, real = pipeline.drawing.guidance, to_float(test.pictures)
    with torch.inference_mode():
        decoded = torch.cat([pipeline.autoencoder(part).clamp(-1, 1) for part in real.split(64)])
    rows = []
    for sampler, counts in (steps or STEPS).items():
        for num_steps in counts:
            settings: Report = {"sampler": sampler, "num_steps": num_steps, "guidance": guidance, "batch_size": 32}
            made = torch.cat(list(draw_many(pipeline, test.captions, **settings)))
            rows.append({"sampler": sampler, "num_steps": num_steps, **look(made)})
            _log.info("%s", rows[-1])
    return {"num": num, "num_reference": num_reference, "guidance": guidance, "weights": weights_mark(),
            "real": look(real), "decoded": look(decoded), "rows": rows}  # fmt: skip


def load_figures(path: Path = PATH) -> Report:
    """Return the stored figures; ConfigError where they are not there or not whole."""
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))
        points = {(row["sampler"], row["num_steps"]) for row in report["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the figures of lesson 06 in {path.name}", given=type(error).__name__,
            fix="get them again with git, or measure them: python -m ldm_tutor.lessons.lesson_06_kit",
        ) from error  # fmt: skip
    missing = {(sampler, n) for sampler, counts in STEPS.items() for n in counts} - points
    if missing:
        raise ConfigError("the figures of lesson 06: points that are missing", given=sorted(missing), expected="none")
    return report


def curve(report: Report, sampler: str, what: str) -> tuple[list[int], list[float]]:
    """Return the numbers of steps and the values of one sampler; `what` is all, object or distance."""
    rows = sorted((row for row in report["rows"] if row["sampler"] == sampler), key=lambda row: row["num_steps"])
    values = [row[what] if what == "distance" else row[what]["value"] for row in rows]
    return [row["num_steps"] for row in rows], values


def quality_figure(report: Report) -> Figure:
    """Draw the share of pictures that are all right, and the distance, over the steps; grey lines for real scenes."""
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.2))
        for panel, what in zip(axes, ("all", "distance"), strict=True):
            for sampler, style in zip(STEPS, ("o-", "s--", "^:"), strict=True):
                panel.plot(*curve(report, sampler, what), style, label=sampler)
            for kind, line in {"decoded": "-.", "real": "--"}.items():
                level = report[kind][what]
                value = level if what == "distance" else level["value"]
                panel.axhline(value, linestyle=line, color="0.5", label=f"{kind} scenes")
            ticks = sorted({n for counts in STEPS.values() for n in counts})
            panel.set(xscale="log", xlabel="steps", xticks=ticks, xticklabels=ticks)
            panel.minorticks_off()
        axes[0].set(title="pictures that show all of their sentence", ylim=(0, 1.05))
        axes[1].set(title="Fréchet distance (lower is better)", ylim=(0, None))
        axes[0].legend(fontsize=9)
    return figure


def quality_table(report: Report) -> str:
    """Return the figures as text, and whether they belong to the weights that are here."""
    lines = [f"measured on the weights that are here: {report['weights'] == weights_mark()}"]
    for row in report["rows"]:
        value, (low, high) = row["all"]["value"], row["all"]["interval"]
        shares = f"all right {value:.0%} ({low:.0%} to {high:.0%})"
        lines.append(f"{row['sampler']:6} {row['num_steps']:2} steps: {shares}, distance {row['distance']:.1f}")
    return "\n".join(lines)


def judged(pictures: Pictures, captions: list[str]) -> tuple[str, list[int]]:
    """Return how many pictures show all of their sentence, as text, and which show more things than were asked for.

    The shipped judge reads the pictures.
    """
    pairs = list(zip(read_pictures(load_judge(), pictures), map(parse, captions), strict=True))
    right = share([asked.is_met_by(seen.objects, seen.background) for seen, asked in pairs])
    assert right.interval is not None
    low, high = right.interval
    told = f"{round(right.value * right.num)} of {right.num} (the truth is between {low:.0%} and {high:.0%})"
    return told, [k for k, (seen, asked) in enumerate(pairs) if len(seen.objects) > len(asked.objects)]


def lump_eps(x: Tensor, a: float, mean: float = LUMP_MEAN, spread: float = LUMP_SPREAD) -> Tensor:
    """Return the noise that the ideal denoiser sees in x when the clean numbers are Gaussian: exact."""
    return math.sqrt(1 - a) * (x - math.sqrt(a) * mean) / (a * spread**2 + 1 - a)


def grid_error(grid: Sequence[int]) -> float:
    """Return how far DPM-Solver++(2M) lands from the exact end on these time steps, for Gaussian numbers.

    The run starts from 81 numbers between -2 and 2 at grid[0] and ends clean; the error is the mean of the gaps.
    """
    start = torch.linspace(-2, 2, 81, dtype=torch.float64).view(1, 1, 1, -1)
    x, before, x0_before = start, None, None
    for t, t_prev in pairwise([*grid, None]):
        assert t is not None
        result = dpmpp_2m_step(x, lump_eps(x, float(SCHEDULE.alpha_bar[t])), t, t_prev, SCHEDULE, before, x0_before)
        x, before, x0_before = result.x_prev, t, result.x0_hat
    a = float(SCHEDULE.alpha_bar[grid[0]])
    exact = LUMP_MEAN + LUMP_SPREAD * (start - math.sqrt(a) * LUMP_MEAN) / math.sqrt(a * LUMP_SPREAD**2 + 1 - a)
    return float((x - exact).abs().mean())


def main() -> int:
    """Measure with the shipped model and write the figures."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    report = measure(load_pipeline(), load_judge())
    PATH.parent.mkdir(exist_ok=True)
    with atomic_file(PATH) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
