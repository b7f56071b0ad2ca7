"""The world of the scenes: what can be in a picture, and the exact description of one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldm_tutor.errors import ConfigError

KINDS = ("cat", "dog", "car", "bicycle", "house", "tree", "boat", "rocket", "ball")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES = ("small", "medium", "large")
PLACES = ("left", "right", "middle", "top", "bottom")
BACKGROUNDS = ("day", "night", "sunset", "snow", "beach", "moon")

# Each kind is drawn on a design grid of (width, height) units; the grid fixes its aspect.
GRIDS: dict[str, tuple[int, int]] = {
    "cat": (92, 108),
    "dog": (118, 98),
    "car": (130, 82),
    "bicycle": (130, 86),
    "house": (104, 104),
    "tree": (86, 110),
    "boat": (104, 110),
    "rocket": (72, 118),
    "ball": (100, 100),
}

NOMINAL_SCALE = {"small": 0.26, "medium": 0.37, "large": 0.50}
SCALE_JITTER = 0.04
SCALES_PER_SIZE = 8
SIZE_SCALES: dict[str, tuple[float, ...]] = {
    size: tuple(
        round(nominal * (1 + SCALE_JITTER * (2 * k / (SCALES_PER_SIZE - 1) - 1)), 4) for k in range(SCALES_PER_SIZE)
    )
    for size, nominal in NOMINAL_SCALE.items()
}

PLACE_CENTRES = {
    "left": (0.26, 0.55),
    "right": (0.74, 0.55),
    "middle": (0.50, 0.52),
    "top": (0.50, 0.30),
    "bottom": (0.50, 0.73),
}
MARGIN = 0.02
DECOR_VARIANTS = 24  # different drawings of each background
POSITION_STEPS = 256  # positions lie on this grid: a quarter pixel at 64x64

# Never drawn in the training and test splits: one colour for each kind, every colour at least once.
HELD_OUT = frozenset(
    {
        ("cat", "blue"),
        ("dog", "green"),
        ("car", "pink"),
        ("bicycle", "yellow"),
        ("house", "purple"),
        ("tree", "orange"),
        ("boat", "red"),
        ("rocket", "white"),
        ("ball", "purple"),
    }
)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}, expected one of: {', '.join(choices)}")


def place_of(x: float, y: float) -> str:
    """The place word of a centre (x, y) in [0, 1], y downwards: one of PLACES."""
    if x < 0.4:
        return "left"
    if x > 0.6:
        return "right"
    if y < 0.41:
        return "top"
    return "bottom" if y > 0.62 else "middle"


def extent(kind: str, scale: float) -> tuple[float, float]:
    """Width and height, as fractions of the picture side, of a `kind` whose sqrt(width * height) is `scale`."""
    check_choice("kind", kind, KINDS)
    width, height = GRIDS[kind]
    unit = scale / math.sqrt(width * height)
    return width * unit, height * unit


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object of a scene: x, y is its centre in [0, 1] (y down), scale is sqrt(width * height) in [0.1, 0.7]."""

    kind: str
    color: str
    size: str
    x: float
    y: float
    scale: float
    flip: bool = False

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("color", self.color, COLORS)
        check_choice("size", self.size, SIZES)
        for name, value, low, high in (("x", self.x, 0, 1), ("y", self.y, 0, 1), ("scale", self.scale, 0.1, 0.7)):
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigError(f"{name} of the {self.color} {self.kind} is {value!r}, expected {low} to {high}")

    @classmethod
    def put(cls, kind: str, color: str, size: str = "medium", place: str = "middle", flip: bool = False) -> SceneObject:
        """An object of nominal size at the centre of a named place, moved inwards so that it fits the picture."""
        check_choice("size", size, SIZES)
        check_choice("place", place, PLACES)
        x, y = fit_inside(kind, NOMINAL_SCALE[size], *PLACE_CENTRES[place])
        return cls(kind=kind, color=color, size=size, x=x, y=y, scale=NOMINAL_SCALE[size], flip=flip)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Bounding box (x0, y0, x1, y1) as fractions of the picture side."""
        width, height = extent(self.kind, self.scale)
        return self.x - width / 2, self.y - height / 2, self.x + width / 2, self.y + height / 2

    @property
    def place(self) -> str:
        """The place word of the centre: one of PLACES."""
        return place_of(self.x, self.y)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return {name: getattr(self, name) for name in ("kind", "color", "size", "x", "y", "scale", "flip")}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture: objects drawn back to front on a background, with a seed (>= 0) for its decoration."""

    objects: tuple[SceneObject, ...]
    background: str
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.objects, tuple) or not all(isinstance(each, SceneObject) for each in self.objects):
            raise ConfigError(f"objects is {self.objects!r}, expected a tuple of SceneObject")
        check_choice("background", self.background, BACKGROUNDS)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError(f"seed is {self.seed!r}, expected an integer >= 0")

    def to_dict(self) -> dict[str, Any]:
        """The scene as plain lists and values, ready for JSON."""
        return {
            "objects": [each.to_dict() for each in self.objects],
            "background": self.background,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scene:
        """The scene that `to_dict` described; raises ConfigError for missing or unknown fields."""
        try:
            objects = tuple(SceneObject(**each) for each in values["objects"])
            return cls(**{**values, "objects": objects})
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"cannot read a scene from {values!r} ({error}), expected what Scene.to_dict returns"
            ) from None


def fit_inside(kind: str, scale: float, x: float, y: float) -> tuple[float, float]:
    """Move a centre onto the position grid and inwards until the object's box keeps MARGIN to every edge."""
    width, height = extent(kind, scale)
    return _clamp(x, width / 2 + MARGIN), _clamp(y, height / 2 + MARGIN)


def _clamp(value: float, room: float) -> float:
    low, high = math.ceil(room * POSITION_STEPS), math.floor((1 - room) * POSITION_STEPS)
    return min(max(round(value * POSITION_STEPS), low), high) / POSITION_STEPS
