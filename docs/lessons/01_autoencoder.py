# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Autoencoder: how small can a picture get?
#
# A diffusion model works hardest where the numbers are. So before it begins, somebody should throw away those numbers
# that no eye misses. That is the job of the autoencoder: one network folds a picture into a small grid, the other
# unfolds it. In this lesson you write both, train them, and find out how small the grid may get. At the end you look
# through a microscope at what is written in it, and you know why Stable Diffusion multiplies its latents by 0.18215.
#
# > **Goal.** Write the KL autoencoder from a single convolution up, prove it equal to the one that the course ships,
# > and measure what three choices do: how much it shrinks, how strong its KL is, in which units its latents are.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import math

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import VQAutoencoderConfig
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons import lesson_01_kit as kit
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.cost import cost_card
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.lessons.lesson_01_kit import noise_like
from ldm_tutor.lessons.lesson_01_study import KL_WEIGHTS, load_trial, trial_log, watch
from ldm_tutor.lessons.live_training import follow, shipped_band, steps_for
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.nn.blocks import PictureAttention
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.plots.figures import bars, flow_diagram, picture_grid, show, signed_map
from ldm_tutor.presets import FIRST_STAGES
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve

torch.set_num_threads(min(2, torch.get_num_threads()))

# %% [markdown]
# ## Fact box

# %%
fact_box(1)

# %% [markdown]
# ## Where you are

# %%
course_map(1)

# %% [markdown]
# ## Something to shrink
#
# You take 96 test scenes that no network has learned from. Two instruments come along. **PSNR**, the peak
# signal-to-noise ratio, says how near a copy is: the mean squared error of the pixels, as minus ten times its
# logarithm, in decibels. At 20 dB a pixel is off by a tenth of the range, and each 6 dB more halve the error. And the
# **judge** reads from a copy which objects it shows, in which colours, where. If it still reads all that the sentence
# says, the copy has kept the meaning.

# %%
test = render_scenes(96, "test")
pictures, requests = to_float(test.pictures), [parse(caption) for caption in test.captions]
judge = load_judge()


def my_psnr(copies, originals):
    error = ((copies - originals) / 2).square().flatten(1).mean(dim=1)  # / 2: the range from -1 to 1 becomes 1 long
    return -10 * error.log10()


def read(copies):
    """The share of copies from which the judge reads all that their sentences say."""
    return attribute_accuracy(read_pictures(judge, copies), requests[: len(copies)])["all"].value


show(picture_grid(pictures[:6], test.captions[:6], scale=2), alt="Six test scenes with their sentences.")
tenth = my_psnr(pictures + 0.2, pictures).mean()
print(f"numbers per picture: {pictures[0].numel()} | off by a tenth of the range: {tenth:.0f} dB")
print("equal to the package's:", torch.equal(my_psnr(pictures * 0.9, pictures), psnr(pictures * 0.9, pictures)))
print("the judge reads nearly all originals right:", read(pictures) > 0.97)

# %% [markdown]
# ## Try first: means of squares
#
# The obvious way to shrink a picture: replace every square of $f \times f$ pixels by its mean, and stretch the result
# again. No network, nothing to learn. What do you lose?

# %%
naive = {f: F.interpolate(F.avg_pool2d(pictures, f), scale_factor=f, mode="bilinear") for f in (1, 2, 4, 8, 16)}
figure = picture_grid([each[1] for each in naive.values()], [f"f = {f}" for f in naive], scale=2)
show(figure, alt="One scene, shrunk by means and stretched again: soft at f = 2, a blur at 4, blotches at 8 and 16.")
for f in (2, 4, 8, 16):
    print(f"f = {f}: {3 * (64 // f) ** 2} numbers, {float(psnr(naive[f], pictures).mean()):.0f} dB")
print("read right, most at f = 4:", read(naive[4]) > 0.8, "| less than half at f = 8:", read(naive[8]) < 0.5)

# %% [markdown]
# The wheel of a car and the sky behind it get the same number of means. That is the waste. A network can spend its
# numbers where something is, and it can write more into a number than a mean: *here begins a roof*, say. What it needs
# are layers that shrink, layers that grow, and a reason to write well.
#
# ## Step 1: a layer that shrinks
#
# A **convolution** slides a small window over the picture. At each place it multiplies what it sees with its weights
# and sums up; one set of weights per output channel. If the window moves by two, the output has half the side. As
# loops:


