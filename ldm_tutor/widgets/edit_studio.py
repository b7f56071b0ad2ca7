"""The edit studio: a source and a target sentence, words as sliders, and the two pictures side by side.

Drawing takes a press of the button and shows its progress. Looking is free: the outline of what changed, and every
setting that was drawn before, answer at once.
"""

from __future__ import annotations

import html
import time
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
from PIL import Image
from torch.nn import functional as F

from ldm_tutor.attention_maps.align import sentence_words
from ldm_tutor.attention_maps.plan import Change, EditPlan, Injection
from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.pipeline import Pipeline
from ldm_tutor.plots.figures import Pixels, enlarge, png_bytes, to_uint8
from ldm_tutor.shapes import Bool, Latents, Pictures, Tensor
from ldm_tutor.widgets.names import STOPPED, Names, as_before, show_live
from ldm_tutor.widgets.studio import word_notes

SOURCE, TARGET = "a large yellow house in the snow", "a large yellow rocket in the snow"
ENLARGEMENT, GAP = 5, 8  # screen pixels of a pixel, and between the two pictures
NUM_PREVIEWS = 4  # how often the growing pictures are shown on the way
NUM_KEPT = 40  # settings that are remembered
LEAST, MOST = -2.0, 4.0  # of a word's factor
_LABEL = {"description_width": "initial"}


@dataclass(frozen=True)
class Setting:
    """Everything that decides what is drawn."""

    source: str
    target: str
    seed: int
    factors: tuple[tuple[str, float], ...]
    cross: float
    self_: float
    blend: bool
    num_steps: int

    def change(self) -> Change:
        """Return it as an edit."""
        injection = Injection(
            cross=self.cross, self_=self.self_, threshold=Injection().threshold if self.blend else None
        )
        weights = {word: factor for word, factor in self.factors if factor != 1}
        return Change(source=self.source, target=self.target, seed=self.seed, weights=weights, injection=injection)


def changed_region(before: Pictures, after: Pictures, share: float) -> Bool[Tensor, "H W"]:
    """Return the pixels whose colour differs, averaged over 3 x 3 neighbours, by more than a share of the range."""
    difference = (before - after).abs().amax(dim=1, keepdim=True) / 2  # 1 1 H W, in 0 to 1
    return F.avg_pool2d(difference, 3, stride=1, padding=1)[0, 0] > share


def outlined(picture: Pictures, region: Bool[Tensor, "H W"] | None) -> Pixels:
    """Return a picture (1, 3, H, W) enlarged, with the edge of a region in white on black."""
    pixels = enlarge(to_uint8(picture)[0], ENLARGEMENT)
    if region is not None and bool(region.any()):
        inside = region[None, None].float().repeat_interleave(ENLARGEMENT, 2).repeat_interleave(ENLARGEMENT, 3)
        for width, color in ((3, 0), (1, 255)):
            most, least = (
                sign * F.max_pool2d(sign * inside, 2 * width + 1, stride=1, padding=width) for sign in (1, -1)
            )
            pixels[(most > least)[0, 0].numpy()] = color
    return pixels


