"""The exercises: right answers pass in more than one style, typical slips get their own diagnosis, nothing raises."""

import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_pipeline

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.checks import EXERCISES, check, exercise, hint, solution
from ldm_tutor.lessons.exercises import KINDS, LOOK_AGAIN, NOT_DONE, PASS, Verdict, is_missing, scrub
from ldm_tutor.lessons.lesson_00_judges import SEED, SENTENCE, STEP_CHOICES
from ldm_tutor.lessons.progress import VARIABLE, passed_exercises, progress_path, record_pass
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise

ADDRESSES = list(EXERCISES)
FUNCTIONS = [address for address, each in EXERCISES.items() if "def answer(" in each.solution]


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "kept" / "progress.json"))


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def needs_pipe(address):
    return address in ("start_here.draw_loop", "start_here.enough_steps")


def judge(address, answer, pipe):
    lesson, name = address.split(".")
    return getattr(getattr(check, lesson), name)(answer, *([pipe] if needs_pipe(address) else []))


# --- every exercise


@pytest.mark.parametrize("lesson", sorted({each.lesson for each in EXERCISES.values()}))
def test_there_are_four_to_six_exercises_of_every_kind(lesson):
    mine = [each for each in EXERCISES.values() if each.lesson == lesson]
    assert 4 <= len(mine) <= 6
    assert {each.kind for each in mine} == set(KINDS)
    assert all(1 <= each.difficulty <= 5 and each.minutes > 0 and len(each.hints) == 3 for each in mine)


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_solution_passes(address, pipe):
    names = {"pipe": pipe}
    exec(str(solution(address)), names)
    assert judge(address, names["answer"], pipe).state == PASS


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("stub", [None, ..., (), (..., ...), [...]], ids=repr)
def test_a_stub_is_not_done_yet(address, stub, pipe):
    assert judge(address, stub, pipe).state == NOT_DONE


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "answer",
    [
        "", "twelve", object(), math.nan, math.inf, -1, {}, np.zeros(3), torch.zeros(2, 2), b"x", ("U-Net",), int,
        lambda: 1,
    ],
    ids=lambda answer: type(answer).__name__,
)  # fmt: skip
def test_no_answer_raises(address, answer, pipe):
    verdict = judge(address, answer, pipe)
    assert verdict.state == LOOK_AGAIN
    assert verdict.message and "0x7" not in repr(verdict)


@pytest.mark.parametrize("address", ADDRESSES)
def test_hints_go_from_a_question_to_a_skeleton(address):
    question, idea, skeleton = hint(address).steps
    assert question.endswith("?") and idea.endswith(".") and skeleton


@pytest.mark.parametrize("address", FUNCTIONS)
def test_a_function_that_is_not_written_returns_nothing_or_rubbish(address, pipe):
    def unwritten(*arguments):
        raise NotImplementedError

    assert judge(address, unwritten, pipe).state == NOT_DONE
    for nothing in (None, ...):
        assert judge(address, lambda *arguments, nothing=nothing: nothing, pipe).state == NOT_DONE
    for rubbish in ("text", object(), {}, [["a"]], torch.tensor(math.nan), torch.zeros(3), torch.zeros(3).long(), True):
        verdict = judge(address, lambda *arguments, rubbish=rubbish: rubbish, pipe)
        assert verdict.state == LOOK_AGAIN, (rubbish, verdict)


@pytest.mark.parametrize("address", FUNCTIONS)
def test_a_function_that_stops_is_told_why(address, pipe):
    def broken(*arguments):
        raise KeyError(object())

    verdict = judge(address, broken, pipe)
    assert verdict.state == LOOK_AGAIN and "KeyError" in verdict.message
    assert verdict == judge(address, broken, pipe)
    assert "TypeError" in judge(address, lambda: 1, pipe).message


def test_what_pytorch_does_not_implement_is_told_and_an_exit_is_none():
    def unimplemented(*arguments):
        raise NotImplementedError('"softmax_lastdim_kernel_impl" not implemented for \'Long\'')

    verdict = check.sampling.two_m(unimplemented)
    assert verdict.state == LOOK_AGAIN and "not implemented for" in verdict.message
    circle = []
    circle.append(circle)
    for answer in (lambda *arguments: sys.exit(3), circle):
        assert check.sampling.two_m(answer).state == LOOK_AGAIN


def test_lessons_ask_for_functions():
    assert len(FUNCTIONS) >= 2 * len({each.lesson for each in EXERCISES.values()})


@pytest.mark.parametrize("address", [each for each in ADDRESSES if needs_pipe(each)])
def test_a_missing_pipeline_is_said(address):
    lesson, name = address.split(".")
    verdict = getattr(getattr(check, lesson), name)(lambda *arguments: 1)
    assert verdict.state == LOOK_AGAIN and ", pipe)" in verdict.message


