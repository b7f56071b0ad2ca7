"""A user's own picture files, whatever is in them: read upright, in colour and within memory, or refused in words.

A file may be in any of the usual formats and modes: grey, palette, transparent, CMYK, 16 bits, floating point, turned
by its EXIF note, animated (the first frame counts). The size stands in the header, so a file that would not fit into
memory is refused before a pixel of it is decoded.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms

from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.shapes import Float, Int, Pictures, Tensor

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF")
MOST_PIXELS = 128_000_000  # of a file that is shrunk at once: more than 11,000 x 11,000
MOST_WHOLE = 4096 * 4096  # of a file that is read at its own size
MOST_BYTES = 256 * 2**20  # of a file
MOST_SIDE = 4096  # of the square that is asked for
_ORIENTATION = 0x0112  # EXIF: how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SMOOTH = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")  # modes in which neighbours may be averaged
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
Source = str | os.PathLike[str] | bytes


def open_picture(source: Source, side: int | None = None) -> Pictures:
    """Read a picture file (or its bytes): (1, 3, H, W) in [-1, 1], upright, transparent parts on white.

    `side` cuts out the middle square and scales it to side x side; without it the picture keeps its size, of which
    MOST_WHOLE pixels are allowed. Colour profiles are not applied. Raises ConfigError where there is no such file, it
    is no picture, is broken, or is too large.
    """
    return to_float(open_pixels(source, side))


def open_pixels(source: Source, side: int | None = None) -> Int[Tensor, "1 3 H W"]:
    """Read a picture file as `open_picture` does, as bytes: uint8 (1, 3, H, W)."""
    with _opened(source, side) as image:
        return pixels_of(image, side)


def pixels_of(image: Image.Image, side: int | None = None) -> Int[Tensor, "1 3 H W"]:
    """Return a picture that Pillow holds as uint8 (1, 3, H, W), in the way of `open_picture`."""
    pixels = np.array(_to_size(image, side, _WHITE, Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def open_mask(source: Source, side: int | None = None) -> Float[Tensor, "1 1 H W"]:
    """Read a mask file: 1 where it is bright (a hole), 0 where it is dark or transparent; sizes as in `open_picture`.

    A pixel of the smaller mask is a hole as soon as a part of it is one.
    """
    with _opened(source, side) as image:
        whole = _to_size(image, None, _BLACK, Image.Resampling.BOX).convert("L")
        bright = whole.point([0] * 128 + [255] * 128)
        if side is not None:
            bright = _square(bright, side, Image.Resampling.BOX)
        hole = np.array(bright) > 0
    return torch.from_numpy(hole)[None, None].float()


def picture_size(source: Source) -> tuple[int, int]:
    """Return width and height of the upright picture in a file, from its header; errors as in `open_picture`."""
    with _opened(source, 1) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


# ---------------------------------------------------------------- opening


@contextmanager
def _opened(source: Source, side: int | None) -> Iterator[Image.Image]:
    """Open a picture, look at its header and hold it; whatever its decoder raises becomes a ConfigError."""
    if side is not None and (isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MOST_SIDE):
        raise ConfigError("open_picture: side", given=side, expected=f"a whole number from 1 to {MOST_SIDE}")
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "the file", bytes(source)
        if len(data) > MOST_BYTES:
            raise _too_heavy(name, len(data))
        file: Any = io.BytesIO(data)
        empty = not data
    else:
        path = _checked_path(source)
        name, file, empty = str(path), path, path.stat().st_size == 0
    if empty:
        raise ConfigError(f"{name} is empty", expected="a picture file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large sizes and odd notes in the file: both are looked at here
        try:
            with Image.open(file, formats=_formats()) as image:
                _check_size(image, name, side)
                yield image
        except (ConfigError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ConfigError(
                f"{name} is too large to be opened ({error})", fix="make a smaller copy of it first"
            ) from error
        except Image.UnidentifiedImageError as error:
            raise ConfigError(
                f"{name} is no picture that can be read here, whatever its name says",
                expected=f"one of the formats {', '.join(_formats())}",
                fix="save it as PNG or JPEG in the program that opens it",
            ) from error
        except PermissionError as error:
            raise ConfigError(f"{name} may not be read ({error.strerror})") from error
        except Exception as error:  # a decoder raises nearly anything at a broken file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"{name} is broken or cut off ({reason})", expected="a whole picture file", fix="copy or save it again"
            ) from error


def _checked_path(source: Any) -> Path:
    try:
        path = Path(source).expanduser()
        mode = path.stat().st_mode
    except (TypeError, RuntimeError, ValueError) as error:  # no text, no home folder, a zero byte in the name
        raise ConfigError("open_picture: no path of a file", given=source, expected="a path such as cat.png") from error
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {source}", fix="look at the name and the folder") from error
    except OSError as error:
        raise ConfigError(f"{source} cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path} is {'a folder' if path.is_dir() else 'no ordinary file'}", expected="a picture file")
    if path.stat().st_size > MOST_BYTES:
        raise _too_heavy(str(path), path.stat().st_size)
    return path


def _too_heavy(name: str, num_bytes: int) -> ConfigError:
    return ConfigError(
        f"{name} is too large", given=f"{num_bytes / 2**20:.0f} MiB", expected=f"at most {MOST_BYTES // 2**20} MiB"
    )


def _formats() -> list[str]:
    """Return those of FORMATS that this Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(image: Image.Image, name: str, side: int | None) -> None:
    width, height = image.size
    most = MOST_WHOLE if side is None else MOST_PIXELS
    if width < 1 or height < 1:
        raise ConfigError(f"{name} has no pixels", given=f"{width} x {height}")
    if width * height > most:
        raise ConfigError(
            f"{name} is too large",
            given=f"{width} x {height} pixels",
            expected=f"at most {most:,} pixels in all",
            fix="make a smaller copy of it first",
        )


