"""KerasSubject on layers that only look like Keras: what it tells, rounds, sets and puts back."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from keras_fakes import BatchNorm, Dense, Layer, Observed, Twice, Variable

from ckptdoctor.errors import UsageError
from ckptdoctor.live.keras_calls import reason_of
from ckptdoctor.live.keras_subject import MAX_STATE, KerasSubject
from ckptdoctor.live.keras_tree import MAX_DEPTH, walk
from ckptdoctor.live.subject import NormLayer, Statistics

ONES = np.ones((2, 3), np.float32)


def untouched(model: Any) -> bool:
    """Whether no wrapper is left on a layer."""
    return "call" not in vars(model) and all(untouched(layer) for layer in model._layers)


class TestCalls:
    def test_are_told_in_order_with_depth_class_and_whether_a_layer_is_inside(self) -> None:
        model = Layer("net", Layer("block", Dense("fc")), BatchNorm("bn"))
        heard = Observed()
        (out,) = KerasSubject(model).run([ONES], heard)
        assert heard.log == [
            ("before", "net", "Layer", 0, 0, False),
            ("before", "block", "Layer", 0, 1, False),
            ("before", "block/fc", "Dense", 0, 2, True),
            ("after", "block/fc", "Dense", 0, 2, True),
            ("after", "block", "Layer", 0, 1, False),
            ("before", "bn", "BatchNorm", 0, 1, True),
            ("after", "bn", "BatchNorm", 0, 1, True),
            ("after", "net", "Layer", 0, 0, False),
        ]
        assert (out == 2 * ONES).all()
        assert (heard.inputs["bn"][0] == 2).all()

    def test_of_a_shared_layer_are_counted_anew_in_each_run(self) -> None:
        model = Twice("net", Dense("fc"))
        subject = KerasSubject(model)
        for _ in range(2):
            heard = Observed()
            subject.run([ONES], heard)
            assert [row[3] for row in heard.log if row[:2] == ("before", "fc")] == [0, 1]

    def test_of_chosen_layers_only_have_their_depth_among_these(self) -> None:
        model = Layer("net", Layer("block", Dense("fc")), BatchNorm("bn"))
        heard = Observed()
        KerasSubject(model).run([ONES], heard, only={"block/fc", "bn"})
        assert [row[1:5:3] for row in heard.log if row[0] == "before"] == [
            ("block/fc", 0),
            ("bn", 0),
        ]

    def test_leave_no_trace(self) -> None:
        model = Layer("net", Dense("fc"))
        KerasSubject(model).run([ONES], Observed())
        assert untouched(model)

    def test_leave_no_trace_where_a_layer_fails(self) -> None:
        model = Layer("net", Dense("fc"))
        with pytest.raises(UsageError):
            KerasSubject(model).run([ONES[0]], Observed())
        assert untouched(model)

    def test_put_back_a_call_that_the_layer_had_of_its_own(self) -> None:
        model = Layer("net", Dense("fc"))
        own = model._layers[0].call = lambda inputs: inputs + 1
        (out,) = KerasSubject(model).run([ONES], Observed())
        assert (out == 2).all()
        assert vars(model._layers[0])["call"] is own

    def test_of_quantised_layers_are_heard(self) -> None:
        model = Layer("net", Dense("fc"))
        layer = model._layers[0]
        layer.quantization_mode, layer.quantized_call = "int8", lambda given: given * 5

        def call(given: Any) -> Any:
            return layer.quantized_call(given)

        layer.call = call
        heard = Observed()
        KerasSubject(model).run([ONES], heard)
        assert heard.outputs["fc"][0][0, 0] == 5

    def test_without_values_are_passed_over(self) -> None:
        symbolic = SimpleNamespace(shape=(2,), dtype="float32", graph=object())
        layer = Dense("fc")
        layer.call = lambda _: symbolic
        model = Layer("net", layer, Layer("next"))
        heard = Observed()
        assert KerasSubject(model).run([ONES], heard) == ()
        assert heard.order == ["net", "fc"]

    def test_let_an_observers_error_through_as_it_is(self) -> None:
        class Angry(Observed):
            def before(self, call: Any, inputs: Any) -> None:
                raise KeyError(call.layer)

        model = Layer("net", Layer("block", Dense("fc")))
        with pytest.raises(KeyError) as caught:
            KerasSubject(model).run([ONES], Angry(), only={"block/fc"})
        assert caught.value.args == ("block/fc",)


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
    def test_of_half_width_are_given_as_float32(self, dtype: Any) -> None:
        layer = Layer("same")
        heard = Observed()
        KerasSubject(Layer("net", layer)).run([ONES.astype(dtype)], heard)
        assert heard.inputs["same"][0].dtype == np.float32

    def test_of_double_width_stay(self) -> None:
        heard = Observed()
        KerasSubject(Layer("net")).run([ONES.astype(np.float64)], heard)
        assert heard.inputs["net"][0].dtype == np.float64

    def test_of_numbers_that_are_no_floats_are_left_out(self) -> None:
        layer = Layer("net")
        layer.call = lambda given: {"b": [given, np.ones(2)], "a": np.arange(3.0), "c": None}
        heard = Observed()
        out = KerasSubject(layer).run([np.arange(4)], heard)
        assert heard.inputs["net"] == ()
        assert [each.tolist() for each in out] == [[0, 1, 2], [1, 1]]


class TestErrors:
    def test_name_the_innermost_layer_and_what_it_was_given(self) -> None:
        model = Layer("net", Layer("block", Dense("fc")))
        message = "layer 'block/fc' (Dense) given (3,): expected 2 dimensions, found 1"
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            KerasSubject(model).run([ONES[0]])

    def test_that_a_layer_lives_with_are_not_blamed_for_later_ones(self) -> None:
        class Forgiving(Layer):
            def call(self, inputs: Any) -> Any:
                try:
                    return self._layers[0](inputs)
                except ValueError:
                    return inputs

        class Bad(Layer):
            def call(self, inputs: Any) -> Any:
                raise TypeError("no")

        model = Layer("net", Forgiving("maybe", Dense("fc")), Bad("bad"))
        with pytest.raises(UsageError, match=r"^layer 'bad' \(Bad\) given \(3,\): no$"):
            KerasSubject(model).run([ONES[0]])

    @pytest.mark.parametrize(
        ("said", "line"),
        [
            ("a\n  b", "a b"),
            (
                "\x1b[1mwrong shape\x1b[0m\n\nArguments received by Dense.call():\n x=1",
                "wrong shape",
            ),
            ("wrong\n\nCall arguments received by layer: x", "wrong"),
            ("{{function_node __x}} Matrix [Op:MatMul] name: ", "Matrix"),
            ("cannot. Exception encountered: Unknown layer", "Unknown layer"),
            ("Could not locate. Full object config: {...}", "Could not locate."),
            ("", "ValueError"),
        ],
    )
    def test_are_one_line_of_what_keras_says(self, said: str, line: str) -> None:
        assert reason_of(ValueError(said)) == line

    def test_are_short(self) -> None:
        assert len(reason_of(ValueError("a" * 100_000))) == 400


class TestRounding:
    def test_overflows_where_float16_would(self) -> None:
        model = Layer("net", Dense("fc", 300.0), Dense("half", 0.5))
        heard = Observed()
        KerasSubject(model).run([ONES * 300], heard, rounding="float16")
        assert np.isfinite(heard.inputs["fc"][0]).all()
        assert np.isinf(heard.outputs["fc"][0]).all()
        assert heard.outputs["fc"][0].dtype == np.float32

    def test_to_bfloat16_keeps_the_range_and_loses_digits(self) -> None:
        model = Layer("net", Dense("fc", 1.01))
        (out,) = KerasSubject(model).run([ONES * 1e6], rounding="bfloat16")
        expected = (ONES * 1e6).astype(ml_dtypes.bfloat16).astype(np.float32) * np.float32(1.01)
        assert (out == expected.astype(ml_dtypes.bfloat16).astype(np.float32)).all()

    def test_touches_layers_that_nobody_watches(self) -> None:
        model = Layer("net", Dense("fc", 300.0), Dense("half", 0.5))
        heard = Observed()
        KerasSubject(model).run([ONES * 300], heard, only={"half"}, rounding="float16")
        assert heard.order == ["half"]
        assert np.isinf(heard.inputs["half"][0]).all()

    def test_of_inputs_goes_by_what_keras_would_cast(self) -> None:
        layer, model = Layer("lookup"), Layer("net")
        layer.autocast = model.autocast = False
        model._layers = [layer]
        heard = Observed()
        KerasSubject(model).run([ONES * 4097], heard, rounding="float16")
        assert heard.inputs["lookup"][0][0, 0] == 4097
        assert heard.outputs["lookup"][0][0, 0] == 4096

    def test_leaves_whole_numbers_alone(self) -> None:
        heard: list[Any] = []
        layer = Layer("net")
        layer.call = lambda given: heard.append(given) or given
        KerasSubject(layer).run([np.array([4097])], rounding="float16")
        assert heard[0].tolist() == [4097]

    def test_goes_into_dicts_lists_and_named_tuples(self) -> None:
        from collections import namedtuple

        pair = namedtuple("pair", "a b")
        layer = Layer("net")
        layer.call = lambda given: {"x": [given], "y": pair(given, given)}
        seen: list[Any] = []
        outer = Layer("outer", layer)
        outer.call = lambda given: seen.append(layer(given)) or given
        KerasSubject(outer).run([ONES * 4097], rounding="float16")
        assert seen[0]["x"][0][0, 0] == 4096
        assert isinstance(seen[0]["y"], pair)


class TestNorms:
    def test_are_told_with_the_names_of_their_statistics(self) -> None:
        bn = BatchNorm("bn", axis=[1])
        bn.fused, bn.epsilon = True, 1e-3
        subject = KerasSubject(Layer("net", Layer("block", bn), Dense("fc")))
        assert dict(subject.norms) == {
            "block/bn": NormLayer(
                name="block/bn",
                channels=3,
                axis=1,
                epsilon=1e-3,
                unbiased=True,
                mean="block/bn/moving_mean",
                var="block/bn/moving_variance",
            )
        }

    def test_keep_the_variance_over_n_where_nothing_is_fused(self) -> None:
        norm = KerasSubject(BatchNorm("bn")).norms["bn"]
        assert not norm.unbiased
        assert norm.axis == -1

    @pytest.mark.parametrize(
        "change",
        [
            {"moving_mean": None},
            {"moving_variance": None},
            {"moving_mean": Variable("moving_mean", [0.0])},
            {"moving_variance": Variable("moving_variance", [[1.0]])},
        ],
        ids=["no mean", "no variance", "another length", "a matrix"],
    )
    def test_are_only_what_has_both_statistics(self, change: dict[str, Any]) -> None:
        bn = BatchNorm("bn")
        vars(bn).update(change)
        assert not KerasSubject(bn).norms

    def test_of_one_name_are_told_apart(self) -> None:
        model = Layer("net", BatchNorm("bn"), BatchNorm("bn"))
        subject = KerasSubject(model)
        assert list(subject.norms) == ["bn", "bn#2"]
        assert subject.norms["bn#2"].mean == "bn#2/moving_mean"

    def test_statistics_are_copies_in_float64(self) -> None:
        model = Layer("net", BatchNorm("bn"))
        told = KerasSubject(model).statistics("bn")
        told.mean[0] = 7
        assert told.var.dtype == np.float64
        assert KerasSubject(model).statistics("bn").mean.tolist() == [0, 0, 0]

    def test_statistics_set_before_a_call_are_used_in_it_and_stay(self) -> None:
        subject = KerasSubject(Layer("net", BatchNorm("bn")))

        class Setter(Observed):
            def before(self, call: Any, inputs: Any) -> None:
                subject.set_statistics("bn", Statistics(np.full(3, 1.0), np.full(3, 4.0)))

        (out,) = subject.run([ONES * 9], Setter(), only={"bn"})
        assert (out == 4).all()
        assert subject.statistics("bn").var.tolist() == [4, 4, 4]

    def test_statistics_beyond_their_type_become_infinite(self) -> None:
        subject = KerasSubject(Layer("net", BatchNorm("bn")))
        subject.set_statistics("bn", Statistics(np.zeros(3), np.full(3, 1e300)))
        assert np.isinf(subject.statistics("bn").var).all()

    def test_statistics_of_another_length_are_refused(self) -> None:
        subject = KerasSubject(Layer("net", BatchNorm("bn")))
        with pytest.raises(UsageError, match=r"'bn' has statistics of shape \(3,\), found \(2,\)"):
            subject.set_statistics("bn", Statistics(np.zeros(2), np.ones(2)))

    def test_unknown_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"^no BatchNorm 'other' in 'net'$"):
            KerasSubject(Layer("net")).statistics("other")


class TestWhatARunChanges:
    def test_is_put_back(self) -> None:
        bn = BatchNorm("bn")
        bn._seed_generators = [SimpleNamespace(state=Variable("state", [1, 2], np.uint32))]

        def call(inputs: Any) -> Any:
            bn.moving_mean.assign(bn.moving_mean._value + 1)
            bn._seed_generators[0].state.assign([3, 4])
            return inputs

        bn.call = call
        KerasSubject(Layer("net", bn)).run([ONES])
        assert bn.moving_mean._value.tolist() == [0, 0, 0]
        assert bn._seed_generators[0].state._value.tolist() == [1, 2]

    def test_is_put_back_after_an_error(self) -> None:
        bn = BatchNorm("bn")

        def call(_: Any) -> Any:
            bn.moving_mean.assign(bn.moving_mean._value + 1)
            raise ValueError("no")

        bn.call = call
        with pytest.raises(UsageError):
            KerasSubject(Layer("net", bn)).run([ONES])
        assert bn.moving_mean._value.tolist() == [0, 0, 0]

    def test_of_statistics_that_an_observer_set_is_put_back_to_those(self) -> None:
        bn = BatchNorm("bn")
        subject = KerasSubject(Layer("net", bn))

        def call(inputs: Any) -> Any:
            bn.moving_mean.assign(bn.moving_mean._value + 1)
            return inputs

        class Setter(Observed):
            def before(self, call: Any, inputs: Any) -> None:
                subject.set_statistics("bn", Statistics(np.full(3, 5.0), np.ones(3)))

        bn.call = call
        subject.run([ONES], Setter())
        assert bn.moving_mean._value.tolist() == [5, 5, 5]

    def test_is_not_looked_for_in_large_tables(self) -> None:
        layer = Layer("net")
        small = Variable("small", np.zeros(MAX_STATE, np.int8), np.int8)
        large = Variable("large", np.zeros(MAX_STATE + 1, np.int8), np.int8)
        layer._non_trainable_variables = [small, large]

        def call(inputs: Any) -> Any:
            small.assign(small._value + 1)
            large.assign(large._value + 1)
            return inputs

        layer.call = call
        KerasSubject(layer).run([ONES])
        assert (small._value[0], large._value[0]) == (0, 1)

    def test_includes_no_losses(self) -> None:
        layer = Layer("net")
        layer._losses = []
        layer._clear_losses = layer._losses.clear
        layer.call = lambda given: layer._losses.append(1.0) or given
        KerasSubject(layer).run([ONES])
        assert layer._losses == []


class TestBuilding:
    def test_takes_one_run_and_finds_what_that_made(self) -> None:
        block = Layer("block")
        block.built = False
        calls: list[int] = []

        def call(inputs: Any) -> Any:
            calls.append(1)
            if not block.built:
                block._layers.append(BatchNorm("bn"))
                block.built = True
            return block._layers[0](inputs)

        block.call = call
        subject = KerasSubject(Layer("net", block))
        assert not subject.norms
        subject.build([ONES])
        assert list(subject.norms) == ["block/bn"]
        assert len(calls) == 1

    def test_is_tried_once_where_a_layer_is_never_reached(self) -> None:
        idle = Dense("idle")
        idle.built = False
        calls: list[int] = []
        model = Layer("net", idle)
        model.call = lambda given: calls.append(1) or given
        subject = KerasSubject(model)
        subject.run([ONES])
        subject.run([ONES])
        assert len(calls) == 3


class TestWalking:
    def test_ends_for_a_layer_inside_itself(self) -> None:
        layer = Layer("net")
        layer._layers = [layer]
        assert [node.name for node in walk(layer)] == ["net"]

    def test_ends_for_a_layer_that_makes_another_whenever_it_is_asked(self) -> None:
        class Endless:
            name = "more"

            def call(self) -> None: ...

            @property
            def layers(self) -> list[Any]:
                return [Endless()]

        assert len(walk(Endless())) == MAX_DEPTH + 1

    def test_goes_through_operations_and_what_is_tracked_besides_once_each(self) -> None:
        a, b, twin = Dense("a"), Dense("b"), Dense("twin")
        model = Layer("net", a, b, twin)
        model.operations, model._functional = [b, SimpleNamespace(name="no call")], twin
        assert [node.name for node in walk(model)] == ["net", "b", "a"]

    def test_asks_models_of_keras_2_for_what_they_track(self) -> None:
        inner = Dense("fc")

        def flatten(*, recursive: bool, include_self: bool) -> list[Any]:
            assert not recursive
            assert not include_self
            return [inner]

        model = SimpleNamespace(name="net", call=None, _flatten_layers=flatten)
        assert [(node.name, node.leaf) for node in walk(model)] == [("net", False), ("fc", True)]


class TestInputs:
    def symbolic(self, *shape: int | None, dtype: Any = "float32") -> Any:
        return SimpleNamespace(shape=shape, dtype=dtype)

    def test_of_a_functional_model_are_its_own(self) -> None:
        model = Layer("net")
        model.inputs = [self.symbolic(None, 3), self.symbolic(4, 5, dtype=np.dtype("int32"))]
        assert KerasSubject(model).inputs() == [((None, 3), "float32"), ((4, 5), "int32")]

    def test_of_a_model_built_on_shapes_are_those(self) -> None:
        model = Layer("net")
        model._build_shapes_dict = {"input_shape": {"b": (2, 3), "a": (2, 4)}}
        assert KerasSubject(model).inputs() == [((None, 4), "float32"), ((None, 3), "float32")]

    def test_of_other_models_are_not_known(self) -> None:
        assert KerasSubject(Layer("net")).inputs() == []

    def given(self, model: Any, *batch: Any) -> tuple[Any, ...]:
        seen: list[Any] = []
        model.call = lambda *given: seen.append(given) or given[0]
        KerasSubject(model).run(batch)
        return seen[0]

    def test_are_packed_as_the_graph_has_them(self) -> None:
        model = Layer("net")
        model._inputs_struct = {"b": self.symbolic(None), "a": [self.symbolic(None)] * 2}
        (packed,) = self.given(model, *(np.full(2, float(i)) for i in range(3)))
        assert list(packed) == ["b", "a"]
        assert packed["b"][0] == 2
        assert [each[0] for each in packed["a"]] == [0, 1]

    def test_alone_are_given_alone(self) -> None:
        model = Layer("net")
        model._inputs_struct = [self.symbolic(None, 3)]
        (packed,) = self.given(model, ONES)
        assert packed is ONES

    def test_are_packed_as_the_model_was_built(self) -> None:
        model = Layer("net")
        model._build_shapes_dict = {"x_shape": (2, 3), "y_shape": {"k": (2, 3)}}
        one, other = self.given(model, ONES, ONES * 2)
        assert one[0, 0] == 1
        assert other["k"][0, 0] == 2

    @pytest.mark.parametrize(("count", "found"), [(2, 2), (3, 1)], ids=["one each", "a list"])
    def test_are_given_by_signature_where_it_takes_as_many(self, count: int, found: int) -> None:
        seen: list[Any] = []

        class Model(Layer):
            def call(self, one: Any, other: Any = None, training: bool = False) -> Any:
                seen.extend([one] if other is None else [one, other])
                return ONES

        KerasSubject(Model("net")).run([ONES] * count)
        assert len(seen) == found
        assert isinstance(seen[0], list) == (found == 1)

    def test_of_another_number_are_refused(self) -> None:
        model = Layer("net")
        model._inputs_struct = [self.symbolic(None), self.symbolic(None)]
        with pytest.raises(UsageError, match=r"^'net' takes 2 arrays, the data has 1$"):
            KerasSubject(model).run([ONES])
