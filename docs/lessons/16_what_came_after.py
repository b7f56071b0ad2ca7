# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 16 · What came after: and since?
#
# The model that you have built is that of 2022. Newer ones are larger, see more pictures, read longer sentences, and
# three of their ideas sit in places that you know well: in the question that the network is asked, in the way from
# noise to picture, and in the network itself. The first two are a change of a few lines in your training step, the
# third is a class of some twenty. You will have made a cloud of noise that walks into the shapes of a cat and a dog,
# then walked the course's own model along the way of the newer ones without training it again, and you will have
# measured what each idea is worth at equal cost.
#
# > **Goal.** Write v-prediction, flow matching and the diffusion transformer (DiT), see how near they are to what you
# > have, and find out which of them helps here, and how you would know elsewhere.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.lessons import lesson_16_show as kit
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.cost import cost_card
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.losses.denoising import step_weight
from ldm_tutor.models.dit import DiT, DiTBlock, DiTConfig, patchify
from ldm_tutor.nn.attention import Attention
from ldm_tutor.nn.embeddings import timestep_embedding
from ldm_tutor.nn.work import work_of
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.plots.figures import STYLE, picture_rows, show
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.steps import timestep_grid
from ldm_tutor.sampling.velocity import sample_flow, sees_noise
from ldm_tutor.schedule import FlowSchedule
from ldm_tutor.widgets.live import live

torch.set_num_threads(min(2, torch.get_num_threads()))
plt.rcParams.update(STYLE)

# %% [markdown]
# ## Fact box

# %%
fact_box(16)

# %% [markdown]
# ## Where you are

# %%
course_map(16)

# %% [markdown]
# ## Try first: how good is a good answer?
#
# Your U-Net is asked for the noise. Where does it answer best? Take held-out scenes, noise them to several time steps,
# and look at the error twice: the error of the noise, which is what the training sees, and that of the clean latents
# that follow from it, which is what the picture is made of.

# %%
pipeline = load_pipeline()
schedule, unet = pipeline.schedule, pipeline.unet
alpha_bar = schedule.alpha_bar.float()
test = render_scenes(32, "test")
with torch.no_grad():
    x0 = pipeline.autoencoder.to_latents(to_float(test.pictures), torch.Generator().manual_seed(0))
    words = pipeline.embed(test.captions)
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
TIMES = [20, 100, 250, 400, 550, 700, 850, 950, 999]


@torch.no_grad()
def errors_at(t):
    """Root mean squared errors of the noise and of the clean latents, where the U-Net is asked at time step t."""
    steps = torch.full((len(x0),), t)
    x_t = schedule.add_noise(x0, noise, steps)
    eps_hat = unet(x_t, steps, words)
    x0_hat = schedule.x0_from_eps(x_t, eps_hat, steps)
    return [float((a - b).square().mean().sqrt()) for a, b in ((eps_hat, noise), (x0_hat, x0))]


of_noise, of_x0 = zip(*map(errors_at, TIMES), strict=True)
both = {"of the noise": of_noise, "of the clean latents": of_x0}
figure = kit.curves(TIMES, both, marks=True, xlabel="time step", ylabel="error", ylim=(0, None))
show(figure, alt="Over the time step, the error of the noise falls while the error of the clean latents rises.")
factor = float(((1 - alpha_bar[999]) / alpha_bar[999]).sqrt())
print("the noise is seen best at the noisiest step:", min(of_noise) == of_noise[-1])
print(f"there an error in it is {factor:.1f} times as large in the clean latents")

# %% [markdown]
# The answer gets better and better, and means less and less. At the noisy end nearly everything *is* noise, so "what
# you see is the noise" is almost right, and knows nothing of the picture. To get at the picture you divide by
# $\sqrt{\bar\alpha_t}$, which is small there, and every slip grows with it.
#
# ## A failure on purpose: all the way to noise
#
# You draw from pure noise. But the training never sees pure noise: at the last step a trace of the picture is left,
# and the network learns to read that trace, such as the mean brightness. Lin et al. (2024) saw that this is why many
# models cannot draw a really dark picture. The repair seems easy: change the schedule so that $\bar\alpha$ ends at 0.


# %%
def x0_from_noise(x_t, eps, a):
    return (x_t - (1 - a) ** 0.5 * eps) / a**0.5


pure = noise[:1]
print("clean latents, where alpha_bar is 0:", float(x0_from_noise(pure, pure, torch.tensor(0.0)).mean()))

