"""Training: a resumed run makes the same numbers as an unbroken one, and a broken one keeps what was good."""

import copy
import csv
import errno
import math
import os
import signal
import threading

import pytest
import torch
from torch import nn
from tqdm.auto import tqdm

from ldm_tutor.config import (
    AutoencoderConfig,
    ClipConfig,
    DiscriminatorConfig,
    ImageEncoderConfig,
    JudgeConfig,
    TextEncoderConfig,
    UNetConfig,
)
from ldm_tutor.data.scenes.datasets import render_scenes
from ldm_tutor.errors import ConfigError, TutorError, WeightsError
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.training import loop
from ldm_tutor.training.checkpoint import read_checkpoint, write_checkpoint
from ldm_tutor.training.learner import Learner, pick_device, pick_dtype
from ldm_tutor.training.loop import Budget, Pace, deferred_interrupt, run_stage, step_generator, train
from ldm_tutor.training.stages.autoencoder import AutoencoderRecipe, AutoencoderStage
from ldm_tutor.training.stages.clip import ClipStage
from ldm_tutor.training.stages.denoiser import DenoiserStage
from ldm_tutor.training.stages.judge import JudgeStage

CPU = torch.device("cpu")
SIDE, CONTEXT = 32, 64
NUM_STEPS = 6
AUTOENCODER = AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4)
TEXT = TextEncoderConfig(vocab_size=560, context_length=CONTEXT, width=16, num_layers=1, num_heads=2, mlp_width=32)
IMAGE = ImageEncoderConfig(picture_size=SIDE, patch_size=8, width=16, num_layers=1, num_heads=2, mlp_width=32)
CLIP = ClipConfig(text=TEXT, image=IMAGE, embed_dim=12)
UNET = UNetConfig(
    channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(1,),
    num_heads=2,
    context_dim=16,
    norm_groups=4,
)


@pytest.fixture(scope="module")
def scenes():
    return render_scenes(48, "train", seed=5, resolution=SIDE)


@pytest.fixture(scope="module")
def tokenizer(scenes):
    return Tokenizer.train(scenes.captions, vocab_size=TEXT.vocab_size, context_length=CONTEXT)


def make_judge(scenes, tokenizer, dtype):
    return JudgeStage(JudgeConfig(channels=8), scenes, device=CPU, dtype=dtype, batch_size=4)


def make_autoencoder(scenes, tokenizer, dtype):
    torch.manual_seed(99)
    perceptual = PerceptualDistance(Judge(JudgeConfig(channels=8)))
    torch.seed()
    return AutoencoderStage(
        AUTOENCODER,
        scenes.pictures,
        perceptual,
        device=CPU,
        dtype=dtype,
        recipe=AutoencoderRecipe(batch_size=2, adversarial_start=0.3),  # from step 2 of 6 on
        discriminator=DiscriminatorConfig(channels=8, num_layers=2),
    )


def make_clip(scenes, tokenizer, dtype):
    return ClipStage(CLIP, scenes, scenes, tokenizer, device=CPU, dtype=dtype, batch_size=4, word_dropout=0.3)


def make_denoiser(scenes, tokenizer, dtype):
    torch.manual_seed(99)
    moments = torch.randn(len(scenes), 8, 8, 8).half()
    text_encoder = Clip(CLIP, end_id=tokenizer.end_id).text
    torch.seed()
    tokens = tokenizer(scenes.captions)[:, None].expand(-1, 2, -1)
    return DenoiserStage(
        UNET, moments, 0.9, text_encoder, tokens, tokenizer.empty(1), device=CPU, dtype=dtype, batch_size=4
    )


STAGES = [make_judge, make_autoencoder, make_clip, make_denoiser]


