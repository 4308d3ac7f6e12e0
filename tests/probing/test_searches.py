"""Samples that break a model are found: alone, together, in inference and in training mode."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, Dense, Function, NumpySubject, classifier, samples

from ckptdoctor.live.data import read_data
from ckptdoctor.probing.bisect import breaking, search_inference, search_training
from ckptdoctor.probing.feed import Feed, bad_rows
from ckptdoctor.probing.precision import LIMITS, in_precision, poisoned_in_training


def feed(subject, x, size=16):
    return Feed(subject, read_data(x, subject.inputs()), size)


@pytest.mark.parametrize("bad", [{3}, {0}, {15}, {3, 4, 12}, set(range(16))])
def test_single_members_are_found_by_halves(bad):
    asked = []

    def test(group):
        asked.append(len(group))
        return bool(bad & set(group.tolist()))

    singles, together = breaking(test, np.arange(16))
    assert (set(singles), together) == (bad, [])
    assert len(asked) <= 2 * len(bad) * 4 + 2


def test_members_that_are_bad_together_only_are_a_group():
    singles, together = breaking(lambda g: {1, 2} <= set(g.tolist()), np.arange(8))
    assert (singles, together) == ([], [(1, 2)])


def test_samples_that_overflow_in_inference_are_named_with_their_range():
    x = samples(50)
    x[[7, 33]] *= 1e30
    squares = Function("square", "Square", lambda x: x * x)
    found = search_inference(feed(NumpySubject(squares), x), range(50))
    assert [c.index for c in found.culprits] == [7, 33]
    assert (found.culprits[0].low, found.culprits[0].high) == (x[7].min(), x[7].max())
    assert 0.5 < found.culprits[0].usual < 5
    assert (found.mode, found.samples, found.everyone, found.clean) == (
        "inference",
        50,
        False,
        False,
    )


def test_a_broken_model_is_not_blamed_on_samples():
    subject = classifier()
    subject.layers["bn1"].tensors["running_var"][:] = np.nan
    found = search_inference(feed(subject, samples(20)), range(20))
    assert (found.everyone, found.culprits, found.clean) == (True, (), False)


def test_a_clean_model_has_no_culprits():
    found = search_inference(feed(classifier(), samples(20)), range(20))
    assert found.clean


@pytest.mark.parametrize("size", [16, 5])
def test_a_model_that_mixes_samples_is_searched_by_halves(size):
    x = samples(16)
    x[11] = 1e30
    mixing = Function("mix", "Mix", lambda x: x + np.square(x).sum(0))
    found = search_inference(feed(NumpySubject(mixing), x, size), range(16))
    assert [c.index for c in found.culprits] == [11]
    assert found.groups == ()


def test_samples_that_break_together_only_are_a_group():
    x = np.full((8, 2), 1.2e38, np.float32)
    x[4:] = 0
    mixing = Function("mix", "Mix", lambda x: x + x.sum(0))
    found = search_inference(feed(NumpySubject(mixing), x, 8), range(8))
    assert found.culprits == ()
    assert found.groups == ((0, 1), (2, 3))


def test_the_fewest_of_a_group_are_told():
    wanted = {1, 6, 12}
    singles, (group,) = breaking(lambda g: wanted <= set(g.tolist()), np.arange(16))
    assert (singles, set(group)) == ([], wanted)


def test_a_sample_that_overflows_a_narrower_type_is_found_there():
    x = samples(20)
    x[9] = 4e4
    subject = NumpySubject(Function("double", "Double", lambda x: 2 * x))
    assert search_inference(feed(subject, x), range(20)).clean
    found = search_inference(feed(subject, x), range(20), "float16")
    assert ([c.index for c in found.culprits], found.mode) == ([9], "inference in float16")


@pytest.mark.parametrize("value", [1e20, 3e38])
def test_a_sample_that_spoils_statistics_is_found_in_training_mode(value):
    x = samples(40)
    x[23] = value
    subject = NumpySubject(Dense("fc", 6, 4), BatchNorm("bn", 4))
    subject.layers["fc"].tensors["weight"][:] = 0.5
    found = search_training(feed(subject, x), range(40))
    assert [c.index for c in found.culprits] == [23]
    assert (found.mode, found.groups) == ("training", ())


def test_company_is_found_inside_a_batch_too():
    x = samples(16)
    x[2] = 1e25
    found = search_training(feed(NumpySubject(BatchNorm("bn", 6)), x, 16), range(16))
    assert [c.index for c in found.culprits] == [2]


def test_without_company_the_fewest_that_do_it_are_told():
    x = np.full((4, 6), 1e25, np.float32) * np.array([[1], [-1], [2], [3]], np.float32)
    found = search_training(feed(NumpySubject(BatchNorm("bn", 6)), x, 4), range(4))
    assert found.culprits == ()
    assert found.groups == ((0, 1), (2, 3))


def test_where_no_samples_are_fine_the_model_is_at_fault():
    subject = NumpySubject(Function("bad", "Bad", lambda x: x * np.nan), BatchNorm("bn", 6))
    found = search_training(feed(subject, samples(40)), range(40))
    assert (found.everyone, found.culprits, found.groups) == (True, (), ())


def test_training_mode_leaves_the_model_as_it_was():
    subject = classifier()
    before = subject.statistics("bn1")
    search_training(feed(subject, samples(20)), range(20))
    assert np.array_equal(subject.statistics("bn1").var, before.var)


def test_a_model_of_one_batch_size_is_searched_too():
    x = samples(12)
    x[5] *= 1e30
    subject = NumpySubject(
        Function("square", "Square", lambda x: x * x), shapes=[((4, 6), "float32")]
    )
    found = search_inference(feed(subject, x), range(12))
    assert [c.index for c in found.culprits] == [5]


# Rows, and narrower types.


def test_rows_that_are_not_finite_are_those_of_any_output():
    first, second = np.zeros((3, 2)), np.zeros((3, 4, 4))
    first[1, 1], second[2, 0, 3] = np.nan, -np.inf
    assert bad_rows((first, second), 3).tolist() == [False, True, True]
    assert bad_rows((first,), 2).tolist() == [True, True]
    assert bad_rows((np.array(0.5),), 2).tolist() == [False, False]


def run_in(subject, x, dtype):
    given = feed(subject, x)
    reference = [given.run(batch) for batch in given.batches(range(len(x)))]
    return in_precision(given, range(len(x)), dtype, reference)


def test_the_first_layer_that_leaves_the_range_is_named():
    subject = NumpySubject(
        Function("small", "Scale", lambda x: x * 100),
        Function("large", "Scale", lambda x: x * 1000),
        Function("larger", "Scale", lambda x: x * 1000),
    )
    x = np.ones((6, 2), np.float32)
    x[4] = 1e-4
    found = run_in(subject, x, "float16")
    assert (found.dtype, found.first, found.bad, found.samples) == ("float16", "large", 5, 6)
    assert found.agreement.finite == 1
    found = run_in(subject, x, "bfloat16")
    assert (found.first, found.bad) == ("", 0)
    assert found.agreement.difference < 0.01


def test_a_mask_is_not_what_leaves_the_range():
    subject = NumpySubject(
        Function("mask", "Mask", lambda x: np.where(x > 3, -np.inf, x)),
        Function("soft", "Soft", np.exp),
        Function("large", "Scale", lambda x: x * 1e5),
    )
    assert run_in(subject, samples(8) + 3, "float16").first == "large"


def test_what_is_clean_in_a_type_has_no_first():
    subject = NumpySubject(
        Function("mask", "Mask", lambda x: np.where(x > 3, -np.inf, x)),
        Function("soft", "Soft", np.exp),
    )
    assert run_in(subject, samples(8) + 3, "float16").first == ""


def test_the_first_batchnorm_that_training_would_spoil_is_named():
    x = samples(32)
    x[3] = 3e4
    subject = NumpySubject(
        Function("large", "Scale", lambda x: x * 10),
        BatchNorm("bn1", 6),
        BatchNorm("bn2", 6),
    )
    given = feed(subject, x)
    assert poisoned_in_training(given, range(32), "float16") == "bn1"
    assert poisoned_in_training(given, range(32), "") == ""
    assert poisoned_in_training(feed(NumpySubject(Dense("fc", 6, 2)), x), range(32), "") == ""


def test_statistics_that_overflow_where_they_are_kept_count_as_spoilt():
    x = samples(32)
    x[3] = 1e25
    subject = NumpySubject(BatchNorm("bn", 6))
    assert poisoned_in_training(feed(subject, x), range(32), "") == "bn"


def test_limits_are_those_of_the_types():
    import ml_dtypes

    assert LIMITS["float16"] == float(np.finfo(np.float16).max)
    assert LIMITS["float32"] == float(np.finfo(np.float32).max)
    assert LIMITS["bfloat16"] == float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
