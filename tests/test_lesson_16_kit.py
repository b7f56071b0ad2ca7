"""Lesson 16's animals and study: shapes and their points, every run at a tiny size, and the runs that are shipped."""

import dataclasses
import functools
import json

import pytest
import torch
from tiny import CONFIG, save_folder

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import lesson_16_kit as kit
from ldm_tutor.lessons import lesson_16_show as show
from ldm_tutor.lessons.lesson_11_show import value_of
from ldm_tutor.models.dit import DiT, DiTConfig
from ldm_tutor.models.unet import UNet
from ldm_tutor.training.study import unet_for

PETS = show.silhouette("cat", "dog")


def test_points_of_a_shape_lie_in_it_and_fill_it():
    points = show.points_in(PETS, 4000, seed=0)
    assert points.shape == (4000, 2) and show.share_inside(PETS, points) == 1
    assert torch.equal(points, show.points_in(PETS, 4000, seed=0))
    assert not torch.equal(points, show.points_in(PETS, 4000, seed=1))
    assert points.mean(dim=0).abs().max() < 0.1 and points.std(dim=0).mean() == pytest.approx(1, abs=0.05)
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    assert show.share_inside(PETS, noise) < 0.7


def test_up_is_up_and_the_cat_is_on_the_left():
    """The cat is the larger one, and the two are not each other upside down."""
    points = show.points_in(PETS, 4000, seed=0)
    assert show.share_inside(PETS, points * torch.tensor([1.0, -1.0])) < 0.95
    assert show.share_inside(PETS, points * torch.tensor([-1.0, 1.0])) < 0.95
    assert 0.5 < float((points[:, 0] < 0).float().mean()) < 0.75
    assert show.share_inside(PETS, 0.02 * points) < 0.1, "the middle lies between them"


def test_clouds_are_drawn_beside_each_other():
    figure = show.clouds({"a": torch.zeros(3, 2), "b": torch.ones(3, 2), "c": torch.ones(3, 2)}, columns=2)
    assert [panel.get_title() for panel in figure.axes] == ["a", "b", "c", ""]


def test_the_networks_of_the_study_are_of_one_size():
    sizes = [
        sum(each.numel() for each in network.parameters())
        for network in (UNet(unet_for((4, 16, 16), 128)), DiT(kit.DIT))
    ]
    assert max(sizes) / min(sizes) < 1.04


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The study at a tiny size: a shipped model of tiny networks, few scenes, few calls."""
    (tmp_path / "scenes").mkdir()
    save_folder(tmp_path / "scenes")
    monkeypatch.setenv("LDM_TUTOR_WEIGHTS", str(tmp_path))
    exam = functools.partial(kit.Exam, num=4, num_reference=40)
    tiny = DiTConfig(side=16, width=16, depth=1, num_heads=2, context_dim=CONFIG.unet.context_dim)
    monkeypatch.setattr(show, "CALLS", (1, 3))
    for name, value in {"NUM_SCENES": 40, "CALLS": (1, 3), "NUM_CALLS": 1, "DIT": tiny, "Exam": exam}.items():
        monkeypatch.setattr(kit, name, value)
    return tmp_path


def test_every_run_writes_a_report_and_pictures(folder):
    out = folder / "out"
    arguments = ["--out", str(out), "--scratch", str(folder / "scratch"), "--seconds", "0.05", "0.1"]
    with pytest.raises(ConfigError, match=r"no study_noise\.json"):
        show.load_study(out)
    assert kit.main(arguments) == 0
    study = show.load_study(out)
    assert tuple(study) == kit.RUNS
    for name, report in study.items():
        assert [row["seconds"] for row in report["rows"]] == sorted(row["seconds"] for row in report["rows"])
        assert len(report["rows"]) == 2 and report["rows"][1]["step"] > report["rows"][0]["step"]
        assert tuple(report["calls"]) == kit.RULES[name]
        assert all(set(graded) == {"1", "3"} for graded in report["calls"].values())
        assert report["settings"]["balance_steps"] == (name == "noise_weighed")
        assert len(show.pictures_of(name, out)) == 4
    assert study["dit"]["settings"]["config"] == dataclasses.replace(kit.DIT).to_dict()
    assert len(show.size_table(study).splitlines()) == len(show.mark_table(study).splitlines()) == len(kit.RUNS)
    show.study_figure(study, {"fid": "FID", "object": "objects"})
    show.calls_figure(study, "fid", "FID")


def test_unknown_runs_are_named(folder, capsys):
    with pytest.raises(SystemExit):
        kit.main(["w"])
    assert "unknown: w" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'w'"):
        kit.build("w", None, None)


def test_a_walk_asks_as_often_as_it_says():
    for name, rules in kit.RULES.items():
        for rule in rules:
            for num_calls in (1, 5, 9):
                asked = []
                kit.walk(name, lambda x, t, step: asked.append(t) or 0.1 * x, torch.randn(1, 4, 2, 2), rule, num_calls)  # noqa: B023
                assert len(asked) == num_calls, (name, rule)
                assert asked[0] in (999, 1000) and asked == sorted(asked, reverse=True)


def test_the_shipped_study_is_whole():
    study = show.load_study()
    seconds = {name: [round(row["seconds"]) for row in report["rows"]] for name, report in study.items()}
    assert all(each == [round(mark) for mark in kit.SECONDS] for each in seconds.values()), seconds
    parameters = [report["parameters"] for report in study.values()]
    assert max(parameters) / min(parameters) < 1.04
    for name, report in study.items():
        assert value_of(report["real"], "object") > 0.98 and len(show.pictures_of(name)) == 8
        json.dumps(report)
