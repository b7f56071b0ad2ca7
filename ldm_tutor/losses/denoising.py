"""The diffusion loss: how far the predicted noise is from the noise that was added."""

from __future__ import annotations

from ldm_tutor.shapes import Float, Latents, Tensor


def noise_loss(eps_hat: Latents, noise: Latents) -> Float[Tensor, " b"]:
    """Return the mean squared error per picture, shape (b,): Rombach et al. 2022, eq. 3. Predicting 0 scores 1."""
    return (eps_hat.float() - noise.float()).square().flatten(1).mean(dim=1)
