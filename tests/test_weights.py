"""Weights: files are read strictly, and an old file survives whatever happens to the new one."""

import dataclasses
import errno
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_tutor.config import (
    AutoencoderConfig,
    ClipConfig,
    ImageEncoderConfig,
    JudgeConfig,
    TextEncoderConfig,
    UNetConfig,
)
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.unet import UNet
from ldm_tutor.weights import files, shipped
from ldm_tutor.weights.files import check_sums, load_model, read_header, save_model, sha256_of, write_sums

UNET = UNetConfig(
    channels=16, channel_mult=(1,), num_res_blocks=1, attention_levels=(0,), num_heads=2, context_dim=8, norm_groups=4
)
AUTOENCODER = AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4)
CLIP = ClipConfig(
    text=TextEncoderConfig(vocab_size=20, context_length=6, width=16, num_layers=1, num_heads=2, mlp_width=32),
    image=ImageEncoderConfig(picture_size=16, patch_size=8, width=16, num_layers=1, num_heads=2, mlp_width=32),
    embed_dim=12,
)
JUDGE = JudgeConfig(channels=8)
MODELS = {
    "unet": (UNET, lambda: UNet(UNET)),
    "autoencoder": (AUTOENCODER, lambda: Autoencoder(AUTOENCODER)),
    "clip": (CLIP, lambda: Clip(CLIP, end_id=19)),
    "judge": (JUDGE, lambda: Judge(JUDGE)),
}


# ---------------------------------------------------------------- files


@pytest.fixture
def saved(tmp_path):
    """A small U-Net on disk, and the model itself."""
    model = MODELS["unet"][1]()
    return save_model(tmp_path / "unet.safetensors", model, kind="unet", config=UNET, metadata={"steps": 3}), model


def rewrite(path, change_header=None, change_state=None):
    """Write the file again with another header or other tensors."""
    state, header = load_file(path), {**read_header(path)}
    text = json.dumps(change_header(header)) if change_header else json.dumps(header)
    if change_state:
        change_state(state)
    save_file(state, path, metadata={"format": "pt", files.METADATA_KEY: text})
    return path


def message(path, **arguments):
    with pytest.raises(WeightsError) as error:
        load_model(path, **arguments)
    assert str(path) in str(error.value)
    return str(error.value)


