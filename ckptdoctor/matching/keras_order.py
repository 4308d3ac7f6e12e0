"""Which layer of one Keras file is which of another, where names are only numbers."""

from __future__ import annotations

import functools
import re

from ..layers import KERAS_CLASSES, Layer, Layers
from ..tensors import TensorTable

__all__ = ["match_by_class_order", "ranks_of"]

_CONTAINERS = r"sequential|functional|model"
"""Models within models, which Keras numbers as it does layers."""


def ranks_of(patient: TensorTable, donor: TensorTable) -> tuple[dict[str, str], dict[str, str]]:
    """Words that Keras made itself -> their rank, where both sides have as many of a kind.

    The same script run twice in one process makes ``conv2d_7`` of what was ``conv2d``: by the
    names as they stand, the third layer of one would be taken for the first of the other.
    """
    ours, theirs = _made_names(patient), _made_names(donor)
    found: tuple[dict[str, str], dict[str, str]] = {}, {}
    for base, numbers in ours.items():
        others = theirs.get(base, {})
        if len(others) == len(numbers):
            for side, known in zip(found, (numbers, others), strict=True):
                for rank, number in enumerate(sorted(known)):
                    side[known[number]] = f"{base}#{rank}"
    return found


def _made_names(table: TensorTable) -> dict[str, dict[int, str]]:
    """Class in snake case -> number -> word."""
    found: dict[str, dict[int, str]] = {}
    words = {
        word
        for info in table.values()
        if "/" in info.name and info.role == "model"
        for word in info.layer.split("/")
    }
    for word in words:
        base, number = _numbered(word)
        if base:
            found.setdefault(base, {})[number] = word
    return found


@functools.lru_cache(maxsize=4096)
def _numbered(word: str) -> tuple[str, int]:
    told = re.fullmatch(r"(.{1,60}?)(?:_(\d{1,9}))?", word, re.DOTALL)
    if told is None:
        return "", 0
    known = any(re.fullmatch(row, told[1]) for row, _ in KERAS_CLASSES)
    known = known or re.fullmatch(_CONTAINERS, told[1]) is not None
    return (told[1], int(told[2] or 0)) if known else ("", 0)


def match_by_class_order(
    patient: TensorTable,
    donor: TensorTable,
    ours: Layers,
    theirs: Layers,
    pairs: dict[str, str],
) -> None:
    """Pair layers by class and place, where one side only numbers them (``conv2d_8/vars/0``).

    The other must hold its configuration: Keras numbers layers in the order in which that lists
    them.  Every layer of a class must have its partner's shapes, or none of the class is paired.
    """
    if not (_unnamed(patient) or _unnamed(donor)):
        return
    left = [_by_class(patient, ours, set(pairs)), _by_class(donor, theirs, set(pairs.values()))]
    for word, wanted in left[0].items():
        offered = left[1].get(word, [])
        if [_shapes(layer) for layer in wanted] == [_shapes(layer) for layer in offered]:
            for layer, other in zip(wanted, offered, strict=True):
                for part, info in layer.parts.items():
                    pairs[info.name] = other.parts[part].name


def _unnamed(table: TensorTable) -> bool:
    return any(
        info.path[-2:-1] == ("vars",) and not info.layer_name
        for info in table.values()
        if info.role == "model"
    )


def _by_class(table: TensorTable, layers: Layers, paired: set[str]) -> dict[str, list[Layer]]:
    """Layers without a partner by class, in Keras' order; empty where that is not known."""
    places = {name: place for place, name in enumerate(table.layers)}
    rows: dict[str, list[tuple[int, Layer]]] = {}
    for layer in layers.all:
        if any(info.name in paired for info in layer.parts.values()):
            continue
        if layer.config is not None:
            told = layer.class_name, places.get(layer.config.name, -1)
        elif layer.key.endswith("/vars"):
            told = _numbered(layer.key.split("/")[-2])
        else:
            continue
        rows.setdefault(_snake(told[0]), []).append((told[1], layer))
    return {
        word: [layer for _, layer in sorted(group, key=lambda row: row[0])]
        for word, group in rows.items()
    }


def _shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    return {part: info.shape for part, info in layer.parts.items()}


def _snake(name: str) -> str:
    """Class name as Keras writes it into names.

    Examples
    --------
    >>> _snake("BatchNormalization"), _snake("Conv2D"), _snake("conv2d")
    ('batch_normalization', 'conv2d', 'conv2d')
    """
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name[:200].rpartition(">")[2])
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
