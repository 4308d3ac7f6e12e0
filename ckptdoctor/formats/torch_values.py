"""Tensors of a torch pickle: from inert calls and storage references to shapes and byte extents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..containers.pickle import Call, Global, PDict, Persistent
from ..dtypes import DTYPES, TORCH, TORCH_STORAGES
from ..sources import Extent
from ..tensors import Quantisation

__all__ = ["Refusal", "Resolver", "Storage", "Value", "storage_dtype"]


MAX_WRAPPED = 16
"""Parameters around tensor subclasses around tensors: real files have three."""


class Refusal(Exception):
    """A tensor of the pickle cannot be what it claims; the text says why, the code how to file it."""

    def __init__(self, message: str, *, code: str = "CK005") -> None:
        super().__init__(message)
        self.code = code


class Storage(NamedTuple):
    """One buffer of the file.

    ``dtype`` is the storage class's, None for untyped ones; ``extent`` covers the bytes that are
    really there.
    """

    key: str
    dtype: str | None
    extent: Extent
    big_endian: bool = False


class Value(NamedTuple):
    """A tensor as the pickle rebuilds it; ``parts`` holds the tensors it is made of instead."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    extent: Extent | None = None
    storage: Storage | None = None
    encoding: str = "plain"
    scheme: str = ""
    scale: float = 0.0
    zero_point: int = 0
    axis: int | None = None
    parts: Mapping[str, Any] = MappingProxyType({})

    def quantisation(self, name: str) -> Quantisation | None:
        """How the stored integers map to numbers; per-channel values are the rows beside it."""
        if self.encoding != "quantised":
            return None
        if "scale" in self.parts:
            return Quantisation(
                scheme=self.scheme,
                scale=f"{name}.scale",
                zero_point=f"{name}.zero_point",
                axis=self.axis,
            )
        return Quantisation(scheme=self.scheme, scale=self.scale, zero_point=self.zero_point)


def storage_dtype(kind: Any) -> str | None:
    """Dtype that a storage class of a persistent id stands for; None for untyped storages.

    Raises
    ------
    Refusal
        If it is no storage class.
    """
    name = kind.name if type(kind) is Global else ""
    if name == "UntypedStorage":
        return None
    if name in TORCH_STORAGES:
        return TORCH_STORAGES[name]
    if type(kind) is Global and kind.module == "torch" and name in TORCH:
        return TORCH[name]
    raise Refusal(f"its storage has an unknown type {name!r:.80}")


class Resolver:
    """Turns calls into tensors.

    Parameters
    ----------
    find_storage
        Gives the buffer for a persistent id; raises `Refusal`.
    """

    def __init__(self, find_storage: Callable[[Any], Storage]) -> None:
        self.find_storage = find_storage
        self._open: set[int] = set()

    def value(self, call: Any) -> Value | None:
        """Return the tensor that a value stands for, or None where it is something else.

        Raises
        ------
        Refusal
            If it is a tensor that cannot be right.
        """
        if type(call) is not Call:
            return self._tensor_of_storage(call) if type(call) is Persistent else None
        callee = call.callee
        if type(callee) is not Global:
            return None
        rebuild = _REBUILDERS.get((callee.module, callee.name))
        if rebuild is None:
            return None
        if type(call.args) is not tuple:
            raise Refusal("its arguments are no tuple")
        if id(call) in self._open or len(self._open) >= MAX_WRAPPED:
            raise Refusal(f"it is wrapped more than {MAX_WRAPPED} times, or in itself")
        self._open.add(id(call))
        try:
            return rebuild(self, *call.args)
        except TypeError:
            raise Refusal(f"{callee.name} is called with {len(call.args)} arguments") from None
        finally:
            self._open.discard(id(call))

    def _tensor_of_storage(self, reference: Persistent) -> Value | None:
        storage = self.find_storage(reference.pid)
        row = DTYPES[storage.dtype or "uint8"]
        count = storage.extent.length // row.itemsize
        return Value(dtype=row.name, shape=(count,), extent=storage.extent, storage=storage)

    def storage(self, reference: Any) -> Storage:
        """Return the buffer behind the first argument of a rebuild function."""
        if type(reference) is Call and type(reference.callee) is Global:
            # torch.storage.TypedStorage(wrap_storage=..., dtype=...) around an untyped one
            for held in reference.args if type(reference.args) is tuple else ():
                if type(held) is Persistent:
                    return self.find_storage(held.pid)
        if type(reference) is not Persistent:
            raise Refusal("it has no storage")
        return self.find_storage(reference.pid)

    def inner(self, value: Any) -> Value:
        """Return the tensor that must be there."""
        found = self.value(value)
        if found is None:
            raise Refusal("it wraps something that is no tensor")
        return found


