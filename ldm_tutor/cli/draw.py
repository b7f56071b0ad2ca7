"""`ldm-tutor draw`: a sentence becomes a picture."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ldm_tutor.cli.files import check_out, sheet, write_png
from ldm_tutor.cli.options import (
    MAX_SEED,
    PROGRAM,
    AnyWeights,
    Device,
    Ema,
    Guidance,
    Preset,
    Sampler,
    Seed,
    Steps,
    TokenizerPlace,
    usable_device,
    version,
    weights_folder,
    whole,
)
from ldm_tutor.errors import PromptError

EXAMPLE = 'Example: ldm-tutor draw "two small yellow cats in the snow" --seed 7 --num 8 --out cats.png'
COLUMNS = 8  # pictures in one row
LARGE = 128  # pixels: pictures above are not enlarged unasked


def draw(
    sentence: Annotated[str, typer.Argument(metavar="SENTENCE", help="What to draw, in quotes.", show_default=False)],
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = 4.0,
    num: Annotated[int, whole("--num", 1, 64, "How many pictures; they get the seeds SEED, SEED+1, ...")] = 4,
    sampler: Sampler = "dpm++",
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="What to move away from, in quotes.", show_default=False)
    ] = "",
    scale: Annotated[
        int | None,
        whole("--scale", 1, 16, f"Enlarge each pixel to a square with this side; 4, or 1 above {LARGE} pixels."),
    ] = None,
    weights: AnyWeights = None,
    preset: Preset = "sd_v1",
    tokenizer: TokenizerPlace = None,
    ema: Ema = None,
    device: Device = "auto",
    out: Annotated[Path, typer.Option(metavar="FILE.png", readable=False, help="Where the picture goes.")] = Path(
        "picture.png"
    ),
) -> None:
    """Draw a sentence, NUM pictures side by side."""
    start = time.perf_counter()
    negative = negative.strip()
    if not sentence.strip():
        raise PromptError("an empty sentence", given=sentence, expected='a sentence such as "a red cat at night"')
    if seed + num - 1 > MAX_SEED:
        raise typer.BadParameter(f"{seed}: the last picture's seed would exceed {MAX_SEED}.", param_hint="'--seed'")
    out = check_out(out, ".png")
    from tqdm import tqdm

    from ldm_tutor.open_model import open_pipeline
    from ldm_tutor.weights.sources import is_foreign

    foreign = weights is not None and is_foreign(weights)
    if not foreign:
        name_unknown_words(f"{sentence} {negative}")
        weights = weights_folder(weights)
    pipeline = open_pipeline(weights, preset=preset, tokenizer=tokenizer, ema=ema, device=str(usable_device(device)))
    if scale is None:
        scale = 1 if pipeline.config.picture_size > LARGE else 4
    seeds = [seed + i for i in range(num)]
    run = pipeline.steps(
        [sentence] * num,
        seeds,
        num_steps=steps,
        guidance=guidance,
        sampler=sampler,
        negative=[negative] * num if negative else None,
    )
    bar = tqdm(run, total=steps, desc="drawing", unit="step", leave=False, disable=not sys.stderr.isatty(), delay=1)
    for state in bar:
        latents = state.latents
    pictures = pipeline.decode(latents).clamp(-1, 1).add(1).mul(127.5).round().byte()
    notes = {
        "Software": f"{PROGRAM} {version()}",
        "Description": sentence,
        "Comment": f"seeds {_span(seeds)}, {steps} steps of {sampler}, guidance {guidance:g}, negative {negative!r}",
    }
    write_png(sheet(pictures, COLUMNS, scale), out, notes)
    many = f"{num} pictures, seeds" if num > 1 else "1 picture, seed"
    print(f"{out}: {many} {_span(seeds)}, {time.perf_counter() - start:.1f} s")


def name_unknown_words(text: str) -> None:
    """Say on stderr which words the model never learned, each with the nearest that it knows."""
    from ldm_tutor.data.scenes.words import unknown_words

    for word, near in unknown_words(text):
        hint = f"nearest: {', '.join(near)}" if near else "nothing like it is known"
        print(
            f"{PROGRAM}: note: {word!r} is not among the words of the scenes ({hint}); drawn all the same",
            file=sys.stderr,
        )


def _span(seeds: list[int]) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