class Line:
    """The smallest stage: two numbers. `harm(step)` may do something to the run after the update of a step."""

    name = "line"
    batch_size = 2

    def __init__(self, harm=None):
        torch.manual_seed(3)
        self.learner = Learner(nn.Linear(2, 1), peak_lr=0.1, device=CPU, dtype=torch.float32, warmup=2)
        self.learners = {"line": self.learner}
        self.settings = {"batch_size": 2}
        self.harm = harm or (lambda stage, step: None)
        self.made = 0

    def train_step(self, generator, progress):
        loss = self.learner.net(torch.randn(2, 2, generator=generator)).square().mean()
        loss.backward()
        self.learner.step(progress)
        self.made += 1
        answer = self.harm(self, self.made)
        return {"loss": loss.item() if answer is None else answer}

    def finish(self, folder, history):
        return []


def everything(stage):
    """Every number of a stage: weights, averages, the optimiser's moments, counters."""
    return {name: copy.deepcopy(learner.state_dict()) for name, learner in stage.learners.items()}


def assert_same(a, b, place=""):
    assert type(a) is type(b), place
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), place
    elif isinstance(a, dict):
        assert list(a) == list(b), place
        for name in a:
            assert_same(a[name], b[name], f"{place}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{place}[{number}]")
    else:
        assert a == b, place


def values(records):
    return [(record.step, record.samples, record.progress, record.values) for record in records]


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", STAGES, ids=lambda make: make.__name__.removeprefix("make_"))
def test_a_resumed_run_makes_the_same_numbers(make, dtype, scenes, tokenizer, tmp_path):
    budget = Budget(steps=NUM_STEPS)
    torch.manual_seed(1)
    unbroken = make(scenes, tokenizer, dtype)
    first = copy.deepcopy([learner.network.state_dict() for learner in unbroken.learners.values()])
    expected = values(train(unbroken, budget, tmp_path / "unbroken", seed=7))
    assert [row[0] for row in expected] == list(range(1, NUM_STEPS + 1))

    got = []
    for number, stop in enumerate((2, 4, NUM_STEPS)):  # three sittings, each with a stage made anew
        torch.manual_seed(100 + number)  # the first weights and the global generator must not matter
        stage = make(scenes, tokenizer, dtype)
        if number == 0:
            for learner, state in zip(stage.learners.values(), first, strict=True):
                take_first_weights(learner, state)
        records = train(stage, budget, tmp_path / "broken", seed=7, resume=number > 0)
        for record in records:
            got += values([record])
            if record.step == stop:
                break
        records.close()
    assert got == expected
    assert_same(everything(stage), everything(unbroken))


def take_first_weights(learner, state):
    state = copy.deepcopy(state)
    learner.load_state_dict(
        {
            "network": state,
            "buffers": {name: state[name] for name, _ in learner.net.named_buffers() if name in state},
            "ema": None if learner.ema is learner.network else state,
            "optimizer": learner.optimizer.state_dict(),
            "num_updates": 0,
        }
    )


def test_the_numbers_depend_on_the_seed(scenes, tokenizer, tmp_path):
    losses = []
    for number, seed in enumerate((7, 7, 8)):
        torch.manual_seed(1)
        stage = make_judge(scenes, tokenizer, torch.float32)
        losses.append(values(train(stage, Budget(steps=2), tmp_path / str(number), seed=seed)))
    assert losses[0] == losses[1] != losses[2]


def test_a_finished_run_has_nothing_to_resume(tmp_path):
    list(train(Line(), Budget(steps=3), tmp_path))
    stage = Line()
    assert list(train(stage, Budget(steps=3), tmp_path, resume=True)) == []
    assert stage.learner.num_updates == 3
    assert [record.step for record in train(Line(), Budget(steps=5), tmp_path, resume=True)] == [4, 5]


def test_resuming_refuses_another_run(tmp_path):
    with pytest.raises(WeightsError, match="no checkpoint to resume .*line.checkpoint.*without --resume"):
        list(train(Line(), Budget(steps=3), tmp_path, resume=True))
    list(train(Line(), Budget(steps=3), tmp_path, seed=1))
    with pytest.raises(WeightsError, match="another seed; given: 2; expected: 1"):
        list(train(Line(), Budget(steps=4), tmp_path, seed=2, resume=True))
    other = Line()
    other.settings = {"batch_size": 4}
    with pytest.raises(WeightsError, match="another batch_size; given: 4; expected: 2"):
        list(train(other, Budget(steps=4), tmp_path, seed=1, resume=True))


