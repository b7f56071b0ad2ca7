"""The exercises of lesson 10, other conditions: channels, box tokens, widening, stacking, dropping, strength."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_10_inputs as inputs
from ldm_tutor.lessons import lesson_10_judges as judges
from ldm_tutor.lessons.exercises import Exercise
from ldm_tutor.lessons.lesson_10_judges import STRENGTH_DB, STRENGTH_SEED, STRENGTH_SENTENCE, STRENGTH_STEPS

LESSON = "other_conditions"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="channels",
        kind="predict",
        difficulty=1,
        minutes=5,
        task="An autoencoder gives latents of 8 channels. You turn its text-to-picture U-Net, whose first convolution "
        "is 3 x 3 with 192 outputs, into one that fills holes, in the form of Stable Diffusion's: noisy latents, mask, "
        "latents of the masked picture. How many channels come in, and how many weights does that add to the first "
        "convolution? Answer with two numbers: (channels, weights).",
        hints=(
            "What does the U-Net see beside the noisy latents, and how many channels has each part?",
            "8 noisy, 1 mask, 8 of the masked picture. Each new channel meets each output with a 3 x 3 kernel; biases "
            "belong to the outputs.",
            "answer = (8 + ... + 8, 3 * 3 * ... * 192)",
        ),
        solution="answer = (8 + 1 + 8, 3 * 3 * (1 + 8) * 192)",
        judge=judges.judge_channels,
    ),
    Exercise(
        lesson=LESSON,
        name="box_tokens",
        kind="fill in",
        difficulty=2,
        minutes=10,
        task="Write my_box_tokens(kind, box, side): kind is a whole number, box = (x0, y0, x1, y1) in fractions of the "
        "picture, side the number of grid places on a side. Return three whole numbers: the class, the top-left corner "
        "and the bottom-right one. A corner falls on the nearest of the places 0 to side - 1, each way, and places are "
        "counted row by row.",
        hints=(
            "Which two corners of the box do you need, and which coordinate of a corner says the row?",
            "The row is round(y * (side - 1)), the column the same with x; the place is row times side plus column.",
            "def my_box_tokens(kind, box, side):\n"
            "    x0, y0, x1, y1 = box\n"
            "    place = lambda x, y: round(... * (side - 1)) * ... + round(...)\n"
            "    return [kind, place(x0, y0), place(...)]",
        ),
        solution="def answer(kind, box, side):\n"
        "    x0, y0, x1, y1 = box\n"
        "    place = lambda x, y: round(y * (side - 1)) * side + round(x * (side - 1))\n"
        "    return [kind, place(x0, y0), place(x1, y1)]",
        judge=judges.judge_box_tokens,
    ),
    Exercise(
        lesson=LESSON,
        name="widen",
        kind="fill in",
        difficulty=2,
        minutes=8,
        task="Write my_widen(weight, extra): `weight` (out, in, 3, 3) belongs to a trained first convolution. Return a "
        "weight for `extra` more input channels behind the old ones, with which the U-Net computes what it computed "
        "before, whatever comes in by the new channels.",
        hints=(
            "By which number do you multiply something that should have no effect?",
            "Zeros of the shape (out, extra, 3, 3), put behind the old weight along the axis of the inputs.",
            "def my_widen(weight, extra):\n"
            "    new = weight.new_zeros(weight.shape[0], ..., 3, 3)\n"
            "    return torch.cat([weight, new], dim=...)",
        ),
        solution="import torch\n\n"
        "def answer(weight, extra):\n"
        "    new = weight.new_zeros(weight.shape[0], extra, *weight.shape[2:])\n"
        "    return torch.cat([weight, new], dim=1)",
        judge=judges.judge_widen,
    ),
    Exercise(
        lesson=LESSON,
        name="stack",
        kind="fix the fault",
        difficulty=4,
        minutes=12,
        task="my_stack(noisy, picture, mask, encode, scale) should make the nine channels of Stable Diffusion's "
        "inpainting model: noisy latents 4, mask 1, latents of the masked picture 4. The mask (b, 1, H, W) is 1 in the "
        "hole and is shrunk by taking the upper left pixel of each square; `encode` gives latents without their scale "
        "factor, `scale` is that factor. The function below has four faults, and raises no error.",
        hints=(
            "What does the model have to see of the picture, and in which units are the latents that it works with?",
            "Compare each line with the table of step 4: what is multiplied by the mask, the mask's range, the order "
            "of the parts, and the scale.",
            "masked = picture * ...\n"
            "small = mask[..., ::factor, ::factor]\n"
            "return torch.cat([noisy, ..., ... * encode(masked)], dim=1)",
        ),
        solution="import torch\n\n"
        "def answer(noisy, picture, mask, encode, scale):\n"
        "    factor = mask.shape[-1] // noisy.shape[-1]\n"
        "    small = mask[..., ::factor, ::factor]\n"
        "    return torch.cat([noisy, small, scale * encode(picture * (1 - mask))], dim=1)",
        judge=inputs.judge_stack,
    ),
    Exercise(
        lesson=LESSON,
        name="dropped",
        kind="fill in",
        difficulty=3,
        minutes=12,
        task="Write my_guided(unet, latents, t, given, dropped, scale), guidance for every kind of condition at once. "
        "`given` and `dropped` are pairs (context, channels); the U-Net is called as unet(x, t, context), with x the "
        "latents and behind them the channels. Return the guided noise; scale 1 gives the noise seen with `given`.",
        hints=(
            "Which two answers of the U-Net does guidance compare, and what does each of them see?",
            "Call it with the pair `dropped`, call it with the pair `given`, and go from the first answer towards the "
            "second, `scale` times the way.",
            "def my_guided(unet, latents, t, given, dropped, scale):\n"
            "    def see(context, channels):\n"
            "        return unet(torch.cat([latents, ...], dim=1), t, ...)\n"
            "    without, with_it = see(*dropped), see(*given)\n"
            "    return without + ... * (...)",
        ),
        solution="import torch\n\n"
        "def answer(unet, latents, t, given, dropped, scale):\n"
        "    def see(context, channels):\n"
        "        return unet(torch.cat([latents, channels], dim=1), t, context)\n"
        "    without, with_it = see(*dropped), see(*given)\n"
        "    return without + scale * (with_it - without)",
        judge=inputs.judge_dropped,
    ),
    Exercise(
        lesson=LESSON,
        name="strength",
        kind="explore",
        difficulty=2,
        minutes=10,
        task="Turn the painted pink cat of this lesson into 'a large white dog', and keep the meadow: find a strength "
        f"for pipe.redraw(cat, ['{STRENGTH_SENTENCE}'], [{STRENGTH_SEED}], strength=..., num_steps={STRENGTH_STEPS}) "
        f"with which the judge sees a white dog and the background keeps {STRENGTH_DB:.0f} dB or more. Answer with the "
        "strength. The check draws it, which takes a second or two.",
        hints=(
            "Seed and steps are others here; but between which strengths of the row above does the cat become a dog?",
            "Print what the judge sees and the background's PSNR for 0.6, 0.7, 0.8 and 0.9, and take the least "
            "strength at which the dog is there and white.",
            "answer = 0.5 + ...",
        ),
        solution=f"answer = {judges.STRENGTH_ANSWER}",
        judge=judges.judge_strength,
    ),
)
