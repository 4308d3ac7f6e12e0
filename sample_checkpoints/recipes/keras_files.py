"""Samples that Keras 3, Keras 2 (as tf_keras) and h5py write."""

from __future__ import annotations

import base64
import io
import json
import re
import unittest.mock
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from . import sample
from .networks import overflowed, resnet_v2_blocks, trained, uniform

EPOCH = (1980, 1, 1, 0, 0, 0)
SAVED_AT = "2026-11-20@12:00:00"
Values = Callable[[str, tuple[int, ...]], Any]


def resnet_v2(values: Values, *, width: int = 4, classes: int = 3) -> keras.Model:
    """Thin ResNetV2 below a new head: float16 activations, a loss scaler, weights in float32."""
    keras.utils.clear_session()
    policy = keras.DTypePolicy("mixed_float16")
    layer = keras.layers

    def norm(x: Any, name: str) -> Any:
        x = layer.BatchNormalization(epsilon=1.001e-5, name=f"{name}_bn", dtype=policy)(x)
        return layer.Activation("relu", name=f"{name}_relu", dtype=policy)(x)

    def conv(x: Any, filters: int, size: int, name: str, **options: Any) -> Any:
        options = {"padding": "same", "dtype": policy, "name": name} | options
        return layer.Conv2D(filters, size, **options)(x)

    inputs = keras.Input((16, 16, 3), name="images")
    x = conv(inputs, width, 3, "conv1_conv", strides=2)
    for block, widens in resnet_v2_blocks():
        active = norm(x, f"{block}_preact")
        shortcut = conv(active, width * 4, 1, f"{block}_0_conv") if widens else x
        y = conv(active, width, 1, f"{block}_1_conv", use_bias=False)
        y = conv(norm(y, f"{block}_1"), width, 3, f"{block}_2_conv", use_bias=False)
        y = conv(norm(y, f"{block}_2"), width * 4, 1, f"{block}_3_conv")
        x = layer.Add(name=f"{block}_out", dtype=policy)([shortcut, y])
    base = keras.Model(inputs, norm(x, "post"), name="resnet101v2")

    head = keras.Input((16, 16, 3), name="input")
    x = layer.GlobalAveragePooling2D(name="avg_pool", dtype=policy)(base(head))
    x = layer.Dense(classes, activation="softmax", name="predictions", dtype="float32")(x)
    model = keras.Model(head, x, name="classifier")
    compile_and_fill(keras, model, values, optimizer="sgd")
    return model


def compile_and_fill(framework: Any, model: Any, values: Values, *, optimizer: str) -> None:
    """Compile, so that the file has an optimizer, and set every weight and slot by its name."""
    kinds = {
        "sgd": framework.optimizers.SGD(learning_rate=0.01),
        "adam": framework.optimizers.Adam(learning_rate=1e-3),
    }
    chosen = kinds[optimizer]
    if framework is keras and optimizer == "sgd":
        chosen = framework.optimizers.LossScaleOptimizer(chosen)
    model.compile(optimizer=chosen, loss="sparse_categorical_crossentropy", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    for weight in model.weights:
        name = getattr(weight, "path", weight.name).removesuffix(":0")
        weight.assign(values(name, tuple(weight.shape)))
    if optimizer == "adam":
        for slot in _slots(model.optimizer):
            name = getattr(slot, "path", slot.name)
            high = 1e-6 if "v" in name.replace("/", "_").split("_") else 1e-3
            slot.assign(uniform(name, tuple(slot.shape), 0.0, high))


def _slots(optimizer: Any) -> list[Any]:
    variables = optimizer.variables
    every = variables() if callable(variables) else variables
    return [variable for variable in every if len(variable.shape)]


def dense_net(framework: Any, *, names: bool = True) -> Any:
    """Dense, BatchNorm, dense; without ``names`` the layers get the ones Keras makes up."""
    framework.backend.clear_session()
    layer = framework.layers
    named = (lambda name: {"name": name}) if names else (lambda _: {})
    model = framework.Sequential(
        [
            framework.Input((6,), name="features"),
            layer.Dense(8, use_bias=False, **named("hidden")),
            layer.BatchNormalization(**named("hidden_bn")),
            layer.ReLU(**named("hidden_relu")),
            layer.Dense(3, activation="softmax", **named("scores")),
        ],
        name="mlp",
    )
    compile_and_fill(framework, model, trained, optimizer="adam")
    return model


def save_keras(model: Any, path: Path, *, deflate: str = "") -> None:
    """``model.save`` to ``.keras``, with the clock taken out of the archive."""
    model.save(path)
    stop_clock(path, deflate=deflate)


def stop_clock(path: Path, *, deflate: str = "") -> None:
    """Take out of a ``.keras`` archive what differs from run to run: dates, and memory addresses.

    Keras stores its members as they are; ``deflate`` names one to compress, which it reads as well.
    """
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    metadata = json.loads(members["metadata.json"])
    members["metadata.json"] = json.dumps(metadata | {"date_saved": SAVED_AT}).encode()
    config = members["config.json"].decode()
    addresses = dict.fromkeys(re.findall(r'"shared_object_id": (\d+)', config))
    for number, address in enumerate(addresses):
        config = config.replace(f'"shared_object_id": {address}', f'"shared_object_id": {number}')
    members["config.json"] = config.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            method = zipfile.ZIP_DEFLATED if name == deflate else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, method)