def read_log(folder):
    with open(folder / "line.csv", newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def press_ctrl_c(at):
    return lambda stage, step: os.kill(os.getpid(), signal.SIGINT) if step == at else None


@pytest.mark.skipif(os.name == "nt", reason="os.kill sends no SIGINT on Windows")
@pytest.mark.parametrize("log_every", [1, 4])
def test_ctrl_c_finishes_the_step_and_the_resumed_weights_are_the_same(tmp_path, log_every):
    unbroken = Line()
    run_stage(unbroken, Budget(steps=8), tmp_path / "a", log_every=log_every, show_progress=False)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Line(press_ctrl_c(3)), Budget(steps=8), tmp_path / "b", log_every=log_every, show_progress=False)
    state = read_checkpoint(tmp_path / "b" / "line.checkpoint", stage="line", settings={})
    assert state["step"] == 3
    stage = Line()
    run_stage(stage, Budget(steps=8), tmp_path / "b", resume=True, log_every=log_every, show_progress=False)
    assert_same(everything(stage), everything(unbroken))


@pytest.mark.skipif(os.name == "nt", reason="os.kill sends no SIGINT on Windows")
@pytest.mark.parametrize("log_every", [1, 4])
def test_the_log_of_a_resumed_run_is_the_same(tmp_path, log_every):
    settings = {"log_every": log_every, "show_progress": False}
    run_stage(Line(), Budget(steps=8), tmp_path / "a", **settings)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Line(press_ctrl_c(3)), Budget(steps=8), tmp_path / "b", **settings)
    run_stage(Line(), Budget(steps=8), tmp_path / "b", resume=True, **settings)
    assert read_log(tmp_path / "b") == read_log(tmp_path / "a")


@pytest.mark.skipif(os.name == "nt", reason="os.kill sends no SIGINT on Windows")
def test_the_bar_of_a_resumed_run_counts_its_time_left_from_where_it_was(tmp_path, monkeypatch):
    bars = []

    class Seen(tqdm):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            bars.append(self)

    monkeypatch.setattr("tqdm.auto.tqdm", Seen)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Line(press_ctrl_c(2)), Budget(steps=8), tmp_path)
    run_stage(Line(), Budget(steps=8), tmp_path, resume=True)
    assert [(bar.initial, bar.n) for bar in bars] == [(0, 25), (25, 100)]
    said = bars[1].format_meter(**{**bars[1].format_dict, "n": 50, "elapsed": 60})
    assert "50%" in said and "01:00<02:00" in said  # 25% took one minute; 50% are left


def test_a_training_that_is_held_up_says_so_once(caplog):
    pace, clock = Pace(), 0.0
    for took in (9, 4, 5, 13, 4, 11, 4, 4):  # a slow first stretch, and hiccups
        pace.note(clock := clock + took, "line")
    assert not caplog.records
    for took in (13, 14, 15, 16):
        pace.note(clock := clock + took, "line")
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "line has become 4 times slower" in record.getMessage()
    assert "--resume --threads 1" in record.getMessage()


def test_the_log_of_a_killed_run_has_each_step_once(tmp_path):
    settings = {"log_every": 1, "show_progress": False}
    run_stage(Line(), Budget(steps=3), tmp_path, **settings)
    checkpoint = (tmp_path / "line.checkpoint").read_bytes()
    run_stage(Line(), Budget(steps=5), tmp_path, resume=True, **settings)
    (tmp_path / "line.checkpoint").write_bytes(checkpoint)  # as if the power had gone after step 5
    run_stage(Line(), Budget(steps=5), tmp_path, resume=True, **settings)
    assert [row["step"] for row in read_log(tmp_path)] == ["1", "2", "3", "4", "5"]


