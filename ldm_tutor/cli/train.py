"""`ldm-tutor train`: one stage of the recipe, or all of them."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ldm_tutor.cli.files import check_folder
from ldm_tutor.cli.options import MAX_SEED, PROGRAM, Device, usable_device, whole
from ldm_tutor.cli.train_presets import DryRun, Frozen, PresetName, batch_of, check_preset, show_plan
from ldm_tutor.errors import ConfigError, WeightsError

EXAMPLE = "Example: ldm-tutor train all --minutes 90 --out runs/mine"
ALL_MINUTES = 90.0
ALL_PRESET = "small"  # of 'all' from nothing: what two processor cores train in that time
log = logging.getLogger(__name__)

StageName = Literal["perceptual", "judge", "autoencoder", "clip", "denoiser", "all"]
ConditionName = Literal["layout", "inpainting", "upscaling", "class", "semantic"]


def train(
    stage: Annotated[
        StageName,
        typer.Argument(help="What to train; 'all' is every stage in the order in which they need each other."),
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help=f"Train this long, more than 0. [default: {ALL_MINUTES:g} for 'all', and for a stage its share of it]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None, whole("--steps", 1, 10_000_000, "Train this many steps instead; for one stage only.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where --out holds an earlier run.")
    ] = False,
    start_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Train the weights in this folder further, not random first ones; for sd_v1 also a diffusers folder.",
        ),
    ] = None,
    decoder_only: Annotated[
        bool,
        typer.Option(
            "--decoder-only", help="For the autoencoder: keep the encoder, and so the latents, of --start-from."
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", readable=False, help="Weights, checkpoints and logs go here.")
    ] = Path("runs/scenes"),
    seed: Annotated[int, whole("--seed", 0, MAX_SEED, "For the scenes, first weights and every step.")] = 0,
    device: Device = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="auto: bfloat16 where it is faster here.")
    ] = "auto",
    num_scenes: Annotated[int, whole("--num-scenes", 64, 2_000_000, "How many scenes to learn from.")] = 100_000,
    workers: Annotated[int, whole("--workers", 0, 256, "Processes that draw the scenes; 0: this one.")] = 0,
    threads: Annotated[int | None, whole("--threads", 1, 1024, "CPU threads; without it, PyTorch chooses.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Learn from pictures and captions of your own instead of scenes: autoencoder, clip, denoiser or all. "
            "Look at them first with ldm-tutor data check.",
            show_default=False,
        ),
    ] = None,
    preset: PresetName = None,
    frozen: Frozen = None,
    dry_run: DryRun = False,
    condition: Annotated[
        ConditionName | None,
        typer.Option(
            help="For the denoiser: learn to be steered by this too. The model, --start-from or the shipped one, stays "
            "as it is; what it learns goes to <condition>.safetensors."
        ),
    ] = None,
    rank: Annotated[
        int | None, whole("--rank", 0, 512, "Of the condition's differences to the U-Net; 0: all weights.")
    ] = None,
    batch: Annotated[
        int | None,
        whole(
            "--batch",
            1,
            1_000_000,
            "For the denoiser, and sd_v1's and celebahq's autoencoder: rows of a batch, of all processes together; "
            "otherwise what the preset says, or 32.",
        ),
    ] = None,
    accumulate: Annotated[
        int, whole("--accumulate", 1, 100_000, "For the denoiser: pieces in which a process computes its rows.")
    ] = 1,
    lr_rule: Annotated[
        Literal["fixed", "linear", "root"] | None,
        typer.Option(
            help="What another --batch does to the learning rate: nothing, in proportion, or as its root. "
            "[default: what the preset says, or fixed]",
            show_default=False,
        ),
    ] = None,
    save_every: Annotated[
        float, typer.Option(metavar="X", min=0.0, help="Seconds from one checkpoint to the next.")
    ] = 120.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no news.")] = False,
) -> None:
    """Train one stage of the model, or all of them.

    In this order: perceptual (a small network by whose features pictures are compared), judge (reads from a picture
    what is in it), autoencoder (needs perceptual), clip, denoiser (the U-Net; needs autoencoder and clip). Ctrl-C
    writes a checkpoint, and --resume goes on from it with the same numbers as if nothing had happened.

    On several GPUs, or several processes of the CPU, accelerate launch starts the same command; the denoiser's batches
    are then shared out:  accelerate launch --multi_gpu --num_processes 2 --rdzv_backend c10d --max_restarts 3
    -m ldm_tutor.cli.main train denoiser ...  A run that is killed goes on from its checkpoint.
    """
    _check_budget(stage, minutes, steps)
    _check_condition(stage, condition, rank, data, decoder_only)
    _check_batch(stage, condition, preset, batch=batch, accumulate=accumulate, lr_rule=lr_rule)
    if decoder_only and stage not in ("autoencoder", "all"):
        raise typer.BadParameter(f"is for the autoencoder, not for {stage}.", param_hint="'--decoder-only'")
    by_default = stage == "all" and preset is None and data is None and start_from is None
    preset = ALL_PRESET if by_default else preset
    chosen_preset = check_preset(
        preset, stage, condition=condition, data=data, frozen=frozen, dry_run=dry_run, timed=bool(steps or minutes)
    )
    if resume and overwrite:
        raise typer.BadParameter("with --resume nothing is overwritten; choose one.", param_hint="'--overwrite'")
    out = out if dry_run else check_folder(out)  # which makes the folder
    keep_freed_memory()
    chosen = str(usable_device(device))

    import torch

    from ldm_tutor.training.learner import pick_device
    from ldm_tutor.training.loop import Budget
    from ldm_tutor.training.options import TrainingOptions
    from ldm_tutor.training.processes import join
    from ldm_tutor.training.recipe import OWN_SHARES, STAGES, train_all, train_stage

    if threads is not None:
        torch.set_num_threads(threads)
    names = (STAGES if data is None else tuple(OWN_SHARES)) if stage == "all" else (stage,)
    names = names if condition is None else (condition,)
    team = join("cpu" if pick_device(chosen).type == "cpu" else device)
    if not quiet and team.is_main:
        _show_news()
        if by_default:
            log.info("this is --preset %s; the shipped model's size is --preset scenes, and wants hours", preset)
    if condition is not None and team.size > 1:
        raise ConfigError("--condition trains in one process", given=team.size, fix="start it without accelerate")
    if team.num_restarts and _began(out, names, team.launched_at):
        resume, overwrite = True, False
    set_aside: list[Path] = []
    with team.main_first():
        if team.is_main and not dry_run:
            _check_start(start_from, out, overwrite)
            set_aside = _check_earlier_runs(out, names, resume, overwrite)
    options = TrainingOptions(
        folder=out,
        seed=seed,
        device=team.device(chosen),
        precision=precision,
        num_scenes=num_scenes,
        num_workers=workers,
        show_progress=not quiet and team.is_main,
        start_from=start_from,
        decoder_only=decoder_only,
        preset=chosen_preset,
        frozen=frozen,
        data=data,
        batch_size=batch_of(chosen_preset, stage, batch),
        accumulate=accumulate,
        lr_rule=lr_rule,
        save_every=save_every,
        team=team,
    )
    if dry_run:
        show_plan(stage, options)  # in every process, since they agree on the numbers' type; the first one prints
        team.leave()
        return
    written: list[Path] = []
    try:
        if condition is not None:
            from ldm_tutor.training.conditions import MINUTES, train_condition

            budget = Budget(steps=steps, minutes=MINUTES[condition] if steps is None and minutes is None else minutes)
            written = train_condition(condition, budget, options, rank=rank, resume=resume)
        elif stage == "all":
            for _, paths in train_all(minutes or ALL_MINUTES, options, resume=resume):
                written += paths
        else:
            if steps is None and minutes is None:
                minutes = ALL_MINUTES * options.course.shares[stage]
            written = train_stage(stage, Budget(steps=steps, minutes=minutes), options, resume=resume)
    except BaseException as error:
        _bring_back(set_aside, _files_of(out, names))
        if not isinstance(error, KeyboardInterrupt):
            raise
        kept = any((out / f"{name}.checkpoint").is_file() for name in names)
        print(
            f"{PROGRAM}: {'stopped; resume with --resume' if kept else 'stopped before the first step'}",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    for path in set_aside:
        _aside(path).unlink(missing_ok=True)
    team.leave()
    if not team.is_main:
        return
    for path in written:
        print(path)
    if condition is None:
        print(_what_next(out, preset, options.full_size, own=data is not None))


def _check_budget(stage: str, minutes: float | None, steps: int | None) -> None:
    if minutes is not None and not 0 < minutes < float("inf"):
        raise typer.BadParameter(f"{minutes} is not a number of minutes above 0.", param_hint="'--minutes'")
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give --steps or --minutes, not both.", param_hint="'--steps'")
    if steps is not None and stage == "all":
        raise typer.BadParameter("'all' shares out --minutes; --steps is for one stage.", param_hint="'--steps'")


def _check_condition(
    stage: str, condition: str | None, rank: int | None, data: object | None, decoder_only: bool
) -> None:
    if condition is None:
        if rank is not None:
            raise typer.BadParameter("goes with --condition.", param_hint="'--rank'")
        return
    if stage != "denoiser":
        raise typer.BadParameter(f"is for the denoiser, not for {stage}.", param_hint="'--condition'")
    if data is not None or decoder_only:
        other = "--data" if data is not None else "--decoder-only"
        raise typer.BadParameter(f"learns from scenes; leave {other} out.", param_hint="'--condition'")


def _check_start(start_from: Path | None, out: Path, overwrite: bool) -> None:
    if start_from is not None and overwrite and start_from.expanduser().resolve() == out.resolve():
        raise ConfigError(
            f"--overwrite would delete the weights in {out} that --start-from begins with", fix="choose another --out"
        )


def _check_earlier_runs(out: Path, names: tuple[str, ...], resume: bool, overwrite: bool) -> list[Path]:
    """Refuse to wipe out an earlier run by accident, or to resume one that is not there; both before data are drawn.

    What is to be overwritten is set aside at once, since a later --resume would take old weights for finished stages;
    `_bring_back` undoes it where nothing new has come of the run. Returns the paths that were set aside.
    """
    if resume and len(names) == 1 and not (out / f"{names[0]}.checkpoint").is_file():
        raise WeightsError(f"no checkpoint to resume at {out / names[0]}.checkpoint", fix="start without --resume")
    there = _files_of(out, names)
    if resume and not there:
        raise WeightsError(f"nothing to resume in {out}", fix="start without --resume, or name the run's folder")
    if there and not (resume or overwrite):
        raise ConfigError(
            f"{there[0]} is there from an earlier run",
            fix="--resume goes on with it, --overwrite starts anew, another --out keeps both",
        )
    if not overwrite:
        return []
    for path in there:
        path.replace(_aside(path))
    return there


def _check_batch(
    stage: str, condition: str | None, preset: str | None, *, batch: int | None, accumulate: int, lr_rule: str | None
) -> None:
    """Refuse options of the denoiser's batches where they would do nothing."""
    given = {"--batch": batch is not None, "--accumulate": accumulate != 1, "--lr-rule": lr_rule is not None}
    named = [option for option, is_given in given.items() if is_given]
    if not named:
        return
    if condition is not None:
        raise typer.BadParameter("a condition has a recipe of its own; leave it out.", param_hint=f"'{named[0]}'")
    if stage not in ("denoiser", "all") and not (stage == "autoencoder" and preset is not None):
        raise typer.BadParameter(f"is for the denoiser, not for {stage}.", param_hint=f"'{named[0]}'")


