"""Tensors of Keras' backends as NumPy arrays, without a copy where the backend allows it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..tensors import Array

__all__ = ["array_of", "flatten", "floating", "is_tensor", "rounded", "type_of", "values_of"]


def flatten(nested: Any) -> Iterator[Any]:
    """Leaves of dicts (by sorted key, as Keras does), lists and tuples, in order."""
    if isinstance(nested, dict):
        for key in sorted(nested, key=str):
            yield from flatten(nested[key])
    elif isinstance(nested, list | tuple):
        for each in nested:
            yield from flatten(each)
    elif nested is not None:
        yield nested


def is_tensor(value: Any) -> bool:
    """Whether it is an array or tensor, of whatever backend."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def array_of(value: Any) -> Array | None:
    """Values of a tensor or variable, sharing its memory where they can; None while it has none.

    While TensorFlow traces a function, or torch maps one over a batch, a tensor has no values.
    """
    if isinstance(value, np.ndarray):
        return value
    if "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor):
        return _of_torch(value)
    if hasattr(
        value, "read_value"
    ):  # a tf.Variable: asking for an array copies, its tensor does not
        value = value.read_value()
    if hasattr(value, "graph") and not hasattr(value, "_numpy"):
        return None  # symbolic
    for attribute in ("flat_values", "values"):  # ragged and sparse tensors
        if not hasattr(value, "__array__") and hasattr(value, attribute):
            value = getattr(value, attribute)
    try:
        return np.asarray(value)
    except (TypeError, ValueError, NotImplementedError):
        return None


def _of_torch(value: Any) -> Array | None:
    torch = sys.modules["torch"]
    value = value.detach()
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return None
    if value.device.type != "cpu":
        value = value.cpu()
    if value.dtype == torch.bfloat16:
        import ml_dtypes  # noqa: PLC0415

        bits: Array = value.contiguous().view(torch.int16).numpy()
        wide: Array = bits.view(ml_dtypes.bfloat16)
        return wide
    array: Array = value.numpy()
    return array


def values_of(variable: Any) -> Array | None:
    """Values of a Keras variable, or of a tensor."""
    inner = getattr(variable, "_value", None)  # of Keras 3; `value` would cast under autocast
    return array_of(variable if inner is None else inner)


def type_of(value: Any) -> str:
    """Name of a tensor's or variable's type, whatever the backend calls it."""
    return str(getattr(value.dtype, "name", value.dtype)).removeprefix("torch.")


def floating(nested: Any) -> tuple[Array, ...] | None:
    """Floating-point leaves in order, float32 or float64; None while one has no values."""
    found: list[Array] = []
    for leaf in flatten(nested):
        if not is_tensor(leaf):
            continue
        array = array_of(leaf)
        if array is None:
            return None
        if array.dtype in (np.float32, np.float64):
            found.append(array)
        elif array.dtype == np.float16 or array.dtype.name.startswith(("bfloat", "float8")):
            found.append(array.astype(np.float32))
    return tuple(found)


def rounded(nested: Any, dtype: str) -> Any:
    """Round the float32 and float64 leaves to a narrower type, and widen them again."""
    if isinstance(nested, dict):
        return type(nested)((key, rounded(value, dtype)) for key, value in nested.items())
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*(rounded(value, dtype) for value in nested))
    if isinstance(nested, list | tuple):
        return type(nested)(rounded(value, dtype) for value in nested)
    if not is_tensor(nested):
        return nested
    kind = type_of(nested)
    if kind not in ("float32", "float64"):
        return nested
    there = _cast(_cast(nested, dtype), kind)
    mask = getattr(nested, "_keras_mask", None)
    if mask is not None:
        there._keras_mask = mask
    return there


def _cast(tensor: Any, dtype: str) -> Any:
    if "torch" in sys.modules and isinstance(tensor, sys.modules["torch"].Tensor):
        return tensor.to(getattr(sys.modules["torch"], dtype))
    if isinstance(tensor, np.ndarray):
        import ml_dtypes  # noqa: PLC0415

        with np.errstate(over="ignore"):
            return tensor.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"].cast(tensor, dtype)
    return tensor.astype(dtype)  # jax
