"""Draw boxes without a browser: what it draws, says and keeps, and what it does with boxes that cannot be."""

import html
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_steered import make_steered

from ldm_tutor.data.boxes import SCENES_BOXES, Box
from ldm_tutor.errors import ConfigError
from ldm_tutor.plots.figures import enlarge, to_uint8
from ldm_tutor.widgets import names
from ldm_tutor.widgets.boxes import LAYOUT, MARKS, BoxStudio, draw_boxes, told_boxes, with_boxes
from ldm_tutor.widgets.drawing import ENLARGEMENT, GAP, WAIT

CAT, TREE = Box("cat", 0.1, 0.2, 0.5, 0.8), Box("tree", 0.55, 0.3, 0.9, 0.9)


@pytest.fixture(scope="module")
def steered():
    return make_steered("layout")


@pytest.fixture
def studio(steered):
    made = BoxStudio(steered, [CAT, TREE], "", 3)
    made.num_steps.value = 3
    return made


def shown(studio):
    return np.asarray(Image.open(io.BytesIO(bytes(studio.picture.value))).convert("RGB"))


def said(studio):
    return html.unescape(studio.status.value)


def as_dict(box):
    return {"kind": box.kind, "x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1}


def test_the_picture_is_the_one_of_the_boxes(steered, studio):
    assert studio.draw_now() and studio.progress.value == studio.progress.max == 3
    wanted = steered.from_boxes([[CAT, TREE]], [3], num_steps=3)
    pixels = enlarge(to_uint8(wanted)[0], ENLARGEMENT)
    assert np.array_equal(shown(studio), with_boxes(pixels, [CAT, TREE]))
    studio.outline.value = False
    assert np.array_equal(shown(studio), pixels)
    assert "Drawn in" in said(studio) and "cat at 10 to 50% across, 20 to 80% down" in studio.caption.value


def test_boxes_come_as_a_message_before_the_state_that_the_browser_holds_back(studio):
    assert studio.draw_now()
    message = {"method": "custom", "content": {"now": [as_dict(TREE)]}}
    studio.sheet._handle_msg({"content": {"data": message}, "buffers": []})
    assert studio.layout() == [TREE] and "still the one of before" in said(studio)
    assert studio.draw_now()
    studio.sheet.set_state({"boxes": [as_dict(TREE)]})
    assert studio.layout() == [TREE] and "Drawn in" in said(studio), "the state brings nothing new"


def test_boxes_from_the_browser_count_and_wait_for_the_button(studio):
    assert studio.draw_now()
    first = shown(studio)
    studio.sheet.set_state({"boxes": [as_dict(TREE)]})
    assert studio.layout() == [TREE]
    assert np.array_equal(shown(studio), first) and "Press Draw" in said(studio)
    assert studio.draw_now() and not np.array_equal(shown(studio), first)


def test_every_setting_counts(steered, studio):
    pictures = []
    for control, value in (
        (studio.seed, 3), (studio.seed, 4), (studio.num_steps, 4), (studio.guidance, 6.0),
        (studio.sentence, "a red cat at night"),
    ):  # fmt: skip
        control.value = value
        assert studio.draw_now()
        pictures.append(studio.drawn[0])
    assert len({picture.numpy().tobytes() for picture in pictures}) == 5
    wanted = steered.from_boxes([[CAT, TREE]], [4], prompts=["a red cat at night"], num_steps=4, guidance=6.0)
    assert torch.allclose(pictures[-1], wanted, atol=1e-4) and "'a red cat at night', seed 4" in studio.drawn[2]
    studio.sentence.value = "a red zebra"
    assert studio.draw_now() and "zebra" in said(studio)


def test_it_shows_that_it_works_and_grows(studio, monkeypatch):
    seen, progress = [], []
    monkeypatch.setattr(studio, "_say", lambda *lines, alert=False: seen.append((lines[0], alert)))
    studio.picture.observe(lambda change: progress.append(studio.progress.description), "value")
    assert studio.draw_now()
    assert seen[0] == (WAIT, False) and progress[:2] == ["Step 1 of 3", "Step 2 of 3"]


def test_no_box_is_said_in_the_widget(studio):
    assert studio.draw_now()
    before = shown(studio), list(studio.names.alts)
    studio.sheet.set_state({"boxes": []})
    assert not studio.draw_now() and not studio.draw.disabled
    assert "There is no box yet" in said(studio) and 'role="alert"' in said(studio)
    assert np.array_equal(shown(studio), before[0]) and studio.names.alts == before[1]


BAD = {
    "inverted": ([as_dict(CAT) | {"x0": 0.9}], "x0 less than x1"),
    "empty": ([as_dict(CAT) | {"x0": 0.5}], "x0 less than x1"),
    "outside": ([as_dict(CAT) | {"x1": 1.5}], "0 to 1"),
    "not a number": ([as_dict(CAT) | {"x1": None}], "0 to 1"),
    "text": ([as_dict(CAT) | {"x1": "<b>"}], "0 to 1"),
    "too small": ([as_dict(CAT) | {"x1": 0.101}], "too small"),
    "too many": ([as_dict(CAT)] * 4, "too many boxes"),
    "unknown kind": ([as_dict(CAT) | {"kind": "zebra"}], "zebra"),
    "no kind": ([as_dict(CAT) | {"kind": ""}], "kind"),
    "half a box": ([{"kind": "cat"}], "a box"),
    "one field more": ([as_dict(CAT) | {"color": "red"}], "a box"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_boxes_are_said_kindly_and_nothing_is_lost(studio, name):
    boxes, words = BAD[name]
    assert studio.draw_now()
    before = shown(studio)
    studio.sheet.set_state({"boxes": boxes})
    assert not studio.draw_now() and not studio.draw.disabled
    assert words in said(studio) and said(studio).startswith('<p role="alert"'), said(studio)
    assert "<b>" not in studio.status.value
    assert studio.sheet.boxes == boxes and np.array_equal(shown(studio), before)


@pytest.mark.parametrize("error", [RuntimeError("no room"), MemoryError(), ZeroDivisionError("<i>0</i>")])
def test_a_failure_half_way_loses_nothing(studio, monkeypatch, error):
    assert studio.draw_now()
    before, drawn = (shown(studio), list(studio.names.alts), studio.caption.value), studio.drawn
    steps = studio.steered.steps

    def failing(self, *args, **kwargs):
        for state in steps(*args, **kwargs):
            yield state
            if state.step == 1:
                raise error

    monkeypatch.setattr(type(studio.steered), "steps", failing)
    studio.seed.value = 99
    assert not studio.draw_now() and type(error).__name__ in said(studio) and "<i>" not in studio.status.value
    assert np.array_equal(shown(studio), before[0])
    assert (studio.names.alts, studio.caption.value) == before[1:] and studio.drawn is drawn
    assert studio.layout() == [CAT, TREE] and not studio.draw.disabled
    monkeypatch.undo()
    assert studio.draw_now()


def test_a_sentence_that_cannot_be_read_is_said(studio):
    studio.sentence.value = "<b>cat</b> " * 40
    assert not studio.draw_now() and "tokens" in said(studio) and "<b>cat" not in studio.status.value


def test_it_shows_itself_with_words_and_a_picture(steered, monkeypatch):
    bundles = []
    monkeypatch.setattr(names, "display", lambda bundle, raw: bundles.append(bundle))
    draw_boxes(steered, [CAT], "a cat", 3)
    assert len(bundles) == 2 and bundles[0]["text/plain"].startswith("[figure] Draw boxes. On the left")
    assert "cat at 10 to 50% across" in bundles[0]["text/plain"] and "object at 0x" not in str(bundles)
    with pytest.raises(ConfigError, match="draw_boxes.*no box"):
        draw_boxes(steered, [])


def test_the_still_form_has_sheet_and_picture(studio):
    for drawn in (False, True):
        assert not drawn or studio.draw_now()
        still = np.asarray(Image.open(io.BytesIO(studio.still())))
        assert still.shape == (320, 640 + GAP, 3)
        blue = tuple(int(MARKS[0][k : k + 2], 16) for k in (1, 3, 5))
        for half in (still[:, :320], still[:, -320:]):
            assert ((half == blue).all(axis=2)).sum() > 200
    assert np.array_equal(still[:, -320:], shown(studio))


def test_names_for_everyone(studio):
    controls = studio.sentence, studio.seed, studio.num_steps, studio.guidance, studio.draw, studio.outline
    assert all(each.description for each in controls) and studio.names.alts == ["An empty square: no picture yet."]
    assert repr(studio) == "BoxStudio(2 boxes, seed=3)" and repr(studio.sheet) == "BoxSheet(2 boxes)"


def test_outlines_lie_where_the_boxes_are():
    made = with_boxes(np.zeros((320, 320, 3), np.uint8), [CAT, TREE, Box("ball", 0.0, 0.0, 1.0, 1.0)])
    for box, mark in zip((CAT, TREE), MARKS, strict=False):
        color = [int(mark[k : k + 2], 16) for k in (1, 3, 5)]
        x, y = round(box.x1 * 319) - 2, round((box.y0 + box.y1) / 2 * 319)
        assert made[y, x].tolist() == color and not made[y, x - 20].any()
    assert made.any(axis=2)[[0, -1]].all() and made.any(axis=2)[:, [0, -1]].all()
    assert told_boxes([]) == "" and len(set(MARKS)) == SCENES_BOXES.max_boxes
    assert len(LAYOUT) <= SCENES_BOXES.max_boxes
