"""What else a denoiser can be asked for: the velocity of v-prediction, and that of the straight way."""

from __future__ import annotations

import torch

from ldm_tutor.sampling.velocity import THOUSAND
from ldm_tutor.schedule import FlowSchedule
from ldm_tutor.shapes import Float, Latents, Tensor, Times
from ldm_tutor.training.stages.denoiser import DenoiserStage


class VelocityStage(DenoiserStage):
    """v-prediction: the same noisy latents, another answer (Salimans and Ho 2022, arXiv 2202.00512).

    All steps count alike: the squared error of v is that of the noise over alpha_bar, which is a weight already.
    What it learns is drawn with `sampling.velocity.sees_noise`.
    """

    name, objective = "denoiser_v", "v"

    def ask(
        self, x0: Latents, noise: Latents, generator: torch.Generator
    ) -> tuple[Latents, Times, Latents, Float[Tensor, " b"]]:
        t = torch.randint(self.schedule.num_steps, (len(x0),), generator=generator)
        x_t = self.schedule.add_noise(x0, noise, t)
        return x_t, t, self.schedule.v_from_eps(x_t, noise, t), torch.ones(len(x0))


class FlowStage(DenoiserStage):
    """Flow matching on the straight way: a uniform time, and the direction from clean to noise (arXiv 2210.02747).

    What it learns is drawn with `sampling.velocity.sample_flow`.
    """

    name, objective = "denoiser_flow", "flow"

    def ask(
        self, x0: Latents, noise: Latents, generator: torch.Generator
    ) -> tuple[Latents, Times, Latents, Float[Tensor, " b"]]:
        flow, t = FlowSchedule(), torch.rand(len(x0), generator=generator)
        return flow.add_noise(x0, noise, t), THOUSAND * t, flow.velocity(x0, noise), torch.ones(len(x0))
