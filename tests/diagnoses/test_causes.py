"""Causes: high only where the file shows it; the decision tree; advice only where evidence calls."""

from __future__ import annotations

import numpy as np
import patients
import pytest

from ckptdoctor.diagnoses import conclude
from ckptdoctor.diagnoses.causes import CAUSES
from ckptdoctor.diagnoses.facts import Facts
from ckptdoctor.diagnoses.tree import branch_of
from ckptdoctor.findings import Finding, Severity, container_finding
from ckptdoctor.graph import Feed
from ckptdoctor.measure.scan import measure
from ckptdoctor.rules.base import Context
from ckptdoctor.tensors import LayerConfig, TensorTable

NAN, INF = float("nan"), float("inf")


def context_of(arrays, roles=None, **more):
    table = TensorTable.from_arrays(arrays, roles, **more)
    return Context(table, measure(table).stats)


def finding(code, tensor, severity=Severity.ERROR, role="model", message="m"):
    return Finding(
        code=code, name="n", severity=severity, role=role, tensor=tensor,
        layer=tensor.rpartition(".")[0], message=message,
    )  # fmt: skip


def diagnosis(arrays, *findings, roles=None, **more):
    return conclude(context_of(arrays, roles, **more), findings, file="m.pt")[0]


def confidence(d):
    return {cause.name: cause.confidence for cause in d.causes}


def lost(*names):
    """Network with statistics of these layers NaN, and the findings that say so."""
    arrays = patients.state()
    for name in names:
        arrays[f"{name}.running_mean"][:] = arrays[f"{name}.running_var"][:] = NAN
    return arrays, [finding("BN001", f"{name}.running_var") for name in names]


MIXED = {"layers": [LayerConfig(name="fc", class_name="Dense", dtype_policy="mixed_float16")]}


class TestOverflow:
    def test_float16_alone_is_medium(self):
        arrays, found = lost("bn3")
        assert confidence(diagnosis(arrays, *found, **MIXED))["overflow-skipped-step"] == "medium"

    def test_without_float16_it_is_low(self):
        arrays, found = lost("bn3")
        assert confidence(diagnosis(arrays, *found))["overflow-skipped-step"] == "low"

    def test_exploded_upstream_makes_it_high(self):
        arrays, found = lost("bn3")
        arrays["bn2.running_var"][:] = 8958
        d = diagnosis(arrays, *found, finding("BN003", "bn2.running_var"), **MIXED)
        assert confidence(d)["overflow-skipped-step"] == "high"
        assert "bn2" in d.causes[0].observation
        assert "8,958" in d.causes[0].observation

    def test_exploded_downstream_does_not(self):
        arrays, found = lost("bn1")
        arrays["bn2.running_var"][:] = 8958
        d = diagnosis(arrays, *found, finding("BN003", "bn2.running_var"), **MIXED)
        assert confidence(d)["overflow-skipped-step"] == "medium"

    def test_inf_in_a_mean_makes_it_high(self):
        arrays, found = lost("bn1")
        arrays["bn1.running_mean"][0] = INF
        d = diagnosis(arrays, *found, **MIXED)
        assert confidence(d)["overflow-skipped-step"] == "high"


class TestInput:
    def test_some_channels_of_a_batchnorm_on_the_input_show_it(self):
        arrays = {"bn.running_mean": [0.5, NAN], "bn.running_var": [1.0, NAN]}
        ctx = context_of(arrays)
        feeds = {"bn": Feed(None, "input", "test")}
        ctx._graph = ctx.graph._replace(feeds=feeds, first=frozenset({"bn"}))
        (d,) = conclude(ctx, (finding("BN001", "bn.running_mean"),), file="m.pt")
        assert confidence(d)["nonfinite-input"] == "high"

    def test_damage_from_the_first_layer_on_is_medium(self):
        arrays, found = lost("bn1", "bn2", "bn3")
        assert confidence(diagnosis(arrays, *found))["nonfinite-input"] == "medium"

    def test_sound_layers_before_it_are_low(self):
        arrays, found = lost("bn2", "bn3")
        assert confidence(diagnosis(arrays, *found))["nonfinite-input"] == "low"


