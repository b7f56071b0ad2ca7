"""What `ldm-tutor draw` can be steered by beside a sentence: boxes, a hole, a small picture, or a picture to redraw."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm_tutor.cli.options import PROGRAM, conditions_folder
from ldm_tutor.config import DrawingConfig
from ldm_tutor.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from ldm_tutor.data.boxes import Box
    from ldm_tutor.pipeline import DrawingPipeline

OPTIONS = {"boxes": "--boxes", "inpaint": "--inpaint", "upscale": "--upscale", "source": "--from"}
KIND_OF = {"boxes": "layout", "inpaint": "inpainting", "upscale": "upscaling"}  # whose weights it needs
# Sampler and guidance of what draws with more than a sentence, unless told otherwise; a sentence has the model's own.
USUAL = {
    "source": DrawingConfig(sampler="dpm++", guidance=4.0),
    "boxes": DrawingConfig(sampler="dpm++", guidance=3.0),
    "inpaint": DrawingConfig(sampler="dpm++", guidance=1.5),
    "upscale": DrawingConfig(sampler="ddim", guidance=1.0),
}
STRENGTH = 0.6
FORM = 'a kind and four shares of the side, left, top, right, bottom: "cat 0.1 0.2 0.5 0.8; tree 0.6 0.3 0.9 0.9"'
SIDES = {"x0": "left", "y0": "top", "x1": "right", "y1": "bottom"}  # a box's corners, as FORM calls them


@dataclass(frozen=True)
class Asked:
    """What the options ask for, checked as far as it can be before a model is loaded. `name`: a key of OPTIONS."""

    name: str
    boxes: tuple[Box, ...] = ()
    picture: Path | None = None
    mask: Path | None = None
    strength: float = STRENGTH

    @property
    def words(self) -> str:
        """The option and its value in words, for the picture's own notes."""
        if self.name == "boxes":
            numbers = [" ".join(f"{value:g}" for value in (b.x0, b.y0, b.x1, b.y1)) for b in self.boxes]
            return "boxes " + "; ".join(f"{b.kind} {four}" for b, four in zip(self.boxes, numbers, strict=True))
        files = " ".join(path.name for path in (self.picture, self.mask) if path is not None)
        return f"{OPTIONS[self.name][2:]} {files}" + (f", strength {self.strength:g}" if self.name == "source" else "")


def check_together(
    given: dict[str, Any], sentence: str | None, negative: str, strength: float | None, conditions: Path | None
) -> str | None:
    """Return which of OPTIONS is given, None for a sentence alone; typer prints why others do not go together."""
    names, all_ = [name for name in OPTIONS if given[name] is not None], ", ".join(OPTIONS.values())
    if len(names) > 1:
        both = " and ".join(OPTIONS[name] for name in names)
        raise typer.BadParameter(f"{both} do not go together; give one of {all_}.")
    name = names[0] if names else None
    if strength is not None and name != "source":
        raise typer.BadParameter("it belongs to --from PICTURE.", param_hint="'--strength'")
    if conditions is not None and name not in KIND_OF:
        raise typer.BadParameter("it belongs to --boxes, --inpaint or --upscale.", param_hint="'--conditions'")
    if name is None and sentence is None:
        raise typer.BadParameter(f"it is missing, and so is one of {all_}.", param_hint="'SENTENCE'")
    if name == "source" and not (sentence or "").strip():
        raise typer.BadParameter("it needs a SENTENCE too: what the picture is to become.", param_hint="'--from'")
    if name is not None and negative:
        raise typer.BadParameter(f"it does not go together with {OPTIONS[name]}.", param_hint="'--negative'")
    return name


def read(
    name: str,
    *,
    boxes: str | None = None,
    inpaint: tuple[Path, Path] | None = None,
    upscale: Path | None = None,
    source: Path | None = None,
    strength: float | None = None,
) -> Asked:
    """Return what an option asks for; ConfigError for boxes that cannot be read, files that are no pictures, ..."""
    if name == "boxes":
        return Asked(name, boxes=read_boxes(boxes or ""))
    from ldm_tutor.data.picture_files import picture_size

    if inpaint is not None:
        picture, mask = inpaint
        sizes = picture_size(picture), picture_size(mask)
        if sizes[0] != sizes[1]:
            shown = [f"{width} x {height}" for width, height in sizes]
            raise ConfigError(
                "--inpaint: the mask has another size than the picture", given=f"picture {shown[0]}, mask {shown[1]}",
                expected="the same width and height", fix="paint the mask on a copy of the picture",
            )  # fmt: skip
        return Asked(name, picture=picture, mask=mask)
    if upscale is not None:
        from ldm_tutor.steering import MOST_PIXELS

        width, height = picture_size(upscale)
        if max(width, height) > MOST_PIXELS:
            raise ConfigError(
                "--upscale: the picture is not small", given=f"{width} x {height}",
                expected=f"sides of at most {MOST_PIXELS} pixels, which become four times as many",
                fix="shrink it first",
            )  # fmt: skip
        return Asked(name, picture=upscale)
    assert source is not None
    picture_size(source)
    return Asked(name, picture=source, strength=STRENGTH if strength is None else strength)


