"""A tap that lets no position look at chosen tokens: what the sentence says without them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldm_tutor.errors import AttentionTapError, ConfigError
from ldm_tutor.nn.attention import Call
from ldm_tutor.shapes import Float, Tensor


class Ignore:
    """A tap that hides context tokens (the start mark is 0) from all cross-attention maps, as if masked before softmax.

    It sets their weights to zero and divides each row by what is left, which is the same as a score of minus infinity.
    `tokens`: one list for all batch rows, or with `per_prompt` one list per sentence of the batch (which may be empty).
    Where rows are declared, those that do not see their sentence (guidance) stay as they are. Self-attention does too.
    AttentionTapError where a token is beyond the context, or where nothing would be left to look at.
    """

    def __init__(self, tokens: Sequence[int] = (), *, per_prompt: Sequence[Sequence[int]] | None = None) -> None:
        lists = [tokens] if per_prompt is None else list(per_prompt)
        if any(place < 0 for each in lists for place in each) or (per_prompt is not None and tokens):
            raise ConfigError(
                "Ignore: tokens",
                given=lists,
                expected="places in the context, from 0 on; one list, or one list per sentence in per_prompt",
            )
        self.lists = [sorted(set(each)) for each in lists]
        self.shared = per_prompt is None

    def __call__(self, call: Call, probs: Float[Tensor, "b heads n m"]) -> Float[Tensor, "b heads n m"] | None:
        """Return the map without the tokens; None where there is nothing to hide."""
        if call.site.kind != "cross" or not any(self.lists):
            return None
        b, m = probs.shape[0], probs.shape[-1]
        keep = torch.ones(b, m, dtype=probs.dtype, device=probs.device)
        for row, hidden in enumerate(self._rows(call, b)):
            if hidden and (hidden[-1] >= m or len(hidden) == m):
                raise AttentionTapError(
                    f"Ignore at {call.site.name}", given=hidden, expected=f"some of 0 to {m - 1}, and not all of them"
                )
            keep[row, hidden] = 0
        kept = probs * keep[:, None, None]
        left = kept.sum(dim=-1, keepdim=True)
        return torch.where(keep.all(dim=1)[:, None, None, None], probs, kept / left.clamp_min(1e-30))

    def _rows(self, call: Call, b: int) -> list[list[int]]:
        """Return what is hidden from each batch row."""
        rows = call.info.rows
        if self.shared and not rows:
            return self.lists * b
        if not rows and len(self.lists) == b:
            return self.lists
        if len(rows) != b or (not self.shared and max(row.prompt for row in rows) >= len(self.lists)):
            raise AttentionTapError(
                f"Ignore at {call.site.name}: lists of tokens and batch rows",
                given=(len(self.lists), b),
                expected="one list for each sentence of the batch",
            )
        return [self.lists[0 if self.shared else row.prompt] if row.conditional else [] for row in rows]
