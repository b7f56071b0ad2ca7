# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 15 · The clinic: what broke?
#
# A diffusion model that is put together wrongly does not crash. Every shape fits, the loss falls, pictures come out.
# They are a little dull, or about something else, or fine, and next month somebody cannot repeat your numbers. In this
# lesson you meet five such models. Each is the shipped one with one fault in it, and each fault is one that people
# really make. You will have built eight instruments that find them all, and a chart in which the fault can be read off
# by its place.
#
# > **Goal.** Learn to find a fault by measuring what must hold, part by part and from input to output, in place of
# > looking at pictures and changing things until they look better.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import matplotlib.pyplot as plt
import torch

from ldm_tutor.attention_maps.watch import watch
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.evaluation import load_judge
from ldm_tutor.lessons import lesson_15_kit as kit
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.cost import cost_card
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.lessons.lesson_02_kit import load_log, reconstruct
from ldm_tutor.metrics.figures import mean, share
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.metrics.reading import read_pictures
from ldm_tutor.models.unet import UNet
from ldm_tutor.plots.figures import STYLE, picture_rows, plot, show
from ldm_tutor.training.learner import Learner
from ldm_tutor.widgets.live import live

torch.set_num_threads(min(2, torch.get_num_threads()))
plt.rcParams.update(STYLE)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
# A small helper for figures (click to open)

# %% [markdown]
# ## Fact box

# %%
fact_box(15)

# %% [markdown]
# ## Where you are

# %%
course_map(15)

# %% [markdown]
# ## Try first: guess from the pictures
#
# Five patients sit in the waiting room, A to E. Beside them stands the healthy model, so that you know what should have
# come out: all six draw the same sentences from the same seeds. A patient can `encode` pictures and `decode` latents,
# `embed` sentences, say which noise it sees in some latents (`noise_in`), `walk` with a denoiser, and `draw`, which is
# all of these in a row.

# %%
test = render_scenes(32, "test")
real, asked = to_float(test.pictures), [parse(caption) for caption in test.captions]
patients = {name: kit.admit(name) for name in ("healthy", "A", "B", "C", "D", "E")}
pictures = {name: each.draw(test.captions[:12], range(12)) for name, each in patients.items()}
ALT = (
    "Six sentences, drawn by six models. A: recognisable, full of scratches. B: blurred and hard. C: odd things. "
    "D: fine pictures of something else. E: coloured noise."
)
show(picture_rows({name: each[:6] for name, each in pictures.items()}, test.captions[:6], scale=2), alt=ALT)

# %% [markdown]
# What would you try? A looks like a sampler that takes too few steps, or like too much guidance. B looks like a poor
# autoencoder: train its decoder longer. C looks like a U-Net that has not trained for long. D has lost its captions. E
# could be anything. None of these guesses is right, and each would cost you a day.
#
# You also have a number, the share of wishes that the judge finds in a picture (lesson 08). How much does it tell?

# %%
judge = load_judge()


def wishes_met(pictures):
    """The share of all that the sentences ask for (kinds, colours, places ...) which the judge finds."""
    pairs = zip(read_pictures(judge, pictures), asked, strict=False)
    missed = [request.missing(reading.objects, reading.background) for reading, request in pairs]
    return share([not each for groups in missed for each in groups.values()]).value


met = {name: wishes_met(each) for name, each in pictures.items()}
print("wishes met by A and by B, above three quarters:", min(met["A"], met["B"]) > 0.75)
print("by C, D and E, below a half:", max(met["C"], met["D"], met["E"]) < 0.5)

# %% tags=["nbval-ignore-output"]
print({name: round(value, 2) for name, value in met.items()})

