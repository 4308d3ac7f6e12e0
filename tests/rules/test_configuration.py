"""CF001 to CF004: settings that contradict what a layer is for, and those that only look it."""

import dataclasses

import numpy as np
import pytest
import torch_bytes as tb

from ckptdoctor.api import open_checkpoint
from ckptdoctor.diagnose import diagnose
from ckptdoctor.findings import Severity
from ckptdoctor.measure.scan import measure
from ckptdoctor.results import Wishes
from ckptdoctor.rules.cf001_pool_stride_beyond_kernel import PoolStrideBeyondKernel
from ckptdoctor.rules.cf002_epsilon_below_resolution import LayerEpsilonBelowResolution
from ckptdoctor.rules.cf003_momentum_never_updates import MomentumNeverUpdates
from ckptdoctor.rules.cf004_class_count_mismatch import ClassCountMismatch
from ckptdoctor.tensors import LayerConfig, TensorTable

NAN = np.nan


def judged(rule, table):
    findings = diagnose(table, measure(table), Wishes(), rules=[rule]).findings
    return tuple(finding for finding in findings if finding.code == rule.code)


def found(rule, *configs, arrays=None, scalars=None, version=""):
    arrays = {name: np.float32(values) for name, values in (arrays or {}).items()}
    table = TensorTable.from_arrays(arrays, scalars=scalars, layers=configs)
    metadata = {"framework_version": version} if version else {}
    return judged(rule, dataclasses.replace(table, metadata=metadata))


def pool(name="MaxPooling2D", **settings):
    return LayerConfig(name="pool", class_name=name, settings=settings)


@pytest.mark.parametrize(
    ("window", "stride", "unseen"),
    [
        ((2, 2), (2, 2), None), ((2, 2), (3, 2), 1 / 3), ((2, 2), (2, 3), 1 / 3),
        ((2, 2), (4, 4), 0.75), (2, 3, 1 / 3), (3, 3, None), (3, 2, None), (1, 2, None),
        ((1, 1), (2, 2), None), ((1, 2), (2, 3), 1 / 3), (2, (3, 3), 5 / 9), ((2, 2), 3, 5 / 9),
        ((2, 2, 2), (2, 2, 3), 1 / 3), ((2, 2), (2, 2, 3), None), ((2, 2), "3", None),
        ((2.0, 2.0), (3, 3), None), (2, 0, None), (0, 2, None), (2, -3, None), (2, 1 << 40, None),
        (True, True, None), ((), (3, 3), None), (2, (1 << 31) - 1, 1.0), (2, 1 << 31, None),
        ((), (), None),
    ],
)  # fmt: skip
def test_stride_beyond_a_window_of_more_than_one_is_found(window, stride, unseen):
    keras = found(PoolStrideBeyondKernel(), pool(pool_size=window, strides=stride))
    torch = found(PoolStrideBeyondKernel(), pool("AvgPool2d", kernel_size=window, stride=stride))
    assert [f.message for f in keras] == [f.message for f in torch]
    assert [f.measured["unseen"] for f in keras] == ([] if unseen is None else [round(unseen, 4)])
    for finding in keras:
        assert (finding.layer, finding.tensor, finding.role) == ("pool", "", "model")
        assert finding.severity is Severity.WARNING


def test_message_names_window_and_stride():
    (finding,) = found(PoolStrideBeyondKernel(), pool(pool_size=(2, 2), strides=(3, 4)))
    assert finding.message == (
        "strides of 3 x 4 step over a window of 2 x 2: 67% of the input is never seen"
    )
    assert (finding.measured["window"], finding.measured["stride"]) == ([2, 2], [3, 4])


@pytest.mark.parametrize(("spread", "sick"), [(1, True), (2, False), ((1, 1), True), (0, False)])
def test_spread_out_window_reaches_further(spread, sick):
    config = pool("MaxPool2d", kernel_size=2, stride=3, dilation=spread)
    assert bool(found(PoolStrideBeyondKernel(), config)) == sick


@pytest.mark.parametrize("name", ["GlobalAveragePooling2D", "AdaptiveAvgPool2d", "Conv2D"])
def test_layer_without_a_window_of_its_own_is_silent(name):
    assert found(PoolStrideBeyondKernel(), pool(name, output_size=1)) == ()
    assert found(PoolStrideBeyondKernel(), pool("Conv2D", kernel_size=2, strides=4)) == ()


