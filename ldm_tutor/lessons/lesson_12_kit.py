"""What lesson 12 needs beside its own code: twins of the reference library, faults to plant in them, measuring."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import ClipConfig, ImageEncoderConfig, ModelConfig, TextEncoderConfig, UNetConfig, sd_v1
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import Attention
from ldm_tutor.nn.blocks import (
    Downsample,
    FeedForward,
    PictureAttention,
    ResBlock,
    SpatialTransformer,
    Upsample,
)
from ldm_tutor.nn.embeddings import TimeMLP, timestep_embedding
from ldm_tutor.pipeline import Pipeline
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Tensor
from ldm_tutor.weights.names import NameRules

Modules = Sequence[tuple[str, nn.Module, nn.Module]]
_BLOCKS = (ResBlock, SpatialTransformer, PictureAttention, Downsample, Upsample, TimeMLP)
_LEAVES = ("conv_in", "norm_out", "conv_out")  # behind any prefix

# ---------------------------------------------------------------- models with random numbers


def reduced() -> ModelConfig:
    """Stable Diffusion v1's form at a fifth of its width, with the course's small vocabulary and 32 tokens."""
    model = sd_v1()
    text = TextEncoderConfig(vocab_size=768, context_length=32, width=96, num_layers=12, num_heads=12, mlp_width=384)
    image = ImageEncoderConfig(picture_size=64, patch_size=32, width=16, num_layers=1, num_heads=2, mlp_width=16)
    return dataclasses.replace(
        model,
        name="reduced",
        autoencoder=dataclasses.replace(model.autoencoder, channels=32),
        clip=ClipConfig(text=text, image=image, embed_dim=16),
        unet=dataclasses.replace(model.unet, channels=64, context_dim=96),
    )


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a module numbers that matter, those that start at 0 or 1 included; a module on the meta device gets memory.

    Weights have the spread that keeps signals as large as they are. Returned in evaluation mode.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        if value.ndim >= 2:
            value.normal_(std=value[0].numel() ** -0.5, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            value.normal_(mean=1.0, std=0.3, generator=generator)
        else:
            value.normal_(std=0.1, generator=generator)
    return module.eval()


@torch.no_grad()
def borrow(module: nn.Module, seed: int = 0) -> int:
    """Make every weight of a module on the meta device a window on the same random numbers; return their bytes.

    So a network of any size runs with the memory of its largest weight. It computes all that the real one computes, and
    nothing that means anything. Norms get scale 1 and shift 0.
    """
    largest = max(parameter.numel() for parameter in module.parameters())
    pool = torch.empty(largest).normal_(std=0.02, generator=torch.Generator().manual_seed(seed))
    for each in module.modules():
        for name, value in list(each.named_parameters(recurse=False)):
            if "bias" in name or value.ndim == 1:
                window = torch.zeros(value.shape) if "bias" in name else torch.ones(value.shape)
            else:
                window = pool[: value.numel()].view(value.shape)
            setattr(each, name, nn.Parameter(window, requires_grad=False))
    return 4 * largest


def dry_run(model: ModelConfig, tokenizer: Tokenizer, unet: UNet, autoencoder: Autoencoder) -> Pipeline:
    """Return a pipeline of `model` with a random text encoder: every line runs, and what it draws means nothing."""
    with torch.device("meta"):
        clip = Clip(model.clip, end_id=tokenizer.end_id)
    fill(clip.text)
    return Pipeline(model, tokenizer, clip, unet, autoencoder, NoiseSchedule(model.schedule))


# ---------------------------------------------------------------- parity


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, as a part of the largest number in `theirs`."""
    return float((ours.float() - theirs).abs().max() / theirs.abs().max())


def pair_up(ours: nn.Module, theirs: nn.Module, rules: NameRules | None = None) -> Modules:
    """Return every block of ours with its counterpart, in the order of definition: name, ours, theirs.

    `rules` translate our names; without them both models are ours.
    """
    others, found = dict(theirs.named_modules()), []
    for name, module in ours.named_modules():
        if isinstance(module, _BLOCKS) or name.rpartition(".")[2] in _LEAVES:
            leaf = next(iter(module.state_dict()))
            foreign = f"{name}.{leaf}" if rules is None else rules.to_foreign(f"{name}.{leaf}")
            found.append((name, module, others[foreign.rsplit(".", leaf.count(".") + 1)[0]]))
    return found


@torch.no_grad()
def ladder(modules: Modules, run_ours: Callable[[], Any], run_theirs: Callable[[], Any]) -> dict[str, float]:
    """Run both; return for every block, in the order of running, how far its output is from its counterpart's."""
    kept: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    handles = []
    for name, *pair in modules:
        for side, module in zip(kept, pair, strict=True):
            handles.append(module.register_forward_hook(_keeper(side, name)))
    try:
        run_ours()
        run_theirs()
    finally:
        for handle in handles:
            handle.remove()
    return {name: relative(value, kept[1][name]) for name, value in kept[0].items()}


