"""Cost cards: the reference time always, this machine's once `doctor` has measured it; a broken file is no error."""

import json

import pytest

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import cost
from ldm_tutor.lessons.progress import VARIABLE
from ldm_tutor.training.speed import REFERENCE, Speed


@pytest.fixture
def cards(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine" / "progress.json"))
    shown = []
    monkeypatch.setattr(cost, "display", lambda bundle, raw: shown.append(bundle))
    return shown


def test_a_card_without_a_measurement_says_how_to_get_one(cards):
    cost.cost_card("240 steps of CLIP", 25)
    assert cards[0]["text/plain"] == "[cost] 240 steps of CLIP: about 25 s on two CPU cores"
    assert "ldm-tutor doctor" in cards[0]["text/html"]


def test_a_machine_of_half_the_speed_takes_twice_as_long(cards):
    half = Speed(trained=REFERENCE.trained / 2, drawn=REFERENCE.drawn * 2)
    assert cost.remember_speed(half)
    assert cost.remembered_speed() == half
    cost.cost_card("240 steps of CLIP", 25)
    assert "On your machine: about 50 s" in cards[0]["text/html"]
    assert "50" not in cards[0]["text/plain"]  # what CI compares is the same everywhere


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"trained": 0, "drawn": 1}', '{"trained": "a"}', '{"x": 1}'])
def test_a_broken_file_is_no_measurement(cards, text):
    cost.speed_path().parent.mkdir(parents=True)
    cost.speed_path().write_text(text)
    assert cost.remembered_speed() is None


def test_nothing_is_kept_where_the_learner_wants_nothing_kept(monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    assert cost.speed_path() is None
    assert not cost.remember_speed(REFERENCE)
    assert cost.remembered_speed() is None


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "progress.json"))
    assert not cost.remember_speed(REFERENCE)


def test_a_file_that_cannot_be_put_in_its_place_is_no_error(monkeypatch):
    def refuse(*paths):
        raise PermissionError("locked")

    monkeypatch.setattr("os.replace", refuse)
    assert not cost.remember_speed(REFERENCE)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_seconds_must_be_seconds(cards, seconds):
    with pytest.raises(ConfigError, match="cost_card"):
        cost.cost_card("nothing", seconds)


def test_long_times_are_minutes_and_hours(cards):
    cost.cost_card("all", 5400)
    cost.cost_card("more", 600)
    assert [card["text/plain"].split("about ")[1].split(" on")[0] for card in cards] == ["1.5 h", "10 min"]


def test_the_file_is_plain_json(cards):
    cost.remember_speed(REFERENCE)
    assert json.loads(cost.speed_path().read_text()) == {"trained": REFERENCE.trained, "drawn": REFERENCE.drawn}