def norm(name, epsilon, policy=None):
    return LayerConfig(name="bn", class_name=name, epsilon=epsilon, dtype_policy=policy)


RULE2 = LayerEpsilonBelowResolution()
LEAST16, LEAST32 = 2.0**-24, 2.0**-149


@pytest.mark.parametrize(
    ("name", "epsilon", "policy", "version", "severity"),
    [
        ("BatchNormalization", 1e-3, "mixed_float16", "3.15.0", None),
        ("BatchNormalization", 1.001e-5, "mixed_float16", "3.15.0", None),
        ("BatchNormalization", 1e-8, "mixed_float16", "3.15.0", "NOTE"),
        ("BatchNormalization", 1e-8, "float16", "2.15.0", "NOTE"),
        ("BatchNormalization", 1e-8, "float32", "3.15.0", None),
        ("BatchNormalization", 1e-8, None, "", None),
        ("LayerNormalization", 1e-12, "mixed_float16", "3.15.0", "NOTE"),
        ("LayerNormalization", 1e-12, "mixed_float16", "2.15.0", "NOTE"),
        ("LayerNormalization", 1e-12, "float16", "2.15.0", "WARNING"),
        ("LayerNormalization", 1e-12, "float16", "1.2.0", "WARNING"),
        ("LayerNormalization", 1e-12, "float16", "3.0.0", "NOTE"),
        ("GroupNormalization", 1e-8, "mixed_float16", "2.15.0", "WARNING"),
        ("GroupNormalization", 1e-8, "float16", "2.15.0", "WARNING"),
        ("GroupNormalization", 1e-8, "float16", "", "NOTE"),
        ("RMSNormalization", 1e-8, "mixed_float16", "3.15.0", "NOTE"),
        ("MyNorm", 1e-8, "mixed_float16", "3.15.0", "WARNING"),
        ("MyNorm", 1e-8, "mixed_bfloat16", "3.15.0", None),
        ("MyNorm", 1e-8, "int8_from_mixed_float16", "3.15.0", "WARNING"),
        ("MyNorm", LEAST16 / 2, "float16", "", "WARNING"),
        ("MyNorm", LEAST16 / 2 * 1.01, "float16", "", None),
        ("LayerNorm", LEAST32 / 2, None, "", "WARNING"),
        ("LayerNorm", LEAST32, None, "", None),
        ("LayerNorm", 0.0, None, "", "WARNING"),
        ("LayerNorm", -1e-3, "float32", "", "WARNING"),
        ("LayerNormalization", 0.0, "mixed_float16", "3.15.0", "WARNING"),
        ("Optimizer", 0.0, "mixed_float16", "3.15.0", None),
        ("LayerNorm", None, "mixed_float16", "", None),
    ],
)
def test_epsilon_is_judged_in_the_type_the_layer_computes_in(
    name, epsilon, policy, version, severity
):
    findings = found(RULE2, norm(name, epsilon, policy), version=version)
    assert [f.severity.name for f in findings] == [severity] * (severity is not None)
    for finding in findings:
        assert finding.layer == "bn"
        assert finding.measured["used"] == (severity != "NOTE")


@pytest.mark.parametrize(
    ("variance", "severity"),
    [([0.0, 1], "ERROR"), ([-1.0, 1], "ERROR"), ([1e-9, 1], "NOTE"), ([NAN, NAN], "WARNING")],
)
def test_without_epsilon_the_stored_variances_decide(variance, severity):
    arrays = {"bn.running_var": variance}
    (finding,) = found(RULE2, norm("BatchNorm2d", 0.0), arrays=arrays)
    assert (finding.severity.name, finding.tensor) == (severity, "bn.running_var")
    assert finding.measured == {"epsilon": 0.0, "dtype": "float32", "used": True}


