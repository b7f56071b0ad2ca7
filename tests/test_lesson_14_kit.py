"""The long run of lesson 14: what is chosen, measured and kept, on small folders and the tiny model."""

import json
import zipfile

import pytest
import torch
from PIL import Image
from tiny import save_folder

from ldm_tutor.data.captioned import CaptionedPictures
from ldm_tutor.data.folders import read_pictures
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import lesson_14_kit as kit
from ldm_tutor.lessons.lesson_14_emoji import GROUPS, group_of, select
from ldm_tutor.lessons.lesson_14_robots import ANTENNAS, COLORS, EYES, draw_robot, robots, spoil, write_robots
from ldm_tutor.plots.figures import to_uint8
from ldm_tutor.weights.shipped import shipped_folder

# ---------------------------------------------------------------- which emoji


@pytest.fixture
def archive(tmp_path):
    rows = [("1f34c", "banana"), ("1f436", "dog face"), ("1f600", "grinning face"), ("1f44d 1f3fd", "thumbs up")]
    rows += [("1f347", " "), ("2764", "heavy black heart")]
    with zipfile.ZipFile(tmp_path / "emoji.zip", "w") as packed:
        lines = []
        for points, text in rows:
            name = f"emoji_u{points.replace(' ', '_')}.png"
            lines.append(json.dumps({"file_name": name, "text": text, "codepoints": points}))
            image = tmp_path / name
            Image.new("RGBA", (16, 16), (200, 0, 0, 128)).save(image)
            packed.write(image, f"set/{name}")
        packed.writestr("set/metadata.jsonl", "\n".join(lines))
    return tmp_path / "emoji.zip"


def test_only_the_groups_are_unpacked(archive, tmp_path):
    assert select(archive, tmp_path / "all") == 3
    assert select(archive, tmp_path / "few", ["fruit", "animal faces"]) == 2
    data = read_pictures(tmp_path / "few", 8)
    assert sorted(data.captions) == ["banana", "dog face"] and not data.troubles
    assert data.pictures[0, 1, 4, 4] > 100  # half transparent red on white


def test_sequences_and_other_characters_belong_to_no_group():
    assert group_of("1f34c") == "fruit" and group_of("1f436") == "animal faces"
    assert group_of("1f44d 1f3fd") is None and group_of("2764") is None
    points = [range(first, last + 1) for ranges in GROUPS.values() for first, last in ranges]
    assert len({point for each in points for point in each}) == sum(map(len, points))  # no point in two groups


def test_a_zip_of_something_else_and_an_unknown_group(archive, tmp_path):
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="no Noto Emoji archive"):
        select(tmp_path / "no.zip", tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown groups"):
        select(archive, tmp_path / "out", ["vegetables"])


# ---------------------------------------------------------------- what is measured and kept


def test_measure_and_keep(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    weights, data = save_folder(tmp_path / "weights"), tmp_path / "data"
    write_robots(data, 6)
    seen = read_pictures(data, 64)
    monkeypatch.setattr(kit, "SETTINGS", {"num_steps": 1, "guidance": 1.0})
    for stage in ("autoencoder", "clip", "denoiser"):
        (weights / f"{stage}.csv").write_text("step,loss\n1,0.5\n2,0.25\n")
    report, pictures = kit.measure(weights, seen, seen, seen)
    kit.keep(tmp_path / "kept", report, pictures, weights)
    loaded, sheets = kit.load_emoji(tmp_path / "kept")
    assert loaded == json.loads(json.dumps(report)) and loaded["names"] == seen.captions
    assert [len(sheets[name]) for name in ("drawn", "new")] == [6, len(kit.NEW_NAMES)]
    assert (sheets["drawn"][5] == to_uint8(pictures["drawn"])[5]).all()
    assert kit.load_logs(tmp_path / "kept")["clip", "loss"] == ([1, 2], [0.5, 0.25])
    card = (tmp_path / "kept" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Licence" in card and "## Limits" in card and "lesson_14_kit" in card
    (weights / "COMMANDS.txt").write_text("make it so\n", encoding="utf-8")
    assert "make it so" in kit.card(report, weights) and "lesson_14_kit runs" not in kit.card(report, weights)


def test_the_nearest_report_knows_a_copy():
    pictures = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = CaptionedPictures(pictures, list("abcde"), list("abcde"))
    exact = kit.nearest_report(to_float(pictures), data)
    assert exact["right_name"]["value"] == 1.0 and exact["distance"] == 0.0
    assert exact["distance_between_training_pictures"] > 0.3
    assert kit.nearest_report(to_float(pictures.roll(1, 0)), data)["right_name"]["value"] == 0.0


def test_sheets_can_be_cut_apart(tmp_path):
    pictures = to_float(torch.randint(0, 256, (11, 3, 64, 64), dtype=torch.uint8))
    kit.tiles(pictures).save(tmp_path / "sheet.png")
    cut = kit.untile(tmp_path / "sheet.png", 11)
    assert all((a == b).all() for a, b in zip(cut, to_uint8(pictures), strict=True))


def test_what_is_kept_with_the_course():
    report, pictures = kit.load_emoji()
    assert len(pictures["drawn"]) == report["num_names"] == len(report["nearest"]["nearest"])
    assert {"MODEL_CARD.md", "measured.json", "drawn.png", "new.png", "logs"} == {
        path.name for path in shipped_folder("emoji").iterdir()
    }
    assert report["psnr"]["autoencoder"] > report["psnr"]["shipped_autoencoder"] + 4
    for stage, told in report["trainings"].items():
        assert kit.load_logs()[stage, "step"][0][-1] <= told["steps"]


def test_a_folder_without_the_report(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        kit.load_emoji(tmp_path)


# ---------------------------------------------------------------- robots


def test_robots_are_the_same_every_time_and_of_every_kind():
    some = robots(200, seed=1)
    assert some == robots(200, seed=1) != robots(200, seed=2)
    assert len({robot.caption for robot in some}) == len(COLORS) * len(EYES) * len(ANTENNAS)
    assert draw_robot(some[0]).tobytes() == draw_robot(some[0]).tobytes()


def test_features_show_in_the_picture():
    robot = robots(1)[0]
    drawn = {
        (color, eyes, antennas): draw_robot(type(robot)(color, eyes, antennas)).tobytes()
        for color in COLORS
        for eyes in EYES
        for antennas in ANTENNAS
    }
    assert len(set(drawn.values())) == len(drawn)


def test_a_spoiled_folder_keeps_its_robots(tmp_path):
    write_robots(tmp_path, 5)
    spoil(tmp_path)
    data = read_pictures(tmp_path, 64)
    assert sum(name.startswith("robot_00") for name in data.names) == 6  # five and a copy
    at = dict(zip(data.names, data.pictures.float(), strict=True))
    assert (at["turned.jpg"] - at["silent.png"]).abs().mean() < 6  # upright again
    assert (at["sixteen_bits.png"] - at["grey.png"]).abs().max() <= 1
