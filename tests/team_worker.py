"""What tests/test_processes.py launches: the tiny denoiser's training, alone or in a team, with every loss written.

python team_worker.py FOLDER STEPS [name=value ...], with the fields of TrainingOptions, `seconds=X` to wait after each
step, and `stop=N` to leave after step N. After a restart it goes on, as the command line does; with the environment's
TEAM_RESUME always.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from tiny import CONFIG

from ldm_tutor.cli.train import _began
from ldm_tutor.training import recipe
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.processes import join


def main(folder, steps, *settings):
    torch.set_num_threads(1)
    given = {name: json.loads(value) for name, value in (each.split("=") for each in settings)}
    pause, stop = given.pop("seconds", 0.0), given.pop("stop", None)
    team = join("cpu")
    folder = Path(folder)
    options = recipe.TrainingOptions(
        folder=folder, device=team.device("cpu"), precision=given.pop("precision", "float32"), num_scenes=64,
        show_progress=False, config=CONFIG, team=team, **given,
    )  # fmt: skip
    torch.manual_seed(options.seed)
    stage = recipe._build("denoiser", options)
    resume = team.num_restarts > 0 and _began(folder, ("denoiser",), team.launched_at)
    if os.environ.get("TEAM_RESUME"):
        resume = True
    log = folder / f"losses.{team.rank}.jsonl"
    records = train(
        stage, Budget(steps=int(steps)), folder, resume=resume, save_every=options.save_every, team=team
    )  # fmt: skip
    for record in records:
        row = {"step": record.step, "loss": record.values["loss"], "restart": team.num_restarts, "pid": os.getpid()}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        time.sleep(pause)
        if record.step == stop:
            records.close()  # it writes the checkpoint
            return team.leave()
    mine = sum(value.to_local().numel() if hasattr(value, "to_local") else value.numel() for value in
               stage.learner.network.parameters())  # fmt: skip
    stage.learner.gather()
    if team.is_main:
        paths = stage.finish(folder, {})
        whole = sum(value.numel() for value in stage.learner.ema.parameters())
        told = {"paths": [str(path) for path in paths], "mine": mine, "whole": whole, "size": team.size}
        (folder / "done.json").write_text(json.dumps(told), encoding="utf-8")
    team.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
