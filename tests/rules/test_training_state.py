"""Training-state rules beyond their cases: every limit from both sides, every layout by name."""

import dataclasses
import math

import numpy as np
import pytest

from ckptdoctor.diagnose import diagnose
from ckptdoctor.findings import Severity
from ckptdoctor.measure.scan import measure
from ckptdoctor.rules import RULES
from ckptdoctor.rules.base import Context
from ckptdoctor.rules.ema_copies import ema_copies
from ckptdoctor.rules.nf001_nan_values import NanValues
from ckptdoctor.rules.nf002_inf_values import InfValues
from ckptdoctor.rules.nf003_masked_infinities import MaskedInfinities
from ckptdoctor.rules.optimizer_slots import (
    is_second_moment,
    model_parameters,
    owners_of,
    parameters_of,
    second_moments,
    shapes_of,
)
from ckptdoctor.rules.training_state import COMPLETE_BELOW, groups_of
from ckptdoctor.rules.ts001_nonfinite_optimizer_state import NonfiniteOptimizerState
from ckptdoctor.rules.ts002_negative_second_moment import NegativeSecondMoment
from ckptdoctor.rules.ts003_extreme_learning_rate import ExtremeLearningRate
from ckptdoctor.rules.ts004_epsilon_below_resolution import EpsilonBelowResolution
from ckptdoctor.rules.ts005_collapsed_loss_scale import CollapsedLossScale
from ckptdoctor.rules.ts006_diverged_ema_copy import DivergedEmaCopy
from ckptdoctor.rules.ts007_optimizer_model_mismatch import OptimizerModelMismatch
from ckptdoctor.rules.ts008_gradient_depth_profile import GradientDepthProfile
from ckptdoctor.rules.ts009_nonfinite_loop_state import NonfiniteLoopState
from ckptdoctor.sources import Extent
from ckptdoctor.tensors import TensorInfo, TensorTable

NAN, INF = float("nan"), float("inf")
OPT = "optimizer.param_groups.0."
TS = [rule for rule in RULES if rule.code.startswith("TS")]


def role(name):
    if name.startswith("optimizer"):
        return "optimizer"
    if name.startswith(("ema", "model_ema", "g_ema", "state_dict.model_ema")):
        return "ema"
    return "training" if name.startswith(("logs", "callbacks")) else "model"


def table_of(tensors=(), scalars=None):
    tensors = dict(tensors)
    return TensorTable.from_arrays(tensors, {n: role(n) for n in tensors}, scalars=scalars)


def context_of(tensors=(), scalars=None):
    table = table_of(tensors, scalars)
    return Context(table, measure(table).stats)


def found(rule, tensors=(), scalars=None):
    return list(rule.check(context_of(tensors, scalars)))


def zeros(*shape):
    return np.zeros(shape, np.float32)


# limits from both sides


def test_limits_are_those_that_were_measured():
    limits = {
        f"{rule.code}.{field.name}": field.default
        for rule in TS
        for field in dataclasses.fields(rule)
    }
    assert limits == {
        "TS003.adaptive_warning": 1, "TS003.adaptive_error": 10, "TS003.plain_warning": 100,
        "TS003.plain_error": 1000, "TS004.ratio": 1, "TS005.smallest": 1, "TS006.ratio": 100,
        "TS006.floor": 10, "TS007.matching": 0.5, "TS008.span": 1000, "TS008.order": 0.8,
        "TS008.layers": 6,
    }  # fmt: skip


def rate(value, **settings):
    return {OPT + name: number for name, number in {"lr": value, **settings}.items()}


ADAM = {"betas.0": 0.9}
LIMITS = ExtremeLearningRate()
BELOW = math.nextafter


@pytest.mark.parametrize(
    ("value", "settings", "severity"),
    [
        (LIMITS.adaptive_warning, ADAM, None),
        (BELOW(LIMITS.adaptive_warning, 2), ADAM, Severity.WARNING),
        (BELOW(LIMITS.adaptive_error, 0), ADAM, Severity.WARNING),
        (LIMITS.adaptive_error, ADAM, Severity.ERROR),
        (BELOW(LIMITS.plain_warning, 0), {}, None),
        (LIMITS.plain_warning, {}, Severity.WARNING),
        (BELOW(LIMITS.plain_error, 0), {}, Severity.WARNING),
        (LIMITS.plain_error, {}, Severity.ERROR),
        (0.0, {}, None),
        (-0.0, ADAM, None),
        (-5e-324, {}, Severity.ERROR),
        (-INF, {}, Severity.ERROR),
        (10**400, {}, Severity.ERROR),
    ],
)
def test_learning_rates_are_judged_at_their_limits(value, settings, severity):
    severities = [f.severity for f in found(LIMITS, scalars=rate(value, **settings))]
    assert severities == ([] if severity is None else [severity])


@pytest.mark.parametrize("name", ["betas.0", "beta_1", "beta_2", "rho", "alpha"])
def test_settings_that_tell_a_normalising_optimizer(name):
    (finding,) = found(LIMITS, scalars=rate(5.0, **{name: 0.9}))
    assert finding.severity is Severity.WARNING
    assert found(LIMITS, scalars=rate(5.0, d=1e-6, **{name: 0.9})) == []


