"""Lesson 11's study at a tiny size: every space, its budget, and what a run leaves behind."""

import json

import pytest
import torch
from tiny import CONFIG, make_pipeline, save_folder

from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons import lesson_11_kit as kit
from ldm_tutor.models.unet import UNet
from ldm_tutor.training.study import (
    LatentSpace,
    PixelSpace,
    StudyData,
    build_stage,
    cost_of,
    run,
    seconds_side_by_side,
    unet_for,
)
from ldm_tutor.weights.files import save_model

SHAPES = {"pixels": (3, 64, 64), "patches": (48, 16, 16), "f2": (3, 32, 32), "f4": (4, 16, 16), "f8": (8, 8, 8)}


@pytest.fixture(scope="module")
def pictures():
    return render_scenes(8).pictures


@pytest.mark.parametrize("patch", [1, 4])
def test_pixels_come_back_as_they_were(pictures, patch):
    space = PixelSpace(pictures, patch)
    moments = space.moments(pictures)
    assert moments.shape == (8, 2 * space.shape[0], *space.shape[1:])
    mean, log_variance = moments.float().chunk(2, dim=1)
    assert float(log_variance.max()) == -30  # nothing is drawn at random
    scaled = space.scale_factor * mean
    assert float(scaled.std()) == pytest.approx(1, abs=0.02)
    assert torch.allclose(space.to_pictures(scaled), to_float(pictures), atol=1e-3)


def test_a_patch_is_one_position(pictures):
    space = PixelSpace(pictures, 4)
    cells = space.moments(pictures).float()[:, :48]
    patch = to_float(pictures)[0, :, 8:12, 20:24]  # row 2, column 5
    assert sorted(cells[0, :, 2, 5].tolist()) == pytest.approx(sorted(patch.flatten().tolist()), abs=1e-3)


def test_a_patch_must_fit(pictures):
    with pytest.raises(ConfigError, match="divisor of 64"):
        PixelSpace(pictures, 5)


def test_latents_are_the_autoencoders(pictures):
    autoencoder = make_pipeline().autoencoder
    space = LatentSpace(autoencoder)
    assert (space.name, space.shape, space.scale_factor) == ("f4", (4, 16, 16), 0.3)
    mean = space.moments(pictures)[:, :4].float()
    with torch.inference_mode():
        assert torch.allclose(mean, autoencoder.encode(to_float(pictures)).mean, atol=2e-2)
    assert not any(each.requires_grad for each in autoencoder.parameters())


def test_every_grid_gets_about_the_same_number_of_parameters():
    counts = {}
    for name, shape in SHAPES.items():
        config = unet_for(shape, 128)
        with torch.device("meta"):
            counts[name] = sum(each.numel() for each in UNet(config).parameters())
    assert max(counts.values()) / min(counts.values()) < 1.1
    with pytest.raises(ConfigError, match="grid"):
        unet_for((3, 12, 12), 128)


def test_costs_grow_with_the_grid():
    small, large = cost_of(unet_for((4, 8, 8), 128), 8), cost_of(unet_for((4, 16, 16), 128), 16)
    with torch.device("meta"):
        assert small.parameters == sum(each.numel() for each in UNet(unet_for((4, 8, 8), 128)).parameters())
    assert small.multiply_adds < large.multiply_adds
    assert small.training_bytes > 16 * small.parameters
    double = cost_of(unet_for((4, 8, 8), 128), 8, batch_size=64)
    assert double.multiply_adds == small.multiply_adds
    assert double.training_bytes > small.training_bytes


def test_jobs_take_turns():
    order = []
    clock = iter(range(100))
    jobs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    found = seconds_side_by_side(jobs, 3, lambda: next(clock))
    assert order == ["a", "b"] * 4
    assert found == {"a": 1, "b": 1}


class Clock:
    """A clock that goes on by one second at each step of training."""

    def __init__(self, step=0.5):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.fixture
