"""A probe from end to end: what is said of a model, how grave it is, and what comes next."""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace

import numpy as np
import pytest
from live.numpy_subject import (
    BatchNorm,
    Dense,
    Function,
    NumpySubject,
    classifier,
    fit,
    samples,
)
from patients import save_torch

import ckptdoctor
from ckptdoctor.errors import ModelError, UsageError
from ckptdoctor.findings import Severity
from ckptdoctor.live.data import read_data
from ckptdoctor.live.subject import Statistics
from ckptdoctor.living import recalibrate
from ckptdoctor.probing.next_steps import next_steps
from ckptdoctor.probing.norms import agreement
from ckptdoctor.probing.probe import BATCH, SAMPLES, probe
from ckptdoctor.probing.results import TrainMode
from ckptdoctor.probing.samples import OUTLYING, look_at
from ckptdoctor.probing.training import disagrees
from ckptdoctor.report.probe import render
from ckptdoctor.results import View

X = samples(64)


def kinds(report, severity=None):
    return [s.kind for s in report.signs if severity is None or s.severity is severity]


def sign(report, kind):
    (found,) = [s for s in report.signs if s.kind == kind]
    return found


def scaled(subject, name, mean=0.0, var=1.0):
    held = subject.statistics(name)
    subject.set_statistics(name, Statistics(held.mean + mean, held.var * var))
    return subject


def test_a_healthy_model_is_clean():
    report = probe(classifier(), X)
    assert report.clean
    assert kinds(report) == []
    assert (report.bad, report.constant, report.first, report.frozen) == (0, False, None, None)
    assert [d.layer for d in report.norms] == ["bn1", "bn2"]
    assert report.train.agreement.difference < 0.3
    assert report.train.batch == 32
    assert [p.dtype for p in report.precisions] == ["float32", "float16", "bfloat16"]
    assert report.next == ()
    assert report.model == "NumpySubject"


def test_it_is_a_public_name():
    assert ckptdoctor.probe is probe


def test_a_layer_with_nan_statistics_is_the_first_and_the_exploded_one_is_told_too():
    subject = scaled(classifier(), "bn1", var=1e6)
    scaled(subject, "bn2", var=np.nan)
    report = probe(subject, X)
    assert not report.clean
    assert (report.bad, report.first.row.layer, report.first.origin) == (64, "bn2", "weights")
    assert "running_var is NaN in 16 of 16 values" in report.first.reason
    assert [f.code for f in report.first.said] == ["BN001"]
    assert sign(report, "nonfinite-output").message.startswith(
        "the model's output is NaN for 64 of 64"
    )
    assert sign(report, "nonfinite-output").layer == "bn2"
    assert sign(report, "broken-statistics").layer == "bn2"
    exploded = sign(report, "exploded-statistics")
    assert (exploded.layer, exploded.severity) == ("bn1", Severity.ERROR)
    assert exploded.measured["ratio"] == pytest.approx(1e6, rel=0.9)
    disagreement = sign(report, "train-eval-disagreement")
    assert disagreement.severity is Severity.ERROR
    assert report.train.treated == ("bn1", "bn2")
    assert report.train.healed.share == 1.0


def test_a_negative_variance_is_told_by_its_channels():
    subject = classifier()
    held = subject.statistics("bn1")
    held.var[3] = -0.5
    subject.set_statistics("bn1", held)
    report = probe(subject, X)
    assert report.first.origin == "statistics"
    assert (
        report.first.reason == "its running variance is negative in 1 of 16 channels, down to -0.5"
    )


def test_weights_that_are_nan_are_a_fault_of_the_file():
    subject = classifier()
    subject.layers["fc2"].tensors["weight"][2, 3] = np.inf
    report = probe(subject, X)
    assert (report.first.row.layer, report.first.origin) == ("fc2", "weights")
    assert "weight is Inf in 1 of 256 values" in report.first.reason
    assert report.first.said[0].tensor == "fc2.weight"


