# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 · The full-size model: how do you assemble the real thing?
#
# You have built every block: encoder and decoder, text tower, residual block, cross-attention, sampler. They drew
# pictures of 64 x 64 pixels. In this lesson you write nothing new. You take the same classes, change the numbers in
# their configuration, and have Stable Diffusion v1 and the paper's 1.45-billion model in front of you. You will have
# made them without downloading a byte, counted them to the last parameter, proved them block by block against the
# library that everybody uses, run a whole full-size U-Net step on this machine, and drawn through a file that other
# programs open.
#
# > **Goal.** Know that your model *is* the published one: the same count, the same names, the same numbers. And know
# > what it costs, before you have it.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import dataclasses
import os
import tempfile
import textwrap
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as transformers_logging

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up, from the course's own package (click to open)
from ldm_tutor.config import sd_v1
from ldm_tutor.lessons import lesson_12_kit as kit
from ldm_tutor.lessons import lesson_12_views as views
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.cost import cost_card
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.blocks import ResBlock
from ldm_tutor.nn.transformer import causal_mask
from ldm_tutor.open_model import open_pipeline
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.plots.figures import STYLE, flow_diagram, picture_grid, show, signed_map
from ldm_tutor.presets import sd_v1_inpainting, text2img_1p4b
from ldm_tutor.weights import foreign
from ldm_tutor.weights.compvis_names import layout_of
from ldm_tutor.weights.diffusers_folder import export_diffusers
from ldm_tutor.weights.names import rename, rules_for
from ldm_tutor.widgets.budget import BudgetExplorer, budget, budget_explorer, duration, gigabytes, work_of_part

torch.set_num_threads(min(2, torch.get_num_threads()))
torch.set_grad_enabled(False)  # nothing is trained here
for each in (diffusers_logging, transformers_logging):
    each.disable_progress_bar()
plt.rcParams.update(STYLE)

# %% [markdown]
# ## Fact box

# %%
fact_box(12)

# %% [markdown]
# ## Where you are

# %%
course_map(12)

# %% [markdown]
# ## What you are going to assemble
#
# The row is that of lesson 00, with other numbers. A sentence of 77 tokens becomes 77 vectors of 768 numbers. The
# U-Net reads them while it takes the noise out of 4 x 64 x 64 latents, many times. The decoder makes a picture of
# 512 x 512 pixels from them.

# %%
figure = flow_diagram(
    ["sentence", "text\nencoder", "U-Net", "decoder", "picture"],
    ["77\ntokens", "77 x\n768", "4 x 64\nx 64", "3 x 512\nx 512"],
    networks={1, 2, 3},
    inputs={2: "noise, 4 x 64 x 64"},
    loops={2: "50 steps"},
)
show(figure, alt="Sentence, text encoder, U-Net in a loop of 50 steps, decoder, picture, with the shapes between them.")

# %% [markdown]
# Weights of this model exist in files that other programs wrote. So two questions come before any picture. Do their
# numbers fit into *your* classes? And if they do, does the same come out?
#
# A full-size file is large, so a **reduced** model stands in for it: the form of Stable Diffusion v1, four levels, two
# residual blocks each, eight heads, but a fifth of the width, and random numbers. The stranger is the U-Net of
# `diffusers`, the reference library, built to the same sizes.

# %%
SMALL = kit.reduced()
mine = kit.fill(UNet(SMALL.unet))
theirs = UNet2DConditionModel(**foreign.unet_arguments(SMALL.unet)).eval()
generator = torch.Generator().manual_seed(1)
latents, context = (torch.randn(shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 32, 96)))
t = torch.tensor([400])
print("tensors:", len(mine.state_dict()), "and", len(theirs.state_dict()))
here, there = (sorted(tuple(value.shape) for value in each.state_dict().values()) for each in (mine, theirs))
print("the same shapes, each as often:", here == there)

# %% [markdown]
# ## Try first: pour the numbers in
#
# Both have 686 tensors, of the same shapes. So do the obvious thing: take each of their tensors in turn, and give it
# the next of yours that has its shape. Then load with `strict=True`, which complains about every missing name, every
# extra name and every wrong shape.

# %%
waiting = defaultdict(list)
for value in mine.state_dict().values():
    waiting[value.shape].append(value)
poured = {name: waiting[value.shape].pop(0) for name, value in theirs.state_dict().items()}
print("strict loading says:", theirs.load_state_dict(poured, strict=True))

ours = mine(latents, t, context)
wrong = theirs(latents, t, context).sample
print("difference over the largest output is more than a tenth:", kit.relative(wrong, ours) > 0.1)

# %% [markdown]
# Not a word of complaint, and another network. Keep this in mind for the rest of the lesson.
#
# > **Key idea.** Loading checks names and shapes. It cannot check that a number stands where it belongs, nor that the
# > code around it computes the same. Only running both, on the same input, can.
#
# So there are three questions, in this order: is the **count** the same, are the **names** the same tensors, is the
# **arithmetic** the same? Then what it costs, and then a picture.
#
# ## Step 1: count without memory
#
# A 3 x 3 convolution from $c_\mathrm{in}$ to $c_\mathrm{out}$ channels has $9\,c_\mathrm{in} c_\mathrm{out}$ weights
# and $c_\mathrm{out}$ biases. A residual block has two of them, two norms with a scale and a shift for each channel,
# one linear layer for the time vector and, where the width changes, a 1 x 1 convolution on the way round:
#
# $$N = 9\,c_\mathrm{in} c_\mathrm{out} + 9\,c_\mathrm{out}^2 + d_t\,c_\mathrm{out} + c_\mathrm{in} c_\mathrm{out}
# + \text{biases and norms}$$
#
# {{notation c_in c_out d_t}}


