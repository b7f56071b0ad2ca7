"""A whole model as one file, as the paper's own code (CompVis) and Stable Diffusion v1 were published; in and out.

The file has no configuration: you say which model it is, and what does not fit is named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ldm_tutor.config import Config, ModelConfig, ScheduleConfig, TextEncoderConfig
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.class_encoder import ClassEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.presets import PaperModel
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Tensor
from ldm_tutor.weights.checkpoint_file import open_checkpoint
from ldm_tutor.weights.compvis_names import Layout, ema_name, layout_of
from ldm_tutor.weights.files import KINDS, atomic_file, state_for_disk
from ldm_tutor.weights.tensors import Place, Tensors, check_shapes, fill

PARTS = ("unet", "autoencoder", "condition")
_EMA, _CONDITION, _FIRST_STAGE = "model_ema.", "cond_stage_model.", "first_stage_model."
_EMA_COUNTERS = ("model_ema.decay", "model_ema.num_updates")
_SCALE = "scale_factor"  # in published files only where it was measured in training
_OTHER_BUFFERS = ("lvlb_weights", "logvar")

Condition = TextEncoder | BertEncoder | ClassEncoder


@dataclass(frozen=True)
class CompvisParts:
    """What such a file holds of a model; a part that was not asked for, or that the model has not, is None."""

    unet: UNet | None
    autoencoder: Autoencoder | VQAutoencoder | None
    condition: Condition | None
    schedule: ScheduleConfig
    picture_size: int


def load_compvis(
    path: str | Path,
    model: ModelConfig | PaperModel,
    *,
    ema: bool | None = None,
    parts: Iterable[str] = PARTS,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> CompvisParts:
    """Read a `.safetensors` or `.ckpt` file of `model`; networks in evaluation mode, `dtype` None as on disk.

    `ema`: take the U-Net's moving average (True), the weights that were trained (False), or the average where the file
    has one (None). `parts`: which of `unet`, `autoencoder` and `condition` to read; the file may then hold more. Of a
    model that is told by words, `condition` is the text encoder. Raises WeightsError naming the file and the tensor
    where one is missing, too many, of another shape or not finite, where the noise schedule is another, and for a
    pickle that asks for more than tensors, which is not run.
    """
    wanted = tuple(parts)
    if not wanted or not set(wanted) <= set(PARTS):
        raise ConfigError("load_compvis: parts", given=wanted, expected=f"some of {PARTS}")
    tensors = open_checkpoint(path)
    configs = {name: config for name, config in _configs(model).items() if name in wanted and config is not None}
    _check_schedule(tensors, model.schedule)
    if "autoencoder" in configs and _SCALE in tensors.places:
        scale = tensors.read(_SCALE)
        if not torch.equal(scale, torch.tensor(configs["autoencoder"].scale_factor).to(scale.dtype)):
            configs["autoencoder"] = dataclasses.replace(configs["autoencoder"], scale_factor=float(scale))
    networks: dict[str, Any] = dict.fromkeys(PARTS)
    used: set[str] = set()
    for name, config in configs.items():
        layout, picked = layout_of(config), tensors
        if name == "unet" and _takes_average(tensors, ema):
            picked = _average(tensors, layout, config)
        networks[name], keys = _read_part(picked, layout, config, device, dtype)
        used |= keys
    if set(wanted) == set(PARTS):
        _check_leftovers(tensors, used, has_condition="condition" in configs)
    return CompvisParts(**networks, schedule=model.schedule, picture_size=model.picture_size)


def load_first_stage(
    path: str | Path,
    config: Config,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Autoencoder | VQAutoencoder:
    """Read an autoencoder that was published alone, as `presets.first_stage` describes it; its losses are left out."""
    tensors = open_checkpoint(path)
    layout = layout_of(config, prefix="")
    network, used = _read_part(tensors, layout, config, device, dtype)
    extra = [key for key in tensors.places if key not in used and not layout.ignored(key)]
    if extra:
        raise WeightsError(f"{tensors.where}: {extra[0]} is in no such model", given=tensors.places[extra[0]].shape)
    return network


def save_compvis(
    path: str | Path,
    *,
    unet: UNet,
    autoencoder: Autoencoder | VQAutoencoder,
    condition: Condition | None,
    schedule: ScheduleConfig,
    dtype: torch.dtype | None = None,
    wrap: Callable[[Iterable[Any]], Iterable[Any]] = tuple,
) -> Path:
    """Write one `.safetensors` file with CompVis' names, which `load_compvis` and other programs read; return its path.

    `dtype`: the type on disk, by default the parts' own; `wrap`: what the networks pass on their way, such as a
    progress bar. Raises WeightsError for numbers that are not finite and for a disk that refuses.
    """
    path = Path(path)
    state: dict[str, Tensor] = {}
    for network in wrap([each for each in (unet, autoencoder, condition) if each is not None]):
        state |= layout_of(network.config).to_file(state_for_disk(network, dtype, f"{path}: not written"))
    state |= {name: table.float() for name, table in schedule_buffers(schedule).items()}
    state[_SCALE] = torch.tensor(autoencoder.config.scale_factor)
    with atomic_file(path) as temporary:
        contiguous = {name: value.contiguous() for name, value in state.items()}
        save_file(contiguous, temporary, metadata={"format": "pt"})
    return path


def schedule_buffers(config: ScheduleConfig) -> dict[str, Tensor]:
    """Return the twelve tables of a noise schedule that a CompVis file holds, float64.

    Ho et al. 2020 (arXiv 2006.11239): posterior_* are eq. 6 and 7.
    """
    schedule = NoiseSchedule(config)
    betas, a = schedule.betas, schedule.alpha_bar
    a_prev = torch.cat([a.new_ones(1), a[:-1]])
    variance = betas * (1 - a_prev) / (1 - a)
    return {
        "betas": betas,
        "alphas_cumprod": a,
        "alphas_cumprod_prev": a_prev,
        "sqrt_alphas_cumprod": a.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - a).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - a).log(),
        "sqrt_recip_alphas_cumprod": (1 / a).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / a - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * a_prev.sqrt() / (1 - a),
        "posterior_mean_coef2": (1 - a_prev) * (1 - betas).sqrt() / (1 - a),
    }


def _configs(model: ModelConfig | PaperModel) -> dict[str, Any]:
    condition = model.clip.text if isinstance(model, ModelConfig) else model.condition
    return {"unet": model.unet, "autoencoder": model.autoencoder, "condition": condition}


def _read_part(
    tensors: Tensors, layout: Layout, config: Config, device: str | torch.device, dtype: torch.dtype | None
) -> tuple[Any, set[str]]:
    """Return one network and the names in the file that belong to it."""
    with torch.device("meta"):
        network = _class_of(config)(config)
    mine = {key: place for key, place in tensors.places.items() if key.startswith(layout.prefix)}
    places = {key: place for key, place in mine.items() if not layout.ignored(key)}
    if isinstance(config, TextEncoderConfig):
        places = {_with_text_model(key, layout.prefix): place for key, place in places.items()}
    wanted = {key: tuple(value.shape) for key, value in layout.to_file(network.state_dict()).items()}
    check_shapes(wanted, {key: place.shape for key, place in places.items()}, tensors.where)
    fill(network, Tensors(tensors.where, layout.from_file(places)), device, dtype)
    return network.eval(), set(mine)


def _class_of(config: Config) -> type[nn.Module]:
    if isinstance(config, TextEncoderConfig):
        return TextEncoder
    return next(kind.model for kind in KINDS.values() if kind.config is type(config))


def _with_text_model(key: str, prefix: str) -> str:
    """Return the usual name of a text encoder's tensor; files written by new versions leave out its middle."""
    name = key.removeprefix(prefix)
    return key if name.startswith("text_model.") else f"{prefix}text_model.{name}"


