"""Whether two unpickled objects are the same, some keys of the outermost dictionary aside."""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any

from ..containers.pickle import Call, Global, PDict, Persistent, PSet

__all__ = ["same_without"]


def same_without(old: Any, new: Any, keys: Collection[str]) -> bool:
    """Compare two inert objects, and which of their parts are one and the same object.

    Parameters
    ----------
    keys
        Of ``old``, to take for absent.

    Examples
    --------
    >>> old, new = PDict([("a", 1), ("b", [2.0])]), PDict([("b", [2.0])])
    >>> same_without(old, new, ["a"]), same_without(old, new, ["b"])
    (True, False)
    """
    there: dict[int, int] = {}
    back: dict[int, int] = {}
    alike: set[tuple[int, int]] = set()
    todo = [(old, new)]
    while todo:
        mine, other = todo.pop()
        if type(mine) is not type(other):
            return False
        if type(mine) in (list, PDict, PSet, Call):
            pair = (id(mine), id(other))
            met = pair[0] in there or pair[1] in back
            if (
                there.setdefault(pair[0], pair[1]) != pair[1]
                or back.setdefault(*pair[::-1]) != pair[0]
            ):
                return False
            if met:
                continue
        elif type(mine) in (tuple, Persistent):
            if (id(mine), id(other)) in alike:
                continue
            alike.add((id(mine), id(other)))
        elif not _equal(mine, other):
            return False
        parts = _parts(mine, keys if mine is old else ()), _parts(other, ())
        if len(parts[0]) != len(parts[1]):
            return False
        todo += zip(*parts, strict=True)
    return True


def _equal(mine: Any, other: Any) -> bool:
    if type(mine) is float:
        return struct.pack("<d", mine) == struct.pack("<d", other)
    if type(mine) is Global:
        return (mine.module, mine.name, mine.computed) == (other.module, other.name, other.computed)
    return bool(mine == other)


def _parts(value: Any, without: Collection[str]) -> list[Any]:
    kind = type(value)
    if kind in (list, tuple):
        return list(value)
    if kind is PSet:
        return list(value.elements)
    if kind is Persistent:
        return [value.pid]
    if kind not in (PDict, Call):
        return []
    kept = [pair for pair in value.pairs if not (type(pair[0]) is str and pair[0] in without)]
    parts = [part for pair in kept for part in pair]
    if kind is Call:  # the counts keep one list from borrowing of the next
        counts = [len(kept), len(value.state), len(value.elements)]
        return [value.callee, value.args, *counts, *value.state, *value.elements, *parts]
    return parts
