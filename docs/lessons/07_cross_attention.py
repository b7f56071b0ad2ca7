# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Cross-attention: how does a word reach a pixel?
#
# You write *a red cat and a blue house*. Red must arrive at the cat and blue at the house, and nobody tells the
# network where either of them is. In this lesson you build the part that finds out: **cross-attention**. You will have
# made maps that show, for every word of a sentence, where the U-Net looks for it. And you will not take them on trust.
# The course knows where the cat is, so you can measure whether *cat* looks at the cat.
#
# > **Goal.** Write attention from loops to matrices to heads, prove it equal to the package's, put it into the U-Net,
# > and measure its maps against the true objects, beside controls. Then hide a word, and see what really goes.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import dataclasses
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

from ldm_tutor.attention_maps.ignore import Ignore
from ldm_tutor.attention_maps.record import Recorder
from ldm_tutor.attention_maps.watch import watch
from ldm_tutor.config import sd_v1
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.data.scenes.draw import draw, draw_masks
from ldm_tutor.data.scenes.world import Scene, SceneObject
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons import lesson_07_kit as kit
from ldm_tutor.lessons import lesson_07_study as study
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.metrics.grounding import (
    Tally,
    auc,
    find_cases,
    look,
    sentence_words,
    untrained_like,
    word_fields,
    word_places,
)
from ldm_tutor.metrics.reading import read_pictures
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import Attention
from ldm_tutor.nn.blocks import TransformerBlock
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.plots.figures import STYLE, bars, flow_diagram, picture_grid, show
from ldm_tutor.widgets.attention import attention_explorer, overlay

torch.set_num_threads(min(2, torch.get_num_threads()))
plt.rcParams.update(STYLE)

# %% [markdown]
# ## Fact box

# %%
fact_box(7)

# %% [markdown]
# ## Where you are

# %%
course_map(7)

# %% [markdown]
# ## Something to look at
#
# One scene will be with you: a red cat on the left, a blue house on the right. Because our own code draws it, we know
# the pixels of each object. Beside it stand 32 held-out scenes, with their masks, for everything that has to be
# counted. All are folded into latents (lesson 01) and noised (lesson 04). Nothing is drawn by the model yet: in a
# picture that the model draws, nobody knows where the cat *should* be.

# %%
SCENE = Scene(
    objects=(SceneObject.put("cat", "red", "large", "left"), SceneObject.put("house", "blue", "medium", "right")),
    background="day",
)
SENTENCE = "a red cat and a blue house on a sunny day"
pipe, judge = load_pipeline(), load_judge()
picture = to_float(torch.from_numpy(draw(SCENE, 64)).permute(2, 0, 1)[None])
cat, house = torch.from_numpy(draw_masks(SCENE, 64))
test = render_scenes(32, "test", with_masks=True)
with torch.inference_mode():
    to_latents = pipe.autoencoder.to_latents
    x0, latents = (to_latents(each, torch.Generator().manual_seed(0)) for each in (picture, to_float(test.pictures)))
noise, context = kit.noise_like(latents, seed=1), pipe.embed(test.captions)
figure = picture_grid(torch.cat([picture, to_float(test.pictures[:5])]), [SENTENCE, *test.captions[:5]], scale=2)
show(figure, alt="Six scenes with their sentences: the red cat beside the blue house, and five held-out ones.")
print("latents:", tuple(latents.shape), "| context:", tuple(context.shape))

# %% [markdown]
# The context has one vector for each of 32 **tokens**: a start mark, the words, and end marks that fill the row
# (lesson 03).
#
# ## Try first: add the sentence to everything
#
# How would you give a sentence to a U-Net? You know one way already. The time step goes in as one vector that is added
# at every position of the feature map (lesson 05). So make one vector of the sentence, say the mean over its words,
# and add it too. Try it, with two sentences that should not give the same picture.

# %%
table = pipe.text_encoder.token_embedding.weight.detach()  # one vector per word, before the words have met
one, other = table[pipe.tokenizer(["a red cat and a blue house", "a blue cat and a red house"])].mean(dim=1)
print("red cat and blue house, blue cat and red house: the same mean:", torch.allclose(one, other, atol=1e-6))

features = kit.noise_like(torch.zeros(1, len(one), 8, 8), seed=2)
change = ((features + one[None, :, None, None]) - features).norm(dim=1)[0]
print("the change is the same at all 64 positions:", bool(change.std() < 1e-4 * change.mean()))
panels = {"the mean, added": change.mean().expand(8, 8), "wanted: cat": cat.float(), "wanted: house": house.float()}
show(picture_grid([overlay(picture, each, side=192) for each in panels.values()], list(panels), scale=1),
     alt="Added mean: one flat colour. Wanted: bright on the cat alone, and bright on the house alone.")  # fmt: skip

