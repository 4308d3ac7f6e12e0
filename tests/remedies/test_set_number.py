"""``--set`` changes one number, in its type, and knows what it cures."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bedside import patient

from ckptdoctor.edits import Edit, NumberEdit, Refusal
from ckptdoctor.errors import UsageError
from ckptdoctor.remedies.base import Orders
from ckptdoctor.remedies.set_number import SetNumber
from ckptdoctor.tensors import LayerConfig

NAN, INF = float("nan"), float("inf")
LR, EPS = "optimizer.param_groups.0.lr", "optimizer.param_groups.0.eps"


def proposed(
    tensors: Any = (), *, scalars: Any = None, layers: Any = (), **numbers: Any
) -> list[Any]:
    names = {name.replace("__", "."): value for name, value in numbers.items()}
    sick = patient(dict(tensors), scalars=scalars, layers=layers, numbers=names)
    return list(SetNumber().propose(sick, []))


def one(name: str, value: Any, tensors: Any = (), **more: Any) -> Any:
    (change,) = proposed(tensors, **{name: value}, **more)
    return change


def test_it_is_asked_for_by_its_option_alone() -> None:
    assert SetNumber().asked(Orders(numbers={LR: 0.1}))
    assert not SetNumber().asked(Orders(bn_reset=True))


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        (0.1, 0.01, 0.01), (0.1, 1, 1.0), (3, 4.0, 4), (3, 4, 4), (3, 0.5, 0.5), (3, 10**400, 10**400),
        (0.1, INF, INF),
    ],
)  # fmt: skip
def test_a_number_keeps_its_type_where_it_can(before: Any, value: Any, after: Any) -> None:
    change = one(LR, value, scalars={LR: before})
    assert isinstance(change, NumberEdit)
    assert (change.name, change.before, change.value) == (LR, before, after)
    assert type(change.value) is type(after)


@pytest.mark.parametrize(
    ("lr", "kind", "cures"),
    [(0.1, "destructive", ()), (NAN, "statistical", ("TS003",)), (-1.0, "statistical", ("TS003",))],
)
def test_what_could_not_be_used_is_estimated_and_anything_else_is_lost(
    lr: float, kind: str, cures: tuple[str, ...]
) -> None:
    change = one(LR, 0.01, scalars={LR: lr})
    assert (change.kind, change.cures, change.remedy) == (kind, cures, "set")
    assert change.title == "set to 0.01, as asked"


def test_an_epsilon_of_the_optimizer_and_one_of_a_layer_are_cured() -> None:
    moments = {"optimizer.state.0.exp_avg_sq": np.zeros(2, "f2")}
    assert one(EPS, 1e-4, moments, scalars={EPS: 1e-8}).cures == ("TS004",)
    layer = LayerConfig(name="bn", class_name="BatchNorm2d", epsilon=0.0)
    sick = {"bn.weight": [1.0, 1.0], "bn.running_var": [0.0, 1.0], "bn.running_mean": [0.0, 0.0]}
    change = one("bn.eps", 1e-5, sick, scalars={"bn.eps": 0.0, "bn.momentum": 0.1}, layers=[layer])
    assert "CF002" in change.cures
    other = one(
        "bn.momentum", 0.2, sick, scalars={"bn.eps": 0.0, "bn.momentum": 0.1}, layers=[layer]
    )
    assert other.cures == ()


@pytest.mark.parametrize(
    ("held", "value"),
    [
        (np.float32(2), 0.5), (np.float32([2]), -3), (np.float64([[2]]), 1e300), (np.int64(3), 2**62),
        (np.int64(3), 4.0), (np.uint8(3), 255), (np.float16(1), 65504.0), (np.float32(1), INF),
        (np.array(False), 1), (np.array(1, ml_dtypes.bfloat16), 0.1), (np.float16(1), -INF),
    ],
)  # fmt: skip
def test_a_tensor_of_one_element_is_set_in_its_type(held: Any, value: Any) -> None:
    change = one("logit_scale", value, {"logit_scale": held})
    assert isinstance(change, Edit)
    assert change.indices is not None
    assert change.indices.tolist() == [0]
    assert change.after().dtype == held.dtype
    np.testing.assert_array_equal(change.after(), np.array([value]).astype(held.dtype))


@pytest.mark.parametrize(
    ("held", "value"),
    [
        (np.int64(3), 0.5), (np.int8(3), 128), (np.uint8(3), -1), (np.int64(3), 2**63), (np.int64(3), INF),
        (np.float16(1), 1e5), (np.float16(1), 1e-9), (np.float32(1), 1e39), (np.array(False), 2),
        (np.float32(1), 10**400), (np.array(1, ml_dtypes.float8_e4m3fn), INF),
        (np.array(False), INF),
    ],
)  # fmt: skip
def test_a_value_that_the_type_cannot_hold_is_refused(held: Any, value: Any) -> None:
    with pytest.raises(UsageError, match="cannot hold"):
        one("x", value, {"x": held})


def test_a_float_that_overflows_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot hold"):
        one(LR, 10**400, scalars={LR: 0.1})


@pytest.mark.parametrize(
    ("tensors", "name", "value", "words"),
    [
        ({"x": [1.0, 2.0]}, "x", 1, "holds 2 of them"),
        ({"x": np.zeros(0)}, "x", 1, "holds 0 of them"),
        ({"x": np.complex64(1)}, "x", 1, "complex64, which is no plain number"),
        ({"x": [1.0]}, "x", NAN, "expected a number for 'x'"),
        ({"x": [1.0]}, "x", True, "expected a number for 'x'"),
        ({"x": [1.0], "encoder.lr": [1.0]}, "encodr.lr", 1, "did you mean 'encoder.lr'"),
        ({"fc.weight": [[1.0, 2.0]]}, "fc.weigth", 1, "the file has 0 numbers"),
        ({"fc.weight": [[1.0, 2.0]]}, "bn.epsilon", 1, "configuration of a layer"),
        ({"fc.weight": [[1.0, 2.0]]}, "epsilon", 1, "the file has 0 numbers"),
    ],
)
def test_what_is_no_number_of_the_file_is_a_mistake(
    tensors: Any, name: str, value: Any, words: str
) -> None:
    layer = LayerConfig(name="bn", class_name="BatchNormalization", epsilon=0.0)
    with pytest.raises(UsageError) as caught:
        one(name, value, tensors, layers=[layer])
    assert words in str(caught.value)


def test_a_name_is_suggested_among_those_that_end_alike() -> None:
    scalars = {f"optimizer.param_groups.{n}.lr": 0.1 for n in range(3)}
    with pytest.raises(UsageError, match=r"did you mean 'optimizer.param_groups.\d.lr'"):
        one("optimizer.param_groups.7.lr", 0.1, scalars=scalars)


def test_an_encoded_number_is_refused() -> None:
    sick = patient({"x": np.float32(1)}, numbers={"x": 2.0})
    info = sick.ctx.table["x"]._replace(encoding="quantised")
    sick.ctx.table = dataclasses.replace(sick.ctx.table, infos={"x": info})
    with pytest.raises(UsageError, match="quantised float32"):
        list(SetNumber().propose(sick, []))


def test_what_nobody_set_is_named_with_the_option_that_would() -> None:
    found = proposed(scalars={LR: NAN})
    (refusal,) = found
    assert isinstance(refusal, Refusal)
    assert (refusal.target, refusal.codes, refusal.remedy) == (LR, ("TS003",), "")
    assert refusal.hint == f"--set {LR}=NUMBER"
    assert [type(c) for c in proposed(scalars={LR: NAN}, **{LR: 0.1})] == [NumberEdit]


def test_a_hint_can_be_pasted_whatever_the_name() -> None:
    name = "optimizer.param_groups.0 $(x).lr"
    import shlex

    found = proposed(scalars={f"{name}": NAN, LR: NAN})
    assert [shlex.split(refusal.hint) for refusal in found] == [
        ["--set", f"{each}=NUMBER"] for each in (name, LR) if each in {r.target for r in found}
    ]
