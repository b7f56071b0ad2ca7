"""CLIP's tokenizer: a sentence becomes numbers, by merging bytes into ever longer pieces of words.

Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over bytes, with CLIP's word pattern (Radford et al. 2021,
arXiv 2103.00020, section 2.4). A word starts as single bytes, the last one marked with `</w>`; then the pairs that
training found most often are joined, in the order of training. Any text can be read: a strange word costs more tokens.

Same ids as transformers' CLIPTokenizer on the same files. OpenAI's code also repairs broken text (ftfy) and HTML
entities first; that is left out here, as it is in transformers: `&amp;` stays five characters. A character that is
younger than Python's Unicode table counts as neither letter nor digit.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ldm_tutor.errors import ConfigError, PromptError, WeightsError
from ldm_tutor.shapes import Int, Tensor

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
VOCAB_FILE, MERGES_FILE, CONFIG_FILE = "vocab.json", "merges.txt", "tokenizer_config.json"

# A word is a frame token, an English ending, a run of letters, one digit, or a run of anything else but spaces.
_WORD = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ a-z0-9]+")
_SPACES = re.compile(r"[^\S\x1c-\x1f]+")  # Unicode's white space; Python's \s counts four control characters too much

Pair = tuple[str, str]


def byte_symbols() -> dict[int, str]:
    """Return one visible character for each of the 256 bytes, in the order of CLIP's vocabulary.

    Visible Latin-1 characters stand for themselves; the others (space, controls) get characters from U+0100 on.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


_SYMBOL_OF = byte_symbols()
_BYTE_OF = {symbol: byte for byte, symbol in _SYMBOL_OF.items()}


def clean(sentence: str) -> str:
    """Return the sentence composed (Unicode NFC), with single spaces, in lower case; PromptError if not text."""
    if not isinstance(sentence, str):
        raise PromptError("Tokenizer: a sentence must be text", given=sentence, expected="a str")
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", sentence))
    return "".join(char.lower() for char in text).strip(" ")  # one by one: str.lower() looks at a sigma's neighbours


def split_words(sentence: str) -> list[str]:
    """Return the words of a sentence by CLIP's pattern: `Two dogs, 10:30` gives two / dogs / , / 1 / 0 / : / 3 / 0."""
    text = clean(sentence)
    shadow = text if text.isascii() else "".join(map(_ascii_stand_in, text))
    return [text[match.start() : match.end()] for match in _WORD.finditer(shadow)]


def _ascii_stand_in(char: str) -> str:
    """Return a letter for any letter, a digit for any digit: Python's `re` has no names for these classes."""
    return char if char.isascii() else {"L": "a", "N": "0"}.get(unicodedata.category(char)[0], "!")


def word_symbols(word: str) -> tuple[str, ...]:
    """Return the smallest pieces of a word: `cat` gives c, a, t</w>."""
    try:
        symbols = [_SYMBOL_OF[byte] for byte in word.encode("utf-8")]
    except UnicodeEncodeError as error:
        raise PromptError("Tokenizer: half a character (a lone surrogate)", given=word, expected="text") from error
    return (*symbols[:-1], symbols[-1] + WORD_END)


def merge_pair(pieces: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    """Join every occurrence of `pair`, from left to right."""
    merged: list[str] = []
    place = 0
    while place < len(pieces):
        step = 2 if pieces[place : place + 2] == pair else 1
        merged.append("".join(pieces[place : place + step]))
        place += step
    return tuple(merged)


def learn_merges(word_counts: Mapping[str, int], num_tokens: int) -> list[Pair]:
    """Join the most frequent pair of neighbours, again and again, until `num_tokens` new tokens exist.

    Ties go to the pair that is first in the alphabet. Fewer tokens if no pair is left: every word is one token then.
    """
    words = {word: word_symbols(word) for word in word_counts}
    merges: list[Pair] = []
    tokens: set[str] = set()
    while len(tokens) < num_tokens:
        pair_counts: Counter[Pair] = Counter()
        for word, pieces in words.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pair_counts[pair] += word_counts[word]
        if not pair_counts:
            break
        best = min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))
        merges.append(best)
        tokens.add("".join(best))
        words = {word: merge_pair(pieces, best) for word, pieces in words.items()}
    return merges


