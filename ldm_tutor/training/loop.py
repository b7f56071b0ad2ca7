"""The training loop, as a generator: one record per step, so that a lesson can stop, look, and go on.

A step's random numbers depend on the seed and the step's number alone. So a run that was stopped and resumed makes the
same steps, with the same numbers, as one that never stopped.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.training.checkpoint import read_checkpoint, write_checkpoint
from ldm_tutor.training.learner import Learner
from ldm_tutor.training.processes import ALONE, Team, local
from ldm_tutor.weights.files import atomic_file

log = logging.getLogger(__name__)

MUCH_SLOWER = 3.0  # times the fastest so far, from which something else must have taken the processor


class Stage(Protocol):
    """What one training stage brings: its networks, and what one step does."""

    name: str
    batch_size: int
    learners: dict[str, Learner[Any]]
    settings: dict[str, Any]  # what must be equal for a checkpoint to fit

    def train_step(self, generator: torch.Generator, progress: float) -> dict[str, float]:
        """Make one step with random numbers from `generator`; return the values to log."""
        ...

    def finish(self, folder: Path, history: dict[str, Any]) -> list[Path]:
        """Write the finished weights into `folder` and return the paths."""
        ...


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or minutes of wall time; one of the two."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError("Budget", given=(self.steps, self.minutes), expected="either steps or minutes")
        if self.steps is not None and self.steps < 1:
            raise ConfigError("--steps", given=self.steps, expected="1 or more")
        if self.minutes is not None and not (0 < self.minutes < math.inf):
            raise ConfigError("--minutes", given=self.minutes, expected="a positive number")

    def progress(self, steps: int, seconds: float) -> float:
        """Return the share of the budget that is used up, 0 to 1."""
        used = steps / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1))
        return min(1.0, used)


@dataclass(frozen=True)
class StepRecord:
    """What one step reports. `seconds` counts training time over all resumed parts of the run."""

    step: int  # steps done so far
    samples: int
    seconds: float
    progress: float
    values: dict[str, float] = field(default_factory=dict)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random numbers of one step: a CPU generator seeded by seed and step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def train(
    stage: Stage,
    budget: Budget,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    save_every: float = 120.0,
    notes: dict[str, Any] | None = None,
    team: Team = ALONE,
) -> Generator[StepRecord, None, None]:
    """Yield one record per step until the budget is used up; write a checkpoint every `save_every` seconds.

    The checkpoint is `folder/<stage>.checkpoint`; closing the generator writes one too. A step that breaks off half
    done, or leaves weights that are no numbers, is never saved. `notes` is kept in the checkpoint as it is after each
    step, and filled from it when the run is resumed. In a team the first process decides when to save and when to
    end, and writes; a checkpoint fits a team of any size.
    """
    path = folder / f"{stage.name}.checkpoint"
    settings = {**stage.settings, "seed": seed}
    step, seconds = 0, 0.0
    if resume:
        state = read_checkpoint(path, stage=stage.name, settings=settings, complete=True)
        step, seconds = state["step"], state["seconds"]
        for name, learner in stage.learners.items():
            learner.load_state_dict(state["learners"][name])
        if notes is not None:
            notes.update(state.get("notes", {}))
        del state  # the weights are in place: no second copy for the whole run
    saved_at, saved_step, start = seconds, -1, time.perf_counter() - seconds

    def broke(what: str) -> TutorError:
        before = f"the checkpoint {path} is from before; resume" if path.is_file() else "start again"
        return TutorError(
            f"training {stage.name} broke at step {step}: {what} not a number",
            fix=f"{before} with a lower learning rate or in float32",
        )

    def save() -> None:
        for name, learner in stage.learners.items():
            bad = not all(bool(local(value).isfinite().all()) for value in learner.network.parameters())
            if team.any(bad) if team.sharded else bad:
                raise broke(f"a weight of {name} is")
        state: dict[str, Any] = {"stage": stage.name, "settings": settings, "step": step, "seconds": seconds}
        if team.is_main or team.sharded:
            state["learners"] = {name: learner.state_dict() for name, learner in stage.learners.items()}
        if team.is_main:
            write_checkpoint(path, {**state, "notes": notes or {}})

    whole = True  # no step is half done
    try:
        while (progress := team.lead(budget.progress(step, seconds))) < 1:
            whole = False
            values = stage.train_step(step_generator(seed, step), progress)
            step, seconds = step + 1, time.perf_counter() - start
            broken = [name for name, value in values.items() if not math.isfinite(value)]
            if broken:
                raise broke(f"{', '.join(broken)} is")
            whole = True
            yield StepRecord(step, step * stage.batch_size, seconds, budget.progress(step, seconds), values)
            if team.lead(float(seconds - saved_at > save_every)):
                save()
                saved_at, saved_step = seconds, step
                start = time.perf_counter() - seconds  # writing does not count as training time
    except TutorError:
        whole = False  # never save a broken state
        raise
    finally:
        if whole and saved_step != step:
            save()


class Pace:
    """Notices when steps take much longer than before, and says so once.

    Threads that wait for each other lose far more than their share as soon as another process wants a core: a test run
    of seven minutes once took an autoencoder from 65 pictures a second to ten.
    """

    def __init__(self) -> None:
        self.fastest, self.before, self.slow, self.told = math.inf, 0.0, 0, False

    def note(self, seconds: float, name: str) -> None:
        """Take in the training time after another equally long stretch of the stage called `name`."""
        took, self.before = seconds - self.before, seconds
        self.fastest = min(self.fastest, took)
        self.slow = self.slow + 1 if took > MUCH_SLOWER * self.fastest else 0
        if self.slow >= 2 and not self.told:  # one alone may be a hiccup
            self.told = True
            log.warning(
                "%s has become %.0f times slower than it was. Is other work going on? Leave the machine to the "
                "training, or stop it and go on with --resume --threads 1: one thread is held up less than several",
                name, took / self.fastest,
            )  # fmt: skip


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn a first Ctrl-C into a flag that is read between two steps, so that no step is left half done.

    A second Ctrl-C stops at once. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def run_stage(
    stage: Stage,
    budget: Budget,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    log_every: int = 25,
    show_progress: bool = True,
    save_every: float = 120.0,
    team: Team = ALONE,
) -> list[Path]:
    """Train to the end with a progress bar, `<stage>.csv` and TensorBoard logs; return the written weights' paths.

    Ctrl-C stops after writing a checkpoint and raises KeyboardInterrupt. Of a team the first process alone writes.
    """
    if not team.is_main:
        records = train(stage, budget, folder, seed=seed, resume=resume, save_every=save_every, team=team)
        return _follow_along(stage, records, team)
    from torch.utils.tensorboard import SummaryWriter
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / f"{stage.name}.csv"
    step, seconds = 0, 0.0
    if resume:
        path, settings = folder / f"{stage.name}.checkpoint", {**stage.settings, "seed": seed}
        done = read_checkpoint(path, stage=stage.name, settings=settings, complete=True)
        step, seconds = done["step"], done["seconds"]
        del done
        _drop_rows(log_path, step + 1)
    first = step + 1
    used = 100 * budget.progress(step, seconds)  # a resumed run's time left counts from here
    window: dict[str, Any] = {"sums": {}, "count": 0}  # since the last row of the log
    record = None
    records = train(stage, budget, folder, seed=seed, resume=resume, save_every=save_every, notes=window, team=team)
    with (
        open(log_path, "a" if resume else "w", newline="", encoding="utf-8") as log_file,
        SummaryWriter(str(folder / "tensorboard" / stage.name), purge_step=first) as board,
        tqdm(total=100, desc=stage.name, disable=not show_progress, bar_format=_BAR, initial=used, smoothing=0) as bar,
        deferred_interrupt() as interrupted,
    ):
        writer, pace = None, Pace()
        for record in records:
            sums = window["sums"]
            for name, value in record.values.items():
                sums[name] = sums.get(name, 0.0) + value
            window["count"] += 1
            bar.update(100 * record.progress - bar.n)
            if record.step % log_every == 0:
                pace.note(record.seconds, stage.name)
            if record.step % log_every == 0 or record.progress >= 1:
                means = {name: value / window["count"] for name, value in sums.items()}
                row = {"step": record.step, "samples": record.samples, "seconds": round(record.seconds, 1)}
                row |= {name: float(f"{value:.5g}") for name, value in means.items()}
                if writer is None:
                    writer = csv.DictWriter(log_file, fieldnames=list(row), lineterminator="\n")
                    if log_file.tell() == 0:
                        writer.writeheader()
                writer.writerow(row)
                log_file.flush()
                for name, value in means.items():
                    board.add_scalar(f"{stage.name}/{name}", value, record.step)
                rate = record.samples / record.seconds
                bar.set_postfix_str(f"{rate:.0f}/s " + " ".join(f"{k} {v:.3g}" for k, v in means.items()))
                window.update(sums={}, count=0)
            if team.any(interrupted()):
                records.close()  # it writes the checkpoint
                raise KeyboardInterrupt
    for learner in stage.learners.values():
        learner.gather()
    if record is not None:
        step, seconds = record.step, record.seconds
    history = {"seed": seed, "steps": step, "samples": step * stage.batch_size, "seconds": round(seconds, 1)}
    return stage.finish(folder, history)


def _follow_along(stage: Stage, records: Generator[StepRecord, None, None], team: Team) -> list[Path]:
    """Train beside the first process: the same steps, nothing written."""
    with deferred_interrupt() as interrupted:
        for _ in records:
            if team.any(interrupted()):
                records.close()
                raise KeyboardInterrupt
    for learner in stage.learners.values():
        learner.gather()
    return []


_BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"


def _drop_rows(path: Path, first: int) -> None:
    """Take out the log's rows from step `first` on: a killed run wrote them after its last checkpoint."""
    if not path.is_file():
        return
    head, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) < first]
    with atomic_file(path) as temporary:
        temporary.write_text(head + "".join(kept), encoding="utf-8", newline="")
