"""Sizes of every part as frozen dataclasses, the presets as functions, and their way to and from JSON.

The same classes describe the model that a laptop trains (`scenes`) and the full-size ones (`sd_v1`): a lesson
changes numbers here, never code.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ldm_tutor.errors import ConfigError

ConfigType = TypeVar("ConfigType", bound="Config")


def _later(default: Any) -> Any:
    """Return a field that came after the first models were saved: it is written only where it is not `default`.

    So what was written before (weights, checkpoints) is equal to what is written now.
    """
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations: validation helpers, and JSON both ways."""

    def __post_init__(self) -> None:
        """Refuse whole numbers below 1 (or the field's `least`), and keep lists as tuples, which compare and hash."""
        for each in dataclasses.fields(self):
            value, least = getattr(self, each.name), each.metadata.get("least", 1)
            if isinstance(value, list):
                object.__setattr__(self, each.name, tuple(value))
            self._need(type(value) is not int or value >= least, each.name, f"{least} or more")

    def _need(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ConfigError(f"{type(self).__name__}.{name}", given=getattr(self, name), expected=expected)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dictionaries, ready for JSON."""
        values: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if not (each.metadata.get("later") and value == each.default):
                values[each.name] = value.to_dict() if isinstance(value, Config) else value
        return json.loads(json.dumps(values))

    @classmethod
    def from_dict(cls: type[ConfigType], values: dict[str, Any]) -> ConfigType:
        """Rebuild a configuration; an unknown or missing name raises ConfigError naming it."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ConfigError(f"{cls.__name__}.from_dict: unknown name", given=unknown, expected=f"{sorted(fields)}")
        ready: dict[str, Any] = {}
        for name, value in values.items():
            part = _PARTS.get((cls.__name__, name))
            if part is not None and value is not None:
                value = part.from_dict(value)
            ready[name] = value
        try:
            return cls(**ready)
        except TypeError as error:  # a name without a default is missing
            raise ConfigError(f"{cls.__name__}.from_dict: {error}", given=sorted(values)) from error


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Config):
    """KL autoencoder. `channel_mult` has one entry per level; each level but the last halves the side.

    `attention_levels` counts levels from 0, the finest: attention behind each residual block there.
    """

    picture_channels: int = 3
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 4
    mid_attention: bool = True
    norm_groups: int = 32
    scale_factor: float = 0.18215  # latents are multiplied by it: 1 / their standard deviation
    attention_levels: tuple[int, ...] = _later(())

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.channel_mult)
        self._need(levels >= 1, "channel_mult", "at least one level")
        self._need(
            all(0 <= level < levels for level in self.attention_levels), "attention_levels", f"levels 0 to {levels - 1}"
        )
        self._need(self.scale_factor > 0, "scale_factor", "a positive number")
        self._need(self.channels % self.norm_groups == 0, "channels", f"a multiple of norm_groups={self.norm_groups}")

    @property
    def downsampling(self) -> int:
        """The factor f between the side of the picture and the side of the latents."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def moment_channels(self) -> int:
        """How many numbers the encoder gives per position: mean and log variance of each latent."""
        return 2 * self.latent_channels


@dataclass(frozen=True, kw_only=True)
class VQAutoencoderConfig(AutoencoderConfig):
    """Autoencoder with a codebook: each position is one of `codebook_size` vectors of `latent_channels` numbers."""

    channel_mult: tuple[int, ...] = (1, 2, 4)
    latent_channels: int = 3
    scale_factor: float = 1.0
    codebook_size: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.codebook_size >= 2, "codebook_size", "2 or more")

    @property
    def moment_channels(self) -> int:
        """How many numbers the encoder gives per position: the latents themselves."""
        return self.latent_channels


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(Config):
    """CLIP's text transformer: causal, pre-norm; one output vector per token."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.width % self.num_heads == 0, "width", f"a multiple of num_heads={self.num_heads}")
        self._need(self.context_length >= 3, "context_length", "3 or more (begin, a word, end)")


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig(Config):
    """CLIP's vision transformer: the picture cut into patches, one class token."""

    picture_size: int = 224
    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_width: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.picture_size % self.patch_size == 0, "picture_size", f"a multiple of {self.patch_size}")
        self._need(self.width % self.num_heads == 0, "width", f"a multiple of num_heads={self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class ClipConfig(Config):
    """Both towers and the width of the space in which they meet."""

    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    embed_dim: int = 768


@dataclass(frozen=True, kw_only=True)
class BertEncoderConfig(Config):
    """The text transformer of the paper's own models, trained with the U-Net: no mask, every token sees every other.

    Its heads together are `num_heads` x `head_channels` wide, whatever the tokens' `width` is.
    """

    vocab_size: int = 30522
    context_length: int = 77
    width: int = 1280
    num_layers: int = 32
    num_heads: int = 8
    head_channels: int = 64


@dataclass(frozen=True, kw_only=True)
class ClassEncoderConfig(Config):
    """One learned vector per class: the context of class-conditional models. The last class may mean "no class"."""

    num_classes: int = 1000
    width: int = 512


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Config):
    """The denoiser. `attention_levels` counts levels from 0, the finest; the middle always has attention.

    `context_dim` None is a U-Net without a context: plain self-attention in place of the transformers.
    `head_channels`, where given, fixes the width of a head instead of their number.
    `resblock_updown`: residual blocks change the side, instead of one convolution.
    `scale_shift_norm`: the time vector scales and shifts what the second norm gives, instead of being added before it.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    num_heads: int = 8
    context_dim: int | None = 768
    transformer_depth: int = 1
    norm_groups: int = 32
    head_channels: int | None = _later(None)
    resblock_updown: bool = _later(False)
    scale_shift_norm: bool = _later(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.channel_mult)
        self._need(levels >= 1, "channel_mult", "at least one level")
        self._need(
            all(0 <= level < levels for level in self.attention_levels), "attention_levels", f"levels 0 to {levels - 1}"
        )
        for mult in self.channel_mult:
            width = self.channels * mult
            name = "num_heads" if self.head_channels is None else "head_channels"
            divisor = getattr(self, name)
            self._need(
                width % self.norm_groups == 0 and width % divisor == 0,
                "channels",
                f"channels x {mult} = {width} to be a multiple of norm_groups={self.norm_groups} "
                f"and of {name}={divisor}",
            )

    def heads_at(self, width: int) -> int:
        """Return the number of attention heads on a feature map of `width` channels."""
        return self.num_heads if self.head_channels is None else width // self.head_channels


CONDITIONS = ("layout", "inpainting", "upscaling", "class", "semantic")


@dataclass(frozen=True, kw_only=True)
class SemanticEncoderConfig(Config):
    """A label map, halved `num_halvings` times, and a 1x1 convolution from one channel per label to `channels`."""

    num_labels: int = 182
    channels: int = 3
    num_halvings: int = field(default=2, metadata={"least": 0})


@dataclass(frozen=True, kw_only=True)
class ConditionConfig(Config):
    """What steers `unet`: `extra_channels`, an encoder (or none), and differences of `rank` (0: weights of its own)."""

    kind: str
    unet: UNetConfig
    rank: int = field(default=16, metadata={"least": 0})
    convolutions: bool = True  # differences to them too, not only to what is in transformers
    extra_channels: int = field(default=0, metadata={"least": 0})
    boxes: BertEncoderConfig | None = None
    classes: ClassEncoderConfig | None = None
    labels: SemanticEncoderConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.kind in CONDITIONS, "kind", f"one of {CONDITIONS}")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(Config):
    """PatchGAN: `num_layers` strided 4x4 convolutions before the one that gives a verdict per patch."""

    picture_channels: int = 3
    channels: int = 64
    num_layers: int = 3


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """Noise schedule: how much of the picture is left after each step. `scaled_linear` is Stable Diffusion's."""

    num_steps: int = 1000
    kind: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(self.num_steps >= 2, "num_steps", "2 or more")
        self._need(self.kind in SCHEDULE_KINDS, "kind", f"one of {SCHEDULE_KINDS}")
        self._need(0 < self.beta_start < self.beta_end < 1, "beta_start", "0 < beta_start < beta_end < 1")


