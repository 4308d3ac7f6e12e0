"""Strided views for those who do not care about the order of elements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..sources import ByteSource
from ..tensors import Array

__all__ = ["Dims", "distinct", "gather", "is_dense", "span"]

Dims = tuple[tuple[int, int], ...]
"""(length, stride in elements) of each dimension, the largest stride first; none of length 1, none
of stride 0."""


def distinct(shape: Sequence[int], strides: Sequence[int]) -> tuple[Dims, int]:
    """Take a view without elements that only repeat others (stride 0).

    Returns
    -------
    dims
        What remains, neighbours merged where they form one run; empty for a single element.
    times
        How often the view shows each of the remaining elements.

    Examples
    --------
    >>> distinct((4, 3), (1, 4))  # a transposed matrix is a run of 12
    (((12, 1),), 1)
    >>> distinct((5, 3), (0, 2))
    (((3, 2),), 5)
    """
    pairs = [(s, n) for n, s in zip(shape, strides, strict=True) if n != 1]
    times = math.prod(n for s, n in pairs if s == 0)
    merged: list[tuple[int, int]] = []
    for stride, n in sorted((pair for pair in pairs if pair[0]), reverse=True):
        if merged and merged[-1][1] == n * stride:
            merged[-1] = (merged[-1][0] * n, stride)
        else:
            merged.append((n, stride))
    return tuple(merged), times


def is_dense(dims: Dims) -> bool:
    """Tell whether the elements fill their span without gaps or repetition."""
    return not dims or (len(dims) == 1 and dims[0][1] == 1)


def span(dims: Dims) -> int:
    """Elements from the first to the last, both included."""
    return 1 + sum((n - 1) * stride for n, stride in dims)


def gather(
    source: ByteSource, offset: int, itemsize: int, dims: Dims, block: int
) -> Iterator[Array]:
    """Bytes of all elements of a view in some order, each yield shaped ``(n, itemsize)``.

    Parameters
    ----------
    source, offset
        Where the first element lies, in bytes.
    itemsize
        Bytes of an element.
    dims
        As `distinct` gives them.
    block
        Bytes read at once, at most.
    """
    if span(dims) * itemsize <= block:
        raw = np.frombuffer(source.pread(offset, span(dims) * itemsize), np.uint8)
        shape = (*(n for n, _ in dims), itemsize)
        steps = (*(stride * itemsize for _, stride in dims), 1)
        view = np.lib.stride_tricks.as_strided(raw, shape, steps, writeable=False)
        yield view.reshape(-1, itemsize)
        return
    (n, stride), inner = dims[0], dims[1:]
    fit = (block // itemsize - span(inner)) // stride + 1
    rows = min(n, max(1, fit))
    for first in range(0, n, rows):
        part = min(rows, n - first)
        rest = inner if part == 1 else ((part, stride), *inner)
        yield from gather(source, offset + first * stride * itemsize, itemsize, rest, block)
