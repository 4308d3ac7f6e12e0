"""NF001 to NF003 together: damage and intention told apart, every non-finite tensor named once."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ckptdoctor.diagnose import diagnose
from ckptdoctor.dtypes import DTYPES
from ckptdoctor.measure.scan import measure
from ckptdoctor.rules import RULES
from ckptdoctor.rules.base import Context
from ckptdoctor.sources import Extent, WindowSource
from ckptdoctor.tensors import BLOCK_BYTES, TensorInfo, TensorTable

INF, NAN = np.inf, np.nan
NONFINITE = [rule() for rule in RULES if rule.code.startswith("NF")]
"""Without the rules that say more of the same tensor, and take their place."""


def codes(arrays, roles=None):
    table = TensorTable.from_arrays(arrays, roles)
    return {
        (f.code, f.tensor, f.severity.name.lower())
        for f in diagnose(table, measure(table), rules=NONFINITE).findings
    }


def causal(n, heads=1, fill=0.0):
    return (
        np.where(np.triu(np.ones((n, n)), 1) == 1, -INF, fill)
        .astype(np.float32)[None]
        .repeat(heads, 0)
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mask", causal(16)),
        ("transformer.h.0.attn.attention_scores_bias", causal(5, heads=3)),
        ("x", causal(600)),  # more than one block
        ("blocks.1.attn_mask", np.float32([[0, -INF, 0], [-INF, 0, 0]])),
        ("encoder.alibi", causal(4, heads=2, fill=-1.5)),
        ("m", causal(7)[0].T),
        ("final_logits_bias", np.float32([[0, -INF, 0, 0.5]])),
        ("suppress_tokens_bias", np.float32([0, -INF])),
        ("lm_head.bias", np.float32([0.1] * 9 + [-INF])),
        ("cls.predictions.bias", np.float32([0.1, -INF])),
        ("layers/dense/logits/bias:0", np.float32([0.1, -INF])),
        ("crf.start_transitions", np.float32([0.1, -INF])),
        ("act.activation_post_process.min_val", np.float32(INF)),
        ("act.activation_post_process.max_vals", np.float32([-INF, -INF])),
        ("best_score", np.float32(-INF)),
        ("memory.last_seen", np.float32([NAN, NAN, 3])),
        ("neg_inf", np.float32(-INF)),
        ("action_space.high", np.float32([INF, 1])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_meant_to_be_there_is_a_note(name, values):
    assert codes({name: values}) == {("NF003", name, "note")}


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        ("mask_token", np.float32([[-INF, 0.5]]), "NF002"),
        ("mask", np.float32([[0, INF], [0, 0]]), "NF002"),
        ("mask", np.float32([[0, NAN], [0, 0]]), "NF001"),
        ("w", np.float32([[0, -INF, 0], [0, 0, 0], [0, -INF, -INF]]), "NF002"),
        ("mask_head.weight", np.float32([[-INF, 1]]), "NF002"),
        ("head.bias", np.float32([-INF, -INF, 0]), "NF002"),
        ("layers.0.fc1.bias", np.float32([0, 0, -INF]), "NF002"),
        ("bn.running_max", np.float32([NAN]), "NF001"),
        ("bn.running_var", np.float32([NAN, NAN]), "NF001"),
        ("post_bn/moving_variance:0", np.float32([INF, INF]), "NF002"),
        ("action_space.high", np.float32([NAN, 1]), "NF001"),
        ("cls_token", np.float32([[[0.5, 0.1, -INF]]]), "NF002"),
        ("pos_embed", np.full((1, 3, 3), NAN, np.float32), "NF001"),
        ("best_linear_weight", np.float32([INF]), "NF002"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_under_a_similar_name_or_pattern_is_an_error(name, values, code):
    assert (code, name, "error") in codes({name: values})
    assert not any(found == "NF003" for found, *_ in codes({name: values}))


def stored(name, dtype, values):
    """Table with one tensor of any dtype, as its bytes."""
    pairs = dtype == "complex32"
    with np.errstate(all="ignore"):  # types without infinity take what comes nearest
        flat = values.astype(np.float16 if pairs else DTYPES[dtype].numpy)
    data = (np.stack([flat, 0 * np.zeros_like(flat)], -1) if pairs else flat).tobytes()
    extent = Extent(WindowSource.over(data, "m"), 0, len(data))
    info = TensorInfo(name=name, path=(name,), dtype=dtype, shape=values.shape, extent=extent)
    return TensorTable(path="m", format="f", infos={name: info})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "dtype", [d.name for d in DTYPES.values() if d.kind in ("float", "complex")]
)
@pytest.mark.parametrize("name", ["x", "mask", "fc.weight"])
def test_every_floating_type_is_judged(dtype, name):
    infinities = causal(4)[0] if name != "fc.weight" else np.float32([[1, -INF], [INF, NAN]])
    table = stored(name, dtype, infinities)
    stats = measure(table).stats[name]
    found = {f.code for f in diagnose(table, measure(table)).findings}
    if name == "fc.weight" or (name == "x" and DTYPES[dtype].kind == "complex"):
        expected = {"NF001"} if stats.nan else set()
        expected |= {"NF002"} if stats.posinf or stats.neginf else set()
    elif stats.nan:  # a type that has no infinity turned it into NaN
        expected = {"NF001"}
    else:
        expected = {"NF003"} if stats.neginf else set()
    assert found == expected


def test_head_bias_is_damage_when_its_weight_is():
    bias = {"head.bias": np.float32([0, 0, -INF])}
    assert codes(bias) == {("NF003", "head.bias", "note")}
    found = codes({"head.weight": np.float32([[1], [1], [NAN]]), **bias})
    assert ("NF002", "head.bias", "error") in found


def test_nan_and_inf_in_one_tensor_are_two_findings():
    found = codes({"bn.running_mean": np.float32([NAN, INF, 1])})
    assert {code for code, *_ in found} == {"NF001", "NF002"}


def test_infinite_best_score_is_a_note_and_nan_loss_a_warning_in_loop_state():
    roles = {"callbacks.best_model_score": "training", "logs.val": "training"}
    found = codes(
        {"callbacks.best_model_score": np.float32(INF), "logs.val": np.float32([NAN])}, roles
    )
    assert found == {
        ("NF003", "callbacks.best_model_score", "note"),
        ("NF001", "logs.val", "warning"),
    }


def test_mask_name_excuses_nothing_in_the_optimizer():
    name = "optimizer.state.0.mask"
    assert codes({name: causal(3)}, {name: "optimizer"}) == {("NF002", name, "error")}


def test_tensor_whose_use_is_unknown_is_a_warning_at_most():
    assert codes({"constants.0": np.float32([NAN])}, {"constants.0": "other"}) == {
        ("NF001", "constants.0", "warning")
    }


def test_message_and_numbers_say_how_many_and_where():
    values = np.zeros((3, 4), np.float32)
    values[1, 2:] = NAN
    table = TensorTable.from_arrays({"w": values})
    (finding,) = diagnose(table, measure(table)).findings
    assert finding.message == "2 of 12 elements are NaN, the first at [1, 2]"
    assert finding.measured == {"elements": 12, "nan": 2, "first": [1, 2]}


def test_range_of_a_narrow_type_is_part_of_the_message():
    table = TensorTable.from_arrays({"w": np.float16([1, INF])})
    (finding,) = diagnose(table, measure(table)).findings
    assert "float16 ends at 65504" in finding.message


def test_search_for_the_first_fault_stops_when_the_budget_is_spent():
    values = np.zeros(3 * BLOCK_BYTES // 4, np.float32)
    values[-1] = NAN
    table = TensorTable.from_arrays({"w": values})
    stats = measure(table).stats
    found = Context(table, stats).first(table["w"], np.isnan)
    assert found == (values.size - 1,)
    assert Context(table, stats, _budget=BLOCK_BYTES).first(table["w"], np.isnan) is None


@settings(max_examples=60)
@given(
    name=st.sampled_from(["w.weight", "mask", "x", "best_score", "low", "head.bias", "a.min_val"]),
    role=st.sampled_from(["model", "ema", "optimizer", "scaler", "training", "other"]),
    values=st.lists(st.sampled_from([0.0, 1.0, NAN, INF, -INF]), min_size=1, max_size=9),
)
def test_every_nonfinite_tensor_is_named_and_no_finite_one(name, role, values):
    array = np.float32(values)
    array = array.reshape(3, 3) if array.size == 9 else array
    found = {code for code, *_ in codes({name: array}, {name: role})}
    if np.isfinite(array).all():
        assert found == set()
    elif "NF003" in found:
        assert found == {"NF003"}
    else:
        assert ("NF001" in found) == bool(np.isnan(array).any())
        assert ("NF002" in found) == bool(np.isinf(array).any())


NAMES = ["w.weight", "bn.running_var", "bn.weight", "best_score", "optimizer.state.0.exp_avg_sq",
         "a.min_val", "scaler._scale", "ema.w.weight", "normalization/variance"]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    chosen=st.sets(st.sampled_from(NAMES), min_size=1),
    role=st.sampled_from(["model", "ema", "optimizer", "scaler", "training"]),
    shape=st.sampled_from([(3,), (3, 3), (1,), ()]),
    value=st.sampled_from([NAN, INF, -INF]),
)
def test_whatever_rule_takes_it_over_a_nonfinite_tensor_keeps_a_code(chosen, role, shape, value):
    arrays = {name: np.ones(shape, np.float32) for name in NAMES}
    for name in chosen:
        arrays[name] = np.full(shape, value, np.float32)
    table = TensorTable.from_arrays(arrays, dict.fromkeys(NAMES, role))
    told = {f.tensor for f in diagnose(table, measure(table)).findings}
    assert chosen <= told


@pytest.mark.parametrize(("layer", "code"), [("predictions", "NF003"), ("conv", "NF002")])
def test_a_keras_head_masks_classes_in_its_second_variable(layer, code):
    arrays = {"layers/dense/vars/0": np.ones((4, 3)), "layers/dense/vars/1": np.array([0, -INF, 0])}
    table = TensorTable.from_arrays({n: v.astype(np.float32) for n, v in arrays.items()})
    infos = {n: i._replace(layer_name=layer) for n, i in table.infos.items()}
    table = replace(table, infos=infos)
    (finding,) = diagnose(table, measure(table), rules=NONFINITE).findings
    assert finding.code == code
