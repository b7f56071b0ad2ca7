"""What lesson 10 shows beside its own code: holes and boxes on pictures, degradations, the measured figures."""

import json

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from ldm_tutor.data.boxes import Box, scene_boxes, tokenize_boxes
from ldm_tutor.data.degrade import degrade
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import lesson_10_inputs as inputs
from ldm_tutor.lessons import lesson_10_judges as judges
from ldm_tutor.lessons import lesson_10_kit as kit
from ldm_tutor.plots.figures import to_uint8
from ldm_tutor.weights.shipped import shipped_folder

needs_figures = pytest.mark.skipif(
    not (shipped_folder("conditions") / "measured_layout.json").exists(), reason="the measured figures are not there"
)


@pytest.fixture(scope="module")
def scenes():
    return render_scenes(3, "test", with_masks=True)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# --- pictures


def test_painted_scenes_are_the_data_sets(scenes):
    assert torch.equal(kit.paint(*scenes.scenes), to_float(scenes.pictures))
    assert kit.paint(scenes.scenes[0], side=128).shape == (1, 3, 128, 128)


def test_holes_are_where_they_were_asked_for(scenes):
    masks = kit.box_holes([(0, 0, 64, 64), (3, 5, 7, 6), (60, 60, 64, 64)])
    assert masks.shape == (3, 1, 64, 64) and masks.sum(dim=(1, 2, 3)).tolist() == [64 * 64, 4, 16]
    assert masks[1, 0, 5, 3:7].tolist() == [1, 1, 1, 1]
    pictures = to_float(scenes.pictures)
    shown = kit.with_holes(pictures, masks)
    kept = ~(masks[1, 0].numpy() > 0.5)
    assert np.array_equal(shown[1][kept], to_uint8(pictures)[1][kept])
    assert set(np.unique(shown[0])) == {kit._GREY, kit._DARK}


def test_boxes_lie_on_enlarged_pictures(scenes):
    layouts = kit.asked(scenes.scenes)
    assert layouts == [scene_boxes(scene) for scene in scenes.scenes]
    pictures = to_float(scenes.pictures)
    for scale in (1, 3):
        shown = kit.boxed(pictures, layouts, scale=scale)
        assert {each.shape for each in shown} == {(64 * scale, 64 * scale, 3)}
    plain = to_uint8(pictures)[0].repeat(3, axis=0).repeat(3, axis=1)
    assert (kit.boxed(pictures[:1], [[]])[0] == plain).all()
    assert (kit.boxed(pictures[:1], [[Box("cat", 0.1, 0.1, 0.9, 0.9)]])[0] != plain).any()


def test_a_degradation_is_shown_step_by_step_and_ends_where_the_package_does(scenes):
    made, names = kit.degradation(scenes.pictures[0], 16, seed=5)
    assert len(made) == len(names) >= 5 and names[0] == "as it is"
    assert {each.shape for each in made} == {(192, 192, 3)}
    last = degrade(scenes.pictures[:1], 16, [5])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(made[-1][::12, ::12], last)
    said = " ".join(names)
    assert all(word in said for word in ("blur", "noise", "JPEG", "size, 16 pixels"))


def test_every_label_has_a_colour_of_its_own():
    colors = kit.map_colors(torch.arange(15).view(1, 3, 5))[0].reshape(15, 3)
    assert len({tuple(each) for each in colors.tolist()}) == 15


@pytest.mark.parametrize(
    "figure",
    [
        kit.doors_figure,
        lambda: kit.curve_figure([1, 2], {"a": [0.1, 0.2], "b": [0.2, 0.1]}, "x", "y", top=1),
        lambda: kit.curve_figure([1, 2], {"a": [0.1, 0.2]}, "x", "y"),
        lambda: kit.grid_figure(torch.zeros(1, 3, 8, 8), (0.1, 0.1, 0.5, 0.5), (0.1, 0.2, 0.5, 0.6), 4),
    ],
)
def test_diagrams_have_axes(figure):
    assert len(figure().axes) == 1


