"""The exercises of lesson 01: right answers in several styles pass, each typical slip gets its own diagnosis."""

import numpy as np
import pytest
import torch

from ldm_tutor.lessons import lesson_01_judges as judges
from ldm_tutor.lessons.checks import check, solution
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS
from ldm_tutor.weights.shipped import shipped_folder

needs_weights = pytest.mark.skipif(not shipped_folder().exists(), reason="the shipped weights are not there")


@pytest.fixture(autouse=True)
def made_up_eyes(monkeypatch):
    """The judge reads less the more noise there is; the real one is tested on its own."""
    monkeypatch.setattr(judges, "looks", lambda strength: (1 - strength / 8, 30 - 8 * strength))


def give(name, answer):
    return getattr(check.autoencoder, name)(answer)


# --- latent_size


@pytest.mark.parametrize("answer", [24576, 24576.0, "24576", np.int64(24576), torch.tensor(24576), 96 * 64 * 4])
def test_latent_size_right(answer):
    assert give("latent_size", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (96 * 64, "number of positions"),
        (768 * 512 // 8 * 4, "f once"),
        (64 * 64 * 4, "one side is longer"),
        (96 * 96 * 4, "one side is shorter"),
        (96 * 64 * 3, "4 channels"),
        (768 // 4 * 512 // 4 * 4, "divide by 4"),
        (48, "how many times fewer"),
        (768 * 512 * 3, "the picture's own"),
        (768 * 512, "number of pixels"),
        (96 * 64 * 8, "half of that"),
        (5000, "how many positions"),
    ],
)
def test_latent_size_slips(answer, diagnosis):
    verdict = give("latent_size", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- kl


def kl_by_library(mean, logvar):
    cloud = torch.distributions.Normal(mean, (logvar / 2).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return torch.distributions.kl_divergence(cloud, standard).sum(dim=(1, 2, 3))


def kl_by_loop(mean, logvar):
    rows = []
    for m, v in zip(mean, logvar, strict=True):
        sigma = torch.sqrt(torch.exp(v))
        rows.append(torch.sum(-torch.log(sigma) + (sigma**2 + m**2) / 2 - 0.5))
    return torch.stack(rows)


def kl_einsum(mean, logvar):
    square = torch.einsum("bchw,bchw->b", mean, mean)
    return 0.5 * (square + (logvar.exp() - logvar - 1).sum((1, 2, 3)))


def summed(formula):
    return lambda mean, logvar: formula(mean, logvar).flatten(1).sum(1)


def in_place(mean, logvar):
    mean **= 2
    return (0.5 * (mean + logvar.exp() - 1 - logvar)).flatten(1).sum(1)


KL_SLIPS = {
    "half in front": summed(lambda m, v: m**2 + v.exp() - 1 - v),
    "sign is turned": summed(lambda m, v: -0.5 * (m**2 + v.exp() - 1 - v)),
    "sigma stands": summed(lambda m, v: 0.5 * (m**2 + (v / 2).exp() - 1 - v)),
    "square twice": summed(lambda m, v: 0.5 * (m**2 + v.exp() ** 2 - 1 - v)),
    "square nothing": summed(lambda m, v: 0.5 * (m**2 + v.exp() ** 2 - 1 - 2 * v)),
    "logvar for sigma": summed(lambda m, v: 0.5 * (m**2 + v**2 - 1 - torch.log(v**2))),
    "not numbers": summed(lambda m, v: 0.5 * (m**2 + v - 1 - v.log())),
    "without another half": summed(lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v / 2)),
    "the 1 is missing": summed(lambda m, v: 0.5 * (m**2 + v.exp() - v)),
    "must be squared": summed(lambda m, v: 0.5 * (m + v.exp() - 1 - v)),
    "small clouds must cost more": summed(lambda m, v: 0.5 * (m**2 + v.exp() - 1 + v)),
    "sum over channels": lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v),
    "whole batch": lambda m, v: (0.5 * (m**2 + v.exp() - 1 - v)).sum(),
    "divergence of independent numbers is a sum": lambda m, v: (0.5 * (m**2 + v.exp() - 1 - v)).flatten(1).mean(1),
    "five numbers": lambda m, v: (0.5 * (m**2 + v.exp() - 1 - v)).sum((2, 3)),
    "changes what it was given": in_place,
    "off by up to": lambda m, v: torch.ones(5),
}


@pytest.mark.parametrize("mine", [kl_by_library, kl_by_loop, kl_einsum])
def test_kl_right(mine):
    verdict = give("kl", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", KL_SLIPS)
def test_kl_slips(diagnosis):
    verdict = give("kl", KL_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- sample


def normal(mean, generator):
    return torch.randn(mean.shape, generator=generator)


def with_a_root(mean, logvar, generator):
    return normal(mean, generator).mul(logvar.exp().sqrt()).add(mean)


def picture_by_picture(mean, logvar, generator):
    rows = [m + torch.exp(v / 2) * torch.randn(m.shape, generator=generator) for m, v in zip(mean, logvar, strict=True)]
    return torch.stack(rows)


def minus_noise(mean, logvar, generator):
    return torch.addcmul(mean, (0.5 * logvar).exp(), -normal(mean, generator))


SAMPLE_SLIPS = {
    "the variance": lambda m, v, g: m + v.exp() * normal(m, g),
    "same noise": lambda m, v, g: m + (v / 2).exp() * torch.randn(m.shape[1:], generator=g),
    "all positions": lambda m, v, g: m + (v / 2).exp() * torch.randn(*m.shape[:2], 1, 1, generator=g),
    "evenly from 0 to 1": lambda m, v, g: m + (v / 2).exp() * torch.rand(m.shape, generator=g),
    "multiplied by logvar": lambda m, v, g: m + v * normal(m, g),
    "not scaled": lambda m, v, g: m + normal(m, g),
    "square sigma twice": lambda m, v, g: m + v.exp() ** 2 * normal(m, g),
    "without noise": lambda m, v, g: m + 0 * v,
    "no gradient comes back": lambda m, v, g: (m + (v / 2).exp() * normal(m, g)).detach(),
    "no gradient reaches mean": lambda m, v, g: m.detach() + (v / 2).exp() * normal(m, g),
    "no gradient reaches logvar": lambda m, v, g: m + (v / 2).exp().detach() * normal(m, g),
    "same generator": lambda m, v, g: m + (v / 2).exp() * torch.randn_like(m),
    "another generator": lambda m, v, g: m + (v / 2).exp() * normal(m, torch.Generator().manual_seed(0)),
    "not normal": lambda m, v, g: m + (v / 2).exp() * (torch.rand(m.shape, generator=g) - 0.5) * 12**0.5,
    "the noise has a mean": lambda m, v, g: m + (v / 2).exp() * (normal(m, g) + 0.5),
    "not numbers": lambda m, v, g: m + v.sqrt() * normal(m, g),
    "has the shape": lambda m, v, g: (m + (v / 2).exp() * normal(m, g))[0],
    "your latents spread by": lambda m, v, g: m + 3 * (v / 2).exp() * normal(m, g),
}


@pytest.mark.parametrize("mine", [with_a_root, picture_by_picture, minus_noise])
def test_sample_right(mine):
    verdict = give("sample", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", SAMPLE_SLIPS)
def test_sample_slips(diagnosis):
    verdict = give("sample", SAMPLE_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


def test_torch_normal_draws_well_and_learns_nothing():
    verdict = give("sample", lambda m, v, g: torch.normal(m, (v / 2).exp(), generator=g))
    assert verdict.state == LOOK_AGAIN and "gradient" in verdict.message


def test_the_fault_to_fix_is_named_step_by_step():
    """The function in the notebook, then with one fault less each time."""
    first = lambda m, v, g: m.detach() + v.exp() * torch.randn(m.shape[1:], generator=g)  # noqa: E731
    second = lambda m, v, g: m.detach() + v.exp() * normal(m, g)  # noqa: E731
    third = lambda m, v, g: m.detach() + (v / 2).exp() * normal(m, g)  # noqa: E731
    said = [give("sample", each).message for each in (first, second, third)]
    assert len(set(said)) == 3 and "the variance" in said[1] and "reaches mean" in said[2]


# --- scale

SCALE_SLIPS = {
    "is the standard deviation": lambda z: z.std(),
    "one over the variance": lambda z: 1 / z.var(),
    "that is the variance": lambda z: z.var(),
    "leave the mean in": lambda z: 1 / z.square().mean().sqrt(),
    "over channels": lambda z: 1 / z.std(dim=(0, 2, 3)).mean(),
    "over pictures": lambda z: 1 / z.flatten(1).std(dim=1).mean(),
    "average over pictures": lambda z: (1 / z.flatten(1).std(dim=1)).mean(),
    "one factor for all": lambda z: 1 / z.std(dim=(0, 2, 3)),
    "the factor itself": lambda z: z / z.std(),
    "one outlier": lambda z: 1 / z.abs().max(),
    "one picture": lambda z: 1 / z[0].std(),
    "belongs to another": lambda z: 0.18215,
    "the spread": lambda z: 1.0,
}


@pytest.mark.parametrize(
    "mine",
    [
        lambda z: 1 / z.std(),
        lambda z: float(z.flatten().var(correction=0)) ** -0.5,
        lambda z: 1 / np.std(z.numpy()),
        lambda z: (z - z.mean()).square().mean().rsqrt(),
    ],
)
def test_scale_right(mine):
    verdict = give("scale", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", SCALE_SLIPS)
def test_scale_slips(diagnosis):
    verdict = give("scale", SCALE_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- noise_limit


@pytest.mark.parametrize("answer", [0.7, 0.75, "0.7", np.float32(0.7), torch.tensor(0.7)], ids=repr)
def test_noise_limit_right(answer):
    assert give("noise_limit", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (0.1, "take more noise"),
        (0.0, "take more noise"),
        (0.9, "take less noise"),
        (4, "take less noise"),
        (60, "from 0 to 5"),
        ("much", "one number"),
    ],
)
def test_noise_limit_slips(answer, diagnosis):
    verdict = give("noise_limit", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


@needs_weights
def test_the_real_judge_leaves_room_for_an_answer(monkeypatch):
    monkeypatch.undo()
    assert "more noise" in give("noise_limit", 0.1).message
    assert "less noise" in give("noise_limit", 1.4).message
    names = {}
    exec(str(solution("autoencoder.noise_limit")), names)
    assert 0.3 <= names["answer"] <= 0.9
    assert give("noise_limit", names["answer"]).state == PASS
