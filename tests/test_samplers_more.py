"""PLMS, Euler and Euler-ancestral: step by step against diffusers, against a known answer, resumed, and refused."""

import math

import pytest
import torch

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.sampling.steps import ddim_step, ddpm_step, euler_ancestral_step, euler_step, plms_step
from ldm_tutor.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
SHAPE = (4, 8, 8)
COMMON = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
COUNTS = [1, 2, 3, 4, 20, 50, 30, 60, 7]  # 30, 60, 7 and 3 do not divide 1000
MEAN, STD = 0.7, 0.5


def denoiser(x, t, step=0):
    """Fixed random mixing of the channels, a little stronger with t."""
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).to(x) / 4
    return torch.einsum("ij,bjhw->bihw", mix, x) * (1 + t / 1000)


def gaussian_eps(x, t, step=0):
    """The exact answer where every number of a latent is N(MEAN, STD^2)."""
    a = float(SCHEDULE.alpha_bar[t])
    return math.sqrt(1 - a) * (x - math.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)


def noisy(seeds=(1, 2), dtype=torch.float32):
    return PictureNoise(seeds).initial(SHAPE).to(dtype)


def relative(ours, theirs):
    return float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))


def signal(t):
    return 1.0 if t is None else math.sqrt(float(SCHEDULE.alpha_bar[t]))


def following(grid):
    return zip(grid, [*grid[1:], None], strict=True)


