"""WT001 to WT011: what each threshold, name and piece of evidence decides."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.diagnose import diagnose
from ckptdoctor.findings import Severity
from ckptdoctor.measure.scan import measure
from ckptdoctor.rules import RULES
from ckptdoctor.rules.base import Context
from ckptdoctor.rules.kernels import ZERO_AT_START, by_design, kernels_of, large
from ckptdoctor.tensors import BLOCK_BYTES, LayerConfig, Quantisation, TensorInfo, TensorTable

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
RULE = {rule.code: rule for rule in RULES}
F32 = np.float32


def context(arrays, roles=None, layers=()):
    table = TensorTable.from_arrays(arrays, roles, layers=layers)
    return Context(table, measure(table).stats)


def found(code, arrays, roles=None, layers=(), **thresholds):
    """Severity by tensor of one rule's findings."""
    findings = RULE[code](**thresholds).check(context(arrays, roles, layers))
    return {f.tensor: f.severity for f in findings}


def one(code, arrays, **thresholds):
    (finding,) = RULE[code](**thresholds).check(context(arrays))
    return finding


def judged(arrays, roles=None):
    """Codes of all rules by tensor, as a diagnosis reports them."""
    table = TensorTable.from_arrays(arrays, roles)
    return {(f.code, f.tensor) for f in diagnose(table, measure(table)).findings}


