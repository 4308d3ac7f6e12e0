"""How pickle opcodes spell numbers, and how they spell another in the same number of bytes."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

__all__ = [
    "FLOATS",
    "HOLDING",
    "INTEGERS",
    "TRUTHS",
    "Holder",
    "alike",
    "holders",
    "range_of",
    "rewritten",
]

FLOATS: Final = b"GF"
INTEGERS: Final = b"KMJ\x8a\x8bIL"
TRUTHS: Final = b"\x88\x89I"
_BYTES: Final = b"CX"
"""What NumPy scalars are made of: bytes, or in protocol 2 text that is encoded back."""
HOLDING: Final = frozenset(FLOATS + INTEGERS + TRUTHS + _BYTES)
"""Opcodes that can hold a number."""
_WIDTHS: Final = {ord("K"): (1, False), ord("M"): (2, False), ord("J"): (4, True)}
_KINDS: Final = {
    FLOATS: ("f8", "f4", "f2"),
    INTEGERS: ("i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"),
    TRUTHS: (),
}


class Holder(NamedTuple):
    """An opcode that holds a number.

    ``raw`` is all of it; ``dtype`` that of a NumPy scalar, else empty.
    """

    start: int
    raw: bytes
    value: float | int
    dtype: str = ""


def holders(kinds: bytes, at: int, raw: bytes, top: Any, value: float) -> Iterator[Holder]:
    """Give the opcode if it holds this value.

    Parameters
    ----------
    kinds
        `FLOATS`, `INTEGERS` or `TRUTHS`.
    at, raw
        Its offset, and all of its bytes.
    top
        What it put on the stack.
    """
    if raw[0] in kinds and alike(top, value):
        yield Holder(at, raw, value)
    elif raw[0] in _BYTES:
        stored = _payload(raw)
        dtypes = [o + kind for kind in _KINDS[kinds] for o in "<>" if len(stored) == int(kind[1])]
        fitting = (d for d in dtypes if alike(np.frombuffer(stored, d)[0].item(), value))
        yield from (Holder(at, raw, value, dtype) for dtype in [*fitting][:1])


def alike(mine: Any, other: Any) -> bool:
    """Whether two numbers are the same, kind and sign of zero included; NaN is NaN.

    Examples
    --------
    >>> alike(1, 1.0), alike(0.0, -0.0), alike(float("nan"), float("nan"))
    (False, False, True)
    """
    if type(mine) is not type(other):
        return False
    if type(mine) is not float:
        return bool(mine == other)
    if math.isnan(mine):
        return math.isnan(other)
    return struct.pack("<d", mine) == struct.pack("<d", other)


def _payload(raw: bytes) -> bytes:
    """Bytes that a short byte string holds, or a text that stands for bytes."""
    if raw[:1] == b"C":
        return raw[2:]
    try:
        return raw[5:].decode().encode("latin-1")
    except UnicodeError:
        return b""


def rewritten(holder: Holder, value: float) -> bytes | None:
    """Bytes of the opcode for another value, as many as it has; None where it does not fit."""
    if holder.dtype:
        made = _numpy(holder, value)
    elif isinstance(holder.value, bool):
        made = _truth(holder.raw, truth=bool(value))
    elif isinstance(holder.value, float):
        made = _float(holder.raw, value)
    else:
        made = _integer(holder.raw, int(value))
    return made if made is not None and len(made) == len(holder.raw) else None


def range_of(holder: Holder) -> tuple[int, int] | None:
    """Least and greatest whole number that fits; None where that says little."""
    code = holder.raw[0]
    if isinstance(holder.value, float) or holder.dtype:
        return None
    if code in (0x8A, 0x8B):
        bits = 8 * (len(holder.raw) - (2 if code == 0x8A else 5))
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if 0 < bits <= 64 else None
    if code not in _WIDTHS:
        return None
    width, signed = _WIDTHS[code]
    return (
        (-(1 << 8 * width - 1), (1 << 8 * width - 1) - 1) if signed else (0, (1 << 8 * width) - 1)
    )


def _numpy(holder: Holder, value: float) -> bytes | None:
    dtype = np.dtype(holder.dtype)
    if dtype.kind != "f" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        return None
    with np.errstate(over="ignore"):
        stored = np.array(value, dtype)
    if math.isfinite(value) and not np.isfinite(stored):
        return None
    if holder.raw[:1] == b"C":
        return holder.raw[:2] + stored.tobytes()
    return holder.raw[:5] + stored.tobytes().decode("latin-1").encode()


def _truth(raw: bytes, *, truth: bool) -> bytes:
    if raw[:1] == b"I":
        return b"I01\n" if truth else b"I00\n"
    return b"\x88" if truth else b"\x89"


def _integer(raw: bytes, value: int) -> bytes | None:
    code = raw[0]
    if raw[:1] in (b"I", b"L"):
        if value.bit_length() > 8 * len(raw):  # Python refuses to spell numbers without end
            return None
        tail = raw[len(raw.rstrip(b"L\n")) :]
        return raw[:1] + b"%d" % value + tail
    width, signed = _WIDTHS.get(code, (0, True))
    head = 1
    if not width:
        head = 2 if code == 0x8A else 5
        width = len(raw) - head
    if not width:
        return None
    try:
        return raw[:head] + value.to_bytes(width, "little", signed=signed)
    except OverflowError:
        return None


def _float(raw: bytes, value: float) -> bytes | None:
    if raw[:1] == b"G":
        return b"G" + struct.pack(">d", value)
    return b"F" + _padded(repr(value), len(raw) - 2).encode() + b"\n"


def _padded(text: str, length: int) -> str:
    """Spell a float with as many characters, by zeros behind its digits.

    Examples
    --------
    >>> _padded("0.01", 6), _padded("1e-05", 8), _padded("0.125", 3)
    ('0.0100', '1.00e-05', '0.125')
    """
    more = length - len(text)
    found = re.fullmatch(r"(-?\d+)(\.\d+)?(e.*)?", text)
    if more <= 0 or found is None:
        return text
    whole, part, power = found[1], found[2] or "", found[3] or ""
    if not part:
        part, more = ".", more - 1
    return whole + part + "0" * more + power if part != "." or more else text
