"""`ldm-tutor export`: a model of ours as the folder that diffusers opens."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ldm_tutor.cli.files import check_folder
from ldm_tutor.cli.options import Weights, weights_folder
from ldm_tutor.errors import ConfigError

EXAMPLE = "Example: ldm-tutor export --format diffusers --out exported"

FormatName = Literal["diffusers"]
TypeName = Literal["float32", "float16", "bfloat16"]


def export(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the model goes; made if need be.", show_default=False)
    ],
    form: Annotated[FormatName, typer.Option("--format", help="Whose layout of files to write.")] = "diffusers",
    weights: Weights = None,
    dtype: Annotated[TypeName, typer.Option("--dtype", help="The type of the numbers on disk.")] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that was exported to FOLDER before.")
    ] = False,
) -> None:
    """Write a model for other programs: StableDiffusionPipeline.from_pretrained(FOLDER) opens it and draws the same."""
    import torch

    from ldm_tutor.pipeline import load_pipeline
    from ldm_tutor.weights.diffusers_folder import export_diffusers
    from ldm_tutor.weights.shipped import resolve

    source = resolve(weights_folder(weights))
    _check_free(out, source, overwrite)
    pipeline = load_pipeline(source)
    folder = check_folder(out)
    export_diffusers(
        folder,
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        unet=pipeline.unet,
        autoencoder=pipeline.autoencoder,
        schedule=pipeline.schedule.config,
        picture_size=pipeline.config.picture_size,
        dtype=getattr(torch, dtype),
        wrap=_bar,
    )
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {source.name} as a folder of {form}, {dtype}, {num_bytes / 1e6:,.1f} MB")


def _check_free(out: Path, source: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything; with `overwrite`, anything but an earlier export."""
    from ldm_tutor.weights.diffusers_folder import INDEX

    out = out.expanduser()
    if out.resolve() == source.resolve():
        raise ConfigError("--out: the model itself is there", given=str(out), expected="another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            "--out: the folder is not empty", given=str(out), expected="an empty or a new folder", fix="or --overwrite"
        )
    if not (out / INDEX).is_file():
        raise ConfigError(
            f"--out: the folder holds something else than an exported model (no {INDEX}), which --overwrite keeps",
            given=str(out),
            expected="an empty, a new, or an exported folder",
        )


def _bar(parts: Iterable[Any]) -> Iterable[Any]:
    """Return a progress bar over the parts, for a terminal."""
    from tqdm import tqdm

    return tqdm(list(parts), desc="writing", unit="part", leave=False, disable=not sys.stderr.isatty(), delay=1)
