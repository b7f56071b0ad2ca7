# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · U-Net denoiser: how do you undo it?
#
# In lesson 04 you broke pictures in a way that is known exactly. Now you build the network that repairs them. It gets
# noisy latents and a number that says how noisy they are, and it answers one question: which part of this is noise?
# You will have made the picture in which an untrained network gives back noise, a little training gives a coloured
# blur, and a lot of training gives back the scene.
#
# > **Goal.** Write the U-Net and its training from scratch, prove both equal to the package's, train one yourself, and
# > measure what more training does: to the loss, to a repaired picture, and to one drawn from nothing.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import copy
import dataclasses
import math

import ipywidgets
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import sd_v1
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons import lesson_05_kit as kit
from ldm_tutor.lessons import lesson_05_show as see
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.cost import cost_card
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.lessons.live_training import follow, shipped_band, steps_for
from ldm_tutor.losses.denoising import noise_loss, step_weight
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.blocks import ResBlock, SpatialTransformer
from ldm_tutor.nn.embeddings import TimeMLP, timestep_embedding
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.plots.figures import STYLE, bars, picture_grid, show
from ldm_tutor.training.learner import Learner
from ldm_tutor.widgets.live import live

torch.set_num_threads(min(2, torch.get_num_threads()))
plt.rcParams.update(STYLE)

# %% [markdown]
# ## Fact box

# %%
fact_box(5)

# %% [markdown]
# ## Where you are

# %%
course_map(5)

# %% [markdown]
# ## Something to repair
#
# Here are 64 held-out scenes with one object each, folded into latents (lesson 01) and noised (lesson 04). From the
# shipped model you take the autoencoder, the text tower for the sentences, and the schedule; the judge reads pictures.
# The shipped U-Net stays in its box today. You build your own.

# %%
pipe, judge = load_pipeline(), load_judge()
schedule, test = pipe.schedule, kit.one_object_scenes(64)
pictures = to_float(test.pictures)
x0, context = kit.clean_latents(pipe, pictures), pipe.embed(test.captions)
noise = see.noise_like(x0, seed=1)


def noised(t):
    """All latents at the same time, and that time once per picture."""
    times = torch.full((len(x0),), t)
    return schedule.add_noise(x0, noise, times), times


watched = (0, 100, 200, 400, 600)
figure = picture_grid(
    torch.cat([pictures[:1], *(pipe.decode(noised(t)[0][:1]) for t in watched)]),
    [test.captions[0], *(f"t = {t}" for t in watched)],
    scale=2,
)
show(figure, alt="A scene, and its latents decoded at five times: the object drowns in blotches on the way to t = 600.")
print("latents:", tuple(x0.shape), "| sentences:", tuple(context.shape))

# %% [markdown]
# ## Try first: guess the noise without learning anything
#
# How good must a network be to be of use? Give it some company that knows nothing. Four answers to *which part is
# noise*: nothing of it (all zeros); all of it (hand back $x_t$); a share of it, the one that is right on average,
# $\sqrt{1-\bar\alpha_t}\,x_t$; and the fine part, $x_t$ less its own 3 x 3 means. The score is the mean squared
# difference from the true noise, the **noise loss**.


# %%
def my_noise_loss(eps_hat, noise):
    return (eps_hat - noise).square().mean(dim=(1, 2, 3))  # one number per picture


ANSWERS = {
    "nothing": lambda x_t, a: 0 * x_t,
    "all": lambda x_t, a: x_t,
    "a share": lambda x_t, a: (1 - a) ** 0.5 * x_t,
    "the fine part": lambda x_t, a: x_t - F.avg_pool2d(x_t, 3, 1, 1, count_include_pad=False),
}
naive = {
    name: [float(my_noise_loss(guess(noised(t)[0], float(schedule.alpha_bar[t])), noise).mean()) for t in kit.TIMES]
    for name, guess in ANSWERS.items()
}
figure, axes = plt.subplots(figsize=(6, 3))
see.plot(axes, kit.TIMES, naive, xlabel="t", ylabel="noise loss", ylim=(0, 2))
show(figure, alt="Noise loss over t: nothing stays at 1, all and a share fall to 0, the fine part ends a bit higher.")
print("equal to the package's:", torch.allclose(my_noise_loss(0 * x0, noise), noise_loss(0 * x0, noise)))
print(f"nothing: {naive['nothing'][0]:.1f} at every t | all, at t = 999: {naive['all'][-1]:.1f}")

# %% [markdown]
# Keep two things in mind. The noise has variance 1, so an answer of nothing but zeros costs 1.0 at every $t$. A loss
# that stays at 1 means a network that says nothing. And at large $t$ the game is easy: nearly all *is* noise, so hand
# back what you got. A low loss there is nothing to be proud of.
#
# ## Step 1: what is asked, and what it is good for
#
# The loss of a latent diffusion model is this score, averaged over pictures, noises and times (Rombach et al. 2022,
# eq. 2; with a sentence, eq. 3):
#
# $$L = \mathbb E\big[\,\lVert \epsilon - \epsilon_\theta(x_t, t, c) \rVert^2\,\big]$$
#
# (As everybody does, the code takes the mean over the latent's numbers instead of their sum. That only rescales the
# loss.)
#
# {{notation x0 x_t t_step c noise eps_hat x0_hat}}
#
# Who knows the noise knows the picture. Solve the jump of lesson 04 for $x_0$, with the answer $\epsilon_\theta$ in the
# place of the true noise (DDPM eq. 15):
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\;\epsilon_\theta}{\sqrt{\bar\alpha_t}}$$
#
# That is the review's *subtract the predicted noise*. With the true noise it gives back the latents exactly. With an
# answer that is off, the error of $\hat x_0$ is the error of the noise times $\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$:


