"""Table over the variables of a live Keras model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ..dtypes import DTYPES
from ..errors import UsageError
from ..keras.config import read_scalars
from ..tensors import BLOCK_BYTES, Array, TensorInfo, TensorTable
from .keras_arrays import type_of, values_of
from .keras_names import Variable, named_variables
from .keras_settings import config_of, stored_layers

__all__ = ["model_table"]


def model_table(model: Any) -> TensorTable:
    """Table of a model's weights, and of its optimizer's where it is compiled and trained.

    Values are read when they are asked for, and are those of that moment.  On the CPU they share
    the model's memory; elsewhere one variable at a time is copied over.

    Parameters
    ----------
    model
        A ``keras.Model`` of Keras 3 or 2.

    Raises
    ------
    UsageError
        If nothing of it is built yet.
    """
    variables = [*named_variables(model), *_optimizer(model)]
    if not variables:
        hint = "call it once on data, or build it"
        raise UsageError(f"{model.name!r:.200} has no variables yet", hint=hint)
    layers = stored_layers(model)
    infos = [_info(variable) for variable in variables]
    return TensorTable(
        path=str(model.name)[:200],
        format="keras-live",
        infos={info.name: info for info in infos if info is not None},
        metadata=_metadata(model),
        scalars=_scalars(model),
        layers=layers,
        decoder=LiveDecoder({variable.name: variable.value for variable in variables}),
    )


class LiveDecoder:
    """Blocks of variables as they are now."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self.variables = variables

    def blocks(self, info: TensorInfo) -> Iterator[Array]:
        """Flat blocks in row-major order; each shares memory with the variable where it can."""
        values = values_of(self.variables[info.name])
        if values is None:
            raise UsageError(f"{info.name!r:.200} has no values")
        flat = values.reshape(-1)
        step = max(1, BLOCK_BYTES // flat.dtype.itemsize)
        for start in range(0, flat.size, step):
            yield flat[start : start + step]


def _info(variable: Variable) -> TensorInfo | None:
    dtype = DTYPES.get(type_of(variable.value))
    if dtype is None or dtype.kind == "opaque":  # strings of a lookup
        return None
    return TensorInfo(
        name=variable.name,
        path=tuple(variable.name.split("/")),
        dtype=dtype.name,
        shape=tuple(int(each) for each in variable.value.shape),
        role=variable.role,
        layer_name=variable.layer,
    )


def _optimizer(model: Any) -> Iterator[Variable]:
    optimizer = getattr(model, "optimizer", None)
    held = getattr(optimizer, "variables", None) if optimizer is not None else None
    if callable(held):
        held = held()
    names: dict[str, int] = {}
    for variable in held or ():
        path = str(getattr(variable, "path", None) or variable.name).partition(":")[0]
        name = f"optimizer_weights/{path}"
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}#{names[name]}"
        yield Variable(name, "", variable, "optimizer")


def _metadata(model: Any) -> dict[str, str]:
    home = type(model).__mro__
    package = next(
        (
            c.__module__.partition(".")[0]
            for c in home
            if c.__module__.startswith(("keras", "tf_keras"))
        ),
        "keras",
    )
    version = getattr(sys.modules.get(package), "__version__", "")
    return {
        "framework": "keras",
        "framework_version": str(version)[:40],
        "model_class": type(model).__name__,
        "model_name": str(model.name)[:200],
        "layout": "live model",
    }


def _scalars(model: Any) -> dict[str, float | int]:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return {}
    kind = type(optimizer).__name__
    document = {"optimizer": {"class_name": kind, "config": config_of(optimizer)}}
    return read_scalars(document, "compile_config")
