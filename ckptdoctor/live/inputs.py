"""What a model calls its inputs, and samples in memory sorted by them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .batches import array_of, gathered

if TYPE_CHECKING:
    from ..tensors import Array
    from .subject import Subject

__all__ = ["in_memory", "input_names"]


def input_names(subject: Subject) -> tuple[str, ...]:
    """Names of the inputs that a model cannot do without; empty where it does not say.

    Of a PyTorch module the parameters of ``forward`` that have no default, of a Keras model what
    its inputs are called.
    """
    import inspect  # noqa: PLC0415  (tokenize and ast come with it)

    if subject.framework == "keras":
        from . import keras_inputs  # noqa: PLC0415

        return keras_inputs.input_names(getattr(subject, "model", None))
    forward = getattr(getattr(subject, "module", None), "forward", None)
    try:
        parameters = inspect.signature(forward).parameters.values() if callable(forward) else ()
    except (TypeError, ValueError):  # compiled code does not say
        return ()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in plain and p.default is p.empty)


def in_memory(data: Any, count: int, limit: int) -> Sequence[Array]:
    """Arrays, one for each input, of a tensor, of a few tensors, or of batches of a loader.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    if hasattr(data, "shape"):
        return (array_of(data),)
    if isinstance(data, tuple | list):
        return tuple(map(array_of, data))
    if isinstance(data, Iterable):
        return gathered(data, count, limit)
    message = f"expected data to be a file, arrays or a loader, found {type(data).__name__:.100}"
    raise UsageError(message)
