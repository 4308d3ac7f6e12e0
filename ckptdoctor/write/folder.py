"""Sets of shards: a new folder, untouched files linked into it, renamed as a whole."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..edits import Edit, RepairPlan
from ..errors import UnsupportedError, UsageError, WriteError
from ..outcome import Written
from ..sources import FileSource
from ..tensors import TensorTable
from .draft import Draft, draft_name, flush_folder, hold_folder
from .fill import Note, copied, copy_whole, fill
from .target import Target
from .verify import Mark
from .windows import in_place

__all__ = ["FolderStage", "staged_folder"]


@contextmanager
def staged_folder(
    table: TensorTable, plan: RepairPlan, target: Target, note: Note
) -> Iterator[FolderStage]:
    """Write a set of shards into a new hidden folder; see `ckptdoctor.write.writer.staged`."""
    draft = target.path.with_name(draft_name(target.path))
    try:
        draft.mkdir()
    except OSError as error:
        message = f"the folder takes no new one: {error.strerror}"
        raise WriteError(
            message, where=str(target.path.parent), hint="-o writes elsewhere"
        ) from None
    held = hold_folder(draft)
    try:
        changed, size = _fill_folder(draft, table, plan, note)
        yield FolderStage(draft, target, table, changed, size)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if held is not None:
            os.close(held)


class FolderStage:
    """A complete folder that waits to take its target's place."""

    def __init__(
        self, draft: Path, target: Target, table: TensorTable, changed: int, size: int
    ) -> None:
        self._draft, self._target, self._table = draft, target, table
        self._changed, self._size = changed, size
        self.draft: TensorTable = table  # until it is read back
        self.moved = ""
        self.published = False

    @property
    def path(self) -> str:
        """The folder's index: what it is read by."""
        return str(self._draft / Path(self._table.files[0].name).name)

    def touched(self) -> None:
        """Nothing is known of a set: all of it is examined again."""

    def publish(self) -> Written:
        """Rename the folder; see `ckptdoctor.write.writer.Stage`."""
        target = self._target
        if self.draft is not self._table:
            self.draft.close()
        self._table.check_unchanged()
        kept = os.path.lexists(target.path)
        if kept and not _same_folders(self._draft, target.path):
            message = "exists already and holds something else; nothing was changed"
            raise UsageError(message, where=target.shown, hint="remove it, or name another with -o")
        if not kept:
            try:
                self._draft.rename(target.path)
            except OSError as error:
                message = f"could not be renamed: {error.strerror}; nothing was changed"
                raise WriteError(message, where=target.shown) from None
            self.published = True
            flush_folder(target.path.parent)
        return Written(
            path=target.shown,
            changed=self._changed,
            size=self._size,
            identical=not self._changed,
            kept=kept,
        )


def _fill_folder(draft: Path, table: TensorTable, plan: RepairPlan, note: Note) -> tuple[int, int]:
    """Make the shards with edits anew, link the rest; returns bytes changed, and in all."""
    for change in plan.changes:
        if not isinstance(change, Edit) or in_place(table[change.tensor]) is None:
            message = f"{change.title!r:.200} cannot be written to a sharded set"
            raise UnsupportedError(message, where=table.path, hint="repair the shard by itself")
    shards = {file: [e for e in plan.edits if in_place(table[e.tensor]) is file]
              for file in table.files if not file.temporary}  # fmt: skip
    home = Path(table.files[0].name).parent
    marks: list[Mark] = []
    size = 0
    for file, edits in shards.items():
        path = draft / Path(file.name).name
        size += file.size
        if edits:
            with Draft(path) as new:
                copied(new, file, note)
                marks += fill(new, file, table, tuple(edits), (), note)
                new.publish()
        elif file is table.files[0]:
            copy_whole(file, path)
        else:
            _link(file, path)
    for beside in _beside(home, {Path(file.name).name for file in table.files}):
        _copy_path(beside, draft / beside.name)
    flush_folder(draft)
    return sum(mark.changed for mark in marks), size


_SMALL = 1 << 26
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar", ".h5", ".hdf5", ".keras", ".npz",
    ".msgpack", ".onnx", ".gguf", ".orig", ".tmp", ".part", ".lock", ".log",
)  # fmt: skip


def _beside(home: Path, taken: set[str]) -> Iterator[Path]:
    """Small files that belong to a model: configuration, tokenizer, code; no other weights."""
    for path in sorted(home.iterdir()):
        if path.name in taken or path.name.startswith(".") or not path.is_file():
            continue
        if path.name.endswith(".index.json"):
            continue  # of another set of shards, which stays where it is
        if path.suffix.lower() not in _WEIGHTS and path.stat().st_size <= _SMALL:
            yield path


def _link(file: FileSource, path: Path) -> None:
    """Give a shard a second name in the new folder, or copy it."""
    try:
        os.link(os.path.realpath(file.name), path)
    except OSError:
        copy_whole(file, path)


def _copy_path(source: Path, path: Path) -> None:
    """Copy a small file: somebody may edit it in one of the folders and mean that one."""
    file = FileSource(source)
    try:
        copy_whole(file, path)
    finally:
        file.close()


def _same_folders(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    if not other.is_dir() or names != sorted(path.name for path in other.iterdir()):
        return False
    return not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])
