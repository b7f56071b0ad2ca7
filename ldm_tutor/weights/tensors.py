"""Tensors in files: what is there is known before anything is read, and each goes straight to where it stays.

So a model of N bytes takes N bytes of memory to load, and the few MiB of one piece; nothing is mapped into memory,
where it would count twice. A large model may lie in several files (shards) with an index beside them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ldm_tutor.errors import WeightsError
from ldm_tutor.shapes import Tensor

GET_AGAIN = "the file may be damaged: get it again, or train again"
INDEX_SUFFIX = ".index.json"  # behind the name that the file would have in one piece
PIECE = 2 * 2**20  # bytes that are read, converted and checked at a time
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # torch.save's zip archive, and a bare pickle
_CONVERT = (
    "ldm_tutor.weights.compvis reads published .ckpt files without running anything; to convert another file that "
    "you trust: state = torch.load(path, weights_only=True), then build the model, load the state and call save_model"
)
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the numbers of one tensor are: `spans` of a file, (first byte, number of bytes), one behind the other."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tensors:
    """The tensors of one file, or of several that belong together; `where` is the file that says which there are."""

    where: Path
    places: Mapping[str, Place]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """Return one tensor, of `dtype` if it is of a floating-point type; WeightsError for what is not finite."""
        place = self.places[name]
        floating = place.dtype.is_floating_point
        whole = torch.empty(place.shape, dtype=dtype if dtype and floating else place.dtype, device=device)
        flat, start = whole.view(-1), 0
        for piece in _pieces(place, flat):
            part = flat[start : start + len(piece)]
            if piece.data_ptr() != part.data_ptr():
                part.copy_(piece)
            if floating and not part.isfinite().all():
                problem = f"{place.file}: {name} holds numbers that are not finite in {whole.dtype}"
                raise WeightsError(problem, fix=GET_AGAIN)
            start += len(piece)
        return whole


def _pieces(place: Place, flat: Tensor) -> Iterator[Tensor]:
    """Yield the numbers as they are in the file, piece by piece; where type and device agree, in their final place.

    Otherwise a piece holds until the next one is asked for.
    """
    direct = flat.dtype == place.dtype and flat.device.type == "cpu"
    most = min(flat.numel(), PIECE // place.dtype.itemsize)
    between = torch.empty(0 if direct else most, dtype=place.dtype)  # each piece takes the place of the one before
    start = 0
    try:
        with open(place.file, "rb", buffering=0) as file:
            for offset, num_bytes in place.spans:
                file.seek(offset)
                left = num_bytes // place.dtype.itemsize
                while left:
                    count = min(left, most)
                    piece = flat[start : start + count] if direct else between[:count]
                    _fill_buffer(file, piece.view(torch.uint8).numpy().data)
                    yield piece
                    start, left = start + count, left - count
    except OSError as error:
        raise WeightsError(f"{place.file}: cannot be read ({error})") from error


def _fill_buffer(file: Any, buffer: memoryview) -> None:
    while len(buffer):
        count = file.readinto(buffer)
        if not count:
            raise WeightsError(f"{file.name}: cut off while it was read", fix=GET_AGAIN)
        buffer = buffer[count:]


# ---------------------------------------------------------------- into a model


def fill(
    model: nn.Module,
    tensors: Tensors,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    label: Callable[[str], str] = str,
) -> None:
    """Make the tensors the parameters of a model built on the meta device; WeightsError if a name or a shape differs.

    `dtype` None keeps the types on disk. `label` gives the name that an error calls a parameter by.
    """
    check_shapes(shapes_of(model), {name: place.shape for name, place in tensors.places.items()}, tensors.where, label)
    state = {name: tensors.read(name, device, dtype) for name in tensors.places}
    model.load_state_dict(state, strict=True, assign=True)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_shapes(
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    where: str | Path,
    label: Callable[[str], str] = str,
) -> None:
    """Compare names and shapes; WeightsError, which begins with `where`, names the first that differs, and both."""
    for name, shape in wanted.items():
        if name not in given:
            extra = [label(each) for each in given if each not in wanted][:3]
            hint = {"given": f"instead {extra}"} if extra else {}
            raise WeightsError(f"{where}: {label(name)} is missing", **hint, expected=f"shape {shape}", fix=GET_AGAIN)
        if given[name] != shape:
            raise WeightsError(f"{where}: {label(name)} has another shape", given=given[name], expected=f"{shape}")
    for name, shape in given.items():
        if name not in wanted:
            raise WeightsError(f"{where}: {label(name)} is in no such model", given=shape)


# ---------------------------------------------------------------- from a file


def open_tensors(path: str | Path) -> Tensors:
    """Return the tensors of a safetensors file, or of the shards that the index `<path>.index.json` lists.

    Nothing is read yet but headers. WeightsError for whatever else is there: missing, cut off, a pickle, a wrong shard.
    """
    path = Path(path)
    index = path.with_name(path.name + INDEX_SUFFIX)
    if not path.exists() and index.exists():
        return _open_shards(index)
    with opened(path) as file:
        metadata = file.metadata() or {}
    return Tensors(path, _places(path), metadata)


def _open_shards(index: Path) -> Tensors:
    """Read the index that Hugging Face's libraries write: `weight_map`, from each tensor to its file."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        bad = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: no index of shards ({type(error).__name__}: {error})", fix=GET_AGAIN) from error
    if bad:
        raise WeightsError(f"{index}: a shard outside of the folder", given=bad, expected="names of files beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(f"{index}: shards are missing", given=missing, expected=f"all of {names}", fix=GET_AGAIN)
    places: dict[str, Place] = {}
    for name in names:
        shard = open_tensors(index.parent / name)
        wanted = {tensor for tensor, file in weight_map.items() if file == name}
        for problem, tensors in (
            ("lacks tensors that the index says are in it", wanted - set(shard.places)),
            ("holds tensors that the index says are elsewhere or nowhere", set(shard.places) - wanted),
        ):
            if tensors:
                raise WeightsError(
                    f"{shard.where}: a wrong shard, which {problem}",
                    given=sorted(tensors)[:3],
                    expected=f"the {len(wanted)} tensors that {index.name} lists for {name}",
                    fix="get all shards again, from the same place",
                )
        places |= shard.places
    return Tensors(index, places)


def _places(path: Path) -> dict[str, Place]:
    """Read the header of a safetensors file that `opened` has found whole: a length, JSON, then the numbers."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    places = {}
    for name, entry in header.items():
        if entry["dtype"] not in _TYPES:
            raise WeightsError(f"{path}: {name} has another type", given=entry["dtype"], expected=f"one of {[*_TYPES]}")
        begin, end = entry["data_offsets"]
        span = (8 + length + begin, end - begin)
        places[name] = Place(path, _TYPES[entry["dtype"]], tuple(entry["shape"]), (span,))
    return places


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever else it is becomes a WeightsError that says so."""
    if path.is_dir():
        raise WeightsError(f"{path}: a folder", expected="a .safetensors file in it")
    if not path.exists():
        raise WeightsError(f"{path}: no such file", fix="check the path, or train the model first")
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        if is_pickle(path):
            problem = f"{path}: a pickle (.ckpt, .pt), not opened because it can run any program"
            raise WeightsError(problem, fix=_CONVERT) from error
        raise WeightsError(f"{path}: cut off, or no safetensors file ({error})", fix=GET_AGAIN) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error


def is_pickle(path: Path) -> bool:
    """Tell whether a file begins as those of torch.save do."""
    with open(path, "rb") as file:
        return file.read(4).startswith(_PICKLE_STARTS)
