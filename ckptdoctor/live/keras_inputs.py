"""What a Keras model takes: shapes, types, and the dict or list that a batch has to be packed in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import UsageError
from .keras_arrays import flatten

__all__ = ["input_names", "input_shapes", "packed_inputs"]

_NO_INPUTS = frozenset({"training", "mask", "return_attention_scores", "initial_state"})


def input_shapes(model: Any) -> list[tuple[tuple[int | None, ...], str]]:
    """Shapes (None where free, samples first) and dtypes; empty where the model does not say."""
    symbolic = _symbolic(model)
    if symbolic is not None:
        tensors = list(flatten(symbolic))
        return [(_shape(t.shape), str(getattr(t.dtype, "name", t.dtype))) for t in tensors]
    shapes = _built_with(model)
    if shapes is None:
        return []
    return [((None, *shape[1:]), "float32") for shape in _shapes_in(shapes)]


def input_names(model: Any) -> tuple[str, ...]:
    """Names of the inputs, in the order of `input_shapes`; empty where the model has none.

    Of inputs in a dictionary these are its keys, by which Keras itself sorts a batch.
    """
    symbolic = _symbolic(model)
    if symbolic is not None:
        return tuple(_named(symbolic))
    shapes = _built_with(model)
    names = () if shapes is None else tuple(_named(next(iter(shapes.values()))))
    return names if len(shapes or ()) == 1 and all(names) else ()


def _named(nested: Any, key: str = "") -> Iterator[str]:
    """Name of each leaf, in the order of `flatten`: the key it is under, else a tensor's own."""
    if isinstance(nested, dict):
        for each in sorted(nested, key=str):
            yield from _named(nested[each], str(each))
    elif isinstance(nested, list | tuple) and not _is_shape(nested):
        for each in nested:
            yield from _named(each)
    elif nested is not None:
        yield key or str(getattr(nested, "name", "")).partition(":")[0]


def packed_inputs(model: Any, batch: Sequence[Any]) -> tuple[Any, ...]:
    """Positional arguments for a call of the model on one array per input.

    Raises
    ------
    UsageError
        If there are more or fewer arrays than inputs.
    """
    symbolic = _symbolic(model)
    if symbolic is None:
        symbolic = _built_with(model)
        if symbolic is None:
            return _by_signature(model, batch)
        several = tuple(symbolic.values()) if len(symbolic) > 1 else None
        count = sum(1 for _ in _shapes_in(symbolic))
        _check(model, batch, count)
        left = iter(batch)
        if several is not None:
            return tuple(_packed(each, left) for each in several)
        return (_packed(next(iter(symbolic.values())), left),)
    _check(model, batch, sum(1 for _ in flatten(symbolic)))
    return (_packed(symbolic, iter(batch)),)


def _check(model: Any, batch: Sequence[Any], count: int) -> None:
    if len(batch) != count:
        message = f"{model.name!r:.200} takes {count} arrays, the data has {len(batch)}"
        raise UsageError(message)


def _symbolic(model: Any) -> Any:
    """Nested inputs of a functional or sequential model; None for any other."""
    inner = getattr(model, "_functional", None) or model
    for attribute in ("_inputs_struct", "_nested_inputs", "inputs"):
        try:
            found = getattr(inner, attribute, None)
        except (AttributeError, ValueError):  # a model that was never called
            found = None
        if found is not None and all(hasattr(leaf, "shape") for leaf in flatten(found)):
            return found[0] if isinstance(found, list) and len(found) == 1 else found
    return None


def _built_with(model: Any) -> Mapping[str, Any] | None:
    """Shapes that a subclassed model was built with, by the argument of its call."""
    shapes = getattr(model, "_build_shapes_dict", None)
    if shapes is None and getattr(model, "_build_input_shape", None) is not None:
        shapes = {"input_shape": model._build_input_shape}
    if not isinstance(shapes, dict) or not shapes or not all(_shapes_in(shapes)):
        return None
    if len(shapes) == 1 and len(_parameters(model, required=True)) > 1:
        return None  # Keras keeps the shape of the first argument only
    return shapes


def _shapes_in(nested: Any) -> Iterator[tuple[int | None, ...]]:
    if isinstance(nested, dict):
        for key in sorted(nested, key=str):
            yield from _shapes_in(nested[key])
    elif _is_shape(nested):
        yield _shape(nested)
    elif isinstance(nested, list | tuple):
        for each in nested:
            yield from _shapes_in(each)


def _is_shape(value: Any) -> bool:
    if hasattr(value, "rank"):  # tf.TensorShape
        return True
    return isinstance(value, list | tuple) and all(
        each is None or type(each) is int for each in value
    )


def _shape(shape: Any) -> tuple[int | None, ...]:
    return tuple(None if each is None else int(each) for each in shape)


def _packed(structure: Any, left: Iterator[Any]) -> Any:
    if isinstance(structure, dict):
        packed = {key: _packed(structure[key], left) for key in sorted(structure, key=str)}
        return {key: packed[key] for key in structure}
    if isinstance(structure, list | tuple) and not _is_shape(structure):
        parts = [_packed(each, left) for each in structure]
        return tuple(parts) if isinstance(structure, tuple) else parts
    return next(left)


def _by_signature(model: Any, batch: Sequence[Any]) -> tuple[Any, ...]:
    """Give each argument an array where the model's call takes as many, else a list of them."""
    if len(batch) == 1:
        return (batch[0],)
    return tuple(batch) if len(_parameters(model)) >= len(batch) > 1 else (list(batch),)


def _parameters(model: Any, *, required: bool = False) -> list[str]:
    """Names of the arguments of a model's call that are inputs; those without a default, or all."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(model.call).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return []
    return [
        p.name
        for p in parameters
        if p.kind in kinds
        and p.name not in _NO_INPUTS
        and not (required and p.default is not p.empty)
    ]
