"""Boxes, holes, small pictures, classes and label maps steer the same model: pictures in, pictures out.

Each condition lies in one small file: what it adds to the shipped model's U-Net (`ldm_tutor.models.condition`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ldm_tutor.conditions.channels import (
    HOLE_FORMS,
    Masks,
    check_masks,
    check_pictures,
    clean_latents,
    inpainting_channels,
    mean_filled,
    padded,
    shrink_masks,
    small_picture_channels,
)
from ldm_tutor.conditions.given import Conditioned, Conditioning
from ldm_tutor.conditions.tiles import Tiled
from ldm_tutor.config import CONDITIONS, ConditionConfig
from ldm_tutor.data.boxes import Box, tokenize_boxes
from ldm_tutor.data.degrade import back_project as back_project  # lessons take it from here
from ldm_tutor.data.maps import LABELS
from ldm_tutor.data.scenes.world import KINDS
from ldm_tutor.errors import ConfigError, ShapeError, WeightsError
from ldm_tutor.models.condition import fingerprint, steered_unet
from ldm_tutor.models.tuning import in_tiles
from ldm_tutor.models.unet import UNet
from ldm_tutor.pipeline import Pipeline, load_pipeline
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import SampleState, sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.shapes import Context, Latents, Num, Pictures, Tensor
from ldm_tutor.weights.files import load_model, read_header
from ldm_tutor.weights.shipped import resolve

UPSCALING = 4  # a small picture has a quarter of the side: the size of the latents
MOST_PIXELS = 256  # side of the largest small picture
FOLDER = "conditions"  # of the shipped conditions
_FITTED = 64  # largest side of latents that are corrected at every step

Given = tuple[Conditioning, Conditioning]  # what is given, and what it looks like when it is dropped


@dataclass(frozen=True)
class Steered:
    """A pipeline, and the U-Net and encoder of one condition. Make one with `load_steered`.

    Pictures are float32 (b, 3, H, W) in [-1, 1]. One seed gives one picture, alone or in any batch. `prompts` None, or
    an empty text among them, draws without a sentence.
    """

    pipeline: Pipeline
    config: ConditionConfig
    unet: UNet
    encoder: nn.Module | None

    def from_boxes(
        self,
        layouts: Sequence[Sequence[Box]],
        seeds: Sequence[int],
        *,
        prompts: Sequence[str] | None = None,
        num_steps: int = 20,
        guidance: float = 3.0,
        sampler: str = "dpm++",
    ) -> Pictures:
        """Draw one picture per layout: each box's object in its box, and what the sentence says, if there is one."""
        given = self.given_boxes(layouts, prompts)
        return self._draw(given, seeds, num_steps=num_steps, guidance=guidance, sampler=sampler)

    def inpaint(
        self,
        pictures: Pictures,
        masks: Masks,
        seeds: Sequence[int],
        *,
        prompts: Sequence[str] | None = None,
        num_steps: int = 20,
        guidance: float = 1.5,
        sampler: str = "dpm++",
    ) -> Pictures:
        """Fill the holes, where `masks` (b, 1, H, W) is 1; outside of them every pixel stays as it is.

        A mask of zeros gives the picture back; a mask of ones draws a new one. The U-Net reads the masked picture, and
        after every step the latents outside of the hole are those of the picture again, as in `repaint`; what is under
        the hole is never read.
        """
        given = self.given_hole(pictures, masks, prompts)
        keep = self.keeping(pictures, masks, seeds)
        states = self.steps(given, seeds, num_steps=num_steps, guidance=guidance, sampler=sampler, edit=keep)
        return compose(self.pipeline.decode(deque(states, maxlen=1).pop().latents), pictures, masks)

    def upscale(
        self,
        small_pictures: Pictures,
        seeds: Sequence[int],
        *,
        prompts: Sequence[str] | None = None,
        num_steps: int = 20,
        guidance: float = 1.0,
        sampler: str = "ddim",
        consistent: bool = True,
    ) -> Pictures:
        """Draw pictures of four times the side, of which `small_pictures` (b, 3, h, w) are the shrunk form.

        Larger ones than the model was trained on are denoised in overlapping tiles. `consistent`: correct what the
        model aims at after every step (up to a side of 64 pixels), and the result, until it is the small picture when
        shrunk; leave it out for small pictures with noise or JPEG in them.
        """
        side = self.pipeline.config.latent_shape[-1]
        whole, (height, width) = padded(small_pictures, side, MOST_PIXELS)
        given, dropped = self.given_small(whole, prompts)
        denoiser: Guided = Conditioned(self.unet, given, dropped, guidance)
        if max(whole.shape[-2:]) > side:
            denoiser = Tiled(denoiser, side)
        shape = (self.pipeline.config.latent_shape[0], *whole.shape[-2:])
        fit = _fitter(self.pipeline, whole) if consistent and max(shape) <= _FITTED else None
        states = self._sample(denoiser, seeds, shape, num_steps=num_steps, sampler=sampler, edit=fit)
        latents = deque(states, maxlen=1).pop().latents
        with torch.inference_mode():
            drawn = in_tiles(self.pipeline.decode, latents, self.pipeline.config.autoencoder, tile=2 * side)
            if consistent:
                drawn = back_project(drawn, whole.to(drawn))
        return drawn[..., : UPSCALING * height, : UPSCALING * width]

    def from_classes(
        self,
        classes: Sequence[int | str],
        seeds: Sequence[int],
        *,
        num_steps: int = 20,
        guidance: float = 3.0,
        sampler: str = "dpm++",
    ) -> Pictures:
        """Draw one object of each class, a number or a name of KINDS; no sentence is read."""
        given = self.given_classes(classes)
        return self._draw(given, seeds, num_steps=num_steps, guidance=guidance, sampler=sampler)

    def from_map(
        self,
        label_maps: Num[Tensor, "b H W"],
        seeds: Sequence[int],
        *,
        prompts: Sequence[str] | None = None,
        num_steps: int = 20,
        guidance: float = 2.0,
        sampler: str = "dpm++",
    ) -> Pictures:
        """Draw what each label map (numbers of LABELS per pixel) says, pixel by pixel."""
        given = self.given_map(label_maps, prompts)
        return self._draw(given, seeds, num_steps=num_steps, guidance=guidance, sampler=sampler)

    @torch.inference_mode()
    def given_boxes(self, layouts: Sequence[Sequence[Box]], prompts: Sequence[str] | None = None) -> Given:
        """Return the sentences' vectors with the boxes' behind them; dropped: the empty sentence and no box."""
        self._need("layout", "given_boxes")
        context, empty = self._sentences(prompts, len(layouts))
        boxes = self._encode(tokenize_boxes([[], *layouts]))
        return Conditioning(context).with_tokens(boxes[1:]), Conditioning(empty).with_tokens(boxes[:1])

    @torch.inference_mode()
    def given_hole(self, pictures: Pictures, masks: Masks, prompts: Sequence[str] | None = None) -> Given:
        """Return mask and masked picture beside the sentences; dropped: the empty sentence beside the same picture."""
        self._need("inpainting", "given_hole")
        check_pictures(pictures, "inpaint: pictures")
        check_masks(pictures, masks, "inpaint: masks")
        self._check_sides(pictures)
        context, empty = self._sentences(prompts, len(pictures))
        channels = inpainting_channels(self.pipeline.autoencoder, pictures, masks)
        return Conditioning(context, channels), Conditioning(empty, channels)

    @torch.inference_mode()
    def given_small(self, small_pictures: Pictures, prompts: Sequence[str] | None = None) -> Given:
        """Return the small pictures beside the sentences; dropped: the empty sentence beside the small pictures."""
        self._need("upscaling", "given_small")
        context, empty = self._sentences(prompts, len(small_pictures))
        side = (small_pictures.shape[-2], small_pictures.shape[-1])
        channels = small_picture_channels(small_pictures, side).to(self.pipeline.device)
        return Conditioning(context, channels), Conditioning(empty, channels)

    @torch.inference_mode()
    def given_classes(self, classes: Sequence[int | str]) -> Given:
        """Return one token per picture, that of its class; dropped: the last class, which means none."""
        self._need("class", "given_classes")
        if isinstance(classes, str):
            raise ConfigError("from_classes", given=classes, expected="a list of classes, such as ['cat', 'dog']")
        for each in classes:
            known = each in KINDS if isinstance(each, str) else type(each) is int and 0 <= each < len(KINDS)
            if not known:
                expected = f"one of {KINDS}, or 0 to {len(KINDS) - 1}"
                raise ConfigError("from_classes: class", given=each, expected=expected)
        numbers = [KINDS.index(each) if isinstance(each, str) else each for each in classes]
        tokens = self._encode(torch.tensor([len(KINDS), *numbers]))
        return Conditioning(tokens[1:]), Conditioning(tokens[:1])

    @torch.inference_mode()
    def given_map(self, label_maps: Num[Tensor, "b H W"], prompts: Sequence[str] | None = None) -> Given:
        """Return the shrunk label maps beside the sentences; dropped: the empty sentence, and channels of zeros."""
        self._need("semantic", "given_map")
        side = self.pipeline.config.picture_size
        if label_maps.dim() != 3 or tuple(label_maps.shape[1:]) != (side, side) or label_maps.is_floating_point():
            given = (label_maps.dtype, tuple(label_maps.shape))
            expected = f"whole numbers, (b, {side}, {side}), each a label of {LABELS}"
            raise ShapeError("from_map: the label maps", given=given, expected=expected)
        context, empty = self._sentences(prompts, len(label_maps))
        channels = self._encode(label_maps)
        return Conditioning(context, channels), Conditioning(empty, torch.zeros_like(channels[:1]))

    def steps(
        self,
        given: Given,
        seeds: Sequence[int],
        *,
        num_steps: int = 20,
        guidance: float = 3.0,
        sampler: str = "dpm++",
        edit: Callable[[SampleState], Latents] | None = None,
    ) -> Iterator[SampleState]:
        """Yield the state after every step of drawing what one of the methods above gives; `edit` as in `sample`."""
        denoiser = Conditioned(self.unet, *given, guidance)
        shape = self.pipeline.config.latent_shape
        if given[0].channels is not None:
            shape = (shape[0], *given[0].channels.shape[-2:])
        yield from self._sample(denoiser, seeds, shape, num_steps=num_steps, sampler=sampler, edit=edit)

    def keeping(self, pictures: Pictures, masks: Masks, seeds: Sequence[int]) -> Callable[[SampleState], Latents]:
        """Return the `edit` for `steps` by which `inpaint` keeps the latents outside of the holes."""
        return _keeper(self.pipeline, mean_filled(pictures, masks), masks, seeds)[0]

    def _draw(self, given: Given, seeds: Sequence[int], *, num_steps: int, guidance: float, sampler: str) -> Pictures:
        states = self.steps(given, seeds, num_steps=num_steps, guidance=guidance, sampler=sampler)
        return self.pipeline.decode(deque(states, maxlen=1).pop().latents)

    def _sample(
        self,
        denoiser: Guided,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        *,
        num_steps: int,
        sampler: str,
        edit: Callable[[SampleState], Latents] | None = None,
    ) -> Iterator[SampleState]:
        if len(seeds) != denoiser.num_pictures or not len(seeds):
            given = (len(seeds), denoiser.num_pictures)
            raise ConfigError("one seed per picture", given=given, expected="equal numbers, at least one")
        noise = PictureNoise(seeds)
        start = noise.initial(shape).to(self.pipeline.device)
        schedule = self.pipeline.schedule
        run = sample(denoiser, start, schedule, sampler=sampler, num_steps=num_steps, noise=noise, edit=edit)
        while True:
            with torch.inference_mode():  # held only while a step runs, never while the caller looks
                state = next(run, None)
            if state is None:
                return
            yield state

    def _sentences(self, prompts: Sequence[str] | None, num: int) -> tuple[Context, Context]:
        """Return the vectors of the sentences, (num, m, d), and those of the empty one, (1, m, d)."""
        return _sentences(self.pipeline, prompts, num)

    def _encode(self, inputs: Tensor) -> Tensor:
        if self.encoder is None:
            raise ConfigError(f"the condition {self.config.kind!r} has no encoder")
        return self.encoder(inputs.to(self.pipeline.device))

    def _need(self, kind: str, method: str) -> None:
        if self.config.kind != kind:
            raise ConfigError(
                f"Steered.{method}", given=f"the condition {self.config.kind!r}", fix=f"load_steered({kind!r}) can"
            )

    def _check_sides(self, pictures: Pictures) -> None:
        factor = self.pipeline.config.autoencoder.downsampling * 2 ** (len(self.config.unet.channel_mult) - 1)
        if pictures.shape[-1] % factor or pictures.shape[-2] % factor or not pictures.numel():
            expected = f"(b, 3, H, W), H and W multiples of {factor}"
            raise ShapeError("inpaint: the pictures", given=tuple(pictures.shape), expected=expected)


