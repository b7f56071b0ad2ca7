"""The probe of nouns, on vectors made of kind and colour and on others; and how far *left* is from *right*."""

import pytest
import torch
from torch.nn import functional as F

from ldm_tutor.config import ClipConfig, ImageEncoderConfig, TextEncoderConfig
from ldm_tutor.data.scenes.world import COLORS, HELD_OUT, KINDS
from ldm_tutor.errors import ConfigError
from ldm_tutor.metrics.probing import named_pairs, noun_vectors, read_nouns, side_difference
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.weights.shipped import resolve

SEEN = sorted({(kind, color) for kind in KINDS for color in COLORS} - HELD_OUT)
UNSEEN = sorted(HELD_OUT)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(resolve() / "tokenizer")


def numbers(pairs, times=20):
    return torch.tensor([(KINDS.index(kind), COLORS.index(color)) for kind, color in pairs]).repeat(times, 1)


def noisy(vectors):
    return vectors + 0.05 * torch.randn(vectors.shape)


def sums(wanted):
    """Vectors that are one part for the kind and one for the colour."""
    return noisy(torch.cat([F.one_hot(wanted[:, 0], len(KINDS)), F.one_hot(wanted[:, 1], len(COLORS))], dim=1).float())


def test_a_sum_of_kind_and_colour_is_read_right_in_pairs_never_seen():
    known, asked = numbers(SEEN), numbers(UNSEEN)
    assert read_nouns((sums(known), known), (sums(asked), asked)).value == 1.0


def test_a_vector_for_each_pair_by_itself_is_read_right_only_where_it_was_seen():
    known, asked = numbers(SEEN), numbers(UNSEEN)
    table = torch.randn(len(KINDS), len(COLORS), 128)
    vectors, others = (noisy(table[wanted[:, 0], wanted[:, 1]]) for wanted in (known, asked))
    assert read_nouns((vectors, known), (vectors, known)).value > 0.95
    assert read_nouns((vectors, known), (others, asked)).value < 0.2


@pytest.mark.parametrize(
    ("caption", "pairs"),
    [
        ("a green dog in the snow", [("dog", "green")]),
        ("two tiny red bicycles by night", [("bicycle", "red")]),
        ("a huge pink cat behind a blue ball", [("cat", "pink"), ("ball", "blue")]),
        ("a green picture of a dog", []),
    ],
)
def test_pairs_are_found_where_the_colour_stands_before_its_noun(tokenizer, caption, pairs):
    found = named_pairs(tokenizer, caption)
    assert [pair for pair, _ in found] == pairs
    (row,) = tokenizer([caption])
    for (kind, _), column in found:
        assert tokenizer.decode(row[1 : column + 1].tolist()).split()[-1].removesuffix("s") == kind  # its whole word


def test_the_vectors_are_those_of_the_nouns_that_were_asked_for(tokenizer):
    clip = Clip(_config(tokenizer), end_id=tokenizer.end_id).eval()
    captions = ["a red cat and a green dog", "a green dog at night", "a blue car"]
    vectors, found = noun_vectors(clip, tokenizer, captions, {("dog", "green"), ("car", "blue")})
    assert found.tolist() == [[1, 3], [1, 3], [2, 4]]
    context = clip.text(tokenizer(captions[1:2]))[0]
    column = named_pairs(tokenizer, captions[1])[0][1]
    torch.testing.assert_close(vectors[1], context[column].detach())


def test_captions_without_such_a_pair_are_an_error(tokenizer):
    clip = Clip(_config(tokenizer), end_id=tokenizer.end_id)
    with pytest.raises(ConfigError, match="names one of the pairs"):
        noun_vectors(clip, tokenizer, ["a blue car"], {("dog", "green")})


SIDES = ["a red cat to the left of a green dog", "at night there is a blue car to the right of two pink trees"]


def test_sides_are_as_far_apart_as_their_vectors(tokenizer):
    clip = Clip(_config(tokenizer), end_id=tokenizer.end_id).eval()
    tokens = tokenizer([SIDES[0], SIDES[0].replace("left", "right")])
    left, right = clip.text(tokens).detach()
    for found, column in zip(side_difference(clip, tokenizer, SIDES[:1]), (6, 11), strict=True):  # "left", the end
        expected = (left - right)[column].norm() / (left[column].norm() + right[column].norm()) * 2
        assert found.value == pytest.approx(expected.item(), rel=1e-5) and found.num == 1
    swapped = [told.replace("left", "?").replace("right", "left").replace("?", "right") for told in SIDES]
    both = [[each.value for each in side_difference(clip, tokenizer, [*asked, "a cat"])] for asked in (SIDES, swapped)]
    assert both[0] == pytest.approx(both[1]) and min(both[0]) > 0


def test_an_encoder_that_reads_both_sides_alike_has_no_distance(tokenizer):
    clip = Clip(_config(tokenizer), end_id=tokenizer.end_id).eval()
    words = clip.text.token_embedding.weight.data
    words[tokenizer.encode("right")] = words[tokenizer.encode("left")]
    assert [each.value for each in side_difference(clip, tokenizer, SIDES)] == [0, 0]


def test_captions_without_a_side_are_an_error(tokenizer):
    clip = Clip(_config(tokenizer), end_id=tokenizer.end_id)
    with pytest.raises(ConfigError, match="names a side"):
        side_difference(clip, tokenizer, ["a blue car on the left"])


def _config(tokenizer):
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32}
    text = TextEncoderConfig(vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length, **sizes)
    return ClipConfig(text=text, image=ImageEncoderConfig(picture_size=32, patch_size=8, **sizes), embed_dim=12)
