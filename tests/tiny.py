"""A real pipeline of tiny networks with random weights: draws noise in milliseconds, and every part is the real one."""

import torch

from ldm_tutor.config import (
    AutoencoderConfig,
    ClipConfig,
    ImageEncoderConfig,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
)
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.pipeline import Pipeline
from ldm_tutor.schedule import NoiseSchedule

CONFIG = ModelConfig(
    name="tiny",
    picture_size=64,
    autoencoder=AutoencoderConfig(
        channels=4, channel_mult=(1, 1, 2), num_res_blocks=1, norm_groups=2, mid_attention=False, scale_factor=0.3
    ),
    clip=ClipConfig(
        text=TextEncoderConfig(vocab_size=600, context_length=32, width=16, num_layers=1, num_heads=2, mlp_width=16),
        image=ImageEncoderConfig(picture_size=64, patch_size=32, width=16, num_layers=1, num_heads=2, mlp_width=16),
        embed_dim=16,
    ),
    unet=UNetConfig(
        channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(1,),
        num_heads=2,
        context_dim=16,
        norm_groups=4,
    ),
)


def make_pipeline(seed=0):
    """Return the tiny pipeline; its weights are large enough for sentence and seed to show in the picture."""
    sentences = ["a red bicycle in front of a blue house at night", "a large yellow boat on the left"]
    tokenizer = Tokenizer.train(sentences, vocab_size=560, context_length=32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = Clip(CONFIG.clip, end_id=tokenizer.end_id), UNet(CONFIG.unet), Autoencoder(CONFIG.autoencoder)
        with torch.no_grad():
            for part in parts:
                for weight in part.parameters():
                    if weight.dim() > 1:
                        weight.normal_(std=0.6 / weight[0].numel() ** 0.5)
            parts[0].text.token_embedding.weight.normal_()
    return Pipeline(CONFIG, tokenizer, *(part.eval() for part in parts), NoiseSchedule())
