"""Words and their tokens: where a word stands in the context, and which tokens of two sentences belong together.

Words are those of `split_words` (CLIP's pattern), where the published code of prompt-to-prompt splits at spaces: a
comma is a word of its own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ldm_tutor.errors import PromptError
from ldm_tutor.models.tokenizer import Tokenizer, split_words
from ldm_tutor.shapes import Bool, Float, Tensor

MATCH, MISMATCH, GAP = 1, -1, 0  # the scores of `align_sequences`


def sentence_words(tokenizer: Tokenizer, sentence: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return every word with the places of its pieces in the context; place 0 is the start mark."""
    places: dict[int, list[int]] = {}
    for place, (_, index) in enumerate(tokenizer.pieces(sentence), 1):
        places.setdefault(index, []).append(place)
    return [(word, tuple(places[index])) for index, word in enumerate(split_words(sentence))]


def word_places(tokenizer: Tokenizer, sentence: str, word: str) -> tuple[int, ...]:
    """Return the places of the pieces of `word` where it stands first in the sentence; () if it is not there."""
    return next((places for each, places in sentence_words(tokenizer, sentence) if each == word), ())


def find_places(tokenizer: Tokenizer, sentence: str, phrase: str) -> tuple[int, ...]:
    """Return the places of a word, or of several in a row (`at night`), wherever it stands in the sentence.

    PromptError that names the sentence's words where it does not.
    """
    tokenizer([sentence])  # raises for a sentence that is empty or too long
    pairs = sentence_words(tokenizer, sentence)
    words, wanted = [word for word, _ in pairs], split_words(phrase) if isinstance(phrase, str) else []
    starts = [k for k in range(len(words) - len(wanted) + 1) if wanted and words[k : k + len(wanted)] == wanted]
    if not starts:
        raise PromptError(f"these words are not in {sentence!r}", given=phrase, expected=f"one of {words}")
    found = {place for k in starts for _, places in pairs[k : k + len(wanted)] for place in places}
    return tuple(sorted(found))


@dataclass(frozen=True)
class Alignment:
    """Which source tokens each target token takes its attention from.

    `mapper`: (m, m); the map (n, m) of the source sentence times it is a map over the target's tokens. `new`: the
    target's tokens that have no counterpart and keep their own map. `source_words` and `target_words`: the places of
    the words that differ, in either sentence.
    """

    mapper: Float[Tensor, "m m"]
    new: Bool[Tensor, " m"]
    source_words: tuple[int, ...]
    target_words: tuple[int, ...]


def align_swap(tokenizer: Tokenizer, source: str, target: str) -> Alignment:
    """Align two sentences of equally many words, word by word: for swaps (Hertz et al. 2022, `replace`).

    A word of as many tokens as its counterpart takes them one by one. Otherwise each of the k tokens of the new word
    takes 1/k of all the old word's. The end marks follow in order. Where the target has fewer of them, its last one
    takes what is left, so that the rows of a map still sum to 1 (the published code shifts them instead).
    PromptError, naming both counts, where the numbers of words differ.
    """
    tokens = tokenizer([source, target])
    old, new = sentence_words(tokenizer, source), sentence_words(tokenizer, target)
    if len(old) != len(new):
        raise PromptError(
            "a swap needs sentences of equally many words",
            given=f"{len(old)} words in {source!r}, {len(new)} in {target!r}",
            expected="word for word the same, but for the swapped ones",
            fix="use 'refine' for words that are added or left out",
        )
    m = tokens.shape[1]
    mapper = torch.zeros(m, m)
    mapper[0, 0] = 1
    for (_, before), (_, after) in zip(old, new, strict=True):
        if len(before) == len(after):
            mapper[list(before), list(after)] = 1
        else:
            for place in after:
                mapper[list(before), place] = 1 / len(after)
    first_old, first_new = 1 + sum(len(p) for _, p in old), 1 + sum(len(p) for _, p in new)
    for k in range(m - first_old):  # the end marks
        mapper[first_old + k, min(first_new + k, m - 1)] = 1
    changed = [k for k, (one, other) in enumerate(zip(old, new, strict=True)) if one[0] != other[0]]
    return Alignment(mapper, torch.zeros(m, dtype=torch.bool), _places(old, changed), _places(new, changed))


def align_refinement(tokenizer: Tokenizer, source: str, target: str) -> Alignment:
    """Align two sentences by their tokens (Needleman and Wunsch 1970), for words that are added or left out.

    Matched tokens take the source's map, the others keep their own. End marks are matched in order; those that the
    source does not have keep their own map too. PromptError where the two sentences have no word in common.
    """
    tokens = tokenizer([source, target])
    m = tokens.shape[1]
    ids = [tokenizer.encode(each) for each in (source, target)]
    pairs = align_sequences(*ids)
    if not pairs:
        raise PromptError("these sentences cannot be aligned", given=(source, target), expected="some words in common")
    counterparts = {0: 0} | {b + 1: a + 1 for a, b in pairs}
    ends = [len(each) + 1 for each in ids]
    counterparts |= {ends[1] + k: ends[0] + k for k in range(m - max(ends))}
    mapper = torch.zeros(m, m)
    for place, old in counterparts.items():
        mapper[old, place] = 1
    new = torch.tensor([place not in counterparts for place in range(m)])
    matched = set(counterparts.values())
    return Alignment(
        mapper,
        new,
        tuple(place for place in range(1, ends[0]) if place not in matched),
        tuple(place for place in range(1, ends[1]) if place not in counterparts),
    )


def align_sequences(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs (i, j) of equal entries in the best global alignment: match +1, mismatch -1, gap 0.

    Both numbers rise from pair to pair. With several best alignments, entries are matched as late as can be.
    """
    rows, columns = len(first), len(second)
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            here = MATCH if first[i - 1] == second[j - 1] else MISMATCH
            best[i][j] = max(best[i - 1][j - 1] + here, best[i - 1][j] + GAP, best[i][j - 1] + GAP)
    pairs, i, j = [], rows, columns
    while i and j:
        if first[i - 1] == second[j - 1] and best[i][j] == best[i - 1][j - 1] + MATCH:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif best[i][j] == best[i - 1][j] + GAP:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _places(words: Sequence[tuple[str, tuple[int, ...]]], chosen: Sequence[int]) -> tuple[int, ...]:
    return tuple(place for k in chosen for place in words[k][1])
