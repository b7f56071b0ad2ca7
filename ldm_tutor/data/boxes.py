"""Boxes that say what goes where, and the tokens by which a model reads them.

The published form (Rombach et al. 2022, arXiv 2112.10752, section 4.3.2, and its code): each box is three tokens, its
class, its upper left and its lower right corner, both corners as places on one grid. Classes and places share one
vocabulary; which of the two a token is, its position in the row says.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ldm_tutor.data.scenes.world import KINDS, Scene
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.shapes import Tokens

Rect = tuple[float, float, float, float]
WHOLE: Rect = (0.0, 0.0, 1.0, 1.0)
_SLACK = 1e-6  # rounding errors of a caller's own arithmetic


@dataclass(frozen=True)
class Box:
    """One object asked for: its kind, and its corners as fractions of the picture's side, y down."""

    kind: str
    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not self.kind.strip():
            raise ConfigError("Box: kind", given=self.kind, expected=f"a word such as one of {KINDS}")
        for name in ("x0", "y0", "x1", "y1"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not -_SLACK <= value <= 1 + _SLACK:
                where = f"Box of the {self.kind}: {name}"
                raise ConfigError(where, given=value, expected="0 to 1, fractions of the picture's side")
        for low, high in (("x0", "x1"), ("y0", "y1")):
            if not getattr(self, low) < getattr(self, high):
                given = (getattr(self, low), getattr(self, high))
                raise ConfigError(
                    f"Box of the {self.kind}: {low} and {high}", given=given, expected=f"{low} less than {high}"
                )

    @property
    def rect(self) -> Rect:
        """The corners (x0, y0, x1, y1)."""
        return self.x0, self.y0, self.x1, self.y1


@dataclass(frozen=True, kw_only=True)
class BoxVocabulary:
    """How boxes are numbered: `size` tokens, of which the last means "none", for at most `max_boxes` boxes.

    Corners lie on a grid of floor(sqrt(size)) places each way. `crop`: two tokens more, at the end, the corners of the
    part of the picture that is drawn.
    """

    names: tuple[str, ...] = KINDS
    size: int = 1025
    max_boxes: int = 3
    crop: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) < self.size or self.max_boxes < 1:
            given = (len(self.names), self.size, self.max_boxes)
            raise ConfigError("BoxVocabulary", given=given, expected="1 or more boxes, fewer names than tokens")

    @property
    def grid(self) -> int:
        """Places of the grid each way."""
        return math.isqrt(self.size)

    @property
    def none(self) -> int:
        """The token of what is not there."""
        return self.size - 1

    @property
    def length(self) -> int:
        """Tokens of one layout."""
        return 3 * self.max_boxes + 2 * self.crop

    def place(self, x: float, y: float) -> int:
        """Return the token of the grid's place nearest to (x, y)."""
        return round(y * (self.grid - 1)) * self.grid + round(x * (self.grid - 1))

    def point(self, token: int) -> tuple[float, float]:
        """Return the (x, y) of a place's token; ConfigError for another token."""
        if not 0 <= token < self.grid**2:
            raise ConfigError("BoxVocabulary: place", given=token, expected=f"0 to {self.grid**2 - 1}")
        return token % self.grid / (self.grid - 1), token // self.grid / (self.grid - 1)


SCENES_BOXES = BoxVocabulary()


def tokenize_boxes(
    layouts: Sequence[Sequence[Box]],
    vocabulary: BoxVocabulary = SCENES_BOXES,
    *,
    shuffle: random.Random | None = None,
    crops: Sequence[Rect] | None = None,
) -> Tokens:
    """Return the tokens of each layout, int64 (b, length): class, upper left, lower right; then "none" to the end.

    `shuffle` puts the boxes in random order, as in training. `crops`: one rectangle per layout where the vocabulary has
    crop tokens, by default the whole picture. ConfigError for too many boxes, an unknown kind, or a box that is smaller
    than a step of the grid.
    """
    if isinstance(layouts, Box) or any(isinstance(each, Box) for each in layouts):
        raise ConfigError("tokenize_boxes", given="boxes", expected="a list of boxes per picture: [[Box(...)], ...]")
    if crops is not None and (not vocabulary.crop or len(crops) != len(layouts)):
        raise ConfigError("tokenize_boxes: crops", given=len(crops), expected="one per layout, and crop tokens")
    rows = []
    for number, layout in enumerate(layouts):
        if len(layout) > vocabulary.max_boxes:
            raise ConfigError(
                f"layout {number}: too many boxes", given=len(layout), expected=f"at most {vocabulary.max_boxes}"
            )
        boxes = list(layout)
        if shuffle is not None:
            shuffle.shuffle(boxes)
        row = [token for box in boxes for token in _triple(box, vocabulary)]
        row += [vocabulary.none] * (3 * vocabulary.max_boxes - len(row))
        if vocabulary.crop:
            x0, y0, x1, y1 = WHOLE if crops is None else crops[number]
            row += [vocabulary.place(x0, y0), vocabulary.place(x1, y1)]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.long).view(len(rows), vocabulary.length)


def boxes_of(tokens: Tokens, vocabulary: BoxVocabulary = SCENES_BOXES) -> list[list[Box]]:
    """Return the boxes that tokens (b, length) stand for, their corners on the grid: `tokenize_boxes` backwards."""
    if tokens.dim() != 2 or tokens.shape[1] != vocabulary.length:
        raise ShapeError("boxes_of", given=tuple(tokens.shape), expected=f"(b, {vocabulary.length})")
    layouts = []
    for row in tokens[:, : 3 * vocabulary.max_boxes].reshape(len(tokens), vocabulary.max_boxes, 3).tolist():
        layout = []
        for kind, top_left, bottom_right in row:
            if kind == vocabulary.none:
                continue
            if not 0 <= kind < len(vocabulary.names):
                raise ConfigError("boxes_of: class", given=kind, expected=f"0 to {len(vocabulary.names) - 1}")
            name = vocabulary.names[kind]
            layout.append(Box(name, *vocabulary.point(top_left), *vocabulary.point(bottom_right)))
        layouts.append(layout)
    return layouts


def scene_boxes(scene: Scene) -> list[Box]:
    """Return the true boxes of a scene's objects, back to front; what reaches out of the picture is cut off."""
    return [Box(each.kind, *(min(1.0, max(0.0, value)) for value in each.box)) for each in scene.objects]


def _triple(box: Box, vocabulary: BoxVocabulary) -> tuple[int, int, int]:
    if box.kind not in vocabulary.names:
        raise ConfigError("layout: kind of a box", given=box.kind, expected=f"one of {vocabulary.names}")
    top_left, bottom_right = vocabulary.place(box.x0, box.y0), vocabulary.place(box.x1, box.y1)
    columns = top_left % vocabulary.grid, bottom_right % vocabulary.grid
    rows = top_left // vocabulary.grid, bottom_right // vocabulary.grid
    if columns[0] >= columns[1] or rows[0] >= rows[1]:
        step = 1 / (vocabulary.grid - 1)
        raise ConfigError(
            f"layout: the box of the {box.kind} is too small",
            given=tuple(round(value, 4) for value in box.rect),
            expected=f"wider and higher than a step of the grid, {step:.3f}",
        )
    return vocabulary.names.index(box.kind), top_left, bottom_right


def overlap(first: Rect, second: Rect) -> float:
    """Return the two rectangles' intersection over union, 0 to 1."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second))
    return width * height / (both - width * height)
