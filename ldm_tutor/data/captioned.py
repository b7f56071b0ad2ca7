"""Pictures with captions in memory, and the troubles that were met while reading them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm_tutor.errors import ConfigError
from ldm_tutor.shapes import Tensor

METADATA = "metadata.jsonl"

# What can be wrong, in the words of the report.
UNREADABLE = "picture cannot be read"
NOT_THERE = "named, but not there"
BROKEN_LINE = f"broken line in {METADATA}"
NO_CAPTION = "no caption"
BAD_CAPTION = "caption cannot be read"
TWICE = "named twice"
SHARD = "damaged shard"


@dataclass(frozen=True)
class Trouble:
    """One thing that was left out: where it stands, what kind of trouble (a constant above), and the reason."""

    name: str
    kind: str
    reason: str = ""


@dataclass(frozen=True)
class CaptionedPictures:
    """Pictures uint8 (N, 3, S, S), their captions ("" where there is none), where each came from, and the troubles."""

    pictures: Tensor
    captions: list[str]
    names: list[str]
    form: str = ""
    troubles: tuple[Trouble, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.captions)

    def with_captions(self) -> CaptionedPictures:
        """Return only the pictures that have a caption; ConfigError where none has."""
        kept = [k for k, caption in enumerate(self.captions) if caption]
        if not kept:
            raise ConfigError(
                "no picture has a caption, and this stage needs them",
                given=f"{len(self)} pictures, form: {self.form}",
                expected=f"{METADATA}, a text file per picture, or a folder per class",
            )
        if len(kept) == len(self):
            return self
        captions, names = [self.captions[k] for k in kept], [self.names[k] for k in kept]
        return CaptionedPictures(self.pictures[kept], captions, names, self.form, self.troubles)


def summary(data: CaptionedPictures, most: int = 3) -> str:
    """Return what was left out or lacks something, one line per kind, with the first names; "" where all is well."""
    by_kind: dict[str, list[str]] = {}
    for each in data.troubles:
        by_kind.setdefault(each.kind, []).append(each.name)
    return "\n".join(f"{len(names)} x {kind}: {list_names(names, most)}" for kind, names in by_kind.items())


def list_names(names: list[str], most: int) -> str:
    """Return the first `most` names and how many there are beside them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