def test_an_overflow_is_told_from_broken_weights():
    subject = NumpySubject(Dense("fc", 6, 4), Function("square", "Square", lambda x: x * x))
    report = probe(subject, X * 1e20)
    assert (report.first.row.layer, report.first.origin) == ("square", "overflow")
    assert "float32 ends at 3.4e38" in report.first.reason


@pytest.mark.parametrize(("size", "origin"), [(150.0, "arithmetic"), (300.0, "overflow")])
def test_an_overflow_of_float16_weights_is_told_by_their_type(size, origin):
    dense = Dense("fc", 2, 2)
    dense.tensors["weight"] = np.eye(2, dtype=np.float16)
    dense.forward = lambda _, x: np.where(x > 1, np.inf, x)
    report = probe(NumpySubject(dense), np.array([[1.0, size], [0.0, size]] * 4))
    assert report.first.origin == origin
    if origin == "overflow":
        assert "float16 ends at 65504" in report.first.reason


@pytest.mark.parametrize(("size", "origin"), [(0.9e18, "arithmetic"), (1.1e18, "overflow")])
def test_an_overflow_of_float32_is_told_by_the_squares_of_the_values(size, origin):
    bad = Function("f", "F", lambda x: np.where(x < 0, np.nan, x))
    report = probe(NumpySubject(bad), np.array([[-1.0, size], [1.0, size]] * 4))
    assert report.first.origin == origin


def test_arithmetic_on_finite_values_is_told_as_such():
    report = probe(NumpySubject(Function("log", "Log", np.log)), X)
    assert (report.first.row.layer, report.first.origin) == ("log", "arithmetic")


def test_code_between_layers_is_told_as_such():
    from live.numpy_subject import Layer

    class Own(Layer):
        def forward(self, run, *inputs):
            return run.call(self.children[0], np.log(inputs[0]))

    own = Own("own", Function("a", "Identity", lambda x: x))
    report = probe(NumpySubject(own), X)
    assert (report.first.row.layer, report.first.origin) == ("own", "code")
    assert report.first.reason.endswith("its own code makes them, before a (which is given them)")


def test_code_that_spoils_values_between_two_layers_is_told_by_both():
    from live.numpy_subject import Layer

    class Own(Layer):
        def forward(self, run, *inputs):
            first, second, third = self.children
            x = run.call(second, run.call(first, inputs[0]))
            return run.call(third, run.call(first, x / (x * 0)))

    parts = [Function(name, "Identity", lambda x: x) for name in ("a", "b", "c")]
    report = probe(NumpySubject(root=Own("", *parts)), X)
    assert report.first.row.between == ("b", "a")
    assert report.first.reason.endswith("between b (finite) and a (which is given them)")


def test_code_that_spoils_values_at_the_end_is_told_by_the_layer_before():
    from live.numpy_subject import Layer

    class Own(Layer):
        def forward(self, run, *inputs):
            return run.call(self.children[0], inputs[0]) / 0

    report = probe(NumpySubject(root=Own("", Function("a", "Identity", lambda x: x))), X)
    assert report.first.reason.endswith("its own code makes them, after a (finite)")


def test_nan_that_never_reaches_the_output_is_a_warning():
    subject = NumpySubject(Function("log", "Log", np.log), Function("mend", "Mend", np.nan_to_num))
    report = probe(subject, X)
    assert report.clean
    found = sign(report, "nonfinite-inside")
    assert (found.severity, found.layer) == (Severity.WARNING, "log")


def test_a_mask_inside_is_a_note():
    subject = NumpySubject(
        Function("mask", "Mask", lambda x: np.where(x > 1, -np.inf, x)),
        Function("exp", "Exp", np.exp),
    )
    found = sign(probe(subject, X), "nonfinite-inside")
    assert (found.severity, found.layer) == (Severity.NOTE, "mask")
    assert found.message.startswith("gives -Inf in ")


def test_nan_behind_a_mask_is_named_before_the_mask():
    subject = NumpySubject(
        Function("mask", "Mask", lambda x: np.where(x > 1, -np.inf, x)),
        Function("exp", "Exp", np.exp),
        Function("log", "Log", lambda x: np.log(x - 1)),
    )
    report = probe(subject, X)
    assert report.first.row.layer == "log"
    assert report.first.others == ()


