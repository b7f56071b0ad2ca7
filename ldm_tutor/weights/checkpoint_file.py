"""Published `.ckpt` files: what is in them is found without running anything and without reading the numbers.

A `.ckpt` is a zip archive with a pickle, which can name any program to run. It is opened by `torch.load` with
`weights_only=True`, which knows tensors and plain values and refuses everything else, and under torch's fake tensors,
which have types, shapes and the place of the numbers in the file.
"""

from __future__ import annotations

import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm_tutor.errors import WeightsError
from ldm_tutor.shapes import Tensor
from ldm_tutor.weights.tensors import GET_AGAIN, Place, Tensors, is_pickle, open_tensors

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")


class _Inert:
    """Stands where a published file names a class that has nothing to do with weights; does nothing."""

    def __init__(self, *args: object) -> None:
        pass


# Lightning writes the type of its callbacks as a key beside the weights, in Stable Diffusion v1's files too.
_HARMLESS = [(_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def open_checkpoint(path: str | Path) -> Tensors:
    """Return the tensors of a `.safetensors` file or of a `.ckpt`; WeightsError for whatever else the file is.

    Of a training's checkpoint these are the tensors under `state_dict`.
    """
    path = Path(path)
    if not path.is_file() or path.suffix == ".safetensors" or not is_pickle(path):
        return open_tensors(path)  # torch goes by the name too, so a pickle that calls itself otherwise is refused here
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path}: cut off, or a pickle in the form of torch before 1.6",
            expected="a whole .ckpt written by torch.save, or better a .safetensors file",
            fix=f"{GET_AGAIN}; an old file that you trust: torch.save(torch.load(path, weights_only=True), path)",
        )
    values = _unpickle(path)
    if isinstance(values, Mapping) and isinstance(values.get("state_dict"), Mapping):
        values = values["state_dict"]
    if not isinstance(values, Mapping) or not any(isinstance(value, Tensor) for value in values.values()):
        raise WeightsError(f"{path}: no tensors with names in it", given=type(values).__name__, expected="a state_dict")
    named = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    return Tensors(path, {name: _place(path, name, value) for name, value in named.items()})


def _unpickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(list(_HARMLESS)), FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)", str(error))
        raise WeightsError(
            f"{path}: the pickle in it asks for more than tensors and plain values; refused, nothing of it was run",
            given=next(filter(None, named.groups())) if named else str(error).splitlines()[0],
            expected="tensors, numbers, texts, lists and dictionaries",
            fix="get the model as .safetensors",
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: cut off, or no file of torch.save ({reason})", fix=GET_AGAIN) from error


def _place(path: Path, name: str, value: Tensor) -> Place:
    """Return where the numbers of a fake tensor are; torch notes where its storage begins in the file."""
    begin = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if begin is None or sys.byteorder != "little" or not value.is_contiguous():
        raise WeightsError(
            f"{path}: {name} does not lie in the file as one row of numbers",
            given={"shape": tuple(value.shape), "strides": value.stride()},
            expected="contiguous tensors, written by torch 1.6 or newer on a usual machine",
            fix="get the model as .safetensors",
        )
    span = (begin + value.storage_offset() * value.element_size(), value.numel() * value.element_size())
    return Place(path, value.dtype, tuple(value.shape), (span,))