# %%
def conv(c_in, c_out, kernel=3):
    return kernel**2 * c_in * c_out + c_out


def res_block(c_in, c_out, time_dim=1280):
    norms = 2 * c_in + 2 * c_out
    way_round = conv(c_in, c_out, 1) if c_in != c_out else 0
    return norms + conv(c_in, c_out) + conv(c_out, c_out) + (time_dim * c_out + c_out) + way_round


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


with torch.device("meta"):
    block = ResBlock(320, 640, time_dim=1280, norm_groups=32, eps=1e-5)
print(f"by the formula {res_block(320, 640):,}, in the class {count(block):,}")
print("where its weights are:", block.conv1.weight.device, tuple(block.conv1.weight.shape))

# %% [markdown]
# The **meta device** is the trick. A tensor there has a shape and a type and no memory at all. So you can build what
# you could never hold. Build everything: Stable Diffusion v1, its variant that fills holes (five more channels come
# in: a mask and the masked picture), and the paper's own text-to-image model with its transformer for text.

# %%
FULL, LARGE = sd_v1(), text2img_1p4b()
with torch.device("meta"):
    unet, autoencoder, text = UNet(FULL.unet), Autoencoder(FULL.autoencoder), TextEncoder(FULL.clip.text)
    inpainting = UNet(sd_v1_inpainting().unet)
    large_unet, bert = UNet(LARGE.unet), BertEncoder(LARGE.condition)
    head = nn.Linear(LARGE.condition.width, LARGE.condition.vocab_size)
PUBLISHED = {
    "SD v1, U-Net": ([unet], 859_520_964),
    "SD v1, autoencoder": ([autoencoder], 83_653_863),
    "SD v1, CLIP text encoder": ([text], 123_060_480),
    "SD v1, all": ([unet, autoencoder, text], 1_066_235_307),
    "SD inpainting, U-Net": ([inpainting], 859_535_364),
    "1.45B, U-Net": ([large_unet], 872_300_484),
    "1.45B, text encoder with head": ([bert, head], 581_994_042),
    "1.45B, both": ([large_unet, bert, head], 1_454_294_526),
}
for name, (parts, published) in PUBLISHED.items():
    number = sum(map(count, parts))
    print(f"{name:30} {number:>13,}  as published: {number == published}")

# %% [markdown]
# Equal to the integer. Three of the lines tell a story.
#
# - The 1.45 billion of the paper are the U-Net and the text encoder *with a head that nothing uses*, a linear layer of
#   39,098,682 numbers that would guess words. Without it, and with the autoencoder, the sum is another one. Whoever
#   compares models by parameters should ask what was counted.
# - Five more input channels cost $9 \cdot 5 \cdot 320 = 14{,}400$ weights, in one layer. All the rest of the
#   inpainting U-Net is the same, which is why it could be trained on from the other.
# - The two U-Nets differ by the width of the context alone, 1280 against 768.
#
# Where do they sit? Sort the U-Net's parameters by level, and by what they do.

# %%
table = views.parameters_by_level(unet)
show(
    views.stacked_figure(table, "million parameters", "SD v1: where the U-Net's parameters sit"),
    alt="Stacked bars by level: the way up holds most; the widest levels are far larger than the finest ones.",
)
sums = {stage: sum(pieces.values()) for stage, pieces in table.items()}
up = sum(number for stage, number in sums.items() if stage.startswith("up"))
print(f"on the way up: {up / sum(sums.values()):.0%} of all; largest level: {max(sums, key=sums.get)}")
words = sum(pieces["cross-attention"] for pieces in table.values())
print(f"cross-attention, where the words come in: {words / sum(sums.values()):.0%} of all")

# %% [markdown]
# (`up.0` is the coarsest level, as it runs first; `ends` are the first and last layers and the time network.) The way
# up is heavier than the way down: it has three blocks per level for two, and each reads a skip besides. The finest
# levels, at which the picture is largest, hold next to nothing. Width costs parameters, area costs time. You will meet
# the other side of that in steps 5 and 6.
#
# ## Step 2: one tensor, two names
#
# Your classes say `cross_attn`, `diffusers` says `attn2`, and the paper's own code (CompVis) just counts its blocks,
# from 0 to 11 each way. Since the trees have the same form, a short list of rules translates, with a number where a
# number stands. It must work both ways, and lose nothing:

# %%
rules = rules_for(FULL.unet)
with torch.device("meta"):
    their_unet = UNet2DConditionModel(**foreign.unet_arguments(FULL.unet))
original = layout_of(FULL.unet).rules
for name in list(unet.state_dict())[60::140]:
    theirs_name = rules.to_foreign(name)
    print(f"{name}\n  diffusers: {theirs_name}\n  CompVis:   {original.to_foreign(name)}")
    print(
        "  and back, from both:",
        {rules.from_foreign(theirs_name), original.from_foreign(original.to_foreign(name))} == {name},
    )

# %% [markdown]
# A few names prove little. A map is right if it is a **bijection**: each of the 686 goes to a name of theirs, no two
# to the same, none of theirs is left over, and back again. And the shapes agree.

