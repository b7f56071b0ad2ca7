"""The scene studio: choose words, a seed, steps and guidance, press draw, and watch the picture come out of noise."""

from __future__ import annotations

import html
import random
import time
from typing import Any

import ipywidgets
from PIL import Image

from ldm_tutor.data.scenes.requests import RELATIONS, ObjectRequest, Request
from ldm_tutor.data.scenes.words import parse, request_text, unknown_words
from ldm_tutor.data.scenes.world import BACKGROUNDS, COLORS, KINDS, PLACES, SIZES
from ldm_tutor.errors import ConfigError, PromptError, TutorError
from ldm_tutor.pipeline import Pipeline
from ldm_tutor.plots.figures import png_bytes
from ldm_tutor.shapes import Latents
from ldm_tutor.widgets.names import STOPPED, Names, as_before, show_live

SENTENCE = "a red bicycle in front of a blue house at night"
ENLARGEMENT = 5  # each pixel becomes a square of so many screen pixels
NUM_PREVIEWS = 7  # how often the growing picture is shown on the way
ANY, NOTHING, AND = "any", "nothing", "and"
_LABEL = {"description_width": "initial"}


def scene_studio(pipe: Pipeline, sentence: str = SENTENCE, seed: int = 7) -> None:
    """Show the studio with a first picture of `sentence` and `seed`, which also stands there without a kernel."""
    studio = SceneStudio(pipe, sentence, seed)
    studio.draw_now()
    studio.show()


