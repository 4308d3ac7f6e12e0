"""Repairs in one line: what was done to which file, or would be, or why nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..edits import Change, Edit, NumberEdit, Removal, Restamp, Trim
from ..findings import Finding, Severity
from ..outcome import Outcome, Written
from .changes import layer_of
from .escape import display
from .words import many

__all__ = ["counts", "headline", "in_place", "in_short"]


def headline(outcome: Outcome) -> str:
    """Say what happened, or would: ``m.h5 -> m.repaired.h5: 2 layers repaired``."""
    file, written = display(outcome.file), outcome.written
    changes = outcome.plan.changes if outcome.plan is not None else ()
    if not changes or (written is not None and written.identical):
        return f"{file}: {_nothing(outcome, changed=bool(changes))}"
    deeds = list(_deeds(outcome, changes))
    if written is None:
        *others, last = [f"{verb} {what}" for verb, _, what in deeds]
        planned = f"{', '.join(others)} and {last}" if others else last
        return f"{file}: would {planned}; nothing is written"
    done = ", ".join(f"{what} {past}" for _, past, what in deeds)
    target = "" if in_place(outcome, written) else f" -> {display(written.path)}"
    return f"{file}{target}: {done}"


def _nothing(outcome: Outcome, *, changed: bool) -> str:
    """Say that nothing was done, and whether that is good news."""
    written, plan = outcome.written, outcome.plan
    left = outcome.remaining or (plan is not None and plan.refusals)
    if changed:
        text = "already as it would be repaired"
    elif not left:
        text = "nothing to repair"
    else:
        text = "nothing repaired" if written is not None else "nothing would be repaired"
    if outcome.remaining and not changed:
        text += f", {_remain(outcome.remaining)}"
    if written is None:
        return text
    if in_place(outcome, written):
        return f"{text}: it stays as it is"
    already = " already" if written.kept else ""
    return f"{text}: {display(written.path)} is an identical copy{already}"


def _deeds(outcome: Outcome, changes: Sequence[Change]) -> Iterator[tuple[str, str, str]]:
    """Sum the changes up: a verb, its past, and of what."""
    edits = [(n, c) for n, c in enumerate(changes) if isinstance(c, Edit)]
    if edits:
        table = outcome.before.table if outcome.before is not None else None
        tensors = dict.fromkeys(edit.tensor for _, edit in edits)
        layers = dict.fromkeys(filter(None, (layer_of(name, table) for name in tensors)))
        others = sum(not layer_of(name, table) for name in tensors)
        what = many(len(layers), "layer") if layers else many(others, "tensor")
        if layers and others:
            what += f" and {many(others, 'other tensor')}"
        yield "repair", "repaired", what
        changed = [_count(outcome, n, edit) for n, edit in edits]
        if min(changed) >= 0:
            yield "change", "changed", many(sum(changed), "value")
    numbers = sum(isinstance(c, NumberEdit) for c in changes)
    if numbers:
        yield "set", "set", many(numbers, "number")
    parts = sum(len(c.names) for c in changes if isinstance(c, Removal))
    if parts:
        yield "remove", "removed", many(parts, "part")
    if any(isinstance(c, Trim) for c in changes):
        yield "drop", "dropped", "surplus bytes"
    stamps = sum(isinstance(c, Restamp) for c in changes)
    if stamps:
        yield "recompute", "recomputed", many(stamps, "checksum")


def _count(outcome: Outcome, index: int, edit: Edit) -> int:
    """Elements of an edit; -1 where nobody counted."""
    if index in outcome.details:
        return outcome.details[index].count
    return -1 if edit.indices is None else edit.indices.size


def in_place(outcome: Outcome, written: Written) -> bool:
    """Whether the output took the place of the input."""
    return bool(written.backup) or written.path == outcome.file


def in_short(outcome: Outcome) -> Iterator[str]:
    """Say what a single line has room for behind the headline."""
    before, after = outcome.before, outcome.after
    if before is not None and before.verdict and after is not None and after.verdict:
        was, is_now = before.verdict.serve, after.verdict.serve
        yield f"serve {was}" if was == is_now else f"serve {was} -> {is_now}"
    if outcome.remaining and outcome.plan is not None and outcome.plan.changes:
        yield _remain(outcome.remaining)


def _remain(findings: Sequence[Finding]) -> str:
    return f"{counts(findings)} {'remains' if len(findings) == 1 else 'remain'}"


def counts(findings: Iterable[Finding]) -> str:
    """Count findings by severity, the worst first."""
    listed = [finding.severity for finding in findings]
    kinds = [(listed.count(s), s.name.lower()) for s in sorted(Severity, reverse=True)]
    return ", ".join(many(count, kind) for count, kind in kinds if count)
