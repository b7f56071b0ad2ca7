"""The exercises of lesson 16: right answers in several styles pass, each typical slip gets its own diagnosis."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, NOT_DONE, PASS
from ldm_tutor.lessons.lesson_16 import EXERCISES
from ldm_tutor.models.dit import DiTBlock, modulate
from ldm_tutor.sampling.velocity import sample_flow
from ldm_tutor.schedule import NoiseSchedule

SOLUTIONS = {each.name: each.solution for each in EXERCISES}


def give(name, answer):
    return getattr(check.what_came_after, name)(answer)


def passes(name, answer):
    verdict = give(name, answer)
    assert verdict.state == PASS, verdict


def rejected(name, answer, diagnosis):
    verdict = give(name, answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


def solved(name, *changes):
    """The answer of the published solution, after `changes`, pairs of an old and a new text."""
    text, names = SOLUTIONS[name], {}
    for old, new in changes:
        assert old in text, (old, text)
        text = text.replace(old, new)
    exec(text, names)
    return names["answer"]


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_solution_passes_and_what_is_not_there_yet_is_not_done(name):
    passes(name, solved(name))
    for stub in (None, ..., (..., ...)):
        assert give(name, stub).state == NOT_DONE


@pytest.mark.parametrize("name", ["v_both", "walk", "heun", "block"])
def test_a_function_that_is_not_written_is_not_done(name):
    def unwritten(*arguments):
        raise NotImplementedError

    rejected(name, 0.5, "is a function")
    assert give(name, unwritten).state == NOT_DONE
    for nothing in (None, ..., (..., ...)):
        assert give(name, lambda *arguments, nothing=nothing: nothing).state == NOT_DONE


# --- ends


@pytest.mark.parametrize(
    "answer",
    [(0.995, 0.0995), [1.0, 0.1], (0.99, Fraction(1, 10)), ("0.99", "0.10"), np.array([0.995, 0.0995]),
     torch.tensor([0.995, 0.0995])],
    ids=lambda answer: type(answer).__name__,
)  # fmt: skip
def test_ends_right(answer):
    passes("ends", answer)


def test_ends_is_what_the_schedule_does():
    schedule, t = NoiseSchedule(), torch.tensor([0])
    schedule.alpha_bar = torch.full((1000,), 0.01, dtype=torch.float64)
    x, off = torch.randn(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.1)
    through_eps = schedule.x0_from_eps(x, off, t) - schedule.x0_from_eps(x, 0 * off, t)
    noises = [schedule.eps_from_v(x, v, t) for v in (off, 0 * off)]
    through_v = schedule.x0_from_eps(x, noises[0], t) - schedule.x0_from_eps(x, noises[1], t)
    passes("ends", (through_eps.abs().mean(), through_v.abs().mean()))


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((9.9, 0.1), "both square roots are missing"),
        ((9.95, 0.1), "you divide by alpha_bar"),
        ((0.1, 0.1), "must still be divided"),
        ((0.01, 0.1), "on the way back"),
        ((3, 0.1), "solve x_t"),
        ((0.0995, 0.995), "exchanged"),
        ((0.1, 1.0), "exchanged"),
        ((0.995, 0.995), "divides nothing"),
        ((0.995, 0.01), "which factor stands before v"),
        ((0.995, 0), "some error is left"),
        ((0.995, 0.5), "through v: x0 is"),
        ((-0.995, 0.0995), "without a sign"),
        ((0.995,), "two numbers"),
        (0.995, "two numbers"),
        ((float("nan"), 0.1), "two numbers"),
        (("much", "little"), "two numbers"),
    ],
    ids=repr,
)
def test_ends_slips(answer, diagnosis):
    rejected("ends", answer, diagnosis)


# --- v_both


def both_in_numpy(x_t, v, alpha_bar):
    turn = np.arccos(np.sqrt(float(alpha_bar)))
    x_t, v = x_t.numpy(), v.numpy()
    return [np.cos(turn) * x_t - np.sin(turn) * v, np.sin(turn) * x_t + np.cos(turn) * v]


def both_by_steps(x_t, v, alpha_bar):
    a = torch.as_tensor(alpha_bar)
    x0 = a.sqrt() * x_t - (1 - a).sqrt() * v
    return torch.stack([x0, v * a.sqrt() + x_t * (1 - a).sqrt()])


@pytest.mark.parametrize("answer", [both_in_numpy, both_by_steps])
def test_v_both_right(answer):
    passes("v_both", answer)


X0, EPS = "signal * x_t - sigma * v", "sigma * x_t + signal * v"


@pytest.mark.parametrize(
    ("old", "new", "diagnosis"),
    [
        (X0, "signal**2 * x_t - sigma**2 * v", "x0: the square roots"),
        (X0, "signal * x_t + sigma * v", "x0: the sign"),
        (X0, "sigma * x_t - signal * v", "x0: the two factors"),
        (X0, "(x_t - sigma * v) / (signal + 1e-9)", "x0: that takes v for"),
        (X0, "x_t - sigma * v / (signal + 1e-9)", "x0: divided"),
        (X0, "v", "x0: that is v"),
        (X0, "x_t", "x0: solve"),
        (f"{X0}, {EPS}", f"{EPS}, {X0}", "x0 comes first"),
        (EPS, "sigma**2 * x_t + signal**2 * v", "eps: the square roots"),
        (EPS, "sigma * x_t - signal * v", "eps: the sign"),
        (EPS, "signal * x_t + sigma * v", "eps: the two factors"),
        (EPS, "(x_t - signal * v) / (sigma + 1e-9)", "eps: that takes v for"),
        (EPS, "x_t + signal * v / (sigma + 1e-9)", "eps: divided"),
        (EPS, "v", "eps: that is v"),
        (EPS, X0, "eps: that is the other one"),
        (EPS, "x_t", "eps: solve"),
        (EPS, f"(x_t - signal * ({X0})) / (sigma + 1e-30)", "right in between"),
        (X0, f"(x_t - sigma * ({EPS})) / (signal + 1e-30)", "right in between"),
        (X0, f"(x_t - sigma * ({EPS})) * (1 / float(signal))", "ZeroDivisionError"),
        ("alpha_bar**0.5", "alpha_bar.sqrt()", "AttributeError"),
        (f"{X0}, {EPS}", "x_t", "two tensors"),
        (EPS, "v, x_t", "two things"),
        (f"{X0}, {EPS}", "0.5", "two things"),
        (f"{X0}, {EPS}", "x_t[0], v[0]", "the shape of x_t"),
    ],
)
def test_v_both_slips(old, new, diagnosis):
    rejected("v_both", solved("v_both", (old, new)), diagnosis)


# --- walk


def given(velocity, x, num_steps):
    """As the lesson gives it, with three faults."""
    for k in range(num_steps):
        t = k / num_steps
        x = x + velocity(x, t)
    return x


def by_times(velocity, x, num_steps):
    times = torch.linspace(1, 0, num_steps + 1)
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        x += (t_next - t) * velocity(x, t)
    return x


def backwards_in_numpy(velocity, x, num_steps):
    x = x.numpy()
    for k in range(num_steps, 0, -1):
        x = x - np.asarray(velocity(x, k / num_steps)) / num_steps
    return x


def walk_by_package(velocity, x, num_steps):
    *_, state = sample_flow(lambda x, t, step: velocity(x, t / 1000), x, num_steps=num_steps)
    return state.latents


@pytest.mark.parametrize("answer", [by_times, backwards_in_numpy, walk_by_package])
def test_walk_right(answer):
    rejected("walk", given, "all three faults are still there; the first: time runs the wrong way")
    passes("walk", answer)


RISES = ("1 - k / num_steps", "k / num_steps")
WHOLE = (" / num_steps\n    return", "\n    return")
PLUS = ("x - velocity", "x + velocity")
TIME, MOVE = "1 - k / num_steps", "x = x - velocity(x, t) / num_steps"


@pytest.mark.parametrize(
    ("changes", "diagnosis"),
    [
        ([RISES], "one fault is left: time runs the wrong way"),
        ([WHOLE], "one fault is left: each step takes the whole"),
        ([PLUS], "one fault is left: velocity points"),
        ([RISES, WHOLE], "two faults are left: time runs the wrong way: the walk begins"),
        ([RISES, PLUS], "noise is at t = 1; and velocity points"),
        ([WHOLE, PLUS], "two faults are left: each step takes the whole"),
        ([(TIME, "(k + 1) / num_steps")], "time runs the wrong way"),
        ([(TIME, "1 - (k + 1) / num_steps")], "at the end of each step"),
        ([(TIME, "1000 * (1 - k / num_steps)")], "from 1000 to 0"),
        ([(TIME, "1.0")], "in every step: time has to move"),
        ([(TIME, "1 - (k + 0.5) / num_steps")], "begin with 1.00, 0.75, 0.50, 0.25; yours with 0.88, 0.62"),
        ([("range(num_steps)", "range(num_steps + 1)")], "asked 5 times: it should be once per step; the walk ends"),
        ([("range(num_steps)", "range(2 * num_steps)")], "asked 8 times"),
        ([("    return", "        return")], "inside the loop"),
        ([(MOVE, "pass")], "never asks"),
        ([(MOVE, "velocity(x, t)")], "the times are right"),
        ([(MOVE, "x = x - t * velocity(x, t)")], "the times are right"),
        ([("velocity(x, t)", "velocity(t, x)")], "latents first"),
        ([("return x", "return [x, x]")], "returns a list"),
        ([("return x", "return x[0]")], "has the shape"),
        ([("return x", "return x + (num_steps == 5)")], "ideal one"),
    ],
)
def test_walk_slips(changes, diagnosis):
    rejected("walk", solved("walk", *changes), diagnosis)


# --- heun


def heun_in_numpy(velocity, x, t, t_next):
    start = x.numpy()
    first = mean = np.asarray(velocity(start, t))
    if t_next > 0:
        mean = (first + np.asarray(velocity(start + (t_next - t) * first, t_next))) / 2
    return start - (t - t_next) * mean


def heun_by_package(velocity, x, t, t_next):
    class OneStep:
        def times(self, num_steps):
            return [t, t_next]

    *_, state = sample_flow(lambda x, t, step: velocity(x, t / 1000), x, OneStep(), sampler="heun", num_steps=1)
    return state.latents


@pytest.mark.parametrize("answer", [heun_in_numpy, heun_by_package])
def test_heun_right(answer):
    passes("heun", answer)


LAST = "x + (t_next - t) * (first + second) / 2"
END, SECOND = "end = x + (t_next - t) * first", "velocity(end, t_next)"
ZERO = "        return end"


@pytest.mark.parametrize(
    ("changes", "diagnosis"),
    [
        ([(LAST, "end")], "that is Euler's step"),
        ([(SECOND, "velocity(end, t)")], "the second time at t;"),
        ([(SECOND, "velocity(x, t_next)")], "for the old x"),
        ([(LAST, LAST[:-4])], "the mean is half"),
        ([(SECOND, "velocity((x + end) / 2, (t + t_next) / 2)"), ("(first + second) / 2", "second")], "midpoint"),
        ([("(first + second) / 2", "second")], "the second answer alone"),
        ([(LAST, LAST.replace("x +", "end +"))], "begin at x again"),
        ([("= x + (t_next - t)", "= x + (t - t_next)"), (LAST, LAST.replace("x +", "x -"))], "both signs"),
        ([("= x + (t_next - t)", "= x + (t - t_next)")], "on the way to Euler's end"),
        ([(LAST, LAST.replace("x +", "x -"))], "in the last line"),
        ([(LAST, "x + (first + second) / 2")], "length of the step"),
        ([(LAST, "x")], "return the x that you were given"),
        ([(LAST, "0 * x")], "not Heun's step"),
        ([("t_next == 0", "t_next < 0")], "it asks at t = 0"),
        ([(ZERO, "        return x")], "Euler's, the whole of it"),
        ([(ZERO, "        return (x + end) / 2")], "Euler's, the whole of it"),
        ([(END, END.replace("first", "velocity(x, t)"))], "asks 3 times"),
        ([(ZERO, "        return (end + x + (t_next - t) * velocity(x, t)) / 2")], "asks 2 times"),
        ([(SECOND, "velocity(t_next, end)")], "latents first"),
        ([(LAST, "x[0]")], "has the shape"),
        ([(LAST, "'x'")], "returns a str"),
    ],
)
def test_heun_slips(changes, diagnosis):
    rejected("heun", solved("heun", *changes), diagnosis)


# --- block


def block_by_package(x, six, norm, attention, mlp):
    """The package's own block, with these functions in the places of its layers: so the order of the six is its."""
    made = DiTBlock(x.shape[-1], num_heads=1, context_dim=None)
    made.modulation.forward = lambda time: six
    made.norm1.forward = made.norm2.forward = norm
    made.self_attn.forward = lambda x, grid: attention(x)
    made.mlp.forward = mlp
    return made(x, x[:, 0], None, (1, x.shape[1]))


