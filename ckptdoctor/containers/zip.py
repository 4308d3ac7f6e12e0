"""Zip archives: the directory cross-checked against every local header, members as byte sources.

Loaders disagree about malformed archives (torch takes the first of two members of one name,
Python's ``zipfile`` the last; one believes the directory, another the local header), and files are
made to exploit it.  So both views are read, and every difference is a finding.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import BombError, FormatError, TruncatedError, UnsupportedError
from ..findings import Finding, Severity, container_finding
from ..sources import ByteSource, Extent, WindowSource
from ..tensors import Checksum

__all__ = ["DEFLATED", "STORED", "Archive", "Member", "read_archive"]

STORED, DEFLATED = 0, 8
MAX_DIRECTORY = 1 << 28
"""256 MiB, about four million members: the directory is held in memory while it is parsed."""
MAX_RATIO = 1032
"""DEFLATE cannot give more bytes than this for each stored one."""

_LOCAL_SIGN, _CENTRAL_SIGN, _END_SIGN = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64_SIGN, _LOCATOR_SIGN, _DESCRIPTOR_SIGN = b"PK\6\6", b"PK\6\7", b"PK\7\x08"
_END_BYTES, _END64_BYTES, _LOCATOR_BYTES, _CENTRAL_BYTES, _LOCAL_BYTES = 22, 56, 20, 46, 30
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _DESCRIBED, _PATCHED, _STRONG, _UTF8, _MASKED = 1, 8, 0x20, 0x40, 0x800, 0x2000
_NOTHING = bytes(12)
_ADVICE = "get the file again from where it came from, or save the model anew"

# signature, flags, method, crc, stored, size, name, extra and comment lengths, disk, header
_CENTRAL = struct.Struct("<4s4xHH4xIIIHHHH6xI")
# signature, flags, method, crc, stored, size, name and extra lengths
_LOCAL = struct.Struct("<4s2xHH4xIIIHH")


class Member(NamedTuple):
    """One entry of the directory.

    Parameters
    ----------
    name
        As the directory spells it; bytes that are no UTF-8 are read as code page 437.
    offset
        Of the data in the archive's source, in bytes; -1 where there is none (see ``broken``).
    stored, size
        Bytes in the archive, and after inflating.
    method
        0 stored, 8 deflated; others cannot be read.
    crc32
        None where it was never computed (0 for data that is not empty).
    header
        Offset of the local header.
    flags
        General purpose flags of the directory entry.
    broken
        Why the data cannot be had; empty for a sound member.
    """

    name: str
    offset: int
    stored: int
    size: int
    method: int
    crc32: int | None
    header: int
    flags: int
    broken: str


class Archive:
    """A parsed archive; see `read_archive`.

    Attributes
    ----------
    source
        The archive's bytes.
    members
        All entries in the order of the directory, duplicates included.
    """

    __slots__ = ("_first", "_last", "_oddities", "members", "source")

    def __init__(
        self, source: ByteSource, members: tuple[Member, ...], oddities: _Oddities
    ) -> None:
        self.source, self.members, self._oddities = source, members, oddities
        self._last = {member.name: member for member in members}
        self._first = self._last
        if len(self._last) < len(members):
            self._first = {member.name: member for member in reversed(members)}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong so far; `read` adds checksum mismatches, so take it last."""
        return self._oddities.findings()

    def get(self, name: str) -> Member | None:
        """Member of this name; the first of duplicates, as torch takes it."""
        return self._first.get(name)

    def last(self, name: str) -> Member | None:
        """Member of this name; the last of duplicates, as Python's zipfile takes it."""
        return self._last.get(name)

    def where(self, member: Member) -> str:
        """``file:member`` for messages."""
        return f"{self.source.name}:{_short(member.name)}"

    def open(self, member: Member) -> ByteSource:
        """Data of a member as a source; inflated while it is read where the archive deflates it.

        Raises
        ------
        FormatError
            If the entry is broken, encrypted or compressed by another method.
        """
        where = self.where(member)
        if member.broken:
            raise FormatError(member.broken, where=where, hint=_ADVICE)
        if member.flags & _ENCRYPTED:
            raise UnsupportedError("the member is encrypted", where=where, hint="decrypt it first")
        if member.method == STORED:
            return WindowSource(where, self.source, member.offset, member.stored)
        if member.method == DEFLATED:
            return _InflatingSource(where, self.source, member)
        hint = "zip it again without compression"
        raise UnsupportedError(f"compression method {member.method}", where=where, hint=hint)

    def read(self, member: Member, limit: int) -> bytes:
        """All data of a member; a checksum that differs becomes a finding (CK001).

        Parameters
        ----------
        limit
            Most bytes to accept.

        Raises
        ------
        BombError
            If the member is larger than ``limit``.
        FormatError
            As `open`; and if it does not inflate to its declared size.
        """
        source = self.open(member)
        if member.size > limit:
            message = f"expected at most {limit:,} bytes, the member declares {member.size:,}"
            raise BombError(message, where=source.name)
        if isinstance(source, _InflatingSource):
            source.strict = False
        data = source.pread(0, source.size)
        if member.crc32 is not None and zlib.crc32(data) != member.crc32:
            self._oddities.crc(member, zlib.crc32(data))
        return data

    def extent(self, member: Member) -> Extent:
        """Where the data of a stored member lies in the archive's source.

        Raises
        ------
        FormatError
            As `open`; and if the member is compressed.
        """
        source = self.open(member)
        if not isinstance(source, WindowSource):
            raise UnsupportedError("the member is compressed", where=source.name)
        return Extent(self.source, member.offset, member.stored)

    def checksum(self, member: Member) -> Checksum | None:
        """CRC-32 to check while the data is read; None where there is nothing to check."""
        if member.crc32 is None or member.broken or member.flags & _ENCRYPTED or not member.size:
            return None
        if member.method == STORED:
            extent = Extent(self.source, member.offset, member.stored)
        elif member.method == DEFLATED:
            extent = Extent(self.open(member), 0, member.size)
        else:
            return None
        return Checksum(extent, member.crc32, self.where(member))


