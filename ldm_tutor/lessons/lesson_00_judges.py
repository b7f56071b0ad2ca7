"""The judges of lesson 00: what is right, and which slip each wrong answer comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ldm_tutor.lessons.exercises import Verdict, is_missing, look_again, not_done, passed
from ldm_tutor.pipeline import Pipeline
from ldm_tutor.shapes import Tensor

SENTENCE, SEED = "a red bicycle in front of a blue house at night", 7
STEP_CHOICES = (1, 2, 5, 10, 20, 30)
NEAR = 0.05  # mean absolute difference, of pictures whose values span 2
_PASS_PIPE = "give the check your model too: check.start_here.{}({}, pipe)"


# ---------------------------------------------------------------- token_shape


def judge_token_shape(answer: Any) -> Verdict:
    """Judge the shapes of tokens and context for three sentences, 32 tokens of width 128."""
    try:
        tokens, context = (tuple(int(size) for size in shape) for shape in answer)
    except (TypeError, ValueError):
        return look_again("the answer has two shapes in it, like ((a, b), (c, d, e)): tokens first, then context")
    if (tokens, context) == ((3, 32), (3, 32, 128)):
        return passed("one row per sentence, 32 tokens in each, and for every token a vector of 128 numbers")
    if (context, tokens) == ((3, 32), (3, 32, 128)):
        return look_again("both shapes are right and in the wrong order: the tokens come first, then the context")
    if 77 in tokens + context or 768 in tokens + context:
        return look_again("77 tokens and width 768 belong to Stable Diffusion; this model has 32 and 128")
    if tokens == (32, 3):
        return look_again("the batch comes first: a row per sentence, a column per token")
    if tokens in ((32,), (1, 32)):
        return look_again("that is one sentence: three sentences make three rows")
    if tokens == (3, 32, 128):
        return look_again("a token is one whole number; the vectors of width 128 appear behind the text encoder")
    if len(tokens) == 2 and tokens[0] == 3 and tokens[1] != 32:
        return look_again(
            f"the second axis is {tokens[1]}: do you count words? Every row is filled with end tokens up to 32"
        )
    if tokens != (3, 32):
        return look_again("for the tokens: how many sentences, then how many tokens has each row")
    if context == (3, 128):
        return look_again("the tokens are right; the context keeps a vector for every token, not one per sentence")
    if context == (3, 128, 32):
        return look_again("the tokens are right; in the context the width of a vector, 128, comes last")
    if context == (3, 32):
        return look_again("the tokens are right; the text encoder turns each token into a vector: one axis more")
    return look_again("the tokens are right; for the context: sentences, tokens, then the width of a token's vector")


# ---------------------------------------------------------------- compression

_COMPRESSION_SLIPS = {
    16: "16 is how many times fewer places there are (4 in height times 4 in width); each place has 4 numbers "
    "instead of 3, so you keep a little more than that",
    48: "48 is Stable Diffusion's factor (512 x 512 x 3 against 64 x 64 x 4); here the side shrinks by 4, not by 8",
    4: "4 is how much one side shrinks; count all numbers: channels times height times width",
    64: "64 is the picture's side, or a side that shrinks by 8 counted twice; divide the two counts of numbers",
    64 / 3: "you turned the channels round: the latents have 4 where the picture has 3, which makes the factor smaller",
    1 / 12: "that is the latents as a share of the picture; the question is how many times fewer: turn it round",
    1024: "that is how many numbers the latents hold; divide the picture's count by it",
    12288: "that is how many numbers the picture holds; divide it by the latents' count",
}


def judge_compression(answer: Any) -> Verdict:
    """Judge how many times fewer numbers the latents (4, 16, 16) hold than the picture (3, 64, 64)."""
    try:
        value = float(answer)
    except (TypeError, ValueError):
        return look_again("the answer is one number, such as 5 or 2.5")
    if math.isclose(value, 12, rel_tol=1e-6):
        return passed("3 x 64 x 64 = 12288 numbers against 4 x 16 x 16 = 1024: the U-Net works on a twelfth")
    for slip, reason in _COMPRESSION_SLIPS.items():
        if math.isclose(value, slip, rel_tol=0.01):
            return look_again(reason)
    if value < 1:
        return look_again("the answer is larger than 1: the latents hold fewer numbers than the picture")
    return look_again("multiply channels, height and width of each, then divide the larger count by the smaller")


# ---------------------------------------------------------------- costliest_part

_PARTS = {"unet": "U-Net", "textencoder": "text encoder", "decoder": "decoder"}


def judge_costliest_part(answer: Any) -> Verdict:
    """Judge the part that takes most time, and the number of grids that the U-Net sees for one picture."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or not isinstance(answer[0], str):
        return look_again('the answer is a pair: the name of the part, then a number, like ("decoder", 3)')
    name, rows = _PARTS.get("".join(letter for letter in answer[0].lower() if letter.isalpha())), answer[1]
    if name is None:
        return look_again(f"the part is one of {', '.join(repr(each) for each in _PARTS.values())}")
    if name != "U-Net":
        return look_again(f"the {name} runs once for a picture; which part runs again at every step?")
    try:
        rows = float(rows)
    except (TypeError, ValueError):
        return look_again("the part is right; the second entry is a number: how many grids pass through the U-Net")
    if rows == 40:
        return passed("20 steps, and at each the U-Net looks twice: with your sentence and without it")
    if rows == 20:
        return look_again("the part is right; with guidance each step needs two, for your sentence and the empty one")
    if rows in (1, 2):
        return look_again(f"the part is right; {rows:.0f} would be enough for one step, and a picture takes 20")
    if rows in (21, 41):
        return look_again("the part is right; count the steps alone: decoding is the decoder's work, not the U-Net's")
    if rows == 80:
        return look_again("the part is right; two per step are all, with your sentence and without")
    return look_again("the part is right; the number is steps times grids per step, and guidance decides how many")


