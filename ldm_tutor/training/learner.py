"""One network and all that trains it: optimiser, running average, and a fast copy in bfloat16 where that pays.

The float32 weights are the truth. In bfloat16 a copy computes, its gradients go to the float32 weights, and the copy
is refreshed after every step: mixed precision with master weights (Micikevicius et al. 2018, arXiv 1710.03740).
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.training.processes import ALONE, Team, local, spread_like, whole

Network = TypeVar("Network", bound=nn.Module)


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" is CUDA, then Apple's MPS, then the CPU."""
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ConfigError("device", given=name, expected="auto, cpu, cuda, cuda:1, mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return torch.float32 or torch.bfloat16; "auto" takes bfloat16 where a short trial finds it faster."""
    if name in ("float32", "bfloat16"):
        return getattr(torch, name)
    if name != "auto":
        raise ConfigError("precision", given=name, expected="auto, float32 or bfloat16")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type != "cpu":
        return torch.float32
    return torch.bfloat16 if _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32) else torch.float32


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a learner of a published model goes downhill: AdamW's numbers, and what `Learner` says of the others.

    The defaults are those of the paper's denoisers: PyTorch's own for AdamW, no cut, no fall of the learning rate.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    ema_decay: float | None = 0.9999
    warmup: int = 1
    max_norm: float = math.inf
    floor: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments for `Learner`, which a checkpoint keeps too."""
        return asdict(self)


LR_RULES = ("fixed", "linear", "root")


def scaled_lr(lr: float, batch_size: int, reference: int, rule: str) -> float:
    """Return the learning rate for a batch of another size than the `reference`, for which `lr` was found good.

    "linear": in proportion to the batch (Goyal et al. 2017, arXiv 1706.02677; Rombach et al. 2022's code does it);
    "root": with its square root, as the noise of a mean shrinks; "fixed": as it is.
    """
    if rule not in LR_RULES:
        raise ConfigError("--lr-rule", given=rule, expected=f"one of {LR_RULES}")
    times = batch_size / reference
    return lr * {"fixed": 1.0, "linear": times, "root": math.sqrt(times)}[rule]


def _seconds(dtype: torch.dtype) -> float:
    with torch.random.fork_rng(devices=[]):  # a trial must not move the numbers of whoever comes next
        layer = nn.Conv2d(64, 64, 3, padding=1).to(dtype)
        x = torch.randn(16, 64, 16, 16).to(dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        layer(x).sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


class Learner(Generic[Network]):
    """A network under training. Compute with `.net`, call `.step` after backward, keep `.ema` for use afterwards.

    `peak_lr` is reached after `warmup` steps; `lr_at` then follows half a cosine down to the share `floor` of it at the
    end of the run; with a floor of 1 it stays. Gradients longer than `max_norm` are cut to it.
    `ema_decay` None keeps no running average: `.ema` is then the network itself. With a `team` of several processes
    the gradients are added up before each step, so the loss has to be a sum over this process's rows, divided by the
    size of the whole batch. A sharded team holds a part of every tensor in each process.
    """

    def __init__(
        self,
        network: Network,
        *,
        peak_lr: float,
        device: torch.device,
        dtype: torch.dtype,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        ema_decay: float | None = 0.999,
        warmup: int = 200,
        max_norm: float = 1.0,
        floor: float = 0.02,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.network: Network = network.to(device).float()
        second_copy = dtype != torch.float32 and not team.sharded  # a sharded network changes its numbers on the way
        self.net: Network = copy.deepcopy(self.network).to(dtype) if second_copy else self.network
        self.ema: Network = copy.deepcopy(self.network) if ema_decay is not None else self.network
        self.ema.eval().requires_grad_(self.ema is self.network)
        self._mould: Network | None = None
        if team.sharded:
            with torch.device("meta"):
                self._mould = copy.deepcopy(self.network).to("meta")
            for each in (self.network, self.ema) if self.ema is not self.network else (self.network,):
                team.shard(each, dtype)
        self.peak_lr, self.warmup, self.max_norm, self.ema_decay = peak_lr, warmup, max_norm, ema_decay
        self.floor = floor
        self.num_updates = 0
        self._params: list[torch.Tensor] = list(self.network.parameters())
        self._net_params: list[torch.Tensor] = list(self.net.parameters())
        self.optimizer = torch.optim.AdamW(
            self._params, lr=peak_lr, betas=betas, weight_decay=weight_decay, fused=device.type != "mps"
        )

    def lr_at(self, progress: float) -> float:
        """Return the learning rate after a share `progress` (0 to 1) of the run."""
        rise = min(1.0, (self.num_updates + 1) / self.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak_lr * rise * (self.floor + (1 - self.floor) * fall)

    def step(self, progress: float) -> None:
        """Apply the gradients that backward left, update the running average, and forget the gradients."""
        if self.net is not self.network:
            for ours, fast in zip(self._params, self._net_params, strict=True):
                ours.grad = None if fast.grad is None else fast.grad.float()
        if not self.team.sharded:
            self.team.add_up([each.grad for each in self._params if each.grad is not None])
        torch.nn.utils.clip_grad_norm_(self._params, self.max_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(progress)
        self.optimizer.step()
        self.num_updates += 1
        self.network.zero_grad(set_to_none=True)
        self.net.zero_grad(set_to_none=True)
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        if self.net is not self.network:
            torch._foreach_copy_(self._net_params, self._params)
        if self.ema_decay is not None:
            decay = min(self.ema_decay, (1 + self.num_updates) / (10 + self.num_updates))
            averages = [local(each) for each in self.ema.parameters()]
            torch._foreach_lerp_(averages, [local(each) for each in self._params], 1 - decay)
            for average, current in zip(self.ema.buffers(), self.net.buffers(), strict=True):
                average.copy_(current)

    def load_weights(self, network: nn.Module) -> None:
        """Begin with the weights of `network`, which must be of the same shape, instead of random ones."""
        try:
            self._fill(self.network, network.state_dict())
        except RuntimeError as error:
            raise WeightsError(
                f"{type(network).__name__}: the weights to start from are of another size than the model to train",
                fix="start from weights of the same preset",
            ) from error
        if self.ema is not self.network:
            self._fill(self.ema, network.state_dict())
        if self.net is not self.network:
            self.net.load_state_dict(self.network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return all that an exact continuation needs, by however many processes; a sharded team calls it at once."""
        state = {
            "network": dict(self.network.state_dict()),
            "buffers": {name: value for name, value in self.net.named_buffers()},
            "ema": dict(self.ema.state_dict()) if self.ema is not self.network else None,
            "optimizer": self.optimizer.state_dict(),
            "num_updates": self.num_updates,
        }
        return whole(state) if self.team.sharded else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._fill(self.network, state["network"])
        if state["ema"] is not None:
            self._fill(self.ema, state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if value.shape == parameter.shape:
                    kept[name] = spread_like(value, parameter)
        self.num_updates = state["num_updates"]
        with torch.no_grad():
            if self.net is not self.network:
                torch._foreach_copy_(self._net_params, self._params)
            for name, value in self.net.named_buffers():
                value.copy_(state["buffers"][name])

    def gather(self) -> None:
        """Make `.ema`, at the end of a sharded run, a whole network again; the team calls it at once."""
        if self._mould is not None:
            state = whole(dict(self.ema.state_dict()))
            self.ema, self._mould = self._mould, None
            self.ema.load_state_dict(state, assign=True)
            self.ema.eval()

    def _fill(self, network: Network, state: dict[str, torch.Tensor]) -> None:
        if self.team.sharded:
            state = {name: spread_like(state[name], value) for name, value in network.state_dict().items()}
        network.load_state_dict(state)
