"""A zip archive written anew: some members with other data, some gone, the rest as it was."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import BinaryIO, Final, NamedTuple

from ..containers.zip import DEFLATED, Archive, Member
from ..containers.zip_directory import MAX32
from ..errors import UnsupportedError, UsageError
from ..findings import Severity
from ..sources import ByteSource
from .zip_end import end_records, read_end
from .zip_extra import LocalExtra, alignment_of, central_extra

__all__ = ["Content", "rewrite"]

Content = bytes | Callable[[], Iterator[bytes]]
"""New data of a member: bytes, or what gives them in blocks."""

BLOCK: Final = 1 << 20
WIDE: Final = 1 << 30
"""A member of more bytes, whose new size is not known beforehand, gets room for a 64-bit size."""
DESCRIBED: Final = 8
ZIP64_VERSION: Final = 45
_LOCAL: Final = struct.Struct("<4s3H2H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_DESCRIPTOR_SIGN: Final = b"PK\7\x08"


class _Sizes(NamedTuple):
    """What headers say of a member's data."""

    crc32: int
    stored: int
    size: int


def rewrite(
    archive: Archive,
    out: Callable[[bytes], object] | BinaryIO,
    *,
    replace: Mapping[str, Content] | None = None,
    drop: Collection[str] = (),
    trim: bool = False,
) -> int:
    """Write an archive with other data in some members, and without others.

    Order, names, times, flags, comments, attributes and compression of all members stay, and the
    data of those that are not named: deflated data is copied as it is.  Data that started at a
    multiple of 64 bytes (or of more) by torch's padding does so again.  With nothing to replace
    or drop the bytes are those of the input.  Bytes between members that belong to none go.

    Parameters
    ----------
    archive
        The input.
    out
        A binary file, or what takes the bytes in order, about 1 MiB at a time.
    replace
        New data by member name; deflated anew where the member is.
    drop
        Names of members to leave out.
    trim
        Whether to leave out what follows the end of the archive.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    UsageError
        If there is no member of a name.
    UnsupportedError
        If loaders would disagree about what the archive holds (CK005): a copy would settle that
        without being asked.

    Examples
    --------
    >>> import io, zipfile
    >>> from ckptdoctor.containers.zip import read_archive
    >>> from ckptdoctor.sources import WindowSource
    >>> with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
    ...     file.writestr("a", b"one")
    ...     file.writestr("b", b"two")
    >>> archive = read_archive(WindowSource.over(buffer.getvalue(), "m.zip"))
    >>> size = rewrite(archive, made := io.BytesIO(), replace={"b": b"three"}, drop=["a"])
    >>> zipfile.ZipFile(made).read("b")
    b'three'
    """
    replace, drop = replace or {}, frozenset(drop)
    _check(archive, [*replace, *drop])
    end = read_end(archive.source, archive.members)
    writer = _Writer(archive, out if callable(out) else out.write)
    entries: dict[int, bytes] = {}
    for i in sorted(range(len(archive.members)), key=lambda i: archive.members[i].header):
        member = archive.members[i]
        if member.name not in drop:
            entries[i] = writer.member(member, replace.get(member.name))
    directory = writer.position
    for i in sorted(entries):
        writer.put(entries[i])
    writer.put(end_records(end, len(entries), directory, writer.position - directory))
    if not trim:
        writer.copy(end.stop, archive.source.size - end.stop)
    return writer.position


def _check(archive: Archive, names: Collection[str]) -> None:
    wrong = [f for f in archive.findings if f.code == "CK005" and f.severity >= Severity.ERROR]
    if wrong:
        message = f"the archive cannot be written anew: {wrong[0].message}"
        hint = "get the file again from where it came from, or save the model anew"
        raise UnsupportedError(message, where=archive.source.name, hint=hint)
    for name in names:
        if archive.get(name) is None:
            raise UsageError(f"no member {name!r:.200} in the archive", where=archive.source.name)


