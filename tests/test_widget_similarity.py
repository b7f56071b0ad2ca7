"""The similarity explorer without a browser: what it shows and says, and what it does with bad input."""

import pytest
import torch

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.widgets import names
from ldm_tutor.widgets.live import LiveFigure, make_control
from ldm_tutor.widgets.similarity import SimilarityExplorer, similarity_explorer

SENTENCES = ["a red cat", "a blue dog", "a green tree", "a white ball"]
COSINES = torch.tensor([[0.9, 0.1, -0.3, 0.2], [0.5, 0.4, 0.0, 0.1], [0.1, 0.2, 0.8, 0.3], [0.0, 0.1, 0.2, 0.7]])


@pytest.fixture
def explorer():
    return SimilarityExplorer(torch.zeros(4, 3, 64, 64), SENTENCES, COSINES)


def test_the_best_sentences_come_first_and_the_own_one_is_named(explorer):
    assert explorer.best(1) == [(0, 0.5), (1, pytest.approx(0.4)), (3, pytest.approx(0.1))]
    assert explorer.caption(1).startswith("Picture 1, best sentences: a red cat (0.50); a blue dog (0.40, its own);")


def test_the_cells_of_the_best_sentences_have_a_dot_in_the_row_of_the_picture(explorer):
    matrix = explorer.draw(1).axes[2]
    (dots,) = matrix.lines
    assert matrix.get_title() == "cosines" and dots.get_xydata().tolist() == [[0, 1], [1, 1], [3, 1]]


def test_the_slider_draws_again_and_the_caption_follows(explorer):
    slider = make_control("picture", (0, 3, 0))
    figure = LiveFigure(explorer.draw, "a matrix", explorer.caption, {"picture": slider})
    before, said = figure.picture.value, figure.caption.value
    slider.value = 2
    assert figure.picture.value != before and figure.caption.value != said and figure.problem.value == ""
    assert "a green tree (0.80, its own)" in figure.caption.value


def test_one_pair_is_enough():
    explorer = SimilarityExplorer(torch.zeros(1, 3, 64, 64), ["a cat"], torch.ones(1, 1))
    assert explorer.best(0) == [(0, 1.0)]


def test_it_shows_itself_with_words_and_a_picture(monkeypatch):
    shown = []
    monkeypatch.setattr(names, "display", lambda bundle, raw: shown.append(bundle))
    similarity_explorer(torch.zeros(4, 3, 64, 64), SENTENCES, COSINES, alt="a matrix", start=3)
    still, view = shown
    assert still["text/plain"] == "[figure] a matrix" and 'alt="a matrix"' in still["text/html"]
    assert set(view) == {names.WIDGET_VIEW}


@pytest.mark.parametrize("start", [-1, 4, "0", 1.5])
def test_a_start_outside_is_said(start):
    with pytest.raises(ConfigError, match="0 to 3"):
        similarity_explorer(torch.zeros(4, 3, 64, 64), SENTENCES, COSINES, alt="a matrix", start=start)


def test_bad_input_is_said():
    pictures = torch.zeros(4, 3, 64, 64)
    for given in ((pictures[:3], SENTENCES, COSINES), (pictures, SENTENCES[:2], COSINES), (pictures, [], COSINES)):
        with pytest.raises(ShapeError, match="n x n"):
            SimilarityExplorer(*given)
    with pytest.raises(ShapeError):
        SimilarityExplorer(pictures, SENTENCES, COSINES[:, :3])
    with pytest.raises(ConfigError, match="not numbers"):
        SimilarityExplorer(pictures, SENTENCES, COSINES * float("nan"))
    with pytest.raises(ConfigError, match="alternative text"):
        similarity_explorer(pictures, SENTENCES, COSINES, alt=" ")