def test_further_layers_where_it_begins_are_told():
    subject = NumpySubject(
        Function("log", "Log", np.log),
        Function("mend", "Mend", np.nan_to_num),
        Function("root", "Root", np.sqrt),
    )
    report = probe(subject, X)
    assert (report.first.row.layer, report.first.others) == ("log", ("root",))


def test_a_constant_output_is_an_error_that_names_where_it_begins():
    subject = classifier()
    scaled(subject, "bn2", var=np.inf)
    report = probe(subject, X)
    assert report.constant
    assert (sign(report, "constant-output").severity, report.frozen.layer) == (
        Severity.ERROR,
        "bn2",
    )
    assert "same for all 64 samples" in sign(report, "constant-output").message


def test_an_exploded_batchnorm_is_to_blame_for_outputs_that_are_constant():
    shrink = Function("shrink", "Shrink", lambda x: 1 + x * np.float32(1e-3))
    subject = NumpySubject(Dense("fc", 6, 4), BatchNorm("bn", 4), shrink)
    subject.set_statistics("bn", Statistics(np.zeros(4), np.full(4, 1e8)))
    report = probe(subject, X)
    assert report.constant
    assert (report.frozen.layer, report.frozen.constant) == ("bn", False)


def test_a_layer_that_is_constant_inside_is_a_note():
    from live.numpy_subject import Residual

    dead = Residual("block", Function("dead", "Dead", lambda x: x * 0))
    report = probe(NumpySubject(dead, Dense("fc", 6, 3)), X)
    assert report.clean
    assert (sign(report, "constant-inside").layer, sign(report, "constant-inside").severity) == (
        "dead",
        Severity.NOTE,
    )


def test_one_exploded_layer_is_an_error_where_the_answers_differ():
    report = probe(scaled(classifier(), "bn1", mean=30, var=1e5), X)
    assert sign(report, "exploded-statistics").severity is Severity.ERROR
    assert not report.clean


def test_one_channel_that_does_no_harm_is_a_warning():
    subject = classifier()
    held = subject.statistics("bn1")
    held.var[0] *= 1e4
    subject.set_statistics("bn1", held)
    subject.layers["fc2"].tensors["weight"][0] = 0
    report = probe(subject, X)
    assert report.clean
    assert sign(report, "exploded-statistics").severity is Severity.WARNING


def test_collapsed_and_shifted_statistics_have_their_names():
    small = classifier()
    for name in ("fc1", "fc2"):
        small.layers[name].tensors["weight"] *= 50
    fit(small, X)
    assert sign(probe(scaled(small, "bn1", var=1e-5), X), "collapsed-statistics").layer == "bn1"
    assert (
        sign(probe(scaled(classifier(), "bn1", mean=100), X), "shifted-statistics").layer == "bn1"
    )


def stale(mean):
    subject = classifier()
    for name in ("fc1", "fc2"):
        subject.layers[name].tensors["weight"] *= 3
    for norm in ("bn1", "bn2"):
        subject.layers[norm].tensors["beta"] = np.linspace(-2, 2, 16).astype(np.float32)
        subject.set_statistics(norm, Statistics(np.full(16, mean), np.ones(16)))
    return probe(subject, X)


def test_statistics_that_were_never_learnt_are_told_together():
    report = stale(0.0)
    assert kinds(report, Severity.ERROR) == ["new-statistics", "train-eval-disagreement"]
    found = sign(report, "new-statistics")
    assert set(found.measured["layers"]) <= {"bn1", "bn2"}
    told = replace(report.samples, kind="file", source="x.npy")
    ((command, _),) = next_steps(replace(report, file="m.pt", samples=told))
    assert "--recalibrate" in command


