"""Receipts: what a repair wrote over what, so that the original can be put back by hand.

Where no byte moved, a receipt lists runs of bytes: offset, what stood there, what stands there now.
Putting the old bytes back, and cutting to the old size, gives the original:

>>> import base64, json
>>> repaired = b"weights: 1.0"
>>> files = [
...     Rewritten(
...         input=Identity(path="m.pt", size=14, sha256="0" * 64),
...         output=Identity(path="m.repaired.pt", size=12, sha256="1" * 64),
...         runs=[(9, b"nan", b"1.0"), (12, b"??", b"")],
...     )
... ]
>>> receipt = json.loads(receipt_json(RepairPlan(), files))
>>> original = bytearray(repaired)
>>> for run in receipt["files"][0]["runs"]:
...     old = base64.b64decode(run["old"])
...     original[run["offset"] : run["offset"] + len(old)] = old
>>> bytes(original[: receipt["files"][0]["input"]["size"]])
b'weights: nan??'

Where bytes moved (data that is compressed, parts that were removed) it lists the old and new values
of the tensors instead.  Nothing in a receipt tells when or where it was made: the same repair gives
the same receipt.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ._version import __version__
from .edits import RepairPlan
from .plans import change_fields, dtype_name, encode, encoded, refusal_fields, runs_of
from .tensors import Array

__all__ = [
    "KIND",
    "PIECE",
    "SCHEMA",
    "Identity",
    "Replaced",
    "Rewritten",
    "receipt_json",
    "receipt_pieces",
]

KIND = "repair-receipt"
SCHEMA = 1
PIECE = 3 << 18
"""Bytes of one entry (768 KiB): a longer run becomes several, so that memory stays bounded.  A
multiple of 3, so that base64 needs no padding in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A file by its content; ``path`` as the caller wrote it, ``sha256`` in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """Values of one tensor that were replaced: ``indices`` as in an `Edit`, ``old`` and ``new``."""

    tensor: str
    indices: Array | None
    old: Array
    new: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """One file of a repair: a checkpoint, or a shard of one.

    Parameters
    ----------
    input, output
        What it was and what it is.
    runs
        Offset, bytes there before, and bytes there now, in file order; they have the same length,
        but at the end of a file that was cut the new ones are shorter.
    values
        Of the tensors, where bytes moved: runs would tell nothing.
    moved
        Why bytes moved; empty where every other byte stayed in its place.
    """

    input: Identity
    output: Identity
    runs: Iterable[tuple[int, bytes, bytes]] = ()
    values: Iterable[Replaced] = ()
    moved: str = ""


def receipt_json(plan: RepairPlan, files: Iterable[Rewritten]) -> str:
    """Return a receipt as one JSON document; see `receipt_pieces` for large ones."""
    return "".join(receipt_pieces(plan, files))


def receipt_pieces(plan: RepairPlan, files: Iterable[Rewritten]) -> Iterator[str]:
    """Yield a receipt in pieces: runs and values are taken one by one and not kept.

    Parameters
    ----------
    plan
        What was done; its values are those of the files.
    files
        What was written: one file, or all that differ of a set of shards.
    """
    tool = {"name": "ckptdoctor", "version": __version__}
    head = {"schema": SCHEMA, "kind": KIND, "tool": tool, "made_for": dict(plan.made_for)}
    yield encode(head)[:-1]
    yield from _listed("changes", (encode(change_fields(c)) for c in plan.changes))
    yield from _listed("refusals", (encode(refusal_fields(r)) for r in plan.refusals))
    yield f',\n"warnings": {encode(list(plan.warnings))},\n"files": ['
    comma = ""
    for file in files:
        yield comma
        yield from _file(file)
        comma = ","
    yield "]}\n"


def _file(file: Rewritten) -> Iterator[str]:
    yield f'\n{{"input": {encode(_identity(file.input))},\n"output": '
    yield f'{encode(_identity(file.output))},\n"moved": {encode(file.moved)}'
    yield from _listed("runs", _runs(file.runs))
    yield from _listed("values", (encode(_values(replaced)) for replaced in file.values))
    yield "}"


def _identity(identity: Identity) -> dict[str, Any]:
    return {"path": identity.path, "size": identity.size, "sha256": identity.sha256}


def _runs(runs: Iterable[tuple[int, bytes, bytes]]) -> Iterator[str]:
    for offset, old, new in runs:
        for at in range(0, max(len(old), len(new)), PIECE):
            was, now = _base64(old[at : at + PIECE]), _base64(new[at : at + PIECE])
            yield f'{{"offset": {offset + at}, "old": "{was}", "new": "{now}"}}'


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _values(replaced: Replaced) -> dict[str, Any]:
    return {
        "tensor": replaced.tensor,
        "indices": None if replaced.indices is None else runs_of(replaced.indices),
        "dtype": dtype_name(replaced.old.dtype),
        "old": encoded(replaced.old),
        "new": encoded(replaced.new),
    }


def _listed(name: str, items: Iterator[str]) -> Iterator[str]:
    """Yield a list under its name, an item a line."""
    yield f',\n"{name}": ['
    comma = "\n  "
    for item in items:
        yield comma
        yield item
        comma = ",\n  "
    yield "]"
