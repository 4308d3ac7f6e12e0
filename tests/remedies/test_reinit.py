"""``--reinit`` draws what was named, whole, by the right law, and says what it leaves alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import patients
import pytest
from bedside import ailing, edits, patient, refusals

from ckptdoctor.dtypes import DTYPES
from ckptdoctor.edits import Edit
from ckptdoctor.errors import UsageError
from ckptdoctor.formats import open_path
from ckptdoctor.keras.config import read_model_config
from ckptdoctor.remedies.base import Orders
from ckptdoctor.remedies.reinit import MAX_WORK, Reinit, fits
from ckptdoctor.sources import Extent
from ckptdoctor.tensors import LayerConfig, Quantisation, TensorTable

NAN = float("nan")


def proposed(sick: Any, *ailments: Any) -> list[Any]:
    return list(Reinit().propose(sick, ailments))


def drawn(change: Edit) -> Any:
    assert change.indices is None
    return change.after()


def test_it_is_asked_for_by_its_option_alone() -> None:
    assert Reinit().asked(Orders(reinit=["*"]))
    assert not Reinit().asked(Orders(bn_reset=True))
    assert proposed(patient({"fc.weight": [[NAN]]})) == []


def test_a_kernel_is_drawn_by_its_layers_law() -> None:
    weights = patients.state()
    weights["fc.weight"][:] = NAN
    sick = patient(weights, reinit=["fc.weight"])
    (change,) = proposed(sick, ailing(sick, "fc.weight"))
    made = drawn(change)
    assert made.dtype == np.float32
    assert made.size == weights["fc.weight"].size
    assert 0.2 < abs(made).max() <= 16**-0.5
    assert (change.remedy, change.kind, change.cures) == ("reinit", "destructive", ("NF001",))
    assert change.title == (
        "drawn anew by kaiming_uniform(a=2.236, mode=fan_in), torch's default, seed 0"
    )
    assert callable(change.values), "a large kernel must not wait in memory"


@pytest.mark.parametrize("part", ["conv2.weight", "bn2.weight", "bn2.bias", "fc.bias"])
def test_nan_is_never_filled_with_one_constant_regardless_of_the_role(part: str) -> None:
    """A kernel is never filled with ones, nor with any one number; gamma is 1 and beta is 0."""
    weights = patients.state()
    weights[part][:] = NAN
    sick = patient(weights, reinit=["*"])
    made = {name: drawn(change) for name, change in edits(proposed(sick)).items()}
    assert set(made) == set(weights)
    filled = {name: set(values.tolist()) for name, values in made.items()}
    for name, values in filled.items():
        if weights[name].ndim >= 2:
            assert len(values) > weights[name].size // 2, name
            assert 1.0 not in values, name
    assert filled["bn2.weight"] == {1.0}
    assert filled["bn2.bias"] == {0.0}
    assert len(filled["fc.bias"]) > 1


def test_a_kernel_becomes_ones_where_the_caller_writes_so() -> None:
    (change,) = proposed(patient({"fc.weight": [[0.5, 0.5]]}, reinit=["fc.*=ones"]))
    assert drawn(change).tolist() == [1.0, 1.0]
    assert change.title == "drawn anew by ones, as asked"


def test_a_batchnorm_starts_at_0_and_1_and_counts_from_0() -> None:
    sick = patient(patients.state(), reinit=["bn1.*"])
    found = edits(proposed(sick))
    assert {name: set(drawn(change).tolist()) for name, change in found.items()} == {
        "bn1.weight": {1.0},
        "bn1.bias": {0.0},
        "bn1.running_mean": {0.0},
        "bn1.running_var": {1.0},
        "bn1.num_batches_tracked": {0},
    }
    assert drawn(found["bn1.num_batches_tracked"]).dtype == np.int64
    assert "seed" not in found["bn1.weight"].title


def test_the_stored_initialiser_is_used() -> None:
    kernel = {"class_name": "RandomUniform", "config": {"minval": 7.0, "maxval": 8.0, "seed": None}}
    layer = {"class_name": "Dense", "config": {"name": "d", "kernel_initializer": kernel}}
    text = f'{{"class_name": "Sequential", "config": {{"name": "s", "layers": [{_json(layer)}]}}}}'
    config, _, _ = read_model_config(text, where="m")
    sick = patient(
        {"d/kernel": np.ones((3, 4))}, layers=list(config.layers.values()), reinit=["d/*"]
    )
    (change,) = proposed(sick)
    assert 7 <= drawn(change).min() < drawn(change).max() <= 8
    assert "stored in the configuration" in change.title


def _json(value: object) -> str:
    import json

    return json.dumps(value)


def test_a_stored_initialiser_that_is_not_known_is_not_replaced_by_another() -> None:
    layer = LayerConfig(name="d", class_name="Dense", settings={"kernel_initializer": "mine>Odd"})
    sick = patient({"d/kernel": np.ones((3, 4))}, layers=[layer], reinit=["d/*"])
    (refusal,) = proposed(sick)
    assert refusal.reason == "no law is known for it"
    assert refusal.hint == "--reinit d/kernel=LAW"


def test_values_depend_on_seed_and_name_and_not_on_what_else_is_drawn() -> None:
    weights = patients.state()
    alone = edits(proposed(patient(weights, reinit=["fc.weight"])))["fc.weight"]
    among = edits(proposed(patient(weights, reinit=["*"])))["fc.weight"]
    other = edits(proposed(patient(weights, reinit=["fc.weight"], seed=1)))["fc.weight"]
    twice = drawn(alone), drawn(alone)
    np.testing.assert_array_equal(*twice)
    np.testing.assert_array_equal(drawn(alone), drawn(among))
    assert not np.array_equal(drawn(alone), drawn(other))


def test_the_later_of_two_patterns_decides() -> None:
    weights = {"a.weight": np.ones((2, 2)), "b.weight": np.ones((2, 2))}
    found = edits(proposed(patient(weights, reinit=["*=zeros", "b.*=constant(value=5)"])))
    assert list(found) == ["a.weight", "b.weight"]
    assert drawn(found["a.weight"]).tolist() == [0.0] * 4
    assert drawn(found["b.weight"]).tolist() == [5.0] * 4


def test_an_average_is_drawn_like_its_model() -> None:
    weights = {
        "model.fc.weight": np.ones((8, 4)), "model.out.weight": np.ones((8, 4)),
        "ema.fc.weight": np.ones((8, 4)), "ema.out.weight": np.ones((8, 4)),
    }  # fmt: skip
    found = edits(proposed(patient(weights, reinit=["*fc.weight", "ema.*"])))
    np.testing.assert_array_equal(drawn(found["ema.fc.weight"]), drawn(found["model.fc.weight"]))
    alone = edits(proposed(patient(weights, reinit=["ema.*"])))["ema.fc.weight"]
    assert not np.array_equal(drawn(alone), drawn(found["ema.fc.weight"]))


@pytest.mark.parametrize(
    ("tensors", "name", "order", "words"),
    [
        ({"optimizer.state.0.exp_avg": np.ones(3)}, "optimizer.state.0.exp_avg", "*", "optimizer state"),
        ({"fc.weight": np.ones((2, 2), "i4")}, "fc.weight", "*", "integers (int32)"),
        ({"fc.weight": np.ones((2, 2), "c8")}, "fc.weight", "*", "complex values"),
        ({"fc.weight": np.ones((2, 2), bool)}, "fc.weight", "*", "bool values"),
        ({"fc.weight": np.ones((0, 2))}, "fc.weight", "*", "no elements"),
        ({"pos": np.ones((4, 3))}, "pos", "*", "no law is known"),
        ({"fc.weight": np.ones((2, 2)), "fc.bias": np.ones(2)}, "fc.bias", "*=kaiming", "has 1 axes"),
        ({"n.weight": np.ones(2)}, "n.weight", "*=orthogonal", "has 1 axes"),
        ({"d/bias": np.ones(2)}, "d/bias", "*=orthogonal", "has 1 axes"),
        ({"n.running_var": np.ones(2)}, "n.running_var", "*=normal(std=1)", "negative ones"),
        ({"n.num_batches_tracked": np.array(3), "n.running_var": np.ones(2)},
         "n.num_batches_tracked", "*=ones", "integers"),
        ({"h.weight": np.ones((2, 2), "f2")}, "h.weight", "*=constant(value=1e5)", "cannot hold"),
        ({"h.weight": np.ones((2, 2), "f2")}, "h.weight", "*=uniform(low=-1e6,high=0)", "-1e+06 to 0"),
        ({"h.weight": np.ones((2, 2), "f2")}, "h.weight", "*=normal(std=1e4)", "float16"),
        ({"fc.weight_g": np.ones((2, 1)), "fc.weight_v": np.ones((2, 2))}, "fc.weight_g", "*", "no law"),
    ],
)  # fmt: skip
def test_what_is_not_drawn_is_named_with_the_reason(
    tensors: dict[str, Any], name: str, order: str, words: str
) -> None:
    assert words in refusals(proposed(patient(tensors, reinit=[order])))[name]


def test_an_optimizer_is_dropped_rather_than_drawn() -> None:
    (refusal,) = proposed(patient({"optimizer.state.0.exp_avg": [1.0]}, reinit=["*"]))
    assert refusal.hint == "--drop-optimizer"


@pytest.mark.parametrize("encoding", ["quantised", "opaque", "absent"])
def test_encoded_values_are_left_alone(encoding: Any) -> None:
    scheme = Quantisation(scheme="per tensor", scale=0.1, zero_point=0)
    table = TensorTable.from_arrays({"fc.weight": np.ones((2, 2), "f4")})
    info = table["fc.weight"]._replace(encoding=encoding, quantisation=scheme)
    sick = patient(dataclasses.replace(table, infos={info.name: info}), reinit=["fc.*=he"])
    assert set(refusals(proposed(sick))) == {"fc.weight"}


def test_the_kernel_of_a_layer_with_scales_is_left_alone() -> None:
    tensors = {"q.weight": np.ones((4, 4)), "q.weight_scale": np.ones(4), "q.bias": np.ones(4)}
    why = refusals(proposed(patient(tensors, reinit=["q.*"])))
    assert "quantised" in why["q.weight"]
    assert "quantised" in why["q.weight_scale"]


def test_an_asked_law_needs_no_layer() -> None:
    sick = patient({"pos": np.ones((4, 30))}, reinit=["pos=truncated_normal(std=0.02)"])
    (change,) = proposed(sick)
    assert 0.03 < abs(drawn(change)).max() <= 0.0401


def test_a_vector_of_keras_takes_a_law_by_fan() -> None:
    layer = LayerConfig(name="d", class_name="Dense", settings={"bias_initializer": "HeUniform"})
    tensors = {"d/kernel": np.ones((3, 4)), "d/bias": np.ones(4)}
    found = edits(proposed(patient(tensors, layers=[layer], reinit=["d/bias"])))
    assert abs(drawn(found["d/bias"])).max() <= (6 / 4) ** 0.5


def test_a_matrix_that_takes_hours_is_refused() -> None:
    side = math.ceil((MAX_WORK / 2) ** (1 / 3))
    for size, refused in ((side - 1, False), (side + 1, True)):
        table = TensorTable.from_arrays({"fc.weight": np.ones((2, 2), "f4")})
        sick = patient(table, reinit=["fc.*=orthogonal"])
        info = table["fc.weight"]._replace(shape=(size, size))
        sick.ctx.table = dataclasses.replace(table, infos={info.name: info})
        assert bool(refusals(proposed(sick))) == refused


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("fc.wieght", "did you mean 'fc.weight'"),
        ("xyz", "'ckptdoctor inspect' lists names"),
        ("nothing.*=he", "no tensor matches 'nothing.*'"),
        ("fc.weight=kaimin", "no law 'kaimin'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_a_mistake(order: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        proposed(patient({"fc.weight": [[1.0]]}, reinit=["fc.*", order]))
    assert words in str(caught.value)


def test_names_with_an_equals_sign_are_reached() -> None:
    sick = patient({"a=b.weight": np.ones((2, 2))}, reinit=["a=b.*="])
    assert list(edits(proposed(sick))) == ["a=b.weight"]


def test_codes_that_a_law_settles_are_cured() -> None:
    wild = np.random.default_rng(0).standard_normal((64, 64)) * 1e9
    zero = {"fc.weight": np.zeros((64, 64)), "fc2.weight": wild}
    asked = {
        order: [change.cures for change in proposed(patient(zero, reinit=[order]))]
        for order in ("fc.weight", "fc.weight=zeros", "fc2.weight")
    }
    assert asked == {"fc.weight": [("WT001",)], "fc.weight=zeros": [()], "fc2.weight": [("WT003",)]}


# --- memory ---------------------------------------------------------------------------------------


def sharing(*rows: tuple[str, int, int, Any]) -> Any:
    """Patient whose tensors lie in one storage: name, first byte, length, strides."""
    table = TensorTable.from_arrays({row[0]: np.ones((2, 2), "f4") for row in rows})
    sick = patient(table, reinit=["*=normal(std=1)"])
    infos = {
        name: table[name]._replace(
            storage="0",
            extent=Extent(None, at, length),
            strides=strides,  # type: ignore[arg-type]
        )
        for name, at, length, strides in rows
    }
    sick.ctx.table = dataclasses.replace(table, infos=infos)
    return proposed(sick)


def test_tied_weights_are_drawn_once() -> None:
    changes = sharing(("wte.weight", 64, 16, None), ("head.weight", 64, 16, None))
    assert [change.tensor for change in changes] == ["wte.weight"]


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ((0, 16, None), (16, 16, None), False),
        ((16, 16, None), (0, 16, None), False),
        ((0, 16, None), (12, 16, None), True),
        ((12, 16, None), (0, 16, None), True),
        ((0, 16, None), (0, 16, (1, 2)), True),
        ((0, 64, None), (16, 16, None), True),
    ],
)
def test_views_that_overlap_are_not_drawn_over_each_other(
    first: tuple[int, int, Any], second: tuple[int, int, Any], refused: bool
) -> None:
    changes = sharing(("a.weight", *first), ("b.weight", *second))
    assert [change.tensor for change in changes if isinstance(change, Edit)] == (
        ["a.weight"] if refused else ["a.weight", "b.weight"]
    )
    assert ("b.weight" in refusals(changes)) == refused
    if refused:
        assert "shares memory with 'a.weight'" in refusals(changes)["b.weight"]


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype", "held"),
    [
        (65504.0, "float16", True), (65520.0, "float16", False), (-7e4, "float16", False),
        (1e-9, "float16", False), (0.0, "float16", True), (1e30, "bfloat16", True),
        (0.1, "float8_e5m2", True), (1e39, "float32", False), (-1.0, "float8_e8m0fnu", False),
        (127.0, "int8", True), (128.0, "int8", False), (-128.0, "int8", True),
        (-1.0, "uint8", False), (0.5, "int64", False), (1.0, "bool", True), (2.0, "bool", False),
        (-1.0, "bool", False),
    ],
)  # fmt: skip
def test_a_type_holds_what_it_rounds_to_something_near(
    value: float, dtype: str, held: bool
) -> None:
    assert fits(value, DTYPES[dtype]) == held


@pytest.mark.oracle
def test_torch_trains_a_drawn_layer(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = patients.save_torch(tmp_path / "m.pt", patients.state())
    with open_path(path) as table:
        change = edits(proposed(patient(table, reinit=["conv2.weight"])))["conv2.weight"]
        theirs = torch.nn.Conv2d(8, 16, 3, bias=False).weight.detach().numpy()
        ours = drawn(change).reshape(theirs.shape)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.1)
    assert abs(ours).max() == pytest.approx(abs(theirs).max(), rel=0.02)


# --- what a Keras configuration says of initialisers ----------------------------------------------


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        ({"class_name": "Ones", "config": {}}, "Ones"),
        ({"class_name": "Ones", "config": {"dtype": "float32"}}, "Ones"),
        ({"class_name": "HeNormal", "config": {"seed": None}}, "HeNormal"),
        ("glorot_uniform", "glorot_uniform"),
        (None, None),
        ({"class_name": "Constant", "config": {"value": 0.5}}, {"class_name": "Constant", "value": 0.5}),
        (
            {"class_name": "HeNormal", "registered_name": "mine>HeNormal", "config": {"seed": 1}},
            "mine>HeNormal",
        ),
        (
            {"class_name": "VarianceScaling", "config": {"scale": 2, "mode": "m" * 999, "bad": [1] * 99}},
            {"class_name": "VarianceScaling", "scale": 2, "mode": "m" * 200},
        ),
        ({"class_name": "Constant", "config": {"value": 10**400}}, "Constant"),
        ({"class_name": "Constant", "config": {"value": {"class_name": "x"}}}, {"class_name": "Constant", "value": "x"}),
        ({"class_name": "Constant", "config": "text"}, "Constant"),
        ({"class_name": 7, "config": {}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_stored_initialisers_are_small_plain_data(stored: Any, kept: Any) -> None:
    layer = {"class_name": "Dense", "config": {"name": "d", "kernel_initializer": stored}}
    text = _json({"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}})
    config, _, _ = read_model_config(text, where="m")
    assert config.layers["d"].settings.get("kernel_initializer") == kept


def test_names_that_are_cut_to_end_like_an_initialisers_are_plain_settings() -> None:
    key = "x" * 68 + "_initializer"
    layer = {"class_name": "Dense", "config": {"name": "d", key + "y" * 20: 5}}
    text = _json({"class_name": "Sequential", "config": {"name": "s", "layers": [layer]}})
    config, _, _ = read_model_config(text, where="m")
    assert config.layers["d"].settings == {key: 5}
