"""What a training cell costs, before you run it: seconds on the reference machine, and on yours once it is measured."""

from __future__ import annotations

import html
import json
import logging
import math
from dataclasses import asdict
from pathlib import Path

from IPython.display import display

from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.lessons.progress import progress_path
from ldm_tutor.training.speed import Speed, slowdown
from ldm_tutor.weights.files import atomic_file

_log = logging.getLogger(__name__)


def speed_path() -> Path | None:
    """Where this machine's speed is kept: beside the progress file; None where that is switched off."""
    progress = progress_path()
    return None if progress is None else progress.with_name("speed.json")


def remember_speed(here: Speed) -> bool:
    """Keep what `ldm-tutor doctor` measured, for the cost cards; return whether it is kept. Never raises."""
    try:
        path = speed_path()
        if path is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(here)), encoding="utf-8")
        return True
    except (OSError, RuntimeError, WeightsError) as error:  # the last is what atomic_file makes of an OSError
        _log.debug("the speed cannot be kept: %s", error)
        return False


def remembered_speed() -> Speed | None:
    """Return what `ldm-tutor doctor` measured last on this machine; None where it has not, or cannot be read."""
    try:
        path = speed_path()
        if path is None or not path.is_file():
            return None
        speed = Speed(**json.loads(path.read_text(encoding="utf-8")))
        good = all(math.isfinite(value) and value > 0 for value in (speed.trained, speed.drawn))
        return speed if good else None
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        _log.debug("the speed cannot be read: %s", error)
        return None


def cost_card(what: str, seconds: float) -> None:
    """Show what the next cell costs. `seconds`: on the two CPU cores on which the lessons' times were taken."""
    if not 0 < seconds < math.inf:
        raise ConfigError("cost_card: seconds", given=seconds, expected="a positive number")
    reference = f"{what}: about {_duration(seconds)} on two CPU cores"
    here = remembered_speed()
    if here is None:
        more = "<code>ldm-tutor doctor</code> in a terminal measures how long it takes on your machine."
    else:
        more = f"On your machine: about {_duration(seconds * slowdown(here))}."
    card = (
        '<div style="border-left:4px solid #0072B2;padding:2px 10px" role="note">'
        f"<b>Cost.</b> {html.escape(reference)}. {more}</div>"
    )
    display({"text/plain": f"[cost] {reference}", "text/html": card}, raw=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
