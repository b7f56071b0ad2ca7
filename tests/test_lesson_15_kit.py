"""The patients of lesson 15: each has its one fault and no other, and the shipped model stays as it is."""

import pytest
import torch

from ldm_tutor.attention_maps.watch import watch
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import lesson_15_kit as kit
from ldm_tutor.sampling.guidance import Guided

NAMES = "ABCDEXYZ"
NUM = 4


@pytest.fixture(scope="module")
def test_scenes():
    return render_scenes(NUM, "test")


@pytest.fixture(scope="module")
def answers(test_scenes):
    """What each patient does in every part, for the same pictures, sentences and noise."""
    noise = torch.randn(NUM, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    healthy, real = kit.admit("healthy"), to_float(test_scenes.pictures)
    own = healthy.encode(real)

    def zero(x, t, step):
        return 0.1 * x

    def ask(name):
        patient, sums = kit.admit(name), []
        context = healthy.embed(test_scenes.captions)
        with watch(patient.unet, lambda call, probs: sums.append(probs.sum(dim=-1)), "all"):
            seen = patient.noise_in(noise, 500, context)
        return {
            "encode": patient.encode(real),
            "decode": patient.decode(own),
            "embed": patient.embed(test_scenes.captions),
            "noise_in": seen,
            "earlier": patient.noise_in(noise, 100, context),
            "rows": torch.cat([each.flatten() for each in sums]),
            "guided": patient.denoiser(context, 1)(noise, 500, 0),
            "walk": patient.walk(zero, range(NUM), num_steps=3),
            "schedule": patient.schedule.alpha_bar,
        }

    return {name: ask(name) for name in ("healthy", *NAMES)}


BENT = {
    "time": {"noise_in", "earlier", "guided"},
    "scale": {"encode", "decode"},
    "axis": {"noise_in", "earlier", "rows", "guided"},
    "swapped": {"guided"},
    "answer": {"walk"},
    "schedule": {"walk", "schedule"},
    "sentence": {"embed"},
    "pixels": {"encode"},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_patient_differs_from_the_healthy_one_in_its_fault_alone(answers, name):
    healthy, patient = answers["healthy"], answers[name]
    different = {part for part, value in patient.items() if not torch.allclose(value, healthy[part], atol=1e-5)}
    assert different == BENT[kit.fault_of(name)]


def test_what_each_fault_does(answers, test_scenes):
    by_fault = {kit.fault_of(name): answers[name] for name in NAMES}
    healthy = answers["healthy"]
    assert torch.equal(by_fault["time"]["noise_in"], by_fault["time"]["earlier"])
    assert float((by_fault["axis"]["rows"] - 1).abs().max()) > 0.5
    for name in ("healthy", *NAMES):
        if name == "healthy" or kit.fault_of(name) != "axis":
            assert float((answers[name]["rows"] - 1).abs().max()) < 1e-4
    times = kit.FOREIGN_SCALE / kit.admit("healthy").scale_factor
    assert torch.allclose(by_fault["scale"]["encode"], times * healthy["encode"], atol=1e-5)
    assert torch.equal(by_fault["sentence"]["embed"], healthy["embed"].roll(-1, 0))
    patient = kit.admit(next(name for name in NAMES if kit.fault_of(name) == "swapped"))
    empty = patient.pipeline.embed([""])
    noise = torch.randn(NUM, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        unconditional = Guided(patient.unet, empty.expand(NUM, -1, -1), empty, 1)(noise, 500, 0)
    assert torch.allclose(by_fault["swapped"]["guided"], unconditional, atol=1e-5)


def test_every_fault_has_one_patient_and_the_shipped_model_is_untouched():
    assert sorted(map(kit.fault_of, NAMES)) == sorted(kit.FAULTS)
    before = [each.clone() for each in kit.admit("healthy").unet.parameters()]
    for name in NAMES:
        kit.admit(name)
    assert all(map(torch.equal, before, kit.admit("healthy").unet.parameters()))


def test_drawing_is_the_pipelines_own(test_scenes):
    patient = kit.admit("healthy")
    ours = patient.draw(test_scenes.captions[:2], [5, 6])
    theirs = patient.pipeline.draw(test_scenes.captions[:2], [5, 6], num_steps=10)
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["F", "", "a", "Healthy"])
def test_an_unknown_patient_is_refused(name):
    with pytest.raises(ConfigError, match="no such patient"):
        kit.admit(name)


def test_the_chart_marks_alarms_in_words_too():
    readings = {"healthy": {"spread": 1.0, "pull": 0.0}, "A": {"spread": 0.2, "pull": 0.0}}
    alarms = {"healthy": {"spread": False, "pull": False}, "A": {"spread": True, "pull": False}}
    (axes,) = kit.chart(readings, alarms).axes
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.00", "0.20 !", "0.00"]