def load_steered(
    kind: str, folder: str | Path | None = None, device: str | None = None, *, pipeline: Pipeline | None = None
) -> Steered:
    """Load the condition `kind` of CONDITIONS from `folder` (without one, the shipped conditions), and its pipeline.

    `pipeline`: one that is already loaded, in float32, of the model that the condition was trained with (by default the
    shipped one). `device`: the pipeline's, and the CPU without one. Raises WeightsError where the two do not fit.
    """
    if kind not in CONDITIONS:
        raise ConfigError("load_steered", given=kind, expected=f"one of {CONDITIONS}")
    if pipeline is not None and pipeline.precision != torch.float32:
        raise ConfigError("load_steered: the pipeline's numbers", given=pipeline.precision, expected="float32")
    if pipeline is not None and device is not None and torch.device(device).type != pipeline.device.type:
        raise ConfigError("load_steered: device", given=device, expected=f"{pipeline.device}, as the pipeline has")
    device = device or ("cpu" if pipeline is None else str(pipeline.device))
    path = resolve(folder, FOLDER) / f"{kind}.safetensors"
    condition = load_model(path, "condition", device=device)
    if condition.config.kind != kind:
        raise WeightsError(f"{path}: another condition", given=condition.config.kind, expected=kind)
    base = load_pipeline(None, device) if pipeline is None else pipeline
    made_for = read_header(path)["metadata"].get("base")
    if base.unet.config != condition.config.unet or made_for not in (None, fingerprint(base.unet)):
        raise WeightsError(
            f"{path}: its differences belong to another U-Net than the pipeline's",
            fix="give the pipeline that it was trained with, or train the condition anew",
        )
    unet = steered_unet(condition, base.unet)
    return Steered(base, condition.config, unet, condition.encoder)


