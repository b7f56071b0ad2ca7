"""The diffusion loss: how far the predicted noise is from the noise that was added."""

from __future__ import annotations

from ldm_tutor.errors import ConfigError
from ldm_tutor.shapes import Float, Latents, Tensor


def noise_loss(eps_hat: Latents, noise: Latents) -> Float[Tensor, " b"]:
    """Return the mean squared error per picture, shape (b,): Rombach et al. 2022, eq. 3. Predicting 0 scores 1."""
    return (eps_hat.float() - noise.float()).square().flatten(1).mean(dim=1)


def min_snr_weight(snr: Float[Tensor, " b"], gamma: float) -> Float[Tensor, " b"]:
    """Return min(snr, gamma) / snr, the weight of each picture's noise loss: Hang et al. 2023 (arXiv 2303.09556).

    An equal error in the noise is a small error in the picture where there is little noise, and a large one where
    there is much. Unweighted, the loss looks mostly at steps that are nearly clean; so weighted, also at those in which
    kinds and places are decided. Weights are in (0, 1]; gamma = inf weighs all steps alike.
    """
    if not gamma > 0:
        raise ConfigError("min_snr_weight: gamma", given=gamma, expected="a positive number, or inf")
    return snr.clamp(max=gamma) / snr
