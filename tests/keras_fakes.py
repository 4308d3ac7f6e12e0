"""Just enough of Keras, in NumPy: layers that call each other, variables, a compute type."""

from __future__ import annotations

from typing import Any

import numpy as np


class Variable:
    """As Keras 3 has them: a name without the layer's, and a path with it."""

    def __init__(self, name: str, values: Any, dtype: Any = np.float32) -> None:
        self.name, self._value = name, np.asarray(values, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._value.shape

    @property
    def dtype(self) -> str:
        return self._value.dtype.name

    def assign(self, values: Any) -> None:
        assert np.shape(values) == self.shape
        self._value = np.array(values, self._value.dtype)


class Layer:
    """Calls ``call``, and rewrites what that raises, as Keras does."""

    def __init__(self, name: str, *inner: Any, **weights: Any) -> None:
        self.name, self.built, self._layers = name, True, list(inner)
        self._trainable_variables = [Variable(k, v) for k, v in weights.items()]
        self._non_trainable_variables: list[Variable] = []

    @property
    def weights(self) -> list[Variable]:
        own = [*self._trainable_variables, *self._non_trainable_variables]
        return [*own, *(v for layer in self._layers for v in getattr(layer, "weights", ()))]

    @property
    def layers(self) -> list[Any]:
        return self._layers

    @property
    def trainable_weights(self) -> list[Variable]:
        inner = (v for layer in self._layers for v in layer.trainable_weights)
        return [*self._trainable_variables, *inner]

    @property
    def non_trainable_weights(self) -> list[Variable]:
        inner = (v for layer in self._layers for v in layer.non_trainable_weights)
        return [*self._non_trainable_variables, *inner]

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        settings.pop("training", None)
        try:
            return self.call(*inputs, **settings)
        except Exception as error:  # noqa: BLE001  (as Keras does)
            message = f"Exception encountered when calling {self.name}.call().\n\n{error}"
            raise type(error)(message) from None

    def call(self, inputs: Any) -> Any:
        for layer in self._layers:
            inputs = layer(inputs)
        return inputs


class Dense(Layer):
    """Multiplies by its only weight, and takes arrays of two dimensions."""

    def __init__(self, name: str, factor: float = 2.0) -> None:
        super().__init__(name, kernel=[factor])

    def call(self, inputs: Any) -> Any:
        if inputs.ndim != 2:
            raise ValueError(f"expected 2 dimensions, found {inputs.ndim}")
        with np.errstate(over="ignore"):
            return inputs * self._trainable_variables[0]._value


class BatchNorm(Layer):
    """Normalises by its running statistics."""

    def __init__(self, name: str, channels: int = 3, **settings: Any) -> None:
        super().__init__(name, gamma=[1.0] * channels)
        self.axis, self.epsilon = settings.get("axis", -1), 0.0
        self.moving_mean = Variable("moving_mean", [0.0] * channels)
        self.moving_variance = Variable("moving_variance", [1.0] * channels)
        self._non_trainable_variables = [self.moving_mean, self.moving_variance]

    def call(self, inputs: Any) -> Any:
        return (inputs - self.moving_mean._value) / np.sqrt(self.moving_variance._value)


class Twice(Layer):
    """Calls a shared layer two times."""

    def call(self, inputs: Any) -> Any:
        return self._layers[0](self._layers[0](inputs))


class Observed:
    """Observer that writes down what it hears."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.inputs: dict[str, tuple[np.ndarray, ...]] = {}
        self.outputs: dict[str, tuple[np.ndarray, ...]] = {}

    def before(self, call: Any, inputs: Any) -> None:
        self.log.append(("before", call.layer, call.class_name, call.index, call.depth, call.leaf))
        self.inputs[call.layer] = tuple(each.copy() for each in inputs)

    def after(self, call: Any, outputs: Any) -> None:
        self.log.append(("after", call.layer, call.class_name, call.index, call.depth, call.leaf))
        self.outputs[call.layer] = tuple(each.copy() for each in outputs)

    @property
    def order(self) -> list[str]:
        return [row[1] for row in self.log if row[0] == "before"]