class Tokenizer:
    """Sentences to token ids (b, context_length), each framed and filled as CLIP does: start, words, end, end, ...

    `vocab` gives each token its id; `merges` are the pairs to join, the most important first. ConfigError if a byte
    or a frame token has no id.
    """

    def __init__(self, vocab: dict[str, int], merges: list[Pair], context_length: int) -> None:
        symbols = _SYMBOL_OF.values()
        needed = {START, END, *symbols, *(s + WORD_END for s in symbols), *("".join(pair) for pair in merges)}
        missing = sorted(needed - set(vocab))
        if missing:
            raise ConfigError(f"Tokenizer.vocab: no id for {len(missing)} tokens", given=missing[:5])
        if context_length < 3:
            raise ConfigError("Tokenizer.context_length", given=context_length, expected="3 or more: start, word, end")
        self.vocab = dict(vocab)
        self.merges = [(left, right) for left, right in merges]
        self.context_length = context_length
        self.start_id, self.end_id = vocab[START], vocab[END]
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._token_of = {number: token for token, number in self.vocab.items()}
        self._known: dict[str, tuple[str, ...]] = {START: (START,), END: (END,)}  # words read before

    @classmethod
    def train(cls, sentences: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
        """Learn the merges from sentences; `vocab_size` at least 514 (512 bytes, start, end), and a limit, not a goal.

        The result does not depend on the order of the sentences.
        """
        alphabet = [*_SYMBOL_OF.values(), *(symbol + WORD_END for symbol in _SYMBOL_OF.values())]
        if vocab_size < len(alphabet) + 2:
            raise ConfigError("Tokenizer.train vocab_size", given=vocab_size, expected=f"{len(alphabet) + 2} or more")
        counts = Counter(word for sentence in sentences for word in split_words(sentence) if word not in (START, END))
        merges = learn_merges(counts, vocab_size - len(alphabet) - 2)
        tokens = dict.fromkeys([*alphabet, *("".join(pair) for pair in merges), START, END])  # each one once
        return cls({token: number for number, token in enumerate(tokens)}, merges, context_length)

    @property
    def vocab_size(self) -> int:
        """How many ids there are: one more than the largest."""
        return max(self.vocab.values()) + 1

    def __call__(self, sentences: Sequence[str]) -> Int[Tensor, "b {self.context_length}"]:
        """Return the framed ids of each sentence; PromptError if one is empty or longer than the context."""
        if isinstance(sentences, str):
            raise PromptError("Tokenizer: one sentence alone", given=sentences, expected="a list of sentences")
        rows = [self._frame(sentence) for sentence in sentences]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.context_length)

    def empty(self, b: int) -> Int[Tensor, "b {self.context_length}"]:
        """Return b rows that say nothing (start, end, end, ...): the unconditional prompt."""
        row = [self.start_id] + [self.end_id] * (self.context_length - 1)
        return torch.tensor(row, dtype=torch.int64).expand(b, -1).clone()

    def encode(self, sentence: str) -> list[int]:
        """Return the ids of a sentence without the frame, as many as there are; an empty sentence gives none."""
        return [self.vocab[piece] for piece, _ in self.pieces(sentence)]

    def pieces(self, sentence: str) -> list[tuple[str, int]]:
        """Return each token as it stands in the vocabulary (`dog</w>`) and the index of its word in `split_words`.

        Token number n of this list is column n + 1 of the framed row.
        """
        return [(piece, index) for index, word in enumerate(split_words(sentence)) for piece in self._split(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids up to the first end token; each word is followed by a space, as CLIP has it.

        Bytes that make no whole character become U+FFFD. PromptError for an id that is not in the vocabulary.
        """
        text = bytearray()
        for number in map(int, ids):
            if number == self.end_id:
                break
            if number not in self._token_of:
                raise PromptError("Tokenizer.decode: unknown id", given=number, expected=f"0 to {self.vocab_size - 1}")
            if number != self.start_id:
                token = self._token_of[number]
                text += bytes(_BYTE_OF[symbol] for symbol in token.removesuffix(WORD_END))
                text += b" " if token.endswith(WORD_END) else b""
        return text.decode("utf-8", errors="replace").strip()

    def save(self, folder: str | Path) -> None:
        """Write CLIP's files into `folder`: vocab.json, merges.txt, tokenizer_config.json. transformers reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
        }
        merges = "".join(f"{left} {right}\n" for left, right in self.merges)
        for name, text in (
            (VOCAB_FILE, json.dumps(self.vocab, ensure_ascii=False, indent=0) + "\n"),
            (MERGES_FILE, "#version: 0.2\n" + merges),
            (CONFIG_FILE, json.dumps(config, indent=2) + "\n"),
        ):
            (folder / name).write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the three files of `save`, or those of a published CLIP; WeightsError if one is missing or broken."""
        folder = Path(folder)
        try:
            vocab = json.loads((folder / VOCAB_FILE).read_text(encoding="utf-8"))
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            lines = (folder / MERGES_FILE).read_text(encoding="utf-8").split("\n")
            pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
            merges = [(left, right) for left, right in pairs]
            return cls(vocab, merges, config["model_max_length"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # ConfigError is a ValueError
            raise WeightsError(
                f"{folder}: no readable tokenizer ({type(error).__name__}: {error})",
                expected=f"{VOCAB_FILE}, {MERGES_FILE} and {CONFIG_FILE}, as Tokenizer.save writes them",
            ) from error

    def _split(self, word: str) -> tuple[str, ...]:
        """Return the tokens of one word: join its pieces, the best pair first, until no known pair is left."""
        if word not in self._known:
            pieces = word_symbols(word)
            while len(pieces) > 1:
                pairs = zip(pieces, pieces[1:], strict=False)
                best = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
                if best not in self._rank:
                    break
                pieces = merge_pair(pieces, best)
            self._known[word] = pieces
        return self._known[word]

    def _frame(self, sentence: str) -> list[int]:
        pieces = self.pieces(sentence)
        room = self.context_length - 2
        if not pieces:
            raise PromptError("Tokenizer: an empty sentence", given=sentence, fix="tokenizer.empty(b) means no prompt")
        if len(pieces) > room:
            fit = pieces[room][1]  # the index of the first word that does not fit whole
            raise PromptError(
                f"Tokenizer: the sentence has {len(pieces)} tokens and there is room for {room} between start and end",
                given=sentence,
                fix=f"its first {fit} words fit",
            )
        ids = [self.start_id, *(self.vocab[piece] for piece, _ in pieces)]
        return ids + [self.end_id] * (self.context_length - len(ids))
