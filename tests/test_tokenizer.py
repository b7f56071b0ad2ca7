"""The tokenizer: CLIP's rules, its files, and the words of the scenes."""

import json
import random
import sys

import pytest
import torch

from ldm_tutor.data.scenes.sampling import caption_for
from ldm_tutor.data.scenes.words import vocabulary
from ldm_tutor.errors import ConfigError, PromptError, TutorError, WeightsError
from ldm_tutor.models.tokenizer import END, START, Tokenizer, learn_merges, merge_pair, split_words

CONTEXT_LENGTH = 32
STRANGE = [
    "a dog's life, isn't it? we've said they'll go, I'm sure you'd say they're",
    "Ünïcode ÇA VA? naïve Straße",
    "e\u0301 is two characters and é is one",
    "ΟΔΟΣ ΣΑΣ",
    "日本語 と 中文 一二三",
    "½ ² Ⅷ ٣ 100% 3.14 10:30",
    "snake_case --> <tag> &amp; $5 a@b.c",
    "emoji 🚀🚀 👩\u200d🚀 !!! ...",
    "tab\tline\nfeed\u00a0no-break\u3000wide \x1c control \x85",
    "<|endoftext|> and <|startoftext|> in the text",
    "it''s ''s !'s x's 's's",
    "İstanbul ıI",
    "</w> dog</w>",
]


@pytest.fixture(scope="module")
def captions():
    return [caption_for(index, "train") for index in range(20_000)]


@pytest.fixture(scope="module")
def tokenizer(captions):
    return Tokenizer.train(captions, vocab_size=768, context_length=CONTEXT_LENGTH)


@pytest.fixture(scope="module")
def clip_tokenizer(tokenizer, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def random_sentences(number, seed):
    rng = random.Random(seed)
    ranges = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x4E00, 0x4EFF), (0x1F600, 0x1F640)]
    for _ in range(number):
        low, high = rng.choice(ranges)
        yield "".join(chr(rng.choice([rng.randint(low, high), 0x20, rng.randint(0x27, 0x7E)])) for _ in range(30))


def test_every_word_of_the_captions_is_one_token(tokenizer, captions):
    seen = {word for caption in captions for word in split_words(caption)}
    assert [word for word in seen if len(tokenizer.encode(word)) != 1] == []
    assert set(vocabulary()) <= seen
    assert tokenizer.vocab_size <= 768


def test_every_caption_fits_the_context(tokenizer, captions):
    assert tokenizer(captions).shape == (len(captions), CONTEXT_LENGTH)
    crowded = [caption_for(number, "three") for number in range(4000)]
    assert tokenizer(crowded).shape == (len(crowded), CONTEXT_LENGTH)


def test_the_frame(tokenizer):
    tokens = tokenizer(["a red dog", "two cats"])
    start, end = tokenizer.start_id, tokenizer.end_id
    ids = tokenizer.encode("a red dog")
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist() == [start, *ids] + [end] * (CONTEXT_LENGTH - 1 - len(ids))
    assert tokenizer([]).shape == (0, CONTEXT_LENGTH)
    assert tokenizer.empty(3).tolist() == [[start] + [end] * (CONTEXT_LENGTH - 1)] * 3
    assert (start, end) == (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)


def test_the_word_pattern():
    assert split_words("  Two DOGS,\n10:30  it's ") == ["two", "dogs", ",", "1", "0", ":", "3", "0", "it", "'s"]
    assert split_words("!'s") == ["!'", "s"]
    assert split_words(f"a{END}b") == ["a", END, "b"]
    assert split_words(" \t\n") == []


def test_merges_are_learned_by_frequency_and_ties_by_the_alphabet():
    assert merge_pair(("a", "a", "a"), ("a", "a")) == ("aa", "a")
    assert Tokenizer.train(["ab ab ab cd cd"], 514 + 1, 8).merges == [("a", "b</w>")]
    assert Tokenizer.train(["cd ab"], 514 + 9, 8).merges == [("a", "b</w>"), ("c", "d</w>")]  # then none is left
    assert learn_merges({}, 5) == []


def test_training_does_not_depend_on_the_order(tokenizer, captions):
    again = Tokenizer.train(reversed(captions), vocab_size=768, context_length=CONTEXT_LENGTH)
    assert (again.vocab, again.merges) == (tokenizer.vocab, tokenizer.merges)


def test_a_token_made_in_two_ways_has_one_id():
    """`abc` comes from ab + c in one word and from a + bc in another; the vocabulary lists it once."""
    words = ["abx"] * 9 + ["abcy"] * 5 + ["zbc"] * 9 + ["qabc"] * 3 + ["mbcn"] * 9
    tokenizer = Tokenizer.train([" ".join(words)], 700, 16)
    assert len(set(tokenizer.vocab.values())) == len(tokenizer.vocab) == tokenizer.vocab_size


def test_pieces_name_the_word_of_each_token(tokenizer):
    pieces = tokenizer.pieces("a zebra, a dog")
    assert [tokenizer.vocab[piece] for piece, _ in pieces] == tokenizer.encode("a zebra, a dog")
    assert "".join(piece for piece, index in pieces if index == 1) == "zebra</w>"
    assert pieces[0] == ("a</w>", 0) and pieces[-1] == ("dog</w>", 4)
    assert [index for _, index in pieces] == sorted(index for _, index in pieces)


