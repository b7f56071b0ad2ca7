"""The six backgrounds: smooth, quiet landscapes with the horizon at about 0.30 of the height."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from ldm_tutor.data.scenes.pen import Color, mix

HORIZON = 0.30
SUPERSAMPLE = 4

_WHITE: Color = (255, 255, 255)


class _Canvas:
    """Draws in unit coordinates on a supersampled picture, with the random choices of one variant."""

    def __init__(self, resolution: int, rng: random.Random) -> None:
        self.side = resolution * SUPERSAMPLE
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)
        self.rng = rng
        self.horizon = HORIZON + rng.randint(-4, 4) / 128
        self.tint = rng.randint(-8, 8)

    def colour(self, colour: Color, tinted: bool = True) -> Color:
        """The colour, shifted a little from red towards blue or back."""
        shift = self.tint if tinted else 0
        return tuple(min(max(c + d, 0), 255) for c, d in zip(colour, (shift, 0, -shift), strict=True))  # type: ignore

    def fade(self, y0: float, y1: float, *colours: Color) -> None:
        """A vertical gradient through the colours between two heights."""
        top, bottom = round(y0 * self.side), round(y1 * self.side)
        stops = [self.colour(each) for each in colours]
        for row in range(top, bottom):
            where = (row - top) / max(bottom - top - 1, 1) * (len(stops) - 1)
            first = min(int(where), len(stops) - 2)
            self.draw.line((0, row, self.side, row), fill=mix(stops[first], stops[first + 1], where - first))

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Color) -> None:
        """A filled ellipse."""
        self.draw.ellipse([round(v * self.side) for v in (x - rx, y - ry, x + rx, y + ry)], fill=self.colour(colour))

    def shape(self, points: list[tuple[float, float]], colour: Color) -> None:
        """A filled polygon."""
        self.draw.polygon([(round(x * self.side), round(y * self.side)) for x, y in points], fill=self.colour(colour))

    def cloud(self, x: float, y: float, size: float, colour: Color) -> None:
        """A soft cloud with a flat base."""
        for dx, dy, r in ((-0.9, 0.15, 0.55), (0.0, -0.1, 0.8), (0.85, 0.1, 0.6)):
            self.oval(x + dx * size, y + dy * size * 0.6, r * size, r * size * 0.6, colour)

    def uniform(self, low: float, high: float) -> float:
        """A random number of this variant on a grid of 1/64."""
        return low + (high - low) * self.rng.randint(0, 64) / 64

    def hills(self, colour: Color) -> None:
        """Two low hills on the horizon."""
        self.oval(self.uniform(0.05, 0.3), self.horizon + 0.06, 0.42, 0.11, colour)
        self.oval(self.uniform(0.7, 0.95), self.horizon + 0.06, 0.36, 0.09, mix(colour, _WHITE, 0.06))


def _day(c: _Canvas) -> None:
    c.fade(0, c.horizon + 0.05, (112, 186, 244), (196, 228, 250))
    side = c.rng.choice((0.0, 1.0))
    sun = abs(side - c.uniform(0.10, 0.2))
    c.oval(sun, 0.10, 0.085, 0.085, (255, 240, 170))
    c.oval(sun, 0.10, 0.065, 0.065, (255, 218, 84))
    c.cloud(abs(side - c.uniform(0.42, 0.56)), c.uniform(0.09, 0.13), 0.09, _WHITE)
    c.cloud(abs(side - c.uniform(0.78, 0.9)), c.uniform(0.14, 0.2), 0.07, (246, 250, 255))
    c.hills((126, 190, 104))
    c.fade(c.horizon, 1, (142, 204, 98), (104, 178, 76))


def _night(c: _Canvas) -> None:
    c.fade(0, c.horizon + 0.05, (20, 26, 74), (52, 66, 128))
    side = c.rng.choice((0.0, 1.0))
    moon = abs(side - c.uniform(0.12, 0.22))
    c.oval(moon, 0.115, 0.075, 0.075, (250, 244, 206))
    c.oval(moon + 0.04, 0.095, 0.06, 0.06, (29, 37, 89))
    for x, y in ((0.4, 0.08), (0.58, 0.17), (0.74, 0.07), (0.9, 0.16)):
        c.oval(abs(side - x - c.uniform(-0.04, 0.04)), y, 0.011, 0.011, (236, 236, 214))
    c.hills((30, 60, 92))
    c.fade(c.horizon, 1, (38, 84, 100), (26, 62, 84))


def _sunset(c: _Canvas) -> None:
    c.fade(0, c.horizon + 0.05, (112, 66, 142), (236, 110, 96), (255, 190, 96))
    sun = c.uniform(0.2, 0.8)
    c.oval(sun, c.horizon - 0.02, 0.13, 0.13, (255, 206, 112))
    c.oval(sun, c.horizon - 0.02, 0.1, 0.1, (255, 236, 152))
    c.hills((120, 62, 84))
    c.fade(c.horizon, 1, (138, 84, 78), (92, 56, 70))


def _snow(c: _Canvas) -> None:
    c.fade(0, c.horizon + 0.05, (190, 202, 218), (220, 228, 238))
    c.hills((206, 216, 232))
    for x in (c.uniform(0.06, 0.14), c.uniform(0.2, 0.28), c.uniform(0.82, 0.92)):
        for top, half in ((0.15, 0.04), (0.09, 0.055)):
            y = c.horizon - top
            c.shape([(x, y), (x + half, y + 0.09), (x - half, y + 0.09)], (118, 152, 158))
    c.fade(c.horizon, 1, (226, 235, 246), (204, 218, 238))


def _beach(c: _Canvas) -> None:
    c.fade(0, c.horizon, (106, 192, 246), (200, 234, 250))
    side = c.rng.choice((0.0, 1.0))
    c.oval(abs(side - c.uniform(0.1, 0.2)), 0.1, 0.06, 0.06, (255, 232, 120))
    c.cloud(abs(side - c.uniform(0.5, 0.8)), c.uniform(0.09, 0.13), 0.08, _WHITE)
    sea = c.horizon - 0.07
    c.fade(sea, c.horizon + 0.1, (34, 128, 190), (68, 178, 206))
    c.fade(c.horizon + 0.09, 1, (244, 222, 166), (232, 200, 138))
    c.oval(c.uniform(0.2, 0.4), c.horizon + 0.1, 0.5, 0.025, (250, 244, 226))
    c.oval(c.uniform(0.6, 0.8), c.horizon + 0.12, 0.6, 0.035, (242, 220, 166))


def _moon(c: _Canvas) -> None:
    c.fade(0, c.horizon + 0.05, (10, 10, 22), (24, 24, 44))
    side = c.rng.choice((0.0, 1.0))
    earth = abs(side - c.uniform(0.14, 0.26))
    c.oval(earth, 0.125, 0.08, 0.08, (52, 124, 214))
    c.oval(earth - 0.02, 0.105, 0.035, 0.026, (92, 180, 110))
    c.oval(earth + 0.03, 0.155, 0.028, 0.02, (92, 180, 110))
    for x, y in ((0.42, 0.09), (0.6, 0.2), (0.76, 0.07), (0.92, 0.18)):
        c.oval(abs(side - x - c.uniform(-0.04, 0.04)), y, 0.011, 0.011, (230, 230, 236))
    c.fade(c.horizon, 1, (158, 158, 166), (118, 118, 130))
    for x, y, r in ((0.16, 0.42, 0.1), (0.84, 0.5, 0.12), (0.3, 0.9, 0.16), (0.74, 0.84, 0.09)):
        x += c.uniform(-0.05, 0.05)
        c.oval(x, y, r, r * 0.36, (108, 108, 120))
        c.oval(x, y + 0.012, r * 0.86, r * 0.26, (134, 134, 144))


_PAINTERS: dict[str, Callable[[_Canvas], None]] = {
    "day": _day,
    "night": _night,
    "sunset": _sunset,
    "snow": _snow,
    "beach": _beach,
    "moon": _moon,
}


def draw_background(background: str, variant: int, resolution: int) -> Image.Image:
    """Draw one of the DECOR_VARIANTS of a background as an RGB picture of resolution x resolution pixels."""
    canvas = _Canvas(resolution, random.Random(f"background {background} {variant}"))
    _PAINTERS[background](canvas)
    return canvas.image.reduce(SUPERSAMPLE)
