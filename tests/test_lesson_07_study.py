"""Lesson 07's study at a size of seconds: what is equal in the three arms, what differs, and what is left behind."""

import csv
import json

import pytest
import torch
from matplotlib import pyplot as plt
from safetensors.torch import save_file
from tiny import make_pipeline, save_folder

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import lesson_07_study as study
from ldm_tutor.weights.files import check_sums
from ldm_tutor.weights.shipped import shipped_folder

ARMS = ("clip", "along", "random")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The tiny pipeline as the shipped one, 24 encoded scenes, and numbers that make a run last seconds."""
    (tmp_path / "scenes").mkdir()
    save_folder(tmp_path / "scenes")
    monkeypatch.setenv("LDM_TUTOR_WEIGHTS", str(tmp_path))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    generator = torch.Generator().manual_seed(0)
    save_file({"moments": torch.randn(24, 8, 16, 16, generator=generator).half()}, scratch / "latents.safetensors")
    for name, value in {"NUM_TEST": 4, "NUM_SHOWN": 2, "BATCH_SIZE": 2, "DRAWING_STEPS": 1, "LOG_EVERY": 2}.items():
        monkeypatch.setattr(study, name, value)
    return tmp_path


@pytest.fixture
def arms(small):
    bench = study.make_bench(small / "scratch")
    return {name: study.Arm(name, bench, small / "out", small / "scratch") for name in ARMS}


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_only_the_tower_differs_at_the_start(arms):
    unets = [state(arm.stage.learner.network) for arm in arms.values()]
    assert same(unets[0], unets[1]) and same(unets[0], unets[2])
    towers = {name: state(arm.stage.text_encoder) for name, arm in arms.items()}
    assert same(towers["clip"], state(make_pipeline().text_encoder))
    assert same(towers["along"], towers["random"]) and not same(towers["along"], towers["clip"])
    count = {name: sum(each.numel() for each in tower.values()) for name, tower in towers.items()}
    assert len(set(count.values())) == 1
    bench = arms["clip"].bench
    assert len(bench.captions) == 4 == len(bench.x0) and 8 < len(bench.moments) == len(bench.tokens) < 24


def test_only_the_tower_that_is_trained_along_moves(arms):
    before = {name: state(arm.stage.text_encoder) for name, arm in arms.items()}
    unets = {name: state(arm.stage.learner.network) for name, arm in arms.items()}
    for arm in arms.values():
        arm.train(2)
    moved = {name: not same(before[name], state(arm.stage.text_encoder)) for name, arm in arms.items()}
    assert moved == {"clip": False, "along": True, "random": False}
    assert all(not same(unets[name], state(arm.stage.learner.network)) for name, arm in arms.items())
    reader = arms["along"].stage.reader
    assert reader is not arms["along"].stage.text_encoder and not same(before["along"], state(reader))  # the average


def test_the_first_loss_of_the_random_towers_is_the_same(arms):
    """The same first weights and the same random numbers: before the first update the arms cannot differ."""
    first = {}
    for name, arm in arms.items():
        generator = torch.Generator().manual_seed(5)
        first[name] = arm.stage.train_step(generator, 0.0)["loss"]
    assert first["along"] == first["random"]
    assert first["clip"] == pytest.approx(first["random"], abs=1e-4)  # a fresh U-Net does not listen yet


def test_a_fresh_unet_loses_nothing_by_another_sentence(arms):
    arm = arms["random"]
    bench = arm.bench
    context = arm.stage.reader(bench.pipeline.tokenizer(bench.captions)).detach()
    found = bench.listening(arm.stage.learner.ema.eval(), context)
    assert found["gap"]["value"] == 0 and found["loss"]["value"] == pytest.approx(1, abs=0.2)
    for value in arm.stage.learner.ema.parameters():
        torch.nn.init.normal_(value, std=0.2)
    found = bench.listening(arm.stage.learner.ema, context)
    assert found["gap"]["value"] != 0 and found["gap"]["num"] == 4


def test_the_command_measures_every_arm_and_goes_on(small):
    out = small / "out"
    arguments = ["--out", str(out), "--scratch", str(small / "scratch"), "--stops"]
    assert study.main([*arguments, "2"]) == 0
    first = json.loads((out / "measured.json").read_text())
    assert study.main([*arguments, "2", "4"]) == 0
    report = study.load_measured(out)
    for name in ARMS:
        rows = report["arms"][name]["rows"]
        assert [row["step"] for row in rows] == [2, 4] and rows[0] == first["arms"][name]["rows"][0]
        assert set(study.ASPECTS) | {"loss", "gap"} <= set(rows[0]) and rows[0]["all"]["num"] == 4
        with open(out / "logs" / f"{name}.csv", newline="") as file:
            log = list(csv.DictReader(file))
        assert [int(row["step"]) for row in log] == [2, 4] and all(0 < float(row["loss"]) < 10 for row in log)
        strip = study.load_strip(name, out)
        assert strip.shape == (2, 3, 64, 64) and -1 <= float(strip.min()) < float(strip.max()) <= 1
    assert report["settings"]["num_test"] == 4 and len(report["settings"]["captions"]) == 2
    assert {"measured.json", "logs/clip.csv", "pictures_along.png"} <= set(check_sums(out))
    figure = study.towers_figure(report)
    assert [axes.get_title() for axes in figure.axes] == ["background right", "colour right", "object right"]
    assert [line.get_label() for line in figure.axes[0].lines] == list(study.ARMS.values())
    strips = study.strips_figure(report, 2, out)
    assert strips.axes[-1].get_title() == "random, frozen"
    plt.close("all")
    *lines, cost = study.told(report)
    shares = [report["arms"][arm]["rows"][-1]["color"]["value"] for arm in ARMS]
    for line, share in zip(lines, shares, strict=True):
        assert "4 steps: background" in line and f"color {share:.0%}" in line
    assert "trained along" in cost
    steps, values, intervals = study.curve(report, "along", "color")
    assert steps == [2, 4] and all(low <= value <= high for value, (low, high) in zip(values, intervals, strict=True))


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(small):
    bench = study.make_bench(small / "scratch")
    whole = study.Arm("along", bench, small / "a", small / "one")
    whole.train(4)
    study.Arm("along", bench, small / "b", small / "two").train(2)
    rest = study.Arm("along", bench, small / "b", small / "two")
    rest.train(4)
    for one, other in zip(whole.stage.learners.values(), rest.stage.learners.values(), strict=True):
        assert same(state(one.ema), state(other.ema))
    lines = [(small / each / "logs" / "along.csv").read_text().splitlines() for each in "ab"]
    assert len(lines[0]) == 3 and [[line.split(",")[::2] for line in each] for each in lines][0] == [
        line.split(",")[::2] for line in lines[1]
    ]


def test_a_run_that_is_further_than_a_stop_is_not_measured_as_that_stop(small):
    bench = study.make_bench(small / "scratch")
    study.Arm("clip", bench, small / "a", small / "one").train(3)
    with pytest.raises(ConfigError, match="further than the stop.*given: 3.*at most 2 steps"):
        study.Arm("clip", bench, small / "a", small / "one").train(2)


def test_an_arm_that_there_is_not(arms):
    with pytest.raises(ConfigError, match="unknown arm.*'both'"):
        study.tower("both", arms["clip"].stage.text_encoder)


@pytest.mark.parametrize("content", ["", "[]", '{"arms": {}}', '{"arms": {"clip": {"rows": []}}}'])
def test_figures_that_are_not_whole(content, tmp_path):
    (tmp_path / "measured.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="figures of lesson 07.*lesson_07_study"):
        study.load_measured(tmp_path)


def test_what_is_shown_is_what_all_arms_have(tmp_path):
    rows = {name: {"rows": [{"step": 2}, {"step": 4}]} for name in ARMS}
    rows["along"]["rows"].pop()
    (tmp_path / "measured.json").write_text(json.dumps({"arms": rows}), encoding="utf-8")
    arms = study.load_measured(tmp_path)["arms"]
    assert [[row["step"] for row in arms[name]["rows"]] for name in ARMS] == [[2]] * 3
    rows["along"]["rows"] = []
    (tmp_path / "measured.json").write_text(json.dumps({"arms": rows}), encoding="utf-8")
    with pytest.raises(ConfigError, match="no stop that all arms have reached.*lesson_07_study"):
        study.load_measured(tmp_path)


@pytest.mark.skipif(not shipped_folder("lesson_07").exists(), reason="the figures are not there")
def test_what_is_shipped_is_whole_and_says_what_the_lesson_claims():
    """After the first 200 steps only the U-Net on CLIP hears the sentence: another one costs it something."""
    check_sums(shipped_folder("lesson_07"))
    report = study.load_measured()
    first = {name: report["arms"][name]["rows"][0] for name in ARMS}
    assert {row["step"] for row in first.values()} == {study.STOPS[0]}
    assert first["clip"]["gap"]["interval"][0] > 10 * max(first[name]["gap"]["interval"][1] for name in ARMS[1:])
    assert study.load_strip("clip").shape[1:] == (3, 64, 64)