# %% [markdown]
# A and B, whose pictures you would never show to anybody, get nearly full marks: the judge looks for a yellow dog, and
# there is one. And low marks say *that* something is wrong, not *what*.
#
# > **Key idea.** A picture is the end of a long way, and every part of that way bends it. Do not ask whether the
# > picture is good. Cut the way into parts, and for each part find something that **must** be so if the part is sound,
# > whatever the others do: a number whose right value you know beforehand.
#
# ## Step 1: into the latents, and out again
#
# Begin where the data come in. Pictures become latents and latents become pictures, without U-Net, sentence or
# sampler. Two things must hold. The picture that comes back must be near the one that went in (lesson 01); and the
# latents must spread by about 1, since the noise that is added to them does.


# %%
def round_trip(patient):
    """PSNR of pictures after encoding and decoding, in dB."""
    return float(psnr(patient.decode(patient.encode(real)), real).mean())


def spread(patient):
    """The standard deviation of scaled latents."""
    return float(patient.encode(real).std())


for name, each in patients.items():
    print(f"{name:8} round trip {round_trip(each):.0f} dB, spread {spread(each):.1f}")

# %% [markdown]
# There is B. Its latents are a fifth as large as they should be. Someone has taken over a scale factor together with
# a configuration: 0.18215, Stable Diffusion's, in the place of this autoencoder's own. The U-Net is used to latents
# that spread by 1. It draws such latents, and `decode` divides them by a number that is far too small.

# %%
figure, axes = plt.subplots(figsize=(6.4, 2.8))
bins = torch.linspace(-4, 4, 81).tolist()
for name, color in (("healthy", "#0072B2"), ("B", "#D55E00")):
    axes.hist(patients[name].encode(real).flatten().numpy(), bins, density=True, color=color, alpha=0.6, label=name)
axes.plot(bins, [0.3989 * 2.718 ** (-(x**2) / 2) for x in bins], "k:", label="noise")
axes.set(xlabel="latent number", ylabel="density", ylim=(0, 1.6))
axes.legend()
show(figure, alt="Latents of the healthy model are as wide as the noise; those of B are a narrow peak around zero.")
print("scale factor:", round(patients["healthy"].scale_factor, 2), "when it was trained,", patients["B"].scale_factor)

# %% [markdown]
# ## A failure on purpose: the test that cannot fail
#
# Look once more at the other column. B's round trip is as good as the healthy model's. Most people would have written
# that test first, seen it pass, and crossed the autoencoder off their list. It *cannot* fail here: `encode` multiplies
# by the wrong factor, `decode` divides by it, and the fault takes itself back. Try it with any factor you like.

# %%
strange = {k: kit.with_scale(patients["healthy"], k) for k in (0.01, 1.0, 100.0)}
print("round trips in dB:", [round(round_trip(each)) for each in strange.values()])
rows = {"in": real[:6], "out, healthy": patients["healthy"].decode(patients["healthy"].encode(real[:6]))}
rows |= {f"out, factor {k:g}": each.decode(each.encode(real[:6])) for k, each in strange.items() if k != 1}
ALT = "Six scenes, and what comes back with the right factor, a tiny and a huge one: the same."
show(picture_rows(rows, scale=2), alt=ALT)

# %% [markdown]
# > **Careful.** A test that goes there and back only sees what does not cancel. The same holds for a wrong picture
# > range that is undone at the end, for channels swapped twice, and for a schedule that both adds and removes the
# > noise. Next to each round trip, measure something at the turning point.
#
# ## Step 2: the sampler, with an ideal denoiser
#
# Now the far end. The sampler is arithmetic: given the noise, it walks. So give it a denoiser that is always right.
# If you know the clean latents $x_0$, then the noise in any $x_t$ follows from the formula of lesson 04:
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon \quad\Rightarrow\quad
# \epsilon = \frac{x_t - \sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}}$$
#
# {{notation x_t x0 noise alpha_bar}}
#
# A sound sampler that is told this noise ends in $x_0$, from any start, in any number of steps. (DDIM as Stable
# Diffusion has it stops a hair before, with a trace of noise left: lesson 06, `final_alpha_one`. The patients draw with
# DDPM.) No network takes part.