# %%
def conv_loop(x, weight, bias):
    """One feature map (c, h, w), window 3 x 3, moved by two; a row of zeros below and a column at the right."""
    x = F.pad(x, (0, 1, 0, 1))
    out = torch.empty(len(weight), x.shape[1] // 2, x.shape[2] // 2)
    for o in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                window = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                out[o, i, j] = (window * weight[o]).sum() + bias[o]
    return out


shipped = load_model(resolve() / "autoencoder.safetensors", "autoencoder")
layer = shipped.encoder.levels[0].resize
x = noise_like(torch.empty(16, 12, 12), seed=0)  # standard normal noise of this shape
with torch.no_grad():
    looped = conv_loop(x, layer.conv.weight, layer.conv.bias)
    at_once = F.conv2d(F.pad(x[None], (0, 1, 0, 1)), layer.conv.weight, layer.conv.bias, stride=2)[0]
    print("shapes:", tuple(x.shape), "->", tuple(looped.shape))
    print("loops and conv2d agree:", torch.allclose(looped, at_once, atol=1e-4))
    print("so does the shipped encoder's own layer:", torch.allclose(layer(x[None])[0], at_once, atol=1e-4))

# %% [markdown]
# The zeros below and at the right only, not on all four sides, are a habit of this family of autoencoders. Put them
# on all sides, and each such layer sees everything shifted by a pixel.
#
# The other block is the **residual block**: normalise (GroupNorm), bend (SiLU, a smooth ReLU), convolve, twice, and add
# the input. Because the input goes straight through, a deep pile of such blocks still learns. From these two you build
# both halves:


# %%
class ResBlock(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, c_in, eps=1e-6), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, c_out, eps=1e-6), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Middle(nn.Module):
    """On the smallest grid, every position may look at every other. Lesson 07 builds that layer; here it is lent."""

    def __init__(self, c):
        super().__init__()
        self.before, self.after, self.look = ResBlock(c, c), ResBlock(c, c), PictureAttention(c, norm_groups=4)

    def forward(self, x):
        return self.after(self.look(self.before(x)))


class Halve(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def ending(c_in, c_out):
    return [nn.GroupNorm(4, c_in, eps=1e-6), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)]


# %%
def make_encoder(widths, latent_channels):
    layers, c = [nn.Conv2d(3, widths[0], 3, padding=1)], widths[0]
    for k, width in enumerate(widths):
        layers += [Halve(c, c, 3, stride=2)] if k > 0 else []
        layers, c = [*layers, ResBlock(c, width)], width
    return nn.Sequential(*layers, Middle(c), *ending(c, 2 * latent_channels))  # means and log variances


def make_decoder(widths, latent_channels):
    layers, c = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1), Middle(widths[-1])], widths[-1]
    for k, width in enumerate(reversed(widths)):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1)] if k > 0 else []
        layers, c = [*layers, ResBlock(c, width), ResBlock(width, width)], width
    return nn.Sequential(*layers, *ending(c, 3))


boxes = ["picture", "encoder", "cloud", "draw one", "decoder", "copy"]
arrows = ["3 x 64\nx 64", "8 x 16\nx 16", "means,\nsigmas", "4 x 16\nx 16", "3 x 64\nx 64"]
figure = flow_diagram(boxes, arrows, networks=(1, 4), inputs={3: "noise"})
show(figure, alt="Picture, encoder, a cloud with mean and sigma, a draw with noise, decoder, copy, in a row.")

# %% [markdown]
# ## Step 2: a cloud in the place of a point
#
# Look at the drawing: the encoder gives *eight* channels where the latents have four. It does not answer with latents,
# but with a cloud of them: for each latent number a mean $\mu$ and a spread $\sigma$ of a Gaussian. The decoder gets a
# point drawn from the cloud. Why so? A decoder that has only met exact points may make nonsense of a point beside
# them, and a diffusion model always lands a little beside. A cloud forces it to bear that.
#
# {{notation z mu sigma noise}}
#
# A spread must be positive, and a network's output need not be. So the encoder gives the *logarithm* of the variance,
# and $\sigma = e^{\text{logvar}/2}$. Watch what the shipped encoder says about one scene. White is 0, red is above,
# blue below:

# %%
with torch.inference_mode():
    posterior = shipped.encode(pictures)
z, sigma = posterior.mean, (0.5 * posterior.logvar).exp()
maps = [signed_map(channel, scale=4) for channel in z[1]]
figure = picture_grid([pictures[1], *maps], ["picture", *(f"mean, {k}" for k in range(4))], scale=2)
show(figure, alt="A scene and the means of its four latent channels, 16 by 16: outlines of its objects are visible.")
print(f"means spread by {z.std():.1f}, the clouds by {sigma.mean():.2f}")
print("latent numbers per picture:", z[0].numel(), "of", pictures[0].numel())

# %% [markdown]
# The clouds are small beside the distances between them. Hold on to that; it is what *weak KL* means.
#
# ## Step 3: draw, and still learn
#
# Now a difficulty. The error of the copy has to reach the encoder, through the drawing. But what is the derivative of
# a random draw? Ask PyTorch to draw from $\mathcal N(\mu, \sigma^2)$, and see what comes back for a toy error
# $(z - 3)^2$. Its mean over the draws is $(\mu - 3)^2 + \sigma^2$, so the true slopes are $2(\mu - 3)$ and $2\sigma$.
#
# The way out is to turn it around (Kingma and Welling 2014). Draw noise that does not depend on anything, and *make*
# the latent from it:
#
# $$z = \mu + \sigma\,\epsilon, \qquad \epsilon \sim \mathcal N(0, 1)$$
#
# Now $\mu$ and $\sigma$ stand in a plain sum and a product, and their slopes are $1$ and $\epsilon$. This is called
# the **reparameterisation**.


