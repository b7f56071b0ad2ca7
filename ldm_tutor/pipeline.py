"""Sentence in, picture out: the one file that knows every part.

tokens -> text encoder -> context; noise -> U-Net, N times, with guidance -> latents; latents -> decoder -> picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ldm_tutor.attention_maps.ignore import encode_weighted
from ldm_tutor.attention_maps.inversion import INNER_STEPS, Inversion, StepwiseGuided, ddim_path, null_text
from ldm_tutor.attention_maps.plan import Change, EditPlan
from ldm_tutor.attention_maps.watch import watch
from ldm_tutor.conditions.channels import check_pictures, clean_latents
from ldm_tutor.config import FOREIGN_DRAWING, DrawingConfig, ModelConfig, ScheduleConfig
from ldm_tutor.errors import ConfigError, PromptError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.word_pieces import WordPieces
from ldm_tutor.presets import PaperModel
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import SampleState, sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.sampling.steps import timestep_grid
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Context, Latents, Pictures
from ldm_tutor.weights.course_clip import load_course_clip
from ldm_tutor.weights.files import load_model, read_header
from ldm_tutor.weights.shipped import resolve

PARTS = {"autoencoder": "autoencoder.safetensors", "clip": "clip.safetensors", "unet": "unet.safetensors"}


class DrawingPipeline:
    """All parts of one latent diffusion model that is told by words, ready to draw: what its kinds have in common.

    Pictures are float32 (b, 3, H, W) in [-1, 1]. One seed gives one picture, alone or in any batch. U-Net and text
    encoder may be in half precision: the U-Net computes in the type of its context, and the latents stay in float32.
    `drawing`: sampler and guidance of `draw`, `steps` and edits that name none.
    """

    config: ModelConfig | PaperModel
    tokenizer: Tokenizer | WordPieces
    unet: UNet
    autoencoder: Autoencoder
    schedule: NoiseSchedule
    drawing: DrawingConfig

    @property
    def text_encoder(self) -> TextEncoder | BertEncoder:
        """What makes vectors of the words, which the U-Net reads."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    @property
    def precision(self) -> torch.dtype:
        """The type of the numbers that the U-Net computes with."""
        return self.unet.conv_in.weight.dtype

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str]) -> Context:
        """Return the context of each sentence, (b, tokens, width); an empty text gives the unconditional context."""
        if isinstance(prompts, str):
            raise PromptError("Pipeline.embed", given=prompts, expected='a list of sentences, e.g. ["a red cat"]')
        rows = [self.tokenizer.empty(1) if prompt == "" else self.tokenizer([prompt]) for prompt in prompts]
        return self.text_encoder(torch.cat(rows).to(self.device))

    def noise(self, seeds: Sequence[int]) -> Latents:
        """Return the pure noise that pictures with these seeds start from, (b, c, h, w)."""
        return PictureNoise(seeds).initial(self.config.latent_shape).to(self.device)

    @torch.inference_mode()
    def decode(self, latents: Latents) -> Pictures:
        """Return the pictures of scaled latents."""
        return self.autoencoder.to_pictures(latents)

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_steps: int = 20,
        guidance: float | None = None,
        sampler: str | None = None,
        negative: Sequence[str] | None = None,
        eta: float = 0.0,
    ) -> Pictures:
        """Draw one picture per sentence and seed.

        `guidance`: 1 follows the sentence as trained, more insists on it. It and `sampler` are those of `drawing` where
        none is given. `negative`: what to move away from, one text per picture. Errors: PromptError for a sentence that
        cannot be read, ConfigError for a setting.
        """
        states = self.steps(
            prompts, seeds, num_steps=num_steps, guidance=guidance, sampler=sampler, negative=negative, eta=eta
        )
        return self.decode(_last(states).latents)

    def steps(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_steps: int = 20,
        guidance: float | None = None,
        sampler: str | None = None,
        negative: Sequence[str] | None = None,
        eta: float = 0.0,
        start: Latents | SampleState | None = None,
        start_at: int = 0,
        edit: Callable[[SampleState], Latents] | None = None,
        context: Context | None = None,
    ) -> Iterator[SampleState]:
        """Yield the state after every step of `draw`: stop, look, and go on.

        `start` and `start_at` begin from given latents at step `start_at` of the run (see `redraw`); a state of an
        earlier run goes on from there. `edit` may replace the latents after each step; `context`: vectors for the
        sentences other than `embed` gives.
        """
        self._check_batch(prompts, seeds, negative)
        if start is None and start_at:
            raise ConfigError("Pipeline.steps: start_at", given=start_at, expected="0, or `start` given too")
        context = self.embed(prompts) if context is None else context
        empty = self.embed(list(negative) if negative is not None else [""])
        guidance = self.drawing.guidance if guidance is None else guidance
        denoiser = Guided(self.unet, context, empty, guidance)
        run = sample(
            denoiser,
            self.noise(seeds) if start is None else start,
            self.schedule,
            sampler=self.drawing.sampler if sampler is None else sampler,
            num_steps=num_steps,
            eta=eta,
            noise=PictureNoise(seeds),
            start_at=start_at,
            edit=edit,
        )
        while True:
            with torch.inference_mode():  # held only while a step runs, never while the caller looks
                state = next(run, None)
            if state is None:
                return
            yield state

    def redraw(
        self,
        pictures: Pictures,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        strength: float = 0.6,
        num_steps: int = 20,
        guidance: float = 4.0,
        sampler: str = "dpm++",
    ) -> Pictures:
        """Picture to picture: noise `pictures` by a share `strength` (0 keeps, 1 forgets) and draw from there.

        `pictures`: (b, 3, H, W) in [-1, 1], one per seed or one for all; sides as the model's or other multiples.
        """
        if not 0 <= strength <= 1:
            raise ConfigError("Pipeline.redraw: strength", given=strength, expected="0 (keep) to 1 (forget)")
        self._check_batch(prompts, seeds, None)
        check_pictures(pictures, "Pipeline.redraw: pictures", (1, len(seeds)))
        grid = timestep_grid(self.schedule, num_steps)
        start_at = num_steps - round(strength * num_steps)
        latents = clean_latents(self.autoencoder, pictures).expand(len(seeds), -1, -1, -1)
        if start_at == num_steps:
            return self.decode(latents)
        noise = PictureNoise(seeds).initial(latents.shape[1:]).to(latents)
        noisy = self.schedule.add_noise(latents, noise, torch.full((len(seeds),), grid[start_at]))
        states = self.steps(
            prompts, seeds, num_steps=num_steps, guidance=guidance, sampler=sampler, start=noisy, start_at=start_at
        )
        return self.decode(_last(states).latents)

    @staticmethod
    def _check_batch(prompts: Sequence[str], seeds: Sequence[int], negative: Sequence[str] | None) -> None:
        if isinstance(prompts, str):
            raise PromptError("Pipeline: prompts", given=prompts, expected='a list of sentences, e.g. ["a red cat"]')
        if isinstance(negative, str):
            raise PromptError("Pipeline: negative", given=negative, expected="a list of texts, one per sentence")
        for prompt in prompts:
            if not isinstance(prompt, str) or not prompt.strip():
                raise PromptError(
                    "Pipeline: an empty sentence", given=prompt, expected="a sentence such as 'a red cat at night'"
                )
        if not prompts or len(prompts) != len(seeds) or (negative is not None and len(negative) != len(prompts)):
            raise ConfigError(
                "Pipeline: one seed (and one negative text, if any) per sentence",
                given=(len(prompts), len(seeds)),
                expected="equal numbers, at least one",
            )


