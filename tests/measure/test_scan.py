"""The pass over tables: what is read, shared, merged, checked and reported."""

from __future__ import annotations

import threading
import zlib

import numpy as np
import pytest

from ckptdoctor.containers.inflate import InflatingSource
from ckptdoctor.dtypes import DTYPES
from ckptdoctor.errors import FormatError, ReadError, TruncatedError
from ckptdoctor.findings import Severity
from ckptdoctor.measure import scan
from ckptdoctor.measure.plan import BLOCK, UNIT, plan_pass
from ckptdoctor.measure.scan import measure
from ckptdoctor.sources import Extent, FileSource, WindowSource
from ckptdoctor.tensors import Checksum, TensorInfo, TensorTable


class Recorder:
    """A source in memory that remembers what was read, and fails for some bytes."""

    def __init__(self, data, *, broken=range(0), sequential=False, error=TruncatedError):
        self.name, self.data, self.size = "rec.bin", bytes(data), len(data)
        self.broken, self.sequential, self.error = broken, sequential, error
        self.reads = []

    def pread(self, offset, length):
        buffer = bytearray(length)
        self.pread_into(offset, memoryview(buffer))
        return bytes(buffer)

    def pread_into(self, offset, buffer):
        self.reads.append((offset, offset + len(buffer), threading.get_ident()))
        if offset < self.broken.stop and offset + len(buffer) > self.broken.start:
            raise self.error("the bytes are gone", where=self.name)
        buffer[:] = self.data[offset : offset + len(buffer)]


def info(name, source, offset, values=None, **more):
    if values is not None:
        values = np.asarray(values)
        more = {"dtype": values.dtype.name, "shape": values.shape, **more}
        more.setdefault("length", values.nbytes)
    length = more.pop("length", None)
    if length is None:
        length = DTYPES[more["dtype"]].nbytes(int(np.prod(more["shape"])))
    return TensorInfo(name=name, path=(name,), extent=Extent(source, offset, length), **more)


def table_of(*infos, **more):
    return TensorTable(
        path="m.bin", format="test", infos={each.name: each for each in infos}, **more
    )


def packed(arrays, gap=0, start=0):
    """Bytes of arrays one behind the other, and where each starts."""
    data, offsets = bytearray(start), []
    for array in arrays:
        offsets.append(len(data))
        data += np.ascontiguousarray(array).tobytes() + b"\xff" * gap
    return bytes(data), offsets


def assert_measures(stats, values):
    flat = np.asarray(values, np.float64).reshape(-1)
    finite = flat[np.isfinite(flat)]
    assert stats.count == flat.size
    assert (stats.nan, stats.zeros) == (int(np.isnan(flat).sum()), int((flat == 0).sum()))
    assert (stats.posinf, stats.neginf) == (
        int((flat == np.inf).sum()),
        int((flat == -np.inf).sum()),
    )
    if not finite.size:
        assert stats.mean is None
        return
    assert (stats.minimum, stats.maximum) == (finite.min(), finite.max())
    tolerance = 1e-6 * np.ptp(finite) + 1e-12
    assert abs(stats.mean - finite.mean()) <= tolerance
    assert abs(stats.std - finite.std()) <= tolerance


def some_arrays(count, seed=0):
    """Tensors of many sizes and types, some of them sick."""
    rng = np.random.default_rng(seed)
    arrays = []
    for i in range(count):
        values = rng.standard_normal(int(rng.integers(1, 400))).astype(
            rng.choice(["float32", "float16", "float64"])
        )
        if i % 5 == 0:
            values[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf, 0])
        arrays.append(values)
    return arrays