def test_learning_rate_tells_how_far_it_ran():
    (finding,) = found(LIMITS, scalars=rate(5e7, initial_lr=0.05))
    assert finding.message == "the learning rate is 5e+07, 1e+09 times the initial 0.05"
    assert finding.tensor == OPT + "lr"
    for start in (0.0, 5e7, NAN, 1e9):
        (finding,) = found(LIMITS, scalars=rate(5e7, initial_lr=start))
        assert "initial" not in finding.message
    (finding,) = found(LIMITS, scalars=rate(INF, initial_lr=0.05))
    assert finding.message == "the learning rate is inf"


@pytest.mark.parametrize(
    ("numbered", "sick"),
    [
        ({0: np.int64(3), 1: np.float32(1e4), 2: zeros(2)}, True),
        ({0: np.int64(3), 1: np.float32(1e4)}, True),
        ({0: np.int64(3), 1: np.float32(0.1), 2: zeros(2)}, False),
        ({0: np.int64(3), 1: np.float32(-1.0), 2: np.float32(1.0), 3: zeros(2)}, False),
        ({0: np.float32(3), 1: np.float32(1e4), 2: zeros(2)}, False),
        ({0: np.int64(3), 1: np.float32([1e4, 1e4]), 2: zeros(2)}, False),
    ],
    ids=["keras-3", "no-slots", "usual", "slots-of-a-scalar", "no-counter", "a-vector"],
)
def test_numbered_learning_rate_is_the_scalar_after_the_counter(numbered, sick):
    tensors = {f"optimizer/vars/{n}": np.asarray(v) for n, v in numbered.items()}
    names = [f.tensor for f in found(LIMITS, tensors)]
    assert names == (["optimizer/vars/1"] if sick else [])


def test_stored_rate_of_adam_has_adams_limits():
    tensors = {"optimizer_weights/adam/learning_rate": np.float32(5)}
    assert found(LIMITS, tensors) == []
    tensors["optimizer_weights/adam/fc_kernel_velocity"] = zeros(2)
    (finding,) = found(LIMITS, tensors)
    assert finding.severity is Severity.WARNING
    assert found(LIMITS, {"optimizer_weights/adam/learning_rate": np.float32([1e9, 1e9])}) == []


@pytest.mark.parametrize(
    ("scale", "severity"),
    [
        (CollapsedLossScale().smallest, None),
        (BELOW(CollapsedLossScale().smallest, 0), Severity.WARNING),
        (5e-324, Severity.WARNING),
        (0.0, Severity.ERROR),
        (-1.0, Severity.ERROR),
        (NAN, Severity.ERROR),
        (INF, Severity.ERROR),
        (1e300, None),
    ],
)
def test_loss_scales_are_judged_at_their_limits(scale, severity):
    findings = found(CollapsedLossScale(), scalars={"amp.loss_scaler0.loss_scale": scale})
    assert [f.severity for f in findings] == ([] if severity is None else [severity])


def test_loss_scale_says_why():
    limits = {0.0: "not above 0", -1.0: "not above 0", NAN: "not finite", INF: "not finite"}
    for scale, limit in limits.items():
        (finding,) = found(CollapsedLossScale(), scalars={"x.cur_scale": scale})
        assert finding.limit == limit
    numbers = {"scaler.scale": 0.0, "scaler.growth_factor": 2.0, "scaler._growth_tracker": 7}
    (finding,) = found(CollapsedLossScale(), scalars=numbers)
    assert finding.message == "the loss scale is 0; 7 steps since the last overflow"
    assert finding.role == "scaler"
    (finding,) = found(CollapsedLossScale(), scalars={"optimizer.loss_scaler.cur_scale": 0})
    assert finding.role == "optimizer"


@pytest.mark.parametrize(
    ("name", "sick"),
    [
        ("optimizer.grad_scaler.scale", True),
        ("optimizer.state.0.scale", False),
        ("optimizer.grad_scaler.fp8.scale", False),
        ("optimizer.grad_scaler.growth_factor", False),
    ],
)
def test_only_a_scalers_own_tensor_is_a_loss_scale(name, sick):
    assert len(found(CollapsedLossScale(), {name: np.float32(0)})) == sick


@pytest.mark.parametrize(
    ("kinds", "sick"),
    [
        ([np.int64, np.float32] * 3, True),
        ([np.int64, np.float32] * 2, False),
        ([np.float32, np.int64] * 3, False),
    ],
)
def test_numbered_loss_scale_is_known_by_its_neighbours(kinds, sick):
    tensors = {f"optimizer/vars/{n}": np.asarray(kind(0)) for n, kind in enumerate(kinds)}
    names = [f.tensor for f in found(CollapsedLossScale(), tensors)]
    assert names == (["optimizer/vars/3"] if sick else [])


@pytest.mark.parametrize("factor", [0.999, 1.0])
def test_epsilon_is_judged_at_the_smallest_half(factor):
    rule = EpsilonBelowResolution()
    epsilon = factor * rule.ratio * 2.0**-24
    tensors = {"optimizer.state.0.exp_avg_sq": np.float16([0, 1, 0])}
    findings = found(rule, tensors, {OPT + "eps": epsilon})
    assert len(findings) == (factor < 1)
    for finding in findings:
        assert (finding.measured["zeros"], finding.measured["elements"]) == (2, 3)


