"""Two HDF5 files side by side: every object, attribute and element.  Imports h5py."""

from __future__ import annotations

import array
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5r, h5s

from .hdf5_blocks import BAND_BYTES, slabs
from .hdf5_describe import describe, text_of
from .hdf5_edit_attribute import attributes, has_pointers, value_of
from .hdf5_edit_copy import links_of
from .hdf5_edit_values import Box, Indices, found, read_box
from .hdf5_edit_window import Declined, Inbox, Window, opened

__all__ = ["compare"]

MAX_OPAQUE = 2
"""Opaque elements of this size are numbers to the table, bfloat16; larger ones count as bytes."""


def compare(windows: Sequence[Window], job: Mapping[str, Any], inbox: Inbox) -> dict[str, Any]:
    """Compare; answers the first difference in words, and how many datasets were compared."""
    with opened(windows[0]) as one, opened(windows[1]) as other:
        edited: dict[int, Indices | None] = {}
        for edit in job["edited"]:
            count = edit["count"]
            indices = None if count < 0 else np.frombuffer(inbox.take(8 * count), "<i8")
            edited[h5o.get_info(found(one, edit["path"])).addr] = indices
        comparison = _Comparison(edited, job["without"], job["attributes"])
        difference = ""
        try:
            comparison.trees(h5g.open(one, b"/"), h5g.open(other, b"/"))
        except _Differs as found_:
            difference = str(found_)[:900]
    return {"difference": difference, "datasets": comparison.datasets}


class _Differs(Exception):
    pass


