"""How outputs are held against each other."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import classifier

from ckptdoctor.live.subject import Statistics
from ckptdoctor.recalibration.agreement import Agreement, alike, compared, holding


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values)


def test_same_outputs_agree():
    out = [(rows([1.0, 2.0], [3.0, 0.0]),)]
    assert compared(out, out) == Agreement(0.0, 1.0)


def test_outputs_of_other_samples_are_two_apart():
    wanted = np.random.default_rng(0).normal(size=(4000, 3))
    found = compared([(np.roll(wanted, 1, 0),)], [(wanted,)])
    assert found.error == pytest.approx(2, rel=0.1)
    assert found.classes == pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_infinitely_off(value):
    wanted = rows([1.0, 2.0], [3.0, 0.0])
    off = wanted.copy()
    off[1, 1] = value
    for one, other in ((off, wanted), (wanted, off)):
        assert compared([(one,)], [(other,)]).error == float("inf")


def test_batches_are_one_set_of_rows():
    wanted = rows([1.0, 2.0], [3.0, 0.0], [0.0, 9.0])
    off = wanted + rows([0.0, 0.0], [0.0, 1.0], [0.0, 0.0])
    whole = compared([(off,)], [(wanted,)])
    parts = compared([(off[:1],), (off[1:],)], [(wanted[:1],), (wanted[1:],)])
    assert parts == whole
    assert whole.error > 0


def test_constant_outputs_agree_only_with_themselves():
    wanted = np.ones((3, 2))
    assert compared([(wanted,)], [(wanted,)]).error == 0
    assert compared([(wanted + 1e-3,)], [(wanted,)]).error == float("inf")


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 5, 5)], ids=str)
def test_outputs_that_are_no_scores_have_no_classes(shape):
    wanted = np.random.default_rng(0).normal(size=shape)
    assert compared([(wanted,)], [(wanted,)]) == Agreement(0.0, None)


def test_every_output_counts_alike():
    one, other = rows([0.0], [2.0]), rows([0.0], [4.0])
    both = compared([(one, one)], [(one, other)])
    assert both.error == pytest.approx(compared([(one,)], [(other,)]).error / 2)


def test_outputs_without_rows_compare_nothing():
    assert compared([(np.float64(1.0),)], [(np.float64(1.0),)]) is None
    assert compared([(rows([1.0]),)], [(rows([1.0], [2.0]),)]) is None


def test_statistics_are_held_for_a_while_only():
    subject = classifier()
    before = subject.statistics("bn1")
    with holding(subject, {"bn1": Statistics(before.mean + 1, before.var)}):
        np.testing.assert_allclose(subject.statistics("bn1").mean, before.mean + 1, rtol=1e-6)
    np.testing.assert_array_equal(subject.statistics("bn1").mean, before.mean)


def test_words_leave_out_what_is_not_known():
    assert str(Agreement(0.25, None)) == "relative error 0.25"
    assert str(Agreement(0.25, 1.0)) == "100 % same class, relative error 0.25"


def test_outputs_of_one_column_are_no_classes_and_of_two_they_are():
    one, two = np.array([[1.0], [2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    assert compared([(one,)], [(one,)]).classes is None
    assert compared([(two,)], [(two,)]).classes == 1.0


def test_what_does_not_line_up_is_not_alike():
    assert not alike([(np.float64(3.0),)])
