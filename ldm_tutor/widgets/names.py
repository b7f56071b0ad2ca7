"""What ipywidgets leaves out of a figure's controls: names for screen readers, alternative texts, a lost kernel."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets
from IPython.display import display

from ldm_tutor.plots.figures import bundle

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
ASLEEP = "This figure moves. Run the cell, and its controls appear here."
STOPPED = "Stopped. What was there before is shown again."
# The picture that stands in for a live view disappears while the view below it lives. The arrow of a list is black in
# ipywidgets, also on the dark theme, and a chosen button there is hardly lighter than its neighbours.
_CSS = """
.jp-OutputArea-child:has(.ldm-asleep):has(+ .jp-OutputArea-child .ldm-live) { display: none; }
[data-jp-theme-light="false"] .jupyter-widgets:has(.ldm-live) .widget-dropdown {
  --jp-widgets-dropdown-arrow: url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E\
%3Cpath d='M5 7l4 4 4-4' fill='none' stroke='%23ddd' stroke-width='2'/%3E%3C/svg%3E");
}
.jupyter-widgets:has(.ldm-live) .widget-toggle-button.mod-active { box-shadow: inset 0 -3px var(--jp-brand-color1); }
"""


class Names(anywidget.AnyWidget):
    """An invisible part of a view: it names sliders, buttons and pictures, and says it when the kernel is gone.

    Put one into the view, anywhere. `alts`: the alternative texts of the view's pictures, in their order.
    """

    _esm = Path(__file__).with_name("names.js")
    _css = _CSS
    alts = traitlets.List(traitlets.Unicode()).tag(sync=True)


@contextlib.contextmanager
def as_before(picture: ipywidgets.Image, names: Names, caption: ipywidgets.HTML | None = None) -> Iterator[None]:
    """Put back what is shown, the picture and its words, where the block fails or is interrupted half-way."""
    kept = picture.value, list(names.alts), "" if caption is None else caption.value
    try:
        yield
    except BaseException:
        picture.value, names.alts = kept[:2]
        if caption is not None:
            caption.value = kept[2]
        raise


def show_live(png: bytes, alt: str, view: Any) -> None:
    """Show a view, and its first picture with a text for whoever has no kernel; a view with `Names` hides the picture.

    They are two outputs: a frontend that finds no model for the view still shows the picture.
    """
    still = bundle(png, alt)
    still["text/html"] += f'<p class="ldm-asleep">{html.escape(ASLEEP)}</p>'
    display(still, raw=True)
    forms = view._repr_mimebundle_()
    forms = forms[0] if isinstance(forms, tuple) else forms
    display({WIDGET_VIEW: forms[WIDGET_VIEW]}, raw=True)
