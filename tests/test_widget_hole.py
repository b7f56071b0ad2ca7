"""Paint a hole without a browser: what it fills, keeps and says, and what it does with files that are no pictures."""

import html
import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_steered import make_steered

from ldm_tutor.data.picture_files import open_picture
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.plots.figures import enlarge, to_uint8
from ldm_tutor.widgets import names
from ldm_tutor.widgets.drawing import ENLARGEMENT, GAP, WAIT
from ldm_tutor.widgets.edit_studio import outlined
from ldm_tutor.widgets.hole import HOLE, HoleStudio, paint_hole


@pytest.fixture(scope="module")
def steered():
    return make_steered("inpainting")


@pytest.fixture
def picture():
    pixels = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    return pixels / 127.5 - 1


@pytest.fixture
def mask():
    made = torch.zeros(1, 1, 64, 64)
    made[..., 10:30, 20:44] = 1
    return made


@pytest.fixture
def studio(steered, picture, mask):
    made = HoleStudio(steered, picture, mask, "", 3)
    made.num_steps.value = 3
    return made


def shown(studio):
    return np.asarray(Image.open(io.BytesIO(bytes(studio.picture.value))).convert("RGB"))


def laid(studio):
    return np.asarray(Image.open(io.BytesIO(bytes(studio.sheet.image))).convert("RGB"))


def said(studio):
    return html.unescape(studio.status.value)


def paint(studio, values):
    """What the browser does at the end of a stroke."""
    studio.sheet.set_state({"mask": memoryview(np.ascontiguousarray(values, np.uint8).tobytes())})


def png(color, size=(30, 20)):
    target = io.BytesIO()
    Image.new("RGB", size, color).save(target, "PNG")
    return target.getvalue()


def test_the_hole_is_filled_and_the_rest_is_the_same_to_the_bit(steered, studio, picture, mask):
    assert studio.draw_now() and studio.progress.value == studio.progress.max == 3
    filled = studio.drawn[0]
    assert torch.allclose(filled, steered.inpaint(picture, mask, [3], num_steps=3), atol=1e-4)
    before, after, hole = to_uint8(picture)[0], to_uint8(filled)[0], mask[0, 0].numpy() > 0
    assert np.array_equal(before[~hole], after[~hole]) and not np.array_equal(before[hole], after[hole])
    assert np.array_equal(shown(studio), outlined(filled, mask[0, 0] > 0))
    studio.outline.value = False
    assert np.array_equal(shown(studio), enlarge(after, ENLARGEMENT))
    assert "12% of the pixels" in studio.caption.value and "Drawn in" in said(studio)


def test_a_stroke_in_the_browser_counts_and_waits_for_the_button(studio):
    assert studio.draw_now()
    first = shown(studio)
    values = np.zeros((64, 64))
    values[40:, :8] = 1
    paint(studio, values)
    assert np.array_equal(studio.hole()[0, 0].numpy(), values)
    assert np.array_equal(shown(studio), first) and "Press Fill" in said(studio)
    assert studio.draw_now() and not np.array_equal(shown(studio), first)


def test_every_setting_counts(studio):
    pictures = []
    for control, value in (
        (studio.seed, 3), (studio.seed, 4), (studio.num_steps, 4), (studio.guidance, 6.0), (studio.sentence, "a cat"),
    ):  # fmt: skip
        control.value = value
        assert studio.draw_now()
        pictures.append(studio.drawn[0].numpy().tobytes())
    # without a sentence, guidance goes from the empty sentence to the empty sentence: nowhere
    assert len(set(pictures)) == 4 and pictures[2] == pictures[3]


def test_previews_are_composed_too(studio, picture, mask, monkeypatch):
    seen, said_lines = [], []
    monkeypatch.setattr(studio, "_say", lambda *lines, alert=False: said_lines.append(lines[0]))
    studio.picture.observe(lambda change: seen.append(shown(studio)), "value")
    assert studio.draw_now() and said_lines[0] == WAIT and len(seen) == 3
    outside = np.kron(mask[0, 0].numpy() == 0, np.ones((5, 5))) > 0
    for each in seen[:2]:
        assert np.array_equal(each[outside], enlarge(to_uint8(picture)[0], 5)[outside])


