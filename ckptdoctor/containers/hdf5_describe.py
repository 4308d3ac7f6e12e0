"""What h5py says about one dataset or attribute, as plain data.  Imports h5py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from h5py import h5a, h5d, h5s, h5t

from .hdf5_blocks import CHUNK_BYTES, MAX_REPEAT, repeats

__all__ = ["Row", "attribute_of", "describe", "reason_of", "text_of"]

MAX_ATTRIBUTE = 1 << 26
MAX_FILES = 16

# deflate, shuffle, fletcher32, szip, nbit, scaleoffset, and h5py's lzf; others are plugins.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
_FLOATS = {  # sign, exponent and mantissa places, and bias -> type
    (2, 15, 10, 5, 0, 10, 15): "float16",
    (4, 31, 23, 8, 0, 23, 127): "float32",
    (8, 63, 52, 11, 0, 52, 1023): "float64",
    (2, 15, 7, 8, 0, 7, 127): "bfloat16",
    (1, 7, 2, 5, 0, 2, 15): "float8_e5m2",
    (1, 7, 3, 4, 0, 3, 7): "float8_e4m3fn",
}
_COMPLEX = {"float16": "complex32", "float32": "complex64", "float64": "complex128"}
# Types that HDF5 only knows as opaque bytes and Keras names in an attribute `dtype`.
_NAMED = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}

Row = dict[str, Any]


def text_of(raw: bytes) -> str:
    """Decode a name; what is no UTF-8 becomes an escape."""
    return raw.decode("utf-8", "backslashreplace")


def reason_of(error: BaseException) -> str:
    """HDF5's own words, which h5py puts into the last brackets of its message."""
    text = " ".join(str(error).split()) or type(error).__name__
    first, last = text.rfind("("), text.rfind(")")
    return text[first + 1 : last][:200] if 0 <= first < last else text[:200]


def attribute_of(attribute: Any) -> Any:
    """Read a string, a list of strings or a number; other kinds hold nothing we use."""
    kind = attribute.get_type()
    if math.prod(attribute.shape) * kind.get_size() > MAX_ATTRIBUTE:
        raise ValueError("attribute larger than 64 MiB")
    if kind.get_class() not in (h5t.STRING, h5t.INTEGER, h5t.FLOAT):
        return None

    values = np.empty(attribute.shape, attribute.dtype)
    attribute.read(values)
    plain = [_plain(value) for value in values.reshape(-1).tolist()]
    return plain if values.shape else plain[0]


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return text_of(value)
    return value if isinstance(value, str | int) else str(value)


def describe(dataset: Any) -> Row:
    """One dataset's row: where its bytes are, or why they cannot be had."""
    plist = dataset.get_create_plist()
    layout = plist.get_layout()
    row: Row = _type(dataset.get_type())
    extra = row.pop("dims", ())
    if row["dtype"] == "opaque":
        _name_opaque(row, dataset)
    if plist.get_external_count():
        row["layout"], row["note"] = "external", text_of(plist.get_external(0)[0])
        row["shape"] = [*dataset.get_space().shape, *extra]
        return row
    if layout == h5d.VIRTUAL:
        # The space of a virtual dataset may depend on files outside: it is not asked for.
        count = min(plist.get_virtual_count(), MAX_FILES)
        files = {str(plist.get_virtual_filename(i)) for i in range(count)}
        row["layout"], row["shape"] = "virtual", [0]
        row["note"] = ", ".join(sorted(files - {"."}))
        return row
    space = dataset.get_space()
    null = space.get_simple_extent_type() == h5s.NULL
    row["shape"] = [0] if null else [*space.shape, *extra]
    row["stored"] = dataset.get_storage_size()
    if layout == h5d.CHUNKED:
        _describe_chunks(row, dataset, plist, [*extra])
    elif layout == h5d.COMPACT:
        row["layout"] = "compact"
    else:
        row["layout"], row["offset"] = "contiguous", dataset.get_offset()
    return row


