"""Noise schedules, the straight way of flow matching, and the ways between noise, clean latents and velocity.

Notation (DDPM, Ho et al. 2020, arXiv 2006.11239):  x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
"""

from __future__ import annotations

import math

import torch

from ldm_tutor.config import ScheduleConfig
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.shapes import Float, Latents, Steps, Tensor


def make_betas(config: ScheduleConfig) -> Float[Tensor, " steps"]:
    """Return the variance added by each step, float64, shape (num_steps,).

    `linear`: DDPM. `scaled_linear`: linear in sqrt(beta), called "linear" in the LDM configurations.
    `cosine`: Nichol and Dhariwal 2021 (arXiv 2102.09672), eq. 17, clipped at 0.999.
    """
    n = config.num_steps
    if config.kind == "linear":
        return torch.linspace(config.beta_start, config.beta_end, n, dtype=torch.float64)
    if config.kind == "scaled_linear":
        return torch.linspace(config.beta_start**0.5, config.beta_end**0.5, n, dtype=torch.float64) ** 2
    if config.kind == "cosine":
        at = torch.arange(n + 1, dtype=torch.float64) / n
        f = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)
    raise ConfigError("make_betas", given=config.kind, expected="linear, scaled_linear or cosine")


class NoiseSchedule:
    """Tables of one schedule in float64, and the formulas that use them.

    Every method takes time steps as an integer tensor of shape (b,), each 0 to num_steps - 1, and returns a tensor
    of the type and on the device of its first argument.
    """

    def __init__(self, config: ScheduleConfig | None = None) -> None:
        self.config = config or ScheduleConfig()
        self.betas = make_betas(self.config)
        self.alpha_bar = torch.cumprod(1 - self.betas, dim=0)

    @property
    def num_steps(self) -> int:
        """Number of steps between a clean latent and (almost) pure noise."""
        return self.config.num_steps

    def _scales(self, like: Latents, t: Steps) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to multiply `like`."""
        if t.shape != like.shape[:1]:
            raise ShapeError(
                "NoiseSchedule: one time step per picture", given=tuple(t.shape), expected=f"({like.shape[0]},)"
            )
        if t.numel() and (int(t.min()) < 0 or int(t.max()) >= self.num_steps):
            raise ConfigError(
                "NoiseSchedule: time step", given=[int(t.min()), int(t.max())], expected=f"0 to {self.num_steps - 1}"
            )
        a = self.alpha_bar[t.cpu()].view(-1, *[1] * (like.dim() - 1))
        return a.sqrt().to(like), (1 - a).sqrt().to(like)

    def add_noise(self, x0: Latents, noise: Latents, t: Steps) -> Latents:
        """Jump from clean latents `x0` straight to step t: DDPM eq. 4."""
        signal, sigma = self._scales(x0, t)
        return signal * x0 + sigma * noise

    def x0_from_eps(self, x_t: Latents, eps: Latents, t: Steps) -> Latents:
        """Subtract the predicted noise: the clean latents that (x_t, eps) imply."""
        signal, sigma = self._scales(x_t, t)
        return (x_t - sigma * eps) / signal

    def eps_from_x0(self, x_t: Latents, x0: Latents, t: Steps) -> Latents:
        """Return the noise that (x_t, x0) imply."""
        signal, sigma = self._scales(x_t, t)
        return (x_t - signal * x0) / sigma

    def v_from_eps(self, x_t: Latents, eps: Latents, t: Steps) -> Latents:
        """Return the velocity v = sqrt(ab) eps - sqrt(1 - ab) x0 (Salimans and Ho 2022, arXiv 2202.00512)."""
        signal, sigma = self._scales(x_t, t)
        return signal * eps - sigma * self.x0_from_eps(x_t, eps, t)

    def eps_from_v(self, x_t: Latents, v: Latents, t: Steps) -> Latents:
        """Return the noise that (x_t, v) imply: eps = sqrt(1 - ab) x_t + sqrt(ab) v."""
        signal, sigma = self._scales(x_t, t)
        return sigma * x_t + signal * v

    def signal_to_noise(self) -> Float[Tensor, " steps"]:
        """Return alpha_bar / (1 - alpha_bar) for every step, float64."""
        return self.alpha_bar / (1 - self.alpha_bar)


class FlowSchedule:
    """The straight way from a clean latent to noise: x_t = (1 - t) x_0 + t eps, for a time t from 0 to 1.

    Rectified flow (Liu et al. 2023, arXiv 2209.03003) and flow matching (Lipman et al. 2023, arXiv 2210.02747). There
    is no table and no number of steps; the velocity along the way is eps - x_0 at every t. Times are floating point,
    of shape (b,). `shift` moves the steps of a walk to its noisy part, for large pictures (Esser et al. 2024, arXiv
    2403.03206, eq. 23).
    """

    def __init__(self, shift: float = 1.0) -> None:
        if not (math.isfinite(shift) and shift > 0):
            raise ConfigError("FlowSchedule: shift", given=shift, expected="a positive number; 1 shifts nothing")
        self.shift = shift

    def add_noise(self, x0: Latents, noise: Latents, t: Float[Tensor, " b"]) -> Latents:
        """Return the point of the straight line from `x0` to `noise` at time t."""
        time = self._shaped(x0, t)
        return (1 - time) * x0 + time * noise

    def velocity(self, x0: Latents, noise: Latents) -> Latents:
        """Return what the network learns: the direction of that line, noise - x0."""
        return noise - x0

    def x0_from_velocity(self, x_t: Latents, velocity: Latents, t: Float[Tensor, " b"]) -> Latents:
        """Return the line's clean end."""
        return x_t - self._shaped(x_t, t) * velocity

    def eps_from_velocity(self, x_t: Latents, velocity: Latents, t: Float[Tensor, " b"]) -> Latents:
        """Return the line's noisy end."""
        return x_t + (1 - self._shaped(x_t, t)) * velocity

    def times(self, num_steps: int) -> list[float]:
        """Return the num_steps + 1 times of a walk, from 1 down to 0, shifted: s u / (1 + (s - 1) u)."""
        if num_steps < 1:
            raise ConfigError("FlowSchedule: num_steps", given=num_steps, expected="1 or more")
        even = [1 - k / num_steps for k in range(num_steps + 1)]
        return [self.shift * u / (1 + (self.shift - 1) * u) for u in even]

    def _shaped(self, like: Latents, t: Float[Tensor, " b"]) -> Tensor:
        if t.shape != like.shape[:1]:
            raise ShapeError("FlowSchedule: one time per picture", given=tuple(t.shape), expected=f"({like.shape[0]},)")
        if t.numel() and not (0 <= float(t.min()) and float(t.max()) <= 1):
            raise ConfigError("FlowSchedule: time", given=[float(t.min()), float(t.max())], expected="0 to 1")
        return t.view(-1, *[1] * (like.dim() - 1)).to(like)
