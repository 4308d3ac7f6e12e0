"""Archives written anew: the named members changed, everything else as it was, to the byte."""

import io
import struct
import zipfile
import zlib

import pytest
import torch_bytes as tb
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.containers.zip import read_archive
from ckptdoctor.errors import UnsupportedError, UsageError
from ckptdoctor.sources import WindowSource
from ckptdoctor.write import zip_end, zip_rewrite
from ckptdoctor.write.zip_extra import LocalExtra, central_extra
from ckptdoctor.write.zip_rewrite import rewrite

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def zipped(members, *, streamed=False, comment=b""):
    """Archive of (name, data, method) with odd times, flags and comments."""
    buffer = io.BytesIO()
    raw = Stream(buffer) if streamed else buffer
    with zipfile.ZipFile(raw, "w") as file:
        for i, (name, data, method) in enumerate(members):
            info = zipfile.ZipInfo(name, (2001 + i, 2, 3, 4, 5, 6))
            info.compress_type, info.comment = method, f"comment {i}".encode()
            info.external_attr, info.internal_attr = 0o640 << 16, i % 2
            info.extra = struct.pack("<HH3s", 0x7777, 3, b"abc") if i % 2 else b""
            file.writestr(info, data)
        file.comment = comment
    return buffer.getvalue()


class Stream:
    """A pipe: it cannot be sought in."""

    def __init__(self, below):
        self.write, self.flush = below.write, below.flush


def written(data, **more):
    out = io.BytesIO()
    size = rewrite(opened(data), out, **more)
    assert size == len(out.getvalue())
    return out.getvalue()


def opened(data):
    return read_archive(WindowSource.over(data, "m.zip"))


