"""WebDataset shards: pictures and captions in plain tar files, each of them read from front to back.

A sample is a run of files with the same key, the name up to its first point: `000017.png`, `000017.txt`,
`000017.json`. A million small files are slow to open and to copy; a thousand tars of a thousand samples are not, and
each process or worker reads tars of its own. The format is that of the `webdataset` library (Aizman, Maltzahn, Breuel
2020, arXiv 2001.01858), which the tests read and write beside ours.
"""

from __future__ import annotations

import io
import json
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.shapes import Tensor
from ldm_tutor.weights.files import atomic_file

log = logging.getLogger(__name__)

PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
CAPTION = "txt"
PER_SHARD = 1000
MAX_BYTES = 256 << 20  # of one file in a shard; a larger one is damage or another kind of data
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardSample:
    """One sample: its key and its files by ending, such as {"png": ..., "txt": ...}, as bytes."""

    key: str
    files: Mapping[str, bytes]
    shard: str = ""  # the name of the tar that it came from

    @property
    def picture(self) -> bytes | None:
        """The bytes of its picture file, of whatever format; None where it has none."""
        return next((self.files[ending] for ending in PICTURES if ending in self.files), None)

    @property
    def caption(self) -> str | None:
        """Its caption: the text file, or "caption" or "text" in its JSON file; None where there is none.

        Raises TutorError, with shard and key, for a text that is not UTF-8 and for JSON that is none.
        """
        try:
            if CAPTION in self.files:
                return self.files[CAPTION].decode("utf-8").strip()
            told = json.loads(self.files["json"]) if "json" in self.files else {}
        except ValueError as error:  # of the text's letters, or of JSON
            raise TutorError(f"{self.shard}: {self.key}: its caption cannot be read ({error})") from error
        told = told if isinstance(told, dict) else {}
        found = next((told[name] for name in ("caption", "text") if name in told), None)
        return found.strip() if isinstance(found, str) else None


@dataclass
class ShardReport:
    """What a reading met: good samples by shard, and troubles as sentences with shard and key; `loud`: logged too."""

    samples: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    loud: bool = False

    @property
    def num_samples(self) -> int:
        """All good samples of all shards."""
        return sum(self.samples.values())

    def note(self, trouble: str) -> None:
        """Keep a trouble."""
        self.troubles.append(trouble)
        if self.loud:
            log.warning("%s", trouble)


# ---------------------------------------------------------------- writing


def write_shards(
    samples: Iterable[tuple[Tensor | bytes, str] | ShardSample],
    folder: Path,
    *,
    per_shard: int = PER_SHARD,
    name: str = "shard",
) -> list[Path]:
    """Write samples to folder/name-000000.tar, name-000001.tar ...; return their paths.

    A sample is a `ShardSample`, or a picture and its caption: uint8 (3, H, W), kept as PNG without loss, or the bytes
    of a PNG file. Each shard appears whole or not at all, and the same samples make the same bytes.
    Raises ConfigError where shards of this name are there already, or a sample is none.
    """
    if per_shard < 1:
        raise ConfigError("write_shards: per_shard", given=per_shard, expected="1 or more")
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError("write_shards: name", given=name, expected="letters, digits, _ and -")
    if there := sorted(folder.glob(f"{name}-*.tar")):
        raise ConfigError(f"{there[0]} is there already", fix="another folder or name, or remove the old shards")
    paths: list[Path] = []
    batch: list[ShardSample] = []
    for number, sample in enumerate(samples):
        batch.append(sample if isinstance(sample, ShardSample) else _as_sample(number, *sample))
        if len(batch) == per_shard:
            paths.append(_write_one(folder / f"{name}-{len(paths):06d}.tar", batch))
            batch = []
    if batch:
        paths.append(_write_one(folder / f"{name}-{len(paths):06d}.tar", batch))
    return paths


def _as_sample(number: int, picture: Tensor | bytes, caption: str) -> ShardSample:
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype.itemsize != 1:
            given = (tuple(picture.shape), str(picture.dtype))
            raise ConfigError(f"write_shards: picture {number}", given=given, expected="uint8 (3, H, W)")
        stream = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(stream, "PNG")
        picture = stream.getvalue()
    return ShardSample(f"{number:09d}", {"png": picture, CAPTION: caption.encode("utf-8")})


def _write_one(path: Path, samples: Sequence[ShardSample]) -> Path:
    with atomic_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for ending, content in sample.files.items():
                member = tarfile.TarInfo(f"{sample.key}.{ending}")  # no time and no owner: the same bytes every time
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


# ---------------------------------------------------------------- reading


