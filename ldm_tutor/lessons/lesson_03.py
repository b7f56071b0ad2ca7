"""The exercises of lesson 03, CLIP: a blind guess, cosines, the loss, a mask, and a scale that is enough."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_03_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_03_judges import MATCH, MISMATCH, NUM_BLIND, NUM_PAIRS, SCALE_CHOICES, TARGET_LOSS

LESSON = "clip"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="blind_loss",
        kind="predict",
        difficulty=1,
        minutes=3,
        task=f"A CLIP that has learned nothing gives every one of the {NUM_BLIND} x {NUM_BLIND} pairs of a batch the "
        "same similarity. What is its contrastive loss, to two decimal places?",
        hints=(
            "If all sentences of a batch fit equally well, which share of the softmax does the right one get?",
            "Each of n sentences gets 1/n. Cross-entropy is minus the natural logarithm of the right one's share, and "
            "both directions give the same.",
            "answer = -math.log(1 / n)",
        ),
        solution=f"import math\n\nanswer = round(math.log({NUM_BLIND}), 2)",
        judge=judges.judge_blind_loss,
    ),
    Exercise(
        lesson=LESSON,
        name="cosine_matrix",
        kind="fill in",
        difficulty=2,
        minutes=6,
        task="Write my_cosines(a, b) for two sets of vectors of any length, a of shape (n, d) and b of shape (m, d): "
        "return the (n, m) matrix of the cosines of every a with every b.",
        hints=(
            "What has to happen to each vector before a dot product is a cosine?",
            "Divide each row by its own length, then multiply one set with the other one turned on its side.",
            "def my_cosines(a, b):\n    a = a / a.norm(dim=..., keepdim=True)\n    b = ...\n    return a @ ...",
        ),
        solution="def answer(a, b):\n"
        "    a = a / a.norm(dim=1, keepdim=True)\n"
        "    b = b / b.norm(dim=1, keepdim=True)\n"
        "    return a @ b.T",
        judge=judges.judge_cosine_matrix,
    ),
    Exercise(
        lesson=LESSON,
        name="symmetric_loss",
        kind="fill in",
        difficulty=3,
        minutes=12,
        task="Write my_loss(cosines, temperature) for an (n, n) matrix of cosines, a row per picture, a column per "
        "sentence, the pairs on the diagonal. Divide by the temperature, then return the mean of the two "
        "cross-entropies: each picture picks its sentence, each sentence its picture.",
        hints=(
            "Along which axis do you take the softmax when a picture picks its sentence, and when a sentence picks?",
            "F.cross_entropy(logits, target) works row by row, and row i's right answer is number i. The other "
            "direction is the same with the matrix turned on its side.",
            "def my_loss(cosines, temperature):\n"
            "    logits = cosines / temperature\n"
            "    target = torch.arange(...)\n"
            "    return 0.5 * (F.cross_entropy(..., target) + F.cross_entropy(..., target))",
        ),
        solution="import torch\n"
        "from torch.nn import functional as F\n"
        "\n"
        "def answer(cosines, temperature):\n"
        "    logits = cosines / temperature\n"
        "    target = torch.arange(len(logits))\n"
        "    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))",
        judge=judges.judge_symmetric_loss,
    ),
    Exercise(
        lesson=LESSON,
        name="mask_fault",
        kind="fix the fault",
        difficulty=2,
        minutes=5,
        task="my_mask(length) should give the (length, length) mask of a text encoder: bool, True where a token (the "
        "row) may look at another (the column), which is at itself and at all before it. Repair it.",
        hints=(
            "Print my_mask(4). What may the first token see, and what may the last one?",
            "Row 0 has one True, the last row has only True. triu keeps the corner at the upper right.",
            "def my_mask(length):\n    return torch.ones(length, length).___().bool()  # what keeps the lower left?",
        ),
        solution="import torch\n\ndef answer(length):\n    return torch.ones(length, length).tril().bool()",
        judge=judges.judge_mask_fault,
    ),
    Exercise(
        lesson=LESSON,
        name="enough_scale",
        kind="explore",
        difficulty=3,
        minutes=8,
        task=f"Suppose that {NUM_PAIRS} pictures have cosine {MATCH} with their own sentence and {MISMATCH} with every "
        f"other. Try the scales {', '.join(map(str, SCALE_CHOICES))} (scale = 1 / temperature). Which is the smallest "
        f"whose contrastive loss is below {TARGET_LOSS}?",
        hints=(
            "How do you make a matrix with one value on the diagonal and another one everywhere else?",
            "Fill a matrix with the smaller cosine, write the larger one on its diagonal, and compute "
            "contrastive_loss(scale * cosines) for each scale.",
            f"cosines = torch.full(({NUM_PAIRS}, {NUM_PAIRS}), ...)\n"
            "cosines.fill_diagonal_(...)\n"
            f"for scale in {SCALE_CHOICES}:\n"
            "    print(scale, contrastive_loss(...))",
        ),
        solution="import torch\n"
        "from ldm_tutor.losses.contrastive import contrastive_loss\n"
        "\n"
        f"cosines = torch.full(({NUM_PAIRS}, {NUM_PAIRS}), {MISMATCH})\n"
        f"cosines.fill_diagonal_({MATCH})\n"
        f"for answer in {SCALE_CHOICES}:\n"
        f"    if contrastive_loss(answer * cosines) < {TARGET_LOSS}:\n"
        "        break",
        judge=judges.judge_enough_scale,
    ),
)
