"""Every model of the latent-diffusion paper and of Stable Diffusion v1, in the words of our configurations.

Rombach et al. 2022 (arXiv 2112.10752), tables 8 and 12 to 15, and the configurations published with its code. Where the
two differ, the preset says so and follows the code. Parameter counts are those of our classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from ldm_tutor.config import (
    AutoencoderConfig,
    BertEncoderConfig,
    ClassEncoderConfig,
    ModelConfig,
    ScheduleConfig,
    UNetConfig,
    VQAutoencoderConfig,
    sd_v1,
)
from ldm_tutor.errors import ConfigError

# ---------------------------------------------------------------- first stages

FIRST_STAGES: dict[str, AutoencoderConfig] = {
    "kl_f4": AutoencoderConfig(channel_mult=(1, 2, 4), latent_channels=3, scale_factor=1.0),
    "kl_f8": AutoencoderConfig(),
    "kl_f16": AutoencoderConfig(
        channel_mult=(1, 1, 2, 2, 4), latent_channels=16, attention_levels=(4,), scale_factor=1.0
    ),
    "kl_f32": AutoencoderConfig(
        channel_mult=(1, 1, 2, 2, 4, 4), latent_channels=64, attention_levels=(4, 5), scale_factor=1.0
    ),
    "vq_f4": VQAutoencoderConfig(),
    "vq_f4_noattn": VQAutoencoderConfig(mid_attention=False),
    "vq_f8": VQAutoencoderConfig(
        channel_mult=(1, 2, 2, 4), latent_channels=4, attention_levels=(3,), codebook_size=16384
    ),
    "vq_f8_n256": VQAutoencoderConfig(
        channel_mult=(1, 2, 2, 4), latent_channels=4, attention_levels=(3,), codebook_size=256
    ),
    "vq_f16": VQAutoencoderConfig(
        channel_mult=(1, 1, 2, 2, 4), latent_channels=8, attention_levels=(4,), codebook_size=16384
    ),
}


def first_stage(name: str) -> AutoencoderConfig:
    """Return one of the paper's nine autoencoders, `kl_f4` to `vq_f16` (f: pixels per latent position and side).

    A KL autoencoder's scale factor is 1 / the standard deviation of its latents and belongs to the model that uses
    it: 0.18215 for `kl_f8` in Stable Diffusion, 1 where nothing is published. ConfigError for an unknown name.
    """
    if name not in FIRST_STAGES:
        raise ConfigError("first_stage: unknown autoencoder", given=name, expected=f"one of {sorted(FIRST_STAGES)}")
    return FIRST_STAGES[name]


# ---------------------------------------------------------------- whole models


@dataclass(frozen=True, kw_only=True)
class PaperModel:
    """A model of the paper: pictures of `picture_size` pixels, and what its U-Net is told beside the noisy latents.

    `condition`: the encoder whose vectors the U-Net reads by cross-attention, None where it has none. What is
    concatenated instead are the U-Net's in_channels beyond its out_channels.
    """

    name: str
    picture_size: int
    autoencoder: AutoencoderConfig
    unet: UNetConfig
    condition: BertEncoderConfig | ClassEncoderConfig | None = None
    schedule: ScheduleConfig

    def __post_init__(self) -> None:
        if self.condition is not None and self.unet.context_dim != self.condition.width:
            raise ConfigError(
                f"PaperModel {self.name!r}: unet.context_dim and condition.width differ",
                given=(self.unet.context_dim, self.condition.width),
                expected="the same width: the U-Net reads the encoder's vectors",
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of one picture."""
        side = self.picture_size // self.autoencoder.downsampling
        return self.autoencoder.latent_channels, side, side


def _schedule(beta_end: float) -> ScheduleConfig:
    return ScheduleConfig(beta_start=0.0015, beta_end=beta_end)


def sd_v1_inpainting() -> ModelConfig:
    """Stable Diffusion v1 inpainting: nine channels in, noisy latents 4, mask 1, latents of the masked picture 4."""
    model = sd_v1()
    unet = dataclasses.replace(model.unet, in_channels=9)
    return dataclasses.replace(model, name="sd_v1_inpainting", unet=unet)


