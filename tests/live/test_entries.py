"""Which arrays are inputs, and whether they are given by name."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from live.numpy_subject import NumpySubject, classifier, samples

from ckptdoctor.errors import UsageError
from ckptdoctor.live.data import data_for
from ckptdoctor.live.entries import by_name, entries_of
from ckptdoctor.live.inputs import Parameters
from ckptdoctor.live.subject import Statistics
from ckptdoctor.living import recalibrate
from ckptdoctor.probing.probe import probe

LANGUAGE = Parameters((), ("input_ids", "past", "attention_mask", "labels"))
BY_KEYWORD = Parameters(("image", "meta"), (), ("image", "meta", "scale"))
PAIR = Parameters(("image", "meta"), ("image", "meta", "mask"))


class Module(NumpySubject):
    """A PyTorch module as far as its inputs go: `classifier` behind a forward of any signature."""

    framework = "torch"

    def __init__(self, forward) -> None:
        fitted = classifier()
        super().__init__(root=fitted.root)
        self.module = SimpleNamespace(forward=forward)
        self.by_name: tuple[str, ...] = ()
        self.given: dict | tuple = ()

    def run(self, batch, observer=None, *, only=None, rounding=""):
        self.given = dict(zip(self.by_name, batch, strict=False)) or tuple(batch)
        x = self.given["image"] if self.by_name else batch[0]
        return super().run([x], observer, only=only, rounding=rounding)


def pair(image, meta, mask=None): ...


def by_keyword(*, image, meta): ...


def masked(image, meta=None, mask=None): ...


def one(image): ...


X, META = samples(64), np.ones((64, 2), np.float32)


@pytest.mark.parametrize(
    ("keys", "parameters", "chosen", "named"),
    [
        (("labels", "attention_mask", "input_ids"), LANGUAGE, ["input_ids", "attention_mask"], 1),
        (("input_ids", "labels"), LANGUAGE, ["input_ids"], 0),
        (("meta", "image", "y"), PAIR, ["image", "meta"], 0),
        (("mask", "meta", "image"), PAIR, ["image", "meta", "mask"], 0),
        (("meta", "image"), BY_KEYWORD, ["image", "meta"], 1),
        (("x", "y"), PAIR, ["x"], 0),
        (("target", "x"), Parameters(("x", "target"), ("x", "target")), ["x", "target"], 0),
    ],
)
def test_inputs_are_what_the_parameters_of_the_model_are_called(keys, parameters, chosen, named):
    found = entries_of(keys, (), parameters, "")
    assert list(found) == chosen
    assert by_name(found, parameters) == (tuple(chosen) if named else ())


def test_what_no_name_explains_is_asked_for():
    with pytest.raises(UsageError, match="'a', 'b'") as caught:
        entries_of(["a", "b"], (), PAIR, "")
    assert "parameters of the model's forward" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        entries_of(["a", "b"], (), PAIR, "two.npz")
    assert "two.npz:NAME,NAME" in caught.value.hint


@pytest.mark.parametrize("form", ["tuple", "mapping", "loader", "loader of mappings", "list"])
@pytest.mark.parametrize("forward", [pair, by_keyword])
def test_two_inputs_come_in_many_forms(form, forward):
    halves = [slice(0, 32), slice(32, 64)]
    given = {
        "tuple": (X, META),
        "mapping": {"meta": META, "image": X, "labels": np.zeros(64)},
        "loader": iter([(X[half], META[half], np.zeros(32)) for half in halves]),
        "loader of mappings": iter([{"meta": META[half], "image": X[half]} for half in halves]),
        "list": [(X[half], META[half]) for half in halves],
    }[form]
    subject = Module(forward)
    data = data_for(subject, given)
    assert [array.shape for array in data.arrays] == [(64, 6), (64, 2)]
    assert subject.by_name == (("image", "meta") if forward is by_keyword else ())


def test_arrays_named_behind_a_file_are_given_by_name_where_positions_would_mix_them_up(tmp_path):
    np.savez(tmp_path / "two.npz", mask=META, image=X)
    subject = Module(masked)
    data_for(subject, f"{tmp_path / 'two.npz'}:image,mask")
    assert subject.by_name == ("image", "mask")
    data_for(subject, X)
    assert subject.by_name == ()


def test_more_arrays_in_a_list_than_the_model_takes_are_batches():
    assert len(data_for(Module(one), [X[:32], X[32:]])) == 64
    assert len(data_for(Module(one), [X])) == 64


def test_a_data_set_needs_a_loader():
    class Pairs:
        def __getitem__(self, index):
            return X[index], 0

    for verb in (probe, recalibrate):
        with pytest.raises(UsageError, match="found Pairs") as caught:
            verb(classifier(), Pairs())
        assert "loader" in caught.value.hint


@pytest.mark.parametrize("data", [None, 3])
def test_what_is_no_data_is_refused_for_recalibration_too(data):
    with pytest.raises(UsageError, match="expected data to be"):
        recalibrate(classifier(), data)


@pytest.mark.parametrize("forward", [pair, by_keyword])
def test_a_module_of_two_inputs_is_recalibrated(forward):
    subject = Module(forward)
    sound = subject.statistics("bn1")
    subject.set_statistics("bn1", Statistics(sound.mean * np.nan, sound.var * np.nan))
    loader = [(X[at : at + 16], META[at : at + 16], np.zeros(16)) for at in range(0, 64, 16)]
    assert recalibrate(subject, iter(loader)).reach == "broken"
    np.testing.assert_allclose(subject.statistics("bn1").var, sound.var, rtol=0.6)
