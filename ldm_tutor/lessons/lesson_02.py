"""The exercises of lesson 02, sharp reconstructions: mean and median, a patch, features, balance, sharpening."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_02_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_02_judges import NUM_SHARPENED

LESSON = "sharp_reconstructions"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="one_answer",
        kind="predict",
        difficulty=1,
        minutes=5,
        task="Ten pictures have the same latents. A pixel is -1 in six of them, 0 in one and 1 in three. Which value "
        "does a decoder give it that was trained long enough with L2, and which with L1? Answer with (l2, l1).",
        hints=(
            "Which one number has the smallest squared error to all ten, and which the smallest absolute error?",
            "The mean for L2: add up the ten, divide by ten. The median for L1: put them in order, take the middle.",
            "values = [-1] * 6 + [0] + [1] * 3\nanswer = (sum(values) / ..., sorted(values)[...])",
        ),
        solution="import statistics\n\n"
        "values = [-1] * 6 + [0] + [1] * 3\n"
        "answer = (statistics.mean(values), statistics.median(values))",
        judge=judges.judge_one_answer,
    ),
    Exercise(
        lesson=LESSON,
        name="receptive_field",
        kind="fill in",
        difficulty=2,
        minutes=10,
        task="Write my_field(layers): how many pixels wide is the patch that one output sees? layers is a list of "
        "(kernel, stride), the layer next to the picture first. It should work for any kernels and strides.",
        hints=(
            "One verdict sees 4 outputs of the layer before the last. How many outputs of the layer before that?",
            "Begin with 1 and walk from the last layer to the first. n outputs side by side, a stride apart, see "
            "(n - 1) * stride + kernel inputs.",
            "def my_field(layers):\n"
            "    field = 1\n"
            "    for kernel, stride in ...:\n"
            "        field = ...\n"
            "    return field",
        ),
        solution="def answer(layers):\n"
        "    field = 1\n"
        "    for kernel, stride in reversed(layers):\n"
        "        field = (field - 1) * stride + kernel\n"
        "    return field",
        judge=judges.judge_receptive_field,
    ),
    Exercise(
        lesson=LESSON,
        name="feature_gap",
        kind="fix the fault",
        difficulty=3,
        minutes=12,
        task="my_gap(a, b) should return the distance of two feature maps (b, c, h, w) as eq. 1 of LPIPS has it, with "
        "equal weights: one number per picture. The function below has two faults, and a danger besides: at some "
        "positions no feature fires.",
        hints=(
            "At one position there is one vector of c numbers. Along which axis does its length run?",
            "Divide at each position by the length over the channels, dim=1. Sum the squares over the channels; take "
            "the mean over positions. F.normalize(a, dim=1, eps=1e-5) does not divide by zero.",
            "def my_gap(a, b):\n"
            "    a = F.normalize(a, dim=..., eps=1e-5)\n"
            "    b = F.normalize(b, dim=..., eps=1e-5)\n"
            "    return (a - b).square().sum(dim=...).mean(dim=...)",
        ),
        solution="from torch.nn import functional as F\n\n"
        "def answer(a, b):\n"
        "    a = F.normalize(a, dim=1, eps=1e-5)\n"
        "    b = F.normalize(b, dim=1, eps=1e-5)\n"
        "    return (a - b).square().sum(dim=1).mean(dim=(1, 2))",
        judge=judges.judge_feature_gap,
    ),
    Exercise(
        lesson=LESSON,
        name="balance",
        kind="fill in",
        difficulty=4,
        minutes=15,
        task="Write my_balance(reconstruction, adversarial, last_layer): the length of the first loss's gradient at "
        "last_layer over the length of the second's, plus 1e-4 beneath, and never above 10,000. The graph must "
        "survive: the training calls backward() afterwards.",
        hints=(
            "Which function of torch gives a gradient without writing it into last_layer.grad?",
            "torch.autograd.grad(loss, last_layer, retain_graph=True)[0] is the gradient and leaves the graph alone. "
            "Its .norm() is the length.",
            "def my_balance(reconstruction, adversarial, last_layer):\n"
            "    rec = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()\n"
            "    adv = ...\n"
            "    return (rec / ...).clamp(...)",
        ),
        solution="import torch\n\n"
        "def answer(reconstruction, adversarial, last_layer):\n"
        "    rec = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()\n"
        "    adv = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].norm()\n"
        "    return (rec / (adv + 1e-4)).clamp(0, 1e4).detach()",
        judge=judges.judge_balance,
    ),
    Exercise(
        lesson=LESSON,
        name="sharpen",
        kind="explore",
        difficulty=2,
        minutes=10,
        task="A paint program sharpens too. Find the amount for which kit.sharpen(pictures, amount) gives what the L2 "
        f"autoencoder makes of the first {NUM_SHARPENED} test scenes the fine energy of the scenes themselves, "
        "within 5%. Then look at the pictures, and at their perceptual distance.",
        hints=(
            "What does the amount 0 give, and does the fine energy rise or fall when the amount grows?",
            f"made['l2'][:{NUM_SHARPENED}] are the pictures, high_frequency_energy(...).mean() is the energy. Try "
            "whole amounts first, then tenths between the two that enclose the goal.",
            f"wanted = high_frequency_energy(pictures[:{NUM_SHARPENED}]).mean()\n"
            "for amount in range(20):\n"
            f"    sharper = kit.sharpen(made['l2'][:{NUM_SHARPENED}], amount)\n"
            "    print(amount, high_frequency_energy(...).mean() / ...)",
        ),
        solution="from ldm_tutor.lessons.lesson_02_kit import held_out_scenes, reconstruct, sharpen\n"
        "from ldm_tutor.metrics.pictures import high_frequency_energy\n\n"
        f"real = held_out_scenes({NUM_SHARPENED})\n"
        "made, wanted = reconstruct('l2', real), high_frequency_energy(real).mean()\n"
        "low, high = 0.0, 50.0\n"
        "for _ in range(30):\n"
        "    answer = (low + high) / 2\n"
        "    if high_frequency_energy(sharpen(made, answer)).mean() < wanted:\n"
        "        low = answer\n"
        "    else:\n"
        "        high = answer",
        judge=judges.judge_sharpen,
    ),
)