# %%
renamed, foreign_state = rename(unet.state_dict(), rules, "to_foreign"), their_unet.state_dict()
print(len(renamed), "tensors; each of their names is met once:", set(renamed) == set(foreign_state))
print("and back:", list(rename(renamed, rules, "from_foreign")) == list(unet.state_dict()))
print("all shapes agree:", all(renamed[name].shape == value.shape for name, value in foreign_state.items()))
names = list(unet.state_dict())
there = {original.to_foreign(name) for name in names}
print("CompVis, a bijection too:", len(there), sorted(map(original.from_foreign, there)) == sorted(names))
places = {name: place for place, name in enumerate(foreign_state)}
order = [places[name] for name in renamed]
print("tensors at the same place in both lists:", sum(place == other for place, other in enumerate(order)))
ALT = "Dots beside a diagonal in small steps, and two dashes far above it: the two lists have another order."
show(views.order_figure(order), alt=ALT)

# %% [markdown]
# There you see why pouring failed. The two lists hold the same tensors, in another order: on the line they would
# agree. In each level we list all residual blocks first, they list the attentions first: the small steps. And they list
# the middle after the way up: the two dashes far above the line.
#
# > **Check.** Now load the reduced model by name. The same 686 tensors, strict loading again silent:

# %%
theirs.load_state_dict(rename(mine.state_dict(), rules_for(SMALL.unet), "to_foreign"), strict=True)
right = theirs(latents, t, context).sample
print("by name, difference over scale at most 1e-5:", kit.relative(right, ours) <= 1e-5)
panels = {"ours": ours, "theirs, poured": wrong, "theirs, by name": right}
figure = picture_grid([signed_map(each[0, 0], scale=12) for each in panels.values()], list(panels), scale=1)
show(figure, alt="Three maps of one output channel: ours and theirs by name look alike, theirs poured does not.")

# %% [markdown]
# A map like this is all that a "converter" is. Each format is one more list of rules in `ldm_tutor.weights`, and no
# value changes on the way. (Older files have older names, `query` for `to_q`; they are read too.)
#
# ## Step 3: block by block
#
# The measure of **parity** is the largest difference, as a part of the largest number that comes out:
#
# $$\delta = \max_i |a_i - b_i| \,/\, \max_i |b_i|$$
#
# Two programs that add the same numbers in another order differ by about $10^{-7}$ after one layer, and by more after
# fifty. This course asks for $\delta \le 10^{-5}$ in float32. Start with single blocks, at *full* size. Only the block
# that you test gets memory; all else stays on the meta device. Both sides share the same weights, so they are there
# once.


# %%
def twin(ours, theirs, name, rules):
    """Give block `name` of our meta model random numbers, and its counterpart the same; return both."""
    block = kit.fill(ours.get_submodule(name))
    state = rename({f"{name}.{leaf}": value for leaf, value in block.state_dict().items()}, rules, "to_foreign")
    leaf = next(iter(block.state_dict()))
    place = next(iter(state)).rsplit(".", leaf.count(".") + 1)[0]
    other = theirs.get_submodule(place).eval()
    other.load_state_dict({key.removeprefix(f"{place}."): value for key, value in state.items()}, assign=True)
    return block, other


with torch.device("meta"):
    their_vae = AutoencoderKL(**foreign.autoencoder_arguments(FULL.autoencoder))
    their_text = CLIPTextModel(CLIPTextConfig(**foreign.text_arguments(FULL.clip.text, start_id=49406, end_id=49407)))
generator = torch.Generator().manual_seed(2)
x, x_vae = (torch.randn(1, channels, 32, 32, generator=generator) for channels in (320, 512))
t_emb, tokens = torch.randn(1, 1280, generator=generator), torch.randn(1, 77, 768, generator=generator)
mask = torch.zeros(1, 1, 77, 77).masked_fill(~causal_mask(77), -torch.inf)
parity = {}
block, other = twin(unet, their_unet, "down.1.res_blocks.0", rules)
parity["residual block, 320 to 640"] = block, kit.relative(block(x, t_emb), other(x, t_emb))
block, other = twin(unet, their_unet, "down.0.transformers.0", rules)
parity["transformer, 320 wide"] = block, kit.relative(block(x, tokens), other(x, tokens, return_dict=False)[0])
block, other = twin(unet, their_unet, "down.0", rules)
(a, skips), (b, others) = block(x, t_emb, tokens), other(x, t_emb, tokens)
parity["a level of the way down"] = block, max(map(kit.relative, [a, *skips], [b, *others]))
block, other = twin(text, their_text, "layers.0", rules_for(FULL.clip.text))
parity["a layer of CLIP"] = block, kit.relative(block(tokens, causal_mask(77)), other(tokens, mask))
block, other = twin(autoencoder, their_vae, "decoder.mid", rules_for(FULL.autoencoder))
parity["middle of the decoder"] = block, kit.relative(block(x_vae), other(x_vae))
for name, (block, delta) in parity.items():
    print(f"{name:28} {count(block):>11,} parameters, delta at most 1e-5: {delta <= 1e-5}")

# %% tags=["nbval-ignore-output"]
print({name: f"{delta:.1e}" for name, (_, delta) in parity.items()})

# %% [markdown]
# Now a whole U-Net, the reduced one, with a hook behind each of its blocks on both sides: a **ladder** of differences
# from the first block to the last. That is `kit.ladder`. The same for the reduced autoencoder, from a picture to its
# latents and back.

# %%
pairs = kit.pair_up(mine, theirs, rules_for(SMALL.unet))


def climb(model):
    """The ladder of a U-Net of ours against theirs."""
    modules = [(name, model.get_submodule(name), other) for name, _, other in pairs]
    given = (latents.to(model.conv_in.weight.dtype), t, context.to(model.conv_in.weight.dtype))
    return kit.ladder(modules, lambda: model(*given), lambda: theirs(latents, t, context))


