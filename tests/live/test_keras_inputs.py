"""What inputs of a Keras model are called, without Keras."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ckptdoctor.live.batches import gathered
from ckptdoctor.live.keras_inputs import input_names, input_shapes, packed_inputs

A, B = np.zeros((4, 3)), np.ones((4, 3))


class Tensor:
    def __init__(self, name: str) -> None:
        self.name, self.shape, self.dtype = name, (None, 3), "float32"


def functional(inputs):
    return SimpleNamespace(name="model", _inputs_struct=inputs)


def subclassed(call, **shapes):
    return SimpleNamespace(name="model", call=call, _build_shapes_dict=shapes)


def one(inputs, training=False, mask=None): ...


def two(z, labels, training=False): ...


def two_with_option(z, labels=None): ...


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (functional([Tensor("image"), Tensor("meta:0")]), ("image", "meta")),
        (functional({"right": Tensor("t1"), "left": Tensor("t2")}), ("left", "right")),
        (functional([Tensor("a"), {"d": Tensor("t1"), "c": Tensor("t2")}]), ("a", "c", "d")),
        (subclassed(one, input_shape={"right": (None, 3), "left": (None, 3)}), ("left", "right")),
        (subclassed(one, input_shape=(None, 3)), ()),
        (subclassed(one, input_shape=[(None, 3), (None, 3)]), ()),
        (subclassed(two, z_shape=(None, 3), labels_shape=(None,)), ()),
    ],
)
def test_inputs_in_a_dictionary_go_by_its_keys(model, names):
    assert input_names(model) == names
    if names:
        assert len(input_shapes(model)) == len(names)


def test_a_call_of_several_arguments_takes_them_though_only_the_first_was_noted():
    model = subclassed(two, input_shape=(None, 3))
    assert input_shapes(model) == []
    assert packed_inputs(model, (A, B)) == (A, B)


@pytest.mark.parametrize("call", [one, two_with_option])
def test_arguments_that_may_be_left_out_leave_the_shape_known(call):
    model = subclassed(call, input_shape=(None, 3))
    assert input_shapes(model) == [((None, 3), "float32")]
    (packed,) = packed_inputs(model, (A,))
    assert packed is A


@pytest.mark.parametrize(
    "batch",
    [
        ({"right": B, "left": A}, np.zeros(4)),
        ({"right": B, "left": A}, np.zeros(4), np.ones(4)),
        {"right": B, "left": A},
    ],
)
def test_inputs_in_a_dictionary_beside_labels(batch):
    found = gathered([batch, batch], 2, picked=lambda _: ["left", "right"])
    assert [array.shape for array in found] == [(8, 3), (8, 3)]
    assert [array.max() for array in found] == [0, 1]


@pytest.mark.parametrize("batch", [((A, B), np.zeros(4)), ([A, B], [np.zeros(4)]), (A, B)])
def test_inputs_in_a_tuple_beside_labels(batch):
    assert [array.max() for array in gathered([batch], 2)] == [0, 1]


def test_a_batch_of_plain_numbers_is_an_array():
    assert gathered([([[1, 2], [3, 4]], [0, 1])], 1)[0].tolist() == [[1, 2], [3, 4]]
