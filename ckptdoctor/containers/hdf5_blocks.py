"""How a chunked array is cut into blocks; parent and child have to agree about it."""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["BAND_BYTES", "CHUNK_BYTES", "MAX_REPEAT", "repeats", "slabs"]

BAND_BYTES = 1 << 20
"""Decoded bytes of one answer, if the chunks allow it."""
CHUNK_BYTES = 1 << 27
"""128 MiB: chunks are decoded whole, larger ones are not read (h5py's own are at most 1 MiB)."""
MAX_REPEAT = 64
"""How often one chunk may be decoded: needed when a single row of chunks exceeds `CHUNK_BYTES`."""


def slabs(
    shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut an array into (start, count) blocks that follow each other in row-major order.

    Blocks are made of whole chunks wherever a band of chunks fits `CHUNK_BYTES`; ``chunks`` is
    ``shape`` for data that is not chunked.

    Examples
    --------
    >>> list(slabs((4, 3), (2, 2), 1 << 18))
    [((0, 0), (2, 3)), ((2, 0), (2, 3))]
    >>> list(slabs((), (), 4))
    [((), ())]
    """
    if not shape:
        yield (), ()
        return
    if 0 in shape:
        return
    axis, step = _cut(shape, chunks, itemsize)
    inner = shape[axis + 1 :]
    for outer in _indices(shape[:axis]):
        for first in range(0, shape[axis], step):
            start = (*outer, first, *(0 for _ in inner))
            yield start, (*(1 for _ in outer), min(step, shape[axis] - first), *inner)


def _cut(shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return the outermost axis along which a band of chunks fits, and the length of a band."""
    for axis in range(len(shape)):
        row = math.prod(shape[axis + 1 :]) * itemsize
        chunk = min(chunks[axis], shape[axis])
        if row * chunk <= CHUNK_BYTES:
            return axis, chunk * max(1, BAND_BYTES // (row * chunk))
    return len(shape) - 1, max(1, CHUNK_BYTES // itemsize)


def _indices(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All indices of an array, the last axis running fastest (lazily: there may be many)."""
    if not shape:
        yield ()
        return
    for first in range(shape[0]):
        for rest in _indices(shape[1:]):
            yield (first, *rest)


def repeats(shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int) -> int:
    """How often `slabs` decodes one chunk."""
    axis, _ = _cut(shape, chunks, itemsize)
    return math.prod(min(c, s) for c, s in zip(chunks[:axis], shape[:axis], strict=True))
