"""The drawn scenes: deterministic, truthfully described, correctly split."""

import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ldm_tutor.data.scenes.datasets import Scenes, SceneStream, render_scenes
from ldm_tutor.data.scenes.draw import draw, draw_masks
from ldm_tutor.data.scenes.requests import GROUPS
from ldm_tutor.data.scenes.sampling import MIN_VISIBLE, SPLITS, caption_for, exchanged_twin, near_twin, sample_scene
from ldm_tutor.data.scenes.words import (
    ObjectRequest,
    Request,
    describe,
    parse,
    request_text,
    unknown_words,
    vocabulary,
)
from ldm_tutor.data.scenes.world import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    KINDS,
    MARGIN,
    PLACES,
    SIZES,
    Scene,
    SceneObject,
    place_of,
)
from ldm_tutor.errors import ConfigError

PIXELS = {
    ("train", 0): "702a24d7d120e484e2b6abab6673ea0e662f05e19cecb2a66603583e2eb68fa6",
    ("train", 1): "642c450e5933e881a9394911fa2573a2f66c3a38d378226e3f7c6c260945f860",
    ("test", 5): "8cfee74fc2a00c8ab0572bbe54092e7ed3ca5784ebcd4edece1571d2090a8f2e",
    ("unseen", 7): "519ef46e7791a69674c64d0c89e75c2da534d08727ef46d214a49a7c3731a586",
    ("three", 11): "132711b9bc5d8778e42d0769030a1121528ad0b901b58eed4548bac03b765c30",
}


def sha256(split: str, index: int) -> str:
    return hashlib.sha256(draw(sample_scene(index, split)).tobytes()).hexdigest()


# ---------------------------------------------------------------- the world


def test_held_out_pairs_cover_every_kind_once_and_every_color() -> None:
    assert sorted(kind for kind, _ in HELD_OUT) == sorted(KINDS)
    assert {color for _, color in HELD_OUT} == set(COLORS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_put_places_every_size_inside_the_picture(kind: str, place: str) -> None:
    for size in SIZES:
        each = SceneObject.put(kind, "red", size, place)
        assert each.place == place == place_of(each.x, each.y)
        assert min(each.box) >= MARGIN and max(each.box) <= 1 - MARGIN


def test_scene_survives_its_dict() -> None:
    for index in range(50):
        scene = sample_scene(index, SPLITS[index % 4])
        assert Scene.from_dict(scene.to_dict()) == scene


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "horse"}, "kind is 'horse', expected one of: cat"),
        ({"color": "black"}, "color is 'black'"),
        ({"size": "huge"}, "size is 'huge'"),
        ({"x": 1.5}, "x of the red cat is 1.5, expected 0 to 1"),
        ({"scale": 0.0}, "scale of the red cat is 0.0"),
    ],
)
def test_bad_objects_are_named(changes: dict, message: str) -> None:
    values = SceneObject.put("cat", "red").to_dict() | changes
    with pytest.raises(ConfigError, match=message):
        SceneObject(**values)


def test_bad_scenes_are_named() -> None:
    with pytest.raises(ConfigError, match="background is 'jungle'"):
        Scene(objects=(), background="jungle")
    with pytest.raises(ConfigError, match="seed is -1"):
        Scene(objects=(), background="day", seed=-1)
    with pytest.raises(ConfigError, match="expected a tuple of SceneObject"):
        Scene(objects=[], background="day")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot read a scene"):
        Scene.from_dict({"background": "day"})
    with pytest.raises(ConfigError, match="split is 'valid'"):
        sample_scene(0, "valid")
    with pytest.raises(ConfigError, match="index is -1"):
        sample_scene(-1)


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize(("split", "index"), PIXELS)
def test_pixels_are_the_stored_ones(split: str, index: int) -> None:
    assert sha256(split, index) == PIXELS[split, index]


def test_pixels_are_equal_in_another_process() -> None:
    code = (
        "import hashlib; from ldm_tutor.data.scenes.draw import draw; "
        "from ldm_tutor.data.scenes.sampling import sample_scene; "
        "print(hashlib.sha256(b''.join(draw(sample_scene(i)).tobytes() for i in range(20))).hexdigest())"
    )
    here = hashlib.sha256(b"".join(draw(sample_scene(i)).tobytes() for i in range(20))).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