@pytest.mark.parametrize("alpha_one", [False, True])
@pytest.mark.parametrize("num_steps", COUNTS)
def test_plms_equals_diffusers(num_steps, alpha_one):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler(**COMMON, skip_prk_steps=True, set_alpha_to_one=alpha_one)
    if 1000 // num_steps * (num_steps - 1) + 1 > 999:
        pytest.fail("this count leaves their schedule")
    scheduler.set_timesteps(num_steps)
    calls = scheduler.timesteps.tolist()
    grid = list(dict.fromkeys(calls))
    assert len(calls) == num_steps + (num_steps > 1)  # one call more than steps
    x, old, theirs_x = noisy(), [], noisy()
    for number, (t, t_prev) in enumerate(following(grid)):
        eps = mixed = denoiser(x, t)
        if number == 0 and t_prev is not None:
            theirs_x = scheduler.step(denoiser(theirs_x, t), t, theirs_x).prev_sample
            there = plms_step(x, eps, t, t_prev, SCHEDULE, final_alpha_one=alpha_one).x_prev
            assert relative(there, theirs_x) <= 1e-5
            mixed = (eps + denoiser(there, t_prev)) / 2
            theirs_x = scheduler.step(denoiser(theirs_x, t_prev), t_prev, theirs_x).prev_sample
        else:
            theirs_x = scheduler.step(denoiser(x, t), t, x).prev_sample
        x = plms_step(x, mixed, t, t_prev, SCHEDULE, old, final_alpha_one=alpha_one).x_prev
        assert relative(x, theirs_x) <= 1e-5
        old = [eps, *old][:3]


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 50])
def test_the_plms_loop_equals_diffusers(num_steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler(**COMMON, skip_prk_steps=True, set_alpha_to_one=False)
    scheduler.set_timesteps(num_steps)
    x, calls = noisy(), []

    def counted(x, t, step):
        calls.append(t)
        return denoiser(x, t)

    *_, state = sample(counted, x, SCHEDULE, sampler="plms", num_steps=num_steps)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(denoiser(x, t), t, x).prev_sample
    assert calls == scheduler.timesteps.tolist()
    assert relative(state.latents, x) <= 1e-4


@pytest.mark.parametrize("name", ["euler", "euler-a"])
@pytest.mark.parametrize("num_steps", COUNTS)
def test_euler_equals_diffusers(num_steps, name):
    diffusers = pytest.importorskip("diffusers")
    ancestral = name == "euler-a"
    kind = diffusers.EulerAncestralDiscreteScheduler if ancestral else diffusers.EulerDiscreteScheduler
    scheduler = kind(**COMMON, timestep_spacing="leading")
    scheduler.set_timesteps(num_steps)
    x = noisy()
    for step, (t, t_prev) in enumerate(following([int(t) for t in scheduler.timesteps])):
        eps, wide = denoiser(x, t), x / signal(t)  # theirs runs on x / sqrt(alpha_bar)
        assert relative(scheduler.scale_model_input(wide, scheduler.timesteps[step]), x) <= 1e-5
        generator = torch.Generator().manual_seed(step)
        theirs = scheduler.step(eps, scheduler.timesteps[step], wide, generator=generator)
        if ancestral:
            drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
            ours = euler_ancestral_step(x, eps, t, t_prev, SCHEDULE, drawn)
        else:
            ours = euler_step(x, eps, t, t_prev, SCHEDULE)
        assert relative(ours.x_prev / signal(t_prev), theirs.prev_sample) <= 1e-5
        assert relative(ours.x0_hat, theirs.pred_original_sample) <= 1e-5
        x = ours.x_prev


def test_two_names_for_one_step():
    x, eps, drawn = (torch.randn(2, *SHAPE, dtype=torch.float64) for _ in range(3))
    for t, t_prev in ((999, 900), (500, 3), (1, 0), (7, None)):
        ours = euler_ancestral_step(x, eps, t, t_prev, SCHEDULE, drawn)
        assert relative(ours.x_prev, ddpm_step(x, eps, t, t_prev, SCHEDULE, drawn).x_prev) < 1e-12
        assert torch.equal(plms_step(x, eps, t, t_prev, SCHEDULE).x_prev, ddim_step(x, eps, t, t_prev, SCHEDULE).x_prev)


def test_plms_meets_the_exact_flow_sooner_than_ddim():
    x = noisy(dtype=torch.float64)
    a, end = (float(SCHEDULE.alpha_bar[t]) for t in (981, 0))
    shrink = math.sqrt((end * STD**2 + 1 - end) / (a * STD**2 + 1 - a))
    exact = math.sqrt(end) * MEAN + shrink * (x - math.sqrt(a) * MEAN)
    errors = {}
    for sampler in ("plms", "ddim"):
        *_, state = sample(gaussian_eps, x, SCHEDULE, sampler=sampler, num_steps=50)
        errors[sampler] = float((state.latents - exact).abs().max())
    assert errors["plms"] < errors["ddim"] / 3


@pytest.mark.parametrize("sampler", ["plms", "euler", "euler-a"])
def test_resumed_and_in_any_batch(sampler):
    noise = PictureNoise([1, 2])

    def run(start, noise=noise):
        return list(sample(denoiser, start, SCHEDULE, sampler=sampler, num_steps=8, noise=noise))

    unbroken = run(noise.initial(SHAPE))
    for cut in (0, 1, 3, 6):
        assert torch.equal(run(unbroken[cut])[-1].latents, unbroken[-1].latents)
    alone = PictureNoise([2])
    assert relative(run(alone.initial(SHAPE), alone)[-1].latents, unbroken[-1].latents[1:]) < 1e-6


@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_the_end_can_be_chosen_where_there_is_a_choice(sampler):
    """At alpha_bar 1 the last latents are the clean ones; at alpha_bar[0] a trace of noise stays."""
    for alpha_one in (True, False):
        run = sample(denoiser, noisy(), SCHEDULE, sampler=sampler, num_steps=5, final_alpha_one=alpha_one)
        *_, state = run
        assert torch.equal(state.latents, state.x0_hat) == alpha_one


def test_refusals():
    x = noisy()
    for make, words in (
        (lambda: plms_step(x, x, 500, 400, SCHEDULE, [x] * 4), "at most 3"),
        (lambda: plms_step(x, x, 400, 500, SCHEDULE), "below t"),
        (lambda: plms_step(x, x, 1000, 500, SCHEDULE), "0 to 999"),
        (lambda: euler_ancestral_step(x, x, 400, 500, SCHEDULE, x), "below t"),
        (lambda: euler_ancestral_step(x, x, 400, 400, SCHEDULE, x), "below t"),
        (lambda: euler_ancestral_step(x, x, 500, 400, SCHEDULE), "adds noise"),
        (lambda: euler_ancestral_step(x, x, 1000, 400, SCHEDULE, x), "0 to 999"),
        (lambda: sample(denoiser, x, SCHEDULE, sampler="euler-a"), "PictureNoise"),
        (lambda: sample(denoiser, x, SCHEDULE, sampler="plms", eta=0.5), "eta belongs"),
        (lambda: sample(denoiser, x, SCHEDULE, sampler="euler", eta=0.5), "eta belongs"),
        (lambda: sample(denoiser, x, SCHEDULE, sampler="euler", num_steps=1001), "1 to 1000"),
        (lambda: sample(denoiser, x, SCHEDULE, sampler="pndm"), "plms"),
        (lambda: sample(denoiser, x, SCHEDULE, sampler="dpm++", final_alpha_one=True), "final_alpha_one.*ddim.*dpm"),
        (lambda: sample(denoiser, x, SCHEDULE, sampler="euler", final_alpha_one=True), "final_alpha_one"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()
    for make in (
        lambda: plms_step(x, x, 500, 400, SCHEDULE, [x[:1]]),
        lambda: euler_ancestral_step(x, x, 500, 400, SCHEDULE, x[:1]),
    ):
        with pytest.raises(ShapeError):
            make()
