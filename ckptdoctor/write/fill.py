"""One file of a checkpoint, copied into a draft, with the edits' windows overwritten."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..edits import Change, Edit, NumberEdit, Restamp, Trim
from ..errors import UsageError, WriteError
from ..sources import FileSource
from ..tensors import TensorTable
from .checksums import Checksums
from .copying import copy_file
from .draft import Draft
from .numbers import number_windows, stands_in_pickle
from .verify import Mark, check_bytes
from .windows import Window, in_place, windows_of, windows_of_all

__all__ = ["Note", "copied", "copy_whole", "fill", "windows"]

Note = Callable[[str, int, int], None]
"""Called with what is being done, bytes done, and bytes in all."""


def copied(draft: Draft, source: FileSource, note: Note) -> None:
    """Copy a file into a draft, and have the disk take it while others go on."""
    try:
        copy_file(source, draft.fd, draft.path.parent, lambda n: note("copying", n, source.size))
    except OSError as error:
        raise draft.failed("written", error) from None
    draft.flush(stat.S_IMODE(os.fstat(source.fd).st_mode), wait=False)


def copy_whole(source: FileSource, path: Path) -> None:
    """Copy a file as it is to a path of its own, whole or not at all."""
    with Draft(path) as draft:
        copied(draft, source, lambda *_: None)
        draft.publish()


def fill(
    draft: Draft,
    source: FileSource,
    table: TensorTable,
    edits: tuple[Edit, ...],
    others: Sequence[Change],
    note: Note,
) -> list[Mark]:
    """Overwrite in a copy what the edits say, and compare the rest with its source.

    Changes that move bytes are left to `ckptdoctor.write.restructure`.

    Raises
    ------
    UsageError
        If more is to be kept than there is.
    """
    for change in others:
        if isinstance(change, Trim) and change.size > source.size:
            message = f"expected to keep at most {source.size:,} bytes, found {change.size:,}"
            raise UsageError(message, where=table.path)
    marks = []
    for window in windows(source, table, edits, others):
        draft.write(window.offset, window.new)
        marks.append(Mark.of(window))
    draft.flush(stat.S_IMODE(os.fstat(source.fd).st_mode), wait=False)
    _compare(draft, source, marks, note)
    for change in others:
        if isinstance(change, Trim):
            draft.truncate(change.size)
            draft.flush(stat.S_IMODE(os.fstat(source.fd).st_mode))
    return marks


def windows(
    source: FileSource, table: TensorTable, edits: Sequence[Edit], others: Sequence[Change] = ()
) -> Iterator[Window]:
    """Yield the windows of the edits of one file, then those of the checksums that they change."""
    pickled = [change for change in others if isinstance(change, NumberEdit)]
    numbers = number_windows(table, pickled if pickled and stands_in_pickle(table) else ())
    checksums = Checksums((*table.checksums, *numbers.checksums), source)
    outer = Checksums(table.enclosing, source)
    mine = [edit for edit in edits if in_place(table[edit.tensor]) is source]
    edited = windows_of_all((table[edit.tensor], edit) for edit in mine)
    for window in (*numbers.windows, *edited) if numbers.windows else edited:
        checksums.note(window)
        outer.note(window)
        yield window
    for edit in mine:
        if edit.mends:
            for window in windows_of(table[edit.tensor], edit):
                checksums.note(window)  # twice is not at all
    for change in others:
        if isinstance(change, Restamp):
            checksums.restate(change.where)
    for window in checksums.windows():
        outer.note(window)
        yield window
    yield from outer.windows()


def _compare(draft: Draft, source: FileSource, marks: list[Mark], note: Note) -> None:
    again = FileSource(draft.path)
    try:
        check_bytes(source, again, marks, lambda n: note("verifying", n, source.size))
    except WriteError:
        source.check_unchanged()  # else it is the input that is not what was copied
        raise
    finally:
        again.close()