def test_masks_fill_their_boxes_and_stay_in_them() -> None:
    for index in range(600):
        scene = sample_scene(index, SPLITS[index % 4])
        masks = draw_masks(scene)
        assert masks.sum(axis=0).max() == 1  # each pixel belongs to one object at most
        for each, mask in zip(scene.objects, masks, strict=True):
            x0, y0, x1, y1 = (64 * edge for edge in each.box)
            rows, columns = np.nonzero(mask)
            assert columns.min() > x0 - 2 and columns.max() + 1 < x1 + 2
            assert rows.min() > y0 - 2 and rows.max() + 1 < y1 + 2
            alone = draw_masks(Scene(objects=(each,), background="day"))[0].sum()
            assert alone > 0.4 * (x1 - x0) * (y1 - y0)
            assert mask.sum() >= MIN_VISIBLE * alone


def test_an_object_changes_only_its_surroundings_and_shows_its_color() -> None:
    for color, background in zip(COLORS, (*BACKGROUNDS, "day", "snow"), strict=True):
        for kind in KINDS:
            empty = draw(Scene(objects=(), background=background)).astype(int)
            scene = Scene(objects=(SceneObject.put(kind, color),), background=background)
            changed = (draw(scene).astype(int) != empty).any(axis=2)
            assert (changed & draw_masks(scene)[0]).sum() >= 0.95 * draw_masks(scene).sum()
            x0, y0, x1, y1 = scene.objects[0].box
            outside = np.ones((64, 64), dtype=bool)
            outside[int(64 * y0) - 2 : int(64 * y1) + 4, int(64 * x0) - 2 : int(64 * x1) + 4] = False
            assert not changed[outside].any()


@pytest.mark.parametrize("resolution", [32, 48, 96, 128, 256])
def test_every_resolution_shows_the_same_scene(resolution: int) -> None:
    for index in range(6):
        scene = sample_scene(index)
        picture = draw(scene, resolution)
        assert picture.shape == (resolution, resolution, 3) and picture.dtype == np.uint8
        assert draw_masks(scene, resolution).shape == (len(scene.objects), resolution, resolution)
        coarse = [
            array.reshape(16, side // 16, 16, side // 16, 3).mean(axis=(1, 3))
            for array, side in ((picture, resolution), (draw(scene), 64))
        ]
        assert np.abs(coarse[0] - coarse[1]).mean() < 4


def test_downscaled_large_pictures_are_close_to_small_ones() -> None:
    for index in range(20):
        scene = sample_scene(index)
        reduced = draw(scene, 256).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(reduced - draw(scene)).mean() < 5


@pytest.mark.parametrize("resolution", [31, 257, 64.0])
def test_bad_resolutions_are_named(resolution: float) -> None:
    with pytest.raises(ConfigError, match="expected an integer from 32 to 256"):
        draw(sample_scene(0), resolution)  # type: ignore[arg-type]


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_true_and_survive_parsing(split: str) -> None:
    for index in range(3000):
        scene, caption = sample_scene(index, split), caption_for(index, split)
        request = parse(caption)
        assert request.is_met_by(scene.objects, scene.background), caption
        assert parse(request_text(request)) == request, caption
        assert not unknown_words(caption)


def test_captions_use_the_whole_vocabulary() -> None:
    said = {word for index in range(3000) for word in caption_for(index).replace(",", "").split()}
    assert set(vocabulary()) == said


def ask(kind: str, color: str | None = None, size: str | None = None, place: str | None = None) -> ObjectRequest:
    return ObjectRequest(kind, color, size, place)


@pytest.mark.parametrize(
    ("sentence", "request_"),
    [
        ("a red cat", Request((ask("cat", "red"),))),
        ("Small red cat at night!", Request((ask("cat", "red", "small"),), "night")),
        (
            "at sunset there is a tiny green car at the bottom",
            Request((ask("car", "green", "small", "bottom"),), "sunset"),
        ),
        ("on the moon, on the left side, a huge dog", Request((ask("dog", None, "large", "left"),), "moon")),
        ("a dog in the snow in the center", Request((ask("dog", None, None, "middle"),), "snow")),
        ("a dog that is white, by the sea", Request((ask("dog", "white"),), "beach")),
        ("two orange cars", Request((ask("car", "orange"),) * 2)),
        ("a blue boat behind a white dog", Request((ask("boat", "blue"), ask("dog", "white")), None, "behind")),
        (
            "a small yellow cat to the left of a pink tree by night",
            Request((ask("cat", "yellow", "small"), ask("tree", "pink")), "night", "left of"),
        ),
        (
            "on the left a red ball and on the right a large green car",
            Request((ask("ball", "red", None, "left"), ask("car", "green", "large", "right"))),
        ),
        (
            "a red ball on the left and a large green car on the right in the snow",
            Request((ask("ball", "red", None, "left"), ask("car", "green", "large", "right")), "snow"),
        ),
        (
            "a red cat, a blue ball and a green tree at sunset",
            Request((ask("cat", "red"), ask("ball", "blue"), ask("tree", "green")), "sunset"),
        ),
        (
            "a cat, a red dog in front of a house",
            Request((ask("dog", "red"), ask("house"), ask("cat")), None, "in front of"),
        ),
        ("a bicycle on the left of the picture", Request((ask("bicycle", None, None, "left"),))),
    ],
)
def test_sentences_are_understood(sentence: str, request_: Request) -> None:
    assert parse(sentence) == request_
    assert parse(request_text(request_)) == request_


def test_sentences_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ConfigError, match="no object found in 'a red hous', .*did you mean 'house' for 'hous'"):
        parse("a red hous")
    with pytest.raises(ConfigError, match="backgrounds night and snow"):
        parse("a cat at night in the snow")
    with pytest.raises(ConfigError, match="expected one relation"):
        parse("a cat behind a dog in front of a tree")
    with pytest.raises(ConfigError, match="relation is 'behind' with one object"):
        Request((ask("cat"),), None, "behind")
    with pytest.raises(ConfigError, match="no objects"):
        describe(Scene(objects=(), background="day"), 0)


