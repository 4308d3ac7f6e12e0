"""Reset and silence: they cure what they claim, in broken channels, and say what it costs."""

from __future__ import annotations

import bedside
import numpy as np
import pytest

from ckptdoctor.edits import Edit, Refusal, Remark
from ckptdoctor.remedies.ailments import ailments_of
from ckptdoctor.remedies.bn_reset import BnReset, initial_value
from ckptdoctor.remedies.bn_silence import BnSilence
from ckptdoctor.tensors import LayerConfig

NAN, INF = float("nan"), float("inf")
EYE = np.eye(4, dtype=np.float32)[:, :, None, None]


def net(
    mean=(0.0, 0.5, 0.2, 0.1), var=(1.0, 0.9, 1.1, 1.2), first=(1.0, 0.9, 1.1, 1.2), affine=True
):
    found = {
        "conv1.weight": EYE, "bn1.weight": np.ones(4, "f4"), "bn1.bias": np.zeros(4, "f4"),
        "bn1.running_mean": np.zeros(4, "f4"), "bn1.running_var": np.array(first, "f4"),
        "conv2.weight": EYE, "bn2.weight": np.full(4, 0.5, "f4"), "bn2.bias": np.full(4, 0.25, "f4"),
        "bn2.running_mean": np.array(mean, "f4"), "bn2.running_var": np.array(var, "f4"),
    }  # fmt: skip
    return (
        found if affine else {k: v for k, v in found.items() if k not in ("bn2.weight", "bn2.bias")}
    )


def proposed(remedy, tensors, named=(), layers=(), **orders):
    sick = bedside.patient(tensors, layers=layers, **orders)
    sick.named = frozenset(named)
    return list(remedy.propose(sick, ailments_of(sick)))


def values(changes):
    return {
        c.tensor: dict(zip(c.indices.tolist(), c.after().tolist(), strict=True))
        for c in changes
        if isinstance(c, Edit)
    }


def texts(changes):
    return [c.text for c in changes if isinstance(c, Remark)]


class TestReset:
    def test_broken_channels_start_again(self):
        changes = proposed(BnReset(), net([0, NAN, 2, NAN], [1, NAN, 3, NAN]), bn_reset=True)
        assert values(changes) == {
            "bn2.running_mean": {1: 0.0, 3: 0.0},
            "bn2.running_var": {1: 1.0, 3: 1.0},
        }
        assert not texts(changes)
        assert all(c.kind == "destructive" and c.cures == ("BN001",) for c in changes)

    def test_it_is_cured(self):
        for mean, var in (
            ([NAN] * 4, [NAN] * 4), ([0, 1, 2, 3], [NAN, 1, 1, 1]), ([0] * 4, [INF, 1, 1, 1]),
            ([0] * 4, [1, -1, 1, 1]), ([0] * 4, [3e5, 4e5, 5e5, 6e5]), ([0] * 4, [1, 1, 1, 1e6]),
        ):  # fmt: skip
            tensors = net(mean, var)
            sick = bedside.patient(tensors, bn_reset=True)
            before = {(f.code, f.tensor) for f in sick.findings}
            assert before
            for edit in bedside.edits(list(BnReset().propose(sick, ailments_of(sick)))).values():
                tensors[edit.tensor] = bedside.after(sick, edit)
            left = {(f.code, f.tensor) for f in bedside.patient(tensors).findings}
            assert not before & left

    def test_own_initialisers_count(self):
        config = LayerConfig(
            name="bn",
            class_name="BatchNormalization",
            settings={
                "moving_mean_initializer": "Ones",
                "moving_variance_initializer": {"class_name": "Constant", "value": 0.5},
            },
        )
        tensors = {"bn/moving_mean": [NAN, 1.0], "bn/moving_variance": [NAN, 1.0]}
        changes = proposed(BnReset(), tensors, layers=[config], bn_reset=True)
        assert values(changes) == {"bn/moving_mean": {0: 1.0}, "bn/moving_variance": {0: 0.5}}

    @pytest.mark.parametrize(
        ("stored", "value"),
        [
            ("Zeros", 1.0),
            ({"class_name": "Constant", "value": -1.0}, 1.0),
            ({"class_name": "Constant", "value": NAN}, 1.0),
            ({"class_name": "RandomNormal", "stddev": 2.0}, 1.0),
            ({"class_name": "Constant", "value": 4.0}, 4.0),
            ("mine>Ones", 1.0),
        ],
        ids=["zeros", "negative", "NaN", "random", "constant", "a class of somebody's own"],
    )
    def test_variance_never_starts_where_it_cannot(self, stored, value):
        config = LayerConfig(
            name="bn",
            class_name="BatchNormalization",
            settings={"moving_variance_initializer": stored},
        )
        sick = bedside.patient({"bn/moving_variance": [1.0, 2.0]}, layers=[config])
        assert initial_value(next(sick.ctx.layers.batchnorms), "var") == value

    def test_first_layer_that_is_suspected_needs_the_option(self):
        tensors = net(first=[5e6, 2e7, 5e6, 5e6])
        (left, *_) = proposed(BnReset(), tensors, allow="destructive")
        assert isinstance(left, Refusal)
        assert left.target.startswith("bn1.")
        assert left.hint == "--bn-reset --tensor 'bn1.running_*'"
        assert left.remedy == ""  # left on purpose: what was asked for is done all the same
        changes = proposed(BnReset(), tensors, bn_reset=True)
        assert values(changes)["bn1.running_var"] == dict.fromkeys(range(4), 1.0)
        (told,) = texts(changes)
        assert "model inputs of about 2,236 root mean square" in told

    def test_layer_on_the_input_says_what_it_costs(self):
        tensors = {
            "input_norm.weight": [1.0, 1.0], "input_norm.bias": [0.0, 0.0],
            "input_norm.running_mean": [0.0, NAN], "input_norm.running_var": [1.0, NAN],
            "conv.weight": np.ones((4, 2, 3, 3), "f4"),
        }  # fmt: skip
        changes = proposed(BnReset(), tensors, bn_reset=True)
        assert values(changes)["input_norm.running_var"] == {1: 1.0}
        (told,) = texts(changes)
        assert "--bn-silence" in told
        tensors |= {"input_norm.running_var": [1.0, 1e12], "input_norm.running_mean": [0.0, 9.0]}
        changes = proposed(BnReset(), tensors, bn_reset=True)
        assert not values(changes)
        assert [c.hint for c in changes] == ["--bn-reset --tensor 'input_norm.running_*'"]
        changes = proposed(BnReset(), tensors, named=["input_norm.running_var"], bn_reset=True)
        assert "input_norm.running_var" in values(changes)

    def test_stale_and_copied_statistics_are_not_reset(self):
        tensors = net([0.0] * 4, [1.0] * 4)
        tensors["bn2.num_batches_tracked"] = np.array(100)
        sick = bedside.patient(tensors)
        assert [f.code for f in sick.findings] == ["BN006"]
        assert not values(proposed(BnReset(), tensors, bn_reset=True))

    @pytest.mark.parametrize(("scope", "count"), [("channels", 1), ("layers", 4), ("all", 4)])
    def test_scope(self, scope, count):
        changes = proposed(
            BnReset(), net([0, NAN, 2, 3], [1, NAN, 3, 4]), bn_reset=True, bn_scope=scope
        )
        found = values(changes)
        assert len(found["bn2.running_var"]) == count
        assert ("bn1.running_var" in found) == (scope == "all")
        assert len(texts(changes)) == (scope != "channels")

    def test_whole_layer_is_reset_where_one_channel_is_certain(self):
        tensors = net(first=[5e6, -1.0, 5e6, 5e6])
        found = values(proposed(BnReset(), tensors, bn_reset=True, bn_scope="layers"))
        assert len(found["bn1.running_var"]) == 4


