"""The sampling loop as a generator: it stops after every step, so that a lesson can look, edit, or go on later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.sampling.steps import (
    PLMS_MEMORY,
    StepResult,
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    euler_ancestral_step,
    euler_step,
    plms_step,
    timestep_grid,
)
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Latents, Tensor

SAMPLERS = ("ddim", "ddpm", "dpm++", "plms", "euler", "euler-a")
_NOISY = ("ddpm", "euler-a")  # they add noise at every step
_CHOOSE_END = ("ddim", "plms")  # the others always end at the clean picture

Denoiser = Callable[[Latents, int, int], Latents]  # (latents, time step, running step) -> the noise it sees


@dataclass(frozen=True)
class SampleState:
    """Where a run stands after one step; handed back to `sample`, the run goes on from here bit for bit.

    `step` counts from 0 to num_steps - 1; `t` is the time step that the model saw, `t_next` the one that `latents`
    (the next x) stand at, None at the end. `x0_hat` and `eps` are this step's clean latents and noise; `eps_before` the
    noise of up to three steps before, the newest first, where the sampler is `plms`.
    """

    step: int
    num_steps: int
    t: int
    t_next: int | None
    latents: Latents
    x0_hat: Latents
    eps: Latents
    eps_before: tuple[Latents, ...] = ()


def sample(
    denoiser: Denoiser,
    latents: Latents | SampleState,
    schedule: NoiseSchedule,
    *,
    sampler: str = "ddim",
    num_steps: int = 50,
    eta: float = 0.0,
    noise: PictureNoise | None = None,
    start_at: int = 0,
    spacing: str = "leading",
    final_alpha_one: bool = False,
    edit: Callable[[SampleState], Latents] | None = None,
) -> Iterator[SampleState]:
    """Walk from noisy latents (b, c, h, w) to clean ones, yielding a SampleState after every step.

    `latents`: pure noise, or with `start_at` latents noised to time step grid[start_at] (picture to picture), or the
    state of an earlier run, which then goes on behind that state. `noise`: one seed per picture, needed by `ddpm`,
    `euler-a` and by `ddim` with eta > 0. `plms` asks the model twice at the first step of a run. `spacing`: see
    `timestep_grid`. `final_alpha_one` is for `ddim` and `plms`, which end at alpha_bar[0] without it, as in Stable
    Diffusion; the others always end at 1. `edit` may replace the latents after each step (local blend, inpainting): it
    gets the state and returns the latents that the run goes on with. Gradients flow unless the caller switches them
    off. Raises ConfigError at once for a bad setting, and at the step where latents stop being finite; ShapeError where
    shapes do not fit.
    """
    _check_settings(sampler, eta, noise, final_alpha_one)
    grid = timestep_grid(schedule, num_steps, spacing)
    before: SampleState | None = None
    if isinstance(latents, SampleState):
        before, latents = latents, latents.latents
        if (before.num_steps, start_at) not in ((num_steps, 0), (num_steps, before.step + 1)):
            raise ConfigError(
                "sample: the state belongs to another run",
                given={"num_steps": num_steps, "start_at": start_at},
                expected=f"num_steps={before.num_steps}, and start_at={before.step + 1} or left out",
            )
        if grid[before.step] != before.t:
            raise ConfigError("sample: the state's run had another grid", given=before.t, expected=f"{grid}")
        start_at = before.step + 1
    if not 0 <= start_at <= num_steps:
        raise ConfigError("sample: start_at", given=start_at, expected=f"0 to num_steps={num_steps}")
    if noise is not None and len(noise.seeds) != latents.shape[0]:
        raise ConfigError(
            "sample: one seed per picture", given=len(noise.seeds), expected=f"{latents.shape[0]}, the batch"
        )
    check_finite(latents, "sample: the latents to start from")

    def answer(x: Latents, t: int, step: int) -> Latents:
        return check_answer(denoiser(x, t, step), x, f"sample: the denoiser's answer at step {step} (t={t})")

    def one_step(x: Latents, eps: Latents, step: int, before: SampleState | None) -> StepResult:
        t, t_prev = grid[step], next_of(step)
        if sampler == "dpm++":
            if before is None:
                return dpmpp_2m_step(x, eps, t, t_prev, schedule)
            return dpmpp_2m_step(x, eps, t, t_prev, schedule, before.t, before.x0_hat)
        if sampler == "euler":
            return euler_step(x, eps, t, t_prev, schedule)
        if sampler == "plms":
            if before is None and t_prev is not None:  # no answers yet: the mean of this one and of one at the far side
                there = ddim_step(x, eps, t, t_prev, schedule).x_prev
                eps = (eps + answer(there, t_prev, step)) / 2
            old = () if before is None else _answers(before)
            return plms_step(x, eps, t, t_prev, schedule, old, final_alpha_one=final_alpha_one)
        draw = noise.at(step, x.shape[1:]).to(x) if noise is not None and (sampler in _NOISY or eta) else None
        if sampler == "euler-a":
            return euler_ancestral_step(x, eps, t, t_prev, schedule, draw)
        if sampler == "ddpm":
            return ddpm_step(x, eps, t, t_prev, schedule, draw)
        return ddim_step(x, eps, t, t_prev, schedule, eta, draw, final_alpha_one=final_alpha_one)

    def next_of(step: int) -> int | None:
        return grid[step + 1] if step + 1 < num_steps else None

    def run(x: Latents, before: SampleState | None) -> Iterator[SampleState]:
        for step in range(start_at, num_steps):
            t = grid[step]
            eps = answer(x, t, step)
            result = one_step(x, eps, step, before)
            old = _answers(before) if sampler == "plms" and before is not None else ()
            state = SampleState(step, num_steps, t, next_of(step), result.x_prev, result.x0_hat, eps, old)
            if edit is not None:
                state = replace(state, latents=edit(state))
            check_finite(state.latents, f"sample: the latents after step {step} (t={t})")
            x, before = state.latents, state
            yield state

    return run(latents, before)


def _answers(before: SampleState) -> tuple[Latents, ...]:
    """Return what the model said at the steps up to `before`, the newest first, as many as a step can use."""
    return (before.eps, *before.eps_before)[:PLMS_MEMORY]


def _check_settings(sampler: str, eta: float, noise: PictureNoise | None, final_alpha_one: bool) -> None:
    if sampler not in SAMPLERS:
        raise ConfigError("sample: sampler", given=sampler, expected=f"one of {SAMPLERS}")
    if not 0 <= eta <= 1:
        raise ConfigError("sample: eta", given=eta, expected="0 (no noise) to 1 (as much as DDPM)")
    if eta and sampler != "ddim":
        raise ConfigError(f"sample: eta belongs to the ddim sampler, not to {sampler}", given=eta, expected="0")
    if final_alpha_one and sampler not in _CHOOSE_END:
        raise ConfigError(
            f"sample: final_alpha_one belongs to {' and '.join(_CHOOSE_END)}; {sampler} always ends at alpha_bar 1",
            given=True,
            expected="False, or leave it out",
        )
    if noise is None and (sampler in _NOISY or eta):
        raise ConfigError(f"sample: {sampler} with eta={eta} adds noise", fix="pass noise=PictureNoise(seeds)")


def check_answer(answer: Latents, latents: Latents, place: str) -> Latents:
    """Return a network's answer if it has the shape of the latents; ShapeError otherwise."""
    if answer.shape != latents.shape:
        raise ShapeError(place, given=tuple(answer.shape), expected=f"the latents' shape {tuple(latents.shape)}")
    return answer


def check_finite(latents: Tensor, place: str) -> None:
    """Raise ConfigError where latents have stopped being numbers."""
    if not bool(torch.isfinite(latents).all()):
        num_bad = int((~torch.isfinite(latents)).sum())
        raise ConfigError(
            place,
            given=f"{num_bad} of {latents.numel()} values NaN or infinite",
            expected="finite numbers",
            fix="look at the weights, the guidance scale and the number type (float16 overflows above 65504)",
        )
