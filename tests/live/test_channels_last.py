"""BatchNorms of classes of the user's own, whose channels may be elsewhere than torch's."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, Dense, NumpySubject, fit, samples

from ckptdoctor.live.batch_statistics import BatchStatistics
from ckptdoctor.live.subject import Call, NormLayer
from ckptdoctor.living import recalibrate
from ckptdoctor.probing.probe import probe

X = samples(320).reshape(64, 5, 6)
"""Samples of 5 steps in 6 features."""


class Unsaid(NumpySubject):
    """Says of every BatchNorm that its channels are second, as is said of any class in torch."""

    @property
    def norms(self):
        return {
            name: NormLayer(**{part: getattr(norm, part) for part in _PARTS} | {"axis": 1})
            for name, norm in super().norms.items()
        }


_PARTS = ("name", "channels", "epsilon", "unbiased", "mean", "var")


def last() -> NumpySubject:
    layers = Dense("fc", 6, 8), BatchNorm("bn", 8), Dense("head", 8, 4)
    fit(NumpySubject(*layers), X)
    return Unsaid(*layers)


def test_a_healthy_model_is_clean():
    report = probe(last(), X)
    assert report.clean
    (drift,) = report.norms
    assert drift.values == 64 * 5
    assert drift.ratio == pytest.approx(1, abs=0.01)


def test_statistics_are_those_of_the_last_dimension():
    subject = last()
    sound = subject.statistics("bn")
    subject.layers["bn"].tensors["running_var"][2] = np.nan
    assert recalibrate(subject, X).reach == "broken"
    np.testing.assert_allclose(subject.statistics("bn").var, sound.var, rtol=1e-3)


def test_inputs_without_such_a_dimension_are_left_alone():
    subject = last()
    before = subject.statistics("bn")
    with BatchStatistics(subject, ["bn"]) as seen:
        seen.before(_call("bn"), (np.ones((4, 5, 7)),))
        seen.before(_call("bn"), (np.ones(5),))
        np.testing.assert_array_equal(subject.statistics("bn"), before)
        assert seen.pooled("bn")[0] == 0


def _call(name):
    return Call(layer=name, class_name="BatchNorm", index=0, depth=0, leaf=True)
