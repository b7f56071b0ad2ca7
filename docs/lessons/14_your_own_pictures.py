# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · Your own pictures: how do you make it yours?
#
# Every model of this course so far has learned from scenes that the course draws itself: clean, endless, each with a
# true sentence. Your pictures are not like that. In this lesson you take a folder as folders are, with broken files and
# missing captions, and go all the way: look, fold, name, train, measure, share. You will have made a model of a folder
# that no model has seen before, and a card and files with which a stranger's program draws the same picture.
#
# > **Goal.** Take any folder of pictures and captions to a trained, measured and shared model, and know at each step
# > what may be wrong before it costs you a night.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Set-up (click to open)
import dataclasses
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from ldm_tutor.config import ClipConfig, DrawingConfig, ImageEncoderConfig, ModelConfig, TextEncoderConfig, scenes
from ldm_tutor.data.check import check_pictures, report
from ldm_tutor.data.folders import read_pictures
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.lessons import lesson_14_kit as kit
from ldm_tutor.lessons.checks import check, exercise, hint, solution
from ldm_tutor.lessons.cost import cost_card
from ldm_tutor.lessons.course import course_map, fact_box
from ldm_tutor.lessons.lesson_14_photos import load_photos, told_of_photos
from ldm_tutor.lessons.lesson_14_robots import ANTENNAS, COLORS, EYES, sentence, spoil, suspects, write_robots

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from ldm_tutor.lessons.live_training import follow
from ldm_tutor.losses.denoising import noise_loss
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.metrics.clip_score import clip_features, clip_score
from ldm_tutor.metrics.fid import frechet_distance
from ldm_tutor.metrics.nearest import nearest
from ldm_tutor.metrics.pictures import psnr
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.pipeline import Pipeline, load_pipeline
from ldm_tutor.plots.figures import STYLE, bars, picture_grid, picture_rows, show
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.training.loop import Budget, train
from ldm_tutor.training.model_card import model_card
from ldm_tutor.training.own_pictures import own_tokens, ready_for_text
from ldm_tutor.training.stages.autoencoder import AutoencoderRecipe, AutoencoderStage, measure_scale
from ldm_tutor.training.stages.clip import ClipStage
from ldm_tutor.training.stages.denoiser import DenoiserStage, cache_moments
from ldm_tutor.weights.diffusers_folder import export_diffusers
from ldm_tutor.weights.files import load_model
from ldm_tutor.weights.shipped import resolve
from ldm_tutor.widgets.live import live

torch.set_num_threads(min(2, torch.get_num_threads()))
for each in (diffusers_logging, transformers_logging):
    each.disable_progress_bar()
plt.rcParams.update(STYLE)
CPU, F32 = torch.device("cpu"), torch.float32

# %% [markdown]
# ## Fact box

# %%
fact_box(14)

# %% [markdown]
# ## Where you are

# %%
course_map(14)

# %% [markdown]
# ## The folder
#
# To work anywhere, the lesson draws a folder of its own: 150 robots, each with a sentence in `metadata.jsonl`, the form
# that Hugging Face calls an *imagefolder*. Then it spoils the folder with what real ones have. To use **your own**
# pictures instead, name their folder in the next cell, or set `LDM_TUTOR_PICTURES` before you start: pictures with a
# `metadata.jsonl`. All cells then work on yours; the sentences below speak of robots. (In yours, every picture that is
# not square will differ in step 1: our own reader squeezes it, the package cuts out the middle.)

# %%
MY_FOLDER = os.environ.get("LDM_TUTOR_PICTURES", "")  # or write the path of your folder here
SCRATCH = Path(tempfile.mkdtemp())
FOLDER = Path(MY_FOLDER or SCRATCH / "robots")
if not MY_FOLDER:
    write_robots(FOLDER, 150)
    spoil(FOLDER)
lines = (FOLDER / "metadata.jsonl").read_bytes().splitlines()
print("files:", len(list(FOLDER.iterdir())), "| lines in metadata.jsonl:", len(lines))
print(lines[0].decode())

# %% [markdown]
# ## Try first: open every file
#
# The obvious way: walk through the table, open each picture, train. How far would a run get? Try three versions, each
# a little more careful than the one before, and note where each of them dies.


# %%
def walk(read_line, open_picture):
    """How many pictures go by before the first error, and its name."""
    for number, line in enumerate(lines):
        try:
            open_picture(FOLDER / read_line(line)["file_name"])
        except Exception as error:  # this is the experiment: whatever stops the walk
            return f"{type(error).__name__} after {number} pictures"
    return f"all {len(lines)}"


def careful(path):
    return Image.open(path).load() if path.stat().st_size and path.suffix == ".png" else None


try:
    (FOLDER / "metadata.jsonl").read_text(encoding="utf-8")
except UnicodeDecodeError as error:
    print("the whole table as text:", type(error).__name__)
print("line by line:", walk(json.loads, lambda path: Image.open(path).load()))
print("only PNG files that are not empty:", walk(json.loads, careful))

# %% [markdown]
# The first version does not even open the table: one letter in it is Latin-1. The other two die *near the end*, each at
# the first file that it cannot read: a photo that is cut off, then a letter that calls itself a PNG. That is the
# expensive kind: 150 pictures go by, the run looks healthy, and in the night it stops. And each fix finds only the next
# trouble.
#
# > **Key idea.** Look at all the data once, before anything is trained. Name what is broken and leave it out. Then
# > train on what you have seen to be good.
#
# ## Step 1: read, and name what cannot be read
#
# So every line and every picture gets its own `try`, and a trouble becomes a note instead of an end:


