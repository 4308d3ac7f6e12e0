"""Rows of a run: order, ranges, and the layer where it begins."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import (
    BatchNorm,
    Dense,
    Function,
    Layer,
    NumpySubject,
    Residual,
    Sequential,
    classifier,
    relu,
    samples,
)

from ckptdoctor.live.subject import Call
from ckptdoctor.probing.trace import SATURATED, Trace

X = samples(8, 4)


def run(subject, *batches):
    trace = Trace()
    for batch in batches:
        trace.start(len(batch))
        subject.run((batch,), trace)
    return {(row.layer, row.index): row for row in trace.rows()}


def rows_of(*layers, x=X):
    return {name: row for (name, _), row in run(NumpySubject(*layers), x).items()}


def nan_for(name, condition=lambda x: np.ones_like(x, bool), bad=np.nan, cls="Bad"):
    return Function(name, cls, lambda x: np.where(condition(x), bad, x))


def identity(name):
    return Function(name, "Identity", lambda x: x)


def test_rows_come_in_the_order_in_which_calls_begin():
    rows = run(NumpySubject(Sequential("block", identity("a"), identity("b")), identity("c")), X)
    assert list(rows) == [("", 0), ("block", 0), ("a", 0), ("b", 0), ("c", 0)]
    assert [row.depth for row in rows.values()] == [0, 1, 2, 2, 1]
    assert [row.leaf for row in rows.values()] == [False, False, True, True, True]


def test_a_row_has_the_ranges_of_inputs_and_outputs_over_all_batches():
    double = Function("double", "Double", lambda x: 2 * x)
    rows = run(NumpySubject(double), X, X + 100)
    row = rows["double", 0]
    assert row.shape == (8, 4)
    assert row.class_name == "Double"
    assert (row.inputs.low, row.inputs.high) == (X.min(), np.float32(X.max()) + np.float32(100))
    assert row.outputs.high == 2 * row.inputs.high
    assert row.outputs.size == 64


def test_calls_of_a_shared_layer_have_rows_of_their_own():
    shared = identity("shared")

    class Twice(Layer):
        def forward(self, run, *inputs):
            return run.call(shared, run.call(shared, inputs[0]) + 1)

    rows = run(NumpySubject(root=Twice("", shared)), X)
    assert [row.inputs.low for (name, _), row in rows.items() if name == "shared"] == pytest.approx(
        [X.min(), X.min() + 1]
    )


def test_it_begins_in_the_layer_whose_inputs_are_fine():
    rows = rows_of(identity("a"), nan_for("bad"), identity("after"), relu("last"))
    assert [name for name, row in rows.items() if row.began] == ["bad"]
    assert rows["last"].outputs.nan == 32


def test_it_begins_inside_a_block_not_in_the_block():
    rows = rows_of(Sequential("outer", Sequential("inner", nan_for("bad")), identity("b")))
    assert [name for name, row in rows.items() if row.began] == ["bad"]


def test_a_block_whose_own_code_does_it_is_named_itself():
    class Own(Layer):
        def forward(self, run, *inputs):
            first = run.call(self.children[0], inputs[0])
            return run.call(self.children[1], first / 0)

    rows = rows_of(Own("own", identity("a"), identity("b")))
    assert [name for name, row in rows.items() if row.began] == ["own"]


def test_a_block_that_mends_what_is_inside_began_nothing():
    class Mending(Residual):
        def forward(self, run, *inputs):
            return np.nan_to_num(super().forward(run, *inputs))

    rows = rows_of(Mending("mending", nan_for("bad")), identity("after"))
    assert [name for name, row in rows.items() if row.began] == ["bad"]
    assert rows["after"].inputs.badness == 0


def test_nan_after_a_mask_begins_anew():
    mask = nan_for("mask", lambda x: x > 1, -np.inf)
    softmax = Function("softmax", "Softmax", lambda x: x - x)
    rows = rows_of(Sequential("attention", mask, softmax))
    assert [name for name, row in rows.items() if row.began] == ["mask", "softmax"]


def test_the_code_of_a_block_can_turn_a_mask_into_nan():
    class Own(Layer):
        def forward(self, run, *inputs):
            return run.call(self.children[0], inputs[0]) * np.nan

    rows = rows_of(Own("own", nan_for("mask", bad=-np.inf)))
    assert [name for name, row in rows.items() if row.began] == ["own", "mask"]


def test_one_bad_batch_is_enough():
    layer = nan_for("bad", lambda x: x > 50)
    assert run(NumpySubject(layer), X, X + 100, X)["bad", 0].began


def test_a_bad_input_is_nobodys_fault():
    x = X.copy()
    x[0, 0] = np.nan
    rows = rows_of(identity("a"), x=x)
    assert not any(row.began for row in rows.values())


def test_a_layer_that_tells_no_samples_apart_is_constant():
    rows = rows_of(
        identity("a"), Function("same", "Same", lambda x: x * 0 + 3), identity("b"), relu("c")
    )
    assert [name for name, row in rows.items() if row.froze] == ["same"]
    assert [name for name, row in rows.items() if row.constant] == ["", "same"]


def test_a_batchnorm_with_an_infinite_variance_is_constant():
    norm = BatchNorm("bn", 4)
    norm.tensors["running_var"][:] = np.inf
    rows = rows_of(Dense("fc", 4, 4), norm, relu("r"))
    assert [name for name, row in rows.items() if row.froze] == ["bn"]


def test_one_batch_that_is_told_apart_clears_a_layer():
    late = Function("late", "Late", lambda x: np.where(x > 50, x, 0))
    rows = run(NumpySubject(late), X, X + 100)
    assert not rows["late", 0].constant


def test_a_layer_is_not_constant_for_samples_that_do_not_differ():
    rows = rows_of(Function("same", "Same", lambda x: x * 0), x=np.ones((8, 4), np.float32))
    assert not any(row.constant for row in rows.values())


def test_a_single_sample_says_nothing():
    rows = rows_of(Function("same", "Same", lambda x: x * 0), x=X[:1])
    assert not any(row.constant for row in rows.values())


def test_one_output_that_differs_is_enough():
    class Two(Layer):
        def forward(self, run, *inputs):
            return inputs[0]

    trace = Trace()
    call = Call(layer="two", class_name="Two", index=0, depth=0, leaf=True)
    trace.start(8)
    trace.before(call, (X,))
    trace.after(call, (X * 0, X))
    assert not trace.rows()[0].constant
    trace.before(call, (X,))
    trace.after(call, (X * 0, X * 0))
    assert not trace.rows()[0].constant


@pytest.mark.parametrize(
    ("cls", "limits"),
    [
        ("Sigmoid", (0, 1)),
        ("Tanh", (-1, 1)),
        ("Softmax", (0, 1)),
        ("Hardsigmoid", (0, 1)),
        ("HardSigmoid", (0, 1)),
        ("ReLU", (0,)),
        ("ReLU6", (0, 6)),
        ("Re_LU", (0,)),
    ],
)
def test_layers_at_the_limits_of_their_function_are_saturated(cls, limits):
    values = np.resize(np.array(limits, np.float32), (8, 100))
    stuck = rows_of(Function("f", cls, lambda _: values))["f"]
    assert (stuck.saturated, stuck.stuck) == (1.0, True)
    values = values.copy()
    values[:, 0] = 0.5
    assert rows_of(Function("f", cls, lambda _: values))["f"].stuck
    values[:, 1] = 0.5
    loose = rows_of(Function("f", cls, lambda _: values))["f"]
    assert loose.saturated == pytest.approx(0.98)
    assert not loose.stuck
    assert SATURATED == 0.99


def test_near_a_limit_is_at_it():
    near = Function("f", "Sigmoid", lambda x: x * 0 + (1 - 5e-7))
    far = Function("g", "Sigmoid", lambda x: x * 0 + (1 - 5e-6))
    assert rows_of(near)["f"].stuck
    assert not rows_of(far)["g"].stuck


def test_other_layers_have_no_limits():
    assert rows_of(identity("a"))["a"].saturated is None
    assert not rows_of(identity("a"))["a"].stuck


def test_a_call_that_was_left_by_an_exception_is_forgotten():
    trace = Trace()
    outer = Call(layer="outer", class_name="Outer", index=0, depth=0, leaf=False)
    lost = Call(layer="lost", class_name="Lost", index=0, depth=1, leaf=True)
    trace.start(8)
    trace.before(outer, (X,))
    trace.before(lost, (X,))
    trace.after(outer, (X,))
    assert [row.outputs.size for row in trace.rows()] == [32, 0]


def test_a_new_batch_forgets_calls_that_never_ended():
    trace = Trace()
    call = Call(layer="a", class_name="A", index=0, depth=0, leaf=True)
    trace.start(8)
    trace.before(call, (X,))
    trace.start(8)
    trace.before(call, (X,))
    trace.after(call, (X,))
    assert trace.rows()[0].outputs.size == 32


def test_a_healthy_model_shows_nothing():
    rows = run(classifier(), samples(64))
    assert not any(row.began or row.constant or row.stuck for row in rows.values())