def read_archive(source: ByteSource) -> Archive:
    """Parse the directory of a zip archive and compare it with the local headers.

    Memory grows with the directory, not with the archive; data of members is not touched.

    Raises
    ------
    TruncatedError
        If the archive has no end: an interrupted download.
    FormatError
        If there is no directory that could be trusted.

    Examples
    --------
    >>> import io, zipfile
    >>> with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
    ...     file.writestr("a/b", b"xyz")
    >>> archive = read_archive(WindowSource.over(buffer.getvalue(), "m.zip"))
    >>> archive.members[0].name, archive.read(archive.members[0], 10), archive.findings
    ('a/b', b'xyz', ())
    """
    oddities = _Oddities(source.name)
    end = _read_end(source, oddities)
    directory = source.pread(end.directory, end.size)
    rows = _central(directory, end, oddities, source.name)
    _judge_names([row.name for row in rows], oddities)
    locals_ = _Locals(source, directory, rows, end, oddities)
    places = locals_.places()
    broken = locals_.broken.get
    members = tuple(
        Member(row.name, places[i], row.stored, row.size, row.method,
               row.crc if row.crc or not row.size else None, row.header, row.flags, broken(i, ""))
        for i, row in enumerate(rows)
    )  # fmt: skip
    bare = sum(member.crc32 is None for member in members)
    if bare:
        message = (
            f"{bare:,} of {len(members):,} members carry no checksum (CRC-32 0): damage to them "
            "cannot be noticed"
        )
        oddities.add("no checksum", Severity.NOTE, message, code="CK001")
    return Archive(source, members, oddities)


class _Oddities:
    """Findings by kind, a few of each: a hostile directory can hold millions of one kind."""

    SHOWN = 3

    def __init__(self, where: str) -> None:
        self._where = where
        self._kept: dict[str, list[Finding]] = {}
        self._counts: dict[str, int] = {}

    def add(
        self, kind: str, severity: Severity, message: str, member: str = "", code: str = "CK005"
    ) -> None:
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= self.SHOWN:
            where = f"{self._where}:{_short(member)}" if member else self._where
            finding = container_finding(code, severity, message, where=where)
            self._kept.setdefault(kind, []).append(finding)

    def crc(self, member: Member, found: int) -> None:
        kind = f"checksum of {member.header}"
        if kind not in self._counts:
            message = f"CRC-32 of the data is {found:#010x}, the archive states {member.crc32:#010x}"
            self.add(kind, Severity.ERROR, message, member.name, "CK001")

    def findings(self) -> tuple[Finding, ...]:
        found: list[Finding] = []
        for kind, kept in self._kept.items():
            found += kept
            more = self._counts[kind] - len(kept)
            if more:
                message = f"{more:,} more findings of this kind: {kind}"
                last = kept[-1]
                found.append(
                    container_finding(last.code, last.severity, message, where=self._where)
                )
        return tuple(found)