def text2img_1p4b() -> PaperModel:
    """Text to picture, trained on LAION-400M: the paper's "1.45B".

    U-Net 872,300,484 and text encoder 542,895,360, with the encoder's unused head (39,098,682) 1,454,294,526 together.
    """
    return PaperModel(
        name="text2img_1p4b",
        picture_size=256,
        autoencoder=first_stage("kl_f8"),
        unet=UNetConfig(context_dim=1280),
        condition=BertEncoderConfig(),
        schedule=ScheduleConfig(),
    )


def text2img256() -> PaperModel:
    """Text to picture, trained on Conceptual Captions; the published encoder has an unused head of 19,564,602."""
    return PaperModel(
        name="text2img256",
        picture_size=256,
        autoencoder=first_stage("vq_f4"),
        unet=UNetConfig(
            in_channels=3, out_channels=3, channels=192, channel_mult=(1, 2, 3, 5), attention_levels=(1, 2, 3),
            head_channels=32, context_dim=640,
        ),
        condition=BertEncoderConfig(width=640),
        schedule=_schedule(0.0195),
    )  # fmt: skip


def unconditional256(name: str = "celebahq") -> PaperModel:
    """CelebA-HQ, FFHQ and LSUN-bedrooms, which differ in their pictures only: plain self-attention, no context."""
    return PaperModel(
        name=name,
        picture_size=256,
        autoencoder=first_stage("vq_f4"),
        unet=UNetConfig(
            in_channels=3, out_channels=3, channels=224, channel_mult=(1, 2, 3, 4), attention_levels=(1, 2, 3),
            head_channels=32, context_dim=None,
        ),
        schedule=_schedule(0.0195),
    )  # fmt: skip


def churches256() -> PaperModel:
    """LSUN-churches: residual blocks change the side, and the time vector scales and shifts.

    The latents' scale was measured on the first batch of its training and is not published.
    """
    return PaperModel(
        name="churches256",
        picture_size=256,
        autoencoder=dataclasses.replace(first_stage("kl_f8"), scale_factor=1.0),
        unet=UNetConfig(
            channels=192, channel_mult=(1, 2, 2, 4, 4), attention_levels=(0, 1, 2, 3), num_heads=8, context_dim=None,
            resblock_updown=True, scale_shift_norm=True,
        ),
        schedule=_schedule(0.0155),
    )  # fmt: skip


def cin256() -> PaperModel:
    """Class-conditional ImageNet on 32x32 latents, the paper's LDM-8: 395M."""
    return PaperModel(
        name="cin256",
        picture_size=256,
        autoencoder=first_stage("vq_f8"),
        unet=UNetConfig(channels=256, channel_mult=(1, 2, 4), head_channels=32, context_dim=512),
        condition=ClassEncoderConfig(),
        schedule=_schedule(0.0195),
    )


def cin256_v2() -> PaperModel:
    """Class-conditional ImageNet on 64x64 latents, the paper's LDM-4-G; class 1000 means "no class".

    The paper disagrees with itself: table 13 says 391M, table 3 400M. The published configuration has 400,920,579.
    """
    return PaperModel(
        name="cin256_v2",
        picture_size=256,
        autoencoder=first_stage("vq_f4"),
        unet=UNetConfig(
            in_channels=3, out_channels=3, channels=192, channel_mult=(1, 2, 3, 5), attention_levels=(1, 2, 3),
            num_heads=1, context_dim=512,
        ),
        condition=ClassEncoderConfig(num_classes=1001),
        schedule=_schedule(0.0195),
    )  # fmt: skip


def layout2img() -> PaperModel:
    """Boxes to picture (OpenImages): 92 box tokens of a vocabulary of 8192, transformers three blocks deep.

    Table 15 says 306M: U-Net 246,277,379 and encoder 58,858,496, its unused head of 4,202,496 included, are 305.1M.
    Of its model for COCO (channels 192 x (1, 2, 4), two blocks deep, f 8) no configuration is published: the table says
    345M, such a U-Net has 312,241,540, with the same encoder 371.1M.
    """
    return PaperModel(
        name="layout2img",
        picture_size=256,
        autoencoder=first_stage("vq_f4"),
        unet=UNetConfig(
            in_channels=3, out_channels=3, channels=128, channel_mult=(1, 2, 3, 4), attention_levels=(1, 2, 3),
            head_channels=32, context_dim=512, transformer_depth=3,
        ),
        condition=BertEncoderConfig(vocab_size=8192, context_length=92, width=512, num_layers=16),
        schedule=_schedule(0.0205),
    )  # fmt: skip


