"""Picture files as users have them: every mode and every kind of damage."""

import io
import os
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_tutor.data import picture_files
from ldm_tutor.data.picture_files import MOST_SIDE, open_mask, open_picture, picture_size
from ldm_tutor.errors import ConfigError, TutorError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(width=24, height=16):
    """A picture whose four quarters have four colours: red, green, blue, white in reading order."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = slice(0, height // 2), slice(0, width // 2)
    pixels[:] = WHITE
    pixels[top, left], pixels[top, width // 2 :], pixels[height // 2 :, left] = RED, GREEN, BLUE
    return Image.fromarray(pixels)


def seen(picture):
    """The colours of the four quarters of (1, 3, H, W), as bytes."""
    height, width = picture.shape[2:]
    values = ((picture[0] + 1) * 127.5).round()
    spots = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [tuple(int(v) for v in values[:, y, x]) for y, x in spots]


def near(found, wanted, limit=12):
    gap = np.abs(np.array(found) - np.array(wanted)).max()
    assert gap <= limit, (found, wanted)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def png_header(width, height, depth=8, kind=2):
    """The head of a PNG that claims a size, and no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# ---------------------------------------------------------------- what is read


def test_values_are_exact_and_the_size_stays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = open_picture(saved(Image.fromarray(pixels), tmp_path / "a.png"))
    assert picture.shape == (1, 3, 5, 7) and picture.dtype == torch.float32
    assert np.array_equal(((picture[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), pixels)
    assert torch.equal(open_picture((tmp_path / "a.png").read_bytes()), picture)
    assert torch.equal(open_picture(str(tmp_path / "a.png")), picture)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm", "tga"])
def test_usual_formats(tmp_path, suffix):
    path = saved(corners(), tmp_path / f"a.{suffix}")
    near(seen(open_picture(path)), [RED, GREEN, BLUE, WHITE], 60 if suffix in ("jpg", "webp") else 0)
    assert open_picture(path, 8).shape == (1, 3, 8, 8) and picture_size(path) == (24, 16)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"])
def test_every_mode(tmp_path, mode):
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(corners(), srgb, lab, outputMode="LAB")
    else:
        image = corners().convert("L").convert(mode) if mode == "I;16" else corners().convert(mode)
    suffix = "tif" if mode in ("CMYK", "YCbCr", "LAB", "F", "I", "LA") else "png"
    picture = open_picture(saved(image, tmp_path / f"a.{suffix}"), 16)
    assert picture.shape == (1, 3, 16, 16) and -1 <= picture.min() and picture.max() <= 1
    if mode in ("P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"):
        near(seen(picture), [RED, GREEN, BLUE, WHITE], 24)
    elif mode in ("L", "LA", "I", "F"):
        near(seen(picture), [(76,) * 3, (150,) * 3, (29,) * 3, WHITE])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_sixteen_bits_and_shares_keep_their_levels(tmp_path, dtype):
    levels = np.linspace(0, 1, 16 * 16).reshape(16, 16)
    values = (levels * 65535).round().astype(np.uint16) if dtype == np.uint16 else levels.astype(np.float32)
    picture = open_picture(saved(Image.fromarray(values), tmp_path / "a.tif"))
    assert np.abs((picture[0, 0].numpy() + 1) / 2 - levels).max() <= 0.51 / 255
    assert torch.equal(picture[:, 0], picture[:, 2])


def test_strange_numbers_in_a_float_file(tmp_path):
    values = np.zeros((4, 4), np.float32)
    values[0], values[1], values[2], values[3] = np.nan, -3.0, 5.0, np.inf
    picture = open_picture(saved(Image.fromarray(values), tmp_path / "a.tif"))
    assert picture.isfinite().all() and picture[0, 0, 2, 0] == 1 and picture[0, 0, 1, 0] == -1


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("side", [None, 8])
def test_exif_turns_the_picture_upright(tmp_path, turn, side):
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the camera's note undoes
    stored = corners() if turn == 1 else corners().transpose(Image.Transpose(back[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    path = saved(stored, tmp_path / "a.png", exif=exif)
    picture = open_picture(path, side)
    near(seen(picture), [RED, GREEN, BLUE, WHITE], 0 if side is None else 40)
    assert picture_size(path) == (24, 16) and picture.shape[2:] == ((16, 24) if side is None else (8, 8))


def test_a_senseless_exif_note_is_no_reason_to_fail(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 77
    assert seen(open_picture(saved(corners(), tmp_path / "a.jpg", exif=exif, quality=100)))[3] == WHITE
    data = corners().tobytes()
    with io.BytesIO() as target:
        corners().save(target, "JPEG", exif=b"Exif\0\0" + data[:40])
        assert open_picture(target.getvalue()).shape == (1, 3, 16, 24)


def test_transparent_parts_lie_on_white(tmp_path):
    clear = corners().convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 16, 0).repeat(12, 1)))
    for suffix in ("png", "webp"):
        near(seen(open_picture(saved(clear, tmp_path / f"a.{suffix}"))), [WHITE, GREEN, WHITE, WHITE], 60)
    palette = corners().convert("P", palette=Image.Palette.ADAPTIVE)
    index = palette.getpixel((0, 0))
    near(seen(open_picture(saved(palette, tmp_path / "p.png", transparency=index))), [WHITE, GREEN, BLUE, WHITE])


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (9, 9), color) for color in (BLUE, RED, GREEN)]
    for suffix in ("gif", "png", "webp", "tif"):
        path = saved(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        near(seen(open_picture(path, 4)), [BLUE] * 4, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_tiny_and_narrow_pictures(tmp_path, size):
    path = saved(Image.new("RGB", size, RED), tmp_path / "a.png")
    assert open_picture(path).shape == (1, 3, size[1], size[0])
    assert seen(open_picture(path, 64)) == [RED] * 4


def test_the_middle_square_is_what_counts(tmp_path):
    wide = Image.new("RGB", (300, 100), RED)
    wide.paste(GREEN, (100, 0, 200, 100))
    assert seen(open_picture(saved(wide, tmp_path / "wide.png"), 10)) == [GREEN] * 4
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    assert seen(open_picture(saved(tall, tmp_path / "tall.png"), 10)) == [GREEN] * 4


# ---------------------------------------------------------------- size and memory


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_ten_thousand_pixels_a_side_are_shrunk(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    corners(10_000, 10_000).save(path, **({"compress_level": 1} if suffix == "png" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near(seen(open_picture(path, 64)), [RED, GREEN, BLUE, WHITE], 3)
    with pytest.raises(ConfigError, match="10000 x 10000"):
        open_picture(path)
    mask = open_mask(path, 64)[0, 0]
    assert mask[:32, 32:].all() and mask[32:, 32:].all() and not mask[:32, :32].any()


@pytest.mark.parametrize("size", [(12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 2**30)])
def test_a_bomb_is_refused_by_its_header(size):
    tracemalloc.start()
    for side in (None, 64):
        with pytest.raises(ConfigError, match="too large"):
            open_picture(png_header(*size), side)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_file_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    path = saved(corners(), tmp_path / "a.png")
    with open(path, "ab") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    with pytest.raises(ConfigError, match="3072 MiB"):
        open_picture(path)
    monkeypatch.setattr(picture_files, "MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="too large"):
        open_picture(bytes(200))


# ---------------------------------------------------------------- what is refused


def refused(source, *words, side=64):
    for reader in (open_picture, open_mask):
        with pytest.raises(ConfigError) as raised:
            reader(source, side)
        message = str(raised.value)
        assert isinstance(raised.value, TutorError) and "\n" not in message and "object at 0x" not in message
        for word in words:
            assert word in message, message


def test_text_called_png(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("not a picture at all\n" * 100)
    refused(path, "a.png", "no picture that can be read", "PNG")
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    refused(path, "no picture that can be read")
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")  # would start another program
    refused(path, "no picture that can be read")


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "none.png", "there is no file", "none.png")
    refused(tmp_path, "folder")
    refused("/dev/zero", "no ordinary file") if os.path.exists("/dev/zero") else None
    refused("a\0b.png", "no path")
    refused(7.5, "no path")
    refused(None, "no path")
    refused("n" * 5000, "cannot be opened")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is empty")
    refused(b"", "is empty")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_locked_file(tmp_path):
    path = saved(corners(), tmp_path / "a.png")
    path.chmod(0)
    refused(path, "may not be read")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm"])
def test_every_cut_gives_a_picture_or_a_clear_error(tmp_path, suffix):
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), tmp_path / f"a.{suffix}").read_bytes()
    refusals = 0
    for share in np.linspace(0.001, 0.97, 60):
        try:
            assert open_picture(data[: int(share * len(data))], 16).isfinite().all()
        except ConfigError:
            refusals += 1
    assert refusals >= 50
    refused(data[: len(data) // 2], "broken or cut off")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_flipped_bytes_give_a_picture_or_a_clear_error(tmp_path, suffix):
    generator = np.random.default_rng(2)
    data = saved(corners(40, 40), tmp_path / f"a.{suffix}").read_bytes()
    outcomes = {"picture": 0, "refused": 0}
    for _ in range(150):
        broken = bytearray(data)
        for place in generator.integers(0, len(data), 4):
            broken[place] = generator.integers(0, 256)
        try:
            assert open_picture(bytes(broken), 16).isfinite().all()
            outcomes["picture"] += 1
        except ConfigError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("side", [0, -3, MOST_SIDE + 1, 2.5, "64", True])
def test_a_senseless_side(tmp_path, side):
    path = saved(corners(), tmp_path / "a.png")
    with pytest.raises(ConfigError, match="side"):
        open_picture(path, side)


# ---------------------------------------------------------------- masks


def test_bright_is_a_hole(tmp_path):
    image = Image.new("L", (40, 20), 0)
    image.paste(255, (12, 4, 20, 9))
    path = saved(image, tmp_path / "a.png")
    mask = open_mask(path)
    assert mask.shape == (1, 1, 20, 40) and mask.dtype == torch.float32 and mask.sum() == 40
    assert mask[0, 0, 4:9, 12:20].all()
    small = open_mask(path, 10)  # the middle square starts at x = 10
    wanted = torch.zeros(10, 10)
    wanted[2:5, 1:5] = 1
    assert torch.equal(small[0, 0], wanted), "a pixel that is partly a hole is one"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_masks_of_every_mode(tmp_path, mode):
    values = np.zeros((8, 8), np.uint8)
    values[2:4, 5:7] = 255
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    elif mode in ("P", "CMYK"):
        image = image.convert("RGB").convert(mode)
    else:
        image = image.convert(mode)
    path = saved(image, tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}")
    assert np.array_equal(open_mask(path)[0, 0].numpy() * 255, values)


def test_white_strokes_on_glass_are_the_hole(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (1, 1, 3, 3))
    assert open_mask(saved(clear, tmp_path / "a.png")).sum() == 4
