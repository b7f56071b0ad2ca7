"""Does a word look at its object? Attention maps beside the true masks of the scenes, and beside controls.

The scenes are noised to a time step and shown to the U-Net once, so that where the object is, is known: nothing is
drawn. A map is a field over the positions of a feature map; it is brought to the mask's size before it is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ldm_tutor.attention_maps.align import sentence_words as sentence_words  # lessons take it from here
from ldm_tutor.attention_maps.align import word_places as word_places
from ldm_tutor.attention_maps.record import Record, Recorder
from ldm_tutor.attention_maps.watch import watch
from ldm_tutor.data.scenes.datasets import ScenePictures
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.metrics.figures import mean, share
from ldm_tutor.models.tokenizer import Tokenizer, split_words
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import CallInfo, declare_call
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Bool, Context, Float, Latents, Tensor

BACKGROUND_WORDS = ("moon", "night", "sunset", "day", "daylight", "snow", "beach", "sea")
FEWEST_PIXELS = 12  # an object that is hidden but for less than this is no case


@dataclass(frozen=True)
class Case:
    """One object that its sentence names once, with its visible pixels; `row` is its scene.

    `tokens`: the places of its word in the context. `others`: those of the word that serves as control: the other
    object's, else the background's, else the first word.
    """

    row: int
    kind: str
    tokens: tuple[int, ...]
    others: tuple[int, ...]
    mask: Bool[Tensor, "H W"]


def find_cases(tokenizer: Tokenizer, scenes: ScenePictures) -> list[Case]:
    """Return the objects whose kind stands in their sentence exactly once, and in their scene too, with their masks.

    `scenes` must be rendered with masks; ConfigError otherwise.
    """
    if scenes.foreground is None:
        raise ConfigError("find_cases: scenes without masks", fix="render_scenes(..., with_masks=True)")
    cases = []
    for row, (caption, scene) in enumerate(zip(scenes.captions, scenes.scenes, strict=True)):
        words, kinds = split_words(caption), [each.kind for each in scene.objects]
        for number, kind in enumerate(kinds, 1):
            mask = scenes.foreground[row] == number
            if kinds.count(kind) != 1 or words.count(kind) != 1 or int(mask.sum()) < FEWEST_PIXELS:
                continue
            other = next((each for each in (*kinds, *BACKGROUND_WORDS) if each != kind and each in words), words[0])
            own, others = (word_places(tokenizer, caption, each) for each in (kind, other))
            cases.append(Case(row, kind, own, others, mask))
    return cases


# ---------------------------------------------------------------- one map, one mask


def auc(fields: Float[Tensor, "k H W"], mask: Bool[Tensor, "H W"]) -> Float[Tensor, " k"]:
    """Return for each field how often a position inside the mask has more than one outside, ties counting half.

    1 is perfect, 0.5 is chance: the area under the ROC curve. ConfigError for an empty or full mask.
    """
    inside, outside = _split(fields, mask)
    outside = outside.sort(dim=1).values.contiguous()
    below = torch.searchsorted(outside, inside)
    not_above = torch.searchsorted(outside, inside, right=True)
    return ((below + not_above).double() / (2 * outside.shape[1])).mean(dim=1).float()


def best_iou(fields: Float[Tensor, "k H W"], mask: Bool[Tensor, "H W"]) -> Float[Tensor, " k"]:
    """Return each field's overlap over union with the mask, cut at the threshold where that is largest."""
    _split(fields, mask)
    values, order = fields.flatten(1).sort(dim=1, descending=True)
    hits = mask.flatten()[order].cumsum(dim=1)
    taken = torch.arange(1, values.shape[1] + 1)
    overlap = hits / (int(mask.sum()) + taken - hits)
    ends = torch.ones_like(values, dtype=torch.bool)  # a threshold takes all of what is equal
    ends[:, :-1] = values[:, :-1] > values[:, 1:]
    return overlap.where(ends, torch.zeros_like(overlap)).amax(dim=1)


def points_at(fields: Float[Tensor, "k H W"], mask: Bool[Tensor, "H W"]) -> Bool[Tensor, " k"]:
    """Return whether each field's largest value lies in the mask; with several, whether all of them do."""
    _split(fields, mask)
    largest = fields == fields.amax(dim=(1, 2), keepdim=True)
    return ~(largest & ~mask).flatten(1).any(dim=1)


def centre_prior(height: int, width: int) -> Float[Tensor, "H W"]:
    """Return a field that is largest in the middle and falls off evenly: what one knows without looking."""
    rows, columns = ((torch.arange(n) + 0.5) / n - 0.5 for n in (height, width))
    return 1 - (rows[:, None] ** 2 + columns**2).sqrt()