@sample("healthy/resnet-v2.h5", "Whole model of Keras 3: a nested ResNetV2, mixed precision")
def resnet_h5(path: Path) -> None:
    resnet_v2(trained).save(path)


@sample("healthy/mlp-adam.keras", "Keras 3 archive with Adam; layers with made-up names")
def mlp_keras(path: Path) -> None:
    save_keras(dense_net(keras, names=False), path)


@sample("healthy/mlp-adam.weights.h5", "Keras 3 weights; paths hide the layers' real names")
def mlp_weights(path: Path) -> None:
    dense_net(keras).save_weights(path)


@sample(
    "sick/ck002-pickled-arrays.keras", "`model.weights.npz`: pickles, which Keras gave up loading"
)
def pickled_arrays(path: Path) -> None:
    from keras.src.saving import saving_lib

    class Store(saving_lib.NpzIOStore):
        """Keras would pickle TensorFlow's variables; this keeps plain arrays, as other backends do."""

        def close(self) -> None:
            for group in self.contents.values():
                group.update({key: np.asarray(value) for key, value in group.items()})
            super().close()

    buffer = io.BytesIO()
    with unittest.mock.patch.object(saving_lib, "NpzIOStore", Store):
        saving_lib._save_model_to_fileobj(dense_net(keras), buffer, "npz")
    path.write_bytes(buffer.getvalue())
    stop_clock(path)


@sample("healthy/keras2.h5", "Whole model of Keras 2: names end in `:0`")
def keras2_h5(path: Path) -> None:
    import tf_keras

    dense_net(tf_keras).save(path)


@sample("healthy/keras2-weights.h5", "Weights-only file of Keras 2: layers at the root")
def keras2_weights(path: Path) -> None:
    import tf_keras

    dense_net(tf_keras).save_weights(path)


@sample("healthy/keras2.keras", "Archive of Keras 2, without the layers' names in its HDF5")
def keras2_keras(path: Path) -> None:
    import tf_keras

    save_keras(dense_net(tf_keras), path)


