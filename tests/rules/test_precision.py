"""PR001 to PR003: the limits of narrow types, exact, and what of them is worth a word."""

from typing import get_args

import numpy as np
import pytest

from ckptdoctor.diagnose import diagnose
from ckptdoctor.findings import Severity
from ckptdoctor.measure.scan import measure
from ckptdoctor.results import CastTo, Wishes
from ckptdoctor.rules import pr002_underflows_in_dtype, precision
from ckptdoctor.rules.base import Context
from ckptdoctor.rules.pr001_overflows_in_dtype import OverflowsInDtype
from ckptdoctor.rules.pr002_underflows_in_dtype import UnderflowsInDtype
from ckptdoctor.rules.pr003_saturated_values import SaturatedValues
from ckptdoctor.rules.precision import NARROW
from ckptdoctor.sources import Extent, WindowSource
from ckptdoctor.tensors import LayerConfig, TensorInfo, TensorTable

INF, NAN = np.inf, np.nan


def found(rule, arrays, cast_to="", roles=None, layers=()):
    table = TensorTable.from_arrays(arrays, roles, layers=layers)
    wishes = Wishes(cast_to=cast_to)
    return diagnose(table, measure(table), wishes, rules=[rule]).findings


def one(rule, arrays, cast_to="", **more):
    (finding,) = found(rule, arrays, cast_to, **more)
    return finding


def cast(values, name):
    with np.errstate(all="ignore"):
        return np.asarray(values, np.float64).astype(stored_as(name)).astype(np.float64)


