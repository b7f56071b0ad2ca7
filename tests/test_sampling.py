"""Samplers against a problem with a known answer, against diffusers step by step, and against themselves resumed."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from ldm_tutor.config import ScheduleConfig, UNetConfig
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import CallInfo, Row, _call_info
from ldm_tutor.sampling.guidance import Guided, guide
from ldm_tutor.sampling.loop import SampleState, sample
from ldm_tutor.sampling.noise import PictureNoise, _mix
from ldm_tutor.sampling.steps import (
    SPACINGS,
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    euler_ancestral_step,
    euler_step,
    timestep_grid,
)
from ldm_tutor.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
SHAPE = (4, 8, 8)
MEAN, STD = 0.7, 0.5  # the data of the solvable problem: every number of a latent is N(MEAN, STD^2)


def gaussian_eps(x, t, step=0):
    """The exact answer to "which noise is in x": x_t is N(sqrt(a) mean, a std^2 + 1 - a), eps = -sigma * score."""
    a = float(SCHEDULE.alpha_bar[t])
    return math.sqrt(1 - a) * (x - math.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)


def gaussian_flow(x, t, t_prev):
    """The exact probability-flow map of the same problem: a latent keeps its distance from the mean, in deviations."""
    a, a_prev = (1.0 if s is None else float(SCHEDULE.alpha_bar[s]) for s in (t, t_prev))
    shrink = math.sqrt((a_prev * STD**2 + 1 - a_prev) / (a * STD**2 + 1 - a))
    return math.sqrt(a_prev) * MEAN + shrink * (x - math.sqrt(a) * MEAN)


def noisy(seeds=(1, 2, 3), dtype=torch.float64):
    return PictureNoise(seeds).initial(SHAPE).to(dtype)


def last(states):
    *_, state = states
    return state


def worst(a, b):
    return float((a - b).abs().max())


def linear_denoiser(seed=0):
    """Fixed random mixing of the channels, a little stronger with t: a denoiser that no sampler can be lucky with."""
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)) / 4

    def denoiser(x, t, step=0):
        return torch.einsum("oc,bchw->bohw", mix.to(x), x) * (0.5 + t / 2000) + 0.1

    return denoiser


# The grid


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_count_gives_exactly_that_many_falling_steps(spacing):
    for num_steps in range(1, 1001):
        grid = timestep_grid(SCHEDULE, num_steps, spacing)
        assert len(grid) == num_steps
        assert all(later < earlier for earlier, later in zip(grid, grid[1:], strict=False))
        assert 0 <= grid[-1] and grid[0] <= 999
        assert num_steps == 1 or all(type(t) is int for t in grid)


@pytest.mark.parametrize("offset", [0, 1, 7, 999])
def test_offset_never_leaves_the_schedule(offset):
    for num_steps in (1, 3, 9, 37, 101, 333, 501, 999, 1000):
        grid = timestep_grid(SCHEDULE, num_steps, offset=offset)
        assert len(set(grid)) == num_steps and 0 <= min(grid) and max(grid) <= 999


def test_leading_is_the_known_grid_where_the_count_divides():
    for num_steps in (n for n in range(1, 1000) if 1000 % n == 0):
        known = list(range(1, 1001, 1000 // num_steps))  # 1, 1 + c, 1 + 2 c, ...
        assert timestep_grid(SCHEDULE, num_steps) == known[::-1]
    assert timestep_grid(SCHEDULE, 1000) == list(range(999, -1, -1))
    assert len(timestep_grid(SCHEDULE, 30)) == 30  # the original code gives 31


def test_grid_of_a_short_schedule():
    short = NoiseSchedule(ScheduleConfig(num_steps=10))
    assert timestep_grid(short, 4) == [8, 6, 3, 1]
    assert timestep_grid(short, 4, "trailing") == [9, 7, 4, 1]
    assert timestep_grid(short, 4, "linspace") == [9, 7, 4, 2]


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 20.0, True, "20"])
def test_grid_refuses_counts(num_steps, unchecked_annotations):
    with pytest.raises(ConfigError, match="num_steps.*1 to 1000"):
        timestep_grid(SCHEDULE, num_steps)


def test_grid_refuses_spacing_and_offset():
    with pytest.raises(ConfigError, match="leading"):
        timestep_grid(SCHEDULE, 10, "quad")
    with pytest.raises(ConfigError, match="offset"):
        timestep_grid(SCHEDULE, 10, offset=-1)


# The solvable Gaussian


def fall(step_name, num_steps, high=999, low=199):
    """Walk the Gaussian from `high` to `low` in even steps of t; return the worst error against the exact map."""
    x = noisy()
    exact = gaussian_flow(x, high, low)
    grid = [high - (high - low) * i // num_steps for i in range(num_steps + 1)]
    before = (None, None)
    for t, t_prev in zip(grid, grid[1:], strict=False):
        eps = gaussian_eps(x, t)
        if step_name == "dpm++":
            result = dpmpp_2m_step(x, eps, t, t_prev, SCHEDULE, *before)
        elif step_name == "dpm++ without memory":
            result = dpmpp_2m_step(x, eps, t, t_prev, SCHEDULE)
        elif step_name == "ddim with the wrong sign":
            result = ddim_step(x, -eps, t, t_prev, SCHEDULE)
        else:
            result = ddim_step(x, eps, t, t_prev, SCHEDULE)
        x, before = result.x_prev, (t, result.x0_hat)
    return worst(x, exact)


def order(step_name):
    """Estimate p in error ~ (1 / steps)^p from 40, 80 and 160 steps."""
    errors = [fall(step_name, n) for n in (40, 80, 160)]
    return math.log2(errors[0] / errors[2]) / 2


def test_order_of_convergence():
    assert 0.85 < order("ddim") < 1.15
    assert 1.8 < order("dpm++") < 2.4
    assert fall("dpm++", 80) < fall("ddim", 80) / 10


def test_the_order_test_catches_mutants():
    assert 0.85 < order("dpm++ without memory") < 1.15
    assert fall("ddim with the wrong sign", 160) > 1


@pytest.mark.parametrize(("sampler", "num_steps", "bound"), [("ddim", 1000, 0.01), ("dpm++", 1000, 0.01)])
def test_fine_runs_reach_the_exact_flow(sampler, num_steps, bound):
    x = noisy()
    clean_end = {"final_alpha_one": True} if sampler == "ddim" else {}  # dpm++ always ends there
    final = last(sample(gaussian_eps, x, SCHEDULE, sampler=sampler, num_steps=num_steps, **clean_end)).latents
    assert worst(final, gaussian_flow(x, 999, None)) < bound


def ancestral_moments(num_steps):
    """Mean and deviation that `ddpm_step` gives the Gaussian: a step is x -> A x + B + C noise."""
    mean, variance = 0.0, 1.0
    grid = [*timestep_grid(SCHEDULE, num_steps), None]
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for t, t_prev in zip(grid, grid[1:], strict=False):

        def step(x, noise, t=t, t_prev=t_prev):
            return float(ddpm_step(x, gaussian_eps(x, t), t, t_prev, SCHEDULE, noise).x_prev)

        offset = step(zero, zero)
        mean = step(zero + mean, zero)
        variance = (step(zero + 1, zero) - offset) ** 2 * variance + (step(zero, zero + 1) - offset) ** 2
    return mean, math.sqrt(variance)


def test_ancestral_mean_and_deviation_reach_those_of_the_data():
    mean, deviation = ancestral_moments(1000)
    assert abs(mean - MEAN) < 0.001 and abs(deviation - STD) < 0.005
    deviations = [ancestral_moments(num_steps)[1] for num_steps in (125, 250, 500)]
    assert STD - deviations[0] > 1.5 * (STD - deviations[1]) > 2.2 * (STD - deviations[2]) > 0


@pytest.mark.parametrize("settings", [{"sampler": "ddpm"}, {"sampler": "ddim", "eta": 1.0}], ids=str)
def test_ancestral_samples_have_that_mean_and_deviation(settings):
    noise = PictureNoise(range(16))
    x = noise.initial((4, 20, 20)).double()  # 25600 numbers: mean known to 0.003, deviation to 0.002
    final = last(sample(gaussian_eps, x, SCHEDULE, num_steps=250, noise=noise, **settings)).latents
    mean, deviation = ancestral_moments(250)
    assert abs(float(final.mean()) - mean) < 0.012
    assert abs(float(final.std()) - deviation) < 0.008


def test_ddpm_and_ddim_with_eta_1_are_one_step():
    x, noise = noisy(), noisy((7, 8, 9))
    eps = gaussian_eps(x, 600)
    a = ddpm_step(x, eps, 600, 550, SCHEDULE, noise)
    b = ddim_step(x, eps, 600, 550, SCHEDULE, 1.0, noise)
    assert worst(a.x_prev, b.x_prev) < 1e-12
    assert worst(a.x0_hat, b.x0_hat) == 0


@pytest.mark.parametrize("t_prev", [400, 0, None])
def test_euler_is_ddim_by_another_name(t_prev):
    x = noisy()
    eps = gaussian_eps(x, 600)
    euler = euler_step(x, eps, 600, t_prev, SCHEDULE)
    ddim = ddim_step(x, eps, 600, t_prev, SCHEDULE, final_alpha_one=True)
    assert worst(euler.x_prev, ddim.x_prev) < 1e-12


@pytest.mark.parametrize("t_prev", [550, 0, None])
def test_euler_ancestral_is_ddpm_by_another_name(t_prev):
    x, noise = noisy(), noisy((7, 8, 9))
    eps = gaussian_eps(x, 600)
    euler = euler_ancestral_step(x, eps, 600, t_prev, SCHEDULE, noise)
    assert worst(euler.x_prev, ddpm_step(x, eps, 600, t_prev, SCHEDULE, noise).x_prev) < 1e-12


def test_first_order_dpm_is_ddim():
    x = noisy()
    eps = gaussian_eps(x, 600)
    dpm, ddim = dpmpp_2m_step(x, eps, 600, 400, SCHEDULE), ddim_step(x, eps, 600, 400, SCHEDULE)
    assert worst(dpm.x_prev, ddim.x_prev) < 1e-12


def test_ddim_walks_back_to_its_noise():
    x = noisy()
    eps = gaussian_eps(x, 600)
    there = ddim_step(x, eps, 600, 400, SCHEDULE).x_prev
    assert worst(ddim_step(there, eps, 400, 600, SCHEDULE).x_prev, x) < 1e-12  # the same noise: exactly

    errors = []
    for num_steps in (125, 250, 500):  # the noise seen from where the walk stands: better with more steps
        grid = timestep_grid(SCHEDULE, num_steps)[::-1]
        clean = last(sample(gaussian_eps, x, SCHEDULE, num_steps=num_steps)).latents
        walked = clean
        for t, t_next in zip([None, *grid], grid, strict=False):
            walked = ddim_step(walked, gaussian_eps(walked, 0 if t is None else t), t, t_next, SCHEDULE).x_prev
        errors.append(worst(walked, gaussian_flow(x, 999, grid[-1]) if grid[-1] != 999 else x))
    assert errors[2] < 0.05
    assert errors[0] > 1.6 * errors[1] > 2.5 * errors[2]


def test_final_alpha():
    x = noisy()
    eps = gaussian_eps(x, 1)
    to_one = ddim_step(x, eps, 1, None, SCHEDULE, final_alpha_one=True)
    assert worst(to_one.x_prev, to_one.x0_hat) == 0
    assert worst(ddim_step(x, eps, 1, None, SCHEDULE).x_prev, ddim_step(x, eps, 1, 0, SCHEDULE).x_prev) == 0
    assert worst(ddim_step(x, eps, 1, -1, SCHEDULE).x_prev, ddim_step(x, eps, 1, None, SCHEDULE).x_prev) == 0
    assert worst(ddpm_step(x, eps, 1, None, SCHEDULE).x_prev, to_one.x0_hat) < 1e-12
    assert worst(dpmpp_2m_step(x, eps, 1, None, SCHEDULE).x_prev, to_one.x0_hat) == 0


def test_a_seed_is_a_picture_whatever_pytorch_draws_by_default():
    wanted = PictureNoise([1, 2]).initial(SHAPE)
    torch.set_default_dtype(torch.float64)
    try:
        found = PictureNoise([1, 2]).initial(SHAPE)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        elsewhere = PictureNoise([1, 2]).initial(SHAPE)
    assert found.dtype == torch.float32 and torch.equal(found, wanted) and torch.equal(elsewhere, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_stay(dtype):
    noise = PictureNoise([1, 2])
    for sampler in ("ddim", "ddpm", "dpm++"):
        x = noise.initial(SHAPE).to(dtype)
        state = next(sample(gaussian_eps, x, SCHEDULE, sampler=sampler, num_steps=10, noise=noise))
        assert state.latents.dtype == state.x0_hat.dtype == dtype


def test_steps_refuse(unchecked_annotations):
    x = noisy()
    with pytest.raises(ConfigError, match="eta"):
        ddim_step(x, x, 10, 5, SCHEDULE, 1.5, x)
    with pytest.raises(ConfigError, match="noise"):
        ddim_step(x, x, 10, 5, SCHEDULE, 0.5)
    with pytest.raises(ConfigError, match="t_prev"):
        ddim_step(x, x, 5, 10, SCHEDULE, 0.5, x)
    with pytest.raises(ConfigError, match="noise"):
        ddpm_step(x, x, 10, 5, SCHEDULE)
    with pytest.raises(ConfigError, match="below t"):
        ddpm_step(x, x, 5, 10, SCHEDULE, x)
    with pytest.raises(ConfigError, match="belong together"):
        dpmpp_2m_step(x, x, 10, 5, SCHEDULE, t_before=20)
    with pytest.raises(ConfigError, match="falling order"):
        dpmpp_2m_step(x, x, 10, 5, SCHEDULE, 10, x)
    with pytest.raises(ConfigError, match="0 to 999"):
        ddim_step(x, x, 1000, 5, SCHEDULE)
    with pytest.raises(ShapeError, match="ddim_step"):
        ddim_step(x, x[:1], 10, 5, SCHEDULE)


# Step by step against diffusers

COMMON = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def relative(ours, theirs):
    return worst(ours, theirs) / max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("num_steps", [1, 20, 50])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_equals_diffusers(num_steps, eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        **COMMON, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    scheduler.set_timesteps(num_steps)
    denoiser, noise = linear_denoiser(), PictureNoise([1, 2])
    x = noise.initial(SHAPE)
    states = list(sample(denoiser, x, SCHEDULE, num_steps=num_steps, eta=eta, noise=noise))
    assert [state.t for state in states] == scheduler.timesteps.tolist()
    for state in states:
        drawn = noise.at(state.step, SHAPE) if eta else None
        theirs = scheduler.step(denoiser(x, state.t), state.t, x, eta=eta, variance_noise=drawn)
        assert relative(state.latents, theirs.prev_sample) <= 1e-5
        assert relative(state.x0_hat, theirs.pred_original_sample) <= 1e-5
        x = state.latents


@pytest.mark.parametrize("num_steps", [20, 1000])
def test_ddpm_equals_diffusers(num_steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        **COMMON, clip_sample=False, timestep_spacing="leading", steps_offset=1 if num_steps < 1000 else 0
    )
    scheduler.set_timesteps(num_steps)
    if num_steps == 1000:  # theirs is float32, where 1 - a_t / a_prev keeps four digits
        scheduler.alphas_cumprod = SCHEDULE.alpha_bar
    grid = timestep_grid(SCHEDULE, num_steps)
    assert grid == scheduler.timesteps.tolist()
    denoiser, x = linear_denoiser(), noisy((1, 2), torch.float32)
    for step in [*range(10), *range(num_steps - 10, num_steps)]:
        t, t_prev = grid[step], grid[step + 1] if step + 1 < num_steps else None
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        theirs = scheduler.step(denoiser(x, t), t, x, generator=torch.Generator().manual_seed(step))
        ours = ddpm_step(x, denoiser(x, t), t, t_prev, SCHEDULE, drawn)
        assert relative(ours.x_prev, theirs.prev_sample) <= 1e-5
        assert relative(ours.x0_hat, theirs.pred_original_sample) <= 1e-5
        x = ours.x_prev


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 10, 20, 25])
def test_dpmpp_equals_diffusers(num_steps, spacing):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **COMMON, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", timestep_spacing=spacing
    )
    grid = timestep_grid(SCHEDULE, num_steps, spacing)
    if spacing == "leading":  # theirs lays num_steps + 1 points for this solver; the grid is not under test here
        scheduler.set_timesteps(num_steps)
        table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
        scheduler.timesteps = torch.tensor(grid)
        scheduler.sigmas = torch.cat([table[grid], torch.zeros(1)])
    else:
        scheduler.set_timesteps(num_steps)
        assert grid == scheduler.timesteps.tolist()
    denoiser, x = linear_denoiser(), noisy((1, 2), torch.float32)
    for state in sample(denoiser, x, SCHEDULE, sampler="dpm++", num_steps=num_steps, spacing=spacing):
        theirs = scheduler.step(denoiser(x, state.t), state.t, x).prev_sample
        assert relative(state.latents, theirs) <= 1e-5
        x = state.latents


# The noise of a picture


def test_same_seed_same_noise_in_any_batch():
    seeds = [3, 14, 15, 92, 65, 35, 89, 79]
    for shape in [(4, 8, 8), (1, 3, 1), (3, 5, 7)]:
        whole = PictureNoise(seeds)
        for batch in (1, 3, 8):
            part = PictureNoise(seeds[-batch:])
            assert torch.equal(part.initial(shape), whole.initial(shape)[-batch:])
            assert torch.equal(part.at(5, shape), whole.at(5, shape)[-batch:])


def test_initial_noise_is_what_the_seed_gives():
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(8888))
    assert torch.equal(PictureNoise([8888]).initial(SHAPE)[0], expected)


def test_noise_is_normal_and_independent():
    noise = PictureNoise(range(4))
    draws = torch.stack([noise.initial((4, 32, 32)), *(noise.at(step, (4, 32, 32)) for step in range(20))])
    flat = draws.flatten(2).flatten(0, 1)  # 84 draws of 4096 numbers: deviations of a mean are 1 / 64
    assert float(flat.mean(dim=1).abs().max()) < 0.08
    assert float((flat.std(dim=1) - 1).abs().max()) < 0.06
    correlation = torch.tensor(np.corrcoef(flat.numpy())) - torch.eye(len(flat))
    assert float(correlation.abs().max()) < 0.09


def test_seeds_are_mixed_one_to_one():
    words = {_mix(word) for word in range(100_000)}
    assert len(words) == 100_000 and max(words) < 2**32 and min(words) >= 0


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    noise = PictureNoise([1])
    last(sample(gaussian_eps, noise.initial(SHAPE), SCHEDULE, sampler="ddpm", num_steps=5, noise=noise))
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True])
def test_noise_refuses_seeds(seed, unchecked_annotations):
    with pytest.raises(ConfigError, match="seed"):
        PictureNoise([seed])


# The loop

RUNS = {
    "ddim": {"sampler": "ddim"},
    "ddim, eta 1": {"sampler": "ddim", "eta": 1.0},
    "ddpm": {"sampler": "ddpm"},
    "dpm++": {"sampler": "dpm++"},
    "dpm++, linspace": {"sampler": "dpm++", "spacing": "linspace"},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_resumed_run_equals_an_unbroken_one(settings):
    denoiser, noise = linear_denoiser(), PictureNoise([1, 2])
    x = noise.initial(SHAPE)

    def run(start, **more):
        return list(sample(denoiser, start, SCHEDULE, num_steps=12, noise=noise, **settings, **more))

    unbroken = run(x)
    assert len(unbroken) == 12 and [state.step for state in unbroken] == list(range(12))
    assert [state.t_next for state in unbroken] == [state.t for state in unbroken[1:]] + [None]
    for cut in (0, 4, 10, 11):
        for more in ({}, {"start_at": cut + 1}):
            resumed = run(unbroken[cut], **more)
            assert len(resumed) == 11 - cut
            for a, b in zip(resumed, unbroken[cut + 1 :], strict=True):
                for name in (f.name for f in dataclasses.fields(SampleState)):
                    mine, theirs = getattr(a, name), getattr(b, name)
                    assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_same_picture_at_any_batch_size(settings):
    seeds = [5, 6, 7, 8, 9, 10, 11, 12]

    def run(seeds):
        noise = PictureNoise(seeds)
        x = noise.initial(SHAPE)
        return last(sample(gaussian_eps, x, SCHEDULE, num_steps=8, noise=noise, **settings)).latents

    whole = run(seeds)
    for batch in (1, 3):
        assert torch.equal(run(seeds[:batch]), whole[:batch])


def test_ddim_is_deterministic():
    x = noisy()
    a, b = (last(sample(gaussian_eps, x, SCHEDULE, num_steps=10)).latents for _ in range(2))
    assert torch.equal(a, b)


def test_start_at_and_edit():
    x = noisy()
    states = list(sample(gaussian_eps, x, SCHEDULE, num_steps=10, start_at=7))
    assert [state.step for state in states] == [7, 8, 9]
    assert states[0].t == timestep_grid(SCHEDULE, 10)[7]
    assert list(sample(gaussian_eps, x, SCHEDULE, num_steps=10, start_at=10)) == []

    seen = []

    def halve(state):
        seen.append(state.step)
        return state.latents / 2

    first, second = list(sample(gaussian_eps, x, SCHEDULE, num_steps=2, edit=halve))
    plain = next(sample(gaussian_eps, x, SCHEDULE, num_steps=2))
    assert seen == [0, 1]
    assert torch.equal(first.latents, plain.latents / 2)
    expected = ddim_step(first.latents, gaussian_eps(first.latents, second.t), second.t, None, SCHEDULE).x_prev / 2
    assert torch.equal(second.latents, expected)


def test_gradients_flow_and_inference_mode_works():
    x = noisy().requires_grad_()
    last(sample(gaussian_eps, x, SCHEDULE, sampler="dpm++", num_steps=3)).latents.sum().backward()
    assert x.grad is not None and float(x.grad.abs().min()) > 0
    with torch.inference_mode():
        assert last(sample(gaussian_eps, noisy(), SCHEDULE, num_steps=3)).latents.is_inference()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 1001}, "1 to 1000"),
        ({"sampler": "pndm"}, "ddim"),
        ({"eta": -0.1}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"eta": 0.5}, "PictureNoise"),
        ({"sampler": "ddpm"}, "PictureNoise"),
        ({"sampler": "dpm++", "eta": 1.0}, "eta belongs"),
        ({"start_at": 51}, "start_at"),
        ({"start_at": -1}, "start_at"),
        ({"spacing": "quad"}, "spacing"),
        ({"noise": PictureNoise([1])}, "one seed per picture"),
    ],
    ids=str,
)
def test_sample_refuses_before_the_first_step(settings, words):
    with pytest.raises(ConfigError, match=words):
        sample(gaussian_eps, noisy(), SCHEDULE, **settings)


def test_sample_refuses_a_foreign_state():
    state = next(sample(gaussian_eps, noisy(), SCHEDULE, num_steps=10))
    for settings in ({"num_steps": 20}, {"num_steps": 10, "start_at": 5}, {"num_steps": 10, "spacing": "trailing"}):
        with pytest.raises(ConfigError, match="state"):
            sample(gaussian_eps, state, SCHEDULE, **settings)


def test_not_finite_latents_are_named_with_their_place(unchecked_annotations):
    x = noisy()
    broken = x.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConfigError, match="start from.*1 of 768"):
        sample(gaussian_eps, broken, SCHEDULE)

    def breaks_at_2(x, t, step):
        return gaussian_eps(x, t) / (0 if step == 2 else 1)

    run = sample(breaks_at_2, x, SCHEDULE, num_steps=10)
    next(run), next(run)
    with pytest.raises(ConfigError, match=r"after step 2 \(t=701\)"):
        next(run)
    with pytest.raises(ShapeError, match="step 0"):
        next(sample(lambda x, t, step: x[:1], x, SCHEDULE))


# Guidance


class SpyUNet:
    """Stands in for a U-Net: keeps what it was called with, answers with the mean of the context."""

    def __init__(self):
        self.calls = []

    def __call__(self, latents, t, context):
        self.calls.append((latents, t, context, _call_info.get()))
        return latents + context.mean(dim=(1, 2)).view(-1, 1, 1, 1)


def test_guidance_is_the_formula_in_one_call():
    unet, x = SpyUNet(), noisy((1, 2, 3), torch.float32)
    context, empty = torch.randn(3, 5, 16), torch.randn(1, 5, 16)
    eps = Guided(unet, context, empty, 7.5)(x, 400, 3)
    [(latents, t, sent, info)] = unet.calls
    assert latents.shape[0] == 6 and t.tolist() == [400.0] * 6 and t.dtype == torch.float32
    assert torch.equal(sent, torch.cat([empty.expand(3, -1, -1), context]))
    assert info == CallInfo(3, 400, tuple(Row(i, c) for c in (False, True) for i in range(3)))
    means = x + empty.mean(), x + context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
    assert worst(eps, means[0] + 7.5 * (means[1] - means[0])) < 1e-5
    assert worst(guide(*means, 1.0), means[1]) < 1e-5  # the formula itself agrees with what scale 1 skips
    assert _call_info.get() == CallInfo()


def test_scale_1_makes_one_conditional_call():
    unet, x = SpyUNet(), noisy((1, 2), torch.float32)
    context = torch.randn(2, 5, 16)
    for empty in (None, torch.randn(2, 5, 16)):
        unet.calls.clear()
        Guided(unet, context, empty, 1)(x, 10, 0)
        [(latents, _, sent, info)] = unet.calls
        assert latents is x and sent is context
        assert info == CallInfo(0, 10, (Row(0, True), Row(1, True)))


def test_guided_sampling_with_a_real_unet_equals_two_calls():
    torch.manual_seed(0)
    config = UNetConfig(
        channels=32, channel_mult=(1, 2), attention_levels=(0, 1), num_heads=2, context_dim=16, norm_groups=8
    )
    unet = UNet(config)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    context, empty = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    x = noisy((1, 2), torch.float32)
    with torch.inference_mode():
        ours = Guided(unet, context, empty, 3.0)(x, 500, 0)
        t = torch.full((2,), 500.0)
        expected = guide(unet(x, t, empty), unet(x, t, context), 3.0)
        first = next(sample(Guided(unet, context, empty, 3.0), x, SCHEDULE, num_steps=2))
        seen_first = Guided(unet, context, empty, 3.0)(x, 501, 0)
    assert relative(ours, expected) < 1e-5
    assert torch.equal(first.eps, seen_first)
    assert float(ours.std()) > 1e-3

    guided = Guided(unet, context.requires_grad_(), empty, 3.0)  # a lesson may ask for the sentence's gradient
    guided(x, 500, 0).sum().backward()
    assert context.grad is not None and float(context.grad.abs().max()) > 0


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_guidance_refuses_scales(scale):
    with pytest.raises(ConfigError, match="scale"):
        Guided(SpyUNet(), torch.zeros(1, 5, 16), torch.zeros(1, 5, 16), scale)


def test_guidance_refuses_what_does_not_fit(unchecked_annotations):
    context = torch.zeros(3, 5, 16)
    with pytest.raises(ConfigError, match="empty_context is missing"):
        Guided(SpyUNet(), context, None, 2.0)
    for shape in [(2, 5, 16), (1, 4, 16), (1, 5, 8)]:
        with pytest.raises(ShapeError, match=r"1 or 3, 5, 16"):
            Guided(SpyUNet(), context, torch.zeros(shape), 2.0)
    with pytest.raises(ShapeError, match="batch, tokens, width"):
        Guided(SpyUNet(), context[0], None, 1.0)
    with pytest.raises(ShapeError, match="3 pictures"):
        Guided(SpyUNet(), context, context, 2.0)(noisy((1, 2)), 5, 0)
