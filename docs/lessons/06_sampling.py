# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Sampling: how do you draw from nothing, and how fast?
#
# You have a network that looks at noisy latents and says which part is noise. It was trained on pictures that
# somebody had noised. Now you give it noise with no picture behind it, and still want a picture out. In this lesson
# you write the three rules that do it, DDPM, DDIM and DPM-Solver++. You will have made the picture in which one noise
# becomes three drawings of the same sentence, and you will know how fast each rule gets better with more steps,
# because you measure it against an answer that is known exactly.
#
# > **Goal.** Write three samplers, prove that they do what they claim, and find out what a step buys and what it
# > costs.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import math
from itertools import pairwise
from timeit import repeat

import matplotlib.pyplot as plt
import torch

from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.lessons.lesson_06_kit import curve, grid_error, judged, load_figures, quality_figure, quality_table
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.plots.figures import STYLE, bars, picture_grid, show
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.steps import ddim_step, ddpm_step, dpmpp_2m_step, timestep_grid
from ldm_tutor.widgets.live import frames

torch.set_num_threads(min(2, torch.get_num_threads()))
torch.set_grad_enabled(False)
plt.rcParams.update(STYLE)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def look(pictures, titles, columns, alt, scale=2):
    show(picture_grid(torch.cat(list(pictures)), titles, columns, scale), alt=alt)


# %% [markdown]
# ## Fact box

# %%
fact_box(6)

# %% [markdown]
# ## Where you are

# %%
course_map(6)

# %% [markdown]
# ## Try first: one leap
#
# The network says what is noise. Subtract it, and you have the picture. Why not at once? Take four sentences and four
# noises, ask the U-Net once at the noisiest time, subtract, decode. Below stand the drawings that the pipeline makes of
# the same noises in twenty steps, with DDPM, the first sampler that you write. (The leap is asked without guidance,
# lesson 08: only then is the answer the mean.)
#
# `Guided` is the U-Net together with its sentences (lesson 08 opens it): you call it with latents, time and the
# number of the step, and it answers with the noise. Its last argument is how much it insists on the sentence.

# %%
pipeline = load_pipeline()
schedule, alpha_bar = pipeline.schedule, pipeline.schedule.alpha_bar
sentences = ["a red car on a beach", "a green tree at sunset", "a yellow ball in the snow", "a blue house at night"]
seeds = [1, 2, 3, 4]


def denoiser(sentences, guidance=pipeline.drawing.guidance):
    return Guided(pipeline.unet, pipeline.embed(sentences), pipeline.embed([""]), guidance)


a = float(alpha_bar[999])
noise = pipeline.noise(seeds)
leap = (noise - math.sqrt(1 - a) * denoiser(sentences, 1.0)(noise, 999, 0)) / math.sqrt(a)
drawn = pipeline.draw(sentences, seeds, num_steps=20)
alt = "Above, four blurred mixtures of shapes from one leap; below, the same four noises drawn in 20 steps."
look([pipeline.decode(leap), drawn], ["one leap"] * 4 + sentences, 4, alt)

# %% [markdown]
# What the sentence fixes is there, such as the sea or the night. Where the thing should be is mush, and no better
# network would mend that. At the noisiest time, thousands of pictures could be behind what the network sees. It was
# trained to be right on average (the squared error of lesson 05), so it answers with the average of all of them. The
# average of many cars in many places is not a car.
#
# > **Key idea.** One answer of the network is not a picture. It is the mean of all pictures that are still possible.
# > Go a small step towards it, and fewer are possible. Ask again.
#
# ## Step 1: a world in which you know the answer
#
# How do you test a sampler? If its pictures are bad, is it the sampler or the network? Take the network out. Build a
# world so small that the ideal denoiser can be written down: single numbers instead of pictures, drawn from a
# Gaussian with mean $m$ and spread $s$. Noised, $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$ is
# Gaussian too, with mean $\sqrt{\bar\alpha_t}\,m$ and variance $\bar\alpha_t s^2 + 1 - \bar\alpha_t$. The best guess
# of the noise is its share of what sticks out of the mean:
#
# $$\hat\epsilon = \sqrt{1-\bar\alpha_t}\;
# \frac{x_t - \sqrt{\bar\alpha_t}\,m}{\bar\alpha_t s^2 + 1 - \bar\alpha_t}$$
#
# With several such lumps, each lump gives this answer, and counts as much as it is likely to be the one that $x_t$
# came from. That is the `softmax` below.


# %%
def ideal_eps(x, t, means, spread):
    """The noise that the best possible denoiser sees, for clean numbers in equal lumps around `means`."""
    a = float(alpha_bar[t])
    variance = a * spread**2 + 1 - a
    gaps = x[..., None] - math.sqrt(a) * torch.tensor(means, dtype=x.dtype)
    likely = torch.softmax(-gaps.square() / (2 * variance), dim=-1)
    return math.sqrt(1 - a) * (likely * gaps).sum(dim=-1) / variance


x0, fresh = 1 + 0.25 * normal(200_000, seed=1), normal(200_000, seed=2)
for t in (100, 400, 800):
    a = float(alpha_bar[t])
    x_t = math.sqrt(a) * x0 + math.sqrt(1 - a) * fresh
    slope = float(torch.cov(torch.stack([x_t, fresh]))[0, 1] / x_t.var())  # the best straight line through all pairs
    formula = float(ideal_eps(x_t[:2], t, [1.0], 0.25).diff() / x_t[:2].diff())
    print(f"t = {t}: slope fitted to 200,000 pairs {slope:.1f}, of the formula {formula:.1f}")

# %% [markdown]
# > **Check.** Nobody told the fit about the formula, and they agree.
#
# Now two lumps, around -1 and 1: a world with two kinds of pictures. Here is what the ideal denoiser takes for the
# clean number, $\hat x_0$, over what it sees:

# %%
LUMPS, SPREAD = [-1.0, 1.0], 0.15


def two_lumps(x, t):
    return ideal_eps(x, t, LUMPS, SPREAD)


