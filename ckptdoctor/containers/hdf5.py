"""HDF5 files as rows of plain data: the parent's side of the guarded walk.

The C library runs in a child process (`ckptdoctor.containers.hdf5_process` starts it,
`ckptdoctor.containers.hdf5_worker` is what it does).  Every number it answers is checked here
against the file's real size, since a hostile file may have taken the child over.  Contiguous data
is then read by offset in this process; chunked, compressed and compact data is decoded by the
child, a block at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BombError, FormatError, TruncatedError
from ..findings import Finding
from ..sources import ByteSource
from .hdf5_blocks import CHUNK_BYTES, slabs
from .hdf5_check import Checker, Dataset
from .hdf5_process import magic_offset
from .hdf5_readers import Child, Here, Reader

if TYPE_CHECKING:
    from ..tensors import Array, TensorInfo

__all__ = ["Contents", "Dataset", "Hdf5Decoder", "is_hdf5", "read_hdf5"]

_PIECE = 1 << 18


class Contents(NamedTuple):
    """What one HDF5 file holds.

    Parameters
    ----------
    datasets
        In the order of the walk: groups by name.
    attributes
        Of the groups, by path: those that Keras writes.
    findings
        Links not followed, data not there, objects that could not be read.
    skipped
        Paths of datasets that hold no numbers in place (variable-length strings, references).
    decoder
        Gives the blocks of datasets without an extent.
    """

    datasets: tuple[Dataset, ...]
    attributes: Mapping[str, Mapping[str, Any]]
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    decoder: Hdf5Decoder | None


def is_hdf5(head: bytes, source: ByteSource) -> bool:
    """Whether the file holds HDF5's signature at 0, 512, 1024, 2048, ..."""
    return magic_offset(head, source.pread, source.size) >= 0


def read_hdf5(source: ByteSource, *, trust: bool = False) -> Contents:
    """Walk a file and check what it declares.

    Parameters
    ----------
    source
        A file, or a stored run of bytes of one (a window).
    trust
        Run HDF5's C library in this process.

    Raises
    ------
    TruncatedError
        If the file is shorter than it says.
    FormatError
        If HDF5 cannot open it, or the child died of it.
    """
    check_superblock(source)
    reader: Reader = Here(source) if trust else Child(source)
    try:
        answer = reader.walk()
        checker = Checker(source)
        datasets, attributes = checker.check(answer)
    except BaseException:
        reader.close()
        raise
    decoder = None
    if any(dataset.extent is None and not dataset.absent for dataset in datasets):
        decoder = Hdf5Decoder(reader, datasets, source.name)
    else:
        reader.close()
    return Contents(
        datasets=tuple(datasets),
        attributes=attributes,
        findings=tuple(checker.findings),
        skipped=tuple(checker.skipped),
        decoder=decoder,
    )


def check_superblock(source: ByteSource) -> None:
    """Check what HDF5 itself would refuse, to say it in plain words and with the numbers.

    Raises
    ------
    FormatError
        If there is no signature, or the superblock says what no HDF5 file says.
    TruncatedError
        If the file ends before the superblock says it does.
    """
    start = magic_offset(source.pread(0, min(4096, source.size)), source.pread, source.size)
    where = f"{source.name}+{max(0, start)}"
    if start < 0:
        raise FormatError("expected HDF5's signature, found none", where=where)
    block = source.pread(start, min(96, source.size - start)).ljust(96, b"\0")
    version = block[8]
    if version > 3:
        raise FormatError(f"expected superblock version 0 to 3, found {version}", where=where)
    width, at = (block[13], 24 + 4 * version) if version < 2 else (block[9], 12)
    if width not in (2, 4, 8):
        raise FormatError(f"expected addresses of 2, 4 or 8 bytes, found {width}", where=where)
    base = int.from_bytes(block[at : at + width], "little")
    end_at = at + 2 * width
    end = int.from_bytes(block[end_at : end_at + width], "little")
    if end - base + start > source.size:
        message = f"expected {end - base + start} bytes, the file has {source.size}"
        hint = "it was cut off, or is still being written: copy or download it again"
        raise TruncatedError(message, where=source.name, hint=hint)


class Hdf5Decoder:
    """Blocks of chunked, compressed and compact datasets, decoded where the C library runs."""

    def __init__(self, reader: Reader, datasets: Sequence[Dataset], where: str) -> None:
        self._reader, self._where = reader, where
        self._datasets = {
            dataset.path: dataset
            for dataset in datasets
            if dataset.extent is None and not dataset.absent
        }

    def blocks(self, info: TensorInfo) -> Iterator[Array]:
        """Flat blocks in row-major order, native byte order.

        Raises
        ------
        FormatError
            If the data cannot be decoded.
        """
        import numpy as np  # noqa: PLC0415

        dataset = self._datasets.get(info.path)
        if dataset is None:
            raise FormatError("no values to decode", where=f"{self._where}:{info.name}"[:1000])
        dtype = info.kind.numpy
        if dataset.big_endian:
            dtype = dtype.newbyteorder(">")
        step = max(1, _PIECE // dtype.itemsize)
        shape, itemsize = dataset.stored_shape, dataset.itemsize
        for start, count in slabs(shape, dataset.chunks, itemsize):
            size = math.prod(count) * itemsize
            if size > CHUNK_BYTES:
                raise BombError(
                    f"a block of {size} bytes", where=f"{self._where}:{info.name}"[:1000]
                )
            raw = self._reader.block(dataset.number, start, count, size)
            values = np.frombuffer(raw, dtype)
            for first in range(0, values.size, step):
                piece = values[first : first + step]
                yield piece.astype(dtype.newbyteorder("="))

    def close(self) -> None:
        """End the process that decodes."""
        self._reader.close()
