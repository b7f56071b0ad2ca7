"""A whole model as the folder that diffusers' StableDiffusionPipeline opens, and such a folder as our parts.

Published models come in this form; the paper's own text-to-picture model has another, see `text2img_folder`. The
sampler's settings that are written are those of Stable Diffusion: DDIM on the leading grid with an offset of one step,
no clipping.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from ldm_tutor.config import Config, ScheduleConfig
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.tokenizer import CONFIG_FILE, VOCAB_FILE, Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.weights import foreign
from ldm_tutor.weights.files import atomic_file, state_for_disk
from ldm_tutor.weights.names import rename, rules_for
from ldm_tutor.weights.tensors import INDEX_SUFFIX, Tensors, fill, open_tensors

INDEX = "model_index.json"
_CONFIG, SCHEDULER_CONFIG = "config.json", "scheduler_config.json"
DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}
_ABSENT = ("safety_checker", "feature_extractor", "image_encoder")
SAMPLER = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
_TEXT_BUILT_IN = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT_PREFIX = "text_model."  # in every published file; transformers reads it in all its versions

ConfigType = TypeVar("ConfigType", bound=Config)
ModelType = TypeVar("ModelType", bound=nn.Module)


@dataclass(frozen=True)
class DiffusersParts:
    """What such a folder holds of a model. CLIP's image tower is not in it: it takes no part in drawing."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    unet: UNet
    autoencoder: Autoencoder
    schedule: ScheduleConfig
    picture_size: int | None  # in pixels; None where the folder does not say