# --- the exercises' own arithmetic is the package's


def test_the_exercises_tokens_are_the_packages():
    boxes = [Box("cat", 0.03, 0.11, 0.52, 0.97), Box("tree", 0, 0, 1, 1)]
    row = [token for kind, box in zip((0, 5), boxes, strict=True) for token in judges.right_tokens(kind, box.rect, 32)]
    assert tokenize_boxes([boxes])[0, :6].tolist() == row


def test_the_exercises_channels_are_the_packages_in_stable_diffusions_form():
    from tiny import make_pipeline

    from ldm_tutor.conditions.channels import inpainting_channels

    autoencoder = make_pipeline().autoencoder
    pictures, masks = kit.paint(*render_scenes(2, "test").scenes), kit.box_holes([(0, 0, 32, 20), (9, 9, 30, 40)])
    noisy, scale = torch.randn(2, 4, 16, 16), autoencoder.config.scale_factor

    def encode(each):
        with torch.no_grad():
            return autoencoder.encode(each).mode()

    made = inputs.stacked(noisy, pictures, masks, encode, scale)
    assert torch.allclose(made[:, 4:], inpainting_channels(autoencoder, pictures, masks, "sd"), atol=1e-5)


# --- measured


def entry(value):
    return {"value": value, "interval": [0.9 * value, 1.1 * value], "num": 600}


def report(kind):
    """A made-up report with every figure that the lesson looks for."""
    made = {}
    names = {name for k, _, ways in kit._PANELS if k == kind for each in ways.values() for name in each}
    for number, name in enumerate(sorted(names | set(kit.SHOWN[kind]))):
        *groups, last = name.split(".")
        place = made
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = entry(0.5 + number)
    return made


def write(folder, wrap):
    for kind in kit.MEASURED:
        (folder / f"measured_{kind}.json").write_text(json.dumps(wrap(report(kind))))


@pytest.mark.parametrize("wrap", [lambda made: made, lambda made: {"settings": {}, "figures": made}])
def test_measured_figures_are_drawn_and_told(tmp_path, wrap):
    write(tmp_path, wrap)
    measured = kit.load_measured(tmp_path)
    assert set(measured) == set(kit.MEASURED)
    figure = kit.measured_figure(measured)
    assert [len(axes.containers) >= 4 for axes in figure.axes] == [True] * 4
    for kind, names in kit.SHOWN.items():
        for name in names:
            text = kit.told(measured, kind, name)
            assert text.startswith(kind) and text.endswith("of 600") and "_" not in text


@pytest.mark.parametrize(("kind", "panels"), [("layout", 1), ("inpainting", 2), ("upscaling", 1)])
def test_what_is_measured_so_far_is_shown(tmp_path, kind, panels):
    assert kit.load_measured(tmp_path) == {}
    with pytest.raises(ConfigError, match="nothing is measured"):
        kit.measured_figure({})
    (tmp_path / f"measured_{kind}.json").write_text(json.dumps(report(kind)))
    measured = kit.load_measured(tmp_path)
    assert list(measured) == [kind]
    assert sum(bool(axes.containers) for axes in kit.measured_figure(measured).axes) == panels


@pytest.mark.parametrize("damage", ["no JSON", "a list", "without figures"])
def test_a_broken_file_is_named(tmp_path, damage):
    write(tmp_path, lambda made: made)
    path = tmp_path / "measured_inpainting.json"
    path.write_text({"no JSON": "{", "a list": "[1]", "without figures": "{}"}[damage])
    with pytest.raises(ConfigError, match=r"measured_inpainting\.json.*ldm-tutor evaluate inpainting"):
        kit.load_measured(tmp_path)


@needs_figures
def test_the_shipped_figures_have_what_the_lesson_shows():
    measured = kit.load_measured()
    for kind in measured:
        for name in kit.SHOWN[kind]:
            assert int(kit.told(measured, kind, name).rsplit(" ", 1)[1]) >= 512
    assert measured and kit.measured_figure(measured).axes
