"""Where a repair goes, and what stands in its way: decided before any work is done."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..errors import CkptDoctorError, UsageError, WriteError
from ..sources import FileSource

__all__ = ["Target", "choose", "default_output", "same_bytes"]

_SUFFIXES = (".weights.h5", ".pth.tar", ".pt.tar", ".torchscript.pt", ".safetensors.index.json")
"""Endings that loaders or their users know as one."""
_SEPARATORS = (os.sep, os.altsep)
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A place for the output that nothing stands in the way of.

    Parameters
    ----------
    path
        Where the output goes; a symbolic link is resolved.
    shown
        The same as the caller wrote it.
    exists
        Whether something is there that may not be replaced: only the same bytes will do.
    fresh
        Whether nothing was there: what appears meanwhile is not replaced either.
    replaces
        Whether it takes the input's place.
    backup
        Name under which the input is kept then; None for nowhere.
    taken
        Whether something else has that name: as long as there is nothing to change, as after a
        run that was killed behind its rename, it does not matter.
    folder
        Whether the output is a folder: a sharded set.
    """

    path: Path
    shown: str
    exists: bool = False
    fresh: bool = False
    replaces: bool = False
    backup: Path | None = None
    taken: bool = False
    folder: bool = False


def default_output(path: str, *, folder: bool = False) -> str:
    """``STEM.repaired.EXT`` beside the input; for a set of shards a folder beside theirs.

    Examples
    --------
    >>> default_output("run/model.weights.h5"), default_output("last.ckpt"), default_output("model")
    ('run/model.repaired.weights.h5', 'last.repaired.ckpt', 'model.repaired')
    >>> default_output("llama/model.safetensors.index.json", folder=True)
    'llama.repaired'
    """
    where = Path(path)
    if folder:
        base = where if where.is_dir() else where.parent
        if base.name in ("", ".."):
            base = base.resolve()
        return str(base.parent / f"{base.name or 'checkpoint'}.repaired")
    name = where.name
    suffix = next((s for s in _SUFFIXES if name.lower().endswith(s)), where.suffix)
    stem = name[: len(name) - len(suffix)]
    return str(where.with_name(f"{stem}.repaired{name[len(stem) :]}"))


def choose(
    path: str,
    inputs: tuple[FileSource, ...],
    output: str | None,
    *,
    in_place: bool = False,
    backup: bool = True,
    force: bool = False,
    folder: bool = False,
) -> Target:
    """Decide where the output goes.

    Parameters
    ----------
    path
        The input as the caller wrote it.
    inputs
        Its open files.
    folder
        Whether it is a set of shards.

    Raises
    ------
    UsageError
        If the output is the input, exists already, is no regular file, or may not be replaced.
    WriteError
        If its folder takes no new file.
    """
    if in_place:
        return _in_place(path, inputs, output, backup=backup, folder=folder)
    shown = default_output(path, folder=folder) if output is None else output
    target = Path(shown)
    if not target.name or target.name == ".." or (shown[-1] in _SEPARATORS and not folder):
        raise UsageError("expected the name of a file to write", where=shown or "''")
    linked = os.path.islink(target)  # noqa: PTH114  (which no name can upset)
    if linked and not force:
        hint = "--force writes to what it points to"
        raise UsageError(f"is a link to {str(target.readlink())!r:.200}", where=shown, hint=hint)
    real = Path(os.path.realpath(target)) if linked else target
    if linked:
        _check_cache(real, shown)
    found = _status(real, shown)
    if found is not None:
        _check_existing(found, shown, inputs, folder=folder)
    _check_folder(real, shown)
    keep = found is not None and (folder or not force)
    return Target(path=real, shown=shown, exists=keep, fresh=found is None, folder=folder)


def _in_place(
    path: str, inputs: tuple[FileSource, ...], output: str | None, *, backup: bool, folder: bool
) -> Target:
    if output is not None:
        raise UsageError("expected either -o or --in-place, found both")
    if folder:
        hint = "-o FOLDER writes a new set"
        raise UsageError("a sharded set is not repaired in place", where=path, hint=hint)
    real = Path(os.path.realpath(inputs[0].name))
    _check_cache(real, path)
    kept = real.with_name(f"{real.name}.orig") if backup else None
    # A link would lead to the new file as soon as that has the old one's name.
    taken = (
        kept is not None
        and os.path.lexists(kept)
        and (kept.is_symlink() or not same_bytes(inputs[0], kept))
    )
    _check_folder(real, path)
    return Target(path=real, shown=path, replaces=True, backup=kept, taken=taken)


def _check_cache(real: Path, shown: str) -> None:
    if real.parent.name == "blobs" and (real.parent.parent / "snapshots").is_dir():
        message = "lies in a Hugging Face cache, where other models link to it"
        raise UsageError(message, where=shown, hint="-o FILE writes a copy")


def _status(real: Path, shown: str) -> os.stat_result | None:
    try:
        return real.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be written: {reason}", where=shown) from None


def _check_existing(
    found: os.stat_result, shown: str, inputs: tuple[FileSource, ...], *, folder: bool
) -> None:
    for file in inputs:
        if (found.st_dev, found.st_ino) == (file.identity.device, file.identity.inode):
            hint = "--in-place replaces it, and keeps the original"
            raise UsageError("is the input itself", where=shown, hint=hint)
    if stat.S_ISDIR(found.st_mode) and not folder:
        raise UsageError("is a folder", where=shown, hint="name a file in it")
    if folder and not stat.S_ISDIR(found.st_mode):
        raise UsageError("is a file: a sharded set is written as a folder", where=shown)
    if not folder and not stat.S_ISREG(found.st_mode):
        raise UsageError("is no regular file", where=shown)


def _check_folder(real: Path, shown: str) -> None:
    parent = real.parent
    if not parent.is_dir():
        raise UsageError(f"no folder {str(parent)!r:.200}", where=shown)
    if not os.access(parent, os.W_OK | os.X_OK):
        message = f"the folder {str(parent)!r:.200} is read-only; nothing was changed"
        raise WriteError(message, where=shown, hint="-o writes elsewhere")


def same_bytes(one: FileSource, other: Path) -> bool:
    """Whether a file holds the same bytes as an open one."""
    try:
        second = FileSource(other)
    except CkptDoctorError:  # what cannot be read is not the same
        return False
    try:
        if second.size != one.size:
            return False
        return all(
            one.pread(at, min(_BLOCK, one.size - at))
            == second.pread(at, min(_BLOCK, one.size - at))
            for at in range(0, one.size, _BLOCK)
        )
    finally:
        second.close()
