"""`ldm-tutor train --preset`: what goes together, and the recipe, the memory and the bill before anything is spent."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_tutor.errors import ConfigError

if TYPE_CHECKING:
    from ldm_tutor.training.options import TrainingOptions
    from ldm_tutor.training.presets import TrainingPreset

UTILISATION = 0.3  # of an A100's peak, for the bill: an assumption, and shown as one

PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="A model of another size, or way of training. scenes: the shipped model's size. small: half its work, for "
        "90 minutes. Without this option 'all' trains small from nothing, and everything else scenes. middle, "
        "middle256: the course's, for scenes (or --data) of 128 or 256 pixels. sd_v1, celebahq: the published ones, "
        "autoencoder or denoiser, for --data, with the published batch, learning rate and losses. What comes of sd_v1, "
        "--out/diffusers, ldm-tutor draw and export open; celebahq takes no sentence: the end of its training draws "
        "samples.png, and export opens its single file.",
        show_default=False,
    ),
]
Frozen = Annotated[
    str | None,
    typer.Option(
        "--frozen",
        metavar="PLACE",
        help="For the denoiser of sd_v1: a model whose text encoder it reads with, and, where --out has none, whose "
        "autoencoder it takes; neither changes. A folder (ours, diffusers', or CLIP's of transformers) or a hub name.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="With --preset: show recipe, sizes, memory and bill, and train nothing."),
]


def check_preset(
    name: str | None,
    stage: str,
    *,
    condition: str | None,
    data: str | None,
    frozen: str | None,
    dry_run: bool,
    timed: bool,
) -> TrainingPreset | None:
    """Return the preset called `name`, or None; typer prints the refusal of what does not go with it."""
    if name is None:
        for option, given in (("--frozen", frozen is not None), ("--dry-run", dry_run)):
            if given:
                raise typer.BadParameter("goes with --preset.", param_hint=f"'{option}'")
        return None
    if condition is not None:
        raise typer.BadParameter("a condition is learned for the model of 64 pixels; leave one of them out.",
                                 param_hint="'--preset'")  # fmt: skip
    from ldm_tutor.training.full_size import STAGES
    from ldm_tutor.training.presets import find_preset

    preset = find_preset(name)
    if dry_run and stage not in (*STAGES, "clip"):
        raise typer.BadParameter(f"shows autoencoder, clip or denoiser, not {stage}.", param_hint="'--dry-run'")
    if frozen is not None and (preset.paper is None or not preset.reads or stage != "denoiser"):
        raise typer.BadParameter("goes with the denoiser of sd_v1.", param_hint="'--frozen'")
    if preset.paper is None:
        return preset
    if stage not in STAGES:
        raise typer.BadParameter(f"{name} has the stages {' and '.join(STAGES)}, not {stage}.", param_hint="'--preset'")
    if data is None and not dry_run:
        raise typer.BadParameter(f"{name} learns from pictures of your own: --data FOLDER.", param_hint="'--preset'")
    if not timed and not dry_run:
        steps = f": its published run had {preset.paper.run.num_steps:,} steps" if stage == "denoiser" else ""
        raise typer.BadParameter(f"say with --steps or --minutes how long to train{steps}.", param_hint="'--preset'")
    return preset


def batch_of(preset: TrainingPreset | None, stage: str, given: int | None) -> int:
    """Return the rows of a batch: as given, else of the preset's recipe, else of the course's."""
    from ldm_tutor.training.stages.denoiser import BATCH_SIZE

    if given is not None:
        return given
    if preset is None:
        return BATCH_SIZE
    return preset.course.batch_size if preset.paper is None else preset.published(stage)[0]


def show_plan(stage: str, options: TrainingOptions) -> None:
    """Print how a preset's stage is trained, what it takes, whether that fits here, and what it comes to."""
    from ldm_tutor.training import memory
    from ldm_tutor.training.bill import bill
    from ldm_tutor.training.options import place
    from ldm_tutor.training.presets import recipe_lines

    preset = options.preset
    assert preset is not None
    device, dtype = place(options)
    need, rows = memory.need_of(stage, options, dtype), memory.rows_at_once(stage, options)
    latents, side = "x".join(map(str, preset.model.latent_shape)), preset.side(stage)
    lines = [("stage", f"{stage} of {preset.name}, on pictures of {side}x{side} pixels, latents of {latents} numbers")]
    lines += recipe_lines(preset, stage, options.batch_size, options.lr_rule)
    critic = ", its critic included" if stage == "autoencoder" else ""
    lines.append(("parameters", f"{need.parameters:,} that learn{critic}"))
    fixed, row, data = (memory.gigabytes(each) for each in (need.total(0), need.per_row, need.data))
    numbers = str(dtype).removeprefix("torch.")
    lines.append(("memory, counted", f"{fixed}, and {row} a row, in {numbers}; pictures and latents {data}"))
    try:
        memory.check_memory(stage, options, device, dtype)
        fits = f"{rows} rows at once fit"
    except ConfigError as error:
        fits = str(error)
    lines.append((f"here, on {device}", fits))
    if preset.paper is not None and stage == "denoiser":
        run = preset.paper.run
        days = bill(run.name, "A100", UTILISATION, cached=True).gpu_days
        told = f"; published: {run.reported_days:,.1f} {run.reported_on}-days" if run.reported_days else ""
        steps = f"{run.num_steps:,} steps of {run.batch_size}"
        lines.append(("bill", f"{steps}: {days:,.1f} A100-days at {UTILISATION:.0%} of its peak{told}"))
    lines += [("note", each) for each in preset.departures(stage)]
    for name, told in lines if options.team.is_main else ():
        print(textwrap.fill(told, 110, initial_indent=f"{name:18}", subsequent_indent=" " * 18))
