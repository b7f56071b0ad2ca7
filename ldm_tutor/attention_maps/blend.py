"""Local blend: what lies outside the changed words' places stays the source's, in the latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ldm_tutor.attention_maps.edit import Pair, conditional_rows
from ldm_tutor.errors import ConfigError
from ldm_tutor.nn.attention import Call
from ldm_tutor.sampling.loop import SampleState
from ldm_tutor.shapes import Bool, Float, Latents, Tensor

LARGEST_GRID = 16  # maps of up to 16 x 16 positions say where a word is, as in the published code


class LocalBlend:
    """Watches where the changed words are, and lets the target differ from the source only there.

    `look` is the tap, `blend` the `edit` of `sample`. A word's place is its cross-attention, averaged over heads, over
    the layers of the finest grid of at most 16 x 16 positions and over the steps so far, and brought to 16 x 16; the
    largest of 3 x 3 neighbours, brought to the latents' size, divided by its largest value. Where that is above
    `threshold` for the words of the source or of the target, the target keeps its latents; elsewhere it takes the
    source's. For the first `start` of the steps nothing is blended. (On a grid of 8 x 8, three neighbours would be
    three eighths of the picture: hence the step over 16 x 16, which is the published code's grid.)

    `threshold`, `start`: one for all pairs, or one for each. `words`: for each pair the token places in the source and
    in the target; a pair with none in either stays whole.
    """

    def __init__(
        self,
        num_steps: int,
        words: Sequence[tuple[Sequence[int], Sequence[int]]],
        pairs: Sequence[Pair] = ((0, 1),),
        *,
        threshold: float | Sequence[float] = 0.5,
        start: float | Sequence[float] = 0.2,
    ) -> None:
        if len(words) != len(pairs):
            raise ConfigError("LocalBlend: words", given=len(words), expected=f"{len(pairs)}, one entry per pair")
        thresholds, starts = (
            [each] * len(pairs) if isinstance(each, (int, float)) else list(each) for each in (threshold, start)
        )
        if not len(thresholds) == len(starts) == len(pairs) or not all(0 <= x < 1 for x in (*thresholds, *starts)):
            raise ConfigError(
                "LocalBlend",
                given=(threshold, start),
                expected="thresholds and starts (one, or one per pair), 0 to below 1",
            )
        self.pairs, self.words = tuple(pairs), [tuple(map(tuple, each)) for each in words]
        self.thresholds, self.first = thresholds, [int(each * num_steps) for each in starts]
        self.masks: Bool[Tensor, "pairs h w"] | None = None  # of the last blend, for whoever wants to look
        self._grid = (0, 0)
        self._sums: Tensor | None = None  # pairs 2 n, over the layers of the finest grid and over the steps
        self._step = 0

    def look(self, call: Call, probs: Float[Tensor, "b heads n m"]) -> None:
        """Take in one cross-attention map; the model's output stays as it is. A step before the last begins anew."""
        step = call.info.step or 0
        if step < self._step:
            self._grid, self._sums = (0, 0), None
        self._step = step
        height, width = call.grid
        finer = height * width > self._grid[0] * self._grid[1]
        if call.site.kind != "cross" or height > LARGEST_GRID or width > LARGEST_GRID:
            return
        if not finer and call.grid != self._grid:
            return
        rows = conditional_rows(call, probs, "LocalBlend")
        columns = [place for pair in zip(self.pairs, self.words, strict=True) for place in zip(*pair, strict=True)]
        maps = torch.stack([probs[rows[k]][..., list(places)].sum(-1).mean(0) for k, places in columns])
        maps = maps.unflatten(0, (-1, 2))  # (pairs 2) n -> pairs 2 n
        if finer:
            self._grid, self._sums = call.grid, torch.zeros_like(maps)
        assert self._sums is not None
        self._sums = self._sums + maps

    def blend(self, state: SampleState) -> Latents:
        """Return the latents that the run goes on with."""
        if state.step < min(self.first) or self._sums is None:
            return state.latents
        latents = state.latents.clone()
        self.masks = self.where(latents.shape[2], latents.shape[3])
        for (source, target), mask, first in zip(self.pairs, self.masks, self.first, strict=True):
            if state.step < first:
                continue
            latents[target] = torch.where(mask, latents[target], latents[source])
        return latents

    def where(self, h: int, w: int) -> Bool[Tensor, "pairs h w"]:
        """Return where each pair's target may differ from its source."""
        assert self._sums is not None
        fields = self._sums.unflatten(2, self._grid)  # pairs 2 h w
        fields = F.interpolate(fields, size=(LARGEST_GRID, LARGEST_GRID), mode="bilinear")
        fields = F.max_pool2d(fields, 3, stride=1, padding=1)
        fields = F.interpolate(fields, size=(h, w), mode="nearest")
        least = torch.tensor(self.thresholds, dtype=fields.dtype, device=fields.device)[:, None, None, None]
        inside = fields > least * fields.amax(dim=(2, 3), keepdim=True)
        mask = inside.any(dim=1)
        free = torch.tensor([not any(each) for each in self.words], device=mask.device)
        return mask | free[:, None, None]
