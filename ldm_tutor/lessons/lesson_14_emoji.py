"""The emoji of lesson 14: which of the drawings in a Noto Emoji folder are taken, and why.

python -m ldm_tutor.lessons.lesson_14_emoji noto-emoji-128.zip runs/emoji_pictures
python -m ldm_tutor.lessons.lesson_14_emoji noto-emoji-128.zip runs/emoji_few fruit "animal faces"
"""

from __future__ import annotations

import json
import logging
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from ldm_tutor.errors import ConfigError

log = logging.getLogger(__name__)

# First and last code point of each group. One code point each: no flags, no skin tones, no sequences.
GROUPS: dict[str, tuple[tuple[int, int], ...]] = {
    "fruit": ((0x1F347, 0x1F353),),
    "plants and food": ((0x1F330, 0x1F346), (0x1F354, 0x1F37F), (0x1F950, 0x1F96F)),
    "animal faces": ((0x1F42D, 0x1F43C),),
    "animals": ((0x1F400, 0x1F42C), (0x1F43D, 0x1F43F), (0x1F980, 0x1F9AE)),
    "faces": ((0x1F600, 0x1F644),),
    "hearts": ((0x1F493, 0x1F49F),),
    "circles and squares": ((0x1F534, 0x1F535), (0x1F7E0, 0x1F7EB)),
}


def group_of(codepoints: str) -> str | None:
    """Return the group of an emoji, given as hexadecimal code points; None where it is left out."""
    parts = codepoints.split()
    if len(parts) != 1:
        return None
    point = int(parts[0], 16)
    for name, ranges in GROUPS.items():
        if any(first <= point <= last for first, last in ranges):
            return name
    return None


def select(archive: Path, folder: Path, groups: Collection[str] = tuple(GROUPS)) -> int:
    """Unpack the emoji of `groups` from `archive` into `folder`, with a metadata.jsonl; return how many."""
    if unknown := set(groups) - set(GROUPS):
        raise ConfigError("select: unknown groups", given=sorted(unknown), expected=f"some of {tuple(GROUPS)}")
    try:
        with zipfile.ZipFile(archive) as packed:
            return _select(packed, folder, groups)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{archive}: no Noto Emoji archive ({error})",
            expected="a zip with metadata.jsonl (file_name, text, codepoints) and the pictures it names",
        ) from error


def _select(packed: zipfile.ZipFile, folder: Path, groups: Collection[str]) -> int:
    table = next((name for name in packed.namelist() if PurePosixPath(name).name == "metadata.jsonl"), "metadata.jsonl")
    rows: list[dict[str, Any]] = [json.loads(line) for line in packed.read(table).decode("utf-8").splitlines()]
    taken = [row for row in rows if row["text"].strip() and group_of(row["codepoints"]) in groups]
    folder.mkdir(parents=True, exist_ok=True)
    for row in taken:
        name = PurePosixPath(row["file_name"]).name
        (folder / name).write_bytes(packed.read(str(PurePosixPath(table).parent / row["file_name"])))
    lines = [json.dumps({"file_name": PurePosixPath(row["file_name"]).name, "text": row["text"]}) for row in taken]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return len(taken)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = sys.argv[3:] or tuple(GROUPS)
    log.info("%d emoji in %s", select(Path(sys.argv[1]), Path(sys.argv[2]), chosen), sys.argv[2])
