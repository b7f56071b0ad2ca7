"""The whole recipe at a tiny size: from nothing to a picture, and on from weights that are there."""

import shutil

import pytest
import torch
from tiny import CONFIG

from ldm_tutor.data.scenes.draw import draw_masks
from ldm_tutor.data.scenes.sampling import caption_for, exchanged_twin, near_twin, sample_scene
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.training import recipe
from ldm_tutor.training.loop import Budget
from ldm_tutor.training.presets import SHARES, CourseRecipe, TrainingPreset, find_preset
from ldm_tutor.training.recipe import STAGES, TrainingOptions, train_all, train_stage
from ldm_tutor.training.stages.clip import WORD_DROPOUT
from ldm_tutor.weights.files import load_model

ONE = Budget(steps=1)


def options(folder, **more):
    return TrainingOptions(
        folder=folder, device="cpu", precision="float32", num_scenes=64, show_progress=False, config=CONFIG, **more
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    assert [name for name, _ in train_all(0.02, options(folder))] == list(STAGES)
    return folder


def weights(folder, name):
    return load_model(folder / recipe.OUTPUTS[name]).state_dict()


def copy_of(trained, folder, *names):
    folder.mkdir()
    for name in names:
        shutil.copy(trained / recipe.OUTPUTS[name], folder)
    shutil.copytree(trained / "tokenizer", folder / "tokenizer")
    return folder


def changed(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_the_recipe_makes_a_model_that_draws(trained):
    picture = load_pipeline(trained).draw(["a red cat at night"], [1], num_steps=2)
    assert picture.shape == (1, 3, 64, 64)
    assert bool(picture.isfinite().all())


def test_a_finished_recipe_has_nothing_left_to_do(trained, monkeypatch):
    monkeypatch.setattr(recipe, "_build", lambda *_: pytest.fail("a stage was built again"))
    assert len(list(train_all(0.02, options(trained), resume=True))) == len(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_goes_on_from_given_weights(trained, tmp_path, name):
    folder = copy_of(trained, tmp_path / "more", *(set(STAGES) - {name}))
    train_stage(name, ONE, options(folder, start_from=trained))
    before, after = weights(trained, name), weights(folder, name)
    moved = max(float((after[key].float() - before[key].float()).abs().max()) for key in after)
    assert 0 < moved < 0.02  # one small step away from there, not new random numbers
    if name == "clip":
        first, second = Tokenizer.load(trained / "tokenizer"), Tokenizer.load(folder / "tokenizer")
        assert first(["a red cat"]).tolist() == second(["a red cat"]).tolist()


def test_decoder_only_keeps_the_latents(trained, tmp_path):
    folder = copy_of(trained, tmp_path / "decoder", "perceptual")
    train_stage("autoencoder", ONE, options(folder, start_from=trained, decoder_only=True, seed=1))  # other scenes
    different = changed(weights(trained, "autoencoder"), weights(folder, "autoencoder"))
    assert different
    assert not any(name.startswith(("encoder", "quant_conv")) for name in different)
    scales = [load_model(path / "autoencoder.safetensors").config.scale_factor for path in (trained, folder)]
    assert scales[0] == scales[1]


def test_weights_to_start_from_must_be_there_and_fit(trained, tmp_path):
    with pytest.raises(WeightsError, match=r"unet\.safetensors is missing"):
        train_stage(
            "denoiser", ONE, options(copy_of(trained, tmp_path / "a", "autoencoder", "clip"), start_from=tmp_path)
        )
    folder = copy_of(trained, tmp_path / "b", "perceptual")
    larger = TrainingOptions(
        folder=folder, device="cpu", precision="float32", num_scenes=64, show_progress=False, start_from=trained
    )
    with pytest.raises(WeightsError, match="another size"):
        train_stage("autoencoder", ONE, larger)
    with pytest.raises(ConfigError, match="--start-from"):
        options(tmp_path, decoder_only=True)


def test_latents_are_encoded_once(trained, tmp_path, monkeypatch):
    folder = copy_of(trained, tmp_path / "latents", "autoencoder", "clip")
    shutil.copy(trained / "latents.safetensors", folder)
    drawn = []
    render = recipe.render_scenes
    monkeypatch.setattr(recipe, "render_scenes", lambda *args, **kwargs: drawn.append(args) or render(*args, **kwargs))
    train_stage("denoiser", ONE, options(folder))
    assert not drawn
    copy_of(trained, tmp_path / "other", "perceptual")
    train_stage("autoencoder", ONE, options(tmp_path / "other", start_from=trained))
    shutil.copy(tmp_path / "other" / "autoencoder.safetensors", folder)
    drawn.clear()
    train_stage("denoiser", ONE, options(folder))
    assert drawn  # another encoder has other latents


def test_clip_learns_from_twins_of_both_kinds_and_words_from_the_first_sentences(trained, tmp_path, monkeypatch):
    learned = []
    train = Tokenizer.train
    monkeypatch.setattr(recipe, "TOLD", 20)
    monkeypatch.setattr(recipe.Tokenizer, "train", lambda told, **sizes: learned.append(told) or train(told, **sizes))
    stage = recipe._build("clip", options(copy_of(trained, tmp_path / "told", "perceptual")))
    assert learned == [[caption_for(index) for index in range(20)]]
    (_, own), (_, twins) = stage.halves
    told = [near_twin(0)[1], exchanged_twin(1)[1], near_twin(2)[1], exchanged_twin(3)[1]]
    assert torch.equal(twins[:4], stage.tokenizer(told)) and len(own) == len(twins) == 64
    assert stage.word_dropout == WORD_DROPOUT > 0


def weighing(folder, weight, until=1.0):
    course = CourseRecipe(foreground_weight=weight, foreground_until=until)
    return options(folder, preset=TrainingPreset(name="weighing", model=CONFIG, course=course))


def test_the_foreground_is_where_things_are_and_is_kept(trained, tmp_path, monkeypatch):
    folder = copy_of(trained, tmp_path / "weighing", "autoencoder", "clip", "perceptual")
    coder = load_model(folder / "autoencoder.safetensors")
    cpu = (torch.device("cpu"), torch.float32)
    moments, foreground = recipe.cached_moments(weighing(folder, 5.0), coder, *cpu, folder)
    assert foreground.shape == (64, 1, *moments.shape[2:]) and 0 <= float(foreground.min())
    for index in (0, 7):
        covered = torch.from_numpy(draw_masks(sample_scene(index, "train", 0))).any(dim=0).float()
        assert abs(float(foreground[index].mean() - covered.mean())) < 1e-3
    monkeypatch.setattr(recipe, "render_scenes", lambda *args, **kwargs: pytest.fail("drawn again"))
    again = recipe.cached_moments(weighing(folder, 5.0), coder, *cpu, folder)
    assert torch.equal(again[0], moments) and torch.equal(again[1], foreground)
    monkeypatch.undo()
    plain, nothing = recipe.cached_moments(weighing(folder, 0.0), coder, *cpu, folder)
    assert nothing is None and torch.equal(plain, moments)


def test_a_weighed_run_learns_otherwise_and_is_not_resumed_as_another(trained, tmp_path):
    after = {}
    for weight in (0.0, 5.0):
        folder = copy_of(trained, tmp_path / f"weight{weight:g}", "autoencoder", "clip", "perceptual")
        train_stage("denoiser", ONE, weighing(folder, weight))
        after[weight] = weights(folder, "denoiser")
    assert changed(after[0.0], after[5.0])
    folder = copy_of(trained, tmp_path / "over", "autoencoder", "clip", "perceptual")
    train_stage("denoiser", ONE, weighing(folder, 5.0, until=0.0))  # over before it begins
    assert not changed(after[0.0], weights(folder, "denoiser"))
    with pytest.raises(WeightsError, match="another weighed_until"):
        train_stage("denoiser", ONE, weighing(folder, 5.0, until=0.5), resume=True)
    with pytest.raises(WeightsError, match="another heaviest_position"):
        train_stage("denoiser", ONE, weighing(folder, 2.0), resume=True)


def test_a_preset_s_shares_are_those_that_are_spent(tmp_path, monkeypatch):
    shares = {"perceptual": 0.25, "judge": 0.25, "autoencoder": 0.25, "clip": 0.125, "denoiser": 0.125}
    preset = TrainingPreset(name="even", model=CONFIG, course=CourseRecipe(shares=shares))
    spent = []
    monkeypatch.setattr(recipe, "train_stage", lambda name, budget, *_, **__: spent.append((name, budget.minutes)))
    list(train_all(8.0, options(tmp_path, preset=preset)))
    assert spent == [("perceptual", 2), ("judge", 2), ("autoencoder", 2), ("clip", 1), ("denoiser", 1)]


@pytest.mark.parametrize("shares", [SHARES, find_preset("small").course.shares])
def test_shares_name_every_stage_and_make_a_whole(shares):
    assert tuple(shares) == STAGES and abs(sum(shares.values()) - 1) < 1e-9
