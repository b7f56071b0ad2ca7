"""`ldm-tutor data`: look at what the model learns from."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ldm_tutor.cli.files import check_out, sheet, write_json, write_png
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


@app.command(epilog="Example: ldm-tutor data check my_pictures --sheet my_pictures.png")
def check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="Pictures with a metadata.jsonl, with text files, or in one folder per class; WebDataset shards "
            "(.tar); or torchvision:NAME:FOLDER.",
        ),
    ],
    side: Annotated[int, whole("--side", 8, 1024, "The side of the pictures that the model will see.")] = 64,
    context: Annotated[int, whole("--context", 3, 1024, "Tokens that the text encoder takes, frame included.")] = 32,
    names: Annotated[int, whole("--names", 1, 10_000, "How many names of each kind to print.")] = 5,
    out: Annotated[
        Path | None, typer.Option("--sheet", metavar="FILE.png", help="Write a contact sheet.", show_default=False)
    ] = None,
    num: Annotated[int, whole("--num", 1, 1000, "Pictures on the sheet, spread over the whole folder.")] = 64,
    columns: Annotated[int, whole("--columns", 1, 64, "Pictures in one row.")] = 8,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="Write everything found.", show_default=False)
    ] = None,
) -> None:
    """Look at pictures and captions of your own before you train on them; nothing in FOLDER is changed.

    Counts, sizes, what cannot be read, doubles, captions that are missing, repeated or too long.
    """
    out = None if out is None else check_out(out, ".png", "--sheet")
    json_out = None if json_out is None else check_out(json_out, ".json", "--json")

    from ldm_tutor.data.check import check_pictures, report, to_dict

    found = check_pictures(source, side, context_length=context, wrap=_bar)
    print("\n".join(report(found, names)))
    if json_out is not None:
        write_json(to_dict(found), json_out)
        print(f"\n{json_out}: everything found, with every name")
    if out is not None:
        count = min(num, len(found.data))
        chosen = [round(k * (len(found.data) - 1) / max(1, count - 1)) for k in range(count)]
        write_png(sheet(found.data.pictures[chosen], columns, max(1, 128 // side)), out)
        print(f"\n{out}: {len(chosen)} of {len(found.data)} pictures, as the model will see them")
        for place, number in enumerate(chosen, start=1):
            print(f"{place:{len(str(num))}}  {found.data.captions[number] or '(no caption)'}")


def _bar(entries: Iterable[Any], desc: str = "") -> Iterable[Any]:
    """Return a progress bar over the entries, for a terminal."""
    from tqdm import tqdm

    return tqdm(entries, desc=desc, unit="picture", leave=False, disable=not sys.stderr.isatty(), delay=1)
