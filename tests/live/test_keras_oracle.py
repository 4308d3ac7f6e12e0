"""Real Keras 3 and tf_keras: runs, tables, weights of every layout; nothing of a model changes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_fakes import Observed
from keras_models import KINDS, batch_for, filled

from ckptdoctor.errors import UnsupportedError, UsageError
from ckptdoctor.examination import examined
from ckptdoctor.formats import open_path
from ckptdoctor.live.keras_subject import KerasSubject
from ckptdoctor.live.keras_table import model_table
from ckptdoctor.live.keras_weights import load_model, load_weights
from ckptdoctor.live.subject import Statistics
from ckptdoctor.matching import match
from ckptdoctor.results import Wishes

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

LAYOUTS = {"whole h5": "m.h5", "weights": "m.weights.h5", "archive": "m.keras"}


def framework(name: str) -> Any:
    pytest.importorskip(name)
    return importlib.import_module(name)


@pytest.fixture
def keras() -> Any:
    return framework("keras")


def made(keras: Any, kind: str, seed: int = 0) -> Any:
    """Model of a kind, built, every variable with values of its own."""
    model = KINDS[kind][0](keras)
    KerasSubject(model).build(batch_for(kind))
    return filled(model, seed)


def saved(model: Any, path: Path) -> Path:
    (model.save_weights if ".weights" in path.name else model.save)(str(path))
    return path


def same_weights(one: Any, other: Any) -> bool:
    values, others = one.get_weights(), other.get_weights()
    return all(np.array_equal(a, b) for a, b in zip(values, others, strict=True))


def norm(model: Any) -> Any:
    """First BatchNorm of a model."""
    return next(each for each in model._flatten_layers() if hasattr(each, "moving_variance"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
class TestEveryKindInEveryLayout:
    def test_is_matched_both_ways_and_loaded_as_keras_does(
        self, keras: Any, tmp_path: Path, kind: str, layout: str
    ) -> None:
        model = made(keras, kind)
        path = saved(model, tmp_path / LAYOUTS[layout])
        live = model_table(model)
        with open_path(str(path)) as table:
            for patient, donor in ((live, table), (table, live)):
                found = match(patient, donor)
                assert (found.missing, found.surplus, found.misshaped) == ((), (), ())
                for ours, theirs in found.pairs.items():
                    if patient[ours].role == "model":
                        assert np.array_equal(patient.read(ours), donor.read(theirs)), ours
            twin, oracle = made(keras, kind, seed=1), made(keras, kind, seed=2)
            loaded = load_weights(twin, str(path))
            for ours, theirs in loaded.pairs.items():  # both are made and stored in one order
                assert np.array_equal(model_table(twin).read(ours), table.read(theirs))
        oracle.load_weights(str(path))
        assert (loaded.surplus, loaded.notes) == ((), ())
        assert same_weights(twin, oracle)
        assert same_weights(twin, model)

    def test_of_keras_2_is_loaded(self, tmp_path: Path, kind: str, layout: str) -> None:
        keras = framework("tf_keras")
        if (kind, layout) == ("subclassed", "whole h5"):
            path = tmp_path / "weights.h5"
            (model := made(keras, kind)).save_weights(str(path))
        else:
            path = saved(model := made(keras, kind), tmp_path / LAYOUTS[layout])
        twin = made(keras, kind, seed=1)
        assert load_weights(twin, path).notes == ()
        assert same_weights(twin, model)


class TestRuns:
    @pytest.mark.parametrize("kind", KINDS)
    def test_give_what_the_model_gives_and_change_nothing(self, keras: Any, kind: str) -> None:
        model, batch = made(keras, kind), batch_for(kind)
        given = batch[0] if len(batch) == 1 else batch
        model.compile("sgd", "mse")
        before = model.predict(given, verbose=0)
        weights = [np.array(each) for each in model.get_weights()]
        layers = [vars(layer).keys() for layer in model._flatten_layers()]
        out = KerasSubject(model).run(batch, Observed())
        expected = keras.tree.flatten(before)
        for ours, theirs in zip(out, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
        assert [vars(layer).keys() for layer in model._flatten_layers()] == layers
        again = keras.tree.flatten(model.predict(given, verbose=0))
        assert all(np.array_equal(a, b) for a, b in zip(expected, again, strict=True))
        goal = keras.tree.map_structure(np.zeros_like, before)
        model.compile("sgd", keras.tree.map_structure(lambda _: "mse", before))
        model.fit(given, goal, verbose=0)
        assert not same_weights(model, made(keras, kind))

    def test_tell_of_layers_operations_and_layers_inside(self, keras: Any) -> None:
        make = keras.layers
        image = keras.Input((3, 4))
        x = make.MultiHeadAttention(1, 4, name="attention")(image, image)
        x = make.TimeDistributed(make.Dense(4, name="fc"), name="steps")(keras.ops.relu(x) + image)
        model = keras.Model(image, make.Bidirectional(make.SimpleRNN(2), name="both")(x[:, :2]))
        subject, heard = KerasSubject(model), Observed()
        subject.run([np.ones((2, 3, 4))], heard)
        order = list(dict.fromkeys(heard.order))
        inside = [f"attention/{part}" for part in ("query", "key", "value", "attention_output")]
        assert order[1:6] == ["attention", *inside]
        assert [each.rstrip("_0123456789") for each in order[6:11]] == [
            "relu", "add", "steps", "steps/fc", "get_item",
        ]  # fmt: skip
        assert "both/backward_simple_rnn" in [each.rstrip("_0123456789") for each in order]
        assert sum(each == "steps/fc" for each in heard.order) == 3

    def test_reach_into_traced_functions(self, keras: Any) -> None:
        tensorflow = framework("tensorflow")

        class Net(keras.Model):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.mapped = keras.layers.Dense(2, name="fc"), keras.layers.Dense(2)

            @tensorflow.function
            def call(self, x: Any, training: bool = True) -> Any:
                assert not training
                return tensorflow.vectorized_map(self.mapped, self.fc(x)[:, None])

        heard = Observed()
        model = Net()
        KerasSubject(model).run([np.ones((2, 3))], heard)
        assert heard.order == [model.name, "fc"]  # what is mapped over a batch has no values
        assert not tensorflow.config.functions_run_eagerly()

    def test_leave_random_states_alone(self, keras: Any) -> None:
        class Noise(keras.layers.Layer):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.seed = keras.random.SeedGenerator(3)

            def call(self, x: Any) -> Any:
                return x + keras.random.normal(keras.ops.shape(x), seed=self.seed)

        model = keras.Sequential([keras.Input((3,)), Noise()])
        subject = KerasSubject(model)
        one, other = (subject.run([np.ones((2, 3))])[0] for _ in range(2))
        assert np.array_equal(one, other)

    def test_take_dicts_and_say_what_they_take(self, keras: Any) -> None:
        one, other = keras.Input((2,), name="b"), keras.Input((1,), name="a", dtype="int32")
        model = keras.Model({"b": one, "a": other}, {"out": keras.layers.Dense(1)(one)})
        subject = KerasSubject(model)
        assert subject.inputs() == [((None, 1), "int32"), ((None, 2), "float32")]
        (out,) = subject.run([np.ones((3, 1)), np.ones((3, 2))])
        assert out.shape == (3, 1)

    def test_name_layer_and_shapes_where_the_data_does_not_fit(self, keras: Any) -> None:
        model = made(keras, "subclassed")
        message = r"^layer 'block\w*' \(Block\) given \(2, 5\): Input 0 .* expected axis -1 "
        with pytest.raises(UsageError, match=message) as caught:
            KerasSubject(model).run([np.ones((2, 5))])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("package", ["keras", "tf_keras"])
    def test_use_the_batchs_own_statistics_where_an_observer_sets_them(self, package: str) -> None:
        keras = framework(package)
        model, batch = made(keras, "functional"), batch_for("functional")
        subject = KerasSubject(model)

        class Training(Observed):
            def before(self, call: Any, inputs: Any) -> None:
                if call.layer in subject.norms:
                    x = inputs[0].astype(np.float64)
                    used = Statistics(x.mean((0, 1, 2)), x.var((0, 1, 2)))
                    subject.set_statistics(call.layer, used)

        out = subject.run(batch, Training(), only=set(subject.norms))
        expected = model(batch[0], training=True)
        for ours, key in zip(out, ("box", "label"), strict=True):
            np.testing.assert_allclose(ours, expected[key], rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_in_float32_overflow_like_mixed_precision_when_rounded(
        self, keras: Any, policy: str
    ) -> None:
        def net(policy: str) -> Any:
            make = keras.layers
            return keras.Sequential(
                [
                    keras.Input((3,)),
                    make.Dense(4, kernel_initializer="ones", name="large", dtype=policy),
                    make.BatchNormalization(dtype=policy),
                    make.Dense(1, kernel_initializer="ones", dtype=policy),
                ]
            )

        batch = [np.array([[1.0, 2.0, 3.0], [30_000.0, 30_000.0, 30_000.0]])]
        real, emulated = Observed(), Observed()
        KerasSubject(net(policy)).run(batch, real)
        KerasSubject(net("float32")).run(batch, emulated, rounding=policy.removeprefix("mixed_"))
        for layer in ("large", "batch_normalization", "dense"):
            name = next(each for each in real.outputs if each.startswith(layer))
            twin = next(each for each in emulated.outputs if each.startswith(layer))
            (ours,), (theirs,) = emulated.outputs[twin], real.outputs[name]
            assert theirs.dtype == ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, rtol=2e-2)
        assert np.isinf(real.outputs["large"][0][1]).all() == (policy == "mixed_float16")


class TestVariance:
    @pytest.mark.parametrize("shape", [(4, 3, 3, 2), (12, 2), (4, 3, 2)])
    @pytest.mark.parametrize("package", ["keras", "tf_keras"])
    def test_is_kept_over_as_many_as_is_said(self, package: str, shape: tuple[int, ...]) -> None:
        keras = framework(package)
        layer = keras.layers.BatchNormalization(momentum=0.0)
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        layer(x, training=True)
        (norm,) = KerasSubject(layer).norms.values()
        expected = x.astype(np.float64).var(tuple(range(len(shape) - 1)), ddof=int(norm.unbiased))
        np.testing.assert_allclose(np.asarray(layer.moving_variance.numpy()), expected, rtol=1e-5)
        assert norm.unbiased == (package == "tf_keras" and len(shape) == 4)


class TestTables:
    def sicken(self, model: Any, how: str) -> None:
        if how == "BatchNorm":
            layer = norm(model)
            layer.moving_mean.assign(np.full(layer.moving_mean.shape, np.nan))
            layer.moving_variance.assign(np.full(layer.moving_variance.shape, 1e30))
        elif how == "weights":
            kernels = [v for v in model.trainable_variables if v.name == "kernel"]
            values = kernels[0].numpy().copy()
            values.flat[1] = np.nan
            kernels[0].assign(values)
            kernels[-1].assign(np.zeros(kernels[-1].shape))
        elif how == "optimizer":
            last = model.optimizer.variables[-1]
            last.assign(np.full(last.shape, -1.0))

    @pytest.mark.parametrize("kind", ["sequential", "subclassed"])
    def test_are_judged_as_the_saved_file_is(self, keras: Any, tmp_path: Path, kind: str) -> None:
        model, batch = KINDS[kind][0](keras), batch_for(kind, 32)
        model.compile("adam", "mse")
        model.fit(batch[0], np.zeros(model(batch[0]).shape), verbose=0)
        for how in ("nothing", "BatchNorm", "weights", "optimizer"):
            self.sicken(model, how)
            _, live = examined("live", model_table(model), Wishes())
            told = sorted((f.code, f.severity, f.role) for f in live.findings)
            assert bool(told) == (how != "nothing")
            for layout in LAYOUTS.values():
                path = str(saved(model, tmp_path / layout))
                with open_path(path) as table:
                    _, filed = examined(path, table, Wishes())
                assert live.verdict == filed.verdict
                # only a file can need a class
                rest = [f for f in filed.findings if f.code != "CK002"]
                assert told == sorted((f.code, f.severity, f.role) for f in rest)

    def test_share_the_memory_of_the_model(self, keras: Any) -> None:
        model = made(keras, "sequential")
        table = model_table(model)
        name = next(name for name in table if name.endswith("kernel"))
        (one,), (other,) = table.blocks(table[name]), table.blocks(table[name])
        assert np.shares_memory(one, other)

    def test_have_the_settings_that_the_file_has(self, keras: Any, tmp_path: Path) -> None:
        model = made(keras, "nested")
        with open_path(str(saved(model, tmp_path / "m.h5"))) as table:
            assert dict(model_table(model).layers) == dict(table.layers)

    def test_of_subclassed_models_know_epsilon_and_type(self, keras: Any) -> None:
        layers = model_table(made(keras, "subclassed")).layers
        norms = [each for each in layers.values() if each.class_name == "BatchNormalization"]
        assert [(each.epsilon, each.dtype_policy) for each in norms] == [(1e-3, "float32")] * 4


class TestWholeModels:
    @pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.bin", "h5.keras"])
    def test_are_loaded_whatever_their_name(self, keras: Any, tmp_path: Path, name: str) -> None:
        model = made(keras, "nested")
        path = saved(model, tmp_path / ("m.keras" if name == "m.keras" else "m.h5"))
        loaded = load_model(path.rename(tmp_path / name))
        assert same_weights(loaded, model)
        assert getattr(loaded, "optimizer", None) is None

    @pytest.mark.parametrize("name", ["m.keras", "m.h5"])
    def test_of_keras_2_are_loaded(self, tmp_path: Path, name: str) -> None:
        model = made(framework("tf_keras"), "functional")
        assert same_weights(load_model(saved(model, tmp_path / name)), model)

    @pytest.mark.parametrize("name", ["m.keras", "m.h5"])
    def test_with_code_are_refused_unless_trusted(
        self, keras: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 3)])
        path = saved(model, tmp_path / name)
        assert load_model(path, trust=True)(np.ones((1, 2)))[0, 0] == 3
        monkeypatch.setattr(keras.models, "load_model", None)  # it does not get that far
        with pytest.raises(UsageError, match=r"is not loaded: a Lambda layer .*; if you trust it"):
            load_model(path)

    def test_of_classes_that_are_not_there_say_what_to_do(self, keras: Any, tmp_path: Path) -> None:
        path = saved(made(keras, "subclassed"), tmp_path / "m.keras")
        with pytest.raises(UsageError, match=r"Keras does not find its class 'Net'; name the fun"):
            load_model(path)

    def test_are_not_weights(self, keras: Any, tmp_path: Path) -> None:
        path = saved(made(keras, "sequential"), tmp_path / "m.weights.h5")
        with pytest.raises(UsageError, match="holds weights without a model; name the function"):
            load_model(path)


class TestWeights:
    def test_without_a_place_are_told(self, keras: Any, tmp_path: Path) -> None:
        make = keras.layers
        larger = filled(keras.Sequential([keras.Input((2,)), make.Dense(2), make.Dense(2)]))
        path = saved(larger, tmp_path / "m.weights.h5")
        smaller = keras.Sequential([keras.Input((2,)), make.Dense(2, name=larger.layers[1].name)])
        loaded = load_weights(smaller, path)
        # by name the second; by Keras' count of layers it would be the first
        assert np.array_equal(smaller.get_weights()[0], larger.get_weights()[2])
        assert len(loaded.surplus) == 2
        assert [note[:20] for note in loaded.notes] == [
            "layers were paired b",
            "2 tensors of the fil",
        ]

    @pytest.mark.parametrize("layout", LAYOUTS.values())
    def test_that_do_not_fit_leave_the_model_alone(
        self, keras: Any, tmp_path: Path, layout: str
    ) -> None:
        make = keras.layers
        model = filled(keras.Sequential([keras.Input((2,)), make.Dense(2), make.Dense(3)]))
        other = filled(keras.Sequential([keras.Input((2,)), make.Dense(2), make.Dense(4)]), 1)
        kept = [np.array(each) for each in other.get_weights()]
        with pytest.raises(
            UsageError, match=r"does not hold 2 of the model's 4 variables: .*\(2, 4\)"
        ):
            load_weights(other, saved(model, tmp_path / layout))
        assert all(np.array_equal(a, b) for a, b in zip(kept, other.get_weights(), strict=True))

    def test_without_names_are_not_guessed(self, tmp_path: Path) -> None:
        keras = framework("tf_keras")
        path = saved(made(keras, "subclassed"), tmp_path / "m.weights.h5")
        make = keras.layers
        other = filled(keras.Sequential([make.InputLayer((6,)), make.Dense(4)]))
        with pytest.raises(UsageError, match="does not hold 2 of the model's 2 variables"):
            load_weights(other, path)

    def test_reach_normalisation_of_inputs(self, keras: Any, tmp_path: Path) -> None:
        def net() -> Any:
            return keras.Sequential([keras.Input((2,)), keras.layers.Normalization()])

        model, twin = net(), net()
        model.layers[0].adapt(np.array([[0.0, 1.0], [4.0, 9.0]]))
        load_weights(twin, saved(model, tmp_path / "m.weights.h5"))
        x = np.ones((1, 2))
        assert np.array_equal(twin(x), model(x))

    def test_are_cast_to_the_models_type(self, keras: Any, tmp_path: Path) -> None:
        def net(dtype: str) -> Any:
            return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype=dtype)])

        model, twin = filled(net("float32")), net("bfloat16")
        load_weights(twin, saved(model, tmp_path / "m.weights.h5"))
        np.testing.assert_allclose(
            np.asarray(twin.weights[0].numpy(), np.float32), model.get_weights()[0], rtol=1e-2
        )

    def test_for_models_that_are_not_built_are_refused(self, keras: Any, tmp_path: Path) -> None:
        path = saved(made(keras, "subclassed"), tmp_path / "m.weights.h5")
        with pytest.raises(UsageError, match="has no variables yet; call it once on data"):
            load_weights(KINDS["subclassed"][0](keras), path)

    @pytest.mark.parametrize(
        ("name", "error"), [("m.ckpt", UsageError), ("m.ckpt.index", UnsupportedError)]
    )
    def test_of_tensorflow_checkpoints_are_refused(
        self, tmp_path: Path, name: str, error: type[Exception]
    ) -> None:
        keras = framework("tf_keras")
        model = made(keras, "sequential")
        model.save_weights(str(tmp_path / "m.ckpt"))
        with pytest.raises(error, match=r"a TensorFlow checkpoint, .* save it as \.weights\.h5"):
            load_weights(model, tmp_path / name)


BACKEND = """
import numpy as np
from keras_fakes import Observed
from keras_models import batch_for, filled, KINDS
import keras
from ckptdoctor.live.keras_subject import KerasSubject
from ckptdoctor.live.keras_table import model_table
from ckptdoctor.live.keras_weights import load_weights
assert keras.backend.backend() == "torch"
model, twin = filled(KINDS["functional"][0](keras)), KINDS["functional"][0](keras)
model.save("m.keras")
load_weights(twin, "m.keras")
heard, batch = Observed(), batch_for("functional")
out = KerasSubject(twin).run(batch, heard, rounding="bfloat16")
want = [each.detach().numpy() for each in keras.tree.flatten(model(batch[0], training=False))]
assert all(np.allclose(a, b, rtol=0.1, atol=0.1) for a, b in zip(out, want, strict=True))
table = model_table(twin)
(one,), (other,) = table.blocks(table["shared/kernel"]), table.blocks(table["shared/kernel"])
assert np.shares_memory(one, other)
half = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="bfloat16")])
name, = (name for name in model_table(half) if name.endswith("kernel"))
assert model_table(half).read(name).dtype.name == "bfloat16"
"""


def test_keras_on_torch_is_run_and_loaded(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("torch")
    home = str(Path(__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", BACKEND],
        env={**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": home},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