def test_an_empty_hole_is_said_in_the_widget(studio):
    assert studio.draw_now()
    before = shown(studio)
    paint(studio, np.zeros((64, 64)))
    assert not studio.draw_now() and not studio.draw.disabled
    assert "There is no hole yet" in said(studio) and 'role="alert"' in said(studio)
    assert np.array_equal(shown(studio), before)


def test_a_hole_as_large_as_the_picture_draws_a_new_one(studio, picture):
    paint(studio, np.ones((64, 64)))
    assert studio.draw_now() and "100% of the pixels" in studio.caption.value
    assert (to_uint8(studio.drawn[0]) != to_uint8(picture)).mean() > 0.9


@pytest.mark.parametrize("data", [b"", b"\1" * 100, b"\1" * 5000], ids=["nothing", "short", "long"])
def test_a_mask_of_another_size_is_said(studio, data):
    assert studio.draw_now()
    before = shown(studio)
    studio.sheet.set_state({"mask": memoryview(data)})
    assert not studio.draw_now() and "4096 pixels" in said(studio) and np.array_equal(shown(studio), before)


def test_the_learner_s_own_picture(studio):
    assert studio.upload({"name": "me.png"}, [memoryview(png("navy"))])
    assert laid(studio).shape == (64, 64, 3) and (laid(studio) == (0, 0, 128)).all()
    assert not studio.hole().any() and "me.png" in said(studio)
    values = np.zeros((64, 64))
    values[:10] = 1
    paint(studio, values)
    assert studio.draw_now()
    assert (to_uint8(studio.drawn[0])[0, 10:] == (0, 0, 128)).all()


def test_an_upload_comes_as_a_message_of_the_sheet(studio):
    message = {"method": "custom", "content": {"name": "me.png"}}
    studio.sheet._handle_msg({"content": {"data": message}, "buffers": [memoryview(png("navy"))]})
    assert (laid(studio) == (0, 0, 128)).all()


def test_a_stroke_comes_as_a_message_before_the_state_that_the_browser_holds_back(studio):
    assert studio.draw_now()
    values = np.zeros(64 * 64, np.uint8)
    values[:64] = 1
    message = {"method": "custom", "content": {"now": None}}
    studio.sheet._handle_msg({"content": {"data": message}, "buffers": [memoryview(values.tobytes())]})
    assert studio.hole().sum() == 64 and "still the one of before" in said(studio)
    assert studio.draw_now()
    studio.sheet.set_state({"mask": memoryview(values.tobytes())})
    assert studio.hole().sum() == 64 and "Drawn in" in said(studio), "the state brings nothing new"


@pytest.mark.parametrize(
    ("content", "buffers"),
    [
        ({"name": "<b>a</b>.png"}, [b"text that is called png"]),
        ({"name": "<b>a</b>.png"}, [png("navy")[:60]]),
        ({"name": "<b>a</b>.png"}, [b""]),
        ({"name": "<b>a</b>.png"}, []),
        ("senseless", [b"x"]),
        ({}, None),
    ],
)
def test_a_file_that_is_no_picture_changes_nothing(studio, content, buffers):
    assert studio.draw_now()
    before = shown(studio), laid(studio), bytes(studio.sheet.mask)
    assert not studio.upload(content, buffers)
    assert 'role="alert"' in studio.status.value and "<b>" not in studio.status.value
    assert np.array_equal(shown(studio), before[0]) and np.array_equal(laid(studio), before[1])
    assert bytes(studio.sheet.mask) == before[2] and studio.draw_now()


