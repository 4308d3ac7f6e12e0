"""Keras models as patients: trained once, looked into, damaged and written."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

logging.getLogger("absl").setLevel(logging.ERROR)  # .h5 is called legacy at every save

import h5py
import keras
import numpy as np
import tensorflow as tf
import torch

from .keras_models import MODELS
from .patients import Array, Patient, Spot, Written

tf.config.experimental.enable_op_determinism()

STEPS = 200
BATCH = 32
SUFFIX = {"h5": "model.h5", "keras": "model.keras", "weights.h5": "model.weights.h5"}
INNER = "model.weights.h5"


def numpy_batch(task: Any, rng: torch.Generator, count: int) -> tuple[Array, Array]:
    """Batch in Keras' layout: channels last."""
    x, target = (part.numpy() for part in task.batch(rng, count))
    x = np.moveaxis(x, 1, -1) if x.ndim == 4 else x
    return x, np.moveaxis(target, 1, -1) if target.ndim == 4 else target


class KerasPatient(Patient):
    """A compiled Keras model."""

    framework = "keras"

    def __init__(self, model: str, seed: int, cache: Path) -> None:
        self.model, self.seed = model, seed
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        make, self.task = MODELS[model]
        self.net = make(8 + 4 * (seed % 2))
        rules = (keras.optimizers.Adam(3e-3), keras.optimizers.SGD(0.02, momentum=0.9),
                 keras.optimizers.AdamW(3e-3))  # fmt: skip
        loss = (
            keras.losses.BinaryCrossentropy(from_logits=True) if model == "unet"
            else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )  # fmt: skip
        self.net.compile(rules[seed % 3], loss)
        self.net.optimizer.build(self.net.trainable_variables)
        kept = cache / f"keras-{model}-{seed}.npz"
        if kept.exists():
            with np.load(kept) as stored:
                for name, variable in self._variables().items():
                    variable.assign(stored[name])
                self.loss = float(stored["loss"])
        else:
            rng = torch.Generator().manual_seed(seed + 1000)
            x, target = numpy_batch(self.task, rng, BATCH * STEPS)
            history = self.net.fit(x, target, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
            self.loss = history.history["loss"][-1]
            known = {n: np.asarray(v) for n, v in self._variables().items()}
            np.savez(kept, loss=self.loss, **known)
        own = {v.path for v in self.net.variables}
        read = {n: np.array(v) for n, v in self._variables().items()}
        self.weights = {n: v for n, v in read.items() if n in own}
        self.state = {f"optimizer/{n}": v for n, v in read.items() if n not in own}
        self.fixed = numpy_batch(self.task, torch.Generator().manual_seed(99), 16)[0]
        self.spots = tuple(s for layer in self.net.layers for s in _describe(layer))
        self._templates: dict[str, tuple[bytes, dict[str, str]]] = {}

    def _variables(self) -> dict[str, Any]:
        return {v.path: v for v in (*self.net.variables, *self.net.optimizer.variables)}

    @property
    def layouts(self) -> tuple[str, ...]:
        return tuple(SUFFIX)

    def config(self) -> dict[str, Any]:
        """Stored configuration, as a copy."""
        found: dict[str, Any] = json.loads(self.net.to_json())
        return found

    @cached_property
    def _infer(self) -> Any:
        if self.model == "mlp_bn":  # a graph would keep the mean and variance of Normalization
            return lambda x: self.net(x, training=False)
        return tf.function(lambda x: self.net(x, training=False))

    @cached_property
    def _train_mode(self) -> Any:
        return tf.function(lambda x: self.net(x, training=True))

    def _assign(self, weights: Mapping[str, Array]) -> None:
        for variable in self.net.variables:
            variable.assign(weights[variable.path])
        for layer in self.net.layers:
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()

    def predict(self, weights: Mapping[str, Array]) -> Array:
        self._assign(weights)
        output: Array = self._infer(tf.constant(self.fixed)).numpy().astype(np.float64)
        return output

    def inputs(self, count: int) -> Array:
        return numpy_batch(self.task, torch.Generator().manual_seed(5), count)[0]

    def live(self, batches: Sequence[Array]) -> dict[str, Array]:
        self._assign(self.weights)
        for batch in batches:
            self._train_mode(tf.constant(batch))
        return {v.path: np.array(v) for v in self.net.variables}

    def write(
        self, folder: Path, layout: str, change: Mapping[str, Any],
        config: Callable[[dict[str, Any]], None] | None = None,
    ) -> Written:  # fmt: skip
        content, names = self._template(layout)
        path = folder / SUFFIX[layout]
        if layout == "keras":
            with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(path, "w") as out:
                for member in source.namelist():
                    raw = source.read(member)
                    if member == INNER:
                        inner = io.BytesIO(raw)
                        _patch(inner, names, change)
                        raw = inner.getvalue()
                    elif member == "config.json" and config is not None:
                        stored = json.loads(raw)
                        config(stored)
                        raw = json.dumps(stored).encode()
                    out.writestr(member, raw)
            return Written(path=path, names=names)
        path.write_bytes(content)
        with path.open("r+b") as file:
            _patch(file, names, change)
            if config is not None:
                with h5py.File(file, "r+") as root:
                    stored = json.loads(root.attrs["model_config"])
                    config(stored)
                    root.attrs["model_config"] = json.dumps(stored)
        return Written(path=path, names=names)

    def _template(self, layout: str) -> tuple[bytes, dict[str, str]]:
        """File of the healthy model, and where in it each variable lies, found out by marking each."""
        if layout in self._templates:
            return self._templates[layout]
        variables = self._variables()
        read = {**self.weights, **{n.removeprefix("optimizer/"): v for n, v in self.state.items()}}
        for mark, variable in enumerate(variables.values()):
            variable.assign(np.full(variable.shape, mark + 1).astype(variable.dtype))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / SUFFIX[layout]
            _save(self.net, layout, path)
            marks = {float(mark + 1): name for mark, name in enumerate(variables)}
            names: dict[str, str] = {}
            with h5py.File(_weights(path, layout)) as root:
                root.visititems(lambda name, item: _note(names, marks, name, item))
            for name, variable in variables.items():
                variable.assign(read[name])
            _save(self.net, layout, path)
            content = path.read_bytes()
        names = {
            (n if n in self.weights else f"optimizer/{n}"): stored for n, stored in names.items()
        }
        self._templates[layout] = content, names
        return content, names


def _save(net: keras.Model, layout: str, path: Path) -> None:
    net.save_weights(path) if layout == "weights.h5" else net.save(path)


def _weights(path: Path, layout: str) -> Any:
    if layout != "keras":
        return path
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read(INNER))


