"""Weights of Keras files into models that only look like Keras, and what is never handed to Keras."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from keras_fakes import BatchNorm, Dense, Layer, Variable
from patients import save_keras

from ckptdoctor.errors import UsageError
from ckptdoctor.formats import open_path
from ckptdoctor.live import keras_weights
from ckptdoctor.live.keras_weights import load_model, load_weights


def norm_weights(factor: float) -> dict[str, np.ndarray]:
    parts = ("gamma", "moving_mean", "moving_variance")
    return {part: np.full(3, factor + i, np.float32) for i, part in enumerate(parts)}


def kernel(factor: float, size: int = 1) -> dict[str, np.ndarray]:
    return {"kernel": np.full(size, factor, np.float32)}


def legacy(path: Path, layers: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Write weights as Keras 1 and 2 do: a group per layer, names of weights as attributes."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", "tensorflow"
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, weights in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{part}:0".encode() for part in weights]
            for part, value in weights.items():
                group[f"{name}/{part}:0"] = value
    return path


def numbered(path: Path, groups: Mapping[str, tuple[str, list[np.ndarray]]]) -> Path:
    """Write weights as Keras 3 does; without the layer's own name where that is empty."""
    with h5py.File(path, "w") as file:
        for group, (name, values) in groups.items():
            held = file.create_group(f"{group}/vars")
            if name:
                held.attrs["name"] = name
            for number, value in enumerate(values):
                held[str(number)] = value
    return path


def held(layer: Any) -> float:
    return float(layer.weights[0]._value.flat[0])


class TestLegacyLayout:
    def test_goes_by_the_order_of_layers_not_by_names_that_keras_made(self, tmp_path: Path) -> None:
        first, second = Dense("dense_1"), Dense("dense")
        model = Layer("net", first, Layer("dropout"), second)
        path = legacy(tmp_path / "w.h5", {"dense": kernel(5), "empty": {}, "dense_1": kernel(6)})
        loaded = load_weights(model, path)
        assert (held(first), held(second)) == (5, 6)
        assert loaded.pairs == {
            "dense_1/kernel": "dense/dense/kernel:0",
            "dense/kernel": "dense_1/dense_1/kernel:0",
        }
        assert (loaded.surplus, loaded.notes) == ((), ())

    def test_of_whole_models_is_read(self, tmp_path: Path) -> None:
        bn = BatchNorm("mine")
        path = save_keras(tmp_path / "m.h5", {"fc": kernel(5), "bn": norm_weights(1)})
        load_weights(Layer("net", Dense("other"), bn), path)
        assert [v._value[0] for v in bn.weights] == [1, 2, 3]

    def test_reaches_variables_of_the_model_itself(self, tmp_path: Path) -> None:
        model = Layer("net", Dense("fc"), scale=[0.0])
        layers = {"fc": kernel(5), "top_level_model_weights": {"scale": np.ones(1, np.float32)}}
        path = legacy(tmp_path / "w.h5", layers)
        with h5py.File(path, "a") as file:
            file.attrs["layer_names"] = [b"fc"]
        load_weights(model, path)
        assert [v._value[0] for v in model.weights] == [1, 5]

    def test_goes_by_names_where_layers_are_others(self, tmp_path: Path) -> None:
        head = Dense("head")
        path = legacy(tmp_path / "w.h5", {"stem": kernel(5), "head": kernel(6)})
        loaded = load_weights(Layer("net", head), path)
        assert held(head) == 6
        assert loaded.surplus == ("stem/stem/kernel:0",)
        assert loaded.notes == (
            "layers were paired by name: Keras' own order of them does not fit",
            "1 tensors of the file have no place: 'stem/stem/kernel:0'",
        )

    def test_tells_three_of_many_without_a_place(self, tmp_path: Path) -> None:
        layers = {f"l{i}": kernel(i) for i in range(5)}
        loaded = load_weights(Layer("net", Dense("l4")), legacy(tmp_path / "w.h5", layers))
        assert loaded.notes[-1].endswith("'l1/l1/kernel:0', 'l2/l2/kernel:0', ...")
        layers.pop("l0")
        loaded = load_weights(Layer("net", Dense("l4")), legacy(tmp_path / "x.h5", layers))
        assert loaded.notes[-1].endswith("'l2/l2/kernel:0', 'l3/l3/kernel:0'")


