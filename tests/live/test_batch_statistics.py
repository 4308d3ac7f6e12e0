"""BatchNorms that use the statistics of their batch: exact, sound and undone afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, Dense, Function, NumpySubject, Residual, relu

from ckptdoctor.live.batch_statistics import BatchStatistics, Moments, moments, telling
from ckptdoctor.live.subject import Call, Statistics

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((40, 7), -1),
        ((40, 7), 1),
        ((12, 7, 5), 1),
        ((9, 7, 4, 6), 1),
        ((9, 4, 6, 7), -1),
        ((9, 4, 6, 7), 3),
        ((5, 7, 3, 2, 4), 1),
    ],
)
def test_moments_are_over_all_dimensions_but_that_of_the_channels(shape, axis):
    values = RANDOM.normal(3, 2, shape).astype(np.float32)
    others = tuple(d for d in range(len(shape)) if d != axis % len(shape))
    found = moments(values, axis)
    assert found.number == values.size // 7
    np.testing.assert_allclose(found.mean, values.astype(np.float64).mean(others), rtol=1e-12)
    np.testing.assert_allclose(found.var, values.astype(np.float64).var(others), rtol=1e-12)
    assert found.mean.dtype == found.var.dtype == np.float64


def test_moments_are_the_same_in_blocks(monkeypatch):
    values = RANDOM.normal(1e4, 1, (50, 6)).astype(np.float32)
    whole = moments(values, 1)
    monkeypatch.setattr("ckptdoctor.live.batch_statistics._BLOCK", 24)
    parts = moments(values, 1)
    assert parts.number == whole.number == 50
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(parts.var, whole.var, rtol=1e-10)


def test_a_large_mean_does_not_cost_the_variance():
    values = (1e8 + RANDOM.normal(0, 1, (64, 1))).astype(np.float64)
    np.testing.assert_allclose(moments(values, 1).var, values.var(0), rtol=1e-9)


def test_an_empty_batch_has_no_moments():
    assert moments(np.zeros((0, 3)), 1).number == 0


def test_merging_with_nothing_changes_nothing():
    some, none = moments(np.array([[1.0], [3.0]]), 1), Moments(0, np.zeros(1), np.zeros(1))
    assert some.merged(none) is some
    assert none.merged(some) is some


def model(axis: int = -1) -> NumpySubject:
    return NumpySubject(
        Dense("fc1", 4, 5), BatchNorm("bn1", 5, axis), relu("r"), BatchNorm("bn2", 5)
    )


def test_the_batch_is_normalised_by_itself():
    subject = model()
    x = RANDOM.normal(7, 3, (30, 4)).astype(np.float32)
    with BatchStatistics(subject, subject.norms) as observer:
        (out,) = subject.run((x,), observer)
    np.testing.assert_allclose(out.mean(0), 0.1, atol=1e-5)  # beta
    inside = subject.layers["fc1"].forward(None, x)
    count, found = observer.pooled("bn1")
    assert count == 30
    np.testing.assert_allclose(found.mean, inside.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.var, inside.var(0), rtol=1e-4)


def test_batches_are_pooled_with_what_lies_between_them():
    subject = NumpySubject(BatchNorm("bn", 1))
    with BatchStatistics(subject, ["bn"]) as observer:
        subject.run((np.array([[0.0], [2.0]]),), observer)
        subject.run((np.array([[10.0], [12.0]]),), observer)
    assert observer.pooled("bn")[0] == 4
    assert observer.pooled("bn")[1].mean == pytest.approx([6.0])
    assert observer.pooled("bn")[1].var == pytest.approx([26.0])


def test_calls_of_a_shared_layer_are_pooled_and_each_uses_its_own():
    norm = BatchNorm("bn", 1)
    outputs = []

    def twice(run, x):
        outputs.append(run.call(norm, x))
        return run.call(norm, x * 3 + 100)

    class Twice(Residual):
        def forward(self, run, *inputs):
            return twice(run, inputs[0])

    subject = NumpySubject(root=Twice("", norm))
    x = np.array([[1.0], [3.0]], np.float32)
    with BatchStatistics(subject, ["bn"]) as observer:
        (last,) = subject.run((x,), observer)
    np.testing.assert_allclose(outputs[0], [[-0.9], [1.1]], atol=1e-3)
    np.testing.assert_allclose(last, [[-0.9], [1.1]], atol=1e-3)
    assert observer.pooled("bn")[0] == 4
    assert observer.pooled("bn")[1].mean == pytest.approx([(2 + 106) / 2])


def test_the_models_own_statistics_are_back_afterwards():
    subject = model()
    before = subject.statistics("bn1")
    with BatchStatistics(subject, ["bn1"]) as observer:
        subject.run((np.ones((4, 4), np.float32),), observer)
        assert not np.array_equal(subject.statistics("bn1").var, before.var)
    after = subject.statistics("bn1")
    assert np.array_equal(before.mean, after.mean)
    assert np.array_equal(before.var, after.var)


def test_only_the_named_layers_are_touched():
    subject = model()
    with BatchStatistics(subject, ["bn2"]) as observer:
        subject.run((np.full((4, 4), 9, np.float32),), observer)
        assert np.array_equal(subject.statistics("bn1").var, np.ones(5))
        assert not np.array_equal(subject.statistics("bn2").var, np.ones(5))
    assert observer.names == ("bn2",)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_batch_that_is_not_finite_is_flagged_and_not_pooled(bad):
    subject = NumpySubject(BatchNorm("bn", 2))
    good = np.array([[1.0, 5.0], [3.0, 9.0]])
    poisoned = good.copy()
    poisoned[0, 1] = bad
    with BatchStatistics(subject, ["bn"]) as observer:
        subject.run((good,), observer)
        (out,) = subject.run((poisoned,), observer)
        assert np.isfinite(out[:, 0]).all()
        assert not np.isfinite(out[:, 1]).any()
    assert observer.nonfinite == {"bn": 1}
    assert observer.pooled("bn")[0] == 2
    assert observer.pooled("bn")[1].mean == pytest.approx([2.0, 7.0])


def test_a_layer_that_was_never_called_has_no_statistics():
    subject = model()
    with BatchStatistics(subject, ["bn1"]) as observer:
        pass
    count, found = observer.pooled("bn1")
    assert count == 0
    assert np.isnan(found.mean).all()
    assert found.var.shape == (5,)


def test_a_call_without_inputs_is_left_alone():
    subject = model()
    call = Call(layer="bn1", class_name="BatchNorm", index=0, depth=1, leaf=True)
    with BatchStatistics(subject, ["bn1"]) as observer:
        observer.before(call, ())
        observer.before(call, (np.zeros((0, 5), np.float32),))
    assert observer.pooled("bn1")[0] == 0


def test_what_is_pooled_is_a_copy():
    subject = NumpySubject(BatchNorm("bn", 1), Function("f", "F", lambda x: x))
    with BatchStatistics(subject, ["bn"]) as observer:
        subject.run((np.array([[1.0], [3.0]]),), observer)
    observer.pooled("bn")[1].mean[:] = 77
    assert observer.pooled("bn")[1] == Statistics(2.0, 1.0)


def test_channels_far_below_the_median_tell_nothing():
    assert telling(np.array([1.0, 1.1e-3, 0.9e-3, 0.0, 50.0, 1.0, 1.0])).tolist() == [
        True, True, False, False, True, True, True,
    ]  # fmt: skip
    assert not telling(np.zeros(3)).any()
