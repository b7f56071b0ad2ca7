"""What one call of a network costs, multiply-adds and the memory that it holds on its way, found without running it.

The network is built from fake tensors: shapes and types that say they lie on a CPU, and hold no number. So a model of
any size fits, and the operations are those that the CPU would run (one fused attention, not the full map).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ldm_tutor.shapes import Tensor


@dataclass(frozen=True)
class Work:
    """One call: multiplications, each with its addition, and after each operation the bytes that live.

    Counted in `multiply_adds` are convolutions, linear layers and the two products of each attention; not norms,
    softmax or activations. `live_bytes` are those of all tensors that the call has made and still needs; weights and
    inputs are not in it, nor what the library's kernels borrow for themselves.
    """

    multiply_adds: int
    live_bytes: tuple[int, ...]

    @property
    def peak_bytes(self) -> int:
        """The most that lives at one moment."""
        return max(self.live_bytes, default=0)


class _Meter(TorchDispatchMode):
    """Adds up, after each operation, the storages that operations have made and that are still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes: list[int] = []
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: dict[int, StorageWeakRef] = {}  # weights and inputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                ref = StorageWeakRef(value.untyped_storage())
                if ref.cdata not in self._made:
                    self._given.setdefault(ref.cdata, ref)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref.cdata not in self._given:
                    self._made.setdefault(ref.cdata, (ref, storage.nbytes()))
        self._made = {key: each for key, each in self._made.items() if not each[0].expired()}
        self.live_bytes.append(sum(num_bytes for _, num_bytes in self._made.values()))
        return result


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)  # of shapes: the counter has no entry for the CPU's kernel


def work_of(make: Callable[[], Callable[[], Any]], dtype: torch.dtype = torch.float32) -> Work:
    """Return the work of `make()()`: `make` builds a network and its inputs, and gives the call that is looked at.

    Everything that `make` builds without naming a type has `dtype`. No memory is taken and nothing is computed.
    """
    before = torch.get_default_dtype()
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}
    try:
        torch.set_default_dtype(dtype)
        with FakeTensorMode(), torch.no_grad():
            call = make()
            with FlopCounterMode(display=False, custom_mapping=attention) as counter, _Meter() as meter:
                call()
    finally:
        torch.set_default_dtype(before)
    return Work(counter.get_total_flops() // 2, tuple(meter.live_bytes))  # a multiply-add is two operations there