def normal(*shape, scale=1.0, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(F32)


def uniform(*shape, bound=1.0, seed=0):
    return np.random.default_rng(seed).uniform(-bound, bound, shape).astype(F32)


TRAINED = {"norm.weight": F32([1, 0.9]), "norm.bias": F32([0.1, 0])}
FRESH = {"norm.weight": F32([1, 1]), "norm.bias": F32([0, 0])}


def chain(**changed):
    """Five ordinary dense layers, some of them replaced."""
    layers = {f"l{i}.weight": normal(16, 16, scale=0.25, seed=i) for i in range(5)}
    return {**layers, **{f"{name}.weight": value for name, value in changed.items()}}


# ------------------------------------------------------------------------------- what is a kernel


def test_kernels_are_matrices_and_filters_of_model_and_ema():
    arrays = {
        "conv.weight": normal(4, 3, 2, 2),
        "conv.bias": normal(4),
        "bn.weight": normal(4),
        "bn.running_var": normal(4),
        "ln.weight": normal(4, 5),
        "ln.bias": normal(4, 5),
        "ids.weight": np.ones((3, 3), np.int64),
        "empty.weight": np.empty((0, 3), F32),
        "embed.weight": normal(7, 3),
        "optimizer.0.weight": normal(3, 3),
        "ema.fc.weight": normal(2, 3),
        "fc.weight_orig": normal(3, 3),
        "fc.weight_u": normal(3, 1),
        "fc.weight_v": normal(3, 1),
    }
    roles = {"optimizer.0.weight": "optimizer", "ema.fc.weight": "ema"}
    kernels = kernels_of(context(arrays, roles))
    shown = [
        (kernels[i].info.name, kernels[i].units, kernels[i].fan_in) for i in range(len(kernels))
    ]
    assert sorted(shown) == [
        ("conv.weight", 4, 12),
        ("ema.fc.weight", 2, 3),
        ("embed.weight", 7, 1),
        ("fc.weight_orig", 3, 3),
    ]
    by_name = {kernels[i].info.name: i for i in range(len(kernels))}
    assert kernels.ema.tolist() == [name == "ema.fc.weight" for name in by_name]
    assert kernels.biased.tolist() == [name == "conv.weight" for name in by_name]
    assert kernels.fan_in.tolist() == [kernels[i].fan_in for i in range(len(kernels))]


def test_units_are_the_last_axis_in_keras():
    kernels = kernels_of(context({"fc/kernel": normal(5, 3), "embed/embeddings": normal(9, 4)}))
    assert [(kernels[i].units, kernels[i].fan_in) for i in range(2)] == [(3, 5), (4, 1)]


def test_kernel_numbers_are_those_of_the_values():
    values = F32([[3, -4], [0, 0]])
    kernels = kernels_of(context({"fc.weight": values}))
    assert kernels.peak[0] == 4
    assert kernels.rms[0] == pytest.approx(2.5)
    assert kernels.gain[0] == pytest.approx(2.5 * math.sqrt(2))
    assert kernels.body[0] == pytest.approx(1.5)  # root mean square without the 4, over all four


@pytest.mark.parametrize("row", ZERO_AT_START, ids=lambda row: row.what)
def test_convention_knows_its_example(row):
    info = TensorInfo(name=row.example, path=(), dtype="float32", shape=(2, 2))
    assert by_design(info) == row.what


@pytest.mark.parametrize(
    "name", ["fc.weight", "blocks.0.mlp.gate_proj.weight", "lora_A.weight", "up_proj.weight",
             "layer1.0.conv2.weight", "conv_out.weight", "head/kernel"]
)  # fmt: skip
def test_ordinary_names_are_no_convention(name):
    assert by_design(TensorInfo(name=name, path=(), dtype="float32", shape=(2, 2))) == ""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_large_elements_are_found_in_every_type(dtype):
    from ckptdoctor.dtypes import DTYPES

    values = np.ones(3 * BLOCK_BYTES // 8).astype(DTYPES[dtype].numpy)
    values[[5, values.size - 2]] = -64, 64
    table = TensorTable.from_arrays({"w": values})
    ctx = Context(table, measure(table).stats)
    assert large(ctx, table["w"], 32, 2) == [(5, -64.0), (values.size - 2, 64.0)]
    assert large(ctx, table["w"], 64, 2) == []
    assert large(ctx, table["w"], 32, 1) == "many"
    assert large(ctx, table["w"], 1e300, 1) == []


def test_search_for_large_elements_has_a_budget():
    table = TensorTable.from_arrays({"w": np.ones(BLOCK_BYTES // 4, F32)})
    ctx = Context(table, measure(table).stats)
    answers = [large(ctx, table["w"], 2, 1) for _ in range(100)]
    assert answers[0] == []
    assert answers[-1] == "unread"
    assert 55 < answers.index("unread") < 65  # 16 MB in blocks of 256 KiB


def test_budget_grows_with_the_checkpoint():
    table = TensorTable.from_arrays(
        {"w": np.ones(BLOCK_BYTES // 4, F32), "big": np.zeros(2**24, F32)}
    )
    ctx = Context(table, measure(TensorTable.from_arrays({})).stats)
    answers = [large(ctx, table["w"], 2, 1) for _ in range(80)]
    assert answers.index("unread") == int((16e6 + 0.03 * (2**26 + BLOCK_BYTES)) / BLOCK_BYTES)


# ------------------------------------------------------------------------------------------ WT001


@pytest.mark.parametrize(
    ("arrays", "severity"),
    [
        ({"fc.weight": np.zeros((4, 4)), "fc.bias": F32([0, 0, 0, 1])}, ERROR),
        ({"fc.weight": np.zeros((4, 4)), "fc.bias": F32([0, 0, 0, 0])}, ERROR),
        ({"fc2.weight": np.zeros((4, 4)), "fc2.bias": F32([0, 0, 0, 1])}, ERROR),
        ({"fc2.weight": np.zeros((4, 4)), "fc2.bias": F32([0, 0, 0, 0])}, WARNING),
        ({"fc2.weight": np.zeros((4, 4)), **TRAINED}, WARNING),
        ({"fc.weight": np.zeros((4, 4)), **TRAINED}, ERROR),
        ({"fc.weight": np.zeros((4, 4)), **FRESH}, NOTE),
        ({"embed.weight": np.zeros((4, 4))}, WARNING),
        ({"zero_convs.0.0.weight": np.zeros((4, 4, 1, 1)), **TRAINED}, NOTE),
        ({"rnn.weight_hh_l0": np.zeros((4, 1)), "rnn.weight_ih_l0": normal(4, 2)}, WARNING),
        ({"rnn.weight_ih_l0": np.zeros((4, 2)), "rnn.weight_hh_l0": normal(4, 1)}, ERROR),
    ],
    ids=["bias left", "bias zero too", "end of a branch, bias left", "end of a branch, bias zero",
         "end of a branch, trained", "trained", "untrained", "embedding", "zero convolution",
         "recurrence", "input of a recurrence"],
)  # fmt: skip
def test_zeros_are_judged_by_what_is_around_them(arrays, severity):
    arrays = {name: F32(value) for name, value in arrays.items()}
    assert list(found("WT001", arrays).values()) == [severity]


def behind(var, mean=(0.1, 0.2, 0.3, 0.4), kernel=0.0):
    return {
        "conv1.weight": np.full((4, 3, 3, 3), kernel, F32) * normal(4, 3, 3, 3),
        "bn1.weight": F32([1, 1, 1, 1]),
        "bn1.bias": F32([0, 0, 0, 0]),
        "bn1.running_mean": F32(mean),
        "bn1.running_var": F32(var),
        "bn1.num_batches_tracked": np.int64(9),
    }


def test_batchnorm_that_remembers_an_output_proves_the_loss():
    (finding,) = RULE["WT001"]().check(context(behind([0.5, 0.6, 0.7, 0.8])))
    assert finding.severity == ERROR
    assert "bn1" in finding.message


def test_batchnorm_that_saw_more_than_rounding_proves_the_loss():
    assert "bn1" in one("WT001", behind([1.1e-10, 5e-11, 0, 0])).message


@pytest.mark.parametrize(
    "var", [[1, 1, 1, 1], [0.9e-10, 5e-11, 0, 0]], ids=["fresh", "nothing came"]
)
def test_batchnorm_that_saw_nothing_proves_no_loss(var):
    (finding,) = RULE["WT001"]().check(context(behind(var, mean=[0] * 4)))
    assert "bn1" not in finding.message


@pytest.mark.parametrize(("size", "told"), [((1, 3), False), ((1, 4), True), ((2, 2), True)])
def test_kernel_of_zeros_needs_some_elements(size, told):
    assert bool(found("WT001", {"fc.weight": np.zeros(size, F32)})) == told


def test_zeros_beside_nan_are_another_rules_matter():
    assert not found("WT001", {"fc.weight": F32([[0, 0, np.nan, 0]])})


def test_ema_is_judged_like_the_model_and_the_optimizer_is_not():
    arrays = {"a.fc.weight": np.zeros((4, 4), F32), "b.fc.weight": np.zeros((4, 4), F32)}
    assert found("WT001", arrays, {"a.fc.weight": "ema", "b.fc.weight": "optimizer"}) == {
        "a.fc.weight": ERROR
    }


# ------------------------------------------------------------------------------------------ WT002


@pytest.mark.parametrize(
    ("name", "shape", "value", "severity"),
    [
        ("fc.weight", (4, 4), 0.02, WARNING),
        ("fc.weight", (4, 4), -0.02, WARNING),
        ("fc.weight", (1, 4), 0.02, NOTE),
        ("fc.weight", (4, 4), 0.25, NOTE),
        ("fc.weight", (4, 4), 0.2502, NOTE),
        ("fc.weight", (4, 4), 0.2503, WARNING),
        ("dw.weight", (4, 1, 3, 3), 2.0, NOTE),
        ("conv.weight", (4, 2, 3, 3), 2.0, WARNING),
        ("dw/depthwise_kernel", (3, 3, 4, 1), 2.0, NOTE),
        ("embed.weight", (4, 4), 1.0, WARNING),
        ("fc.weight", (3, 1), 0.02, None),
        ("fc.weight", (5, 1), 1.0, None),
        ("norm.weight", (2, 4), 1.0, None),
        ("block.ln_2.weight", (2, 4), 1.0, None),
        ("layer_scale.weight", (2, 4), 1.0, None),
    ],
)
def test_constants_are_judged_by_shape_and_name(name, shape, value, severity):
    assert found("WT002", {name: np.full(shape, value, F32)}) == (
        {} if severity is None else {name: severity}
    )


def test_constant_kernel_needs_some_elements():
    values = {"fc.weight": np.full((1, 3), 0.5, F32)}
    assert not found("WT002", values)
    assert found("WT002", values, least_elements=3)


# ------------------------------------------------------------------------------------------ WT003


def scaled(gain, shape=(16, 16)):
    """Kernel of exactly this gain: plus and minus one number that is no integer."""
    rms = gain / math.sqrt(shape[1])
    signs = np.where(np.arange(shape[0] * shape[1]).reshape(shape) % 3, 1, -1)
    return (signs * rms).astype(np.float64)


@pytest.mark.parametrize(
    ("gain", "severity"),
    [(0.999e3, None), (1.001e3, WARNING), (0.999e4, WARNING), (1.001e4, ERROR), (1e30, ERROR)],
)
def test_gain_alone_decides_where_there_are_no_neighbours(gain, severity):
    told = found("WT003", {"fc.weight": scaled(gain)})
    assert told == ({} if severity is None else {"fc.weight": severity})


@pytest.mark.parametrize(
    ("usual", "gain", "told"),
    [(1.0, 63.9, False), (1.0, 64.1, True), (0.1, 49.9, False), (0.1, 50.1, True)],
    ids=["not far enough", "far from the others", "small for all that", "just large enough"],
)
def test_layer_is_told_from_its_neighbours(usual, gain, told):
    arrays = {f"l{i}.weight": scaled(usual) for i in range(2)}
    assert bool(found("WT003", {**arrays, "x.weight": scaled(gain)})) == told
    assert not found("WT003", {"l.weight": scaled(usual), "x.weight": scaled(gain)})


def test_neighbours_are_those_of_the_same_role_and_no_adapters():
    small = {f"{i}.lora_B.weight": scaled(1e-3) for i in range(5)}
    assert not found("WT003", {**small, "x.weight": scaled(60)})
    ema = {f"ema.l{i}.weight": scaled(0.1) for i in range(5)}
    roles = dict.fromkeys(ema, "ema")
    assert not found("WT003", {**ema, "x.weight": scaled(60)}, roles)


def test_exploded_embedding_is_a_warning():
    assert found("WT003", {"embed.weight": scaled(1e6)}) == {"embed.weight": WARNING}


def test_message_names_the_gain_and_the_largest_weight():
    finding = one("WT003", chain(l2=scaled(2e6)))
    assert "2e+06" in finding.message
    assert finding.limit == "a gain over 10000"
    assert finding.measured["largest"] == pytest.approx(5e5)
    assert finding.measured["ratio"] > 1e6
    assert one("WT003", chain(l2=scaled(5001))).limit == "a gain over 1000"
    assert "64 times the median" in one("WT003", chain(l2=scaled(501))).limit


@pytest.mark.parametrize(("top", "told"), [(65535, False), (65536, True)])
def test_integers_kept_as_floats_are_no_explosion(top, told):
    values = np.full((16, 16), 60000.0)
    values[0, 0] = top
    assert bool(found("WT003", {"fc.weight": values})) == told
    assert found("WT003", {"fc.weight": values + 0.5})


@pytest.mark.parametrize(("spikes", "told"), [(3, False), (4, True)])
def test_few_large_elements_are_spikes_not_an_explosion(spikes, told):
    values = normal(64, 64)
    values[:spikes, 0] = 1e20
    assert bool(found("WT003", {"fc.weight": values})) == told


def test_elements_down_to_a_hundredth_of_the_largest_belong_to_the_explosion():
    values = normal(64, 64)
    values[0, 0], values[1:4, 0] = 1e9, 1.1e7
    assert found("WT003", {"fc.weight": values})
    values[1:4, 0] = 0.9e7
    assert not found("WT003", {"fc.weight": values})


@pytest.mark.parametrize(("columns", "told"), [(4, True), (5, False)])
def test_kernel_of_a_dozen_elements_has_no_spikes(columns, told):
    values = np.full((3, columns), 0.5)
    values[0, 0] = 1e9
    assert bool(found("WT003", {"fc.weight": values})) == told


def test_eight_bit_floats_and_directions_have_no_gain():
    import ml_dtypes

    assert not found("WT003", {"fc.weight": scaled(1e5).astype(ml_dtypes.float8_e5m2)})
    pair = {"fc.weight_v": scaled(1e5), "fc.weight_g": np.ones((16, 1), F32)}
    assert not found("WT003", pair)


@pytest.mark.parametrize("name", ["gain", "steep", "suspect_gain", "apart"])
def test_explosion_must_exceed_its_thresholds(name):
    arrays = {"a.weight": scaled(1.0), "b.weight": scaled(1.0), "x.weight": scaled(20001)}
    kernels = kernels_of(context(arrays))
    gain = float(kernels.gain[2])
    limit = gain / float(np.median(kernels.gain[:2])) if name == "apart" else gain
    high = {"gain": 1e9, "steep": 1e9, "suspect_gain": 0, "apart": 1e9}
    if name == "gain":
        assert found("WT003", arrays, gain=limit) == {"x.weight": WARNING}
        assert found("WT003", arrays, gain=limit * 0.999) == {"x.weight": ERROR}
    elif name == "suspect_gain":
        assert not found("WT003", arrays, suspect_gain=limit)
        assert found("WT003", arrays, suspect_gain=limit * 0.999)
    else:
        assert not found("WT003", arrays, **{**high, name: limit})
        assert found("WT003", arrays, **{**high, name: limit * 0.999})


def test_ratio_is_told_where_there_are_neighbours():
    assert "median" not in one("WT003", {"x.weight": scaled(20001)}).message
    assert "median" in one("WT003", chain(l2=scaled(20001))).message
    assert one("WT003", {"x.weight": scaled(20001)}).measured["ratio"] == 0


# ------------------------------------------------------------------------------------------ WT004


def spiked(value, shape=(64, 64), at=(3, 5), dtype=np.float64):
    """Kernel of plus and minus one with one other element."""
    values = np.where(np.arange(shape[0] * shape[1]).reshape(shape) % 2, 1.0, -1.0).astype(dtype)
    values[at] = value
    return values


@pytest.mark.parametrize(("value", "told"), [(39.9, False), (40.2, True), (-40.2, True)])
def test_spike_is_forty_times_as_large_as_usual(value, told):
    assert bool(found("WT004", {"fc.weight": spiked(value)})) == told


@pytest.mark.parametrize(("second", "told"), [(9.9, True), (10.1, False)])
def test_spike_stands_alone(second, told):
    values = spiked(100)
    values[10, :4] = second
    assert bool(found("WT004", {"fc.weight": values})) == told


@pytest.mark.parametrize(("spikes", "told"), [(1, True), (3, True), (4, False)])
def test_three_spikes_at_most_are_an_accident(spikes, told):
    values = spiked(1, shape=(256, 256))
    values[5, :spikes] = 1e4
    assert bool(found("WT004", {"fc.weight": values})) == told
    if told:
        finding = one("WT004", {"fc.weight": values})
        assert len(finding.measured["index"]) == spikes
        assert (f"{spikes - 1} more like it" in finding.message) == (spikes > 1)


@pytest.mark.parametrize(("shape", "told"), [((7, 9), False), ((8, 8), True)])
def test_small_kernels_have_no_distribution(shape, told):
    assert bool(found("WT004", {"fc.weight": spiked(1e6, shape)})) == told


@pytest.mark.parametrize(("value", "told"), [(0.99e6, False), (1.01e6, True)])
def test_inputs_of_a_single_output_may_differ_in_scale(value, told):
    assert bool(found("WT004", {"fc.weight": spiked(value, (1, 4096), (0, 9))})) == told


@pytest.mark.parametrize(("value", "severity"), [(239, WARNING), (241, ERROR)])
def test_spike_that_rules_its_output_is_an_error(value, severity):
    assert found("WT004", {"fc.weight": spiked(value)}) == {"fc.weight": severity}


@pytest.mark.parametrize(
    ("dtype", "bit", "original", "scale"),
    [("float32", 30, 0.75, 0.5), ("float32", 26, 0.005859375, 0.02), ("float64", 62, 0.75, 0.5),
     ("float64", 55, 0.005859375, 0.02), ("bfloat16", 14, 0.75, 0.5),
     ("float16", 13, 0.005859375, 0.02)],
)  # fmt: skip
def test_flipped_exponent_bit_is_found_and_undone(dtype, bit, original, scale):
    from ckptdoctor.dtypes import DTYPES

    values = normal(32, 64, scale=scale).astype(DTYPES[dtype].numpy)
    values[7, 9] = original
    words = values.view(f"u{values.dtype.itemsize}")
    words[7, 9] ^= words.dtype.type(1 << bit)
    finding = one("WT004", {"fc.weight": values})
    assert finding.measured["index"] == [[7, 9]]
    assert finding.measured["value"] == [float(values[7, 9])]
    assert finding.measured["likely"] == [original]
    assert f"{original:.6g}" in finding.message


@pytest.mark.parametrize("value", [1e5, 3.7e20])
def test_spike_that_no_flip_explains_has_no_original(value):
    finding = one("WT004", {"fc.weight": spiked(value, dtype=F32) * F32(1e-4)})
    if finding.measured["likely"] == [None]:
        assert "flipped" not in finding.message
    else:
        assert abs(finding.measured["likely"][0]) < 4e-4


@pytest.mark.parametrize(
    ("body", "explained"),
    [(0.126, True), (0.125, False), (49.0, True), (50.0, False)],
    ids=["below four times", "four times", "over a hundredth", "a hundredth"],
)
def test_original_is_of_ordinary_size(body, explained):
    # the highest bit makes it 0.5 again; any other leaves it far outside
    values = spiked(1.0, dtype=np.float64) * body
    values[3, 5] = 2.0**127
    finding = one("WT004", {"fc.weight": values.astype(F32)})
    assert finding.measured["likely"] == [0.5 if explained else None]


def test_spike_in_a_later_block_is_found():
    values = normal(600, 600)
    values[599, 599] = 1e30
    finding = one("WT004", {"fc.weight": values})
    assert finding.measured["index"] == [[599, 599]]
    assert finding.measured["rms"] == pytest.approx(1, rel=0.02)


def test_eight_bit_spike_has_no_original():
    import ml_dtypes

    values = (spiked(400.0, (16, 16)) / np.where(spiked(400.0, (16, 16)) > 300, 1, 4)).astype(
        ml_dtypes.float8_e4m3fn
    )
    assert one("WT004", {"fc.weight": values}).measured["likely"] == [None]


def test_spike_is_one_finding_and_no_explosion():
    values = normal(64, 64)
    values[1, 1] = 1e36
    assert judged(chain(l2=values)) == {("WT004", "l2.weight")}


def test_spike_must_exceed_its_thresholds():
    arrays = {"fc.weight": spiked(256.0)}  # the others are 1
    assert not found("WT004", arrays, far=256.0)
    assert found("WT004", arrays, far=255.9)
    assert found("WT004", arrays, dominant=32.0) == {"fc.weight": WARNING}
    assert found("WT004", arrays, dominant=31.9) == {"fc.weight": ERROR}
    second = spiked(256.0)
    second[9, :4] = 16.0
    assert found("WT004", {"fc.weight": second}, alone=16.0)
    assert not found("WT004", {"fc.weight": second}, alone=16.1)


def test_constant_and_zero_kernels_have_no_spikes():
    assert not found("WT004", {"fc.weight": np.ones((16, 16), F32)})
    assert not found("WT004", {"fc.weight": np.zeros((16, 16), F32)})


def test_lone_element_in_a_kernel_of_zeros_has_no_body():
    assert not found("WT004", {"fc.weight": spiked(5.0) * (spiked(5.0) == 5.0)})


def test_two_outputs_are_enough_to_compare_inputs():
    assert found("WT004", {"fc.weight": spiked(1e4, (2, 512), (1, 9))})


# ------------------------------------------------------------------------------------------ WT005


@pytest.mark.parametrize("order", ["torch", "keras"])
@pytest.mark.parametrize(
    ("copies", "severity"), [(4, None), (5, WARNING), (7, WARNING), (8, ERROR)]
)
def test_copies_are_counted(order, copies, severity):
    values = normal(8, 6)
    values[:copies] = values[0]
    name = "fc.weight" if order == "torch" else "fc/kernel"
    arrays = {name: values if order == "torch" else np.ascontiguousarray(values.T)}
    assert found("WT005", arrays) == ({} if severity is None else {name: severity})


def test_copies_are_found_wherever_they_are():
    values = normal(100, 6)
    values[np.random.default_rng(1).permutation(100)[:75]] = 0.5
    keras = {"fc/kernel": np.ascontiguousarray(values.T)}
    for arrays in ({"fc.weight": values}, keras):
        assert one("WT005", arrays).measured == {"units": 100, "equal": 75}


def test_two_of_eight_compared_units_are_enough_to_count():
    values = normal(8, 6)
    values[6] = values[7]
    assert not found("WT005", {"fc.weight": values}, most=0.25)
    assert found("WT005", {"fc.weight": values}, most=0.24)


@pytest.mark.parametrize(("last", "told"), [(6, False), (7, True)])
def test_eight_units_are_compared_from_the_first(last, told):
    values = normal(40, 6)
    values[8:], values[:last] = values[39], normal(8, 6, seed=1)[:last]
    values[7] = values[39]
    values[last:7] = values[39]
    shown = found("WT005", {"fc.weight": values}, most=0.1)
    assert bool(shown) == (last == 6)
    assert told or shown


@pytest.mark.parametrize("order", ["torch", "keras"])
@pytest.mark.parametrize("scale", [1e-6, 1])
@pytest.mark.parametrize(("apart", "told"), [(0.97e-5, True), (1.03e-5, False)])
def test_trained_copies_may_differ_by_rounding(order, scale, apart, told):
    values = np.repeat(np.float64([[0.25, -2.0, 0.5]]), 2, 0)
    values[1, 0] += 2.0 * apart
    values *= scale
    name = "fc.weight" if order == "torch" else "fc/kernel"
    values = values if order == "torch" else np.ascontiguousarray(values.T)
    assert bool(found("WT005", {name: values})) == told


@pytest.mark.parametrize("order", ["torch", "keras"])
def test_tolerance_is_met_by_equality(order):
    values = np.float64([[1, 2], [1, 1.5]])
    name = "fc.weight" if order == "torch" else "fc/kernel"
    arrays = {name: values if order == "torch" else np.ascontiguousarray(values.T)}
    assert found("WT005", arrays, tolerance=0.25)
    assert not found("WT005", arrays, tolerance=0.249)


def outputs_second(inputs, outputs, rank=4):
    """Transposed convolution all of whose outputs are alike."""
    return np.repeat(normal(inputs, 1, *[3] * (rank - 2)), outputs, 1)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "bias", "told"),
    [
        ("c.weight", 6, 3, 3, True),
        ("c.weight", 3, 6, 3, False),
        ("c.weight", 8, 8, None, True),
        ("c.weight", 8, 8, 8, True),
        ("c.weight", 7, 7, None, False),
        ("c.weight", 32, 8, None, True),
        ("c.weight", 33, 8, None, False),
        ("up.weight", 6, 2, None, True),
        ("up.weight", 6, 1, None, False),
        ("net.generator.0.weight", 6, 2, None, True),
        ("group.weight", 6, 2, None, False),
        ("conv_transpose1.weight", 33, 2, None, True),
        ("stem.weight", 64, 3, None, False),
    ],
)
def test_second_axis_is_that_of_the_units_where_something_says_so(
    name, inputs, outputs, bias, told
):
    values = outputs_second(inputs, outputs)
    biases = {} if bias is None else {name.replace("weight", "bias"): np.ones(bias, F32)}
    assert bool(found("WT005", {"a.weight": normal(4, 4), name: values, **biases})) == told
    keras = {
        name.replace(".", "/").replace("weight", "kernel"): values.transpose(2, 3, 1, 0).copy()
    }
    biases = {next(iter(keras)).replace("kernel", "bias"): b for b in biases.values()}
    assert bool(found("WT005", {"a/kernel": normal(4, 4), **keras, **biases})) == told


def test_units_of_a_matrix_are_its_second_axis_only_by_its_bias():
    values = outputs_second(16, 8, rank=2)
    assert not found("WT005", {"up.weight": values})
    finding = one("WT005", {"up.weight": values, "up.bias": np.ones(8, F32)})
    assert finding.measured == {"units": 8, "equal": 8}
    assert "16 weights" in finding.message


@pytest.mark.parametrize("name", ["up.weight", "c.weight", "up/kernel"])
def test_convolutions_of_one_axis_may_be_transposed(name):
    values = outputs_second(9, 9, rank=3)
    arrays = {name: values if "." in name else values.transpose(2, 1, 0).copy()}
    assert found("WT005", arrays) == {name: ERROR}


def test_two_of_very_wide_units_are_compared():
    values = normal(3, 40_000)
    values[2] = values[0]
    assert not found("WT005", {"fc.weight": values})
    assert not found("WT005", {"fc.weight": values[:, :4096].copy()})
    assert found("WT005", {"fc.weight": values[:, :2730].copy()})  # three in 32 KiB


def test_units_of_the_usual_axis_are_looked_at_as_well():
    arrays = {"up.weight": np.repeat(normal(1, 8, 3, 3), 8, 0)}
    assert found("WT005", arrays) == {"up.weight": ERROR}
    assert "72 weights" in one("WT005", arrays).message


@pytest.mark.parametrize(("rows", "told"), [(7, False), (8, True)])
def test_larger_tables_of_equal_rows_are_told(rows, told):
    same = np.repeat(normal(1, 5), rows, 0)
    assert found("WT005", {"embed.weight": same}) == ({"embed.weight": WARNING} if told else {})
    assert bool(found("WT005", {"embed/embeddings": same})) == told
    if told:
        message = one("WT005", {"embed.weight": same}).message
        assert "rows" in message
        assert "5 weights" in message


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_wide_units_are_compared_although_one_fills_a_block(dtype):
    values = np.repeat(normal(1, 40_000).astype(dtype), 3, 0)
    assert one("WT005", {"fc.weight": values}).measured["equal"] == 3
    values[2, -1] += 1
    assert one("WT005", {"fc.weight": values}).measured["equal"] == 2
    values[1, -1] += 2
    assert not found("WT005", {"fc.weight": values}, most=0.1)


def test_copies_behind_the_first_blocks_are_counted():
    values = np.repeat(normal(1, 40_000), 5, 0)
    values[:2] = normal(2, 40_000, seed=3)
    values[1] = values[0]
    assert not found("WT005", {"fc.weight": values})
    assert one("WT005", {"fc.weight": values}, most=0.3).measured["equal"] == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("name", ["fc.weight", "fc/kernel"])
def test_copies_are_counted_across_blocks(name, dtype):
    rng = np.random.default_rng(0)
    row = rng.standard_normal(300).astype(dtype)
    values = np.repeat(row[None], 1000, 0)
    values = values if name == "fc.weight" else np.ascontiguousarray(values.T)
    finding = one("WT005", {name: values})
    assert finding.measured == {"units": 1000, "equal": 1000}
    values = values.copy()
    values[-1, -1] += 1
    assert (
        one("WT005", {"fc.weight": values} if name == "fc.weight" else {name: values}).measured[
            "equal"
        ]
        == 999
    )


def test_depthwise_filters_may_be_equal_but_not_the_first_layers():
    same = np.repeat(normal(1, 1, 3, 3), 8, 0)
    assert found("WT005", {"stem.weight": same}) == {"stem.weight": ERROR}
    stem = {"stem.weight": normal(8, 1, 3, 3)}
    assert not found("WT005", {**stem, "blur.weight": same})
    keras = {"dw/depthwise_kernel": np.repeat(normal(3, 3, 1, 1), 8, 2)}
    assert not found("WT005", {"stem/kernel": normal(3, 3, 1, 8), **keras})


@pytest.mark.parametrize("name", ["experts.weight", "ensemble.weight", "critic.q.weight"])
def test_copies_of_whole_models_are_meant(name):
    same = {name: np.repeat(normal(1, 3, 3), 4, 0)}
    assert not found("WT005", same)
    assert found("WT005", {"body.weight": same[name]})


def test_pruned_units_are_no_copies():
    assert not found("WT005", {"fc.weight": F32([[0, 0], [0, 0], [0, 0], [1, 2]])})
    assert not found("WT005", {"fc/kernel": F32([[0, 0, 0, 1], [0, 0, 0, 2]])})


def test_share_of_copies_is_a_threshold():
    values = normal(10, 4)
    values[:3] = values[0]
    assert not found("WT005", {"fc.weight": values})
    assert found("WT005", {"fc.weight": values}, most=0.25) == {"fc.weight": WARNING}


def test_likeliest_kernels_are_looked_at_first():
    same = np.repeat(normal(1, 4), 4, 0)
    arrays = {}
    for name, bias in (("a", [1, 2, 3, 4]), ("b", None), ("c", [1, 1, 1, 1]), ("d", [5, 6, 7, 8])):
        arrays[f"{name}.weight"] = same if name != "d" else np.repeat(same, 2, 1)
        if bias:
            arrays[f"{name}.bias"] = F32(bias)
    few = [set(found("WT005", arrays, peeks=n, more_peeks=0)) for n in (1, 2, 3, 4)]
    assert few[0] == {"c.weight"}
    assert few[1] == {"b.weight", "c.weight"}
    assert few[2] == {"b.weight", "c.weight", "d.weight"}
    assert few[3] == {f"{n}.weight" for n in "abcd"}


def test_large_files_afford_more_looks():
    arrays = {f"l{i}.weight": np.repeat(normal(1, 250), 250, 0) for i in range(3)}  # 0.25 MB each
    assert len(found("WT005", arrays, peeks=0, more_peeks=1.34)) == 1
    assert len(found("WT005", arrays, peeks=0, more_peeks=2.6)) == 1
    assert len(found("WT005", arrays, peeks=0, more_peeks=2.7)) == 2


def test_first_layer_is_the_first_kernel_that_is_compared():
    same = np.repeat(normal(1, 1, 3, 3), 8, 0)
    # a recurrence, or zeros, before it
    arrays = {
        "zero.weight": np.zeros((4, 4), F32),
        "one.weight": normal(1, 4),
        "stem.weight": same,
        "blur.weight": same,
    }
    assert found("WT005", arrays) == {"stem.weight": ERROR}


def test_only_the_first_weight_may_agree():
    values = normal(4, 2)
    values[:, 0] = 1
    assert not found("WT005", {"fc.weight": values})
    assert not found("WT005", {"fc/kernel": np.ascontiguousarray(values.T)})
    wide = np.concatenate([np.ones((1, 256), F32), 2 * np.ones((1, 44), F32)], 1)
    assert not found("WT005", {"fc/kernel": np.repeat(wide, 3, 0)}, most=0.9)
    assert found("WT005", {"fc/kernel": np.repeat(wide, 3, 0)}) == {"fc/kernel": WARNING}


def test_copies_may_have_zeros():
    values = np.repeat(F32([[0, 1, 2]]), 4, 0)
    assert found("WT005", {"fc.weight": values}) == {"fc.weight": ERROR}
    values[3, 1] = 0
    assert found("WT005", {"fc.weight": values}) == {"fc.weight": WARNING}


def test_layer_with_one_input_can_have_copies():
    assert found("WT005", {"fc/kernel": np.full((1, 4), 0.5, F32)}) == {"fc/kernel": ERROR}
    assert found("WT005", {"fc.weight": np.full((4, 1), 0.5, F32)}) == {"fc.weight": ERROR}
    assert not found("WT005", {"fc/kernel": F32([[1, 2, 3, 4]])})


# ------------------------------------------------------------------------------------------ WT006


def small(gain, bias=None, first=False, **more):
    arrays = {"stem.weight": scaled(1.0)} if not first else {}
    arrays |= {"fc.weight": scaled(gain), **more}
    return arrays if bias is None else {**arrays, "fc.bias": np.full(16, bias)}


@pytest.mark.parametrize(
    ("arrays", "severity"),
    [
        (small(2.99e-4), WARNING),
        (small(3.01e-4), None),
        (small(1.01e-6), WARNING),
        (small(0.99e-6), ERROR),
        (small(1e-4, bias=1.01e-2), ERROR),
        (small(1e-4, bias=0.99e-2), WARNING),
        (small(1e-9, bias=1.0, first=True), WARNING),
        (small(1e-9, **TRAINED), ERROR),
        (small(1e-9, **FRESH), NOTE),
    ],
    ids=["small", "not so small", "still something", "nothing", "drowned by the bias",
         "beside a small bias", "first layer", "trained", "untrained"],
)  # fmt: skip
def test_vanished_layers_are_judged_by_what_is_around_them(arrays, severity):
    assert found("WT006", arrays) == ({} if severity is None else {"fc.weight": severity})


@pytest.mark.parametrize(
    ("name", "young"),
    [
        ("q.lora_B.weight", True),
        ("model_weights/dense/dense/lora_kernel_b", True),
        ("embedding/lora_embeddings_b:0", True),
        ("dense/lora_kernel_a", False),
        ("dense/kernel_b", False),
    ],
)
def test_second_factor_of_a_lora_starts_at_zero(name, young):
    assert bool(by_design(TensorInfo(name=name, path=(), dtype="float32", shape=(4, 8)))) is young


@pytest.mark.parametrize("name", ["q.lora_B.weight", "zero_convs.0.0.weight"])
def test_young_adapters_may_be_small(name):
    assert not found("WT006", {"stem.weight": scaled(1.0), name: scaled(1e-9)})


@pytest.mark.parametrize(("more", "severity"), [({}, WARNING), (TRAINED, WARNING), (FRESH, NOTE)])
def test_table_that_no_normalisation_can_raise_is_told(more, severity):
    def table(rms):
        return {"embed.weight": scaled(rms * 4), "fc.weight": scaled(1.0), **more}

    assert found("WT006", table(0.99e-5)) == {"embed.weight": severity}
    assert not found("WT006", table(1.01e-5))
    assert found("WT006", table(1e-12)) == {"embed.weight": severity}
    assert one("WT006", table(1e-12)).limit == "gain below 1e-05"


def test_table_before_it_does_not_make_a_layer_the_second():
    arrays = {"embed.weight": scaled(1.0), "fc.weight": scaled(1e-9)}
    assert found("WT006", arrays) == {"fc.weight": WARNING}


@pytest.mark.parametrize(("times", "severity"), [(0.99e4, None), (1.01e4, ERROR)])
def test_batchnorm_decides_whether_a_small_kernel_shrank_later(times, severity):
    arrays = behind([1, 1, 1, 1], kernel=1e-5)
    gain = math.sqrt(float((arrays["conv1.weight"].astype(np.float64) ** 2).sum()) / 4)
    arrays["bn1.running_var"] = np.full(4, times * gain**2)
    assert found("WT006", arrays) == ({} if severity is None else {"conv1.weight": severity})


def test_zeros_are_not_a_vanished_layer():
    assert not found("WT006", small(0.0))


def test_vanished_layer_is_below_its_thresholds():
    arrays = small(1e-7)
    gain = float(kernels_of(context(arrays)).gain[1])
    assert not found("WT006", arrays, gain=gain)
    assert found("WT006", arrays, gain=gain * 1.001)
    assert found("WT006", arrays, nothing=gain) == {"fc.weight": WARNING}
    assert found("WT006", arrays, nothing=gain * 1.001) == {"fc.weight": ERROR}
    arrays = small(1e-7, bias=1.0)
    assert found("WT006", arrays, nothing=0, drowned=1.001 / gain) == {"fc.weight": WARNING}
    assert found("WT006", arrays, nothing=0, drowned=0.999 / gain) == {"fc.weight": ERROR}


def test_order_of_model_and_ema_are_two():
    arrays = {"stem.weight": scaled(1.0), "ema.fc.weight": scaled(1e-9)}
    assert found("WT006", arrays, {"ema.fc.weight": "ema"}) == {"ema.fc.weight": WARNING}


def test_bias_at_the_limit_drowns_nothing():
    arrays = {"stem.weight": scaled(1.0), "fc.weight": np.tile([2.0**-20, -(2.0**-20)], (4, 8))}
    arrays["fc.bias"] = np.ones(4)
    assert found("WT006", arrays, drowned=2.0**18) == {"fc.weight": WARNING}
    assert found("WT006", arrays, drowned=2.0**18 - 1) == {"fc.weight": ERROR}


# ------------------------------------------------------------------------------------------ WT007


@pytest.mark.parametrize("zero", [[], [2], [0, 3]])
def test_directions_without_norm_are_listed(zero):
    v = normal(4, 3)
    v[zero] = 0
    arrays = {"fc.weight_v": v, "fc.weight_g": np.ones((4, 1), F32)}
    findings = list(RULE["WT007"]().check(context(arrays)))
    assert [(f.measured["zero"], f.measured["first"]) for f in findings] == (
        [(len(zero), zero[0])] if zero else []
    )


def test_many_directions_are_shortened():
    v = normal(9, 2)
    v[:6] = 0
    arrays = {"fc.weight_v": v, "fc.weight_g": np.ones((9, 1), F32)}
    assert "rows 0, 1, 2, 3, 4 ..." in one("WT007", arrays).message
    v[5] = 1
    assert "rows 0, 1, 2, 3, 4)" in one("WT007", arrays).message


def test_convolution_is_normed_per_filter_and_spread_zeros_are_harmless():
    v = normal(4, 2, 3, 3)
    v[:, 0] = 0
    g = np.ones((4, 1, 1, 1), F32)
    assert not found("WT007", {"conv.weight_v": v, "conv.weight_g": g})
    v[1] = 0
    assert found("WT007", {"conv.weight_v": v, "conv.weight_g": g}) == {"conv.weight_v": ERROR}


def test_vector_of_lengths_is_matched_by_its_extent():
    v = normal(3, 4)
    v[:, 1] = 0
    assert found("WT007", {"fc.weight_v": v, "fc.weight_g": np.ones(4, F32)})
    assert not found("WT007", {"fc.weight_v": v, "fc.weight_g": np.ones(3, F32)})


def test_all_zero_direction_is_told_once():
    v = {"fc.weight_v": np.zeros((4, 3), F32), "fc.weight_g": np.ones((4, 1), F32)}
    assert judged(v) == {("WT007", "fc.weight_v")}


def test_spectral_norm_divides_by_zero_only_where_all_is_zero():
    vectors = {"fc.weight_u": F32([1, 0]), "fc.weight_v": F32([1, 0])}
    assert found("WT007", {"fc.weight_orig": F32([[0, 0], [0, 0]]), **vectors})
    assert not found("WT007", {"fc.weight_orig": F32([[0, 0], [0, 1]]), **vectors})
    assert not found("WT007", {"fc.weight": F32([[0, 0], [0, 0]])})
    only = {"fc.weight_orig": F32([[0, 0], [0, 0]]), **vectors}
    assert judged(only) == {("WT007", "fc.weight_orig")}


def test_single_zero_may_be_a_whole_direction():
    arrays = {"fc.weight_v": F32([[0], [1]]), "fc.weight_g": F32([[1], [1]])}
    assert found("WT007", arrays) == {"fc.weight_v": ERROR}


def test_lengths_along_a_single_row_are_its_columns():
    arrays = {"fc.weight_v": F32([[1, 1, 0, 1]]), "fc.weight_g": F32([[1, 1, 1, 1]])}
    assert found("WT007", arrays) == {"fc.weight_v": ERROR}


def test_missing_lengths_are_no_crash():
    arrays = {"fc.weight_v": F32([[0, 0]]), "fc.weight_g": np.empty((0, 1), F32)}
    assert not found("WT007", arrays)


# ------------------------------------------------------------------------------------------ WT008


def peaked(*shape, seed=0):
    return normal(*shape, seed=seed) ** 3


def mixed(**layers):
    return {**{f"l{i}.weight": peaked(32, 32, seed=i) for i in range(4)}, **layers}


def fans(fan_in, fan_out):
    """Bounds of the uniform laws, standard deviations of the truncated ones."""
    both = fan_in + fan_out
    uniforms = {
        "torch's default": 1 / math.sqrt(fan_in),
        "Glorot's uniform law": math.sqrt(6 / both),
        "He's uniform law": math.sqrt(6 / fan_in),
        "LeCun's uniform law": math.sqrt(3 / fan_in),
    }
    truncated = {
        "Glorot's truncated normal law": math.sqrt(2 / both),
        "He's truncated normal law": math.sqrt(2 / fan_in),
        "LeCun's truncated normal law": math.sqrt(1 / fan_in),
        "a truncated normal law of 0.02": 0.02 * 0.8796256610342398,
    }
    return uniforms, truncated


LAWS, TRUNCATED = fans(200, 150)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("name", "shape", "inputs"),
    [("head.weight", (40, 60), (60, 40)), ("head/kernel", (60, 40), (60, 40)),
     ("head.weight", (20, 10, 3, 3), (90, 180)), ("head/kernel", (3, 3, 10, 20), (90, 180))],
)  # fmt: skip
def test_uniform_laws_are_recognised(law, name, shape, inputs):
    arrays = mixed(**{name: uniform(*shape, bound=fans(*inputs)[0][law])})
    assert one("WT008", arrays).measured["law"] == law


@pytest.mark.parametrize("law", TRUNCATED)
def test_truncated_laws_are_recognised(law):
    rng = np.random.default_rng(0)
    draws = rng.standard_normal(60_000)
    draws = draws[np.abs(draws) <= 2][: 150 * 200].reshape(150, 200) / 0.8796256610342398
    values = (draws * TRUNCATED[law]).astype(F32)
    assert one("WT008", mixed(**{"head.weight": values})).measured["law"] == law
    assert found("WT008", mixed(**{"head.weight": values}), least_truncated=30_001) == {}
    assert found("WT008", mixed(**{"head.weight": values}), least_truncated=30_000)


def test_torch_default_of_half_precision_is_recognised():
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = uniform(40, 60, bound=1 / math.sqrt(60)).astype(dtype)
        assert found("WT008", mixed(**{"head.weight": values})) == {"head.weight": NOTE}


@pytest.mark.parametrize("size", [(16, 31), (16, 32)])
def test_small_layers_are_not_compared(size):
    head = {"head.weight": uniform(*size, bound=1 / math.sqrt(size[1]))}
    assert bool(found("WT008", mixed(**head))) == (size == (16, 32))


@pytest.mark.parametrize(
    "moved",
    [lambda w: w * F32(1.01), lambda w: w * F32(0.97), lambda w: w + F32(0.02),
     lambda w: np.clip(w, -0.09, 1), lambda w: np.where(np.abs(w) < 0.05, 0, w).astype(F32)],
    ids=["grown", "shrunk", "shifted", "cut on one side", "hollow"],
)  # fmt: skip
def test_layer_that_moved_matches_no_law(moved):
    head = uniform(100, 100, bound=0.1)
    assert found("WT008", mixed(**{"head.weight": head}))
    assert not found("WT008", mixed(**{"head.weight": moved(head)}))


def test_model_in_which_most_layers_match_is_new():
    new = {f"n{i}.weight": uniform(32, 32, bound=1 / math.sqrt(32), seed=i) for i in range(5)}
    old = {f"l{i}.weight": peaked(32, 32, seed=i) for i in range(4)}
    assert not found("WT008", {**old, **new})
    new.pop("n0.weight")
    assert len(found("WT008", {**old, **new})) == 4


def test_model_whose_norms_are_fresh_is_new():
    head = {"head.weight": uniform(32, 32, bound=1 / math.sqrt(32))}
    assert not found("WT008", mixed(**head, **FRESH))
    assert found("WT008", mixed(**head, **TRAINED))


@pytest.mark.parametrize("gates", [4, 3, 1])
def test_recurrent_layer_has_one_law_for_all_its_inputs(gates):
    bound = 1 / math.sqrt(64)
    arrays = {"rnn.weight_ih_l0": uniform(gates * 64, 20, bound=bound),
              "rnn.weight_hh_l0": peaked(gates * 64, 64)}  # fmt: skip
    assert found("WT008", mixed(**arrays)) == {"rnn.weight_ih_l0": NOTE}
    arrays["rnn.weight_ih_l0"] *= F32(math.sqrt(64 / 20))
    assert not found("WT008", mixed(**arrays))


def test_embedding_at_keras_default_is_recognised():
    arrays = mixed(**{"embed.weight": uniform(64, 32, bound=0.05)})
    assert one("WT008", arrays).measured["law"] == "Keras' default"


def test_largest_weight_may_miss_the_bound_by_the_gap():
    head = np.linspace(-1, 1, 1024).reshape(32, 32) / math.sqrt(32)  # even: deviation fits
    for miss, told in ((9.5, True), (10.5, False)):
        values = head.copy()
        values[np.abs(values) > (1 - miss / 1024) / math.sqrt(32)] = 0
        top = (1 - miss / 1024) / math.sqrt(32)
        values[0, 0], values[-1, -1] = -top, top
        assert bool(found("WT008", mixed(**{"head.weight": values.astype(F32)}))) == told
    for miss, told in ((19.5, True), (20.5, False)):  # the other side, by twice as much
        values = head.copy()
        values[values < -(1 - miss / 1024) / math.sqrt(32)] = 0
        values[0, 0] = -(1 - miss / 1024) / math.sqrt(32)
        assert bool(found("WT008", mixed(**{"head.weight": values.astype(F32)}))) == told


def test_deviation_and_mean_may_be_off_by_their_standard_errors():
    head = np.linspace(-1, 1, 1024).reshape(32, 32) / math.sqrt(32)
    std, error = 1 / math.sqrt(96), math.sqrt(0.2 / 1024)
    shown = kernels_of(context({"head.weight": head})).std[0]
    assert shown == pytest.approx(std, rel=2e-3)
    for share, told in ((3.8, True), (4.3, False)):
        values = head.copy().reshape(-1)
        # pull towards zero until the deviation is as many errors too small; the ends stay
        values[1:-1] *= 1 - share * error
        arrays = mixed(**{"head.weight": values.reshape(32, 32).astype(F32)})
        assert bool(found("WT008", arrays)) == told
    for share, told in ((3.9, True), (4.1, False)):
        values = head.copy().reshape(-1)
        values[300:700] += share * std / math.sqrt(1024) * 1024 / 400
        arrays = mixed(**{"head.weight": values.reshape(32, 32).astype(F32)})
        assert bool(found("WT008", arrays)) == told


# ------------------------------------------------------------------------------------------ WT009


EMPTY = np.empty(0, F32)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"a.weight": EMPTY, "b.weight": EMPTY, "c.weight": normal(2, 2)},
         {"a.weight": ERROR, "b.weight": ERROR}),
        ({"a.weight": EMPTY, "b.weight": normal(2, 2)}, {"a.weight": ERROR}),
        ({"a.weight": EMPTY, "b.weight": normal(2, 2), "c.weight": normal(2, 2)}, {"a.weight": ERROR}),
        ({"rnn.weight_ih_l0": EMPTY, "b.weight": normal(2, 2), "c.weight": normal(2, 2)},
         {"rnn.weight_ih_l0": ERROR}),
        ({"rnn.weight_ih_l0": EMPTY, "rnn.bias_ih_l0": EMPTY, "b.weight": normal(2, 2), "c.weight": normal(2, 2)},
         {"rnn.weight_ih_l0": NOTE}),
        ({"weight": EMPTY, "b.weight": normal(2, 2), "c.weight": normal(2, 2)}, {"weight": ERROR}),
        ({"a/kernel": EMPTY, "b/kernel": normal(2, 2), "c/kernel": normal(2, 2)}, {"a/kernel": ERROR}),
        ({"a.weight": EMPTY, "a.output_mask": normal(1), "b.weight": normal(2, 2), "c.weight": normal(2, 2)},
         {"a.weight": NOTE}),
        ({"a.packed_weight": EMPTY, "b.weight": normal(2, 2), "c.weight": normal(2, 2)},
         {"a.packed_weight": NOTE}),
        ({"a.weight": np.empty((3, 0), F32), "b.weight": normal(2, 2), "c.weight": normal(2, 2)},
         {"a.weight": NOTE}),
        ({"a.weight": EMPTY, "a.bias": normal(3), "b.weight": normal(2, 2), "c.weight": normal(2, 2)},
         {"a.weight": ERROR}),
        ({"a/kernel:0": EMPTY, "a/bias:0": normal(3), "b/kernel:0": normal(2, 2), "c/kernel:0": normal(2, 2)},
         {"a/kernel:0": ERROR}),
        ({"a.weight": EMPTY, "a.bias": EMPTY, "b.weight": normal(2, 2), "c.weight": normal(2, 2)},
         {"a.weight": NOTE}),
        ({"a.weight": np.empty((3, 0), F32), "a.bias": normal(3), "b.weight": normal(2, 2),
          "c.weight": normal(2, 2)}, {"a.weight": WARNING}),
        ({"buffer": EMPTY, "b.weight": normal(2, 2)}, {}),
    ],
    ids=["most", "half", "one of many", "a recurrent layer", "a recurrent layer of none", "no layer's name", "Keras' kernel",
         "e3nn's mask beside it", "no plain weight", "no inputs, no bias", "bias left", "Keras' bias left", "bias empty too",
         "no inputs", "no weight"],
)  # fmt: skip
def test_empty_weights_are_judged_by_what_is_full(arrays, told):
    assert found("WT009", arrays) == told