def _note(names: dict[str, str], marks: Mapping[float, str], name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset) and item.size and item.dtype.kind in "fiu":
        name_of = marks.get(float(np.asarray(item[...]).flat[0]))
        if name_of is not None:
            names.setdefault(name_of, name)


def _patch(file: BinaryIO, names: Mapping[str, str], change: Mapping[str, Any]) -> None:
    with h5py.File(file, "r+") as root:
        for name, value in change.items():
            if name in names:
                root[names[name]][...] = value


KERNELS = ("Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "Dense")


def _describe(layer: Any) -> list[Spot]:
    """Spots that a layer is."""
    paths = {v.path.rpartition("/")[2]: v.path for v in layer.variables}
    name, kind = layer.name, type(layer).__name__
    if kind == "BatchNormalization":
        words = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "var"}
        made_by = layer.input._keras_history.operation
        feeder = ""
        if type(made_by).__name__ in KERNELS:
            feeder = made_by.variables[0].path
        return [
            Spot(
                layer=name, kind="bn", parts={words[n]: p for n, p in paths.items()}, feeder=feeder
            )
        ]
    if kind == "LayerNormalization":
        return [Spot(layer=name, kind="norm", parts=paths)]
    if kind == "Normalization":
        return [
            Spot(
                layer=name,
                kind="normalization",
                parts={"mean": paths["mean"], "var": paths["variance"]},
            )
        ]
    if kind == "LSTM":
        return [Spot(layer=f"{name}:{n}", kind="kernel", parts={"kernel": paths[n]}, out=1)
                for n in ("kernel", "recurrent_kernel")]  # fmt: skip
    if kind == "Embedding":
        return [Spot(layer=name, kind="embedding", parts={"kernel": paths["embeddings"]})]
    if kind not in KERNELS:
        return []
    bias = {"bias": paths["bias"]} if "bias" in paths else {}
    rank = len(layer.kernel.shape)
    out = rank - 2 if kind in ("DepthwiseConv2D", "Conv2DTranspose") else rank - 1
    return [Spot(layer=name, kind="kernel", parts={"kernel": layer.kernel.path, **bias}, out=out)]
