"""The exercises of lesson 05, the U-Net: its widths, the wave, the residual block, the average, and where it pays."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_05_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_05_judges import FEW, LITTLE, MANY, MUCH, NUM_LOOKS

LESSON = "unet_denoiser"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="skip_channels",
        kind="predict",
        difficulty=2,
        minutes=8,
        task="How many channels go into each of the six residual blocks on the way up, in the U-Net of the figure in "
        "step 4 (24 channels, times 1, 2 and 2, one block per level on the way down)? Answer with a list, in the order "
        "of running.",
        hints=(
            "Which two maps does a block on the way up read, and in which order are the skips taken?",
            "The list of the way down: conv_in 24, block 24, halved 24, block 48, halved 48, block 48. Each block on "
            "the way up takes the last that is left, beside the map that it gets from below.",
            "kept = [24, 24, 24, 48, 48, 48]\n"
            "width, answer = 48, []\n"
            "for out in (48, 48, 48, 48, 24, 24):\n"
            "    answer.append(...)\n"
            "    width = out",
        ),
        solution="kept = [24, 24, 24, 48, 48, 48]\n"
        "width, answer = 48, []\n"
        "for out in (48, 48, 48, 48, 24, 24):\n"
        "    answer.append(width + kept.pop())\n"
        "    width = out",
        judge=judges.judge_skip_channels,
    ),
    Exercise(
        lesson=LESSON,
        name="time_wave",
        kind="fill in",
        difficulty=2,
        minutes=10,
        task="Write my_time_wave(t, dim): the waves of step 2 for a tensor t of whole numbers, shape (b,), and an even "
        "dim. The result has the shape (b, dim): all cosines, from fast to slow, then all sines.",
        hints=(
            "How many different frequencies are there, and what is the first one?",
            "dim / 2 frequencies, from 1 down: 10000 to the power of -k / (dim / 2). Multiply t as a column by the "
            "frequencies as a row; then cosine, sine, and torch.cat along dimension 1.",
            "def my_time_wave(t, dim):\n"
            "    half = dim // 2\n"
            "    freqs = 10000 ** (-torch.arange(half) / ...)\n"
            "    angles = t.float()[:, None] * ...\n"
            "    return torch.cat([..., ...], dim=1)",
        ),
        solution="import torch\n"
        "\n"
        "def answer(t, dim):\n"
        "    half = dim // 2\n"
        "    freqs = 10000 ** (-torch.arange(half) / half)\n"
        "    angles = t.float()[:, None] * freqs\n"
        "    return torch.cat([angles.cos(), angles.sin()], dim=1)",
        judge=judges.judge_time_wave,
    ),
    Exercise(
        lesson=LESSON,
        name="res_block",
        kind="fill in",
        difficulty=3,
        minutes=12,
        task="Write my_res_block(block, x, t_emb), the way of x through a residual block, from the block's own layers: "
        "norm1, conv1, time_proj, norm2, conv2 and shortcut (which hands its input on where the widths are equal).",
        hints=(
            "In which order do norm, SiLU and convolution come, and between which two layers does the time join?",
            "norm1, SiLU, conv1; then add time_proj of SiLU(t_emb), with the shape (b, c, 1, 1); norm2, SiLU, conv2; "
            "at the end add shortcut(x).",
            "def my_res_block(block, x, t_emb):\n"
            "    h = block.conv1(F.silu(block.norm1(x)))\n"
            "    h = h + ...\n"
            "    h = block.conv2(...)\n"
            "    return ... + h",
        ),
        solution="import torch.nn.functional as F\n"
        "\n"
        "def answer(block, x, t_emb):\n"
        "    h = block.conv1(F.silu(block.norm1(x)))\n"
        "    h = h + block.time_proj(F.silu(t_emb))[:, :, None, None]\n"
        "    h = block.conv2(F.silu(block.norm2(h)))\n"
        "    return block.shortcut(x) + h",
        judge=judges.judge_res_block,
    ),
    Exercise(
        lesson=LESSON,
        name="ema",
        kind="fix the fault",
        difficulty=3,
        minutes=10,
        task="my_ema(average, current, n, decay) gets two lists of tensors and the number of steps, and should return "
        "the list of new averages, as the formula of step 6 says. The function below has two faults. One would leave "
        "the random first weights in the average far too long, the other throws the average away and hands on "
        "little but the weights of the moment. Neither raises an error.",
        hints=(
            "At n = 0 and at n = 20,000, which share of the old average should stay?",
            "At n = 0 it is 0.1, at n = 20,000 it is decay: the smaller of the two. And that share belongs to the old "
            "average, the rest to the new weights.",
            "def my_ema(average, current, n, decay=0.999):\n"
            "    keep = ...(decay, (1 + n) / (10 + n))\n"
            "    return [... * old + ... * new for old, new in zip(average, current)]",
        ),
        solution="def answer(average, current, n, decay=0.999):\n"
        "    keep = min(decay, (1 + n) / (10 + n))\n"
        "    return [keep * old + (1 - keep) * new for old, new in zip(average, current, strict=True)]",
        judge=judges.judge_ema,
    ),
    Exercise(
        lesson=LESSON,
        name="worth_training",
        kind="explore",
        difficulty=3,
        minutes=12,
        task=f"Find a time t at which training pays. Repair the {NUM_LOOKS} scenes with the U-Net after {LITTLE} steps "
        f"and after {MUCH:,}, and let the judge read the decoded results: after {MUCH:,} it should name the right kind "
        f"of object in at least {MANY} of {NUM_LOOKS} scenes, after {LITTLE} in at most {FEW}.",
        hints=(
            "At small t, does a little training already do? And at very large t, is anything left to be seen?",
            f"named(snapshots[{MUCH}], t) counts the right kinds, and named(snapshots[{LITTLE}], t) too. Go through t "
            "in steps of 50 and print both.",
            f"for t in range(0, 1000, 50):\n    print(t, named(snapshots[{LITTLE}], t), named(...))",
        ),
        solution="from ldm_tutor.lessons.lesson_05_judges import looks\n"
        "\n"
        "for answer in range(200, 1000, 50):\n"
        "    little, much = looks(answer)\n"
        f"    if little <= {FEW} and much >= {MANY}:\n"
        "        break",
        judge=judges.judge_worth_training,
    ),
)
