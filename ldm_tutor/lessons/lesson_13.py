"""The exercises of lesson 13, training at scale: an average, shares, a half-life, rounding, a safe file, a bill."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_13_judges as judges
from ldm_tutor.lessons.exercises import Exercise

LESSON = "training_at_scale"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="average",
        kind="fill in",
        difficulty=2,
        minutes=8,
        task="Each process hands you the mean gradient of its own rows, and says how many rows it had. Write "
        "my_average(gradients, counts): the mean gradient of all rows together. `gradients` are tensors of one "
        "shape, `counts` a list of whole numbers, which may differ.",
        hints=(
            "What do you get if you multiply a mean by the number of things that it is a mean of?",
            "Sums add up, means do not. Turn each mean back into a sum, add, and divide once by all rows.",
            "def my_average(gradients, counts):\n"
            "    total = sum(count * gradient for gradient, count in zip(gradients, counts))\n"
            "    return total / ...",
        ),
        solution="def answer(gradients, counts):\n"
        "    total = sum(count * gradient for gradient, count in zip(gradients, counts))\n"
        "    return total / sum(counts)",
        judge=judges.judge_average,
    ),
    Exercise(
        lesson=LESSON,
        name="rows",
        kind="fix the fault",
        difficulty=2,
        minutes=8,
        task="my_rows(batch, rank, size) says which rows of a batch the process `rank` of `size` computes. It is right "
        "where the batch divides by the number of processes. Repair it: every row belongs to exactly one process, and "
        "no share is larger than another by more than one row. Return a range or a list.",
        hints=(
            "A batch of 7, two processes: which row does nobody compute?",
            "Cut at batch * rank // size: multiply first, then divide. The last cut is then the whole batch.",
            "def my_rows(batch, rank, size):\n    return range(batch * rank // size, ...)",
        ),
        solution="def answer(batch, rank, size):\n    return range(batch * rank // size, batch * (rank + 1) // size)",
        judge=judges.judge_rows,
    ),
    Exercise(
        lesson=LESSON,
        name="bfloat16",
        kind="predict",
        difficulty=3,
        minutes=5,
        task="A weight is kept in bfloat16 and has the value 0.5. A hundred updates of +0.001 arrive, one after the "
        "other, each rounded to bfloat16. Which value does it have in the end?",
        hints=(
            "Which number follows 0.5 in bfloat16?",
            "Between 0.5 and 1 the numbers are 2**-8 apart. An update of less than half of that rounds back.",
            "answer = ...  # where do you land if 0.5 + 0.001 rounds to 0.5?",
        ),
        solution="import torch\n\n"
        "weight = torch.tensor(0.5, dtype=torch.bfloat16)\n"
        "for _ in range(100):\n"
        "    weight += 0.001\n"
        "answer = float(weight)",
        judge=judges.judge_bfloat16,
    ),
    Exercise(
        lesson=LESSON,
        name="half_life",
        kind="predict",
        difficulty=2,
        minutes=5,
        task="The paper's code keeps an average of the weights with a decay of 0.9999. Late in a run, after how many "
        "further steps has a weight's share in the average fallen to one half? A whole number.",
        hints=(
            "By which factor has a share shrunk after n steps?",
            "0.9999 to the power of n is one half. Take the logarithm of both sides.",
            "answer = math.log(0.5) / ...",
        ),
        solution="import math\n\nanswer = round(math.log(0.5) / math.log(0.9999))",
        judge=judges.judge_half_life,
    ),
    Exercise(
        lesson=LESSON,
        name="save",
        kind="fix the fault",
        difficulty=4,
        minutes=15,
        task="my_save(path, pieces) writes pieces of bytes into a file, and loses the old file if it is stopped half "
        "way. Repair it: whatever error is raised while it writes, the file at `path` (a `Path`) is the old or the "
        "whole new one, and nothing else is left in the folder.",
        hints=(
            "Where can you write without touching the old file, and which single operation puts a file in its place?",
            "Write beside it, in the same folder, then rename it over the old one. If anything goes wrong, remove what "
            "you wrote.",
            "import os\n\n"
            "def my_save(path, pieces):\n"
            '    beside = path.with_name(path.name + ".tmp")\n'
            "    try:\n"
            '        with open(beside, "wb") as file:\n'
            "            ...  # and last file.flush(); os.fsync(file.fileno())\n"
            "        beside.replace(path)\n"
            "    finally:\n"
            "        beside.unlink(missing_ok=True)",
        ),
        solution="import os\n\n"
        "def answer(path, pieces):\n"
        '    beside = path.with_name(path.name + ".tmp")\n'
        "    try:\n"
        '        with open(beside, "wb") as file:\n'
        "            for piece in pieces:\n"
        "                file.write(piece)\n"
        "            file.flush()\n"
        "            os.fsync(file.fileno())\n"
        "        os.replace(beside, path)\n"
        "    finally:\n"
        "        beside.unlink(missing_ok=True)",
        judge=judges.judge_save,
    ),
    Exercise(
        lesson=LESSON,
        name="gpus",
        kind="explore",
        difficulty=2,
        minutes=8,
        task="You want to train Stable Diffusion v1-4 on A100s, with cached latents, and you reach 40% of their peak. "
        "What is the least number of GPUs with which it takes at most 14 days on the wall? Use "
        '`bill("Stable Diffusion v1-4", "A100", ...)`.',
        hints=(
            "How many GPU-days is it, and what does a second GPU do to the days on the wall?",
            "Divide the GPU-days by 14 and round up: with one GPU fewer it takes longer than 14 days.",
            'days = bill("Stable Diffusion v1-4", "A100", 0.4, cached=True).gpu_days\nanswer = math.ceil(...)',
        ),
        solution="import math\n\n"
        "from ldm_tutor.training.bill import bill\n\n"
        'answer = math.ceil(bill("Stable Diffusion v1-4", "A100", 0.4, cached=True).gpu_days / 14)',
        judge=judges.judge_gpus,
    ),
)
