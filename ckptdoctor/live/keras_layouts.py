"""Where Keras itself would put each variable of a live model in each of its layouts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..containers.hdf5 import read_hdf5
from ..tensors import TensorTable
from .keras_names import Variable, own_variables
from .keras_tree import walk

__all__ = ["exact_pairs"]


def exact_pairs(model: Any, variables: Sequence[Variable], table: TensorTable) -> dict[str, str]:
    """Pair a model's variables with a file's tensors as Keras does: by place, never by name.

    Keras 3 numbers the layers of a model by class, Keras 1 and 2 list them in order; names that
    Keras made up, which differ from one run to the next, take no part.  Shapes are not looked at.
    Empty where that is not to be found out.
    """
    names = {id(variable.value): variable.name for variable in variables}
    if table.format == "keras-h5":
        return _legacy_pairs(model, names, table)
    places = _places(model)
    pairs = {}
    for place, variable in places.items():
        name = names.get(id(variable))
        for spelt in (place, place.replace("layers/", "_layer_checkpoint_dependencies/")):
            if name is not None and spelt in table:
                pairs[name] = spelt
                break
    return pairs


# --- the layout of Keras 3 -----------------------------------------------------------------------


class _Recorder:
    """Stands in for the file that Keras saves to: keeps which variable goes where.

    Keras 3 hands over variables, Keras 2 their values: those are told from the layer that was
    at it, which Keras then adds to the objects that it has visited.
    """

    def __init__(self) -> None:
        self.places: dict[str, Any] = {}
        self.group = ""
        self.values: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: object = None) -> _Recorder:  # noqa: ARG002
        self.group, self.values = (f"{path}/vars" if path else "vars"), {}
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        self.values[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def keys(self) -> list[str]:
        return list(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def visited(self, layer: Any) -> None:
        """Note the variables of a layer that has now been saved."""
        own = list(own_variables(layer))
        given = list(self.values.values())
        known = {id(variable) for variable in own}
        if not any(id(value) in known for value in given):
            if [tuple(np.shape(value)) for value in given] != [tuple(v.shape) for v in own]:
                return
            given = own
        self.places |= {f"{self.group}/{k}": v for k, v in zip(self.values, given, strict=True)}


class _Visited(set[int]):
    """Objects that Keras has saved, by identity."""

    def __init__(self, recorder: _Recorder, layers: Mapping[int, Any]) -> None:
        super().__init__()
        self.recorder, self.layers = recorder, layers

    def add(self, element: int) -> None:
        super().add(element)
        if element in self.layers:
            self.recorder.visited(self.layers[element])


def _places(model: Any) -> dict[str, Any]:
    """Path in a ``.weights.h5`` -> variable, by Keras' own walk; empty if Keras has changed it."""
    root = _package(model)
    if not root:
        return {}
    try:
        library = importlib.import_module(f"{root}.src.saving.saving_lib")
        recorder = _Recorder()
        if root == "keras":  # it asks for a store of its own
            bases = (_Recorder, library.H5IOStore)
            recorder = type("_Recorder", bases, {"__init__": _Recorder.__init__})()
        layers = {id(node.layer): node.layer for node in walk(model)}
        library._save_state(model, recorder, None, "", _Visited(recorder, layers))
    except Exception:  # noqa: BLE001  (private, and the user's save_own_variables)
        return {}
    return recorder.places


def _package(model: Any) -> str:
    modules = (each.__module__.partition(".")[0] for each in type(model).__mro__)
    return next((each for each in modules if each in ("keras", "tf_keras")), "")


# --- the layout of Keras 1 and 2 -----------------------------------------------------------------


def _legacy_pairs(model: Any, names: Mapping[int, str], table: TensorTable) -> dict[str, str]:
    contents = read_hdf5(table.files[0])
    if contents.decoder is not None:
        contents.decoder.close()
    attributes = contents.attributes
    top = "model_weights" if "model_weights" in attributes else ""
    stored = []
    for layer in _listed(attributes.get(top, {}), "layer_names"):
        group = f"{top}/{layer}" if top else layer
        weights = [f"{group}/{each}" for each in _listed(attributes.get(group, {}), "weight_names")]
        if weights:
            stored.append(weights)
    layers = [weights for layer in model.layers if (weights := _legacy_weights(layer))]
    own = [v for v in own_variables(model) if id(v) in names]
    group = f"{top}/top_level_model_weights".strip("/")
    above = [f"{group}/{each}" for each in _listed(attributes.get(group, {}), "weight_names")]
    if len(above) == len(own):
        stored, layers = [*stored, above], [*layers, own]
    pairs: dict[str, str] = {}
    if [len(each) for each in stored] != [len(each) for each in layers]:
        return pairs
    for values, weights in zip(stored, layers, strict=True):
        for value, weight in zip(values, weights, strict=True):
            if id(weight) in names and value in table:
                pairs[names[id(weight)]] = value
    return pairs


def _legacy_weights(layer: Any) -> list[Any]:
    return [*layer.trainable_weights, *layer.non_trainable_weights]


def _listed(attributes: Mapping[str, Any], key: str) -> Iterator[str]:
    """Names of a list that Keras may have split into key0, key1, ..."""
    for name, value in attributes.items():
        if name.rstrip("0123456789") == key and isinstance(value, list):
            yield from (str(each) for each in value)