# %%
def all_knowing(x0, schedule):
    """A denoiser that knows where the walk should end."""

    def noise_in(x_t, t, step):
        a = float(schedule.alpha_bar[t])
        return (x_t - a**0.5 * x0) / (1 - a) ** 0.5

    return noise_in


def ideal_walk(patient):
    """How far from the right end the sampler arrives, where nothing but the sampler can be at fault."""
    x0 = patient.encode(real[:4])
    return float((patient.walk(all_knowing(x0, patient.schedule), range(4)) - x0).pow(2).mean().sqrt())


for name, each in patients.items():
    print(f"{name:8} arrives:", ideal_walk(each) < 0.01)

# %% [markdown]
# E does not arrive. It has a sound U-Net and reads its answer wrongly: the network says which *noise* it sees, and E's
# sampler takes that for the *clean latents*. Configurations call it the prediction type: the noise, the clean latents,
# or a mixture called $v$; newer models have the flow too (lesson 16). And a file of weights does not say which one it
# was trained for.

# %%
ends = {name: all_knowing(patients[name].encode(real[:6]), patients[name].schedule) for name in ("healthy", "E")}
rows = {name: patients[name].decode(patients[name].walk(each, range(6))) for name, each in ends.items()}
ALT = "With an ideal denoiser the healthy sampler gives back six scenes; that of E blots in false colours."
show(picture_rows({"in": real[:6]} | rows, scale=2), alt=ALT)

# %% [markdown]
# > **Try it.** The same trick works for every other part. Put the truth in the place of a part that you cannot trust;
# > if the fault is still there, it is somewhere else. With real latents in place of drawn ones you test the decoder,
# > with the true noise the sampler, with another model's text vectors the text encoder.
#
# ## Step 3: the U-Net's clock
#
# Four patients are left, and the U-Net's turn has come. What must hold for it? It gets noisy latents and a time step
# $t$, which says how noisy they are. So tell it lies. Take latents with the noise of $t = 500$, and claim that it was
# 200, 250 and so on. It should do best when you tell the truth.

# %%
generator = torch.Generator().manual_seed(0)
noise = torch.randn(32, 4, 16, 16, generator=generator)
CLAIMS = list(range(200, 801, 50))


def noise_loss(patient, t, claim, context, num=32):
    """Mean squared error of the noise seen in latents of time step t that are said to be of time step `claim`."""
    x_t = patient.schedule.add_noise(patient.encode(real[:num]), noise[:num], torch.full((num,), t))
    return float((patient.noise_in(x_t, claim, context[:num]) - noise[:num]).pow(2).mean())


def told(patient, t=500):
    context = patient.embed(test.captions)
    return [noise_loss(patient, t, claim, context, num=16) for claim in CLAIMS]


curves = {name: told(patients[name]) for name in ("healthy", "A")}
figure, axes = plt.subplots(figsize=(6.4, 2.8))
plot(axes, CLAIMS, curves, xlabel="time step that the U-Net is told", ylabel="noise loss", title="true time step: 500")
show(figure, alt="The healthy loss has its lowest point at the true time step, 500. That of A is a level line.")


def clock(patient):
    """The time step at which the U-Net does best, over the true one; the first of several that are equal."""
    return CLAIMS[min(range(len(CLAIMS)), key=told(patient).__getitem__)] / 500


print("healthy:", clock(patients["healthy"]), "| A answers the same whatever it is told:", len(set(curves["A"])) == 1)

# %% [markdown]
# A's U-Net does not look at the clock. The time never reaches its blocks (lesson 05 adds it in every residual block),
# so it treats all noise as if it were of one strength. Notice how low that level line lies: for noise of this strength
# its one answer happens to be nearly right. You will see in a moment that it is not so at the others. That is enough
# for a dog that a judge recognises, and not for one that you would show.
#
# Now tell the truth, at several time steps. The plain noise loss is what every training logs, and mostly as one number,
# its mean over all $t$.

# %%
TIMES = (50, 250, 500, 750, 950)


