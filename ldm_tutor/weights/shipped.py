"""Where the weights are that come with the repository: `data/weights/<name>`."""

from __future__ import annotations

import os
from pathlib import Path

from ldm_tutor.errors import WeightsError

ENVIRONMENT_VARIABLE = "LDM_TUTOR_WEIGHTS"  # a folder to look in instead of <repository>/data/weights
_REPOSITORY = Path(__file__).resolve().parents[2]


def shipped_folder(name: str = "scenes") -> Path:
    """Return the folder of the shipped model `name`, whether it is there or not; training writes into it too."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    return (Path(chosen).expanduser() if chosen else _REPOSITORY / "data" / "weights") / name


def resolve(path: str | Path | None = None, name: str = "scenes") -> Path:
    """Return `path` if one is given, else the shipped folder; WeightsError if it is not there."""
    place = shipped_folder(name) if path is None else Path(path).expanduser()
    if place.exists():
        return place
    if path is not None:
        raise WeightsError(f"{place}: no such file or folder of weights", fix="leave the path out for the shipped ones")
    raise WeightsError(
        f"{place}: the weights that come with the course are not there",
        fix="get them again with git (git checkout data/weights), or train your own and name its folder, "
        f"or set {ENVIRONMENT_VARIABLE} to the folder that holds {name!r}",
    )
