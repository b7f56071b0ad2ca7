"""The guidance grid: one sentence at several scales and from several seeds, all drawn before; a movement only looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.plots.figures import COLORS, INK, Pixels, check_alt, enlarge, to_uint8
from ldm_tutor.shapes import Float, Tensor
from ldm_tutor.widgets.live import LiveFigure

GAP, HEAD, MARGIN = 6, 22, 64  # screen pixels: between pictures, for the scales above, for the seeds on the left
LARGE = 4  # the chosen picture's pixels become squares of this many screen pixels
_LABELS = {"description_width": "initial"}


class GuidanceGrid:
    """Pictures (sentences, seeds, scales, 3, H, W) in [-1, 1], each drawn before, and one to look at closely.

    `notes[sentence][seed][scale]`: what is to be said about a picture, such as what a judge misses in it.
    """

    def __init__(
        self,
        pictures: Float[Tensor, "sentences seeds scales 3 H W"],
        sentences: Sequence[str],
        seeds: Sequence[int],
        scales: Sequence[float],
        notes: Sequence[Sequence[Sequence[str]]] | None = None,
    ) -> None:
        named = len(sentences), len(seeds), len(scales)
        if not all(named) or pictures.dim() != 6 or tuple(pictures.shape[:4]) != (*named, 3):
            expected = f"{(*named, 3, 'H', 'W')}, none of them 0"
            raise ShapeError("GuidanceGrid: pictures", given=tuple(pictures.shape), expected=expected)
        if not bool(torch.isfinite(pictures).all()):
            raise ConfigError("GuidanceGrid: pictures", given="values that are not numbers", expected="numbers")
        for what, values in (("sentences", sentences), ("seeds", seeds), ("scales", scales)):
            if len(set(values)) != len(values):
                raise ConfigError(f"GuidanceGrid: {what}", given=list(values), expected="each one once")
        if notes is not None and [[len(row) for row in rows] for rows in notes] != [[named[2]] * named[1]] * named[0]:
            raise ConfigError("GuidanceGrid: notes", given="another number", expected="one text for each picture")
        self.sentences, self.seeds, self.scales, self.notes = list(sentences), list(seeds), list(scales), notes
        flat = to_uint8(pictures.flatten(0, 2))
        self.pixels = flat.reshape(*named, *flat.shape[1:])
        self._grids: dict[int, Pixels] = {}  # made at the first look, then kept

    def place(self, seed: int, scale: int) -> tuple[int, int]:
        """Where the picture of the seed and the scale of these numbers begins in the grid: left, top."""
        height, width = self.pixels.shape[3:5]
        return MARGIN + scale * (width + GAP), HEAD + seed * (height + GAP)

    def grid(self, sentence: int) -> Pixels:
        """Return all pictures of a sentence, a row for each seed and a column for each scale, with their names."""
        if sentence not in self._grids:
            height, width = self.pixels.shape[3:5]
            right, bottom = self.place(len(self.seeds), len(self.scales))
            sheet = Image.new("RGB", (right, max(bottom, HEAD + LARGE * height + GAP)), "white")
            pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
            for k, scale in enumerate(self.scales):
                left, _ = self.place(0, k)
                pen.text((left + width // 2, HEAD // 2), f"s = {scale:g}", INK, font, anchor="mm")
            for k, seed in enumerate(self.seeds):
                _, top = self.place(k, 0)
                pen.text((MARGIN - GAP, top + height // 2), f"seed {seed}", INK, font, anchor="rm")
                for n in range(len(self.scales)):
                    sheet.paste(Image.fromarray(self.pixels[sentence, k, n]), self.place(k, n))
            self._grids[sentence] = np.asarray(sheet)
        return self._grids[sentence]

    def draw(self, sentence: int, seed: int, scale: int) -> Image.Image:
        """Return the grid of a sentence with one picture framed, and that picture large beside it."""
        grid, chosen = self.grid(sentence), enlarge(self.pixels[sentence, seed, scale], LARGE)
        sheet = Image.new("RGB", (grid.shape[1] + 2 * GAP + chosen.shape[1], grid.shape[0]), "white")
        sheet.paste(Image.fromarray(grid), (0, 0))
        left, top = self.place(seed, scale)
        height, width = self.pixels.shape[3:5]
        frame = left - 3, top - 3, left + width + 2, top + height + 2
        ImageDraw.Draw(sheet).rectangle(frame, outline=COLORS["vermilion"], width=3)
        sheet.paste(Image.fromarray(chosen), (grid.shape[1] + GAP, HEAD))
        return sheet

    def caption(self, sentence: int, seed: int, scale: int) -> str:
        """Say which picture is framed, and what there is to be said about it."""
        told = f"{self.sentences[sentence]}, seed {self.seeds[seed]}, scale {self.scales[scale]:g}"
        return told + (f": {self.notes[sentence][seed][scale]}" if self.notes is not None else "")


def guidance_grid(
    pictures: Tensor,
    sentences: Sequence[str],
    seeds: Sequence[int],
    scales: Sequence[float],
    alt: str,
    notes: Sequence[Sequence[Sequence[str]]] | None = None,
    start: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Show the grid (see GuidanceGrid) with a control for each of its three sides; the arrow keys move them.

    `start`: the numbers of the sentence, seed and scale to begin with.
    """
    check_alt(alt)
    made = GuidanceGrid(pictures, sentences, seeds, scales, notes)
    sides = len(sentences), len(seeds), len(scales)
    if len(start) != 3 or not all(isinstance(k, int) and 0 <= k < n for k, n in zip(start, sides, strict=True)):
        raise ConfigError("guidance_grid: start", given=start, expected=f"three numbers, each below {sides}")
    LiveFigure(made.draw, alt, made.caption, grid_controls(made, start)).show()


def grid_controls(made: GuidanceGrid, start: tuple[int, int, int]) -> dict[str, Any]:
    """Return the controls of a grid by name: the sentence to choose, and a slider over the seeds and the scales."""

    def slider(name: str, values: Sequence[float], first: int) -> Any:
        options = [(f"{value:.10g}", number) for number, value in enumerate(values)]
        return ipywidgets.SelectionSlider(options=options, value=first, description=name, style=_LABELS)

    choice = ipywidgets.Dropdown(
        options=[(told, number) for number, told in enumerate(made.sentences)],
        value=start[0],
        description="sentence",
        style=_LABELS,
        layout=ipywidgets.Layout(width="auto", max_width="640px"),
    )
    return {
        "sentence": choice,
        "seed": slider("seed", made.seeds, start[1]),
        "scale": slider("scale", made.scales, start[2]),
    }