# %% [markdown]
# (One flat colour in the left panel means: the same change everywhere.) Two things went wrong. A mean forgets which
# colour belongs to which thing. A better summary could repair that, for example CLIP's own (lesson 03). But the second
# fault stays with every summary: one vector, added everywhere, says the same thing to every pixel. The cat's pixels
# need *red*, the house's pixels need *blue*.
#
# > **Key idea.** Let each position ask for the words that it needs. The sentence stays a row of vectors, and every
# > position mixes its own sum of them.
#
# ## Step 1: one position asks
#
# Each position has a **query**, a vector $q$: what it is looking for. Each token has a **key** $k$: what it answers to.
# Their product $q \cdot k$ is large where the two fit. That is the *relation*. Each token also has a **value** $v$:
# what it hands over. From the relations make weights that sum to 1, with a softmax, and take the weighted mean of the
# values.
#
# By hand, with vectors of two numbers. Each product is divided by the root of the vectors' length, here $\sqrt 2$; step
# 3 says why. The position asks for something like a cat:

# %%
query = torch.tensor([2.0, 0.0])
keys = {"cat": torch.tensor([2.0, 0.0]), "house": torch.tensor([0.0, 2.0])}
powers = {word: math.exp(float(query @ key) / 2**0.5) for word, key in keys.items()}
for word, power in powers.items():
    print(f"{word}: relation {float(query @ keys[word]):.0f}, weight {power / sum(powers.values()):.2f}")


# %% [markdown]
# For all positions, as loops:


# %%
def attention_loop(q, k, v):
    """q: (n, d), one row per position; k, v: (m, d), one row per token. Returns (n, d)."""
    out = []
    for query in q:
        powers = [math.exp(float(query @ key) / len(query) ** 0.5) for key in k]
        mixture = torch.zeros(v.shape[1])
        for power, value in zip(powers, v, strict=True):
            mixture += power / sum(powers) * value
        out.append(mixture)
    return torch.stack(out)


# %% [markdown]
# > **Key idea.** Query and key say how much; the value says what. Change the values and the weights stay. Change the
# > weights and another mixture of the same values arrives.
#
# ## Step 2: where Q, K and V come from
#
# In the U-Net, the positions are those of a feature map, 8 x 8 or 4 x 4 in our model. The words are the context. Three
# learned matrices make the rest (Rombach et al. 2022, section 3.3): queries from the **picture**, keys and values from
# the **sentence**. Hence the name *cross*-attention.
#
# {{notation q_picture k_words v_words d probs}}
#
# Take one layer of the shipped U-Net, and catch what it is given for our scene at $t = 400$:

# %%
sites = {site.name: layer for site, layer in pipe.unet.attention_layers() if site.kind == "cross"}
LAYER = list(sites)[-2]  # the first of the last two, where the map is 8 x 8
layer, context_one = sites[LAYER], pipe.embed([SENTENCE])
x_t = pipe.schedule.add_noise(x0, kit.noise_like(x0, seed=3), torch.tensor([400]))


def run():
    return pipe.unet(x_t, torch.tensor([400]), context_one)


x, _ = kit.catch(layer, run)
print(LAYER, "| picture:", tuple(x.shape), "| sentence:", tuple(context_one.shape))

# %% [markdown]
# `up.1.block0` is the attention behind the first block of level 1 on the way up. (Level 0, 16 x 16, has no attention;
# level 1 has maps of 8 x 8, level 2 of 4 x 4.)
#
# Some texts say that a *convolution* makes Q, K and V, others say a *linear layer*. Both are right. A convolution with
# a 1 x 1 kernel looks at one position at a time, and so does a linear layer that is applied to every row:

# %%
feature_map = x.transpose(1, 2).unflatten(2, (8, 8))  # b (h w) c -> b c h w
with torch.inference_mode():
    q_linear = layer.to_q(x)
    q_convolution = nn.functional.conv2d(feature_map, layer.to_q.weight[:, :, None, None]).flatten(2).transpose(1, 2)
    k_all, v_all = layer.to_k(context_one), layer.to_v(context_one)
print("1 x 1 convolution and linear layer agree:", torch.allclose(q_linear, q_convolution, atol=1e-4))
print("Q:", tuple(q_linear.shape), "| K:", tuple(k_all.shape), "| V:", tuple(v_all.shape))

# %% [markdown]
# Note what is *not* there: K and V know nothing of the noise or of the time. While a picture is drawn, only the
# questions change from step to step; the answers stay.
#
# ## Step 3: matrices
#
# All products at once are one matrix product, all mixtures another (Vaswani et al. 2017, eq. 1):
#
# $$A = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt d}\right), \qquad \mathrm{out} = A\,V$$
#
# $A$ is the **attention map**: one row per position, one column per token. The softmax runs along a row, so that each
# position shares out a whole look, 100%, over the tokens. Check it against the loops, on the first 32 channels, the
# width of one head (step 4):


# %%
def attention(q, k, v):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    probs = scores.softmax(dim=-1)
    return probs @ v, probs


q, k, v = (each[0, :, :32] for each in (q_linear, k_all, v_all))
out, probs = attention(q, k, v)
print("loops and matrices agree:", torch.allclose(out, attention_loop(q, k, v), atol=1e-4))
print("attention map:", tuple(probs.shape), "| every row sums to 1:", torch.allclose(probs.sum(dim=1), torch.ones(64)))

