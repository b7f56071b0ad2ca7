"""How long each notebook runs, as a table for the README: `python -m ldm_tutor.lessons.times --write`.

`make notebooks` leaves the times of its cells in build/notebooks.xml (pytest's --junit-xml). With `--write` they go
into the README's table; a lesson that was not measured keeps its minutes, or has those of its fact box. Without it
the two are compared, which CI does: the exit code is 1 where a lesson is missing or takes much longer than is said.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.lessons.build import ROOT
from ldm_tutor.lessons.course import LESSONS

README, RESULTS = ROOT / "README.md", ROOT / "build" / "notebooks.xml"
START, END = "<!-- lessons: start -->", "<!-- lessons: end -->"
COMING = "coming"
FACTOR, GRACE = 3.0, 1.0  # how far a measured time may be beyond the table's: so many times, plus so many minutes
_STEM = re.compile(r"(?:^|[./])(\d\d_\w+)\.ipynb")
_ROW = re.compile(r"^\| \[?(\d\d_\w+)[^|]*\|[^|]*\| *([^|]+?) *\|$", re.MULTILINE)
_log = logging.getLogger("ldm_tutor.lessons.times")


def measured_seconds(results: Path) -> dict[str, float]:
    """Return the seconds of each notebook from a JUnit file of nbval; ConfigError where there is none in it."""
    try:
        cases = list(ElementTree.parse(results).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        raise ConfigError(f"times: {results} cannot be read", given=str(error), fix="run `make notebooks`") from error
    seconds: dict[str, float] = {}
    for case in cases:
        if match := _STEM.search(case.get("classname", "")):
            seconds[match[1]] = seconds.get(match[1], 0.0) + float(case.get("time", 0))
    if not seconds:
        raise ConfigError(f"times: {results} has no notebooks", given=len(cases), expected="nbval's cells")
    return seconds


def minutes(seconds: float) -> int:
    """Whole minutes, rounded up."""
    return max(1, math.ceil(seconds / 60))


def facts_minutes() -> dict[str, int]:
    """The minutes that the fact boxes of the built lessons state."""
    return {each.stem: minutes(each.facts.seconds_to_run) for each in LESSONS if each.facts is not None}


def table(times: Mapping[str, int]) -> str:
    """Return the README's table. `times`: minutes by the names of the notebooks; others are still coming."""
    rows = ["| Lesson | The question | Minutes to run |", "|---|---|---|"]
    for lesson in LESSONS:
        link = f"[{lesson.stem}](notebooks/{lesson.stem}.ipynb)" if lesson.stem in times else lesson.stem
        rows.append(f"| {link} | {lesson.question} | {times.get(lesson.stem, COMING)} |")
    return "\n".join(rows)


def stated(text: str) -> dict[str, int]:
    """Read the minutes out of a README; ConfigError without the two markers around the table."""
    return {name: int(value) for name, value in _ROW.findall(_inside(text)) if value != COMING}


def replaced(text: str, times: Mapping[str, int]) -> str:
    """Return a README with the table of these minutes."""
    return text.replace(f"{START}{_inside(text)}{END}", f"{START}\n{table(times)}\n{END}")


def _inside(text: str) -> str:
    found = re.search(f"{re.escape(START)}(.*?){re.escape(END)}", text, re.DOTALL)
    if found is None:
        raise ConfigError("times: the README has no table of lessons", expected=f"{START} ... {END}")
    return found[1]


def complaints(told: Mapping[str, int], seconds: Mapping[str, float]) -> list[str]:
    """Say what is wrong with the README's minutes, beside the seconds that were measured."""
    found = [f"{name}: ran, and is not in the README's table" for name in seconds if name not in told]
    for name, value in told.items():
        took = seconds.get(name, 0.0) / 60
        if took > FACTOR * value + GRACE:
            found.append(f"{name}: took {took:.1f} minutes, the README says {value}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the README's table with measured times, or write it; the exit code is 1 where something is wrong."""
    parser = argparse.ArgumentParser(description="The minutes that each notebook runs, for the README.")
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="JUnit file of `make notebooks`")
    parser.add_argument("--write", action="store_true", help="put the measured minutes into the README")
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        text = options.readme.read_text(encoding="utf-8")
        measured = options.results.is_file() or not options.write
        seconds = measured_seconds(options.results) if measured else {}
        for name, value in sorted(seconds.items()):
            _log.info("%s: %.0f s", name, value)
        if options.write:
            times = facts_minutes() | stated(text) | {name: minutes(value) for name, value in seconds.items()}
            options.readme.write_text(replaced(text, times), encoding="utf-8", newline="\n")
            return 0
        problems = complaints(stated(text), seconds)
    except TutorError as error:
        problems = [str(error)]
    for problem in problems:
        _log.error("%s", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
