"""The autoencoders of lesson 02: what is shipped is whole and says what the lesson says; the runs can be made again."""

import dataclasses
import math

import pytest
import torch

from ldm_tutor.data.scenes.datasets import render_scenes
from ldm_tutor.errors import ConfigError, ShapeError, WeightsError
from ldm_tutor.lessons import lesson_02_kit as kit
from ldm_tutor.lessons.lesson_02_judges import receptive_field
from ldm_tutor.lessons.lesson_02_views import crops, layers_of, patch_of, verdict_figure
from ldm_tutor.metrics.pictures import high_frequency_energy, psnr
from ldm_tutor.plots.figures import png_bytes
from ldm_tutor.training.stages.autoencoder import AutoencoderRecipe
from ldm_tutor.weights.files import check_sums

SMALL = {"num_steps": 4, "num_scenes": 16}
WITH_CRITIC = ("adversary", "adversary_at_0")


@pytest.fixture(scope="module")
def pictures():
    return kit.held_out_scenes(32)


# --- what is shipped


def test_the_shipped_files_are_whole_and_small():
    folder = kit.lesson_folder()
    names = check_sums(folder)
    assert {f"{name}.safetensors" for name in kit.RUNS} | {f"logs/{name}.csv" for name in kit.RUNS} <= set(names)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4e6


def test_the_runs_differ_in_their_loss_alone():
    first, *others = kit.RUNS.values()
    free = {"pixel_loss", "perceptual_weight", "adversarial_weight", "adversarial_start"}
    for other in others:
        kept = {k: v for k, v in dataclasses.asdict(other).items() if k not in free}
        assert kept == {k: v for k, v in dataclasses.asdict(first).items() if k not in free}
    late, early = (dataclasses.asdict(kit.RUNS[name]) for name in WITH_CRITIC)
    assert {k for k in late if late[k] != early[k]} == {"adversarial_start"}


def test_every_log_covers_the_whole_run():
    for name in kit.RUNS:
        log = kit.load_log(name)
        assert log["step"][-1] == kit.NUM_STEPS and log["samples"][-1] == kit.NUM_STEPS * kit.BATCH_SIZE
        assert log["psnr"][0] < 17 and log["psnr"][-1] > 20
        assert all(math.isfinite(value) for column in log.values() for value in column)


