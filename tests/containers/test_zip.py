"""The zip reader: what Python's zipfile reads it reads, and every lie in a header is a finding."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from contextlib import suppress
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.containers.inflate import InflatingSource
from ckptdoctor.containers.zip import Archive, read_archive
from ckptdoctor.containers.zip_locals import Locals
from ckptdoctor.errors import BombError, CkptDoctorError, FormatError, TruncatedError
from ckptdoctor.findings import Severity
from ckptdoctor.sources import Extent, FileSource, WindowSource

EVERYTHING = 1 << 30


def zipped(members, method=zipfile.ZIP_STORED):
    """Bytes of an archive that Python writes, without anything unusual."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def parse(data) -> Archive:
    return read_archive(WindowSource.over(bytes(data), "m.zip"))


def patched(data, at, form, *values):
    data = bytearray(data)
    struct.pack_into(form, data, at, *values)
    return bytes(data)


PLAIN = zipped([("a/data.pkl", b"pickle"), ("a/data/0", bytes(range(24))), ("a/version", b"3\n")])
LOCAL = [i for i in range(len(PLAIN)) if PLAIN.startswith(b"PK\3\4", i)]
CENTRAL = [i for i in range(len(PLAIN)) if PLAIN.startswith(b"PK\1\2", i)]
END = PLAIN.rindex(b"PK\5\6")
DIRECTORY = CENTRAL[0]


def said(archive, severity=Severity.NOTE):
    return " | ".join(f.message for f in archive.findings if f.severity >= severity)


class TestSoundArchives:
    @given(
        st.dictionaries(st.text(min_size=1, max_size=12), st.binary(max_size=300), max_size=6),
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    )
    @settings(max_examples=100, deadline=None)
    def test_members_are_those_of_zipfile(self, held, method):
        data = zipped(held.items(), method)
        archive = parse(data)
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            for member, info in zip(archive.members, file.infolist(), strict=True):
                assert member.size == info.file_size
                assert archive.read(member, EVERYTHING) == file.read(info)
        assert not said(archive, Severity.ERROR)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_streamed_archives_with_data_descriptors_are_sound(self, method):
        buffer = io.BytesIO()

        class Pipe(io.RawIOBase):  # zipfile writes descriptors where it cannot seek back
            def writable(self):
                return True

            def write(self, data):
                return buffer.write(data)

        with zipfile.ZipFile(Pipe(), "w") as file:
            file.writestr("a", b"x" * 1000, method)
            with file.open(zipfile.ZipInfo("b"), "w", force_zip64=True) as member:
                member.write(b"y" * 100)
        archive = parse(buffer.getvalue())
        assert archive.findings == ()
        assert [archive.read(m, EVERYTHING) for m in archive.members] == [b"x" * 1000, b"y" * 100]

    def test_zip64_fields_in_both_headers_are_sound(self):
        buffer = io.BytesIO()
        with (
            zipfile.ZipFile(buffer, "w") as file,
            file.open(zipfile.ZipInfo("a"), "w", force_zip64=True) as member,
        ):
            member.write(b"abc")
        archive = parse(buffer.getvalue())
        assert archive.findings == ()
        assert archive.read(archive.members[0], 3) == b"abc"

    def test_archive_without_members_is_sound(self):
        assert parse(zipped([])).members == ()

    def test_archive_of_a_thousand_members_reads_a_few_blocks(self, tmp_path):
        path = tmp_path / "m.zip"
        path.write_bytes(zipped((f"a/data/{i}", bytes(400)) for i in range(1000)))

        class Counting(FileSource):
            calls = 0

            def pread(self, offset, length):
                Counting.calls += 1
                return super().pread(offset, length)

        archive = read_archive(Counting(path))
        assert len(archive.members) == 1000
        assert archive.findings == ()
        assert Counting.calls < 30

    @pytest.mark.oracle
    @pytest.mark.parametrize("crc", [True, False], ids=["checksums", "no checksums"])
    def test_torch_writes_archives_without_anything_to_report(self, crc):
        torch = pytest.importorskip("torch")
        tensors = {f"w{i}": torch.arange(float(i)) for i in range(40)}
        buffer = io.BytesIO()
        torch.serialization.set_crc32_options(crc)
        try:
            torch.save(tensors, buffer)
        finally:
            torch.serialization.set_crc32_options(True)
        archive = parse(buffer.getvalue())
        assert said(archive, Severity.WARNING) == ""
        assert bool(archive.findings) == (not crc)
        for i in range(40):
            stored = archive.read(archive.get(f"archive/data/{i}"), EVERYTHING)
            assert stored == tensors[f"w{i}"].numpy().tobytes()

    @pytest.mark.oracle
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_torchscript_archives_have_nothing_to_report(self):
        torch = pytest.importorskip("torch")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
        assert parse(buffer.getvalue()).findings == ()


