"""What a repair puts on paper: the plan before, the receipt after; and what a plan is made for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from .edits import Edit, RepairPlan
from .errors import UsageError
from .outcome import Before, Outcome
from .plans import plan_pieces, read_plan
from .receipt import Identity, Replaced, Rewritten, receipt_pieces
from .sources import FileSource
from .tensors import Array, TensorTable
from .write.draft import Draft
from .write.fill import windows
from .write.verify import elements

__all__ = ["check_paper", "identity_of", "save_plan", "save_receipt", "stored_plan"]

Note = Callable[[str, int, int], None]
_BLOCK = 1 << 20


def check_paper(file: str, *others: str | None) -> None:
    """Check that a plan or a receipt may be written there, before any work.

    Raises
    ------
    UsageError
        If it would replace one of the other files, or lies in no folder.
    """
    path = Path(file)
    if not path.name or path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            "expected the name of a file to write in a folder that is there", where=file
        )
    for other in others:
        if other and os.path.realpath(other) == os.path.realpath(file):
            raise UsageError("would replace the checkpoint, the donor or the output", where=file)


def identity_of(table: TensorTable, note: Note) -> dict[str, int | str]:
    """Size and SHA-256 of a checkpoint's content; of a set, of the hashes of its files in order."""
    files = [file for file in table.files if not file.temporary]
    hashes = [_sha256(file, note) for file in files]
    together = (
        hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    )
    return {"size": sum(file.size for file in files), "sha256": together}


def stored_plan(file: str, table: TensorTable, note: Note) -> RepairPlan:
    """Read a plan and check that it was made for this checkpoint.

    Raises
    ------
    UsageError
        If it was not, or is no plan.
    """
    from .plans import check_made_for  # noqa: PLC0415

    plan = read_plan(file)
    found = identity_of(table, note)
    check_made_for(plan, int(found["size"]), str(found["sha256"]), where=file)
    for edit in plan.edits:
        info = table.infos.get(edit.tensor)
        if info is None:
            raise UsageError(f"the plan names {edit.tensor!r:.200}, which is not there", where=file)
        count = info.size if edit.indices is None else edit.indices.size
        high = -1 if edit.indices is None or not edit.indices.size else int(edit.indices[-1])
        after = edit.after()
        if after.size != count or high >= info.size or after.dtype != info.kind.numpy:
            message = f"expected {count:,} values of {info.dtype} for {edit.tensor!r:.200}"
            raise UsageError(f"{message}, found {after.size:,} of {after.dtype}", where=file)
    return plan


def save_plan(
    file: str, plan: RepairPlan, table: TensorTable, details: dict[int, Before], note: Note
) -> None:
    """Write a plan with the identity of the file that it is for."""
    plan = replace(plan, made_for=dict(plan.made_for) or identity_of(table, note))
    _save(file, plan_pieces(plan, table.path, table.format, details=details))


def save_receipt(file: str, outcome: Outcome, table: TensorTable, note: Note) -> None:
    """Write what was replaced, so that it can be put back by hand."""
    plan = outcome.plan
    if plan is None or outcome.written is None:
        return
    _save(file, receipt_pieces(plan, _rewritten(outcome, table, plan, note)))


def _rewritten(
    outcome: Outcome, table: TensorTable, plan: RepairPlan, note: Note
) -> Iterator[Rewritten]:
    written = outcome.written
    assert written is not None
    folder = Path(written.path).is_dir()
    edits = tuple(plan.edits)
    for source in table.files:
        if source.temporary:
            continue
        output = str(Path(written.path, Path(source.name).name)) if folder else written.path
        new = FileSource(output)
        try:
            after = Identity(path=output, size=new.size, sha256=_sha256(new, note))
        finally:
            new.close()
        before = Identity(path=source.name, size=source.size, sha256=_sha256(source, note))
        if before.sha256 == after.sha256 and folder:
            continue
        if written.moved:
            values = (_replaced(table, edit) for edit in edits)
            yield Rewritten(input=before, output=after, values=values, moved=written.moved)
        else:
            cut = _cut(source, after.size)
            runs = (tuple(window) for window in windows(source, table, edits, plan.changes))
            yield Rewritten(input=before, output=after, runs=_chain(runs, cut))


def _chain(
    runs: Iterable[tuple[int, bytes, bytes]], cut: Iterable[tuple[int, bytes, bytes]]
) -> Iterator[tuple[int, bytes, bytes]]:
    yield from runs
    yield from cut


def _cut(source: FileSource, size: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Bytes behind the end of the output, a block at a time."""
    for at in range(size, source.size, _BLOCK):
        yield at, source.pread(at, min(_BLOCK, source.size - at)), b""


def _replaced(table: TensorTable, edit: Edit) -> Replaced:
    old: Array = elements(table, edit.tensor, edit.indices)
    return Replaced(tensor=edit.tensor, indices=edit.indices, old=old, new=edit.after())


def _sha256(file: FileSource, note: Note) -> str:
    digest = hashlib.sha256()
    for at in range(0, file.size, _BLOCK):
        digest.update(file.pread(at, min(_BLOCK, file.size - at)))
        note("hashing", at, file.size)
    return digest.hexdigest()


def _save(file: str, pieces: Iterable[str]) -> None:
    """Write a text whole or not at all."""
    with Draft(Path(os.path.realpath(file))) as draft:
        at = 0
        for piece in pieces:
            data = piece.encode()
            draft.write(at, data)
            at += len(data)
        draft.flush(0o644)
        draft.publish()
