"""Lesson 01's study and its figures: what is trained, what is shipped, other units, and the microscope."""

import csv
import math

import pytest
import torch

from ldm_tutor.config import AutoencoderConfig
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.lessons import lesson_01_kit as kit
from ldm_tutor.lessons import lesson_01_study as study
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.weights.files import check_sums, load_model, read_header
from ldm_tutor.weights.shipped import shipped_folder

needs_weights = pytest.mark.skipif(not shipped_folder().exists(), reason="the shipped weights are not there")
MOST_BYTES = 6e6


def small():
    torch.manual_seed(0)
    config = AutoencoderConfig(
        channels=4, channel_mult=(1, 2), num_res_blocks=1, latent_channels=2, norm_groups=2, scale_factor=0.5
    )
    return Autoencoder(config).eval()


def pictures(number=3):
    return torch.rand(number, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- the study


def test_the_trials_shrink_the_latents_and_share_everything_else():
    ours = [study.TRIALS[f"autoencoder_f{f}"] for f in (2, 4, 8, 16)]
    assert [each.config().downsampling for each in ours] == [2, 4, 8, 16]
    sizes = [each.config().latent_channels * (64 // each.f) ** 2 for each in ours]
    assert sizes == [3072, 1024, 512, 256]
    assert len({(each.recipe(), each.steps) for each in ours}) == 1
    sweep = [study.TRIALS[f"autoencoder_kl_{weight:.0e}"] for weight in study.KL_WEIGHTS]
    assert {each.f for each in sweep} == {2} and len({(each.steps, each.num_scenes) for each in sweep}) == 1
    weights = {each.kl_weight for each in sweep}
    assert len(weights) >= 5 and min(weights) <= 1e-9 and max(weights) >= 1e-2 and ours[0].kl_weight in weights
    assert all(each.recipe().adversarial_weight == 0 for each in study.TRIALS.values())


@needs_weights
@pytest.mark.parametrize("f", [2, 4, 8, 16])
def test_outer_layers_are_those_of_the_shipped_autoencoder(f):
    shipped = load_model(shipped_folder() / "autoencoder.safetensors", "autoencoder")
    started = Autoencoder(study.TRIALS[f"autoencoder_f{f}"].config())
    before = {name: value.clone() for name, value in started.state_dict().items()}
    copied = study.take_outer_layers(started, shipped)
    assert "encoder.conv_in.weight" in copied and "decoder.conv_out.weight" in copied
    assert any(name.startswith("encoder.levels.0.") for name in copied)
    assert not [name for name in copied if ".mid." in name or "quant_conv" in name or "encoder.conv_out" in name]
    innermost = len(started.encoder.levels) - 1
    assert not [name for name in copied if name.startswith((f"encoder.levels.{innermost}.", "decoder.levels.0."))]
    after = started.state_dict()
    for name, value in before.items():
        if name not in copied:
            assert torch.equal(after[name], value), name
    mine = started.decoder.levels[-1].res_blocks[1].conv1.weight
    assert torch.equal(mine, shipped.decoder.levels[-1].res_blocks[1].conv1.weight)


@needs_weights
def test_a_trial_trains_stops_resumes_and_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(study.TRIALS, "tiny", study.Trial(4, steps=4, watch_every=2))
    monkeypatch.setattr(study, "NUM_WATCHED", 2)
    drawn = study.render_scenes(16).pictures
    real, calls = study.watch, []

    def stop_at_the_third(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(study, "watch", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        study.run_trial("tiny", drawn, tmp_path / "run", tmp_path / "out")
    monkeypatch.setattr(study, "watch", real)
    path = study.run_trial("tiny", drawn, tmp_path / "run", tmp_path / "out")
    model = load_model(path, "autoencoder")
    header = read_header(path)
    assert model.config.downsampling == 4 and model.config.scale_factor != 1.0
    assert header["metadata"]["steps"] == 4 and header["metadata"]["recipe"]["kl_weight"] == 1e-6
    with open(tmp_path / "out" / "logs" / "tiny.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows][:2] == [1, 2]
    for row in rows:
        parts = float(row["kl_mean"]) + float(row["kl_spread"])
        assert float(row["kl_per_number"]) == pytest.approx(parts, rel=1e-3)
    assert study.is_done("tiny", tmp_path / "out")
    monkeypatch.setitem(study.TRIALS, "tiny", study.Trial(4, steps=5))
    assert not study.is_done("tiny", tmp_path / "out")


def test_watch_agrees_with_the_package():
    autoencoder, shown = small(), pictures()
    found = study.watch(autoencoder, shown)
    posterior = autoencoder.encode(shown)
    assert found["kl_per_number"] == pytest.approx(float(posterior.kl().mean()) / posterior.mean[0].numel(), rel=1e-4)
    assert found["rms_mean"] == pytest.approx(float(posterior.mean.square().mean().sqrt()), rel=1e-4)


def test_an_unknown_autoencoder_is_named(caplog):
    with pytest.raises(ConfigError, match="autoencoder_f3"):
        study.load_trial("autoencoder_f3")
    assert study.main(["autoencoder_f3"]) == 1
    assert "autoencoder_f3" in caplog.text


@needs_weights
def test_what_is_shipped_is_whole_small_and_what_the_trials_say():
    folder = study.study_folder()
    names = check_sums(folder)
    assert {f"{name}.safetensors" for name in study.TRIALS} | {f"logs/{name}.csv" for name in study.TRIALS} == set(
        names
    )
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MOST_BYTES
    for name, trial in study.TRIALS.items():
        assert study.is_done(name, folder), name
        model, log = study.load_trial(name), study.trial_log(name)
        assert model.config.downsampling == trial.f
        assert log["step"][-1] == trial.steps and all(math.isfinite(x) for column in log.values() for x in column)
    best = [study.trial_log(f"autoencoder_f{f}")["psnr"][-1] for f in (2, 4, 8, 16)]
    assert best == sorted(best, reverse=True)


# --- the same autoencoder in other units


@torch.no_grad()
def test_other_units_change_the_latents_and_no_picture():
    autoencoder, shown = small(), pictures()
    large = kit.in_units(autoencoder, 5.0)
    before, after = autoencoder.encode(shown), large.encode(shown)
    assert torch.allclose(after.mean, 5 * before.mean, atol=1e-4)
    assert torch.allclose(after.logvar, before.logvar + 2 * math.log(5), atol=1e-4)
    assert torch.allclose(large(shown), autoencoder(shown), atol=1e-4)
    assert large.config.scale_factor == pytest.approx(0.1)
    generator = torch.Generator().manual_seed(2)
    scaled = large.to_latents(shown, torch.Generator().manual_seed(2))
    assert torch.allclose(scaled, autoencoder.to_latents(shown, generator), atol=1e-4)
    assert torch.equal(autoencoder.encode(shown).mean, before.mean)  # the original is as it was


@pytest.mark.parametrize("factor", [0, -1.0, math.inf, "two", math.nan])
def test_units_are_a_positive_number(factor):
    with pytest.raises(ConfigError, match="in_units"):
        kit.in_units(small(), factor)


def test_neighbours_of_noise_are_strangers_and_those_of_a_slope_are_not():
    noise = kit.noise_like(torch.empty(8, 2, 16, 16), seed=0)
    slope = torch.arange(16.0).expand(1, 2, 16, 16) + 0.1 * noise[:1]
    assert abs(kit.neighbour_correlation(noise)) < 0.1 < 0.9 < kit.neighbour_correlation(slope)


# --- the microscope


def test_the_microscope_goes_from_one_picture_to_the_other():
    scope = kit.LatentMicroscope(small(), pictures())
    assert torch.equal(scope.mixed(0, 1, 0.0, 0.0), scope.latents[:1])
    assert torch.allclose(scope.mixed(0, 1, 1.0, 0.0), scope.latents[1:2])
    noisy = scope.mixed(0, 1, 0.0, 1.0) - scope.latents[:1]
    assert torch.allclose(noisy, scope.latents.std() * scope.noise, atol=1e-5)
    alone = scope.mixed(0, 1, 0.0, 0.0, "1")
    assert torch.equal(alone[:, 1], scope.latents[:1, 1])
    assert float(alone[:, 0].std()) < 1e-6 and float(scope.latents[:, 0].std()) > 1e-6
    figure = scope.draw(0, 2, 0.5, 0.3, "0")
    titles = [" ".join(axes.get_title().split()) for axes in figure.axes]
    assert titles == ["latents, decoded", "pixels, faded", "channel 0", "channel 1"]
    assert "50% of picture 0" in scope.caption(0, 2, 0.5, 0.3) and "channel 1 alone" in scope.caption(0, 1, 0, 0, "1")


def test_the_microscope_shows_itself_and_refuses_what_it_cannot_show(monkeypatch):
    shown = []
    monkeypatch.setattr(kit.LiveFigure, "show", lambda self: shown.append(self))
    kit.latent_microscope(small(), pictures(), "half way", first=0, second=2)
    (figure,) = shown
    first = figure.picture.value
    figure.controls["noise"].value = 2.0
    assert figure.picture.value != first and figure.problem.value == ""
    figure.controls["only"].value = "1"
    assert "channel 1 alone" in figure.caption.value
    with pytest.raises(ConfigError, match="alternative text"):
        kit.latent_microscope(small(), pictures(), " ")
    for wrong in ({"first": 3}, {"second": -1}, {"first": "a"}):
        with pytest.raises(ConfigError, match="latent_microscope"):
            kit.latent_microscope(small(), pictures(), "x", **wrong)
    with pytest.raises(ShapeError, match="two or more"):
        kit.LatentMicroscope(small(), pictures(1))


def test_curves_have_their_titles_and_names():
    figure = kit.curves(
        [("left", {"a": [1, 2], "b": [2, 3]}), ("right", {"": [1, 4]})], [2, 4], "f", log="xy", ticks=[2, 4]
    )
    left, right = figure.axes
    assert (left.get_title(), right.get_title(), left.get_xscale(), left.get_yscale()) == (
        "left",
        "right",
        "log",
        "log",
    )
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b"] and right.get_legend() is None
