"""Whatever a learner hands to a check, a friendly verdict comes back: every exercise, every kind of rubbish."""

import warnings

import numpy as np
import pytest
import torch

from ldm_tutor.lessons.checks import EXERCISES
from ldm_tutor.lessons.exercises import LOOK_AGAIN, NOT_DONE

NAN = float("nan")


def stub(*arguments, **options):
    """What the cell of an exercise begins with."""


def raising(*arguments, **options):
    raise RuntimeError("out of <memory>")


def todo(*arguments, **options):
    raise NotImplementedError


# Values that are no answer to any exercise, and functions that return such values, whatever they are called with.
VALUES = {
    "nothing": None,
    "dots": ...,
    "a word": "forty-two",
    "an empty text": "",
    "a text of digits": "0x2a",
    "not a number": NAN,
    "infinity": float("-inf"),
    "a huge number": 10**400,
    "a complex number": 1j,
    "true": True,
    "a list of words": ["a", "b", "c"],
    "a list of dots": [..., ...],
    "an empty list": [],
    "a ragged list": [[1], [2, 3], "x"],
    "a set": {1.5, "x"},
    "a dict": {"a": None},
    "a module": torch,
    "a class": Exception,
    "an object": object(),
    "an integer tensor": torch.tensor([[7, -7]]),
    "a tensor without numbers in it": torch.full((2, 3, 4), NAN),
    "an empty tensor": torch.zeros(0),
    "a tensor of five axes": torch.zeros(1, 2, 1, 2, 1),
    "a tensor of booleans": torch.tensor([True]),
    "an array of words": np.array(["a", "b"]),
    "a network": torch.nn.Linear(1, 1),
}
FUNCTIONS = {"a stub": stub, "a function that fails": raising, "a function to do": todo}
FUNCTIONS |= {"a function of nothing": lambda: 1}
FUNCTIONS |= {f"a function that gives {name}": (lambda *a, value=value, **k: value) for name, value in VALUES.items()}
ANSWERS = VALUES | FUNCTIONS
# A class instead of a function, and pairs, since some exercises ask for two answers.
ANSWERS |= {
    "a class that cannot be made": type("Broken", (), {"__init__": raising}),
    "a module that does nothing": type("Empty", (torch.nn.Module,), {"forward": stub}),
    "two words": ("left", "right"),
    "a pair of nothing and a number": (NAN, None),
    "seven things": tuple(range(-3, 4)),
}


def answers_that_are_right(address, name):
    """Whether a value above happens to answer an exercise; few do, and each has to be named here."""
    return (address, name) in RIGHT


RIGHT: set[tuple[str, str]] = set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("address", sorted(EXERCISES))
def test_rubbish_gets_a_verdict_and_a_word(address):
    exercise = EXERCISES[address]
    wrong = []
    for name, answer in ANSWERS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict = exercise.check(answer)
        fine = verdict.state in (LOOK_AGAIN, NOT_DONE) and len(verdict.message.split()) >= 3
        if not fine and not answers_that_are_right(address, name):
            wrong.append(f"{name}: {verdict!r}")
        assert verdict._repr_html_() and "0x7" not in repr(verdict), f"{address}, {name}: {verdict!r}"
    assert wrong == []


@pytest.mark.parametrize("address", sorted(EXERCISES))
def test_more_answers_than_asked_get_a_verdict(address):
    verdict = EXERCISES[address].check(1.5, "x", NAN)
    assert verdict.state in (LOOK_AGAIN, NOT_DONE) and verdict.message


def test_every_kind_is_tried():
    assert len(ANSWERS) > 50 and len(EXERCISES) >= 24
