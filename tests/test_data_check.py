"""The check before a training: what it counts, what it says, and that a command shows it without a traceback."""

import json
import re

import pytest
from PIL import Image
from test_folders import hostile, picture, table
from typer.testing import CliRunner

from ldm_tutor.cli.data import app
from ldm_tutor.data.captioned import BROKEN_LINE, NO_CAPTION, NOT_THERE, TWICE, UNREADABLE
from ldm_tutor.data.check import check_pictures, report, to_dict
from ldm_tutor.data.shards import write_shards
from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.lesson_14_robots import spoil, write_robots


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return hostile(tmp_path_factory.mktemp("bad") / "mine")


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_counts_of_a_folder_with_everything_wrong(bad):
    found = check_pictures(bad, 16)
    assert found.counts() == {UNREADABLE: 4, NO_CAPTION: 3, BROKEN_LINE: 3, NOT_THERE: 2, TWICE: 1}
    assert (len(found.data), found.num_captioned) == (9, 6)
    assert len(found.sizes) == 9 and (1, 1) in found.sizes and (20, 20) in found.sizes
    assert found.kinds["grey"] == 1 and found.kinds["CMYK"] == 1 and found.kinds["16 bits"] == 1
    assert found.kinds["animated, first frame taken"] == 1 and found.kinds["turned upright (EXIF)"] == 1
    assert set(found.small) == {"tiny.png", "deep.png"}
    assert len(found.token_lengths) == 6 and found.num_words == 8  # the, one, and six names


def test_the_report_names_everything(bad):
    text = "\n".join(report(check_pictures(bad, 16), most=20))
    for name in ("corrupt.jpg", "noise.png", "empty.png", "huge.png", "silent.png", "unlisted.png", "lost.png"):
        assert name in text
    for words in ("pictures: 9 good, 6 of them with a caption", "4 x picture cannot be read", "line 12", "line 14"):
        assert words in text
    short = "\n".join(report(check_pictures(bad, 16), most=1))
    assert "and 3 more" in short and len(short) < len(text)


def test_doubles_captions_and_lengths(tmp_path):
    for name, color in {"a": (9, 9, 9), "b": (9, 9, 9), "c": (99, 9, 9), "d": (0, 9, 99)}.items():
        picture(color, (30, 10) if name == "d" else (10, 10)).save(tmp_path / f"{name}.png")
    long = "one two three four five six seven"
    captions = {"a.png": "A  cat", "b.png": "a cat", "c.png": "a dog", "d.png": long}
    table(tmp_path, *({"file_name": name, "text": caption} for name, caption in captions.items()))
    found = check_pictures(tmp_path, 8, context_length=7)
    assert found.same_picture == [["a.png", "b.png"]]
    assert found.same_caption == {"a cat": ["a.png", "b.png"]}
    assert found.too_long == ["d.png"] and found.narrow == ["d.png"]
    assert sorted(found.token_lengths)[:3] == [2, 2, 2] and max(found.token_lengths) > 5
    assert found.rare_words == sorted(["dog", *long.split()])
    text = "\n".join(report(found))
    assert "copies of another picture: 1 (a.png = b.png)" in text and "'a cat' x 2" in text
    assert "longer than 5 tokens" in text and "learn them by heart" in text and "nothing is left out" in text


def test_shards_are_checked_too(tmp_path):
    import torch

    paths = write_shards([(torch.full((3, 9, 9), k, dtype=torch.uint8), f"n {k}") for k in range(6)], tmp_path)
    paths[0].write_bytes(paths[0].read_bytes()[:3000])
    found = check_pictures(tmp_path, 8)
    assert 1 <= len(found.data) < 6 and list(found.counts()) == ["damaged shard"]
    assert len(found.sizes) == len(found.data)


def test_the_robots_of_the_lesson(tmp_path):
    write_robots(tmp_path, 12)
    spoil(tmp_path)
    found = check_pictures(tmp_path)
    assert found.counts() == {UNREADABLE: 3, NO_CAPTION: 2, BROKEN_LINE: 2, NOT_THERE: 1}
    assert found.num_captioned == 20 and found.too_long == ["chatty.png"] and found.small == ["tiny.png"]
    assert ["robot_000.png", "robot_000_copy.png"] in found.same_picture


# ---------------------------------------------------------------- the command


def test_the_command_prints_and_writes(bad, tmp_path):
    sheet, everything = tmp_path / "sheet.png", tmp_path / "all.json"
    result = run("check", bad, "--side", 16, "--sheet", sheet, "--num", 5, "--columns", 3, "--json", everything)
    assert result.exit_code == 0, result.output
    assert "4 x picture cannot be read" in result.output and "5 of 9 pictures" in result.output
    assert "(no caption)" in result.output
    with Image.open(sheet) as image:
        assert image.size == (8 * (3 * 18 - 2), 8 * (2 * 18 - 2))
    told = json.loads(everything.read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(to_dict(check_pictures(bad, 16))))
    assert {each["name"] for each in told["troubles"] if each["kind"] == UNREADABLE} == {
        "corrupt.jpg", "noise.png", "empty.png", "huge.png",
    }  # fmt: skip


def test_the_folder_stays_as_it_is(bad):
    before = {path: path.read_bytes() for path in bad.iterdir()}
    run("check", bad)
    assert {path: path.read_bytes() for path in bad.iterdir()} == before


@pytest.mark.parametrize("arguments", [("nothing_there",), ("torchvision:Cats:x",), (".", "--sheet", "no.txt")])
def test_a_mistake_is_an_error_in_words(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("check", *arguments)
    assert isinstance(result.exception, ConfigError)  # the program prints it and leaves with 1


@pytest.mark.parametrize("arguments", [("--side", 4), ("--names", 0), ("--num", 0)])
def test_numbers_out_of_range_are_refused(bad, arguments):
    result = run("check", bad, *arguments)
    assert result.exit_code == 2 and re.search(r"is not a whole number", result.output)
