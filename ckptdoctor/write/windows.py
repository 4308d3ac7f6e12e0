"""Edits as bytes of the file: which windows of it are written anew."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..edits import Edit
from ..errors import InternalError, UnsupportedError, UsageError
from ..sources import ByteSource, FileSource, WindowSource
from ..tensors import Array, TensorInfo, TensorTable

__all__ = ["Window", "aliases", "in_place", "locate", "windows_of", "windows_of_all"]

GAP = 1 << 12
"""Bytes between two edited elements that are rather written again than left out: scattered
elements would else cost a system call, and a checksum of its own, each."""
LONGEST = 1 << 20


class Window(NamedTuple):
    """Bytes of a file: what stands there and what is to stand there."""

    offset: int
    old: bytes
    new: bytes


def locate(source: ByteSource, offset: int) -> tuple[FileSource, int] | None:
    """File and offset in it of a byte of a source; None where it is not stored as it is read."""
    if isinstance(source, WindowSource):
        return locate(source.below, source.offset + offset)
    return (source, offset) if isinstance(source, FileSource) else None


Ground = Callable[[ByteSource, int], tuple[ByteSource, int] | None]


def in_place(info: TensorInfo) -> FileSource | None:
    """File in which the tensor's elements can be overwritten where they are; None for no such."""
    if info.extent is None or info.encoding != "plain" or info.kind.bits < 8:
        return None
    found = locate(info.extent.source, info.extent.offset)
    return found[0] if found is not None and not found[0].temporary else None


def windows_of(info: TensorInfo, edit: Edit, ground: Ground = locate) -> Iterator[Window]:
    """Bytes that an edit writes, in file order, neighbours in one window.

    ``ground`` tells in which source, and where in it, the tensor's bytes are to be counted.

    Raises
    ------
    UnsupportedError
        If the tensor's elements have no bytes of their own.
    InternalError
        If the edit does not fit the tensor: nothing outside its elements is ever written.
    """
    file, start, _ = _span(info, ground)
    width = info.kind.numpy.itemsize
    raw = _raw(info, edit.after())
    _check_fit(info, edit.indices, raw)
    if edit.indices is None and info.strides is None:
        yield from _whole(file, start, raw)
        return
    places = _places(info, edit.indices)
    if not np.all(places[1:] > places[:-1]):
        # views may show elements in any order, or one element twice: then the last one counts
        places, last = np.unique(places[::-1], return_index=True)
        raw = raw[::-1][last]
    breaks = np.flatnonzero(np.diff(places) * width > GAP) + 1
    for first, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), places.size], strict=True):
        yield from _scattered(file, start, places[first:stop], raw[first:stop], width)


def _span(info: TensorInfo, ground: Ground) -> tuple[ByteSource, int, int]:
    """Source in which the bytes of a tensor lie, the first of them, and the end."""
    if info.extent is None or info.encoding != "plain" or info.kind.bits < 8:
        raise UnsupportedError(f"{info.name!r:.200} cannot be overwritten in place")
    found = ground(info.extent.source, info.extent.offset)
    if found is None:
        raise UnsupportedError(f"{info.name!r:.200} is compressed")
    return *found, found[1] + info.extent.length


def _check_fit(info: TensorInfo, indices: Array | None, raw: Array) -> None:
    count = info.size if indices is None else indices.size
    if len(raw) != count:
        raise InternalError(f"{len(raw):,} values for {count:,} elements of {info.name!r:.200}")
    if indices is not None and count and not 0 <= indices.min() <= indices.max() < info.size:
        raise InternalError(f"an index outside the {info.size:,} elements of {info.name!r:.200}")


def _raw(info: TensorInfo, values: Array) -> Array:
    """Elements as the file stores them, uint8, shape ``(n, width)``."""
    stored = np.ascontiguousarray(values.ravel(), info.kind.numpy)
    if info.big_endian:
        stored = stored.byteswap()
    return stored.view(np.uint8).reshape(stored.size, info.kind.numpy.itemsize)


