"""Every model of the paper at its full size, built without memory, exact to the parameter."""

import dataclasses

import pytest
import torch

from ldm_tutor import presets
from ldm_tutor.attention_maps.record import Recorder
from ldm_tutor.config import (
    AutoencoderConfig,
    BertEncoderConfig,
    ClassEncoderConfig,
    UNetConfig,
    VQAutoencoderConfig,
    sd_v1,
)
from ldm_tutor.errors import AttentionTapError, ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.class_encoder import ClassEncoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder

CLASSES = {
    AutoencoderConfig: Autoencoder,
    VQAutoencoderConfig: VQAutoencoder,
    UNetConfig: UNet,
    BertEncoderConfig: BertEncoder,
    ClassEncoderConfig: ClassEncoder,
}

FIRST_STAGES = {  # encoder, decoder, whole; the factor f
    "kl_f4": (22_351_238, 32_960_771, 55_312_063, 4),
    "kl_f8": (34_163_592, 49_490_179, 83_653_863, 8),
    "kl_f16": (28_265_760, 41_343_875, 69_610_963, 16),
    "kl_f32": (42_614_656, 61_244_803, 103_880_131, 32),
    "vq_f4": (22_337_411, 32_960_771, 55_322_782, 4),
    "vq_f4_noattn": (21_285_763, 31_909_123, 53_219_486, 4),
    "vq_f8": (27_397_764, 40_253_955, 67_717_295, 8),
    "vq_f8_n256": (27_397_764, 40_253_955, 67_652_783, 8),
    "vq_f16": (28_155_144, 41_307_011, 69_593_371, 16),
}
MODELS = {  # U-Net; the latents; channels that come in
    "text2img_1p4b": (872_300_484, (4, 32, 32), 4),
    "text2img256": (403_623_939, (3, 64, 64), 3),
    "celebahq": (274_056_163, (3, 64, 64), 3),
    "ffhq": (274_056_163, (3, 64, 64), 3),
    "lsun_bedrooms": (274_056_163, (3, 64, 64), 3),
    "churches256": (294_966_916, (4, 32, 32), 4),
    "cin256": (394_984_196, (4, 32, 32), 4),
    "cin256_v2": (400_920_579, (3, 64, 64), 3),
    "layout2img": (246_277_379, (3, 64, 64), 3),
    "semantic256": (215_229_315, (3, 64, 64), 6),
    "inpainting": (215_230_467, (3, 64, 64), 7),
    "inpainting_big": (387_245_827, (3, 64, 64), 7),
    "bsr_sr": (113_622_563, (3, 64, 64), 6),
    "rdm768": (1_335_480_400, (16, 48, 48), 16),
}
ALPHA_BAR_ENDS = {0.0195: 1.42e-4, 0.0155: 6.69e-4, 0.0205: 9.69e-5, 0.012: 4.66e-3}


