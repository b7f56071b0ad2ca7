"""Networks that answer with a velocity: read as one that sees noise, or followed along the flow, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ldm_tutor.errors import ConfigError
from ldm_tutor.sampling.loop import Denoiser, check_answer, check_finite
from ldm_tutor.schedule import FlowSchedule, NoiseSchedule
from ldm_tutor.shapes import Latents

THOUSAND = 1000  # a flow's time 0 to 1 is told to the network as 0 to 1000, the range its wave is made for
FLOW_SAMPLERS = ("euler", "heun")


def sees_noise(velocity: Denoiser, schedule: NoiseSchedule) -> Denoiser:
    """Return the denoiser for `sample` that a network of v-prediction is: what it says, turned into noise.

    Salimans and Ho 2022 (arXiv 2202.00512). Guidance may come before or after; the way from v to noise is linear.
    """

    def answer(x: Latents, t: int, step: int) -> Latents:
        return schedule.eps_from_v(x, velocity(x, t, step), torch.full((len(x),), t))

    return answer


@dataclass(frozen=True)
class FlowState:
    """Where a walk along the flow stands after one step: at time `t_next`, in `latents`.

    `step` counts from 0 to num_steps - 1; the network was asked at time `t`, and `x0_hat` is where its answer points.
    """

    step: int
    num_steps: int
    t: float
    t_next: float
    latents: Latents
    x0_hat: Latents


def sample_flow(
    velocity: Callable[[Latents, float, int], Latents],
    latents: Latents,
    schedule: FlowSchedule | None = None,
    *,
    sampler: str = "euler",
    num_steps: int = 50,
) -> Iterator[FlowState]:
    """Walk along the flow from noise (b, c, h, w) to clean latents, yielding a FlowState after every step.

    `velocity` gets the latents, 1000 times the time, and the running step; a `Guided` network is one. `euler` asks it
    once per step. `heun` also asks at the step's end and takes the mean of both, except in the last step, as in Karras
    et al. 2022 (arXiv 2206.00364, algorithm 1). Raises ConfigError at once for a bad setting, and at the step where
    latents stop being finite; ShapeError where the answer has another shape.
    """
    if sampler not in FLOW_SAMPLERS:
        raise ConfigError("sample_flow: sampler", given=sampler, expected=f"one of {FLOW_SAMPLERS}")
    schedule = FlowSchedule() if schedule is None else schedule
    times = schedule.times(num_steps)
    check_finite(latents, "sample_flow: the latents to start from")

    def ask(x: Latents, t: float, step: int) -> Latents:
        return check_answer(velocity(x, THOUSAND * t, step), x, f"sample_flow: the answer at step {step} (t={t:.3f})")

    def run(x: Latents) -> Iterator[FlowState]:
        for step, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
            direction = ask(x, t, step)
            x0_hat = x - t * direction
            if sampler == "heun" and t_next > 0:
                direction = (direction + ask(x + (t_next - t) * direction, t_next, step)) / 2
            x = x + (t_next - t) * direction
            check_finite(x, f"sample_flow: the latents after step {step} (t={t:.3f})")
            yield FlowState(step, num_steps, t, t_next, x, x0_hat)

    return run(latents)
