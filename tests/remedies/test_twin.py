"""Twins: an intact copy in the same file gives what is broken, and says what it is."""

from __future__ import annotations

import bedside
import numpy as np
import patients
import pytest

from ckptdoctor.api import open_checkpoint
from ckptdoctor.edits import Edit, Refusal
from ckptdoctor.remedies.ailments import ailments_of
from ckptdoctor.remedies.twin import Twin

NAN = float("nan")


def pair(model=None, ema=None, first="model", second="ema"):
    """State dict of a model and of its average, nearly the same."""
    state = patients.state()
    mean = {k: np.asarray(v * np.float32(1.01), v.dtype) for k, v in state.items()}
    tensors = {f"{first}.{name}": value.copy() for name, value in state.items()}
    tensors |= {f"{second}.{name}": value.copy() for name, value in mean.items()}
    for name, index, value in [*(model or []), *(ema or [])]:
        tensors[name][index] = value
    return tensors


def proposed(tensors, *names, suspected="", **more):
    patient = bedside.patient(tensors)
    ailments = [bedside.ailing(patient, name, suspected=suspected, **more) for name in names]
    return patient, list(Twin().propose(patient, ailments))


def test_broken_elements_of_the_average_come_from_the_model():
    name = "ema.conv2.weight"
    tensors = pair(ema=[(name, (1, 2, 0, 0), NAN), (name, (0, 0, 0, 0), np.inf)])
    patient, [edit] = proposed(tensors, name)
    model = tensors["model.conv2.weight"]
    expected = tensors[name].copy()
    expected[1, 2, 0, 0], expected[0, 0, 0, 0] = model[1, 2, 0, 0], model[0, 0, 0, 0]
    assert bedside.after(patient, edit).tobytes() == expected.tobytes()
    assert (edit.kind, edit.remedy) == ("lossless", "twin")
    assert edit.title == "as in the model's 'model.conv2.weight': the average goes on from there"
    assert "TS006" in edit.cures


def test_broken_elements_of_the_model_come_from_its_average_which_is_said():
    name = "model.conv2.weight"
    tensors = pair(model=[(name, (1, 2, 0, 0), NAN)])
    patient, [edit] = proposed(tensors, name)
    assert edit.after().tolist() == [tensors["ema.conv2.weight"][1, 2, 0, 0]]
    assert edit.kind == "lossless"
    assert "not the last weights, but their average" in edit.title
    cured = dict(tensors) | {name: bedside.after(patient, edit)}
    assert not bedside.patient(cured).findings


@pytest.mark.parametrize("part", ["running_mean", "running_var", "weight", "bias"])
def test_broken_channels_of_a_batchnorm_are_cured(part):
    name = f"model.bn2.{part}"
    tensors = pair(model=[(name, 3, NAN), (name, 9, -np.inf)])
    _, [edit] = proposed(tensors, name)
    assert edit.indices.tolist() == [3, 9]
    assert edit.after().tolist() == tensors[f"ema.bn2.{part}"][[3, 9]].tolist()


def test_whole_tensors_and_files_are_cured(tmp_path):
    state = patients.state()
    sick = dict(state) | {"fc.weight": np.full((4, 16), NAN, np.float32)}
    path = patients.save_torch(tmp_path / "m.pt", {"state_dict": sick, "state_dict_ema": state})
    with open_checkpoint(path) as table:
        patient, [edit] = proposed(table, "state_dict.fc.weight")
        assert bedside.after(patient, edit).tobytes() == state["fc.weight"].tobytes()


def test_a_copy_that_is_broken_in_the_same_place_is_refused_and_the_rest_taken():
    tensors = pair(
        model=[("model.fc.bias", 1, NAN), ("model.fc.bias", 2, NAN)],
        ema=[("ema.fc.bias", 2, np.inf)],
    )
    _, [edit, refusal] = proposed(tensors, "model.fc.bias")
    assert edit.indices.tolist() == [1]
    assert (refusal.target, refusal.remedy) == ("model.fc.bias", "twin")
    assert "'ema.fc.bias' is broken in 1 of 2 elements, too" in refusal.reason


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, np.inf])
def test_a_variance_that_is_not_above_zero_is_not_taken(value):
    name = "bn2.running_var"
    tensors = pair(model=[(f"model.{name}", 3, NAN)], ema=[(f"ema.{name}", 3, value)])
    _, [refusal] = proposed(tensors, f"model.{name}")
    assert isinstance(refusal, Refusal)


def test_a_mean_of_zero_is_taken():
    name = "bn2.running_mean"
    tensors = pair(model=[(f"model.{name}", 3, NAN)], ema=[(f"ema.{name}", 3, 0.0)])
    _, [edit] = proposed(tensors, f"model.{name}")
    assert edit.after().tolist() == [0.0]


@pytest.mark.parametrize("part", ["running_var", "running_mean"])
def test_statistics_of_a_layer_that_exploded_in_the_copy_are_no_help(part):
    tensors = pair(model=[(f"model.bn2.{part}", 3, NAN)])
    tensors["ema.bn2.running_var"][:] = 1e7
    _, [refusal] = proposed(tensors, f"model.bn2.{part}")
    assert "is no help: BN003" in refusal.reason
    _, [edit] = proposed(tensors, "model.bn2.weight", bad=[0])
    assert isinstance(edit, Edit)


