"""The files that HDF5 changes, and what stands behind the HDF5 data in them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import WriteError
from ..sources import FileSource
from .hdf5 import check_superblock
from .hdf5_edit_process import File
from .hdf5_process import magic_offset

__all__ = ["copy_tail", "end_of_data", "kept_tail", "opened_file"]

_BLOCK = 1 << 20


@contextlib.contextmanager
def opened_file(path: Path, flags: int = os.O_RDWR, *, empty: bool = False) -> Iterator[File]:
    """Open a file for a job; ``empty`` cuts it off first.

    Raises
    ------
    WriteError
        If it cannot be opened.
    """
    binary = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        fd = os.open(path, flags | binary, 0o666)
    except OSError as error:
        raise WriteError(f"cannot be opened: {error.strerror}", where=str(path)) from None
    try:
        if empty:
            os.ftruncate(fd, 0)
        yield File(fd, str(path), 0, os.fstat(fd).st_size, bool(flags & os.O_RDWR))
    finally:
        os.close(fd)


@contextlib.contextmanager
def kept_tail(file: File) -> Iterator[None]:
    """Put what stands behind the HDF5 data back behind it: HDF5 writes over it, or cuts it off."""
    if end_of_data(file.path) == file.size:
        yield
        return
    import tempfile  # noqa: PLC0415

    with tempfile.TemporaryFile() as spool:
        copy_tail(file, spool.fileno(), "the temporary folder")
        yield
        os.lseek(spool.fileno(), 0, os.SEEK_SET)
        _copy(spool.fileno(), file.fd, file.path)


def copy_tail(source: File, target: int, where: str) -> None:
    """Append what stands behind the HDF5 data to another file.

    Raises
    ------
    WriteError
        If that takes no more.
    """
    os.lseek(source.fd, end_of_data(source.path), os.SEEK_SET)
    _copy(source.fd, target, where)


def end_of_data(path: str) -> int:
    """Where the HDF5 data ends, as the superblock says.

    Raises
    ------
    FormatError
        If this is no HDF5 file, or not all of one.
    """
    source = FileSource(path)
    try:
        check_superblock(source)
        start = magic_offset(source.pread(0, min(4096, source.size)), source.pread, source.size)
        block = source.pread(start, min(96, source.size - start))
    finally:
        source.close()
    version = block[8]
    width, at = (block[13], 24 + 4 * version) if version < 2 else (block[9], 12)
    base, _, end = (
        int.from_bytes(block[at + i * width : at + (i + 1) * width], "little") for i in range(3)
    )
    return end - base + start


def _copy(source: int, target: int, where: str) -> None:
    """Copy from where one descriptor stands to the end of the other."""
    try:
        os.lseek(target, 0, os.SEEK_END)
        while block := os.read(source, _BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(target, view) :]
    except OSError as error:
        message = f"cannot be written: {error.strerror}; nothing was changed"
        raise WriteError(message, where=where, hint="free some space") from None
