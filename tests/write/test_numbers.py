"""Numbers overwritten in pickles: which bytes, how they are read back, what is noticed."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import patients
import pytest
import torch_bytes as tb
import write_helpers as wh

from ckptdoctor.edits import NumberEdit, Removal
from ckptdoctor.errors import UnsupportedError, UsageError, WriteError
from ckptdoctor.formats import open_path
from ckptdoctor.tensors import TensorTable
from ckptdoctor.write.numbers import check_numbers, number_windows, stands_in_pickle

NAN, INF = float("nan"), float("inf")
HUGE = 10**400
WEIGHT = np.arange(4, dtype="f4")


def number(name: str, value: Any, before: Any = 0) -> NumberEdit:
    said = {"remedy": "test", "kind": "destructive", "cures": (), "title": "test"}
    return NumberEdit(name=name, before=before, value=value, **said)


def saved(path: Path, **numbers: Any) -> Path:
    """Torch zip with a tensor and some numbers."""
    return patients.save_torch(path, {"w": WEIGHT, **numbers})


def legacy(path: Path, **numbers: Any) -> Path:
    tree = {"w": tb.tensor(tb.storage("7", "FloatStorage", 4, None), (4,)), **numbers}
    path.write_bytes(tb.legacy(tree, {"7": (4, WEIGHT.tobytes())}))
    return path


def shared(path: Path) -> Path:
    """One pickled tuple under two names."""
    first = b"(" + tb.item(0.9) + tb.item(0.999) + b"tq\x01"
    value = b"}(" + tb.text("a") + first + tb.text("b") + b"h\x01" + tb.text("c") + tb.item(0.9)
    value += tb.text("w") + tb.tensor(tb.storage("0", "FloatStorage", 4), (4,)) + b"u"
    path.write_bytes(tb.archive(value, {"0": WEIGHT.tobytes()}))
    return path


def patched(path: Path, *edits: NumberEdit) -> tuple[bytes, bytes]:
    """The file, and the file with the windows in it; checksums are not looked after."""
    before = path.read_bytes()
    after = bytearray(before)
    with open_path(path) as table:
        for window in number_windows(table, edits).windows:
            stop = window.offset + len(window.old)
            assert bytes(after[window.offset : stop]) == window.old
            assert len(window.new) == len(window.old)
            after[window.offset : stop] = window.new
    return before, bytes(after)


def differing(before: bytes, after: bytes) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]


def str_of(value: Any) -> str:
    """Short name of a number for the names of tests."""
    return f"{value!r:.12}"


# --- where they stand -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [saved, legacy])
@pytest.mark.parametrize(
    ("now", "value", "raw"),
    [
        (0.5, 0.25, b"G" + struct.pack(">d", 0.25)),
        (0.5, -INF, b"G" + struct.pack(">d", -INF)),
        (3, 4, b"J" + struct.pack("<i", 4)),
        (3, -(2**31), b"J" + struct.pack("<i", -(2**31))),
        (3, 2**31 - 1, b"J" + struct.pack("<i", 2**31 - 1)),
    ],
)
def test_a_number_stands_where_its_opcode_is(
    tmp_path: Path, make: Any, now: Any, value: Any, raw: bytes
) -> None:
    path = make(tmp_path / "in", x=now, y=7.25)
    before, after = patched(path, number("x", value))
    at = before.index(tb.text("x")) + len(tb.text("x"))
    assert after[at : at + len(raw)] == raw
    assert set(differing(before, after)) <= set(range(at, at + len(raw)))
    assert differing(before, after)


@pytest.mark.parametrize("make", [saved, legacy])
def test_the_checksum_over_the_pickle_is_told_where_there_is_one(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path / "in", x=0.5)
    with open_path(path) as table:
        found = number_windows(table, [number("x", 0.25)])
        if make is legacy:
            assert found.checksums == ()
        else:
            (checksum,) = found.checksums
            (window,) = found.windows
            start = checksum.extent.offset
            assert start <= window.offset < start + checksum.extent.length
            with zipfile.ZipFile(path) as archive:
                info = archive.getinfo("archive/data.pkl")
                assert (checksum.crc32, checksum.extent.length) == (info.CRC, info.file_size)
        assert number_windows(table, []) == ((), ())


def test_nothing_to_set_reads_nothing() -> None:
    table = TensorTable.from_arrays({"w": WEIGHT}, {})
    assert number_windows(table, []) == ((), ())


@pytest.mark.parametrize(
    ("make", "stands"),
    [(saved, True), (legacy, True), (wh.torchscript, True), (wh.safetensors, False), (wh.npz, False)],
)  # fmt: skip
def test_numbers_stand_in_the_pickles_of_torch(tmp_path: Path, make: Any, stands: bool) -> None:
    make(tmp_path / "in")
    with open_path(tmp_path / "in") as table:
        assert stands_in_pickle(table) == stands


def test_a_deflated_pickle_has_no_place_for_numbers(tmp_path: Path) -> None:
    saved(tmp_path / "in", x=0.5)
    with zipfile.ZipFile(tmp_path / "in") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "in", "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)
    with open_path(tmp_path / "in") as table:
        assert not stands_in_pickle(table)


@pytest.mark.parametrize("order", [1, -1])
def test_two_numbers_change_together(tmp_path: Path, order: int) -> None:
    path = saved(tmp_path / "in", x=0.5, y=0.5, z=3)
    edits = [number("x", 0.25), number("z", 9)][::order]
    _, after = patched(path, *edits)
    (tmp_path / "out").write_bytes(after)
    with open_path(tmp_path / "out") as table:
        assert dict(table.scalars) == {"x": 0.25, "y": 0.5, "z": 9}


def test_a_number_that_becomes_like_another_is_not_mistaken_for_it(tmp_path: Path) -> None:
    """The second edit is sought in the pickle that the first one left."""
    path = saved(tmp_path / "in", x=0.5, y=0.25)
    _, after = patched(path, number("x", 0.25), number("y", 0.125))
    (tmp_path / "out").write_bytes(after)
    with open_path(tmp_path / "out") as table:
        assert dict(table.scalars) == {"x": 0.25, "y": 0.125}


@pytest.mark.parametrize(("now", "value"), [(3, 2**31), (3, 0.5)])
def test_what_has_no_room_is_refused(tmp_path: Path, now: Any, value: Any) -> None:
    path = saved(tmp_path / "in", x=now)
    with open_path(path) as table, pytest.raises(UnsupportedError):
        number_windows(table, [number("x", value)])


# --- one number under two names -------------------------------------------------------------------


def test_a_shared_number_changes_under_both_names(tmp_path: Path) -> None:
    wh.write(shared(tmp_path / "in"), [number("b.0", 0.5)], tmp_path / "out")
    with open_path(tmp_path / "out") as table:
        found = dict(table.scalars)
    assert found == {"a.0": 0.5, "a.1": 0.999, "b.0": 0.5, "b.1": 0.999, "c": 0.9}


def test_a_shared_number_may_be_set_under_both_names(tmp_path: Path) -> None:
    edits = [number("a.0", 0.5), number("b.0", 0.5), number("c", 0.25)]
    wh.write(shared(tmp_path / "in"), edits, tmp_path / "out")
    with open_path(tmp_path / "out") as table:
        assert [table.scalars[name] for name in ("a.0", "b.0", "c")] == [0.5, 0.5, 0.25]


def test_a_shared_number_cannot_be_two(tmp_path: Path) -> None:
    path = shared(tmp_path / "in")
    with pytest.raises(UsageError, match=r"other values of one number, of 'a\.0'") as caught:
        wh.write(path, [number("a.0", 0.5), number("b.0", 0.25)], tmp_path / "out")
    assert "set one of them" in caught.value.hint
    assert [each.name for each in tmp_path.iterdir()] == ["in"]


# --- reading back ---------------------------------------------------------------------------------


def table(**numbers: Any) -> TensorTable:
    return TensorTable.from_arrays(
        {"w": WEIGHT}, {}, scalars={name.replace("__", "."): v for name, v in numbers.items()}
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.1, 0.1), (0.1, float(np.float32(0.1))), (0.1, float(np.float16(0.1))), (1e300, INF),
        (INF, INF), (4, 4), (4.0, 4), (0, False), (HUGE, HUGE), (-0.0, 0.0),
    ],
    ids=str_of,
)  # fmt: skip
def test_a_number_is_read_back_as_its_type_holds_it(value: Any, found: Any) -> None:
    check_numbers(table(x=1.5, y=2), table(x=found, y=2), [number("x", value)])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.1, 0.1 + 1e-9), (0.1, 1.5), (0.1, NAN), (0.1, INF), (4, 3), (10**9, 10**9 + 1),
        (HUGE, HUGE + 1), (1, 0),
    ],
    ids=str_of,
)  # fmt: skip
def test_another_value_is_noticed(value: Any, found: Any) -> None:
    with pytest.raises(WriteError, match=r"'x' is read back as .*; nothing was changed"):
        check_numbers(table(x=1.5, y=2), table(x=found, y=2), [number("x", value)])


@pytest.mark.parametrize(
    ("old", "new"),
    [(2, 3), (2, 2.0), (0.0, -0.0), (0.5, 0.5 + 1e-12), (NAN, 0.5), (INF, NAN), (10**9, 10**9 + 1)],
)  # fmt: skip
def test_a_number_that_changes_unasked_is_noticed(old: Any, new: Any) -> None:
    with pytest.raises(WriteError, match="number 'y' is read back as"):
        check_numbers(table(x=1.5, y=old), table(x=0.125, y=new), [number("x", 0.125)])


@pytest.mark.parametrize("kept", [2, 0.0, -0.0, NAN, INF, True, HUGE, -HUGE], ids=str_of)
def test_a_number_that_stays_is_the_same(kept: Any) -> None:
    for edits in ([], [number("x", 1.5)]):
        check_numbers(table(x=1.5, y=kept), table(x=1.5, y=kept), edits)


def test_a_number_of_any_size_can_be_told_in_a_message() -> None:
    with pytest.raises(WriteError, match=r"number of .* bits") as caught:
        check_numbers(table(y=2), table(y=10**5000), [])
    assert len(caught.value.message) < 200


def test_a_number_that_appears_is_noticed() -> None:
    with pytest.raises(WriteError, match="number 'z' is read back as 7"):
        check_numbers(table(x=1.5), table(x=7.0, z=7.0), [number("x", 7.0)])


@pytest.mark.parametrize("new", [0.1, float(np.float32(0.1))])
def test_another_name_of_a_number_that_was_set_may_follow_it(new: float) -> None:
    check_numbers(table(x=1.5, y=1.5), table(x=new, y=new), [number("x", 0.1)])


@pytest.mark.parametrize("name", ["optimizer.groups.0.lr", "optimizer/config/lr"])
def test_a_number_that_was_set_and_is_not_there_is_noticed(name: str) -> None:
    above = name[: len("optimizer.")]
    before = TensorTable.from_arrays({"w": WEIGHT}, {}, scalars={name: 0.5, f"{above}eps": 1e-8})
    after = TensorTable.from_arrays({"w": WEIGHT}, {}, scalars={f"{above}eps": 1e-8})
    with pytest.raises(WriteError, match="is not read back; nothing was changed"):
        check_numbers(before, after, [number(name, 0.25)])


def test_a_number_that_was_set_may_go_with_its_key(tmp_path: Path) -> None:
    path = patients.save_torch(
        tmp_path / "in",
        {"model": {"w": WEIGHT}, "optimizer": {"state": {}, "param_groups": [{"lr": 0.5}]}, "n": 3},
    )
    said = {"remedy": "test", "kind": "destructive", "cures": (), "title": "test"}
    changes = [
        number("optimizer.param_groups.0.lr", 0.25),
        number("n", 4),
        Removal(names=("optimizer",), **said),
    ]
    wh.write(path, changes, tmp_path / "out")
    with open_path(tmp_path / "out") as table:
        assert dict(table.scalars) == {"n": 4}


def test_a_file_with_a_huge_number_can_be_repaired(tmp_path: Path) -> None:
    """Seeds of random generators have hundreds of digits; floats end at 308."""
    path = saved(tmp_path / "in", seed=10**400, x=0.5)
    wh.write(path, [wh.edit("w", np.ones(1, "f4"), [2])], tmp_path / "one")
    wh.write(path, [number("x", 0.25)], tmp_path / "two")
    with open_path(tmp_path / "two") as table:
        assert dict(table.scalars) == {"seed": 10**400, "x": 0.25}
