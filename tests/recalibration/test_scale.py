"""Samples that are not scaled as in training: told by the first BatchNorm, refused where it is sure."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, Dense, NumpySubject, classifier, relu, samples

from ckptdoctor.errors import UsageError
from ckptdoctor.live.subject import Statistics
from ckptdoctor.recalibration.choice import recalibrated
from ckptdoctor.recalibration.estimate import estimate, every_channel
from ckptdoctor.recalibration.scale import Scale, scale_of

RANDOM = np.random.default_rng(0)
HELD = Statistics(RANDOM.normal(0, 1, 16), RANDOM.uniform(0.5, 2, 16))


def held_against(factor=1.0, *, means=None, spread=0.0, values=64, broken=None, held=HELD):
    """Statistics of samples ``factor`` times as large, whose variances' ratios spread."""
    ratios = np.exp(np.linspace(-spread, spread, held.var.size))
    data = Statistics(
        held.mean * (factor if means is None else means), held.var * factor**2 * ratios
    )
    return scale_of("bn", held, data, values, size=255.0, broken=broken)


@pytest.mark.parametrize("factor", [1 / 255, 0.6, 1.6, 255.0])
def test_factor_is_told(factor):
    found = held_against(factor)
    assert found.norm == "bn"
    assert found.factor == pytest.approx(factor)
    assert found.together


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.45])
def test_samples_of_training_have_none(factor):
    assert held_against(factor) is None


def test_channels_that_differ_each_by_its_own_factor_have_no_one_factor():
    assert held_against(30.0, spread=0.4) is not None
    assert held_against(30.0, spread=0.6) is None


@pytest.mark.parametrize(
    ("means", "together"), [(4.7, True), (4.9, False), (3.4, True), (3.2, False)]
)
def test_means_of_another_factor_are_no_scale(means, together):
    assert held_against(4.0, means=means).together is together


def test_means_of_zero_agree_with_nothing():
    assert not held_against(4.0, held=Statistics(np.zeros(16), np.ones(16))).together


@pytest.mark.parametrize(("values", "told"), [(31, False), (32, True)])
def test_few_values_say_nothing(values, told):
    assert (held_against(4.0, values=values) is not None) is told


def test_only_sound_channels_are_asked():
    var = HELD.var.copy()
    var[:4] = [np.nan, np.inf, -1.0, 0.0]
    mean = HELD.mean.copy()
    mean[4] = np.nan
    data = Statistics(HELD.mean * 4, HELD.var * 16)
    data.var[5] = 1e-9  # dead in these samples
    broken = Statistics(np.zeros(16, bool), np.zeros(16, bool))
    broken.mean[6] = broken.var[7] = True
    mean[6], var[7] = 1e30, 1e30
    found = scale_of("bn", Statistics(mean, var), data, 64, size=255.0, broken=broken)
    assert found.factor == pytest.approx(4)
    assert found.together


@pytest.mark.parametrize(("sound", "told"), [(2, False), (3, True)])
def test_three_channels_are_enough(sound, told):
    broken = Statistics(np.zeros(16, bool), np.arange(16) >= sound)
    assert (held_against(4.0, broken=broken) is not None) is told


@pytest.mark.parametrize(
    ("scale", "refused"),
    [
        (Scale("bn", 1.79, True, 255.0), False),
        (Scale("bn", 1.8, True, 255.0), True),
        (Scale("bn", 255.0, False, 255.0), False),
        (Scale("bn", 1 / 255, True, 255.0), False),
        (Scale("bn", 255.0, True, 10.0), False),
        (Scale("bn", 255.0, True, 10.1), True),
    ],
)
def test_only_larger_samples_are_sure(scale, refused):
    """Statistics that are too large may be damage, and so may kernels before samples of usual size."""
    assert scale.refused is refused


def test_sentence_names_layer_and_factor():
    assert str(Scale("stem.bn", 1 / 255, True, 1.0)) == (
        "these samples vary 255 times less than 'stem.bn', the first BatchNorm, knows from training, "
        "in all its channels alike"
    )


def lost(subject, name):
    own = subject.statistics(name)
    subject.set_statistics(name, Statistics(own.mean * np.nan, own.var * np.nan))
    return {name: Statistics(np.ones(16, bool), np.ones(16, bool))}


@pytest.fixture
def model():
    subject = classifier()
    for name, of in ("bn1", subject.statistics("bn1")), ("bn2", subject.statistics("bn2")):
        assert np.isfinite(of.mean).all(), name
    return subject


@pytest.mark.parametrize("reach", ["bn2", ""])
def test_samples_that_were_not_scaled_are_not_stored(model, reach):
    broken = lost(model, reach) if reach else {}
    with pytest.raises(UsageError, match=r"vary 2\d\d times more than 'bn1', the first") as caught:
        recalibrated(model, [samples(256) * 255], broken)
    assert "not scaled as in training" in str(caught.value)
    assert "--force" in caught.value.hint
    made = recalibrated(model, [samples(256) * 255], broken, force=True)
    assert made.reach != "none"
    assert made.warnings[-1].startswith("These samples vary 2")


def test_smaller_samples_are_warned_about(model):
    made = recalibrated(model, [samples(256) / 255], lost(model, "bn2"))
    assert made.reach in ("broken", "all")
    assert "times less than 'bn1'" in made.warnings[-1]


def test_first_batchnorm_that_is_broken_tells_nothing(model):
    made = recalibrated(model, [samples(256) * 255], lost(model, "bn1"))
    assert not any("vary" in warning for warning in made.warnings)


def test_samples_of_training_are_not_spoken_of(model):
    made = recalibrated(model, [samples(256)], lost(model, "bn2"))
    assert (made.reach, made.warnings) == ("broken", ())


@pytest.mark.parametrize("reach", ["broken", "all"])
def test_it_holds_where_the_caller_decides_too(model, reach):
    broken = lost(model, "bn2")
    with pytest.raises(UsageError, match="not scaled as in training"):
        recalibrated(model, [samples(256) * 255], broken, reach=reach)
    assert recalibrated(model, [samples(256) * 255], broken, reach=reach, force=True).statistics


def test_kernels_that_are_too_large_are_healed_and_warned_about(model):
    model.layers["fc1"].tensors["weight"] *= 127
    made = recalibrated(model, [samples(256)], {})
    assert made.reach == "all"
    assert made.warnings[-1].endswith("and normalised, and at the weights before it.")


def test_warning_keeps_the_names_of_layers():
    subject = NumpySubject(Dense("fc", 6, 16), BatchNorm("BNorm", 16), relu("r"), Dense("H", 16, 4))
    found = estimate(subject, every_channel(subject), [[samples(256) * 3]])["BNorm"]
    subject.set_statistics("BNorm", found)
    made = recalibrated(subject, [samples(256)], {})
    assert "'BNorm', the first BatchNorm, knows" in made.warnings[-1]
    assert made.warnings[-1].startswith("These")
