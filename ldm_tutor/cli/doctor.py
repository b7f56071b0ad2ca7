"""`ldm-tutor doctor`: is everything here, and how fast is this machine?"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from ldm_tutor.cli.files import table
from ldm_tutor.cli.options import PROGRAM
from ldm_tutor.errors import TutorError

EXAMPLE = "Example: ldm-tutor doctor --no-speed"
INSTALL = "run `make lab`, or `python -m pip install -c constraints.txt -e .` in the course's folder"
LEAST_PYTHON = (3, 11)
VISION_AHEAD = 15  # torch 2.11 belongs to torchvision 0.26, 2.12 to 0.27, and so on
GIGABYTE = 10**9

OK, FAIL, NOTE = "OK", "FAIL", "NOTE"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; `fix` is what to do."""

    mark: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"[{self.mark}]".ljust(7) + self.text
        return f"{line}\n       -> {self.fix}" if self.fix else line


def doctor(
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Also measure how fast this machine is.")] = True,
) -> None:
    """Check the installation and measure this machine; every line that says FAIL comes with what to do."""
    failures = 0
    for check in (*CHECKS, _speed) if speed else CHECKS:
        for finding in _safely(check):
            print(finding, flush=True)
            failures += finding.mark == FAIL
    if failures:
        print(f"\nWhat failed: {failures}. Do what stands after the arrows, then run {PROGRAM} doctor again.")
        raise typer.Exit(1)
    print("\nEverything that the course needs is here.")


def _safely(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn a check that breaks into a failure: a sick installation is what the doctor is for."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(FAIL, f"{check.__name__.strip('_')}: {type(error).__name__}: {error}", INSTALL)


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    least = ".".join(map(str, LEAST_PYTHON))
    if sys.version_info[:2] >= LEAST_PYTHON:
        yield Finding(OK, f"Python {found} ({sys.executable})")
    else:
        yield Finding(FAIL, f"Python {found}, needed {least} or newer", "name a newer one: make lab PYTHON=/path/to/it")


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(PROGRAM) or []
    except metadata.PackageNotFoundError:
        yield Finding(FAIL, f"the course itself is not installed into {sys.prefix}", INSTALL)
        return
    for need in map(Requirement, lines):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        asked = f", needed {need.specifier}" if need.specifier else ""
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Finding(FAIL, f"{need.name} is missing{asked}", INSTALL)
            continue
        good = need.specifier.contains(found, prereleases=True)
        yield Finding(OK if good else FAIL, f"{need.name} {found}{asked}", "" if good else INSTALL)


def _torch_pair() -> Iterator[Finding]:
    import torch
    import torchvision.ops

    pair = f"torch {torch.__version__} and torchvision {torchvision.__version__}"
    minors = [int(module.__version__.split(".")[1]) for module in (torch, torchvision)]
    if minors[1] - minors[0] != VISION_AHEAD:
        expected = f"0.{minors[0] + VISION_AHEAD}"
        yield Finding(FAIL, f"{pair} are no pair: this torch belongs to torchvision {expected}", INSTALL)
        return
    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)  # fails if its code does not fit
    yield Finding(OK, f"{pair} are a pair, and torchvision's operators run")


def _disk() -> Iterator[Finding]:
    place = Path.cwd()
    free = shutil.disk_usage(place).free / GIGABYTE
    text = f"{free:.1f} GB free for {place}"
    if free < 0.5:
        yield Finding(FAIL, text, "free at least 0.5 GB: a training run writes checkpoints, weights and logs")
    else:
        yield Finding(OK if free >= 2 else NOTE, text, "" if free >= 2 else "enough to begin; 2 GB are comfortable")


def _memory() -> Iterator[Finding]:
    total = memory_bytes() / GIGABYTE
    if not total:
        yield Finding(NOTE, "this system does not tell how much memory it has", "the lessons need about 4 GB")
    elif total < 1.9:
        yield Finding(FAIL, f"{total:.1f} GB of memory", "the lessons need about 4 GB: use another machine")
    else:
        low = "" if total >= 3.8 else "close other programs before a lesson that trains; 4 GB are comfortable"
        yield Finding(NOTE if low else OK, f"{total:.1f} GB of memory", low)