vae = kit.fill(Autoencoder(SMALL.autoencoder))
vae_theirs = AutoencoderKL(**foreign.autoencoder_arguments(SMALL.autoencoder)).eval()
vae_rules = rules_for(SMALL.autoencoder)
vae_theirs.load_state_dict(rename(vae.state_dict(), vae_rules, "to_foreign"))
picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
vae_ladder = kit.ladder(
    kit.pair_up(vae, vae_theirs, vae_rules),
    lambda: vae.decode(vae.encode(picture).mode()),
    lambda: vae_theirs.decode(vae_theirs.encode(picture).latent_dist.mean),
)
clean = climb(mine)
half = kit.fill(UNet(SMALL.unet)).to(torch.bfloat16)
rough = climb(half)
for name, steps in {"U-Net": clean, "autoencoder": vae_ladder}.items():
    print(f"{name}: {len(steps)} blocks, none above 1e-5: {kit.first_above(steps, 1e-5) == 'none'}")

# %%
show(
    views.ladder_figure({"in float32": clean, "ours in bfloat16": rough}, 1e-5, "the reduced U-Net, block by block"),
    alt="Differences by block on a logarithmic axis: in float32 far below the tolerance, in bfloat16 far above it.",
)
print("bfloat16: the last block differs by between 0.1% and 10%:", 1e-3 < rough["conv_out"] < 0.1)

# %% [markdown]
# Points at the bottom are differences of exactly 0: the last bit is the same. (On another machine some may be about
# $10^{-7}$.)
#
# > **Check.** From here on, the U-Net and the autoencoder of the reference library and of `ldm_tutor` are one thing.
# > The tests of the project do the same with the networks at full size.
#
# The upper line is the same U-Net in bfloat16, where a number has 8 significant bits instead of 24. Two right programs
# differ visibly there, and a tolerance of $10^{-5}$ would call both wrong. Test in float32, whatever you run in. The
# other way round, a fault has to be larger than this line before bfloat16 would show it.

# %%
print("bytes in a number:", {str(kind)[6:]: kind.itemsize for kind in (torch.float32, torch.bfloat16)})
print("1 + 1/256 in bfloat16 is 1:", bool(torch.tensor(1 + 1 / 256).bfloat16() == 1))

# %% [markdown]
# ## A failure on purpose: one wrong convention
#
# Published models rest on conventions that no file mentions. Here are six that people trip over. All the weights are
# right, all names and shapes are right, strict loading is silent:
#
# 1. The time wave is [cos | sin]; many write [sin | cos].
# 2. The U-Net's strided convolution pads all four sides, the autoencoder's only right and bottom.
# 3. A published setting is called `attention_head_dim: 8` and means 8 *heads*, not heads of width 8.
# 4. In the feed-forward layer the value comes first, then the gate.
# 5. Its GELU is the exact one; fast libraries use an approximation by tanh.
# 6. The norms of the U-Net's residual blocks add $10^{-5}$ to the variance; the group norm in front of a transformer,
#    and all norms of the autoencoder, add $10^{-6}$.
#
# (Outside of the U-Net there are more. The schedule called *linear* is linear in $\sqrt\beta$, Stable Diffusion's
# latents are multiplied by 0.18215, and its step grid is shifted by one: 20 steps begin at 1 and 51.)
#
# Predict before you run: which of the six would you see in a picture? Plant them in the *trained* model that the course
# ships, and draw the same sentence from the same seed. Then climb the ladder with each.

# %%
pipe = load_pipeline()
PROMPT = "a large red cat on the left and a blue house on a sunny day"


def draw(unet):
    return dataclasses.replace(pipe, unet=unet).draw([PROMPT], [11], num_steps=10)


drawn = {"right": draw(pipe.unet)} | {fault: draw(kit.plant(pipe.unet, fault)) for fault in kit.FAULTS}
figure = picture_grid(torch.cat(list(drawn.values())), list(drawn), columns=4, scale=2)
show(figure, alt="The scene drawn right and with six faults: some pictures are ruined, some look just like the right.")
near = {fault: float(psnr(each, drawn["right"])) for fault, each in drawn.items() if fault != "right"}
print("wrong, and above 40 dB from the right picture:", sum(value > 40 for value in near.values()), "of 6")

# %% tags=["nbval-ignore-output"]
print({fault: f"{value:.0f} dB" for fault, value in near.items()})

# %%
ladders = {fault: climb(kit.plant(mine, fault)) for fault in kit.FAULTS}
show(
    views.ladder_figure(ladders, 1e-5, "six wrong conventions: where each begins"),
    alt="Six lines over the blocks: each is at the bottom, then jumps at one block and stays up; one stays at 1e-5.",
)
quiet = ladders["eps 1e-6 for 1e-5"]
for fault, steps in ladders.items():
    if steps is not quiet:
        print(f"{fault:28} first above 1e-5: {kit.first_above(steps, 1e-5)}")
print("eps: the whole line, up to the last block, is below 3e-5:", max(quiet.values()) < 3e-5)