def semantic256() -> PaperModel:
    """Label map to landscape: six channels in, noisy latents 3 and the map shrunk to three channels.

    The configuration asks for attention at factors 32, 16 and 8; the U-Net ends at 4, so only the middle has it.
    """
    return PaperModel(
        name="semantic256",
        picture_size=256,
        autoencoder=first_stage("vq_f4"),
        unet=_concat(in_channels=6, channels=128, channel_mult=(1, 4, 8)),
        schedule=_schedule(0.0205),
    )


def inpainting() -> PaperModel:
    """Fill a hole, the paper's small model (215M): noisy latents 3, masked picture 3, mask 1."""
    return PaperModel(
        name="inpainting",
        picture_size=256,
        autoencoder=first_stage("vq_f4"),
        unet=_concat(in_channels=7, channels=128, channel_mult=(1, 4, 8)),
        schedule=_schedule(0.0205),
    )


def inpainting_big() -> PaperModel:
    """Fill a hole, the big model: an autoencoder without attention, residual blocks that change the side."""
    return PaperModel(
        name="inpainting_big",
        picture_size=256,
        autoencoder=first_stage("vq_f4_noattn"),
        unet=_concat(
            in_channels=7, channels=256, channel_mult=(1, 2, 3, 4), attention_levels=(1, 2, 3), resblock_updown=True
        ),
        schedule=_schedule(0.0205),
    )


def bsr_sr() -> PaperModel:
    """Super-resolution by 4: noisy latents 3, and the small picture itself 3.

    Table 15 gives its super-resolution model 169M; the published configuration has 113,622,563.
    """
    return PaperModel(
        name="bsr_sr",
        picture_size=256,
        autoencoder=first_stage("vq_f4"),
        unet=_concat(
            in_channels=6, channels=160, channel_mult=(1, 2, 2, 4), attention_levels=(3,), head_channels=32
        ),
        schedule=_schedule(0.0155),
    )  # fmt: skip


def rdm768() -> PaperModel:
    """Retrieval-augmented model on 48x48x16 latents; its context are CLIP vectors of pictures like the wanted one."""
    return PaperModel(
        name="rdm768",
        picture_size=768,
        autoencoder=dataclasses.replace(first_stage("kl_f16"), scale_factor=0.22765929),
        unet=UNetConfig(
            in_channels=16, out_channels=16, channels=448, channel_mult=(1, 2, 3, 4), head_channels=32, context_dim=768
        ),
        schedule=_schedule(0.015),
    )


def _concat(
    *,
    in_channels: int,
    channels: int,
    channel_mult: tuple[int, ...],
    attention_levels: tuple[int, ...] = (),
    head_channels: int | None = None,
    resblock_updown: bool = False,
) -> UNetConfig:
    """Return a U-Net on VQ-f4 latents whose condition comes in as channels, not as a context."""
    return UNetConfig(
        in_channels=in_channels,
        out_channels=3,
        channels=channels,
        channel_mult=channel_mult,
        attention_levels=attention_levels,
        head_channels=head_channels,
        context_dim=None,
        resblock_updown=resblock_updown,
    )


PAPER_MODELS: dict[str, Callable[[], PaperModel]] = {
    "text2img_1p4b": text2img_1p4b,
    "text2img256": text2img256,
    "celebahq": unconditional256,
    "ffhq": lambda: unconditional256("ffhq"),
    "lsun_bedrooms": lambda: unconditional256("lsun_bedrooms"),
    "churches256": churches256,
    "cin256": cin256,
    "cin256_v2": cin256_v2,
    "layout2img": layout2img,
    "semantic256": semantic256,
    "inpainting": inpainting,
    "inpainting_big": inpainting_big,
    "bsr_sr": bsr_sr,
    "rdm768": rdm768,
}