@pytest.mark.parametrize("address", ADDRESSES)
def test_everything_shows_itself(address, pipe):
    for shown in (exercise(address), hint(address), solution(address), judge(address, None, pipe)):
        assert "0x" not in repr(shown)
        assert shown._repr_html_().count("<") >= 2
    assert hint(address)._repr_html_().count("<details>") == 3
    assert len(str(hint(address)).splitlines()) >= 3
    html = judge(address, None, pipe)._repr_html_()
    assert 'role="status"' in html and NOT_DONE in html


def test_a_verdict_escapes_what_the_learner_wrote():
    def noisy(pictures):
        raise ValueError("<script>")

    assert "<script>" not in check.start_here.fix_the_fault(noisy)._repr_html_()


def test_code_and_stress_are_set_as_such():
    verdict = Verdict(LOOK_AGAIN, "the *old* stays: `a < b`, mean**2 - 2 * b * c and x *= 2")
    assert "the <em>old</em> stays: <code>a &lt; b</code>, mean**2 - 2 * b * c and x *= 2" in verdict._repr_html_()
    assert verdict.message in repr(verdict)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match="compression"):
        check.start_here.compresion  # noqa: B018
    with pytest.raises(AttributeError, match="start_here"):
        check.start_there  # noqa: B018
    with pytest.raises(ConfigError, match="did you mean 'start_here.compression'"):
        hint("start_here.compresion")
    assert set(dir(check)) == {each.lesson for each in EXERCISES.values()}
    assert "draw_loop" in dir(check.start_here)
    assert not hasattr(check, "_ipython_canary_method_should_not_exist_")


def test_missing_answers_and_messages():
    assert is_missing(((3, ...), 1)) and not is_missing(((3, 4), 0)) and not is_missing(0)
    assert scrub("at 0x7f3344556677\nline") == "at 0x... line"
    assert len(scrub("a" * 999)) == 300


# --- lesson 00, one by one