def test_statistics_that_are_off_a_little_are_told_together():
    report = stale(0.01)
    found = sign(report, "stale-statistics")
    assert found.severity is Severity.ERROR
    assert set(found.measured["layers"]) <= {"bn1", "bn2"}
    assert "do not fit the data: a variance is 5 times off, or a mean 1 standard" in found.message
    assert "running variance 1, the data's" in found.message
    assert sign(report, "train-eval-disagreement").measured["explained"]


def test_random_data_accuse_no_statistics():
    subject = classifier()
    fit(subject, samples(64) * 100 + 7)
    report = probe(subject, "random:6")
    assert report.clean
    assert not kinds(report, Severity.ERROR)
    assert kinds(report, Severity.WARNING)


def test_random_data_still_show_what_is_broken():
    report = probe(scaled(classifier(), "bn1", var=np.nan), "random:6")
    assert set(kinds(report, Severity.ERROR)) == {"nonfinite-output", "broken-statistics"}
    assert report.next == ()


def test_a_model_without_batchnorms_has_no_training_mode():
    report = probe(NumpySubject(Dense("fc", 6, 3)), X)
    assert (report.train, report.norms) == (None, ())
    assert report.clean


def test_a_disagreement_that_statistics_do_not_explain_is_a_note():
    subject = classifier()
    mix = subject.layers["bn2"]
    forward = mix.forward

    class Odd:
        def __call__(self, run, x):
            out = forward(run, x)
            trains = np.allclose(mix.tensors["running_var"], x.var(0), rtol=1e-3)
            return -out if trains else out

    mix.forward = Odd()
    found = sign(probe(subject, X), "train-eval-disagreement")
    assert found.severity is Severity.NOTE
    assert not found.measured["explained"]


def accumulating(shift: float, layers: int = 12) -> NumpySubject:
    """A deep model whose statistics fit `X`, each mean then off by some standard deviations."""
    parts = []
    for at in range(layers):
        parts += [Dense(f"fc{at}", 6, 6, at), BatchNorm(f"bn{at}", 6)]
    subject = NumpySubject(*parts, Dense("head", 6, 4, 99))
    fit(subject, samples(256))
    for name in subject.norms:
        held = subject.statistics(name)
        subject.set_statistics(name, Statistics(held.mean + shift * held.var**0.5, held.var))
    return subject


def test_small_errors_of_all_statistics_that_add_up_are_an_error():
    report = probe(accumulating(0.6), samples(256), precisions=())
    assert not any(d.far or d.stale for d in report.norms)
    assert kinds(report, Severity.ERROR) == ["train-eval-disagreement"]
    found = sign(report, "train-eval-disagreement")
    assert found.measured["explained"]
    assert "with statistics pooled over these samples in all BatchNorms" in found.message
    assert report.train.pooled.share > 0.75
    assert report.train.agreement.share < 0.5


def test_small_errors_that_do_not_add_up_are_nothing():
    report = probe(accumulating(0.0), samples(256), precisions=())
    assert (kinds(report), report.train.pooled) == ([], None)


def test_statistics_are_not_judged_by_the_one_batch_they_are_from():
    report = probe(accumulating(0.6), samples(32), precisions=())
    assert report.train.pooled is None
    assert sign(report, "train-eval-disagreement").severity is Severity.NOTE
    assert probe(accumulating(0.6), samples(33), precisions=()).train.pooled.samples == 33


@pytest.mark.parametrize(("number", "judged"), [(31, False), (32, True)])
def test_statistics_are_pooled_from_16_samples_or_more(number, judged):
    report = probe(accumulating(0.6), samples(number), batch_size=8, precisions=())
    assert (report.train.pooled is not None) is judged


def test_the_statistics_are_as_they_were_after_pooling():
    subject = accumulating(0.6)
    before = {name: subject.statistics(name) for name in subject.norms}
    assert probe(subject, samples(64), precisions=()).train.pooled is not None
    for name, held in before.items():
        np.testing.assert_array_equal(subject.statistics(name), held)


