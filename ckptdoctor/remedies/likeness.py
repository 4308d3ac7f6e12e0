"""How far the weights of two checkpoints lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from ..tensors import Array, TensorInfo, TensorTable
from .transfer import inflated

__all__ = ["SAMPLED", "Likeness", "compare"]

SAMPLED = 16 << 20
"""Elements of all tensors together that are compared, 64 MB of float32: 0.1 s."""

_PIECE = 1 << 14
"""Elements that are read at a time from tensors that are not compared whole."""


class Likeness(NamedTuple):
    """Relative distances ``|a - b| / |a|`` of tensors, in the Euclidean norm.

    ``median`` and ``worst`` are over ``tensors`` of them, ``name`` is where it is worst.
    """

    tensors: int
    median: float
    worst: float
    name: str


def compare(
    one: TensorTable,
    other: TensorTable,
    pairs: Mapping[str, str],
    *,
    sampled: int = SAMPLED,
) -> Likeness | None:
    """Compare the float tensors of two tables.

    Parameters
    ----------
    one, other, pairs
        Names in ``one`` -> names in ``other``, of the same shapes.  Tensors that are not finite on
        either side are left out, and so is what is zero everywhere.
    sampled
        Elements to read at most; of the largest tensors evenly spaced pieces are read.

    Returns
    -------
    Likeness or None
        None where nothing can be compared.

    Examples
    --------
    >>> old = TensorTable.from_arrays({"w": [3.0, 4.0]})
    >>> compare(TensorTable.from_arrays({"v": [3.0, 5.0]}), old, {"v": "w"}).tensors
    1
    """
    chosen = [
        (one[name], other[partner])
        for name, partner in pairs.items()
        if _comparable(one[name]) and _comparable(other[partner])
    ]
    share = _share([info.size for info, _ in chosen], sampled)
    found = []
    for info, partner in chosen:
        distance = _distance(one, info, other, partner, share)
        if distance is not None:
            found.append((distance, info.name))
    if not found:
        return None
    worst, name = max(found)
    return Likeness(len(found), float(np.median([far for far, _ in found])), worst, name)


def _comparable(info: TensorInfo) -> bool:
    plain = info.encoding == "plain" and info.kind.kind == "float" and info.size > 0
    return plain and not inflated(info)


def _share(sizes: list[int], total: int) -> int:
    """Elements that each tensor may have so that all have ``total``: small ones are read whole.

    Examples
    --------
    >>> _share([10, 100, 1000], 310), _share([10, 20], 310)
    (200, 310)
    """
    left, count = total, len(sizes)
    for size in sorted(sizes):
        if size * count > left:
            return max(1, left // count)
        left -= size
        count -= 1
    return total


def _distance(
    one: TensorTable, info: TensorInfo, other: TensorTable, partner: TensorInfo, share: int
) -> float | None:
    apart = size = 0.0
    with np.errstate(all="ignore"):
        for ours, theirs in zip(
            _pieces(one, info, share, seek=_seekable(info, partner)),
            _pieces(other, partner, share, seek=_seekable(info, partner)),
            strict=False,
        ):
            a, b = ours.astype(np.float64), theirs.astype(np.float64)
            size += float(np.dot(a, a))
            apart += float(np.dot(a - b, a - b))
            if not np.isfinite(np.dot(b, b)):
                return None
    if not size or not np.isfinite(apart / size):
        return None
    return float(np.sqrt(apart / size))


def _seekable(*infos: TensorInfo) -> bool:
    return all(info.extent is not None and info.strides is None for info in infos)


def _pieces(table: TensorTable, info: TensorInfo, share: int, *, seek: bool) -> Iterator[Array]:
    """Flat pieces of `_PIECE` elements, ``share`` elements in all; the same for any dtype."""
    wanted = max(1, min(share, info.size) // _PIECE)
    if not seek or info.size <= share:
        yield from islice(_even(table.blocks(info)), None if info.size <= share else wanted)
        return
    extent, width = info.extent, info.kind.itemsize
    if extent is None:
        return
    for start in np.linspace(0, max(0, info.size - _PIECE), wanted).astype(np.int64).tolist():
        count = min(_PIECE, info.size - start)
        raw = extent.source.pread(extent.offset + start * width, count * width)
        values = np.frombuffer(raw, info.kind.numpy)
        yield values.byteswap() if info.big_endian else values


def _even(blocks: Iterator[Array]) -> Iterator[Array]:
    """Cut blocks of any length into pieces of one."""
    held: Array | None = None
    for block in blocks:
        held = block if held is None else np.concatenate([held, block])
        while held.size >= _PIECE:
            yield held[:_PIECE]
            held = held[_PIECE:]
    if held is not None and held.size:
        yield held
