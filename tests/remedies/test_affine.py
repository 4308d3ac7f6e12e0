"""Broken gains and offsets of normalisation layers become those of a new layer, and only those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bedside import after, ailing, edits, patient, refusals

from ckptdoctor.remedies.affine import Affine
from ckptdoctor.remedies.base import Orders
from ckptdoctor.tensors import LayerConfig

NAN, INF = float("nan"), float("inf")
STATS = {"bn.running_mean": [0.1, 0.2, 0.3], "bn.running_var": [0.4, 0.5, 0.6]}


def proposed(sick: Any, *names: str, **more: Any) -> list[Any]:
    return list(Affine().propose(sick, [ailing(sick, name, **more) for name in names]))


def test_it_needs_no_asking_and_invents() -> None:
    assert not Affine().asked(Orders(bn_reset=True))
    assert Affine.kind == "destructive"


@pytest.mark.parametrize(
    ("tensors", "gamma", "beta"),
    [
        ({"bn.weight": [0.5, NAN, 0.7], "bn.bias": [NAN, 0.2, INF], **STATS}, "bn.weight", "bn.bias"),
        ({"ln.weight": [0.5, NAN, 0.7], "ln.bias": [NAN, 0.2, -INF]}, "ln.weight", "ln.bias"),
        ({"n/gamma": [0.5, NAN, 0.7], "n/beta": [NAN, 0.2, INF]}, "n/gamma", "n/beta"),
    ],
)  # fmt: skip
def test_broken_channels_get_1_and_0_and_sound_ones_stay(
    tensors: dict[str, Any], gamma: str, beta: str
) -> None:
    sick = patient(tensors)
    found = edits(proposed(sick, gamma, beta))
    np.testing.assert_array_equal(after(sick, found[gamma]), np.float32([0.5, 1.0, 0.7]))
    np.testing.assert_array_equal(after(sick, found[beta]), np.float32([0.0, 0.2, 0.0]))
    assert found[gamma].kind == "destructive"
    assert set(found[gamma].cures) == {f.code for f in sick.findings if f.tensor == gamma}
    assert set(found[beta].cures) == {"NF001", "NF002"}
    assert found[gamma].title.startswith("gain of a new layer: ones")
    assert found[beta].title.startswith("offset of a new layer: zeros")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("Zeros", 0.0),
        ({"class_name": "Constant", "value": 0.25}, 0.25),
        ("mine>Odd", 1.0),
        ({"class_name": "Constant", "value": 1e9}, 1.0),
    ],
)
def test_the_layers_own_initialiser_is_used_where_it_can_be(stored: Any, expected: float) -> None:
    layer = LayerConfig(
        name="n", class_name="LayerNormalization", settings={"gamma_initializer": stored}
    )
    tensors = {"n/gamma": np.array([0.5, NAN], "f2"), "n/beta": np.zeros(2, "f2")}
    sick = patient(tensors, layers=[layer])
    (change,) = proposed(sick, "n/gamma")
    assert after(sick, change).tolist() == [0.5, expected]


def test_a_random_initialiser_differs_from_channel_to_channel() -> None:
    law = {"class_name": "RandomNormal", "mean": 1.0, "stddev": 0.02}
    layer = LayerConfig(
        name="n", class_name="BatchNormalization", settings={"gamma_initializer": law}
    )
    tensors = {"n/gamma": [NAN, 2.0, NAN], "n/moving_variance": [1.0] * 3}
    sick = patient(tensors, layers=[layer])
    made = after(sick, proposed(sick, "n/gamma")[0])
    assert made[1] == 2.0
    assert made[0] != made[2]
    assert (abs(made[[0, 2]] - 1) < 0.1).all()
    other = patient(tensors, layers=[layer], seed=5)
    assert after(other, proposed(other, "n/gamma")[0])[0] != made[0]


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("bn.running_var", {"bn.weight": [1.0, 1.0], "bn.running_var": [NAN, 1.0]}),
        ("bn.running_mean", {"bn.weight": [1.0, 1.0], "bn.running_mean": [NAN, 1.0]}),
        ("fc.weight", {"fc.weight": [[NAN, 1.0]]}),
        ("fc.bias", {"fc.weight": [[1.0], [1.0]], "fc.bias": [NAN, 1.0]}),
        ("r.bias", {"r/kernel": np.ones((3, 3)), "r.bias": [NAN]}),
    ],
)
def test_nothing_but_gains_and_offsets_is_touched(name: str, tensors: dict[str, Any]) -> None:
    assert proposed(patient(tensors), name) == []


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("norm.weight", True), ("input_layernorm.weight", True), ("model.ln_f.weight", True),
        ("block.rms.weight", True), ("h.0.ln.weight", True), ("layer.norm1.weight", True),
        ("mix.gamma", True), ("layer_scale.weight", False), ("island.weight", False),
        ("routing.weight", False), ("scale", False),
    ],
)  # fmt: skip
def test_a_lone_vector_is_a_gain_where_its_name_says_so(name: str, norm: bool) -> None:
    sick = patient({name: [NAN, 0.5]})
    layer = sick.ctx.layers.of(name)
    if layer is None:
        assert not norm or name == "mix.gamma"
        return
    changes = proposed(sick, name)
    assert bool(edits(changes)) == norm
    if not norm:
        assert "any other vector" in refusals(changes)[name]
        assert changes[0].hint == "--donor FILE"


def test_a_stored_class_says_so_too() -> None:
    layer = LayerConfig(name="mix", class_name="RMSNorm")
    sick = patient({"mix.weight": [NAN, 0.5]}, layers=[layer])
    assert after(sick, proposed(sick, "mix.weight")[0]).tolist() == [1.0, 0.5]


def test_other_codes_and_suspicions_are_left_to_others() -> None:
    sick = patient({"bn.weight": [NAN, 1.0, 1.0], **STATS})
    assert list(Affine().propose(sick, [ailing(sick, "bn.weight", None, "TS006")])) == []
    assert proposed(sick, "bn.weight", suspected="perhaps") == []
    assert len(list(Affine().propose(sick, [ailing(sick, "bn.weight", None, "NF002")]))) == 1


def test_a_scale_of_zero_is_not_broken_for_this_remedy() -> None:
    sick = patient({"ln.weight": [0.0, NAN, 0.9], "ln.bias": [0.5] * 3})
    changes = list(Affine().propose(sick, [ailing(sick, "ln.weight", [0, 1], "WT011")]))
    assert after(sick, changes[0])[:2].tolist() == [0.0, 1.0]
    assert list(Affine().propose(sick, [ailing(sick, "ln.weight", [0], "WT011")])) == []


@pytest.mark.parametrize(("level", "expected"), [(0.2, 0.0), (0.25, 1.0), (-0.125, 0.0)])
def test_gains_that_are_differences_to_one_start_at_0(level: float, expected: float) -> None:
    gains = {f"norm{i}.weight": np.full(4, level) for i in range(3)}
    gains["norm1.weight"][2] = NAN
    sick = patient({name: gain.astype("f8") for name, gain in gains.items()})
    (change,) = proposed(sick, "norm1.weight")
    assert after(sick, change)[2] == expected
    assert ("differences to one" in change.title) == (expected == 0)


def test_a_batchnorms_gain_is_no_difference_to_one() -> None:
    sick = patient({"bn.weight": [0.01, NAN, 0.02], "bn.bias": [0.0] * 3, **STATS})
    assert after(sick, proposed(sick, "bn.weight")[0])[1] == 1.0


def test_offsets_are_0_whatever_the_gains() -> None:
    sick = patient({"ln.weight": [1.0, 1.0], "ln.bias": [NAN, 0.5]})
    assert after(sick, proposed(sick, "ln.bias")[0]).tolist() == [0.0, 0.5]


def test_a_lone_gain_with_nothing_finite_becomes_1() -> None:
    sick = patient({"norm.weight": [NAN, NAN]})
    assert after(sick, proposed(sick, "norm.weight")[0]).tolist() == [1.0, 1.0]
