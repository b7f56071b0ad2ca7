"""Taps that edit: a picture takes over the attention maps of another one that is drawn beside it.

Prompt-to-prompt, Hertz et al. 2022 (arXiv 2208.01626): source and target start from the same noise and are drawn in
one batch; the target looks where the source looked, and reads its own words there. Only batch rows that see their
sentence are edited, and only where `declare_call` said which these are. Several taps go together with `chain`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ldm_tutor.attention_maps.align import Alignment
from ldm_tutor.errors import AttentionTapError, ConfigError
from ldm_tutor.nn.attention import Call
from ldm_tutor.shapes import Float, Tensor

Window = float | tuple[float, float]  # a share of the steps from the start on, or (from, to), both 0 to 1
Pair = tuple[int, int]  # the numbers of a source sentence and of a target sentence in the batch

LARGEST_SELF = 16 * 16  # positions; the published code takes over self-attention up to this size


def check_window(window: Window, place: str) -> tuple[float, float]:
    """Return (from, to) of a window; ConfigError for anything that is no part of a run."""
    ends = window if isinstance(window, tuple) else (0.0, window)
    numbers = len(ends) == 2 and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in ends)
    if not numbers or not 0 <= ends[0] <= ends[1] <= 1:
        raise ConfigError(place, given=window, expected="a share 0 to 1, or (from, to) with 0 <= from <= to <= 1")
    return float(ends[0]), float(ends[1])


def injection_table(
    num_steps: int, length: int, share: Window, token_shares: Mapping[int, Window] | None = None
) -> Float[Tensor, "num_steps_plus_1 m"]:
    """Return for each step and target token how much of the source's map it takes: 1 inside its window, 0 outside.

    `share`: the window of all tokens; `token_shares`: other windows for single ones. A bound f falls on step
    int(f * (num_steps + 1)), as in the published code, whose table has one row more than there are steps.
    """
    table = torch.zeros(num_steps + 1, length)
    windows = dict.fromkeys(range(length), share) | dict(token_shares or {})
    for token, window in windows.items():
        if not 0 <= token < length:
            raise ConfigError("injection_table: token", given=token, expected=f"0 to {length - 1}")
        first, last = (int(bound * (num_steps + 1)) for bound in check_window(window, "share of the steps"))
        table[first:last, token] = 1
    return table


class TakeCross:
    """A tap that gives target rows the source's cross-attention, brought to their own tokens by an `Alignment`.

    `pairs`: (source, target) sentence numbers, one per alignment; by default 0 is the source of all others. `tables`:
    one `injection_table` per pair. Self-attention passes untouched.
    """

    def __init__(
        self, alignments: Sequence[Alignment], tables: Sequence[Tensor], pairs: Sequence[Pair] | None = None
    ) -> None:
        self.pairs = _checked_pairs(pairs, len(alignments), "TakeCross")
        if len(tables) != len(alignments) or any(t.shape[1] != len(a.new) for t, a in zip(tables, alignments)):  # noqa: B905
            raise ConfigError(
                "TakeCross: tables", given=[tuple(t.shape) for t in tables], expected="one (steps + 1, tokens) per pair"
            )
        self.mapper = torch.stack([each.mapper for each in alignments])
        new = torch.stack([each.new for each in alignments])
        self.alpha = torch.stack(list(tables), dim=1) * ~new  # steps pairs m

    def __call__(self, call: Call, probs: Float[Tensor, "b heads n m"]) -> Float[Tensor, "b heads n m"] | None:
        """Return the maps with the targets' replaced; None where this step takes nothing over."""
        if call.site.kind != "cross":
            return None
        alpha = self.alpha[_step_of(call, len(self.alpha), "TakeCross")]
        if not bool(alpha.any()):
            return None
        if probs.shape[-1] != alpha.shape[-1]:
            raise AttentionTapError(
                f"TakeCross at {call.site.name}: tokens", given=probs.shape[-1], expected=f"{alpha.shape[-1]}"
            )
        sources, targets = rows_of(call, probs, self.pairs, "TakeCross")
        alpha, mapper = alpha[:, None, None].to(probs), self.mapper[:, None].to(probs)  # pairs 1 1 m, pairs 1 m m
        edited = probs.clone()
        edited[targets] = alpha * (probs[sources] @ mapper) + (1 - alpha) * probs[targets]
        return edited


