"""Samples in memory: tensors, loaders, and what a model calls its inputs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from live.numpy_subject import Function, NumpySubject, classifier, samples

from ckptdoctor.errors import UsageError
from ckptdoctor.live.batches import array_of, gathered
from ckptdoctor.live.data import data_for
from ckptdoctor.live.inputs import input_names
from ckptdoctor.probing.probe import probe


class Tensor:
    """As PyTorch's: on another device until it is asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def detach(self):
        return self

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        return self.values


class Loader:
    """Batches of pairs, once."""

    def __init__(self, size: int = 8, number: int = 8) -> None:
        self.given = 0
        self.batches = iter([(Tensor(samples(size)), np.zeros(size))] * number)

    def __iter__(self):
        for batch in self.batches:
            self.given += 1
            yield batch


def two(called) -> NumpySubject:
    subject = NumpySubject(Function("f", "F", lambda x: x))
    subject.framework = "torch"
    subject.module = SimpleNamespace(forward=called)
    return subject


def forward(image, extra):
    return image, extra


def with_options(image, extra, mask=None, *rest, **more):
    return image, extra, mask, rest, more


def test_a_tensor_is_taken():
    assert probe(classifier(), Tensor(samples(64)), precisions=()).samples.used == 64


def test_tensors_in_a_list_are_the_inputs():
    assert len(data_for(classifier(), [Tensor(samples(8))])) == 8
    assert len(data_for(classifier(), {"x": Tensor(samples(8))})) == 8


def test_of_a_loader_no_more_is_asked_for_than_is_run():
    loader = Loader()
    assert probe(classifier(), loader, samples=20, precisions=()).samples.used == 20
    assert loader.given == 3
    assert probe(classifier(), Loader(), samples=16, precisions=()).samples.total == 16
    assert probe(classifier(), Loader(), samples=0, precisions=()).samples.total == 64


def test_of_a_batch_as_many_entries_are_taken_as_the_model_has_inputs():
    subject = two(forward)
    found = data_for(subject, iter([(samples(4), np.ones((4, 2)), np.zeros(4))]))
    assert [array.shape for array in found.arrays] == [(4, 6), (4, 2)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "found int"),
        (iter([]), "expected samples, found none"),
        ([object()], "expected numbers, found object"),
        (iter([samples(4), samples(4, wide=5)]), r"different shapes: \(6,\), \(5,\)"),
        (iter([np.float32(1)]), "different shapes|expected samples"),
    ],
)
def test_what_are_no_samples_are_told_in_a_line(data, message):
    with pytest.raises(UsageError, match=message) as caught:
        probe(classifier(), data)
    assert len(str(caught.value)) < 300


def test_an_object_that_will_be_no_array_is_told_by_its_type():
    class Odd:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("on the meta device\nmore")

    with pytest.raises(UsageError, match=r"found Odd: on the meta device$"):
        array_of(Odd())


def test_a_limit_of_zero_asks_for_all():
    (found,) = gathered(Loader(number=3), 1)
    assert len(found) == 24


def test_inputs_are_called_as_the_parameters_that_forward_cannot_do_without():
    assert input_names(two(with_options)) == ("image", "extra")
    assert input_names(two(None)) == ()
    assert input_names(two(print)) == ()
    assert input_names(classifier()) == ()


def test_arrays_of_a_file_are_matched_by_the_parameters_of_forward(tmp_path):
    np.savez(tmp_path / "two.npz", extra=np.ones((4, 2)), image=samples(4), y=np.zeros(4))
    found = data_for(two(forward), str(tmp_path / "two.npz"))
    assert [array.shape for array in found.arrays] == [(4, 6), (4, 2)]
