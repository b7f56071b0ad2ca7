"""Training the judge, and the smaller network whose features measure how alike two pictures look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ldm_tutor.config import JudgeConfig
from ldm_tutor.data.scenes.datasets import ScenePictures, to_float
from ldm_tutor.data.scenes.world import BACKGROUNDS, COLORS, KINDS, SIZES, Scene
from ldm_tutor.losses.detection import JudgeTargets, judge_loss
from ldm_tutor.models.judge import STRIDE, Judge
from ldm_tutor.shapes import Pictures
from ldm_tutor.training.learner import Learner
from ldm_tutor.weights.files import save_model


def judge_targets(scenes: list[Scene], side: int) -> JudgeTargets:
    """Return the truth of `scenes` on a grid of side x side cells."""
    heat = torch.zeros(len(scenes), side, side)
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rows: list[list[float]] = []
    for number, scene in enumerate(scenes):
        for each in scene.objects:
            cx, cy = each.x * side, each.y * side
            col, row = min(int(cx), side - 1), min(int(cy), side - 1)
            x0, y0, x1, y1 = each.box
            spread = max(0.7, (x1 - x0) * side / 6)
            bump = torch.exp(-((xs - col) ** 2 + (ys - row) ** 2) / (2 * spread**2))
            heat[number] = torch.maximum(heat[number], bump)
            names = (KINDS.index(each.kind), COLORS.index(each.color), SIZES.index(each.size))
            rows.append([number, row, col, *names, cx - col, cy - row, x1 - x0, y1 - y0])
    table = torch.tensor(rows)
    whole = table[:, :6].long()
    heat[whole[:, 0], whole[:, 1], whole[:, 2]] = 1.0
    return JudgeTargets(
        heat=heat,
        rows=whole[:, 0],
        ys=whole[:, 1],
        xs=whole[:, 2],
        kind=whole[:, 3],
        color=whole[:, 4],
        size=whole[:, 5],
        offset=table[:, 6:8],
        extent=table[:, 8:10],
        background=torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes]),
    )


def disturb(pictures: Pictures, generator: torch.Generator) -> Pictures:
    """Blur, tint and roughen pictures at random: what an autoencoder or a sampler may do to them."""
    b = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=generator)

    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pictures = torch.lerp(pictures, soft, uniform(-0.3, 0.9, 1, 1, 1))
    pictures = pictures * uniform(0.9, 1.1, 1, 1, 1) + uniform(-0.06, 0.06, 3, 1, 1)
    noise = torch.randn(pictures.shape, generator=generator)
    coarse = F.interpolate(torch.randn(b, 3, 16, 16, generator=generator), pictures.shape[-2:], mode="bilinear")
    pictures = pictures + uniform(0, 0.08, 1, 1, 1) * noise + uniform(0, 0.08, 1, 1, 1) * coarse
    return pictures.clamp(-1, 1)


class JudgeStage:
    """Learns to read scenes from disturbed pictures. `name` is "judge" or "perceptual"."""

    def __init__(
        self,
        config: JudgeConfig,
        scenes: ScenePictures,
        *,
        device: torch.device,
        dtype: torch.dtype,
        name: str = "judge",
        batch_size: int = 64,
        peak_lr: float = 2e-3,
    ) -> None:
        self.name, self.batch_size, self.device, self.dtype = name, batch_size, device, dtype
        self.config, self.scenes = config, scenes
        self.settings: dict[str, Any] = {
            "config": config.to_dict(),
            "batch_size": batch_size,
            "peak_lr": peak_lr,
            "num_pictures": len(scenes),
            "precision": str(dtype),
        }
        self.learner = Learner(Judge(config), peak_lr=peak_lr, device=device, dtype=dtype)
        self.learners: dict[str, Learner[Any]] = {"judge": self.learner}

    def train_step(self, generator: torch.Generator, progress: float) -> dict[str, float]:
        chosen = torch.randint(len(self.scenes), (self.batch_size,), generator=generator)
        pictures = disturb(to_float(self.scenes.pictures[chosen]), generator)
        truth = judge_targets([self.scenes.scenes[i] for i in chosen.tolist()], pictures.shape[-1] // STRIDE)
        moved = JudgeTargets(**{name: value.to(self.device) for name, value in vars(truth).items()})
        loss = judge_loss(self.learner.net(pictures.to(self.device, self.dtype)), moved)
        loss.backward()
        self.learner.step(progress)
        return {"loss": loss.item()}

    def finish(self, folder: Path, history: dict[str, Any]) -> list[Path]:
        path = folder / f"{self.name}.safetensors"
        save_model(path, self.learner.ema, kind="judge", config=self.config, metadata=history)
        return [path]