class _Comparison:
    def __init__(
        self,
        edited: Mapping[int, Indices | None],
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
        self._attributes(path, one, other)
        if isinstance(one, h5d.DatasetID):
            self.datasets += 1
            _compare_layout(path, one, other)
            self._elements(path, one, other)
        elif isinstance(one, h5g.GroupID):
            first, second = (_order_of(each.get_create_plist()) for each in (one, other))
            _expect(first == second, path, "keeps its members in another order")
            _expect(one.get_comment(b".") == other.get_comment(b"."), path, "has another comment")
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
            values = [_named(value_of(each), each) for each in (attribute, partner)]
            _expect(_alike(*values), path, what)

    def _elements(self, path: str, one: Any, other: Any) -> None:
        row = describe(one)
        if row["layout"] in ("external", "virtual"):
            return  # the values are elsewhere; where, was compared
        if one.get_space().get_simple_extent_type() == h5s.NULL:
            return
        edited = self.edited.get(h5o.get_info(one).addr, _NONE)
        if edited is None:
            return
        kind = one.get_type()
        shape, size = one.get_space().shape, kind.get_size()
        if has_pointers(kind):
            # What lies in the heap is of any length: few at a time.
            for box in slabs(shape, (1,) * len(shape), BAND_BYTES >> 12):
                values = [_named(_read_objects(each, box), each) for each in (one, other)]
                _expect(_alike(*values), path, "holds other values")
            return
        if row["layout"] == "contiguous" and row["offset"] is other.get_offset() is None:
            return  # never written: as many fill values as it pleased somebody to declare
        chunked = row["layout"] == "chunked"
        itemsize = row["itemsize"]
        if row["dtype"] in ("opaque", "string") and itemsize > MAX_OPAQUE:
            itemsize = 1
        per = size // itemsize
        for box in _chunks(one, other, shape) if chunked else slabs(shape, (1,) * len(shape), size):
            if chunked and _same_stored(one, other, box[0]):
                continue
            _expect("refused" not in row, path, "holds other values")  # nobody here can decode them
            places, inside = np.divmod(_differing(one, other, box, size, itemsize), per)
            wrong = _number(places, box, shape) * per + inside
            wrong = _without(wrong, edited)
            if wrong.size:
                what = f"holds other values, the first at element {wrong[0] // per}"
                raise _Differs(f"{path[:300]!r} {what}")


def _without(indices: Indices, known: Indices) -> Indices:
    """Take out those that are in ``known``, which ascends (`numpy.isin` imports, too late here)."""
    if not known.size or not indices.size:
        return indices
    at = np.minimum(np.searchsorted(known, indices), known.size - 1)
    left: Indices = indices[known[at] != indices]
    return left


def _chunks(one: Any, other: Any, shape: tuple[int, ...]) -> Iterator[Box]:
    """Boxes of the chunks that either of two datasets stores, those at the end cut off."""
    chunk = one.get_create_plist().get_chunk()
    grid = [-(-s // c) for s, c in zip(shape, chunk, strict=True)]
    starts = np.concatenate([_written(each, len(shape)) for each in (one, other)])
    numbers = np.sort(np.ravel_multi_index(tuple((starts // chunk).T), grid))
    for number in numbers[np.diff(numbers, prepend=-1) > 0].tolist():
        start = tuple(
            int(i) * c for i, c in zip(np.unravel_index(number, grid), chunk, strict=True)
        )
        yield start, tuple(map(min, chunk, (s - a for s, a in zip(shape, start, strict=True))))


def _written(dataset: Any, rank: int) -> Indices:
    """Where chunks begin: shape ``(chunks, rank)``."""
    found = array.array("q")  # dense: there may be millions
    if hasattr(dataset, "chunk_iter"):
        dataset.chunk_iter(lambda info: found.extend(info.chunk_offset))
    else:  # h5py built with an HDF5 before 1.12.3
        for i in range(dataset.get_num_chunks()):
            found.extend(dataset.get_chunk_info(i).chunk_offset)
    starts: Indices = np.array(found, np.int64).reshape(-1, rank)
    return starts


def _same_stored(one: Any, other: Any, start: tuple[int, ...]) -> bool:
    """Whether a chunk is stored as the same bytes, which saves decoding it (10 times faster)."""
    try:
        return bool(one.read_direct_chunk(start) == other.read_direct_chunk(start))
    except Exception:  # noqa: BLE001  (only one of them stores it)
        return False


def _number(places: Indices, box: Box, shape: tuple[int, ...]) -> Indices:
    """Flat indices in the whole array of places in a box of it."""
    if not shape:
        return places
    at = np.unravel_index(places, box[1])
    whole = tuple(a + start for a, start in zip(at, box[0], strict=True))
    return np.asarray(np.ravel_multi_index(whole, shape), np.int64)


_NONE = np.empty(0, np.int64)


def _differing(one: Any, other: Any, box: Box, size: int, itemsize: int) -> Indices:
    """Which elements of a box differ in any bit, by their number in it."""
    first, second = read_box(one, box, size), read_box(other, box, size)
    if np.array_equal(first, second):
        return _NONE
    return np.flatnonzero((first != second).reshape(-1, itemsize).any(axis=1))


def _expect(same: bool, path: str, what: str) -> None:
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
    for what in _PROPERTIES:
        first, second = (what(each, one) for each in (plist, partner))
        _expect(first == second, path, "was made with other properties")
    if layout != h5d.VIRTUAL:
        # The shape of a virtual dataset may depend on files outside: it is not asked for.
        _expect(_same_space(one.get_space(), other.get_space()), path, "has another shape")


def _order_of(plist: Any) -> tuple[Any, ...]:
    return (
        plist.get_link_creation_order(), plist.get_attr_creation_order(),
        plist.get_attr_phase_change(),
    )  # fmt: skip


def _fill_of(plist: Any, dataset: Any) -> tuple[int, bytes]:
    """Whether there is a fill value, and its bytes."""
    defined = plist.fill_value_defined()
    kind = dataset.get_type()
    if defined != h5d.FILL_VALUE_USER_DEFINED or has_pointers(kind):
        return defined, b""
    value = np.empty((), np.dtype(kind.dtype))
    plist.get_fill_value(value)
    return defined, value.tobytes()


def _sources_of(plist: Any, _: Any) -> list[Any]:
    """Where values in other files or datasets come from."""
    if plist.get_layout() != h5d.VIRTUAL:
        return [plist.get_external(i) for i in range(plist.get_external_count())]
    return [
        (
            plist.get_virtual_filename(i), plist.get_virtual_dsetname(i),
            plist.get_virtual_vspace(i).encode(), plist.get_virtual_srcspace(i).encode(),
        )
        for i in range(plist.get_virtual_count())
    ]  # fmt: skip


# `PropDCID.equal` says no to the same properties read twice: it looks at bytes nobody set.
_PROPERTIES = (
    _fill_of,
    _sources_of,
    lambda plist, _: (plist.get_fill_time(), plist.get_alloc_time()),
    lambda plist, _: (plist.get_attr_creation_order(), plist.get_attr_phase_change()),
)


def _read_objects(dataset: Any, box: Box) -> Any:
    values = np.empty((math.prod(box[1]),), dataset.dtype)
    if box[0]:
        space = dataset.get_space()
        space.select_hyperslab(*box)
        dataset.read(h5s.create_simple(values.shape), space, values)
    else:
        dataset.read(h5s.ALL, h5s.ALL, values.reshape(()))
    return values


def _named(value: Any, holder: Any) -> Any:
    """Replace references by the names of what they refer to."""
    if isinstance(value, h5r.RegionReference):
        raise Declined("unsupported", "lists of references to regions")
    if isinstance(value, h5r.Reference):
        return h5r.get_name(value, holder)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.reshape(-1).tolist()
    return [_named(each, holder) for each in value] if isinstance(value, list | tuple) else value


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same to the bit; NaN is itself."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(type(one) is type(other) and (one == other or (one != one and other != other)))  # noqa: PLR0124
