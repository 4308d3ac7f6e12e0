"""A checkpoint written by somebody else's function: beside its target first, then in its place.

The function gets a path of the same name in a hidden folder beside the target: Keras decides the
format by the extension, torch names the folder in its archive after the file.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import UsageError, WriteError
from ..write.draft import draft_name, flush_folder, hold_folder, remove_leftovers

__all__ = ["PREVIOUS", "check_saved", "drafted", "local_path", "named_path", "place", "put_aside"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
PREVIOUS = ".previous-ckptdoctor"
"""Behind the name of a folder that stands aside while a newer one takes its place."""
_LONGEST = 255 - len(PREVIOUS)
"""Bytes of a name that leave room for what is put before or behind it."""


def local_path(path: str | os.PathLike[str]) -> Path:
    """Path that a checkpoint is to have in the end, links followed.

    Raises
    ------
    UsageError
        If it is no path, or none of this machine, or its name is too long.

    Examples
    --------
    >>> local_path("s3://bucket/model.pt")
    Traceback (most recent call last):
    ckptdoctor.errors.UsageError: s3://bucket/model.pt: is no path of this machine
    """
    given: Any = path
    if not isinstance(given, str | os.PathLike) or not _is_name(name := os.fspath(given)):
        message = f"expected the path of a checkpoint to write, found {given!r:.100}"
        raise UsageError(message)
    if _URL.match(name):
        hint = "save to a local path and copy what was accepted"
        raise UsageError("is no path of this machine", where=name, hint=hint)
    real = Path(os.path.realpath(name))
    if len(os.fsencode(real.name)) > _LONGEST:
        message = f"expected a name of at most {_LONGEST} bytes, found {real.name!r:.60}..."
        raise UsageError(message)
    return real


def _is_name(path: Any) -> bool:
    return isinstance(path, str) and "\0" not in path and Path(path).name not in ("", "..")


def named_path(path: str | os.PathLike[str]) -> Path:
    """Path that a checkpoint is known by: links are followed but for one of its own name."""
    given = Path(path)
    return Path(os.path.realpath(given.parent), given.name)


@contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """Path to save to, in a folder of its own; what is still there in the end goes.

    Raises
    ------
    WriteError
        If nothing can be written beside the target.
    """
    _restore(target)
    remove_leftovers(target)
    home = target.with_name(draft_name(target))
    try:
        home.mkdir(parents=True)
    except OSError as error:
        message = f"the folder takes no new one: {error.strerror}"
        raise WriteError(message, where=str(target.parent)) from None
    held = hold_folder(home)
    try:
        yield home / target.name
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(home, ignore_errors=True)


def place(draft: Path, target: Path) -> None:
    """Put what was saved in its target's place, after the disk has all of it.

    A file takes the place in one step.  A folder cannot: the old one steps aside under a name of
    its own, and the next save puts it back should the process die between the two steps.

    Raises
    ------
    WriteError
        If the operating system refuses; the target is as it was.
    """
    try:
        _flush(draft)
        if draft.is_dir() and target.is_dir():
            _swap(draft, target)
        else:
            draft.replace(target)
    except OSError as error:
        message = f"could not be replaced: {error.strerror}; it is as it was"
        raise WriteError(message, where=str(target)) from None
    flush_folder(target.parent)


def check_saved(draft: Path, target: Path) -> None:
    """Make sure that the function wrote what it was told to.

    Raises
    ------
    WriteError
        If it did not; the target is as it was.
    """
    found = sorted(path.name for path in draft.parent.iterdir())
    if found == [draft.name]:
        return
    others = [name for name in found if name != draft.name]
    if not others:
        hint = "save must write to the path that it is given, and be done when it returns"
        raise WriteError("nothing was saved", where=str(target), hint=hint)
    shown = ", ".join(repr(name[:60]) for name in others[:3])
    message = f"expected one file of this name, found {shown}"
    hint = "name the file as its format does, or a folder where there are several"
    raise WriteError(message, where=str(target), hint=hint)


def _flush(path: Path) -> None:
    """Have the disk take a file, or every file of a folder: torch, Keras and safetensors do not."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                _flush_file(Path(folder, name))
            flush_folder(Path(folder))
    else:
        _flush_file(path)


def _flush_file(path: Path) -> None:
    fd = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _swap(draft: Path, target: Path) -> None:
    previous = target.with_name(f"{target.name}{PREVIOUS}")
    shutil.rmtree(previous, ignore_errors=True)  # the target is there: it is what was left over
    try:
        target.rename(previous)
        draft.rename(target)
    except BaseException:  # wherever Ctrl-C came
        _restore(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _restore(target: Path) -> None:
    """Put a folder back whose replacement never came."""
    previous = target.with_name(f"{target.name}{PREVIOUS}")
    with suppress(OSError):  # the target is there, and then it is the newer one
        if previous.is_dir():
            previous.rename(target)


def put_aside(draft: Path, target: Path) -> None:
    """Keep something that is not to be used under a name that says so, instead of what was there.

    Raises
    ------
    WriteError
        If the operating system refuses.
    """
    try:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        draft.replace(target)
    except OSError as error:
        message = f"could not be kept: {error.strerror}"
        raise WriteError(message, where=str(target)) from None
