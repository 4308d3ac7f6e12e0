"""What stands beside each BatchNorm in the tree of names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from ..layers import Layer
from .kernels import is_kernel

__all__ = ["MAX_LEVELS", "Child", "Place", "Siblings", "place_of", "siblings_of"]

MAX_LEVELS = 16
"""How far above a layer's own name it is looked for: hostile names have thousands of levels."""


class Place(NamedTuple):
    """A layer in the tree: its name with dots, the part above, and the last component."""

    layer: Layer
    name: str
    parent: str
    leaf: str
    at: int
    """Where in its net it stands, in the order that is trusted."""


class Child(NamedTuple):
    """One component below a parent, and the layers in it, in order."""

    word: str
    places: list[Place]

    @property
    def direct(self) -> Place | None:
        """The layer itself where the child is one, not a block of several."""
        one = self.places[0]
        return one if len(self.places) == 1 and one.leaf == self.word else None

    def holds(self, *kinds: str) -> bool:
        """Whether a layer of these kinds is in it."""
        return any(place.layer.kind in kinds for place in self.places)


def place_of(layer: Layer, at: int) -> Place:
    """Place of a layer; Keras' names are paths too."""
    name = layer.name.replace("/", ".")
    parent, _, leaf = name.rpartition(".")
    return Place(layer, name, parent, leaf, at)


class Siblings:
    """Children of one component, in the order of their first layers."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}

    def add(self, word: str, place: Place) -> None:
        """Add a layer below the child called ``word``."""
        child = self.children.get(word)
        if child is None:
            child = self.children[word] = Child(word, [])
        child.places.append(place)

    @cached_property
    def kernels(self) -> list[Place]:
        """Children that are kernels themselves."""
        direct = (child.direct for child in self.children.values())
        return [place for place in direct if place and is_kernel(place.layer)]

    @cached_property
    def norms(self) -> list[Place]:
        """Children that are BatchNorms themselves."""
        direct = (child.direct for child in self.children.values())
        return [place for place in direct if place and place.layer.kind == "batchnorm"]

    @cached_property
    def channels(self) -> Counter[int]:
        """How many of the BatchNorms have how many channels."""
        return Counter(place.layer.channels for place in self.norms)

    @cached_property
    def numbered(self) -> list[tuple[int, Child]]:
        """Children of a list, by their numbers."""
        words = [word for word in self.children if is_number(word)]
        return sorted((int(word[:18]), self.children[word]) for word in words)

    @cached_property
    def only_norms(self) -> bool:
        """Whether it is a list of normalisations."""
        return all(child.holds("batchnorm", "norm") for _, child in self.numbered)

    @cached_property
    def _ordered(self) -> tuple[list[Child], dict[str, int]]:
        return list(self.children.values()), {word: at for at, word in enumerate(self.children)}

    def before(self, word: str) -> Iterator[Child]:
        """Yield the children before ``word``, the nearest first."""
        ordered, positions = self._ordered
        for at in range(positions[word] - 1, -1, -1):
            yield ordered[at]

    @cached_property
    def _by_digits(self) -> dict[tuple[str, ...], list[Child]]:
        found: dict[tuple[str, ...], list[Child]] = {}
        for child in self.children.values():
            digits = digits_of(child.word)
            for end in range(1 if digits else 0, len(digits) + 1):
                found.setdefault(digits[:end], []).append(child)
        return found

    def of_numbers(self, leaf: str) -> Sequence[Child]:
        """Children whose numbers begin with those of ``leaf``; without any where it has none."""
        return self._by_digits.get(digits_of(leaf), ())


def is_number(word: str) -> bool:
    """Whether a component is the place of a layer in a list."""
    return word.isascii() and word.isdigit()


def digits_of(word: str) -> tuple[str, ...]:
    """Numbers in a name, but for those that are part of a layer's kind.

    Examples
    --------
    >>> digits_of("conv2_block1_bn"), digits_of("conv2d_3")
    (('2', '1'), ('3',))
    """
    bare = re.sub("conv[123]d|norm_?[123]d|dwconv2", "", word[:100].lower())
    return tuple(re.findall("[0-9]+", bare)[:8])


def siblings_of(places: Sequence[Place], parents: Iterable[str]) -> dict[str, Siblings]:
    """Children of each of ``parents``, in the order of ``places``."""
    found = {parent: Siblings() for parent in parents}
    for place in places:
        for parent, word in _ancestors(place.name):
            if parent in found:
                found[parent].add(word, place)
    return found


def _ancestors(name: str) -> Iterator[tuple[str, str]]:
    end = len(name)
    for _ in range(MAX_LEVELS):
        cut = name.rfind(".", 0, end)
        yield (name[: max(cut, 0)], name[cut + 1 : end])
        if cut <= 0:
            return
        end = cut
