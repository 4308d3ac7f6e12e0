"""Checksums that do not fit: the flipped bit that explains it is flipped back, or they are restated."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from ..edits import Change, Class, Edit, Refusal, Restamp
from ..errors import CkptDoctorError
from ..findings import Finding, Severity
from ..measure.crc_bits import chance, checksum_flipped, flipped_bit
from ..sources import ByteSource, WindowSource
from ..tensors import Array, TensorInfo
from ..tensors import Checksum as Stated
from .base import Ailment, Patient, Remedy

__all__ = ["Checksum", "index_of"]

MOST_CHANCE = 0.01
"""Chance, at most, that damage at random looks like the one flipped bit that is flipped back."""

_LOCAL = struct.Struct("<4s10xI")
_CODE = "CK001"


class _Place(NamedTuple):
    """The flat index of an element that holds a bit; ``before`` and ``after`` are arrays of one."""

    info: TensorInfo
    element: int
    before: Array
    after: Array

    @property
    def text(self) -> str:
        at = [int(i) for i in np.unravel_index(self.element, self.info.shape or (1,))]
        return f"{at}: {_number(self.before)} -> {_number(self.after)}"


class Checksum(Remedy):
    """Flips back the one bit that a checksum shows to have flipped, or states the checksum anew.

    What it does
    ------------
    Every single flipped bit changes a CRC-32 in its own way, so that the checksum that does not
    fit says where the bit is.  Flipped back, the checksum fits again as it stands.  Other damage
    can look the same by chance, the more so the longer the data: up to 1 % is accepted (5 MB), or
    any length where the bit lies in a value that is broken by the look of it.  Where one flipped
    bit of the checksum itself explains it, or the archive's second record of it fits the data,
    the data are sound and the checksum is stated anew.

    What it costs
    -------------
    Nothing, where the bit is the right one.  Anything else can only be silenced: a new checksum
    over data that nobody has checked, which is destructive and needs to be allowed.
    """

    name: ClassVar[str] = "checksum"
    kind: ClassVar[Class] = "statistical"

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        stated: dict[tuple[str, int], list[Stated]] = {}
        for checksum in patient.ctx.table.checksums:
            stated.setdefault((checksum.where, checksum.crc32), []).append(checksum)
        for finding in patient.about(_CODE):
            if finding.severity < Severity.ERROR:
                continue  # none is stated
            try:
                yield from self._about(finding, stated, patient, ailments)
            except CkptDoctorError as error:
                yield self._refuse(finding, f"it cannot be read: {error.message}")

    def _about(
        self,
        finding: Finding,
        stated: dict[tuple[str, int], list[Stated]],
        patient: Patient,
        ailments: Sequence[Ailment],
    ) -> Iterator[Change | Refusal]:
        measured = finding.measured
        found = stated.get((finding.where, measured.get("expected", -1)), [])
        if not found:
            yield self._refuse(
                finding, "it guards no tensors, and what it guards cannot be restored"
            )
            return
        if len(found) > 1:
            yield self._refuse(finding, "the archive has two members of this name")
            return
        checksum, actual = found[0], int(measured["found"])
        if checksum.extent.source.sequential:
            yield self._refuse(finding, "the data are compressed: which of their bits are wrong "
                                        "cannot be told")  # fmt: skip
            return
        if _restated(checksum) == actual:
            title = "the checksum is stated anew: the archive's second record of it fits the data"
            yield self._restamp(finding, "lossless", title)
        elif checksum_flipped(checksum.crc32, actual):
            title = "the checksum is stated anew: one bit of it flipped, the data are sound"
            yield self._restamp(finding, "statistical", title)
        else:
            yield self._flip(finding, checksum, actual, patient.ctx.table.values(), ailments)

    def _flip(
        self,
        finding: Finding,
        checksum: Stated,
        actual: int,
        infos: Iterable[TensorInfo],
        ailments: Sequence[Ailment],
    ) -> Change | Refusal:
        length = checksum.extent.length
        bit = flipped_bit(checksum.crc32, actual, length)
        if bit is None:
            title = "the checksum is made to fit data whose damage nobody has located"
            return self._restamp(finding, "destructive", title)
        place = _element(checksum, bit, infos)
        if place is None:
            where = f"bit {bit % 8} of byte {bit // 8:,} of {length:,}"
            return self._refuse(
                finding, f"one flipped bit explains it, {where}, in no plain tensor"
            )
        sick = [a for a in ailments if a.info.name == place.info.name and place.element in a.bad]
        odds = chance(length)
        if sick and _sound(place.after):
            # damage at random would have to hit, of all the bits, those of a value that is broken
            odds = min(odds, *(a.bad.size * chance(a.info.kind.itemsize) for a in sick))
        if odds > MOST_CHANCE:
            title = (
                "the checksum is made to fit the data; one flipped bit would explain it (element "
                f"{place.text}), but so it would for {odds:.0%} of all damage"
            )
            return self._restamp(finding, "destructive", title)
        cured = {code for a in sick if a.bad.size == 1 and _sound(place.after) for code in a.codes}
        return Edit(
            tensor=place.info.name,
            indices=np.array([place.element], np.int64),
            values=place.after,
            remedy=self.name,
            kind="statistical",
            cures=(_CODE, *sorted(cured)),
            title=f"the bit that the checksum locates is flipped back, element {place.text} "
            f"(other damage looks like it with a chance of {odds:.2g})",
        )

    def _restamp(self, finding: Finding, kind: Class, title: str) -> Restamp:
        return Restamp(
            where=finding.where, remedy=self.name, kind=kind, cures=(_CODE,), title=title
        )

    def _refuse(self, finding: Finding, reason: str) -> Refusal:
        hint = "get the file again from where it came from"
        return self.refusal(finding.where, reason, (_CODE,), hint)


def _restated(checksum: Stated) -> int | None:
    """Give the CRC-32 of the local header; None where it leaves it to a data descriptor."""
    raw = checksum.extent.source.pread(checksum.header, _LOCAL.size)
    crc32: int = _LOCAL.unpack(raw)[1]
    return crc32 or None


def _ground(source: ByteSource, offset: int) -> tuple[ByteSource, int]:
    """Source below all windows, and the offset in it."""
    while isinstance(source, WindowSource):
        offset += source.offset
        source = source.below
    return source, offset


def _element(checksum: Stated, bit: int, infos: Iterable[TensorInfo]) -> _Place | None:
    """Element of a tensor that holds a bit of a checksum's data; None where it is in no tensor."""
    source, start = _ground(checksum.extent.source, checksum.extent.offset)
    byte = start + bit // 8
    for info in infos:
        if info.extent is None or info.encoding != "plain" or info.kind.bits < 8:
            continue
        below, first = _ground(info.extent.source, info.extent.offset)
        if below is not source or not first <= byte < first + info.extent.length:
            continue
        index = index_of(info, byte - first)
        if index is None:
            continue
        size = info.kind.itemsize
        inside = (byte - first) % size
        raw = bytearray(info.extent.source.pread(info.extent.offset + byte - first - inside, size))
        before = _values(bytes(raw), info)
        raw[inside] ^= 1 << bit % 8
        return _Place(info, index, before, _values(bytes(raw), info))
    return None