# %% [markdown]
# Two of the six pictures are the right one, as far as an eye can tell, and with the wrong heads you would be content
# if you did not know the other. The ladder shows all six. Each line runs along the bottom and jumps at one block. *The
# first block above the tolerance* is where to look; what comes behind it inherits. The time wave is wrong from the
# start (it dips once, at `conv_in`, which does not read the time), the padding from the first down-sampling, the
# feed-forward layer from the first transformer. Two cases deserve a closer look.
#
# *Heads.* The fault sits in every transformer, but the ladder finds it only one level down. In the reduced model the
# finest level is 64 wide: 8 heads of width 8, so there both readings agree. A test model must not be so symmetric that
# two conventions coincide.
#
# *Epsilon.* Its line lies on the tolerance, so which block the ladder would blame is luck, and a tolerance a little
# larger would have let it pass. A signal with variance 1 hardly notices $10^{-5}$ more or less. But a network may have
# quiet channels. Give one block an input that is a hundred times smaller:

# %%
block = mine.get_submodule("down.0.res_blocks.0")
same, vector = kit.plant(block, "eps 1e-6 for 1e-5"), torch.randn(1, 256, generator=torch.Generator().manual_seed(4))
loud = torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(5))
for name, x_in in {"variance 1": loud, "a hundred times smaller": 0.01 * loud}.items():
    delta = kit.relative(same(x_in, vector), block(x_in, vector))
    print(f"{name}: delta above 1e-5: {delta > 1e-5}, above 1e-3: {delta > 1e-3}")

# %% [markdown]
# > **Careful.** A parity test is as sharp as its inputs. Use random weights for *all* parameters (a fresh layer that
# > starts at zero hides everything in front of it: its branch adds nothing), sizes at which conventions differ, a batch
# > of more than one, height not equal to width, and one quiet input. (Ours here are square and one row, to save time;
# > the project's tests do better.)
#
# ## Step 4: the shapes, by picture size
#
# The network is convolutions and attention, so it takes any picture whose sides divide by 64: 8 for the autoencoder,
# three halvings in the U-Net. What happens to the number of positions?

# %%
for height, width in ((256, 256), (512, 512), (512, 768), (768, 768), (1024, 1024)):
    h, w = height // FULL.autoencoder.downsampling, width // FULL.autoencoder.downsampling
    levels = [f"{h >> k} x {w >> k}" for k in range(4)]
    print(f"picture {height} x {width}: latents 4 x {h} x {w}, levels {', '.join(levels)}")
ALT = "Size of one self-attention map, 8 heads, by picture side for three levels: sixteenfold per doubling."
show(views.maps_figure([256, 384, 512, 768, 1024]), alt=ALT)

# %% [markdown]
# Twice the side means four times the positions and *sixteen* times the self-attention map. This is the knob of this
# lesson: the side of the picture. Nothing else in the model grows so fast. Written down in float32, one map of one
# layer at 1024 pixels would not fit into this lesson's memory. Fused kernels never write it down, so the map costs
# time and no memory.
#
# ## Step 5: memory, predicted and then measured
#
# What has to be there at once? All the **weights**, 4 bytes each in float32 and 2 in bfloat16. And at each moment the
# **working memory**: the tensors that a call has made and still needs. You can predict both without running anything.
# `work_of_part` builds the network from *fake* tensors, which know their shape and pretend to lie on a CPU, sends one
# call through, and writes down after each operation what is alive.

# %%
traces = {"U-Net, one row": work_of_part("SD v1", "U-Net", 512, 512)}
traces["decoder, one picture"] = work_of_part("SD v1", "autoencoder", 512, 512)
for name, work in traces.items():
    print(f"{name}: at most {work.peak_bytes / 1e6:.0f} MB alive")
ALT = "Memory alive over a call: the U-Net's rises, falls and rises again; the decoder's climbs at the end."
show(views.traces_figure(traces), alt=ALT)

# %%
models = {"SD v1": (text, unet, autoencoder), "1.45B": (bert, large_unet, autoencoder)}
weights = {}
for model, networks in models.items():
    for numbers, size in {"float32": 4, "bfloat16": 2}.items():
        parts = dict(zip(("text encoder", "U-Net", "autoencoder"), networks, strict=True))
        weights[f"{model}, {numbers}"] = {part: size * count(network) / 1e9 for part, network in parts.items()}
for numbers in ("float32", "bfloat16"):
    found = budget("SD v1", numbers)
    whole = gigabytes(sum(found.weight_bytes.values()))
    print(f"SD v1, {numbers}: weights {whole}, at the peak {gigabytes(found.peak_bytes)}")
show(
    views.stacked_figure(weights, "GB", "weights, by the type of their numbers"),
    alt="Stacked bars: the U-Net is most of SD v1; the 1.45B model has a far larger text encoder.",
)

# %% [markdown]
# (At the peak: of drawing one picture of 512 x 512 pixels with guidance.) Look at the two mountains. The U-Net has
# seventeen times the decoder's weights, and yet the *decoder* needs more working memory, for it ends in maps of
# 512 x 512 positions. So the place to save memory is not where the parameters are. People decode in tiles for this
# reason.
#
# A prediction wants a test. The full-size decoder fits easily: give it random numbers, decode a picture of 256 x 256
# pixels, and watch the memory of this process from outside.

# %%
cost_card("decoding with the full-size decoder", seconds=6)
seconds = {}
with torch.device("meta"):
    full_decoder = Autoencoder(FULL.autoencoder)
with kit.peak_memory() as risen:
    kit.fill(full_decoder.decoder), kit.fill(full_decoder.post_quant_conv)
    start = time.perf_counter()
    made = full_decoder.decode(torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(6)))
    seconds["decoder"] = time.perf_counter() - start
work = work_of_part("SD v1", "autoencoder", 256, 256)
predicted = 4 * (count(full_decoder.decoder) + count(full_decoder.post_quant_conv)) + work.peak_bytes
print("picture:", tuple(made.shape), "| predicted:", gigabytes(predicted))
print("measured is between 0.7 and 2 times the prediction:", 0.7 < risen["bytes"] / predicted < 2)
del full_decoder

