"""Our networks against those of diffusers and transformers: the same names, sizes and numbers."""

import dataclasses

import pytest
import torch

from ldm_tutor.config import (
    AutoencoderConfig,
    ClipConfig,
    DiscriminatorConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
    UNetConfig,
    scenes,
    sd_v1,
)
from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.image_encoder import ImageEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.weights import foreign
from ldm_tutor.weights.names import (
    AUTOENCODER_DIFFUSERS,
    CLIP_TRANSFORMERS,
    TEXT_TRANSFORMERS,
    UNET_DIFFUSERS,
    from_foreign,
    rename,
    rules_for,
    to_foreign,
)

TOLERANCE = 1e-5  # largest absolute difference, as a part of the largest absolute number of the output
START_ID, END_ID = 598, 599

UNETS = {
    "scenes": scenes().unet,
    "two transformers deep, attention at one level": UNetConfig(
        channels=32, channel_mult=(1, 2, 2), num_res_blocks=2, attention_levels=(1,), num_heads=2, context_dim=24,
        transformer_depth=2, norm_groups=8,
    ),
    "inpainting's nine channels, one level": UNetConfig(
        in_channels=9, channels=32, channel_mult=(1,), num_res_blocks=1, attention_levels=(), num_heads=8,
        context_dim=16,
    ),
}  # fmt: skip
AUTOENCODERS = {
    "scenes": scenes().autoencoder,
    "four levels, two blocks": AutoencoderConfig(channels=32, norm_groups=16),
    "no attention": AutoencoderConfig(
        channels=16, channel_mult=(1, 2), norm_groups=8, latent_channels=3, mid_attention=False
    ),
}
TEXT = TextEncoderConfig(vocab_size=600, context_length=20, width=48, num_layers=3, num_heads=4, mlp_width=96)
IMAGE = ImageEncoderConfig(picture_size=32, patch_size=8, width=64, num_layers=3, num_heads=4, mlp_width=128)
CLIP = ClipConfig(text=TEXT, image=IMAGE, embed_dim=40)


# ---------------------------------------------------------------- numbers


