"""A model as a diffusers folder: opened by diffusers it draws the same, read back it is the same."""

import dataclasses
import json
import pickle
import shutil

import pytest
import torch
from tiny import CONFIG, make_pipeline

from ldm_tutor.config import AutoencoderConfig, ScheduleConfig, TextEncoderConfig, UNetConfig, sd_v1
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.unet import UNet
from ldm_tutor.weights import foreign
from ldm_tutor.weights.diffusers_folder import INDEX, export_diffusers, load_diffusers

PROMPTS, SEEDS = ["a large red cat on grass", "two blue dogs"], [3, 8]
TOLERANCE = 1e-4


def parts_of(pipe):
    return {
        "tokenizer": pipe.tokenizer,
        "text_encoder": pipe.text_encoder,
        "unet": pipe.unet,
        "autoencoder": pipe.autoencoder,
        "schedule": pipe.schedule.config,
        "picture_size": pipe.config.picture_size,
    }


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def exported(pipe, tmp_path_factory):
    return export_diffusers(tmp_path_factory.mktemp("exported") / "model", **parts_of(pipe))


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def test_diffusers_opens_it_and_draws_the_same(pipe, exported):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(exported, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    scheduler = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler.items() <= dict(theirs.scheduler.config).items()  # the pipeline repairs what it finds wrong
    assert (scheduler["_class_name"], scheduler["timestep_spacing"]) == ("DDIMScheduler", "leading")
    assert (scheduler["steps_offset"], scheduler["set_alpha_to_one"], scheduler["clip_sample"]) == (1, False, False)
    assert theirs.text_encoder.config.hidden_act == "quick_gelu"

    rows = theirs.tokenizer(PROMPTS, padding="max_length", max_length=32, truncation=True)["input_ids"]
    assert rows == pipe.tokenizer(PROMPTS).tolist()
    context = theirs.text_encoder(torch.tensor(rows)).last_hidden_state
    assert (context - pipe.embed(PROMPTS)).abs().max() / context.abs().max() < 1e-5

    *_, last = pipe.steps(PROMPTS, SEEDS, num_steps=10, guidance=4.0, sampler="ddim")
    arguments = {"latents": pipe.noise(SEEDS), "num_inference_steps": 10, "guidance_scale": 4.0}
    latents = theirs(PROMPTS, **arguments, output_type="latent").images
    assert latents.shape == (2, *CONFIG.latent_shape)
    assert (latents - last.latents).abs().max() / latents.abs().max() < TOLERANCE
    pictures = theirs(PROMPTS, **arguments, output_type="pt").images  # in [0, 1]
    ours = (pipe.decode(last.latents) + 1) / 2
    assert pictures.std() > 0.05
    assert (pictures - ours).abs().max() < TOLERANCE


def test_it_comes_back_as_it_was(pipe, exported):
    parts = load_diffusers(exported)
    for name in ("unet", "autoencoder", "text_encoder"):
        ours, back = getattr(pipe, name), getattr(parts, name)
        assert back.config == ours.config
        assert not back.training
        same_state(ours, back)
    assert (parts.schedule, parts.picture_size) == (pipe.schedule.config, CONFIG.picture_size)
    assert torch.equal(parts.tokenizer(PROMPTS), pipe.tokenizer(PROMPTS))
    assert torch.equal(parts.text_encoder(parts.tokenizer(PROMPTS)), pipe.text_encoder(pipe.tokenizer(PROMPTS)))


def test_what_diffusers_writes_is_read(pipe, exported, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(exported, local_files_only=True)
    theirs.scheduler = diffusers.PNDMScheduler.from_config(theirs.scheduler.config)
    theirs.save_pretrained(tmp_path / "theirs")
    parts = load_diffusers(tmp_path / "theirs")
    for name in ("unet", "autoencoder", "text_encoder"):
        same_state(getattr(pipe, name), getattr(parts, name))
    assert parts.schedule == pipe.schedule.config
    assert torch.equal(parts.tokenizer(PROMPTS), pipe.tokenizer(PROMPTS))
    one_file = tmp_path / "theirs" / "tokenizer" / "tokenizer.json"
    if one_file.exists():  # written by transformers 5, in place of vocab.json and merges.txt
        change(one_file, model={"vocab": {}, "merges": []})
        with pytest.raises(WeightsError, match=r"tokenizer\.json"):
            load_diffusers(tmp_path / "theirs")


def test_half_precision_on_disk(pipe, tmp_path):
    export_diffusers(tmp_path, **parts_of(pipe), dtype=torch.float16)
    assert {p.dtype for p in load_diffusers(tmp_path, dtype=None).unet.parameters()} == {torch.float16}
    wide, half = pipe.unet.conv_in.weight, load_diffusers(tmp_path).unet.conv_in.weight
    assert half.dtype == torch.float32 and torch.equal(half, wide.half().float())


UNETS = {
    "sd_v1": sd_v1().unet,
    "width of heads": UNetConfig(channels=64, head_channels=32, context_dim=24, transformer_depth=2, norm_groups=16),
    "inpainting": dataclasses.replace(CONFIG.unet, in_channels=9),
    "scale and shift": dataclasses.replace(CONFIG.unet, scale_shift_norm=True),
}
AUTOENCODERS = {
    "sd_v1": AutoencoderConfig(),
    "attention": AutoencoderConfig(channel_mult=(1, 1, 2), attention_levels=(2,), latent_channels=16),
    "tiny": CONFIG.autoencoder,
}


@pytest.mark.parametrize("name", UNETS)
def test_unet_settings_go_both_ways(name):
    diffusers = pytest.importorskip("diffusers")
    arguments = foreign.unet_arguments(UNETS[name], 32)
    assert foreign.unet_config(arguments) == UNETS[name]
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**arguments)
    assert foreign.unet_config(dict(theirs.config)) == UNETS[name]  # with every default spelled out


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_settings_go_both_ways(name):
    diffusers = pytest.importorskip("diffusers")
    arguments = foreign.autoencoder_arguments(AUTOENCODERS[name])
    assert foreign.autoencoder_config(arguments) == AUTOENCODERS[name]
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**arguments)
    assert foreign.autoencoder_config(dict(theirs.config)) == AUTOENCODERS[name]


