"""None, broken or all: the narrowest that agrees with training mode on held-back samples."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import BatchNorm, NumpySubject, classifier, relu, samples

from ckptdoctor.errors import UsageError
from ckptdoctor.live.subject import Statistics
from ckptdoctor.recalibration import choice
from ckptdoctor.recalibration.agreement import Agreement
from ckptdoctor.recalibration.choice import Candidate, recalibrated
from ckptdoctor.recalibration.estimate import estimate


def broken(*names: str):
    ones = np.ones(16, bool)
    return {name: Statistics(ones, ones) for name in names}


def scaled(subject: NumpySubject, name: str, factor: float) -> None:
    own = subject.statistics(name)
    subject.set_statistics(name, Statistics(own.mean * factor, own.var * factor**2))


def images() -> NumpySubject:
    """One BatchNorm over sequences, which have more than one value per channel and sample."""
    return NumpySubject(BatchNorm("bn", 6, axis=1), relu("relu"))


def chosen(**errors: float | None) -> str:
    found = [
        Candidate(reach, None if error is None else Agreement(error, None))
        for reach, error in errors.items()
    ]
    return choice._narrowest(found)


class TestChoice:
    @pytest.mark.parametrize(
        ("errors", "wanted"),
        [
            ({"none": 0.09, "broken": 0.01, "all": 0.001}, "none"),
            ({"none": 0.11, "broken": 0.01, "all": 0.001}, "broken"),
            ({"none": 0.11, "broken": 0.06, "all": 0.06}, "none"),
            ({"none": 0.9, "broken": 0.19, "all": 0.001}, "broken"),
            ({"none": 0.9, "broken": 0.25, "all": 0.02}, "all"),
            ({"none": 1.0, "broken": 0.7, "all": 0.7}, "broken"),
            ({"none": 0.9, "broken": 0.31, "all": 0.1}, "all"),
            ({"none": 0.9, "broken": 0.31, "all": 0.16}, "broken"),
            ({"none": np.inf, "broken": np.inf, "all": 0.1}, "all"),
            ({"none": 0.29, "all": 0.01}, "none"),
            ({"none": 0.31, "all": 0.01}, "all"),
            ({"none": 0.31, "all": 0.2}, "none"),
            ({"none": 0.2, "broken": 0.1, "all": 0.15}, "none"),
            ({"none": 0.23, "broken": 0.1, "all": 0.15}, "broken"),
            ({"none": 0.1, "broken": 0.01, "all": 0.01}, "none"),
            ({"none": 0.3, "all": 0.01}, "none"),
            ({"none": 0.4, "all": 0.2}, "none"),
            ({"none": None, "broken": None, "all": None}, "broken"),
            ({"none": None, "all": None}, "none"),
        ],
        ids=str,
    )
    def test_narrowest_that_no_wider_one_beats_by_far(self, errors, wanted):
        assert chosen(**errors) == wanted

    def test_candidates_none_of_which_is_finite_are_an_error(self):
        with pytest.raises(UsageError, match="not finite with any statistics"):
            chosen(none=np.inf, broken=np.inf, all=np.inf)

    def test_sound_statistics_stay(self):
        subject = classifier()
        made = recalibrated(subject, [samples(64)], {})
        assert (made.reach, made.statistics, made.warnings) == ("none", {}, ())
        assert [c.reach for c in made.candidates] == ["none", "all"]

    def test_what_only_looks_broken_stays(self):
        subject = classifier()
        assert recalibrated(subject, [samples(64)], broken("bn1")).reach == "none"

    def test_broken_layer_is_recomputed_and_no_other(self):
        subject, x = classifier(), samples(64)
        scaled(subject, "bn1", np.nan)
        made = recalibrated(subject, [x], broken("bn1"))
        assert made.reach == "broken"
        assert list(made.statistics) == ["bn1"]
        np.testing.assert_allclose(
            made.statistics["bn1"].var,
            estimate(subject, broken("bn1"), [[x]])["bn1"].var,
            rtol=1e-5,
        )

    def test_damage_beyond_the_broken_layer_takes_all_and_warns(self):
        subject = classifier()
        scaled(subject, "bn1", np.nan)
        scaled(subject, "bn2", 30.0)
        made = recalibrated(subject, [samples(64)], broken("bn1"))
        assert made.reach == "all"
        assert set(made.statistics) == {"bn1", "bn2"}
        (warning,) = made.warnings
        assert "beyond the broken layers" in warning

    def test_damage_that_no_rule_finds_takes_all_and_warns(self):
        subject = classifier()
        scaled(subject, "bn1", 30.0)
        made = recalibrated(subject, [samples(64)], {})
        assert made.reach == "all"
        assert "no rule finds" in made.warnings[0]

    def test_caller_may_decide(self):
        subject = classifier()
        made = recalibrated(subject, [samples(64)], {}, reach="all")
        assert (made.reach, made.candidates, made.held_back, made.warnings) == ("all", (), 0, ())
        assert set(made.statistics) == {"bn1", "bn2"}


class TestSamples:
    def test_fifteen_are_refused_and_sixteen_warned_about(self):
        subject = classifier()
        with pytest.raises(UsageError, match="at least 16 samples, found 15") as caught:
            recalibrated(subject, [samples(15)], broken("bn1"), reach="broken")
        assert "--force" in caught.value.hint
        made = recalibrated(subject, [samples(16)], broken("bn1"), reach="broken")
        assert "16 samples are few" in made.warnings[0]

    def test_fewer_where_that_is_forced(self):
        subject = classifier()
        made = recalibrated(subject, [samples(8)], broken("bn1"), reach="broken", force=True)
        assert made.samples == 8

    @pytest.mark.parametrize("number", [1, 2, 5, 7])
    def test_so_few_are_not_compared(self, number):
        """Of one held-back sample nothing differs, and every relative error is infinite."""
        x = np.random.default_rng(1).normal(0.3, 1, (number, 6, 4)).astype(np.float32)
        subject = images()
        scaled(subject, "bn", 30.0)
        masks = {"bn": Statistics(np.ones(6, bool), np.ones(6, bool))}
        made = recalibrated(subject, [x], masks, force=True)
        assert (made.reach, made.candidates, made.held_back) == ("broken", (), 0)
        np.testing.assert_allclose(made.statistics["bn"].mean, x.mean((0, 2)), rtol=1e-4)
        assert recalibrated(subject, [x], {}, force=True).reach == "none"

    @pytest.mark.parametrize("x", [np.zeros((64, 6)), np.ones((64, 6))], ids=["zeros", "repeated"])
    def test_all_alike_are_refused(self, x):
        subject = classifier()
        scaled(subject, "bn1", 30.0)
        with pytest.raises(UsageError, match="the same for all samples") as caught:
            recalibrated(subject, [x.astype(np.float32)], broken("bn1"))
        assert caught.value.hint == "give samples that differ"

    @pytest.mark.parametrize("reach", [None, "broken"])
    def test_those_that_are_not_finite_are_left_out(self, reach):
        subject, x = classifier(), samples(70)
        scaled(subject, "bn1", np.nan)
        wanted = recalibrated(subject, [x[:64]], broken("bn1"), reach=reach)
        x[64:, 0], x[65, 0] = np.nan, np.inf
        made = recalibrated(subject, [x], broken("bn1"), reach=reach)
        assert made.samples == 64
        assert made.warnings == (
            "Left out 6 of 70 samples for NaN or Inf: numbers 64, 65, 66, 67, 68 and 1 more.",
        )
        np.testing.assert_array_equal(made.statistics["bn1"], wanted.statistics["bn1"])

    def test_too_few_that_are_finite_are_refused(self):
        x = samples(20)
        x[:5] = np.nan
        with pytest.raises(UsageError, match="at least 16 samples, found 15"):
            recalibrated(classifier(), [x], broken("bn1"))

    @pytest.mark.parametrize(("number", "warned"), [(63, True), (64, False)])
    def test_below_sixty_four_is_warned_about(self, number, warned):
        subject = classifier()
        made = recalibrated(subject, [samples(number)], broken("bn1"), reach="broken")
        assert bool(made.warnings) is warned

    def test_a_quarter_is_held_back(self):
        made = recalibrated(classifier(), [samples(200)], {})
        assert (made.samples, made.held_back) == (200, 51)  # of 67, 67 and 66: 17 each

    def test_order_does_not_matter_as_where_files_are_sorted_by_class(self):
        subject = classifier()
        scaled(subject, "bn1", np.nan)
        x = samples(128)
        x = x[np.argsort(x[:, 0])]
        made = recalibrated(subject, [x], broken("bn1"), batch_size=32)
        assert made.candidates[1].agreement.error < 0.2

    def test_held_back_samples_take_no_part_in_the_candidates(self, monkeypatch):
        subject, seen = classifier(), []
        scaled(subject, "bn1", np.nan)

        def watched(subject, channels, batches, told=None):
            seen.append(sum(len(batch[0]) for batch in batches))
            return estimate(subject, channels, batches, told)

        monkeypatch.setattr(choice, "estimate", watched)
        recalibrated(subject, [samples(64)], broken("bn1"))
        assert seen == [48, 48, 64]

    def test_progress_ends_at_the_end(self):
        told = []
        subject = classifier()
        scaled(subject, "bn1", np.nan)
        recalibrated(subject, [samples(64)], broken("bn1"), note=lambda *at: told.append(at))
        assert told == sorted(told)
        assert {total for _, total in told} == {256}
        assert told[-1][0] > 128


class TestAgreement:
    @pytest.mark.parametrize(("error", "refused"), [(0.99, False), (1.0, True)])
    def test_what_agrees_with_nothing_is_refused(self, error, refused):
        found = [
            Candidate("none", Agreement(np.inf, None)),
            Candidate("all", Agreement(error, None)),
        ]
        if refused:
            with pytest.raises(UsageError, match="with no statistics does inference agree"):
                choice._check_agreement("all", found)
        else:
            choice._check_agreement("all", found)
        choice._check_agreement("none", [])

    def test_outlier_among_the_samples_ruins_nothing(self):
        subject, x = classifier(), samples(128)
        scaled(subject, "bn1", np.nan)
        clean = recalibrated(subject, [x], broken("bn1")).statistics["bn1"]
        x[17] *= 1000
        made = recalibrated(subject, [x], broken("bn1"))
        assert made.warnings == (
            "Left out 1 of 128 samples, over 10 times as large as usual: number 17.",
        )
        np.testing.assert_allclose(made.statistics["bn1"].var, clean.var, rtol=0.1)


def test_outputs_that_are_not_finite_in_training_mode_are_refused():
    subject = classifier()
    subject.layers["head"].tensors["bias"][0] = np.nan
    with pytest.raises(UsageError, match="not finite in training mode either") as caught:
        recalibrated(subject, [samples(64)], broken("bn1"))
    assert "ckptdoctor probe" in caught.value.hint


def test_model_is_as_before():
    subject = classifier()
    scaled(subject, "bn1", 30.0)
    before = {name: subject.statistics(name) for name in subject.norms}
    recalibrated(subject, [samples(64)], broken("bn1"))
    for name, held in before.items():
        np.testing.assert_array_equal(subject.statistics(name), held)