class TestNumberedLayout:
    def test_goes_by_real_names(self, tmp_path: Path) -> None:
        fc = Dense("fc")
        ones = [np.full(1, 4.0, np.float32)]
        path = numbered(tmp_path / "m.weights.h5", {"layers/dense": ("fc", ones)})
        load_weights(Layer("net", fc), path)
        assert held(fc) == 4

    def test_without_names_is_not_guessed(self, tmp_path: Path) -> None:
        ones = [np.full(1, 4.0, np.float32)]
        path = numbered(tmp_path / "m.weights.h5", {"layers/dense": ("", ones)})
        with pytest.raises(UsageError, match="does not hold 1 of the model's 1 variables"):
            load_weights(Layer("net", Dense("dense")), path)


class TestRefusals:
    def test_name_shapes_and_leave_the_model_alone(self, tmp_path: Path) -> None:
        fc, head = Dense("fc"), Dense("head")
        path = legacy(tmp_path / "w.h5", {"fc": kernel(5), "head": kernel(6, 2)})
        message = (
            "does not hold 1 of the model's 2 variables: "
            "'head/kernel' (1,) against 'head/head/kernel:0' (2,)"
        )
        with pytest.raises(UsageError, match=f"{re.escape(message)}$"):
            load_weights(Layer("net", fc, head), path)
        assert held(fc) == 2

    @pytest.mark.parametrize(("count", "more"), [(3, r"\(1,\)$"), (4, "and 1 more$")])
    def test_name_three_of_many(self, tmp_path: Path, count: int, more: str) -> None:
        model = Layer("net", *(Dense(f"l{i}") for i in range(count)))
        with pytest.raises(UsageError, match=f"'l2/kernel' .*{more}"):
            load_weights(model, legacy(tmp_path / "w.h5", {"other": kernel(5, 2)}))

    def test_of_files_that_are_not_of_keras(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "w.npz", a=np.ones(1))
        with pytest.raises(UsageError, match="holds no weights of Keras, but npz"):
            load_weights(Layer("net", Dense("fc")), tmp_path / "w.npz")

    def test_of_tensors_without_values(self, tmp_path: Path) -> None:
        path = tmp_path / "w.h5"
        legacy(path, {"fc": {"kernel": np.ones(1, np.float32)}})
        with h5py.File(path, "a") as file:
            del file["fc/fc/kernel:0"]
            file.create_dataset("fc/fc/kernel:0", (1,), np.float32)  # never written
        with pytest.raises(UsageError, match=r"'fc/fc/kernel:0' has no values to load"):
            load_weights(Layer("net", Dense("fc")), path)

    def test_of_surplus_where_layers_are_not_built(self, tmp_path: Path) -> None:
        late = Layer("late")
        late.built = False
        model = Layer("net", Dense("fc"), late)
        path = legacy(tmp_path / "w.h5", {"fc": kernel(5), "late": kernel(6)})
        with pytest.raises(
            UsageError, match=r"has layers that are not built, .*; run it on the da"
        ):
            load_weights(model, path)
        late.built = True
        assert load_weights(model, path).surplus == ("late/late/kernel:0",)


class TestFilling:
    def test_takes_an_open_table(self, tmp_path: Path) -> None:
        fc = Dense("fc")
        with open_path(str(legacy(tmp_path / "w.h5", {"fc": kernel(5)}))) as table:
            load_weights(Layer("net", fc), table)
        assert held(fc) == 5

    def test_casts_to_the_models_type(self, tmp_path: Path) -> None:
        fc = Dense("fc")
        fc._trainable_variables = [Variable("kernel", [0.0], np.float16)]
        load_weights(Layer("net", fc), legacy(tmp_path / "w.h5", {"fc": kernel(1e6)}))
        assert np.isinf(held(fc))

    def test_finishes_layers_that_keep_copies_if_they_are_built(self, tmp_path: Path) -> None:
        done: list[str] = []
        built, unbuilt = Dense("fc"), Layer("late")
        unbuilt.built = False
        for layer in (built, unbuilt):
            layer.finalize_state = lambda name=layer.name: done.append(name)
        model = Layer("net", built, unbuilt)
        load_weights(model, legacy(tmp_path / "w.h5", {"fc": kernel(5)}))
        assert done == ["fc"]