def losses(patient):
    context = patient.embed(test.captions)
    return [noise_loss(patient, t, t, context) for t in TIMES]


by_time = {name: losses(each) for name, each in patients.items()}
figure, axes = plt.subplots(figsize=(6.4, 3))
for (name, values), mark in zip(by_time.items(), "os^Dvx", strict=True):
    axes.semilogy(TIMES, values, marker=mark, label=name)
axes.set(xlabel="time step", ylabel="noise loss")
axes.legend(ncols=3)
show(figure, alt="Noise loss over time step. A and B lie far above the healthy curve, C above; D and E are that curve.")
same = all(by_time[name] == by_time["healthy"] for name in "DE")
print("D and E have the healthy model's loss, to the last digit:", same)


def excess(patient):
    """How many times the healthy model's loss, at the time step where that is worst."""
    return max(a / b for a, b in zip(losses(patient), by_time["healthy"], strict=True))


# %% [markdown]
# Two patients whose pictures are useless have a *perfect* loss. Whoever watches only the training curve will never
# know. And the loss alone does not tell A from B from C: wrong scale, wrong time, wrong attention all make it rise.
#
# ## Step 4: the attention maps
#
# C's loss is too high, its latents and its clock are right. Open it further. A row of an attention map says how a
# position divides its attention among the words, so it must add up to 1 (lesson 07). Watch every layer during one call:

# %%
maps = {}


def rows_off(patient):
    """By how much the rows of attention maps miss the sum 1, in the worst layer."""
    seen = []
    with watch(patient.unet, lambda call, probs: seen.append((call, probs)), "all"):
        patient.noise_in(noise[:4], 500, patient.embed(test.captions[:4]))
    maps[id(patient)] = next(probs[0].mean(dim=0) for call, probs in seen if call.site.kind == "cross")
    return max(float((probs.sum(dim=-1) - 1).abs().max()) for _, probs in seen)


for name, each in patients.items():
    print(f"{name:8} rows add up to 1:", rows_off(each) < 0.001)

# The first cross-attention layer and the first sentence, mean over the heads; yellow is 0.5 or more.
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
for panel, name in zip(axes, ("healthy", "C"), strict=True):
    panel.imshow(maps[id(patients[name])][:, :16], aspect="auto", vmin=0, vmax=0.5)
    panel.set(title=name, xlabel="token", ylabel="position" if name == "healthy" else "")
    panel.set_xticks(range(0, 16, 5))
    panel.grid(False)
show(figure, alt="Attention of 64 positions to 16 tokens. Healthy: bright where a word matters. C: nearly all dark.")

# %% [markdown]
# In C the softmax runs over the wrong axis, `dim=-2` in the place of `dim=-1`. So the *positions* compete for each
# word, and a position gets as much of all words together as it happens to win. Nothing in PyTorch objects, because the
# shape is the same. And nothing would have objected during the training: a network makes the best of what it is given,
# so its loss falls with a wrong axis too. You would only wonder why it is not better.
#
# ## Step 5: the sentence, and the pull
#
# What is left is the way of the words. First: does the *right* sentence help? Give every picture the sentence of its
# neighbour. The loss must rise.


# %%
def sentence(patient, t=600):
    """The loss with the neighbour's sentence, over the loss with the own one: how much the right words help."""
    context = patient.embed(test.captions)
    return noise_loss(patient, t, t, context.roll(1, 0)) / noise_loss(patient, t, t, context)


def pull(patient):
    """Guidance with scale 1 must be the plain answer: the size of the difference, relative to the answer."""
    context = patient.embed(test.captions[:4])
    plain = patient.noise_in(noise[:4], 500, context)
    return float((patient.denoiser(context, 1)(noise[:4], 500, 0) - plain).norm() / plain.norm())


for name, each in patients.items():
    print(f"{name:8} the right words help: {sentence(each) > 2}, scale 1 is plain: {pull(each) < 0.001}")