# %%
def slopes(draw):
    """Slopes of the mean of (z - 3)^2 over 200,000 draws, at mean 1 and sigma 0.5: true are -4 and 1."""
    mean, std = torch.tensor(1.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    error = (draw(mean.expand(200_000), std.expand(200_000)) - 3).square().mean()
    found = torch.autograd.grad(error, (mean, std))
    return [round(float(each), 1) + 0.0 for each in found]


torch.manual_seed(0)
print("torch.normal:       ", slopes(torch.normal))
print("mean + sigma * noise:", slopes(lambda mean, std: mean + std * torch.randn_like(mean)))

# %% [markdown]
# `torch.normal` draws perfectly well and hands back zeros: the encoder would never learn. The second line has the true
# slopes.
#
# ## Step 4: what keeps the clouds from shrinking
#
# Left alone, the encoder would shrink every cloud to a point, because noise only spoils its copies. And it would push
# the points ever farther apart. A second term in the loss holds against it: the **KL divergence** of each cloud from
# the standard one, $\mathcal N(0, I)$. For Gaussians it has a closed form (Kingma and Welling 2014, appendix B):
#
# $$D_{KL} = \tfrac12 \sum \left( \mu^2 + \sigma^2 - 1 - \log \sigma^2 \right)$$
#
# It is zero for $\mu = 0$, $\sigma = 1$ and grows with every step away. By definition it is the mean of
# $\log q(z) - \log p(z)$ over points of the cloud $q$. So you can check the formula by drawing:

# %%
mean, logvar = torch.tensor([0.0, 1.0, -2.0, 0.5]), torch.tensor([0.0, -1.0, 0.5, -4.0])
formula = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
cloud, standard = torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
drawn = mean + (0.5 * logvar).exp() * noise_like(torch.empty(400_000, 4), seed=1)
by_drawing = (cloud.log_prob(drawn) - standard.log_prob(drawn)).mean(dim=0)
print("formula:   ", [round(float(each), 2) + 0.0 for each in formula])
print("drawn points agree to 0.02:", bool((by_drawing - formula).abs().max() < 0.02))
for s in (0.1, 0.01):
    print(f"mean 0, sigma {s}: {0.5 * (s**2 - 1 - 2 * math.log(s)):.1f} nats")
line = torch.linspace(0.02, 2.5, 100)
panels = [
    ("price in nats, sigma 1", {"": (0.5 * line**2).tolist()}),
    ("price in nats, mean 0", {"": (0.5 * (line**2 - 1 - 2 * line.log())).tolist()}),
]
figure = kit.curves(panels, line.tolist(), ("mean", "sigma"))
show(figure, alt="A parabola for the mean; for sigma a valley at 1, steep to 0.")

# %% [markdown]
# Moving a mean costs a parabola. Shrinking a cloud costs only a logarithm: from a sigma of 0.1 to 0.01, and the price
# is not even threefold. A **nat** is the unit in which natural logarithms count information; $\ln 2$ of them are one
# bit.
#
# ## Step 5: the class
#
# Two small layers are left. `quant_conv` and `post_quant_conv` mix the channels at each position, before the cloud and
# after the draw. Then everything is there:


# %%
class Gaussian:
    def __init__(self, moments):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30, 20)

    def sample(self, noise):
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self):
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(dim=1)


class MyAutoencoder(nn.Module):
    def __init__(self, widths, latent_channels):
        super().__init__()
        self.encoder, self.decoder = make_encoder(widths, latent_channels), make_decoder(widths, latent_channels)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, pictures):
        return Gaussian(self.quant_conv(self.encoder(pictures)))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


twin = MyAutoencoder((16, 32, 64), 4)
with torch.inference_mode():
    weights = zip(twin.state_dict(), shipped.state_dict().values(), strict=True)  # same order, other names
    twin.load_state_dict(dict(weights))
    mine, noise = twin.encode(pictures[:8]), noise_like(z[:8], seed=0)
    theirs = shipped.encode(pictures[:8])
    print("clouds equal:", torch.allclose(mine.mean, theirs.mean, atol=1e-4), torch.allclose(mine.kl(), theirs.kl()))
    drawn = theirs.sample(torch.Generator().manual_seed(0))
    print("draws equal:", torch.allclose(mine.sample(noise), drawn, atol=1e-4))
    print("copies equal:", torch.allclose(twin.decode(drawn), shipped.decode(drawn), atol=1e-3))

