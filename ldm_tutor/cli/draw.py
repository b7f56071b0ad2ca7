"""`ldm-tutor draw`: a sentence becomes a picture, or boxes, a hole, a small picture, a picture to start from."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm_tutor.cli.draw_conditions import KIND_OF, OPTIONS, STRENGTH, USUAL, check_together, draw_asked, read
from ldm_tutor.cli.files import check_out, sheet, write_png
from ldm_tutor.cli.options import (
    GUIDANCE,
    MAX_SEED,
    PROGRAM,
    SAMPLER,
    SINGLE_FILE,
    AnyWeights,
    Device,
    Ema,
    Precision,
    Preset,
    SamplerName,
    Seed,
    Steps,
    TokenizerPlace,
    check_guidance,
    check_single_file,
    usable_device,
    version,
    weights_folder,
    whole,
)
from ldm_tutor.errors import ConfigError, PromptError

if TYPE_CHECKING:
    import torch

    from ldm_tutor.pipeline import DrawingPipeline

EXAMPLE = 'Example: ldm-tutor draw "two small yellow cats in the snow" --seed 7 --num 8 --out cats.png'
COLUMNS = 8  # pictures in one row
LARGE = 128  # pixels: pictures above are not enlarged unasked


def _guidance(scale: float | None) -> float | None:
    return None if scale is None else check_guidance(scale)


def _strength(share: float | None) -> float | None:
    if share is not None and not 0 <= share <= 1:
        raise typer.BadParameter(f"{share} is not a number from 0 (keep the picture) to 1 (forget it).")
    return share


def draw(
    sentence: Annotated[
        str | None,
        typer.Argument(
            metavar="SENTENCE",
            help="What to draw, in quotes; may be left out with --boxes, --inpaint and --upscale.",
            show_default=False,
        ),
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            "--boxes",
            metavar="BOXES",
            help='What goes where: "cat 0.1 0.2 0.5 0.8; tree 0.6 0.3 0.9 0.9", left, top, right and bottom as shares '
            "of the side.",
            show_default=False,
        ),
    ] = None,
    inpaint: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--inpaint",
            metavar="PICTURE MASK",
            help="Draw a part of a picture anew: where the mask, a picture of the same size, is bright. The middle "
            "square is used.",
            show_default=False,
        ),
    ] = None,
    upscale: Annotated[
        Path | None,
        typer.Option(
            "--upscale", metavar="PICTURE", help="Draw a small picture at four times the side.", show_default=False
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PICTURE", help="Start from a picture: its middle square, noised.", show_default=False
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            metavar="S",
            callback=_strength,
            help=f"With --from: 0 keeps the picture, 1 forgets it. [default: {STRENGTH}]",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            metavar="X",
            callback=_guidance,
            help=f"How much to insist; 1 is no guidance. [default: {GUIDANCE:g}; 4 with --from and for other programs' "
            "models, 3 with boxes, 1.5 in a hole, 1 with --upscale]",
            show_default=False,
        ),
    ] = None,
    num: Annotated[
        int | None,
        whole("--num", 1, 64, "How many pictures, of the seeds SEED, SEED+1, ...; 4, or 1 with --upscale."),
    ] = None,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(
            "--sampler",
            help=f"The rule by which a step takes noise away. [default: {SAMPLER} for a sentence and the course's "
            "model, ddim with --upscale, otherwise dpm++]",
            show_default=False,
        ),
    ] = None,
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="What to move away from, in quotes.", show_default=False)
    ] = "",
    scale: Annotated[
        int | None,
        whole("--scale", 1, 16, f"Enlarge each pixel to a square with this side; 4, or 1 above {LARGE} pixels."),
    ] = None,
    weights: AnyWeights = None,
    conditions: Annotated[
        Path | None,
        typer.Option(
            "--conditions",
            metavar="FOLDER",
            help="Where the weights for --boxes, --inpaint or --upscale are. [default: those of the course]",
            show_default=False,
        ),
    ] = None,
    preset: Preset = SINGLE_FILE,
    tokenizer: TokenizerPlace = None,
    ema: Ema = None,
    device: Device = "auto",
    precision: Precision = "auto",
    out: Annotated[Path, typer.Option(metavar="FILE.png", readable=False, help="Where the picture goes.")] = Path(
        "picture.png"
    ),
) -> None:
    """Draw a sentence, NUM pictures side by side; or let boxes, a hole, or another picture say what to draw."""
    start = time.perf_counter()
    negative = negative.strip()
    given: dict[str, Any] = {"boxes": boxes, "inpaint": inpaint, "upscale": upscale, "source": source}
    name = check_together(given, sentence, negative, strength, conditions)
    sentence = sentence or ""
    if name is None and not sentence.strip():
        raise PromptError("an empty sentence", given=sentence, expected='a sentence such as "a red cat at night"')
    if name in KIND_OF and precision not in ("auto", "float32"):
        raise typer.BadParameter(
            f"{precision}: what {OPTIONS[name]} learned belongs to the course's model in float32; leave it out.",
            param_hint="'--precision'",
        )
    num = (1 if name == "upscale" else 4) if num is None else num
    if seed + num - 1 > MAX_SEED:
        raise typer.BadParameter(f"{seed}: the last picture's seed would exceed {MAX_SEED}.", param_hint="'--seed'")
    out = check_out(out, ".png")
    for each in (*(inpaint or ()), upscale, source):
        if each is not None and Path(each).expanduser().resolve() == out.resolve():
            raise typer.BadParameter(f"{out} is a picture that you gave; name another file.", param_hint="'--out'")
    asked = None if name is None else read(name, strength=strength, **given)
    from ldm_tutor.open_model import open_pipeline
    from ldm_tutor.weights.sources import is_foreign

    check_single_file(weights, preset, tokenizer, ema)
    foreign = weights is not None and is_foreign(weights)
    if foreign and name in KIND_OF:
        raise ConfigError(f"--{name} steers the course's own model", given=str(weights), fix="leave --weights out")
    if not foreign:
        weights = weights_folder(weights)
    where = str(usable_device(device))
    opening: dict[str, Any] = {"preset": preset, "tokenizer": tokenizer, "ema": ema, "precision": precision}
    pipeline = open_pipeline(weights, device=where, **opening)
    if not foreign:
        name_unknown_words(f"{sentence} {negative}", pipeline.tokenizer)
    seeds = [seed + i for i in range(num)]
    usual = USUAL[name] if name is not None else pipeline.drawing
    sampler, guidance = sampler or usual.sampler, usual.guidance if guidance is None else guidance  # type: ignore[assignment]
    settings: dict[str, Any] = {"num_steps": steps, "guidance": guidance, "sampler": sampler}
    if asked is None:
        pictures = _draw_sentences(pipeline, [sentence] * num, seeds, negative, settings)
    else:
        pictures = draw_asked(asked, pipeline, conditions, sentence, seeds, **settings)
    if scale is None:
        scale = 1 if pictures.shape[-1] > LARGE else 4
    told = f"seeds {_span(seeds)}, {steps} steps of {sampler}, guidance {guidance:g}, negative {negative!r}"
    if (numbers := str(pipeline.precision).removeprefix("torch.")) != "float32":
        told += f", {numbers}"
    notes = {
        "Software": f"{PROGRAM} {version()}",
        "Description": sentence or asked.words if asked is not None else sentence,
        "Comment": told if asked is None else f"{asked.words}; {told}",
    }
    write_png(sheet(pictures.clamp(-1, 1).add(1).mul(127.5).round().byte(), COLUMNS, scale), out, notes)
    many = f"{num} pictures, seeds" if num > 1 else "1 picture, seed"
    print(f"{out}: {many} {_span(seeds)}, {time.perf_counter() - start:.1f} s")


def _draw_sentences(
    pipeline: DrawingPipeline, sentences: list[str], seeds: list[int], negative: str, settings: dict[str, Any]
) -> torch.Tensor:
    """Draw the sentences, with a bar where someone watches; pictures in [-1, 1], or a little beyond."""
    from tqdm import tqdm

    run = pipeline.steps(sentences, seeds, negative=[negative] * len(seeds) if negative else None, **settings)
    hidden, total = not sys.stderr.isatty(), settings["num_steps"]
    for state in tqdm(run, total=total, desc="drawing", unit="step", leave=False, disable=hidden, delay=1):
        latents = state.latents
    return pipeline.decode(latents)


def name_unknown_words(text: str, tokenizer: Any) -> None:
    """Say on stderr which words the model never learned, each with the nearest of those that scenes are told with.

    A model of other pictures has words of its own: what its tokenizer has as one piece it knows.
    """
    from ldm_tutor.data.scenes.words import unknown_words

    known = getattr(tokenizer, "vocab", {})
    for word, near in unknown_words(text):
        if f"{word.lower()}</w>" in known:
            continue
        hint = f"nearest: {', '.join(near)}" if near else "nothing like it is known"
        print(
            f"{PROGRAM}: note: {word!r} is not among the words of the scenes ({hint}); drawn all the same",
            file=sys.stderr,
        )


def _span(seeds: list[int]) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
