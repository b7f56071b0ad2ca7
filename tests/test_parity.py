"""Our networks against those of diffusers and transformers, with the same random weights under their names."""

import dataclasses

import pytest
import torch

from ldm_tutor.config import AutoencoderConfig, ClipConfig, ImageEncoderConfig, TextEncoderConfig, UNetConfig, scenes
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.image_encoder import ImageEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.weights import foreign
from ldm_tutor.weights.names import rename, rules_for

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
    t = torch.tensor([981.0, 3.0])
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
    latents, context, t = torch.randn(1, 4, 8, 8), torch.randn(1, 5, config.context_dim), torch.tensor([10.0])
    with pytest.raises(AssertionError):
        assert_close(ours(latents, t, context), theirs(latents, t, context).sample)