class EditStudio:
    """The studio's controls and what they do; `edit_studio` shows one. No method raises for what a user writes."""

    def __init__(self, pipe: Pipeline, source: str = SOURCE, target: str = TARGET, seed: int = 16) -> None:
        self.pipe = pipe
        self.drawn: dict[Setting, tuple[Pictures, Pictures]] = {}  # the latest NUM_KEPT
        self.shown: Setting | None = None
        self.source = _text("Source", source, "the sentence of the picture that there is")
        self.target = _text("Target", target, "the sentence of the picture that you want")
        self.seed = ipywidgets.BoundedIntText(
            value=seed, min=0, max=2**32 - 1, description="Seed", tooltip="both pictures start from its noise"
        )
        self.num_steps = ipywidgets.IntSlider(value=12, min=2, max=30, description="Steps", continuous_update=False)
        self.cross = _share("Words' maps", Injection().cross, "share of the steps that take over the cross-attention")
        self.self_ = _share("Layout", Injection().self_, "share of the steps that take over the self-attention")
        self.blend = ipywidgets.Checkbox(value=True, description="local blend", indent=False)
        self.weights = ipywidgets.Box(layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.outline = ipywidgets.Checkbox(value=True, description="outline what changed", indent=False)
        self.least = ipywidgets.FloatSlider(
            value=0.1, min=0.02, max=0.5, step=0.02, description="Change above", style=_LABEL, readout_format=".0%"
        )
        self.draw = ipywidgets.Button(description="Draw", button_style="primary", tooltip="draw both pictures")
        self.progress = ipywidgets.IntProgress(value=0, max=12, description="Step 0 of 12", style=_LABEL)
        side = 2 * ENLARGEMENT * pipe.config.picture_size + GAP
        self.picture = ipywidgets.Image(
            format="png", width=f"{side}px", layout=ipywidgets.Layout(align_self="flex-start", max_width="100%")
        )
        self.caption, self.status, self.names = ipywidgets.HTML(), ipywidgets.HTML(), Names()
        self._rebuild_weights()
        self.target.observe(self._rebuild_weights, "value")
        settings = self.source, self.target, self.seed, self.num_steps, self.cross, self.self_, self.blend
        for control in settings:
            control.observe(self._moved, "value")
        for control in (self.outline, self.least):
            control.observe(self._look, "value")
        self.draw.on_click(lambda button: self.draw_now())
        wrap = ipywidgets.Layout(flex_flow="row wrap")
        self.view = ipywidgets.VBox(
            [
                self.source,
                self.target,
                self.weights,
                ipywidgets.Box([self.cross, self.self_, self.blend], layout=wrap),
                ipywidgets.Box([self.seed, self.num_steps, self.draw, self.progress], layout=wrap),
                self.status,
                self.picture,
                ipywidgets.Box([self.outline, self.least], layout=wrap),
                self.caption,
                self.names,
            ]
        )

    # ------------------------------------------------------------ settings

    def setting(self) -> Setting:
        """What the controls say now."""
        factors = tuple((slider.description, slider.value) for slider in self.weights.children)
        return Setting(
            self.source.value.strip(), self.target.value.strip(), self.seed.value, factors,
            self.cross.value, self.self_.value, self.blend.value, self.num_steps.value,
        )  # fmt: skip

    def _rebuild_weights(self, change: Any = None) -> None:
        """One slider for each word of the target; a word that stays keeps its factor."""
        old = {slider.description: slider.value for slider in self.weights.children}
        try:
            self.pipe.tokenizer([self.target.value])  # a text that is too long gets no sliders
            words = dict.fromkeys(word for word, _ in sentence_words(self.pipe.tokenizer, self.target.value))
        except TutorError:
            words = {}
        made = []
        for word in words:
            slider = ipywidgets.FloatSlider(
                value=old.get(word, 1.0), min=LEAST, max=MOST, step=0.25, description=word, style=_LABEL,
                continuous_update=False, layout=ipywidgets.Layout(width="240px"),
            )  # fmt: skip
            slider.observe(self._moved, "value")
            made.append(slider)
        gone, self.weights.children = self.weights.children, made
        for slider in gone:
            slider.unobserve_all()
            for part in (slider.layout, slider.style, slider):  # a slider does not close its own parts
                part.close()

    def _moved(self, change: Any = None) -> None:
        """A setting that was drawn before is shown at once; another one waits for the button."""
        setting = self.setting()
        if setting in self.drawn:
            self.shown = setting
            self._look()
            self._say("Shown from memory.")
        elif self.shown is not None:
            self._say("The settings have changed. Press Draw.")

    # ------------------------------------------------------------ drawing

    def draw_now(self) -> bool:
        """Draw what the controls say and show it growing; returns whether pictures came out."""
        setting = self.setting()
        self.draw.disabled = True
        start = time.perf_counter()
        try:
            if setting not in self.drawn:
                with as_before(self.picture, self.names, self.caption):
                    self.drawn[setting] = self._run(setting)
                while len(self.drawn) > NUM_KEPT:
                    self.drawn.pop(next(iter(self.drawn)))
        except KeyboardInterrupt:
            self._say(STOPPED)
            return False
        except TutorError as error:
            self._say(f"This cannot be drawn. {error}", alert=True)
            return False
        except Exception as error:  # a widget has no place for a traceback
            self._say(f"Something went wrong while drawing: {type(error).__name__}: {error}", alert=True)
            return False
        finally:
            self.draw.disabled = False
        self.shown = setting
        self._look()
        self._say(f"Drawn in {time.perf_counter() - start:.1f} s.", *word_notes(setting.target))
        return True

    def _run(self, setting: Setting) -> tuple[Pictures, Pictures]:
        num_steps = setting.num_steps
        plan = EditPlan(self.pipe.tokenizer, [setting.change()], num_steps)
        self.progress.value, self.progress.max = 0, num_steps
        self._say("Drawing ...")
        every, latents = max(1, -(-num_steps // NUM_PREVIEWS)), None
        for state in self.pipe.edit_steps(plan, num_steps=num_steps):
            latents, done = state.latents, state.step + 1
            self.progress.value = done
            self.progress.description = f"Step {done} of {num_steps}"
            if done % every == 0 and done < num_steps:
                self._show(*self._pair(state.x0_hat), None, f"Both pictures after step {done} of {num_steps}.")
        assert latents is not None  # there is at least one step
        return self._pair(latents)

    def _pair(self, latents: Latents) -> tuple[Pictures, Pictures]:
        before, after = self.pipe.decode(latents).cpu().split(1)
        return before, after

    # ------------------------------------------------------------ showing

    def _look(self, change: Any = None) -> None:
        """Show the pictures of the current setting again, with the outline as it is wanted now."""
        if self.shown is None:
            return
        before, after = self.drawn[self.shown]
        region = changed_region(before, after, self.least.value)
        told = f"Left: {self.shown.source}. Right: {self.shown.target}"
        louder = ", ".join(f"{word} times {factor:g}" for word, factor in self.shown.factors if factor != 1)
        told += f" ({louder})" if louder else ""
        told += f". Seed {self.shown.seed}; {float(region.float().mean()):.0%} of the pixels changed."
        self._show(before, after, region if self.outline.value else None, told)

    def _show(self, before: Pictures, after: Pictures, region: Tensor | None, told: str) -> None:
        left, right = outlined(before, region), outlined(after, region)
        gap = np.full((left.shape[0], GAP, 3), 255, dtype=np.uint8)
        self.picture.value = png_bytes(Image.fromarray(np.concatenate([left, gap, right], axis=1)))
        self.caption.value = f'<p role="status" aria-live="polite" style="margin:.2em 0">{html.escape(told)}</p>'
        self.names.alts = [told]

    def _say(self, *lines: str, alert: bool = False) -> None:
        text = "<br>".join(map(html.escape, lines))
        self.status.value = (
            f'<p role="{"alert" if alert else "status"}" aria-live="polite" style="margin:.2em 0">{text}</p>'
        )

    def show(self) -> None:
        """Show the studio, and its first pictures with a text for whoever has no kernel."""
        side = ENLARGEMENT * self.pipe.config.picture_size
        png = self.picture.value or png_bytes(Image.new("RGB", (2 * side + GAP, side), "#F2F2F2"))
        source, target = self.source.value, self.target.value
        show_live(png, f"Edit studio: '{source}' and, beside it, the same picture as '{target}'.", self.view)

    def __repr__(self) -> str:
        return f"EditStudio({self.source.value!r}, {self.target.value!r}, seed={self.seed.value})"


def edit_studio(pipe: Pipeline, source: str = SOURCE, target: str = TARGET, seed: int = 16) -> None:
    """Show the studio with a first edit, which also stands there without a kernel; PromptError where it cannot be."""
    studio = EditStudio(pipe, source, target, seed)
    if not studio.draw_now():
        told = html.unescape(studio.status.value.split(">", 1)[1].removesuffix("</p>"))
        raise ConfigError(f"edit_studio: {told}", given=(source, target, seed))
    studio.show()


def _text(label: str, value: str, tooltip: str) -> Any:
    return ipywidgets.Text(
        value=value, description=label, tooltip=tooltip, continuous_update=False, style=_LABEL,
        layout=ipywidgets.Layout(width="100%", max_width="640px"),
    )  # fmt: skip


def _share(label: str, value: Any, tooltip: str) -> Any:
    return ipywidgets.FloatSlider(
        value=value, min=0.0, max=1.0, step=0.05, description=label, tooltip=tooltip, style=_LABEL,
        continuous_update=False, readout_format=".0%",
    )  # fmt: skip