# %%
def subtract(x_t, eps_hat, t):
    a = float(schedule.alpha_bar[t])
    return (x_t - (1 - a) ** 0.5 * eps_hat) / a**0.5


print("with the true noise, exact:", torch.allclose(subtract(noised(400)[0], noise, 400), x0, atol=1e-4))
for t in (50, 400, 700, 999):
    a = float(schedule.alpha_bar[t])
    print(f"t = {t}: an error in the noise counts {((1 - a) / a) ** 0.5:.1f} times in the latents")
t, a = 400, float(schedule.alpha_bar[400])
guesses = [subtract(noised(t)[0][:1], guess(noised(t)[0], a)[:1], t) for guess in ANSWERS.values()]
figure = picture_grid(pipe.decode(torch.cat([x0[:1], *guesses])), ["clean", *ANSWERS], scale=2)
show(figure, alt="The clean scene, and what four blind answers leave of it at t = 400: blotches, grain, or a blur.")

# %% [markdown]
# > **Key idea.** Predicting the noise and predicting the picture are the same task in two units. At small $t$ a
# > careless answer does little harm; at $t = 999$ every error counts almost fifteen times.
#
# Here, at $t = 400$, the fine part does best, since subtracting it is a blur, and a blur is the oldest way to fight
# noise. But it blurs the ball as well as the noise. A better answer must look at the whole grid, know what scenes look
# like, and know how noisy this one is. These are the three things that you build now: convolutions at several sizes,
# weights that learn, and the time.
#
# ## Step 2: the time as a wave
#
# The network must know $t$, because the right answer depends on it. The plain way is one input number. Before you do
# that, look at another way, DDPM's idea, taken from the transformer (Vaswani et al. 2017, section 3.5): many waves,
# from fast to slow. This is the form that the code of Rombach et al. has; DDPM and the transformer order and space the
# waves a little differently.
#
# $$\omega_k = 10000^{-k/(d/2)}, \qquad \mathrm{wave}(t) = [\cos \omega_k t \mid \sin \omega_k t], \qquad
# k = 0 \dots d/2 - 1$$
#
# First as a loop, then at once:


