"""The exercises of lesson 12, the full-size model: memory, a count, names, a convention, a culprit, a budget."""

from __future__ import annotations

from ldm_tutor.lessons import lesson_12_judges as judges
from ldm_tutor.lessons.exercises import Exercise

LESSON = "full_size_model"

EXERCISES = (
    Exercise(
        lesson=LESSON,
        name="training_memory",
        kind="predict",
        difficulty=2,
        minutes=5,
        task="You train Stable Diffusion's U-Net (859,520,964 parameters) in float32 with Adam, and keep an average of "
        "the weights (EMA). How many GB (1e9 bytes) do all tensors take that are as large as the weights, the weights "
        "among them? Leave the working memory, the text encoder and the autoencoder out. One digit after the point is "
        "enough.",
        hints=(
            "Which numbers does Adam keep for each parameter, beside the parameter and its gradient?",
            "Weight, gradient, Adam's running mean and running mean square, and the average: five, 4 bytes each.",
            "answer = ... * 4 * 859_520_964 / 1e9",
        ),
        solution="answer = 5 * 4 * 859_520_964 / 1e9",
        judge=judges.judge_training_memory,
    ),
    Exercise(
        lesson=LESSON,
        name="transformer_size",
        kind="fill in",
        difficulty=3,
        minutes=15,
        task="Write my_count(channels, context_dim): the number of parameters of a spatial transformer with one block. "
        "It has a norm, a 1 x 1 convolution in and one out (with biases); inside, three norms, self-attention, "
        "cross-attention (no biases on Q, K and V, one on the way out), and the feed-forward layer with its gate: "
        "from c to 8 c, and from 4 c back to c, with biases.",
        hints=(
            "Which two of the eight matrices of the two attentions have another shape than c x c?",
            "Norms have 2 c numbers each, and there are four. K and V of the cross-attention read the context: "
            "context_dim x c. The gate doubles the first layer of the feed-forward.",
            "def my_count(channels, context_dim):\n"
            "    c = channels\n"
            "    norms = 4 * ...\n"
            "    convolutions = 2 * (c * c + c)\n"
            "    self_attention = ...\n"
            "    cross_attention = ...\n"
            "    feed_forward = (c * 8 * c + 8 * c) + ...\n"
            "    return norms + convolutions + self_attention + cross_attention + feed_forward",
        ),
        solution="def answer(channels, context_dim):\n"
        "    c = channels\n"
        "    norms = 4 * 2 * c\n"
        "    convolutions = 2 * (c * c + c)\n"
        "    self_attention = 3 * c * c + (c * c + c)\n"
        "    cross_attention = c * c + 2 * context_dim * c + (c * c + c)\n"
        "    feed_forward = (c * 8 * c + 8 * c) + (4 * c * c + c)\n"
        "    return norms + convolutions + self_attention + cross_attention + feed_forward",
        judge=judges.judge_transformer_size,
    ),
    Exercise(
        lesson=LESSON,
        name="their_name",
        kind="fill in",
        difficulty=4,
        minutes=20,
        task="Write my_name(name): the name that diffusers has for one of our 686 U-Net parameters. Print some pairs "
        "of step 2 first, with rules.to_foreign. The check gives your function all of them.",
        hints=(
            "How many different words stand between the points of our names, and which of them change?",
            "A list of (our piece, their piece) and str.replace gets far. Let the points stand in the pieces, so that "
            '".to_out." does not meet "to_out" elsewhere, and mind which replacement comes first.',
            "def my_name(name):\n"
            '    for ours, theirs in [("time_mlp.", "time_embedding."), ("down.", "down_blocks."), ...]:\n'
            "        name = name.replace(ours, theirs)\n"
            "    return name",
        ),
        solution="import re\n\n"
        "def answer(name):\n"
        '    name = re.sub("^(down|up)[.]", r"\\1_blocks.", name)\n'
        "    for ours, theirs in (\n"
        '        ("mid.", "mid_block."), ("time_mlp.", "time_embedding."), ("norm_out.", "conv_norm_out."),\n'
        '        ("res_blocks.", "resnets."), ("time_proj.", "time_emb_proj."), ("shortcut.", "conv_shortcut."),\n'
        '        ("transformers.", "attentions."), (".blocks.", ".transformer_blocks."),\n'
        '        ("self_attn.", "attn1."), ("cross_attn.", "attn2."), (".to_out.", ".to_out.0."),\n'
        '        ("feed_forward.proj_in.", "ff.net.0.proj."), ("feed_forward.proj_out.", "ff.net.2."),\n'
        '        ("downsample.", "downsamplers.0."), ("upsample.", "upsamplers.0."),\n'
        "    ):\n"
        "        name = name.replace(ours, theirs)\n"
        "    return name",
        judge=judges.judge_their_name,
    ),
    Exercise(
        lesson=LESSON,
        name="time_wave",
        kind="fix the fault",
        difficulty=2,
        minutes=8,
        task="my_wave(t, dim) comes from another code base. The weights of Stable Diffusion expect [cos | sin], and "
        "the frequencies exp(-ln(10000) k / half) for k from 0 to half - 1. Repair both.",
        hints=(
            "What is the smallest frequency in each of the two, and which half comes first?",
            "Divide k by half, not by half - 1, and put the cosines first.",
            "freqs = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(half) / ...)\n"
            "return torch.cat([angles...., angles....], dim=-1)",
        ),
        solution="import math\n\n"
        "import torch\n\n"
        "def answer(t, dim):\n"
        "    half = dim // 2\n"
        "    freqs = torch.exp(-math.log(10000) * torch.arange(half) / half)\n"
        "    angles = t.float()[:, None] * freqs\n"
        "    return torch.cat([angles.cos(), angles.sin()], dim=-1)",
        judge=judges.judge_time_wave,
    ),
    Exercise(
        lesson=LESSON,
        name="culprit",
        kind="explore",
        difficulty=3,
        minutes=12,
        task="`suspect` and `honest` are U-Nets of ours with the same weights, and `inputs` are what both take. One "
        "layer of `suspect` has a wrong setting. In which block does it sit? Answer with the block's name.",
        hints=(
            "Is the block with the largest difference the guilty one, or the first that has any?",
            "kit.pair_up(suspect, honest) pairs the blocks, kit.ladder runs both, kit.first_above reads the ladder.",
            "steps = kit.ladder(kit.pair_up(suspect, honest), lambda: suspect(*inputs), lambda: ...)\n"
            "answer = kit.first_above(steps, ...)",
        ),
        solution="from ldm_tutor.lessons import lesson_12_kit as kit\n\n"
        "suspect, honest, inputs = kit.mystery()\n"
        "steps = kit.ladder(kit.pair_up(suspect, honest), lambda: suspect(*inputs), lambda: honest(*inputs))\n"
        "answer = kit.first_above(steps, 1e-5)",
        judge=judges.judge_culprit,
    ),
    Exercise(
        lesson=LESSON,
        name="largest_picture",
        kind="explore",
        difficulty=3,
        minutes=10,
        task="You have 8 GB (8e9 bytes) for the weights of Stable Diffusion v1 and its working memory, all in float32. "
        "What is the side of the largest square picture that you can draw, one at a time, with guidance? A multiple "
        "of 64, by the prediction `budget(...).peak_bytes`.",
        hints=(
            "How much of the 8 GB is left beside the weights, and which part needs the most while it works?",
            "The decoder's working memory grows with the area, so the side grows with the root. Divide what is left by "
            "its figure at 512.",
            'sides = range(512, 2048, 64)\nanswer = max(side for side in sides if budget("SD v1", "float32", '
            "side, side).peak_bytes <= ...)",
        ),
        solution="from ldm_tutor.widgets.budget import budget\n\n"
        "answer = 512\n"
        'while budget("SD v1", "float32", answer + 64, answer + 64).peak_bytes <= 8e9:\n'
        "    answer += 64",
        judge=judges.judge_largest_picture,
    ),
)