@dataclass(frozen=True)
class Pipeline(DrawingPipeline):
    """A model that reads CLIP's words: the course's own, Stable Diffusion. Make one with `load_pipeline`.

    It draws as every `DrawingPipeline` does, and edits.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    clip: Clip
    unet: UNet
    autoencoder: Autoencoder
    schedule: NoiseSchedule
    drawing: DrawingConfig = DrawingConfig()

    @property
    def text_encoder(self) -> TextEncoder:
        """CLIP's text tower, whose vectors the U-Net reads."""
        return self.clip.text

    def edit(
        self, change: Change, *, num_steps: int = 20, guidance: float | None = None, sampler: str | None = None
    ) -> Pictures:
        """Draw the picture of `change.source` and, beside it, the same picture changed: (2, 3, H, W).

        Prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626): both start from one noise, and the second takes over
        attention maps of the first as `change.injection` says. See `edit_many` for several.
        """
        before, after = self.edit_many([change], num_steps=num_steps, guidance=guidance, sampler=sampler)
        return torch.cat([before, after])

    def edit_many(
        self,
        changes: Sequence[Change],
        *,
        num_steps: int = 20,
        guidance: float | None = None,
        sampler: str | None = None,
    ) -> tuple[Pictures, Pictures]:
        """Draw all changes in one batch; return the sources' pictures and the changed ones, in the order of `changes`.

        Errors: PromptError for words that are not in their sentence and sentences that cannot be aligned, ConfigError
        for a setting or a change of nothing, AttentionTapError where the U-Net is compiled or has no such layers.
        """
        plan = EditPlan(self.tokenizer, changes, num_steps)
        latents = _last(self.edit_steps(plan, num_steps=num_steps, guidance=guidance, sampler=sampler)).latents
        return self.decode(latents[plan.sources]), self.decode(latents[plan.targets])

    def edit_steps(
        self,
        plan: EditPlan,
        *,
        num_steps: int,
        guidance: float | None = None,
        sampler: str | None = None,
        inversion: Inversion | None = None,
    ) -> Iterator[SampleState]:
        """Yield the state after every step of an edit, one row per entry of `plan.prompts`.

        `num_steps` is that of the plan, ConfigError otherwise. With an `inversion` (of one picture, and of so many
        steps) all rows start from its noise and go by DDIM, with its empty contexts.
        """
        if num_steps != plan.num_steps:
            raise ConfigError("edit_steps: num_steps", given=num_steps, expected=f"{plan.num_steps}, as the plan has")
        with torch.inference_mode():
            tokens = self.tokenizer(plan.prompts).to(self.device)
            context = encode_weighted(self.text_encoder, tokens, plan.spoken)
        if inversion is None:
            run = self.steps(
                plan.prompts,
                plan.seeds,
                num_steps=num_steps,
                guidance=guidance,
                sampler=sampler,
                edit=plan.blend,
                context=context,
            )
        else:
            if (inversion.num_steps, len(inversion.noise)) != (num_steps, 1):
                given = inversion.num_steps, len(inversion.noise)
                raise ConfigError("edit: the inversion", given=given, expected=f"{num_steps} steps of one picture")
            scale = self.drawing.guidance if guidance is None else guidance
            denoiser = StepwiseGuided(self.unet, context, inversion.empties, scale)
            start = inversion.noise.expand(len(plan.prompts), -1, -1, -1)
            run = sample(denoiser, start, self.schedule, num_steps=num_steps, edit=plan.blend)
        while True:
            with watch(self.unet, plan.tap, "all"), torch.inference_mode():  # held only while a step runs
                state = next(run, None)
            if state is None:
                return
            yield state

    def invert(
        self,
        picture: Pictures,
        sentence: str,
        *,
        num_steps: int = 20,
        guidance: float = 4.0,
        inner_steps: int = INNER_STEPS,
    ) -> Inversion:
        """Find the noise, and the empty contexts, from which the guided drawing of `sentence` is this picture.

        `picture`: (1, 3, H, W) in [-1, 1]. DDIM inversion, then null-text inversion with `inner_steps` steps of Adam
        for each step of the drawing; with 0 of them it is DDIM inversion alone.
        """
        self._check_batch([sentence], [0], None)
        if self.precision != torch.float32:
            raise ConfigError("Pipeline.invert: too coarse to learn by", given=self.precision, expected="float32")
        check_pictures(picture, "Pipeline.invert: picture", (1,))
        latents = clean_latents(self.autoencoder, picture)
        with torch.no_grad():
            context = self.text_encoder(self.tokenizer([sentence]).to(self.device))
            empty = self.text_encoder(self.tokenizer.empty(1).to(self.device))
        path = ddim_path(self.unet, latents, context, self.schedule, num_steps)
        found = null_text(self.unet, path, context, empty, self.schedule, guidance, inner_steps=inner_steps)
        return replace(found, sentence=sentence)

    def edit_picture(
        self, inversion: Inversion, changes: Sequence[Change], *, guidance: float | None = None
    ) -> Pictures:
        """Draw an inverted picture again, and its changes: (1 + number of changes, 3, H, W).

        `guidance`: that of the inversion, unless another is given; with another the picture does not come back. All
        changes have the inversion's sentence as their source, and one seed; ConfigError otherwise.
        """
        if len({(change.source, change.seed) for change in changes}) != 1:
            raise ConfigError("edit_picture: changes", given=len(changes), expected="some, with one source and seed")
        if inversion.sentence not in (None, changes[0].source):
            told = f"the inversion's sentence, {inversion.sentence!r}"
            raise ConfigError("edit_picture: the changes' source", given=changes[0].source, expected=told)
        guidance = inversion.guidance if guidance is None else guidance
        plan = EditPlan(self.tokenizer, changes, inversion.num_steps)
        states = self.edit_steps(plan, num_steps=inversion.num_steps, guidance=guidance, inversion=inversion)
        return self.decode(_last(states).latents)


