"""Inception score, precision and recall, CLIP score and FID against other people's libraries, on the same features."""

import math

import numpy as np
import pytest
import torch
from tiny import make_pipeline

from ldm_tutor.config import JudgeConfig
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError, ShapeError, WeightsError
from ldm_tutor.metrics.clip_score import clip_features, clip_score, clip_scores
from ldm_tutor.metrics.fid import frechet_distance
from ldm_tutor.metrics.inception import inception_features
from ldm_tutor.metrics.inception_score import inception_score, judge_probabilities
from ldm_tutor.metrics.precision_recall import inside, precision_recall
from ldm_tutor.metrics.steering import distances
from ldm_tutor.models.judge import Judge


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def features(num, width=24, seed=0, shift=0.0, scale=1.0):
    """Correlated vectors, as a network's features are."""
    mix = torch.randn(width, width, generator=rng(99), dtype=torch.float64) / width**0.5
    return scale * torch.randn(num, width, generator=rng(seed), dtype=torch.float64) @ mix + shift


# ---------------------------------------------------------------- FID


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.0, 1.7), (1.0, 0.5)])
def test_fid_equals_scipy_and_torch_fidelity(shift, scale):
    linalg = pytest.importorskip("scipy.linalg")
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = features(300), features(400, seed=1, shift=shift, scale=scale)
    ours = frechet_distance(a, b)
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    gap = ((a.mean(dim=0) - b.mean(dim=0)) ** 2).sum()
    reference = float(gap + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real))
    assert ours == pytest.approx(reference, rel=1e-4)
    statistics = [fidelity.fid_features_to_statistics(each) for each in (a, b)]
    theirs = fidelity.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-4)


