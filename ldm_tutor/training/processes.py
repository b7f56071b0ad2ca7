"""Several processes that train one model: which rows of a batch are mine, and what all of us have to add up.

`accelerate launch` starts the processes; `join` makes them a team. All of them draw the whole batch's random numbers,
from seed and step alone, and each computes its own rows. Gradients are sums over rows, divided by the size of the
*whole* batch, and then added up over the team. So the numbers are those of one process, however the rows are shared.

A process that has not been launched with others is a team of one, `ALONE`, and needs neither accelerate nor a port.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch
from torch import nn

from ldm_tutor.errors import ConfigError

PATIENCE = timedelta(days=2)  # how long processes wait for the one that encodes the pictures
MEETING = timedelta(minutes=10)  # how long they wait for each other at the start
BUCKET = 8 << 20  # numbers that are added up in one message
LAUNCH = "accelerate launch --multi_gpu --num_processes 2 --rdzv_backend c10d -m ldm_tutor.cli.main train ..."


class Team:
    """The processes that train together; this one has the number `rank` of `size`. As it is: one process alone."""

    rank = 0
    size = 1
    sharded = False  # whether weights, gradients and the optimiser's numbers are spread over the team
    num_restarts = 0  # how often the launcher has started the team anew, after one of it was killed
    launched_at = 0.0  # seconds since 1970

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and says what happens."""
        return self.rank == 0

    def pieces(self, batch_size: int, accumulate: int = 1) -> list[slice]:
        """Return the rows of the whole batch that this process computes, in `accumulate` pieces one after the other.

        Raises ConfigError where a piece would be empty.
        """
        num_pieces = self.size * accumulate
        if accumulate < 1 or num_pieces > batch_size:
            raise ConfigError(
                f"a batch of {batch_size} cannot be shared by {self.size} processes in {accumulate} pieces each",
                expected=f"a batch of {num_pieces} or more",
            )
        edges = [batch_size * number // num_pieces for number in range(num_pieces + 1)]
        mine = range(self.rank * accumulate, (self.rank + 1) * accumulate)
        return [slice(edges[number], edges[number + 1]) for number in mine]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the team, in place."""

    def total(self, value: float) -> float:
        """Return the sum of everybody's value."""
        return value

    def lead(self, value: float) -> float:
        """Return the value of the first process: clocks differ, decisions must not."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so for one of the team at least."""
        return self.total(float(flag)) > 0

    def wait(self) -> None:
        """Wait until everybody is here."""

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """What stands inside is done by the first process while the others wait, and then by them."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def device(self, name: str) -> str:
        """Return the name of the device that this process shall use, where the team was asked for `name`."""
        return name

    def shard(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Spread a network's parameters over the team, in place. Only where `sharded` says so."""

    def leave(self) -> None:
        """Take leave in good order; the last thing that a process does."""


ALONE = Team()


def launched() -> bool:
    """Whether `accelerate launch` has started this process beside others."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: str = "auto") -> Team:
    """Return the team that this process was launched into, or ALONE.

    With a GPU for each they talk through NCCL, on the CPU through gloo. `accelerate launch --use_fsdp
    --fsdp_version 2` makes a sharded team. Raises ConfigError for what cannot work.
    """
    if not launched():
        return ALONE
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("--use_fsdp", given="version 1", expected="--fsdp_version 2")
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError("--device with several processes", given=device, expected="auto, cpu or cuda")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if not on_cpu and local > torch.cuda.device_count():
        given = f"{local} processes and {torch.cuda.device_count()} GPUs"
        raise ConfigError("each process needs a GPU", given=given, fix="--device cpu, or fewer processes")
    from accelerate import PartialState

    _meet("gloo" if on_cpu else "nccl")
    return _Joined(PartialState(cpu=on_cpu), fsdp)


def _meet(backend: str) -> None:
    """Find the others, in a room of its own for each attempt.

    The launcher's store outlives the processes. Without the prefix a process that was started anew can read the
    address of a partner that has been killed, and wait for a dead one (seen with torch 2.14).
    """
    found = torch.distributed.rendezvous("env://", timeout=MEETING)
    store, rank, size = next(iter(found))
    store.set_timeout(MEETING)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    room = torch.distributed.PrefixStore(f"attempt_{attempt}", store)
    torch.distributed.init_process_group(backend, store=room, rank=rank, world_size=size, timeout=PATIENCE)


class _Joined(Team):
    """A team of several, through accelerate's state and torch.distributed."""

    def __init__(self, state: Any, sharded: bool) -> None:
        self.rank, self.size = state.process_index, state.num_processes
        self.sharded = sharded
        self.num_restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self.launched_at = psutil.Process(os.getppid()).create_time()
        self._device = torch.device(state.device if state.device.type != "cpu" else "cpu")

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([each.reshape(-1) for each in bucket])
            torch.distributed.all_reduce(flat)
            for each, total in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                each.copy_(total.view_as(each))

    def total(self, value: float) -> float:
        told = torch.tensor([value], dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(told)
        return float(told)

    def lead(self, value: float) -> float:
        told = torch.tensor([value], dtype=torch.float64, device=self._device)
        torch.distributed.broadcast(told, src=0)
        return float(told)

    def wait(self) -> None:
        self.total(0.0)

    def device(self, name: str) -> str:
        return str(self._device)

    def shard(self, network: nn.Module, dtype: torch.dtype) -> None:
        from accelerate import FullyShardedDataParallelPlugin
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        from ldm_tutor.nn.blocks import ResBlock, SpatialTransformer

        plugin = FullyShardedDataParallelPlugin(fsdp_version=2)  # it reads what `accelerate launch` was told
        settings: dict[str, Any] = {
            "mesh": init_device_mesh(self._device.type, (self.size,)),
            "reshard_after_forward": plugin.reshard_after_forward,
            # Inputs stay as they are given: a time of 999 would be 1000 in bfloat16.
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
        }
        blocks = [each for each in network.modules() if isinstance(each, (ResBlock, SpatialTransformer))]
        for each in (*blocks, network):
            fully_shard(each, **settings)
        for each in network.modules():
            if isinstance(each, FSDPModule):
                each.set_gradient_divide_factor(1.0)  # gradients are added up; the loss is divided by the whole batch
                each.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def leave(self) -> None:
        self.wait()
        torch.distributed.destroy_process_group()
        atexit.register(_gone)


def _gone() -> None:
    """End a process that has taken leave, without the destructors of the threads that talked to the others.

    Seldom one of them aborts a process that has finished (seen with torch 2.14, "terminate called without an active
    exception"), and the launcher takes the whole run for failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield the tensors in groups of about BUCKET numbers, one type and device in each."""
    bucket: list[torch.Tensor] = []
    for each in tensors:
        full = sum(other.numel() for other in bucket) >= BUCKET
        if bucket and (full or (each.dtype, each.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(each)
    if bucket:
        yield bucket


# ---------------------------------------------------------------- tensors that are spread over a team


def local(value: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a spread tensor, sharing its memory; any other tensor as it is."""
    spread: Any = value
    return spread.to_local() if _is_spread(value) else value


def whole(value: Any) -> Any:
    """Return a value with every spread tensor in it put together, in dicts and lists too; the team calls it at once.

    What is put together lies on the CPU, so that no device holds more than one whole tensor at a time.
    """
    if isinstance(value, dict):
        return {name: whole(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(each) for each in value)
    return value.full_tensor().cpu() if _is_spread(value) else value


def spread_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor spread as `like` is; as it is where `like` is not."""
    if not _is_spread(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    spread: Any = like
    return distribute_tensor(value, spread.device_mesh, spread.placements, src_data_rank=None)


def _is_spread(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and hasattr(value, "full_tensor")
