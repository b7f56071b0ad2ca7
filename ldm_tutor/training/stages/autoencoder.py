"""Stage one: the autoencoder learns to fold a picture into latents and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ldm_tutor.config import AutoencoderConfig, DiscriminatorConfig, VQAutoencoderConfig
from ldm_tutor.data.scenes.datasets import to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from ldm_tutor.losses.reconstruction import PIXEL_LOSSES, PerceptualDistance
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.discriminator import PatchDiscriminator
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.shapes import Tensor
from ldm_tutor.training.learner import Descent, Learner
from ldm_tutor.weights.files import save_model

COURSE_CRITIC = DiscriminatorConfig(channels=32, num_layers=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """Weights of the loss terms, all averaged over pixels; the adversary joins after a share of the run.

    The reference sums over pixels and weighs the summed KL 1e-6; here the pixel terms are means, and the KL is
    summed over the latent numbers of a picture. `decoder_only`: the encoder stays as it is. `pixel_loss`: "l1", or
    "l2" for the mean squared error.

    For published models: `summed` sums the pixel terms over a picture as the reference does; `adversarial_step` is the
    step with which the adversary joins, in place of a share of the run; `codebook_weight` is for an autoencoder with
    one; `descent` is how both networks' weights change, and the critic's learning rate is then the autoencoder's.
    """

    perceptual_weight: float = 0.2
    kl_weight: float = 1e-6
    adversarial_weight: float = 0.1
    adversarial_start: float = 0.7
    batch_size: int = 16
    peak_lr: float = 1.5e-3
    decoder_only: bool = False
    pixel_loss: str = "l1"
    summed: bool = False
    adversarial_step: int | None = None
    codebook_weight: float = 1.0
    descent: Descent | None = None

    def __post_init__(self) -> None:
        if self.pixel_loss not in PIXEL_LOSSES:
            raise ConfigError(
                "AutoencoderRecipe.pixel_loss", given=self.pixel_loss, expected=f"one of {sorted(PIXEL_LOSSES)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a checkpoint keeps them: those that came later only where they are not the default."""
        later = ("pixel_loss", "summed", "adversarial_step", "codebook_weight", "descent")
        values, plain = dataclasses.asdict(self), dataclasses.asdict(AutoencoderRecipe())
        return {name: value for name, value in values.items() if name not in later or value != plain[name]}

    def adversary_joins(self, step: int, progress: float) -> bool:
        """Whether the adversary takes part in a step, whose number counts from 0, after a share `progress` of a run."""
        if self.adversarial_weight <= 0:
            return False
        by_share = progress >= self.adversarial_start
        return by_share if self.adversarial_step is None else step >= self.adversarial_step


