"""A repair from path to path: diagnose, plan, write, diagnose again, put in place."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .details import details_of
from .edits import Change, Edit, NumberEdit, Refusal, RepairPlan, Restamp
from .errors import CkptDoctorError, UsageError, WriteError
from .examination import examined, examined_again
from .findings import Finding, Severity
from .formats import open_path
from .formats.base import ReadOptions
from .measure.scan import Measured, Progress
from .outcome import Outcome, Written
from .papers import check_paper, drafted_receipt, save_plan, stored_plan
from .plan import make_plan, name_tensors
from .remedies import Orders, Patient
from .results import Report, Wishes
from .rules.base import Context
from .tensors import TensorTable
from .write.draft import Draft
from .write.restructure import unwritable
from .write.target import Target, choose
from .write.writer import Stage, begun, reading_back, staged

if TYPE_CHECKING:
    from .recalibration.bedside import Bedside

__all__ = ["Note", "Papers", "Placing", "treat"]

Note = Callable[[str, int, int], None]
"""Called with what is being done, bytes done, and bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """Files to read a plan from, and to write a plan and a receipt to; empty for none."""

    from_plan: str = ""
    write_plan: str = ""
    receipt: str = ""


_NO_PAPERS = Papers()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Where a repair goes; see `ckptdoctor.repair`."""

    output: str | None = None
    in_place: bool = False
    backup: bool = True
    force: bool = False
    dry_run: bool = False


def treat(
    path: str,
    orders: Orders,
    placing: Placing,
    wishes: Wishes,
    note: Note,
    *,
    papers: Papers = _NO_PAPERS,
) -> Outcome:
    """Repair one checkpoint.

    Parameters
    ----------
    path
        The input.
    orders, placing
        What to do, and where the result goes.
    wishes
        How it is judged.
    note
        Told about progress.
    papers
        Files of plans and receipts.

    Raises
    ------
    UsageError
        If the orders, the plan or the target do not fit the file.
    WriteError
        If the result cannot be written; the target is as before.
    CkptDoctorError
        If the input cannot be read.
    """
    _check_combination(orders, papers)
    options = ReadOptions(trust_hdf5=wishes.trust_hdf5)
    with open_path(path, options) as table:
        if Path(path).is_dir() and not table.format.endswith("-sharded"):
            path = table.path  # the checkpoint that was found in a folder
        target = _target(path, table, placing, orders.donor)
        _check_papers(papers, orders, target, table)
        with contextlib.ExitStack() as stack:
            draft = stack.enter_context(begun(table, target, note))
            measured, before = examined(path, table, wishes, _told(note, "examining"))
            outcome = Outcome(file=path, before=before)
            if papers.from_plan:
                plan = stored_plan(papers.from_plan, table, note)
            else:
                context = Context(table, measured.stats)
                patient = Patient(ctx=context, findings=before.findings, orders=orders)
                trust = wishes.trust_hdf5
                plan, outcome = _planned(patient, outcome, note, stack, trust_hdf5=trust)
            details = details_of(table, plan, before)
            outcome = replace(outcome, plan=plan, details=details)
            if papers.write_plan:
                save_plan(papers.write_plan, plan, table, details, note)
            table.check_unchanged()
            if target is None:
                return outcome
            work = _Work(table, plan, target, wishes, note, measured, before)
            return _written(draft, work, outcome, papers.receipt)


class _Work(NamedTuple):
    """What a write is about."""

    table: TensorTable
    plan: RepairPlan
    target: Target
    wishes: Wishes
    note: Note
    known: Measured
    before: Report


def _check_papers(
    papers: Papers, orders: Orders, target: Target | None, table: TensorTable
) -> None:
    """Check, before the work, that no paper takes the place of anything else."""
    others: list[str | os.PathLike[str]] = [table.path, *(file.name for file in table.files)]
    others += [orders.donor] if orders.donor else []
    if target is not None:
        others += [target.path, *([target.backup] if target.backup else [])]
    if papers.write_plan:
        check_paper(papers.write_plan, *others)
    if papers.receipt:
        check_paper(papers.receipt, *others, *filter(None, (papers.write_plan, papers.from_plan)))


def _check_combination(orders: Orders, papers: Papers) -> None:
    """Refuse options that would have no effect: who gives one means something by it."""
    alone = (
        (
            bool(papers.from_plan) and orders != Orders(),
            "--from-plan",
            "what the plan does not say",
        ),
        (
            orders.bn_scope != "channels" and not (orders.bn_reset or orders.recalibrate),
            "--bn-scope",
            "no --bn-reset or --recalibrate",
        ),
        (bool(orders.data) and not orders.recalibrate, "--data", "no --recalibrate"),
        (bool(orders.seed) and not orders.reinit, "--seed", "no --reinit"),
    )
    for wrong, option, other in alone:
        if wrong:
            raise UsageError(f"{option} has no effect with {other}", hint="leave one of them out")
    if not orders.recalibrate:
        return
    if not orders.data:
        hint = "--data FILE.npy, training inputs as the model takes them, 64 or more"
        raise UsageError("--recalibrate needs samples to run the model on", hint=hint)
    others = {
        "--donor": orders.donor,
        "--bn-reset": orders.bn_reset,
        "--bn-silence": orders.bn_silence,
        "--reinit": orders.reinit,
    }
    for option, given in others.items():
        if given:  # the model runs with the file's own weights
            hint = f"repair with {option} first, then --recalibrate the result"
            raise UsageError(f"--recalibrate and {option} do not go together", hint=hint)


def _target(path: str, table: TensorTable, placing: Placing, donor: str) -> Target | None:
    """Choose the target before the work, so that what stands in its way is said at once."""
    if placing.dry_run:
        return None
    sharded = table.format.endswith("-sharded")
    inputs = tuple(file for file in table.files if not file.temporary)
    target = choose(
        table.path if not sharded else path,
        inputs,
        placing.output,
        in_place=placing.in_place,
        backup=placing.backup,
        force=placing.force,
        folder=sharded,
    )
    if donor and not target.replaces:
        with contextlib.suppress(OSError, ValueError):
            if target.path.samefile(donor):
                raise UsageError("is the donor", where=target.shown, hint="name another file")
    return target


def _planned(
    patient: Patient,
    outcome: Outcome,
    note: Note,
    stack: contextlib.ExitStack,
    *,
    trust_hdf5: bool,
) -> tuple[RepairPlan, Outcome]:
    orders, table = patient.orders, patient.ctx.table
    if orders.donor:
        from .remedies.donor_file import Donor  # noqa: PLC0415  (only with a donor)

        donor = Donor.open(orders.donor, patient.ctx, trust_hdf5=trust_hdf5)
        patient.donor = stack.enter_context(donor)
        outcome = replace(outcome, donor=patient.donor.facts)
    if orders.recalibrate:
        patient.bedside = _bedside(table, orders, _told(note, "recalibrating"))
    patient.named = name_tensors(patient)
    with np.errstate(all="ignore"):
        plan = make_plan(patient)
    if patient.bedside is not None:
        outcome = replace(outcome, recalibration=tuple(patient.bedside.facts))
    return _feasible(table, plan), outcome


def _bedside(table: TensorTable, orders: Orders, note: Progress) -> Bedside:
    from .recalibration.bedside import Bedside, Order  # noqa: PLC0415  (only with a model)

    order = Order(model=orders.recalibrate, data=orders.data, trust=orders.trust, force=orders.few)
    return Bedside(order, table, note)


def _feasible(table: TensorTable, plan: RepairPlan) -> RepairPlan:
    """Take out what this file cannot hold; what was asked for by name is declined instead.

    Raises
    ------
    UsageError
        If a change that was asked for cannot be written.
    """
    kept: list[Change] = []
    refused = list(plan.refusals)
    for change in plan.changes:
        reason = unwritable(table, change)
        if not reason:
            kept.append(change)
            continue
        if plan.explicit:
            raise UsageError(f"{change.title}: {reason}"[:500], where=table.path)
        target = _subject(change)
        shown = target if isinstance(target, str) else change.title
        refused.append(
            Refusal(target=shown, reason=reason, remedy=change.remedy, codes=change.cures)
        )
    return replace(plan, changes=tuple(kept), refusals=tuple(refused))


def _written(draft: Draft | None, work: _Work, outcome: Outcome, receipt: str) -> Outcome:
    table, plan, target, wishes, note, known, before = work
    options = ReadOptions(trust_hdf5=wishes.trust_hdf5)
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(staged(draft, table, plan, target, note, options))
        with reading_back(target):
            measured, after = _examined_result(stage, work)
            _check_damage(_damage(table, known), _damage(stage.draft, measured), target)
        after = _under_its_name(after, stage.path, target)
        outcome = _weighed(outcome, before, after, plan, _root(table.path, target), target)
        paper = None
        if receipt:
            paper = stack.enter_context(drafted_receipt(receipt, table, plan, stage, target, note))
        written = _published(stage, paper)
    return replace(outcome, written=written)


def _examined_result(stage: Stage, work: _Work) -> tuple[Measured, Report]:
    """Judge a draft; what was compared with the input byte for byte is not measured twice.

    On 2 GiB that is a fifth of the time.
    """
    again, parts = stage.draft, stage.touched()
    if parts is None:
        told = _told(work.note, "examining the result")
        return examined(work.target.shown, again, work.wishes, told)
    name, origin = work.target.shown, work.table.path
    return examined_again(name, again, work.wishes, work.known, origin, *parts)


def _told(note: Note, what: str) -> Progress:
    return lambda done, total: note(what, done, total)


def _published(stage: Stage, paper: Draft | None) -> Written:
    """Put the result in its place, and then the receipt, without which it cannot be undone."""
    try:
        written = stage.publish()
    except CkptDoctorError:
        if paper is not None and stage.published:
            paper.publish()
        raise
    if paper is not None:
        try:
            paper.publish()
        except WriteError as error:
            message = f"the repaired file is written, its receipt is not: {error.message}"
            raise WriteError(message, where=str(paper.target)) from None
    return written


_DAMAGE = ("CK001", "CK004", "CK005")


def _damage(table: TensorTable, measured: Measured) -> Counter[str]:
    """Count what is wrong with the container, whatever the settings accept."""
    found = (*table.findings, *measured.findings)
    return Counter(
        finding.code
        for finding in found
        if finding.code in _DAMAGE and finding.severity >= Severity.ERROR
    )


def _check_damage(before: Counter[str], after: Counter[str], target: Target) -> None:
    """Decline a result with damage that the input does not have: writing went wrong."""
    new = after - before
    if new:
        message = f"the written file is damaged ({', '.join(sorted(new))}); nothing was changed"
        raise WriteError(message, where=target.shown, hint="check the disk, and report it")


def _root(path: str, target: Target) -> str:
    """Give what the places of findings start with: a file, or the folder of a set."""
    return str(Path(path).parent) if target.folder else path


def _under_its_name(after: Report, path: str, target: Target) -> Report:
    """Have findings name the output where they name its draft."""
    draft = _root(path, target)
    findings = tuple(
        replace(
            finding,
            where=finding.where.replace(draft, target.shown),
            message=finding.message.replace(draft, target.shown),
        )
        for finding in after.findings
    )
    return replace(after, findings=findings)


def _weighed(
    outcome: Outcome, before: Report, after: Report, plan: RepairPlan, root: str, target: Target
) -> Outcome:
    """Compare the findings before and after."""
    left = {_key(finding, target.shown) for finding in after.findings}
    meant = {(code, _subject(change)) for change in plan.changes for code in change.cures}
    treated = [f for f in before.findings if any((f.code, s) in meant for s in _subjects(f))]
    asked = {_subject(change) for change in plan.changes if change.remedy == "set"}
    return replace(
        outcome,
        after=after,
        cured=tuple(f for f in treated if _key(f, root) not in left),
        uncured=tuple(f for f in treated if _key(f, root) in left and not asked & {f.tensor}),
        remaining=tuple(f for f in after.findings if f.severity > Severity.NOTE),
    )


def _key(finding: Finding, root: str) -> tuple[str, str, bool]:
    """Tell a finding in two files: bytes may have moved, and places begin with the path."""
    place = finding.tensor or finding.where.removeprefix(root)
    return finding.code, place, "end" in finding.measured


_FILE = ("the file",)


def _subject(change: Change) -> str | tuple[str]:
    """Give what a change is about: a tensor, a number, a place, or the file."""
    if isinstance(change, Edit):
        return change.tensor
    if isinstance(change, NumberEdit):
        return change.name
    return change.where if isinstance(change, Restamp) else _FILE


def _subjects(finding: Finding) -> Iterator[str | tuple[str]]:
    """Yield what changes that cure a finding may be about."""
    yield from filter(None, (finding.tensor, finding.where))
    if not finding.tensor and "end" in finding.measured:
        yield _FILE