def test_unknown_words_come_with_similar_ones() -> None:
    assert unknown_words("a rde cat and a bycicle") == [("rde", ["red", "are"]), ("bycicle", ["bicycle", "bicycles"])]


def test_missing_names_the_groups_that_are_wrong() -> None:
    cat, dog = SceneObject.put("cat", "red", "small", "left"), SceneObject.put("dog", "blue", "large", "right")
    request = parse("a small red cat to the left of a large blue dog at night")
    assert request.missing([dog, cat], "night") == {
        "object": False, "color": False, "size": False, "background": False, "relation": False, "count": False,
    }  # fmt: skip
    assert not parse("a cat to the right of a dog").is_met_by([cat, dog], "night")
    assert request.missing([cat, dog], "day")["background"]
    assert request.missing([cat], "night") == {
        "object": True, "color": True, "size": True, "background": False, "relation": True, "count": True,
    }  # fmt: skip
    assert parse("a red cat").missing([cat, dog], "day") == {"object": False, "color": False, "count": True}
    assert parse("a green cat on the right").missing([cat], "day") == {
        "object": False, "color": True, "place": True, "count": False,
    }  # fmt: skip
    assert [group for group in GROUPS if parse("a red cat").asks_for(group)] == ["object", "color", "count"]


def test_in_front_needs_overlap_and_a_lower_edge() -> None:
    house, ball = SceneObject.put("house", "red", "medium", "top"), SceneObject.put("ball", "blue", "small", "bottom")
    far = SceneObject.put("ball", "blue", "small", "right")
    far = replace(far, x=0.84)
    request = parse("a blue ball in front of a red house")
    assert request.is_met_by([house, ball], "day") and not request.is_met_by([house, far], "day")
    assert parse("a red house behind a blue ball").is_met_by([house, ball], "day")


# ---------------------------------------------------------------- splits and data sets


def test_splits_keep_the_held_out_pairs_apart() -> None:
    pairs = {
        split: [[(each.kind, each.color) for each in sample_scene(i, split).objects] for i in range(2000)]
        for split in SPLITS
    }
    assert all(not HELD_OUT & set(each) for split in ("train", "test", "three") for each in pairs[split])
    assert all(len(HELD_OUT & set(each)) == 1 and len(each) <= 2 for each in pairs["unseen"])
    assert {len(each) for each in pairs["three"]} == {3}
    assert {pair for each in pairs["unseen"] for pair in each} >= HELD_OUT
    assert 0.57 < np.mean([len(each) == 1 for each in pairs["train"]]) < 0.63


def test_no_picture_is_in_both_train_and_test() -> None:
    pictures = {split: [sha256(split, index) for index in range(1500)] for split in ("train", "test")}
    assert not set(pictures["train"]) & set(pictures["test"])
    assert len(set(pictures["train"])) == 1500


