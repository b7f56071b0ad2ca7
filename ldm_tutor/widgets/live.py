"""Figures with a control beneath: redrawn on the spot, with a picture and a text for whoever has no kernel.

No Output widget is used: `observe` and an Image do the same, run in every notebook runner, and answer in milliseconds.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt

from ldm_tutor.errors import ConfigError
from ldm_tutor.plots.figures import check_alt, png_bytes
from ldm_tutor.widgets.names import Names, show_live

_PICTURE = {"align_self": "flex-start", "max_width": "100%"}  # a VBox would stretch it
_LABELS = {"description_width": "initial"}


def live(draw: Callable[..., Any], alt: str, *, caption: Callable[..., str] | None = None, **controls: Any) -> None:
    """Show `draw(**values)`, a figure or a picture, and draw it again whenever a control moves.

    A control is a widget, a list of choices, or numbers (least, most, start) or (least, most, start, step); whole
    numbers make a slider of whole numbers. `caption(**values)` gives the text beside the picture, in the place of
    `alt`; a screen reader is told when it changes. What `draw` raises is shown under the picture.
    """
    check_alt(alt)
    widgets = {name: make_control(name, control) for name, control in controls.items()}
    if not widgets:
        raise ConfigError("live: no control", given=0, expected="at least one; for a figure that stands still use show")
    LiveFigure(draw, alt, caption, widgets).show()


def frames(
    pictures: Sequence[Any],
    alt: str,
    *,
    captions: Sequence[str] | None = None,
    name: str = "step",
    start: int | None = None,
    milliseconds: int = 150,
) -> None:
    """Show pictures one after the other: a slider (arrow keys work) and a play button.

    `captions`: a text for each. `start`: the first one to see, which is also the picture without a kernel (the last
    by default).
    """
    check_alt(alt)
    if len(pictures) == 0:
        raise ConfigError("frames: pictures", given=0, expected="at least one")
    if captions is not None and len(captions) != len(pictures):
        raise ConfigError("frames: captions", given=len(captions), expected=f"{len(pictures)}, one per picture")
    images = [png_bytes(each) for each in pictures]
    last = len(images) - 1
    start = last if start is None else start
    if not 0 <= start <= last:
        raise ConfigError("frames: start", given=start, expected=f"0 to {last}")
    slider = ipywidgets.IntSlider(min=0, max=last, value=start, description=name, style=_LABELS)
    play = ipywidgets.Play(min=0, max=last, value=start, interval=milliseconds, tooltip=f"play over {name}")
    ipywidgets.jslink((play, "value"), (slider, "value"))
    texts = captions or [f"{name} {k} of {last}" for k in range(last + 1)]
    figure = LiveFigure(
        lambda **values: images[values[name]], alt, lambda **values: texts[values[name]], {name: slider}, extra=[play]
    )
    figure.show()


class LiveFigure:
    """The picture, its caption and its controls; `live` and `frames` make and show it, the tests take it apart."""

    def __init__(
        self,
        draw: Callable[..., Any],
        alt: str,
        caption: Callable[..., str] | None,
        controls: dict[str, Any],
        extra: Sequence[Any] = (),
    ) -> None:
        self.draw = draw
        self.alt = alt
        self.make_caption = caption
        self.controls = controls
        self.first = png_bytes(draw(**self.values()))
        self.picture = ipywidgets.Image(value=self.first, format="png", layout=ipywidgets.Layout(**_PICTURE))
        self.caption = ipywidgets.HTML()
        self.problem = ipywidgets.HTML()
        self.names = Names()
        self._tell(self._text())
        for control in controls.values():
            control.observe(self.redraw, "value")
        rows = [ipywidgets.HBox([*extra, *controls.values()])] if extra else [*controls.values()]
        self.view = ipywidgets.VBox([*rows, self.picture, self.caption, self.problem, self.names])

    def values(self) -> dict[str, Any]:
        """What the controls say now, by name."""
        return {name: control.value for name, control in self.controls.items()}

    def redraw(self, change: Any = None) -> None:
        """Draw again; an error is shown under the picture, which stays as it was."""
        open_before = set(plt.get_fignums())
        try:
            drawn, text = png_bytes(self.draw(**self.values())), self._text()
            self.picture.value = drawn
            self._tell(text)
            self.problem.value = ""
        except Exception as error:  # whatever a lesson's code raises belongs in front of the learner
            for number in set(plt.get_fignums()) - open_before:  # half a figure, which would show up elsewhere
                plt.close(number)
            self.problem.value = f'<p role="alert">! {type(error).__name__}: {html.escape(str(error))}</p>'

    def show(self) -> None:
        """Show the figure live, and its first picture with its text for whoever has no kernel."""
        show_live(self.first, self.alt, self.view)

    def _text(self) -> str:
        return self.make_caption(**self.values()) if self.make_caption is not None else self.alt

    def _tell(self, text: str) -> None:
        """Put the text of what is shown beneath the picture, and into its alternative text."""
        self.caption.value = f'<p role="status" aria-live="polite">{html.escape(text)}</p>'
        self.names.alts = [text]


def make_control(name: str, control: Any) -> Any:
    """Return the widget for a control as `live` takes it; ConfigError for anything else."""
    label = name.replace("_", " ")
    if isinstance(control, ipywidgets.Widget):
        return control
    if isinstance(control, list):
        return ipywidgets.Dropdown(options=control, description=label, style=_LABELS)
    numbers = isinstance(control, tuple) and all(isinstance(each, (int, float)) for each in control)
    if not numbers or len(control) not in (3, 4):
        raise ConfigError(
            f"live: the control {name!r}", given=control, expected="a widget, a list, or (least, most, start[, step])"
        )
    least, most, start = control[:3]
    options = {"min": least, "max": most, "value": start, "description": label, "style": _LABELS}
    if all(isinstance(each, int) for each in control):
        return ipywidgets.IntSlider(step=control[3] if len(control) == 4 else 1, **options)
    return ipywidgets.FloatSlider(step=control[3] if len(control) == 4 else (most - least) / 100, **options)
