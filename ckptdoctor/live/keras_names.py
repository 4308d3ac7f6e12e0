"""Names of a live Keras model's variables: the path of layers and the variable's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..tensors import Role
from .keras_tree import Node, walk

__all__ = ["Variable", "named_variables", "own_variables", "variable_names"]


class Variable(NamedTuple):
    """A variable of a model: its name in the table, the layer's, and the object."""

    name: str
    layer: str
    value: Any
    role: Role = "model"


def named_variables(model: Any, nodes: Sequence[Node] = ()) -> list[Variable]:
    """Weights of a model, each once, in the order of its layers.

    Random states and metrics are left out, as Keras leaves them out of ``weights``.
    """
    try:
        wanted = {id(each): each for each in model.weights}
    except ValueError:  # of Keras 2, and not built
        return []
    found: list[Variable] = []
    names: dict[str, int] = {}

    def add(layer: str, variable: Any) -> None:
        if wanted.pop(id(variable), None) is None:
            return
        leaf = _leaf(variable)
        name = f"{layer}/{leaf}" if layer else leaf
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        found.append(Variable(name, layer, variable))

    for node in nodes or walk(model):
        for variable in own_variables(node.layer):
            add("" if node.layer is model else node.name, variable)
    for variable in list(wanted.values()):  # held by something that is no layer
        add(_place(variable), variable)
    return found


def variable_names(variables: Sequence[Variable]) -> dict[int, str]:
    """Name in the table by the identity of the variable."""
    return {id(variable.value): variable.name for variable in variables}


def own_variables(layer: Any, *kinds: str) -> Iterator[Any]:
    """Variables of a layer without those of the layers inside; trainable ones first."""
    for kept in ("variables", "weights"):  # Keras 3, Keras 2
        for kind in kinds or ("trainable", "non_trainable"):
            yield from getattr(layer, f"_{kind}_{kept}", None) or ()


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name)


def _leaf(variable: Any) -> str:
    return str(variable.name).rpartition("/")[2].partition(":")[0] or "variable"


def _place(variable: Any) -> str:
    return _path(variable).rpartition("/")[0]
