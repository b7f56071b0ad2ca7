"""Training on pictures of one's own: every stage takes the good part of a bad folder, and goes on where it stopped."""

import dataclasses
import logging
import shutil

import pytest
import torch
from test_folders import hostile, picture, table
from tiny import CONFIG

from ldm_tutor.cli.main import app as program
from ldm_tutor.data.captioned import CaptionedPictures
from ldm_tutor.errors import ConfigError, ShapeError, WeightsError
from ldm_tutor.metrics.nearest import nearest
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.training import own_pictures, recipe
from ldm_tutor.training.loop import Budget
from ldm_tutor.training.model_card import model_card, write_card
from ldm_tutor.training.own_pictures import fingerprint, fit_captions, own_config, own_tokens, ready_for_text
from ldm_tutor.training.recipe import TrainingOptions, train_all, train_stage
from ldm_tutor.training.stages.clip import ClipStage
from ldm_tutor.weights.files import load_model

ONE = Budget(steps=1)


@pytest.fixture(autouse=True)
def read_anew():
    own_pictures.own_pictures.cache_clear()


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return hostile(tmp_path_factory.mktemp("data") / "mine")


def options(folder, data, **more):
    fixed = {"device": "cpu", "precision": "float32", "show_progress": False, "config": CONFIG}
    return TrainingOptions(folder=folder, data=str(data), **{**fixed, **more})


