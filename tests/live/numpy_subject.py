"""A model in NumPy that follows `ckptdoctor.live.subject.Subject`: the tests need no framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ckptdoctor.errors import UsageError
from ckptdoctor.live.subject import Call, NormLayer, Statistics
from ckptdoctor.tensors import TensorTable


class Layer:
    """A layer with a name, maybe with others inside."""

    class_name = ""

    def __init__(self, name: str, *children: Layer) -> None:
        self.name, self.children = name, children
        self.tensors: dict[str, np.ndarray] = {}

    def forward(self, run: Run, *inputs: np.ndarray) -> Any:
        x = inputs[0]
        for child in self.children:
            x = run.call(child, x)
        return x


class Sequential(Layer):
    """Its children, one after the other."""


class Residual(Layer):
    """What its children make of the input, and the input."""

    def forward(self, run, *inputs):
        return super().forward(run, *inputs) + inputs[0]


class Dense(Layer):
    def __init__(self, name: str, wide: int, high: int, seed: int = 0) -> None:
        super().__init__(name)
        random = np.random.default_rng(seed)
        kernel = random.normal(0, (2 / wide) ** 0.5, (wide, high)).astype(np.float32)
        self.tensors = {"weight": kernel, "bias": np.zeros(high, np.float32)}

    def forward(self, run, *inputs):
        if inputs[0].shape[-1] != len(self.tensors["weight"]):
            raise UsageError(f"layer {self.name!r} does not take {inputs[0].shape}")
        return inputs[0] @ self.tensors["weight"] + self.tensors["bias"]


class BatchNorm(Layer):
    def __init__(self, name: str, channels: int, axis: int = -1, epsilon: float = 1e-3) -> None:
        super().__init__(name)
        self.axis, self.epsilon = axis, epsilon
        self.tensors = {
            "gamma": np.ones(channels, np.float32),
            "beta": np.full(channels, 0.1, np.float32),
            "running_mean": np.zeros(channels, np.float32),
            "running_var": np.ones(channels, np.float32),
        }

    def forward(self, run, *inputs):
        x, t = inputs[0], self.tensors
        shape = [1] * x.ndim
        shape[self.axis] = -1
        mean, var, gamma, beta = (
            t[key].reshape(shape) for key in ("running_mean", "running_var", "gamma", "beta")
        )
        return (x - mean) / np.sqrt(var + np.float32(self.epsilon)) * gamma + beta


class Function(Layer):
    """A layer of one function, called what the test says."""

    def __init__(self, name: str, class_name: str, function: Callable[..., Any]) -> None:
        super().__init__(name)
        self.class_name, self.function = class_name, function

    def forward(self, run, *inputs):
        return self.function(*inputs)


def relu(name: str) -> Function:
    return Function(name, "ReLU", lambda x: np.maximum(x, 0))


class Run:
    """One pass: tells the observer, rounds."""

    def __init__(self, observer: Any, only: Any, rounding: str) -> None:
        self.observer, self.only, self.depth = observer, only, 0
        self.counts: dict[str, int] = {}
        self.dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.get(rounding)

    def rounded(self, values: np.ndarray) -> np.ndarray:
        return values if self.dtype is None else values.astype(self.dtype).astype(np.float32)

    def call(self, layer: Layer, *inputs: np.ndarray) -> np.ndarray:
        watched = self.observer is not None and (self.only is None or layer.name in self.only)
        call = Call(
            layer=layer.name,
            class_name=layer.class_name or type(layer).__name__,
            index=self.counts.get(layer.name, 0),
            depth=self.depth,
            leaf=not layer.children,
        )
        self.counts[layer.name] = call.index + 1
        if watched:
            self.observer.before(call, inputs)
        self.depth += 1
        out = layer.forward(self, *inputs)
        self.depth -= 1
        if layer.children == ():
            out = self.rounded(out)
        if watched:
            self.observer.after(call, (out,))
        return out


class NumpySubject:
    """A chain of layers, or one with a forward of its own, as a subject."""

    framework = "numpy"

    def __init__(
        self, *layers: Layer, shapes: Sequence[tuple[Any, str]] = (), root: Layer | None = None
    ) -> None:
        self.root = root or Sequential("", *layers)
        self.shapes = shapes
        self.runs = 0
        self.layers = {layer.name: layer for layer in self._all(self.root)}

    def _all(self, layer: Layer):
        yield layer
        for child in layer.children:
            yield from self._all(child)

    @property
    def norms(self) -> Mapping[str, NormLayer]:
        return {
            name: NormLayer(
                name=name,
                channels=len(layer.tensors["gamma"]),
                axis=layer.axis,
                epsilon=layer.epsilon,
                unbiased=False,
                mean=f"{name}.running_mean",
                var=f"{name}.running_var",
            )
            for name, layer in self.layers.items()
            if isinstance(layer, BatchNorm)
        }

    def inputs(self):
        return self.shapes

    def statistics(self, name):
        held = self.layers[name].tensors
        return Statistics(
            held["running_mean"].astype(np.float64), held["running_var"].astype(np.float64)
        )

    def set_statistics(self, name, statistics):
        held = self.layers[name].tensors
        with np.errstate(over="ignore"):
            held["running_mean"] = np.asarray(statistics.mean, np.float32)
            held["running_var"] = np.asarray(statistics.var, np.float32)

    def run(self, batch, observer=None, *, only=None, rounding=""):
        self.runs += 1
        run = Run(observer, only, rounding)
        with np.errstate(all="ignore"):
            out = run.call(self.root, *(run.rounded(np.asarray(x, np.float32)) for x in batch))
        return (out,)

    def table(self):
        arrays = {
            f"{name}.{key}": value
            for name, layer in self.layers.items()
            for key, value in layer.tensors.items()
        }
        return TensorTable.from_arrays(arrays)


def classifier(seed: int = 0, wide: int = 6) -> NumpySubject:
    """Dense, BatchNorm and ReLU twice, and a head of four classes; statistics fit `samples`."""
    subject = NumpySubject(
        Dense("fc1", wide, 16, seed),
        BatchNorm("bn1", 16),
        relu("relu1"),
        Dense("fc2", 16, 16, seed + 1),
        BatchNorm("bn2", 16),
        relu("relu2"),
        Dense("head", 16, 4, seed + 2),
    )
    fit(subject, samples(256, wide))
    return subject


def fit(subject: NumpySubject, x: np.ndarray) -> None:
    """Statistics of the BatchNorms as training on ``x`` leaves them."""

    class Fit:
        def before(self, call, inputs):
            if call.layer in subject.norms:
                axis = subject.norms[call.layer].axis % inputs[0].ndim
                others = tuple(d for d in range(inputs[0].ndim) if d != axis)
                made = Statistics(inputs[0].mean(others), inputs[0].var(others))
                subject.set_statistics(call.layer, made)

        def after(self, call, outputs): ...

    subject.run((x,), Fit())


def samples(number: int = 64, wide: int = 6, seed: int = 9) -> np.ndarray:
    """Data such as `classifier` was fitted to."""
    return np.random.default_rng(seed).normal(0.3, 1.0, (number, wide)).astype(np.float32)
