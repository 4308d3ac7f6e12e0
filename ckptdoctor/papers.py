"""What a repair puts on paper: the plan before, the receipt after; and what a plan is made for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from .edits import Change, Edit, NumberEdit, Removal, RepairPlan
from .errors import UsageError
from .outcome import Before
from .plans import number_fields, plan_pieces, read_plan
from .receipt import Identity, Replaced, Rewritten, receipt_pieces
from .sources import FileSource
from .tensors import Array, TensorTable
from .write.draft import Draft, remove_leftovers
from .write.fill import windows
from .write.restructure import unwritable
from .write.target import Target
from .write.verify import elements
from .write.writer import Stage

__all__ = ["check_paper", "drafted_receipt", "identity_of", "save_plan", "stored_plan"]

Note = Callable[[str, int, int], None]
_BLOCK = 1 << 20


def check_paper(file: str, *others: str | os.PathLike[str]) -> None:
    """Check that a plan or a receipt may be written there, before any work.

    Raises
    ------
    UsageError
        If it would replace one of the other files, or anything but an older plan or receipt, or
        lies in no folder.
    """
    path = Path(file)
    try:
        found = _status(path)
        if not path.name or not path.parent.is_dir():
            message = "expected the name of a file to write in a folder that is there"
            raise UsageError(message, where=file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be written: {reason}", where=file) from None
    if any(os.path.realpath(other) == os.path.realpath(file) for other in others):
        raise UsageError("would replace the checkpoint, the donor or the output", where=file)
    if found is not None and not (stat.S_ISREG(found.st_mode) and _is_paper(path)):
        message = "exists already and is neither a plan nor a receipt"
        raise UsageError(message, where=file, hint="name another file")


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_paper(path: Path) -> bool:
    """Whether a file starts as plans and receipts do, or is empty, as ``mktemp`` makes them."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return False
    return not head or (head.startswith(b'{"schema": ') and b'"kind": "repair-' in head)


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
    for change in plan.changes:
        for name in _strange(change, table):
            raise UsageError(f"the plan names {name!r:.200}, which is not there", where=file)
        wrong = _misfit(change, table) or unwritable(table, change)
        if wrong:
            raise UsageError(f"{change.title}: {wrong}"[:500], where=file)
    return plan


def _strange(change: Change, table: TensorTable) -> Iterator[str]:
    """Yield what a change names and the checkpoint lacks."""
    if isinstance(change, Edit) and change.tensor not in table.infos:
        yield change.tensor
    elif isinstance(change, NumberEdit) and change.name not in table.scalars:
        yield change.name
    elif isinstance(change, Removal) and table.format.startswith(("keras", "hdf5")):
        # HDF5's writer leaves out what it meets, and misses nothing; the others say so themselves
        known = {info.path[0] for info in table.values()}
        yield from (name for name in change.names if name not in known)


def _misfit(change: Change, table: TensorTable) -> str:
    """Say what of a change does not fit what stands in its place; empty where all does."""
    if isinstance(change, NumberEdit):
        said, found = number_fields(change.before), number_fields(table.scalars[change.name])
        if said == found:
            return ""
        return f"the plan says that {change.name!r:.200} is {said!s:.60}, found {found!s:.60}"
    if not isinstance(change, Edit):
        return ""
    info, after = table[change.tensor], change.after()
    count = info.size if change.indices is None else change.indices.size
    beyond = change.indices is not None and (change.indices >= info.size).any()
    if after.size == count and after.dtype == info.kind.numpy and not beyond:
        return ""
    message = f"expected {count:,} values of {info.dtype} for {change.tensor!r:.200}"
    return f"{message}, found {after.size:,} of {after.dtype}"


def save_plan(
    file: str, plan: RepairPlan, table: TensorTable, details: dict[int, Before], note: Note
) -> None:
    """Write a plan with the identity of the file that it is for.

    Raises
    ------
    ChangedError
        If the file changed meanwhile.
    """
    plan = replace(plan, made_for=dict(plan.made_for) or identity_of(table, note))
    pieces = plan_pieces(plan, table.path, table.format, details=details)
    with _drafted(file, pieces, table) as draft:
        table.check_unchanged()  # else the identity may be that of what nobody has examined
        draft.publish()


@contextlib.contextmanager
def drafted_receipt(
    file: str, table: TensorTable, plan: RepairPlan, stage: Stage, target: Target, note: Note
) -> Iterator[Draft]:
    """Write down what a stage replaces, so that it can be put back by hand.

    The receipt waits as a draft until the stage is published: where it cannot be written, nothing
    is replaced.
    """
    pieces = receipt_pieces(plan, _rewritten(table, plan, stage, target, note))
    with _drafted(file, pieces, table) as made:
        yield made


def _rewritten(
    table: TensorTable, plan: RepairPlan, stage: Stage, target: Target, note: Note
) -> Iterator[Rewritten]:
    folder = target.folder
    edits = tuple(plan.edits)
    for source in table.files:
        if source.temporary:
            continue
        name = Path(source.name).name
        output = str(Path(target.shown, name)) if folder else target.shown
        new = FileSource(Path(stage.path).with_name(name) if folder else stage.path)
        try:
            after = Identity(path=output, size=new.size, sha256=_sha256(new, note))
        finally:
            new.close()
        before = Identity(path=source.name, size=source.size, sha256=_sha256(source, note))
        if before.sha256 == after.sha256 and folder:
            continue
        if stage.moved:
            values = (_replaced(table, edit) for edit in edits)
            yield Rewritten(input=before, output=after, values=values, moved=stage.moved)
        else:
            cut = _cut(source, after.size)
            runs = windows(source, table, edits, plan.changes)
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


@contextlib.contextmanager
def _drafted(file: str, pieces: Iterable[str], table: TensorTable) -> Iterator[Draft]:
    """Write a text that may be read by those who may read the checkpoint: it holds its values."""
    path = Path(os.path.realpath(file))
    remove_leftovers(path)
    with Draft(path) as draft:
        at = 0
        for piece in pieces:
            data = piece.encode()
            draft.write(at, data)
            at += len(data)
        draft.flush(os.fstat(table.files[0].fd).st_mode & 0o666)
        yield draft