def a_of(t):
    return 1.0 if t is None else float(alpha_bar[t])  # None is the clean end


def x0_from(x, eps, t):
    return (x - math.sqrt(1 - a_of(t)) * eps) / math.sqrt(a_of(t))


x = torch.linspace(-2.5, 2.5, 201, dtype=torch.float64)
guesses = {t: x0_from(x, two_lumps(x, t), t) for t in (999, 700, 400, 100)}
figure, axes = plt.subplots(figsize=(5.6, 2.9))
for (t, guess), line in zip(guesses.items(), ("-", "--", "-.", ":"), strict=True):
    axes.plot(x, guess, line, label=f"t = {t}")
axes.set(xlabel="x_t", ylabel="x0_hat", ylim=(-1.5, 1.5))
axes.legend()
show(figure, alt="x0_hat over x_t: at t = 999 nearly flat at 0, at 400 an S from -1 to 1, at 100 a step between lumps.")
print(f"t = 999: whatever it sees, x0_hat lies within {float(guesses[999].abs().max()):.2f} of 0")

# %% [markdown]
# There is the mush, without any network: at $t = 999$ the best denoiser of this world says "about 0" and no clean
# number is 0. At $t = 100$ it has made up its mind.
#
# ## Step 2: DDPM, a loop with dice
#
# Lesson 04 ended with a Gaussian for the step before: if $x_t$ and $x_0$ are known, $x_{t-1}$ has a known mean and
# variance. Only $x_0$ is unknown now. DDPM (Ho et al. 2020) puts the network's guess $\hat x_0$ in its place, draws
# from that Gaussian, and goes on. The dice repair what the guess got wrong: the next answer is given from a new
# place.
#
# $$x_{t'} = \frac{\sqrt{\bar\alpha_{t'}}\,\beta}{1-\bar\alpha_t}\,\hat x_0
# + \frac{\sqrt{1-\beta}\,(1-\bar\alpha_{t'})}{1-\bar\alpha_t}\,x_t
# + \sqrt{\tfrac{1-\bar\alpha_{t'}}{1-\bar\alpha_t}\,\beta}\;\epsilon,
# \qquad \beta = 1 - \frac{\bar\alpha_t}{\bar\alpha_{t'}}$$
#
# {{notation t a_prev x0_hat noise}}
#
# (This is the smaller of the two variances that DDPM tries; the other is $\beta$ itself.)
#
# Here $t'$ is the next time of the run. It is $t - 1$ if you visit all thousand, and may lie further off if you do
# not. As a loop over ten thousand numbers that start as pure noise:

# %%
x = normal(10_000, seed=3)
for t in range(999, -1, -1):
    a, a_prev = float(alpha_bar[t]), float(alpha_bar[t - 1]) if t > 0 else 1.0
    x0_hat = (x - math.sqrt(1 - a) * two_lumps(x, t)) / math.sqrt(a)
    beta = 1 - a / a_prev
    mean = math.sqrt(a_prev) * beta / (1 - a) * x0_hat + math.sqrt(1 - beta) * (1 - a_prev) / (1 - a) * x
    x = mean + math.sqrt((1 - a_prev) / (1 - a) * beta) * normal(10_000, seed=t)  # the root is 0 at the last step
there = x[x > 0]
print(f"right lump: share {len(there) / len(x):.1f}, mean {there.mean():.1f}, spread {there.std():.2f}")
figure, axes = plt.subplots(figsize=(5.6, 2.2))
axes.set(xlabel="x", ylabel="how many")
axes.hist([x, torch.tensor(LUMPS).repeat(5000) + SPREAD * normal(10_000, seed=4)], 60, label=["drawn", "of this world"])
axes.legend()
show(figure, alt="Two histograms side by side, drawn numbers and numbers of this world: the same lumps at -1 and 1.")

# %% [markdown]
# > **Check.** Half end at each lump, and each lump has its mean and nearly its spread of 0.15. (A hair too little, for
# > two reasons. The Gaussian takes $\hat x_0$ for the truth, so its dice are a little too small. And the last step goes
# > straight to $\hat x_0$; step 6 shows what that costs.) From pure noise you have drawn numbers of this world that
# > nobody put in.
#
# As a function, it is one step between any two times. It takes the noise from outside, so that you decide about
# chance:


# %%
def my_ddpm(x, eps, t, t_prev, noise):
    a, a_prev = a_of(t), a_of(t_prev)
    beta = 1 - a / a_prev
    mean = math.sqrt(a_prev) * beta * x0_from(x, eps, t) + math.sqrt(1 - beta) * (1 - a_prev) * x
    return mean / (1 - a) + math.sqrt((1 - a_prev) / (1 - a) * beta) * noise


x, eps, dice = (normal(2, 4, 16, 16, seed=s) for s in (5, 6, 7))


def agree(mine, theirs):
    return all(torch.allclose(mine(t, u), theirs(t, u)) for t, u in [(999, 949), (500, 499), (300, 250), (19, None)])


package = agree(lambda t, u: my_ddpm(x, eps, t, u, dice), lambda t, u: ddpm_step(x, eps, t, u, schedule, dice).x_prev)
print("equal to the package's ddpm_step:", package)

# %% [markdown]
# To watch numbers on their way, you need a loop that keeps every step. It is the same for every rule that follows.
# Give it twelve numbers and 200 steps; you see their ways in a moment, beside others:


# %%
def walk(step, grid, x, eps_of):
    """All x on the way, from grid[0] to the clean end. step(x, eps, t, t_prev, k) gives the next x."""
    way = [x]
    for k, (t, t_prev) in enumerate(pairwise([*grid, None])):
        way.append(step(way[-1], eps_of(way[-1], t), t, t_prev, k))
    return torch.stack(way)


def with_dice(x, eps, t, t_prev, k):
    return my_ddpm(x, eps, t, t_prev, normal(*x.shape, seed=k).to(x))


fine = timestep_grid(schedule, 200, "trailing")
starts = torch.linspace(-1.8, 1.8, 12, dtype=torch.float64)
dicey = walk(with_dice, fine, starts, two_lumps)

