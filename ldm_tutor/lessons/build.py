"""From a lesson's source to its notebook: `python -m ldm_tutor.lessons.build 00`, with `--check` only compared.

With `--refresh` nothing is run: the text and the course map are made anew where the code has not changed.

A source is a jupytext percent script, `docs/lessons/NN_slug.py`; tags stand in the cell markers. The notebook is
`notebooks/NN_slug.ipynb`, run from top to bottom and tidied, so that a second build gives the same bytes.
Needs the `test` extra (jupytext, nbformat, nbclient).
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient, output_widget
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.lessons.course import course_map_data
from ldm_tutor.lessons.full_size import fill
from ldm_tutor.lessons.live_training import CURVE
from ldm_tutor.lessons.progress import VARIABLE
from ldm_tutor.lessons.terms import expand

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "docs" / "lessons"
NOTEBOOKS = ROOT / "notebooks"
CELL_SECONDS = 600
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# The last thing that a kernel is asked: bytes at its peak, of itself and of the largest process that it started.
_ASK_MEMORY = """import json, sys
try:
    import resource
    _unit, _whose = 1 if sys.platform == "darwin" else 1024, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    _peaks = [_unit * resource.getrusage(each).ru_maxrss for each in _whose]
    if sys.platform == "linux":  # there ru_maxrss also counts the process that started this one
        with open("/proc/self/status") as _status:
            _peaks[0] = 1024 * next(int(line.split()[1]) for line in _status if line.startswith("VmHWM"))
    print("PEAK", json.dumps(_peaks))
except ImportError:  # Windows
    import psutil
    print("PEAK", json.dumps([psutil.Process().memory_info().peak_wset, 0]))
"""
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,16}")
_log = logging.getLogger("ldm_tutor.lessons.build")


def find_sources(names: Sequence[str], folder: Path = SOURCES) -> list[Path]:
    """Return the sources whose number or name is asked for, all without a name; ConfigError where there is none."""
    there = sorted(folder.glob("[0-9][0-9]_*.py"))
    if not names:
        names = [path.stem for path in there]
    found = []
    for name in names:
        matching = [path for path in there if name in (path.stem, path.stem[:2], path.stem[3:])]
        if not matching:
            raise ConfigError("build: no such lesson", given=name, expected=f"one of {[path.stem for path in there]}")
        found += matching
    if not found:
        raise ConfigError(f"build: no lesson source in {folder}", fix="run it in a checkout of the repository")
    return found


def target_of(source: Path, folder: Path = NOTEBOOKS) -> Path:
    """Where the notebook of a source lies."""
    return folder / f"{source.stem}.ipynb"


def read_source(source: Path) -> NotebookNode:
    """Return a source as a notebook without outputs; a cell's id is the lesson's name and the cell's place."""
    script = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": dict(KERNEL), "language_info": {"name": "python"}})
    for index, cell in enumerate(script.cells):
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        metadata = {key: cell.metadata[key] for key in ("tags", "jupyter") if key in cell.metadata}
        text = cell.source if cell.cell_type == "code" else expand(fill(cell.source), source.stem[3:])
        notebook.cells.append(make(text, id=f"{source.stem}-{index:03d}", metadata=metadata))
    nbformat.validate(notebook)
    return notebook