# %% tags=["nbval-ignore-output"]
pieces = {"weights": predicted - work.peak_bytes, "working": work.peak_bytes}
pieces = {"predicted": pieces, "measured": {"all": risen["bytes"]}}
pieces = {name: {part: size / 1e6 for part, size in each.items()} for name, each in pieces.items()}
show(
    views.stacked_figure(pieces, "MB", "full-size decoder, 256 x 256 pixels"),
    alt="Predicted memory, weights and working memory together, above the measured rise of the process.",
)
print(f"predicted {predicted / 1e6:.0f} MB, measured {risen['bytes'] / 1e6:.0f} MB")

# %% [markdown]
# The two agree well. The measured rise is smaller where the process had free memory left, and larger where kernels
# borrow some for themselves or what has been freed does not go back to the system at once. Plan with a third on top.
#
# ## Step 6: time, predicted and then measured
#
# Nearly all the work is multiplications, each with an addition. Count them, $M$, and divide by how many this machine
# does in a second when it multiplies two large matrices, $R$:
#
# $$T \approx M / R$$
#
# {{notation M_work R_rate}}
#
# That is a first guess. A real network also norms, adds and moves memory, which takes longer. And one product of large
# matrices is not the fastest that a machine can do, so a convolution may also be quicker. For the test you want the
# *whole* full-size U-Net. Its weights would take 3.4 GB. But time does not depend on what the numbers are. So let all
# 686 tensors be windows on the same random numbers: `kit.borrow`. What comes out means nothing; the arithmetic is all
# done (only the reading of 3.4 GB is partly saved). The picture is one of 256 x 256 pixels, the size of the paper's
# text-to-image model.

# %% tags=["nbval-ignore-output"]
rate = kit.matmul_rate()
rates = {"float32": rate / 1e9, "bfloat16": kit.matmul_rate(torch.bfloat16, rounds=2) / 1e9}
print("this machine, 1e9 multiply-adds in a second:", {name: round(value) for name, value in rates.items()})
step, sentence = work_of_part("SD v1", "U-Net", 256, 256), work_of_part("SD v1", "text encoder", 256, 256)
print("predicted for one U-Net row at 256 x 256 pixels:", duration(step.multiply_adds / rate))

# %%
cost_card("one step of the full-size U-Net", seconds=4)
with torch.device("meta"):
    full_unet, full_text = UNet(FULL.unet), TextEncoder(FULL.clip.text)
borrowed = kit.borrow(full_unet)
kit.borrow(full_text)
print(f"a U-Net of {count(full_unet):,} parameters in {gigabytes(borrowed)} of weights")
calls = {
    "text encoder": lambda: full_text(torch.zeros(1, 77, dtype=torch.long)),
    "U-Net, one row": lambda: full_unet(torch.randn(1, 4, 32, 32), torch.tensor([400]), torch.randn(1, 77, 768)),
}
for name, call in calls.items():
    start = time.perf_counter()
    out = call()
    seconds[name] = time.perf_counter() - start
    print(name, "->", tuple(out.shape), "finite:", bool(out.isfinite().all()))
full_unet = full_text = None  # the memory is free again

# %%
works = {"text encoder": sentence, "U-Net, one row": step, "decoder": work}
for name, each in works.items():
    print(f"{name}: {each.multiply_adds / 1e9:,.1f}e9 multiply-adds")
ratios = [seconds[name] * rate / each.multiply_adds for name, each in works.items() if name != "text encoder"]
print("U-Net and decoder take between 0.2 and 20 times T:", all(0.2 < ratio < 20 for ratio in ratios))

# %% tags=["nbval-ignore-output"]
predicted_seconds = {name: each.multiply_adds / rate for name, each in works.items()}
ALT = "Predicted and measured seconds of text encoder, U-Net row and decoder on a logarithmic axis."
show(views.seconds_figure(predicted_seconds, seconds), alt=ALT)
for side in (256, 512):
    whole = budget("SD v1", "float32", side, side).total_multiply_adds() / rate
    print(f"50 guided steps and one decoding, {side} x {side} pixels, here: about {duration(whole)}, by this guess")

# %% [markdown]
# You have just run a Stable Diffusion U-Net on this machine. Multiply by two rows for guidance and by 50 steps: that is
# your picture. A GPU does in seconds what takes a laptop's CPU minutes, mostly because $R$ is hundreds to thousands of
# times larger, part of which comes from computing in 16 bits. $M$ stays the same. Where there is one, this cell
# measures it:

# %% tags=["nbval-ignore-output"]
print(kit.gpu_step(FULL.unet) if torch.cuda.is_available() else "no CUDA GPU here; nothing to measure")

# %% [markdown]
# ## Step 7: draw
#
# Count, names, arithmetic, memory, time: what is missing is a trained file. Published weights of this form come as a
# *diffusers folder*: `unet/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`, each with a configuration and a
# `.safetensors` file, and `model_index.json` on top; or as one single file with CompVis' names. (An older file ends in
# `.ckpt`: a pickle, which can hold any program. The course reads numbers out of it and refuses the rest.) If you have
# one, name
# it in the next cell, or set the variable `LDM_TUTOR_CHECKPOINT` before you start: a path, or the name of a model on
# the Hugging Face hub, which is then downloaded. Be sure that its licence lets you use it, and that you have the 5.0 GB
# of memory from step 5.
#
# Without one, the cell makes an honest **dry run**: the reduced model with random numbers. Latents and picture have the
# shapes of the full-size model (4 x 64 x 64, 512 x 512 pixels), every line of the pipeline runs, and the picture shows
# nothing.

