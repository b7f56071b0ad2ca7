"""Training inside a lesson: a live curve before the band of earlier runs, and one line that says how yours went.

A lesson's training cell is a generator that yields one loss per step. `follow` runs it and draws; `steps_for` reads
the learner's choice: "quick" (what the lesson needs), "full" (as long as the shipped run) or "load" (do not train).
"""

from __future__ import annotations

import html
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.plots.figures import COLORS, figure_style, png_bytes, show
from ldm_tutor.weights.files import atomic_file

MODES = ("quick", "full", "load")
SMOOTH = 20  # steps that one point of the curve looks back on
REDRAW_SECONDS = 0.5
CURVE = "[live curve]"  # how the words of a curve begin that is drawn while a cell runs


@dataclass(frozen=True)
class Band:
    """Between which values the smoothed loss of several runs of the same training lay, step by step."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    num_runs: int

    def holds(self, losses: Sequence[float]) -> bool:
        """Whether the smoothed loss ends inside the band of the same step, or lower, give or take a tenth."""
        if not losses:
            return False
        at = min(len(losses), len(self.high)) - 1
        return smooth(losses)[-1] <= 1.1 * self.high[at]


def band_of(runs: Sequence[Sequence[float]]) -> Band:
    """Return the band of several runs of equal length; ConfigError where there are fewer than two, or they differ."""
    if len(runs) < 2 or len({len(run) for run in runs}) != 1 or not runs[0]:
        raise ConfigError("band_of: runs", given=[len(run) for run in runs], expected="two or more of equal length")
    columns = list(zip(*(smooth(run) for run in runs), strict=True))
    rounded = [(float(f"{min(column):.4g}"), float(f"{max(column):.4g}")) for column in columns]
    return Band(tuple(low for low, _ in rounded), tuple(high for _, high in rounded), len(runs))


def save_band(path: Path, band: Band) -> None:
    """Write a band as JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(band)) + "\n", encoding="utf-8")


def band_path(lesson: str) -> Path:
    """Where the band of a lesson lies, by the lesson's slug."""
    return Path(__file__).with_name("band_data") / f"{lesson}.json"


def shipped_band(lesson: str) -> Band:
    """Return the band that comes with the course, by the lesson's slug (`ldm_tutor.lessons.bands` makes it)."""
    return load_band(band_path(lesson))


def load_band(path: Path) -> Band:
    """Read what `save_band` wrote; ConfigError for a file that is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Band(tuple(map(float, values["low"])), tuple(map(float, values["high"])), int(values["num_runs"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"load_band: {path} is no band of losses", given=str(error)) from error


def smooth(values: Sequence[float], window: int = SMOOTH) -> list[float]:
    """Return the mean of each value and the up to `window` - 1 before it: as many values as came in."""
    means, total = [], 0.0
    for k, value in enumerate(values):
        total += value - (values[k - window] if k >= window else 0.0)
        means.append(total / min(k + 1, window))
    return means


def steps_for(mode: str, *, quick: int, full: int) -> int:
    """Return how many steps the learner's choice means; 0 for "load". ConfigError for another word."""
    if mode not in MODES:
        raise ConfigError("the way to train", given=mode, expected=f"one of {MODES}")
    return {"quick": quick, "full": full, "load": 0}[mode]


def follow(
    losses: Iterable[float],
    num_steps: int,
    alt: str,
    *,
    band: Band | None = None,
    marks: dict[str, float] | None = None,
) -> list[float]:
    """Run a training that yields one loss per step, draw its curve meanwhile and in the end; return the losses.

    `alt` describes the finished figure. `marks`: names and heights of lines to compare with. Stopping the cell keeps
    what was done so far and says so. Raises TutorError at the first loss that is no number.
    """
    if num_steps < 1:
        raise ConfigError(
            "follow: num_steps", given=num_steps, expected="1 or more; with 'load' there is nothing to train"
        )
    picture, line = ipywidgets.Image(format="png"), ipywidgets.HTML()
    view = ipywidgets.VBox([line, picture])
    _display_live(view)
    seen: list[float] = []
    drawn = -math.inf
    try:
        for loss in losses:
            seen.append(float(loss))
            if not math.isfinite(seen[-1]):
                raise TutorError(
                    f"the loss at step {len(seen)} is {seen[-1]}",
                    fix="look at what changed before it: the learning rate, a division, a logarithm",
                )
            if time.monotonic() - drawn > REDRAW_SECONDS:
                picture.value = png_bytes(_curve(seen, num_steps, band, marks))
                line.value = _progress(seen, num_steps)
                drawn = time.monotonic()
            if len(seen) == num_steps:
                break
    except KeyboardInterrupt:
        _say(f"stopped by you after {len(seen)} of {num_steps} steps; what was learned so far is kept")
    else:
        if len(seen) < num_steps:
            _say(f"ended after {len(seen)} of {num_steps} steps")
    finally:
        for part in (view, line, picture):
            part.layout.close()
            part.close()
    if not seen:
        return seen
    show(_curve(seen, num_steps, band, marks), alt=alt)
    if band is not None:
        _say(f"ends in the band of {band.num_runs} earlier runs, below, or a tenth above: {band.holds(seen)}")
    return seen


def _display_live(view: ipywidgets.VBox) -> None:
    forms: Any = view._repr_mimebundle_()
    forms = dict(forms[0] if isinstance(forms, tuple) else forms)
    text = "While this cell runs, its curve is drawn here."
    forms |= {"text/plain": f"{CURVE} {text}", "text/html": f"<p>{text}</p>"}
    display(forms, raw=True)


def _say(text: str) -> None:
    display({"text/plain": text}, raw=True)


def _progress(seen: Sequence[float], num_steps: int) -> str:
    text = f"step {len(seen)} of {num_steps}, loss {smooth(seen)[-1]:.3f}"
    return f'<p role="status">{html.escape(text)}</p>'


def _curve(seen: Sequence[float], num_steps: int, band: Band | None, marks: dict[str, float] | None) -> Any:
    with figure_style():
        figure, axes = plt.subplots(figsize=(6.4, 3.2))
        if band is not None:
            steps = range(1, min(num_steps, len(band.low)) + 1)
            label = f"{band.num_runs} earlier runs"
            axes.fill_between(
                steps, band.low[: len(steps)], band.high[: len(steps)], color=COLORS["sky"], alpha=0.45, label=label
            )
        axes.plot(range(1, len(seen) + 1), smooth(seen), color=COLORS["vermilion"], label="yours")
        for name, height in (marks or {}).items():
            axes.axhline(height, color=COLORS["black"], linestyle=":", label=name)
        axes.set(xlabel="step", ylabel="loss", xlim=(0, num_steps))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)  # above, where no curve can run into it
    return figure