def read_boxes(text: str) -> tuple[Box, ...]:
    """Return the boxes of --boxes; ConfigError that names the box and what is wrong with it."""
    from ldm_tutor.data.boxes import SCENES_BOXES, Box, tokenize_boxes

    made = []
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    if not parts:
        raise ConfigError("--boxes: no box", given=text, expected=FORM)
    for number, part in enumerate(parts, 1):
        kind, *values = part.replace(",", " ").split() or [""]
        try:
            numbers = [float(value) for value in values]
        except ValueError:
            numbers = []
        if len(numbers) != 4:
            raise ConfigError(f"--boxes: box {number} cannot be read", given=part, expected=FORM)
        if kind.lower() not in SCENES_BOXES.names:
            near = difflib.get_close_matches(kind.lower(), SCENES_BOXES.names, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else ""
            expected = f"one of {', '.join(SCENES_BOXES.names)}"
            raise ConfigError(f"--boxes: box {number} is of an unknown kind", given=kind, expected=expected, fix=hint)
        try:
            made.append(Box(kind.lower(), *numbers))
        except ConfigError as error:
            told = str(error).removeprefix(f"Box of the {kind.lower()}: ")
            for name, side in SIDES.items():
                told = told.replace(name, side)
            raise ConfigError(f"--boxes: box {number}, {kind.lower()}: {told}") from error
    try:
        tokenize_boxes([made])  # too many, or too small
    except ConfigError as error:
        raise ConfigError(f"--boxes: {error}") from error
    return tuple(made)


# ---------------------------------------------------------------- drawing


def draw_asked(
    asked: Asked,
    pipeline: DrawingPipeline,
    conditions: Path | None,
    sentence: str,
    seeds: Sequence[int],
    *,
    num_steps: int,
    guidance: float,
    sampler: str,
) -> torch.Tensor:
    """Return one picture per seed, (n, 3, H, W) in [-1, 1], of what is asked for."""
    from ldm_tutor.data.picture_files import open_picture
    from ldm_tutor.pipeline import Pipeline
    from ldm_tutor.steering import load_steered

    num, side = len(seeds), pipeline.config.picture_size
    prompts = [sentence] * num if sentence.strip() else None
    settings: dict[str, Any] = {"num_steps": num_steps, "guidance": guidance, "sampler": sampler}
    if asked.name == "source":
        assert asked.picture is not None and prompts is not None
        pictures = open_picture(asked.picture, side).expand(num, -1, -1, -1)
        return pipeline.redraw(pictures, prompts, seeds, strength=asked.strength, **settings)
    assert isinstance(pipeline, Pipeline)  # another program's model is refused before it is opened
    files = conditions_folder(conditions, KIND_OF[asked.name])
    if asked.name == "boxes":
        steered = load_steered("layout", files, str(pipeline.device), pipeline=pipeline)
        return _watched(steered, steered.given_boxes([asked.boxes] * num, prompts), seeds, settings)
    assert asked.picture is not None
    if asked.name == "inpaint":
        from ldm_tutor.steering import compose

        picture, mask = (each.expand(num, -1, -1, -1) for each in _picture_and_mask(asked, side))
        steered = load_steered("inpainting", files, str(pipeline.device), pipeline=pipeline)
        keep = steered.keeping(picture, mask, seeds)
        drawn = _watched(steered, steered.given_hole(picture, mask, prompts), seeds, settings | {"edit": keep})
        return compose(drawn.cpu(), picture, mask)
    small = open_picture(asked.picture).expand(num, -1, -1, -1)
    steered = load_steered("upscaling", files, str(pipeline.device), pipeline=pipeline)
    name_tiles(small.shape[-1], small.shape[-2], pipeline.config.latent_shape[-1])
    return steered.upscale(small, seeds, prompts=prompts, **settings)


def _picture_and_mask(asked: Asked, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    from ldm_tutor.data.picture_files import open_mask, open_picture

    assert asked.picture is not None and asked.mask is not None
    picture, mask = open_picture(asked.picture, side), open_mask(asked.mask, side)
    if not bool(mask.any()):
        raise ConfigError(
            "--inpaint: the mask has no hole", given=str(asked.mask),
            expected="bright pixels where the picture is to be drawn anew, in the middle square of the picture",
        )  # fmt: skip
    return picture, mask


def _watched(steered: Any, given: Any, seeds: Sequence[int], settings: dict[str, Any]) -> torch.Tensor:
    """Draw, with a bar where someone watches."""
    from tqdm import tqdm

    run = steered.steps(given, seeds, **settings)
    hidden = not sys.stderr.isatty()
    total = settings["num_steps"]
    for state in tqdm(run, total=total, desc="drawing", unit="step", leave=False, disable=hidden, delay=1):
        latents = state.latents
    return steered.pipeline.decode(latents)


def name_tiles(width: int, height: int, tile: int) -> None:
    """Say on stderr how many tiles a large picture has: each takes about as long as one small picture."""
    from ldm_tutor.conditions.tiles import tile_starts

    num = len(tile_starts(width, tile, tile // 2)) * len(tile_starts(height, tile, tile // 2))
    if num > 1:
        told = f"{width} x {height} is drawn in {num} tiles, each of which takes as long as a small picture"
        print(f"{PROGRAM}: note: {told}", file=sys.stderr)
