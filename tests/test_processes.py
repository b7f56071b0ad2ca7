"""Teams: two real processes make the numbers of one, sharded or not; a kill costs the steps since the checkpoint."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldm_tutor.errors import ConfigError
from ldm_tutor.training import processes
from ldm_tutor.training.checkpoint import read_checkpoint
from ldm_tutor.training.learner import Learner, scaled_lr
from ldm_tutor.training.processes import ALONE, Team, join
from ldm_tutor.training.recipe import TrainingOptions
from ldm_tutor.weights.shipped import shipped_folder

WORKER = Path(__file__).with_name("team_worker.py")
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
PAIR, SHARDED = ["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]
STEPS = 50
pytestmark = pytest.mark.timeout(1200)  # most of it is starting Python, which a busy machine makes long


def environment(**more):
    """One thread each; a rendezvous on a port of its own, beside whatever else is launched on this machine."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[1]), "PET_STANDALONE": "1"} | more


def run(command, **more):
    done = subprocess.run(list(map(str, command)), env=environment(**more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def losses(folder, rank=0):
    lines = (folder / f"losses.{rank}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def values(folder):
    return [row["loss"] for row in losses(folder)]


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_folder):
    """A folder with all that the denoiser needs; the first process of a team would encode, here it has been done."""
    folder = tmp_path_factory.mktemp("start") / "start"
    shutil.copytree(tiny_folder, folder)
    (folder / "unet.safetensors").unlink()
    return folder


@pytest.fixture
def folder(start, tmp_path):
    def make(name):
        return Path(shutil.copytree(start, tmp_path / name))

    return make


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """The run of one process, with which teams are compared."""
    folder = Path(shutil.copytree(start, tmp_path_factory.mktemp("alone") / "run"))
    run([sys.executable, WORKER, folder, STEPS])
    assert len(values(folder)) == STEPS
    return folder


def assert_same_run(folder, alone, tolerance=1e-5):
    expected = values(alone)
    found = values(folder)
    assert len(found) == STEPS
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance
    ours, theirs = (load_file(each / "unet.safetensors") for each in (folder, alone))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= tolerance


# ---------------------------------------------------------------- the same numbers


@pytest.mark.slow
def test_two_processes_make_the_numbers_of_one(folder, alone):
    two = folder("two")
    run([*LAUNCH, *PAIR, WORKER, two, STEPS])
    assert_same_run(two, alone)
    assert losses(two, 1) and [row["loss"] for row in losses(two, 1)] == values(two)
    assert {row["pid"] for row in losses(two, 0)} != {row["pid"] for row in losses(two, 1)}
    assert json.loads((two / "done.json").read_text())["size"] == 2


@pytest.mark.slow
def test_a_sharded_team_holds_half_each_and_makes_the_same_numbers(folder, alone):
    two = folder("sharded")
    run([*LAUNCH, *SHARDED, WORKER, two, STEPS])
    assert_same_run(two, alone)
    told = json.loads((two / "done.json").read_text())
    assert told["size"] == 2
    assert 0.4 * told["whole"] < told["mine"] < 0.6 * told["whole"]


@pytest.mark.slow
def test_a_checkpoint_fits_any_team(folder, alone):
    path = folder("mixed")
    run([*LAUNCH, *SHARDED, WORKER, path, STEPS, "stop=20"])  # sharded, then alone, then a pair in pieces
    run([sys.executable, WORKER, path, STEPS, "stop=35"], TEAM_RESUME="1")
    run([*LAUNCH, *PAIR, WORKER, path, STEPS, "accumulate=3"], TEAM_RESUME="1")
    assert [row["step"] for row in losses(path)] == list(range(1, STEPS + 1))
    assert_same_run(path, alone)


@pytest.mark.slow
def test_pieces_make_the_numbers_of_the_whole_batch(folder, alone):
    pieces = folder("pieces")
    run([sys.executable, WORKER, pieces, STEPS, "accumulate=5"])  # of 32 rows: pieces of 6 and 7
    assert_same_run(pieces, alone)


@pytest.mark.slow
@pytest.mark.parametrize("team", [PAIR, SHARDED], ids=["pair", "sharded"])
def test_bfloat16_is_the_same_in_a_team_up_to_its_rounding(folder, team):
    one, two = folder("one"), folder("two")
    settings = ["12", 'precision="bfloat16"']
    run([sys.executable, WORKER, one, *settings])
    run([*LAUNCH, *team, WORKER, two, *settings])
    assert len(values(two)) == 12
    assert max(abs(a - b) for a, b in zip(values(one), values(two), strict=True)) < 5e-3


# ---------------------------------------------------------------- kills


@pytest.mark.slow
def test_ten_kills_cost_the_steps_since_the_checkpoint_and_never_the_checkpoint(folder, alone, tmp_path):
    """kill -9 of one of two processes, ten times at random; the launcher starts both anew, and they go on."""
    two = folder("killed")
    dice = random.Random(5)
    saved: list[int] = []  # the step of the checkpoint at each kill
    log = open(tmp_path / "launch.log", "w")  # noqa: SIM115
    command = [*LAUNCH, *PAIR, "--max_restarts", "12", "--monitor_interval", "0.1", WORKER, two, STEPS]
    launcher = subprocess.Popen(
        [*map(str, command), "save_every=0.05", "seconds=0.05"], env=environment(), stdout=log, stderr=log
    )
    try:
        for number in range(10):
            victim = wait_for_process(two, restart=number, launcher=launcher)
            time.sleep(dice.uniform(0.0, 0.5))
            os.kill(victim, signal.SIGKILL)
            path = two / "denoiser.checkpoint"
            if path.is_file():  # whole, at whatever moment the kill came
                saved.append(read_checkpoint(path, stage="denoiser", settings={})["step"])
        assert launcher.wait(timeout=280) == 0, (tmp_path / "launch.log").read_text()[-3000:]
    finally:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait(timeout=30)
        log.close()
    rows = losses(two)
    assert {row["restart"] for row in rows} == set(range(11))
    assert saved == sorted(saved) and len(saved) >= 8
    expected, last = values(alone), {}
    for row in rows:  # every number of every attempt is that of the unbroken run
        assert abs(row["loss"] - expected[row["step"] - 1]) <= 1e-5
        last.setdefault(row["restart"], []).append(row["step"])
    for restart in range(1, 11):
        lost = last[restart - 1][-1] - (last[restart][0] - 1)
        assert 0 <= lost <= 4  # steps since the last checkpoint, which comes every 0.05 s, that is every step or two
    assert rows[-1]["step"] == STEPS
    ours, theirs = (load_file(each / "unet.safetensors") for each in (two, alone))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= 1e-5


def wait_for_process(folder, restart, launcher):
    """The process of a random rank that has made a step since restart number `restart`."""
    rank = restart % 2
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert launcher.poll() is None, "the launcher gave up"
        if (folder / f"losses.{rank}.jsonl").is_file():
            rows = [line for line in (folder / f"losses.{rank}.jsonl").read_text().split("\n")[:-1]]
            last = json.loads(rows[-1]) if rows else {"restart": -1}
            if last["restart"] == restart:
                return last["pid"]
        time.sleep(0.02)
    raise AssertionError(f"no step after restart {restart}")


# ---------------------------------------------------------------- the command line


@pytest.mark.slow
def test_the_command_line_trains_in_a_team_and_keeps_an_earlier_run(tmp_path):
    for name in ("autoencoder.safetensors", "clip.safetensors", "tokenizer"):
        place = shipped_folder() / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    command = [*LAUNCH, *PAIR, "--max_restarts", "1", "-m", "ldm_tutor.cli.main", "train", "denoiser"]
    command += ["--out", tmp_path, "--steps", "2", "--num-scenes", "64", "--batch", "4", "--accumulate", "2"]
    command += ["--lr-rule", "root", "--device", "cpu", "--precision", "float32"]
    done = run(command)
    assert done.stdout.count("unet.safetensors") == 1  # one of the two speaks
    with open(tmp_path / "denoiser.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["samples"]) for row in rows] == [("2", "8")]
    state = read_checkpoint(tmp_path / "denoiser.checkpoint", stage="denoiser", settings={"batch_size": 4})
    assert state["settings"]["peak_lr"] == pytest.approx(scaled_lr(1e-3, 4, 32, "root"))
    before = (tmp_path / "unet.safetensors").read_bytes()
    again = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True)
    assert again.returncode != 0  # also after the restart: what is there is not of this launch
    assert again.stderr.count("is there from an earlier run") >= 2
    assert (tmp_path / "unet.safetensors").read_bytes() == before


def test_a_training_alone_loads_no_launcher():
    code = "import ldm_tutor.training.recipe, sys; print([n for n in ('accelerate', 'webdataset') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- shares


class Pretend(Team):
    """A team member that hears of nobody."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize(("batch", "size", "accumulate"), [(8, 1, 1), (8, 2, 1), (7, 2, 1), (32, 3, 2), (5, 1, 5)])
def test_every_row_belongs_to_one_process_once(batch, size, accumulate):
    seen = []
    for rank in range(size):
        pieces = Pretend(rank, size).pieces(batch, accumulate)
        assert len(pieces) == accumulate
        seen += [row for piece in pieces for row in range(batch)[piece]]
    assert seen == list(range(batch))


def test_a_batch_must_go_round():
    with pytest.raises(ConfigError, match="a batch of 3 cannot be shared by 2 processes in 2 pieces each; expected: "):
        Pretend(0, 2).pieces(3, 2)
    with pytest.raises(ConfigError, match="cannot be shared"):
        ALONE.pieces(4, 0)
    with pytest.raises(ConfigError, match="a batch of 1 cannot be shared by 2"):
        TrainingOptions(folder=Path("x"), batch_size=1, team=Pretend(0, 2))


def test_alone_needs_nobody(monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join() is ALONE and ALONE.is_main and ALONE.size == 1
    assert (ALONE.total(2.5), ALONE.lead(0.5), ALONE.any(True), ALONE.any(False)) == (2.5, 0.5, True, False)
    gradient = torch.tensor([1.0, 2.0])
    ALONE.add_up([gradient])
    ALONE.wait()
    ALONE.leave()
    assert gradient.tolist() == [1.0, 2.0] and ALONE.device("mps") == "mps"
    with ALONE.main_first():
        pass


def test_what_cannot_work_is_refused_before_anybody_waits(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="--use_fsdp; given: 'version 1'; expected: --fsdp_version 2"):
        join("cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    with pytest.raises(ConfigError, match="several processes; given: 'mps'"):
        join("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="each process needs a GPU; given: '2 processes and 1 GPUs'"):
        join("auto")


def test_buckets_keep_order_and_types():
    tensors = [torch.ones(3), torch.ones(2), torch.ones(2, dtype=torch.bfloat16), torch.ones(1)]
    found = list(processes._buckets(tensors))
    assert [[each.numel() for each in bucket] for bucket in found] == [[3, 2], [2], [1]]
    assert list(processes._buckets([])) == []


def test_the_team_adds_up_before_the_step():
    class Double(Team):
        size = 2

        def add_up(self, tensors):
            for each in tensors:
                each.mul_(2)

    steps = []
    for team in (ALONE, Double()):
        torch.manual_seed(0)
        learner = Learner(
            nn.Linear(2, 1, bias=False), peak_lr=1.0, device=torch.device("cpu"), dtype=torch.float32, warmup=1,
            max_norm=1e9, team=team,
        )  # fmt: skip
        learner.net.weight.grad = torch.tensor([[1.0, -3.0]])
        learner.step(0.0)
        steps.append(learner.optimizer.state_dict()["state"][0]["exp_avg"])
    assert torch.equal(2 * steps[0], steps[1])


def test_learning_rates_by_rule():
    assert scaled_lr(1e-3, 64, 32, "fixed") == 1e-3
    assert scaled_lr(1e-3, 64, 32, "linear") == pytest.approx(2e-3)
    assert scaled_lr(1e-3, 128, 32, "root") == pytest.approx(2e-3)
    assert scaled_lr(2e-6, 48, 1, "linear") == pytest.approx(9.6e-5)  # CelebA-HQ: the paper's table 12
    with pytest.raises(ConfigError, match="--lr-rule; given: 'square'"):
        scaled_lr(1e-3, 64, 32, "square")
