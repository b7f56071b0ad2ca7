"""Weights on disk: safetensors with the configuration inside, written whole or not at all, and read strictly.

The file's metadata hold, under the key `ldm_tutor`, a JSON text with the format's version, the kind of model, its
configuration and what the caller adds. Nothing here opens a pickle: unpickling can run any program.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ldm_tutor.config import (
    AutoencoderConfig,
    BertEncoderConfig,
    ClassEncoderConfig,
    ClipConfig,
    ConditionConfig,
    Config,
    JudgeConfig,
    UNetConfig,
    VQAutoencoderConfig,
)
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.class_encoder import ClassEncoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.condition import Condition
from ldm_tutor.models.dit import DiT, DiTConfig
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.shapes import Tensor
from ldm_tutor.weights.tensors import GET_AGAIN, check_shapes, fill, open_tensors, shapes_of

FORMAT_VERSION = 1
METADATA_KEY = "ldm_tutor"
SUMS_FILE = "SHA256SUMS"
_LEFTOVER_AGE = 3600.0  # seconds after which a temporary file of a killed process is removed
_SUMS_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class _Kind:
    model: type[nn.Module]
    config: type[Config]


KINDS = {
    "autoencoder": _Kind(Autoencoder, AutoencoderConfig),
    "clip": _Kind(Clip, ClipConfig),
    "unet": _Kind(UNet, UNetConfig),
    "judge": _Kind(Judge, JudgeConfig),
    "vq_autoencoder": _Kind(VQAutoencoder, VQAutoencoderConfig),
    "bert_encoder": _Kind(BertEncoder, BertEncoderConfig),
    "class_encoder": _Kind(ClassEncoder, ClassEncoderConfig),
    "condition": _Kind(Condition, ConditionConfig),
    "dit": _Kind(DiT, DiTConfig),
}


def save_model(
    path: str | Path,
    model: nn.Module,
    *,
    kind: str,
    config: Config,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model with its configuration; the file at `path` is the old one or the whole new one, never a part.

    `dtype` (float16, say) is the type on disk, by default the model's own; `metadata` is anything that fits into
    JSON. Raises WeightsError if a number is not finite (in that type), if model and configuration differ, or if the
    disk refuses.
    """
    path = Path(path)
    known = _kind(kind, f"save_model {path}")
    if not isinstance(model, known.model) or not isinstance(config, known.config):
        raise WeightsError(
            f"{path}: not written, the kind {kind!r} is another model",
            given=(type(model).__name__, type(config).__name__),
            expected=f"{known.model.__name__} (not wrapped) and {known.config.__name__}",
        )
    extra = dict(metadata or {})
    if isinstance(model, Clip):
        extra["end_id"] = model.end_id
    where = f"{path}: not written"
    state = state_for_disk(model, dtype, where)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    check_shapes(shapes_of(_build_empty(kind, config, extra, path)), shapes, f"{where}, config and model differ")
    header = {"version": FORMAT_VERSION, "kind": kind, "config": config.to_dict(), "metadata": extra}
    try:
        text = json.dumps(header)
    except TypeError as error:
        raise ConfigError(f"save_model metadata: {error}", given=extra, expected="what fits into JSON") from error
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt", METADATA_KEY: text})
    return path


def read_header(path: str | Path) -> dict[str, Any]:
    """Return version, kind, config and metadata of a weights file as plain values, without reading its tensors."""
    path = Path(path)
    tensors = open_tensors(path)
    text = tensors.metadata.get(METADATA_KEY)
    if text is None:
        raise WeightsError(
            f"{path}: a safetensors file of another program, without a configuration that we can read",
            given=sorted(tensors.places)[:3],
            expected="a file written by ldm_tutor's save_model",
            fix="ldm_tutor.weights.sources opens models of other programs; ldm_tutor.weights.names has their names",
        )
    try:
        header = json.loads(text)
        version = header["version"]
        newer = version > FORMAT_VERSION
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its configuration cannot be read ({error})", fix=GET_AGAIN) from error
    if newer:
        raise WeightsError(
            f"{path}: written by a newer ldm_tutor",
            given=f"format {version}",
            expected=f"format {FORMAT_VERSION} or older",
            fix="update ldm_tutor (git pull)",
        )
    for name, kind in (("kind", str), ("config", dict), ("metadata", dict)):
        if not isinstance(header.get(name), kind):
            raise WeightsError(f"{path}: its header has no {name}", given=header.get(name), fix=GET_AGAIN)
    return header


_Device = str | torch.device