def contents(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


def facts(data, name):
    """What a directory says of a member apart from place, size and checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        info = file.getinfo(name)
        kept = (info.date_time, info.compress_type, info.comment, info.external_attr, info.extra)
        return (*kept, info.internal_attr, info.create_system, info.create_version)


def local_names(data):
    """Names in the local headers by offset, raw."""
    found = []
    for member in opened(data).members:
        (length,) = struct.unpack_from("<H", data, member.header + 26)
        found.append(data[member.header + 30 : member.header + 30 + length])
    return found


MEMBERS = [
    ("a", b"one" * 50, STORED),
    ("b", b"two" * 900, DEFLATED),
    ("folder/", b"", STORED),
    ("folder/\u00e9", b"three" * 11, STORED),
    ("empty", b"", DEFLATED),
    ("z", bytes(5000), DEFLATED),
]
NAMES = [name for name, _, _ in MEMBERS]


def field(*numbers):
    return struct.pack("<HH", 1, 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)


def torch_zip(storages=("0", "1", "2"), alignment=64, form="<3I", sign=b"PK\7\x08", narrow=None):
    """A zip as torch.save writes it: padded, streamed, with zip64 end records."""
    out, central = bytearray(), bytearray()
    parts = {"t/data.pkl": tb.pickled({"a": 1}) * 3, "t/byteorder": b"little"}
    parts |= {f"t/data/{key}": bytes([int(key)]) * (100 + 7 * int(key)) for key in storages}
    parts["t/version"] = b"3\n"
    for name, data in parts.items():
        header, raw = len(out), name.encode()
        space = -(header + 30 + len(raw) + 4) % alignment
        extra = b"FB" + struct.pack("<H", space) + b"Z" * space
        out += struct.pack(
            "<4s3H2H3I2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(raw), len(extra)
        )
        out += raw + extra + data
        out += sign + struct.pack(form, zlib.crc32(data), len(data), len(data))
        fixed = (b"PK\1\2", 0, 0, 0x808, 0, 0, 0, zlib.crc32(data), len(data), len(data))
        central += struct.pack("<4s6H3I5H2I", *fixed, len(raw), 0, 0, 0, 0, 0, header) + raw
    at, count, size = len(out), len(parts), len(central)
    out += central
    end64 = (b"PK\6\6", 44, 798, 45, 0, 0, count, count, size, at)
    out += struct.pack("<4sQ2H2I4Q", *end64) + struct.pack("<4sIQI", b"PK\6\7", 0, at + size, 1)
    narrow = narrow or (count, count, size, at)
    out += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *narrow, 0)
    return bytes(out)


def escaped():
    """Archive whose directory has the sizes of a small member in 64 bits."""
    plain = zipped([("a", b"abc", STORED)])
    at = plain.index(b"PK\1\2")
    entry, end = bytearray(plain[at:-22]), plain[-22:]
    entry[20:28], wide = b"\xff" * 8, field(3, 3)
    entry[30:32] = struct.pack("<H", len(wide))
    entry[47:47] = wide
    return plain[:at] + entry + end[:12] + struct.pack("<I", len(entry)) + end[16:]


INPUTS = {
    "sought": zipped(MEMBERS),
    "streamed": zipped(MEMBERS, streamed=True),
    "commented": zipped(MEMBERS, comment=b"a comment" * 40),
    "torch": torch_zip(),
    "torch, aligned to pages": torch_zip(alignment=4096),
    "torch, descriptors of 64 bits": torch_zip(form="<IQQ"),
    "torch, descriptors without sign": torch_zip(sign=b""),
    "torch, 64 bits without sign": torch_zip(sign=b"", form="<IQQ"),
    "torch, 64 bits in the end": torch_zip(narrow=(0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)),
    "64 bits without need": escaped(),
    "empty": zipped([]),
    "behind": zipped(MEMBERS) + b"bytes behind",
}


@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS)
def test_with_nothing_to_change_the_bytes_are_the_same(data):
    assert written(data) == data


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("many", [False, True], ids=["bytes", "blocks"])
@settings(max_examples=30, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=300)), data=st.data())
def test_what_is_named_changes_and_nothing_else(streamed, many, changes, data):
    dropped = data.draw(st.sets(st.sampled_from(NAMES)))
    before = zipped(MEMBERS, streamed=streamed, comment=b"c")
    given_ = {
        name: (lambda new=new: iter([new[:7], new[7:]])) if many else new
        for name, new in changes.items()
    }
    after = written(before, replace=given_, drop=dropped)
    expected = {n: changes.get(n, old) for n, old, _ in MEMBERS if n not in dropped}
    assert contents(after) == expected
    assert list(contents(after)) == list(expected)
    assert opened(after).findings == ()
    for name in expected:
        assert facts(after, name) == facts(before, name)
    assert zipfile.ZipFile(io.BytesIO(after)).comment == b"c"
    old, new = opened(before), opened(after)
    for name in set(expected) - set(changes):
        one, two = old.get(name), new.get(name)
        stop = one.header + (one.offset - one.header) + one.stored + 16 * bool(one.flags & 8)
        assert before[one.header : stop] == after[two.header :][: stop - one.header]
        assert one.flags == two.flags


def test_names_that_are_no_utf8_stay_raw():
    data = zipped([("caf\u00e9", b"x", STORED)])
    raw = data.replace("caf\u00e9".encode(), b"caf\x82\x82").replace(b"\0\x08\0\0", b"\0\0\0\0")
    after = written(raw, replace={opened(raw).members[0].name: b"longer"})
    assert local_names(after) == [b"caf\x82\x82"]
    assert opened(after).findings == opened(raw).findings == ()


def test_deflated_data_that_stays_is_not_deflated_anew():
    data = bytes(range(256)) * 40
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
    odd = deflater.compress(data[:99]) + deflater.flush(zlib.Z_FULL_FLUSH)
    odd += deflater.compress(data[99:]) + deflater.flush()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", DEFLATED) as file:
        file.writestr("first", b"1" * 99)
        file.writestr("odd", data)
    plain = buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(plain)) as file:
        usual = file.getinfo("odd").compress_size
    at = opened(plain).get("odd").offset
    raw = plain[:at] + odd + plain[at + usual :]
    raw = raw.replace(struct.pack("<I", usual), struct.pack("<I", len(odd)))
    moved = len(odd) - usual
    end = struct.unpack_from("<I", raw, len(raw) - 6)[0] + moved
    raw = raw[:-6] + struct.pack("<IH", end, 0)
    after = written(raw, drop=["first"])
    assert odd in after
    assert contents(after) == {"odd": data}


# Alignment.


@pytest.mark.parametrize("alignment", [64, 256, 4096])
@pytest.mark.parametrize("change", ["t/data.pkl", "t/data/0"])
def test_padded_members_stay_aligned(alignment, change):
    before = torch_zip("0123456", alignment)
    after = written(before, replace={change: b"x" * 777}, drop=["t/data/3"])
    members = opened(after).members
    assert [m.offset % alignment for m in members] == [0] * len(members)
    assert opened(after).findings == ()
    assert contents(after)[change] == b"x" * 777
    assert all(f.offset - f.header < 30 + len(f.name) + 4 + alignment for f in members)
    one = members[-1]
    pad = after[one.header + 30 + len(one.name) : one.offset]
    assert pad == b"FB" + struct.pack("<H", len(pad) - 4) + b"Z" * (len(pad) - 4)


def test_padding_is_what_torch_would_write():
    before = torch_zip("0123")
    assert written(before, drop=["t/data/3"]) == torch_zip("012")


def test_alignment_beyond_a_page_is_chance():
    before = torch_zip("01", 8192)
    after = written(before, replace={"t/data.pkl": b"x"})
    assert [m.offset % 4096 for m in opened(after).members] == [0] * 5
    assert len(after) < len(before)


def test_padding_that_aligns_to_less_is_brought_to_64():
    after = written(torch_zip("01", 16), replace={"t/data.pkl": b"x" * 1000})
    for old, new in zip(opened(torch_zip("01", 16)).members, opened(after).members, strict=True):
        assert new.offset % 64 in (0, old.offset % 64)
    assert contents(after)["t/data.pkl"] == b"x" * 1000


def test_padding_without_bytes_is_filled_as_torch_does():
    extra = LocalExtra(b"FB\0\0")
    extra.align(61, 128, 64)
    assert extra.joined() == b"FB\x3f\0" + b"Z" * 63


def test_padding_that_fits_stays_whatever_it_is():
    extra = LocalExtra(b"FB\x04\0abcd")
    extra.align(56, 128, 64)
    assert extra.joined() == b"FB\x04\0abcd"


# Beyond 4 GiB, and beyond 65,535 members.

OFFSET = 5 << 32


CENTRAL = {
    "nothing before, nothing now": (b"", [], b""),
    "another field stays": (b"\x77\x77\1\0a", [], b"\x77\x77\1\0a"),
    "a field in front": (b"\x77\x77\1\0a", [OFFSET], field(OFFSET) + b"\x77\x77\1\0a"),
    "in its place": (b"\x77\x77\1\0a" + field(3), [OFFSET], b"\x77\x77\1\0a" + field(OFFSET)),
    "no longer needed": (b"\x77\x77\1\0a" + field(3), [], b"\x77\x77\1\0a"),
    "more numbers": (field(3), [1, 2, 3], field(1, 2, 3)),
    "the disk stays": (
        struct.pack("<HHQI", 1, 12, 3, 0),
        [4],
        struct.pack("<HHQI", 1, 12, 4, 0),
    ),
    "odd bytes at the end": (field(3) + b"\0\0", [4], field(4) + b"\0\0"),
    "a field cut short": (b"\1\0\x08\0abc", [4], field(4) + b"\1\0\x08\0abc"),
}


@pytest.mark.parametrize(("before", "wide", "after"), CENTRAL.values(), ids=CENTRAL)
def test_zip64_fields_of_the_directory(before, wide, after):
    assert central_extra(before, wide) == after


LOCAL = {
    "sizes stay": (field(1, 2), True, 99, field(1, 2)),
    "the offset moves": (field(1, 2, 3), True, OFFSET, field(1, 2, OFFSET)),
    "the offset goes": (field(1, 2, 3), True, 0xFFFFFFFE, field(1, 2)),
    "the offset needs the field": (field(1, 2, 3), True, 0xFFFFFFFF, field(1, 2, 0xFFFFFFFF)),
    "an offset alone moves": (field(3), False, OFFSET, field(OFFSET)),
    "an offset alone goes": (field(3), False, 99, b""),
    "sizes that nobody asked for": (field(1, 2), False, 99, field(1, 2)),
    "none": (b"", False, OFFSET, b""),
}


@pytest.mark.parametrize(("before", "escaped", "header", "after"), LOCAL.values(), ids=LOCAL)
def test_zip64_fields_of_a_local_header(before, escaped, header, after):
    extra = LocalExtra(before)
    extra.keep_sizes(header, escaped=escaped)
    assert extra.joined() == after


class Sparse:
    """A source of many zeros between a few bytes."""

    name, sequential = "big.zip", False

    def __init__(self, parts, size):
        self.parts, self.size = parts, size

    zeros = bytes(1 << 20)

    def pread(self, offset, length):
        near = ((at, data) for at, data in self.parts.items() if offset < at + len(data))
        if not any(at < offset + length for at, data in near):
            return self.zeros[:length]
        made = bytearray(length)
        for at, data in self.parts.items():
            start, stop = max(at, offset), min(at + len(data), offset + length)
            if start < stop:
                made[start - offset : stop - offset] = data[start - at : stop - at]
        return bytes(made)

    def pread_into(self, offset, buffer):
        buffer[:] = self.pread(offset, len(buffer))


class Ends:
    """Keeps the first and last bytes that are written, and counts the rest."""

    def __init__(self):
        self.size, self.largest, self.tail = 0, 0, b""

    def __call__(self, data):
        self.size, self.largest = self.size + len(data), max(self.largest, len(data))
        self.tail = (self.tail + bytes(data[-4096:]))[-4096:]


def local(name, crc, stored, size, *, extra=b"", flags=0, need=20):
    fixed = (b"PK\3\4", need, flags, 0, 0, 0, crc, stored, size, len(name), len(extra))
    return struct.pack("<4s3H2H3I2H", *fixed) + name + extra


def central(name, crc, stored, size, header, *, extra=b"", flags=0, need=20):
    fixed = (b"PK\1\2", 45, need, flags, 0, 0, 0, crc, stored, size, len(name), len(extra))
    return struct.pack("<4s6H3I5H2I", *fixed, 0, 0, 0, 0, header) + name + extra


ALL = 0xFFFFFFFF
CRC = 0x12345678  # nobody reads the zeros


def huge(*, described=False):
    """Archive of 4 GiB of zeros and a small member behind them whose header repeats its offset."""
    size = 1 << 32
    if described:
        head = local(b"huge", 0, ALL, ALL, extra=field(0, 0), flags=8, need=45)
        tail = b"PK\7\x08" + struct.pack("<IQQ", CRC, size, size)
    else:
        head, tail = local(b"huge", CRC, ALL, ALL, extra=field(size, size), need=45), b""
    header = len(head) + size + len(tail)
    crc = zlib.crc32(b"x")
    tail += local(b"s", crc, 1, 1, extra=field(header)) + b"x"
    directory = len(head) + size + len(tail)
    entries = central(b"huge", CRC, ALL, ALL, 0, extra=field(size, size), flags=8 * described)
    entries += central(b"s", crc, 1, 1, ALL, extra=field(header), need=45)
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(entries), directory)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, directory + len(entries), 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(entries), ALL, 0)
    rest = tail + entries + end
    return Sparse({0: head, len(head) + size: rest}, len(head) + size + len(rest)), rest


@pytest.mark.parametrize("described", [False, True])
def test_offsets_beyond_4_gib_are_written_as_they_were(described):
    source, rest = huge(described=described)
    archive = read_archive(source)
    assert archive.findings == ()
    out = Ends()
    assert rewrite(archive, out) == out.size == source.size
    assert out.tail.endswith(rest)
    assert out.largest <= 1 << 20


def test_a_member_that_is_pushed_beyond_4_gib_gets_a_64_bit_offset():
    size = (1 << 32) - 300
    first = local(b"a", zlib.crc32(b"1"), 1, 1) + b"1"
    head = first + local(b"huge", CRC, size, size)
    header = len(head) + size
    tail = local(b"s", zlib.crc32(b"x"), 1, 1) + b"x"
    entries = central(b"a", zlib.crc32(b"1"), 1, 1, 0)
    entries += central(b"huge", CRC, size, size, len(first))
    entries += central(b"s", zlib.crc32(b"x"), 1, 1, header)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3, 3, len(entries), header + len(tail), 0)
    source = Sparse({0: head, header: tail + entries + end}, header + len(tail + entries + end))
    archive = read_archive(source)
    assert archive.findings == ()
    rewrite(archive, out := Ends(), replace={"a": b"1" * 300})
    moved = header + 299
    assert moved > ALL
    assert central(b"s", zlib.crc32(b"x"), 1, 1, ALL, extra=field(moved), need=45) in out.tail
    assert central(b"huge", CRC, size, size, len(first) + 299) in out.tail
    assert out.tail[-98:-94] == b"PK\6\6"
    assert struct.unpack("<4s4H2IH", out.tail[-22:])[5:7] == (len(entries) + 12, ALL)


def test_a_wide_member_stays_wide_when_it_is_replaced():
    source, _ = huge()
    out = io.BytesIO()
    rewrite(read_archive(source), out, replace={"huge": lambda: iter([b"small"])})
    found = opened(out.getvalue())
    assert found.findings == ()
    assert contents(out.getvalue()) == {"huge": b"small", "s": b"x"}
    small = found.get("s")
    assert small.offset == small.header + 31  # its offset needs no field any more


def test_a_member_that_outgrows_its_header_is_refused(monkeypatch):
    monkeypatch.setattr(zip_rewrite, "MAX32", 1000)
    data = zipped([("a", b"x", STORED)])
    assert written(data, replace={"a": lambda: iter([bytes(999)])})
    with pytest.raises(UnsupportedError, match="grew from 1 to 1,000 bytes"):
        written(data, replace={"a": lambda: iter([bytes(500), bytes(500)])})


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("limit", [16, 1 << 32], ids=["room", "no room"])
def test_a_large_member_gets_room_for_64_bits_beforehand(monkeypatch, streamed, limit):
    monkeypatch.setattr(zip_rewrite, "WIDE", limit)
    data = zipped([("a", bytes(16), STORED)], streamed=streamed)
    after = written(data, replace={"a": lambda: iter([b"new"])})
    (length,) = struct.unpack_from("<H", after, 28)
    assert length == (20 if limit == 16 else 0)
    assert after[4:6] == (b"\x2d\0" if limit == 16 else b"\x14\0")
    assert after[18:26] == (b"\xff" * 8 if limit == 16 else bytes(8))
    assert opened(after).findings == ()
    assert contents(after) == {"a": b"new"}


def test_as_many_members_as_fit_16_bits_need_the_wide_end_record():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(65_536):
            file.writestr(zipfile.ZipInfo(f"{i:x}"), b"")
    after = written(buffer.getvalue(), drop=["0"])
    assert after[-98:-94] == b"PK\6\6"
    assert len(zipfile.ZipFile(io.BytesIO(after)).namelist()) == 65_535


@pytest.mark.parametrize(("limit", "wide"), [(5, True), (6, True), (7, False)])
def test_an_archive_gets_the_wide_end_record_when_it_needs_it(monkeypatch, limit, wide):
    monkeypatch.setattr(zip_end, "MAX16", limit)
    after = written(zipped(MEMBERS), replace={"a": b"x"})
    end = after[-98:]
    assert (end[:4] == b"PK\6\6") == wide
    if wide:
        assert struct.unpack_from("<QHHII", end, 4) == (44, 45, 45, 0, 0)
        count, total, size, at = struct.unpack_from("<4Q", end, 24)
        assert (count, total, size + at) == (6, 6, len(after) - 98)
        assert after[at:][:4] == b"PK\1\2"
        assert struct.unpack_from("<IQI", end, 60) == (0, len(after) - 98, 1)
        assert struct.unpack_from("<2H2I", end, 84) == (limit, limit, size, at)


def test_what_is_written_at_once_is_bounded():
    data = zipped([("a", bytes(5 << 20), STORED), ("b", bytes(3 << 20), STORED)])
    out = Ends()
    rewrite(opened(data), out, replace={"b": bytes(4 << 20)})
    assert out.largest == 1 << 20


# Refusals.


def test_archives_that_loaders_disagree_about_are_refused():
    with pytest.warns(UserWarning, match="Duplicate"):
        data = zipped([("a", b"1", STORED), ("a", b"2", STORED)])
    with pytest.raises(UnsupportedError, match=r"cannot be written anew: 2 members of one name"):
        written(data)


def test_members_that_are_not_there_are_named():
    for more in ({"replace": {"nope": b""}}, {"drop": ["nope"]}):
        with pytest.raises(UsageError, match="no member 'nope' in the archive"):
            written(zipped(MEMBERS), **more)


def test_a_signed_directory_is_refused():
    data = zipped(MEMBERS)
    end = len(data) - 22
    size, at = struct.unpack_from("<II", data, end + 12)
    signature = b"PK\5\5\3\0abc"
    raw = data[:end] + signature + data[end : end + 12] + struct.pack("<I", size + len(signature))
    raw += struct.pack("<IH", at, 0)
    assert opened(raw).findings == ()
    with pytest.raises(UnsupportedError, match="records between its directory and its end"):
        written(raw)


def test_bytes_behind_go_where_asked():
    data = zipped(MEMBERS)
    assert written(data + b"behind", trim=True) == data
    assert (
        written(data + b"behind", trim=False, drop=["a"]) == written(data, drop=["a"]) + b"behind"
    )


def test_extra_fields_without_room_are_refused(monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("a")
        info.extra = struct.pack("<HH", 0x7777, 65_531) + bytes(65_531)
        file.writestr(info, b"x" * 16)
    monkeypatch.setattr(zip_rewrite, "WIDE", 16)
    with pytest.raises(UnsupportedError, match="need 65,555 bytes, 65,535 are possible"):
        written(buffer.getvalue(), replace={"a": lambda: iter([b"y"])})
    assert contents(written(buffer.getvalue(), replace={"a": b"y"})) == {"a": b"y"}


def test_a_wrong_data_descriptor_is_put_right():
    data = torch_zip("0")
    one = opened(data).get("t/version")
    at = one.offset + one.stored
    raw = data[:at] + b"PK\7\x08" + bytes(12) + data[at + 16 :]
    assert opened(raw).findings != ()
    assert opened(written(raw)).findings == ()


def test_a_wrong_data_descriptor_of_a_large_member_is_put_right():
    source, rest = huge(described=True)
    at = max(source.parts)
    source.parts[at] = rest[:4] + bytes(20) + rest[24:]
    archive = read_archive(source)
    assert [finding.code for finding in archive.findings][:1] == ["CK005"]
    rewrite(archive, out := Ends())
    assert out.tail.endswith(rest)


def test_a_wrong_checksum_is_no_reason_to_refuse():
    data = zipped([("a", b"one", STORED)])
    wrong = data.replace(struct.pack("<I", zlib.crc32(b"one")), b"\1\2\3\4")
    archive = opened(wrong)
    archive.read(archive.get("a"), 10)
    assert [finding.code for finding in archive.findings] == ["CK001"]
    rewrite(archive, out := io.BytesIO())
    assert out.getvalue() == wrong


# Checksums that nobody computed.


def test_a_missing_checksum_stays_missing_where_the_data_stays():
    data = torch_zip("01").replace(struct.pack("<I", zlib.crc32(b"\1" * 107)), bytes(4))
    assert written(data) == data
    after = opened(written(data, replace={"t/data/1": b"new"}))
    assert after.get("t/data/1").crc32 == zlib.crc32(b"new")


# The real thing.


@pytest.mark.oracle
def test_torch_loads_archives_without_storages(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {f"w{i}": torch.randn(10 + i) for i in range(5)}
    torch.save(tensors, path := tmp_path / "m.pt")
    data = path.read_bytes()
    assert written(data) == data
    head = opened(data).get("m/data.pkl")
    torch.save({k: v for k, v in tensors.items() if k != "w4"}, tmp_path / "less.pt")
    less = opened((tmp_path / "less.pt").read_bytes())
    pickle = less.read(less.get("less/data.pkl"), 1 << 20)
    after = written(data, replace={head.name: pickle}, drop=["m/data/4"])
    (out := tmp_path / "out.pt").write_bytes(after)
    for mmap in (False, True):
        found = torch.load(out, weights_only=True, mmap=mmap)
        assert list(found) == ["w0", "w1", "w2", "w3"]
        assert all(torch.equal(found[name], tensors[name]) for name in found)
    assert all(m.offset % 64 == 0 for m in opened(after).members)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_loads_what_was_written(tmp_path):
    torch = pytest.importorskip("torch")
    script = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)))
    script.eval().save(str(path := tmp_path / "m.pt"))
    data = path.read_bytes()
    assert written(data) == data
    archive = opened(data)
    code = [m for m in archive.members if m.name.endswith(".py")]
    assert any(m.method for m in code)
    longer = {m.name: archive.read(m, 1 << 20) + b"\n\n" for m in code}
    (out := tmp_path / "out.pt").write_bytes(written(data, replace=longer))
    inputs = torch.randn(5, 3)
    assert torch.equal(torch.jit.load(str(out))(inputs), script(inputs))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_keras_loads_what_was_written(tmp_path):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save(path := tmp_path / "m.keras")
    data = path.read_bytes()
    assert written(data) == data
    archive = opened(data)
    config = archive.read(archive.get("config.json"), 1 << 20)
    after = written(data, replace={"config.json": lambda: iter([config, b"\n"])})
    (out := tmp_path / "out.keras").write_bytes(after)
    loaded = keras.models.load_model(out)
    for one, two in zip(model.get_weights(), loaded.get_weights(), strict=True):
        assert (one == two).all()


@pytest.mark.oracle
def test_numpy_loads_what_was_written(tmp_path):
    np = pytest.importorskip("numpy")
    for save in (np.savez, np.savez_compressed):
        save(path := tmp_path / "m.npz", a=np.arange(9), b=np.ones(3))
        data = path.read_bytes()
        assert written(data) == data
        (tmp_path / "out.npz").write_bytes(written(data, drop=["a.npy"]))
        with np.load(tmp_path / "out.npz") as found:
            assert found.files == ["b"]
            assert found["b"].tolist() == [1, 1, 1]
