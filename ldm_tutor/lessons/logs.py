"""The shipped model's training curves, for lessons to show."""

from __future__ import annotations

import csv
from pathlib import Path

from ldm_tutor.errors import WeightsError
from ldm_tutor.weights.shipped import resolve


def shipped_log(stage: str, folder: str | Path | None = None) -> dict[str, list[float]]:
    """Return a stage's log as columns: step, samples, seconds, and the losses; WeightsError if there is none."""
    path = resolve(folder) / "logs" / f"{stage}.csv"
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*.csv"))
        raise WeightsError(f"no training log {path}", given=stage, expected=f"one of {known}")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