# %%
def read_mine(side=64):
    pictures, captions, names, lost = [], [], [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
            with Image.open(FOLDER / row["file_name"]) as image:
                square = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            lost.append((number, type(error).__name__))
            continue
        pictures.append(np.asarray(square))
        captions.append(row.get("text") or "")
        names.append(row["file_name"])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), captions, names, lost


mine, my_captions, my_names, lost = read_mine()
print(len(mine), "pictures read; left out:", dict(Counter(name for _, name in lost)))
whole = read_pictures(FOLDER, 64)
place = {name: k for k, name in enumerate(whole.names)}
same = {name: torch.equal(mine[k], whole.pictures[place[name]]) for k, name in enumerate(my_names)}
print("equal to the package's, pixel by pixel:", sum(same.values()), "of", len(same))

# %% [markdown]
# Nothing crashes any more. But some pictures are not equal to those of `read_pictures`. Look at them:

# %%
odd = sorted(name for name, equal in same.items() if not equal)
shown = odd[:2]
pairs = [each for name in shown for each in (mine[my_names.index(name)], whole.pictures[place[name]])]
titles = [title for name in shown for title in (f"{name}: mine", "the package's")]
ALT = "Pairs of robots: the 16-bit one is white in mine, the turned one lies on its side; the package's are right."
framed = [np.pad(each.permute(1, 2, 0), ((1, 1), (1, 1), (0, 0)), constant_values=160) for each in pairs]
if shown:
    show(picture_grid(framed, titles, columns=len(pairs), scale=2), alt=ALT)
print("not equal:", len(odd), "| the first:", shown)

# %% [markdown]
# These are the worst troubles, since nobody is told. A **16-bit** picture is cut off by `convert("RGB")` at the largest
# number that fits into a byte, so nearly everything in it becomes white. A photo that a phone took **upright** is
# stored lying, with a note (EXIF) how to turn it, and the note was ignored. Without a word, a U-Net would learn that
# some robots are white or lie down.
#
# > **Check.** From here on this is `ldm_tutor.data.folders.read_pictures`. It reads the same pixels where pictures are
# > plain, and it knows grey, palette, CMYK, transparent (on white), 16 bits, EXIF and animations (the first frame). It
# > cuts out the middle square instead of squeezing. It reads four more forms: text files beside the pictures, one
# > folder per class (the folder's name is the caption), WebDataset shards, and torchvision's data sets by name.
#
# It also keeps a list of every trouble. `check_pictures` adds what is not broken and still worth knowing. In a terminal
# the same is `ldm-tutor data check FOLDER --sheet sheet.png`.

# %% tags=["nbval-ignore-output"]
found = check_pictures(FOLDER, 64)
print("\n".join(report(found, most=3)))

# %%
print("left out or lacking something:", found.counts())
print("good:", len(found.data), "| with a caption:", found.num_captioned, "| words:", found.num_words)
print("copies:", sum(len(names) - 1 for names in found.same_picture), "| too long:", len(found.too_long))

# %% [markdown]
# The upper half is left out or lacks something. The lower half is whole, and worth knowing. **Copies** teach the same
# picture twice as hard, and they are where models memorise first. **Repeated captions** are natural here: 36 sentences
# for all these robots. They will matter in step 3. A caption that is **too long** for the text encoder (32
# tokens, two of which mark start and end: room for 30) loses its end.
# And a **contact sheet** finds what no count finds. Here are the first and the last pictures by name, and some between:

# %%
spread = sorted({*range(6), *(round(k * (len(whole) - 1) / 11) for k in range(12)), *range(len(whole))[-6:]})
sheet = [whole.pictures[k].permute(1, 2, 0).numpy() for k in spread]
ALT = "22 pictures of the folder: robots in four colours, two of them grey, one a blur of five pixels."
show(picture_grid(sheet, columns=11, scale=1), alt=ALT)
figure, axes = plt.subplots(figsize=(6, 2.4))
axes.hist(found.token_lengths, bins=range(0, 60, 2), color="C0")
axes.axvline(30, color="C1")
axes.set(xlabel="tokens in a caption (line: room for 30)", ylabel="captions", yscale="log")
show(figure, alt="Nearly all captions have nine or ten tokens; a single one is beyond the room for 30.")

# %% [markdown]
# The grey robots are one choice you have to make (they carry captions that say "red"); the five-pixel one is another.
# Repair the folder, not the code: delete or rename, and check again. Here you go on with what is captioned, not too
# long and not too small, and put some pictures aside that no training may see. Copies go too: one in each half would
# make the held-out half a lie. (The grey robots stay, with their wrong word.)

# %%
told = whole.with_captions()


def only(chosen):
    """The chosen ones of the good pictures, with captions and names."""
    captions, names = ([each[k] for k in chosen] for each in (told.captions, told.names))
    return dataclasses.replace(told, pictures=told.pictures[chosen], captions=captions, names=names)