# %% [markdown]
# In the figure the map lies on its side: a column is a position and sums to 1, and most of the end marks are cut off.

# %%
labels = ["(start)", *SENTENCE.split(), "(end)", "(end)"]
show(kit.token_table(probs, labels), alt="Tokens down, 64 positions across; a few tokens are bright at some positions.")

# %% [markdown]
# Why the root of $d$? A product of two random vectors is a sum of $d$ random numbers, so its spread grows like
# $\sqrt d$. And a softmax over large numbers looks at the largest alone. Count it with 32 random tokens:

# %%
widths, generator = [4, 16, 64, 256, 1024], torch.Generator().manual_seed(4)
largest = {"with the root": [], "without": []}
for d in widths:
    q_random, k_random = (torch.randn(n, d, generator=generator) for n in (500, 32))
    dots = q_random @ k_random.T
    largest["with the root"].append(float((dots / d**0.5).softmax(dim=1).amax(dim=1).mean()))
    largest["without"].append(float(dots.softmax(dim=1).amax(dim=1).mean()))
    print(f"d = {d}: spread of the products {float(dots.std()):.0f}, root of d {d**0.5:.0f}")
figure, axes = plt.subplots(figsize=(5.6, 2.8))
for (name, values), line in zip(largest.items(), ("o-", "s--"), strict=True):
    axes.plot(widths, values, line, label=name)
axes.set(xscale="log", xlabel="d", ylabel="largest weight", ylim=(0, 1.05))
axes.legend()
show(figure, alt="The largest of 32 weights over d: with the root it stays low, without it climbs towards 1.")

# %% [markdown]
# Without the root, nearly the whole look goes to one token by chance, before anything is learned. And a softmax that
# is so sure has hardly a slope, so learning is slow. With it, the width of a vector does not decide how picky it is.
#
# ## Step 4: heads
#
# One map per layer means one way of looking. But a position of the cat may want to know *what* is here, and *which
# colour*, and whether it is day. So the channels are split into groups, **heads**. Each has its own map; the results
# are put side by side and mixed by a last linear layer. Here is the whole class. The two options `axis` and `scaled`
# are there for you to break it later; `grid` is something that the package tells its instruments.


# %%
class MyAttention(nn.Module):
    def __init__(self, dim, context_dim, num_heads, axis=-1, scaled=True):
        super().__init__()
        self.num_heads, self.axis, self.scaled = num_heads, axis, scaled
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, dim, bias=False) for _ in range(2))
        self.to_out = nn.Linear(dim, dim)

    def split(self, t):
        return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # b n (heads d) -> b heads n d

    def probs(self, x, context):
        q, k = self.split(self.to_q(x)), self.split(self.to_k(context))
        scores = q @ k.transpose(-1, -2)
        return (scores / q.shape[-1] ** 0.5 if self.scaled else scores).softmax(dim=self.axis)

    def forward(self, x, context=None, grid=None):
        context = x if context is None else context  # without a sentence, the positions look at each other
        mixed = self.probs(x, context) @ self.split(self.to_v(context))
        return self.to_out(mixed.transpose(1, 2).flatten(2))


mine = MyAttention(layer.to_q.in_features, layer.to_k.in_features, layer.num_heads)
mine.load_state_dict(layer.state_dict())
with torch.inference_mode():
    agree = torch.allclose(mine(x, context_one), layer(x, context_one), atol=1e-4)
    heads = mine.probs(x, context_one)[0]
