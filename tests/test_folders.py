"""Folders of pictures as people have them: every form is read, and what is broken is named and left out."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_tutor.data import folders
from ldm_tutor.data.captioned import (
    BAD_CAPTION,
    BROKEN_LINE,
    NO_CAPTION,
    NOT_THERE,
    SHARD,
    TWICE,
    UNREADABLE,
    summary,
)
from ldm_tutor.data.folders import read_pictures
from ldm_tutor.data.shards import write_shards
from ldm_tutor.errors import ConfigError

RED = (200, 30, 30)


def picture(color=RED, size=(20, 16), mode="RGB"):
    return Image.new("RGB", size, color).convert(mode)


def table(folder, *rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def kinds(data):
    return sorted((each.name, each.kind) for each in data.troubles)


def huge_png(path):
    """A PNG that claims 40,000 x 40,000 pixels in 100 bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


def hostile(folder):
    """A folder with everything that issue reports are made of; 9 of its pictures are good, 6 of them with a caption."""
    folder.mkdir()
    picture().save(folder / "good.png")
    picture(mode="L").save(folder / "grey.png")
    picture(mode="CMYK").save(folder / "cmyk.jpg")
    picture(size=(1, 1)).save(folder / "tiny.png")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(folder / "deep.png")
    frames = [picture((250, 0, 0)), picture((0, 0, 250))]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    exif = Image.Exif()
    exif[0x0112] = 6
    left_right = Image.new("RGB", (20, 20), (255, 0, 0))
    left_right.paste((0, 0, 255), (10, 0, 20, 20))
    left_right.save(folder / "turned.png", exif=exif)
    picture().save(folder / "silent.png")
    picture().save(folder / "unlisted.png")
    picture(size=(300, 300)).save(folder / "whole.jpg")
    (folder / "corrupt.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:200])
    (folder / "whole.jpg").unlink()
    (folder / "noise.png").write_bytes(os.urandom(500))
    (folder / "empty.png").write_bytes(b"")
    huge_png(folder / "huge.png")
    listed = "good.png grey.png cmyk.jpg tiny.png deep.png moving.gif corrupt.jpg noise.png empty.png huge.png".split()
    rows = [{"file_name": name, "text": f"the {name.split('.')[0]} one"} for name in listed]
    table(
        folder,
        *rows,
        {"file_name": "silent.png", "text": "  "},
        b'{"file_name": "turned.png", "text": "caf\xe9"}',  # Latin-1
        b'{"file_name": "cut.png", "te',
        b"[1, 2]",
        {"file_name": "lost.png", "text": "nowhere"},
        {"file_name": "../../outside.png", "text": "out"},
        {"file_name": "good.png", "text": "again"},
    )
    return folder


# ---------------------------------------------------------------- the forms


def test_an_imagefolder(tmp_path):
    (tmp_path / "part").mkdir()
    picture().save(tmp_path / "b.png")
    picture((0, 0, 250)).save(tmp_path / "part" / "a.jpg")
    table(tmp_path, {"file_name": "b.png", "text": "a  red\tone"}, {"file_name": "part/a.jpg", "caption": "a blue one"})
    data = read_pictures(tmp_path, 8)
    assert data.pictures.shape == (2, 3, 8, 8) and data.pictures.dtype == torch.uint8
    assert dict(zip(data.names, data.captions, strict=True)) == {"b.png": "a red one", "part/a.jpg": "a blue one"}
    assert data.pictures[0, :, 4, 4].tolist() == list(RED)
    assert "metadata.jsonl" in data.form and not data.troubles and summary(data) == ""


def test_a_table_below_the_folder_names_files_beside_it(tmp_path):
    (tmp_path / "train").mkdir()
    picture().save(tmp_path / "train" / "a.png")
    table(tmp_path / "train", {"file_name": "a.png", "text": "one"})
    assert read_pictures(tmp_path, 8).names == ["train/a.png"]


def test_text_files(tmp_path):
    for name, words in {"a": b"\xef\xbb\xbfone cat\n", "b": b"caf\xe9", "c": b"\n"}.items():
        picture().save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(words)
    picture().save(tmp_path / "d.png")
    data = read_pictures(tmp_path, 8)
    assert data.captions == ["one cat", "", "", ""] and data.form == "pictures with text files"
    assert kinds(data) == [("b.png", BAD_CAPTION), ("c.png", NO_CAPTION), ("d.png", NO_CAPTION)]


def test_class_folders(tmp_path):
    for name in ("polar_bear", "red-fox"):
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "1.png")
    data = read_pictures(str(tmp_path), 8)
    assert data.captions == ["polar bear", "red fox"] and data.form == "class folders"


def test_pictures_alone_teach_an_autoencoder_and_nothing_else(tmp_path):
    picture().save(tmp_path / "a.png")
    data = read_pictures(tmp_path, 8)
    assert data.captions == [""] and kinds(data) == [("a.png", NO_CAPTION)]
    with pytest.raises(ConfigError, match="no picture has a caption"):
        data.with_captions()


def test_hidden_files_and_other_files_are_no_pictures(tmp_path):
    picture().save(tmp_path / "a.png")
    for name in ("._a.png", ".hidden.png", "notes.md", "LICENSE"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "a.png").write_bytes(b"x")
    assert read_pictures(tmp_path, 8).names == ["a.png"]


