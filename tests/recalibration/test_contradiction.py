"""Broken channels whose statistics the data contradict do not stay, however well the outputs agree."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, Dense, NumpySubject, relu, samples

from ckptdoctor.live.subject import NormLayer, Statistics
from ckptdoctor.recalibration.choice import recalibrated
from ckptdoctor.recalibration.contradiction import contradicted
from ckptdoctor.recalibration.estimate import every_channel

NORM = NormLayer(name="bn", channels=3, axis=-1, epsilon=1e-3, unbiased=False, mean="m", var="v")
DATA = Statistics(np.zeros(3), np.ones(3))
BOTH = Statistics(np.ones(3, bool), np.ones(3, bool))


def held(mean=0.0, var=1.0):
    return Statistics(np.array([0.0, mean, 0.0]), np.array([1.0, var, 1.0]))


def judged(held, data=DATA, broken=BOTH):
    return contradicted({"bn": NORM}, {"bn": held}, {"bn": data}, {"bn": broken})


@pytest.mark.parametrize(
    ("statistics", "wanted"),
    [
        (held(), False),
        (held(mean=np.nan), True),
        (held(mean=-np.inf), True),
        (held(mean=2.9), False),
        (held(mean=3.1), True),
        (held(mean=-3.1), True),
        (held(var=np.nan), True),
        (held(var=np.inf), True),
        (held(var=-0.0009), False),
        (held(var=-0.001), True),
        (held(var=9.9), False),
        (held(var=10.1), True),
        (held(var=1e-9), False),
    ],
    ids=str,
)
def test_statistics(statistics, wanted):
    assert judged(statistics) is wanted


@pytest.mark.parametrize("part", ["mean", "var"])
def test_only_what_is_known_to_be_broken_is_judged(part):
    """A mean that is far off beside a variance that is broken may be what was learnt."""
    only = Statistics(np.zeros(3, bool), np.zeros(3, bool))
    getattr(only, part)[1] = True
    bad = {"mean": held(mean=np.nan), "var": held(var=np.inf)}
    other = {"mean": "var", "var": "mean"}[part]
    assert judged(bad[part], broken=only)
    assert not judged(bad[other], broken=only)
    assert judged(held(mean=50.0), broken=only) is (part == "mean")
    assert judged(held(var=50.0), broken=only) is (part == "var")


def test_channel_that_is_constant_on_these_data_says_nothing():
    dead = Statistics(np.zeros(3), np.array([1.0, 1e-4, 1.0]))
    assert not judged(held(var=1.0), dead)
    assert judged(held(var=np.inf), dead)


def test_what_was_not_called_is_not_judged():
    assert not contradicted({"bn": NORM}, {"bn": held(var=np.inf)}, {}, {"bn": BOTH})


def wide(channels=64):
    """A layer of many channels, whose statistics are those of `samples`."""
    subject = NumpySubject(
        Dense("fc1", 6, channels, 3),
        BatchNorm("bn1", channels),
        relu("r"),
        Dense("head", channels, 4),
    )
    made = recalibrated(subject, [samples(512)], every_channel(subject), reach="all")
    subject.set_statistics("bn1", made.statistics["bn1"])
    return subject


@pytest.mark.parametrize("value", [np.inf, 1e8], ids=["infinite", "exploded"])
def test_one_channel_among_many_is_recomputed(value):
    """It is constant, and the outputs of 64 channels agree within what samples differ by."""
    subject = wide()
    own = subject.statistics("bn1")
    var = own.var.copy()
    var[5] = value
    subject.set_statistics("bn1", Statistics(own.mean, var))
    broken = {"bn1": Statistics(np.zeros(64, bool), np.arange(64) == 5)}
    made = recalibrated(subject, [samples(256)], broken)
    assert made.candidates[0].agreement.error < 0.1
    assert made.reach == "broken"
    assert made.statistics["bn1"].var[5] == pytest.approx(own.var[5], rel=0.3)