class SceneStudio:
    """The studio's controls and what they do; `scene_studio` shows one. No method raises for what a user writes."""

    def __init__(self, pipe: Pipeline, sentence: str = SENTENCE, seed: int = 7) -> None:
        self.pipe = pipe
        self.first = sentence, seed
        self._filling = False  # while the studio itself sets the choices
        self._random = random.Random()
        self.words = {
            "size": _choice("Size", (ANY, *SIZES), "how large the object is"),
            "color": _choice("Colour", (ANY, *COLORS), "the object's colour"),
            "kind": _choice("Object", KINDS, "what to draw"),
            "place": _choice("Place", (ANY, *PLACES), "where the object stands"),
            "relation": _choice("Then", (AND, *RELATIONS), "how the object stands to the second one"),
            "second_color": _choice("Second colour", (ANY, *COLORS), "the second object's colour"),
            "second_kind": _choice("Second object", (NOTHING, *KINDS), "what else to draw"),
            "background": _choice("Background", (ANY, *BACKGROUNDS), "what is behind it all"),
        }
        self.sentence = ipywidgets.Text(
            value=sentence,
            description="Sentence",
            tooltip="this is what the model reads; write your own words here, or choose them above",
            placeholder="a red cat at night",
            continuous_update=False,
            style=_LABEL,
            layout=ipywidgets.Layout(width="100%", max_width="640px"),
        )
        self.seed = ipywidgets.BoundedIntText(
            value=seed, min=0, max=2**32 - 1, description="Seed", tooltip="same seed, same noise to begin with"
        )
        self.another = ipywidgets.Button(description="Another seed", tooltip="choose a new seed and draw with it")
        self.num_steps = ipywidgets.IntSlider(
            value=20, min=1, max=50, description="Steps", tooltip="how often the U-Net takes noise away"
        )
        self.guidance = ipywidgets.FloatSlider(
            value=pipe.drawing.guidance,
            min=0.0,
            max=10.0,
            step=0.5,
            description="Guidance",
            tooltip="how much it insists on your words",
        )
        self.draw = ipywidgets.Button(description="Draw", button_style="primary", tooltip="draw the sentence")
        self.progress = ipywidgets.IntProgress(value=0, max=20, description="Step 0 of 20", style=_LABEL)
        side = f"{ENLARGEMENT * pipe.config.picture_size}px"
        self.picture = ipywidgets.Image(
            format="png", width=side, layout=ipywidgets.Layout(align_self="flex-start", max_width="100%")
        )
        self.caption = ipywidgets.HTML()  # says in words what the picture is
        self.status = ipywidgets.HTML()  # time, unknown words, problems
        self.names = Names()
        for choice in self.words.values():
            choice.observe(self._compose, "value")
        self.sentence.observe(self._read_sentence, "value")
        self.draw.on_click(lambda button: self.draw_now())
        self.another.on_click(lambda button: self._other_seed())
        self._read_sentence()
        self.view = self._arrange()

    # ------------------------------------------------------------ words

    def composed(self) -> str:
        """The sentence that the choices make."""
        chosen = {name: None if each.value in (ANY, NOTHING) else each.value for name, each in self.words.items()}
        objects = [ObjectRequest(self.words["kind"].value, chosen["color"], chosen["size"], chosen["place"])]
        relation = None
        if chosen["second_kind"]:
            objects.append(ObjectRequest(chosen["second_kind"], chosen["second_color"]))
            relation = None if chosen["relation"] == AND else chosen["relation"]
        return request_text(Request(tuple(objects), chosen["background"], relation))

    def _compose(self, change: Any = None) -> None:
        for name in ("relation", "second_color"):  # they mean something only beside a second object
            self.words[name].disabled = self.words["second_kind"].value == NOTHING
        if not self._filling:
            self.sentence.value = self.composed()

    def _read_sentence(self, change: Any = None) -> None:
        """Let the choices follow the sentence where they can; the sentence itself stays as it is written."""
        try:
            request = parse(self.sentence.value)
        except ConfigError:
            return
        first, second = request.objects[0], request.objects[1] if len(request.objects) > 1 else None
        values = {
            "size": first.size or ANY,
            "color": first.color or ANY,
            "kind": first.kind,
            "place": first.place or ANY,
            "relation": request.relation or AND,
            "second_color": (second and second.color) or ANY,
            "second_kind": second.kind if second else NOTHING,
            "background": request.background or ANY,
        }
        self._filling = True
        try:
            for name, value in values.items():
                self.words[name].value = value
        finally:
            self._filling = False
        self.words["relation"].disabled = self.words["second_color"].disabled = second is None

    # ------------------------------------------------------------ drawing

    def draw_now(self) -> bool:
        """Draw what the controls say and show it growing; returns whether a picture came out."""
        sentence = self.sentence.value.strip()
        if not sentence:
            self._say("Write a sentence first, for example: a red cat at night.", alert=True)
            return False
        self.draw.disabled = self.another.disabled = True
        try:
            with as_before(self.picture, self.names, self.caption):
                seconds = self._run(sentence, self.seed.value)
        except KeyboardInterrupt:
            self._say(STOPPED)
            return False
        except PromptError as error:
            self._say(f"The model cannot read this sentence. {error}", alert=True)
            return False
        except TutorError as error:
            self._say(f"This cannot be drawn. {error}", alert=True)
            return False
        except Exception as error:  # a widget has no place for a traceback
            self._say(f"Something went wrong while drawing: {type(error).__name__}: {error}", alert=True)
            return False
        finally:
            self.draw.disabled = self.another.disabled = False
        rate = self.num_steps.value / max(seconds, 1e-9)
        self._say(f"Drawn in {seconds:.1f} s, {rate:.0f} steps in a second.", *word_notes(sentence))
        return True

    def _run(self, sentence: str, seed: int) -> float:
        num_steps = self.num_steps.value
        self.progress.value, self.progress.max = 0, num_steps
        self._say("Drawing ...")
        every = max(1, -(-num_steps // NUM_PREVIEWS))
        start, latents = time.perf_counter(), None
        for state in self.pipe.steps([sentence], [seed], num_steps=num_steps, guidance=self.guidance.value):
            latents, done = state.latents, state.step + 1
            self.progress.value = done
            self.progress.description = f"Step {done} of {num_steps}"
            if done % every == 0 and done < num_steps:
                self._show(state.x0_hat, f"The picture after step {done} of {num_steps}.")
        assert latents is not None  # there is at least one step
        self._show(latents, f"Picture: {sentence} (seed {seed}, {num_steps} steps, guidance {self.guidance.value:g}).")
        return time.perf_counter() - start

    def _show(self, latents: Latents, caption: str) -> None:
        self.picture.value = png_bytes(self.pipe.decode(latents), scale=ENLARGEMENT)
        self.caption.value = f'<p style="margin:.2em 0">{html.escape(caption)}</p>'
        self.names.alts = [caption]

    def _say(self, *lines: str, alert: bool = False) -> None:
        text = "<br>".join(map(html.escape, lines))
        self.status.value = (
            f'<p role="{"alert" if alert else "status"}" aria-live="polite" style="margin:.2em 0">{text}</p>'
        )

    def _other_seed(self) -> None:
        self.seed.value = self._random.randrange(10_000)
        self.draw_now()

    # ------------------------------------------------------------ showing

    def show(self) -> None:
        """Show the studio, and its first picture with a text for whoever has no kernel."""
        sentence, seed = self.first
        png = self.picture.value or _empty_png(ENLARGEMENT * self.pipe.config.picture_size)
        show_live(png, f"Scene studio: the model's picture of '{sentence}' with seed {seed}.", self.view)

    def _arrange(self) -> Any:
        """Put the controls in the order of the sentence, which is also the order of the Tab key."""
        wrap = ipywidgets.Layout(flex_flow="row wrap")
        words = ipywidgets.Box(list(self.words.values()), layout=wrap)
        settings = ipywidgets.Box([self.seed, self.another, self.num_steps, self.guidance], layout=wrap)
        action = ipywidgets.Box([self.draw, self.progress], layout=wrap)
        told = [self.status, self.picture, self.caption, self.names]
        return ipywidgets.VBox([words, self.sentence, settings, action, *told])

    def __repr__(self) -> str:
        return f"SceneStudio({self.first[0]!r}, seed={self.first[1]})"


def word_notes(sentence: str) -> list[str]:
    """Say which words of a sentence the model has never met, the nearest it has, and whether there is an object."""
    notes = [
        f"'{word}' is not among the words that the model learned"
        + (f"; near it: {', '.join(near)}." if near else ", and none of them is near it.")
        for word, near in unknown_words(sentence)
    ]
    try:
        parse(sentence)
    except ConfigError:
        notes.append(f"No clear scene in this sentence; the model knows these objects: {', '.join(KINDS)}.")
    return notes


def _choice(label: str, options: tuple[str, ...], tooltip: str) -> Any:
    layout = ipywidgets.Layout(width="auto", margin="2px 12px 2px 2px")
    return ipywidgets.Dropdown(options=options, description=label, tooltip=tooltip, style=_LABEL, layout=layout)


def _empty_png(side: int) -> bytes:
    """A light square, for a studio whose first sentence could not be drawn."""
    return png_bytes(Image.new("RGB", (side, side), "#F2F2F2"))
