"""BERT's tokenizer, which the paper's own text-to-picture models read with: words, and pieces of the rarer ones.

WordPiece in its "uncased" form (Devlin et al. 2018, arXiv 1810.04805): a sentence in lower case and without accents is
cut at spaces and round every punctuation mark. Of a word the longest beginning that the vocabulary has is taken, then
the longest of the rest, which is marked with `##`; a word that cannot be cut so is `[UNK]`.

Same ids as transformers' BertTokenizer on the same vocabulary, but for marks such as `[SEP]` in a sentence, which are
brackets and a word here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch

from ldm_tutor.errors import ConfigError, PromptError
from ldm_tutor.shapes import Int, Tensor

PAD, UNKNOWN, START, END, REST = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "##"
LONGEST = 100  # letters; a longer word is unknown
_CJK = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF),
        (0x2F800, 0x2FA1F))  # fmt: skip


def split_words(sentence: str) -> list[str]:
    """Return the words of a sentence as BERT cuts it: `Két dogs, 10:30` gives ket / dogs / , / 10 / : / 30.

    PromptError if it is not text.
    """
    if not isinstance(sentence, str):
        raise PromptError("WordPieces: a sentence must be text", given=sentence, expected="a str")
    return "".join(map(_cut, unicodedata.normalize("NFD", sentence))).split()


def _cut(char: str) -> str:
    """Return what stands for one character of a decomposed sentence: a space, nothing, itself, itself alone."""
    category = unicodedata.category(char)
    if char in "\t\n\r":
        return " "
    if category in ("Cc", "Cf", "Co", "Cs", "Mn") or char == "\ufffd":
        return ""
    if char.isspace():
        return " "
    symbol = char.isascii() and not char.isalnum()
    if symbol or category[0] == "P" or any(first <= ord(char) <= last for first, last in _CJK):
        return f" {char} "
    return char.lower()


class WordPieces:
    """Sentences to token ids (b, context_length), framed and filled as BERT does: [CLS], words, [SEP], [PAD], ...

    `words`: the vocabulary, a word's place is its id. ConfigError where it lacks one of the marks.
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        self.words = tuple(words)
        self.vocab = {word: number for number, word in enumerate(self.words)}
        missing = [mark for mark in (PAD, UNKNOWN, START, END) if mark not in self.vocab]
        if missing:
            raise ConfigError("WordPieces.words: marks are missing", given=missing, expected="all of them")
        if context_length < 3:
            raise ConfigError("WordPieces.context_length", given=context_length, expected="3 or more: start, word, end")
        self.context_length = context_length

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self.words)

    def __call__(self, sentences: Sequence[str]) -> Int[Tensor, "b {self.context_length}"]:
        """Return the framed ids of each sentence; PromptError if one is empty or longer than the context."""
        if isinstance(sentences, str):
            raise PromptError("WordPieces: one sentence alone", given=sentences, expected="a list of sentences")
        rows = [self._frame(sentence) for sentence in sentences]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.context_length)

    def empty(self, b: int) -> Int[Tensor, "b {self.context_length}"]:
        """Return b rows that say nothing ([CLS], [SEP], [PAD], ...): the unconditional prompt."""
        return torch.tensor([self._filled([])] * b, dtype=torch.int64).reshape(b, self.context_length)

    def pieces(self, sentence: str) -> list[tuple[str, int]]:
        """Return each token as it stands in the vocabulary and the index of its word in `split_words`."""
        return [(piece, index) for index, word in enumerate(split_words(sentence)) for piece in self._split(word)]

    def _split(self, word: str) -> list[str]:
        pieces: list[str] = []
        rest = word if len(word) <= LONGEST else ""
        while rest:
            mark = REST if pieces else ""
            known = (end for end in range(len(rest), 0, -1) if mark + rest[:end] in self.vocab)
            end = next(known, 0)
            if not end:
                return [UNKNOWN]
            pieces.append(mark + rest[:end])
            rest = rest[end:]
        return pieces or [UNKNOWN]

    def _frame(self, sentence: str) -> list[int]:
        pieces = self.pieces(sentence)
        room = self.context_length - 2
        if not pieces:
            raise PromptError("WordPieces: an empty sentence", given=sentence, fix="empty(b) means no prompt")
        if len(pieces) > room:
            raise PromptError(
                f"WordPieces: the sentence has {len(pieces)} tokens and there is room for {room} between start and end",
                given=sentence,
                fix=f"its first {pieces[room][1]} words fit",
            )
        return self._filled([self.vocab[piece] for piece, _ in pieces])

    def _filled(self, ids: list[int]) -> list[int]:
        framed = [self.vocab[START], *ids, self.vocab[END]]
        return framed + [self.vocab[PAD]] * (self.context_length - len(framed))