order = torch.randperm(len(told), generator=torch.Generator().manual_seed(0)).tolist()
doubles = [name for names in found.same_picture for name in names[1:]]
order = [k for k in order if told.names[k] not in (*found.too_long, *found.small, *doubles)]
held_out, data = only(order[: len(order) // 5]), only(order[len(order) // 5 :])
TRAIN, HELD, HELD_CAPTIONS = to_float(data.pictures), to_float(held_out.pictures), held_out.captions
print("to train on:", len(TRAIN), "| held out:", len(HELD))

# %% [markdown]
# ## Step 2: the autoencoder, fine-tuned
#
# Latents first. Does the shipped autoencoder, which has only ever seen scenes, fold and unfold robots?


# %%
@torch.inference_mode()
def through(autoencoder, pictures):
    return autoencoder(pictures).clamp(-1, 1)


shipped = load_model(resolve() / "autoencoder.safetensors", "autoencoder")
eye = PerceptualDistance(load_model(resolve() / "perceptual.safetensors", "judge"))
before = float(psnr(through(shipped, HELD), HELD).mean())
print(f"PSNR of the shipped autoencoder on held-out robots: about {round(before)} dB")

# %% [markdown]
# It keeps the shapes and gets colours and paper wrong. So train it on. This is the knob of this lesson: **what do you
# start from?** Fourteen steps from the shipped weights, and the same fourteen from random ones. Both use the
# package's own stage, the one behind `ldm-tutor train autoencoder --data FOLDER --start-from data/weights/scenes`.

# %%
STEPS = 14
cost_card("14 steps of the autoencoder, twice", seconds=8)


def tune(start):
    torch.manual_seed(0)
    recipe = AutoencoderRecipe(batch_size=8, adversarial_weight=0.0)
    stage = AutoencoderStage(scenes().autoencoder, data.pictures, eye, device=CPU, dtype=F32, recipe=recipe)
    stage.coder.warmup = 5
    if start is not None:
        stage.coder.load_weights(start)
    records = train(stage, Budget(steps=STEPS), SCRATCH / f"autoencoder_{start is None}")
    return stage.coder.ema, [record.values["l1"] for record in records]


tuned, fine_losses = tune(shipped)
fresh, fresh_losses = tune(None)
after = {"shipped": shipped, "fine-tuned": tuned, "from nothing": fresh}
decibels = {name: float(psnr(through(each, HELD), HELD).mean()) for name, each in after.items()}

# %%
figure, axes = plt.subplots(figsize=(6, 2.6))
axes.plot(fine_losses, label="from the shipped weights")
axes.plot(fresh_losses, "--", label="from nothing")
axes.set(xlabel="step", ylabel="L1", ylim=(0, None))
axes.legend()
show(figure, alt="L1 over 14 steps: from the shipped weights it falls quickly to a low value, from nothing stays high.")
rows = torch.stack([HELD[:4], *(through(each, HELD[:4]) for each in after.values())], dim=1).flatten(0, 1)
ALT = "Held-out robots: the shipped autoencoder greys the paper, the fine-tuned one is close, from nothing is a blur."
show(picture_grid(rows, ["original", *after] * 4, columns=8, scale=1), alt=ALT)
print("fine-tuned: at least 3 dB better than shipped:", decibels["fine-tuned"] > decibels["shipped"] + 3)
print("from nothing, after the same steps, still worse than shipped:", decibels["from nothing"] < decibels["shipped"])

# %% tags=["nbval-ignore-output"]
print({name: f"{value:.1f} dB" for name, value in decibels.items()})

# %% [markdown]
# A network that has learned to fold *something* needs seconds to fold your pictures, since edges and flat areas are the
# same everywhere. The one from nothing has spent the same seconds on a blur. And fine-tuned, it is close on pictures
# that it has not seen, though it has seen little more than a hundred.
#
# > **Careful.** If you have a U-Net already and only want sharper pictures, do not touch the encoder: its latents are
# > what the U-Net knows. `--decoder-only` trains the other half.
#
# ### The scale factor, measured again
#
# New weights, new latents. The noise schedule is made for latents with a standard deviation near 1, so they are
# multiplied by
#
# $$s = 1 / \operatorname{std}(z), \qquad z = \mu + \sigma \epsilon .$$
#
# {{notation mu sigma noise}}
#
# As a loop over the pictures, vectorised, and by the package:


# %%
@torch.inference_mode()
def scale_by_loop(autoencoder, pictures):
    total = squares = count = 0.0
    rng = torch.Generator().manual_seed(0)
    for picture in pictures:
        z = autoencoder.encode(picture[None]).sample(rng).double()
        total, squares, count = total + float(z.sum()), squares + float(z.square().sum()), count + z.numel()
    return (squares / count - (total / count) ** 2) ** -0.5


with torch.inference_mode():
    z = tuned.encode(TRAIN).sample(torch.Generator().manual_seed(0))
scale = measure_scale(tuned, data.pictures, CPU)
loop = scale_by_loop(tuned, TRAIN[:40])
print("vectorised equals the package's:", abs(float(1 / z.std()) / scale - 1) < 1e-2)
print("a loop over 40 pictures is within 5% of it:", abs(loop / scale - 1) < 0.05)
scaled = {"not scaled": z, "the scenes' factor": shipped.config.scale_factor * z, "its own": scale * z}
print({name: bool(abs(float(each.std()) - 1) < 0.02) for name, each in scaled.items()}, "<- spread is 1")
tuned.config = dataclasses.replace(tuned.config, scale_factor=scale)

# %%
figure, axes = plt.subplots(figsize=(6, 2.6))
for (name, each), style in zip(scaled.items(), ("-", "--", ":"), strict=True):
    heights, edges = np.histogram(each.flatten().numpy(), bins=80, range=(-4, 4), density=True)
    axes.plot((edges[:-1] + edges[1:]) / 2, heights, style, label=name)
axes.set(xlabel="latent numbers", yticks=[])
axes.legend()
show(figure, alt="Three histograms of latents; only the one with its own factor has a spread of 1.")

# %% [markdown]
# Here the difference is modest, since both autoencoders are relatives. Between strangers it is not: Stable Diffusion's
# factor is 0.18215, and whoever forgets it trains on noise that hides hardly anything.
#
# ## Step 3: words of your own
#
# The shipped tokenizer has learned the words of scenes. Any other word it spells in pieces; nothing fails, but every
# sentence gets long and its pieces mean nothing to the text encoder. So train one on your captions:

# %%
VOCABULARY = 640
old = load_pipeline().tokenizer
tokenizer = Tokenizer.train(data.captions, vocab_size=VOCABULARY, context_length=32)
example = "a yellow robot with sleepy eyes and two antennas" if not MY_FOLDER else data.captions[0]
for name, each in {"scenes": old, "yours": tokenizer}.items():
    pieces = [piece.removesuffix("</w>") for piece, _ in each.pieces(example)]
    print(f"{name}: {len(pieces)} tokens: {' '.join(pieces)}")

# %% [markdown]
# Then CLIP, so that text and pictures meet. Its loss says: of all pictures in the batch, exactly one belongs to your
# sentence. With scenes that was nearly always true. Here it is not. How often do two pictures of a batch of 32 share a
# caption, so that the loss punishes a right answer?

# %%
rng = torch.Generator().manual_seed(0)


def clashes(size):
    chosen = torch.randperm(len(data), generator=rng)[:size].tolist()
    return size - len({data.captions[k] for k in chosen})


wrong = {f"batch of {size}": sum(clashes(size) for _ in range(200)) / 200 for size in (8, 16, 32)}
TITLE = "pictures whose caption is in the batch already"
ALT = "Bars: of 8 pictures nearly one clashes, of 16 about three, of 32 about ten."
show(bars(list(wrong), list(wrong.values()), title=TITLE, form="{:.1f}"), alt=ALT)
print("in a batch of 32, on average more than a quarter:", wrong["batch of 32"] > 8)

# %% [markdown]
# So each batch takes every caption once at most: shuffle the pictures, take the first of each caption. `ClipStage` does
# that where it is given no near twins, the look-alike scenes of lesson 03 (exercise `one_each` asks you to write it). A
# small CLIP is enough here:

# %%
cost_card("100 steps of a small CLIP", seconds=4)
sizes = {"width": 128, "num_layers": 2, "num_heads": 4, "mlp_width": 256}  # 128: what the U-Net reads
clip_config = ClipConfig(
    text=TextEncoderConfig(vocab_size=VOCABULARY, context_length=32, **sizes),
    image=ImageEncoderConfig(picture_size=64, patch_size=16, **sizes),
    embed_dim=32,
)
torch.manual_seed(0)
words = ClipStage(
    clip_config, ready_for_text(data, tokenizer), None, tokenizer, device=CPU, dtype=F32, batch_size=32, peak_lr=3e-3
)
words.learner.warmup = 10
for _ in train(words, Budget(steps=100), SCRATCH / "clip"):
    pass
clip = words.learner.ema
print("pictures in a batch:", words.batch_size, "| their captions all differ:", words.batch_size <= words.num_kinds)

# %%
ALL = [sentence(color, eyes, antennas) for color in COLORS for eyes in EYES for antennas in ANTENNAS]
sentences = sorted(set(data.captions)) if MY_FOLDER else sorted(ALL)
with torch.inference_mode():
    likeness = clip.embed_pictures(HELD) @ clip.embed_text(tokenizer(sentences)).T
best = [sentences[int(k)] for k in likeness.argmax(dim=1)]
hits = [a == b for a, b in zip(best, HELD_CAPTIONS, strict=True)]
own = likeness[range(len(HELD)), [sentences.index(each) if each in sentences else 0 for each in HELD_CAPTIONS]]
places = (likeness > own[:, None]).sum(dim=1) + 1
figure, axes = plt.subplots(figsize=(7, 3.4))
axes.imshow(likeness[likeness.argmax(dim=1).argsort()], aspect="auto")
axes.set(xlabel=f"{len(sentences)} sentences, in alphabetical order", ylabel="held-out pictures, sorted")
if not MY_FOLDER:
    axes.set_xticks(range(4, 36, 9), sorted(COLORS))  # nine sentences begin with each colour
axes.grid(visible=False)
show(figure, alt="Likeness of held-out pictures and sentences: blocks of colour along a rough diagonal.")
print("the right one of 36 is among the first six for at least half:", bool((places <= 6).float().mean() >= 0.5))

# %% tags=["nbval-ignore-output"]
print(f"in the first place for {sum(hits)} of {len(hits)}, half of them in place {int(places.median())} or before")

# %% [markdown]
# Yellow is alike, dark is unlike: the colours are told apart, the eyes hardly. Among the first six of 36 chance would
# put one in six. In a terminal: `ldm-tutor train clip --data FOLDER`. Do you need a CLIP at all? The paper's own
# text-to-image model trains a text encoder *along with* the U-Net. A CLIP of its own gives you two things more: the
# same vectors for every U-Net that you try, and eyes with which to measure in step 5.
#
# ## Step 4: the U-Net, live
#
# All parts are there. Fold every picture once, and keep means and variances (`cache_moments`); then it is lesson 05
# again. Start from the shipped U-Net: it has never read these words or seen a robot, but it knows what an object on a
# ground looks like.

# %%
unet_config = scenes().unet
torch.manual_seed(0)
denoiser = DenoiserStage(
    unet_config, cache_moments(tuned, data.pictures, device=CPU, dtype=F32), scale, clip.text,
    own_tokens(data.captions, tokenizer), tokenizer.empty(1), device=CPU, dtype=F32, batch_size=16,
)  # fmt: skip
denoiser.learner.load_weights(load_model(resolve() / "unet.safetensors", "unet"))
denoiser.learner.warmup = 5
model = ModelConfig(name="robots", picture_size=64, autoencoder=tuned.config, clip=clip_config, unet=unet_config)
draw_by = DrawingConfig(sampler="dpm++", guidance=3.0)
pen = Pipeline(model, tokenizer, clip, denoiser.learner.ema, tuned, NoiseSchedule(), draw_by)
PROMPTS = sentences[:: max(1, (len(sentences) - 1) // 5)][:6]
STOPS, seen = (4, 12, 32), {}


def learn(steps):
    """Train, and draw the same sentences from the same seeds at each stop."""
    for record in train(denoiser, Budget(steps=steps), SCRATCH / "unet"):
        if record.step in STOPS:
            seen[record.step] = pen.draw(PROMPTS, range(len(PROMPTS)), num_steps=8)
        yield record.values["loss"]


cost_card("32 steps of the U-Net", seconds=15)
ALT = "Your loss falls within a few steps and then slowly."
losses = follow(learn(STOPS[-1]), STOPS[-1], alt=ALT, marks={"an answer of nothing": 1.0})

# %%
print(*PROMPTS, sep="\n")
titles = [f"{steps} steps" for steps in STOPS for _ in PROMPTS]
ALT = "The same six sentences after 4, 12 and 32 steps: strange things, then coloured heaps, then boxes on paper."
show(picture_grid(torch.cat(list(seen.values())), titles, columns=6, scale=2), alt=ALT)
print("the last ten losses are on average below 0.25:", sum(losses[-10:]) / 10 < 0.25)

# %% [markdown]
# Read the columns from top to bottom. After four steps it still draws what it knows, trees and sky and cars, but the
# paper shows through. After twelve the old world is gone. After thirty-two there is a box, in most columns of the right
# colour, with something like a face. Which eyes, how many antennas: for that it needs more steps than a lesson of two
# minutes has, and more than the little that your CLIP has learned.
#
# ## Step 5: is it any good, without a judge?
#
# Nobody has trained a judge for your pictures. Four measures need none. First, the **noise loss on held-out pictures**
# beside the same on training pictures, at the same times with the same noise. As long as both fall together, it learns;
# when only one falls, it learns by heart.


# %%
@torch.inference_mode()
def fixed_loss(pictures, captions, times=(200, 400, 600, 800)):
    x0 = scale * tuned.encode(pictures).mode()
    context = clip.text(own_tokens(captions, tokenizer)[:, 0])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for t in times:
        at = torch.full((len(x0),), t)
        total += float(noise_loss(pen.unet(denoiser.schedule.add_noise(x0, eps, at), at.float(), context), eps).mean())
    return total / len(times)


pair = fixed_loss(TRAIN[: len(HELD)], data.captions[: len(HELD)]), fixed_loss(HELD, HELD_CAPTIONS)
print("held-out loss is within a fifth of the training loss:", abs(pair[1] / pair[0] - 1) < 0.2)

# %% [markdown]
# Second and third, **FID with your own CLIP's features** and the **CLIP score** (lesson 11), each beside what real
# held-out pictures get. Fourth, the **nearest training picture** of each drawn one. (The package's distance is the root
# mean square over all pixels, which run from -1 to 1: 0.03 is hardly visible, 2 is black against white.) As a loop,
# vectorised, and the package's:

# %%
drawn = pen.draw(HELD_CAPTIONS, range(len(HELD)), num_steps=8)


def nearest_loop(made, train_set):
    return [min(range(len(train_set)), key=lambda k: float((one - train_set[k]).square().sum())) for one in made]


def nearest_fast(made, train_set):
    return torch.cdist(made.flatten(1), train_set.flatten(1)).argmin(dim=1)


index, distance = nearest(drawn, TRAIN)
print("the loop equals the package's:", nearest_loop(drawn[:6], TRAIN) == index[:6].tolist())
print("vectorised equals the package's:", torch.equal(nearest_fast(drawn, TRAIN), index))
near = torch.stack([drawn[:5], TRAIN[index[:5]]], dim=1).flatten(0, 1)
ALT = "Five drawn robots, each beside its nearest training picture: alike in colour or place, and no copy."
show(picture_grid(near, ["drawn", "nearest"] * 5, columns=10, scale=1), alt=ALT)


# %% [markdown]
# > **Check.** From here on this is `ldm_tutor.metrics.nearest`. Look at the pair, not only at the number, and set it
# > beside the same distance for *real* held-out pictures. A model that draws something new has no reason to be nearer
# > to its training pictures than reality is.
#
# ## A failure on purpose: the perfect model
#
# Here is a model that needs no training. It looks the sentence up in the folder and returns the training picture that
# goes with it, with a little noise so that nobody notices. Measure it beside yours, and beside real held-out pictures.


# %%
def copyist(captions):
    book = {caption: TRAIN[k] for k, caption in enumerate(data.captions)}
    made = torch.stack([book.get(caption, TRAIN[0]) for caption in captions])
    return (made + 0.03 * torch.randn(made.shape, generator=torch.Generator().manual_seed(2))).clamp(-1, 1)


reference = clip_features(clip, TRAIN)
rivals = {"real, held out": HELD, "the copyist": copyist(HELD_CAPTIONS), "your U-Net": drawn}
fids = {name: frechet_distance(clip_features(clip, each), reference) for name, each in rivals.items()}
scores = {name: clip_score(clip, tokenizer, each, HELD_CAPTIONS).value for name, each in rivals.items()}
all_near = {name: float(nearest(each, TRAIN)[1].mean()) for name, each in rivals.items()}

# %%
for title, values, form in (
    ("FID with your CLIP's features: less is better", fids, "{:.2f}"),
    ("CLIP score: more is better", scores, "{:.0f}"),
    ("distance to the nearest training picture", all_near, "{:.2f}"),
):
    alt = f"{title}: " + ("the copyist is nearest by far." if values is all_near else "the copyist is best.")
    show(bars(list(values), list(values.values()), title=title, form=form, width=6), alt=alt)
honest = "real, held out"
print("the copyist's FID is as good as that of real pictures:", fids["the copyist"] < 1.2 * fids[honest])
print("its CLIP score is at least nine tenths of theirs:", scores["the copyist"] > 0.9 * scores[honest])
print("it is much nearer to the training pictures than they are:", all_near["the copyist"] < 0.3 * all_near[honest])
print("your U-Net's CLIP score is lower than that of real pictures:", scores["your U-Net"] < 0.9 * scores[honest])

# %% tags=["nbval-ignore-output"]
print(f"noise loss {pair[0]:.2f}, held out {pair[1]:.2f}", {name: f"{value:.2f}" for name, value in fids.items()})

# %% [markdown]
# FID and CLIP score praise the copyist. FID asks whether pictures look like the training set, the CLIP score whether
# they fit their sentences. Training pictures do both as well as can be. Only the distance to the nearest training
# picture says what it is. (Real robots lie close to each other too, since 36 sentences share a few simple shapes. That
# is why you need the held-out distance beside it.)
#
# And look at the FID of your U-Net. Its robots are crooked, and their FID may come out near that of real ones. The
# features are those of a CLIP that has seen a hundred steps and looks at colours more than at anything else, and there
# are 30 pictures, too few for a covariance (lesson 11). A measure sees what its network sees. The CLIP score, from the
# same CLIP, at least notices that the words are not all there.
#
# > **Careful.** With a few hundred pictures and enough steps, *every* U-Net becomes the copyist. More pictures, fewer
# > steps, and no copies in the folder help. Measuring tells.
#
# ## Ask it yourself
#
# > **Try it.** Choose words and a seed. Which words has it understood, and which does it pass over? Then guidance: at
# > which scale do the colours break?


# %%
def ask(color, eyes, antennas, seed, guidance):
    prompt = sentence(color, eyes, antennas) if not MY_FOLDER else PROMPTS[seed % len(PROMPTS)]
    return picture_grid(pen.draw([prompt], [seed], num_steps=8, guidance=guidance), [prompt], scale=4)


live(ask, "One robot, drawn by your U-Net for the chosen words: a box of that colour on paper.",
     caption=lambda seed, guidance, **words: f"{sentence(**words)}, seed {seed}, guidance {guidance:g}",
     color=list(COLORS), eyes=list(EYES), antennas=list(ANTENNAS), seed=(0, 20, 3),
     guidance=(1.0, 8.0, 3.0, 0.5))  # fmt: skip

# %% [markdown]
# ## Step 6: share it
#
# A model is shared when someone else can draw with it, and knows what they hold. Two files make the difference. The
# **card** says what it learned from and under which licence, how it was made, what was measured, and what it cannot do.
# `model_card` refuses a card without licence or limits.

# %% tags=["nbval-ignore-output"]
card = model_card(
    "robots",
    data=f"{len(data)} {'pictures of my own' if MY_FOLDER else 'robots, drawn by lesson 14'}; "
    f"{len(held_out)} more were held out.",
    data_licence="NOT YET KNOWN: ask the owners" if MY_FOLDER else "MIT, as the course's code",
    commands=[f"# lesson 14: autoencoder {STEPS} steps, CLIP 100, U-Net {STOPS[-1]}, from data/weights/scenes"],
    measured={
        "PSNR there and back, before / after": f"{decibels['shipped']:.0f} / {decibels['fine-tuned']:.0f} dB",
        "nearest training picture, drawn / held out": f"{all_near['your U-Net']:.1f} / {all_near[honest]:.1f}",
    },
    limits=["Seconds of training: boxes and colours, no faces.", f"It knows {len(set(data.captions))} sentences."],
)
print(card)

# %% [markdown]
# The **files**: `export_diffusers` writes the folder that the most used library opens, and the proof is a stranger's
# program that draws the same picture from the same noise. In a terminal: `ldm-tutor export --weights FOLDER --out
# PLACE`.

# %%
cost_card("drawing with both libraries", seconds=4)
PROMPT = PROMPTS[1]
place = SCRATCH / "robots_for_diffusers"
export_diffusers(
    place, tokenizer=tokenizer, text_encoder=clip.text, unet=pen.unet, autoencoder=tuned,
    schedule=pen.schedule.config, picture_size=64,
)  # fmt: skip
(place / "README.md").write_text(card, encoding="utf-8")
stranger = StableDiffusionPipeline.from_pretrained(place, local_files_only=True, low_cpu_mem_usage=False)
stranger.set_progress_bar_config(disable=True)
options = {"num_inference_steps": 10, "guidance_scale": 3.0, "output_type": "pt"}
theirs = 2 * stranger([PROMPT], latents=pen.noise([5]), **options).images - 1
ours = pen.draw([PROMPT], [5], num_steps=10, guidance=3.0, sampler="ddim")
show(picture_grid(torch.cat([ours, theirs]), ["ours", "diffusers"], scale=3), alt="The same coloured robot twice.")
print("the same picture to 0.01 of its range:", float((ours - theirs).abs().max()) < 0.02)
print("in the folder:", *sorted(path.name for path in place.iterdir()))

# %% [markdown]
# Before you upload anything: may you? The pictures have owners, people in them have rights, and step 5 has shown that a
# model can hand its training pictures out again. Weights of a small folder are close to being the folder.
#
# ## The long run: emoji
#
# What does the same way give with more than two minutes? Google's Noto Emoji have a picture and a name each (a zip of
# PNG files, which the first command sorts). 29 of them, fruit and animal faces, went through these commands, in two
# sittings on a core that was never alone:
#
# ```sh
# python -m ldm_tutor.lessons.lesson_14_emoji noto-emoji-128.zip runs/emoji_few fruit "animal faces"
# ldm-tutor data check runs/emoji_few
# ldm-tutor train autoencoder --data runs/emoji_pictures --start-from data/weights/scenes --minutes 12 --out runs/emoji
# ldm-tutor train clip --data runs/emoji_words --steps 60 --out runs/emoji
# ldm-tutor train denoiser --data runs/emoji_few --start-from data/weights/scenes --minutes 48 --out runs/emoji
#
# ldm-tutor train autoencoder --data runs/emoji_pictures --start-from runs/emoji --minutes 3 --out runs/emoji2
# cp -r runs/emoji/clip.safetensors runs/emoji/tokenizer runs/emoji2/
# ldm-tutor train denoiser --data runs/emoji_few --start-from runs/emoji --minutes 16 --out runs/emoji2
# ```
#
# (The autoencoder needs no names and may see more pictures; CLIP saw hearts, circles and squares besides. The card in
# `data/weights/emoji` has every command.)
#
# One picture per name, seen hundreds of times: this run is *meant* to know them by heart. So nothing is held out, and
# the question is only whether it remembers. Every picture below is drawn by the model, from its name and a seed; none
# is a picture of the data set.

# %%
emoji, pictures = kit.load_emoji()
figure = picture_grid(pictures["drawn"], emoji["names"], columns=8, scale=2)
show(figure, alt="29 emoji drawn from their names by the model of the long run.")
print(kit.told_of(emoji))

# %%
logs = kit.load_logs()
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.6))
for axis, (stage, value) in zip(axes, (("autoencoder", "l1"), ("denoiser", "loss")), strict=True):
    axis.plot(*logs[stage, value], "o-")
    axis.set(xlabel="step of the second sitting", title=f"{stage}: {value}", ylim=(0, 1.1 * max(logs[stage, value][1])))
show(figure, alt="In the second sitting the autoencoder's L1 falls by a fifth, the denoiser's loss by two fifths.")
for stage, told_of in emoji["trainings"].items():
    print(f"{stage}: {told_of['steps']} steps, {told_of['samples']:,} pictures, {told_of['seconds'] / 60:.0f} minutes")

# %% [markdown]
# Look before you read the numbers. You can name nearly every one: fruit first, then tiger, cat, dog, frog and panda.
# The dragon and the whale are the ones to doubt. For every name the nearest training picture is its own; chance is
# one in 29. It draws from memory, as it was meant to: a drawn emoji is much nearer to its own training picture than
# two training pictures are to each other, and still no copy of it. The watercolour look is mostly the
# U-Net's, which is not yet done: the autoencoder alone moves these pictures by less than half as much.
#
# Now look at the last lines. They tell of the second sitting (CLIP had only the first), and in minutes of the clock:
# the core was shared, so a step took several seconds and there were few of them. Both sittings together show each emoji
# some hundreds of times; a core of its own does that in a few minutes. After the first sitting the sheet was still
# smoke in which you could tell the panda, the apples and the grapes. Nothing in the recipe changed: the second begins
# where the first had stopped, with the learning rate up again.
#
# The autoencoder, after some hundred steps of each sitting, folds emoji well; CLIP, after sixty, finds the name of 96
# in 100 among 56. The U-Net is the part that takes long, as in every model of the paper.

# %%
ALT = "Eight names that are new combinations of known words, drawn by the model."
show(picture_grid(pictures["new"], emoji["new_names"], columns=8, scale=2), alt=ALT)

# %% [markdown]
# These names are new combinations of words that CLIP has seen ("green apple" alone was seen as it is, for comparison).
# A green banana comes out as the green apple, and so do a green strawberry and a green cat; a red pear, a red lemon and
# a red bear as the red one. That is the price of knowing by heart: there was one picture whose name has "green", so
# "green" means that picture. "cat" without its "face" still gives the cat. With few pictures a model learns which
# picture a word belongs to, long before it learns what the word means.
#
# ## The other end: fifty thousand photographs
#
# The emoji were few and known by heart. What if there are many, and nobody could know them all? CIFAR-10 (Krizhevsky
# 2009) has 50,000 photographs of 32 x 32 pixels to learn from, in ten class folders, so the names of the folders are
# the sentences. One command, one hour of one core, from the shipped weights on:
#
# ```sh
# ldm-tutor train all --data runs/cifar10/train --start-from data/weights/scenes --minutes 60 --out runs/cifar
# python -m ldm_tutor.lessons.lesson_14_photos runs/cifar runs/cifar10/train runs/cifar10/test
# ```

# %%
photos, drawn_photos = load_photos()
show(picture_rows(drawn_photos), alt="Ten rows of eight pictures, one row a class of CIFAR-10, drawn by the model.")
print(told_of_photos(photos))

# %% [markdown]
# Look first. Cars, horses, ships and trucks stand there as anyone would draw them from memory. Birds and aeroplanes are
# silhouettes, deer something brown in a meadow, frogs a green heap, and cats and dogs have fur and no face. It has
# learned what the photographs of a class have in common, and that is little where the animal sits, lies or leaps.
#
# Then compare with the emoji. There each picture was seen hundreds of times, here five times, too seldom to be kept. Is
# a drawn picture a copy? A copy would be at a distance near 0. Ours are nearly as far from the nearest of 50,000
# photographs as photographs are that the model has never seen; somewhat nearer, since soft pictures are near to many.
# So the same recipe that learned 29 pictures by heart draws new ones from 50,000. How often each was seen decides.
#
# And do not trust the judge. This CLIP had five minutes and ten words, and finds the class of only four in ten
# held-out photographs. Of the drawn pictures it names many more. That does not make them better than photographs:
# guidance pulls each towards what this very CLIP holds for typical. The Fréchet distance, by the same features, says
# that a real set of photographs is far nearer.
#
# The cheapest step was the first one. The shipped autoencoder had only ever seen scenes and folds photographs badly;
# nine minutes later it folds them well. (Enlarged from 32 pixels, they have no fine edges to lose.)
#
# ## In the paper, and at full size
#
# > **In the paper.** Rombach et al. 2022 end with what you have just tried: latent models make training and sampling
# > cheap enough for many more people, without architectures made for one task. Their section on limits and society says
# > the other half: generative models can reveal parts of their training data, which matters where pictures are personal
# > and nobody was asked, and how far this holds for diffusion models was not yet understood.
# >
# > Since then it has been measured. Carlini et al. 2023 drew training pictures out of Stable Diffusion, nearly pixel by
# > pixel. They looked, and found them, among those that stood in its data most often. The check for copies in step 1 is
# > the first thing that helps.
#
# > **At full size.** The steps stay the same, and most parts are taken as they are. For a folder of photographs there
# > is little reason to train Stable Diffusion's autoencoder or CLIP anew: both have seen so much that yours is no
# > surprise to them, and step 2's first line, the PSNR before any training, tells you whether that is true. What is
# > trained is the U-Net, often only a low-rank difference to its weights. Then the scale factor is the published
# > 0.18215, since the latents are the published ones, and captions have room for 75 tokens, 77 with the two that frame
# > them. For a handful of pictures of *one* thing, people train only such a difference (LoRA, lesson 10), with a rare
# > word as its name and other pictures of the kind mixed in, so that the kind itself is not forgotten (Ruiz et al.
# > 2023, *DreamBooth*, arXiv 2208.12242).
#
# ## Exercises
#
# Each check tells you what it thinks went wrong. Nothing below depends on your answers.

# %%
exercise("your_own_pictures.views")

# %%
my_views = ...
check.your_own_pictures.views(my_views)

# %%
hint("your_own_pictures.views")

# %%
exercise("your_own_pictures.rows")


# %%
def my_rows(raw):
    """The bytes of a metadata.jsonl. Return (good rows, numbers of broken lines)."""
    ...


check.your_own_pictures.rows(my_rows)

# %%
hint("your_own_pictures.rows")

# %%
exercise("your_own_pictures.scale")


# %%
def my_scale(mean, logvar):
    """The scale factor of latents drawn from these posteriors. Two things are wrong here."""
    latents = mean + logvar.exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    return latents.std()


check.your_own_pictures.scale(my_scale)

# %%
hint("your_own_pictures.scale")

# %%
exercise("your_own_pictures.one_each")


# %%
def my_batch(captions, size):
    """The numbers of `size` pictures with different captions, by chance."""
    ...


check.your_own_pictures.one_each(my_batch)

# %%
hint("your_own_pictures.one_each")

# %%
exercise("your_own_pictures.nearest")


# %%
def my_nearest(made, train_set):
    """For each drawn picture the number of the nearest training picture."""
    ...


check.your_own_pictures.nearest(my_nearest)

# %%
hint("your_own_pictures.nearest")

# %%
exercise("your_own_pictures.copied")

# %%
made, train_set = suspects()
my_copies = ...  # such as [0, 3]
check.your_own_pictures.copied(my_copies)

# %%
hint("your_own_pictures.copied")

# %%
solution("your_own_pictures.copied")

# %% [markdown]
# ## Recap
#
# - Look at all the data before any of it is trained on. Name what is broken, leave it out, use the rest.
# - The dangerous faults are silent: a 16-bit picture, a photo that lies on its side, a caption of another picture.
# - Fine-tune the autoencoder: seconds are enough where one from nothing still draws a blur. Then measure the scale
#   factor again: it belongs to the weights.
# - Your words need a tokenizer and a text encoder of their own. In a contrastive batch, each caption stands once.
# - Without a judge you have held-out loss, FID with your CLIP's features, the CLIP score, and the nearest training
#   picture. Only the last one sees a copy.
# - Share a card, a licence and files that a stranger's program opens.
#
# ## Common mistakes
#
# - *Starting the long run first* and reading the data's error message in the morning.
# - *Repairing in code what should be repaired in the folder*, so that nobody sees it again.
# - *Keeping the old scale factor* after the encoder has changed, or training the encoder under a finished U-Net.
# - *Testing on the training pictures*: the copyist wins every such test.
# - *Calling it new* before looking at the nearest training picture.
# - *Sharing weights of pictures* that you may not share.
#
# ## Terms
#
# {{terms}}
#
# ## References
#
# - Rombach, Blattmann, Lorenz, Esser, Ommer: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022
#   (arXiv 2112.10752). The conclusion, and the section on limits and societal impact.
# - Carlini and others: *Extracting Training Data from Diffusion Models*, 2023 (arXiv 2301.13188). Memorised pictures,
#   found and counted.
# - Meehan, Chaudhuri, Dasgupta: *A Non-Parametric Test to Detect Data-Copying in Generative Models*, 2020 (arXiv
#   2004.05675). Nearer to the training set than to held-out pictures.
# - Mitchell and others: *Model Cards for Model Reporting*, 2019 (arXiv 1810.03993). What a card should say.
# - Hu and others: *LoRA: Low-Rank Adaptation of Large Language Models*, 2021 (arXiv 2106.09685). The small difference
#   that is trained at full size.
#
# ## Next stop
#
# **15 · Clinic: what broke?** You can train a model of your own now. Next, five people have, and theirs draw mush: find
# out why.
