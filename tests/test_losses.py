"""Losses against values worked out by hand, and their limits."""

import math

import pytest
import torch

from ldm_tutor.config import JudgeConfig
from ldm_tutor.data.scenes.sampling import sample_scene
from ldm_tutor.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from ldm_tutor.losses.contrastive import contrastive_loss
from ldm_tutor.losses.denoising import noise_loss, step_weight
from ldm_tutor.losses.detection import judge_loss
from ldm_tutor.losses.reconstruction import PIXEL_LOSSES, PerceptualDistance, feature_distance, l1_loss, l2_loss
from ldm_tutor.models.judge import Judge, JudgeMaps
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.training.stages.judge import judge_targets


def test_hinge_loss_stops_pushing_beyond_the_margin():
    assert discriminator_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -9.0])) == 0
    assert discriminator_loss(torch.zeros(4), torch.zeros(4)) == 1  # undecided
    assert discriminator_loss(torch.tensor([-1.0]), torch.tensor([1.0])) == 2
    assert generator_loss(torch.tensor([2.0, 4.0])) == -3


def test_adaptive_weight_is_the_ratio_of_the_gradients():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    found = adaptive_weight((3 * weight).sum(), (0.5 * weight).sum(), weight)
    assert float(found) == pytest.approx(6.0, rel=1e-3)
    assert not found.requires_grad
    nothing = adaptive_weight(weight.sum(), (0 * weight).sum(), weight)
    assert float(nothing) == 1e4  # limited


def test_pixel_losses_are_least_at_the_mean_and_at_the_median():
    truths = torch.tensor([-1.0] * 6 + [0.0] + [1.0] * 3)
    assert set(PIXEL_LOSSES) == {"l1", "l2"}
    for name, best in (("l2", -0.3), ("l1", -1.0)):
        answers = torch.linspace(-1, 1, 201)
        losses = torch.stack([PIXEL_LOSSES[name](truths, answer.expand(10)) for answer in answers])
        assert float(answers[losses.argmin()]) == pytest.approx(best, abs=1e-5)
    assert float(l1_loss(torch.zeros(2, 3), torch.full((2, 3), -0.5))) == 0.5
    assert float(l2_loss(torch.zeros(2, 3), torch.full((2, 3), -0.5))) == 0.25


def test_contrastive_loss_of_a_blind_guess_and_of_certainty():
    assert float(contrastive_loss(torch.zeros(8, 8))) == pytest.approx(math.log(8))
    assert float(contrastive_loss(100 * torch.eye(8))) < 1e-6
    logits = torch.randn(5, 5)
    assert torch.allclose(contrastive_loss(logits), contrastive_loss(logits.T))
    right, wrong = 5 * torch.eye(4), 5 * torch.eye(4).roll(1, dims=0)
    assert contrastive_loss(right) < contrastive_loss(wrong)


def test_noise_loss_of_predicting_nothing_is_one():
    noise = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = noise_loss(torch.zeros_like(noise), noise)
    assert loss.shape == (4,)
    assert torch.allclose(loss, torch.ones(4), atol=0.05)
    assert float(noise_loss(noise, noise).max()) == 0


def test_noise_loss_counts_positions_by_their_weight():
    noise = torch.ones(2, 4, 2, 2)
    eps_hat = noise.clone()
    eps_hat[0, :, 0, 0], eps_hat[1, :, 1, 1] = 0, 0  # one wrong position of four in each
    weight = torch.ones(2, 1, 2, 2)
    weight[0, 0, 0, 0] = 6
    assert noise_loss(eps_hat, noise).tolist() == [0.25, 0.25]
    assert noise_loss(eps_hat, noise, weight).tolist() == [1.5, 0.25]


def test_step_weight_makes_an_error_count_alike_in_the_clean_latents_at_every_step():
    alpha_bar = NoiseSchedule().alpha_bar
    on_x0 = step_weight(alpha_bar) * alpha_bar / (1 - alpha_bar)  # the loss is w * eps_error^2, and eps_error^2 ~ snr
    assert float(on_x0.min()) >= 1
    assert float(on_x0.max()) <= 2
    assert float((alpha_bar / (1 - alpha_bar)).max()) > 1000  # unweighted, the factor spans more than five decades


def test_feature_distance_sees_directions_not_lengths():
    a = torch.zeros(1, 2, 1, 1)
    a[0, 0] = 3.0
    b = torch.zeros(1, 2, 1, 1)
    b[0, 1] = 0.1
    assert float(feature_distance(a, 5 * a)) == pytest.approx(0, abs=1e-6)
    assert float(feature_distance(a, b)) == pytest.approx(2.0, rel=1e-4)
    assert float(feature_distance(a, -a)) == pytest.approx(4.0, rel=1e-4)


def test_perceptual_distance_is_zero_for_equal_pictures_and_keeps_its_network_still():
    network = Judge(JudgeConfig(channels=8))
    distance = PerceptualDistance(network)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    made = (pictures + 0.2 * torch.randn_like(pictures)).requires_grad_()
    assert float(distance(pictures, pictures).max()) == pytest.approx(0, abs=1e-6)
    distance(made, pictures).sum().backward()
    assert made.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_judge_targets_mark_each_object_once_where_it_is():
    scenes = [sample_scene(i, "train") for i in range(40)]
    truth = judge_targets(scenes, 16)
    assert len(truth.rows) == sum(len(scene.objects) for scene in scenes)
    assert bool((truth.heat[truth.rows, truth.ys, truth.xs] == 1).all())
    objects = [each for scene in scenes for each in scene.objects]
    for k, each in enumerate(objects):
        assert (float(truth.xs[k]) + float(truth.offset[k, 0])) / 16 == pytest.approx(each.x, abs=1e-4)
        assert (float(truth.ys[k]) + float(truth.offset[k, 1])) / 16 == pytest.approx(each.y, abs=1e-4)


def test_judge_loss_falls_when_the_maps_tell_the_truth():
    truth = judge_targets([sample_scene(i, "train") for i in range(4)], 16)
    zeros = {name: torch.zeros(4, n, 16, 16) for name, n in (("kind", 9), ("color", 8), ("size", 3))}
    blind = JudgeMaps(
        torch.zeros(4, 16, 16), **zeros, offset=torch.full((4, 2, 16, 16), 0.5),
        extent=torch.full((4, 2, 16, 16), 0.5), background=torch.zeros(4, 6),
    )  # fmt: skip
    told = {name: value.clone() for name, value in vars(blind).items()}
    told["heat"] = torch.where(truth.heat == 1, 20.0, -20.0)
    for name in ("kind", "color", "size"):
        told[name][truth.rows, getattr(truth, name), truth.ys, truth.xs] = 20.0
    told["background"][torch.arange(4), truth.background] = 20.0
    told["offset"][truth.rows, :, truth.ys, truth.xs] = truth.offset
    told["extent"][truth.rows, :, truth.ys, truth.xs] = truth.extent
    assert float(judge_loss(JudgeMaps(**told), truth)) < 0.01
    assert float(judge_loss(blind, truth)) > 5
