"""What a model calls its inputs, and samples in memory sorted by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError
from .batches import array_of, gathered, holds_arrays, numeric

if TYPE_CHECKING:
    import inspect

    from ..tensors import Array
    from .subject import Subject

__all__ = ["Parameters", "in_memory", "input_names", "parameters_of"]


class Parameters(NamedTuple):
    """Names that the inputs of a model go by; empty where it does not say.

    Parameters
    ----------
    required
        Those that it cannot do without.
    positions
        Those that can be given by position, in order; empty for a Keras model.
    keywords
        Those that cannot.
    mapping
        The one that takes all inputs together by their keys: the first, if its annotation is one
        of a mapping.
    """

    required: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    mapping: str = ""


def input_names(subject: Subject) -> tuple[str, ...]:
    """Names of the inputs that a model cannot do without; empty where it does not say."""
    return parameters_of(subject).required


def parameters_of(subject: Subject) -> Parameters:
    """Return the parameters of ``forward`` of a PyTorch module, the inputs of a Keras model."""
    import inspect  # noqa: PLC0415  (tokenize and ast come with it)

    if subject.framework == "keras":
        from . import keras_inputs  # noqa: PLC0415

        return Parameters(keras_inputs.input_names(getattr(subject, "model", None)))
    forward = getattr(getattr(subject, "module", None), "forward", None)
    try:
        parameters = inspect.signature(forward).parameters.values() if callable(forward) else ()
    except (TypeError, ValueError):  # compiled code does not say
        return Parameters()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = (*plain, inspect.Parameter.KEYWORD_ONLY)
    return Parameters(
        tuple(p.name for p in parameters if p.kind in named and p.default is p.empty),
        tuple(p.name for p in parameters if p.kind in plain),
        tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        next((p.name for p in list(parameters)[:1] if p.kind in plain and _is_mapping(p)), ""),
    )


def _is_mapping(parameter: inspect.Parameter) -> bool:
    said = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
    return bool(re.search(r"dict\b|mapping\b", said, re.IGNORECASE))


def in_memory(
    data: Any,
    count: int,
    limit: int,
    choose: Callable[[Mapping[str, Any]], Sequence[str]],
    needed: int = 0,
    most: int = 0,
) -> Sequence[Array] | Mapping[str, Array]:
    """Arrays, one for each input, of a tensor, of a few tensors, or of batches of a loader.

    A tuple of arrays has one for each input.  So has a list, if it has as many as the model needs or
    nothing says how many those are; any other list of arrays is of batches, as is all that holds
    tuples, lists or mappings of arrays.

    Parameters
    ----------
    data
        An array, a tuple or list, or anything that gives batches.
    count
        Inputs of the model.
    limit
        No further batch is asked for once there are so many samples; 0 for all.
    choose
        Says which entries of a batch that is a mapping are inputs.
    needed
        Inputs that it cannot do without; 0 if that is unknown, or it can do without any.
    most
        Inputs that it takes at most; 0 if that is unknown.

    Raises
    ------
    UsageError
        If it is none of these, or a list of arrays might be inputs as well as batches.
    """
    if hasattr(data, "shape"):
        return (array_of(data),)
    if isinstance(data, tuple | list) and not _is_of_batches(data, needed, most):
        return tuple(map(array_of, data))
    if not isinstance(data, Iterable):
        kind = type(data).__name__
        hint = "a data set needs a loader around it" if hasattr(data, "__getitem__") else ""
        message = f"expected data to be a file, arrays or a loader, found {kind:.100}"
        raise UsageError(message, hint=hint)
    keys: list[str] = []

    def picked(batch: Mapping[str, Any]) -> Sequence[str]:
        keys[:] = keys or _picked(batch, count, choose)
        return keys

    found = gathered(data, count, limit, picked)
    return dict(zip(keys, found, strict=True)) if keys else found


def _is_of_batches(data: Sequence[Any], needed: int, most: int) -> bool:
    """Whether a tuple or list holds batches, and not inputs, as `in_memory` says."""
    if any(holds_arrays(entry) for entry in data):
        return True
    plain = isinstance(data, list) and all(hasattr(entry, "shape") for entry in data)
    if not plain or len(data) < 2 or not most:
        return False
    if not needed and len(data) <= most:
        hint = "give inputs in a tuple or by name in a mapping, batches as iter(batches)"
        message = f"a list of {len(data)} arrays may hold inputs or batches"
        raise UsageError(message, hint=hint)
    return len(data) != needed


def _picked(
    batch: Mapping[str, Any],
    count: int,
    choose: Callable[[Mapping[str, Any]], Sequence[str]],
) -> list[str]:
    """Entries of a batch that are inputs; the first ones where no name says it."""
    try:
        return list(choose(batch))
    except UsageError:
        return numeric(batch)[:count]
