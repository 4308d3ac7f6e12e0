"""Stored settings: where they are found, and what they are taken to say."""

from __future__ import annotations

import pytest

from ckptdoctor.diagnoses.hyperparameters import EARLY_STEPS, HALF_TINY, HIGH_RATE, read_settings
from ckptdoctor.layers import read_layers
from ckptdoctor.measure.scan import measure
from ckptdoctor.tensors import LayerConfig, TensorTable

GROUP = "optimizer.param_groups.0."


def settings_of(scalars=None, arrays=None, roles=None, layers=()):
    table = TensorTable.from_arrays(arrays or {}, roles, scalars=scalars, layers=layers)
    return read_settings(table, measure(table).stats, read_layers(table))


def told(**more):
    return list(settings_of(**more).sentences())


def test_torch_groups_are_read():
    found = settings_of({
        GROUP + "lr": 0.1, "optimizer.param_groups.1.lr": 0.01, GROUP + "betas.0": 0.9,
        GROUP + "betas.1": 0.999, GROUP + "eps": 1e-8, GROUP + "weight_decay": 0,
        GROUP + "initial_lr": 0.2, GROUP + "params.0": 0, "scheduler.gamma": 0.1, "epoch": 3,
        "global_step": 40, "scaler.scale": 512.0, "scaler._growth_tracker": 5,
        "scaler.growth_interval": 2000,
    })  # fmt: skip
    assert dict(found.rates) == {GROUP + "lr": 0.1, "optimizer.param_groups.1.lr": 0.01}
    assert (found.rate, found.first_rate, found.beta, found.epsilon) == (0.1, 0.2, 0.9, 1e-8)
    assert (found.weight_decay, found.epoch, found.step) == (0, 3, 40)
    assert (found.scale, found.since_skip, found.growth_interval) == (512, 5, 2000)
    assert found.family == "adam"


def test_keras_settings_are_read_from_configuration_and_variables():
    config = "training_config/optimizer_config/config/"
    found = settings_of(
        {config + "initial_scale": 32768.0, config + "inner_optimizer/config/learning_rate": 0.002},
        {"optimizer_weights/loss_scale_optimizer/dynamic_scale:0": 8192.0,
         "optimizer_weights/loss_scale_optimizer/learning_rate:0": 0.0,
         "optimizer_weights/iteration:0": 461},
        {"optimizer_weights/loss_scale_optimizer/dynamic_scale:0": "optimizer",
         "optimizer_weights/loss_scale_optimizer/learning_rate:0": "optimizer",
         "optimizer_weights/iteration:0": "optimizer"},
    )  # fmt: skip
    assert (found.rate, found.scale, found.first_scale, found.step) == (0.002, 8192, 32768, 461)
    assert found.keras
    assert "2 halvings below 32,768" in found.skipped


def test_numbers_elsewhere_are_no_settings():
    found = settings_of({"hyper_parameters.lr": 5.0, "standard.scale": 0.5, "args.eps": 1.0})
    assert (found.rate, found.scale, found.epsilon) == (None, None, None)
    weight = settings_of(arrays={"scaler.scale": 1.0})
    assert weight.scale is None


@pytest.mark.parametrize("family", ["adam", "sgd"])
def test_a_rate_is_high_above_the_limit_and_not_at_it(family):
    more = {GROUP + "betas.0": 0.9} if family == "adam" else {}
    limit = HIGH_RATE[family]
    assert not settings_of({GROUP + "lr": limit, **more}).rate_is_high
    assert settings_of({GROUP + "lr": limit * 1.01, **more}).rate_is_high


def test_groups_of_different_rates_are_a_span():
    scalars = {GROUP + "lr": 0.001, "optimizer.param_groups.1.lr": 0.01}
    assert told(scalars=scalars) == ["learning rate 0.001 to 0.01 (usual for SGD)"]


class TestMixedPrecision:
    @pytest.mark.parametrize(
        ("policy", "mixed"),
        [("mixed_float16", True), ("float16", True), ("mixed_bfloat16", False), ("float32", False)],
    )
    def test_policies(self, policy, mixed):
        layer = LayerConfig(name="fc", class_name="Dense", dtype_policy=policy)
        assert bool(settings_of(layers=[layer]).mixed) is mixed

    def test_a_scaler_tells_it_too(self):
        assert "scaler" in settings_of({"scaler.scale": 65536.0}).mixed
        assert settings_of({"epoch": 1}).mixed == ""


class TestSkippedSteps:
    @pytest.mark.parametrize(
        ("scale", "told"), [(65536.0, ""), (131072.0, ""), (32768.0, "1 halving"), (0.0, "")]
    )
    def test_a_scale_below_its_start(self, scale, told):
        assert settings_of({"scaler.scale": scale}).skipped.find(told) >= 0
        assert bool(settings_of({"scaler.scale": scale}).skipped) is bool(told)

    @pytest.mark.parametrize(
        ("since", "step", "skipped"),
        [(5, 184, True), (184, 184, False), (5, 2000, False), (1999, 1999, False)],
        ids=["changed before it could grow", "never changed", "may have grown", "not yet"],
    )
    def test_a_tracker_that_started_anew(self, since, step, skipped):
        scalars = {"scaler.scale": 65536.0, "scaler._growth_tracker": since,
                   "scaler.growth_interval": 2000, "global_step": step}  # fmt: skip
        assert bool(settings_of(scalars).skipped) is skipped

    @pytest.mark.parametrize(
        ("batches", "skipped"),
        [(1000, False), (1001, True), (1100, True), (1101, False), (999, False), (4000, False)],
    )
    def test_batches_that_no_step_followed(self, batches, skipped):
        arrays = {"bn.running_var": [1.0], "bn.num_batches_tracked": batches}
        found = settings_of({"optimizer.state.0.step": 1000}, arrays)
        assert bool(found.skipped) is skipped


class TestSentences:
    def test_nothing_stored_says_nothing(self):
        assert told() == []

    def test_epsilon_counts_in_half_precision_only(self):
        tiny = {GROUP + "eps": HALF_TINY / 2}
        assert told(scalars=tiny) == []
        assert any("epsilon" in text for text in told(scalars={**tiny, "scaler.scale": 65536.0}))
        fine = {GROUP + "eps": HALF_TINY, "scaler.scale": 65536.0}
        assert not any("epsilon" in text for text in told(scalars=fine))

    def test_early_steps_point_at_the_data(self):
        assert told(scalars={"step": EARLY_STEPS - 1}) == [
            "saved at step 99: early, look at the data first"
        ]
        assert told(scalars={"step": EARLY_STEPS}) == ["saved at step 100"]

    def test_no_weight_decay_is_said(self):
        assert told(scalars={GROUP + "weight_decay": 0.0}) == ["no weight decay"]
        assert told(scalars={GROUP + "weight_decay": 0.1}) == []


@pytest.mark.parametrize(
    ("keras", "momentum", "never"),
    [(True, 1.0, True), (True, 0.99, False), (True, 0.0, False), (False, 0.0, True),
     (False, 0.1, False), (False, 1.0, False)],
)  # fmt: skip
def test_momentum_means_the_opposite_in_torch_and_keras(keras, momentum, never):
    name = "bn/moving_variance" if keras else "bn.running_var"
    layer = LayerConfig(name="bn", class_name="BatchNormalization", momentum=momentum)
    found = settings_of(arrays={name: [1.0]}, layers=[layer])
    assert found.never_updates == (("bn",) if never else ())