def overlapping():
    """Two entries of the directory that share one local header."""
    data = patched(PLAIN, CENTRAL[2] + 42, "<I", LOCAL[1])
    return patched(data, END + 16, "<I", DIRECTORY)


def hidden_entry():
    """An archive whose directory leaves out the second member."""
    gone = PLAIN[: CENTRAL[1]] + PLAIN[CENTRAL[2] :]
    end = gone.rindex(b"PK\5\6")
    size = end - CENTRAL[0]
    return patched(gone, end + 8, "<HHII", 2, 2, size, DIRECTORY)


def zip64(extra, size=0xFFFFFFFF):
    """The second member's sizes moved to a zip64 field."""
    at = CENTRAL[1]
    data = patched(PLAIN, at + 20, "<II", size, size)
    data = patched(data, at + 30, "<H", len(extra))
    behind_name = at + 46 + len("a/data/0")
    data = data[:behind_name] + extra + data[behind_name:]
    end = data.rindex(b"PK\5\6")
    return patched(data, end + 12, "<I", end - DIRECTORY)


class TestLies:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(
                zipped([("a", b"1"), ("b", b"2")]).replace(b"b", b"a"),
                "2 members of one name",
                id="two members of one name",
            ),
            pytest.param(
                patched(PLAIN, LOCAL[0] + 30, "<c", b"X"),
                "name 'X/data.pkl'",
                id="other local name",
            ),
            pytest.param(
                patched(PLAIN, LOCAL[0] + 14, "<I", 7), "CRC-32", id="other local checksum"
            ),
            pytest.param(
                patched(PLAIN, LOCAL[0] + 22, "<I", 9), "size 6 and 9", id="other local size"
            ),
            pytest.param(
                patched(PLAIN, LOCAL[0] + 8, "<H", 8), "method 0 and 8", id="other method"
            ),
            pytest.param(patched(PLAIN, CENTRAL[0] + 8, "<H", 1), "flags 0x1", id="one-sided flag"),
            pytest.param(
                patched(patched(PLAIN, CENTRAL[0] + 8, "<H", 1), LOCAL[0] + 6, "<H", 1),
                "encrypted",
                id="encrypted",
            ),
            pytest.param(
                patched(patched(PLAIN, CENTRAL[0] + 8, "<H", 0x20), LOCAL[0] + 6, "<H", 0x20),
                "flags 0x20",
                id="patched data flag",
            ),
            pytest.param(
                patched(patched(PLAIN, CENTRAL[0] + 10, "<H", 14), LOCAL[0] + 8, "<H", 14),
                "compression method 14",
                id="unknown method",
            ),
            pytest.param(overlapping(), "overlaps", id="overlapping members"),
            pytest.param(
                patched(PLAIN, CENTRAL[1] + 42, "<I", 1 << 30),
                "beyond the end",
                id="offset outside",
            ),
            pytest.param(patched(PLAIN, LOCAL[1], "<4s", b"PK3D"), "PK3D", id="no local header"),
            pytest.param(
                patched(PLAIN, CENTRAL[1] + 24, "<I", 25), "24 bytes are 25", id="stored yet larger"
            ),
            pytest.param(
                patched(PLAIN, CENTRAL[2] + 20, "<II", 9999, 9999), "run past", id="data outside"
            ),
            pytest.param(zip64(b"\1\0\4\0abcd"), "zip64 field has 4 bytes", id="short zip64 field"),
            pytest.param(zip64(b""), "zip64 field has 0 bytes", id="missing zip64 field"),
            pytest.param(
                zip64(struct.pack("<HHQQ", 1, 16, 1 << 63, 1 << 63)), "run past", id="zip64 of 2^63"
            ),
            pytest.param(
                patched(PLAIN, END + 10, "<H", 7), "counts 7 members", id="end record counts more"
            ),
            pytest.param(patched(PLAIN, END + 4, "<H", 1), "disk 1", id="several disks"),
            pytest.param(hidden_entry(), "hold entries", id="entry the directory leaves out"),
            pytest.param(b"MZ" * 10 + PLAIN, "20 bytes stand before", id="bytes before"),
            pytest.param(
                PLAIN[:END] + b"zz" + PLAIN[END:], "2 bytes stand", id="gap before the end"
            ),
            pytest.param(
                patched(PLAIN, END + 20, "<H", 9), "comment is 9 bytes short", id="comment cut off"
            ),
            pytest.param(
                patched(PLAIN, END + 20, "<H", 22) + PLAIN[END:], "two end records", id="second end"
            ),
            pytest.param(PLAIN.replace(b"a/version", b"a/\0ersion"), "NUL", id="NUL in a name"),
        ],
    )
    def test_lie_is_an_error(self, data, message):
        archive = parse(data)
        assert message in said(archive, Severity.ERROR)
        assert {f.code for f in archive.findings} == {"CK005"}

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(PLAIN + b"\n" * 5, "5 bytes follow", id="bytes behind"),
            pytest.param(PLAIN.replace(b"a/version", b"../versio"), "outside", id="name with .."),
            pytest.param(
                zipped([("a/data.pkl", b""), ("__MACOSX/._a", b"x")]), "__MACOSX", id="macOS junk"
            ),
        ],
    )
    def test_oddity_is_a_warning(self, data, message):
        archive = parse(data)
        assert message in said(archive, Severity.WARNING)
        assert not said(archive, Severity.ERROR)

    def test_comment_is_nothing_to_report(self):
        assert parse(patched(PLAIN, END + 20, "<H", 3) + b"hi!").findings == ()

    def test_other_times_in_the_headers_are_nothing_to_report(self):
        assert parse(patched(PLAIN, LOCAL[0] + 10, "<HH", 7, 7)).findings == ()

    def test_first_and_last_of_duplicates_can_be_told_apart(self):
        archive = parse(zipped([("a", b"1"), ("b", b"2")]).replace(b"b", b"a"))
        assert archive.read(archive.get("a"), 9) == b"1"
        assert archive.read(archive.last("a"), 9) == b"2"

    def test_member_encrypted_only_in_the_directory_is_read(self):
        archive = parse(patched(PLAIN, CENTRAL[0] + 8, "<H", 1))
        assert archive.read(archive.members[0], 9) == b"pickle"

    def test_broken_member_says_why_and_leaves_the_others(self):
        archive = parse(patched(PLAIN, LOCAL[1], "<4s", b"PK3D"))
        broken = archive.get("a/data/0")
        with pytest.raises(FormatError, match="PK3D"):
            archive.open(broken)
        assert archive.checksum(broken) is None
        assert archive.read(archive.get("a/version"), 9) == b"3\n"

    def test_findings_of_one_kind_are_folded(self):
        archive = parse(zipped((f"../{i}", b"") for i in range(5000)))
        assert len(archive.findings) == 4
        assert "4,997 more" in archive.findings[-1].message

    def test_findings_do_not_grow_with_names(self):
        archive = parse(zipped([("../" + "x" * 60_000, b"")]))
        assert all(len(f.message) + len(f.where) < 500 for f in archive.findings)

    def test_second_name_is_an_error(self):
        info = zipfile.ZipInfo("a")
        info.extra = struct.pack("<HHBI", 0x7075, 6, 1, 0) + b"b"
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr(info, b"x")
        assert "second name 'b'" in said(parse(buffer.getvalue()), Severity.ERROR)


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(PLAIN[:DIRECTORY], "breaks off", id="no directory"),
            pytest.param(PLAIN[: END + 10], "breaks off", id="end record cut off"),
            pytest.param(b"", "breaks off", id="nothing"),
            pytest.param(patched(PLAIN, END + 16, "<I", 1 << 20), "but itself", id="offset beyond"),
            pytest.param(
                PLAIN[:END] + PLAIN[DIRECTORY:END] + PLAIN[END:], "two dir", id="two directories"
            ),
            pytest.param(
                patched(PLAIN, CENTRAL[1], "<c", b"X"), "expected entry 1", id="bad entry"
            ),
        ],
    )
    def test_archive_that_cannot_be_trusted_is_refused(self, data, message):
        with pytest.raises(FormatError, match=message):
            parse(data)

    def test_interrupted_download_is_told_as_such(self):
        with pytest.raises(TruncatedError, match="download it again"):
            parse(PLAIN[: len(PLAIN) // 2])

    @given(data=st.data())
    @settings(max_examples=200, deadline=None)
    def test_damage_is_a_named_error_or_a_table(self, data):
        sound = data.draw(st.sampled_from([PLAIN, zip64(struct.pack("<HHQQ", 1, 16, 24, 24))]))
        raw = bytearray(sound[: data.draw(st.integers(len(sound) - 30, len(sound)))])
        for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
            raw[at] = data.draw(st.integers(0, 255))
        with suppress(CkptDoctorError):
            archive = parse(raw)
            for member in archive.members:
                with suppress(CkptDoctorError):
                    archive.read(member, EVERYTHING)
            assert isinstance(archive.findings, tuple)


def streamed():
    """An archive whose only member has a data descriptor, as where one cannot seek back."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", b"data")
    data = buffer.getvalue()
    start, at, end = 31 + 4, data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    assert start == at
    described = patched(patched(data, 6, "<H", 8), at + 8, "<H", 8)
    described = patched(described, 14, "<III", 0, 0, 0)
    descriptor = struct.pack("<4sIII", b"PK\7\x08", zlib.crc32(b"data"), 4, 4)
    return (
        patched(described, end + 16, "<I", at + 16)[:at]
        + descriptor
        + patched(described, end + 16, "<I", at + 16)[at:]
    )


def streamed_many():
    """Twenty members with data descriptors, as torch.save writes them."""
    buffer = io.BytesIO()

    class Pipe(io.RawIOBase):  # zipfile writes descriptors where it cannot seek back
        def writable(self):
            return True

        def write(self, data):
            return buffer.write(data)

    with zipfile.ZipFile(Pipe(), "w") as file:
        for i in range(20):
            file.writestr(zipfile.ZipInfo(f"a/data/{i}"), bytes(i))
    return buffer.getvalue()


MANY = zipped((f"a/data/{i}", bytes(i)) for i in range(20)), streamed_many()


class TestLookingAtManyMembersAtOnce:
    @given(data=st.data())
    @settings(max_examples=100, deadline=None)
    def test_it_sees_what_looking_at_each_sees(self, data):
        raw = bytearray(data.draw(st.sampled_from(MANY)))
        for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
            raw[at] = data.draw(st.integers(0, 255))
        seen = []
        for dense in (16, 1 << 30):
            with mock.patch.object(Locals, "DENSE", dense), suppress(CkptDoctorError):
                archive = parse(raw)
                seen.append((archive.members, archive.findings))
        assert seen[1:] == seen[:1]  # twice the same, or twice refused


class TestData:
    def test_wrong_checksum_is_a_finding_and_the_data_is_returned(self):
        data = PLAIN.replace(b"pickle", b"nickel")
        archive = parse(data)
        assert archive.findings == ()
        assert archive.read(archive.members[0], 9) == b"nickel"
        archive.read(archive.members[0], 9)
        (finding,) = archive.findings
        assert (finding.code, finding.severity) == ("CK001", Severity.ERROR)

    def test_checksum_that_was_never_computed_is_a_note(self):
        crc = struct.pack("<I", zlib.crc32(b"pickle"))
        archive = parse(PLAIN.replace(crc, bytes(4)))
        assert archive.members[0].crc32 is None
        assert archive.checksum(archive.members[0]) is None
        (finding,) = archive.findings
        assert (finding.code, finding.severity) == ("CK001", Severity.NOTE)

    def test_checksum_covers_the_data(self):
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            archive = parse(zipped([("a", b"x" * 500)], method))
            checksum = archive.checksum(archive.members[0])
            assert zlib.crc32(checksum.extent.read()) == checksum.crc32

    def test_extent_is_the_data_in_the_file(self):
        archive = parse(PLAIN)
        extent = archive.extent(archive.get("a/data/0"))
        assert extent.source is archive.source
        assert extent.read() == bytes(range(24))

    def test_extent_of_a_deflated_member_is_refused(self):
        archive = parse(zipped([("a", b"x" * 500)], zipfile.ZIP_DEFLATED))
        with pytest.raises(FormatError, match="compressed"):
            archive.extent(archive.members[0])

    def test_member_above_the_limit_is_a_bomb(self):
        archive = parse(PLAIN)
        with pytest.raises(BombError, match="declares 24"):
            archive.read(archive.get("a/data/0"), 23)


def deflated(data, *, size=None, crc=None):
    """A deflated member with the sizes one likes."""
    raw = zipped([("a", data)], zipfile.ZIP_DEFLATED)
    at, end = raw.rindex(b"PK\1\2"), raw.rindex(b"PK\5\6")
    size = len(data) if size is None else size
    crc = zlib.crc32(data) if crc is None else crc
    raw = patched(raw, at + 16, "<I", crc)
    raw = patched(patched(raw, at + 24, "<I", size), 14, "<I", crc)
    assert end > at
    archive = parse(patched(raw, 22, "<I", size))
    return archive, archive.members[0]


DATA = b"".join(i.to_bytes(4, "little") for i in range(200_000))


class TestDescriptors:
    def test_empty_fields_before_a_descriptor_are_nothing_to_report(self):
        assert parse(streamed()).findings == ()

    @pytest.mark.parametrize("at", [14, 18, 22], ids=["checksum", "stored size", "size"])
    def test_field_that_is_not_empty_must_be_true(self, at):
        archive = parse(patched(streamed(), at, "<I", 77))
        assert " 77" in said(archive, Severity.ERROR)

    def test_descriptor_that_lies_is_a_warning(self):
        archive = parse(patched(streamed(), 35 + 4, "<I", 77))
        assert "data descriptor" in said(archive, Severity.WARNING)
        assert archive.read(archive.members[0], 4) == b"data"


class TestInflating:
    def test_stream_that_breaks_off_is_refused(self):
        deflate = zlib.compressobj(wbits=-15)
        stream = (deflate.compress(DATA) + deflate.flush())[:-9]
        below = WindowSource.over(stream, "m")
        source = InflatingSource("m", below, 0, len(stream), len(DATA), None)
        with pytest.raises(FormatError, match="breaks off"):
            source.pread(0, len(DATA))

    def test_pieces_in_any_order_are_the_data(self):
        archive, member = deflated(DATA)
        source = archive.open(member)
        assert source.sequential
        for offset, length in [(0, 10), (500_000, 99_000), (3, 4), (799_990, 10), (0, 800_000)]:
            assert source.pread(offset, length) == DATA[offset : offset + length]
            buffer = bytearray(length)
            source.pread_into(offset, memoryview(buffer))
            assert buffer == DATA[offset : offset + length]

    @given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=6))
    @settings(max_examples=50, deadline=None)
    def test_any_reads_of_a_small_member_agree_with_the_data(self, reads):
        archive, member = deflated(bytes(3000) + b"end")
        source = archive.open(member)
        for offset, length in reads:
            if offset + length <= 3003:
                assert source.pread(offset, length) == (bytes(3000) + b"end")[offset:][:length]
            else:
                with pytest.raises(TruncatedError):
                    source.pread(offset, length)

    @pytest.mark.parametrize("size", [len(DATA) - 1, 10])
    def test_more_than_declared_is_refused(self, size):
        archive, member = deflated(DATA, size=size)
        with pytest.raises(FormatError, match="more than"):
            archive.read(member, EVERYTHING)

    def test_less_than_declared_is_refused(self):
        archive, member = deflated(DATA, size=len(DATA) + 1)
        with pytest.raises(FormatError, match="inflates to 800,000 bytes"):
            archive.read(member, EVERYTHING)

    def test_size_that_no_stream_can_reach_is_broken_from_the_start(self):
        archive, member = deflated(b"x" * 100, size=1 << 31)
        assert "cannot come from" in member.broken
        assert "cannot come from" in said(archive, Severity.ERROR)

    def test_damaged_stream_is_refused(self):
        raw = bytearray(zipped([("a", DATA)], zipfile.ZIP_DEFLATED))
        raw[31:60] = bytes(29)
        archive = parse(raw)
        with pytest.raises(FormatError, match=r"m\.zip:a: "):
            archive.read(archive.members[0], EVERYTHING)

    def test_wrong_checksum_is_an_error_at_the_end_of_a_stream(self):
        archive, member = deflated(DATA, crc=1)
        source = archive.open(member)
        assert source.pread(0, 100) == DATA[:100]
        with pytest.raises(FormatError, match="CRC-32"):
            source.pread(100, len(DATA) - 100)

    def test_wrong_checksum_is_a_finding_where_all_is_read(self):
        archive, member = deflated(DATA, crc=1)
        assert archive.read(member, EVERYTHING) == DATA
        assert "CRC-32" in said(archive, Severity.ERROR)

    def test_source_can_be_the_ground_of_an_extent(self):
        archive, member = deflated(DATA)
        assert Extent(archive.open(member), 400, 8).read() == DATA[400:408]
