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

__all__ = ["array_of", "gathered", "numeric"]

_END = object()


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
        batch = _inputs_of(each)
        given = batch if isinstance(batch, tuple | list) else (batch,)
        if isinstance(batch, Mapping):
            keys = picked(batch) if picked is not None else list(batch)
            given = tuple(batch[key] for key in keys if key in batch)
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


def _inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch where they are together and labels beside them, as in Keras."""
    while isinstance(batch, tuple | list) and batch and _holds_arrays(batch[0]):
        batch = batch[0]
    return batch


def _holds_arrays(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        return True
    return isinstance(entry, tuple | list) and any(
        hasattr(each, "shape") or _holds_arrays(each) for each in entry
    )


def numeric(batch: Mapping[Any, Any]) -> list[str]:
    """Keys of what is of numbers; all, where nothing is.

    Examples
    --------
    >>> numeric({"x": np.ones((2, 3)), "file": ["a.png", "b.png"], "y": [0, 1]})
    ['x', 'y']
    """
    keys = [str(key) for key, value in batch.items() if _is_numeric(value)]
    return keys or list(map(str, batch))


def _is_numeric(value: Any) -> bool:
    if hasattr(value, "detach"):
        return True
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
