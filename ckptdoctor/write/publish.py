"""The last step: a verified draft takes its target's place, or is found to be there already."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from ..errors import UsageError
from ..outcome import Written
from ..sources import FileSource
from ..tensors import TensorTable
from .draft import Draft, remove_leftovers
from .fill import copy_whole
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
    if backup is not None and target.taken:
        message = f"{backup.name!r:.200} exists already and holds something else"
        hint = "move it away, or use -o or --no-backup"
        raise UsageError(f"{message}; nothing was changed", where=target.shown, hint=hint)
    made = backup is not None and not os.path.lexists(backup)
    _give_owner(draft, source)
    try:
        if backup is not None and made:
            _keep(source, target.path, backup)
        draft.publish()
    except UsageError:
        raise  # what appeared under the backup's name is not ours
    except BaseException:
        # Once the draft took the place, the backup is all that is left of the original.
        if backup is not None and made and _stands(source, target.path):
            with contextlib.suppress(OSError):
                backup.unlink()
        raise
    return dataclasses.replace(written, backup=str(backup) if backup else "")


def _stands(source: FileSource, path: Path) -> bool:
    """Whether a path still is the input itself, by inode."""
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (source.identity.device, source.identity.inode)


def _give_owner(draft: Draft, source: FileSource) -> None:
    """Keep owner and group where they may be set: root repairs the files of others, too."""
    found = os.fstat(source.fd)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(draft.path, found.st_uid, found.st_gid)


def _keep(source: FileSource, path: Path, backup: Path) -> None:
    """Give the input a second name; where the file system knows no such thing, copy it."""
    remove_leftovers(backup)
    try:
        os.link(path, backup)
    except FileExistsError:
        raise UsageError(f"{str(backup)!r:.200} appeared meanwhile; nothing was changed") from None
    except OSError:
        copy_whole(source, backup)
