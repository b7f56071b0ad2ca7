"""A real pipeline of tiny networks with random weights: draws noise in milliseconds, and every part is the real one."""

import torch

from ldm_tutor.config import (
    AutoencoderConfig,
    ClipConfig,
    ImageEncoderConfig,
    JudgeConfig,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
)
from ldm_tutor.data.scenes.sampling import caption_for
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.pipeline import Pipeline
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.weights.files import save_model

CONFIG = ModelConfig(
    name="tiny",
    picture_size=64,
    autoencoder=AutoencoderConfig(
        channels=4, channel_mult=(1, 1, 2), num_res_blocks=1, norm_groups=2, mid_attention=False, scale_factor=0.3
    ),
    clip=ClipConfig(
        text=TextEncoderConfig(vocab_size=768, context_length=32, width=16, num_layers=1, num_heads=2, mlp_width=16),
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
    sentences = [caption_for(number, "train") for number in range(1000)]
    tokenizer = Tokenizer.train(sentences, vocab_size=CONFIG.clip.text.vocab_size, context_length=32)
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


def save_folder(folder):
    """Write the tiny pipeline and a judge with random weights as a folder that `load_pipeline` opens."""
    pipe = make_pipeline()
    pipe.tokenizer.save(folder / "tokenizer")
    judge = JudgeConfig(channels=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = Judge(judge)
    schedule = {"schedule": CONFIG.schedule.to_dict()}
    save_model(folder / "autoencoder.safetensors", pipe.autoencoder, kind="autoencoder", config=CONFIG.autoencoder)
    save_model(folder / "clip.safetensors", pipe.clip, kind="clip", config=CONFIG.clip)
    save_model(folder / "unet.safetensors", pipe.unet, kind="unet", config=CONFIG.unet, metadata=schedule)
    save_model(folder / "judge.safetensors", reader, kind="judge", config=judge)
    return folder