def _count(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise Refusal(f"its {what} is {_brief(value)}, expected a number from 0 to 2^62")
    return value


def _brief(value: Any) -> str:
    if type(value) is int and abs(value) >= 1 << 64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:40] if type(value) in (int, float, bool, str, type(None)) else "no number"


def _counts(value: Any, what: str) -> tuple[int, ...]:
    if type(value) is Call and type(value.callee) is Global and value.callee.name == "Size":
        value = value.args[0] if type(value.args) is tuple and value.args else ()
    if type(value) not in (tuple, list) or len(value) > 64:
        raise Refusal(f"its {what} is no tuple of at most 64 numbers")
    for item in value:
        if type(item) is not int or not 0 <= item < 1 << 62:
            _count(item, what)  # says what is wrong
    return tuple(value)


def _view(storage: Storage, dtype: str, offset: Any, size: Any, stride: Any, **more: Any) -> Value:
    """Check a view against its storage and turn it into bytes of the file."""
    shape, strides = _counts(size, "size"), _counts(stride, "stride")
    start = _count(offset, "storage offset")
    if len(shape) != len(strides):
        raise Refusal(f"{len(shape)} sizes and {len(strides)} strides")
    row = DTYPES[dtype]
    base = storage.extent
    elements, last, dense = 1, 0, True
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        dense &= n == 1 or s == elements
        last += (n - 1) * s
        elements *= n
    if elements >= 1 << 62:
        raise Refusal("its size is beyond 2^62 elements")
    if not elements:
        empty = Extent(base.source, base.offset, 0)
        return Value(dtype=dtype, shape=shape, extent=empty, storage=storage, **more)
    first_byte = start * row.bits // 8
    length = row.nbytes(last + 1)
    if first_byte + length > base.length:
        message = f"it needs bytes {first_byte} to {first_byte + length} of storage"
        message += f" {storage.key!r:.60}, which has {base.length}"
        raise Refusal(message, code="CK004")
    extent = Extent(base.source, base.offset + first_byte, length)
    return Value(
        dtype=dtype,
        shape=shape,
        strides=None if dense else strides,
        extent=extent,
        storage=storage,
        **more,
    )


def _tensor(r: Resolver, storage: Any, offset: Any, size: Any, stride: Any) -> Value:
    found = r.storage(storage)
    return _view(found, found.dtype or "uint8", offset, size, stride)


def _tensor_v2(
    r: Resolver, storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _h: Any, *_: Any
) -> Value:
    return _tensor(r, storage, offset, size, stride)


def _tensor_v3(
    r: Resolver,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _g: Any,
    _h: Any,
    dtype: Any,
    *_: Any,
) -> Value:
    return _view(r.storage(storage), _dtype(dtype), offset, size, stride)


def _dtype(value: Any) -> str:
    if type(value) is Global and value.module == "torch" and value.name in TORCH:
        return TORCH[value.name]
    raise Refusal("its dtype is none of torch's")


def _first_argument(r: Resolver, data: Any, *_: Any) -> Value:
    return r.inner(data)


def _qtensor(
    r: Resolver, storage: Any, offset: Any, size: Any, stride: Any, params: Any, *_: Any
) -> Value:
    found = r.storage(storage)
    if type(params) is not tuple or len(params) < 3 or type(params[0]) is not Global:
        raise Refusal("its quantiser is no tuple of a scheme, scale and zero point")
    more: dict[str, Any] = {"scheme": params[0].name, "encoding": "quantised"}
    if type(params[1]) is float and type(params[2]) is int:
        if not math.isfinite(params[1]) or params[1] == 0:
            raise Refusal(f"its scale is {params[1]}")
        more |= {"scale": params[1], "zero_point": params[2]}
    else:
        more["parts"] = {"scale": params[1], "zero_point": params[2]}
        more["axis"] = params[3] if len(params) > 3 and type(params[3]) is int else None
    dtype = found.dtype or "uint8"
    if DTYPES[dtype].kind == "opaque":
        more["encoding"] = "opaque"
    return _view(found, dtype, offset, size, stride, **more)


