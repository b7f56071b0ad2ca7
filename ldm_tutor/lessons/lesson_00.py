"""The exercises of lesson 00, start here: shapes, compression, cost, the whole way by hand, bytes, and steps."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_00_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_00_judges import NEAR, SEED, SENTENCE, STEP_CHOICES

LESSON = "start_here"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="token_shape",
        kind="predict",
        difficulty=1,
        minutes=3,
        task="You hand three sentences to the tokenizer (32 tokens each) and its result to the text encoder (width "
        "128). Which shapes come out? Answer with two tuples: the tokens' shape, then the context's.",
        hints=(
            "How many rows does a batch of three sentences have, and are they all of the same length?",
            "Short sentences are filled up with end tokens. The text encoder keeps every token and gives it a vector.",
            "answer = ((sentences, tokens), (sentences, tokens, width))",
        ),
        solution="answer = ((3, 32), (3, 32, 128))",
        judge=judges.judge_token_shape,
    ),
    Exercise(
        lesson=LESSON,
        name="compression",
        kind="predict",
        difficulty=1,
        minutes=3,
        task="A picture is 3 x 64 x 64 numbers, its latents are 4 x 16 x 16. How many times fewer numbers is that?",
        hints=(
            "How many numbers does each of the two hold in all?",
            "Multiply the three sizes of each, then divide one product by the other.",
            "answer = (3 * height * width) / (4 * latent_height * latent_width)",
        ),
        solution="answer = (3 * 64 * 64) / (4 * 16 * 16)",
        judge=judges.judge_compression,
    ),
    Exercise(
        lesson=LESSON,
        name="costliest_part",
        kind="predict",
        difficulty=2,
        minutes=4,
        task="One picture, 20 steps, guidance 2. Which part takes the most time: the text encoder, the U-Net or the "
        "decoder? And how many grids of latents does the U-Net work through for it? Answer like "
        '("decoder", 3).',
        hints=(
            "Which part runs once, and which runs at every step?",
            "Guidance compares two opinions at each step: one that has read your sentence and one that has not.",
            "answer = (name_of_the_part, num_steps * grids_per_step)",
        ),
        solution='answer = ("U-Net", 20 * 2)',
        judge=judges.judge_costliest_part,
    ),
    Exercise(
        lesson=LESSON,
        name="draw_loop",
        kind="fill in",
        difficulty=3,
        minutes=15,
        task="Write my_draw(pipe, sentence, seed): text encoder, sampling loop (ddim, 10 steps, guidance 1, inside "
        "torch.inference_mode()), decoder. It returns the picture (1, 3, 64, 64) that pipe.draw gives with the same "
        "settings.",
        hints=(
            "Which four things happen between the sentence and the picture, and what does each hand to the next?",
            "Take the ten lines of the lesson. With guidance 1 the answer for the empty sentence falls out of the "
            "formula, so the U-Net is asked with one grid and one context.",
            "def my_draw(pipe, sentence, seed):\n"
            "    grid = timestep_grid(pipe.schedule, ...)\n"
            "    x = PictureNoise([...]).initial((4, 16, 16))\n"
            "    context = pipe.embed([...])\n"
            "    with torch.inference_mode():\n"
            "        for step, t in enumerate(grid):\n"
            "            eps_hat = pipe.unet(x, torch.tensor([t]), context)\n"
            "            t_next = ...  # None in the last step\n"
            "            x = ddim_step(...).x_prev\n"
            "    return ...",
        ),
        solution="import torch\n"
        "from ldm_tutor.sampling.noise import PictureNoise\n"
        "from ldm_tutor.sampling.steps import ddim_step, timestep_grid\n"
        "\n"
        "def answer(pipe, sentence, seed):\n"
        "    grid = timestep_grid(pipe.schedule, 10)\n"
        "    x = PictureNoise([seed]).initial(pipe.config.latent_shape)\n"
        "    context = pipe.embed([sentence])\n"
        "    with torch.inference_mode():\n"
        "        for t, t_next in zip(grid, [*grid[1:], None]):\n"
        "            eps_hat = pipe.unet(x, torch.tensor([t]), context)\n"
        "            x = ddim_step(x, eps_hat, t, t_next, pipe.schedule).x_prev\n"
        "    return pipe.decode(x)",
        judge=judges.judge_draw_loop,
    ),
    Exercise(
        lesson=LESSON,
        name="fix_the_fault",
        kind="fix the fault",
        difficulty=2,
        minutes=8,
        task="to_bytes(pictures) turns values in [-1, 1] into bytes from 0 to 255, and its pictures look wrong. "
        "Repair it: the range, the rounding, and values a little outside [-1, 1].",
        hints=(
            "What do -1, 0 and 1 become, and what should they become?",
            "Cut to [-1, 1], move to [0, 2], shrink to [0, 1], stretch to [0, 255], round, and only then make bytes.",
            "def to_bytes(pictures):\n"
            "    x = pictures.clamp(...)\n"
            "    x = (x + 1) / ... * 255\n"
            "    return x.round().to(torch.uint8)",
        ),
        solution="import torch\n"
        "\n"
        "def answer(pictures):\n"
        "    x = pictures.clamp(-1, 1)\n"
        "    return ((x + 1) / 2 * 255).round().to(torch.uint8)",
        judge=judges.judge_fix_the_fault,
    ),
    Exercise(
        lesson=LESSON,
        name="enough_steps",
        kind="explore",
        difficulty=2,
        minutes=8,
        task=f"Draw '{SENTENCE}' with seed {SEED}, sampler=\"ddim\" and 50 steps. Which is the smallest of "
        f"{', '.join(map(str, STEP_CHOICES))} steps whose picture differs from it by less than {NEAR} on average "
        "(mean absolute difference)?",
        hints=(
            "How do you measure the distance between two pictures that are tensors of the same shape?",
            "Draw with each number of steps, subtract the picture with 50 steps, take the absolute value, average.",
            'target = pipe.draw([sentence], [7], num_steps=50, sampler="ddim")\n'
            "for num_steps in (1, 2, 5, 10, 20, 30):\n"
            "    gap = (pipe.draw(...) - target).abs().mean()",
        ),
        solution=f'sentence = "{SENTENCE}"\n'
        f'target = pipe.draw([sentence], [{SEED}], num_steps=50, sampler="ddim")\n'
        f"for answer in {STEP_CHOICES}:\n"
        f'    drawn = pipe.draw([sentence], [{SEED}], num_steps=answer, sampler="ddim")\n'
        "    gap = (drawn - target).abs().mean()\n"
        f"    if gap < {NEAR}:\n"
        "        break",
        judge=judges.judge_enough_steps,
    ),
)