def test_epsilon_is_that_of_the_parameters_group():
    tensors = {"optimizer.state.7.exp_avg_sq": np.float16([0])}
    numbers = {OPT + "eps": 1e-8, OPT + "params.0": 7}
    assert len(found(EpsilonBelowResolution(), tensors, numbers)) == 1
    assert found(EpsilonBelowResolution(), tensors, numbers | {OPT + "params.0": 6}) == []
    elsewhere = {name.replace("optimizer", "optimizer_2"): n for name, n in numbers.items()}
    assert found(EpsilonBelowResolution(), tensors, elsewhere) == []


def test_keras_epsilon_is_compared_with_all_moments():
    config = {"training_config/optimizer_config/config/epsilon": 1e-8}
    name = "optimizer_weights/adam/fc_kernel_velocity"
    assert len(found(EpsilonBelowResolution(), {name: np.float16([0])}, config)) == 1
    assert found(EpsilonBelowResolution(), {name: np.float32([0])}, config) == []
    torch = {"optimizer.state.0.exp_avg_sq": np.float16([0])}
    assert found(EpsilonBelowResolution(), torch, config) == []
    assert found(EpsilonBelowResolution(), {name: np.float16([0])}, {OPT + "eps": 1e-8}) == []
    momentum = name.replace("velocity", "momentum")
    assert found(EpsilonBelowResolution(), {momentum: np.float16([0])}, config) == []


@pytest.mark.parametrize(
    ("factor", "size", "sick"),
    [(1.0, 1.0, True), (0.999, 1.0, False), (1.0, 0.999, False), (1.0, 1e20, True)],
    ids=["at-both", "below-ratio", "below-floor", "far-above"],
)
def test_copies_are_apart_from_ratio_and_floor(factor, size, sick):
    rule = DivergedEmaCopy()
    high = rule.floor * size
    tensors = {
        "model.fc.weight": np.float64([[high / (factor * rule.ratio)] * 2]),
        "ema.fc.weight": np.float64([[high] * 2]),
    }
    assert [f.tensor for f in found(rule, tensors)] == (["ema.fc.weight"] if sick else [])
    vectors = {name: value[0] for name, value in tensors.items()}
    assert found(rule, vectors) == []
    balanced = {name: value * [[1, -1]] for name, value in tensors.items()}
    assert len(found(rule, balanced)) == sick


def gradients(*sizes):
    return {
        f"optimizer.state.{n}.exp_avg_sq": np.full((1, 2), 10.0 ** (2 * size))
        for n, size in enumerate(sizes)
    }


def test_depth_profile_begins_at_its_span():
    rule = GradientDepthProfile()
    span = math.log10(rule.span)
    at = [span * n / 6 for n in (0, 0, 1, 2, 3, 4, 6, 6)]
    (finding,) = found(rule, gradients(*(1.0001 * size for size in at)))
    assert "vanish" in finding.message
    assert finding.measured["layers"] == 8
    assert finding.measured["last"] == pytest.approx(rule.span, rel=0.01)
    assert found(rule, gradients(*(0.999 * size for size in at))) == []
    (finding,) = found(rule, gradients(*(1.0001 * size for size in at[::-1])))
    assert "explode" in finding.message


def test_depth_profile_needs_enough_layers_and_a_trend():
    rule = GradientDepthProfile()
    few = int(rule.layers)
    assert len(found(rule, gradients(*range(few)))) == 1
    assert found(rule, gradients(*range(few - 1))) == []
    dead = {**gradients(*range(few)), "optimizer.state.0.exp_avg_sq": zeros(1, 2)}
    assert found(rule, dead) == []
    assert found(rule, gradients(0, 9, -9, 9, -9, 9, -9, 4)) == []
    vectors = {name: value[0] for name, value in gradients(*range(8)).items()}
    assert found(rule, vectors) == []


def test_depth_profile_begins_at_its_correlation():
    rule = GradientDepthProfile()

    def trend(step):  # two levels with a bump in between, which weakens the trend
        return np.array([0, 0, 1 + step, 1 - step, 3 + step, 3 - step, 4, 4.0])

    places = np.arange(8)
    steps = [s for s in np.linspace(0, 8, 4001) if np.corrcoef(trend(s), places)[0, 1] >= 0.8]
    assert len(found(rule, gradients(*trend(steps[-1] - 0.002)))) == 1
    assert found(rule, gradients(*trend(steps[-1] + 0.004))) == []


def test_depth_is_the_parameters_number_not_the_files_order():
    sizes = range(12)
    tensors = gradients(*sizes)
    by_name = dict(sorted(tensors.items()))
    assert len(found(GradientDepthProfile(), by_name)) == 1
    (finding,) = found(GradientDepthProfile(), by_name)
    assert finding.tensor == "optimizer.state.0.exp_avg_sq"


def test_depth_profile_tells_the_median_of_a_quarter():
    (finding,) = found(GradientDepthProfile(), gradients(*range(0, -16, -2)))
    assert finding.measured["first"] == pytest.approx(0.1)
    assert finding.measured["last"] == pytest.approx(1e-13)
    assert finding.measured["correlation"] == pytest.approx(-1)
    (finding,) = found(GradientDepthProfile(), gradients(*range(6)))
    assert (finding.measured["first"], finding.measured["last"]) == pytest.approx((1, 1e5))


