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
        task="One picture, 20 steps, guidance 4. Which part takes the most time: the text encoder, the U-Net or the "
        'decoder? And how many rows does the U-Net work through for it? Answer like ("decoder", 3).',
        hints=(
            "Which part runs once, and which runs at every step?",
            "Guidance compares two opinions at each step: one that has read your sentence and one that has not.",
            "answer = (name_of_the_part, num_steps * rows_per_step)",
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
        task="Write my_draw(pipe, sentence, seed): tokenizer, text encoder, sampling loop (ddim, 10 steps, guidance "
        "1), decoder. It returns the picture (1, 3, 64, 64) that pipe.draw gives with the same settings.",
        hints=(
            "Which four things happen between the sentence and the picture, and what does each hand to the next?",
            "tokens -> context; PictureNoise([seed]) gives the first latents; sample(...) yields a state after every "
            "step; the last state's latents go to pipe.decode.",
            "def my_draw(pipe, sentence, seed):\n"
            "    with torch.inference_mode():\n"
            "        context = pipe.text_encoder(...)\n"
            "        latents = PictureNoise([seed]).initial(pipe.config.latent_shape)\n"
            "        denoiser = Guided(pipe.unet, context, None, 1.0)\n"
            "        for state in sample(denoiser, latents, pipe.schedule, sampler=..., num_steps=...):\n"
            "            latents = ...\n"
            "        return ...",
        ),
        solution="import torch\n"
        "from ldm_tutor.sampling.guidance import Guided\n"
        "from ldm_tutor.sampling.loop import sample\n"
        "from ldm_tutor.sampling.noise import PictureNoise\n"
        "\n"
        "def answer(pipe, sentence, seed):\n"
        "    with torch.inference_mode():\n"
        "        context = pipe.text_encoder(pipe.tokenizer([sentence]))\n"
        "        latents = PictureNoise([seed]).initial(pipe.config.latent_shape)\n"
        "        denoiser = Guided(pipe.unet, context, None, 1.0)\n"
        '        for state in sample(denoiser, latents, pipe.schedule, sampler="ddim", num_steps=10):\n'
        "            latents = state.latents\n"
        "        return pipe.decode(latents)",
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
        task=f"Draw '{SENTENCE}' with seed {SEED} and 50 steps. Which is the smallest of "
        f"{', '.join(map(str, STEP_CHOICES))} steps whose picture differs from it by less than {NEAR} on average "
        "(mean absolute difference)?",
        hints=(
            "How do you measure the distance between two pictures that are tensors of the same shape?",
            "Draw with each number of steps, subtract the picture with 50 steps, take the absolute value, average.",
            "target = pipe.draw([sentence], [7], num_steps=50)\n"
            "for num_steps in (1, 2, 5, 10, 20, 30):\n"
            "    gap = (pipe.draw(...) - target).abs().mean()",
        ),
        solution=f'sentence = "{SENTENCE}"\n'
        f"target = pipe.draw([sentence], [{SEED}], num_steps=50)\n"
        f"for answer in {STEP_CHOICES}:\n"
        f"    gap = (pipe.draw([sentence], [{SEED}], num_steps=answer) - target).abs().mean()\n"
        f"    if gap < {NEAR}:\n"
        "        break",
        judge=judges.judge_enough_steps,
    ),
)
