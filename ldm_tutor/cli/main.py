"""`ldm-tutor`: every job of the course as a command.

A command imports what it needs when it runs, so that `--help` answers at once and `draw` waits for torch alone.
A user's mistake is one message on stderr and exit code 1; a wrong option exit code 2; Ctrl-C 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ldm_tutor.cli import data, doctor, draw, evaluate, export, models, train
from ldm_tutor.cli.options import PROGRAM, version
from ldm_tutor.errors import TutorError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog='Example: ldm-tutor draw "a red bicycle in front of a blue house at night" --out bicycle.png',
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"{PROGRAM} {version()}")
        raise typer.Exit


@app.callback()
def _ldm_tutor(
    asked: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Build a latent diffusion model, train it, draw with it, and measure it. COMMAND --help explains each command."""


app.command(epilog=doctor.EXAMPLE)(doctor.doctor)
app.command(epilog=draw.EXAMPLE)(draw.draw)
app.command(epilog=train.EXAMPLE)(train.train)
app.command(epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command(epilog=export.EXAMPLE)(export.export)
app.command(epilog=models.EXAMPLE)(models.models)
app.add_typer(data.app, name="data")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line `args` (by default the process's own) and leave with its exit code."""
    _let_output_hold_any_letter()
    try:
        app(args=None if args is None else list(args), prog_name=PROGRAM)
    except TutorError as error:
        _leave(str(error))
    except OSError as error:
        if error.errno is None:  # not the system's answer about a file: a defect, which keeps its traceback
            raise
        place = f": {error.filename}" if error.filename else ""
        _leave(f"{error.strerror}{place}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _leave("not enough memory; ask for fewer pictures or scenes at once, or close other programs")


def _leave(message: str) -> None:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    raise SystemExit(1)


def _is_out_of_memory(error: BaseException) -> bool:
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)


def _let_output_hold_any_letter() -> None:
    """Where a console cannot show a letter, show its number: a strange word is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