class _End(NamedTuple):
    """Where the directory lies and what the end record says about it."""

    directory: int
    size: int
    count: int
    base: int  # to add to every stated offset: bytes put before the archive
    end64: int  # first byte of the end records
    stop: int  # first byte behind them


def _read_end(source: ByteSource, oddities: _Oddities) -> _End:
    """Find the end record and check what it says about the place of the directory."""
    tail_at = max(0, source.size - _MAX16 - _END_BYTES)
    tail = source.pread(tail_at, source.size - tail_at)
    found = tail.rfind(_END_SIGN, 0, max(0, len(tail) - _END_BYTES + len(_END_SIGN)))
    if found < 0:
        message = (
            f"the archive breaks off: {source.size:,} bytes are here, the directory that ends "
            "every zip file is missing"
        )
        raise TruncatedError(message, where=f"{source.name}+{source.size}", hint="download it again")
    position = tail_at + found
    stop = _judge_tail(tail, found, tail_at, source.size, oddities)
    disk, start_disk, here, count, size, offset = struct.unpack_from("<4H2I", tail, found + 4)
    if disk not in (0, _MAX16) or start_disk not in (0, _MAX16) or here != count:
        message = f"claims to be disk {disk} of a set that starts on disk {start_disk}"
        oddities.add("several disks", Severity.ERROR, message)
    end64, wide = _read_end64(source, position, (count, size, offset), oddities)
    if wide is not None:
        count, size, offset = wide
    base = end64 - size - offset
    where = f"{source.name}+{position}"
    if base < 0:
        message = (
            f"the end record puts a directory of {size:,} bytes at {offset:,}, "
            f"but itself lies at {position:,}"
        )
        raise FormatError(message, where=where, hint=_ADVICE)
    if size > MAX_DIRECTORY:
        message = f"expected a directory of at most {MAX_DIRECTORY:,} bytes, found {size:,}"
        raise BombError(message, where=where)
    if base and size and source.pread(offset, 4) == _CENTRAL_SIGN:
        if source.pread(offset + base, 4) == _CENTRAL_SIGN:
            message = f"two directories, at {offset:,} and {offset + base:,}: loaders disagree"
            raise FormatError(message, where=where, hint=_ADVICE)
        return _End(offset, size, count, 0, end64, stop)  # bytes between directory and end
    return _End(offset + base, size, count, base, end64, stop)


def _judge_tail(tail: bytes, found: int, tail_at: int, size: int, oddities: _Oddities) -> int:
    """Offset behind the end record and its comment; other end records in sight are reported."""
    comment = tail[found + 20] | tail[found + 21] << 8
    stop = tail_at + found + _END_BYTES + comment
    if stop > size:
        message = f"the comment is to have {comment:,} bytes, the file ends {stop - size:,} earlier"
        oddities.add("comment", Severity.ERROR, message)
    elif stop < size:
        message = f"{size - stop:,} bytes follow the end of the archive"
        oddities.add("bytes behind", Severity.WARNING, message)
    others = [tail.find(_END_SIGN, found + 4)]
    before = tail.rfind(_END_SIGN, 0, found)
    while before >= 0:
        claimed = before + _END_BYTES + (tail[before + 20] | tail[before + 21] << 8)
        others.append(before if claimed == len(tail) else -1)
        before = tail.rfind(_END_SIGN, 0, before)
    for other in others:
        if other >= 0:
            message = f"two end records, at {tail_at + other:,} and {tail_at + found:,}"
            oddities.add("two end records", Severity.ERROR, f"{message}: loaders disagree")
    return min(stop, size)