def randomize(model):
    """Give every parameter values that matter: also those that start at zero or one."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim >= 2:
                value.normal_(std=value[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                value.normal_(mean=1.0, std=0.3)
            elif name != "logit_scale":
                value.normal_(std=0.3)
    return model.eval()


def copy_to(theirs, ours, config):
    """Load our weights into a foreign model, strictly."""
    theirs.load_state_dict(rename(ours.state_dict(), rules_for(config), "to_foreign"), strict=True)
    return theirs.eval()


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-3
    assert (ours - theirs).abs().max() / theirs.abs().max() <= TOLERANCE


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    diffusers = pytest.importorskip("diffusers")
    config = UNETS[name]
    ours = randomize(UNet(config))
    theirs = copy_to(diffusers.UNet2DConditionModel(**foreign.unet_arguments(config)), ours, config)
    latents = torch.randn(2, config.in_channels, 16, 8)
    context = torch.randn(2, 7, config.context_dim)
    t = torch.tensor([981, 3])
    assert_close(ours(latents, t, context), theirs(latents, t, context).sample)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder(name):
    diffusers = pytest.importorskip("diffusers")
    config = AUTOENCODERS[name]
    ours = randomize(Autoencoder(config))
    theirs = copy_to(diffusers.AutoencoderKL(**foreign.autoencoder_arguments(config)), ours, config)
    pictures = torch.rand(2, 3, 32, 48) * 2 - 1
    our_latents, their_latents = ours.encode(pictures), theirs.encode(pictures).latent_dist
    assert_close(our_latents.mean, their_latents.mean)
    assert_close(our_latents.logvar, their_latents.logvar)
    assert_close(our_latents.kl(), their_latents.kl())
    latents = torch.randn(2, config.latent_channels, 8, 4)
    assert_close(ours.decode(latents), theirs.decode(latents).sample)
    assert theirs.config.scaling_factor == config.scale_factor


def some_tokens():
    tokens = torch.randint(0, START_ID, (3, TEXT.context_length))
    tokens[:, 0] = START_ID
    for row, length in enumerate((4, 9, TEXT.context_length - 1)):
        tokens[row, length:] = END_ID
    return tokens


def test_text_encoder():
    transformers = pytest.importorskip("transformers")
    arguments = foreign.text_arguments(TEXT, start_id=START_ID, end_id=END_ID)
    ours = randomize(TextEncoder(TEXT))
    theirs = copy_to(transformers.CLIPTextModel(transformers.CLIPTextConfig(**arguments)), ours, TEXT)
    tokens = some_tokens()
    assert_close(ours(tokens), theirs(tokens).last_hidden_state)
    assert_close(ours(tokens[:, :5]), theirs(tokens[:, :5]).last_hidden_state)


def test_image_encoder():
    transformers = pytest.importorskip("transformers")
    ours = randomize(ImageEncoder(IMAGE))
    vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**foreign.image_arguments(IMAGE)))
    theirs = copy_to(vision, ours, IMAGE)
    pictures = torch.randn(3, 3, 32, 32)
    assert_close(ours(pictures), theirs(pictures).pooler_output)


def test_clip():
    transformers = pytest.importorskip("transformers")
    arguments = foreign.clip_arguments(CLIP, start_id=START_ID, end_id=END_ID)
    ours = randomize(Clip(CLIP, end_id=END_ID))
    theirs = copy_to(transformers.CLIPModel(transformers.CLIPConfig(**arguments)), ours, CLIP)
    pictures, tokens = torch.randn(2, 3, 32, 32), some_tokens()
    out = theirs(input_ids=tokens, pixel_values=pictures)
    assert_close(ours.embed_text(tokens), out.text_embeds)
    assert_close(ours.embed_pictures(pictures), out.image_embeds)
    assert_close(ours(pictures, tokens), out.logits_per_image)


def test_a_wrong_layer_is_noticed():
    """The comparison is sharp enough to see that one norm has another epsilon."""
    diffusers = pytest.importorskip("diffusers")
    config = dataclasses.replace(UNETS["scenes"], channel_mult=(1,), attention_levels=(0,))
    ours = randomize(UNet(config))
    theirs = copy_to(diffusers.UNet2DConditionModel(**foreign.unet_arguments(config)), ours, config)
    ours.norm_out.eps = 1e-3
    latents, context, t = torch.randn(1, 4, 8, 8), torch.randn(1, 5, config.context_dim), torch.tensor([10])
    with pytest.raises(AssertionError):
        assert_close(ours(latents, t, context), theirs(latents, t, context).sample)


# ---------------------------------------------------------------- names


def our_model(config):
    if isinstance(config, ClipConfig):
        return Clip(config, end_id=config.text.vocab_size - 1)
    classes = {UNetConfig: UNet, AutoencoderConfig: Autoencoder, TextEncoderConfig: TextEncoder}
    return (classes | {ImageEncoderConfig: ImageEncoder})[type(config)](config)


def their_model(config):
    if isinstance(config, UNetConfig):
        return pytest.importorskip("diffusers").UNet2DConditionModel(**foreign.unet_arguments(config))
    if isinstance(config, AutoencoderConfig):
        return pytest.importorskip("diffusers").AutoencoderKL(**foreign.autoencoder_arguments(config))
    transformers = pytest.importorskip("transformers")
    ends = {"start_id": 1, "end_id": 2}
    if isinstance(config, TextEncoderConfig):
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**foreign.text_arguments(config, **ends)))
    if isinstance(config, ImageEncoderConfig):
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**foreign.image_arguments(config)))
    return transformers.CLIPModel(transformers.CLIPConfig(**foreign.clip_arguments(config, **ends)))


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def configs(preset):
    return [preset.unet, preset.autoencoder, preset.clip, preset.clip.text, preset.clip.image]


@pytest.mark.parametrize(
    "config",
    [*configs(scenes()), *configs(sd_v1())],
    ids=[f"{name}-{part}" for name in ("scenes", "sd_v1") for part in ("unet", "autoencoder", "clip", "text", "image")],
)
def test_names_are_a_bijection_with_equal_shapes(config):
    with torch.device("meta"):
        ours, theirs = shapes(our_model(config)), shapes(their_model(config))
    rules = rules_for(config)
    assert rename(ours, rules, "to_foreign") == theirs
    assert rename(theirs, rules, "from_foreign") == ours
    assert [from_foreign(to_foreign(name, config), config) for name in ours] == list(ours)


@pytest.mark.parametrize(
    "part, num_parameters, num_tensors",
    [("unet", 859_520_964, 686), ("autoencoder", 83_653_863, 248), ("text", 123_060_480, 196)],
)
def test_the_full_size_model_has_the_published_number_of_parameters(part, num_parameters, num_tensors):
    config = sd_v1().clip.text if part == "text" else getattr(sd_v1(), part)
    with torch.device("meta"):
        model = our_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert len(model.state_dict()) == num_tensors


@pytest.mark.parametrize(
    "rules, ours, theirs",
    [
        (UNET_DIFFUSERS, "up.1.transformers.2.blocks.0.cross_attn.to_out.bias",
         "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0.bias"),
        (UNET_DIFFUSERS, "down.0.downsample.conv.weight", "down_blocks.0.downsamplers.0.conv.weight"),
        (AUTOENCODER_DIFFUSERS, "decoder.levels.12.resize.conv.bias", "decoder.up_blocks.12.upsamplers.0.conv.bias"),
        (CLIP_TRANSFORMERS, "text.layers.11.self_attn.to_q.weight",
         "text_model.encoder.layers.11.self_attn.q_proj.weight"),
        (CLIP_TRANSFORMERS, "logit_scale", "logit_scale"),
    ],
)  # fmt: skip
def test_names_by_hand(rules, ours, theirs):
    assert rules.to_foreign(ours) == theirs
    assert rules.from_foreign(theirs) == ours


@pytest.mark.parametrize(
    "name",
    ["", "conv_in", "conv_in.weight.", "conv_in.gamma", "xconv_in.weight", "down.01.downsample.conv.weight",
     "down.x.downsample.conv.weight", "down_blocks.0.downsamplers.0.conv.weight", "conv_inxweight"],
)  # fmt: skip
def test_an_unknown_name_is_an_error_that_names_it(name):
    if name == "conv_in":  # a bare parameter may be called so; shapes are compared when a file is read
        assert UNET_DIFFUSERS.to_foreign(name) == name
        return
    with pytest.raises(WeightsError) as error:
        UNET_DIFFUSERS.to_foreign(name)
    assert repr(name) in str(error.value)


def test_old_names_are_read_and_never_written():
    old, new = "encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight"
    assert AUTOENCODER_DIFFUSERS.from_foreign(old) == AUTOENCODER_DIFFUSERS.from_foreign(new)
    assert AUTOENCODER_DIFFUSERS.to_foreign("encoder.mid.attention.attn.to_q.weight") == new
    state = {"text_model.embeddings.position_ids": 0, "text_model.final_layer_norm.bias": 1}
    assert rename(state, TEXT_TRANSFORMERS, "from_foreign") == {"norm_out.bias": 1}
    assert from_foreign("vision_model.pre_layrnorm.bias", IMAGE) == "norm_in.bias"
    with pytest.raises(WeightsError, match="two parameters are named"):
        rename({old: 1, new: 2}, AUTOENCODER_DIFFUSERS, "from_foreign")


def test_wrong_directions_and_configurations_are_refused():
    with pytest.raises(ConfigError, match="to_foreign or from_foreign"):
        rename({}, UNET_DIFFUSERS, "sideways")
    with pytest.raises(ConfigError, match="DiscriminatorConfig"):
        rules_for(DiscriminatorConfig())
