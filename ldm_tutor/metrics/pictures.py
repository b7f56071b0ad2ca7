"""How close two pictures are."""

from __future__ import annotations

import torch

from ldm_tutor.shapes import Float, Pictures, Tensor


def psnr(pictures: Pictures, others: Pictures) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio per picture in dB, for values in [-1, 1]; equal pictures give inf.

    30 dB means that a pixel is off by about 3% of the range; each 6 dB more halves the error.
    """
    mse = ((pictures - others).float() / 2).square().flatten(1).mean(dim=1)
    return -10 * mse.log10()


def high_frequency_energy(pictures: Pictures, cutoff: float = 0.25) -> Float[Tensor, " b"]:
    """Return the mean squared value of what is finer than `cutoff` cycles per pixel; a blurred picture has less.

    0.25 keeps what repeats within 4 pixels; 0.5 is the finest that rows and columns can hold. Taken from the spectrum
    (Parseval): white noise of variance 1 scores the share of frequencies above the cutoff.
    """
    spectrum = torch.fft.fft2(pictures.float(), norm="ortho").abs().square()
    fy = torch.fft.fftfreq(pictures.shape[-2], device=pictures.device)
    fx = torch.fft.fftfreq(pictures.shape[-1], device=pictures.device)
    fine = (fy[:, None].square() + fx[None, :].square()).sqrt() > cutoff
    return (spectrum * fine).mean(dim=(1, 2, 3))
