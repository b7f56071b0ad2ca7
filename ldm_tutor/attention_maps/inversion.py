"""A real picture as the end of a drawing: DDIM run backwards, and null-text inversion, which makes it fit guidance.

Mokady et al. 2022 (arXiv 2211.09794): run DDIM backwards without guidance (Song et al. 2021, arXiv 2010.02502), keep
every latent on the way, then change the empty sentence's context, step by step, until the guided drawing passes
through them. What is drawn then is the picture, and an edit of it works as on any other drawing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.steps import ddim_step, timestep_grid
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Context, Latents, Tensor

RATE, INNER_STEPS = 1e-2, 10  # Adam's rate falls from RATE by a hundredth of it per step, in long runs by less
STOP, STOP_GROWTH = 1e-5, 2e-5  # a step is good enough below STOP + step * STOP_GROWTH


@dataclass(frozen=True)
class Inversion:
    """A picture's way back to noise. `path`: the latents before each step of a drawing, and last the clean ones.

    `empties`: for each step the context that stands for the empty sentence, (b, m, d) or (1, m, d). `misses`: how far
    each guided step lands from the path, as a mean square. `sentence` and `guidance`: what it was found with.
    """

    path: tuple[Latents, ...]
    empties: tuple[Context, ...]
    misses: tuple[float, ...] = ()
    sentence: str | None = None
    guidance: float | None = None

    @property
    def num_steps(self) -> int:
        """How many steps the drawing has."""
        return len(self.path) - 1

    @property
    def noise(self) -> Latents:
        """The latents that the drawing starts from."""
        return self.path[0]


class StepwiseGuided:
    """Guidance whose empty context is another one at each step: a denoiser `(latents, t, step) -> eps` for `sample`."""

    def __init__(
        self,
        unet: Callable[[Latents, Tensor, Context], Latents],
        context: Context,
        empties: Sequence[Context],
        scale: float,
    ) -> None:
        self.unet, self.context, self.empties, self.scale = unet, context, tuple(empties), scale

    def __call__(self, latents: Latents, t: int, step: int) -> Latents:
        """Return the guided noise; ConfigError for a step that has no context."""
        if not 0 <= step < len(self.empties):
            raise ConfigError("StepwiseGuided: step", given=step, expected=f"0 to {len(self.empties) - 1}")
        return Guided(self.unet, self.context, self.empties[step], self.scale)(latents, t, step)


@torch.no_grad()
def ddim_path(
    unet: Callable[[Latents, Tensor, Context], Latents],
    latents: Latents,
    context: Context,
    schedule: NoiseSchedule,
    num_steps: int,
) -> tuple[Latents, ...]:
    """Walk clean latents back to noise without guidance; return the path from the noise to them, num_steps + 1 long.

    The step from t' up to t uses the noise that the U-Net sees in the latents of t' when it is told t, as in the
    published code: right only where neighbours of the path are alike, so many steps come back more exactly than few.
    """
    if latents.shape[0] != context.shape[0]:
        raise ShapeError("ddim_path: one context per picture", given=context.shape[0], expected=f"{latents.shape[0]}")
    grid = timestep_grid(schedule, num_steps)
    path = [latents]
    for k in reversed(range(num_steps)):
        eps = Guided(unet, context, None, 1.0)(path[-1], grid[k], k)
        here = grid[k + 1] if k + 1 < num_steps else None
        path.append(ddim_step(path[-1], eps, here, grid[k], schedule).x_prev)
    return tuple(path[::-1])


def null_text(
    unet: nn.Module,
    path: Sequence[Latents],
    context: Context,
    empty: Context,
    schedule: NoiseSchedule,
    guidance: float,
    *,
    inner_steps: int = INNER_STEPS,
    rate: float = RATE,
) -> Inversion:
    """Change the empty sentence's context at each step until the guided DDIM step lands on the path.

    `empty`: (1, m, d), where it begins; every step goes on from the one before. With inner_steps=0 nothing is changed,
    and what comes back is plain DDIM inversion. The U-Net's weights stay as they are.
    """
    grid = timestep_grid(schedule, len(path) - 1)
    b = context.shape[0]
    context = context.detach().clone()
    null = empty.detach().clone().expand(b, -1, -1).contiguous()
    latents, empties, misses = path[0], [], []
    with _frozen(unet):
        for k in range(len(grid)):

            def guided_step(null: Context, step: int = k, x: Latents = latents) -> Latents:
                t, t_prev = grid[step], grid[step + 1] if step + 1 < len(grid) else None
                return ddim_step(x, Guided(unet, context, null, guidance)(x, t, step), t, t_prev, schedule).x_prev

            adam = _Adam(null, rate * (1 - k / max(100, len(grid))))
            for _ in range(inner_steps):
                with torch.enable_grad():
                    null = null.detach().requires_grad_()
                    loss = (guided_step(null) - path[k + 1]).square().mean()
                    (slope,) = torch.autograd.grad(loss, [null])
                null = adam.step(null.detach(), slope)
                if float(loss.detach()) < STOP + k * STOP_GROWTH:
                    break
            null = null.detach()
            with torch.no_grad():
                latents = guided_step(null)
            empties.append(null)
            misses.append(float((latents - path[k + 1]).square().mean()))
    return Inversion(tuple(path), tuple(empties), tuple(misses), guidance=guidance)


class _Adam:
    """Adam for one tensor (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); torch.optim takes seconds to import."""

    def __init__(self, x: Tensor, rate: float) -> None:
        self.rate, self.count = rate, 0
        self.mean, self.square = torch.zeros_like(x), torch.zeros_like(x)

    def step(self, x: Tensor, slope: Tensor) -> Tensor:
        """Return x after one step against the slope."""
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1 * slope
        self.square = 0.999 * self.square + 0.001 * slope.square()
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return x - self.rate * mean / (square.sqrt() + 1e-8)


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Let no gradient reach the weights inside the block."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
