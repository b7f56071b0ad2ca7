"""What several commands share: the options for weights and device, and what they stand for."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ldm_tutor.config import DrawingConfig
from ldm_tutor.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import torch

PROGRAM = "ldm-tutor"
SINGLE_FILE = "sd_v1"  # what one file with a whole model holds, unless --preset says otherwise
MAX_SEED = 2**32 - 1  # one 32-bit word per picture: see sampling/noise.py

SAMPLER, GUIDANCE = DrawingConfig().sampler, DrawingConfig().guidance  # the course's model's, unless told otherwise

SamplerName = Literal["dpm++", "ddim", "ddpm", "plms", "euler", "euler-a"]


def whole(option: str, low: int, high: int, text: str) -> Any:
    """Return a typer option for a whole number from `low` to `high`; its refusal names the number that was given."""

    def check(value: int | None) -> int | None:
        if value is not None and not low <= value <= high:
            raise typer.BadParameter(f"{value} is not a whole number from {low} to {high}.")
        return value

    return typer.Option(option, metavar="N", callback=check, help=f"{text} [{low} to {high}]")


def check_guidance(scale: float) -> float:
    """Return `scale` if it is a finite number; typer prints the refusal otherwise."""
    if not math.isfinite(scale):
        raise typer.BadParameter(f"{scale} is not a finite number (1 is no guidance, 2 to 4 is usual).")
    return scale


Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FOLDER",
        help="The folder of a model, or one of its files. [default: the model that comes with the course]",
        show_default=False,
    ),
]
AnyWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="PLACE",
        help="The model: a folder of ours or of diffusers, one file with a whole model (.safetensors or .ckpt), "
        "or a name on the Hugging Face hub (owner/name). [default: the model that comes with the course]",
        show_default=False,
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset", metavar="NAME", help="Which model one file with a whole model holds: see `ldm-tutor models`."
    ),
]
TokenizerPlace = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="PLACE",
        help="With one file: the folder of its tokenizer, or a name on the hub that has one.",
        show_default=False,
    ),
]
Ema = Annotated[
    bool | None,
    typer.Option(
        "--ema/--no-ema",
        help="With one file: take the moving average, or the weights that were trained. "
        "[default: the average where there is one]",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ... or mps."),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        help="The numbers that U-Net and text encoder compute with. auto: float32; for a full-size model on CUDA "
        "bfloat16, or float16 where the GPU has none. The autoencoder stays in float32: in float16 it can overflow."
    ),
]
Seed = Annotated[int, whole("--seed", 0, MAX_SEED, "The same seed gives the same result.")]
Steps = Annotated[int, whole("--steps", 1, 1000, "How many times the U-Net takes noise away.")]
Scale = Annotated[int, whole("--scale", 1, 16, "Enlarge each pixel to a square with this side.")]
Guidance = Annotated[
    float,
    typer.Option(
        "--guidance", metavar="X", callback=check_guidance, help="How much to insist on the sentence; 1 is no guidance."
    ),
]


def version() -> str:
    """Return the installed version of the course's package."""
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        return "not installed"


def usable_device(name: str) -> torch.device:
    """Return the device called `name` after computing on it once; ConfigError if this machine has no such device."""
    import torch

    from ldm_tutor.training.learner import pick_device

    device = pick_device(name)
    try:
        torch.zeros(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"--device: this machine cannot compute there ({reason})", given=name, expected="auto, or cpu"
        ) from error
    return device


def conditions_folder(place: Path | None, kind: str) -> Path | None:
    """Return the folder that --conditions means: the folder itself, or the one of the condition's file."""
    if place is None or not place.expanduser().is_file():
        return place
    place = place.expanduser()
    if place.name != f"{kind}.safetensors":
        raise WeightsError(
            "--conditions: a file stands for its folder, and a condition's file has a fixed name",
            given=place.name,
            expected=f"{kind}.safetensors, or the folder",
        )
    return place.parent


def check_single_file(place: Path | None, preset: str, tokenizer: Path | None, ema: bool | None) -> None:
    """Refuse --preset, --tokenizer and --ema beside a model that knows these itself: they would do nothing."""
    from ldm_tutor.weights.sources import is_foreign

    place = None if place is None else place.expanduser()
    if place is not None and (not place.exists() or (place.is_file() and is_foreign(place))):
        return
    given = {"--preset": preset != SINGLE_FILE, "--tokenizer": tokenizer is not None, "--ema": ema is not None}
    for option in (name for name, there in given.items() if there):
        told = "it goes with one file that holds a whole model: --weights FILE.safetensors or FILE.ckpt."
        raise typer.BadParameter(told, param_hint=f"'{option}'")


def weights_folder(place: Path | None) -> Path | None:
    """Return the folder that --weights means: the folder itself, or the one of a model's file, whose header is read."""
    if place is None or not place.expanduser().is_file():
        return place
    from ldm_tutor.pipeline import PARTS
    from ldm_tutor.weights.files import read_header

    place = place.expanduser()
    read_header(place)
    known = (*PARTS.values(), "judge.safetensors")
    if place.name not in known:
        raise WeightsError(
            "--weights: a file stands for its folder, and a model's files have fixed names",
            given=place.name,
            expected=f"one of {known}, or the folder",
        )
    return place.parent