class TestVariance:
    def test_some_channels_are_medium(self):
        arrays = patients.state()
        arrays["bn3.running_var"][:3] = NAN
        d = diagnosis(arrays, finding("BN001", "bn3.running_var"))
        assert (d.key, confidence(d)["batch-of-one"]) == ("bn-var-nan", "medium")

    def test_a_bad_mean_beside_it_is_another_illness(self):
        arrays = patients.state()
        arrays["bn3.running_var"][:] = NAN
        arrays["bn3.running_mean"][0] = NAN
        d = diagnosis(arrays, finding("BN001", "bn3.running_var"))
        assert d.key == "bn-stats-nan"

    @pytest.mark.parametrize(("low", "told"), [(-5e-4, "medium"), (-1.001e-3, None), (-0.7, None)])
    def test_rounding_leaves_little_below_zero(self, low, told):
        arrays = patients.state()
        arrays["bn2.running_var"][0] = low
        d = diagnosis(arrays, finding("BN002", "bn2.running_var"))
        assert confidence(d).get("cancelled-variance") == told

    def test_zeros_in_some_channels_are_constant_inputs(self):
        arrays = patients.state()
        arrays["bn2.running_var"][:2] = 0
        d = diagnosis(arrays, finding("BN004", "bn2.running_var", Severity.WARNING))
        assert d.causes[0].name == "constant-input"
        assert "batch-of-one" not in confidence(d)

    def test_exploded_first_layer_may_be_the_input(self):
        arrays = patients.state()
        arrays["bn1.running_var"][:] = 3e6
        d = diagnosis(arrays, finding("BN003", "bn1.running_var"))
        assert "unnormalised-input" in confidence(d)
        arrays = patients.state()
        arrays["bn2.running_var"][:] = 3e6
        d = diagnosis(arrays, finding("BN003", "bn2.running_var"))
        assert "unnormalised-input" not in confidence(d)


class TestWeights:
    def some_nan(self, count, total=200):
        arrays = {"fc.weight": np.ones((1, total), np.float32)}
        arrays["fc.weight"][0, :count] = NAN
        return diagnosis(arrays, finding("NF001", "fc.weight"))

    def test_up_to_one_in_a_hundred_is_corruption(self):
        assert self.some_nan(2).key == "weights-few-nonfinite"
        assert self.some_nan(3).key == "weights-nonfinite"
        assert self.some_nan(2).causes[0].name == "corrupted-write"

    def test_one_of_few_is_corruption_and_one_of_one_is_not(self):
        assert self.some_nan(1, 5).key == "weights-few-nonfinite"
        assert self.some_nan(1, 1).key == "weights-nonfinite"

    def test_checksum_that_differs_makes_corruption_certain(self):
        arrays = {"fc.weight": np.ones((1, 200), np.float32)}
        arrays["fc.weight"][0, 0] = NAN
        code = container_finding("CK001", Severity.ERROR, "differs", tensor="fc.weight")
        found = conclude(context_of(arrays), (code, finding("NF001", "fc.weight")), file="m.pt")
        (few,) = [d for d in found if d.key == "weights-few-nonfinite"]
        assert few.causes[0].confidence == "high"

    def test_learning_rate_is_high_only_where_stored(self):
        arrays = {"fc.weight": [[1e9]]}
        d = diagnosis(arrays, finding("WT003", "fc.weight"))
        assert confidence(d) == {"learning-rate": "medium"}
        d = diagnosis(
            arrays, finding("WT003", "fc.weight"), scalars={"optimizer.param_groups.0.lr": 1.0}
        )
        assert confidence(d) == {"learning-rate": "high"}


class TestTree:
    @pytest.mark.parametrize(
        ("bad", "optimizer", "key"),
        [
            ((), True, "nothing"),
            (("bn3.running_var",), True, "forward-statistics"),
            (("fc.weight",), True, "update-step"),
            (("fc.weight",), False, "weights"),
            (("fc.weight", "o.exp_avg"), True, "after-spread"),
            (("o.exp_avg",), True, "caught-in-time"),
            (("o.exp_avg", "bn3.running_var"), True, "caught-in-time"),
        ],
    )
    def test_what_is_bad_tells_where_it_went_wrong(self, bad, optimizer, key):
        arrays = patients.state() | ({"o.exp_avg": np.float32([1])} if optimizer else {})
        for name in bad:
            arrays[name][:] = NAN
        facts = Facts(context_of(arrays, {"o.exp_avg": "optimizer"}), (), "m.pt")
        assert branch_of(facts).key == key

    def test_what_is_meant_to_be_infinite_does_not_count(self):
        mask = np.where(np.triu(np.ones((4, 4)), 1), -INF, 0).astype(np.float32)
        assert branch_of(Facts(context_of({"attn.mask": mask}), (), "m.pt")).key == "nothing"