def equal(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", MODELS)
def test_save_and_load_give_the_same_model(kind, tmp_path):
    config, build = MODELS[kind]
    model = build()
    path = save_model(tmp_path / "new" / "model.safetensors", model, kind=kind, config=config, metadata={"seed": 7})
    again = load_model(path, kind)
    assert type(again) is type(model) and again.config == config and not again.training
    assert equal(again.state_dict(), model.state_dict())
    assert all(p.requires_grad for p in again.parameters())
    assert load_model(path).config == config
    header = read_header(path)
    assert (header["version"], header["kind"], header["metadata"]["seed"]) == (1, kind, 7)
    assert type(config).from_dict(header["config"]) == config
    assert os.listdir(path.parent) == [path.name]
    if kind == "clip":
        assert again.end_id == 19 == header["metadata"]["end_id"]


def test_the_given_configuration_goes_into_the_file(tmp_path):
    """Training measures the scale of the latents after the model was built."""
    config = dataclasses.replace(AUTOENCODER, scale_factor=0.7)
    path = save_model(tmp_path / "a.safetensors", Autoencoder(AUTOENCODER), kind="autoencoder", config=config)
    assert load_model(path).config.scale_factor == 0.7


def test_half_precision_on_disk(saved, tmp_path):
    path, model = saved
    half = save_model(tmp_path / "half.safetensors", model, kind="unet", config=UNET, dtype=torch.float16)
    assert half.stat().st_size < 0.6 * path.stat().st_size
    want = {name: value.half().float() for name, value in model.state_dict().items()}
    assert equal(load_model(half).state_dict(), want)
    assert load_model(half, dtype=None).conv_in.weight.dtype == torch.float16
    assert load_model(path, dtype=torch.bfloat16).conv_in.weight.dtype == torch.bfloat16


def test_a_loaded_model_does_not_hang_on_its_file(saved):
    path, model = saved
    again = load_model(path)
    with torch.no_grad():
        again.conv_in.weight.zero_()
    assert equal(load_model(path).state_dict(), model.state_dict())


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_others_may_read_the_file(saved):
    assert stat.S_IMODE(saved[0].stat().st_mode) == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("bad, dtype, word", [(float("nan"), None, "not finite"), (float("inf"), None, "not finite"),
                                              (70_000.0, torch.float16, "too large for torch.float16")])  # fmt: skip
def test_numbers_that_are_not_finite_are_never_written(saved, bad, dtype, word):
    path, model = saved
    before = path.read_bytes()
    with torch.no_grad():
        model.conv_out.bias[1] = bad
    with pytest.raises(WeightsError, match=f"not written, conv_out.bias holds .*{word}"):
        save_model(path, model, kind="unet", config=UNET, dtype=dtype)
    assert path.read_bytes() == before


def test_what_does_not_belong_together_is_never_written(tmp_path):
    path, model = tmp_path / "x.safetensors", UNet(UNET)
    with pytest.raises(WeightsError, match="another model.*UNet.*Autoencoder"):
        save_model(path, model, kind="autoencoder", config=AUTOENCODER)
    with pytest.raises(WeightsError, match="not wrapped"):
        save_model(path, torch.nn.Sequential(model), kind="unet", config=UNET)
    with pytest.raises(WeightsError, match=r"config and model differ: conv_in.weight.*\(16, 4, 3, 3\).*\(16, 9,"):
        save_model(path, model, kind="unet", config=dataclasses.replace(UNET, in_channels=9))
    with pytest.raises(ConfigError, match="unknown kind"):
        save_model(path, model, kind="u-net", config=UNET)
    with pytest.raises(ConfigError, match="fits into JSON"):
        save_model(path, model, kind="unet", config=UNET, metadata={"model": model})
    assert not path.exists()


def raising(error):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.mark.parametrize("place", ["fsync", "replace", "save_file"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit()])
def test_the_old_file_survives_a_full_disk_and_a_kill(saved, monkeypatch, place, error):
    path, _ = saved
    before = path.read_bytes()
    monkeypatch.setattr(files if place == "save_file" else os, place, raising(error))
    expected = WeightsError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        save_model(path, UNet(UNET), kind="unet", config=UNET)
    if expected is WeightsError:
        assert all(word in str(caught.value) for word in (str(path), "No space left", "the old file is intact"))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_the_first_file_is_not_called_intact(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(WeightsError, match="No space left") as error:
        save_model(tmp_path / "x.safetensors", UNet(UNET), kind="unet", config=UNET)
    assert "intact" not in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_a_disk_that_really_ends_in_the_middle_of_the_file(saved):
    path, _ = saved
    before = path.read_bytes()
    program = f"""
import resource
from ldm_tutor.config import UNetConfig
from ldm_tutor.errors import WeightsError
from ldm_tutor.models.unet import UNet
from ldm_tutor.weights.files import save_model
config = UNetConfig.from_dict({UNET.to_dict()!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_model({str(path)!r}, UNet(config), kind="unet", config=config)
except WeightsError as error:
    assert "the old file is intact" in str(error), error
else:
    raise SystemExit("written")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_leftovers_of_a_killed_process_go_in_time(saved):
    path, model = saved
    old, fresh = (path.with_name(f".{path.name}.{number}.tmp") for number in (1, 2))
    for each in (old, fresh):
        each.write_bytes(b"part")
    os.utime(old, (0, 0))
    save_model(path, model, kind="unet", config=UNET)
    assert not old.exists() and fresh.exists()


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(WeightsError, match="could not be written"):
        save_model(tmp_path / "x", UNet(UNET), kind="unet", config=UNET)
    assert os.listdir(tmp_path) == ["x"]


def test_a_missing_file_and_a_folder(tmp_path):
    assert "no such file" in message(tmp_path / "x.safetensors")
    assert "a folder" in message(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 7, 100, 5000, -1])
def test_a_truncated_file(saved, keep):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:keep])
    assert "cut off" in message(path)


def test_a_file_that_is_something_else(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("<!DOCTYPE html> not found " * 40)
    assert "no safetensors file" in message(path)


def test_a_safetensors_file_of_another_program(tmp_path):
    save_file({"some.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert "some.weight" in message(tmp_path / "x.safetensors")
    save_file({"some.weight": torch.zeros(3)}, tmp_path / "y.safetensors", metadata={"format": "pt"})
    assert "ldm_tutor.weights.names" in message(tmp_path / "y.safetensors")


class Bomb:
    """Runs a program when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_pickle_is_never_opened(tmp_path, form):
    path, ran = tmp_path / "model.ckpt", tmp_path / "ran"
    if form == "bare":
        path.write_bytes(pickle.dumps(Bomb(ran)))
    else:
        torch.save(Bomb(ran), path, _use_new_zipfile_serialization=form == "zip")
        assert zipfile.is_zipfile(path) == (form == "zip")
    text = message(path)
    assert "pickle" in text and "weights_only=True" in text and "save_model" in text
    assert not ran.exists()


def test_another_kind_than_asked_for(saved):
    path, _ = saved
    assert "'unet'" in message(path, kind="clip")
    with pytest.raises(ConfigError, match="unknown kind"):
        load_model(path, kind="u-net")
    assert "another kind" in message(rewrite(path, lambda header: {**header, "kind": "gan"}))


def test_a_newer_format(saved):
    text = message(rewrite(saved[0], lambda header: {**header, "version": 2}))
    assert "format 2" in text and "format 1" in text and "update" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda header: {name: header[name] for name in ("version", "kind", "metadata")},
        lambda header: {name: header[name] for name in ("kind", "config", "metadata")},
        lambda header: {**header, "version": "one"},
        lambda header: {**header, "kind": ["unet"]},
        lambda header: {**header, "config": {**header["config"], "num_eyes": 2}},
        lambda header: {**header, "config": {**header["config"], "norm_groups": 0}},
        lambda header: {**header, "config": {**header["config"], "channels": "many"}},
        lambda header: 3,
    ],
)
def test_a_broken_header(saved, change):
    message(rewrite(saved[0], change))


