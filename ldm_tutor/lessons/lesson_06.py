"""The exercises of lesson 06, sampling: orders, DDIM with eta, a faulty 2M, picture to picture, a better grid."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_06_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_06_judges import GRID_ERROR, GRID_STEPS

LESSON = "sampling"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="how_many_steps",
        kind="predict",
        difficulty=2,
        minutes=5,
        task="With 20 steps, two samplers both miss the exact answer by 0.08. One is of first order, the other of "
        "second. How many steps does each need to miss by 0.005 only? Answer with a pair: (first, second).",
        hints=(
            "By which factor has the error to shrink, and what does doubling the steps do at each order?",
            "The factor is 16. At order p, n times the steps leave 1 / n to the power p of the error.",
            "answer = (20 * ..., 20 * ...)",
        ),
        solution="factor = 0.08 / 0.005\nanswer = (round(20 * factor), round(20 * factor**0.5))",
        judge=judges.judge_how_many_steps,
    ),
    Exercise(
        lesson=LESSON,
        name="ddim",
        kind="fill in",
        difficulty=3,
        minutes=12,
        task="Write my_ddim_step(x_t, eps, noise, a, a_prev, eta): one step from alpha_bar a to alpha_bar a_prev. "
        "eta = 0 adds no noise, eta = 1 as much as DDPM. At the clean end, a_prev = 1, x0_hat alone is left.",
        hints=(
            "Which three things does x_prev consist of, and which variance should the two noises have together?",
            "The two noises together have the variance 1 - a_prev. The fresh one takes eta**2 (1 - a_prev) / (1 - a) "
            "(1 - a / a_prev) of it, the old one, eps, what is left.",
            "def my_ddim_step(x_t, eps, noise, a, a_prev, eta):\n"
            "    x0_hat = ...\n"
            "    fresh = eta**2 * ...\n"
            "    return a_prev**0.5 * x0_hat + (...) ** 0.5 * eps + fresh**0.5 * noise",
        ),
        solution="def answer(x_t, eps, noise, a, a_prev, eta):\n"
        "    x0_hat = (x_t - (1 - a) ** 0.5 * eps) / a**0.5\n"
        "    fresh = eta**2 * (1 - a_prev) / (1 - a) * (1 - a / a_prev)\n"
        "    return a_prev**0.5 * x0_hat + (1 - a_prev - fresh) ** 0.5 * eps + fresh**0.5 * noise",
        judge=judges.judge_ddim,
    ),
    Exercise(
        lesson=LESSON,
        name="two_m",
        kind="fix the fault",
        difficulty=3,
        minutes=12,
        task="two_m(x_t, x0_hat, x0_before, a_before, a, a_prev) should be one step of DPM-Solver++(2M) from alpha_bar "
        "a to a_prev, the next, cleaner time, as everywhere in this lesson. The step before began at a_before, where "
        "the network saw x0_before. The function below has two faults.",
        hints=(
            "Does your x move towards the aim, and what should r be when this step is longer than the one before?",
            "Compare with step 5, sign by sign. r is the length of the step before over the length of this one, and "
            "the weight of the aim has the exponential of minus h.",
            "def two_m(x_t, x0_hat, x0_before, a_before, a, a_prev):\n"
            "    h, h_before = ...\n"
            "    r = ...\n"
            "    aim = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * x0_before\n"
            "    return ((1 - a_prev) / (1 - a)) ** 0.5 * x_t - a_prev**0.5 * math.expm1(...) * aim",
        ),
        solution="import math\n"
        "\n"
        "def answer(x_t, x0_hat, x0_before, a_before, a, a_prev):\n"
        "    lam = lambda a: 0.5 * math.log(a / (1 - a))\n"
        "    h, h_before = lam(a_prev) - lam(a), lam(a) - lam(a_before)\n"
        "    r = h_before / h\n"
        "    aim = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * x0_before\n"
        "    return ((1 - a_prev) / (1 - a)) ** 0.5 * x_t - a_prev**0.5 * math.expm1(-h) * aim",
        judge=judges.judge_two_m,
    ),
    Exercise(
        lesson=LESSON,
        name="redraw_start",
        kind="fill in",
        difficulty=3,
        minutes=12,
        task="Picture to picture. Write my_start(latents, noise, strength, grid, alpha_bar), which returns two things: "
        "x_t, the noisy latents to start from, and start_at, the index of the first step to run. A share `strength` of "
        "the steps runs, rounded, the last ones of the grid. Strength 0 keeps the latents: start_at is len(grid). "
        "Strength 1 runs all steps, and still starts from noised latents, at the time grid[0].",
        hints=(
            "How many steps run, and at which time of the grid does the first of them stand?",
            "round(strength * n) steps run, so n minus that are skipped. Noise the latents to the time grid[start_at] "
            "with the jump of lesson 04. With strength 0 there is no such time.",
            "def my_start(latents, noise, strength, grid, alpha_bar):\n"
            "    start_at = len(grid) - ...\n"
            "    if ...:\n"
            "        return latents, start_at\n"
            "    a = float(alpha_bar[...])\n"
            "    return ... * latents + ... * noise, start_at",
        ),
        solution="def answer(latents, noise, strength, grid, alpha_bar):\n"
        "    start_at = len(grid) - round(strength * len(grid))\n"
        "    if start_at == len(grid):\n"
        "        return latents, start_at\n"
        "    a = float(alpha_bar[grid[start_at]])\n"
        "    return a**0.5 * latents + (1 - a) ** 0.5 * noise, start_at",
        judge=judges.judge_redraw_start,
    ),
    Exercise(
        lesson=LESSON,
        name="better_grid",
        kind="explore",
        difficulty=4,
        minutes=15,
        task=f"Choose {GRID_STEPS} time steps, falling, the first 999, for which DPM-Solver++(2M) misses the exact end "
        f"by {GRID_ERROR} or less; the even grid misses by more than five times that. grid_error(my_grid) tells you "
        "the error on Gaussian numbers.",
        hints=(
            "How does the log-SNR run over t, and where does it run fastest?",
            "It runs fastest at the clean end. Steps of equal length in log-SNR, or times that fall like a square, "
            "put more steps there.",
            "my_grid = [round(999 * (1 - i / 10) ** ...) for i in range(10)]",
        ),
        solution="import torch\n"
        "from ldm_tutor.schedule import NoiseSchedule\n"
        "\n"
        "log_snr = 0.5 * NoiseSchedule().signal_to_noise().log()\n"
        f"wanted = torch.linspace(float(log_snr[-1]), float(log_snr[0]), {GRID_STEPS})\n"
        "answer = [int((log_snr - each).abs().argmin()) for each in wanted]",
        judge=judges.judge_better_grid,
    ),
)