def test_depth_profile_keeps_optimizers_apart():
    one = gradients(*range(5))
    two = {name.replace("optimizer", "optimizer_2"): value for name, value in one.items()}
    assert found(GradientDepthProfile(), one | two) == []
    vars_ = {
        f"optimizer/{group}/{2 * n + k}": np.full((1, 2), k * 10.0**n - (1 - k))
        for group in ("a/vars", "b/vars")
        for n in range(5)
        for k in (0, 1)
    }
    assert found(GradientDepthProfile(), vars_) == []
    assert second_moments(context_of(vars_))[1] != []


def test_depth_profile_takes_addresses_in_file_order():
    tensors = {
        f"optimizer.state.{address}.exp_avg_sq": value
        for address, value in zip(
            range(10**9 + 8, 10**9, -1), gradients(*range(8)).values(), strict=True
        )
    }
    (finding,) = found(GradientDepthProfile(), tensors)
    assert "vanish" in finding.message
    assert found(GradientDepthProfile(), {"optimizer.exp_avg_sq": np.ones((1, 2))}) == []


# which tensors are second moments


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.state.0.exp_avg_sq", "optimizer.state.0.max_exp_avg_sq",
        "optimizer.state.0.square_avg", "optimizer.state.0.acc_delta", "optimizer.state.0.sum",
        "optimizer.state.0.exp_inf", "optimizer.state.0.exp_avg_sq_row",
        "optimizer.base_optimizer_state.0.exp_avg_sq",
        "optimizer_weights/adam/sequential_head_kernel_velocity",
        "optimizer_weights/adam/sequential_head_kernel_velocity_hat",
        "optimizer_weights/loss_scale_optimizer/adam_1/fc_kernel_velocity",
        "optimizer_weights/adagrad/fc_kernel_accumulator",
        "optimizer_weights/adadelta/fc_kernel_accumulated_delta_var",
        "optimizer_weights/adamax/fc_kernel_norm",
        "optimizer_weights/v/head/kernel:0", "optimizer_weights/Adam/v/head/kernel:0",
        "optimizer_weights/Adam/v/kernel:0", "optimizer_weights/v/v/kernel:0", "optimizer_weights/RMSprop/velocity/head/kernel:0",
        "optimizer_weights/Adafactor/r/head/kernel:0",
        "optimizer_weights/Adam/head/kernel/v:0", "optimizer_weights/Adam/v/kernel/v:0",
        "optimizer_weights/cond_1/Adam/v/kernel/v:0", "optimizer_weights/Adam/head/kernel/vhat:0",
        "optimizer_weights/RMSprop/head/kernel/rms:0",
        "optimizer_weights/Adadelta/head/kernel/accum_grad:0",
    ],
)  # fmt: skip
def test_second_moments_of_every_layout_are_known(name):
    path = tuple(name.split("/")) if "/" in name else tuple(name.split("."))
    assert is_second_moment(TensorInfo(name, path, "float32", (2,), "optimizer"))


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.state.0.exp_avg", "optimizer.state.0.momentum_buffer", "optimizer.history.sum",
        "sum", "optimizer_weights",
        "optimizer_weights/adam/fc_kernel_momentum", "optimizer_weights/lion/fc_norm_momentum",
        "optimizer_weights/ftrl/fc_kernel_linear",
        "optimizer_weights/rm_sprop/fc_kernel_average_gradient",
        "optimizer_weights/m/head/kernel:0", "optimizer_weights/m/v/kernel:0",
        "optimizer_weights/m/attn/v:0", "optimizer_weights/Adam/m/attn/v:0",
        "optimizer_weights/m/my_norm", "optimizer_weights/Adam/v/kernel/m:0",
        "optimizer_weights/cond_1/Adam/v/kernel/m:0", "optimizer_weights/SGD/v/kernel/momentum:0",
        "optimizer_weights/RMSprop/head/kernel/mg:0", "optimizer_weights/RMSprop/v/kernel/mg:0",
        "optimizer_weights/training/Adam/Variable_7:0", "state/v/fc/kernel",
    ],
)  # fmt: skip
def test_first_moments_are_never_taken_for_second_ones(name):
    path = tuple(name.split("/")) if "/" in name else tuple(name.split("."))
    assert not is_second_moment(TensorInfo(name, path, "float32", (2,), "optimizer"))


def numbered(*lows):
    return {f"optimizer/vars/{n}": np.float32([low, 1]) for n, low in enumerate(lows)}


@pytest.mark.parametrize(
    ("tensors", "wanted"),
    [
        (numbered(-1, 0, -1, 0, -1, 0), 3),
        (numbered(-1, 0, -1, 0, 0, -1), 3),
        (numbered(-1, 0, -1, -1), 0),
        (numbered(-1, -1, -1, 0, -1, 0), 3),
        (numbered(0, 0, 0, 0), 0),
        (numbered(-1, 0, -1), 0),
        (numbered(-1, 0) | {"optimizer/vars/3": np.float32([[0, 1]])}, 0),
        (numbered(-1, NAN), 1),
    ],
    ids=["adam", "one-sick", "half-sick", "third-sick", "untrained", "odd", "shapes", "nan"],
)
def test_numbered_second_moments_are_the_second_of_pairs(tensors, wanted):
    assert len(second_moments(context_of(tensors))[1]) == wanted


