"""Running statistics against the data, and two ways of running a model against each other."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import classifier, samples

from ckptdoctor.live.batch_statistics import BatchStatistics
from ckptdoctor.live.subject import NormLayer, Statistics
from ckptdoctor.probing.norms import EXPLODED, OFF, SHIFTED, STALE, agreement, drift_of, drifts

NORM = NormLayer(
    name="bn", channels=4, axis=1, epsilon=1e-3, unbiased=True, mean="bn.mean", var="bn.var"
)
DATA = Statistics(np.array([0.0, 1.0, -1.0, 2.0]), np.array([1.0, 0.5, 2.0, 1.5]))


def drift(mean=None, var=None, data=DATA, values=1000):
    held = Statistics(
        DATA.mean.copy() if mean is None else np.array(mean, float),
        DATA.var.copy() if var is None else np.array(var, float),
    )
    return drift_of(NORM, held, data, values)


def test_statistics_of_the_data_fit():
    found = drift()
    assert (found.ratio, found.typical, found.distance) == (1.0, 1.0, 0.0)
    assert (found.alive, found.channels, found.exploded, found.worst) == (4, 4, 0, ())
    assert not found.far
    assert not found.broken
    assert not found.stale
    assert found.score == 1.0
    assert found.var == found.data_var == (0.5, 2.0)


def test_the_ratio_is_of_variances_with_epsilon():
    found = drift(var=[1.0, 0.5, 2.0, 1.5e5])
    assert found.ratio == pytest.approx((1.5e5 + 1e-3) / (1.5 + 1e-3))
    assert found.typical == pytest.approx(1.0)
    assert (found.exploded, found.far, found.broken) == (1, True, False)
    (channel,) = found.worst
    assert (channel.index, channel.var, channel.data_var) == (3, 1.5e5, 1.5)
    assert (channel.mean, channel.data_mean) == (2.0, 2.0)


def test_a_collapsed_variance_is_as_far_as_an_exploded_one():
    found = drift(var=[1.0, 0.0, 2.0, 1.5], data=Statistics(DATA.mean, DATA.var * 1000))
    assert found.ratio == pytest.approx(1e-3 / 500.001)
    assert found.score == pytest.approx(500.001 / 1e-3)
    assert found.exploded == 4


@pytest.mark.parametrize(("factor", "far"), [(EXPLODED * 0.9, False), (EXPLODED * 1.1, True)])
def test_far_begins_at_a_factor(factor, far):
    assert drift(var=DATA.var * factor).far is far
    assert drift(data=Statistics(DATA.mean, DATA.var * factor)).far is far


@pytest.mark.parametrize(("distance", "far"), [(SHIFTED * 0.9, False), (SHIFTED * 1.1, True)])
def test_far_begins_at_a_distance(distance, far):
    found = drift(mean=DATA.mean + distance * np.sqrt(DATA.var))
    assert found.far is far
    assert found.distance == pytest.approx(distance, rel=2e-3)


@pytest.mark.parametrize(("factor", "stale"), [(0.9, False), (1.1, True)])
def test_stale_begins_earlier(factor, stale):
    assert drift(var=DATA.var * STALE * factor).stale is stale
    assert drift(data=Statistics(DATA.mean, DATA.var * STALE * factor)).stale is stale
    assert drift(mean=DATA.mean + factor * OFF * np.sqrt(DATA.var + 1e-3)).stale is stale


def test_statistics_that_are_not_finite_are_broken():
    found = drift(mean=[np.nan, 1, -1, 2], var=[1, np.inf, 2, np.nan])
    assert (found.nonfinite, found.broken, found.far, found.score) == (3, True, True, np.inf)
    assert [channel.index for channel in found.worst] == [0, 1, 3]
    assert found.alive == 1
    assert found.var == (1.0, 2.0)


def test_nothing_finite_has_no_range():
    found = drift(var=[np.nan] * 4)
    assert (found.var, found.ratio, found.distance, found.typical) == (None,) * 4
    assert not found.stale


def test_a_variance_that_epsilon_does_not_lift_above_zero_is_broken():
    found = drift(var=[1.0, -1e-3, 2.0, 1.5])
    assert (found.negative, found.broken) == (1, True)
    assert drift(var=[1.0, -0.9e-3, 2.0, 1.5]).negative == 0


def test_a_channel_that_is_dead_in_the_data_tells_nothing():
    data = Statistics(DATA.mean, np.array([1.0, 1e-9, 2.0, 1.5]))
    found = drift(data=data)
    assert (found.alive, found.far) == (3, False)
    alive = drift(data=Statistics(DATA.mean, np.array([1.0, 2e-3, 2.0, 1.5])))
    assert alive.alive == 4


@pytest.mark.parametrize(("values", "alive"), [(31, 0), (32, 4)])
def test_few_values_tell_nothing(values, alive):
    found = drift(var=DATA.var * 1e6, values=values)
    assert found.alive == alive
    assert found.far is bool(alive)


def test_no_values_leave_what_is_broken_in_itself():
    none = Statistics(np.full(4, np.nan), np.full(4, np.nan))
    found = drift(var=[np.inf, 1, 1, 1], data=none, values=0)
    assert (found.nonfinite, found.ratio, found.data_var) == (1, None, None)


def test_only_some_channels_are_shown():
    norm = NormLayer(name="bn", channels=9, axis=1, epsilon=0.0, unbiased=True, mean="", var="")
    ones = np.ones(9)
    held = Statistics(ones, np.array([1, 2e3, 3e3, 9e3, 4e3, 5e3, 6e3, 7e3, 8e3]))
    found = drift_of(norm, held, Statistics(ones, ones), 100)
    assert [channel.index for channel in found.worst] == [3, 8, 7, 6, 5]
    assert found.exploded == 8


def test_drift_is_of_the_layer_itself_not_of_those_above():
    subject = classifier()
    held = subject.statistics("bn1")
    subject.set_statistics("bn1", Statistics(held.mean, held.var * 1e8))
    with BatchStatistics(subject, subject.norms) as statistics:
        subject.run((samples(128),), statistics)
    first, second = drifts(subject, statistics)
    assert first.far
    assert first.layer == "bn1"
    assert not second.far
    assert max(second.ratio, 1 / second.ratio) < 2


# Agreement.

A = np.array([[1.0, 2.0], [3.0, 1.0], [0.0, 5.0]])


def test_scores_agree_where_the_largest_is_in_the_same_place():
    found = agreement([(A, A[:, ::-1]), (A, A)])
    assert (found.samples, found.same, found.share) == (6, 3, 0.5)
    assert found.difference == pytest.approx((2 * (1 + 4 + 25) / (2 * np.square(A).sum())) ** 0.5)


def test_what_is_not_finite_agrees_with_nothing():
    bad = A.copy()
    bad[1, 1] = np.nan
    bad[2] = np.inf
    found = agreement([(bad, A)])
    assert (found.same, found.finite, found.reference) == (1, 1, 3)
    assert found.difference == np.inf
    found = agreement([(A, bad)])
    assert (found.same, found.finite, found.reference) == (1, 3, 1)


@pytest.mark.parametrize("shape", [(3, 1), (3,), (3, 2, 2)])
def test_outputs_that_are_no_scores_have_a_difference_only(shape):
    values = np.ones(shape)
    found = agreement([(values * 2, values)])
    assert (found.same, found.share, found.difference) == (None, None, 1.0)


def test_nothing_differs_from_nothing():
    zeros = np.zeros((2, 3))
    assert agreement([(zeros, zeros)]).difference == 0.0
    assert agreement([(zeros + 1, zeros)]).difference == np.inf
    assert agreement([]).share is None
