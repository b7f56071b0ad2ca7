"""Figures and controls without a browser: what they show, what they say, and what they do with bad input."""

import base64
import gc
import io
import re

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances as instances
from PIL import Image
from tiny import make_pipeline

from ldm_tutor.data.scenes.words import parse
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.plots import figures
from ldm_tutor.widgets import names as names_module
from ldm_tutor.widgets.attention import AttentionExplorer, record_drawing
from ldm_tutor.widgets.live import LiveFigure, frames, live, make_control
from ldm_tutor.widgets.similarity import SimilarityExplorer
from ldm_tutor.widgets.studio import SENTENCE, SceneStudio, scene_studio, word_notes

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def shown(monkeypatch):
    """Collect what would be displayed, as (bundle, ...)."""
    bundles = []

    def keep(bundle, raw=False):
        assert raw
        bundles.append(bundle)

    for module in (figures, names_module):
        monkeypatch.setattr(module, "display", keep)
    return bundles


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture
def studio(pipe):
    made = SceneStudio(pipe)
    made.num_steps.value = 4
    return made


def picture_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def picture_in(markup):
    """The picture that an `<img>` carries inside it."""
    return picture_of(base64.b64decode(re.search(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", markup)[1]))


# --- figures


def test_bytes_of_pictures():
    pictures = torch.tensor([-1.0, 0.0, 1.0, 1.7, -9.0, 0.5]).reshape(1, 3, 1, 2)
    assert figures.to_uint8(pictures).tolist() == [[[[0, 255, 0], [128, 255, 191]]]]
    with pytest.raises(ShapeError, match=r"to_uint8.*\(3, 8, 8\)"):
        figures.to_uint8(torch.zeros(3, 8, 8))


def test_enlarging_makes_squares():
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    large = figures.enlarge(pixels, 3)
    assert large.shape == (1, 6, 6, 3)
    assert (large[:, ::3, ::3] == pixels).all() and (large[:, 2::3, 2::3] == pixels).all()
    with pytest.raises(ConfigError, match="enlarge"):
        figures.enlarge(pixels, 0)


def test_show_gives_every_form(shown):
    figures.show(torch.zeros(3, 64, 64), alt='a "grey" <square>')
    (bundle,) = shown
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/plain"] == '[figure] a "grey" <square>'
    assert 'alt="a &quot;grey&quot; &lt;square&gt;"' in bundle["text/html"]
    assert picture_in(bundle["text/html"]).shape == (256, 256, 3)


@pytest.mark.parametrize("alt", ["", "  ", None])
def test_a_figure_without_alternative_text_is_refused(alt, shown):
    with pytest.raises(ConfigError, match="alternative text.*alt="):
        figures.show(torch.zeros(3, 4, 4), alt=alt)
    with pytest.raises(ConfigError, match="alternative text"):
        frames([torch.zeros(3, 4, 4)], alt=alt)
    assert shown == []


def test_pictures_of_every_kind_and_none_other():
    grey = np.full((8, 8, 3), 128, np.uint8)
    forms = [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8), grey, grey[..., 0], Image.fromarray(grey)]
    for form in forms:
        assert (picture_of(figures.png_bytes(form, scale=1)) == grey).all()
    assert figures.png_bytes(b"as it is") == b"as it is"
    with pytest.raises(ConfigError, match="uint8"):
        figures.png_bytes(np.zeros((8, 8, 3)))
    with pytest.raises(ShapeError):
        figures.png_bytes(np.zeros((8, 8, 2), np.uint8))


def test_a_grid_shows_the_pixels_sharp():
    pictures = torch.rand(3, 3, 8, 8) * 2 - 1
    pixels = picture_of(figures.png_bytes(figures.picture_grid(pictures, columns=3, scale=4)))[..., :3]
    wanted = figures.to_uint8(pictures)[1]
    colors = {tuple(color) for color in pixels.reshape(-1, 3)}
    assert {tuple(color) for color in wanted.reshape(-1, 3)} <= colors
    assert plt.get_fignums() == []


def test_grids_wrap_and_check_their_titles():
    assert len(figures.picture_grid(torch.zeros(7, 3, 8, 8), titles="abcdefg").axes) == 7
    with pytest.raises(ConfigError, match="titles"):
        figures.picture_grid(torch.zeros(2, 3, 8, 8), titles=["one"])
    with pytest.raises(ConfigError, match="at least one"):
        figures.picture_grid([])
    plt.close("all")


def test_rows_have_their_names_and_columns_their_titles():
    bright, dark = torch.ones(2, 3, 8, 8), [np.zeros((8, 8, 3), np.uint8)] * 2
    figure = figures.picture_rows({"bright": bright, "dark": dark}, ["left", "right"], scale=2)
    above, below = figure.axes
    assert {text.get_text() for text in above.texts} == {"bright", "left", "right"}
    assert [text.get_text() for text in below.texts] == ["dark"]
    for axes, value in ((above, 255), (below, 0)):
        strip = axes.images[0].get_array()
        assert strip.shape == (16, 2 * 16 + 8, 3) and (strip[:, :16] == value).all() and (strip[:, -16:] == value).all()
    plt.close("all")


def test_bars_and_flow_write_their_numbers():
    chart = figures.bars(["a", "b"], [3, 0.5], unit="%", form="{:.1f}", title="share")
    assert {"3.0 %", "0.5 %"} <= {text.get_text().strip() for text in chart.axes[0].texts}
    flow = figures.flow_diagram(["x", "y"], ["(1, 2)"], networks=[1], inputs={1: "noise"}, loops={1: "3 times"})
    assert {text.get_text() for text in flow.axes[0].texts} == {"x", "y", "(1, 2)", "noise", "3 times"}
    assert figures.bars(["none"], [0.0]) and figures.signed_map(torch.zeros(2, 3), 2).shape == (4, 6, 3)


def test_a_signed_map_is_darkest_at_its_limit():
    values = torch.tensor([[-4.0, -1.0, 0.0, 1.0, 4.0]])
    own, wide, narrow = (figures.signed_map(values, 1, limit)[0].astype(int) for limit in (None, 8.0, 1.0))
    assert own.sum(axis=1).argmax() == wide.sum(axis=1).argmax() == 2  # white at 0
    assert (wide[[0, 4]].sum(axis=1) > own[[0, 4]].sum(axis=1)).all()
    assert (narrow[0] == narrow[1]).all() and (narrow[3] == narrow[4]).all() and (narrow[0] == own[0]).all()
    with pytest.raises(ConfigError, match="bars"):
        figures.bars(["a"], [1, 2])
    with pytest.raises(ConfigError, match="arrows"):
        figures.flow_diagram(["x", "y"], [])
    plt.close("all")


def test_the_style_ends_with_its_block():
    before = plt.rcParams["axes.grid"]
    with figures.figure_style():
        assert plt.rcParams["axes.grid"] is True
    assert plt.rcParams["axes.grid"] == before


def test_figures_are_the_same_bytes_twice():
    def once():
        return figures.png_bytes(figures.bars(["a", "b"], [1, 2], title="t"))

    assert once() == once()


# --- live and frames


def grey(level, **others):
    return np.full((8, 8), level, np.uint8)


def test_live_redraws_and_says_it(shown):
    slider = make_control("level", (0, 255, 10))
    live(grey, "a grey square", caption=lambda level: f"level {level}", level=slider)
    still, view = shown
    assert still["text/plain"] == "[figure] a grey square" and set(still) == {"text/plain", "text/html"}
    assert set(view) == {WIDGET_VIEW} and "Run the cell, and its controls appear here" in still["text/html"]
    figure = LiveFigure(grey, "a grey square", lambda level: f"level {level}", {"level": slider})
    slider.value = 99
    assert picture_of(figure.picture.value).max() == 99
    assert "level 99" in figure.caption.value and "aria-live" in figure.caption.value


def test_live_shows_errors_and_keeps_the_picture():
    slider = make_control("level", (0, 300, 10))

    def draw(level):
        if level > 255:
            raise ValueError("<too bright>")
        return grey(level)

    figure = LiveFigure(draw, "a square", None, {"level": slider})
    before = figure.picture.value
    slider.value = 300
    assert "ValueError: &lt;too bright&gt;" in figure.problem.value and 'role="alert"' in figure.problem.value
    assert figure.picture.value == before
    slider.value = 20
    assert figure.problem.value == ""


def test_a_caption_that_fails_keeps_picture_and_text_together():
    slider = make_control("level", (0, 255, 10))

    def caption(level):
        if level > 99:
            raise KeyError("no word for it")
        return f"level {level}"

    def draw(level):
        plt.figure()
        return plt.gcf()

    figure = LiveFigure(draw, "a square", caption, {"level": slider})
    before, text, open_before = figure.picture.value, figure.caption.value, plt.get_fignums()
    slider.value = 200
    assert "KeyError" in figure.problem.value and plt.get_fignums() == open_before
    assert (figure.picture.value, figure.caption.value, figure.names.alts) == (before, text, ["level 10"])


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "to_float turns bytes"),
        (torch.full((3, 8, 8), float("nan")), "NaN among the values"),
        (torch.zeros(2, 3, 8, 8), "expected: one; picture_grid shows several"),
        (torch.zeros(0, 3, 8, 8), "expected: one"),
    ],
)
def test_what_is_no_picture_is_refused(picture, problem):
    with pytest.raises((ConfigError, ShapeError), match=problem):
        figures.png_bytes(picture)


