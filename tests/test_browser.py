"""The widgets in a real JupyterLab: every control by mouse and by keyboard, judged by the pixels on the screen.

Where a picture is known beforehand, the test computes it and compares; where a control must not change the picture,
that is looked at too. Skipped where there is no browser to drive.
"""

import base64
import io
import re
import time

import nbformat
import numpy as np
import pytest
from browser_cells import (
    ASLEEP,
    BOXES,
    CELLS,
    NUM_FRAMES,
    SETUP,
    attention,
    first_hole,
    gradient,
    guidance,
    similarity,
)
from conftest import write_kernel_profile
from lab_browser import CONNECTED, RUN_ALL, SAVE, browser_page, jupyter_server, why_not, write_notebook
from PIL import Image
from tiny import make_pipeline
from tiny_steered import make_steered

from ldm_tutor.data.boxes import Box
from ldm_tutor.lessons.build import NOTEBOOKS, ROOT
from ldm_tutor.plots.figures import enlarge, png_bytes, to_uint8
from ldm_tutor.widgets.boxes import with_boxes
from ldm_tutor.widgets.edit_studio import outlined
from ldm_tutor.widgets.names import ASLEEP as ASLEEP_LINE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=f"the browser tests need a browser: {why_not()}"),
]
LESSONS = ("04_forward_noising", "00_start_here")
RESTART = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart().then(() => true)"
FORGET_OLD_CONTROLS = """() => {
    window.lessonTrouble = (window.lessonTrouble ?? []).filter(text => !text.includes('No such comm'));
}"""
# Everything that can be reached in a view, with the name that a screen reader would say.
NAMELESS = """view => [...view.querySelectorAll('button, input, select, img, [role=slider], [role=textbox]')]
    .filter(node => !(node.getAttribute('aria-label') || node.getAttribute('alt') || node.innerText?.trim()
        || [...(node.labels ?? [])].some(label => label.textContent.trim())))
    .map(node => node.outerHTML.slice(0, 200))"""