def test_a_second_ctrl_c_stops_at_once():
    with deferred_interrupt() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # outside, Ctrl-C is what it always was
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_left_alone_outside_the_main_thread():
    seen = []

    def work():
        with deferred_interrupt() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_half_done_step_is_not_saved(tmp_path):
    def stop(stage, step):
        if step == 2:
            raise KeyboardInterrupt

    unbroken = Line()
    list(train(unbroken, Budget(steps=5), tmp_path / "a"))
    records = train(Line(), Budget(steps=5), tmp_path / "b")
    next(records)
    records.close()
    with pytest.raises(KeyboardInterrupt):  # in step 3, after the update
        list(train(Line(stop), Budget(steps=5), tmp_path / "b", resume=True))
    stage = Line()
    list(train(stage, Budget(steps=5), tmp_path / "b", resume=True))
    assert_same(everything(stage), everything(unbroken))


# ---------------------------------------------------------------- a loss that breaks


def weights_in(path):
    state = read_checkpoint(path, stage="line", settings={})
    return state["step"], torch.cat([value.flatten() for value in state["learners"]["line"]["network"].values()])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_loss_keeps_the_last_good_checkpoint(tmp_path, broken):
    stage = Line(lambda stage, step: broken if step == 4 else None)
    with pytest.raises(TutorError, match=r"training line broke at step 4: loss is not a number; the checkpoint .*line"):
        list(train(stage, Budget(steps=9), tmp_path, save_every=0))
    step, weights = weights_in(tmp_path / "line.checkpoint")
    assert step == 3 and weights.isfinite().all()
    assert len(list(train(Line(), Budget(steps=9), tmp_path, resume=True))) == 6