# %% [markdown]
# > **Check.** Same weights, same clouds, same copies. From here on this is `ldm_tutor.models.autoencoder.Autoencoder`.
#
# ## Step 6: train your own
#
# The loss of the paper has four parts (Rombach et al. 2022, appendix G): how far the copy is off, an adversary that
# calls out blurry copies, the adversary's own training, and the KL. The adversary waits until lesson 02. That leaves
#
# $$L = |x - \hat x| + w_p\, d(x, \hat x) + w_{KL}\, D_{KL}$$
#
# The *perceptual* distance $d$ compares what a small network sees in the two pictures; lesson 02 takes it apart. Here
# $w_p = 0.2$ and $w_{KL} = 10^{-6}$; $|x - \hat x|$ is the mean over all pixels, $D_{KL}$ the sum over a picture's
# latent numbers. Your own class learns now, with half the widths of the shipped one, from nothing.

# %%
train_set = to_float(render_scenes(512, "train").pictures)
distance = PerceptualDistance(load_model(resolve() / "perceptual.safetensors", "judge"))


def train(autoencoder, num_steps, kl_weight=1e-6, peak_lr=3e-3):
    optimizer = torch.optim.AdamW(autoencoder.parameters(), betas=(0.9, 0.99))
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = peak_lr * min(1, (step + 1) / 20) * (1 - step / num_steps)
        real = train_set[torch.randint(len(train_set), (8,))]
        cloud = autoencoder.encode(real)
        copy = autoencoder.decode(cloud.sample(torch.randn_like(cloud.mean)))
        loss = (copy - real).abs().mean() + 0.2 * distance(copy, real).mean() + kl_weight * cloud.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


cost_card("120 steps of 8 pictures", seconds=15)

# %% [markdown]
# The curve grows while the cell runs, in front of the band that five earlier runs span; a tenth above it still counts
# as inside. `"full"` takes ten times as long.

# %% tags=["band"]
MODE = "quick"
SEED = 0
num_steps = steps_for(MODE, quick=120, full=1200)
torch.manual_seed(SEED)
my_autoencoder = MyAutoencoder((8, 16, 32), 4)
my_losses = follow(
    train(my_autoencoder, num_steps),
    num_steps,
    alt="Your loss falls from above 1.5 to below 0.7, along the upper edge of the band of five earlier runs.",
    band=shipped_band("autoencoder"),
)


# %%
@torch.inference_mode()
def decode(autoencoder, z):
    return torch.cat([autoencoder.decode(part).clamp(-1, 1) for part in z.split(32)])


@torch.inference_mode()
def copies(autoencoder):
    """The test pictures through encoder and decoder; no draw, the mean is the best guess."""
    return decode(autoencoder, torch.cat([autoencoder.encode(part).mean for part in pictures.split(32)]))


def db(made):
    return float(psnr(made, pictures).mean())


mine, theirs = copies(my_autoencoder), copies(shipped)
rows = [*pictures[:4], *mine[:4], *theirs[:4]]
titles = ["original"] * 4 + ["yours"] * 4 + ["shipped"] * 4
figure = picture_grid(rows, titles, columns=4, scale=2)
show(figure, alt="Four scenes; your copies are blurred shapes almost without colour, the shipped ones are sharp.")
print("shipped: above 30 dB:", db(theirs) > 30, "| nearly all read right:", read(theirs) > 0.97)
print("yours: above 11 dB:", db(mine) > 11, "| and below 20:", db(mine) < 20)

# %% [markdown]
# Yours has seen less than a thousand pictures: blurred shapes, light and dark, hardly a colour yet. The shipped one has
# the same layers at twice the width, learned for more than an hour, and had the adversary to sharpen it.

# %% [markdown]
# ## Step 7: how small?
#
# Now turn the knob of this lesson. Four autoencoders with $f = 2, 4, 8, 16$ come with the course, and $f = 1$ is the
# picture itself. All four learned equally long, from the same batches. The channels grow with $f$, but slower than
# the grid shrinks: each has half as many latent numbers as the one before, or fewer.
#
# > **Careful.** They learned for four to eight minutes of a core. To get far in that time, all four begin with the
# > outer layers of the shipped autoencoder, those whose sizes fit; the layers round the latents are new in each. (The
# > shipped one has $f = 4$, which may favour that a little.) So compare them with each other, not with the shipped one.
# > `python -m ldm_tutor.lessons.lesson_01_study` trains them.

