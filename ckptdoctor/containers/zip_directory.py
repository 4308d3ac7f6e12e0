"""The end records and the central directory of a zip archive; `ckptdoctor.containers.zip` uses it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import BombError, FormatError, TruncatedError
from ..findings import Finding, Severity, container_finding
from ..sources import ByteSource

__all__ = ["Directory", "End", "Oddities", "fields", "read_directory", "short"]

MAX_DIRECTORY = 1 << 28
"""256 MiB, about four million members: the directory is held in memory while it is parsed."""
ADVICE = "get the file again from where it came from, or save the model anew"

LOCAL_SIGN, CENTRAL_SIGN, END_SIGN = b"PK\3\4", b"PK\1\2", b"PK\5\6"
END64_SIGN, LOCATOR_SIGN = b"PK\6\6", b"PK\6\7"
CENTRAL_BYTES = 46
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
UTF8 = 0x800
_END_BYTES, _END64_BYTES, _LOCATOR_BYTES = 22, 56, 20

_CENTRAL = np.dtype(
    [
        ("sign", "<u4"), ("made", "<u2"), ("need", "<u2"), ("flags", "<u2"), ("method", "<u2"),
        ("time", "<u4"), ("crc", "<u4"), ("stored", "<u4"), ("size", "<u4"), ("name", "<u2"),
        ("extra", "<u2"), ("comment", "<u2"), ("disk", "<u2"), ("inner", "<u2"), ("outer", "<u4"),
        ("header", "<u4"),
    ]
)  # fmt: skip
_COLUMNS = ("flags", "method", "crc", "stored", "size", "name", "extra", "disk", "header")
_CENTRAL_NUMBER = int.from_bytes(CENTRAL_SIGN, "little")
_LENGTHS = struct.Struct("<HHH")


class Oddities:
    """Findings by kind, a few of each: a hostile directory can hold millions of one kind."""

    SHOWN = 3

    def __init__(self, where: str) -> None:
        self._where = where
        self._kept: dict[str, list[Finding]] = {}
        self._counts: dict[str, int] = {}

    def add(
        self,
        kind: str,
        severity: Severity,
        message: str,
        member: str = "",
        code: str = "CK005",
        **measured: Any,
    ) -> None:
        """Note a finding about a member, or about the archive where ``member`` is empty."""
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= self.SHOWN:
            where = f"{self._where}:{short(member)}" if member else self._where
            finding = container_finding(code, severity, message, where=where, **measured)
            self._kept.setdefault(kind, []).append(finding)

    def seen(self, kind: str) -> bool:
        """Whether there is a finding of this kind."""
        return kind in self._counts

    def findings(self) -> tuple[Finding, ...]:
        """All kinds in the order they were first seen."""
        found: list[Finding] = []
        for kind, kept in self._kept.items():
            found += kept
            more = self._counts[kind] - len(kept)
            if more:
                last, message = kept[-1], f"{more:,} more findings of this kind: {kind}"
                found.append(
                    container_finding(last.code, last.severity, message, where=self._where)
                )
        return tuple(found)


class End(NamedTuple):
    """Where the directory lies and what the end record says about it; offsets in the source.

    Parameters
    ----------
    directory, size
        First byte of the directory and its length.
    entries
        Entries it is to have.
    base
        To add to every stated offset: bytes put before the archive.
    end64
        First byte of the end records; no member may reach it.
    """

    directory: int
    size: int
    entries: int
    base: int
    end64: int


class Directory(NamedTuple):
    """Entries as columns (one tuple for each entry would cost more than parsing it).

    ``raw`` holds the directory's bytes, ``fixed`` the fields as they stand there, ``at`` the offset of each entry in them, ``lengths`` that
    of the names in bytes; ``broken`` says why an entry cannot be used.
    """

    raw: bytes
    end: End
    fixed: npt.NDArray[np.void]
    at: npt.NDArray[np.int64]
    names: list[str]
    lengths: list[int]
    flags: list[int]
    methods: list[int]
    crcs: list[int]
    stored: list[int]
    sizes: list[int]
    headers: list[int]
    broken: dict[int, str]


def read_directory(source: ByteSource, oddities: Oddities) -> Directory:
    """Find and parse the directory; each entry is checked for itself.

    Raises
    ------
    TruncatedError
        If the archive has no end.
    FormatError
        If there is no directory that could be trusted.
    """
    end = _read_end(source, oddities)
    raw = source.pread(end.directory, end.size)
    at, names = _walk(raw, end, source.name)
    if len(at) != end.entries:
        message = f"the end record counts {end.entries:,} members, the directory lists {len(at):,}"
        oddities.add("count", Severity.ERROR, message)
    fixed = _fixed(raw, at)
    strange = np.flatnonzero(fixed["sign"] != _CENTRAL_NUMBER)
    if strange.size:
        raise _no_entry(raw, int(strange[0]), at[int(strange[0])], end, source.name)
    flags, methods, crcs, stored, sizes, lengths, extras, disks, headers = (
        fixed[field].tolist() for field in _COLUMNS
    )
    texts = [
        name.decode() if name.isascii() else _decode(name, flags[i]) for i, name in enumerate(names)
    ]
    directory = Directory(
        raw,
        end,
        fixed,
        np.array(at, np.int64),
        texts,
        lengths,
        flags,
        methods,
        crcs,
        stored,
        sizes,
        headers,
        {},
    )
    if any(extras) or MAX32 in stored or MAX32 in sizes or MAX32 in headers:
        _read_extras(directory, extras, oddities)
    if any(disks):
        for name, disk in zip(texts, disks, strict=True):
            if disk not in (0, MAX16):
                oddities.add("several disks", Severity.ERROR, f"lies on disk {disk}", name)
    if end.base:
        headers[:] = [header + end.base for header in headers]
    _judge_names(texts, oddities)
    return directory


def _read_end(source: ByteSource, oddities: Oddities) -> End:
    """Find the end record and check what it says about the place of the directory."""
    tail_at = max(0, source.size - MAX16 - _END_BYTES)
    tail = source.pread(tail_at, source.size - tail_at)
    found = tail.rfind(END_SIGN, 0, max(0, len(tail) - _END_BYTES + len(END_SIGN)))
    if found < 0:
        message = (
            f"the archive breaks off: {source.size:,} bytes are here, the directory that ends "
            "every zip file is missing"
        )
        raise TruncatedError(
            message, where=f"{source.name}+{source.size}", hint="download it again"
        )
    position = tail_at + found
    _judge_tail(tail, found, tail_at, oddities)
    disk, first_disk, here, count, size, offset = struct.unpack_from("<4H2I", tail, found + 4)
    if disk not in (0, MAX16) or first_disk not in (0, MAX16) or here != count:
        message = f"claims to be disk {disk} of a set that starts on disk {first_disk}"
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
        raise FormatError(message, where=where, hint=ADVICE)
    if size > MAX_DIRECTORY:
        message = f"expected a directory of at most {MAX_DIRECTORY:,} bytes, found {size:,}"
        raise BombError(message, where=where)
    if base and size and source.pread(offset, 4) == CENTRAL_SIGN:
        if source.pread(offset + base, 4) == CENTRAL_SIGN:
            message = f"two directories, at {offset:,} and {offset + base:,}: loaders disagree"
            raise FormatError(message, where=where, hint=ADVICE)
        return End(offset, size, count, 0, end64)  # bytes between directory and end
    return End(offset + base, size, count, base, end64)


def _judge_tail(tail: bytes, found: int, tail_at: int, oddities: Oddities) -> None:
    """Report what follows the end record, and other end records in sight."""
    over = found + _END_BYTES + (tail[found + 20] | tail[found + 21] << 8) - len(tail)
    if over > 0:
        oddities.add("comment", Severity.ERROR, f"the comment is {over:,} bytes short")
    elif over < 0:
        message = f"{-over:,} bytes follow the end of the archive"
        end = tail_at + len(tail) + over
        oddities.add("bytes behind", Severity.WARNING, message, end=end)
    others = [tail.find(END_SIGN, found + 4)]
    before = tail.rfind(END_SIGN, 0, found)
    while before >= 0:
        claimed = before + _END_BYTES + (tail[before + 20] | tail[before + 21] << 8)
        others.append(before if claimed == len(tail) else -1)
        before = tail.rfind(END_SIGN, 0, before)
    for other in others:
        if other >= 0:
            message = f"two end records, at {tail_at + other:,} and {tail_at + found:,}"
            oddities.add("two end records", Severity.ERROR, f"{message}: loaders disagree")


def _read_end64(
    source: ByteSource, position: int, narrow: tuple[int, int, int], oddities: Oddities
) -> tuple[int, tuple[int, int, int] | None]:
    """Start of the end records, and (count, size, offset) of the zip64 one if there is one."""
    at = position - _LOCATOR_BYTES
    if at < 0 or source.pread(at, 4) != LOCATOR_SIGN:
        return position, None
    (stated,) = struct.unpack("<Q", source.pread(at + 8, 8))
    usual = at - _END64_BYTES
    places = {
        place
        for place in (stated, usual)
        if 0 <= place <= usual and source.pread(place, 4) == END64_SIGN
    }
    if len(places) != 1:
        what = "two zip64 end records" if places else "the zip64 end record is not in its place"
        oddities.add("zip64 end", Severity.ERROR, f"{what}: loaders disagree")
        if not places:
            return at, None
    place = usual if usual in places else stated
    count, size, offset = struct.unpack("<3Q", source.pread(place + 32, 24))
    limits = (MAX16, MAX32, MAX32)
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


def _walk(raw: bytes, end: End, where: str) -> tuple[list[int], list[bytes]]:
    """Offset and name of each entry; whether each starts with its signature is seen later."""
    places: list[int] = []
    names: list[bytes] = []
    unpack = _LENGTHS.unpack_from
    at, last, size = 0, len(raw) - CENTRAL_BYTES, len(raw)
    while at <= last:
        length, extra, comment = unpack(raw, at + 28)
        stop = at + CENTRAL_BYTES + length
        names.append(raw[at + CENTRAL_BYTES : stop])
        places.append(at)
        at = stop + extra + comment
    if at > size:
        raise _no_entry(raw, len(places) - 1, places[-1], end, where)
    if at != size and raw[at : at + 4] != b"PK\5\5":  # a digital signature may follow
        raise _no_entry(raw, len(places), at, end, where)
    return places, names


def _no_entry(raw: bytes, number: int, at: int, end: End, where: str) -> FormatError:
    message = f"expected entry {number:,} of the directory, found {raw[at : at + 8]!r}"
    return FormatError(message, where=f"{where}+{end.directory + at}", hint=ADVICE)


def _fixed(raw: bytes, at: list[int]) -> npt.NDArray[np.void]:
    """Fields of all entries at once."""
    if not at:
        return np.empty(0, _CENTRAL)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(raw, np.uint8), CENTRAL_BYTES)
    return np.ascontiguousarray(windows[at]).view(_CENTRAL).reshape(-1)


def _decode(raw: bytes, flags: int) -> str:
    return raw.decode("utf-8", "backslashreplace") if flags & UTF8 else raw.decode("cp437")


def fields(extra: bytes) -> dict[int, bytes]:
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


def _read_extras(directory: Directory, extras: list[int], oddities: Oddities) -> None:
    """Replace sizes and offsets that stand in zip64 fields; report second names."""
    stored, sizes, headers = directory.stored, directory.sizes, directory.headers
    for i, length in enumerate(extras):
        wanted = [value == MAX32 for value in (sizes[i], stored[i], headers[i])]
        if not length and not any(wanted):
            continue
        at = int(directory.at[i]) + CENTRAL_BYTES + directory.lengths[i]
        found = fields(directory.raw[at : at + length])
        wide = found.get(1, b"")
        if len(wide) < 8 * sum(wanted):
            directory.broken[i] = f"its zip64 field has {len(wide)} bytes of {8 * sum(wanted)}"
        elif any(wanted):
            values = iter(struct.unpack_from(f"<{sum(wanted)}Q", wide))
            for column, wants in zip((sizes, stored, headers), wanted, strict=True):
                column[i] = next(values) if wants else column[i]
        other = found.get(0x7075, b"")[5:].decode("utf-8", "backslashreplace")
        if other and other != directory.names[i]:  # newer versions of Python's zipfile prefer it
            message = f"has a second name {short(other)!r}: loaders disagree"
            oddities.add("two names", Severity.ERROR, message, directory.names[i])


def _judge_names(names: Sequence[str], oddities: Oddities) -> None:
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
    joined = "\n".join(names)  # one search over all: per name it would be the dearest check
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
        message = (
            f"macOS added {count} members; torch.load refuses more than one top folder: zip it "
            "again without __MACOSX"
        )
        oddities.add("__MACOSX", Severity.WARNING, message)


def _leaves_folder(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":")


def short(name: str) -> str:
    """Cut a name to what fits a message."""
    return name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}"
