"""The exercises of lesson 16, what came after: v at the noisy end, a walk along a flow, Heun, a DiT block, tokens."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_16_judges as judges
from ldm_tutor.lessons.exercises import Exercise

LESSON = "what_came_after"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="ends",
        kind="predict",
        difficulty=2,
        minutes=8,
        task="At a step with alpha_bar = 0.01, almost noise, a network's answer is wrong by 0.1 everywhere. By how "
        "much is x0_hat wrong if the answer is the noise eps? And if it is v = sqrt(alpha_bar) eps - sqrt(1 - "
        "alpha_bar) x0? Answer with two numbers without a sign: (through_eps, through_v), two decimals each.",
        hints=(
            "x_t is known exactly. Which factor stands before the network's answer in each formula of x0_hat?",
            "Through eps the factor is sqrt(1 - alpha_bar) / sqrt(alpha_bar), through v it is sqrt(1 - alpha_bar).",
            "answer = (0.1 * ... / ..., 0.1 * ...)",
        ),
        solution="a = 0.01\nanswer = (0.1 * (1 - a) ** 0.5 / a**0.5, 0.1 * (1 - a) ** 0.5)",
        judge=judges.judge_ends,
    ),
    Exercise(
        lesson=LESSON,
        name="v_both",
        kind="fill in",
        difficulty=2,
        minutes=8,
        task="Write my_both(x_t, v, alpha_bar): it returns the pair (x0, eps) that x_t and v imply. `alpha_bar` is a "
        "number or a tensor without axes, and may be 0 or 1: so do not divide.",
        hints=(
            "x_t and v are both mixtures of x0 and eps, at right angles. How do you turn them back?",
            "x0 is sqrt(alpha_bar) of x_t minus sqrt(1 - alpha_bar) of v; for eps the roots change places, and the "
            "sign is a plus.",
            "def my_both(x_t, v, alpha_bar):\n"
            "    signal, sigma = ..., ...\n"
            "    return signal * x_t - ... * v, ... * x_t + ... * v",
        ),
        solution="def answer(x_t, v, alpha_bar):\n"
        "    signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5\n"
        "    return signal * x_t - sigma * v, sigma * x_t + signal * v",
        judge=judges.judge_v_both,
    ),
    Exercise(
        lesson=LESSON,
        name="walk",
        kind="fix the fault",
        difficulty=3,
        minutes=12,
        task="my_walk(velocity, x, num_steps) should walk along a flow from noise, t = 1, to clean latents, t = 0, in "
        "equal steps of Euler: each asks once, at the time where it begins. velocity(x, t) says noise - x0, and t is "
        "one number, the time that the lesson calls u. It runs, and has three faults.",
        hints=(
            "At which time does the walk begin, how long is one step, and which way does noise - x0 point?",
            "Time falls from 1 by 1 / num_steps, and x moves by (t_next - t) times the velocity, which is negative.",
            "def my_walk(velocity, x, num_steps):\n"
            "    for k in range(num_steps):\n"
            "        t = ...\n"
            "        x = x - velocity(x, t) / ...\n"
            "    return x",
        ),
        solution="def answer(velocity, x, num_steps):\n"
        "    for k in range(num_steps):\n"
        "        t = 1 - k / num_steps\n"
        "        x = x - velocity(x, t) / num_steps\n"
        "    return x",
        judge=judges.judge_walk,
    ),
    Exercise(
        lesson=LESSON,
        name="heun",
        kind="fill in",
        difficulty=4,
        minutes=12,
        task="Write my_heun(velocity, x, t, t_next): one step of Heun along a flow. It goes to the end of the step as "
        "Euler does, asks there again, and then makes the step once more with the mean of both answers. To t_next = 0 "
        "it makes Euler's step alone and does not ask at 0 (Karras et al. 2022 do so, since their formula divides by "
        "the noise there; it also saves a call).",
        hints=(
            "Where does Euler's step end, and what does velocity say there, at that time?",
            "The first answer is for x and t, the second for Euler's end and t_next; from x, the step is (t_next - t) "
            "times half of their sum.",
            "def my_heun(velocity, x, t, t_next):\n"
            "    first = velocity(x, t)\n"
            "    end = ...\n"
            "    if t_next == 0:\n"
            "        return ...\n"
            "    second = velocity(..., ...)\n"
            "    return x + ...",
        ),
        solution="def answer(velocity, x, t, t_next):\n"
        "    first = velocity(x, t)\n"
        "    end = x + (t_next - t) * first\n"
        "    if t_next == 0:\n"
        "        return end\n"
        "    second = velocity(end, t_next)\n"
        "    return x + (t_next - t) * (first + second) / 2",
        judge=judges.judge_heun,
    ),
    Exercise(
        lesson=LESSON,
        name="block",
        kind="fill in",
        difficulty=3,
        minutes=12,
        task="Write my_block(x, six, norm, attention, mlp), a block of a DiT. x is (b, n, d). six is (b, 6 d), what "
        "the time says: shift_1, scale_1, gate_1, shift_2, scale_2, gate_2. The first branch takes norm(x) times "
        "(1 + scale_1) plus shift_1 through attention, and adds gate_1 times that to x; the second does the same to "
        "what came out, with mlp and the second three. norm, attention and mlp are functions (b, n, d) -> (b, n, d).",
        hints=(
            "A shift is (b, d): one vector for each picture. Which axis does it lack beside x, and where?",
            "Cut six into six pieces along its last axis and give each an axis for the tokens, [:, None]. Then both "
            "branches have the same form; the second reads the x that the first has changed.",
            "def my_block(x, six, norm, attention, mlp):\n"
            "    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = six[:, None].chunk(6, dim=...)\n"
            "    x = x + gate_1 * attention(...)\n"
            "    return x + ...",
        ),
        solution="def answer(x, six, norm, attention, mlp):\n"
        "    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = six[:, None].chunk(6, dim=-1)\n"
        "    x = x + gate_1 * attention(norm(x) * (1 + scale_1) + shift_1)\n"
        "    return x + gate_2 * mlp(norm(x) * (1 + scale_2) + shift_2)",
        judge=judges.judge_block,
    ),
    Exercise(
        lesson=LESSON,
        name="tokens",
        kind="explore",
        difficulty=2,
        minutes=6,
        task="A DiT reads latents of 64 x 64, a picture of 512 pixels in Stable Diffusion's latents. How many tokens "
        "are they with patches of 2, how many with patches of 4? And by which factor is one head's attention map, "
        "tokens x tokens, smaller with the second? Try it with `patchify(latents, patch)` of `ldm_tutor.models.dit`. "
        "Answer with three numbers: (with_2, with_4, factor).",
        hints=(
            "How many patches lie side by side, and how many rows of them are there?",
            "A side of 64 holds 64 / patch patches, and the grid has as many rows; the map has the square of the "
            "tokens.",
            "answer = ((64 / 2) ** ..., (64 / 4) ** ..., (... / ...) ** 2)",
        ),
        solution="import torch\n"
        "from ldm_tutor.models.dit import patchify\n"
        "\n"
        "latents = torch.zeros(1, 4, 64, 64)\n"
        "with_2, with_4 = (patchify(latents, patch).shape[1] for patch in (2, 4))\n"
        "answer = (with_2, with_4, with_2**2 / with_4**2)",
        judge=judges.judge_tokens,
    ),
)
