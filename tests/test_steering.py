"""Steered drawing: every condition from one model, what it promises, and what it refuses; training and measuring it."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny import make_pipeline, save_folder
from typer.testing import CliRunner

from ldm_tutor.cli.main import app
from ldm_tutor.config import CONDITIONS
from ldm_tutor.data.boxes import Box, scene_boxes
from ldm_tutor.data.degrade import shrink
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError, ShapeError, WeightsError
from ldm_tutor.metrics import steering as measure
from ldm_tutor.metrics.reading import Reading, SeenThing
from ldm_tutor.models.condition import Condition, fingerprint, steered_unet
from ldm_tutor.steering import Steered, back_project, compose, load_steered, repaint
from ldm_tutor.training import conditions as training
from ldm_tutor.training.loop import Budget, step_generator, train
from ldm_tutor.training.recipe import TrainingOptions
from ldm_tutor.training.ship_conditions import ship_conditions, write_card
from ldm_tutor.weights.files import check_sums, load_model, read_header, save_model

FAST = {"num_steps": 2}
CAT = Box("cat", 0.1, 0.2, 0.5, 0.7)


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def steered(pipe):
    """One Steered per kind, with a condition that has learned something (noise)."""

    def make(kind):
        generator = torch.Generator().manual_seed(0)
        config = training.condition_config(kind, pipe.unet.config, 2)
        condition = Condition(config)
        with torch.no_grad():
            for parameter in condition.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return Steered(pipe, config, steered_unet(condition, pipe.unet), condition.encoder)

    return {kind: make(kind) for kind in CONDITIONS}


@pytest.fixture
def pictures():
    return to_float(render_scenes(2, "test", 0).pictures)


@pytest.fixture
def masks():
    made = torch.zeros(2, 1, 64, 64)
    made[0, :, 10:40, 5:30] = 1
    made[1, :, 33:61, 20:59] = 1
    return made


# --- drawing


def calls(steered, pictures, masks):
    small, maps = shrink(pictures, 4), torch.arange(2)[:, None, None].expand(2, 64, 64)
    return {
        "layout": lambda rows, **more: steered["layout"].from_boxes([[[CAT], []][i] for i in rows], list(rows), **more),
        "inpainting": lambda rows, **more: steered["inpainting"].inpaint(
            pictures[rows], masks[rows], list(rows), **more
        ),
        "upscaling": lambda rows, **more: steered["upscaling"].upscale(small[rows], list(rows), **more),
        "class": lambda rows, **more: steered["class"].from_classes([["cat", 3][i] for i in rows], list(rows), **more),
        "semantic": lambda rows, **more: steered["semantic"].from_map(maps[rows], list(rows), **more),
    }


@pytest.mark.parametrize("kind", CONDITIONS)
def test_one_seed_is_one_picture_alone_or_in_a_batch(steered, pictures, masks, kind):
    draw = calls(steered, pictures, masks)[kind]
    both, second = draw([0, 1], **FAST), draw([1], **FAST)
    assert both.shape == (2, 3, 64, 64)
    assert both.min() >= -1 and both.max() <= 1
    assert torch.allclose(both[1:], second, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


@pytest.mark.parametrize("kind", ["layout", "inpainting", "upscaling", "semantic"])
def test_a_sentence_counts_too(steered, pictures, masks, kind):
    draw = calls(steered, pictures, masks)[kind]
    silent = draw([0, 1], **FAST)
    told = draw([0, 1], prompts=["a red cat", ""], **FAST)
    assert not torch.allclose(told[0], silent[0], atol=1e-3)
    assert torch.allclose(told[1], silent[1], atol=1e-4)  # an empty text is no sentence
    for prompts in (["a red cat"], "a red cat"):
        with pytest.raises(ConfigError, match="prompts"):
            draw([0, 1], prompts=prompts, **FAST)


def test_boxes_change_the_picture(steered):
    draw = steered["layout"].from_boxes
    first = draw([[CAT]], [0], **FAST)
    moved = draw([[dataclasses.replace(CAT, x0=0.5, x1=0.9)]], [0], **FAST)
    nothing = draw([[]], [0], **FAST)
    assert not torch.allclose(first, moved, atol=1e-3)
    assert not torch.allclose(first, nothing, atol=1e-3)


def test_what_is_dropped_is_no_box_and_no_sentence(steered):
    given, dropped = steered["layout"].given_boxes([[CAT]], ["a red cat"])
    same, empty = steered["layout"].given_boxes([[]], [""])
    assert torch.allclose(same.context, dropped.context, atol=1e-5)
    assert torch.equal(empty.context, dropped.context)
    assert given.context.shape == (1, 32 + 9, 16)
    given, dropped = steered["class"].given_classes(["cat", 8])
    assert given.context.shape == (2, 1, 16) and dropped.context.shape == (1, 1, 16)


def test_steps_can_be_watched_and_end_at_the_drawing(steered):
    given = steered["layout"].given_boxes([[CAT]])
    states = list(steered["layout"].steps(given, [5], num_steps=3, guidance=2.0))
    assert [state.step for state in states] == [0, 1, 2]
    drawn = steered["layout"].from_boxes([[CAT]], [5], num_steps=3, guidance=2.0)
    assert torch.equal(steered["layout"].pipeline.decode(states[-1].latents), drawn)


@pytest.mark.parametrize("way", ["trained", "untrained"])
def test_outside_the_hole_nothing_changes(steered, pipe, pictures, masks, way):
    if way == "trained":
        filled = steered["inpainting"].inpaint(pictures, masks, [0, 1], **FAST)
    else:
        filled = repaint(pipe, pictures, masks, [0, 1], prompts=["a red cat", ""], **FAST)
    outside = masks.expand_as(pictures) == 0
    assert torch.equal(filled[outside], pictures[outside])
    assert not torch.allclose(filled[~outside], pictures[~outside], atol=0.05)
    assert all(measure.same_outside(filled, pictures, masks))


def test_masks_of_zeros_and_of_ones(steered, pipe, pictures):
    nothing, everything = torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64)
    for way in (steered["inpainting"].inpaint, lambda *given, **more: repaint(pipe, *given, **more)):
        assert torch.equal(way(pictures, nothing, [0, 1], **FAST), pictures)
        fresh = way(pictures, everything, [0, 1], **FAST)
        assert fresh.isfinite().all() and not torch.allclose(fresh, pictures, atol=0.1)
    # with nothing left of it, the picture does not matter
    other = steered["inpainting"].inpaint(pictures.flip(0), everything, [0, 1], **FAST)
    assert torch.allclose(other, steered["inpainting"].inpaint(pictures, everything, [0, 1], **FAST), atol=1e-5)


def test_bad_holes_are_refused(steered, pipe, pictures, masks):
    for way in (steered["inpainting"].inpaint, lambda *given, **more: repaint(pipe, *given, **more)):
        with pytest.raises(ShapeError, match="one mask"):
            way(pictures, masks[..., :32], [0, 1])
        with pytest.raises(ShapeError, match="one mask"):
            way(pictures, masks[:1], [0, 1])
        with pytest.raises(ConfigError, match="0 .picture. and 1 .hole. only"):
            way(pictures, masks * 0.5, [0, 1])
        with pytest.raises(ConfigError, match="pixel values; given: 255"):
            way(255 * pictures.abs().ceil(), masks, [0, 1])
        with pytest.raises(ShapeError, match="b, 3, H, W"):
            way(pictures[:, :1], masks, [0, 1])
    with pytest.raises(ShapeError, match="multiples of"):
        steered["inpainting"].inpaint(torch.zeros(1, 3, 60, 63), torch.ones(1, 1, 60, 63), [0])
    with pytest.raises(ConfigError, match="one seed per picture"):
        steered["inpainting"].inpaint(pictures, masks, [0])


def test_a_mask_of_bools_is_a_mask(steered, pictures, masks):
    given = {"num_steps": 2}
    of_bools = steered["inpainting"].inpaint(pictures, masks.bool(), [0, 1], **given)
    assert torch.equal(of_bools, steered["inpainting"].inpaint(pictures, masks, [0, 1], **given))


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (20, 37), (5, 9), (1, 1), (16, 64)])
def test_small_pictures_of_any_size(steered, size):
    small = torch.rand(1, 3, *size) - 0.5
    large = steered["upscaling"].upscale(small, [0], **FAST)
    assert large.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert large.isfinite().all()


def test_the_result_shrunk_again_is_the_small_picture(steered, pictures):
    small = shrink(pictures, 4)
    fitting = steered["upscaling"].upscale(small, [0, 1], **FAST)
    free = steered["upscaling"].upscale(small, [0, 1], consistent=False, **FAST)
    assert (measure.consistency(fitting, small) > 30).all()
    assert (measure.consistency(free, small) < measure.consistency(fitting, small)).all()
    assert not torch.allclose(back_project(free, small), fitting, atol=0.01)  # it counts at every step
    assert (measure.consistency(back_project(free, small), small) > 30).all()


def test_bad_small_pictures_are_refused(steered):
    up = steered["upscaling"].upscale
    for shape in ((1, 1, 16, 16), (3, 16, 16), (1, 3, 0, 4), (1, 3, 16, 257)):
        with pytest.raises(ShapeError, match="small pictures"):
            up(torch.zeros(shape), [0], **FAST)
    with pytest.raises(ConfigError, match="pixel values"):
        up(torch.full((1, 3, 16, 16), 200.0), [0], **FAST)
    with pytest.raises(ConfigError, match="pixel values"):
        up(torch.full((1, 3, 16, 16), float("nan")), [0], **FAST)


def test_bad_classes_and_maps_are_refused(steered):
    for bad in (["cow"], [9], [-1], [1.5], [True]):
        with pytest.raises(ConfigError, match="class"):
            steered["class"].from_classes(bad, [0])
    with pytest.raises(ConfigError, match="a list of classes"):
        steered["class"].from_classes("cat", [0])
    maps = torch.zeros(1, 64, 64, dtype=torch.long)
    for bad in (maps.float(), maps[:, :32], maps[0]):
        with pytest.raises(ShapeError, match="label maps"):
            steered["semantic"].from_map(bad, [0])
    for bad in (maps + 15, maps - 1):
        with pytest.raises(ConfigError, match="label number"):
            steered["semantic"].from_map(bad, [0])


def test_too_many_boxes_and_unknown_kinds_are_refused(steered):
    with pytest.raises(ConfigError, match="too many boxes"):
        steered["layout"].from_boxes([[CAT] * 4], [0])
    with pytest.raises(ConfigError, match="cow"):
        steered["layout"].from_boxes([[dataclasses.replace(CAT, kind="cow")]], [0])
    with pytest.raises(ConfigError, match="list of boxes per picture"):
        steered["layout"].from_boxes([CAT], [0])
    with pytest.raises(ConfigError, match="one seed per picture"):
        steered["layout"].from_boxes([[CAT]], [0, 1])


def test_another_condition_says_which_one_can(steered, pictures, masks):
    with pytest.raises(ConfigError, match=r"load_steered\('inpainting'\)"):
        steered["layout"].inpaint(pictures, masks, [0, 1])
    with pytest.raises(ConfigError, match=r"load_steered\('layout'\)"):
        steered["class"].from_boxes([[CAT]], [0])


def test_compose_takes_the_hole_from_one_and_the_rest_from_the_other(pictures, masks):
    drawn = torch.zeros_like(pictures)
    made = compose(drawn, pictures, masks)
    hole = masks.expand_as(made) == 1
    assert not made[hole].any() and torch.equal(made[~hole], pictures[~hole])


# --- files


def test_a_condition_is_loaded_with_its_own_unet_and_no_other(tmp_path, pipe):
    config = training.condition_config("class", pipe.unet.config, 2)
    metadata = {"base": fingerprint(pipe.unet)}
    path = tmp_path / "class.safetensors"
    save_model(path, Condition(config), kind="condition", config=config, metadata=metadata)
    assert load_steered("class", tmp_path, pipeline=pipe).config == config
    with pytest.raises(WeightsError, match="another U-Net"):
        load_steered("class", tmp_path, pipeline=make_pipeline(seed=1))
    with pytest.raises(ConfigError, match="bfloat16; expected: float32"):
        load_steered("class", tmp_path, pipeline=dataclasses.replace(pipe, unet=copy.deepcopy(pipe.unet).bfloat16()))
    with pytest.raises(ConfigError, match="given: 'meta'; expected: cpu"):
        load_steered("class", tmp_path, "meta", pipeline=pipe)
    with pytest.raises(WeightsError, match="no such file"):
        load_steered("layout", tmp_path, pipeline=pipe)
    path.rename(tmp_path / "layout.safetensors")
    with pytest.raises(WeightsError, match="another condition"):
        load_steered("layout", tmp_path, pipeline=pipe)
    with pytest.raises(ConfigError, match="one of"):
        load_steered("weather", tmp_path, pipeline=pipe)


# --- training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("tiny"))


def options(folder, out, **more):
    given = {"num_scenes": 64, "precision": "float32", "device": "cpu", "show_progress": False} | more
    return TrainingOptions(folder=out, start_from=folder, **given)


@pytest.mark.parametrize("kind", CONDITIONS)
def test_training_writes_a_condition_that_draws(tmp_path, folder, pipe, kind):
    before = fingerprint(pipe.unet)
    (path,) = training.train_condition(kind, Budget(steps=3), options(folder, tmp_path))
    header = read_header(path)
    assert header["metadata"]["steps"] == 3 and header["metadata"]["base"] == before
    condition = load_model(path, "condition")
    assert any(bool(part.up.any()) for part in condition.differences.parts.values())  # it has learned something
    loaded = load_steered(kind, tmp_path, pipeline=pipe)
    assert fingerprint(loaded.unet) != before
    assert (tmp_path / f"{kind}.csv").read_text().startswith("step,samples,seconds,loss")


def test_a_resumed_training_is_the_unbroken_one(tmp_path, folder):
    whole = training.train_condition("layout", Budget(steps=4), options(folder, tmp_path / "whole"))[0]
    parts = options(folder, tmp_path / "parts")
    broken_off = train(training._build("layout", parts, None), Budget(steps=4), parts.folder, seed=parts.seed)
    next(broken_off), next(broken_off)
    broken_off.close()
    again = training.train_condition("layout", Budget(steps=4), parts, resume=True)[0]
    resumed = load_model(again, "condition").state_dict()
    for name, value in load_model(whole, "condition").state_dict().items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.slow
def test_a_condition_learns(tmp_path, folder):
    """On a handful of pictures, the loss with the small picture falls below that without."""
    stage = training._build("upscaling", options(folder, tmp_path), 0)
    first = [stage.train_step(step_generator(0, step), 0.0)["loss"] for step in range(5)]
    for step in range(5, 200):
        last = stage.train_step(step_generator(0, step), 0.3)["loss"]
    assert last < 0.8 * sum(first) / 5


def test_inputs_are_kept_and_belong_to_their_scenes(tmp_path, folder):
    stage = training._build("inpainting", options(folder, tmp_path), None)
    kept = tmp_path / "inpainting.inputs.safetensors"
    stamp = kept.stat().st_mtime_ns
    again = training._build("inpainting", options(folder, tmp_path), None)
    assert kept.stat().st_mtime_ns == stamp
    for name, value in stage.inputs.items():
        assert torch.equal(value, again.inputs[name])
    training._build("inpainting", options(folder, tmp_path, seed=1), None)
    assert kept.stat().st_mtime_ns != stamp
    assert set(stage.inputs["mask"].unique().tolist()) == {0, 1}
    shares = stage.inputs["mask"].float().mean(dim=(1, 2, 3))
    assert (shares == 1).any() and (shares < 0.3).any()  # whole pictures, and small holes


def test_shipping_halves_and_documents(tmp_path, folder):
    for kind in ("class", "layout"):
        training.train_condition(kind, Budget(steps=2), options(folder, tmp_path / kind))
    card = ship_conditions([tmp_path / "class"], tmp_path / "shipped")
    ship_conditions([tmp_path / "layout"], tmp_path / "shipped")
    check_sums(tmp_path / "shipped")
    text = card.read_text()
    assert "| class |" in text and "| layout |" in text and "not measured yet" in text
    stored = load_model(tmp_path / "shipped" / "class.safetensors", "condition", dtype=None)
    assert {value.dtype for value in stored.parameters()} == {torch.float16}
    figure = {"value": 0.5, "interval": [0.4, 0.6], "num": 512}
    report = {name: figure for name in ("object_in_box", "mean_iou")}
    written = json.dumps({"figures": report | {"with_sentence": report}})
    (tmp_path / "shipped" / "measured_layout.json").write_text(written)
    assert "| layout mean_iou | 0.5 | 0.4 to 0.6 | 512 |" in write_card(tmp_path / "shipped").read_text()
    with pytest.raises(WeightsError, match="no trained condition"):
        ship_conditions([tmp_path], tmp_path / "shipped")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["clip", "--condition", "layout"], "for the denoiser"),
        (["denoiser", "--rank", "4"], "goes with --condition"),
        (["denoiser", "--condition", "weather"], "weather"),
        (["denoiser", "--condition", "layout", "--rank", "-1"], "-1"),
        (["denoiser", "--condition", "layout", "--decoder-only", "--start-from", "."], "--decoder-only"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(tmp_path, words, problem):
    done = CliRunner().invoke(app, ["train", *words, "--steps", "1", "--out", str(tmp_path)])
    assert done.exit_code != 0
    assert problem in done.output


# --- measuring


def thing(kind, box, color="red"):
    x0, y0, x1, y1 = box
    return SeenThing(kind, color, "small", (x0 + x1) / 2, (y0 + y1) / 2, box, 1.0)


def test_boxes_found_counts_kind_place_and_number():
    layouts = [[Box("cat", 0.1, 0.1, 0.5, 0.5)], [Box("cat", 0.1, 0.1, 0.5, 0.5), Box("dog", 0.5, 0.5, 0.9, 0.9)]]
    readings = [
        Reading((thing("cat", (0.1, 0.1, 0.5, 0.5)),), "day"),
        Reading((thing("dog", (0.1, 0.1, 0.5, 0.5)), thing("dog", (0.5, 0.5, 0.7, 0.9))), "day"),
    ]
    figures = {name: figure["value"] for name, figure in measure.boxes_found(readings, layouts).items()}
    assert figures["object_in_box"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["all_in_boxes"] == 0.5
    assert figures["mean_iou"] == pytest.approx((1 + 0 + 0.5) / 3, abs=1e-4)
    assert figures["nothing_more"] == 1
    far = [Reading((thing("cat", (0.5, 0.5, 0.9, 0.9)),), "day")]
    assert measure.boxes_found(far, layouts[:1])["object_in_box"]["value"] == 0
    with pytest.raises(ConfigError, match="one layout per picture"):
        measure.boxes_found(readings, layouts[:1])


def test_the_quality_of_a_hole_counts_the_hole_alone(masks):
    pictures = torch.zeros(2, 3, 64, 64)
    wrong_outside = pictures + 0.5 * (1 - masks)
    assert (measure.hole_psnr(wrong_outside, pictures, masks) == 60).all()
    assert measure.same_outside(wrong_outside, pictures, masks) == [False, False]
    wrong_inside = pictures + 0.2 * masks
    assert measure.hole_psnr(wrong_inside, pictures, masks).tolist() == pytest.approx([20, 20], abs=1e-3)
    assert measure.same_outside(wrong_inside, pictures, masks) == [True, True]


def test_the_mean_is_that_of_what_can_be_seen(masks):
    pictures = torch.where(masks > 0.5, torch.tensor(1.0), torch.tensor(-0.5)).expand(-1, 3, -1, -1)
    assert torch.allclose(measure.mean_filled(pictures, masks), torch.full_like(pictures, -0.5))


def test_a_ratio_of_means_with_its_interval():
    found = measure.ratio([1.0, 2.0, 3.0] * 50, [2.0, 4.0, 6.0] * 50)
    assert found.value == pytest.approx(0.5) and found.interval == pytest.approx((0.5, 0.5))
    spread = measure.ratio([1.0, 3.0] * 50, [2.0, 2.0] * 50)
    assert spread.interval[0] < 1 < spread.interval[1]
    with pytest.raises(ConfigError, match="ratio"):
        measure.ratio([1.0], [])


def test_cases_hide_a_whole_object_or_none():
    scenes = render_scenes(12, "test", 0, with_masks=True)
    cases = measure.hidden_objects(scenes, to_float(scenes.pictures), 0)
    for scene, front, mask, box in zip(scenes.scenes, scenes.foreground, cases.masks, cases.boxes, strict=True):
        number = 1 + [each.kind for each in scene.objects].index(box.kind)
        if [each.kind for each in scene.objects].count(box.kind) == 1:
            assert (mask[0] >= (front == number)).all()
    background = measure.background_holes(12, 0)
    assert len(background.pictures) == len(background.masks) == len(background.captions) == 12
    assert torch.equal(measure.background_holes(12, 0).masks, background.masks)


needs_weights = pytest.mark.skipif(
    not (Path(__file__).parents[1] / "data" / "weights" / "scenes").exists(), reason="the shipped weights are not there"
)


@needs_weights
def test_the_ruler_first_boxes_read_from_true_scenes():
    from ldm_tutor.evaluation import load_judge
    from ldm_tutor.metrics.reading import read_pictures

    scenes = render_scenes(120, "test", 0)
    layouts = [scene_boxes(scene) for scene in scenes.scenes]
    found = measure.boxes_found(read_pictures(load_judge(), to_float(scenes.pictures)), layouts)
    assert found["object_in_box"]["value"] > 0.98
    assert found["mean_iou"]["value"] > 0.9
