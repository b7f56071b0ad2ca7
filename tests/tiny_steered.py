"""Conditions of tiny networks with random weights, on the tiny pipeline: every part is the real one."""

import torch
from tiny import CONFIG, make_pipeline

from ldm_tutor.config import BertEncoderConfig, ConditionConfig
from ldm_tutor.data.boxes import SCENES_BOXES
from ldm_tutor.models.condition import Condition, steered_unet
from ldm_tutor.steering import Steered
from ldm_tutor.weights.files import save_model

BOXES = BertEncoderConfig(
    vocab_size=SCENES_BOXES.size,
    context_length=SCENES_BOXES.length,
    width=CONFIG.unet.context_dim,
    num_layers=1,
    num_heads=2,
    head_channels=8,
)
CONFIGS = {
    "layout": ConditionConfig(kind="layout", unet=CONFIG.unet, rank=2, boxes=BOXES),
    "inpainting": ConditionConfig(
        kind="inpainting", unet=CONFIG.unet, rank=2, extra_channels=1 + CONFIG.autoencoder.latent_channels
    ),
    "upscaling": ConditionConfig(kind="upscaling", unet=CONFIG.unet, rank=2, extra_channels=3),
}


def make_condition(kind):
    """Return a condition whose weights are large enough to show in the picture."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        condition = Condition(CONFIGS[kind])
        with torch.no_grad():
            for weight in condition.parameters():
                if weight.dim() > 1:
                    weight.normal_(std=0.3)
    return condition


def make_steered(kind, pipeline=None):
    pipeline = make_pipeline() if pipeline is None else pipeline
    condition = make_condition(kind).eval()
    return Steered(pipeline, condition.config, steered_unet(condition, pipeline.unet), condition.encoder)


def save_conditions(folder):
    """Write the tiny conditions as files that `load_steered` opens."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, config in CONFIGS.items():
        save_model(folder / f"{kind}.safetensors", make_condition(kind), kind="condition", config=config)
    return folder
