"""`ldm-tutor export` with the paper's models: BERT's words, classes, nothing; what has no form elsewhere is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from test_compvis import CLASS, PLAIN, network
from test_export import assert_refused, cli  # noqa: F401  (a fixture)

from ldm_tutor import presets
from ldm_tutor.config import AutoencoderConfig, BertEncoderConfig, ScheduleConfig, UNetConfig
from ldm_tutor.presets import PAPER_MODELS, PaperModel
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.weights.compvis import load_compvis, save_compvis

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "##s"]
BERT = PaperModel(  # text2img_1p4b in small: factor 8, 77 tokens
    name="bert",
    picture_size=64,
    autoencoder=AutoencoderConfig(channels=8, channel_mult=(1, 1, 1, 2), num_res_blocks=1, norm_groups=4,
                                  scale_factor=0.4),
    unet=UNetConfig(channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0,), num_heads=2,
                    context_dim=12, norm_groups=8),
    condition=BertEncoderConfig(vocab_size=30, width=12, num_layers=2, num_heads=2, head_channels=4),
    schedule=ScheduleConfig(),
)  # fmt: skip
SMALL = {"text2img_1p4b": BERT, "cin256": CLASS, "celebahq": PLAIN}


@pytest.fixture
def small(monkeypatch):
    for name, model in SMALL.items():
        monkeypatch.setitem(presets.PAPER_MODELS, name, lambda model=model: model)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each model, with random weights."""
    root = tmp_path_factory.mktemp("files")
    for name, model in SMALL.items():
        networks = {"unet": network(model.unet), "autoencoder": network(model.autoencoder), "condition": None}
        if model.condition is not None:
            networks["condition"] = network(model.condition)
        save_compvis(root / f"{name}.safetensors", **networks, schedule=model.schedule)
    (root / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return root


@torch.no_grad()
def test_diffusers_draws_the_same_from_bert_s_words(cli, small, files, tmp_path):  # noqa: F811
    diffusers = pytest.importorskip("diffusers")
    source = files / "text2img_1p4b.safetensors"
    more = ("--preset", "text2img_1p4b", "--tokenizer", files)
    code, out, err = cli("export", "--weights", source, *more, "--out", "folder")
    assert (code, err) == (0, "") and out.startswith("folder: text2img_1p4b.safetensors as a folder of diffusers, ")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert type(theirs).__name__ == "LDMTextToImagePipeline"
    theirs.set_progress_bar_config(disable=True)

    parts = load_compvis(source, BERT)
    rows = theirs.tokenizer(["a red cats", ""], padding="max_length", max_length=77)["input_ids"]
    assert rows[0][:7] == [2, 5, 6, 7, 8, 3, 0] and rows[1][:3] == [2, 3, 0]  # [CLS] a red cat ##s [SEP] [PAD]
    context, empty = parts.condition(torch.tensor(rows)).split(1)
    noise = PictureNoise([4]).initial((4, 8, 8))
    denoiser = Guided(parts.unet, context, empty, 3.0)
    *_, last = sample(denoiser, noise, NoiseSchedule(parts.schedule), num_steps=4)
    ours = (parts.autoencoder.to_pictures(last.latents) + 1) / 2
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
    pictures = theirs(["a red cats"], latents=noise, **settings).images
    assert pictures.shape == (1, 3, 64, 64) and pictures.std() > 0.05
    assert (pictures - ours).abs().max() < 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_each_as_one_file_again(cli, small, files, tmp_path, name):  # noqa: F811
    export = ("export", "--format", "compvis", "--preset", name, "--weights", files / f"{name}.safetensors")
    code, out, err = cli(*export, "--out", "again.safetensors")
    assert (code, err) == (0, "") and f"{name}.safetensors as one file, float32" in out
    one, other = load_file(files / f"{name}.safetensors"), load_file(tmp_path / "again.safetensors")
    assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)
    assert_refused(cli(*export, "--out", "again.safetensors"), "there already")
    assert cli(*export, "--out", "half.safetensors", "--dtype", "float16")[0] == 0
    half = load_file(tmp_path / "half.safetensors")
    assert {value.dtype for key, value in half.items() if key.startswith("model.")} == {torch.float16}


def test_the_scale_of_the_latents_is_in_the_file(files):
    """A preset cannot know a scale that was measured in training; the file says it."""
    other = dataclasses.replace(BERT, autoencoder=dataclasses.replace(BERT.autoencoder, scale_factor=1.0))
    parts = load_compvis(files / "text2img_1p4b.safetensors", other)
    assert parts.autoencoder.config.scale_factor == pytest.approx(0.4)


def test_models_without_a_form_elsewhere_are_refused(cli, small, files, tmp_path):  # noqa: F811
    for name, told in (("cin256", "ClassEncoder"), ("celebahq", "none")):
        done = cli("export", "--preset", name, "--weights", files / f"{name}.safetensors", "--out", "folder")
        assert_refused(done, f"{name}: diffusers has no pipeline", told, "--format compvis")
    for name in set(PAPER_MODELS) - set(SMALL):  # at their real size, refused before a file is opened
        done = cli("export", "--preset", name, "--weights", files / "vocab.txt", "--out", "folder")
        assert_refused(done, f"{name}: diffusers has no pipeline", "factor 8")
    assert not (tmp_path / "folder").exists()


def test_what_is_missing_is_named(cli, small, files, tmp_path):  # noqa: F811
    export = ("export", "--preset", "text2img_1p4b", "--out", "folder")
    single = ("--weights", files / "text2img_1p4b.safetensors")
    assert_refused(cli(*export), "--weights", "one file")
    assert_refused(cli(*export, "--weights", "nowhere.ckpt"), "nowhere.ckpt", "one file")
    assert_refused(cli(*export, *single), "--tokenizer", "vocab.txt")
    assert_refused(cli(*export, *single, "--tokenizer", tmp_path), "vocab.txt", "no vocabulary")
    (tmp_path / "vocab.txt").write_text("a\nred\n")
    assert_refused(cli(*export, *single, "--tokenizer", tmp_path), "not the vocabulary", "2 words", "[CLS]")
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, *map(str, range(30))]))
    assert_refused(cli(*export, *single, "--tokenizer", tmp_path / "vocab.txt"), "39 words", "at most 30")
    wrong = ("--weights", files / "cin256.safetensors", "--tokenizer", files)
    assert_refused(cli(*export, *wrong), "cin256.safetensors")
    assert not (tmp_path / "folder").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("1")
    assert_refused(cli(*export[:-1], "full", *single, "--tokenizer", files), "not empty")


def test_the_folder_says_what_it_is(cli, small, files, tmp_path):  # noqa: F811
    more = ("--weights", files / "text2img_1p4b.safetensors", "--tokenizer", files / "vocab.txt", "--out", "folder")
    assert cli("export", "--preset", "text2img_1p4b", *more)[0] == 0
    read = lambda *names: json.loads(tmp_path.joinpath("folder", *names).read_text())  # noqa: E731
    assert read("model_index.json")["bert"] == ["latent_diffusion", "LDMBertModel"]
    assert read("vqvae", "config.json")["scaling_factor"] == pytest.approx(0.4)
    assert read("unet", "config.json")["sample_size"] == 8
    assert read("scheduler", "scheduler_config.json")["steps_offset"] == 1
    (tmp_path / "folder" / "model_index.json").unlink()
    assert_refused(cli("export", "--preset", "text2img_1p4b", *more, "--overwrite"), "something else")
