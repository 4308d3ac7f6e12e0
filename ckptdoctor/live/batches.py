"""Samples in memory, whatever holds them: tensors of any framework, and loaders that give batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .calling import user_code

if TYPE_CHECKING:
    from ..tensors import Array

__all__ = ["array_of", "gathered", "holds_arrays", "numeric"]

_END = object()
_DEPTH = 8
"""Tuples and lists within each other that are looked into: one may hold itself."""


def gathered(
    batches: Iterable[Any],
    count: int,
    limit: int = 0,
    picked: Callable[[Mapping[str, Any]], Sequence[str]] | None = None,
) -> list[Array]:
    """One array per input of the model.

    Parameters
    ----------
    batches
        Batches as a loader gives them (of a tuple, list or mapping the first entries), or a tensor
        of all samples.
    count
        Inputs of the model.
    limit
        No further batch is asked for once there are so many samples; 0 for all.
    picked
        Says which entries of a mapping are the inputs; by default the first.

    Raises
    ------
    UsageError
        If a batch holds fewer inputs, batches do not go together, or there is none.
    """
    if hasattr(batches, "shape"):
        return [array_of(batches)]
    columns: list[list[Array]] = []
    samples = 0
    for each in _drawn(batches):
        batch = _inputs_of(each, count)
        given = batch if isinstance(batch, tuple | list) else (batch,)
        if isinstance(batch, Mapping):
            named = {str(key): value for key, value in batch.items()}
            keys = picked(named) if picked is not None else list(named)
            missing = next((key for key in keys if key not in named), None)
            if missing is not None:
                message = f"a batch has no entry {missing!r:.100}, which the first one has"
                raise UsageError(message)
            given = tuple(named[key] for key in keys)
            count = len(keys) if picked is not None else count
        if len(given) < max(count, 1):
            message = f"expected batches of {max(count, 1)} inputs, found one of {len(given)}"
            raise UsageError(message)
        columns = columns or [[] for _ in range(count)]
        for column, values in zip(columns, given, strict=False):
            column.append(array_of(values))
        samples += len(columns[0][-1]) if columns[0][-1].ndim else 0
        if limit and samples >= limit:
            break
    if not columns:
        raise UsageError("expected samples, found none")
    try:
        return [np.concatenate(column) for column in columns]
    except ValueError:
        shapes = dict.fromkeys(a.shape[1:] for column in columns for a in column)
        listed = ", ".join(map(str, itertools.islice(shapes, 4)))
        raise UsageError(f"the batches hold samples of different shapes: {listed}") from None


def _drawn(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches of the user's loader, whose failures are told as those of other code of theirs."""
    with user_code("the loader of the samples failed"):
        iterator = iter(batches)
    while True:
        with user_code("the loader of the samples failed"):
            drawn = next(iterator, _END)
        if drawn is _END:
            return
        yield drawn


def _inputs_of(batch: Any, count: int) -> Any:
    """Return the inputs of a batch where they are together and labels beside them, as in Keras."""
    for _ in range(_DEPTH):
        if not isinstance(batch, tuple | list) or not batch or not holds_arrays(batch[0]):
            break
        if not _are_inputs(batch[0], batch[1] if len(batch) > 1 else None, count):
            break
        batch = batch[0]
    return batch


def _are_inputs(first: Any, labels: Any, count: int) -> bool:
    """Whether these are inputs, and not samples in a list, as loaders for detection give them."""
    if isinstance(first, Mapping):
        return True
    rows, labelled = [_rows(each) for each in first], _rows(labels)
    if len(first) != count:  # inputs that the model can do without may be among them
        return labelled not in (None, len(first)) and set(rows) == {labelled}
    if count == 1 and isinstance(labels, tuple | list) and len(labels) == 1:
        return rows[0] == _rows(labels[0])  # else one sample with its label
    return True


def _rows(values: Any) -> int | None:
    try:
        return int(values.shape[0])
    except (AttributeError, IndexError, TypeError, ValueError):  # a scalar, or of no known shape
        return None


def holds_arrays(entry: Any, depth: int = _DEPTH) -> bool:
    """Whether it is a mapping, or a tuple or list with arrays or mappings somewhere in it."""
    if isinstance(entry, Mapping):
        return True
    return (
        isinstance(entry, tuple | list)
        and depth > 0
        and any(hasattr(each, "shape") or holds_arrays(each, depth - 1) for each in entry)
    )


def numeric(batch: Mapping[Any, Any]) -> list[str]:
    """Keys of arrays of numbers, one number alone being none; all, where nothing is.

    Examples
    --------
    >>> numeric({"x": np.ones((2, 3)), "file": ["a.png", "b.png"], "y": [0, 1]})
    ['x', 'y']
    """
    keys = [str(key) for key, value in batch.items() if _is_numeric(value)]
    return keys or list(map(str, batch))


def _is_numeric(value: Any) -> bool:
    if hasattr(value, "detach"):
        return bool(getattr(value, "ndim", 1) != 0)
    try:
        found = np.asarray(value)
    except Exception:  # noqa: BLE001  (any type may say in its own way that it is none)
        return False
    return found.dtype.kind in "fiubV" and found.ndim > 0


def array_of(values: Any) -> Array:
    """Values of a tensor of any framework, on any device.

    Raises
    ------
    UsageError
        If they are no numbers in an array.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    try:
        found = np.asarray(values)
    except Exception as error:  # noqa: BLE001  (any type may say in its own way that it is none)
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        message = f"expected an array of samples, found {type(values).__name__}: {reason}"
        raise UsageError(message) from None
    if found.dtype in (np.float64, np.float16):
        with np.errstate(over="ignore"):  # the model would be given infinity as well
            return found.astype(np.float32)
    return found
