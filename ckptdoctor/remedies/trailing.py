"""Bytes behind the end of the format: they are dropped, unless they may be something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from ..edits import Change, Class, Refusal, Trim
from ..errors import CkptDoctorError
from ..findings import Finding, Severity
from ..sources import ByteSource
from .base import Ailment, Patient, Remedy

__all__ = ["TrailingBytes"]

_CODE = "CK005"
_BLOCK = 1 << 20
_ZIP_SIGNS = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6")
_HDF5_SIGN = b"\x89HDF\r\n\x1a\n"
_OVERLAP = len(_HDF5_SIGN) - 1
_PICKLE_MARKS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


class TrailingBytes(Remedy):
    """Drops what stands behind the end of the format.

    What it does
    ------------
    A zip archive ends with its end record, a safetensors file with its last tensor, an old torch
    file with its last storage.  What follows belongs to no tensor: safetensors refuses such a file,
    others pass it by.  Bytes that look like another archive, or a file whose structure says two
    things in other places too, are left alone: which half is meant is not for a tool to choose.

    What it costs
    -------------
    No tensor changes.  What the bytes were for is not known; they stay in the input.
    """

    name: ClassVar[str] = "trailing-bytes"
    kind: ClassVar[Class] = "lossless"

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        del ailments
        for finding in patient.about(_CODE):
            end = finding.measured.get("end")
            if type(end) is int:
                try:
                    yield self._about(finding, end, patient)
                except CkptDoctorError as error:
                    yield self._refuse(finding, f"they cannot be read: {error.message}")

    def _about(self, finding: Finding, end: int, patient: Patient) -> Change | Refusal:
        table = patient.ctx.table
        source = table.files[0] if table.files else None
        if source is None or finding.where not in (source.name, f"{source.name}+{end}"):
            return self._refuse(
                finding, "they stand behind a part of the checkpoint, not behind it"
            )
        if not 0 < end < source.size:
            return self._refuse(finding, "where the format ends is not known")
        doubts = [
            other
            for other in patient.about(_CODE)
            if other.severity >= Severity.ERROR and "end" not in other.measured
        ]
        if doubts:
            return self._refuse(finding, "the file's structure is ambiguous in other places, too")
        if any(_offset(code, source) >= end for code in patient.about("CK002")):
            return self._refuse(finding, "they hold a pickle")
        what = _what(source, end)
        if what not in ("zeros", "data"):
            return self._refuse(finding, f"they hold {what}")
        kind = "all zero" if what == "zeros" else "not zeros, and of no tensor"
        return Trim(
            size=end,
            remedy=self.name,
            kind=self.kind,
            cures=(_CODE,),
            title=f"{source.size - end:,} bytes behind the end go ({kind})",
        )

    def _refuse(self, finding: Finding, reason: str) -> Refusal:
        hint = "save it again with the framework's own writer"
        return self.refusal(finding.where, reason, (_CODE,), hint)


def _offset(finding: Finding, source: ByteSource) -> int:
    """Offset in the file that a finding is about; -1 where it names none, or a member."""
    start = f"{source.name}+"
    digits = finding.where.removeprefix(start)
    return int(digits) if finding.where.startswith(start) and digits.isdecimal() else -1


def _what(source: ByteSource, start: int) -> str:
    """Say what stands behind an offset: ``zeros``, ``data``, or what it looks like."""
    head = source.pread(start, min(512, source.size - start))
    found = _begins(head, source.size - start)
    zeros, kept = True, b""
    for at in range(start, source.size, _BLOCK):
        if found:
            break
        block = source.pread(at, min(_BLOCK, source.size - at))
        zeros = zeros and block.count(0) == len(block)
        joined = kept + block
        if any(sign in joined for sign in _ZIP_SIGNS):
            found = "parts of a zip archive"
        elif _HDF5_SIGN in joined:
            found = "an HDF5 file"
        kept = joined[-_OVERLAP:]
    return found or ("zeros" if zeros else "data")


def _begins(head: bytes, size: int) -> str:
    """Say as what a run of bytes begins; empty for nothing known."""
    if head.startswith(_PICKLE_MARKS):
        return "a pickle"
    if head.startswith(b"\x93NUMPY"):
        return "a NumPy array"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "a safetensors file"
    return ""
