"""Samples of random numbers: what is taken where there are no data."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from ..tensors import Array

__all__ = ["RANDOM_SAMPLES", "Inputs", "asks_for_random", "random_samples", "told"]

Inputs = Sequence[tuple[tuple[int | None, ...], str]]
"""What a model says of its inputs: shapes (None where free, samples first) and dtypes."""

RANDOM_SAMPLES = 64
_SEED = 20
_LARGEST_RANDOM = 1 << 28
"""Elements of random data in all: 1 GiB of float32."""
_DIMENSIONS = 31
"""Of a sample: NumPy has 32 for the batch in some versions, 64 in others."""
_INTEGERS = 2
"""Random integers are 0 or 1: any table of embeddings has these rows."""
_SPEC = re.compile(r"random(?::(?:(\d+)x)?([\d,;x]*))?", re.IGNORECASE)


def asks_for_random(text: str) -> bool:
    """Whether a text is a wish for random numbers, well formed or not."""
    return _SPEC.fullmatch(text) is not None


def random_samples(text: str, inputs: Inputs) -> tuple[Array, ...]:
    """Draw samples as a text says, else with the shapes of a model's inputs; always the same ones.

    Raises
    ------
    UsageError
        If no shape is known, or the text says none.
    """
    spec = _SPEC.fullmatch(text)
    assert spec is not None  # the caller asked
    count, shapes = spec[1], spec[2]
    number = int(count[:9]) if count else RANDOM_SAMPLES
    if shapes and not count and "x" in shapes:
        raise _no_shape(text, "the number of samples comes before the shape")
    if shapes:
        wanted = [_numbers(part, text) for part in shapes.split(";")]
    else:
        wanted = [_sample_shape(shape) for shape, _ in inputs]
        fixed = next((shape[0] for shape, _ in inputs if shape and shape[0]), 1)
        number = -(-number // fixed) * fixed
    if not wanted:
        raise _no_shape(text, "the model does not say what it takes")
    if any(len(shape) > _DIMENSIONS for shape in wanted):
        raise _no_shape(text, f"a sample has {_DIMENSIONS} dimensions at most")
    size = number * sum(map(math.prod, wanted))
    if not 0 < size <= _LARGEST_RANDOM:
        many = f"{size:,}" if size < 10**15 else f"over {10**15:,}"
        raise UsageError(f"{text!r:.100} makes {many} numbers; expected 1 to {_LARGEST_RANDOM:,}")
    kinds = [dtype for _, dtype in inputs] or ["float32"] * len(wanted)
    if len(kinds) != len(wanted):
        message = f"{text!r:.100} has shapes for {len(wanted)} inputs, the model takes {len(kinds)}"
        raise UsageError(message)
    random = np.random.default_rng(_SEED)
    made = []
    for shape, kind in zip(wanted, kinds, strict=True):
        if kind.startswith(("int", "uint", "bool")):
            made.append(random.integers(0, _INTEGERS, (number, *shape)).astype(kind))
        else:
            made.append(random.standard_normal((number, *shape), np.float32))
    return tuple(made)


def _numbers(part: str, text: str) -> tuple[int, ...]:
    words = part.split(",")
    if not all(word.isdigit() and len(word) < 10 for word in words):
        raise _no_shape(text, "expected numbers with commas between them")
    return tuple(map(int, words))


def _sample_shape(shape: Sequence[int | None]) -> tuple[int, ...]:
    rest = shape[1:]
    if any(extent is None for extent in rest):
        raise _no_shape("random", f"the model leaves extents of its input {told(shape)} open")
    return tuple(extent for extent in rest if extent is not None)


def _no_shape(text: str, reason: str) -> UsageError:
    hint = "give the shape of a sample: random:3,224,224, or with their number random:64x3,224,224"
    return UsageError(f"{text!r:.100}: {reason}", hint=hint)


def told(shape: Sequence[int | None]) -> str:
    """Shape as a user reads it.

    Examples
    --------
    >>> told((None, 3, 32)), told((8,))
    ('(any, 3, 32)', '(8,)')
    """
    words = ["any" if extent is None else str(extent) for extent in shape]
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"
