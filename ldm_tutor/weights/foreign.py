"""Our configurations in the words of diffusers and transformers, and theirs in ours.

`..._arguments` give what their classes need to build the same model. `..._config` read a published configuration;
ConfigError names the first setting that our classes cannot follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_tutor.config import (
    AutoencoderConfig,
    BertEncoderConfig,
    ClipConfig,
    ImageEncoderConfig,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
    VQAutoencoderConfig,
)
from ldm_tutor.errors import ConfigError

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}  # ours: theirs


def unet_arguments(config: UNetConfig, sample_size: int | None = None) -> dict[str, Any]:
    """Return the arguments of diffusers' UNet2DConditionModel, or of its UNet2DModel for a U-Net without a context.

    `attention_head_dim` is the number of heads in the first (a slip that its published files depend on) and their
    width in the second. ConfigError where the class cannot build this U-Net.
    """
    arguments = {
        "sample_size": sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": _widths(config),
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": config.norm_groups,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
    }
    if config.context_dim is None:
        plain = "Resnet{}sampleBlock2D" if config.resblock_updown else "{}Block2D"
        resampler = "resnet" if config.resblock_updown else "conv"
        return arguments | {
            "down_block_types": _per_level(config, "AttnDownBlock2D", plain.format("Down")),
            "up_block_types": _per_level(config, "AttnUpBlock2D", plain.format("Up"))[::-1],
            "attention_head_dim": _head_channels(config),
            "attn_norm_num_groups": config.norm_groups,  # without it the middle loses a norm where the time scales
            "downsample_type": resampler,
            "upsample_type": resampler,
        }
    if config.resblock_updown:
        raise ConfigError(
            "unet_arguments: diffusers' UNet2DConditionModel has no residual blocks that change the side",
            given="resblock_updown=True with a context",
        )
    heads = [config.heads_at(width) for width in _widths(config)]
    return arguments | {
        "down_block_types": _per_level(config, "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": _per_level(config, "CrossAttnUpBlock2D", "UpBlock2D")[::-1],
        "attention_head_dim": config.num_heads if config.head_channels is None else heads,
        "cross_attention_dim": config.context_dim,
        "transformer_layers_per_block": config.transformer_depth,
    }


def autoencoder_arguments(config: AutoencoderConfig, sample_size: int = 32) -> dict[str, Any]:
    """Return the arguments of diffusers' AutoencoderKL, or of its VQModel for an autoencoder with a codebook."""
    arguments = {
        "sample_size": sample_size,
        "in_channels": config.picture_channels,
        "out_channels": config.picture_channels,
        "block_out_channels": _widths(config),
        "layers_per_block": config.num_res_blocks,
        "down_block_types": _per_level(config, "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": _per_level(config, "AttnUpDecoderBlock2D", "UpDecoderBlock2D")[::-1],
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.mid_attention,
        "scaling_factor": config.scale_factor,
    }
    if isinstance(config, VQAutoencoderConfig):
        arguments["num_vq_embeddings"] = config.codebook_size
    return arguments


def bert_arguments(config: BertEncoderConfig) -> dict[str, Any]:
    """Return the arguments of diffusers' LDMBertConfig; its dropout is 0.1 by default, the published models' is 0."""
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "d_model": config.width,
        "encoder_layers": config.num_layers,
        "encoder_ffn_dim": 4 * config.width,
        "encoder_attention_heads": config.num_heads,
        "head_dim": config.head_channels,
        "dropout": 0.0,
    }


def schedule_arguments(config: ScheduleConfig) -> dict[str, Any]:
    """Return the arguments of a diffusers scheduler for this noise schedule and a model that predicts the noise."""
    return {
        "num_train_timesteps": config.num_steps,
        "beta_schedule": SCHEDULES[config.kind],
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "prediction_type": "epsilon",
    }


def _widths(config: UNetConfig | AutoencoderConfig) -> list[int]:
    return [config.channels * mult for mult in config.channel_mult]


def _per_level(config: UNetConfig | AutoencoderConfig, with_attention: str, without: str) -> list[str]:
    levels = range(len(config.channel_mult))
    return [with_attention if level in config.attention_levels else without for level in levels]