@pytest.mark.parametrize(
    "answer",
    [
        ((3, 32), (3, 32, 128)),
        [[3, 32], [3, 32, 128]],
        (torch.Size([3, 32]), torch.Size([3, 32, 128])),
        (np.zeros((3, 32)).shape, torch.zeros(3, 32, 128).shape),
    ],
    ids=range(4),
)
def test_token_shape_right(answer):
    assert check.start_here.token_shape(answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (((3, 32, 128), (3, 32)), "wrong order"),
        (((32, 3), (32, 3, 128)), "batch comes first"),
        (((1, 32), (1, 32, 128)), "three sentences make three rows"),
        (((3, 9), (3, 9, 128)), "count words"),
        (((3, 32), (3, 128)), "one per sentence"),
        (((3, 32), (3, 128, 32)), "comes last"),
        (((3, 32), (3, 32)), "one axis more"),
        (((3, 32, 128), (3, 32, 128)), "whole number"),
        (((3, 77), (3, 77, 768)), "Stable Diffusion"),
        (((3, 32), (3, 32, 64)), "the tokens are right"),
        ((3, 32), "two shapes"),
    ],
)
def test_token_shape_slips(answer, diagnosis):
    verdict = check.start_here.token_shape(answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


@pytest.mark.parametrize("answer", [12, 12.0, Fraction(12288, 1024), torch.tensor(12.0), np.int64(12)], ids=repr)
def test_compression_right(answer):
    assert check.start_here.compression(answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (16, "instead of 3"),
        (48, "Stable Diffusion"),
        (4, "one side"),
        (64, "side"),
        (64 / 3, "channels round"),
        (1 / 12, "turn it round"),
        (0.083, "turn it round"),
        (1024, "divide the picture's count"),
        (12288, "divide it by"),
        (0.3, "larger than 1"),
        (7, "channels, height and width"),
        ("twelve", "one number"),
    ],
)
def test_compression_slips(answer, diagnosis):
    verdict = check.start_here.compression(answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


@pytest.mark.parametrize("answer", [("U-Net", 40), ["unet", 40.0], ("UNet", "40"), ("u net", 20 * 2)], ids=repr)
def test_costliest_part_right(answer):
    assert check.start_here.costliest_part(answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        (("decoder", 1), "the decoder runs once"),
        (("text encoder", 40), "the text encoder runs once"),
        (("U-Net", 20), "each step needs two"),
        (("U-Net", 1), "enough for one step"),
        (("U-Net", 41), "decoder's work"),
        (("U-Net", 80), "two per step are all"),
        (("U-Net", 1000), "steps times grids"),
        (("U-Net", "many"), "a number"),
        (("noise", 3), "one of"),
        ("U-Net", "a pair"),
        ((40, "U-Net"), "a pair"),
    ],
)
def test_costliest_part_slips(answer, diagnosis):
    verdict = check.start_here.costliest_part(answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


def own_draw(pipe, sentence, seed, *, num_steps=10, sampler="ddim", scale=1.0, noise=None, decode=None, leave_out=0):
    """The whole way with one thing changed."""
    with torch.inference_mode():
        context = pipe.text_encoder(pipe.tokenizer([sentence]))
        empty = pipe.text_encoder(pipe.tokenizer.empty(1))
        latents = PictureNoise([seed]).initial(pipe.config.latent_shape) if noise is None else noise
        denoiser = Guided(pipe.unet, context, empty, scale)
        states = list(sample(denoiser, latents, pipe.schedule, sampler=sampler, num_steps=num_steps))
        latents = states[-1 - leave_out].latents
        return (decode or pipe.decode)(latents)


def by_pipeline_steps(pipe, sentence, seed):
    *_, state = pipe.steps([sentence], [seed], num_steps=10, guidance=1.0, sampler="ddim")
    return pipe.autoencoder.to_pictures(state.latents)[0]


def with_gradients(pipe, sentence, seed):
    torch.manual_seed(seed)
    latents = torch.randn(1, *pipe.config.latent_shape)
    context = pipe.text_encoder(pipe.tokenizer([sentence]))
    denoiser = Guided(pipe.unet, context, None, 1)
    *_, state = sample(denoiser, latents, pipe.schedule, num_steps=10)
    return pipe.decode(state.latents.detach())


@pytest.mark.parametrize("my_draw", [own_draw, by_pipeline_steps, with_gradients])
def test_draw_loop_right(my_draw, pipe):
    assert check.start_here.draw_loop(my_draw, pipe).state == PASS


DRAW_SLIPS = {
    "decode them": lambda pipe, s, seed: own_draw(pipe, s, seed, decode=lambda latents: latents),
    "scale factor": lambda pipe, s, seed: own_draw(pipe, s, seed, decode=pipe.autoencoder.decode),
    "not cut to": lambda pipe, s, seed: own_draw(
        pipe, s, seed, decode=lambda latents: pipe.decode(latents) + 3 * (pipe.decode(latents) >= 1)
    ),
    "two calls": lambda pipe, s, seed: own_draw(pipe, s, seed, noise=torch.randn(1, 4, 16, 16)),
    "another seed": lambda pipe, s, seed: own_draw(pipe, s, 0),
    "another sentence": lambda pipe, s, seed: own_draw(pipe, "a cat", seed),
    "dpm++": lambda pipe, s, seed: own_draw(pipe, s, seed, sampler="dpm++"),
    "ddpm steps": lambda pipe, s, seed: pipe.draw([s], [seed], num_steps=10, guidance=1.0),
    "guidance 4": lambda pipe, s, seed: own_draw(pipe, s, seed, scale=4.0),
    "guidance 2": lambda pipe, s, seed: own_draw(pipe, s, seed, scale=2.0),
    "takes 20 steps": lambda pipe, s, seed: own_draw(pipe, s, seed, num_steps=20),
    "one step early": lambda pipe, s, seed: own_draw(pipe, s, seed, leave_out=1),
    "takes 50 steps": lambda pipe, s, seed: own_draw(pipe, s, seed, num_steps=50),
    "differs by up to": lambda pipe, s, seed: own_draw(pipe, s, seed, num_steps=3),
    "NaN": lambda pipe, s, seed: own_draw(pipe, s, seed) * math.nan,
    "return the picture as a tensor": lambda pipe, s, seed: own_draw(pipe, s, seed).numpy(),
    "the picture has": lambda pipe, s, seed: own_draw(pipe, s, seed).permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("diagnosis", DRAW_SLIPS)
def test_draw_loop_slips(diagnosis, pipe):
    verdict = check.start_here.draw_loop(DRAW_SLIPS[diagnosis], pipe)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message


def planted(x):
    return ((x + 1) * 255).to(torch.uint8)


BYTES_RIGHT = {
    "clamp first": lambda x: ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8),
    "clamp last": lambda x: (x * 127.5 + 127.5).round().clamp(0, 255).byte(),
    "half up": lambda x: ((x + 1) / 2 * 255 + 0.5).floor().clamp(0, 255).to(torch.uint8),
    "numpy": lambda x: np.round((np.clip(x.numpy(), -1, 1) + 1) / 2 * 255).astype(np.uint8),
}
BYTES_SLIPS = {
    "twice as bright": planted,
    "twice as bright ": lambda x: ((x + 1) * 255).clamp(0, 255).round().to(torch.uint8),
    "clamp it first": lambda x: ((x + 1) / 2 * 255).round().to(torch.int64).remainder(256).to(torch.uint8),
    "cuts the fraction off": lambda x: ((x.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8),
    "turns grey": lambda x: ((x.clamp(0, 1) + 1) / 2 * 255).round().to(torch.uint8),
    "turns black": lambda x: (x.clamp(0, 1) * 255).round().to(torch.uint8),
    "not 256": lambda x: ((x + 1) / 2 * 256).round().clamp(0, 255).to(torch.uint8),
    "straight line": lambda x: ((x.clamp(-1, 1) + 1) / 2 * 200).round().to(torch.uint8),
    "torch.uint8": lambda x: ((x.clamp(-1, 1) + 1) / 2 * 255).round(),
    "has to stay": lambda x: BYTES_RIGHT["clamp first"](x).permute(0, 2, 3, 1),
    "not x += 1": lambda x: (x.clamp_(-1, 1).add_(1) * 127.5).round().to(torch.uint8),
    "a function": 3,
}


@pytest.mark.parametrize("style", BYTES_RIGHT)
def test_fix_the_fault_right(style):
    assert check.start_here.fix_the_fault(BYTES_RIGHT[style]).state == PASS


@pytest.mark.parametrize("diagnosis", BYTES_SLIPS)
def test_fix_the_fault_slips(diagnosis):
    verdict = check.start_here.fix_the_fault(BYTES_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis.strip() in verdict.message


class Closer:
    """Stands in for a pipeline: its picture is 1 / steps away from the last one."""

    def __init__(self, near=1.0):
        self.near = near

    def draw(self, prompts, seeds, *, num_steps, sampler):
        assert (prompts, seeds, sampler) == ([SENTENCE], [SEED], "ddim")
        return torch.full((1, 3, 4, 4), self.near / num_steps)


@pytest.mark.parametrize("answer", [20, 20.0, np.int64(20)])
def test_enough_steps_right(answer):
    assert check.start_here.enough_steps(answer, Closer()).state == PASS


@pytest.mark.parametrize(
    ("answer", "near", "diagnosis"),
    [
        (30, 1.0, "fewer are too"),
        (10, 1.0, "0.080 away"),
        (1, 1.0, "0.980 away"),
        (17, 1.0, "choose one of"),
        ("20", 1.0, "choose one of"),
        (30, 100.0, "away on average"),
    ],
)
def test_enough_steps_slips(answer, near, diagnosis):
    verdict = check.start_here.enough_steps(answer, Closer(near))
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message
    assert 20 in STEP_CHOICES


# --- progress


def test_a_pass_is_kept_and_nothing_else():
    assert passed_exercises() == frozenset()
    check.start_here.compression(16)
    check.start_here.compression(...)
    assert passed_exercises() == frozenset() and not progress_path().exists()
    check.start_here.compression(12)
    check.start_here.costliest_part(("U-Net", 40))
    check.start_here.compression(12)
    assert passed_exercises() == {"start_here.compression", "start_here.costliest_part"}
    assert json.loads(progress_path().read_text())["version"] == 1
    assert [path.name for path in progress_path().parent.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"passed": 3}', '{"passed": [3, "start_here.x"]}'])
def test_a_broken_file_is_no_obstacle(text):
    progress_path().parent.mkdir()
    progress_path().write_text(text)
    assert passed_exercises() <= {"start_here.x"}
    assert check.start_here.compression(12).passed
    assert "start_here.compression" in passed_exercises()


def test_a_file_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "progress.json"))
    assert check.start_here.compression(12).passed
    assert record_pass("start_here.compression") is False


def test_a_file_that_cannot_be_read_just_now_is_not_written_anew(monkeypatch):
    assert record_pass("start_here.x")
    kept, read = progress_path().read_bytes(), Path.read_text

    def locked(path, *args, **kwargs):
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_text", locked)
    assert record_pass("start_here.y") is False and passed_exercises() == frozenset()
    monkeypatch.setattr(Path, "read_text", read)
    assert progress_path().read_bytes() == kept and passed_exercises() == {"start_here.x"}


def test_progress_can_be_switched_off_and_has_a_home(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "off")
    assert progress_path() is None and record_pass("x") is False and passed_exercises() == frozenset()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    homes = {"linux": "data", "darwin": "home/Library/Application Support", "win32": "local"}
    for system, home in homes.items():
        monkeypatch.setattr("sys.platform", system)
        assert progress_path() == tmp_path / home / "ldm_tutor" / "progress.json"
