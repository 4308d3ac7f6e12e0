"""Grafts: a named tensor becomes the donor's as a whole, or is refused with the reason."""

from __future__ import annotations

import dataclasses

import bedside
import numpy as np
import patients
import pytest

from ckptdoctor.api import open_checkpoint
from ckptdoctor.edits import Edit, Refusal, Remark
from ckptdoctor.remedies.donor_file import Donor
from ckptdoctor.remedies.graft import Graft

NAN = float("nan")


def naming(tensors, patterns, donor=""):
    """Patient whose orders name tensors."""
    patient = bedside.patient(tensors, donor=str(donor))
    patient.orders = dataclasses.replace(patient.orders, tensors=tuple(patterns))
    return patient


def grafted(state, donor_state, tmp_path, *patterns, ailing=()):
    """What is proposed, by target, and the patient."""
    path = patients.save_torch(tmp_path / "older.pt", donor_state)
    patient = naming(state, patterns, path)
    ailments = [bedside.ailing(patient, name, None, "NF001") for name in ailing]
    with Donor.open(path, patient.ctx) as donor:
        patient.donor = donor
        proposed = list(Graft().propose(patient, ailments))
        for each in proposed:
            if isinstance(each, Edit):  # a callable reads the donor, which is closed behind us
                object.__setattr__(each, "values", each.after())
    return patient, proposed


def test_named_tensors_become_the_donors_and_no_others_change(tmp_path):
    state = patients.state()
    old = {name: value * 2 for name, value in state.items()}
    old["bn1.num_batches_tracked"] = np.array(7, np.int64)
    old = {name: np.asarray(value, state[name].dtype) for name, value in old.items()}
    patient, proposed = grafted(
        state, {"model": old}, tmp_path, "fc.*", "bn1.num_batches_tracked", "bn1.running_var"
    )
    edits = bedside.edits(proposed)
    assert list(edits) == ["bn1.running_var", "bn1.num_batches_tracked", "fc.weight", "fc.bias"]
    for name, edit in edits.items():
        assert edit.indices is None
        assert (edit.kind, edit.remedy, edit.cures) == ("statistical", "graft", ())
        assert f"'model.{name}' of 'older.pt'" in edit.title
        assert "cast" not in edit.title
        assert bedside.after(patient, edit).tobytes() == old[name].tobytes()


def test_a_graft_of_a_nan_kernel_cures_it(tmp_path):
    state = patients.state()
    sick = dict(state) | {"fc.weight": np.full((4, 16), NAN, np.float32)}
    patient, [edit] = grafted(sick, state, tmp_path, "fc.weight", ailing=["fc.weight"])
    assert edit.cures == ("NF001",)
    cured = dict(sick) | {"fc.weight": bedside.after(patient, edit)}
    assert not bedside.patient(cured).findings


def test_values_are_read_when_they_are_written_not_before(tmp_path):
    state = patients.state()
    path = patients.save_torch(tmp_path / "older.pt", state)
    patient = naming(state, ["conv3.weight"], path)
    with Donor.open(path, patient.ctx) as donor:
        patient.donor = donor
        [edit] = Graft().propose(patient, [])
        assert callable(edit.values)
        assert edit.after().tobytes() == state["conv3.weight"].tobytes()


def halves(state):
    return {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in state.items()}


def test_a_donor_of_another_precision_is_cast_and_said_to_be(tmp_path):
    state = patients.state()
    _, [edit] = grafted(halves(state), state, tmp_path, "fc.weight")
    assert edit.after().dtype == np.float16
    assert edit.after().tobytes() == state["fc.weight"].astype(np.float16).tobytes()
    assert edit.title.endswith(", cast from float32")