class TestWholeModels:
    """What Keras is asked, by a stand-in for it."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
        """Package, extension and settings of each call; `errors` by package."""
        asked: list[tuple[str, str, Any]] = []
        self.errors: dict[str, Exception] = {}

        def package(name: str) -> Any:
            def load(path: str, **settings: Any) -> str:
                assert Path(path).is_file()
                asked.append((name, Path(path).suffix, settings))
                if name in self.errors:
                    raise self.errors[name]
                return "model"

            return SimpleNamespace(models=SimpleNamespace(load_model=load))

        monkeypatch.setattr(keras_weights, "_package", package)
        return asked

    def whole(self, path: Path, version: str = "3.0.0") -> Path:
        save_keras(path, {"fc": kernel(5)})
        with h5py.File(path, "a") as file:
            file.attrs["keras_version"] = version
        return path

    @pytest.mark.parametrize("name", ["m.h5", "m.keras"])
    def test_are_loaded_in_safe_mode_by_what_they_are(
        self, tmp_path: Path, asked: list[Any], name: str
    ) -> None:
        assert load_model(self.whole(tmp_path / name)) == "model"
        assert asked == [("keras", ".h5", {"compile": False, "safe_mode": True})]

    def test_with_code_never_get_to_keras(self, tmp_path: Path, asked: list[Any]) -> None:
        path = self.whole(tmp_path / "m.h5", "2.15.0")
        layer = {"class_name": "Lambda", "config": {"name": "l", "function": ["4wE=", None, None]}}
        model = {"class_name": "Sequential", "config": {"name": "net", "layers": [layer]}}
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = json.dumps(model)
        with pytest.raises(UsageError, match=r"is not loaded: .*Lambda.*; if you trust it, add --"):
            load_model(path)
        assert asked == []
        assert load_model(path, trust=True) == "model"
        assert asked[0][2]["safe_mode"] is False

    @pytest.mark.parametrize("version", ["1.2.0", "2.15.0"])
    def test_of_old_versions_are_tried_with_tf_keras(
        self, tmp_path: Path, asked: list[Any], version: str
    ) -> None:
        path = self.whole(tmp_path / "m.h5", version)
        load_model(path)
        assert [row[0] for row in asked] == ["keras"]
        self.errors["keras"] = TypeError("Unknown layer: 'TFOpLambda'. Please ensure")
        assert load_model(path) == "model"
        assert [row[0] for row in asked] == ["keras", "keras", "tf_keras"]
        self.errors["tf_keras"] = ValueError("no")
        with pytest.raises(UsageError, match=r"Keras cannot load it: no$"):
            load_model(path)
        self.errors["tf_keras"] = UsageError("needs tf_keras")
        with pytest.raises(UsageError, match="does not find its class 'TFOpLambda'"):
            load_model(path)

    @pytest.mark.parametrize(
        ("said", "line"),
        [
            (
                "Could not locate class 'A>B'. Make sure",
                "Keras does not find its class 'A>B'; name",
            ),
            ("Could not locate function 'f'. Make sure", "Keras does not find its class 'f'; name"),
            ("Could not deserialize class 'C' because", "Keras does not find its class 'C'; name"),
            ("Unknown layer: 'Relu'. Please", "Keras does not find its class 'Relu'; name"),
            ("Unknown layer: Relu. Please", "Keras does not find its class 'Relu'; name"),
            ("bad\nthings", "Keras cannot load it: bad things"),
        ],
    )
    def test_that_keras_refuses_are_told_in_one_line(
        self, tmp_path: Path, asked: list[Any], said: str, line: str
    ) -> None:
        self.errors["keras"] = ValueError(said)
        with pytest.raises(UsageError, match=re.escape(line)) as caught:
            load_model(self.whole(tmp_path / "m.h5"))
        assert len(asked) == 1
        assert "\n" not in str(caught.value)

    def test_are_not_weights_and_not_of_others(self, tmp_path: Path, asked: list[Any]) -> None:
        np.savez(tmp_path / "w.npz", a=np.ones(1))
        with pytest.raises(UsageError, match="is no Keras model, but npz"):
            load_model(tmp_path / "w.npz")
        with pytest.raises(UsageError, match="holds weights without a model; name the function"):
            load_model(legacy(tmp_path / "w.h5", {"fc": kernel(5)}))
        assert asked == []

    def test_need_keras(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Any:
            raise ImportError(name)

        monkeypatch.setattr(keras_weights, "importlib", SimpleNamespace(import_module=missing))
        hint = r"needs keras, which is not installed; pip install 'ckptdoctor\[tensorflow\]'"
        with pytest.raises(UsageError, match=hint):
            load_model(self.whole(tmp_path / "m.h5"))
