"""Numbers of the training state in a torch checkpoint's pickle, overwritten where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..containers.zip import read_archive
from ..edits import NumberEdit
from ..errors import UsageError, WriteError
from ..hints import shown
from ..tensors import Checksum, TensorTable
from .pickle_number_bytes import alike
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
    UsageError
        If two edits want other values of what is one number in the file.
    """
    if not edits:
        return NumberWindows((), ())
    tree, read = tree_pickle(table), scalars_reader(table)
    data, windows = tree.data, []
    wanted: dict[str, float | int] = {}
    for edit in edits:
        patch = number_patch(data, edit.name, edit.value, read)
        wanted[edit.name] = patch.value
        stop = patch.offset + len(patch.data)
        old = data[patch.offset : stop]
        windows.append(Window(tree.offset + patch.offset, old, patch.data))
        data = data[: patch.offset] + patch.data + data[stop:]
    if len(wanted) > 1:
        _check_shared(read(data), wanted, table.path)
    return NumberWindows(tuple(windows), _checksum(table, tree.member))


def _check_shared(found: Mapping[str, float | int], wanted: Mapping[str, float], path: str) -> None:
    for name, value in wanted.items():
        if not alike(found[name], value):
            message = f"two changes want other values of one number, of {name!r:.200}"
            hint = "the file holds it once, under more than one name: set one of them"
            raise UsageError(message, where=path, hint=hint)


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
    new = {value for edit in edits for value in _readings(edit.value)}
    for name, value in after.scalars.items():
        if name in wanted:
            right = value in _readings(wanted[name])
        else:  # one object in the pickle may be a number under two names
            old = before.scalars.get(name)
            right = old is not None and (value in new or alike(value, old))
        if not right:
            message = (
                f"the number {name!r:.200} is read back as {shown(value)}; nothing was changed"
            )
            raise WriteError(message, where=before.path)
    left = {_key(name) for name in after.scalars}
    for name in wanted:  # one that was set may also go, with all of its key
        if name not in after.scalars and _key(name) in left:
            message = f"the number {name!r:.200} is not read back; nothing was changed"
            raise WriteError(message, where=before.path)


def _key(name: str) -> str:
    """Outermost key of a number's path."""
    return name.replace("/", ".").partition(".")[0]


def _readings(value: float) -> set[float | int]:
    """List what a value may be read back as: NumPy's scalars hold 32 or 16 bits of a float."""
    if isinstance(value, int):
        return {value}
    with np.errstate(all="ignore"):
        return {value, float(np.float32(value)), float(np.float16(value))}