def test_map_style_items() -> None:
    scenes = Scenes(5, "unseen", seed=3, resolution=32)
    item = scenes[4]
    assert len(scenes) == 5 and item["index"] == 4 and item["caption"] == caption_for(4, "unseen", 3)
    assert item["picture"].shape == (3, 32, 32) and -1 <= item["picture"].min() < item["picture"].max() <= 1
    assert scenes.scene(4) == sample_scene(4, "unseen", 3)
    with pytest.raises(IndexError):
        scenes[5]
    with pytest.raises(ConfigError, match="num_scenes is 0"):
        Scenes(0)


def test_stream_workers_share_the_scenes_and_resume() -> None:
    batches = []
    for batch in DataLoader(SceneStream(block=4), batch_size=4, num_workers=2):
        batches.append(batch["index"].tolist())
        if len(batches) == 5:
            break
    assert batches == [list(range(first, first + 4)) for first in range(0, 20, 4)]
    resumed = next(iter(DataLoader(SceneStream(start=8, block=4), batch_size=4)))
    assert resumed["index"].tolist() == batches[2]


def test_rendered_scenes_are_the_same_in_any_number_of_processes() -> None:
    alone = render_scenes(300, "test", seed=1, start=10, with_masks=True)
    shared = render_scenes(300, "test", seed=1, start=10, with_masks=True, num_workers=2)
    assert alone.pictures.shape == (300, 3, 64, 64) and (alone.pictures == shared.pictures).all()
    assert alone.foreground is not None and (alone.foreground == shared.foreground).all()
    assert alone.captions == shared.captions == [caption_for(index, "test", 1) for index in range(10, 310)]
    assert alone.scenes[0] == sample_scene(10, "test", 1) and len(alone) == 300
    assert (alone.pictures[3].permute(1, 2, 0).numpy() == draw(alone.scenes[3])).all()


def test_a_near_twin_shows_the_same_things_otherwise_arranged() -> None:
    told_apart = 0
    for index in range(300):
        scene, (twin, caption) = sample_scene(index), near_twin(index)
        assert twin == near_twin(index)[0]
        assert twin != scene
        assert twin.background == scene.background
        assert sorted(each.kind for each in twin.objects) == sorted(each.kind for each in scene.objects)
        assert sorted(each.color for each in twin.objects) == sorted(each.color for each in scene.objects)
        assert not HELD_OUT & {(each.kind, each.color) for each in twin.objects}
        assert parse(caption).is_met_by(twin.objects, twin.background)
        told_apart += not parse(caption).is_met_by(scene.objects, scene.background)
    assert told_apart > 250


def test_an_exchanged_twin_has_another_kind_or_colour_or_exchanged_colours_or_sides_and_its_sentence_says_so() -> None:
    changes = Counter()
    for index in range(300):
        scene, (twin, caption) = sample_scene(index), exchanged_twin(index)
        assert exchanged_twin(index) == (twin, caption)
        assert (twin.background, twin.seed) == (scene.background, scene.seed)
        changed = [(a, b) for a, b in zip(scene.objects, twin.objects, strict=True) if a != b]
        mirrored = changed == [(old, replace(old, x=1 - old.x)) for old, _ in changed]
        for old, new in () if mirrored else changed:
            assert (new.size, new.scale, new.place, new.flip) == (old.size, old.scale, old.place, old.flip)
        if mirrored:
            changes["sides"] += 1
        elif len(changed) == 2:
            assert [new for _, new in changed] == [
                replace(old, color=other.color) for (old, _), (other, _) in zip(changed, changed[::-1], strict=True)
            ]
            changes["colours"] += 1
        else:
            ((old, new),) = changed
            changes[(new.kind != old.kind, new.color != old.color)] += 1
        assert not HELD_OUT & {(each.kind, each.color) for each in twin.objects}
        assert parse(caption).is_met_by(twin.objects, twin.background)
        assert not parse(caption).is_met_by(scene.objects, scene.background)
    assert set(changes) == {"colours", "sides", (True, False), (False, True)} and min(changes.values()) > 20
    alone = [i for i in range(300) if len(sample_scene(i).objects) == 1]
    for index in alone:
        own, of_twin = ([w for w in words.split() if w not in ("a", "an")]
                        for words in (caption_for(index), exchanged_twin(index)[1]))  # fmt: skip
        assert sum(a != b for a, b in zip(own, of_twin, strict=True)) == 1