# %% [markdown]
# Nothing divided by nothing. At that step the noise says nothing at all about the picture, and no training changes
# that. It is the *question* that is at fault.
#
# > **Key idea.** The noise, the clean latents, and nearly any mixture of both (not $x_t$ itself, which is known
# > already) are the same knowledge, as long as $x_t$ is known too. Which of them the network has to say decides how its
# > slips grow, how much each noise level counts in the loss, and whether the ends work at all.
#
# ## Step 1: v-prediction, a quarter of a circle
#
# The two factors of the closed form, $\sqrt{\bar\alpha_t}$ and $\sqrt{1-\bar\alpha_t}$, are the cosine and the sine of
# an angle $\varphi$, since their squares add up to 1. So a latent moves along a quarter of a circle, from the picture
# to the noise. Its velocity on this way is the third natural answer (Salimans and Ho 2022):
#
# $$x_\varphi = \cos\varphi\;x_0 + \sin\varphi\;\epsilon, \qquad
# v = \frac{dx_\varphi}{d\varphi} = \cos\varphi\;\epsilon - \sin\varphi\;x_0$$
#
# {{notation x0 noise angle v_velocity}}

# %%
angle = torch.arccos(alpha_bar.double().sqrt())[500]
a, b = x0.double(), noise.double()


def on_circle(phi):
    return phi.cos() * a + phi.sin() * b


v = angle.cos() * b - angle.sin() * a
nearby = (on_circle(angle + 1e-4) - on_circle(angle - 1e-4)) / 2e-4
print("v is the velocity along the circle:", torch.allclose(v, nearby, atol=1e-6))
x = on_circle(angle)
print("back to the clean latents, by a turn:", torch.allclose(angle.cos() * x - angle.sin() * v, a))
print("and to the noise:", torch.allclose(angle.sin() * x + angle.cos() * v, b))
show(kit.quarter_circle(), alt="A quarter circle from picture to noise, and v as three arrows along it.")

# %% [markdown]
# Nothing is divided. At the clean end $v$ is the noise, at the noisy end minus the picture; so at every noise level the
# network is asked for what it cannot read off $x_t$. A slip in $v$ reaches the clean latents and the noise as it is, or
# smaller:

# %%
phi = torch.arccos(alpha_bar.sqrt())
growth = {"asked for noise": phi.tan(), "asked for v": phi.sin()}
figure = kit.curves(range(1000), growth, kind="semilogy", xlabel="time step", ylabel="slip of clean latents / slip")
show(figure, alt="Growth of a slip over time step: asked for noise it climbs above ten, asked for v it stays below 1.")

# %% [markdown]
# And the loss? Put the formulas into each other, and the squared error of $v$ is the squared error of the noise,
# divided by $\bar\alpha_t$. So v-prediction with a plain loss *is* noise prediction with a weight. You know that
# weight's cousin: the course's U-Net was trained with `step_weight` (lesson 05), since noisy steps counted too little.

# %%
steps = torch.full((len(x0),), 700)
x_t = schedule.add_noise(x0, noise, steps)
slip = 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
of_v = schedule.v_from_eps(x_t, noise + slip, steps) - schedule.v_from_eps(x_t, noise, steps)
same = torch.allclose(of_v.square().mean(), slip.square().mean() / alpha_bar[700], rtol=1e-3)
print("loss of v = loss of the noise / alpha_bar:", same)
weights = {"plain noise loss": alpha_bar**0, "the course's weight": step_weight(alpha_bar), "v": 1 / alpha_bar}
figure = kit.curves(range(1000), weights, kind="semilogy", xlabel="time step", ylabel="weight of the noise loss")
show(figure, alt="Weights over time step: level, and two curves that rise together to above one hundred at the end.")

# %% [markdown]
# To draw with such a network you need no new sampler. Turn its answer into noise, and give that to the old ones. As a
# function, it wraps any denoiser; from here on it is `ldm_tutor.sampling.velocity.sees_noise`:


# %%
def my_sees_noise(network, alpha_bar):
    def denoiser(x, t, step):
        a = float(alpha_bar[t])
        return (1 - a) ** 0.5 * x + a**0.5 * network(x, t, step)

    return denoiser


def pretended(x, t, step):
    return torch.tanh(x)  # any answer will do


mine, theirs = my_sees_noise(pretended, alpha_bar), sees_noise(pretended, schedule)
print("equal to the package's:", all(torch.allclose(mine(x_t, t, 0), theirs(x_t, t, 0), atol=1e-5) for t in (0, 999)))

# %% [markdown]
# > **Careful.** Behind the wrapper an old sampler divides by $\sqrt{\bar\alpha_t}$ again. The course's schedule never
# > reaches 0, so that is allowed here. For one that does, take the clean latents from $v$ at once:
# > $\hat x_0 = \cos\varphi\, x - \sin\varphi\,v$.
#
# And now the end can be mended. Lin et al. shift and stretch $\sqrt{\bar\alpha_t}$ so that it keeps its first value and
# ends at 0, pure noise (*zero terminal SNR*):

