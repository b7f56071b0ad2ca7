"""The course as data: its 17 lessons, the map with your place on it, and each lesson's box of facts."""

from __future__ import annotations

import base64
import html
import textwrap
from dataclasses import dataclass

from IPython.display import display

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons.checks import EXERCISES
from ldm_tutor.lessons.progress import passed_exercises


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a learner wants to know before a lesson; seconds and megabytes are those of two CPU cores."""

    goal: str
    needs: str
    minutes_to_read: int
    seconds_to_run: int
    memory_mb: int
    builds: str


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One stop of the course. `facts` is None while the lesson is not built."""

    number: int
    slug: str
    title: str
    question: str
    facts: Facts | None = None

    @property
    def stem(self) -> str:
        """The name of its notebook and of its source, without the ending: `00_start_here`."""
        return f"{self.number:02d}_{self.slug}"

    @property
    def built(self) -> bool:
        """Whether the lesson can be opened."""
        return self.facts is not None


_START_HERE = Facts(
    goal="Turn a sentence into a picture, then open the machine and see every step between the two.",
    needs="Python and basic PyTorch tensors; nothing about diffusion.",
    minutes_to_read=35,
    seconds_to_run=60,
    memory_mb=1200,
    builds="The whole way from sentence to picture, by hand, with the model that the course ships.",
)
_AUTOENCODER = Facts(
    goal="Write the KL autoencoder, and measure what its shrinking, its KL and its units do.",
    needs="Lesson 00; convolutions, means and variances.",
    minutes_to_read=55,
    seconds_to_run=90,
    memory_mb=1200,
    builds="Encoder and decoder, the diagonal Gaussian with its draw and its KL, a small training, the scale factor.",
)
_SHARP_RECONSTRUCTIONS = Facts(
    goal="Show why pixel losses blur, write the perceptual distance and the patch critic, measure what each buys.",
    needs="Lesson 00; lesson 01 for the autoencoder. Convolutions and gradients from PyTorch.",
    minutes_to_read=55,
    seconds_to_run=60,
    memory_mb=1100,
    builds="LPIPS from feature maps, the PatchGAN, the hinge loss, the adaptive weight, and a critic that you train.",
)
_CLIP = Facts(
    goal="Build and train the network that puts sentences and pictures into one space, and learn what it misses.",
    needs="Lesson 00; tensors, softmax and cross-entropy from PyTorch.",
    minutes_to_read=60,
    seconds_to_run=90,
    memory_mb=1400,
    builds="Byte-pair merging, both towers of CLIP, the similarity matrix, its loss, and a small CLIP that you train.",
)
_FORWARD_NOISING = Facts(
    goal="Write the noise schedules and the jump of DDPM, and measure what noise takes away, in which order.",
    needs="Lesson 00; variance and the normal distribution. Lesson 01 helps and is not required.",
    minutes_to_read=50,
    seconds_to_run=40,
    memory_mb=1400,
    builds="Three noise schedules, the closed form, the signal-to-noise ratio, and the posterior of DDPM.",
)
_UNET_DENOISER = Facts(
    goal="Write the U-Net and its training, and measure what more training does to loss and picture.",
    needs="Lessons 00 and 04; convolutions, norms and optimisers from PyTorch. Lesson 01 helps and is not required.",
    minutes_to_read=60,
    seconds_to_run=80,
    memory_mb=1200,
    builds="The time embedding, the residual block, the U-Net with its skips, and the training loop with its average.",
)
_GUIDANCE = Facts(
    goal="Write classifier-free guidance, see in one dimension what it does, and measure what it gains and costs.",
    needs="Lesson 00; lesson 04 for the noise. Lessons 06 and 07 help and are not required.",
    minutes_to_read=55,
    seconds_to_run=100,
    memory_mb=1300,
    builds="Condition dropout, guidance in one batched call, the negative prompt, and guidance in a part of the steps.",
)
_SAMPLING = Facts(
    goal="Write DDPM, DDIM and DPM-Solver++, prove how fast each gets better, and measure what a step buys.",
    needs="Lessons 00 and 04; the exponential and the logarithm. Lesson 05 helps and is not required.",
    minutes_to_read=60,
    seconds_to_run=70,
    memory_mb=1100,
    builds="Three samplers, their common loop, an exact solution to test them on, DDIM inversion, picture to picture.",
)
_CROSS_ATTENTION = Facts(
    goal="Write attention from loops to heads, and measure whether a word looks at its object, beside controls.",
    needs="Lessons 00 and 04; lesson 03 for the text tower, lesson 05 for the U-Net. Softmax and matrix products.",
    minutes_to_read=55,
    seconds_to_run=90,
    memory_mb=1000,
    builds="Cross-attention, its heads, the transformer block, and the instruments that record and edit its maps.",
)
_FULL_SIZE_MODEL = Facts(
    goal="Assemble Stable Diffusion v1 and the paper's 1.45B model, prove every block, and know what they cost.",
    needs="Lesson 00; lessons 01, 03, 05 and 07 for the blocks.",
    minutes_to_read=55,
    seconds_to_run=80,
    memory_mb=2000,
    builds="The full-size models from the same classes, name maps, parity tests, a budget, and a diffusers folder.",
)
_PROMPT_EDITING = Facts(
    goal="Change one word and keep the picture: write the edits of prompt-to-prompt, and measure what they keep.",
    needs="Lessons 00 and 07; lesson 08 for guidance. Lesson 06 helps with the real picture.",
    minutes_to_read=60,
    seconds_to_run=80,
    memory_mb=1100,
    builds="Swap, refine, re-weight, ignore and local blend as taps; alignment of sentences; edits of a real picture.",
)
_OTHER_CONDITIONS = Facts(
    goal="Steer one model with boxes, holes, small pictures, classes and maps, and measure whether it obeys.",
    needs="Lessons 00 and 07; lesson 08 for guidance. Lessons 01 and 06 help and are not required.",
    minutes_to_read=65,
    seconds_to_run=90,
    memory_mb=1200,
    builds="Box tokens, the widened U-Net, the channels of a hole, what is dropped for guidance, low-rank differences.",
)
_MEASURING = Facts(
    goal="Write the metrics that papers report, see what each is blind to, and read the pixel-against-latent study.",
    needs="Lessons 00 and 08; means, covariances and eigenvalues. Lessons 01 and 05 help and are not required.",
    minutes_to_read=60,
    seconds_to_run=75,
    memory_mb=1400,
    builds="Accuracy with intervals, FID, Inception score, precision and recall, CLIP score, each against the package.",
)
_YOUR_OWN_PICTURES = Facts(
    goal="Take a folder of pictures to a trained, measured and shared model, and find what is wrong before it costs.",
    needs="Lessons 00 and 01; lessons 03, 05 and 11 help and are not required.",
    minutes_to_read=50,
    seconds_to_run=70,
    memory_mb=1600,
    builds="A reader that survives any folder, a fine-tuned autoencoder, a CLIP and a U-Net of your own, a model card.",
)
_TRAINING_AT_SCALE = Facts(
    goal="Train one model with several processes, kill one, and get the numbers of an undisturbed run; make the bill.",
    needs="Lessons 00 and 05; lesson 12 helps. Gradients and optimisers from PyTorch.",
    minutes_to_read=55,
    seconds_to_run=100,
    memory_mb=2700,
    builds="Gradient sums, a ring, accumulation, master weights, safe checkpoints, two real processes, GPU-days.",
)
_CLINIC = Facts(
    goal="Find faults that no error tells of: measure what must hold, part by part, and read off which part is sick.",
    needs="Lessons 00, 05 and 06; lessons 01, 07 and 08 help.",
    minutes_to_read=50,
    seconds_to_run=75,
    memory_mb=2000,
    builds="Eight instruments, a chart of five faulty models, an ideal denoiser, a test of the tests.",
)
_WHAT_CAME_AFTER = Facts(
    goal="Write v-prediction, flow matching and a transformer denoiser, and measure each at equal cost.",
    needs="Lessons 04 to 07; lesson 11 for how the study is read.",
    minutes_to_read=55,
    seconds_to_run=40,
    memory_mb=1300,
    builds="Three questions for a denoiser, a walk along the flow, reflow, and the block of the diffusion transformer.",
)
_ROWS: tuple[tuple[str, str, str, Facts | None], ...] = (
    ("start_here", "Start here", "What happens between a sentence and a picture?", _START_HERE),
    ("autoencoder", "Autoencoder", "How small can a picture get?", _AUTOENCODER),
    ("sharp_reconstructions", "Sharp reconstructions", "Why are pixel losses blurry?", _SHARP_RECONSTRUCTIONS),
    ("clip", "CLIP", "How do words and pictures meet?", _CLIP),
    ("forward_noising", "Forward noising", "How do you destroy a picture gently?", _FORWARD_NOISING),
    ("unet_denoiser", "U-Net denoiser", "How do you undo it?", _UNET_DENOISER),
    ("sampling", "Sampling", "How do you draw from nothing, and how fast?", _SAMPLING),
    ("cross_attention", "Cross-attention", "How does a word reach a pixel?", _CROSS_ATTENTION),
    ("guidance", "Guidance", "How do you make it listen?", _GUIDANCE),
    ("prompt_editing", "Prompt editing", "How do you change one word and keep the picture?", _PROMPT_EDITING),
    ("other_conditions", "Other conditions", "What else can steer it?", _OTHER_CONDITIONS),
    ("measuring", "Measuring", "Is it any good?", _MEASURING),
    ("full_size_model", "Full-size model", "How do you assemble the real thing?", _FULL_SIZE_MODEL),
    ("training_at_scale", "Training at scale", "How do you train it for real?", _TRAINING_AT_SCALE),
    ("your_own_pictures", "Your own pictures", "How do you make it yours?", _YOUR_OWN_PICTURES),
    ("clinic", "Clinic", "What broke?", _CLINIC),
    ("what_came_after", "What came after", "And since?", _WHAT_CAME_AFTER),
)
LESSONS = tuple(
    Lesson(number=number, slug=slug, title=title, question=question, facts=facts)
    for number, (slug, title, question, facts) in enumerate(_ROWS)
)


