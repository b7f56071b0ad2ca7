"""The attention explorer: click a word, and see where the U-Net looks for it, by step, layer and head.

Everything is recorded once, while the picture is drawn; afterwards a movement only picks, averages and colours.
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch.nn import functional as F

from ldm_tutor.attention_maps.record import Recorder
from ldm_tutor.attention_maps.watch import watch
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.scenes.draw import draw, draw_masks
from ldm_tutor.data.scenes.words import describe
from ldm_tutor.data.scenes.world import Scene
from ldm_tutor.errors import ConfigError, PromptError, ShapeError
from ldm_tutor.metrics.grounding import auc, look, sentence_words
from ldm_tutor.models.tokenizer import split_words
from ldm_tutor.pipeline import Pipeline
from ldm_tutor.plots.figures import Pixels, enlarge, to_uint8
from ldm_tutor.sampling.steps import timestep_grid
from ldm_tutor.shapes import Float, Pictures, Tensor
from ldm_tutor.widgets.live import LiveFigure

MEAN = -1  # the value of a slider that stands at "mean"
START, END = "(start)", "(end)"
SIDE = 320  # screen pixels of one of the two pictures
_LABELS = {"description_width": "initial"}
_MIB = 2**20


@dataclass(frozen=True)
class Recorded:
    """What the explorer shows. `maps`: for each layer (steps, heads, words, h, w), float16; `times`: t of each step.

    `words`: one label per column of the maps, all different. `masks`: the true pixels of a word's object, (H, W),
    where they are known.
    """

    picture: Pictures
    sentence: str
    words: tuple[str, ...]
    times: tuple[int, ...]
    layers: tuple[str, ...]
    maps: tuple[Float[Tensor, "steps heads words h w"], ...]
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory that the maps take."""
        return sum(each.numel() * each.element_size() for each in self.maps)

    @property
    def num_heads(self) -> int:
        """The most heads that a layer has."""
        return max(each.shape[1] for each in self.maps)


def record_drawing(
    pipe: Pipeline, sentence: str, seed: int, *, num_steps: int = 12, guidance: float | None = None, limit_mib: int = 64
) -> Recorded:
    """Draw a sentence and keep what every layer looked at; AttentionTapError where that is beyond `limit_mib`."""
    words, columns = _columns(pipe, sentence)
    recorder = Recorder(heads="all", limit_bytes=limit_mib * _MIB)
    side, length = pipe.config.latent_shape[-1], pipe.config.clip.text.context_length
    recorder.require_room(recorder.predicted_bytes(pipe.unet, side, 1, num_steps, length))
    with watch(pipe.unet, recorder):
        picture = pipe.draw([sentence], [seed], num_steps=num_steps, guidance=guidance)
    times = tuple(timestep_grid(pipe.schedule, num_steps))
    return Recorded(picture.cpu(), sentence, words, times, *_stack(recorder.records, columns))


def record_scene(
    pipe: Pipeline, scene: Scene, sentence: str | None, seed: int, *, num_steps: int = 12, limit_mib: int = 64
) -> Recorded:
    """Noise a scene to the times of a drawing and keep what every layer looks at; the true masks come along.

    Without a sentence, one that describes the scene is made. Words that name an object of the scene get its mask.
    """
    sentence = describe(scene, seed) if sentence is None else sentence
    words, columns = _columns(pipe, sentence)
    side, length = pipe.config.latent_shape[-1], pipe.config.clip.text.context_length
    recorder = Recorder(heads="all", limit_bytes=limit_mib * _MIB)
    recorder.require_room(recorder.predicted_bytes(pipe.unet, side, 1, num_steps, length))
    size = pipe.config.picture_size
    picture = to_float(torch.from_numpy(draw(scene, size)).permute(2, 0, 1)[None])
    times = tuple(timestep_grid(pipe.schedule, num_steps))
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(seed)
        latents = pipe.autoencoder.to_latents(picture.to(pipe.device), generator)
    records = look(pipe.unet, pipe.embed([sentence]), latents, pipe.noise([seed]), pipe.schedule, times)
    kinds = [each.kind for each in scene.objects]
    masks = {
        kind: torch.from_numpy(mask)
        for kind, mask in zip(kinds, draw_masks(scene, size), strict=True)
        if kinds.count(kind) == 1 and kind in words and mask.any()
    }
    return Recorded(picture, sentence, words, times, *_stack(records, columns), masks)


