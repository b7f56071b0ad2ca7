"""The names that the paper's own code (CompVis) gives to parameters, two ways, and the few shapes that differ.

There a U-Net is one list of blocks, so most names hold a number that depends on the configuration. Attention between
the positions of a picture is made of convolutions: its matrices have one or two more dimensions, of size 1; and in a
U-Net without a context Q, K and V are one tensor, head by head. No value changes on the way, only where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ldm_tutor.config import (
    AutoencoderConfig,
    BertEncoderConfig,
    ClassEncoderConfig,
    Config,
    TextEncoderConfig,
    UNetConfig,
    VQAutoencoderConfig,
)
from ldm_tutor.errors import ConfigError
from ldm_tutor.shapes import Tensor
from ldm_tutor.weights.names import POSITION_IDS, TEXT, TRANSFORMER_BLOCK, NameRules, Table, flat, same
from ldm_tutor.weights.tensors import Place

_UNET_RES_BLOCK: Table = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("shortcut", "skip_connection"),
]
_UNET_TRANSFORMER: Table = [
    *same("norm", "proj_in", "proj_out"),
    ("blocks.#", "transformer_blocks.#", TRANSFORMER_BLOCK),
]
_QKV: Table = [("attn.to_q", "qkv.q"), ("attn.to_k", "qkv.k"), ("attn.to_v", "qkv.v"), ("attn.to_out", "proj_out")]
_UNET_PLAIN_ATTENTION: Table = [("norm", "norm"), *_QKV]  # "qkv.q" is a part of the tensor qkv
_CODER_RES_BLOCK: Table = [*same("norm1", "conv1", "norm2", "conv2"), ("shortcut", "nin_shortcut")]
_CODER_ATTENTION: Table = [
    ("norm", "norm"),
    *[(f"attn.to_{letter}", letter) for letter in "qkv"],
    ("attn.to_out", "proj_out"),
]
_BERT_ATTENTION: Table = same("to_q", "to_k", "to_v", "to_out")


def _unet(config: UNetConfig) -> Table:
    per_level, num_levels = config.num_res_blocks + 1, len(config.channel_mult)
    attention = _UNET_PLAIN_ATTENTION if config.context_dim is None else _UNET_TRANSFORMER
    table: list[tuple[object, ...]] = [
        ("time_mlp.linear_1", "time_embed.0"),
        ("time_mlp.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"),
        ("mid.res_blocks.0", "middle_block.0", _UNET_RES_BLOCK),
        ("mid.transformers.0", "middle_block.1", attention),
        ("mid.res_blocks.1", "middle_block.2", _UNET_RES_BLOCK),
        ("norm_out", "out.0"),
        ("conv_out", "out.2"),
    ]
    for level in range(num_levels):
        for block in range(config.num_res_blocks):
            there = f"input_blocks.{1 + level * per_level + block}"
            table.append((f"down.{level}.res_blocks.{block}", f"{there}.0", _UNET_RES_BLOCK))
            table.append((f"down.{level}.transformers.{block}", f"{there}.1", attention))
        there = f"input_blocks.{(level + 1) * per_level}.0"  # the last level has none, and no such name either
        table.append((f"down.{level}.downsample.conv", f"{there}.op"))
        table.append((f"down.{level}.downsample", there, _UNET_RES_BLOCK))
    for index, level in enumerate(reversed(range(num_levels))):
        for block in range(per_level):
            there = f"output_blocks.{index * per_level + block}"
            table.append((f"up.{index}.res_blocks.{block}", f"{there}.0", _UNET_RES_BLOCK))
            if level in config.attention_levels:
                table.append((f"up.{index}.transformers.{block}", f"{there}.1", attention))
        place = 2 if level in config.attention_levels else 1  # behind the last block and its attention
        there = f"output_blocks.{index * per_level + config.num_res_blocks}.{place}"
        table.append((f"up.{index}.upsample.conv", f"{there}.conv"))
        table.append((f"up.{index}.upsample", there, _UNET_RES_BLOCK))
    return table


def _coder(half: str, config: AutoencoderConfig) -> Table:
    """Return one half of an autoencoder. There both halves count the levels from the finest."""
    num_levels = len(config.channel_mult)
    way, resize = ("down", "downsample") if half == "encoder" else ("up", "upsample")
    table: list[tuple[object, ...]] = [
        *same("conv_in", "conv_out", "norm_out"),
        ("mid.res_blocks.0", "mid.block_1", _CODER_RES_BLOCK),
        ("mid.attention", "mid.attn_1", _CODER_ATTENTION),
        ("mid.res_blocks.1", "mid.block_2", _CODER_RES_BLOCK),
    ]
    for index in range(num_levels):
        there = f"{way}.{index if half == 'encoder' else num_levels - 1 - index}"
        table.append((f"levels.{index}.res_blocks.#", f"{there}.block.#", _CODER_RES_BLOCK))
        table.append((f"levels.{index}.attentions.#", f"{there}.attn.#", _CODER_ATTENTION))
        table.append((f"levels.{index}.resize.conv", f"{there}.{resize}.conv"))
    return table


def _autoencoder(config: AutoencoderConfig) -> Table:
    table = [(half, half, _coder(half, config)) for half in ("encoder", "decoder")]
    return [*table, *same("quant_conv", "post_quant_conv"), ("quantizer.codebook", "quantize.embedding")]


def _bert(config: BertEncoderConfig) -> Table:
    """Each layer is two there: attention (even) and feed-forward (odd)."""
    table: list[tuple[object, ...]] = [
        ("token_embedding", "token_emb"),
        ("position_embedding", "pos_emb.emb"),
        ("norm_out", "norm"),
    ]
    for layer in range(config.num_layers):
        attention, feed_forward = (f"attn_layers.layers.{2 * layer + part}" for part in (0, 1))
        table.append((f"layers.{layer}.norm1", f"{attention}.0"))
        table.append((f"layers.{layer}.self_attn", f"{attention}.1", _BERT_ATTENTION))
        table.append((f"layers.{layer}.norm2", f"{feed_forward}.0"))
        table.append((f"layers.{layer}.fc1", f"{feed_forward}.1.net.0.0"))
        table.append((f"layers.{layer}.fc2", f"{feed_forward}.1.net.2"))
    return table


_CLIP_TEXT: Table = [(ours, f"text_model.{theirs}") for ours, theirs in flat(TEXT)]
_MATRIX = re.compile(r"(?:.+\.)?attn\.to_(?:q|k|v|out)\.weight")  # of attention that is made of convolutions there
_JOINED = re.compile(r"(.+\.qkv)\.(q|k|v)(\.weight|\.bias)")


@dataclass(frozen=True)
class Layout:
    """One part of a CompVis file. `prefix` stands before its names, and `rules` have the names behind it.

    `extra_dims`: dimensions of size 1 at the end of the attention's matrices. `num_heads`: where Q, K and V are one
    tensor, the number of heads for a width; each head's rows of Q, K and V stand together.
    """

    rules: NameRules
    prefix: str
    extra_dims: int = 0
    num_heads: Callable[[int], int] | None = None

    def to_file(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our tensors as the file has them; on the meta device: which names and shapes the file must have."""
        there: dict[str, Tensor] = {}
        joined: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            key = self.prefix + self.rules.to_foreign(name)
            if _MATRIX.fullmatch(name):
                value = value[(..., *[None] * self.extra_dims)]
            if match := _JOINED.fullmatch(key):
                joined.setdefault(match[1] + match[3], {})[match[2]] = value
            else:
                there[key] = value
        for key, parts in joined.items():
            there[key] = self._join([parts[letter] for letter in "qkv"])
        return there

    def from_file(self, places: Mapping[str, Place]) -> dict[str, Place]:
        """Return where our tensors are, given the places of the file's, whose names and shapes are those of `to_file`.

        WeightsError for a name that no rule knows.
        """
        here: dict[str, Place] = {}
        for key, place in places.items():
            name = key.removeprefix(self.prefix)
            stem, dot, kind = name.rpartition(".")
            if self.num_heads is not None and stem.endswith(".qkv"):
                for index, letter in enumerate("qkv"):
                    here[self.rules.from_foreign(f"{stem}.{letter}{dot}{kind}")] = self._part(place, index)
            else:
                here[self.rules.from_foreign(name)] = place
        for name, place in here.items():
            if _MATRIX.fullmatch(name) and self.extra_dims:
                here[name] = replace(place, shape=place.shape[: len(place.shape) - self.extra_dims])
        return here

    def ignored(self, key: str) -> bool:
        """Say whether a name in the file, prefix included, carries nothing that our model has."""
        return self.rules.ignored(key.removeprefix(self.prefix))

    def _join(self, parts: list[Tensor]) -> Tensor:
        num_heads = self._heads(len(parts[0]))
        rows = [part.unflatten(0, (num_heads, -1)) for part in parts]  # (heads d) ... -> heads d ...
        return torch.stack(rows, dim=1).flatten(0, 2)  # heads 3 d ... -> (heads 3 d) ...

    def _part(self, place: Place, index: int) -> Place:
        """Return where Q (index 0), K or V is in a tensor that holds all three."""
        width = place.shape[0] // 3
        num_heads = self._heads(width)
        ((begin, num_bytes),) = place.spans
        length = num_bytes // (3 * num_heads)  # of one head's rows of one of the three
        spans = tuple((begin + (3 * head + index) * length, length) for head in range(num_heads))
        return replace(place, shape=(width, *place.shape[1:]), spans=spans)

    def _heads(self, width: int) -> int:
        if self.num_heads is None:
            raise AssertionError("a layout without joined Q, K and V")
        return self.num_heads(width)