@pytest.mark.parametrize("number", [2, 64])
def test_samples_that_do_not_differ_accuse_nothing_but_themselves(number):
    report = probe(classifier(), np.zeros((number, 6), np.float32))
    assert kinds(report) == ["same-data"]
    found = sign(report, "same-data")
    assert found.severity is Severity.ERROR
    assert found.message == f"the {number} samples do not differ: they tell nothing of the model"
    assert (report.constant, report.norms, report.norms_of, report.train) == (False, (), 2, None)


def test_samples_that_do_not_differ_still_show_what_is_broken():
    report = probe(scaled(classifier(), "bn2", var=np.nan), np.zeros((8, 6), np.float32))
    assert kinds(report, Severity.ERROR) == ["same-data", "nonfinite-output", "broken-statistics"]


def test_one_sample_is_not_told_to_be_like_the_others():
    assert "same-data" not in kinds(probe(classifier(), X[:1]))


def test_batchnorms_below_nan_are_counted_as_not_compared():
    subject = NumpySubject(
        Dense("fc", 6, 6), BatchNorm("bn1", 6), Function("log", "Log", np.log), BatchNorm("bn2", 6)
    )
    report = probe(subject, X)
    assert ([d.layer for d in report.norms], report.norms_of) == (["bn1"], 2)
    assert report.blind == ("bn2",)
    head = " ".join(render(report, View(width=100)).split("model  ")[0].split())
    assert "2 BatchNorms, 1 of them compared (1 were given nothing finite)" in head


def test_types_are_run_on_some_samples_and_on_those_far_off():
    x = samples(256)
    x[129] *= 1e6
    report = probe(classifier(), x)
    assert [p.samples for p in report.precisions] == [33, 33, 33]
    assert report.precisions[1].bad == 1
    text = render(report, View(width=120))
    assert re.search(r"^  float16 +1 of 33 .* the data", text, re.MULTILINE)
    assert re.search(r"^  float32 +0 of 33 +-", text, re.MULTILINE)


def test_training_mode_that_fails_too_is_told():
    subject = classifier()
    subject.layers["head"].tensors["bias"][0] = np.nan
    report = probe(subject, X)
    assert "train-eval-disagreement" not in kinds(report)
    assert sign(report, "nonfinite-in-training").severity is Severity.WARNING


def test_an_overflow_in_float16_is_a_warning_with_its_layer():
    subject = NumpySubject(
        Dense("fc", 6, 4), Function("large", "Scale", lambda x: x * 1e5), BatchNorm("bn", 4)
    )
    fit(subject, X)
    report = probe(subject, X)
    found = sign(report, "overflows-float16")
    assert (found.severity, found.layer) == (Severity.WARNING, "large")
    assert sign(report, "spoils-float16").layer == "bn"
    assert "overflows-bfloat16" not in kinds(report)
    assert report.clean


def test_types_can_be_chosen():
    report = probe(classifier(), X, precisions=("bfloat16",))
    assert [p.dtype for p in report.precisions] == ["float32", "bfloat16"]


def test_saturated_layers_are_a_note():
    subject = NumpySubject(
        Dense("fc", 6, 4), Function("tanh", "Tanh", np.sign), Dense("head", 4, 2)
    )
    report = probe(subject, X)
    found = sign(report, "saturated")
    assert (found.severity, found.layer) == (Severity.NOTE, "tanh")
    assert "100.0% of its outputs" in found.message
    assert report.clean


# The data.


def test_samples_that_are_not_finite_are_told_first_and_left_out():
    x = X.copy()
    x[5, 2], x[9, 0] = np.nan, np.inf
    report = probe(classifier(), x)
    assert kinds(report) == ["nonfinite-data"]
    assert not report.clean
    assert [s.index for s in report.samples.nonfinite] == [5, 9]
    assert "2 of 64 samples hold NaN or Inf (5, 9)" in report.signs[0].message
    assert (report.bad, report.samples.used, report.samples.total) == (0, 62, 64)


def test_data_without_a_finite_sample_run_nothing():
    subject = classifier()
    report = probe(subject, X * np.nan)
    assert (subject.runs, report.rows, report.clean) == (1, (), False)  # one run: made by fit


