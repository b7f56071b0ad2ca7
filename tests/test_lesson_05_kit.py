"""The training behind lesson 05, at a size of seconds; and what is shipped of the real one."""

import csv
import functools
import json

import pytest
import torch

from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons import lesson_05_kit as kit
from ldm_tutor.lessons import lesson_05_show as see
from ldm_tutor.models.unet import UNet
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.weights.files import check_sums, load_model
from ldm_tutor.weights.shipped import shipped_folder

pytestmark = pytest.mark.skipif(not shipped_folder().exists(), reason="the shipped weights are not there")
needs_snapshots = pytest.mark.skipif(not shipped_folder("lesson_05").exists(), reason="the kept weights are not there")


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline()


@pytest.fixture
def tiny(monkeypatch):
    sizes = {"NUM_SCENES": 16, "CHUNK": 8, "STOPS": (2, 4), "LOG_EVERY": 2, "BATCH_SIZE": 4, "DRAWING_STEPS": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(kit, name, value)
    monkeypatch.setattr(kit, "measure", functools.partial(kit.measure, num=2, num_drawn=2))


# --- the training


def weights(folder, steps, kind):
    return load_model(folder / f"unet_{steps:05d}_{kind}.safetensors", "unet").state_dict()


def test_a_run_keeps_measures_and_ships_every_stop(tiny, pipeline, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    kit.train_and_keep(kit.build_stage(pipeline, run), run)
    with open(run / "denoiser.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4] and [int(row["samples"]) for row in rows] == [8, 16]
    assert all(0.5 < float(row["loss"]) < 1.5 for row in rows)
    for kind in kit.KINDS:
        before, after = (weights(run, steps, kind)["conv_in.weight"] for steps in (2, 4))
        assert not torch.equal(before, after)
    assert not torch.equal(weights(run, 4, "ema")["conv_out.weight"], weights(run, 4, "raw")["conv_out.weight"])

    kit.ship(pipeline, run, out)
    assert set(check_sums(out)) == {
        "MODEL_CARD.md", "logs/denoiser.csv", "measured.json",
        "unet_00002_ema.safetensors", "unet_00004_ema.safetensors",
    }  # fmt: skip
    report = kit.load_measured(out)
    assert [(row["steps"], row["weights"]) for row in report["rows"]] == [
        (steps, kind) for steps in (0, 2, 4) for kind in kit.KINDS
    ]
    assert report["rows"][0]["loss"] == pytest.approx(1, abs=0.2)  # an answer of zeros, on two scenes
    assert load_model(out / "unet_00004_ema.safetensors", dtype=None).conv_in.weight.dtype == torch.float16
    assert list(kit.load_snapshots(out)) == [0, 2, 4]
    assert "1,006,348" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_stopped_run_goes_on_to_the_same_weights(tiny, pipeline, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    kit.train_and_keep(kit.build_stage(pipeline, whole), whole)
    real = kit.save_model

    def break_off(path, *arguments, **options):
        real(path, *arguments, **options)
        if path.name == "unet_00002_raw.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(kit, "save_model", break_off)
    with pytest.raises(KeyboardInterrupt):
        kit.train_and_keep(kit.build_stage(pipeline, parts), parts)
    monkeypatch.setattr(kit, "save_model", real)
    kit.train_and_keep(kit.build_stage(pipeline, parts), parts)
    for name, value in weights(whole, 4, "ema").items():
        assert torch.equal(value, weights(parts, 4, "ema")[name]), name
    lines = [(each / "denoiser.csv").read_text(encoding="utf-8").splitlines() for each in (whole, parts)]
    assert len(lines[0]) == 3 and len({tuple(line.split(",")[3] for line in each) for each in lines}) == 1


# --- measuring


def test_the_loss_is_one_for_zeros_and_nothing_for_the_truth(pipeline):
    test = kit.one_object_scenes(4)
    assert len(test) == 4 and all(len(scene.objects) == 1 for scene in test.scenes)
    x0 = kit.clean_latents(pipeline, to_float(test.pictures))
    noise = see.noise_like(x0, 1)
    zeros = kit.losses_at(lambda x, t, c: 0 * x, x0, noise, 300, None, pipeline.schedule)
    truth = kit.losses_at(lambda x, t, c: noise, x0, noise, 300, None, pipeline.schedule)
    assert zeros.shape == (4,) and zeros.mean() == pytest.approx(1, abs=0.1) and truth.abs().max() == 0


@pytest.mark.slow
def test_the_shipped_unet_measures_far_better_than_an_untrained_one(pipeline):
    judge = load_judge()
    good = kit.measure(pipeline, judge, pipeline.unet, num=16, num_drawn=16)
    none = kit.measure(pipeline, judge, UNet(kit.CONFIG).eval(), num=16, num_drawn=16)
    assert none["loss"] == pytest.approx(1, abs=0.05) and good["loss"] < 0.2
    assert good["object"]["value"] > 0.6 > none["object"]["value"]
    assert good["object"]["num"] == 16 and len(good["loss_by_t"]) == len(kit.TIMES)


# --- what is shipped


@needs_snapshots
def test_the_kept_weights_are_small_whole_and_get_better():
    folder = shipped_folder("lesson_05")
    files = check_sums(folder)
    assert sum((folder / name).stat().st_size for name in files) < 11_000_000
    report = kit.load_measured()
    losses = dict(zip(*kit.measured_curve(report, "ema", "loss"), strict=True))
    assert list(losses) == [0, *kit.STOPS]
    assert sorted(losses.values(), reverse=True) == list(losses.values())
    assert losses[0] == pytest.approx(1, abs=0.02)
    snapshots = kit.load_snapshots()
    assert list(snapshots) == [0, *kit.STOPS] and all(each.config == kit.CONFIG for each in snapshots.values())


@needs_snapshots
def test_the_figures_are_those_of_the_kept_weights(pipeline):
    """The stored loss at one time, measured again."""
    report, net = kit.load_measured(), kit.load_snapshots()[kit.STOPS[-1]]
    row = next(each for each in report["rows"] if (each["steps"], each["weights"]) == (kit.STOPS[-1], "ema"))
    test = kit.one_object_scenes(report["num_drawn"])
    x0 = kit.clean_latents(pipeline, to_float(test.pictures))
    loss = kit.losses_at(net, x0, see.noise_like(x0, 1), 500, pipeline.embed(test.captions), pipeline.schedule).mean()
    assert float(loss) == pytest.approx(row["loss_by_t"][kit.TIMES.index(500)], abs=2e-3)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": 3}', '{"rows": []}', '{"rows": [{"steps": 0}]}'])
def test_figures_that_are_not_whole(content, tmp_path):
    (tmp_path / "measured.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="figures of lesson 05"):
        kit.load_measured(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError):
        kit.load_snapshots(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="python -m ldm_tutor.lessons.lesson_05_kit"):
        kit.load_measured(tmp_path)


# --- figures


def test_the_waves_are_learned_and_the_bare_number_is_not():
    t = torch.arange(1000)
    wanted = ((t >= 200) & (t < 250)).float()
    from ldm_tutor.nn.embeddings import timestep_embedding

    left = [
        float((see.learn_to_wake(each, wanted) - wanted).square().mean() / wanted.var())
        for each in (t.float()[:, None] / 1000, timestep_embedding(t, 24))
    ]
    assert left[0] > 0.5 and left[1] < 0.1


def test_figures_and_shares():
    from matplotlib import pyplot as plt

    unet = UNet(kit.CONFIG)
    figure, shares = see.parameter_bars(unet)
    assert 0 < shares["attention"] < shares["residual blocks"] < 1 and 0 < shares["widest levels"] < 1
    texts = [text.get_text() for text in see.u_diagram(kit.CONFIG, 16).axes[0].texts]
    assert "16 x 16, 24 channels" in texts and "4 x 4, 48 channels" in texts and texts.count("2 skips") == 3
    assert see.wave_table(torch.zeros(10, 4)).axes
    plt.close("all")
    assert json.dumps(shares)


def test_shuffled_leaves_no_zero_and_is_the_same_each_time():
    one, other = see.shuffled(UNet(kit.CONFIG)), see.shuffled(UNet(kit.CONFIG))
    assert all(bool(each.abs().max() > 0) for each in one.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
