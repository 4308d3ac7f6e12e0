"""The planner: every remedy in turn, classes held to what is allowed, nothing treated twice."""

from __future__ import annotations

from dataclasses import replace

import bedside
import numpy as np
import pytest

from ckptdoctor import plan as plan_module
from ckptdoctor.edits import Edit, NumberEdit, Refusal, Remark, Removal, Restamp, Trim
from ckptdoctor.errors import UsageError
from ckptdoctor.findings import Finding, Severity
from ckptdoctor.plan import make_plan, name_tensors
from ckptdoctor.remedies import LADDER
from ckptdoctor.remedies.base import Remedy
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


def tied(*names, values=(NAN, 2.0)):
    """Names of one memory."""
    source = WindowSource.over(np.array(values, "f4").tobytes(), "m.bin")
    infos = {
        name: TensorInfo(
            name=name, path=tuple(name.split(".")), dtype="float32", shape=(len(values),),
            extent=Extent(source, 0, 4 * len(values)), storage="0",
        )
        for name in names
    }  # fmt: skip
    return TensorTable(path="m", format="memory", infos=infos)


class Given(Remedy):
    """Proposes what it is told to."""

    kind = "lossless"

    def __init__(self, *proposals, name="given", kind="lossless"):
        self.proposals, self.name, self.kind = proposals, name, kind

    def propose(self, patient, ailments):
        yield from self.proposals

    def change(self, tensor, indices, *cures, title="as given"):
        at = None if indices is None else np.array(indices)
        values = np.ones(2 if indices is None else len(indices), "f4")
        return Edit(tensor=tensor, indices=at, values=values, remedy=self.name, kind=self.kind,
                    cures=cures, title=title)  # fmt: skip


def given(monkeypatch, tensors, *remedies, findings=None):
    """The plan that a ladder of such remedies gives."""
    monkeypatch.setattr(plan_module, "LADDER", remedies)
    sick = bedside.patient(tensors)
    return make_plan(sick if findings is None else replace(sick, findings=findings))


TIED = ("a.bn.running_var", "b.bn.running_var")
EDIT = Given().change


class TestSharedMemory:
    """Tied weights are one thing under two names."""

    @pytest.mark.parametrize("orders", [{"bn_reset": True}, {"allow": "destructive"}])
    def test_other_names_are_treated_with_it(self, orders):
        plan = planned(tied(*TIED), **orders)
        assert len(plan.changes) == 1
        assert not plan.refusals

    def test_one_wish_for_both_is_done_once(self):
        plan = planned(tied("a.weight", "b.weight"), reinit=["a.weight=zeros", "b.weight=zeros"])
        assert [(c.tensor, c.indices) for c in plan.changes] == [("a.weight", None)]

    @pytest.mark.parametrize("values", [(NAN, 2.0), (1.0, 2.0)], ids=["sick", "healthy"])
    @pytest.mark.parametrize("first", ["a.weight=zeros", "*=zeros"])
    def test_two_wishes_for_both_are_declined(self, first, values):
        with pytest.raises(UsageError, match="expected one wish for both, found two"):
            planned(tied("a.weight", "b.weight", values=values), reinit=[first, "b.weight=ones"])

    @pytest.mark.parametrize("cures", [(), ("NF001",)], ids=["healthy", "sick"])
    def test_wishes_of_two_options_are_two_as_well(self, monkeypatch, cures):
        """Such as a graft of one and a law for the other."""
        a, b = (
            EDIT("a.weight", None, *cures, title="grafted"),
            EDIT("b.weight", None, title="drawn"),
        )
        same = EDIT("b.weight", None, *cures, title="grafted")
        table = tied("a.weight", "b.weight")
        with pytest.raises(UsageError, match="expected one wish for both, found two"):
            given(monkeypatch, table, Given(a), Given(b))
        assert given(monkeypatch, table, Given(a), Given(same)).changes == (a,)

    def test_two_cures_of_both_are_one(self, monkeypatch):
        a, b = EDIT(TIED[0], [0], "BN001", title="one"), EDIT(TIED[1], [0], "BN001", title="other")
        assert given(monkeypatch, tied(*TIED), Given(a, b)).changes == (a,)

    def test_two_grafts_of_both_are_one_whatever_the_donor_calls_them(self, monkeypatch):
        a, b = (
            EDIT(f"{name}.weight", None, "NF001", title=f"of {name}, tied there too")
            for name in ("a", "b")
        )
        table = tied("a.weight", "b.weight")
        assert given(monkeypatch, table, Given(a), Given(b)).changes == (a,)

    @pytest.mark.parametrize("second", [[1], None], ids=["another element", "all elements"])
    def test_other_elements_under_the_other_name_are_treated_too(self, monkeypatch, second):
        a, b = EDIT(TIED[0], [0], "BN001"), EDIT(TIED[1], second, "BN001")
        made = given(monkeypatch, tied(*TIED, values=(NAN, NAN)), Given(a), Given(b))
        assert made.changes == (a, b)
        assert not made.refusals

    def test_wishes_for_the_same_elements_are_two_as_well(self, monkeypatch):
        a, b = EDIT(TIED[0], [0], title="one"), EDIT(TIED[1], [0], title="other")
        with pytest.raises(UsageError, match="expected one wish for both, found two"):
            given(monkeypatch, tied(*TIED), Given(a), Given(b))


