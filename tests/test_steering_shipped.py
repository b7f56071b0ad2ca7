"""The shipped conditions keep what their card says; bounds lie under what `ldm-tutor evaluate` measured."""

import json

import pytest

from ldm_tutor.config import CONDITIONS
from ldm_tutor.evaluation import load_judge
from ldm_tutor.evaluation_steering import evaluate_inpainting, evaluate_layout, evaluate_upscaling
from ldm_tutor.models.condition import fingerprint
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.steering import load_steered
from ldm_tutor.weights.files import check_sums, read_header
from ldm_tutor.weights.shipped import shipped_folder

MOST_BYTES = 12e6
FOLDER = shipped_folder("conditions")
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the shipped weights are not there")


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def judge():
    return load_judge()


def test_files_are_whole_small_and_documented(pipe):
    names = check_sums(FOLDER)
    assert {f"{kind}.safetensors" for kind in CONDITIONS} <= set(names)
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < MOST_BYTES
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "ldm-tutor train denoiser --condition layout" in card
    for kind in CONDITIONS:
        metadata = read_header(FOLDER / f"{kind}.safetensors")["metadata"]
        assert metadata["base"] == fingerprint(pipe.unet)  # it belongs to the U-Net beside it
        assert f"| {metadata['steps']} |" in card
        assert (FOLDER / "logs" / f"{kind}.csv").read_text(encoding="utf-8").startswith("step,")


def test_what_was_measured_is_there_with_its_command():
    found = sorted(FOLDER.glob("measured_*.json"))
    assert found
    for path in found:
        report = json.loads(path.read_text(encoding="utf-8"))
        assert report["settings"]["num"] >= 512
        assert report["command"].startswith(f"ldm-tutor evaluate {report['target']} --num ")
        assert not any(word.startswith("/") for word in report["command"].split())  # as on any machine
        assert path.stem == f"measured_{report['target']}"


@pytest.mark.slow
def test_boxes_are_kept_to(pipe, judge):
    report = evaluate_layout(load_steered("layout", pipeline=pipe), judge, num=48, num_steps=6)
    assert report["with_sentence"]["object_in_box"]["value"] > 0.8
    assert report["with_sentence"]["mean_iou"]["value"] > 0.52
    assert report["object_in_box"]["value"] > 0.65
    assert report["mean_iou"]["value"] > 0.42
    assert report["judge_on_true_scenes"]["mean_iou"]["value"] > 0.9


@pytest.mark.slow
def test_holes_are_filled(pipe, judge):
    report = evaluate_inpainting(load_steered("inpainting", pipeline=pipe), judge, num=24, num_steps=6)
    assert report["object_found"]["value"] > 0.75
    assert report["object_found_mean_filled"]["value"] < 0.2
    assert report["outside_unchanged"]["value"] == 1
    assert report["gain_over_mean_db"]["value"] > 4


@pytest.mark.slow
def test_small_pictures_become_sharp_and_stay_true(pipe, judge):
    report = evaluate_upscaling(load_steered("upscaling", pipeline=pipe), judge, num=12, num_steps=6, sampler="ddim")
    assert report["perceptual_ratio"]["value"] < 0.6
    assert report["psnr_gain_db"]["value"] > -1
    assert report["consistency_db"]["value"] > 30