def find_lesson(name: int | str) -> Lesson:
    """Return a lesson by its number (0, "00"), its slug or the name of its notebook; ConfigError for another name."""
    key = str(name)
    for lesson in LESSONS:
        if key in (str(lesson.number), f"{lesson.number:02d}", lesson.slug, lesson.stem):
            return lesson
    raise ConfigError("unknown lesson", given=name, expected=f"0 to {len(LESSONS) - 1}, or one of its slugs")


def lesson_progress(lesson: Lesson) -> tuple[int, int]:
    """How many exercises of the lesson you have passed, and how many it has."""
    addresses = {each.address for each in EXERCISES.values() if each.lesson == lesson.slug}
    return len(addresses & passed_exercises()), len(addresses)


def fact_box(lesson: int | str) -> None:
    """Show a lesson's facts: goal, what it needs, time, memory, what you build. ConfigError if it is not built."""
    found = find_lesson(lesson)
    if found.facts is None:
        raise ConfigError("fact_box: the lesson is not built yet", given=found.stem)
    facts = found.facts
    rows = {
        "Question": found.question,
        "Goal": facts.goal,
        "You need": facts.needs,
        "Time": f"about {facts.minutes_to_read} minutes to read, {facts.seconds_to_run} seconds to run on two cores",
        "Memory": f"about {facts.memory_mb} MB, no GPU, no network",
        "You build": facts.builds,
    }
    cells = "".join(
        f'<tr><th scope="row" style="text-align:left;vertical-align:top;white-space:nowrap">{name}</th>'
        f'<td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in rows.items()
    )
    table = f"<table><caption><b>Lesson {found.number:02d}: {html.escape(found.title)}</b></caption>{cells}</table>"
    text = "\n".join(f"{name}: {text}" for name, text in rows.items())
    display({"text/plain": f"Lesson {found.number:02d}: {found.title}\n{text}", "text/html": table}, raw=True)