# %%
studied = {f: load_trial(f"autoencoder_f{f}") for f in (2, 4, 8, 16)}
made = {1: pictures} | {f: copies(each) for f, each in studied.items()}
rows = [made[f][k] for k in (1, 3, 5) for f in made]
figure = picture_grid(rows, [f"f = {f}" for f in made] * 3, columns=5, scale=2)
show(figure, alt="Three scenes at f = 1, 2, 4, 8, 16: the same at 2, softer at 4, without faces at 8, blobs at 16.")
factors = (2, 4, 8, 16)
numbers = {f: studied[f].config.latent_channels * (64 // f) ** 2 for f in factors}
decibels, means = ({f: db(all_made[f]) for f in factors} for all_made in (made, naive))
print("latent numbers:", numbers, "| steps of 8 pictures:", int(trial_log("autoencoder_f2")["step"][-1]))
print("each step to a larger f costs PSNR:", sorted(decibels.values(), reverse=True) == list(decibels.values()))

# %%
PAPER = {2: 32.47, 4: 27.53, 8: 24.19, 16: 24.08}  # table 8, KL; channels 2, 3, 4, 16
shares = {f: (read(made[f]), read(naive[f])) for f in factors}
panels = [
    ("PSNR in dB", {"ours": [*decibels.values()], "means": [*means.values()], "paper, ImageNet": [*PAPER.values()]}),
    ("share read right", {"ours": [a for a, _ in shares.values()], "means": [b for _, b in shares.values()]}),
]
figure = kit.curves(panels, factors, "f", log="x", ticks=factors)
show(figure, alt="PSNR falls over f, down to 8 as in the paper. Nearly all is read right at f = 8, a fifth at f = 16.")
print("read right: nearly all up to f = 8:", shares[8][0] > 0.85, "| a third at most at f = 16:", shares[16][0] < 0.33)
print("2 dB or more above the means at every f:", min(decibels[f] - means[f] for f in factors) > 2)

# %% tags=["nbval-ignore-output"]
for f in factors:
    ours, mean = shares[f]
    print(f"f = {f:2}: {decibels[f]:.1f} dB (means {means[f]:.1f}), read right {ours:.0%} (means {mean:.0%})")

# %% [markdown]
# PSNR falls with every step to a larger $f$ in ours, and in the paper's down to $f = 8$. (Its pictures are photographs
# of 256 x 256 pixels: compare the way down; that the heights agree is luck.) What the judge reads does not fall in step
# with it. At $f = 2$ and $f = 4$ it reads everything, at $f = 8$ nearly everything, from 512 numbers where the picture
# has 12,288, and then it breaks off. Means of the same grid lie below everywhere in PSNR. But from $f = 4$ on they are
# also fewer numbers, three a place. Compare like with like: at $f = 2$ both are 3,072 numbers, and the learned ones are
# far ahead. At $f = 16$ alone the means win something: the judge reads more from 192 means of $f = 8$ than from 256
# learned numbers that have not learned long enough.
#
# Look at what goes, and in which order. At $f = 4$ the edges soften and the house loses its windows. At $f = 8$ places,
# colours and outlines are still there, but the dog has no face and the car melts. At $f = 16$ the sky,
# the sea and the moon stand where they stood, and the things in front of them are blobs, some in the wrong colour.
# Scenery comes in every picture, so a few numbers are enough for it; what a small thing looks like costs many.
#
# Why does the paper lose hardly anything from $f = 8$ to $f = 16$? Its channels grow as fast as the grid shrinks, and
# ours do not: we have half as many numbers. And time counts: none of ours has arrived (you will see the curve of
# $f = 4$ still climb), and the authors gave $f = 16$ more than twice the steps of $f = 4$ (in smaller batches).
#
# > **In the paper.** Table 8 compares sixteen autoencoders, and nine first stages were published. With KL and
# > $f = 2, 4, 8, 16, 32$ they reach 32.47, 27.53, 24.19, 24.08 and 22.27 dB on ImageNet. The channels grow from 2 to
# > 64, so that $f = 8$, $16$ and $32$ hold the same 4,096 numbers of a 256 x 256 picture: what the grid loses in
# > places, it gets in channels. Nearly all diffusion models of the paper use $f = 4$ or $f = 8$; lesson 11 looks for
# > the reason.
#
# ## Step 8: weak or strong?
#
# How hard should the KL pull? The same $f = 2$ autoencoder, with five weights from $10^{-10}$ to $10^{-2}$, each
# trained for a fifth of the steps above:

# %%
sweep = {weight: load_trial(f"autoencoder_kl_{weight:.0e}") for weight in KL_WEIGHTS}
swept = {weight: copies(each) for weight, each in sweep.items()}
figure = picture_grid([swept[w][1] for w in sweep], [f"KL weight {w:.0e}" for w in sweep], scale=2)
show(figure, alt="One scene by KL weight: alike up to 1e-6, softer at 1e-4, and at 1e-2 stripes over a grey ground.")
facts = {weight: watch(each, pictures) for weight, each in sweep.items()}
panels = [
    ("PSNR in dB", {"": [each["psnr"] for each in facts.values()]}),
    ("means and clouds", {k.removeprefix("rms_"): [x[k] for x in facts.values()] for k in ("rms_mean", "sigma")}),
]
figure = kit.curves(panels, list(sweep), "KL weight", log="x")
show(figure, alt="PSNR is level up to 1e-6 and falls behind. The means shrink from 3 to 0, sigma grows from 0.1 to 1.")
for weight, each in facts.items():
    print(f"{weight:.0e}: {each['psnr']:.0f} dB, means {each['rms_mean']:.1f}, sigma {each['sigma']:.2f}")
print("at 1e-2 the KL is almost nothing:", facts[1e-2]["kl_per_number"] < 0.01)
print("and all 96 copies are alike:", bool((swept[1e-2] - swept[1e-2][0]).abs().max() < 0.05))

# %% [markdown]
# Read it from left to right. Up to $10^{-6}$ the copies stay as they are, and only the latents change: almost without a
# KL the means lie twice as far apart and the clouds are half as wide. At $10^{-4}$ the picture begins to pay. The
# clouds are now wider than the means lie apart, so neighbouring points blur into each other. At $10^{-2}$ nothing is
# left: all means are 0, all clouds have the size 1, and every copy is the same grey ground under a striped sky.
#
# > **Careful.** That is this lesson's deliberate failure, and a famous one: **posterior collapse**. With a strong KL
# > the cheapest cloud is the standard one, for every picture. Its price is zero, and it says nothing. The decoder
# > gives one picture for all, and the loss looks peaceful.
#
# The paper's $10^{-6}$ is far weaker than ours. Its code *sums* the pixel errors over the picture where ours takes
# their mean. In our units its weight is about the leftmost point of the sweep:

# %%
print(f"for our pictures: {1e-6 / pictures[0].numel():.0e} | for 256 x 256: {1e-6 / (3 * 256 * 256):.0e}")

# %% [markdown]
# ## Why the KL rises
#
# Train an autoencoder and watch the KL: it goes *up*. People write to the authors that something must be broken. Look
# at its two parts, the price of the means and the price of the small clouds:

# %%
log = trial_log("autoencoder_f4")
named = {"together": log["kl_per_number"], "means": log["kl_mean"], "small clouds": log["kl_spread"]}
panels = [("KL per latent number, nats", named), ("PSNR in dB", {"": log["psnr"]})]
figure = kit.curves(panels, log["step"], "step")
show(figure, alt="The KL climbs from near 0 to 6 nats and sinks to 3.5, less for means, more for clouds. PSNR climbs.")
print("KL at the end is more than ten times that at the start:", named["together"][-1] > 10 * named["together"][0])
nats = float(posterior.kl().mean())
print(f"shipped: {nats / 1024:.0f} nats per latent number, about {round(nats / math.log(2) / 8, -2):.0f} bytes in all")

# %% [markdown]
# At the first step all clouds are nearly the standard one, the KL is near 0, and the decoder knows nothing. To tell
# pictures apart, the encoder must move the means apart and shrink the clouds, and for both it pays. First it moves the
# means, far; then it learns that smaller clouds are the cheaper way, and moves the means back. In the end it pays more
# for small clouds than for distant means, and tells more with fewer nats. The KL is the *price of information*: on
# average a latent cannot tell the decoder more nats than that. A rising KL is what learning looks like in the
# beginning. The weight only sets the exchange rate.
#
# > **Key idea.** A weak KL is not there to make the latents Gaussian. It is there to keep them from running away, and
# > the clouds from vanishing.
#
# ## Why noise decodes to mush
#
# A textbook variational autoencoder draws new pictures by decoding $\mathcal N(0, I)$. Try it with the shipped one. To
# be fair, give the noise mean and spread of each channel. And as a control take *real* latents, with their positions
# shuffled, so that every number is a true one:

# %%
mean, spread = z.mean(dim=(0, 2, 3), keepdim=True), z.std(dim=(0, 2, 3), keepdim=True)
order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
tries = {
    "real latents": z,
    "N(0, I)": noise_like(z, seed=1),
    "fitted noise": mean + spread * noise_like(z, seed=1),
    "shuffled": z.flatten(2)[:, :, order].unflatten(2, (16, 16)),
}
rows = [decode(shipped, latents[k : k + 1]) for latents in tries.values() for k in range(5)]
names = [name for name in tries for _ in range(5)]
figure = picture_grid(rows, names, columns=5, scale=2)
show(figure, alt="Five real latents decode to scenes; standard noise, fitted noise and shuffled latents to blotches.")
for name, latents in tries.items():
    print(f"{name}: correlation of neighbours {kit.neighbour_correlation(latents):.1f}")

# %% [markdown]
# The shuffled latents have exactly the right numbers, and still give mush. What makes a scene is *how neighbours fit
# together*: real latents are correlated from cell to cell, and noise is not. (What is left after shuffling comes from
# pictures that are bright or dark all over.) A strong KL would press the clouds of all pictures together until they
# cover $\mathcal N(0, I)$; then every draw would lie in some picture's cloud, and the pictures would be poor (you saw
# the price). A weak one does not: real latents fill a small corner of the space. So something else has to learn where
# that corner is, and that is the diffusion model's whole job. Nothing is broken.
#
# ## Step 9: the right units
#
# An autoencoder does not care in which units its latents are: make them ten times as large, let the decoder divide by
# ten, and every picture stays the same. The diffusion model does care. Its noise has the spread 1, so its latents
# should have it too. That is the **scale factor** (Rombach et al. 2022, appendix G): one over the standard deviation of
# the latents, over all numbers together.

# %%
with torch.inference_mode():
    some = torch.cat([shipped.encode(part).sample(torch.Generator().manual_seed(0)) for part in train_set.split(64)])
factor = 1 / some.std()
print(f"measured: {factor:.2f} | in the shipped configuration: {shipped.config.scale_factor:.2f}")
print(f"Stable Diffusion's 0.18215 means a spread of {1 / 0.18215:.2f}")
print("of the studied ones:", {f: round(each.config.scale_factor, 2) for f, each in studied.items()})

# %% [markdown]
# The shipped one and $f = 2$ are close to 1, by luck; the others lie lower, each elsewhere. Does it matter?
# `kit.in_units` makes the same autoencoder with larger latents: it multiplies the encoder's last layer and divides the
# decoder's first. Take Stable Diffusion's spread. Pictures do not change, and with its factor the diffusion model does
# not notice. Then forget the factor, on either side. First where latents go into the U-Net. (This one was trained with
# the factor; only the asking forgets it.) Noise is mixed into the latents, little of it at a small time $t$, hardly
# anything else at 900, and the U-Net guesses this noise. How large is its error? A network that always says 0 has the
# error 1.

# %%
pipe = load_pipeline()
large = kit.in_units(shipped, shipped.config.scale_factor / 0.18215)
with torch.inference_mode():
    same = (large(pictures[:8]) - shipped(pictures[:8])).abs().max() < 1e-3
    context, eps = pipe.embed(test.captions[:32]), noise_like(z[:32], seed=2)
    errors = {"scaled": [], "not scaled": []}
    times = [100, 300, 500, 700, 900]
    for t in (torch.full((32,), each) for each in times):
        for name, factor in (("scaled", large.config.scale_factor), ("not scaled", 1.0)):
            x_t = pipe.schedule.add_noise(factor * large.encode(pictures[:32]).mean, eps, t)
            errors[name].append(float((pipe.unet(x_t, t, context) - eps).square().mean()))
figure = kit.curves([("error of the noise guess", errors)], times, "t", log="y")
show(figure, alt="Error of the noise guess over t: with the scale far below 1; without it above 1 up to t = 500.")
print("same pictures:", bool(same), "| its factor:", round(large.config.scale_factor, 5))
print("at t = 300, scaled, below 0.2:", errors["scaled"][1] < 0.2)
print("at t = 300, not scaled, worse than saying 0:", errors["not scaled"][1] > 1)

# %% [markdown]
# Then where its pictures are decoded: the U-Net draws latents of spread 1, and the decoder must get them divided by
# the factor. Draw 24 sentences, and decode the same latents four ways: by the shipped autoencoder (*our units*), and by
# the same one in Stable Diffusion's units (*SD's*).

# %%
*_, last = pipe.steps(test.captions[:24], list(range(24)), num_steps=8)
ways = {
    "our units": decode(shipped, last.latents / shipped.config.scale_factor),
    "our units, forgotten": decode(shipped, last.latents),
    "SD's units": decode(large, last.latents / large.config.scale_factor),
    "SD's units, forgotten": decode(large, last.latents),
}
rows = [made_so[k] for made_so in ways.values() for k in (0, 1, 2, 3)]
figure = picture_grid(rows, [name for name in ways for _ in range(4)], columns=4, scale=2)
show(figure, alt="Four drawn scenes, four ways: thrice right, and with the large factor forgotten pale scribbles.")
right = {name: read(made_so) for name, made_so in ways.items()}
figure = bars(list(right), [100 * each for each in right.values()], title="drawn pictures read right", unit="%")
show(figure, alt="Bars of pictures read right: three equally high, and with the large factor forgotten near zero.")
print("ours forgotten, within 15 points of right:", abs(right["our units"] - right["our units, forgotten"]) < 0.15)
print("SD's forgotten, less than a quarter:", right["SD's units, forgotten"] < 0.25 * right["SD's units"])

# %% [markdown]
# An honest result in two parts. *Our* factor could be forgotten and hardly anybody would see it. With latents as wide
# as Stable Diffusion's the same slip destroys everything, on both sides: a U-Net worse than silence, and pictures out
# of which the judge reads next to nothing. And no error message anywhere. Lesson 04 shows what the same slip does to
# the noise.
#
# ## The latent microscope
#
# > **Try it.** Slide `mix` from one scene to the other: the decoder does not quite cross-fade; the stronger thing is
# > drawn firmly, the other dissolves. Set `only` to one channel after the other: which of the four holds light and
# > dark? Then add noise until you lose the object.

# %%
ALT = "Half way between two scenes: the latents decoded, the pixels cross-faded, and the four latent channels."
kit.latent_microscope(shipped, pictures[:24], ALT, first=1, second=3)

# %% [markdown]
# The frame above shows the start also without a running kernel. Here is the whole way, latents above, pixels below:

# %%
steps = [0.0, 0.25, 0.5, 0.75, 1.0]
rows = [decode(shipped, torch.lerp(z[1:2], z[3:4], s)) for s in steps]
rows += [torch.lerp(pictures[1:2], pictures[3:4], s) for s in steps]
figure = picture_grid(rows, [f"{s:.0%}" for s in steps] * 2, columns=5, scale=2)
show(figure, alt="Between two scenes in five steps; latents above pass through a smear, pixels below show two ghosts.")

# %% [markdown]
# > **At full size.** The same class with the paper's numbers. The meta device holds shapes without numbers, so building
# > all nine published first stages costs nothing. The ones called *vq* round each position to a word of a codebook
# > instead of using a KL; most of what is round it is the same.

# %%
for name, config in FIRST_STAGES.items():
    with torch.device("meta"):
        network = (VQAutoencoder if isinstance(config, VQAutoencoderConfig) else Autoencoder)(config)
    side = 256 // config.downsampling
    shape, size = f"{side} x {side} x {config.latent_channels}", side**2 * config.latent_channels
    print(f"{name:12} {shape:12} = {size:5} numbers, {sum(p.numel() for p in network.parameters()):>11,} parameters")
print(f"yours: {sum(p.numel() for p in my_autoencoder.parameters()):,}, shipped:", end=" ")
print(f"{sum(p.numel() for p in shipped.parameters()):,}")

# %% [markdown]
# `kl_f8`, with 83,653,863 parameters, is the autoencoder of Stable Diffusion and of the paper's 1.45-billion model.
#
# ## Exercises
#
# Each has a check that answers with a reason. No later cell depends on your answers.

# %%
exercise("autoencoder.latent_size")

# %%
my_count = ...
check.autoencoder.latent_size(my_count)

# %%
hint("autoencoder.latent_size")

# %%
exercise("autoencoder.kl")


# %%
def my_kl(mean, logvar):
    """mean, logvar: (b, c, h, w). Return the divergence of each picture, (b,)."""
    ...


check.autoencoder.kl(my_kl)

# %%
hint("autoencoder.kl")

# %%
exercise("autoencoder.sample")


# %%
def my_sample(mean, logvar, generator):
    """Draw latents so that gradients reach mean and logvar. Three things are wrong here."""
    noise = torch.randn(mean.shape[1:], generator=generator)
    return mean.detach() + logvar.exp() * noise


check.autoencoder.sample(my_sample)

# %%
hint("autoencoder.sample")

# %%
exercise("autoencoder.scale")


# %%
def my_scale(latents): ...


check.autoencoder.scale(my_scale)

# %%
hint("autoencoder.scale")

# %%
exercise("autoencoder.noise_limit")

# %%
my_strength = ...
check.autoencoder.noise_limit(my_strength)

# %%
hint("autoencoder.noise_limit")

# %%
solution("autoencoder.kl")

# %% [markdown]
# ## Recap
#
# - The **encoder** shrinks by strided convolutions, the **decoder** grows again; $f$ is the ratio of the sides.
# - The encoder answers with a **cloud**, a Gaussian per latent number. Drawing as $\mu + \sigma\epsilon$ lets the
#   gradient through.
# - The **KL** is the price of information. It rises as learning begins, and may sink again later. Weak, it keeps the
#   latents in bounds; strong, it erases them.
# - Noise decodes to mush because a weak KL leaves the real latents in a small corner of $\mathcal N(0, I)$. To find
#   that corner is left for diffusion.
# - The **scale factor** brings the latents to a spread of 1. It belongs to one autoencoder, and forgetting it breaks
#   everything silently.
#
# ## Common mistakes
#
# - *Taking logvar for sigma, or for the variance.* $\sigma = e^{\text{logvar}/2}$.
# - *Changing mean to sum, or back, without the weight.* The KL then counts thousands of times more or less.
# - *Copying 0.18215 to another autoencoder.* Measure your own.
# - *Worrying about a rising KL*, or about mush from noise.
# - *Judging by PSNR alone.* It counts pixels; the judge counts what they show.
# - *Multiplying where you should divide.* Into the U-Net: times the factor. Out of it: divided by it.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Rombach and others: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022 (arXiv 2112.10752).
#   Section 3.1 and appendix G are this lesson; table 8 has the autoencoders.
# - Kingma, Welling: *Auto-Encoding Variational Bayes*, 2014 (arXiv 1312.6114). The cloud, the draw and the KL.
# - Esser, Rombach, Ommer: *Taming Transformers for High-Resolution Image Synthesis*, 2021 (arXiv 2012.09841). Where
#   this encoder and decoder come from.
# - Higgins and others: *beta-VAE*, 2017 (openreview Sy2fzU9gl). What a strong KL does, on purpose.
#
# ## Next stop
#
# **02 · Sharp reconstructions: why are pixel losses blurry?** And the two helpers against it: the perceptual distance,
# which you have already used, and the adversary, which you have not.
