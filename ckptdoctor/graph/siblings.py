"""What stands beside each BatchNorm in the tree of names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..layers import Layer

__all__ = ["MAX_LEVELS", "Child", "Place", "children_of", "place_of"]

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


def children_of(places: Sequence[Place], parents: Iterable[str]) -> dict[str, dict[str, Child]]:
    """Children of each of ``parents`` by their word, in the order of ``places``."""
    found: dict[str, dict[str, Child]] = {parent: {} for parent in parents}
    for place in places:
        for parent, word in _ancestors(place.name):
            children = found.get(parent)
            if children is None:
                continue
            child = children.get(word)
            if child is None:
                child = children[word] = Child(word, [])
            child.places.append(place)
    return found


def _ancestors(name: str) -> Iterator[tuple[str, str]]:
    end = len(name)
    for _ in range(MAX_LEVELS):
        cut = name.rfind(".", 0, end)
        yield (name[: max(cut, 0)], name[cut + 1 : end])
        if cut <= 0:
            return
        end = cut
