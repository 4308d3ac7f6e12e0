"""The guarded HDF5 reader: what is read, what is refused, and what the child may not do."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.containers import hdf5, hdf5_blocks, hdf5_check, hdf5_process, hdf5_readers
from ckptdoctor.errors import CkptDoctorError, FormatError, TruncatedError
from ckptdoctor.findings import Severity
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.formats.keras_h5 import KerasH5
from ckptdoctor.sources import FileSource, WindowSource
from ckptdoctor.tensors import TensorTable

TRUST = pytest.mark.parametrize("trust", [False, True], ids=["child", "in-process"])


def table_of(path: Path, *, trust: bool = True) -> TensorTable:
    return KerasH5().read(FileSource(path), ReadOptions(trust_hdf5=trust))


def contents_of(path: Path, *, trust: bool = True) -> hdf5.Contents:
    return hdf5.read_hdf5(FileSource(path), trust=trust)


def codes(contents: hdf5.Contents | TensorTable) -> list[tuple[str, Severity]]:
    return [(finding.code, finding.severity) for finding in contents.findings]


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with a dataset of each kind that has numbers."""
    path = tmp_path_factory.mktemp("kinds") / "kinds.h5"
    rng = np.random.default_rng(0)
    values = rng.standard_normal((37, 11)).astype("f4")
    with h5py.File(path, "w") as file:
        for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            file[f"plain/{code}"] = (values * 9).astype(code)
            file[f"big/{code}"] = (values * 9).astype(f">{code}")
        file["complex64"] = values + 1j * values
        file["complex128"] = (values + 1j * values).astype("c16")
        file["bool"] = values > 0
        file["scalar"] = np.float32(3.5)
        file["zero-size"] = np.zeros((0, 5), "f4")
        file["null"] = h5py.Empty("f4")
        file["array-type"] = np.zeros(3, np.dtype(("f4", (2, 2))))
        file.create_dataset("chunked", data=values, chunks=(10, 4))
        file.create_dataset("chunked-big", data=values.astype(">f4"), chunks=(10, 4))
        file.create_dataset("gzip", data=values, chunks=(10, 11), compression="gzip", shuffle=True)
        file.create_dataset("lzf", data=values, chunks=(5, 3), compression="lzf")
        file.create_dataset("fletcher32", data=values, chunks=(37, 11), fletcher32=True)
        file.create_dataset("gzip-3d", data=rng.random((4, 5, 600)), chunks=(2, 5, 100),
                            compression="gzip")  # fmt: skip
        file.create_dataset("gzip-half", data=values.astype("f2"), compression="gzip")
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((5,))
        made = h5py.h5d.create(file.id, b"compact", h5py.h5t.NATIVE_FLOAT, space, compact)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(5, dtype="f4"))
    return path


@TRUST
def test_every_dataset_has_the_values_h5py_gives(every_kind: Path, trust: bool) -> None:
    with table_of(every_kind, trust=trust) as table, h5py.File(every_kind) as file:
        assert table.findings == ()
        names: list[str] = []
        file.visititems(
            lambda name, each: names.append(name) if isinstance(each, h5py.Dataset) else None
        )
        assert sorted(table) == sorted(names)
        for name in names:
            expected = np.zeros(0, "f4") if name == "null" else file[name][()]
            read = table.read(name)
            assert read.dtype == np.asarray(expected).dtype.newbyteorder("="), name
            assert read.dtype.isnative
            np.testing.assert_array_equal(read, expected, err_msg=name)
            assert table[name].shape == expected.shape


def test_contiguous_data_is_read_by_offset_and_only_the_rest_is_decoded(every_kind: Path) -> None:
    with table_of(every_kind) as table:
        decoded = {name for name, info in table.items() if info.extent is None}
        assert decoded == {
            "chunked", "chunked-big", "gzip", "lzf", "fletcher32", "gzip-3d", "gzip-half", "compact",
        }  # fmt: skip
        assert table["big/f4"].big_endian
        assert not table["plain/f4"].big_endian