def test_bars_show_what_lies_below_zero():
    figure = figures.bars(["up", "down"], [2.0, -3.0])
    low, high = figure.axes[0].get_xlim()
    assert low <= -3 and high > 2
    plt.close(figure)


@pytest.mark.parametrize(
    ("rows", "titles"),
    [({}, None), ({"a": torch.zeros(2, 3, 8, 8), "b": torch.zeros(3, 3, 8, 8)}, None),
     ({"a": torch.zeros(2, 3, 8, 8)}, ["one"])],
)  # fmt: skip
def test_rows_must_have_one_length(rows, titles):
    with pytest.raises(ConfigError, match="picture_rows"):
        figures.picture_rows(rows, titles)


def test_frames_take_a_tensor_of_pictures(shown):
    frames(torch.zeros(3, 3, 8, 8), "three black squares")
    assert len(shown) == 2


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_drawing_that_ends_half_way_leaves_what_was_there(studio, monkeypatch, error):
    assert studio.draw_now()
    before, steps = (studio.picture.value, studio.caption.value, list(studio.names.alts)), type(studio.pipe).steps

    def failing(self, *args, **kwargs):
        for state in steps(self, *args, **kwargs):
            yield state
            if state.step == 2:
                raise error

    monkeypatch.setattr(type(studio.pipe), "steps", failing)
    studio.seed.value = 99
    assert not studio.draw_now() and not studio.draw.disabled
    assert ("out of memory" if str(error) else "Stopped") in studio.status.value
    assert (studio.picture.value, studio.caption.value, studio.names.alts) == before