# ---------------------------------------------------------------- the map

_COLUMNS, _PITCH_X, _PITCH_Y, _RADIUS = 6, 150, 104, 19
_LIT, _DONE, _OPEN, _COMING = "#D55E00", "#009E73", "#0072B2", "#6B6B6B"


def course_map(current: int | str) -> None:
    """Show the way through the course: the current stop lit, the passed ones ticked, the coming ones dashed.

    The picture stands on a light ground of its own, so that it reads on a light and on a dark page; under it a list
    in words says the same. A stop is ticked when all its exercises are in the progress file.
    """
    display(course_map_data(current), raw=True)


def course_map_data(current: int | str) -> dict[str, str]:
    """Return what `course_map` shows, by media type."""
    here = find_lesson(current)
    alt = f"Course map: {len(LESSONS)} stops in a row; you are at stop {here.number:02d}, {here.title}."
    data = base64.b64encode(map_svg(here).encode()).decode()
    picture = f'<img alt="{html.escape(alt, quote=True)}" src="data:image/svg+xml;base64,{data}">'
    rows = "".join(f"<li value='{each.number}'>{_row(each, here)}</li>" for each in LESSONS)
    stops = f"<details><summary>All stops, in words</summary><ol>{rows}</ol></details>"
    return {"text/plain": f"[course map] {alt}", "text/html": picture + stops}