@TRUST
def test_bfloat16_is_told_by_its_bits_or_by_the_attribute_of_keras(
    tmp_path: Path, trust: bool
) -> None:
    path = tmp_path / "m.h5"
    values = np.array([1.5, -2, np.nan], ml_dtypes.bfloat16)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("keras", data=values.view("V2"))
        made.attrs["dtype"] = "bfloat16"
        file.create_dataset("unnamed", data=values.view("V2"))
        kind = h5py.h5t.IEEE_F16LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_ebias(127)
        low = h5py.h5d.create(file.id, b"bits", kind, h5py.h5s.create_simple((3,)))
        low.write(h5py.h5s.ALL, h5py.h5s.ALL, values.view("u2"), kind)
    with table_of(path, trust=trust) as table:
        for name in ("keras", "bits"):
            assert table[name].dtype == "bfloat16"
            assert table.read(name).tobytes() == values.tobytes()
        assert (table["unnamed"].encoding, table["unnamed"].dtype) == ("opaque", "uint8")
        assert table["unnamed"].shape == (3, 2)


def test_strings_and_records_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(3, "f4")
        file["fixed"] = np.array([b"abc", b"de"])
        file["variable"] = "text"
        file["record"] = np.zeros(2, [("a", "f4"), ("b", "i2")])
        file.create_dataset("reference", data=file.ref, dtype=h5py.ref_dtype)
        file.create_dataset("ragged", (2,), h5py.vlen_dtype("f4"))
    contents = contents_of(path)
    rows = {d.path[0]: d for d in contents.datasets}
    assert sorted(rows) == ["fixed", "record", "w"]
    assert sorted(contents.skipped) == ["ragged", "reference", "variable"]
    assert (rows["fixed"].dtype, rows["fixed"].shape, rows["fixed"].opaque) == (
        "string",
        (2, 3),
        True,
    )
    assert rows["record"].shape == (2, 6)


def test_user_blocks_and_windows_shift_the_extents(tmp_path: Path) -> None:
    path, outer = tmp_path / "user.h5", tmp_path / "outer.bin"
    with h5py.File(path, "w", userblock_size=1024) as file:
        file["w"] = np.arange(6, dtype="f4")
        file.create_dataset("z", data=np.arange(6, dtype="f4"), compression="gzip")
    outer.write_bytes(b"x" * 77 + path.read_bytes() + b"tail")
    with table_of(path) as table:
        assert table.read("w").tolist() == [0, 1, 2, 3, 4, 5]
    source = FileSource(outer)
    window = WindowSource("inner", source, 77, path.stat().st_size)
    contents = hdf5.read_hdf5(window)
    placed = next(d for d in contents.datasets if d.extent)
    assert placed.extent is not None
    assert placed.extent.source is source
    assert placed.extent.read() == np.arange(6, dtype="f4").tobytes()
    assert contents.decoder is not None
    contents.decoder.close()


# --- links, storage elsewhere, damage ------------------------------------------------------------


@TRUST
def test_nothing_outside_the_file_is_read(tmp_path: Path, trust: bool) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.full(4, 7, "f4")
    (tmp_path / "raw.bin").write_bytes(np.full(4, 7, "f4").tobytes())
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["ok"] = np.zeros(4, "f4")
        file["link"] = h5py.ExternalLink(str(other), "/secret")
        file["soft"] = h5py.SoftLink("/ok")
        file.create_dataset("raw", (4,), "f4", external=[(str(tmp_path / "raw.bin"), 0, 16)])
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(other), "secret", (4,))
        file.create_virtual_dataset("virtual", layout)
    with table_of(path, trust=trust) as table:
        assert {name: info.encoding for name, info in table.items()} == {
            "ok": "plain", "raw": "absent", "virtual": "absent",
        }  # fmt: skip
        found = {(f.severity, f.tensor) for f in table.findings if f.code == "CK006"}
        assert found == {
            (Severity.ERROR, "raw"), (Severity.ERROR, "virtual"), (Severity.ERROR, ""),
            (Severity.WARNING, ""),
        }  # fmt: skip
        with pytest.raises(CkptDoctorError):
            table.read("raw")