def _takes_average(tensors: Tensors, ema: bool | None) -> bool:
    there = any(key.startswith(_EMA) and key not in _EMA_COUNTERS for key in tensors.places)
    if ema and not there:
        raise WeightsError(
            f"{tensors.where}: no moving average of the U-Net in it",
            expected=f"names that begin with {_EMA}",
            fix="ema=False takes the weights that were trained",
        )
    return there and ema is not False


def _average(tensors: Tensors, layout: Layout, config: Config) -> Tensors:
    """Return the tensors with the moving average in place of what was trained, under the same names."""
    with torch.device("meta"):
        wanted = layout.to_file(_class_of(config)(config).state_dict())
    flat_names = {ema_name(key): key for key in wanted}
    places: dict[str, Place] = {}
    for key, place in tensors.places.items():
        if key.startswith(_EMA) and key not in _EMA_COUNTERS:
            if key not in flat_names:
                raise WeightsError(f"{tensors.where}: {key} is in no such model", given=place.shape)
            places[flat_names[key]] = place
    for flat_name, key in flat_names.items():
        if key not in places:
            raise WeightsError(f"{tensors.where}: {flat_name} is missing", expected=f"shape {tuple(wanted[key].shape)}")
    return Tensors(tensors.where, places)


def _check_schedule(tensors: Tensors, config: ScheduleConfig) -> None:
    """Compare the file's noise schedule, where it has one, with that of the model that it is said to be."""
    name = "alphas_cumprod"
    if name not in tensors.places:
        return
    given, expected = tensors.read(name).double(), NoiseSchedule(config).alpha_bar
    tolerance = 1e-5 if tensors.places[name].dtype.itemsize >= 4 else 5e-3
    if given.shape != expected.shape or (given - expected).abs().max() > tolerance:
        raise WeightsError(
            f"{tensors.where}: {name} belongs to another noise schedule",
            given=f"{given.numel()} steps, the last {float(given.flatten()[-1]):.3e}",
            expected=f"{expected.numel()} steps, the last {float(expected[-1]):.3e}: {config}",
            fix="is it the model that you named?",
        )


def _check_leftovers(tensors: Tensors, used: set[str], *, has_condition: bool) -> None:
    """Refuse what belongs to no part: a weight that nobody reads is a sign of another model."""
    known = {*schedule_buffers(ScheduleConfig(num_steps=2)), _SCALE, *_OTHER_BUFFERS}
    for key, place in tensors.places.items():
        if key in used or key in known or key.startswith(_EMA) or key.startswith("model.diffusion_model."):
            continue
        same = key.removeprefix(_CONDITION)  # inpainting: the condition's encoder is the first stage once more
        if not has_condition and key.startswith(_CONDITION) and _FIRST_STAGE + same in used:
            continue
        raise WeightsError(
            f"{tensors.where}: {key} is in no such model",
            given=place.shape,
            fix="parts=('unet', 'autoencoder') leaves what else is in the file",
        )