def _places(info: TensorInfo, indices: Array | None) -> Array:
    """Places of the elements, counted in elements from the start of the extent."""
    flat = np.arange(info.size, dtype=np.int64) if indices is None else indices.astype(np.int64)
    if not info.strides:
        return flat
    where = np.unravel_index(flat, info.shape)
    return sum((w * s for w, s in zip(where, info.strides, strict=True)), np.zeros_like(flat))


def _whole(file: ByteSource, start: int, raw: Array) -> Iterator[Window]:
    data = raw.ravel()
    for at in range(0, data.size, LONGEST):
        new = data[at : at + LONGEST].tobytes()
        yield Window(start + at, file.pread(start + at, len(new)), new)


def _scattered(
    file: ByteSource, start: int, places: Array, raw: Array, width: int
) -> Iterator[Window]:
    """Windows over elements that lie close together, each at most `LONGEST` and a gap long."""
    first = 0
    while first < places.size:
        base = int(places[first])
        stop = int(np.searchsorted(places, base + LONGEST // width, "left"))
        length = (int(places[stop - 1]) - base + 1) * width
        old = file.pread(start + base * width, length)
        new = np.frombuffer(bytearray(old), np.uint8).reshape(-1, width)
        new[places[first:stop] - base] = raw[first:stop]
        yield Window(start + base * width, old, new.tobytes())
        first = stop


def windows_of_all(
    pairs: Iterable[tuple[TensorInfo, Edit]], ground: Ground = locate
) -> Iterator[Window]:
    """Bytes that edits of one file write, in file order, no byte twice.

    Edits may lie between each other's elements, and, through shared memory, in the same ones.

    Raises
    ------
    UsageError
        If two edits want other values in the same bytes.
    """
    group: list[tuple[TensorInfo, Edit]] = []
    reach = 0
    spans = [(*_span(info, ground)[1:], info, edit) for info, edit in pairs]
    for start, stop, info, edit in sorted(spans, key=lambda span: span[0]):
        if start >= reach:
            yield from _together(group, ground)
            group = []
        group.append((info, edit))
        reach = max(reach, stop)
    yield from _together(group, ground)


def _together(group: list[tuple[TensorInfo, Edit]], ground: Ground) -> Iterator[Window]:
    """Windows of edits whose tensors share bytes; at most two windows are held at a time."""
    if len(group) < 2:
        for info, edit in group:
            yield from windows_of(info, edit, ground)
        return
    held: Window | None = None
    parts = [windows_of(info, edit, ground) for info, edit in group]
    for window in heapq.merge(*parts, key=lambda window: window.offset):
        if held is not None:
            cut = min(window.offset - held.offset, len(held.new))
            if cut:
                yield Window(held.offset, held.old[:cut], held.new[:cut])
            rest = Window(window.offset, held.old[cut:], held.new[cut:])
            held = _both(rest, window, group)
        else:
            held = window
    if held is not None:
        yield held


def _both(one: Window, other: Window, group: list[tuple[TensorInfo, Edit]]) -> Window:
    """Give what two windows that start at the same byte come to."""
    if len(one.new) > len(other.new):
        one, other = other, one
    size = len(one.new)
    old = np.frombuffer(one.old, np.uint8)
    mine, new = np.frombuffer(one.new, np.uint8), np.frombuffer(bytearray(other.new), np.uint8)
    theirs = new[:size]
    changed = mine != old
    if np.any(changed & (theirs != old) & (mine != theirs)):
        names = ", ".join(dict.fromkeys(f"{info.name!r:.80}" for info, _ in group[:4]))
        message = f"two changes want other values in memory that is shared, of {names}"
        raise UsageError(message, hint="name one of them with --tensor")
    theirs[changed] = mine[changed]
    return Window(other.offset, other.old, new.tobytes())


def aliases(table: TensorTable, info: TensorInfo) -> tuple[str, ...]:
    """Names of other tensors that share memory with this one.

    An edit to one of them may be an edit to the others: tied weights, views.
    """
    if info.extent is None or not info.storage:
        return ()
    start, stop = info.extent.offset, info.extent.offset + info.extent.length
    return tuple(
        other.name
        for other in table.infos.values()
        if other.storage == info.storage
        and other.name != info.name
        and other.extent is not None
        and other.extent.offset < stop
        and start < other.extent.offset + other.extent.length
    )
