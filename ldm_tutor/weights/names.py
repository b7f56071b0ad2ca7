"""Two-way lists of parameter names: ours and those of diffusers (U-Net, autoencoders, BERT) and transformers (CLIP).

Our modules stand in a tree of the same form, so a rule is a pair of names and `#` is a number that stays. All shapes
are equal too: no value is changed on the way. What matches no rule is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from ldm_tutor.config import (
    AutoencoderConfig,
    BertEncoderConfig,
    ClipConfig,
    Config,
    ImageEncoderConfig,
    TextEncoderConfig,
    UNetConfig,
    VQAutoencoderConfig,
)
from ldm_tutor.errors import ConfigError, WeightsError

Value = TypeVar("Value")
Direction = Literal["to_foreign", "from_foreign"]
Table = Sequence[tuple[Any, ...]]  # (ours, theirs), or (ours, theirs, the table of what is inside)


def same(*names: str) -> Table:
    """Return the names that are equal in both trees."""
    return [(name, name) for name in names]


_RES_BLOCK: Table = [
    *same("norm1", "conv1", "norm2", "conv2"),
    ("time_proj", "time_emb_proj"),
    ("shortcut", "conv_shortcut"),
]
_ATTENTION: Table = [*same("to_q", "to_k", "to_v"), ("to_out", "to_out.0")]
TRANSFORMER_BLOCK: Table = [
    *same("norm1", "norm2", "norm3"),
    ("self_attn", "attn1", _ATTENTION),
    ("cross_attn", "attn2", _ATTENTION),
    ("feed_forward.proj_in", "ff.net.0.proj"),
    ("feed_forward.proj_out", "ff.net.2"),
]
_PLAIN_ATTENTION: Table = [("norm", "group_norm"), *[(f"attn.{ours}", theirs) for ours, theirs in _ATTENTION]]
_TRANSFORMERS: Table = [
    ("transformers.#", "attentions.#", same("norm", "proj_in", "proj_out")),
    ("transformers.#.blocks.#", "attentions.#.transformer_blocks.#", TRANSFORMER_BLOCK),
]


def _unet(attention: Table) -> Table:
    """Return the U-Net's names; its samplers are convolutions, or residual blocks (resblock_updown)."""
    level: Table = [
        ("res_blocks.#", "resnets.#", _RES_BLOCK),
        *attention,
        ("downsample.conv", "downsamplers.0.conv"),
        ("downsample", "downsamplers.0", _RES_BLOCK),
        ("upsample.conv", "upsamplers.0.conv"),
        ("upsample", "upsamplers.0", _RES_BLOCK),
    ]
    return [
        *same("conv_in", "conv_out"),
        ("time_mlp", "time_embedding", same("linear_1", "linear_2")),
        ("down.#", "down_blocks.#", level),
        ("mid", "mid_block", level),
        ("up.#", "up_blocks.#", level),
        ("norm_out", "conv_norm_out"),
    ]


def _coder(levels: str, resize: str) -> Table:
    """One half of the autoencoder; in both libraries the decoder's levels count in the order of running."""
    return [
        *same("conv_in", "conv_out"),
        ("levels.#.res_blocks.#", f"{levels}.#.resnets.#", _RES_BLOCK),
        ("levels.#.attentions.#", f"{levels}.#.attentions.#", _PLAIN_ATTENTION),
        ("levels.#.resize.conv", f"{levels}.#.{resize}.0.conv"),
        ("mid.res_blocks.#", "mid_block.resnets.#", _RES_BLOCK),
        ("mid.attention", "mid_block.attentions.0", _PLAIN_ATTENTION),
        ("norm_out", "conv_norm_out"),
    ]


_AUTOENCODER: Table = [
    ("encoder", "encoder", _coder("down_blocks", "downsamplers")),
    ("decoder", "decoder", _coder("up_blocks", "upsamplers")),
    *same("quant_conv", "post_quant_conv"),
]
_OLD_ATTENTION: Table = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out", "proj_attn")]
_OLD_AUTOENCODER: Table = [  # files written by diffusers before 0.18, Stable Diffusion v1 among them
    (f"{half}.mid.attention.attn", f"{half}.mid_block.attentions.0", _OLD_ATTENTION) for half in ("encoder", "decoder")
]