def _read_end64(
    source: ByteSource, position: int, narrow: tuple[int, int, int], oddities: _Oddities
) -> tuple[int, tuple[int, int, int] | None]:
    """Start of the end records, and (count, size, offset) of the zip64 one if there is one."""
    at = position - _LOCATOR_BYTES
    if at < 0 or source.pread(at, 4) != _LOCATOR_SIGN:
        return position, None
    (stated,) = struct.unpack("<Q", source.pread(at + 8, 8))
    usual = at - _END64_BYTES
    places = {
        place
        for place in (stated, usual)
        if 0 <= place <= usual and source.pread(place, 4) == _END64_SIGN
    }
    if len(places) != 1:
        what = "two zip64 end records" if places else "the zip64 end record is not where it should be"
        oddities.add("zip64 end", Severity.ERROR, f"{what}: loaders disagree")
        if not places:
            return at, None
    place = usual if usual in places else stated
    count, size, offset = struct.unpack("<3Q", source.pread(place + 32, 24))
    limits = (_MAX16, _MAX32, _MAX32)
    if any(
        small not in (limit, big)
        for small, limit, big in zip(narrow, limits, (count, size, offset), strict=True)
    ):
        message = (
            f"end records disagree: {narrow[0]:,} members, directory of {narrow[1]:,} bytes at "
            f"{narrow[2]:,}; zip64: {count:,}, {size:,} at {offset:,}"
        )
        oddities.add("end records disagree", Severity.ERROR, message)
    return place, (count, size, offset)


class _Row(NamedTuple):
    """One directory entry; ``at`` is its offset in the directory, ``raw`` the name's bytes."""

    name: str
    raw: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int
    at: int
    problem: str


def _central(directory: bytes, end: _End, oddities: _Oddities, where: str) -> list[_Row]:
    """Entries of the directory, each checked for itself."""
    rows: list[_Row] = []
    unpack, add, base = _CENTRAL.unpack_from, rows.append, end.base
    at, last = 0, len(directory) - _CENTRAL_BYTES
    while at <= last:
        sign, flags, method, crc, stored, size, names, extras, comments, disk, header = unpack(
            directory, at
        )
        stop = at + _CENTRAL_BYTES + names
        if sign != _CENTRAL_SIGN or stop + extras + comments > len(directory):
            break
        raw, problem = directory[at + _CENTRAL_BYTES : stop], ""
        name = raw.decode() if raw.isascii() else _decode(raw, flags)
        if extras:
            extra = directory[stop : stop + extras]
            stored, size, header, problem = _widen(extra, stored, size, header)
            _judge_unicode_name(extra, name, oddities)
        elif _MAX32 in (stored, size, header):
            problem = "its sizes are to stand in a zip64 field that is not there"
        if disk and disk != _MAX16:
            oddities.add("several disks", Severity.ERROR, f"lies on disk {disk}", name)
        add(_Row(name, raw, flags, method, crc, stored, size, header + base, at, problem))
        at = stop + extras + comments
    if at != len(directory) and directory[at : at + 4] != b"PK\5\5":  # a digital signature
        message = f"entry {len(rows):,} of the directory: expected PK\\1\\2 and its fields"
        found = f"found {directory[at : at + 8]!r}"
        raise FormatError(f"{message}, {found}", where=f"{where}+{end.directory + at}", hint=_ADVICE)
    if len(rows) != end.count:
        message = f"the end record counts {end.count:,} members, the directory lists {len(rows):,}"
        oddities.add("count", Severity.ERROR, message)
    return rows


def _decode(raw: bytes, flags: int) -> str:
    if flags & _UTF8:
        return raw.decode("utf-8", "backslashreplace")
    return raw.decode("cp437")


def _fields(extra: bytes) -> dict[int, bytes]:
    """Extra fields by number, the first of each; a field cut short is left out."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<HH", extra, at)
        if at + 4 + length > len(extra):
            break
        found.setdefault(number, extra[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _widen(extra: bytes, stored: int, size: int, header: int) -> tuple[int, int, int, str]:
    """Replace the sizes and the offset that stand in the zip64 field."""
    wanted = [value == _MAX32 for value in (size, stored, header)]
    if not any(wanted):
        return stored, size, header, ""
    field = _fields(extra).get(1, b"")
    if len(field) < 8 * sum(wanted):
        problem = f"its zip64 field has {len(field)} bytes of {8 * sum(wanted)}"
        return stored, size, header, problem
    values = iter(struct.unpack_from(f"<{sum(wanted)}Q", field))
    size, stored, header = (
        next(values) if wide else value
        for wide, value in zip(wanted, (size, stored, header), strict=True)
    )
    return stored, size, header, ""


def _judge_unicode_name(extra: bytes, name: str, oddities: _Oddities) -> None:
    """Report a second name, which newer versions of Python's zipfile prefer and torch does not."""
    field = _fields(extra).get(0x7075) if b"\x75\x70" in extra else None
    if field is not None and field[5:].decode("utf-8", "backslashreplace") != name:
        other = field[5:].decode("utf-8", "backslashreplace")
        message = f"has a second name {_short(other)!r}: loaders disagree"
        oddities.add("two names", Severity.ERROR, message, name)


