"""Lesson 13: its kit and worker tell the truth about files, counts and processes, and kill what they started."""

import json
import signal
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import torch

from ldm_tutor.config import UNetConfig
from ldm_tutor.errors import TutorError
from ldm_tutor.lessons import lesson_13_kit as kit
from ldm_tutor.lessons import lesson_13_worker as worker
from ldm_tutor.models.unet import UNet
from ldm_tutor.plots.figures import png_bytes
from ldm_tutor.training.learner import Learner
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.processes import ALONE

SLEEPER = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"


def write_steps(folder, steps, rank=0, pid=0, tail=""):
    lines = "".join(json.dumps({"step": n, "loss": 1.0 / n, "pid": pid, "held": 3}) + "\n" for n in steps)
    (folder / f"steps.{rank}.jsonl").write_text(lines + tail)


def test_a_step_that_does_not_come_is_an_error(tmp_path, sleeper, monkeypatch):
    monkeypatch.setattr(kit, "_TIMEOUT", 0.2)
    with pytest.raises(TutorError, match="has not reached step 3"):
        kit.kill_after(sleeper, tmp_path, 3)
    assert sleeper.poll() is None


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", SLEEPER])
    yield process
    process.kill()
    process.wait()


def test_steps_are_read_while_they_are_written(tmp_path):
    assert kit.steps_of(tmp_path) == [] and kit.losses_of(tmp_path) == []
    write_steps(tmp_path, [1, 2, 3, 2, 3, 4], tail='{"step": 5, "lo')  # resumed after 1; a line is half written
    assert [row["step"] for row in kit.steps_of(tmp_path)] == [1, 2, 3, 2, 3, 4]
    assert kit.losses_of(tmp_path) == [1.0, 0.5, 1 / 3, 0.25]


def test_the_named_process_is_killed_once_it_is_so_far(tmp_path, sleeper):
    write_steps(tmp_path, range(1, 8), rank=1, pid=sleeper.pid)
    assert kit.kill_after(sleeper, tmp_path, 5, rank=1) == 7
    assert kit.finish(sleeper, tmp_path) == -signal.SIGKILL


def test_a_training_that_ends_too_early_is_an_error_with_its_words(tmp_path, sleeper):
    sleeper.kill()
    sleeper.wait()
    (tmp_path / "said.log").write_text("no such file: inputs")
    with pytest.raises(TutorError, match="ended before step 5; given: 'no such file: inputs'"):
        kit.kill_after(sleeper, tmp_path, 5)


def test_a_training_that_is_stuck_is_ended(tmp_path, sleeper, monkeypatch):
    monkeypatch.setattr(kit, "_TIMEOUT", 0.2)
    (tmp_path / "said.log").write_text("waiting for rank 1")
    with pytest.raises(TutorError, match="is stuck; given: 'waiting for rank 1'"):
        kit.finish(sleeper, tmp_path)
    assert sleeper.wait(timeout=10) == -signal.SIGKILL


def test_pieces_need_less_memory_and_the_same_work():
    config = worker.small_unet(16)
    memory = [kit.training_bytes(config, rows, 16, 8) for rows in (1, 4, 16)]
    assert memory[0] < memory[1] < memory[2] and 3 < memory[2] / memory[1] < 4.2
    assert kit.step_work(config, 8, 16, 8) == 8 * kit.step_work(config, 1, 16, 8)


def test_what_a_process_holds_is_counted():
    config = UNetConfig(channels=8, channel_mult=(1,), num_res_blocks=1, attention_levels=(), context_dim=None,
                        norm_groups=4)  # fmt: skip
    network = UNet(config)
    learner = Learner(network, peak_lr=1.0, device=kit.CPU, dtype=torch.float32)
    assert worker.held_numbers(learner) == sum(each.numel() for each in network.parameters())


@pytest.fixture(scope="module")
def data():
    return kit.Batches(24)


def test_a_step_has_its_numbers_from_its_seed(data):
    first, again, other = data.draw(4, 1), data.draw(4, 1), data.draw(4, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    x_t, t, context, noise = first
    assert x_t.shape == noise.shape == (4, 4, 16, 16) and context.shape[0] == t.shape[0] == 4


def test_the_exam_knows_a_blind_guess(data):
    unet = UNet(worker.small_unet(data.context.shape[-1]))
    assert data.exam(unet) == pytest.approx(1.0, abs=0.05)  # a fresh U-Net answers 0
    assert data.exam(unet) == data.exam(unet)


def test_the_worker_goes_on_from_its_checkpoint(data, tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    try:
        whole, parts = data.keep(tmp_path / "whole"), data.keep(tmp_path / "parts")
        worker.main(whole, 6)
        records = train(worker.build_stage(parts, ALONE), Budget(steps=6), parts)
        for _ in range(3):
            next(records)
        records.close()  # it writes the checkpoint
        worker.main(parts, 6)
    finally:
        torch.set_num_threads(threads)
    assert [row["step"] for row in kit.steps_of(whole)] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in kit.steps_of(parts)] == [4, 5, 6]
    assert kit.losses_of(parts) == pytest.approx(kit.losses_of(whole)[3:], abs=1e-6)


def test_every_figure_can_be_drawn():
    counts = [torch.ones(3, 3), torch.full((3, 3), 3.0)]
    figures = [
        kit.curves_figure({"a": [1.0, 0.5], "b": ([1, 4], [2.0, 3.0])}, "step", "loss"),
        kit.ring_figure(counts, ["start", "end"]),
        kit.stacked_bars({"x": {"p": 0.4, "q": 0.6}, "y": {"p": 1.0, "q": 0.0}}, "share"),
        kit.log_bars({"wrong": 0.5, "right": 1e-8}, "difference"),
    ]
    assert len({png_bytes(figure) for figure in figures}) == 4
    plt.close("all")
