"""`ldm-tutor data`: look at what the model learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ldm_tutor.cli.files import check_out, sheet, write_png
from ldm_tutor.cli.options import Scale, Seed, whole

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at the pictures that the model learns from.")

SplitName = Literal["train", "test", "unseen", "three"]


@app.command(epilog="Example: ldm-tutor data preview --split unseen --num 32 --out unseen.png")
def preview(
    num: Annotated[int, whole("--num", 1, 1000, "How many scenes.")] = 16,
    split: Annotated[
        SplitName,
        typer.Option(
            help="train; test: scenes of the same law, never trained on; unseen: with a pair of object and colour "
            "that training leaves out; three: three objects."
        ),
    ] = "train",
    seed: Seed = 0,
    columns: Annotated[int, whole("--columns", 1, 64, "Pictures in one row.")] = 8,
    scale: Scale = 2,
    out: Annotated[Path, typer.Option(metavar="FILE.png", readable=False, help="Where the sheet goes.")] = Path(
        "preview.png"
    ),
) -> None:
    """Draw the first NUM scenes of a split on one sheet and print their captions, numbered row by row."""
    out = check_out(out, ".png")

    from ldm_tutor.data.scenes.datasets import render_scenes

    scenes = render_scenes(num, split, seed)
    write_png(sheet(scenes.pictures, columns, scale), out)
    for number, caption in enumerate(scenes.captions, start=1):
        print(f"{number:{len(str(num))}}  {caption}")
    print(f"\n{out}: {num} scenes of the split {split!r}, seed {seed}")
