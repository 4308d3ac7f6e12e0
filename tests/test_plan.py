"""The planner: every remedy in turn, classes held to what is allowed, nothing treated twice."""

from __future__ import annotations

import bedside
import numpy as np
import pytest

from ckptdoctor.edits import Edit, Refusal, Removal
from ckptdoctor.errors import UsageError
from ckptdoctor.plan import make_plan, name_tensors
from ckptdoctor.remedies import LADDER
from ckptdoctor.sources import Extent, WindowSource
from ckptdoctor.tensors import TensorInfo, TensorTable

NAN = float("nan")
SICK = {
    "conv.weight": np.random.default_rng(0).normal(0, 0.2, (2, 3, 3, 3)).astype("f4"), "bn.weight": [1.0, 0.5], "bn.bias": [0.0, 0.0],
    "bn.running_mean": [NAN, 0.5], "bn.running_var": [NAN, 2.0],
}  # fmt: skip


def planned(tensors, /, **orders):
    sick = bedside.patient(tensors, **orders)
    sick.named = name_tensors(sick)
    return make_plan(sick)


def test_remedies_have_names_of_their_own():
    names = [remedy.name for remedy in LADDER]
    assert len(set(names)) == len(names)
    assert names.index("graft") < names.index("donor") < names.index("bn-reset")
    assert names.index("twin") < names.index("donor") < names.index("flipped-bits")


def test_healthy_file_has_an_empty_plan():
    plan = planned({"fc.weight": [[1.0, 2.0]]})
    assert (plan.changes, plan.refusals, plan.warnings) == ((), (), ())


def test_what_invents_values_is_only_named():
    plan = planned(SICK)
    assert not plan.changes
    assert {r.target: (r.remedy, r.hint) for r in plan.refusals} == {
        "bn.running_mean": ("bn-reset", "--bn-reset"),
        "bn.running_var": ("bn-reset", "--bn-reset"),
    }
    assert not plan.explicit


@pytest.mark.parametrize(
    "orders",
    [{"bn_reset": True}, {"bn_reset": True, "allow": "lossless"}, {"allow": "destructive"}],
)
def test_asking_is_consent(orders):
    plan = planned(SICK, **orders)
    assert [(c.tensor, c.indices.tolist()) for c in plan.changes] == [
        ("bn.running_mean", [0]),
        ("bn.running_var", [0]),
    ]
    assert not plan.refusals
    assert plan.explicit == ("bn_reset" in orders)


def test_estimates_can_be_ruled_out():
    tensors = {"model.fc.weight": [[1.0, 2.0]], "optimizer.state.0.exp_avg": [[NAN, 2.0]]}
    assert [c.remedy for c in planned(tensors).changes] == ["optimizer-state"]
    plan = planned(tensors, allow="lossless")
    assert not plan.changes
    assert plan.refusals[0].hint == "--allow statistical"


def test_named_actions_are_all_that_is_done():
    tensors = {**SICK, "optimizer.state.0.exp_avg": [[NAN, 2.0]]}
    plan = planned(tensors, bn_reset=True)
    assert {c.remedy for c in plan.changes} == {"bn-reset"}
    assert not plan.refusals


def test_no_element_is_treated_twice():
    tensors = {
        "model.bn.weight": [1.0, 0.5], "model.bn.running_mean": [NAN, 0.5],
        "model.bn.running_var": [NAN, 2.0],
        "ema.bn.weight": [1.0, 0.5], "ema.bn.running_mean": [0.25, 0.5],
        "ema.bn.running_var": [1.5, 2.0],
    }  # fmt: skip
    plan = planned(tensors, allow="destructive")
    assert {c.remedy for c in plan.changes} == {"twin"}
    assert sorted(c.tensor for c in plan.changes) == [
        "model.bn.running_mean",
        "model.bn.running_var",
    ]