_CLIP_LAYER: Table = [
    ("norm1", "layer_norm1"),
    ("self_attn", "self_attn", [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")]),
    ("norm2", "layer_norm2"),
    ("fc1", "mlp.fc1"),
    ("fc2", "mlp.fc2"),
]
TEXT: Table = [
    ("token_embedding", "embeddings.token_embedding"),
    ("position_embedding", "embeddings.position_embedding"),
    ("layers.#", "encoder.layers.#", _CLIP_LAYER),
    ("norm_out", "final_layer_norm"),
]
_BERT_LAYER: Table = [
    ("norm1", "self_attn_layer_norm"),
    ("self_attn", "self_attn", [("to_q", "q_proj"), ("to_k", "k_proj"), ("to_v", "v_proj"), ("to_out", "out_proj")]),
    ("norm2", "final_layer_norm"),
    *same("fc1", "fc2"),
]
_BERT: Table = [
    ("token_embedding", "model.embed_tokens"),
    ("position_embedding", "model.embed_positions"),
    ("layers.#", "model.layers.#", _BERT_LAYER),
    ("norm_out", "model.layer_norm"),
]
_IMAGE: Table = [
    ("patch_embedding", "embeddings.patch_embedding"),
    ("class_embedding", "embeddings.class_embedding"),
    ("position_embedding", "embeddings.position_embedding"),
    ("norm_in", "pre_layrnorm"),  # transformers' own spelling
    ("layers.#", "encoder.layers.#", _CLIP_LAYER),
    ("norm_out", "post_layernorm"),
]
_CLIP: Table = [
    ("text", "text_model", TEXT),
    ("image", "vision_model", _IMAGE),
    ("text_projection", "text_projection"),
    ("image_projection", "visual_projection"),
    ("logit_scale", "logit_scale"),
]


class NameRules:
    """The rules of one pair of formats. `also_read` are foreign names that older files have and that we never write.

    `ignore` is a pattern of foreign names that carry no weight (`rename` leaves them out).
    """

    def __init__(self, title: str, table: Table, *, also_read: Table = (), ignore: str = r"(?!)") -> None:
        self.title = title
        pairs = flat(table)
        self._to = [(_pattern(ours), _template(theirs)) for ours, theirs in pairs]
        self._from = [(_pattern(theirs), _template(ours)) for ours, theirs in [*pairs, *flat(also_read)]]
        self._ignore = re.compile(ignore)

    def to_foreign(self, name: str) -> str:
        """Return the foreign name of our parameter `name`; WeightsError if no rule knows it."""
        return self._translate(name, self._to, "ours")

    def from_foreign(self, name: str) -> str:
        """Return our name of the foreign parameter `name`; WeightsError if no rule knows it."""
        return self._translate(name, self._from, "foreign")

    def ignored(self, name: str) -> bool:
        """Say whether a foreign name is a constant that old files store and that we compute."""
        return self._ignore.fullmatch(name) is not None

    def _translate(self, name: str, rules: list[tuple[re.Pattern[str], str]], side: str) -> str:
        for pattern, template in rules:
            if match := pattern.fullmatch(name):
                return match.expand(template)
        raise WeightsError(f"{self.title}: no rule for this parameter name ({side})", given=name)


def flat(table: Table, ours: str = "", theirs: str = "") -> list[tuple[str, str]]:
    """Return the pairs of a table, with what is inside written out."""
    pairs: list[tuple[str, str]] = []
    for our_part, their_part, *inside in table:
        if inside:
            pairs += flat(inside[0], f"{ours}{our_part}.", f"{theirs}{their_part}.")
        else:
            pairs.append((ours + our_part, theirs + their_part))
    return pairs


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\#", r"(0|[1-9][0-9]*)") + r"(\.weight|\.bias|)")


def _template(name: str) -> str:
    groups = iter(range(1, name.count("#") + 2))
    return re.sub("#", lambda _: rf"\g<{next(groups)}>", name) + rf"\g<{name.count('#') + 1}>"


POSITION_IDS = r"(?:(?:text|vision)_model\.)?embeddings\.position_ids"
UNET_DIFFUSERS = NameRules("U-Net <-> diffusers UNet2DConditionModel", _unet(_TRANSFORMERS))
PLAIN_UNET_DIFFUSERS = NameRules(
    "U-Net without a context <-> diffusers UNet2DModel",
    _unet([("transformers.#", "attentions.#", _PLAIN_ATTENTION)]),
)
AUTOENCODER_DIFFUSERS = NameRules("Autoencoder <-> diffusers AutoencoderKL", _AUTOENCODER, also_read=_OLD_AUTOENCODER)
VQ_DIFFUSERS = NameRules(
    "VQAutoencoder <-> diffusers VQModel",
    [*_AUTOENCODER, ("quantizer.codebook", "quantize.embedding")],
    also_read=_OLD_AUTOENCODER,
)
BERT_DIFFUSERS = NameRules("BertEncoder <-> diffusers LDMBertModel", _BERT, ignore=r"to_logits\.(?:weight|bias)")
# Before version 5 transformers wrote the towers' names with the prefix that they have inside a CLIPModel.
TEXT_TRANSFORMERS = NameRules(
    "TextEncoder <-> transformers CLIPTextModel",
    TEXT,
    also_read=[(ours, f"text_model.{theirs}") for ours, theirs in flat(TEXT)],
    ignore=POSITION_IDS,
)
IMAGE_TRANSFORMERS = NameRules(
    "ImageEncoder <-> transformers CLIPVisionModel",
    _IMAGE,
    also_read=[(ours, f"vision_model.{theirs}") for ours, theirs in flat(_IMAGE)],
    ignore=POSITION_IDS,
)
CLIP_TRANSFORMERS = NameRules("Clip <-> transformers CLIPModel", _CLIP, ignore=POSITION_IDS)

_RULES: dict[type[Config], NameRules] = {
    UNetConfig: UNET_DIFFUSERS,
    AutoencoderConfig: AUTOENCODER_DIFFUSERS,
    VQAutoencoderConfig: VQ_DIFFUSERS,
    BertEncoderConfig: BERT_DIFFUSERS,
    TextEncoderConfig: TEXT_TRANSFORMERS,
    ImageEncoderConfig: IMAGE_TRANSFORMERS,
    ClipConfig: CLIP_TRANSFORMERS,
}


def rules_for(config: Config) -> NameRules:
    """Return the rules of the model that `config` describes; ConfigError if it has no foreign counterpart."""
    if type(config) not in _RULES:
        known = ", ".join(sorted(each.__name__ for each in _RULES))
        raise ConfigError("names.rules_for", given=type(config).__name__, expected=f"one of {known}")
    if isinstance(config, UNetConfig) and config.context_dim is None:
        return PLAIN_UNET_DIFFUSERS
    return _RULES[type(config)]


def to_foreign(name: str, config: Config) -> str:
    """Return the name that diffusers or transformers has for our parameter `name` of the model of `config`."""
    return rules_for(config).to_foreign(name)


def from_foreign(name: str, config: Config) -> str:
    """Return our name of a diffusers or transformers parameter of the model of `config`."""
    return rules_for(config).from_foreign(name)


def rename(state: Mapping[str, Value], rules: NameRules, direction: Direction) -> dict[str, Value]:
    """Return `state` under the other names, values untouched; WeightsError if a name is unknown or comes out twice."""
    translate: dict[str, Callable[[str], str]] = {"to_foreign": rules.to_foreign, "from_foreign": rules.from_foreign}
    if direction not in translate:
        raise ConfigError("names.rename direction", given=direction, expected="to_foreign or from_foreign")
    renamed: dict[str, Value] = {}
    for name, value in state.items():
        if direction == "from_foreign" and rules.ignored(name):
            continue
        new = translate[direction](name)
        if new in renamed:
            raise WeightsError(f"{rules.title}: two parameters are named {new}", given=name)
        renamed[new] = value
    return renamed
