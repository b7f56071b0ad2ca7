"""Words and symbols: one meaning each, one name in the code each, and every lesson's tables made from them."""

import re

import pytest

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.build import SOURCES, read_source
from ldm_tutor.lessons.course import LESSONS
from ldm_tutor.lessons.terms import GLOSSARY, NOTATION, expand, notation, terms

SLUGS = [lesson.slug for lesson in LESSONS]


def test_every_word_is_explained_once_in_a_lesson_of_the_course():
    names = [each.name.lower() for each in GLOSSARY]
    assert len(names) == len(set(names)) >= 20
    assert {each.lesson for each in GLOSSARY} <= set(SLUGS)
    order = [SLUGS.index(each.lesson) for each in GLOSSARY]
    assert order == sorted(order)


def test_a_meaning_is_half_a_sentence():
    assert not [each.name for each in GLOSSARY if each.meaning.endswith(".") or len(each.meaning.split()) < 3]


def test_every_built_lesson_takes_its_words_and_symbols_from_here():
    sources = sorted(SOURCES.glob("[0-9][0-9]_*.py"))
    assert len(sources) >= 3
    for source in sources:
        text = source.read_text(encoding="utf-8")
        assert text.count("# {{terms}}\n") == 1, source.name
        assert "| symbol |" not in text, f"{source.name}: write {{{{notation ...}}}} instead of a table"
        prose = "\n".join(cell.source for cell in read_source(source).cells if cell.cell_type == "markdown")
        assert "{{" not in re.sub(r"\$.*?\$", "", prose, flags=re.DOTALL), source.name


def test_places_are_filled():
    text = expand("Before.\n\n{{notation x0 t}}\n\nBetween.\n\n{{terms}}\n\n$a_{{b}}$", "clip")
    assert "| $x_0$ | `x0` |" in text and "| $t$ | `t` |" in text
    assert "- **Token**: a piece of text with a number." in text
    assert text.startswith("Before.") and text.endswith("$a_{{b}}$")
    assert "`q`, `k`, `v`" in notation("qkv")


@pytest.mark.parametrize("place", ["{{}}", "{{term}}", "{{terms clip}}", "{{notation}}", "{{notation x0 nothing}}"])
def test_a_wrong_place_is_named(place):
    with pytest.raises(ConfigError, match="unknown"):
        expand(place, "clip")


def test_a_lesson_needs_words():
    with pytest.raises(ConfigError, match="GLOSSARY"):
        terms("no_such_lesson")


def test_every_symbol_is_whole():
    assert all(each.tex and each.code and each.meaning for each in NOTATION.values())
