"""Our configurations in the words of diffusers and transformers: what their classes need to build the same model."""

from __future__ import annotations

from typing import Any

from ldm_tutor.config import AutoencoderConfig, ClipConfig, ImageEncoderConfig, TextEncoderConfig, UNetConfig


def unet_arguments(config: UNetConfig, sample_size: int | None = None) -> dict[str, Any]:
    """Return the arguments of diffusers' UNet2DConditionModel.

    Its `attention_head_dim` is, in this class, the number of heads (a slip that its published files depend on).
    """
    attention = [level in config.attention_levels for level in range(len(config.channel_mult))]
    return {
        "sample_size": sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": [config.channels * mult for mult in config.channel_mult],
        "layers_per_block": config.num_res_blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attention)],
        "attention_head_dim": config.num_heads,
        "cross_attention_dim": config.context_dim,
        "transformer_layers_per_block": config.transformer_depth,
        "norm_num_groups": config.norm_groups,
    }


def autoencoder_arguments(config: AutoencoderConfig, sample_size: int = 32) -> dict[str, Any]:
    """Return the arguments of diffusers' AutoencoderKL."""
    levels = len(config.channel_mult)
    return {
        "sample_size": sample_size,
        "in_channels": config.picture_channels,
        "out_channels": config.picture_channels,
        "block_out_channels": [config.channels * mult for mult in config.channel_mult],
        "layers_per_block": config.num_res_blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.mid_attention,
        "scaling_factor": config.scale_factor,
    }


def text_arguments(config: TextEncoderConfig, *, start_id: int, end_id: int) -> dict[str, Any]:
    """Return the arguments of transformers' CLIPTextConfig."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "bos_token_id": start_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
    }


def image_arguments(config: ImageEncoderConfig) -> dict[str, Any]:
    """Return the arguments of transformers' CLIPVisionConfig."""
    return {
        "image_size": config.picture_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
    }


def clip_arguments(config: ClipConfig, *, start_id: int, end_id: int) -> dict[str, Any]:
    """Return the arguments of transformers' CLIPConfig."""
    return {
        "text_config": text_arguments(config.text, start_id=start_id, end_id=end_id),
        "vision_config": image_arguments(config.image),
        "projection_dim": config.embed_dim,
    }