def test_empty_weights_of_model_and_ema_are_counted_apart():
    arrays = {"a.weight": EMPTY, "ema.a.weight": normal(2, 2), "ema.b.weight": normal(2, 2)}
    roles = {"ema.a.weight": "ema", "ema.b.weight": "ema"}
    assert found("WT009", arrays, roles) == {"a.weight": ERROR}
    finding = next(RULE["WT009"]().check(context(arrays, roles)))
    assert finding.measured == {"shape": [0], "empty": 1, "weights": 1}
    assert finding.limit


# ------------------------------------------------------------------------------------------ WT010


def garbled(huge, tiny, count=1000):
    values = normal(1, count).astype(np.float64)
    values[0, : int(huge * count)] = 1.01e10 * np.arange(1, 1 + int(huge * count))
    values[0, int(huge * count) : int((huge + tiny) * count)] = 0.99e-30
    return {"fc.weight": values.reshape(20, -1)}


@pytest.mark.parametrize(
    ("huge", "tiny", "told"), [(0.02, 0.02, True), (0.019, 0.02, False), (0.02, 0.019, False)]
)
def test_garbage_is_huge_beside_tiny(huge, tiny, told):
    assert bool(found("WT010", garbled(huge, tiny))) == told


def test_huge_and_tiny_are_what_the_thresholds_say():
    arrays = garbled(0.05, 0.05)
    assert not found("WT010", arrays, huge=1e30)
    assert not found("WT010", arrays, tiny=1e-31)


