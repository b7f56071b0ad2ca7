"""What can be read from a noun's vector? The U-Net draws "a green dog" from the vectors of these words.

A linear probe (Alain and Bengio 2016, arXiv 1610.01644) learns from sentences with seen pairs to read kind and colour
from the vector of the noun, and is then asked about pairs never seen. It shows what the vector says in a way that is
easy to read; a U-Net reads the other tokens' vectors too, and may still fail where the probe does not.

And how far apart are *left* and *right*? What CLIP hardly tells apart, a U-Net hardly draws (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.nn import functional as F

from ldm_tutor.attention_maps.align import sentence_words, word_places
from ldm_tutor.data.scenes.words import plural
from ldm_tutor.data.scenes.world import COLORS, KINDS
from ldm_tutor.errors import ConfigError
from ldm_tutor.metrics.figures import Measured, mean, share
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.text_encoder import pick_end
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.shapes import Float, Int, Tensor

RIDGE = 0.01  # of the probe, for features of unit variance

TO_THE_LEFT, TO_THE_RIGHT = "to the left of", "to the right of"

_KIND_OF = {form: kind for kind in KINDS for form in (kind, plural(kind))}

Pair = tuple[str, str]


def named_pairs(tokenizer: Tokenizer, caption: str) -> list[tuple[Pair, int]]:
    """Return each (kind, colour) that a caption names, with the column of the noun's last token."""
    words = sentence_words(tokenizer, caption)
    return [
        ((_KIND_OF[noun], color), places[-1])
        for (color, _), (noun, places) in zip(words, words[1:], strict=False)
        if color in COLORS and noun in _KIND_OF
    ]


@torch.inference_mode()
def noun_vectors(
    clip: Clip, tokenizer: Tokenizer, captions: Sequence[str], pairs: Collection[Pair], batch_size: int = 256
) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n 2"]]:
    """Return the vectors of all nouns whose pair of kind and colour is in `pairs`, and the numbers of both."""
    device, vectors, numbers = clip.logit_scale.device, [], []
    for start in range(0, len(captions), batch_size):
        part = captions[start : start + batch_size]
        context = clip.text(tokenizer(part).to(device)).float().cpu()
        for row, caption in zip(context, part, strict=True):
            for (kind, color), column in named_pairs(tokenizer, caption):
                if (kind, color) in pairs:
                    vectors.append(row[column])
                    numbers.append((KINDS.index(kind), COLORS.index(color)))
    if not vectors:
        raise ConfigError("no caption names one of the pairs", given=sorted(pairs)[:3], expected="one at least")
    return torch.stack(vectors), torch.tensor(numbers)


def read_nouns(
    known: tuple[Float[Tensor, "n d"], Int[Tensor, "n 2"]], asked: tuple[Float[Tensor, "m d"], Int[Tensor, "m 2"]]
) -> Measured:
    """Return the share of the `asked` nouns whose kind and colour a probe, fitted to the `known` ones, reads right."""
    vectors, numbers = known
    centre, spread = vectors.mean(dim=0), vectors.std(dim=0).clamp_min(1e-6)
    x, new = (F.pad((given - centre) / spread, (0, 1), value=1.0).double() for given in (vectors, asked[0]))
    targets = torch.cat([F.one_hot(numbers[:, 0], len(KINDS)), F.one_hot(numbers[:, 1], len(COLORS))], dim=1).double()
    weights = torch.linalg.solve(x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ targets)
    kinds, colors = (new @ weights).split([len(KINDS), len(COLORS)], dim=1)
    read = torch.stack([kinds.argmax(dim=1), colors.argmax(dim=1)], dim=1)
    return share((read == asked[1]).all(dim=1).tolist())


@torch.inference_mode()
def side_difference(
    clip: Clip, tokenizer: Tokenizer, captions: Sequence[str], batch_size: int = 256
) -> tuple[Measured, Measured]:
    """Return how far *to the left of* is from *to the right of*, at the word *left* or *right* and at the end token.

    Each caption with one of the two is compared with the same that has the other. The figure is the length of the mean
    difference, in parts of the vectors' mean length: 0 where nothing tells the sides apart.
    """
    told = [caption for caption in captions if TO_THE_LEFT in caption or TO_THE_RIGHT in caption]
    if not told:
        raise ConfigError("no caption names a side", given=len(captions), expected=f"one that says {TO_THE_LEFT!r}")
    sides = {
        "left": [caption.replace(TO_THE_RIGHT, TO_THE_LEFT) for caption in told],
        "right": [caption.replace(TO_THE_LEFT, TO_THE_RIGHT) for caption in told],
    }
    vectors: dict[str, list[Tensor]] = {"left": [], "right": []}  # pieces of shape (n, 2, d): at the word, at the end
    for side, sentences in sides.items():
        for start in range(0, len(sentences), batch_size):
            part = sentences[start : start + batch_size]
            tokens = tokenizer(part).to(clip.logit_scale.device)
            context = clip.text(tokens).float()
            places = [word_places(tokenizer, sentence, side)[-1] for sentence in part]
            at_the_word = context[torch.arange(len(part)), places]
            vectors[side].append(torch.stack([at_the_word, pick_end(context, tokens, clip.end_id)], dim=1).cpu())
    left, right = (torch.cat(pieces) for pieces in vectors.values())
    lengths = torch.cat([left, right]).norm(dim=2).mean(dim=0)
    word, end = ((left - right) / lengths[:, None]).unbind(dim=1)
    return _along_the_mean(word), _along_the_mean(end)


def _along_the_mean(differences: Float[Tensor, "n d"]) -> Measured:
    """Return the length of the mean, as the mean of what each has of its direction."""
    return mean((differences @ F.normalize(differences.mean(dim=0), dim=0)).tolist())
