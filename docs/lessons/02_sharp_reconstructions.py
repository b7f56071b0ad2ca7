# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Sharp reconstructions: why are pixel losses blurry?
#
# An autoencoder that squeezes hard has to leave something out. What it puts in the place of the lost detail depends on
# the loss, and the obvious loss puts fog there. In this lesson you find out why, with numbers, and you build what
# latent diffusion uses against it: a distance that looks at features, and a critic that looks at patches. You will
# have made the picture in which the same scene comes back from five autoencoders that differ in nothing but their loss.
#
# > **Goal.** Show that a squared error is smallest at the mean, write LPIPS and the PatchGAN and prove them equal to
# > the package's, derive the weight that balances the two, and measure what each part buys and costs.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import DiscriminatorConfig
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.lessons import lesson_02_kit as kit
from ldm_tutor.lessons import lesson_02_views as views
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.cost import cost_card
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from ldm_tutor.losses.reconstruction import feature_distance, l1_loss, l2_loss
from ldm_tutor.metrics.pictures import high_frequency_energy, psnr
from ldm_tutor.models.discriminator import PatchDiscriminator
from ldm_tutor.plots.figures import STYLE, picture_grid, show, signed_map
from ldm_tutor.widgets.live import live

torch.set_num_threads(min(2, torch.get_num_threads()))
plt.rcParams.update(STYLE)
NAMES, RUNS = kit.NAMES, kit.RUNS

# %% [markdown]
# ## Fact box

# %%
fact_box(2)

# %% [markdown]
# ## Where you are

# %%
course_map(2)

# %% [markdown]
# ## Five autoencoders, one difference
#
# Five small autoencoders lie ready, trained by one command (`python -m ldm_tutor.lessons.lesson_02_kit`). They have
# the same layers, the same first weights, the same pictures in the same order, and the same number of steps. Only
# their loss differs. They squeeze harder than the course's own autoencoder: a scene of 64 x 64 x 3 numbers becomes a
# grid of 8 x 8 x 4. At that rate, something must get lost, and you can watch what takes its place.

# %%
test = render_scenes(96, "test")
pictures = to_float(test.pictures)
made = {name: kit.reconstruct(name, pictures) for name in RUNS}
coder = kit.load_coder("l2")
with torch.inference_mode():
    latents = coder.encode(pictures[:1]).mode()
print(f"parameters: {sum(p.numel() for p in coder.parameters()):,}, steps: {kit.NUM_STEPS:,}")
print(f"{pictures[0].numel():,} numbers become {latents.numel()}: a factor of {pictures[0].numel() // latents.numel()}")
for name, recipe in RUNS.items():
    start = f", from {recipe.adversarial_start:.0%} on" if recipe.adversarial_weight else ""
    print(f"{NAMES[name]:12} pixels: {recipe.pixel_loss}, perceptual: {recipe.perceptual_weight}, "
          f"critic: {recipe.adversarial_weight}{start}")  # fmt: skip

# %% [markdown]
# ## Try first: the obvious loss
#
# Compare pixel by pixel, square the differences, take the mean. It is the first loss that anyone would write, and it
# is honest: PSNR, the usual measure of reconstructions, is nothing but this number on another scale. Look at what it
# gives on scenes that it has never seen.

# %%
rows = torch.cat([pictures[:6], made["l2"][:6]])
show(picture_grid(rows, ["scene"] * 6 + ["L2"] * 6, scale=2), alt="Six scenes above, below what the L2 run makes of "
     "them: the right backgrounds, and the things as if seen through fog.")  # fmt: skip
fine = high_frequency_energy(pictures).mean()
print(f"PSNR {psnr(made['l2'], pictures).mean():.1f} dB")
print(f"fine energy: {high_frequency_energy(made['l2']).mean() / fine:.0%} of the scenes' own")

# %% [markdown]
# The backgrounds are right. The things look as if seen through fog: soft edges, no face, no wheels, and the boat at
# night has nearly drowned. *Fine energy* puts a number on it: cut the picture into waves with a Fourier transform and
# keep the power of what repeats within four pixels or less. Less than a fifth of it is left, and training longer brings
# it back slowly; you will see the curve. To see what really is going on, take a problem so small that you can solve it
# by hand.
#
# ## Step 1: one answer to many truths
#
# A row of sixteen pixels is dark on the left and bright on the right. Suppose that the latents have no room to say
# where exactly the edge lies: nine places are equally likely. The decoder sees the same latents each time, so it has
# to give *one* answer to all nine. Which one is best depends on how you count the errors. Let gradient descent find
# it:

# %%
truths = torch.ones(9, 16)
for k in range(9):
    truths[k, : 4 + k] = -1.0  # dark up to pixel 4, 5, ... 12


def best_answer(loss):
    """One row that is as near as possible to all truths at once."""
    answer = torch.zeros(16, requires_grad=True)
    optimizer = torch.optim.Adam([answer], lr=0.01)
    for _ in range(600):
        optimizer.zero_grad()
        loss(answer.expand(9, 16), truths).backward()
        optimizer.step()
    return answer.detach()