def _files_of(out: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the checkpoints and weights of these stages that are there."""
    from ldm_tutor.training.options import OUTPUTS

    checkpoints = [out / f"{name}.checkpoint" for name in names]
    finished = [out / OUTPUTS.get(name, f"{name}.safetensors") for name in names]
    return [path for path in (*checkpoints, *finished) if path.is_file()]


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.before")


def _bring_back(set_aside: list[Path], new: list[Path]) -> None:
    """Put back what was set aside, unless there are new files already."""
    for path in set_aside:
        if new:
            _aside(path).unlink(missing_ok=True)
        else:
            _aside(path).replace(path)


def _began(out: Path, names: tuple[str, ...], since: float) -> bool:
    """Whether something of these stages has been written since the launch: then a restarted run goes on from there."""
    return any(path.stat().st_mtime >= since for path in _files_of(out, names))


def _what_next(out: Path, preset: str | None, full_size: bool, own: bool) -> str:
    from ldm_tutor.pipeline import PARTS

    if full_size:
        if (out / "diffusers").is_dir():
            return f'draw with it: {PROGRAM} draw "..." --weights {out / "diffusers"}'
        if (out / f"{preset}.safetensors").is_file():
            return f"look at {out / 'samples.png'}; for others: {PROGRAM} export --preset {preset} --format compvis ..."
        return f"next: {PROGRAM} train denoiser --preset {preset} --out {out} ..."
    missing = [name for name in PARTS.values() if not (out / name).is_file()]
    if missing:
        return f"before it can draw, {out} still needs: {', '.join(missing)}"
    sentence = "a sentence like your captions" if own else "a red cat at night"
    return f'draw with it: {PROGRAM} draw "{sentence}" --weights {out}'


def _show_news() -> None:
    """Send what the package has to say to stderr, as plain lines; other packages stay as they are."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    news = logging.getLogger("ldm_tutor")
    news.handlers[:] = [handler]
    news.setLevel(logging.INFO)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of torch's big temporaries between steps instead of giving it back to the system.

    By default each of them is mapped and unmapped anew, and the kernel clears its pages every time: small
    convolution networks train 10 to 15% faster on the CPU with this. Does nothing on other systems.
    """
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # from malloc.h
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_arena_max, 1)  # the backward pass runs in a thread, whose own arena would be given back all the same
        mallopt(m_mmap_threshold, 32 << 20)  # the largest that glibc takes
        mallopt(m_trim_threshold, 1 << 30)
    except (OSError, AttributeError):  # another C library, such as musl
        return
