"""What an exercise is, and the verdict that its check gives: always an answer, never an exception."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PASS = "PASS"
NOT_DONE = "NOT DONE YET"
LOOK_AGAIN = "LOOK AGAIN"
_SIGNS = {PASS: ("✓", "#009E73"), NOT_DONE: ("…", "#56B4E9"), LOOK_AGAIN: ("↻", "#D55E00")}
_BORDER = "border-left:4px solid {};padding:.3em .8em;margin:.3em 0"
KINDS = ("predict", "fill in", "fix the fault", "explore")


@dataclass(frozen=True)
class Verdict:
    """What a check says: `state` is PASS, NOT_DONE or LOOK_AGAIN, `message` tells why. Shows itself in a notebook."""

    state: str
    message: str

    @property
    def passed(self) -> bool:
        """Whether the exercise is solved."""
        return self.state == PASS

    def __repr__(self) -> str:
        return f"{self.state}: {self.message}"

    def _repr_html_(self) -> str:
        sign, color = _SIGNS[self.state]
        text = _marked_up(self.message)
        label = f'<span aria-hidden="true">{sign}</span> <b>{self.state}</b>'
        return f'<div role="status" style="{_BORDER.format(color)}">{label} {text}</div>'


def passed(message: str) -> Verdict:
    """Return the verdict for a right answer."""
    return Verdict(PASS, message)


def not_done(message: str) -> Verdict:
    """Return the verdict for an answer that is not there yet."""
    return Verdict(NOT_DONE, message)


def look_again(message: str) -> Verdict:
    """Return the verdict for an answer that is there and not right."""
    return Verdict(LOOK_AGAIN, message)


@dataclass(frozen=True)
class Hints:
    """The hints of one exercise, each in a fold of its own; `str` gives them all as text."""

    name: str
    steps: tuple[str, ...]

    def __repr__(self) -> str:
        return f"[hints] {self.name}: {len(self.steps)} steps, each a little more; print(hint(...)) shows them all"

    def __str__(self) -> str:
        return "\n".join(f"{label}: {step}" for label, step in zip(_HINT_LABELS, self.steps, strict=True))

    def _repr_html_(self) -> str:
        return "".join(
            f"<details><summary>Hint {k}: {label}</summary>{_block(step)}</details>"
            for k, (label, step) in enumerate(zip(_HINT_LABELS, self.steps, strict=True), 1)
        )


_HINT_LABELS = ("a question", "the idea", "a skeleton")


@dataclass(frozen=True)
class Solution:
    """The text of one solution, folded in a notebook; nothing of it is run."""

    name: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<details><summary>A solution (open it when you have tried)</summary>{_block(self.text)}</details>"


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One exercise. `judge(answer, *more)` gives the verdict for an answer that is there; `check` guards it.

    `kind` is one of KINDS, `difficulty` 1 to 5. `hints` are three: a question, the idea, a skeleton. `solution` is
    Python code that defines the answer under the name `answer`; the tests run it.
    """

    lesson: str
    name: str
    kind: str
    difficulty: int
    minutes: int
    task: str
    hints: tuple[str, str, str]
    solution: str
    judge: Callable[..., Verdict]

    @property
    def address(self) -> str:
        """Its name in `check`, `hint` and `solution`: `start_here.compression`."""
        return f"{self.lesson}.{self.name}"

    def check(self, answer: Any, *more: Any) -> Verdict:
        """Judge an answer. Whatever it is or does, a verdict comes back."""
        try:
            if is_missing(answer):
                return not_done("put your answer in the place of the dots, then run this cell again")
            return self.judge(answer, *more)
        except (Exception, SystemExit) as error:  # a learner's code may raise anything
            if isinstance(error, NotImplementedError) and not str(error):  # PyTorch's own have a text
                return not_done("write the function first, then run this cell again")
            return look_again(f"your answer stops with {type(error).__name__}: {scrub(str(error)) or 'no message'}")

    def __repr__(self) -> str:
        return (
            f"Exercise {self.address} ({self.kind}, difficulty {self.difficulty} of 5, {self.minutes} min): {self.task}"
        )

    def _repr_html_(self) -> str:
        facts = f"{self.kind} · difficulty {self.difficulty} of 5 · about {self.minutes} min"
        name = html.escape(self.name.replace("_", " "))
        return (
            f'<div style="{_BORDER.format("#0072B2")}"><b>Exercise: {name}</b> <small>({facts})</small>'
            f"<br>{_marked_up(self.task)}</div>"
        )


def is_missing(answer: Any) -> bool:
    """Whether an answer is still the stub: None, dots, or a tuple or list that holds some."""
    if isinstance(answer, (tuple, list)):
        return not answer or any(is_missing(each) for each in answer)
    return answer is None or answer is ...


def scrub(text: str) -> str:
    """Make a message the same on every machine: no addresses, one line, at most 300 characters."""
    text = " ".join(re.sub(r"0x[0-9a-fA-F]{6,16}", "0x...", text).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def _block(text: str) -> str:
    """HTML of a hint: code keeps its lines, a sentence is a paragraph."""
    if "\n" in text or text.startswith(("def ", "answer")):
        return f"<pre>{html.escape(text)}</pre>"
    return f"<p>{_marked_up(text)}</p>"


def _marked_up(text: str) -> str:
    """HTML of a sentence; what stands between backticks is code, a *word* between stars is stressed."""
    text = re.sub(r"(?<![\w*])\*([A-Za-z]+)\*(?![\w*])", r"<em>\1</em>", html.escape(text))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