def test_numbered_variables_are_ordered_as_numbers():
    tensors = {f"optimizer/vars/{n}": np.float32([-(1 - n % 2), 1]) for n in range(12)}
    infos = second_moments(context_of(dict(sorted(tensors.items()))))[1]
    assert [info.name for info in infos] == [f"optimizer/vars/{n}" for n in range(1, 12, 2)]


def test_negative_second_moment_names_its_place():
    tensors = {"optimizer.state.0.exp_avg_sq": np.float32([[1, 2], [3, -4]])}
    (finding,) = found(NegativeSecondMoment(), tensors)
    assert finding.message == "second moments go down to -4, the first negative one at [1, 1]"
    tensors = {"optimizer.state.0.exp_avg_sq": np.float32([0, -4])}
    (finding,) = found(NegativeSecondMoment(), tensors)
    assert finding.message == "second moments go down to -4, the first negative one at [1]"
    (finding,) = found(NegativeSecondMoment(), {"optimizer.state.0.exp_avg_sq": np.float32(-1)})
    assert finding.message == "second moments go down to -1"


def test_complex_second_moment_is_judged_by_both_parts():
    for value, count in ((1 + 1j, 0), (-1 + 1j, 1), (1 - 1j, 1)):
        tensors = {"optimizer.state.0.exp_avg_sq": np.complex64([1, value])}
        assert len(found(NegativeSecondMoment(), tensors)) == count


# whose state it is


def net(**slots):
    return {
        "model.a.weight": zeros(3, 3), "model.a.bias": zeros(3),
        "model.a.running_mean": zeros(3), "model.a.num_batches_tracked": np.int64(3),
        "model.b.weight": zeros(4, 3), "model.b.bias": zeros(4),
        **{f"optimizer.state.{n[1:]}.exp_avg": zeros(*shape) for n, shape in slots.items()},
    }  # fmt: skip


def test_owner_is_known_where_every_parameter_has_its_state():
    owners = owners_of(context_of(net(_0=(3, 3), _1=(3,), _2=(4, 3), _3=(4,))))
    names = ["model.a.weight", "model.a.bias", "model.b.weight", "model.b.bias"]
    assert owners == {("optimizer", str(n)): name for n, name in enumerate(names)}


def test_owner_is_known_by_its_place_among_listed_parameters():
    numbers = {OPT + f"params.{n}": key for n, key in enumerate([9, 7, 8, 5])}
    owners = owners_of(context_of(net(_8=(4, 3), _7=(3,)), numbers))
    assert owners == {("optimizer", "8"): "model.b.weight", ("optimizer", "7"): "model.a.bias"}


def test_owner_is_known_where_only_one_tensor_fits():
    owners = owners_of(context_of(net(_0=(4, 3), _1=(4,))))
    assert owners == {("optimizer", "0"): "model.b.weight", ("optimizer", "1"): "model.b.bias"}


def test_owner_is_unknown_where_two_tensors_fit():
    twice = {"model.c.weight": zeros(2, 2), "model.d.weight": zeros(2, 2)}
    slot = {"optimizer.state.0.exp_avg": zeros(2, 2)}
    assert owners_of(context_of(twice | slot)) == {}
    assert owners_of(context_of(twice | {"optimizer.state.0.exp_avg": zeros(9)})) == {}


def test_place_among_listed_parameters_tells_equal_shapes_apart():
    model = {f"model.{n}.weight": zeros(2, 2) for n in "abcd"}
    numbers = {OPT + f"params.{n}": n for n in range(4)}
    slot = {"optimizer.state.2.exp_avg": zeros(2, 2)}
    assert owners_of(context_of(model | slot, numbers)) == {("optimizer", "2"): "model.c.weight"}
    numbers[OPT + "params.4"] = 4
    assert owners_of(context_of(model | slot, numbers)) == {}


def test_truncated_lists_of_parameters_are_not_believed():
    numbers = {OPT + "params.0": 5} | {f"history.{n}": 1 for n in range(COMPLETE_BELOW - 2)}
    slot = {"optimizer.state.5.exp_avg": zeros(2), "optimizer.state.11.exp_avg": zeros(2)}
    assert parameters_of(context_of(slot, numbers), "optimizer") == (["5"], True)
    numbers["history.x"] = 1
    assert parameters_of(context_of(slot, numbers), "optimizer") == (["5", "11"], False)


def test_state_of_an_optimizer_saved_alone_has_no_path():
    table = TensorTable.from_arrays({"state.0.exp_avg": zeros(2)}, {"state.0.exp_avg": "optimizer"})
    context = Context(table, measure(table).stats)
    assert list(shapes_of(context)[""]) == ["0"]


