"""What modules take and return: arrays in, tensors wherever they are nested, arrays out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from .subject import Arrays

__all__ = ["floats_of", "mapped", "rounded", "shapes_of", "tensors_in", "to_tensors"]

_DEEPEST = 12
"""Containers inside each other; outputs of real models reach four."""


def tensors_in(value: Any, depth: int = _DEEPEST) -> Iterator[torch.Tensor]:
    """Yield every tensor of nested inputs or outputs, in order."""
    import torch  # noqa: PLC0415

    if isinstance(value, torch.Tensor):
        yield value
    elif depth:
        for item in _items(value):
            yield from tensors_in(item, depth - 1)


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):  # the outputs of transformers are dictionaries too
        yield from value.values()
    elif isinstance(value, (tuple, list)):
        yield from value
    elif _is_record(value):
        yield from (getattr(value, each.name, None) for each in dataclasses.fields(value))


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def mapped(
    value: Any, change: Callable[[torch.Tensor], torch.Tensor], depth: int = _DEEPEST
) -> Any:
    """Nested inputs or outputs with other tensors in them; what cannot be rebuilt stays as it is."""
    import torch  # noqa: PLC0415

    if isinstance(value, torch.Tensor):
        return change(value)
    if not depth:
        return value
    if isinstance(value, Mapping):
        changed = {key: mapped(item, change, depth - 1) for key, item in value.items()}
        return _refilled(value, changed)
    if isinstance(value, (tuple, list)):
        items = [mapped(item, change, depth - 1) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if _is_record(value):
        twin = copy.copy(value)
        for each in dataclasses.fields(value):
            item = mapped(getattr(value, each.name, None), change, depth - 1)
            object.__setattr__(twin, each.name, item)
        return twin
    return value


def _refilled(value: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    if type(value) is dict:
        return changed
    twin: Any = copy.copy(value)
    for key, item in changed.items():
        twin[key] = item
    return twin


def rounded(value: Any, dtype: torch.dtype) -> Any:
    """Nested values with the floating-point ones rounded to a narrower type and back."""

    def narrow(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.element_size() <= dtype.itemsize:
            return tensor
        return tensor.to(dtype).to(tensor.dtype)

    return mapped(value, narrow)


def floats_of(value: Any) -> Arrays:
    """Floating-point tensors of nested values as arrays in float32, or float64 where they are.

    Memory is shared where it can be.  Tensors that `torch.vmap` is at work on are left out.
    Complex numbers get one more dimension, of their two parts.
    """
    return tuple(
        _array(tensor)
        for tensor in tensors_in(value)
        if (tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized)
        and not _is_mapped(tensor)
    )


def _is_mapped(tensor: torch.Tensor) -> bool:
    """Whether it has no values of its own, inside what `torch.vmap` and its like make of a call."""
    import torch  # noqa: PLC0415

    known = getattr(getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", None)
    return known is not None and bool(known(tensor))


def _array(tensor: torch.Tensor) -> Any:
    import torch  # noqa: PLC0415

    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_nested:
        tensor = torch.nested.to_padded_tensor(tensor, 0.0)
    elif tensor.is_quantized:
        tensor = tensor.dequantize()
    elif tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.cpu().numpy(force=True)


def to_tensors(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Arrays, wherever they are nested, as tensors of their own memory on a device.

    Floating-point numbers become ``dtype``; whole numbers, which may be token ids, stay whole.
    """
    import torch  # noqa: PLC0415

    if isinstance(value, torch.Tensor):
        tensor = value.detach().clone()
    elif isinstance(value, np.ndarray | np.generic):
        tensor = _tensor(np.asarray(value))
    elif isinstance(value, Mapping):
        return {key: to_tensors(item, device, dtype) for key, item in value.items()}
    elif isinstance(value, (tuple, list)) and any(_holds_more(item) for item in value):
        return type(value)(to_tensors(item, device, dtype) for item in value)
    elif isinstance(value, (tuple, list)):
        tensor = torch.tensor(value)
    else:
        return value
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _holds_more(item: Any) -> bool:
    """Whether an item of a list is an input of its own, and not a number among numbers."""
    if isinstance(item, (tuple, list)):
        return any(_holds_more(each) for each in item)
    return not isinstance(item, int | float | np.generic)


def _tensor(array: Any) -> torch.Tensor:
    """Tensor with a copy of an array: a model that works in place must not write to the caller's."""
    import torch  # noqa: PLC0415

    if array.dtype.kind == "V":  # bfloat16 and its like, which torch takes from no array
        array = array.astype(np.float32)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(native)


def shapes_of(value: Any) -> str:
    """Shapes and types of the tensors in nested values, for messages."""
    told = [
        f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        for tensor in tensors_in(value)
    ]
    more = f" and {len(told) - 4} more" if len(told) > 4 else ""
    return ", ".join(told[:4]) + more if told else "nothing"
