"""Reports written to files: beside their name and then renamed, never over what was inspected."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError
from ..results import Report

__all__ = ["check_target", "guard_inputs", "write"]


def check_target(file: str, paths: Iterable[str]) -> None:
    """Say before the work begins that a report cannot be written.

    Raises
    ------
    UsageError
        If it is one of the ``paths`` to inspect, a folder, or in a folder where nothing can be
        written.
    """
    try:
        problem = _problem(Path(file))
        overwrites = not problem and any(_same(file, path) for path in paths)
    except (OSError, ValueError) as error:  # a name too long, a NUL
        problem, overwrites = getattr(error, "strerror", None) or str(error), False
    if problem:
        raise UsageError(f"the report cannot be written: {problem}", where=file)
    if overwrites:
        raise _overwrites(file)


def _problem(target: Path) -> str:
    folder = target.resolve().parent
    if target.is_dir():
        return "it is a folder"
    if not folder.is_dir():
        return "there is no such folder"
    if _is_replaced(target) and not os.access(folder, os.W_OK | os.X_OK):
        return "nothing can be written to its folder"
    return ""


def _same(file: str, path: str) -> bool:
    return Path(file).exists() and Path(file).samefile(path)


def guard_inputs(file: str, reports: Iterable[Report]) -> None:
    """Refuse a target that is a file of one of the checkpoints: a shard, a link to one.

    Raises
    ------
    UsageError
        If it is.
    """
    try:
        found = Path(file).stat()
    except OSError:
        return
    target = found.st_dev, found.st_ino
    if any(target in _files_of(report) for report in reports):
        raise _overwrites(file)


def _files_of(report: Report) -> set[tuple[int, int]]:
    """Device and inode of what was read, and in a folder of shards of what is beside it.

    Not every shard is read: some are refused, or links that are not followed.  Plain ``.json`` and
    ``.txt`` files are none: a report may replace that of yesterday.
    """
    path = Path(report.file)
    files = report.table.files if report.table is not None else ()
    found = {(file.identity.device, file.identity.inode) for file in files}
    if path.is_dir() or path.suffix == ".json":
        for entry in (path if path.is_dir() else path.parent).iterdir():
            is_index = entry.name.endswith(".index.json")
            if entry.suffix in (".json", ".txt") and not is_index and not entry.is_symlink():
                continue
            with contextlib.suppress(OSError):
                stat = entry.stat()
                found.add((stat.st_dev, stat.st_ino))
    return found


def _overwrites(file: str) -> UsageError:
    hint = "name another file"
    return UsageError("the report would overwrite the checkpoint", where=file, hint=hint)


def _is_replaced(target: Path) -> bool:
    """Whether a new file takes its place; devices and pipes are written to as they are."""
    return target.is_file() or not target.exists()


def write(file: str, pieces: Iterable[str]) -> None:
    """Write a report; on any failure a file that was there stays as it was.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    target = Path(file)
    if not _is_replaced(target):
        with target.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.writelines(pieces)
        return
    target = target.resolve()
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    beside, name = tempfile.mkstemp(dir=target.parent, prefix=".ckptdoctor-")
    try:
        with open(beside, "w", encoding="utf-8", errors="backslashreplace") as stream:  # noqa: PTH123
            stream.writelines(pieces)
        Path(name).chmod(mode)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