def test_without_epsilon_in_float16_a_variance_of_zero_is_a_warning():
    arrays = {"bn.running_var": [0.0, 1.0]}
    (finding,) = found(RULE2, norm("MyBatchNorm", 1e-8, "float16"), arrays=arrays)
    assert finding.severity is Severity.WARNING
    assert "policy 'float16'" in finding.message
    (finding,) = found(RULE2, norm("BatchNormalization", 1e-8, "float16"), arrays=arrays)
    assert finding.severity is Severity.NOTE


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", ["keras", "tf_keras"])
@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16", "float32"])
@pytest.mark.parametrize(
    "name",
    ["BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"],
)
def test_a_constant_input_is_nan_just_where_the_rule_warns(module, policy, name):
    library = pytest.importorskip(module)
    if not hasattr(library.layers, name):
        pytest.skip(f"no {name}")
    for epsilon in (1e-8, 0.0):
        dtype = policy if module == "keras" else library.mixed_precision.Policy(policy)
        groups = {"groups": 1} if name == "GroupNormalization" else {}
        layer = getattr(library.layers, name)(epsilon=epsilon, dtype=dtype, **groups)
        constant = np.full((2, 4, 4, 4), 0 if name.startswith("RMS") else 3, np.float16)
        layer(constant)
        if name == "BatchNormalization":
            ones = np.ones(4)
            layer.set_weights([ones, 0 * ones, 3 * ones, 0 * ones])
        answer = np.asarray(layer(constant)).astype(np.float64)
        version = "3.15.0" if module == "keras" else "2.21.0"
        findings = found(RULE2, norm(name, epsilon, policy), version=version)
        assert np.isnan(answer).any() == any(f.severity is Severity.WARNING for f in findings)


RULE3 = MomentumNeverUpdates()
TORCH = {"bn.running_mean": [0, 0], "bn.running_var": [1, 1]}
KERAS = {"bn/moving_mean": [0, 0], "bn/moving_variance": [1, 1]}


@pytest.mark.parametrize(
    ("arrays", "momentum", "sick"),
    [
        (TORCH, 0.0, True), (TORCH, -0.1, True), (TORCH, 1e-6, False), (TORCH, 1.0, False),
        (TORCH, None, False), (KERAS, 1.0, True), (KERAS, 1.1, True), (KERAS, 0.999, False),
        (KERAS, 0.0, False), (KERAS, None, False), ({}, 0.0, False), ({}, 1.0, False),
    ],
)  # fmt: skip
def test_momentum_means_the_opposite_in_the_other_framework(arrays, momentum, sick):
    name = "BatchNorm2d" if arrays is TORCH else "BatchNormalization"
    config = LayerConfig(name="bn", class_name=name, momentum=momentum)
    findings = found(RULE3, config, arrays=arrays)
    assert [f.severity.name for f in findings] == ["WARNING"] * sick
    for finding in findings:
        assert finding.tensor == list(arrays)[1]
        assert finding.measured == {"momentum": momentum, "initial": True}
        assert ("Keras keeps" in finding.message) == (arrays is KERAS)


@pytest.mark.parametrize(
    ("mean", "variance", "initial"),
    [
        ([0, 0], [1, 1], True), ([0, 1e-6], [1, 1], False), ([-1e-6, 0], [1, 1], False),
        ([0, 0], [1, 1.001], False), ([0, 0], [0.999, 1], False), ([0, NAN], [1, 1], False),
        ([0, 0], [1, np.inf], False), (None, [1, 1], True), ([0, 0], None, True),
    ],
)  # fmt: skip
def test_statistics_of_other_origin_make_it_a_note(mean, variance, initial):
    arrays = {"bn.running_mean": mean, "bn.running_var": variance}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    config = LayerConfig(name="bn", class_name="BatchNorm2d", momentum=0.0)
    (finding,) = found(RULE3, config, arrays=arrays)
    assert finding.severity is (Severity.WARNING if initial else Severity.NOTE)
    assert finding.measured["initial"] == initial


@pytest.mark.parametrize("trainable", [True, False])
def test_layer_frozen_as_a_whole_needs_no_momentum(trainable):
    config = LayerConfig(
        name="bn", class_name="BatchNormalization", momentum=1.0, settings={"trainable": trainable}
    )
    other = LayerConfig(name="x", class_name="BatchNormalization", momentum=0.9)
    assert bool(found(RULE3, other, config, arrays=KERAS)) == trainable


RULE4 = ClassCountMismatch()


def head(units, name="fc", **more):
    return {f"{name}.weight": [[0.0, 0.1, 0.2]] * units, **more}


