"""The nine kinds of object, drawn with the cartoon pen on their design grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from ldm_tutor.data.scenes.pen import INK, Color, Oval, Pen, Poly, Tube, curve, mix
from ldm_tutor.data.scenes.world import GRIDS, NOMINAL_SCALE

SUPERSAMPLE = 4

PALETTE: dict[str, Color] = {
    "red": (220, 34, 40),
    "orange": (250, 134, 14),
    "yellow": (255, 222, 36),
    "green": (52, 166, 62),
    "blue": (36, 96, 222),
    "purple": (132, 56, 188),
    "pink": (255, 138, 192),
    "white": (250, 250, 252),
}
SHADES: dict[str, Color] = {
    "red": (168, 18, 40),
    "orange": (214, 100, 8),
    "yellow": (226, 182, 12),
    "green": (32, 122, 52),
    "blue": (24, 66, 168),
    "purple": (94, 34, 144),
    "pink": (228, 98, 160),
    "white": (206, 212, 226),
}

PALE: Color = (255, 250, 236)
GLASS: Color = (196, 232, 248)
ROSE: Color = (250, 150, 160)
BROWN: Color = (126, 80, 46)
GREY: Color = (176, 180, 190)
GOLD: Color = (255, 206, 70)
WATER: Color = (86, 168, 222)


@dataclass(frozen=True)
class Tones:
    """The three tones of one colour name: main, shade (darker) and light."""

    main: Color
    shade: Color
    light: Color


def tones(color: str) -> Tones:
    """The tones in which an object of the named colour is painted."""
    main = PALETTE[color]
    return Tones(main, SHADES[color], mix(main, (255, 255, 255), 0.38))


def _box(x0: float, y0: float, x1: float, y1: float) -> Poly:
    return Poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)))


def _shadow(pen: Pen, x: float, y: float, rx: float, ry: float) -> None:
    for grow, alpha in ((1.0, 34), (0.8, 44), (0.58, 52)):
        pen.below(INK, alpha, Oval(x, y, rx * grow, ry * grow))


def _cat(pen: Pen, tone: Tones) -> None:
    _shadow(pen, 46, 102, 40, 8)
    pen.body(
        tone.main, Tube(curve((58, 92), (78, 88), (84, 68), (79, 54), closed=False), 11), shade=tone.shade, depth=3
    )
    pen.body(
        tone.main,
        Poly(curve((44, 50), (64, 70), (68, 94), (56, 103), (44, 104), (32, 103), (20, 94), (24, 70))),
        shade=tone.shade,
        depth=6,
    )
    pen.inside(tone.light, Oval(44, 84, 14, 18), Oval(44, 84, 14, 18))
    pen.body(tone.main, Oval(33, 99, 8, 6), Oval(55, 99, 8, 6), ink=0.8)
    ears = Poly(((13, 34), (11, 5), (36, 20))), Poly(((75, 34), (77, 5), (52, 20)))
    pen.body(tone.main, *ears, Oval(44, 39, 35, 26), shade=tone.shade, light=tone.light, depth=5)
    pen.inside(
        ROSE if tone.main != PALETTE["pink"] else tone.shade,
        Oval(44, 28, 60, 30),
        Poly(((18, 24), (16, 12), (27, 19))),
        Poly(((70, 24), (72, 12), (61, 19))),
    )
    for x in (30, 58):
        pen.body(INK, Oval(x, 38, 5, 7.5), ink=0)
        if pen.fine:
            pen.body(PALE, Oval(x - 1.5, 35, 2, 2.6), ink=0)
    pen.inside(tone.light, Oval(44, 39, 34, 25), Oval(44, 53, 11, 7))
    pen.body((226, 84, 110), Poly(((39, 47), (49, 47), (44, 53))), ink=0)
    if pen.fine:
        for side in (-1, 1):
            for y0, y1 in ((50, 46), (55, 58)):
                pen.body(INK, Tube(((44 + side * 20, y0), (44 + side * 41, y1)), 1.8), ink=0)


def _dog(pen: Pen, tone: Tones) -> None:
    _shadow(pen, 66, 92, 50, 8)
    pen.body(tone.main, Tube(curve((96, 52), (108, 42), (110, 24), closed=False), 10), shade=tone.shade, depth=3)
    pen.body(tone.shade, Tube(((56, 64), (58, 88)), 12), Tube(((86, 64), (84, 88)), 12))
    pen.body(
        tone.main,
        Poly(curve((42, 44), (70, 42), (98, 44), (104, 58), (98, 72), (70, 70), (50, 74), (38, 60))),
        Tube(((47, 62), (46, 88)), 13),
        Tube(((96, 60), (98, 88)), 13),
        Tube(((44, 46), (36, 34)), 22),
        shade=tone.shade,
        light=tone.light,
        depth=5,
    )
    pen.body((70, 66, 82), Tube(((33, 53), (54, 45)), 6), ink=0.3)
    pen.body(GOLD, Oval(37, 58, 4.5, 4.5), ink=0.5)
    pen.body(
        tone.main, Oval(36, 28, 21, 20), Tube(((14, 38), (34, 36)), 17), shade=tone.shade, light=tone.light, depth=4
    )
    pen.body(tone.shade, Poly(curve((42, 14), (52, 16), (60, 32), (58, 48), (49, 50), (44, 36))))
    pen.body(INK, Oval(9, 33, 6.5, 5.5), ink=0)
    pen.body(INK, Oval(27, 24, 4.2, 5), ink=0)
    if pen.fine:
        pen.body(PALE, Oval(25.8, 22.2, 1.6, 1.8), ink=0)
        pen.body(INK, Tube(curve((14, 44), (22, 44), (28, 40), closed=False), 2), ink=0)


def _car(pen: Pen, tone: Tones) -> None:
    _shadow(pen, 65, 75, 62, 7)
    cabin = Poly(((28, 36), (44, 8), (84, 6), (106, 36)))
    hull = Poly(
        curve((6, 44), (14, 36), (40, 32), (100, 32), (120, 37), (125, 52), (122, 64), (65, 66), (8, 64), (4, 56))
    )
    pen.body(tone.main, cabin, hull, shade=tone.shade, light=tone.light, depth=6)
    pen.body(
        GLASS, Poly(((38, 33), (48, 14), (61, 13), (61, 33))), Poly(((69, 33), (69, 13), (81, 12), (94, 33))), ink=0.6
    )
    pen.inside(tone.shade, hull, _box(0, 56, 130, 68))
    pen.body(GOLD, Oval(10, 46, 5, 5), ink=0.5)
    for x in (32, 98):
        pen.body((58, 54, 68), Oval(x, 63, 14.5, 14.5))
        pen.body(GREY, Oval(x, 63, 6.5, 6.5), ink=0)


def _bicycle(pen: Pen, tone: Tones) -> None:
    _shadow(pen, 65, 82, 60, 6)
    rear, front, crank, seat, head = (30, 55), (100, 55), (60, 57), (48, 24), (88, 24)
    for x, y in (rear, front):
        ring = [(x + 23 * math.cos(k * math.pi / 16), y + 23 * math.sin(k * math.pi / 16)) for k in range(33)]
        pen.below((236, 238, 244), 120, Oval(x, y, 23, 23))
        if pen.fine:
            for k in (0, 5, 11):
                pen.body((132, 134, 148), Tube((ring[k], ring[k + 16]), 2), ink=0)
        pen.body((58, 54, 68), Tube(tuple(ring), 5), ink=0.35)
    frame = [
        Tube((rear, crank), 8),
        Tube((rear, seat), 8),
        Tube((crank, seat), 9),
        Tube((crank, head), 9),
        Tube((seat, head), 9),
        Tube(((85, 14), front), 9),
    ]
    pen.body(tone.main, *frame, ink=0.75)
    pen.body(tone.light, Tube(((52, 22.5), (84, 22.5)), 2.5), ink=0)
    pen.body(
        INK, Tube(((86, 13), (80, 6), (96, 5)), 5), Tube(((36, 14), (58, 14)), 7), Tube(((48, 16), (48, 22)), 5), ink=0
    )
    pen.body(GREY, Oval(60, 57, 5, 5), ink=0.6)


def _house(pen: Pen, tone: Tones) -> None:
    _shadow(pen, 54, 100, 50, 6)
    pen.body(mix(tone.shade, INK, 0.2), _box(72, 10, 84, 40))
    walls = _box(14, 44, 90, 100)
    pen.body(tone.main, walls, shade=tone.shade, light=tone.light, depth=4)
    roof = Poly(((3, 48), (52, 4), (101, 48)))
    dark = mix(tone.shade, INK, 0.25)
    pen.body(dark, roof, light=mix(dark, tone.main, 0.5), depth=4)
    pen.body(BROWN, Poly(((43, 100), (43, 72), (47, 66), (57, 66), (61, 72), (61, 100))), ink=0.8)
    for x in (28, 76):
        pen.body((255, 240, 170), _box(x - 8, 60, x + 8, 76), ink=0.8)
        if pen.fine:
            pen.body(INK, Tube(((x, 60), (x, 76)), 2), Tube(((x - 8, 68), (x + 8, 68)), 2), ink=0)
    if pen.fine:
        pen.body(GOLD, Oval(56, 85, 2.4, 2.4), ink=0)


def _tree(pen: Pen, tone: Tones) -> None:
    _shadow(pen, 46, 104, 34, 7)
    pen.body(
        BROWN,
        Poly(((35, 62), (51, 62), (52, 96), (58, 106), (28, 106), (34, 96))),
        shade=mix(BROWN, INK, 0.35),
        depth=5,
    )
    crown = Oval(43, 30, 27, 27), Oval(24, 50, 21, 20), Oval(62, 50, 21, 20), Oval(43, 58, 22, 18)
    pen.body(tone.main, *crown, shade=tone.shade, light=tone.light, depth=6)
    if pen.fine:
        for x, y in ((34, 34), (56, 44), (28, 56)):
            pen.body(tone.shade, Tube(curve((x - 5, y), (x, y + 4), (x + 6, y), closed=False), 3), ink=0)


def _boat(pen: Pen, tone: Tones) -> None:
    pen.below(mix(WATER, INK, 0.3), 255, Oval(52, 98, 51, 11))
    pen.below(WATER, 255, Oval(52, 97, 47, 9))
    sail = mix(PALE, tone.main, 0.06)
    pen.body(BROWN, Tube(((50, 70), (50, 8)), 4))
    pen.body(sail, Poly(((57, 12), (92, 60), (57, 60))), shade=mix(sail, INK, 0.16), depth=5)
    pen.body(sail, Poly(((43, 22), (43, 60), (16, 60))), shade=mix(sail, INK, 0.16), depth=5)
    pen.body(tone.main, Poly(((50, 4), (32, 9), (50, 15))), ink=0.7)
    hull = Poly(
        curve(
            (5, 68), (28, 69), (52, 70), (76, 69), (99, 68), (92, 86), (80, 98), (52, 101), (24, 98), (12, 86), steps=4
        )
    )
    pen.body(tone.main, hull, shade=tone.shade, depth=7)
    pen.inside(tone.light, hull, _box(0, 72, 104, 77))
    if pen.fine:
        pen.below(
            mix(WATER, (255, 255, 255), 0.6), 255, Tube(((6, 99), (18, 104)), 2.5), Tube(((88, 104), (98, 99)), 2.5)
        )


def _rocket(pen: Pen, tone: Tones) -> None:
    _shadow(pen, 36, 112, 26, 5)
    pen.body((255, 130, 30), Poly(curve((24, 92), (36, 88), (48, 92), (44, 106), (36, 115), (28, 106))), ink=0.7)
    pen.body((255, 226, 90), Oval(36, 97, 5.5, 9), ink=0)
    pen.body(tone.shade, Poly(((20, 58), (4, 80), (4, 98), (24, 88))), Poly(((52, 58), (68, 80), (68, 98), (48, 88))))
    hull = Poly(curve((36, 3), (50, 22), (56, 48), (53, 76), (46, 92), (26, 92), (19, 76), (16, 48), (22, 22)))
    pen.body(tone.main, hull, shade=tone.shade, light=tone.light, depth=6)
    pen.inside(mix(tone.shade, INK, 0.2), hull, _box(0, 0, 72, 22))
    pen.body(GLASS, Oval(36, 46, 9.5, 9.5), ink=0.9)
    pen.inside(tone.shade, hull, _box(0, 78, 72, 84))


def _ball(pen: Pen, tone: Tones) -> None:
    _shadow(pen, 54, 94, 40, 7)
    disc = Oval(50, 50, 46, 46)
    pale = mix(tone.main, (255, 255, 255), 0.62) if tone.main != PALETTE["white"] else (222, 228, 238)
    pen.body(tone.main, disc)
    pole = (42, 38)
    for turn in range(3):
        ends = [
            (pole[0] + 120 * math.cos(a), pole[1] + 120 * math.sin(a))
            for a in (math.pi * (2 * turn / 3 + 0.1 + 0.05 * k) for k in range(6))
        ]
        pen.inside(pale, disc, Poly((pole, *ends)))
    pen.body(PALE, Oval(pole[0], pole[1], 7, 6), ink=0.5)
    if pen.fine:
        pen.body((255, 255, 255), Tube(curve((17, 40), (22, 28), (31, 19), closed=False), 5), ink=0)


_PAINTERS: dict[str, Callable[[Pen, Tones], None]] = {
    "cat": _cat,
    "dog": _dog,
    "car": _car,
    "bicycle": _bicycle,
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "rocket": _rocket,
    "ball": _ball,
}


@dataclass(frozen=True)
class Sprite:
    """An object drawn at SUPERSAMPLE times the resolution: whole RGBa picture and mask of the object alone.

    Both have a border of `pad` pixels round the object's box, which measures `width` x `height` pixels.
    """

    picture: Image.Image
    mask: Image.Image
    width: int
    height: int
    pad: int


def draw_sprite(kind: str, color: str, scale: float, resolution: int) -> Sprite:
    """Draw one object for pictures of `resolution` pixels; `scale` is a fraction of the picture's side."""
    side = resolution * SUPERSAMPLE
    grid_width, grid_height = GRIDS[kind]
    unit = scale * side / math.sqrt(grid_width * grid_height)
    width, height = round(grid_width * unit), round(grid_height * unit)
    pad = SUPERSAMPLE * max(2, resolution // 32)
    ink = side / 64 * (0.75 if scale < 0.3 else 0.9)
    pen = Pen(width, height, unit, ink, pad, fine=scale >= (NOMINAL_SCALE["small"] + NOMINAL_SCALE["medium"]) / 2)
    _PAINTERS[kind](pen, tones(color))
    whole = Image.alpha_composite(pen.under, pen.canvas)
    return Sprite(whole.convert("RGBa"), pen.canvas.getchannel("A"), width, height, pad)
