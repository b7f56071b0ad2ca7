"""Inception's features, the ones that FID, IS, precision and recall in papers are made of, where its weights are.

The weights are no part of the course (95 MB). torch-fidelity reads them from torch's own folder of downloads, where any
other program that computed an FID has left them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ldm_tutor.errors import ConfigError, WeightsError
from ldm_tutor.shapes import Float, Pictures, Tensor

FILE = "weights-inception-2015-12-05-6726825d.pth"


def inception_weights() -> Path:
    """Return where Inception's weights should be, whether they are there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


@torch.inference_mode()
def inception_features(
    pictures: Pictures, batch_size: int = 32, weights: Path | None = None
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
    """Return 2,048 features and 1,008 class probabilities of each picture in [-1, 1], float64, on the CPU.

    Raises WeightsError that names the file where the weights are not on this machine, ConfigError without
    torch-fidelity. Nothing is downloaded.
    """
    path = inception_weights() if weights is None else weights
    if not path.is_file():
        raise WeightsError(
            f"{path}: Inception's weights are not on this machine",
            fix="use judge_features or clip_features, or put the file there (torch-fidelity's page says where it is)",
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ConfigError("inception_features needs torch-fidelity", fix="pip install torch-fidelity") from error
    torch.load(path, map_location="cpu", weights_only=True)  # tensors and nothing else, or an error
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    ).eval()
    features, probabilities = [], []
    for part in pictures.split(batch_size):
        as_bytes = ((part.cpu().float() + 1) * 127.5).round().clamp(0, 255).byte()
        vector, logits = network(as_bytes)
        features.append(vector.double())
        probabilities.append(logits.double().softmax(dim=1))
    return torch.cat(features), torch.cat(probabilities)
