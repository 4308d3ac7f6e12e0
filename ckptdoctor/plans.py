"""Repair plans as files: a plan to JSON and back, strictly, and the file it was made for.

A plan holds its values (base64 of little-endian bytes) and the places they go (runs of indices),
so that what is applied is what was reviewed, to the bit.  Reading trusts nothing: a plan may have
been edited by hand, or come from somebody else.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Mapping
from json.encoder import JSONEncoder
from pathlib import Path
from typing import Any

import numpy as np

from ._version import __version__
from .dtypes import DTYPES, of_numpy
from .edits import Change, Edit, NumberEdit, Refusal, Removal, RepairPlan, Trim
from .errors import InternalError, ReadError, UsageError
from .outcome import Before
from .plan_reading import KIND, SCHEMA, plan_from_json
from .tensors import Array

__all__ = [
    "KIND",
    "SCHEMA",
    "SMALL_EDIT",
    "before_fields",
    "change_fields",
    "check_made_for",
    "dtype_name",
    "encode",
    "encoded",
    "number_fields",
    "plan_from_json",
    "plan_pieces",
    "plan_to_json",
    "read_plan",
    "refusal_fields",
    "runs_of",
]

SMALL_EDIT = 4096
"""Bytes of the values up to which a plan repeats those that stand there now."""
MAX_PLAN_BYTES = 2 << 30
"""A plan is read as a whole; a larger one is a mistake, or a graft that ``--donor`` does better."""

_LARGE = 1 << 63
"""Integers from here on are written in hexadecimal: Python limits the digits of decimal ones."""

encode = JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(", ", ": ")).encode
"""Strict JSON in ASCII: names keep every character, half surrogates too."""


def plan_to_json(
    plan: RepairPlan,
    file: str,
    format: str,
    *,
    details: Mapping[int, Before] | None = None,
    old: Mapping[int, Array] | None = None,
) -> str:
    """Return a plan as one JSON document that `plan_from_json` reads.

    Examples
    --------
    >>> edit = Edit(
    ...     tensor="bn.running_var", indices=np.array([0, 1, 5]), values=np.ones(3, np.float32),
    ...     remedy="bn-reset", kind="destructive", cures=("BN001",), title="variance 1",
    ... )
    >>> text = plan_to_json(RepairPlan(changes=(edit,)), "m.pt", "torch-zip")
    >>> '"indices": [[0, 2], [5, 1]]' in text
    True
    >>> plan_from_json(text, "plan.json").changes[0].indices.tolist()
    [0, 1, 5]
    """
    return "".join(plan_pieces(plan, file, format, details=details, old=old))


def plan_pieces(
    plan: RepairPlan,
    file: str,
    format: str,
    *,
    details: Mapping[int, Before] | None = None,
    old: Mapping[int, Array] | None = None,
) -> Iterator[str]:
    """Yield the document in pieces, one change each: values are drawn one change at a time.

    Parameters
    ----------
    plan
        What to write.
    file, format
        What it was made for, for people; ``plan.made_for`` is what counts.
    details, old
        By the index of a change: what stands there in words, and the values themselves.  Both are
        there to be read by people; values of more than `SMALL_EDIT` bytes are left out.
    """
    details, old = details or {}, old or {}
    tool = {"name": "ckptdoctor", "version": __version__}
    head = {"schema": SCHEMA, "kind": KIND, "tool": tool, "file": file, "format": format}
    head |= {"made_for": dict(plan.made_for), "explicit": plan.explicit}
    yield encode(head)[:-1] + ',\n"changes": ['
    start = "\n  "
    for index, change in enumerate(plan.changes):
        fields = change_fields(change)
        if isinstance(change, Edit):
            fields |= _value_fields(change.after(), old.get(index))
            if index in details:
                fields["shows"] = before_fields(details[index])
        yield start + encode(fields)
        start = ",\n  "
    refusals = ",\n  ".join(encode(refusal_fields(refusal)) for refusal in plan.refusals)
    yield f'],\n"refusals": [{refusals}],\n"warnings": {encode(list(plan.warnings))}}}\n'


def change_fields(change: Change) -> dict[str, Any]:
    """Return all that a change says, short of the values of an `Edit`."""
    fields: dict[str, Any] = {"type": _type_of(change), "remedy": change.remedy}
    fields |= {"class": change.kind, "cures": list(change.cures), "title": change.title}
    if isinstance(change, Edit):
        runs = None if change.indices is None else runs_of(change.indices)
        return fields | {"tensor": change.tensor, "indices": runs}
    if isinstance(change, NumberEdit):
        before, value = number_fields(change.before), number_fields(change.value)
        return fields | {"name": change.name, "before": before, "value": value}
    if isinstance(change, Removal):
        return fields | {"names": list(change.names)}
    if isinstance(change, Trim):
        return fields | {"size": change.size}
    return fields | {"where": change.where}


def _type_of(change: Change) -> str:
    if isinstance(change, Edit):
        return "elements"
    if isinstance(change, NumberEdit):
        return "number"
    if isinstance(change, Removal):
        return "removal"
    return "trim" if isinstance(change, Trim) else "checksum"


def refusal_fields(refusal: Refusal) -> dict[str, Any]:
    """Return all that a refusal says."""
    return {
        "target": refusal.target,
        "reason": refusal.reason,
        "remedy": refusal.remedy,
        "codes": list(refusal.codes),
        "hint": refusal.hint,
    }


def before_fields(before: Before) -> dict[str, Any]:
    """Return what a change looks like, in words."""
    return {
        "count": before.count,
        "total": before.total,
        "was": before.was,
        "becomes": before.becomes,
        "aliases": list(before.aliases),
    }


def number_fields(value: float) -> float | int | str:
    """Return a number as JSON can hold it: ``"nan"``, ``"inf"``, ``"-inf"``, ``"0x..."``.

    Examples
    --------
    >>> number_fields(0.5), number_fields(float("-inf")), number_fields(-(1 << 63))
    (0.5, '-inf', '-0x8000000000000000')
    """
    plain: Any = value
    if isinstance(plain, np.generic):
        plain = plain.item()
    if isinstance(plain, float):
        return plain if plain - plain == 0 else repr(plain)
    return int(plain) if abs(plain) < _LARGE else hex(plain)


def runs_of(indices: Array) -> list[list[int]]:
    """Return ascending indices as runs of ``[start, count]``.

    Examples
    --------
    >>> runs_of(np.array([2, 3, 4, 9]))
    [[2, 3], [9, 1]]
    """
    flat = indices.reshape(-1)
    if not flat.size:
        return []
    cuts = np.flatnonzero(np.diff(flat) != 1) + 1
    starts = flat[np.concatenate(([0], cuts))]
    counts = np.diff(np.concatenate(([0], cuts, [flat.size])))
    return [[start, count] for start, count in zip(starts.tolist(), counts.tolist(), strict=True)]


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Name of the type that values are stored in.

    Raises
    ------
    InternalError
        If the table of types has none: no remedy makes such values.
    """
    row = of_numpy(dtype)
    if row is None and dtype.newbyteorder("=") == DTYPES["complex32"].numpy:
        row = DTYPES["complex32"]
    if row is None:
        raise InternalError(f"a plan holds values of the unknown type {dtype!r:.100}")
    return row.name