def _judge_names(names: Sequence[str], oddities: _Oddities) -> None:
    """Report names that occur twice, or that are made to be taken for something else."""
    if len(set(names)) != len(names):
        seen: dict[str, int] = {}
        for name in names:
            seen[name] = seen.get(name, 0) + 1
        for name, count in seen.items():
            if count > 1:
                message = (
                    f"{count} members of one name: torch takes the first, Python's zipfile the last"
                )
                oddities.add("duplicate members", Severity.ERROR, message, name)
    joined = "\n".join(names)  # one search over all is 20 times faster than one per name
    if "\0" in joined:
        message = "a NUL in the name, where some loaders end it"
        for name in names:
            if "\0" in name:
                oddities.add("NUL in a name", Severity.ERROR, message, name)
    if ".." in joined or "\\" in joined or ":" in joined or "\n/" in f"\n{joined}":
        for name in names:
            if _leaves_folder(name):
                message = "the name points outside the folder that it would be unpacked to"
                oddities.add("names with paths", Severity.WARNING, message, name)
    if "__MACOSX/" in joined:
        count = sum(name.startswith("__MACOSX/") for name in names)
        message = f"{count} members were added by macOS; torch.load refuses more than one top folder"
        hint = "zip it again without __MACOSX"
        oddities.add("__MACOSX", Severity.WARNING, f"{message}; {hint}")


def _leaves_folder(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":")


class _Locals:
    """Walk over the local headers in file order, and over what lies between the members."""

    BLOCK = 1 << 18
    LITTLE = 1 << 10
    DENSE = 16
    """A large block is read only where the last one served so many members: what is read stays
    in proportion to the directory however the members are strewn."""

    def __init__(
        self,
        source: ByteSource,
        directory: bytes,
        rows: Sequence[_Row],
        end: _End,
        oddities: _Oddities,
    ) -> None:
        self._source, self._directory, self._rows = source, directory, rows
        self._end, self._oddities = end, oddities
        self._block, self._start, self._turn, self._large_at = b"", 0, 0, -self.DENSE
        self.broken = {i: row.problem for i, row in enumerate(rows) if row.problem}

    def places(self) -> list[int]:
        """Offset of each row's data; -1 where it cannot be told, with the reason in ``broken``."""
        rows, directory, size = self._rows, self._directory, self._source.size
        places = [-1] * len(rows)
        order = sorted(range(len(rows)), key=[row.header for row in rows].__getitem__)
        claimed = 0
        for self._turn, i in enumerate(order):
            row = rows[i]
            _, raw, flags, method, _, stored, unpacked, header, at, _ = row
            length = _LOCAL_BYTES + len(raw)
            if header + length > size:
                self._break(i, f"its header is to lie at {header:,}, the file has {size:,} bytes")
                continue
            q = self._at(header, length)
            block = self._block
            same = block[q + 30 : q + length] == raw and block[q : q + 4] == _LOCAL_SIGN
            if not (
                same
                and (
                    directory[at + 8 : at + 30] == block[q + 6 : q + 28]
                    if not flags & _DESCRIBED
                    else directory[at + 8 : at + 12] == block[q + 6 : q + 10]
                    and block[q + 14 : q + 26] == _NOTHING
                    and directory[at + 28 : at + 30] == block[q + 26 : q + 28]
                )
            ) and not self._compare(i, q):
                continue
            q = header - self._start
            block = self._block
            names = block[q + 26] | block[q + 27] << 8
            data = header + _LOCAL_BYTES + names + (block[q + 28] | block[q + 29] << 8)
            stop = data + stored
            if i in self.broken or not self._fits(i, data):
                self._break(i, self.broken[i])
                continue
            if flags & _SUSPECT or method:
                self._judge_method(row)
            if not method and stored != unpacked:
                reason = f"stored data of {stored:,} bytes is to have {unpacked:,}"
                self._break(i, reason)
            places[i] = data
            if header != claimed:
                self._between(claimed, header, row.name)
            claimed = self._described(row, stop) if flags & _DESCRIBED else stop
        self._finish(claimed)
        return places
