"""The edit studio without a browser: what it draws, remembers and says, how fast, and what it does with bad input."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_pipeline

from ldm_tutor.attention_maps.plan import Change, Injection
from ldm_tutor.errors import ConfigError
from ldm_tutor.widgets import edit_studio as module
from ldm_tutor.widgets import names
from ldm_tutor.widgets.edit_studio import GAP, NUM_KEPT, EditStudio, changed_region, edit_studio, outlined

SOURCE, TARGET = "a red cat at night", "a red dog at night"


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture
def studio(pipe):
    made = EditStudio(pipe, SOURCE, TARGET, 3)
    made.num_steps.value = 3
    return made


def pixels(studio):
    return np.asarray(Image.open(io.BytesIO(bytes(studio.picture.value))))


def test_both_pictures_are_those_of_the_pipeline(pipe, studio):
    studio.blend.value = studio.outline.value = False
    assert studio.draw_now() and studio.progress.value == 3
    change = Change(source=SOURCE, target=TARGET, seed=3, injection=Injection(threshold=None))
    before, after = studio.drawn[studio.shown]
    assert torch.allclose(torch.cat([before, after]), pipe.edit(change, num_steps=3), atol=1e-4)
    shown = pixels(studio)
    assert shown.shape == (320, 640 + GAP, 3)
    assert np.array_equal(shown[:, :320], outlined(before, None)) and np.array_equal(
        shown[:, -320:], outlined(after, None)
    )


def test_every_setting_counts(studio):
    seen = []
    moves = [
        (studio.seed, 4), (studio.cross, 0.0), (studio.self_, 0.0), (studio.blend, False), (studio.num_steps, 4),
        (studio.target, "a red car at night"), (studio.source, "a blue cat at night"),
    ]  # fmt: skip
    assert studio.draw_now()
    seen.append(bytes(studio.picture.value))
    for control, value in moves:
        control.value = value
        assert "Press Draw" in studio.status.value and studio.draw_now()
        seen.append(bytes(studio.picture.value))
    studio.weights.children[1].value = 3.0
    assert studio.draw_now() and "red times 3" in studio.caption.value
    assert len(studio.drawn) == len(moves) + 2  # a blend of random maps may cover all, and then changes no pixel
    assert len({*seen, bytes(studio.picture.value)}) > len(moves)


def test_looking_costs_nothing_and_is_fast(studio, monkeypatch):
    assert studio.draw_now()
    before = torch.zeros(1, 3, 64, 64)
    after = before.clone()
    after[..., 20:40, 20:40] = 0.4  # a fifth of the range
    studio.drawn[studio.shown] = before, after
    studio.least.value = 0.02
    with_outline = bytes(studio.picture.value)
    monkeypatch.setattr(studio.pipe.unet, "forward", None)  # nothing is computed from here on
    spent = []
    for value in (0.3, 0.02, 0.3, 0.02):
        start = time.perf_counter()
        studio.least.value = value
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.1 and bytes(studio.picture.value) == with_outline
    studio.outline.value = False
    assert bytes(studio.picture.value) != with_outline and "of the pixels changed" in studio.caption.value


def test_what_was_drawn_is_remembered_within_bounds(studio):
    assert studio.draw_now()
    first = bytes(studio.picture.value)
    studio.seed.value = 9
    assert studio.draw_now() and bytes(studio.picture.value) != first
    studio.seed.value = 3
    assert bytes(studio.picture.value) == first and "from memory" in studio.status.value
    pair = studio.drawn[studio.shown]
    for seed in range(100, 100 + NUM_KEPT):
        studio.seed.value = seed
        studio.drawn[studio.setting()] = pair
    studio.seed.value = 999
    assert studio.draw_now() and len(studio.drawn) == NUM_KEPT


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_edit_that_ends_half_way_leaves_what_was_there(studio, monkeypatch, error):
    assert studio.draw_now()
    before, steps = (studio.picture.value, studio.caption.value, list(studio.names.alts)), type(studio.pipe).edit_steps

    def failing(self, *args, **kwargs):
        for state in steps(self, *args, **kwargs):
            yield state
            if state.step == 1:
                raise error

    monkeypatch.setattr(type(studio.pipe), "edit_steps", failing)
    studio.seed.value = 99
    assert not studio.draw_now() and not studio.draw.disabled
    assert ("out of memory" if str(error) else "Stopped") in studio.status.value
    assert (studio.picture.value, studio.caption.value, studio.names.alts) == before


def test_a_text_that_is_too_long_gets_no_sliders(studio):
    studio.target.value = " ".join(f"word{k}" for k in range(300))
    assert studio.weights.children == ()
    assert not studio.draw_now()


def test_the_words_of_the_target_are_sliders(studio):
    assert [each.description for each in studio.weights.children] == ["a", "red", "dog", "at", "night"]
    studio.weights.children[1].value = 2.0
    old = studio.weights.children[1]
    studio.target.value = "a small red dog"
    assert [(each.description, each.value) for each in studio.weights.children] == [
        ("a", 1.0), ("small", 1.0), ("red", 2.0), ("dog", 1.0),
    ]  # fmt: skip
    assert old.comm is None
    assert studio.draw_now()


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (SOURCE, SOURCE, "changes nothing"),
        (SOURCE, "", "cannot be drawn"),
        ("", TARGET, "cannot be drawn"),
        (SOURCE, "two dogs", "cannot be aligned"),
        (SOURCE, "<b>cat</b> " * 40, "cannot be drawn"),
        (SOURCE, "\ud800 cat", "cannot be drawn"),
    ],
)
def test_bad_sentences_are_said_kindly(studio, source, target, words):
    assert studio.draw_now()
    before = bytes(studio.picture.value)
    studio.source.value, studio.target.value = source, target
    assert not studio.draw_now() and not studio.draw.disabled
    assert words in studio.status.value
    assert 'role="alert"' in studio.status.value and "<b>cat" not in studio.status.value
    assert bytes(studio.picture.value) == before


def test_strange_words_are_named(studio):
    studio.target.value = "a red zebra at night"
    assert studio.draw_now() and "zebra" in studio.status.value


def test_names_for_everyone(studio):
    assert studio.draw_now()
    controls = [studio.source, studio.target, studio.seed, studio.num_steps, studio.cross, studio.self_, studio.blend]
    assert all(each.description for each in (*controls, studio.outline, studio.least, studio.draw))
    assert 'aria-live="polite"' in studio.caption.value and studio.names.alts[0].startswith("Left: a red cat")


def test_it_shows_itself_with_words_and_a_picture(pipe, monkeypatch):
    shown = []
    monkeypatch.setattr(names, "display", lambda bundle, raw: shown.append(bundle))
    monkeypatch.setattr(module.EditStudio, "_run", lambda self, setting: (torch.zeros(1, 3, 64, 64),) * 2)
    edit_studio(pipe, SOURCE, TARGET, 3)
    assert shown[0]["text/plain"].startswith("[figure] Edit studio: 'a red cat at night'") and len(shown) == 2
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="edit_studio"):
        edit_studio(pipe, SOURCE, " ", 3)


def test_the_region_and_its_outline():
    before = torch.zeros(1, 3, 64, 64)
    after = before.clone()
    after[..., 20:40, 20:40] = 1.0
    region = changed_region(before, after, 0.1)
    assert region[21:39, 21:39].all() and not region[:18].any() and not region[:, 43:].any()
    made = outlined(before, region)
    assert int((made == 255).all(axis=2).sum()) > 100 and int((made == 0).all(axis=2).sum()) > 100
    assert not changed_region(before, before, 0.02).any() and (outlined(before, region & False) == made[0, 0]).all()


def test_two_hundred_movements_leave_nothing_behind(studio):
    from ipywidgets.widgets.widget import _instances

    assert studio.draw_now()
    before = len(_instances)
    for k in range(200):
        studio.least.value = 0.02 + 0.02 * (k % 20)
        if k % 10 == 0:
            studio.target.value = ("a red dog at night", "a red car at night")[k // 10 % 2]
    after = len(_instances)
    assert after - before < 20 and len(studio.drawn) <= 2