def block_by_pictures(x, six, norm, attention, mlp):
    done = []
    for one, said in zip(x.split(1), six.view(len(x), 6, -1), strict=True):
        one = one + said[2] * attention(said[0] + norm(one) * (1 + said[1]))
        done.append(one + said[5] * mlp(said[3] + norm(one) * (1 + said[4])))
    return torch.cat(done)


def block_by_modulate(x, six, norm, attention, mlp):
    s1, c1, g1, s2, c2, g2 = six.chunk(6, dim=1)
    x = x + torch.einsum("bd,bnd->bnd", g1, attention(modulate(norm(x), s1, c1)))
    return (x + g2.unsqueeze(1) * mlp(modulate(norm(x), s2, c2))).numpy()


@pytest.mark.parametrize("answer", [block_by_package, block_by_pictures, block_by_modulate])
def test_block_right(answer):
    passes("block", answer)


READ_1, READ_2 = (f"norm(x) * (1 + scale_{k}) + shift_{k}" for k in (1, 2))


@pytest.mark.parametrize(
    ("changes", "diagnosis"),
    [
        ([("(1 + scale_1)", "scale_1"), ("(1 + scale_2)", "scale_2")], "scale 0 should change nothing"),
        ([("(1 + scale_1)", "scale_1")], "first branch: scale 0"),
        ([("(1 + scale_2)", "scale_2")], "second branch: scale 0"),
        ([("six[:, None]", "six")], "give it an axis"),
        ([("gate_1 * ", ""), ("gate_2 * ", "")], "the gate is missing"),
        ([("gate_2 * ", "")], "second branch: the gate"),
        ([("x + gate", "gate")], "x itself is lost"),
        ([("x + gate_1", "gate_1")], "first branch: x itself"),
        ([("shift_1, scale_1", "scale_1, shift_1"), ("shift_2, scale_2", "scale_2, shift_2")], "exchanged"),
        ([("norm(x)", "x")], "the norm is missing"),
        ([(READ_2, READ_2.replace("norm(x)", "x"))], "second branch: the norm"),
        ([(READ_1, f"norm({READ_1.replace('norm(x)', 'x')})")], "first branch: scale and shift come after the norm"),
        ([(f"gate_1 * attention({READ_1}", f"attention(gate_1 * ({READ_1})")], "first branch: the gate comes last"),
        ([("x = x +", "old, x = x, x +"), (READ_2, READ_2.replace("(x)", "(old)"))], "reads the old x"),
        ([("shift_2, scale_2, gate_2 =", "*_ ="), ("_2", "_1")], "the first three vectors"),
        ([(f"x + gate_2 * mlp({READ_2})", "x")], "the second branch is missing"),
        ([("x = x +", "old, x = x, x +"), ("return x", "return old")], "added to the old x"),
        ([("attention(norm", "mlp(norm"), ("gate_2 * mlp", "gate_2 * attention")], "attention belongs to the first"),
        ([("six[:, None].chunk(6, dim=-1)", "six.view(len(x), 1, -1, 6).unbind(-1)")], "d numbers side by side"),
        ([("x + gate_1", "x + (1 + gate_1)")], "zeros in six"),
        ([("x + gate_1", "x - gate_1")], "for 4 pictures of 4 tokens"),
        ([("return x", "return (len(x) != 4) + x")], "zeros in six"),
        ([("x + gate_2", "x + (1 if len(x) == 4 else 2) * gate_2")], "for 2 pictures of 5 tokens"),
        ([("return x +", "return x[:, None] +")], "has the shape"),
        ([("six[:, None]", "six[:, :, None]")], "ValueError"),
        ([(f"return x + gate_2 * mlp({READ_2})", "return 'x'")], "returns a str"),
    ],
)
def test_block_slips(changes, diagnosis):
    rejected("block", solved("block", *changes), diagnosis)


# --- tokens


@pytest.mark.parametrize(
    "answer",
    [(1024, 256, 16), [1024.0, 256.0, 16.0], (np.int64(1024), Fraction(256), "16"), torch.tensor([1024, 256, 16])],
)
def test_tokens_right(answer):
    passes("tokens", answer)


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((256, 1024, 16), "exchanged"),
        ((32, 16, 4), "side by side"),
        ((2048, 1024, 4), "2 wide and 2 high"),
        ((65536, 16384, 16), "picture's pixels"),
        ((4096, 1024, 16), "patches of 1"),
        ((64, 32, 4), "one side of the latents"),
        ((1024, 512, 4), "as many rows"),
        ((1024, 256, 4), "a row *and* a column"),
        ((1024, 256, 2), "half as long"),
        ((1024, 256, 1 / 16), "turned round"),
        ((1024, 256, 0.25), "the tokens' factor"),
        ((1024, 256, 7), "against 256 x 256"),
        ((1024, 256), "three numbers"),
        ((1024, 256, "less"), "three numbers"),
    ],
    ids=repr,
)
def test_tokens_slips(answer, diagnosis):
    rejected("tokens", answer, diagnosis)