print("equal to the package's on the same weights:", agree, "| maps:", tuple(heads.shape))

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.nn.attention.Attention`.
#
# The column of *cat*, folded back into 8 x 8 positions, is a picture of where this layer looks for the cat. One for
# each head:

# %%
(cat_place,) = word_places(pipe.tokenizer, SENTENCE, "cat")
maps = [overlay(picture, each[:, cat_place].unflatten(0, (8, 8)), cat, side=192) for each in heads]
figure = picture_grid([overlay(picture, heads.mean(0)[:, cat_place].unflatten(0, (8, 8)), cat, side=192), *maps],
                      ["mean", *(f"head {k}" for k in range(len(maps)))], scale=1)  # fmt: skip
show(figure, alt="The scene coloured by the map of cat, mean and single heads, with the true outline of the cat.")

# %% [markdown]
# Each map has colours of its own: yellow is its largest weight, dark blue its smallest. So compare the positions of one
# map, not two maps. The white line is the true cat, which the network has never been told. This is one picture in one
# layer, so do not believe it yet.
#
# ## Step 5: the transformer block
#
# Cross-attention never comes alone. The U-Net's block has three parts, each behind a norm and added to its input:
# positions look at each other (*self-attention*: Q, K and V all from the picture), positions look at the words, and
# each position thinks for itself in a small two-layer network, whose first layer makes two halves: GELU of the one says
# how much of the other goes through (*GEGLU*, Shazeer 2020, arXiv 2002.05202). In the figure, + means: added to what
# came in.

# %%
figure = flow_diagram(
    ["feature map", "self-\nattention", "cross-\nattention", "feed-\nforward", "feature map"],
    ["rows", "+", "+", "+"],
    networks={1, 2, 3},
    inputs={2: "sentence: K and V"},
)
show(figure, alt="Feature map, self-attention, cross-attention with the sentence from below, feed-forward, and back.")


class MyBlock(nn.Module):
    def __init__(self, dim, context_dim, num_heads):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attn = MyAttention(dim, dim, num_heads)
        self.cross_attn = MyAttention(dim, context_dim, num_heads)
        self.feed_forward = nn.ModuleDict({"proj_in": nn.Linear(dim, 8 * dim), "proj_out": nn.Linear(4 * dim, dim)})

    def forward(self, x, context):
        x = x + self.self_attn(self.norm1(x))
        x = x + self.cross_attn(self.norm2(x), context)
        value, gate = self.feed_forward["proj_in"](self.norm3(x)).chunk(2, dim=-1)
        return x + self.feed_forward["proj_out"](value * nn.functional.gelu(gate))


block = next(each for each in pipe.unet.modules() if isinstance(each, TransformerBlock) and each.cross_attn is layer)
my_block = MyBlock(layer.to_q.in_features, layer.to_k.in_features, layer.num_heads)
my_block.load_state_dict(block.state_dict())
rows = kit.catch(block, run)[0]
with torch.inference_mode():
    print("equal:", torch.allclose(my_block(rows, context_one), block(rows, context_one, (8, 8)), atol=1e-3))
for name, part in {"U-Net": pipe.unet, "text tower": pipe.text_encoder, "image tower": pipe.clip.image}.items():
    print(f"{name}: {sum(isinstance(each, Attention) for each in part.modules())} attention layers of the same class")

# %% [markdown]
# > **Check.** Equal. From here on this is `ldm_tutor.nn.blocks.TransformerBlock`. Its sister without a second sequence
# > is `ldm_tutor.nn.transformer.TransformerLayer`, the layer of CLIP's towers that you built in lesson 03. All of them
# > use the one `Attention`.
#
# Around the block stands a frame that turns the feature map into rows and back: a norm, a 1 x 1 convolution, the
# block, another 1 x 1 convolution, and the input added. That last convolution starts at zero. So a fresh U-Net does
# not listen to the sentence at all, and learns to.
#
# Now the honest test of your class: put it into the U-Net, in the place of every cross-attention, and draw.


# %%
def with_my_attention(unet, **options):
    """A copy of the U-Net whose cross-attention is yours, with the same weights."""
    changed = UNet(unet.config).eval()
    changed.load_state_dict(unet.state_dict())
    for block in changed.modules():
        if isinstance(block, TransformerBlock):
            old = block.cross_attn
            block.cross_attn = MyAttention(old.to_q.in_features, old.to_k.in_features, old.num_heads, **options)
            block.cross_attn.load_state_dict(old.state_dict())
    return changed


ASKED = ["a red cat in the snow", "a blue house at night", "a yellow ball on the beach", "a white rocket at night"]
theirs = pipe.draw(ASKED, [1, 2, 3, 4], num_steps=10)
yours = dataclasses.replace(pipe, unet=with_my_attention(pipe.unet)).draw(ASKED, [1, 2, 3, 4], num_steps=10)
show(picture_grid(yours, ASKED, scale=2), alt="Four pictures drawn with the learner's own attention in the U-Net.")
print("the same pictures as the package's:", bool((yours - theirs).abs().max() < 0.02))

# %% [markdown]
# ## Step 6: watch it
#
# To see the maps you need not take the network apart. `watch` attaches a **tap** to the attention layers: a function
# that is shown each map on its way and may keep it or change it. A `Recorder` is a tap that keeps.

# %%
recorder = Recorder(heads="all")
with torch.inference_mode():
    plain = run()
    with watch(pipe.unet, recorder) as watched:
        recorded = run()
print("watching changes nothing, to the last bit:", torch.equal(plain, recorded))
print("layers:", *(site.name.removesuffix(".layer0.cross") for site in watched))

# %% [markdown]
# The mean over all layers and heads, for every word of the sentence. And last, the end marks together:

# %%
groups = [("(start)", (0,)), *sentence_words(pipe.tokenizer, SENTENCE)]
groups.append(("(end marks)", tuple(range(1 + max(groups[-1][1]), 32))))
shares = {}
panels = []
for word, places in groups:
    field = word_fields(recorder.records, 0, places, (64, 64)).mean(dim=(0, 1))
    panels.append(overlay(picture, field, {"cat": cat, "house": house}.get(word), side=128))
    shares[f"{len(panels)}. {word}"] = 100 * float(field.mean())
show(
    picture_grid(panels, list(shares), scale=1),
    alt="One map per word of the sentence; cat and house with the outline of their object.",
)
show(
    bars(list(shares), list(shares.values()), form="{:.0f}", unit="%", title="share of the look that a word gets"),
    alt="Bars of the share of attention per word; start mark and end marks take much of it.",
)

# %% [markdown]
# The outline is the true object. Find *cat* and *house* among the words. Then find words behind them that light up in
# the same place: they come later in the sentence, and the text tower lets each token see those before it. And look at
# what gets much of the look: marks that mean nothing by themselves. A softmax has to spend 100% somewhere, so a
# position that needs no word must park its look. But the end marks are more than a car park: they have seen all words.
# Keep that in mind; it will matter.
#
# ## Does a word look at its object?
#
# A pretty map proves nothing: you saw the ones that were shown. So measure, on every object that its sentence names.
# A number for how well a map fits a mask: pick a pixel inside the object and one outside. How often has the inner one
# the larger value? This is the **AUC**. 1 is perfect, 0.5 is chance, and it needs no threshold. First as it is said:

# %%
field = word_fields(recorder.records, 0, [cat_place], (64, 64)).mean(dim=(0, 1))
inside, outside, wins = field[cat], field[~cat], 0.0
for value in inside:
    wins += float((value > outside).sum() + 0.5 * (value == outside).sum())
by_loop = wins / (len(inside) * len(outside))
print("loop and package agree:", abs(by_loop - float(auc(field[None], cat))) < 1e-4)

# %% [markdown]
# Beside it two others. *IoU at the best threshold*: cut the map at the level where its overlap with the mask is best,
# and divide overlap by union. *Pointing accuracy*: does the largest value of the map lie on the object?
#
# And three **controls**, because a good number alone says little. *Another word* of the same sentence, the other object
# if there is one: if it does as well, the map says "something is here", not "cat". The *centre prior*, a blob in the
# middle: objects often are there. An *untrained* U-Net with the same maps. Everything is averaged over all layers,
# heads and four noise levels, so nobody has chosen the best one.

# %%
times = [50, 300, 600, 900]
cases = find_cases(pipe.tokenizer, test)
records = look(pipe.unet, context, latents, noise, pipe.schedule, times)
blank = look(untrained_like(pipe.unet), context, latents, noise, pipe.schedule, times)
tally, aucs = Tally(), []
for case in cases:
    own, other = (word_fields(records, case.row, places, (64, 64)) for places in (case.tokens, case.others))
    tally.add(case, own, other, word_fields(blank, case.row, case.tokens, (64, 64)), records)
    aucs.append(auc(own.flatten(0, 1), case.mask))
layers = list(sites)
aucs = torch.stack(aucs).view(len(cases), len(times), len(layers), -1)  # case, time, layer, head
report = tally.report()
print("objects:", len(cases), "| maps measured:", aucs.numel())

# %%
kinds_of_map = {"its own word": report, "another word": report["another_word"], "centre prior": report["centre_prior"]}
kinds_of_map["untrained"] = report["untrained"]
show(kit.controls_figure(kinds_of_map), alt="Three bar charts: the own word is far above all three controls.")
auc_own, *auc_others = (each["mean_auc"]["value"] for each in kinds_of_map.values())
points_own, *points_others = (each["pointing_accuracy"]["value"] for each in kinds_of_map.values())
print("AUC of the own word above 0.85:", auc_own > 0.85, "| above all controls:", auc_own > max(auc_others))
print("AUC of the centre prior above 0.7:", auc_others[1] > 0.7)
print("the own word points right more than twice as often as any control:", points_own > 2 * max(points_others))

# %% tags=["nbval-ignore-output"]
for name, each in kinds_of_map.items():
    print(f"{name:14}", {key: round(each[key]["value"], 2) for key in ("mean_auc", "mean_iou", "pointing_accuracy")})

# %% [markdown]
# > **Check.** A word's map finds its object, and another word's map does not. Nobody taught the U-Net that: it was
# > trained to guess noise, with the sentence as a help.
#
# Look at the centre prior before you cheer. A blob that knows nothing has an AUC far above chance. Whoever reports the
# AUC of an attention map without such a control reports to a good part where photographers put things. Pointing
# accuracy is harder to fool.
#
# > **Try it.** These are 32 scenes. `ldm-tutor evaluate grounding --num 500 --json grounding.json` measures 500.
#
# Now take the mean apart: by layer and head, and by noise level.

# %%
show(kit.layers_figure(aucs, layers, times), alt="AUC by layer and head, few stand out; over t, the best is high.")
table = aucs.mean(dim=(0, 1))  # layer, head
print("best layer on the way up:", layers[int(table.mean(dim=1).argmax())].startswith("up"))
print("best and worst head more than 0.3 apart:", bool(table.max() - table.min() > 0.3))

# %% [markdown]
# Not every layer points. The best ones are on the way up, on the finer grid. Other heads are near chance, or look
# *away* from the object: they must be doing something else. Even in one layer, heads differ. So "the attention map" of
# a model does not exist; whoever shows one has chosen, or averaged. (Here each layer's and head's map is measured
# alone. Most single maps are poor; it is their average that did so well above.) And it works at high noise too, where
# you yourself would hardly see the cat, though there even the best layer is not far above the blob in the middle.
#
# > **Careful.** A map says where the model *looks*, not why it drew what it drew. The weight is only half of the
# > story: what arrives is weight times value, and the other layers come on top.
#
# ## Hide a word
#
# If weights are words on their way to pixels, then you can stop a word. In *I love a cat*, mask the cat, and the cat
# should go. Give the score of one token minus infinity before the softmax, and nobody can look at it. A tap sees
# the map only after the softmax. That is no loss: set the token's weight to zero and divide each row by what is left.

# %%
with torch.inference_mode():
    q, k = mine.split(mine.to_q(x)), mine.split(mine.to_k(context_one))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    before = scores.clone()
    before[..., cat_place] = -torch.inf
    after = scores.softmax(dim=-1)
    after[..., cat_place] = 0
    after = after / after.sum(dim=-1, keepdim=True)
print("masked before the softmax = zero and divide after it:", torch.allclose(before.softmax(dim=-1), after, atol=1e-6))

# %% [markdown]
# > **Check.** Equal. From here on this is `ldm_tutor.attention_maps.ignore.Ignore`.
#
# Predict: you draw twelve sentences with one object each, and hide the object's word in all layers at all steps. In
# how many of the pictures does the judge still find the object? Beside the drawing as it is come four others: only the
# word hidden; the word and all later tokens hidden; the other way round, everything hidden but the word and the start
# mark; and the word never written.

# %%
single = [k for k, scene in enumerate(test.scenes) if len(scene.objects) == 1][:12]
told, things = [test.captions[k] for k in single], [test.scenes[k].objects[0].kind for k in single]
spots = [word_places(pipe.tokenizer, sentence, thing)[-1] for sentence, thing in zip(told, things, strict=True)]
never = [sentence.replace(f" {thing}", "", 1) for sentence, thing in zip(told, things, strict=True)]
ways = {
    "as it is": (told, [[] for _ in spots]),
    "its word hidden": (told, [[spot] for spot in spots]),
    "its word and all later tokens": (told, [list(range(spot, 32)) for spot in spots]),
    "all but the word and the start": (told, [[k for k in range(1, 32) if k != spot] for spot in spots]),
    "never written": (never, [[] for _ in spots]),
}
drawn, found = {}, {}
for name, (sentences, hidden) in ways.items():
    with watch(pipe.unet, Ignore(per_prompt=hidden)):
        drawn[name] = pipe.draw(sentences, range(12), num_steps=10)
    readings = read_pictures(judge, drawn[name])
    found[name] = sum(thing in {o.kind for o in each.objects} for thing, each in zip(things, readings, strict=True))

# %%
panels, titles = [], []
for name, pictures in drawn.items():
    panels += list(pictures[:4])
    titles += [f"{name}: {sentence}" if name == "as it is" else name for sentence in told[:4]]
ALT = "Five rows of four pictures. With only its word hidden most objects stay; with all later tokens they go."
show(picture_grid(panels, titles, columns=4, scale=2), alt=ALT)
stay, go = found["its word hidden"], found["its word and all later tokens"]
print("with all later tokens hidden, fewer than half stay:", go < 6, "| with the word alone, more:", stay > go + 2)

# %% tags=["nbval-ignore-output"]
figure = bars(list(found), list(found.values()), unit="of 12", title="pictures in which the judge finds the object")
show(figure, alt="Bars: many objects with the word hidden, few with all later tokens hidden.")

# %% [markdown]
# Were you right? Hide the word, and more than half of the objects stay! The attention is not at fault; the mask did
# what it says. But the text tower has already carried *cat* into every later token, since each sees those before it
# (lesson 03). The U-Net reads the cat from *snow* and from the end marks. Only when the word **and all that came after
# it** are hidden does the object go. Background and place go with it, because they were said later; where one of them
# fits all the same, it is chance. The other way round, the word alone is enough for the object, though it may come
# twice.
#
# > **Key idea.** A mask removes a token, not a meaning. By the time that the U-Net looks, the words have already read
# > each other.
#
# So the honest way to leave a word out is not to write it. A mask is an instrument: it tells you which token the
# U-Net took something from. To *strengthen* a word, its weights are multiplied instead of set to zero; lesson 09 does
# that, and swaps words while a picture is drawn.
#
# ## Turn one knob, and break it
#
# Your class has two options that should never be used. Both run without an error, and no shape is wrong. First no
# $1/\sqrt d$, with weights that were trained with it. Then the softmax over the wrong axis: each *token* shares
# itself out over the positions.

# %%
faults = {"right": {}, "no root of d": {"scaled": False}, "wrong axis": {"axis": -2}}
broken, facts = [], {}
for name, options in faults.items():
    unet = with_my_attention(pipe.unet, **options)
    broken += list(dataclasses.replace(pipe, unet=unet).draw(ASKED, [1, 2, 3, 4], num_steps=10))
    probe = MyAttention(layer.to_q.in_features, layer.to_k.in_features, layer.num_heads, **options)
    probe.load_state_dict(layer.state_dict())
    with torch.inference_mode():
        weights = probe.probs(x, context_one)
    facts[name] = weights.sum(dim=-1), float(weights.amax(dim=-1).mean())
titles = [f"{name}: {asked}" for name in faults for asked in ASKED]
ALT = "Three rows: right, without the root, softmax over the wrong axis. Only the third row is clearly broken."
show(picture_grid(broken, titles, columns=4, scale=2), alt=ALT)
for name, (sums, _) in facts.items():
    print(f"{name}: every position's weights sum to 1:", torch.allclose(sums, torch.ones_like(sums), atol=1e-4))
print("without the root, the largest weight grows:", facts["no root of d"][1] > facts["right"][1])

# %% [markdown]
# Neither fault throws an error. The third row is ruined, and the maps say why: the weights of a position no longer sum
# to 1, so one position gets a heap of values and another next to nothing. Would you have noticed the second row? There
# the weights do sum to 1 and are merely too sure, which is the nastier fault: pictures still come out, and nothing
# looks broken. Two lines are worth writing into every new attention: print the sum of a row, and its largest weight.
#
# ## Why CLIP comes before the U-Net
#
# The review's order is autoencoder, CLIP, U-Net, and so is ours: when the U-Net trains, the text tower stands still.
# The argument has three parts. *Fixed answers*: keys and values are linear maps of the context. If the text tower
# moved at the same time, every map that the U-Net has learned would have to be learned again. *A stronger lesson*:
# CLIP's loss asks for each sentence which picture it belongs to, so each mistake in a word costs. The noise loss
# reaches the words through the attention only, and most of the noise can be guessed without any word. *Cost*: a frozen
# tower can be run once and its vectors kept.
#
# > **Try it.** This is a claim, so here is its experiment: three text towers under the same small U-Net, with the same
# > first weights, pictures, sentences and random numbers. CLIP, an earlier one of this course, frozen. A tower of the
# > same size that starts random and is trained along. And the same random tower, frozen, as the control. Write down
# > your guess before you look: which of the two random towers does better, and does either come near CLIP?
#
# `python -m ldm_tutor.lessons.lesson_07_study` made these figures, in some twenty minutes of one core:

# %%
towers = study.load_measured()
show(study.towers_figure(towers), alt="Over training steps: CLIP's backgrounds and colours are right first, those of "
     "the random frozen tower follow, trained along comes last; objects are hardly right with any.")  # fmt: skip
show(study.strips_figure(towers), alt="Four sentences, a row for each tower: with CLIP their places and colours come.")
print(*study.told(towers), sep="\n")

# %% [markdown]
# CLIP wins, as the review says, and the last figure of each line says how: by listening. Tell the U-Net the sentence of
# another scene, and with CLIP it guesses the noise worse; with a tower that trains along it hardly notices. The
# surprise is the order of the other two. A random tower that *stands still* still gives every sentence vectors of its
# own, and the U-Net learns to read them, backgrounds first, then colours. A likely reason is that a tower that moves is
# hard to read: what the U-Net learned about it a moment ago is no longer true. (We tried one learning rate for it,
# 0.001, so do not take the gap for a constant of nature.) None of the three draws the right *thing* often. This U-Net
# is a fifteenth of ours and has seen little; look at how the curves run, and give it more steps with `--stops`.
#
# So this is a result about little training, and not a law. The large text-to-image model of Rombach et al. trains its
# text transformer together with the U-Net, from nothing, with far more pictures than we have. Stable Diffusion, which
# came after it, took a frozen CLIP.
#
# ## At full size
#
# > **At full size.** Stable Diffusion has the same block, only more of it: a context of {{full tokens}} tokens
# > with {{full width}} numbers each, {{full heads}} heads everywhere. Its sites and the size of its maps, without
# > downloading anything:

# %%
with torch.device("meta"):
    large = UNet(sd_v1().unet)
cross = [site for site in large.sites() if site.kind == "cross"]
side, tokens = sd_v1().latent_shape[1], sd_v1().clip.text.context_length
positions = [(side // 2**site.level) ** 2 for site in cross]
cross_numbers = sum(site.num_heads * n * tokens for site, n in zip(cross, positions, strict=True))
self_numbers = sum(site.num_heads * n * n for site, n in zip(cross, positions, strict=True))
print(f"cross-attention layers: {len(cross)}; positions from {min(positions)} to {max(positions)}")
print(f"all maps of one step in float16: cross {cross_numbers / 2**19:.0f} MiB, self {self_numbers / 2**19:,.0f} MiB")

# %% [markdown]
# The maps of the words are cheap. Those of the positions with each other grow with the *square* of the positions. So
# nobody keeps them, and fast kernels never even write them down. The recorder refuses, with a number, before it fills
# your memory.
#
# > **In the paper.** Rombach et al. write $Q = W_Q\,\varphi(z_t)$, $K = W_K\,\tau_\theta(y)$ and
# > $V = W_V\,\tau_\theta(y)$, with $\varphi$ the flattened feature map and $\tau_\theta$ the encoder of whatever
# > steers: words, but also boxes or a class (lesson 10). That is why they call it a *general* mechanism.
#
# ## The attention explorer
#
# > **Try it.** Click a word, or type one. Move the step, the layer and the head with the mouse or the arrow keys, and
# > lay the true outline over it. Which layer finds the house at the noisiest step? Where do *red* and *blue* look? The
# > word *a* stands more than once in the sentence: do all of them look at the same place?

# %%
attention_explorer(pipe, SENTENCE, seed=3, scene=SCENE, word="cat")

# %% [markdown]
# Without `scene`, it records the model while it draws:
# `attention_explorer(pipe, "a red cat", seed=7)`.
# If you read this without a running kernel, here are two words through five steps of such a drawing, from noise (left)
# to the end, over the finished picture:

# %%
drawing = Recorder(heads="all")
with watch(pipe.unet, drawing):
    made = pipe.draw(["a blue house on the beach"], [7], num_steps=10)
panels, titles = [], []
for word in ("house", "beach"):
    for step in (0, 2, 4, 6, 9):
        kept = [each for each in drawing.records if each.call.info.step == step]
        places = word_places(pipe.tokenizer, "a blue house on the beach", word)
        panels.append(overlay(made, word_fields(kept, 0, places, (64, 64)).mean(dim=(0, 1)), side=128))
        titles.append(f"{word}, step {step + 1}")
show(picture_grid(panels, titles, columns=5, scale=1), alt="Maps of house and of beach at five steps of a drawing.")

# %% [markdown]
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("cross_attention.one_weight")

# %%
my_weight = ...
check.cross_attention.one_weight(my_weight)

# %%
hint("cross_attention.one_weight")

# %%
exercise("cross_attention.attend")


# %%
def my_attend(q, k, v, mask=None):
    """q: (n, d); k, v: (m, d); mask: (n, m), True where a position may look, or None. Return (n, d)."""
    ...


check.cross_attention.attend(my_attend)

# %%
hint("cross_attention.attend")

# %%
exercise("cross_attention.split_heads")


# %%
def split_heads(x, num_heads):
    """(b, n, heads * d) -> (b, heads, n, d). Something is wrong here."""
    b, n, channels = x.shape
    return x.reshape(b, num_heads, n, channels // num_heads)


check.cross_attention.split_heads(split_heads)

# %%
hint("cross_attention.split_heads")

# %%
exercise("cross_attention.ignore_word")


# %%
def my_ignore(probs, token):
    """probs: (b, heads, n, m), after the softmax. Return the map as if the token had been masked before it."""
    ...


check.cross_attention.ignore_word(my_ignore)

# %%
hint("cross_attention.ignore_word")

# %%
exercise("cross_attention.best_head")

# %%
my_head = ...  # such as (layers[0], 0)
check.cross_attention.best_head(my_head)

# %%
hint("cross_attention.best_head")

# %%
solution("cross_attention.attend")

# %% [markdown]
# ## Recap
#
# - Q comes from the picture, K and V from the sentence. $QK^\top$ is the relation, the softmax makes weights of it, and
#   V is what they carry.
# - Linear layer per position and 1 x 1 convolution are the same thing.
# - $1/\sqrt d$ keeps the softmax from being sure by chance. Heads are several maps side by side.
# - A word's map finds its object, far better than another word, the middle of the picture or an untrained network.
#   Not in every layer, and not in every head.
# - Hiding a word's token does not hide the word: the later tokens have read it.
#
# ## Common mistakes
#
# - *Softmax over the positions.* No shape is wrong. Print the sum of a row.
# - *No root of $d$, or $d$ itself.* Print the largest weight.
# - *Heads by `reshape` alone.* The right shape with the wrong numbers.
# - *Showing one map.* Say which layer, head and step, and show a control.
# - *Taking a high AUC for knowledge.* A blob in the middle has one too.
# - *Counting words from 0.* Place 0 is the start mark, and a strange word has several places.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Vaswani and others: *Attention Is All You Need*, 2017 (arXiv 1706.03762). Equation 1 is step 3 of this lesson.
# - Rombach and others: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022 (arXiv 2112.10752). Section
#   3.3 brings the sentence into the U-Net.
# - Hertz and others: *Prompt-to-Prompt Image Editing with Cross Attention Control*, 2022 (arXiv 2208.01626). The maps
#   as handles; lesson 09 builds it.
# - Tang and others: *What the DAAM: Interpreting Stable Diffusion Using Cross Attention*, 2022 (arXiv 2210.04885). The
#   same question, measured on the large model.
# - Zhang and others: *Top-down Neural Attention by Excitation Backprop*, 2016 (arXiv 1608.00507). The pointing game.
# - Jain, Wallace: *Attention is not Explanation*, 2019 (arXiv 1902.10186). What a map does not tell you.
#
# ## Next stop
#
# **08 · Guidance: how do you make it listen?** The U-Net can hear the sentence now. You learn to turn up the volume.
