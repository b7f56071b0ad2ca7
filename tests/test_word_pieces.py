"""BERT's tokenizer: the ids of transformers' own on the same vocabulary, and what it refuses."""

import pytest
import torch
from test_tokenizer import STRANGE, random_sentences

from ldm_tutor.errors import ConfigError, PromptError
from ldm_tutor.models.word_pieces import END, PAD, START, UNKNOWN, WordPieces, split_words

MARKS = [PAD, UNKNOWN, START, END, "[MASK]"]
RANGES = (range(0x21, 0x7F), range(0xA1, 0x250), range(0x370, 0x500), range(0x4E00, 0x4E80))
LETTERS = [chr(code) for codes in RANGES for code in codes]
WHOLE = ["red", "cat", "##at", "dog", "##gish", "##gi"]
WORDS = list(dict.fromkeys([*MARKS, *LETTERS, *(f"##{each}" for each in LETTERS), *WHOLE]))  # each once


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return transformers.BertTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours():
    return WordPieces(WORDS, 77)


def test_same_ids_as_transformers(ours, theirs):
    random = [" ".join(each[at : at + 6] for at in range(0, 30, 6)) for each in random_sentences(300, seed=3)]
    sentences = ["A red CAT's doggish dogs", "x" * 101, "cats" * 10, *STRANGE, *random]
    seen = 0
    for sentence in sentences:
        if ours.pieces(sentence) and len(ours.pieces(sentence)) <= 75:
            wanted = theirs([sentence], padding="max_length", max_length=77)["input_ids"]
            assert ours([sentence]).tolist() == wanted, sentence
            seen += 1
    assert seen > 250
    assert ours.empty(2).tolist() == theirs(["", ""], padding="max_length", max_length=77)["input_ids"]


def test_words_and_pieces(ours):
    assert split_words("Két dogs, 10:30\n") == ["ket", "dogs", ",", "10", ":", "30"]
    pieces = [("cat", 0), ("##s", 0), ("dog", 1), ("##gish", 1), ("日", 2)]
    assert WordPieces([*WORDS, "日"], 77).pieces("Cats doggish日") == pieces
    assert ours.pieces("日 " + "a" * 101) == [(UNKNOWN, 0), (UNKNOWN, 1)]
    assert ours.vocab_size == len(WORDS) and ours([]).shape == (0, 77)


def test_what_is_refused(ours, unchecked_annotations):
    for sentence in ("", "  ", "\u200b"):
        with pytest.raises(PromptError, match="an empty sentence"):
            ours([sentence])
    with pytest.raises(PromptError, match=r"101 tokens and there is room for 75.*its first 75 words fit"):
        ours(["a " * 101])
    for sentences in ("a cat", [3]):
        with pytest.raises(PromptError):
            ours(sentences)
    with pytest.raises(ConfigError, match=r"marks are missing.*\[CLS\]"):
        WordPieces(["[PAD]", "[UNK]", "[SEP]"], 77)
    with pytest.raises(ConfigError, match="context_length"):
        WordPieces(WORDS, 2)
    assert torch.equal(ours(["a" + " a" * 74])[0, -1:], torch.tensor([WORDS.index(END)]))