def find_shards(source: str | Path) -> list[Path]:
    """Return the shards that `source` means: one tar, all tars of a folder, or a pattern "name-{000000..000009}.tar".

    Raises ConfigError where nothing is found, and names the first that a pattern asks for in vain.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(each for each in path.glob("*.tar") if not each.name.startswith("."))
        if not found:
            raise ConfigError(f"no shards in {path}", expected="files that end in .tar")
        return found
    numbers = _RANGE.search(str(source))
    if numbers is None:
        found = [path]
    else:
        first, last = numbers.groups()
        width = len(first)
        before, after = str(source)[: numbers.start()], str(source)[numbers.end() :]
        found = [Path(f"{before}{number:0{width}d}{after}") for number in range(int(first), int(last) + 1)]
    missing = [each for each in found if not each.is_file()]
    if missing or not found:
        raise ConfigError(f"no shard at {missing[0] if missing else source}", fix="look at the folder and the pattern")
    return found


def share_of_shards(paths: Sequence[Path], rank: int, size: int) -> list[Path]:
    """Return the shards that process `rank` of `size` reads: every `size`-th, so that all are read once."""
    if not 0 <= rank < size:
        raise ConfigError("share_of_shards: rank", given=rank, expected=f"0 to {size - 1}")
    return list(paths[rank::size])


def read_shards(paths: Iterable[Path], report: ShardReport | None = None) -> Iterator[ShardSample]:
    """Yield the samples of the shards, in their order, as bytes; nothing is unpacked to disk.

    What is damaged never stops the reading: a shard that is cut off gives the samples before the cut. `report` is
    filled with counts and troubles as the reading goes on. Raises TutorError at the end if no sample was good.
    """
    report = ShardReport(loud=True) if report is None else report
    for path in paths:
        report.samples[str(path)] = 0
        for sample in _read_one(path, report):
            report.samples[str(path)] += 1
            yield sample
    if report.num_samples == 0:
        raise TutorError(f"no readable sample in {len(report.samples)} shards", given=report.troubles[:3])


def _read_one(path: Path, report: ShardReport) -> Iterator[ShardSample]:
    """Yield a shard's whole samples; troubles go to the report."""
    key, whole = "", True  # of the sample that is being gathered
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                new_key, ending = _split(member.name)
                if new_key != key:
                    if files and whole:
                        yield ShardSample(key, files, path.name)
                    key, files, whole = new_key, {}, True
                if ending in files or member.size > MAX_BYTES:
                    why = "twice" if ending in files else f"with {member.size:,} bytes"
                    report.note(f"{path.name}: {key} has a file .{ending} {why}; the sample is left out")
                    whole = False
                    continue
                content = tar.extractfile(member)
                files[ending] = content.read() if content is not None else b""
                if len(files[ending]) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
            if not _has_end(tar):
                raise tarfile.ReadError("the end mark is missing")
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        before = report.samples[str(path)]
        lost = f"; the sample {key} is left out" if files else ""
        report.note(f"{path.name}: cut off or damaged after {before} samples ({error}){lost}")
        return
    if files and whole:
        yield ShardSample(key, files, path.name)


def _has_end(tar: tarfile.TarFile) -> bool:
    """Whether the tar ends as one should, with a block of zeros: without it, it was cut off between two files."""
    stream = tar.fileobj
    if stream is None:
        return False
    stream.seek(tar.offset)
    return stream.read(_BLOCK) == bytes(_BLOCK)


def _split(name: str) -> tuple[str, str]:
    """Key and ending: `a/b.c/000.seg.png` is ("a/b.c/000", "seg.png"), as the library has it."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


# ---------------------------------------------------------------- pictures in memory


def load_pictures(source: str | Path, side: int, report: ShardReport | None = None) -> tuple[Tensor, list[str]]:
    """Return all pictures of the shards, uint8 (N, 3, side, side), and their captions; what is unreadable is reported.

    A picture of another size is cut to its middle square and scaled. Raises TutorError where nothing is left.
    """
    import torch

    from ldm_tutor.data.picture_files import open_pixels

    report = ShardReport(loud=True) if report is None else report
    pictures, captions = [], []
    for sample in read_shards(find_shards(source), report):
        try:
            data, caption = sample.picture, sample.caption
            if data is None or not caption:
                raise TutorError(f"{sample.shard}: {sample.key} has no {'caption' if data is not None else 'picture'}")
            pictures.append(open_pixels(data, side))
            captions.append(caption)
        except ConfigError as error:
            report.note(f"{sample.shard}: {sample.key}: its picture cannot be read ({error})")
        except TutorError as error:
            report.note(str(error))
    if not pictures:
        raise TutorError(f"no sample with picture and caption in {source}", given=report.troubles[:3])
    return torch.cat(pictures), captions
