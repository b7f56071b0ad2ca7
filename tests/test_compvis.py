"""CompVis single files: names, the shapes that differ, moving averages, pickles; in and out."""

import dataclasses
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_parity import randomize
from tiny import CONFIG, make_pipeline

from ldm_tutor.config import (
    AutoencoderConfig,
    BertEncoderConfig,
    ClassEncoderConfig,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
    VQAutoencoderConfig,
    sd_v1,
)
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.class_encoder import ClassEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.nn.blocks import PictureAttention
from ldm_tutor.presets import FIRST_STAGES, PAPER_MODELS, PaperModel, sd_v1_inpainting
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.weights import foreign
from ldm_tutor.weights.checkpoint_file import open_checkpoint
from ldm_tutor.weights.compvis import load_compvis, load_first_stage, save_compvis, schedule_buffers
from ldm_tutor.weights.compvis_names import ema_name, layout_of
from ldm_tutor.weights.names import TEXT_TRANSFORMERS, rename, rules_for
from ldm_tutor.weights.tensors import Place

CLASSES = {
    UNetConfig: UNet,
    AutoencoderConfig: Autoencoder,
    VQAutoencoderConfig: VQAutoencoder,
    TextEncoderConfig: TextEncoder,
    BertEncoderConfig: BertEncoder,
    ClassEncoderConfig: ClassEncoder,
}
SD = sd_v1()
PLAIN = PaperModel(  # Q, K and V in one tensor, two heads and three; a codebook; no condition
    name="plain",
    picture_size=16,
    autoencoder=VQAutoencoderConfig(
        channels=8, channel_mult=(1, 2), norm_groups=4, codebook_size=20, attention_levels=(1,)
    ),
    unet=UNetConfig(
        in_channels=3, out_channels=3, channels=16, channel_mult=(1, 2, 3), num_res_blocks=1, attention_levels=(1,),
        head_channels=16, context_dim=None, norm_groups=8, resblock_updown=True, scale_shift_norm=True,
    ),
    schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0195),
)  # fmt: skip
CLASS = dataclasses.replace(
    PLAIN,
    name="class",
    unet=dataclasses.replace(PLAIN.unet, context_dim=12, resblock_updown=False, scale_shift_norm=False),
    condition=ClassEncoderConfig(num_classes=5, width=12),
)
BERT = dataclasses.replace(
    CLASS, name="bert", condition=BertEncoderConfig(vocab_size=30, width=12, num_layers=2, num_heads=2, head_channels=4)
)


def network(config):
    return randomize(CLASSES[type(config)](config))


def on_meta(config):
    with torch.device("meta"):
        return CLASSES[type(config)](config)


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def networks_of(model):
    """Random networks of a model, as `save_compvis` takes them."""
    condition = model.clip.text if hasattr(model, "clip") else model.condition
    return {
        "unet": network(model.unet),
        "autoencoder": network(model.autoencoder),
        "condition": None if condition is None else network(condition),
        "schedule": model.schedule,
    }


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(3)
    return networks_of(CONFIG)


@pytest.fixture
def file(parts, tmp_path):
    return save_compvis(tmp_path / "model.safetensors", **parts)


def as_ckpt(file, change=None, **more):
    """The same tensors as a training's checkpoint."""
    state = load_file(file)
    if change:
        change(state)
    path = file.with_suffix(".ckpt")
    torch.save({"epoch": 3, "state_dict": state, **more}, path)
    return path


def rewrite(file, change):
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    return file


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def refused(path, model=CONFIG, **arguments):
    with pytest.raises(WeightsError) as error:
        load_compvis(path, model, **arguments)
    assert str(path) in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- names and shapes


def every_config():
    configs = {"sd_v1 unet": SD.unet, "sd_v1 text": SD.clip.text, "inpainting": sd_v1_inpainting().unet}
    configs |= dict(FIRST_STAGES)
    for name, make in PAPER_MODELS.items():
        configs[f"{name} unet"] = make().unet
        if make().condition is not None:
            configs[f"{name} condition"] = make().condition
    return configs


EVERY = every_config()


@pytest.mark.parametrize("name", EVERY)
def test_names_are_a_bijection_at_full_size(name):
    config = EVERY[name]
    ours = on_meta(config).state_dict()
    layout = layout_of(config)
    there = layout.to_file(ours)
    assert all(key.startswith(layout.prefix) for key in there)
    places = {
        key: Place(Path("x"), value.dtype, tuple(value.shape), ((0, 4 * value.numel()),))
        for key, value in there.items()
    }
    here = layout.from_file(places)
    assert {key: place.shape for key, place in here.items()} == shapes(ours)
    for key, place in here.items():  # as many bytes as the tensor has, nothing read twice
        assert sum(length for _, length in place.spans) == 4 * ours[key].numel()
    joined = 0 if layout.num_heads is None else 2 * 2 * len(on_meta(config).sites())
    assert len(there) == len(ours) - joined
    if isinstance(config, UNetConfig):
        assert len({ema_name(key) for key in there}) == len(there)


