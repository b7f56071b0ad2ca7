"""What lesson 09 needs beside its own code: the table of an alignment, a judge's colour, and edits measured in number.

    ldm-tutor evaluate editing --num 300 --sampler euler-a --json editing.json
    python -m ldm_tutor.lessons.lesson_09_kit editing.json

keeps the figures of that measurement, half an hour on one CPU core, as figure_data/editing.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.lesson_06_kit import weights_mark
from ldm_tutor.metrics.editing import FACTORS, color_margin
from ldm_tutor.metrics.reading import SeenThing
from ldm_tutor.models.judge import Judge
from ldm_tutor.plots.figures import COLORS, figure_style
from ldm_tutor.shapes import Float, Pictures, Tensor
from ldm_tutor.weights.files import atomic_file

Report = dict[str, Any]
PATH = Path(__file__).with_name("figure_data") / "editing.json"
WAYS = {"same seed": "_reprompt", "no local blend": "_no_blend", "no self-attention": "_no_self", "default edit": ""}


def alignment_figure(
    best: Float[Tensor, "rows columns"],
    first: Sequence[str],
    second: Sequence[str],
    pairs: Sequence[tuple[int, int]],
) -> Figure:
    """Draw the table of Needleman and Wunsch with its numbers, and a ring around each pair that belongs together."""
    with figure_style():
        figure, axes = plt.subplots(figsize=(6.4, 4.2))
        axes.imshow(best, cmap="cividis", aspect="auto")
        middle = (float(best.min()) + float(best.max())) / 2
        for i, row in enumerate(best.tolist()):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="w" if value < middle else "k")
        rows, columns = [i + 1 for i, _ in pairs], [j + 1 for _, j in pairs]
        axes.scatter(columns, rows, s=420, facecolors="none", edgecolors=COLORS["vermilion"], linewidths=2.5)
        axes.set_xticks(range(len(second) + 1), ["", *second], rotation=30, ha="right")
        axes.set_yticks(range(len(first) + 1), ["", *first])
        axes.set(xlabel="target", ylabel="source")
        axes.grid(visible=False)
    return figure


def color_sure(judge: Judge, pictures: Pictures, thing: SeenThing | None, color: str) -> list[float]:
    """Return how sure the judge is, 0 to 1, that what stands where `thing` was has the colour, in each picture."""
    if thing is None:
        raise ConfigError("color_sure: the judge has found no such thing", given=None, fix="take another seed")
    count = len(pictures)
    margins = color_margin(judge, pictures, [(thing.x, thing.y)] * count, [color] * count)
    return [1 / (1 + math.exp(-margin)) for margin in torch.tensor(margins).clamp(-50, 50).tolist()]


def keep(path: Path, target: Path = PATH) -> None:
    """Keep the figures of `ldm-tutor evaluate editing`, and which U-Net they belong to."""
    made = json.loads(path.read_text(encoding="utf-8"))
    kept = {"settings": made["settings"], "weights": weights_mark(), "figures": made["figures"]}
    target.parent.mkdir(exist_ok=True)
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def load_measured(path: Path = PATH) -> Report:
    """Return the figures that are kept, flat: name -> {value, interval, num}; ConfigError where they are not there."""
    try:
        report: Report = json.loads(path.read_text(encoding="utf-8"))["figures"]
        assert report["swap_new_object"]["num"] > 0
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"the figures of lesson 09 in {path.name}",
            given=type(error).__name__,
            fix="get them again with git, or measure them as ldm_tutor/lessons/lesson_09_kit.py says",
        ) from error
    return report


def measured_figure(report: Report) -> Figure:
    """Draw what is kept: the background, the swaps' verdicts, the colour over the factor, and the ignored colour."""
    with figure_style():
        figure, panels = plt.subplots(2, 2, figsize=(10, 6.4))
        for panel, what, title in (
            (panels[0, 0], "background_psnr", "background outside the boxes, dB"),
            (panels[0, 1], "", "swaps that the judge finds right"),
        ):
            groups = {"no place": "swap", "place named": "swap_named_places"}
            names = {f"{g}": f"{key}{{}}_{what}" for g, key in groups.items()}
            if not what:
                names = {"new thing": "swap{}_new_object", "all else": "swap{}_rest_kept"}
            for k, (way, suffix) in enumerate(WAYS.items()):
                for x, name in enumerate(names.values()):
                    _bar(panel, x + 0.2 * (k - 1.5), report[name.format(suffix)], f"C{k}", way if x == 0 else None)
            panel.set_xticks(range(len(names)), list(names))
            panel.set(title=title, ylim=(0, 62 if what else 1.05))  # dB, with room for the names
        panels[0, 0].legend(fontsize=9, loc="upper left", ncols=2)
        for way, line, told in (("", "o-", "text tower too"), ("_token", "s--", "U-Net only")):
            values = [report[f"reweight{way}_color.{factor:g}"]["value"] for factor in FACTORS]
            panels[1, 0].plot(FACTORS, values, line, label=told)
        panels[1, 0].set(title="re-weighted colour: judge's probability", xlabel="factor", ylim=(0, 1.05))
        panels[1, 0].legend(fontsize=9)
        ignored = {"as it is": "source", "U-Net\nignores it": "token", "text tower\ntoo": "edit"}
        for x, name in enumerate(ignored.values()):
            for k, (suffix, told) in enumerate((("", "the colour"), ("_others", "all else"))):
                entry = report[f"ignore.color.{name}{suffix}"]
                _bar(panels[1, 1], x + 0.2 * (2 * k - 1), entry, f"C{k}", told if x == 0 else None, 0.36)
        panels[1, 1].axhline(1 / 8, color="0.4", linestyle="--", linewidth=1, label="chance")
        panels[1, 1].set_xticks(range(len(ignored)), list(ignored))
        panels[1, 1].set(title="a colour word ignored: still right", ylim=(0, 1.3))
        panels[1, 1].legend(fontsize=9, loc="upper left", ncols=3)
    return figure


def _bar(axes: Any, x: float, entry: Report, color: str, label: str | None, width: float = 0.19) -> None:
    value, (low, high) = entry["value"], entry["interval"]
    axes.bar(x, value, width, color=color, label=label, yerr=[[value - low], [high - value]], capsize=3)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
