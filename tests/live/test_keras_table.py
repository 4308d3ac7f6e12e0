"""Tables over models that only look like Keras: names, roles, settings, values as they are now."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from keras_fakes import BatchNorm, Dense, Layer, Variable

from ckptdoctor.errors import UsageError
from ckptdoctor.examination import examined
from ckptdoctor.live.keras_subject import KerasSubject
from ckptdoctor.live.keras_table import model_table
from ckptdoctor.results import Wishes
from ckptdoctor.tensors import BLOCK_BYTES


def net() -> Any:
    return Layer("net", Layer("resnet", Dense("fc"), BatchNorm("post_bn")))


class TestNames:
    def test_are_the_path_of_layers_and_the_variables_own(self) -> None:
        table = model_table(net())
        assert list(table) == [
            "resnet/fc/kernel",
            "resnet/post_bn/gamma",
            "resnet/post_bn/moving_mean",
            "resnet/post_bn/moving_variance",
        ]
        info = table["resnet/post_bn/gamma"]
        assert info.layer == "resnet/post_bn"
        assert info.path == ("resnet", "post_bn", "gamma")
        assert (info.dtype, info.shape, info.role) == ("float32", (3,), "model")

    def test_of_the_models_own_variables_stand_alone(self) -> None:
        model = Layer("net", scale=[1.0])
        assert list(model_table(model)) == ["scale"]

    def test_of_keras_2_lose_layer_and_number(self) -> None:
        layer = Layer("fc")
        layer._trainable_variables = [Variable("net/fc/kernel:0", [1.0])]
        assert list(model_table(Layer("net", layer))) == ["fc/kernel"]

    def test_given_twice_are_numbered(self) -> None:
        layer = Layer("fc")
        layer._trainable_variables = [Variable("w", [1.0]), Variable("w", [2.0])]
        table = model_table(Layer("net", layer))
        assert [table.read(name)[0] for name in ("fc/w", "fc/w#2")] == [1, 2]

    def test_of_shared_layers_and_variables_come_once(self) -> None:
        shared = Dense("fc")
        tied = Layer("tied")
        tied._trainable_variables = shared._trainable_variables
        assert list(model_table(Layer("net", shared, tied, shared))) == ["fc/kernel"]

    def test_of_what_no_layer_holds_follow_their_path(self) -> None:
        model = Dense("fc")
        loose = Variable("w", [1.0])
        loose.path = "somewhere/w"

        class Model(Layer):
            weights = property(lambda _: [loose])

        assert list(model_table(Model("net", model))) == ["somewhere/w"]


class TestValues:
    def test_are_those_of_the_moment_without_a_copy(self) -> None:
        model = net()
        table = model_table(model)
        variable = model._layers[0]._layers[0]._trainable_variables[0]
        variable.assign([5.0])
        (block,) = table.blocks(table["resnet/fc/kernel"])
        assert np.shares_memory(block, variable._value)

    def test_come_in_blocks(self) -> None:
        count = BLOCK_BYTES // 4 + 1
        table = model_table(Layer("net", w=np.arange(float(count))))
        assert [block.size for block in table.blocks(table["w"])] == [count - 1, 1]

    def test_that_are_no_numbers_have_no_row(self) -> None:
        model = Layer("net", w=[1.0])
        model._non_trainable_variables = [SimpleNamespace(name="words", dtype="string", shape=(2,))]
        assert list(model_table(model)) == ["w"]

    def test_missing_altogether_are_an_error(self) -> None:
        with pytest.raises(UsageError, match="'net' has no variables yet"):
            model_table(Layer("net"))

    def test_not_made_yet_by_keras_2_are_an_error(self) -> None:
        class Unbuilt(Layer):
            @property
            def weights(self) -> list[Variable]:
                raise ValueError("Weights have not yet been created")

        with pytest.raises(UsageError, match="call it once on data"):
            model_table(Unbuilt("net"))


class TestOptimizer:
    def optimizer(self, **settings: Any) -> Any:
        velocity = Variable("velocity", [-1.0, 2.0])
        velocity.path = "adam/fc_kernel_velocity"
        other = Variable("velocity", [1.0])
        other.path = velocity.path
        return SimpleNamespace(variables=[velocity, other], get_config=lambda: settings)

    def test_variables_are_named_as_in_a_file(self) -> None:
        model = Layer("net", w=[1.0])
        model.optimizer = self.optimizer(learning_rate=np.float32(0.5), name="adam")
        table = model_table(model)
        name = "optimizer_weights/adam/fc_kernel_velocity"
        assert list(table) == ["w", name, f"{name}#2"]
        assert table[name].role == "optimizer"
        assert dict(table.scalars) == {"compile_config/optimizer/config/learning_rate": 0.5}

    def test_variables_are_judged(self) -> None:
        model = Layer("net", w=[1.0])
        model.optimizer = self.optimizer()
        _, report = examined("net", model_table(model), Wishes())
        assert [finding.code for finding in report.findings] == ["TS002"]

    def test_of_keras_2_gives_them_when_called(self) -> None:
        model = Layer("net", w=[1.0])
        held = self.optimizer()
        model.optimizer = SimpleNamespace(variables=lambda: held.variables)
        assert len(model_table(model)) == 3


class TestSettings:
    def test_come_from_the_models_configuration_in_the_order_of_the_data(self) -> None:
        fc = {"class_name": "Dense", "config": {"name": "fc"}}
        bn = {
            "class_name": "BatchNormalization",
            "config": {"name": "bn", "epsilon": 0.5, "momentum": 0.9},
        }
        config = {"class_name": "Sequential", "config": {"name": "net", "layers": [fc, bn]}}
        model = Layer("net", Dense("fc"), BatchNorm("bn"))
        model.to_json = lambda: json.dumps(config)
        layers = model_table(model).layers
        assert list(layers) == ["fc", "bn"]
        assert (layers["bn"].epsilon, layers["bn"].momentum) == (0.5, 0.9)
        assert layers["bn"].inputs == ("fc",)

    def test_of_what_a_configuration_does_not_list_are_asked_of_each_layer(self) -> None:
        model = net()
        bn = model._layers[0]._layers[1]
        bn.get_config = lambda: {
            "epsilon": np.float64(0.25),
            "dtype": {"config": {"name": "mixed_float16"}},
            "axis": -1,
            "how": len,
        }
        bn.dtype_policy = SimpleNamespace(name="unused")
        model.to_json = lambda: json.dumps({"class_name": "Net", "config": {}})
        told = model_table(model).layers["resnet/post_bn"]
        assert (told.class_name, told.epsilon) == ("BatchNorm", 0.25)
        assert told.dtype_policy == "mixed_float16"
        assert told.settings == {"axis": -1, "how": "len"}
        assert told.inputs == ()

    def test_that_raise_leave_the_class_and_the_policy(self) -> None:
        model = net()
        bn = model._layers[0]._layers[1]
        bn.dtype_policy = SimpleNamespace(name="bfloat16")
        told = model_table(model).layers
        assert list(told) == ["resnet", "resnet/fc", "resnet/post_bn"]
        assert told["resnet/post_bn"].class_name == "BatchNorm"
        assert told["resnet/post_bn"].dtype_policy == "bfloat16"

    def test_say_whose_table_it_is(self) -> None:
        model = net()
        table = KerasSubject(model).table()
        assert table.path == "net"
        assert table.format == "keras-live"
        assert table.metadata["model_class"] == "Layer"