# %% [markdown]
# ## Step 3: DDIM, the same without dice
#
# Do you need the dice? Song et al. (2021) noticed that the network was trained on single noise levels only. It never
# saw *how* a picture got from one level to the next. So any way of going is allowed, as long as the numbers at each
# level are what the network knows: $\sqrt{\bar\alpha_{t'}}$ of a clean number and noise of variance
# $1 - \bar\alpha_{t'}$. The noise may be fresh, or it may be the old one, which the network has just told you. Or a
# bit of both:
#
# $$x_{t'} = \sqrt{\bar\alpha_{t'}}\;\hat x_0 + \sqrt{1 - \bar\alpha_{t'} - v}\;\hat\epsilon + \sqrt{v}\;\epsilon,
# \qquad v = \eta^2\,\frac{1-\bar\alpha_{t'}}{1-\bar\alpha_t}\Bigl(1 - \frac{\bar\alpha_t}{\bar\alpha_{t'}}\Bigr)$$
#
# {{notation eta}}
#
# The variances of the two noises add up to $1 - \bar\alpha_{t'}$ for every $\eta$ (DDIM, eq. 12 and 16).


# %%
def my_ddim(x, eps, t, t_prev, eta=0.0, noise=0.0):
    a, a_prev = a_of(t), a_of(t_prev)
    v = eta**2 * (1 - a_prev) / (1 - a) * (1 - a / a_prev)
    return math.sqrt(a_prev) * x0_from(x, eps, t) + math.sqrt(1 - a_prev - v) * eps + math.sqrt(v) * noise


def ddim_agrees(eta):
    def package(t, u):
        return ddim_step(x, eps, t, u, schedule, eta, dice, final_alpha_one=True).x_prev

    return agree(lambda t, u: my_ddim(x, eps, t, u, eta, dice), package)


print("equal to the package's ddim_step:", all(ddim_agrees(eta) for eta in (0.0, 0.5, 1.0)))
one = agree(lambda t, u: my_ddim(x, eps, t, u, 1.0, dice), lambda t, u: my_ddpm(x, eps, t, u, dice))
print("with eta = 1 it is DDPM:", one)

# %% [markdown]
# > **Careful.** Where does a run end? `final_alpha_one=True` ends at the clean picture, $\bar\alpha = 1$. DDIM in the
# > code of the paper, in Stable Diffusion and by default here ends at $\bar\alpha_0$ instead, so that a trace of noise
# > stays. Both are in use. Copy one without the other's grid, and your pictures differ from everybody's.


# %%
def without_dice(x, eps, t, t_prev, k):
    return my_ddim(x, eps, t, t_prev)


ways = walk(without_dice, fine, starts, two_lumps)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
for panel, way, title in zip(axes, (dicey, ways), ("DDPM (eta = 1)", "DDIM (eta = 0)"), strict=True):
    panel.plot([*fine, 0], way, linewidth=0.9)
    panel.set(xlim=(999, 0), xlabel="t", title=title)
axes[0].set_ylabel("x")
show(
    figure,
    alt="Left, jagged and crossing ways of DDPM; right, smooth ways of DDIM that part towards -1 and 1 uncrossed.",
)
print("DDIM twice from the same noise, the same end:", torch.equal(ways, walk(without_dice, fine, starts, two_lumps)))
other = walk(lambda *step: with_dice(*step[:4], step[4] + 500), fine, starts, two_lumps)
print("DDPM twice with other dice, the same end:", torch.allclose(dicey[-1], other[-1], atol=0.01))
print("ways of DDIM that cross:", int((ways.diff(dim=1) <= 0).any(dim=0).sum()))

# %% [markdown]
# With dice, the ways stagger and cross, and where one ends is open until late. Without, everything is decided by the
# first noise. The ways are smooth, and they never cross: each noise belongs to one picture. That has three uses. A
# seed is a picture. You can go *back* from a picture to its noise (below). And smooth ways can be followed in long
# strides.
#
# ## Step 4: how wrong is a stride?
#
# The smooth way is the solution of a differential equation (the *probability flow ODE*, Song et al. 2021), and DDIM
# follows it in straight strokes. With infinitely many steps it would be exact. How wrong is it with $n$ steps? For one
# Gaussian lump the exact answer is known: as there is no chance, a number that lies two spreads above the mean stays
# two spreads above the mean, all the way:
#
# $$\frac{x_t - \sqrt{\bar\alpha_t}\,m}{\sqrt{\bar\alpha_t s^2 + 1 - \bar\alpha_t}} = \text{constant}$$
#
# Start at $t = 900$, stop at $t = 100$, and compare. (Why not at 0? You will see in step 6.)


# %%
def exact(x, t, t_end, mean=1.0, spread=0.25):
    """Where x at time t really ends up at time t_end."""
    a, b = a_of(t), a_of(t_end)
    height = (x - math.sqrt(a) * mean) / math.sqrt(a * spread**2 + 1 - a)
    return math.sqrt(b) * mean + math.sqrt(b * spread**2 + 1 - b) * height


def one_lump(x, t):
    return ideal_eps(x, t, [1.0], 0.25)


COUNTS = (5, 10, 20, 40, 80, 160)


