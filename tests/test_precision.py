"""`ldm-tutor draw --precision`: what U-Net and text encoder compute with, and what comes out all the same."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_open_model import cli, pipe, places  # noqa: F401  (fixtures)
from tiny import save_folder

from ldm_tutor import open_model
from ldm_tutor.attention_maps.plan import Change
from ldm_tutor.errors import ConfigError
from ldm_tutor.open_model import FULL_SIZE, drawing_dtype, open_pipeline
from ldm_tutor.presets import text2img_1p4b
from ldm_tutor.sampling.guidance import Guided

PROMPTS, SEEDS = ["a large red cat on grass"], [3]
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_what_auto_is(monkeypatch, has_bfloat16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)
    half = torch.bfloat16 if has_bfloat16 else torch.float16
    assert drawing_dtype("auto", CUDA, FULL_SIZE) == half
    for device, size in ((CUDA, FULL_SIZE - 1), (CPU, FULL_SIZE), (MPS, FULL_SIZE)):
        assert drawing_dtype("auto", device, size) == torch.float32
    for name in ("float32", "bfloat16", "float16"):
        assert drawing_dtype(name, CUDA, 1) == getattr(torch, name)
    assert drawing_dtype("bfloat16", CPU, 1) == torch.bfloat16


def test_what_is_of_full_size():
    from ldm_tutor.config import scenes, sd_v1
    from ldm_tutor.models.unet import UNet

    with torch.device("meta"):
        unets = [UNet(make().unet) for make in (scenes, sd_v1, text2img_1p4b)]
    sizes = [sum(each.numel() for each in unet.parameters()) for unet in unets]
    assert sizes[0] < FULL_SIZE / 5 and min(sizes[1:]) > 5 * FULL_SIZE


def test_what_cannot_be(folder):
    with pytest.raises(ConfigError, match=r"--precision.*float16 slowly.*'float16'.*bfloat16"):
        open_pipeline(folder, precision="float16")
    with pytest.raises(ConfigError, match=r"--precision.*'half'.*auto"):
        open_pipeline(folder, precision="half")


@pytest.mark.parametrize("what", ["ours", "folder"])
def test_bfloat16_draws_nearly_the_same(folder, places, what):  # noqa: F811
    place = folder if what == "ours" else places / what
    plain, half = (open_pipeline(place, precision=name) for name in ("auto", "bfloat16"))
    assert (plain.precision, half.precision) == (torch.float32, torch.bfloat16)
    assert {each.dtype for each in half.text_encoder.parameters()} == {torch.bfloat16}
    for name, value in half.autoencoder.state_dict().items():
        assert torch.equal(value, plain.autoencoder.state_dict()[name]), name
    settings = {"num_steps": 4, "sampler": "ddim", "guidance": 2.0}
    one, other = (pipeline.draw(PROMPTS, SEEDS, **settings) for pipeline in (plain, half))
    assert other.dtype == torch.float32 and one.std() > 0.05
    assert 0 < (one - other).abs().mean() < 0.05
    states = list(half.steps(PROMPTS, SEEDS, num_steps=2))
    assert {value.dtype for state in states for value in (state.latents, state.eps)} == {torch.float32}
    again = half.redraw(one, PROMPTS, SEEDS, num_steps=2)
    assert again.dtype == torch.float32 and again.isfinite().all()


def test_edits_in_bfloat16_and_no_inversion(folder):
    half = open_pipeline(folder, precision="bfloat16")
    change = Change(source="a large red cat on grass", target="a large blue cat on grass", seed=3)
    pictures = half.edit(change, num_steps=2)
    assert pictures.dtype == torch.float32 and pictures.isfinite().all()
    with pytest.raises(ConfigError, match=r"Pipeline\.invert.*bfloat16.*float32"):
        half.invert(pictures[:1], "a cat", num_steps=2)


def test_the_noise_of_a_half_network_is_guided_in_float32():
    seen = []

    def unet(latents, t, context):
        seen.append((latents.dtype, context.dtype))
        return latents

    context = torch.ones(1, 2, 3, dtype=torch.float16)
    eps = Guided(unet, context, torch.zeros(1, 2, 3), 1.5)(torch.randn(1, 4, 2, 2), 5, 0)
    assert eps.dtype == torch.float32 and seen == [(torch.float16, torch.float16)]


# ---------------------------------------------------------------- ldm-tutor draw

FAST = ("--steps", 2, "--num", 1, "--seed", 5)


def test_draw_takes_it(cli, folder, places, tmp_path):  # noqa: F811
    made = {}
    for name, place in (("ours", folder), ("folder", places / "folder")):
        for precision in ("none", "auto", "float32", "bfloat16"):
            more = () if precision == "none" else ("--precision", precision)
            done = cli("draw", "a red cat", *FAST, *more, "--weights", place, "--out", "one.png")
            assert done[0] == 0, done
            picture = Image.open(tmp_path / "one.png")
            made[name, precision] = np.asarray(picture, int)
            assert picture.text["Comment"].endswith("negative ''" + ", bfloat16" * (precision == "bfloat16"))
        same, other = made[name, "none"], made[name, "bfloat16"]
        assert all((made[name, precision] == same).all() for precision in ("auto", "float32"))
        assert 0 < np.abs(other - same).mean() < 10
    (tmp_path / "one.png").rename(tmp_path / "from.png")
    done = cli("draw", "a cat", "--from", "from.png", *FAST, "--precision", "bfloat16", "--weights", folder)
    assert done[0] == 0 and Image.open(tmp_path / "picture.png").text["Comment"].endswith(", bfloat16"), done


def test_auto_never_halves_a_model_on_a_cpu_even_a_large_one(monkeypatch, places):  # noqa: F811
    monkeypatch.setattr(open_model, "FULL_SIZE", 1)
    assert open_pipeline(places / "folder", precision="auto").precision == torch.float32


def test_draw_refuses_what_cannot_be(cli, folder, places, tmp_path):  # noqa: F811
    for place in (folder, places / "folder"):
        code, out, err = cli("draw", "a cat", *FAST, "--device", "cpu", "--precision", "float16", "--weights", place)
        assert (code, out) == (1, "") and "--precision" in err and "bfloat16" in err and "Traceback" not in err
    assert cli("draw", "a cat", *FAST, "--precision", "half")[0] == 2
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    for option in (("--boxes", "cat 0 0 1 1"), ("--inpaint", "white.png", "white.png"), ("--upscale", "white.png")):
        code, _, err = cli("draw", "a cat", *option, *FAST, "--precision", "bfloat16", "--weights", folder)
        assert code == 2 and option[0] in err and "float32" in err and "--precision" in err, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["white.png"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_on_a_gpu(folder, precision):
    plain, half = (open_pipeline(folder, device="cuda", precision=name) for name in ("auto", precision))
    assert plain.precision == torch.float32 and half.precision == getattr(torch, precision)
    settings = {"num_steps": 4, "sampler": "ddim", "guidance": 2.0}
    one, other = (pipeline.draw(PROMPTS, SEEDS, **settings) for pipeline in (plain, half))
    assert other.dtype == torch.float32 and 0 < (one - other).abs().mean() < 0.05
