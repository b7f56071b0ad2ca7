"""`ldm-tutor evaluate`: how good is a model, as a table and as JSON."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ldm_tutor.cli.files import check_out, table, write_json
from ldm_tutor.cli.options import (
    GUIDANCE,
    MAX_SEED,
    PROGRAM,
    SAMPLER,
    Device,
    SamplerName,
    Steps,
    Weights,
    check_guidance,
    conditions_folder,
    usable_device,
    version,
    weights_folder,
    whole,
)

EXAMPLE = "Example: ldm-tutor evaluate pictures --num 512 --json result.json"
# Scenes, unless --num says otherwise.
NUMS = {"pictures": 256, "autoencoder": 512, "clip": 4096, "judge": 2000, "grounding": 500, "editing": 300}
NUMS |= dict.fromkeys(STEERED := ("layout", "inpainting", "upscaling"), 512)
FEWEST = {"pictures": 2, "autoencoder": 1, "clip": 512, "judge": 1, "grounding": 16, "editing": 8}
FEWEST |= dict.fromkeys(STEERED, 2)
BATCH = 64  # pictures drawn at once
EDIT_BATCH = 6  # edits, each with its source and its companions

TargetName = Literal[
    "pictures", "autoencoder", "clip", "judge", "grounding", "editing", "layout", "inpainting", "upscaling"
]


def evaluate(
    target: Annotated[TargetName, typer.Argument(help="What to measure.")],
    num: Annotated[
        int | None,
        whole("--num", 1, 100_000, f"Scenes; without it {', '.join(f'{n} for {t}' for t, n in NUMS.items())}."),
    ] = None,
    seed: Annotated[int, whole("--seed", 0, MAX_SEED // 2, "Chooses the scenes and the pictures' noise.")] = 0,
    steps: Steps = 20,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            metavar="X",
            callback=lambda scale: None if scale is None else check_guidance(scale),
            help=f"How much to insist on the sentence; 1 is no guidance. [default: {GUIDANCE:g}, and for layout, "
            "inpainting and upscaling what drawing has]",
            show_default=False,
        ),
    ] = None,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(
            "--sampler",
            help=f"The rule by which a step takes noise away. [default: {SAMPLER}, and for layout, inpainting and "
            "upscaling dpm++]",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    conditions: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For layout, inpainting and upscaling: the folder of the condition. [default: the shipped ones]",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", readable=False, help="Write every figure to this file too.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure a model on held-out scenes. --steps, --guidance and --sampler count where pictures are drawn."""
    out = check_out(json, ".json", "--json") if json is not None else None
    num = NUMS[target] if num is None else num
    if num < FEWEST[target]:
        raise typer.BadParameter(f"{num} is too few for {target}: {FEWEST[target]} or more.", param_hint="'--num'")
    settings: dict[str, Any] = {"num": num, "seed": seed}
    sampler = sampler or ("dpm++" if target in STEERED else SAMPLER)  # type: ignore[assignment]
    drawing: dict[str, Any] = {"num_steps": steps, "sampler": sampler}
    if guidance is not None or target not in STEERED:
        drawing["guidance"] = GUIDANCE if guidance is None else guidance

    from ldm_tutor import evaluation
    from ldm_tutor.pipeline import load_pipeline
    from ldm_tutor.weights.course_clip import load_course_clip
    from ldm_tutor.weights.shipped import resolve

    folder = resolve(weights_folder(weights))
    place = str(usable_device(device))
    print(f"{PROGRAM}: measuring {target} of {folder} on {num} scenes", file=sys.stderr)
    if target == "judge":
        report = evaluation.evaluate_judge(evaluation.load_judge(folder, place), **settings)
    elif target == "clip":
        report = evaluation.evaluate_clip(*load_course_clip(folder, place), **settings)
    elif target == "grounding":
        report = evaluation.evaluate_grounding(load_pipeline(folder, place), wrap=_bar(num), **settings)
    elif target == "autoencoder":
        judge = evaluation.load_judge(folder, place)
        report = evaluation.evaluate_autoencoder(load_pipeline(folder, place), judge, **settings)
    elif target in STEERED:
        from ldm_tutor import evaluation_steering
        from ldm_tutor.steering import load_steered

        judge = evaluation.load_judge(folder, place)
        files = conditions_folder(conditions, target)
        steered = load_steered(target, files, place, pipeline=load_pipeline(folder, place))
        measure = getattr(evaluation_steering, f"evaluate_{target}")
        report = measure(steered, judge, wrap=_bar(num), **settings, **drawing)
        settings |= report.pop("settings")
    else:
        judge = evaluation.load_judge(folder, place)
        pipeline = load_pipeline(folder, place)
        if target == "editing":
            bar = _bar(num, EDIT_BATCH)
            report = evaluation.evaluate_editing(
                pipeline, judge, wrap=bar, batch_size=EDIT_BATCH, **settings, **drawing
            )
        else:
            report = evaluation.evaluate_pictures(pipeline, judge, wrap=_bar(num), **settings, **drawing)
        settings |= report.pop("settings")

    print(table([("", "value", "95% interval", "n"), *(_row(*each) for each in flat(report))]))
    if out is not None:
        places = {"--weights": weights, "--conditions": conditions}
        more = [word for name, path in places.items() if path is not None for word in (name, str(path))]
        command = shlex.join([PROGRAM, "evaluate", target, *_given(settings), *more])
        write_json(
            {"command": command, "version": version(), "target": target, "settings": settings, "figures": report}, out
        )
        print(f"\nwritten: {out}")


def flat(report: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each figure {value, interval, num} of a nested report with its path, such as `fid` or `judge.color`."""
    for name, entry in report.items():
        if "value" in entry:
            yield path + name, entry
        else:
            yield from flat(entry, f"{path}{name}.")


def _row(name: str, figure: dict[str, Any]) -> tuple[str, ...]:
    low_high = figure["interval"]
    interval = "" if low_high is None else f"{low_high[0]:.4g} to {low_high[1]:.4g}"
    return name, f"{figure['value']:.4g}", interval, str(figure["num"])


def _given(settings: dict[str, Any]) -> list[str]:
    """Return the options that repeat this measurement."""
    names = {"num": "--num", "seed": "--seed", "num_steps": "--steps", "guidance": "--guidance", "sampler": "--sampler"}
    return [word for key, name in names.items() if key in settings for word in (name, str(settings[key]))]


def _bar(num: int, batch: int = BATCH) -> Any:
    """Return a progress bar for batches of pictures."""
    from tqdm import tqdm

    def show(batches: Iterable[Any], desc: str = "") -> Iterable[Any]:
        return tqdm(batches, total=-(-num // batch), desc=desc, unit="batch")

    return show
