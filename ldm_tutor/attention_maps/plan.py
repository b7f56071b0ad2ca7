"""From two sentences to everything that an edit needs: which rows are drawn, which taps watch them, what is blended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm_tutor.attention_maps.align import Alignment, align_refinement, align_swap, find_places
from ldm_tutor.attention_maps.blend import LocalBlend
from ldm_tutor.attention_maps.edit import (
    Reweight,
    TakeCross,
    TakeSelf,
    Window,
    check_factor,
    check_window,
    injection_table,
)
from ldm_tutor.attention_maps.ignore import Ignore
from ldm_tutor.attention_maps.watch import chain
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.tokenizer import Tokenizer, split_words
from ldm_tutor.nn.attention import Tap

METHODS = ("swap", "refine")


@dataclass(frozen=True, kw_only=True)
class Injection:
    """How much of the source a target takes over, as shares of the steps (or (from, to)).

    `cross`: of the cross-attention; `self_`: of the self-attention; `words`: other windows for single words of the
    target. `threshold` and `start` of `LocalBlend`; None blends nothing.
    """

    cross: Window = 1.0
    self_: Window = 0.4
    words: Mapping[str, Window] = field(default_factory=dict)
    threshold: float | None = 0.5
    start: float = 0.2

    def __post_init__(self) -> None:
        for name, window in (("cross", self.cross), ("self_", self.self_), *self.words.items()):
            check_window(window, f"Injection: {name}")


# What did best with the shipped model (`ldm-tutor evaluate editing`), with sentences that the figures do not count.
SWAP = Injection()
REFINE = Injection(cross=0.4, self_=0.2, threshold=None)
WEIGH = Injection(cross=0.8, self_=0.8, start=0.0)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One edit: what to draw beside the picture of `source` with `seed`.

    `target`: the new sentence; None where the words stay and only their weights change. `weights`: words of the
    target and their factors. `ignore`: words of the target that no position may look at. Both act in the U-Net alone,
    or with `deep` also in the text tower, where the later words read the earlier ones. `method`: how the sentences are
    aligned, one of METHODS; None swaps where they have equally many words and refines otherwise. `injection`: how much
    is taken over; None is SWAP, REFINE or, for the same words, WEIGH. ConfigError where nothing would change.
    """

    source: str
    target: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    ignore: Sequence[str] = ()
    deep: bool = True
    method: str | None = None
    injection: Injection | None = None

    def __post_init__(self) -> None:
        if self.method not in (None, *METHODS):
            raise ConfigError("Change: method", given=self.method, expected=f"one of {METHODS}, or None")
        if isinstance(self.ignore, str):
            raise ConfigError("Change: ignore", given=self.ignore, expected="a list of words")
        for word, factor in self.weights.items():
            check_factor(word, factor)

    @property
    def new_sentence(self) -> str:
        """The sentence of the edited picture."""
        return self.source if self.target is None else self.target

    @property
    def how(self) -> Injection:
        """How much is taken over."""
        if self.injection is not None:
            return self.injection
        old, new = split_words(self.source), split_words(self.new_sentence)
        if old == new:
            return WEIGH
        return REFINE if self.method == "refine" or len(old) != len(new) else SWAP

    def is_empty(self) -> bool:
        """Whether source and target would be drawn alike."""
        factors = [factor for factor in self.weights.values() if factor != 1]
        return split_words(self.source) == split_words(self.new_sentence) and not factors and not self.ignore


