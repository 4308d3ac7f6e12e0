"""Verbs on live models: the rules without a file, and statistics recomputed in place."""

from __future__ import annotations

import numpy as np
import pytest
from live.numpy_subject import classifier, samples

import ckptdoctor
from ckptdoctor.errors import UsageError
from ckptdoctor.live.batches import gathered
from ckptdoctor.living import recalibrate


def broken(*names: str):
    subject = classifier()
    for name in names:
        own = subject.statistics(name)
        subject.set_statistics(name, type(own)(own.mean * np.nan, own.var * np.nan))
    return subject


class TestRecalibrate:
    def test_broken_layer_is_recomputed_in_place(self):
        subject, sound = broken("bn1"), classifier().statistics("bn1")
        before = subject.statistics("bn2")
        made = recalibrate(subject, samples(256))
        assert made.reach == "broken"
        np.testing.assert_allclose(subject.statistics("bn1").var, sound.var, rtol=0.4)
        np.testing.assert_array_equal(subject.statistics("bn2"), before)

    def test_healthy_model_is_left_alone(self):
        subject = classifier()
        before = subject.statistics("bn1")
        assert recalibrate(subject, samples(64)).reach == "none"
        np.testing.assert_array_equal(subject.statistics("bn1"), before)

    def test_reach_is_the_callers_to_choose(self):
        subject = broken("bn1")
        assert set(recalibrate(subject, samples(64), reach="all").statistics) == {"bn1", "bn2"}

    def test_few_samples_are_refused_unless_forced(self):
        with pytest.raises(UsageError, match="at least 16 samples, found 4"):
            recalibrate(broken("bn1"), samples(4))
        assert recalibrate(broken("bn1"), samples(4), force=True).samples == 4

    @pytest.mark.parametrize("form", ["file", "mapping", "batches"])
    def test_samples_come_in_many_forms(self, form, tmp_path):
        np.save(tmp_path / "x.npy", samples(64))
        given = {
            "file": tmp_path / "x.npy",
            "mapping": {"x": samples(64), "y": np.zeros(64)},
            "batches": iter([samples(64)[:32], samples(64)[32:]]),
        }[form]
        made = recalibrate(broken("bn1"), given)
        assert (made.reach, made.samples) == ("broken", 64)

    def test_an_endless_loader_is_read_as_far_as_is_needed(self):
        given = 0

        def endless():
            nonlocal given
            while True:
                given += 1
                yield samples(64)

        assert recalibrate(broken("bn1"), endless()).samples == 1024
        assert given == 16
        assert recalibrate(broken("bn1"), endless(), samples=100).samples == 100
        assert given == 18

    def test_arrays_are_taken_from_all_over(self):
        """Files are often sorted: here the second half is of another scale."""
        x = np.concatenate([samples(512), 3 * samples(512)])
        whole, part = (
            recalibrate(broken("bn1"), x, reach="broken", samples=count) for count in (1024, 256)
        )
        assert (whole.samples, part.samples) == (1024, 256)
        np.testing.assert_allclose(
            part.statistics["bn1"].var, whole.statistics["bn1"].var, rtol=0.4
        )

    @pytest.mark.parametrize(
        ("more", "reason"),
        [
            ({"reach": "brocken"}, "expected reach to be 'broken' or 'all', found 'brocken'"),
            ({"reach": 3}, "expected reach to be 'broken' or 'all', found 3"),
            ({"batch_size": 0}, "expected batch_size to be a whole number, 1 or more, found 0"),
            ({"batch_size": 1.5}, "expected batch_size to be a whole number, 1 or more, found 1.5"),
            ({"batch_size": None}, "batch_size to be a whole number, 1 or more, found NoneType"),
            ({"samples": 0}, "expected samples to be a whole number, 1 or more, found 0"),
            ({"samples": True}, "expected samples to be a whole number, 1 or more, found True"),
            ({"samples": "64"}, "expected samples to be a whole number, 1 or more, found '64'"),
        ],
    )
    def test_choices_that_make_no_sense_are_said(self, more, reason):
        subject = broken("bn1")
        with pytest.raises(UsageError, match=f"{reason}$"):
            recalibrate(subject, samples(64), **more)
        assert subject.runs == 1  # made by fit

    def test_whole_numbers_of_any_type_will_do(self):
        made = recalibrate(
            broken("bn1"), samples(64), samples=np.int64(32), batch_size=np.uint8(16)
        )
        assert made.samples == 32

    def test_random_numbers_are_refused(self):
        with pytest.raises(UsageError, match="statistics of random numbers"):
            recalibrate(broken("bn1"), "random:64x6")

    def test_something_else_is_no_model(self):
        with pytest.raises(UsageError, match=r"expected the given model to be a torch.nn.Module"):
            recalibrate(3, samples(64))


