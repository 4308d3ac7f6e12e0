"""The order of a write: draft, windows, flush, read back; the caller publishes what it has judged."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from ..edits import NumberEdit, Removal, RepairPlan
from ..errors import ChangedError, CkptDoctorError, InternalError, WriteError
from ..formats import open_path
from ..formats.base import ReadOptions
from ..outcome import Written
from ..tensors import TensorTable
from .draft import Draft, remove_leftovers
from .fill import Note, copied, fill
from .folder import staged_folder
from .numbers import check_numbers
from .publish import publish
from .restructure import Moving, moving, restructure
from .target import Target
from .touched import Touched, touched
from .verify import Mark, check_elements, check_same_tables, check_untouched
from .windows import aliases

__all__ = ["Stage", "begun", "reading_back", "staged"]


class Stage(Protocol):
    """A complete, verified draft that waits to take its target's place."""

    draft: TensorTable
    """The draft as it was read back, open until it is published."""

    @property
    def path(self) -> str:
        """Where the draft lies."""

    @property
    def moved(self) -> str:
        """Why bytes moved; empty where every other byte stayed in its place."""

    @property
    def published(self) -> bool:
        """Whether it took its target's place, even if `publish` raised behind that."""

    def touched(self) -> Touched | None:
        """Find what is not, byte for byte, the input's; None where that is not known."""

    def publish(self) -> Written:
        """Put the draft in its place.

        Raises
        ------
        UsageError
            If something else stands there.
        WriteError
            If it cannot be put there.
        ChangedError
            If the input changed meanwhile.
        """


@contextmanager
def begun(table: TensorTable, target: Target | None, note: Note) -> Iterator[Draft | None]:
    """Copy the input beside its target, before anything is known of it.

    The disk takes the copy while the input is examined: on 2 GiB half a second of three.  A set
    is linked instead, once it is known which shards change.

    Raises
    ------
    WriteError
        If the file system takes no more.
    """
    if target is None or target.folder:
        yield None
        return
    remove_leftovers(target.path)
    with Draft(target.path) as draft:
        copied(draft, table.files[0], note)
        yield draft


@contextmanager
def staged(
    draft: Draft | None,
    table: TensorTable,
    plan: RepairPlan,
    target: Target,
    note: Note,
    options: ReadOptions,
) -> Iterator[Stage]:
    """Write a plan beside its target and read it back; what is not published leaves no trace.

    Parameters
    ----------
    draft
        What `begun` gave.
    table
        The open input.
    plan
        Its changes.
    target
        Where it will go.
    note
        Told about progress.
    options
        How the draft is read back.

    Raises
    ------
    UnsupportedError
        If a change cannot be written to this format.
    WriteError
        If the file system takes no more, or gives back something else.
    """
    if draft is None:
        remove_leftovers(target.path)
        with (
            staged_folder(table, plan, target, note) as folder,
            check_draft(table, plan, folder.path, options) as folder.draft,
        ):
            yield folder
        return
    with ExitStack() as stack:
        marks = fill(draft, table.files[0], table, tuple(plan.edits), plan.changes, note)
        parts = moving(table, plan)
        if parts:
            draft = _moved(stack, draft, table, plan, parts, options)
        with reading_back(target):
            again = stack.enter_context(check_draft(table, plan, str(draft.path), options))
        yield _FileStage(draft, table, target, marks, parts.why, again)


def _moved(
    stack: ExitStack,
    first: Draft,
    table: TensorTable,
    plan: RepairPlan,
    parts: Moving,
    options: ReadOptions,
) -> Draft:
    """Write the changes that move bytes to a second draft; the first one goes."""
    second = stack.enter_context(Draft(first.target))
    try:
        with open_path(first.path, options) as between:
            restructure(between, parts, second.path, options)
    except OSError as error:
        raise second.failed("written", error) from None
    first.discard()
    second.flush(stat.S_IMODE(os.fstat(table.files[0].fd).st_mode))
    with open_path(second.path, options) as again:
        gone = removed(table, plan)
        check_same_tables(table, again, gone)
        edited = {edit.tensor for edit in plan.edits}
        tied = {other for name in edited for other in aliases(table, table[name])}
        check_untouched(table, again, edited | tied | set(gone))
    return second


@contextmanager
def reading_back(target: Target) -> Iterator[None]:
    """Have what is wrong with a draft tell the target's name: the draft's means nothing to anybody."""
    try:
        yield
    except (WriteError, ChangedError, InternalError):
        raise
    except CkptDoctorError as error:
        message = f"the written file cannot be read back: {error.message}; nothing was changed"
        raise WriteError(message, where=target.shown) from None


class _FileStage:
    def __init__(
        self,
        draft: Draft,
        table: TensorTable,
        target: Target,
        marks: list[Mark],
        moved: str,
        again: TensorTable,
    ) -> None:
        self._draft, self._table, self._target = draft, table, target
        self._marks, self._moved, self.draft = marks, moved, again

    @property
    def path(self) -> str:
        return str(self._draft.path)

    @property
    def moved(self) -> str:
        return self._moved

    @property
    def published(self) -> bool:
        return self._draft.published

    def touched(self) -> Touched | None:
        trimmed = os.fstat(self._draft.fd).st_size != self._table.files[0].size
        return None if self._moved or trimmed else touched(self.draft, self._marks)

    def publish(self) -> Written:
        self.draft.close()
        size = os.fstat(self._draft.fd).st_size
        changed = sum(mark.changed for mark in self._marks)
        same = not changed and not self._moved and size == self._table.files[0].size
        written = Written(
            path=self._target.shown,
            changed=-1 if self._moved else changed,
            size=size,
            moved=self._moved,
            compared=len(self.draft) if self._moved else 0,
            identical=same,
        )
        return publish(self._draft, self._target, self._table, written)


def check_draft(
    table: TensorTable, plan: RepairPlan, path: str, options: ReadOptions
) -> TensorTable:
    """Read a draft through its adapter: the same tensors, the edited elements; returns it open."""
    again = open_path(path, options)
    try:
        check_same_tables(table, again, removed(table, plan))
        check_elements(again, plan.edits)
        check_numbers(table, again, [c for c in plan.changes if isinstance(c, NumberEdit)])
    except BaseException:
        again.close()
        raise
    return again


def removed(table: TensorTable, plan: RepairPlan) -> tuple[str, ...]:
    """Names of the tensors that a plan leaves out."""
    gone = {name for c in plan.changes if isinstance(c, Removal) for name in c.names}
    return tuple(name for name, info in table.infos.items() if info.path[0] in gone)