def test_tied_weights_are_one_parameter():
    def tied(storage, length):
        table = table_of({"model.a": zeros(2), "model.b": zeros(2), "model.c": zeros(2)})
        infos = {
            name: info._replace(storage=storage, extent=Extent(None, 0, length[i]))
            for i, (name, info) in enumerate(table.infos.items())
        }
        table = dataclasses.replace(table, infos=infos)
        context = Context(table, measure(table_of({n: zeros(2) for n in infos})).stats)
        return [info.name for info in model_parameters(context)]

    assert tied("s", [8, 8, 4]) == ["model.a", "model.c"]
    assert tied("", [8, 8, 4]) == ["model.a", "model.b", "model.c"]


def test_nonfinite_state_names_its_parameter():
    tensors = net(_0=(3, 3), _1=(3,), _2=(4, 3), _3=(4,))
    tensors["optimizer.state.2.exp_avg"][1, 2] = INF
    (finding,) = found(NonfiniteOptimizerState(), tensors)
    assert finding.message == (
        "1 +Inf among 12 elements, the first at [1, 2]; by order and shape it belongs to "
        "'model.b.weight'"
    )
    assert finding.measured["parameter"] == "model.b.weight"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([NAN, 1.0], "1 NaN among 2 elements, the first at [0]"),
        ([NAN, -INF], "none of 2 elements is finite: 1 NaN and 1 -Inf"),
        (INF, "1 +Inf among 1 elements"),
    ],
)
def test_nonfinite_state_is_counted(values, message):
    (finding,) = found(NonfiniteOptimizerState(), {"optimizer.x": np.float32(values)})
    assert finding.message.replace("1 elements", "1 elements") == message


@pytest.mark.parametrize(
    ("name", "value", "sick"),
    [
        ("optimizer.param_groups.0.eps", INF, True),
        ("optimizer.param_groups.0.max_norm", INF, False),
        ("optimizer.param_groups.0.max_norm", NAN, True),
        ("optimizer.param_groups.0.lr", NAN, False),
        ("scaler.scale", NAN, False),
        ("scaler.growth_interval", INF, True),
        ("model.eps", NAN, False),
    ],
)
def test_numbers_that_are_faults_of_the_optimizer(name, value, sick):
    assert len(found(NonfiniteOptimizerState(), scalars={name: value})) == sick


# twins


SICK = np.float32([[1, NAN]])
FINE = np.float32([[1, 2]])


@pytest.mark.parametrize(
    ("model", "ema"),
    [
        ("model.fc.weight", "ema_state_dict.fc.weight"),
        ("fc.weight", "ema.fc.weight"),
        ("fc.weight", "ema.module.fc.weight"),
        ("model.model.0.fc.weight", "ema.model.0.fc.weight"),
        ("state_dict.model.net.fc.weight", "state_dict.model_ema.netfcweight"),
        ("model.fc.weight", "ema_state.shadow_params.0"),
        ("model.fc.weight", "ema.module.model.fc.weight"),
    ],
)
def test_copies_are_found_under_any_prefix(model, ema):
    assert dict(ema_copies(context_of({model: FINE, ema: FINE}))) == {ema: model}


def test_copies_prefer_the_container_of_the_same_name():
    tensors = {"d.fc.weight": FINE, "g.fc.weight": FINE, "g_ema.fc.weight": FINE}
    assert dict(ema_copies(context_of(tensors))) == {"g_ema.fc.weight": "g.fc.weight"}


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.fc.weight": FINE, "ema.fc.weight": FINE[:, :1]},
        {"model.fc.weight": FINE, "ema.head.weight": FINE},
        {"model.fc.weight": FINE, "ema.fc.weight": FINE, "ema.b": FINE, "ema.c": FINE},
        {"model.f.c": FINE, "model.fc": FINE, "model_ema.f_c": FINE},
        {"model.fc.weight": FINE, "ema.shadow_params.0": FINE, "ema.shadow_params.1": FINE},
        {"ema.fc.weight": FINE},
        {"xfc.weight": FINE, "ema.fc.weight": FINE},
    ],
    ids=["shape", "name", "share", "dots", "count", "alone", "middle-of-a-word"],
)
def test_copies_are_not_guessed(tensors):
    assert dict(ema_copies(context_of(tensors))) == {}


def test_half_of_the_tensors_are_enough_for_a_prefix():
    tensors = {"model.fc.weight": FINE, "ema.fc.weight": FINE, "ema.decay.x": FINE}
    assert len(ema_copies(context_of(tensors))) == 1


def test_sick_average_names_its_intact_twin():
    (finding,) = found(DivergedEmaCopy(), {"model.w.x": FINE, "ema.w.x": SICK})
    assert finding.severity is Severity.ERROR
    assert (finding.tensor, finding.measured["intact"]) == ("ema.w.x", "model.w.x")
    assert "1 of 2 elements" in finding.message


def test_sick_model_is_told_once_with_all_its_copies():
    tensors = {f"model.{n}.w": SICK for n in "abc"} | {f"ema.{n}.w": FINE for n in "abc"}
    (finding,) = found(DivergedEmaCopy(), tensors)
    assert finding.severity is Severity.NOTE
    (alone,) = found(DivergedEmaCopy(), {"model.a.w": SICK, "ema.a.w": FINE})
    assert alone.message == "an intact copy of 'model.a.w', not finite in the model"
    two = {name: value for name, value in tensors.items() if not name.endswith("c.w")}
    assert "'model.a.w' and 1 more" in found(DivergedEmaCopy(), two)[0].message
    assert finding.measured["copies"] == {f"model.{n}.w": f"ema.{n}.w" for n in "abc"}
    assert "'model.a.w' and 2 more" in finding.message


