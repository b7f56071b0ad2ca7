"""Make the bands behind the lessons' training curves: `python -m ldm_tutor.lessons.bands 03`.

A source has its training in a cell with the tag `band`, which sets SEED and ends with `follow(...)`. The cells up to it
run once, then that cell with five other seeds; from the losses of these runs `follow` draws the band.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.lessons import live_training
from ldm_tutor.lessons.build import find_sources, read_source
from ldm_tutor.lessons.live_training import Band, band_of, save_band

SEEDS = (1, 2, 3, 4, 5)
_SEED = re.compile(r"^SEED = \d+$", re.MULTILINE)
_log = logging.getLogger("ldm_tutor.lessons.bands")


def make_band(source: Path, seeds: Sequence[int] = SEEDS) -> Band:
    """Run a lesson up to its training, then the training once per seed; ConfigError where no cell is tagged `band`."""
    cells = [cell for cell in read_source(source).cells if cell.cell_type == "code"]
    tagged = [k for k, cell in enumerate(cells) if "band" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ConfigError(f"{source.name}: cells with the tag 'band'", given=len(tagged), expected="one")
    training = cells[tagged[0]].source
    if len(_SEED.findall(training)) != 1:
        raise ConfigError(f"{source.name}: the cell tagged 'band'", given="no line SEED = 0", expected="one such line")
    runs: list[list[float]] = []
    real: Any = live_training.follow

    def collect(losses: Any, num_steps: int, alt: str, **_: Any) -> list[float]:
        runs.append([loss for _, loss in zip(range(num_steps), losses, strict=False)])
        return runs[-1]

    def none(lesson: str) -> None:
        return None

    names: dict[str, Any] = {"__name__": "__lesson__"}
    lessons: Any = live_training
    before = lessons.shipped_band
    lessons.follow, lessons.shipped_band = collect, none
    try:
        for cell in cells[: tagged[0]]:
            exec(compile(cell.source, cell.id, "exec"), names)
        for seed in seeds:
            exec(compile(_SEED.sub(f"SEED = {seed}", training), source.stem, "exec"), names)
            _log.info("%s, seed %d: ends at %.4f", source.stem, seed, runs[-1][-1])
    finally:
        lessons.follow, lessons.shipped_band = real, before
    return band_of(runs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the bands of the lessons named; the exit code is 1 where something is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("MPLBACKEND", "agg")
    try:
        for source in find_sources(list(sys.argv[1:] if arguments is None else arguments)):
            save_band(live_training.band_path(source.stem[3:]), make_band(source))
    except TutorError as error:
        _log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