def test_samples_that_are_far_larger_are_told_and_kept_out_of_training_mode():
    x = X.copy()
    x[7] *= 300
    report = probe(classifier(), x)
    assert kinds(report) == ["outlying-data"]
    found = report.signs[0]
    assert (found.severity, found.measured["samples"]) == (Severity.WARNING, [7])
    assert report.train.agreement.samples == 63
    assert report.samples.used == 64


@pytest.mark.parametrize(("factor", "far"), [(0.9, []), (1.1, [3])])
def test_outlying_begins_at_a_factor(factor, far):
    x = np.ones((9, 2), np.float32)
    x[3] = OUTLYING * factor
    told, used = look_at(read_data(x), 0)
    assert [s.index for s in told.outliers] == far
    assert (len(used), told.usual) == (9, 1.0)


def test_a_few_samples_that_are_large_are_noted_and_kept_out_of_training_mode_too():
    x = X.copy()
    x[7], x[20] = 60, 400  # of 2 usually
    report = probe(classifier(), x)
    assert kinds(report) == ["outlying-data", "large-data"]
    found = sign(report, "large-data")
    assert (found.severity, found.measured["samples"]) == (Severity.NOTE, [7])
    assert found.message.startswith("1 of 64 samples is over 10 times as large as usual (7: 60 to")
    assert sign(report, "outlying-data").measured["samples"] == [20]
    assert report.train.agreement.samples == 62
    assert max(d.ratio for d in report.norms) < 2


def test_probe_names_the_samples_that_recalibration_leaves_out():
    x = samples(256)
    x[[3, 200]] *= 30
    (warning, *_) = recalibrate(scaled(classifier(), "bn1", var=np.nan), x).warnings
    assert "numbers 3, 200." in warning
    report = probe(classifier(), x)
    assert sign(report, "large-data").measured["samples"] == [3, 200]
    assert sign(report, "large-data").message.startswith("2 of 256 samples are over 10 times")
    assert report.train.agreement.samples == 254


def test_large_samples_that_are_many_are_as_the_data_are():
    x = X.copy()
    x[:8] *= 40
    report = probe(classifier(), x)
    assert "large-data" not in kinds(report)
    assert report.train.agreement.samples == 64


def test_zeros_have_no_outliers():
    x = np.zeros((4, 2), np.float32)
    x[0] = 5
    assert look_at(read_data(x), 0)[0].outliers == ()


def test_samples_are_limited():
    x = np.concatenate([samples(10), samples(10) * np.nan])
    report = probe(classifier(), x, samples=10)
    assert (report.samples.used, report.samples.total) == (10, 20)
    assert report.samples.nonfinite == ()
    assert probe(classifier(), x, samples=0).samples.nonfinite[0].index == 10
    assert (SAMPLES, BATCH) == (256, 32)


def test_batches_are_as_large_as_asked_for():
    report = probe(classifier(), X, batch_size=16)
    assert report.rows[0].shape[0] == 16


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"samples": -1}, "samples to be a whole number, 0 or more, found -1$"),
        ({"samples": "5"}, "samples to be a whole number, 0 or more, found '5'$"),
        ({"batch_size": 0}, "batch_size to be a whole number, 1 or more, found 0$"),
        ({"batch_size": 2.0}, "batch_size to be a whole number, 1 or more, found 2.0$"),
        ({"precisions": ("float8",)}, "float16 or bfloat16 .*found 'float8'"),
    ],
)
def test_choices_that_make_no_sense_are_said(more, reason):
    with pytest.raises(UsageError, match=reason):
        probe(classifier(), X, **more)


def test_data_that_do_not_fit_are_an_error_of_ours():
    with pytest.raises(UsageError, match="does not take"):
        probe(classifier(), samples(8, wide=5))