# Two keys on a node and a click on a button, before any message can have been answered.
AT_ONCE = """(node, [keys, button]) => {
    for (const key of keys) node.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    button.click();
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab in a browser; its kernels find the tests' own modules and have no network."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    write_kernel_profile(home / "ipython")
    write_notebook(folder / "widgets.ipynb", SETUP, *CELLS.values())
    write_notebook(folder / "asleep.ipynb", *ASLEEP.values())
    path = f"{ROOT / 'tests'}"
    with jupyter_server(folder, home, PYTHONPATH=path) as address, browser_page(address) as page:
        page.folder = folder
        yield page


@pytest.fixture(scope="module")
def widgets(lab):
    """The notebook with one widget per cell, run; gives the view of a widget by its name."""
    lab.open("widgets.ipynb")
    lab.run_all()

    def view(name):
        found = lab.cell(1 + list(CELLS).index(name)).locator(".jupyter-widgets").first
        found.scroll_into_view_if_needed()
        return View(lab, found)

    return view


@pytest.fixture(autouse=True)
def no_trouble(request):
    """After each test: no error in the kernel or on the page, and no request to another machine."""
    lab = request.getfixturevalue("lab")
    yield
    assert lab.trouble() == []


class View:
    """A widget on the screen, used as a learner uses it."""

    def __init__(self, lab, view):
        self.lab, self.view, self.page = lab, view, lab.page
        self.image = view.locator("img").first

    def pixels(self):
        return self.lab.pixels(self.image)

    def control(self, role, name):
        return self.view.get_by_role(role, name=name, exact=True)

    def level(self, name):
        return float(self.control("slider", name).get_attribute("aria-valuenow"))

    def press(self, name, *keys):
        """Press keys on a slider."""
        self.control("slider", name).focus()
        for key in keys:
            self.page.keyboard.press(key)

    def click_track(self, name, share):
        """Click on a slider's track, `share` of its length from the left."""
        track = self.control("slider", name).locator("xpath=ancestor::div[contains(@class,'noUi-target')][1]")
        track.scroll_into_view_if_needed()
        box = track.bounding_box()
        self.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        self.page.wait_for_timeout(100)

    def drag(self, name, by):
        """Drag a slider's handle sideways."""
        handle = self.control("slider", name)
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + by / 2, y, steps=4)
        self.page.mouse.move(x + by, y, steps=4)
        self.page.mouse.up()

    def shows(self, wanted, what, seconds=20, limit=4.0):
        """Wait until the screen shows these pixels, (h, w, 3), give or take rounding."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            now = self.pixels()
            if now.shape == wanted.shape and np.abs(now - wanted).max() <= limit:
                return now
            self.page.wait_for_timeout(30)
        raise AssertionError(f"{what}: the screen never shows what it should")

    def says(self, words, seconds=60):
        """Wait until the alternative text of the picture has these words."""
        deadline = time.monotonic() + seconds
        while words not in (told := self.image.get_attribute("alt")):
            assert time.monotonic() < deadline, f"{words!r} is never said, but {told!r}"
            self.page.wait_for_timeout(30)

    def all_levels(self, level):
        """Wait until every pixel is of this colour."""
        self.shows(np.broadcast_to(np.asarray(level), self.pixels().shape), f"colour {level}", limit=0)

    def stays(self, before, what):
        assert self.lab.unchanged(self.image, before), f"{what} must not change the picture"

    def nameless(self):
        return self.view.evaluate(NAMELESS)


def as_pixels(picture):
    """The pixels of what a widget draws (a figure, an image, PNG bytes)."""
    return np.asarray(Image.open(io.BytesIO(png_bytes(picture))).convert("RGB")).astype(int)


# --- all of them


@pytest.mark.parametrize("name", CELLS)
def test_every_control_has_a_name(widgets, name):
    view = widgets(name)
    view.view.get_by_role("img").first.wait_for()
    assert view.nameless() == []
    roles = "slider|button|textbox|combobox|checkbox|img|progressbar"
    assert not re.search(rf"^\s*- (?:{roles})\s*(?:\[|:|$)", view.view.aria_snapshot(), re.MULTILINE)
    assert view.image.get_attribute("alt")


@pytest.mark.parametrize("name", CELLS)
def test_the_still_picture_makes_room_for_the_live_one(widgets, lab, name):
    cell = lab.cell(1 + list(CELLS).index(name))
    still = cell.get_by_text(ASLEEP_LINE)
    assert still.count() == 1 and not still.is_visible()
    assert widgets(name).image.is_visible()


# --- one by one


def test_live(widgets):
    view = widgets("live")
    view.all_levels((10, 10, 0))
    view.press("level", "ArrowRight", "ArrowUp", "ArrowLeft")
    view.all_levels((11, 11, 0))
    view.click_track("level", 0.5)
    view.page.wait_for_timeout(300)
    level = view.level("level")
    assert 100 < level < 156
    view.all_levels((level, level, 0))
    view.drag("level", -40)
    view.page.wait_for_timeout(300)
    dragged = view.level("level")
    assert dragged < level
    view.all_levels((dragged, dragged, 0))
    view.press("level", "Home", "ArrowRight", "ArrowRight")
    view.control("combobox", "tint").select_option("blue")
    view.all_levels((2, 2, 255))
    view.control("combobox", "tint").focus()
    view.page.keyboard.press("ArrowUp")
    view.all_levels((2, 2, 0))
    view.control("checkbox", "bright").click()
    view.all_levels((3, 3, 1))
    view.control("checkbox", "bright").focus()
    view.page.keyboard.press("Space")
    view.all_levels((2, 2, 0))


def test_a_control_that_does_nothing_changes_nothing(widgets):
    view = widgets("live")
    before = view.pixels()
    view.press("unused", "ArrowRight", "ArrowRight")
    view.stays(before, "a key on the unused control")
    view.click_track("unused", 0.9)
    view.stays(before, "a click on the unused control")
    assert view.level("unused") == 8


def test_an_error_is_said_under_the_picture(widgets):
    view = widgets("failing")
    before = view.pixels()
    view.press("level", "ArrowRight")
    view.view.get_by_text("ValueError: too bright").wait_for()
    view.stays(before, "a figure that fails")
    view.press("level", "ArrowLeft", "ArrowLeft")
    view.all_levels((195, 195, 195))
    assert view.view.get_by_text("ValueError").count() == 0


def test_frames(widgets):
    view = widgets("frames")
    view.all_levels((0, 0, 0))
    view.press("step", "ArrowRight", "ArrowRight")
    view.all_levels((80, 80, 80))
    view.click_track("step", 0.99)
    view.all_levels(3 * (40 * (NUM_FRAMES - 1),))
    view.control("button", "back to the start").click()
    view.all_levels((0, 0, 0))
    view.control("button", "play over step").click()
    view.all_levels(3 * (40 * (NUM_FRAMES - 1),))
    view.control("button", "back to the start").focus()
    view.page.keyboard.press("Enter")
    view.all_levels((0, 0, 0))
    again = view.control("button", "over and over")
    before = view.pixels()
    again.click()
    view.stays(before, "the choice to play over and over")
    assert again.get_attribute("aria-pressed") == "true"
    view.control("button", "play over step").focus()
    view.page.keyboard.press("Space")
    view.control("button", "pause").wait_for()
    seen = set()
    for _ in range(40):
        seen.add(int(view.pixels()[0, 0, 0]))
        view.page.wait_for_timeout(40)
    assert len(seen) >= 3, "it plays, over and over"
    view.control("button", "pause").click()
    view.page.wait_for_timeout(300)
    view.stays(view.pixels(), "a pause")


def test_similarity(widgets):
    view, explorer = widgets("similarity"), similarity()
    wanted = [as_pixels(explorer.draw(k)) for k in range(4)]
    assert min(np.abs(wanted[0] - each).mean() for each in wanted[1:] if each.shape == wanted[0].shape) > 1
    view.shows(wanted[1], "picture 1")
    view.press("picture", "ArrowRight")
    view.shows(wanted[2], "picture 2")
    view.click_track("picture", 0.01)
    view.shows(wanted[0], "picture 0")
    view.press("picture", "End")
    view.shows(wanted[3], "picture 3")
    assert view.image.get_attribute("alt") == explorer.caption(3)
    view.press("picture", "ArrowRight")
    view.stays(view.pixels(), "a key beyond the last picture")


def test_guidance(widgets):
    view, grid = widgets("guidance"), guidance()
    view.shows(as_pixels(grid.draw(0, 1, 2)), "the start")
    view.press("scale", "ArrowRight")
    view.shows(as_pixels(grid.draw(0, 1, 3)), "the next scale")
    assert view.control("slider", "scale").get_attribute("aria-valuetext") == "8"
    view.press("scale", "Home")
    view.shows(as_pixels(grid.draw(0, 1, 0)), "the first scale")
    view.click_track("seed", 0.99)
    view.shows(as_pixels(grid.draw(0, 2, 0)), "the last seed")
    view.click_track("scale", 0.99)
    view.press("seed", "ArrowLeft", "ArrowLeft")
    view.shows(as_pixels(grid.draw(0, 0, 3)), "the first seed")
    view.control("combobox", "sentence").select_option(index=1)
    view.shows(as_pixels(grid.draw(1, 0, 3)), "the other sentence")
    view.control("combobox", "sentence").focus()
    view.page.keyboard.press("ArrowUp")
    view.shows(as_pixels(grid.draw(0, 0, 3)), "the first sentence")
    assert view.image.get_attribute("alt") == grid.caption(0, 0, 3)
    before = view.pixels()
    view.page.keyboard.press("ArrowUp")
    view.stays(before, "a key beyond the first sentence")


def test_attention(widgets):
    view, explorer = widgets("attention"), attention()
    chosen = {name: control.value for name, control in explorer.controls.items()}
    seen = []

    def look(what, **values):
        chosen.update(values)
        seen.append(view.shows(as_pixels(explorer.draw(**chosen)), what, limit=12))
        assert view.image.get_attribute("alt") == explorer.describe(**chosen)

    look("the start")
    house = explorer.recorded.words.index("house")
    view.control("button", "house").click()
    look("a click on a word", word=house)
    assert view.control("button", "house").get_attribute("aria-pressed") == "true"
    view.control("button", "red").focus()
    view.page.keyboard.press("Enter")
    look("Enter on a word", word=explorer.recorded.words.index("red"))
    view.press("Step", "ArrowRight")
    look("a step by key", step=0)
    assert view.control("slider", "Step").get_attribute("aria-valuetext").startswith("1 (t = ")
    view.click_track("Step", 0.99)
    look("a step by mouse", step=2)
    view.press("Layer", "ArrowRight")
    look("a layer by key", layer=0)
    view.click_track("Layer", 0.99)
    look("a layer by mouse", layer=len(explorer.recorded.layers) - 1)
    view.press("Head", "ArrowRight")
    look("a head by key", head=0)
    view.click_track("Head", 0.99)
    look("a head by mouse", head=explorer.recorded.num_heads - 1)
    finder = view.control("textbox", "Find a word")
    finder.fill("house")
    finder.press("Enter")
    look("a word that was typed", word=house)
    before = seen[-1]
    finder.fill("zebra")
    finder.press("Enter")
    view.view.get_by_text("'zebra' is not in this sentence").wait_for()
    view.stays(before, "a word that is not there")
    truth = view.control("checkbox", "true outline of the object")
    truth.click()
    look("the outline by mouse", truth=True)
    truth.focus()
    view.page.keyboard.press("Space")
    look("the outline by key", truth=False)
    half = (before.shape[1] - 8) // 2
    assert all((each[:, :half] == before[:, :half]).all() for each in seen), "the picture on the left stays"
    assert len({each.tobytes() for each in seen}) == len(seen) - 1  # without the outline it is as before


def test_studio(widgets):
    view, pipe, page = widgets("studio"), make_pipeline(), widgets("studio").page

    def drawn(sentence, seed, num_steps, scale):
        told = f"Picture: {sentence} (seed {seed}, {num_steps} steps, guidance {scale:g})."
        deadline = time.monotonic() + 60
        while not view.view.get_by_text(told).count():
            assert time.monotonic() < deadline, f"not {told!r}, but {view.view.inner_text()!r}"
            page.wait_for_timeout(50)
        picture = pipe.draw([sentence], [seed], num_steps=num_steps, guidance=scale)
        return view.shows(enlarge(to_uint8(picture)[0], 5).astype(int), f"{sentence}, seed {seed}")

    first = drawn("a red cat", 7, 20, 2)
    sentence, draw = view.control("textbox", "Sentence"), view.control("button", "Draw")
    # Words by keyboard and by mouse: the sentence follows, the picture waits.
    changes = {"Object": "rocket", "Size": "large", "Place": "left", "Background": "night", "Second object": "boat"}
    changes |= {"Second colour": "green", "Then": "behind"}
    for name, word in changes.items():
        view.control("combobox", name).select_option(word)
        page.wait_for_function("([node, word]) => node.value.includes(word)", arg=[sentence.element_handle(), word])
    view.control("combobox", "Colour").focus()
    said = sentence.input_value()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("([node, said]) => node.value !== said", arg=[sentence.element_handle(), said])
    view.stays(first, "a change of words before Draw")
    view.press("Steps", "Home", "ArrowRight", "ArrowRight")
    view.press("Guidance", "ArrowRight", "ArrowRight")
    view.stays(first, "a change of steps and guidance before Draw")
    told = sentence.input_value()
    draw.click()
    second = drawn(told, 7, 3, 3)
    assert (second != first).any()
    seed = view.control("spinbutton", "Seed")
    seed.fill("11")
    seed.press("Tab")
    view.stays(second, "a new seed before Draw")
    draw.focus()
    page.keyboard.press("Enter")
    third = drawn(told, 11, 3, 3)
    assert (third != second).any()
    view.click_track("Guidance", 0.9)
    view.click_track("Steps", 0.2)
    num_steps, guidance = int(view.level("Steps")), view.level("Guidance")
    assert 5 < num_steps < 20 and guidance > 8
    sentence.fill("a blue dog")
    sentence.press("Enter")
    view.stays(third, "a sentence before Draw")
    draw.click()
    fourth = drawn("a blue dog", 11, num_steps, guidance)
    assert (fourth != third).any() and view.control("combobox", "Object").input_value() == "dog"
    view.control("button", "Another seed").click()
    page.wait_for_function("node => node.value !== '11'", arg=seed.element_handle())
    fifth = drawn("a blue dog", int(seed.input_value()), num_steps, guidance)
    assert (fifth != fourth).any()
    sentence.fill("")
    sentence.press("Enter")
    draw.click()
    view.view.get_by_text("Write a sentence first").wait_for()
    view.stays(fifth, "an empty sentence")
    sentence.fill("a red bycicle")
    sentence.press("Enter")
    draw.click()
    view.view.get_by_text("near it: bicycle").wait_for()
    assert page.get_by_role("progressbar").first.get_attribute("aria-valuenow") == "100"


def test_edit_studio(widgets):
    view, page = widgets("edit_studio"), widgets("edit_studio").page
    draw, outline = view.control("button", "Draw"), view.control("checkbox", "outline what changed")
    start = view.pixels()
    view.press("Change above", "Home")
    first = view.lab.changed(view.image, start)
    outline.click()
    bare = view.lab.changed(view.image, first)
    outline.focus()
    page.keyboard.press("Space")
    view.shows(first, "the outline again", limit=0)
    outline.click()
    view.shows(bare, "no outline", limit=0)
    view.click_track("Change above", 0.95)
    view.stays(bare, "the outline's threshold without an outline")
    half = (bare.shape[1] - 8) // 2

    def after(press_draw, what, source_stays):
        view.page.wait_for_timeout(100)
        before = view.pixels()
        view.stays(before, f"{what} before Draw")
        press_draw()
        view.view.get_by_text("Drawn in").wait_for()
        now = view.lab.changed(view.image, before)
        apart = np.abs(now[:, :half].astype(int) - before[:, :half]).max()
        # Drawn beside another target its numbers may differ in their last digits, and so, rounded, a byte by 1.
        assert (apart <= 1) == source_stays, f"{what}: the picture on the left, {apart} of 255 apart"

    def by_key():
        draw.focus()
        page.keyboard.press("Enter")

    target = view.control("textbox", "Target")
    target.fill("a green boat at night")
    target.press("Enter")
    after(draw.click, "another target", True)
    view.click_track("boat", 0.95)
    after(by_key, "the weight of a word, by mouse", True)
    view.press("boat", "Home")
    after(draw.click, "the weight of a word, by key", True)
    view.press("Words' maps", "Home")
    after(draw.click, "no maps taken over", True)
    view.click_track("Layout", 0.95)
    after(draw.click, "the whole layout taken over", True)
    view.press("Steps", "ArrowLeft")
    after(draw.click, "fewer steps", False)
    seed = view.control("spinbutton", "Seed")
    seed.fill("11")
    seed.press("Tab")
    after(by_key, "another seed", False)
    source = view.control("textbox", "Source")
    source.fill("a blue house at night")
    source.press("Enter")
    after(draw.click, "another source", False)
    now = view.pixels()
    target.fill("")
    target.press("Enter")
    draw.click()
    view.view.get_by_text("This cannot be drawn").wait_for()
    view.stays(now, "an empty target")


def test_bill(widgets):
    view = widgets("bill")
    before = view.pixels()
    assert "On 8 x A100 at 30%" in view.image.get_attribute("alt")
    view.press("gpus", "ArrowRight")
    view.says("On 9 x A100")
    more = view.lab.changed(view.image, before, seconds=60)
    latents = view.control("combobox", "latents")
    latents.focus()
    view.page.keyboard.press("ArrowDown")
    view.says("latents cached")
    view.lab.changed(view.image, more, seconds=60)


def test_budget(widgets):
    view = widgets("budget")
    before = view.pixels()
    assert view.image.get_attribute("alt").startswith("SD v1")
    view.press("batch", "ArrowRight")
    view.says("2 of 512 x 512")
    more = view.lab.changed(view.image, before, seconds=60)
    view.click_track("batch", 0.01)
    view.shows(before, "one picture again", limit=0, seconds=60)
    numbers = view.control("combobox", "numbers")
    numbers.focus()
    view.page.keyboard.press("ArrowDown")
    other = view.lab.changed(view.image, before, seconds=60)
    assert other.shape != more.shape or (other != more).any()
    view.control("combobox", "side").select_option(index=0)
    small = view.lab.changed(view.image, other, seconds=60)
    view.control("combobox", "model").select_option(index=0)
    view.lab.changed(view.image, small, seconds=60)


class Sheet:
    """A square of a view on which the mouse draws; places are shares of its side."""

    def __init__(self, view, name):
        self.view, self.page, self.node = view, view.page, view.view.locator(name)
        self.cells = self.page.locator(".jp-CodeCell").count()

    def at(self, x, y):
        area = self.node.bounding_box()
        return area["x"] + x * area["width"], area["y"] + y * area["height"]

    def drag(self, *places, shift=False):
        self.node.scroll_into_view_if_needed()
        if shift:
            self.page.keyboard.down("Shift")
        self.page.mouse.move(*self.at(*places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.at(*place), steps=4)
        self.page.mouse.up()
        if shift:
            self.page.keyboard.up("Shift")

    def canvas(self, name):
        """The pixels of a canvas of the view."""
        code = "canvas => canvas.toDataURL('image/png').split(',')[1]"
        data = self.view.view.locator(name).evaluate(code)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)

    def notebook_is_whole(self):
        """No key has reached the notebook: none of its cells is gone, and none was added."""
        assert self.page.locator(".jp-CodeCell").count() == self.cells


def test_boxes(widgets):
    view, steered = widgets("boxes"), make_steered("layout")
    page, sheet, draw = view.page, Sheet(view, ".ldm-sheet"), view.control("button", "Draw")
    rows, marks = view.view.locator(".ldm-list li"), view.view.locator(".ldm-box")

    def listed():
        """The boxes as the list has them: kind, left, top, right, bottom in percent."""
        return [
            (row.locator("select").input_value(), *(int(each.input_value()) for each in row.locator("input").all()))
            for row in rows.all()
        ]

    def becomes(*wanted):
        deadline = time.monotonic() + 10
        while listed() != list(wanted):
            assert time.monotonic() < deadline, (listed(), wanted)
            page.wait_for_timeout(30)
        assert marks.count() == len(wanted)

    def drawn(boxes, sentence=None, outline=True):
        wanted = steered.from_boxes([boxes], [7], prompts=sentence and [sentence])
        pixels = enlarge(to_uint8(wanted)[0], 5)
        return view.shows((with_boxes(pixels, boxes) if outline else pixels).astype(int), f"{boxes}", seconds=60)

    first = drawn(BOXES)
    house, tree = ("house", 13, 25, 50, 75), ("tree", 63, 25, 88, 75)
    becomes(house, tree)
    # By mouse: a new box, moved, changed by its handles, and no further than the edge.
    view.control("combobox", "kind of the next box").select_option("boat")
    sheet.drag((0.75, 0.95), (0.5, 0.8125))  # backwards
    becomes(house, tree, ("boat", 50, 81, 75, 95))
    view.stays(first, "a new box before Draw")
    sheet.drag((0.1, 0.02), (0.4, 0.2))
    view.view.get_by_text("At most 3 boxes fit").wait_for()
    becomes(house, tree, ("boat", 50, 81, 75, 95))
    sheet.drag((0.7, 0.9), (0.45, 0.9))
    becomes(house, tree, ("boat", 25, 81, 50, 95))
    sheet.drag((0.4, 0.9), (0.4, 1.4))
    becomes(house, tree, ("boat", 25, 86, 50, 100))
    sheet.drag((0.25, 0.86), (0.0, 0.75))  # the upper left handle
    becomes(house, tree, ("boat", 0, 75, 50, 100))
    sheet.drag((0.5, 0.875), (0.02, 0.875))  # the right one, beyond the left side
    becomes(house, tree, ("boat", 0, 75, 6, 100))
    view.control("button", "delete box 3").click()
    becomes(house, tree)
    sheet.drag((0.05, 0.9), (0.07, 0.93))
    view.view.get_by_text("That box is too small").wait_for()
    sheet.drag((0.05, 0.9), (0.05, 0.9))
    becomes(house, tree)
    sheet.drag((0.25, 0.5), (0.375, 0.625), shift=True)  # on top of the house
    becomes(house, tree, ("boat", 25, 50, 38, 63))
    page.mouse.move(*sheet.at(0.3, 0.55))
    page.mouse.down()
    page.mouse.move(*sheet.at(0.8, 0.9), steps=3)
    page.keyboard.press("Escape")
    page.mouse.up()
    becomes(house, tree, ("boat", 25, 50, 38, 63))
    # By key, on the sheet and in the list.
    marks.nth(2).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    becomes(house, tree, ("boat", 31, 47, 41, 63))
    assert marks.nth(2).get_attribute("aria-label") == "box 3: boat, left 31, top 47, right 41, bottom 63 percent"
    page.keyboard.press("Enter")
    assert view.control("combobox", "box 3: kind").evaluate("node => node === document.activeElement")
    page.keyboard.press("ArrowDown")
    becomes(house, tree, ("rocket", 31, 47, 41, 63))
    marks.nth(2).focus()
    page.keyboard.press("Delete")
    becomes(house, tree)
    assert marks.nth(1).evaluate("node => node === document.activeElement"), "the focus goes to the box before"
    view.control("button", "Add a box").focus()
    page.keyboard.press("Enter")
    becomes(house, tree, ("boat", 45, 45, 80, 80))
    for name, text in (("left", "101"), ("left", ""), ("left", "79"), ("bottom", "45")):
        number = view.control("spinbutton", f"box 3: {name}, percent")
        number.fill(text)
        number.press("Tab")
        view.view.locator(".ldm-alert").get_by_text(re.compile("must be a number|would be too small")).wait_for()
        becomes(house, tree, ("boat", 45, 45, 80, 80))
    for name, text in (("left", "0"), ("top", "50"), ("right", "25"), ("bottom", "100")):
        number = view.control("spinbutton", f"box 3: {name}, percent")
        number.fill(text)
        number.press("Enter")
    becomes(house, tree, ("boat", 0, 50, 25, 100))
    view.control("combobox", "box 1: kind").select_option("cat")
    becomes(("cat", *house[1:]), tree, ("boat", 0, 50, 25, 100))
    view.stays(first, "all this before Draw")
    # The picture follows the button, with and without a sentence, with and without outlines.
    boxes = [Box("cat", 0.125, 0.25, 0.5, 0.75), BOXES[1], Box("boat", 0, 0.5, 0.25, 1)]
    draw.click()
    second = drawn(boxes)
    assert (first != second).any() and "cat at 12 to 50% across" in view.image.get_attribute("alt")
    outline = view.control("checkbox", "outline the boxes asked for")
    outline.click()
    drawn(boxes, outline=False)
    outline.focus()
    page.keyboard.press("Space")
    sentence = view.control("textbox", "Sentence")
    sentence.fill("a red cat at night")
    sentence.press("Enter")
    view.view.get_by_text("still the one of before").wait_for()
    draw.focus()
    page.keyboard.press("Enter")
    third = drawn(boxes, "a red cat at night")
    # What is done last is drawn, however quickly the button follows (an update waits while another is on its way).
    marks.nth(2).evaluate(AT_ONCE, [["ArrowRight", "ArrowRight"], draw.element_handle()])
    boxes[2] = Box("boat", 2 / 32, 0.5, 0.25 + 2 / 32, 1)
    third = drawn(boxes, "a red cat at night")
    for kind in (view.control("button", "Delete all boxes"), draw):
        kind.click()
    view.view.get_by_text("There is no box yet").wait_for()
    becomes()
    view.stays(third, "a drawing of nothing")
    sheet.notebook_is_whole()


def test_hole(widgets, tmp_path):
    view, steered = widgets("hole"), make_steered("inpainting")
    page, sheet, fill = view.page, Sheet(view, ".ldm-over"), view.control("button", "Fill")
    given, told = to_uint8(gradient())[0], view.view.locator(".ldm-count")
    size, outline = view.control("slider", "size of the brush, in pixels"), view.control("checkbox", "outline the hole")

    def holes(num):
        deadline = time.monotonic() + 10
        while not told.inner_text().startswith(f"Hole: {num} of 4096 pixels"):
            assert time.monotonic() < deadline, (told.inner_text(), num)
            page.wait_for_timeout(30)

    def count():
        return int(told.inner_text().split()[1])

    def changed(before, rect, press=fill.click):
        """Press Fill, and look that all changes lie in a rectangle (left, top, right, bottom) of the picture."""
        press()
        now = view.lab.changed(view.image, before, seconds=60)
        view.view.get_by_text("Drawn in").wait_for()
        page.wait_for_timeout(200)
        now = view.pixels()
        differs = (now[2::5, 2::5] != given).any(axis=2)
        inside = np.zeros((64, 64), bool)
        inside[rect[1] : rect[3], rect[0] : rect[2]] = True
        assert not differs[~inside].any(), "outside the hole the picture is the same to the bit"
        assert differs.sum() > 0.8 * count()
        return now

    wanted = steered.inpaint(gradient(), first_hole(), [7])
    first = view.shows(outlined(wanted, first_hole()[0, 0] > 0).astype(int), "the first hole", seconds=60)
    assert np.array_equal(sheet.canvas(".ldm-picture"), given)
    holes(256)
    outline.click()
    bare = view.shows(enlarge(to_uint8(wanted)[0], 5).astype(int), "no outline")
    assert (first != bare).any()
    # By mouse: brush, Shift to erase, eraser, undo, clear.
    sheet.drag((0.1, 0.6), (0.2, 0.8), (0.4, 0.7))
    view.view.get_by_text("still the one of before").wait_for()
    painted = count()
    assert painted > 256 + 100
    view.stays(bare, "a stroke before Fill")
    hatched = sheet.canvas(".ldm-over")
    sheet.drag((0.7, 0.2), (0.85, 0.3), shift=True)
    erased = count()
    assert erased < painted
    view.control("button", "Undo").click()
    holes(painted)
    assert view.control("button", "Brush").get_attribute("aria-pressed") == "true"
    view.control("button", "Eraser").click()
    assert view.control("button", "Eraser").get_attribute("aria-pressed") == "true"
    sheet.drag((0.55, 0.05), (0.95, 0.45))
    assert 100 < count() < painted
    view.control("button", "Undo").click()
    page.mouse.move(*sheet.at(0.5, 1.2))
    assert np.abs(sheet.canvas(".ldm-over") - hatched).mean() < 3
    second = changed(bare, (0, 0, 64, 64))
    view.control("button", "Clear").click()
    holes(0)
    fill.click()
    view.view.get_by_text("There is no hole yet").wait_for()
    view.stays(second, "no hole")
    # By key: one pixel at a time, from the middle of the picture.
    view.control("button", "Brush").click()
    size.focus()
    page.keyboard.press("Home")
    sheet.node.focus()
    for _ in range(70):
        page.keyboard.press("ArrowLeft")
    for _ in range(70):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    holes(1)
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "Space"):
        page.keyboard.press(key)
    holes(2)
    for _ in range(5):
        page.keyboard.press("Shift+ArrowDown")
    holes(7)
    page.keyboard.press("e")
    page.keyboard.press("Shift+ArrowUp")
    holes(5)
    page.keyboard.press("Control+z")
    holes(7)
    page.keyboard.press("e")
    for _ in range(7):
        page.keyboard.press("+")
    page.keyboard.press("-")
    assert size.input_value() == "7"
    page.keyboard.press("Space")
    third = changed(second, (0, 0, 8, 10))
    assert (third[2::5, 2::5][0, 0] != given[0, 0]).any(), "the pixel in the corner"
    # With a sentence.
    sentence = view.control("textbox", "Sentence")
    sentence.fill("a red cat")
    sentence.press("Enter")
    fourth = changed(third, (0, 0, 8, 10))
    # What is painted last is filled, however quickly the button follows.
    keys = [*["ArrowDown"] * 7, " "] * 2
    fourth = changed(fourth, (0, 0, 8, 24), lambda: sheet.node.evaluate(AT_ONCE, [keys, fill.element_handle()]))
    # A picture of the learner's own: small, too large to be sent whole, and none at all.
    files = view.control("button", "a picture file of your own")
    Image.new("RGB", (90, 40), "navy").save(tmp_path / "small.png")
    files.set_input_files(tmp_path / "small.png")
    view.view.get_by_text("small.png: its middle square").wait_for()
    holes(0)
    assert (sheet.canvas(".ldm-picture") == (0, 0, 128)).all()
    view.stays(fourth, "another picture before Fill")
    large = Image.new("RGB", (1800, 1200), "teal")
    large.paste("white", (300, 0, 1500, 600))
    large.save(tmp_path / "large.bmp")  # 6.5 MB
    files.set_input_files(tmp_path / "large.bmp")
    view.view.get_by_text("large.bmp: its middle square").wait_for()
    shown = sheet.canvas(".ldm-picture")
    assert (shown[:28] == 255).all() and np.abs(shown[36:] - (0, 128, 128)).max() <= 1
    sheet.drag((0.2, 0.7), (0.8, 0.8))
    strokes = count()
    (tmp_path / "text.png").write_text("no picture")
    files.set_input_files(tmp_path / "text.png")
    view.view.get_by_text("text.png: the file is no picture").wait_for()
    (tmp_path / "large.png").write_bytes(bytes(6_000_000))
    files.set_input_files(tmp_path / "large.png")
    view.view.get_by_text("large.png is too large to be sent").wait_for()
    holes(strokes)
    assert np.array_equal(sheet.canvas(".ldm-picture"), shown), "nothing is lost"
    # The result, and a scene, to go on with.
    fill.click()
    fifth = view.lab.changed(view.image, fourth, seconds=60)
    view.view.get_by_text("Drawn in").wait_for()
    page.wait_for_timeout(200)
    fifth = view.pixels()
    view.control("button", "Go on with the result").click()
    holes(0)
    view.view.get_by_text("is the one to paint on").wait_for()
    page.wait_for_timeout(300)
    assert np.array_equal(sheet.canvas(".ldm-picture"), fifth[2::5, 2::5])
    view.control("button", "Another scene").click()
    view.view.get_by_text("A new scene").wait_for()
    page.wait_for_timeout(300)
    assert (sheet.canvas(".ldm-picture") != fifth[2::5, 2::5]).any()
    sheet.notebook_is_whole()


# --- without a kernel


def test_without_a_kernel(lab):
    lab.open("asleep.ipynb")
    lab.run_all()
    cell = lab.cell(0)
    view = View(lab, cell.locator(".jupyter-widgets").first)
    view.press("level", "ArrowRight")
    view.all_levels((11, 11, 11))
    assert cell.get_by_text("have lost their kernel").count() == 0
    lab.page.evaluate(SAVE)
    lab.page.evaluate(RESTART)
    cell.get_by_text("These controls have lost their kernel. Run this cell again").wait_for()
    before = view.pixels()
    view.press("level", "ArrowRight")
    view.stays(before, "a control without a kernel")
    lab.page.wait_for_function(CONNECTED)
    lab.page.evaluate(RUN_ALL)  # and it lives again
    view = View(lab, cell.locator(".jupyter-widgets").first)
    view.press("level", "ArrowRight")
    view.all_levels((11, 11, 11))
    lab.page.evaluate(SAVE)

    # Opened again later, and in a copy from somewhere else, which the lab does not trust: the picture and a word.
    lab.page.evaluate(RESTART)
    notebook = nbformat.read(lab.folder / "asleep.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("Not signed here."))
    nbformat.write(notebook, lab.folder / "foreign.ipynb")
    for name in ("asleep.ipynb", "foreign.ipynb"):
        lab.open(name)
        lab.cell(0).get_by_text(ASLEEP_LINE).wait_for()
        still = lab.cell(0).get_by_role("img", name="a grey square")
        assert still.is_visible() and (lab.pixels(still) == 10).all()
    # What the lab says about requests that a restart cut off, and the new kernel about the old one's controls, is no
    # fault of a widget.
    lab.page.wait_for_timeout(500)
    lab.problems = [each for each in lab.problems if not re.search(r"Cancel+ed|disposed|Kernel", each)]
    lab.page.evaluate(FORGET_OLD_CONTROLS)


# --- whole lessons


@pytest.mark.parametrize("name", LESSONS)
def test_a_whole_lesson(lab, name):
    """Every cell runs; every control has a name; every slider of a live figure changes its picture."""
    (lab.folder / f"{name}.ipynb").write_bytes((NOTEBOOKS / f"{name}.ipynb").read_bytes())
    lab.open(f"{name}.ipynb")
    lab.run_all(seconds=480)
    views = lab.page.locator(".jp-OutputArea-output:has(.ldm-live)")
    assert views.count() >= 1, "a lesson has a widget"
    for k in range(views.count()):
        view = View(lab, views.nth(k))
        view.view.scroll_into_view_if_needed()
        assert view.nameless() == []
        buttons = view.view.get_by_role("button", name="Draw", exact=True)
        sliders = view.view.get_by_role("slider")
        for number in range(sliders.count()):
            before = view.pixels()
            sliders.nth(number).focus()
            lab.page.keyboard.press("ArrowRight")
            if buttons.count():
                buttons.first.click()
            assert (lab.changed(view.image, before) != before).any()
