"""Two HDF5 files side by side: every object, attribute and element.  Imports h5py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s

from .hdf5_blocks import BAND_BYTES, slabs
from .hdf5_describe import describe, text_of
from .hdf5_edit_attribute import attributes, has_pointers, value_of
from .hdf5_edit_copy import links_of
from .hdf5_edit_values import Box, Indices, found, read_box
from .hdf5_edit_worker import Declined, Inbox, Window, opened

__all__ = ["compare"]


def compare(windows: Sequence[Window], job: Mapping[str, Any], inbox: Inbox) -> dict[str, Any]:
    """Compare; answers the first difference in words, and how many datasets were compared."""
    one, other = map(opened, windows)
    edited: dict[int, tuple[int, Indices | None]] = {}
    for edit in job["edited"]:
        count = edit["count"]
        indices = None if count < 0 else np.frombuffer(inbox.take(8 * count), "<i8")
        edited[h5o.get_info(found(one, edit["path"])).addr] = edit["itemsize"], indices
    comparison = _Comparison(edited, job["without"], job["attributes"])
    try:
        comparison.trees(h5g.open(one, b"/"), h5g.open(other, b"/"))
    except _Differs as difference:
        return {"difference": str(difference)[:900], "datasets": comparison.datasets}
    return {"difference": "", "datasets": comparison.datasets}


class _Differs(Exception):
    pass


class _Comparison:
    def __init__(
        self,
        edited: Mapping[int, tuple[int, Indices | None]],
        without: Sequence[str],
        skipped: Sequence[Sequence[str]],
    ) -> None:
        self.edited, self.without = edited, set(without)
        self.skipped = {tuple(each) for each in skipped}
        self.datasets = 0
        self.pairs: dict[int, int] = {}
        self.others: set[int] = set()

    def trees(self, one: Any, other: Any) -> None:
        """Compare two root groups and all below them.

        Raises
        ------
        _Differs
            At the first difference.
        """
        todo: list[tuple[str, Any, Any]] = []
        self._pair("/", one, other)
        self._objects("", one, other)
        todo.append(("", one, other))
        while todo:
            path, one, other = todo.pop()
            below = []
            for name, inner in self._links(path, one, other):
                first, second = h5o.open(one, name), h5o.open(other, name)
                if self._pair(inner, first, second):
                    self._objects(inner, first, second)
                    if isinstance(first, h5g.GroupID):
                        below.append((inner, first, second))
            todo += reversed(below)

    def _pair(self, path: str, one: Any, other: Any) -> bool:
        """Whether two objects meet for the first time; the same object has the same partner."""
        first, second = h5o.get_info(one).addr, h5o.get_info(other).addr
        if first in self.pairs:
            _expect(self.pairs[first] == second, path, "is no second name of the same object")
            return False
        _expect(second not in self.others, path, "became a second name of another object")
        self.pairs[first] = second
        self.others.add(second)
        return True

    def _links(self, path: str, one: Any, other: Any) -> Iterator[tuple[bytes, str]]:
        """Compare the links of two groups; yields the hard ones."""
        first = [
            (name, facts, f"{path}/{text_of(name)}".lstrip("/")) for name, facts in links_of(one)
        ]
        first = [link for link in first if link[2] not in self.without]
        second = dict(links_of(other))
        for name, facts, inner in first:
            _expect(name in second, inner, "is not there any more")
            partner = second[name]
            _expect(facts.type == partner.type, inner, "is another kind of link")
            _expect(facts.characters == partner.characters, inner, "is spelled otherwise")
            if facts.type != h5l.TYPE_HARD:
                same = one.links.get_val(name) == other.links.get_val(name)
                _expect(same, inner, "leads elsewhere")
            elif name in (b"", b".") or b"/" in name:
                raise Declined("unsupported", "a link name that is a path")
        known = {name for name, _, _ in first}
        for name in second:
            _expect(name in known, f"{path}/{text_of(name)}".lstrip("/"), "was not there before")
        if all(facts.order is not None for _, facts, _ in first):
            kept = [name for name, _, _ in first] == [*second]
            _expect(kept, path, "has its members in another order")
        for name, facts, inner in first:
            if facts.type == h5l.TYPE_HARD:
                yield name, inner

    def _objects(self, path: str, one: Any, other: Any) -> None:
        """Compare two objects, but not what lies below them."""
        _expect(type(one) is type(other), path, "is another kind of object")
        _expect(h5o.get_comment(one) == h5o.get_comment(other), path, "has another comment")
        self._attributes(path, one, other)
        if isinstance(one, h5d.DatasetID):
            self.datasets += 1
            _compare_layout(path, one, other)
            self._elements(path, one, other)
        elif isinstance(one, h5g.GroupID):
            same = one.get_create_plist().equal(other.get_create_plist())
            _expect(same, path, "was made with other properties")
        else:
            _expect(one.equal(other), path, "is another type")

    def _attributes(self, path: str, one: Any, other: Any) -> None:
        first, second = dict(attributes(one)), dict(attributes(other))
        for name in first.keys() ^ second.keys():
            what = "lost" if name in first else "gained"
            raise _Differs(f"{path[:300]!r} {what} the attribute {text_of(name)[:200]!r}")
        for name, attribute in first.items():
            if (path, text_of(name)) in self.skipped:
                continue
            what = f"has another attribute {text_of(name)[:200]!r}"
            partner = second[name]
            _expect(attribute.get_type().equal(partner.get_type()), path, what)
            _expect(_same_space(attribute.get_space(), partner.get_space()), path, what)
            _expect(_alike(value_of(attribute), value_of(partner)), path, what)

    def _elements(self, path: str, one: Any, other: Any) -> None:
        row = describe(one)
        if row["layout"] in ("external", "virtual"):
            return  # the values are elsewhere; where, was compared
        if one.get_space().get_simple_extent_type() == h5s.NULL:
            return
        itemsize, edited = self.edited.get(h5o.get_info(one).addr, (1, _NONE))
        if edited is None:
            return
        if "refused" in row:
            _compare_stored(path, one, other)
            return
        kind = one.get_type()
        shape, size = one.get_space().shape, kind.get_size()
        pointers = has_pointers(kind)
        chunk = (1,) * len(shape)
        if row["layout"] == "chunked":
            chunk = one.get_create_plist().get_chunk()
        end = 0
        # What lies in the heap is of any length: fewer at a time.
        for box in slabs(shape, chunk, max(size, BAND_BYTES >> 12) if pointers else size):
            if pointers:
                same = _alike(_read_objects(one, box), _read_objects(other, box))
                _expect(same, path, "holds other values")
                continue
            start, end = end, end + math.prod(box[1]) * size // itemsize
            wrong = _differing(one, other, box, size, itemsize) + start
            if wrong.size:
                wrong = np.setdiff1d(wrong, _between(edited, start, end), assume_unique=True)
            if wrong.size:
                what = f"holds other values, the first at element {wrong[0] * itemsize // size}"
                raise _Differs(f"{path[:300]!r} {what}")


_NONE = np.empty(0, np.int64)


def _between(indices: Indices, start: int, end: int) -> Indices:
    first, last = np.searchsorted(indices, (start, end))
    return indices[first:last]


def _differing(one: Any, other: Any, box: Box, size: int, itemsize: int) -> Indices:
    """Which elements of a box differ in any bit, by their number in it."""
    first, second = read_box(one, box, size), read_box(other, box, size)
    if np.array_equal(first, second):
        return _NONE
    return np.flatnonzero((first != second).reshape(-1, itemsize).any(axis=1))


def _expect(same: bool, path: str, what: str) -> None:  # noqa: FBT001
    if not same:
        raise _Differs(f"{path[:300]!r} {what}")


def _same_space(one: Any, other: Any) -> bool:
    if one.get_simple_extent_type() != other.get_simple_extent_type():
        return False
    if one.get_simple_extent_type() != h5s.SIMPLE:
        return True
    return all(
        one.get_simple_extent_dims(most) == other.get_simple_extent_dims(most)
        for most in (False, True)
    )


def _compare_layout(path: str, one: Any, other: Any) -> None:
    """Compare all that a dataset is but its values."""
    kind = one.get_type()
    _expect(kind.equal(other.get_type()), path, "is of another type")
    plist, partner = one.get_create_plist(), other.get_create_plist()
    layout = plist.get_layout()
    _expect(layout == partner.get_layout(), path, "is laid out otherwise")
    if layout == h5d.CHUNKED:
        _expect(plist.get_chunk() == partner.get_chunk(), path, "has other chunks")
    filters, others = (
        [each.get_filter(i) for i in range(each.get_nfilters())] for each in (plist, partner)
    )
    _expect(filters == others, path, "has other filters")
    _expect(plist.equal(partner), path, "was made with other properties")
    if layout != h5d.VIRTUAL:
        # The shape of a virtual dataset may depend on files outside: it is not asked for.
        _expect(_same_space(one.get_space(), other.get_space()), path, "has another shape")


def _compare_stored(path: str, one: Any, other: Any) -> None:
    """Compare chunks that nobody here can decode, as they are stored."""
    if one.get_num_chunks() != other.get_num_chunks():
        raise _Differs(f"{path[:300]!r} has another number of chunks")

    def compare_chunk(info: Any) -> None:
        first = one.read_direct_chunk(info.chunk_offset)
        second = other.read_direct_chunk(info.chunk_offset)
        if first != second:
            where = ", ".join(map(str, info.chunk_offset))
            raise _Differs(f"{path[:300]!r} holds other values in the chunk at {where}")

    one.chunk_iter(compare_chunk)


def _read_objects(dataset: Any, box: Box) -> Any:
    values = np.empty((math.prod(box[1]),), dataset.dtype)
    if box[0]:
        space = dataset.get_space()
        space.select_hyperslab(*box)
        dataset.read(h5s.create_simple(values.shape), space, values)
    else:
        dataset.read(h5s.ALL, h5s.ALL, values.reshape(()))
    return values


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same to the bit; NaN is itself."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if not one.dtype.hasobject:
            return one.tobytes() == other.tobytes()
        one, other = one.reshape(-1).tolist(), other.reshape(-1).tolist()
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(type(one) is type(other) and (one == other or (one != one and other != other)))  # noqa: PLR0124
