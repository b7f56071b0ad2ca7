"""How a network runs faster or in less memory: the options, and the one place that chooses among them.

None of them changes a weight. `bench/full_size.py` measures what each gives on a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ldm_tutor.config import AutoencoderConfig
from ldm_tutor.errors import ConfigError
from ldm_tutor.nn.blocks import TransformerBlock, Upsample
from ldm_tutor.shapes import Float, Latents, Pictures, Tensor

Network = TypeVar("Network", bound=nn.Module)
SHARE_OF_TILE = 4  # tiles overlap by a quarter of their side


def channels_last_pays(network: nn.Module) -> bool:
    """Say whether `tune` lays out the channels of a position side by side.

    On a CPU for networks of convolutions, such as the autoencoder, and not for a U-Net with transformer blocks, which
    it slows down (`docs/speed.txt`); elsewhere in half precision, a rule of thumb that is not measured here.
    """
    weights = [each.weight for each in network.modules() if isinstance(each, nn.Conv2d)]
    if not weights:
        return False
    if weights[0].device.type == "cpu":
        return not any(isinstance(each, TransformerBlock) for each in network.modules())
    return weights[0].dtype in (torch.float16, torch.bfloat16)


def tune(
    network: Network, *, channels_last: bool | None = None, folded: bool = True, compiled: bool = False
) -> Network:
    """Make `network` fast, in place, and return it: the same weights, and the same answers up to rounding.

    `channels_last` lays out the channels of a position side by side; None: where it pays. `folded`: doubling a map and
    the convolution behind it become one operation, where that pays (see `Upsample`). `compiled`: translate the forward
    pass with torch.compile at its first call, which takes a minute or more; attention maps of a compiled network cannot
    be watched.
    """
    if channels_last_pays(network) if channels_last is None else channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, Upsample):
            module.folded = folded
    if compiled:
        network.compile()
    return network


def one_by_one(decode: Callable[[Tensor], Tensor], latents: Latents) -> Pictures:
    """Decode a batch picture by picture: the same pictures, in the memory of one."""
    return torch.cat([decode(each) for each in latents.split(1)])


def in_tiles(
    decode: Callable[[Tensor], Tensor], latents: Latents, config: AutoencoderConfig, *, tile: int = 64
) -> Float[Tensor, "b out H W"]:
    """Decode in overlapping squares of `tile` latents, blended where they overlap: large pictures in little memory.

    Not the same picture: what the decoder takes from the whole picture (its norms and its attention) it takes from a
    tile here. Latents of at most one tile are decoded as they are. ConfigError for tiles too small to overlap.
    """
    if tile < SHARE_OF_TILE:
        raise ConfigError("in_tiles: tile", given=tile, expected=f"{SHARE_OF_TILE} or more")
    height, width = latents.shape[2:]
    if height <= tile and width <= tile:
        return decode(latents)
    f, overlap = config.downsampling, tile // SHARE_OF_TILE
    total = weight = torch.zeros(())
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = latents[:, :, top : top + tile, left : left + tile]
            picture = decode(part)
            if total.ndim == 0:
                total = picture.new_zeros(*picture.shape[:2], f * height, f * width)
                weight = picture.new_zeros(1, 1, f * height, f * width)
            rows, columns = (_ramp(side, f * overlap).to(picture) for side in picture.shape[2:])
            ramp = rows[:, None] * columns
            where = (..., slice(f * top, f * top + picture.shape[2]), slice(f * left, f * left + picture.shape[3]))
            total[where] += picture * ramp
            weight[where] += ramp
    return total / weight


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin, the last one at the end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramp(length: int, overlap: int) -> Tensor:
    """Return weights that rise to 1 over `overlap` pixels and fall at the other end; never 0."""
    place = torch.arange(length) + 1
    return torch.minimum(place, place.flip(0)).clamp(max=overlap + 1) / (overlap + 1)
