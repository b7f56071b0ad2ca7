"""The patch adversary's two sides, and the weight that keeps it in balance with the reconstruction.

Esser et al. 2021 (arXiv 2012.09841), eq. 6 and 7; hinge loss after Lim and Ye 2017 (arXiv 1705.02894).
"""

from __future__ import annotations

import torch

from ldm_tutor.shapes import Float, Tensor


def discriminator_loss(real: Float[Tensor, "*shape"], made: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the hinge loss: push verdicts on real patches above 1 and on made ones below -1."""
    return 0.5 * ((1 - real).relu().mean() + (1 + made).relu().mean())


def generator_loss(made: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return minus the mean verdict on made patches."""
    return -made.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Float[Tensor, ""]:
    """Return |grad reconstruction| / |grad adversarial| at the decoder's last layer, within 0 to 10,000, detached."""
    rec = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].float().norm()
    adv = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].float().norm()
    return (rec / (adv + 1e-4)).clamp(0, 1e4).detach()