def test_text_and_schedule_settings_go_both_ways():
    text = CONFIG.clip.text
    assert foreign.text_config(foreign.text_arguments(text, start_id=1, end_id=2)) == text
    for kind in ("linear", "scaled_linear", "cosine"):
        schedule = ScheduleConfig(kind=kind, num_steps=500)
        assert foreign.schedule_config(foreign.schedule_arguments(schedule)) == schedule


@pytest.mark.parametrize(
    "file, values, words",
    [
        ("unet/config.json", {"use_linear_projection": True}, ("use_linear_projection", "True")),
        ("unet/config.json", {"act_fn": "gelu"}, ("act_fn", "gelu", "silu")),
        ("unet/config.json", {"norm_eps": 1e-6}, ("norm_eps", "1e-06", "1e-05")),
        ("unet/config.json", {"block_out_channels": [8, 12]}, ("block_out_channels", "[8, 12]")),
        ("unet/config.json", {"down_block_types": ["DownBlock2D", "KDownBlock2D"]}, ("KDownBlock2D",)),
        ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, ("transformer_layers_per_block", "[1, 2]")),
        ("unet/config.json", {"attention_head_dim": [4, 2]}, ("attention_head_dim", "[4, 2]")),
        ("unet/config.json", {"cross_attention_dim": 12}, ("to_k.weight", "(16, 12)", "(16, 16)")),
        ("vae/config.json", {"use_quant_conv": False}, ("use_quant_conv", "False")),
        ("vae/config.json", {"latents_mean": [0.0, 1.0]}, ("latents_mean",)),
        ("vae/config.json", {"block_out_channels": [4, 4, 4]}, ("another shape", "(8,", "(4,")),
        ("vae/config.json", {"norm_num_groups": 3}, ("channels", "norm_groups=3")),
        ("text_encoder/config.json", {"hidden_act": "gelu"}, ("hidden_act", "'gelu'", "quick_gelu")),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, ("prediction_type", "v_prediction")),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, ("beta_schedule", "sigmoid")),
        ("model_index.json", {"unet": [None, None]}, ("parts are missing", "unet")),
    ],
    ids=str,
)
def test_another_architecture_is_refused(folder, file, values, words):
    change(folder / file, **values)
    with pytest.raises(WeightsError) as error:
        load_diffusers(folder)
    assert file.split("/")[0] in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_parts_of_different_models_are_refused(folder, pipe, tmp_path):
    narrow = UNet(dataclasses.replace(CONFIG.unet, context_dim=12))
    other = export_diffusers(tmp_path / "other", **parts_of(pipe) | {"unet": narrow})
    shutil.rmtree(folder / "unet")
    shutil.move(other / "unet", folder / "unet")
    with pytest.raises(WeightsError, match=r"do not fit together.*12.*16"):
        load_diffusers(folder)


def test_missing_broken_and_dangerous_files(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for content, words in ((whole[:-50], "cut off"), (pickle.dumps({"a": 1}), "pickle")):
        weights.write_bytes(content)
        with pytest.raises(WeightsError, match=words) as error:
            load_diffusers(folder)
        assert str(weights) in str(error.value)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(WeightsError, match=r"no such file.*\.bin.*pickle"):
        load_diffusers(folder)
    (folder / INDEX).write_text("[1")
    with pytest.raises(WeightsError, match="no JSON"):
        load_diffusers(folder)
    (folder / INDEX).unlink()
    with pytest.raises(WeightsError, match=r"model_index\.json.*diffusers folder"):
        load_diffusers(folder)


def test_an_unknown_a_missing_and_an_extra_tensor(folder):
    from safetensors.torch import load_file, save_file

    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    cases = (
        (state | {"lora.up": torch.zeros(1)}, "lora.up"),
        (state | {"encoder.down_blocks.9.resnets.0.conv1.weight": torch.zeros(1)}, "in no such model"),
        ({name: value for name, value in state.items() if name != "quant_conv.bias"}, "quant_conv.bias is missing"),
    )
    for changed, words in cases:
        save_file(changed, weights, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=words) as error:
            load_diffusers(folder)
        assert str(weights) in str(error.value)


def test_what_diffusers_cannot_be_is_not_written(pipe, tmp_path):
    for values, words in (({"context_dim": None}, "without a context"), ({"resblock_updown": True}, "change the side")):
        unet = UNet(dataclasses.replace(CONFIG.unet, **values))
        with pytest.raises(ConfigError, match=words):
            export_diffusers(tmp_path / "no", **parts_of(pipe) | {"unet": unet})
        assert not (tmp_path / "no").exists()


def test_an_export_that_fails_leaves_no_index(folder, pipe):
    broken = UNet(CONFIG.unet)
    with torch.no_grad():
        broken.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        export_diffusers(folder, **parts_of(pipe) | {"unet": broken})
    assert not (folder / INDEX).exists()


def test_text_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    assert foreign.text_config({}) == foreign.text_config(transformers.CLIPTextConfig().to_dict())
    assert foreign.text_config({}) == TextEncoderConfig(width=512, num_heads=8, mlp_width=2048)
