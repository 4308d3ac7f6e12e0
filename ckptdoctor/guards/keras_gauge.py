"""Weights and moving statistics of a live Keras model, one number each per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .watching import Slot

__all__ = ["KerasGauge"]

_STATISTICS = ("moving_mean", "moving_variance")
_FLOATS = ("float64", "float32", "float16", "bfloat16")


class KerasGauge:
    """Trainable weights and moving statistics, read by one call where the backend compiles.

    With JAX, the model only has its weights when it is asked to fetch them from the training loop.
    """

    def __init__(self, model: Any) -> None:
        own = f"{model.name}/"
        named = [
            (Slot(*_split(variable.path.removeprefix(own)), kind), variable)
            for variable in model.weights
            if variable.dtype in _FLOATS and (kind := _kind(variable))
        ]
        self.slots: Sequence[Slot] = [slot for slot, _ in named]
        self._variables = [variable for _, variable in named]
        self._sums = _summing(self._variables)
        self._fetch: Callable[[], None] | None = getattr(model, "jax_state_sync", None)
        self.dear = self._fetch is not None

    def read(self) -> Any:
        if self._fetch is not None:
            self._fetch()
        return self._sums()

    def suspects(self, readings: Sequence[Any]) -> NDArray[np.bool_]:
        from keras import ops  # noqa: PLC0415

        sums = np.stack([ops.convert_to_numpy(reading) for reading in readings])
        finite: NDArray[np.bool_] = np.isfinite(sums.reshape(len(readings), len(self.slots)))
        return ~finite

    def kind(self, slot: int) -> str:
        from keras import ops  # noqa: PLC0415

        values = self._variables[slot].value
        if bool(ops.any(ops.isnan(values))):
            return "NaN"
        return "Inf" if bool(ops.any(ops.isinf(values))) else ""


def _kind(variable: Any) -> Any:
    if variable.name in _STATISTICS:
        return "statistic"
    return "weight" if variable.trainable else ""


def _split(path: str) -> tuple[str, str]:
    layer, _, part = path.rpartition("/")
    return layer, part


def _summing(variables: Sequence[Any]) -> Callable[[], Any]:
    """Return a function that sums each variable, in one call where the backend compiles."""
    import keras  # noqa: PLC0415

    ops = keras.ops

    def sums() -> Any:
        values = (ops.stop_gradient(variable.value) for variable in variables)
        listed = [ops.sum(ops.cast(value, "float32")) for value in values]
        return ops.stack(listed) if listed else ops.zeros(0)

    if keras.backend.backend() != "tensorflow":
        return sums
    import tensorflow  # noqa: PLC0415

    compiled: Callable[[], Any] = tensorflow.function(sums, autograph=False)
    return compiled
