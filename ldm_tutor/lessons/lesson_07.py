"""The exercises of lesson 07, cross-attention: one weight, the formula, the heads, hiding a word, the best head."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_07_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_07_judges import NUM_SCENES, TIME

LESSON = "cross_attention"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="one_weight",
        kind="predict",
        difficulty=1,
        minutes=5,
        task="A position asks three tokens. The products of its query with their keys are 8, 4 and 4; queries and "
        "keys have 16 numbers. Which weight does the first token get? Answer with a number, two digits are enough.",
        hints=(
            "What happens to a product before the softmax sees it?",
            "The scores are 8, 4 and 4, each divided by the root of 16. Then exponentials, and a share of their sum.",
            "answer = math.exp(...) / (math.exp(...) + 2 * math.exp(...))",
        ),
        solution="import math\n\nanswer = math.exp(8 / 4) / (math.exp(8 / 4) + 2 * math.exp(4 / 4))",
        judge=judges.judge_one_weight,
    ),
    Exercise(
        lesson=LESSON,
        name="attend",
        kind="fill in",
        difficulty=2,
        minutes=10,
        task="Write my_attend(q, k, v, mask=None) for one head: q is (n, d), k and v are (m, d). `mask` is None, or "
        "(n, m) and True where a position may look. Return (n, d).",
        hints=(
            "Which axis of the scores has the tokens, and when does a mask have to act?",
            "Scores, divided by the root of d; minus infinity where the mask is False; softmax over the last axis; "
            "times the values.",
            "def my_attend(q, k, v, mask=None):\n"
            "    scores = q @ ... / q.shape[-1] ** 0.5\n"
            "    if mask is not None:\n"
            "        scores = scores.masked_fill(..., -torch.inf)\n"
            "    return scores.softmax(dim=...) @ ...",
        ),
        solution="import torch\n\n"
        "def answer(q, k, v, mask=None):\n"
        "    scores = q @ k.T / q.shape[-1] ** 0.5\n"
        "    if mask is not None:\n"
        "        scores = scores.masked_fill(~mask, -torch.inf)\n"
        "    return scores.softmax(dim=-1) @ v",
        judge=judges.judge_attend,
    ),
    Exercise(
        lesson=LESSON,
        name="split_heads",
        kind="fix the fault",
        difficulty=3,
        minutes=8,
        task="split_heads(x, num_heads) should turn (b, n, heads * d) into (b, heads, n, d), where head 0 has the "
        "first d channels of every position, head 1 the next d, and so on. The function below gives the right shape "
        "and the wrong numbers. No error will ever tell you.",
        hints=(
            "If you fill a table row by row from x, which numbers land in the first head?",
            "Cut the last axis into (heads, d) first; the positions stay where they are. Then swap two axes.",
            "def split_heads(x, num_heads):\n"
            "    x = x.unflatten(-1, ...)  # (b, n, heads, d)\n"
            "    return x.transpose(...)",
        ),
        solution="def answer(x, num_heads):\n    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)",
        judge=judges.judge_split_heads,
    ),
    Exercise(
        lesson=LESSON,
        name="ignore_word",
        kind="fill in",
        difficulty=3,
        minutes=10,
        task="A tap sees the map only after the softmax. Write my_ignore(probs, token): from a map (b, heads, n, m), "
        "return the map that would have come out if the token had been masked before the softmax.",
        hints=(
            "By what does the softmax divide, and what is missing from that sum when a token is masked?",
            "Weight zero for the token; the others keep their proportions and sum to 1 again.",
            "def my_ignore(probs, token):\n"
            "    kept = probs.clone()\n"
            "    kept[..., ...] = 0\n"
            "    return kept / kept.sum(...)",
        ),
        solution="def answer(probs, token):\n"
        "    kept = probs.clone()\n"
        "    kept[..., token] = 0\n"
        "    return kept / kept.sum(dim=-1, keepdim=True)",
        judge=judges.judge_ignore_word,
    ),
    Exercise(
        lesson=LESSON,
        name="best_head",
        kind="explore",
        difficulty=3,
        minutes=12,
        task="Which single head of which layer fits the object of its word best, by AUC? Answer with a pair such "
        f"as ('mid.block0.layer0.cross', 0), heads counted from 0. The check measures all of them on {NUM_SCENES} "
        f"held-out scenes at t = {TIME} and accepts every head that is as good as the best within {judges.CLOSE}.",
        hints=(
            "In the table of layers, which ones stand out, and how far apart may four heads of one layer be?",
            "`aucs` of the lesson has the axes (case, time, layer, head). Average over cases and times, and look for "
            "the largest entry. `layers` has the names.",
            "table = aucs.mean(dim=...)\nlayer, head = divmod(int(table.argmax()), ...)\n"
            "answer = (layers[layer], head)",
        ),
        solution="from ldm_tutor.lessons.lesson_07_judges import head_table\n\n"
        "table = head_table()  # in the lesson: aucs.mean(dim=(0, 1)), and layers for the names\n"
        "answer = max(table, key=table.get)",
        judge=judges.judge_best_head,
    ),
)
