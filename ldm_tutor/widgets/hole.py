"""Paint a hole: on a scene or on a picture of one's own, and let the model fill it, with or without a sentence."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import torch
import traitlets
from ipywidgets.widgets.trait_types import CByteMemoryView  # traitlets' own Bytes refuses what a browser sends

from ldm_tutor.conditions.channels import Masks, check_masks
from ldm_tutor.data.picture_files import open_picture
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.sampling import sample_scene
from ldm_tutor.data.scenes.world import Scene, SceneObject
from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.plots.figures import png_bytes
from ldm_tutor.sampling.loop import SampleState
from ldm_tutor.shapes import Latents, Pictures
from ldm_tutor.steering import Given, Steered, compose
from ldm_tutor.widgets.drawing import GAP, DrawingStudio, Sheet
from ldm_tutor.widgets.edit_studio import outlined
from ldm_tutor.widgets.names import show_live

SCENE = Scene(
    objects=(SceneObject.put("tree", "green", "large", "left"), SceneObject.put("house", "red", "medium", "right")),
    background="day",
)
HOLE = (32, 18, 62, 54)  # left, top, right and bottom of the first hole, in pixels of 64: where the house stands
SENTENCE = "a blue boat"


class HoleSheet(Sheet):
    """The picture and the hole on it; `image` is a PNG, `mask` one byte per pixel, 1 in the hole, row by row."""

    _esm = Path(__file__).with_name("hole.js")
    _css = Path(__file__).with_name("hole.css")
    synced = "mask"
    side = traitlets.Int(64).tag(sync=True)
    image = CByteMemoryView(b"").tag(sync=True)
    mask = CByteMemoryView(b"").tag(sync=True)

    def __repr__(self) -> str:
        return f"HoleSheet({self.side} x {self.side})"


class HoleStudio(DrawingStudio):
    """The sheet, the settings and the filled picture; `paint_hole` shows one."""

    def __init__(
        self,
        steered: Steered,
        picture: Pictures | None = None,
        mask: Masks | None = None,
        sentence: str = SENTENCE,
        seed: int = 7,
    ) -> None:
        super().__init__(steered, sentence, seed, 1.5, "Fill", "draw what is in the hole anew")
        self.pixels = steered.pipeline.config.picture_size
        self._random = random.Random(0)
        self.sheet = HoleSheet(side=self.pixels)
        self.outline.description = "outline the hole"
        wide = ipywidgets.Layout(width="auto")
        self.scene = ipywidgets.Button(description="Another scene", tooltip="a new scene to paint on", layout=wide)
        self.take = ipywidgets.Button(
            description="Go on with the result", tooltip="paint on the filled picture", layout=wide, disabled=True
        )
        self.put(_scene_picture(SCENE, self.pixels) if picture is None else picture)
        if picture is None and mask is None:
            left, top, right, bottom = (each * self.pixels // 64 for each in HOLE)
            mask = torch.zeros(1, 1, self.pixels, self.pixels)
            mask[..., top:bottom, left:right] = 1
        if mask is not None:
            check_masks(self.given, mask, "paint_hole: mask")
            self.sheet.mask = mask.to(torch.uint8).numpy().tobytes()
        self.sheet.observe(self._moved, "now")
        self.sheet.on_msg(lambda widget, content, buffers: "name" in content and self.upload(content, buffers))
        self.scene.on_click(lambda button: self.other_scene())
        self.take.on_click(lambda button: self.take_result())
        buttons = ipywidgets.Box([self.scene, self.take], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.view = self.arrange(self.sheet, buttons)

    # ------------------------------------------------------------ the picture and its hole

    def put(self, picture: Pictures) -> None:
        """Lay a picture (1, 3, side, side) on the sheet, without a hole."""
        expected = (1, 3, self.pixels, self.pixels)
        if tuple(picture.shape) != expected:
            fix = "data.picture_files.open_picture(path, side) cuts and scales it"
            raise ConfigError("paint_hole: picture", given=tuple(picture.shape), expected=f"{expected}", fix=fix)
        self.given = picture
        self.sheet.mask = bytes(self.pixels**2)
        self.sheet.image = png_bytes(picture, scale=1)

    def hole(self) -> Masks:
        """The hole as it is painted now: (1, 1, side, side), 1 is hole."""
        values = np.frombuffer(bytes(self.sheet.now), np.uint8)
        if values.size != self.pixels**2:
            raise ConfigError("the hole's mask", given=values.size, expected=f"{self.pixels**2} pixels")
        return torch.from_numpy((values > 0).reshape(1, 1, self.pixels, self.pixels)).float()

    def upload(self, content: Any, buffers: Any) -> bool:
        """Take the learner's own picture file from the browser; returns whether it could be read."""
        name = str(content.get("name", "the file")) if isinstance(content, dict) else "the file"
        try:
            picture = open_picture(bytes(buffers[0]), self.pixels)
        except TutorError as error:
            self._say(f"{name}: {error}", alert=True)
            return False
        except Exception as error:  # a widget has no place for a traceback
            self._say(f"{name} cannot be read: {type(error).__name__}: {error}", alert=True)
            return False
        self.put(picture)
        self._say(f"{name}: its middle square at {self.pixels} x {self.pixels} pixels. Now paint the hole.")
        return True

    def other_scene(self) -> None:
        """Lay a new scene on the sheet."""
        scene = sample_scene(self._random.randrange(100_000), "test")
        self.put(_scene_picture(scene, self.pixels))
        self._say("A new scene. Now paint the hole.")

    def take_result(self) -> None:
        """Lay the filled picture on the sheet, to paint the next hole."""
        if self.drawn is not None:
            self.put(self.drawn[0])
            self._say("The filled picture is the one to paint on. Now paint the next hole.")

    # ------------------------------------------------------------ drawing and showing

    def _ask(self, prompts: list[str] | None) -> tuple[Given, Any]:
        mask = self.hole()
        if not mask.any():
            raise ConfigError("There is no hole yet. Paint one on the picture: by mouse, or by arrow keys and Space.")
        return self.steered.given_hole(self.given, mask, prompts), (self.given, mask)

    def _edit(self, asked: Any) -> Callable[[SampleState], Latents]:
        picture, mask = asked
        return self.steered.keeping(picture, mask, [self.seed.value])

    def _finish(self, drawn: Pictures, asked: Any) -> Pictures:
        picture, mask = asked
        return compose(drawn, picture, mask)

    def _look(self, change: Any = None) -> None:
        if self.drawn is None:
            return
        picture, (_, mask), settings = self.drawn
        self.take.disabled = False
        region = mask[0, 0] > 0 if self.outline.value else None
        self.picture.value = png_bytes(outlined(picture, region), scale=1)
        share = f"{100 * float(mask.mean()):.0f}% of the pixels"
        self._tell(f"The picture with its hole filled: {share}, {settings}. The rest is unchanged.")

    def still(self) -> bytes:
        """Return the picture with its hole in grey, and beside it the filled one, as a PNG."""
        mask = self.hole() if self.drawn is None else self.drawn[1][1]
        picture = self.given if self.drawn is None else self.drawn[1][0]
        left = outlined(torch.where(mask > 0, torch.zeros(()), picture), mask[0, 0] > 0)
        right = outlined(picture if self.drawn is None else self.drawn[0], mask[0, 0] > 0)
        gap = np.full((self.side, GAP, 3), 255, dtype=np.uint8)
        return png_bytes(np.concatenate([left, gap, right], axis=1), scale=1)

    def show(self) -> None:
        """Show the studio, and its first picture with a text for whoever has no kernel."""
        words = f" with '{self.sentence.value.strip()}'" if self.sentence.value.strip() else ""
        told = f"Paint a hole. On the left the picture with its hole in grey, on the right the hole filled{words}."
        show_live(self.still(), told, self.view)

    def __repr__(self) -> str:
        return f"HoleStudio({self.pixels} x {self.pixels}, seed={self.seed.value})"


def paint_hole(
    steered: Steered,
    picture: Pictures | None = None,
    mask: Masks | None = None,
    sentence: str = SENTENCE,
    seed: int = 7,
) -> None:
    """Show the studio with a first filled hole, which also stands there without a kernel.

    Without a `picture` a scene lies there with a hole in it; a picture needs a `mask` (1, 1, H, W), 1 is hole.
    ConfigError where nothing can be drawn.
    """
    studio = HoleStudio(steered, picture, mask, sentence, seed)
    studio.must_draw("paint_hole")
    studio.show()


def _scene_picture(scene: Scene, side: int) -> Pictures:
    return to_float(torch.from_numpy(draw(scene, side)).permute(2, 0, 1)[None].contiguous())