def data(pictures):
    pipe = make_pipeline()
    captions = render_scenes(8).captions
    return StudyData(pictures, pipe.tokenizer(captions)[:, None], pipe.tokenizer.empty(1), pipe.text_encoder)


def small_stage(data):
    pipe = make_pipeline()
    return build_stage(LatentSpace(pipe.autoencoder), data, batch_size=2)


def test_a_run_stops_at_its_marks_and_goes_on(data, tmp_path):
    look = lambda unet: {"looked": True}  # noqa: E731
    whole = list(run(small_stage(data), tmp_path / "a", look, [2, 4], clock=Clock()))
    assert [row["seconds"] for row in whole] == [2, 4]
    assert whole[0]["step"] == 4 and whole[1]["step"] == 8 and whole[0]["looked"]
    first = list(run(small_stage(data), tmp_path / "b", look, [2], clock=Clock()))
    second = list(run(small_stage(data), tmp_path / "b", look, [4], clock=Clock()))
    assert first + second == whole  # to the last digit of the loss


def test_the_learning_rate_stays(data, tmp_path):
    stage = small_stage(data)
    stage.learner.warmup = 1
    list(run(stage, tmp_path, lambda unet: {}, [3], clock=Clock()))
    assert stage.learner.optimizer.param_groups[0]["lr"] == pytest.approx(2e-3)


def test_one_object():
    found = kit.one_object(40, "train")
    assert 10 < len(found) < 40
    assert {len(scene.objects) for scene in found.scenes} == {1}
    assert torch.equal(found.pictures[0], render_scenes(40).pictures[0]) or len(render_scenes(1).scenes[0].objects) == 2


@pytest.fixture
def folders(tmp_path, monkeypatch):
    scenes, autoencoders = tmp_path / "scenes", tmp_path / "autoencoders"
    scenes.mkdir()
    save_folder(scenes)
    monkeypatch.setenv("LDM_TUTOR_WEIGHTS", str(tmp_path))
    autoencoder = make_pipeline().autoencoder
    save_model(autoencoders / "autoencoder_f4.safetensors", autoencoder, kind="autoencoder", config=CONFIG.autoencoder)
    for name, value in {"NUM_SCENES": 40, "NUM_TEST": 4, "NUM_REFERENCE": 40, "BATCH": 4, "NUM_STEPS": 1}.items():
        monkeypatch.setattr(kit, name, value)
    return tmp_path


def test_the_command_writes_a_report_and_goes_on(folders):
    out, scratch = folders / "out", folders / "scratch"
    arguments = ["patches", "f4", "--out", str(out), "--scratch", str(scratch)]
    arguments += ["--autoencoders", str(folders / "autoencoders"), "--seconds"]
    assert kit.main([*arguments, "0.1"]) == 0
    assert kit.main([*arguments, "0.1", "0.2"]) == 0
    for name, shape in (("patches", [48, 16, 16]), ("f4", [4, 16, 16])):
        report = json.loads((out / f"study_{name}.json").read_text())
        assert report["shape"] == shape
        assert len(report["rows"]) == 2
        assert report["rows"][1]["step"] > report["rows"][0]["step"]
        assert {"all", "object", "color", "background", "fid", "loss"} < set(report["rows"][0])
        assert (out / f"pictures_{name}.png").is_file()
    patches = json.loads((out / "study_patches.json").read_text())
    assert patches["ceiling"]["psnr"] > 60  # patches lose nothing


def test_an_unknown_run_is_named(folders, capsys):
    with pytest.raises(SystemExit):
        kit.main(["f3"])
    assert "f3" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="f3"):
        kit.space_of("f3", render_scenes(2).pictures, folders)


def test_the_exam_grades_real_pictures_best(folders):
    exam = kit.Exam(load_judge(), num=4, num_reference=40)
    real, noise = exam.grade(exam.real), exam.grade(torch.randn_like(exam.real).clamp(-1, 1))
    assert real["fid"] < noise["fid"]
    assert real["all"]["num"] == 4