def _values(raw: bytes, info: TensorInfo) -> Array:
    stored = np.frombuffer(raw, info.kind.numpy)
    return stored.byteswap() if info.big_endian else stored


def index_of(info: TensorInfo, offset: int) -> int | None:
    """Flat index, in row-major order, of the element at a byte of a tensor's extent.

    Parameters
    ----------
    offset
        Of the byte, from the start of the extent.

    Returns
    -------
    int or None
        None for a byte between the elements of a view.

    Examples
    --------
    >>> info = TensorInfo(name="w", path=("w",), dtype="float32", shape=(2, 3), strides=(1, 2))
    >>> [index_of(info, 4 * place) for place in range(6)]
    [0, 3, 1, 4, 2, 5]
    """
    place = offset // info.kind.itemsize
    if info.strides is None:
        return place if place < info.size else None
    found = [0] * len(info.shape)
    strides = info.strides
    for axis in sorted(range(len(found)), key=strides.__getitem__, reverse=True):
        stride = strides[axis]
        if stride > 0:
            found[axis] = min(place // stride, info.shape[axis] - 1)
            place -= found[axis] * stride
    if place or not info.size:
        return None
    return int(np.ravel_multi_index(found, info.shape)) if found else 0


def _sound(values: Array) -> bool:
    """Whether an element is a number; of types that NumPy cannot ask, nobody knows."""
    try:
        with np.errstate(invalid="ignore"):  # a signalling NaN of ml_dtypes warns
            return bool(np.isfinite(values).all())
    except TypeError:
        return False


def _number(values: Array) -> str:
    if values.dtype.fields or values.dtype.kind not in "fV":
        return str(values[0])
    with np.errstate(invalid="ignore"):
        return f"{float(values.astype(np.float64)[0]):.6g}"