# %%
root = alpha_bar.sqrt()
rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
print("ends at 0:", float(rescaled[-1]) == 0, "| begins as before:", bool(torch.isclose(rescaled[0], alpha_bar[0])))

# %% [markdown]
# ## Step 2: flow matching, a straight line
#
# If the way may be chosen, why a circle? Take the simplest one, a straight line at constant speed, with a time $u$ that
# runs from 0, the picture, to 1, the noise. The network is asked for the direction:
#
# $$x_u = (1-u)\,x_0 + u\,\epsilon, \qquad \frac{dx_u}{du} = \epsilon - x_0$$
#
# {{notation flow_time flow_velocity}}
#
# No schedule, no table, no $\bar\alpha$. This is called *rectified flow* (Liu et al. 2023) or *flow matching* with
# straight ways (Lipman et al. 2023), and many large models since 2024 are trained like that.
#
# To see what it learns, make the world small. The "pictures" are single points in the plane, drawn from the shapes of a
# cat and a dog. A point is a picture with one pixel and two channels, so everything you have works on it.

# %%
pets = kit.silhouette("cat", "dog")
data = kit.points_in(pets, 20_000, seed=0)[:, :, None, None]  # (n, 2, 1, 1)


def points(x):
    return x.detach().flatten(1)


start = torch.randn(3000, 2, 1, 1, generator=torch.Generator().manual_seed(5))
lines = {f"u = {u:g}": (1 - u) * data[:3000] + u * start for u in (0, 0.25, 0.5, 0.75, 1)}
show(
    kit.clouds({name: points(x) for name, x in lines.items()}),
    alt="Points in the shapes of a cat and a dog dissolve into a round cloud in five steps.",
)
print("of the data inside the two shapes:", round(kit.share_inside(pets, points(data)), 2))
print("of the noise:", round(kit.share_inside(pets, points(start)), 1))

# %% [markdown]
# The network is a few linear layers that are told the point and the time. What changes between noise prediction,
# v-prediction and flow matching is only the function that makes the question. Compare the three, line by line:


# %%
class Field(nn.Module):
    """A small network from a point (b, 2, 1, 1) and a time 0 to 1000 to two numbers."""

    def __init__(self, width=128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 16 + 32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x, t):
        x = x.flatten(1)
        waves = (x[:, :, None] * 2.0 ** torch.arange(4)).flatten(1)  # a place told as waves, as the time is
        told = torch.cat([x, waves.sin(), waves.cos(), timestep_embedding(t, 32)], dim=1)
        return self.layers(told)[:, :, None, None]


def ask_noise(x0, noise, u):
    t = (999 * u).round().long()
    return schedule.add_noise(x0, noise, t), t.float(), noise


def ask_v(x0, noise, u):
    t = (999 * u).round().long()
    x_t = schedule.add_noise(x0, noise, t)
    return x_t, t.float(), schedule.v_from_eps(x_t, noise, t)


def ask_flow(x0, noise, u):
    x_u = (1 - u)[:, None, None, None] * x0 + u[:, None, None, None] * noise
    return x_u, 1000 * u, noise - x0


flow, u = FlowSchedule(), torch.rand(32, generator=torch.Generator().manual_seed(2))
x_u, _, goal = ask_flow(x0, noise, u)
same = torch.equal(x_u, flow.add_noise(x0, noise, u)) and torch.equal(goal, flow.velocity(x0, noise))
print("equal to the package's FlowSchedule:", same)

# %%
cost_card("three trainings of 2,000 steps on points", seconds=20)


