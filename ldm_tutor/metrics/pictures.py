"""How close two pictures are."""

from __future__ import annotations

from ldm_tutor.shapes import Float, Pictures, Tensor


def psnr(pictures: Pictures, others: Pictures) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio per picture in dB, for values in [-1, 1]; equal pictures give inf.

    30 dB means that a pixel is off by about 3% of the range; each 6 dB more halves the error.
    """
    mse = ((pictures - others).float() / 2).square().flatten(1).mean(dim=1)
    return -10 * mse.log10()