def test_a_model_that_fails_is_one_line():
    def fail(_):
        raise ZeroDivisionError("of my own")

    with pytest.raises(ModelError, match="the model failed: ZeroDivisionError: of my own"):
        probe(NumpySubject(Function("f", "F", fail)), X)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(AttributeError, ModelError), (NotImplementedError, ModelError), (ValueError, UsageError)],
)
def test_a_line_of_the_users_that_fails_is_named(raised, kind):
    def fail(_):
        raise raised("mine")

    subject = NumpySubject(Function("f", "F", fail))
    run = subject.run

    def as_frameworks_do(*args, **kwargs):
        try:
            return run(*args, **kwargs)
        except raised as error:
            raise UsageError("the model fails") from error

    subject.run = as_frameworks_do
    with pytest.raises(kind, match="the model fails") as caught:
        probe(subject, X)
    assert caught.type is kind
    line = fail.__code__.co_firstlineno + 1
    assert caught.value.where == f"{__file__}:{line}"


def test_outputs_without_numbers_are_not_judged():
    with pytest.raises(ModelError, match="no floating-point numbers"):
        probe(NumpySubject(Function("f", "F", lambda x: x[:, :0])), X)


def test_the_model_is_as_it_was_afterwards():
    subject = classifier()
    before = {name: value.copy() for name, value in subject.layers["bn1"].tensors.items()}
    probe(scaled(subject, "bn2", var=1e6), X, bisect=True)
    for name, value in before.items():
        assert np.array_equal(value, subject.layers["bn1"].tensors[name])


def against(ours, theirs):
    return TrainMode(agreement=agreement([(np.asarray(ours), np.asarray(theirs))]))


@pytest.mark.parametrize(
    ("train", "answer"),
    [
        (None, False),
        (against([[1.0, 2.0]] * 4, [[1.0, 2.0]] * 4), False),
        (against([[2.0, 1.0]] * 4, [[1.0, 2.0]] * 4), True),
        (against([[1.2, 1.0]] * 4, [[1.0, 1.2]] * 4), False),
        (against([[5.0, 9.0]] * 4, [[1.0, 2.0]] * 4), False),
        (against([[1.0]] * 4, [[2.1]] * 4), True),
        (against([[1.0]] * 4, [[1.9]] * 4), False),
        (against([[np.nan, 1.0]], [[1.0, 2.0]]), True),
        (against([[1.0, 2.0]], [[np.nan, 1.0]]), False),
    ],
)
def test_answers_disagree_where_both_winner_and_size_differ(train, answer):
    assert disagrees(train) is answer


@pytest.mark.parametrize(("same", "answer"), [(7, True), (8, False)])
def test_answers_disagree_below_a_share(same, answer):
    theirs = np.array([[0.0, 5.0]] * 10)
    ours = theirs.copy()
    ours[same:] = [5.0, 0.0]
    assert disagrees(against(ours, theirs)) is answer


# Searching.


def test_samples_that_break_it_are_found_beyond_those_looked_at():
    x = samples(60)
    x[45] = 3e19
    subject = NumpySubject(Function("square", "Square", lambda x: x * x))
    report = probe(subject, x, samples=16, bisect=True)
    found = sign(report, "breaking-samples")
    assert (found.severity, found.measured["samples"]) == (Severity.ERROR, [45])
    assert "1 of 60 samples breaks the model (45: 3e+19 to 3e+19)" in found.message
    assert "the first 16 are looked at layer by layer" in report.notes[0]
    assert sum(row.outputs.size for row in report.rows) == 2 * 16 * 6


def test_what_breaks_a_narrower_type_only_is_a_warning():
    x = samples(32)
    x[4] = 40000
    subject = NumpySubject(Function("double", "Double", lambda x: 2 * x), BatchNorm("bn", 6))
    fit(subject, samples(32))
    report = probe(subject, x, bisect=True)
    found = [s for s in report.signs if s.kind == "breaking-samples"]
    assert {s.severity for s in found} == {Severity.WARNING}
    assert {s.measured["mode"] for s in found} == {"inference in float16", "training in float16"}
    assert {tuple(s.measured["samples"]) for s in found} == {(4,)}


def test_a_broken_model_is_not_blamed_on_the_data():
    report = probe(scaled(classifier(), "bn1", var=np.nan), X, bisect=True)
    found = sign(report, "breaking-samples")
    assert (found.severity, found.message) == (
        Severity.WARNING,
        "inference: every sample breaks the model: it is not the data",
    )


