"""Where Keras itself would put each variable of a live model in each of its layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..containers.hdf5 import read_hdf5
from ..tensors import TensorTable
from .keras_names import Variable

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
    """Stands in for the file that Keras saves to: keeps which variable goes where."""

    def __init__(self) -> None:
        self.places: dict[str, Any] = {}
        self.group = ""

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: object = None) -> _Recorder:  # noqa: ARG002
        fresh = type(self).__new__(type(self))
        fresh.places, fresh.group = self.places, f"{path}/vars" if path else "vars"
        return fresh

    def __setitem__(self, key: str, variable: Any) -> None:
        self.places[f"{self.group}/{key}"] = variable

    def __contains__(self, key: str) -> bool:
        return f"{self.group}/{key}" in self.places

    def keys(self) -> list[str]:
        return [p.rpartition("/")[2] for p in self.places if p.rpartition("/")[0] == self.group]

    def __len__(self) -> int:
        return len(self.keys())


def _places(model: Any) -> dict[str, Any]:
    """Path in a ``.weights.h5`` -> variable, by Keras' own walk; empty if Keras has changed it."""
    root = _package(model)
    try:
        library = __import__(f"{root}.src.saving.saving_lib", fromlist=["_save_state"])
        recorder = _Recorder()
        store = getattr(library, "H5IOStore", None)
        if store is not None and root == "keras":  # it asks for one of its own
            kind = type("_Recorder", (_Recorder, store), {"__init__": _Recorder.__init__})
            recorder = kind()
        library._save_state(model, recorder, None, "", set())
    except Exception:  # noqa: BLE001  (private, and the user's save_own_variables)
        return {}
    return recorder.places


def _package(model: Any) -> str:
    modules = (each.__module__.partition(".")[0] for each in type(model).__mro__)
    return next((each for each in modules if each in ("keras", "tf_keras")), "keras")


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
    own = [v for v in _legacy_weights(model, own=True) if id(v) in names]
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


def _legacy_weights(layer: Any, *, own: bool = False) -> list[Any]:
    if own:
        return [
            variable
            for kind in ("trainable", "non_trainable")
            for kept in ("variables", "weights")
            for variable in getattr(layer, f"_{kind}_{kept}", None) or ()
        ]
    return [*layer.trainable_weights, *layer.non_trainable_weights]


def _listed(attributes: Mapping[str, Any], key: str) -> Iterator[str]:
    """Names of a list that Keras may have split into key0, key1, ..."""
    for name, value in attributes.items():
        if name.rstrip("0123456789") == key and isinstance(value, list):
            yield from (str(each) for each in value)