def test_controls():
    assert isinstance(make_control("num_steps", (1, 50, 20)), ipywidgets.IntSlider)
    assert make_control("num_steps", (1, 50, 20)).description == "num steps"
    assert isinstance(make_control("s", (0, 10.0, 4)), ipywidgets.FloatSlider)
    assert make_control("s", (0, 10, 4, 2)).step == 2
    assert make_control("word", ["a", "b"]).options == ("a", "b")
    given = ipywidgets.Checkbox()
    assert make_control("yes", given) is given
    for bad in (3, (1, 2), ("a", "b", "c"), None):
        with pytest.raises(ConfigError, match="the control 'x'"):
            make_control("x", bad)
    with pytest.raises(ConfigError, match="no control"):
        live(grey, "a square")


def test_frames(shown):
    frames([grey(k) for k in (0, 100, 200)], "darker to lighter", captions=["0", "100", "200"])
    frames([grey(0)], "one")
    assert picture_in(shown[0]["text/html"]).max() == 200
    for bad in ({"captions": ["one"]}, {"start": 3}):
        with pytest.raises(ConfigError):
            frames([grey(0), grey(1)], "two", **bad)
    with pytest.raises(ConfigError, match="at least one"):
        frames([], "none")


# --- the studio


def test_the_studio_draws_what_the_pipeline_draws(studio, pipe):
    assert studio.draw_now()
    wanted = figures.enlarge(figures.to_uint8(pipe.draw([SENTENCE], [7], num_steps=4))[0], 5)
    assert (picture_of(studio.picture.value) == wanted).all()
    assert SENTENCE in studio.caption.value and "seed 7" in studio.caption.value
    assert "Drawn in" in studio.status.value and "steps in a second" in studio.status.value
    assert studio.progress.value == studio.progress.max == 4
    assert studio.progress.description == "Step 4 of 4"
    assert not studio.draw.disabled


