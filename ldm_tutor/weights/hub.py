"""Models by the name that they have on the Hugging Face hub: downloaded once, then opened like any folder."""

from __future__ import annotations

import re
from pathlib import Path

from ldm_tutor.errors import WeightsError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json")
# Settings, tokenizers and weights; no pickles, and of the weights not the other number types that lie beside them.
WANTED = (
    "*.json", "*/*.json", "merges.txt", "*/merges.txt", "vocab.txt", "*/vocab.txt",
    "model.safetensors", "*/model.safetensors", "*/diffusion_pytorch_model.safetensors",
    "model-?????-of-?????.safetensors", "*/model-?????-of-?????.safetensors",
    "*/diffusion_pytorch_model-?????-of-?????.safetensors",
)  # fmt: skip


def is_hub_name(place: str | Path) -> bool:
    """Say whether `place` has the form owner/name and means no file or folder here, not even a missing one."""
    text = place.as_posix() if isinstance(place, Path) else str(place)
    path = Path(text)
    return _NAME.fullmatch(text) is not None and path.suffix not in _FILES and not path.parent.exists()


def local_place(place: str | Path) -> Path:
    """Return a path as it is, and for a name on the hub the folder of its download; WeightsError without either."""
    return snapshot(place) if is_hub_name(place) else Path(place).expanduser()


def snapshot(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder that holds the model `name`, downloaded if it is not there yet; pickles are left out.

    WeightsError, which says what was asked for, where the network, the model or the right to it is missing.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    text = name.as_posix() if isinstance(name, Path) else name
    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=list(WANTED)))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no answer"
        raise WeightsError(
            f"{text}: no folder here, and not to be had from the Hugging Face hub ({type(error).__name__}: {reason})",
            given=text if revision is None else f"{text} at {revision}",
            expected="a network and the name of a model there, an earlier download of it, or a path",
        ) from error