# %% [markdown]
# The second instrument is the two-line test of lesson 08, and it finds D: its guidance takes the two answers the wrong
# way round, and so walks away from every sentence. All its parts are sound. Only the one line in which they meet is
# not, and that line runs in no training and in no loss.
#
# B and C fail the first test without being guilty of it: a U-Net that gets foreign latents, or garbled maps, cannot
# make use of words either. One fault raises many alarms. Which is the cause?
#
# ## Step 6: the chart
#
# Put the instruments in the order in which data pass: pictures, latents, sampler, then inside the U-Net the maps, the
# clock and the words, then what all of it gives, and guidance at the end. Each has a range in which it is sound. Most
# of them follow from a formula; those of the round trip, of the words and of the loss are the healthy model's, with
# some room.

# %%
SOUND = {
    "round_trip": (round_trip, lambda value: value > 28),
    "spread": (spread, lambda value: 0.9 < value < 1.1),
    "ideal_walk": (ideal_walk, lambda value: value < 0.01),
    "rows_off": (rows_off, lambda value: value < 0.001),
    "clock": (clock, lambda value: 0.85 < value < 1.15),
    "sentence": (sentence, lambda value: value > 2),
    "excess": (excess, lambda value: value < 1.25),
    "pull": (pull, lambda value: value < 0.001),
}


def examine(patient):
    """Ask every instrument: its reading, and whether it raises an alarm."""
    readings = {name: measure(patient) for name, (measure, _) in SOUND.items()}
    return readings, {name: not SOUND[name][1](value) for name, value in readings.items()}


examined = {name: examine(each) for name, each in patients.items()}
readings, alarms = ({name: each[k] for name, each in examined.items()} for k in (0, 1))
ALT = "Readings of eight instruments on six models. The healthy row has no alarm; each other has its first elsewhere."
show(kit.chart(readings, alarms), alt=ALT)
first = {name: next((each for each, alarm in row.items() if alarm), None) for name, row in alarms.items()}
print("first alarm:", first)

# %% [markdown]
# > **Key idea.** Read a row from left to right. The *first* alarm names the sick part; those behind it may be its
# > consequences. B has four, and the first says: the scale. Repair that, and measure again before you touch anything
# > else.
#
# Five patients, five first alarms, none of them twice. And the healthy row is empty, which matters just as much: an
# instrument that cries at the healthy is switched off after a week.
#
# ## Step 7: test the instruments
#
# You have trusted the instruments because they found what they were built for. Turn that round. An instrument that has
# *never* raised an alarm has never been tested. Which of yours has only ever said "fine"?

# %%
silent = [name for name in SOUND if not any(row[name] for row in alarms.values())]
print("never raised an alarm:", silent)

# %% [markdown]
# The round trip. Perhaps it is broken, and prints a good value whatever comes in. So plant a fault that it has to see:
# a decoder that has lost one layer, a picture that is not brought to the range from -1 to 1. The exercises have such a
# patient. This way of testing tests has a name, *mutation testing*: change the program a little at some place, and if
# no test fails, a test is missing there.
#
# > **Check.** Do that to your own code once. Comment out one line at a time, the scaling, the time embedding, the
# > dropout of sentences, the running average, and run your tests. For every line that can go without a complaint, write
# > the instrument that misses it.
#
# ## Turn one knob: how wrong must it be?
#
# When does a fault show in the pictures, and when in the instrument? Take the scale factor and turn it, from half to
# three times the right one. Drawing does not depend on it, so the latents are drawn once, and only `decode` changes.

