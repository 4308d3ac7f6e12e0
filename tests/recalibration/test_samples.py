"""Which samples statistics are recomputed from."""

from __future__ import annotations

import numpy as np
import pytest

from ckptdoctor.recalibration.samples import usable


def images(number=40):
    return np.random.default_rng(0).uniform(-1, 1, (number, 3, 8, 8)).astype("f4")


def test_all_of_them_as_a_rule():
    given = [images()]
    left, told = usable(given)
    assert left is given
    assert told == ()


@pytest.mark.parametrize(("factor", "out"), [(9.5, 0), (11, 1), (1e25, 1)])
def test_one_that_is_far_larger_than_usual_is_left_out(factor, out):
    x = images()
    x[7] *= factor / np.abs(x[7]).max() * np.median(np.abs(x).max((1, 2, 3)))
    left, told = usable([x])
    assert len(left[0]) == 40 - out
    assert len(told) == out


@pytest.mark.parametrize(("large", "out"), [(2, 2), (3, 0)], ids=["rare", "no longer rare"])
def test_many_large_ones_are_what_the_data_are_like(large, out):
    x = images()
    x[:large] *= 100
    assert len(usable([x])[0][0]) == 40 - out


def test_every_input_of_a_sample_counts_and_goes_with_it():
    x, y = images(), np.ones((40, 5))
    y[3] = np.nan
    left, told = usable([x, y])
    assert [len(values) for values in left] == [39, 39]
    assert told == ("Left out 1 of 40 samples for NaN or Inf: number 3.",)


def test_whole_numbers_are_never_out_of_the_ordinary():
    tokens = np.ones((40, 5), np.int64)
    tokens[3] = 50_000
    assert usable([tokens])[1] == ()


def test_data_that_all_hold_nan_stay():
    x = images()
    x[:, 0, 0, 0] = np.nan
    assert len(usable([x])[0][0]) == 40


def test_zeros_have_no_usual_size():
    assert usable([np.zeros((40, 3), "f4")])[1] == ()


def test_the_first_five_are_named():
    x = images(200)
    x[10:17] = np.inf
    assert usable([x])[1] == (
        "Left out 7 of 200 samples for NaN or Inf: numbers 10, 11, 12, 13, 14 and 2 more.",
    )


def test_of_few_samples_one_may_be_an_outlier():
    for large, out in ((1, 1), (2, 0)):
        x = images(16)
        x[:large] *= 100
        assert len(usable([x])[0][0]) == 16 - out


def test_five_are_named_without_a_rest():
    x = images(200)
    x[10:15] = np.inf
    assert usable([x])[1][0].endswith("numbers 10, 11, 12, 13, 14.")


def test_small_samples_are_measured_too():
    """All below 0.5: a size starts from nothing."""
    x = images() * np.float32(1e-3)
    x[7] *= 100
    assert len(usable([x])[0][0]) == 39