def test_hard_links_are_aliases_and_a_graph_of_them_ends(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["a/w"] = np.arange(4, dtype="f4")
        file["tied"] = file["a/w"]
        group = file["a"]
        for i in range(40):
            below = group.create_group(f"n{i}")
            group[f"m{i}"] = below
            group = below
        group["loop"] = file["/"]
    with table_of(path, trust=False) as table:
        assert sorted(table) == ["a/w", "tied"]
        assert table["a/w"].storage == table["tied"].storage != ""
        assert table.read("tied").tolist() == [0, 1, 2, 3]
        assert ("CK005", Severity.WARNING) in codes(table)


def test_data_that_was_never_written_is_truncated_not_zero(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("contiguous", (1 << 40,), "u1")
        file.create_dataset("chunked", (64,), "f4", chunks=(8,))
        file.create_dataset("half", (64,), "f4", chunks=(32,))[:32] = 1
        file.create_dataset("huge", (1 << 40,), "f4", chunks=(1024,), compression="gzip")[:9] = 1
        file["ok"] = np.ones(2, "f4")
    with table_of(path) as table:
        absent = {name for name, info in table.items() if info.encoding == "absent"}
        assert absent == {"contiguous", "chunked", "huge"}
        assert {f.tensor for f in table.findings if f.code == "CK004"} == absent | {"half"}
        assert table.read("half").sum() == 32


def test_oversized_chunks_and_foreign_filters_are_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("big", (1 << 27,), "f4", chunks=(1 << 26,))[:1] = 1
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (1, 2))
        space = h5py.h5s.create_simple((4,))
        made = h5py.h5d.create(file.id, b"blosc", h5py.h5t.NATIVE_FLOAT, space, plist)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(4, "f4"))
    with table_of(path) as table:
        assert {info.encoding for info in table.values()} == {"absent"}
        assert {f.tensor for f in table.findings if f.severity == Severity.ERROR} == {
            "big",
            "blosc",
        }


def test_names_that_are_no_utf8_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((2,))
        for name in (b"\xff\xfe", b"a\nb"):
            h5py.h5d.create(file.id, name, h5py.h5t.NATIVE_FLOAT, space).write(
                h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(2, "f4")
            )
    with table_of(path, trust=False) as table:
        assert sorted(table) == ["\\xff\\xfe", "a\nb"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[:-1], TruncatedError),
        (lambda data: data[:100], FormatError),
        (lambda data: data[:13] + b"\xff" + data[14:], FormatError),
        (lambda data: data[:8] + b"\x09" + data[9:], FormatError),
        (lambda data: b"x" * 100 + data, FormatError),
        (lambda data: data[:8], FormatError),
    ],
    ids=["last byte", "superblock only", "address size", "version", "shifted", "signature only"],
)
def test_a_broken_superblock_is_refused(tmp_path: Path, change: Any, error: type) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(4, "f4")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(error):
        contents_of(path, trust=False)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_flipped_bytes_give_a_table_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = folder / "m.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"dense"]
        group["dense/kernel"] = np.zeros((3, 2), "f4")
        group.create_dataset("dense/z", data=np.zeros((30, 2), "f4"), compression="gzip")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        with table_of(path, trust=False) as table:
            for name, info in table.items():
                if info.encoding != "absent" and info.nbytes < 1 << 20:
                    table.read(name)
    except CkptDoctorError:
        pass


# --- the child -----------------------------------------------------------------------------------