# %%
healthy = patients["healthy"]
words = healthy.embed(test.captions[:24])
latents = healthy.walk(healthy.denoiser(words, 2), range(24))
FACTORS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
turned = {k: kit.with_scale(healthy, k * healthy.scale_factor) for k in FACTORS}
decoded = {k: each.decode(latents) for k, each in turned.items()}
show(
    picture_rows({f"times {k:g}": decoded[k][:6] for k in (0.5, 0.8, 1.0, 1.25, 2.0)}, scale=2),
    alt="Six scenes decoded with half to twice the right factor: blurred and hard at half, scratched at twice.",
)
found = [wishes_met(each) for each in decoded.values()]
spreads = [spread(each) for each in turned.values()]
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.8))
plot(axes[0], FACTORS, {"wishes met": found}, xlabel="factor, times the right one", ylim=(0, 1.05))
plot(axes[1], FACTORS, {"spread": spreads}, xlabel="factor, times the right one")
axes[1].axhspan(0.9, 1.1, color="#009E73", alpha=0.2)
show(figure, alt="The share of wishes met is a plateau around the right factor; the spread is a straight line.")
flat = [k for k, value in zip(FACTORS, found, strict=True) if value > found[FACTORS.index(1.0)] - 0.05]
print("a quarter too much or a fifth too little changes the wishes by less than 5 in 100:", {0.8, 1.25} <= set(flat))

# %% [markdown]
# The judge does not notice a quarter more or a fifth less, and the spread shows it at once, with the amount. It is the
# same with most faults. The end of the way is *robust*: networks make the best of what they get, and a measure of the
# end has a plateau. A measure of the part has a slope.
#
# ## Illness in the past: read the log
#
# Some faults lie behind a model. All its parts are wired as they should be, and they have learned under a fault. For
# these you have only what the training wrote down. Two autoencoders of lesson 02 differ in one number, the step at
# which the patch critic joins: half-way, or at step 0.

# %%
logs = {"late critic": load_log("adversary"), "early critic": load_log("adversary_at_0")}
figure, axes = plt.subplots(1, 2, figsize=(8.8, 2.9))
for (name, log), line in zip(logs.items(), ("-", "--"), strict=True):
    lead = [a - b for a, b in zip(log["verdict_real"], log["verdict_made"], strict=True)]
    axes[0].plot(log["step"], lead, line, label=name)
    axes[1].semilogy(log["step"], log["distance"], line, label=name)
axes[0].set(xlabel="step", ylabel="verdict on real minus made")
axes[1].set(xlabel="step", ylabel="perceptual distance")
axes[0].legend()
ALT = "Left: the early critic leads from the first look, the late one from half-way. Right: the early run stays behind."
show(figure, alt=ALT)
behind = [b > a for a, b in zip(*(log["distance"] for log in logs.values()), strict=True)]
print("the early run is behind at every look:", all(behind))
made = {"late critic": reconstruct("adversary", real[:6]), "early critic": reconstruct("adversary_at_0", real[:6])}
ALT = "Six scenes and what both autoencoders make of them: those of the early critic are rougher."
show(picture_rows({"real": real[:6]} | made, scale=2), alt=ALT)

# %% [markdown]
# Look at the left curve at its first point. The early critic is sure of itself while the autoencoder still makes mush.
# Of course it is: mush is easy to tell from a picture. From then on the autoencoder is pushed towards whatever upsets
# the critic, before it has learned to keep the picture at all. The final distance tells you *that* it is worse, and not
# why. *When* one part is
# ahead of the other does, and so a log needs both sides of every contest.
#
# Two more readings of logs are worth knowing by heart. A noise loss that stays at 1.0 (squared) or 0.80 (absolute, the
# mean size of a normal number) belongs to a network that answers 0; look at the learning rate first. And before any
# long run, let the network learn *one batch* alone: a loss that does not fall far below 1 there will not fall
# elsewhere.
#
# ## Never used: the running average
#
# The last fault is the quietest. Lesson 05 keeps a running average of the weights, the EMA, and draws with that. Many
# programs compute it, write it to the file, and then load the other ones. Train the healthy U-Net on for a moment with
# a large learning rate, and look at both copies:

# %%
cost_card("80 steps of the U-Net", seconds=20)

# %%
scenes = render_scenes(600, "train")
known, told_words = healthy.encode(to_float(scenes.pictures)).clone(), healthy.embed(scenes.captions).clone()
x0, context = healthy.encode(real).clone(), healthy.embed(test.captions).clone()
times = torch.linspace(20, 980, 32).long()
x_held = healthy.schedule.add_noise(x0, noise, times)