class TestAdvice:
    def told(self, d):
        return " ".join(d.advice)

    def test_no_more_than_four(self):
        arrays, found = lost("bn1", "bn2", "bn3")
        assert len(diagnosis(arrays, *found, **MIXED).advice) == 4

    def test_float32_ends_only_with_float16(self):
        arrays, found = lost("bn3")
        assert "Keep the input layers" in self.told(diagnosis(arrays, *found, **MIXED))
        assert "Keep the input layers" not in self.told(diagnosis(arrays, *found))

    def test_keras_and_torch_get_their_own(self):
        keras = diagnosis({"net/bn/moving_variance": [NAN], "net/bn/moving_mean": [0.0]},
                          finding("BN001", "net/bn/moving_variance"))  # fmt: skip
        torch = diagnosis({"bn.running_var": [NAN], "bn.running_mean": [0.0]},
                          finding("BN001", "bn.running_var"))  # fmt: skip
        assert "keras#17204" in self.told(keras)
        assert "keras#17204" not in self.told(torch)

    def test_weight_decay_only_where_none_is_stored(self):
        arrays, found = {"fc.weight": [[1e9]]}, finding("WT003", "fc.weight")
        for decay, wanted in ((0.0, True), (0.1, False)):
            scalars = {"optimizer.param_groups.0.weight_decay": decay}
            assert (
                "Add weight decay" in self.told(diagnosis(arrays, found, scalars=scalars))
            ) is wanted

    def test_frozen_part_is_told_by_the_batches_it_counted(self):
        arrays, found = lost("bn3")
        assert "call .eval()" not in self.told(diagnosis(arrays, *found))
        arrays["bn3.num_batches_tracked"] = np.array(1300)
        assert "call .eval()" in self.told(diagnosis(arrays, *found))

    def test_each_row_says_what_it_points_at(self):
        arrays, found = lost("bn3")
        assert all(row.endswith(")") for row in diagnosis(arrays, *found, **MIXED).advice)


def test_causes_are_named_as_they_are_listed():
    assert all(name == row.name for name, row in CAUSES.items())


class TestObservations:
    @pytest.mark.parametrize(
        "name", ["o.0.exp_avg_sq", "optimizer/v/fc/kernel", "optimizer/adam/fc_velocity"]
    )
    def test_second_moments_of_inf_are_squares_out_of_range(self, name):
        arrays = {"w.weight": [[1.0]], name: [INF]}
        d = diagnosis(arrays, finding("TS001", name, role="optimizer"), roles={name: "optimizer"})
        assert d.causes[0].observation.startswith("second moments are Inf")

    def test_first_moments_of_inf_are_gradients(self):
        arrays = {"w.weight": [[1.0]], "o.exp_avg": [INF]}
        d = diagnosis(
            arrays,
            finding("TS001", "o.exp_avg", role="optimizer"),
            roles={"o.exp_avg": "optimizer"},
        )
        assert d.causes[0].observation.startswith("moments are made of gradients")

    def test_statistics_that_are_not_finite_have_not_just_grown(self):
        arrays, found = lost("bn3")
        arrays["bn2.running_var"][:] = [8958.0] * 15 + [INF]
        d = diagnosis(arrays, *found, finding("BN003", "bn2.running_var"), **MIXED)
        assert "has grown" not in d.causes[0].observation

    @pytest.mark.parametrize(
        ("bad", "verb"), [(1, "1 of its 3 channels is"), (2, "2 of its 3 channels are")]
    )
    def test_channels_are_counted(self, bad, verb):
        mean = [NAN] * bad + [0.5] * (3 - bad)
        ctx = context_of({"bn.running_mean": mean, "bn.running_var": [1.0] * 3})
        ctx._graph = ctx.graph._replace(
            feeds={"bn": Feed(None, "input", "test")}, first=frozenset({"bn"})
        )
        (d,) = conclude(ctx, (finding("BN001", "bn.running_mean"),), file="m.pt")
        assert verb in d.causes[0].observation
