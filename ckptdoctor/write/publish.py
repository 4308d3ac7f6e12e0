"""The last step: a verified draft takes its target's place, or is found to be there already."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from pathlib import Path

from ..errors import UsageError, WriteError
from ..outcome import Written
from ..sources import FileSource
from ..tensors import TensorTable
from .copying import copy_file
from .draft import Draft
from .target import Target, same_bytes

__all__ = ["publish"]


def publish(draft: Draft, target: Target, table: TensorTable, written: Written) -> Written:
    """Put a draft in its place, the input unchanged until the last moment.

    Raises
    ------
    ChangedError
        If the input is no longer what was read.
    UsageError
        If another file stands in the target's place.
    WriteError
        If it cannot be renamed; the target is as before.
    """
    table.check_unchanged()
    if target.replaces:
        return _replace(draft, target, table.files[0], written)
    if target.exists or (target.fresh and os.path.lexists(target.path)):
        again = FileSource(draft.path)
        try:
            same = same_bytes(again, target.path)
        finally:
            again.close()
        if not same:
            message = "exists already and holds something else; nothing was changed"
            raise UsageError(message, where=target.shown, hint="--force replaces it")
        return dataclasses.replace(written, kept=True)
    draft.publish()
    return written


def _replace(draft: Draft, target: Target, source: FileSource, written: Written) -> Written:
    if written.identical:
        return dataclasses.replace(written, kept=True)
    backup = target.backup
    made = backup is not None and not os.path.lexists(backup)
    if backup is not None and made:
        _keep(source, target.path, backup)
    try:
        draft.publish()
    except WriteError:
        if backup is not None and made and _same_file(backup, target.path):
            with contextlib.suppress(OSError):
                backup.unlink()
        raise
    return dataclasses.replace(written, backup=str(backup) if backup else "")


def _keep(source: FileSource, path: Path, backup: Path) -> None:
    """Give the input a second name; where the file system knows no such thing, copy it."""
    try:
        os.link(path, backup)
    except FileExistsError:
        raise UsageError(f"{str(backup)!r:.200} appeared meanwhile; nothing was changed") from None
    except OSError:
        with Draft(backup) as copy:
            try:
                copy_file(source, copy.fd, backup.parent, lambda _: None)
            except OSError as error:
                raise copy.failed("written", error) from None
            copy.flush(stat.S_IMODE(os.fstat(source.fd).st_mode))
            copy.publish()


def _same_file(one: Path, other: Path) -> bool:
    """Whether the input still is where it was: then its second name has no use."""
    try:
        return one.samefile(other) or one.stat().st_size == other.stat().st_size
    except OSError:
        return False
