"""Values of one tensor for another of the same shape: read in blocks, cast, and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import FormatError
from ..tensors import BLOCK_BYTES, MAX_EXPANSION, Array, TensorInfo, TensorTable

__all__ = ["cast", "compatible", "inflated", "pick", "sound", "whole", "whole_fault"]


def pick(table: TensorTable, info: TensorInfo, indices: Array) -> Array:
    """Elements of a tensor by their flat indices, ascending; blocks that hold none are not read.

    Examples
    --------
    >>> table = TensorTable.from_arrays({"w": [[1.0, 2.0], [3.0, 4.0]]})
    >>> pick(table, table["w"], np.array([1, 3]))
    array([2., 4.], dtype=float32)
    """
    taken = np.empty(indices.size, info.kind.numpy)
    done = 0
    for start, block in _blocks_with(table, info, indices):
        low, high = np.searchsorted(indices, (start, start + block.size))
        taken[low:high] = block[indices[low:high] - start]
        done = int(high)
    _check_complete(table, info, done, indices.size)
    return taken


def _check_complete(table: TensorTable, info: TensorInfo, found: int, expected: int) -> None:
    if found != expected:
        message = f"{info.name!r:.200} gave {found:,} of {expected:,} elements"
        raise FormatError(message, where=table.path)


def _blocks_with(
    table: TensorTable, info: TensorInfo, indices: Array
) -> Iterator[tuple[int, Array]]:
    """Yield blocks and where they start; those without any of the indices only where they must be."""
    if info.extent is None or info.strides is not None:
        start = 0
        for block in table.blocks(info):
            yield start, block
            start += block.size
            if not indices.size or start > indices[-1]:
                return
        return
    step = BLOCK_BYTES // info.kind.itemsize
    for number in np.unique(indices // step).tolist():
        at, count = number * step, min(step, info.size - number * step)
        width = info.kind.itemsize
        raw = info.extent.source.pread(info.extent.offset + at * width, count * width)
        block = np.frombuffer(raw, info.kind.numpy)
        yield at, block.byteswap() if info.big_endian else block


def cast(values: Array, info: TensorInfo) -> Array:
    """Values in the type of a tensor."""
    with np.errstate(all="ignore"):
        return values.astype(info.kind.numpy)


def sound(values: Array, part: str = "") -> Array:
    """Mask of what may stand in a tensor: finite numbers, and above zero for a variance.

    Examples
    --------
    >>> sound(np.array([0.0, 1.0, np.inf, -1.0]), "var"), sound(np.array([-1.0, np.nan]))
    (array([False,  True, False, False]), array([ True, False]))
    """
    with np.errstate(all="ignore"):
        good = np.isfinite(values)
        if part == "var":
            good &= values > 0
    return np.asarray(good)


def compatible(info: TensorInfo, source: TensorInfo) -> str:
    """Reason why one tensor's values mean nothing in another; empty where they do.

    Examples
    --------
    >>> a = TensorInfo("a", ("a",), "float16", (2,))
    >>> b = TensorInfo("b", ("b",), "int64", (2,))
    >>> compatible(a, a._replace(dtype="float32")), compatible(a, b)
    ('', 'it is int64 there, float16 here')
    """
    if source.encoding == "absent":
        return "it has no stored values there"
    if inflated(info) or inflated(source):
        return "it repeats a few stored values"
    if "plain" not in {info.encoding} & {source.encoding}:
        return f"its values are {_odd(info, source)}: the numbers mean something else in each file"
    if info.dtype != source.dtype and not info.kind.kind == source.kind.kind == "float":
        return f"it is {source.dtype} there, {info.dtype} here"
    return ""


def inflated(info: TensorInfo) -> bool:
    """Whether a view repeats its stored bytes so often that it must not be read whole."""
    if info.strides is None or info.extent is None:
        return False
    return info.nbytes > MAX_EXPANSION * info.extent.length + 2**24


def _odd(info: TensorInfo, source: TensorInfo) -> str:
    return source.encoding if source.encoding != "plain" else info.encoding


def whole(table: TensorTable, source: TensorInfo, info: TensorInfo) -> Callable[[], Array]:
    """Make what reads all values of ``source``, flat and in the type of ``info``."""

    def values() -> Array:
        made = np.empty(info.size, info.kind.numpy)
        start = 0
        for block in table.blocks(source):
            made[start : start + block.size] = cast(block[: info.size - start], info)
            start += block.size
        _check_complete(table, source, start, info.size)
        return made

    return values


def whole_fault(table: TensorTable, source: TensorInfo, info: TensorInfo, part: str = "") -> str:
    """Reason why not all values of ``source`` can stand in ``info``; empty where they can."""
    if source.kind.kind not in ("float", "complex"):
        return ""
    bad = lost = 0
    for block in table.blocks(source):
        values = _real(block)
        fine = sound(values, part)
        bad += int(fine.size - np.count_nonzero(fine))
        if info.dtype != source.dtype:
            lost += int(np.count_nonzero(fine & ~sound(cast(values, info), part)))
    if bad:
        what = "not finite" if part != "var" else "not finite or not above zero"
        return f"{bad:,} of {source.size:,} elements are {what} there"
    return f"{lost:,} of {source.size:,} elements do not fit into {info.dtype}" if lost else ""


def _real(block: Array) -> Array:
    kinds: dict[bool, Any] = {True: np.float16}
    if block.dtype.fields:  # complex32, for which NumPy has no type
        return block.view(kinds[True])
    return block