@pytest.mark.parametrize(("copies", "told"), [(4, False), (5, True)])
def test_few_patterns_of_tiny_numbers_are_memory(copies, told):
    values = np.repeat(np.float64([1e-40, 2e-40, 3e-40]), copies)
    assert found("WT010", {"fc.weight": values.reshape(1, -1)}) == (
        {"fc.weight": WARNING} if told else {}
    )
    assert not found("WT010", {"fc.weight": values.reshape(1, -1) * 1e11})


def test_random_words_are_garbage_and_nothing_else():
    words = np.random.default_rng(3).integers(0, 2**32, (64, 64), dtype=np.uint32)
    values = words.view(F32)
    values[~np.isfinite(values)] = 1
    assert judged(chain(l2=values)) == {("WT010", "l2.weight")}


def test_random_words_with_nan_are_named_as_well():
    values = np.random.default_rng(3).integers(0, 2**32, (64, 64), dtype=np.uint32).view(F32)
    assert ("WT010", "l2.weight") in judged(chain(l2=values))


@pytest.mark.parametrize("dtype", [np.float16])
def test_half_precision_is_not_judged(dtype):
    words = np.random.default_rng(3).integers(0, 2**16, (64, 64), dtype=np.uint16).view(dtype)
    words[~np.isfinite(words)] = 1
    assert not found("WT010", {"fc.weight": words})


