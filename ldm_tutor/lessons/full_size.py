"""What the "At full size" boxes say about the full-size model, filled from its configuration when a lesson is built.

In a source, `{{full unet}}` becomes "860 million": the parameters of the real class, counted on the meta device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import nn

from ldm_tutor.config import DiscriminatorConfig, sd_v1
from ldm_tutor.data.boxes import BoxVocabulary
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.layout_encoder import LayoutEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.presets import layout2img, sd_v1_inpainting

PUBLISHED_BOXES = BoxVocabulary(size=8192, max_boxes=30, crop=True)  # those of the layout model
_FIGURE = re.compile(r"\{\{full ([^{}]*)\}\}")
_SMALL = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def count(make: Callable[[], nn.Module]) -> int:
    """How many parameters a network has, without the memory for them."""
    with torch.device("meta"):
        return sum(each.numel() for each in make().parameters())


def in_words(number: int) -> str:
    """A count of parameters as prose has it: "860 million", "1.07 billion"."""
    if number < 1_000_000:
        return f"{number:,}"
    return f"{number / 1e6:.0f} million" if number < 999_500_000 else f"{number / 1e9:.2f} billion"


def listed(numbers: Sequence[int]) -> str:
    """Some numbers as prose has them: "1, 2, 4 and 4"."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def spelled(number: int) -> str:
    """A small number as a word, a larger one in digits."""
    return _SMALL[number] if 0 <= number < len(_SMALL) else str(number)


def _parts() -> dict[str, Callable[[], nn.Module]]:
    big = sd_v1()
    return {
        "unet": lambda: UNet(big.unet),
        "autoencoder": lambda: Autoencoder(big.autoencoder),
        "text": lambda: TextEncoder(big.clip.text),
    }


FIGURES: dict[str, Callable[[], str]] = {
    "unet": lambda: in_words(count(_parts()["unet"])),
    "autoencoder": lambda: in_words(count(_parts()["autoencoder"])),
    "autoencoder exactly": lambda: f"{count(_parts()['autoencoder']):,}",
    "text": lambda: in_words(count(_parts()["text"])),
    "all": lambda: in_words(sum(count(make) for make in _parts().values())),
    "picture": lambda: f"{sd_v1().picture_size} x {sd_v1().picture_size}",
    "latents": lambda: "{1} x {2} x {0}".format(*sd_v1().latent_shape),
    "tokens": lambda: str(sd_v1().clip.text.context_length),
    "width": lambda: str(sd_v1().unet.context_dim),
    "heads": lambda: str(sd_v1().unet.num_heads),
    "channels": lambda: str(sd_v1().unet.channels),
    "multipliers": lambda: listed(sd_v1().unet.channel_mult),
    "blocks": lambda: spelled(sd_v1().unet.num_res_blocks),
    "attention levels": lambda: spelled(len(sd_v1().unet.attention_levels)),
    "text layers": lambda: str(sd_v1().clip.text.num_layers),
    "critic channels": lambda: str(DiscriminatorConfig().channels),
    "critic layers": lambda: spelled(DiscriminatorConfig().num_layers),
    "layout unet": lambda: in_words(count(lambda: UNet(layout2img().unet))),
    "layout encoder": lambda: in_words(count(lambda: LayoutEncoder(layout2img().condition))),  # type: ignore[arg-type]
    "layout tokens": lambda: str(PUBLISHED_BOXES.length),
    "layout boxes": lambda: str(PUBLISHED_BOXES.max_boxes),
    "layout grid": lambda: f"{PUBLISHED_BOXES.grid} x {PUBLISHED_BOXES.grid}",
    "hole channels": lambda: spelled(sd_v1_inpainting().unet.in_channels),
}


@cache
def full_size(name: str) -> str:
    """Return one figure of the full-size model as text; ConfigError for a name that is none of FIGURES."""
    if name not in FIGURES:
        raise ConfigError("full_size: unknown figure", given=name, expected=f"one of {sorted(FIGURES)}")
    return FIGURES[name]()


def fill(text: str) -> str:
    """Put the figures in the place of every `{{full NAME}}`."""
    return _FIGURE.sub(lambda match: full_size(match[1].strip()), text)