answers = {"L2": best_answer(l2_loss), "L1": best_answer(l1_loss)}
print("L2's answer is the mean:", torch.allclose(answers["L2"], truths.mean(dim=0), atol=0.02))
print("L1's answer is the median:", torch.allclose(answers["L1"], truths.median(dim=0).values, atol=0.02))
figure, axes = plt.subplots(figsize=(6, 2.6))
axes.plot(truths.T, color="0.8", linewidth=1)
for (name, answer), line in zip(answers.items(), ("o-", "s--"), strict=True):
    axes.plot(answer, line, label=f"best for {name}")
axes.set(xlabel="pixel", ylabel="brightness")
axes.legend()
show(figure, alt="Nine grey steps at nine places. L2's best answer is a ramp through them, L1's the middle step.")

# %% [markdown]
# The algebra is one line each. The derivative of $\sum_k (y - x_k)^2$ is $2\sum_k (y - x_k)$, which vanishes at the
# mean. The derivative of $\sum_k |y - x_k|$ counts the truths below $y$ minus those above, which is balanced at the
# median.
#
# > **Key idea.** A loss that compares pixel by pixel has one best answer to a doubt, and L2's is the average of all
# > possible pictures. Nobody has ever seen such a picture. The fog is not a failure of training: it *is* the optimum.
#
# L1's answer is a step, as sharp as the truths, only seldom in the right place. So is L1 the cure? Here every truth
# was an edge of the same kind. Take a car that stands in one of nine places, a pixel apart, and look at three
# answers: the mean, the median of each pixel, and the car in the middle.


# %%
cars = kit.cars()
three = {"mean": cars.mean(dim=0), "median": cars.median(dim=0).values, "one car": cars[4]}
figure = picture_grid(torch.stack([cars[0], cars[8], *three.values()]), ["first", "last", *three], scale=2)
show(figure, alt="The car at its first and last place; the mean is a smear, the median ragged, one car sharp.")


def score(distance):
    """The mean distance of each answer to the nine truths, in units of the mean's."""
    values = {name: distance(answer.expand_as(cars), cars).mean() for name, answer in three.items()}
    return {name: round(float(value / values["mean"]), 1) for name, value in values.items()}


print("L2:", score(l2_loss))
print("L1:", score(l1_loss))

# %% [markdown]
# Smaller is better, and the mean is 1. L2 punishes the sharp car severely: a car in the wrong place is wrong twice,
# where it stands and where it should stand. L1 likes the median best, and finds the sharp car no better than the
# smear. The median itself is no car either: each pixel votes alone, and no one asks whether the votes make a picture.
# That is the hole in both losses. What we want is a loss that asks it.
#
# ## Step 2: a distance that sees
#
# Send both pictures through a network that was trained to *recognise* things, and compare what it sees on the way. Its
# first layers see edges, each at its place. Later ones see wheels and roofs, and care less where exactly. This is the
# perceptual distance, LPIPS (Zhang et al. 2018, eq. 1). With $\hat f^l_{yx}$ the feature vector of layer $l$ at one
# position, divided by its length:
#
# $$d(x, x') = \sum_l \frac{1}{H_l W_l} \sum_{y,x} \big\lVert w_l \odot (\hat f^{\,l}_{yx} - \hat f'^{\,l}_{yx})
# \big\rVert_2^2$$
#
# The published one takes VGG16, trained on ImageNet, and learned weights $w_l$. Ours takes a small network that this
# project trained to name the things in scenes, and all weights equal to 1. It gives four feature maps; the last unites
# the two before it. One channel of each, for a scene and for its L2 reconstruction, red above 0 and blue below:

# %%
perceptual = kit.loss_network()
with torch.inference_mode():
    seen, seen_l2 = perceptual.network.features(pictures[:2]), perceptual.network.features(made["l2"][:2])