def test_garbage_must_exceed_its_thresholds():
    values = np.full((10, 10), 0.5)
    values[0, :3], values[1, :3] = 1e20, 1e-35
    arrays = {"fc.weight": values}
    assert found("WT010", arrays, share=0.03)
    assert not found("WT010", arrays, share=0.031)
    assert not found("WT010", arrays, huge=1e20)
    assert found("WT010", arrays, huge=0.99e20)
    assert not found("WT010", arrays, tiny=1e-35)
    assert found("WT010", arrays, tiny=1.01e-35)


def test_number_at_the_limit_is_not_huge():
    values = np.full((10, 10), 0.5)
    values[0, :3], values[1, :3], values[0, 3] = 1e20, 1e-35, 1e21
    assert not found("WT010", {"fc.weight": values}, huge=1e20)
    assert found("WT010", {"fc.weight": values}, huge=0.99e20)


def test_kernels_of_zeros_or_of_ordinary_numbers_are_not_read():
    assert not found("WT010", {"fc.weight": np.zeros((8, 8), F32)})
    assert not found("WT010", {"fc.weight": np.full((8, 8), 1e-3, F32)})


# ------------------------------------------------------------------------------------------ WT011


def gains(zeroed, beta=None, others=1.0):
    arrays = {"ln_0.weight": F32([others, others * 0.9]), "ln_1.weight": F32(zeroed)}
    return arrays if beta is None else {**arrays, "ln_1.bias": F32(beta)}