class EditPlan:
    """One batch: its sentences and seeds, and what to do while it is drawn.

    `prompts`, `seeds`: one per picture; equal sources stand there once. `sources`, `targets`: for each change the
    number of its source's picture and of its own. `tap` goes to `watch(unet, plan.tap, "all")`, `blend` to the `edit`
    of `sample` (None where nothing is blended), `spoken` to `encode_weighted`: how much single words say to the others.
    A plan is for one run of `num_steps` steps.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        changes: Sequence[Change],
        num_steps: int,
        *,
        may_be_empty: bool = False,
    ) -> None:
        self.num_steps = num_steps
        if not changes:
            raise ConfigError("EditPlan: changes", given=0, expected="at least one")
        empty = [change.new_sentence for change in changes if change.is_empty()]
        if empty and not may_be_empty:
            raise ConfigError(
                "an edit that changes nothing", given=empty[0],
                expected="another sentence, a factor other than 1, or a word to ignore",
            )  # fmt: skip
        first: dict[tuple[str, int], int] = {}
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.sources: list[int] = []
        self.targets: list[int] = []
        for change in changes:
            key = change.source, change.seed
            if key not in first:
                first[key] = self._add(*key)
            self.sources.append(first[key])
            self.targets.append(self._add(change.new_sentence, change.seed))
        pairs = list(zip(self.sources, self.targets, strict=True))
        alignments = [align(tokenizer, each.source, each.new_sentence, each.method) for each in changes]
        factors: list[Mapping[int, float]] = [{} for _ in self.prompts]
        ignored: list[Sequence[int]] = [() for _ in self.prompts]
        self.spoken: list[Mapping[tuple[int, ...], float]] = [{} for _ in self.prompts]
        tables, words, thresholds, starts = [], [], [], []
        for change, alignment, target in zip(changes, alignments, self.targets, strict=True):
            told, how = change.new_sentence, change.how
            factors[target] = _by_token(tokenizer, told, change.weights)
            ignored[target] = tuple(_by_token(tokenizer, told, dict.fromkeys(change.ignore)))
            if change.deep:
                louder = {**change.weights, **dict.fromkeys(change.ignore, 0.0)}
                self.spoken[target] = {find_places(tokenizer, told, word): f for word, f in louder.items()}
            tables.append(
                injection_table(num_steps, len(alignment.new), how.cross, _by_token(tokenizer, told, how.words))
            )
            touched = {*alignment.target_words, *factors[target], *ignored[target]}
            words.append(((), ()) if how.threshold is None else (_mapped_back(alignment, touched), tuple(touched)))
            thresholds.append(how.threshold or 0.0)
            starts.append(how.start)
        shares = [change.how.self_ for change in changes]
        taps: list[Tap] = [TakeCross(alignments, tables, pairs), TakeSelf(num_steps, shares, pairs)]
        taps += [Reweight(factors)] * any(factors) + [Ignore(per_prompt=ignored)] * any(ignored)
        self.blender = None
        if any(map(any, words)):
            self.blender = LocalBlend(num_steps, words, pairs, threshold=thresholds, start=starts)
            taps.insert(0, self.blender.look)
        self.blend = None if self.blender is None else self.blender.blend
        self.tap = chain(*taps)

    def _add(self, prompt: str, seed: int) -> int:
        self.prompts.append(prompt)
        self.seeds.append(seed)
        return len(self.prompts) - 1


def align(tokenizer: Tokenizer, source: str, target: str, method: str | None = None) -> Alignment:
    """Align two sentences by `method`; None swaps where they have equally many words, and refines otherwise."""
    if method is None:
        method = "swap" if len(split_words(source)) == len(split_words(target)) else "refine"
    return (align_swap if method == "swap" else align_refinement)(tokenizer, source, target)


def _by_token(tokenizer: Tokenizer, sentence: str, values: Mapping[str, Any]) -> dict[int, Any]:
    return {place: value for word, value in values.items() for place in find_places(tokenizer, sentence, word)}


def _mapped_back(alignment: Alignment, touched: set[int]) -> tuple[int, ...]:
    """Return the places in the source of what is touched in the target, and of what the target leaves out."""
    back = {int(k) for place in touched for k in alignment.mapper[:, place].nonzero().flatten()}
    return tuple(sorted(back | set(alignment.source_words)))
