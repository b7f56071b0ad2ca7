"""The guidance grid without a browser: what it shows and says, how fast, and what it does with bad input."""

import time

import numpy as np
import pytest
import torch

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.widgets import names
from ldm_tutor.widgets.guidance import HEAD, LARGE, GuidanceGrid, grid_controls, guidance_grid
from ldm_tutor.widgets.live import LiveFigure

SENTENCES, SEEDS, SCALES = ["a cat", "a dog"], [7, 8, 9], [0, 1.5, 4, 8]


def pictures():
    """One grey for each picture: its number."""
    levels = torch.arange(24.0).view(2, 3, 4, 1, 1, 1) / 127.5 - 1
    return levels.expand(2, 3, 4, 3, 64, 64)


NOTES = [[[f"note {sentence}{seed}{scale}" for scale in range(4)] for seed in range(3)] for sentence in range(2)]


@pytest.fixture
def grid():
    return GuidanceGrid(pictures(), SENTENCES, SEEDS, SCALES, NOTES)


def test_each_picture_stands_in_its_place(grid):
    for sentence in range(2):
        drawn = np.asarray(grid.draw(sentence, 1, 2))
        for seed in range(3):
            for scale in range(4):
                left, top = grid.place(seed, scale)
                assert (drawn[top : top + 64, left : left + 64] == 12 * sentence + 4 * seed + scale).all()


def test_the_chosen_one_is_framed_and_large(grid):
    one, other = np.asarray(grid.draw(0, 0, 0)), np.asarray(grid.draw(0, 2, 3))
    assert (one[HEAD : HEAD + LARGE * 64, -LARGE * 64 - 6 : -6] == 0).all()
    assert (other[HEAD : HEAD + LARGE * 64, -LARGE * 64 - 6 : -6] == 11).all()
    for (seed, scale), drawn, another in (((0, 0), one, other), ((2, 3), other, one)):
        left, top = grid.place(seed, scale)
        assert drawn[top - 2, left + 9].tolist() == [0xD5, 0x5E, 0] != another[top - 2, left + 9].tolist()


def test_it_says_what_it_shows(grid):
    assert grid.caption(1, 2, 1) == "a dog, seed 9, scale 1.5: note 121"
    assert GuidanceGrid(pictures(), SENTENCES, SEEDS, SCALES).caption(0, 0, 3) == "a cat, seed 7, scale 8"


def test_the_controls_move_it(grid):
    controls = grid_controls(grid, (0, 1, 2))
    figure = LiveFigure(grid.draw, "a grid", grid.caption, controls)
    seen = {figure.picture.value}
    for name, value in (("sentence", 1), ("seed", 0), ("scale", 3)):
        controls[name].value = value
        assert figure.picture.value not in seen and figure.problem.value == ""
        seen.add(figure.picture.value)
    assert "a dog, seed 7, scale 8: note 103" in figure.caption.value
    assert all(control.description for control in controls.values())


def test_it_answers_at_once(grid):
    figure = LiveFigure(grid.draw, "a grid", grid.caption, grid_controls(grid, (0, 0, 0)))
    times = []
    for k in range(9):
        start = time.process_time()  # other programs may be busy; this one must not be
        figure.controls["scale"].value = (k + 1) % 4
        times.append(time.process_time() - start)
    assert sorted(times)[4] < 0.1


def test_it_shows_itself(monkeypatch):
    shown = []
    monkeypatch.setattr(names, "display", lambda bundle, raw: shown.append(bundle))
    guidance_grid(pictures(), SENTENCES, SEEDS, SCALES, "a grid", NOTES, start=(1, 2, 3))
    assert shown[0]["text/plain"] == "[figure] a grid" and set(shown[1]) == {names.WIDGET_VIEW}


def test_bad_input_is_said():
    for given in (pictures()[:1], pictures()[..., 0], pictures()[:, :, :2]):
        with pytest.raises(ShapeError, match="GuidanceGrid: pictures"):
            GuidanceGrid(given, SENTENCES, SEEDS, SCALES)
    with pytest.raises(ShapeError, match="none of them 0"):
        GuidanceGrid(pictures()[:0], [], SEEDS, SCALES)
    with pytest.raises(ConfigError, match="not numbers"):
        GuidanceGrid(pictures() * float("nan"), SENTENCES, SEEDS, SCALES)
    with pytest.raises(ConfigError, match="seeds.*each one once"):
        GuidanceGrid(pictures(), SENTENCES, [7, 7, 8], SCALES)
    with pytest.raises(ConfigError, match="one text for each picture"):
        GuidanceGrid(pictures(), SENTENCES, SEEDS, SCALES, NOTES[:1])
    for start in ((2, 0, 0), (0, 0), (0, 0, -1), ("a", 0, 0)):
        with pytest.raises(ConfigError, match="guidance_grid: start"):
            guidance_grid(pictures(), SENTENCES, SEEDS, SCALES, "a grid", start=start)
    with pytest.raises(ConfigError, match="alternative text"):
        guidance_grid(pictures(), SENTENCES, SEEDS, SCALES, " ")
