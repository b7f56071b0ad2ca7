"""The exercises of lesson 11, measuring: two bells, the FID, balls, the limit of many pictures, how many are enough."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_11_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_11_judges import GAP, HALF_WIDTH, RIGHT, SPREADS

LESSON = "measuring"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="two_bells",
        kind="predict",
        difficulty=1,
        minutes=4,
        task=f"Two bells on a line: their means are {GAP:.0f} apart, their standard deviations are {SPREADS[0]:.0f} "
        f"and {SPREADS[1]:.0f}. What is their Fréchet distance? Answer with one number, without running anything.",
        hints=(
            "Which two properties of a bell does the distance compare?",
            "The gap of the means, squared, plus the gap of the standard deviations, squared.",
            "answer = ...**2 + (... - ...)**2",
        ),
        solution="answer = 3**2 + (1 - 2) ** 2",
        judge=judges.judge_two_bells,
    ),
    Exercise(
        lesson=LESSON,
        name="frechet",
        kind="fill in",
        difficulty=3,
        minutes=12,
        task="Write my_fid(a, b): the Fréchet distance of two sets of feature vectors, (n, d) and (m, d), as one "
        "number. Two equal sets must give 0.",
        hints=(
            "What is needed of each set, and which matrix has to have its root taken?",
            "trace of the root of C_a C_b = sum of the roots of its eigenvalues, which are real and not negative; "
            "torch.linalg.eigvals gives them as complex numbers.",
            "def my_fid(a, b):\n"
            "    gap = (a.mean(dim=0) - b.mean(dim=0)).square().sum()\n"
            "    cov_a, cov_b = torch.cov(a.T), ...\n"
            "    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt()\n"
            "    return gap + cov_a.trace() + ... - 2 * ...",
        ),
        solution="import torch\n"
        "\n"
        "def answer(a, b):\n"
        "    gap = (a.mean(dim=0) - b.mean(dim=0)).square().sum()\n"
        "    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)\n"
        "    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt()\n"
        "    return float(gap + cov_a.trace() + cov_b.trace() - 2 * roots.sum())",
        judge=judges.judge_frechet,
    ),
    Exercise(
        lesson=LESSON,
        name="balls",
        kind="fix the fault",
        difficulty=3,
        minutes=10,
        task="my_precision(made, real, k) should return the share of drawn vectors that lie in at least one ball of "
        "the real ones, where a ball reaches to the k-th nearest other real vector. It has two faults.",
        hints=(
            "Which vector is nearest to a vector, among all vectors of its own set?",
            "Itself, at distance 0: the k-th neighbour is entry k + 1. And the table of distances has a row per drawn "
            "vector, so the question whether any ball holds it runs along that row.",
            "def my_precision(made, real, k):\n"
            "    radius = torch.cdist(real, real).kthvalue(..., dim=1).values\n"
            "    near = torch.cdist(made, real) <= radius\n"
            "    return near.any(dim=...).float().mean()",
        ),
        solution="import torch\n"
        "\n"
        "def answer(made, real, k):\n"
        "    radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values\n"
        "    near = torch.cdist(made, real) <= radius\n"
        "    return near.any(dim=1).float().mean()",
        judge=judges.judge_balls,
    ),
    Exercise(
        lesson=LESSON,
        name="limit",
        kind="fill in",
        difficulty=3,
        minutes=10,
        task="Write my_limit(counts, values): `values` are FIDs measured with `counts` pictures, both 1-D tensors. "
        "Fit the least squares line value = limit + slope / count and return the limit, one number.",
        hints=(
            "Over which quantity are the values a straight line?",
            "Over x = 1 / count. The line's slope is cov(x, y) / var(x), and it passes through the two means.",
            "def my_limit(counts, values):\n"
            "    x = 1 / counts\n"
            "    slope = ((x - x.mean()) * (values - values.mean())).sum() / ...\n"
            "    return values.mean() - ...",
        ),
        solution="def answer(counts, values):\n"
        "    x = 1 / counts\n"
        "    slope = ((x - x.mean()) * (values - values.mean())).sum() / (x - x.mean()).square().sum()\n"
        "    return float(values.mean() - slope * x.mean())",
        judge=judges.judge_limit,
    ),
    Exercise(
        lesson=LESSON,
        name="enough",
        kind="explore",
        difficulty=2,
        minutes=6,
        task=f"A model gets {RIGHT:.0%} of its sentences right. How many sentences do you have to draw before the "
        f"interval is {2 * HALF_WIDTH:g} wide, half of it {HALF_WIDTH}? Find it with `share`, to within a dozen.",
        hints=(
            "How does the interval change when you draw four times as many sentences?",
            "Its width falls with the square root of the number. Try 100, look at the width, and go on from there.",
            "answer = ...  # try 100 first\n"
            "low, high = share([True] * round(0.8 * answer) + [False] * round(0.2 * answer)).interval\n"
            "print((high - low) / 2)",
        ),
        solution="from ldm_tutor.metrics.figures import share\n"
        "\n"
        "answer, half = 0, 1\n"
        "while half > 0.05:\n"
        "    answer += 5\n"
        "    low, high = share([True] * (4 * answer // 5) + [False] * (answer // 5)).interval\n"
        "    half = (high - low) / 2",
        judge=judges.judge_enough,
    ),
)
