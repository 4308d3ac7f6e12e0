"""Samples that statistics are taken without."""

from __future__ import annotations

import numpy as np
import pytest

from ckptdoctor.live.outliers import LARGE, RARE, large, peaks


@pytest.mark.parametrize(("factor", "found"), [(0.99, []), (1.01, [3])])
def test_large_begins_at_a_factor(factor, found):
    sizes = np.full(9, 2.0)
    sizes[3] = 2 * LARGE * factor
    assert np.flatnonzero(large(sizes)).tolist() == found


@pytest.mark.parametrize(
    ("number", "many", "told"),
    [(5, 1, True), (5, 2, False), (2 * RARE, 2, True), (2 * RARE - 1, 2, False)],
)
def test_they_are_few_or_none(number, many, told):
    sizes = np.ones(number)
    sizes[:many] = 1e3
    assert large(sizes).sum() == (many if told else 0)


def test_what_is_not_finite_is_not_large_and_does_not_count():
    sizes = np.array([1.0, np.nan, np.inf, 11.0, 1.0, 1.0])
    assert np.flatnonzero(large(sizes)).tolist() == [3]
    assert not large(np.array([np.nan, np.nan])).any()


def test_among_zeros_nothing_is_large():
    assert not large(np.array([0.0, 0.0, 5.0])).any()


def test_peaks_are_of_either_sign_over_all_inputs_and_of_real_numbers_only():
    one = np.array([[1.0, -3.0], [0.5, 0.0], [np.nan, 9.0]], np.float32)
    two = np.array([[2.0], [-7.0], [1.0]])
    found = peaks([one, two, np.full((3, 1), 10**6)])
    assert found[:2].tolist() == [3.0, 7.0]
    assert np.isnan(found[2])
    assert peaks([np.zeros((2, 0), np.float32)]).tolist() == [0.0, 0.0]