# %%
CHECKPOINT = os.environ.get("LDM_TUTOR_CHECKPOINT", "")  # or write it here: a folder, a file, a name on the hub
TOKENIZER = os.environ.get("LDM_TUTOR_TOKENIZER")  # for a single file: a folder with CLIP's vocabulary


def open_checkpoint(place):
    """Whatever another program wrote, as the pipeline of lesson 00."""
    return open_pipeline(place, tokenizer=TOKENIZER)


cost_card("the dry run", seconds=4)
big = open_checkpoint(CHECKPOINT) if CHECKPOINT else kit.dry_run(SMALL, pipe.tokenizer, mine, vae)
settings = {"num_steps": 20 if CHECKPOINT else 2, "guidance": 4.0, "sampler": "ddim"}
mush = big.draw(["a red cat on a sunny day"], [7], **settings)
print("weights:", "a checkpoint" if CHECKPOINT else "random, so this is a dry run and the picture means nothing")
print("latents:", big.config.latent_shape, "| picture:", tuple(mush.shape))

# %%
title = "drawn with your checkpoint" if CHECKPOINT else "dry run: random weights"
ALT = "A square of coloured mush: random weights draw nothing."
show(picture_grid(F.avg_pool2d(mush, 4), [title], scale=2), alt=ALT)

# %% [markdown]
# `big.draw` is the method that drew your first picture in lesson 00. Not one line of it knows how large the model is.
# Without a notebook, `ldm-tutor draw "a red cat" --num 1 --weights PLACE` does the same with your checkpoint.
#
# Now the other way: *your* model for everybody else. `export_diffusers` writes such a folder, with their names. Then
# `StableDiffusionPipeline`, code in which nobody has heard of this course, opens it and draws from the same noise. Do
# it twice: with the dry run, and with the model that the course has trained. For the second, open the folder with your
# own `open_checkpoint` too, so that you know what it will do with a published one.


# %%
def write(pipeline, folder):
    """Save a pipeline of ours as a diffusers folder."""
    return export_diffusers(
        folder, tokenizer=pipeline.tokenizer, text_encoder=pipeline.text_encoder, unet=pipeline.unet,
        autoencoder=pipeline.autoencoder, schedule=pipeline.schedule.config, picture_size=pipeline.config.picture_size,
    )  # fmt: skip


def foreign_draw(folder, noise, prompt, num_steps):
    """Draw with the reference library alone; a picture in [-1, 1]."""
    stranger = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    stranger.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": num_steps, "guidance_scale": 4.0, "output_type": "pt"}
    return 2 * stranger([prompt], latents=noise, **options).images - 1


cost_card("drawing with both libraries", seconds=8)
with tempfile.TemporaryDirectory() as place:
    dry = kit.dry_run(SMALL, pipe.tokenizer, mine, vae)
    small, scenes_folder = write(dry, Path(place) / "reduced"), write(pipe, Path(place) / "scenes")
    files = sorted(path.relative_to(small).as_posix() for path in small.rglob("*") if path.is_file())
    if CHECKPOINT:
        mush = dry.draw(["a red cat on a sunny day"], [7], **settings | {"num_steps": 2})
    random_pair = mush, foreign_draw(small, dry.noise([7]), "a red cat on a sunny day", 2)
    trained = {
        "ours, shipped weights": pipe.draw([PROMPT], [11], num_steps=20, guidance=4.0, sampler="ddim"),
        "diffusers, our folder": foreign_draw(scenes_folder, pipe.noise([11]), PROMPT, 20),
        "ours, our folder": open_checkpoint(scenes_folder).draw([PROMPT], [11], num_steps=20, sampler="ddim"),
    }
print("the folder:", *files, sep="\n  ")

# %%
ALT = "The same coloured mush twice, from our pipeline and from diffusers."
show(picture_grid(torch.cat([F.avg_pool2d(each, 4) for each in random_pair]), ["ours", "diffusers"], scale=2), alt=ALT)
ALT = "The same scene three times: drawn by ours, by diffusers from our folder, and by ours from that folder."
show(picture_grid(torch.cat(list(trained.values())), list(trained), scale=3), alt=ALT)
first, *more = trained.values()
print("dry run, the same picture to 0.01 of its range:", float((random_pair[0] - random_pair[1]).abs().max()) < 0.02)
print("scenes, the same picture to 0.01 of its range:", all(float((each - first).abs().max()) < 0.02 for each in more))

# %% [markdown]
# > **Check.** Three programs, one picture. On the way went the tokenizer, the text tower, the U-Net with guidance, the
# > noise schedule with its grid of steps shifted by one, the sampler and the decoder. If any convention differed, you
# > would see it here, and the ladder would tell you where.
#
# So what stands between you and a picture of 512 pixels is no code. It is a file, 5.0 GB of memory (or half, in
# bfloat16), and the minutes that you predicted in step 6. The file is the expensive part. Lesson 13 makes its bill.
#
# ## The budget explorer
#
# > **Try it.** Choose a model, its numbers, the side of the picture and the batch. Which of the three models needs
# > more memory for its text encoder than Stable Diffusion for its own text encoder and autoencoder together? From
# > which side on does the decoder's working memory pass 2 GB? When does the batch matter more than the weights? The
# > time in the text is that of your machine, by the guess of step 6.