def misses(make_step):
    """Mean distance from the exact answer at t = 100, for runs of n even steps from t = 900."""
    found, x = [], normal(1000, seed=8)
    for n in COUNTS:
        grid = list(range(900, 99, -800 // n))
        end = walk(make_step(), grid, x, one_lump)[-2]  # the last entry is the clean end
        found.append(float((end - exact(x, 900, 100)).abs().mean()))
    return found


by_ddim = misses(lambda: without_dice)
print("DDIM: each doubling of the steps divides the error by", [round(a / b, 1) for a, b in pairwise(by_ddim)])

# %% [markdown]
# > **Check.** Twice the steps, half the error. A method whose error falls like $1/n^p$ has **order** $p$: DDIM has
# > order 1. That is a slow deal: for one more correct digit you pay ten times the steps.
#
# ## Step 5: DPM-Solver++(2M), a stride with memory
#
# During one stride, DDIM acts as if the network's answer stood still. It does not: $\hat x_0$ drifts as more becomes
# visible. You could ask the network again in the middle, at twice the cost. Or you look at your notes: the answer of
# the step *before* is known, and two answers show where $\hat x_0$ is heading. That is DPM-Solver++(2M) (Lu et al.
# 2022): second order, multistep, one answer per step.
#
# It needs the right clock. Write $\alpha = \sqrt{\bar\alpha}$, $\sigma = \sqrt{1-\bar\alpha}$. Over the log-SNR
# $\lambda = \log(\alpha/\sigma)$ the equation becomes so simple that a constant $\hat x_0$ is followed exactly,
# however long the stride:
#
# $$x_{t'} = \frac{\sigma_{t'}}{\sigma_t}\,x_t - \alpha_{t'}\,(e^{-h} - 1)\,D, \qquad
# D = \Bigl(1 + \frac{1}{2r}\Bigr)\hat x_0 - \frac{1}{2r}\,\hat x_0^{\text{before}}, \qquad
# r = \frac{h_{\text{before}}}{h}$$
#
# {{notation log_snr h D}}
#
# $D$ is the straight line through the last two answers, read off in the middle of this stride. At the first step
# there is no "before", so $D = \hat x_0$; at the clean end $\lambda$ is infinite, and the step goes to $\hat x_0$.


# %%
def log_snr(t):
    a = a_of(t)
    return math.inf if a == 1 else 0.5 * math.log(a / (1 - a))


class My2M:
    """DPM-Solver++(2M). It remembers the answer of the step before, so make a new one for every run."""

    def __init__(self):
        self.before = None

    def __call__(self, x, eps, t, t_prev, k=0):
        x0_hat, aim = x0_from(x, eps, t), x0_from(x, eps, t)
        h = log_snr(t_prev) - log_snr(t)
        if self.before is not None and t_prev is not None:
            t_before, x0_before = self.before
            lean = h / (2 * (log_snr(t) - log_snr(t_before)))  # 1 / (2 r)
            aim = (1 + lean) * x0_hat - lean * x0_before
        self.before = t, x0_hat
        sigmas = math.sqrt((1 - a_of(t_prev)) / (1 - a_of(t)))
        return sigmas * x - math.sqrt(a_of(t_prev)) * math.expm1(-h) * aim


mine = My2M()
mine.before = 700, dice
package = dpmpp_2m_step(x, eps, 650, 300, schedule, t_before=700, x0_before=dice).x_prev
print("equal to the package's dpmpp_2m_step, on an uneven grid:", torch.allclose(mine(x, eps, 650, 300), package))
print("its first step is DDIM:", agree(lambda t, u: My2M()(x, eps, t, u), lambda t, u: my_ddim(x, eps, t, u)))

# %% [markdown]
# > **Check.** Without a memory the two are one formula in two coats: DDIM is the first-order method of this family.
#
# Now the second order has to show:

# %%
by_2m = misses(My2M)
print("2M: each doubling of the steps divides the error by", [round(a / b, 1) for a, b in pairwise(by_2m)])
print("measured orders:", [round(math.log2(found[-2] / found[-1]), 1) for found in (by_ddim, by_2m)])
print("2M with 20 steps is nearer than DDIM with 160:", by_2m[2] < by_ddim[5])
figure, axes = plt.subplots(figsize=(5.6, 2.8))
axes.loglog(COUNTS, by_ddim, "o-", label="DDIM")
axes.loglog(COUNTS, by_2m, "s--", label="DPM-Solver++(2M)")
axes.set(xlabel="steps", ylabel="error")
axes.legend()
show(
    figure,
    alt="Error over steps, both axes logarithmic: two straight lines, that of 2M twice as steep as that of DDIM.",
)

# %% [markdown]
# > **Key idea.** Order 1: twice the steps, half the error. Order 2: a quarter. The memory costs nothing, since the
# > network is asked once per step in both.
#
# ## Step 6: where the steps lie
#
# Now all the way, from 999 to the clean end, in even steps of 2M. With ten steps, the last leap starts at $t = 99$.
# Which spread is exact, and which comes out?

# %%
print(f"exact: spread {float(exact(normal(5000, seed=9), 999, None).std()):.2f}")
for n in (5, 10, 20, 50, 200):
    ends = walk(My2M(), timestep_grid(schedule, n, "trailing"), normal(5000, seed=9), one_lump)[-1]
    print(f"{n} even steps: spread {float(ends.std()):.2f}")

# %% [markdown]
# The numbers huddle too close around the mean. The main reason is the last leap. It goes straight to $\hat x_0$, the
# mean of what is possible, and what was still possible is lost: the mush of the beginning, on a small scale. In
# pictures it is the fine detail that is missing. On the clock of 2M you see how large that leap is:

# %%
figure, axes = plt.subplots(figsize=(6, 2.8))
axes.plot([log_snr(t) for t in range(1000)], color="0.6")
for spacing, mark in {"trailing": "o", "leading": "s"}.items():
    ten = timestep_grid(schedule, 10, spacing)
    axes.plot(ten, [log_snr(t) for t in ten], mark, fillstyle="none", label=f"10 steps, {spacing}")
    print(f"4 steps, {spacing}:", timestep_grid(schedule, 4, spacing))
axes.set(xlabel="t", ylabel="log-SNR")
axes.legend()
show(figure, alt="Log-SNR over t, steepest near t = 0; of the steps of two even grids, nearly none lie up there.")

# %% [markdown]
# > **Careful.** *leading* is the grid of Stable Diffusion and of our pipeline. With 50 steps it starts at 981, and
# > nobody minds. With 4 it starts at 751: pure noise comes in, and the network is told that a good part of the
# > picture is there already. *trailing* starts at 999, whatever the number (Lin et al. 2023).
#
# > **In the paper.** The reference code of Rombach et al. takes every $c$-th time, with
# > $c = \lfloor 1000 / n \rfloor$, and adds 1. Ask it for 30 steps, and count.
# > And 9 steps? The table ends at 999:

# %%
for n in (20, 30, 75, 9):
    times = range(0, 1000, 1000 // n)
    print(f"asked for {n} steps, got {len(times)}, the first at t = {times[-1] + 1}")

# %% [markdown]
# The grid is yours to choose. In the last exercise you find one of ten steps that is several times better.
#
# ## Step 7: from numbers to pictures
#
# Nothing changes but the denoiser. The loop of the package is a generator, `ldm_tutor.sampling.loop.sample`: it stops
# after every step and hands you the state, so that you can look at it. Prove that it is your loop, then let all three
# draw the same sentence from the same noise.


# %%
guided = denoiser(sentences[:1])
ends = walk(My2M(), timestep_grid(schedule, 20), pipeline.noise([1]), lambda x, t: guided(x, t, 0))[-1]
SAMPLERS = ("ddpm", "ddim", "dpm++")
runs = {name: list(pipeline.steps(sentences[:1], [1], num_steps=20, sampler=name)) for name in SAMPLERS}
print("your loop and the pipeline end at the same latents:", torch.allclose(ends, runs["dpm++"][-1].latents, atol=1e-3))
shown = [(name, k) for name in runs for k in (0, 4, 9, 14, 19)]
alt = "Three rows, one per sampler: the same noise clears into a car on a beach within 20 steps."
look([pipeline.decode(runs[name][k].latents) for name, k in shown], [f"{n}, step {k + 1}" for n, k in shown], 5, alt)

# %% [markdown]
# > **Check.** From here on the samplers are `ldm_tutor.sampling.steps`, and the loop is
# > `ldm_tutor.sampling.loop.sample`.
#
# DDIM and 2M follow the same smooth way, so they are bound for the same picture, and DDPM with its dice is not. Is
# that true with a real network? A run of 64 steps is our stand-in for the exact answer. How near to it do short runs
# of both come, in decibels of PSNR?

# %%
six = denoiser([*sentences, "a purple boat on a beach", "a red rocket at night"])


def run(sampler, num_steps):
    settings = {"sampler": sampler, "num_steps": num_steps, "spacing": "trailing", "final_alpha_one": sampler == "ddim"}
    *_, state = sample(six, pipeline.noise(range(1, 7)), schedule, **settings)
    return pipeline.decode(state.latents)


target = run("dpm++", 64)
short = {(name, n): run(name, n) for name in ("ddim", "dpm++") for n in (4, 8, 16)}
near = {key: psnr(each, target) for key, each in short.items()}
gains = [float(near[name, 16].median() - near[name, 4].median()) for name in ("ddim", "dpm++")]
print("from 4 to 16 steps, both come more than 3 dB nearer:", min(gains) > 3)
print("with 16 steps, 2M is nearer for five of six or more:", int((near["dpm++", 16] > near["ddim", 16]).sum()) >= 5)
views, titles = [], []
for k, name in ((2, "ddim"), (2, "dpm++"), (5, "ddim"), (5, "dpm++")):  # the ball, then the rocket
    views += [*(short[name, n][k : k + 1] for n in (4, 8, 16)), target[k : k + 1]]
    titles += [*(f"{name} {n}, {float(near[name, n][k]):.0f} dB" for n in (4, 8, 16)), "64 steps"]
alt = "By DDIM and 2M with 4, 8, 16, 64 steps: a ball, early close; a rocket by night, whose moon changes sides."
look(views, titles, 4, alt)

# %% tags=["nbval-ignore-output"]
for (name, n), each in near.items():
    print(f"{name:6} {n:2} steps, dB per picture:", [round(value) for value in each.tolist()])

# %% [markdown]
# The ball is there early, and comes nearer with every doubling; 2M is ahead, as its order promises. The rocket is the
# other case: after four steps the moon has not decided for a side, after eight it stands on the left, as in the long
# run, and after 16 on the right, by both rules. In the last cell you know such a picture by its few decibels. Two lumps
# show why: near the middle, ways that start side by side end far apart. The other turning is a good picture, too. So
# "near the exact solution" and "a good picture" are two questions.
#
# ## Step 8: quality against steps
#
# The second question needs a judge and many pictures, more than a lesson can draw. So these figures come with the
# course. One command made them, in some twenty minutes on one core; run it again and the figures are yours:
#
# ```sh
# python -m ldm_tutor.lessons.lesson_06_kit
# ```
#
# For each sampler and number of steps it draws the same held-out sentences with the same seeds and the pipeline's own
# guidance. The judge reads the pictures: does everything that the sentence says come true? The second measure is the
# Fréchet distance of the judge's features between these pictures and a thousand real scenes (lesson 11): the recipe of
# the FID, on our own features.

# %%
figures = load_figures()
show(quality_figure(figures), alt="Over steps, three samplers: share of sentences drawn right; Fréchet distance.")
print(*(f"{name}: {figures[name]}" for name in ("num", "num_reference", "guidance")), sep=", ")
print("at four steps, 2M comes last:", min(SAMPLERS, key=lambda name: curve(figures, name, "all")[1][0]) == "dpm++")
print("real scenes are far from real scenes, more than 5:", figures["real"]["distance"] > 5)


# %% tags=["nbval-ignore-output"]
print(quality_table(figures))

# %% [markdown]
# Read it with care. Each share has an interval, as the last cell shows: with this many pictures, a difference of four
# or five in a hundred may be luck. The distance has a worse flaw. Few pictures push it up, so much that *real* scenes
# are far from real scenes. The two grey lines, nearly one, are real scenes and the same scenes folded and unfolded by
# the autoencoder. They are the floor, and only the distance above them means something; never compare such a number
# with one from a paper, which took tens of thousands of pictures and other features. What the figure does say: the gain
# from more steps is at the beginning of the curve. From eight on you pay more and get little.
#
# And where is the second order? 2M, nearest to the exact end in step 7, is nowhere clearly ahead here; DDPM, which does
# not even aim for that end, is nowhere clearly behind, and with 32 steps ahead of both others. Look at what goes wrong.
# Draw 64 held-out sentences in ten steps by both, and show every picture in which the judge sees more things than were
# asked for, beside the other sampler's:

# %%
held_out = render_scenes(64, "test")
ten = {name: pipeline.draw(held_out.captions, range(64), num_steps=10, sampler=name) for name in ("dpm++", "ddpm")}
told = {name: judged(each, held_out.captions) for name, each in ten.items()}
found = sorted({k for _, more in told.values() for k in more})
alt = "Above by 2M, below by DDPM: a boat and a house stand twice above, once below; a ball and a tree the other way."
names = [f"{name}, sentence {k}" for name in ("2M", "DDPM") for k in found]
look([each[found] for each in ten.values()], names, len(found), alt)

# %% tags=["nbval-ignore-output"]
for name, (right, more) in told.items():
    print(f"{name:5} all right: {right}; with a thing too many: {more}")
print(*[f"{k}: {held_out.captions[k]}" for k in found], sep="\n")

# %% [markdown]
# The same sentence, first noise and network, and 2M draws a boat and a house twice where DDPM draws them once. In the
# other two columns it is the other way round. Two to two says nothing; below are figures from hundreds.
#
# Could dice help? The network is not ideal: now and then it begins a second boat. Follow such a slip where every number
# is known. In the world of one lump, push a number by 1 half way. How much of the push is left at the end?

# %%
late, pair = [t for t in fine if t < 500], torch.tensor([0.0, 1.0], dtype=torch.float64)
rules = {"DDIM": without_dice, "2M": My2M(), "DDPM": lambda *step: my_ddpm(*step[:4], normal(1, seed=step[4]))}
for name, rule in rules.items():
    print(f"{name}: of a slip of 1 at t = {late[0]}, {float(walk(rule, late, pair, one_lump)[-1].diff()):.3f} is left")

# %% [markdown]
# You know the first two: without chance, a number two spreads above the mean stays two spreads above it, all the way.
# A slip is carried to the end. The dice put fresh noise in the place of a part of what is there, at every step, and
# the network looks again. A sixth of that is left.
#
# > **Key idea.** An order is a promise about the differential equation, not about the picture. Its exact solution has
# > the network's slips in it. Noise at every step takes some of them back.
#
# With 20 steps, the share of pictures that show all of their sentence, and its interval:
#
# ```sh
# ldm-tutor evaluate pictures --num 512                                  # 97%, 95 to 98: DDPM, guidance 2
# ldm-tutor evaluate pictures --num 512 --sampler dpm++ --guidance 2     # 96%, 94 to 97
# ldm-tutor evaluate pictures --num 512 --sampler dpm++ --guidance 4     # 95%, 93 to 97
# ```
#
# All three overlap: this network slips so seldom that 512 sentences do not tell them apart. An earlier U-Net of this
# course slipped more often: it got 93, 90 and 88 of 100 right, in the same order, and there dice and little guidance
# (lesson 08) together made a difference. So `Pipeline` draws with both where you name neither.
#
# One thing is left to explain, at the left end of the figure: at four steps 2M is the worst. Its clock says why. On
# the grid of the pipeline the last stride between two times, from 251 to 1, is several times as long as the one before.
# So the line through two answers is drawn far beyond them. The same is true of a run of 32 steps, but there the two
# answers are nearly the same, and nothing happens. In a run of four they are not. Take the memory away, for this one
# stride only:


# %%
class Forgetful(My2M):
    def __call__(self, x, eps, t, t_prev, k):
        self.before = None if t_prev == 1 else self.before  # the last stride between two times ends at 1
        return super().__call__(x, eps, t, t_prev)


four, grid = denoiser(sentences), timestep_grid(schedule, 4)
h_before, h = (log_snr(u) - log_snr(t) for t, u in pairwise(grid[1:]))
print(f"{grid}: in the last stride, D = {1 + h / (2 * h_before):.1f} x0_hat - {h / (2 * h_before):.1f} x0_before")
pairs = [walk(step, grid, noise, lambda x, t: four(x, t, 0))[-1] for step in (My2M(), Forgetful())]
alt = "Four sentences in four steps: above 2M, a dark car, a ghost by the ball; below, clean, without the memory."
look([pipeline.decode(each) for each in pairs], ["2M, 4 steps"] * 4 + ["forgets at the last stride"] * 4, 4, alt)

# %% [markdown]
# The car has its colour, and the ghost beside the ball is gone. What is still wrong has another cause, the start at 751
# that you met in step 6.
#
# > **Careful.** An order is also a promise about *short* strides only. Well-known implementations make the last step
# > of a short run first order for this reason (below 15 steps).
#
# ## Step 9: what a step costs
#
# A step is an answer of the U-Net, two with guidance. A GAN (lesson 02 has half of one) draws with a single pass of a
# generator, which is a network much like our decoder. So the time of one decoder pass is a fair stand-in for the time
# of a GAN. Put both on a scale.


# %% tags=["nbval-ignore-output"]
latents = runs["ddim"][-1].latents
costs = {"the decoder, once": min(repeat(lambda: pipeline.decode(latents), number=1, repeat=5))}
for n in (1, 4, 20):
    times = repeat(lambda n=n: list(pipeline.steps(sentences[:1], [1], num_steps=n)), number=1, repeat=3)
    costs[f"U-Net, {n} step{'s' * (n > 1)}"] = min(times)
figure = bars(list(costs), [1000 * each for each in costs.values()], title="milliseconds per picture", width=6)
show(figure, alt="Bars of the time for one decoder pass, and for 1, 4 and 20 steps with guidance.")
print(f"20 steps take as long as {costs['U-Net, 20 steps'] / costs['the decoder, once']:.0f} decoder passes")

# %% [markdown]
# This is the limitation that the paper names, and the review repeats: latent diffusion is still slower to sample than
# a GAN. Latents made each step cheap, and better samplers made the steps few, but there is more than one, and they
# wait for each other. What would end it is a network that leaps and does not average; lesson 16 comes back to that.
#
# > **In the paper.** Rombach et al. took 200 DDIM steps for most unconditional models and 500 for one set of faces;
# > 250 for text-to-image. On churches their FID is 4.02; a GAN reached 1.59 with one pass. Stable Diffusion's script
# > takes 50.
#
# ## Backwards: from a picture to its noise
#
# DDIM's ways never cross, so you can walk them in the other direction: start with the latents of a scene, and step
# from clean to noisy. Nothing in the formula minds. There is one small dishonesty: for the step from $t$ up to $t'$
# you need the noise at $t'$, where you are not yet, so you take the answer at $t$. The finer the steps, the smaller
# the lie. Go up, come down again, and compare the pictures. Without guidance, since guidance bends the ways.

# %%
test = render_scenes(4, "test")
scenes, told_of = to_float(test.pictures), denoiser(test.captions, 1.0)
clean = pipeline.autoencoder.config.scale_factor * pipeline.autoencoder.encode(scenes).mode()


def there_and_back(num_steps):
    times, x = [None, *timestep_grid(schedule, num_steps, "trailing")[::-1]], clean
    for t, t_up in pairwise(times):
        x = ddim_step(x, told_of(x, t or 0, 0), t, t_up, schedule).x_prev
    found = x
    for t, t_down in pairwise(times[::-1]):
        x = ddim_step(x, told_of(x, t, 0), t, t_down, schedule).x_prev
    return found, x


trips = {n: there_and_back(n) for n in (5, 10, 20, 50)}
back = {n: float(psnr(pipeline.decode(x), pipeline.decode(clean)).mean()) for n, (_, x) in trips.items()}
views = [pipeline.decode(each[:1]) for each in (clean, trips[50][0], *[x for _, x in trips.values()])]
titles = ["the scene, encoded", "its noise", *[f"{n} steps, {db:.0f} dB" for n, db in back.items()]]
look(views, titles, 6, "A scene, the noise that DDIM finds for it, and what comes back in 5, 10, 20 and 50 steps.")
print("each time nearer:", all(b > a + 1 for a, b in pairwise(back.values())))
print("ten times the steps, more than 10 dB:", back[50] > back[5] + 10)

# %% [markdown]
# > **Check.** DDIM is invertible, up to the size of its steps. Ten times the steps are 20 dB at first order; look how
# > near the titles come to that.
#
# The noise that you found is a hidden copy of the picture: same sentence, same sampler, same picture. Change a word
# on the way down, and you edit a picture that you did not draw. Lesson 09 does.
#
# ## A deliberate failure
#
# Three slips that each of us has made once. All of them run, and none gives an error. *Noise at the end*: the last
# step adds dice like all others, of its whole variance $\beta = 1 - \bar\alpha_t$. *Wrong time*:
# the network is told the time of the next step, an index off by one. *Old noise kept*: fresh noise is added, and the
# old is not made smaller. Twenty steps each, first with the two lumps, where you can see what a slip does:


# %%
def faulty(fault, x, eps, t, t_prev, k):
    a, a_prev, dice = a_of(t), a_of(t_prev), normal(*x.shape, seed=k).to(x)
    if fault == "noise at the end" and t_prev is None:
        return my_ddpm(x, eps, t, t_prev, dice) + math.sqrt(1 - a) * dice
    if fault == "old noise kept":
        return my_ddim(x, eps, t, t_prev) + math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev)) * dice
    return my_ddpm(x, eps, t, t_prev, dice)


def end_of(fault, x, eps_of):
    grid = timestep_grid(schedule, 20, "trailing")
    late = dict(pairwise([*grid, grid[-1]])) if fault == "wrong time" else {}
    return walk(lambda *step: faulty(fault, *step), grid, x, lambda x, t: eps_of(x, late.get(t, t)))[-1]


# %%
FAULTS = ("no fault", "noise at the end", "wrong time", "old noise kept")
figure, axes = plt.subplots(1, 4, figsize=(10, 2), sharex=True)
for panel, fault in zip(axes, FAULTS, strict=True):
    end = end_of(fault, normal(5000, seed=10), two_lumps)
    panel.hist(end, 60, range=(-2.5, 2.5))
    panel.set(title=fault, yticks=[])
    print(f"{fault}: spread of the right lump {float(end[end > 0].std()):.2f}")
show(figure, alt="Four histograms of two lumps. Beside no fault: far too broad; too narrow; too broad.")
car = denoiser(sentences[:1])
broken = [pipeline.decode(end_of(each, pipeline.noise([1]), lambda x, t: car(x, t, 0))) for each in FAULTS]
look(broken, FAULTS, 4, "A car on a beach, without a fault and with three; where the old noise is kept, it is lost.", 3)

# %% [markdown]
# The last fault, everybody sees. You would blame the network, and train for another day. The others hide, because the
# decoder smooths them over. Here the run without a fault has even drawn a car with three wheels, and two of the faulty
# ones draw the same: one picture proves nothing. The lumps show all three at once: compare with the first histogram.
# (Its spread is 0.10 and not 0.15 without any fault: twenty even steps, and a long last leap.) Their denoiser is
# perfect, so the sampler is at fault. When a model of yours draws badly, run its sampler on a Gaussian first. It takes
# less than a second.
#
# ## Bonus: picture to picture
#
# Who says that a run has to begin with noise? Noise a picture half way, and begin there: the coarse things are left and
# pull the drawing, the fine things are new. *Strength* is the share of the steps that run. Strength 0 keeps the
# picture, strength 1 all but forgets it (lesson 04 told you what is gone at each time). In between, neither may win.
# You write its start in an exercise; `Pipeline.redraw` has the rest:

# %%
strengths = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
redrawn = [pipeline.redraw(scenes[:1], ["a red house at night"], [7], strength=each) for each in strengths]
titles = [test.captions[0], *[f"strength {each}" for each in strengths]]
look([scenes[:1], *redrawn], titles, 7, "A scene redrawn as 'a red house at night' with growing strength, ever freer.")

# %% [markdown]
# ## At full size
#
# > **At full size.** The formulas do not know how large the latents are: the same three functions draw Stable
# > Diffusion's pictures, from {{full latents}} latents with a U-Net of {{full unet}} parameters. Its script takes
# > 50 steps with a method that remembers three answers (PLMS), later programs often take 2M and fewer steps.
# > Every step asks that U-Net twice for guidance, so the number of steps *is* the bill. And other programs
# > draw other pictures from the same weights and seed: one more step, another first time, another last $\bar\alpha$
# > are enough.
#
# ## Play it
#
# > **Try it.** Press play, then go step by step with the arrow keys. Above, the noisy latents; below, what the
# > network takes for the clean ones. In which step does the lower row know the background, in which the car? And
# > which of the three changes its mind?


# %%
def scene_at(k):
    states = [run[k] for run in runs.values()]
    views = [pipeline.decode(each.latents) for each in states] + [pipeline.decode(each.x0_hat) for each in states]
    return picture_grid(torch.cat(views), [*runs, *[f"{name}, x0_hat" for name in runs]], columns=3, scale=2)


told_times = [state.t for state in runs["ddim"]]
captions = [f"step {k + 1} of 20: from t = {t}, log-SNR {log_snr(t):.1f}" for k, t in enumerate(told_times)]
ALT = "Latents of three samplers in one step, decoded, and below what the network takes for the clean picture."
frames([scene_at(k) for k in range(20)], ALT, captions=captions, start=9)

# %% [markdown]
# If you read this without a running kernel, here is what the network takes for the clean picture, in six steps of
# DDIM:

# %%
alt = "The guess x0_hat in six steps: from a mush of colours over a blurred car to the finished car on a beach."
picked = (0, 2, 5, 8, 12, 19)
look(
    [pipeline.decode(runs["ddim"][k].x0_hat) for k in picked],
    [f"step {k + 1}, t = {told_times[k]}" for k in picked],
    6,
    alt,
)

# %% [markdown]
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("sampling.how_many_steps")

# %%
my_steps = (..., ...)
check.sampling.how_many_steps(my_steps)

# %%
hint("sampling.how_many_steps")

# %%
exercise("sampling.ddim")


# %%
def my_ddim_step(x_t, eps, noise, a, a_prev, eta): ...


check.sampling.ddim(my_ddim_step)

# %%
hint("sampling.ddim")

# %%
exercise("sampling.two_m")


# %%
def two_m(x_t, x0_hat, x0_before, a_before, a, a_prev):
    lam, lam_prev, lam_before = (0.5 * math.log(each / (1 - each)) for each in (a, a_prev, a_before))
    r = (lam_prev - lam) / (lam - lam_before)
    aim = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * x0_before
    return math.sqrt((1 - a_prev) / (1 - a)) * x_t - math.sqrt(a_prev) * math.expm1(lam_prev - lam) * aim


check.sampling.two_m(two_m)

# %%
hint("sampling.two_m")

# %%
exercise("sampling.redraw_start")


# %%
def my_start(latents, noise, strength, grid, alpha_bar): ...


check.sampling.redraw_start(my_start)

# %%
hint("sampling.redraw_start")

# %%
exercise("sampling.better_grid")

# %%
print(f"the even grid misses by {grid_error(timestep_grid(schedule, 10, 'trailing')):.3f}")
my_grid = ...
check.sampling.better_grid(my_grid)

# %%
hint("sampling.better_grid")

# %%
solution("sampling.ddim")

# %% [markdown]
# ## Recap
#
# - One answer of the network is the mean of what is possible. A sampler takes a small step towards it and asks again.
# - DDPM draws each step from a Gaussian. DDIM keeps the noise levels and drops the dice; $\eta$ goes from one to the
#   other.
# - Without dice, a noise belongs to one picture, the way can be walked back, and order means something.
# - DDIM has order 1, DPM-Solver++(2M) order 2, at the same price per step. An order is a promise about many steps, and
#   about the differential equation.
# - Noise at every step forgets slips. By pictures that are right, DDPM is not behind, and `Pipeline` draws with it.
# - Where a grid begins, where it ends and how its steps lie matters as much as the rule.
# - A handful of steps is enough for a picture, and still costs far more than one pass.
#
# ## Common mistakes
#
# - *Noise at the last step.* Grain in pixels; behind a decoder you hardly see it.
# - *The network is told another time than the latents stand at.* In the loop, and as the start of a run.
# - *Comparing pictures of two programs* without comparing grid and end.
# - *An inversion with guidance.* It does not come back; lesson 09 says what to do.
# - *A memory from the run before.* Make a new solver for every run.
# - *Reading a ranking from few pictures.* Look at the interval first.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Ho, Jain, Abbeel: *Denoising Diffusion Probabilistic Models*, 2020 (arXiv 2006.11239). Step 2.
# - Song, Meng, Ermon: *Denoising Diffusion Implicit Models*, 2021 (arXiv 2010.02502). Step 3, and the way back.
# - Song et al.: *Score-Based Generative Modeling through Stochastic Differential Equations*, 2021 (arXiv 2011.13456).
#   The differential equation of step 4.
# - Lu, Zhou, Bao, Chen, Li, Zhu: *DPM-Solver++*, 2022 (arXiv 2211.01095). Step 5.
# - Karras, Aittala, Aila, Laine: *Elucidating the Design Space of Diffusion-Based Generative Models*, 2022 (arXiv
#   2206.00364). Grid, order and noise as separate choices.
# - Lin, Liu, Li, Yang: *Common Diffusion Noise Schedules and Sample Steps are Flawed*, 2023 (arXiv 2305.08891). Why
#   the grid should begin at the end.
# - Meng et al.: *SDEdit*, 2021 (arXiv 2108.01073). Picture to picture.
#
# ## Next stop
#
# **07 · Cross-attention: how does a word reach a pixel?** The sentence went in as `context` and a car came out. You
# open the place where the two meet.
