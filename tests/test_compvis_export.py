"""`ldm-tutor export` from and to single files."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import assert_refused, cli  # noqa: F401  (a fixture)
from tiny import CONFIG

from ldm_tutor import open_model
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.weights.compvis import load_compvis
from ldm_tutor.weights.compvis_names import ema_name
from ldm_tutor.weights.diffusers_folder import load_diffusers


@pytest.fixture
def single(cli, tmp_path, tiny_folder):  # noqa: F811
    code, out, err = cli("export", "--format", "compvis", "--weights", tiny_folder, "--out", "model.safetensors")
    assert (code, err) == (0, "") and out.startswith(f"model.safetensors: {tiny_folder.name} as one file, float32, ")
    return tmp_path / "model.safetensors"


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_ours_to_one_file_to_a_folder_and_back(cli, single, tmp_path, tiny_folder, monkeypatch):  # noqa: F811
    ours, parts = load_pipeline(tiny_folder), load_compvis(single, CONFIG)
    assert same(parts.unet, ours.unet) and same(parts.condition, ours.text_encoder)
    monkeypatch.setitem(open_model.FILE_PRESETS, "tiny", lambda: CONFIG)
    tokenizer = tiny_folder / "tokenizer"
    options = ("--preset", "tiny", "--tokenizer", tokenizer)
    assert cli("export", "--weights", single, *options, "--out", "folder")[0] == 0
    back = load_diffusers(tmp_path / "folder")
    for name in ("unet", "autoencoder", "text_encoder"):
        assert same(getattr(back, name), getattr(ours, name))
    assert cli("export", "--weights", "folder", "--format", "compvis", "--out", "again.safetensors")[0] == 0
    one, other = load_file(single), load_file(tmp_path / "again.safetensors")
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_the_moving_average_on_request(cli, single, tmp_path, tiny_folder, monkeypatch):  # noqa: F811
    state = load_file(single)
    state |= {ema_name(k): v + 1 for k, v in state.items() if k.startswith("model.diffusion_model.")}
    save_file(state, single, metadata={"format": "pt"})
    monkeypatch.setitem(open_model.FILE_PRESETS, "tiny", lambda: CONFIG)
    bias = load_pipeline(tiny_folder).unet.conv_in.bias
    for flag, added in (("--ema", 1), ("--no-ema", 0)):
        options = ("--preset", "tiny", "--tokenizer", tiny_folder / "tokenizer", flag, "--out", f"folder{flag}")
        assert cli("export", "--weights", single, *options)[0] == 0
        assert torch.equal(load_diffusers(tmp_path / f"folder{flag}").unet.conv_in.bias, bias + added)


def test_refusals(cli, single, tmp_path, tiny_folder):  # noqa: F811
    before = single.read_bytes()
    export = ("export", "--format", "compvis", "--weights", tiny_folder, "--out")
    assert_refused(cli(*export, single), "there already", "--overwrite")
    assert_refused(cli(*export, "model.ckpt"), "ends in .safetensors")
    assert_refused(cli(*export, "folder/model.safetensors"), "there is no folder")
    assert single.read_bytes() == before
    assert cli(*export, single, "--overwrite")[0] == 0 and single.read_bytes() == before

    export = ("export", "--out", "out", "--weights")
    assert_refused(cli(*export, single), "neither settings nor words", "sd_v1")
    tokenizer = ("--tokenizer", tiny_folder / "tokenizer")
    assert_refused(cli(*export, single, *tokenizer), "time_embed.0.weight has another shape", "(1280, 320)")
    assert_refused(cli(*export, single, *tokenizer, "--preset", "sd_v9"), "--preset", "sd_v9", "sd_v1_inpainting")
    assert_refused(cli(*export, "ldm-tutor-tests/none"), "ldm-tutor-tests/none", "not to be had", "a network")
    torch.save({"weights": [1]}, tmp_path / "x.ckpt")
    assert_refused(cli(*export, tmp_path / "x.ckpt", *tokenizer), "x.ckpt", "no tensors with names")
    shutil.copy(single, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(before[:5000])
    assert_refused(cli(*export, tmp_path / "cut.safetensors", *tokenizer), "cut.safetensors", "cut off")
    assert not (tmp_path / "out").exists()