@pytest.mark.parametrize(
    ("arrays", "severity"),
    [
        (gains([0, 0], [0.1, 0]), ERROR),
        (gains([0, 0], [0, 0]), WARNING),
        (gains([0, 0]), WARNING),
        (gains([0, 0.1]), None),
        (gains([0, 0], [0.1, 0], others=0.22), ERROR),
        (gains([0, 0], [0.1, 0], others=0.2), NOTE),
        ({"ln_1.weight": F32([0, 0])}, NOTE),
        ({"ln_1.weight": F32([0, 0]), "ln_1.bias": F32([0, 0.1])}, WARNING),
        ({"ln_1.weight": F32([0, 0]), "ln_1.bias": F32([0, 0])}, NOTE),
        ({"ln_1.weight": F32([0, 0]), "ln_2.weight": F32([1, 1])}, NOTE),
    ],
    ids=["offset left", "offset zero", "no offset", "one gain", "gains around one",
         "differences to one", "nothing to compare with",
         "nothing but its offset", "nothing, nor an offset", "untrained"],
)  # fmt: skip
def test_gains_of_zero_are_judged_by_the_others(arrays, severity):
    assert found("WT011", arrays) == ({} if severity is None else {"ln_1.weight": severity})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "beside"),
    [("ln.weight", {"ln.bias": F32([0, 0])}), ("norm.weight", {}), ("ln/gamma", {}),
     ("normalization/variance", {"normalization/mean": F32([0, 0])}),
     ("q.weight_scale", {"q.weight": np.ones((2, 2), np.int8)})],
)  # fmt: skip
def test_nonfinite_scale_is_told_once(value, name, beside):
    assert judged({name: F32([1, value]), **beside}) == {("WT011", name)}