@pytest.mark.parametrize("sentence", [s for s in STRANGE[:9] if "\x1c" not in s])
def test_decode_gives_the_words_back(tokenizer, sentence):
    wide = Tokenizer(tokenizer.vocab, tokenizer.merges, 512)
    words = split_words(sentence)
    assert wide.decode(wide.encode(sentence)).split() == words
    assert wide.decode(wide([sentence])[0].tolist()).split() == words


def test_decode_of_half_a_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"
    with pytest.raises(PromptError, match="unknown id"):
        tokenizer.decode([10**6])


@pytest.mark.parametrize("sentence", STRANGE)
def test_same_ids_as_transformers(tokenizer, clip_tokenizer, sentence):
    assert tokenizer.encode(sentence) == clip_tokenizer(sentence, add_special_tokens=False)["input_ids"]


def test_same_ids_as_transformers_on_random_strings(tokenizer, clip_tokenizer):
    for sentence in random_sentences(3000, seed=1):
        assert tokenizer.encode(sentence) == clip_tokenizer(sentence, add_special_tokens=False)["input_ids"], sentence


def test_same_frame_as_transformers(tokenizer, clip_tokenizer, captions):
    theirs = clip_tokenizer(captions[:500], padding="max_length", return_tensors="pt")["input_ids"]
    assert torch.equal(tokenizer(captions[:500]), theirs)
    assert torch.equal(tokenizer.empty(1), clip_tokenizer([""], padding="max_length", return_tensors="pt")["input_ids"])
    assert clip_tokenizer.model_max_length == CONTEXT_LENGTH
    assert (clip_tokenizer.bos_token_id, clip_tokenizer.eos_token_id) == (tokenizer.start_id, tokenizer.end_id)
    assert clip_tokenizer.pad_token_id == tokenizer.end_id


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    again = Tokenizer.load(tmp_path / "new" / "folder")
    assert (again.vocab, again.merges) == (tokenizer.vocab, tokenizer.merges)
    assert again.context_length == CONTEXT_LENGTH


def test_merges_that_begin_with_the_comment_sign_survive(tmp_path):
    Tokenizer.train(["## ##"], 520, 8).save(tmp_path)
    assert Tokenizer.load(tmp_path).merges == [("#", "#</w>")]


@pytest.mark.parametrize("sentence", ["", "   ", "\t\n"])
def test_an_empty_sentence_points_to_empty(tokenizer, sentence):
    with pytest.raises(PromptError, match=r"tokenizer\.empty"):
        tokenizer(["a dog", sentence])


def test_a_sentence_too_long_says_how_many_words_fit(tokenizer):
    with pytest.raises(PromptError, match="has 40 tokens and there is room for 30.*first 30 words fit"):
        tokenizer(["dog " * 40])
    long_word = "dog zebrazebrazebrazebrazebrazebrazebrazebra"
    with pytest.raises(PromptError, match="first 1 words fit"):
        tokenizer([long_word])
    tokenizer(["dog " * 30])


@pytest.mark.parametrize("wrong", [None, 7, b"a dog", ["a dog"]])
def test_what_is_not_text_is_refused(tokenizer, unchecked_annotations, wrong):
    with pytest.raises(PromptError, match="must be text"):
        tokenizer([wrong])


def test_a_bare_sentence_and_half_a_character_are_refused(tokenizer):
    with pytest.raises(PromptError, match="a list of sentences"):
        tokenizer("a dog")
    with pytest.raises(PromptError, match="surrogate"):
        tokenizer(["a \ud800 dog"])


def test_wrong_settings_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="514"):
        Tokenizer.train(["a dog"], vocab_size=300, context_length=8)
    with pytest.raises(ConfigError, match="context_length"):
        Tokenizer(tokenizer.vocab, tokenizer.merges, 2)
    with pytest.raises(ConfigError, match=r"<\|startoftext\|>"):
        Tokenizer({t: n for t, n in tokenizer.vocab.items() if t != START}, [], 8)


@pytest.mark.parametrize(
    "name, text",
    [
        ("vocab.json", None),
        ("vocab.json", "{"),
        ("vocab.json", "[1, 2]"),
        ("vocab.json", json.dumps({"a": 0})),
        ("merges.txt", "#version: 0.2\nonly-one\n"),
        ("merges.txt", "#version: 0.2\nnot known\n"),
        ("tokenizer_config.json", "{}"),
        ("tokenizer_config.json", '{"model_max_length": null}'),
    ],
)
def test_a_broken_folder_is_named(tokenizer, tmp_path, name, text):
    tokenizer.save(tmp_path)
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError) as error:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "Tokenizer.save" in str(error.value)


def test_all_of_unicode_is_read(tokenizer):
    """No character makes the tokenizer fail, save the halves of one."""
    wide = Tokenizer(tokenizer.vocab, tokenizer.merges, 64)
    for start in range(0, sys.maxunicode, 64 * 97):
        text = "".join(chr(n) for n in range(start, start + 4) if not 0xD800 <= n < 0xE000)
        try:
            wide([text])
        except TutorError as error:
            assert not text.strip(), error
