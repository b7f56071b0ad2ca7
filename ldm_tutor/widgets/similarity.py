"""The similarity explorer: choose a picture, see its row of the matrix and the sentences that fit it best."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.plots.figures import COLORS, INK, check_alt, figure_style, png_bytes, to_uint8
from ldm_tutor.shapes import Float, Pictures, Tensor
from ldm_tutor.widgets.live import LiveFigure, make_control

NUM_BEST = 3


class SimilarityExplorer:
    """Pictures, their sentences (number i belongs to picture i) and the cosine of each pair, (pictures, sentences)."""

    def __init__(
        self, pictures: Pictures, sentences: Sequence[str], cosines: Float[Tensor, "pictures sentences"]
    ) -> None:
        number = len(sentences)
        if number < 1 or len(pictures) != number or tuple(cosines.shape) != (number, number):
            raise ShapeError(
                "SimilarityExplorer: pictures, sentences and cosines",
                given=(len(pictures), number, tuple(cosines.shape)),
                expected="n pictures, n sentences and an n x n matrix, n at least 1",
            )
        if not bool(torch.isfinite(cosines).all()):
            raise ConfigError("SimilarityExplorer: cosines", given="values that are not numbers", expected="numbers")
        self.pixels = to_uint8(pictures)
        self.sentences = list(sentences)
        self.cosines = cosines.detach().float().cpu()

    def best(self, picture: int) -> list[tuple[int, float]]:
        """Return the best sentences for a picture, best first: each one's number (its column) and its cosine."""
        row = self.cosines[picture]
        order = row.argsort(descending=True, stable=True)[:NUM_BEST].tolist()
        return [(k, float(row[k])) for k in order]

    def caption(self, picture: int) -> str:
        """Say in words what the figure shows for a picture."""
        lines = [
            f"{self.sentences[k]} ({value:.2f}{', its own' if k == picture else ''})" for k, value in self.best(picture)
        ]
        return f"Picture {picture}, best sentences: {'; '.join(lines)}."

    def draw(self, picture: int) -> Figure:
        """Draw the picture, its best sentences, and the matrix: its row framed, a dot in each of their cells."""
        with figure_style():
            figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.4), width_ratios=[1, 1.05, 1.35])
            left.imshow(self.pixels[picture])
            left.set(title=f"picture {picture}", anchor="N")  # at the height of the sentences
            left.axis("off")
            middle.axis("off")
            middle.set(xlim=(0, 1), ylim=(0, 1), title="best sentences")
            best = self.best(picture)
            for place, (k, value) in enumerate(best):
                own = k == picture
                text = f"{value:.2f}  sentence {k}{', its own' if own else ''}\n{textwrap.fill(self.sentences[k], 25)}"
                weight = "bold" if own else "normal"
                middle.text(0, 0.97 - 0.34 * place, text, va="top", fontsize=9, fontweight=weight)
            image = right.imshow(self.cosines.numpy(), cmap="cividis", vmin=-1, vmax=1)
            right.add_patch(
                Rectangle((-0.5, picture - 0.5), len(self.sentences), 1, fill=False, ec=COLORS["vermilion"], lw=2.5)
            )
            right.plot([k for k, _ in best], [picture] * len(best), "o", color="white", mec=INK, ms=4)
            right.set(xlabel="sentence", ylabel="picture", title="cosines")
            right.grid(visible=False)
            figure.colorbar(image, ax=right)
        return figure


def similarity_explorer(
    pictures: Pictures, sentences: Sequence[str], cosines: Tensor, alt: str, start: int = 0
) -> None:
    """Show a slider over the pictures of a similarity matrix; the first one also stands there without a kernel."""
    check_alt(alt)
    explorer = SimilarityExplorer(pictures, sentences, cosines)
    if not isinstance(start, int) or not 0 <= start < len(sentences):
        raise ConfigError("similarity_explorer: start", given=start, expected=f"0 to {len(sentences) - 1}")
    slider = make_control("picture", (0, len(sentences) - 1, start))
    drawn = cache(lambda picture: png_bytes(explorer.draw(picture)))  # at the second look it is there at once
    LiveFigure(drawn, alt, explorer.caption, {"picture": slider}).show()
