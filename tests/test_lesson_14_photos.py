"""The long run of lesson 14 on photographs: what is measured and kept, on small folders and the tiny model."""

import json

import pytest
import torch
from PIL import Image
from tiny import save_folder

from ldm_tutor.data.captioned import CaptionedPictures
from ldm_tutor.data.folders import read_pictures
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import lesson_14_photos as kit
from ldm_tutor.weights.shipped import shipped_folder


@pytest.fixture
def folders(tmp_path):
    """Class folders of two colours, four pictures each, and the same with others."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for name, color in (("sky", (90, 150, 240)), ("grass", (40, 160, 60))):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(4):
                shade = int(torch.randint(0, 15, (), generator=generator))
                Image.new("RGB", (32, 32), tuple(c + shade for c in color)).save(tmp_path / part / name / f"{k}.png")
    return tmp_path / "train", tmp_path / "test"


def test_measure_and_keep(tmp_path, folders, monkeypatch):
    (tmp_path / "weights").mkdir()
    weights = save_folder(tmp_path / "weights")
    for stage in ("autoencoder", "clip", "denoiser"):
        (weights / f"{stage}.csv").write_text("step,loss\n1,0.5\n", encoding="utf-8")
    for name, value in {"PER_CLASS": 3, "SHOWN": 2, "SETTINGS": {"num_steps": 1, "guidance": 1.0}}.items():
        monkeypatch.setattr(kit, name, value)
    assert kit.main([str(weights), *map(str, folders), "--out", str(tmp_path / "kept")]) == 0
    report, drawn = kit.load_photos(tmp_path / "kept")
    assert report["names"] == ["grass", "sky"] and report["num_drawn"] == 6 and report["num_seen"] == 8
    assert [*drawn] == report["names"] and all(len(row) == 2 for row in drawn.values())
    assert drawn["sky"][0].shape == (64, 64, 3)
    assert report["named_right"]["held_out"]["num"] == 8 and report["named_right"]["drawn"]["num"] == 6
    assert (tmp_path / "kept" / "logs" / "denoiser.csv").is_file()
    told = kit.told_of_photos(report)
    assert "denoiser: " in told and "to learn from: 8" in told and "drawn ones" in told
    card = (tmp_path / "kept" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "research and teaching" in card and "## Limits" in card and "lesson_14_photos" in card


def test_names_are_told_by_the_nearest_vector():
    class Clip:
        def embed_text(self, tokens):
            return torch.eye(len(tokens))

    def tokenizer(names):
        return torch.arange(len(names))[:, None]

    features = torch.tensor([[1.0, 0.1], [0.2, 1.0], [0.9, 0.3]], dtype=torch.float64)
    found = kit.named_right(Clip(), tokenizer, features, ["grass", "sky", "sky"])
    assert (found.value, found.num) == (pytest.approx(2 / 3), 3)


def test_a_copy_is_near_and_a_stranger_is_not():
    seen = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert kit.distances(to_float(seen[:4]), seen).max() < 1e-6
    assert kit.distances(to_float(255 - seen[:4]), seen).min() > 0.1


def test_some_are_chosen_with_their_captions(folders):
    data = read_pictures(folders[0], 32)
    some = kit.some_of(data, 5)
    assert len(some) == 5 and set(some.names) <= set(data.names) and isinstance(some, CaptionedPictures)
    for picture, name, caption in zip(some.pictures, some.names, some.captions, strict=True):
        k = data.names.index(name)
        assert (picture == data.pictures[k]).all() and caption == data.captions[k]


def test_what_is_kept_with_the_course():
    report, drawn = kit.load_photos()
    assert len(drawn) == 10 and all(len(row) == report["shown"] for row in drawn.values())
    assert {path.name for path in shipped_folder("cifar10").iterdir()} == {
        "MODEL_CARD.md", "measured.json", "drawn.png", "logs"
    }  # fmt: skip
    assert report["psnr"]["autoencoder"] > report["psnr"]["shipped_autoencoder"]
    assert json.loads((shipped_folder("cifar10") / "measured.json").read_text(encoding="utf-8")) == report


def test_a_folder_without_the_report(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        kit.load_photos(tmp_path)