def _keeper(side: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_: nn.Module, __: Any, output: Any) -> None:
        side[name] = output if isinstance(output, Tensor) else output[0]

    return keep


def first_above(differences: Mapping[str, float], tolerance: float) -> str:
    """Return the first block whose difference is above `tolerance`, "none" where there is none."""
    return next((name for name, value in differences.items() if value > tolerance), "none")


# ---------------------------------------------------------------- faults


class _TanhFeedForward(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate, approximate="tanh"))


class _GateFirst(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class _SinFirst(TimeMLP):
    def forward(self, t: Tensor) -> Tensor:
        cos, sin = timestep_embedding(t, self.dim).chunk(2, dim=-1)
        return self.linear_2(F.silu(self.linear_1(torch.cat([sin, cos], dim=-1))))


def _swap_class(kind: type[nn.Module], wrong: type[nn.Module]) -> Callable[[nn.Module], None]:
    def plant(module: nn.Module) -> None:
        if isinstance(module, kind):
            module.__class__ = wrong

    return plant


def _wrong_padding(module: nn.Module) -> None:
    if isinstance(module, Downsample):
        module.asymmetric, module.conv.padding = True, (0, 0)


def _width_for_number(module: nn.Module) -> None:
    if isinstance(module, Attention):
        module.num_heads = module.to_q.out_features // module.num_heads


def _wrong_eps(module: nn.Module) -> None:
    if isinstance(module, ResBlock):
        module.norm1.eps = module.norm2.eps = 1e-6


FAULTS: dict[str, Callable[[nn.Module], None]] = {
    "[sin | cos] for [cos | sin]": _swap_class(TimeMLP, _SinFirst),
    "padding right and bottom": _wrong_padding,
    "8 as the width of a head": _width_for_number,
    "gate before value": _swap_class(FeedForward, _GateFirst),
    "GELU by tanh": _swap_class(FeedForward, _TanhFeedForward),
    "eps 1e-6 for 1e-5": _wrong_eps,
}


def plant(model: nn.Module, fault: str) -> nn.Module:
    """Return a copy of a U-Net with one wrong convention of FAULTS everywhere; its weights are the same."""
    if fault not in FAULTS:
        raise ConfigError("plant: unknown fault", given=fault, expected=f"one of {list(FAULTS)}")
    broken = copy.deepcopy(model)
    for module in list(broken.modules()):
        FAULTS[fault](module)
    return broken


def mystery() -> tuple[UNet, UNet, tuple[Tensor, Tensor, Tensor]]:
    """Return a U-Net with one wrong layer, the right one, and inputs for both: the exercise `culprit`."""
    config = UNetConfig(
        channels=32, channel_mult=(1, 2, 2), num_res_blocks=2, attention_levels=(0, 1), num_heads=4, context_dim=24,
        norm_groups=8,
    )  # fmt: skip
    right = UNet(config)
    fill(right, seed=5)
    wrong = copy.deepcopy(right)
    wrong.get_submodule(CULPRIT).blocks[0].norm2.eps = 1e-2  # type: ignore[union-attr, index]
    generator = torch.Generator().manual_seed(6)
    latents, context = (torch.randn(shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 9, 24)))
    return wrong, right, (latents, torch.tensor([300]), context)


CULPRIT = "up.1.transformers.1"

# ---------------------------------------------------------------- measuring


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Give a dictionary whose "bytes" are, behind the block, how far the process's memory rose inside it."""
    process, found, stop = psutil.Process(), {"bytes": 0}, threading.Event()
    start = process.memory_info().rss

    def look() -> None:
        while not stop.is_set():
            found["bytes"] = max(found["bytes"], process.memory_info().rss - start)
            stop.wait(0.002)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()


def matmul_rate(dtype: torch.dtype = torch.float32, side: int = 2048, rounds: int = 4) -> float:
    """Return the multiply-adds in a second that a product of two square matrices reaches here, the best of `rounds`."""
    one, other = (torch.randn(side, side).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds)


def gpu_step(config: UNetConfig) -> str:
    """Measure a guided bfloat16 step of the U-Net on 64 x 64 latents on a CUDA GPU, and say where and when."""
    with torch.device("meta"):
        unet = UNet(config)
    borrow(unet)
    unet = unet.to("cuda", torch.bfloat16)  # every weight gets numbers of its own there
    shapes = (2, config.in_channels, 64, 64), (2, 77, config.context_dim or 0)
    latents, context = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    seconds = []
    for _ in range(4):  # the first calls warm up
        torch.cuda.synchronize()
        start = time.perf_counter()
        unet(latents, torch.full((2,), 400.0, device="cuda"), context)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    where = f"{torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}"
    return f"{where}: a guided step in {1000 * min(seconds):.0f} ms, bfloat16"
