"""Pictures and captions of your own, in the forms in which people keep them, with a report of what cannot be used.

- **imagefolder**: pictures and a `metadata.jsonl` beside them or above, one line `{"file_name": ..., "text": ...}` per
  picture, as Hugging Face's `datasets` reads it.
- **text files**: `cat.png` and its caption in `cat.txt`.
- **class folders**: `cat/0001.png`: the folder's name is the caption.
- **shards**: WebDataset tars (`ldm_tutor.data.shards`). **torchvision:NAME:ROOT**: one of torchvision's data sets.

What is broken is left out and reported with its name; the good rest is used.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.data.captioned import (
    BAD_CAPTION,
    BROKEN_LINE,
    METADATA,
    NO_CAPTION,
    NOT_THERE,
    SHARD,
    TWICE,
    UNREADABLE,
    CaptionedPictures,
    Trouble,
)
from ldm_tutor.data.picture_files import open_pixels
from ldm_tutor.data.shards import ShardReport, find_shards, read_shards
from ldm_tutor.errors import ConfigError, TutorError

log = logging.getLogger(__name__)

ENDINGS = (
    ".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .tga .ico .jp2 .avif .mpo"  # of pictures
).split()
TORCHVISION = "torchvision:"
MOST_TEXT = 1 << 20  # bytes of one caption's file or line; more is another kind of data


@dataclass(frozen=True)
class Entry:
    """One picture before it is read: its name, its file or its bytes, and its caption, None where there is none."""

    name: str
    source: Path | bytes
    caption: str | None


Note = Callable[[Trouble], None]


def read_pictures(source: str | Path, side: int, *, wrap: Any = None) -> CaptionedPictures:
    """Read all good pictures of `source` (see the module), cut to the middle square, side x side.

    `wrap` (such as tqdm) may show progress. Raises ConfigError where there is no such place or no readable picture.
    """
    if str(source).startswith(TORCHVISION):
        from ldm_tutor.data.torchvision_sets import read_torchvision

        return read_torchvision(str(source).removeprefix(TORCHVISION), side)
    troubles: list[Trouble] = []
    form, entries = find_entries(source, troubles.append)
    show = wrap or (lambda each, **_: each)
    pictures, captions, names = [], [], []
    for entry in show(entries, desc="reading pictures"):
        try:
            pictures.append(open_pixels(entry.source, side))
        except TutorError as error:
            troubles.append(Trouble(entry.name, UNREADABLE, _without_name(str(error), entry)))
            continue
        captions.append(entry.caption or "")
        names.append(entry.name)
    if not pictures:
        told = ", ".join(f"{number} x {kind}" for kind, number in Counter(each.kind for each in troubles).items())
        raise ConfigError(
            f"no readable picture in {source}", given=told or "no picture files", expected="PNG, JPEG and the like"
        )
    return CaptionedPictures(torch.cat(pictures), captions, names, form, tuple(troubles))


# ---------------------------------------------------------------- what is there


def find_entries(source: str | Path, note: Note) -> tuple[str, Iterable[Entry]]:
    """Return the form of `source` and its pictures, none of them decoded; what is wrong goes to `note`."""
    place = Path(source).expanduser().resolve()
    if place.suffix == ".tar" or "{" in place.name:
        return "shards", _from_shards(find_shards(place), note)
    if not place.is_dir():
        what = "this is a file" if place.exists() else "there is no such folder"
        raise ConfigError(f"pictures of your own: {what}", given=str(source), expected="a folder of pictures")
    files = sorted(_walk(place))
    tables = [path for path in files if path.name == METADATA]
    pictures = [path for path in files if path.suffix.lower() in ENDINGS]
    if tables:
        return f"imagefolder with {METADATA}", _from_tables(place, tables, pictures, note)
    if not pictures and any(path.suffix == ".tar" for path in files if path.parent == place):
        return "shards", _from_shards(find_shards(place), note)
    texts = {path.with_suffix("") for path in files if path.suffix.lower() == ".txt"}
    if any(path.with_suffix("") in texts for path in pictures):
        return "pictures with text files", _from_texts(place, pictures, note)
    if pictures and all(path.parent != place for path in pictures):
        return "class folders", _from_classes(place, pictures)
    return "pictures without captions", _bare(place, pictures, note)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below `folder` but hidden ones and what macOS adds to zips; links to folders are not followed."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _from_tables(folder: Path, tables: list[Path], pictures: list[Path], note: Note) -> list[Entry]:
    entries: dict[Path, Entry] = {}
    lost: set[Path] = set()
    for table in tables:
        for number, line in enumerate(table.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            if not line.strip():
                continue
            where = f"{table.relative_to(folder).as_posix()}, line {number}"
            row = _row(line, where, note)
            if row is None:
                continue
            path = Path(os.path.normpath(table.parent / row["file_name"]))
            name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(row["file_name"])
            if path in entries or path in lost:
                note(Trouble(name, TWICE, f"{where}; the first line counts"))
            elif not path.is_relative_to(folder) or not path.is_file():
                inside = path.is_relative_to(folder)
                note(Trouble(name, NOT_THERE, where if inside else f"{where}: outside of the folder"))
                lost.add(path)
            else:
                told = row.get("text", row.get("caption"))
                entries[path] = Entry(name, path, _checked(told, name, where, note))
    for path in pictures:
        if path not in entries:
            name = path.relative_to(folder).as_posix()
            note(Trouble(name, NO_CAPTION, f"no line in {METADATA}"))
            entries[path] = Entry(name, path, None)
    return sorted(entries.values(), key=lambda entry: entry.name)


def _row(line: bytes, where: str, note: Note) -> dict[str, Any] | None:
    try:
        row = json.loads(line[:MOST_TEXT].decode("utf-8"))
    except UnicodeDecodeError as error:
        note(Trouble(where, BROKEN_LINE, f"not UTF-8 at byte {error.start}"))
        return None
    except (ValueError, RecursionError) as error:
        note(Trouble(where, BROKEN_LINE, str(error)[:100]))
        return None
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        note(Trouble(where, BROKEN_LINE, "no file_name"))
        return None
    return row


def _checked(told: Any, name: str, where: str, note: Note) -> str | None:
    """Return a caption with its spaces tidied, None and a note where there is none or it is no text."""
    if told is None or (isinstance(told, str) and not told.strip()):
        note(Trouble(name, NO_CAPTION, where))
        return None
    try:
        if isinstance(told, str) and told.encode("utf-8"):
            return " ".join(told.split())
        reason = f"{type(told).__name__}, not text"
    except UnicodeEncodeError:
        reason = "half a character (a lone surrogate)"
    note(Trouble(name, BAD_CAPTION, f"{where}: {reason}"))
    return None


def _from_texts(folder: Path, pictures: list[Path], note: Note) -> Iterator[Entry]:
    for path in pictures:
        name, text = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
        caption = None
        try:
            with open(text, "rb") as file:
                caption = _checked(file.read(MOST_TEXT).decode("utf-8-sig"), name, text.name, note)
        except FileNotFoundError:
            note(Trouble(name, NO_CAPTION, f"no {text.name}"))
        except UnicodeDecodeError as error:
            note(Trouble(name, BAD_CAPTION, f"{text.name}: not UTF-8 at byte {error.start}"))
        except OSError as error:
            note(Trouble(name, BAD_CAPTION, f"{text.name}: {error.strerror}"))
        yield Entry(name, path, caption)


def _from_classes(folder: Path, pictures: list[Path]) -> Iterator[Entry]:
    for path in pictures:
        caption = " ".join(path.parent.name.replace("_", " ").replace("-", " ").split())
        yield Entry(path.relative_to(folder).as_posix(), path, caption or None)


def _bare(folder: Path, pictures: list[Path], note: Note) -> Iterator[Entry]:
    for path in pictures:
        name = path.relative_to(folder).as_posix()
        note(Trouble(name, NO_CAPTION, "neither a table, a text file nor a folder's name"))
        yield Entry(name, path, None)


def _from_shards(paths: list[Path], note: Note) -> Iterator[Entry]:
    report = ShardReport()
    seen = 0
    try:
        for sample in read_shards(paths, report):
            for trouble in report.troubles[seen:]:
                note(Trouble(trouble.split(":")[0], SHARD, trouble))
            seen = len(report.troubles)
            name = f"{sample.shard}/{sample.key}"
            try:
                caption = _checked(sample.caption, name, sample.shard, note)
            except TutorError as error:
                note(Trouble(name, BAD_CAPTION, str(error)))
                caption = None
            if sample.picture is None:
                note(Trouble(name, NOT_THERE, "a sample without a picture"))
                continue
            yield Entry(name, sample.picture, caption)
    except TutorError as error:
        log.info("%s", error)
    for trouble in report.troubles[seen:]:
        note(Trouble(trouble.split(":")[0], SHARD, trouble))


# ---------------------------------------------------------------- pixels


def _without_name(text: str, entry: Entry) -> str:
    """Return an error's words without the path, which stands before them in the report already."""
    return text.replace(f"{entry.source} ", "", 1) if isinstance(entry.source, Path) else text
