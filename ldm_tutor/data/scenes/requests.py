"""What a sentence asks for, and whether a picture shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

from ldm_tutor.data.scenes.world import BACKGROUNDS, COLORS, KINDS, PLACES, SIZES, check_choice
from ldm_tutor.errors import ConfigError

RELATIONS = ("left of", "right of", "in front of", "behind")
GROUPS = ("object", "color", "size", "place", "background", "relation", "count")
SIDE_GAP = 0.1  # left of / right of: at least this distance between the centres
FRONT_GAP = 0.06  # in front of / behind: at least this distance between the lower edges


class SeenObject(Protocol):
    """An object as truth or a judge's reading gives it; positions are fractions of the picture's side, y down."""

    @property
    def kind(self) -> str: ...
    @property
    def color(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...
    @property
    def box(self) -> tuple[float, float, float, float]: ...


def is_related(relation: str, first: SeenObject, second: SeenObject, slack: float = 1.0) -> bool:
    """Whether `first` stands in the relation (one of RELATIONS) to `second`; `slack` multiplies the distances."""
    check_choice("relation", relation, RELATIONS)
    if relation in ("right of", "behind"):
        first, second = second, first
    if relation in ("left of", "right of"):
        return second.x - first.x >= SIDE_GAP * slack
    overlap = min(first.box[2], second.box[2]) - max(first.box[0], second.box[0])
    return overlap > 0 and first.box[3] - second.box[3] >= FRONT_GAP * slack


@dataclass(frozen=True)
class ObjectRequest:
    """One object asked for; None where the sentence leaves an attribute free."""

    kind: str
    color: str | None = None
    size: str | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        for name, choices in (("color", COLORS), ("size", SIZES), ("place", PLACES)):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices)


@dataclass(frozen=True)
class Request:
    """A sentence's meaning: the objects, the background (or None) and how objects[0] stands to objects[1] (or None)."""

    objects: tuple[ObjectRequest, ...]
    background: str | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        if not self.objects or not all(isinstance(each, ObjectRequest) for each in self.objects):
            raise ConfigError(f"objects is {self.objects!r}, expected at least one ObjectRequest")
        if self.background is not None:
            check_choice("background", self.background, BACKGROUNDS)
        if self.relation is not None:
            check_choice("relation", self.relation, RELATIONS)
            if len(self.objects) < 2:
                raise ConfigError(f"relation is {self.relation!r} with one object, expected at least two objects")

    def asks_for(self, group: str) -> bool:
        """Whether the sentence names anything of the group (one of GROUPS)."""
        check_choice("group", group, GROUPS)
        if group in ("object", "count"):
            return True
        if group in ("background", "relation"):
            return getattr(self, group) is not None
        return any(getattr(each, group) is not None for each in self.objects)

    def is_met_by(self, objects: Sequence[SeenObject], background: str | None) -> bool:
        """Whether a picture with exactly these objects and this background shows all that was asked for."""
        return not any(self.missing(objects, background).values())

    def missing(self, objects: Sequence[SeenObject], background: str | None) -> dict[str, bool]:
        """For each group that the sentence names (of GROUPS): True where the picture does not meet it.

        Objects are compared under the one-to-one assignment that meets most; kinds count first.
        """
        candidates: list[SeenObject | None] = list(objects)
        candidates += [None] * (len(self.objects) - len(candidates))
        found = max(
            (self._found(chosen) for chosen in permutations(candidates, len(self.objects))),
            key=lambda each: (each["object"], sum(each.values())),
        )
        wanted = {"object": len(self.objects)}
        for name in ("color", "size", "place"):
            wanted[name] = sum(getattr(each, name) is not None for each in self.objects)
        result = {name: found[name] < wanted[name] for name in wanted if self.asks_for(name)}
        if self.background is not None:
            result["background"] = background != self.background
        if self.relation is not None:
            result["relation"] = not found["relation"]
        result["count"] = len(objects) != len(self.objects)
        return result

    def _found(self, chosen: Sequence[SeenObject | None]) -> dict[str, int]:
        pairs = [(ask, seen) for ask, seen in zip(self.objects, chosen, strict=True) if seen is not None]
        found = {"object": sum(ask.kind == seen.kind for ask, seen in pairs)}
        for name in ("color", "size", "place"):
            found[name] = sum(getattr(ask, name) == getattr(seen, name) for ask, seen in pairs)
        first, second = (*chosen, None)[:2]
        related = self.relation is not None and first is not None and second is not None
        found["relation"] = int(related and is_related(self.relation, first, second))  # type: ignore[arg-type]
        return found
