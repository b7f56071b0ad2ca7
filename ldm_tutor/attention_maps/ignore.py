"""A tap that lets no position look at chosen tokens: what the sentence says without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ldm_tutor.errors import AttentionTapError, ConfigError, ShapeError
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.nn.attention import Call
from ldm_tutor.nn.transformer import causal_mask
from ldm_tutor.shapes import Context, Float, Tensor, Tokens


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


def encode_weighted(
    text_encoder: TextEncoder, tokens: Tokens, factors: Sequence[Mapping[tuple[int, ...], float]]
) -> Context:
    """Return the context of sentences (b, n) in which words speak more, or less, to the tokens behind them.

    The text tower lets each token see those before it, so a word whose own token is silenced in the U-Net still speaks
    through the later ones. `factors`: for each sentence the places of a word -> factor f. With c the context as it is
    and c' the one whose tower hides the word from all other tokens, the context becomes c + (f - 1)(c - c'): 1 leaves
    it, 0 takes the word out of all others, 2 says it twice as much. The word's own vector stays as it is.
    """
    if len(factors) != len(tokens) or any(not 0 <= p < tokens.shape[1] for each in factors for w in each for p in w):
        raise ShapeError(
            "encode_weighted: factors",
            given=factors,
            expected=f"{len(tokens)} mappings of places below {tokens.shape[1]}",
        )
    plain = text_encoder(tokens)
    context = plain.clone()
    for number, words in enumerate(factors):
        for places, factor in words.items():
            if factor != 1:
                without = _hidden_from_others(text_encoder, tokens[number : number + 1], list(places))[0]
                context[number] += (factor - 1) * (plain[number] - without)
    return context


def _hidden_from_others(text_encoder: TextEncoder, tokens: Tokens, places: list[int]) -> Context:
    mask = causal_mask(tokens.shape[1], tokens.device)
    mask[:, places] = False
    mask[places, places] = True
    x = text_encoder.token_embedding(tokens) + text_encoder.position_embedding.weight[: tokens.shape[1]]
    for layer in text_encoder.layers:
        x = layer(x, mask)
    return text_encoder.norm_out(x)