def test_a_clip_without_its_end_token(tmp_path):
    path = save_model(tmp_path / "c.safetensors", MODELS["clip"][1](), kind="clip", config=CLIP)
    assert "end_id" in message(rewrite(path, lambda header: {**header, "metadata": {}}))


def test_the_first_difference_is_named_with_both_shapes(saved):
    path, _ = saved
    text = message(rewrite(path, change_state=lambda s: s.update({"conv_in.weight": torch.zeros(16, 9, 3, 3)})))
    assert "conv_in.weight" in text and "(16, 9, 3, 3)" in text and "(16, 4, 3, 3)" in text
    rewrite(path, change_state=lambda s: s.update({"conv_in.weight": torch.zeros(16, 4, 3, 3), "more": torch.zeros(2)}))
    assert "more is in no such model" in message(path)
    rewrite(path, change_state=lambda s: (s.pop("more"), s.pop("conv_out.bias")))
    assert "conv_out.bias is missing" in message(path)


def test_nan_inside(saved):
    path, _ = saved
    rewrite(path, change_state=lambda s: s["norm_out.weight"].fill_(float("nan")))
    assert "norm_out.weight holds numbers that are not finite" in message(path)


# ---------------------------------------------------------------- sums and places


def test_sums_are_those_of_coreutils(saved):
    path, _ = saved
    folder = path.parent
    (folder / "sub").mkdir()
    (folder / "sub" / "log with spaces.csv").write_text("1,2\n")
    sums = write_sums(folder)
    assert check_sums(folder) == ["sub/log with spaces.csv", "unet.safetensors"]
    assert sha256_of(folder / "sub" / "log with spaces.csv") in sums.read_text()
    if sys.platform == "linux":
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", sums.name], cwd=folder, check=True)
    before = sums.read_bytes()
    assert write_sums(folder).read_bytes() == before


def test_sums_name_what_changed(saved):
    path, _ = saved
    folder = path.parent
    (folder / "a.txt").write_text("a")
    write_sums(folder)
    (folder / "a.txt").write_text("b")
    path.unlink()
    with pytest.raises(WeightsError, match=r"a\.txt.*unet\.safetensors \(missing\)"):
        check_sums(folder)
    (folder / files.SUMS_FILE).write_text("abc  a.txt\n")
    with pytest.raises(WeightsError, match="line 1"):
        check_sums(folder)
    (folder / files.SUMS_FILE).unlink()
    with pytest.raises(WeightsError, match="SHA256SUMS"):
        check_sums(folder)
    with pytest.raises(WeightsError, match="no such folder"):
        write_sums(folder / "none")
    with pytest.raises(WeightsError, match="cannot be read"):
        sha256_of(folder / "none")


def test_where_the_shipped_weights_are(monkeypatch, tmp_path):
    monkeypatch.delenv(shipped.ENVIRONMENT_VARIABLE, raising=False)
    assert shipped.shipped_folder() == Path(__file__).resolve().parents[1] / "data" / "weights" / "scenes"
    assert shipped.resolve(tmp_path) == tmp_path
    monkeypatch.setenv(shipped.ENVIRONMENT_VARIABLE, str(tmp_path))
    assert shipped.shipped_folder("small") == tmp_path / "small"
    with pytest.raises(WeightsError, match="git checkout data.weights.*train your own") as error:
        shipped.resolve()
    assert str(tmp_path / "scenes") in str(error.value)
    (tmp_path / "scenes").mkdir()
    assert shipped.resolve() == tmp_path / "scenes"
    with pytest.raises(WeightsError, match="no such file or folder"):
        shipped.resolve(tmp_path / "elsewhere")
