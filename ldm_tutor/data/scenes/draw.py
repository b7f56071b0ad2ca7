"""Draw a scene, or the visible pixels of each of its objects, at any resolution."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from ldm_tutor.data.scenes.backgrounds import draw_background
from ldm_tutor.data.scenes.objects import SUPERSAMPLE, Sprite, draw_sprite
from ldm_tutor.data.scenes.world import DECOR_VARIANTS, Scene, SceneObject
from ldm_tutor.errors import ConfigError

MIN_RESOLUTION, MAX_RESOLUTION = 32, 256

_small_sprite = lru_cache(maxsize=2048)(draw_sprite)  # up to 64x64: about 60 kB each
_big_sprite = lru_cache(maxsize=96)(draw_sprite)
_background = lru_cache(maxsize=192)(draw_background)


def draw(scene: Scene, resolution: int = 64) -> np.ndarray:
    """Draw the scene: uint8 array (resolution, resolution, 3); resolution 32 to 256, else ConfigError."""
    check_resolution(resolution)
    picture = _background(scene.background, scene.seed % DECOR_VARIANTS, resolution).copy()
    for each in scene.objects:
        sprite = _sprite(each, resolution)
        tile, corner = _place(sprite.picture, sprite, each, resolution)
        tile = tile.convert("RGBA")
        picture.paste(tile, corner, tile)
    return np.array(picture)


def draw_masks(scene: Scene, resolution: int = 64) -> np.ndarray:
    """Visible pixels of each object: bool array (num_objects, resolution, resolution), later ones hide earlier ones."""
    check_resolution(resolution)
    masks = np.zeros((len(scene.objects), resolution, resolution), dtype=bool)
    for index, each in enumerate(scene.objects):
        sprite = _sprite(each, resolution)
        tile, corner = _place(sprite.mask, sprite, each, resolution)
        layer = Image.new("L", (resolution, resolution), 0)
        layer.paste(tile, corner)
        masks[index] = np.asarray(layer) >= 128
        masks[:index] &= ~masks[index]
    return masks


def check_resolution(resolution: int) -> None:
    """Raise ConfigError unless the resolution can be drawn."""
    if not isinstance(resolution, int) or not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION:
        raise ConfigError(
            f"resolution is {resolution!r}, expected an integer from {MIN_RESOLUTION} to {MAX_RESOLUTION}"
        )


def _sprite(each: SceneObject, resolution: int) -> Sprite:
    cached = _small_sprite if resolution <= 64 else _big_sprite
    return cached(each.kind, each.color, each.scale, resolution)


def _place(
    layer: Image.Image, sprite: Sprite, each: SceneObject, resolution: int
) -> tuple[Image.Image, tuple[int, int]]:
    """Reduce a sprite's layer to the pixel grid of the picture; returns it with its upper left corner in pixels."""
    side = resolution * SUPERSAMPLE
    left, top = round(each.x * side - sprite.width / 2), round(each.y * side - sprite.height / 2)
    if each.flip:  # draw in the mirrored picture, then mirror
        left = side - left - sprite.width
    column, row = (left - sprite.pad) // SUPERSAMPLE + 1, (top - sprite.pad) // SUPERSAMPLE + 1
    x0, y0 = column * SUPERSAMPLE - left + sprite.pad, row * SUPERSAMPLE - top + sprite.pad
    tile = layer.reduce(SUPERSAMPLE, (x0, y0, *layer.size))
    if each.flip:
        tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        column = resolution - column - tile.width
    return tile, (column, row)
