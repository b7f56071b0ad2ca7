"""Which exercises you have passed: a small file of your own, kept between sessions. Losing it loses only ticks."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from ldm_tutor.errors import WeightsError
from ldm_tutor.weights.files import atomic_file

VARIABLE = "LDM_TUTOR_PROGRESS"  # another path for the file; "off" keeps nothing
_log = logging.getLogger(__name__)


def progress_path() -> Path | None:
    """Where the file is: the variable LDM_TUTOR_PROGRESS, or the system's folder for data; None when switched off."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen:
        return None if chosen.lower() == "off" else Path(chosen).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = home / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return folder / "ldm_tutor" / "progress.json"


def passed_exercises() -> frozenset[str]:
    """The addresses (`start_here.compression`) of all exercises passed so far; none if the file cannot be read."""
    try:
        path = progress_path()
        return frozenset() if path is None else _read(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        _log.debug("the progress file cannot be read: %s", error)
        return frozenset()


def record_pass(address: str) -> bool:
    """Add an exercise to the file, whole or not at all. Returns whether it is kept; never raises.

    A file that is there and cannot be read just now stays as it is: what it holds must not be lost.
    """
    try:
        path = progress_path()
        if path is None:
            return False
        passed = _read(path)
        if address not in passed:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                text = json.dumps({"version": 1, "passed": sorted(passed | {address})}, indent=1)
                temporary.write_text(text + "\n", encoding="utf-8")
        return True
    except (OSError, RuntimeError, WeightsError) as error:  # the last is what atomic_file makes of an OSError
        _log.debug("the progress file cannot be written: %s", error)
        return False


def _read(path: Path) -> frozenset[str]:
    """Return what the file holds, nothing where there is none or it is broken; OSError where it cannot be read."""
    if not path.is_file():
        return frozenset()
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["passed"]
        return frozenset(name for name in names if isinstance(name, str))
    except (ValueError, KeyError, TypeError) as error:
        _log.debug("the progress file is broken: %s", error)
        return frozenset()
