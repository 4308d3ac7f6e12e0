"""Samples of another scale than those of training: told as such, and not as damage alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, Dense, NumpySubject, classifier, relu, samples

from ckptdoctor.findings import Severity
from ckptdoctor.live.subject import Statistics
from ckptdoctor.probing.next_steps import next_steps
from ckptdoctor.probing.probe import probe

X = samples(64)


def scale(subject, x, **more):
    report = probe(subject, x, precisions=(), **more)
    signs = [sign for sign in report.signs if sign.kind == "scale"]
    assert bool(signs) is (report.scale is not None)
    return report.scale


def with_statistics(mean=1.0, var=1.0, name="bn1"):
    subject = classifier()
    held = subject.statistics(name)
    subject.set_statistics(name, Statistics(held.mean * mean, held.var * var))
    return subject


@pytest.mark.parametrize("factor", [255.0, 1 / 255])
def test_pixels_that_are_scaled_otherwise_are_told(factor):
    report = probe(classifier(), factor * X, precisions=())
    (sign,) = [sign for sign in report.signs if sign.kind == "scale"]
    assert (sign.severity, sign.layer) == (Severity.WARNING, "")
    assert sign.measured["layer"] == "bn1"
    assert sign.measured["factor"] == pytest.approx(factor, rel=0.1)
    assert sign.measured["means_too"] is True
    assert sign.message.startswith("these samples vary 2")
    asked = "alike: look at how they are scaled and normalised"
    assert sign.message.endswith(asked if factor > 1 else f"{asked}, and at the weights before it")


def test_samples_of_training_are_not():
    assert scale(classifier(), X) is None


def test_an_offset_alone_is_no_scale():
    assert scale(classifier(), X + 40) is None


def test_larger_samples_with_another_mean_are_told_too():
    assert scale(classifier(), 60 * X + 90).factor == pytest.approx(60, rel=0.1)


def test_random_numbers_have_no_scale_of_interest():
    assert scale(with_statistics(1e-3, 1e-6), "random:64x6") is None
    assert scale(with_statistics(1e-3, 1e-6), X) is not None


def test_one_outlier_makes_no_scale():
    x = X.copy()
    x[7] *= 1e4
    assert scale(classifier(), x) is None


def test_samples_that_do_not_differ_have_none():
    assert scale(with_statistics(1e-3, 1e-6), np.repeat(X[:1], 64, 0)) is None


def test_an_exploded_variance_is_no_scale_of_the_samples():
    assert scale(with_statistics(1, 1e4), X) is None


def test_what_the_rules_accuse_is_no_scale_of_the_samples():
    """Its mean and variance exploded together: smaller samples would look like it."""
    assert scale(with_statistics(1e6, 1e12), X) is None
    assert scale(with_statistics(3, 9), X).factor == pytest.approx(1 / 3, rel=0.1)


def test_a_new_layer_knows_no_scale():
    subject = NumpySubject(Dense("fc", 6, 6), BatchNorm("bn", 6), relu("r"))
    subject.layers["fc"].tensors["weight"] = np.eye(6, dtype=np.float32)
    assert scale(subject, 9 * X) is None
    subject.set_statistics("bn", Statistics(np.full(6, 0.3), np.ones(6)))
    assert scale(subject, 9 * X).factor == pytest.approx(9, rel=0.2)


def test_inputs_that_are_not_finite_tell_no_scale():
    class Spoilt(Dense):
        def forward(self, run, *inputs):
            out = super().forward(run, *inputs)
            out[:1] = np.nan
            return out

    subject = classifier()
    assert scale(NumpySubject(Spoilt("fc1", 6, 16), *subject.root.children[1:]), 9 * X) is None


def test_recomputing_is_not_proposed_from_samples_that_repair_refuses():
    def steps(x):
        report = probe(with_statistics(1, 1e4, "bn2"), x, precisions=())
        told = replace(report.samples, kind="file", source="x.npy")
        return next_steps(replace(report, file="m.pt", samples=told))

    ((command, _),) = steps(X)
    assert command.startswith("ckptdoctor repair m.pt --recalibrate")
    assert not any("--recalibrate" in command for command, _ in steps(9 * X))


def test_a_sound_model_is_not_accused_of_it():
    report = probe(classifier(), 255 * X, precisions=())
    assert {sign.severity for sign in report.signs} == {Severity.WARNING}
    (drift,) = [sign for sign in report.signs if sign.layer == "bn1"]
    assert drift.message.endswith("; that is how these samples are scaled")


def test_what_is_broken_elsewhere_is_an_error_still():
    report = probe(with_statistics(var=1e7, name="bn2"), 255 * X, precisions=())
    errors = {sign.kind: sign for sign in report.signs if sign.severity is Severity.ERROR}
    assert set(errors) == {"exploded-statistics", "train-eval-disagreement"}
    assert errors["exploded-statistics"].layer == "bn2"


def test_smaller_samples_may_be_the_right_ones():
    """Then it is the layer that exploded."""
    report = probe(classifier(), X / 255, precisions=())
    (drift,) = [sign for sign in report.signs if sign.layer == "bn1"]
    assert drift.severity is Severity.ERROR
    assert "scaled" not in drift.message


def test_kernels_that_are_too_large_are_no_fault_of_the_samples():
    """They look the same to the BatchNorm, but the samples are of a usual size."""
    subject = classifier()
    subject.layers["fc1"].tensors["weight"] *= 127
    report = probe(subject, X, precisions=())
    assert report.scale.factor == pytest.approx(127, rel=0.1)
    assert not report.scale.refused
    errors = [sign.layer for sign in report.signs if sign.severity is Severity.ERROR]
    assert "bn1" in errors


def test_model_that_is_one_batchnorm_is_accused_as_others():
    subject = NumpySubject(root=BatchNorm("", 6))
    subject.set_statistics("", Statistics(X.mean(0), X.var(0) * np.geomspace(1e4, 1e9, 6)))
    report = probe(subject, X, precisions=())
    assert report.scale is None
    assert [s.severity for s in report.signs if s.kind == "exploded-statistics"] == [Severity.ERROR]
