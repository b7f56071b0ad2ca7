"""The bill: the paper's settings are the paper's, work is counted, and days follow from it as they must."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm_tutor.config import UNetConfig
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.work import work_of
from ldm_tutor.training import bill as bills
from ldm_tutor.training.bill import (
    DAY,
    GPUS,
    PaperRun,
    Phase,
    bill,
    days_at,
    find_run,
    implied_utilisation,
    kept_bytes,
    paper_runs,
    parameters_of,
    picture_work,
    run_work,
)

CELEBA, SD = "CelebA-HQ, LDM-4", "Stable Diffusion v1-4"


def test_the_runs_are_those_of_the_paper():
    found = {name: (run.batch_size, run.lr, run.num_steps, run.reported_days) for name, run in paper_runs().items()}
    assert found == {
        CELEBA: (48, 9.6e-5, 410_000, 14.4),
        "FFHQ, LDM-4": (42, 8.4e-5, 635_000, 26),
        "LSUN-churches, LDM-8": (96, 5e-5, 500_000, 18),
        "text to image, 1.45B": (680, 1e-4, 390_000, None),
        SD: (2048, 1e-4, 237_000 + 194_000 + 515_000 + 225_000, 6250),
    }
    assert [parameters_of(name) for name in found] == [
        274_056_163, 274_056_163, 294_966_916, 872_300_484, 859_520_964
    ]  # fmt: skip
    assert all(run.source for run in paper_runs().values())


def test_a_learning_rate_that_is_not_by_the_rule_is_refused():
    run = find_run(CELEBA)
    with pytest.raises(ConfigError, match="lr; given: 0.0001; expected: 9.6e-05 = base_lr"):
        PaperRun(
            name="x", unet=run.unet, autoencoder=run.autoencoder, batch_size=48, lr=1e-4, base_lr=2e-6,
            phases=(Phase(steps=1, side=256),), source="",
        )  # fmt: skip


def test_backward_is_twice_forward():
    config = UNetConfig(
        channels=32, channel_mult=(1, 2), num_res_blocks=2, attention_levels=(1,), num_heads=2, context_dim=16,
        norm_groups=4,
    )  # fmt: skip
    torch.manual_seed(0)
    unet = UNet(config)
    inputs = torch.randn(2, 4, 8, 8), torch.zeros(2), torch.randn(2, 7, 16)
    with FlopCounterMode(display=False) as counter:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            unet(*inputs).sum().backward()
    forward = work_of(lambda: unet_like(config)).multiply_adds
    assert counter.get_total_flops() / 2 / forward == pytest.approx(bills.BACKWARD, rel=0.05)


def unet_like(config):
    unet, inputs = UNet(config), (torch.empty(2, 4, 8, 8), torch.empty(2), torch.empty(2, 7, 16))
    return lambda: unet(*inputs)


def test_work_adds_up():
    work = picture_work(CELEBA, 256)
    assert work.text == 0 and work.encoder > 0
    assert (work.total(cached=True), work.total(cached=False)) == (work.unet, work.unet + work.encoder)
    assert run_work(CELEBA) == work.total(False) * 48 * 410_000
    small, large = picture_work(SD, 256), picture_work(SD, 512)
    assert small.text == large.text > 0
    assert 4 < large.unet / small.unet < 5  # four times the positions; the attention maps grow faster
    expected = 2048 * (237_000 * small.total(True) + 934_000 * large.total(True))
    assert run_work(SD, cached=True) == expected
    bert = picture_work("text to image, 1.45B", 256)
    assert bert.text > 3 * 0.9 * 77 * 500e6  # trained along, so three times forward


def test_days_follow_from_the_work():
    half, full = bill(CELEBA, "A100", 0.5), bill(CELEBA, "A100", 1.0, num_gpus=4)
    assert half.gpu_days == pytest.approx(2 * full.gpu_days)
    assert full.wall_days == pytest.approx(full.gpu_days / 4)
    assert full.gpu_days == pytest.approx(run_work(CELEBA) / (156e12 * DAY))
    assert half.kilowatt_hours == pytest.approx(half.gpu_days * 24 * 0.4)
    assert bill(CELEBA, "A100", 0.5, cached=True).gpu_days < half.gpu_days
    assert bill(CELEBA, "V100", 0.5).gpu_days / half.gpu_days == pytest.approx(312 / 125)


def test_what_is_implied_gives_the_reported_days_back():
    for name, run in paper_runs().items():
        if run.reported_days is not None:
            share = implied_utilisation(name)
            assert 0.02 < share < 0.5
            assert bill(name, run.reported_on, share).gpu_days == pytest.approx(run.reported_days)
    with pytest.raises(ConfigError, match="reports no days"):
        implied_utilisation("text to image, 1.45B")


def test_days_at_a_measured_rate():
    assert days_at(CELEBA, 48 * 410_000 / DAY) == pytest.approx(1.0)
    for rate in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="pictures per second"):
            days_at(CELEBA, rate)


def test_what_each_gpu_keeps():
    assert kept_bytes(SD) == 20 * 859_520_964
    assert kept_bytes(SD, 8) == kept_bytes(SD) and kept_bytes(SD, 8, sharded=True) == kept_bytes(SD) / 8
    assert kept_bytes(SD) < GPUS["V100"].gigabytes * 1e9


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("nothing", "A100", 0.5), "unknown run; given: 'nothing'"),
        ((CELEBA, "abacus", 0.5), "unknown GPU; given: 'abacus'"),
        ((CELEBA, "A100", 0.0), "utilisation; given: 0.0"),
        ((CELEBA, "A100", 1.5), "utilisation; given: 1.5"),
        ((CELEBA, "A100", float("nan")), "utilisation; given: nan"),
        ((CELEBA, "A100", 0.5, 0), "num_gpus; given: 0"),
    ],
)
def test_bad_questions_are_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        bill(*given)
