"""Kernels against float64 NumPy on whole arrays."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptdoctor.dtypes import DTYPES
from ckptdoctor.measure.kernels import CHUNK, Workspace, kernel_of
from ckptdoctor.measure.stats import EMPTY, Columns, Partial, StatsTable

WORK = Workspace()
FLOATS = [name for name, kind in DTYPES.items() if kind.kind == "float"]
INTS = [name for name, kind in DTYPES.items() if kind.kind == "int"]


def raw(values):
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def measured(values, dtype=None, *, big_endian=False):
    kernel = kernel_of(dtype or values.dtype.name, big_endian=big_endian)
    with np.errstate(all="ignore"):
        return kernel.piece(raw(values), WORK)


def measured_many(arrays, dtype=None):
    kernel = kernel_of(dtype or arrays[0].dtype.name)
    lengths = np.array([a.size for a in arrays])
    with np.errstate(all="ignore"):
        return kernel.many(np.concatenate([raw(a) for a in arrays]), lengths, WORK)


def assert_agrees(got: Partial, values) -> None:
    with np.errstate(all="ignore"):
        wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    assert got.count == wide.size
    assert got.nan == np.count_nonzero(np.isnan(wide))
    assert got.posinf == np.count_nonzero(wide == math.inf)
    assert got.neginf == np.count_nonzero(wide == -math.inf)
    assert got.zeros == np.count_nonzero(wide == 0)
    assert got.finite == finite.size
    if finite.size:
        assert got.low == finite.min()
        assert got.high == finite.max()
        mean, std, unit = reference_moments(finite)
        span = (finite.max() / unit) - (finite.min() / unit)
        assert abs(got.mean / unit - mean) <= 1e-6 * span + 1e-14
        assert abs(got.std / unit - std) <= 1e-6 * span + 1e-14


def reference_moments(finite):
    """In units of the largest magnitude, so that float64 itself neither overflows nor vanishes."""
    unit = max(abs(finite).max(), 1e-300)
    scaled = finite / unit
    mean = math.fsum(scaled) / scaled.size
    return mean, math.sqrt(math.fsum((scaled - mean) ** 2) / scaled.size), unit


def partial_of(columns: Columns, index: int, values) -> Partial:
    counts = (int(getattr(columns, n)[index]) for n in ("nan", "posinf", "neginf", "zeros"))
    with np.errstate(all="ignore"):
        finite = int(np.count_nonzero(np.isfinite(values.astype(np.float64))))
    moments = (float(getattr(columns, n)[index]) for n in ("minimum", "maximum", "mean", "std"))
    return Partial(values.size, *counts, finite, *moments)


def normal(size, mean=0.0, std=1.0, dtype=np.float32, seed=0):
    with np.errstate(all="ignore"):
        return (np.random.default_rng(seed).standard_normal(size) * std + mean).astype(dtype)


SHAPES = {
    "standard normal": lambda x: x,
    "mean 1e6, deviation 1": lambda x: x + 1e6,
    "mean 1e4, deviation 0.001": lambda x: x * 1e-3 + 1e4,
    "all positive": abs,
    "huge": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-30,
    "subnormal": lambda x: x * 1e-40,
    "constant 0.1": lambda x: x * 0 + 0.1,
    "two values of one sign pattern": lambda x: np.where(x > 0, 0.1, -0.1),
    "one outlier": lambda x: np.where(np.arange(x.size) == x.size // 2, 1e4, x * 1e-3 + 1),
    "zeros of both signs": lambda x: np.where(x > 0, 0.0, -0.0),
    "ramp": lambda x: np.arange(x.size),
}
SPOILS = {
    "clean": lambda x, _: x,
    "one NaN": lambda x, _: np.where(np.arange(x.size) == x.size // 3, np.nan, x),
    "random half NaN": lambda x, u: np.where(u < 0.5, np.nan, x),
    "NaN and both Inf": lambda x, u: np.select(
        [u < 0.1, u < 0.2, u < 0.3], [np.nan, np.inf, -np.inf], x
    ),
    "-Inf mask": lambda x, u: np.where(u < 0.5, -np.inf, x),
    "+Inf among negatives": lambda x, u: np.where(u < 0.5, np.inf, -abs(x)),
    "-Inf among positives": lambda x, u: np.where(u < 0.5, -np.inf, abs(x)),
    "all NaN": lambda x, _: x * np.nan,
    "all +Inf": lambda x, _: x * 0 + np.inf,
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_agree_with_float64(shape, spoil, dtype):
    size = 5000
    values = normal(size, dtype=np.float64)
    uniform = np.random.default_rng(1).random(size)
    with np.errstate(all="ignore"):
        values = SPOILS[spoil](SHAPES[shape](values), uniform).astype(DTYPES[dtype].numpy)
    assert_agrees(measured(values), values)
    columns, extreme = measured_many([values[:77], values[77:]])
    for index, part in enumerate((values[:77], values[77:])):
        if index not in extreme:
            assert_agrees(partial_of(columns, index, part), part)


@pytest.mark.parametrize("scale", [1e300, 1.7e308, 1e-300, 5e-324])
def test_float64_at_the_ends_of_its_range(scale):
    values = np.linspace(-1, 1, 999) * scale
    assert_agrees(measured(values), values)
    assert 0 in measured_many([values, np.ones(3)])[1]


def test_large_tensor_with_rounding_that_goes_one_way():
    # A plain float32 dot over 65,536 such numbers is off by 1e-5.
    values = np.where(np.arange(3 * CHUNK + 17) % 2, 1 / 3, -1 / 3).astype(np.float32)
    assert_agrees(measured(values), values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_patterns_of_16_bits(dtype):
    values = np.arange(65536, dtype=np.uint16).view(DTYPES[dtype].numpy)
    assert_agrees(measured(values), values)
    for pattern in range(0, 65536, 97):
        assert_agrees(measured(values[pattern : pattern + 1]), values[pattern : pattern + 1])
    parts = np.array_split(values, 999)
    columns, _ = measured_many(parts)
    for index, part in enumerate(parts):
        assert_agrees(partial_of(columns, index, part), part)


@pytest.mark.parametrize("dtype", [name for name in FLOATS if name.startswith("float8")])
def test_all_patterns_of_8_bits(dtype):
    values = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, dtype))
    for part in (values, *np.array_split(values, 256), np.repeat(values, 2001)):
        assert_agrees(measured(part), part)


@pytest.mark.parametrize("dtype", INTS)
def test_integers(dtype):
    stored = DTYPES[dtype].stored
    info = np.iinfo(stored)
    rng = np.random.default_rng(0)
    values = rng.integers(info.min, info.max, 5000, dtype=stored, endpoint=True)
    values[::7] = 0
    assert_agrees(measured(values, dtype), values)
    columns, _ = measured_many([values[:9], values[9:]], dtype)
    assert_agrees(partial_of(columns, 1, values[9:]), values[9:])


def test_booleans_are_true_whatever_the_byte():
    got = measured(np.array([0, 1, 2, 255], np.uint8), "bool")
    assert (got.zeros, got.low, got.high, got.mean) == (1, 0.0, 1.0, 0.75)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint16", "int64"])
def test_big_endian(dtype):
    values = normal(3000, std=100).astype(dtype)
    swapped = values.astype(values.dtype.newbyteorder(">"))
    assert measured(swapped, dtype, big_endian=True) == measured(values)


def test_big_endian_bfloat16():
    values = normal(300).astype(ml_dtypes.bfloat16)
    swapped = values.view(np.uint16).byteswap()
    assert measured(swapped, "bfloat16", big_endian=True) == measured(values)


def test_unaligned_bytes():
    values = normal(1000)
    shifted = np.concatenate([np.zeros(1, np.uint8), raw(values)])[1:]
    assert kernel_of("float32").piece(shifted, WORK) == measured(values)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_elements_count_once(dtype):
    nan, inf = math.nan, math.inf
    parts = [(1, 2), (nan, inf), (inf, -inf), (-inf, 3), (0, -0.0), (0, 1), (nan, nan), (3, inf)]
    values = np.array(parts, np.float64).reshape(-1).view(np.complex128).astype(dtype)
    got = measured(values)
    assert (got.count, got.nan, got.posinf, got.neginf, got.zeros) == (8, 2, 2, 1, 1)
    assert (got.low, got.high, got.finite) == (0, 3, 8)


def test_complex_of_halves():
    halves = np.array([1, 2, np.nan, np.inf, -np.inf, 5, 0, 0], np.float16)
    got = measured(halves, "complex32")
    assert (got.count, got.nan, got.posinf, got.neginf, got.zeros) == (4, 1, 0, 1, 1)
    assert (got.low, got.high, got.mean) == (0, 5, 1.6)
    assert DTYPES["complex32"].numpy.itemsize == 4


def test_signed_zero_prints_as_zero():
    columns = Columns.unmeasured(1)
    columns.put(0, measured(np.array([-0.0], np.float32)))
    assert math.copysign(1, StatsTable(["w"], [1], columns)["w"].minimum) == 1


finite_or_not = st.tuples(
    hnp.arrays(np.float16, st.integers(1, 600)),
    st.sampled_from([np.float16, np.float32, np.float64]),
).map(lambda drawn: drawn[0].astype(drawn[1]))


@given(finite_or_not, st.floats(-1e5, 1e5), st.sampled_from([1e-30, 1e-3, 1.0, 1e15, 1e250]))
@settings(max_examples=100)
@example(np.float32([1, 1 + 2**-23]), 0.0, 1.0)
def test_statistics_agree_with_float64_for_anything(values, shift, scale):
    with np.errstate(all="ignore"):
        values = (values.astype(np.float64) * scale + shift).astype(values.dtype)
    assert_agrees(measured(values), values)


@given(finite_or_not, st.lists(st.integers(0, 600), max_size=5))
@settings(max_examples=100)
def test_merging_pieces_gives_the_whole(values, cuts):
    merged = EMPTY
    for part in np.split(values, sorted(min(cut, values.size) for cut in cuts)):
        merged = merged.merge(measured(part)) if part.size else merged
    assert_agrees(merged, values)


@given(st.lists(finite_or_not, min_size=1, max_size=8))
@settings(max_examples=100)
def test_many_at_once_gives_what_each_alone_gives(arrays):
    arrays = [a.astype(np.float32) for a in arrays]
    columns, extreme = measured_many(arrays)
    assert not len(extreme)
    for index, values in enumerate(arrays):
        assert_agrees(partial_of(columns, index, values), values)


def test_merging_deviations_beyond_the_root_of_the_range():
    low, high = measured(np.array([-1.7e308])), measured(np.array([1.7e308]))
    whole = low.merge(high)
    assert (whole.mean, whole.std) == (0.0, 1.7e308)


def test_row_without_finite_elements_has_no_moments():
    columns = Columns.unmeasured(2)
    columns.put(1, measured(np.array([np.nan, np.inf], np.float32)))
    table = StatsTable(["unread", "sick"], [5, 2], columns)
    assert [*table] == ["unread", "sick"]
    assert (table["unread"].count, table["unread"].minimum) == (5, None)
    assert (table["sick"].nonfinite, table["sick"].std) == (2, None)
    assert table.nan.tolist() == [0, 1]


def test_opaque_types_have_no_kernel():
    opaque = [name for name, kind in DTYPES.items() if kernel_of(name) is None]
    assert all(DTYPES[name].kind == "opaque" for name in opaque)
    assert "float4_e2m1fn_x2" in opaque
