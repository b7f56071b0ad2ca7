"""torchvision's data sets by name: pictures with the names of their classes as captions.

`CIFAR10:data/torchvision` means that set below that folder, training part; `CIFAR10/test:data/torchvision` the other
part. Nothing is downloaded: the files must be there (`torchvision.datasets.CIFAR10(ROOT, download=True)` gets them).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from ldm_tutor.data.captioned import UNREADABLE, CaptionedPictures, Trouble
from ldm_tutor.data.picture_files import pixels_of
from ldm_tutor.errors import ConfigError

# How each set is asked for its parts: a keyword and the values for training and test.
_BY_TRAIN = ("train", True, False)
_BY_SPLIT = ("split", "train", "test")
SETS: dict[str, tuple[str, Any, Any]] = {
    "CIFAR10": _BY_TRAIN, "CIFAR100": _BY_TRAIN, "MNIST": _BY_TRAIN, "FashionMNIST": _BY_TRAIN, "KMNIST": _BY_TRAIN,
    "SVHN": _BY_SPLIT, "STL10": _BY_SPLIT, "Food101": _BY_SPLIT, "Flowers102": _BY_SPLIT,
    "OxfordIIITPet": ("split", "trainval", "test"), "Caltech101": ("", None, None),
}  # fmt: skip


def read_torchvision(place: str, side: int) -> CaptionedPictures:
    """Return a set as `CaptionedPictures`, side x side. `place` is NAME:ROOT or NAME/test:ROOT.

    Raises ConfigError for an unknown set, and where its files are not there.
    """
    name, _, root = place.partition(":")
    name, _, part = name.partition("/")
    if name not in SETS or part not in ("", "train", "test"):
        raise ConfigError(
            "torchvision: unknown data set or part",
            given=place,
            expected=f"NAME:FOLDER or NAME/test:FOLDER, NAME one of {', '.join(SETS)}",
        )
    keyword, train, test = SETS[name]
    options = {keyword: test if part == "test" else train} if keyword else {}
    from torchvision import datasets

    make: Callable[..., Any] = getattr(datasets, name)
    try:
        found = make(root=root or "data/torchvision", download=False, **options)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"torchvision: {name} is not in {root or 'data/torchvision'} ({str(error).splitlines()[0]})",
            fix=f"with a network, torchvision.datasets.{name}(FOLDER, download=True) gets it",
        ) from error
    names = [str(each).replace("_", " ").replace(" - ", " ") for each in class_names(found)]
    pictures, captions, where, troubles = [], [], [], []
    for k in range(len(found)):
        try:
            picture, label = found[k]
            pictures.append(pixels_of(picture, side))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's, about a broken file
            troubles.append(Trouble(f"{name}/{k}", UNREADABLE, str(error)))
            continue
        captions.append(names[label] if label < len(names) else str(label))
        where.append(f"{name}/{k}")
    if not pictures:
        raise ConfigError(f"torchvision: {name} has no readable picture", given=root)
    return CaptionedPictures(torch.cat(pictures), captions, where, f"torchvision's {name}", tuple(troubles))


def class_names(found: Any) -> list[str]:
    """Return the names of a set's classes in the order of their numbers; the numbers where it has no names."""
    for attribute in ("classes", "categories"):
        names = getattr(found, attribute, None)
        if names:
            return list(names)
    labels: Any = next((getattr(found, each) for each in ("targets", "labels", "_labels") if hasattr(found, each)), [])
    return [str(k) for k in range(int(max(itertools.chain([0], map(int, labels)))) + 1)]