def set_one(state, name, value):
    made = {key: each.copy() for key, each in state.items()}
    made[name].reshape(-1)[0] = value
    return made


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("fc.weight", NAN, "1 of 64 elements are not finite there"),
        ("fc.weight", 1e6, "1 of 64 elements do not fit into float16"),
        ("bn2.running_var", 0.0, "not above zero"),
    ],
)
def test_what_cannot_stand_in_the_patient_is_refused(tmp_path, name, value, told):
    state = patients.state()
    _, [refusal] = grafted(halves(state), set_one(state, name, value), tmp_path, name)
    assert isinstance(refusal, Refusal)
    assert (refusal.target, refusal.remedy) == (name, "graft")
    assert told in refusal.reason
    assert "'older.pt'" in refusal.reason


def test_a_zero_mean_is_no_fault(tmp_path):
    state = patients.state()
    _, [edit] = grafted(
        state, set_one(state, "bn2.running_mean", 0.0), tmp_path, "bn2.running_mean"
    )
    assert isinstance(edit, Edit)


def test_a_tensor_without_a_partner_is_refused_with_the_nearest_names(tmp_path):
    state = patients.state()
    old = {name.replace("fc.", "head."): value for name, value in state.items()}
    old["head.extra"] = np.ones(3, np.float32)
    old["fc.weight"] = np.ones((9, 16), np.float32)
    old["other.weight"], old["other.bias"] = old.pop("head.weight"), old.pop("head.bias")
    del old["other.bias"], old["other.weight"]
    _, proposed = grafted(state, old, tmp_path, "fc.*")
    told = bedside.refusals(proposed)
    assert "of this shape: 'fc.weight' is 9x16" in told["fc.weight"]
    assert "nearest: " in told["fc.bias"]
    assert ".bias'" in told["fc.bias"]


def test_integers_and_floats_are_not_exchanged(tmp_path):
    state = patients.state()
    old = dict(state) | {"bn1.num_batches_tracked": np.array(3.0, np.float32)}
    _, [refusal] = grafted(state, old, tmp_path, "bn1.num_batches_tracked")
    assert "float32 there, int64 here" in refusal.reason


def test_optimizer_state_can_be_named(tmp_path):
    state = patients.state()
    tree = {"model": state, "optimizer": patients.adam(state)}
    sick = patients.save_torch(tmp_path / "model.pt", tree)
    tree["optimizer"]["state"][3]["exp_avg"] = tree["optimizer"]["state"][3]["exp_avg"] + 1
    older = patients.save_torch(tmp_path / "older.pt", tree)
    with open_checkpoint(sick) as table:
        patient = naming(table, ["optimizer.state.3.exp_avg"], older)
        with Donor.open(older, patient.ctx) as donor:
            patient.donor = donor
            [edit] = Graft().propose(patient, [])
            expected = tree["optimizer"]["state"][3]["exp_avg"]
            assert edit.after().tobytes() == expected.tobytes()


def test_the_donors_warnings_are_passed_on(tmp_path):
    state = patients.state()
    random = np.random.default_rng(0)
    old = {k: v if v.ndim < 2 else random.permuted(v).reshape(v.shape) for k, v in state.items()}
    _, [remark, _] = grafted(state, old, tmp_path, "fc.bias")
    assert isinstance(remark, Remark)
    assert "another training run" in remark.text


def test_only_what_the_planner_named_is_grafted(tmp_path):
    state = patients.state()
    path = patients.save_torch(tmp_path / "older.pt", state)
    patient = naming(state, ["fc.*"], path)
    patient.named = frozenset({"fc.bias"})
    with Donor.open(path, patient.ctx) as donor:
        patient.donor = donor
        assert [edit.tensor for edit in Graft().propose(patient, [])] == ["fc.bias"]


def test_it_needs_both_a_donor_and_a_name(tmp_path):
    asked = Graft().asked
    assert asked(naming({}, ["a"], "x.pt").orders)
    assert not asked(bedside.patient({}, donor="x.pt").orders)
    assert not asked(naming({}, ["a"]).orders)
    state = patients.state()
    assert list(Graft().propose(naming(state, ["fc.*"]), [])) == []
    path = patients.save_torch(tmp_path / "older.pt", state)
    patient = bedside.patient(state, donor=str(path))
    with Donor.open(path, patient.ctx) as donor:
        patient.donor = donor
        assert list(Graft().propose(patient, [])) == []