_SPARSE_PARTS = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


def _sparse(r: Resolver, layout: Any, data: Any, *_: Any) -> Value:
    if type(layout) is Call and type(layout.args) is tuple and layout.args:
        kind = layout.args[0]  # torch.serialization._get_layout('torch.sparse_coo')
    else:
        kind = layout.name if type(layout) is Global else layout
    if type(kind) is not str:
        raise Refusal("its layout is unknown")
    names = _SPARSE_PARTS.get(kind.removeprefix("torch."))
    if names is None or type(data) is not tuple or len(data) < len(names):
        raise Refusal("its layout is unknown or its parts are missing")
    parts = dict(zip(names, data, strict=False))
    values = r.inner(parts["values"])
    size = _counts(data[len(names)], "size") if len(data) > len(names) else values.shape
    _check_sparse(r, parts)
    return Value(dtype=values.dtype, shape=size, encoding="absent", parts=parts)


def _check_sparse(r: Resolver, parts: Mapping[str, Any]) -> None:
    """Compressed layouts: index counts must agree, and the last row pointer with the values."""
    values = r.inner(parts["values"])
    if "indices" in parts:
        indices = r.inner(parts["indices"])
        if len(indices.shape) != 2 or (values.shape and indices.shape[1] != values.shape[0]):
            raise Refusal(f"its indices of shape {indices.shape} do not match its values")
        return
    pointers, plain = (r.inner(v) for k, v in parts.items() if k != "values")
    batch = len(pointers.shape)  # its dimensions, and one for the entries
    if not batch or plain.shape != values.shape[:batch]:
        raise Refusal("its index tensors do not match its values")
    if pointers.extent is not None and pointers.extent.length and pointers.strides is None:
        width = DTYPES[pointers.dtype].itemsize
        tail = Extent(
            pointers.extent.source, pointers.extent.offset + pointers.extent.length - width, width
        )
        order = "big" if pointers.storage and pointers.storage.big_endian else "little"
        last = int.from_bytes(tail.read(), "little" if order == "little" else "big")
        if last != values.shape[0] and len(pointers.shape) == 1:
            raise Refusal(f"its row pointers claim {last} entries, it holds {values.shape[0]}")


def _meta(_r: Resolver, dtype: Any, size: Any, *_: Any) -> Value:
    return Value(dtype=_dtype(dtype), shape=_counts(size, "size"), encoding="absent")


def _wrapper(_r: Resolver, _cls: Any, dtype: Any, size: Any, *_: Any) -> Value:
    return Value(dtype=_dtype(dtype), shape=_counts(size, "size"), encoding="absent")


def _from_type(r: Resolver, func: Any, _kind: Any, args: Any, state: Any = None, *_: Any) -> Value:
    return r.inner(Call(func, args, [state]))


def _nested(r: Resolver, buffer: Any, *_: Any) -> Value:
    return r.inner(buffer)


_Rebuild = Callable[..., Value | None]
_REBUILDERS: Mapping[tuple[str, str], _Rebuild] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first_argument,
    ("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
    ("torch.nn.parameter", "Parameter"): _first_argument,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _sparse,
    ("torch._utils", "_rebuild_qtensor"): _qtensor,
    ("torch._utils", "_rebuild_nested_tensor"): _nested,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _meta,
    ("torch._utils", "_rebuild_wrapper_subclass"): _wrapper,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first_argument,
    ("torch._tensor", "_rebuild_from_type"): _from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.tensor", "_rebuild_from_type_v2"): _from_type,
}


def is_plain_dict(value: Any) -> bool:
    """Whether a value is a dictionary: `PDict`, OrderedDict or defaultdict."""
    if type(value) is PDict:
        return True
    if type(value) is not Call or type(value.callee) is not Global:
        return False
    return value.callee.dotted in _DICTIONARIES


_DICTIONARIES = frozenset(
    {"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"}
)