def test_model_keeps_its_own_code_beside_a_sound_average():
    table = table_of({"model.w.x": SICK, "ema.w.x": FINE})
    rules = [NanValues(), InfValues(), DivergedEmaCopy()]
    findings = diagnose(table, measure(table), rules=rules).findings
    assert [(f.code, f.tensor) for f in findings] == [("NF001", "model.w.x"), ("TS006", "ema.w.x")]


@pytest.mark.parametrize(
    ("model", "ema"),
    [(SICK, SICK), (FINE, FINE), (zeros(1, 0), zeros(1, 0)), (zeros(1, 2), zeros(1, 2))],
    ids=["both-sick", "both-fine", "empty", "zeros"],
)
def test_copies_alike_are_no_finding(model, ema):
    assert found(DivergedEmaCopy(), {"model.a.w": model, "ema.a.w": ema}) == []


def test_empty_twin_proves_nothing():
    tensors = {"model.a.w": SICK, "ema.a.w": FINE, "model.b.w": zeros(0), "ema.b.w": zeros(0)}
    (finding,) = found(DivergedEmaCopy(), tensors)
    assert finding.measured["copies"] == {"model.a.w": "ema.a.w"}


# one code per fault


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("optimizer.state.0.exp_avg", NAN, "TS001"),
        ("optimizer.state.0.exp_avg_sq", INF, "TS001"),
        ("optimizer_weights/adam/learning_rate", NAN, "TS003"),
        ("optimizer.param_groups.0.lr", INF, "TS003"),
        ("optimizer_weights/lso/dynamic_scale", INF, "TS005"),
        ("logs.val", NAN, "TS009"),
        ("callbacks.best", INF, "TS009"),
        ("model.fc.weight", NAN, "NF001"),
    ],
)
def test_every_tensor_has_one_code(name, value, code):
    table = table_of({name: np.float32(value)})
    rules = [NanValues(), InfValues(), MaskedInfinities(), *(rule() for rule in TS)]
    findings = diagnose(table, measure(table), rules=rules).findings
    assert [(f.code, f.tensor) for f in findings] == [(code, name)]


# mismatches


def model_and(slots, listed=None, extra=()):
    tensors = {
        "a.weight": zeros(3, 3), "a.bias": zeros(3), "b.weight": zeros(4, 3), "b.bias": zeros(4),
        **{f"optimizer.state.{n}.exp_avg": zeros(*shape) for n, shape in enumerate(slots)},
        **dict(extra),
    }  # fmt: skip
    return tensors, {OPT + f"params.{n}": n for n in range(listed or 0)}


WHOLE = [(3, 3), (3,), (4, 3), (4,)]


@pytest.mark.parametrize(
    ("slots", "listed", "severities"),
    [
        (WHOLE, 4, []),
        (WHOLE, None, []),
        ([(3, 3), (3,), (9, 3), (4,)], 4, [Severity.ERROR]),
        ([(3, 3), (3,), (9, 3), (9,)], 4, [Severity.ERROR] * 2),
        ([(3, 3), (9,), (9, 3), (9,)], 4, []),
        ([(3, 3), (3,), (9, 3), (9,)], None, [Severity.WARNING] * 2),
        ([(3, 3), (3,), (9, 3)], 3, [Severity.WARNING]),
        ([*WHOLE, (4,)], 5, [Severity.WARNING]),
        ([(4,), (3, 3), (3,), (9, 3)], 4, [Severity.WARNING]),
        (WHOLE, 3, [Severity.WARNING]),
    ],
    ids=[
        "fits", "fits-unlisted", "one-wrong", "half-wrong", "most-wrong", "half-wrong-unlisted",
        "frozen", "too-many", "shuffled", "unlisted-state",
    ],
)  # fmt: skip
def test_mismatches_are_weighed_by_evidence(slots, listed, severities):
    findings = found(OptimizerModelMismatch(), *model_and(slots, listed))
    assert [f.severity for f in findings] == severities


def test_mismatch_names_slot_and_parameter():
    slots = [(3, 3), (3,), (9, 3), (4,)]
    (finding,) = found(OptimizerModelMismatch(), *model_and(slots, 4))
    assert finding.tensor == "optimizer.state.2.exp_avg"
    assert finding.message == "has shape [9, 3], its parameter 'b.weight' [4, 3]"
    (finding,) = found(OptimizerModelMismatch(), *model_and([*WHOLE, (4,)]))
    assert finding.tensor == "optimizer.state.4.exp_avg"
    assert "which 1 tensors of the model have and 2 of this optimizer" in finding.message


def test_projected_and_truncated_states_are_not_compared():
    tensors, numbers = model_and([(3, 3), (3,), (9, 3), (4,)], 4)
    projected = {"optimizer.state.2.projector.rank": 2, **numbers}
    assert found(OptimizerModelMismatch(), tensors, projected) == []
    filler = {f"history.{n}": 1 for n in range(COMPLETE_BELOW - len(numbers))}
    assert found(OptimizerModelMismatch(), tensors, numbers | filler) == []
    filler.popitem()
    assert len(found(OptimizerModelMismatch(), tensors, numbers | filler)) == 1


