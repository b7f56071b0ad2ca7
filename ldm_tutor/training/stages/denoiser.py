"""Stage three: the U-Net learns to see the noise in latents, given the sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldm_tutor.config import ScheduleConfig, UNetConfig
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.losses.denoising import noise_loss, step_weight
from ldm_tutor.models.autoencoder import Autoencoder, DiagonalGaussian
from ldm_tutor.models.dit import DiTConfig, make_denoiser
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.schedule import NoiseSchedule
from ldm_tutor.shapes import Context, Float, Latents, Tensor, Times, Tokens
from ldm_tutor.training.learner import Descent, Learner
from ldm_tutor.training.processes import ALONE, Team
from ldm_tutor.weights.files import save_model

BATCH_SIZE, PEAK_LR = 32, 1e-3  # that go together, for the scenes U-Net
NO_SPREAD = -30.0  # log variance of latents that are known exactly


@torch.inference_mode()
def cache_moments(
    autoencoder: Autoencoder | VQAutoencoder, pictures: Tensor, *, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "n c2 h w"]:
    """Encode pictures, uint8 (n, 3, H, W), once and for all: mean and log variance, float16, on the CPU.

    The encoder is frozen while the U-Net trains, so its work need not be repeated; drawing a fresh sample from the
    stored moments costs nothing. Where the autoencoder has a codebook, nothing is left to chance: no variance.
    """
    parts = []
    at_once = max(1, 128 * 64 * 64 // (pictures.shape[-1] * pictures.shape[-2]))
    for chunk in pictures.split(min(128, at_once)):
        encoded = autoencoder.encode(to_float(chunk).to(device, dtype))
        if isinstance(encoded, DiagonalGaussian):
            moments = torch.cat([encoded.mean, encoded.logvar], dim=1)
        else:
            moments = torch.cat([encoded, torch.full_like(encoded, NO_SPREAD)], dim=1)
        parts.append(moments.half().cpu())
    return torch.cat(parts)


class DenoiserStage:
    """Noise prediction on cached latents, with the text encoder frozen and the sentence dropped now and then.

    `moments`: float16 (n, 2 c, h, w) of `cache_moments`; `tokens`: (n, variants, context_length), several sentences
    per picture, of which each step takes one; `empty`: the empty sentence, (1, context_length). All three of text are
    None for a U-Net without a context. `descent`: how its weights change, without it as the course's own do.
    `balance_steps`: train with `step_weight`; the log shows the plain noise loss all the same.
    `picture_weights`: (n,), how often each picture is taken, relative to the others; all alike without it.
    `position_weights`: (n, 1, h, w), how much the squared error counts at each position of each picture, relative to
    the others, up to the share `weighed_until` of the run; the log shows the plain loss all the same.
    `team`: the processes that share each batch, of `batch_size` rows in all; `accumulate`: in how many pieces each of
    them computes its rows, one after the other, for less memory. Neither changes the numbers beyond rounding.
    """

    name = "denoiser"  # of its checkpoint too, so that no run goes on with another question's
    objective = "noise"  # what the network answers with; the file of its weights says so where it is something else

    def __init__(
        self,
        config: UNetConfig | DiTConfig,
        moments: Tensor,
        scale_factor: float,
        text_encoder: TextEncoder | None,
        tokens: Tensor | None,
        empty: Tokens | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        schedule: ScheduleConfig | None = None,
        batch_size: int = BATCH_SIZE,
        peak_lr: float = PEAK_LR,
        drop_share: float = 0.1,
        balance_steps: bool = True,
        descent: Descent | None = None,
        picture_weights: Tensor | None = None,
        position_weights: Tensor | None = None,
        weighed_until: float = 1.0,
        team: Team = ALONE,
        accumulate: int = 1,
    ) -> None:
        self.team, self.pieces = team, team.pieces(batch_size, accumulate)
        self.config, self.batch_size, self.device, self.dtype = config, batch_size, device, dtype
        self.moments, self.scale_factor, self.drop_share = moments, scale_factor, drop_share
        self.tokens, self.empty = tokens, empty
        if (config.context_dim is None) != (text_encoder is None):
            raise ConfigError(
                "DenoiserStage: the U-Net and the text encoder do not go together",
                given=(config.context_dim, type(text_encoder).__name__),
                expected="both, or a U-Net without a context and no text encoder",
            )
        self.picture_weights = torch.ones(len(moments)) if picture_weights is None else picture_weights
        self.position_weights = None if position_weights is None else position_weights / position_weights.mean()
        self.weighed_until = weighed_until
        self.schedule = NoiseSchedule(schedule)
        weights = step_weight(self.schedule.alpha_bar) if balance_steps else self.schedule.alpha_bar**0
        self.weights = weights.float()
        if text_encoder is not None:
            text_encoder = text_encoder.to(device, dtype).eval().requires_grad_(False)
        self.text_encoder: Any = text_encoder  # None only where no step asks for it
        self.settings: dict[str, Any] = {
            "config": config.to_dict(),
            "schedule": self.schedule.config.to_dict(),
            "batch_size": batch_size,
            "peak_lr": peak_lr,
            "drop_share": drop_share,
            "balance_steps": balance_steps,
            "num_pictures": len(moments),
            "precision": str(dtype),
        }
        if position_weights is not None:
            self.settings["heaviest_position"] = round(float(position_weights.max()), 4)
            if weighed_until < 1:
                self.settings["weighed_until"] = round(weighed_until, 4)
        settings: dict[str, Any] = {"warmup": 500} if descent is None else descent.to_dict()
        if descent is not None:
            self.settings["descent"] = settings
        net: Any = make_denoiser(config)
        self.learner = Learner(net, peak_lr=peak_lr, device=device, dtype=dtype, team=team, **settings)
        self.learners: dict[str, Learner[Any]] = {"unet": self.learner}

    @torch.no_grad()
    def context_of(self, tokens: Tokens) -> Context:
        """Return the sentences' vectors, from the text encoder as it is."""
        return self.text_encoder(tokens)

    def train_step(self, generator: torch.Generator, progress: float) -> dict[str, float]:
        b = self.batch_size
        chosen = torch.multinomial(self.picture_weights, b, replacement=True, generator=generator)
        x0 = self.scale_factor * DiagonalGaussian(self.moments[chosen].float()).sample(generator)
        noise = torch.randn(x0.shape, generator=generator)
        x_t, t, goals, weights = self.ask(x0, noise, generator)
        tokens = self._told(chosen, generator)
        total = 0.0
        for rows in self.pieces:  # all processes have drawn the whole batch; each computes its own rows
            context = None if tokens is None else self.context_of(tokens[rows].to(self.device))
            answer = self.learner.net(x_t[rows].to(self.device, self.dtype), t[rows].to(self.device).float(), context)
            goal = goals[rows].to(self.device)
            plain = weighed = noise_loss(answer, goal)
            if self.position_weights is not None and progress < self.weighed_until:
                weighed = noise_loss(answer, goal, self.position_weights[chosen[rows]].to(self.device))
            ((weights[rows].to(self.device) * weighed).sum() / b).backward()
            total += plain.sum().item()
        self.learner.step(progress)
        return {"loss": self.team.total(total) / b}

    def ask(
        self, x0: Latents, noise: Latents, generator: torch.Generator
    ) -> tuple[Latents, Times, Latents, Float[Tensor, " b"]]:
        """Return what the network gets, at which times, what it should answer, and how much each row counts.

        Here that is the noise at a time step of the schedule; `training.objectives` has others.
        """
        t = torch.randint(self.schedule.num_steps, (len(x0),), generator=generator)
        return self.schedule.add_noise(x0, noise, t), t, noise, self.weights[t]

    def _told(self, chosen: Tensor, generator: torch.Generator) -> Tokens | None:
        """Return a sentence for each chosen picture, the empty one now and then; None where there are none."""
        if self.tokens is None or self.empty is None:
            return None
        variant = torch.randint(self.tokens.shape[1], (len(chosen),), generator=generator)
        dropped = torch.rand(len(chosen), generator=generator) < self.drop_share
        return torch.where(dropped[:, None], self.empty, self.tokens[chosen, variant])

    def finish(self, folder: Path, history: dict[str, Any]) -> list[Path]:
        kind = "dit" if isinstance(self.config, DiTConfig) else "unet"
        path = folder / f"{kind}.safetensors"
        metadata = {**history, "schedule": self.schedule.config.to_dict()}
        if self.objective != "noise":
            metadata["objective"] = self.objective
        save_model(path, self.learner.ema, kind=kind, config=self.config, metadata=metadata)
        return [path]
