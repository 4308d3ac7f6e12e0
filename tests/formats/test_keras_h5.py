"""Keras in HDF5: layouts, names, roles, stored configuration, and what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckptdoctor.containers.zip import read_archive
from ckptdoctor.errors import CkptDoctorError
from ckptdoctor.findings import Severity
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.formats.keras_h5 import KerasH5
from ckptdoctor.formats.keras_zip import KerasZip
from ckptdoctor.sources import FileSource
from ckptdoctor.tensors import TensorTable

BN = ("gamma", "beta", "moving_mean", "moving_variance")


def table_of(path: Path) -> TensorTable:
    source = FileSource(path)
    head = source.pread(0, min(4096, source.size))
    options = ReadOptions(trust_hdf5=True)
    if head.startswith(b"PK"):
        return KerasZip().read_archive(read_archive(source), source, options)
    assert KerasH5().sniff(head, source)
    return KerasH5().read(source, options)


def add_layer(group: h5py.Group, name: str, weights: Sequence[str]) -> None:
    made = group.create_group(name)
    made.attrs["weight_names"] = [weight.encode() for weight in weights]
    for weight in weights:
        made[weight] = np.arange(4, dtype="f4")


CONFIG = {
    "class_name": "Sequential",
    "config": {
        "name": "net",
        "layers": [
            {"class_name": "Dense", "config": {"name": "fc", "units": 4}},
            {"class_name": "BatchNormalization", "config": {"name": "bn", "epsilon": 0.01}},
        ],
    },
}


def write_whole(path: Path, **attributes: str) -> None:
    with h5py.File(path, "w") as file:
        for key, value in {"keras_version": "2.4.0", "backend": "tensorflow", **attributes}.items():
            file.attrs[key] = value
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"fc", b"bn", b"res"]
        add_layer(group, "fc", ["fc/kernel:0", "fc/bias:0"])
        add_layer(group, "bn", [f"net/bn/{name}:0" for name in BN])
        add_layer(group, "res", [f"post_bn/{name}:0" for name in BN])
        optimizer = file.create_group("optimizer_weights")
        add_layer(optimizer, "adam", ["m/kernel:0"])
        optimizer["adam/iterations"] = np.int64(7)


def test_a_whole_model_keeps_paths_and_finds_layers(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    training = {"optimizer_config": {"class_name": "SGD", "config": {"lr": 0.5}}}
    write_whole(path, model_config=json.dumps(CONFIG), training_config=json.dumps(training))
    with table_of(path) as table:
        assert (table.format, table.findings) == ("keras-h5", ())
        layers = {name: info.layer for name, info in table.items() if info.role == "model"}
        assert layers["model_weights/fc/fc/kernel:0"] == "fc"
        assert layers["model_weights/bn/net/bn/gamma:0"] == "bn"
        assert layers["model_weights/res/post_bn/moving_variance:0"] == "res/post_bn"
        assert table["optimizer_weights/adam/m/kernel:0"].role == "optimizer"
        assert table.layers["bn"].epsilon == 0.01
        assert table.layers["bn"].inputs == ("fc",)
        assert table.scalars == {"training_config/optimizer_config/config/lr": 0.5}
        assert table.metadata == {
            "layout": "whole model", "framework": "keras", "framework_version": "2.4.0",
            "backend": "tensorflow", "model_class": "Sequential", "model_name": "net",
        }  # fmt: skip


def test_a_weights_only_file_names_layers_from_the_root(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names0"] = [b"resnet"]
        file.attrs["layer_names1"] = [b"head"]
        add_layer(file, "resnet", [f"post_bn/{name}:0" for name in BN])
        add_layer(file, "head", ["head/kernel:0"])
    with table_of(path) as table:
        assert (table.format, table.findings) == ("keras-h5", ())
        assert table["resnet/post_bn/gamma:0"].layer == "resnet/post_bn"
        assert table["resnet/post_bn/gamma:0"].layer_name == ""
        assert table["head/head/kernel:0"].layer == "head"


def test_listed_layers_and_weights_that_are_not_there_are_findings(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    write_whole(path)
    with h5py.File(path, "a") as file:
        del file["model_weights/fc/fc/bias:0"]
        file["model_weights"].attrs["layer_names"] = [b"fc", b"ghost"]
        file["model_weights"].attrs["layer_names1"] = [f"g{i}".encode() for i in range(40)]
    with table_of(path) as table:
        texts = [f.message for f in table.findings]
        assert {(f.code, f.severity) for f in table.findings} == {("CK003", Severity.ERROR)}
        assert any("'model_weights/ghost'" in text for text in texts)
        assert len(texts) == 17


@pytest.mark.parametrize(("version", "unsafe"), [("2.15.0", True), ("3.8.0", False)])
def test_lambda_bytecode_is_unsafe_for_the_keras_that_runs_it(
    tmp_path: Path, version: str, unsafe: bool
) -> None:
    path = tmp_path / "m.h5"
    code = {"class_name": "Lambda", "config": {"name": "l", "function": ["4wEAAA==", None, None],
            "function_type": "lambda"}}  # fmt: skip
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [code]}}
    write_whole(path, model_config=json.dumps(config), keras_version=version)
    with table_of(path) as table:
        assert [(f.code, f.unsafe) for f in table.findings] == [("CK002", unsafe)]


def test_code_in_the_training_config_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    loss = {"loss": {"class_name": "function", "module": "os", "config": "system"}}
    write_whole(path, training_config=json.dumps(loss))
    with table_of(path) as table:
        assert [(f.code, f.severity) for f in table.findings] == [("CK002", Severity.ERROR)]


def test_weights_h5_takes_the_names_of_vars(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        for group, name in {
            "layers/functional": "resnet", "layers/functional/layers/batch_normalization_99": "post_bn",
            "layers/functional/layers/dense": "fc", "layers/dense": "fc",
            "layers/lstm": "rnn", "layers/lstm/cell": "lstm_cell", "blocks/block_1/bn": "bn_7",
            "optimizer": "adam",
        }.items():  # fmt: skip
            made = file.create_group(f"{group}/vars")
            made.attrs["name"] = name
            if group not in ("layers/functional", "layers/lstm"):
                made["0"] = np.zeros(3, "f4")
        file["metrics/mean/vars/0"] = np.float32(1)
        file["seed_generator/vars/0"] = np.zeros(2, "u4")
    with table_of(path) as table:
        assert (table.format, table.findings) == ("keras-weights-h5", ())
        assert {n: i.layer_name for n, i in table.items() if i.role == "model"} == {
            "layers/functional/layers/batch_normalization_99/vars/0": "post_bn",
            "layers/functional/layers/dense/vars/0": "resnet/fc",
            "layers/dense/vars/0": "fc",
            "layers/lstm/cell/vars/0": "rnn/lstm_cell",
            "blocks/block_1/bn/vars/0": "bn_7",
        }
        assert table["optimizer/vars/0"].role == "optimizer"
        assert table["metrics/mean/vars/0"].role == "training"
        assert table["seed_generator/vars/0"].role == "other"


def test_a_gap_in_the_variables_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        for i in (0, 2, 3):
            file[f"layers/batch_normalization/vars/{i}"] = np.zeros(3, "f4")
    with table_of(path) as table:
        (finding,) = table.findings
        assert finding.code == "CK003"
        assert "variable 1 " in finding.message


def test_bfloat16_without_an_attribute_is_told_in_keras_files_only(tmp_path: Path) -> None:
    keras, other = tmp_path / "m.h5", tmp_path / "x.h5"
    for path, name in ((keras, "model_weights/fc/fc/kernel"), (other, "a")):
        with h5py.File(path, "w") as file:
            file[name] = np.array([b"\x80\x3f"] * 3).view("V2")
    with table_of(keras) as table:
        assert table["model_weights/fc/fc/kernel"].dtype == "bfloat16"
        assert table.read("model_weights/fc/fc/kernel").tolist() == [1, 1, 1]
    with table_of(other) as table:
        assert table["a"].encoding == "opaque"


def test_other_hdf5_is_read_by_its_paths(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["optimizer/a"] = np.zeros(2)
    with table_of(path) as table:
        assert (table.format, table["optimizer/a"].role) == ("hdf5", "model")


@pytest.mark.parametrize("cut", [10, 800, 3000])
def test_a_cut_file_is_refused_with_its_sizes(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.h5"
    write_whole(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CkptDoctorError, match=r"expected .* bytes"):
        table_of(path)


# --- oracle --------------------------------------------------------------------------------------


def nested_model(keras: Any) -> Any:
    layers = keras.layers
    start = layers.Input((8, 8, 3))
    inner = layers.Conv2D(4, 3, name="c_in")(start)
    inner = layers.BatchNormalization(name="bn_in", epsilon=0.02)(inner)
    encoder = keras.Model(start, inner, name="enc")
    block = keras.Sequential(
        [layers.Conv2D(4, 1, name="c_seq", input_shape=(6, 6, 4)),
         layers.BatchNormalization(scale=False, name="bn_in"), layers.Activation("relu")],
        name="seq",
    )  # fmt: skip
    image = layers.Input((8, 8, 3), name="image")
    low = encoder(image)
    joined = layers.add([low, block(low)], name="join")
    pooled = layers.GlobalAveragePooling2D(name="pool")(joined)
    return keras.Model(image, layers.Dense(2, name="head")(pooled), name="outer")


def recurrent_model(keras: Any) -> Any:
    layers = keras.layers
    start = layers.Input((5, 3))
    x = layers.Bidirectional(
        layers.LSTM(4, return_sequences=True, recurrent_initializer="zeros"), name="bi"
    )(start)
    x = layers.TimeDistributed(layers.BatchNormalization(name="tdbn"), name="td")(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.Normalization()(layers.GRU(3, recurrent_initializer="zeros")(x))
    x = layers.BatchNormalization(center=False, scale=False, name="bare")(x)
    return keras.Model(start, layers.Dense(1)(x))


WRITTEN = [
    *(("keras", layout) for layout in ("m.h5", "m.weights.h5", "m.keras")),
    # Keras 3 writes no weights-only .h5 of the legacy layout.
    *(("tf_keras", layout) for layout in ("m.h5", "m.weights.h5", "m.keras", "w.h5")),
]


def framework(name: str) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    if name == "tf_keras":
        pytest.importorskip("tensorflow")
    return pytest.importorskip(name)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "float16", "bfloat16"])
@pytest.mark.parametrize("build", [nested_model, recurrent_model], ids=["nested", "recurrent"])
@pytest.mark.parametrize(("name", "layout"), WRITTEN)
def test_bytes_and_layers_are_those_of_keras(
    tmp_path: Path, name: str, layout: str, build: Any, policy: str
) -> None:
    keras = framework(name)
    before = (
        keras.mixed_precision.global_policy() if name == "tf_keras" else keras.config.dtype_policy()
    )
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = build(keras)
    finally:
        keras.mixed_precision.set_global_policy(before)
    path = tmp_path / layout
    (model.save_weights if layout[0] == "w" or "weights" in layout else model.save)(str(path))
    with table_of(path) as table:
        assert [f for f in table.findings if f.severity > Severity.NOTE] == []
        rows = {n: i for n, i in table.items() if i.role in ("model", "other")}
        read = sorted((str(i.shape), table.read(n).tobytes()) for n, i in rows.items())
        held = sorted((str(tuple(w.shape)), np.asarray(w).tobytes()) for w in model.weights)
        assert read == held
        if layout in ("m.h5", "m.keras"):
            known = [i.layer for i in rows.values() if i.layer in table.layers]
            assert known
            batch = {
                n for n, each in table.layers.items() if each.class_name == "BatchNormalization"
            }
            stored = {i.layer for i in rows.values()}
            assert (batch - {"td/tdbn"}) <= stored
        if build is nested_model and layout == "m.keras":
            assert table.layers["enc/bn_in"].epsilon == 0.02
            assert (
                table.layers["join"].inputs == ("enc/bn_in", "activation")
                or len(table.layers["join"].inputs) == 2
            )