class AutoencoderStage:
    """L1 + perceptual distance + patch adversary + weak KL, or the codebook's loss, on pictures, uint8 (N, 3, H, W)."""

    name = "autoencoder"

    def __init__(
        self,
        config: AutoencoderConfig,
        pictures: Tensor,
        perceptual: PerceptualDistance,
        *,
        device: torch.device,
        dtype: torch.dtype,
        recipe: AutoencoderRecipe | None = None,
        discriminator: DiscriminatorConfig | None = None,
    ) -> None:
        self.config, self.pictures, self.device, self.dtype = config, pictures, device, dtype
        self.recipe = recipe or AutoencoderRecipe()
        self.batch_size = self.recipe.batch_size
        self.perceptual = perceptual.to(device, dtype)
        disc = discriminator or COURSE_CRITIC
        self.settings: dict[str, Any] = {
            "config": config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "discriminator": disc.to_dict(),
            "num_pictures": len(pictures),
            "precision": str(dtype),
        }
        common: dict[str, Any] = {"device": device, "dtype": dtype}
        critic: dict[str, Any] = {"peak_lr": 5e-4, "betas": (0.5, 0.9), "ema_decay": None}
        if (descent := self.recipe.descent) is not None:
            common |= descent.to_dict()
            critic = {"peak_lr": self.recipe.peak_lr}
        made = VQAutoencoder(config) if isinstance(config, VQAutoencoderConfig) else Autoencoder(config)
        self.coder: Learner[Any] = Learner(made, peak_lr=self.recipe.peak_lr, **common)
        self.critic = Learner(PatchDiscriminator(disc), **{**common, **critic})
        self.learners: dict[str, Learner[Any]] = {"autoencoder": self.coder, "discriminator": self.critic}

    def train_step(self, generator: torch.Generator, progress: float) -> dict[str, float]:
        recipe = self.recipe
        chosen = torch.randint(len(self.pictures), (self.batch_size,), generator=generator)
        real = to_float(self.pictures[chosen]).to(self.device, self.dtype)
        net = self.coder.net
        with torch.set_grad_enabled(not recipe.decoder_only):
            encoded = net.encode(real)
        made, name, rest = self._decoded(net, encoded, generator)
        pixel = PIXEL_LOSSES[recipe.pixel_loss](made, real)
        values = {recipe.pixel_loss: pixel.item()}
        reconstruction = pixel
        if recipe.perceptual_weight > 0:
            perceptual = self.perceptual(made, real).mean()
            reconstruction = pixel + recipe.perceptual_weight * perceptual
            values["perceptual"] = perceptual.item()
        if recipe.summed:
            reconstruction = reconstruction * real[0].numel()
        weight = recipe.kl_weight if name == "kl" else recipe.codebook_weight
        loss = reconstruction + weight * rest
        values[name] = rest.item()
        adversary = recipe.adversary_joins(self.coder.num_updates, progress)
        if adversary:
            fooling = generator_loss(self.critic.net(made))
            balance = adaptive_weight(reconstruction, fooling, net.decoder.conv_out.weight)
            loss = loss + recipe.adversarial_weight * balance * fooling
        loss.backward()
        self.coder.step(progress)
        if adversary:
            self.critic.net.zero_grad(set_to_none=True)
            critic_loss = discriminator_loss(self.critic.net(real), self.critic.net(made.detach()))
            critic_loss.backward()
            self.critic.step(progress)
        values["critic"] = critic_loss.item() if adversary else 1.0  # 1 is the loss of an undecided critic
        return values

    def _decoded(
        self, net: Autoencoder | VQAutoencoder, encoded: Any, generator: torch.Generator
    ) -> tuple[Tensor, str, Tensor]:
        """Return the picture that comes back, and the loss of the latents themselves with its name."""
        if isinstance(net, VQAutoencoder):
            codes = net.quantizer(encoded)
            return net.decoder(net.post_quant_conv(codes.latents)), "codebook", codes.loss.float()
        return net.decode(encoded.sample(generator)), "kl", encoded.kl().float().mean()

    def finish(self, folder: Path, history: dict[str, Any]) -> list[Path]:
        path, config, kind = folder / "autoencoder.safetensors", self.config, "vq_autoencoder"
        if not isinstance(config, VQAutoencoderConfig):  # with a codebook the latents are taken as they are
            kind = "autoencoder"
            if not self.recipe.decoder_only:  # otherwise the latents stay what a U-Net knows, and so does their scale
                scale = measure_scale(self.coder.ema, self.pictures[:512], self.device)
                config = dataclasses.replace(config, scale_factor=scale)
        save_model(path, self.coder.ema, kind=kind, config=config, metadata=history)
        return [path]


@torch.inference_mode()
def measure_scale(autoencoder: Autoencoder, pictures: Tensor, device: torch.device) -> float:
    """Return 1 / standard deviation of the latents of `pictures`, uint8 (n, 3, H, W): the scale factor."""
    moments = [
        autoencoder.encode(to_float(part).to(device)).sample(torch.Generator().manual_seed(0))
        for part in pictures.split(max(1, 64 * 64 * 64 // max(64 * 64, pictures.shape[-1] * pictures.shape[-2])))
    ]
    return round(1.0 / float(torch.cat(moments).std()), 5)