def test_shards_one_of_them_cut_in_half(tmp_path):
    samples = [(torch.full((3, 16, 16), 20 * k, dtype=torch.uint8), f"number {k}") for k in range(8)]
    paths = write_shards(samples, tmp_path, per_shard=4)
    paths[1].write_bytes(paths[1].read_bytes()[: paths[1].stat().st_size // 2])
    data = read_pictures(tmp_path, 16)
    assert data.captions[:4] == [f"number {k}" for k in range(4)] and 4 <= len(data) < 8
    assert [each.kind for each in data.troubles] == [SHARD] and "shard-000001.tar" in data.troubles[0].reason
    assert torch.equal(data.pictures[3], samples[3][0])
    assert len(read_pictures(paths[0], 16)) == 4  # one tar by its name


# ---------------------------------------------------------------- what is broken


def test_everything_wrong_at_once(tmp_path):
    data = read_pictures(hostile(tmp_path / "mine"), 16)
    assert kinds(data) == sorted(
        [
            ("corrupt.jpg", UNREADABLE), ("noise.png", UNREADABLE), ("empty.png", UNREADABLE), ("huge.png", UNREADABLE),
            ("silent.png", NO_CAPTION), ("turned.png", NO_CAPTION), ("unlisted.png", NO_CAPTION),
            ("metadata.jsonl, line 12", BROKEN_LINE), ("metadata.jsonl, line 13", BROKEN_LINE),
            ("metadata.jsonl, line 14", BROKEN_LINE), ("lost.png", NOT_THERE), ("../../outside.png", NOT_THERE),
            ("good.png", TWICE),
        ]
    )  # fmt: skip
    told = {name: caption for name, caption in zip(data.names, data.captions, strict=True) if caption}
    good = "cmyk.jpg deep.png good.png grey.png moving.gif tiny.png".split()
    assert sorted(told) == good and told["good.png"] == "the good one"
    assert len(data) == 9 and len(data.with_captions()) == 6
    assert data.pictures.shape == (9, 3, 16, 16)
    at = dict(zip(data.names, data.pictures, strict=True))
    assert at["moving.gif"][:, 8, 8].tolist()[2] < 20  # the first frame, red
    assert at["turned.png"][0, 2, 8] > 200 and at["turned.png"][2, 13, 8] > 200  # upright: red above, blue below
    assert abs(int(at["deep.png"][0, 4, 4]) - 156) <= 1  # 40,000 of 65,535
    reasons = {each.name: each.reason for each in data.troubles}
    assert "UTF-8" in reasons["metadata.jsonl, line 12"] and "outside" in reasons["../../outside.png"]
    assert "too large" in reasons["huge.png"] and str(tmp_path) not in reasons["corrupt.jpg"]
    assert "4 x picture cannot be read: corrupt.jpg" in summary(data)


@pytest.mark.parametrize("told", [3, ["a"], {"a": 1}, "\ud800"])
def test_captions_that_are_no_text(tmp_path, told):
    picture().save(tmp_path / "a.png")
    table(tmp_path, {"file_name": "a.png", "text": told})
    data = read_pictures(tmp_path, 8)
    assert kinds(data) == [("a.png", BAD_CAPTION)] and data.captions == [""]


@pytest.mark.parametrize("line", [b"\xff\xfe", b"null", b'{"text": "x"}', b'{"file_name": 3}', b"[" * 100_000, b"{}"])
def test_broken_lines_do_not_stop_the_others(tmp_path, line):
    picture().save(tmp_path / "a.png")
    table(tmp_path, line, {"file_name": "a.png", "text": "fine"})
    data = read_pictures(tmp_path, 8)
    assert data.captions == ["fine"] and kinds(data) == [("metadata.jsonl, line 1", BROKEN_LINE)]


def test_a_table_of_an_editor_with_marks_and_returns(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.png", "text": "fine"}\r\n\r\n')
    data = read_pictures(tmp_path, 8)
    assert data.captions == ["fine"] and not data.troubles


@pytest.mark.parametrize("name", ["nothing", "a.png", "empty"])
def test_no_place_to_read_from(tmp_path, name):
    picture().save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no such folder|this is a file|no readable picture"):
        read_pictures(tmp_path / name, 8)


def test_only_broken_pictures_say_how_many(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"no")
    with pytest.raises(ConfigError, match="3 x picture cannot be read"):
        read_pictures(tmp_path, 8)


def test_an_animation_without_end_and_a_link_to_itself(tmp_path):
    picture().save(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert read_pictures(tmp_path, 8).names == ["a.png"]


def test_progress_may_be_shown(tmp_path):
    picture().save(tmp_path / "a.png")
    seen = []
    read_pictures(tmp_path, 8, wrap=lambda entries, desc: [seen.append(entry.name) or entry for entry in entries])
    assert seen == ["a.png"]


# ---------------------------------------------------------------- torchvision


def test_torchvision_by_name(tmp_path):
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    for name in ("ant", "sea_horse", "BACKGROUND_Google"):
        (folder / name).mkdir(parents=True)
        picture().save(folder / name / "image_0001.jpg")
    (tmp_path / "caltech101" / "Annotations").mkdir()
    (folder / "ant" / "image_0002.jpg").write_bytes(b"no picture")
    data = read_pictures(f"{folders.TORCHVISION}Caltech101:{tmp_path}", 8)
    assert kinds(data) == [("Caltech101/1", UNREADABLE)]
    assert data.captions == ["ant", "sea horse"] and data.pictures.shape == (2, 3, 8, 8)
    assert "torchvision" in data.form


@pytest.mark.parametrize("place", ["CIFAR10:{}", "CIFAR10/test:{}", "SVHN:{}"])
def test_a_set_that_is_not_there(tmp_path, place):
    with pytest.raises(ConfigError, match="is not in"):
        read_pictures(folders.TORCHVISION + place.format(tmp_path), 8)


@pytest.mark.parametrize("place", ["Cats:{}", "CIFAR10/valid:{}", ":{}"])
def test_an_unknown_set(tmp_path, place):
    with pytest.raises(ConfigError, match="unknown data set"):
        read_pictures(folders.TORCHVISION + place.format(tmp_path), 8)