# %% tags=["nbval-ignore-output"]
budget_explorer(rate, alt="Parameters, memory and multiply-adds of SD v1 for one picture of 512 x 512 pixels.")

# %% [markdown]
# Without a running kernel, here is another corner: the 1.45B model in bfloat16, four pictures of 768 x 768 pixels.

# %%
explorer = BudgetExplorer(50e9)
corner = {"model": "text2img 1.45B", "numbers": "bfloat16", "side": 768, "batch": 4}
show(explorer.draw(**corner), alt=explorer.caption(**corner))
print(textwrap.fill(explorer.caption(**corner), 100))

# %% [markdown]
# ## In the paper, and at full size
#
# > **In the paper.** Table 2 sets text-to-image models side by side on MS-COCO at 256 x 256 pixels. With guidance the
# > latent model reaches an FID of 12.63 with 1.45 billion parameters; GLIDE 12.24 with 6 billion, Make-A-Scene 11.84
# > with 4 billion, CogView 27.10 with 4 billion, LAFITE, a GAN, 26.94 with 75 million. Without guidance the latent
# > model has 23.31. About as good with a quarter of the parameters is a fair reading. Do not read more into it: the
# > models saw other data, and what a parameter costs differs. A number in a U-Net on 32 x 32 latents works on 1,024
# > positions per step, one in a network on all pixels of the picture would work on 65,536.

# %%
ALT = "FID over parameters: the guided LDM with 1.45 billion stands beside models of 4 and 6 billion."
show(views.coco_figure(), alt=ALT)
print(f"GLIDE has {6 / 1.45:.1f} times the parameters of the LDM, and {12.63 - 12.24:.2f} less FID")

# %% [markdown]
# > **At full size.** All of this lesson *was* full size, except where it says reduced. The same functions build the
# > other models of the paper. `ldm-tutor models` lists them all with their exact counts. Two of the paper's own figures
# > do not agree with its published configurations: table 13 gives its LDM-4 391 million parameters (the configuration
# > has 400.9, and table 3 says 400), and table 15 gives the super-resolution model 169 million (113.6).
#
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("full_size_model.training_memory")

# %%
my_gigabytes = ...
check.full_size_model.training_memory(my_gigabytes)

# %%
hint("full_size_model.training_memory")

# %%
exercise("full_size_model.transformer_size")


# %%
def my_count(channels, context_dim):
    """The parameters of a spatial transformer with one block."""
    ...


check.full_size_model.transformer_size(my_count)

# %%
hint("full_size_model.transformer_size")

# %%
exercise("full_size_model.their_name")


# %%
def my_name(name):
    """Our name of a parameter of the U-Net, such as "down.0.res_blocks.1.conv1.weight", in their words."""
    ...


check.full_size_model.their_name(my_name)

# %%
hint("full_size_model.their_name")

# %%
exercise("full_size_model.time_wave")


# %%
def my_wave(t, dim):
    """t: (b,); return (b, dim). Another library's code, and wrong for these weights, in two places."""
    half = dim // 2
    freqs = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(half) / (half - 1))
    angles = t.float()[:, None] * freqs
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


check.full_size_model.time_wave(my_wave)

# %%
hint("full_size_model.time_wave")

# %%
exercise("full_size_model.culprit")

# %%
suspect, honest, inputs = kit.mystery()
my_block = ...  # such as "down.0.res_blocks.0"
check.full_size_model.culprit(my_block)

# %%
hint("full_size_model.culprit")

# %%
exercise("full_size_model.largest_picture")

# %%
my_side = ...
check.full_size_model.largest_picture(my_side)

# %%
hint("full_size_model.largest_picture")

# %%
solution("full_size_model.culprit")

# %% [markdown]
# ## Recap
#
# - The full-size model is the same classes with other numbers. On the meta device it costs nothing to build, and its
#   counts are the published ones to the integer.
# - A name map is a short list of rules, right if it is a bijection. Shapes are no addresses.
# - Strict loading proves names and shapes. Only parity, block by block, proves the arithmetic; the first block above
#   the tolerance is the culprit.
# - Parameters sit where the network is wide, working memory where the map is large. The decoder needs more of it than
#   the U-Net.
# - Time is about multiply-adds over rate. Memory is weights plus what lives at one moment.
# - A model is yours when another program opens your file and draws the same picture.
#
# ## Common mistakes
#
# - *Trusting strict loading.* It was silent with 686 tensors in the wrong order and with six wrong conventions.
# - *Testing a fresh model.* Layers that start at zero hide whatever stands in front of them.
# - *Testing in half precision*, where right and wrong look the same.
# - *Looking at pictures only.* Two of the six faults cannot be seen in one, and a third looks plausible.
# - *Counting another thing.* With or without the head, the autoencoder, the image tower?
# - *Forgetting that GB is not GiB*, and that peak memory is more than weights.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Rombach, Blattmann, Lorenz, Esser, Ommer: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022
#   (arXiv 2112.10752). Table 2, and table 15 with the sizes.
# - Radford and others: *Learning Transferable Visual Models From Natural Language Supervision*, 2021 (arXiv
#   2103.00020). The text encoder.
# - Shazeer: *GLU Variants Improve Transformer*, 2020 (arXiv 2002.05202). The feed-forward layer with a gate.
# - Dao and others: *FlashAttention*, 2022 (arXiv 2205.14135). Why the map need not be written down.
# - The documentation of `diffusers` on `UNet2DConditionModel` and `StableDiffusionPipeline`. What settings are called
#   there.
#
# ## Next stop
#
# **13 · Training at scale: how do you train it for real?** You have the machine and its price per step. Now the file.
