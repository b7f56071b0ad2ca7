"""One step of each sampler as a pure function, and the grid of time steps that a run visits.

Every step goes from x_t at time step t to the latents at `t_prev`; None or -1 stands for the clean end. The factors
are float64 numbers from the schedule's tables, so latents of any type and on any device go in and come out.

Notation: a = alpha_bar, alpha = sqrt(a) is the signal's share, sigma = sqrt(1 - a) the noise's, x0_hat the clean
latents that (x_t, eps) imply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Latents

SPACINGS = ("leading", "trailing", "linspace")
_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
PLMS_MEMORY = len(_ADAMS_BASHFORTH) - 1  # how many earlier answers of the model `plms_step` can use


@dataclass(frozen=True)
class StepResult:
    """What one step gives: the latents at the next, cleaner time step, and the clean latents it aimed at."""

    x_prev: Latents
    x0_hat: Latents


def timestep_grid(schedule: NoiseSchedule, num_steps: int, spacing: str = "leading", offset: int = 1) -> list[int]:
    """Return exactly `num_steps` different time steps in falling order, for every count from 1 to all of them.

    With T steps in the schedule, n asked for and i = 0 .. n - 1 (Lin et al. 2023, arXiv 2305.08891, table 2):
    `leading`: floor(i T / n) + offset, the grid of Stable Diffusion where n divides T; `offset` shrinks where the
    last value would fall out of the schedule. `trailing`: round((i + 1) T / n) - 1, starts at the noisiest step.
    `linspace`: round((i + 1) (T - 1) / n), from the noisiest step evenly towards 0, which is left to the end of the
    run. n = T visits every step. Raises ConfigError for another count or spacing, or a negative offset.
    """
    total = schedule.num_steps
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 1 <= num_steps <= total:
        raise ConfigError("timestep_grid: num_steps", given=num_steps, expected=f"a whole number, 1 to {total}")
    if spacing not in SPACINGS:
        raise ConfigError("timestep_grid: spacing", given=spacing, expected=f"one of {SPACINGS}")
    if offset < 0:
        raise ConfigError("timestep_grid: offset", given=offset, expected="0 or more")
    if num_steps == total:
        return list(range(total - 1, -1, -1))
    if spacing == "leading":
        rising = [i * total // num_steps for i in range(num_steps)]
        offset = min(offset, total - 1 - rising[-1])
        rising = [t + offset for t in rising]
    elif spacing == "trailing":
        rising = [round(i * total / num_steps) - 1 for i in range(1, num_steps + 1)]
    else:
        rising = [round(i * (total - 1) / num_steps) for i in range(1, num_steps + 1)]
    return rising[::-1]


def is_end(t: int | None) -> bool:
    """Tell whether `t` is None or -1, which both stand for the clean end of a run."""
    return t is None or t == -1


def _alpha_bar(schedule: NoiseSchedule, t: int | None, end: float, place: str) -> float:
    """Return alpha_bar at `t`, or `end` at the clean end."""
    if t is None or t == -1:
        return end
    if not 0 <= t < schedule.num_steps:
        raise ConfigError(f"{place}: time step", given=t, expected=f"0 to {schedule.num_steps - 1}, None for the end")
    return float(schedule.alpha_bar[t])


def _x0_hat(x_t: Latents, eps: Latents, a: float) -> Latents:
    return (x_t - math.sqrt(1 - a) * eps) / math.sqrt(a)


def _check(x_t: Latents, place: str, *others: Latents | None) -> None:
    for other in others:
        if other is not None and other.shape != x_t.shape:
            raise ShapeError(place, given=tuple(other.shape), expected=f"the shape of the latents, {tuple(x_t.shape)}")


def _need_noise(noise: Latents | None, place: str) -> Latents:
    if noise is None:
        raise ConfigError(f"{place}: this step adds noise and none was given", fix="pass one normal draw per picture")
    return noise


def ddpm_step(
    x_t: Latents, eps: Latents, t: int, t_prev: int | None, schedule: NoiseSchedule, noise: Latents | None = None
) -> StepResult:
    """Draw from q(x_prev | x_t, x0_hat): Ho et al. 2020 (arXiv 2006.11239), eq. 6 and 7, with the smaller variance.

    `noise` has the latents' shape and unit variance; the step to the end adds none and returns x0_hat. Grids with
    gaps use the betas of the jump, 1 - a_t / a_prev. Raises ConfigError where t_prev is not below t.
    """
    a, a_prev = _alpha_bar(schedule, t, 1.0, "ddpm_step"), _alpha_bar(schedule, t_prev, 1.0, "ddpm_step")
    if a_prev <= a:
        raise ConfigError("ddpm_step: t_prev", given=(t, t_prev), expected="t_prev below t")
    _check(x_t, "ddpm_step", eps, noise)
    x0_hat = _x0_hat(x_t, eps, a)
    beta = 1 - a / a_prev
    x_prev = math.sqrt(a_prev) * beta / (1 - a) * x0_hat + math.sqrt(1 - beta) * (1 - a_prev) / (1 - a) * x_t
    variance = (1 - a_prev) / (1 - a) * beta
    if variance > 0:
        x_prev = x_prev + math.sqrt(variance) * _need_noise(noise, "ddpm_step")
    return StepResult(x_prev, x0_hat)


def ddim_step(
    x_t: Latents,
    eps: Latents,
    t: int | None,
    t_prev: int | None,
    schedule: NoiseSchedule,
    eta: float = 0.0,
    noise: Latents | None = None,
    *,
    final_alpha_one: bool = False,
) -> StepResult:
    """Step of Song et al. 2021 (arXiv 2010.02502), eq. 12: eta 0 adds no noise, eta 1 as much as DDPM.

    The end has alpha_bar[0], as in Stable Diffusion, so a trace of noise stays; 1 with `final_alpha_one`. Without
    noise (eta 0) `t_prev` may lie above `t` and `t` may be the end: that walks from a picture back to its noise.
    Raises ConfigError for eta outside 0 to 1, for noise that is needed and missing, or with eta where t_prev is above.
    """
    if not 0 <= eta <= 1:
        raise ConfigError("ddim_step: eta", given=eta, expected="0 to 1")
    end = 1.0 if final_alpha_one else float(schedule.alpha_bar[0])
    a, a_prev = _alpha_bar(schedule, t, end, "ddim_step"), _alpha_bar(schedule, t_prev, end, "ddim_step")
    if eta and a_prev < a:
        raise ConfigError("ddim_step: t_prev", given=(t, t_prev), expected="t_prev below t where eta is not 0")
    _check(x_t, "ddim_step", eps, noise)
    x0_hat = _x0_hat(x_t, eps, a)
    variance = eta**2 * (1 - a_prev) / (1 - a) * (1 - a / a_prev) if eta else 0.0  # eq. 16
    x_prev = math.sqrt(a_prev) * x0_hat + math.sqrt(max(1 - a_prev - variance, 0.0)) * eps
    if variance > 0:
        x_prev = x_prev + math.sqrt(variance) * _need_noise(noise, "ddim_step")
    return StepResult(x_prev, x0_hat)


def euler_step(x_t: Latents, eps: Latents, t: int, t_prev: int | None, schedule: NoiseSchedule) -> StepResult:
    """Euler's step along dz / ds = eps with z = x / alpha, s = sigma / alpha: Karras et al. 2022 (arXiv 2206.00364).

    The end has s = 0. Written out it is `ddim_step` with eta 0 and final_alpha_one: two names for one step.
    """
    a, a_prev = _alpha_bar(schedule, t, 1.0, "euler_step"), _alpha_bar(schedule, t_prev, 1.0, "euler_step")
    _check(x_t, "euler_step", eps)
    s, s_prev = math.sqrt((1 - a) / a), math.sqrt((1 - a_prev) / a_prev)
    z_prev = x_t / math.sqrt(a) + (s_prev - s) * eps
    return StepResult(math.sqrt(a_prev) * z_prev, _x0_hat(x_t, eps, a))


def euler_ancestral_step(
    x_t: Latents, eps: Latents, t: int, t_prev: int | None, schedule: NoiseSchedule, noise: Latents | None = None
) -> StepResult:
    """Euler's step to s_down, below the wanted s_prev, then fresh noise up to it: s_prev^2 = s_down^2 + s_up^2.

    s_up^2 = s_prev^2 (s^2 - s_prev^2) / s^2, which is the variance of `ddpm_step`: two names for one step. The end has
    s = 0 and no noise. Raises ConfigError where t_prev is not below t, or noise is needed and missing.
    """
    place = "euler_ancestral_step"
    a, a_prev = _alpha_bar(schedule, t, 1.0, place), _alpha_bar(schedule, t_prev, 1.0, place)
    if a_prev <= a:
        raise ConfigError(f"{place}: t_prev", given=(t, t_prev), expected="t_prev below t")
    _check(x_t, place, eps, noise)
    s, s_prev = math.sqrt((1 - a) / a), math.sqrt((1 - a_prev) / a_prev)
    s_up = s_prev * math.sqrt(s**2 - s_prev**2) / s
    s_down = math.sqrt(s_prev**2 - s_up**2)
    z_prev = x_t / math.sqrt(a) + (s_down - s) * eps
    if s_up > 0:
        z_prev = z_prev + s_up * _need_noise(noise, place)
    return StepResult(math.sqrt(a_prev) * z_prev, _x0_hat(x_t, eps, a))


def plms_step(
    x_t: Latents,
    eps: Latents,
    t: int,
    t_prev: int | None,
    schedule: NoiseSchedule,
    eps_before: Sequence[Latents] = (),
    *,
    final_alpha_one: bool = False,
) -> StepResult:
    """Pseudo linear multistep, Liu et al. 2022 (arXiv 2202.09778), eq. 12: `ddim_step` along an extrapolated noise.

    `eps_before`: what the model said at the steps before, the newest first, 0 to 3 of them; with n of them the weights
    are Adams and Bashforth's of order n + 1. x0_hat belongs to the extrapolated noise. The end is that of `ddim_step`.
    Raises ConfigError for more answers than three, and where t_prev is not below t.
    """
    if len(eps_before) > PLMS_MEMORY:
        raise ConfigError("plms_step: eps_before", given=len(eps_before), expected=f"at most {PLMS_MEMORY} answers")
    end = 1.0 if final_alpha_one else float(schedule.alpha_bar[0])
    if not is_end(t_prev) and _alpha_bar(schedule, t_prev, end, "plms_step") <= _alpha_bar(
        schedule, t, end, "plms_step"
    ):
        raise ConfigError("plms_step: t_prev", given=(t, t_prev), expected="t_prev below t")
    _check(x_t, "plms_step", eps, *eps_before)
    weights = _ADAMS_BASHFORTH[len(eps_before)]
    mixed = weights[0] * eps
    for weight, old in zip(weights[1:], eps_before, strict=True):
        mixed = mixed + weight * old
    return ddim_step(x_t, mixed, t, t_prev, schedule, final_alpha_one=final_alpha_one)


def dpmpp_2m_step(
    x_t: Latents,
    eps: Latents,
    t: int,
    t_prev: int | None,
    schedule: NoiseSchedule,
    t_before: int | None = None,
    x0_before: Latents | None = None,
) -> StepResult:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), algorithm 2: x0_hat carried on along log(alpha / sigma).

    `t_before` and `x0_before` are the step before this one and its x0_hat; without them (the first step) the step is
    of first order. The end has sigma 0, where the step is of first order and gives x0_hat itself.
    Raises ConfigError where only one of the two is given, or the three time steps do not fall.
    """
    if (t_before is None) != (x0_before is None):
        raise ConfigError("dpmpp_2m_step: t_before and x0_before belong together", fix="give both or neither")
    a, a_prev = _alpha_bar(schedule, t, 1.0, "dpmpp_2m_step"), _alpha_bar(schedule, t_prev, 1.0, "dpmpp_2m_step")
    a_before = 0.0 if t_before is None else _alpha_bar(schedule, t_before, 1.0, "dpmpp_2m_step")
    if not a_before < a < a_prev:
        raise ConfigError("dpmpp_2m_step", given=(t_before, t, t_prev), expected="t_before, t, t_prev in falling order")
    _check(x_t, "dpmpp_2m_step", eps, x0_before)
    x0_hat = _x0_hat(x_t, eps, a)
    if is_end(t_prev):
        return StepResult(x0_hat, x0_hat)
    h = _log_snr(a_prev) - _log_snr(a)
    aim = x0_hat
    if x0_before is not None:
        r = (_log_snr(a) - _log_snr(a_before)) / h
        aim = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * x0_before  # x0 at the middle of the step, by extrapolation
    x_prev = math.sqrt((1 - a_prev) / (1 - a)) * x_t - math.sqrt(a_prev) * math.expm1(-h) * aim
    return StepResult(x_prev, x0_hat)


def _log_snr(a: float) -> float:
    """Return lambda = log(alpha / sigma)."""
    return 0.5 * math.log(a / (1 - a))
