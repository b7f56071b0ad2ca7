# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Measuring: is it any good?
#
# Your model draws. Is it better than last week's, than the one with another sampler, than the one in the paper? In
# this lesson you write the numbers that papers report, damage real pictures on purpose, and see which number notices
# which damage. You will have made a scoreboard of six measures against five kinds of damage. Then you use them on the
# question that latent diffusion models exist for: what does it save to work in latents instead of pixels?
#
# > **Goal.** Write attribute accuracy, FID, Inception score, precision and recall and the CLIP score, know what each is
# > blind to, and read a study of pixels against latents, and a paper's tables, without being fooled.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import math

import ipywidgets
import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.evaluation import draw_many, load_judge
from ldm_tutor.lessons import lesson_11_show as kit
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.metrics.clip_score import clip_score
from ldm_tutor.metrics.fid import frechet_distance, judge_features
from ldm_tutor.metrics.figures import share
from ldm_tutor.metrics.inception_score import inception_score, judge_probabilities
from ldm_tutor.metrics.precision_recall import precision_recall
from ldm_tutor.metrics.reading import attribute_accuracy, read_pictures
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.plots.figures import STYLE, bars, picture_grid, picture_rows, show
from ldm_tutor.widgets.live import live

torch.set_num_threads(min(2, torch.get_num_threads()))
plt.rcParams.update(STYLE)

# %% [markdown]
# ## Fact box

# %%
fact_box(11)

# %% [markdown]
# ## Where you are

# %%
course_map(11)

# %% [markdown]
# ## Try first: compare pixels
#
# You need the shipped model, the judge, and 32 sentences that no training has seen, with the scenes that they tell of.
# Draw the sentences twice, without guidance and with scale 4 (lesson 08).

# %%
pipeline, judge = load_pipeline(), load_judge()
test = render_scenes(240, "test")
real = to_float(test.pictures)
few = test.captions[:32]
drawn = {s: torch.cat(list(draw_many(pipeline, few, num_steps=10, guidance=s, sampler="dpm++"))) for s in (1.0, 4.0)}
rows = {"real": real[:6], "scale 1": drawn[1.0][:6], "scale 4": drawn[4.0][:6]}
ALT = "Six sentences: the real scene, drawn without guidance, and with scale 4. The drawn ones look like the real ones."
show(picture_rows(rows, few[:6], scale=2), alt=ALT)

# %% [markdown]
# The obvious measure: how far is each drawn picture from the real scene of its sentence, pixel by pixel? Give it a
# rival that nobody would hang on a wall: the mean of training scenes with the same background, a blur without objects.

# %%
places = [scene.background for scene in test.scenes]
crowd = render_scenes(600, "train")
there = [scene.background for scene in crowd.scenes]
shots = to_float(crowd.pictures)
blur = torch.stack([shots[[k for k, other in enumerate(there) if other == place]].mean(dim=0) for place in places])
error = {"drawn": (drawn[4.0] - real[:32]).square().mean(), "blur": (blur[:32] - real[:32]).square().mean()}
pairs = torch.stack([drawn[4.0][:3], blur[:3]], dim=1).flatten(0, 1)
show(picture_grid(pairs, ["drawn", "blur"] * 3), alt="Three drawn scenes, each beside a blur of its background.")
print("the blur is nearer to the real pixels:", bool(error["blur"] < error["drawn"]))

# %% [markdown]
# The blur wins. A sentence leaves most of a picture open, and pixel error punishes every choice that differs from the
# one that happened to be drawn. It rewards the model that makes none.
#
# > **Key idea.** There is no picture that the answer should equal. So either you ask whether a picture shows what was
# > asked for, or you compare *sets*: do the drawn pictures, all together, look like a draw from the real ones?
#
# ## Step 1: did it follow the sentence?
#
# Our scenes have a luxury: the truth is known, so a small network, the judge, could be trained to read pictures. Count
# how many pictures show everything that their sentence asks for. First as a loop, then as the package does it:


# %%
def followed(pictures, captions):
    hits = []
    for reading, caption in zip(read_pictures(judge, pictures), captions, strict=True):
        request = parse(caption)
        hits.append(not any(request.missing(reading.objects, reading.background).values()))
    return hits


hits = followed(drawn[4.0], few)
package = attribute_accuracy(read_pictures(judge, drawn[4.0]), [parse(caption) for caption in few])
print("the loop equals the package's:", share(hits) == package["all"])

# %% [markdown]
# A share without an interval is half a number. With $n$ sentences of which a share $p$ is right, Wilson's interval is
#
# $$\frac{p + z^2/2n \;\pm\; z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}, \qquad z = 1.96.$$
#
# It stays inside 0 and 1, and it is not fooled by 8 of 8. Test the promise: with a model that is right in 90% of all
# cases, measured on 32 sentences, over and over, does the interval hold the truth in 95 of 100 measurements?


# %%
def wilson(hits, z=1.96):
    n, p = len(hits), sum(hits) / len(hits)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (p + z * z / (2 * n) - half) / (1 + z * z / n), (p + z * z / (2 * n) + half) / (1 + z * z / n)


