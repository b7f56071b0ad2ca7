"""The diffusion loss: how far the predicted noise is from the noise that was added."""

from __future__ import annotations

from ldm_tutor.shapes import Float, Latents, Tensor


def noise_loss(eps_hat: Latents, noise: Latents, weight: Float[Tensor, "b 1 h w"] | None = None) -> Float[Tensor, " b"]:
    """Return the mean squared error per picture, shape (b,): Rombach et al. 2022, eq. 3. Predicting 0 scores 1.

    `weight` multiplies the error at each position.
    """
    squared = (eps_hat.float() - noise.float()).square()
    return (squared if weight is None else weight * squared).flatten(1).mean(dim=1)


def step_weight(alpha_bar: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """Return the weight of the noise loss at each step: about that of the same error in the clean latents.

    An error in the noise is an error sqrt((1 - alpha_bar) / alpha_bar) times as large in x0_hat. So the plain loss
    looks mostly at steps that are nearly clean, and hardly at the noisy ones in which a picture's layout is decided.
    The weight is min(snr, 1) / (snr alpha_bar): on x0_hat it acts as a factor between 1 and 2 at every step. Between
    min-SNR (Hang et al. 2023, arXiv 2303.09556, table 1) and the velocity's loss (Salimans and Ho 2022).
    """
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=1.0) / (snr * alpha_bar)