def _columns(pipe: Pipeline, sentence: str) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Return a label for each word, repeated ones numbered, and its places in the context; start and end marks too."""
    pairs = sentence_words(pipe.tokenizer, sentence)
    used = 1 + sum(len(places) for _, places in pairs)
    labels: list[str] = []
    pipe.tokenizer([sentence])  # raises for a sentence that is empty or too long
    for word, _ in pairs:
        number = sum(label.split(" ")[0] == word for label in labels) + 1
        labels.append(word if number == 1 else f"{word} {number}")
    ends = tuple(range(used, pipe.config.clip.text.context_length))
    return (START, *labels, END), [(0,), *(places for _, places in pairs), ends]


def _stack(records: Sequence[Any], columns: Sequence[tuple[int, ...]]) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Bring the records of one picture into one tensor per layer, the pieces of each word added up."""
    kept: dict[str, list[Tensor]] = {}
    for record in records:
        probs = record.probs[0].float()  # heads n m
        words = torch.stack([probs[..., list(places)].sum(dim=-1) for places in columns], dim=1)
        kept.setdefault(record.call.site.name, []).append(words.unflatten(2, record.grid).half())
    return tuple(kept), tuple(torch.stack(each) for each in kept.values())


# ---------------------------------------------------------------- colouring


def overlay(picture: Pictures, values: Float[Tensor, "h w"], mask: Tensor | None = None, side: int = SIDE) -> Pixels:
    """Colour a picture (1, 3, H, W) by a map: dark blue where it is least, yellow where it is largest (cividis).

    `mask` (H, W) adds its outline, white on black. Returns bytes (side', side', 3), side' the multiple of H at `side`.
    """
    if picture.dim() != 4 or values.dim() != 2 or (mask is not None and mask.shape != picture.shape[2:]):
        given = tuple(picture.shape), tuple(values.shape), None if mask is None else tuple(mask.shape)
        raise ShapeError("overlay: picture, map and mask", given=given, expected="(1, 3, H, W), (h, w), (H, W)")
    grown = F.interpolate(values[None, None].float(), size=picture.shape[2:], mode="bilinear")[0, 0]
    low, high = float(grown.min()), float(grown.max())
    flat = high - low <= 1e-5 * max(abs(high), abs(low))  # nothing but rounding
    level = np.zeros(tuple(grown.shape)) if flat else ((grown - low) / (high - low)).numpy()
    grey = to_uint8(picture)[0].mean(axis=2, keepdims=True) / 255
    colors = 0.65 * colormaps["cividis"](level)[..., :3] + 0.35 * grey
    factor = max(1, side // picture.shape[-1])
    pixels = enlarge((colors * 255).round().astype(np.uint8), factor)
    if mask is not None:
        inside = mask.numpy().repeat(factor, axis=0).repeat(factor, axis=1)
        for width, color in ((3, 0), (1, 255)):
            pixels[_edge(inside, width)] = color
    return pixels


def _edge(inside: Any, width: int) -> Any:
    """Return the pixels within `width` of the border of a region."""
    grown = torch.from_numpy(inside)[None, None].float()
    most = F.max_pool2d(grown, 2 * width + 1, stride=1, padding=width)
    least = -F.max_pool2d(-grown, 2 * width + 1, stride=1, padding=width)
    return (most > least)[0, 0].numpy()


# ---------------------------------------------------------------- the widget


class AttentionExplorer:
    """The explorer's controls and what they do; `attention_explorer` shows one. No word that a user writes raises."""

    def __init__(self, recorded: Recorded, word: str | None = None) -> None:
        self.recorded = recorded
        r = recorded
        named = next(iter(r.masks), r.words[min(1, len(r.words) - 1)])
        first = self._number(word) if word is not None else r.words.index(named)
        self.controls: dict[str, Any] = {
            "word": ipywidgets.ToggleButtons(
                options=[(label, number) for number, label in enumerate(r.words)],
                value=r.words.index(named) if first is None else first,
                description="Word",
                tooltips=[f"where the U-Net looks for {label}" for label in r.words],
                style={"button_width": "auto"},
            ),
            "step": _slider("Step", [f"{k + 1} (t = {t})" for k, t in enumerate(r.times)]),
            "layer": _slider("Layer", _short(r.layers)),
            "head": _slider("Head", [str(k + 1) for k in range(r.num_heads)]),
            "truth": ipywidgets.Checkbox(
                value=False, description="true outline of the object", disabled=not r.masks, indent=False
            ),
        }
        self.finder = ipywidgets.Text(
            description="Find a word",
            placeholder="type a word of the sentence, then Enter",
            continuous_update=False,
            style=_LABELS,
            layout=ipywidgets.Layout(width="420px", max_width="100%"),
        )
        self.finder.observe(lambda change: self.find(change["new"]), "value")
        self.note = ipywidgets.HTML()
        chosen = r.words[self.controls["word"].value]
        self.alt = (
            f"Attention explorer: a picture of '{r.sentence}', and the same, bright where it looks for '{chosen}'."
        )
        self.figure = LiveFigure(self.draw, self.alt, self.describe, self.controls)
        self.figure.view = ipywidgets.VBox([self.finder, self.note, self.figure.view])
        if word is not None and first is None:
            self._not_there(word)

    def field(self, word: int, step: int = MEAN, layer: int = MEAN, head: int = MEAN) -> Float[Tensor, "h w"]:
        """Return the map of a word as chosen, averaged over what stands at MEAN, on the finest of its layers' grids."""
        maps = self.recorded.maps if layer == MEAN else [self.recorded.maps[layer]]
        maps = [each for each in maps if head < each.shape[1]]
        if not maps:
            raise ConfigError("this layer has fewer heads", given=head + 1, fix="choose another head or layer")
        planes = []
        for each in maps:
            part = each[:, :, word] if step == MEAN else each[step : step + 1, :, word]
            part = part if head == MEAN else part[:, head : head + 1]
            planes.append(part.float().mean(dim=(0, 1))[None, None])
        finest = max((plane.shape[2:] for plane in planes), key=lambda size: size[0] * size[1])
        return torch.stack([F.interpolate(each, size=finest, mode="bilinear")[0, 0] for each in planes]).mean(dim=0)

    def draw(self, word: int, step: int, layer: int, head: int, truth: bool) -> bytes:
        """Return the picture, and beside it the picture coloured by the map, as a PNG."""
        picture = self.recorded.picture
        mask = self.recorded.masks.get(self.recorded.words[word]) if truth else None
        right = overlay(picture, self.field(word, step, layer, head), mask)
        left = enlarge(to_uint8(picture)[0], right.shape[0] // picture.shape[2])
        gap = np.full((right.shape[0], 8, 3), 255, dtype=np.uint8)
        target = io.BytesIO()
        Image.fromarray(np.concatenate([left, gap, right], axis=1)).save(target, "PNG", compress_level=1)
        return target.getvalue()

    def describe(self, word: int, step: int, layer: int, head: int, truth: bool) -> str:
        """Say in words what the coloured picture shows."""
        r, values = self.recorded, self.field(word, step, layer, head)
        row, column = divmod(int(values.argmax()), values.shape[1])
        down = ("top", "middle", "bottom")[min(2, 3 * row // values.shape[0])]
        across = ("left", "middle", "right")[min(2, 3 * column // values.shape[1])]
        place = "the middle" if (down, across) == ("middle", "middle") else f"the {down} {across}"
        when = "all steps" if step == MEAN else f"step {step + 1} of {len(r.times)} (t = {r.times[step]})"
        where = "all layers" if layer == MEAN else r.layers[layer]
        which = "all heads" if head == MEAN else f"head {head + 1}"
        told = f"'{r.words[word]}', {when}, {where}, {which}: {_percent(float(values.min()))} (dark) to "
        told += f"{_percent(float(values.max()))} (yellow) of a position's look; most in {place}."
        mask = r.masks.get(r.words[word])
        if mask is None:
            return told + (" The truth is not known for this word." if truth else "")
        size = mask.shape[0], mask.shape[1]
        grown = F.interpolate(values[None, None], size=size, mode="bilinear")[0]
        return f"{told} Against the true object: AUC {float(auc(grown, mask)):.2f}."

    def find(self, text: str) -> bool:
        """Choose the word that was typed, or say kindly that it is not there; returns whether it is."""
        if not text.strip():
            self.note.value = ""
            return False
        number = self._number(text)
        if number is None:
            self._not_there(text)
            return False
        self.note.value = ""
        self.controls["word"].value = number
        return True

    def _number(self, text: str) -> int | None:
        """Return the number of the first word that was meant, None where there is none."""
        wanted = " ".join(str(text).lower().split())
        try:
            options = [wanted, *split_words(wanted)[:1]]
        except PromptError:
            options = [wanted]
        return next((self.recorded.words.index(each) for each in options if each in self.recorded.words), None)

    def _not_there(self, text: str) -> None:
        words = ", ".join(self.recorded.words[1:-1])
        message = f"'{str(text).strip()}' is not in this sentence. Its words are: {words}."
        self.note.value = f'<p role="status" aria-live="polite">{html.escape(message)}</p>'

    def show(self) -> None:
        """Show the explorer, and its first picture with a text for whoever has no kernel."""
        self.figure.show()

    def __repr__(self) -> str:
        return f"AttentionExplorer({self.recorded.sentence!r}, {self.recorded.num_bytes / _MIB:.1f} MiB)"


def attention_explorer(
    pipe: Pipeline,
    sentence: str | None = None,
    seed: int = 7,
    *,
    scene: Scene | None = None,
    word: str | None = None,
    num_steps: int = 12,
    guidance: float | None = None,
    limit_mib: int = 64,
) -> None:
    """Show the explorer for a sentence that is drawn now, or for a scene whose truth is known.

    With a `scene`, the sentence may be left out, and the outline of the true object can be laid over. `word`: where
    to begin. Raises PromptError for a sentence that cannot be read, AttentionTapError where the maps are too many.
    """
    if sentence is None and scene is None:
        raise ConfigError("attention_explorer: nothing to show", given=None, expected="a sentence, or a scene")
    if scene is not None:
        recorded = record_scene(pipe, scene, sentence, seed, num_steps=num_steps, limit_mib=limit_mib)
    else:
        recorded = record_drawing(
            pipe, str(sentence), seed, num_steps=num_steps, guidance=guidance, limit_mib=limit_mib
        )
    AttentionExplorer(recorded, word).show()


def _percent(share: float) -> str:
    """A share in words: whole per cent, and below one of them a digit more."""
    percent = 100 * share
    return f"{percent:.0f}%" if percent >= 1 else f"{percent:.1f}%" if percent >= 0.1 else "under 0.1%"


def _short(layers: Sequence[str]) -> list[str]:
    """Names of layers that fit beside a slider: without what all of them have in common."""
    short = [name.removesuffix(".cross").removesuffix(".layer0") for name in layers]
    return short if len(set(short)) == len(short) else list(layers)


def _slider(label: str, options: list[str]) -> Any:
    """A slider over named choices, "mean" first; the arrow keys move it."""
    choices = [("mean", MEAN), *((text, number) for number, text in enumerate(options))]
    return ipywidgets.SelectionSlider(
        options=choices, value=MEAN, description=label, style=_LABELS, layout=ipywidgets.Layout(width="420px")
    )
