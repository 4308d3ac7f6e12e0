"""Numbers of the training state in a torch checkpoint's pickle, overwritten where they stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..containers.zip import read_archive
from ..edits import NumberEdit
from ..errors import WriteError
from ..tensors import Checksum, TensorTable
from .pickle_numbers import number_patch, scalars_reader, tree_pickle
from .windows import Window

__all__ = ["NumberWindows", "check_numbers", "number_windows", "stands_in_pickle"]

_PICKLED = ("torch-zip", "torchscript", "torch-legacy")


class NumberWindows(NamedTuple):
    """Bytes that state numbers, and the checksum over them where there is one."""

    windows: tuple[Window, ...]
    checksums: tuple[Checksum, ...]


def stands_in_pickle(table: TensorTable) -> bool:
    """Whether the checkpoint keeps its numbers in a pickle whose bytes lie in the file."""
    return table.format in _PICKLED and tree_pickle(table).offset >= 0


def number_windows(table: TensorTable, edits: Sequence[NumberEdit]) -> NumberWindows:
    """Find the bytes of numbers.

    Raises
    ------
    UnsupportedError
        If a number cannot be stated in as many bytes as it has.
    """
    if not edits:
        return NumberWindows((), ())
    tree, read = tree_pickle(table), scalars_reader(table)
    data, windows = tree.data, []
    for edit in edits:
        patch = number_patch(data, edit.name, edit.value, read)
        stop = patch.offset + len(patch.data)
        old = data[patch.offset : stop]
        windows.append(Window(tree.offset + patch.offset, old, patch.data))
        data = data[: patch.offset] + patch.data + data[stop:]
    return NumberWindows(tuple(windows), _checksum(table, tree.member))


def _checksum(table: TensorTable, name: str) -> tuple[Checksum, ...]:
    if not name:
        return ()
    archive = read_archive(table.files[0])
    member = archive.get(name)
    checksum = archive.checksum(member) if member is not None else None
    return (checksum,) if checksum is not None else ()


def check_numbers(before: TensorTable, after: TensorTable, edits: Sequence[NumberEdit]) -> None:
    """Check that the numbers that were set are read back, and all others as before.

    Raises
    ------
    WriteError
        If they are not.
    """
    wanted = {edit.name: edit.value for edit in edits}
    new = set(wanted.values())
    for name, value in after.scalars.items():
        old = before.scalars.get(name)
        if name in wanted:
            right = _same(value, wanted[name])
        else:  # one object in the pickle may be a number under two names
            right = old is not None and (_same(value, old) or value in new)
        if not right:
            message = f"the number {name!r:.200} is read back as {value!r:.40}; nothing was changed"
            raise WriteError(message, where=before.path)


def _same(one: float, other: float) -> bool:
    if math.isnan(one) and math.isnan(other):
        return True
    return one == other or math.isclose(one, other, rel_tol=1e-6)
