"""Deflated bytes as a source: inflated while they are read, in bounded memory."""

from __future__ import annotations

import threading
import zlib

from ..errors import BombError, FormatError, TruncatedError
from ..sources import ByteSource

__all__ = ["MAX_RATIO", "InflatingSource"]

MAX_RATIO = 1032
"""DEFLATE cannot give more bytes than this for each stored one."""


_NONE = zlib.decompressobj()


class InflatingSource:
    """The data of a deflated member; reads forward, starts over to go back.

    A few hundred kilobytes of memory whatever the sizes; several threads may read, slowly.

    Parameters
    ----------
    name
        For messages.
    below, offset, stored
        Where the raw DEFLATE stream lies.
    size
        Bytes it is declared to inflate to.
    crc32
        Checked when the last byte is read; None for no check.

    Raises
    ------
    BombError
        While reading, if the stream cannot inflate to ``size``, or inflates to more.
    FormatError
        While reading, if the stream is damaged or the checksum differs.
    """

    sequential = True
    CHUNK = 1 << 16

    def __init__(
        self, name: str, below: ByteSource, offset: int, stored: int, size: int, crc32: int | None
    ) -> None:
        self.name, self.size, self.crc32 = name, size, crc32
        self._below, self._offset, self._stored = below, offset, stored
        self._lock = threading.Lock()
        self._inflater = _NONE  # an inflater takes 50 kB: only while it is read
        self._taken = self._at = self._crc = 0

    def _rewind(self) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._taken = self._at = self._crc = 0

    @property
    def offset(self) -> int:
        """Where the deflated data lies in the source below."""
        return self._offset

    def pread(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        with self._lock:
            self._seek(offset)
            parts = bytearray()  # grows with what is really there, not with what is declared
            while len(parts) < length:
                parts += self._some(length - len(parts))
            return bytes(parts)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        with self._lock:
            self._seek(offset)
            done = 0
            while done < len(buffer):
                part = self._some(len(buffer) - done)
                buffer[done : done + len(part)] = part
                done += len(part)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            message = f"expected {length} bytes, found {max(0, self.size - offset)}"
            raise TruncatedError(message, where=f"{self.name}+{offset}")
        if self.size > (self._stored + 1) * MAX_RATIO:
            message = f"{self.size:,} bytes cannot come from {self._stored:,} deflated ones"
            raise BombError(message, where=self.name)

    def _seek(self, offset: int) -> None:
        if offset < self._at or self._inflater is _NONE:
            self._rewind()
        while self._at < offset:
            self._some(offset - self._at)

    def _some(self, most: int) -> bytes:
        """Next bytes, at least one and at most ``most`` or a chunk."""
        data = b""
        while not data:
            data = self._inflate(min(most, 4 * self.CHUNK))
            if not data and self._inflater.eof:
                raise self._wrong(f"inflates to {self._at:,} bytes, {self.size:,} are declared")
        self._at += len(data)
        self._crc = zlib.crc32(data, self._crc)
        if self._at == self.size:
            self._end()
        return data

    def _inflate(self, most: int) -> bytes:
        """Next bytes; none where the stream has ended, or needs another chunk."""
        pending = self._inflater.unconsumed_tail
        if not pending and self._taken < self._stored:
            take = min(self.CHUNK, self._stored - self._taken)
            pending = self._below.pread(self._offset + self._taken, take)
            self._taken += take
        try:
            data = self._inflater.decompress(pending, most)
        except zlib.error as error:
            raise self._wrong(f"cannot be inflated after {self._at:,} bytes: {error}") from None
        if not data and not pending and not self._inflater.eof:
            raise self._wrong(f"the deflated data breaks off after {self._at:,} bytes")
        return data

    def _end(self) -> None:
        """Check that the stream ends where it is declared to, with the stated checksum."""
        while not self._inflater.eof:
            if self._inflate(1):
                raise self._wrong(f"inflates to more than the {self.size:,} bytes declared")
        self._inflater = _NONE
        if self.crc32 is not None and self._crc != self.crc32:
            raise self._wrong(f"CRC-32 of the data is {self._crc:#010x}, not {self.crc32:#010x}")

    def _wrong(self, message: str) -> FormatError:
        return FormatError(
            message, where=self.name, hint="get the file again from where it came from"
        )