def map_svg(here: Lesson) -> str:
    """Return the map as SVG, drawn as a road that turns at the end of each row."""
    rows = -(-len(LESSONS) // _COLUMNS)
    width, height = _COLUMNS * _PITCH_X, rows * _PITCH_Y + 34
    places = [_place(lesson.number) for lesson in LESSONS]
    road = " ".join(f"{x},{y}" for x, y in places)
    stops = "".join(_stop(lesson, here, *places[lesson.number]) for lesson in LESSONS)
    key = "ring: you are here   ·   tick: all exercises passed"
    if not all(lesson.built for lesson in LESSONS):
        key += "   ·   dashed: coming"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" text-anchor="middle">'
        f"<title>Course map, you are at stop {here.number:02d}: {html.escape(here.title)}</title>"
        f'<rect width="{width}" height="{height}" rx="12" fill="#FAFAF7" stroke="#C8C8C8"/>'
        f'<polyline points="{road}" fill="none" stroke="#B9B9B9" stroke-width="5" stroke-linejoin="round"/>'
        f'{stops}<text x="{width // 2}" y="{height - 12}" font-size="12" fill="#444444">{key}</text></svg>'
    )


def _place(number: int) -> tuple[int, int]:
    row, column = divmod(number, _COLUMNS)
    column = _COLUMNS - 1 - column if row % 2 else column
    return column * _PITCH_X + _PITCH_X // 2, row * _PITCH_Y + 40


def _stop(lesson: Lesson, here: Lesson, x: int, y: int) -> str:
    num_passed, num_all = lesson_progress(lesson)
    done, lit = bool(num_all) and num_passed == num_all, lesson == here
    color = _LIT if lit else _DONE if done else _OPEN if lesson.built else _COMING
    dashes = "" if lesson.built or lit else ' stroke-dasharray="5 4"'
    fill, ink = (color, "#FFFFFF") if lesson.built or lit else ("#FFFFFF", color)
    weight = ' font-weight="bold"' if lit else ""
    ring = (
        f'<circle cx="{x}" cy="{y}" r="{_RADIUS + 6}" fill="#FAFAF7" stroke="{color}" stroke-width="3"/>' if lit else ""
    )
    tick = (
        f'<circle cx="{x + 18}" cy="{y - 14}" r="9" fill="#FFFFFF" stroke="{_DONE}" stroke-width="2"/>'
        f'<path d="M{x + 13} {y - 14} l4 4 l6 -8" fill="none" stroke="{_DONE}" stroke-width="2.5"/>'
        if done
        else ""
    )
    halo = 'stroke="#FAFAF7" stroke-width="5" paint-order="stroke"'  # where the road turns below a name
    lines = textwrap.wrap(lesson.title, 15)
    label = "".join(
        f'<text x="{x}" y="{y + 42 + 15 * k}" fill="#222222" {halo}{weight}>{html.escape(line)}</text>'
        for k, line in enumerate(lines)
    )
    return (
        f'{ring}<circle cx="{x}" cy="{y}" r="{_RADIUS}" fill="{fill}" stroke="{color}" stroke-width="2.5"{dashes}/>'
        f'<text x="{x}" y="{y + 5}" fill="{ink}" font-weight="bold">{lesson.number:02d}</text>{tick}{label}'
    )


def _row(lesson: Lesson, here: Lesson) -> str:
    num_passed, num_all = lesson_progress(lesson)
    name = html.escape(lesson.title)
    if lesson.built:
        name = f'<a href="{lesson.stem}.ipynb">{name}</a>'
    if lesson == here:
        name = f'<b aria-current="step">{name} (you are here)</b>'
    state = f" · {num_passed} of {num_all} exercises passed" if num_all else "" if lesson.built else " · coming"
    return f"{name}: {html.escape(lesson.question)}{state}"
