"""A condition learns to steer a U-Net that stays as it is: low-rank differences, an encoder, new channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call

from ldm_tutor.config import ConditionConfig, ScheduleConfig
from ldm_tutor.data.boxes import SCENES_BOXES
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.losses.denoising import noise_loss, step_weight
from ldm_tutor.models.autoencoder import DiagonalGaussian
from ldm_tutor.models.class_encoder import ClassEncoder
from ldm_tutor.models.condition import Condition, fingerprint, steered_config
from ldm_tutor.models.layout_encoder import LayoutEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Context, Latents, Tensor, Tokens
from ldm_tutor.training.learner import Learner
from ldm_tutor.weights.files import save_model


@dataclass(frozen=True, kw_only=True)
class ConditionRecipe:
    """How a condition is trained. `rank`: of its differences; 0 trains all weights of a U-Net of its own.

    `convolutions`: differences to them too; without, only to the weights of the transformers, a quarter faster.

    `drop_text` and `drop`: shares of the examples without the sentence, and without the condition; by chance each.
    `skew`: time steps are drawn as T u^skew, u uniform; below 1 the noisy ones, where a layout is decided, come more
    often. `repeats`: how often an example with two objects is taken, relative to one with a single object.
    """

    rank: int = 16
    convolutions: bool = True
    drop_text: float = 0.3
    drop: float = 0.1
    skew: float = 1.0
    repeats: float = 1.0
    batch_size: int = 16
    peak_lr: float = 1e-3


RECIPES = {
    "layout": ConditionRecipe(rank=32, convolutions=False, drop_text=0.5, skew=0.6, repeats=2.0),
    "inpainting": ConditionRecipe(drop_text=0.2, drop=0.0, skew=0.8),
    "upscaling": ConditionRecipe(drop_text=0.7, drop=0.0),
    "class": ConditionRecipe(rank=4, convolutions=False, drop_text=1.0, drop=0.1),
    "semantic": ConditionRecipe(rank=8, drop_text=0.5, drop=0.1),
}


class ConditionStage:
    """Noise prediction by the steered U-Net, of which only the condition learns.

    `moments`, `tokens`, `empty`: as in `DenoiserStage`. `inputs`: what the condition reads, one row per picture; its
    names by kind: layout `boxes` (tokens); inpainting `mask` and `masked`, of the latents' size; upscaling `small`
    (uint8); class `classes`; semantic `labels`. `words`: the kinds' vectors in a sentence; layout and class start so.
    """

    def __init__(
        self,
        config: ConditionConfig,
        base: UNet,
        moments: Tensor,
        scale_factor: float,
        text_encoder: TextEncoder,
        tokens: Tensor,
        empty: Tokens,
        inputs: Mapping[str, Tensor],
        *,
        recipe: ConditionRecipe,
        device: torch.device,
        dtype: torch.dtype,
        schedule: ScheduleConfig | None = None,
        picture_weights: Tensor | None = None,
        words: Tensor | None = None,
    ) -> None:
        self.name = config.kind
        self.config, self.recipe, self.device, self.dtype = config, recipe, device, dtype
        self.batch_size = recipe.batch_size
        self.moments, self.scale_factor, self.tokens, self.empty = moments, scale_factor, tokens, empty
        self.inputs = dict(inputs)
        self.picture_weights = torch.ones(len(moments)) if picture_weights is None else picture_weights
        self.schedule = NoiseSchedule(schedule)
        self.weights = step_weight(self.schedule.alpha_bar).float()
        self.text_encoder = text_encoder.to(device, dtype).eval().requires_grad_(False)
        self.base_print = fingerprint(base)
        self.base = {name: value.detach().to(device, dtype) for name, value in base.state_dict().items()}
        with torch.device("meta"):
            self.unet = UNet(steered_config(config))  # its weights are made anew at every step
        condition = Condition(config)
        condition.start_from(base.state_dict())
        if isinstance(condition.encoder, LayoutEncoder) and words is not None:
            condition.encoder.start_as_words(words, text_encoder.norm_out)
        if isinstance(condition.encoder, ClassEncoder) and words is not None:
            with torch.no_grad():
                condition.encoder.embedding.weight[: len(words)] = words
        self.learner = Learner(condition, peak_lr=recipe.peak_lr, device=device, dtype=dtype, warmup=100)
        self.learners: dict[str, Learner[Any]] = {"condition": self.learner}
        self.settings: dict[str, Any] = {
            "config": config.to_dict(),
            "recipe": asdict(recipe),
            "schedule": self.schedule.config.to_dict(),
            "base": self.base_print,
            "num_pictures": len(moments),
            "precision": str(dtype),
        }

    def train_step(self, generator: torch.Generator, progress: float) -> dict[str, float]:
        b = self.batch_size
        chosen = torch.multinomial(self.picture_weights, b, replacement=True, generator=generator)
        x0 = self.scale_factor * DiagonalGaussian(self.moments[chosen].float()).sample(generator)
        noise = torch.randn(x0.shape, generator=generator)
        share = torch.rand(b, generator=generator) ** self.recipe.skew
        t = (share * self.schedule.num_steps).long().clamp(max=self.schedule.num_steps - 1)
        x_t = self.schedule.add_noise(x0, noise, t).to(self.device, self.dtype)

        context, channels = self._given(chosen, generator)
        x = x_t if channels is None else torch.cat([x_t, channels], dim=1)
        weights = self.learner.net.weights(self.base)
        eps_hat = functional_call(self.unet, weights, (x, t.to(self.device).float(), context))
        losses = noise_loss(eps_hat, noise.to(self.device))
        (self.weights[t].to(self.device) * losses).mean().backward()
        self.learner.step(progress)
        return {"loss": losses.mean().item()}

    def finish(self, folder: Path, history: dict[str, Any]) -> list[Path]:
        path = folder / f"{self.name}.safetensors"
        metadata = {**history, "schedule": self.schedule.config.to_dict(), "base": self.base_print}
        metadata["recipe"] = asdict(self.recipe)
        save_model(path, self.learner.ema, kind="condition", config=self.config, metadata=metadata)
        return [path]

    def _given(self, chosen: Tensor, generator: torch.Generator) -> tuple[Context, Latents | None]:
        """Return what the U-Net reads beside the noisy latents, with sentence and condition left out now and then."""
        variant = torch.randint(self.tokens.shape[1], (len(chosen),), generator=generator)
        no_text = torch.rand(len(chosen), generator=generator) < self.recipe.drop_text
        dropped = torch.rand(len(chosen), generator=generator) < self.recipe.drop
        net, kind = self.learner.net, self.config.kind
        if kind == "class":
            classes = torch.where(dropped, self.config.classes.num_classes - 1, self._rows("classes", chosen).long())  # type: ignore[union-attr]
            return net.encoder(classes.to(self.device)), None  # type: ignore[misc]
        tokens = torch.where(no_text[:, None], self.empty, self.tokens[chosen, variant])
        with torch.no_grad():
            context = self.text_encoder(tokens.to(self.device))
        if kind == "layout":
            boxes = torch.where(dropped[:, None], SCENES_BOXES.none, self._rows("boxes", chosen).long())
            return torch.cat([context, net.encoder(boxes.to(self.device))], dim=1), None  # type: ignore[misc]
        if kind == "inpainting":
            parts = [self._rows(name, chosen).to(self.device, self.dtype) for name in ("mask", "masked")]
            return context, torch.cat(parts, dim=1)
        if kind == "upscaling":
            return context, to_float(self._rows("small", chosen)).to(self.device, self.dtype)
        kept = (~dropped)[:, None, None, None].to(self.device, self.dtype)
        return context, kept * net.encoder(self._rows("labels", chosen).to(self.device))  # type: ignore[misc]

    def _rows(self, name: str, chosen: Tensor) -> Tensor:
        return self.inputs[name][chosen]