SCHEDULE_KINDS = ("linear", "scaled_linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class DrawingConfig(Config):
    """How a model draws a sentence unless told otherwise; for the course's model, what did best (docs/training.md)."""

    sampler: str = "ddpm"
    guidance: float = 2.0


FOREIGN_DRAWING = DrawingConfig(sampler="dpm++", guidance=4.0)  # of a model that another program has made


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Config):
    """The small network that reads kinds, colours, sizes and places back from a 64x64 picture."""

    channels: int = 32
    num_kinds: int = 9
    num_colors: int = 8
    num_sizes: int = 3
    num_backgrounds: int = 6


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """A whole latent diffusion model: one sentence in, one picture of `picture_size` pixels out."""

    name: str
    picture_size: int
    autoencoder: AutoencoderConfig
    clip: ClipConfig
    unet: UNetConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        f = self.autoencoder.downsampling
        self._need(self.picture_size % f == 0, "picture_size", f"a multiple of the autoencoder's factor {f}")
        if self.unet.context_dim != self.clip.text.width:
            raise ConfigError(
                f"ModelConfig {self.name!r}: unet.context_dim and clip.text.width differ",
                given=(self.unet.context_dim, self.clip.text.width),
                expected="the same width: the U-Net reads the text encoder's vectors",
            )
        if self.unet.out_channels != self.autoencoder.latent_channels:
            raise ConfigError(
                f"ModelConfig {self.name!r}: unet.out_channels and autoencoder.latent_channels differ",
                given=(self.unet.out_channels, self.autoencoder.latent_channels),
                expected="the same number: the U-Net predicts the noise on the latents",
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of one picture."""
        side = self.picture_size // self.autoencoder.downsampling
        return self.autoencoder.latent_channels, side, side


_PARTS: dict[tuple[str, str], type[Config]] = {
    ("ConditionConfig", "unet"): UNetConfig,
    ("ConditionConfig", "boxes"): BertEncoderConfig,
    ("ConditionConfig", "classes"): ClassEncoderConfig,
    ("ConditionConfig", "labels"): SemanticEncoderConfig,
    ("ClipConfig", "text"): TextEncoderConfig,
    ("ClipConfig", "image"): ImageEncoderConfig,
    ("ModelConfig", "autoencoder"): AutoencoderConfig,
    ("ModelConfig", "clip"): ClipConfig,
    ("ModelConfig", "unet"): UNetConfig,
    ("ModelConfig", "schedule"): ScheduleConfig,
}


def scenes() -> ModelConfig:
    """The course's own model: 64x64 captioned scenes, 16x16x4 latents, trained on two CPU cores."""
    text = TextEncoderConfig(vocab_size=768, context_length=32, width=128, num_layers=2, num_heads=4, mlp_width=512)
    image = ImageEncoderConfig(picture_size=64, patch_size=8, width=128, num_layers=4, num_heads=4, mlp_width=512)
    clip = ClipConfig(text=text, image=image, embed_dim=128)
    autoencoder = AutoencoderConfig(
        channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, norm_groups=4, scale_factor=1.0
    )
    unet = UNetConfig(
        channels=64, channel_mult=(1, 2, 3), num_res_blocks=1, attention_levels=(1, 2), num_heads=4, context_dim=128,
        norm_groups=16,
    )  # fmt: skip
    return ModelConfig(name="scenes", picture_size=64, autoencoder=autoencoder, clip=clip, unet=unet)


def sd_v1() -> ModelConfig:
    """Stable Diffusion v1: 512x512 pictures, 64x64x4 latents, CLIP ViT-L/14."""
    return ModelConfig(
        name="sd_v1", picture_size=512, autoencoder=AutoencoderConfig(), clip=ClipConfig(), unet=UNetConfig()
    )


PRESETS = {"scenes": scenes, "sd_v1": sd_v1}


def preset(name: str) -> ModelConfig:
    """Return the preset called `name`; an unknown name raises ConfigError listing the known ones."""
    if name not in PRESETS:
        raise ConfigError("unknown preset", given=name, expected=f"one of {sorted(PRESETS)}")
    return PRESETS[name]()