@pytest.mark.parametrize(
    ("units", "stated", "sick"),
    [
        (10, 10, False), (10, 9, False), (10, 11, False), (10, 8, True), (10, 12, True),
        (1, 2, False), (1, 3, True), (2, 1, False), (5, 1, False), (5, 0, False), (5, -7, False),
        (5, 2, True), (5, 7.0, True), (5, 7.5, False), (5, NAN, False), (5, np.inf, False),
        (5, 1_000_000, True), (5, 1_000_001, False), (5, 10**400, False),
    ],
)  # fmt: skip
def test_one_class_more_or_less_is_a_background(units, stated, sick):
    findings = found(RULE4, arrays=head(units), scalars={"args.num_classes": stated})
    assert bool(findings) == sick
    for finding in findings:
        assert (finding.tensor, finding.severity) == ("fc.weight", Severity.WARNING)
        assert finding.measured == {
            "outputs": units, "classes": stated, "source": "args.num_classes",
        }  # fmt: skip
        assert (
            finding.message
            == f"{units} outputs, but args.num_classes speaks of {stated:,.0f} classes"
        )


@pytest.mark.parametrize(
    ("path", "sick"),
    [
        ("num_classes", True), ("hyper_parameters/num_labels", True), ("config.n_classes", True),
        ("opt.nClasses", True), ("args.nb_classes", True), ("args.num_class", True),
        ("args.nc", False), ("num_classes_per_task", False), ("args.num_workers", False),
        ("num_classes.1", False),
    ],
)  # fmt: skip
def test_only_names_that_say_so_state_a_number_of_classes(path, sick):
    assert bool(found(RULE4, arrays=head(5), scalars={path: 9})) == sick


