"""The card that goes with a model of your own: what it learned from, how it was made, what was measured, its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_tutor.errors import ConfigError
from ldm_tutor.weights.files import atomic_file, read_header

PARTS = {"autoencoder": "autoencoder.safetensors", "clip": "clip.safetensors", "denoiser": "unet.safetensors"}


def model_card(
    name: str,
    *,
    data: str,
    data_licence: str,
    commands: Sequence[str],
    measured: Mapping[str, str],
    limits: Sequence[str],
    weights: Path | None = None,
    machine: str = "",
) -> str:
    """Return a model card in Markdown. With `weights`, a table of the trainings is read from the files' own headers.

    Raises ConfigError for a card that leaves out what a reader needs most: the data's licence, or the limits.
    """
    for what, told in (("data_licence", data_licence), ("limits", limits), ("measured", measured)):
        if not told:
            raise ConfigError(f"model_card: {what} is empty", expected="what is known of it, in words")
    lines = [f"# Model card: {name}", "", "## Learned from", "", f"{data} Licence of the pictures: {data_licence}."]
    lines += ["", "## How it was made", ""]
    lines += ["```sh", *commands, "```", ""]
    if weights is not None:
        lines += [*_trainings(weights), ""]
    if machine:
        lines += [f"Machine: {machine}.", ""]
    lines += ["## Measured", "", "| what | value |", "|---|---|"]
    lines += [f"| {what} | {value} |" for what, value in measured.items()]
    lines += ["", "## Limits", "", *(f"- {each}" for each in limits), ""]
    return "\n".join(lines)


def _trainings(weights: Path) -> list[str]:
    rows = ["| stage | steps | pictures seen | minutes |", "|---|---|---|---|"]
    for stage, file in PARTS.items():
        if not (weights / file).is_file():
            continue
        told: dict[str, Any] = read_header(weights / file)["metadata"]
        minutes = f"{float(told['seconds']) / 60:.1f}" if "seconds" in told else ""
        rows.append(f"| {stage} | {told.get('steps', '')} | {told.get('samples', '')} | {minutes} |")
    return rows


def write_card(path: Path, text: str) -> Path:
    """Write a card, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path