def stored_as(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return np.dtype(getattr(ml_dtypes, name, name))


narrow = pytest.mark.parametrize("kind", NARROW.values(), ids=NARROW)


@narrow
def test_row_agrees_with_a_real_cast_at_every_limit(kind):
    # ml_dtypes rounds through float32: step by what float32 can tell apart
    above, under = (
        np.float32(np.nextafter(np.float32(kind.limit), np.float32(to))) for to in (INF, 0)
    )
    limits = pytest.importorskip("ml_dtypes").finfo(stored_as(kind.name))
    assert float(limits.max) == kind.largest
    assert float(limits.tiny) == kind.tiny
    assert float(limits.smallest_subnormal) == kind.step
    assert cast(under, kind.name) == kind.largest
    assert not np.isfinite(cast(above, kind.name))
    assert np.isfinite(cast(kind.limit, kind.name)) == kind.holds_limit
    assert cast(kind.largest, kind.name) == kind.largest
    assert cast(kind.step, kind.name) == kind.step
    assert cast(kind.step / 2, kind.name) == 0
    assert cast(kind.step * 0.51, kind.name) == kind.step


@narrow
def test_overflow_begins_where_the_row_says(kind):
    values = [-kind.limit, kind.largest, np.nextafter(kind.limit, INF), NAN, 0.0]
    assert kind.overflows(np.abs(values)).tolist() == [
        not kind.holds_limit, False, True, False, False,
    ]  # fmt: skip


def test_magnitude_is_of_either_end():
    stats = measure(TensorTable.from_arrays({"a": [-3, 2], "b": [-2, 3], "c": [NAN]})).stats
    assert [precision.magnitude(stats[name]) for name in "abc"] == [3, 3, 0]


@narrow
def test_low_is_subnormal_in_16_bits_and_two_steps_in_8(kind):
    assert kind.low == (kind.tiny if not kind.name.startswith("float8") else 2 * kind.step)


def test_every_type_that_can_be_asked_for_is_known():
    assert set(get_args(CastTo)) == set(NARROW)
    assert [precision.target(name) for name in ("", *NARROW)] == [None, *NARROW.values()]


@pytest.mark.parametrize(
    ("name", "value", "sick"),
    [
        ("float16", 65519.996, False), ("float16", 65520.0, True), ("float16", -65520.0, True),
        ("float8_e4m3fn", 464.0, False), ("float8_e4m3fn", -464.00003, True),
        ("float8_e5m2", 61439.996, False), ("float8_e5m2", 61440.0, True),
        ("bfloat16", 3.3961773e38, False), ("bfloat16", 3.3961777e38, True),
    ],
)  # fmt: skip
def test_one_step_decides_over_overflow(name, value, sick):
    findings = found(OverflowsInDtype(), {"fc.weight": np.float32([[1, value]])}, name)
    assert bool(findings) == sick
    assert all(f.severity is Severity.ERROR for f in findings)
    assert all(f.measured["keep_float32"] and f.measured["cast_to"] == name for f in findings)


def test_overflow_counts_finite_elements_and_names_the_largest():
    values = np.float32([[70000, -65520, 65504], [NAN, INF, -80000]])
    finding = one(OverflowsInDtype(), {"fc.weight": values}, "float16")
    assert finding.measured["overflows"] == 3
    assert finding.measured["largest"] == 80000
    assert finding.measured["elements"] == 6
    assert finding.message.startswith("3 of 6 elements become Inf in float16")
    assert finding.message.endswith("the largest is -80000")
    positive = one(OverflowsInDtype(), {"fc.weight": np.float32([[9e4, -8e4]])}, "float16")
    assert positive.message.endswith("the largest is 90000")


@pytest.mark.parametrize(
    ("arrays", "roles"),
    [
        ({"m": np.float32([1e9])}, {"m": "optimizer"}),
        ({"m": np.float32([1e9])}, {"m": "training"}),
        ({"ids": np.int64([10**9])}, {}),
        ({"w": np.complex64([1e9])}, {}),
        ({"w": np.float16([60000])}, {}),
        ({"w": np.float32([NAN, INF])}, {}),
        ({"w": np.zeros((0, 3), np.float32)}, {}),
    ],
    ids=["optimizer", "training", "integers", "complex", "half", "nonfinite", "empty"],
)
def test_what_the_cast_does_not_harm_is_silent(arrays, roles):
    for rule in (OverflowsInDtype(), UnderflowsInDtype(), SaturatedValues()):
        assert found(rule, arrays, "float16", roles) == ()


def test_ema_is_cast_as_well():
    finding = one(
        OverflowsInDtype(), {"ema.w": np.float32([1e9])}, "float16", roles={"ema.w": "ema"}
    )
    assert (finding.role, finding.severity) == ("ema", Severity.ERROR)


@pytest.mark.parametrize(
    ("name", "values", "severity"),
    [
        ("attn.Mask", [0, -1e9], Severity.WARNING),
        ("attn.mask", [0, 1e9], Severity.ERROR),
        ("attn.table", [0, -1e9], Severity.ERROR),
        ("mask_head.weight", [[0, -1e9]], Severity.ERROR),
    ],
)
def test_only_a_mask_may_become_infinite(name, values, severity):
    finding = one(OverflowsInDtype(), {name: np.float32(values)}, "float16")
    assert finding.severity is severity


def weights(count, low, total=16, value=1e-6):
    """Float16 matrix of which ``low`` of ``count`` nonzero values are ``value``."""
    flat = np.zeros(total, np.float16)
    flat[:count] = 7e-5
    flat[:low] = value
    return flat.reshape(2, -1)


RULE2, RULE3 = UnderflowsInDtype(), SaturatedValues()


def test_share_of_small_values_decides_and_zeros_do_not_count():
    count = 10
    enough = round(RULE2.share * count)
    assert enough / count == RULE2.share
    assert found(RULE2, {"fc.weight": weights(count, enough - 1)}) == ()
    finding = one(RULE2, {"fc.weight": weights(count, enough)})
    assert finding.severity is Severity.WARNING
    assert finding.measured == {"nonzero": count, "low": enough, "vanishing": 0}
    assert finding.message == "50% of 10 nonzero values are subnormal in float16"
    wide = {low: weights(count, low).astype(np.float32) for low in (enough - 1, enough)}
    assert found(RULE2, {"fc.weight": wide[enough - 1]}, "float16") == ()
    assert found(RULE2, {"fc.weight": wide[enough]}, "float16")


def test_thresholds_are_those_that_were_measured():
    assert (RULE2.share, RULE2.reach, RULE2.gain) == (0.5, 16, 0.25)
    assert (RULE3.share, RULE3.ties) == (0.05, 4)
    assert (precision.PIECES, precision.PIECE, pr002_underflows_in_dtype.MOST) == (8, 4096, 1024)


@pytest.mark.parametrize(("name", "normal"), [(kind.name, kind.low) for kind in NARROW.values()])
def test_smallest_value_that_keeps_its_digits_is_not_small(name, normal):
    dtype = stored_as(name)
    held = np.full((2, 4), normal).astype(dtype)
    assert found(RULE2, {"fc.weight": held}) == ()
    low = np.full((2, 4), normal - NARROW[name].step).astype(dtype)
    assert one(RULE2, {"fc.weight": -low}).severity is Severity.WARNING


@pytest.mark.parametrize(("factor", "sick"), [(0.99, True), (1.01, False)])
def test_small_values_beside_much_larger_ones_are_left_alone(factor, sick):
    low = NARROW["float16"].low
    large = factor * RULE2.reach * low * 4  # a sixteenth of the values: root mean square / 4
    values = np.float16([[large] + [1e-6] * 15])
    assert bool(found(RULE2, {"fc.weight": values})) == sick
    assert bool(found(RULE2, {"fc.weight": values.astype(np.float32)}, "float16")) == sick


@pytest.mark.parametrize("role", ["training", "other", "scaler"])
def test_stored_values_of_no_use_are_left_alone(role):
    assert found(RULE2, {"m": weights(8, 8)}, roles={"m": role}) == ()


@pytest.mark.parametrize(
    ("name", "values", "role", "severity"),
    [
        ("fc.weight", weights(8, 8), "model", Severity.WARNING),
        ("ema.fc.weight", weights(8, 8), "ema", Severity.WARNING),
        ("state.0.exp_avg_sq", weights(8, 8)[0], "optimizer", Severity.WARNING),
        ("fc.bias", weights(8, 8)[0], "model", Severity.NOTE),
        ("q_proj.lora_B.weight", weights(8, 8), "model", Severity.NOTE),
        ("unknown", weights(8, 8), "model", Severity.WARNING),
        ("attn/query/bias", weights(8, 8), "model", Severity.NOTE),
    ],
)
def test_severity_of_stored_values_follows_what_they_are_for(name, values, role, severity):
    beside = {"attn/query/kernel": np.ones((2, 2, 4), np.float16)} if "query" in name else {}
    finding = one(RULE2, {**beside, name: values}, roles={name: role})
    assert (finding.tensor, finding.severity) == (name, severity)
    assert "keep_float32" not in finding.measured


def test_cast_of_vectors_and_adapters_is_not_reported():
    arrays = {
        "fc.bias": np.full(8, 1e-6, np.float32),
        "q_proj.lora_B.weight": np.full((2, 4), 1e-6, np.float32),
    }
    assert found(RULE2, arrays, "float16") == ()


@pytest.mark.parametrize(
    ("value", "severity"),
    [(2.0**-25, Severity.ERROR), (2.0**-25 * 1.0001, Severity.WARNING), (6.1e-5, Severity.WARNING)],
)
def test_layer_that_the_cast_erases_is_an_error(value, severity):
    for sign in (1, -1):
        values = np.float32([[sign * value, 1e-9 * sign], [0, sign * value]])
        finding = one(RULE2, {"fc.weight": values}, "float16")
        assert finding.severity is severity
        assert finding.measured["keep_float32"]
        assert finding.measured["cast_to"] == "float16"
        assert "become subnormal" in finding.message
    smallest = finding.measured["vanishing"]
    assert smallest == (3 if severity is Severity.ERROR else 1)
    assert ("(33% become 0)" in finding.message) == (severity is Severity.WARNING)


def test_cast_that_keeps_small_numbers_is_silent():
    tiny = np.float32([[1e-30, 1e-31]])
    assert found(RULE2, {"fc.weight": tiny}, "bfloat16") == ()
    assert found(RULE2, {"fc.weight": np.float16([[7e-5, 7e-5]])}, "float16") == ()
    # what float8 stored already, float16 keeps
    held = np.full((2, 4), 2.0**-13).astype(stored_as("float8_e5m2"))
    assert found(RULE2, {"fc.weight": held}, "float16") == ()


def test_cast_and_stored_never_speak_of_one_tensor_twice():
    # float16 weights, already subnormal, which float8_e5m2 has no room for
    finding = one(RULE2, {"fc.weight": weights(8, 8)}, "float8_e5m2")
    assert finding.measured["cast_to"] == "float8_e5m2"
    assert one(RULE2, {"fc.weight": np.float32([[1e-6, 0]])}, "float16").measured["low"] == 1
    assert "cast_to" not in one(RULE2, {"fc.weight": weights(8, 8)}, "float16").measured
    # and a cast that loses nothing still tells what is stored
    assert "cast_to" not in one(RULE2, {"fc.weight": weights(8, 8)}, "bfloat16").measured


def bn(variance, epsilon):
    config = LayerConfig(name="bn", class_name="BatchNorm2d", epsilon=epsilon)
    return {"bn.running_var": np.float32(variance)}, (config,)


@pytest.mark.parametrize(("factor", "sick"), [(0.99, False), (1.01, True)])
def test_variance_that_becomes_zero_matters_as_far_as_epsilon_lets_it(factor, sick):
    variance = 5e-4
    # sqrt((variance + epsilon) / epsilon) - 1 == gain
    epsilon = variance / ((1 + factor * RULE2.gain) ** 2 - 1)
    arrays, layers = bn([variance, 1e-6, 1, 0], epsilon)
    findings = found(RULE2, arrays, "float8_e4m3fn", layers=layers)
    assert bool(findings) == sick
    for finding in findings:
        assert finding.severity is Severity.WARNING
        assert finding.measured["vanishing"] == 2
        assert finding.measured["largest"] == pytest.approx(variance)
        assert finding.measured["keep_float32"]


def test_variance_without_epsilon_or_above_half_a_step():
    half_step = NARROW["float8_e4m3fn"].step / 2
    for variance, sick in ((half_step, True), (half_step * 1.001, False)):
        arrays, layers = bn([variance, 1], 0.0)
        findings = found(RULE2, arrays, "float8_e4m3fn", layers=layers)
        assert bool(findings) == sick
    arrays, layers = bn([0, 1], 0.0)
    assert found(RULE2, arrays, "float8_e4m3fn", layers=layers) == ()
    arrays = {"bn.running_mean": np.float32([0, 1e-8])}
    assert found(RULE2, arrays, "float8_e4m3fn", layers=layers) == ()
    arrays, layers = bn([NAN, NAN], 1e-5)
    assert found(RULE2, arrays, "float8_e4m3fn", layers=layers) == ()


@pytest.mark.parametrize(("few", "sick"), [(4, False), (5, True)])
def test_stored_variances_are_judged_each_for_itself(few, sick):
    variance = np.ones(10, np.float16)
    variance[:few] = 1e-6
    arrays = {"bn.running_var": variance, "bn.running_mean": np.ones(10, np.float16)}
    findings = found(RULE2, arrays)
    assert [(f.tensor, f.severity.name) for f in findings] == [("bn.running_var", "NOTE")] * sick
    assert found(RULE2, {"bn.running_var": variance.astype(np.float32)}) == ()
    one(RULE2, {"bn.running_var": np.full(10, 1e-6, np.float16)})
    assert found(RULE2, {"bn.running_var": np.zeros(10, np.float16)}) == ()
    single = one(RULE2, {"bn.running_var": np.float16([1e-6, 0])})
    assert single.measured["low"] == 1


def test_only_the_smallest_are_read_where_very_many_are_suspect(monkeypatch):
    monkeypatch.setattr(pr002_underflows_in_dtype, "MOST", 2)
    arrays = {f"{i}.weight": np.float16([[i * 1e-6, i * 1e-6]]) for i in (5, 1, 4, 2)}
    assert {f.tensor for f in found(RULE2, arrays)} == {"1.weight", "2.weight"}


def in_file(values, *, big=False, rest=b""):
    raw = values.byteswap().tobytes() if big else values.tobytes()
    extent = Extent(WindowSource.over(b"head" + raw + rest, "m"), 4, len(raw))
    info = TensorInfo(
        name="fc.weight", path=("fc", "weight"), dtype=values.dtype.name, shape=values.shape,
        extent=extent, big_endian=big,
    )  # fmt: skip
    return TensorTable(path="m", format="f", infos={info.name: info})


@pytest.mark.parametrize("big", [False, True])
def test_large_tensor_is_judged_by_a_sample_from_start_to_end(big):
    size = precision.PIECES * precision.PIECE
    values = np.zeros((2, 2 * size), np.float16)
    values.reshape(-1)[[0, -1]] = 1e-6
    table = in_file(values, big=big)
    context = Context(table, measure(table).stats)
    counts = precision.count_low(context, table["fc.weight"], NARROW["float16"])
    assert counts == (2, 2, 0)
    pieces = list(precision.sample(context, table["fc.weight"]))
    assert sum(piece.size for piece in pieces) == size
    assert len(pieces) == precision.PIECES
    (finding,) = RULE2.check(context)
    assert finding.measured["low"] == 2


@pytest.mark.parametrize(("dtype", "cast_to"), [("float16", ""), ("float32", "float16")])
def test_sample_of_zeros_says_nothing(dtype, cast_to):
    values = np.zeros((2, 1 << 16), dtype)
    values[0, 5000] = 1e-6
    table = in_file(values)
    assert list(RULE2.check(Context(table, measure(table).stats, cast_to=cast_to))) == []


def test_tensor_as_large_as_a_sample_is_read_whole():
    size = precision.PIECES * precision.PIECE
    values = np.full((2, size // 2), 1e-6, np.float16)
    table = in_file(values)
    context = Context(table, measure(table).stats)
    assert precision.count_low(context, table["fc.weight"], NARROW["float16"]).low == size


def test_tensor_that_only_decodes_is_read_from_its_start():
    values = np.full((4, 1 << 19), 1e-6, np.float16)
    table = TensorTable.from_arrays({"fc.weight": values})
    context = Context(table, measure(table).stats)
    counts = precision.count_low(context, table["fc.weight"], NARROW["float16"])
    assert precision.PIECES * precision.PIECE <= counts.low < values.size / 8


def eights(count, at_end, name="float8_e4m3fn"):
    flat = np.ones(count)
    flat[:at_end] = NARROW[name].largest
    flat[: at_end // 2] *= -1
    return flat.reshape(2, -1).astype(stored_as(name))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_share_at_the_end_of_an_8_bit_range_decides(name):
    most = round(RULE3.share * 200)
    assert most / 200 == RULE3.share
    assert found(RULE3, {"fc.weight": eights(200, most, name)}) == ()
    finding = one(RULE3, {"fc.weight": eights(200, most + 1, name)})
    assert (finding.severity, finding.measured["saturated"]) == (Severity.WARNING, most + 1)
    assert finding.measured["elements"] == 200
    assert finding.message.endswith(f"where {name} ends")
    assert "keep_float32" not in finding.measured


def test_every_scale_excuses_a_few_values_at_the_end():
    few = int(RULE3.ties)
    assert found(RULE3, {"fc.weight": eights(20, few)}) == ()
    assert one(RULE3, {"fc.weight": eights(20, few + 1)}).measured["saturated"] == few + 1
    scales = {"fc.weight_scale": np.ones(3, np.float32)}
    assert found(RULE3, {"fc.weight": eights(40, 3 * few), **scales}) == ()
    assert found(RULE3, {"fc.weight": eights(40, 3 * few + 1), **scales})


@pytest.mark.parametrize(
    ("name", "values", "sick"),
    [
        ("fc.weight", np.float16([[65504, 1]]), True),
        ("fc.weight", np.float16([[-65504, 1]]), True),
        ("fc.weight", np.float16([[65472, 1]]), False),
        ("fc.weight", np.float16([[448, 1]]), False),
        ("table", np.float16([65504, 1]), True),
        ("table", np.float16([-65504, 1]), False),
        ("fc.weight", np.float32([[65504, 1]]), False),
        ("fc.weight", np.float16([[65504, INF]]), True),
    ],
)
def test_one_16_bit_value_at_the_end_is_enough(name, values, sick):
    findings = found(RULE3, {name: values})
    assert [f.measured["saturated"] for f in findings] == [1] * sick


def test_clamped_ahead_of_the_cast():
    values = np.float32([[65504, -65504, 1]])
    finding = one(RULE3, {"fc.weight": values}, "float16")
    assert (finding.measured["saturated"], finding.measured["keep_float32"]) == (2, True)
    assert finding.message.endswith("the end of float16")
    assert found(RULE3, {"fc.weight": values}, "bfloat16") == ()


def test_saturated_optimizer_state_is_left_alone():
    arrays = {"exp_avg": np.float16([65504])}
    assert found(RULE3, arrays, roles={"exp_avg": "optimizer"}) == ()
    assert len(found(RULE3, {"w": np.float16([65504])}, roles={"w": "ema"})) == 1


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("cast_to", ["", *NARROW])
def test_healthy_weights_are_fit_for_16_bits_and_scaled_ones_for_8(name, cast_to):
    values = np.random.default_rng(3).standard_normal((64, 64))
    values *= 0.02 if not name.startswith("float8") else NARROW[name].largest / 8
    arrays = {"fc.weight": np.clip(values, -NARROW[name].largest, NARROW[name].largest)}
    arrays["fc.weight"] = arrays["fc.weight"].astype(stored_as(name))
    if name.startswith("float8") and cast_to == "float8_e4m3fn":
        return
    if cast_to.startswith("float8") and not name.startswith("float8"):
        arrays["fc.weight"] *= 8
    for rule in (OverflowsInDtype(), RULE2, RULE3):
        assert found(rule, arrays, cast_to) == ()