def test_an_exploded_average_is_replaced_as_a_whole():
    tensors = pair()
    tensors["ema.fc.weight"] *= 1e4
    patient, [edit] = proposed(tensors)
    assert (edit.tensor, edit.indices, edit.kind) == ("ema.fc.weight", None, "statistical")
    assert edit.cures == ("TS006",)
    assert edit.after().tobytes() == tensors["model.fc.weight"].tobytes()
    cured = dict(tensors) | {"ema.fc.weight": bedside.after(patient, edit)}
    assert "TS006" not in {finding.code for finding in bedside.patient(cured).findings}


def test_an_exploded_model_is_replaced_as_a_whole():
    tensors = pair()
    tensors["model.fc.weight"] *= 1e4
    _, [edit] = proposed(tensors)
    assert edit.tensor == "model.fc.weight"
    assert "average" in edit.title


def test_an_explosion_that_was_accepted_is_left_alone():
    import dataclasses

    from ckptdoctor.findings import Severity

    tensors = pair()
    tensors["ema.fc.weight"] *= 1e4
    patient = bedside.patient(tensors)
    patient.findings = tuple(
        dataclasses.replace(each, severity=Severity.NOTE) for each in patient.findings
    )
    assert list(Twin().propose(patient, [])) == []


def test_an_average_in_half_precision_is_cast_and_never_overflows():
    tensors = pair(ema=[("ema.fc.bias", 1, NAN), ("ema.fc.bias", 2, NAN)])
    tensors["ema.fc.bias"] = tensors["ema.fc.bias"].astype(np.float16)
    tensors["model.fc.bias"][2] = 1e6
    _, [edit, refusal] = proposed(tensors, "ema.fc.bias")
    assert edit.indices.tolist() == [1]
    assert edit.after().dtype == np.float16
    assert isinstance(refusal, Refusal)


def test_a_suspicion_is_no_reason_to_take_the_copy():
    tensors = pair(model=[("model.fc.bias", 1, NAN)])
    assert proposed(tensors, "model.fc.bias", suspected="raw inputs?")[1] == []


def test_a_tensor_without_a_copy_is_left_to_other_remedies_in_silence():
    state = patients.state()
    state["fc.bias"][1] = NAN
    assert proposed(state, "fc.bias")[1] == []


# --- two states of one model ----------------------------------------------------------------------


def test_an_identical_state_below_another_key_is_lossless():
    tensors = pair(second="state_dict", model=[("model.fc.weight", (0, 0), NAN)])
    for name in list(tensors):
        if name.startswith("state_dict."):
            tensors[name] = tensors[name.replace("state_dict.", "model.")].copy()
    tensors["state_dict.fc.weight"][0, 0] = 0.5
    _, [edit] = proposed(tensors, "model.fc.weight")
    assert edit.after().tolist() == [0.5]
    assert edit.kind == "lossless"
    assert edit.title == "as in its copy 'state_dict.fc.weight'; what is sound is identical in both"


def test_another_state_of_the_same_run_is_statistical_and_says_how_far_it_is():
    tensors = pair(second="state_dict", model=[("model.fc.weight", (0, 0), NAN)])
    _, [edit] = proposed(tensors, "model.fc.weight")
    assert edit.kind == "statistical"
    assert edit.title.endswith("another state of the model: weights differ by 1 %")


def test_another_net_of_the_same_shapes_is_no_copy():
    tensors = pair(second="state_dict", model=[("model.fc.weight", (0, 0), NAN)])
    random = np.random.default_rng(0)
    for name in tensors:
        if name.startswith("state_dict.") and tensors[name].ndim > 1:
            tensors[name] = random.permuted(tensors[name]).reshape(tensors[name].shape)
    assert proposed(tensors, "model.fc.weight")[1] == []


def test_an_identical_state_goes_before_the_average():
    tensors = pair(model=[("model.fc.bias", 1, NAN)])
    tensors |= {f"state_dict.{n[6:]}": v.copy() for n, v in tensors.items() if n[:6] == "model."}
    tensors["state_dict.fc.bias"][1] = 0.25
    _, [edit] = proposed(tensors, "model.fc.bias")
    assert edit.after().tolist() == [0.25]
    tensors["state_dict.fc.bias"][1] = np.inf
    _, [edit] = proposed(tensors, "model.fc.bias")
    assert edit.after().tolist() == [tensors["ema.fc.bias"][1]]


def test_tensors_of_one_container_are_not_copies_of_each_other():
    state = patients.state()
    twice = {f"a.{name}": value for name, value in state.items()}
    twice |= {f"b.{name}": value.copy() for name, value in state.items()}
    twice["a.fc.bias"][1] = NAN
    assert proposed(twice, "a.fc.bias")[1] == []


def test_what_exploded_beside_the_nan_goes_as_well():
    average = np.array([[np.nan, 3.0e14, 49.9, -50.1]], np.float32)
    model = np.array([[0.5, 0.25, -0.4, 0.125]], np.float32)
    sick = bedside.patient({"model.fc.weight": model, "ema.fc.weight": average})
    (ailment,) = ailments_of(sick)
    (edit,) = Twin().propose(sick, [ailment])
    assert edit.tensor == "ema.fc.weight"
    assert edit.indices.tolist() == [0, 1, 3]
    assert edit.after().tolist() == [0.5, 0.25, 0.125]


def test_finite_values_of_another_illness_stay():
    model = np.array([[0.5, np.nan, 3.0e14]], np.float32)
    sick = bedside.patient({"model.fc.weight": model, "state_dict.fc.weight": model * 0 + 0.5})
    ailment = bedside.ailing(sick, "model.fc.weight", [1], "NF001")
    for edit in Twin().propose(sick, [ailment]):
        assert edit.indices.tolist() == [1]