# ---------------------------------------------------------------- without training


def repaint(
    pipeline: Pipeline,
    pictures: Pictures,
    masks: Masks,
    seeds: Sequence[int],
    *,
    prompts: Sequence[str] | None = None,
    num_steps: int = 20,
    guidance: float = 4.0,
    sampler: str = "dpm++",
) -> Pictures:
    """Fill holes with the plain model: after every step, everything outside the hole is the noised original again.

    So the model never reads the picture as a picture, only as what noise left of it: the naive way, and the measure
    for `Steered.inpaint`. Same arguments, same promise outside the hole.
    """
    check_pictures(pictures, "repaint: pictures")
    check_masks(pictures, masks, "repaint: masks")
    context, empty = _sentences(pipeline, prompts, len(pictures))
    keep, start = _keeper(pipeline, pictures, masks, seeds)
    noise = PictureNoise(seeds)
    denoiser = Guided(pipeline.unet, context, empty, guidance)
    with torch.inference_mode():
        run = sample(denoiser, start, pipeline.schedule, sampler=sampler, num_steps=num_steps, noise=noise, edit=keep)
        latents = deque(run, maxlen=1).pop().latents
    return compose(pipeline.decode(latents), pictures, masks)


def _keeper(
    pipeline: Pipeline, pictures: Pictures, masks: Masks, seeds: Sequence[int]
) -> tuple[Callable[[SampleState], Latents], Latents]:
    """Return the edit that puts the pictures' own latents, noised like the step, outside the hole; and the noise."""
    if len(seeds) != len(pictures):
        raise ConfigError("one seed per picture", given=(len(seeds), len(pictures)), expected="equal numbers")
    with torch.inference_mode():
        original = clean_latents(pipeline.autoencoder, pictures)
        hole = shrink_masks(masks, pipeline.config.autoencoder.downsampling, HOLE_FORMS["scenes"]).to(original)
    noise = PictureNoise(seeds).initial(original.shape[1:]).to(original)

    def keep(state: SampleState) -> Latents:
        known = original
        if state.t_next is not None:
            known = pipeline.schedule.add_noise(original, noise, torch.full((len(original),), state.t_next))
        return hole * state.latents + (1 - hole) * known

    return keep, noise


