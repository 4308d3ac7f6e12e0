"""Values for another tensor: the right ones, in its type, and only if they may stand there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.errors import FormatError
from ckptdoctor.remedies import likeness, transfer
from ckptdoctor.remedies.likeness import compare
from ckptdoctor.remedies.transfer import (
    cast,
    compatible,
    inflated,
    pick,
    sound,
    whole,
    whole_fault,
)
from ckptdoctor.sources import Extent, WindowSource
from ckptdoctor.tensors import TensorInfo, TensorTable


class Spied:
    """Bytes that remember what was read of them."""

    sequential = False
    name = "m.bin"

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.reads = data, len(data), []

    def pread(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


def stored(values: np.ndarray, **changes) -> tuple[TensorTable, Spied]:
    source = Spied(values.tobytes())
    info = TensorInfo(
        name="w", path=("w",), dtype=values.dtype.newbyteorder("=").name, shape=values.shape,
        extent=Extent(source, 0, values.nbytes),
    )._replace(**changes)  # fmt: skip
    return TensorTable(path="m.bin", format="memory", infos={"w": info}), source


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 299_999), max_size=20), st.booleans())
def test_picked_elements_are_those_at_the_indices(indices, held):
    values = np.arange(300_000, dtype=np.float32)
    table = TensorTable.from_arrays({"w": values}) if held else stored(values)[0]
    at = np.array(sorted(indices), np.int64)
    assert pick(table, table["w"], at).tolist() == at.tolist()


def test_an_element_at_the_start_of_a_block_is_picked_too():
    table = TensorTable.from_arrays({"w": np.arange(200_000, dtype=np.float32)})
    assert pick(table, table["w"], np.array([3, 65_536])).tolist() == [3, 65_536]


def test_blocks_without_picked_elements_are_not_read():
    table, source = stored(np.arange(300_000, dtype=np.float32))
    assert pick(table, table["w"], np.array([5, 7, 299_999])).tolist() == [5, 7, 299_999]
    assert len(source.reads) == 2
    assert sum(length for _, length in source.reads) < 2 * 2**18


def test_big_endian_elements_and_views_are_picked_as_they_read():
    table, _ = stored(np.arange(6, dtype=">f4"), big_endian=True)
    assert pick(table, table["w"], np.array([1, 4])).tolist() == [1, 4]
    table, _ = stored(np.arange(6, dtype=np.float32), shape=(2, 3), strides=(1, 2))
    assert pick(table, table["w"], np.array([1, 3, 5])).tolist() == [2, 1, 5]


def test_a_tensor_that_ends_early_is_an_error_and_never_gives_what_memory_held():
    table = TensorTable.from_arrays({"w": np.ones(4)})
    longer = table["w"]._replace(shape=(6,))
    with pytest.raises(FormatError, match="4 of 6"):
        whole(table, longer, longer)()
    with pytest.raises(FormatError, match="1 of 2"):
        pick(table, longer, np.array([1, 5]))


def test_a_whole_tensor_is_cast_when_it_is_read():
    table = TensorTable.from_arrays({"w": np.arange(200_000, dtype=np.float32) % 7})
    info = table["w"]
    made = whole(table, info, info._replace(dtype="float16"))()
    assert made.dtype == np.float16
    assert made.tolist() == table.read("w").tolist()


@pytest.mark.parametrize(
    ("there", "here", "reason"),
    [
        ({}, {}, ""),
        ({"dtype": "float64"}, {"dtype": "bfloat16"}, ""),
        ({"dtype": "int64"}, {"dtype": "int64"}, ""),
        ({"dtype": "int32"}, {"dtype": "int64"}, "int32 there, int64 here"),
        ({"dtype": "float32"}, {"dtype": "int64"}, "float32 there, int64 here"),
        ({"dtype": "complex64"}, {"dtype": "float32"}, "complex64 there"),
        ({"dtype": "complex64"}, {"dtype": "complex128"}, "complex64 there"),
        ({"encoding": "absent"}, {}, "no stored values"),
        ({"encoding": "quantised"}, {}, "quantised"),
        ({}, {"encoding": "quantised"}, "quantised"),
        ({"encoding": "opaque"}, {"encoding": "opaque"}, "opaque"),
    ],
)
def test_values_that_mean_something_else_are_not_compatible(there, here, reason):
    info = TensorInfo("w", ("w",), "float32", (2,))
    told = compatible(info._replace(**here), info._replace(**there))
    assert reason in told
    assert bool(told) == bool(reason)


def test_a_view_that_repeats_a_few_bytes_is_not_read_whole():
    extent = Extent(WindowSource.over(b"\0" * 4, "m"), 0, 4)
    info = TensorInfo("w", ("w",), "float32", (1 << 40,), extent=extent, strides=(0,))
    assert inflated(info)
    assert compatible(info, info)
    assert not inflated(info._replace(shape=(1 << 20,)))
    assert not inflated(info._replace(strides=None))
    table = TensorTable(path="", format="m", infos={"w": info})
    assert compare(table, table, {"w": "w"}) is None


@pytest.mark.parametrize(
    ("values", "dtype", "part", "fault"),
    [
        ([1.0, -2.0], "float32", "", ""),
        ([1.0, 0.0], "float32", "mean", ""),
        ([1.0, 0.0], "float32", "var", "1 of 2 elements are not finite or not above zero"),
        ([1.0, np.nan], "float32", "", "1 of 2 elements are not finite there"),
        ([np.inf, np.nan], "float16", "", "2 of 2 elements are not finite there"),
        ([1.0, 7e4], "float16", "", "1 of 2 elements do not fit into float16"),
        ([1.0, 6e4], "float16", "", ""),
        ([1.0, 1e-30], "float16", "var", "1 of 2 elements do not fit into float16"),
        ([1.0, 1e-30], "float16", "mean", ""),
        ([1.0, 1e6], "float8_e4m3fn", "", "1 of 2 elements do not fit"),
    ],
)
def test_a_whole_tensor_is_faulty_where_it_is_not_finite_or_overflows(values, dtype, part, fault):
    table = TensorTable.from_arrays({"w": values})
    told = whole_fault(table, table["w"], table["w"]._replace(dtype=dtype), part)
    assert told.startswith(fault)
    assert bool(told) == bool(fault)


def test_integers_have_no_fault():
    table = TensorTable.from_arrays({"w": np.array([0, -1])})
    assert whole_fault(table, table["w"], table["w"], "var") == ""


def test_complex_halves_are_judged_by_their_parts():
    values = np.array([(1.0, np.inf), (1.0, 2.0)], dtype="f2,f2")
    table, _ = stored(np.zeros(2, np.uint32), dtype="complex32")
    assert whole_fault(table, table["w"], table["w"]) == ""
    source = Spied(values.tobytes())
    info = table["w"]._replace(extent=Extent(source, 0, 8))
    assert "not finite" in whole_fault(table, info, info)


def test_a_variance_must_be_above_zero_and_nothing_else_must():
    values = np.array([0.0, -1.0, 1.0, np.nan, np.inf, -np.inf])
    assert sound(values, "var").tolist() == [False, False, True, False, False, False]
    for part in ("", "mean", "gamma", "kernel"):
        assert sound(values, part).tolist() == [True, True, True, False, False, False]


def test_a_cast_that_overflows_warns_nobody():
    info = TensorInfo("w", ("w",), "float16", (1,))
    assert np.isinf(cast(np.array([1e9]), info)).all()


# --- likeness -------------------------------------------------------------------------------------


def distance(a, b, **more):
    one, other = TensorTable.from_arrays({"a": a}), TensorTable.from_arrays({"b": b})
    return compare(one, other, {"a": "b"}, **more)


def test_the_distance_is_relative_to_the_patients_norm():
    assert distance([3.0, 4.0], [3.0, 4.0]).worst == 0
    assert distance([3.0, 4.0], [6.0, 8.0]).median == pytest.approx(1.0)
    assert distance([30.0, 40.0], [33.0, 44.0]).median == pytest.approx(0.1)
    assert distance([3.0, 4.0], [3.0, 9.0]).worst == pytest.approx(1.0)


def test_random_directions_lie_root_two_apart():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 100_000)).astype(np.float32)
    assert distance(a, b).median == pytest.approx(2**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.0, 0.0], [1.0, 1.0]),
        ([1.0, np.nan], [1.0, 1.0]),
        ([1.0, 1.0], [1.0, np.inf]),
        (np.array([1, 2]), np.array([1, 2])),
        (np.zeros(0), np.zeros(0)),
    ],
    ids=["zeros", "a NaN here", "an infinity there", "integers", "nothing"],
)
def test_what_cannot_be_compared_is_left_out(a, b):
    assert distance(a, b) is None
    one = TensorTable.from_arrays({"a": a, "w": [3.0, 4.0]})
    other = TensorTable.from_arrays({"a": b, "w": [3.0, 4.0]})
    assert compare(one, other, {"a": "a", "w": "w"}).tensors == 1


def test_the_worst_tensor_is_named_and_the_median_is_the_middle():
    one = TensorTable.from_arrays({f"t{i}": [1.0] for i in range(3)})
    other = TensorTable.from_arrays({"t0": [1.0], "t1": [1.5], "t2": [9.0]})
    found = compare(one, other, {name: name for name in one})
    assert (found.tensors, found.median, found.worst, found.name) == (3, 0.5, 8.0, "t2")


@pytest.mark.parametrize("held", [True, False], ids=["decoded", "by offset"])
@pytest.mark.parametrize("size", [1000, 100_000, 1_000_003])
def test_pieces_of_a_large_tensor_tell_the_same_whatever_the_types(held, size):
    random = np.random.default_rng(1)
    a = random.normal(size=size).astype(np.float32)
    b = (a * 1.1).astype(np.float64)
    if held:
        one, other = TensorTable.from_arrays({"w": a}), TensorTable.from_arrays({"w": b})
    else:
        (one, ours), (other, theirs) = stored(a), stored(b)
    found = compare(one, other, {"w": "w"}, sampled=50_000)
    assert found.median == pytest.approx(0.1, rel=1e-3)
    if not held and size > 50_000:
        assert sum(length for _, length in ours.reads) <= 50_000 * 4
        assert sum(length for _, length in theirs.reads) <= 50_000 * 8
        spread = [offset for offset, _ in ours.reads]
        assert min(spread) == 0
        assert max(spread) == (size - likeness._PIECE) * 4


def test_small_tensors_are_compared_whole_and_large_ones_share_the_rest():
    assert likeness._share([10, 10, 1000, 1000], 1020) == 500
    assert likeness._share([100, 100], 200) == 200
    assert likeness._share([100, 100], 199) == 99
    assert likeness._share([5, 5, 5], 1) == 1


def test_the_sample_is_64_megabytes_of_float32():
    assert likeness.SAMPLED * 4 == 64 << 20
    assert transfer.MAX_EXPANSION == 1024
