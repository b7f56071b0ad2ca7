"""`ldm-tutor export`: a model, ours or another's, in the files that other programs open."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ldm_tutor.cli.files import check_folder, check_out
from ldm_tutor.cli.options import (
    SINGLE_FILE,
    AnyWeights,
    Ema,
    Preset,
    TokenizerPlace,
    check_single_file,
    weights_folder,
)
from ldm_tutor.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from ldm_tutor.weights.diffusers_folder import DiffusersParts
    from ldm_tutor.weights.text2img_folder import Text2ImgParts

EXAMPLE = "Example: ldm-tutor export --format diffusers --out exported"

FormatName = Literal["diffusers", "compvis"]
TypeName = Literal["float32", "float16", "bfloat16"]


def export(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="PLACE",
            help="Where the model goes: a folder, made if need be; for compvis a file such as model.safetensors.",
            show_default=False,
        ),
    ],
    form: Annotated[FormatName, typer.Option("--format", help="Whose layout of files to write.")] = "diffusers",
    weights: AnyWeights = None,
    dtype: Annotated[TypeName, typer.Option("--dtype", help="The type of the numbers on disk.")] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that was exported to this place before.")
    ] = False,
    preset: Preset = SINGLE_FILE,
    tokenizer: TokenizerPlace = None,
    ema: Ema = None,
) -> None:
    """Write a model for other programs: StableDiffusionPipeline.from_pretrained(FOLDER) opens it and draws the same."""
    import torch

    from ldm_tutor.presets import PAPER_MODELS

    type_on_disk = getattr(torch, dtype)
    if preset in PAPER_MODELS:
        _export_paper(weights, out, overwrite, form, preset, tokenizer, ema, type_on_disk)
        return
    source, parts = _open(weights, out, overwrite, form, preset, tokenizer, ema)
    if form == "compvis":
        from ldm_tutor.weights.compvis import save_compvis

        networks: dict[str, Any] = {"unet": parts.unet, "autoencoder": parts.autoencoder}
        networks["condition"] = parts.text_encoder
        place = save_compvis(out.expanduser(), **networks, schedule=parts.schedule, dtype=type_on_disk, wrap=_bar)
        _report(place, f"{source} as one file", dtype)
        return

    from ldm_tutor.weights.compvis import CompvisParts
    from ldm_tutor.weights.diffusers_folder import export_diffusers
    from ldm_tutor.weights.text2img_folder import Text2ImgParts, export_text2img

    if parts.picture_size is None:
        raise ConfigError("export: the model does not say how large its pictures are", given=source)
    folder = check_folder(out)
    if isinstance(parts, Text2ImgParts):
        networks = {"unet": parts.unet, "autoencoder": parts.autoencoder, "condition": parts.text_encoder}
        whole = CompvisParts(**networks, schedule=parts.schedule, picture_size=parts.picture_size)
        export_text2img(folder, whole, parts.tokenizer.words, dtype=type_on_disk, wrap=_bar)
        _report(folder, f"{source} as a folder of {form}", dtype)
        return
    export_diffusers(
        folder,
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        unet=parts.unet,
        autoencoder=parts.autoencoder,
        schedule=parts.schedule,
        picture_size=parts.picture_size,
        dtype=type_on_disk,
        wrap=_bar,
    )
    _report(folder, f"{source} as a folder of {form}", dtype)
    print(f"open it with diffusers: StableDiffusionPipeline.from_pretrained({str(folder)!r})")


def _report(place: Path, what: str, dtype: str) -> None:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    print(f"{place}: {what}, {dtype}, {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB")


def _export_paper(
    weights: Path | None,
    out: Path,
    overwrite: bool,
    form: FormatName,
    preset: str,
    tokenizer: Path | None,
    ema: bool | None,
    dtype: torch.dtype,
) -> None:
    """Export a model of the paper, told by BERT's words, classes, boxes or nothing, from its single file."""
    from ldm_tutor.presets import PAPER_MODELS
    from ldm_tutor.weights.compvis import load_compvis, save_compvis
    from ldm_tutor.weights.hub import local_place
    from ldm_tutor.weights.text2img_folder import check_text2img, export_text2img, read_words

    model, name = PAPER_MODELS[preset](), str(dtype).removeprefix("torch.")
    if weights is None or not weights.expanduser().is_file():
        raise ConfigError(
            f"--weights: {preset} is read from one file with the whole model", given=weights and str(weights),
            expected="a .safetensors or .ckpt file with CompVis' names",
        )  # fmt: skip
    source, words = weights.expanduser(), []
    if form == "compvis":
        _check_free_file(out, overwrite)
    else:
        check_text2img(model.condition, model.autoencoder, preset)
        if tokenizer is None:
            expected = "a folder with BERT's vocab.txt, one word a line"
            raise ConfigError("--tokenizer: the file has no words in it", given=None, expected=expected)
        words = read_words(local_place(tokenizer), getattr(model.condition, "vocab_size", 0))
        _check_free(out, source, overwrite)
    parts = load_compvis(source, model, ema=ema)
    if form == "compvis":
        networks: dict[str, Any] = {"unet": parts.unet, "autoencoder": parts.autoencoder, "condition": parts.condition}
        place = save_compvis(out.expanduser(), **networks, schedule=parts.schedule, dtype=dtype, wrap=_bar)
        _report(place, f"{source.name} as one file", name)
        return
    place = export_text2img(check_folder(out), parts, words, dtype=dtype, wrap=_bar)
    _report(place, f"{source.name} as a folder of {form}", name)


def _open(
    weights: Path | None,
    out: Path,
    overwrite: bool,
    form: FormatName,
    preset: str,
    tokenizer: Path | None,
    ema: bool | None,
) -> tuple[str, DiffusersParts | Text2ImgParts]:
    """Return the name and the parts of the model to export, after a look at the place where it goes."""
    from ldm_tutor.open_model import open_parts
    from ldm_tutor.pipeline import load_pipeline
    from ldm_tutor.weights.diffusers_folder import DiffusersParts
    from ldm_tutor.weights.shipped import resolve
    from ldm_tutor.weights.sources import is_foreign

    check_single_file(weights, preset, tokenizer, ema)
    foreign = weights is not None and is_foreign(weights)
    source = Path(weights).expanduser() if foreign and weights is not None else resolve(weights_folder(weights))
    if form == "compvis":
        _check_free_file(out, overwrite)
    else:
        _check_free(out, source, overwrite)
    if foreign:
        return source.name, open_parts(source, preset=preset, tokenizer=tokenizer, ema=ema)
    pipeline = load_pipeline(source)
    return source.name, DiffusersParts(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        unet=pipeline.unet,
        autoencoder=pipeline.autoencoder,
        schedule=pipeline.schedule.config,
        picture_size=pipeline.config.picture_size,
    )


def _check_free_file(out: Path, overwrite: bool) -> None:
    """Refuse a place where no `.safetensors` file can go, and without `overwrite` a file that is there."""
    path = check_out(out, ".safetensors")
    if path.exists() and not overwrite:
        raise ConfigError(
            "--out: the file is there already", given=str(out), expected="a new name", fix="or --overwrite"
        )


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