def test_searches_that_find_nothing_are_reported_by_mode():
    report = probe(classifier(), X, bisect=True)
    assert [s.mode for s in report.searches] == ["inference", "training"]
    assert all(s.clean for s in report.searches)


# Files.

NET = """
    import sys
    sys.path.insert(0, {tests!r})
    from live.numpy_subject import NumpySubject, classifier
    from ckptdoctor.live.loaded import Loaded

    class Loading(NumpySubject):
        def load(self, table):
            for name in table:
                layer, _, part = name.rpartition(".")
                self.layers[layer].tensors[part] = table.read(name).copy()
            return Loaded(pairs={{name: name for name in table}}, notes=("as it was",))

    def build():
        return Loading(*classifier().root.children)
"""


@pytest.fixture
def patient(tmp_path):
    """A script, and weights for it whose bn1 exploded and whose bn2 is NaN."""
    from pathlib import Path

    tests = str(Path(__file__).parent.parent)
    (tmp_path / "net.py").write_text(textwrap.dedent(NET.format(tests=tests)))
    subject = scaled(scaled(classifier(), "bn1", var=1e6), "bn2", var=np.nan)
    tensors = {
        f"{name}.{part}": value
        for name, layer in subject.layers.items()
        for part, value in layer.tensors.items()
    }
    save_torch(tmp_path / "w.pt", tensors)
    np.save(tmp_path / "x.npy", X)
    return tmp_path


def test_what_the_file_says_of_the_layer_is_told(patient):
    model, file, data = (str(patient / name) for name in ("net.py", "w.pt", "x.npy"))
    report = probe(f"{model}:build", data, weights_file=patient / "w.pt")
    assert (report.file, report.code, report.model) == (file, model, f"{model}:build")
    assert report.first.row.layer == "bn2"
    assert [(f.code, f.tensor) for f in report.first.said] == [("BN001", "bn2.running_var")]
    assert report.layers["bn2.running_var"] == "bn2"
    assert report.notes == (f"runs the code of {model}", "as it was")
    assert report.next[0][0] == (
        f"ckptdoctor repair {file} --recalibrate {model}:build --data {data}"
    )


def test_random_data_lead_to_the_inspection(patient):
    report = probe(f"{patient}/net.py:build", "random:6", weights_file=f"{patient}/w.pt")
    assert report.next[0][0] == f"ckptdoctor inspect {patient}/w.pt"


def test_lost_weights_lead_to_the_inspection(patient):
    subject = classifier()
    subject.layers["fc1"].tensors["weight"][:] = np.nan
    tensors = {
        f"{name}.{part}": value
        for name, layer in subject.layers.items()
        for part, value in layer.tensors.items()
    }
    save_torch(patient / "lost.pt", tensors)
    report = probe(f"{patient}/net.py:build", f"{patient}/x.npy", weights_file=f"{patient}/lost.pt")
    assert (report.first.origin, report.next[0][0]) == (
        "weights",
        f"ckptdoctor inspect {patient}/lost.pt",
    )


def test_progress_is_told_step_by_step():
    told = []
    probe(classifier(), X, bisect=True, note=told.append)
    assert told == [
        "opening", "weights", "inference mode", "training mode", "float16", "bfloat16",
        "searching the samples",
    ]  # fmt: skip


def test_what_was_trusted_once_is_trusted_in_the_next_command(patient):
    model = f"{patient}/net.py:build"
    report = probe(model, f"{patient}/x.npy", weights_file=f"{patient}/w.pt", trust=True)
    assert report.next[0][0].endswith(f"--data {patient}/x.npy --trust")


def test_samples_that_do_not_differ_lead_to_the_inspection(patient):
    np.save(patient / "same.npy", np.ones((32, 6), np.float32))
    report = probe(f"{patient}/net.py:build", f"{patient}/same.npy", weights_file=f"{patient}/w.pt")
    assert report.next[0][0] == f"ckptdoctor inspect {patient}/w.pt"