class TestWhatIsSaid:
    def test_where_nothing_is_proposed_all_that_is_broken_is_told(self, monkeypatch):
        plan = given(monkeypatch, SICK, Given())
        assert {r.target: r.reason for r in plan.refusals} == {
            "bn.running_mean": "no other statistics are at hand",
            "bn.running_var": "no other statistics are at hand",
        }

    def test_one_layer_does_not_speak_for_another(self, monkeypatch):
        other = {name.replace("bn.", "bn2."): value for name, value in SICK.items()}
        no = Refusal(target="bn.running_mean", reason="no", remedy="given")
        plan = given(monkeypatch, SICK | other, Given(no))
        assert [r.target for r in plan.refusals] == [
            "bn.running_mean", "bn2.running_mean", "bn2.running_var",
        ]  # fmt: skip

    def test_statistics_do_not_speak_for_the_gain(self, monkeypatch):
        no = Refusal(target="bn.running_mean", reason="no", remedy="given")
        plan = given(monkeypatch, SICK | {"bn.weight": [NAN, 1.0]}, Given(no))
        assert {r.target: r.reason for r in plan.refusals} == {
            "bn.running_mean": "no", "bn.weight": "what was trained is lost",
        }  # fmt: skip

    def test_a_finding_stays_where_only_another_of_its_code_is_cured(self, monkeypatch):
        tensors = {"a.weight": np.zeros((4, 4), "f4"), "b.weight": np.zeros((4, 4), "f4")}
        one, other = (
            Finding(code="XX001", name="odd", severity=Severity.ERROR, message="", tensor=name)
            for name in tensors
        )
        cure = Given(EDIT("a.weight", [0], "XX001"))
        plan = given(monkeypatch, tensors, cure, findings=(one, other))
        assert [(r.target, r.codes) for r in plan.refusals] == [("b.weight", ("XX001",))]

    def test_a_finding_about_the_file_is_cured_by_its_code(self, monkeypatch):
        found = tuple(
            Finding(code=code, name="odd", severity=severity, message="", where="m")
            for code, severity in (("XX001", Severity.ERROR), ("XX002", Severity.ERROR),
                                   ("XX003", Severity.WARNING))
        )  # fmt: skip
        cut = Trim(size=3, remedy="given", kind="lossless", cures=("XX001",), title="cut")
        plan = given(monkeypatch, {"w": [1.0]}, Given(cut), findings=found)
        assert [(r.target, r.codes) for r in plan.refusals] == [("m", ("XX002",))]

    def test_one_refusal_speaks_for_its_layer(self, monkeypatch):
        no = Refusal(target="bn.running_mean", reason="no", remedy="given")
        assert given(monkeypatch, SICK, Given(no)).refusals == (no,)

    def test_one_refusal_of_each_is_enough(self, monkeypatch):
        no = Refusal(target="w", reason="no", remedy="given")
        assert given(monkeypatch, {"w": [NAN]}, Given(no, no), Given(no)).refusals == (no,)

    def test_what_is_cured_later_was_not_refused(self, monkeypatch):
        no = Refusal(target="w", reason="no", remedy="first")
        cure = EDIT("w", [0], "NF001")
        plan = given(monkeypatch, {"w": [NAN, 1.0]}, Given(no), Given(cure))
        assert (plan.changes, plan.refusals) == ((cure,), ())

    def test_what_nobody_does_costs_nothing(self, monkeypatch):
        said = Remark(remedy="given", text="it costs points")
        cure = EDIT("w", [0], "NF001")
        assert given(monkeypatch, {"w": [NAN]}, Given(said)).warnings == ()
        done = given(monkeypatch, {"w": [NAN]}, Given(said, cure), Given(said, name="no other"))
        assert done.warnings == ("it costs points",)


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


@pytest.mark.parametrize("option", ["bn_reset", "bn_silence"])
def test_resets_of_what_is_no_statistic_are_declined(option):
    message = f"--{option.replace('_', '-')} treats running means and variances, and --tensor"
    with pytest.raises(UsageError, match=message):
        planned(SICK, tensors=["bn.weight", "conv.*"], **{option: True})


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


class TestNotAllowed:
    """What is too much unasked is named as its finding is, so that the answer counts it."""

    def test_a_checksum_is_named_by_its_place(self, monkeypatch):
        stamp = Restamp(where="m.pt:data/0", remedy="given", kind="destructive",
                        cures=("CK001",), title="stated anew")  # fmt: skip
        (no,) = given(monkeypatch, {"w": [1.0]}, Given(stamp)).refusals
        assert (no.target, no.codes, no.hint) == ("m.pt:data/0", ("CK001",), "--allow destructive")

    def test_a_number_is_named_by_what_would_be_done(self, monkeypatch):
        number = NumberEdit(name="scale", before=0.0, value=1.0, remedy="given",
                            kind="destructive", cures=("TS005",), title="scale 1")  # fmt: skip
        plan = given(monkeypatch, {"w": [1.0]}, Given(number))
        assert plan.changes == ()
        assert [no.target for no in plan.refusals] == ["scale 1"]

    def test_a_number_that_is_set_cures_its_finding(self, monkeypatch):
        number = NumberEdit(name="scale", before=0.0, value=1.0, remedy="given",
                            kind="lossless", cures=("TS005",), title="scale 1")  # fmt: skip
        finding, other = (
            Finding(code="TS005", name="odd", severity=Severity.ERROR, message="", tensor=name)
            for name in ("scale", "scale2")
        )
        plan = given(monkeypatch, {"w": [1.0]}, Given(number), findings=(finding, other))
        assert plan.changes == (number,)
        assert [no.target for no in plan.refusals] == ["scale2"]

    def test_lost_moments_are_told_how_to_go(self, monkeypatch):
        tensors = {"model.w": [1.0], "optimizer.state.0.exp_avg": [NAN]}
        (no,) = given(monkeypatch, tensors, Given()).refusals
        assert no.target == "optimizer.state.0.exp_avg"
        assert (no.reason, no.hint) == ("its initial value is not known", "--drop-optimizer")
