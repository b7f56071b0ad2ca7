"""The exercises of lesson 08: right answers in several styles pass, each typical slip gets its own diagnosis."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ldm_tutor.lessons import lesson_08_judges as judges
from ldm_tutor.lessons.checks import check
from ldm_tutor.lessons.exercises import LOOK_AGAIN, PASS


def give(name, answer):
    return getattr(check.guidance, name)(answer)


# --- same_pull


@pytest.mark.parametrize(
    "answer",
    [(1.5, 500), [1.5, 500.0], (Fraction(3, 2), np.int64(500)), torch.tensor([1.5, 500]), ("1.5", "500")],
    ids=lambda answer: type(answer).__name__,
)
def test_same_pull_right(answer):
    assert give("same_pull", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [
        ((0.5, 500), "w itself"),
        ((-0.5, 500), "sign turned"),
        ((2, 500), "1 / w"),
        ((1, 500), "plain sampling, w = 0"),
        ((7.5, 500), "write eps_c + w"),
        ((500, 1.5), "wrong way round"),
        ((1.5, 250), "without guidance"),
        ((1.5, 375), "does not depend on it"),
        ((1.5, 1000), "how many answers"),
        ((1.5,), "two numbers"),
        ((1.5, 500, 1), "two numbers"),
        (("half", 500), "two numbers"),
        (1.5, "two numbers"),
    ],
    ids=repr,
)
def test_same_pull_slips(answer, diagnosis):
    verdict = give("same_pull", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- drop_sentences


def by_where(tokens, empty, share, generator):
    return torch.where((torch.rand(len(tokens), generator=generator) < share)[:, None], empty, tokens)


def by_index(tokens, empty, share, generator):
    result = tokens.clone()
    result[torch.rand(len(tokens), generator=generator) < share] = empty[0]
    return result


def by_loop(tokens, empty, share, generator):
    coins = torch.rand(len(tokens), generator=generator).tolist()
    return torch.stack([empty[0] if coin < share else row for row, coin in zip(tokens, coins, strict=True)])


def by_bernoulli(tokens, empty, share, generator):
    dropped = torch.bernoulli(torch.full((len(tokens), 1), share), generator=generator)
    return (dropped * empty + (1 - dropped) * tokens).long()


def in_place(tokens, empty, share, generator):
    tokens[torch.rand(len(tokens), generator=generator) < share] = empty[0]
    return tokens


def first_rows(tokens, empty, share, generator):
    result = tokens.clone()
    result[: round(share * len(tokens))] = empty[0]
    return result


def fixed_number(tokens, empty, share, generator):
    result = tokens.clone()
    result[torch.randperm(len(tokens), generator=generator)[: round(share * len(tokens))]] = empty[0]
    return result


def coin(shape, compare):
    def mine(tokens, empty, share, generator):
        return torch.where(compare(torch.rand(shape(tokens), generator=generator), share), empty, tokens)

    return mine


DROP_SLIPS = {
    "one coin per sentence": coin(lambda tokens: tokens.shape, torch.lt),
    "*below* the share": coin(lambda tokens: (len(tokens), 1), torch.ge),
    "a coin of its own": coin(lambda tokens: (1, 1), torch.lt),
    "is dropped: every sentence": lambda tokens, empty, share, generator: tokens.clone(),
    "at one end of the batch": first_rows,
    "the same number of sentences": fixed_number,
    "changes the tokens": in_place,
    "0 is a token": lambda tokens, empty, share, generator: by_where(tokens, torch.zeros_like(empty), share, generator),
    "neither their own": lambda tokens, empty, share, generator: by_where(tokens, empty + 1, share, generator),
    "should be 0.10, yours is 0.": lambda tokens, empty, share, generator: by_where(
        by_where(tokens, empty, share, generator), empty, share, generator
    ),
    "pass `generator`": lambda tokens, empty, share, generator: by_where(tokens, empty, share, None),
    "use the argument `generator`": lambda tokens, empty, share, generator: by_where(
        tokens, empty, share, torch.Generator().manual_seed(0)
    ),
    "the result has the shape": lambda tokens, empty, share, generator: by_where(tokens, empty, share, generator)[:-1],
    "whole numbers": lambda tokens, empty, share, generator: by_where(tokens, empty, share, generator).float(),
}


@pytest.mark.parametrize("mine", [by_where, by_index, by_loop, by_bernoulli])
def test_drop_sentences_right(mine):
    verdict = give("drop_sentences", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", DROP_SLIPS)
def test_drop_sentences_slips(diagnosis):
    verdict = give("drop_sentences", DROP_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- one_call


def guided(formula, swap=False, unpack_swapped=False):
    """my_guided with a formula of (eps_uncond, eps_cond, scale), its halves swapped in the batch, or after it."""

    def mine(unet, latents, t, context, empty, scale):
        halves = [empty.expand(len(latents), -1, -1), context]
        both = torch.cat(halves[::-1] if swap else halves)
        one, other = unet(torch.cat([latents, latents]), torch.cat([t, t]), both).chunk(2)
        return formula(other, one, scale) if unpack_swapped else formula(one, other, scale)

    return mine


def right_formula(u, c, s):
    return u + s * (c - u)


def two_calls(unet, latents, t, context, empty, scale):
    return right_formula(unet(latents, t, empty.expand(len(latents), -1, -1)), unet(latents, t, context), scale)


def interleaved(unet, latents, t, context, empty, scale):
    both = torch.stack([empty.expand_as(context), context], dim=1).flatten(0, 1)
    eps = unet(latents.repeat_interleave(2, 0), t.repeat_interleave(2), both)
    return torch.lerp(eps[::2], eps[1::2], scale)


ONE_CALL_SLIPS = {
    "neither of the two faults is mended yet": guided(lambda u, c, s: c + s * (c - u), swap=True),
    "the two chunks are swapped": guided(right_formula, swap=True),
    "one pull too many": guided(lambda u, c, s: c + s * (c - u)),
    "the pull alone": guided(lambda u, c, s: s * (c - u)),
    "sentence's answer alone": guided(lambda u, c, s: c),
    "the empty sentence, scale 0": guided(lambda u, c, s: u),
    "you multiply the answer": guided(lambda u, c, s: s * c),
    "a mean of the two": guided(lambda u, c, s: (u + s * c) / (1 + s)),
    "with 2 calls": two_calls,
    "the U-Net got 6 latents, 3 times": lambda unet, latents, t, context, empty, scale: unet(
        torch.cat([latents, latents]), t, torch.cat([context, context])
    ),
    "the two halves": lambda unet, latents, t, context, empty, scale: unet(
        torch.cat([latents, latents]), torch.cat([t, t]), torch.cat([context, context])
    ),
    "row by row": guided(lambda u, c, s: u * c),
    "not numbers": guided(lambda u, c, s: u * math.nan),
}


@pytest.mark.parametrize(
    "mine",
    [
        guided(right_formula),
        guided(right_formula, swap=True, unpack_swapped=True),
        guided(lambda u, c, s: s * c + (1 - s) * u),
        guided(lambda u, c, s: c + (s - 1) * (c - u)),
        interleaved,
    ],
)
def test_one_call_right(mine):
    verdict = give("one_call", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", ONE_CALL_SLIPS)
def test_one_call_slips(diagnosis):
    verdict = give("one_call", ONE_CALL_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- pull_and_push

PUSH_SLIPS = {
    "towards the negative text too": lambda e, c, n, s, p: e + s * (c - e) + p * (n - e),
    "the usual negative prompt": lambda e, c, n, s, p: n + s * (c - n),
    "subtract the whole answer": lambda e, c, n, s, p: e + s * (c - e) - p * n,
    "your push starts at the sentence": lambda e, c, n, s, p: e + s * (c - e) - p * (n - c),
    "add them to eps_empty": lambda e, c, n, s, p: s * (c - e) - p * (n - e),
    "you start at the sentence's answer": lambda e, c, n, s, p: c + s * (c - e) - p * (n - e),
    "does nothing yet": lambda e, c, n, s, p: e + s * (c - e),
    "`push` does nothing, and": lambda e, c, n, s, p: e + s * (c - n),
    "changed places": lambda e, c, n, s, p: e + p * (c - e) - s * (n - e),
    "turned around": lambda e, c, n, s, p: e + s * (e - c) - p * (e - n),
    "not numbers": lambda e, c, n, s, p: e * math.nan,
    "of the shape of eps_empty": lambda e, c, n, s, p: e[:1],
    "start at eps_empty, add": lambda e, c, n, s, p: e * c * n,
}


@pytest.mark.parametrize(
    "mine",
    [
        lambda e, c, n, s, p: e + s * (c - e) - p * (n - e),
        lambda e, c, n, s, p: (1 - s + p) * e + s * c - p * n,
        lambda e, c, n, s, p: torch.stack([e, c, n]).mul(torch.tensor([1 - s + p, s, -p]).view(3, 1, 1, 1, 1)).sum(0),
    ],
)
def test_pull_and_push_right(mine):
    verdict = give("pull_and_push", mine)
    assert verdict.state == PASS, verdict


@pytest.mark.parametrize("diagnosis", PUSH_SLIPS)
def test_pull_and_push_slips(diagnosis):
    verdict = give("pull_and_push", PUSH_SLIPS[diagnosis])
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


# --- half_spread


@pytest.mark.parametrize("answer", [5.4, np.float64(5.2), torch.tensor(5.5), "5.4", Fraction(27, 5)], ids=repr)
def test_half_spread_right(answer):
    assert give("half_spread", answer).state == PASS


@pytest.mark.parametrize(
    ("answer", "diagnosis"),
    [(1, "try a larger one"), (4, "try a larger one"), (8, "try a smaller one"), (0.4, "from 1 to 100")],
)
def test_half_spread_slips(answer, diagnosis):
    verdict = give("half_spread", answer)
    assert verdict.state == LOOK_AGAIN and diagnosis in verdict.message, verdict


def test_the_exact_noise_is_a_derivative():
    """Guided noise = -sigma times the slope of log p + s log p(c|x), by autograd from the two bells themselves."""
    x, a, scale = torch.linspace(-3, 3, 31, dtype=torch.float64, requires_grad=True), 0.3, 2.5
    bells = torch.distributions.Normal(
        torch.tensor([-1.0, 1.0], dtype=torch.float64) * math.sqrt(a), math.sqrt(a * judges.SPREAD**2 + 1 - a)
    )
    log_p = bells.log_prob(x[:, None])
    aim = log_p.logsumexp(dim=1) + scale * log_p.log_softmax(dim=1)[:, 1]
    (slope,) = torch.autograd.grad(aim.sum(), x)
    assert torch.allclose(judges._noise_in(x, a, scale), -math.sqrt(1 - a) * slope)


def test_at_scale_one_the_samples_have_the_spread_of_the_class():
    assert judges.sampled_spread(1.0) == pytest.approx(judges.SPREAD, abs=0.02)