@pytest.fixture(scope="module")
def trained(mine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    made = [name for name, _ in train_all(0.01, options(folder, mine))]
    assert made == ["autoencoder", "clip", "denoiser"]
    return folder


# ---------------------------------------------------------------- the stages


def test_a_bad_folder_makes_a_model_that_draws(trained):
    drawn = load_pipeline(trained).draw(["the grey one"], [1], num_steps=2)
    assert drawn.shape == (1, 3, 64, 64) and bool(drawn.isfinite().all())
    assert load_model(trained / "autoencoder.safetensors").config.scale_factor != CONFIG.autoencoder.scale_factor


def test_every_stage_takes_what_it_can_use(trained, mine):
    header = torch.load(trained / "autoencoder.checkpoint", weights_only=True)["settings"]
    assert header["num_pictures"] == 9
    assert torch.load(trained / "clip.checkpoint", weights_only=True)["settings"]["num_pictures"] == 6
    assert torch.load(trained / "denoiser.checkpoint", weights_only=True)["settings"]["num_pictures"] == 6


def test_what_is_left_out_is_said(mine, caplog, tmp_path):
    with caplog.at_level(logging.WARNING, logger="ldm_tutor"):
        train_stage("autoencoder", ONE, options(tmp_path, mine))
    assert "9 pictures are used" in caplog.text and "4 x picture cannot be read" in caplog.text


def test_a_run_goes_on_only_with_the_pictures_it_began_with(mine, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(mine, data)
    out = tmp_path / "out"
    train_stage("autoencoder", ONE, options(out, data))
    train_stage("autoencoder", Budget(steps=2), options(out, data), resume=True)
    picture((0, 0, 90)).save(data / "good.png")
    own_pictures.own_pictures.cache_clear()
    with pytest.raises(WeightsError, match="another data"):
        train_stage("autoencoder", Budget(steps=3), options(out, data), resume=True)


@pytest.mark.parametrize("stage", ["perceptual", "judge"])
def test_stages_that_need_the_truth_refuse(stage, mine, tmp_path):
    with pytest.raises(ConfigError, match="learns from scenes"):
        train_stage(stage, ONE, options(tmp_path, mine))


def test_no_captions_no_clip(tmp_path):
    (tmp_path / "data").mkdir()
    picture().save(tmp_path / "data" / "a.png")
    train_stage("autoencoder", ONE, options(tmp_path / "out", tmp_path / "data"))
    with pytest.raises(ConfigError, match="no picture has a caption"):
        train_stage("clip", ONE, options(tmp_path / "out", tmp_path / "data"))


def test_the_denoiser_says_what_comes_first(mine, tmp_path):
    with pytest.raises(WeightsError, match="autoencoder"):
        train_stage("denoiser", ONE, options(tmp_path, mine))


def test_a_start_from_other_words_begins_clip_anew_and_keeps_the_rest(trained, mine, tmp_path, caplog):
    other = dataclasses.replace(CONFIG.clip.text, vocab_size=700)
    config = dataclasses.replace(CONFIG, clip=dataclasses.replace(CONFIG.clip, text=other))
    with caplog.at_level(logging.INFO, logger="ldm_tutor"):
        made = [name for name, _ in train_all(0.01, options(tmp_path, mine, config=config, start_from=trained))]
    assert len(made) == 3 and "another vocabulary" in caplog.text
    assert load_pipeline(tmp_path).config.clip.text.vocab_size == 700


def test_a_start_from_the_same_words_goes_on(trained, mine, tmp_path):
    assert recipe._start_of("clip", options(tmp_path, mine, start_from=trained)) == trained


def test_short_runs_warm_up_quickly(mine, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(recipe, "run_stage", lambda stage, *_, **__: seen.append(stage))
    train_stage("autoencoder", ONE, options(tmp_path, mine))
    assert max(learner.warmup for learner in seen[0].learners.values()) == own_pictures.WARMUP


def test_the_own_model_has_room_for_words():
    assert own_config().clip.text.vocab_size == own_pictures.VOCABULARY
    assert TrainingOptions(folder=".", data="x").model == own_config()


# ---------------------------------------------------------------- captions


def small_tokenizer(captions, context_length=8):
    return Tokenizer.train(captions, vocab_size=600, context_length=context_length)


def test_long_captions_are_cut_after_a_whole_word(caplog):
    tokenizer = small_tokenizer(["one two three four"] * 3)
    with caplog.at_level(logging.WARNING, logger="ldm_tutor"):
        fitted = fit_captions(["one two", "one two three four one two three four", "x" * 100], tokenizer)
    assert fitted[0] == "one two" and "2 captions" in caplog.text
    assert "one two three four one two three four".startswith(fitted[1]) and fitted[1].count(" ") >= 1
    assert set(fitted[2]) == {"x"}
    assert own_tokens(fitted, tokenizer).shape == (3, 1, 8)


def test_only_captioned_pictures_go_to_the_text():
    data = CaptionedPictures(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ["a cat", "", "a dog"], ["1", "2", "3"])
    ready = ready_for_text(data, small_tokenizer(["a cat", "a dog"]))
    assert ready.captions == ["a cat", "a dog"] and ready.names == ["1", "3"] and len(ready.pictures) == 2


def test_the_fingerprint_sees_pictures_and_captions():
    data = CaptionedPictures(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ["a", "b"], ["1", "2"])
    other = dataclasses.replace(data, captions=["a", "c"])
    brighter = dataclasses.replace(data, pictures=data.pictures + 1)
    assert len({fingerprint(each) for each in (data, other, brighter)}) == 3
    assert fingerprint(data) == fingerprint(dataclasses.replace(data, names=["x", "y"]))


def test_a_batch_of_clip_has_each_caption_once():
    captions = ["a cat", "A  cat", "a dog", "a hen"] * 5
    data = CaptionedPictures(torch.zeros(20, 3, 64, 64, dtype=torch.uint8), captions, captions)
    tokenizer = small_tokenizer(captions, 32)
    stage = ClipStage(CONFIG.clip, data, None, tokenizer, device=torch.device("cpu"), dtype=torch.float32)
    assert stage.num_kinds == 3 and stage.batch_size == 3
    seen = set()
    for seed in range(60):
        chosen = stage._one_per_caption(torch.Generator().manual_seed(seed)).tolist()
        assert sorted(captions[k].lower().split()[1] for k in chosen) == ["cat", "dog", "hen"]
        seen |= set(chosen)
    assert seen == set(range(20))


# ---------------------------------------------------------------- nearest pictures, cards


def test_one_caption_for_all_teaches_clip_nothing():
    tokenizer = small_tokenizer(["cats"], 32)
    same = CaptionedPictures(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), ["cats"] * 4, list("abcd"))
    with pytest.raises(ConfigError, match="all say 'cats'.; expected: two different captions"):
        ClipStage(CONFIG.clip, same, None, tokenizer, device=torch.device("cpu"), dtype=torch.float32)


def test_nearest_finds_the_picture_and_the_distance():
    train = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    index, distance = nearest(train[[3, 1]] + 0.1, train)
    assert index.tolist() == [3, 1] and torch.allclose(distance, torch.full((2,), 0.1, dtype=torch.float64), atol=1e-6)
    with pytest.raises(ShapeError, match="nearest"):
        nearest(train, train[:, :2])


def test_copies_are_nearer_than_new_pictures():
    pictures = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    trained, held = pictures[:80], pictures[80:]
    assert nearest(trained + 0.01, trained)[1].max() < 0.011 < nearest(held, trained)[1].min()


def test_a_card_says_what_it_must(trained, tmp_path):
    told = {
        "data": "9 pictures.", "data_licence": "CC0", "commands": ["ldm-tutor train all --data mine"],
        "measured": {"PSNR": "20 dB"}, "limits": ["It knows nine pictures."],
    }  # fmt: skip
    text = model_card("mine", **told, weights=trained)
    for part in ("# Model card: mine", "CC0", "| clip | ", "| PSNR | 20 dB |", "- It knows nine pictures.", "```sh"):
        assert part in text
    assert write_card(tmp_path / "MODEL_CARD.md", text).read_text(encoding="utf-8") == text
    for missing in ("data_licence", "measured", "limits"):
        with pytest.raises(ConfigError, match=missing):
            model_card("mine", **{**told, missing: ""})


# ---------------------------------------------------------------- the command


def test_the_command_trains_on_a_folder(mine, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.setattr("ldm_tutor.training.options.own_config", lambda base: CONFIG)
    for stage, file in (("autoencoder", "autoencoder"), ("clip", "clip"), ("denoiser", "unet")):
        command = ["train", stage, "--data", str(mine), "--steps", "1", "--out", str(tmp_path), "--quiet"]
        result = CliRunner().invoke(program, [*command, "--precision", "float32", "--device", "cpu"])
        assert result.exit_code == 0, result.output
        assert (tmp_path / f"{file}.safetensors").is_file()
        assert ("a sentence like your captions" in result.output) == (stage == "denoiser")


def test_the_command_refuses_a_folder_that_is_not_there(tmp_path):
    from typer.testing import CliRunner

    command = ["train", "clip", "--data", str(tmp_path / "no"), "--steps", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(program, command)
    assert result.exit_code != 0 and isinstance(result.exception, (ConfigError, SystemExit))


def test_captions_in_a_table_with_one_long_word(tmp_path):
    for name in ("a.png", "b.png"):
        picture().save(tmp_path / name)
    table(tmp_path, {"file_name": "a.png", "text": "z" * 500}, {"file_name": "b.png", "text": "a cat"})
    train_stage("clip", ONE, options(tmp_path / "out", tmp_path))