class TestSilence:
    def test_it_is_never_done_unasked(self):
        assert not proposed(BnSilence(), net([NAN] * 4, [NAN] * 4), allow="destructive")

    def test_broken_channels_are_off_and_finite(self):
        changes = proposed(BnSilence(), net([0, NAN, 2, 3], [1, NAN, 3, 4]), bn_silence=True)
        assert values(changes) == {
            "bn2.running_mean": {1: 0.0}, "bn2.running_var": {1: 1.0},
            "bn2.weight": {1: 0.0}, "bn2.bias": {1: 0.0},
        }  # fmt: skip
        assert not texts(changes)

    def test_channels_of_mean_and_variance_are_joined(self):
        changes = proposed(BnSilence(), net([NAN, 1, 2, 3], [1, NAN, 3, 4]), bn_silence=True)
        assert values(changes)["bn2.weight"] == {0: 0.0, 1: 0.0}

    def test_whole_layer_is_said(self):
        (told,) = texts(proposed(BnSilence(), net([NAN] * 4, [NAN] * 4), bn_silence=True))
        assert "nothing passes through it" in told

    def test_layer_without_gain_is_refused(self):
        changes = proposed(BnSilence(), net([NAN] * 4, [NAN] * 4, affine=False), bn_silence=True)
        assert [type(c) for c in changes] == [Refusal]
        assert changes[0].remedy == "bn-silence"

    def test_layer_with_a_gain_alone(self):
        tensors = net([0, NAN, 2, 3], [1, NAN, 3, 4])
        del tensors["bn2.bias"]
        found = values(proposed(BnSilence(), tensors, bn_silence=True))
        assert found["bn2.weight"] == {1: 0.0}

    def test_suspected_layer_is_left_alone(self):
        (left,) = proposed(BnSilence(), net(first=[5e6, 2e7, 5e6, 5e6]), bn_silence=True)
        assert isinstance(left, Refusal)

    def test_with_reset_it_takes_the_layers_on_the_input(self):
        tensors = {
            "input_norm.weight": [1.0, 1.0], "input_norm.bias": [0.0, 0.0],
            "input_norm.running_mean": [0.0, NAN], "input_norm.running_var": [1.0, NAN],
            "conv1.weight": np.ones((4, 2, 3, 3), "f4"), **net([0, NAN, 2, 3], [1, NAN, 3, 4]),
        }  # fmt: skip
        tensors["conv1.weight"] = np.ones((4, 2, 3, 3), "f4")
        sick = bedside.patient(tensors, bn_silence=True, bn_reset=True)
        touched = values(list(BnSilence().propose(sick, ailments_of(sick))))
        assert {name.partition(".")[0] for name in touched} == {"input_norm"}