def test_another_scene_and_going_on_with_the_result(studio, picture):
    assert studio.take.disabled and studio.draw_now() and not studio.take.disabled
    filled = studio.drawn[0]
    studio.take.click()
    assert np.array_equal(laid(studio), to_uint8(filled)[0]) and not studio.hole().any()
    studio.scene.click()
    first = laid(studio)
    assert not np.array_equal(first, to_uint8(filled)[0])
    studio.scene.click()
    assert not np.array_equal(laid(studio), first)
    assert studio.drawn[0] is filled, "the picture beside it stays until Fill is pressed"


@pytest.mark.parametrize("error", [RuntimeError("no room"), MemoryError()])
def test_a_failure_half_way_loses_nothing(studio, monkeypatch, error):
    assert studio.draw_now()
    before, drawn, mask = shown(studio), studio.drawn, bytes(studio.sheet.mask)
    steps = studio.steered.steps

    def failing(self, *args, **kwargs):
        yield next(steps(*args, **kwargs))
        raise error

    monkeypatch.setattr(type(studio.steered), "steps", failing)
    studio.seed.value = 99
    assert not studio.draw_now() and type(error).__name__ in said(studio)
    assert np.array_equal(shown(studio), before) and studio.drawn is drawn and bytes(studio.sheet.mask) == mask
    monkeypatch.undo()
    assert studio.draw_now()


def test_what_a_cell_gives_is_checked(steered, picture, mask):
    with pytest.raises(ConfigError, match="open_picture"):
        HoleStudio(steered, picture[..., :32], mask)
    with pytest.raises(ShapeError, match="paint_hole"):
        HoleStudio(steered, picture, mask[..., :32])
    with pytest.raises(ConfigError, match="values"):
        HoleStudio(steered, picture, mask * 0.5)
    with pytest.raises(ConfigError, match="no hole"):
        paint_hole(steered, picture)


def test_it_shows_itself_with_words_and_a_picture(steered, monkeypatch):
    bundles = []
    monkeypatch.setattr(names, "display", lambda bundle, raw: bundles.append(bundle))
    paint_hole(steered)
    assert len(bundles) == 2 and bundles[0]["text/plain"].startswith("[figure] Paint a hole.")
    assert "a blue boat" in bundles[0]["text/plain"] and "object at 0x" not in str(bundles)


def test_the_still_form_shows_hole_and_result(studio, picture, mask):
    assert studio.draw_now()
    still = np.asarray(Image.open(io.BytesIO(studio.still())))
    assert still.shape == (320, 640 + GAP, 3) and np.array_equal(still[:, -320:], shown(studio))
    assert (still[100, 160] == 128).all(), "grey in the hole"
    assert np.array_equal(still[200:, :320], enlarge(to_uint8(picture)[0], 5)[200:])


def test_the_first_hole_covers_the_house(steered):
    studio = HoleStudio(steered)
    left, top, right, bottom = HOLE
    hole, house = studio.hole()[0, 0], (studio.given[0, 0] > 0.2) & (studio.given[0, 1] < -0.4)  # strong red
    assert hole.sum() == (right - left) * (bottom - top)
    assert house.sum() > 50 and not (house & (hole == 0)).any()


def test_names_for_everyone(studio):
    controls = studio.sentence, studio.seed, studio.num_steps, studio.guidance, studio.draw, studio.outline
    assert all(each.description for each in (*controls, studio.scene, studio.take))
    assert repr(studio) == "HoleStudio(64 x 64, seed=3)" and repr(studio.sheet) == "HoleSheet(64 x 64)"


def test_two_hundred_strokes_leave_nothing_behind(studio):
    from ipywidgets.widgets.widget import _instances

    assert studio.draw_now()
    before = len(_instances)
    for k in range(200):
        values = np.zeros((64, 64))
        values[k % 64] = 1
        paint(studio, values)
    assert len(_instances) == before


def test_the_reader_of_files_is_the_course_s_own(tmp_path, studio):
    path = tmp_path / "a.png"
    path.write_bytes(png("teal", (7, 90)))
    assert studio.upload({"name": "a.png"}, [path.read_bytes()])
    assert torch.equal(studio.given, open_picture(path, 64))
