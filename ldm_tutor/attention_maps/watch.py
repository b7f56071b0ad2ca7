"""Attach a tap to attention layers for the length of a `with` block, loudly, and never a moment longer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from torch import nn

from ldm_tutor.errors import AttentionTapError
from ldm_tutor.models.dit import DiT
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import Attention, Call, Site, Tap
from ldm_tutor.shapes import Float, Tensor

# "cross", "self", "all", the name of a site, several names, or a function that says yes or no to a site.
Where = str | Sequence[str] | Callable[[Site], bool]

KINDS = ("cross", "self", "all")


def select_sites(sites: Sequence[Site], where: Where) -> tuple[Site, ...]:
    """Return those of `sites` that `where` means, in their order.

    Raises AttentionTapError, with the names there are, where a name is unknown or nothing fits.
    """
    names = [site.name for site in sites]
    if callable(where):
        chosen = tuple(site for site in sites if where(site))
    elif isinstance(where, str) and where in KINDS:
        chosen = tuple(site for site in sites if where in ("all", site.kind))
    else:
        wanted = [where] if isinstance(where, str) else list(where)
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise AttentionTapError("no such attention site", given=unknown, expected=f"one of {KINDS} or of {names}")
        chosen = tuple(site for site in sites if site.name in wanted)
    if not chosen:
        raise AttentionTapError("no attention site fits", given=where, expected=f"one of {KINDS} or of {names}")
    return chosen


@contextlib.contextmanager
def watch(unet: UNet | DiT, tap: Tap, where: Where = "cross") -> Iterator[tuple[Site, ...]]:
    """Let `tap` see, or edit, the chosen attention maps of every U-Net call inside the block; yields their sites.

    The layers are as they were when the block ends, also by an error. Raises AttentionTapError where nothing fits,
    where a chosen layer is watched already (use `chain` for two taps), and for a compiled U-Net, which would not see
    the tap.
    """
    layers = _layers(unet)
    sites = select_sites([site for site, _ in layers], where)
    chosen = [layer for site, layer in layers if site in sites]
    taken = [site.name for site, layer in layers if site in sites and layer.tap is not None]
    if taken:
        raise AttentionTapError(
            "watch: these sites are watched already", given=taken, fix="one watch with chain(first, second) does both"
        )
    try:
        for layer in chosen:
            layer.tap = tap
        yield sites
    finally:
        for layer in chosen:
            layer.tap = None  # what it was: a layer that had a tap was refused above


def chain(*taps: Tap) -> Tap:
    """Return one tap that asks `taps` in turn; each sees the map as the ones before it left it."""

    def ask_all(call: Call, probs: Float[Tensor, "b heads n m"]) -> Float[Tensor, "b heads n m"] | None:
        edited: Tensor | None = None
        for tap in taps:
            answer = tap(call, probs if edited is None else edited)
            edited = edited if answer is None else answer
        return edited

    return ask_all


def _layers(unet: UNet | DiT) -> tuple[tuple[Site, Attention], ...]:
    """Return the U-Net's attention layers, or say why it has none that a tap could reach."""
    if isinstance(unet, nn.Module):
        for name, module in unet.named_modules():
            if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
                raise AttentionTapError(
                    f"watch: the U-Net is compiled (at {name or 'its top'!r}), and compiled code would not see the tap",
                    fix="watch the plain U-Net that was given to torch.compile",
                )
    if not hasattr(unet, "attention_layers"):
        raise AttentionTapError("watch: no attention_layers()", given=type(unet).__name__, expected="a UNet")
    return unet.attention_layers()