def held_out(net):
    """Noise loss of every held-out picture, each at another time step, always with the same noise."""
    with torch.no_grad():
        return (net(x_held, times.float(), context) - noise).pow(2).mean(dim=(1, 2, 3))


learner = Learner(
    UNet(healthy.unet.config), peak_lr=1e-3, device=torch.device("cpu"), dtype=torch.float32, ema_decay=0.99, floor=1.0,
    warmup=10,
)  # fmt: skip
learner.load_weights(healthy.unet)
rng = torch.Generator().manual_seed(1)
history = []
for step in range(1, 81):
    rows_of_batch = torch.randint(len(known), (16,), generator=rng)
    eps, t = torch.randn(16, 4, 16, 16, generator=rng), torch.randint(1000, (16,), generator=rng)
    x_t = healthy.schedule.add_noise(known[rows_of_batch], eps, t)
    loss = (learner.net(x_t, t.float(), told_words[rows_of_batch]) - eps).pow(2).mean()
    loss.backward()
    learner.step(0.0)
    if step % 10 == 0:
        history.append([float(held_out(net).mean()) for net in (learner.network, learner.ema)])

# %%
raw, averaged = (list(each) for each in zip(*history, strict=True))
figure, axes = plt.subplots(figsize=(6.4, 2.8))
curves_of_two = {"trained weights": raw, "their average": averaged}
plot(axes, range(10, 81, 10), curves_of_two, xlabel="step", ylabel="held-out loss")
show(figure, alt="Held-out loss over 80 steps: the trained weights lie above their average, and waver.")
gap = mean((held_out(learner.network) - held_out(learner.ema)).tolist())
print("the average is better, on the same noise, interval included:", gap.interval[0] > 0)
pairs = zip(learner.network.parameters(), learner.ema.parameters(), strict=True)
print("the two are different weights:", not all(torch.equal(a, b) for a, b in pairs))

# %% [markdown]
# Two instruments, then. The held-out losses of both copies *on the same noise*: their difference is small, and without
# the pairing it would drown. And the plainest of all: are the weights that you draw with those that you think they are?
# Compare them. If the file that you ship equals the trained weights to the last bit, the average was never used.
#
# Can the average be the worse one? Yes: one that forgets too slowly still has the random start in it after a short
# training. So measure both, and let the numbers choose.
#
# ## In the paper, and at full size
#
# > **In the paper.** The scale factor is in its appendix: the latents of a KL autoencoder are divided by their standard
# > deviation, measured on the first batch. Without it the latents are so large beside the noise that the model settles
# > much of the picture in its first steps. Patient B is what you get when that number is taken from somewhere else.
#
# > **At full size.** All eight questions can be asked there, but the ranges are new. Round trip: Stable Diffusion's own
# > autoencoder has about 24 dB on photographs. Words and loss: measure them on weights that you know to be sound; on
# > photographs the right sentence lowers the loss by much less than half. Guidance: many programs skip it at scale 1,
# > and then the test cannot fail; ask a hair above 1. The first four need no GPU: a few pictures, one pass. Before you
# > report a bug of a large model, run them. For grey, over-saturated or noisy pictures look first at what a file of
# > weights does not say: scale factor, prediction type, schedule. (In a diffusers folder: `scaling_factor` in
# > `vae/config.json`, `prediction_type` and the betas in `scheduler/scheduler_config.json`.)
#
# ## Visit the patients
#
# > **Try it.** Choose a patient. Under its pictures stands what raises an alarm. Cover the text, and say it before you
# > look.

# %%
def visit(patient):
    """A patient's first six pictures."""
    return picture_rows({patient: pictures[patient][:6]}, scale=2)


def report(patient):
    found = [f"{name} {readings[patient][name]:.2f}" for name, alarm in alarms[patient].items() if alarm]
    return f"{patient}: " + ("no alarm" if not found else "alarm from " + ", ".join(found))


