"""``last_good.json``: the newest checkpoint of a folder that a guard has found fit.

A plain file with a relative name in it: links do not survive object stores, archives and Windows.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import FormatError, UsageError, WriteError
from ..report.escape import display
from ..write.draft import Draft
from .drafts import PREVIOUS

__all__ = ["LOGGER", "NAME", "Good", "last_good", "read_pointer", "write_pointer"]

LOGGER = logging.getLogger("ckptdoctor")
"""Where guards speak; without any logging set up, Python prints warnings to stderr."""
NAME = "last_good.json"
_SCHEMA = 1
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Good:
    """A checkpoint that was found fit: its name below the folder, and after which step it was saved.

    The step is None where whoever saved it did not say.
    """

    file: str
    step: int | None

    def path(self, folder: Path) -> Path | None:
        """Where it is now; None if it is gone."""
        named = folder / self.file
        aside = named.with_name(f"{named.name}{PREVIOUS}")  # a process died between two renames
        with suppress(OSError):  # a name that no disk takes, a folder that nobody may look into
            return next((path for path in (named, aside) if path.exists()), None)
        return None


def last_good(folder: str | os.PathLike[str]) -> str | None:
    """Path of the newest checkpoint in a folder that a guard has found fit; None before the first.

    Parameters
    ----------
    folder
        Where the callback's checkpoints are; for `guarded_save`, the folder of its path.

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
    path = good.path(Path(folder))
    if path is None:
        message = f"names {good.file!r:.200}, which is gone"
        hint = "resume from another checkpoint there, or delete that file"
        raise UsageError(message, where=str(Path(folder, NAME)), hint=hint)
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
    number = step is None or type(step) is int
    if not number or not isinstance(name, str) or not _below(name):
        message = "expected the name of a checkpoint below it and a step, as a guard writes them"
        raise FormatError(message, where=str(path), hint="delete it, and look at what is there")
    return Good(name, step)


def _below(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def write_pointer(folder: Path, good: Good, first_bad: Any = None) -> None:
    """Say which checkpoint is the newest one that is fit, and which step was the first bad one.

    Where that cannot be written, the old one is as it was, and training goes on.
    """
    told = {"schema": _SCHEMA, "file": good.file, "step": good.step, "first_bad": first_bad}
    try:
        with Draft(folder / NAME) as draft:
            draft.write(0, (json.dumps(told, indent=2) + "\n").encode())
            draft.flush(0o644)
            draft.publish()
    except WriteError as error:
        text = f"{folder / NAME} may not name {good.file}, the newest that is fit: {error.message}"
        LOGGER.warning("%s", display(text))
