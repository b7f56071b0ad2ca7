"""The exercises of lesson 14, your own pictures: views, broken tables, the scale, batches, nearest pictures, copies."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_14_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_14_judges import BATCH, NUM, STEPS
from ldm_tutor.lessons.lesson_14_robots import NUM_SUSPECTS

LESSON = "your_own_pictures"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="views",
        kind="predict",
        difficulty=1,
        minutes=3,
        task=f"A run makes {STEPS} steps with batches of {BATCH}, on a folder of {NUM} pictures. How often does it see "
        "each picture, on average? Answer with one number, without running anything.",
        hints=(
            "How many pictures go by in the whole run, each one counted as often as it comes?",
            "Steps times batch size go by. They are shared out over the pictures that there are.",
            "answer = ... * ... / ...",
        ),
        solution=f"answer = {STEPS} * {BATCH} / {NUM}",
        judge=judges.judge_views,
    ),
    Exercise(
        lesson=LESSON,
        name="rows",
        kind="fill in",
        difficulty=2,
        minutes=10,
        task="Write my_rows(raw): the bytes of a metadata.jsonl in, and two lists out. The first has the rows that are "
        'good, as dictionaries; a good row is UTF-8, is JSON, and is a dictionary with a "file_name". The second has '
        "the numbers of the broken lines, counted from 1. Empty lines are skipped without a word.",
        hints=(
            "At which level must the `try` stand, so that one bad line costs one line?",
            "Split the bytes into lines first, then decode and parse each line on its own. UnicodeDecodeError and "
            "JSONDecodeError are both ValueErrors.",
            "def my_rows(raw):\n"
            "    rows, bad = [], []\n"
            '    for number, line in enumerate(raw.split(b"\\n"), start=1):\n'
            "        if not line.strip():\n"
            "            continue\n"
            "        try:\n"
            '            row = json.loads(line.decode("utf-8"))\n'
            "            ...\n"
            "        except ValueError:\n"
            "            ...\n"
            "    return rows, bad",
        ),
        solution="import json\n"
        "\n"
        "def answer(raw):\n"
        "    rows, bad = [], []\n"
        '    for number, line in enumerate(raw.split(b"\\n"), start=1):\n'
        "        if not line.strip():\n"
        "            continue\n"
        "        try:\n"
        '            row = json.loads(line.decode("utf-8"))\n'
        '            if not isinstance(row, dict) or "file_name" not in row:\n'
        '                raise ValueError("no row")\n'
        "            rows.append(row)\n"
        "        except ValueError:\n"
        "            bad.append(number)\n"
        "    return rows, bad",
        judge=judges.judge_rows,
    ),
    Exercise(
        lesson=LESSON,
        name="scale",
        kind="fix the fault",
        difficulty=3,
        minutes=8,
        task="my_scale(mean, logvar) should return the scale factor of an autoencoder: what the latents that are drawn "
        "from these posteriors must be multiplied by, so that their standard deviation is 1. It has two faults.",
        hints=(
            "What does the logarithm of a variance have to be halved for? And which way does the factor work?",
            "sigma = (logvar / 2).exp(). The factor is 1 over the standard deviation of mean + sigma * noise.",
            "def my_scale(mean, logvar):\n"
            "    sigma = ...\n"
            "    latents = mean + sigma * torch.randn(mean.shape)\n"
            "    return 1 / ...",
        ),
        solution="import torch\n"
        "\n"
        "def answer(mean, logvar):\n"
        "    sigma = (logvar / 2).exp()\n"
        "    latents = mean + sigma * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))\n"
        "    return float(1 / latents.std())",
        judge=judges.judge_scale,
    ),
    Exercise(
        lesson=LESSON,
        name="one_each",
        kind="fill in",
        difficulty=3,
        minutes=10,
        task="Write my_batch(captions, size): the numbers of `size` pictures, chosen by chance, no two of which have "
        "the same caption. Capitals do not count: Red and red are one caption. Every picture must have a chance.",
        hints=(
            "If you walk through all pictures in random order, when do you take one, and when do you pass?",
            "Take a picture if its caption, in small letters, has not been taken yet; stop when there are enough.",
            "def my_batch(captions, size):\n"
            "    taken, chosen = set(), []\n"
            "    for k in torch.randperm(len(captions)).tolist():\n"
            "        caption = captions[k].lower()\n"
            "        if ...:\n"
            "            ...\n"
            "    return chosen[:size]",
        ),
        solution="import torch\n"
        "\n"
        "def answer(captions, size):\n"
        "    taken, chosen = set(), []\n"
        "    for k in torch.randperm(len(captions)).tolist():\n"
        "        caption = captions[k].lower()\n"
        "        if caption not in taken:\n"
        "            taken.add(caption)\n"
        "            chosen.append(k)\n"
        "    return chosen[:size]",
        judge=judges.judge_one_each,
    ),
    Exercise(
        lesson=LESSON,
        name="nearest",
        kind="fill in",
        difficulty=2,
        minutes=8,
        task="Write my_nearest(made, train_set): for each drawn picture of `made`, (n, 3, H, W), the number of the "
        "training picture in `train_set`, (m, 3, H, W), that is nearest to it, by squared differences over all pixels.",
        hints=(
            "Which table has a row for each drawn picture and a column for each training picture?",
            "Flatten the pictures to rows; torch.cdist gives all distances; the smallest of each row has the number.",
            "def my_nearest(made, train_set):\n"
            "    table = torch.cdist(made.flatten(1), ...)\n"
            "    return table....(dim=1)",
        ),
        solution="import torch\n"
        "\n"
        "def answer(made, train_set):\n"
        "    return torch.cdist(made.flatten(1), train_set.flatten(1)).argmin(dim=1)",
        judge=judges.judge_nearest,
    ),
    Exercise(
        lesson=LESSON,
        name="copied",
        kind="explore",
        difficulty=3,
        minutes=8,
        task=f"`suspects()` gives {NUM_SUSPECTS} robots that a model is said to have drawn, and the 60 pictures that "
        "it was trained on. Some of the drawn ones are memories, a little darker, moved by half a pixel, or noisy. "
        "Which? Answer with a list of their numbers, counted from 0.",
        hints=(
            "How near is a new robot to the nearest of 60 others, and how near would a copy be?",
            "Use `nearest` from this lesson, print the distances in order, and look for a gap. Then look at the pairs.",
            "made, train_set = suspects()\n"
            "near, distance = nearest(made, train_set)\n"
            "answer = [k for k, far in enumerate(distance.tolist()) if far < ...]",
        ),
        solution="from ldm_tutor.lessons.lesson_14_robots import suspects\n"
        "from ldm_tutor.metrics.nearest import nearest\n"
        "\n"
        "made, train_set = suspects()\n"
        "near, distance = nearest(made, train_set)\n"
        "order = distance.sort().values\n"
        "gap = int((order[1:] - order[:-1]).argmax())\n"
        "answer = [k for k, far in enumerate(distance.tolist()) if far <= float(order[gap])]",
        judge=judges.judge_copied,
    ),
)
