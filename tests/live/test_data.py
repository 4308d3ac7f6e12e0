"""Samples: which arrays are taken, as what, and what is said where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live.numpy_subject import NumpySubject

from ckptdoctor.errors import ReadError, UsageError
from ckptdoctor.live import random_data
from ckptdoctor.live.arguments import whole
from ckptdoctor.live.data import Data, data_for, read_data
from ckptdoctor.live.inputs import Parameters

IMAGE = [((None, 3, 4, 4), "float32")]
X = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "x.npy", X)
    return str(tmp_path / "x.npy")


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return str(tmp_path / "x.npz")


def test_an_array_of_a_file_is_mapped_not_read(npy):
    data = read_data(npy, IMAGE)
    assert isinstance(data.arrays[0], np.memmap)
    assert (len(data), data.kind, data.source) == (2, "file", npy)
    assert np.array_equal(data.take([0, 1])[0], X)


def test_the_only_array_of_an_archive_is_taken(tmp_path):
    assert read_data(npz(tmp_path, anything=X)).arrays[0].shape == X.shape


@pytest.mark.parametrize("name", ["x_calib", "x", "x_test", "X", "inputs", "images", "data"])
def test_usual_names_are_known(tmp_path, name):
    data = read_data(npz(tmp_path, a=np.zeros((9, 2)), **{name: X}))
    assert data.arrays[0].shape == X.shape


def test_calibration_inputs_come_before_others(tmp_path):
    data = read_data(npz(tmp_path, x=X, x_test=X, x_calib=X[:1]))
    assert len(data) == 1


@pytest.mark.parametrize("label", ["y", "y_test", "labels", "target", "train_labels", "Y"])
def test_labels_are_left_out(tmp_path, label):
    data = read_data(npz(tmp_path, **{label: np.zeros(2)}, pixels=X))
    assert data.arrays[0].shape == X.shape


def test_tokens_come_with_their_mask(tmp_path):
    ids, mask = np.ones((2, 5), np.int64), np.zeros((2, 5), np.int64)
    file = npz(tmp_path, attention_mask=mask, labels=np.zeros(2), input_ids=ids)
    assert [a.sum() for a in read_data(file).arrays] == [10, 0]
    assert len(read_data(file, [((None, 5), "int64")]).arrays) == 1


def test_arrays_are_taken_by_the_names_of_the_inputs(tmp_path):
    file = npz(tmp_path, b=np.zeros((2, 3)), a=np.ones((2, 3)), c=np.ones((2, 3)))
    inputs = [((None, 3), "float32")] * 2
    found = read_data(file, inputs, parameters=Parameters(("a", "b")))
    assert [a.sum() for a in found.arrays] == [6, 0]


def test_several_inputs_are_taken_in_order(tmp_path):
    file = npz(tmp_path, one=np.zeros((2, 3)), two=np.ones((2, 3)), y=np.ones(2))
    assert [a.sum() for a in read_data(file, [((None, 3), "float32")] * 2).arrays] == [0, 6]


def test_arrays_can_be_named(tmp_path):
    file = npz(tmp_path, p=np.zeros((2, 3)), q=np.ones((2, 3)), x=X)
    assert [a.sum() for a in read_data(f"{file}:q,p").arrays] == [6, 0]


def test_arrays_that_are_not_there_are_said(tmp_path):
    file = npz(tmp_path, p=np.zeros((2, 3)))
    with pytest.raises(UsageError, match="holds no array 'z', but 'p'"):
        read_data(f"{file}:z")


def test_an_archive_that_leaves_a_choice_is_told_so(tmp_path):
    file = npz(tmp_path, p=np.zeros((2, 3)), q=np.ones((2, 3)))
    with pytest.raises(
        UsageError, match=r"holds the arrays 'p', 'q'; say which are the input .*NAME"
    ):
        read_data(file)
    with pytest.raises(UsageError, match="which are the 3 inputs"):
        read_data(file, [((None, 3), "float32")] * 3)


def test_an_empty_archive_is_told_so(tmp_path):
    with pytest.raises(UsageError, match="holds no arrays"):
        read_data(npz(tmp_path))


def test_a_single_array_has_no_names(npy):
    with pytest.raises(UsageError, match="none is called 'x'"):
        read_data(f"{npy}:x")


@pytest.mark.parametrize("text", ["gone.npy", "", ":", "gone.npz:x", "a\0b", "x" * 9999])
def test_a_file_that_is_not_there_is_said(text):
    with pytest.raises(UsageError, match="no such file"):
        read_data(text)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,2,3")
    with pytest.raises(UsageError, match=r"is no \.npy or \.npz file"):
        read_data(str(path))


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{1: 2}], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([{1: 2}], object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UsageError, match="Python objects, which are not unpickled"):
            read_data(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    "damage",
    [b"\x93NUMPY", b"\x93NUMPY\x01\x00\x08\x00garbage!", b"PK\x03\x04" + bytes(50)],
    ids=["signature only", "header that is none", "archive without a directory"],
)
def test_damaged_files_are_errors_of_ours(tmp_path, damage):
    path = tmp_path / "x.npy"
    path.write_bytes(damage)
    with pytest.raises(ReadError, match="cannot be read"):
        read_data(str(path))


def test_a_damaged_member_is_an_error_of_ours(tmp_path):
    file = npz(tmp_path, x=X)
    raw = bytearray(Path(file).read_bytes())
    raw[250] ^= 0xFF
    Path(file).write_bytes(raw)
    with pytest.raises(ReadError):
        read_data(file)


@pytest.mark.parametrize("given", [X, [X], {"x": X}], ids=["array", "list", "dict"])
def test_arrays_are_taken_as_they_are(given):
    data = read_data(given, IMAGE)
    assert (len(data), data.kind) == (2, "memory")
    assert read_data(data, IMAGE).arrays[0] is data.arrays[0]


# What comes out.


@pytest.mark.parametrize(
    ("dtype", "shape", "given"),
    [
        ("float64", (2, 3), "float32"),
        ("float16", (2, 3), "float32"),
        ("int64", (2, 3), "int64"),
        ("int32", (2, 3), "int32"),
        ("uint8", (2, 3), "uint8"),
        ("uint8", (2, 3, 3), "float32"),
        ("bool", (2, 3), "bool"),
    ],
)
def test_real_numbers_become_float32_and_integers_stay(dtype, shape, given):
    assert read_data(np.ones(shape, dtype)).take([0])[0].dtype == given


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("float64", "float64"), ("float16", "float32"), ("bfloat16", "float32"), ("int32", "int32")],
)
def test_what_the_model_takes_decides(wanted, given):
    data = read_data(np.ones((2, 3), np.int64), [((None, 3), wanted)])
    assert data.take([1])[0].dtype == given


def test_integer_images_are_told_of():
    (note,) = read_data(np.zeros((2, 4, 4, 3), np.uint8)).notes
    assert "0 to 255" in note
    assert read_data(np.zeros((2, 4), np.uint8)).notes == ()


def test_samples_are_taken_in_the_order_asked_for():
    data = read_data(np.arange(10.0)[:, None])
    assert data.take([3, 1, 8])[0].ravel().tolist() == [3, 1, 8]
    assert data.take([4, 5, 6])[0].ravel().tolist() == [4, 5, 6]
    assert data.take([])[0].shape == (0, 1)


def test_batches_are_of_about_one_size():
    data = read_data(np.zeros((10, 2)))
    assert [len(batch) for batch in data.batches(4)] == [4, 3, 3]
    assert np.concatenate(list(data.batches(4))).tolist() == list(range(10))
    assert [b.tolist() for b in data.batches(2, [7, 1, 5])] == [[7, 1], [5]]
    assert list(data.batches(4, [])) == []


def test_a_model_of_one_batch_size_gets_it():
    data = read_data(np.arange(10.0)[:, None], [((4, 1), "float32")])
    assert data.batch == 4
    assert [len(batch) for batch in data.batches(99)] == [4, 4, 2]
    assert data.filled([8, 9])[0].ravel().tolist() == [8, 9, 8, 9]
    assert read_data(np.arange(3.0)[:, None]).filled([2])[0].ravel().tolist() == [2]


# Random numbers.


def test_random_samples_have_the_shapes_of_the_inputs():
    data = read_data("random", [*IMAGE, ((None, 5), "int64")])
    assert [a.shape for a in data.arrays] == [(64, 3, 4, 4), (64, 5)]
    assert data.arrays[1].dtype == np.int64
    assert set(data.arrays[1].ravel().tolist()) == {0, 1}
    assert data.kind == "random"
    assert abs(data.arrays[0].std() - 1) < 0.1


def test_random_samples_are_the_same_every_time():
    assert np.array_equal(read_data("random:3").arrays[0], read_data("random:3").arrays[0])


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("random:3,8,8", [(64, 3, 8, 8)]),
        ("random:16x3,8,8", [(16, 3, 8, 8)]),
        ("random:10", [(64, 10)]),
        ("RANDOM:5x10", [(5, 10)]),
        ("random:4x3;2,2", [(4, 3), (4, 2, 2)]),
    ],
)
def test_shape_and_number_can_be_given(text, shapes):
    assert [a.shape for a in read_data(text).arrays] == shapes


def test_their_number_alone_can_be_given():
    assert len(read_data("random:8x", IMAGE)) == 8


@pytest.mark.parametrize(("fixed", "number"), [(2, 64), (5, 65), (100, 100)])
def test_they_fill_batches_of_a_model_that_takes_one_size(fixed, number):
    assert len(read_data("random", [((fixed, 3), "float32")])) == number


@pytest.mark.parametrize(
    ("text", "inputs", "reason"),
    [
        ("random", (), "does not say what it takes"),
        ("random", [((None, None, 3), "float32")], r"extents of its input \(any, any, 3\) open"),
        ("random:3,,3", (), "commas"),
        ("random:3x4x5", (), "commas"),
        ("random:x3", (), "number of samples comes before"),
        ("random:9999999999", (), "commas"),
        ("random:0x3", (), "makes 0 numbers"),
        ("random:999999x99999", (), "numbers; expected"),
        ("random:3", [((None, 3), "float32")] * 2, "shapes for 1 inputs, the model takes 2"),
    ],
)
def test_random_samples_that_cannot_be_made_are_said(text, inputs, reason):
    with pytest.raises(UsageError, match=reason):
        read_data(text, inputs)


def test_the_limit_of_random_numbers_counts_all_inputs(monkeypatch):
    monkeypatch.setattr(random_data, "_LARGEST_RANDOM", 64 * 5)
    assert len(read_data("random:5")) == 64
    with pytest.raises(UsageError):
        read_data("random:5;1")


# Against the model.


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((2, 4, 4, 3), r"expected samples of shape \(3, 4, 4\), found \(4, 4, 3\).*-1, 1"),
        ((3, 4, 4), r"one sample needs a dimension.*x\[None\]"),
        ((2, 3, 4, 5), r"found \(3, 4, 5\)$"),
        ((2, 3, 4), r"found \(3, 4\)$"),
    ],
)
def test_shapes_that_do_not_fit_are_said(shape, reason):
    with pytest.raises(UsageError, match=reason):
        read_data(np.zeros(shape), IMAGE)


def test_channels_that_should_be_last_are_told():
    with pytest.raises(UsageError, match=r"np\.moveaxis\(x, 1, -1\)"):
        read_data(np.zeros((2, 3, 4, 4)), [((None, 4, 4, 3), "float32")])


def test_open_extents_take_anything():
    inputs = [((None, None, 3), "float32")]
    assert len(read_data(np.zeros((2, 7, 3)), inputs)) == 2
    assert len(read_data(np.zeros((2, 7)), [((), "float32")])) == 2


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.zeros((0, 3)), r"array of shape \(0, 3\)"),
        (np.array(3.0), r"array of shape \(\)"),
        (np.array(["a"]), "expected numbers"),
        (np.zeros((2, 2), complex), "expected numbers, found complex128"),
        ([], "found none"),
        ([np.zeros((2, 1)), np.zeros((3, 1))], r"different numbers of samples: \[2, 3\]"),
    ],
)
def test_what_are_no_samples_is_said(given, reason):
    with pytest.raises(UsageError, match=reason):
        read_data(given)


@pytest.mark.parametrize(
    ("framework", "program", "fits"),
    [("torch", False, True), ("torch", True, False), ("keras", False, False)],
)
def test_what_a_module_states_is_an_example_and_no_law(framework, program, fits):
    subject = NumpySubject(shapes=IMAGE)
    subject.framework = framework
    if program:
        subject.program = object()
    assert data_for(subject, "random").arrays[0].shape == (64, 3, 4, 4)
    if fits:
        assert len(data_for(subject, np.zeros((2, 7)))) == 2
    else:
        with pytest.raises(UsageError):
            data_for(subject, np.zeros((2, 7)))


def test_the_number_of_inputs_is_compared():
    with pytest.raises(UsageError, match="takes 2 inputs, found 1"):
        read_data(X, IMAGE * 2)


def test_data_is_plain():
    data = Data(arrays=(X,), source="x", kind="memory")
    assert (data.batch, data.notes, data.dtypes) == (0, (), ())


@pytest.mark.parametrize("dtype", ["int64", "int16", "uint8", "bool"])
def test_integer_images_are_real_numbers_to_a_module_that_begins_with_a_convolution(dtype):
    subject = NumpySubject(shapes=IMAGE)
    subject.framework = "torch"
    data = data_for(subject, np.ones((2, 3, 4, 4), dtype))
    assert data.take([0])[0].dtype == np.float32
    assert data.notes[0].startswith(f"{dtype} images are given as they are")


def test_indices_stay_integers():
    subject = NumpySubject(shapes=IMAGE)
    subject.framework = "torch"
    assert data_for(subject, np.ones((2, 5), np.int64)).take([0])[0].dtype == np.int64
    subject = NumpySubject(shapes=[((None, None), "int64")])
    subject.framework = "torch"
    assert data_for(subject, np.ones((2, 5, 3), np.int64)).take([0])[0].dtype == np.int64


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-(10**5000), "found one of 16610 bits"),
        (-3, "found -3"),
        ("x" * 500, "found '" + "x" * 99),
        (True, "found True"),
        ([], "found list"),
    ],
    ids=["5,000 digits", "negative", "text", "boolean", "list"],
)
def test_what_is_no_number_of_samples_is_told_in_one_line(value, said):
    with pytest.raises(UsageError) as caught:
        whole(value, "samples", 1)
    assert caught.value.message == f"expected samples to be a whole number, 1 or more, {said}"
