"""Repair plans from JSON: everything is checked, nothing is trusted."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .dtypes import DTYPES
from .edits import (
    CLASSES,
    Change,
    Edit,
    NumberEdit,
    Refusal,
    Removal,
    RepairPlan,
    Restamp,
    Trim,
)
from .errors import UsageError
from .tensors import Array

__all__ = ["KIND", "SCHEMA", "plan_from_json"]

KIND = "repair-plan"
"""What tells a plan from other JSON of this package."""
SCHEMA = 1
"""Grows when a plan of the version before would be read wrongly; new keys do not need that."""

_NAMED = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
_HEX = re.compile(r"-?0x[0-9a-f]{1,1000000}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXTS = object()
"""Type of a field that is a list of texts."""
_NUMBER = object()
_SIZE = object()
"""Type of a field that is a count or a size: an integer from 0 to the largest index."""
_MOST = 2**63 - 1
_WORDS: Mapping[Any, str] = {
    str: "a text", int: "a whole number", list: "a list", dict: "an object", bool: "true or false",
    float: "a number", type(None): "null", _TEXTS: "a list of texts", _NUMBER: "a number",
    _SIZE: "a whole number from 0 on",
}  # fmt: skip

_HEAD = {
    "schema": int, "kind": str, "tool": dict, "file": str, "format": str, "made_for": dict,
    "explicit": bool, "changes": list, "refusals": list, "warnings": _TEXTS,
}  # fmt: skip
_CHANGE = {"type": str, "remedy": str, "class": str, "cures": _TEXTS, "title": str}
_REFUSAL = {"target": str, "reason": str, "remedy": str, "codes": _TEXTS, "hint": str}
_SHOWS = {"count": _SIZE, "total": _SIZE, "was": str, "becomes": str, "aliases": _TEXTS}
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "elements": {"tensor": str, "indices": (list, type(None)), "dtype": str, "count": _SIZE,
                 "values": str},
    "number": {"name": str, "before": _NUMBER, "value": _NUMBER},
    "removal": {"names": _TEXTS},
    "trim": {"size": _SIZE},
    "checksum": {"where": str},
}  # fmt: skip
_OPTIONAL = {"elements": {"before": str, "shows": dict}}


def plan_from_json(text: str, where: str) -> RepairPlan:
    """Return the plan that a document states.

    Parameters
    ----------
    text
        What `ckptdoctor.plans.plan_to_json` wrote, perhaps edited by hand since.
    where
        Name of the document, for messages.

    Raises
    ------
    UsageError
        If anything in it is not as `plan_to_json` writes it; with what, and where.
    """
    document = _parsed(text, where)
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise UsageError(f"expected a repair plan, found no {KIND!r} in its 'kind'", where=where)
    schema = document.get("schema")
    if type(schema) is int and schema > SCHEMA:
        message = f"expected a plan of schema {SCHEMA}, found {_shown(schema)}"
        raise UsageError(message, where=where, hint="update ckptdoctor, or make the plan anew")
    fields = _checked(document, where, _HEAD, joint=":")
    if schema != SCHEMA:
        raise _wrong(f"schema {SCHEMA}", schema, f"{where}:schema")
    changes = tuple(
        _change(value, f"{where}:changes[{n}]") for n, value in enumerate(fields["changes"])
    )
    _check_apart(changes, where)
    refusals = [
        _checked(value, f"{where}:refusals[{n}]", _REFUSAL)
        for n, value in enumerate(fields["refusals"])
    ]
    return RepairPlan(
        changes=changes,
        refusals=tuple(
            Refusal(target=r["target"], reason=r["reason"], remedy=r["remedy"], hint=r["hint"],
                    codes=tuple(r["codes"]))
            for r in refusals
        ),
        warnings=tuple(fields["warnings"]),
        explicit=fields["explicit"],
        made_for=_identity(fields["made_for"], f"{where}:made_for"),
    )  # fmt: skip


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        message = f"expected a repair plan, found no JSON: {error.msg} in line {error.lineno}"
        raise UsageError(message, where=f"{where}+{error.pos}") from None
    except ValueError as error:  # ours, or an integer of thousands of digits
        raise UsageError(f"expected a repair plan, found {error!s:.100}", where=where) from None
    except RecursionError:
        message = "expected a repair plan, found JSON that is nested too deeply"
        raise UsageError(message, where=where) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.60} twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"a bare {name}, which is no JSON")


def _checked(
    value: Any,
    where: str,
    required: Mapping[str, Any],
    optional: Mapping[str, Any] | None = None,
    joint: str = ".",
) -> dict[str, Any]:
    """Return an object with exactly these fields, each of its type."""
    if not isinstance(value, dict):
        raise _wrong("an object", value, where)
    known = {**required, **(optional or {})}
    for name in value:
        if name not in known:
            listed = ", ".join(known)
            raise UsageError(f"unknown key {name!r:.60}; known are {listed}", where=where)
    for name in required:
        if name not in value:
            raise UsageError(f"the key {name!r} is missing", where=where)
    return {
        name: _typed(item, known[name], f"{where}{joint}{name}") for name, item in value.items()
    }


def _typed(value: Any, wanted: Any, where: str) -> Any:
    if wanted is _TEXTS:
        good = type(value) is list and all(type(text) is str for text in value)
    elif wanted is _SIZE:
        good = type(value) is int and 0 <= value <= _MOST
    elif wanted is _NUMBER:
        return _number(value, where)
    else:
        good = type(value) in (wanted if isinstance(wanted, tuple) else (wanted,))
    if not good:
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        raise _wrong(" or ".join(_WORDS[kind] for kind in kinds), value, where)
    return value


def _number(value: Any, where: str) -> float | int:
    if type(value) is int:
        return value
    if type(value) is float and value - value == 0:  # 1e999 is read as infinity
        return value
    if type(value) is str and value in _NAMED:
        return _NAMED[value]
    if type(value) is str and _HEX.fullmatch(value):
        return int(value, 16)
    raise _wrong('a number, "nan", "inf" or "-inf"', value, where)


def _identity(value: dict[str, Any], where: str) -> dict[str, int | str]:
    """Identity of the file that the plan was made for; a plan may have none."""
    if not value:
        return {}
    fields = _checked(value, where, {"size": _SIZE, "sha256": str})
    if not _SHA256.fullmatch(fields["sha256"]):
        raise _wrong("64 hexadecimal digits", fields["sha256"], f"{where}.sha256")
    return fields


def _change(value: Any, where: str) -> Change:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, dict) and (not isinstance(kind, str) or kind not in _FIELDS):
        raise _wrong(f"one of {', '.join(_FIELDS)}", kind, f"{where}.type")
    name = str(kind)
    fields = _checked(value, where, _CHANGE | dict(_FIELDS.get(name, {})), _OPTIONAL.get(name))
    if fields["class"] not in CLASSES:
        raise _wrong(f"one of {', '.join(CLASSES)}", fields["class"], f"{where}.class")
    return _MAKERS[name](fields, where)


def _common(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "remedy": fields["remedy"],
        "kind": fields["class"],
        "cures": tuple(fields["cures"]),
        "title": fields["title"],
    }


def _edit(fields: dict[str, Any], where: str) -> Edit:
    count = fields["count"]
    values = _values(fields["values"], fields["dtype"], count, where, "values")
    if "before" in fields:
        _values(fields["before"], fields["dtype"], count, where, "before")
    if "shows" in fields:
        _checked(fields["shows"], f"{where}.shows", _SHOWS)
    runs, indices = fields["indices"], None
    if runs is not None:
        indices = _indices(runs, count, f"{where}.indices")
    return Edit(tensor=fields["tensor"], indices=indices, values=values, **_common(fields))


def _values(text: str, dtype: str, count: int, where: str, name: str) -> Array:
    """Values of a plan: as many as it says, and no more memory than its text takes."""
    row = DTYPES.get(dtype)
    if row is None or row.kind == "opaque" or dtype not in (row.stored, "complex32"):
        raise _wrong("a type of elements", dtype, f"{where}.dtype")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"expected base64: {error}", where=f"{where}.{name}") from None
    if len(raw) != count * row.itemsize:
        message = f"expected {count * row.itemsize:,} bytes ({count:,} {dtype}), found {len(raw):,}"
        raise UsageError(message, where=f"{where}.{name}")
    if dtype == "bool" and raw.strip(b"\0\1"):
        raise UsageError("expected bytes of 0 or 1 for bool, found others", where=f"{where}.{name}")
    values: Array = np.frombuffer(raw, row.numpy)
    return values if sys.byteorder == "little" else values.byteswap()


def _indices(runs: list[Any], count: int, where: str) -> Array:
    """Return indices from their runs, which are checked before anything is made of them."""
    stop = total = 0
    for n, run in enumerate(runs):
        if type(run) is not list or [type(part) for part in run] != [int, int]:
            raise _wrong("a pair of whole numbers", run, f"{where}[{n}]")
        start, length = run
        if start < stop:
            raise UsageError(
                f"expected a start of {stop:,} or more, for indices ascend, found {_shown(start)}",
                where=f"{where}[{n}]",
            )
        if length < 1 or start + length > _MOST:
            raise _wrong("a count from 1 to the largest index", length, f"{where}[{n}]")
        stop, total = start + length, total + length
    if total != count:
        raise UsageError(f"expected {count:,} indices, found {total:,}", where=where)
    pairs = np.array(runs, np.int64).reshape(-1, 2)
    starts, counts = pairs[:, 0], pairs[:, 1]
    before = np.cumsum(counts) - counts
    indices: Array = np.arange(total, dtype=np.int64) + np.repeat(starts - before, counts)
    return indices


def _number_edit(fields: dict[str, Any], _: str) -> NumberEdit:
    names = {name: fields[name] for name in ("name", "before", "value")}
    return NumberEdit(**names, **_common(fields))


def _removal(fields: dict[str, Any], where: str) -> Removal:
    if not fields["names"]:
        raise UsageError("expected at least one name, found none", where=f"{where}.names")
    return Removal(names=tuple(fields["names"]), **_common(fields))


def _trim(fields: dict[str, Any], _: str) -> Trim:
    return Trim(size=fields["size"], **_common(fields))


def _restamp(fields: dict[str, Any], _: str) -> Restamp:
    return Restamp(where=fields["where"], **_common(fields))


_MAKERS: Mapping[str, Callable[[dict[str, Any], str], Change]] = {
    "elements": _edit,
    "number": _number_edit,
    "removal": _removal,
    "trim": _trim,
    "checksum": _restamp,
}


def _check_apart(changes: tuple[Change, ...], where: str) -> None:
    """Refuse two changes of one element or number: which of them counts would be an accident."""
    seen: dict[tuple[str, str], list[Array | None]] = {}
    for n, change in enumerate(changes):
        if isinstance(change, Edit):
            key, mine = ("tensor", change.tensor), change.indices
        elif isinstance(change, NumberEdit):
            key, mine = ("number", change.name), None
        else:
            continue
        for other in seen.setdefault(key, []):
            if mine is None or other is None or np.intersect1d(mine, other, True).size:
                message = f"the {key[0]} {key[1]!r:.100} is changed twice in one place"
                raise UsageError(message, where=f"{where}:changes[{n}]")
        seen[key].append(mine)


def _wrong(expected: str, found: Any, where: str) -> UsageError:
    return UsageError(f"expected {expected}, found {_shown(found)}", where=where)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, int) and abs(value) > _MOST:
        return "a larger number"
    return f"{value!r:.60}"