def build(config):
    with torch.device("meta"):
        return CLASSES[type(config)](config)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_no_model_is_left_out():
    assert set(FIRST_STAGES) == set(presets.FIRST_STAGES)
    assert set(MODELS) == set(presets.PAPER_MODELS)


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stage(name):
    config = presets.first_stage(name)
    model = build(config)
    encoder, decoder, whole, f = FIRST_STAGES[name]
    assert (count(model.encoder), count(model.decoder), count(model)) == (encoder, decoder, whole)
    assert config.downsampling == f
    assert type(config).from_dict(config.to_dict()) == config
    latents = model.encode(torch.empty(1, 3, 256, 256, device="meta"))
    latents = latents.mode() if name.startswith("kl") else latents
    assert latents.shape == (1, config.latent_channels, 256 // f, 256 // f)
    assert model.decode(latents).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("name", MODELS)
def test_paper_model(name):
    model = presets.PAPER_MODELS[name]()
    unet = build(model.unet)
    assert (count(unet), model.latent_shape, model.unet.in_channels) == MODELS[name]
    assert model.unet.out_channels == model.latent_shape[0] == model.autoencoder.latent_channels
    assert model.name == name
    assert type(model.unet).from_dict(model.unet.to_dict()) == model.unet
    context = None
    if model.unet.context_dim is not None:
        context = torch.empty(1, 3, model.unet.context_dim, device="meta")
    _, h, w = model.latent_shape
    latents = torch.empty(1, model.unet.in_channels, h, w, device="meta")
    assert unet(latents, torch.empty(1, device="meta"), context).shape == (1, *model.latent_shape)


@pytest.mark.parametrize("name", MODELS)
def test_no_first_stage_is_forgotten_when_a_model_uses_it(name):
    autoencoder = presets.PAPER_MODELS[name]().autoencoder
    same = [dataclasses.replace(each, scale_factor=autoencoder.scale_factor) for each in presets.FIRST_STAGES.values()]
    assert autoencoder in same


def test_schedules_end_where_the_published_ones_do():
    from ldm_tutor.schedule import NoiseSchedule

    for make in presets.PAPER_MODELS.values():
        config = make().schedule
        if config.beta_end in ALPHA_BAR_ENDS:
            end = float(NoiseSchedule(config).alpha_bar[-1])
            assert end == pytest.approx(ALPHA_BAR_ENDS[config.beta_end], rel=5e-3)
    assert {make().schedule.beta_end for make in presets.PAPER_MODELS.values()} == {*ALPHA_BAR_ENDS, 0.015}


def test_text_encoders():
    large, small, boxes = (presets.PAPER_MODELS[n]().condition for n in ("text2img_1p4b", "text2img256", "layout2img"))
    assert count(build(large)) == 542_895_360
    assert count(build(large)) + unused_head(large) == 581_994_042
    assert count(build(small)) + unused_head(small) == 186_154_682
    assert count(build(boxes)) + unused_head(boxes) == 58_858_496


def unused_head(config):
    """The published encoders hold a linear layer over the vocabulary that nothing uses."""
    return (config.width + 1) * config.vocab_size


def test_the_paper_s_1p45b():
    model = presets.text2img_1p4b()
    unet, text, first = (count(build(part)) for part in (model.unet, model.condition, model.autoencoder))
    assert unet + text + unused_head(model.condition) == 1_454_294_526
    assert unet + text + unused_head(model.condition) + first == 1_537_948_389


def test_class_encoders():
    assert count(build(presets.cin256().condition)) == 1000 * 512
    assert count(build(presets.cin256_v2().condition)) == 1001 * 512


def test_stable_diffusion():
    config = sd_v1()
    with torch.device("meta"):
        clip = Clip(config.clip, end_id=49407)
    unet, autoencoder = build(config.unet), build(config.autoencoder)
    assert (count(unet), len(unet.state_dict())) == (859_520_964, 686)
    assert (count(autoencoder), len(autoencoder.state_dict())) == (83_653_863, 248)
    assert (count(clip.text), len(clip.text.state_dict())) == (123_060_480, 196)
    assert count(unet) + count(autoencoder) + count(clip.text) == 1_066_235_307
    assert count(build(presets.sd_v1_inpainting().unet)) == 859_535_364


def test_stable_diffusion_has_32_attention_sites():
    sites = build(sd_v1().unet).sites()
    assert len(sites) == 32
    for kind, stages in (("self", {"down": 6, "mid": 1, "up": 9}), ("cross", {"down": 6, "mid": 1, "up": 9})):
        for stage, num in stages.items():
            assert sum(site.kind == kind and site.stage == stage for site in sites) == num
    assert len({site.name for site in sites}) == 32
    assert {site.num_heads for site in sites} == {8}


def test_the_memory_of_all_maps_is_known_before_it_is_spent():
    unet = build(sd_v1().unet)
    tokens = {level: (64 >> level) ** 2 for level in range(4)}
    layers = {0: 5, 1: 5, 2: 5, 3: 1}  # pairs of self- and cross-attention: down 2, up 3 per level, and the middle
    maps = {
        "self": sum(num * tokens[level] ** 2 for level, num in layers.items()),
        "cross": sum(num * tokens[level] * 77 for level, num in layers.items()),
    }
    maps["all"] = maps["self"] + maps["cross"]
    for where, numbers in maps.items():
        for heads, factor in (("mean", 1), ("all", 8)):
            recorder = Recorder(heads=heads)
            predicted = recorder.predicted_bytes(unet, 64, batch=2, num_steps=50, context_length=77, where=where)
            assert predicted == numbers * factor * 2 * 50 * 2
    with pytest.raises(AttentionTapError, match=rf"{predicted / 2**20:,.1f} MiB.*at most 1,024.0 MiB"):
        recorder.require_room(predicted)
    assert predicted > 100 * 2**30  # every head of every layer at every step: no laptop has that
    assert recorder.num_bytes == 0
    recorder = Recorder(tokens=(5,))
    recorder.require_room(recorder.predicted_bytes(unet, 64, batch=2, num_steps=50, context_length=77))


def test_a_plain_unet_has_sites_too():
    sites = build(presets.unconditional256().unet).sites()
    assert len(sites) == 6 + 1 + 9
    assert {site.kind for site in sites} == {"self"}
    assert {(site.level, site.num_heads) for site in sites} == {(1, 14), (2, 21), (3, 28)}


def test_the_unpublished_model_that_the_paper_counts_otherwise():
    config = UNetConfig(channels=192, channel_mult=(1, 2, 4), head_channels=32, context_dim=512, transformer_depth=2)
    assert count(build(config)) == 312_241_540


def test_unknown_names_and_parts_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"f5.*kl_f8"):
        presets.first_stage("kl_f5")
    with pytest.raises(ConfigError, match=r"cin256.*differ.*\(512, 256\)"):
        dataclasses.replace(presets.cin256(), condition=ClassEncoderConfig(width=256))
