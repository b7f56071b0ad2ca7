"""What the boxes about the full-size model say: counted from the configuration, and as published."""

import pytest

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.build import SOURCES, read_source
from ldm_tutor.lessons.full_size import FIGURES, fill, full_size, in_words, listed, spelled


def test_the_figures_are_the_published_ones():
    told = {name: full_size(name) for name in FIGURES}
    assert told == {
        "unet": "860 million",
        "autoencoder": "84 million",
        "autoencoder exactly": "83,653,863",
        "text": "123 million",
        "all": "1.07 billion",
        "picture": "512 x 512",
        "latents": "64 x 64 x 4",
        "tokens": "77",
        "width": "768",
        "heads": "8",
        "channels": "320",
        "multipliers": "1, 2, 4 and 4",
        "blocks": "two",
        "attention levels": "three",
        "text layers": "12",
        "critic channels": "64",
        "critic layers": "three",
        "layout unet": "246 million",
        "layout encoder": "55 million",
        "layout tokens": "92",
        "layout boxes": "30",
        "layout grid": "90 x 90",
        "hole channels": "nine",
    }


@pytest.mark.parametrize(
    ("number", "words"), [(999, "999"), (12_345, "12,345"), (1_499_999, "1 million"), (999_600_000, "1.00 billion")]
)
def test_counts_in_words(number, words):
    assert in_words(number) == words


def test_lists_and_small_numbers_in_words():
    assert (listed([5]), listed([1, 2]), listed((1, 2, 4))) == ("5", "1 and 2", "1, 2 and 4")
    assert (spelled(0), spelled(2), spelled(12), spelled(13)) == ("no", "two", "twelve", "13")


def test_a_text_is_filled():
    assert fill("A U-Net of {{full unet}} parameters, {{full  heads }} heads, {{terms}}.") == (
        "A U-Net of 860 million parameters, 8 heads, {{terms}}."
    )
    with pytest.raises(ConfigError, match="unknown figure.*giraffe.*autoencoder"):
        fill("{{full giraffe}}")


def test_lessons_take_them_from_here():
    sources = [path for path in SOURCES.glob("*.py") if "{{full " in path.read_text(encoding="utf-8")]
    assert len(sources) >= 3
    for path in sources:
        assert not any("{{full" in cell.source for cell in read_source(path).cells)
