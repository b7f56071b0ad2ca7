"""Which exercises you have passed: a small file of your own, kept between sessions. Losing it loses only ticks."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

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
        if path is None or not path.is_file():
            return frozenset()
        names = json.loads(path.read_text(encoding="utf-8"))["passed"]
        return frozenset(name for name in names if isinstance(name, str))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # RuntimeError: there is no home folder
        _log.debug("the progress file cannot be read: %s", error)
        return frozenset()


def record_pass(address: str) -> bool:
    """Add an exercise to the file, whole or not at all. Returns whether it is kept; never raises."""
    passed = passed_exercises()
    if address in passed:
        return True
    temporary = None
    try:
        path = progress_path()
        if path is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": 1, "passed": sorted(passed | {address})}, indent=1) + "\n"
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            temporary = file.name
            file.write(text)
        os.replace(temporary, path)
        return True
    except (OSError, RuntimeError) as error:
        _log.debug("the progress file cannot be written: %s", error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        return False
