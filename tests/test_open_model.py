"""A model from wherever it lies as a pipeline, and `ldm-tutor draw` with it: the same pictures as from our folder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CONFIG, make_pipeline

from ldm_tutor import open_model
from ldm_tutor.cli import main
from ldm_tutor.config import FOREIGN_DRAWING, DrawingConfig
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.tuning import tune
from ldm_tutor.open_model import open_parts, open_pipeline, pipeline_of
from ldm_tutor.weights.compvis import save_compvis
from ldm_tutor.weights.diffusers_folder import export_diffusers
from ldm_tutor.weights.sources import is_foreign

PROMPTS, SEEDS = ["a large red cat on grass"], [3]


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def places(pipe, tmp_path_factory):
    """The tiny model as other programs keep it: a folder, and single files of both kinds."""
    root = tmp_path_factory.mktemp("places")
    parts = {"unet": pipe.unet, "autoencoder": pipe.autoencoder, "schedule": pipe.schedule.config}
    words = {"tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder}
    export_diffusers(root / "folder", **parts, **words, picture_size=64)
    single = save_compvis(root / "single.safetensors", **parts, condition=pipe.text_encoder)
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(single)}, root / "single.ckpt")
    return root


@pytest.fixture
def tiny_preset(monkeypatch):
    monkeypatch.setitem(open_model.FILE_PRESETS, "tiny", lambda: CONFIG)


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main([str(arg) for arg in args])
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return run


def single_file(places, name="single.safetensors"):
    return {"place": places / name, "preset": "tiny", "tokenizer": places / "folder"}


@pytest.mark.parametrize("what", ["folder", "single.safetensors", "single.ckpt", "ours"])
def test_every_place_draws_the_same(pipe, places, tiny_preset, tiny_folder, what):
    arguments = {"folder": {"place": places / what}, "ours": {"place": tiny_folder}}
    opened = open_pipeline(**arguments.get(what, single_file(places, what)))
    assert opened.config.latent_shape == pipe.config.latent_shape
    assert opened.config.name == {"ours": tiny_folder.name}.get(what, what.split(".")[0])
    settings = {"num_steps": 3, "sampler": "ddim", "guidance": 4.0}
    assert opened.drawing == (DrawingConfig() if what == "ours" else FOREIGN_DRAWING)
    wanted = pipe.draw(PROMPTS, SEEDS, **settings)
    assert wanted.std() > 0.05
    assert (opened.draw(PROMPTS, SEEDS, **settings) - wanted).abs().max() < 1e-5  # foreign ones are made fast
    for part in (opened.unet, opened.autoencoder):  # and without that they are the same to the last bit
        tune(part, channels_last=False, folded=False).to(memory_format=torch.contiguous_format)
    assert torch.equal(opened.draw(PROMPTS, SEEDS, **settings), wanted)


def test_without_a_place_it_is_the_shipped_model(tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "scenes")
    monkeypatch.setenv("LDM_TUTOR_WEIGHTS", str(tmp_path))
    assert open_pipeline().config.unet == CONFIG.unet


def test_what_cannot_be_opened_says_why(places, tiny_preset, tmp_path):
    with pytest.raises(ConfigError, match="--preset.*'sd_v9'.*sd_v1"):
        open_parts(places / "single.ckpt", preset="sd_v9")
    with pytest.raises(WeightsError, match="neither settings nor words"):
        open_pipeline(places / "single.ckpt", preset="tiny")
    with pytest.raises(WeightsError, match="another shape|is missing"):
        open_pipeline(places / "single.ckpt", preset="scenes", tokenizer=places / "folder")
    with pytest.raises(WeightsError, match="owner/no-such-name: no folder here"):
        open_pipeline("owner/no-such-name")
    with pytest.raises(WeightsError, match="nowhere: no such file or folder"):
        open_pipeline("nowhere")


def test_a_pickle_that_calls_itself_safetensors_is_refused(places, tiny_preset, tmp_path):
    shutil.copy(places / "single.ckpt", tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors.*pickle"):
        open_pipeline(tmp_path / "model.safetensors", preset="tiny", tokenizer=places / "folder")


def test_a_part_of_ours_is_never_taken_for_a_whole_model(places, tmp_path):
    shutil.copy(places / "single.safetensors", tmp_path / "unet.safetensors")
    assert not is_foreign(tmp_path / "unet.safetensors") and is_foreign(places / "single.safetensors")


def test_a_folder_that_does_not_say_its_size(places, tmp_path):
    folder = shutil.copytree(places / "folder", tmp_path / "model")
    settings = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(settings | {"sample_size": None}))
    with pytest.raises(ConfigError, match="model: the folder does not say how large.*sample_size"):
        open_pipeline(folder)


def test_a_model_for_inpainting_is_not_drawn_with_by_words(places):
    parts = open_parts(places / "folder")
    with torch.device("meta"):
        wide = type(parts.unet)(dataclasses.replace(parts.unet.config, in_channels=9))
    with pytest.raises(ConfigError, match="inpainting.*9 channels in.*the 4 channels"):
        pipeline_of(dataclasses.replace(parts, unet=wide), name="fill")


# ---------------------------------------------------------------- ldm-tutor draw


def test_draw_draws_the_same_from_all(cli, places, tiny_folder, tiny_preset, tmp_path):
    words = ("draw", "a red cat", "--steps", 2, "--num", 2, "--seed", 5, "--sampler", "ddim", "--guidance", 3)
    single = ("--preset", "tiny", "--tokenizer", places / "folder")
    for out, more in {
        "ours": ("--weights", tiny_folder),
        "folder": ("--weights", places / "folder"),
        "file": ("--weights", places / "single.safetensors", *single),
        "ckpt": ("--weights", places / "single.ckpt", *single, "--no-ema"),
    }.items():
        code, said, err = cli(*words, *more, "--out", f"{out}.png")
        assert (code, err) == (0, "") and said.startswith(f"{out}.png: 2 pictures, seeds 5 to 6")
    made = {path.stem: np.asarray(Image.open(path), int) for path in tmp_path.glob("*.png")}
    assert len(set(made["ours"].flat)) > 50
    assert set(made) == {"ours", "folder", "file", "ckpt"}
    assert (made["folder"] == made["file"]).all() and (made["folder"] == made["ckpt"]).all()
    assert abs(made["folder"] - made["ours"]).max() <= 1  # made fast: rounding


def test_draw_takes_for_granted_what_suits_the_model(cli, places, tiny_folder, tmp_path):
    usual = {tiny_folder: "1 steps of ddpm, guidance 2", places / "folder": "1 steps of dpm++, guidance 4"}
    for place, settings in usual.items():
        assert cli("draw", "a red cat", "--steps", 1, "--num", 1, "--weights", place, "--out", "one.png")[0] == 0
        assert settings in Image.open(tmp_path / "one.png").text["Comment"]


def test_words_are_measured_by_the_scenes_only_where_the_model_is_ours(cli, places, tiny_folder):
    words = ("draw", "an astronaut", "--steps", 1, "--num", 1, "--weights")
    assert "not among the words of the scenes" in cli(*words, tiny_folder)[2]
    assert cli(*words, places / "folder")[2] == ""


def test_large_pictures_are_not_enlarged_unasked(cli, pipe, tmp_path):
    parts = {"unet": pipe.unet, "autoencoder": pipe.autoencoder, "schedule": pipe.schedule.config}
    words = {"tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder}
    sides = {}
    for side in (64, 160):
        export_diffusers(tmp_path / str(side), **parts, **words, picture_size=side)
        for more in ((), ("--scale", 2)):
            done = cli("draw", "a cat", "--steps", 1, "--num", 1, "--weights", tmp_path / str(side), *more)
            assert done[0] == 0, done
            sides[side, more] = Image.open(tmp_path / "picture.png").size[0]
    assert sides == {(64, ()): 256, (64, ("--scale", 2)): 128, (160, ()): 160, (160, ("--scale", 2)): 320}


@pytest.mark.parametrize(
    "more, words",
    [
        (("--weights", "owner/no-such-name"), ("owner/no-such-name", "a network")),
        (("--weights", "FILE"), ("neither settings nor words", "the tokenizer's files")),
        (("--weights", "FILE", "--preset", "sd_v9"), ("--preset", "sd_v9", "sd_v1_inpainting")),
        (("--weights", "FILE", "--preset", "tiny", "--tokenizer", "nowhere"), ("nowhere",)),
        (("--weights", "FILE", "--preset", "tiny", "--tokenizer", "FOLDER", "--ema"), ("no moving average",)),
    ],
)
def test_draw_refuses(cli, places, tiny_preset, tmp_path, more, words):
    known = {"FILE": places / "single.safetensors", "FOLDER": places / "folder"}
    code, out, err = cli("draw", "a red cat", "--steps", 1, *(known.get(each, each) for each in more))
    assert (code, out) == (1, "") and "Traceback" not in err
    for word in words:
        assert word in err, err
    assert not list(tmp_path.iterdir())
