"""`ldm-tutor export` and `ldm-tutor models`: what they write is right, and what they refuse is not touched."""

import json
import shutil

import pytest
import torch

from ldm_tutor.cli import main, models
from ldm_tutor.config import sd_v1
from ldm_tutor.models.unet import UNet
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.presets import PAPER_MODELS
from ldm_tutor.weights.files import save_model
from ldm_tutor.weights.shipped import shipped_folder

PROMPTS, SEEDS, TOLERANCE = ["a large red cat on grass"], [3], 1e-3


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in this process, in an empty folder; give its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main([str(arg) for arg in args])
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return run


def assert_refused(done, *words):
    code, out, err = done
    assert (code, out) == (1, ""), done
    assert "Traceback" not in err
    for word in words:
        assert str(word) in err, err


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("which", ["tiny", "shipped"])
@torch.no_grad()
def test_diffusers_draws_the_same_picture(cli, tmp_path, tiny_folder, which):
    diffusers = pytest.importorskip("diffusers")
    source = tiny_folder if which == "tiny" else shipped_folder()
    code, out, err = cli("export", "--format", "diffusers", "--out", "exported", "--weights", source)
    assert (code, err) == (0, "")
    assert out.startswith(f"exported: {source.name} as a folder of diffusers, float32, ")
    assert "StableDiffusionPipeline.from_pretrained('exported')" in out
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "exported", local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    ours = load_pipeline(source)
    rows = theirs.tokenizer(PROMPTS, padding="max_length", max_length=ours.tokenizer.context_length, truncation=True)
    assert rows["input_ids"] == ours.tokenizer(PROMPTS).tolist()
    drawn = (ours.draw(PROMPTS, SEEDS, num_steps=5, sampler="ddim", guidance=4.0) + 1) / 2
    settings = {"latents": ours.noise(SEEDS), "num_inference_steps": 5, "guidance_scale": 4.0}
    pictures = theirs(PROMPTS, **settings, output_type="pt").images
    assert pictures.std() > 0.05
    assert (pictures - drawn).abs().max() < TOLERANCE


def test_half_the_size_on_request(cli, tmp_path, tiny_folder):
    sizes = []
    for dtype in ("float32", "bfloat16"):
        assert cli("export", "--out", dtype, "--dtype", dtype, "--weights", tiny_folder)[0] == 0
        sizes.append((tmp_path / dtype / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size)
    assert 0.4 < sizes[1] / sizes[0] < 0.7


def test_nothing_is_overwritten_unasked(cli, tmp_path, tiny_folder):
    export = ("export", "--weights", tiny_folder, "--out", "there")
    assert cli(*export)[0] == 0
    index = tmp_path / "there" / "model_index.json"
    index.write_text("{}")
    assert_refused(cli(*export), "there", "not empty", "--overwrite")
    assert index.read_text() == "{}"
    assert cli(*export, "--overwrite")[0] == 0
    assert "StableDiffusionPipeline" in index.read_text()

    index.unlink()
    before = listing(tmp_path)
    assert_refused(cli(*export, "--overwrite"), "something else", "model_index.json")
    (tmp_path / "file").write_text("mine")
    assert_refused(cli(*export[:-1], "file"), "this is a file")
    assert_refused(cli("export", "--weights", tiny_folder, "--out", tiny_folder, "--overwrite"), "the model itself")
    assert listing(tmp_path) == sorted([*before, "file"])


def test_what_cannot_be_exported_leaves_no_folder(cli, tmp_path, tiny_folder):
    own = shutil.copytree(tiny_folder, tmp_path / "own")
    assert_refused(cli("export", "--weights", "nowhere", "--out", "out"), "nowhere", "no such")
    shutil.copy(own / "clip.safetensors", own / "unet.safetensors")
    assert_refused(cli("export", "--weights", own, "--out", "out"), "unet.safetensors", "another kind", "clip", "unet")
    unet = UNet(load_pipeline(tiny_folder).unet.config)
    wide = UNet(type(unet.config)(**{**unet.config.__dict__, "context_dim": 24}))
    save_model(own / "unet.safetensors", wide, kind="unet", config=wide.config)
    assert_refused(cli("export", "--weights", own, "--out", "out"), "do not fit together", "24", "16")
    (own / "unet.safetensors").unlink()
    assert_refused(cli("export", "--weights", own, "--out", "out"), "unet.safetensors", "no such file")
    assert not (tmp_path / "out").exists()
    for option in (("--preset", "tiny"), ("--tokenizer", "out"), ("--no-ema",)):
        code, _, err = cli("export", "--weights", tiny_folder, "--out", "out", *option)
        assert code == 2 and "FILE.ckpt" in err and option[0].replace("no-", "") in err, err
    assert not (tmp_path / "out").exists()
    assert cli("export", "--out", "out", "--format", "onnx")[0] == 2
    assert cli("export")[0] == 2


def test_help(cli):
    code, out, _ = cli("export", "--help")
    assert code == 0
    for word in ("--out", "--format", "--weights", "--dtype", "--overwrite", "Example: ldm-tutor export"):
        assert word in out


def test_every_paper_model_is_listed_with_its_figures(cli, tmp_path):
    code, out, err = cli("models", "--json", "models.json")
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "models.json").read_text(encoding="utf-8"))
    assert set(report["paper_models"]) == {*PAPER_MODELS, "sd_v1_inpainting"}
    for name, each in (report["models"] | report["paper_models"]).items():
        assert sum(each["parameters"].values()) == each["parameters_total"]
        assert each["bytes_float32"] == 2 * each["bytes_bfloat16"] == 4 * each["parameters_total"]
        assert each["unet_multiply_adds"] > 0
        assert name in out and f"{each['parameters']['unet']:,}" in out
    large = report["paper_models"]["text2img_1p4b"]
    assert large["parameters"] == {
        "autoencoder": 83_653_863, "condition encoder": 542_895_360, "unet": 872_300_484
    }  # fmt: skip
    assert report["paper_models"]["celebahq"]["context_tokens"] == 0


def test_multiply_adds_of_stable_diffusion():
    config = sd_v1()
    one = models.multiply_adds(config.unet, (64, 64), 77)
    assert models.multiply_adds(config.unet, (64, 64), 77, batch=2) == 2 * one
    assert 2 * one == pytest.approx(0.8e12, rel=0.01)  # a guided step
    assert 4 * one / 1e9 == pytest.approx(1607, abs=0.5)  # the same in GFLOP


@pytest.mark.parametrize("name", ["sd_v1", "churches256"])
def test_multiply_adds_are_those_of_torch_s_own_counter_on_empty_tensors(name):
    """`work_of` looks at the CPU's fused attention; on the meta device the same network runs other operations."""
    from torch.utils.flop_counter import FlopCounterMode

    model = {"sd_v1": sd_v1, **PAPER_MODELS}[name]()
    config, side = model.unet, model.latent_shape[1:]
    with torch.device("meta"):
        unet, latents = UNet(config), torch.empty(1, config.in_channels, *side)
        context = None if config.context_dim is None else torch.empty(1, 77, config.context_dim)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet(latents, torch.empty(1), context)
    assert 2 * models.multiply_adds(config, side, 77) == counter.get_total_flops() > 1e10


def test_multiply_adds_of_a_convolution_by_hand():
    """What one more input channel costs: a 3x3 kernel per output channel and position."""
    config = sd_v1().unet
    more = type(config)(in_channels=config.in_channels + 1)
    difference = models.multiply_adds(more, (64, 64), 77) - models.multiply_adds(config, (64, 64), 77)
    assert difference == 9 * config.channels * 64 * 64
