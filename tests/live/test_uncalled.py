"""BatchNorms that inference never calls, such as those of a head for training alone."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, Dense, Layer, NumpySubject, Sequential, relu, samples

from ckptdoctor.errors import UsageError
from ckptdoctor.live.batch_statistics import BatchStatistics
from ckptdoctor.live.subject import Statistics
from ckptdoctor.living import recalibrate
from ckptdoctor.probing.probe import probe
from ckptdoctor.recalibration.bedside import Bedside, Order
from ckptdoctor.recalibration.estimate import estimate, every_channel


class Unused(Layer):
    """A head that is left out."""

    def forward(self, run, *inputs):
        return inputs[0]


def subject(*broken: str) -> NumpySubject:
    made = NumpySubject(
        root=Sequential(
            "",
            Dense("fc", 6, 16),
            BatchNorm("bn", 16),
            relu("relu"),
            Unused("aux", Dense("aux.fc", 16, 4), BatchNorm("aux.bn", 4)),
            Dense("head", 16, 4, 2),
        )
    )
    with BatchStatistics(made, ["bn"]) as seen:
        made.run((samples(256),), seen)
        fitted = seen.pooled("bn")[1]
    made.set_statistics("bn", fitted)
    trained = np.linspace(0.4, 0.7, 4)  # else they would pass for statistics that were lost
    made.set_statistics("aux.bn", Statistics(trained - 0.5, trained))
    for name in broken:
        own = made.statistics(name)
        made.set_statistics(name, Statistics(own.mean, own.var * np.nan))
    return made


def test_a_healthy_model_is_left_alone():
    assert recalibrate(subject(), samples(64)).reach == "none"


@pytest.mark.parametrize("reach", [None, "broken", "all"])
def test_the_layer_that_is_called_is_recomputed(reach):
    model = subject("bn")
    made = recalibrate(model, samples(64), reach=reach)
    assert set(made.statistics) == {"bn"}
    assert np.isfinite(model.statistics("bn").var).all()
    assert not any("Not called" in warning for warning in made.warnings)


def test_what_stays_broken_is_told():
    model = subject("bn", "aux.bn")
    made = recalibrate(model, samples(64))
    assert set(made.statistics) == {"bn"}
    (told,) = [warning for warning in made.warnings if "Not called" in warning]
    assert "'aux.bn'" in told
    assert np.isnan(model.statistics("aux.bn").var).all()


def test_nothing_that_could_be_recomputed_is_said():
    with pytest.raises(
        UsageError, match=r"'aux\.bn' is not called on these data: there is nothing"
    ):
        recalibrate(subject("aux.bn"), samples(64))


def test_several_that_are_not_called_are_counted():
    model = subject()
    every = every_channel(model)
    twice = {"aux.bn": every["aux.bn"]}
    with pytest.raises(UsageError, match=r"'aux\.bn' is not called on these data: "):
        estimate(model, twice, [[samples(16)]])
    assert set(estimate(model, every, [[samples(16)]])) == {"bn"}


def test_a_file_keeps_their_statistics(tmp_path):
    np.save(tmp_path / "x.npy", samples(64))
    model = subject("bn", "aux.bn")
    bedside = Bedside(order=Order(model=model, data=str(tmp_path / "x.npy")), table=model.table())
    bedside._open()
    broken = {
        name: Statistics(np.zeros(size, bool), np.ones(size, bool))
        for name, size in (("bn", 16), ("aux.bn", 4))
    }
    made = bedside.recalibrated(broken, None)
    assert (set(made.statistics), made.idle) == ({"bn"}, ("aux.bn",))
    assert any("'aux.bn' is not called on these data" in fact for fact in bedside.facts)


def test_a_probe_says_that_a_broken_layer_is_not_called():
    report = probe(subject("aux.bn"), samples(64))
    (found,) = [sign for sign in report.signs if sign.kind == "broken-statistics"]
    assert "not called on these data" in found.message
    report = probe(subject("bn"), samples(64))
    (found,) = [sign for sign in report.signs if sign.kind == "broken-statistics"]
    assert "not called" not in found.message
