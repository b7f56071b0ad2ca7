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
from ldm_tutor.plots.figures import STYLE, picture_grid, plot, show, signed_map
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
# into latents (lesson 01), and the judge, which reads objects and backgrounds from a picture. Encode, then noise: this
# is how every training step of the U-Net begins.

# %%
autoencoder = load_model(resolve() / "autoencoder.safetensors", "autoencoder")
judge = load_judge()
test = render_scenes(99, "test")
truth = [PAIR, *test.scenes]
pair = to_float(torch.from_numpy(draw(PAIR, 64)).permute(2, 0, 1)[None])
pictures = torch.cat([pair, to_float(test.pictures)])
with torch.inference_mode():
    latents = autoencoder.to_latents(pictures, torch.Generator().manual_seed(0))
figure = picture_grid(pictures[:6], ["a red bicycle in front of a blue house", *test.captions[:5]], scale=2)
show(figure, alt="Six scenes with their sentences: the bicycle in front of the house, and five held-out ones.")
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


print(f"spread: pictures {pictures.std():.2f}, pixels {pixels.std():.2f}, latents {latents.std():.2f}")

# %% [markdown]
# ## Try first: fade to grey
#
# How would you turn a picture into noise without reading a paper? Probably like a film that fades from one scene to
# the next: a little less of the picture, a little more of the noise, in a straight line. Try it.


# %%
def fade(x0, noise, s):
    return (1 - s) * x0 + s * noise  # all picture at s = 0, all noise at s = 1


noise = noise_like(pixels, seed=1)
shares = [0.0, 0.2, 0.5, 0.8, 1.0]
faded = torch.cat([fade(pixels[:1], noise[:1], s) for s in shares])
figure = picture_grid(as_pictures(faded), [f"s = {s}" for s in shares], scale=2)
show(figure, alt="The bicycle scene fades into coloured noise in five pictures; the one in the middle is paler.")
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
# to 1. (It is a choice, not a law: flow matching, in lesson 16, takes the straight fade and lets the network deal with
# the contrast.)

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
# {{notation x0 x_t betas noise alpha_bar}}
#
# The squares of the two weights add up to 1, as they should. Take 300 steps with the same small $\beta$ on the
# latents, and look at some of them through the decoder:


# %%
def one_step(x, beta, rng):
    return math.sqrt(1 - beta) * x + math.sqrt(beta) * torch.randn(x.shape, generator=rng)


stops = (10, 30, 60, 120, 300)
x, seen, rng = latents, [], torch.Generator().manual_seed(1)
for step in range(1, 301):
    x = one_step(x, 0.01, rng)
    if step in stops:
        seen.append(x[:1])
        print(f"after {step} steps: variance {float(x.var()):.1f}")
figure = picture_grid(as_pictures(torch.cat(seen)), [f"{n} steps" for n in stops], scale=2)
show(figure, alt="The scene after 10, 30, 60, 120 and 300 small noise steps on its latents dissolves into blotches.")

# %% [markdown]
# > **Check.** The variance is 1.0 after every number of steps. No sagging.
#
# The blotches at the end are what the decoder makes of noise. It was trained on clean latents, so take its
# pictures of noisy ones as a window with a flaw. You will see latents without it below.
#
# ## Step 2: how big a step?
#
# A constant $\beta$ is one choice among many. The list of all $\beta_t$ is the **noise schedule**. Three are in wide
# use. *Linear* (DDPM): $\beta_t$ grows in a straight line. *Scaled linear*: the line is drawn through $\sqrt{\beta_t}$
# and squared afterwards; Stable Diffusion and this course use it. *Cosine* (Nichol and Dhariwal 2021, eq. 17) starts
# from the other end: it says how much of the picture should be left at each time, as a squared cosine, and gets each
# $\beta_t$ from the ratio of two neighbours. A small shift, 0.008, keeps the first ones from being too tiny; the last
# ratio would be 0, so $\beta$ is cut at 0.999.


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
for kind, (a, b) in RANGES.items():
    theirs = make_betas(ScheduleConfig(kind=kind, beta_start=a, beta_end=b))
    print(f"{kind}: equal to the package's:", torch.allclose(my_betas(kind, a, b), theirs))