class Passing(torch.nn.Module):
    """A feature network for torchmetrics that hands the features through that we put in as pictures."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, pictures):
        return pictures.flatten(1).double()


def as_pictures(vectors):
    return vectors.float()[:, :, None, None]


def test_fid_equals_torchmetrics():
    module = pytest.importorskip("torchmetrics.image.fid")
    a, b = features(300), features(400, seed=1, shift=0.2)
    theirs = module.FrechetInceptionDistance(feature=Passing(24), normalize=False, input_img_size=(24, 1, 1))
    theirs.set_dtype(torch.float64)
    theirs.update(as_pictures(a), real=True)
    theirs.update(as_pictures(b), real=False)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_fid_of_few_pictures_is_too_high_and_falls_with_their_number():
    many = features(4000, seed=5)
    values = [np.mean([frechet_distance(features(n, seed=k), many) for k in range(5)]) for n in (50, 200, 800)]
    assert values[0] > 2 * values[1] > 4 * values[2]  # about as 1 / n


# ---------------------------------------------------------------- Inception score


def test_inception_score_at_its_ends():
    sure = torch.eye(5, dtype=torch.float64).repeat(20, 1)
    assert inception_score(sure, 1).value == pytest.approx(5)  # clear, and everything is there
    assert inception_score(sure[:1].repeat(50, 1), 1).value == pytest.approx(1)  # clear, and always the same
    assert inception_score(torch.full((50, 5), 0.2), 1).value == pytest.approx(1)  # never clear
    assert inception_score(sure, 10).spread == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("splits", [1, 4, 10])
def test_inception_score_equals_torch_fidelity(splits):
    fidelity = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * torch.randn(203, 9, generator=rng(), dtype=torch.float64)  # not a multiple of the splits
    theirs = fidelity.isc_features_to_metric(logits, splits=splits, shuffle=False)
    ours = inception_score(logits.softmax(dim=1), splits)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours.spread == pytest.approx(theirs["inception_score_std"], rel=1e-4, abs=1e-9)


def test_inception_score_equals_torchmetrics():
    module = pytest.importorskip("torchmetrics.image.inception")
    logits = 2 * torch.randn(200, 9, generator=rng(1))
    theirs = module.InceptionScore(feature=Passing(9), splits=1)
    theirs.update(as_pictures(logits))
    ours = inception_score(logits.double().softmax(dim=1), 1)
    assert ours.value == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


def test_inception_score_refuses_what_is_no_probability():
    for bad in (torch.randn(5, 3), torch.ones(5, 3), torch.rand(5), torch.full((4, 2), math.nan)):
        with pytest.raises(ShapeError, match="inception_score"):
            inception_score(bad, 1)
    with pytest.raises(ConfigError, match="splits"):
        inception_score(torch.full((4, 2), 0.5), 5)


def test_the_judges_probabilities_are_those_of_its_surest_place():
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(channels=8)).eval()
    pictures = to_float(render_scenes(5).pictures)
    found = judge_probabilities(judge, pictures, batch_size=2)
    assert found.shape == (5, 9)
    assert torch.allclose(found.sum(dim=1), torch.ones(5, dtype=torch.float64))
    with torch.inference_mode():
        maps = judge(pictures[3:4])
    j, i = divmod(int(maps.heat[0].argmax()), maps.heat.shape[-1])
    assert torch.allclose(found[3].float(), maps.kind[0, :, j, i].softmax(dim=0), atol=1e-5)
    larger = pictures.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(judge_probabilities(judge, larger), found, atol=1e-5)  # seen at the size that it knows
    assert float(distances(judge, larger, pictures).max()) < 1e-5


# ---------------------------------------------------------------- precision and recall


def test_precision_and_recall_of_known_sets():
    line = torch.arange(20.0)[:, None]
    assert precision_recall(line, line) == precision_recall(line.double(), line)
    same = precision_recall(line, line, k=1)
    assert (same.precision, same.recall) == (1, 1)
    half = precision_recall(line[:8], line, k=1)  # real looking, and more than half is missing
    assert half.precision == 1
    assert half.recall == pytest.approx(9 / 20)  # one more: 8 is as far from 7 as 7 is from 6
    far = precision_recall(line + 1000, line)
    assert (far.precision, far.recall) == (0, 0)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_precision_and_recall_equal_torch_fidelity(k, shift):
    fidelity = pytest.importorskip("torch_fidelity.metric_prc")
    made, real = features(150, seed=2, shift=shift, scale=0.8), features(180, seed=3)
    precision, recall = fidelity.calculate_precision_recall_full(made, real, k)
    ours = precision_recall(made, real, k)
    assert ours.precision == pytest.approx(precision, rel=1e-4)
    assert ours.recall == pytest.approx(recall, rel=1e-4)
    assert 0 < ours.precision + ours.recall or shift == 2.0


def test_a_point_is_inside_or_not():
    of = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert inside(torch.tensor([[0.5, 0.5], [5.0, 5.0], [-0.9, 0.0]]), of, k=1).tolist() == [True, False, True]


def test_precision_recall_refuses_what_does_not_fit():
    with pytest.raises(ShapeError, match="one width"):
        precision_recall(torch.zeros(5, 2), torch.zeros(5, 3))
    for k in (0, 5):
        with pytest.raises(ConfigError, match="k"):
            precision_recall(torch.zeros(5, 2), torch.zeros(9, 2), k)


# ---------------------------------------------------------------- CLIP score


def test_clip_score_of_known_arrows():
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 3.0]])
    sentences = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [5.0, 0.0]])
    assert clip_scores(pictures, sentences).tolist() == pytest.approx([100, 0, 100 / math.sqrt(2)])
    assert clip_scores(pictures, sentences, weight=2.5)[0] == pytest.approx(2.5)
    with pytest.raises(ShapeError, match="one sentence per picture"):
        clip_scores(pictures, sentences[:2])


class FakeClip:
    """Hands torchmetrics our own vectors, in turn: the picture's number is its first pixel, the sentence's its text."""

    def __init__(self, pictures, sentences):
        self.vectors = {"picture": pictures, "sentence": sentences}

    def __call__(self, text=None, images=None, **_):
        if images is not None:
            return {"pixel_values": torch.tensor([int(each.flatten()[0]) for each in images])}
        return {"input_ids": torch.tensor([[int(each)] for each in text]), "attention_mask": torch.ones(len(text), 1)}

    def to(self, device):
        return self

    def eval(self):
        return self

    def get_image_features(self, numbers):
        return self.vectors["picture"][numbers]

    def get_text_features(self, numbers, mask=None):
        return self.vectors["sentence"][numbers[:, 0]]

    class config:  # noqa: N801, D106
        class text_config:  # noqa: N801, D106
            max_position_embeddings = 77


def test_clip_score_equals_torchmetrics():
    module = pytest.importorskip("torchmetrics.functional.multimodal.clip_score")
    pictures, sentences = features(12, seed=1), features(12, seed=2) + 0.5 * features(12, seed=1)
    fake = FakeClip(pictures, sentences)
    numbers = [torch.full((3, 4, 4), k, dtype=torch.uint8) for k in range(12)]
    theirs, _ = module._clip_score_update(numbers, [str(k) for k in range(12)], fake, fake)
    assert clip_scores(pictures, sentences).tolist() == pytest.approx(theirs.clamp(min=0).tolist(), rel=1e-4)


def test_clip_score_reads_pictures_and_captions():
    pipe = make_pipeline()
    scenes = render_scenes(6)
    pictures = to_float(scenes.pictures)
    found = clip_score(pipe.clip, pipe.tokenizer, pictures, scenes.captions, batch_size=4)
    vectors = clip_features(pipe.clip, pictures, batch_size=4)
    with torch.inference_mode():
        words = pipe.clip.embed_text(pipe.tokenizer(scenes.captions)).double()
    assert found.num == 6
    assert found.value == pytest.approx(float(100 * (vectors * words).sum(dim=1).clamp(min=0).mean()), rel=1e-4)
    with pytest.raises(ShapeError, match="one caption per picture"):
        clip_score(pipe.clip, pipe.tokenizer, pictures, scenes.captions[:3])


# ---------------------------------------------------------------- Inception


def test_without_inceptions_weights_the_error_names_the_file(tmp_path):
    with pytest.raises(WeightsError, match="not on this machine"):
        inception_features(torch.zeros(1, 3, 64, 64), weights=tmp_path / "inception.pth")


@pytest.mark.slow
def test_inception_gives_features_and_probabilities(tmp_path, monkeypatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    cls = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:  # random weights of the right names and shapes
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(cls, "load_state_dict", lambda *_: None)
        torch.save(cls("random", ["2048"]).state_dict(), tmp_path / "inception.pth")
    vectors, probabilities = inception_features(torch.rand(2, 3, 64, 64) * 2 - 1, weights=tmp_path / "inception.pth")
    assert vectors.shape == (2, 2048)
    assert probabilities.shape == (2, 1008)
    assert probabilities.sum(dim=1).tolist() == pytest.approx([1, 1])