def _split(fields: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if fields.dim() != 3 or fields.shape[1:] != mask.shape or mask.dtype != torch.bool:
        raise ShapeError(
            "grounding: fields and mask",
            given=(tuple(fields.shape), tuple(mask.shape), str(mask.dtype)),
            expected="(k, H, W) and (H, W) of truth values",
        )
    if bool(mask.all()) or not bool(mask.any()):
        raise ConfigError("grounding: the mask", given=f"{int(mask.sum())} pixels", expected="some, and not all")
    flat = fields.float().flatten(1)
    return flat[:, mask.flatten()].contiguous(), flat[:, ~mask.flatten()].contiguous()


# ---------------------------------------------------------------- all maps of a U-Net


@torch.inference_mode()
def look(
    unet: UNet, context: Context, latents: Latents, noise: Latents, schedule: NoiseSchedule, times: Sequence[int]
) -> list[Record]:
    """Show the U-Net clean latents, noised to each of `times`; return every cross-attention map with all its heads.

    The number of the time in `times` is kept as the record's step.
    """
    recorder = Recorder(heads="all")
    with watch(unet, recorder, "cross"):
        for step, t in enumerate(times):
            steps = torch.full((len(latents),), t, device=latents.device)
            with declare_call(CallInfo(step=step, t=t)):
                unet(schedule.add_noise(latents, noise, steps), steps, context)
    return recorder.records


def word_fields(
    records: Sequence[Record], row: int, tokens: Sequence[int], size: tuple[int, int]
) -> Float[Tensor, "records heads H W"]:
    """Return how much each position looks at the tokens together, for each record and head, brought to `size`."""
    fields = []
    for record in records:
        field = record.probs[row][..., list(tokens)].float().sum(dim=-1)  # heads n
        fields.append(F.interpolate(field.unflatten(1, record.grid)[None], size=size, mode="bilinear")[0])
    return torch.stack(fields)


# ---------------------------------------------------------------- many scenes


class Tally:
    """Collects, case by case, how well maps and controls find the masks; `report` gives every figure.

    The map that counts is the mean over all layers, heads and times; nothing is chosen by hand.
    """

    def __init__(self) -> None:
        self.scores: dict[str, list[tuple[float, float, bool]]] = {}
        self.aucs: dict[tuple[str, str], list[float]] = {}

    def add(self, case: Case, own: Tensor, other: Tensor, untrained: Tensor, records: Sequence[Record]) -> None:
        """Take in one case: its maps (records heads H W) of the word, of the other word, and without training."""
        fields = {
            "": own.mean(dim=(0, 1)),
            "another_word": other.mean(dim=(0, 1)),
            "centre_prior": centre_prior(*case.mask.shape),
            "untrained": untrained.mean(dim=(0, 1)),
        }
        for name, field in fields.items():
            pair = field[None], case.mask
            self.scores.setdefault(name, []).append((float(auc(*pair)), float(best_iou(*pair)), bool(points_at(*pair))))
        groups: dict[tuple[str, str], list[Tensor]] = {}
        for field, record in zip(own.mean(dim=1), records, strict=True):
            for key in (("layer", record.call.site.name), ("t", str(record.call.info.t))):
                groups.setdefault(key, []).append(field)
        means = torch.stack([torch.stack(each).mean(dim=0) for each in groups.values()])
        for key, value in zip(groups, auc(means, case.mask).tolist(), strict=True):
            self.aucs.setdefault(key, []).append(value)

    def report(self) -> dict[str, Any]:
        """Return the figures as {value, interval, num}; ConfigError where no case was found."""
        if not self.scores:
            raise ConfigError("grounding: no scene has an object that its sentence names once", fix="take more scenes")
        made: dict[str, Any] = {}
        for name, rows in self.scores.items():
            aucs, ious, hits = zip(*rows, strict=True)
            measured = {"pointing_accuracy": share(hits), "mean_auc": mean(aucs), "mean_iou": mean(ious)}
            figures = {key: each.to_dict() for key, each in measured.items()}
            made |= figures if not name else {name: figures}
        for (group, name), values in self.aucs.items():
            made.setdefault(f"mean_auc_by_{group}", {})[name] = mean(values).to_dict()
        return made


def untrained_like(unet: UNet, seed: int = 0) -> UNet:
    """Return a U-Net of the same configuration with the weights that training would start from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(unet.config).eval().to(next(unet.parameters()).device)
