"""Make the README's picture with the shipped model: python docs/readme_picture.py."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.plots.figures import figure_style, to_uint8

SENTENCE, SEED = "a red bicycle in front of a blue house at night", 7
MORE = (
    ("two small yellow cats in the snow", 11),
    ("a large green rocket on the moon", 12),
    ("a white dog on the left on the beach", 13),
    ("a pink tree to the right of a blue car", 14),
    ("a small orange boat at sunset", 25),
    ("a large yellow ball at the top by day", 16),
)
SHOWN = (1, 4, 8, 12, 16, 20)
OUT = Path(__file__).resolve().parents[1] / "data" / "pictures" / "sentence_to_picture.png"


def main():
    pipe = load_pipeline()
    states = list(pipe.steps([SENTENCE], [SEED]))
    upper = torch.cat([pipe.decode(states[n - 1].latents) for n in SHOWN])
    lower = pipe.draw([sentence for sentence, _ in MORE], [seed for _, seed in MORE])
    titles = [f"step {n}" for n in SHOWN], [sentence for sentence, _ in MORE]
    with figure_style():
        figure, rows = plt.subplots(2, 6, figsize=(11, 4.6))
        for row, pictures, names in zip(rows, (upper, lower), titles, strict=True):
            for axes, picture, name in zip(row, to_uint8(pictures), names, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.axis("off")
                axes.set_title("\n".join(textwrap.wrap(name, 22)), fontsize=10)
        figure.suptitle(SENTENCE, fontsize=13)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
