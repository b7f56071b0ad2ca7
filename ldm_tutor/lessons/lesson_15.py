"""The exercises of lesson 15, the clinic: a foreign scale, rows of maps, an ideal denoiser, a sick step, diagnoses."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_15_judges as judges
from ldm_tutor.lessons.exercises import Exercise

LESSON = "clinic"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="foreign_scale",
        kind="predict",
        difficulty=2,
        minutes=8,
        task="An autoencoder gives latents with a standard deviation of 4 before any scaling. Its user has copied the "
        "scale factor 0.18215. Which spread do the scaled latents have? And a U-Net trained with the right factor "
        "draws latents that spread by 1: how many times too large, or too small, are they when they reach the decoder? "
        "Answer with two numbers: (spread, times), two decimals each.",
        hints=(
            "Scaling is one multiplication on the way in and one division on the way out. Which spread does the "
            "decoder know?",
            "In: 4 times the factor. Out: drawn latents of spread 1, divided by the factor; the decoder knows 4.",
            "answer = (4 * ..., (1 / ...) / 4)",
        ),
        solution="answer = (4 * 0.18215, (1 / 0.18215) / 4)",
        judge=judges.judge_foreign_scale,
    ),
    Exercise(
        lesson=LESSON,
        name="rows",
        kind="fill in",
        difficulty=2,
        minutes=8,
        task="Write my_rows_off(probs) for attention maps of the shape (heads, positions, words): by how much does the "
        "worst row miss the sum 1? Return a number, 0 for sound maps.",
        hints=(
            "Which axis must add up to 1, and what does `worst` mean where some rows are too large and some too small?",
            "Sum over the words, the last axis; take the distance from 1 without its sign; return the largest.",
            "def my_rows_off(probs):\n    return float((probs.sum(dim=...) - 1).abs()....)",
        ),
        solution="def answer(probs):\n    return float((probs.sum(dim=-1) - 1).abs().max())",
        judge=judges.judge_rows,
    ),
    Exercise(
        lesson=LESSON,
        name="ideal",
        kind="fill in",
        difficulty=3,
        minutes=10,
        task="Write my_denoiser(x0, alpha_bar): it returns a function (x_t, t, step) -> noise, which says for every "
        "x_t of this x0 exactly the noise that is in it. `alpha_bar` is a tensor with 1,000 entries. The check hands "
        "it to real samplers: they must end in x0.",
        hints=(
            "x_t has two parts. If you know the one, how much is the other?",
            "Take away the square root of alpha_bar times x0; what is left is the noise times a square root.",
            "def my_denoiser(x0, alpha_bar):\n"
            "    def noise_in(x_t, t, step):\n"
            "        a = alpha_bar[t]\n"
            "        return (x_t - ... * x0) / ...\n"
            "    return noise_in",
        ),
        solution="def answer(x0, alpha_bar):\n"
        "    def noise_in(x_t, t, step):\n"
        "        a = float(alpha_bar[t])\n"
        "        return (x_t - a**0.5 * x0) / (1 - a) ** 0.5\n"
        "\n"
        "    return noise_in",
        judge=judges.judge_ideal,
    ),
    Exercise(
        lesson=LESSON,
        name="training_step",
        kind="fix the fault",
        difficulty=3,
        minutes=12,
        task="my_step(mean, scale_factor, noise, t, alpha_bar) should return the pair of a training step: the noisy "
        "latents that the U-Net gets, and the answer that it should give. `mean` are latents as the encoder gives "
        "them, (b, c, h, w); t is (b,). It runs, the loss falls, and it has three faults.",
        hints=(
            "What must the spread of x_t be if the scaled latents and the noise both spread by 1?",
            "The closed form has square roots, the scale belongs to the latents alone, and the U-Net says the noise.",
            "def my_step(mean, scale_factor, noise, t, alpha_bar):\n"
            "    a = alpha_bar[t][:, None, None, None]\n"
            "    x_t = ... * scale_factor * mean + ... * noise\n"
            "    return x_t, ...",
        ),
        solution="def answer(mean, scale_factor, noise, t, alpha_bar):\n"
        "    a = alpha_bar[t][:, None, None, None]\n"
        "    x_t = a.sqrt() * scale_factor * mean + (1 - a).sqrt() * noise\n"
        "    return x_t, noise",
        judge=judges.judge_training_step,
    ),
    Exercise(
        lesson=LESSON,
        name="diagnose",
        kind="explore",
        difficulty=4,
        minutes=15,
        task="Three more patients: kit.admit('X'), kit.admit('Y') and kit.admit('Z'). Each has one of the faults in "
        "kit.FAULTS, and none of those that A to E have. Use `examine`, and `told` where the clock is wrong. Answer "
        "with the names of the faults, {'X': ..., 'Y': ..., 'Z': ...}. Look at their pictures only afterwards.",
        hints=(
            "Which is the first alarm of each, read from left to right, and what passes through that part?",
            "A clock may stand still, as A's, or go wrong. If the neighbour's sentence fits better than the own one, "
            "the words are not lost: they reach the wrong picture. And a picture may have been changed before the "
            "autoencoder sees it.",
            "for name in 'XYZ':\n    print(name, examine(kit.admit(name))[0])\nanswer = {'X': ..., 'Y': ..., 'Z': ...}",
        ),
        solution="# X: its clock goes wrong. Y: the neighbour's sentence is the better one. Z: the round trip.\n"
        "answer = {'X': 'schedule', 'Y': 'sentence', 'Z': 'pixels'}",
        judge=judges.judge_diagnose,
    ),
)