def _head_channels(config: UNetConfig) -> int | None:
    """Return the width of a head of a UNet2DModel, which has the same at every level; None: one head."""
    if config.head_channels is None and config.num_heads > 1:
        raise ConfigError(
            "unet_arguments: diffusers' UNet2DModel has one width of heads for all levels",
            given=f"num_heads={config.num_heads}",
            expected="head_channels, or num_heads=1",
        )
    return config.head_channels


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


# What our classes have built in, in the words of theirs. A setting that is in no list has to be None or False.
_UNET_FIXED = {
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "dropout": 0.0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "time_embedding_type": "positional",
    "resnet_out_scale_factor": 1.0,
    "addition_embed_type_num_heads": 64,  # of an addition that is not there
}
_AUTOENCODER_FIXED = {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True}
_HINTS = ("sample_size", "force_upcast", "upcast_attention")  # for the pipeline or the number type, not the network


def unet_config(arguments: Mapping[str, Any]) -> UNetConfig:
    """Return our configuration of a UNet2DConditionModel with these settings; what is missing has its default."""
    given = {
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1280,
        "attention_head_dim": 8,
        **_settings(arguments),
    }
    widths = given["block_out_channels"]
    heads = given.pop("num_attention_heads", None) or given.pop("attention_head_dim")
    per_level = heads if isinstance(heads, list) else [heads] * len(widths)
    depth = given.pop("transformer_layers_per_block", 1)
    same_width = len({width // num for width, num in zip(widths, per_level, strict=True)}) == 1
    by_width = len(set(per_level)) > 1 and same_width
    config = UNetConfig(
        in_channels=given.get("in_channels", 4),
        out_channels=given.get("out_channels", 4),
        channels=widths[0],
        channel_mult=_multiples(widths),
        num_res_blocks=given.get("layers_per_block", 2),
        attention_levels=_levels(given["down_block_types"], "CrossAttnDownBlock2D"),
        num_heads=UNetConfig.num_heads if by_width else per_level[0],
        head_channels=widths[0] // per_level[0] if by_width else None,
        context_dim=given["cross_attention_dim"],
        transformer_depth=depth[0] if isinstance(depth, list) else depth,
        norm_groups=given.get("norm_num_groups", 32),
        scale_shift_norm=given.get("resnet_time_scale_shift", "default") == "scale_shift",
    )
    if [config.heads_at(width) for width in widths] != per_level:
        raise ConfigError("attention_head_dim", given=heads, expected="one number of heads, or one width of heads")
    if isinstance(depth, list) and len(set(depth)) > 1:
        raise ConfigError("transformer_layers_per_block", given=depth, expected="one depth for all levels")
    _compare(given, {**_UNET_FIXED, **unet_arguments(config)})
    return config


def autoencoder_config(arguments: Mapping[str, Any]) -> AutoencoderConfig:
    """Return our configuration of an AutoencoderKL with these settings; what is missing has its default."""
    given = {"down_block_types": ["DownEncoderBlock2D"], "block_out_channels": [64], **_settings(arguments)}
    widths = given["block_out_channels"]
    config = AutoencoderConfig(
        picture_channels=given.get("in_channels", 3),
        channels=widths[0],
        channel_mult=_multiples(widths),
        num_res_blocks=given.get("layers_per_block", 1),
        latent_channels=given.get("latent_channels", 4),
        mid_attention=given.get("mid_block_add_attention", True),
        norm_groups=given.get("norm_num_groups", 32),
        scale_factor=given.get("scaling_factor", 0.18215),
        attention_levels=_levels(given["down_block_types"], "AttnDownEncoderBlock2D"),
    )
    _compare(given, {**_AUTOENCODER_FIXED, **autoencoder_arguments(config)})
    return config


def text_config(arguments: Mapping[str, Any]) -> TextEncoderConfig:
    """Return our configuration of a CLIPTextModel with these settings; what is missing has its default."""
    _need_clip(arguments, "text encoder")
    return TextEncoderConfig(
        vocab_size=arguments.get("vocab_size", 49408),
        context_length=arguments.get("max_position_embeddings", 77),
        width=arguments.get("hidden_size", 512),
        num_layers=arguments.get("num_hidden_layers", 12),
        num_heads=arguments.get("num_attention_heads", 8),
        mlp_width=arguments.get("intermediate_size", 2048),
    )


def bert_config(arguments: Mapping[str, Any]) -> BertEncoderConfig:
    """Return our configuration of an LDMBertModel with these settings; what is missing has its default."""
    config = BertEncoderConfig(
        vocab_size=arguments.get("vocab_size", 30522),
        context_length=arguments.get("max_position_embeddings", 77),
        width=arguments.get("d_model", 1280),
        num_layers=arguments.get("encoder_layers", 32),
        num_heads=arguments.get("encoder_attention_heads", 8),
        head_channels=arguments.get("head_dim", 64),
    )
    for name, value in {"activation_function": "gelu", "encoder_ffn_dim": 4 * config.width}.items():
        if arguments.get(name, value) != value:
            raise ConfigError(name, given=arguments[name], expected=f"{value!r}, which our class would have")
    return config


def image_config(arguments: Mapping[str, Any]) -> ImageEncoderConfig:
    """Return our configuration of a CLIPVisionModel with these settings; what is missing has its default."""
    _need_clip(arguments, "image encoder")
    if arguments.get("num_channels", 3) != 3:
        raise ConfigError("num_channels", given=arguments["num_channels"], expected="3")
    return ImageEncoderConfig(
        picture_size=arguments.get("image_size", 224),
        patch_size=arguments.get("patch_size", 32),
        width=arguments.get("hidden_size", 768),
        num_layers=arguments.get("num_hidden_layers", 12),
        num_heads=arguments.get("num_attention_heads", 12),
        mlp_width=arguments.get("intermediate_size", 3072),
    )


def clip_config(arguments: Mapping[str, Any]) -> ClipConfig:
    """Return our configuration of a CLIPModel with these settings; what is missing has its default."""
    if arguments.get("model_type", "clip") != "clip":
        raise ConfigError("model_type", given=arguments["model_type"], expected="'clip', with both towers")
    text = text_config(arguments.get("text_config") or {})
    image = image_config(arguments.get("vision_config") or {})
    return ClipConfig(text=text, image=image, embed_dim=arguments.get("projection_dim", 512))


def _need_clip(arguments: Mapping[str, Any], what: str) -> None:
    for name, value in {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}.items():
        if arguments.get(name, value) != value:
            raise ConfigError(name, given=arguments[name], expected=f"{value!r}, which our {what} has built in")


def schedule_config(arguments: Mapping[str, Any]) -> ScheduleConfig:
    """Return the noise schedule of a diffusers scheduler; the rest of its settings are the sampler's."""
    kinds = {theirs: ours for ours, theirs in SCHEDULES.items()}
    kind = arguments.get("beta_schedule", "linear")
    if kind not in kinds:
        raise ConfigError("beta_schedule", given=kind, expected=f"one of {sorted(kinds)}")
    for name, value in {"prediction_type": "epsilon", "trained_betas": None, "rescale_betas_zero_snr": False}.items():
        if arguments.get(name, value) != value:
            raise ConfigError(name, given=arguments[name], expected=repr(value))
    return ScheduleConfig(
        num_steps=arguments.get("num_train_timesteps", 1000),
        kind=kinds[kind],
        beta_start=arguments.get("beta_start", 0.0001),
        beta_end=arguments.get("beta_end", 0.02),
    )


def _settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the network, tuples as lists; what begins with _ is about the file."""
    names = [name for name in arguments if not name.startswith("_") and name not in _HINTS]
    return {name: list(value) if isinstance(value := arguments[name], tuple) else value for name in names}


def _multiples(widths: list[int]) -> tuple[int, ...]:
    if any(width % widths[0] for width in widths):
        raise ConfigError("block_out_channels", given=widths, expected="multiples of the first")
    return tuple(width // widths[0] for width in widths)


def _levels(block_types: list[str], with_attention: str) -> tuple[int, ...]:
    return tuple(level for level, name in enumerate(block_types) if name == with_attention)


def _compare(given: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in ours and value != ours[name]:
            raise ConfigError(name, given=value, expected=f"{ours[name]!r}, which our class would have")
        if name not in ours and value not in (None, False):
            raise ConfigError(f"{name}: a setting that our class does not know", given=value, expected="None or False")