@overload
def load_model(
    path: str | Path, kind: Literal["autoencoder"], device: _Device = ..., dtype: torch.dtype | None = ...
) -> Autoencoder: ...
@overload
def load_model(
    path: str | Path, kind: Literal["clip"], device: _Device = ..., dtype: torch.dtype | None = ...
) -> Clip: ...
@overload
def load_model(
    path: str | Path, kind: Literal["unet"], device: _Device = ..., dtype: torch.dtype | None = ...
) -> UNet: ...
@overload
def load_model(
    path: str | Path, kind: Literal["judge"], device: _Device = ..., dtype: torch.dtype | None = ...
) -> Judge: ...
@overload
def load_model(
    path: str | Path, kind: Literal["condition"], device: _Device = ..., dtype: torch.dtype | None = ...
) -> Condition: ...
@overload
def load_model(
    path: str | Path, kind: str | None = ..., device: _Device = ..., dtype: torch.dtype | None = ...
) -> nn.Module: ...
def load_model(
    path: str | Path,
    kind: str | None = None,
    device: _Device = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> nn.Module:
    """Return the model in the file at `path`, in evaluation mode, every number checked to be finite.

    `kind` is what the caller expects (None: whatever it is). `dtype` None keeps the type on disk. Raises WeightsError
    for a file that is missing, cut off, foreign, a pickle, of another kind, of a newer format, or of another size.
    """
    path = Path(path)
    if kind is not None:
        _kind(kind, f"load_model {path}")
    header = read_header(path)
    found = header["kind"]
    if found not in KINDS or kind not in (None, found):
        raise WeightsError(f"{path}: another kind of model", given=found, expected=kind or f"one of {sorted(KINDS)}")
    try:
        config = KINDS[found].config.from_dict(header["config"])
    except (ConfigError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"{path}: its configuration does not fit this version ({error})", fix=GET_AGAIN) from error
    model = _build_empty(found, config, header["metadata"], path)
    fill(model, open_tensors(path), device, dtype)
    return model.eval()


def state_for_disk(model: nn.Module, dtype: torch.dtype | None, where: str) -> dict[str, Tensor]:
    """Return the model's tensors as a file takes them, floating-point ones in `dtype` (None: their own).

    WeightsError, which `where` begins, if a number is not finite, or too large for `dtype`.
    """
    return {name: _for_disk(value, dtype, f"{where}, {name}") for name, value in model.state_dict().items()}


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; what is written there takes the place of `path` at the end.

    After any error, a full disk or Ctrl-C, the old file is as it was and the temporary one is gone. OSError becomes
    WeightsError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary.touch()
        mode = temporary.stat().st_mode  # as for any new file; safetensors makes its own readable by the owner only
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: could not be written ({error})",
            fix="free disk space or choose another folder" + ("; the old file is intact" if path.is_file() else ""),
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits; WeightsError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})", fix=GET_AGAIN) from error


def write_sums(folder: str | Path) -> Path:
    """Write SHA256SUMS over all files in `folder` and below, as coreutils' sha256sum has it; return its path."""
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder")
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    names = sorted(path.relative_to(folder).as_posix() for path in files if path != folder / SUMS_FILE)
    with atomic_file(folder / SUMS_FILE) as temporary:
        lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
    return folder / SUMS_FILE


def check_sums(folder: str | Path) -> list[str]:
    """Compare every file that SHA256SUMS lists; return their names. WeightsError names each that is not as listed."""
    sums = Path(folder) / SUMS_FILE
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{sums}: cannot be read ({error})", fix=GET_AGAIN) from error
    names, wrong = [], []
    for number, line in enumerate(lines, start=1):
        match = _SUMS_LINE.fullmatch(line)
        if match is None:
            raise WeightsError(f"{sums}, line {number}", given=line, expected="a SHA-256, two spaces and a file name")
        digest, name = match.groups()
        names.append(name)
        if not (sums.parent / name).is_file():
            wrong.append(f"{name} (missing)")
        elif sha256_of(sums.parent / name) != digest:
            wrong.append(name)
    if wrong:
        raise WeightsError(f"{sums.parent}: not as listed in {SUMS_FILE}", given=wrong, fix=GET_AGAIN)
    return names


def _kind(kind: str, where: str) -> _Kind:
    if kind not in KINDS:
        raise ConfigError(f"{where}: unknown kind of model", given=kind, expected=f"one of {sorted(KINDS)}")
    return KINDS[kind]


def _build_empty(kind: str, config: Config, metadata: Mapping[str, Any], path: Path) -> nn.Module:
    """Build the model on the meta device: shapes without numbers."""
    arguments: dict[str, Any] = {}
    if kind == "clip":
        if not isinstance(metadata.get("end_id"), int):
            raise WeightsError(f"{path}: a clip file without the tokenizer's end_id in its metadata", fix=GET_AGAIN)
        arguments["end_id"] = metadata["end_id"]
    with torch.device("meta"):
        return KINDS[kind].model(config, **arguments)


def _for_disk(value: Tensor, dtype: torch.dtype | None, where: str) -> Tensor:
    """Return what goes into the file; WeightsError if a number is not finite, or is too large for `dtype`."""
    value = value.detach().cpu().contiguous()
    if not value.is_floating_point():
        return value
    if not value.isfinite().all():
        raise WeightsError(f"{where} holds numbers that are not finite", given=int((~value.isfinite()).sum()))
    stored = value if dtype is None else value.to(dtype)
    if not stored.isfinite().all():
        raise WeightsError(f"{where} holds a number too large for {dtype}", given=value.abs().max().item())
    return stored


def _remove_leftovers(path: Path) -> None:
    """Remove what a killed process left behind of `path`."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        if time.time() - leftover.stat().st_mtime > _LEFTOVER_AGE:
            leftover.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can (Windows cannot)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