def test_broken_weights_are_not_saved(tmp_path):
    def overflow(stage, step):
        if step == 4:  # what an infinite gradient leaves behind; the loss of this step was still good
            with torch.no_grad():
                stage.learner.network.weight.fill_(math.nan)

    with pytest.raises(TutorError, match="training line broke"):
        list(train(Line(overflow), Budget(steps=9), tmp_path, save_every=0))
    step, weights = weights_in(tmp_path / "line.checkpoint")
    assert step == 3 and weights.isfinite().all()


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "runs" / "line.checkpoint"
    write_checkpoint(path, {"stage": "line", "settings": {"seed": 1}, "step": 1})

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, name in ((os, "replace"), (torch, "save"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(WeightsError, match=rf"line.checkpoint.*{os.strerror(errno.ENOSPC)}.*previous"):
                write_checkpoint(path, {"stage": "line", "settings": {"seed": 1}, "step": 2})
        assert read_checkpoint(path, stage="line", settings={"seed": 1})["step"] == 1
        assert [each.name for each in path.parent.iterdir()] == ["line.checkpoint"]
    write_checkpoint(path, {"stage": "line", "settings": {"seed": 1}, "step": 2})
    assert read_checkpoint(path, stage="line", settings={"seed": 1})["step"] == 2
    with pytest.raises(WeightsError, match="not one of the stage 'judge'"):
        read_checkpoint(path, stage="judge", settings={})


def test_checkpoints_come_in_time(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(loop, "write_checkpoint", lambda path, state: saved.append(state["step"]))
    list(train(Line(), Budget(steps=4), tmp_path, save_every=0))
    list(train(Line(), Budget(steps=4), tmp_path, save_every=1000))
    assert saved == [1, 2, 3, 4, 4]


# ---------------------------------------------------------------- budgets, rates, averages, random numbers


@pytest.mark.parametrize(
    "given", [{}, {"steps": 1, "minutes": 1.0}, {"steps": 0}, {"steps": -5}]
    + [{"minutes": minutes} for minutes in (0.0, -1.0, math.nan, math.inf)]
)  # fmt: skip
def test_a_budget_is_steps_or_minutes(given):
    with pytest.raises(ConfigError, match="expected"):
        Budget(**given)


def test_a_budget_is_used_up():
    assert [Budget(steps=4).progress(step, 1e9) for step in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert [Budget(minutes=2).progress(10**9, seconds) for seconds in (0, 30, 120, 500)] == [0, 0.25, 1, 1]


def test_minutes_end_a_run(tmp_path):
    records = list(train(Line(), Budget(minutes=0.2 / 60), tmp_path))
    assert records[-1].progress == 1 and records[-1].seconds >= 0.2
    assert all(record.progress < 1 for record in records[:-1])


def test_the_learning_rate_rises_and_ends_low():
    learner = Learner(nn.Linear(2, 1), peak_lr=0.5, device=CPU, dtype=torch.float32, warmup=10)
    assert learner.lr_at(0.0) == pytest.approx(0.05)
    learner.num_updates = 9
    assert learner.lr_at(0.0) == pytest.approx(0.5)
    rates = [learner.lr_at(progress / 10) for progress in range(11)]
    assert rates == sorted(rates, reverse=True)
    assert rates[5] == pytest.approx(0.5 * 0.51)
    assert rates[10] == learner.lr_at(3.0) == pytest.approx(0.5 * 0.02)


def test_the_rate_reaches_the_optimizer():
    stage = Line()
    stage.train_step(step_generator(0, 0), 1.0)
    assert stage.learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 * 0.02)


def test_the_running_average_is_what_it_says():
    learner = Learner(nn.Linear(3, 1), peak_lr=0.3, device=CPU, dtype=torch.float32, warmup=1, ema_decay=0.3)
    expected = learner.network.weight.detach().clone()
    for number in range(1, 6):
        learner.net(torch.randn(4, 3)).square().mean().backward()
        learner.step(0.0)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * learner.network.weight.detach()
        torch.testing.assert_close(learner.ema.weight.detach(), expected)
    assert not learner.ema.weight.requires_grad and not learner.ema.training
    assert not torch.equal(learner.ema.weight, learner.network.weight)


def test_without_an_average_the_network_itself_is_kept():
    learner = Learner(nn.Linear(3, 1), peak_lr=0.3, device=CPU, dtype=torch.float32, ema_decay=None)
    assert learner.ema is learner.network and learner.network.weight.requires_grad
    assert learner.state_dict()["ema"] is None


def test_bfloat16_computes_on_a_copy_of_the_float32_weights():
    learner = Learner(nn.Linear(3, 1), peak_lr=1e-4, device=CPU, dtype=torch.bfloat16, warmup=1)
    before = learner.network.weight.detach().clone()
    for _ in range(3):
        learner.net(torch.ones(4, 3, dtype=torch.bfloat16)).square().mean().backward()
        learner.step(0.0)
    assert learner.network.weight.dtype == torch.float32 and not torch.equal(learner.network.weight, before)
    assert learner.net.weight.dtype == torch.bfloat16
    assert torch.equal(learner.net.weight, learner.network.weight.bfloat16())
    assert learner.net.weight.grad is None and learner.network.weight.grad is None


def test_long_gradients_are_cut():
    rates = []
    for size in (1.0, 1e6):
        torch.manual_seed(0)
        learner = Learner(nn.Linear(1, 1, bias=False), peak_lr=1.0, device=CPU, dtype=torch.float32, max_norm=0.5)
        learner.net.weight.grad = torch.full((1, 1), size)
        learner.step(0.0)
        rates.append(learner.optimizer.state_dict()["state"][0]["exp_avg"].item())
    assert rates == pytest.approx([0.05, 0.05])


def test_every_step_has_random_numbers_of_its_own():
    def draw(seed, step):
        return tuple(torch.rand(4, generator=step_generator(seed, step)).tolist())

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    drawn = {draw(seed, step) for seed in range(4) for step in range(50)}
    assert len(drawn) == 200
    assert draw(3, 20) == draw(3, 20)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_devices_and_types_are_checked():
    assert pick_device("cpu") == CPU
    assert pick_device().type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="device; given: 'gpu'; expected: auto, cpu"):
        pick_device("gpu")
    assert pick_dtype("float32", CPU) == torch.float32
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    assert pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    with pytest.raises(ConfigError, match="precision; given: 'float16'; expected: auto, float32 or bfloat16"):
        pick_dtype("float16", CPU)
