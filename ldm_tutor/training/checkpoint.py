"""Checkpoints that survive a kill: written beside the old one, then put in its place in one move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldm_tutor.errors import WeightsError
from ldm_tutor.weights.files import atomic_file


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; at any moment the path holds a whole checkpoint, the old one or the new one."""
    try:
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
    except (WeightsError, OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise WeightsError(
            f"the checkpoint {path} cannot be written ({error})",
            fix="the previous checkpoint, if there was one, is whole; make room or choose another --out",
        ) from error


def read_checkpoint(path: Path, *, stage: str, settings: dict[str, Any], complete: bool = False) -> dict[str, Any]:
    """Return the state written by `write_checkpoint`, on the CPU, after checking that it belongs to this run.

    `settings`: what must be as it was; `complete`: these are all, and the checkpoint may have no other.
    Raises WeightsError where the file is missing, broken, of another stage, or of other settings (which are named).
    """
    if not path.is_file():
        raise WeightsError(f"no checkpoint to resume at {path}", fix="start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can break the unpickler in any way
        raise WeightsError(
            f"the checkpoint {path} cannot be read", expected="a file written by ldm-tutor train", fix=str(error)[:200]
        ) from error
    if not isinstance(state, dict) or state.get("stage") != stage:
        raise WeightsError(f"the checkpoint {path} is not one of the stage {stage!r}")
    for name in {**settings, **state["settings"]} if complete else settings:
        if state["settings"].get(name) != settings.get(name):
            raise WeightsError(
                f"the checkpoint {path} was made with another {name}",
                given=settings.get(name),
                expected=f"{state['settings'].get(name)!r}, or another --out",
                fix="repeat the options with which the run began",
            )
    return state
