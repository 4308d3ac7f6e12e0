"""A torch file of before 1.6 written anew: another tree in front, storages left out behind it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, Final

from ..containers.pickle import Persistent
from ..dtypes import DTYPES
from ..errors import FormatError, UnsupportedError
from ..formats.torch_legacy import class_or_storage
from ..formats.torch_stream import PickleStream
from ..formats.torch_values import Refusal, storage_dtype
from ..sources import ByteSource

__all__ = ["rewrite_legacy"]

BLOCK: Final = 1 << 20


def rewrite_legacy(
    source: ByteSource,
    out: Callable[[bytes], object] | BinaryIO,
    *,
    tree: bytes,
    drop: Collection[str] = (),
    trim: bool = False,
) -> int:
    """Write a legacy file with another tree, and without some storages.

    Parameters
    ----------
    source
        The input: magic number, version, machine, tree, list of keys, storages.
    out
        A binary file, or what takes the bytes in order, about 1 MiB at a time.
    tree
        The pickle to put in place of the tree.
    drop
        Keys of the storages to leave out (see `ckptdoctor.write.pickle_removal.Shortened`).
    trim
        Whether to leave out what follows the last storage.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    FormatError
        If the storages cannot be told apart.
    """
    put = out if callable(out) else out.write
    stream = PickleStream(source)
    for _ in range(3):  # magic number, protocol version, machine
        stream.next()
    start = stream.pos
    types = dict(_types(stream.next(class_or_storage).persistents))
    listed = stream.pos
    keys = stream.next().value
    if type(keys) is not list or any(type(key) not in (str, int) for key in keys):
        raise UnsupportedError("its list of storages is not torch's", where=source.name)
    kept = [key for key in keys if str(key) not in drop]
    runs = [(0, start), (listed, stream.pos)]
    size = len(tree)
    for key in keys:
        run = _storage(stream, str(key), types)
        if str(key) not in drop:
            runs.append(run)
    if not trim:
        runs.append((stream.pos, source.size))
    for i, (at, stop) in enumerate(runs):
        if i == 1:
            put(tree)
        if i == 1 and len(kept) < len(keys):
            put(made := _list(kept))
            size += len(made)
            continue
        for block in range(at, stop, BLOCK):
            put(source.pread(block, min(BLOCK, stop - block)))
        size += stop - at
    return size


def _types(references: Collection[Persistent]) -> Iterator[tuple[str, str]]:
    for reference in references:
        pid = reference.pid
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
            continue
        try:
            yield str(pid[2])[:80], storage_dtype(pid[1]) or "uint8"
        except Refusal as refusal:
            raise UnsupportedError(f"a storage cannot be told apart: {refusal}") from None


def _storage(stream: PickleStream, key: str, types: dict[str, str]) -> tuple[int, int]:
    """Start and end of a storage, its count included."""
    start, where = stream.pos, f"{stream.source.name}+{stream.pos}"
    count = stream.int64()
    if key not in types:
        raise FormatError(f"storage {key!r:.60} has no known type", where=where)
    length = DTYPES[types[key]].nbytes(count) if count >= 0 else -1
    if not 0 <= length <= stream.source.size - stream.pos:
        left = stream.source.size - stream.pos
        raise FormatError(f"storage {key!r:.60} needs {length} bytes, {left} are left", where=where)
    stream.pos += length
    return start, stream.pos


def _list(keys: list[Any]) -> bytes:
    """Pickle a list of keys as torch does."""
    items = b"".join(
        b"X" + struct.pack("<I", len(raw := key.encode())) + raw
        if type(key) is str
        else b"L%dL\n" % key
        for key in keys
    )
    return b"\x80\x02](" + items + b"e."