# ---------------------------------------------------------------- draw_loop


def judge_draw_loop(my_draw: Any, pipe: Pipeline | None = None) -> Verdict:
    """Judge a function (pipe, sentence, seed) -> picture against pipe.draw: ddim, 10 steps, guidance 1."""
    if not callable(my_draw):
        return look_again("the answer is a function: my_draw(pipe, sentence, seed)")
    if pipe is None:
        return look_again(_PASS_PIPE.format("draw_loop", "my_draw"))
    for sentence, seed in ((SENTENCE, SEED), ("a large yellow boat on the left", 21)):
        drawn = my_draw(pipe, sentence, seed)
        if is_missing(drawn):
            return not_done("your function returns nothing yet: end it with `return` and the picture")
        reference = _reference(pipe, sentence, seed)
        picture, problem = _as_picture(drawn, reference, pipe)
        if problem:
            return look_again(problem)
        if _far(picture, reference):
            return look_again(_why_different(my_draw, pipe, sentence, seed, picture, reference))
    return passed("your own loop draws the same pictures as pipe.draw, to the last digit that matters")


def _reference(pipe: Pipeline, sentence: str, seed: int, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {"num_steps": 10, "guidance": 1.0, "sampler": "ddim"}
    return pipe.draw([sentence], [seed], **(settings | changes))


def _far(one: Tensor, other: Tensor) -> bool:
    return not float((one - other).abs().max()) < 1e-3  # a NaN is far from everything


def _as_picture(drawn: Any, reference: Tensor, pipe: Pipeline) -> tuple[Tensor, str]:
    """Return the learner's picture with a batch axis, and what is wrong with its form ('' if nothing is)."""
    if not isinstance(drawn, torch.Tensor):
        return reference, f"your function returns a {type(drawn).__name__}: return the picture as a tensor"
    shape = tuple(drawn.shape)
    if shape in (tuple(pipe.config.latent_shape), (1, *pipe.config.latent_shape)):
        return reference, f"your result has the shape {shape}, so these are latents: decode them with pipe.decode"
    if shape not in (tuple(reference.shape), tuple(reference.shape[1:])):
        return reference, f"your result has the shape {shape}; the picture has {tuple(reference.shape)}"
    return drawn.detach().to(reference).reshape(reference.shape), ""


def _why_different(
    my_draw: Callable[..., Any], pipe: Pipeline, sentence: str, seed: int, picture: Tensor, reference: Tensor
) -> str:
    """Name the likely reason why a picture of the right shape is not the reference."""
    if not bool(torch.isfinite(picture).all()):
        return "your picture has values that are not numbers (NaN): look at what goes into the decoder"
    if not _far(picture.clamp(-1, 1), reference):
        return "your picture is right and not cut to [-1, 1]: pipe.decode does that for you"
    again, _ = _as_picture(my_draw(pipe, sentence, seed), reference, pipe)
    if _far(again, picture):
        return "two calls with the same seed give two pictures: draw the noise from the seed, with PictureNoise([seed])"
    other, _ = _as_picture(my_draw(pipe, sentence, seed + 1), reference, pipe)
    if not _far(other, picture):
        return "another seed gives the same picture: the noise has to come from the argument `seed`"
    said, _ = _as_picture(my_draw(pipe, "a white rocket on the moon", seed), reference, pipe)
    if not _far(said, picture):
        return "another sentence gives the same picture: hand the context of `sentence` to the U-Net"
    *_, before, last = pipe.steps([sentence], [seed], num_steps=10, guidance=1.0, sampler="ddim")
    if not _far(picture, pipe.decode(before.latents)):
        return "your loop stops one step early: from the last time step it goes on to the clean latents, t_next=None"
    unscaled = pipe.autoencoder.decode(last.latents.clone()).detach()
    if not _far(picture.clamp(-1, 1), unscaled.clamp(-1, 1)):
        return "the latents went into the decoder with the scale factor still on them: divide by it, or use pipe.decode"
    for changes, reason in (
        ({"sampler": "dpm++"}, "your loop takes dpm++ steps: pass sampler='ddim'"),
        ({"sampler": "ddpm"}, "your loop takes ddpm steps, the pipeline's default: pass sampler='ddim'"),
        ({"guidance": 4.0}, "your loop uses guidance 4: this exercise asks for guidance 1, one context per step"),
        ({"guidance": 2.0}, "your loop uses guidance 2, the pipeline's default: this exercise asks for guidance 1"),
        ({"num_steps": 20}, "your loop takes 20 steps: this exercise asks for 10"),
        ({"num_steps": 50}, "your loop takes 50 steps, the sampler's own default: pass num_steps=10"),
    ):
        if not _far(picture, _reference(pipe, sentence, seed, **changes)):
            return reason
    gap = float((picture - reference).abs().max())
    return f"the picture has the right shape and differs by up to {gap:.2f}: compare your settings with the task"


# ---------------------------------------------------------------- fix_the_fault


def judge_fix_the_fault(to_bytes: Any) -> Verdict:
    """Judge a function from pictures in [-1, 1] to bytes of the same shape, rounded, values outside cut off."""
    if not callable(to_bytes):
        return look_again("the answer is a function: to_bytes(pictures)")
    generator = torch.Generator().manual_seed(SEED)
    inside = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    inside[0, 0, 0, :4] = torch.tensor([-1.0, -0.5, 0.0, 1.0])
    given = inside.clone()
    result = to_bytes(given)
    if is_missing(result):
        return not_done("your function returns nothing yet: end it with `return` and the bytes")
    if not torch.equal(given, inside):
        return look_again("your function changes the picture it was given: write x = x + 1, not x += 1")
    got = torch.as_tensor(result)
    if got.dtype != torch.uint8:
        return look_again(f"the result has the type {got.dtype}: bytes are torch.uint8, so end with .to(torch.uint8)")
    if got.shape != inside.shape:
        return look_again(f"the shape changes from {tuple(inside.shape)} to {tuple(got.shape)}: it has to stay")
    exact = (inside.double() + 1) * 127.5
    dark = inside < 0
    if _agrees(got[dark], 2 * exact[dark], 1.0):
        return look_again(
            "everything is twice as bright: x + 1 runs from 0 to 2, so halve it before you take 255 of it"
        )
    if _agrees(got, (inside.double().clamp(0, 1) + 1) * 127.5, 1.0):
        return look_again("everything below 0 turns grey: cut to the range [-1, 1], which is where the pictures live")
    if _agrees(got, inside.double().clamp(0, 1) * 255, 1.0):
        return look_again("everything below 0 turns black: the darkest value is -1, so add 1 first")
    if _agrees(got, ((inside.double() + 1) * 128).clamp(0, 255), 0.5):
        return look_again("the ends are right, the middle is not: the largest byte is 255, so stretch by 255, not 256")
    if not _agrees(got, exact, 1.0):
        return look_again("-1 has to become 0 and 1 has to become 255, in a straight line: check these two by hand")
    if not _agrees(got, exact, 0.5):
        return look_again(
            "most values are one too small: the change to bytes cuts the fraction off, so round before it"
        )
    outside = torch.tensor([-3.0, -1.3, -1.001, 1.001, 1.2, 2.5]).reshape(1, 1, 2, 3).expand(1, 3, 2, 3).clone()
    edge = torch.as_tensor(to_bytes(outside))
    if not _agrees(edge, (outside.double().clamp(-1, 1) + 1) * 127.5, 0.5):
        return look_again("inside [-1, 1] all is right; a value outside wraps round to the other end: clamp it first")
    return passed("right inside the range, at its ends, beyond them, and rounded to the nearest byte")


def _agrees(got: Tensor, exact: Tensor, tolerance: float) -> bool:
    return bool(((got.double() - exact).abs() <= tolerance + 1e-4).all())


# ---------------------------------------------------------------- enough_steps


def judge_enough_steps(answer: Any, pipe: Pipeline | None = None) -> Verdict:
    """Judge the smallest of STEP_CHOICES whose picture is within NEAR of the one with 50 steps."""
    if pipe is None:
        return look_again(_PASS_PIPE.format("enough_steps", "my_steps"))
    if answer not in STEP_CHOICES:
        return look_again(f"choose one of {', '.join(map(str, STEP_CHOICES))}")
    target = pipe.draw([SENTENCE], [SEED], num_steps=50, sampler="ddim")
    for num_steps in STEP_CHOICES:
        gap = float((pipe.draw([SENTENCE], [SEED], num_steps=num_steps, sampler="ddim") - target).abs().mean())
        if gap < NEAR:
            if num_steps == answer:
                return passed(f"{num_steps} steps come within {NEAR} of 50 steps, for a fraction of the time")
            return look_again(f"{answer} steps are near enough, and fewer are too: try the next smaller choice")
        if num_steps == answer:
            return look_again(
                f"with {num_steps} steps the picture is {gap:.3f} away on average, and {NEAR} is the limit"
            )
    return look_again("none of the choices comes near with this model")
