"""Run lessons as a learner does who runs cells more than once, and measure the memory of their kernels.

    .venv/bin/python bench/run_lessons.py               # all lessons, once each: seconds and peak memory
    .venv/bin/python bench/run_lessons.py --twice 05    # every cell twice in a row, then all cells once more

The exit code is 1 if a cell fails or if a kernel takes more than --limit GB. The notebooks are read and not changed.
The memory is the peak of the resident set, of the kernel and, apart, of the largest process that it started; Linux
and macOS tell it.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat

from ldm_tutor.errors import TutorError
from ldm_tutor.lessons.build import NOTEBOOKS, execute


def repeated(notebook, twice):
    """The code cells of a notebook to run: once, or each twice in a row and then all again."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    passes = [(cell, "") for cell in cells]
    if twice:
        passes = [(cell, when) for cell in cells for when in ("", " again")] + [
            (cell, " in a second pass") for cell in cells
        ]
    run = nbformat.v4.new_notebook(metadata=notebook.metadata)
    for number, (cell, when) in enumerate(passes):
        fresh = nbformat.v4.new_code_cell(cell.source, id=f"run-{number}")
        fresh.metadata["where"] = f"{cell.id}{when}"
        fresh.metadata["may_fail"] = "raises-exception" in cell.metadata.get("tags", [])
        run.cells.append(fresh)
    return run


def failures(run):
    """What went wrong, by cell: an error, or words on stderr."""
    found = []
    for cell in run.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" and not cell.metadata.get("may_fail"):
                found.append(f"{cell.metadata.get('where', cell.id)}: {output.ename}: {output.evalue[:200]}")
            if output.get("name") == "stderr":
                found.append(f"{cell.metadata.get('where', cell.id)}: stderr: {output.text[:200]}")
    return found


def run_lesson(path, twice=False):
    """Run a notebook; returns seconds, the two peaks and the list of failures."""
    run = repeated(nbformat.read(path, as_version=4), twice)
    start = time.perf_counter()
    try:
        peaks, problems = execute(run, path.parent, stop=False), []
    except TutorError as error:  # a cell that never ends
        peaks, problems = (0, 0), [str(error)]
    return time.perf_counter() - start, peaks, [*problems, *failures(run)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", help="numbers, such as 05; without one, all")
    parser.add_argument("--twice", action="store_true", help="every cell twice in a row, then all cells once more")
    parser.add_argument(
        "--limit", type=float, default=4.0, metavar="GB", help="most memory of a kernel, GB of 1e9 bytes"
    )
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="folder of the notebooks")
    options = parser.parse_args(arguments)
    paths = [
        path
        for path in sorted(options.notebooks.glob("*.ipynb"))
        if not options.lessons or path.name[:2] in options.lessons
    ]
    if not paths:
        parser.error(f"no such lesson in {options.notebooks}")
    print(f"{'lesson':26} {'seconds':>8} {'peak GB':>8} {'of others':>9}  failures", flush=True)
    wrong = 0
    for path in paths:
        seconds, (kernel, others), problems = run_lesson(path, options.twice)
        if kernel > options.limit * 1e9:
            problems.append(f"the kernel takes {kernel / 1e9:.1f} GB, the limit is {options.limit:g}")
        print(f"{path.stem:26} {seconds:8.0f} {kernel / 1e9:8.2f} {others / 1e9:9.2f}  {len(problems)}", flush=True)
        for problem in problems:
            print(f"    {problem}", flush=True)
        wrong += len(problems)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
