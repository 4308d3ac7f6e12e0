"""Edits of HDF5 files through HDF5: what was asked for changes, and nothing else."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from h5py import h5a, h5d, h5p, h5s, h5t
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.containers import (
    hdf5_edit,
    hdf5_edit_process,
    hdf5_edit_values,
    hdf5_edit_window,
    hdf5_process,
)
from ckptdoctor.containers.hdf5_edit import overwrite, remove, set_attribute, set_number
from ckptdoctor.containers.hdf5_edit_window import Declined, Inbox, Window
from ckptdoctor.containers.hdf5_edit_worker import perform
from ckptdoctor.containers.hdf5_same import same
from ckptdoctor.containers.json_number import with_number
from ckptdoctor.errors import (
    CkptDoctorError,
    FormatError,
    TruncatedError,
    UnsupportedError,
    UsageError,
    WriteError,
)
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.formats.keras_h5 import KerasH5
from ckptdoctor.sources import FileSource

TRUST = pytest.mark.parametrize("trust", [False, True], ids=["child", "in-process"])
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="limits are those of POSIX")
RANDOM = np.random.default_rng(5)
VALUES = RANDOM.standard_normal((37, 11))


def contents(path: Path) -> dict[str, Any]:
    """Every dataset's bytes, and every attribute, as h5py gives them."""
    found: dict[str, Any] = {}

    def keep(name: str, thing: Any) -> None:
        for key, value in thing.attrs.items():
            found[f"{name}@{key}"] = np.asarray(value).tolist()
        if isinstance(thing, h5py.Dataset) and thing.shape is not None:
            value = np.asarray(thing[()])
            found[name] = value.tolist() if value.dtype.hasobject else value.tobytes()

    with h5py.File(path) as file:
        keep("", file)
        file.visititems(keep)
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    keys = before.keys() | after.keys()
    return {key for key in keys if before.get(key) != after.get(key)}


def compact(file: h5py.File, name: str, values: np.ndarray) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_layout(h5d.COMPACT)
    space = h5s.create_simple(values.shape)
    kind = h5t.py_create(values.dtype, logical=True)
    made = h5d.create(file.id, name.encode(), kind, space, plist)
    made.write(h5s.ALL, h5s.ALL, values)


def nbit(file: h5py.File, name: str, kind: Any, values: np.ndarray) -> None:
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((10, 4))
    plist.set_filter(5, 0, ())
    made = h5d.create(file.id, name.encode(), kind, h5s.create_simple(values.shape), plist)
    made.write(h5s.ALL, h5s.ALL, values)


KINDS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "chunked": (VALUES.astype("f4"), {"chunks": (10, 4)}),
    "chunked whole rows": (VALUES.astype("f4"), {"chunks": (5, 11)}),
    "gzip": (VALUES.astype("f4"), {"chunks": (10, 4), "compression": "gzip", "shuffle": True}),
    "lzf": (VALUES.astype("f2"), {"chunks": (37, 3), "compression": "lzf"}),
    "szip": (VALUES.astype("f8"), {"chunks": (8, 11), "compression": "szip"}),
    "fletcher32": (VALUES.astype("f4"), {"chunks": (10, 4), "fletcher32": True}),
    "scaleoffset": ((VALUES * 100).astype("i4"), {"chunks": (10, 4), "scaleoffset": 0}),
    "big-endian": (VALUES.astype(">f4"), {"chunks": (10, 4), "compression": "gzip"}),
    "big-endian complex": ((VALUES + 1j).astype(">c16"), {"chunks": (10, 4)}),
    "complex": ((VALUES + 1j).astype("c8"), {"chunks": (10, 4)}),
    "bool": (VALUES > 0, {"chunks": (10, 4), "compression": "gzip"}),
    "int8": ((VALUES * 9).astype("i1"), {"chunks": (1, 1)}),
    "uint64": ((VALUES * 9).astype("i8").view("u8"), {"chunks": (10, 4), "maxshape": (None, 11)}),
    "3-d": (VALUES[:36].astype("f4").reshape(4, 9, 11), {"chunks": (3, 2, 5)}),
    "1-d": (VALUES.astype("f4").reshape(-1), {"chunks": (100,)}),
    "contiguous": (VALUES.astype("f4"), {}),
    "bfloat16": (VALUES.astype(ml_dtypes.bfloat16), {"chunks": (10, 4), "compression": "gzip"}),
    "float8": (VALUES.astype(ml_dtypes.float8_e4m3fn), {"chunks": (10, 4)}),
}


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinds") / "kinds.h5"
    with h5py.File(path, "w") as file:
        for name, (values, how) in KINDS.items():
            named = values.dtype.name if values.dtype.kind == "V" or "float8" in name else ""
            if values.dtype.name in ("bfloat16", "float8_e4m3fn"):
                kind = h5t.create(h5t.OPAQUE, values.dtype.itemsize)
                made = _raw(file, f"k/{name}", kind, values, how)
                made.attrs["dtype"] = named or values.dtype.name
            else:
                file.create_dataset(f"k/{name}", data=values, **how)
        compact(file, "compact", VALUES[:3].astype("f4"))
        nbit(file, "nbit", h5t.NATIVE_FLOAT.copy(), VALUES.astype("f4"))
        file["scalar"] = np.float32(2.5)
        array = file.create_dataset("array-type", (6,), np.dtype(("f4", (2, 2))), chunks=(4,))
        array[...] = np.arange(24, dtype="f4").reshape(6, 2, 2)
        file["note"] = "as it was"
        file.attrs["list"] = ["a", "bc"]
    return path


