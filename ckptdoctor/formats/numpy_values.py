"""NumPy arrays and scalars inside a pickle, decoded from the bytes they carry."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ..containers.pickle import Call, Global
from ..dtypes import of_numpy
from ..tensors import Array

__all__ = ["array_of", "number_of"]

_ARRAY = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_SCALAR = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
_FROM_BUFFER = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}


def array_of(value: Any) -> Array | None:
    """Array that a call rebuilds; None where it is something else or its parts do not fit."""
    name = _callee(value)
    if name in _ARRAY and value.state and type(value.state[-1]) is tuple:
        state = value.state[-1]
        if len(state) != 5:
            return None
        _, shape, dtype, fortran, data = state
        return _build(shape, _dtype_of(dtype), _bytes_of(data), order="F" if fortran else "C")
    if name in _FROM_BUFFER and type(value.args) is tuple and len(value.args) == 4:
        data, dtype, shape, order = value.args
        return _build(shape, _dtype_of(dtype), _bytes_of(data), order="F" if order == "F" else "C")
    return None


def number_of(value: Any) -> int | float | None:
    """Python number behind a NumPy scalar; None for anything else."""
    if _callee(value) not in _SCALAR or type(value.args) is not tuple or len(value.args) != 2:
        return None
    array = _build((), _dtype_of(value.args[0]), _bytes_of(value.args[1]), order="C")
    if array is None or array.dtype.kind not in "iuf":
        return None
    number: int | float = array.item()
    return number


def _callee(value: Any) -> str:
    if type(value) is Call and type(value.callee) is Global:
        return value.callee.dotted
    return ""


def _dtype_of(value: Any) -> np.dtype[Any] | None:
    """``dtype('f4')`` with the byte order of its state; numeric kinds only."""
    if _callee(value) != "numpy.dtype" or type(value.args) is not tuple or not value.args:
        return None
    code = value.args[0]
    if type(code) is not str or not re.fullmatch(r"[biufc]\d{1,2}|bool", code):
        return None
    state = value.state[-1] if value.state else ()
    order = state[1] if type(state) is tuple and len(state) > 1 else "="
    try:
        dtype = np.dtype(code)
    except TypeError:
        return None
    return dtype.newbyteorder(">") if order == ">" else dtype


def _bytes_of(value: Any) -> bytes | None:
    """Bytes as protocol 3 has them, or as protocol 2 spells them: latin-1 text encoded back."""
    if type(value) is bytes:
        return value
    if type(value) is str:  # a Python 2 str that happened to be ASCII
        return value.encode("latin-1", "replace")
    if _callee(value) == "_codecs.encode" and type(value.args) is tuple and value.args:
        text = value.args[0]
        if type(text) is str and value.args[1:] in (("latin1",), ("latin-1",)):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                return None
    if _callee(value) in ("builtins.bytearray", "builtins.bytes") and value.args:
        return _bytes_of(value.args[0]) if type(value.args) is tuple else None
    return None


def _build(
    shape: Any, dtype: np.dtype[Any] | None, data: bytes | None, *, order: str
) -> Array | None:
    if dtype is None or data is None or type(shape) is not tuple or len(shape) > 32:
        return None
    if any(type(n) is not int or not 0 <= n < 1 << 60 for n in shape):
        return None
    if math.prod(shape) * dtype.itemsize != len(data) or of_numpy(dtype) is None:
        return None
    flat = np.frombuffer(data, dtype)
    array = flat.reshape(shape, order="F" if order == "F" else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)