def memory_bytes() -> int:
    """Return the machine's memory, or what a container may use of it; 0 where the system does not tell."""
    if sys.platform == "win32":
        import ctypes

        kilobytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return kilobytes.value * 1024
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total


def _device() -> Iterator[Finding]:
    import torch

    from ldm_tutor.training.learner import pick_device, pick_dtype

    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    pays = pick_dtype("auto", device) == torch.bfloat16
    yield Finding(OK, f"computes on {name}; threads: {torch.get_num_threads()}, processors: {os.cpu_count()}")
    yield Finding(NOTE, f"bfloat16 is {'' if pays else 'not '}faster here: training takes {_name(pays)} by itself")


def _name(bfloat16: bool) -> str:
    return "bfloat16" if bfloat16 else "float32"


def _weights() -> Iterator[Finding]:
    from ldm_tutor.weights.files import SUMS_FILE, check_sums
    from ldm_tutor.weights.shipped import shipped_folder

    folder = shipped_folder()
    again = "get it again: git checkout -- data/weights"
    if not folder.is_dir():
        yield Finding(FAIL, f"the weights that come with the course are not in {folder}", again)
        return
    listed = next((place for place in (folder, folder.parent) if (place / SUMS_FILE).is_file()), folder)
    try:
        names = check_sums(listed)
    except TutorError as error:
        yield Finding(FAIL, str(error), again)
    else:
        yield Finding(OK, f"weights in {listed}: {len(names)} files, all as listed")


def _jupyter() -> Iterator[Finding]:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        yield Finding(FAIL, "Jupyter has no kernel called python3", INSTALL)
        return
    program = spec.argv[0]
    if program.startswith("python"):  # a bare name: Jupyter then takes the Python that it runs under
        program = sys.executable
    if os.path.normcase(program) == os.path.normcase(sys.executable):
        yield Finding(OK, f"Jupyter's kernel python3 runs {program}")
    else:
        fix = f"if a lesson misses a package: {sys.executable} -m ipykernel install --sys-prefix"
        yield Finding(NOTE, f"Jupyter's kernel python3 runs {program}, and this is {sys.executable}", fix)


CHECKS = (_python, _packages, _torch_pair, _disk, _memory, _device, _weights, _jupyter)


def _speed() -> Iterator[Finding]:
    import torch

    from ldm_tutor.lessons.cost import remember_speed
    from ldm_tutor.training.learner import pick_device, pick_dtype
    from ldm_tutor.training.speed import REFERENCE, measure, slowdown

    print("\nMeasuring the speed, about ten seconds ...", flush=True)
    here = measure(torch.device("cpu"), torch.float32)  # as the lessons run, whatever else there is
    remember_speed(here)  # for the lessons' cost cards
    yield Finding(OK, f"trains the U-Net on {here.trained:.0f} pictures/s (reference {REFERENCE.trained:.0f}/s)")
    yield Finding(OK, f"draws a picture in 20 steps in {here.drawn:.2f} s (reference {REFERENCE.drawn:.2f} s)")
    device = pick_device()
    dtype = pick_dtype("auto", device)
    if (device.type, dtype) != ("cpu", torch.float32):
        fast = measure(device, dtype)
        numbers = str(dtype).removeprefix("torch.")
        yield Finding(OK, f"with {device} and {numbers}, as ldm-tutor train runs: {fast.trained:.0f} pictures/s")
    rows = [("lesson", "minutes to run here", "minutes of reference")]
    rows += [(name, f"{each * slowdown(here):.1f}", f"{each:.1f}") for name, each in lesson_minutes().items()]
    print(f"\n{table(rows)}")


def lesson_minutes() -> dict[str, float]:
    """Return how long each built lesson runs on the reference machine, by the course map."""
    from ldm_tutor.lessons.course import LESSONS

    return {lesson.stem: lesson.facts.seconds_to_run / 60 for lesson in LESSONS if lesson.facts is not None}