t_axis = torch.arange(1000)
figure, axes = plt.subplots(figsize=(5.6, 2.8))
plot(axes, t_axis, {kind: my_betas(kind, *RANGES[kind]) for kind in RANGES}, xlabel="t", ylabel="beta", yscale="log")
show(figure, alt="Three rising curves of beta over t on a logarithmic axis; cosine shoots up to almost 1 at the end.")

# %% [markdown]
# ## Step 3: a thousand steps in one
#
# Training needs pictures at random times $t$. Walking there step by step would take up to a thousand additions of noise
# for each. Luckily you can jump. Follow the variances through two steps. Write $\alpha_t = 1 - \beta_t$. The first
# step, number 0, leaves the picture with the weight $\sqrt{\alpha_0}$, the second multiplies it by $\sqrt{\alpha_1}$.
# The noise of the first step is shrunk by the second, and the sum of two independent Gaussian noises is again Gaussian,
# with variance
#
# $$\alpha_1\,(1-\alpha_0) + (1-\alpha_1) = 1 - \alpha_0\alpha_1 .$$
#
# The picture's share of the variance is a product, and the noise fills up the rest to 1. So it goes on. With
# $\bar\alpha_t = \alpha_0\alpha_1\cdots\alpha_t$, counted from 0 as the code does (DDPM eq. 4):
#
# $$x_t = \sqrt{\bar\alpha_t}\;x_0 + \sqrt{1-\bar\alpha_t}\;\epsilon$$
#
# The same argument works between any two times $s < t$: the picture's share is multiplied by the ratio
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
    (mean, variance), (m, v) = walked[t].tolist(), formula[t].tolist()
    print(f"t = {t}: mean {mean:.2f} (formula {m:.2f}), variance {variance:.2f} (formula {v:.2f})")
print("largest gap over all 1,000 steps below 0.05:", bool((walked - formula).abs().max() < 0.05))

# %%
figure, axes = plt.subplots(figsize=(5.6, 2.8))
axes.plot(t_axis[::50], walked[::50], "o", color="0.6", label=["walked", "_"])
plot(axes, t_axis, {"mean, formula": formula[:, 0], "variance, formula": formula[:, 1]}, xlabel="t")
show(figure, alt="Dots of the walk lie on the formula's curves: the mean falls from 2 to 0.14, variance rises to 1.")

# %% [markdown]
# > **Check.** A thousand steps and one jump agree, in mean and variance, at every one of the thousand times.
#
# > **Careful.** There are 1,000 steps, numbered 0 to 999. So $t = 0$ is *not* the clean picture: one step of noise is
# > already in it. Papers that count from 1 call it $x_1$. (The symbol $x_0$ keeps meaning the clean picture, as if at
# > $t = -1$.) A good place for off-by-one errors.
#
# In training, each picture of a batch gets a time of its own. As a loop over the batch:


# %%
def noisy_loop(x0, noise, t):
    rows = []
    for k in range(len(x0)):
        a = alpha_bar[t[k]]
        rows.append(a.sqrt() * x0[k] + (1 - a).sqrt() * noise[k])
    return torch.stack(rows)


noise = noise_like(latents, seed=5)
t = torch.randint(1000, (100,), generator=torch.Generator().manual_seed(5))

# %% [markdown]
# And at once, in a class that keeps the tables. `view` gives every picture its own factor, spread over channels, rows
# and columns. `.to(x0)` is there for a reason too: the tables are in double precision, since a product of a thousand
# factors deserves it, and without the conversion the whole batch would become double as well.


# %%
class MySchedule:
    def __init__(self, betas):
        self.betas = betas
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)

    def add_noise(self, x0, noise, t):
        a = self.alpha_bar[t].view(-1, 1, 1, 1)  # (b,) -> (b, 1, 1, 1)
        return a.sqrt().to(x0) * x0 + (1 - a).sqrt().to(x0) * noise