def export_diffusers(
    folder: str | Path,
    *,
    tokenizer: Tokenizer,
    text_encoder: TextEncoder,
    unet: UNet,
    autoencoder: Autoencoder,
    schedule: ScheduleConfig,
    picture_size: int,
    dtype: torch.dtype | None = None,
    wrap: Callable[[Iterable[Any]], Iterable[Any]] = tuple,
) -> Path:
    """Write the parts of one model as a folder that `StableDiffusionPipeline.from_pretrained` opens; return it.

    `picture_size`: side in pixels of what the pipeline draws by default. `dtype`: the type on disk, by default the
    parts' own; `wrap`: what the networks pass on their way, such as a progress bar. The index is
    written last: without it the folder is not finished. Raises ConfigError for a U-Net that diffusers' class cannot be,
    WeightsError for numbers that are not finite and for a disk that refuses.
    """
    root = Path(folder)
    if unet.config.context_dim is None:
        raise ConfigError("export_diffusers: a U-Net without a context", given=None, expected="context_dim, for words")
    unet_arguments = foreign.unet_arguments(unet.config, picture_size // autoencoder.config.downsampling)
    vae_arguments = foreign.autoencoder_arguments(autoencoder.config, picture_size)
    text_arguments = foreign.text_arguments(text_encoder.config, start_id=tokenizer.start_id, end_id=tokenizer.end_id)
    scheduler = SAMPLER | foreign.schedule_arguments(schedule)
    _remove(root / INDEX)
    networks = (
        ("unet", unet, unet_arguments),
        ("vae", autoencoder, vae_arguments),
        ("text_encoder", text_encoder, _TEXT_BUILT_IN | text_arguments),
    )
    for name, model, arguments in wrap(networks):
        library, class_name = _CLASSES[name]
        if library == "diffusers":
            write_json(root / name / _CONFIG, {"_class_name": class_name, **arguments})
            write_weights(root / name / DIFFUSERS_WEIGHTS, model, model.config, dtype)
        else:
            write_json(root / name / _CONFIG, arguments)
            write_weights(root / name / TRANSFORMERS_WEIGHTS, model, model.config, dtype, prefix=_TEXT_PREFIX)
    tokenizer.save(root / "tokenizer")
    write_json(root / "scheduler" / SCHEDULER_CONFIG, {"_class_name": _CLASSES["scheduler"][1], **scheduler})
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    index |= {name: [None, None] for name in _ABSENT} | {name: list(where) for name, where in _CLASSES.items()}
    write_json(root / INDEX, index)
    return root


def load_diffusers(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32
) -> DiffusersParts:
    """Read a folder that diffusers or `export_diffusers` wrote; models in evaluation mode, `dtype` None as on disk.

    Weights are read from one `.safetensors` file per part, or from shards with their index, each tensor straight into
    its place. WeightsError names the file, and the setting or the tensor, where one is missing, broken, of another
    architecture or of another size.
    """
    root = Path(folder)
    read_index(root, _CLASSES)
    diffusers, transformers = DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS
    unet = read_part(root / "unet" / diffusers, foreign.unet_config, UNet, device, dtype)
    autoencoder = read_part(root / "vae" / diffusers, foreign.autoencoder_config, Autoencoder, device, dtype)
    text = read_part(root / "text_encoder" / transformers, foreign.text_config, TextEncoder, device, dtype)
    if (unet.config.context_dim, unet.config.out_channels) != (text.config.width, autoencoder.config.latent_channels):
        raise WeightsError(
            f"the parts in {root} do not fit together",
            given={"cross_attention_dim": unet.config.context_dim, "out_channels": unet.config.out_channels},
            expected=f"the text encoder's width {text.config.width}, "
            f"the autoencoder's {autoencoder.config.latent_channels} channels",
        )
    return DiffusersParts(
        tokenizer=read_tokenizer(root / "tokenizer"),
        text_encoder=text,
        unet=unet,
        autoencoder=autoencoder,
        schedule=read_config(root / "scheduler" / SCHEDULER_CONFIG, foreign.schedule_config),
        picture_size=read_picture_size(root / "unet", autoencoder),
    )


def write_weights(
    path: Path,
    model: nn.Module,
    config: Config,
    dtype: torch.dtype | None,
    prefix: str = "",
    extra: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a model's weights under their foreign names, `prefix` before each, and `extra` under its own."""
    state = rename(state_for_disk(model, dtype, f"{path}: not written"), rules_for(config), "to_foreign")
    named = {prefix + name: value for name, value in state.items()} | dict(extra or {})
    with atomic_file(path) as temporary:
        save_file(named, temporary, metadata={"format": "pt"})


def read_index(root: Path, parts: Iterable[str]) -> dict[str, Any]:
    """Return what a folder says of its parts, (library, class) of each; WeightsError where it has not all of them."""
    index = read_json(root / INDEX)
    lacking = sorted(name for name in parts if not isinstance(index.get(name), list) or None in index[name])
    if lacking:
        raise WeightsError(f"{root / INDEX}: parts are missing", given=lacking, expected=f"all of {sorted(parts)}")
    return index


def read_part(
    path: Path,
    read: Callable[[Mapping[str, Any]], ConfigType],
    model: Callable[[ConfigType], ModelType],
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> ModelType:
    """Build one model from the configuration beside its weights, and give it those weights, strictly."""
    return read_weights(path, read_config(path.parent / _CONFIG, read), model, device, dtype)


def read_weights(
    path: Path,
    config: ConfigType,
    model: Callable[[ConfigType], ModelType],
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> ModelType:
    """Return the model of `config` with the weights of a foreign file or its shards, strictly; in evaluation mode."""
    if not path.exists() and not path.with_name(path.name + INDEX_SUFFIX).exists():
        raise WeightsError(
            f"{path}: no such file",
            given=sorted(each.name for each in path.parent.glob("*")),
            expected=f"a .safetensors file, or shards and {path.name}{INDEX_SUFFIX} "
            "(a .bin is a pickle and can run any program)",
        )
    with torch.device("meta"):
        empty = model(config)
    tensors, rules = open_tensors(path), rules_for(config)
    try:
        places = rename(tensors.places, rules, "from_foreign")
    except WeightsError as error:
        raise WeightsError(f"{tensors.where}: {error}") from error
    fill(empty, Tensors(tensors.where, places), device, dtype, rules.to_foreign)
    return empty.eval()


def read_config(path: Path, read: Callable[[Mapping[str, Any]], ConfigType]) -> ConfigType:
    """Return what `read` makes of the settings in a file; WeightsError names the one that our classes cannot follow."""
    arguments = read_json(path)
    try:
        return read(arguments)
    except (ConfigError, KeyError, TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise WeightsError(f"{path}: a model that our classes cannot be ({error})") from error


def read_picture_size(folder: Path, autoencoder: Autoencoder) -> int | None:
    """Return the side in pixels of what a U-Net's folder says that it draws; None where it does not say."""
    side = read_json(folder / _CONFIG).get("sample_size")
    return side * autoencoder.config.downsampling if isinstance(side, int) else None


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read CLIP's files, or the one file that newer versions of transformers write in their place."""
    path = folder / "tokenizer.json"
    if (folder / VOCAB_FILE).exists() or not path.exists():
        return Tokenizer.load(folder)
    whole, settings = read_json(path), read_json(folder / CONFIG_FILE)
    try:
        pairs = [each.split(" ") if isinstance(each, str) else each for each in whole["model"]["merges"]]
        merges = [(left, right) for left, right in pairs]
        return Tokenizer(whole["model"]["vocab"], merges, settings["model_max_length"])
    except (KeyError, TypeError, ValueError) as error:  # ConfigError is a ValueError
        raise WeightsError(f"{path}: no tokenizer of CLIP's form ({type(error).__name__}: {error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file; WeightsError if it is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})", fix="is this a diffusers folder?") from error
    except ValueError as error:
        raise WeightsError(f"{path}: no JSON ({error})", fix="the file may be damaged: get it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: no settings in it", given=type(values).__name__, expected="a JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write settings as JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8", newline="\n")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be replaced ({error.strerror})") from error
