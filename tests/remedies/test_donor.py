"""The donor: what it gives, what is refused, and what is said of how alike it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import bedside
import h5py
import numpy as np
import patients
import pytest

from ckptdoctor.api import open_checkpoint
from ckptdoctor.edits import Edit, Refusal, Remark
from ckptdoctor.errors import ChangedError, CkptDoctorError, UsageError
from ckptdoctor.matching import Match
from ckptdoctor.remedies import kinship
from ckptdoctor.remedies.donor import FromDonor
from ckptdoctor.remedies.donor_file import Donor
from ckptdoctor.remedies.kinship import FEWEST, NEAR, OTHER_RUN, facts_of, warnings_of
from ckptdoctor.remedies.likeness import Likeness

PARTS = ("running_mean", "running_var", "weight", "bias")


def moved(state, by=0.03, seed=5):
    """Earlier checkpoint of the same run: every matrix lies ``by`` of its norm away."""
    random = np.random.default_rng(seed)
    made = {}
    for name, value in state.items():
        made[name] = value
        if value.ndim > 1:
            step = random.normal(size=value.shape)
            step *= by * np.linalg.norm(value) / np.linalg.norm(step)
            made[name] = (value + step).astype(value.dtype)
        elif value.ndim == 1:
            made[name] = (value * 1.01).astype(value.dtype)
    return made


def broken(state, *faults):
    """State with elements set: (name, index, value)."""
    made = {name: value.copy() for name, value in state.items()}
    for name, index, value in faults:
        made[name][index] = value
    return made


def treated(patient, donor, *ailments):
    """What the remedy proposes when it has this donor."""
    patient.donor = donor
    return list(FromDonor().propose(patient, ailments))


def beside(state, donor_state, tmp_path, **orders):
    """Patient in memory, donor on disk."""
    path = patients.save_torch(tmp_path / "older.pt", donor_state)
    patient = bedside.patient(state, donor=str(path), **orders)
    return patient, Donor.open(path, patient.ctx)


NAN = float("nan")
SICK = (
    ("bn2.running_mean", 3, NAN),
    ("bn2.running_var", 3, NAN),
    ("bn2.running_var", 5, -1.0),
    ("bn2.weight", 7, np.inf),
    ("bn2.bias", 0, -np.inf),
)


def test_broken_channels_get_the_donors_numbers_and_no_others_change(tmp_path):
    state = patients.state()
    old = moved(state)
    patient, donor = beside(broken(state, *SICK), old, tmp_path)
    bad = {"running_mean": [3], "running_var": [3, 5], "weight": [7], "bias": [0]}
    with donor:
        ailments = [bedside.ailing(patient, f"bn2.{part}", at, "BN001") for part, at in bad.items()]
        edits = bedside.edits(treated(patient, donor, *ailments))
        assert set(edits) == {f"bn2.{part}" for part in bad}
        for part, at in bad.items():
            edit = edits[f"bn2.{part}"]
            assert edit.indices.tolist() == at
            assert (edit.kind, edit.remedy, edit.cures) == ("statistical", "donor", ("BN001",))
            assert "'older.pt'" in edit.title
            expected = state[f"bn2.{part}"].copy()
            expected[at] = old[f"bn2.{part}"][at]
            assert bedside.after(patient, edit).tobytes() == expected.tobytes()


def test_what_it_claims_to_cure_is_cured(tmp_path):
    state = patients.state()
    sick = broken(state, ("bn1.running_var", 2, NAN), ("bn1.running_mean", 2, NAN))
    patient, donor = beside(sick, moved(state), tmp_path)
    assert "BN001" in {f.code for f in patient.findings}
    with donor:
        ailments = [bedside.ailing(patient, f"bn1.{part}") for part in PARTS[:2]]
        edits = bedside.edits(treated(patient, donor, *ailments))
    cured = dict(sick) | {name: bedside.after(patient, edit) for name, edit in edits.items()}
    assert not bedside.patient(cured).findings


@pytest.mark.parametrize("donor", ["checkpoint", "half", "Keras"])
def test_a_donor_may_have_another_format_and_type(tmp_path, donor):
    state = patients.state()
    path = tmp_path / "older"
    if donor == "checkpoint":
        patients.save_torch(path, {"state_dict": {f"model.{k}": v for k, v in state.items()}})
    elif donor == "half":
        floats = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in state.items()}
        patients.save_torch(path, floats)
    else:
        with h5py.File(path, "w") as file:
            names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
                     "running_var": "moving_variance"}  # fmt: skip
            for name, value in state.items():
                layer, part = name.split(".")
                if layer.startswith("bn") and part in names:
                    file[f"{layer}/{layer}/{names[part]}:0"] = value
    patient = bedside.patient(broken(state, ("bn3.running_var", 1, NAN)))
    if donor == "Keras":  # kernels are laid out another way: too few weights match
        with pytest.raises(UsageError, match="another architecture"):
            Donor.open(path, patient.ctx)
        return
    with Donor.open(path, patient.ctx) as opened:
        ailment = bedside.ailing(patient, "bn3.running_var")
        [edit] = treated(patient, opened, ailment)
        assert edit.after().dtype == np.float32
        assert edit.after()[0] == pytest.approx(state["bn3.running_var"][1], rel=1e-3)


def test_keras_files_take_from_each_others_layouts(tmp_path):
    layers = patients.keras_state()
    sick = {name: dict(weights) for name, weights in layers.items()}
    sick["bn2"]["moving_variance"] = np.full(16, NAN, np.float32)
    older = tmp_path / "older.weights.h5"
    with h5py.File(older, "w") as file:
        for i, (name, weights) in enumerate(layers.items()):
            group = file.create_group(f"layers/any_{i}/vars")
            group.attrs["name"] = name
            for j, value in enumerate(weights.values()):
                group[str(j)] = value
    path = patients.save_keras(tmp_path / "model.h5", sick)
    with open_checkpoint(path) as table:
        patient = bedside.patient(table)
        with Donor.open(older, patient.ctx) as donor:
            name = "model_weights/bn2/bn2/moving_variance:0"
            [edit] = treated(patient, donor, bedside.ailing(patient, name))
            assert edit.after().tobytes() == layers["bn2"]["moving_variance"].tobytes()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "part", "word"),
    [
        (NAN, "running_var", "not finite or not above zero"),
        (0.0, "running_var", "not finite or not above zero"),
        (-0.5, "running_var", "not finite or not above zero"),
        (np.inf, "running_mean", "not finite in 'older.pt'"),
        (NAN, "weight", "not finite in 'older.pt'"),
        (-np.inf, "bias", "not finite in 'older.pt'"),
    ],
)
def test_channels_that_are_broken_in_the_donor_too_are_refused_and_the_others_taken(
    tmp_path, value, part, word
):
    state = patients.state()
    name = f"bn2.{part}"
    old = broken(state, (name, 4, value))
    patient, donor = beside(broken(state, (name, 4, NAN), (name, 6, NAN)), old, tmp_path)
    with donor:
        refusal, edit = treated(patient, donor, bedside.ailing(patient, name, [4, 6], "BN001"))
    assert word in refusal.reason
    assert "1 of 2 channels" in refusal.reason
    assert (refusal.target, refusal.codes, refusal.remedy) == (name, ("BN001",), "donor")
    assert edit.indices.tolist() == [6]
    assert edit.after().tolist() == [state[name][6]]


@pytest.mark.parametrize("part", ["running_mean", "weight", "bias"])
def test_zero_and_negative_numbers_are_fine_where_a_variance_is_not_meant(tmp_path, part):
    state = patients.state()
    old = broken(state, (f"bn2.{part}", 4, 0.0), (f"bn2.{part}", 5, -1.0))
    patient, donor = beside(state, old, tmp_path)
    with donor:
        [edit] = treated(patient, donor, bedside.ailing(patient, f"bn2.{part}", [4, 5]))
    assert edit.after().tolist() == [0.0, -1.0]


def test_nothing_usable_gives_a_refusal_and_no_empty_edit(tmp_path):
    state = patients.state()
    sick = broken(state, ("bn2.running_var", 4, NAN))
    patient, donor = beside(sick, sick, tmp_path)
    with donor:
        [refusal] = treated(patient, donor, bedside.ailing(patient, "bn2.running_var"))
    assert isinstance(refusal, Refusal)


def test_a_number_that_overflows_in_the_patients_type_is_refused(tmp_path):
    state = patients.state()
    old = broken(state, ("bn2.running_mean", 4, 7e4), ("bn2.running_var", 4, 1e-12))
    halves = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in state.items()}
    patient, donor = beside(halves, old, tmp_path)
    with donor:
        for part in ("running_mean", "running_var"):
            ailment = bedside.ailing(patient, f"bn2.{part}", [4, 5])
            refusal, edit = treated(patient, donor, ailment)
            assert refusal.reason.startswith("1 of 2 channels do not fit into float16")
            assert edit.after().dtype == np.float16


@pytest.mark.parametrize(
    ("mean", "var", "told"),
    [(0.1, 1e7, "times the squared norm"), (0.0, 1e-30, "amplified"), (0.0, 1.0, "exactly")],
    ids=["exploded", "collapsed", "never updated"],
)
def test_a_layer_that_is_sick_in_the_donor_gives_nothing(tmp_path, mean, var, told):
    state = patients.state()
    old = dict(state)
    old["bn2.running_mean"] = np.full(16, mean, np.float32)
    old["bn2.running_var"] = np.full(16, var, np.float32)
    patient, donor = beside(broken(state, ("bn2.running_var", 4, NAN)), old, tmp_path)
    with donor:
        [refusal] = treated(patient, donor, bedside.ailing(patient, "bn2.running_var"))
        assert "sick in 'older.pt', too" in refusal.reason
        assert told in refusal.reason
        # gamma and beta are no statistics, and another layer is sound
        for name in ("bn2.weight", "bn3.running_var"):
            [edit] = treated(patient, donor, bedside.ailing(patient, name, [4]))
            assert isinstance(edit, Edit)


def test_a_tensor_without_a_partner_is_refused_with_the_nearest_names(tmp_path):
    state = patients.state()
    old = {name.replace("bn2.", "bn_two."): value for name, value in state.items()}
    patient, donor = beside(broken(state, ("bn2.running_var", 4, NAN)), old, tmp_path)
    with donor:
        [refusal] = treated(patient, donor, bedside.ailing(patient, "bn2.running_var"))
    assert "no such tensor" in refusal.reason
    assert "bn_two.running_var" in refusal.reason


def test_another_shape_is_refused_with_both(tmp_path):
    state = patients.state()
    old = dict(state) | {"bn2.running_var": np.ones(12, np.float32)}
    patient, donor = beside(broken(state, ("bn2.running_var", 4, NAN)), old, tmp_path)
    with donor:
        [refusal] = treated(patient, donor, bedside.ailing(patient, "bn2.running_var"))
    assert "of this shape: 'bn2.running_var' is 12" in refusal.reason


def test_kernels_are_not_taken_without_being_named(tmp_path):
    state = patients.state()
    patient, donor = beside(broken(state, ("conv2.weight", (0, 0, 0, 0), NAN)), state, tmp_path)
    with donor:
        assert treated(patient, donor, bedside.ailing(patient, "conv2.weight")) == []


def test_layer_norms_get_gamma_and_beta_too(tmp_path):
    state = {"ln.weight": np.ones(4, np.float32), "ln.bias": np.zeros(4, np.float32),
             "fc.weight": np.eye(4, dtype=np.float32)}  # fmt: skip
    patient, donor = beside(broken(state, ("ln.weight", 1, NAN)), state, tmp_path)
    with donor:
        [edit] = treated(patient, donor, bedside.ailing(patient, "ln.weight"))
    assert edit.after().tolist() == [1.0]


def test_without_a_donor_nothing_is_proposed():
    patient = bedside.patient(patients.state())
    ailment = bedside.ailing(patient, "bn2.running_var", [1])
    assert list(FromDonor().propose(patient, [ailment])) == []


def test_a_donor_is_asked_for_by_its_path():
    asked = FromDonor().asked
    assert asked(bedside.patient({}, donor="x.pt").orders)
    assert not asked(bedside.patient({}).orders)


# --- suspected channels ---------------------------------------------------------------------------


def suspect(patient):
    return bedside.ailing(patient, "bn1.running_var", range(8), "BN003", suspected="raw inputs?")


def test_suspected_channels_are_taken_from_a_close_donor_where_they_are_in_order(tmp_path):
    state = patients.state()
    patient, donor = beside(state, moved(state), tmp_path)
    with donor:
        [edit] = treated(patient, donor, suspect(patient))
    assert edit.indices.size == 8


def test_suspected_channels_that_look_the_same_in_the_donor_are_left_alone(tmp_path):
    state = patients.state()
    old = dict(state) | {"bn1.running_var": np.full(8, 1e8, np.float32)}
    patient, donor = beside(state, old, tmp_path)
    with donor:
        [refusal] = treated(patient, donor, suspect(patient))
    assert refusal.reason == "raw inputs?; in 'older.pt' it looks the same"


def test_suspected_channels_are_not_taken_from_another_run(tmp_path):
    state = patients.state()
    patient, donor = beside(state, moved(state, by=0.2), tmp_path)
    with donor:
        [refusal] = treated(patient, donor, suspect(patient))
    assert "raw inputs?" in refusal.reason
    assert "another run's" in refusal.reason


def test_a_mean_is_left_alone_where_the_suspected_variance_has_no_better_value(tmp_path):
    """An infinite float16 variance whose true value is beyond float16: nothing is wrong."""
    state = patients.state()
    state["conv1.weight"] *= 300
    old = broken(state, ("bn1.running_var", 3, 7e4))
    half = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in state.items()}
    patient, donor = beside(half, old, tmp_path)
    with donor:
        for part in ("running_mean", "running_var"):
            ailment = bedside.ailing(patient, f"bn1.{part}", [3], suspected="half?")
            [refusal] = treated(patient, donor, ailment)
            assert "half?; in 'older.pt' the variance is beyond float16, too" in refusal.reason
            [edit] = treated(patient, donor, dataclasses.replace(ailment, bad=np.array([4])))
            assert edit.indices.tolist() == [4]


def test_a_certain_fault_is_treated_although_the_donor_raises_a_warning_there(tmp_path):
    """The first layer behind raw inputs: large in donor and patient, broken in the patient."""
    state = patients.state()
    raw = dict(state) | {"bn1.running_var": np.full(8, 1e8, np.float32)}
    patient, donor = beside(broken(raw, ("bn1.running_var", 3, NAN)), raw, tmp_path)
    with donor:
        [edit] = treated(patient, donor, bedside.ailing(patient, "bn1.running_var"))
    assert edit.after().tolist() == [1e8]


# --- which donor ----------------------------------------------------------------------------------


def test_another_architecture_is_refused_with_the_keys_that_differ(tmp_path):
    state = patients.state()
    other = {"conv1.weight": state["conv1.weight"], "stem.weight": np.ones((2, 2), np.float32),
             "fc.weight": np.ones((9, 9), np.float32)}  # fmt: skip
    path = patients.save_torch(tmp_path / "other.pt", other)
    patient = bedside.patient(state)
    with pytest.raises(UsageError) as caught:
        Donor.open(path, patient.ctx)
    told = str(caught.value)
    assert f"1 of {len(state)} tensors match" in told
    assert "another shape: 'fc.weight'" in told
    assert "only in the file to repair: 'bn1.weight'" in told
    assert "only in the donor: 'stem.weight'" in told
    assert "older or sibling" in told
    assert len(told) < 1000


def match_of(matched: int, judged: int) -> Match:
    return Match(pairs={}, missing=(), surplus=(), misshaped=(), judged=judged, matched=matched)


def test_five_of_eight_weights_are_enough_and_fewer_are_not():
    assert FEWEST == 0.625
    kinship.check_architecture(match_of(5, 8), "")
    with pytest.raises(UsageError):
        kinship.check_architecture(match_of(4, 8), "")
    with pytest.raises(UsageError):
        kinship.check_architecture(match_of(0, 0), "")


def test_the_patient_itself_is_no_donor(tmp_path):
    path = patients.save_torch(tmp_path / "m.pt", patients.state())
    with open_checkpoint(path) as table:
        patient = bedside.patient(table)
        (tmp_path / "link.pt").hardlink_to(path)
        for name in ("m.pt", "link.pt"):
            with pytest.raises(UsageError, match="the file to be repaired"):
                Donor.open(tmp_path / name, patient.ctx)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x02]q\x00.", b"PK\3\4" + b"\0" * 40])
def test_a_donor_that_cannot_be_read_is_a_named_error(tmp_path, content):
    path = tmp_path / "older.pt"
    if content is not None:
        path.write_bytes(content)
    patient = bedside.patient(patients.state())
    with pytest.raises(CkptDoctorError):
        Donor.open(path, patient.ctx)


def test_a_donor_that_changes_while_it_is_open_is_an_error(tmp_path):
    state = patients.state()
    patient, donor = beside(broken(state, ("bn2.running_var", 4, NAN)), state, tmp_path)
    with donor:
        path = tmp_path / "older.pt"
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(ChangedError):
            treated(patient, donor, bedside.ailing(patient, "bn2.running_var"))


def test_a_donor_closes_its_file(tmp_path):
    state = patients.state()
    _, donor = beside(state, state, tmp_path)
    with donor:
        pass
    with pytest.raises(Exception, match=r".*"):
        donor.table.read("conv1.weight")


def test_the_nearest_names_have_the_same_last_word_first(tmp_path):
    state = patients.state()
    _, donor = beside(state, state, tmp_path)
    with donor:
        assert donor.nearest("bn9.running_var")[0].endswith("running_var")
        assert len(donor.nearest("bn9.running_var")) == 3
        assert donor.nearest("%%%") == []


# --- how alike ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "says", "warns"),
    [
        (0.0, "its weights are the same", ""),
        (0.03, "a checkpoint of the same run, by its weights", ""),
        (0.3, "weights differ by 30 %", "fit these weights less well"),
        (1.41, "weights differ by 141 %", "another training run"),
    ],
)
def test_how_far_the_weights_lie_apart_is_said(tmp_path, by, says, warns):
    state = patients.state()
    patient, donor = beside(broken(state, ("bn2.running_var", 4, NAN)), moved(state, by), tmp_path)
    with donor:
        assert f"{len(state)} of {len(state)} tensors match" in donor.facts
        assert any(says in fact for fact in donor.facts)
        assert bool(donor.warnings) == bool(warns)
        proposed = treated(patient, donor, bedside.ailing(patient, "bn2.running_var"))
        remarks = [each.text for each in proposed if isinstance(each, Remark)]
        assert remarks == list(donor.warnings)
        assert all(warns in text for text in remarks)


def test_a_warning_is_said_once_and_only_with_a_change(tmp_path):
    state = patients.state()
    patient, donor = beside(broken(state, *SICK), moved(state, 1.41), tmp_path)
    with donor:
        ailments = [bedside.ailing(patient, f"bn2.{part}", [3]) for part in PARTS]
        proposed = treated(patient, donor, *ailments)
        assert sum(isinstance(each, Remark) for each in proposed) == 1
        assert isinstance(proposed[0], Remark)
        assert treated(patient, donor) == []


def likeness(median: float) -> Likeness:
    return Likeness(3, median, median * 2, "w")


def test_a_tenth_is_the_same_run_and_from_one_on_it_is_another():
    assert (NEAR, OTHER_RUN) == (0.1, 1.0)
    assert not list(warnings_of(likeness(0.1)))
    assert "less well" in next(warnings_of(likeness(0.101)))
    assert "less well" in next(warnings_of(likeness(0.999)))
    assert "another training run" in next(warnings_of(likeness(1.0)))
    assert not list(warnings_of(None))
    assert "same run" in list(facts_of(match_of(1, 1), likeness(0.1)))[-1]
    assert "same run" not in list(facts_of(match_of(1, 1), likeness(0.101)))[-1]
    assert len(list(facts_of(match_of(1, 1), None))) == 1


def test_missing_and_misshaped_tensors_are_facts():
    found = dataclasses.replace(
        match_of(7, 10), missing=("a", "b", "c", "d", "e"), misshaped=(("f", "g"),)
    )
    assert list(facts_of(found, None)) == [
        "7 of 10 tensors match",
        "1 have another shape: 'f'",
        "5 are not in the donor: 'a', 'b', 'c' and 2 more",
    ]


def test_running_statistics_and_gains_do_not_count_for_likeness(tmp_path):
    state = patients.state()
    old = dict(state)
    for name in state:
        if "bn" in name and state[name].ndim == 1:
            old[name] = np.full(state[name].shape, 7.0, np.float32)
    _, donor = beside(state, old, tmp_path)
    with donor:
        assert donor.likeness.worst == 0


def test_tensors_that_are_not_finite_here_do_not_count_for_likeness(tmp_path):
    state = patients.state()
    _patient, donor = beside(broken(state, ("conv1.weight", 0, NAN)), state, tmp_path)
    with donor:
        assert donor.likeness.tensors == sum(value.ndim > 1 for value in state.values()) - 1


def test_vectors_are_compared_where_there_are_no_matrices(tmp_path):
    state = {"bn.weight": np.ones(4, np.float32), "bn.running_var": np.ones(4, np.float32),
             "bn.running_mean": np.zeros(4, np.float32)}  # fmt: skip
    old = dict(state) | {
        "bn.weight": np.full(4, 2.0, np.float32),
        "bn.running_var": 9 * state["bn.weight"],
    }
    _, donor = beside(state, old, tmp_path)
    with donor:
        assert donor.likeness == Likeness(1, 1.0, 1.0, "bn.weight")


@pytest.mark.oracle
def test_a_repaired_module_of_torch_predicts_again(tmp_path: Path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
    )
    model(torch.randn(8, 3, 8, 8))
    torch.save({"model": model.state_dict()}, tmp_path / "older.pt")
    sick = {name: value.clone() for name, value in model.state_dict().items()}
    sick["1.running_var"][:] = NAN
    torch.save(sick, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as table:
        patient = bedside.patient(table)
        with Donor.open(tmp_path / "older.pt", patient.ctx) as donor:
            [edit] = treated(patient, donor, bedside.ailing(patient, "1.running_var"))
            sick["1.running_var"] = torch.from_numpy(bedside.after(patient, edit).copy())
    expected = model.eval()(torch.ones(1, 3, 8, 8))
    model.load_state_dict(sick)
    assert torch.equal(model.eval()(torch.ones(1, 3, 8, 8)), expected)