@dataclass(frozen=True)
class BertPipeline(DrawingPipeline):
    """The paper's own text-to-picture model, with a text encoder of its own that reads BERT's words. It does not edit.

    Rombach et al. 2022 (arXiv 2112.10752), section 4.3.1.
    """

    config: PaperModel
    tokenizer: WordPieces
    bert: BertEncoder
    unet: UNet
    autoencoder: Autoencoder
    schedule: NoiseSchedule
    drawing: DrawingConfig = FOREIGN_DRAWING

    @property
    def text_encoder(self) -> BertEncoder:
        """The encoder that was trained together with the U-Net."""
        return self.bert


def _last(states: Iterator[SampleState]) -> SampleState:
    return deque(states, maxlen=1).pop()


def load_pipeline(folder: str | Path | None = None, device: str = "cpu") -> Pipeline:
    """Load a model from a folder of weights; without one, the model that the course ships.

    Raises WeightsError naming the file where one is missing, broken, or of a size that does not fit the others.
    """
    root = resolve(folder)
    paths = {kind: root / name for kind, name in PARTS.items()}
    autoencoder = load_model(paths["autoencoder"], "autoencoder", device=device)
    clip, tokenizer = load_course_clip(root, device)
    unet = load_model(paths["unet"], "unet", device=device)
    header = read_header(paths["unet"])
    objective = header["metadata"].get("objective", "noise")
    if objective != "noise":
        fix = "walk with ldm_tutor.sampling.velocity, as lesson 16 does"
        raise WeightsError(f"{paths['unet']}: what the U-Net answers with", given=objective, expected="noise", fix=fix)
    schedule = ScheduleConfig.from_dict(header["metadata"].get("schedule", ScheduleConfig().to_dict()))
    try:
        config = ModelConfig(
            name=root.name,
            picture_size=clip.config.image.picture_size,
            autoencoder=autoencoder.config,
            clip=clip.config,
            unet=unet.config,
            schedule=schedule,
        )
    except ConfigError as error:
        raise WeightsError(f"the parts in {root} do not fit together ({error})", fix="train them together") from error
    return Pipeline(config, tokenizer, clip, unet, autoencoder, NoiseSchedule(schedule))