def _describe_chunks(row: Row, dataset: Any, plist: Any, extra: list[int]) -> None:
    chunks, shape, itemsize = [*plist.get_chunk(), *extra], row["shape"], row["itemsize"]
    row["layout"], row["chunks"] = "chunked", chunks
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    foreign = [f for f in filters if f[0] not in _FILTERS]
    places = (-(-s // c) for s, c in zip(shape, chunks, strict=True))
    expected = math.prod(places)
    if foreign:
        row["refused"] = f"filter {foreign[0][0]} is no part of HDF5"
    elif [f[0] for f in filters].count(1) > 1:
        row["refused"] = "compressed twice"
    elif math.prod(chunks) * itemsize > CHUNK_BYTES:
        row["refused"] = f"chunks of {math.prod(chunks) * itemsize} bytes, at most {CHUNK_BYTES}"
    elif expected and row["stored"]:
        row["missing"] = max(0, expected - dataset.get_num_chunks())
        row["places"] = expected
        if repeats(tuple(shape), tuple(chunks), itemsize) > MAX_REPEAT:
            row["refused"] = "chunks across rows too long to decode"
    row["filters"] = [f[0] for f in filters]


def _type(kind: Any) -> Row:
    """Our name for an element type, its width, and whether its bytes are reversed."""
    size, group = kind.get_size(), kind.get_class()
    row: Row = {"dtype": "opaque", "itemsize": size, "big": False}
    if group in (h5t.INTEGER, h5t.BITFIELD):
        ordered = kind.get_order() in (h5t.ORDER_LE, h5t.ORDER_BE) or size == 1
        if size in (1, 2, 4, 8) and kind.get_precision() == 8 * size and ordered:
            signed = group == h5t.INTEGER and kind.get_sign() == h5t.SGN_2
            row["dtype"] = f"{'' if signed else 'u'}int{8 * size}"
            row["big"] = kind.get_order() == h5t.ORDER_BE and size > 1
    elif group == h5t.FLOAT:
        if kind.get_order() in (h5t.ORDER_LE, h5t.ORDER_BE):
            row["dtype"] = _FLOATS.get((size, *kind.get_fields(), kind.get_ebias()), "opaque")
            row["big"] = kind.get_order() == h5t.ORDER_BE and size > 1
    elif group == h5t.ENUM:
        row = _type(kind.get_super())
        members = {
            kind.get_member_name(i): kind.get_member_value(i)
            for i in range(min(kind.get_nmembers(), 3))
        }
        if members == {b"FALSE": 0, b"TRUE": 1} and size == 1:
            row["dtype"] = "bool"
    elif group == h5t.COMPOUND:
        _complex(kind, row)
    elif group == h5t.ARRAY:
        inner, dims = _type(kind.get_super()), kind.get_array_dims()
        if inner["dtype"] not in ("opaque", "vlen", "string") and "dims" not in inner:
            return {**inner, "dims": dims}
    elif group == h5t.STRING:
        row["dtype"] = "vlen" if kind.is_variable_str() else "string"
    elif group in (h5t.VLEN, h5t.REFERENCE):
        row["dtype"] = "vlen"
    return row


def _complex(kind: Any, row: Row) -> None:
    if kind.get_nmembers() != 2 or [kind.get_member_name(i) for i in (0, 1)] != [b"r", b"i"]:
        if any(
            _type(kind.get_member_type(i))["dtype"] == "vlen" for i in range(kind.get_nmembers())
        ):
            row["dtype"] = "vlen"
        return
    real, imaginary = (_type(kind.get_member_type(i)) for i in (0, 1))
    packed = kind.get_member_offset(0) == 0 and kind.get_member_offset(1) == real["itemsize"]
    if real == imaginary and packed and row["itemsize"] == 2 * real["itemsize"]:
        row["dtype"] = _COMPLEX.get(real["dtype"], "opaque")
        row["big"] = real["big"]


def _name_opaque(row: Row, dataset: Any) -> None:
    if row["itemsize"] in (1, 2) and h5a.exists(dataset, b"dtype"):
        name = attribute_of(h5a.open(dataset, b"dtype"))
        if isinstance(name, str) and _NAMED.get(name) == row["itemsize"]:
            row["dtype"] = name