def test_the_picture_grows(studio):
    seen, locked = [], []
    studio.num_steps.value = 14
    studio.picture.observe(lambda change: seen.append(change["new"]), "value")
    studio.picture.observe(lambda change: locked.append(studio.draw.disabled), "value")
    studio.draw_now()
    assert len(set(seen)) == 7 and all(locked)


def test_words_make_the_sentence(studio):
    words = {name: choice.value for name, choice in studio.words.items()}
    assert words == {
        "size": "any",
        "color": "red",
        "kind": "bicycle",
        "place": "any",
        "relation": "in front of",
        "second_color": "blue",
        "second_kind": "house",
        "background": "night",
    }
    studio.words["kind"].value = "cat"
    assert studio.sentence.value == "a red cat in front of a blue house at night"
    studio.words["relation"].value = "and"
    studio.words["size"].value = "large"
    assert studio.sentence.value == "a large red cat and a blue house at night"
    studio.words["second_kind"].value = "nothing"
    assert studio.sentence.value == "a large red cat at night"
    assert studio.words["relation"].disabled and studio.words["second_color"].disabled
    studio.words["place"].value = "left"
    studio.words["background"].value = "any"
    assert studio.sentence.value == "a large red cat on the left"


def test_the_sentence_wins(studio):
    studio.sentence.value = "at sunset there is a tiny pink boat on the moonlit bank"
    assert studio.sentence.value == "at sunset there is a tiny pink boat on the moonlit bank"
    assert [studio.words[name].value for name in ("size", "color", "kind", "background")] == [
        "small", "pink", "boat", "sunset"
    ]  # fmt: skip
    assert studio.words["second_kind"].value == "nothing" and studio.words["relation"].disabled
    studio.sentence.value = "xyz"
    assert studio.words["kind"].value == "boat"
    assert studio.draw_now() and "xyz" in studio.caption.value


def test_every_choice_makes_a_sentence_that_reads_back(studio):
    for name, choice in studio.words.items():
        for option in choice.options:
            choice.value = option
            assert studio.composed() == studio.sentence.value, name
            assert parse(studio.sentence.value)


@pytest.mark.parametrize("sentence", ["", "   "])
def test_an_empty_sentence_is_answered_kindly(studio, sentence):
    studio.sentence.value = sentence
    assert studio.draw_now() is False
    assert "Write a sentence first" in studio.status.value and 'role="alert"' in studio.status.value
    assert not studio.draw.disabled


def test_a_long_sentence_is_answered_kindly(studio):
    studio.draw_now()
    before = studio.picture.value
    studio.sentence.value = "a red cat and " * 40
    assert studio.draw_now() is False
    assert "cannot read this sentence" in studio.status.value and "words fit" in studio.status.value
    assert "Traceback" not in studio.status.value and studio.picture.value == before
    assert not studio.draw.disabled