def test_later_rungs_get_what_is_left():
    both = {"running_mean": [NAN, NAN, 0.5], "running_var": [NAN, NAN, 2.0]}
    tensors = {f"model.bn.{name}": value for name, value in both.items()}
    tensors |= {"model.bn.weight": [1.0, 0.5, 0.25], "ema.bn.weight": [1.0, 0.5, 0.25]}
    tensors |= {"ema.bn.running_mean": [0.25, NAN, 0.5], "ema.bn.running_var": [1.5, NAN, 2.0]}
    plan = planned(tensors, allow="destructive")
    treated = {(c.remedy, c.tensor): c.indices.tolist() for c in plan.changes}
    assert treated["twin", "model.bn.running_var"] == [0]
    assert treated["bn-reset", "model.bn.running_var"] == [1]
    assert treated["bn-reset", "ema.bn.running_var"] == [1]


def test_other_names_of_the_same_memory_are_treated_with_it():
    source = WindowSource.over(np.array([NAN, 2.0], "f4").tobytes(), "m.bin")
    infos = {
        name: TensorInfo(
            name=name, path=tuple(name.split(".")), dtype="float32", shape=(2,),
            extent=Extent(source, 0, 8), storage="0",
        )
        for name in ("a.bn.running_var", "b.bn.running_var")
    }  # fmt: skip
    plan = planned(TensorTable(path="m", format="memory", infos=infos), bn_reset=True)
    assert len(plan.changes) == 1


def test_what_goes_needs_no_treatment():
    tensors = {"model.fc.weight": [[1.0, 2.0]], "optimizer.state.0.exp_avg": [[NAN, 2.0]]}
    plan = planned(tensors, drop_optimizer=True)
    assert [type(c) for c in plan.changes] == [Removal]


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"fc.weight": [[1.0, NAN]]}, "no statistic tells a weight"),
        ({"fc.weight": np.zeros((4, 4), "f4"), "a.weight": [[1.0]]}, "no remedy is known"),
    ],
    ids=["a lost weight", "a finding without a remedy"],
)
def test_what_nobody_treats_is_said(tensors, reason):
    plan = planned(tensors)
    assert any(reason in refusal.reason for refusal in plan.refusals)
    assert not any(isinstance(change, Refusal) for change in plan.changes)


def test_named_tensors_are_all_that_is_treated():
    plan = planned(SICK, bn_reset=True, tensors=["bn.running_v*"])
    assert [c.tensor for c in plan.changes] == ["bn.running_var"]


def test_pattern_that_names_nothing_is_told_with_what_is_near():
    with pytest.raises(UsageError, match=r"no tensor matches 'bn.runing_var'; did you mean"):
        planned(SICK, bn_reset=True, tensors=["bn.runing_var"])


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"allow": "all"}, "expected allow to be lossless, statistical or destructive"),
        ({"bn_scope": "layer"}, "expected bn_scope to be channels, layers or all"),
        ({"tensors": "bn.*"}, "expected tensors to be a list"),
        ({"reinit": "bn.*"}, "expected reinit to be a list"),
    ],
)
def test_orders_that_mean_nothing(orders, message):
    with pytest.raises(UsageError, match=message):
        bedside.patient(SICK, **orders)


def test_nan_is_never_filled_with_one_constant_whatever_it_is():
    weight = np.full((4, 4), NAN, "f4")
    tensors = {"fc.weight": weight, "fc.bias": [NAN] * 4, **SICK,
               "bn.weight": [NAN, 1.0], "bn.bias": [NAN, 0.0]}  # fmt: skip
    plan = planned(tensors, allow="destructive")
    made = {c.tensor: c.after().tolist() for c in plan.changes if isinstance(c, Edit)}
    assert made == {
        "bn.weight": [1.0], "bn.bias": [0.0], "bn.running_mean": [0.0], "bn.running_var": [1.0],
    }  # fmt: skip


def test_what_goes_is_not_edited_before():
    tensors = {"model.fc.weight": [[1.0, 2.0]], "optimizer.state.0.step": [3.0]}
    plan = planned(tensors, drop_optimizer=True, numbers={"optimizer.state.0.step": 0})
    assert [type(c) for c in plan.changes] == [Removal]
