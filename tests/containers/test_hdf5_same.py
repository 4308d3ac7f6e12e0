"""Two HDF5 files compared: every difference is found, and none is made up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from ckptdoctor.containers.hdf5_edit import overwrite, remove
from ckptdoctor.containers.hdf5_same import same
from ckptdoctor.errors import (
    FormatError,
)
from ckptdoctor.sources import FileSource, WindowSource

RANDOM = np.random.default_rng(6)


def _set(path: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[path][...] = value

    return change


def _attribute(path: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[path].attrs[name]
        file[path].attrs[name] = value

    return change


def _relink(path: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        made = value(file) if callable(value) else value
        if path in file or file.get(path, getlink=True) is not None:
            del file[path]
        if made is not None:
            file[path] = made

    return change


def _remade(**how: Any) -> Callable[[h5py.File], None]:
    base = {"chunks": (7, 4), "compression": "gzip", "shuffle": True, "maxshape": (None, 10),
            "fillvalue": 3, "dtype": "f4"}  # fmt: skip

    def change(file: h5py.File) -> None:
        data = file["w/chunked"][...]
        del file["w/chunked"]
        made = file.create_dataset("w/chunked", data=data, **{**base, **how})
        made.attrs["unit"] = "none"

    return change


def _group_instead(file: h5py.File) -> None:
    del file["w/zero"]
    file.create_group("w/zero")


def _filled_never(file: h5py.File) -> None:
    old = file["w/chunked"]
    plist = old.id.get_create_plist()
    plist.set_fill_time(h5d.FILL_TIME_NEVER)
    made = h5d.create(file["w"].id, b"made", old.id.get_type(), old.id.get_space(), plist)
    made.write(h5s.ALL, h5s.ALL, old[...])
    del made
    file["w/made"].attrs["unit"] = "none"
    del file["w/chunked"]
    file.move("w/made", "w/chunked")


DIFFERENCES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "nothing": (lambda file: file.flush(), ""),
    "the same again": (_remade(), ""),
    "value": (_set("w/plain", np.full((20, 10), 2.0)), "'w/plain' holds other values"),
    "sign of zero": (_set("w/zero", -0.0), "'w/zero' holds other values, the first at element 0"),
    "payload of a NaN": (
        lambda file: file["w/nan"].write_direct(np.array([0x7FC00001], "u4").view("f4")),
        "'w/nan' holds other values",
    ),
    "chunked value": (_set("w/chunked", 9.0), "'w/chunked' holds other values"),
    "string": (_set("w/text", ["a", "c"]), "'w/text' holds other values"),
    "list": (_set("w/lists", [[1.0], [2.0]]), "'w/lists' holds other values"),
    "attribute": (_attribute("w/chunked", "unit", "m"), "'w/chunked' has another attribute 'unit'"),
    "attribute's type": (_attribute("w", "n", np.float64(1)), "'w' has another attribute 'n'"),
    "attribute's shape": (_attribute("w", "n", np.ones(1, "f4")), "'w' has another attribute 'n'"),
    "attribute's number": (_attribute("w", "n", np.float32(2)), "'w' has another attribute 'n'"),
    "lost attribute": (lambda file: file["w"].attrs.__delitem__("n"), "'w' lost the attribute 'n'"),
    "new attribute": (lambda file: file["w"].attrs.__setitem__("m", 1),
                      "'w' gained the attribute 'm'"),
    "lost dataset": (_relink("w/plain", None), "'w/plain' is not there any more"),
    "new dataset": (_relink("w/new", 1), "'w/new' was not there before"),
    "dtype": (_remade(dtype="f8"), "'w/chunked' is of another type"),
    "byte order": (_remade(dtype=">f4"), "'w/chunked' is of another type"),
    "chunks": (_remade(chunks=(5, 4)), "'w/chunked' has other chunks"),
    "no chunks": (_remade(chunks=None, compression=None, shuffle=None, maxshape=None),
                  "'w/chunked' is laid out otherwise"),
    "filter": (_remade(compression="lzf"), "'w/chunked' has other filters"),
    "level": (_remade(compression_opts=9), "'w/chunked' has other filters"),
    "fill value": (_remade(fillvalue=4), "'w/chunked' was made with other properties"),
    "fill time": (_filled_never, "'w/chunked' was made with other properties"),
    "largest shape": (_remade(maxshape=(None, None)), "'w/chunked' has another shape"),
    "shape": (lambda file: file["w/chunked"].resize((21, 10)), "'w/chunked' has another shape"),
    "soft link": (_relink("soft", h5py.SoftLink("/b")), "'soft' leads elsewhere"),
    "kind of link": (_relink("soft", h5py.ExternalLink("a", "/a")), "'soft' is another kind of link"),
    "external link": (_relink("ext", h5py.ExternalLink("b", "/a")), "'ext' leads elsewhere"),
    "split dataset": (_relink("w/second", lambda file: file["w/plain"][...]),
                      "'w/second' is no second name of the same object"),
    "joined datasets": (_relink("w/zero2", lambda file: file["w/zero"]), "'w/zero2' became a second"),
    "group for a dataset": (_group_instead, "'w/zero' is another kind of object"),
    "comment": (lambda file: file["w"].id.set_comment(b".", b"x"), "'w' has another comment"),
    "order": (_relink("w/ordered/a", 1), "'w/ordered' has its members in another order"),
    "stored type": (_relink("type", np.dtype("f8")), "'type' is another type"),
    "reference": (lambda file: file["ref"].__setitem__(0, file["w/zero"].ref), "'ref' holds other"),
}  # fmt: skip


def comparable(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("w")
        group.attrs["n"] = np.float32(1)
        group["plain"] = np.ones((20, 10), "f4")
        group["second"] = group["plain"]
        group["zero"] = np.zeros(3)
        group["zero2"] = np.zeros(3)
        group["nan"] = np.array([np.nan], "f4")
        group["text"] = ["a", "b"]
        lists = group.create_dataset("lists", (2,), h5py.vlen_dtype("f8"))
        lists[0], lists[1] = [1.0, np.nan], [2.0]
        chunked = group.create_dataset(
            "chunked", data=RANDOM.standard_normal((20, 10)).astype("f4"), chunks=(7, 4),
            compression="gzip", shuffle=True, maxshape=(None, 10), fillvalue=3,
        )  # fmt: skip
        chunked.attrs["unit"] = "none"
        ordered = group.create_group("ordered", track_order=True)
        ordered["a"], ordered["b"] = 1, 1
        file["soft"] = h5py.SoftLink("/a")
        file["ext"] = h5py.ExternalLink("a", "/a")
        file["type"] = np.dtype("f4")
        file.create_dataset("ref", (1,), h5py.ref_dtype)[0] = group["plain"].ref
        file.create_dataset("never", (1 << 40,), "f4")
        file.create_dataset("hardly", (1 << 40,), "f4", chunks=(10,))[1 << 30] = 1
    return path


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_is_found_and_named(tmp_path: Path, name: str) -> None:
    change, words = DIFFERENCES[name]
    path, other = comparable(tmp_path / "m.h5"), tmp_path / "other.h5"
    shutil.copy(path, other)
    with h5py.File(other, "r+") as file:
        change(file)
    difference, count = same(path, other, {}, trust=True)
    assert difference.startswith(words)
    assert bool(difference) == bool(words)
    if not words:
        assert count == 12
    else:
        assert same(other, path, {}, trust=True)[0] != ""


def test_what_is_to_be_gone_must_be_gone(tmp_path: Path) -> None:
    path = comparable(tmp_path / "m.h5")
    assert same(path, path, {}, ["w"], trust=True)[0] == "'w' was not there before"


def test_a_dataset_is_edited_under_all_of_its_names(tmp_path: Path) -> None:
    path, draft = comparable(tmp_path / "m.h5"), tmp_path / "draft.h5"
    shutil.copy(path, draft)
    overwrite(draft, {("w", "second"): [(np.array([4]), np.array([9], "f4"))]}, trust=True)
    for name in ("second", "plain"):
        assert same(path, draft, {("w", name): np.array([4])}, trust=True)[0] == ""
        assert same(path, draft, {("w", name): np.array([3, 5])}, trust=True)[0] == (
            "'w/plain' holds other values, the first at element 4"
        )


def test_a_part_of_a_file_is_compared_in_place(tmp_path: Path) -> None:
    path = comparable(tmp_path / "m.h5")
    around = tmp_path / "around"
    data = path.read_bytes()
    around.write_bytes(b"x" * 700 + data + b"y" * 70)
    window = WindowSource("inner", FileSource(around), 700, len(data))
    for trust in (False, True):
        assert same(window, path, {}, trust=trust)[0] == ""


def test_chunks_that_nobody_here_decodes_are_compared_as_stored(tmp_path: Path) -> None:
    path, other = tmp_path / "m.h5", tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_chunk((4,))
        plist.set_filter(1, h5py.h5z.FLAG_OPTIONAL, (4,))
        made = h5d.create(file.id, b"w", h5t.NATIVE_FLOAT, h5s.create_simple((8,)), plist)
        for start in (0, 4):
            made.write_direct_chunk((start,), b"unknown bytes" + bytes([start]))
    data = path.read_bytes()
    # filter 1 (deflate) -> 307 (bzip2), which is no part of HDF5
    at = data.index(b"\x01\x00\x08\x00\x01\x00\x01\x00")
    data = data[:at] + (307).to_bytes(2, "little") + data[at + 2 :]
    path.write_bytes(data)
    other.write_bytes(data.replace(b"unknown bytes\4", b"unknown bytez\4"))
    assert same(path, path, {}, trust=True) == ("", 1)
    assert same(path, other, {}, trust=True)[0].startswith("'w' holds other values")
    output = tmp_path / "out.h5"
    remove(path, output, [], trust=True)
    assert same(path, output, {}, trust=True) == ("", 1)


def test_something_else_than_hdf5_cannot_be_compared(tmp_path: Path) -> None:
    path, other = comparable(tmp_path / "m.h5"), tmp_path / "other"
    other.write_bytes(b"no HDF5" * 100)
    for trust in (False, True):
        with pytest.raises(FormatError):
            same(path, other, {}, trust=trust)