@sample(
    "healthy/chunked-compressed.h5", "Chunks, gzip, lzf, shuffle, checksums, compact, big-endian"
)
def chunked(path: Path) -> None:
    def put(group: h5py.Group, name: str, dtype: str, **options: Any) -> None:
        data = uniform(name, (6, 8), -0.5, 0.5).astype(dtype)
        group.create_dataset(name, data=data, **options)

    with h5py.File(path, "w") as file:
        file.attrs["backend"] = np.bytes_("tensorflow")
        file.attrs["keras_version"] = np.bytes_("2.15.0")
        file.attrs["layer_names"] = np.array([b"dense"])
        group = file.create_group("dense")
        put(group, "gzip", "<f4", chunks=(4, 4), compression="gzip", shuffle=True)
        put(group, "lzf", "<f4", chunks=(3, 8), compression="lzf", fletcher32=True)
        put(group, "chunked", ">f8", chunks=(4, 3))
        put(group, "half", "<f2")
        group.create_dataset("scalar", data=np.float32(0.5))
        group.create_dataset("empty", shape=(0, 4), dtype="<f4")
        group.create_dataset("label", data="trained on Tuesday")
        group.create_dataset("steps", data=np.arange(12, dtype=">i4").reshape(3, 4))
        _compact(group, "compact", uniform("compact", (4,), -1, 1))
        names = [name.encode() for name in group]
        group.attrs["weight_names"] = np.array(names)


def _compact(group: h5py.Group, name: str, values: Any) -> None:
    """Store values inside the object header."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(values.shape)
    data = h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plist)
    data.write(h5py.h5s.ALL, h5py.h5s.ALL, values)


@sample("sick/bn001-overflow-skipped-step.h5", "Founding case: NaN in `post_bn`, weights finite")
def overflow_h5(path: Path) -> None:
    resnet_v2(overflowed).save(path)


@sample("sick/bn001-overflow-skipped-step.weights.h5", "The founding case, its weights alone")
def overflow_weights(path: Path) -> None:
    resnet_v2(overflowed).save_weights(path)


@sample("sick/bn001-overflow-skipped-step.keras", "The founding case as Keras 3 archive")
def overflow_keras(path: Path) -> None:
    # Its 27 kB of JSON would take the sample above 100 kB.
    save_keras(resnet_v2(overflowed), path, deflate="config.json")


@sample("sick/bn001-one-huge-sample-keras2.h5", "Keras 2, one input of 1e20: variance Inf")
def huge_sample(path: Path) -> None:
    import tf_keras

    model = dense_net(tf_keras)
    variance = model.get_layer("hidden_bn").moving_variance
    variance.assign(np.full(variance.shape, np.inf, np.float32))
    model.save(path)


@sample("sick/ck002-lambda-layer.keras", "A Lambda layer: marshalled Python code in config.json")
def lambda_layer(path: Path) -> None:
    keras.utils.clear_session()
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2, name="double", output_shape=(4,))],
        name="with_code",
    )
    save_keras(model, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    config = json.loads(members["config.json"])
    code = config["config"]["layers"][1]["config"]["function"]["config"]
    # The real bytecode names this file and differs between Pythons; nobody may run it anyhow.
    code["code"] = base64.encodebytes(b"\xe3" + bytes(64)).decode()
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)


@sample("sick/ck003-missing-layer.h5", "`layer_names` lists a layer that the file does not hold")
def missing_layer(path: Path) -> None:
    keras2_weights(path)
    with h5py.File(path, "r+") as file:
        names = [name for name in file.attrs["layer_names"] if b"bn" not in _bytes(name)]
        lost = next(name for name in file.attrs["layer_names"] if b"bn" in _bytes(name))
        assert names
        del file[_bytes(lost).decode()]


def _bytes(name: str | bytes) -> bytes:
    return name.encode() if isinstance(name, str) else name


@sample("sick/ck004-never-written.h5", "A dataset that was declared, but whose data never came")
def never_written(path: Path) -> None:
    keras2_weights(path)
    with h5py.File(path, "r+") as file:
        file["scores"].create_dataset("never", shape=(64, 3), dtype="<f4")


@sample("sick/ck006-external-links.h5", "A soft link, and a link to another file of the machine")
def external_links(path: Path) -> None:
    keras2_weights(path)
    with h5py.File(path, "r+") as file:
        file["scores"]["alias"] = h5py.SoftLink("/hidden/hidden/kernel:0")
        file["scores"]["elsewhere"] = h5py.ExternalLink("/etc/passwd.h5", "/secret")