# ---------------------------------------------------------------- pixels


def _to_size(
    image: Image.Image, side: int | None, behind: tuple[int, int, int], resampling: Image.Resampling
) -> Image.Image:
    """Return the first frame in RGB on the colour `behind`, upright; with a `side`, its middle square scaled to it."""
    turn = _TURNS.get(_orientation(image))
    if side is not None:
        image.draft(None, (4 * side, 4 * side))  # a JPEG is decoded small at once
    image.load()
    whole = _to_rgb(image if side is None else _coarser(image, side), behind)
    if side is not None:
        whole = _square(whole, side, resampling)
    return whole if turn is None else whole.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF note of how to turn the picture; 1 (as it is) where there is none, or it is broken."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return int(value) if int(value) in _TURNS else 1
    except Exception:  # a broken note says nothing about the pixels
        return 1


def _coarser(image: Image.Image, side: int) -> Image.Image:
    """Shrink a picture much larger than `side` by a whole factor, before anything copies it."""
    factor = min(image.size) // (4 * side)
    return image.reduce(factor) if factor > 1 and image.mode in _SMOOTH else image


def _square(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    """Return the middle square, scaled to side x side."""
    width, height = image.size
    least = min(width, height)
    left, top = (width - least) // 2, (height - least) // 2
    square = image if width == height else image.crop((left, top, left + least, top + least))
    return square.resize((side, side), resampling, reducing_gap=3 if least > 6 * side else None)


def _to_rgb(image: Image.Image, behind: tuple[int, int, int]) -> Image.Image:
    """Return any mode as RGB, transparent parts on the colour `behind`."""
    if image.mode == "LAB":
        image = _from_lab(image)
    elif image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, behind)
        canvas.paste(clear, mask=clear.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    made: Callable[..., Any] = ImageCms.profileToProfile
    return made(image, lab, rgb, outputMode="RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Bring grey levels to 0 to 255: 16 bits by their range, others by the smallest usual range that holds them."""
    if values.dtype.itemsize == 2 and values.dtype.kind == "u":
        return ((np.arange(65536) + 128) // 257).astype(np.uint8)[values]
    levels = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(levels.min()), float(levels.max())
    if low < 0:
        scale = max(high - low, 1e-12)
    else:
        low = 0.0
        ranges = (255.0, 65535.0) if values.dtype.kind in "iu" else (1.0, 255.0, 65535.0)
        scale = next((each for each in ranges if high <= each), high)
    return ((levels - low) * (255 / scale)).round().clip(0, 255).astype(np.uint8)