print("equal to the package's:", torch.allclose(torch.tensor(wilson(hits)), torch.tensor(share(hits).interval)))
coins = (torch.rand(2000, 32, generator=torch.Generator().manual_seed(0)) < 0.9).tolist()
held = [low <= 0.9 <= high for low, high in map(wilson, coins)]
plain = [abs(sum(c) / 32 - 0.9) <= 1.96 * math.sqrt(sum(c) / 32 * (1 - sum(c) / 32) / 32) for c in coins]
print(f"Wilson's interval holds the truth in {sum(held) / 20:.0f}% of 2,000 measurements")
print(f"p plus or minus 1.96 standard deviations in {sum(plain) / 20:.0f}%")

# %%
figure, axes = plt.subplots(figsize=(7, 2.8))
for k, (s, each) in enumerate(drawn.items()):
    found = attribute_accuracy(read_pictures(judge, each), [parse(caption) for caption in few])
    for place, value in enumerate(found.values()):
        low, high = value.interval
        axes.plot([place + 0.2 * k] * 2, [low, high], color=f"C{k}")
        axes.plot(place + 0.2 * k, value.value, "os"[k], color=f"C{k}", label=f"scale {s:.0f}" if not place else None)
axes.set_xticks(range(len(found)), list(found))
axes.set(ylim=(0, 1.05), title="share right, with 95% intervals, 32 sentences")
axes.legend(loc="lower left")
show(figure, alt="Shares right per attribute at scales 1 and 4, with intervals so wide that most of them overlap.")

# %% [markdown]
# Look how wide the intervals are. With 32 sentences you can tell a model that listens from one that does not. You
# cannot tell 80% from 90%. The exercise `enough` asks how many sentences that takes.
#
# Whatever measures must itself be measured. The judge reads real scenes nearly without fault; and it is a network of
# its own, whose features no training of the model has used (lesson 02 uses another one).

# %%
found = attribute_accuracy(read_pictures(judge, real), [parse(caption) for caption in test.captions])
print("on 240 real scenes the judge finds all that was asked for, in more than 95%:", found["all"].value > 0.95)

# %% [markdown]
# ## Step 2: FID, two clouds compared
#
# Outside of toy worlds nobody has a perfect judge of sentences. There you take a network's *feature vectors* instead,
# one for each picture, and compare two clouds: vectors of drawn pictures and vectors of real ones. FID
# (Heusel et al. 2017, eq. 6) keeps of each cloud only its mean and its covariance and asks how far two such Gaussians
# are apart. In one dimension this *Fréchet distance* is
#
# $$(\mu_a - \mu_b)^2 + (\sigma_a - \sigma_b)^2 .$$
#
# It is the least work of moving one bell onto the other, with squared distances: sort both samples and pair them.

# %%
rng = torch.Generator().manual_seed(0)
left = torch.randn(20_000, generator=rng, dtype=torch.float64)
right = 2 + 0.5 * torch.randn(20_000, generator=rng, dtype=torch.float64)
by_formula = (left.mean() - right.mean()) ** 2 + (left.std() - right.std()) ** 2
by_moving = (left.sort().values - right.sort().values).square().mean()
figure, axes = plt.subplots(figsize=(5.6, 2.6))
for name, x in {"a": left, "b": right}.items():
    axes.hist(x, bins=60, density=True, alpha=0.6, label=name)
axes.legend()
show(figure, alt="Two bells: a wide one around 0, a narrow one around 2.")
print(f"by the formula {by_formula:.1f}, by moving {by_moving:.1f}")

# %% [markdown]
# With $d$ features the standard deviations become covariance matrices, which also hold how features go together:
#
# $$\|\mu_a - \mu_b\|^2 + \operatorname{tr}\!\left(C_a + C_b - 2\,(C_a C_b)^{1/2}\right)$$
#
# {{notation mean_a cov_a}}
#
# The root is that of a matrix, not of its entries. You need only its trace, which is the sum of the roots of the
# eigenvalues of $C_a C_b$. First with a loop for the covariance, then vectorised:


# %%
def cov_loop(x):
    total = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
    for row in x - x.mean(dim=0):
        total += torch.outer(row, row)
    return total / (len(x) - 1)


