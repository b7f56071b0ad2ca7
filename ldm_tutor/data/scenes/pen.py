"""A small cartoon pen: outlined, shaded shapes in design units on a supersampled transparent canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]
Fill = int | tuple[int, int, int, int]

INK: Color = (46, 36, 54)


@dataclass(frozen=True)
class Oval:
    """An ellipse with centre (x, y) and radii rx, ry in design units."""

    x: float
    y: float
    rx: float
    ry: float


@dataclass(frozen=True)
class Poly:
    """A filled polygon through `points` in design units."""

    points: tuple[Point, ...]


@dataclass(frozen=True)
class Tube:
    """A line of `width` design units with round ends through `points`."""

    points: tuple[Point, ...]
    width: float


Shape = Oval | Poly | Tube


def mix(first: Color, second: Color, share: float) -> Color:
    """The colour `share` of the way (0 to 1) from the first to the second."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def curve(*points: Point, closed: bool = True, steps: int = 6) -> tuple[Point, ...]:
    """Points of the smooth (Catmull-Rom) curve through the given ones."""
    count = len(points)

    def pick(index: int) -> Point:
        return points[index % count] if closed else points[min(max(index, 0), count - 1)]

    result: list[Point] = []
    for start in range(count if closed else count - 1):
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = (pick(start + offset) for offset in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            result.append((_catmull(ax, bx, cx, dx, t), _catmull(ay, by, cy, dy, t)))
    return tuple(result) if closed else (*result, points[-1])


def _catmull(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t * t + (3 * b - a - 3 * c + d) * t * t * t)


class Pen:
    """Draws shapes given in design units onto a `width` x `height` pixel canvas with a border of `pad` pixels.

    `unit` is pixels per design unit, `ink` the outline's width in pixels, `fine` whether small details are wanted.
    """

    def __init__(self, width: int, height: int, unit: float, ink: float, pad: int, fine: bool) -> None:
        self.unit, self.ink, self.pad, self.fine = unit, ink, pad, fine
        self.canvas = Image.new("RGBA", (width + 2 * pad, height + 2 * pad), (*INK, 0))
        self.under = self.canvas.copy()
        self._draw = ImageDraw.Draw(self.canvas)

    def body(
        self,
        fill: Color,
        *shapes: Shape,
        shade: Color | None = None,
        light: Color | None = None,
        depth: float = 6,
        ink: float = 1.0,
    ) -> None:
        """Fill the union of `shapes` inside one outline, with a dark lower-right and a light upper-left side.

        `depth` is the width of the two sides in design units; `ink` multiplies the outline's width (0: none).
        """
        if ink:
            for shape in shapes:
                self._paint(self._draw, shape, (*INK, 255), self.ink * ink)
        for shape in shapes:
            self._paint(self._draw, shape, (*fill, 255), 0)
        if shade is None and light is None:
            return
        mask = self._mask(*shapes)
        step = max(1, round(depth * self.unit))
        for side, move in ((light, step), (shade, -step)):
            if side is not None:
                inner = Image.new("L", mask.size, 0)
                inner.paste(mask, (move, move))
                self.canvas.paste((*side, 255), mask=ImageChops.subtract(mask, inner))

    def inside(self, fill: Color, frame: Shape, *shapes: Shape) -> None:
        """Fill the part of `shapes` that lies inside `frame`, without an outline."""
        self.canvas.paste((*fill, 255), mask=ImageChops.darker(self._mask(frame), self._mask(*shapes)))

    def below(self, fill: Color, alpha: int, *shapes: Shape) -> None:
        """Paint decoration beneath the object (shadow, water), which does not belong to its mask."""
        layer = Image.new("RGBA", self.under.size, (*fill, 0))
        for shape in shapes:
            self._paint(ImageDraw.Draw(layer), shape, (*fill, alpha), 0)
        self.under = Image.alpha_composite(self.under, layer)

    def _mask(self, *shapes: Shape) -> Image.Image:
        mask = Image.new("L", self.canvas.size, 0)
        draw = ImageDraw.Draw(mask)
        for shape in shapes:
            self._paint(draw, shape, 255, 0)
        return mask

    def _paint(self, draw: ImageDraw.ImageDraw, shape: Shape, fill: Fill, grow: float) -> None:
        if isinstance(shape, Oval):
            (x, y), rx, ry = self._at((shape.x, shape.y)), shape.rx * self.unit + grow, shape.ry * self.unit + grow
            _oval(draw, x, y, rx, ry, fill)
        elif isinstance(shape, Poly):
            points = [self._at(point) for point in shape.points]
            draw.polygon([(round(x), round(y)) for x, y in points], fill=fill)
            if grow:
                self._stroke(draw, [*points, points[0]], grow, fill)
        else:
            self._stroke(draw, [self._at(point) for point in shape.points], shape.width * self.unit / 2 + grow, fill)

    def _at(self, point: Point) -> Point:
        return point[0] * self.unit + self.pad, point[1] * self.unit + self.pad

    @staticmethod
    def _stroke(draw: ImageDraw.ImageDraw, points: Sequence[Point], radius: float, fill: Fill) -> None:
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
            if length:
                dx, dy = (y0 - y1) / length * radius, (x1 - x0) / length * radius
                corners = [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)]
                draw.polygon([(round(x), round(y)) for x, y in corners], fill=fill)
        for x, y in points:
            _oval(draw, x, y, radius, radius, fill)


def _oval(draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, fill: Fill) -> None:
    draw.ellipse((round(x - rx), round(y - ry), round(x + rx), round(y + ry)), fill=fill)
