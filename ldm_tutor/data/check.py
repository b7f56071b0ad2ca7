"""What is in a folder of pictures and captions, before a training finds out: sizes, captions, tokens, doubles."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ldm_tutor.data.captioned import BAD_CAPTION, NO_CAPTION, CaptionedPictures, Trouble, list_names
from ldm_tutor.data.folders import find_entries, read_pictures
from ldm_tutor.data.picture_files import picture_size
from ldm_tutor.errors import TutorError
from ldm_tutor.models.tokenizer import Tokenizer, clean, split_words

USED_ALL_THE_SAME = (NO_CAPTION, BAD_CAPTION)  # such a picture still teaches an autoencoder
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class FolderCheck:
    """What `check_pictures` found. Names are those of the report: paths below the folder."""

    data: CaptionedPictures
    side: int
    num_files: int  # pictures that are there or were named, readable or not
    sizes: list[tuple[int, int]]  # of the good ones, upright, width and height
    kinds: Counter[str]  # "grey", "transparent", "CMYK", "animated, first frame taken", ...
    small: list[str]  # pictures with a side shorter than `side`: they are enlarged
    narrow: list[str]  # more than twice as long as wide: the middle square loses more than half
    same_picture: list[list[str]]  # groups of names whose pixels are the same at this size
    same_caption: dict[str, list[str]]  # caption: names, two or more
    token_lengths: list[int]  # of each caption that is there, without the frame
    too_long: list[str]  # names whose caption does not fit into the context
    num_words: int  # different words
    rare_words: list[str]  # words that one picture alone has
    context_length: int
    vocab_size: int
    troubles: list[Trouble] = field(default_factory=list)

    @property
    def num_captioned(self) -> int:
        """Good pictures with a caption: what CLIP and the U-Net can learn from."""
        return sum(map(bool, self.data.captions))

    def counts(self) -> dict[str, int]:
        """Return the troubles by kind."""
        return dict(Counter(each.kind for each in self.troubles))


def check_pictures(
    source: str | Path, side: int = 64, *, context_length: int = 32, vocab_size: int = 2048, wrap: Any = None
) -> FolderCheck:
    """Read all of `source` (see `ldm_tutor.data.folders`) and count what is in it; nothing is written.

    Raises ConfigError where there is no such place or no readable picture.
    """
    data = read_pictures(source, side, wrap=wrap)
    sizes, kinds, small, narrow = _headers(source, data, side)
    told = [(name, caption) for name, caption in zip(data.names, data.captions, strict=True) if caption]
    tokenizer = Tokenizer.train([caption for _, caption in told], vocab_size, context_length)
    lengths = [len(tokenizer.encode(caption)) for _, caption in told]
    by_caption: dict[str, list[str]] = defaultdict(list)
    words: Counter[str] = Counter()
    for name, caption in told:
        by_caption[clean(caption)].append(name)
        words.update(set(split_words(caption)))
    left_out = sum(each.kind not in USED_ALL_THE_SAME for each in data.troubles)
    return FolderCheck(
        data=data,
        side=side,
        num_files=len(data) + left_out,
        sizes=sizes,
        kinds=kinds,
        small=small,
        narrow=narrow,
        same_picture=_same(data),
        same_caption={caption: names for caption, names in by_caption.items() if len(names) > 1},
        token_lengths=lengths,
        too_long=[
            name for (name, _), length in zip(told, lengths, strict=True) if length > context_length - 2
        ],
        num_words=len(words),
        rare_words=sorted(word for word, number in words.items() if number == 1),
        context_length=context_length,
        vocab_size=tokenizer.vocab_size,
        troubles=list(data.troubles),
    )  # fmt: skip


def report(check: FolderCheck, most: int = 5) -> list[str]:
    """Return the check as lines to print; of names, the first `most` of each kind."""
    data = check.data
    lines = [
        f"form: {data.form}",
        f"pictures: {len(data)} good, {check.num_captioned} of them with a caption",
    ]
    if check.sizes:
        widths, heights = zip(*check.sizes, strict=True)
        lines.append(
            f"sizes: {min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high; "
            f"here the middle square at {check.side} x {check.side}"
        )
    if check.kinds:
        lines.append("kinds: " + ", ".join(f"{number} {kind}" for kind, number in check.kinds.most_common()))
    if check.token_lengths:
        lengths = sorted(check.token_lengths)
        lines.append(
            f"captions: {check.num_words} different words, {check.vocab_size} tokens in a vocabulary made of them; "
            f"{lengths[0]} to {lengths[-1]} tokens long, half of them up to {lengths[len(lengths) // 2]}, "
            f"room for {check.context_length - 2}"
        )
    lines += ["", "left out or lacking something:"] if check.troubles else ["", "nothing is left out"]
    by_kind: dict[str, list[Trouble]] = defaultdict(list)
    for each in check.troubles:
        by_kind[each.kind].append(each)
    for kind, found in sorted(by_kind.items()):
        lines.append(f"  {len(found)} x {kind}")
        lines += [f"      {each.name}{f' ({each.reason})' if each.reason else ''}" for each in found[:most]]
        lines += [f"      and {len(found) - most} more"] if len(found) > most else []
    lines += ["", *_remarks(check, most)]
    return lines


def _remarks(check: FolderCheck, most: int) -> list[str]:
    """Return what is used all the same and worth a look."""
    lines = []
    doubles = sum(len(names) - 1 for names in check.same_picture)
    if doubles:
        lines.append(f"copies of another picture: {doubles} ({'; '.join(map(_pair, check.same_picture[:most]))})")
    if check.same_caption:
        often = sorted(check.same_caption.items(), key=lambda each: -len(each[1]))[:most]
        told = ", ".join(f"{caption[:60]!r} x {len(names)}" for caption, names in often)
        lines.append(f"captions with more than one picture: {len(check.same_caption)} ({told})")
    for what, found in (
        (f"captions longer than {check.context_length - 2} tokens, whose ends training cuts off", check.too_long),
        (f"pictures smaller than {check.side} pixels, which are enlarged", check.small),
        ("pictures more than twice as long as wide, of which less than half is used", check.narrow),
    ):
        lines += [f"{what}: {len(found)} ({list_names(found, most)})"] if found else []
    if check.token_lengths and check.rare_words:
        share = len(check.rare_words) / check.num_words
        lines.append(f"words that one picture alone has: {share:.0%} ({list_names(check.rare_words, most)})")
    if check.num_captioned < 1000:
        lines.append(
            f"pictures with a caption: {check.num_captioned}, few enough for a U-Net to learn them by heart; "
            "measure that (nearest training picture) before you call anything new"
        )
    return lines


def _pair(names: list[str]) -> str:
    return " = ".join(names[:3]) + (f" = and {len(names) - 3} more" if len(names) > 3 else "")


def to_dict(check: FolderCheck) -> dict[str, Any]:
    """Return the check for JSON, with every name."""
    return {
        "form": check.data.form,
        "good": len(check.data),
        "with_caption": check.num_captioned,
        "side": check.side,
        "sizes": [list(size) for size in check.sizes],
        "kinds": dict(check.kinds),
        "troubles": [{"name": each.name, "kind": each.kind, "reason": each.reason} for each in check.troubles],
        "same_picture": check.same_picture,
        "same_caption": check.same_caption,
        "too_long": check.too_long,
        "smaller_than_side": check.small,
        "narrow": check.narrow,
        "words": check.num_words,
        "token_lengths": check.token_lengths,
    }


# ---------------------------------------------------------------- looking


def _headers(
    source: str | Path, data: CaptionedPictures, side: int
) -> tuple[list[tuple[int, int]], Counter[str], list[str], list[str]]:
    """Return sizes, kinds, small and narrow pictures of the good ones, from their headers."""
    sizes: list[tuple[int, int]] = []
    kinds: Counter[str] = Counter()
    small: list[str] = []
    narrow: list[str] = []
    good = set(data.names)
    try:
        _, entries = find_entries(source, lambda trouble: None)
    except TutorError:  # a torchvision set has no files of pictures
        return sizes, kinds, small, narrow
    for entry in entries:
        if entry.name not in good:
            continue
        width, height = picture_size(entry.source)
        sizes.append((width, height))
        kinds.update(_kinds(entry.source))
        if min(width, height) < side:
            small.append(entry.name)
        if max(width, height) > 2 * min(width, height):
            narrow.append(entry.name)
    return sizes, kinds, small, narrow


def _kinds(source: Path | bytes) -> Iterable[str]:
    """Yield what is special about a picture file that has been read before."""
    import io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                yield _MODES.get(image.mode, image.mode)
                if "transparency" in image.info and image.mode not in ("RGBA", "LA"):
                    yield "transparent"
                if image.getexif().get(_ORIENTATION, 1) not in (0, 1):
                    yield "turned upright (EXIF)"
                if getattr(image, "n_frames", 1) > 1:
                    yield "animated, first frame taken"
        except Exception:  # its pixels were read; a broken note or a missing last frame changes nothing
            return


_MODES = {
    "RGB": "colour", "RGBA": "transparent, on white", "LA": "transparent, on white", "L": "grey",
    "1": "black and white", "P": "palette", "CMYK": "CMYK", "I;16": "16 bits", "I;16B": "16 bits",
    "I": "16 bits or more", "F": "floating point", "LAB": "Lab", "YCbCr": "YCbCr",
}  # fmt: skip


def _same(data: CaptionedPictures) -> list[list[str]]:
    groups: dict[bytes, list[str]] = defaultdict(list)
    for picture, name in zip(data.pictures, data.names, strict=True):
        groups[hashlib.sha256(picture.numpy().tobytes()).digest()].append(name)
    return [names for names in groups.values() if len(names) > 1]