# %%
def train(ask, pairs=None, num_steps=2000, batch=512):
    """Train a Field to answer `ask`; with `pairs` (data, noise) the two belong together, otherwise any to any."""
    torch.manual_seed(0)
    net, rng = Field(), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    for _ in range(num_steps):
        rows = torch.randint(len(data if pairs is None else pairs[0]), (batch,), generator=rng)
        clean = data[rows] if pairs is None else pairs[0][rows]
        fresh = torch.randn(clean.shape, generator=rng) if pairs is None else pairs[1][rows]
        x, t, goal = ask(clean, fresh, torch.rand(batch, generator=rng))
        loss = (net(x, t) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return net.eval().requires_grad_(False)


nets = {"noise": train(ask_noise), "v": train(ask_v), "flow": train(ask_flow)}

# %% [markdown]
# ## Step 3: walk against the flow
#
# Drawing is as simple. Begin at noise, $u = 1$, ask for the direction, go a stretch of it backwards, ask again. That is
# Euler's method, the oldest there is:


# %%
def ask_net(net):
    return lambda x, t, step: net(x, torch.full((len(x),), float(t)))


def walk_back(net, x, num_steps):
    """All points on the way from noise, u = 1, to clean, u = 0."""
    way = [x]
    for u, u_next in pairwise(1 - k / num_steps for k in range(num_steps + 1)):
        direction = net(way[-1], torch.full((len(x),), 1000 * u))
        way.append(way[-1] + (u_next - u) * direction)  # u_next - u is negative: against the flow
    return torch.stack(way)


way = walk_back(nets["flow"], start, 32)
package = [state.latents for state in sample_flow(ask_net(nets["flow"]), start, num_steps=32)]
print("equal to the package's sample_flow:", torch.allclose(way[-1], package[-1], atol=1e-5))
stops = {f"u = {1 - k / 32:g}": points(way[k]) for k in (0, 12, 20, 26, 32)}
show(kit.clouds(stops), alt="A round cloud of noise parts into two lumps, and these become a cat and a dog.")

# %% [markdown]
# Out of noise come a cat and a dog that nobody has drawn point by point. (A few points stay between the two: the
# network is small and has learned for seconds, and a smooth flow cannot tear a cloud in two without leaving a thread.)
# How many steps does it take? All three networks draw, each asked equally often; noise and $v$ with DDIM, the flow with
# Euler's steps and with Heun's, which ask at both ends of a step and go by the mean (you write that one in an
# exercise).


# %%
def drawn(name, calls, rule="euler"):
    """Points that a network draws from the noise in `start`, asked `calls` times."""
    net = nets[name]
    if name in ("noise", "v"):
        answer = sees_noise(ask_net(net), schedule) if name == "v" else ask_net(net)
        states = sample(answer, start, schedule, num_steps=calls, spacing="trailing", final_alpha_one=True)
    else:
        num_steps = calls if rule == "euler" else (calls + 1) // 2
        states = sample_flow(ask_net(net), start, sampler=rule, num_steps=num_steps)
    return points(list(states)[-1].latents)


CALLS = [1, 3, 5, 9, 17, 33, 65]
ways = {"noise, DDIM": ("noise",), "v, DDIM": ("v",), "flow, Euler": ("flow",), "flow, Heun": ("flow", "heun")}
inside = {
    label: [kit.share_inside(pets, drawn(name, calls, *rule)) for calls in CALLS]
    for label, (name, *rule) in ways.items()
}
LABELS = {"xlabel": "calls of the network", "ylabel": "share inside", "ylim": (0, 1)}
figure = kit.curves(CALLS, inside, marks=True, kind="semilogx", **LABELS)
show(figure, alt="The share of points inside the two shapes rises with the number of calls, for all four ways.")
most = [shares[-1] for shares in inside.values()]
print("with 65 calls all have over 4 in 5 inside, and differ by less than 0.05:", 0.8 < min(most) > max(most) - 0.05)
print("and none of them half with a single one:", max(shares[0] for shares in inside.values()) < 0.5)

# %% [markdown]
# From a handful of calls on there is hardly a difference between the three questions: they have learned the same thing.
# A second-order rule helps earlier than any of them.
#
# ## Step 4: straight lines that bend
#
# Every line that the network has learned from was straight. Then one step should do. It does not, and it is worth
# seeing why. On the left, lines as the training takes them, any point of the data with any noise. On the right, where
# the trained network goes (the dots are the noises where they start):

# %%
shown = slice(0, 60)
learned = torch.stack([points(data[shown]), points(start[shown])])
went = way[:, shown].flatten(2)
figure = kit.ways({"what it learns from": learned, "where it goes": went}, points(start[shown]))
show(figure, alt="Left, straight lines that cross each other everywhere; right, ways that bend apart.")
travelled = way.diff(dim=0).flatten(2).norm(dim=2).sum(dim=0).mean()
direct = (way[-1] - way[0]).flatten(1).norm(dim=1).mean()
print("longer than the straight lines between their ends:", bool(travelled > 1.02 * direct))

# %% [markdown]
# Where lines meet at the same place *and the same time* $u$, the network is asked one question with several answers,
# and the squared error makes it say their mean (lesson 06 had this for pictures). Means change from place to place, so
# the ways bend. And one place at one time has one direction: two ways never meet at the same $u$, though one may pass
# later where another has been. At $u = 1$ the mean over all lines is the direction to the middle of the data, and one
# step goes there: between cat and dog, where no point of the data is.
#
# If meeting is what bends the ways, take pairs whose lines do not meet. You have some: the network's own walks. Each
# noise belongs to the point where its walk ends. Train a second network on these pairs with the same question. Liu et
# al. call it *reflow*:

# %%
many = torch.randn(20_000, 2, 1, 1, generator=torch.Generator().manual_seed(6))
ends = walk_back(nets["flow"], many, 32)[-1]
nets["flow, again"] = train(ask_flow, pairs=(ends, many))
once = {name: drawn(name, 1) for name in ("noise", "v", "flow", "flow, again")}
ALT = "One call: the first three clouds are heaps in the middle; after reflow it is nearly a cat and a dog."
show(kit.clouds({f"{name}, 1 call": each for name, each in once.items()}, columns=4), alt=ALT)
one = {name: kit.share_inside(pets, each) for name, each in once.items()}
print("reflow has more inside with a single call, by over 0.2:", one["flow, again"] - one["flow"] > 0.2)

# %% tags=["nbval-ignore-output"]
print({name: round(value, 2) for name, value in one.items()})

# %% [markdown]
# Look at the heaps too. That of the noise question is by far the widest, for its slips at the noisy end grow, as you
# saw at the beginning; those of $v$ and of the flow do not.
#
# > **Deep dive.** Models that draw in one to four steps are made like this, by a second training that learns from the
# > first model: reflow, progressive distillation (for which $v$ was invented), consistency distillation, adversarial
# > distillation. Except in the last, which also looks at real pictures, the second model can at best be as good as the
# > walks that it learns from.
#
# ## Step 5: one walk, three names
#
# How different are circle and line? Divide a latent by the sum of its two factors, and it lies on the straight line
# between picture and noise, at the time $u = \sqrt{1-\bar\alpha_t}\,/\,(\sqrt{\bar\alpha_t}+\sqrt{1-\bar\alpha_t})$.
# So the shipped U-Net, trained for noise on the old schedule, can be walked along the flow as it is. Its direction is
# the noise that it sees minus the clean latents that follow:

# %%
signal, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
time_of, size_of = sigma / (signal + sigma), signal + sigma
captions = test.captions[:6]
denoiser = Guided(unet, pipeline.embed(captions), pipeline.embed([""]), pipeline.drawing.guidance)
grid = timestep_grid(schedule, 20, "trailing")


@torch.no_grad()
def along_the_flow(x):
    z = x / float(size_of[grid[0]])
    for k, (t, t_next) in enumerate(pairwise([*grid, None])):
        eps = denoiser(z * float(size_of[t]), t, k)
        clean = (z - float(time_of[t]) * eps) / (1 - float(time_of[t]))
        u_next = 0.0 if t_next is None else float(time_of[t_next])
        z = z + (u_next - float(time_of[t])) * (eps - clean)
    return z


with torch.no_grad():
    first = pipeline.noise(range(6))
    straight = along_the_flow(first)
    *_, last = sample(denoiser, first, schedule, num_steps=20, spacing="trailing", final_alpha_one=True)
    ddim = last.latents
rows = {"DDIM": pipeline.decode(ddim), "Euler on the flow": pipeline.decode(straight)}
show(picture_rows(rows, captions, scale=2), alt="Six scenes by DDIM, and by Euler along the flow: the same.")
print("the same latents:", torch.allclose(ddim, straight, atol=1e-2))

# %% [markdown]
# Not similar: the same. DDIM *is* Euler's method on the straight line between what the network takes for clean and what
# it takes for noise. You have been walking a flow since lesson 06.
#
# > **Check.** Then what is new in flow matching? Not the walk. It is what the training looks at. A network of each kind
# > is a network of every other kind, read differently; but they practise different noise levels, and slips cost them
# > differently.
#
# Here is how often each training meets each noise level. The measure is the logarithm of the signal-to-noise ratio
# (lesson 04), which means the same on every way:

# %%
rng = torch.Generator().manual_seed(3)
snr = torch.log(schedule.alpha_bar / (1 - schedule.alpha_bar))
uniform, normal = torch.rand(50_000, generator=rng), torch.randn(50_000, generator=rng)
practised = {
    "the course's schedule": snr[torch.randint(1000, (50_000,), generator=rng)],
    "flow, u uniform": 2 * torch.logit(1 - uniform),
    "flow, u logit-normal": 2 * torch.logit(1 - normal.sigmoid()),
}
edges = torch.linspace(-11, 11, 56)
often = {name: torch.histogram(each.float(), edges, density=True).hist for name, each in practised.items()}
figure = kit.curves(edges[1:] - 0.2, often, xlabel="log signal-to-noise ratio, noise on the left", ylabel="how often")
show(figure, alt="Three curves: the old schedule leans to noise and ends there, the flow is even, the last is a bell.")
above = (practised["the course's schedule"] > 0).double().mean()
print(f"share of the old schedule's practice where the picture outweighs the noise: {above:.1f}")

# %% [markdown]
# The old schedule practises the noisy side more, and stops at a noise level beyond which the flow goes on. The flow
# spends half its practice on each side of "equal parts". Stable Diffusion 3 adds a bell that spends more of it in the
# middle, where the picture is decided. There is one more knob of this kind. A large picture needs more noise to be
# destroyed, since the mean of many neighbours has little noise left. So models of large pictures *shift* the times of a
# walk towards the noise:

# %%
times = {f"shift {shift:g}": FlowSchedule(shift).times(10) for shift in (1.0, 3.0, 6.0)}
figure = kit.curves(range(11), times, marks=True, xlabel="step of ten", ylabel="time u")
show(figure, alt="Times of a walk in ten steps: straight without shift, and longer near noise with a shift of 3 and 6.")
print("steps of ten that begin above u = 0.5:", {name: sum(u > 0.5 for u in each) for name, each in times.items()})

# %% [markdown]
# ## Step 6: a transformer in the place of the U-Net
#
# The third change is in the network. The U-Net has convolutions, levels and skips: a good deal of knowledge about
# pictures is built in. The diffusion transformer, DiT (Peebles and Xie 2023), throws all of that out. Cut the latents
# into patches, call each a token, and let blocks that are all alike do the rest.


# %%
def my_patchify(latents, patch):
    b, c, h, w = latents.shape
    cut = latents.reshape(b, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


tokens = my_patchify(x0, 2)
print("equal to the package's:", torch.equal(tokens, patchify(x0, 2)))
print(f"{tuple(x0.shape[1:])} becomes {tokens.shape[1]} tokens of {tokens.shape[2]} numbers")
show(kit.cut(x0, tokens, 2), alt="A latent channel with the cuts of its patches; the tokens as columns of numbers.")

# %% [markdown]
# How does the time get in? The U-Net adds a vector in each residual block. DiT lets the time *steer the norms*: from
# the time vector, one linear layer makes six vectors, which shift and scale what each norm gives, and say how much each
# branch may add. A new DiT sets that layer to zero, and the last one of the cross-attention, so that a new block does
# nothing at all (adaLN-Zero); the class below leaves this to the DiT. A sentence comes in by cross-attention, which you
# wrote in lesson 07.


# %%
class MyBlock(nn.Module):
    def __init__(self, width, num_heads, context_dim):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.self_attn = Attention(dim=width, num_heads=num_heads, qkv_bias=True)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attn = Attention(dim=width, num_heads=num_heads, context_dim=context_dim)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.ModuleDict({"linear_1": nn.Linear(width, 4 * width), "linear_2": nn.Linear(4 * width, width)})

    def forward(self, x, time, context):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(time))[:, None].chunk(6, dim=2)
        x = x + gate_1 * self.self_attn(self.norm1(x) * (1 + scale_1) + shift_1)
        x = x + self.cross_attn(self.norm_cross(x), context)
        h = self.mlp["linear_1"](self.norm2(x) * (1 + scale_2) + shift_2)
        return x + gate_2 * self.mlp["linear_2"](F.gelu(h, approximate="tanh"))


torch.manual_seed(0)
block, my_own = DiTBlock(96, num_heads=3, context_dim=128), MyBlock(96, 3, 128)
my_own.load_state_dict(block.state_dict())
some, time = torch.randn(2, 64, 96), torch.randn(2, 96)
with torch.no_grad():
    equal = torch.allclose(my_own(some, time, words[:2]), block(some, time, words[:2], (8, 8)), atol=1e-5)
    print("equal to the package's DiTBlock:", equal)
    new = DiT(DiTConfig(side=16, width=96, depth=3, num_heads=3, context_dim=128))
    print("a new DiT answers 0 everywhere:", bool((new(x_t[:2], steps[:2], words[:2]) == 0).all()))
    print("and its blocks change nothing:", torch.equal(new.blocks[0](some, time, words[:2], (8, 8)), some))

# %% [markdown]
# From here on this is `ldm_tutor.models.dit`. What has been thrown out shows when you take one more thing away.
# Attention does not know which tokens are neighbours (lesson 07), so each token is told its place by a wave that is
# added once, at the entrance. Without it, a cat whose patches lie in disorder would be as good a cat:

# %%
order = torch.randperm(64, generator=torch.Generator().manual_seed(4))
with torch.no_grad():
    plain, moved = (block(x, time, words[:2], (8, 8)) for x in (some, some[:, order]))
print("shuffled tokens get the shuffled answer:", torch.allclose(moved, plain[:, order], atol=1e-5))
wave = DiT(DiTConfig(side=16, width=96, depth=1, num_heads=3)).places
alike = torch.cosine_similarity(wave[27], wave, dim=1).view(8, 8)
figure, axes = plt.subplots(figsize=(3.4, 3))
figure.colorbar(axes.imshow(alike, cmap="cividis"))
axes.grid(visible=False)
axes.set(title="cosine with row 3, column 3, from 0", xticks=[], yticks=[])
show(figure, alt="Map of 8 x 8 places: the chosen one is brightest, and the farther another is, the darker.")

# %% [markdown]
# ## Turn one knob: the size of a patch
#
# A patch of twice the side means a quarter of the tokens. The parameters hardly change, the work does:

# %%
def call_of(patch):
    """Build the paper's largest DiT, with patches of this side, and return a call of it."""
    network = DiT(DiTConfig(patch_size=patch))
    return lambda: network(torch.randn(1, 4, 32, 32), torch.tensor([500.0]))


for patch in (2, 4, 8):  # nothing is computed here, only counted (lesson 12)
    work = work_of(lambda patch=patch: call_of(patch)).multiply_adds
    print(f"patches of {patch}: {(32 // patch) ** 2} tokens, {work / 1e9:.0f} billion multiply-adds")

# %% [markdown]
# The paper's finding was about this line: at every number of parameters, quality followed the *multiply-adds*. More
# tokens, or wider, or deeper, it hardly mattered which; more work gave a better FID. A network whose quality can be
# read off its cost is easy to plan, and that, more than any single picture, is why large models left the U-Net.
#
# > **At full size.** The largest model of the paper, DiT-XL/2, draws 256 pixels from latents of 32 x 32. Stable
# > Diffusion 3 and FLUX are transformers too. Their words do not come in by cross-attention but stand beside the
# > picture's tokens in one joint attention; in Stable Diffusion 3 each of the two kinds has weights of its own.

# %%
with torch.device("meta"):
    largest = DiT(DiTConfig(out_channels=8, num_classes=1001))  # classes of ImageNet, and one for none
learned = sum(each.numel() for each in largest.parameters())
print(f"DiT-XL/2: {learned:,} learned numbers, and {largest.places.numel():,} that say the places")
print(f"together {learned + largest.places.numel():,}, as published")

# %% [markdown]
# ## Step 7: is it better?
#
# Now to the question that the papers' tables cannot answer for you: what does each idea bring, *here*? Five runs, made
# once by `python -m ldm_tutor.lessons.lesson_16_kit`. Equal in all: scenes of one object, the shipped latents, the text
# encoder of an earlier CLIP of this course, batch, learning rate, seeds, four minutes of one thread. Four have lesson
# 11's U-Net, asked for noise with the plain loss, for noise with the course's weight, for $v$, and for the flow. In the
# fifth a DiT with as many parameters is asked for the flow.

# %%
study = kit.load_study()
print(kit.size_table(study))
MEASURES = {"fid": "FID (lower is better)", "color": "colour right", "object": "object right"}
show(kit.study_figure(study, MEASURES), alt="FID falls in all runs; plain noise leads in objects, others in colours.")

# %%
sheet = {kit.LABELS[name]: kit.pictures_of(name)[:6] for name in study}
show(picture_rows(sheet, scale=2), alt="Lumps of the right colours; with plain noise some backgrounds are others.")
print(kit.mark_table(study))

# %% [markdown]
# Read the table column by column. *Backgrounds*: the plain noise loss is the only one that misses some of them, 72%
# where all others have 100%. It hardly looks at the noisy steps, in which light and layout are decided, and you can see
# it: green land where a sunset was asked for, brown ground where snow was. *Objects*: there it leads, as one would
# expect of a loss that looks most at the nearly clean steps, where outlines are decided; but the intervals overlap.
# Noise with the course's weight and $v$ are nearly the same training, as step 1 promised, and so they come out: all
# backgrounds, more colours, fewer objects so far. The flow lies with them.
#
# *FID*: the plain noise run has the best one, with pictures that show something else than was asked. FID compares sets
# of pictures and knows no sentence (lesson 11). If you had looked at one number, you would have kept the one run whose
# backgrounds are wrong.
#
# And the transformer? With 35 million multiply-adds in the place of 29, and so fewer steps in the same time, its marks
# are those of the U-Net that was asked the same, within the intervals, and its FID is lower. All that the U-Net has
# built in was not worth more than that here; and one seed does not make it a finding that the transformer is better.
# Its case is made at sizes that no laptop trains.
#
# And how many calls does each need? The same five, at their end, asked less and more often:

# %%
show(kit.calls_figure(study, "fid", "FID"), alt="FID over 5 to 40 calls: nearly level lines, the flow highest.")

# %% [markdown]
# (Heun's calls are odd in number: it has one less at 10, 20 and 40.) From ten calls on the curves are level, all five.
# Neither $v$ nor the straight lines make five calls enough; a rule of second order helps each of them there. What makes
# few calls good is a second training, as in step 4.
#
# > **Careful.** One seed, 128 sentences, four minutes, a world of drawn scenes. The order of two runs whose intervals
# > overlap may be chance. What the study can show is how to ask: the same budget, the same judge, one change at a time.
#
# ## Steer the cloud
#
# > **Try it.** Choose a network and the number of calls. How few are enough to tell cat from dog? Which network makes a
# > heap of one call, and which two animals?

# %%
def cloud(network, calls):
    return kit.clouds({f"{network}, {calls} calls": drawn(network, calls)}, columns=1)


def told(network, calls):
    return f"{network}, {calls} calls: {kit.share_inside(pets, drawn(network, calls)):.0%} inside the shapes"


ALT = "A cloud of points in the shapes of a cat and a dog."
live(cloud, ALT, caption=told, network=["flow", "flow, again", "noise", "v"], calls=(1, 33, 9))

# %% [markdown]
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("what_came_after.ends")

# %%
my_errors = ...
check.what_came_after.ends(my_errors)

# %%
hint("what_came_after.ends")

# %%
exercise("what_came_after.v_both")


# %%
def my_both(x_t, v, alpha_bar):
    """Return the clean latents and the noise that x_t and v imply."""
    ...


check.what_came_after.v_both(my_both)

# %%
hint("what_came_after.v_both")

# %%
exercise("what_came_after.walk")


# %%
def my_walk(velocity, x, num_steps):
    """Walk from noise, t = 1, to clean, t = 0. There are three faults in it."""
    for k in range(num_steps):
        t = k / num_steps
        x = x + velocity(x, t)
    return x


check.what_came_after.walk(my_walk)

# %%
hint("what_came_after.walk")

# %%
exercise("what_came_after.heun")


# %%
def my_heun(velocity, x, t, t_next):
    """One step of Heun's method; Euler's where it ends at 0."""
    ...


check.what_came_after.heun(my_heun)

# %%
hint("what_came_after.heun")

# %%
exercise("what_came_after.block")


# %%
def my_block(x, six, norm, attention, mlp):
    """x: (b, n, d); six: (b, 6 d). What a DiT block makes of x."""
    ...


check.what_came_after.block(my_block)

# %%
hint("what_came_after.block")

# %%
exercise("what_came_after.tokens")

# %%
my_tokens = ...
check.what_came_after.tokens(my_tokens)

# %%
hint("what_came_after.tokens")

# %%
solution("what_came_after.heun")

# %% [markdown]
# ## Recap
#
# - Noise, clean latents and $v$ are one knowledge, read differently. The question decides how slips grow and what the
#   loss looks at.
# - v-prediction is the velocity on a quarter circle. It divides by nothing, and works where the noise question has no
#   answer, at pure noise.
# - Flow matching takes the straight line: three lines of training, four of drawing.
# - The lines are straight, the walk is not: where lines meet at one time, the network says their mean. Pairs whose
#   lines do not meet (reflow) give walks of one step.
# - DDIM is Euler's method on that line. The walk is not new; what the training practises is.
# - DiT cuts latents into tokens; time steers its norms; a new block does nothing. Its quality follows its work.
# - Measure at equal cost before you believe in a change, yours or a paper's.
#
# ## Common mistakes
#
# - *Weights of one question, a sampler of another.* Every shape fits (patient E of lesson 15). Write the prediction
#   type beside the weights.
# - *Two directions of time.* Many papers on flow matching have noise at 0 and the picture at 1, and the direction
#   turned round. Look at which end a formula calls noise.
# - *Time 0 to 1 given to a network whose wave is made for 0 to 1000.* It learns, slowly: neighbouring times look alike.
# - *Comparing losses.* The loss of $v$, of the flow and of the noise are not in the same unit. Compare pictures.
# - *A zero in the wrong place.* Gates start at zero, the weights of a branch do not: if both were zero, neither would
#   ever learn.
# - *Equal steps instead of equal cost.* A network that takes twice as long per step looks good over steps.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Salimans, Ho: *Progressive Distillation for Fast Sampling of Diffusion Models*, 2022 (arXiv 2202.00512). Where $v$
#   comes from, and why: appendix D.
# - Lin, Liu, Li, Yang: *Common Diffusion Noise Schedules and Sample Steps are Flawed*, 2024 (arXiv 2305.08891). The
#   schedule that ends in pure noise, and what it needs.
# - Lipman, Chen, Ben-Hamu, Nickel, Le: *Flow Matching for Generative Modeling*, 2023 (arXiv 2210.02747). The general
#   case, with the straight way as one choice.
# - Liu, Gong, Liu: *Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow*, 2023 (arXiv
#   2209.03003). Crossing lines, and reflow.
# - Peebles, Xie: *Scalable Diffusion Models with Transformers*, 2023 (arXiv 2212.09748). DiT, its block, and quality
#   over multiply-adds.
# - Esser et al.: *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*, 2024 (arXiv 2403.03206).
#   Which times to practise, the shift, and joint attention; many variants at equal cost.
#
# ## Next stop
#
# This is the last stop of the course. You have built every part of a latent diffusion model, trained it, measured it,
# steered it, broken and mended it, and reached what is built now. Take lesson 14's commands and your own pictures, and
# send somebody the result.