class TestBatches:
    @pytest.mark.parametrize(
        "batches",
        [
            samples(8),
            [samples(8)[:5], samples(8)[5:]],
            [(samples(8), np.zeros(8))],
            [[samples(8), np.zeros(8), "more"]],
            [{"x": samples(8), "y": np.zeros(8)}],
            iter([samples(8)]),
            samples(8).astype(np.float64),
        ],
        ids=["array", "batches", "pairs", "lists", "mappings", "generator", "float64"],
    )
    def test_whatever_a_loader_gives_the_first_entry_is_the_input(self, batches):
        (found,) = gathered(batches, 1)
        np.testing.assert_allclose(found, samples(8))
        assert found.dtype == np.float32

    def test_as_many_entries_as_the_model_has_inputs(self):
        one, two = gathered([(samples(8), np.arange(8), np.zeros(8))] * 2, 2)
        assert (one.shape, two.tolist()) == ((16, 6), [*range(8), *range(8)])

    @pytest.mark.parametrize(
        ("batches", "count", "message"),
        [([], 1, "found none"), ([(samples(8),)], 2, "batches of 2 inputs, found one of 1")],
    )
    def test_too_little_is_told(self, batches, count, message):
        with pytest.raises(UsageError, match=message):
            gathered(batches, count)


def test_diagnosis_of_a_live_model_names_no_command_for_files():
    from ckptdoctor import living
    from ckptdoctor.results import Wishes

    report = living._diagnosed(broken("bn1").table(), Wishes())
    (diagnosis,) = report.diagnoses
    assert report.verdict.serve == "unfit"
    assert diagnosis.next == "ckptdoctor.recalibrate(model, batches)"


@pytest.mark.parametrize("verb", ["diagnose_model", "diagnose_module", "recalibrate"])
def test_verbs_are_the_packages(verb):
    assert getattr(ckptdoctor, verb).__module__ == "ckptdoctor.living"


@pytest.mark.oracle
class TestTorch:
    def net(self):
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        norm = torch.nn.BatchNorm1d
        net = torch.nn.Sequential(
            torch.nn.Linear(6, 16), norm(16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
        )
        with torch.no_grad():
            for _ in range(50):
                net(torch.from_numpy(samples(64)))
        net[1].running_var[3] = float("nan")
        return net

    def test_sick_module_is_diagnosed(self):
        report = ckptdoctor.diagnose_module(self.net())
        assert [(f.code, f.layer) for f in report.findings] == [("BN001", "1")]

    def test_recalibrated_module_is_fit_and_still_trains(self):
        torch = pytest.importorskip("torch")
        net = self.net()
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(samples(64)), torch.zeros(64)), 16
        )
        assert ckptdoctor.recalibrate(net, loader).reach == "broken"
        assert net.training
        assert ckptdoctor.diagnose_module(net).verdict.serve == "fit"
        assert torch.isfinite(net.eval()(torch.from_numpy(samples(8)))).all()


class TestSomethingElse:
    def test_is_no_keras_model_in_one_line(self):
        for thing, name in ((3, "int"), (object(), "object"), (None, "NoneType")):
            with pytest.raises(UsageError, match=f"^expected a keras.Model, found {name}$"):
                ckptdoctor.diagnose_model(thing)

    @pytest.mark.oracle
    def test_module_of_torch_is_sent_to_the_other_function(self):
        torch = pytest.importorskip("torch")
        with pytest.raises(UsageError, match=r"found Linear; a torch\.nn\.Module is for"):
            ckptdoctor.diagnose_model(torch.nn.Linear(2, 2))
