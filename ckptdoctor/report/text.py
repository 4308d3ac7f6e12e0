"""Reports as text for people: verdicts, diagnosis, findings, tensors, and what to type next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..findings import Severity
from ..results import Report, Summary, View
from .diagnosis import diagnoses
from .escape import command, display, shorten
from .findings import findings, grouped, place, said
from .rows import chosen_rows, folded, row_of
from .table import LONGEST, render_table
from .words import COLORS, INDENT, human_bytes, many, paint, word, wrap

__all__ = ["human_bytes", "render"]

LIVE = ("torch-module", "keras-live")
"""Formats of models in memory: no command reads them."""


def render(reports: Iterable[Report], view: View) -> Iterator[str]:
    """Yield the text in pieces, one report after the other, with a count at the end of several.

    A path asked for what it does not have is only counted: that is no news about the file.
    """
    outcomes: list[str] = []
    shown = False
    for report in reports:
        usage = report.error is not None and report.error.usage
        lines = [] if usage else list((_quiet if view.quiet else _report)(report, view))
        if lines:
            gap = "\n" if shown and not view.quiet else ""
            yield gap + "\n".join(lines) + "\n"
            shown = True
        outcomes.append(_outcome(report, view))
    if len(outcomes) > 1 and not view.quiet:
        kinds = ("clean", "with findings", "not checked")
        counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in kinds if kind in outcomes)
        yield f"\n{len(outcomes)} paths: {counts}\n"


def _outcome(report: Report, view: View) -> str:
    if report.error is not None:
        return "not checked"
    return "with findings" if report.fails(view.fail_on) else "clean"


def _report(report: Report, view: View) -> Iterator[str]:
    yield paint(display(report.file), "1", view)
    if report.error is not None:
        yield from _refusal(report, view)
        return
    assert report.summary is not None  # together with the table, whenever there is no error
    assert report.table is not None
    yield from wrap(_headline(report, report.summary), view, INDENT)
    if len(report.summary.parts) > 1:
        yield from wrap(_parts(report.summary), view, INDENT)
    yield ""
    yield from _verdicts(report, view)
    if report.diagnoses or report.findings:
        yield ""
    yield from diagnoses(report, view)
    if report.findings:
        yield from findings(report, view)
    yield from _tensors(report, view)
    yield from _next(report, view)


def _refusal(report: Report, view: View) -> Iterator[str]:
    error = report.error
    assert error is not None
    yield INDENT + paint("could not be checked", COLORS["error"], view)
    kind = f"{error.type}: " if error.bug else ""
    where = f" (at {place(error.where, report.file)})" if error.where != report.file else ""
    yield from wrap(kind + display(error.message) + where, view, INDENT)
    if error.hint:
        yield from wrap(f"Next: {display(error.hint)}", view, INDENT)
    if report.findings:
        yield ""
        yield f"{INDENT}Seen before giving up:"
        yield from findings(report, view)


def _headline(report: Report, summary: Summary) -> str:
    assert report.table is not None
    meta = report.table.metadata
    framework = " ".join(
        shorten(display(meta[key]), 40)
        for key in ("framework", "framework_version")
        if meta.get(key)
    )
    kind = f"{report.format} ({framework})" if framework else report.format
    names = list(summary.dtypes)
    dtypes = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"{kind}: {many(summary.tensors, 'tensor')}, {many(summary.parameters, 'parameter')}, "
        f"{human_bytes(summary.nbytes)}" + (f", {dtypes}" if dtypes else "")
    )


def _parts(summary: Summary) -> str:
    return "; ".join(
        f"{part.role}: {many(part.tensors, 'tensor')}, {human_bytes(part.nbytes)}"
        for part in summary.parts
    )


def _verdicts(report: Report, view: View) -> Iterator[str]:
    from ..diagnose import counts_for  # noqa: PLC0415  (it imports the rules; a report needs none)

    verdict, limits = report.verdict, _limits(report)
    assert verdict is not None
    nothing = "nothing found in what was judged" if limits else "nothing found against it"
    for purpose, fitness in (("serve", verdict.serve), ("resume", verdict.resume)):
        told = [f for f in report.findings if counts_for(f, purpose, report.weights)]
        errors = sum(f.severity is Severity.ERROR for f in told)
        warnings = sum(f.severity is Severity.WARNING for f in told)
        counts = [many(n, kind) for n, kind in ((errors, "error"), (warnings, "warning")) if n]
        reason = " and ".join(counts) or nothing
        judged = f" ({report.weights} weights judged)" if purpose == "serve" else ""
        yield from _verdict(purpose, fitness, reason + judged, view)
    reason = "nothing found against opening it"
    if verdict.load == "unsafe":
        reason = "loading it the usual way can run code, hang or exhaust memory"
        if not any(f.unsafe for f in report.findings):
            reason += "; the finding that says so is left out"
    yield from _verdict("load", verdict.load, reason, view)
    if limits:
        yield from wrap(f"judged  {limits}", view, INDENT, " " * 10)


def _verdict(purpose: str, fitness: str, reason: str, view: View) -> Iterator[str]:
    first, *rest = wrap(reason, view, " " * 19)
    yield f"{INDENT}{purpose:8}{word(fitness, view, 9)}{first.strip()}"
    yield from rest


def _limits(report: Report) -> str:
    """Tell what the verdicts leave out because the caller asked for less."""
    wishes, limits = report.wishes, []
    if report.judged is not None and report.table is not None:
        limits.append(f"{len(report.judged):,} of {many(len(report.table), 'tensor')}")
    if wishes.select:
        limits.append(f"only {', '.join(wishes.select)}")
    if wishes.ignore:
        limits.append(f"without {', '.join(wishes.ignore)}")
    if wishes.cast_to:
        limits.append(f"as if cast to {wishes.cast_to}")
    if wishes.settings:
        limits.append(f"with the settings of {wishes.settings}")
    return display("; ".join(limits))


def _tensors(report: Report, view: View) -> Iterator[str]:
    mode = view.tensors or "suspect"
    if mode == "none":
        return
    infos = chosen_rows(report, view, "suspect")
    stats = report.stats
    assert stats is not None
    if not infos and mode == "suspect" and any(f.severity > Severity.NOTE for f in report.findings):
        return  # what was found is about the file or a number: no tensor to show
    yield ""
    if not infos:
        yield f"{INDENT}no suspect tensors" if mode == "suspect" else f"{INDENT}no tensors"
        return
    if mode == "all":
        rows = [row_of(info, stats[info.name]) for info in infos]
    else:
        rows = folded(infos, stats)
    shown = rows if mode == "all" else rows[:LONGEST]
    yield from (INDENT + line for line in render_table(shown, view.width - len(INDENT)))
    rest = sum(row.count for row in rows[len(shown) :])
    if rest:
        yield f"{INDENT}... and {rest:,} more suspect tensors"


def _next(report: Report, view: View) -> Iterator[str]:
    """Command that shows more, if there is more."""
    assert report.summary is not None
    if view.tensors == "all" or not report.summary.tensors or report.format in LIVE:
        return
    yield ""
    again = command("ckptdoctor", "inspect", file=report.file, encoding=view.encoding)
    yield f"{INDENT}Every tensor: {again} --tensors all"


def _quiet(report: Report, view: View) -> Iterator[str]:
    """One line for each kind of finding that fails, nothing for a clean file."""
    file = display(report.file)
    if report.error is not None:
        hint = f"; {report.error.hint}" if report.error.hint else ""
        yield f"{file}: could not be checked: {display(report.error.message + hint)}"
    if view.fail_on is None:
        return
    counting = [f for f, counts in zip(report.findings, report.relevant, strict=True) if counts]
    for group in grouped(f for f in counting if f.severity >= view.fail_on):
        first = group[0]
        rest = len(group) - 1
        amount = many(rest, "more tensor") if first.tensor else f"{rest:,} more like it"
        more = f" (and {amount})" if rest else ""
        severity = word(first.severity.name.lower(), view)
        yield f"{file}: {severity} {first.code} {first.name}: {said(first)}{more}"