# %%
def wave_loop(t, d):
    rows = []
    for each in t.tolist():
        angles = [each * 10000 ** (-k / (d // 2)) for k in range(d // 2)]
        rows.append([math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles])
    return torch.tensor(rows)


def wave(t, d):
    half = d // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half) / half)
    angles = t.float()[:, None] * freqs  # (b, 1) x (half,) -> (b, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


every_t = torch.arange(1000)
print("loop and vectorised agree:", torch.allclose(wave_loop(every_t, 24), wave(every_t, 24), atol=1e-3))
print("equal to the package's:", torch.allclose(wave(every_t, 24), timestep_embedding(every_t, 24), atol=1e-6))
show(see.wave_table(wave(every_t, 24)), alt="A table, t across, 24 waves down: of each half, fast on top, slow below.")

# %% [markdown]
# Each column of the table is one time. Fast waves tell neighbours apart, slow ones tell early from late, like the hands
# of a clock.
#
# And the bare number? Give both to the same small network and let it learn something that a block may well need: *wake
# up between t = 200 and 250, and rest elsewhere*. Same network, same 400 steps:

# %%
wanted = ((every_t >= 200) & (every_t < 250)).float()
inputs = {"t / 1000": every_t.float()[:, None] / 1000, "24 waves": wave(every_t, 24)}
learned = {name: see.learn_to_wake(each, wanted) for name, each in inputs.items()}
figure, axes = plt.subplots(figsize=(6, 2.6))
see.plot(axes, every_t, {"wanted": wanted} | learned, xlabel="t", ylabel="answer")
show(figure, alt="Wanted: a box between t = 200 and 250. Learned from the waves it is there, from t / 1000 it is not.")
left = {name: float((each - wanted).square().mean() / wanted.var()) for name, each in learned.items()}
print("share of the task not learned: t / 1000 above a half:", left["t / 1000"] > 0.5, end=" | ")
print("24 waves below a tenth:", left["24 waves"] < 0.1)

# %% [markdown]
# A network bends its answer slowly along a single input, so from the bare number it cannot be quick. Along the waves,
# two near times are already far apart. (The bare $t$ up to 999 has a second fault: so large an input throws the first
# layer off its scale.) Two linear layers then turn the wave into what the blocks want. That is the whole **time
# embedding**:


# %%
class MyTimeMLP(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.d, self.linear_1, self.linear_2 = d, nn.Linear(d, 4 * d), nn.Linear(4 * d, 4 * d)

    def forward(self, t):
        return self.linear_2(F.silu(self.linear_1(wave(t, self.d))))


mine, theirs = MyTimeMLP(24), TimeMLP(24)
mine.load_state_dict(theirs.state_dict())
print("equal to the package's on the same weights:", torch.allclose(mine(every_t), theirs(every_t), atol=1e-5))

# %% [markdown]
# ## Step 3: a residual block that is told the time
#
# The U-Net's brick. Norm, SiLU, convolution, twice; and the input is added at the end, so that the block only has to
# learn what to *change* (He et al. 2015). In the middle comes the time. One linear layer turns the time vector into one
# number per channel, and this number is added at every position:
#
# {{notation h_map t_emb}}


# %%
class MyResBlock(nn.Module):
    def __init__(self, c_in, c_out, time_dim, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_proj = nn.Linear(time_dim, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)  # a fresh block adds nothing to its shortcut

    def forward(self, x, t_emb):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_proj(F.silu(t_emb))[:, :, None, None]  # (b, c) -> (b, c, 1, 1)
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


theirs = see.shuffled(ResBlock(24, 48, time_dim=96, norm_groups=8, eps=1e-5))
mine, fresh = MyResBlock(24, 48, 96, 8), MyResBlock(24, 24, 96, 8)
mine.load_state_dict(theirs.state_dict())
x, t_emb = see.noise_like(torch.zeros(2, 24, 16, 16), 2), see.noise_like(torch.zeros(2, 96), 3)
print("equal to the package's on the same weights:", torch.allclose(mine(x, t_emb), theirs(x, t_emb), atol=1e-4))
print("a fresh block hands its input on:", torch.equal(fresh(x, t_emb), x))
change = mine.time_proj(F.silu(t_emb))
print("the time adds", tuple(change.shape), "numbers to a map of", tuple(theirs(x, t_emb).shape))

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.nn.blocks.ResBlock`.
#
# The review says that the time embedding *goes in as a residual connection*. Precisely: it is added to the feature map
# inside the residual branch. Like every addition of one vector, it says the same thing at every position. That is
# right for the time, which is the same everywhere. For words it would be wrong, and lesson 07 takes another way.
#
# ## Step 4: down, up, and across
#
# A convolution of 3 x 3 sees one neighbour in each direction. To know that this is a house, a position must see far.
# So the map is halved, and halved again: on the 4 x 4 map one step is as wide as four on the first. On the way up the
# map is doubled back. Coarser levels mostly have more channels, to pay for the lost positions.
#
# But whoever goes through 4 x 4 forgets *where exactly*. And noise is exact: each number of each position is its own.
# So the U-Net puts every map of the way down aside and lays it beside the map of the same size on the way up. These are
# the **skips** (Ronneberger et al. 2015, section 2):


# %%
class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Up(Down):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


figure = see.u_diagram(kit.CONFIG, side=x0.shape[-1])
show(figure, alt="A U of boxes: maps 16, 8 and 4 wide on the way down, the same on the way up, skips straight across.")
print("down:", tuple(Down(24)(x).shape), "| up:", tuple(Up(24)(x).shape))

# %% [markdown]
# ## Step 5: the whole U-Net
#
# Now put them together. A level has residual blocks and, where the configuration says so, attention behind each. At the
# bottom of the U is the *middle*: two blocks with one attention between them, always. Take the attention from the
# package for now; it is how the sentence comes in, and how distant positions look at each other. Lesson 07 opens it.
# With `attention=False` the U-Net is convolutions and time alone, and deaf to sentences.


# %%
class MyLevel(nn.Module):
    def __init__(self, config, channels, num_attention):  # how many of its blocks have attention behind them
        super().__init__()
        self.res_blocks = nn.ModuleList(
            MyResBlock(c_in, c_out, 4 * config.channels, config.norm_groups) for c_in, c_out in channels
        )
        self.transformers = nn.ModuleList(
            SpatialTransformer(c_out, num_heads=config.num_heads, context_dim=config.context_dim,
                               depth=1, norm_groups=config.norm_groups)
            for _, c_out in channels[:num_attention]
        )  # fmt: skip
        self.downsample = self.upsample = None

    def run(self, k, x, t_emb, context):
        x = self.res_blocks[k](x, t_emb)
        return self.transformers[k](x, context) if k < len(self.transformers) else x


# %% [markdown]
# The way down keeps a list, the way up takes from its end: last in, first out. Follow the widths: a block on the way up
# reads the map from below *and* one skip, so its input is as wide as both together.


# %%
class MyUNet(nn.Module):
    def __init__(self, config, attention=True, skips=True):
        super().__init__()
        widths, n, self.skips = [config.channels * m for m in config.channel_mult], config.num_res_blocks, skips
        self.time_mlp = MyTimeMLP(config.channels)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down, self.up, kept, width = nn.ModuleList(), nn.ModuleList(), [widths[0]], widths[0]
        for level, out in enumerate(widths):
            num_attention = (n + 1) * (attention and level in config.attention_levels)
            self.down.append(MyLevel(config, [(width, out)] + [(out, out)] * (n - 1), num_attention))
            kept += [out] * n
            if level < len(widths) - 1:
                self.down[-1].downsample = Down(out)
                kept.append(out)
            width = out
        self.mid = MyLevel(config, [(width, width)] * 2, int(attention))
        for level in reversed(range(len(widths))):
            num_attention, channels = (n + 1) * (attention and level in config.attention_levels), []
            for _ in range(n + 1):
                channels.append((width + kept.pop(), widths[level]))
                width = widths[level]
            self.up.append(MyLevel(config, channels, num_attention))
            self.up[-1].upsample = Up(width) if level > 0 else None
        self.norm_out = nn.GroupNorm(config.norm_groups, width)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x, t, context=None):
        return run_unet(self, x, t, context)


# %%
def run_unet(unet, x, t, context):
    t_emb, x = unet.time_mlp(t), unet.conv_in(x)
    kept = [x]
    for level in unet.down:
        for k in range(len(level.res_blocks)):
            x = level.run(k, x, t_emb, context)
            kept.append(x)
        if level.downsample is not None:
            x = level.downsample(x)
            kept.append(x)
    for k in range(2):
        x = unet.mid.run(k, x, t_emb, context)
    for level in unet.up:
        for k in range(len(level.res_blocks)):
            skip = kept.pop()
            x = level.run(k, torch.cat([x, skip if unet.skips else 0 * skip], dim=1), t_emb, context)
        x = x if level.upsample is None else level.upsample(x)
    return unet.conv_out(F.silu(unet.norm_out(x)))


theirs = see.shuffled(UNet(kit.CONFIG))
mine = MyUNet(kit.CONFIG)
mine.load_state_dict(theirs.state_dict())
with torch.inference_mode():
    x_t, times = noised(400)
    agree = torch.allclose(mine(x_t[:4], times[:4], context[:4]), theirs(x_t[:4], times[:4], context[:4]), atol=1e-3)
    silent = MyUNet(kit.CONFIG)(x_t[:4], times[:4], context[:4])
print("equal to the package's on the same weights:", agree)
print("a fresh U-Net answers nothing but zeros, so its loss is", f"{float(noise_loss(silent, noise[:4]).mean()):.1f}")
plain = MyUNet(kit.CONFIG, attention=False)
for name, net in {"with attention": mine, "convolutions and time only": plain}.items():
    print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")

# %% [markdown]
# > **Check.** Equal, weight for weight and number for number. From here on this is `ldm_tutor.models.unet.UNet`.
#
# ## Step 6: one step of training, and the average of all steps
#
# One step of training: take a batch of pictures at random; draw a noise and a time for each of them; noise; guess;
# compare; go a little downhill. Three habits belong to it. The learning rate rises at first and then falls along half a
# cosine. Gradients that are too long are cut. And a second copy of the weights, the **EMA** (exponential moving
# average), follows the first one slowly:
#
# $$\bar\theta \leftarrow \mu\,\bar\theta + (1-\mu)\,\theta,
# \qquad \mu = \min\!\big(\mu_{\max},\ \tfrac{1+n}{10+n}\big)$$
#
# {{notation theta ema decay}}
#
# The raw weights jump about, since each batch pulls them elsewhere. The average smooths the jumps out, and it is what
# you draw with. The minimum lets it run quickly while $n$, the number of steps, is small (as the code of Rombach et al.
# does).


# %%
@torch.no_grad()
def blend(average, net, decay):
    for old, new in zip(average.parameters(), net.parameters(), strict=True):
        old.copy_(decay * old + (1 - decay) * new)


class MyLearner:
    def __init__(self, net, peak_lr=2e-3, warmup=20, decay=0.999):
        self.net, self.ema, self.n = net, copy.deepcopy(net), 0
        self.peak_lr, self.warmup, self.decay = peak_lr, warmup, decay
        self.optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), weight_decay=0.01)

    def step(self, progress):
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        rise, fall = min(1, (self.n + 1) / self.warmup), 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2
        self.optimizer.param_groups[0]["lr"] = self.peak_lr * rise * fall
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.n += 1
        blend(self.ema, self.net, min(self.decay, (1 + self.n) / (10 + self.n)))


# %% [markdown]
# And the loop around it. It is a generator: it hands out one loss per step, so that you can watch.

# %%
latents = kit.clean_latents(pipe, to_float(render_scenes(1000, "train", seed=5).pictures))


def train(learner, num_steps, seed, slow=None):
    rng = torch.Generator().manual_seed(seed)
    for step in range(num_steps):
        rows = torch.randint(len(latents), (32,), generator=rng)
        t = torch.randint(schedule.num_steps, (32,), generator=rng)
        eps = torch.randn(32, *latents.shape[1:], generator=rng)
        x_t = schedule.add_noise(latents[rows], eps, t)
        loss = noise_loss(learner.net(x_t, t), eps).mean()
        loss.backward()
        learner.step(step / num_steps)
        if slow is not None:
            blend(slow, learner.net, 0.999)  # an average that starts slow, to compare
        yield loss.item()


torch.manual_seed(0)
start = MyUNet(kit.CONFIG, attention=False)
package = Learner(copy.deepcopy(start), peak_lr=2e-3, device=torch.device("cpu"), dtype=torch.float32, warmup=20)
mine = MyLearner(start)
runs = [torch.tensor(list(train(learner, 8, 0))) for learner in (mine, package)]
print("eight steps, the same losses:", torch.allclose(*runs, atol=1e-3))
for name, (a, b) in {"raw": (mine.net, package.net), "EMA": (mine.ema, package.ema)}.items():
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    print(f"{name} weights equal to the package's:", all(torch.allclose(p, q, atol=1e-4) for p, q in pairs))

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.training.learner.Learner`. Around it, `ldm_tutor.training.loop` adds what
# > a long run needs: checkpoints, a log, a way to stop and go on.
#
# ## Train your own
#
# Your U-Net without attention, on 1,000 scenes. The band holds five earlier runs with other seeds. `"full"` takes ten
# times as many steps; `"load"` trains nothing and takes the shipped training instead, which you meet below.

# %%
cost_card("150 steps of 32 latents", seconds=12)

# %% tags=["band"]
MODE = "quick"
SEED = 0
num_steps = steps_for(MODE, quick=150, full=1500)
torch.manual_seed(SEED)
mine = MyLearner(MyUNet(kit.CONFIG, attention=False))
slow = copy.deepcopy(mine.net)
if num_steps:
    losses = follow(
        train(mine, num_steps, SEED, slow),
        num_steps,
        alt="Your loss falls steeply from 1 to about 0.3, then slowly to 0.2, inside a narrow band of earlier runs.",
        band=shipped_band("unet_denoiser"),
        marks={"an answer of nothing": 1.0},
    )
else:
    mine.net = mine.ema = slow = kit.load_snapshots()[kit.STOPS[-1]]


# %%
@torch.inference_mode()
def repair(net, t, rows=slice(None)):
    """The latents that are left when what `net` takes for noise is subtracted."""
    x_t, times = (each[rows] for each in noised(t))
    return subtract(x_t, net(x_t, times, context[rows]), t)


def held_out(net, times=(100, 300, 500, 700, 900)):
    """Noise loss on the 64 held-out scenes, averaged over some times."""
    return sum(float(kit.losses_at(net, x0, noise, t, context, schedule).mean()) for t in times) / len(times)


def in_rows(*columns):
    """Latents in columns, decoded, in the order in which a grid is read."""
    return pipe.decode(torch.stack(columns, dim=1).flatten(0, 1))


two, three = slice(0, 2), slice(0, 3)
cells = in_rows(noised(300)[0][two], repair(mine.ema, 300, two), x0[two])
figure = picture_grid(cells, ["t = 300", "repaired by yours", "clean"] * 2, scale=2)
show(figure, alt="Two scenes: noised to t = 300, repaired by your U-Net with soft outlines, clean.")
blur = sum(naive["the fine part"][2:-1:2]) / 5  # the same five times
print(f"held-out loss: the blur {blur:.1f} | yours below 0.2:", held_out(mine.ema) < 0.2)

# %% [markdown]
# A few seconds of training, and it repairs scenes that it has never seen.
#
# ## A failure on purpose: cut the skips
#
# Same network, same number of weights, same batches, same steps. Only the maps of the way down are replaced by zeros
# when the way up asks for them:

# %%
torch.manual_seed(0)
cut = MyLearner(MyUNet(kit.CONFIG, attention=False, skips=False))
for _ in train(cut, num_steps or 150, 0):
    pass
cells = in_rows(noised(300)[0][two], repair(mine.ema, 300, two), repair(cut.ema, 300, two))
figure = picture_grid(cells, ["t = 300", "with skips", "without"] * 2, scale=2)
show(figure, alt="Two scenes at t = 300: with skips the noise is gone, without them much of it is still there.")
figure, axes = plt.subplots(figsize=(6, 2.8))
by_t = {name: [held_out(each.ema, (t,)) for t in kit.TIMES] for name, each in {"with": mine, "without": cut}.items()}
see.plot(axes, kit.TIMES, by_t, xlabel="t", ylabel="noise loss", ylim=(0, 1.1))
show(figure, alt="Noise loss over t: with skips it falls to nearly 0, without them it stays near 1 at every t.")
print("held-out loss without skips above 0.8, with them below 0.2:", held_out(cut.ema) > 0.8, held_out(mine.ema) < 0.2)

# %% [markdown]
# Nothing crashes, and hardly anything is learned. Through the map of 4 x 4 positions there is no easy way for
# 16 x 16 x 4 independent numbers, and noise is exactly that. Look at large $t$, where handing back the input would do:
# not even that works, since there is no way across. A picture can be squeezed through the bottom, as lesson 01 does it.
# Its noise cannot.
#
# ## The average, and when it fails
#
# Your training cell kept three sets of weights: the raw ones, the EMA, and an average with $\mu = 0.999$ from the first
# step on, without the minimum. (With `"load"` it has only one, and the three bars are equal.) Their losses on the
# held-out scenes:

# %%
scores = {"raw": held_out(mine.net), "EMA": held_out(mine.ema), "without the minimum": held_out(slow)}
figure = bars(list(scores), list(scores.values()), form="{:.2f}", title="held-out noise loss")
show(figure, alt="Bars: raw weights and EMA are about equally low, the average without the minimum is far higher.")
print("the EMA is within a tenth of the raw weights:", scores["EMA"] < 1.1 * scores["raw"])
print("without the minimum, more than twice as high:", scores["without the minimum"] > 2 * scores["raw"])
print(f"after 150 steps, 0.999 to the power of 150: {0.999**150:.0%} of it are still the first, random weights")

# %% [markdown]
# > **Careful.** A run whose samples stay noise although its loss falls may have nothing wrong but this: an average that
# > is younger than its memory. The opposite gain, an average that is better than the raw weights, is small in a short
# > run. You will see it below, in a longer one.
#
# ## Few steps, many steps
#
# Now the experiment for which this lesson exists. The review says: after few training steps, the decoded prediction
# looks like noise; after many, it looks like the input picture. A training that is long enough does not fit into a
# lesson, so we made it once, with the package's own U-Net (attention and sentences included), its `DenoiserStage` and
# its loop, in about half an hour on one busy CPU core:
#
#     python -m ldm_tutor.lessons.lesson_05_kit
#
# The EMA was kept after 25, 100, 400, 1,600 and 6,400 steps, and you have it before the first step too. Three scenes
# that the network has never seen, noised to $t = 600$; the predicted noise is subtracted, and the rest decoded:

# %%
snapshots = kit.load_snapshots()  # number of training steps: U-Net
titles = [f"{steps:,} steps" for steps in snapshots]
figure = picture_grid(in_rows(*(repair(net, 600, three) for net in snapshots.values())), titles * 3, scale=2)
show(figure, alt="Three noised scenes, repaired after 0 to 6,400 training steps: noise, then a blur, then the scene.")
error = {steps: float((repair(net, 600) - x0).square().mean()) for steps, net in snapshots.items()}
ladder = list(error.values())
print("from stop to stop the error in the latents gets smaller:", sorted(ladder, reverse=True) == ladder)

# %% [markdown]
# There it is. An untrained U-Net answers 0, so nothing is subtracted, $x_t$ is only rescaled, and the decoder shows the
# noise. At 100 steps hardly anything has changed. Then come the large quiet areas, sky and ground; then an object
# without a shape; and last the shape.
#
# Look closely at the last column, though. It is *like* the input, and not the input. At $t = 600$ the details are gone
# (lesson 04), and the network puts in what scenes of this sentence have there on average.
#
# The same U-Nets can draw. Take the sentences of the same three scenes, start from pure noise, and subtract in twelve
# small steps instead of one. How that works is lesson 06, and the guidance of 3 that it uses is lesson 08:

# %%
pens = [dataclasses.replace(pipe, unet=net) for net in snapshots.values()]
drawn = [pen.draw(test.captions[:3], [0, 1, 2], num_steps=12, guidance=3.0, sampler="dpm++") for pen in pens]
figure = picture_grid(torch.stack(drawn, dim=1).flatten(0, 1), titles * 3, scale=2)
show(figure, alt="Three sentences drawn from pure noise after 0 to 6,400 steps: noise, then backgrounds, then objects.")
print(f"parameters: this U-Net {see.count(snapshots[0]):,}, the shipped one {see.count(pipe.unet):,}")

# %% [markdown]
# Backgrounds first, colours next, shapes last, and after 6,400 steps still crude ones. This U-Net is a tenth of the
# shipped one and has learned for a fraction of its time. Note the fourth column: at $t = 600$ the same network gave
# back every background and put something where the object is. From pure noise it gets two of the three backgrounds at
# best, and no object. Where nothing is left to see, there is most to know.
#
# ## What the loss says, and what it hides
#
# The U-Net at each of these step counts was measured on 128 held-out sentences with one object: the loss at each $t$,
# and what the judge reads from 128 drawn pictures. First the loss over $t$, and how much cleaner the latents get, in
# decibels. Doing nothing leaves the signal-to-noise ratio of lesson 04, so this is the curve of 0 steps.

# %%
report = kit.load_measured()
rows = {row["steps"]: row for row in report["rows"] if row["weights"] == "ema"}
figure = see.by_time({n: row["loss_by_t"] for n, row in rows.items()}, kit.TIMES, schedule)
show(figure, alt="Left, loss over t falls with training; right, decibels over t rise with training, most at large t.")
at_100, at_900 = (kit.TIMES.index(t) for t in (100, 900))
first, last, weight = rows[0]["loss_by_t"], rows[6400]["loss_by_t"], step_weight(schedule.alpha_bar)
print("6,400 steps: the loss at t = 100 is more than ten times that at t = 900:", last[at_100] > 10 * last[at_900])
print("and yet it gained more at t = 900:", last[at_900] / first[at_900] < last[at_100] / first[at_100])
print(f"weight of the loss in the training of these U-Nets: {weight[100]:.1f} at t = 100, {weight[900]:.0f} at t = 900")

# %% [markdown]
# The two panels tell two stories. On the left, all that is left to learn seems to lie at small $t$; at large $t$ the
# loss is nearly 0 from 400 steps on. On the right, the gain is largest just there. Both are true: at $t = 900$ the
# U-Net of 400 steps has a loss of one seventieth. A squared error is multiplied by the *square* of the factor of step
# 1, here about 70: still an error as large as the latents, 0 dB. (And at $t = 0$ the loss stays near
# 1 to the end. The noise there is so faint that nobody can see it, or needs to.)
#
# So the plain loss looks mostly at steps that hardly matter to the eye, and little at those where the layout of a
# picture is decided. Your own training above was plain. The package's trainings, such as the one behind these curves,
# weigh each step, so that the same error *in the clean latents* costs about the same at every $t$ (`step_weight`). The
# logs show the plain loss all the same, so that 1 stays the mark of saying nothing.
#
# In pictures: PSNR of the repaired scene against the clean one, beside the same without the U-Net.

# %%
times = (50, 200, 400, 600, 800)
clean = pipe.decode(x0[:32])
nothing, repaired = (
    [float(psnr(pipe.decode(repair(net, t, slice(0, 32))), clean).mean()) for t in times]
    for net in (snapshots[0], snapshots[6400])
)
figure, axes = plt.subplots(figsize=(6, 2.8))
see.plot(axes, times, {"repaired": repaired, "doing nothing": nothing}, xlabel="t", ylabel="PSNR in dB")
show(figure, alt="PSNR over t: repaired scenes are above the untouched ones at every t, and both fall towards large t.")
gain = [a - b for a, b in zip(repaired, nothing, strict=True)]
print("the U-Net gains at every t:", min(gain) > 0, "| more than 6 dB, half the error, at t = 600:", gain[3] > 6)

# %%
curves = {each: {kind: kit.measured_curve(report, kind, each) for kind in kit.KINDS} for each in kit.ASPECTS}
figure = see.by_training(curves)
show(figure, alt="Over training steps, EMA and raw: the loss falls early; right pictures come late, after 400 steps.")
for n, row in rows.items():
    kind, right = (row[what]["value"] for what in ("object", "all"))
    print(f"{n:,} steps: loss {row['loss']:.2f}, right kind {kind:.0%}, all right {right:.0%}")
(steps, ema), (_, raw) = (curves["loss"][kind] for kind in kit.KINDS)
print("raw loss less EMA loss:", {n: round(b - a, 3) + 0.0 for n, a, b in zip(steps, ema, raw, strict=True)})

# %% [markdown]
# Compare the columns. From 400 to 6,400 steps the loss goes from 0.20 to 0.10, which looks like the tail of a finished
# training. In the same steps, pictures that show all of their sentence go from none to seven of ten. The number that
# you watch while training is not the number that you want. So keep a few sentences and seeds, and draw them now and
# then.
#
# And the EMA? At 100 steps it lags behind the raw weights. At 1,600 it is ahead of them in the loss, by 0.004. At 6,400
# nothing is left of the lead: by then the learning rate has fallen to almost nothing, the raw weights hardly jump any
# more, and there is nothing to smooth. In the judge's counts the two cannot be told apart with 128 pictures. The
# average earns its keep where the rate stays high, as it does in the paper's trainings.
#
# > **In the paper.** Rombach et al. (2022) train with $t$ uniform and every step weighing the same, as in eq. 2. Most
# > of their configurations take the squared difference; those for churches, boxes, semantic maps and the large
# > inpainting model take the absolute one (an answer of zeros then costs $\sqrt{2/\pi} \approx 0.80$). Their EMA has
# > the minimum too, with $\mu_{\max} = 0.9999$. The text-to-image model learns at a rate of $10^{-4}$ with batches of
# > 680 for 390,000 steps; each of our 6,400 steps has seen 32 latents.
#
# ## Move the training, and the time
#
# > **Try it.** Put the time to 600 and drag the steps from left to right: sky, then colour, then shape. Then keep the
# > steps at 6,400 and raise the time. Where does the repaired scene stop being the true one, though it stays a good
# > scene?

# %%
grid_t = (100, 200, 300, 400, 500, 600, 700, 800, 900)
made = {(n, t): pipe.decode(repair(net, t, three)) for n, net in snapshots.items() for t in grid_t}
before = {t: pipe.decode(noised(t)[0][three]) for t in grid_t}
truth = pipe.decode(x0[three])


def look(steps, t, scene):
    panels = [before[t][scene], made[steps, t][scene], truth[scene]]
    return picture_grid(panels, [f"t = {t}", f"{steps:,} steps", "clean"], scale=3)


def describe(steps, t, scene):
    decibels = float(psnr(made[steps, t], truth)[scene])
    return f"{test.captions[scene]}; after {steps:,} training steps, at t = {t}: PSNR {decibels:.0f} dB"


ALT = "A scene noised to the time on the slider, repaired after the chosen number of training steps, and clean."
wide = {"description_width": "initial"}
sliders = {
    name: ipywidgets.SelectionSlider(options=options, value=value, description=name, style=wide)
    for name, options, value in (("steps", list(snapshots), 400), ("t", grid_t, 600))
}
live(look, ALT, caption=describe, **sliders, scene=(0, 2, 1))

# %% [markdown]
# Without a running kernel, here is the second scene after 0, 400, 1,600 and 6,400 steps, at three times. Look at the
# last picture: at $t = 800$ even the best one does not know any more where the car was.

# %%
shown = [(n, t) for t in (400, 600, 800) for n in (0, 400, 1600, 6400)]
figure = picture_grid([made[each][1] for each in shown], [f"{n:,}, t = {t}" for n, t in shown], 4, scale=2)
show(figure, alt="A green car on a beach: training steps from left to right, times from top down.")

# %% [markdown]
# ## At full size
#
# > **At full size.** Stable Diffusion's U-Net is this class with other numbers: {{full channels}} channels times
# > {{full multipliers}}, {{full blocks}} residual blocks per level, attention on the {{full attention levels}} finest,
# > and sentences of width {{full width}}. Build it without memory for its weights, and count.

# %%
with torch.device("meta"):
    full = UNet(sd_v1().unet)
print(f"parameters: {sum(p.numel() for p in full.parameters()):,}")
figure, parts = see.parameter_bars(full)
show(figure, alt="Bars per level, way down and way up: the coarse levels of 1,280 channels hold most of the weights.")
print(f"in residual blocks {parts['residual blocks']:.0%}, in attention {parts['attention']:.0%}", end=", ")
print(f"in the levels with 1,280 channels {parts['widest levels']:.0%}")

# %% [markdown]
# The coarse levels hold most of the weights, and do their work on few positions; the finest level holds few and works
# on 4,096 positions. So the weights sit at the bottom of the U, and much of the work at its top. Residual blocks hold
# twice as many as attention.
#
# Everything else is what you wrote: the same block, the same wave (of width 320), the same order of skips. Lesson 12
# fills such a U-Net with published weights and proves it equal to another library's.
#
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("unet_denoiser.skip_channels")

# %%
my_channels = ...
check.unet_denoiser.skip_channels(my_channels)

# %%
hint("unet_denoiser.skip_channels")

# %%
exercise("unet_denoiser.time_wave")


# %%
def my_time_wave(t, dim):
    """t: (b,), whole numbers; dim: even. Return (b, dim): cosines, then sines."""
    ...


check.unet_denoiser.time_wave(my_time_wave)

# %%
hint("unet_denoiser.time_wave")

# %%
exercise("unet_denoiser.res_block")


# %%
def my_res_block(block, x, t_emb):
    """x: (b, c_in, h, w); t_emb: (b, time). Return (b, c_out, h, w)."""
    ...


check.unet_denoiser.res_block(my_res_block)

# %%
hint("unet_denoiser.res_block")

# %%
exercise("unet_denoiser.ema")


# %%
def my_ema(average, current, n, decay=0.999):
    """Lists of tensors; n steps are done. Return the new averages. Something is wrong here."""
    keep = max(decay, (1 + n) / (10 + n))
    return [(1 - keep) * old + keep * new for old, new in zip(average, current, strict=True)]


check.unet_denoiser.ema(my_ema)

# %%
hint("unet_denoiser.ema")

# %%
exercise("unet_denoiser.worth_training")


# %%
def named(net, t):
    """In how many of the 64 repaired scenes does the judge find what the sentence names?"""
    found = attribute_accuracy(read_pictures(judge, pipe.decode(repair(net, t))), [parse(s) for s in test.captions])
    return round(found["object"].value * 64)


my_t = ...
check.unet_denoiser.worth_training(my_t)

# %%
hint("unet_denoiser.worth_training")

# %%
solution("unet_denoiser.ema")

# %% [markdown]
# ## Recap
#
# - The U-Net is shown $x_t$, $t$ and a sentence, and answers with the noise. The loss is the squared difference; an
#   answer of zeros costs 1.
# - Subtract the answer and rescale, and you have its guess of the clean latents.
# - The time goes in as waves, then as one number per channel, added inside every residual block.
# - Halving lets it see far, skips keep it exact. Without them noise cannot get through.
# - Draw with the average of the weights, and let the average be young at first.
# - After few steps the decoded guess looks like noise, after many like the input; how alike depends on $t$.
# - The loss is small where the task is easy. Look at pictures, or let the judge look.
#
# ## Common mistakes
#
# - *A loss that stays at 1.* The network answers 0. Look at the learning rate, and whether anything is detached.
# - *Taking the loss for the quality.* It falls at once, and goes on falling by hairs while the pictures still get
#   better.
# - *One $t$ for the whole batch, or the same noise twice.* Both run, both teach less.
# - *Skips in the wrong order.* The way up takes the last one first. With equal widths nothing complains.
# - *Sines before cosines* with weights that learned it the other way.
# - *Drawing with raw weights, or with an average that is too slow for its run.*
# - *The decoder's picture of noise taken for the noise.* It is what the decoder makes of it.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Ho, Jain, Abbeel: *Denoising Diffusion Probabilistic Models*, 2020 (arXiv 2006.11239). Section 3 and appendix B: the
#   noise as target, the U-Net, the time embedding, the EMA.
# - Rombach, Blattmann, Lorenz, Esser, Ommer: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022
#   (arXiv 2112.10752). Section 3.2: the same on latents.
# - Ronneberger, Fischer, Brox: *U-Net: Convolutional Networks for Biomedical Image Segmentation*, 2015 (arXiv
#   1505.04597). Where the U comes from.
# - He, Zhang, Ren, Sun: *Deep Residual Learning for Image Recognition*, 2015 (arXiv 1512.03385). Why blocks add.
# - Vaswani et al.: *Attention Is All You Need*, 2017 (arXiv 1706.03762). Section 3.5 has the waves.
# - Dhariwal, Nichol: *Diffusion Models Beat GANs on Image Synthesis*, 2021 (arXiv 2105.05233). What the details of this
#   U-Net are worth, one by one.
#
# ## Next stop
#
# **06 · Sampling: how do you draw from nothing, and how fast?** One subtraction gives a blur at large $t$. You find out
# how many small ones it takes, and how few.
