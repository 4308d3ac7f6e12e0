"""Ranges, counts, and whether samples are told apart."""

from __future__ import annotations

import numpy as np
import pytest

from ckptdoctor.probing import values as module
from ckptdoctor.probing.values import ALIKE, Span, span_of, varies


def test_counts_and_ranges_are_of_all_arrays():
    span = span_of([np.array([[1.0, -3.0]]), np.array([0.0, 2.0], np.float32), np.zeros((0, 2))])
    assert span == Span(4, 1, low=-3.0, high=2.0, total=6.0)
    assert (span.nonfinite, span.finite, span.largest, span.mean_abs) == (0, 4, 3.0, 1.5)


def test_what_is_not_finite_is_counted_apart_and_left_out_of_the_rest():
    span = span_of([np.array([np.nan, np.inf, -np.inf, -np.inf, 4.0, -1.0, 0.0])])
    assert (span.nan, span.posinf, span.neginf, span.zeros) == (1, 1, 2, 1)
    assert (span.low, span.high, span.total, span.nonfinite, span.finite) == (-1, 4, 5, 4, 3)


def test_nothing_finite_has_no_range():
    span = span_of([np.array([np.nan, np.inf])])
    assert (span.largest, span.mean_abs, span.low, span.high) == (0.0, None, np.inf, -np.inf)


def test_blocks_do_not_matter(monkeypatch):
    array = np.random.default_rng(0).normal(size=(20, 3, 5))
    array[7, 1, 2] = np.nan
    whole = span_of([array])
    monkeypatch.setattr(module, "_BLOCK", 30)
    parts = span_of([array])
    assert parts.total == pytest.approx(whole.total)
    assert (parts.low, parts.high, parts.nan, parts.size) == (whole.low, whole.high, 1, 300)


@pytest.mark.parametrize(
    ("values", "badness"),
    [([1.0], 0), ([1.0, -np.inf], 1), ([np.inf], 2), ([np.nan], 2), ([-np.inf, np.nan], 2)],
)
def test_masks_are_less_bad_than_nan(values, badness):
    assert span_of([np.array(values)]).badness == badness


def test_samples_that_differ_are_told_apart():
    assert varies(np.array([[1.0, 2.0], [1.0, 2.1]]), 2) is True
    assert varies(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.1]]), 3) is True
    assert varies(np.array([[1.0, 2.0]] * 3), 3) is False
    assert varies(np.zeros((3, 2)), 3) is False


@pytest.mark.parametrize(("factor", "answer"), [(0.5, False), (2.0, True)])
def test_differences_count_by_the_largest_magnitude(factor, answer):
    values = np.array([[1000.0, 0.0], [1000.0, 1000.0 * ALIKE * factor]])
    assert varies(values, 2) is answer


@pytest.mark.parametrize(
    ("values", "samples"),
    [
        (np.ones((1, 2)), 1),
        (np.ones((3, 2)), 2),
        (np.ones(()), 2),
        (np.ones((2, 0)), 2),
        (np.array([[np.nan], [1.0]]), 2),
        (np.array([[1.0], [np.inf]]), 2),
    ],
)
def test_what_cannot_be_said_is_none(values, samples):
    assert varies(values, samples) is None