def children() -> set[int]:
    listed = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    if not listed.exists():
        pytest.skip("needs Linux's list of children")
    return set(map(int, listed.read_text().split()))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_process_and_no_descriptor_is_left(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(4, "f4")
        file.create_dataset("z", data=np.zeros(4, "f4"), compression="gzip")
    bad = tmp_path / "bad.h5"
    bad.write_bytes(path.read_bytes()[:-1])
    gc.collect()
    before, fds = children(), descriptors()
    for _ in range(3):
        with table_of(path, trust=False) as table:
            table.read("z")
        with pytest.raises(TruncatedError), ClosedAfter(bad) as source:
            hdf5.read_hdf5(source)
    hdf5_process.prestart([str(tmp_path), "no such file", str(path)])
    assert len(children() - before) == 1
    table_of(path, trust=False).close()
    assert (children(), descriptors()) == (before, fds)


class ClosedAfter(FileSource):
    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_threads_read_several_files_at_once(tmp_path: Path) -> None:
    sums: dict[int, float] = {}

    def read(i: int) -> None:
        path = tmp_path / f"{i}.h5"
        with table_of(path, trust=False) as table:
            sums[i] = float(table.read("z").sum())

    for i in range(4):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.create_dataset("z", data=np.full(1000, i, "f4"), compression="gzip")
    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == {i: i * 1000.0 for i in range(4)}


def test_a_closed_table_reads_nothing_and_writes_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("z", data=np.zeros(4, "f4"), compression="gzip")
    table = table_of(path, trust=False)
    table.close()
    other = [(tmp_path / f"{i}").open("w+b") for i in range(6)]  # takes the descriptors
    with pytest.raises(FormatError):
        table.read("z")
    for file in other:
        assert file.seek(0, 2) == 0
        file.close()


def run_in_child(code: str, path: Path) -> str:
    """Run code where the worker would run, after it gave up its rights."""
    boot = (
        "import os, sys; sys.path[:] = sys.argv[2:]\n"
        "from ckptdoctor.containers import hdf5_worker as worker\n"
        "worker.give_up_rights(0, 640 << 20)\n"
    )
    argv = [sys.executable, "-I", "-S", "-c", boot + code, str(path), *hdf5_process._search_path()]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="limits are those of POSIX")
@pytest.mark.parametrize(
    "attempt",
    ["open(sys.argv[1], 'rb')", "os.open('/etc/passwd', 0)", "bytearray(2 << 30)",
     "os.write(os.memfd_create('x'), b'x')", "os.pipe()"],
    ids=["file", "passwd", "2 GiB", "memory file", "pipe"],
)  # fmt: skip
def test_the_child_cannot(tmp_path: Path, attempt: str) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(b"")
    code = f"try:\n    {attempt}\nexcept (OSError, MemoryError) as e:\n    print('denied')\n"
    assert run_in_child(code, path) == "denied\n"


def test_the_working_folder_is_not_importable(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "h5py.py").write_text("raise SystemExit('imported from the working folder')")
    path = tmp_path / "m.h5"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(4, "f4")
    with table_of(path, trust=False) as table:
        assert list(table) == ["w"]