def _raw(file: h5py.File, name: str, kind: Any, values: np.ndarray, how: dict[str, Any]) -> Any:
    """A dataset of opaque elements, as Keras writes them."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk(how["chunks"])
    if "compression" in how:
        plist.set_deflate(4)
    create = h5p.create(h5p.LINK_CREATE)
    create.set_create_intermediate_group(True)
    space = h5s.create_simple(values.shape)
    made = h5d.create(file.id, name.encode(), kind, space, plist, create)
    made.write(h5s.ALL, h5s.ALL, values.view(f"V{values.dtype.itemsize}"), kind)
    return h5py.Dataset(made)


@TRUST
def test_what_is_edited_is_read_back_and_all_else_stays(
    every_kind: Path, tmp_path: Path, trust: bool
) -> None:
    draft = tmp_path / "draft.h5"
    shutil.copy(every_kind, draft)
    indices = np.array([0, 3, 11, 200, 395])
    edits, expected = {}, {}
    for name, (values, _) in KINDS.items():
        new = np.roll(values.reshape(-1), 7)[indices]
        edits["k", name] = [(indices, new.astype(new.dtype.newbyteorder("=")))]
        after = values.copy().reshape(-1)
        after[indices] = new
        expected[f"k/{name}"] = after.tobytes()
    few = np.array([1, 32])
    edits[("compact",)] = [(few, np.array([8, 9], "f4"))]
    edits[("nbit",)] = [(few, np.array([8, 9], "f4"))]
    edits[("array-type",)] = [(np.array([5, 6, 23]), np.array([1, 2, 3], "f4"))]
    edits[("scalar",)] = [(np.array([0]), np.array([7], "f4"))]
    before = contents(draft)
    overwrite(draft, edits, trust=trust)
    after_ = contents(draft)
    assert changed(before, after_) == {"/".join(path) for path in edits}
    assert {name: after_[name] for name in expected} == expected
    with h5py.File(draft) as file:
        assert file["compact"][...].reshape(-1)[few].tolist() == [8, 9]
        assert file["nbit"][...].reshape(-1)[few].tolist() == [8, 9]
        assert file["array-type"][...].reshape(-1)[[4, 5, 6, 22, 23]].tolist() == [4, 1, 2, 22, 3]
        assert file["scalar"][()] == 7
    edited = {path: each[0][0] for path, each in edits.items()}
    assert same(every_kind, draft, edited, trust=trust) == ("", len(KINDS) + 5)
    del edited["k", "lzf"]
    difference = "'k/lzf' holds other values, the first at element "
    assert same(every_kind, draft, edited, trust=trust)[0].startswith(difference)


@TRUST
def test_the_table_reads_what_was_written(every_kind: Path, tmp_path: Path, trust: bool) -> None:
    draft = tmp_path / "draft.h5"
    shutil.copy(every_kind, draft)
    options = ReadOptions(trust_hdf5=True)
    with KerasH5().read(FileSource(draft), options) as table:
        new = {
            info.path: np.roll(table.read(name).reshape(-1), 3)
            for name, info in table.items()
            if info.role != "other" and info.path != ("note",)
        }
    overwrite(draft, {path: [(None, lambda v=v: v)] for path, v in new.items()}, trust=trust)
    with KerasH5().read(FileSource(draft), options) as table:
        for info in table.values():
            if info.path in new:
                assert table.read(info.name).tobytes() == new[info.path].tobytes()


def test_edits_of_one_dataset_follow_each_other(every_kind: Path, tmp_path: Path) -> None:
    draft = tmp_path / "draft.h5"
    shutil.copy(every_kind, draft)
    every = np.arange(407, dtype="f4")
    overwrite(
        draft,
        {("k", "gzip"): [(None, every), (np.array([406]), np.array([-1], "f4"))]},
        trust=True,
    )
    with h5py.File(draft) as file:
        found = file["k/gzip"][...].reshape(-1)
    assert found.tolist() == [*range(406), -1]


def test_only_chunks_with_edited_elements_are_stored_again(
    every_kind: Path, tmp_path: Path
) -> None:
    draft = tmp_path / "draft.h5"
    shutil.copy(every_kind, draft)

    def stored() -> dict[Any, bytes]:
        with h5py.File(draft) as file:
            data = file["k/chunked"].id
            infos = [data.get_chunk_info(i) for i in range(data.get_num_chunks())]
            return {i.chunk_offset: data.read_direct_chunk(i.chunk_offset)[1] for i in infos}

    def run(indices: list[int]) -> int:
        fd = os.open(draft, os.O_RDWR)
        window = Window(fd, 0, draft.stat().st_size, writable=True)
        path = f"{draft}:k/chunked"
        part = hdf5_edit._Part(path, np.array(indices), np.full(len(indices), 5, "f4"))
        pieces = iter(part())
        job = {"verb": "overwrite", "edits": [{"path": ["k", "chunked"], "sparse": True}]}
        answer = perform([window], job, Inbox(lambda: next(pieces, b"")))
        os.close(fd)
        return int(answer["done"])

    before = stored()
    assert run([0, 1, 12, 24 * 11 + 10]) == 2
    after = stored()
    assert {at for at in before if before[at] != after[at]} == {(0, 0), (20, 8)}


LAYOUTS = st.fixed_dictionaries(
    {
        "shape": st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
        "dtype": st.sampled_from(["f2", "f4", ">f4", "f8", "i1", "u2", ">i8", "c8", "?"]),
        "filter": st.sampled_from(["", "gzip", "lzf", "szip", "shuffle", "fletcher32", "compact"]),
        "libver": st.sampled_from(["earliest", "v108", "latest"]),
        "chunk": st.integers(1, 6),
        "seed": st.integers(0, 1000),
        "missing": st.booleans(),
    }
)


@settings(max_examples=80, deadline=None)
@given(layout=LAYOUTS)
def test_any_edit_of_any_layout_changes_what_it_names(
    layout: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path, draft = folder / "m.h5", folder / "draft.h5"
    random = np.random.default_rng(layout["seed"])
    shape, dtype = layout["shape"], np.dtype(layout["dtype"])
    values = random.integers(0, 2, shape) * random.integers(1, 120, shape)
    values = values.astype(dtype)
    chunks = tuple(min(n, layout["chunk"]) for n in shape)
    if layout["filter"] == "szip" and (np.prod(chunks) < 8 or dtype.kind in "c?"):  # its block
        layout = {**layout, "filter": "gzip"}
    with h5py.File(path, "w", libver=layout["libver"]) as file:
        file["before"] = np.arange(50.0)
        kind = layout["filter"]
        if kind == "compact":
            compact(file, "w", values)
        else:
            how = {kind: True} if kind in ("shuffle", "fletcher32") else {"compression": kind}
            how = how if kind else {}
            data = file.create_dataset(
                "w", shape, dtype, chunks=chunks, fillvalue=np.zeros((), dtype)[()], **how
            )
            if layout["missing"]:
                values[1:] = 0
                data[:1] = values[:1]
            else:
                data[...] = values
        file.create_dataset("behind", data=np.arange(50.0), chunks=(7,), compression="gzip")
    shutil.copy(path, draft)
    count = random.integers(1, values.size + 1)
    indices = np.sort(random.choice(values.size, count, replace=False))
    whole = count == values.size and bool(layout["seed"] % 2)
    new = random.integers(0, 120, count).astype(dtype)
    chosen = None if whole else indices
    overwrite(draft, {("w",): [(chosen, new.astype(dtype.newbyteorder("=")))]}, trust=True)
    expected = values.reshape(-1).copy()
    expected[indices] = new
    with h5py.File(draft) as file:
        assert file["w"][...].tobytes() == expected.tobytes()
        assert file["w"].dtype == dtype
    assert changed(contents(path), contents(draft)) <= {"w"}
    assert same(path, draft, {("w",): chosen}, trust=True) == ("", 3)
    really = np.flatnonzero(values.reshape(-1) != expected)
    difference = same(path, draft, {}, trust=True)[0]
    if really.size:
        assert difference.startswith("'w' holds other values, the first at element ")
    else:
        assert difference == ""


@pytest.mark.parametrize("pieces", [1, 7, 64], ids="pieces of {}".format)
def test_edits_longer_than_a_piece_are_complete(
    every_kind: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    monkeypatch.setattr(hdf5_edit, "PIECE", pieces)
    monkeypatch.setattr(hdf5_edit_values, "PIECE", pieces)
    draft = tmp_path / "draft.h5"
    shutil.copy(every_kind, draft)
    indices = np.arange(0, 407, 3)
    new = np.arange(indices.size).astype("f4")
    overwrite(draft, {("k", "gzip"): [(indices, new)]}, trust=True)
    with h5py.File(draft) as file:
        assert file["k/gzip"][...].reshape(-1)[::3].tolist() == new.tolist()
    assert same(every_kind, draft, {("k", "gzip"): indices}, trust=True)[0] == ""


def test_bands_of_chunks_beyond_the_largest_block_are_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptdoctor.containers import hdf5_blocks

    monkeypatch.setattr(hdf5_blocks, "CHUNK_BYTES", 64)
    path, draft = tmp_path / "m.h5", tmp_path / "draft.h5"
    values = np.arange(8 * 30, dtype="f4").reshape(8, 30)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=values, chunks=(3, 4), compression="gzip")
    for chosen in (None, np.array([0, 29, 30, 95, 239])):
        shutil.copy(path, draft)
        new = -np.arange(240 if chosen is None else len(chosen)).astype("f4")
        overwrite(draft, {("w",): [(chosen, new)]}, trust=True)
        with h5py.File(draft) as file:
            found = file["w"][...].reshape(-1)
        assert (found if chosen is None else found[chosen]).tolist() == new.tolist()
        assert same(path, draft, {("w",): chosen}, trust=True)[0] == ""


def test_a_filter_that_is_skipped_for_a_chunk_is_not_mistaken(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # szip gives up on some chunks, and a chunk that keeps its length keeps the wrong mark in HDF5
    base = {"dtype": "i1", "filter": "szip", "libver": "latest", "chunk": 3, "missing": True}
    check = test_any_edit_of_any_layout_changes_what_it_names.hypothesis.inner_test
    check(layout={**base, "shape": (2, 9, 8), "seed": 206}, tmp_path_factory=tmp_path_factory)
    other = {**base, "shape": (6, 6, 7), "seed": 544, "missing": False}
    check(layout=other, tmp_path_factory=tmp_path_factory)


@TRUST
@pytest.mark.parametrize(
    ("made", "new"),
    [
        ({"dtype": "f4", "scaleoffset": 2}, np.float32(1.2345)),
        ({"dtype": "i4", "scaleoffset": 3}, np.int32(1000)),
    ],
    ids=["decimal places of a float", "bits of an integer"],
)
def test_a_filter_that_would_lose_the_value_is_refused(
    tmp_path: Path, made: dict[str, Any], new: Any, trust: bool
) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=np.arange(8), chunks=(4,), **made)
    with pytest.raises(UnsupportedError, match=r"'w': its filters \(scaleoffset\) lose"):
        overwrite(path, {("w",): [(np.array([1]), np.array([new]))]}, trust=trust)


@pytest.mark.parametrize(
    ("path", "indices", "values", "error", "words"),
    [
        (("gone",), [0], [1.0], FormatError, "no object 'gone'"),
        (("w", "w"), [0], [1.0], FormatError, "no object 'w/w'"),
        (("g",), [0], [1.0], FormatError, "no dataset 'g'"),
        (("g", "."), [0], [1.0], FormatError, "no object 'g/.'"),
        (("g/w",), [0], [1.0], FormatError, "no object 'g/w'"),
        (("soft",), [0], [1.0], FormatError, "no object 'soft'"),
        (("ext", "x"), [0], [1.0], FormatError, "no object 'ext'"),
        (("w\0",), [0], [1.0], FormatError, "no object"),
        (("\ud800",), [0], [1.0], FormatError, "no object"),
        (("w",), [8], [1.0], UnsupportedError, "element 8 of 8"),
        (("w",), [-1], [1.0], UnsupportedError, "do not ascend"),
        (("w",), [3, 3], [1.0, 1.0], UnsupportedError, "do not ascend"),
        (("w",), [5, 3], [1.0, 1.0], UnsupportedError, "do not ascend"),
        (("w",), [4, 1], [1.0, 1.0], UnsupportedError, "do not ascend"),
        (("w",), [1], np.ones(1, "f4"), UnsupportedError, "elements of 8 bytes, not of 4"),
        (("w",), None, [1.0], UnsupportedError, "8 elements, 1 new values"),
        (("w",), [1, 2], [1.0], UsageError, "expected 2 new values, found 1"),
        (("text",), [0], [1.0], UnsupportedError, "cannot be changed"),
        (("elsewhere",), [0], [1.0], UnsupportedError, "external data"),
        (("virtual",), [0], [1.0], UnsupportedError, "virtual data"),
        (("null",), [0], [1.0], UnsupportedError, "element 0 of 0"),
    ],
    ids=lambda each: str(each)[:30] if isinstance(each, tuple | str) else "-",
)  # fmt: skip
def test_what_cannot_be_set_is_refused(
    tmp_path: Path, path: tuple[str, ...], indices: Any, values: Any, error: Any, words: str
) -> None:
    file_path = tmp_path / "m.h5"
    (tmp_path / "raw").write_bytes(bytes(64))
    with h5py.File(file_path, "w") as file:
        file.create_dataset("w", data=np.arange(8.0), chunks=(4,))
        file["g/w"] = np.arange(8.0)
        file["soft"] = h5py.SoftLink("/w")
        file["ext"] = h5py.ExternalLink("other.h5", "/")
        file["text"] = "abc"
        file["null"] = h5py.Empty("f8")
        file.create_dataset("elsewhere", (8,), "f8", external=[(str(tmp_path / "raw"), 0, 64)])
        layout = h5py.VirtualLayout((8,), "f8")
        layout[:] = h5py.VirtualSource("other.h5", "x", (8,))
        file.create_virtual_dataset("virtual", layout)
    chosen = None if indices is None else np.array(indices)
    with pytest.raises(error, match=words):
        overwrite(file_path, {path: [(chosen, np.asarray(values))]}, trust=True)
    assert (tmp_path / "raw").read_bytes() == bytes(64)


def test_a_name_that_is_no_text_is_found_by_its_escape(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(b"a\xff", data=np.arange(8.0), chunks=(4,))
        file.create_dataset("b", data=np.arange(8.0), chunks=(4,))
    overwrite(path, {("a\\xff",): [(np.array([2]), np.array([9.0]))]}, trust=True)
    with h5py.File(path) as file:
        assert file[b"a\xff"][2] == 9
        assert file["b"][2] == 2


@TRUST
def test_a_user_block_and_a_tail_stay(tmp_path: Path, trust: bool) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", userblock_size=1024) as file:
        file.create_dataset("w", data=np.zeros(5000), chunks=(1000,), compression="gzip")
        file.create_dataset("optimizer/w", data=np.zeros(500))
    block, tail = RANDOM.bytes(1024), RANDOM.bytes(1 << 20) + b"the end"
    data = path.read_bytes()
    path.write_bytes(block + data[1024:] + tail)
    draft, output = tmp_path / "draft.h5", tmp_path / "out.h5"
    shutil.copy(path, draft)
    overwrite(draft, {("w",): [(None, RANDOM.standard_normal(5000))]}, trust=trust)
    remove(draft, output, ["optimizer"], trust=trust)
    for written in (draft, output):
        assert written.read_bytes()[:1024] == block
        assert written.read_bytes().endswith(tail)
    assert same(path, draft, {("w",): None}, trust=trust) == ("", 2)
    assert same(draft, output, {}, ["optimizer"], trust=trust) == ("", 1)
    assert draft.stat().st_size > path.stat().st_size + 20000
    assert output.stat().st_size < draft.stat().st_size


# --- failures -------------------------------------------------------------------------------------


def filled(path: Path, **how: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=np.zeros(50000), chunks=(1000,), compression="gzip", **how)
        file.attrs["training_config"] = '{"optimizer": {"config": {"lr": 0.1}}}'
    return path


@POSIX
def test_a_full_disk_is_a_write_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "m.h5")
    monkeypatch.setattr(hdf5_edit, "SLACK", -2 * path.stat().st_size - 800000 + 100000)
    with pytest.raises(WriteError, match="cannot be written: File too large; nothing was changed"):
        overwrite(path, {("w",): [(None, RANDOM.standard_normal(50000).astype("f8"))]})


@POSIX
@pytest.mark.parametrize("job", ["overwrite", "remove", "set_attribute"])
def test_a_full_disk_in_this_process_is_a_write_error(tmp_path: Path, job: str) -> None:
    path = filled(tmp_path / "m.h5")
    code = (
        "import resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from ckptdoctor.containers.hdf5_edit import overwrite, remove, set_attribute\n"
        "from ckptdoctor.errors import WriteError\n"
        "path = Path(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n"
        "    if sys.argv[3] == 'overwrite':\n"
        "        overwrite(path, {('w',): [(None, np.random.default_rng(1).random(50000))]},"
        " trust=True)\n"
        "    elif sys.argv[3] == 'remove':\n"
        "        remove(path, Path(str(path) + '.out'), [], trust=True)\n"
        "    else:\n"
        "        set_attribute(path, '', 'training_config', 'x' * 100000, trust=True)\n"
        "except WriteError as error:\n"
        "    print(error.message)\n"
    )
    limit = path.stat().st_size // 2 if job == "remove" else path.stat().st_size + 10000
    argv = [sys.executable, "-c", code, str(path), str(limit), job]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout == "cannot be written: File too large; nothing was changed\n"
    assert done.returncode == 0
    assert done.stderr == ""


@POSIX
@pytest.mark.parametrize(
    ("boot", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended"),
        ("import os; os.kill(os.getpid(), 11)", "ended"),
        ("raise SystemExit(3)", "ended"),
        ("print('{]')", "answered nonsense"),
        ("print('[]')", "answered nonsense"),
        ("print('{\"error\": 3}')", "answered nonsense"),
        ("print('[' * 100000)", "answered nonsense"),
        ("while True: print('x' * 1000)", "answered nonsense"),
        ("import time; time.sleep(60)", "took too long"),
    ],
)
def test_a_process_that_is_lost_is_a_write_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, words: str
) -> None:
    path = filled(tmp_path / "m.h5")
    monkeypatch.setattr(hdf5_edit_process, "BOOT", boot)
    monkeypatch.setattr(hdf5_edit_process, "SECONDS", 0.3 if "sleep" in boot else 20)
    before = path.read_bytes()
    with pytest.raises(WriteError, match=f"the HDF5 writer process {words}; nothing"):
        overwrite(path, {("w",): [(np.array([0]), np.zeros(1))]})
    with pytest.raises(FormatError, match=f"the HDF5 process that compares {words}"):
        same(path, path, {})
    assert path.read_bytes() == before


def test_an_interpreter_that_cannot_start_is_a_write_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "m.h5")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(WriteError, match="could not be started"):
        set_attribute(path, "", "training_config", "{}")


def test_making_values_takes_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    path = filled(tmp_path / "m.h5")
    monkeypatch.setattr(hdf5_edit_process, "SECONDS", 2.0)

    def slow() -> np.ndarray:
        time.sleep(2.5)
        return np.ones(50000)

    overwrite(path, {("w",): [(None, slow)]})
    with h5py.File(path) as file:
        assert (file["w"][...] == 1).all()


def test_a_fault_of_the_caller_s_values_is_raised_and_ends_the_process(tmp_path: Path) -> None:
    path = filled(tmp_path / "m.h5")

    def broken() -> np.ndarray:
        raise KeyError("mine")

    for trust in (False, True):
        with pytest.raises(KeyError, match="mine"):
            overwrite(path, {("w",): [(None, broken)]}, trust=trust)


@TRUST
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda data: data[:0], FormatError),
        (lambda data: data[:-100], TruncatedError),
        (lambda data: data[:96] + bytes(len(data) - 96), FormatError),
        (lambda data: data.replace(b"TREE", b"EERT"), FormatError),
    ],
    ids=["nothing", "cut off", "zeros", "no index"],
)
def test_a_damaged_draft_is_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes], error: Any, trust: bool
) -> None:
    path = filled(tmp_path / "m.h5")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(error):
        overwrite(path, {("w",): [(np.array([1]), np.ones(1))]}, trust=trust)
    with pytest.raises(error):
        remove(path, tmp_path / "out.h5", [], trust=trust)


def test_damage_anywhere_is_an_error_or_an_edit(tmp_path: Path) -> None:
    path = filled(tmp_path / "m.h5", track_times=True)
    whole = path.read_bytes()
    for offset in RANDOM.integers(0, 4000, 60).tolist():
        data = bytearray(whole)
        data[offset] ^= 0xFF
        path.write_bytes(data)
        try:
            overwrite(path, {("w",): [(np.array([1]), np.ones(1))]}, trust=True)
            same(path, path, {}, trust=True)
        except CkptDoctorError:
            continue


def test_a_missing_draft_and_a_missing_folder_are_write_errors(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot be opened: No such file"):
        overwrite(tmp_path / "gone.h5", {})
    path = filled(tmp_path / "m.h5")
    with pytest.raises(WriteError, match="cannot be opened: No such file"):
        remove(path, tmp_path / "gone" / "out.h5", [])


def test_a_window_that_is_let_go_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"abcdef")
    with path.open("r+b") as file:
        window = Window(file.fileno(), 0, 6, writable=True)
        buffer = bytearray(b"zzzzzzzz")
        window.seek(2)
        assert window.readinto(memoryview(buffer)) == 4
        assert buffer == b"cdef\0\0\0\0", "what is not there is zero, not what lay in memory"
        window.release()
        window.seek(0)
        window.write(memoryview(b"xyz"))
        window.truncate(1)
        window.seek(0)
        assert window.readinto(memoryview(buffer)) == 0
        assert buffer == bytes(8)
        window.check()
    assert path.read_bytes() == b"abcdef"


def test_a_window_for_reading_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"abcdef")
    with path.open("r+b") as file:
        window = Window(file.fileno(), 0, 6)
        window.write(memoryview(b"xyz"))
        window.truncate(1)
        with pytest.raises(Declined, match="opened for reading"):
            window.check()
    assert path.read_bytes() == b"abcdef"


def test_writing_stops_at_the_first_failure(tmp_path: Path, monkeypatch: Any) -> None:
    path = filled(tmp_path / "m.h5")
    calls: list[int] = []

    def full(_fd: int, offset: int, _data: memoryview) -> int:
        calls.append(offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hdf5_edit_window, "_write_at", full)
    changes = [(np.array([i * 1000]), np.ones(1)) for i in range(50)]
    with pytest.raises(WriteError, match="No space left on device"):
        overwrite(path, {("w",): changes}, trust=True)
    assert len(calls) == 1


def test_handles_that_are_left_open_write_to_no_other_file(tmp_path: Path) -> None:
    path = filled(tmp_path / "m.h5")
    for _ in range(3):
        with pytest.raises(FormatError):
            overwrite(
                path,
                {("w",): [(np.array([1]), np.ones(1))], ("gone",): [(None, np.ones(1))]},
                trust=True,
            )
        others = [(tmp_path / f"{i}").open("w+b") for i in range(6)]  # takes the descriptors
        gc.collect()
        for file in others:
            assert file.seek(0, 2) == 0
            file.close()


@POSIX
@pytest.mark.parametrize(
    "attempt",
    ["open(sys.argv[1], 'rb')", "os.open('/etc/passwd', 0)", "bytearray(2 << 30)",
     "os.write(os.memfd_create('x'), b'x')", "os.pipe()", "os.pwrite(0, b'x', 4096)"],
    ids=["file", "passwd", "2 GiB", "memory file", "pipe", "beyond the limit"],
)  # fmt: skip
def test_the_child_cannot(tmp_path: Path, attempt: str) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(b"")
    code = (
        "import os, sys; sys.path[:] = sys.argv[2:]\n"
        "from ckptdoctor.containers import hdf5_edit_worker as worker\n"
        "worker.give_up_rights(4096, 640 << 20)\n"
        f"try:\n    {attempt}\nexcept (OSError, MemoryError) as e:\n    print('denied')\n"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(path), *hdf5_process._search_path()]
    with path.open("r+b") as file:
        done = subprocess.run(argv, stdin=file, capture_output=True, text=True, check=False)
    assert done.stdout == "denied\n"
    assert path.read_bytes() == b""


# --- leaving out groups ---------------------------------------------------------------------------


def furnished(path: Path, **how: Any) -> Path:
    """A file with one of everything that has to survive."""
    values = RANDOM.standard_normal((20, 10)).astype("f4")
    with h5py.File(path, "w", **how) as file:
        file.attrs["layer_names"] = np.array([b"dense", b"bn"])
        file.attrs["text"] = "as it was, \u00e9"
        file.attrs["empty"] = h5py.Empty("f4")
        file.attrs["record"] = np.array([(1, b"x")], [("a", "i4"), ("b", "S3")])
        file.attrs["lists"] = np.array([np.arange(3), np.arange(2)], dtype=object).astype(
            h5py.vlen_dtype("i4")
        )
        dense = file.create_group("model/dense", track_order=True)
        dense.attrs["weight_names"] = [b"kernel", b"bias"]
        kernel = dense.create_dataset(
            "kernel", data=values, chunks=(7, 4), compression="gzip", shuffle=True,
            maxshape=(None, 10), fillvalue=3, track_times=False,
        )  # fmt: skip
        kernel.attrs["unit"] = "none"
        dense["bias"] = values[0]
        dense["again"] = kernel
        dense["again_bias"] = h5py.SoftLink("bias")
        dense["a"] = np.float64(2)
        file["model/outside"] = h5py.ExternalLink("other.h5", "/x")
        file["model/soft"] = h5py.SoftLink("/model/gone")
        file["model/\u00e9"] = h5py.SoftLink("/model/gone")
        file["model/shared"] = file["model/dense"]
        file["model/strings"] = ["a", "bcd"]
        file["model/null"] = h5py.Empty("f4")
        file.create_dataset("model/unwritten", (100,), "f4", chunks=(10,), fillvalue=7)
        file.create_dataset("model/elsewhere", (5,), "f4", external=[("raw", 0, 20)])
        layout = h5py.VirtualLayout((8,), "f8")
        layout[:] = h5py.VirtualSource("other.h5", "x", (8,))
        file.create_virtual_dataset("model/virtual", layout)
        file["optimizer/moments"] = np.zeros(100000, "f4")
        file["optimizer/kernel"] = kernel
        file["optimizer"].attrs["x"] = 1
        file["model"].id.set_comment(b".", b"a comment")
    return path


LIBVER = pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])


@LIBVER
@TRUST
def test_all_but_the_group_is_there(tmp_path: Path, libver: str, trust: bool) -> None:
    path = furnished(tmp_path / "m.h5", libver=libver, track_order=True)
    output = tmp_path / "out.h5"
    before = path.read_bytes()
    remove(path, output, ["optimizer"], trust=trust)
    assert path.read_bytes() == before
    assert same(path, output, {}, ["optimizer"], trust=trust) == ("", 8)
    assert len(before) - 450000 < output.stat().st_size < len(before) - 390000
    assert output.read_bytes()[8] == before[8], "version of the superblock"
    with h5py.File(path) as old, h5py.File(output) as new:
        assert [*new] == ["model"]
        assert [*new.attrs] == [*old.attrs]
        assert [*new["model/dense"]] == ["kernel", "bias", "again", "again_bias", "a"]
        assert new["model/dense/again"] == new["model/dense/kernel"]
        assert new["model/shared"] == new["model/dense"]
        assert new["model"].get("outside", getlink=True).filename == "other.h5"
        assert new["model"].get("soft", getlink=True).path == "/model/gone"
        assert new["model"].id.get_comment(b".") == b"a comment"
        kernel = new["model/dense/kernel"]
        assert kernel.chunks == (7, 4)
        assert kernel.compression == "gzip"
        assert kernel.shuffle
        assert kernel.fillvalue == 3
        assert kernel.maxshape == (None, 10)
        assert kernel[...].tobytes() == old["model/dense/kernel"][...].tobytes()
        assert new["model/elsewhere"].external == [("raw", 0, 20)]
        assert new["model/virtual"].virtual_sources()[0].file_name == "other.h5"
        assert new["model/strings"][1] == b"bcd"


def test_a_group_inside_another_can_go(tmp_path: Path) -> None:
    path, output = furnished(tmp_path / "m.h5"), tmp_path / "out.h5"
    remove(path, output, ["model/dense", "optimizer/moments"], trust=True)
    with h5py.File(output) as file:
        assert "model/dense/kernel" not in file
        assert "model/shared/kernel" in file, "its second name"
        assert [*file["optimizer"]] == ["kernel"]
    assert same(path, output, {}, ["model/dense", "optimizer/moments"], trust=True)[0] == ""
    assert same(path, output, {}, ["model/dense"], trust=True)[0] == (
        "'optimizer/moments' is not there any more"
    )


def test_members_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    path, output = tmp_path / "m.h5", tmp_path / "out.h5"
    names = ["zeta", "alpha", "mid"]
    with h5py.File(path, "w") as file:
        for name in names:
            file[name] = np.zeros(5000)
    remove(path, output, [], trust=True)
    with h5py.File(output) as file:
        offsets = [file[name].id.get_offset() for name in names]
    assert offsets == sorted(offsets)


def test_an_output_that_exists_is_replaced(tmp_path: Path) -> None:
    path, output = furnished(tmp_path / "m.h5"), tmp_path / "out.h5"
    output.write_bytes(bytes(1 << 20))
    remove(path, output, ["optimizer"], trust=True)
    assert same(path, output, {}, ["optimizer"], trust=True)[0] == ""
    assert output.stat().st_size < 1 << 20


@pytest.mark.parametrize("kind", ["reference", "scale", "stored type", "region"])
def test_what_refers_to_other_objects_is_not_moved(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.arange(4.0)
        if kind == "reference":
            file.create_dataset("r", (1,), h5py.ref_dtype)[0] = file["w"].ref
        elif kind == "region":
            file.create_dataset("r", (1,), h5py.regionref_dtype)[0] = file["w"].regionref[1:2]
        elif kind == "scale":
            file["w"].make_scale("x")
            file["x"] = np.arange(4.0)
            file["x"].dims[0].attach_scale(file["w"])
        else:
            file["type"] = np.dtype("f4")
            file.create_dataset("x", (3,), file["type"])
    with pytest.raises(UnsupportedError, match="refers to other objects: cannot be moved"):
        remove(path, tmp_path / "out.h5", [], trust=True)
    # In place nothing moves.
    draft = tmp_path / "draft.h5"
    shutil.copy(path, draft)
    overwrite(draft, {("w",): [(np.array([0]), np.array([5.0]))]}, trust=True)
    assert same(path, draft, {("w",): np.array([0])}, trust=True)[0] == ""


# --- attributes and numbers -----------------------------------------------------------------------


def with_attribute(path: Path, kind: str, text: str) -> Path:
    big = kind == "dense"
    with h5py.File(path, "w", libver="latest" if big else "earliest") as file:
        file["w"] = np.arange(4.0)
        file.attrs["before"] = 1
        owner = file.create_group("g") if big else file
        if kind == "vlen":
            owner.attrs["config"] = text
        elif kind == "ascii":
            owner.attrs.create("config", text, dtype=h5py.string_dtype("ascii"))
        elif kind == "one of a list":
            owner.attrs["config"] = [text]
        else:
            stored = h5t.C_S1.copy()
            stored.set_size(len(text.encode()) + (kind == "nullterm"))
            pads = {"nullterm": h5t.STR_NULLTERM, "spaces": h5t.STR_SPACEPAD}
            stored.set_strpad(pads.get(kind, h5t.STR_NULLPAD))
            attribute = h5a.create(owner.id, b"config", stored, h5s.create(h5s.SCALAR))
            data = text.encode().ljust(stored.get_size(), b"\0")
            attribute.write(np.array(data, f"V{len(data)}"), stored)
        file.attrs["behind"] = "b"
    return path


@TRUST
@pytest.mark.parametrize(
    "new", ["[1, 2, 3]", "[4]", '["longer \u00e9"]'], ids=["as long", "shorter", "longer"]
)
@pytest.mark.parametrize(
    "kind", ["vlen", "ascii", "one of a list", "nullpad", "nullterm", "spaces"]
)  # fmt: skip
def test_an_attribute_keeps_its_kind(tmp_path: Path, kind: str, new: str, trust: bool) -> None:
    path = with_attribute(tmp_path / "m.h5", kind, "[1, 2, 9]")
    draft = tmp_path / "draft.h5"
    shutil.copy(path, draft)
    set_attribute(draft, "", "config", new, trust=trust)
    with h5py.File(path) as old, h5py.File(draft) as file:
        first, second = (h5a.open(each.id, b"config").get_type() for each in (old, file))
        value = np.asarray(file.attrs["config"]).reshape(-1)[0]
        value = value.decode() if isinstance(value, bytes) else str(value)
        assert json.loads(value) == json.loads(new)
        assert value.rstrip(" ") == new
        assert first.get_cset() == second.get_cset()
        assert first.is_variable_str() == second.is_variable_str()
        if not first.is_variable_str():
            assert first.get_strpad() == second.get_strpad()
            needed = len(new.encode()) + (kind == "nullterm")
            assert second.get_size() == max(first.get_size(), needed)
    skipped = [("", "config")]
    difference = same(path, draft, {}, attributes=skipped, trust=trust)
    assert difference == ("", 1)
    assert "config" in same(path, draft, {}, trust=trust)[0]


@TRUST
def test_an_attribute_too_large_for_a_header_is_replaced(tmp_path: Path, trust: bool) -> None:
    text = json.dumps({"a": "x" * 100_000, "n": 1})
    path = with_attribute(tmp_path / "m.h5", "dense", text)
    for new in (with_number(text, "n", 2), with_number(text, "n", 12345)):
        set_attribute(path, "g", "config", new, trust=trust)
        with h5py.File(path) as file:
            assert file["g"].attrs["config"] == new.encode()


@pytest.mark.parametrize(
    ("group", "name", "text", "error"),
    [
        ("", "gone", "x", FormatError), ("gone", "config", "x", FormatError),
        ("", "number", "x", UnsupportedError), ("", "list", "x", UnsupportedError),
        ("", "bytes", "x", UnsupportedError), ("", "text", "a\0b", UnsupportedError),
    ],
)  # fmt: skip
def test_what_is_no_text_is_not_replaced(
    tmp_path: Path, group: str, name: str, text: str, error: Any
) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.attrs["number"] = 3
        file.attrs["list"] = ["a", "b"]
        file.attrs["bytes"] = np.bytes_(b"\xff\xfe")
        file.attrs["text"] = "x"
    with pytest.raises(error):
        set_attribute(path, group, name, text, trust=True)


@TRUST
def test_a_number_of_the_configuration_is_replaced(tmp_path: Path, trust: bool) -> None:
    path = filled(tmp_path / "m.h5")
    set_number(path, "training_config/optimizer/config/lr", 0.5, trust=trust)
    with h5py.File(path) as file:
        assert file.attrs["training_config"] == '{"optimizer": {"config": {"lr": 0.5}}}'
    for name in ("training_config/optimizer/lr", "model_config/optimizer/config/lr"):
        with pytest.raises(UsageError):
            set_number(path, name, 0.5, trust=trust)


# --- oracle ---------------------------------------------------------------------------------------


def compressed(path: Path, target: Path) -> None:
    """Write a Keras file anew with chunks and compression."""
    with h5py.File(path) as old, h5py.File(target, "w") as new:

        def copy(name: str, thing: Any) -> None:
            if isinstance(thing, h5py.Dataset):
                how = {"chunks": True, "compression": "gzip", "shuffle": True}
                new.create_dataset(name, data=thing[()], **(how if thing.shape else {}))
            else:
                new.require_group(name)
            for key, value in thing.attrs.items():
                new[name].attrs[key] = value

        old.visititems(copy)
        for key, value in old.attrs.items():
            new.attrs[key] = value


@pytest.fixture(scope="module")
def keras_model() -> Any:
    keras = pytest.importorskip("keras")
    model = keras.Sequential(
        [keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv"),
         keras.layers.BatchNormalization(name="bn"), keras.layers.Flatten(),
         keras.layers.Dense(2, name="head")]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(0.01), keras.losses.MeanSquaredError())
    model.train_on_batch(np.zeros((2, 8, 8, 3), "f4"), np.zeros((2, 2), "f4"))
    return model


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@TRUST
def test_keras_loads_an_edited_compressed_model(
    tmp_path: Path, keras_model: Any, trust: bool
) -> None:
    import keras

    plain, path, draft = tmp_path / "plain.h5", tmp_path / "m.h5", tmp_path / "draft.h5"
    keras_model.save(plain)
    compressed(plain, path)
    shutil.copy(path, draft)
    with KerasH5().read(FileSource(path), ReadOptions(trust_hdf5=True)) as table:
        info = next(i for n, i in table.items() if n.endswith("moving_variance"))
        number = next(n for n in table.scalars if n.endswith("epsilon"))
        rate = next(i for n, i in table.items() if n.endswith("/learning_rate"))
    new = np.array([2.5, 3.5], "f4")
    # Keras keeps the learning rate as a variable, which counts, beside the configuration's.
    edits = {info.path: [(np.array([1, 2]), new)], rate.path: [(None, np.array(0.125, "f4"))]}
    overwrite(draft, edits, trust=trust)
    set_number(draft, number, 0.25, trust=trust)
    edited = {info.path: np.array([1, 2]), rate.path: None}
    skipped = [("", "training_config")]
    assert same(path, draft, edited, attributes=skipped, trust=trust)[0] == ""
    loaded = keras.models.load_model(draft)
    for old, weight in zip(keras_model.weights, loaded.weights, strict=True):
        expected = np.array(old)
        if weight.path.endswith("bn/moving_variance"):
            expected[[1, 2]] = new
        assert np.array_equal(np.asarray(weight), expected)
    assert float(loaded.optimizer.learning_rate) == 0.125
    assert loaded.optimizer.epsilon == 0.25

    output = tmp_path / "out.h5"
    remove(draft, output, ["optimizer_weights"], trust=trust)
    served = keras.models.load_model(output)
    for old, weight in zip(loaded.weights, served.weights, strict=True):
        assert np.array_equal(np.asarray(weight), np.asarray(old))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_keras_loads_weights_without_their_optimizer(tmp_path: Path, keras_model: Any) -> None:
    import keras

    path, output = tmp_path / "m.weights.h5", tmp_path / "out.weights.h5"
    keras_model.save_weights(path)
    remove(path, output, ["optimizer"])
    other = keras.models.clone_model(keras_model)
    other.load_weights(output)
    for old, weight in zip(keras_model.weights, other.weights, strict=True):
        assert np.array_equal(np.asarray(weight), np.asarray(old))


def test_the_libraries_of_the_file_stay_out_of_the_parent() -> None:
    code = (
        "import sys, ckptdoctor.containers.hdf5_edit, ckptdoctor.containers.hdf5_same\n"
        "print([m for m in ('h5py', 'subprocess', 'tempfile') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
