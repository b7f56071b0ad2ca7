"""Draw boxes: say with rectangles what is to stand where, press draw, and see whether the model keeps to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import traitlets
from PIL import Image, ImageDraw, ImageFont

from ldm_tutor.data.boxes import SCENES_BOXES, Box
from ldm_tutor.errors import ConfigError
from ldm_tutor.plots.figures import COLORS, Pixels, png_bytes
from ldm_tutor.steering import Given, Steered
from ldm_tutor.widgets.drawing import GAP, SHEET, DrawingStudio, Sheet
from ldm_tutor.widgets.names import show_live

LAYOUT = (Box("house", 0.08, 0.2, 0.52, 0.7), Box("tree", 0.62, 0.25, 0.92, 0.75))
MARKS = (COLORS["blue"], COLORS["vermilion"], COLORS["green"])  # of box 1, 2, 3, and again from the start


class BoxSheet(Sheet):
    """The square on which boxes are drawn, and their list; `boxes` holds one dict per box, with the fields of `Box`."""

    _esm = Path(__file__).with_name("boxes.js")
    _css = Path(__file__).with_name("boxes.css")
    synced = "boxes"
    boxes = traitlets.List(traitlets.Dict()).tag(sync=True)
    kinds = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colors = traitlets.List(traitlets.Unicode()).tag(sync=True)
    most = traitlets.Int(SCENES_BOXES.max_boxes).tag(sync=True)

    def __repr__(self) -> str:
        return f"BoxSheet({len(self.now)} boxes)"


class BoxStudio(DrawingStudio):
    """The sheet, the settings and the picture with its boxes; `draw_boxes` shows one."""

    def __init__(self, steered: Steered, boxes: Sequence[Box] = LAYOUT, sentence: str = "", seed: int = 7) -> None:
        super().__init__(steered, sentence, seed, 3.0, "Draw", "draw what the boxes ask for")
        given = [{name: getattr(box, name) for name in ("kind", "x0", "y0", "x1", "y1")} for box in boxes]
        self.sheet = BoxSheet(boxes=given, kinds=list(SCENES_BOXES.names), colors=list(MARKS))
        self.outline.description = "outline the boxes asked for"
        self.sheet.observe(self._moved, "now")
        self.view = self.arrange(self.sheet)

    def layout(self) -> list[Box]:
        """The boxes as they are drawn now; ConfigError for one that cannot be (the sheet makes none)."""
        return [_as_box(each) for each in self.sheet.now]

    def _ask(self, prompts: list[str] | None) -> tuple[Given, Any]:
        boxes = self.layout()
        if not boxes:
            raise ConfigError("There is no box yet. Drag on the square, or press 'Add a box'.")
        return self.steered.given_boxes([boxes], prompts), boxes

    def _look(self, change: Any = None) -> None:
        if self.drawn is None:
            return
        picture, boxes, settings = self.drawn
        pixels = self.enlarged(picture)
        self.picture.value = png_bytes(with_boxes(pixels, boxes) if self.outline.value else pixels, scale=1)
        self._tell(f"The model's picture of: {told_boxes(boxes)} ({settings}).")

    def still(self) -> bytes:
        """Return sheet and picture side by side as a PNG."""
        sheet = np.asarray(Image.new("RGB", (self.side, self.side), SHEET))
        right = sheet if self.drawn is None else self.enlarged(self.drawn[0])
        boxes = self.layout() if self.drawn is None else self.drawn[1]
        gap = np.full((self.side, GAP, 3), 255, dtype=np.uint8)
        return png_bytes(np.concatenate([with_boxes(sheet, boxes), gap, with_boxes(right, boxes)], axis=1), scale=1)

    def show(self) -> None:
        """Show the studio, and its first boxes and picture with a text for whoever has no kernel."""
        boxes = told_boxes(self.layout()) or "nothing yet"
        told = f"Draw boxes. On the left what is asked for: {boxes}. On the right the picture."
        show_live(self.still(), told, self.view)

    def __repr__(self) -> str:
        return f"BoxStudio({len(self.sheet.now)} boxes, seed={self.seed.value})"


def draw_boxes(steered: Steered, boxes: Sequence[Box] = LAYOUT, sentence: str = "", seed: int = 7) -> None:
    """Show the studio with a first picture, which also stands there without a kernel; ConfigError where none can be."""
    studio = BoxStudio(steered, boxes, sentence, seed)
    studio.must_draw("draw_boxes")
    studio.show()


def with_boxes(pixels: Pixels, boxes: Sequence[Box]) -> Pixels:
    """Return bytes (H, W, 3) with the boxes on them, numbered and named, in the colours of MARKS on a white line."""
    image = Image.fromarray(pixels)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    for number, box in enumerate(boxes):
        color, label = MARKS[number % len(MARKS)], f"{number + 1} {box.kind}"
        x0, x1 = (round(each * (image.width - 1)) for each in (box.x0, box.x1))
        y0, y1 = (round(each * (image.height - 1)) for each in (box.y0, box.y1))
        pen.rectangle((x0, y0, x1, y1), outline="white", width=5)
        pen.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=color, width=3)
        wide = round(pen.textlength(label, font)) + 8
        left, top = min(x0 + 8, image.width - wide), min(y0 + 8, image.height - 20)
        pen.rectangle((left, top, left + wide - 1, top + 19), fill="white", outline=color)
        pen.text((left + wide / 2, top + 10), label, fill="black", font=font, anchor="mm")
    return np.asarray(image)


def told_boxes(boxes: Sequence[Box]) -> str:
    """Say boxes in words: what each is, and where, in percent of the side from the left and from the top."""
    return "; ".join(
        f"{box.kind} at {100 * box.x0:.0f} to {100 * box.x1:.0f}% across, "
        f"{100 * box.y0:.0f} to {100 * box.y1:.0f}% down"
        for box in boxes
    )


def _as_box(values: Mapping[str, Any]) -> Box:
    try:
        return Box(**values)
    except TypeError as error:
        raise ConfigError("a box", given=dict(values), expected="kind, x0, y0, x1, y1") from error
