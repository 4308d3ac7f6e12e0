"""Statistics over batches: what training would store, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, Dense, NumpySubject, classifier, relu, samples

from ckptdoctor.errors import UsageError
from ckptdoctor.live.subject import Statistics
from ckptdoctor.recalibration.estimate import estimate, every_channel


def batches(values: np.ndarray, size: int) -> list[list[np.ndarray]]:
    return [[values[at : at + size]] for at in range(0, len(values), size)]


def only(subject: NumpySubject, name: str, mean=True, var=True):
    count = subject.norms[name].channels
    masks = Statistics(np.zeros(count, bool), np.zeros(count, bool))
    masks.mean[:] = mean
    masks.var[:] = var
    return {name: masks}


def before_bn1(subject: NumpySubject, x: np.ndarray) -> np.ndarray:
    held = subject.layers["fc1"].tensors
    return (x @ held["weight"] + held["bias"]).astype(np.float64)


class TestPopulationEstimator:
    @pytest.mark.parametrize("size", [7, 16, 64])
    def test_statistics_of_all_samples_whatever_the_batches(self, size):
        subject, x = classifier(), samples(64)
        made = estimate(subject, only(subject, "bn1"), batches(x, size))["bn1"]
        inputs = before_bn1(subject, x)
        np.testing.assert_allclose(made.mean, inputs.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(made.var, inputs.var(0), rtol=1e-5)

    def test_unbiased_where_the_framework_stores_that(self, monkeypatch):
        subject, x = classifier(), samples(20)
        biased = estimate(subject, only(subject, "bn1"), batches(x, 20))["bn1"]
        norms = {
            name: type(norm)(**{f: getattr(norm, f) for f in norm.__slots__} | {"unbiased": True})
            for name, norm in subject.norms.items()
        }
        monkeypatch.setattr(type(subject), "norms", norms)
        made = estimate(subject, only(subject, "bn1"), batches(x, 20))["bn1"]
        np.testing.assert_allclose(made.var / biased.var, 20 / 19)
        np.testing.assert_array_equal(made.mean, biased.mean)

    def test_broken_statistics_reach_nothing_downstream(self):
        sound, broken, x = classifier(), classifier(), samples(64)
        wanted = estimate(sound, every_channel(sound), batches(x, 64))
        nan = np.full(16, np.nan)
        broken.set_statistics("bn1", Statistics(nan, nan))
        broken.set_statistics("bn2", Statistics(nan, nan))
        made = estimate(broken, every_channel(broken), batches(x, 64))
        for name in ("bn1", "bn2"):
            np.testing.assert_allclose(made[name].var, wanted[name].var, rtol=1e-6)

    def test_model_is_as_before(self):
        subject, x = classifier(), samples(64)
        before = {name: subject.statistics(name) for name in subject.norms}
        estimate(subject, every_channel(subject), batches(x, 16))
        for name, held in before.items():
            np.testing.assert_array_equal(subject.statistics(name), held)


class TestChannels:
    def test_channels_that_were_not_chosen_keep_their_own(self):
        subject, x = classifier(), samples(64)
        masks = only(subject, "bn1", mean=False, var=False)
        masks["bn1"].var[3] = True
        before = subject.statistics("bn1")
        made = estimate(subject, masks, batches(x, 64))["bn1"]
        np.testing.assert_array_equal(made.mean, before.mean)
        assert np.flatnonzero(made.var != before.var).tolist() == [3]

    def test_channels_that_were_not_chosen_normalise_by_their_own_meanwhile(self):
        """Else a layer downstream would see what it never sees when served."""
        subject, x = classifier(), samples(64)
        own = subject.statistics("bn1")
        subject.set_statistics("bn1", Statistics(own.mean + 5.0, own.var))
        masks = only(subject, "bn1", mean=False, var=False) | only(subject, "bn2")
        made = estimate(subject, masks, batches(x, 64))["bn2"]
        frozen = estimate(subject, only(subject, "bn2"), batches(x, 64))["bn2"]
        np.testing.assert_allclose(made.mean, frozen.mean)


class TestRefusals:
    def test_inputs_that_are_not_finite_even_so(self):
        subject, x = classifier(), samples(16)
        subject.layers["fc1"].tensors["weight"][0, 0] = np.inf
        with pytest.raises(UsageError, match="'bn1' is not finite in training mode either"):
            estimate(subject, only(subject, "bn1"), batches(x, 16))

    def test_one_value_per_channel(self):
        subject = classifier()
        with pytest.raises(UsageError, match="'bn1' sees one value per channel"):
            estimate(subject, only(subject, "bn1"), batches(samples(1), 1))

    def test_two_values_per_channel_are_enough(self):
        subject = classifier()
        assert estimate(subject, only(subject, "bn1"), batches(samples(2), 2))

    def test_layer_that_is_never_called(self):
        subject = NumpySubject(Dense("fc", 6, 16), relu("relu"))
        subject.layers["bn"] = BatchNorm("bn", 16)
        with pytest.raises(UsageError, match="'bn' is not called on these data"):
            estimate(subject, only(subject, "bn"), batches(samples(16), 16))


def test_progress_is_told_by_batch():
    subject, told = classifier(), []
    estimate(subject, only(subject, "bn1"), batches(samples(20), 8), told.append)
    assert told == [8, 8, 4]
