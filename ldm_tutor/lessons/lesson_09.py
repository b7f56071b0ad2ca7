"""The exercises of lesson 09, prompt editing: counting steps, taking over, the mapper, local blend, gentle shares."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_09_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_09_judges import GENTLE_DB, GENTLE_SEED, GENTLE_SOURCE, GENTLE_TARGET

LESSON = "prompt_editing"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="how_many_steps",
        kind="predict",
        difficulty=1,
        minutes=5,
        task="A drawing has 50 steps, one source, two targets, and guidance. The tables of the injection have one row "
        "more than there are steps, and a bound f falls on step int(f * rows); cross-attention is taken over from "
        "step 0 to just before the bound of 0.8. How many steps take over cross-attention, and how many rows of the "
        "batch are edited in each of them? Answer with two numbers: (steps, rows).",
        hints=(
            "How many rows has the batch with guidance, and which of them see their sentence and are no source?",
            "The table has 51 rows. Of the six rows of the batch, the three without the sentence are never edited.",
            "answer = (int(0.8 * ...), ...)",
        ),
        solution="answer = (int(0.8 * 51), 2)",
        judge=judges.judge_how_many_steps,
    ),
    Exercise(
        lesson=LESSON,
        name="take_over",
        kind="fill in",
        difficulty=3,
        minutes=12,
        task="Write my_take_over(probs, rows, mapper): probs is (b, heads, n, m), rows has one Row(prompt, "
        "conditional) per batch row, in any order. Sentence 0 is the source, sentence 1 the target. Return new maps "
        "in which the target's row that sees its sentence has the source's map times `mapper`, and all else is as "
        "it was.",
        hints=(
            "How do you find the two rows that matter, without relying on their place in the batch?",
            "Among the rows with conditional=True, one has prompt 0 and one has prompt 1. Copy, then replace one row.",
            "def my_take_over(probs, rows, mapper):\n"
            "    seen = {row.prompt: k for k, row in enumerate(rows) if ...}\n"
            "    edited = probs.clone()\n"
            "    edited[seen[1]] = ... @ mapper\n"
            "    return edited",
        ),
        solution="def answer(probs, rows, mapper):\n"
        "    seen = {row.prompt: k for k, row in enumerate(rows) if row.conditional}\n"
        "    edited = probs.clone()\n"
        "    edited[seen[1]] = probs[seen[0]] @ mapper\n"
        "    return edited",
        judge=judges.judge_take_over,
    ),
    Exercise(
        lesson=LESSON,
        name="mapper",
        kind="fill in",
        difficulty=4,
        minutes=15,
        task="Write my_swap_mapper(old_counts, new_counts, m): how many tokens each word has before and after the "
        "swap, and the length of the context. Return P, (m, m): the source's map (n, m) times P is the target's. The "
        "start mark is token 0. Words of equal counts are mapped one to one. Where the counts differ, each token of "
        "the new word gets 1/k of all tokens of the old one, k being the new count. End marks follow in order; those "
        "that do not fit go to the last.",
        hints=(
            "At which column does a word begin when the word before it has become longer?",
            "Walk with two numbers, i in the source and j in the target; after each word they move by its old and its "
            "new count. The end marks begin where the two have arrived.",
            "def my_swap_mapper(old_counts, new_counts, m):\n"
            "    P = torch.zeros(m, m)\n"
            "    P[0, 0], i, j = 1, 1, 1\n"
            "    for old, new in zip(old_counts, new_counts):\n"
            "        P[i : i + old, j : j + new] = torch.eye(old) if old == new else ...\n"
            "        i, j = ...\n"
            "    for k in range(m - i):\n"
            "        P[i + k, min(j + k, ...)] = 1\n"
            "    return P",
        ),
        solution="import torch\n\n"
        "def answer(old_counts, new_counts, m):\n"
        "    P = torch.zeros(m, m)\n"
        "    P[0, 0], i, j = 1, 1, 1\n"
        "    for old, new in zip(old_counts, new_counts):\n"
        "        P[i : i + old, j : j + new] = torch.eye(old) if old == new else 1 / new\n"
        "        i, j = i + old, j + new\n"
        "    for k in range(m - i):\n"
        "        P[i + k, min(j + k, m - 1)] = 1\n"
        "    return P",
        judge=judges.judge_mapper,
    ),
    Exercise(
        lesson=LESSON,
        name="blend",
        kind="fix the fault",
        difficulty=2,
        minutes=8,
        task="my_blend(latents, field, threshold) should keep the target (row 1) where the changed word is, and the "
        "source (row 0) elsewhere. `threshold` is a share of the field's largest value. The function below has two "
        "faults, and raises none.",
        hints=(
            "What does the function keep where the word is, and what would happen to a field whose largest value is "
            "0.01?",
            "Compare with threshold times the maximum. torch.where takes its second argument where the mask is True.",
            "mask = field > threshold * ...\nblended[1] = torch.where(mask, ..., ...)",
        ),
        solution="import torch\n\n"
        "def answer(latents, field, threshold):\n"
        "    mask = field > threshold * field.max()\n"
        "    blended = latents.clone()\n"
        "    blended[1] = torch.where(mask, latents[1], latents[0])\n"
        "    return blended",
        judge=judges.judge_blend,
    ),
    Exercise(
        lesson=LESSON,
        name="gentle",
        kind="explore",
        difficulty=3,
        minutes=12,
        task=f"Find shares (cross, self) for the swap '{GENTLE_SOURCE}' to '{GENTLE_TARGET}' with seed {GENTLE_SEED}, "
        "10 steps, without local blend, for which the judge sees one new thing and no old one, and the background "
        f"keeps {GENTLE_DB:.0f} dB or more. The check draws it, which takes a few seconds.",
        hints=(
            "In the first row of the grid above, what brings the rocket over? And what does more of self do?",
            "Draw it: pipe.edit_many with Injection(cross=..., self_=..., threshold=None), and measure with "
            "background(...).",
            "answer = (0.8, ...)",
        ),
        solution=f"answer = {judges.GENTLE_ANSWER}",
        judge=judges.judge_gentle,
    ),
)
