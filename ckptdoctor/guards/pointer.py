"""``last_good.json``: the newest checkpoint of a folder that a guard has found fit.

A plain file with a relative name in it: links do not survive object stores, archives and Windows.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import FormatError, UsageError
from ..write.draft import Draft

__all__ = ["NAME", "Good", "last_good", "read_pointer", "write_pointer"]

NAME = "last_good.json"
_SCHEMA = 1
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Good:
    """A checkpoint that was found fit: its name below the folder, and after which step it was saved."""

    file: str
    step: int


def last_good(folder: str | os.PathLike[str]) -> str | None:
    """Path of the newest checkpoint in a folder that a guard has found fit; None before the first.

    Of a callback: what `guarded_save` writes is good at its own path, always, and is not noted here.

    Parameters
    ----------
    folder
        Where the guard's checkpoints are.

    Raises
    ------
    FormatError
        If ``last_good.json`` is not what a guard writes.
    UsageError
        If the checkpoint that it names is gone.
    """
    good = read_pointer(Path(folder))
    if good is None:
        return None
    path = Path(folder, good.file)
    if not path.exists():
        message = f"names {good.file!r:.200}, which is gone"
        raise UsageError(message, where=str(Path(folder, NAME)))
    return str(path)


def read_pointer(folder: Path) -> Good | None:
    """Return what ``last_good.json`` says; None where there is none.

    Raises
    ------
    FormatError
        If it is not what a guard writes.
    """
    path = folder / NAME
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None
    try:
        told: Any = json.loads(text) if len(text) <= _LONGEST else None
        name, step = told["file"], told["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = step = None
    if type(step) is not int or not isinstance(name, str) or not _below(name):
        message = "expected the name of a checkpoint below it and a step, as a guard writes them"
        raise FormatError(message, where=str(path), hint="delete it, and look at what is there")
    return Good(name, step)


def _below(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def write_pointer(folder: Path, good: Good, first_bad: Any = None) -> None:
    """Say which checkpoint is the newest one that is fit, and which step was the first bad one.

    Raises
    ------
    WriteError
        If it cannot be written; the old one is as it was.
    """
    told = {"schema": _SCHEMA, "file": good.file, "step": good.step, "first_bad": first_bad}
    with Draft(folder / NAME) as draft:
        draft.write(0, (json.dumps(told, indent=2) + "\n").encode())
        draft.flush(0o644)
        draft.publish()