def execute(notebook: NotebookNode, folder: Path, *, stop: bool = True) -> tuple[int, int]:
    """Run all cells in order in a fresh kernel, inside `folder`; TutorError names the cell that fails.

    Returns the bytes at the peak of the kernel and of the largest process that it started; 0 where nobody tells. With
    `stop` False the cells after one that fails are run too, and its error is among its outputs.

    nbclient's stand-in for Output widgets can hang (nbclient issue 312), so it is switched off while this runs.
    """
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=KERNEL["name"],
        record_timing=False,
        coalesce_streams=True,
        allow_errors=not stop,
        resources={"metadata": {"path": str(folder)}},
    )
    environment = os.environ | {VARIABLE: "off", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    stand_in: Any = output_widget.OutputWidget
    real, stand_in.sync_state = stand_in.sync_state, lambda self: None
    memory = nbformat.v4.new_code_cell(_ASK_MEMORY, id="memory")
    notebook.cells.append(memory)
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        failed = next(
            (cell for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"), None
        )
        raise TutorError(f"build: cell {failed.id if failed else '?'} stops: {error.ename}: {error.evalue}") from error
    except DeadKernelError as error:  # such as one that was killed for its memory
        last = next((cell for cell in notebook.cells if cell.cell_type == "code" and not cell.execution_count), None)
        where = last.id if last else "?"
        raise TutorError(f"build: the kernel died in cell {where}", given=str(error)[:300]) from error
    except CellTimeoutError as error:
        raise TutorError(f"build: a cell takes longer than {CELL_SECONDS} seconds", given=str(error)[-300:]) from error
    finally:
        stand_in.sync_state = real
        notebook.cells.remove(memory)
    told = re.search(r"PEAK \[(\d+), (\d+)\]", "".join(output.get("text", "") for output in memory.outputs))
    return (int(told[1]), int(told[2])) if told else (0, 0)


def tidy(notebook: NotebookNode) -> None:
    """Take out, in place, what differs from run to run, and views of widgets that are no more.

    What differs are widget states and numbers, times, folds and addresses.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["kernelspec"] = dict(KERNEL)
    numbers: dict[str, str] = {}
    for cell in notebook.cells:
        for name in ("execution", "collapsed", "scrolled"):
            cell.metadata.pop(name, None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.get("text/plain", "").startswith(CURVE):
                data.pop(WIDGET_VIEW, None)  # it is closed when the training ends; its figure stands below
            if WIDGET_VIEW in data:
                model = data[WIDGET_VIEW]["model_id"]
                data[WIDGET_VIEW]["model_id"] = numbers.setdefault(model, f"{len(numbers) + 1:032x}")
            for holder, name in ((data, "text/plain"), (output, "text")):
                if isinstance(holder.get(name), str):
                    holder[name] = _ADDRESS.sub("0x0", holder[name])


def build(source: Path, target: Path) -> tuple[float, int]:
    """Build one notebook; return the seconds and the bytes that its kernel took. The old one stays if a cell fails."""
    notebook = read_source(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    most, _ = execute(notebook, target.parent)
    seconds = time.perf_counter() - start
    tidy(notebook)
    _write(notebook, target)
    return seconds, most


def refresh(source: Path, target: Path) -> None:
    """Give a notebook its source's text and today's course map without running it.

    TutorError where a code cell has changed: only a run can say what that prints.
    """
    fresh = read_source(source)
    stored = nbformat.read(target, as_version=4) if target.is_file() else nbformat.v4.new_notebook()
    codes = [[cell for cell in each.cells if cell.cell_type == "code"] for each in (fresh, stored)]
    if [cell.source for cell in codes[0]] != [cell.source for cell in codes[1]]:
        raise TutorError(f"build: the code of {target.name} is not its source's", fix="build it without --refresh")
    for ours, theirs in zip(*codes, strict=True):
        ours.outputs, ours.execution_count = theirs.outputs, theirs.execution_count
        for output in ours.outputs:
            if output.get("data", {}).get("text/plain", "").startswith("[course map] "):
                output["data"] = course_map_data(source.stem)
    _write(fresh, target)


def _write(notebook: NotebookNode, target: Path) -> None:
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8", newline="\n")
    temporary.replace(target)


def differences(source: Path, target: Path) -> list[str]:
    """Say where the cells of a notebook are not those of its source; nothing is run, outputs are not looked at."""
    if not target.is_file():
        return [f"{target.name}: missing, build it with: python -m ldm_tutor.lessons.build {source.stem[:2]}"]
    wanted = read_source(source).cells
    found = nbformat.read(target, as_version=4).cells
    problems = []
    if len(wanted) != len(found):
        problems.append(f"{target.name}: {len(found)} cells, the source has {len(wanted)}")
    for ours, theirs in zip(wanted, found, strict=False):
        for part in ("cell_type", "id", "source", "metadata"):
            if ours[part] != theirs[part]:
                problems.append(f"{target.name}, cell {ours.id}: another {part.replace('_', ' ')} than in the source")
                break
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Build or check the lessons named on the command line; the exit code is 1 where something is wrong."""
    parser = argparse.ArgumentParser(description="Build the lessons' notebooks from their sources.")
    parser.add_argument("lessons", nargs="*", help="numbers or names, such as 00 or start_here; without one, all")
    parser.add_argument("--check", action="store_true", help="only compare each notebook's cells with its source")
    parser.add_argument("--refresh", action="store_true", help="run nothing: only text and course map anew")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="folder of the sources")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="folder of the notebooks")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    problems: list[str] = []
    os.environ[VARIABLE] = "off"  # no one's progress belongs on a stored map
    try:
        for source in find_sources(options.lessons, options.sources):
            target = target_of(source, options.notebooks)
            if options.check:
                problems += differences(source, target)
                continue
            if options.refresh:
                refresh(source, target)
                continue
            seconds, most = build(source, target)
            size = target.stat().st_size // 1000
            _log.info("%s: %.1f s, %d kB, memory at the peak %.2f GB", target.name, seconds, size, most / 1e9)
    except TutorError as error:
        problems.append(str(error))
    for problem in problems:
        _log.error("%s", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
