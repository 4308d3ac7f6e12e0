"""Partners: the same tensor of the same model is found whatever format and wrapping it has."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import patients
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.api import open_checkpoint
from ckptdoctor.matching import Match, match, stripped
from ckptdoctor.roles import role_of
from ckptdoctor.tensors import TensorInfo, TensorTable

ORDER = ("gamma", "beta", "moving_mean", "moving_variance")


def table(tensors: Mapping[str, Any]) -> TensorTable:
    roles = {name: role_of(name.split(".")) for name in tensors}
    return TensorTable.from_arrays(tensors, roles)


def found(patient: Mapping[str, Any], donor: Mapping[str, Any]) -> Match:
    return match(table(patient), table(donor))


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    header, at = {}, 0
    for name in sorted(tensors):
        size = tensors[name].nbytes
        kind = {"float32": "F32", "int64": "I64", "float16": "F16"}[tensors[name].dtype.name]
        header[name] = {
            "dtype": kind,
            "shape": tensors[name].shape,
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    body = b"".join(tensors[name].tobytes() for name in sorted(tensors))
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def save_weights(
    path: Path, layers: Mapping[str, Mapping[str, Any]], *, named: bool = True
) -> Path:
    """Write ``.weights.h5`` as Keras 3 does."""
    counts: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        for name, weights in layers.items():
            base = "batch_normalization" if "moving_mean" in weights else "dense"
            base = "conv2d" if "kernel" in weights and weights["kernel"].ndim == 4 else base
            number = counts[base] = counts.get(base, -1) + 1
            group = file.create_group(
                f"layers/{base}_{number}/vars" if number else f"layers/{base}/vars"
            )
            if named:
                group.attrs["name"] = name
            for i, value in enumerate(weights.values()):
                group[str(i)] = value
    return path


def save_keras_zip(
    path: Path, layers: Mapping[str, Mapping[str, Any]], *, named: bool = True
) -> Path:
    """Write ``.keras`` as Keras 3 does."""
    inner = save_weights(path.with_suffix(".inner.h5"), layers, named=named)
    config = []
    for name, weights in layers.items():
        kind = "BatchNormalization" if "moving_mean" in weights else "Dense"
        kind = "Conv2D" if "kernel" in weights and weights["kernel"].ndim == 4 else kind
        config.append({"class_name": kind, "module": "keras.layers", "config": {"name": name}})
    model = {
        "class_name": "Sequential",
        "module": "keras",
        "config": {"name": "net", "layers": config},
    }
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("metadata.json", json.dumps({"keras_version": "3.5.0"}))
        out.writestr("config.json", json.dumps(model))
        out.write(inner, "model.weights.h5")
    return path


def save_weights_only(path: Path, layers: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the weights-only ``.h5`` of Keras 2."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.15.0"
        for name, weights in layers.items():
            for part, value in weights.items():
                file[f"{name}/{name}/{part}:0"] = value
    return path


def renamed(layers: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): weights for name, weights in layers.items()}


TORCH = {
    "a plain state dict": patients.save_torch,
    "a checkpoint": lambda p, s: patients.save_torch(p, {"model": s, "epoch": 3}),
    "data parallel": lambda p, s: patients.save_torch(p, {f"module.{k}": v for k, v in s.items()}),
    "compiled": lambda p, s: patients.save_torch(p, {f"_orig_mod.{k}": v for k, v in s.items()}),
    "Lightning": lambda p, s: patients.save_torch(
        p, {"state_dict": {f"model.{k}": v for k, v in s.items()}}
    ),
    "only an average": lambda p, s: patients.save_torch(p, {"ema": s}),
    "inside a larger model": lambda p, s: patients.save_torch(
        p, {f"detector.backbone.{k}": v for k, v in s.items()}
    ),
    "safetensors": save_safetensors,
}
KERAS = {
    "a whole model": lambda p, s: patients.save_keras(p.with_suffix(".h5"), s),
    "weights only": save_weights_only,
    "numbered weights with names": save_weights,
    "a .keras archive": save_keras_zip,
}


def assert_every_tensor_is_paired_with_itself(one: Path, other: Path) -> None:
    """Every tensor of these networks has values of its own: equal values are the same tensor."""
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        pairs = match(ours, theirs)
        judged = [info for info in ours.values() if info.role in ("model", "ema")]
        assert pairs.matched == pairs.judged == len(judged)
        assert not pairs.missing
        assert not pairs.surplus
        assert not pairs.misshaped
        for info in judged:
            other_name = pairs.pairs[info.name]
            assert ours.read(info.name).tobytes() == theirs.read(other_name).tobytes()


def distinct(tree: Any, start: int = 0) -> Any:
    """Give every array values that no other has."""
    counter = iter(range(start, 10_000))

    def made(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: made(item) for key, item in value.items()}
        return np.asarray(value + next(counter), value.dtype)

    return made(tree)


@pytest.mark.parametrize("donor", TORCH)
@pytest.mark.parametrize("patient", TORCH)
def test_torch_tensors_are_matched_across_containers_and_formats(tmp_path, patient, donor):
    state = distinct(patients.state())
    one = TORCH[patient](tmp_path / "one", state)
    other = TORCH[donor](tmp_path / "other", state)
    assert_every_tensor_is_paired_with_itself(one, other)


@pytest.mark.parametrize("donor", KERAS)
@pytest.mark.parametrize("patient", KERAS)
def test_keras_variables_are_matched_across_layouts(tmp_path, patient, donor):
    layers = distinct(patients.keras_state())
    one = KERAS[patient](tmp_path / "one", layers)
    other = KERAS[donor](tmp_path / "other", layers)
    assert_every_tensor_is_paired_with_itself(one, other)


@pytest.mark.parametrize("patient", ["a whole model", "a .keras archive"])
def test_numbered_layers_without_names_are_matched_by_class_and_order(tmp_path, patient):
    layers = distinct(patients.keras_state())
    one = KERAS[patient](tmp_path / "one", layers)
    other = save_weights(tmp_path / "other", layers, named=False)
    assert_every_tensor_is_paired_with_itself(one, other)
    assert_every_tensor_is_paired_with_itself(other, one)


def test_layers_without_names_are_not_matched_where_no_configuration_states_their_order(tmp_path):
    layers = patients.keras_state()
    one = save_weights_only(tmp_path / "one", layers)
    other = save_weights(tmp_path / "other", layers, named=False)
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        assert match(ours, theirs).matched == 0


def test_a_class_with_other_shapes_or_counts_is_not_matched_by_order(tmp_path):
    layers = patients.keras_state()
    fewer = {name: weights for name, weights in layers.items() if name != "bn2"}
    one = patients.save_keras(tmp_path / "one.h5", layers)
    other = save_weights(tmp_path / "other", fewer, named=False)
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        found = match(ours, theirs)
        assert not any("bn" in name for name in found.pairs)
        assert any("conv" in name for name in found.pairs)


@pytest.mark.parametrize("start", [1, 2, 3, 40])
def test_names_that_keras_numbers_anew_in_each_session_are_matched_by_their_rank(tmp_path, start):
    """conv2d, conv2d_1, conv2d_2 of one session are conv2d_2, conv2d_3, conv2d_4 of another."""
    layers = distinct(patients.keras_state())
    first = {"conv1": "conv2d", "conv2": "conv2d_1", "conv3": "conv2d_2"}
    later = {f"conv{i}": f"conv2d_{start + i - 1}" for i in (1, 2, 3)}
    first |= {f"bn{i}": f"batch_normalization_{i + 8}" for i in (1, 2, 3)}
    later |= {f"bn{i}": f"batch_normalization_{i + 7}" for i in (1, 2, 3)}
    one = patients.save_keras(tmp_path / "one.h5", renamed(layers, first))
    other = patients.save_keras(tmp_path / "other.h5", renamed(layers, later))
    assert_every_tensor_is_paired_with_itself(one, other)


def test_names_that_a_user_gave_keep_their_numbers(tmp_path):
    layers = patients.keras_state()
    one = patients.save_keras(tmp_path / "one.h5", layers)
    other = patients.save_keras(
        tmp_path / "other.h5", renamed(layers, {"bn2": "bn3", "bn3": "bn4"})
    )
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        pairs = match(ours, theirs).pairs
    partners = {name.split("/")[1]: other.split("/")[1] for name, other in pairs.items()}
    assert partners["bn3"] == "bn3"
    assert "bn2" not in partners


def test_a_batchnorm_that_lacks_gamma_or_beta_is_matched_with_one_that_does_not_say_which(tmp_path):
    layers = distinct(patients.keras_state())
    layers["bn2"] = {part: layers["bn2"][part] for part in ORDER if part != "gamma"}
    one = patients.save_keras(tmp_path / "one.h5", layers)
    other = save_weights(tmp_path / "other", layers)
    assert_every_tensor_is_paired_with_itself(one, other)


def test_numbers_of_variables_are_not_taken_for_names(tmp_path):
    """vars/1 is a mean where gamma is missing, and a beta where it is not."""
    layers = patients.keras_state()
    fewer = layers | {"bn2": {part: layers["bn2"][part] for part in ORDER if part != "gamma"}}
    one = save_weights(tmp_path / "one", layers)
    other = save_weights(tmp_path / "other", fewer)
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        pairs = match(ours, theirs).pairs
        group = "layers/batch_normalization_1/vars"
        assert pairs[f"{group}/2"] == f"{group}/1"
        assert pairs[f"{group}/3"] == f"{group}/2"


def test_names_stand_as_they_are_where_the_sessions_made_another_number_of_layers(tmp_path):
    layers = patients.keras_state()
    names = {"conv1": "conv2d", "conv2": "conv2d_1", "conv3": "conv2d_2"}
    one = patients.save_keras(tmp_path / "one.h5", renamed(layers, names))
    fewer = {name: value for name, value in renamed(layers, names).items() if name != "conv2d"}
    other = patients.save_keras(tmp_path / "other.h5", fewer)
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        found = match(ours, theirs)
        assert all(name == partner for name, partner in found.pairs.items())
        assert sum("conv2d" in name for name in found.pairs) == 2


def test_layers_without_names_are_in_the_order_of_their_numbers_not_of_the_alphabet(tmp_path):
    layers = {
        f"fc{50 - i}": {"kernel": np.full((3, 3), i, np.float32), "bias": np.full(3, i, np.float32)}
        for i in range(12)
    }
    one = patients.save_keras(tmp_path / "one.h5", layers)
    other = save_weights(tmp_path / "other", distinct(layers), named=False)
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        pairs = match(ours, theirs).pairs
        assert pairs["model_weights/fc39/fc39/kernel:0"] == "layers/dense_11/vars/0"
        assert pairs["model_weights/fc48/fc48/bias:0"] == "layers/dense_2/vars/1"


def test_layers_that_both_sides_name_otherwise_are_not_matched_by_order(tmp_path):
    layers = patients.keras_state()
    one = patients.save_keras(tmp_path / "one.h5", layers)
    names = {name: f"other_{name}" for name in layers}
    other = save_keras_zip(tmp_path / "other.keras", renamed(layers, names))
    with open_checkpoint(one) as ours, open_checkpoint(other) as theirs:
        assert match(ours, theirs).matched == 0


def test_the_model_is_matched_with_the_model_and_the_average_with_the_average():
    state = {"model.w": [[1.0]], "ema.w": [[2.0]]}
    assert found(state, state).pairs == {"model.w": "model.w", "ema.w": "ema.w"}
    assert found(state, {"w": [[1.0]]}).pairs == {"model.w": "w", "ema.w": "w"}
    assert found({"w": [[1.0]]}, state).pairs == {"w": "model.w"}
    assert found({"w": [[1.0]]}, {"ema.w": [[1.0]]}).pairs == {"w": "ema.w"}


def test_an_exact_name_wins_over_one_that_is_the_same_without_wrappers():
    donor = {"net.0.weight": [[1.0]], "model.0.weight": [[2.0]]}
    assert found(donor, donor).pairs == {name: name for name in donor}
    assert found({"model.0.weight": [[2.0]]}, donor).pairs == {"model.0.weight": "model.0.weight"}


def test_the_longest_common_end_decides_between_two_states():
    donor = {"model_state_dict.net.fc.weight": [[1.0]], "state_dict.model.fc.weight": [[1.0]]}
    for names in (list(donor), list(reversed(donor))):
        state = {name: donor[name] for name in names}
        for first in ("net", "model"):
            name = f"{first}.fc.weight"
            assert found({name: [[1.0]]}, state).pairs[name].endswith(name)


def test_other_shapes_are_told_and_not_paired():
    one = {
        "fc.weight": np.ones((4, 2)),
        "fc.bias": np.ones(4),
        "conv.weight": np.ones((1, 1, 1, 1)),
    }
    other = {"fc.weight": np.ones((5, 2)), "fc.bias": np.ones(4), "x.weight": np.ones((7, 7, 7, 7))}
    result = found(one, other)
    assert result.pairs == {"fc.bias": "fc.bias"}
    assert result.misshaped == (("fc.weight", "fc.weight"),)
    assert result.missing == ("conv.weight",)
    assert result.surplus == ("x.weight",)
    assert (result.matched, result.judged) == (1, 3)


def test_a_transposed_kernel_of_another_framework_is_no_partner():
    """A square dense kernel has the same shape in Keras and torch, and is transposed."""
    torch = {"fc.weight": np.ones((3, 3)), "fc.bias": np.ones(3)}
    keras = {"fc/kernel": np.ones((3, 3)), "fc/bias": np.ones(3)}
    result = found(torch, keras)
    assert result.pairs == {"fc.bias": "fc/bias"}
    assert not result.misshaped


def test_vectors_of_a_batchnorm_match_across_frameworks_where_names_agree():
    torch = {
        "bn.weight": [1.0],
        "bn.bias": [1.0],
        "bn.running_mean": [1.0],
        "bn.running_var": [1.0],
    }
    keras = {
        "bn/gamma": [1.0],
        "bn/beta": [1.0],
        "bn/moving_mean": [1.0],
        "bn/moving_variance": [1.0],
    }
    assert found(torch, keras).pairs["bn.running_var"] == "bn/moving_variance"
    assert found(torch, keras).pairs["bn.weight"] == "bn/gamma"


def test_old_and_new_weight_norm_are_matched():
    old = {"fc.weight_g": [[1.0]], "fc.weight_v": [[2.0]], "fc.bias": [3.0]}
    new = {
        "fc.parametrizations.weight.original0": [[1.0]],
        "fc.parametrizations.weight.original1": [[2.0]],
        "fc.bias": [3.0],
    }
    assert found(old, new).pairs == {
        "fc.weight_g": "fc.parametrizations.weight.original0",
        "fc.weight_v": "fc.parametrizations.weight.original1",
        "fc.bias": "fc.bias",
    }


def test_a_tied_weight_has_the_partner_of_its_other_name():
    info = TensorInfo("wte", ("wte",), "float32", (2, 2), storage="s0")
    ours = TensorTable(
        path="", format="torch-zip", infos={"wte": info, "head": info._replace(name="head")}
    )
    theirs = table({"wte": np.ones((2, 2))})
    assert match(ours, theirs).pairs == {"wte": "wte", "head": "wte"}
    untied = info._replace(name="head", storage="s1")
    apart = dataclasses.replace(ours, infos={"wte": info, "head": untied})
    assert match(apart, theirs).pairs == {"wte": "wte"}


def test_optimizer_state_is_matched_by_the_same_name_alone_and_not_counted():
    state = {"model.w": [[1.0]], "optimizer.state.0.exp_avg": [[1.0]]}
    result = found(state, state)
    assert result.pairs["optimizer.state.0.exp_avg"] == "optimizer.state.0.exp_avg"
    assert (result.matched, result.judged) == (1, 1)
    other = {"model.w": [[1.0]], "optimizer.state.0.exp_avg": [[1.0, 2.0]]}
    assert "optimizer.state.0.exp_avg" not in found(state, other).pairs


def test_one_name_alone_is_not_matched_by_another_prefix():
    assert found({"a.fc.weight": [[1.0]]}, {"b.fc.weight": [[1.0]]}).pairs == {}
    one = {"a.fc.weight": [[1.0]], "a.fc.bias": [1.0]}
    other = {"b.fc.weight": [[1.0]], "b.fc.bias": [1.0]}
    assert len(found(one, other).pairs) == 2


def test_parts_with_prefixes_of_their_own_are_all_matched():
    one = {f"enc.{i}.weight": np.ones((2, 2)) for i in range(4)}
    one |= {f"dec.{i}.weight": np.ones((3, 3)) for i in range(4)}
    other = {
        name.replace("enc", "a.encoder").replace("dec", "b.decoder"): v for name, v in one.items()
    }
    pairs = found(one, other).pairs
    assert len(pairs) == 8
    assert all(ours.split(".")[1] == theirs.split(".")[2] for ours, theirs in pairs.items())


def test_wrappers_are_stripped_in_front_only():
    assert stripped(["module", "model", "conv", "weight"]) == ("conv", "weight")
    assert stripped(["conv", "module", "weight"]) == ("conv", "module", "weight")
    assert stripped(["layer", "_orig_mod", "weight"]) == ("layer", "weight")
    assert stripped(["model"]) == ("model",)


WORDS = st.sampled_from(["model", "module", "conv1", "bn", "weight", "0", "1", "ema", "", "vars"])
NAMES = st.lists(WORDS, min_size=1, max_size=4).map(".".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(NAMES, unique=True, max_size=8), st.lists(NAMES, unique=True, max_size=8))
def test_any_names_give_pairs_of_equal_shape(ours, theirs):
    one = {name: np.ones(1 + len(name) % 3) for name in ours}
    other = {name: np.ones(1 + len(name) % 3) for name in theirs}
    a, b = table(one), table(other)
    result = match(a, b)
    for name, partner in result.pairs.items():
        assert a[name].shape == b[partner].shape
    assert result.matched <= result.judged