def encoded(values: Array) -> str:
    """Base64 of an array's bytes, little-endian and flat."""
    dtype = DTYPES[dtype_name(values.dtype)].numpy
    native = np.ascontiguousarray(values.reshape(-1)).astype(dtype, copy=False)
    return base64.b64encode(_little(native).tobytes()).decode("ascii")


def _little(values: Array) -> Array:
    return values if sys.byteorder == "little" else values.byteswap()


def _value_fields(values: Array, old: Array | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"dtype": dtype_name(values.dtype), "count": values.size}
    fields["values"] = encoded(values)
    if old is not None and values.nbytes <= SMALL_EDIT:
        fields["before"] = encoded(old)
    return fields


def check_made_for(plan: RepairPlan, size: int, sha256: str, where: str = "") -> None:
    """Refuse a plan that was made for another file, or does not say for which.

    Raises
    ------
    UsageError
        With the identities of both.
    """
    wanted = plan.made_for
    if not wanted:
        raise UsageError("the plan does not say which file it was made for", where=where)
    if (wanted.get("size"), wanted.get("sha256")) != (size, sha256):
        raise UsageError(
            f"the plan was made for a file of {wanted.get('size'):,} bytes with SHA-256 "
            f"{wanted.get('sha256')}, found {size:,} bytes with SHA-256 {sha256}",
            where=where,
            hint="make a new plan for this file with --write-plan",
        )


def read_plan(file: str) -> RepairPlan:
    """Read a plan from a file.

    Raises
    ------
    UsageError
        If it is no file, too large, or no plan; see `ckptdoctor.plan_reading.plan_from_json`.
    ReadError
        If the operating system does not give its bytes.
    """
    path = Path(file)
    try:
        if not path.is_file():
            raise UsageError("expected a repair plan, found no such file", where=file)
        size = path.stat().st_size
        if size > MAX_PLAN_BYTES:
            message = f"expected a repair plan of at most {MAX_PLAN_BYTES:,} bytes, found {size:,}"
            raise UsageError(message, where=file)
        raw = path.read_bytes()
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}", where=file) from None
    except ValueError as error:  # a NUL in the name
        raise UsageError(f"expected a repair plan, found a bad name: {error}", where=file) from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"expected a repair plan in UTF-8, found the byte 0x{raw[error.start]:02x}"
        raise UsageError(message, where=f"{file}+{error.start}") from None
    return plan_from_json(text, file)
