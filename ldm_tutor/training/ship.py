"""From a training folder to the folder that the repository ships: half the size, logs, model card, sums.

python -m ldm_tutor.training.ship runs/scenes data/weights/scenes
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.errors import WeightsError
from ldm_tutor.training.options import OUTPUTS
from ldm_tutor.weights.files import KINDS, load_model, read_header, save_model, write_sums

log = logging.getLogger(__name__)


def machine() -> dict[str, Any]:
    """Return what kind of machine this is, as far as a reader of a model card cares."""
    return {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__.split("+")[0],
    }


def ship(run: Path, target: Path) -> Path:
    """Write the finished weights of `run` to `target` as float16, with tokenizer, logs, model card and SHA256SUMS.

    Returns the model card's path. Raises WeightsError naming what `run` lacks.
    """
    logs = [f"{stage}.csv" for stage in OUTPUTS]
    missing = [name for name in (*OUTPUTS.values(), "tokenizer", *logs) if not (run / name).exists()]
    if missing:
        raise WeightsError(f"{run} is not a finished training folder", given=f"without {', '.join(missing)}")
    lines = []
    for stage, name in OUTPUTS.items():
        header = read_header(run / name)
        config = KINDS[header["kind"]].config.from_dict(header["config"])
        model = load_model(run / name)
        metadata = header["metadata"]
        save_model(target / name, model, kind=header["kind"], config=config, metadata=metadata, dtype=torch.float16)
        count = sum(p.numel() for p in model.parameters())
        size = (target / name).stat().st_size / 1e6
        row = (stage, f"{count:,}", f"{size:.1f} MB", metadata.get("steps"), metadata.get("samples"))
        lines.append(f"| {' | '.join(map(str, row))} | {float(metadata.get('seconds', 0)) / 60:.1f} |")
    shutil.copytree(run / "tokenizer", target / "tokenizer", dirs_exist_ok=True)
    (target / "logs").mkdir(exist_ok=True)
    for name in logs:
        (target / "logs" / name).write_text((run / name).read_text(encoding="utf-8"), encoding="utf-8", newline="\n")
    card = target / "MODEL_CARD.md"
    notes = run / "NOTES.md"
    card.write_text(
        _CARD.format(
            table="\n".join(lines),
            machine=json.dumps(read_header(run / OUTPUTS["denoiser"])["metadata"].get("machine", machine())),
            notes=notes.read_text(encoding="utf-8").strip() if notes.is_file() else "None.",
        ),
        encoding="utf-8",
        newline="\n",
    )
    write_sums(target)
    return card


_CARD = """# Model card: scenes

A latent diffusion model for 64x64 captioned scenes, trained by this project on scenes that it draws itself
(`ldm_tutor/data/scenes`). For learning; it knows nothing but these scenes. MIT licence.

| stage | parameters | file | steps | pictures seen | minutes |
|---|---|---|---|---|---|
{table}

Machine: `{machine}`.

## How it was made

{notes}

## Limits

Pairs of colour and object in `HELD_OUT` (`ldm_tutor/data/scenes/world.py`) were never seen in training. Three objects
are out of its depth. Words outside the vocabulary are spelled in pieces, and what is drawn for them means nothing.
"""


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder that `ldm-tutor train` has written")
    parser.add_argument("target", type=Path, help="where the weights, their card and their sums go")
    given = parser.parse_args()
    log.info("written: %s", ship(given.run, given.target))