def test_vector_that_is_no_norm_stays_with_the_nonfinite_rules():
    assert judged({"act.weight": F32([np.nan])}) == {("NF001", "act.weight")}


@pytest.mark.parametrize(
    ("variance", "severity"),
    [([1, 1e-30], None), ([1, 0], WARNING), ([0, 0], ERROR), ([1, -1e-9], ERROR)],
)
def test_variances_of_an_input_normalisation(variance, severity):
    arrays = {"normalization/mean": F32([0, 0]), "normalization/variance": F32(variance)}
    told = {} if severity is None else {"normalization/variance": severity}
    assert found("WT011", arrays) == told


@pytest.mark.parametrize(
    ("part", "scales", "severity"),
    [("weight_scale", [1, 2], None), ("weight_scale", [0, 2], NOTE), ("weight_scale", [0, 0], ERROR),
     ("input_scale", [0, 2], ERROR)],
)  # fmt: skip
def test_scales_of_zero(part, scales, severity):
    arrays = {
        "q.weight": np.ones((2, 2), np.int8),
        "q.weight_scale": F32([1, 1]),
        f"q.{part}": F32(scales),
    }
    assert found("WT011", arrays) == ({} if severity is None else {f"q.{part}": severity})


@pytest.mark.parametrize(
    ("scale", "told"), [(0.5, False), (0.0, True), (math.inf, True), (math.nan, True)]
)
def test_scale_that_a_tensor_carries(scale, told):
    scheme = Quantisation(scheme="per_tensor_affine", scale=scale, zero_point=0)
    info = TensorInfo(name="w", path=("w",), dtype="qint8", shape=(2,), encoding="quantised",
                      quantisation=scheme)  # fmt: skip
    base = TensorTable.from_arrays({"w": np.ones(2, np.int8)})
    table = TensorTable(path="m", format="f", infos={"w": info}, decoder=base.decoder)
    findings = list(RULE["WT011"]().check(Context(table, measure(table).stats)))
    assert bool(findings) == told


