"""`ldm-tutor models`: the sizes of every preset, counted and not trusted to a list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm_tutor.cli.files import check_out, table, write_json
from ldm_tutor.cli.options import PROGRAM, version

if TYPE_CHECKING:
    from ldm_tutor.config import ModelConfig

EXAMPLE = "Example: ldm-tutor models --json models.json"


def models(
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", readable=False, help="Write the same figures to this file.", show_default=False
        ),
    ] = None,
) -> None:
    """List the models that the course describes, with the exact size of each part."""
    target = check_out(json, ".json", "--json") if json is not None else None

    from ldm_tutor.config import PRESETS

    figures = {name: sizes(make()) for name, make in PRESETS.items()}
    print("\n\n".join(_told(name, each) for name, each in figures.items()))
    if target is not None:
        write_json({"command": f"{PROGRAM} models", "version": version(), "models": figures}, target)
        print(f"\nwritten: {target}")


def sizes(config: ModelConfig) -> dict[str, Any]:
    """Return picture size, latent shape, parameters of each part and bytes of the weights; the parts take no memory."""
    import torch

    from ldm_tutor.models.autoencoder import Autoencoder
    from ldm_tutor.models.clip import Clip
    from ldm_tutor.models.unet import UNet

    with torch.device("meta"):
        clip = Clip(config.clip, end_id=config.clip.text.vocab_size - 1)
        autoencoder, unet = Autoencoder(config.autoencoder), UNet(config.unet)
    text, image = _count(clip.text), _count(clip.image)
    parts = {
        "autoencoder": _count(autoencoder),
        "text encoder": text,
        "image encoder": image,
        "CLIP projections and scale": _count(clip) - text - image,
        "unet": _count(unet),
    }
    total = sum(parts.values())
    return {
        "picture_size": config.picture_size,
        "latent_shape": list(config.latent_shape),
        "parameters": parts,
        "parameters_total": total,
        "bytes_float32": 4 * total,
        "bytes_bfloat16": 2 * total,
    }


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _told(name: str, each: dict[str, Any]) -> str:
    side, latents = each["picture_size"], "x".join(map(str, each["latent_shape"]))
    rows = [("part", "parameters", "float32", "bfloat16")]
    for part, count in [*each["parameters"].items(), ("all", each["parameters_total"])]:
        rows.append((part, f"{count:,}", f"{4 * count / 1e6:,.1f} MB", f"{2 * count / 1e6:,.1f} MB"))
    return f"{name}: pictures of {side}x{side} pixels, latents of {latents} numbers\n{table(rows)}"
