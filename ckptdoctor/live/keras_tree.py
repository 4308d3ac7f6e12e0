"""Layers and operations of a live Keras model, named by their path; Keras 3 and Keras 2 alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .subject import NormLayer

__all__ = ["Node", "as_norm", "children_of", "is_built", "walk"]

MAX_DEPTH = 100
"""Of layers in layers: a layer that holds itself would never end."""


class Node(NamedTuple):
    """A layer, or an operation of a functional graph.

    ``name`` is the path of layer names from the model's own children down; the model itself is
    called what it calls itself.
    """

    name: str
    layer: Any
    leaf: bool


def walk(model: Any) -> tuple[Node, ...]:
    """Model, its layers and theirs, each object once, parents before children, as declared."""
    found: list[Node] = []
    names: dict[str, int] = {}
    seen: set[int] = set()

    def visit(layer: Any, path: tuple[str, ...]) -> None:
        if id(layer) in seen or len(path) > MAX_DEPTH:
            return
        seen.add(id(layer))
        children = list(children_of(layer))
        name = "/".join(path) or str(getattr(layer, "name", "") or type(layer).__name__)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        found.append(Node(name, layer, not children))
        for child in children:
            visit(child, (*path, str(child.name)))

    visit(model, ())
    return tuple(found)


def children_of(layer: Any) -> Iterator[Any]:
    """Layers and operations directly inside, in the order in which they were made."""
    seen: set[int] = set()
    for child in (*_graph(layer), *_tracked(layer)):
        if id(child) not in seen and hasattr(child, "call") and hasattr(child, "name"):
            seen.add(id(child))
            yield child


def _graph(layer: Any) -> list[Any]:
    """Nodes of a functional or sequential model: operations are no layers, and nobody tracks them."""
    for attribute in ("operations", "layers"):
        nodes = getattr(layer, attribute, None)
        if isinstance(nodes, list | tuple):
            return list(nodes)
    return []


def _tracked(layer: Any) -> list[Any]:
    if hasattr(layer, "_layers"):  # Keras 3, whose _flatten_layers lists them backwards
        tracked = list(layer._layers)
        # a Sequential runs through a functional twin of itself
        return [child for child in tracked if child is not getattr(layer, "_functional", None)]
    flatten = getattr(layer, "_flatten_layers", None)
    return list(flatten(recursive=False, include_self=False)) if callable(flatten) else []


def is_built(model: Any) -> bool:
    """Whether every layer has its variables."""
    return all(getattr(node.layer, "built", True) for node in walk(model))


def as_norm(node: Node, names: dict[int, str]) -> NormLayer | None:
    """Read a BatchNorm with running statistics; None for any other layer, or one not built yet.

    ``names`` gives the table's name of a variable by the identity of the object.
    """
    layer = node.layer
    mean, var = getattr(layer, "moving_mean", None), getattr(layer, "moving_variance", None)
    if mean is None or var is None or len(getattr(var, "shape", ())) != 1:
        return None
    if tuple(mean.shape) != tuple(var.shape):
        return None
    axis = getattr(layer, "axis", -1)
    axis = axis if isinstance(axis, int | np.integer) else next(iter(axis), -1)
    return NormLayer(
        name=node.name,
        channels=int(var.shape[0]),
        axis=int(axis),
        epsilon=float(getattr(layer, "epsilon", 0.0)),
        unbiased=bool(getattr(layer, "fused", False)),
        mean=names.get(id(mean), ""),
        var=names.get(id(var), ""),
    )
