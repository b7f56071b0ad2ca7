"""`ldm-tutor models`: the sizes of every preset, counted and not trusted to a list."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm_tutor.cli.files import check_out, table, write_json
from ldm_tutor.cli.options import PROGRAM, version

if TYPE_CHECKING:
    from torch import nn

    from ldm_tutor.config import Config, ModelConfig, UNetConfig
    from ldm_tutor.presets import PaperModel

EXAMPLE = "Example: ldm-tutor models --json models.json"
NEIGHBOURS = 20  # context vectors of the retrieval-augmented model, which has no encoder of its own


def models(
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", readable=False, help="Write the same figures to this file.", show_default=False
        ),
    ] = None,
) -> None:
    """List the course's models and the paper's: the exact size of each part, and the work of one U-Net step."""
    target = check_out(json, ".json", "--json") if json is not None else None

    from ldm_tutor.config import PRESETS, scenes
    from ldm_tutor.presets import PAPER_MODELS, sd_v1_inpainting
    from ldm_tutor.training.presets import TRAINING_PRESETS

    other_sizes = {name: preset.model for name, make in TRAINING_PRESETS.items() if (preset := make()).paper is None}
    listed = {"scenes": scenes(), **other_sizes, **{name: make() for name, make in PRESETS.items()}}
    course = {name: sizes(model) for name, model in listed.items()}
    paper = {"sd_v1_inpainting": sizes(sd_v1_inpainting())}
    paper |= {name: sizes(make()) for name, make in PAPER_MODELS.items()}
    print(_overview(course | paper))
    print("\nmultiply-adds: of one U-Net step for one picture; with guidance a step takes twice as many\n")
    print("\n\n".join(_told(name, each) for name, each in (course | paper).items()))
    if target is not None:
        figures = {"models": course, "paper_models": paper}
        write_json({"command": f"{PROGRAM} models", "version": version(), **figures}, target)
        print(f"\nwritten: {target}")


def sizes(config: ModelConfig | PaperModel) -> dict[str, Any]:
    """Return sizes, the parameters of each part and a step's multiply-adds; the parts are built without memory."""
    from ldm_tutor.config import ModelConfig

    parts = {"autoencoder": _parameters(config.autoencoder)}
    if isinstance(config, ModelConfig):
        text, image = _parameters(config.clip.text), _parameters(config.clip.image)
        parts |= {"text encoder": text, "image encoder": image}
        parts["CLIP projections and scale"] = _parameters(config.clip) - text - image
        num_tokens = config.clip.text.context_length
    else:
        if config.condition is not None:
            parts["condition encoder"] = _parameters(config.condition)
        num_tokens = getattr(config.condition, "context_length", NEIGHBOURS if config.condition is None else 1)
    parts["unet"] = _parameters(config.unet)
    if config.unet.context_dim is None:
        num_tokens = 0
    total = sum(parts.values())
    return {
        "picture_size": config.picture_size,
        "latent_shape": list(config.latent_shape),
        "context_tokens": num_tokens,
        "parameters": parts,
        "parameters_total": total,
        "bytes_float32": 4 * total,
        "bytes_bfloat16": 2 * total,
        "unet_multiply_adds": multiply_adds(config.unet, config.latent_shape[1:], num_tokens),
    }


def multiply_adds(config: UNetConfig, side: tuple[int, int], num_tokens: int, batch: int = 1) -> int:
    """Return the multiply-adds of one call of the U-Net on latents of height and width, as `work_of` counts them."""
    import torch

    from ldm_tutor.models.unet import UNet
    from ldm_tutor.nn.work import work_of

    def make() -> Callable[[], Any]:
        unet, latents = UNet(config), torch.empty(batch, config.in_channels, *side)
        context = None if config.context_dim is None else torch.empty(batch, num_tokens, config.context_dim)
        return lambda: unet(latents, torch.empty(batch), context)

    return work_of(make).multiply_adds


@cache
def _empty(config: Config) -> nn.Module:
    """Build the model of `config` on the meta device: shapes without numbers."""
    import torch

    from ldm_tutor.config import ClipConfig, ImageEncoderConfig, TextEncoderConfig
    from ldm_tutor.models.clip import Clip
    from ldm_tutor.models.image_encoder import ImageEncoder
    from ldm_tutor.models.text_encoder import TextEncoder
    from ldm_tutor.weights.files import KINDS

    with torch.device("meta"):
        if isinstance(config, ClipConfig):
            return Clip(config, end_id=config.text.vocab_size - 1)
        towers: dict[type[Config], Any] = {TextEncoderConfig: TextEncoder, ImageEncoderConfig: ImageEncoder}
        return (towers | {kind.config: kind.model for kind in KINDS.values()})[type(config)](config)


def _parameters(config: Config) -> int:
    return sum(parameter.numel() for parameter in _empty(config).parameters())


def _overview(figures: dict[str, dict[str, Any]]) -> str:
    head = ("model", "pictures", "latents", "U-Net", "all parts", "float32", "bfloat16", "multiply-adds")
    rows: list[tuple[str, ...]] = [head]
    for name, each in figures.items():
        rows.append(
            (
                name,
                f"{each['picture_size']}x{each['picture_size']}",
                "x".join(map(str, each["latent_shape"])),
                f"{each['parameters']['unet']:,}",
                f"{each['parameters_total']:,}",
                _megabytes(each["bytes_float32"]),
                _megabytes(each["bytes_bfloat16"]),
                f"{each['unet_multiply_adds'] / 1e9:,.2f}e9",
            )
        )
    return table(rows)


def _told(name: str, each: dict[str, Any]) -> str:
    side, latents = each["picture_size"], "x".join(map(str, each["latent_shape"]))
    rows = [("part", "parameters", "float32", "bfloat16")]
    for part, count in [*each["parameters"].items(), ("all", each["parameters_total"])]:
        rows.append((part, f"{count:,}", _megabytes(4 * count), _megabytes(2 * count)))
    return f"{name}: pictures of {side}x{side} pixels, latents of {latents} numbers\n{table(rows)}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
