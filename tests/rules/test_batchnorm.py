"""BN001 to BN010: each threshold from both sides, what feeds a layer, and the traps."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from ckptdoctor.findings import Severity
from ckptdoctor.measure.scan import measure
from ckptdoctor.rules.base import Context
from ckptdoctor.rules.batchnorm import channel_list, norms_of, per_channel, short
from ckptdoctor.rules.bn001_nonfinite_running_stats import NonfiniteRunningStats
from ckptdoctor.rules.bn002_negative_running_var import NegativeRunningVar
from ckptdoctor.rules.bn003_exploded_running_var import ExplodedRunningVar
from ckptdoctor.rules.bn004_collapsed_running_var import CollapsedRunningVar
from ckptdoctor.rules.bn005_dead_gammas import DeadGammas
from ckptdoctor.rules.bn006_stale_running_stats import StaleRunningStats
from ckptdoctor.rules.bn007_missing_running_stats import MissingRunningStats
from ckptdoctor.rules.bn008_half_precision_running_stats import HalfPrecisionRunningStats
from ckptdoctor.rules.bn009_duplicated_running_stats import DuplicatedRunningStats
from ckptdoctor.rules.bn010_exploded_gain import ExplodedGain
from ckptdoctor.tensors import LayerConfig, TensorTable

NOTE, WARNING, ERROR = Severity
NAN, INF = np.nan, np.inf
EPS = 1e-5
UP, DOWN = 1 + 1e-6, 1 - 1e-6


def context(arrays, roles=None, *, layers=(), cast_to=""):
    table = TensorTable.from_arrays(
        {name: np.asarray(values, np.float64) if isinstance(values, list) else values
         for name, values in arrays.items()}, roles, layers=layers)  # fmt: skip
    return Context(table, measure(table).stats, cast_to=cast_to)


def found(rule, arrays, roles=None, **more):
    return list(rule.check(context(arrays, roles, **more)))


def told(rule, arrays, roles=None, **more):
    return {(f.tensor, f.severity) for f in found(rule, arrays, roles, **more)}


def bn(name="bn", mean=0.0, var=1.0, gamma=None, beta=None, count=None, n=4):
    """Torch BatchNorm; numbers are repeated for every channel."""
    parts = {"running_mean": mean, "running_var": var, "weight": gamma, "bias": beta}
    arrays = {
        f"{name}.{part}": np.full(n, value, np.float64) if np.isscalar(value) else value
        for part, value in parts.items()
        if value is not None
    }
    return arrays | ({} if count is None else {f"{name}.num_batches_tracked": np.array(count)})


def conv(name, square=1.0, n=4):
    """Kernel of 1x1 whose outputs have this squared norm each."""
    return {f"{name}.weight": np.eye(n)[:, :, None, None] * np.sqrt(square)}


def net(var, *, square=1.0, usual=1.0, layers=5, mean=0.0, gamma=None, n=4):
    """Convolutions with a BatchNorm each: ``usual`` everywhere, the last one as given."""
    arrays = {}
    for i in range(1, layers):
        arrays |= conv(f"conv{i}", n=n) | bn(f"bn{i}", var=usual, n=n)
    name = f"bn{layers}"
    return arrays | conv(f"conv{layers}", square, n) | bn(name, mean, var, gamma, n=n)


def one(n, value, rest=1.0):
    values = np.full(n, rest, np.float64)
    values[0] = value
    return values


# BN001


def test_each_statistic_is_named_with_its_channels():
    var = [1.0, NAN, 1.0, INF]
    (mean, variance) = found(NonfiniteRunningStats(), bn(mean=NAN, var=var))
    assert mean.message.startswith("all 4 channels are NaN")
    assert mean.measured == {"channels": 4, "nan": 4, "inf": 0}
    assert variance.message.startswith("of 4 channels 1 NaN and 1 infinite (1, 3)")
    assert variance.measured == {"channels": 4, "nan": 1, "inf": 1, "at": [1, 3]}


@pytest.mark.parametrize(
    ("mean", "var", "says"),
    [
        (0.5, NAN, "beside a finite mean"),
        (NAN, NAN, "the output is NaN"),
        (0.5, INF, "such a channel is constant, without a NaN"),
        (0.5, -INF, "the output is NaN"),
    ],
)
def test_effect_of_a_bad_variance_is_told(mean, var, says):
    finding = found(NonfiniteRunningStats(), bn(mean=mean, var=var))[-1]
    assert finding.tensor == "bn.running_var"
    assert says in finding.message


def test_all_channels_of_two_kinds_are_counted_by_kind():
    (finding,) = found(NonfiniteRunningStats(), bn(var=[NAN, INF]) | {"bn.running_mean": [0.0, 0]})
    assert finding.message.startswith("of 2 channels 1 NaN and 1 infinite")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2"])
def test_narrow_types_are_judged(dtype):
    numpy_type = getattr(ml_dtypes, dtype, None) or np.float16
    arrays = {
        "bn.running_mean": np.zeros(3, numpy_type),
        "bn.running_var": np.array([INF, 1, 2]).astype(numpy_type),
    }
    (finding,) = found(NonfiniteRunningStats(), arrays)
    assert finding.severity == ERROR
    assert ("65520" in finding.message) == (dtype == "float16")


def test_tensor_of_no_layer_is_left_alone():
    assert not found(NonfiniteRunningStats(), {"x": np.array([NAN])})


def test_other_tensors_of_a_batchnorm_and_other_layers_are_left_alone():
    assert not found(NonfiniteRunningStats(), bn(gamma=NAN, beta=INF) | {"fc.weight": [[NAN]]})


# BN002


@pytest.mark.parametrize(
    ("lowest", "severity"),
    [
        (-NegativeRunningVar().rounding * EPS * DOWN, NOTE),
        (-NegativeRunningVar().rounding * EPS, NOTE),
        (-NegativeRunningVar().rounding * EPS * UP, WARNING),
        (-NegativeRunningVar().amplified * EPS * DOWN, WARNING),
        (-NegativeRunningVar().amplified * EPS, ERROR),
        (-EPS * DOWN, ERROR),
        (-EPS, ERROR),
        (-1e30, ERROR),
    ],
)
def test_negative_variance_weighs_by_what_it_does(lowest, severity):
    (finding,) = found(NegativeRunningVar(), bn(var=one(4, lowest)))
    assert finding.severity == severity
    assert finding.measured["nonfinite"] == (lowest <= -EPS)
    assert finding.measured["negative"] == 1
    assert ("can only give NaN" in finding.message) == (lowest <= -EPS)


def test_stored_epsilon_decides():
    config = LayerConfig(name="bn", class_name="BatchNorm2d", epsilon=1e-3)
    arrays = bn(var=one(4, -2e-4))
    assert told(NegativeRunningVar(), arrays) == {("bn.running_var", ERROR)}
    assert told(NegativeRunningVar(), arrays, layers=[config]) == {("bn.running_var", WARNING)}


# BN003: inside the net

rule3 = ExplodedRunningVar()


def severity3(arrays, name="bn5.running_var", **more):
    """Severity of what BN003 says about one tensor, None for nothing; and about no other."""
    findings = found(rule3, arrays, **more)
    assert {f.tensor for f in findings} <= {name}
    return findings[0].severity if findings else None


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [
        (rule3.limit * DOWN, None),
        (rule3.limit, None),
        (rule3.limit * UP, WARNING),
        (rule3.certain * DOWN, WARNING),
        (rule3.certain, WARNING),
        (rule3.certain * UP, ERROR),
        (1e30, ERROR),
    ],
)
@pytest.mark.parametrize("square", [1.0, 1e-2, 1e4])
def test_variance_is_judged_by_the_kernel_that_feeds_it(ratio, severity, square):
    var = ratio * square
    # a tenth of what is usual elsewhere, so that `apart` does not decide
    assert severity3(net(var, square=square, usual=0.1)) in (
        (severity,) if var > rule3.start else (None,)
    )


@pytest.mark.parametrize("usual", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("side", [1.0, UP])
def test_variance_has_to_stand_out_in_its_file(usual, side):
    ratio = rule3.apart * usual * side
    found_ = severity3(net(ratio, usual=usual))
    if usual < rule3.limit / rule3.apart:
        assert found_ is None
    else:
        assert (found_ is None) == (side == 1)


@pytest.mark.parametrize(("ratio", "severity"), [(1e5, None), (1e5 * UP, ERROR)])
def test_where_every_layer_is_large_only_the_extreme_is_told(ratio, severity):
    arrays = net(ratio, usual=1e6)
    severities = {f.severity for f in found(rule3, arrays) if f.tensor == "bn5.running_var"}
    assert severities == ({severity} if severity else set())


def test_two_interior_layers_say_nothing_about_what_is_usual():
    arrays = net(rule3.apart * 1.5 * UP, usual=1.5, layers=3)
    assert severity3(arrays, "bn3.running_var") == WARNING


def test_middle_channel_decides():
    half = [1.0, 1.0, 1.0, 400.0]
    assert severity3(net(np.array(half))) is None
    assert severity3(net(np.array([1.0, 400.0, 400.0, 400.0]))) == WARNING


def test_variance_that_never_rose_is_none_that_exploded():
    assert severity3(net(rule3.start, square=1e-4)) is None
    assert severity3(net(rule3.start * 1.01, square=1e-4)) == ERROR


@pytest.mark.parametrize(
    ("share", "severity"), [(0.0, None), (EPS * DOWN, None), (EPS * UP, ERROR)]
)
def test_kernel_that_makes_less_than_epsilon_says_nothing(share, severity):
    assert severity3(net(5.0, square=share)) == severity


def test_kernel_that_makes_epsilon_says_nothing_either():
    config = LayerConfig(name="bn5", class_name="BatchNorm2d", epsilon=0.25)
    assert severity3(net(1e3, square=0.25), layers=[config]) is None


@pytest.mark.parametrize(("share", "severity"), [(DOWN, None), (UP, ERROR)])
def test_pruned_filters_keep_the_variance_of_before(share, severity):
    arrays = net(np.full(4, 3.0))
    arrays["conv5.weight"][:3] *= np.sqrt(rule3.pruned * share)
    assert severity3(arrays) == severity


def test_variance_of_a_pruned_filter_is_no_spike():
    arrays = net(one(4, 3.0))
    arrays["conv5.weight"][0] *= 0.04
    assert severity3(arrays) is None
    arrays["bn5.running_var"] = one(4, 3001.0)
    assert severity3(arrays) == ERROR


def dense_net(ratio):
    arrays = {}
    for i in range(1, 6):
        arrays |= {f"fc{i}.weight": np.eye(4)} | bn(f"bn{i}", var=1.0)
    arrays["bn5.running_var"] = np.full(4, ratio)
    return arrays


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [
        (rule3.features, None),
        (rule3.features * UP, WARNING),
        (rule3.beyond, WARNING),
        (rule3.beyond * UP, ERROR),
    ],
)
def test_features_may_move_together(ratio, severity):
    assert severity3(dense_net(ratio)) == severity


def summed(ratio):
    """A Keras net whose last BatchNorm is fed by a sum."""
    names = ["in", "c1", "b1", "c2", "b2", "c3", "b3", "c4", "b4", "add", "last"]
    inputs = dict(zip(names[1:], [(name,) for name in names[:-1]], strict=True)) | {
        "add": ("b3", "b4"), "in": ()}  # fmt: skip
    kinds = {"in": "InputLayer", "c": "Conv2D", "b": "BatchNormalization", "a": "Add",
             "l": "BatchNormalization"}  # fmt: skip
    layers = [
        LayerConfig(name=name, class_name=kinds.get(name, kinds.get(name[0])), inputs=inputs[name])
        for name in names
    ]
    arrays = {}
    for i in range(1, 5):
        arrays[f"c{i}/kernel"] = np.eye(4)[None, None]
        arrays |= {f"b{i}/moving_mean": np.zeros(4), f"b{i}/moving_variance": np.ones(4)}
    arrays |= {"last/moving_mean": np.zeros(4), "last/moving_variance": np.full(4, ratio)}
    return arrays, layers


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [
        (rule3.features * DOWN, None),
        (rule3.features * UP, WARNING),
        (rule3.certain * rule3.guessed * DOWN, WARNING),
        (rule3.certain * rule3.guessed * UP, ERROR),
    ],
)
def test_behind_a_sum_the_largest_kernel_that_fits_is_the_measure(ratio, severity):
    arrays, layers = summed(ratio)
    assert severity3(arrays, "last/moving_variance", layers=layers) == severity
    arrays["c2/kernel"] *= np.sqrt(10.0)  # explains ten times as much
    wider = severity3(arrays, "last/moving_variance", layers=layers)
    assert wider == (None if ratio < 1000 else WARNING)


@pytest.mark.parametrize(("earlier", "severity"), [(1e6, None), (1e6 * DOWN, ERROR)])
def test_sums_carry_on_the_scale_of_the_input(earlier, severity):
    arrays, layers = summed(rule3.carried * 1e6)
    layers = [config for config in layers if config.name != "c1"]
    layers[1] = LayerConfig(name="b1", class_name="BatchNormalization", inputs=("in",))
    arrays["b1/moving_variance"] = np.full(4, earlier)
    findings = [f for f in found(rule3, arrays, layers=layers) if f.tensor.startswith("last")]
    assert [f.severity for f in findings] == ([severity] if severity else [])


def test_first_layer_carries_too_but_none_that_is_normalised():
    arrays, layers = summed(rule3.carried * 1e6)
    arrays["b2/moving_variance"] = np.full(4, 1e6)
    named = {f.tensor: f.severity for f in found(rule3, arrays, layers=layers)}
    assert named == {"b2/moving_variance": ERROR, "last/moving_variance": ERROR}
    arrays["b2/moving_variance"], arrays["b1/moving_variance"] = np.ones(4), np.full(4, 1e6)
    named = {f.tensor: f.severity for f in found(rule3, arrays, layers=layers)}
    assert named == {"b1/moving_variance": WARNING}


def preactivation(*, before):
    """Torch net whose first layer is fed by nobody knows what, listed first or last."""
    unknown = bn("layers.0.bn1", var=2e4, n=3)
    rest = {}
    for i in range(1, 5):
        rest |= conv(f"layers.{i}.conv1") | bn(f"layers.{i}.bn1")
    last = conv("stem", n=5) | bn("bn_last", n=7)  # a file may list first what comes last
    return last | unknown | rest if before else last | rest | unknown


def test_layer_before_every_known_one_may_see_the_input():
    (finding,) = found(rule3, preactivation(before=True))
    assert finding.severity == NOTE
    assert "of the first BatchNorm" in finding.message
    (finding,) = found(rule3, preactivation(before=False))
    assert finding.severity == ERROR


# BN003: single channels


@pytest.mark.parametrize(
    ("peak", "rest", "severity"),
    [
        (rule3.spike * DOWN, 0.1, None),
        (rule3.spike, 0.1, None),
        (rule3.spike * UP, 0.1, WARNING),
        (rule3.spike_apart * 10 * DOWN, 10.0, None),
        (rule3.spike_apart * 10, 10.0, None),
        (rule3.spike_apart * 10 * UP, 10.0, WARNING),
        (rule3.spike_certain * DOWN, 1.0, WARNING),
        (rule3.spike_certain, 1.0, WARNING),
        (rule3.spike_certain * UP, 1.0, ERROR),
    ],
)
def test_single_channel_has_to_stand_out_from_its_layer(peak, rest, severity):
    var = one(4, peak, rest)
    assert severity3(net(var)) == severity
    if severity:
        (finding,) = found(rule3, net(var))
        assert finding.measured["at"] == [0]
        assert "1 of 4 channels (0)" in finding.message


def test_single_channel_of_the_first_layer_is_told_too():
    assert severity3(conv("conv1") | bn("bn1", var=one(4, 1e7)), "bn1.running_var") == ERROR


def test_single_channel_is_told_rather_than_the_scale_of_the_input():
    arrays = conv("conv1") | bn("bn1", var=one(4, 1e12, 5e3))
    (finding,) = found(rule3, arrays)
    assert finding.severity == ERROR
    assert "1 of 4 channels (0)" in finding.message
    arrays = conv("conv1") | bn("bn1", var=one(4, 1e12, 5e7))
    assert "of the first BatchNorm" in found(rule3, arrays)[0].message


def test_single_channel_behind_a_sum_needs_more_for_an_error():
    arrays, layers = summed(1.0)
    for peak, severity in ((9e5, WARNING), (1.1e6, ERROR)):
        arrays["last/moving_variance"] = one(4, peak)
        assert severity3(arrays, "last/moving_variance", layers=layers) == severity


# BN003: the first BatchNorm


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [
        (rule3.pixels * DOWN, None),
        (rule3.pixels, None),
        (rule3.pixels * UP, NOTE),
        (rule3.raw * DOWN, NOTE),
        (rule3.raw, NOTE),
        (rule3.raw * UP, WARNING),
        (rule3.impossible * DOWN, WARNING),
        (rule3.impossible, WARNING),
        (rule3.impossible * UP, ERROR),
    ],
)
def test_first_batchnorm_names_the_scale_of_the_input(ratio, severity):
    arrays = conv("conv1") | bn("bn1", var=ratio)
    assert severity3(arrays, "bn1.running_var") == severity
    if severity:
        (finding,) = found(rule3, arrays)
        assert finding.measured["implied_input"] == pytest.approx(np.sqrt(ratio))


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (100.0, "0..255"),
        (1e3, "0..65535 would give"),
        (131070.0, "0..65535 would give"),
        (131071.0, "more than 0..65535"),
    ],
)
def test_first_batchnorm_says_what_has_such_a_scale(scale, says):
    (finding,) = found(rule3, conv("conv1") | bn("bn1", var=scale**2))
    assert says in finding.message
    assert ("more than" in finding.message) == ("more than" in says)


@pytest.mark.parametrize(
    ("var", "severity"), [(4.6e8, None), (65535.0**2, None), (65535.0**2 * UP, WARNING)]
)
def test_batchnorm_on_the_input_may_be_wide(var, severity):
    arrays = bn("input_bn", var=one(2, var), n=2) | {"conv.weight": np.ones((4, 2, 1, 1))}
    assert severity3(arrays, "input_bn.running_var") == severity


# BN003: files without kernels


@pytest.mark.parametrize(
    ("var", "severity"), [(rule3.alone * 2, None), (rule3.alone * 2 * UP, WARNING)]
)
def test_without_kernels_the_other_batchnorms_are_the_measure(var, severity):
    arrays = {}
    for i in range(1, 4):
        arrays |= bn(f"layer{i}.bn", var=2.0)
    arrays |= bn("layer4.bn", var=var)
    assert severity3(arrays, "layer4.bn.running_var") == severity


def test_one_other_batchnorm_is_no_measure():
    assert not found(rule3, bn("layer1.bn", var=2.0) | bn("layer2.bn", var=1e9))
    arrays = bn("layer1.bn", var=2.0) | bn("layer2.bn", var=2.0) | bn("layer3.bn", var=1e9)
    assert severity3(arrays, "layer3.bn.running_var") == WARNING


# BN003: what it leaves to others, and what must not stop it


@pytest.mark.parametrize("bad", [NAN, INF])
def test_layer_that_is_not_finite_is_left_to_bn001(bad):
    assert severity3(net(np.array([1e9, 1e9, 1e9, bad]))) is None


def test_nan_kernel_falls_back_to_the_others():
    arrays = net(1e6)
    arrays["conv5.weight"][0, 0] = NAN
    assert severity3(arrays) == ERROR


def test_averaged_copy_is_judged_by_its_own_kernels():
    arrays = {f"{prefix}.{name}": value for prefix in ("model", "ema")
              for name, value in net(1e6 if prefix == "ema" else 1.0).items()}  # fmt: skip
    roles = {name: name.split(".")[0] for name in arrays}
    (finding,) = found(rule3, arrays, roles)
    assert (finding.tensor, finding.role) == ("ema.bn5.running_var", "ema")


def test_numbers_of_the_message_are_measured():
    (finding,) = found(rule3, net(np.array([2e3, 4e3, 6e3, 8e3])))
    assert "variances of 2,000..8,000 in 4 channels" in finding.message
    assert "'conv5'" in finding.message
    assert finding.measured["ratio"] == pytest.approx(5e3, rel=1e-3)
    assert finding.measured["usual"] == pytest.approx(1, rel=1e-3)
    assert (finding.measured["largest"], finding.measured["median"]) == (8e3, 5e3)
    assert "30 times" in finding.limit


def test_kernel_whose_size_differs_is_not_taken_for_the_layers_own():
    arrays = net(np.full(4, 20.0)) | {"fc.weight": np.eye(7)[:4] * 9}
    assert severity3(arrays) is None


def test_file_with_other_widths_takes_the_largest_kernel():
    arrays, layers = summed(100.0)
    wide = {name: value for name, value in arrays.items() if not name.startswith("last")}
    wide |= {"last/moving_mean": np.zeros(9), "last/moving_variance": np.full(9, 51.0)}
    (finding,) = found(rule3, wide, layers=layers)
    assert finding.severity == WARNING
    assert "any kernel," in finding.message
    wide["c2/kernel"] = wide["c2/kernel"] * 1.1
    assert not found(rule3, wide, layers=layers)
    assert "any kernel with 4 outputs" in found(rule3, arrays, layers=layers)[0].message


@pytest.mark.parametrize(
    "kernel",
    [
        np.eye(4)[None, None] * np.where(np.eye(4) > 0, 1e3, NAN),
        np.full((1, 1, 4, 4), 100, np.int8),
    ],
    ids=["with NaN", "of integers"],
)
def test_kernel_that_cannot_be_measured_explains_nothing(kernel):
    arrays, layers = summed(1e6)
    arrays["c2/kernel"] = kernel
    assert severity3(arrays, "last/moving_variance", layers=layers) == ERROR


def test_convolution_over_one_dimension_is_one():
    arrays = net(np.full(4, 45.0))
    arrays["conv5.weight"] = np.eye(4)[:, :, None]
    assert severity3(arrays) == WARNING
    arrays["conv5.weight"] = np.eye(4)
    assert severity3(arrays) is None


def test_three_interior_layers_tell_what_is_usual():
    assert severity3(net(60.0, usual=5.0, layers=4), "bn4.running_var") is None
    assert severity3(net(60.0, usual=5.0, layers=3), "bn3.running_var") == WARNING


def test_channels_that_never_rose_do_not_make_a_layer():
    assert severity3(net(np.array([1.0, 1.0, 1.0, 1.5]), square=1e-4)) is None
    assert severity3(net(np.array([1.1, 1.1, 1.1, 1.5]), square=1e-4)) == ERROR


def test_collapsed_layers_are_no_measure():
    arrays = {}
    for i, var in enumerate([0.0, 0.0, 2.0, 2.0, 1500.0]):
        arrays |= bn(f"layer{i}.bn", var=var)
    assert not found(rule3, arrays)


def test_lists_of_channels_in_numbers_are_cut():
    var = np.ones(100)
    var[:40] = 1e7
    (finding,) = found(rule3, net(var, n=100))
    assert finding.measured["at"] == list(range(32))
    (finding,) = found(NonfiniteRunningStats(), bn(var=np.where(var > 1, NAN, 1), n=100))
    assert finding.measured["at"] == list(range(32))
    assert "0, 1, 2, 3, 4, 5, 6, 7 and 32 more" in finding.message


def test_only_channel_is_called_so():
    assert "in the only channel" in found(rule3, net(1e6, n=1))[0].message
    assert "in 2 channels" in found(rule3, net(1e6, n=2))[0].message
    assert "in the only channel" in found(CollapsedRunningVar(), net(0.0, n=1))[0].message
    assert "in all 2 channels" in found(CollapsedRunningVar(), net(0.0, n=2))[0].message


# BN004

rule4 = CollapsedRunningVar()


def severity4(arrays, name="bn5.running_var", **more):
    findings = found(rule4, arrays, **more)
    assert {f.tensor for f in findings} <= {name}
    return findings[0].severity if findings else None


@pytest.mark.parametrize(
    ("ratio", "severity"), [(rule4.starved, None), (rule4.starved * DOWN, ERROR)]
)
@pytest.mark.parametrize("square", [1.0, 400.0])
def test_layer_below_what_its_kernel_makes_has_collapsed(ratio, severity, square):
    assert severity4(net(ratio * square, square=square)) == severity


@pytest.mark.parametrize(("side", "severity"), [(DOWN, None), (UP, ERROR)])
def test_mean_far_from_zero_shows_a_collapsed_variance(side, severity):
    mean = rule4.deviations * np.sqrt(0.5 + EPS) * side
    assert severity4(net(0.5, mean=mean)) == severity
    assert severity4(net(0.5, mean=-mean)) == severity


@pytest.mark.parametrize(("channels", "severity"), [(99, ERROR), (98, WARNING)])
def test_nearly_all_channels_make_a_layer(channels, severity):
    mean = np.zeros(100)
    mean[:channels] = 100.0
    assert severity4(net(np.ones(100), mean=mean, n=100)) == severity


@pytest.mark.parametrize(("channels", "severity"), [(25, WARNING), (24, NOTE)])
def test_a_quarter_of_exact_zeros_is_a_warning(channels, severity):
    var = np.ones(100)
    var[:channels] = 0.0
    assert severity4(net(var, n=100)) == severity
    var[:channels] = 5e-45  # where dead channels of healthy nets stick
    assert severity4(net(var, n=100)) == NOTE


@pytest.mark.parametrize(("side", "severity"), [(1.0, None), (DOWN, NOTE)])
def test_constant_channel_is_a_note(side, severity):
    assert severity4(net(one(8, rule4.constant * EPS * side), n=8)) == severity


@pytest.mark.parametrize(("side", "severity"), [(DOWN, None), (UP, NOTE)])
def test_constant_channel_counts_when_it_is_amplified(side, severity):
    gamma = one(8, rule4.gain * np.sqrt(EPS) * side)
    assert severity4(net(one(8, 1e-300), gamma=gamma, n=8)) == severity


def test_silenced_layers_are_no_matter():
    assert severity4(net(0.0, gamma=1e-4)) is None
    assert severity4(net(0.0, square=rule4.gain * EPS * DOWN)) is None
    assert severity4(net(0.0, square=rule4.gain * EPS * UP)) == ERROR


def test_limits_themselves_are_no_collapse():
    def with_epsilon(epsilon):
        return [LayerConfig(name="bn5", class_name="BatchNorm2d", epsilon=epsilon)]

    tiny = one(8, 1e-300)
    assert severity4(net(tiny, gamma=1.0, n=8), layers=with_epsilon(0.01)) is None  # 10 times
    assert severity4(net(0.0, square=1e3, gamma=1.0), layers=with_epsilon(1.0)) is None  # once
    assert severity4(net(0.0, square=1e3, gamma=1.1), layers=with_epsilon(1.0)) == ERROR
    assert severity4(net(0.0), layers=with_epsilon(0.1)) is None  # a square of 10 times epsilon
    mean = np.array([30.0, 30.0, 30.0, 100.0])
    (finding,) = found(rule4, net(np.ones(4), mean=mean), layers=with_epsilon(0.0))
    assert finding.measured["collapsed"] == 1


def test_list_of_dead_channels_is_cut():
    var = np.ones(200)
    var[:40] = 5e-45
    (finding,) = found(rule4, net(var, n=200))
    assert finding.measured["at"] == list(range(32))


@pytest.mark.parametrize(("gain", "severity"), [(0.99, None), (1.01, ERROR), (1.9, ERROR)])
def test_gamma_below_the_root_of_epsilon_silences(gain, severity):
    assert severity4(net(0.0, gamma=gain * np.sqrt(EPS))) == severity


@pytest.mark.parametrize(("live", "severity"), [(4, ERROR), (3, WARNING)])
def test_half_the_channels_have_to_be_alive_for_an_error(live, severity):
    gamma = np.zeros(8)
    gamma[:live] = 1.0
    assert severity4(net(0.0, gamma=gamma, n=8)) == severity


@pytest.mark.parametrize(
    ("var", "square", "severity"),
    [
        (rule4.inert * EPS * DOWN, 1.0, ERROR),
        (rule4.inert * EPS * UP, 1.0, None),
        (rule4.first * 0.05 * DOWN, 0.05, ERROR),
        (rule4.first * 0.05 * UP, 0.05, None),
    ],
)
def test_first_batchnorm_has_collapsed_when_it_does_nothing(var, square, severity):
    arrays = conv("conv1", square) | bn("bn1", var=var)
    assert severity4(arrays, "bn1.running_var") == severity


def test_column_far_from_zero_is_no_matter_in_front_of_the_net():
    assert severity4(conv("conv1") | bn("bn1", mean=400.0), "bn1.running_var") is None


def on_input(mean, var):
    return bn("input_bn", mean, var, n=2) | {"conv.weight": np.ones((4, 2, 1, 1))}


@pytest.mark.parametrize(
    ("mean", "var", "severity"),
    [
        ([0.4, 1.0], [0.2, 8e-43], WARNING),
        ([0.4, 0.0], [0.2, 8e-43], NOTE),
        ([2000.0, 0.0], [25.0, 1.0], None),
        ([1e-4, 1e-4], [1e-9, 1e-9], NOTE),
        ([0.0, 0.0], [0.0, 0.0], ERROR),
        ([0.4, 1.0], [0.2, 0.0], WARNING),
    ],
)
def test_constant_input_is_asked_about_when_it_is_not_zero(mean, var, severity):
    arrays = on_input(np.array(mean), np.array(var))
    assert severity4(arrays, "input_bn.running_var") == severity


def test_variance_without_a_kernel_or_a_mean_collapses_to_zero_only():
    arrays = {}
    for i in range(1, 4):
        arrays |= {f"layer{i}.bn.running_var": np.full(4, 0.5)}
    arrays["layer3.bn.running_var"] = np.zeros(4)
    assert severity4(arrays, "layer3.bn.running_var") == ERROR
    arrays["layer3.bn.running_var"] = np.full(4, 1e-12)
    assert severity4(arrays, "layer3.bn.running_var") == NOTE
    arrays["layer3.bn.running_mean"] = np.full(3, 1e9)  # of another length: no evidence
    assert severity4(arrays, "layer3.bn.running_var") == NOTE


def test_negative_variance_is_left_to_bn002():
    assert severity4(net(np.array([-1.0, 0, 0, 0]))) is None


def test_collapse_is_told_with_its_gain():
    (finding,) = found(rule4, net(1e-12, gamma=2.0))
    assert "amplified 632 times" in finding.message
    assert finding.measured["collapsed"] == 4
    assert finding.measured["gain"] == pytest.approx(2 / np.sqrt(EPS), rel=1e-3)
    (finding,) = found(rule4, net(np.ones(8), mean=np.repeat([100.0, 0.0], 4), n=8))
    assert finding.severity == WARNING
    assert "4 of 8 channels (0, 1, 2, 3) have a variance that their mean denies" in finding.message
    assert "30 deviations" in finding.limit
    (finding,) = found(rule4, net(one(8, 1e-9), n=8))
    assert "1 of 8 channels (0) were constant in training" in finding.message
    assert "amplified up to 316 times" in finding.message
    assert finding.measured["at"] == [0]


# BN005

rule5 = DeadGammas()


@pytest.mark.parametrize(
    ("gamma", "severity"),
    [
        (np.repeat([0.5, 1.0], [10, 90]) * rule5.dead, None),  # exactly a tenth below
        (np.repeat([0.5, 1.0], [11, 89]) * rule5.dead, NOTE),
        (-np.repeat([0.5, 1.0], [11, 89]) * rule5.dead, NOTE),
        (np.full(100, rule5.dead), None),
        (-np.full(100, rule5.dead), None),
        (np.full(100, rule5.dead * DOWN), NOTE),
        (np.repeat([-1.0, 0.0, 1.0], [40, 20, 40]), NOTE),
    ],
    ids=["a tenth", "more", "negative ones", "all at the limit", "all at minus the limit",
         "all below", "both signs"],
)  # fmt: skip
def test_dead_gains_are_a_note(gamma, severity):
    findings = found(rule5, bn(mean=0.1, var=0.9, gamma=gamma, n=100))
    assert [f.severity for f in findings] == ([severity] if severity else [])


def test_prunable_share_is_told():
    (finding,) = found(rule5, bn(mean=0.1, var=0.9, gamma=np.array([0.0, 1e-3, 1.0, 1.0])))
    assert finding.tensor == "bn.weight"
    assert finding.message.startswith("2 of 4 gains (50%) are below 0.01, 1 exactly zero")
    assert finding.measured == {"channels": 4, "dead": 2, "share": 0.5}


@pytest.mark.parametrize(("var", "severity"), [(1.0, NOTE), (0.9, WARNING)])
def test_zero_gains_are_the_start_of_a_branch_or_its_end(var, severity):
    assert told(rule5, bn(var=var, gamma=0.0)) == {("bn.weight", severity)}


# BN006

rule6 = StaleRunningStats()


@pytest.mark.parametrize(
    ("more", "severity"),
    [
        ({"count": 184}, ERROR),
        ({"count": 1, "gamma": 1.0, "beta": 0.0}, ERROR),
        ({"count": 0, "gamma": 1.0, "beta": 0.0}, None),
        ({"count": 0}, None),
        ({"count": 0, "beta": 0.1}, NOTE),
        ({"beta": 0.1}, WARNING),
        ({"beta": 0.0}, None),
        ({"gamma": 0.9}, WARNING),
        ({"gamma": 1.0}, None),
        ({"gamma": 0.0}, None),
        ({"gamma": 0.9, "beta": 0.0}, None),
        ({}, None),
    ],
)
def test_statistics_at_their_start_weigh_by_what_shows_training(more, severity):
    expected = {("bn.running_var", severity)} if severity else set()
    assert told(rule6, bn(**more)) == expected


@pytest.mark.parametrize(("count", "severity"), [(None, WARNING), (0, None), (5, ERROR)])
def test_siblings_show_training_where_a_layer_has_no_parameters(count, severity):
    arrays = bn("a", 0.1, 0.9) | bn("b", count=count)
    assert told(rule6, arrays) == ({("b.running_var", severity)} if severity else set())


def test_one_statistic_at_its_start_is_a_warning_where_batches_were_counted():
    assert told(rule6, bn(mean=0.0, var=0.9, count=3)) == {("bn.running_mean", WARNING)}
    assert told(rule6, bn(mean=0.1, var=1.0, count=3)) == {("bn.running_var", WARNING)}
    assert not told(rule6, bn(mean=0.1, var=1.0, count=0))
    assert not told(rule6, bn(mean=0.1, var=1.0))
    assert not told(rule6, bn(mean=one(4, 0.1, 0.0), var=one(4, 0.9), count=3))
    (finding,) = found(rule6, bn(mean=0.0, var=0.9, count=3))
    assert "running mean is exactly 0 in all 4 channels" in finding.message
    assert finding.measured == {"channels": 4, "batches": 3}


def test_stale_layer_is_told_with_its_batches():
    (finding,) = found(rule6, bn(count=184))
    assert "all 4 channels, although the layer saw 184 batches" in finding.message
    assert finding.measured == {"channels": 4, "batches": 184}
    (finding,) = found(rule6, bn(n=1, beta=0.5))
    assert "the only channel" in finding.message
    assert finding.measured["batches"] == -1


# BN007

rule7 = MissingRunningStats()


def without(arrays, *parts):
    return {name: value for name, value in arrays.items() if name.rpartition(".")[2] not in parts}


@pytest.mark.parametrize("gone", ["running_mean", "running_var"])
@pytest.mark.parametrize("kept", [{"gamma": 1.0}, {"beta": 0.0}, {"count": 3}])
def test_half_of_the_statistics_is_an_error(gone, kept):
    other = {"running_mean": "bn.running_var", "running_var": "bn.running_mean"}[gone]
    assert told(rule7, without(bn(**kept), gone)) == {(other, ERROR)}
    assert not told(rule7, without(bn(), gone))


def test_counter_alone_shows_a_batchnorm():
    arrays = without(bn(gamma=1.0, beta=0.0, count=3), "running_mean", "running_var")
    assert told(rule7, arrays) == {("bn.num_batches_tracked", ERROR)}
    assert found(rule7, arrays)[0].measured == {"channels": 4, "missing": 2}


@pytest.mark.parametrize(("siblings", "warns"), [(2, False), (3, True)])
@pytest.mark.parametrize("word", ["bn1", "batch_norm", "norm"])
def test_name_of_siblings_shows_a_batchnorm(siblings, warns, word):
    arrays = {}
    for i in range(siblings):
        arrays |= bn(f"layer{i}.{word}", 0.1, 0.9, 1.0, 0.0)
    arrays |= without(bn(f"last.{word}", gamma=1.0, beta=0.0), "running_mean", "running_var")
    named = warns and word != "norm"
    assert all(f.measured == {"channels": 4, "missing": 2} for f in found(rule7, arrays))
    assert told(rule7, arrays) == ({(f"last.{word}.weight", WARNING)} if named else set())


@pytest.mark.parametrize(
    ("name", "settings", "alarm"),
    [
        ("BatchNorm2d", {"track_running_stats": True}, True),
        ("BatchNorm2d", {"track_running_stats": False}, False),
        ("BatchNorm2d", {}, False),
        ("LayerNorm", {"track_running_stats": True}, False),
    ],
)
def test_stored_class_tells_whether_statistics_are_missing(name, settings, alarm):
    arrays = {}
    for i in range(3):
        arrays |= bn(f"layer{i}.bn", 0.1, 0.9, 1.0, 0.0)
    arrays |= {"last.bn.weight": np.ones(4), "last.bn.bias": np.zeros(4)}
    config = LayerConfig(name="last.bn", class_name=name, settings=settings)
    expected = {("last.bn.weight", ERROR)} if alarm else set()
    assert told(rule7, arrays, layers=[config]) == expected
    assert all(f.measured["missing"] == 2 for f in found(rule7, arrays, layers=[config]))


def test_counter_beside_a_matrix_is_no_batchnorm():
    arrays = {
        "x.weight": np.ones((2, 2)),
        "x.bias": np.zeros(2),
        "x.num_batches_tracked": np.array(3),
    }
    assert not found(rule7, arrays)


# BN008

rule8 = HalfPrecisionRunningStats()


def half(largest, dtype=np.float16, name="bn"):
    var = np.array([1.0, largest]).astype(dtype)
    return {f"{name}.running_mean": np.zeros(2, dtype), f"{name}.running_var": var}


@pytest.mark.parametrize(
    ("largest", "severity"), [(16376.0, NOTE), (16384.0, WARNING), (65504.0, WARNING)]
)
def test_float16_is_a_note_until_it_ends(largest, severity):
    assert told(rule8, half(largest)) == {("bn.running_var", severity)}


def test_statistics_without_a_finite_value_have_no_largest():
    arrays = {"bn.running_mean": np.zeros(2, "f2"), "bn.running_var": np.full(2, NAN, "f2")}
    assert found(rule8, arrays)[0].measured["largest"] == 0


def test_layer_near_the_end_is_told_by_itself():
    first, second = found(rule8, half(6e4, name="a") | half(1.0, name="b"))
    assert "variances up to 6e+04 in float16" in first.message
    assert (first.measured["layers"], second.measured["layers"]) == (1, 1)
    assert second.measured["channels"] == 2


def test_layers_in_one_narrow_type_are_one_note():
    arrays = half(1.0, name="a") | half(9.0, name="b") | half(2.0, ml_dtypes.bfloat16, "c")
    first, second = found(rule8, arrays)
    assert (first.tensor, second.tensor) == ("a.running_var", "c.running_var")
    assert "this and 1 more layers have variances in float16, the largest is 9" in first.message
    assert "this layer has variances in bfloat16, the largest is 2" in second.message
    assert (first.measured["layers"], second.measured["layers"]) == (2, 1)


@pytest.mark.parametrize(
    ("mean", "var", "to", "names"),
    [
        (0.0, 65519.0, "float16", set()),
        (0.0, 65520.0, "float16", {"bn.running_var"}),
        (-65520.0, 1.0, "float16", {"bn.running_mean"}),
        (0.0, 1e6, "", set()),
        (0.0, 1e6, "bfloat16", set()),
        (0.0, 465.0, "float8_e4m3fn", {"bn.running_var"}),
    ],
)
def test_cast_that_statistics_do_not_survive_is_an_error(mean, var, to, names):
    findings = found(rule8, bn(mean=mean, var=var), cast_to=to)
    assert {(f.tensor, f.severity) for f in findings} == {(name, ERROR) for name in names}
    assert all(f.measured["keep_float32"] for f in findings)
    assert all(f.measured["largest"] == max(var, -mean) for f in findings)


# BN009

rule9 = DuplicatedRunningStats()
VAR = np.array([1.0, 2.0, 3.0, 5.0])
MEAN = np.array([0.1, -0.2, 0.3, 0.4])
GAMMA = np.array([0.9, 1.1, 1.2, 0.8])


@pytest.mark.parametrize("part", ["mean", "gamma", "beta"])
def test_variance_that_is_a_copy_is_an_error(part):
    arrays = bn(**{"mean": MEAN, "var": VAR, "gamma": GAMMA, "beta": -MEAN, part: VAR})
    assert told(rule9, arrays) == {("bn.running_var", ERROR)}
    (finding,) = found(rule9, arrays)
    assert finding.measured["copy_of"] == {"mean": "mean", "gamma": "gain", "beta": "offset"}[part]


def test_vectors_that_differ_or_are_constant_are_no_copies():
    assert not found(rule9, bn(mean=VAR[::-1].copy(), var=VAR))  # the same statistics
    assert not found(rule9, bn(mean=1.0, var=1.0, gamma=1.0))
    assert not found(rule9, bn(mean=np.array([2.0]), var=np.array([2.0]), n=1))


def test_variance_that_copies_twice_is_told_once():
    assert len(found(rule9, bn(mean=VAR, var=VAR, gamma=VAR))) == 1


def pair(gamma, beta, squares=(1.0, 2.0), mean=MEAN, var=VAR):
    """Two layers with statistics that may be the same, gains and offsets of the second as given."""
    first = bn("bn1", MEAN, VAR, GAMMA, -MEAN)
    second = bn("bn2", mean, var, gamma, beta)
    if squares is None:
        return first | second
    return conv("conv1", squares[0]) | first | conv("conv2", squares[1]) | second


OTHER = np.array([1.2, 0.8, 0.9, 1.3])


@pytest.mark.parametrize(
    ("arrays", "severity"),
    [
        (pair(OTHER, MEAN), ERROR),
        (pair(GAMMA * 1.01, MEAN), ERROR),
        (pair(GAMMA * 1.01, -MEAN * 1.1), None),
        (pair(GAMMA * 1.01, None), None),
        (pair(OTHER, None), ERROR),
        (pair(None, None), None),
        (pair(OTHER, MEAN, squares=(1.0, 1.0)), None),
        (pair(OTHER, MEAN, squares=None), None),
        (pair(OTHER, MEAN, mean=MEAN[::-1].copy()), None),
        (pair(OTHER, MEAN, var=VAR[::-1].copy()), None),
        (pair(OTHER, MEAN, var=VAR * UP), None),
    ],
    ids=["other gains and offsets", "other offsets", "a copy that trained on",
         "a copy without offsets", "other gains, no offsets", "nothing to tell by", "same kernel",
         "kernels unknown", "another mean", "another variance", "nearly the same"],
)  # fmt: skip
def test_statistics_of_another_layer_are_an_error_unless_all_of_it_is(arrays, severity):
    assert told(rule9, arrays) == ({("bn2.running_var", severity)} if severity else set())


def test_two_channels_are_enough_for_a_copy():
    two = np.array([1.0, 2.0])
    assert told(rule9, bn(mean=two, var=two, n=2)) == {("bn.running_var", ERROR)}


def test_copies_of_nearly_the_same_values_count():
    small = VAR / 10
    arrays = pair(OTHER, MEAN, var=small) | {"bn1.running_var": small}
    assert told(rule9, arrays) == {("bn2.running_var", ERROR)}


def test_untrained_statistics_are_no_copies():
    arrays = pair(OTHER, MEAN, mean=0.0, var=1.0)
    arrays |= {"bn1.running_mean": np.zeros(4), "bn1.running_var": np.ones(4)}
    assert not found(rule9, arrays)


def test_each_further_copy_is_named():
    arrays = pair(OTHER, MEAN) | conv("conv3", 3.0) | bn("bn3", MEAN, VAR, OTHER[::-1].copy(), MEAN)
    first, second = found(rule9, arrays)
    assert (first.tensor, second.tensor) == ("bn2.running_var", "bn3.running_var")
    assert "are those of 'bn1', which another kernel feeds" in second.message
    assert second.measured["copy_of"] == "bn1"


def test_layer_whose_kernel_is_not_known_is_a_warning():
    arrays, layers = summed(1.0)
    arrays |= {"last/moving_mean": MEAN, "last/moving_variance": VAR, "last/gamma": OTHER}
    arrays |= {"b2/moving_mean": MEAN, "b2/moving_variance": VAR, "b2/gamma": GAMMA}
    assert told(rule9, arrays, layers=layers) == {("last/moving_variance", WARNING)}
    assert found(rule9, arrays, layers=layers)[0].message.endswith("are those of 'b2'")


def test_correlation_that_counts_as_a_copy():
    turn = np.array([1.0, -1.0, -1.0, 1.0])  # orthogonal to the gains' deviations
    deviation = np.array([1.0, 1.0, -1.0, -1.0])
    for share, severity in ((0.69, ERROR), (0.71, None)):
        gamma = 1 + share * deviation + np.sqrt(1 - share**2) * turn
        arrays = pair(gamma, None)
        arrays["bn1.weight"] = 1 + deviation
        assert told(rule9, arrays) == ({("bn2.running_var", severity)} if severity else set())


def test_averaged_copy_may_share_statistics():
    arrays = {f"{prefix}.{name}": value for prefix in ("model", "ema")
              for name, value in pair(OTHER, MEAN, var=VAR * UP).items()}  # fmt: skip
    arrays["ema.bn1.weight"] = OTHER
    roles = {name: name.split(".")[0] for name in arrays}
    assert not found(rule9, arrays, roles)


# BN010

rule10 = ExplodedGain()


@pytest.mark.parametrize(
    ("gamma", "var", "severity"),
    [
        (rule10.learned, 1.0, None),
        (rule10.learned * UP, 1.0, WARNING),
        (-rule10.learned * UP, 1.0, WARNING),
        (rule10.certain, 1.0, WARNING),
        (rule10.certain * UP, 1.0, ERROR),
        (rule10.effective * np.sqrt(2e-5 + EPS) * DOWN, 2e-5, None),
        (rule10.effective * np.sqrt(2e-5 + EPS) * UP, 2e-5, WARNING),
        (rule10.effective * np.sqrt(2e-5 + EPS) * UP, EPS, None),
        (49.0, 0.0, None),
        (-1e9, 1e30, ERROR),
    ],
)
def test_gain_is_judged_by_itself_and_with_its_variance(gamma, var, severity):
    arrays = bn(var=one(4, var), gamma=one(4, gamma))
    assert told(rule10, arrays) == ({("bn.weight", severity)} if severity else set())


def test_gain_is_told_with_its_channels():
    (finding,) = found(rule10, bn(gamma=np.array([1.0, 100.0, 1, 1])))
    assert finding.message.startswith("1 of 4 gains (1) reach 100, where trained ones are")
    (finding,) = found(rule10, bn(gamma=np.array([1.0, 1e5, 1, 1])))
    assert "reach 100,000 and amplify up to 100,000 times" in finding.message
    assert finding.measured["exploded"] == 1


def test_zero_variance_is_no_negative_one():
    (finding,) = found(NegativeRunningVar(), bn(var=np.array([0.0, -1.0, 1.0, 0.5])))
    assert "1 of 4 channels are below zero (1)" in finding.message
    assert not found(NegativeRunningVar(), bn(var=0.0))


def test_each_gain_is_judged_for_itself():
    config = LayerConfig(name="bn", class_name="BatchNorm2d", epsilon=0.0)
    gamma, var = np.array([50.0, 51.0, 1.0, 1.0]), np.full(4, 1.0)
    assert found(rule10, bn(gamma=gamma, var=var))[0].measured["exploded"] == 1
    gamma, var = np.array([46.875, 49.0, 1.0, 1.0]), np.full(4, 1 / 4096)  # times 64
    assert found(rule10, bn(gamma=gamma, var=var), layers=[config])[0].measured["exploded"] == 1


def test_gain_without_statistics_is_judged_by_itself():
    arrays = without(bn(gamma=100.0, count=1), "running_var")
    assert told(rule10, arrays) == {("bn.weight", WARNING)}


# all of them

EVERY = (NonfiniteRunningStats, NegativeRunningVar, ExplodedRunningVar, CollapsedRunningVar,
         DeadGammas, StaleRunningStats, MissingRunningStats, HalfPrecisionRunningStats,
         DuplicatedRunningStats, ExplodedGain)  # fmt: skip


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: rule.code)
@pytest.mark.parametrize(
    "arrays",
    [
        {"bn.running_mean": np.zeros(0), "bn.running_var": np.zeros(0), "bn.weight": np.zeros(0)},
        {"bn.running_mean": np.zeros(2, np.complex64), "bn.running_var": np.zeros(2, np.complex64)},
        {"bn.running_mean": np.zeros(2, np.int8), "bn.running_var": np.full(2, -5, np.int8)},
        {"bn.running_mean": np.zeros((1, 4, 1, 1)), "bn.running_var": np.full((1, 4, 1, 1), 0.9)},
        {"bn.running_mean": np.zeros(3), "bn.running_var": np.full(4, 0.9), "bn.weight": np.ones(5)},
        {"bn.running_mean": np.zeros(()), "bn.running_var": np.full((), 0.9)},
        {"bn.running_mean": np.full(2, -1e308), "bn.running_var": np.full(2, NAN),
         "bn.weight": np.full(2, NAN), "bn.bias": np.full(2, INF)},
        bn("frozen_bn", 0.3, 0.9, 1.1, 0.1) | bn("instance_norm", 0.3, 0.9, count=3),
    ],
    ids=["empty", "complex", "integers", "four dimensions", "lengths that differ", "a scalar",
         "nothing finite", "frozen and instance norms"],
)  # fmt: skip
def test_odd_layers_crash_no_rule_and_raise_no_alarm(rule, arrays):
    findings = found(rule(), arrays)
    assert all(f.code in ("BN001", "BN007") for f in findings)


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: rule.code)
@pytest.mark.parametrize("epsilon", [0.0, -1.0, NAN, INF, 1e300])
def test_hostile_epsilon_crashes_no_rule(rule, epsilon):
    config = LayerConfig(name="bn5", class_name="BatchNorm2d", epsilon=epsilon)
    for var in (np.array([0.0, 1.0, 2.0, 1e9]), np.array([-1.0, -1e-9, 0.5, 5e-324])):
        for finding in found(rule(), net(var, gamma=1.1, mean=3.0), layers=[config]):
            assert finding.message


def test_long_lists_of_channels_are_cut():
    assert channel_list(np.ones(12, np.bool_)) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    assert channel_list(np.ones(8, np.bool_)) == "0, 1, 2, 3, 4, 5, 6, 7"


@pytest.mark.parametrize(
    ("size", "read"), [(0, False), (1, True), (2**20, True), (2**20 + 1, False)]
)
def test_vectors_of_a_sensible_length_are_read(size, read):
    ctx = context({"bn.running_var": np.zeros(size, np.float32)})
    assert (per_channel(ctx, ctx.table["bn.running_var"]) is not None) == read


def test_numbers_are_written_for_people():
    told_ = [short(x) for x in (99.4, 100, 123456.7, 999_999, 1e6, -250)]
    assert told_ == ["99", "100", "123,457", "999,999", "1e+06", "-250"]


def test_vector_is_read_once():
    ctx = context(bn(var=VAR))
    norm = norms_of(ctx).norm(0)
    assert norms_of(ctx).norm(0) is norm
    assert norm.var is norm.var


PINNED = {
    "BN002": {"rounding": 0.01, "amplified": 0.75},
    "BN003": {"limit": 30, "features": 50, "certain": 500, "apart": 40, "beyond": 1e5,
              "guessed": 10, "carried": 10, "spike": 2000, "spike_apart": 3000, "spike_certain": 1e5,
              "pixels": 100, "raw": 2e5, "impossible": 1e20, "columns": 65535.0**2,
              "pruned": 1e-3, "start": 1.0, "alone": 1000},
    "BN004": {"starved": 1e-4, "deviations": 30, "constant": 1e-3, "first": 3e-5, "inert": 1.0,
              "most": 0.99, "many": 0.25, "gain": 10},
    "BN005": {"dead": 1e-2, "share": 0.1},
    "BN008": {"near": 0.25},
    "BN009": {"alike": 0.7},
    "BN010": {"learned": 50, "certain": 1e4, "effective": 3000},
}  # fmt: skip


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: rule.code)
def test_thresholds_are_those_that_were_measured(rule):
    """Whoever changes one measures the healthy files and `benchmarks.detection` again."""
    values = {field.name: field.default for field in dataclasses.fields(rule)}
    assert values == PINNED.get(rule.code, {})