@pytest.mark.parametrize(
    ("numbers", "sick"),
    [
        (range(5), False), (range(4), False), (range(3), True), (range(1), False),
        (range(1, 4), False), ((0, 1, 2, 2), True), ((0, 2), False), (range(8), True),
        (range(2), True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["label2id", "class_to_idx"])
def test_label_table_counts_where_it_numbers_from_zero(numbers, sick, key):
    scalars = {f"config.{key}.{i}": number for i, number in enumerate(numbers)}
    findings = found(RULE4, arrays=head(5), scalars=scalars)
    assert bool(findings) == sick
    for finding in findings:
        assert finding.measured["source"] == f"config.{key}"
    assert found(RULE4, arrays=head(5), scalars={f"x.{i}": i for i in range(9)}) == ()


@pytest.mark.parametrize(
    ("arrays", "sick"),
    [
        (head(5, "model.classifier.6"), True),
        ({**head(7, "classifier.0"), **head(5, "classifier.3")}, True),
        ({**head(5, "fc"), **head(7, "aux.fc")}, False),
        ({**head(5, "fc"), **head(5, "ema.fc")}, True),
        (head(5, "encoder.proj"), False),
        (head(5, "mlp.fc1"), False),
        ({**head(5), "other.weight": [[0.0, 1.0]] * 9}, False),
        ({**head(5), "arcface.weight": [[0.0] * 9] * 2}, False),
        ({**head(5), "prior": [0.0] * 9}, False),
        ({**head(5), "conv.weight": np.zeros((4, 2, 9, 9))}, True),
        ({"conv.weight": np.zeros((4, 2, 3, 3))}, False),
        ({"fc.bias": [0.0] * 5}, False),
    ],
    ids=["nested", "last of a sequence", "two heads", "ema", "no head", "inner layer",
         "other rows", "other columns", "vector", "kernel size", "convolutions", "bias"],
)  # fmt: skip
def test_rule_speaks_only_where_the_head_is_sure(arrays, sick):
    assert bool(found(RULE4, arrays=arrays, scalars={"num_classes": 9})) == sick


def test_long_path_is_cut():
    (finding,) = found(RULE4, arrays=head(5), scalars={"x" * 200 + ".num_classes": 9})
    assert finding.measured["source"] == "x" * 120
    assert len(finding.message) < 200


def test_statement_that_fits_outweighs_one_that_does_not():
    scalars = {"teacher.num_classes": 9, "num_classes": 5}
    assert found(RULE4, arrays=head(5), scalars=scalars) == ()


@pytest.mark.parametrize(
    ("name", "activation", "units", "sick"),
    [
        ("Dense", "softmax", 1, True), ("Dense", "softmax", 2, False),
        ("Dense", "sigmoid", 1, False), ("Dense", None, 1, False), ("Conv2D", "softmax", 1, False),
    ],
)  # fmt: skip
def test_softmax_over_one_unit_is_constant(name, activation, units, sick):
    config = LayerConfig(
        name="out", class_name=name, activation=activation, settings={"units": units}
    )
    findings = found(RULE4, config, arrays={"out/kernel": np.ones((3, units))})
    assert [(f.tensor, f.layer) for f in findings] == [("out/kernel", "out")] * sick
    assert [f.measured for f in findings] == [{"outputs": 1}] * sick
    assert [f.layer for f in found(RULE4, config)] == ["out"] * sick


def module(name, state):
    where, _, attribute = name.rpartition(".")
    return tb.name(where, attribute) + b")\x81" + tb.item({"_parameters": {}, **state}) + b"b"


def test_pickled_modules_bring_windows_strides_and_whole_momenta(tmp_path):
    weight = tb.tensor(tb.storage("0"), (6,))
    big = 1 << 80
    net = module("__main__.Net", {"_modules": {
        "pool": module("torch.nn.modules.pooling.MaxPool2d",
                       {"kernel_size": (2, 2), "stride": (3, 3), "dilation": 1}),
        "bn": module("torch.nn.modules.batchnorm.BatchNorm1d", {
            "momentum": 0, "eps": 1, "_buffers": {"running_var": weight}}),
        "odd": module("torch.nn.modules.pooling.MaxPool1d", {
            "momentum": big, "eps": True, "stride": (1,) * 9, "kernel_size": (1, "a")}),
    }})  # fmt: skip
    path = tmp_path / "m.pt"
    path.write_bytes(tb.archive(net, {"0": np.ones(6, np.float32).tobytes()}))
    with open_checkpoint(path) as table:
        layers = table.layers
        assert (layers["pool"].settings["kernel_size"], layers["pool"].settings["stride"]) == (
            (2, 2), (3, 3),
        )  # fmt: skip
        assert (layers["bn"].momentum, layers["bn"].epsilon) == (0.0, 1.0)
        assert (layers["odd"].momentum, layers["odd"].epsilon) == (None, None)
        assert not {"stride", "kernel_size"} & set(layers["odd"].settings)
        assert [f.layer for f in judged(PoolStrideBeyondKernel(), table)] == ["pool"]
        assert [f.tensor for f in judged(RULE3, table)] == ["bn.running_var"]


@pytest.mark.oracle
def test_real_modules_settings_are_understood(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(
        torch.nn.MaxPool2d((2, 2), (3, 3)),
        torch.nn.MaxPool2d(2, 2),
        torch.nn.BatchNorm2d(4, momentum=0.0),
        torch.nn.BatchNorm2d(4, momentum=None),
        torch.nn.LayerNorm(4, eps=0.0),
    )
    torch.save(net, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as table:
        assert [f.layer for f in judged(PoolStrideBeyondKernel(), table)] == ["0"]
        assert [f.layer for f in judged(RULE3, table)] == ["2"]
        assert [f.layer for f in judged(RULE2, table)] == ["4"]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_real_keras_settings_are_understood(tmp_path):
    keras = pytest.importorskip("keras")
    layers = keras.layers
    inputs = keras.Input((12, 12, 3))
    x = layers.MaxPooling2D(2, strides=3, name="skips")(inputs)
    x = layers.AveragePooling2D(2, name="covers")(x)
    x = layers.BatchNormalization(momentum=1.0, name="stuck")(x)
    x = layers.BatchNormalization(epsilon=1e-8, dtype="mixed_float16", name="tiny")(x)
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(1, activation="softmax", name="one")(x))
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        with open_checkpoint(tmp_path / name) as table:
            assert [f.layer for f in judged(PoolStrideBeyondKernel(), table)] == ["skips"]
            assert [f.layer for f in judged(RULE3, table)] == ["stuck"]
            assert [(f.layer, f.severity.name) for f in judged(RULE2, table)] == [("tiny", "NOTE")]
            assert [f.layer for f in judged(RULE4, table)] == ["one"]
