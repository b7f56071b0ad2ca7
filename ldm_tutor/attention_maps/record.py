"""A tap that keeps attention maps: reduced first, then as float16 in main memory, within a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ldm_tutor.attention_maps.watch import Where, select_sites
from ldm_tutor.errors import AttentionTapError, ConfigError
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import Call, Row, Site
from ldm_tutor.shapes import Float, Tensor

_BYTES_PER_NUMBER = 2  # float16
_MIB = 2**20


@dataclass(frozen=True)
class Record:
    """One kept map. `call` is what the tap was told; `rows` says what the kept batch rows are (empty: not declared).

    `probs`: (rows, heads, n, m), float16, on the CPU, n = h * w in row-major order of `grid`, m the kept key tokens.
    """

    call: Call
    probs: Float[Tensor, "b heads n m"]
    rows: tuple[Row, ...]
    grid: tuple[int, int]


class Recorder:
    """A tap that keeps the maps it sees in `records` and leaves the model's output bit for bit as it was.

    `tokens`: which context tokens to keep of cross-attention maps (None: all; self-attention keeps all its keys).
    `heads`: "mean" over the heads, or "all". `only_conditional`: keep only the batch rows that see their sentence,
    as declared by `declare_call`; where nothing was declared all rows are kept. `grid`: (h, w) to bring the query
    positions to (averaging where it shrinks, bilinear where it grows), or None for each layer's own.
    `limit_bytes`: what all records may take; a map beyond it is refused with an AttentionTapError that says how much.
    """

    def __init__(
        self,
        *,
        tokens: Sequence[int] | None = None,
        heads: str = "mean",
        only_conditional: bool = True,
        grid: tuple[int, int] | None = None,
        limit_bytes: int = 1024 * _MIB,
    ) -> None:
        if heads not in ("mean", "all"):
            raise ConfigError("Recorder: heads", given=heads, expected="'mean' or 'all'")
        if tokens is not None and (not tokens or min(tokens) < 0 or len(set(tokens)) != len(tokens)):
            raise ConfigError("Recorder: tokens", given=tokens, expected="different places in the context, from 0 on")
        if grid is not None and (len(grid) != 2 or min(grid) < 1):
            raise ConfigError("Recorder: grid", given=grid, expected="(height, width), each 1 or more")
        self.tokens = None if tokens is None else tuple(tokens)
        self.heads = heads
        self.only_conditional = only_conditional
        self.grid = grid
        self.limit_bytes = limit_bytes
        self.records: list[Record] = []

    @property
    def num_bytes(self) -> int:
        """Memory that the records take."""
        return sum(record.probs.numel() * _BYTES_PER_NUMBER for record in self.records)

    def __call__(self, call: Call, probs: Float[Tensor, "b heads n m"]) -> None:
        """Reduce the map and keep it."""
        rows = call.info.rows
        if rows and len(rows) != probs.shape[0]:
            raise AttentionTapError(
                f"Recorder at {call.site.name}: the declared rows are not the batch",
                given=len(rows),
                expected=f"{probs.shape[0]} rows",
            )
        probs = probs.detach()
        if rows and self.only_conditional:
            kept = [index for index, row in enumerate(rows) if row.conditional]
            if not kept:
                return
            probs, rows = probs[kept], tuple(rows[index] for index in kept)
        if self.tokens is not None and call.site.kind == "cross":
            if max(self.tokens) >= probs.shape[-1]:
                raise AttentionTapError(
                    f"Recorder at {call.site.name}: token",
                    given=max(self.tokens),
                    expected=f"below the context's length {probs.shape[-1]}",
                )
            probs = probs[..., list(self.tokens)]
        if self.heads == "mean":
            probs = probs.mean(dim=1, keepdim=True)
        grid = self.grid or call.grid
        probs = resize_queries(probs, call.grid, grid)
        self.require_room(self.num_bytes + probs.numel() * _BYTES_PER_NUMBER)
        self.records.append(Record(call, probs.to("cpu", torch.float16, copy=True), rows, grid))

    def predicted_bytes(
        self,
        unet: UNet,
        latent_side: int,
        batch: int,
        num_steps: int,
        context_length: int,
        where: Where = "cross",
    ) -> int:
        """Return what a run of `num_steps` steps on square latents would keep, before it starts.

        `batch` counts the rows that are kept: pictures, or twice as many with guidance and only_conditional=False.
        """
        total = 0
        for site in select_sites(unet.sites(), where):
            side = latent_side // 2**site.level
            queries = math.prod(self.grid or (side, side))
            keys = side * side if site.kind == "self" else len(self.tokens or range(context_length))
            total += queries * keys * (1 if self.heads == "mean" else site.num_heads)
        return total * batch * num_steps * _BYTES_PER_NUMBER

    def require_room(self, num_bytes: int) -> None:
        """Raise AttentionTapError where `num_bytes` (say, from `predicted_bytes`) are beyond the limit."""
        if num_bytes > self.limit_bytes:
            raise AttentionTapError(
                "Recorder: the maps would take more memory than limit_bytes allows",
                given=f"{num_bytes / _MIB:,.1f} MiB",
                expected=f"at most {self.limit_bytes / _MIB:,.1f} MiB",
                fix="keep fewer tokens, heads='mean', a coarser grid or fewer sites, or raise limit_bytes",
            )

    def maps_for(
        self, token: int, site: Where | None = None, step: int | None = None, prompt: int | None = None
    ) -> Float[Tensor, "h w"]:
        """Return how much each position looks at context token `token`, (h, w) float32, averaged over what matches.

        `site`: a name, several, or a function of the site (None: all cross-attention); `step`: a running step;
        `prompt`: one sentence of the batch. Rows declared as not seeing their sentence stay out. Maps of different
        grids meet on the finest of them. Raises AttentionTapError where nothing matches, naming what was recorded.
        """
        if self.tokens is not None and token not in self.tokens:
            raise AttentionTapError("maps_for: token was not kept", given=token, expected=f"one of {self.tokens}")
        cross = [record for record in self.records if record.call.site.kind == "cross"]
        if site is not None and cross:
            known = dict.fromkeys(record.call.site for record in cross)
            wanted: tuple[Site, ...] = select_sites(tuple(known), site)
            cross = [record for record in cross if record.call.site in wanted]
        matching = [
            (record, kept)
            for record in cross
            if step is None or record.call.info.step == step
            if (kept := _rows_of(record, prompt))
        ]
        if not matching:
            raise AttentionTapError(
                "maps_for: no recorded map matches",
                given={"token": token, "site": site, "step": step, "prompt": prompt},
                expected=f"one of {self._contents()}",
            )
        finest = max((record.grid for record, _ in matching), key=math.prod)
        total = torch.zeros(finest)
        for record, kept in matching:
            column = self._column(record, token)
            probs = record.probs[kept][..., column : column + 1].float()  # rows heads n 1
            total += resize_queries(probs, record.grid, finest).mean(dim=(0, 1)).view(finest)  # n 1 -> h w
        return total / len(matching)

    def _column(self, record: Record, token: int) -> int:
        column = token if self.tokens is None else self.tokens.index(token)
        if not 0 <= column < record.probs.shape[-1]:
            raise AttentionTapError(
                "maps_for: token", given=token, expected=f"0 to {record.probs.shape[-1] - 1}, the context's length"
            )
        return column

    def _contents(self) -> str:
        sites = list(dict.fromkeys(record.call.site.name for record in self.records))
        steps = list(dict.fromkeys(record.call.info.step for record in self.records))
        return f"sites {sites}, steps {steps}"


def _rows_of(record: Record, prompt: int | None) -> list[int]:
    """Return the batch rows that see sentence `prompt` (None: any); rows nobody declared count only for None."""
    if not record.rows:
        return list(range(record.probs.shape[0])) if prompt is None else []
    return [i for i, row in enumerate(record.rows) if row.conditional and prompt in (None, row.prompt)]


def resize_queries(
    probs: Float[Tensor, "b heads n m"], grid: tuple[int, int], target: tuple[int, int]
) -> Float[Tensor, "b heads k m"]:
    """Bring the query positions from one grid (h, w) to another: area-weighted when it shrinks, bilinear when it grows.

    Each position's weights over the keys still sum to what they did.
    """
    if grid == target:
        return probs
    b, heads, _, m = probs.shape
    planes = probs.flatten(0, 1).transpose(1, 2).unflatten(2, grid)  # b heads (h w) m -> (b heads) m h w
    planes = F.interpolate(planes.float(), size=target, mode="bilinear", antialias=True)
    return planes.flatten(2).transpose(1, 2).reshape(b, heads, -1, m)  # (b heads) m h w -> b heads (h w) m
