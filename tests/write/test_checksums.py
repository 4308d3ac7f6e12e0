"""Checksums follow the bytes they cover, by difference, wherever they are stated."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import write_helpers as wh

from ckptdoctor.containers.zip import read_archive
from ckptdoctor.edits import Restamp
from ckptdoctor.errors import CkptDoctorError, UnsupportedError, UsageError
from ckptdoctor.sources import Extent, FileSource
from ckptdoctor.tensors import Checksum
from ckptdoctor.write.checksums import Checksums
from ckptdoctor.write.fill import windows
from ckptdoctor.write.windows import Window

RESTAMP = {"remedy": "checksum", "kind": "destructive", "cures": ("CK001",), "title": "anew"}


@pytest.fixture
def archive(tmp_path):
    """Members of 50, 0, 7 and 3000 bytes; all but the last stated as torch does."""
    path = tmp_path / "z"
    random = np.random.default_rng(3)
    members = {name: random.bytes(n) for name, n in (("a", 50), ("e", 0), ("b", 7), ("c", 3000))}
    path.write_bytes(wh.zipped(members, stream=True))
    source = FileSource(path)
    yield read_archive(source)
    source.close()


def checksums(archive, source=None):
    stated = [archive.checksum(member) for member in archive.members]
    return Checksums([c for c in stated if c], source or archive.source)


def window(archive, at, new):
    return Window(at, archive.source.pread(at, len(new)), new)


def applied(archive, *changes):
    data = bytearray(archive.source.pread(0, archive.source.size))
    for change in changes:
        assert data[change.offset : change.offset + len(change.old)] == change.old
        data[change.offset : change.offset + len(change.new)] = change.new
    return bytes(data)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_first_and_last_byte_of_a_member_are_covered(archive, name):
    member = archive.get(name)
    for at in (member.offset, member.offset + member.size - 1):
        sums, change = checksums(archive), window(archive, at, b"\xa5")
        sums.note(change)
        fields = list(sums.windows())
        assert len(fields) == 2
        data = applied(archive, change, *fields)
        assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


def test_bytes_beside_the_members_have_no_checksum(archive):
    for member in archive.members:
        for at in (member.header, member.offset - 1, member.offset + member.size):
            sums = checksums(archive)
            sums.note(window(archive, at, b"\xff"))
            assert list(sums.windows()) == []


def test_a_change_to_what_is_there_already_states_nothing(archive):
    sums, member = checksums(archive), archive.get("a")
    sums.note(window(archive, member.offset, archive.source.pread(member.offset, 5)))
    assert list(sums.windows()) == []


def test_noted_twice_is_not_noted(archive):
    sums, member = checksums(archive), archive.get("a")
    for _ in range(2):
        sums.note(window(archive, member.offset, b"xyz"))
    assert list(sums.windows()) == []


def test_many_changes_add_up(archive):
    sums, member = checksums(archive), archive.get("c")
    changes = [window(archive, member.offset + at, b"%d" % at) for at in (0, 9, 700, 2990)]
    changes.append(window(archive, archive.get("b").offset, b"1234567"))
    for change in changes:
        sums.note(change)
    data = applied(archive, *changes, *sums.windows())
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    assert data != archive.source.pread(0, len(data))


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (49, 2), (-5, 80)])
def test_a_change_across_the_bounds_of_a_member_is_refused(archive, start, length):
    sums = checksums(archive)
    with pytest.raises(UnsupportedError, match=r"z:a: the member overlaps another"):
        sums.note(window(archive, archive.get("a").offset + start, bytes(length)))


class TestOverlaps:
    """No writer makes such files: the bytes of one member are bytes of another."""

    def stated(self, archive, *spans):
        head = archive.get("a")
        return Checksums(
            [
                Checksum(Extent(archive.source, at, n), 1, f"z:{at}", head.header, head.entry)
                for at, n in spans
            ],
            archive.source,
        )

    @pytest.mark.parametrize("spans", [[(100, 50), (120, 10)], [(100, 50), (100, 50)]])
    def test_bytes_of_two_members_are_refused(self, archive, spans):
        with pytest.raises(UnsupportedError, match="overlaps another"):
            self.stated(archive, *spans).note(window(archive, 121, b"x"))

    def test_bytes_of_one_of_two_members_that_overlap_are_not(self, archive):
        for at in (119, 130, 149):
            self.stated(archive, (100, 50), (120, 10)).note(window(archive, at, b"x"))
        self.stated(archive, (100, 50), (150, 10)).note(window(archive, 148, b"xy"))

    def test_a_checksum_that_is_stated_in_a_member_is_refused(self, archive):
        head = archive.get("a")
        of_a = archive.checksum(head)
        for at in (head.entry + 16, head.entry + 19, head.offset + 50 + 4):
            other = Checksum(Extent(archive.source, at, 1), 1, "z:x", head.header, head.entry)
            sums = Checksums([of_a, other], archive.source)
            sums.note(window(archive, head.offset, b"x"))
            with pytest.raises(UnsupportedError, match="has its checksum in another"):
                list(sums.windows())
        for at in (head.entry + 15, head.entry + 20):
            other = Checksum(Extent(archive.source, at, 1), 1, "z:x", head.header, head.entry)
            sums = Checksums([of_a, other], archive.source)
            sums.note(window(archive, head.offset, b"x"))
            assert len(list(sums.windows())) == 2

    def test_a_real_archive_of_members_that_overlap_is_refused(self, tmp_path):
        """Storage 2 is made to reach into the member behind it."""
        data = bytearray(wh.zipped(wh.torch_members()))
        with zipfile.ZipFile(io.BytesIO(data)) as found:
            info, behind = found.getinfo("archive/data/2"), found.getinfo("archive/data/3")
            at = found.start_dir + sum(
                46 + len(i.filename)
                for i in found.infolist()
                if i.header_offset < info.header_offset
            )
        start = info.header_offset + 30 + len(info.filename)
        size = behind.header_offset + 30 + len(behind.filename) + 33 - start
        crc = zlib.crc32(data[start : start + size])
        for place in (at + 16, info.header_offset + 14):
            struct.pack_into("<III", data, place, crc, size, size)
        (tmp_path / "m").write_bytes(data)
        with pytest.raises(UnsupportedError, match="overlaps another"):
            wh.write(tmp_path / "m", [wh.edit("mask", ~np.zeros(33, bool))], None)
        wh.write(tmp_path / "m", [wh.edit("steps", np.zeros(7, "i8"))], None)


def test_checksums_of_other_files_and_of_no_archive_are_left_alone(archive, tmp_path):
    member = archive.get("a")
    change = window(archive, member.offset, b"x")
    (tmp_path / "other").write_bytes(bytes(9000))
    other = FileSource(tmp_path / "other")
    sums = checksums(archive, other)
    sums.note(change)
    assert list(sums.windows()) == []
    plain = Checksums([Checksum(Extent(archive.source, member.offset, 50), 1, "z")], archive.source)
    plain.note(change)
    assert list(plain.windows()) == []
    other.close()


class TestRestated:
    @pytest.fixture
    def wrong(self, tmp_path):
        wh.torch_with_a_wrong_crc(tmp_path / "m")
        return tmp_path / "m"

    def test_a_checksum_is_made_to_fit_its_data(self, wrong, tmp_path):
        restamp = Restamp(where="elsewhere/m:archive/data/0", **RESTAMP)
        wh.write(wrong, [restamp], tmp_path / "out")
        assert zipfile.ZipFile(tmp_path / "out").testzip() is None
        wh.write(wrong, [restamp, wh.edit("whole", np.zeros(600, "f4"))], tmp_path / "both")
        assert zipfile.ZipFile(tmp_path / "both").testzip() is None

    def test_another_member_is_not(self, wrong, tmp_path):
        wh.write(wrong, [Restamp(where="m:archive/data/1", **RESTAMP)], tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == wrong.read_bytes()

    def test_a_member_that_is_not_there_is_refused(self, wrong):
        with pytest.raises(UsageError, match="m:archive/data/77: expected a member"):
            wh.write(wrong, [Restamp(where="m:archive/data/77", **RESTAMP)], None)

    def test_an_edit_that_mends_the_data_leaves_the_checksum(self, wrong, tmp_path):
        sound = np.frombuffer(wh.STORAGES["0"], "f4")[19:20]
        wh.write(wrong, [wh.edit("whole", sound, [19], remedy="checksum")], tmp_path / "out")
        with zipfile.ZipFile(tmp_path / "out") as found:
            assert found.testzip() is None
        differ = np.frombuffer((tmp_path / "out").read_bytes(), "u1") != np.frombuffer(
            wrong.read_bytes(), "u1"
        )
        assert differ.sum() == 1

    def test_an_edit_beside_one_that_mends_moves_the_checksum(self, wrong, tmp_path):
        sound = np.frombuffer(wh.STORAGES["0"], "f4")[19:20]
        edits = [
            wh.edit("whole", np.array([5, 6], "f4"), [3, 40]),
            wh.edit("whole", sound, [19], remedy="checksum"),
        ]
        for order in (edits, edits[::-1]):
            wh.write(wrong, order, tmp_path / "out", force=True)
            assert zipfile.ZipFile(tmp_path / "out").testzip() is None


def test_windows_of_a_set_are_those_of_one_file(tmp_path):
    from ckptdoctor.formats import open_path

    with open_path(wh.sharded(tmp_path / "set")) as table:
        edits = [wh.edit("a.bias", np.zeros(9, "f4")), wh.edit("b.bias", np.zeros(3, "f4"))]
        lengths = [sum(len(w.new) for w in windows(f, table, edits)) for f in table.files]
    assert lengths == [0, 36, 12]


def test_two_statements_that_differ_are_no_ground_to_stand_on(tmp_path):
    data = bytearray(wh.zipped(wh.torch_members()))
    at = data.index(b"PK\3\4", data.index(b"archive/byteorder"))
    data[at + 14] ^= 1  # the local header of storage 0
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(CkptDoctorError, match="states two checksums for one member"):
        wh.write(tmp_path / "m", [wh.edit("scalar", np.ones(1, "f4"))], None)
    restamp = Restamp(where="m:archive/data/0", **RESTAMP)
    wh.write(tmp_path / "m", [restamp], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == wh.zipped(wh.torch_members())