class _Writer:
    """Writes members one behind the other."""

    def __init__(self, archive: Archive, out: Callable[[bytes], object]) -> None:
        self.source: ByteSource = archive.source
        self.where = archive.where
        self.position = 0
        self._out = out
        self._alignment = alignment_of(archive)

    def put(self, data: bytes) -> None:
        """Write bytes."""
        if data:
            self._out(data)
            self.position += len(data)

    def copy(self, offset: int, length: int) -> None:
        """Write bytes of the input."""
        for start in range(offset, offset + length, BLOCK):
            self.put(self.source.pread(start, min(BLOCK, offset + length - start)))

    def member(self, member: Member, content: Content | None) -> bytes:
        """Write a member; gives its entry for the directory."""
        header = self.position
        if content is None:
            return self._as_it_is(member, header)
        if callable(content):
            return self._streamed(member, header, content)
        return self._known(member, header, content)

    def _local(
        self, member: Member, header: int, flags: int, sizes: _Sizes | None, *, wide: bool = False
    ) -> None:
        """Write a local header; ``sizes`` None leaves them as they are."""
        fixed = _LOCAL.unpack(self.source.pread(member.header, _LOCAL.size))
        sign, need, _, method, time, date, *stated, named, extras = fixed
        raw = self.source.pread(member.header + _LOCAL.size, named + extras)
        extra = LocalExtra(raw[named:])
        if sizes is None:
            extra.keep_sizes(header, escaped=MAX32 in stated[1:])
        else:
            wide = wide or max(sizes.stored, sizes.size) >= MAX32
            extra.set_sizes((sizes.size, sizes.stored) if wide else None)
            stated = [sizes.crc32, *((MAX32, MAX32) if wide else sizes[1:])]
            need = max(need, ZIP64_VERSION) if wide else need
        extra.align(header + _LOCAL.size + named, member.offset, self._alignment)
        data = extra.joined()
        if len(data) > 0xFFFF:
            message = f"its extra fields need {len(data):,} bytes, 65,535 are possible"
            raise UnsupportedError(message, where=self.where(member))
        self.put(_LOCAL.pack(sign, need, flags, method, time, date, *stated, named, len(data)))
        self.put(raw[:named] + data)

    def _as_it_is(self, member: Member, header: int) -> bytes:
        sizes = _Sizes(member.crc32 or 0, member.stored, member.size)
        flags = self._flags(member)
        self._local(member, header, flags, None)
        self.copy(member.offset, member.stored)
        if flags & DESCRIBED:
            self.put(self._descriptor_of(member, sizes))
        return self._entry(member, header, flags, sizes)

    def _known(self, member: Member, header: int, content: bytes) -> bytes:
        data = content
        if member.method == DEFLATED:
            deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            data = deflater.compress(content) + deflater.flush()
        sizes = _Sizes(zlib.crc32(content), len(data), len(content))
        flags = self._flags(member)
        if flags & DESCRIBED:
            wide = max(sizes.stored, sizes.size) >= MAX32
            self._local(member, header, flags, _Sizes(0, 0, 0), wide=wide)
        else:
            self._local(member, header, flags, sizes)
        for start in range(0, len(data), BLOCK):
            self.put(data[start : start + BLOCK])
        if flags & DESCRIBED:
            self.put(_described(sizes, wide=max(sizes.stored, sizes.size) >= MAX32))
        return self._entry(member, header, flags, sizes)

    def _streamed(
        self, member: Member, header: int, content: Callable[[], Iterator[bytes]]
    ) -> bytes:
        """Write data of unknown size: its size and checksum follow it."""
        wide = max(member.stored, member.size) >= WIDE
        flags = self._flags(member) | DESCRIBED
        self._local(member, header, flags, _Sizes(0, 0, 0), wide=wide)
        deflater = None
        if member.method == DEFLATED:
            deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        crc, size, start = 0, 0, self.position
        for block in content():
            crc, size = zlib.crc32(block, crc), size + len(block)
            self.put(deflater.compress(block) if deflater else block)
        self.put(deflater.flush() if deflater else b"")
        sizes = _Sizes(crc, self.position - start, size)
        if max(sizes.stored, sizes.size) >= MAX32 and not wide:
            message = f"grew from {member.size:,} to {size:,} bytes, more than was planned for"
            raise UnsupportedError(message, where=self.where(member))
        self.put(_described(sizes, wide=wide))
        return self._entry(member, header, flags, sizes)

    def _flags(self, member: Member) -> int:
        """Read the local header's flags, which those of the directory do not contradict."""
        return int.from_bytes(self.source.pread(member.header + 6, 2), "little")

    def _descriptor_of(self, member: Member, sizes: _Sizes) -> bytes:
        """Give the data descriptor as it stands behind a member, or as it should."""
        at = member.offset + member.stored
        found = self.source.pread(at, min(24, self.source.size - at))
        for form in ("<IQQ", "<3I") if max(sizes[1:]) < MAX32 else ("<IQQ",):
            for sign in (_DESCRIPTOR_SIGN, b""):
                expected = sign + struct.pack(form, *sizes)
                if found.startswith(expected):
                    return expected
        return _described(sizes, wide=max(sizes[1:]) >= MAX32)

    def _entry(self, member: Member, header: int, flags: int, sizes: _Sizes) -> bytes:
        """Entry of the directory."""
        fixed = list(_CENTRAL.unpack(self.source.pread(member.entry, _CENTRAL.size)))
        named, extras, comment = fixed[10:13]
        raw = self.source.pread(member.entry + _CENTRAL.size, named + extras + comment)
        wanted = (sizes.size, sizes.stored, header)
        escaped = [
            stated == MAX32 or value >= MAX32
            for stated, value in zip((fixed[9], fixed[8], fixed[16]), wanted, strict=True)
        ]
        extra = central_extra(
            raw[named : named + extras],
            [value for value, wide in zip(wanted, escaped, strict=True) if wide],
        )
        if any(escaped) and MAX32 not in (fixed[8], fixed[9], fixed[16]):
            fixed[2] = max(fixed[2], ZIP64_VERSION)
        fixed[3] |= flags & DESCRIBED
        fixed[7] = sizes.crc32
        fixed[9], fixed[8], fixed[16] = (
            MAX32 if wide else value for value, wide in zip(wanted, escaped, strict=True)
        )
        fixed[11] = len(extra)
        return _CENTRAL.pack(*fixed) + raw[:named] + extra + raw[named + extras :]


def _described(sizes: _Sizes, *, wide: bool) -> bytes:
    return _DESCRIPTOR_SIGN + struct.pack("<IQQ" if wide else "<3I", *sizes)
