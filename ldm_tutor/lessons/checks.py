"""The exercises of all lessons: `check.<lesson>.<exercise>(answer)`, `hint(...)`, `solution(...)`, `exercise(...)`."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.exercises import Exercise, Hints, Solution, Verdict
from ldm_tutor.lessons.lesson_00 import EXERCISES as LESSON_00
from ldm_tutor.lessons.lesson_01 import EXERCISES as LESSON_01
from ldm_tutor.lessons.lesson_02 import EXERCISES as LESSON_02
from ldm_tutor.lessons.lesson_03 import EXERCISES as LESSON_03
from ldm_tutor.lessons.lesson_04 import EXERCISES as LESSON_04
from ldm_tutor.lessons.lesson_05 import EXERCISES as LESSON_05
from ldm_tutor.lessons.lesson_06 import EXERCISES as LESSON_06
from ldm_tutor.lessons.lesson_07 import EXERCISES as LESSON_07
from ldm_tutor.lessons.lesson_08 import EXERCISES as LESSON_08
from ldm_tutor.lessons.lesson_09 import EXERCISES as LESSON_09
from ldm_tutor.lessons.lesson_10 import EXERCISES as LESSON_10
from ldm_tutor.lessons.lesson_11 import EXERCISES as LESSON_11
from ldm_tutor.lessons.lesson_12 import EXERCISES as LESSON_12
from ldm_tutor.lessons.lesson_13 import EXERCISES as LESSON_13
from ldm_tutor.lessons.lesson_14 import EXERCISES as LESSON_14
from ldm_tutor.lessons.lesson_15 import EXERCISES as LESSON_15
from ldm_tutor.lessons.lesson_16 import EXERCISES as LESSON_16
from ldm_tutor.lessons.progress import record_pass

EXERCISES: dict[str, Exercise] = {
    each.address: each
    for lesson in (
        LESSON_00,
        LESSON_01,
        LESSON_02,
        LESSON_03,
        LESSON_04,
        LESSON_05,
        LESSON_06,
        LESSON_07,
        LESSON_08,
        LESSON_09,
        LESSON_10,
        LESSON_11,
        LESSON_12,
        LESSON_13,
        LESSON_14,
        LESSON_15,
        LESSON_16,
    )
    for each in lesson
}


class ExerciseCheck:
    """One exercise, ready to judge: call it with your answer."""

    def __init__(self, exercise: Exercise) -> None:
        self._exercise = exercise

    def __call__(self, answer: Any = ..., *more: Any) -> Verdict:
        """Return PASS, NOT DONE YET or LOOK AGAIN with the reason, and keep a PASS in the progress file."""
        verdict = self._exercise.check(answer, *more)
        if verdict.passed:
            record_pass(self._exercise.address)
        return verdict

    def __repr__(self) -> str:
        return repr(self._exercise)


class LessonChecks:
    """The checks of one lesson, by the names of its exercises."""

    def __init__(self, lesson: str) -> None:
        self._lesson = lesson

    def __getattr__(self, name: str) -> ExerciseCheck:
        if not name.startswith("_") and (found := EXERCISES.get(f"{self._lesson}.{name}")):
            return ExerciseCheck(found)
        raise AttributeError(f"lesson {self._lesson} has no exercise {name!r}; it has: {', '.join(dir(self))}")

    def __dir__(self) -> list[str]:
        return [each.name for each in EXERCISES.values() if each.lesson == self._lesson]


class Checks:
    """The checks of all lessons, by the names of the lessons."""

    def __getattr__(self, lesson: str) -> LessonChecks:
        if lesson in dir(self):
            return LessonChecks(lesson)
        raise AttributeError(f"no lesson {lesson!r} has exercises; these do: {', '.join(dir(self))}")

    def __dir__(self) -> list[str]:
        return list(dict.fromkeys(each.lesson for each in EXERCISES.values()))


check = Checks()


def exercise(address: str) -> Exercise:
    """Return the exercise at an address such as `start_here.compression`: shown, it is the card with its task.

    Raises ConfigError that names the near ones.
    """
    if address not in EXERCISES:
        near = get_close_matches(str(address), EXERCISES, n=2)
        fix = f"did you mean {near[0]!r}?" if near else ""
        raise ConfigError("unknown exercise", given=address, expected=f"one of {', '.join(EXERCISES)}", fix=fix)
    return EXERCISES[address]


def hint(address: str) -> Hints:
    """Return the hints of an exercise (see `exercise`), folded: a question, the idea, a skeleton."""
    return Hints(address, exercise(address).hints)


def solution(address: str) -> Solution:
    """Return a solution of an exercise (see `exercise`) as text, folded; it is not run."""
    return Solution(address, exercise(address).solution)