class TakeSelf:
    """A tap that gives target rows the source's self-attention: which position looks at which.

    It holds the layout and keeps a new object in the old one's outline. `shares`: the window of each pair, whose bounds
    fall on step int(f * num_steps). Maps of more than `largest` positions are left alone.
    """

    def __init__(
        self, num_steps: int, shares: Sequence[Window], pairs: Sequence[Pair] | None = None, largest: int = LARGEST_SELF
    ) -> None:
        windows = [check_window(each, "TakeSelf: share of the steps") for each in shares]
        self.steps = [range(int(first * num_steps), int(last * num_steps)) for first, last in windows]
        self.num_steps = num_steps
        self.pairs = _checked_pairs(pairs, len(shares), "TakeSelf")
        self.largest = largest

    def __call__(self, call: Call, probs: Float[Tensor, "b heads n m"]) -> Float[Tensor, "b heads n m"] | None:
        """Return the maps with the targets' replaced; None outside all windows."""
        if call.site.kind != "self" or probs.shape[-1] > self.largest:
            return None
        step = _step_of(call, self.num_steps, "TakeSelf")
        open_now = [pair for pair, steps in zip(self.pairs, self.steps, strict=True) if step in steps]
        if not open_now:
            return None
        sources, targets = rows_of(call, probs, open_now, "TakeSelf")
        edited = probs.clone()
        edited[targets] = probs[sources]
        return edited


class Reweight:
    """A tap that multiplies what positions give to single tokens; nothing is divided afterwards, so rows need not sum
    to 1 any more.

    `factors`: for each sentence of the batch, token place -> factor: above 1 strengthens a word, 0 silences it, below
    0 pushes away from it. It acts in all steps, on the map as the taps before it left it. In the published code the
    factors end with the window of the injection, because there they multiply the source's map.
    """

    def __init__(self, factors: Sequence[Mapping[int, float]]) -> None:
        self.factors = [{place: check_factor(place, each) for place, each in row.items()} for row in factors]

    def __call__(self, call: Call, probs: Float[Tensor, "b heads n m"]) -> Float[Tensor, "b heads n m"] | None:
        """Return the maps with their columns multiplied; None where no sentence has a factor."""
        if call.site.kind != "cross" or not any(self.factors):
            return None
        m = probs.shape[-1]
        scale = torch.ones(probs.shape[0], m, dtype=probs.dtype, device=probs.device)
        rows = conditional_rows(call, probs, "Reweight")
        for prompt, factors in enumerate(self.factors):
            if factors and (prompt not in rows or not all(0 <= place < m for place in factors)):
                raise AttentionTapError(
                    f"Reweight at {call.site.name}: sentence {prompt}, tokens {list(factors)}",
                    given=f"sentences {sorted(rows)} of {m} tokens",
                    expected="factors for tokens and sentences that are in the batch",
                )
            for place, factor in factors.items():
                scale[rows[prompt], place] = factor
        return probs * scale[:, None, None]


def check_factor(word: object, factor: object) -> float:
    """Return a factor as a number; ConfigError that names the word where it is none."""
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
        raise ConfigError(f"the factor of {word!r}", given=factor, expected="a finite number, such as 2, 0 or -1")
    return float(factor)


def conditional_rows(call: Call, probs: Tensor, place: str) -> dict[int, int]:
    """Return sentence number -> batch row of the rows that see their sentence; AttentionTapError if not declared."""
    rows = call.info.rows
    if len(rows) != probs.shape[0]:
        raise AttentionTapError(
            f"{place} at {call.site.name}: which batch row is which was not declared",
            given=f"{len(rows)} rows declared, {probs.shape[0]} in the batch",
            expected="declare_call with one Row per batch row, as Guided does",
        )
    return {row.prompt: index for index, row in enumerate(rows) if row.conditional}


def rows_of(call: Call, probs: Tensor, pairs: Sequence[Pair], place: str) -> tuple[list[int], list[int]]:
    """Return the batch rows of the sources and of the targets."""
    rows = conditional_rows(call, probs, place)
    missing = sorted({number for pair in pairs for number in pair} - set(rows))
    if missing:
        raise AttentionTapError(
            f"{place} at {call.site.name}: sentences that are not in the batch", given=missing, expected=f"{list(rows)}"
        )
    return [rows[source] for source, _ in pairs], [rows[target] for _, target in pairs]


def _checked_pairs(pairs: Sequence[Pair] | None, number: int, place: str) -> tuple[Pair, ...]:
    chosen = tuple(pairs) if pairs is not None else tuple((0, k + 1) for k in range(number))
    targets = [target for _, target in chosen]
    if not chosen or len(chosen) != number:
        raise ConfigError(f"{place}: pairs", given=chosen, expected=f"{number or 'at least one'}, (source, target)")
    if len(set(targets)) != len(targets) or set(targets) & {source for source, _ in chosen}:
        raise ConfigError(f"{place}: pairs", given=chosen, expected="targets all different, none of them a source")
    return chosen


def _step_of(call: Call, num_steps: int, place: str) -> int:
    step = call.info.step
    if step is None or not 0 <= step < num_steps:
        raise AttentionTapError(
            f"{place} at {call.site.name}: the running step", given=step, expected=f"declared, 0 to {num_steps - 1}"
        )
    return step
