"""Metrics against cases whose answer is known."""

import math

import pytest
import torch

from ldm_tutor.config import JudgeConfig
from ldm_tutor.data.scenes.datasets import render_scenes
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.metrics.fid import frechet_distance
from ldm_tutor.metrics.figures import mean, share
from ldm_tutor.metrics.pictures import high_frequency_energy, psnr
from ldm_tutor.metrics.reading import Reading, SeenThing, attribute_accuracy, read_pictures
from ldm_tutor.metrics.retrieval import distinct_batches
from ldm_tutor.models.judge import Judge, JudgeMaps
from ldm_tutor.training.stages.judge import judge_targets


def test_share_has_wilsons_interval():
    found = share([True] * 95 + [False] * 5)
    assert found.value == 0.95
    assert found.interval == pytest.approx((0.8883, 0.9785), abs=1e-3)  # Wilson 1927 at 95 of 100
    assert share([True] * 10).interval[1] == 1
    assert share([True] * 10).interval[0] < 0.75
    with pytest.raises(ConfigError, match="share of nothing"):
        share([])


def test_mean_has_an_interval_only_with_several_values():
    found = mean([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.interval[1] - 2 == pytest.approx(1.96 / math.sqrt(3))
    assert mean([4.0]).interval is None


def test_high_frequency_energy_of_stripes_noise_and_blur():
    x = torch.arange(32.0)
    coarse, fine = (torch.cos(2 * math.pi * x * waves / 32).expand(1, 3, 32, 32) for waves in (4, 12))
    assert float(high_frequency_energy(coarse)) == pytest.approx(0, abs=1e-6)
    assert float(high_frequency_energy(fine)) == pytest.approx(0.5, rel=1e-4)  # the mean square of a cosine
    assert float(high_frequency_energy(2 * fine)) == pytest.approx(2.0, rel=1e-4)
    assert float(high_frequency_energy(fine, cutoff=0.4)) == pytest.approx(0, abs=1e-6)
    noise = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    share = 1 - math.pi * 0.25**2  # white noise has the same power everywhere: what lies outside of the circle
    assert high_frequency_energy(noise).tolist() == pytest.approx([share] * 8, rel=0.05)
    blurred = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    assert float(high_frequency_energy(blurred).max()) < 0.1


def test_psnr_in_decibels():
    a = torch.zeros(2, 3, 8, 8)
    b = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.02)])
    assert psnr(a, b).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
    assert torch.isinf(psnr(a, a)).all()


def test_frechet_distance_of_known_gaussians():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    b = 2 * torch.randn(20_000, 3, generator=generator, dtype=torch.float64) + torch.tensor([3.0, 0, 0])
    assert frechet_distance(a, b) == pytest.approx(9 + 3 * (2 - 1) ** 2, rel=0.03)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_agrees_with_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    a = torch.randn(300, 6, generator=generator, dtype=torch.float64) @ mix
    b = torch.randn(300, 6, generator=generator, dtype=torch.float64) + 0.3
    root = linalg.sqrtm(torch.cov(a.T).numpy() @ torch.cov(b.T).numpy())
    gap = float((a.mean(0) - b.mean(0)).square().sum())
    expected = gap + float(torch.cov(a.T).trace() + torch.cov(b.T).trace()) - 2 * root.real.trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_needs_more_than_one_vector():
    with pytest.raises(ShapeError, match="two or more"):
        frechet_distance(torch.zeros(1, 4), torch.zeros(9, 4))


class TruthfulJudge(Judge):
    """Answers with the truth of given scenes instead of looking."""

    def __init__(self, scenes):
        super().__init__(JudgeConfig(channels=8))
        truth = judge_targets(scenes, 16)
        b = len(scenes)
        maps = {n: torch.zeros(b, k, 16, 16) for n, k in (("kind", 9), ("color", 8), ("size", 3))}
        for name, value in maps.items():
            value[truth.rows, getattr(truth, name), truth.ys, truth.xs] = 9.0
        offset, extent = torch.zeros(b, 2, 16, 16), torch.zeros(b, 2, 16, 16)
        offset[truth.rows, :, truth.ys, truth.xs] = truth.offset
        extent[truth.rows, :, truth.ys, truth.xs] = truth.extent
        heat = torch.logit(truth.heat.clamp(1e-4, 1 - 1e-4))
        background = torch.nn.functional.one_hot(truth.background, 6).float()
        self.maps = JudgeMaps(heat, maps["kind"], maps["color"], maps["size"], offset, extent, background)

    def forward(self, pictures):
        return self.maps


def test_reading_finds_exactly_what_is_there():
    data = render_scenes(100, "test")
    readings = read_pictures(TruthfulJudge(data.scenes), torch.zeros(100, 3, 64, 64))
    for reading, scene in zip(readings, data.scenes, strict=True):
        seen = sorted((o.kind, o.color, o.size, o.place) for o in reading.objects)
        assert seen == sorted((o.kind, o.color, o.size, o.place) for o in scene.objects)
        assert reading.background == scene.background
    found = attribute_accuracy(readings, [parse(caption) for caption in data.captions])
    assert found["all"].value == 1
    assert found["count"].num == 100


def thing(kind, color, x=0.5, y=0.5):
    return SeenThing(kind, color, "medium", x, y, (x - 0.1, y - 0.1, x + 0.1, y + 0.1), 1.0)


def test_attribute_accuracy_blames_the_right_attribute():
    wish = parse("a red cat to the left of a blue ball at night")
    cat, ball = thing("cat", "red", x=0.25), thing("ball", "blue", x=0.75)
    cases = {
        None: Reading((cat, ball), "night"),
        "background": Reading((cat, ball), "day"),
        "color": Reading((thing("cat", "blue", x=0.25), thing("ball", "red", x=0.75)), "night"),
        "relation": Reading((thing("cat", "red", x=0.75), thing("ball", "blue", x=0.25)), "night"),
        "count": Reading((cat, ball, thing("tree", "red", y=0.2)), "night"),
        "object": Reading((cat, thing("dog", "blue", x=0.75)), "night"),
    }
    for blamed, reading in cases.items():
        found = attribute_accuracy([reading], [wish])
        assert found["all"].value == (blamed is None)
        assert [name for name, value in found.items() if value.value == 0 and name != "all"] == (
            [blamed] if blamed else []
        )


def test_distinct_batches_hold_no_sentence_that_fits_two_pictures():
    data = render_scenes(300, "test")
    chosen = distinct_batches(data.captions, data.scenes, 16)
    assert len(chosen) >= 64
    assert len(chosen) % 16 == 0
    for start in range(0, len(chosen), 16):
        batch = chosen[start : start + 16]
        for i in batch:
            wish = parse(data.captions[i])
            fits = [j for j in batch if wish.is_met_by(data.scenes[j].objects, data.scenes[j].background)]
            assert fits == [i]
