"""The models' own promises: shapes, beginnings, errors, and counts that are not covered by parity."""

import pytest
import torch

from ldm_tutor.config import (
    AutoencoderConfig,
    ClipConfig,
    ConditionConfig,
    DiscriminatorConfig,
    ImageEncoderConfig,
    JudgeConfig,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
    preset,
    scenes,
    sd_v1,
)
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.models.autoencoder import Autoencoder, DiagonalGaussian
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.discriminator import PatchDiscriminator
from ldm_tutor.models.dit import DiTConfig
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.text_encoder import TextEncoder, pick_end
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.embeddings import timestep_embedding

SMALL_UNET = UNetConfig(
    channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(0,),
    num_heads=2,
    context_dim=12,
    norm_groups=4,
)


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_a_new_unet_predicts_no_noise_and_adds_nothing_in_its_branches():
    unet = UNet(SMALL_UNET)
    out = unet(torch.randn(2, 4, 8, 8), torch.tensor([1, 999]), torch.randn(2, 5, 12))
    assert out.shape == (2, 4, 8, 8)
    assert out.abs().max() == 0


def test_unet_names_every_attention_layer_once_and_in_order():
    sites = UNet(SMALL_UNET).sites()
    assert [site.name for site in sites] == [
        "down.0.block0.layer0.self", "down.0.block0.layer0.cross",
        "mid.block0.layer0.self", "mid.block0.layer0.cross",
        "up.0.block0.layer0.self", "up.0.block0.layer0.cross",
        "up.0.block1.layer0.self", "up.0.block1.layer0.cross",
    ]  # fmt: skip
    with torch.device("meta"):
        full = UNet(sd_v1().unet)
    assert len(full.sites()) == 32


def test_unet_depends_on_time_context_and_latents():
    torch.manual_seed(0)
    unet = UNet(SMALL_UNET)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 5, 12)
    base = unet(x, t, context)
    for other in ((x + 0.5, t, context), (x, t + 400, context), (x, t, context + 0.5)):
        assert (unet(*other) - base).abs().max() > 1e-3


def test_unet_says_which_shape_is_wrong(unchecked_annotations):
    unet = UNet(SMALL_UNET)
    with pytest.raises(ShapeError, match=r"UNet latents.*\(1, 4, 7, 8\).*multiples of 2"):
        unet(torch.randn(1, 4, 7, 8), torch.tensor([1]), torch.randn(1, 5, 12))
    with pytest.raises(ShapeError, match=r"UNet context.*\(1, 5, 9\).*12"):
        unet(torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 5, 9))


