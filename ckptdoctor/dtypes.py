"""The only dtype table: names, widths, and how torch and safetensors spell them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DTYPES", "SAFETENSORS", "TORCH", "TORCH_STORAGES", "DType", "of_numpy"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Parameters
    ----------
    name
        This package's spelling: NumPy's and ml_dtypes', plus torch's quantised and packed types.
    bits
        Width of one element in bits; below 8, elements share bytes.
    kind
        ``float``, ``complex``, ``int``, ``bool`` or ``opaque`` (bytes whose meaning the table
        does not know: counted, never measured).
    stored
        The NumPy (or ml_dtypes) type to read the bytes as.
    """

    name: str
    bits: int
    kind: str
    stored: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element; 1 for types that pack several elements into a byte."""
        return max(1, self.bits // 8)

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy dtype of the stored elements in native order; imports ml_dtypes where needed."""
        dtype: np.dtype[Any] = _numpy_dtype(self.stored)
        return dtype

    def nbytes(self, count: int) -> int:
        """Bytes that ``count`` elements take when stored without gaps."""
        return -(-count * self.bits // 8)


@functools.cache
def _numpy_dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # noqa: PLC0415  (10 ms that most files need not pay)

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def _table() -> dict[str, DType]:
    rows = [DType("bool", 8, "bool", "bool")]
    rows += [
        DType(f"{s}int{n}", n, "int", f"{s}int{n}") for s in ("", "u") for n in (8, 16, 32, 64)
    ]
    rows += [DType(f"float{n}", n, "float", f"float{n}") for n in (16, 32, 64)]
    rows += [DType("bfloat16", 16, "float", "bfloat16")]
    rows += [
        DType(f"float8_{name}", 8, "float", f"float8_{name}")
        for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu", "e4m3", "e3m4")
    ]
    # NumPy has no complex number of halves: a pair of them.
    rows += [DType("complex32", 32, "complex", "f2,f2")]
    rows += [DType(f"complex{n}", n, "complex", f"complex{n}") for n in (64, 128)]
    # Quantised integers: the stored numbers are plain integers, scale and zero point stand beside.
    rows += [DType("qint8", 8, "int", "int8"), DType("quint8", 8, "int", "uint8")]
    rows += [DType("qint32", 32, "int", "int32")]
    # Several elements share a byte, in an order that the kernel, not the file, knows.
    rows += [DType("quint4x2", 4, "opaque", "uint8"), DType("quint2x4", 2, "opaque", "uint8")]
    rows += [DType("float4_e2m1fn_x2", 8, "opaque", "uint8")]
    rows += [DType("float4_e2m1fn", 4, "opaque", "uint8")]
    rows += [DType(f"float6_{name}", 6, "opaque", "uint8") for name in ("e2m3fn", "e3m2fn")]
    rows += [DType(f"bits{n}", bits, "opaque", "uint8") for n, bits in _BITS.items()]
    rows += [DType("bits16", 16, "opaque", "uint16")]
    # torch's shell types: a byte per element whatever the name says.
    rows += [DType(f"{s}int{n}", 8, "opaque", "uint8") for s in ("", "u") for n in range(1, 8)]
    rows += [DType("string", 8, "opaque", "uint8")]
    return {row.name: row for row in rows}


_BITS = {"1x8": 8, "2x4": 8, "4x2": 8, "8": 8}

DTYPES: Mapping[str, DType] = _table()
"""Every dtype by this package's name."""

TORCH: Mapping[str, str] = {
    **{name: name for name in DTYPES},
    "half": "float16", "float": "float32", "double": "float64",
    "short": "int16", "int": "int32", "long": "int64",
    "chalf": "complex32", "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip
"""``torch.X`` as a pickle names it -> this package's name."""

TORCH_STORAGES: Mapping[str, str] = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}  # fmt: skip
"""Storage classes of ``torch`` and ``torch.storage`` -> dtype of their elements."""

SAFETENSORS: Mapping[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16",
    "I32": "int32", "U32": "uint32", "I64": "int64", "U64": "uint64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn", "F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn",
}  # fmt: skip
"""Codes of the safetensors header -> this package's name."""


def of_numpy(dtype: np.dtype[Any]) -> DType | None:
    """Row for a NumPy dtype whatever its byte order; None where the table has none.

    Examples
    --------
    >>> of_numpy(np.dtype(">f2")).name, of_numpy(np.dtype("M8[s]"))
    ('float16', None)
    """
    return DTYPES.get(dtype.name) if dtype.kind in "biufcV" else None