def _fitter(pipeline: Pipeline, small: Pictures) -> Callable[[SampleState], Latents]:
    """Return the edit that moves each step towards clean latents whose picture, shrunk, is the small picture."""

    def fit(state: SampleState) -> Latents:
        aimed = back_project(pipeline.decode(state.x0_hat), small.to(state.latents))
        moved = clean_latents(pipeline.autoencoder, aimed) - state.x0_hat
        signal = 1.0 if state.t_next is None else float(pipeline.schedule.alpha_bar[state.t_next]) ** 0.5
        return state.latents + signal * moved

    return fit


def compose(drawn: Pictures, pictures: Pictures, masks: Masks) -> Pictures:
    """Return `drawn` in the holes and `pictures`, bit for bit, everywhere else."""
    return torch.where(masks.to(pictures) > 0.5, drawn.to(pictures), pictures)


def _sentences(pipeline: Pipeline, prompts: Sequence[str] | None, num: int) -> tuple[Context, Context]:
    if isinstance(prompts, str) or (prompts is not None and len(prompts) != num):
        given = prompts if isinstance(prompts, str) else len(prompts or ())
        raise ConfigError("prompts", given=given, expected=f"a list of {num} sentences, or None")
    empty = pipeline.embed([""])
    if prompts is None:
        return empty.expand(num, -1, -1), empty
    return pipeline.embed([prompt if prompt.strip() else "" for prompt in prompts]), empty
