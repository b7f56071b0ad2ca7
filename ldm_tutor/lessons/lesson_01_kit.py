"""What lesson 01 shows with: the same autoencoder in other units, its figures, and the latent microscope."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.plots.figures import check_alt, figure_style, picture_grid, signed_map
from ldm_tutor.shapes import Float, Latents, Pictures, Tensor
from ldm_tutor.widgets.live import LiveFigure, make_control

_LINES = ("-", "--", ":", "-.")


def noise_like(x: Tensor, seed: int) -> Tensor:
    """Return standard normal noise of the shape of x, the same for the same seed."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def in_units(autoencoder: Autoencoder, factor: float) -> Autoencoder:
    """Return the same autoencoder with latents `factor` times as large: same pictures, other units.

    The encoder's last layer is multiplied, the decoder's first divided; the scale factor follows.
    """
    if not (isinstance(factor, (int, float)) and 0 < factor < math.inf):
        raise ConfigError("in_units: factor", given=factor, expected="a positive number")
    other, c = copy.deepcopy(autoencoder), autoencoder.config.latent_channels
    if other.quant_conv.bias is None:
        raise ConfigError("in_units: quant_conv", given="no bias", expected="a bias")
    other.quant_conv.weight[:c] *= factor
    other.quant_conv.bias[:c] *= factor
    other.quant_conv.bias[c:] += 2 * math.log(factor)  # the logarithm of the variance
    other.post_quant_conv.weight /= factor
    other.config = dataclasses.replace(autoencoder.config, scale_factor=autoencoder.config.scale_factor / factor)
    return other


def neighbour_correlation(latents: Latents) -> float:
    """Return the correlation of each latent number with its right neighbour, the mean over the channels."""
    pairs = zip(latents[..., 1:].unbind(1), latents[..., :-1].unbind(1), strict=True)
    values = [torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairs]
    return float(torch.stack(values).mean())


def curves(
    panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]],
    x: Sequence[float],
    xlabel: str | Sequence[str],
    *,
    log: str = "",
    ticks: Sequence[float] | None = None,
) -> Figure:
    """Draw panels beside each other, each with its title and named curves over the same x.

    `xlabel`: one name of the x axis for all panels, or one for each. `log`: which axes are logarithmic, "x", "y" or
    "xy". `ticks`: places on the x axis, written as they are.
    """
    below = [xlabel] * len(panels) if isinstance(xlabel, str) else xlabel
    with figure_style():
        figure, row = plt.subplots(1, len(panels), figsize=(1.2 + 3.4 * len(panels), 3), squeeze=False)
        for axes, (title, named), name_of_x in zip(row[0], panels, below, strict=True):
            for (name, y), line in zip(named.items(), _LINES, strict=False):
                axes.plot(x, y, line, marker="o" if len(x) < 10 else "", label=name)
            if "x" in log:
                axes.set_xscale("log")
            if "y" in log:
                axes.set_yscale("log")
            if ticks is not None:
                axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
                axes.minorticks_off()
            axes.set(xlabel=name_of_x, title=title)
            if len(named) > 1:
                axes.legend(fontsize=9)
    return figure


class LatentMicroscope:
    """Latents of pictures: their channels, a way between two pictures, noise added, and what the decoder makes of it.

    `only` is "all" or the number of the one channel that is kept; the others are set to their mean over all pictures.
    """

    def __init__(self, autoencoder: Autoencoder, pictures: Pictures) -> None:
        if pictures.dim() != 4 or len(pictures) < 2:
            raise ShapeError("LatentMicroscope: pictures", given=tuple(pictures.shape), expected="two or more pictures")
        self.autoencoder, self.pictures = autoencoder, pictures
        with torch.inference_mode():
            self.latents = autoencoder.encode(pictures).mean
        self.limits = self.latents.abs().amax(dim=(0, 2, 3)).tolist()  # so that a colour means the same in every view
        self.noise = noise_like(self.latents[:1], seed=3)

    def mixed(self, first: int, second: int, mix: float, noise: float, only: str = "all") -> Float[Tensor, "1 c h w"]:
        """Return the latents that the controls describe, unscaled; `noise` in units of their standard deviation."""
        z = torch.lerp(self.latents[first : first + 1], self.latents[second : second + 1], mix)
        z = z + noise * self.latents.std() * self.noise
        if only != "all":
            kept = int(only)
            means = self.latents.mean(dim=(0, 2, 3))[None, :, None, None].expand_as(z).clone()
            means[:, kept] = z[:, kept]
            z = means
        return z

    def draw(self, first: int, second: int, mix: float, noise: float, only: str = "all") -> Figure:
        """Draw the picture decoded, the two pictures cross-faded as pixels, and the channels."""
        z = self.mixed(first, second, mix, noise, only)
        with torch.inference_mode():
            decoded = self.autoencoder.decode(z).clamp(-1, 1)
        faded = torch.lerp(self.pictures[first : first + 1], self.pictures[second : second + 1], mix)
        scale = self.pictures.shape[-1] // z.shape[-1]
        maps = [signed_map(channel, scale, limit) for channel, limit in zip(z[0], self.limits, strict=True)]
        names = [f"channel {k}" for k in range(len(maps))]
        return picture_grid([decoded, faded, *maps], ["latents, decoded", "pixels, faded", *names], scale=2)

    def caption(self, first: int, second: int, mix: float, noise: float, only: str = "all") -> str:
        """Say in words what is shown."""
        way = f"{1 - mix:.0%} of picture {first} and {mix:.0%} of picture {second}"
        kept = "all channels" if only == "all" else f"channel {only} alone"
        return f"{way}, noise of {noise:.1f} standard deviations, {kept}."


def latent_microscope(
    autoencoder: Autoencoder, pictures: Pictures, alt: str, *, first: int = 0, second: int = 1, mix: float = 0.5
) -> None:
    """Show the microscope with its controls; its first view also stands there without a kernel."""
    check_alt(alt)
    scope, last = LatentMicroscope(autoencoder, pictures), len(pictures) - 1
    for name, value in (("first", first), ("second", second)):
        if not isinstance(value, int) or not 0 <= value <= last:
            raise ConfigError(f"latent_microscope: {name}", given=value, expected=f"0 to {last}")
    controls = {
        "first": make_control("first", (0, last, first)),
        "second": make_control("second", (0, last, second)),
        "mix": make_control("mix", (0.0, 1.0, mix, 0.1)),
        "noise": make_control("noise", (0.0, 2.0, 0.0, 0.1)),
        "only": make_control("only", ["all", *map(str, range(autoencoder.config.latent_channels))]),
    }
    LiveFigure(scope.draw, alt, scope.caption, controls).show()
