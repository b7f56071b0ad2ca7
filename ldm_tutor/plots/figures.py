"""The figures of the lessons: one style, pixels enlarged without blur, and alternative text for every picture."""

from __future__ import annotations

import base64
import html
import io
import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from IPython.display import display
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import NDArray
from PIL import Image

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.shapes import Pictures, Tensor

# Okabe and Ito 2008: told apart with every common form of colour blindness. Yellow is left out: too pale on white.
COLORS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
}
INK = "#222222"
DPI = 100
LEAST_SIDE = 240  # pixels: `show` enlarges a smaller picture to at least this
STYLE: Any = {  # matplotlib's own settings, by their names
    "axes.prop_cycle": cycler(color=list(COLORS.values())),
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "font.size": 11,
    "grid.alpha": 0.25,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "savefig.facecolor": "white",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
EXACT_BYTES = 16_000  # up to this size a picture is stored without any loss
Pixels = NDArray[np.uint8]


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the course's style inside a `with` block; matplotlib's own settings come back behind it."""
    with mpl.rc_context(STYLE):
        yield


def to_uint8(pictures: Pictures) -> Pixels:
    """Turn pictures (b, 3, H, W) in [-1, 1] into bytes (b, H, W, 3), rounded; values outside are cut off.

    Raises ShapeError for another shape, ConfigError for whole numbers (`to_float` makes pictures of bytes) and NaN.
    """
    if pictures.dim() != 4 or pictures.shape[1] != 3:
        raise ShapeError("to_uint8: pictures", given=tuple(pictures.shape), expected="(b, 3, H, W), values in [-1, 1]")
    if not pictures.is_floating_point():
        given, fix = str(pictures.dtype), "to_float turns bytes into [-1, 1]"
        raise ConfigError("to_uint8: pictures", given=given, expected="floating-point numbers", fix=fix)
    if bool(pictures.isnan().any()):
        raise ConfigError("to_uint8: pictures", given="NaN among the values", expected="numbers")
    scaled = (pictures.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def enlarge(pixels: Pixels, factor: int) -> Pixels:
    """Make every pixel a square of `factor` x `factor`: (..., H, W, 3) to (..., factor H, factor W, 3)."""
    if factor < 1:
        raise ConfigError("enlarge: factor", given=factor, expected="a whole number, 1 or more")
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def png_bytes(picture: Any, scale: int | None = None) -> bytes:
    """Return a PNG of a matplotlib figure, a picture tensor, an array (H, W[, 3]) of bytes, or a PIL image.

    `scale` enlarges tensors and arrays by a whole factor; by default a small one grows to at least 240 pixels.
    A figure is closed, so that it does not appear a second time. PNG bytes come back as they are.
    """
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return bytes(picture)
    target = io.BytesIO()
    if isinstance(picture, Figure):
        options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.08, "facecolor": "white"}
        picture.savefig(target, format="png", dpi=DPI, metadata={"Software": None}, **options)
        plt.close(picture)
        return target.getvalue()
    if not isinstance(picture, Image.Image):
        pixels = _pixels(picture)
        factor = scale or max(1, math.ceil(LEAST_SIDE / max(pixels.shape[:2])))
        picture = Image.fromarray(enlarge(pixels, factor))
    picture.save(target, "PNG", compress_level=6)
    return target.getvalue()


def check_alt(alt: str) -> None:
    """Raise ConfigError where a figure has no alternative text."""
    if not isinstance(alt, str) or not alt.strip():
        raise ConfigError(
            "a figure has no alternative text", given=alt, fix="say in alt='...' what a reader who cannot see it misses"
        )


def bundle(png: bytes, alt: str) -> dict[str, Any]:
    """Return one output in its forms: plain text, and HTML with picture and alternative text.

    The picture is stored once, as WebP, so that a notebook of pictures stays small; only HTML can carry the
    alternative text. A reader without a kernel sees it too. Raises ConfigError for an empty `alt`.
    """
    check_alt(alt)
    data = base64.b64encode(_webp(png)).decode()
    image = f'<img alt="{html.escape(alt, quote=True)}" src="data:image/webp;base64,{data}">'
    return {"text/plain": f"[figure] {alt}", "text/html": image}


def _webp(png: bytes) -> bytes:
    """Return the picture as WebP: without loss where that stays small, else with a loss that no eye sees."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    exact, close = io.BytesIO(), io.BytesIO()
    picture.save(exact, "WEBP", lossless=True, quality=80, method=4)
    if exact.tell() <= EXACT_BYTES:
        return exact.getvalue()
    picture.save(close, "WEBP", quality=85, method=4)
    return min(exact.getvalue(), close.getvalue(), key=len)


def show(picture: Any, alt: str, *, scale: int | None = None) -> None:
    """Show a figure or a picture (see `png_bytes`) with `alt`, the sentence that stands for it."""
    check_alt(alt)  # before the figure is drawn and closed
    display(bundle(png_bytes(picture, scale), alt), raw=True)


def picture_grid(
    pictures: Pictures | Sequence[Any], titles: Sequence[str] | None = None, columns: int | None = None, scale: int = 3
) -> Figure:
    """Lay pictures out in rows, each pixel `scale` screen pixels wide, a title above each; no axes.

    `pictures`: a tensor (b, 3, H, W) in [-1, 1], or arrays and tensors of one size. By default up to six in a row.
    """
    cells = [_pixels(each) for each in pictures]
    if not cells:
        raise ConfigError("picture_grid: pictures", given=0, expected="at least one")
    if titles is not None and len(titles) != len(cells):
        raise ConfigError("picture_grid: titles", given=len(titles), expected=f"{len(cells)}, one per picture")
    columns = min(columns or 6, len(cells))
    rows = math.ceil(len(cells) / columns)
    height, width = (side * scale for side in cells[0].shape[:2])
    letters = max(8, width // 7)
    lines = [textwrap.wrap(title, letters) for title in titles or []]
    head = 17 * max(map(len, lines), default=0) + 6
    gap = 10
    total = columns * (width + gap) - gap, rows * (height + head) - (0 if titles else 6)
    with figure_style():
        figure = plt.figure(figsize=(total[0] / DPI, total[1] / DPI), layout="none")
        for index, pixels in enumerate(cells):
            row, column = divmod(index, columns)
            left, top = column * (width + gap), (row + 1) * head - (0 if titles else 6) + row * height
            place = (left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1])
            axes = figure.add_axes(place)
            axes.imshow(pixels, interpolation="nearest")
            axes.axis("off")
            if titles:
                axes.set_title("\n".join(lines[index]), fontsize=9.5, pad=4, linespacing=1.1)
    return figure


def picture_rows(rows: Mapping[str, Any], titles: Sequence[str] | None = None, scale: int = 1) -> Figure:
    """Lay pictures out in rows, the name of each row on its left in one line, a title above each column.

    A row is a tensor (b, 3, H, W) in [-1, 1], or arrays (H, W, 3) of bytes; each pixel is `scale` pixels wide. Raises
    ConfigError where the rows, or the titles, are not of one length.
    """
    lengths = {len(pictures) for pictures in rows.values()}
    if len(lengths) != 1 or 0 in lengths or (titles is not None and len(titles) not in lengths):
        given = sorted(lengths), None if titles is None else len(titles)
        raise ConfigError("picture_rows: pictures per row, titles", given=given, expected="one number, at least 1")
    gap = 8
    strips = []
    for pictures in rows.values():
        cells = np.stack(pictures) if isinstance(pictures[0], np.ndarray) else to_uint8(pictures)
        padded = [np.pad(cell, ((0, 0), (0, gap), (0, 0)), constant_values=255) for cell in enlarge(cells, scale)]
        strips.append(np.concatenate(padded, axis=1)[:, :-gap])
    height, width = strips[0].shape[:2]
    side = (width + gap) // len(next(iter(rows.values())))
    heads = [textwrap.fill(title, max(8, (side - gap) // 7)) for title in titles or []]
    head = 17 * max((title.count("\n") + 1 for title in heads), default=0) + 4
    left = 8 * max(map(len, rows)) + gap
    total = left + width, head + len(strips) * (height + gap)
    with figure_style():
        figure = plt.figure(figsize=(total[0] / DPI, total[1] / DPI), layout="none")
        for k, (name, strip) in enumerate(zip(rows, strips, strict=True)):
            bottom = total[1] - head - k * (height + gap) - height
            axes = figure.add_axes((left / total[0], bottom / total[1], width / total[0], height / total[1]))
            axes.imshow(strip, interpolation="nearest")
            axes.axis("off")
            axes.text(-gap, height / 2, name, ha="right", va="center", fontsize=10)
            for column, title in enumerate(heads if k == 0 else ()):
                middle = column * side + (side - gap) / 2
                axes.text(middle, -4, title, ha="center", va="bottom", fontsize=9.5, linespacing=1.1)
    return figure


def bars(
    names: Sequence[str],
    values: Sequence[float],
    *,
    title: str = "",
    unit: str = "",
    form: str = "{:,.0f}",
    width: float = 7.0,
    colors: Sequence[str] | None = None,
) -> Figure:
    """Horizontal bars, the first on top, each with its value (`form`, then `unit`) written at its end.

    `colors`: a name from COLORS for each bar, where the bars belong to groups; without it they only differ.
    """
    hues = list(COLORS.values())[:6] if colors is None else [COLORS[name] for name in colors]
    if len(names) != len(values) or not names:
        raise ConfigError("bars: one value per name", given=(len(names), len(values)), expected="equal, at least one")
    with figure_style():
        figure, axes = plt.subplots(figsize=(width, 0.5 + 0.42 * len(names)))
        places = range(len(names))
        axes.barh(places, values, color=[hues[k % len(hues)] for k in places], height=0.68)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
        least, most = min([*values, 0]), max([*values, 0])
        axes.set_xlim(1.05 * least, most + 0.22 * (most - least) or 1)
        for k, value in enumerate(values):
            label = f" {form.format(value)}{' ' + unit if unit else ''}"
            axes.text(max(value, 0), k, label, va="center", ha="left")
        axes.set_title(title, loc="left")
    return figure


def flow_diagram(
    boxes: Sequence[str],
    arrows: Sequence[str],
    *,
    networks: Collection[int] = (),
    inputs: Mapping[int, str] | None = None,
    loops: Mapping[int, str] | None = None,
    title: str = "",
) -> Figure:
    """Boxes in a row with arrows between them; `arrows` has one text per arrow (a shape, say), written under it.

    `networks`: indices of boxes that are networks (filled). `inputs`: texts that enter a box from below.
    `loops`: texts on an arrow from a box back to itself, such as "20 times".
    """
    if len(arrows) != len(boxes) - 1:
        raise ConfigError("flow_diagram: arrows", given=len(arrows), expected=f"{len(boxes) - 1}, one between boxes")
    inputs, loops = inputs or {}, loops or {}
    pitch, wide, tall = 2.05, 1.2, 0.72
    bottom, top = (-1.2 if inputs else -0.7), (1.05 if loops else 0.5)
    with figure_style():
        span = pitch * (len(boxes) - 1) + wide + 0.2
        figure, axes = plt.subplots(figsize=(0.86 * span, 0.95 * (top - bottom)))
        axes.set(xlim=(-wide / 2 - 0.1, span - wide / 2 - 0.1), ylim=(bottom, top), title=title)
        axes.axis("off")
        for k, text in enumerate(boxes):
            filled = k in networks
            corner = (k * pitch - wide / 2, -tall / 2)
            shape = "round,pad=0,rounding_size=0.12" if filled else "square,pad=0"
            face = "#D6E9F5" if filled else "white"
            axes.add_patch(FancyBboxPatch(corner, wide, tall, boxstyle=shape, fc=face, ec=INK, lw=1.4))
            axes.text(k * pitch, 0, text, ha="center", va="center", fontsize=10)
        for k, text in enumerate(arrows):
            start, end = k * pitch + wide / 2, (k + 1) * pitch - wide / 2
            _arrow(axes, (start, 0), (end, 0))
            axes.text((start + end) / 2, -0.14, text, ha="center", va="top", fontsize=8.5, linespacing=1.1)
        for k, text in inputs.items():
            _arrow(axes, (k * pitch, -0.85), (k * pitch, -tall / 2))
            axes.text(k * pitch, -0.9, text, ha="center", va="top", fontsize=9)
        for k, text in loops.items():
            _arrow(axes, (k * pitch + 0.35, tall / 2), (k * pitch - 0.35, tall / 2), "arc3,rad=0.9")
            axes.text(k * pitch, 0.72, text, ha="center", va="bottom", fontsize=9)
    return figure


def plot(axes: Any, x: Any, curves: Mapping[str, Any], **labels: Any) -> None:
    """Draw named curves over x into `axes`, told apart by colour and by line, with a legend; `labels` go to its `set`.

    Four at most: there are no more lines that can be told apart.
    """
    if len(curves) > 4:
        raise ConfigError("plot: curves", given=len(curves), expected="four at most")
    for (name, y), line in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(x, y, line, label=name)
    axes.set(**labels)
    axes.legend()


def signed_map(values: Tensor, scale: int = 8, limit: float | None = None) -> Pixels:
    """Turn one channel (h, w) of any sign into colours (scale h, scale w, 3): blue below 0, white at 0, red above.

    The darkest colours stand for `limit` and all beyond; without it, for the largest value of this map.
    """
    if values.dim() != 2:
        raise ShapeError("signed_map: values", given=tuple(values.shape), expected="(h, w)")
    field = values.detach().float().cpu().numpy()
    limit = limit or float(np.abs(field).max()) or 1.0
    colors = colormaps["RdBu_r"](0.5 + field / (2 * limit))[..., :3]
    return enlarge((colors * 255).round().astype(np.uint8), scale)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], bend: str = "arc3") -> None:
    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 13, "color": INK, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=bend, **style))


def _pixels(picture: Any) -> Pixels:
    """Bytes (H, W, 3) of a picture tensor in [-1, 1], with or without a batch of one, or of an array of bytes."""
    if isinstance(picture, Tensor):
        if picture.dim() == 4 and len(picture) != 1:
            raise ShapeError("a picture", given=tuple(picture.shape), expected="one; picture_grid shows several")
        return to_uint8(picture if picture.dim() == 4 else picture[None])[0]
    array = np.asarray(picture)
    if array.dtype != np.uint8:
        raise ConfigError(
            "a picture as an array has bytes", given=str(array.dtype), expected="uint8; a tensor in [-1, 1] goes too"
        )
    if array.ndim == 2:
        array = array[..., None].repeat(3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ShapeError("a picture as an array", given=array.shape, expected="(H, W) or (H, W, 3)")
    return array