def test_more_parameters_than_tensors_is_told():
    tensors, numbers = model_and(WHOLE, 4)
    assert found(OptimizerModelMismatch(), tensors, numbers | {OPT + "params.4": 3}) != []
    extra = {"buffer.x": np.int64([1])}
    assert found(OptimizerModelMismatch(), tensors | extra, numbers | {OPT + "params.4": 3}) == []


def test_state_in_no_group_is_counted():
    (finding,) = found(OptimizerModelMismatch(), *model_and(WHOLE, 3))
    assert finding.message == "state of a parameter that no group lists"
    assert finding.tensor == "optimizer.state.3.exp_avg"
    (finding,) = found(OptimizerModelMismatch(), *model_and(WHOLE, 2))
    assert finding.message == "state of a parameter and 1 more that no group lists"
    assert finding.measured["stray"] == 2


# the loop's records


@pytest.mark.parametrize(
    ("name", "value", "sick"),
    [
        ("best_loss", INF, True), ("val_loss", NAN, True), ("args.max_norm", INF, False),
        ("args.dropout", NAN, True), ("callbacks.kth_value", -INF, True), ("model.x", NAN, False),
        ("best_acc1", 10**400, False), ("lr_schedulers.0.best", INF, True),
    ],
)  # fmt: skip
def test_records_of_the_loop(name, value, sick):
    assert [f.tensor for f in found(NonfiniteLoopState(), scalars={name: value})] == [name] * sick


def test_list_of_losses_is_told_once():
    losses = {f"history.loss.{n}": NAN if n > 2 else 1.0 for n in range(9)}
    (finding,) = found(NonfiniteLoopState(), scalars=losses)
    assert finding.tensor == "history.loss.3"
    assert finding.message.endswith("; 5 more of this list are not finite")
    assert (finding.measured["nan"], finding.measured["numbers"]) == (6, 6)


LOST = ": training had diverged by then, or the metric was computed from nothing"


def test_matrices_and_single_numbers_of_the_loop():
    assert found(NonfiniteLoopState(), {"logs.w": SICK}) == []
    assert len(found(NonfiniteLoopState(), {"logs.w": SICK[0]})) == 1
    (finding,) = found(NonfiniteLoopState(), scalars={"val_loss": NAN})
    assert finding.message == "is NaN" + LOST
    for name, sick in (("history.best_loss.0", 1), ("history.best_loss.low", 0)):
        assert len(found(NonfiniteLoopState(), scalars={name: INF})) == sick


def test_records_say_what_they_hold():
    for values, message in (
        (INF, "is infinite, as it is before the first result"),
        ([INF, 1], "1 Inf among 2 values, as it is before the first result"),
        (
            [NAN, -INF, 1],
            "1 NaN and 1 Inf among 3 values" + LOST,
        ),
    ):
        (finding,) = found(NonfiniteLoopState(), {"logs.val": np.float32(values)})
        assert finding.message == message


# hostile and odd input


def test_groups_survive_odd_names():
    numbers = {
        "param_groups.0.lr": 1.0, "xparam_groups.0.lr": 1.0, "param_groups.": 2.0,
        "a.param_groups.0.params.0": 10**5000, "a.param_groups.0.params.1": NAN,
        "a.param_groups.0.eps": -(10**400), "optimizer/config/": 1.0,
    }  # fmt: skip
    groups = groups_of(context_of(scalars=numbers))
    assert [g.optimizer for g in groups] == ["", "", "a", ""]
    assert groups[2].settings == {"eps": -INF}


ODD = [
    "optimizer", "optimizer.state.0", "optimizer.state..exp_avg_sq", "state.x.y", "exp_avg_sq",
    "optimizer/vars/", "optimizer/vars/999999999999999999", "optimizer_weights/v",
    "optimizer.state.0.exp_avg_sq", "optimizer.state.1.sum", "ema", "ema.", "ema..", "ema.0",
    "model_ema.", "logs", "", ".", "optimizer/vars/\u0663", "optimizer.param_groups.0.lr",
]  # fmt: skip


@pytest.mark.parametrize("rule", TS, ids=lambda rule: rule.code)
@pytest.mark.parametrize("values", [NAN, [], [[]], [-1.0, INF], True, [[0.5, 1.0]]], ids=str)
def test_rules_survive_odd_names_and_values(rule, values):
    dtype = bool if values is True else np.float16
    tensors = {name: np.asarray(values, dtype) for name in ODD}
    numbers = {f"{name}.x": v for name in ODD for v in (NAN,)}
    numbers |= {name.replace("/", "."): 10**400 for name in ODD}
    for finding in found(rule(), tensors | {"model.fc.weight": zeros(1, 2)}, numbers):
        assert finding.message


def test_a_model_of_empty_parameters_is_compared_with_nothing():
    tensors, numbers = model_and([(3, 3), (3,), (9, 3), (4,)], 4)
    assert found(OptimizerModelMismatch(), tensors, numbers)
    tensors["b.weight"] = np.zeros((0,), np.float32)
    assert found(OptimizerModelMismatch(), tensors, numbers) == []