mine, schedule = MySchedule(betas), NoiseSchedule()
at_once = mine.add_noise(latents, noise, t)
print("loop and batch agree:", torch.allclose(noisy_loop(latents, noise, t), at_once, atol=1e-6))
print("yours and the package's agree:", torch.allclose(at_once, schedule.add_noise(latents, noise, t), atol=1e-6))
print("alpha_bar:", {t: round(float(schedule.alpha_bar[t]), 6) for t in (0, 1, 21, 721, 741, 981, 999)})

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.schedule.NoiseSchedule`; there is nothing more inside its jump. The seven
# > numbers are what Stable Diffusion's settings give; compare them with any other implementation.
#
# > **In the paper.** The configuration files of Rombach et al. call their schedule *linear*. Their code draws the
# > line through $\sqrt\beta$, so it is the scaled one; whoever copies the name alone gets another schedule. Their large
# > text-to-image model runs from .00085 to .012, as Stable Diffusion does. Most of the others run from .0015 to .0195;
# > churches and super-resolution end at .0155, boxes and inpainting at .0205. What is left of the picture's variance
# > at the last step, and in the last line what the true linear schedule would leave:

# %%
cases = [("scaled_linear", 0.00085, 0.012)] + [("scaled_linear", 0.0015, b) for b in (0.0195, 0.0155, 0.0205)]
for kind, first, last in [*cases, ("linear", 0.00085, 0.012)]:
    ends = NoiseSchedule(ScheduleConfig(kind=kind, beta_start=first, beta_end=last)).alpha_bar[-1]
    print(f"{kind:13} {first} to {last}: alpha_bar[999] = {float(ends):.2e}")

# %% [markdown]
# ## Watch it go
#
# Now use it. The first row noises the pixels, the second the latents, seen through the decoder. Below, without the
# decoder, one of the four channels of the latents themselves, red above 0 and blue below. (The small bicycle has lost
# its thin lines at $t = 0$ already: its frame has run together. That is not the noise: the autoencoder has no room for
# them, see lesson 01.)


# %%
def at(x0, t, seed=1, schedule=schedule):
    """All of x0 at the same time t."""
    return schedule.add_noise(x0, noise_like(x0, seed), torch.full((len(x0),), t))


watched = [0, 150, 300, 500, 999]
titles = [f"t = {t}" for t in watched]
rows = [as_pictures(at(x0[:1], t)) for x0 in (pixels, latents) for t in watched]
figure = picture_grid(rows, titles * 2, columns=5, scale=2)
show(figure, alt="Two rows: noised pixels turn to grain, decoded latents to blotches; the house outlasts the bicycle.")
maps = [signed_map(at(latents[:1], t)[0, 0], scale=8) for t in watched]
show(picture_grid(maps, titles, scale=1), alt="A latent channel at five times: the house drowns in random cells.")

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
# equally strong. Every 10 dB are a factor of ten, every 3 dB about a factor of two. (Other code counts noise as
# $\sigma = \sqrt{(1-\bar\alpha_t)/\bar\alpha_t} = 1/\sqrt{\mathrm{SNR}}$.)


# %%
def decibels(ratio):
    return 10 * torch.log10(torch.as_tensor(ratio, dtype=torch.float64))


schedules = {k: NoiseSchedule(ScheduleConfig(kind=k, beta_start=a, beta_end=b)) for k, (a, b) in RANGES.items()}
snr = {kind: decibels(each.signal_to_noise()) for kind, each in schedules.items()}
for kind, values in snr.items():
    print(f"{kind}: below 0 dB from t = {int((values >= 0).sum())} on, last step {values[-1]:.0f} dB")
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.8))
plot(axes[0], t_axis, {kind: each.alpha_bar for kind, each in schedules.items()}, xlabel="t", ylabel="alpha_bar")
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
both = {"pixels": pixels, "latents": latents}
by_pixels, by_latents = (torch.tensor([shares_right(as_pictures(at(x0, t))) for t in steps]) for x0 in both.values())
floors = {name: shares_right(as_pictures(noise_like(x0, seed=9))) for name, x0 in both.items()}

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True)
for k, name in enumerate(ASKED):
    curves = {"pixels": by_pixels[:, k], "latents": by_latents[:, k]}
    curves |= {f"noise, {name}": [floor[k]] * len(steps) for name, floor in floors.items()}
    plot(axes[k], steps, curves, title=f"{name}: share right", xlabel="t", ylim=(0, 1.05))
show(figure, alt="Share right over t: kind and colour fall from t = 300 on to the floors of noise, background last.")
early, late = (torch.stack([by_pixels, by_latents])[:, steps.index(t)] for t in (200, 600))
print("at t = 200, nine in ten or more of everything are right:", bool(early.min() > 0.9))
print("at t = 600, less than half of the kinds are right:", bool(late[:, 0].max() < 0.5))
print("at t = 600, more than half of the backgrounds are:", bool(late[:, 2].min() > 0.5))
print("at t = 600, colours by more than 0.1 better in pixels:", bool(late[0, 1] - late[1, 1] > 0.1))

# %% tags=["nbval-ignore-output"]
for name, table in {"pixels": by_pixels, "latents": by_latents}.items():
    for k, asked in enumerate(ASKED):
        print(f"{name:8} {asked:10}", *[f"{each:.2f}" for each in table[:, k].tolist()])

# %% [markdown]
# Kinds and colours go first, backgrounds last. In kinds and backgrounds, pixels and latents fall at nearly the same
# pace, though one grid has twelve times the numbers of the other: to this judge the same schedule does much the same
# damage to both. (What is really left differs, as you will see.) Colours are the exception. Read through the decoder,
# they go sooner.
#
# Two honest remarks. The judge was trained on nearly clean pictures, and the decoder on clean latents. So these
# curves say when *these* networks give up. They do not say that the information is gone; you will see below how much
# is still there. And with 100 scenes, read nothing into differences of less than a tenth.
#
# ## Turn one knob: the schedule
#
# Repeat it for the pixels with the other two schedules. On the left the share of right kinds over $t$, on the right
# the same points over the SNR, which falls to the right:

# %%
grid = steps[1:-1]
kinds = {"scaled_linear": by_pixels[1:-1, 0]}
for name in ("linear", "cosine"):
    noisy = (as_pictures(at(pixels, t, schedule=schedules[name])) for t in grid)
    kinds[name] = torch.tensor([shares_right(each)[0] for each in noisy])
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.8), sharey=True)
for (name, right), line in zip(kinds.items(), ("o-", "s--", "^:"), strict=True):
    axes[0].plot(grid, right, line)
    axes[1].plot(snr[name][grid], right, line, label=name)
axes[0].set(xlabel="t", ylabel="kinds right", ylim=(0, 1.05))
axes[1].set(xlabel="SNR in dB", xlim=(16, -20))
axes[1].legend()
show(figure, alt="Left, three different curves of the share of right kinds over t. Right, over SNR, one common curve.")
linear, cosine = kinds["linear"].tolist(), kinds["cosine"].tolist()
print("linear and cosine at t = 400: more than 0.4 apart:", cosine[3] - linear[3] > 0.4)
print(f"both at {snr['linear'][400]:.0f} dB (t = 400, 700): less than 0.15 apart:", abs(cosine[6] - linear[3]) < 0.15)

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
figure, axes = plt.subplots(figsize=(6.4, 3.2))
axes.plot(range(1, 33), power)
for t in (100, 300, 600, 800):
    level = float(1 / schedule.signal_to_noise()[t])
    print(f"t = {t}: the picture is louder than the noise at {int((power > level).sum())} of 32 finenesses")
    axes.axhline(level, color="0.45", linestyle="--", linewidth=1)
    axes.text(32 if t > 500 else 1, level, f"noise at t = {t}", ha="right" if t > 500 else "left", va="bottom")
axes.set(xscale="log", yscale="log", xlabel="waves across the picture", ylabel="power")
show(figure, alt="The power of pictures falls steeply from coarse to fine; levels of noise cut it, ever further left.")
print("power of noise at 1 and at 32 waves: {:.1f}, {:.1f}".format(*power_by_fineness(noise_like(pixels, 6))[[0, 31]]))

# %% [markdown]
# The picture's power falls like a slope, and the noise is a water level that rises along it. The fine end drowns first.
# At $t = 100$ half of the finenesses are under water already; at $t = 800$ only the coarsest waves stick out. Hence the
# order in which a drawing appears (lesson 00): the way back uncovers the coarse first.
#
# You can hear the coarse waves through the noise by taking means. A mean over 8 x 8 pixels leaves a coarse picture as
# it is, and divides the spread of the noise by 8:

# %%
noisy = at(pixels, 700)[[0, 4]]
means = F.interpolate(F.avg_pool2d(noisy, 8), scale_factor=8) / schedule.alpha_bar[700].sqrt().float()
clean = F.interpolate(F.avg_pool2d(pixels[[0, 4]], 8), scale_factor=8)
titles = ["t = 700"] * 2 + ["its 8 x 8 means"] * 2 + ["means without noise"] * 2
figure = picture_grid(as_pictures(torch.cat([noisy, means, clean])), titles, columns=6, scale=2)
show(figure, alt="Two scenes at t = 700 look like noise; their block means show sky and ground, as the clean means do.")

# %% [markdown]
# ## Step 5: one step back, if you know the end
#
# The way back is what this is all for. In general it is unknown: lots of pictures could have led to this $x_t$. But
# suppose that somebody tells you $x_0$. Then the step before, $x_{t-1}$, is a Gaussian that you can write down. Two
# witnesses speak about it. From the past: starting at $x_0$, it should be near $\sqrt{\bar\alpha_{t-1}}\,x_0$, with
# variance $1-\bar\alpha_{t-1}$. From the future: one step later it became $x_t$. Weigh the two by their precision, and
# out comes the **posterior** (DDPM eq. 6 and 7). Read $q(a \mid b)$ as: how $a$ is spread where $b$ is known; a tilde
# marks what belongs to the step back:
#
# $$q(x_{t-1} \mid x_t, x_0) = \mathcal N(\tilde\mu_t,\ \tilde\beta_t I), \qquad
# \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t$$
#
# $$\tilde\mu_t = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\;x_0
# + \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\;x_t$$
#
# Write it, and compare it with the package's sampler step. That one takes the noise $\epsilon$ in $x_t$ instead of
# $x_0$; given $x_t$, each tells the other.


# %%
def posterior(x_t, x0, t, schedule=schedule):
    """Mean and variance of x_(t-1) when x_t and x_0 are known: DDPM eq. 6 and 7."""
    a, beta = schedule.alpha_bar[t], schedule.betas[t]
    a_prev = schedule.alpha_bar[t - 1] if t > 0 else torch.tensor(1.0)  # before step 0 lies the clean picture
    mean = a_prev.sqrt() * beta / (1 - a) * x0 + (1 - beta).sqrt() * (1 - a_prev) / (1 - a) * x_t
    return mean, (1 - a_prev) / (1 - a) * beta


x_t, fresh, t = at(latents, 500), noise_like(latents, seed=6), 500
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
x_4 = at(torch.full((200_000,), 1.5), 4, seed=7, schedule=short)
x_5 = one_step(x_4, float(short.betas[5]), torch.Generator().manual_seed(8))
near = (x_5 - 0.5).abs() < 0.05
mean, variance = posterior(0.5, 1.5, 5, short)
print(f"mean {x_4[near].mean():.1f} (formula {mean:.1f}), variance {x_4[near].var():.2f} (formula {variance:.2f})")
line = torch.linspace(-2.5, 4, 2)
on_line, width = posterior(line, 1.5, 5, short)[0], 2 * variance.sqrt()
figure, axes = plt.subplots(figsize=(5.2, 3.2))
axes.plot(x_5[:3000], x_4[:3000], ".", color="0.6", markersize=2)
axes.fill_between(line, on_line - width, on_line + width, alpha=0.25, label="two standard deviations")
plot(axes, line, {"mean of the posterior": on_line}, xlabel="x_5", ylabel="x_4")
show(figure, alt="A cloud of points, x_4 over x_5. The line of posterior means runs through it, a band holds most.")

# %% [markdown]
# > **Deep dive.** The weighing in two lines. The past gives $x_{t-1}$ the precision (one over the variance)
# > $1/(1-\bar\alpha_{t-1})$. The future says $x_{t-1} \approx x_t/\sqrt{\alpha_t}$ with precision $\alpha_t/\beta_t$.
# > Precisions of independent witnesses add, so $1/\tilde\beta_t = 1/(1-\bar\alpha_{t-1}) + \alpha_t/\beta_t$, and with
# > $\alpha_t\bar\alpha_{t-1} = \bar\alpha_t$ this is the formula above. The mean is the two opinions, each weighted by
# > its precision.
#
# > **Key idea.** Know $x_0$, and each step back is one line of arithmetic. Drawing does not know it. So the U-Net of
# > lesson 05 learns to guess it, and the samplers of lesson 06 put the guess in its place.
#
# ## The end that is not the end
#
# At $t = 999$ the judge names hardly more kinds and colours than in pure noise. Is there nothing left? The table above
# says $\bar\alpha_{999} = 0.00466$, which is small, and not zero. Hire a detective. Show him one noisy picture and all
# 100 clean ones, and ask which it was. His method is the best there is for this game: shrink each candidate by
# $\sqrt{\bar\alpha_t}$ and take the nearest.


# %%
def found_again(x0, t):
    """Share of noisy pictures whose own clean picture is the nearest of all candidates."""
    distances = torch.cdist(at(x0, t, seed=3).flatten(1), schedule.alpha_bar[t].sqrt().float() * x0.flatten(1))
    return float((distances.argmin(dim=1) == torch.arange(len(x0))).float().mean())


curves = {f"detective, {name}": [found_again(x0, t) for t in steps] for name, x0 in both.items()}
figure, axes = plt.subplots(figsize=(6, 2.8))
plot(axes, steps, curves | {"judge, kinds (pixels)": by_pixels[:, 0]}, xlabel="t", ylabel="share right", ylim=(0, 1.05))
show(figure, alt="The detective is right nearly always up to t = 800; the curve of the judge falls far earlier.")
by_pixel, by_latent = (curve[-1] for curve in curves.values())
print("at t = 999 (chance 0.01): pixels above 0.8:", by_pixel > 0.8, "| latents above 0.1:", by_latent > 0.1)

# %% [markdown]
# What our eyes and the judge take for pure noise still tells him which picture it was: in more than eight of ten cases
# for pixels, and far above chance for latents. He wins by adding up thousands of tiny hints. The easiest hint is
# brightness: the mean of all numbers, in which the noise cancels.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2))
for panel, name, x0 in zip(axes, ("pixels", "latents, channel 0"), (pixels, latents[:, :1]), strict=True):
    before, after = x0.mean(dim=(1, 2, 3)), at(x0, 999, seed=2).mean(dim=(1, 2, 3))
    together = float(torch.corrcoef(torch.stack([before, after]))[0, 1])
    panel.plot(before, after, "o", markersize=4)
    panel.set(title=name, xlabel="mean of the clean one", ylabel="mean at t = 999")
    print(f"{name}: correlation above 0.3: {together > 0.3}, above 0.9: {together > 0.9}")
show(figure, alt="Mean at t = 999 over the clean mean: for pixels almost a line, for latents a tilted cloud.")

# %% [markdown]
# What does that do? In training, the network learns that the mean of $x_{999}$ gives the brightness away. In drawing
# it starts from *real* noise, whose mean is always near 0, and reads: medium brightness. Follow this one number, the
# brightness, back through all thousand posteriors. For a single Gaussian number with mean 0 and spread $d$ the best
# guess of $x_0$ has a formula, so you need no network:
#
# $$\hat x_0 = \frac{\sqrt{\bar\alpha_t}\,d^2}{\bar\alpha_t d^2 + 1 - \bar\alpha_t}\;x_t$$
#
# The mean of $n$ noise numbers has the spread $1/\sqrt n$. The code multiplies brightness by $\sqrt n$, so that the
# noise has spread 1, and divides at the end.


# %%
def draw_brightness(x, d):
    """Walk numbers back from t = 999 with the best guess for a Gaussian of spread d."""
    rng = torch.Generator().manual_seed(4)
    for t in reversed(range(1000)):
        a = float(schedule.alpha_bar[t])
        mean, variance = posterior(x, a**0.5 * d**2 / (a * d**2 + 1 - a) * x, t)
        x = mean + variance.sqrt() * torch.randn(x.shape, generator=rng)
    return x


root = pixels[0].numel() ** 0.5
d, left = root * float(pixels.mean(dim=(1, 2, 3)).std()), float(schedule.alpha_bar[-1])
figure, axes = plt.subplots(figsize=(6, 2.8))
for name, size in {"from the true x_999": (left * d**2 + 1 - left) ** 0.5, "from pure noise": 1.0}.items():
    made = draw_brightness(size * noise_like(torch.zeros(20_000), seed=5), d)
    axes.hist(made / root, bins=80, range=(-2.5, 2.5), histtype="step", linewidth=2, label=name)
    print(f"{name}: spread of the brightness is {float(made.std()) / d:.1f} of the data's")
axes.set(xlabel="brightness of what is drawn", ylabel="how often", yticks=[])
axes.legend()
show(figure, alt="Two histograms of brightness: wide when started from the true x_999, narrow when started from noise.")

# %% [markdown]
# Started from what training shows, the walk gives back the data's whole spread. Started from pure noise, it keeps
# about 0.3 of it: no nights, no snow fields, only what lies between them. The model here is a Gaussian, which real
# brightness is not. But the effect is known from Stable Diffusion: Lin et al. (2023) found it drawing at medium
# brightness, and one of their repairs brings the SNR of the last step to zero. In the third exercise you do the same.
# For our small latents the leak is weaker, as the scatter shows.
#
# ## A failure on purpose: the forgotten scale
#
# > **Careful.** A schedule is made for a spread of 1. Multiply the latents by $k$, and the SNR at every $t$ grows by
# > $k^2$. The autoencoder of Stable Diffusion gives latents of spread $1 / 0.18215 \approx 5.5$; its factor brings them
# > back to 1. Ours happen to be close to 1 already, so forgetting *our* factor would hardly show. Forget theirs.
#
# Every picture below is brought back to the decoder's scale and to full strength before it is decoded, so that you see
# only what the noise has done.

# %%
k = 1 / 0.18215
print(f"our factor {autoencoder.config.scale_factor:.1f}; theirs forgotten: SNR {float(decibels(k**2)):.1f} dB more")
panels, titles = [], []
for name, factor in {"right": 1.0, "too large": k, "too small": 1 / k}.items():
    for t in (300, 999):
        panels.append(as_pictures(at(latents * factor, t) / (schedule.alpha_bar[t].sqrt().float() * factor)))
        titles.append(f"{name}, t = {t}")
figure = picture_grid([each[0] for each in panels], titles, scale=2)
show(figure, alt="At t = 300 and 999. Right: a house, none. Too large: a house, a shadow. Too small: hardly a shadow.")
seen = [shares_right(panels[n]) for n in (1, 3, 0, 4)]
print("t = 999, more than half of the backgrounds right:", seen[0][2] > 0.5, "| too large:", seen[1][2] > 0.5)
print("t = 300, more than half of the kinds right:", seen[2][0] > 0.5, "| too small:", seen[3][0] > 0.5)

# %% [markdown]
# Nothing crashes, and no shape is wrong. But only the first two pictures are what the schedule was made for. In the
# next two a shadow of the house is left at the last step, and the judge still knows most backgrounds. Sampling would
# start from real noise, which the network has never met. In the last two there is no more than a shadow at $t = 300$
# already, and the long rest of the steps teaches nearly nothing. When a model of yours draws mush, print the spread of
# its latents first.
#
# ## At full size
#
# > **At full size.** Stable Diffusion uses the very same schedule on {{full latents}} latents, our model on
# > 16 x 16 x 4. Is that the same destruction? No. A larger grid shows the same thing with more numbers,
# > and means over neighbours cancel the noise: over 4 x 4 cells, the SNR of whatever is constant there grows by 16.
#
# Our scenes can be drawn at any size, so measure it. Same scenes, same schedule, same $t$; noise at 64, 128 and 256
# pixels, then take means down to 64 and show the judge.

# %%
right, panels = {}, []
for side in (64, 128, 256):
    big = torch.stack([torch.from_numpy(draw(scene, side)).permute(2, 0, 1) for scene in truth])
    x_t = F.avg_pool2d(at((to_float(big) - center) / spread, 600), side // 64)
    right[side] = shares_right(as_pictures(x_t))[0]
    panels.append(as_pictures(x_t[:1]))
figure = picture_grid(panels, [f"noised at {side}" for side in right], scale=2)
show(figure, alt="The scene at t = 600, noised at 64, 128 and 256 pixels, reduced to 64: from hardly visible to clear.")
print(f"means over 4 x 4: SNR {float(decibels(16)):.1f} dB higher")
print("each doubling lets the judge see more:", right[64] < right[128] < right[256])

# %% [markdown]
# The same betas that hide a small picture leave a large one in plain sight. So larger grids want more noise (Chen
# 2023 measures it). And the leak of brightness at $t = 999$ grows too. For means as far apart as those of our channel
# 0, on our grid and on Stable Diffusion's:

# %%
channel = float(latents[:, 0].mean(dim=(1, 2)).std())
for side in (16, 64):
    signal = left * channel**2 * side**2  # the mean of n numbers: noise variance 1 / n
    leak = (signal / (signal + 1 - left)) ** 0.5
    print(f"{side} x {side}: correlation of the mean at t = 999 with the clean one {leak:.2f}")

# %% [markdown]
# ## Move the time
#
# > **Try it.** Choose a scene that you have not seen yet, put the time to 999, and drag it slowly to the left. At which
# > $t$ do you know the background, at which the object, at which its colour? Compare yourself with the judge.


# %%
def look(t, scene):
    x_t = at(latents[scene : scene + 1], t)
    views = [as_pictures(at(pixels[scene : scene + 1], t)), signed_map(x_t[0, 0], scale=4), as_pictures(x_t)]
    return picture_grid(views, ["pixels", "latents, channel 0", "latents, decoded"], scale=2)


def describe(t, scene):
    a = float(schedule.alpha_bar[t])
    return f"t = {t}: SNR {snr['scaled_linear'][t]:.1f} dB; weights: picture {a**0.5:.2f}, noise {(1 - a) ** 0.5:.2f}"


ALT = "A scene at the time on the slider: noised pixels, one channel of noised latents, and the latents decoded."
live(look, ALT, caption=describe, t=(0, 999, 350), scene=(0, 99, 0))

# %% [markdown]
# If you read this without a running kernel, here is another scene, its latents decoded at five times:

# %%
times = [100, 250, 350, 500, 700]
still = torch.cat([as_pictures(at(latents[3:4], t)) for t in times])
figure = picture_grid(still, [f"t = {t}, {float(snr['scaled_linear'][t]):.0f} dB" for t in times], scale=2)
show(figure, alt="A yellow ball at sunset at five times: clear at 9 dB, a faint yellow spot among blotches at -10 dB.")

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
# - *One $t$ for the whole batch.* It runs, and each batch teaches one noise level only. Every picture gets its own.
# - *Taking $t = 0$ for the clean picture.* It has had one step.
# - *"linear" for "scaled linear".* Same name in some files, another schedule.
# - *Forgetting the scale factor*, before noising or before decoding.
# - *Trusting a network's blindness.* The judge saw nothing where the detective saw it all.
#
# ## Terms
#
# {{terms}}
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
