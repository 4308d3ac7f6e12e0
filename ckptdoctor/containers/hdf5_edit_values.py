"""New values for elements of a dataset, through HDF5: what chunks and filters hide.  Imports h5py.

Only the chunks that hold an element to be changed are decoded, changed and stored again, and each
is read back: a filter that does not give back what it was given has no business here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5p, h5s

from .hdf5_blocks import slabs
from .hdf5_describe import describe, text_of
from .hdf5_edit_window import Declined, Inbox, Window, opened

__all__ = ["PIECE", "Box", "found", "overwrite", "read_box"]

PIECE = 1 << 18
"""Elements that are sent, and changed, at a time."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Start and count along each axis."""


def overwrite(windows: Sequence[Window], job: Mapping[str, Any], inbox: Inbox) -> int:
    """Set elements; the number of chunks, or blocks of other data, that were stored again."""
    stored = 0
    with opened(windows[0]) as file:
        for edit in job["edits"]:
            target = _Target(windows[0], file, edit["path"], inbox.number())
            stored += target.some(inbox) if edit["sparse"] else target.all(inbox)
    return stored


def _dataset(file: Any, path: Sequence[str]) -> Any:
    dataset = found(file, path)
    if not isinstance(dataset, h5d.DatasetID):
        raise Declined("missing", f"no dataset {'/'.join(path)[:200]!r}")
    return dataset


def found(file: Any, path: Sequence[str]) -> Any:
    """Open an object by the names of hard links that lead to it; no other link is followed."""
    here = h5g.open(file, b"/")
    for depth, part in enumerate(path):
        name = _stored_name(here, part) if isinstance(here, h5g.GroupID) else None
        if name is None or here.links.get_info(name).type != h5l.TYPE_HARD:
            raise Declined("missing", f"no object {'/'.join(path[: depth + 1])[:200]!r}")
        here = _uncached(here, name)
    return here


def _uncached(group: Any, name: bytes) -> Any:
    """Open an object, a dataset without a cache: what is read back comes from the file."""
    opened_ = h5o.open(group, name)
    if not isinstance(opened_, h5d.DatasetID):
        return opened_
    access = h5p.create(h5p.DATASET_ACCESS)
    access.set_chunk_cache(1, 0, 1.0)
    del opened_
    return h5d.open(group, name, access)


def _stored_name(group: Any, part: str) -> bytes | None:
    """Bytes of a link's name, which may be no UTF-8; None where there is no such link."""
    try:
        name = part.encode()
    except UnicodeEncodeError:
        return None
    if name in (b"", b".") or b"/" in name or b"\0" in name:
        return None
    if group.links.exists(name):
        return name
    names: list[bytes] = []
    if "\\x" in part:
        group.links.iterate(lambda each: names.append(each) if text_of(each) == part else None)
    return names[0] if len(names) == 1 and b"/" not in names[0] else None


def read_box(dataset: Any, box: Box, size: int) -> Bytes:
    """Elements of a box as they are stored, ``size`` bytes each: shape ``(elements, size)``."""
    buffer = np.empty((math.prod(box[1]), size), np.uint8)
    memory, space = _spaces(dataset, box)
    dataset.read(memory, space, buffer, dataset.get_type())
    return buffer


def _spaces(dataset: Any, box: Box) -> tuple[Any, Any]:
    if not box[0]:
        return h5s.ALL, h5s.ALL
    space = dataset.get_space()
    space.select_hyperslab(*box)
    return h5s.create_simple((math.prod(box[1]),)), space


