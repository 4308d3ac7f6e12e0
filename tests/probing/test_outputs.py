"""Outputs of every form: losses, boxes and rows of scores, in any order."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from live.numpy_subject import Dense, Function, NumpySubject, classifier, samples

from ckptdoctor.live.data import read_data
from ckptdoctor.live.loaded import Loaded
from ckptdoctor.live.opening import Opened
from ckptdoctor.live.subject import Statistics
from ckptdoctor.living import recalibrate
from ckptdoctor.probing.feed import by_sample
from ckptdoctor.probing.norms import compared
from ckptdoctor.probing.probe import _notes, probe
from ckptdoctor.probing.samples import look_at
from ckptdoctor.probing.weights import File


def giving(outputs) -> NumpySubject:
    """`classifier` with other outputs, made of its own."""
    subject = classifier()
    run = subject.run

    def other(batch, observer=None, *, only=None, rounding=""):
        return outputs(*run(batch, observer, only=only, rounding=rounding))

    subject.run = other
    return subject


def of_each_sample(scores):
    """As detectors: for each sample as many boxes as it has, which differs from mode to mode."""
    return tuple(
        np.full((int(np.nan_to_num(np.abs(row[0])) * 99) % 3, 4), row.sum()) for row in scores
    )


def found(scores):
    """As detectors after their selection: the boxes of all samples together."""
    return (scores[scores[:, 0] > 0],)


FORMS = {
    "a loss before the scores": lambda scores: (np.float32(scores.mean()), scores),
    "anchors before the scores": lambda scores: (np.arange(15.0).reshape(5, 3), scores),
    "nothing before the scores": lambda scores: (np.zeros((0, 4)), scores),
}
UNEVEN = {"boxes of each sample": of_each_sample, "boxes of all samples": found}


def exploded(subject: NumpySubject) -> NumpySubject:
    own = subject.statistics("bn1")
    subject.set_statistics("bn1", Statistics(own.mean, own.var * 1e6))
    return subject


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_healthy_model_is_clean_whatever_stands_before_its_scores(form):
    report = probe(giving(form), samples(70))
    assert report.clean
    assert report.train.agreement.samples == 70
    assert report.precisions[1].agreement.samples > 0


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_training_mode_is_compared_by_the_scores(form):
    report = probe(exploded(giving(form)), samples(70))
    assert "train-eval-disagreement" in {sign.kind for sign in report.signs}
    assert report.train.healed.same > report.train.agreement.same


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_candidates_of_a_recalibration_are_compared_by_the_scores(form):
    made = recalibrate(exploded(giving(form)), samples(70))
    assert made.reach in ("broken", "all")
    errors = [candidate.agreement.error for candidate in made.candidates]
    assert errors[0] > 0.3
    assert errors[-1] < 0.1


@pytest.mark.parametrize("form", UNEVEN.values(), ids=UNEVEN)
def test_outputs_of_any_number_are_not_compared(form):
    report = probe(giving(form), samples(70))
    assert report.clean
    assert report.train is None
    assert [drift.layer for drift in report.norms] == ["bn1", "bn2"]
    assert any("are not compared" in note for note in report.notes)
    assert all(precision.agreement is None for precision in report.precisions)


@pytest.mark.parametrize("form", UNEVEN.values(), ids=UNEVEN)
def test_the_layer_is_found_whatever_the_outputs(form):
    subject = giving(form)
    subject.layers["bn1"].tensors["running_var"][:] = np.nan
    report = probe(subject, samples(70))
    assert not report.clean
    assert report.first.row.layer == "bn1"


def test_a_loss_beside_constant_scores_does_not_hide_them():
    subject = giving(lambda scores: (np.float32(1.0), scores))
    subject.layers["head"].tensors["weight"][:] = 0
    assert "constant-output" in {sign.kind for sign in probe(subject, samples(70)).signs}


def test_boxes_beside_constant_scores_leave_it_open():
    subject = giving(lambda scores: (scores, np.ones((3, 4))))
    subject.layers["head"].tensors["weight"][:] = 0
    assert "constant-output" not in {sign.kind for sign in probe(subject, samples(70)).signs}


def test_rows_are_by_sample_in_every_batch_and_of_one_shape():
    even, odd = np.zeros((4, 2)), np.zeros((3, 2))
    assert list(by_sample([(even, even), (odd, even)], [4, 3])) == [0]
    assert list(by_sample([(even,), (np.zeros((3, 5)),)], [4, 3])) == []
    assert list(by_sample([(even, even), (odd,)], [4, 3])) == [0]
    assert by_sample([], []) == {}


def test_outputs_of_other_shapes_are_not_compared():
    rows = np.ones((4, 2))
    assert compared([(rows, rows)], [(np.ones((4, 3)), rows)], [4]).samples == 4
    assert compared([(rows,)], [(np.ones((4, 3)),)], [4]) is None


# What is said of them.


def test_outputs_that_are_finite_in_training_mode_only_are_counted():
    subject = giving(lambda scores: (scores.sum(1),))
    subject.layers["bn1"].tensors["running_var"][:] = np.nan
    (told,) = [s for s in probe(subject, samples(64)).signs if s.kind == "train-eval-disagreement"]
    assert "64 of 64 samples are finite in training mode only" in told.message
    assert "inf" not in told.message.replace("inference", "").replace("finite", "")


def test_only_layers_that_have_weights_are_said_to_have_finite_ones():
    reasons = []
    for layers in (
        [Dense("fc", 6, 4), Function("log", "Log", lambda x: np.log(-np.abs(x)))],
        [Function("log", "Log", lambda x: np.log(-np.abs(x)))],
    ):
        report = probe(NumpySubject(*layers), samples(64))
        assert (report.first.row.layer, report.first.origin) == ("log", "arithmetic")
        reasons.append(report.first.reason)
    assert all(reason.startswith("its inputs are finite") for reason in reasons)
    assert [reason.endswith("weights that are constants of the program") for reason in reasons] == [
        False,
        True,
    ]


def test_the_moving_average_is_said_to_be_run():
    opened = Opened(subject=classifier(), loaded=Loaded(pairs={}))
    told = look_at(read_data(samples(8)), 0)[0]
    for which, said in (("ema", True), ("model", False)):
        file = File(path="w.pt", report=SimpleNamespace(weights=which))
        notes = _notes(opened, file, told, 8)
        assert any("the moving average of w.pt is run" in note for note in notes) is said
