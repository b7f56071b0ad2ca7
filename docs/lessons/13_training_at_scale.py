# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · Training at scale: how do you train it for real?
#
# You have assembled the full-size model, and its numbers are random. To fill them, people run hundreds of processes for
# weeks, on machines that break. In this lesson you do the same in miniature. Two processes train one U-Net on this
# machine; you kill one of them in the middle; and the curve is the one that a single, undisturbed process draws. You
# will have made that picture, from gradients that you add up yourself. Then you make the bill for the real thing.
#
# > **Goal.** Know each technique that makes a small training a large one: shared batches, accumulation, bfloat16, the
# > average, cached latents, shards, checkpoints. Prove of each that it does not change the result, or see how it does.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import copy
import math
import statistics
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import webdataset

from ldm_tutor.config import scenes
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.data.shards import ShardReport, load_pictures, read_shards, share_of_shards, write_shards
from ldm_tutor.lessons import lesson_13_kit as kit
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.cost import cost_card
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.lessons.lesson_13_worker import BATCH, build_stage, small_unet
from ldm_tutor.losses.denoising import noise_loss
from ldm_tutor.models.unet import UNet
from ldm_tutor.plots.figures import STYLE, bars, flow_diagram, picture_grid, show
from ldm_tutor.training.bill import bill, days_at, implied_utilisation, kept_bytes, paper_runs, picture_work
from ldm_tutor.training.checkpoint import read_checkpoint, write_checkpoint
from ldm_tutor.training.learner import Learner, scaled_lr
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.presets import find_preset, recipe_lines
from ldm_tutor.training.processes import ALONE
from ldm_tutor.widgets.bill import BillExplorer, bill_explorer

torch.set_num_threads(min(2, torch.get_num_threads()))
plt.rcParams.update(STYLE)
FOLDER = Path(tempfile.mkdtemp(prefix="ldm_tutor_13_"))

# %% [markdown]
# ## Fact box

# %%
fact_box(13)

# %% [markdown]
# ## Where you are

# %%
course_map(13)

# %% [markdown]
# ## The order of training
#
# Three networks; the third needs the other two. The autoencoder learns from pictures alone: pixels, perceptual
# distance, patch critic, a weak KL (lessons 01 and 02). The text encoder learns from pairs of picture and sentence
# (lesson 03), or is trained along with the U-Net, as in the paper's text-to-image model. Then both are frozen, and the
# U-Net learns to find noise in latents (lessons 04, 05, 07). It takes nearly all of the time.

# %%
figure = flow_diagram(
    ["pictures", "1: auto-\nencoder", "3: U-Net", "weights"],
    ["lessons\n01, 02", "frozen\nlatents", "average"],
    networks={1, 2},
    inputs={2: "noise, and context from\n2: the frozen text encoder"},
)
show(figure, alt="Pictures train the autoencoder; its frozen latents and the frozen text encoder's context the U-Net.")

# %% [markdown]
# Here is how the denoisers of the paper, and Stable Diffusion, were trained. A batch is that of all GPUs together; the
# tables are the paper's.

# %%
for name, run in paper_runs().items():
    source = run.source.removeprefix("Rombach et al. 2022, ")
    print(f"{name:22} batch {run.batch_size:>5,}  lr {run.lr:.1e}  {run.num_steps:>9,} steps  {source}")
faces = paper_runs()["CelebA-HQ, LDM-4"]
print(f"CelebA-HQ looks at {faces.num_pictures:,} pictures; its lr is {faces.base_lr:.0e} times the batch")

# %% [markdown]
# ## Try first: let each train its own
#
# The data: 256 scenes, encoded once, with their sentences. The model: a U-Net with some 79 thousand parameters. Suppose
# you have two machines. The obvious plan: each trains a copy of its own, and in the end you take the mean of the
# weights. Do it, and examine them on noise that no training has drawn (the scenes are the same 256). A fourth joins
# them: the mean of two copies that began from the same random start.

# %%
data = kit.Batches(256)
config = small_unet(data.context.shape[-1])


def new_unet(seed=0):
    torch.manual_seed(seed)
    return UNet(config)


def loss_of(unet, batch):
    x_t, t, context, noise = batch
    return (unet(x_t, t, context) - noise).square().flatten(1).mean(dim=1)  # one number per row


