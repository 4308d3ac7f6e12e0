"""What a model calls its inputs, and samples in memory sorted by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError
from .batches import array_of, gathered

if TYPE_CHECKING:
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
    """

    required: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


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
    )


def in_memory(
    data: Any,
    count: int,
    limit: int,
    choose: Callable[[Mapping[str, Any]], Sequence[str]],
    most: int = 0,
) -> Sequence[Array] | Mapping[str, Array]:
    """Arrays, one for each input, of a tensor, of a few tensors, or of batches of a loader.

    Parameters
    ----------
    data
        A list is of batches where its entries hold arrays, or are more than the model takes.
    count
        Inputs of the model.
    limit
        No further batch is asked for once there are so many samples; 0 for all.
    choose
        Says which entries of a batch that is a mapping are inputs.
    most
        Inputs that the model takes at most; 0 if that is unknown.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    if hasattr(data, "shape"):
        return (array_of(data),)
    if isinstance(data, tuple | list) and not _is_of_batches(data, most):
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


def _is_of_batches(data: Sequence[Any], most: int) -> bool:
    """Whether a list holds batches, and not inputs; a tuple of arrays is one batch."""
    if any(_holds_arrays(entry) for entry in data):
        return True
    arrays = isinstance(data, list) and all(hasattr(entry, "shape") for entry in data)
    return arrays and 0 < most < len(data)


def _holds_arrays(entry: Any) -> bool:
    held = entry.values() if isinstance(entry, Mapping) else entry
    return isinstance(entry, tuple | list | Mapping) and any(hasattr(v, "shape") for v in held)


def _picked(
    batch: Mapping[str, Any],
    count: int,
    choose: Callable[[Mapping[str, Any]], Sequence[str]],
) -> list[str]:
    """Entries of a batch that are inputs; the first ones where no name says it."""
    try:
        return list(choose(batch))
    except UsageError:
        return list(batch)[:count]