class Fake(hdf5_readers.Reader):
    """A worker that was taken over."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.closed = False

    def walk(self) -> Any:
        return self.answer

    def block(self, index: int, start: Any, count: Any, size: int) -> bytes:
        return b"\0" * size

    def close(self) -> None:
        self.closed = True


ROW = {
    "path": ["w"], "dtype": "float32", "itemsize": 4, "big": False, "shape": [4], "address": 96,
    "index": 0, "layout": "contiguous", "offset": 0, "stored": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1}, {"offset": 1.5}, {"offset": "0"}, {"shape": [-1]}, {"shape": 3},
        {"dtype": "nothing"}, {"itemsize": 8}, {"itemsize": True}, {"path": None}, {"layout": []},
        {"layout": "chunked", "chunks": [0]}, {"layout": "chunked", "chunks": [4, 4]},
        {"shape": [[4]]}, {"index": 1 << 70}, {"stored": None},
    ],
    ids=repr,
)  # fmt: skip
def test_a_row_that_is_nonsense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(bytes(64))
    answer = {"rows": [{**ROW, **change}], "attributes": {}, "told": {}, "counts": {}}
    with pytest.raises(FormatError):
        hdf5_check.Checker(FileSource(path)).check(answer)


@pytest.mark.parametrize(
    "answer",
    [{}, {"rows": 3}, {"rows": [1]}, {"rows": [], "attributes": [], "told": {}, "counts": {}},
     {"rows": [], "attributes": {}, "told": {"soft": [["a"]]}, "counts": {}}],
    ids=repr,
)  # fmt: skip
def test_an_answer_that_is_nonsense_is_refused(tmp_path: Path, answer: Any) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(bytes(64))
    with pytest.raises(FormatError):
        hdf5_check.Checker(FileSource(path)).check(answer)


def test_extents_past_the_end_and_on_top_of_each_other_are_findings(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(bytes(64))
    rows = [
        ROW, {**ROW, "path": ["x"], "offset": 60}, {**ROW, "path": ["y"], "offset": 8, "address": 1},
        {**ROW, "path": ["again"]},
    ]  # fmt: skip
    answer = {"rows": rows, "attributes": {}, "told": {}, "counts": {}}
    checker = hdf5_check.Checker(FileSource(path))
    datasets, _ = checker.check(answer)
    assert [bool(d.extent) for d in datasets] == [True, False, True, True]
    assert [(f.code, f.tensor) for f in checker.findings] == [("CK004", "x"), ("CK005", "y")]


@pytest.mark.parametrize(
    "script",
    [
        "import os; os._exit(3)",
        "import time; time.sleep(60)",
        "import os; os.write(1, b'\\xff' * 8); os._exit(0)",
        "import os; os.write(1, (5).to_bytes(8, 'little') + b'[1,2]'); import time; time.sleep(9)",
        "import os; os.write(1, (5).to_bytes(8, 'little') + b'\\xff' * 5)",
    ],
    ids=["crash", "hang", "absurd length", "not an object", "not JSON"],
)
def test_a_child_that_misbehaves_is_one_error(
    tmp_path: Path, monkeypatch: Any, script: str
) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(4, "f4")
    stat = path.stat()
    ready = json.dumps({"ready": True, "file": [stat.st_dev, stat.st_ino]}).encode()
    frame = len(ready).to_bytes(8, "little") + ready
    monkeypatch.setattr(hdf5_process, "_BOOT", f"import os; os.write(1, {frame!r}); {script}")
    monkeypatch.setattr(hdf5_readers, "WALK_SECONDS", 0.5)
    before = children()
    with pytest.raises(FormatError, match="HDF5 reader process"):
        contents_of(path, trust=False)
    assert children() == before


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    data=st.data(),
    limits=st.tuples(st.sampled_from([1, 64, 4096]), st.sampled_from([4096, 1 << 20])),
)
def test_slabs_cover_an_array_once_and_in_order(
    shape: list[int], data: st.DataObject, limits: tuple[int, int]
) -> None:
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    band, chunk = hdf5_blocks.BAND_BYTES, hdf5_blocks.CHUNK_BYTES
    hdf5_blocks.BAND_BYTES, hdf5_blocks.CHUNK_BYTES = limits
    try:
        values = np.arange(np.prod(shape)).reshape(shape)
        pieces = [
            values[tuple(slice(s, s + c) for s, c in zip(start, count, strict=True))].reshape(-1)
            for start, count in hdf5_blocks.slabs(tuple(shape), chunks, 8)
        ]
    finally:
        hdf5_blocks.BAND_BYTES, hdf5_blocks.CHUNK_BYTES = band, chunk
    np.testing.assert_array_equal(np.concatenate(pieces), values.reshape(-1))


def test_rows_of_chunks_that_are_too_long_are_cut_across(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "m.h5"
    values = np.arange(8 * 4096, dtype="f4").reshape(8, 4096)
    with h5py.File(path, "w") as file:
        file.create_dataset("z", data=values, chunks=(4, 256), compression="gzip")
    monkeypatch.setattr(hdf5_blocks, "CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(hdf5_blocks, "BAND_BYTES", 1 << 10)
    with table_of(path) as table:
        np.testing.assert_array_equal(table.read("z"), values)


def test_the_modules_the_command_imports_first_are_light() -> None:
    code = (
        "import sys; import ckptdoctor.containers.hdf5_process; "
        "print(sorted({'numpy', 'h5py', 'subprocess', 'dataclasses', 'json'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, check=True)  # fmt: skip
    assert done.stdout == "[]\n"
