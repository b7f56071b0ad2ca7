"""From training folders to the folder of conditions that the repository ships: half the size, logs, card, sums.

python -m ldm_tutor.training.ship_conditions runs/layout runs/holes data/weights/conditions

What is already in the target stays, so that conditions can be shipped one by one; figures that `ldm-tutor evaluate
layout --json data/weights/conditions/measured_layout.json` wrote stand in the card.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.config import CONDITIONS, ConditionConfig
from ldm_tutor.errors import WeightsError
from ldm_tutor.weights.files import load_model, read_header, save_model, write_sums

log = logging.getLogger(__name__)

NOTES = "NOTES.md"  # in the target: how the conditions were made, for the card
_FIGURES = {
    "layout": ("object_in_box", "mean_iou", "with_sentence.object_in_box", "with_sentence.mean_iou"),
    "inpainting": ("object_found", "outside_unchanged", "gain_over_mean_db", "gain_over_untrained_db"),
    "upscaling": ("perceptual_ratio", "psnr_gain_db", "consistency_db"),
}


def ship_conditions(runs: Sequence[Path], target: Path) -> Path:
    """Write every condition that lies in `runs` to `target` as float16, with its log; renew card and SHA256SUMS.

    Returns the card's path. WeightsError where the folders hold no condition.
    """
    (target / "logs").mkdir(parents=True, exist_ok=True)
    for run in runs:
        found = [kind for kind in CONDITIONS if (run / f"{kind}.safetensors").is_file()]
        if not found:
            raise WeightsError(f"{run}: no trained condition in it", expected=f"<kind>.safetensors of {CONDITIONS}")
        for kind in found:
            path = run / f"{kind}.safetensors"
            header = read_header(path)
            save_model(
                target / path.name,
                load_model(path, "condition"),
                kind="condition",
                config=ConditionConfig.from_dict(header["config"]),
                metadata=header["metadata"],
                dtype=torch.float16,
            )
            text = (run / f"{kind}.csv").read_text(encoding="utf-8")
            (target / "logs" / f"{kind}.csv").write_text(text, encoding="utf-8", newline="\n")
    return write_card(target)


def write_card(target: Path) -> Path:
    """Write the card of the conditions in `target` and SHA256SUMS over all files; return the card's path."""
    rows, figures = [], []
    for kind in CONDITIONS:
        path = target / f"{kind}.safetensors"
        if not path.is_file():
            continue
        header = read_header(path)
        metadata, config = header["metadata"], header["config"]
        count = sum(p.numel() for p in load_model(path, "condition").parameters())
        cells = (kind, f"{count:,}", f"{path.stat().st_size / 1e6:.1f} MB", config["rank"], metadata.get("steps"))
        minutes = f"{float(metadata.get('seconds', 0)) / 60:.1f}"
        rows.append(f"| {' | '.join(map(str, (*cells, metadata.get('samples'), minutes, metadata.get('base'))))} |")
        figures += _measured(target / f"measured_{kind}.json", kind)
    notes = target / NOTES
    card = target / "MODEL_CARD.md"
    card.write_text(
        _CARD.format(
            table="\n".join(rows),
            figures="\n".join(figures) or "| not measured yet | | | |",
            notes=notes.read_text(encoding="utf-8").strip() if notes.is_file() else "None.",
        ),
        encoding="utf-8",
        newline="\n",
    )
    write_sums(target)
    return card


def _measured(path: Path, kind: str) -> list[str]:
    """Return the card's rows of what `ldm-tutor evaluate` wrote to `path`."""
    if not path.is_file():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))["figures"]
    lines = []
    for name in _FIGURES.get(kind, ()):
        figure: dict[str, Any] = report
        for part in name.split("."):
            figure = figure[part]
        low, high = figure["interval"]
        lines.append(f"| {kind} {name} | {figure['value']:.4g} | {low:.4g} to {high:.4g} | {figure['num']} |")
    return lines


_CARD = """# Model card: conditions

What boxes, holes, small pictures, classes and label maps add to the U-Net of `data/weights/scenes`: low-rank
differences to its weights, weights for new input channels, an encoder. Each was trained by this project on scenes that
it draws itself. The last column tells the U-Net that the differences belong to; with another one `load_steered` refuses
them. MIT licence.

| condition | parameters | file | rank | steps | pictures seen | minutes | U-Net |
|---|---|---|---|---|---|---|---|
{table}

| measured | value | 95% interval | cases |
|---|---|---|---|
{figures}

Each `measured_<condition>.json` holds its command and the baselines.

## How they were made

{notes}

## Limits

64x64 scenes of one or two objects; layouts have at most three boxes, and boxes of another shape than the object's are
filled only in part. Held-out pairs of colour and object were never seen in training.
"""


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders that `ldm-tutor train` has written")
    parser.add_argument("target", type=Path, help="where the weights, their card and their sums go")
    given = parser.parse_args()
    log.info("written: %s", ship_conditions(given.runs, given.target))