maps, titles = [], []
for picture, features in (("scene", seen), ("L2", seen_l2)):
    for k, feature in enumerate(features):
        channel = int(seen[k][0].std(dim=(1, 2)).argmax())
        maps.append(signed_map(feature[0, channel], scale=128 // feature.shape[-1]))
        titles.append(f"{picture}, map {k}")
show(picture_grid(maps, titles, columns=4, scale=1), alt="Four feature maps of a scene, and below of its L2 "
     "reconstruction: edges first, blobs later; the lower row has fainter edges.")  # fmt: skip
print("shapes of the maps:", [tuple(feature.shape[1:]) for feature in seen])

# %% [markdown]
# Write the distance of two feature maps as a loop over positions first, so that you see every vector:


# %%
def gap_loop(a, b):
    """Distance of two feature maps of one picture, (c, h, w) each."""
    total, (_, h, w) = 0.0, a.shape
    for y in range(h):
        for x in range(w):
            u, v = a[:, y, x], b[:, y, x]  # what the network sees here
            total += float(((u / u.norm() - v / v.norm()) ** 2).sum())
    return total / (h * w)


def gap(a, b):
    """The same for a batch, (b, c, h, w): one number per picture."""
    a, b = F.normalize(a, dim=1, eps=1e-5), F.normalize(b, dim=1, eps=1e-5)
    return (a - b).square().sum(dim=1).mean(dim=(1, 2))


class MyPerceptual(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network.eval().requires_grad_(False)  # it judges, it does not learn

    def forward(self, pictures, others):
        pairs = zip(self.network.features(pictures), self.network.features(others), strict=True)
        return sum(gap(a, b) for a, b in pairs)


mine = MyPerceptual(perceptual.network)
print("loop and batch agree:", abs(gap_loop(seen[2][0], seen_l2[2][0]) - float(gap(seen[2], seen_l2[2])[0])) < 1e-4)
print("one map equals the package's:", torch.allclose(gap(seen[0], seen_l2[0]), feature_distance(seen[0], seen_l2[0])))
with torch.inference_mode():
    ours, theirs = mine(made["l2"][:8], pictures[:8]), perceptual(made["l2"][:8], pictures[:8])
print("yours equals the package's:", torch.allclose(ours, theirs, atol=1e-5))

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.losses.reconstruction.PerceptualDistance`.
#
# > **Careful.** The network is frozen, and yet the gradient must flow *through* it to the picture.
# > `requires_grad_(False)` on its weights is right; `torch.no_grad()` around it would be wrong, and nothing would
# > complain.
#
# What does this distance mind? Spoil the scenes in five ways, each just so strongly that the PSNR is 24 dB. To a
# squared error all five are the same.

# %%
noise = torch.randn(pictures[:16].shape, generator=torch.Generator().manual_seed(0))
real = pictures[:16]
coarse = F.avg_pool2d(real, 4)
spoiled = {
    "blurred": F.interpolate(coarse, scale_factor=4, mode="bilinear"),
    "noisy": real + noise,
    "blocks": F.interpolate(coarse, scale_factor=4),
    "shifted": real.roll(1, dims=3),
    "brighter": real + 1,
}
goal = (4 * 10 ** (-24 / 10)) ** 0.5  # the root of the mean squared error at 24 dB, for values from -1 to 1
shown = [real[:1]]
for name, bad in spoiled.items():
    strength = goal / (bad - real).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    bad = real + strength * (bad - real)
    shown.append(bad[:1])
    print(f"{name:8} PSNR {psnr(bad, real).mean():.1f} dB, perceptual distance {perceptual(bad, real).mean():.2f}")
show(picture_grid(shown, ["scene", *spoiled], scale=2), alt="A scene, then blurred, noisy, in blocks, mixed with a "
     "shifted copy and brighter, all equally far away in squared error.")  # fmt: skip

# %% [markdown]
# The same squared error, and a factor of more than two between the ends. (*Shifted* is mixed with its copy one pixel
# aside, as far as 24 dB allow.) Blur is what this distance likes least; a shift it forgives more easily, and brightness
# most easily of all. Ask it about the cars:

# %%
with torch.inference_mode():
    print("perceptual:", score(perceptual))
    print("for comparison, L2:", score(l2_loss))
    print("and L1:            ", score(l1_loss))

# %% [markdown]
# Read this carefully, because it is less than is often claimed. The distance does not *prefer* the sharp car. It
# has merely stopped punishing it: where L2 asks 1.8 times the price of the smear, this one asks 1.1 times. L1 asks no
# more; but L1's favourite is the ragged median, and this distance has seen through it. So the doubt is still averaged.
# The fog gets thinner, and does not lift.
#
# And the published LPIPS? The package `lpips` brings the learned weights, a few kilobytes. The backbone beneath them
# has to be downloaded, and this course never downloads anything unasked. If one lies in the cache of your torch, the
# next cell measures with it; else it says so, and all figures of this lesson are those of our own network. (To fetch
# it, half a gigabyte: `python -c "import lpips; lpips.LPIPS(net='vgg')"`.)

# %% tags=["nbval-ignore-output"]
found = kit.published_lpips()
if found is None:
    print("no backbone of the published LPIPS on this machine: the project's own network measures everything here")
else:
    backbone, lpips = found
    with torch.inference_mode():
        for name, result in made.items():
            both = float(lpips(result, pictures).mean()), float(perceptual(result, pictures).mean())
            print(f"{NAMES[name]:12} published LPIPS ({backbone}) {both[0]:.3f}, ours {both[1]:.3f}")

# %% [markdown]
# > **In the paper.** Rombach et al. (section 3.1) train their autoencoders with a perceptual loss and a patch-based
# > adversarial objective, to keep reconstructions on the image manifold and avoid the blur of pixel losses alone. Their
# > code takes L1 plus 1.0 times LPIPS with VGG16. LPIPS gives one number per picture, which is added to *every*
# > pixel before all are summed. So the two count equally when averaged.
#
# ## What the first three give
#
# Three autoencoders are trained without a critic. Here are the same places of three scenes, six times enlarged. Below
# them, `kit.measure` gives four numbers per run: PSNR; the perceptual distance, in the eyes of the judge; fine energy
# as a share of the scenes' own; and in what share of the pictures the judge finds all kinds of object.

# %%
PLACES = [(0, 24, 20), (3, 24, 20), (5, 20, 20)]  # picture, top, left
first = {"scene": pictures} | {NAMES[name]: made[name] for name in ("l2", "l1", "perceptual")}
show(views.crops(first, PLACES), alt="Crops of three scenes in four columns: the scene, L2, L1 and perceptual. "
     "L1 has lost the colours, perceptual has the clearest outlines.")  # fmt: skip

# %%
table = {name: kit.measure(result, test) for name, result in made.items()}
for name in ("l2", "l1", "perceptual"):
    quality, distance, energy, right = table[name]
    print(f"{NAMES[name]:12} PSNR {quality:.1f} dB, distance {distance:.2f}, fine energy {energy:.0%}")
with torch.inference_mode():
    own = [float(perceptual(made[name], pictures).mean()) for name in ("perceptual", "l2")]
print(f"perceptual over L2: {table['perceptual'][1] / table['l2'][1]:.1f} of the distance as the judge sees it, "
      f"{own[0] / own[1]:.1f} as the loss's own network sees it")  # fmt: skip
print("with L1 all kinds are found far less often than with L2:", table["l2"][3] - table["l1"][3] > 0.2)

# %% tags=["nbval-ignore-output"]
for name in ("l2", "l1", "perceptual"):
    print(f"{NAMES[name]:12} the judge finds all kinds of object in {table[name][3]:.0%} of the pictures")

# %% [markdown]
# Look before you read the numbers. L1 is not sharper than L2. It has lost the colours of the things, the blue dog is
# nearly black, and in many pictures the things themselves. Remember the vote of the pixels. A thing is small and stands
# somewhere else in every scene, so at most pixels most of the possible pictures show background, and so does the
# median. L2's mean keeps at least a trace of everything, and the judge finds more in it.
#
# The perceptual run has the colours and the clearest forms, and the judge finds more than in any other so far. Beside
# L1, from which it differs in this one term, it wins in everything, PSNR too, but for the fine energy. Only L2, whose
# loss *is* the PSNR, has more of that. The cars have said so: clearer shapes, and still fog.
#
# > **Careful.** Whoever measures must not have been part of the loss. The distance in this table is that of the
# > *judge*, whose features no training has seen. The network in the loss sees a larger improvement than the judge
# > does, since it is the one that was to be pleased. (All five were trained for six thousand steps, some minutes each.
# > More steps would make all of them better. What you compare is what the losses do with the same effort.)
#
# ## Step 3: a critic for patches
#
# What is missing is a loss that asks of *one* picture: could this be real? No formula knows that. So learn it: train
# a second network, the **critic** or discriminator, to tell real pictures from reconstructions, and train the
# autoencoder to pass for real. This is the game of a GAN. A critic of the whole picture would judge its layout, and
# for that the pixel losses are good enough. Detail is what should be judged. So Isola et al. (2017) let the critic
# see only a patch, and judge every patch by itself: the **PatchGAN**.
#
# It is a plain convolutional network, 4 x 4 kernels only: some layers of stride 2, a last two of stride 1, and no
# layer that mixes all positions. Its output is a grid of verdicts: above 0 says real, below 0 says made.


# %%
class MyCritic(nn.Module):
    def __init__(self, channels, num_layers):
        super().__init__()
        layers = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for n in range(1, num_layers + 1):
            out = channels * min(2**n, 8)
            stride = 2 if n < num_layers else 1
            layers += [nn.Conv2d(width, out, 4, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
            width = out
        layers.append(nn.Conv2d(width, 1, 4, padding=1))  # one number per patch
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures):
        return self.layers(pictures)


critic = kit.load_critic("adversary")  # the one that the fourth run ended with
my_critic = MyCritic(kit.CRITIC.channels, kit.CRITIC.num_layers).eval()
my_critic.load_state_dict(critic.state_dict())
with torch.inference_mode():
    verdicts = critic(pictures)
    print("equal to the package's:", torch.equal(my_critic(pictures), verdicts))
print("pictures", tuple(pictures.shape), "-> verdicts", tuple(verdicts.shape))

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.models.discriminator.PatchDiscriminator`.
#
# Is it true that a verdict depends on a patch alone? Two tests. First the loop that the convolution saves you: cut out
# the patch behind a verdict, give nothing but this patch to the same layers without their padding, and you should get
# the same number. Then the gradient: ask one verdict which pixels it depends on.


# %%
def judge_one_patch(critic, patch):
    """One patch through the same layers, with no padding: one verdict comes out."""
    for layer in critic.layers:
        patch = (
            F.conv2d(patch, layer.weight, layer.bias, layer.stride) if isinstance(layer, nn.Conv2d) else layer(patch)
        )
    return patch.squeeze()


layers = views.layers_of(critic)
loop = torch.zeros(6, 6)
with torch.inference_mode():
    for row in range(4, 10):
        for column in range(4, 10):
            (top, bottom), (left, right) = views.patch_of(row, layers), views.patch_of(column, layers)
            loop[row - 4, column - 4] = judge_one_patch(critic, pictures[:1, :, top:bottom, left:right])
print("36 patches one by one equal the map:", torch.allclose(loop, verdicts[0, 0, 4:10, 4:10], atol=1e-4))


def pixels_seen(critic, side):
    """Mark the pixels that the middle verdict depends on, by its gradient."""
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = critic(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    return x.grad.abs().sum(dim=(0, 1)), tuple(out.shape[2:])


paper = PatchDiscriminator(DiscriminatorConfig()).eval()
panels = []
for name, network, side in (("ours", critic, 64), ("the paper's", paper, 256)):
    weight, grid = pixels_seen(network, side)
    high, wide = (int((weight.sum(dim=k) > 0).sum()) for k in (1, 0))
    count = sum(p.numel() for p in network.parameters())
    print(f"{name}: {grid[0]} x {grid[1]} verdicts on {side} pixels, each of {high} x {wide}; {count:,} parameters")
    panels.append(F.interpolate((weight / weight.max()).sqrt()[None, None] * 2 - 1, size=256).expand(1, 3, -1, -1))
figure = picture_grid(panels, ["ours, on 64 pixels", "the paper's, on 256 pixels"], scale=1)
show(figure, alt="Black squares, a bright patch in each: the pixels that a verdict sees, half the width, a quarter.")

# %% [markdown]
# The patch of the paper's critic is 70 pixels wide, a quarter of its pictures. With three strided layers, ours would
# see more than a whole scene; so it has two, and sees 34. In the second exercise you compute both numbers.
#
# > **Careful.** Both tests need `.eval()`. In training, batch normalisation takes its mean and spread from the whole
# > batch, and every verdict depends a little on every pixel of every picture.
#
# ## Step 4: the hinge
#
# The critic should say more than 0 to real patches and less than 0 to made ones. How much more? The hinge loss (Lim
# and Ye 2017) is content with 1. With $D$ for the critic, $x$ for a scene and $\hat x$ for its reconstruction:
#
# $$L_D = \tfrac12\,\mathbb E\big[\max(0, 1 - D(x))\big] + \tfrac12\,\mathbb E\big[\max(0, 1 + D(\hat x))\big],
# \qquad L_G = -\,\mathbb E\big[D(\hat x)\big]$$
#
# A verdict beyond the hinge costs nothing and pulls at nothing, so the critic spends its effort on the patches that
# it is unsure of. The autoencoder's side, $L_G$, has no hinge: it always wants more.

# %%
v = torch.linspace(-3, 3, 61)
figure, axes = plt.subplots(figsize=(5.6, 2.6))
axes.plot(v, (1 - v).relu(), "-", label="critic, on a real patch")
axes.plot(v, (1 + v).relu(), "--", label="critic, on a made patch")
axes.plot(v, -v, ":", label="autoencoder")
axes.set(xlabel="verdict", ylabel="loss")
axes.legend()
show(figure, alt="Loss over verdict: the critic's two sides are zero beyond 1 and -1, the autoencoder's is a line.")
by_hand = 0.5 * ((1 - verdicts).relu().mean() + (1 + verdicts.flip(0)).relu().mean())
print("equal to the package's:", torch.allclose(by_hand, discriminator_loss(verdicts, verdicts.flip(0))))
print("an undecided critic pays", float(discriminator_loss(torch.zeros(1), torch.zeros(1))))

# %% [markdown]
# Can such a small critic tell fog from a scene? Take a fresh one, with random weights, and teach it: scenes are real,
# what L2 makes of them is made. It learns on 64 scenes and is examined on 32 others.

# %%
cost_card("60 steps of a critic", seconds=8)

# %%
torch.manual_seed(0)
fresh = PatchDiscriminator(kit.CRITIC)
optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-3, betas=(0.5, 0.9))
losses = []
for _ in range(60):
    chosen = torch.randint(64, (8,))
    loss = discriminator_loss(fresh(pictures[chosen]), fresh(made["l2"][chosen]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
fresh.train()  # verdicts by the batch's own statistics: 60 steps are too few for good running ones
with torch.inference_mode():
    of_real, of_made = fresh(pictures[64:]), fresh(made["l2"][64:])
print("the loss begins near 1:", abs(losses[0] - 1) < 0.2, "| ends below 0.6:", sum(losses[-10:]) / 10 < 0.6)
told = float((of_real > 0).float().mean()), float((of_made < 0).float().mean())
print("on new scenes, more than 0.8 told right of the real patches:", told[0] > 0.8, "| of the made:", told[1] > 0.8)
figure, axes = plt.subplots(figsize=(5.6, 2.4))
axes.plot(losses)
axes.set(xlabel="step", ylabel="hinge loss", ylim=(0, 1.3))
show(figure, alt="The hinge loss of the fresh critic over 60 steps: it falls from 1 to between 0.1 and 0.6.")

# %% [markdown]
# At the first step it knew nothing, and now fog does not pass. That is the loss we were looking for. Nobody told it
# what blur is.
#
# ## Step 5: how loud is the critic?
#
# The autoencoder now has two wishes: be near the picture, and please the critic. Add the two losses, with which factor?
# The scale of the verdicts means nothing; a critic whose last layer is twice as large has the same opinion. What counts
# is how hard each loss pulls at the weights, its gradient. VQGAN (Esser et al. 2021, eq. 7) compares the two pulls
# where both arrive first, at the weight $w$ of the decoder's last layer, and gives the critic the factor that makes
# them equally strong:
#
# $$\lambda = \frac{\lVert \nabla_w L_{\mathrm{rec}} \rVert}{\lVert \nabla_w L_G \rVert + 10^{-4}}
# \qquad\Rightarrow\qquad \lVert \lambda \nabla_w L_G \rVert \approx \lVert \nabla_w L_{\mathrm{rec}} \rVert$$
#
# Everything that lies before the last layer gets its gradient through it. The $10^{-4}$ keeps the division from
# failing; it is the code's, where the paper has $10^{-6}$. $\lambda$ is taken as a number: no gradient flows into it.
# Then it is multiplied by a fixed weight, 0.5 in the paper's code and here. Check it:

# %%
coder, real = kit.load_coder("perceptual"), pictures[:8]
last = coder.decoder.conv_out.weight.requires_grad_()
result = coder(real)
reconstruction = l1_loss(result, real) + 0.2 * perceptual(result, real).mean()
fooling = generator_loss(critic(result))


def pull(loss):
    return torch.autograd.grad(loss, last, retain_graph=True)[0]


factor = pull(reconstruction).norm() / (pull(fooling).norm() + 1e-4)
print("equal to the package's:", torch.allclose(factor, adaptive_weight(reconstruction, fooling, last)))
ratio = (factor * pull(fooling)).norm() / pull(reconstruction).norm()
print(f"the critic's pull with the factor, over the reconstruction's: {ratio:.2f}")
both = pull(reconstruction + 0.5 * factor * fooling)
by_parts = pull(reconstruction) + 0.5 * factor * pull(fooling)
print("the pulls add up:", torch.allclose(both, by_parts, rtol=1e-3, atol=1e-6))
for loud in (0.1, 1.0, 10.0):
    plain = 0.5 * pull(loud * fooling).norm() / pull(reconstruction).norm()
    tamed = 0.5 * adaptive_weight(reconstruction, loud * fooling, last) * pull(loud * fooling).norm()
    relative = float(plain / (0.5 * pull(fooling).norm() / pull(reconstruction).norm()))
    print(f"verdicts {loud:4} times as loud: pull with a fixed weight x {relative:.1f}, "
          f"with the factor {tamed / pull(reconstruction).norm():.2f} of the reconstruction's")  # fmt: skip

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.losses.adversarial`. With a fixed weight, a louder critic pulls harder.
# > With the factor, its share is a half, whatever its scale.
#
# Put together, this is a training step of two networks with a critic that waits. Two things are easily forgotten: the
# critic learns from copies without a gradient (`detach`), and what the autoencoder's step has left in the critic's
# gradients is thrown away first. (The KL, here a millionth, is left out.) Eight steps, with a critic that joins after
# the fourth:


# %%
def training_step(coder, critic, optimizers, real, joined):
    copy = coder(real)
    loss = reconstruction = l1_loss(copy, real) + 0.2 * perceptual(copy, real).mean()
    if joined:
        fooling = generator_loss(critic(copy))
        loss = loss + 0.5 * adaptive_weight(reconstruction, fooling, coder.decoder.conv_out.weight) * fooling
    optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()
    if joined:
        optimizers[1].zero_grad()
        discriminator_loss(critic(real), critic(copy.detach())).backward()
        optimizers[1].step()


pupil, newcomer = kit.load_coder("perceptual").train().requires_grad_(), PatchDiscriminator(kit.CRITIC)
optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-4, betas=(0.5, 0.9)) for each in (pupil, newcomer)]
untouched = newcomer.layers[0].weight.detach().clone()
for step in range(8):
    training_step(pupil, newcomer, optimizers, pictures[8 * step : 8 * step + 8], joined=step >= 4)
    if step in (3, 7):
        print(f"after step {step}, the critic has learned:", not torch.equal(newcomer.layers[0].weight, untouched))

# %% [markdown]
# How much does it matter? These are the factor, measured on held-out scenes, and the critic's own loss along the
# trainings of the two runs that have a critic:

# %%
logs = {name: kit.load_log(name) for name in RUNS}
figure = views.balance_figure({NAMES[name]: logs[name] for name in ("adversary", "adversary_at_0")})
show(figure, alt="Left the factor, never at rest, from 0.04 to 0.4. Right the hinge loss: near 1 for the late critic, "
     "with one peak soon after it joins; the early critic's sinks to about 0.65.")  # fmt: skip
for name in ("adversary", "adversary_at_0"):
    joined = [value for value in logs[name]["balance"] if value > 0]
    print(f"{NAMES[name]}: the factor lies between {min(joined):.2f} and {max(joined):.2f}")

# %% [markdown]
# The factor is never at rest. In the early run it grows to eight times what it was, and falls again. A fixed weight
# that fits one moment would be a shout at another. The hinge loss says who is ahead: the late critic hardly gets below
# the 1 of an undecided one, the early one is far below.
#
# ## A failure on purpose: the critic from step 0
#
# The fourth run's critic joins in the middle of the training (*late*). The fifth run's is there from the first step
# (*early*). All else is equal: until its critic speaks, the late run makes the very pictures of the perceptual run. Why
# should a critic wait? Follow what held-out scenes come back as, along the training. The distance here is that of the
# loss's network, since these numbers were written down while training.

# %%
figure = views.progress_figure({NAMES[name]: logs[name] for name in RUNS}, float(fine))
show(figure, alt="PSNR, perceptual distance and fine energy over the steps. PSNR stays lowest with the early critic. "
     "Fine energy is flat without a critic and rises soon after one joins.")  # fmt: skip
half = logs["l2"]["step"].index(3000)
gap_at_half = logs["perceptual"]["psnr"][half] - logs["adversary_at_0"]["psnr"][half]
print(f"at step 3,000 the early critic has cost {gap_at_half:.1f} dB")

# %%
late = ("perceptual", "adversary", "adversary_at_0")
rows = torch.cat([kit.load_kept(name)[:, 0] for name in late])
titles = [f"{NAMES[name]}, {step}" for name in late for step in kit.LOOK_AT]
show(picture_grid(rows, titles, columns=len(kit.LOOK_AT), scale=2), alt="One scene at six steps of three runs. Two "
     "rows agree up to step 3000, then the late critic brings hard edges and grain; the early one has both, and "
     "changing colours, from the beginning.")  # fmt: skip

# %% [markdown]
# In the beginning there is nothing yet that a critic could improve. The early critic tells blobs from scenes without
# effort, and fine detail is not what they differ in. Still it pulls at the decoder, half as hard as all other losses
# together, while the decoder has yet to learn what stands where. Its PSNR stays behind, its colours jump from look to
# look, and it draws hard outlines before it knows of what. Its critic stays ahead: the lower hinge loss above is a
# critic that wins.
#
# The late critic joins a decoder that has its shapes. PSNR suffers there as well, a little less at the end, and fine
# energy rises steeply. Stable Diffusion's autoencoder was trained in this order too: pictures first, critic later.
#
# ## Side by side

# %%
forms = {"PSNR in dB": "{:.1f}", "perceptual distance": "{:.2f}", "fine energy": "{:.0%}", "all kinds found": "{:.0%}"}
figure = views.bars_figure({NAMES[name]: table[name] for name in RUNS}, forms)
show(figure, alt="Bars for five runs. L2 has the best PSNR, perceptual the smallest distance and the most kinds, the "
     "critics have the most fine energy: the early one more than the late one, and less of all else.")  # fmt: skip
of_late, of_early = table["adversary"], table["adversary_at_0"]
for name, (quality, distance, energy, _) in {"late critic": of_late, "early critic": of_early}.items():
    print(f"{name:12} PSNR {quality:.1f} dB, distance {distance:.2f}, fine energy {energy:.0%}")
ahead = [b > a for a, b in zip(of_late, of_early, strict=True)]
print("the early critic has more fine energy, and is behind in all else:", ahead == [False, True, True, False])

# %%
columns = {"scene": pictures} | {NAMES[name]: made[name] for name in RUNS}
show(views.crops(columns, PLACES), alt="Crops of three scenes, six columns: the scene, three soft ones, and two with "
     "hard outlines and speckles where a critic has had its say.")  # fmt: skip

# %% [markdown]
# Now say honestly what was bought. The critic brought the fine energy from about a tenth to seven tenths of that of
# real scenes: there are outlines again. It did not bring the *right* detail. From 256 numbers the decoder cannot know
# where an eye sits, so it paints something as restless as an eye. The judge finds hardly fewer things in it than
# before, its distance grows, PSNR falls by two decibels. In this short training with a loud critic, the perceptual run
# is the best reconstruction, and the critics' are the best imitations of sharpness.
#
# So why does everybody train with a critic? Because their budget is another one. The course's own autoencoder squeezes
# a quarter as hard (12 to 1), its critic has a weight of 0.1 and joins after 70% of a run that sees many times as many
# pictures. A decoder that already has the shapes right leaves only the last bit to the critic: hair, leaves, the grain
# of a photograph.
#
# > **Key idea.** Near and real are two wishes. Pixel losses ask for near and get fog, a critic asks for real and gets
# > invention. The weights decide how much of each you want, and the squeeze decides how far apart the two are.
#
# ## Read the verdicts
#
# The late critic has opinions of every patch. Look at them.
#
# > **Try it.** Choose a scene and who drew it, then walk over the map with the two sliders. Which patches does the
# > critic believe? Go to an edge, to the middle of the sky, to the corner, where a part of the patch lies outside
# > of the picture. Then set the source to *scene*: does it believe reality?


# %%
sources = {"scene": pictures} | {NAMES[name]: made[name] for name in RUNS}
with torch.inference_mode():
    found = {name: critic(batch)[:, 0] for name, batch in sources.items()}


def explore(scene, source, row, column):
    return views.verdict_figure(sources[source][scene : scene + 1], found[source][scene], layers, row, column)


def say(scene, source, row, column):
    verdict, share = float(found[source][scene, row, column]), float((found[source][scene] > 0).float().mean())
    return f"{source}, {test.captions[scene]}: this patch {verdict:.1f}, {share:.0%} of all patches pass for real"


ALT = "A picture with the frame of one patch, the map of the critic's verdicts, blue real and red made, and the patch."
live(explore, ALT, caption=say, scene=(0, 95, 0), source=list(sources), row=(0, 13, 4), column=(0, 13, 6))

# %% [markdown]
# If you read this without a running kernel, here are the maps of one scene for all sources, and how many of all
# patches pass:

# %%
still = [batch[:1] for batch in sources.values()]
still += [signed_map(-each[0].clamp(-2, 2), scale=9) for each in found.values()]  # red: made
show(picture_grid(still, list(sources) * 2, columns=6, scale=2), alt="A scene and its five reconstructions, below "
     "each the critic's map: blue on the scene's things, red on those of L2 and L1, reddest for late.")  # fmt: skip
passing = {name: float((each > 0).float().mean()) for name, each in found.items()}
print("scenes pass most often:", max(passing, key=passing.get) == "scene")
print("the late critic's own pictures pass least often:", min(passing, key=passing.get) == "late critic")

# %% tags=["nbval-ignore-output"]
print({name: f"{share:.0%}" for name, share in passing.items()})

# %% [markdown]
# Three surprises. The critic is not a measure of quality: it finds the pictures of its own pupil *least* real, since
# those are the ones whose weaknesses it has studied. And it is unsure: even of the scenes a good part does not pass. A
# critic that were sure of everything would lie beyond the hinge, and would have nothing left to learn. And it lets fog
# pass nearly as often as scenes: for three thousand steps it has only met sharp pictures.
#
# ## At full size
#
# > **At full size.** The critic of Stable Diffusion's autoencoder is this class with {{full critic channels}} channels
# > and {{full critic layers}} strided layers. It joins at step 50,001 with the weight 0.5. Its autoencoder has
# > {{full autoencoder exactly}} parameters and is trained with Adam, betas (0.5, 0.9), the same learning rate for both
# > networks.

# %%
with torch.device("meta"):  # shapes without numbers: nothing is computed
    for num_layers in (3, 2):
        network = PatchDiscriminator(DiscriminatorConfig(num_layers=num_layers))
        grid = tuple(network(torch.empty(1, 3, 256, 256)).shape[2:])
        begin, end = views.patch_of(0, views.layers_of(network))
        print(f"{num_layers} strided layers: {sum(p.numel() for p in network.parameters()):,} parameters, "
              f"{grid[0]} x {grid[1]} verdicts at 256 pixels, each of {end - begin} pixels")  # fmt: skip

# %% [markdown]
# > **In the paper.** The starts differ more than the rest. Of the published configurations, all four KL autoencoders
# > wait until step 50,001, and two of the quantised ones five times as long. Three start at once: VQ-f4 at step 0,
# > VQ-f8 at 1, VQ-f4 without attention at 11, with weights from 0.6 to 0.75. A critic from the first step is a risk,
# > not a crime; with the adaptive weight and enough steps it can end well. The code multiplies the critic's own loss
# > by the same switch, so before its start the critic does not learn either. The weight is computed at every step,
# > used or not. The reconstruction's sum over 196,608 numbers, instead of our mean, changes $\lambda$ by the same
# > factor, and so nothing at all in the balance.
#
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("sharp_reconstructions.one_answer")

# %%
my_answer = ...
check.sharp_reconstructions.one_answer(my_answer)

# %%
hint("sharp_reconstructions.one_answer")

# %%
exercise("sharp_reconstructions.receptive_field")


# %%
def my_field(layers):
    """layers: a list of (kernel, stride), the one next to the picture first. Return a number of pixels."""
    ...


check.sharp_reconstructions.receptive_field(my_field)

# %%
hint("sharp_reconstructions.receptive_field")

# %%
exercise("sharp_reconstructions.feature_gap")


# %%
def my_gap(a, b):
    """a, b: feature maps (b, c, h, w). Return one distance per picture. Something is wrong here."""
    a = a / a.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    b = b / b.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return (a - b).square().mean(dim=(1, 2, 3))


check.sharp_reconstructions.feature_gap(my_gap)

# %%
hint("sharp_reconstructions.feature_gap")

# %%
exercise("sharp_reconstructions.balance")


# %%
def my_balance(reconstruction, adversarial, last_layer):
    """Two losses and the weight of the decoder's last layer. Return the factor for the second loss."""
    ...


check.sharp_reconstructions.balance(my_balance)

# %%
hint("sharp_reconstructions.balance")

# %%
exercise("sharp_reconstructions.sharpen")

# %%
sharpened = kit.sharpen(made["l2"][:24], 1.0)  # try other amounts
print(f"fine energy: {high_frequency_energy(sharpened).mean() / high_frequency_energy(pictures[:24]).mean():.0%}")
my_amount = ...
check.sharp_reconstructions.sharpen(my_amount)

# %%
hint("sharp_reconstructions.sharpen")

# %%
solution("sharp_reconstructions.balance")

# %% [markdown]
# ## Recap
#
# - One answer to many truths: L2 gives their mean, L1 their median. The mean of pictures is fog.
# - A perceptual distance compares what a network sees. It forgives a small shift, and hardly charges for sharpness.
# - A patch critic asks of one picture whether it could be real, in a grid of verdicts, each of a known patch.
# - The hinge lets go of what is already clear. The adaptive weight makes two gradients equally long.
# - An early critic pulls before there is a picture; here it ended behind a late one in all but fine energy. Let it
#   wait.
# - Sharper is not nearer: the energy that the critic adds costs PSNR, and may be grain.
# - Measure with a network that no loss has used.
#
# ## Common mistakes
#
# - *Judging by PSNR alone.* It is the squared error again, and prefers fog.
# - *Measuring with the network of the loss.* It has been taught to be pleased.
# - *`no_grad` around the perceptual network.* The loss is a number and teaches nothing.
# - *A fixed weight for the critic.* Right today, ten times too loud tomorrow.
# - *The critic's gradient from the autoencoder's step left in place.* Zero it before the critic's own step.
# - *Reading a map of verdicts in training mode.* Batch normalisation mixes the patches.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Zhang, Isola, Efros, Shechtman, Wang: *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*, 2018
#   (arXiv 1801.03924). LPIPS, and how people's judgements were asked for.
# - Isola, Zhu, Zhou, Efros: *Image-to-Image Translation with Conditional Adversarial Networks*, 2017 (arXiv
#   1611.07004). The PatchGAN, and patches of several sizes compared.
# - Lim, Ye: *Geometric GAN*, 2017 (arXiv 1705.02894). The hinge loss.
# - Esser, Rombach, Ommer: *Taming Transformers for High-Resolution Image Synthesis*, 2021 (arXiv 2012.09841). VQGAN:
#   perceptual loss, patch critic and the adaptive weight in one autoencoder.
# - Rombach et al.: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022 (arXiv 2112.10752). Section
#   3.1.
#
# ## Next stop
#
# **03 · CLIP: how do words and pictures meet?** Pictures are small and sharp now. Next, a network puts sentences into
# the same space as pictures.