class _Target:
    """One dataset, and how the elements of the table lie in its own.

    An element of an array type holds several of the table's; opaque ones count byte by byte.
    """

    def __init__(self, window: Window, file: Any, path: Sequence[str], itemsize: int) -> None:
        self.window, self.file, self.path = window, file, path
        self.name = "/".join(path)[:200]
        self.dataset = dataset = _dataset(file, path)
        row = describe(dataset)
        if row["layout"] in ("external", "virtual") or row["dtype"] == "vlen" or "refused" in row:
            reason = row.get("refused") or f"{row['layout']} data of type {row['dtype']}"
            raise Declined("unsupported", f"{self.name!r}: {reason}: cannot be changed")
        self.size = dataset.get_type().get_size()
        opaque = row["dtype"] in ("opaque", "string")
        if itemsize != row["itemsize"] and not (opaque and itemsize == 1):
            message = f"{self.name!r}: elements of {row['itemsize']} bytes, not of {itemsize}"
            raise Declined("unsupported", message)
        self.itemsize, self.per = itemsize, self.size // itemsize
        complex_ = row["dtype"].startswith("complex")
        self.swapped = (itemsize // 2 if complex_ else itemsize) if row["big"] else 0
        space = dataset.get_space()
        self.shape: tuple[int, ...] = space.shape
        empty = space.get_simple_extent_type() == h5s.NULL
        self.total = 0 if empty else math.prod(self.shape) * self.per
        plist = dataset.get_create_plist()
        self.chunk: tuple[int, ...] | None = None
        if row["layout"] == "chunked":
            self.chunk = plist.get_chunk()

    def slabs(self) -> Iterator[Box]:
        """Blocks of whole chunks, one after the other, as far as chunks fit."""
        if self.total:
            yield from slabs(self.shape, self.chunk or (1,) * len(self.shape), self.size)

    def all(self, inbox: Inbox) -> int:
        """Set every element."""
        count = inbox.number()
        if count != self.total:
            message = f"{self.name!r}: {self.total} elements, {count} new values"
            raise Declined("unsupported", message)
        stored = 0
        for box in self.slabs():
            values = np.empty((math.prod(box[1]), self.size), np.uint8)
            inbox.fill(values.reshape(-1).data)
            self.store(box, self.as_stored(values.reshape(-1, self.itemsize)))
            stored += 1
        return stored

    def some(self, inbox: Inbox) -> int:
        """Set the elements that the parent names, in ascending order."""
        left, stored = inbox.number(), 0
        indices, values = _piece(inbox, left, self.itemsize)
        left -= len(indices)
        last, end = -1, 0
        for box in self.slabs():
            start, end = end, end + math.prod(box[1]) * self.per
            while len(indices) and indices[0] < end:
                if indices[0] <= last or (np.diff(indices) <= 0).any():
                    raise Declined("unsupported", f"{self.name!r}: indices do not ascend")
                here = int(np.searchsorted(indices, end))
                last = int(indices[here - 1])
                stored += self.change(box, indices[:here] - start, values[:here])
                indices, values = indices[here:], values[here:]
                if not len(indices) and left:
                    indices, values = _piece(inbox, left, self.itemsize)
                    left -= len(indices)
        if len(indices):
            message = f"{self.name!r}: element {int(indices[0])} of {self.total}"
            raise Declined("unsupported", message)
        return stored

    def change(self, box: Box, indices: Indices, values: Bytes) -> int:
        """Set elements of one slab, by their place in it; returns how many blocks were stored."""
        places, inside = np.divmod(indices, self.per)
        if self.chunk is None:
            return self.change_box(box, places * self.per + inside, values)
        start = np.array(box[0], np.int64)[:, None]
        at = np.stack(np.unravel_index(places, box[1])) + start
        chunk = np.array(self.chunk, np.int64)[:, None]
        numbers = at // chunk
        grid = [-(-s // c) for s, c in zip(self.shape, self.chunk, strict=True)]
        ranks = np.ravel_multi_index(tuple(numbers), grid)
        order = np.argsort(ranks, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(ranks[order])) + 1)
        for group in groups:
            first = numbers[:, group[:1]] * chunk
            count = np.minimum(chunk, np.array(self.shape, np.int64)[:, None] - first)
            shape = tuple(map(int, count[:, 0]))
            flat = np.ravel_multi_index(tuple(at[:, group] - first), shape)
            whole = tuple(map(int, first[:, 0])), shape
            self.change_box(whole, flat * self.per + inside[group], values[group])
        return len(groups)

    def change_box(self, box: Box, indices: Indices, values: Bytes) -> int:
        data = read_box(self.dataset, box, self.size).reshape(-1, self.itemsize)
        data[indices] = self.as_stored(values)
        self.store(box, data)
        return 1

    def as_stored(self, values: Bytes) -> Bytes:
        """Turn values in this machine's byte order into the dataset's."""
        if not self.swapped:
            return values
        return np.ascontiguousarray(values.reshape(-1, self.swapped)[:, ::-1]).reshape(values.shape)

    def store(self, box: Box, data: Bytes) -> None:
        """Write a box, and read it back.

        Raises
        ------
        Declined
            If what is read is not what was written.
        """
        if self.write(box, data):
            return
        self.lengthen(box, data)
        if not self.write(box, data):
            plist = self.dataset.get_create_plist()
            filters = [text_of(plist.get_filter(i)[3]) for i in range(plist.get_nfilters())]
            message = f"{self.name!r}: its filters ({', '.join(filters)[:100]}) lose information"
            raise Declined("unsupported", f"{message}: not changed")

    def lengthen(self, box: Box, data: Bytes) -> None:
        """Store the chunks of a box unfiltered and longer than they are.

        A filter such as szip is skipped for a chunk that it would not make smaller.  HDF5 (1.14)
        does not note that it was skipped, or no longer is, where the chunk stays as long as it
        was; so it must not stay so.
        """
        chunk = self.chunk
        if chunk is None or any(start % each for start, each in zip(box[0], chunk, strict=True)):
            return
        whole = data.reshape(*box[1], self.size)
        skipped = (1 << self.dataset.get_create_plist().get_nfilters()) - 1
        steps = (range(0, count, each) for count, each in zip(box[1], chunk, strict=True))
        for first in itertools.product(*steps):
            part = whole[tuple(slice(a, a + n) for a, n in zip(first, chunk, strict=True))]
            full = np.zeros((*chunk, self.size), np.uint8)
            full[tuple(slice(0, n) for n in part.shape)] = part
            start = tuple(a + b for a, b in zip(box[0], first, strict=True))
            self.dataset.write_direct_chunk(start, full.tobytes() + bytes(8), skipped)
        self.reopen()

    def reopen(self) -> None:
        """Have HDF5 forget what it remembers of the last chunk."""
        self.dataset.close()
        self.dataset = _dataset(self.file, self.path)

    def write(self, box: Box, data: Bytes) -> bool:
        """Write a box; whether the file has it now, and not only what HDF5 remembers of it."""
        memory, space = _spaces(self.dataset, box)
        self.dataset.write(memory, space, data, self.dataset.get_type())
        self.reopen()
        self.window.check()
        try:
            found_ = read_box(self.dataset, box, self.size)
        except OSError:
            return False
        return np.array_equal(found_.reshape(data.shape), data)


def _piece(inbox: Inbox, left: int, itemsize: int) -> tuple[Indices, Bytes]:
    count = min(left, PIECE)
    indices = np.frombuffer(inbox.take(count * 8), "<i8").astype(np.int64, copy=False)
    return indices, np.frombuffer(inbox.take(count * itemsize), np.uint8).reshape(-1, itemsize)