def fid(a, b):
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt()
    return float((a.mean(dim=0) - b.mean(dim=0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots.sum())


vectors = judge_features(judge, real)
reference = judge_features(judge, to_float(render_scenes(600, "train", 1).pictures))
print("features per picture:", (d := vectors.shape[1]), "numbers in their covariance:", d * (d + 1) // 2)
print("the loop's covariance equals torch.cov:", torch.allclose(cov_loop(vectors), torch.cov(vectors.T)))
few_columns = fid(vectors[:, :20], reference[:, :20]), frechet_distance(vectors[:, :20], reference[:, :20])
print("fid equals the package's:", math.isclose(*few_columns, rel_tol=1e-4))

# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.metrics.fid.frechet_distance`. It takes the root of a symmetric matrix,
# > which loses fewer digits, and the tests hold it to scipy, torchmetrics and torch-fidelity, 1e-4 relative.
#
# > **Careful.** The *F* and the *D* are always the same; the *I* is not. Papers take the 2,048 features of an Inception
# > network that learned ImageNet. Those weights are no part of this course, so ours are the judge's. Our numbers
# > compare with our numbers, and with nothing in any paper. With the weights on your machine,
# > `ldm_tutor.metrics.inception.inception_features` gives you the papers' features.
#
# What does it notice? Make five damaged sets of 240 real scenes, and one of 240 that are as they should be.


# %%
def soften(x):
    return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")


fresh = render_scenes(240, "test", 7)
noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
many = render_scenes(1000, "test", 9)
kinds = [{thing.kind for thing in scene.objects} for scene in many.scenes]
tame = [k for k, each in enumerate(kinds) if each <= {"cat", "dog", "ball"}][:240]
cases = {
    "other real scenes": (to_float(fresh.pictures), fresh.captions),
    "soft": (soften(real), test.captions),
    "noisy": ((real + 0.3 * noise).clamp(-1, 1), test.captions),
    "three kinds only": (to_float(many.pictures)[tame], [many.captions[k] for k in tame]),
    "ten pictures, copied": (real[:10].repeat(24, 1, 1, 1), test.captions[:10] * 24),
    "wrong sentences": (real, test.captions[1:] + test.captions[:1]),
}
made = {name: judge_features(judge, pictures) for name, (pictures, _) in cases.items()}
print("scenes of three kinds only:", len(tame))
ALT = "Six scenes of each set: real, soft, noisy, few kinds, copies, and real with wrong sentences."
show(picture_rows({name: pictures[:6] for name, (pictures, _) in cases.items()}), alt=ALT)

# %%
fids = {name: frechet_distance(each, reference) for name, each in made.items()}
show(
    bars(list(fids), list(fids.values()), title="FID, judge's features"),
    alt="FID: copies by far the most, then three kinds only; soft scenes as low as real ones.",
)
floor = fids["other real scenes"]
print("missing kinds and copies are far away:", min(fids["three kinds only"], fids["ten pictures, copied"]) > 2 * floor)
print("soft scenes are as good as real ones:", fids["soft"] < 1.2 * floor)
print("wrong sentences are as good as right ones:", fids["wrong sentences"] < 1.2 * floor)

# %% [markdown]
# Three things to keep. FID of real scenes against other real scenes is not 0: that is its **floor**, and a number
# without its floor says little. FID never reads a sentence: a model that draws a splendid cat for "a boat" is, for
# FID, perfect. And FID sees what its network sees. The judge learned to read scenes through blur and a little noise, so
# it does not see *soft* at all, and minds *noisy* only a little. Inception, which learned to tell breeds of dogs by
# their fur, minds both very much.
#
# ## A failure on purpose: few pictures
#
# Why is the floor above 0? A covariance of 192 features has 18,528 numbers, and you estimate it from 240 pictures.
# Its errors do not cancel, they move the two clouds apart: with few pictures FID is, on average, *too high*. Measure it
# over the number of pictures, for real scenes and for the set in which six of nine kinds are missing.

# %%
COUNTS, shuffle = (20, 40, 80, 120, 240), torch.Generator().manual_seed(2)
series = {name: [] for name in ("other real scenes", "three kinds only")}
for name, found in series.items():
    for n in COUNTS:
        parts = [made[name][torch.randperm(240, generator=shuffle)[:n]] for _ in range(4)]
        found.append(sum(frechet_distance(part, reference) for part in parts) / 4)
figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.2))
for name, line in zip(series, ("o-", "s--"), strict=True):
    axes[0].plot(COUNTS, series[name], line, label=name)
    axes[1].plot([1 / n for n in COUNTS], series[name], line, label=name)
axes[0].set(xlabel="pictures", ylabel="FID", xscale="log")
axes[0].minorticks_off()
axes[0].set_xticks(COUNTS, COUNTS)
axes[1].set(xlabel="1 / pictures", xlim=(0, None), ylim=(0, None))
axes[1].legend()
show(figure, alt="FID of both sets falls steeply with the number of pictures, nearly as a line over 1/n.")
few_real, many_real = series["other real scenes"][0], series["other real scenes"][-1]
print("FID of 20 real scenes is more than twice that of 240:", few_real > 2 * many_real)
print("20 real scenes look worse than 240 of three kinds only:", few_real > series["three kinds only"][-1])

# %% [markdown]
# There is the trap: 20 scenes of *all* kinds look worse than 240 of *three*. Whoever shows fewer pictures loses, and
# whoever measures the new model on ten times as many as the old one wins. Over $1/n$ the excess is nearly a straight
# line (Chong and Forsyth 2020). Read at $1/n = 0$ it gives an estimate without the bias of the drawn set; the
# exercise `limit` asks you to do it.
#
# > **Careful.** Compare FIDs only with the same number of pictures, the same reference set, the same features, and the
# > same way of scaling pictures down. Most "I get 9 instead of 5" threads about the paper's code end at how the
# > reference pictures were prepared, or at the number of pictures.
#
# ## Step 3: Inception score, without real pictures
#
# Salimans et al. (2016) ask a classifier two things. Is each picture clearly *something*: is $p(y \mid x)$ sharp? And
# is everything there: is the average $p(y)$ broad? Both at once:
#
# $$\mathrm{IS} = \exp\Big(\mathbb{E}_x\, \mathrm{KL}\big(p(y \mid x)\,\|\,p(y)\big)\Big)$$
#
# {{notation p_yx p_y}}
#
# KL says how far one list of probabilities is from another (lesson 01), 0 where they are equal.
#
# Our classifier is the judge, which knows nine kinds, so our score lies between 1 and 9.


# %%
def score_loop(p):
    marginal, total = p.mean(dim=0), 0.0
    for row in p:
        total += sum(float(q * math.log(q / m)) for q, m in zip(row.tolist(), marginal.tolist(), strict=True) if q > 0)
    return math.exp(total / len(p))


def score(p):
    return float((torch.xlogy(p, p) - torch.xlogy(p, p.mean(dim=0))).sum(dim=1).mean().exp())


sure = torch.eye(9, dtype=torch.float64).repeat(10, 1)
extremes = {"nine kinds, sure": sure, "one kind, sure": sure[:1].repeat(90, 1), "no idea": torch.full((90, 9), 1 / 9)}
print({name: round(score(p.double()), 2) for name, p in extremes.items()})
p = judge_probabilities(judge, real)
three = torch.tensor([score(p), score_loop(p), inception_score(p, splits=1).value])
print("loop, vectorised and package agree:", torch.allclose(three, three[0]))

# %%
ALT = "Inception score: three for three kinds, between four and five for ten copied pictures, near nine for the others."
scores = {name: inception_score(judge_probabilities(judge, pictures), 1).value for name, (pictures, _) in cases.items()}
show(bars(list(scores), list(scores.values()), title="Inception score, judge's kinds", form="{:.2f}"), alt=ALT)
alone = {scene.objects[0].kind: k for k, scene in enumerate(test.scenes) if len(scene.objects) == 1}
one_each = real[list(alone.values())]
cheat = inception_score(judge_probabilities(judge, one_each.repeat(20, 1, 1, 1)), 1).value
print("nine pictures, copied 20 times, score as high as 240 scenes:", cheat > 0.95 * scores["other real scenes"])

# %% [markdown]
# The ten copies lose only because they are not of all nine kinds. Copies as such go unnoticed: nine pictures, one of
# each kind, are enough for the full score. It never sees a real picture,
# so it cannot say that something is missing *within* a kind. Papers split the pictures into ten parts and report mean
# and spread, as in 20.03 ± .33; that is `inception_score(p, splits=10)`.
#
# ## Step 4: precision and recall
#
# A single number cannot say *how* two sets differ. Kynkäänniemi et al. (2019) ask two questions. Draw a ball round
# each real vector, as far as its third nearest other real vector. **Precision** is the share of drawn vectors inside
# any such ball: do they look real? **Recall** is the same with the roles swapped: is all of reality there?


# %%
def inside_loop(points, of, k):
    hits = []
    radii = [sorted(float((x - y).norm()) for y in of)[k] for x in of]  # number 0 is the vector itself
    for point in points:
        hits.append(any(float((point - y).norm()) <= r for y, r in zip(of, radii, strict=True)))
    return sum(hits) / len(hits)


def inside(points, of, k):
    radii = torch.cdist(of, of, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(k + 1).values
    return (torch.cdist(points, of, compute_mode="donot_use_mm_for_euclid_dist") <= radii).any(dim=1).double().mean()


flat = torch.randn(60, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
narrow = 0.5 * flat[:30] + 0.3
package = precision_recall(narrow, flat)
mine = [[float(each(narrow, flat, 3)), float(each(flat, narrow, 3))] for each in (inside_loop, inside)]
same = torch.allclose(torch.tensor(mine), torch.tensor([package.precision, package.recall]))
print("loop and vectorised equal the package's:", same)
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharex=True, sharey=True)
for panel, of, points in ((axes[0], flat, narrow), (axes[1], narrow, flat)):
    for center, radius in zip(of, torch.cdist(of, of).kthvalue(4).values, strict=True):
        panel.add_patch(plt.Circle(center.tolist(), float(radius), color="C0", alpha=0.12))
    panel.plot(*of.T, ".", color="C0")
    panel.plot(*points.T, "x", color="C1")
    panel.set_aspect("equal")
axes[0].set_title(f"precision {package.precision:.2f}")
axes[1].set_title(f"recall {package.recall:.2f}")
show(figure, alt="Left: balls round wide real points hold all narrow drawn ones. Right: the other way, few.")

# %%
others = made["other real scenes"]
both = {name: precision_recall(each, vectors if each is others else others) for name, each in made.items()}
ALT = "All sets have a high precision. Copies have no recall, three kinds about two thirds of it."
show(kit.map_figure(both), alt=ALT)
copies = both["ten pictures, copied"]
print("copies keep their precision and lose recall:", copies.precision > 0.8 > 0.3 > copies.recall)
print("three kinds lose a fifth of their recall or more:", both["three kinds only"].recall < 0.8)
print("nothing here looks unreal to the judge:", min(each.precision for each in both.values()) > 0.85)

# %% [markdown]
# Missing variety now has a name and a number of its own, which FID had mixed into one. (Nothing is unreal *for the
# judge*, who reads through noise.) The zero of the copies is a special case: the third neighbour of a copy is another
# copy, so its ball has the radius 0, and no real vector lies in it. And guidance? Lesson 08 says: fidelity up, variety
# down. Measure the 32 pictures of each scale, beside 32 real ones. And since 32 are few, imitate what guidance does on
# more: of the 240 real scenes keep the 80 most *typical*, those with the nearest neighbours, and compare them with 80
# at random.

# %%
trade = {f"scale {s:.0f}": judge_features(judge, each) for s, each in drawn.items()}
trade = {"32 real": others[:32]} | trade
pr = {name: precision_recall(each, vectors[100:132]) for name, each in trade.items()}
radii = torch.cdist(vectors, vectors).kthvalue(4).values
thirds = {"80 typical": vectors[radii.argsort()[:80]], "80 at random": vectors[80:160]}
pr |= {name: precision_recall(each, others) for name, each in thirds.items()}
spread = {name: float(torch.cov(each.T).trace()) for name, each in (trade | thirds).items()}

# %% tags=["nbval-ignore-output"]
for name, each in pr.items():
    print(f"{name}: precision {each.precision:.2f}, recall {each.recall:.2f}, spread of features {spread[name]:.0f}")

# %% [markdown]
# With 32 pictures the three lines are nearly the same: in 192 dimensions the balls of so few vectors are so wide that
# nearly everything is inside. Precision and recall need thousands of pictures, and a count of them beside the number.
# The two sets of 80 show one half: typical scenes are less different from each other, and they reach less of what is
# there. Their precision has no room to rise, real scenes at random have it too. The paper has 50,000 pictures and sees
# it plainly: table 3, class-conditional ImageNet, precision rises from .71 to .87 with guidance 1.5, recall falls from
# .62 to .48, and FID, which mixes both, improves all the same.
#
# ## Step 5: CLIP score
#
# CLIP puts sentences and pictures into one space (lesson 03). The CLIP score is 100 times the cosine of the two
# vectors, 0 where it is negative. It needs no judge and reads any sentence.


# %%
def clip_of(pictures, captions):
    return clip_score(pipeline.clip, pipeline.tokenizer, pictures[:100], captions[:100]).value


clips = {name: clip_of(*pair) for name, pair in cases.items()}
swap = {"red": "blue", "blue": "red", "green": "orange", "orange": "green"}
changed = [" ".join(swap.get(word, word) for word in caption.split()) for caption in test.captions]
clips["colours swapped"] = clip_of(real, changed)
show(bars(list(clips), list(clips.values()), title="CLIP score"), alt="CLIP score: wrong sentences lowest.")
top, low = clip_of(real, test.captions), clips["wrong sentences"]
print("wrong sentences score less than half of right ones:", low < top / 2)
print("swapped colours cost something, but less:", low < clips["colours swapped"] < top)

# %% [markdown]
# > **Careful.** This CLIP is the one whose text tower steers the U-Net. A model can learn to please its own CLIP. Judge
# > with another network than the one that taught, wherever you can. The paper reports no CLIP score at all.
#
# ## The scoreboard
#
# All six measures against all six sets, each as a share of what real scenes reach. For FID less is better, so there
# the floor is divided by the value.

# %%
table = []
for name, (pictures, captions) in cases.items():
    right_share = sum(followed(pictures, captions)) / len(captions)
    near, pair = floor / fids[name], both[name]
    table.append([right_share, near, scores[name], pair.precision, pair.recall, clips[name]])
table = torch.tensor(table)
board = (table / table[0]).clamp(0, 1)
columns = ["accuracy", "FID", "IS", "precision", "recall", "CLIP"]
ALT = "Table of six sets by six measures, from 0 to 1, like real scenes. No column notices every damage."
show(kit.board_figure(board, list(cases), columns), alt=ALT)
blind = [column for k, column in enumerate(columns) if bool((board[1:, k] > 0.9).any())]
print("measures that call at least one damaged set as good as real:", len(blind), "of 6")

# %% [markdown]
# Read the table by columns: none sees everything, which is why papers report several. Then by rows: no measure here
# sees *soft*, since the judge and CLIP both read through blur. So several numbers do not replace a look at the
# pictures.
#
# > **Careful.** One fault is not even in the table: a model that knows its training pictures by heart. What it draws is
# > sharp, varied and true to the sentence. Look for each drawn picture's nearest neighbour in the training set, as the
# > paper does (figures 32 to 34), and as you will with your own pictures in lesson 14.

# %% [markdown]
# ## Turn one knob: pixels against latents
#
# Now the question behind the whole architecture. Rombach et al. (section 4.1) train the same kind of U-Net on pixels
# ($f = 1$) and on latents of $f = 2$ to 32, each for the same number of steps on one A100, and plot quality over steps
# (figure 6). Their batches are as large as fits, 7 pictures for $f = 1$ and 64 for $f = 8$ (table 13), so equal steps
# are not equal pictures. Here is that study in miniature, with equal seconds instead, trained once by
# `python -m ldm_tutor.lessons.lesson_11_kit` and kept with the course:
#
# - **six runs**: pixels; latents of $f$ = 2, 4, 8, 16 from lesson 01's autoencoders; and a control that careful
#   readers ask for, a pixel model that first cuts the picture into patches of 4x4 pixels, 48 numbers each. It works
#   on the same 16x16 grid as $f = 4$, so a step costs about the same.
# - **equal in all of them**: scenes with one object and their sentences, the CLIP (an earlier one of this course),
#   batch 32, learning rate, noise schedule, seeds, the *seconds of one CPU thread*, and the parameters of the U-Net, to
#   within a tenth.
# - **not equal**: the grid, and so the work per step and the number of steps that fit into the seconds.
# - **the exam**: 128 held-out sentences, ten steps, guidance 3; the judge reads them.

# %%
study, costs = kit.load_study(), kit.load_costs()
print(kit.cost_table(costs))
numbers = [cost["parameters"] for cost in costs.values()]
print(f"largest over smallest number of parameters: {max(numbers) / min(numbers):.2f}")
print(f"multiply-adds of pixels over f = 4: {costs['pixels']['multiply_adds'] / costs['f4']['multiply_adds']:.1f}")

# %% [markdown]
# Weights are shared by all positions, so parameters say nothing about work. A grid with twice the side has four times
# the positions, each with the same multiply-adds. Seconds per step and per picture were measured side by side in one
# process, in turns, in CPU time of one thread:

# %%
show(kit.cost_figure(costs), alt="Milliseconds per training step and per picture: pixels by far the most, then f = 2.")
faster = costs["pixels"]["seconds_per_picture"] / costs["f4"]["seconds_per_picture"]
print(f"f = 4 draws {faster:.1f} times as many pictures per second as pixels, decoder included")
decoder = costs["f4"]["seconds_per_decoding"] / costs["f4"]["seconds_per_picture"]
print(f"the decoder's share of the time of a picture at f = 4: {decoder:.0%}")

# %% [markdown]
# The gain in time is smaller than the gain in multiply-adds. A part goes to the decoder, which pixels do not need. The
# rest is overhead: on a small grid the same number of operations handles less data each, and each costs its start. The
# paper's table 6, below, shows it at full size: 16 times fewer positions make training some three times as fast.

# %% [markdown]
# ### Equal time

# %%
ALT = "Over seconds: backgrounds soon near 1 in latents, at 0.66 in pixels; colours and objects best at f = 4 and 8."
show(kit.study_figure(study, ["background", "color", "object"]), alt=ALT)
for told, budget in (("after one minute", 60), ("after six", 360)):
    print(f"{told}\n{kit.minute_table(study, budget)}")
seconds, right_shares = kit.curve(study["pixels"], "background")
best = max(right_shares)
fast = next(row["seconds"] for row in study["f4"]["rows"] if kit.value_of(row, "background") >= best)
print(f"pixels: best share of backgrounds in {max(seconds):.0f} s: {best:.0%}")
print(f"f = 4 is as far after {fast:.0f} s, a share of {fast / max(seconds):.2f} of the time")

# %%
sheet = {kit.LABELS[name]: kit.pictures_of(name)[:6] for name in study}
ALT = "Six sentences, drawn by each run at its last look: noise from patches, grain from pixels, things at f = 4."
show(picture_rows(sheet), alt=ALT)

# %% [markdown]
# Six backgrounds are possible, so chance is one in six. After a minute the pixel model has made a hundred steps and
# draws noise; in six it gets two of three backgrounds right, as many as latents of $f = 4$ after half a minute. In
# latents of $f = 4$ a minute is enough for nearly every background, and six bring four of five colours and the first
# objects. That is a beginning: the shipped model trained for hours. But the order is clear, and the pictures show it:
# at equal time latents of $f = 4$ and $f = 8$ draw coloured things where pixels draw grainy scenery.
#
# ### Equal steps
#
# Is it only that the latent model gets more steps into its minute? Then give all the same number of steps:

# %%
ALT = "The same over steps: where the runs overlap, latents are ahead of pixels and of patches too."
show(kit.study_figure(study, ["background", "fid", "loss"], axis="step"), alt=ALT)
last = study["pixels"]["rows"][-1]
print(f"after {last['step']} steps: pixels {kit.value_of(last, 'background'):.0%} of backgrounds", end="")
for name in ("f2", "f4", "f8", "patches"):
    print(f"; {kit.LABELS[name]} {kit.at(study[name], 'background', last['step']):.0%}", end="")

# %% [markdown]
# So the usual explanation, cheap steps, is one half. The other: a step in latents also *teaches more*. After as many
# steps as the pixel model has made in all, latents of $f = 2$ to 8 are far ahead. The autoencoder has already thrown
# detail away, and what is left for the U-Net is where the scenery and the things are. A second reason hides in the
# schedule: neighbouring pixels are alike, so the same noise hides less of a scene in pixels than in latents (lesson
# 04), and the step from pure noise is further from anything that the model has seen. This study does not separate the
# two.
#
# And the control? It has the grid, the work and the steps of $f = 4$, and draws noise to the end. Its loss tells why:
# it hardly falls. Each position has 48 numbers of noise to name, and this U-Net, as narrow as the others, opens with a
# third as many channels. It cannot carry the noise through, let alone the scene. So read the control for what it says:
# the small grid is not to be had for nothing. Either the network grows wide enough for all the detail in a patch, as
# transformers on patches of pixels do, or something folds the detail away first.
#
# ### The two ends
#
# Why not compress more, then? Send real scenes through each space and back, without any diffusion. What is left is a
# guide to how good a model in this space can get. (No strict bound: a drawn latent may decode better than a real one.)

# %%
ALT = "There and back: f = 2 and f = 4 keep everything, f = 8 nearly; f = 16 loses objects and colours. FID rises."
show(kit.ceiling_figure(study), alt=ALT)
print(kit.ceiling_table(study))
kept = {f: kit.value_of(study[f"f{f}"]["ceiling"], "all") for f in (2, 4, 8, 16)}
print("scenes of which everything is left:", {f: f"{share:.0%}" for f, share in kept.items()})

# %% [markdown]
# Here are the two ends of the paper's figure 6. **Too little compression** wastes work: the U-Net spends its steps on
# detail that nobody would miss. **Too much** loses the picture: $f = 8$ still keeps nearly all, but at $f = 16$ three
# of four scenes are lost before diffusion begins, and no training of the U-Net brings them back. It learns backgrounds
# first of all, and then has little left to win: its colours and its FID end near those of real scenes that went there
# and back. $f = 4$ and $f = 8$ lie between the two ends. Where exactly the best point lies depends on the pictures and
# on the autoencoders (lesson 01).
#
# > **Careful.** What this study does not say. One seed. 128 sentences. One learning rate for all, where the paper tunes
# > each. A FID that hardly sees blur, which flatters large $f$. The autoencoders' own training and CLIP's are
# > not in the seconds (they are paid once, for all models that use them). Minutes, not days: a pixel model with
# > enough time learns too. It measures *how fast*, not *how good in the end*.
#
# ## Look for yourself
#
# > **Try it.** Choose a measure and an axis. Find the measures in which $f = 8$ ends ahead of $f = 4$, and the one in
# > which it stays far behind. Does its decoder lose that? Look at the table above; if not, what else could it be? Then
# > look at the loss: can you compare it between spaces?


# %%
def look(measure, axis):
    chosen = next(key for key, label in kit.MEASURES.items() if label == measure)
    return kit.study_figure(study, [chosen], axis="seconds" if axis == "time" else "step")


def describe(measure, axis):
    chosen = next(key for key, label in kit.MEASURES.items() if label == measure)
    ends = ", ".join(f"{kit.LABELS[name]} {kit.curve(report, chosen)[1][-1]:.2f}" for name, report in study.items())
    return f"{measure} over {axis}, at each run's last look: {ends}"


dial = ipywidgets.ToggleButtons(options=["time", "steps"], description="over")
live(
    look,
    "One measure of the study, one line per run.",
    caption=describe,
    measure=list(kit.MEASURES.values()),
    axis=dial,
)

# %% [markdown]
# If you read this without a running kernel, here are the loss and the objects over time:

# %%
ALT = "Loss falls for all runs but the patches, from different heights; objects leave chance at f = 4 and f = 8."
show(kit.study_figure(study, ["loss", "object"]), alt=ALT)

# %% [markdown]
# The loss does not compare between spaces. It is the error in the noise, and how hard noise is to see depends on what
# lies beneath it.
#
# ## In the paper, and at full size
#
# > **In the paper.** Figure 6, class-conditional ImageNet, two million steps, 5,000 samples with 100 DDIM steps: LDM-1
# > and LDM-2 improve slowly, LDM-32 stops early, LDM-4 to LDM-16 are best, and between LDM-1 and LDM-8 lies a gap of 38
# > in FID. (By then LDM-8 has seen nine times as many pictures as LDM-1, whose batches are small.) Table 6, inpainting:
# > LDM-4 trains on .32 to .35 samples a second where LDM-1 manages .11, and its FID after six epochs is about 15 to 16
# > against 24.74.
# >
# > What compares with ours? The *order*, and why. Not the numbers: other pictures, other features, 5,000 pictures
# > against 128. Not even within the paper: figure 6 has 5,000 samples, table 3 has 50,000, so LDM-4's 10.56 of table
# > 3 does not go onto the axis of figure 6.
#
# | Text to image, MS-COCO, table 2 | FID | IS | parameters |
# |---|---|---|---|
# | CogView | 27.10 | 18.20 | 4B |
# | LAFITE | 26.94 | 26.02 | 75M |
# | GLIDE | 12.24 | not given | 6B |
# | Make-A-Scene | 11.84 | not given | 4B |
# | LDM-KL-8 | 23.31 | 20.03 | 1.45B |
# | LDM-KL-8-G (guided, 1.5) | 12.63 | 30.29 | 1.45B |
#
# The paper's claim is that the guided LDM is on par with the best of its time, with far fewer parameters: 12.63 against
# GLIDE's 12.24, with 1.45 against 6 billion. Read it as you have learned to. The unguided LDM is far behind GLIDE,
# which is guided too, and behind its own guided version, so guidance is half of the story. The FID of 12.63 is slightly
# *worse*. No interval is given. And parameters are not work: you saw six models of nearly the same size of which one
# needs nine times as long for a step as another.
#
# > **At full size.** Table 18 counts GPU-days: LDM-4 on ImageNet 271 V100-days, LDM-8 79, against 916 for ADM, which
# > works in pixels. (The 79 days buy a FID of 17.41; LDM-4 has 10.56, ADM 10.94.) Measuring costs too: the same table
# > gives LDM-4 .7 samples a second on an A100, so the 50,000 pictures of a single FID keep it busy for most of a day.
#
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("measuring.two_bells")

# %%
my_distance = ...
check.measuring.two_bells(my_distance)

# %%
hint("measuring.two_bells")

# %%
exercise("measuring.frechet")


# %%
def my_fid(a, b):
    """a: (n, d), b: (m, d). Return their Fréchet distance, one number."""
    ...


check.measuring.frechet(my_fid)

# %%
hint("measuring.frechet")

# %%
exercise("measuring.balls")


# %%
def my_precision(made, real, k):
    """The share of drawn vectors in a ball of the real ones. Something is wrong here, in two places."""
    radius = torch.cdist(real, real).kthvalue(k, dim=1).values
    near = torch.cdist(made, real) <= radius
    return near.any(dim=0).float().mean()


check.measuring.balls(my_precision)

# %%
hint("measuring.balls")

# %%
exercise("measuring.limit")


# %%
def my_limit(counts, values):
    """FIDs over numbers of pictures. Return the limit of a line over 1 / count."""
    ...


check.measuring.limit(my_limit)

# %%
hint("measuring.limit")

# %%
exercise("measuring.enough")

# %%
my_number = ...
check.measuring.enough(my_number)

# %%
hint("measuring.enough")

# %%
solution("measuring.balls")

# %% [markdown]
# ## Recap
#
# - A share needs its interval and its number of cases; 32 sentences tell great differences only.
# - FID compares means and covariances of features. It has a floor, it is too high for few pictures, and it reads no
#   text.
# - The Inception score needs no real pictures and cannot see what is missing within a class.
# - Precision asks whether drawn pictures look real, recall whether all of reality is there.
# - The CLIP score reads the sentence, with all the blind spots of its CLIP.
# - In equal time, latents of a middling $f$ beat pixels by far, and a pixel model on the same grid too: the
#   autoencoder saves work *and* takes detail out of the task. Too large an $f$ loses the picture before diffusion
#   begins.
#
# ## Common mistakes
#
# - *FIDs of different numbers of pictures side by side*, or of different features, references, or ways of scaling down.
# - *An FID without its floor*, and a share without its interval.
# - *Judging with the network that taught.* Its blind spots are the model's.
# - *Equal steps sold as equal work*, or parameters as cost.
# - *Comparing losses between spaces*, schedules or weightings.
# - *Numbers without pictures.* The study's FID falls while objects are still mush.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Heusel et al.: *GANs Trained by a Two Time-Scale Update Rule*, 2017 (arXiv 1706.08500). FID, equation 6.
# - Salimans et al.: *Improved Techniques for Training GANs*, 2016 (arXiv 1606.03498). The Inception score, section 4.
# - Kynkäänniemi et al.: *Improved Precision and Recall Metric for Assessing Generative Models*, 2019 (arXiv
#   1904.06991).
# - Hessel et al.: *CLIPScore*, 2021 (arXiv 2104.08718). There with the weight 2.5 in the place of 100.
# - Chong, Forsyth: *Effectively Unbiased FID and Inception Score*, 2020 (arXiv 1911.07023). The line over $1/n$.
# - Rombach et al.: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022 (arXiv 2112.10752). Section
#   4.1, figure 6, tables 2, 3, 6 and 18.
#
# ## Next stop
#
# **12 · Full-size model: how do you assemble the real thing?** The same classes, the paper's sizes, parameter counts
# equal to the last one.
