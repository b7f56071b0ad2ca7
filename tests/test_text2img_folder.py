"""The paper's own text-to-picture model in diffusers' folder: opened by us it draws what diffusers draws with it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import assert_refused, cli  # noqa: F401  (a fixture)

from ldm_tutor.config import FOREIGN_DRAWING
from ldm_tutor.errors import ConfigError, PromptError, WeightsError
from ldm_tutor.open_model import FILE_PRESETS, open_pipeline
from ldm_tutor.pipeline import BertPipeline
from ldm_tutor.weights.compvis import CompvisParts
from ldm_tutor.weights.sources import is_foreign, open_model
from ldm_tutor.weights.text2img_folder import Text2ImgParts, export_text2img, load_text2img

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "##s", "x\u2028y", "night", "at"]
PROMPTS, SEEDS, TOLERANCE = ["a red cats", "a cat at night"], [4, 9], 1e-4


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tiny LDMTextToImagePipeline of diffusers' own classes, with random weights that show in the picture."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=12,
        )  # fmt: skip
        vqvae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 16), norm_num_groups=4, scaling_factor=0.4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        bert = LDMBertModel(
            LDMBertConfig(vocab_size=30, d_model=12, encoder_layers=2, encoder_ffn_dim=48, encoder_attention_heads=2,
                          head_dim=4)
        )  # fmt: skip
        for part in (unet, vqvae, bert):
            for weight in part.parameters():
                if weight.dim() > 1:
                    weight.data.normal_(std=0.6 / weight[0].numel() ** 0.5)
        bert.model.embed_tokens.weight.data.normal_()
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    words = BertTokenizer.from_pretrained(folder)
    pipe = diffusers.LDMTextToImagePipeline(vqvae, bert.eval(), words, unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def published(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "ldm"
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "ldm")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@torch.no_grad()
def test_one_call_of_each_part_is_theirs(theirs, published):
    parts = load_text2img(published)
    rows = theirs.tokenizer([*PROMPTS, ""], padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(torch.cat([parts.tokenizer(PROMPTS), parts.tokenizer.empty(1)]), rows)
    context = parts.text_encoder(rows)
    assert (context - theirs.bert(rows)[0]).abs().max() < TOLERANCE
    assert (context[0] - context[2]).abs().max() > 0.1
    x, t = torch.randn(3, 4, 8, 8), torch.full((3,), 500)
    wanted = theirs.unet(x, t, encoder_hidden_states=context).sample
    assert wanted.std() > 0.1 and (parts.unet(x, t.float(), context) - wanted).abs().max() < TOLERANCE
    assert not any(part.training for part in (parts.unet, parts.autoencoder, parts.text_encoder))


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_whole_picture_is_theirs(theirs, published, guidance):
    ours = open_pipeline(published)
    assert isinstance(ours, BertPipeline) and ours.drawing == FOREIGN_DRAWING and ours.config.name == "ldm"
    assert ours.config.picture_size == 64 and ours.config.latent_shape == (4, 8, 8)
    settings = {"num_inference_steps": 5, "guidance_scale": guidance, "output_type": "pt"}
    wanted = theirs(PROMPTS, latents=ours.noise(SEEDS), **settings).images
    pictures = ours.draw(PROMPTS, SEEDS, num_steps=5, guidance=guidance, sampler="ddim")
    assert wanted.shape == (2, 3, 64, 64) and wanted.std() > 0.05 and (wanted[0] - wanted[1]).abs().max() > 0.1
    assert ((pictures + 1) / 2 - wanted).abs().max() < TOLERANCE
    assert torch.equal(ours.draw(PROMPTS[1:], SEEDS[1:], num_steps=2).isfinite().all(), torch.tensor(True))


def test_in_bfloat16_nearly_the_same(published):
    plain, half = (open_pipeline(published, precision=name) for name in ("auto", "bfloat16"))
    assert (plain.precision, half.precision) == (torch.float32, torch.bfloat16)
    one, other = (pipeline.draw(PROMPTS, SEEDS, num_steps=3, guidance=2.0) for pipeline in (plain, half))
    assert other.dtype == torch.float32 and 0 < (one - other).abs().mean() < 0.05


def test_what_we_write_we_read(published, tmp_path):
    parts = load_text2img(published)
    networks = {"unet": parts.unet, "autoencoder": parts.autoencoder, "condition": parts.text_encoder}
    whole = CompvisParts(**networks, schedule=parts.schedule, picture_size=parts.picture_size)
    back = open_model(export_text2img(tmp_path / "again", whole, parts.tokenizer.words))
    assert isinstance(back, Text2ImgParts) and is_foreign(tmp_path / "again")
    for name in ("unet", "autoencoder", "text_encoder"):
        one, other = getattr(parts, name), getattr(back, name)
        assert one.config == other.config
        one, other = one.state_dict(), other.state_dict()
        assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)
    assert back.tokenizer.words == parts.tokenizer.words == tuple(WORDS)
    assert (back.schedule, back.picture_size) == (parts.schedule, 64)


def test_words_in_either_form_of_file(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "old")
    saved = {path.name for path in (folder / "tokenizer").iterdir()}
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    assert load_text2img(folder).tokenizer.words == tuple(WORDS) and saved & {"tokenizer.json", "vocab.txt"}


def test_a_name_on_the_hub_gets_its_words_too():
    from fnmatch import fnmatch

    from ldm_tutor.weights.hub import WANTED

    files = ("model_index.json", "tokenizer/vocab.txt", "bert/model.safetensors", "bert/config.json",
             "vqvae/diffusion_pytorch_model.safetensors")  # fmt: skip
    assert all(any(fnmatch(file, pattern) for pattern in WANTED) for file in files)
    assert not any(fnmatch("bert/pytorch_model.bin", pattern) for pattern in WANTED)


# ---------------------------------------------------------------- ldm-tutor


def test_draw_and_export_open_it(cli, published, tmp_path):  # noqa: F811
    settings = ("--steps", 3, "--num", 2, "--seed", 4, "--sampler", "ddim", "--scale", 1)
    done = cli("draw", "a red cats", *settings, "--weights", published)
    assert done[0] == 0 and done[2] == "" and done[1].startswith("picture.png: 2 pictures, seeds 4 to 5"), done
    drawn = np.asarray(Image.open(tmp_path / "picture.png"), int)[:64, :64]
    wanted = open_pipeline(published).draw(["a red cats"], [4], num_steps=3, sampler="ddim")[0].permute(1, 2, 0)
    assert np.abs(drawn - ((wanted + 1) * 127.5).round().numpy()).max() <= 1 and drawn.std() > 5
    again = ("--steps", 2, "--num", 1, "--weights", published, "--out", "again.png")
    done = cli("draw", "a cat", "--from", "picture.png", *again)
    assert done[0] == 0, done
    assert_refused(cli("draw", "--boxes", "cat 0 0 1 1", "--weights", published), "--boxes", "the course's own model")
    assert cli("export", "--weights", published, "--out", "again")[0] == 0
    assert load_text2img(tmp_path / "again").tokenizer.words == tuple(WORDS)
    done = cli("export", "--format", "compvis", "--weights", published, "--out", "one.safetensors")
    assert done[0] == 0 and (tmp_path / "one.safetensors").stat().st_size > 100_000


def test_a_single_file_of_it(cli, published, tmp_path, monkeypatch):  # noqa: F811
    pipe = open_pipeline(published)
    monkeypatch.setitem(FILE_PRESETS, "text2img_1p4b", lambda: pipe.config)
    assert cli("export", "--format", "compvis", "--weights", published, "--out", "one.safetensors")[0] == 0
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    for place in (published, published / "tokenizer", tmp_path / "vocab.txt"):
        again = open_pipeline(tmp_path / "one.safetensors", preset="text2img_1p4b", tokenizer=place)
        assert isinstance(again, BertPipeline) and again.tokenizer.words == tuple(WORDS)
        one, other = (each.draw(PROMPTS, SEEDS, num_steps=3, guidance=2.0) for each in (pipe, again))
        assert torch.equal(one, other)
    file = ("draw", "a red cats", "--steps", 2, "--num", 1, "--weights", "one.safetensors")
    assert cli(*file, "--preset", "text2img_1p4b", "--tokenizer", "vocab.txt")[0] == 0
    assert_refused(cli(*file, "--preset", "text2img_1p4b"), "one.safetensors", "neither settings nor words")
    assert_refused(
        cli(*file, "--preset", "text2img_1p4b", "--tokenizer", "no.txt"), "no.txt", "no vocabulary to be read"
    )
    assert_refused(cli(*file, "--tokenizer", "vocab.txt"), "one.safetensors")


def test_sentences_that_cannot_be_read(published):
    pipe = open_pipeline(published)
    with pytest.raises(PromptError, match="an empty sentence"):
        pipe.draw([" "], [0])
    with pytest.raises(PromptError, match="80 tokens and there is room for 75"):
        pipe.draw(["a " * 80], [0])


# ---------------------------------------------------------------- what is wrong with a folder


@pytest.mark.parametrize(
    "file, values, words",
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, ("_class_name", "LDMTextToImagePipeline")),
        ("model_index.json", {"bert": ["transformers", "BertModel"]}, ("bert", "'BertModel'", "LDMBertModel")),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, ("vqvae", "'VQModel'", "AutoencoderKL")),
        ("model_index.json", {"tokenizer": ["transformers", "CLIPTokenizer"]}, ("CLIPTokenizer", "BertTokenizer")),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}, ("UNet2DModel", "UNet2DConditionModel")),
        ("model_index.json", {"vqvae": [None, None]}, ("parts are missing", "vqvae")),
        ("bert/config.json", {"activation_function": "relu"}, ("activation_function", "relu", "gelu")),
        ("bert/config.json", {"encoder_ffn_dim": 24}, ("encoder_ffn_dim", "24", "48")),
        ("bert/config.json", {"d_model": 16, "encoder_ffn_dim": 64}, ("another shape", "(30, 12)", "(30, 16)")),
        ("bert/config.json", {"encoder_layers": 3}, ("model.layers.2", "is missing")),
        ("bert/config.json", {"max_position_embeddings": 60}, ("embed_positions", "(77, 12)", "(60, 12)")),
        ("tokenizer/tokenizer_config.json", {"do_lower_case": False}, ("do_lower_case", "uncased")),
        ("unet/config.json", {"cross_attention_dim": 16}, ("attn2.to_k.weight", "(16, 12)", "(16, 16)")),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, ("prediction_type",)),
    ],
    ids=str,
)
def test_another_kind_of_model_is_refused(folder, file, values, words):
    change(folder / file, **values)
    with pytest.raises(WeightsError) as error:
        open_model(folder)
    for word in (file.split("/")[0], *words):
        assert word in str(error.value), error.value


def test_missing_parts_and_words(folder):
    weights = folder / "bert" / "model.safetensors"
    weights.rename(folder / "bert" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file.*pytorch_model\.bin.*pickle"):
        open_model(folder)
    (folder / "bert" / "pytorch_model.bin").rename(weights)
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(WeightsError, match=r"vocab\.txt: no vocabulary"):
        open_model(folder)
    (folder / "tokenizer" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 2}}}')
    with pytest.raises(WeightsError, match=r"tokenizer\.json: no vocabulary of BERT's form"):
        open_model(folder)
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join([*WORDS, *map(str, range(30))]))
    with pytest.raises(WeightsError, match=r"vocab\.txt.*42 words.*at most 30"):
        open_model(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(WeightsError, match=r"unet/config\.json: cannot be read"):
        open_model(folder)
    change(folder / "model_index.json", bert=None)
    with pytest.raises(WeightsError, match=r"model_index\.json: parts are missing.*bert"):
        open_model(folder)


def test_a_folder_without_its_size_is_refused(folder):
    change(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(ConfigError, match="does not say how large.*sample_size"):
        open_pipeline(folder)