ALT = "Six pictures of the healthy model, and under them what its instruments say: no alarm."
live(visit, ALT, caption=report, patient=list(patients))

# %% [markdown]
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("clinic.foreign_scale")

# %%
my_pair = ...
check.clinic.foreign_scale(my_pair)

# %%
hint("clinic.foreign_scale")

# %%
exercise("clinic.rows")


# %%
def my_rows_off(probs):
    """probs: (heads, positions, words). Return by how much the worst row misses the sum 1."""
    ...


check.clinic.rows(my_rows_off)

# %%
hint("clinic.rows")

# %%
exercise("clinic.ideal")


# %%
def my_denoiser(x0, alpha_bar):
    """Return a function (x_t, t, step) -> noise that leads every sound sampler to x0."""
    ...


check.clinic.ideal(my_denoiser)

# %%
hint("clinic.ideal")

# %%
exercise("clinic.training_step")


# %%
def my_step(mean, scale_factor, noise, t, alpha_bar):
    """What a training step gives to the U-Net, and what it should answer. There are three faults in it."""
    a = alpha_bar[t][:, None, None, None]
    x_t = scale_factor * (a * mean + (1 - a) * noise)
    return x_t, mean


check.clinic.training_step(my_step)

# %%
hint("clinic.training_step")

# %%
exercise("clinic.diagnose")

# %%
my_diagnosis = {"X": ..., "Y": ..., "Z": ...}
check.clinic.diagnose(my_diagnosis)

# %%
hint("clinic.diagnose")

# %%
solution("clinic.training_step")

# %% [markdown]
# ## Recap
#
# - A model that is put together wrongly runs, learns and draws. Shapes say nothing about meaning.
# - Pictures and marks at the end have a plateau: five faults, and two of them kept nearly full marks.
# - Measure each part against something that must hold, with a value that is known beforehand.
# - Put the truth in the place of a part, such as the true noise, and you have taken that part out of the question.
# - Go from input to output; the first alarm names the part, those behind it may be its consequences.
# - A round trip cannot see what cancels. Measure at the turning point too.
# - An instrument that never raised an alarm is not tested. Plant a fault, and see it find that.
#
# ## Common mistakes
#
# - *Changing two things at once.* If it is better now, you do not know why, and one of the two may be a new fault.
# - *Training longer* because the pictures are poor. Time repairs no wiring, and it hides some.
# - *One number for the loss.* Look at it by time step: A's is worst at the noisy end, where a mean hides it. And do not
#   rely on it: D and E had a perfect one.
# - *Comparing with other noise.* Use the same pictures, the same noise, the same time steps, and look at differences.
# - *Taking over numbers* (scale factor, schedule, prediction type) from a configuration that belongs to other weights.
# - *Repairing the symptom*, such as more contrast for pale pictures, instead of the cause.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Karpathy: *A Recipe for Training Neural Networks*, 2019 (karpathy.github.io). Why networks fail silently, and the
#   habit of checking each part before the next is added.
# - Rombach, Blattmann, Lorenz, Esser, Ommer: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022
#   (arXiv 2112.10752). The rescaling of the latents is in the appendix, with pictures of what happens without.
# - Lin, Liu, Li, Yang: *Common Diffusion Noise Schedules and Sample Steps are Flawed*, 2024 (arXiv 2305.08891). A fault
#   of the schedule that everybody had, found by asking what must hold at the last step.
# - Karras et al.: *Analyzing and Improving the Training Dynamics of Diffusion Models*, 2024 (arXiv 2312.02696). What
#   the length of the running average does, measured after the training.
# - Jia, Harman: *An Analysis and Survey of the Development of Mutation Testing*, 2011. Testing tests by planted faults.
#
# ## Next stop
#
# **16 · What came after: and since?** You change a few lines of your own code and arrive at v-prediction, at flow
# matching and at a transformer in the place of the U-Net, each measured against what you have.