def train_plain(unet, num_steps, batch_size, lr=2e-3, first_seed=0):
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr)
    for step in range(num_steps):
        loss = loss_of(unet, data.draw(batch_size, first_seed + step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return unet


# %%
def mean_of(one, other):
    a, b, both = one.state_dict(), other.state_dict(), new_unet()
    both.load_state_dict({name: (a[name] + b[name]) / 2 for name in a})
    return both


copies = [train_plain(new_unet(seed), 60, BATCH, first_seed=1000 * seed) for seed in (1, 2)]
twin = train_plain(new_unet(1), 60, BATCH, first_seed=2000)  # the first one's random start, the second one's pictures
nets = (*copies, mean_of(*copies), mean_of(copies[0], twin))
exam = dict(zip(("first", "second", "mean of both", "mean, one start"), map(data.exam, nets), strict=True))
ALT = "Noise loss: the mean of two copies is far above both; from one start it is as low as one copy, and no lower."
show(bars(list(exam), list(exam.values()), form="{:.2f}", title="noise loss; 1 is an answer of zeros"), alt=ALT)
print("the mean of the weights is worse than either:", exam["mean of both"] > max(exam["first"], exam["second"]))
print("from one start, it is as good as one copy, to 10%:", abs(exam["mean, one start"] / exam["first"] - 1) < 0.1)

# %% [markdown]
# Two networks that began apart have no sensible middle. A channel that finds edges in one may find colours in the
# other. From *one* random start they still have one after these 60 steps, but nothing is gained: two machines have
# worked, and the result is that of one.
#
# > **Key idea.** Do not share the weights at the end; share the *gradient* at every step. A gradient is a mean over
# > rows, and a mean can be computed in parts. Then there is one model, and the parts leave no trace in it.
#
# ## Step 1: one batch, several processes
#
# The gradient of a batch of $B$ rows is a mean over rows. Sort the rows by the process $r$ that computes them, $B_r$ of
# them with the mean $g_r$:
#
# $$g = \frac{1}{B}\sum_{i=1}^{B} \nabla \ell_i = \sum_r \frac{B_r}{B}\, g_r$$
#
# {{notation batch_all batch_r grad_r}}
#
# First by a loop: two copies with the same weights, each with half of the rows. (In float64, so that rounding does not
# hide a small mistake; one of the trained copies, since a fresh U-Net has gradients in its last layer only.)

# %%
batch = [each.double() for each in data.draw(BATCH, 5)]


def same_weights():
    return copy.deepcopy(copies[0]).double()


def gradients(unet, rows, divide_by):
    """The gradients of the loss over `rows`, summed and divided by `divide_by`, one tensor per parameter."""
    unet.zero_grad()
    (loss_of(unet, [each[rows] for each in batch]).sum() / divide_by).backward()
    return [parameter.grad.clone() for parameter in unet.parameters()]


def difference(a, b):
    """The largest difference, as a part of the largest gradient."""
    return float(max((x - y).abs().max() for x, y in zip(a, b, strict=True)) / max(y.abs().max() for y in b))


whole = gradients(same_weights(), slice(0, BATCH), BATCH)
one, two = (gradients(same_weights(), rows, BATCH / 2) for rows in (slice(0, 8), slice(8, 16)))
averaged = []
for mine, theirs in zip(one, two, strict=True):
    averaged.append((mine + theirs) / 2)
print("two halves, averaged, equal the whole batch to 1e-12:", difference(averaged, whole) < 1e-12)

# %% [markdown]
# A model has hundreds of tensors, and a message has a cost of its own. So lay all gradients end to end in one vector,
# and let everybody send and add that. And do not average: let each divide its *sum* by the size of the whole batch,
# and add up. Then unequal shares need no thought.


# %%
def flatten(tensors):
    return torch.cat([each.detach().flatten() for each in tensors])


def cuts(batch_size, size):
    return [slice(batch_size * r // size, batch_size * (r + 1) // size) for r in range(size)]


messages = [flatten(gradients(same_weights(), rows, BATCH)) for rows in cuts(BATCH, 3)]
print("rows of three processes:", [rows.stop - rows.start for rows in cuts(BATCH, 3)])
print("their sum equals the whole batch to 1e-12:", difference([sum(messages)], [flatten(whole)]) < 1e-12)

# %% [markdown]
# How do you add up a vector that is spread over many machines? If all send to one, that one drowns. In a **ring** each
# sends only to its neighbour. Cut the vector into as many parts as there are processes. In the first round, part after
# part travels and grows, until each process owns one finished part. In the second, finished parts travel on.


# %%
def ring_all_reduce(vectors):
    """Sum the vectors by sending parts to the next process; return everybody's result, and who held what."""
    size = len(vectors)
    parts = [list(vector.chunk(size)) for vector in vectors]
    held = torch.ones(size, size)  # how many processes' numbers are in each part
    history = [held.clone()]
    for turn in range(2 * (size - 1)):
        adding = turn < size - 1  # the first round adds, the second copies
        sent = [(r, (r - turn) % size) for r in range(size)]  # process r sends this part, all at once
        for r, part, numbers, count in [(r, part, parts[r][part], float(held[r, part])) for r, part in sent]:
            to = (r + 1) % size
            parts[to][part] = parts[to][part] + numbers if adding else numbers
            held[to, part] = held[to, part] + count if adding else count
        history.append(held.clone())
    return [torch.cat(each) for each in parts], history


four = [flatten(gradients(same_weights(), rows, BATCH)) for rows in cuts(BATCH, 4)]
results, history = ring_all_reduce(four)
print("everybody has the sum:", all(difference([each], [flatten(whole)]) < 1e-12 for each in results))
titles = ["start", *(f"add {k}" for k in (1, 2, 3)), *(f"copy {k}" for k in (1, 2, 3))]
ALT = "Four processes by four parts: counts grow from 1 to 4 on a diagonal, then the finished parts spread to all."
show(kit.ring_figure(history, titles), alt=ALT)
print("each process sends 2 x 3/4 of its vector:", 2 * 3 / 4)

# %% [markdown]
# (A number says how many processes' gradients are in a part; a row is a process.) Each process sends twice its vector,
# less a bit, *however many* processes there are. The two rounds have names that
# you will meet again: **reduce-scatter** (each owns a finished part) and **all-gather** (everybody gets all parts).
# Together they are an **all-reduce**.
#
# > **Check.** From here on this is `ldm_tutor.training.processes`. Its `Team` cuts the rows, adds up the gradients in
# > `Learner.step`, and lets `torch.distributed` run the ring. A team of one adds up nothing. The course's own stage
# > is written for teams; alone, its rows and its gradient equal yours:

# %%
print("rows of process 1 of 3, by the package:", ALONE.pieces(BATCH, 3)[1], "and by you:", cuts(BATCH, 3)[1])
learner = Learner(same_weights(), peak_lr=2e-3, device=kit.CPU, dtype=torch.float32, warmup=1)
for rows in ALONE.pieces(BATCH, 3):
    x_t, t, context, noise = (each[rows].float() for each in batch)
    (noise_loss(learner.net(x_t, t, context), noise).sum() / BATCH).backward()
theirs = [each.grad for each in learner.net.parameters()]
print("its gradient equals yours to 1e-5, in float32:", difference(theirs, whole) < 1e-5)

# %% [markdown]
# ## A failure on purpose: four ways to share a batch wrongly
#
# None of the four raises an error. What differs is the gradient.
#
# 1. *Mean of means*: shares of 12 and 4 rows, averaged as if they were equal.
# 2. *Same rows*: both processes draw from the same seed, and compute the same half.
# 3. *Forgotten division*: both halves' means are added, not averaged. (Adam divides by the gradient's own size and
#    hardly notices. Plain gradient descent does, and so does a cut of the gradient's length.)
# 4. *A layer that looks across rows*: batch normalisation takes means over what its own process has. To see it alone,
#    each row's loss is divided by the mean loss *of its share*.

# %%
first, second = (gradients(same_weights(), rows, n) for rows, n in ((slice(0, 12), 12), (slice(12, 16), 4)))
faults = {"mean of means": [(a + b) / 2 for a, b in zip(first, second, strict=True)]}
faults["same rows"] = one
faults["forgotten division"] = [a + b for a, b in zip(one, two, strict=True)]


def crossing(unet, shares):
    unet.zero_grad()
    for rows in shares:
        losses = loss_of(unet, [each[rows] for each in batch])
        (losses / losses.mean()).square().sum().div(BATCH).backward()
    return [parameter.grad.clone() for parameter in unet.parameters()]


together = crossing(same_weights(), [slice(0, 16)])
errors = {name: difference(each, whole) for name, each in faults.items()}
errors["looks across rows"] = difference(crossing(same_weights(), cuts(BATCH, 2)), together)
errors["the right way"] = max(difference(averaged, whole), 1e-16)
figure = kit.log_bars(errors, "difference from the gradient of the whole batch, relative")
show(figure, alt="Relative gradient differences: four faults between a tenth and one, the right way near 1e-16.")
print("all four faults differ by more than 1%:", min(list(errors.values())[:4]) > 0.01)

# %% [markdown]
# The second fault is the quiet one. The curve looks healthy, and half of the machines heat the room. That is why in
# this course every process draws the random numbers of the *whole* batch, from seed and step alone, and takes its own
# rows of them. The fourth is why the package shares out only the U-Net, whose norms look at one row at a time. CLIP
# compares every row with every other, and the patch critic has batch normalisation. Those stages are trained by the
# first process while the others wait.
#
# ## Step 2: accumulation, a large batch in a small memory
#
# The same sum helps on a single machine. Let one process compute the pieces *one after the other*. `backward` adds to
# what is in `.grad`, so you step only after the last piece. The numbers are those of the large batch, and the memory is
# that of a piece.

# %%
unet = same_weights()
for rows in cuts(BATCH, 4):
    (loss_of(unet, [each[rows] for each in batch]).sum() / BATCH).backward()
print("four pieces equal one batch:", difference([each.grad for each in unet.parameters()], whole) < 1e-12)
pieces = (1, 2, 4, 8, 16)
memory = [kit.training_bytes(config, BATCH // n, 16, data.context.shape[1]) / 1e6 for n in pieces]
print(f"memory of one piece of 16, as a part of that of the whole batch: {memory[-1] / memory[0]:.2f}")
figure = kit.curves_figure({"peak of a step": (pieces, memory)}, "pieces", "MB")
show(figure, alt="Peak memory of a step falls with the number of pieces, to a fraction at sixteen.")

# %% [markdown]
# (Counted from fake tensors, as in lesson 12: what forward and backward make. Weights, gradients and Adam's means come
# on top, however many the pieces.) It is how a batch of 680 can be trained on few GPUs. It saves memory, not time.
#
# ## Step 3: bfloat16, and why a float32 copy stays
#
# Sixteen-bit numbers halve memory and traffic, and GPUs multiply them many times faster. bfloat16 has 8 significant
# bits: near $w$ its numbers are
#
# $$2^{\lfloor \log_2 |w| \rfloor - 7}$$
#
# apart. An update of less than half of that rounds back to $w$. Add 0.0005 to a weight of 1, again and again:

# %%
exact, short = torch.tensor(1.0), torch.tensor(1.0).bfloat16()
walks = {"float32": [], "bfloat16": []}
for _ in range(200):
    exact, short = exact + 0.0005, short + 0.0005
    walks["float32"].append(float(exact))
    walks["bfloat16"].append(float(short))
show(kit.curves_figure(walks, "updates", "weight"), alt="The float32 weight climbs to 1.1; the other stays at 1.")
print(f"after 200 updates: {float(exact):.2f} in float32, {float(short):.2f} in bfloat16")

# %% [markdown]
# The weights of a network are smaller than 1, and so are their spacings. But updates are small too: Adam moves a weight
# by about the learning rate. So count. In one step with the paper's learning rate of 1e-4, which share of the weights
# moves at all? Then train three ways: float32; weights in bfloat16; and **master weights** in float32, from which a
# fast copy in bfloat16 is refreshed after each step (Micikevicius et al. 2018), as `Learner` does it.


# %%
def train_short(dtype, master, num_steps=60, lr=1e-4):
    net = new_unet().to(dtype)
    kept = new_unet() if master else net
    optimizer = torch.optim.AdamW(kept.parameters(), lr=lr, weight_decay=0.0)
    for step in range(num_steps):
        x_t, t, context, noise = data.draw(BATCH, step)
        noise_loss(net(x_t.to(dtype), t, context.to(dtype)), noise).mean().backward()
        if master:
            for ours, fast in zip(kept.parameters(), net.parameters(), strict=True):
                ours.grad, fast.grad = fast.grad.float(), None
        optimizer.step()
        optimizer.zero_grad()
        if master:
            net.load_state_dict(kept.state_dict())
    return kept.float()


weights = flatten(copies[0].parameters())
moved = ((weights.bfloat16() + 1e-4) != weights.bfloat16()).float().mean()
print(f"weights that an update of 1e-4 moves, in bfloat16: about {round(float(moved), 1):.0%}")
ways = {"float32": (torch.float32, False), "bfloat16, master": (torch.bfloat16, True)}
ways["bfloat16 alone"] = (torch.bfloat16, False)
trained = {name: train_short(*way) for name, way in ways.items()}
begin = flatten(new_unet().parameters())
way = {name: float((flatten(unet.parameters()) - begin).norm()) for name, unet in trained.items()}
ALT = "Length of the way of the weights: equal for float32 and master weights, a fifth shorter for bfloat16 alone."
show(bars(list(way), list(way.values()), form="{:.2f}", title="how far the weights went in 60 steps"), alt=ALT)
print("master weights go as far as float32, to 3%:", abs(way["bfloat16, master"] / way["float32"] - 1) < 0.03)
print("bfloat16 alone falls short by more than 10%:", way["bfloat16 alone"] < 0.9 * way["float32"])

# %% tags=["nbval-ignore-output"]
print({name: f"noise loss {data.exam(unet):.3f}" for name, unet in trained.items()})

# %% [markdown]
# In sixty steps this hardly shows in the loss. It adds up over hundreds of thousands, and it grows worse towards the
# end, when the learning rate falls and more and more updates vanish. What must be exact are not the products but the
# *sums over many steps*: weights, Adam's means, the average. The price of master weights is memory. The five
# numbers of 4 bytes of lesson 12 stay (weight, gradient, two means, average), and the fast copy adds 2 bytes for each
# parameter, and 2 for its gradient.
#
# Older GPUs have float16 in the place of bfloat16: more digits, but its small numbers end near $6 \cdot 10^{-8}$, and
# many gradients would become 0. There the loss is multiplied by a large number before `backward`, and the gradients are
# divided by it afterwards (`torch.amp.GradScaler`). And in other code you will meet `torch.autocast`, which makes the
# 16-bit copies layer by layer.
#
# ## Step 4: the average of the weights
#
# The weights of the last step are noisy. What is sampled from is an exponential moving average (EMA), with decay
# $\lambda$:
#
# $$\bar w_n = \lambda_n\, \bar w_{n-1} + (1 - \lambda_n)\, w_n, \qquad
# \lambda_n = \min\Big(\lambda, \frac{1 + n}{10 + n}\Big)$$
#
# {{notation decay_all w_bar}}
#
# While $\lambda_n = \lambda$, a weight's share halves every $\ln 0.5 / \ln \lambda$ steps. Before that the second form
# rules; it is there to forget the random first weights:

# %%
figure, axes = plt.subplots(figsize=(7, 2.6))
ages = torch.logspace(0, 4.5, 200)
for decay in (0.99, 0.999, 0.9999):
    half = math.log(0.5) / math.log(decay)
    axes.plot(ages, decay**ages, label=f"{decay}, half after {half:,.0f} steps")
    print(f"decay {decay}: half after {half:,.0f} steps")
axes.set(xlabel="steps ago", ylabel="share, relative", xscale="log")
axes.legend()
show(figure, alt="Shares over age fall to a half after 69, 693 and 6931 steps for decays with two, three, four nines.")
average = 1.0  # count the first weights as 1 and all later ones as 0: what is left of the first?
for n in range(1, 1001):
    average = min(0.9999, (1 + n) / (10 + n)) * average
print(f"left of the first weights after 1,000 steps: {0.9999**1000:.0%} with four nines alone")
print("with the second form practically nothing:", average < 1e-15)
print(f"four nines are reached at step {(10 * 0.9999 - 1) / (1 - 0.9999):,.0f}")

# %% [markdown]
# So four nines alone spoil a run of a thousand steps: nine tenths of the average would still be random numbers. With
# the second form they do no harm, and no good either: they are not reached before step 89,990, and up to there the
# average looks back over the last tenth of the run or so. It is computed from master weights, is part of the
# checkpoint, and costs no gradient.
#
# ## Turn one knob: the batch, and what it does to the learning rate
#
# More processes usually mean a larger batch, so fewer steps for the same pictures. Forget to adapt the learning rate,
# and more machines make a *worse* model from the same data. Three rules: **fixed**; **linear**, in proportion to the
# batch (Goyal et al. 2017; the paper's code multiplies its base rate by batch and GPUs); **root**, by the square root.
# Each run sees as many pictures, 960: in batches of 8, or of 32 with one of the rules.

# %%
cost_card("four trainings of 960 pictures each", seconds=16)

# %%
SEEN = 960
runs = {"batch 8, lr 0.001": data.exam(train_plain(new_unet(), SEEN // 8, 8, lr=1e-3))}
for rule in ("fixed", "root", "linear"):
    lr = scaled_lr(1e-3, 32, 8, rule)
    runs[f"batch 32, {rule}, lr {lr:g}"] = data.exam(train_plain(new_unet(), SEEN // 32, 32, lr=lr))
ALT = "Noise loss after 960 pictures: batch 8 lowest; batch 32 with a fixed rate by far highest, linear nearest to it."
show(bars(list(runs), list(runs.values()), form="{:.2f}", title="noise loss after 960 pictures each"), alt=ALT)
small, fixed, root, linear = runs.values()
print("a larger batch with the same rate is behind:", fixed > 1.1 * small)
print("both rules help, the linear one more:", linear < root < fixed)

# %% [markdown]
# > **Careful.** Here the linear rule wins, since the run is short and the batches small. It has no proof for Adam, and
# > beyond some batch every rule fails: the gradient is then exact enough, and only more steps help. A larger rate also
# > needs a **warm-up**, which is why Stable Diffusion climbs to its rate over 10,000 steps. And read whose rule a
# > configuration assumes: the paper's 9.6e-5 for CelebA-HQ is 2e-6 times a batch of 48. Whoever copies the small number
# > without the product has a rate 48 times too small; whoever multiplies a rate that is already the product may get a
# > loss that stays at 1.
#
# ## Step 5: cache what is frozen
#
# The autoencoder does not change while the U-Net learns, so its latents can be computed once. (Mean and log variance
# are kept, so that each step still draws a fresh sample.) What does it save? Count multiply-adds for one picture:
# encoder forward; U-Net forward and backward, three times its forward.

# %%
table = {}
for name, run in paper_runs().items():
    work = picture_work(name, run.phases[-1].side)
    parts = {"U-Net and text": work.unet + work.text, "frozen encoder": work.encoder}
    table[name] = {part: value / sum(parts.values()) for part, value in parts.items()}
ALT = "Shares per run: the frozen encoder takes about a third, and two thirds for churches."
show(kit.stacked_bars(table, "share of the multiply-adds of a training step"), alt=ALT)
for name, parts in table.items():
    print(f"{name:22} the frozen encoder's share: {parts['frozen encoder']:.0%}")
kept, raw = data.moments[0].nbytes, data.scenes.pictures[0].nbytes
print(f"one of our scenes: {raw:,} bytes as pixels, {kept:,} as mean and log variance in 16 bits")

# %% [markdown]
# A network that is not trained takes two thirds of the work for churches. Its U-Net works on a grid of 32 x 32;
# the encoder starts at 256 x 256. The price of caching: crops and flips have to be chosen beforehand, and the file is
# tied to one encoder (the package keeps the encoder's fingerprint in it). In a team the first process makes the
# file, the others wait and read it.
#
# ## Step 6: shards
#
# A hundred million small files are slow to list, to copy and to open. So people pack a thousand samples into a tar, and
# read tars from front to back. That is all that a **WebDataset** is: files of the same name, before the first
# point, make a sample.

# %%
shards = write_shards(zip(data.scenes.pictures[:60], data.scenes.captions, strict=False), FOLDER / "tars", per_shard=20)
print([path.name for path in shards])
sample = next(read_shards(shards))
print(sample.key, {ending: len(content) > 0 for ending, content in sample.files.items()}, "|", sample.caption)
pictures, captions = load_pictures(FOLDER / "tars", 64)
same = torch.equal(pictures, data.scenes.pictures[:60]) and captions == data.scenes.captions[:60]
print("all come back unchanged:", same)
theirs = [each["txt"] for each in webdataset.WebDataset([str(path) for path in shards], shardshuffle=False).decode()]
print("the webdataset library reads the same:", theirs == captions)
print("process 0 of 2 reads", [path.name for path in share_of_shards(shards, 0, 2)])

# %% [markdown]
# Downloads break off. Cut the second tar in half, and read on:

# %%
shards[1].write_bytes(shards[1].read_bytes()[: shards[1].stat().st_size // 2])
report = ShardReport()
rest, _ = load_pictures(FOLDER / "tars", 64, report)
good = list(report.samples.values())
print("good samples by shard, of 20 each:", good)
print("troubles:", len(report.troubles), "|", report.troubles[0].split(" (")[0])
shown = [to_float(rest[good[0] + good[1] - 5 + k]) for k in range(10)]
titles = ["before the cut"] + [""] * 4 + ["the next tar"] + [""] * 4
show(picture_grid(shown, titles, columns=5, scale=2), alt="Ten scenes: five from before the cut, five of the next tar.")

# %% [markdown]
# Nothing stops, and nothing is hidden: counts and the name of the damage are in the report. (Cut exactly between two
# files, a tar looks whole; the missing block of zeros at its end gives it away.)
#
# ## Step 7: checkpoints that survive a kill
#
# If each GPU fails once in a thousand days, then among 256 one fails every four days. So a run *will* be killed,
# perhaps at the very moment in which it writes. Imitate what each way of saving leaves behind when it is stopped in the
# middle:

# %%
state = {"stage": "demo", "settings": {}, "weights": flatten(copies[0].parameters())}
naive, safe = FOLDER / "naive.pt", FOLDER / "safe.pt"
for path in (naive, safe):
    write_checkpoint(path, state)
naive.write_bytes(naive.read_bytes()[:9000])  # what open(path, "wb") leaves when the power goes
(FOLDER / ".safe.pt.1.tmp").write_bytes(safe.read_bytes()[:9000])  # what ours leaves
for path in (naive, safe):
    try:
        read_checkpoint(path, stage="demo", settings={})
        print(f"{path.stem}: whole")
    except ValueError:
        print(f"{path.stem}: lost, with everything since the run began")

# %% [markdown]
# The safe way writes *beside* the old file, waits until the disk has it, and then renames. A rename is one operation:
# before it the old file is there, after it the new one. (The exercise `save` lets you write it.)
#
# A whole checkpoint is not enough. It must hold all that the next step depends on: weights, Adam's means, the average,
# the counter, and where the random numbers stand. Here the last is free, since a step's random numbers depend on seed
# and step alone. Now the real thing. First an unbroken run of 40 steps, in this kernel; then the same as a process
# of its own, killed with the signal that no program can catch, and started again.

# %%
STEPS = 40
stage = build_stage(data.keep(FOLDER / "unbroken"), ALONE)
unbroken = [record.values["loss"] for record in train(stage, Budget(steps=STEPS), FOLDER / "unbroken")]
alone = data.keep(FOLDER / "alone")
process = kit.start(alone, STEPS)
reached = kit.kill_after(process, alone, step=15)
print(f"ended by signal {-kit.finish(process, alone)}, after 15 steps or more: {reached >= 15}")
kept_step = read_checkpoint(alone / "denoiser.checkpoint", stage="denoiser", settings={})["step"]
print("its checkpoint is whole, and from before:", 0 < kept_step <= reached + 1)
print("started again, it ends well:", kit.finish(kit.start(alone, STEPS), alone) == 0)
resumed = kit.losses_of(alone)
apart = max(abs(a - b) for a, b in zip(resumed, unbroken, strict=True))
print(f"{len(resumed)} steps, each loss equal to the unbroken run's to 1e-5: {apart < 1e-5}")

# %%
figure = kit.curves_figure({"unbroken": unbroken, "killed and resumed": resumed}, "step", "noise loss")
figure.axes[0].axvline(reached, color="C2", linestyle=":", label="the kill")
figure.axes[0].legend()
show(figure, alt="Two loss curves lie on each other; a dotted line marks the step at which the process was killed.")

# %% tags=["nbval-ignore-output"]
print(f"killed after step {reached}; checkpoint from {kept_step}; made twice: {len(kit.steps_of(alone)) - STEPS}")

# %% [markdown]
# ## Step 8: two processes, for real
#
# Now all at once. `accelerate launch` starts two processes of the same program. They find each other, share each batch
# of 16, and add up gradients through `torch.distributed`. On GPUs the messages go by NCCL, here by gloo. On your own
# machine the command for the course's recipe is
#
# ```
# accelerate launch --multi_gpu --num_processes 2 \
#     --rdzv_backend c10d --max_restarts 3 \
#     -m ldm_tutor.cli.main train denoiser --out runs/mine
# ```
#
# (`--multi_gpu` only means "several processes"; without GPUs it works too.) Half-way, kill one of the two. Its partner
# cannot go on alone. The launcher notices, stops it, and starts both anew; they find the checkpoint and go on. That is
# **elastic** training in its simplest form.

# %%
cost_card("two processes, killed once, and two that share the weights too", seconds=40)

# %%
pair = data.keep(FOLDER / "pair")
launcher = kit.start(pair, STEPS, kit.PLAIN, restarts=3)
kit.kill_after(launcher, pair, step=15, rank=1)
print("the launcher ends well:", kit.finish(launcher, pair) == 0)
curve = kit.losses_of(pair)
apart = max(abs(a - b) for a, b in zip(curve, unbroken, strict=True))
print(f"{len(curve)} steps by two processes and a kill, each loss equal to one process's to 1e-5: {apart < 1e-5}")
print("processes that took part:", len({row["pid"] for rank in (0, 1) for row in kit.steps_of(pair, rank)}))

# %% [markdown]
# What if the weights do not fit into one GPU? The two rounds of the ring help. **Sharded** training (FSDP) leaves
# each weight, gradient and optimiser number with *one* process only. Before a block computes, an all-gather brings its
# weights together; after backward, a reduce-scatter leaves each process the sum of its part. These are the two
# rounds of your ring, at another time. Accelerate's flags for it are `--use_fsdp --fsdp_version 2`.

# %%
sharded = data.keep(FOLDER / "sharded")
print("ends well:", kit.finish(kit.start(sharded, STEPS, kit.SHARDED), sharded) == 0)
sharded_curve = kit.losses_of(sharded)
apart = max(abs(a - b) for a, b in zip(sharded_curve, unbroken, strict=True))
print(f"each loss equal to one process's to 1e-5: {apart < 1e-5}")
held = [kit.steps_of(sharded, rank)[0]["held"] for rank in (0, 1)]
print("numbers of the weights that each holds:", held, "of", sum(each.numel() for each in new_unet().parameters()))

# %%
curves = {"one process": unbroken, "two, one of them killed": curve, "two, sharded": sharded_curve}
show(kit.curves_figure(curves, "step", "noise loss"), alt="Three loss curves that cannot be told apart.")
for gpus in (1, 8, 64):
    print(f"SD v1, sharded over {gpus:>2}: {kept_bytes('Stable Diffusion v1-4', gpus, sharded=True) / 1e9:.1f} GB each")

# %% [markdown]
# > **Check.** One picture, three curves. From here on, how many processes train is a matter of time and memory, and not
# > of the result. Even a checkpoint does not care: one of a sharded pair goes on in a single process (the tests do it).
#
# What is *not* shown here is speed. Two processes on two cores have no more cores than one process with two threads.
#
# ## The bill
#
# How long would the real runs take? First on this machine. Measure the rate of a training step in multiply-adds per
# second, and divide.

# %% tags=["nbval-ignore-output"]
unet = UNet(scenes().unet)
x, context = torch.randn(16, 4, 16, 16), torch.randn(16, 32, 128)
times = []
for _ in range(4):
    start = time.perf_counter()
    unet(x, torch.zeros(16), context).square().mean().backward()
    times.append(time.perf_counter() - start)
rate = kit.step_work(unet.config, 16, 16, 32) / statistics.median(times[1:])
for name, run in paper_runs().items():
    years = days_at(name, rate / picture_work(name, run.phases[-1].side).total(cached=True)) / 365
    print(f"{name:22} at this machine's {rate / 1e9:.0f}e9 multiply-adds a second: {years:,.0f} years")

# %% [markdown]
# So you need other machines. A GPU's data sheet names a *peak*: an A100 makes 156e12 multiply-adds of 16 bits a second.
# No training reaches it. The share that it does reach is the **utilisation**. It is the one number in a bill that
# you cannot count, so it belongs in sight. Here are the days at a share of 30%, with cached latents. Table 18 of the
# paper gives days, so you can also turn it round and read off the share that they come to.

# %%
for name, run in paper_runs().items():
    days = bill(name, "A100", 0.3, cached=True).gpu_days
    told = "no days published"
    if run.reported_days is not None:
        told = f"published {run.reported_days:,.1f} {run.reported_on}-days: {implied_utilisation(name):.0%} of its peak"
    print(f"{name:22} {days:>5,.1f} A100-days at 30%; {told}")

# %% [markdown]
# The three of the paper lie close together, and low. Part of that has likely reasons: perhaps 32-bit numbers, small
# batches, the encoder at every step (it is in the count), and reading data. The paper also took an A100-day for 2.2
# V100-days, so its V100-days are a conversion and not a measurement. The hours on the model card of Stable Diffusion
# are an estimate of its authors, and do not say how many attempts they include.
#
# > **Try it.** Choose a run, a GPU, how many, and the utilisation. How many A100s train CelebA-HQ within a day? What
# > does caching save for churches? From how many GPUs on do the kept numbers of Stable Diffusion take less than 1 GB
# > each?

# %%
bill_explorer(alt="GPU-days of the CelebA-HQ run on three GPUs, and days on the wall over the number of A100s.")

# %% [markdown]
# Without a running kernel, here is another corner: Stable Diffusion on 256 A100s, latents cached.

# %%
corner = {"run": "Stable Diffusion v1-4", "gpu": "A100", "gpus": 256, "utilisation": 0.3, "latents": "cached"}
show(BillExplorer().draw(**corner), alt=BillExplorer().caption(**corner))
print(BillExplorer().caption(**corner))

# %% [markdown]
# Nor do you copy the numbers by hand. `ldm-tutor train denoiser --preset celebahq --data FOLDER --steps N` trains that
# model on your own pictures, by the list below. With `--dry-run` it trains nothing: it shows the list, the memory that
# this takes beside the memory that you have, and the bill. The preset `sd_v1` is Stable Diffusion, and `middle` this
# course's model for scenes of 128 pixels.

# %%
print("\n".join(f"{name:18} {told}" for name, told in recipe_lines(find_preset("celebahq"), "denoiser", 48)))

# %% [markdown]
# ## In the paper, and at full size
#
# > **In the paper.** Table 12: CelebA-HQ had 410,000 steps with a batch of 48, churches 500,000 with 96, each on a
# > single A100. Table 18 counts 14.4 V100-days for CelebA-HQ, 26 for FFHQ, 18 for churches, 271 for LDM-4 on ImageNet,
# > against 916 for ADM, which works in pixels. The text-to-image model (table 15) had 390 thousand steps with a batch
# > of 680. On one GPU that is only possible in pieces.
#
# > **At full size.** Stable Diffusion v1 (model card): 237 thousand steps at 256 x 256 pixels, then 194 thousand and
# > 515 thousand at 512 x 512; version 1-4 another 225 thousand, with a tenth of the sentences dropped for guidance. 32
# > machines with 8 A100s each, a batch of 2048, AdamW, a rate of 1e-4 after a warm-up of 10,000 steps, and about
# > 150,000 GPU-hours. In this course's words: a team of 256, `accumulate` 2 with 4 rows a piece, bfloat16 or float32,
# > an EMA with four nines, shards, and a great many checkpoints.
#
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("training_at_scale.average")


# %%
def my_average(gradients, counts):
    """The mean gradient of all rows, from each process's mean and its number of rows."""
    ...


check.training_at_scale.average(my_average)

# %%
hint("training_at_scale.average")

# %%
exercise("training_at_scale.rows")


# %%
def my_rows(batch, rank, size):
    """The rows of process `rank` of `size`. Something is wrong here."""
    share = batch // size
    return range(rank * share, (rank + 1) * share)


check.training_at_scale.rows(my_rows)

# %%
hint("training_at_scale.rows")

# %%
exercise("training_at_scale.bfloat16")

# %%
my_weight = ...
check.training_at_scale.bfloat16(my_weight)

# %%
hint("training_at_scale.bfloat16")

# %%
exercise("training_at_scale.half_life")

# %%
my_steps = ...
check.training_at_scale.half_life(my_steps)

# %%
hint("training_at_scale.half_life")

# %%
exercise("training_at_scale.save")


# %%
def my_save(path, pieces):
    """Write pieces of bytes to `path`. Stopped half way, it loses the old file."""
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)


check.training_at_scale.save(my_save)

# %%
hint("training_at_scale.save")

# %%
exercise("training_at_scale.gpus")

# %%
my_gpus = ...
check.training_at_scale.gpus(my_gpus)

# %%
hint("training_at_scale.gpus")

# %%
solution("training_at_scale.rows")

# %% [markdown]
# ## Recap
#
# - A gradient is a mean over rows. Let each process divide its sum by the whole batch, and add up: the result is that
#   of one process, for any shares, with one kill or none.
# - Accumulation is the same sum in time. It saves memory, not work.
# - Compute in bfloat16; keep weights, optimiser and average in float32, or small updates vanish.
# - An average with four nines forgets half in 6,931 steps. In a short run the second form rules, and it forgets faster.
# - A larger batch makes fewer steps. The learning rate must follow, with a warm-up, and not without end.
# - What is frozen is computed once. Where the grid of the latents is small (churches, 32 x 32), the encoder would be
#   most of the work.
# - A checkpoint is written beside and renamed. It holds all that the next step depends on.
# - Work is counted, days are measured, and what lies between them, the utilisation, is said aloud.
#
# ## Common mistakes
#
# - *The same seed in each process, and the same rows*: everything runs, and half of it for nothing.
# - *Averaging means of unequal shares*, or dividing twice.
# - *Batch normalisation and contrastive losses shared out* as if rows did not know each other.
# - *More GPUs, larger batch, the same learning rate.*
# - *Saving from every process*, or into the file that you may need tomorrow.
# - *Resuming weights without Adam's means*, without the average, or with the random numbers of step 0.
# - *GPU-days without a word on utilisation.*
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Rombach et al.: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022 (arXiv 2112.10752). Tables 12
#   to 15 with the settings, 18 with the days.
# - Goyal et al.: *Accurate, Large Minibatch SGD*, 2017 (arXiv 1706.02677). The linear rule and the warm-up.
# - Micikevicius et al.: *Mixed Precision Training*, 2018 (arXiv 1710.03740). Master weights.
# - Rajbhandari et al.: *ZeRO*, 2020 (arXiv 1910.02054). Sharding optimiser, gradients and weights.
# - Aizman, Maltzahn, Breuel: *High Performance I/O For Large Scale Deep Learning*, 2020 (arXiv 2001.01858). WebDataset.
# - The documentation of `accelerate`, for what its launcher can do on many machines.
#
# ## Next stop
#
# **14 · Your own pictures: how do you make it yours?** Everything that you need is there, except your data.
