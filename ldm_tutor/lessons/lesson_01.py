"""The exercises of lesson 01, the autoencoder: sizes, the divergence, drawing, the scale factor, and noise."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_01_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_01_judges import LEAST_READ, MOST_DB, NUM_LOOKS

LESSON = "autoencoder"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="latent_size",
        kind="predict",
        difficulty=1,
        minutes=4,
        task="Stable Diffusion's autoencoder has f = 8 and 4 latent channels. How many numbers do the latents of one "
        "picture of 768 x 512 pixels have? Work it out before you run the check.",
        hints=(
            "How many positions does the grid of latents have, and how many numbers stand at each?",
            "f shortens each side. Height times width of the grid, times the channels.",
            "answer = (768 // ...) * (512 // ...) * ...",
        ),
        solution="answer = (768 // 8) * (512 // 8) * 4",
        judge=judges.judge_latent_size,
    ),
    Exercise(
        lesson=LESSON,
        name="kl",
        kind="fill in",
        difficulty=2,
        minutes=8,
        task="Write my_kl(mean, logvar), both of shape (b, c, h, w): the divergence of each picture's cloud from the "
        "standard one, summed over its latent numbers, shape (b,).",
        hints=(
            "Which of the formula's four terms use the variance, and how do you get the variance from logvar?",
            "The variance is exp(logvar), and the logarithm of the variance is logvar itself. Flatten everything but "
            "the batch, then sum.",
            "def my_kl(mean, logvar):\n    each = 0.5 * (mean**2 + ... - 1 - ...)\n    return each.flatten(1).sum(...)",
        ),
        solution="def answer(mean, logvar):\n"
        "    each = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)\n"
        "    return each.flatten(1).sum(dim=1)",
        judge=judges.judge_kl,
    ),
    Exercise(
        lesson=LESSON,
        name="sample",
        kind="fix the fault",
        difficulty=3,
        minutes=10,
        task="my_sample(mean, logvar, generator) should draw one latent per mean, with its own noise and its own "
        "sigma, so that gradients reach mean and logvar. The function below has three faults.",
        hints=(
            "How large should the spread be where logvar is 2, do two pictures share their noise, and which way does "
            "the gradient to the mean take?",
            "sigma is exp(logvar / 2). The noise has the shape of the whole batch. What is detached learns nothing.",
            "def my_sample(mean, logvar, generator):\n"
            "    noise = torch.randn(..., generator=generator)\n"
            "    return ... + (0.5 * logvar).exp() * noise",
        ),
        solution="import torch\n"
        "\n"
        "def answer(mean, logvar, generator):\n"
        "    noise = torch.randn(mean.shape, generator=generator)\n"
        "    return mean + (0.5 * logvar).exp() * noise",
        judge=judges.judge_sample,
    ),
    Exercise(
        lesson=LESSON,
        name="scale",
        kind="fill in",
        difficulty=2,
        minutes=6,
        task="Write my_scale(latents): the one factor by which latents of shape (b, c, h, w) are multiplied to have "
        "the standard deviation 1, over all their numbers together. Return it as a number.",
        hints=(
            "What happens to the standard deviation of numbers that you multiply by 2?",
            "It doubles. So the factor is one over the standard deviation, taken over everything at once.",
            "def my_scale(latents):\n    return float(1 / latents....)",
        ),
        solution="def answer(latents):\n    return float(1 / latents.std())",
        judge=judges.judge_scale,
    ),
    Exercise(
        lesson=LESSON,
        name="noise_limit",
        kind="explore",
        difficulty=3,
        minutes=10,
        task="How much noise do latents bear? Add noise of some standard deviation to the unscaled latents of the "
        f"first {NUM_LOOKS} test pictures and decode. Find a strength at which the copies are below {MOST_DB:g} dB and "
        f"the judge still reads {LEAST_READ:.0%} of them right.",
        hints=(
            "What does the decoder meet in training, clean means or clouds?",
            "It has learned to bear noise of the size of sigma, about 0.06, and bears more. Go up in steps of 0.1 and "
            "print PSNR and the share read.",
            "for k in range(1, 15):\n"
            f"    noisy = decode(shipped, z[:{NUM_LOOKS}] + 0.1 * k * noise_like(z[:{NUM_LOOKS}], seed=0))\n"
            f"    print(f'{{0.1 * k:.1f}}', float(psnr(noisy, pictures[:{NUM_LOOKS}]).mean()), ...)",
        ),
        solution="from ldm_tutor.lessons.lesson_01_judges import LEAST_READ, MOST_DB, looks\n"
        "\n"
        "for k in range(1, 15):\n"
        "    answer = k / 10\n"
        "    read, decibel = looks(answer)\n"
        "    if read >= LEAST_READ and decibel < MOST_DB:\n"
        "        break",
        judge=judges.judge_noise_limit,
    ),
)
