"""The context of a class-conditional model: one learned vector that stands where a sentence's words would."""

from __future__ import annotations

from torch import nn

from ldm_tutor.config import ClassEncoderConfig
from ldm_tutor.errors import ConfigError
from ldm_tutor.shapes import Float, Int, Tensor


class ClassEncoder(nn.Module):
    """Class numbers (b,), each 0 to num_classes - 1, to a context of one token, (b, 1, width)."""

    def __init__(self, config: ClassEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.width)

    def forward(self, classes: Int[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
        if classes.numel() and (int(classes.min()) < 0 or int(classes.max()) >= self.config.num_classes):
            raise ConfigError(
                "ClassEncoder: class number",
                given=[int(classes.min()), int(classes.max())],
                expected=f"0 to {self.config.num_classes - 1}",
            )
        return self.embedding(classes)[:, None]  # b d -> b 1 d