def test_timestep_embedding_is_cos_then_sin_at_falling_frequencies():
    wave = timestep_embedding(torch.tensor([0, 3]), 8)
    assert torch.equal(wave[0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    angles = 3 * 10000 ** (-torch.arange(4) / 4)
    assert torch.allclose(wave[1], torch.cat([angles.cos(), angles.sin()]), atol=1e-6)


def test_gaussian_kl_is_zero_for_the_standard_normal_and_known_otherwise():
    zero = DiagonalGaussian(torch.zeros(2, 8, 3, 3))
    assert torch.equal(zero.kl(), torch.zeros(2))
    mean, logvar = 0.7, -1.0
    moments = torch.cat([torch.full((1, 4, 2, 2), mean), torch.full((1, 4, 2, 2), logvar)], dim=1)
    expected = 16 * 0.5 * (mean**2 + torch.tensor(logvar).exp() - 1 - logvar)
    assert torch.allclose(DiagonalGaussian(moments).kl(), expected.view(1))


def test_gaussian_sample_has_its_mean_and_spread_and_keeps_to_the_generator():
    moments = torch.cat([torch.full((1, 1, 200, 200), 2.0), torch.full((1, 1, 200, 200), -2.0)], dim=1)
    gaussian = DiagonalGaussian(moments)
    drawn = gaussian.sample(torch.Generator().manual_seed(1))
    assert abs(float(drawn.mean()) - 2.0) < 0.01
    assert abs(float(drawn.std()) - float(torch.tensor(-1.0).exp())) < 0.01
    assert torch.equal(drawn, gaussian.sample(torch.Generator().manual_seed(1)))
    assert torch.equal(gaussian.mode(), gaussian.mean)


@pytest.mark.parametrize("mult", [(1,), (1, 2), (1, 2, 2)])
def test_autoencoder_shrinks_by_its_factor_and_comes_back(mult):
    config = AutoencoderConfig(channels=8, channel_mult=mult, num_res_blocks=1, latent_channels=3, norm_groups=4)
    autoencoder = Autoencoder(config)
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = autoencoder.encode(pictures).mode()
    assert latents.shape == (2, 3, 16 // config.downsampling, 24 // config.downsampling)
    assert autoencoder.decode(latents).shape == pictures.shape


def test_autoencoder_scales_on_the_way_in_and_unscales_on_the_way_out():
    config = AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, scale_factor=0.5)
    autoencoder = Autoencoder(config)
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    generator = torch.Generator().manual_seed(0)
    latents = autoencoder.to_latents(pictures, generator)
    bare = autoencoder.encode(pictures).sample(torch.Generator().manual_seed(0))
    assert torch.allclose(latents, 0.5 * bare)
    assert torch.allclose(autoencoder.to_pictures(latents), autoencoder.decode(bare).clamp(-1, 1), atol=1e-6)


def test_autoencoder_refuses_a_size_it_cannot_halve(unchecked_annotations):
    config = AutoencoderConfig(channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, norm_groups=4)
    with pytest.raises(ShapeError, match="multiples of 4"):
        Autoencoder(config).encode(torch.zeros(1, 3, 18, 16))


@pytest.mark.parametrize(("layers", "count", "side"), [(3, 2_765_633, 30), (2, 663_361, 62)])
def test_patch_discriminator_has_the_published_size(layers, count, side):
    net = PatchDiscriminator(DiscriminatorConfig(num_layers=layers))
    assert num_parameters(net) == count
    assert net(torch.zeros(2, 3, 256, 256)).shape == (2, 1, side, side)


def test_patch_discriminator_sees_70_pixels():
    net = PatchDiscriminator(DiscriminatorConfig(channels=4)).eval()
    picture = torch.zeros(1, 3, 256, 256, requires_grad=True)
    net(picture)[0, 0, 15, 15].backward()
    touched = picture.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (touched.max(dim=0).values - touched.min(dim=0).values + 1).tolist() == [70, 70]


def test_text_encoder_is_causal():
    torch.manual_seed(0)
    config = scenes().clip.text
    encoder = TextEncoder(config).eval()
    tokens = torch.randint(0, config.vocab_size, (1, 10))
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % config.vocab_size
    before, after = encoder(tokens), encoder(changed)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert (before[:, 6:] - after[:, 6:]).abs().amax(dim=-1).min() > 1e-4


def test_text_encoder_refuses_too_many_tokens():
    with pytest.raises(ShapeError, match="at most 32 tokens"):
        TextEncoder(scenes().clip.text)(torch.zeros(1, 33, dtype=torch.int64))


def test_pick_end_takes_the_first_end_token():
    vectors = torch.arange(12.0).view(2, 3, 2)
    assert pick_end(vectors, torch.tensor([[5, 9, 9], [5, 6, 9]]), end_id=9).tolist() == [[2, 3], [10, 11]]


def test_clip_vectors_have_length_one_and_its_temperature_is_limited():
    config = scenes().clip
    clip = Clip(config, end_id=1)
    tokens = torch.tensor([[0, 5, 6, 1], [0, 7, 1, 1]])
    pictures = torch.rand(3, 3, 64, 64) * 2 - 1
    assert torch.allclose(clip.embed_text(tokens).norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(clip.embed_pictures(pictures).norm(dim=1), torch.ones(3), atol=1e-5)
    assert clip(pictures, tokens).shape == (3, 2)
    with torch.no_grad():
        clip.logit_scale.fill_(50.0)
    assert clip(pictures, tokens).abs().max() <= 100.001


def test_judge_answers_on_a_quarter_grid():
    judge = Judge(JudgeConfig(channels=8))
    maps = judge(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert maps.heat.shape == (2, 16, 16)
    assert maps.kind.shape == (2, 9, 16, 16)
    assert maps.background.shape == (2, 6)
    assert judge.embed(torch.zeros(2, 3, 64, 64)).shape == (2, 64)


def test_configurations_travel_through_json_and_refuse_what_they_do_not_know():
    for name in ("scenes", "sd_v1"):
        config = preset(name)
        assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="widht"):
        ClipConfig.from_dict({"widht": 3})
    with pytest.raises(ConfigError, match=r"tiny.*scenes"):
        preset("tiny")
    with pytest.raises(ConfigError, match=r"channels x 1 = 30.*norm_groups=32"):
        UNetConfig(channels=30)


def test_a_model_whose_parts_do_not_fit_is_refused():
    small = scenes()
    values = small.to_dict()
    values["unet"]["context_dim"] = 64
    with pytest.raises(ConfigError, match="context_dim and clip.text.width differ"):
        ModelConfig.from_dict(values)


def test_the_scenes_model_is_as_small_as_promised():
    config = scenes()
    with torch.device("meta"):
        counts = [num_parameters(UNet(config.unet)), num_parameters(Autoencoder(config.autoencoder))]
    assert counts == [10_860_676, 681_911]
    assert config.latent_shape == (4, 16, 16)


@pytest.mark.parametrize(
    ("kind", "sizes", "name"),
    [
        (UNetConfig, {"num_heads": 0}, "UNetConfig.num_heads; given: 0; expected: 1 or more"),
        (UNetConfig, {"norm_groups": 0}, "norm_groups"),
        (UNetConfig, {"head_channels": 0}, "head_channels"),
        (UNetConfig, {"channels": -320, "num_heads": -8}, "channels; given: -320"),
        (TextEncoderConfig, {"num_heads": 0}, "num_heads"),
        (ImageEncoderConfig, {"patch_size": 0}, "patch_size"),
        (DiTConfig, {"depth": 0}, "depth"),
        (ConditionConfig, {"kind": "class", "unet": UNetConfig(), "rank": -1}, "rank; given: -1; expected: 0 or more"),
    ],
)
def test_sizes_that_cannot_be_are_named(kind, sizes, name):
    with pytest.raises(ConfigError, match=name):
        kind(**sizes)


def test_lists_become_tuples():
    made = UNetConfig(channel_mult=[1, 2], attention_levels=[0])
    assert made == UNetConfig(channel_mult=(1, 2), attention_levels=(0,)) and hash(made)
    assert UNetConfig.from_dict(made.to_dict()) == made
