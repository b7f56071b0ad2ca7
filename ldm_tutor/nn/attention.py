"""Attention: one function, one module, and an optional tap that sees or edits the map on its way.

Vaswani et al. 2017 (arXiv 1706.03762), eq. 1: softmax(Q K^T / sqrt(d)) V. Q asks, K answers how well each token
fits, V is what a fitting token hands over. With a context, K and V come from the sentence: cross-attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.errors import AttentionTapError, ShapeError
from ldm_tutor.shapes import Bool, Context, Float, Tensor

FUSED_FROM = 128 * 128  # numbers in one head's map from which the fused kernel trains faster on a CPU
PIECE = 2**20  # numbers of a map that one core holds at once, in bfloat16 2 MB: about its own cache


@dataclass(frozen=True)
class Site:
    """The address of one attention layer, e.g. `up.1.block0.layer0.cross`; built by the U-Net."""

    name: str
    stage: str  # down, mid or up
    level: int  # 0 is the finest feature map
    kind: str  # self or cross
    num_heads: int


@dataclass(frozen=True)
class Row:
    """What one batch row of a U-Net call is: which prompt it belongs to, and whether it sees the sentence."""

    prompt: int
    conditional: bool


@dataclass(frozen=True)
class CallInfo:
    """What the caller declares about one U-Net call: its running step, its time step, and every batch row."""

    step: int | None = None
    t: float | None = None
    rows: tuple[Row, ...] = ()


_call_info: ContextVar[CallInfo] = ContextVar("ldm_tutor_call_info", default=CallInfo())


@contextlib.contextmanager
def declare_call(info: CallInfo) -> Iterator[None]:
    """Tell every tap what the U-Net calls inside this block are; samplers and guidance do it."""
    token = _call_info.set(info)
    try:
        yield
    finally:
        _call_info.reset(token)


def current_call() -> CallInfo:
    """Return what `declare_call` said about the U-Net call under way; an empty CallInfo outside of one."""
    return _call_info.get()


@dataclass(frozen=True)
class Call:
    """What a tap is told with each map: where it is, on which grid (h, w), and in which U-Net call."""

    site: Site
    grid: tuple[int, int]
    info: CallInfo


@runtime_checkable
class Tap(Protocol):
    """Looks at an attention map of shape (b, heads, n, m), float32, rows summing to 1.

    Returning None leaves the model's output bit for bit as it was; returning a tensor of the same shape replaces
    the map.
    """

    def __call__(self, call: Call, probs: Float[Tensor, "b heads n m"]) -> Float[Tensor, "b heads n m"] | None: ...


def attention_probs(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], mask: Bool[Tensor, "n m"] | None = None
) -> Float[Tensor, "b heads n m"]:
    """Return softmax(q k^T / sqrt(d)) in float32; `mask` is True where a query may look."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(dim=-1)


def attend(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    mask: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Return attention_probs(q, k, mask) @ v by the fastest way there is.

    That is torch's fused kernel, except on a CPU. There, while training, its backward pass is slower than two matrix
    products for small maps, in bfloat16 up to seven times; and without gradients, in bfloat16, it takes twice as long
    as products of pieces that fit the cache (`bench/attention.py`, `docs/speed.txt`).
    """
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            if q.shape[-2] * k.shape[-2] < FUSED_FROM:
                return attention_probs(q, k, mask).to(v.dtype) @ v
        elif q.dtype == torch.bfloat16:
            return attend_in_pieces(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_in_pieces(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    mask: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Return what `attend` does, some heads and some rows of their maps at a time; no whole map is ever held."""
    b, heads, n, d = q.shape
    rows = min(n, max(1, PIECE // k.shape[-2]))
    at_once = max(1, torch.get_num_threads() * PIECE // (rows * k.shape[-2]))
    q, k, v = (q * d**-0.5).flatten(0, 1), k.flatten(0, 1).transpose(-1, -2), v.flatten(0, 1)
    out = torch.empty_like(q)
    for some in (slice(first, first + at_once) for first in range(0, b * heads, at_once)):
        for part in (slice(first, first + rows) for first in range(0, n, rows)):
            scores = q[some, part] @ k[some]
            if mask is not None:
                scores = scores.masked_fill(~mask[part], float("-inf"))
            out[some, part] = scores.softmax(dim=-1) @ v[some]
    return out.unflatten(0, (b, heads))


class Attention(nn.Module):
    """Multi-head attention: self-attention without a context, cross-attention with one.

    `dim`: width of the tokens that ask; `context_dim`: width of the tokens that answer (default `dim`).
    `head_channels`: width of one head, by default dim / num_heads.
    The U-Net has no bias on Q, K and V; CLIP and the autoencoder have one (`qkv_bias`).
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        context_dim: int | None = None,
        head_channels: int | None = None,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        if head_channels is None and dim % num_heads:
            raise ShapeError("Attention: dim must split evenly over num_heads", given=(dim, num_heads))
        context_dim = context_dim or dim
        inner = dim if head_channels is None else num_heads * head_channels
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim, inner, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim, inner, bias=qkv_bias)
        self.to_out = nn.Linear(inner, dim)
        self.site: Site | None = None  # set by the U-Net that owns this layer
        self.tap: Tap | None = None  # set and removed by attention_maps.watch only

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Context | None = None,
        mask: Bool[Tensor, "n m"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`grid`: height and width of the feature map whose positions the n tokens are, for the tap."""
        context = x if context is None else context
        q, k, v = (self._split(t) for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        out = attend(q, k, v, mask) if self.tap is None else self._attend_tapped(q, k, v, mask, grid)
        return self.to_out(out.transpose(1, 2).flatten(2))  # b heads n d -> b n (heads d)

    def _split(self, t: Float[Tensor, "b n d"]) -> Float[Tensor, "b heads n d_head"]:
        return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # b n (heads d) -> b heads n d

    def _attend_tapped(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, grid: tuple[int, int] | None
    ) -> Tensor:
        if self.tap is None or self.site is None or grid is None:
            raise AttentionTapError(
                "Attention: a tap needs to know where it is",
                given={"site": self.site, "grid": grid},
                expected="both; attach the tap with watch() and call the layer through the U-Net",
            )
        probs = attention_probs(q, k, mask)
        edited = self.tap(Call(self.site, grid, current_call()), probs)
        if edited is None:
            return attend(q, k, v, mask)
        if edited.shape != probs.shape:
            raise AttentionTapError(
                f"tap at {self.site.name}", given=tuple(edited.shape), expected=f"the map's shape {tuple(probs.shape)}"
            )
        return edited.to(v.dtype) @ v


class WithSites(nn.Module):
    """A network that has given its attention layers their addresses: what `attention_maps.watch` looks into."""

    def sites(self) -> tuple[Site, ...]:
        """Return the address of every attention layer, in the order of running."""
        return tuple(site for site, _ in self.attention_layers())

    def attention_layers(self) -> tuple[tuple[Site, Attention], ...]:
        """Return every attention layer with its address, in the order of running."""
        layers = [m for m in self.modules() if isinstance(m, Attention)]
        return tuple((layer.site, layer) for layer in layers if layer.site is not None)
