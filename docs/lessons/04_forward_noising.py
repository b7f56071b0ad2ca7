# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Forward noising: how do you destroy a picture gently?
#
# A diffusion model learns to repair. Before it can learn that, something has to be broken, over and over, in a way
# that is known exactly. In this lesson you break pictures: a thousand small steps from a house with a bicycle to
# noise, and one formula that makes all thousand at once. You will have made the picture in which a scene dissolves,
# once as pixels and once as latents, and you will know which part of it goes first, which part never quite goes, and
# why that is a problem.
#
# > **Goal.** Write the noise schedules and the closed form of DDPM, prove that a thousand steps and one jump are the
# > same thing, and measure what noise takes away, in which order.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import math

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from ldm_tutor.config import ScheduleConfig
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.data.scenes.draw import draw
from ldm_tutor.data.scenes.requests import ObjectRequest, Request
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.lessons.lesson_04_judges import PAIR
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.plots.figures import STYLE, picture_grid, show, signed_map
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.sampling.steps import ddpm_step
from ldm_tutor.schedule import NoiseSchedule, make_betas
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve
from ldm_tutor.widgets.live import live

torch.set_num_threads(min(2, torch.get_num_threads()))
plt.rcParams.update(STYLE)


def noise_like(x, seed):
    """Standard normal noise of the shape of x, the same for the same seed."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def plot(axes, x, curves, **labels):
    """Draw named curves, told apart by colour and by line."""
    for (name, y), line in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(x, y, line, label=name)
    axes.set(**labels)
    axes.legend()


# %% [markdown]
# ## Fact box

# %%
fact_box(4)

# %% [markdown]
# ## Where you are

# %%
course_map(4)

# %% [markdown]
# ## Something to destroy
#
# One scene will be with you through the lesson, a red bicycle in front of a blue house. Beside it stand 99 held-out
# scenes, so that you can count. You need two networks of the shipped model: the autoencoder, which folds a picture
# into latents (lesson 01), and the judge, which reads objects and backgrounds from a picture.

# %%
autoencoder = load_model(resolve() / "autoencoder.safetensors", "autoencoder")
judge = load_judge()
test = render_scenes(99, "test")
truth = [PAIR, *test.scenes]
pair = to_float(torch.from_numpy(draw(PAIR, 64)).permute(2, 0, 1)[None])
pictures = torch.cat([pair, to_float(test.pictures)])
with torch.inference_mode():
    latents = autoencoder.to_latents(pictures, torch.Generator().manual_seed(0))
show(
    picture_grid(pictures[:6], titles=["a red bicycle in front of a blue house", *test.captions[:5]], scale=2),
    alt="Six scenes with their sentences: the bicycle in front of the house, and five held-out ones.",
)
print("pictures:", tuple(pictures.shape), "| latents:", tuple(latents.shape))

# %% [markdown]
# The latents come with a spread (standard deviation) of 1, because the autoencoder multiplies them by its scale
# factor. The pictures run from -1 to 1, with a smaller spread. To compare the two fairly, give the pictures the same
# unit: subtract their mean, divide by their spread. We call the result `pixels`.

# %%
center, spread = pictures.mean(), pictures.std()
pixels = (pictures - center) / spread


def as_pictures(x):
    """Turn pixels (b, 3, 64, 64) or latents (b, 4, 16, 16) into pictures to look at."""
    if x.shape[1] == 3:
        return x * spread + center
    with torch.inference_mode():
        return autoencoder.to_pictures(x)


for name, x in {"pictures": pictures, "pixels": pixels, "latents": latents}.items():
    print(f"spread of the {name}: {float(x.std()):.2f}")

# %% [markdown]
# ## Try first: fade to grey
#
# How would you turn a picture into noise without reading a paper? Probably like a film that fades from one scene to
# the next: a little less of the picture, a little more of the noise, in a straight line. Try it.

# %%
def fade(x0, noise, s):
    """The naive way: a straight line from the picture (s = 0) to the noise (s = 1)."""
    return (1 - s) * x0 + s * noise


noise = noise_like(pixels, seed=1)
shares = [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]
faded = torch.cat([fade(pixels[:1], noise[:1], s) for s in shares])
show(
    picture_grid(as_pictures(faded), titles=[f"s = {s}" for s in shares], columns=7, scale=2),
    alt="The bicycle scene fades into coloured noise in seven pictures; the ones in the middle are paler.",
)
for s in shares:
    print(f"s = {s}: variance {float(fade(pixels, noise, s).var()):.2f}")

# %% [markdown]
# It ends in noise, and yet something is wrong: the middle is pale. Picture and noise both have variance 1, but the
# mixture sags to half of it. The reason is a rule that you will use all through this lesson: for independent things,
# *variances* add, and a factor in front counts squared. So the variance here is $(1-s)^2 + s^2$, which is
# $\tfrac14 + \tfrac14$ in the middle.
#
# Why care? One network will have to repair all of these pictures. If their contrast goes down and up again along the
# way, it must learn to deal with the contrast too. The remedy is cheap: let the *squares* of the two weights add up
# to 1.

# %%
s = torch.linspace(0, 1, 101)
figure, axes = plt.subplots(figsize=(5.2, 2.8))
curves = {"weights 1 - s and s": (1 - s) ** 2 + s**2, "weights √(1 - s) and √s": (1 - s) + s}
plot(axes, s, curves, xlabel="s", ylabel="variance", ylim=(0, 1.1))
show(figure, alt="Variance over s: the straight fade sags to 0.5 at s = 0.5, the weights with roots stay at 1.")

# %% [markdown]
# > **Key idea.** $x = a\,x_0 + b\,\epsilon$ with $a^2 + b^2 = 1$ keeps the variance at 1, all the way from picture to
# > noise. Everything that follows is a choice of how fast $a$ goes down.
#
# ## Step 1: one small step
#
# DDPM (Ho et al. 2020) destroys a picture in many small steps. Each shrinks what is there by a hair and adds a hair
# of fresh noise (their eq. 2):
#
# $$x_t = \sqrt{1-\beta_t}\;x_{t-1} + \sqrt{\beta_t}\;\epsilon, \qquad \epsilon \sim \mathcal N(0, I)$$
#
# | symbol | in the code | meaning |
# |---|---|---|
# | $x_0$ | `x0` | the clean pixels or latents |
# | $x_t$ | `x_t` | the same after noising, $t$ from 0 to 999 |
# | $\beta_t$ | `betas[t]` | the variance that step $t$ adds |
# | $\epsilon$ | `noise` | standard normal noise |
# | $\bar\alpha_t$ | `alpha_bar[t]` | what is left of the picture's variance; you meet it in step 3 |
#
# The squares of the two weights add up to 1, as they should. Take 300 steps with the same small $\beta$ on the
# latents, and look at some of them through the decoder:

# %%
def one_step(x, beta, rng):
    """Shrink a little, add a little noise: DDPM eq. 2."""
    return math.sqrt(1 - beta) * x + math.sqrt(beta) * torch.randn(x.shape, generator=rng)


x, seen, rng = latents, [], torch.Generator().manual_seed(1)
for step in range(1, 301):
    x = one_step(x, 0.01, rng)
    if step in (1, 10, 30, 100, 200, 300):
        seen.append(x[:1])
        print(f"after {step} steps: variance {float(x.var()):.1f}")
titles = [f"{n} steps" for n in (1, 10, 30, 100, 200, 300)]
show(
    picture_grid(as_pictures(torch.cat(seen)), titles=titles, scale=2),
    alt="The scene after 1, 10, 30, 100, 200 and 300 small noise steps on its latents: it dissolves into blotches.",
)

# %% [markdown]
# > **Check.** The variance is 1.0 after every number of steps. No sagging.
#
# The blotches at the end are what the decoder makes of noise. It has never seen any in training, so take its
# pictures of noisy latents as a window with a flaw, not as the latents themselves. You will see both below.
#
# ## Step 2: how big a step?
#
# A constant $\beta$ is one choice among many. The list of all $\beta_t$ is the **noise schedule**. DDPM lets
# $\beta_t$ grow in a straight line. Write that as a loop first, then in one line:

# %%
def linear_loop(first, last, n=1000):
    """The linear schedule, one beta after the other."""
    betas = []
    for t in range(n):
        betas.append(first + (last - first) * t / (n - 1))
    return torch.tensor(betas, dtype=torch.float64)


in_one_line = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
print("loop and line agree:", torch.allclose(linear_loop(1e-4, 0.02), in_one_line))

# %% [markdown]
# Two more schedules are in wide use. *Scaled linear* draws the straight line through $\sqrt{\beta_t}$ and squares it
# afterwards; Stable Diffusion and this course use it. *Cosine* (Nichol and Dhariwal 2021, eq. 17) starts from the
# other end: it says how much of the picture should be left at each time, as a squared cosine, and gets each $\beta_t$
# from the ratio of two neighbours. Its last ratio would be 0, so $\beta$ is cut at 0.999.

# %%
def my_betas(kind, first=0.00085, last=0.012, n=1000):
    """All betas of one schedule, in double precision."""
    if kind == "linear":
        return torch.linspace(first, last, n, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2
    at_time = torch.arange(n + 1, dtype=torch.float64) / n
    left = torch.cos((at_time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - left[1:] / left[:-1]).clamp(max=0.999)


RANGES = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "cosine": (0.00085, 0.012)}
for kind, (first, last) in RANGES.items():
    theirs = make_betas(ScheduleConfig(kind=kind, beta_start=first, beta_end=last))
    print(f"{kind}: equal to the package's:", torch.allclose(my_betas(kind, first, last), theirs))

# %%
t_axis = torch.arange(1000)
figure, axes = plt.subplots(figsize=(5.6, 2.8))
curves = {kind: my_betas(kind, *RANGES[kind]) for kind in RANGES}
plot(axes, t_axis, curves, xlabel="t", ylabel="beta", yscale="log")
show(figure, alt="Three rising curves of beta over t on a logarithmic axis; cosine shoots up to almost 1 at the end.")

# %% [markdown]
# ## Step 3: a thousand steps in one
#
# Training needs pictures at random times $t$. Walking there step by step would take up to a thousand additions of
# noise for each. Luckily you can jump. Follow the variances through two steps. Write $\alpha_t = 1 - \beta_t$. The
# first step leaves the picture with the weight $\sqrt{\alpha_1}$, the second multiplies it by $\sqrt{\alpha_2}$. The
# noise of the first step is shrunk by the second, and the sum of two independent Gaussian noises is again Gaussian,
# with variance
#
# $$\alpha_2\,(1-\alpha_1) + (1-\alpha_2) = 1 - \alpha_1\alpha_2 .$$
#
# The picture's share of the variance is a product, and the noise fills up the rest to 1. So it goes on. With
# $\bar\alpha_t = \alpha_0\alpha_1\cdots\alpha_t$, counted from 0 as the code does (DDPM eq. 4):
#
# $$x_t = \sqrt{\bar\alpha_t}\;x_0 + \sqrt{1-\bar\alpha_t}\;\epsilon$$
#
# The same argument works between any two times $s < t$: the picture's share falls by the ratio
# $\bar\alpha_t / \bar\alpha_s$, and the variance of the noise added on the way is $1 - \bar\alpha_t / \bar\alpha_s$.
#
# Do not believe it. Walk 50,000 copies of the number 2 through all thousand steps, and compare their mean and
# variance with the formula at every step:

# %%
betas = my_betas("scaled_linear")
alpha_bar = torch.cumprod(1 - betas, dim=0)
x, walked, rng = torch.full((50_000,), 2.0), [], torch.Generator().manual_seed(2)
for beta in betas.tolist():
    x = one_step(x, beta, rng)
    walked.append([x.mean(), x.var()])
walked = torch.tensor(walked, dtype=torch.float64)
formula = torch.stack([2 * alpha_bar.sqrt(), 1 - alpha_bar], dim=1)
for t in (0, 99, 499, 999):
    print(f"t = {t}: mean {walked[t, 0]:.2f} walked, {formula[t, 0]:.2f} by formula;", end=" ")
    print(f"variance {walked[t, 1]:.2f} walked, {formula[t, 1]:.2f} by formula")
print("largest gap over all 1,000 steps below 0.05:", bool((walked - formula).abs().max() < 0.05))

# %%
figure, axes = plt.subplots(figsize=(5.6, 2.8))
axes.plot(t_axis[::50], walked[::50, 0], "o", label="mean, walked")
axes.plot(t_axis[::50], walked[::50, 1], "s", label="variance, walked")
plot(axes, t_axis, {"mean, formula": formula[:, 0], "variance, formula": formula[:, 1]}, xlabel="t")
show(figure, alt="Dots of the walk lie on the curves of the formula: the mean falls from 2 towards 0, variance goes to 1.")

# %% [markdown]
# And with a picture. Above, the scene's latents walk; below, they jump. The grains of noise differ, because they are
# other random numbers. The amount does not.

# %%
stops = [49, 149, 299, 499, 699, 999]
x, walk, rng = latents[:1], [], torch.Generator().manual_seed(3)
for t, beta in enumerate(betas.tolist()):
    x = one_step(x, beta, rng)
    if t in stops:
        walk.append(x)
fresh = noise_like(latents[:1], seed=4)
jump = [(alpha_bar[t].sqrt() * latents[:1] + (1 - alpha_bar[t]).sqrt() * fresh) for t in stops]
titles = [f"walked to {t}" for t in stops] + [f"jumped to {t}" for t in stops]
show(
    picture_grid(as_pictures(torch.cat(walk + jump)), titles=titles, scale=2),
    alt="Two rows of six decoded pictures from t = 49 to 999. Both rows lose the scene at the same pace.",
)

# %% [markdown]
# > **Careful.** There are 1,000 steps, numbered 0 to 999. So $t = 0$ is *not* the clean picture: one step of noise is
# > already in it. Papers that count from 1 call it $x_1$. Half of all off-by-one errors in diffusion code live here.
#
# In training, each picture of a batch gets a time of its own. As a loop over the batch, and then at once:

# %%
def noisy_loop(x0, noise, t):
    """Jump each picture to its own time."""
    rows = []
    for k in range(len(x0)):
        a = alpha_bar[t[k]]
        rows.append(a.sqrt() * x0[k] + (1 - a).sqrt() * noise[k])
    return torch.stack(rows)


def noisy_at_once(x0, noise, t):
    """The same without a loop: one factor per picture, spread over its channels, rows and columns."""
    a = alpha_bar[t].view(-1, 1, 1, 1)  # (b,) -> (b, 1, 1, 1)
    return a.sqrt().to(x0) * x0 + (1 - a).sqrt().to(x0) * noise


noise = noise_like(latents, seed=5)
t = torch.randint(1000, (100,), generator=torch.Generator().manual_seed(5))
same = torch.allclose(noisy_loop(latents, noise, t), noisy_at_once(latents, noise, t), atol=1e-6)
print("loop and batch agree:", same)

# %% [markdown]
# The `.to(x0)` is there for a reason: the table is in double precision, since a product of a thousand factors
# deserves it, and without the conversion your whole batch would become double too. Pack it into a class:

# %%
class MySchedule:
    """The tables of one schedule, and the jump."""

    def __init__(self, betas):
        self.betas = betas
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)

    def add_noise(self, x0, noise, t):
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return a.sqrt().to(x0) * x0 + (1 - a).sqrt().to(x0) * noise


mine, schedule = MySchedule(my_betas("scaled_linear")), NoiseSchedule()
print("same table:", torch.allclose(mine.alpha_bar, schedule.alpha_bar))
gap = (mine.add_noise(latents, noise, t) - schedule.add_noise(latents, noise, t)).abs().max()
print("same noisy latents:", bool(gap < 1e-6))
for k in (0, 1, 21, 721, 741, 981, 999):
    print(f"alpha_bar[{k}] = {schedule.alpha_bar[k]:.6f}")

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.schedule.NoiseSchedule`; there is nothing more inside it. The seven
# > numbers are the ones of the reference code with Stable Diffusion's settings.
#
# > **In the paper.** The configuration files of Rombach et al. call their schedule *linear*. Their code draws the
# > line through $\sqrt\beta$, so it is the scaled one; whoever copies the name gets another schedule. The text models
# > use .00085 to .012. Most of the others run from .0015 to .0195, churches and super-resolution end at .0155, boxes
# > and inpainting at .0205. What is left of the picture's variance at the last step:

# %%
for first, last, kind in (
    (0.00085, 0.012, "scaled_linear"),
    (0.0015, 0.0195, "scaled_linear"),
    (0.0015, 0.0155, "scaled_linear"),
    (0.0015, 0.0205, "scaled_linear"),
    (0.00085, 0.012, "linear"),
):
    left = NoiseSchedule(ScheduleConfig(kind=kind, beta_start=first, beta_end=last)).alpha_bar[-1]
    print(f"{kind:13} {first} to {last}: alpha_bar[999] = {float(left):.2e}")

# %% [markdown]
# ## Watch it go
#
# Now use it. The first row noises the pixels. The others noise the latents: first one of their four channels, then
# what the decoder makes of all four.

# %%
def at(x0, t, seed=1, schedule=schedule):
    """All of x0 at the same time t."""
    return schedule.add_noise(x0, noise_like(x0, seed), torch.full((len(x0),), t))


watched = [0, 100, 200, 300, 400, 600, 800, 999]
rows = [as_pictures(at(pixels[:1], t)) for t in watched]
rows += [signed_map(at(latents[:1], t)[0, 0], scale=4) for t in watched]
rows += [as_pictures(at(latents[:1], t)) for t in watched]
titles = [f"{name}, {t}" for name in ("pixels", "channel 0", "decoded") for t in watched]
show(
    picture_grid(rows, titles=titles, columns=8, scale=2),
    alt="Three rows from t = 0 to 999: noised pixels turn into coloured grain, one latent channel into random cells, "
    "and the decoded latents into blotches. The house stays visible longer than the bicycle.",
)

# %% [markdown]
# ## Step 4: signal to noise
#
# How noisy is $t = 300$? The number 300 says nothing; it depends on the schedule. What counts is how large the
# picture's part is beside the noise's part. Their variances are $\bar\alpha_t$ and $1 - \bar\alpha_t$, and the
# **signal-to-noise ratio** is the quotient (Kingma et al. 2021, eq. 2):
#
# $$\mathrm{SNR}(t) = \frac{\bar\alpha_t}{1 - \bar\alpha_t}$$
#
# It runs over many powers of ten, so one takes ten times its logarithm: *decibels*. At 0 dB picture and noise are
# equally strong. Every 10 dB are a factor of ten, every 3 dB about a factor of two.

# %%
def decibels(ratio):
    """Ten times the logarithm to the base ten."""
    return 10 * torch.log10(torch.as_tensor(ratio, dtype=torch.float64))


schedules = {
    kind: NoiseSchedule(ScheduleConfig(kind=kind, beta_start=first, beta_end=last))
    for kind, (first, last) in RANGES.items()
}
snr = {kind: decibels(each.signal_to_noise()) for kind, each in schedules.items()}
for kind, values in snr.items():
    crossing = int((values < 0).nonzero()[0])
    print(f"{kind}: below 0 dB from t = {crossing} on, last step {values[-1]:.0f} dB")
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.8))
lefts = {kind: each.alpha_bar for kind, each in schedules.items()}
plot(axes[0], t_axis, lefts, xlabel="t", ylabel="alpha_bar")
plot(axes[1], t_axis, snr, xlabel="t", ylabel="SNR in dB", ylim=(-60, 45))
show(figure, alt="Left alpha_bar, right the SNR in decibels, over t for three schedules. Cosine falls latest.")

# %% [markdown]
# ## When does the judge stop seeing?
#
# Looking is not measuring. Show the judge all 100 scenes at eleven times, and count: in how many does it name every
# object (*kind*), give every object its colour, and recognise the background? A judge that is shown nothing but noise
# also says something, and is sometimes right by luck. So measure that too; it is the floor.

# %%
requests = [Request(tuple(ObjectRequest(o.kind, o.color) for o in s.objects), s.background) for s in truth]
ASKED = {"kind": "object", "colour": "color", "background": "background"}


def shares_right(pictures):
    """In what share of the pictures does the judge find kinds, colours and background?"""
    found = attribute_accuracy(read_pictures(judge, pictures), requests)
    return [found[name].value for name in ASKED.values()]


steps = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999]
by_pixels = torch.tensor([shares_right(as_pictures(at(pixels, t))) for t in steps])
by_latents = torch.tensor([shares_right(as_pictures(at(latents, t))) for t in steps])
floor = shares_right(as_pictures(noise_like(pixels, seed=9)))

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True)
for k, name in enumerate(ASKED):
    curves = {"pixels": by_pixels[:, k], "latents": by_latents[:, k], "pure noise": [floor[k]] * len(steps)}
    plot(axes[k], steps, curves, title=name, xlabel="t", ylim=(0, 1.05))
axes[0].set_ylabel("share right")
show(
    figure,
    alt="Share right over t for kind, colour and background, pixels and latents. All start at 1. Kind and colour drop "
    "to the floor of pure noise between t = 300 and 800; the background drops later.",
)
early, late = steps.index(200), steps.index(600)
print("at t = 200 nine in ten or more are still right:", bool(min(by_pixels[early].min(), by_latents[early].min()) >= 0.9))
print("at t = 600 less than half of the kinds are right:", bool(max(by_pixels[late, 0], by_latents[late, 0]) < 0.5))
print("at t = 600 more than half of the backgrounds are:", bool(min(by_pixels[late, 2], by_latents[late, 2]) > 0.5))

# %% tags=["nbval-ignore-output"]
for name, table in {"pixels": by_pixels, "latents": by_latents}.items():
    for k, asked in enumerate(ASKED):
        print(f"{name:8} {asked:10}", *[f"{share:.2f}" for share in table[:, k].tolist()])

# %% [markdown]
# Kinds go first, backgrounds last. And pixels and latents fall at nearly the same pace, though one grid has twelve
# times the numbers of the other: the same schedule on the same spread does about the same damage.
#
# Two honest remarks. The judge was trained on nearly clean pictures, and the decoder on clean latents, so these
# curves say when *these* networks give up. They do not say that the information is gone. You will see below how much
# is still there. And with 100 scenes, a share is uncertain by up to 0.1.
#
# ## Turn one knob: the schedule
#
# Repeat it for the pixels with the other two schedules. On the left the share of right kinds over $t$, on the right
# the same points over the SNR:

# %%
grid = steps[1:-1]
kinds = {"scaled_linear": by_pixels[1:-1, 0]}
for name in ("linear", "cosine"):
    noisy = (as_pictures(at(pixels, t, schedule=schedules[name])) for t in grid)
    kinds[name] = torch.tensor([shares_right(each)[0] for each in noisy])
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.8), sharey=True)
plot(axes[0], grid, kinds, xlabel="t", ylabel="kinds right", ylim=(0, 1.05))
for (name, share), line in zip(kinds.items(), ("o-", "s--", "^:"), strict=True):
    axes[1].plot(snr[name][grid], share, line, label=name)
axes[1].set(xlabel="SNR in dB", xlim=(16, -20))
axes[1].legend()
show(figure, alt="Left, three different curves of the share of right kinds over t. Right, over SNR, one common curve.")
apart = torch.stack([share[grid.index(400)] for share in kinds.values()])
print("at t = 400 the schedules differ by more than 0.4:", bool(apart.max() - apart.min() > 0.4))

# %% [markdown]
# Three curves become one. The schedule only decides *when* the SNR passes each value.
#
# > **Key idea.** $t$ is a label. The SNR is what happens to the picture.
#
# ## What goes first?
#
# The small bicycle goes before the large house, the object before the sky. This looks like a law: fine things first.
# Test it by cutting the pictures into waves. A Fourier transform tells how much power a picture has at one wave
# across its width, at two, at three and so on up to 32, which is as fine as 64 pixels can show. Noise has the same
# power, 1, at every fineness. Pictures do not:

# %%
def power_by_fineness(x):
    """Mean power at 1, 2, 3, ... waves across the picture."""
    side = x.shape[-1]
    power = torch.fft.fft2(x).abs().square().mean(dim=(0, 1)) / side**2
    waves = torch.fft.fftfreq(side) * side
    ring = (waves[:, None] ** 2 + waves**2).sqrt().round()
    return torch.stack([power[ring == k].mean() for k in range(1, side // 2 + 1)])


power = power_by_fineness(pixels)
visible = {t: int((power * schedule.signal_to_noise()[t] > 1).sum()) for t in (50, 100, 200, 300, 400, 600, 800)}
figure, axes = plt.subplots(figsize=(6.4, 3.2))
axes.plot(range(1, 33), power, label="pictures")
for t in (100, 300, 600, 800):
    level = 1 / schedule.signal_to_noise()[t]
    axes.axhline(level, color="0.45", linestyle="--", linewidth=1)
    axes.text(32, level, f"noise at t = {t}", ha="right", va="bottom", fontsize=9)
axes.set(xscale="log", yscale="log", xlabel="waves across the picture", ylabel="power")
axes.legend(loc="lower left")
show(figure, alt="The power of pictures falls steeply from coarse to fine; four level lines of noise cut it, ever further left.")
for t, finest in visible.items():
    print(f"t = {t}: the picture is louder than the noise up to {finest} of 32 waves")

# %% [markdown]
# The picture's power falls like a slope, and the noise is a water level that rises along it. The fine end drowns
# first. At the beginning, the picture is loud nearly everywhere; at $t = 800$ only its coarsest waves stick out. Hence
# the order in which a drawing appears (lesson 00): the way back uncovers the coarse first.
#
# You can hear the coarse waves through the noise by taking means. A mean over 8 x 8 pixels leaves a coarse picture as
# it is, and divides the spread of the noise by 8:

# %%
noisy = at(pixels[[0, 1, 4]], 700)
means = F.interpolate(F.avg_pool2d(noisy, 8), scale_factor=8) / schedule.alpha_bar[700].sqrt().float()
clean = F.interpolate(F.avg_pool2d(pixels[[0, 1, 4]], 8), scale_factor=8)
show(
    picture_grid(
        as_pictures(torch.cat([noisy, means, clean])),
        titles=["t = 700"] * 3 + ["its 8 x 8 means"] * 3 + ["means, no noise"] * 3,
        columns=3,
        scale=2,
    ),
    alt="Three scenes at t = 700 look like noise; their means over blocks show sky and ground, much like the clean means.",
)

# %% [markdown]
# ## Step 5: one step back, if you know the end
#
# The way back is what this is all for. In general it is unknown: lots of pictures could have led to this $x_t$. But
# suppose that somebody tells you $x_0$. Then the step before, $x_{t-1}$, is a Gaussian that you can write down. Two
# witnesses speak about it. From the past: starting at $x_0$, it should be near $\sqrt{\bar\alpha_{t-1}}\,x_0$, give
# or take $1-\bar\alpha_{t-1}$. From the future: one step later it became $x_t$. Weigh the two by their precision, and
# out comes the **posterior** (DDPM eq. 6 and 7):
#
# $$q(x_{t-1} \mid x_t, x_0) = \mathcal N(\tilde\mu_t,\ \tilde\beta_t I), \qquad
# \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t$$
#
# $$\tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\;x_0
# + \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\;x_t$$

# %%
def posterior(x_t, x0, t, schedule=schedule):
    """Mean and variance of x_(t-1) when x_t and x_0 are known: DDPM eq. 6 and 7."""
    a, beta = schedule.alpha_bar[t], schedule.betas[t]
    a_prev = schedule.alpha_bar[t - 1] if t > 0 else torch.tensor(1.0)  # before step 0 lies the clean picture
    mean = a_prev.sqrt() * beta / (1 - a) * x0 + (1 - beta).sqrt() * (1 - a_prev) / (1 - a) * x_t
    return mean, (1 - a_prev) / (1 - a) * beta


t = 500
x_t, fresh = at(latents, t), noise_like(latents, seed=6)
mean, variance = posterior(x_t, latents, t)
by_package = ddpm_step(x_t, noise_like(latents, 1), t, t - 1, schedule, noise=fresh).x_prev
print("equal to the package's ddpm_step:", torch.allclose(mean + variance.sqrt() * fresh, by_package, atol=1e-4))
print("at t = 0 the variance is", float(posterior(x_t, latents, 0)[1]))

# %% [markdown]
# Does the formula tell the truth? Ask a crowd. With a short schedule of ten big steps, send 200,000 copies of
# $x_0 = 1.5$ to $t = 4$ and one step further to $t = 5$. Then look only at those that landed near $x_5 = 0.5$: where
# had they been before?

# %%
short = NoiseSchedule(ScheduleConfig(num_steps=10, kind="linear", beta_start=0.05, beta_end=0.5))
start = torch.full((200_000,), 1.5)
x_4 = at(start, 4, seed=7, schedule=short)
x_5 = one_step(x_4, float(short.betas[5]), torch.Generator().manual_seed(8))
near = (x_5 - 0.5).abs() < 0.05
mean, variance = posterior(0.5, 1.5, 5, short)
print(f"of the crowd:   mean {x_4[near].mean():.1f}, variance {x_4[near].var():.2f}")
print(f"by the formula: mean {mean:.1f}, variance {variance:.2f}")
line = torch.linspace(-2.5, 4, 2)
on_line, width = posterior(line, 1.5, 5, short)[0], variance.sqrt()
figure, axes = plt.subplots(figsize=(5.2, 3.4))
axes.plot(x_5[:3000], x_4[:3000], ".", color="0.6", markersize=2)
axes.plot(line, on_line, label="mean of the posterior")
axes.fill_between(line, on_line - 2 * width, on_line + 2 * width, alpha=0.25, label="two standard deviations")
axes.set(xlabel="x_5", ylabel="x_4")
axes.legend()
show(figure, alt="A cloud of points, x_4 over x_5. The line of posterior means runs through it, a band holds nearly all.")

# %% [markdown]
# > **Key idea.** Know $x_0$, and each step back is one line of arithmetic. Drawing does not know it. So the U-Net of
# > lesson 05 learns to guess it, and the samplers of lesson 06 put the guess in its place.
#
# ## The end that is not the end
#
# At $t = 999$ the judge sees nothing. Is there nothing? The table above says $\bar\alpha_{999} = 0.00466$, which is
# small, and not zero. Hire a detective. Show him one noisy picture and all 100 clean ones, and ask which it was. His
# method is the best there is for this game: shrink each candidate by $\sqrt{\bar\alpha_t}$ and take the nearest.

# %%
def found_again(x0, t):
    """Share of noisy pictures whose own clean picture is the nearest of all candidates."""
    distances = torch.cdist(at(x0, t, seed=3).flatten(1), schedule.alpha_bar[t].sqrt().float() * x0.flatten(1))
    return float((distances.argmin(dim=1) == torch.arange(len(x0))).float().mean())


curves = {
    "detective, pixels": [found_again(pixels, t) for t in steps],
    "detective, latents": [found_again(latents, t) for t in steps],
    "judge, kinds (pixels)": by_pixels[:, 0],
}
figure, axes = plt.subplots(figsize=(6, 2.8))
plot(axes, steps, curves, xlabel="t", ylabel="share right", ylim=(0, 1.05))
show(figure, alt="The detective is right in all cases up to t = 600 and beyond; at t = 999 in most for pixels, "
     "in some for latents. The judge's curve falls far earlier.")  # fmt: skip
print("at t = 999, chance is 0.01. Pixels found again, more than 0.8:", curves["detective, pixels"][-1] > 0.8)
print("latents found again, more than 0.1:", curves["detective, latents"][-1] > 0.1)

# %% [markdown]
# What our eyes and the judge take for pure noise still tells him which picture it was, nearly always for pixels, and
# far above chance for latents. He wins by adding up thousands of tiny hints. The easiest hint is brightness: the mean
# of all numbers, in which the noise cancels.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2))
for (name, x0), panel in zip({"pixels": pixels, "latents, channel 0": latents[:, :1]}.items(), axes, strict=True):
    before, after = x0.mean(dim=(1, 2, 3)), at(x0, 999, seed=2).mean(dim=(1, 2, 3))
    together = float(torch.corrcoef(torch.stack([before, after]))[0, 1])
    panel.plot(before, after, "o", markersize=4)
    panel.set(title=name, xlabel="mean of the clean one", ylabel="mean at t = 999")
    print(f"{name}: correlation above 0.3: {together > 0.3}, above 0.9: {together > 0.9}")
show(figure, alt="Mean at t = 999 over the clean mean: for pixels almost a line, for latents a tilted cloud.")

# %% [markdown]
# What does that do? In training, the network learns that the mean of $x_{999}$ gives the brightness away. In drawing
# it starts from *real* noise, whose mean is always near 0, and reads: medium brightness. Follow this one number, the
# brightness, back through all thousand posteriors. For a single Gaussian number with spread $d$ the best guess of
# $x_0$ has a formula, so we need no network: $\hat x_0 = \sqrt{\bar\alpha_t}\,d^2 x_t / (\bar\alpha_t d^2 + 1 - \bar\alpha_t)$.

# %%
def draw_brightness(x, d):
    """Walk 20,000 numbers back from t = 999 with the best guess for a Gaussian of spread d."""
    rng = torch.Generator().manual_seed(4)
    for t in reversed(range(1000)):
        a = float(schedule.alpha_bar[t])
        mean, variance = posterior(x, a**0.5 * d**2 / (a * d**2 + 1 - a) * x, t)
        x = mean + variance.sqrt() * torch.randn(x.shape, generator=rng)
    return x


count = pixels[0].numel()  # the mean of n noise numbers has the spread 1 / sqrt(n), so this scale gives noise spread 1
d = float(pixels.mean(dim=(1, 2, 3)).std()) * count**0.5
seeds = noise_like(torch.zeros(20_000), seed=5)
left = float(schedule.alpha_bar[-1])
starts = {"from the true x_999": (left * d**2 + 1 - left) ** 0.5 * seeds, "from pure noise": seeds}
figure, axes = plt.subplots(figsize=(6, 2.8))
for name, start in starts.items():
    made = draw_brightness(start, d) / count**0.5
    axes.hist(made, bins=80, range=(-2.5, 2.5), density=True, histtype="step", linewidth=2, label=name)
    print(f"{name}: spread of the brightness is {float(made.std()) * count**0.5 / d:.1f} of the data's")
axes.set(xlabel="brightness of what is drawn", yticks=[])
axes.legend()
show(figure, alt="Two histograms of brightness: wide when started from the true x_999, narrow when started from noise.")

# %% [markdown]
# Started from what training shows, the walk gives back the data's whole spread. Started from pure noise, it keeps a
# fifth: no nights, no snow fields, everything in between. The model here is a Gaussian, which real brightness is not,
# but the effect is known from Stable Diffusion: Lin et al. (2023) found it drawing at medium brightness, and moved
# the last step's SNR to zero. In exercise 3 you do the same. For our latents the leak is weaker, as the scatter shows.
#
# ## A failure on purpose: the forgotten scale
#
# > **Careful.** A schedule is made for a spread of 1. Multiply the latents by $k$, and the SNR at every $t$ grows by
# > $k^2$. The autoencoder of Stable Diffusion gives latents of spread $1 / 0.18215 \approx 5.5$; its factor brings them
# > back to 1. Ours happen to be close to 1 already, so forgetting *our* factor would hardly show. Forget theirs.

# %%
k = 1 / 0.18215
print(f"our own factor: {autoencoder.config.scale_factor:.1f}")
print(f"theirs forgotten: SNR {float(decibels(k**2)):.1f} dB too high at every t")
panels, titles = [], []
for name, factor in {"right": 1.0, "5.5 too large": k, "5.5 too small": 1 / k}.items():
    for t in (100, 300, 600, 999):
        x_t = at(latents[:1] * factor, t) / factor  # the decoder gets its usual scale back
        panels.append(as_pictures(x_t / schedule.alpha_bar[t].sqrt().float()))
        titles.append(f"{name}, {t}")
show(
    picture_grid(panels, titles=titles, columns=4, scale=2),
    alt="Decoded latents at t = 100, 300, 600 and 999 with the right scale, 5.5 times too large (the house is still "
    "there at the end) and 5.5 times too small (gone at once).",
)
kept = shares_right(as_pictures(at(latents * k, 600) / k))[0]
print("kinds right at t = 600, twice as many as with the right scale:", kept > 2 * float(by_latents[late, 0]))

# %% [markdown]
# Nothing crashes, no shape is wrong, the loss goes down. But the first row is what the schedule was made for. In the
# second, the last step is no noise at all, and sampling will start from something that the network never met. In the
# third, everything is over at $t = 100$ and nine tenths of the training teach nothing. When a model of yours draws
# mush, print the spread of its latents first.
#
# ## At full size
#
# > **At full size.** Stable Diffusion uses the very same schedule on 64 x 64 x 4 latents, our model on 16 x 16 x 4. Is
# > that the same destruction? No. A larger grid shows the same thing with more numbers, and means over neighbours
# > cancel the noise: over 4 x 4 cells, the SNR of whatever is constant there grows by 16.
#
# Our scenes can be drawn at any size, so measure it. Same scenes, same schedule, same $t$; noise at 64, 128 and 256
# pixels, then take means down to 64 and show the judge.

# %%
right, panels = {}, []
for side in (64, 128, 256):
    big = torch.stack([torch.from_numpy(draw(scene, side)).permute(2, 0, 1) for scene in truth])
    x_t = at((to_float(big) - center) / spread, 600)
    x_t = F.avg_pool2d(x_t, side // 64)
    right[side] = shares_right(as_pictures(x_t))[0]
    panels.append(as_pictures(x_t[:1]))
titles = [f"noised at {side}" for side in right]
show(
    picture_grid(panels, titles=titles, scale=3),
    alt="The scene at t = 600, noised at 64, 128 and 256 pixels and reduced to 64: from hardly visible to clear.",
)
print(f"means over 4 x 4: SNR {float(decibels(16)):.1f} dB higher")
print("each doubling lets the judge see more:", right[64] < right[128] < right[256])

# %% tags=["nbval-ignore-output"]
for side, share in right.items():
    print(f"kinds right at t = 600, noised at {side} pixels: {share:.2f}")

# %% [markdown]
# The same betas that hide a small picture leave a large one in plain sight. So larger grids want more noise (Chen
# 2023 measures it), and at 64 x 64 latents the leak of brightness at $t = 999$ is worse than at 16 x 16:

# %%
channel = latents[:, 0].mean(dim=(1, 2)).std()
for side in (16, 64):
    signal = schedule.alpha_bar[-1] * channel**2 * side**2  # the mean of n numbers: noise variance 1 / n
    leak = float((signal / (signal + 1 - schedule.alpha_bar[-1])).sqrt())
    print(f"{side} x {side} latents: correlation of the mean at t = 999 with the clean one, about {leak:.1f}")

# %% [markdown]
# ## Move the time
#
# Now drag the time yourself. Watch for the moment when you would no longer know what it was, then drag back and see
# how early the picture was really there.

# %%
def look(t, scene):
    x_t = at(latents[scene : scene + 1], t)
    views = [as_pictures(at(pixels[scene : scene + 1], t)), signed_map(x_t[0, 0], scale=4), as_pictures(x_t)]
    return picture_grid(views, titles=["pixels", "latents, channel 0", "latents, decoded"], scale=3)


def describe(t, scene):
    a = float(schedule.alpha_bar[t])
    return f"t = {t}: SNR {float(decibels(a / (1 - a))):.1f} dB, {a**0.5:.0%} of the picture, {(1 - a)**0.5:.0%} noise"


ALT = "A scene at the time on the slider: noised pixels, one channel of noised latents, and the latents decoded."
live(look, ALT, caption=describe, t=(0, 999, 350), scene=(0, 99, 0))

# %% [markdown]
# If you read this without a running kernel, here are two other scenes at six times:

# %%
times = [100, 250, 350, 450, 600, 800]
still = torch.cat([as_pictures(at(latents[k : k + 1], t)) for k in (3, 5) for t in times])
titles = [f"t = {t}, {float(snr['scaled_linear'][t]):.0f} dB" for t in times] * 2
show(
    picture_grid(still, titles=titles, scale=2),
    alt="Two scenes, latents noised and decoded at six times from 9 dB to -14 dB: the object goes, the ground remains.",
)

# %% [markdown]
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("forward_noising.half_way")

# %%
my_steps = ...
check.forward_noising.half_way(my_steps)

# %%
hint("forward_noising.half_way")

# %%
exercise("forward_noising.add_noise")


# %%
def my_add_noise(x0, noise, t, alpha_bar):
    """x0, noise: (b, c, h, w); t: (b,), whole numbers; alpha_bar: (1000,). Return x_t."""
    ...


check.forward_noising.add_noise(my_add_noise)

# %%
hint("forward_noising.add_noise")

# %%
exercise("forward_noising.zero_terminal")


# %%
def zero_terminal(alpha_bar):
    """Leave nothing of the picture at the last step. Something is wrong here."""
    signal = alpha_bar.sqrt()
    signal = signal - signal[-1]
    signal = signal * signal[0] / (signal[0] - signal[-1])
    return signal


check.forward_noising.zero_terminal(zero_terminal)

# %%
hint("forward_noising.zero_terminal")

# %%
exercise("forward_noising.posterior_variance")


# %%
def my_posterior_variance(s, t, alpha_bar):
    """The variance of x_s when x_t and x_0 are known, s < t; s = -1 is the clean picture."""
    ...


check.forward_noising.posterior_variance(my_posterior_variance)

# %%
hint("forward_noising.posterior_variance")

# %%
exercise("forward_noising.forgotten_scale")

# %%
my_decibels = ...
check.forward_noising.forgotten_scale(my_decibels)

# %%
hint("forward_noising.forgotten_scale")

# %%
exercise("forward_noising.hide_the_bicycle")

# %%
noises = PictureNoise(range(32)).initial((3, 64, 64))  # 32 noises for the one picture `pair`
my_t = ...
check.forward_noising.hide_the_bicycle(my_t)

# %%
hint("forward_noising.hide_the_bicycle")

# %%
solution("forward_noising.add_noise")

# %% [markdown]
# ## Recap
#
# - A step shrinks by $\sqrt{1-\beta_t}$ and adds noise of variance $\beta_t$. The variance stays 1.
# - A thousand steps are one jump: $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$.
# - The schedule decides when; the SNR decides what is lost. Fine detail goes first, brightness last.
# - If $x_0$ is known, the step back is a Gaussian with known mean and variance.
# - At the last step of Stable Diffusion's schedule a trace of the picture is left, and it matters.
# - The spread of what you noise belongs to the schedule. Twice the spread is four times the SNR.
#
# ## Common mistakes
#
# - *$\bar\alpha_t$ where its square root belongs.* The variance tells you: it should be 1 at every $t$.
# - *One $t$ for the whole batch.* It runs, and trains badly. Every picture gets its own.
# - *Taking $t = 0$ for the clean picture.* It has had one step.
# - *"linear" for "scaled linear".* Same name in some files, another schedule.
# - *Forgetting the scale factor*, before noising or before decoding.
# - *Trusting a network's blindness.* The judge saw nothing where the detective saw it all.
#
# ## Terms
#
# **Noise schedule**: the list of $\beta_t$. **Closed form**: the jump from $x_0$ to $x_t$. **Signal-to-noise ratio**:
# the picture's variance over the noise's. **Decibel**: ten times the logarithm of a ratio. **Posterior**: what is known
# of $x_{t-1}$ once $x_t$ and $x_0$ are given. **Terminal SNR**: the SNR at the last step.
#
# ## References
#
# - Ho, Jain, Abbeel: *Denoising Diffusion Probabilistic Models*, 2020 (arXiv 2006.11239). Section 2 is this lesson.
# - Nichol, Dhariwal: *Improved Denoising Diffusion Probabilistic Models*, 2021 (arXiv 2102.09672). The cosine
#   schedule and why the linear one wastes steps.
# - Kingma, Salimans, Poole, Ho: *Variational Diffusion Models*, 2021 (arXiv 2107.00630). The SNR as the true clock.
# - Lin, Liu, Li, Yang: *Common Diffusion Noise Schedules and Sample Steps are Flawed*, 2023 (arXiv 2305.08891). The
#   trace that is left, and its repair.
# - Chen: *On the Importance of Noise Scheduling for Diffusion Models*, 2023 (arXiv 2301.10972). Larger pictures,
#   more noise.
#
# ## Next stop
#
# **05 · U-Net denoiser: how do you undo it?** You build the network that looks at $x_t$ and says which part is noise.
