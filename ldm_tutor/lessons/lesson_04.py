"""The exercises of lesson 04, forward noising: half way, the jump, zero at the end, the posterior, and seeing."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_04_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_04_judges import FEW, MANY, NUM_LOOKS

LESSON = "forward_noising"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="half_way",
        kind="predict",
        difficulty=1,
        minutes=5,
        task="Every step has the same beta, 0.01, as in step 1. After how many steps are picture and noise equally "
        "strong, so that the SNR is 1 (0 dB)? Answer with a whole number.",
        hints=(
            "Which part of the picture's variance does one step leave, and which part do n steps leave?",
            "One step leaves 0.99 of it, n steps leave 0.99 multiplied n times. The SNR is 1 when one half is left.",
            "answer = math.log(...) / math.log(0.99)  # then round up",
        ),
        solution="import math\n\nanswer = math.ceil(math.log(0.5) / math.log(0.99))",
        judge=judges.judge_half_way,
    ),
    Exercise(
        lesson=LESSON,
        name="add_noise",
        kind="fill in",
        difficulty=2,
        minutes=8,
        task="Write my_add_noise(x0, noise, t, alpha_bar): the jump from x0 to x_t, where t has one time step per "
        "picture. The result has the shape and the type (float32) of x0 and, where x0 has variance 1, variance 1 at "
        "every t.",
        hints=(
            "Which two weights does the closed form have, and what do their squares add up to?",
            "Look up alpha_bar[t], give it the shape (b, 1, 1, 1), take the two roots, convert them to the type of x0.",
            "def my_add_noise(x0, noise, t, alpha_bar):\n"
            "    a = alpha_bar[t].view(...)\n"
            "    signal = ...\n"
            "    sigma = ...\n"
            "    return signal.to(x0) * x0 + sigma.to(x0) * noise",
        ),
        solution="def answer(x0, noise, t, alpha_bar):\n"
        "    a = alpha_bar[t].view(-1, 1, 1, 1)\n"
        "    signal = a.sqrt()\n"
        "    sigma = (1 - a).sqrt()\n"
        "    return signal.to(x0) * x0 + sigma.to(x0) * noise",
        judge=judges.judge_add_noise,
    ),
    Exercise(
        lesson=LESSON,
        name="zero_terminal",
        kind="fix the fault",
        difficulty=3,
        minutes=12,
        task="zero_terminal(alpha_bar) should return a new table with nothing left at the last step: take the "
        "amplitude, the root of alpha_bar; shift it so that its last entry is 0; stretch it so that its first entry is "
        "what it was before; square. The function below has two faults.",
        hints=(
            "What are the first and the last entry of the table that the function returns, and what should they be?",
            "After the second line, signal[0] is not the old first entry any more, so the stretch does nothing. And "
            "what comes out is still an amplitude.",
            "def zero_terminal(alpha_bar):\n"
            "    signal = alpha_bar.sqrt()\n"
            "    first, last = ...\n"
            "    signal = (signal - last) * ... / (first - last)\n"
            "    return ...",
        ),
        solution="def answer(alpha_bar):\n"
        "    signal = alpha_bar.sqrt()\n"
        "    first, last = signal[0], signal[-1]\n"
        "    signal = (signal - last) * first / (first - last)\n"
        "    return signal**2",
        judge=judges.judge_zero_terminal,
    ),
    Exercise(
        lesson=LESSON,
        name="posterior_variance",
        kind="fill in",
        difficulty=4,
        minutes=15,
        task="Samplers skip steps. Write my_posterior_variance(s, t, alpha_bar): the variance of x_s when x_t and x_0 "
        "are known, for any s < t. For s = t - 1 it is the one of the lesson; s = -1 stands for the clean picture.",
        hints=(
            "Step 5 has the formula for neighbours. Which two things in it speak of t - 1, and which of the one step?",
            "Replace alpha_bar[t - 1] by alpha_bar[s], and beta by the variance that is added between s and t; see "
            "step 3. Before the first entry of the table lies the clean picture, with alpha_bar 1.",
            "def my_posterior_variance(s, t, alpha_bar):\n"
            "    a_t = alpha_bar[t]\n"
            "    a_s = ... if s >= 0 else ...\n"
            "    added = 1 - ...\n"
            "    return ... / ... * added",
        ),
        solution="def answer(s, t, alpha_bar):\n"
        "    a_t = float(alpha_bar[t])\n"
        "    a_s = float(alpha_bar[s]) if s >= 0 else 1.0\n"
        "    added = 1 - a_t / a_s\n"
        "    return (1 - a_s) / (1 - a_t) * added",
        judge=judges.judge_posterior_variance,
    ),
    Exercise(
        lesson=LESSON,
        name="hide_the_bicycle",
        kind="explore",
        difficulty=3,
        minutes=10,
        task="Find a time t that hides the bicycle and not the house. Noise `pair` as it is, with values from -1 to 1, "
        f"with the noises 0 to {NUM_LOOKS - 1}, and let the judge read the result as it is: it should find the "
        f"blue house in at least {MANY} of the {NUM_LOOKS} pictures, and the red bicycle in at most {FEW}.",
        hints=(
            "Is the bicycle finer or coarser than the house, and which of the two goes first?",
            "schedule.add_noise(pair.expand(32, -1, -1, -1), noises, torch.full((32,), t)) gives the pictures; "
            "read_pictures(judge, pictures) gives one reading for each. Count, for t in steps of 50.",
            "for t in range(0, 1000, 50):\n"
            "    noisy = schedule.add_noise(pair.expand(32, -1, -1, -1), noises, torch.full((32,), t))\n"
            "    readings = read_pictures(judge, noisy)\n"
            '    house = sum(any(o.kind == "house" and o.color == "blue" for o in r.objects) for r in readings)\n'
            "    bicycle = ...\n"
            "    print(t, house, bicycle)",
        ),
        solution="import torch\n"
        "from ldm_tutor.data.scenes.datasets import to_float\n"
        "from ldm_tutor.data.scenes.draw import draw\n"
        "from ldm_tutor.evaluation import load_judge\n"
        "from ldm_tutor.lessons.lesson_04_judges import PAIR\n"
        "from ldm_tutor.metrics.reading import read_pictures\n"
        "from ldm_tutor.sampling.noise import PictureNoise\n"
        "from ldm_tutor.schedule import NoiseSchedule\n"
        "\n"
        "judge, schedule = load_judge(), NoiseSchedule()\n"
        "pair = to_float(torch.from_numpy(draw(PAIR, 64)).permute(2, 0, 1)[None])\n"
        f"noises = PictureNoise(range({NUM_LOOKS})).initial((3, 64, 64))\n"
        "\n"
        "def count(readings, kind, color):\n"
        "    return sum(any((o.kind, o.color) == (kind, color) for o in r.objects) for r in readings)\n"
        "\n"
        "for answer in range(0, 1000, 50):\n"
        f"    times = torch.full(({NUM_LOOKS},), answer)\n"
        f"    noisy = schedule.add_noise(pair.expand({NUM_LOOKS}, -1, -1, -1), noises, times)\n"
        "    readings = read_pictures(judge, noisy)\n"
        f'    if count(readings, "house", "blue") >= {MANY} and count(readings, "bicycle", "red") <= {FEW}:\n'
        "        break",
        judge=judges.judge_hide_the_bicycle,
    ),
)