def test_until_the_critic_speaks_the_late_run_is_the_perceptual_run():
    plain, late = kit.load_log("perceptual"), kit.load_log("adversary")
    half = plain["step"].index(kit.NUM_STEPS // 2) + 1
    assert plain["psnr"][:half] == late["psnr"][:half]
    assert plain["psnr"][-1] != late["psnr"][-1]
    assert torch.equal(kit.load_kept("perceptual")[:4], kit.load_kept("adversary")[:4])


def test_the_shipped_runs_show_what_the_lesson_says(pictures):
    made = {name: kit.reconstruct(name, pictures) for name in kit.RUNS}
    quality = {name: float(psnr(each, pictures).mean()) for name, each in made.items()}
    energy = {name: float(high_frequency_energy(each).mean()) for name, each in made.items()}
    assert max(quality, key=quality.get) == "l2" and min(quality, key=quality.get) == "adversary_at_0"
    real = float(high_frequency_energy(pictures).mean())
    assert all(energy[name] < 0.2 * real for name in ("l2", "l1", "perceptual"))
    assert all(0.5 * real < energy[name] < real for name in WITH_CRITIC)
    for name, value in quality.items():
        assert value == pytest.approx(kit.load_log(name)["psnr"][-1], abs=0.1)  # float16 loses nothing to speak of


# --- making it again


@pytest.fixture
def one_thread():
    """As the runs were made; beside other work two threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_run_writes_what_ship_needs_and_a_finished_one_is_not_trained_again(tmp_path, monkeypatch):
    two = {name: kit.RUNS[name] for name in ("l2", "adversary")}
    for name, value in {"RUNS": two, "LOG_EVERY": 2, "LOOK_AT": (2, 4), "NUM_HELD_OUT": 8}.items():
        monkeypatch.setattr(kit, name, value)
    with pytest.raises(WeightsError, match="not finished"):
        kit.ship(tmp_path / "runs", tmp_path / "shipped")
    for name in kit.RUNS:
        kit.run(name, tmp_path / "runs", **SMALL)
    monkeypatch.setattr(kit, "lesson_folder", lambda: tmp_path / "shipped")
    monkeypatch.setattr(kit, "run", lambda *_: pytest.fail("trained again"))
    assert kit.main([str(tmp_path / "runs")]) == 0
    check_sums(tmp_path / "shipped")
    for name in kit.RUNS:
        assert kit.load_log(name)["step"] == [2, 4]
        assert kit.load_kept(name).shape == (2, kit.NUM_KEPT, 3, 64, 64)
        made = kit.reconstruct(name, kit.held_out_scenes(2))
        assert made.shape == (2, 3, 64, 64) and float(made.abs().max()) <= 1
    verdicts = kit.load_critic("adversary")(kit.held_out_scenes(1))
    assert verdicts.shape == (1, 1, 14, 14)
    with pytest.raises(WeightsError, match="l2_critic"):
        kit.load_critic("l2")
    with pytest.raises(ConfigError, match="unknown run"):
        kit.load_coder("l1")
    (tmp_path / "shipped" / "adversary_critic.safetensors").write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match="cannot be read"):
        kit.load_critic("adversary")


def test_every_run_begins_with_the_same_weights():
    scenes = render_scenes(4).pictures
    states = [kit.build_stage(name, scenes).coder.network.state_dict() for name in ("l2", "adversary")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("call", [kit.load_coder, kit.load_log, kit.load_kept, kit.load_critic])
def test_an_unknown_run_is_named(call):
    with pytest.raises(ConfigError, match="adversary_at_0"):
        call("l3")


# --- the recipe


def test_the_default_recipe_is_kept_in_a_checkpoint_as_it_always_was():
    before = {"perceptual_weight": 0.2, "kl_weight": 1e-6, "adversarial_weight": 0.1, "adversarial_start": 0.7,
              "batch_size": 16, "peak_lr": 1.5e-3, "decoder_only": False}  # fmt: skip
    assert AutoencoderRecipe().to_dict() == before
    assert AutoencoderRecipe(pixel_loss="l2").to_dict() == {**before, "pixel_loss": "l2"}
    with pytest.raises(ConfigError, match="l1"):
        AutoencoderRecipe(pixel_loss="l3")


@pytest.mark.parametrize(("name", "logged"), [("l2", {"l2", "kl", "critic"}), ("perceptual", {"l1", "perceptual"})])
def test_a_step_logs_the_losses_that_it_has(name, logged):
    stage = kit.build_stage(name, render_scenes(4).pictures)
    values = stage.train_step(torch.Generator().manual_seed(0), 0.9)
    assert set(values) == logged | {"kl", "critic"}
    assert values["critic"] == 1.0 and all(value > 0 for value in values.values())


# --- tools of the lesson


def test_sharpening_by_nothing_changes_nothing(pictures):
    assert torch.equal(kit.sharpen(pictures, 0.0), pictures)
    assert float(high_frequency_energy(kit.sharpen(pictures, 2.0)).mean()) > float(
        high_frequency_energy(pictures).mean()
    )


def test_published_lpips_is_used_where_its_backbone_lies_and_never_fetched(tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert kit.published_lpips() is None
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(squeezenet1_1().state_dict(), cache / "squeezenet1_1-b8a52dc0.pth")
    name, distance = kit.published_lpips()
    assert name == "squeeze"
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert distance(x, x).abs().max() == 0 and distance(x, -x).shape == (2, 1, 1, 1)


def test_the_patch_of_a_verdict_is_what_its_gradient_sees():
    critic = kit.load_critic("adversary")
    layers = layers_of(critic)
    assert layers == [(4, 2), (4, 2), (4, 1), (4, 1)] and receptive_field(layers) == 34
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    critic(x)[0, 0, 6, 8].backward()
    seen = x.grad.abs().sum(dim=(0, 1)) > 0
    for line, index in ((seen.any(dim=1), 6), (seen.any(dim=0), 8)):
        begin, end = patch_of(index, layers)
        assert line.nonzero().flatten().tolist() == list(range(begin, end))


def test_the_figures_refuse_what_is_not_there(pictures):
    layers = [(4, 2), (4, 2), (4, 1), (4, 1)]
    assert png_bytes(verdict_figure(pictures[:1], torch.zeros(14, 14), layers, 0, 13)).startswith(b"\x89PNG")
    assert png_bytes(crops({"a": pictures, "b": pictures}, [(0, 4, 4)])).startswith(b"\x89PNG")
    with pytest.raises(ShapeError, match="row and column"):
        verdict_figure(pictures[:1], torch.zeros(14, 14), layers, 14, 0)
    with pytest.raises(ShapeError):
        verdict_figure(pictures[:1], torch.zeros(1, 14, 14), layers, 0, 0)
    with pytest.raises(ConfigError, match="outside"):
        crops({"a": pictures}, [(0, 50, 0)])