def layout_of(config: Config, prefix: str | None = None) -> Layout:
    """Return names and shapes of the part that `config` describes; ConfigError if CompVis' files hold no such part.

    `prefix` None: where the part stands in the file of a whole model.
    """
    if isinstance(config, UNetConfig):
        rules = NameRules("U-Net <-> CompVis UNetModel", _unet(config))
        plain = config.context_dim is None
        layout = Layout(rules, "model.diffusion_model.", int(plain), config.heads_at if plain else None)
    elif isinstance(config, AutoencoderConfig):
        quantized = isinstance(config, VQAutoencoderConfig)
        title = "VQAutoencoder <-> CompVis VQModel" if quantized else "Autoencoder <-> CompVis AutoencoderKL"
        rules = NameRules(title, _autoencoder(config), ignore=r"loss\..+")
        layout = Layout(rules, "first_stage_model.", extra_dims=2)
    elif isinstance(config, TextEncoderConfig):
        rules = NameRules("TextEncoder <-> CompVis FrozenCLIPEmbedder", _CLIP_TEXT, ignore=POSITION_IDS)
        layout = Layout(rules, "cond_stage_model.transformer.")
    elif isinstance(config, BertEncoderConfig):
        title = "BertEncoder <-> CompVis BERTEmbedder"
        rules = NameRules(title, _bert(config), ignore=r"to_logits\.(?:weight|bias)")
        layout = Layout(rules, "cond_stage_model.transformer.")
    elif isinstance(config, ClassEncoderConfig):
        rules = NameRules("ClassEncoder <-> CompVis ClassEmbedder", same("embedding"))
        layout = Layout(rules, "cond_stage_model.")
    else:
        raise ConfigError(
            "compvis_names.layout_of", given=type(config).__name__, expected="a U-Net, an autoencoder or a text encoder"
        )
    return layout if prefix is None else replace(layout, prefix=prefix)


def ema_name(key: str) -> str:
    """Return the name of the moving average of a U-Net parameter: the dotted name without its dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")
