"""What the studios of lesson 10 share: sheet, sentence, seed, steps, guidance, a button, a picture that grows."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import Any, ClassVar

import anywidget
import ipywidgets
import torch
import traitlets
from PIL import Image

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.plots.figures import Pixels, enlarge, png_bytes, to_uint8
from ldm_tutor.sampling.loop import SampleState
from ldm_tutor.shapes import Latents, Pictures
from ldm_tutor.steering import Given, Steered
from ldm_tutor.widgets.names import STOPPED, Names, as_before
from ldm_tutor.widgets.studio import word_notes

ENLARGEMENT, GAP = 5, 8  # screen pixels of a pixel, and between the two pictures of the still form
NUM_PREVIEWS = 4  # how often the growing picture is shown on the way
SHEET = "#F2F2F2"  # an empty square
WAIT = "Drawing takes some seconds ..."
WRAP = {"flex_flow": "row wrap", "align_items": "flex-start"}
_LABEL = {"description_width": "initial"}
_TEXT = "margin:.2em 0;line-height:1.4"


class Sheet(anywidget.AnyWidget):
    """A square on which the mouse draws; `now` is what lies on it, and what a studio reads.

    ipywidgets holds an update back in the browser while the one before is on its way, and a click on a button, which
    is never held back, would overtake it. So a sheet also sends each change as a message, which goes at once.
    """

    synced: ClassVar[str]  # the trait that is kept with the widget's state
    now = traitlets.Any()

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.now = getattr(self, self.synced)
        self.observe(lambda change: self.set_trait("now", change["new"]), self.synced)
        self.on_msg(lambda widget, content, buffers: self._hear(content, buffers))

    def _hear(self, content: Any, buffers: Any) -> None:
        """Take a change that came as a message: {"now": values}, or {"now": null} and one buffer."""
        if isinstance(content, dict) and "now" in content:
            self.now = content["now"] if content["now"] is not None else buffers[0]


class DrawingStudio:
    """Settings, a button and a picture. A subclass says what the U-Net is given, and how the result is shown.

    No method raises for what a user does: it is said under the button, and what was there before stays.
    """

    def __init__(self, steered: Steered, sentence: str, seed: int, guidance: float, button: str, tooltip: str) -> None:
        self.steered = steered
        self.sentence = ipywidgets.Text(
            value=sentence, description="Sentence", placeholder="not needed; for example: a red house at night",
            tooltip="what the picture shows, or nothing", continuous_update=False, style=_LABEL,
            layout=ipywidgets.Layout(width="100%", max_width="640px"),
        )  # fmt: skip
        self.seed = ipywidgets.BoundedIntText(
            value=seed, min=0, max=2**32 - 1, description="Seed", tooltip="same seed, same noise to begin with"
        )
        self.num_steps = ipywidgets.IntSlider(value=20, min=1, max=50, description="Steps", continuous_update=False)
        self.guidance = ipywidgets.FloatSlider(
            value=guidance, min=0.0, max=10.0, step=0.5, description="Guidance", continuous_update=False,
            tooltip="how much it insists on what you ask for",
        )  # fmt: skip
        self.draw = ipywidgets.Button(description=button, button_style="primary", tooltip=tooltip)
        self.progress = ipywidgets.IntProgress(value=0, max=20, description="Step 0 of 20", style=_LABEL)
        self.outline = ipywidgets.Checkbox(value=True, description="outline what was asked for", indent=False)
        self.side = ENLARGEMENT * steered.pipeline.config.picture_size
        self.picture = ipywidgets.Image(
            value=png_bytes(Image.new("RGB", (self.side, self.side), SHEET)), format="png", width=f"{self.side}px",
            layout=ipywidgets.Layout(align_self="flex-start", max_width="100%"),
        )  # fmt: skip
        self.caption, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.names = Names(alts=["An empty square: no picture yet."])
        for control in (self.sentence, self.seed, self.num_steps, self.guidance):
            control.observe(self._moved, "value")
        self.outline.observe(self._look, "value")
        self.draw.on_click(lambda button: self.draw_now())

    def arrange(self, *above: Any) -> Any:
        """Return the view: `above` (a sheet and its controls) beside the picture, and the settings under them."""
        left = ipywidgets.VBox([*above], layout=ipywidgets.Layout(max_width="380px", margin="0 10px 0 0"))
        narrow = ipywidgets.Layout(max_width=f"{self.side + 8}px")
        right = ipywidgets.VBox([self.outline, self.picture, self.caption], layout=narrow)
        return ipywidgets.VBox(
            [
                ipywidgets.Box([left, right], layout=ipywidgets.Layout(**WRAP)),
                self.sentence,
                ipywidgets.Box([self.seed, self.num_steps, self.guidance], layout=ipywidgets.Layout(**WRAP)),
                ipywidgets.Box([self.draw, self.progress], layout=ipywidgets.Layout(**WRAP)),
                self.status,
                self.names,
            ]
        )

    # ------------------------------------------------------------ what a subclass says

    def _ask(self, prompts: list[str] | None) -> tuple[Given, Any]:
        """Return what the U-Net is given, and what `_look` needs to know of it; ConfigError where a part is missing."""
        raise NotImplementedError

    def _finish(self, drawn: Pictures, asked: Any) -> Pictures:
        """Return the finished picture of what was drawn."""
        return drawn

    def _edit(self, asked: Any) -> Callable[[SampleState], Latents] | None:
        """Return what is done to the latents after each step, if anything."""
        return None

    def _look(self, change: Any = None) -> None:
        """Show the picture again, outlined or not."""
        raise NotImplementedError

    # ------------------------------------------------------------ drawing

    @property
    def drawn(self) -> tuple[Pictures, Any, str] | None:
        """The latest picture, what was asked for, and the settings in words; None before the first."""
        return getattr(self, "_drawn", None)

    def draw_now(self) -> bool:
        """Draw what is asked for and show it growing; returns whether a picture came out."""
        self.draw.disabled = True
        start = time.perf_counter()
        sentence = self.sentence.value.strip()
        settings = f"seed {self.seed.value}, {self.num_steps.value} steps, guidance {self.guidance.value:g}"
        try:
            self._say(WAIT)
            given, asked = self._ask([sentence] if sentence else None)
            with as_before(self.picture, self.names):
                picture = self._finish(self._run(given, asked), asked).cpu()
                self._drawn = picture, asked, f"'{sentence}', {settings}" if sentence else settings
                self._look()
        except KeyboardInterrupt:
            self._say(STOPPED)
            return False
        except Exception as error:  # a widget has no place for a traceback
            kind = "" if isinstance(error, TutorError) else f"{type(error).__name__}: "
            self._say(f"This cannot be drawn. {kind}{error}", alert=True)
            return False
        finally:
            self.draw.disabled = False
        self._say(f"Drawn in {time.perf_counter() - start:.1f} s.", *(word_notes(sentence) if sentence else ()))
        return True

    def _run(self, given: Given, asked: Any) -> Pictures:
        num_steps, latents = self.num_steps.value, None
        self._count(0, num_steps)
        every = max(1, -(-num_steps // NUM_PREVIEWS))
        seeds, edit = [self.seed.value], self._edit(asked)
        states = self.steered.steps(given, seeds, num_steps=num_steps, guidance=self.guidance.value, edit=edit)
        for state in states:
            latents, done = state.latents, state.step + 1
            self._count(done, num_steps)
            if done % every == 0 and done < num_steps:
                preview = self._finish(self.steered.pipeline.decode(state.x0_hat), asked)
                self.picture.value = png_bytes(self.enlarged(preview), scale=1)
                self.names.alts = [f"The picture after step {done} of {num_steps}."]
        assert latents is not None  # there is at least one step
        with torch.inference_mode():
            return self.steered.pipeline.decode(latents)

    def _count(self, done: int, total: int) -> None:
        self.progress.max, self.progress.value = total, done
        self.progress.description = f"Step {done} of {total}"

    def _moved(self, change: Any = None) -> None:
        """Say that the picture belongs to the settings of before."""
        if self.drawn is not None and not self.draw.disabled:
            self._say(f"The picture is still the one of before. Press {self.draw.description}.")

    # ------------------------------------------------------------ showing

    @staticmethod
    def enlarged(picture: Pictures) -> Pixels:
        """Return a picture (1, 3, H, W) as bytes, each pixel a square."""
        return enlarge(to_uint8(picture)[0], ENLARGEMENT)

    def _tell(self, told: str) -> None:
        """Put words under the picture, and into its alternative text."""
        self.caption.value = f'<p role="status" aria-live="polite" style="{_TEXT}">{html.escape(told)}</p>'
        self.names.alts = [told]

    def _say(self, *lines: str, alert: bool = False) -> None:
        text = "<br>".join(map(html.escape, lines))
        self.status.value = f'<p role="{"alert" if alert else "status"}" aria-live="polite" style="{_TEXT}">{text}</p>'

    def must_draw(self, place: str) -> None:
        """Draw for the first time; ConfigError, with what the studio says, where nothing comes out."""
        if not self.draw_now():
            told = html.unescape(self.status.value.split(">", 1)[1].removesuffix("</p>"))
            raise ConfigError(f"{place}: {told}", given=self.sentence.value)
