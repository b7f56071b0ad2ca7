"""The exercises of lesson 08, guidance: two conventions, dropping sentences, one call, pull and push, lost variety."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_08_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_08_judges import HALF, NEAR, SPREAD

LESSON = "guidance"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="same_pull",
        kind="predict",
        difficulty=1,
        minutes=5,
        task="Somebody draws with 250 steps and writes guidance as eps_c + w (eps_c - eps_u), with w = 0.5. Which "
        "scale s is that in our convention, and how many rows does the U-Net see for one picture, in all 250 steps "
        "together? Answer with two numbers: (scale, rows).",
        hints=(
            "At which w, and at which s, is the result the plain eps_c?",
            "w = 0 and s = 1 are both plain sampling. A guided step needs an answer with and one without the sentence.",
            "answer = (1 + ..., ... * 250)",
        ),
        solution="answer = (1 + 0.5, 2 * 250)",
        judge=judges.judge_same_pull,
    ),
    Exercise(
        lesson=LESSON,
        name="drop_sentences",
        kind="fill in",
        difficulty=2,
        minutes=8,
        task="Write my_drop(tokens, empty, share, generator) for the training: tokens are (b, length), empty is "
        "(1, length). Each sentence becomes the empty one with probability `share`, by a coin of its own from "
        "`generator`. Return new tokens.",
        hints=(
            "How many coins does a batch of b sentences need?",
            "torch.rand(b, generator=generator) < share says which sentences go; torch.where takes one or the other.",
            "def my_drop(tokens, empty, share, generator):\n"
            "    dropped = torch.rand(..., generator=generator) < ...\n"
            "    return torch.where(dropped[:, None], ..., ...)",
        ),
        solution="import torch\n"
        "\n"
        "def answer(tokens, empty, share, generator):\n"
        "    dropped = torch.rand(len(tokens), generator=generator) < share\n"
        "    return torch.where(dropped[:, None], empty, tokens)",
        judge=judges.judge_drop_sentences,
    ),
    Exercise(
        lesson=LESSON,
        name="one_call",
        kind="fix the fault",
        difficulty=3,
        minutes=10,
        task="my_guided(unet, latents, t, context, empty, scale) should return the guided noise after one call of the "
        "U-Net on 2 b rows. It runs, and the pictures are nonsense: it has two faults.",
        hints=(
            "In which order do the two sentences go into the batch, and in which order do the answers come out?",
            "The context goes in first, so the first chunk is eps_cond. And at scale 1 the result should be eps_cond.",
            "def my_guided(unet, latents, t, context, empty, scale):\n"
            "    both = torch.cat([empty.expand(len(latents), -1, -1), context])\n"
            "    eps = unet(torch.cat([latents, latents]), torch.cat([t, t]), both)\n"
            "    eps_uncond, eps_cond = eps.chunk(2)\n"
            "    return ... + scale * ...",
        ),
        solution="import torch\n"
        "\n"
        "def answer(unet, latents, t, context, empty, scale):\n"
        "    both = torch.cat([empty.expand(len(latents), -1, -1), context])\n"
        "    eps = unet(torch.cat([latents, latents]), torch.cat([t, t]), both)\n"
        "    eps_uncond, eps_cond = eps.chunk(2)\n"
        "    return eps_uncond + scale * (eps_cond - eps_uncond)",
        judge=judges.judge_one_call,
    ),
    Exercise(
        lesson=LESSON,
        name="pull_and_push",
        kind="fill in",
        difficulty=3,
        minutes=10,
        task="A negative prompt in the place of the empty sentence ties push and pull together. Write my_noise("
        "eps_empty, eps_sentence, eps_negative, scale, push) with two strengths: start at eps_empty, go `scale` times "
        "the way to the sentence's answer, and `push` times the way to the negative one's, backwards.",
        hints=(
            "Which two differences are the two ways, both counted from the empty sentence's answer?",
            "The way to the sentence is eps_sentence - eps_empty. Add it `scale` times; subtract the other one.",
            "def my_noise(eps_empty, eps_sentence, eps_negative, scale, push):\n"
            "    pull = eps_sentence - ...\n"
            "    away = ...\n"
            "    return eps_empty + ... - ...",
        ),
        solution="def answer(eps_empty, eps_sentence, eps_negative, scale, push):\n"
        "    pull = eps_sentence - eps_empty\n"
        "    away = eps_negative - eps_empty\n"
        "    return eps_empty + scale * pull - push * away",
        judge=judges.judge_pull_and_push,
    ),
    Exercise(
        lesson=LESSON,
        name="half_spread",
        kind="explore",
        difficulty=3,
        minutes=10,
        task=f"In the exact example the class has the spread {SPREAD}. At which guidance scale do the *samples* of "
        f"guided drawing have half of it, {HALF} (within {NEAR})? Use draw_numbers from step 2; one decimal is enough.",
        hints=(
            "Between which two scales of the figure does the spread of the samples fall below half of the class's?",
            "Print draw_numbers(s).std() for s in steps of 0.2 between them. They fall as s grows.",
            "for s in torch.arange(4, 8, 0.2).tolist():\n    print(f'{s:.1f}', float(draw_numbers(...).std()))",
        ),
        solution="from ldm_tutor.lessons.lesson_08_judges import HALF, sampled_spread\n"
        "\n"
        "answer = 1.0\n"
        "while sampled_spread(answer) > HALF:\n"
        "    answer = round(answer + 0.1, 1)",
        judge=judges.judge_half_spread,
    ),
)