def test_what_differs_in_shape_are_the_eight_matrices_of_the_autoencoder_s_attention():
    for config, num in ((SD.unet, 0), (SD.autoencoder, 8), (SD.clip.text, 0)):
        ours, layout = on_meta(config).state_dict(), layout_of(config)
        there = layout.to_file(ours)
        differing = [n for n, v in ours.items() if there[layout.prefix + layout.rules.to_foreign(n)].shape != v.shape]
        assert len(differing) == num
        for name in differing:
            assert ours[name].shape == (512, 512)
            assert there[layout.prefix + layout.rules.to_foreign(name)].shape == (512, 512, 1, 1)
    assert len(layout_of(SD.unet).to_file(on_meta(SD.unet).state_dict())) == 686


BY_HAND = [
    (SD.unet, "time_mlp.linear_2.bias", "time_embed.2.bias"),
    (SD.unet, "down.1.res_blocks.0.shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
    (SD.unet, "down.2.downsample.conv.bias", "input_blocks.9.0.op.bias"),
    (SD.unet, "mid.res_blocks.1.time_proj.weight", "middle_block.2.emb_layers.1.weight"),
    (
        SD.unet,
        "up.1.transformers.0.blocks.0.cross_attn.to_out.bias",
        "output_blocks.3.1.transformer_blocks.0.attn2.to_out.0.bias",
    ),
    (SD.unet, "up.0.upsample.conv.weight", "output_blocks.2.1.conv.weight"),
    (SD.unet, "up.1.upsample.conv.weight", "output_blocks.5.2.conv.weight"),
    (SD.autoencoder, "decoder.levels.0.res_blocks.2.conv1.bias", "decoder.up.3.block.2.conv1.bias"),
    (SD.autoencoder, "encoder.mid.attention.attn.to_out.bias", "encoder.mid.attn_1.proj_out.bias"),
    (SD.clip.text, "layers.11.self_attn.to_q.bias", "text_model.encoder.layers.11.self_attn.q_proj.bias"),
    (PAPER_MODELS["text2img_1p4b"]().condition, "layers.31.fc2.weight", "attn_layers.layers.63.1.net.2.weight"),
    (PAPER_MODELS["cin256"]().condition, "embedding.weight", "embedding.weight"),
    (FIRST_STAGES["vq_f8"], "quantizer.codebook.weight", "quantize.embedding.weight"),
    (FIRST_STAGES["kl_f16"], "decoder.levels.0.attentions.2.norm.bias", "decoder.up.4.attn.2.norm.bias"),
]


@pytest.mark.parametrize("config, ours, theirs", BY_HAND, ids=[theirs for _, _, theirs in BY_HAND])
def test_names_by_hand(config, ours, theirs):
    rules = layout_of(config).rules
    assert (rules.to_foreign(ours), rules.from_foreign(theirs)) == (theirs, ours)


def test_each_part_has_its_prefix():
    prefixes = [layout_of(config).prefix for config in (SD.unet, SD.autoencoder, SD.clip.text)]
    assert prefixes == ["model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."]
    assert layout_of(PAPER_MODELS["cin256"]().condition).prefix == "cond_stage_model."


def test_moving_averages_have_names_without_dots():
    assert ema_name("model.diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"


def test_diffusers_own_converters_agree():
    """Their functions turn a CompVis file into their names; they know nothing of ours."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    for config, convert in (
        (SD.unet, lambda s: utils.convert_ldm_unet_checkpoint(s, config={"layers_per_block": 2})),
        (SD.autoencoder, lambda s: utils.convert_ldm_vae_checkpoint(s, foreign.autoencoder_arguments(SD.autoencoder))),
    ):
        ours = on_meta(config).state_dict()
        theirs = convert(dict(layout_of(config).to_file(ours)))
        mapped = rename(ours, rules_for(config), "to_foreign")
        assert set(theirs) == set(mapped)
        numels = {name: (value.numel(), value.shape[0]) for name, value in theirs.items()}
        assert numels == {name: (value.numel(), value.shape[0]) for name, value in mapped.items()}


@torch.no_grad()
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_joined_q_k_v_are_read_head_by_head(num_heads):
    """Attention as the published code computes it: all heads' Q, K and V cut from one tensor, (heads, 3, width)."""
    config = dataclasses.replace(
        PLAIN.unet, channels=16, channel_mult=(1,), attention_levels=(), head_channels=16 // num_heads
    )
    layout, ours = layout_of(config), network(config)
    block: PictureAttention = ours.mid.transformers[0]
    there = layout.to_file(ours.state_dict())
    prefix = "model.diffusion_model.middle_block.1."
    weight, bias = there[f"{prefix}qkv.weight"], there[f"{prefix}qkv.bias"]
    assert weight.shape == (48, 16, 1) and there[f"{prefix}proj_out.weight"].shape == (16, 16, 1)
    x = torch.randn(2, 16, 3, 5)
    qkv = torch.nn.functional.conv1d(block.norm(x).flatten(2), weight, bias)
    q, k, v = qkv.reshape(2 * num_heads, 3 * 16 // num_heads, 15).split(16 // num_heads, dim=1)
    probs = torch.einsum("bct,bcs->bts", q, k).mul((16 // num_heads) ** -0.5).softmax(dim=-1)
    mixed = torch.einsum("bts,bcs->bct", probs, v).reshape(2, 16, 15)
    out = torch.nn.functional.conv1d(mixed, there[f"{prefix}proj_out.weight"], there[f"{prefix}proj_out.bias"])
    assert torch.allclose(block(x), x + out.view_as(x), atol=1e-5)


# ---------------------------------------------------------------- in and out


@pytest.mark.parametrize("model", [CONFIG, PLAIN, CLASS, BERT], ids=lambda model: model.name)
@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_out_and_in_again(model, form, tmp_path):
    given = networks_of(model)
    path = save_compvis(tmp_path / "model.safetensors", **given)
    if form == "ckpt":
        path = as_ckpt(path)
    back = load_compvis(path, model)
    for name in ("unet", "autoencoder", "condition"):
        network = getattr(back, name)
        if given[name] is None:
            assert network is None
        else:
            assert network.config == given[name].config and not network.training
            assert equal(network, given[name])
    assert (back.schedule, back.picture_size) == (model.schedule, model.picture_size)


@torch.no_grad()
def test_diffusers_computes_the_same_from_what_we_write(file, parts):
    """Through their own converters of CompVis names."""
    diffusers = pytest.importorskip("diffusers")
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    state, config = load_file(file), CONFIG.unet
    theirs = diffusers.UNet2DConditionModel(**foreign.unet_arguments(config)).eval()
    theirs.load_state_dict(utils.convert_ldm_unet_checkpoint(state, config={"layers_per_block": config.num_res_blocks}))
    x, words = torch.randn(1, 4, 8, 8), torch.randn(1, 5, config.context_dim)
    close(parts["unet"](x, torch.tensor([7]), words), theirs(x, torch.tensor([7]), words).sample)

    config = AutoencoderConfig(channels=16, channel_mult=(1, 2), norm_groups=4)
    ours, arguments = network(config), foreign.autoencoder_arguments(config)
    theirs = diffusers.AutoencoderKL(**arguments).eval()
    there = layout_of(config).to_file(ours.state_dict())
    theirs.load_state_dict(utils.convert_ldm_vae_checkpoint(dict(there), config=arguments))
    close(ours.decode(x), theirs.decode(x).sample)
    pictures = torch.randn(1, 3, 16, 16)
    close(ours.encode(pictures).mean, theirs.encode(pictures).latent_dist.mean)


def close(ours, theirs):
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-5


def test_half_precision_and_types(file, parts, tmp_path):
    half = save_compvis(tmp_path / "half.safetensors", **parts, dtype=torch.float16)
    tables = 12 * 1000 * 4  # stay float32
    assert half.stat().st_size - tables < 0.6 * (file.stat().st_size - tables)
    assert load_compvis(half, CONFIG, dtype=None).unet.conv_in.weight.dtype == torch.float16
    back = load_compvis(half, CONFIG).unet.conv_in.weight
    assert torch.equal(back, parts["unet"].conv_in.weight.half().float())


def test_the_twelve_tables_are_those_of_the_schedule(file):
    state, schedule = load_file(file), NoiseSchedule(CONFIG.schedule)
    tables = {name for name in state if "." not in name} - {"scale_factor"}
    assert float(state["scale_factor"]) == pytest.approx(CONFIG.autoencoder.scale_factor)
    assert len(tables) == 12 == len(schedule_buffers(CONFIG.schedule))
    assert torch.equal(state["alphas_cumprod"], schedule.alpha_bar.float())
    assert state["alphas_cumprod_prev"][0] == 1
    t = 500
    variance = float(schedule.betas[t] * (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]))
    assert float(state["posterior_variance"][t]) == pytest.approx(variance)
    mean = state["posterior_mean_coef1"][t] + state["posterior_mean_coef2"][t] * schedule.alpha_bar[t].sqrt()
    assert float(mean) == pytest.approx(float(schedule.alpha_bar[t - 1].sqrt()), rel=1e-5)


def add_average(state):
    for key in [key for key in state if key.startswith("model.diffusion_model.")]:
        state[ema_name(key)] = state[key] + 1
    state["model_ema.decay"] = torch.tensor(0.9999)
    state["model_ema.num_updates"] = torch.tensor(7, dtype=torch.int32)


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_the_moving_average_is_preferred_and_can_be_chosen(file, parts, form):
    path = rewrite(file, add_average)
    path = as_ckpt(path) if form == "ckpt" else path
    trained = parts["unet"].conv_in.weight
    for ema, added in ((None, 1), (True, 1), (False, 0)):
        assert torch.equal(load_compvis(path, CONFIG, ema=ema).unet.conv_in.weight, trained + added)


def test_a_missing_or_odd_moving_average(file):
    assert "no moving average" in refused(file, ema=True)
    rewrite(file, add_average)
    rewrite(file, lambda state: state.pop("model_ema.diffusion_modelout2bias"))
    assert "model_ema.diffusion_modelout2bias is missing" in refused(file)
    load_compvis(file, CONFIG, ema=False)
    rewrite(file, lambda state: state.update({"model_ema.diffusion_modelout9bias": torch.zeros(2)}))
    assert "model_ema.diffusion_modelout9bias is in no such model" in refused(file)


def test_one_part_of_a_file_that_holds_more(file, parts):
    rewrite(file, lambda state: state.update({"control_model.x": torch.zeros(2)}))
    assert "control_model.x is in no such model" in refused(file)
    back = load_compvis(file, CONFIG, parts=["unet"])
    assert equal(back.unet, parts["unet"]) and back.autoencoder is None and back.condition is None
    for wrong in ([], ["u-net"]):
        with pytest.raises(ConfigError, match="parts"):
            load_compvis(file, CONFIG, parts=wrong)


def test_what_published_files_hold_beside_the_weights(tmp_path):
    """Losses, constants, the first stage once more as the encoder of what is painted around."""
    given = networks_of(PLAIN)
    path = save_compvis(tmp_path / "model.safetensors", **given)

    def more(state):
        first = {key: value for key, value in state.items() if key.startswith("first_stage_model.")}
        state |= {key.replace("first_stage_model.", "cond_stage_model."): value.clone() for key, value in first.items()}
        state["first_stage_model.loss.logvar"] = torch.zeros(1)
        state["scale_factor"] = torch.tensor(0.5)

    back = load_compvis(rewrite(path, more), PLAIN)
    assert equal(back.autoencoder, given["autoencoder"])
    assert back.autoencoder.config.scale_factor == 0.5
    text = network(CONFIG.clip.text)
    stored = {TEXT_TRANSFORMERS.to_foreign(name): value for name, value in text.state_dict().items()}
    stored = {f"cond_stage_model.transformer.{name}": value for name, value in stored.items()}

    def of_a_new_version(state):
        for key in [key for key in state if key.startswith("cond_stage_model.")]:
            del state[key]
        state |= stored | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(32)[None]}

    path = save_compvis(tmp_path / "sd.safetensors", **networks_of(CONFIG))
    assert equal(load_compvis(rewrite(path, of_a_new_version), CONFIG).condition, text)


def test_an_autoencoder_published_alone(tmp_path):
    first = network(PLAIN.autoencoder)
    layout = layout_of(PLAIN.autoencoder, prefix="")
    state = layout.to_file(first.state_dict()) | {"loss.discriminator.main.0.weight": torch.zeros(3)}
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": state, "optimizer_states": [{"state": {0: {"step": 3}}}]}, path)
    assert equal(load_first_stage(path, PLAIN.autoencoder), first)
    torch.save({"state_dict": state | {"colorize": torch.zeros(3)}}, path)
    with pytest.raises(WeightsError, match=r"model\.ckpt: colorize is in no such model"):
        load_first_stage(path, PLAIN.autoencoder)


# ---------------------------------------------------------------- what is refused


class Bomb:
    """Runs a program when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "beside"])
def test_a_pickle_with_a_program_is_refused_and_not_run(file, tmp_path, form):
    path, ran = tmp_path / "planted.ckpt", tmp_path / "ran"
    if form == "bare":
        path.write_bytes(pickle.dumps(Bomb(ran)))
    elif form == "beside":  # all the weights are there, and a program beside them
        path = as_ckpt(file, callbacks={"hook": Bomb(ran)})
    else:
        torch.save({"state_dict": Bomb(ran)}, path, _use_new_zipfile_serialization=form == "zip")
    text = refused(path)
    assert not ran.exists()
    if form in ("zip", "beside"):
        assert "refused, nothing of it was run" in text and "given: 'getattr'" in text  # its way to Path.touch
        torch.load(path, weights_only=False)  # the plant is a real one
        assert ran.exists()


def test_a_type_that_lightning_leaves_in_published_files(file, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    kind = type("ModelCheckpoint", (), {"__module__": name})
    sys.modules[name].ModelCheckpoint = kind
    path = as_ckpt(file, callbacks={kind: {"best_model_score": torch.tensor(0.1), "dirpath": "x"}})
    monkeypatch.undo()
    assert load_compvis(path, CONFIG).unet.config == CONFIG.unet


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
@pytest.mark.parametrize("keep", [0, 3, 500, 20_000, -1, -100])
def test_a_truncated_file(file, form, keep):
    path = as_ckpt(file) if form == "ckpt" else file
    path.write_bytes(path.read_bytes()[:keep])
    assert "cut off" in refused(path)


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_missing_extra_and_reshaped(file, form):
    def check(change, *words):
        path = as_ckpt(file, change) if form == "ckpt" else rewrite(file, change)
        text = refused(path)
        for word in words:
            assert word in text, text

    key = "first_stage_model.decoder.mid.block_1.conv1.weight"
    shape = tuple(load_file(file)[key].shape)
    check(lambda s: s.update({key: torch.zeros(2, 3)}), f"{key} has another shape", "(2, 3)", str(shape))
    check(lambda s: s.pop(key), f"{key} is missing", str(shape))
    whole = torch.zeros(shape)
    extra = "model.diffusion_model.input_blocks.77.0.op.bias"
    check(lambda s: s.update({key: whole, extra: torch.zeros(3)}), f"{extra} is in no such model", "(3,)")


def test_another_architecture_and_another_schedule(file, tmp_path):
    text = refused(file, sd_v1())
    assert "model.diffusion_model.time_embed.0.weight has another shape" in text
    assert "(32, 8)" in text and "(1280, 320)" in text
    other = dataclasses.replace(CONFIG, schedule=ScheduleConfig(beta_end=0.02))
    assert "alphas_cumprod belongs to another noise schedule" in refused(file, other)
    with pytest.raises(ConfigError, match="JudgeConfig|ImageEncoderConfig"):
        layout_of(CONFIG.clip.image)


def test_numbers_that_are_not_finite_and_odd_tensors(file):
    path = as_ckpt(file, lambda s: s["model.diffusion_model.out.2.bias"].fill_(float("inf")))
    assert "not finite" in refused(path)
    key = "model.diffusion_model.time_embed.0.weight"
    path = as_ckpt(file, lambda s: s.update({key: s[key].t().contiguous().t()}))
    assert "contiguous" in refused(path) and key in refused(path)
    path.write_bytes(pickle.dumps([1, 2]))
    refused(path)
    torch.save([1, 2], path)
    assert "no tensors with names" in refused(path)
    assert "no such file" in refused(path.with_name("elsewhere.ckpt"))


def test_a_tensor_that_shares_its_storage_is_read_from_its_own_place(tmp_path):
    base = torch.arange(24.0).view(6, 4)
    path = tmp_path / "x.ckpt"
    torch.save({"all": base, "rows": base[2:4], "one": base[5, 3]}, path)
    tensors = open_checkpoint(path)
    assert torch.equal(tensors.read("rows"), base[2:4])
    assert tensors.read("one").item() == 23 and tensors.read("one").shape == ()
    assert torch.equal(tensors.read("all", dtype=torch.float64), base.double())


def test_the_pipeline_s_own_networks_go_through_a_single_file(tmp_path):
    pipe = make_pipeline()
    networks = {"unet": pipe.unet, "autoencoder": pipe.autoencoder, "condition": pipe.text_encoder}
    path = save_compvis(tmp_path / "x.safetensors", **networks, schedule=pipe.schedule.config)
    back = load_compvis(as_ckpt(path), CONFIG)
    assert all(equal(getattr(back, name), each) for name, each in networks.items())