@pytest.mark.parametrize("gap", [0, 3, 190, 5000], ids="{}-byte gaps".format)
@pytest.mark.parametrize("start", [0, 1], ids=["aligned", "unaligned"])
def test_many_small_tensors(gap, start):
    arrays = some_arrays(400)
    data, offsets = packed(arrays, gap, start)
    source = Recorder(data)
    table = table_of(
        *(info(f"t{i}", source, o, a) for i, (o, a) in enumerate(zip(offsets, arrays, strict=True)))
    )
    measured = measure(table)
    assert not measured.findings
    assert list(measured.stats) == list(table)
    for i, array in enumerate(arrays):
        assert_measures(measured.stats[f"t{i}"], array)
    if gap < 4096:
        assert len(source.reads) == -(-len(data) // BLOCK), "neighbours are read together"


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8"])
@pytest.mark.parametrize("start", [0, 1, 6])
def test_tensors_over_several_blocks(dtype, start):
    size = (UNIT + BLOCK + 12345) // np.dtype(dtype).itemsize
    big = (np.random.default_rng(0).standard_normal(size) * 30).astype(dtype)
    small = big[:70000]
    data, offsets = packed([small, big, small[:7]], start=start)
    source = Recorder(data)
    table = table_of(
        *(
            info(str(i), source, o, a)
            for i, (o, a) in enumerate(zip(offsets, [small, big, small[:7]], strict=True))
        )
    )
    stats = measure(table).stats
    assert_measures(stats["0"], small)
    assert_measures(stats["1"], big)
    assert_measures(stats["2"], small[:7])
    again = sum(stop - first for first, stop, _ in source.reads) - (len(data) - start)
    assert 0 <= again <= 16 * (len(data) // UNIT), "only an element cut by a unit is read twice"


@pytest.mark.parametrize("broken", [range(0), range(1, 2)], ids=["readable", "first byte gone"])
def test_elements_that_lie_across_blocks(broken):
    odd = np.ones(3, np.int8)
    # All that tells these integers apart is in their first byte, the one in the block before.
    big = np.random.default_rng(0).integers(1, 100, (UNIT + 2 * BLOCK) // 8)
    big[:: BLOCK // 8] += 128
    big[BLOCK // 8 - 1 :: BLOCK // 8] = -5
    data, offsets = packed([odd, big])
    source = Recorder(data, broken=broken)
    table = table_of(info("odd", source, 0, odd), info("big", source, offsets[1], big))
    measured = measure(table)
    assert [f.tensor for f in measured.findings] == ["odd"] * len(broken)
    assert_measures(measured.stats["big"], big)
    assert measured.stats["big"].mean == pytest.approx(big.mean(), rel=1e-12)


def test_two_threads_give_the_same_bits_as_one(monkeypatch):
    monkeypatch.setattr(scan, "WORTH_THREADS", 0)
    values = np.random.default_rng(0).standard_normal((5 * UNIT) // 4 + 77).astype(np.float32)
    source = Recorder(values.tobytes())
    crc = zlib.crc32(source.data)
    checks = (Checksum(Extent(source, 0, source.size), crc, "m.bin:w"),)
    table = table_of(info("w", source, 0, values), checksums=checks)
    one, two = measure(table, workers=1), measure(table, workers=2)
    assert one.stats["w"] == two.stats["w"]
    assert not one.findings
    assert not two.findings
    assert_measures(two.stats["w"], values)


def test_shared_bytes_are_read_and_measured_once():
    values = np.arange(1000, dtype=np.float32)
    values[3] = np.nan
    source = Recorder(values.tobytes())
    table = table_of(
        info("embed", source, 0, values),
        info("head", source, 0, values.reshape(10, 100)),
        info("transposed", source, 0, dtype="float32", shape=(100, 10), strides=(1, 100)),
        info("tail", source, 2000, values[500:]),
        info("as integers", source, 0, values.view(np.int32)),
    )
    plan = plan_pass(table)
    assert plan.leaders.tolist() == [0, 0, 0, 3, 4]
    stats = measure(table).stats
    assert stats["embed"] == stats["head"] == stats["transposed"]
    assert_measures(stats["tail"], values[500:])
    assert_measures(stats["as integers"], values.view(np.int32))
    assert [read[:2] for read in source.reads] == [(0, 4000)]


def test_extents_through_windows_are_the_same_bytes():
    source = Recorder(np.ones(30, np.float32).tobytes())
    window = WindowSource("m.bin:w", source, 40, 80)
    table = table_of(
        info("a", source, 40, np.ones(20, np.float32)),
        info("b", window, 0, np.ones(20, np.float32)),
    )
    assert plan_pass(table).leaders.tolist() == [0, 0]
    assert_measures(measure(table).stats["b"], np.ones(20))


VIEWS = {
    "columns of a matrix": ((50, 3), (20, 1)),
    "every other element": ((490,), (2,)),
    "transposed with gaps": ((7, 40), (1, 20)),
    "one element repeated": ((4, 4), (0, 0)),
    "rows repeated": ((6, 100), (0, 1)),
    "gaps and repetition": ((5, 3, 10), (0, 7, 2)),
    "overlapping windows": ((90, 10), (1, 1)),
    "scalar": ((), ()),
}


@pytest.mark.parametrize("view", VIEWS)
def test_strided_views(view):
    shape, strides = VIEWS[view]
    values = np.arange(1000, dtype=np.float32) / 7
    values[::11] = np.nan
    source = Recorder(values.tobytes())
    wanted = np.lib.stride_tricks.as_strided(values[5:], shape, tuple(4 * s for s in strides))
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    one = info("v", source, 20, dtype="float32", shape=shape, strides=strides, length=4 * reach)
    assert_measures(measure(table_of(one)).stats["v"], wanted)


@pytest.mark.parametrize("stride", [3, BLOCK], ids=["close", "a block apart"])
def test_view_that_spans_several_blocks_is_gathered_in_pieces(stride):
    values = np.random.default_rng(0).standard_normal(2 * BLOCK + 50).astype(np.float32)
    source = Recorder(values.tobytes())
    rows = 1 + (2 * BLOCK) // stride
    one = info(
        "v", source, 0, dtype="float32", shape=(2, rows), strides=(1, stride), length=values.nbytes
    )
    wanted = np.lib.stride_tricks.as_strided(values, (2, rows), (4, 4 * stride))
    assert_measures(measure(table_of(one)).stats["v"], wanted)
    assert max(stop - start for start, stop, _ in source.reads) <= BLOCK


def test_view_that_repeats_a_small_file_endlessly_is_not_followed():
    source = Recorder(bytes(8000))
    one = info("v", source, 0, dtype="float32", shape=(900,) * 4, strides=(1,) * 4, length=8000)
    measured = measure(table_of(one))
    assert [f.code for f in measured.findings] == ["CK005"]
    assert measured.stats["v"].minimum is None


def test_repetition_of_one_element_beyond_any_number():
    source = Recorder(np.float32([np.nan]).tobytes())
    one = info("v", source, 0, dtype="float32", shape=(2**40, 2**40), strides=(0, 0), length=4)
    stats = measure(table_of(one)).stats["v"]
    assert stats.count == 2**80
    assert stats.nan >= 2**60


@pytest.mark.parametrize(
    "more",
    [
        {"encoding": "absent", "extent": None},
        {"encoding": "opaque"},
        {"dtype": "float4_e2m1fn_x2"},
        {"shape": (0, 3)},
        {"extent": None},
    ],
    ids=["absent", "opaque encoding", "packed type", "empty", "no bytes anywhere"],
)
def test_what_has_no_values_is_counted_only(more):
    source = Recorder(bytes(100))
    fields = {"dtype": "uint8", "shape": (9,), "extent": Extent(source, 0, 9), **more}
    one = TensorInfo(name="x", path=("x",), **fields)
    measured = measure(table_of(one))
    stats = measured.stats["x"]
    assert (stats.count, stats.nan, stats.minimum) == (one.size, 0, None)
    assert not measured.findings
    assert not source.reads


def test_quantised_tensors_are_measured_as_stored():
    values = np.int8([-3, 0, 5])
    one = info("q", Recorder(values.tobytes()), 0, dtype="qint8", shape=(3,), encoding="quantised")
    assert_measures(measure(table_of(one)).stats["q"], values)


def test_decoded_tensors():
    arrays = {
        "a": np.float32([1, np.nan]),
        "n": np.arange(700_000),
        "s": np.float64(3),
        "h": np.float16([[1]]),
    }
    stats = measure(TensorTable.from_arrays(arrays)).stats
    for name, array in arrays.items():
        assert_measures(stats[name], array)


class Decoder:
    def __init__(self, blocks):
        self.given = blocks

    def blocks(self, info):
        for block in self.given:
            if isinstance(block, Exception):
                raise block
            yield block


@pytest.mark.parametrize(
    "blocks",
    [
        [np.ones(4, np.float32), FormatError("chunk 1 is damaged")],
        [np.ones(4, np.float32)],
        [np.ones(8, np.float64)],
    ],
    ids=["damaged", "too short", "another type"],
)
def test_decoder_that_fails_costs_its_tensor_only(blocks):
    bad = TensorInfo(name="bad", path=("bad",), dtype="float32", shape=(8,))
    good = info("good", Recorder(np.ones(3, np.float32).tobytes()), 0, np.ones(3, np.float32))
    measured = measure(table_of(bad, good, decoder=Decoder(blocks)))
    assert [(f.code, f.tensor, f.severity) for f in measured.findings] == [
        ("CK004", "bad", Severity.ERROR)
    ]
    assert measured.stats["bad"].minimum is None
    assert_measures(measured.stats["good"], np.ones(3))


def members(sizes, start=0, gap=100):
    """Tensors that each have a checksum, as in a zip archive."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    data, offsets = packed(arrays, gap, start)
    source = Recorder(data)
    infos = [
        info(f"t{i}", source, o, a) for i, (o, a) in enumerate(zip(offsets, arrays, strict=True))
    ]
    checks = [
        Checksum(Extent(source, o, a.nbytes), zlib.crc32(a.tobytes()), f"m.bin:{i}")
        for i, (o, a) in enumerate(zip(offsets, arrays, strict=True))
    ]
    return infos, checks, arrays


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_checksums_of_small_and_large_members(threads, monkeypatch):
    monkeypatch.setattr(scan, "WORTH_THREADS", 0)
    sizes = [*([50] * 300), 3 * UNIT // 4 + 5, 7, BLOCK // 4, 1]
    infos, checks, arrays = members(sizes)
    measured = measure(table_of(*infos, checksums=tuple(checks)), workers=threads)
    assert not measured.findings
    wrong = {3, 300, 302}
    checks = [Checksum(c.extent, c.crc32 ^ (i in wrong), c.where) for i, c in enumerate(checks)]
    measured = measure(table_of(*infos, checksums=tuple(checks)), workers=threads)
    found = [(f.code, f.tensor, f.where, f.severity) for f in measured.findings]
    assert found == [("CK001", f"t{i}", f"m.bin:{i}", Severity.ERROR) for i in sorted(wrong)]
    for i, array in enumerate(arrays):
        assert_measures(measured.stats[f"t{i}"], array)


def test_checksum_over_several_views_names_them_and_reads_them_once():
    values = np.arange(3000, dtype=np.float32)
    source = Recorder(values.tobytes())
    check = Checksum(Extent(source, 0, 12000), 1, "m.bin:storage")
    table = table_of(
        info("a", source, 0, values[:1000]),
        info("tied", source, 0, values[:1000]),
        info("b", source, 4000, values[1000:]),
        info("column", source, 4000, dtype="float32", shape=(10,), strides=(3,), length=112),
        checksums=(check,),
    )
    (finding,) = measure(table).findings
    assert finding.measured["tensors"] == ["a", "tied", "b", "column"]
    assert "'a', 'tied', 'b' and 1 more" in finding.message
    assert [r[:2] for r in source.reads if r[1] - r[0] > 112] == [(0, 12000)]


@pytest.mark.parametrize("length", [0, 10, 3 * UNIT], ids=["empty", "small", "large"])
@pytest.mark.parametrize("error", [0, 1], ids=["right", "wrong"])
def test_checksum_of_bytes_without_a_tensor(length, error):
    source = Recorder(bytes(length))
    checks = (Checksum(Extent(source, 0, length), zlib.crc32(source.data) ^ error, "m.bin:x"),)
    measured = measure(table_of(checksums=checks))
    assert [f.code for f in measured.findings] == ["CK001"] * error


def test_checksum_past_the_end_of_the_file():
    checks = (Checksum(Extent(Recorder(bytes(10)), 5, 10), 1, "m.bin:x"),)
    assert [f.code for f in measure(table_of(checksums=checks)).findings] == ["CK004"]


@pytest.mark.parametrize(
    ("offset", "length"), [(90, 40), (0, 36), (-4, 40), (2**70, 40)],
    ids=["past the end", "shorter than its values", "before the start", "far away"],
)  # fmt: skip
def test_extent_that_cannot_hold_the_tensor(offset, length):
    source = Recorder(bytes(100))
    bad = info("bad", source, offset, dtype="float32", shape=(10,), length=length)
    good = info("good", source, 60, dtype="float32", shape=(10,))
    measured = measure(table_of(bad, good))
    assert [(f.code, f.tensor) for f in measured.findings] == [("CK004", "bad")]
    assert measured.stats["good"].zeros == 10


def test_unreadable_bytes_cost_the_tensors_that_lie_there_and_no_others():
    infos, checks, arrays = members([1000, 1000, 2 * BLOCK // 4, 1000, 1000])
    source = infos[0].extent.source
    gone = infos[2].extent.offset + BLOCK
    source.broken = range(gone, gone + 10)
    measured = measure(table_of(*infos, checksums=tuple(checks)))
    assert [(f.code, f.tensor) for f in measured.findings] == [("CK004", "t2")]
    assert "the bytes are gone" in measured.findings[0].message
    assert (measured.stats["t2"].count, measured.stats["t2"].mean) == (2 * BLOCK // 4, None)
    for i in (0, 1, 3, 4):
        assert_measures(measured.stats[f"t{i}"], arrays[i])


def test_unreadable_bytes_with_a_checksum_and_no_tensor_are_told():
    source = Recorder(bytes(100), broken=range(50, 60))
    checks = (Checksum(Extent(source, 40, 50), 1, "m.bin:x"),)
    (finding,) = measure(table_of(checksums=checks)).findings
    assert (finding.code, finding.where) == ("CK004", "m.bin:x")


def test_every_alias_of_an_unreadable_tensor_is_named():
    source = Recorder(bytes(100), broken=range(50, 60))
    both = (info(name, source, 0, np.zeros(25, np.float32)) for name in ("a", "b"))
    assert [f.tensor for f in measure(table_of(*both)).findings] == ["a", "b"]


@pytest.mark.parametrize("workers", [1, 2])
def test_failing_reads_are_not_findings(workers, monkeypatch):
    monkeypatch.setattr(scan, "WORTH_THREADS", 0)
    source = Recorder(bytes(3 * UNIT), broken=range(UNIT, UNIT + 1), error=ReadError)
    table = table_of(info("w", source, 0, np.zeros(3 * UNIT // 4, np.float32)))
    with pytest.raises(ReadError):
        measure(table, workers=workers)


def deflated(data, declared=None, crc=None, cut=None):
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    stored = (packer.compress(data) + packer.flush())[:cut]
    below = WindowSource.over(stored, "m.npz")
    crc = zlib.crc32(data) if crc is None else crc
    return InflatingSource("m.npz:w", below, 0, len(stored), declared or len(data), crc)


def test_inflating_source_is_read_forward_by_one_thread(monkeypatch):
    monkeypatch.setattr(scan, "WORTH_THREADS", 0)
    values = np.random.default_rng(0).standard_normal(3 * UNIT // 4).astype(np.float32)
    source = Recorder(values.tobytes(), sequential=True)
    infos = [info("a", source, 0, values[:9]), info("b", source, 9000, values[2250:])]
    stats = measure(table_of(*infos)).stats
    assert_measures(stats["b"], values[2250:])
    assert len({thread for _, _, thread in source.reads}) == 1
    assert all(a[1] == b[0] for a, b in zip(source.reads, source.reads[1:], strict=False))


def test_deflated_data():
    values = np.random.default_rng(0).standard_normal(BLOCK).astype(np.float32)
    source = deflated(values.tobytes())
    measured = measure(table_of(info("w", source, 128, values[32:])))
    assert_measures(measured.stats["w"], values[32:])
    assert not measured.findings


def test_deflated_data_that_breaks_off_keeps_what_came_before():
    values = np.random.default_rng(0).standard_normal(BLOCK).astype(np.float32)
    source = deflated(values.tobytes(), cut=BLOCK)
    infos = [
        info(f"t{i}", source, i * 4096, values[i * 1024 : i * 1024 + 1024]) for i in range(1024)
    ]
    measured = measure(table_of(*infos))
    lost = [f.tensor for f in measured.findings]
    assert {f.code for f in measured.findings} == {"CK004"}
    assert lost == [f"t{i}" for i in range(1024 - len(lost), 1024)]
    assert 700 < len(lost) < 800
    assert_measures(measured.stats["t200"], infos and values[200 * 1024 : 201 * 1024])


def test_progress_counts_every_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptdoctor.measure.state.PROGRESS_SECONDS", -1)
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(3 * BLOCK))
    seen = []
    source = FileSource(path)
    table = table_of(info("w", source, 0, dtype="uint8", shape=(3 * BLOCK,)), files=(source,))
    with table:
        measure(table, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n * BLOCK, 3 * BLOCK) for n in (1, 2, 3)]


def test_nothing_to_measure():
    measured = measure(table_of())
    assert (len(measured.stats), measured.findings) == (0, ())
