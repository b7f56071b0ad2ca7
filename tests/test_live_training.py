"""Training inside a lesson: the curve, its band, the verdict, and what happens when something goes wrong."""

import math
import re

import matplotlib.pyplot as plt
import pytest

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.lessons import live_training
from ldm_tutor.lessons.bands import make_band
from ldm_tutor.lessons.build import SOURCES
from ldm_tutor.lessons.live_training import (
    Band,
    band_of,
    follow,
    load_band,
    save_band,
    shipped_band,
    smooth,
    steps_for,
)

FALLING = [1 / (1 + 0.1 * k) for k in range(60)]


@pytest.fixture
def shown(monkeypatch):
    figures = []
    monkeypatch.setattr(live_training, "display", lambda forms, raw: figures.append(forms["text/plain"]))
    monkeypatch.setattr(live_training, "show", lambda picture, alt: figures.append(alt))
    yield figures
    plt.close("all")


def test_smoothing_is_the_mean_of_the_last_values():
    assert smooth([1.0, 3.0, 5.0, 7.0], window=2) == [1.0, 2.0, 4.0, 6.0]
    assert smooth([]) == []
    assert smooth(FALLING)[-1] == pytest.approx(sum(FALLING[-20:]) / 20)


def test_a_band_holds_the_runs_it_was_made_of_and_no_worse_one(tmp_path):
    band = band_of([FALLING, [1.2 * loss for loss in FALLING]])
    assert all(low < high for low, high in zip(band.low, band.high, strict=True))
    assert band.holds(FALLING) and band.holds([0.5 * loss for loss in FALLING])
    assert not band.holds([1.5 * loss for loss in FALLING])
    assert not band.holds([])
    assert band.holds(FALLING[:30]) and not band.holds([1.5 * loss for loss in FALLING[:30]])  # stopped half-way
    save_band(tmp_path / "band.json", band)
    assert load_band(tmp_path / "band.json") == band


@pytest.mark.parametrize("runs", [[], [FALLING], [FALLING, FALLING[:-1]], [[], []]])
def test_a_band_needs_runs_of_equal_length(runs):
    with pytest.raises(ConfigError, match="band_of"):
        band_of(runs)


@pytest.mark.parametrize("text", [None, "", "[]", '{"low": [1]}', '{"low": ["a"], "high": [1], "num_runs": 2}'])
def test_a_file_that_is_no_band_is_named(tmp_path, text):
    path = tmp_path / "band.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"band\.json is no band"):
        load_band(path)


def test_the_learner_chooses_how_long():
    assert [steps_for(mode, quick=10, full=99) for mode in ("quick", "full", "load")] == [10, 99, 0]
    with pytest.raises(ConfigError, match="fast"):
        steps_for("fast", quick=10, full=99)


def test_following_a_training_returns_its_losses_and_shows_one_figure(shown, monkeypatch):
    monkeypatch.setattr(live_training, "REDRAW_SECONDS", 0)
    band = band_of([FALLING, FALLING])
    assert follow(iter(FALLING), 60, "A falling curve.", band=band, marks={"start": 1.0}) == FALLING
    assert shown == [
        "[live curve] While this cell runs, its curve is drawn here.",
        "A falling curve.",
        "ends in the band of 2 earlier runs, below, or a tenth above: True",
    ]


def test_a_generator_without_end_is_left_in_time(shown):
    assert follow(iter(lambda: 1.0, None), 7, "A flat line.") == [1.0] * 7


def test_stopping_the_cell_keeps_what_was_done(shown):
    def stopped():
        yield from FALLING[:5]
        raise KeyboardInterrupt

    assert follow(stopped(), 60, "A short curve.") == FALLING[:5]
    assert "stopped by you after 5 of 60 steps" in shown[1]
    assert shown[2] == "A short curve."


def test_a_loss_that_is_no_number_stops_the_training(shown):
    with pytest.raises(TutorError, match="loss at step 2 is nan"):
        follow(iter([1.0, math.nan, 1.0]), 3, "Nothing.")


def test_nothing_to_train_is_said():
    with pytest.raises(ConfigError, match="load"):
        follow(iter([]), 0, "Nothing.")


def test_bands_are_compared_at_the_step_reached():
    assert Band((0.0,), (1.0,), 2).holds([1.05, 1.05])


SOURCE = """# %% [markdown]
# # A lesson

# %%
from ldm_tutor.lessons.live_training import follow
START = 10.0

# %% tags=["band"]
SEED = 0
losses = follow((START + SEED - k for k in range(5)), 5, alt="A line.")

# %%
raise RuntimeError("never run")
"""


def test_a_band_is_made_from_the_lesson_itself(tmp_path):
    source = tmp_path / "03_clip.py"
    source.write_text(SOURCE)
    band = make_band(source, seeds=(1, 2))
    assert (band.low[0], band.high[0], band.num_runs) == (11.0, 12.0, 2)
    assert len(band.low) == 5
    assert live_training.follow is follow


@pytest.mark.parametrize(("old", "new"), [('tags=["band"]', ""), ("SEED = 0", "SEED = START")])
def test_a_lesson_without_a_band_cell_is_named(tmp_path, old, new):
    source = tmp_path / "03_clip.py"
    source.write_text(SOURCE.replace(old, new))
    with pytest.raises(ConfigError, match=r"03_clip\.py"):
        make_band(source)


def test_every_lesson_that_follows_a_training_has_its_band():
    asked = [
        match for path in SOURCES.glob("*.py") for match in re.findall(r'shipped_band\("(\w+)"\)', path.read_text())
    ]
    assert asked
    assert all(len(shipped_band(lesson).low) >= 100 for lesson in asked)