def test_scale_in_a_tensor_of_its_own_is_no_number():
    scheme = Quantisation(scheme="per_channel_affine", scale="w.scales", zero_point=0, axis=0)
    info = TensorInfo(name="w", path=("w",), dtype="qint8", shape=(2,), encoding="quantised",
                      quantisation=scheme)  # fmt: skip
    base = TensorTable.from_arrays({"w": np.ones(2, np.int8)})
    table = TensorTable(path="m", format="f", infos={"w": info}, decoder=base.decoder)
    assert not list(RULE["WT011"]().check(Context(table, measure(table).stats)))


def test_gains_lost_with_others_are_judged_by_those_that_are_left():
    lost = {f"ln_{i}.weight": F32([0, 0]) for i in (1, 2, 3)}
    assert set(found("WT011", {**gains([0, 0], [0.1, 0]), **lost}).values()) == {ERROR, WARNING}


def test_offset_tells_a_norm_of_any_name():
    assert judged({"net.0.weight": F32([np.nan, 1]), "net.0.bias": F32([0, 1])}) == {
        ("WT011", "net.0.weight")
    }


def test_gain_of_another_name_is_no_norm():
    values = F32([np.nan, 1])
    assert judged({"act.weight": values, "ln.weight": F32([1, 1])}) == {("NF001", "act.weight")}


@pytest.mark.parametrize(
    ("code", "field", "value"),
    [(code, name, value) for code, fields in {
        "WT001": {"least_elements": 4}, "WT002": {"least_elements": 4},
        "WT003": {"gain": 1e4, "steep": 1e3, "suspect_gain": 50, "apart": 64, "few": 3},
        "WT004": {"far": 40, "alone": 10, "single": 1e6, "few": 3, "least_elements": 64, "dominant": 30},
        "WT005": {"most": 0.5, "tolerance": 1e-5, "least_rows": 8, "peeks": 200, "more_peeks": 0.5},
        "WT006": {"gain": 3e-4, "table": 1e-5, "nothing": 1e-6, "drowned": 100, "remembered": 1e4},
        "WT008": {"least_elements": 512, "least_truncated": 16384, "sigmas": 4, "gap": 10, "most": 0.5},
        "WT009": {"share": 0.5}, "WT010": {"huge": 1e10, "tiny": 1e-30, "share": 0.02, "repeated": 4},
        "WT011": {"centred": 0.2},
    }.items() for name, value in fields.items()],
)  # fmt: skip
def test_default_is_what_was_measured_on_healthy_files(code, field, value):
    assert getattr(RULE[code](), field) == value


# --------------------------------------------------------------------------------------- together


@pytest.mark.parametrize("depthwise", [LayerConfig(name="dw", class_name="DepthwiseConv2D")])
def test_stored_class_says_that_a_kernel_is_depthwise(depthwise):
    arrays = {"stem/kernel": normal(3, 3, 1, 8), "dw/kernel": np.repeat(normal(3, 3, 1, 1), 8, 2)}
    assert not found("WT005", arrays, layers=(depthwise,))


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, -2.5, 1e-40, 1e30, np.nan, np.inf]), min_size=4, max_size=16),
    name=st.sampled_from(
        ["fc.weight", "fc/kernel", "embed.weight", "fc.weight_v", "q.lora_B.weight", "ln.weight",
         "normalization/variance", "q.weight_scale", "fc.weight_orig"]
    ),
    columns=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_no_values_break_a_rule(values, name, columns):
    array = F32(values[: len(values) // columns * columns]).reshape(-1, columns)
    arrays = {name: array, "fc.weight_g": np.ones((len(array), 1), F32),
              "normalization/mean": np.ones(len(array), F32), "q.weight": np.ones((2, 2), np.int8)}  # fmt: skip
    for code, rule in RULE.items():
        if code.startswith("WT"):
            for finding in rule().check(context(arrays)):
                assert "\n" not in finding.message
