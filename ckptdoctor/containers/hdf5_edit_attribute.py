"""Attributes of HDF5 objects: reading, copying and replacing their values.  Imports h5py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from h5py import h5, h5a, h5s, h5t

from .hdf5_describe import MAX_ATTRIBUTE
from .hdf5_edit_values import found
from .hdf5_edit_window import Declined, Inbox, Window, opened

__all__ = ["attributes", "copy_attributes", "has_pointers", "set_attribute", "value_of"]

_OLD_REFERENCE = 12
"""Bytes of an address, or of a place in the heap; the references of HDF5 1.12 take 64."""


def has_pointers(kind: Any) -> bool:
    """Whether elements lie elsewhere, in the file's heap: strings and lists of any length.

    Raises
    ------
    Declined
        For references of a kind that cannot be taken for plain bytes.
    """
    leaves = [*_leaves(kind)]
    if any(
        each.get_class() == h5t.REFERENCE and each.get_size() > _OLD_REFERENCE for each in leaves
    ):
        raise Declined("unsupported", "references of a kind that h5py does not read")
    return kind.detect_class(h5t.VLEN) or any(
        each.get_class() == h5t.STRING and each.is_variable_str() for each in leaves
    )


def _leaves(kind: Any) -> Iterator[Any]:
    """Types that a type is made of (HDF5 does not find strings of any length in others)."""
    group = kind.get_class()
    if group == h5t.COMPOUND:
        for i in range(kind.get_nmembers()):
            yield from _leaves(kind.get_member_type(i))
    elif group in (h5t.ARRAY, h5t.VLEN):
        yield from _leaves(kind.get_super())
    else:
        yield kind


def attributes(thing: Any) -> Iterator[tuple[bytes, Any]]:
    """Attributes of an object in the order in which they were made, as far as that is known."""
    names: list[bytes] = []
    if not h5a.get_num_attrs(thing):
        return
    try:
        h5a.iterate(thing, names.append, index_type=h5.INDEX_CRT_ORDER)
    except Exception:  # noqa: BLE001  (no order was kept)
        names.clear()
        h5a.iterate(thing, names.append)
    for name in names:
        yield name, h5a.open(thing, name)


def value_of(attribute: Any) -> Any:
    """Value of an attribute: bytes of its elements, or objects where they lie in the heap.

    Raises
    ------
    Declined
        If it is unreasonably large.
    """
    kind, space = attribute.get_type(), attribute.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        return None
    if math.prod(space.shape) * kind.get_size() > MAX_ATTRIBUTE:
        raise Declined("unsupported", "an attribute larger than 64 MiB")
    if has_pointers(kind):
        values = np.empty(space.shape, attribute.dtype)
        attribute.read(values)
    else:
        values = np.empty(space.shape, np.dtype((np.void, kind.get_size())))
        attribute.read(values, kind)
    return values


def copy_attributes(source: Any, target: Any) -> None:
    """Give ``target`` the attributes of ``source``."""
    for name, attribute in attributes(source):
        kind = attribute.get_type()
        made = h5a.create(target, name, kind, attribute.get_space())
        values = value_of(attribute)
        if values is not None and values.size:
            made.write(values, None if has_pointers(kind) else kind)


def set_attribute(windows: Sequence[Window], job: Mapping[str, Any], inbox: Inbox) -> str:
    """Replace the text of a string attribute; how it is stored stays, if it fits there."""
    text = bytes(inbox.take(inbox.number()))
    with opened(windows[0]) as file:
        _replace(found(file, job["path"]), job["name"], text)
    return "done"


def _replace(owner: Any, shown: str, text: bytes) -> None:
    name = shown.encode()
    if not h5a.exists(owner, name):
        raise Declined("missing", f"no attribute {shown[:200]!r}")
    attribute = h5a.open(owner, name)
    kind = attribute.get_type()
    if kind.get_class() != h5t.STRING or math.prod(attribute.shape) != 1:
        raise Declined("unsupported", f"attribute {shown[:200]!r} is no string")
    if b"\0" in text:
        raise Declined("unsupported", "a text with a zero in it")
    if kind.is_variable_str():
        _check_text(value_of(attribute).reshape(-1)[0])
        values = np.empty(attribute.shape, attribute.dtype)
        values[...] = text
        attribute.write(values)
    else:
        _check_text(value_of(attribute).tobytes())
        _set_fixed(owner, name, attribute, text)


def _check_text(old: bytes | str) -> None:
    """Decline to replace what was not shown as it is: bytes that are no text."""
    try:
        (old if isinstance(old, bytes) else old.encode()).decode()
    except UnicodeError:
        raise Declined("unsupported", "an attribute that is no UTF-8") from None


def _set_fixed(owner: Any, name: bytes, attribute: Any, text: bytes) -> None:
    """Write into the old place where it is long enough, else make a longer one."""
    kind, shape = attribute.get_type(), attribute.shape
    needed = len(text) + (kind.get_strpad() == h5t.STR_NULLTERM)
    if needed > kind.get_size():
        space = attribute.get_space()
        kind = kind.copy()
        kind.set_size(needed)
        del attribute
        h5a.delete(owner, name)
        attribute = h5a.create(owner, name, kind, space)
    filler = b" " if kind.get_strpad() == h5t.STR_SPACEPAD else b"\0"
    data = text.ljust(kind.get_size(), filler)
    attribute.write(np.frombuffer(data, np.dtype((np.void, len(data)))).reshape(shape), kind)