def test_whatever_breaks_is_said(studio, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("<out of memory>")

    monkeypatch.setattr(type(studio.pipe), "steps", broken)
    assert studio.draw_now() is False
    assert "RuntimeError: &lt;out of memory&gt;" in studio.status.value


def test_unknown_words_are_named(studio):
    studio.sentence.value = "a red bycicle and a <b>zzz</b> cat"
    studio.draw_now()
    assert "bycicle" in studio.status.value and "near it: bicycle" in studio.status.value
    assert "none of them is near it" in studio.status.value
    assert "<b>" not in studio.status.value
    assert word_notes("a red cat at night") == []
    assert any("knows these objects: cat" in note for note in word_notes("red"))


def test_another_seed_draws_again(studio):
    studio.draw_now()
    before = studio.picture.value
    studio._random.seed(1)
    studio.another.click()
    assert studio.seed.value != 7 and studio.picture.value != before
    studio.seed.value = -3
    assert studio.seed.value == 0


def test_everything_has_a_name_and_an_explanation(studio):
    controls = [*studio.words.values(), studio.sentence, studio.seed, studio.another]
    controls += [studio.num_steps, studio.guidance, studio.draw]
    assert all(control.description and control.tooltip for control in controls)
    assert (studio.num_steps.min, studio.num_steps.max, studio.guidance.min, studio.guidance.max) == (1, 50, 0, 10)


def test_the_studio_shows_itself_the_same_way_every_time(shown, pipe):
    assert scene_studio(pipe, "a red cat", seed=3) is None
    scene_studio(pipe, "a red cat", seed=3)
    one, view, other, _ = shown
    assert set(view) == {WIDGET_VIEW}
    assert one["text/plain"] == "[figure] Scene studio: the model's picture of 'a red cat' with seed 3."
    assert one == other
    assert picture_in(one["text/html"]).shape == (320, 320, 3)
    assert repr(SceneStudio(pipe, "a red cat", 3)) == "SceneStudio('a red cat', seed=3)"


def test_a_first_sentence_that_cannot_be_drawn_still_shows_the_studio(shown, pipe):
    scene_studio(pipe, "", seed=3)
    assert picture_in(shown[0]["text/html"]).shape == (320, 320, 3)


# --- names, and what stays after many movements


def test_the_alternative_text_follows_the_figure(studio):
    slider = make_control("level", (0, 255, 10))
    figure = LiveFigure(grey, "a square", lambda level: f"level {level}", {"level": slider})
    assert figure.names.alts == ["level 10"] and figure.names in figure.view.children
    slider.value = 20
    assert figure.names.alts == ["level 20"]
    studio.draw_now()
    (alt,) = studio.names.alts
    assert SENTENCE in alt and "seed 7" in alt and studio.names in studio.view.children


def move_live():
    slider = make_control("level", (0, 255, 0))
    figure = LiveFigure(grey, "a level", lambda level: f"level {level}", {"level": slider})
    return lambda k: setattr(slider, "value", k + 1), figure


def move_studio(pipe):
    made = SceneStudio(pipe)
    made.num_steps.value = 1
    kinds = made.words["kind"].options

    def move(k):
        made.words["kind"].value = kinds[k % len(kinds)]
        if k % 20 == 0:
            made.draw_now()

    return move, made


def move_similarity():
    explorer = SimilarityExplorer(torch.zeros(4, 3, 64, 64), list("abcd"), torch.eye(4))
    slider = make_control("picture", (0, 3, 0))
    figure = LiveFigure(explorer.draw, "a matrix", explorer.caption, {"picture": slider})
    return lambda k: setattr(slider, "value", (k + 1) % 2), figure


def move_attention(pipe):
    explorer = AttentionExplorer(record_drawing(pipe, "a red cat", 1, num_steps=3))
    controls = explorer.controls
    return lambda k: (setattr(controls["step"], "value", k % 3), explorer.find(("red", "cat")[k % 2])), explorer


MOVES = {
    "live": lambda pipe: move_live(),
    "similarity": lambda pipe: move_similarity(),
    "studio": move_studio,
    "attention": move_attention,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVES)
def test_nothing_is_left_behind_by_200_movements(name, pipe):
    move, kept = MOVES[name](pipe)
    move(0)
    gc.collect()
    before = len(instances), len(plt.get_fignums()), len(gc.get_objects())
    for k in range(1, 201):
        move(k)
    gc.collect()
    after = len(instances), len(plt.get_fignums()), len(gc.get_objects())
    assert after[:2] == before[:2] and before[1] == 0
    assert after[2] - before[2] < 2000, "objects that nobody frees"  # ten for each movement
    assert kept is not None


def test_the_count_of_what_is_left_behind_counts(pipe):
    before = len(instances)
    leaky = [LiveFigure(grey, "a square", None, {"level": make_control("level", (0, 255, k))}) for k in range(3)]
    assert len(instances) >= before + 3 * 5 and len(leaky) == 3
