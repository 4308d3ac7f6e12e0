"""Reports as text for people: summary, verdicts, findings, tensors, and what to type next."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from ..findings import Finding, Severity
from ..results import Report, Summary, View
from .escape import command, display, shorten
from .rows import chosen_rows, folded, hidden_layer, row_of
from .table import LONGEST, render_table

__all__ = ["human_bytes", "render"]

_NAMES_SHOWN = 3
"""Tensors named in a line of findings; the table below it lists the rest."""
_NAME_LIMIT = 100
_MESSAGE_LIMIT = 600
"""Characters: a name or a message may be as long as its file, a screen is not."""
_NOTES_SHOWN = 5
"""Lines of notes; the rest are counted."""
_COLORS = {
    "error": "31;1", "unfit": "31;1", "unsafe": "31;1", "warning": "33;1", "suspect": "33;1",
    "note": "36", "fit": "32;1", "safe": "32;1",
}  # fmt: skip
_INDENT = "  "


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
    yield _paint(display(report.file), "1", view)
    if report.error is not None:
        yield from _refusal(report, view)
        return
    assert report.summary is not None  # together with the table, whenever there is no error
    assert report.table is not None
    yield from _wrap(_headline(report, report.summary), view, _INDENT)
    if len(report.summary.parts) > 1:
        yield from _wrap(_parts(report.summary), view, _INDENT)
    yield ""
    yield from _verdicts(report, view)
    if report.findings:
        yield ""
        yield from _findings(report, view)
    yield from _tensors(report, view)
    yield from _next(report, view)


def _refusal(report: Report, view: View) -> Iterator[str]:
    error = report.error
    assert error is not None
    yield _INDENT + _paint("could not be checked", _COLORS["error"], view)
    kind = f"{error.type}: " if error.bug else ""
    where = f" (at {_place(error.where, report.file)})" if error.where != report.file else ""
    yield from _wrap(kind + display(error.message) + where, view, _INDENT)
    if error.hint:
        yield from _wrap(f"Next: {display(error.hint)}", view, _INDENT)
    if report.findings:
        yield ""
        yield f"{_INDENT}Seen before giving up:"
        yield from _findings(report, view)


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
        f"{kind}: {_many(summary.tensors, 'tensor')}, {_many(summary.parameters, 'parameter')}, "
        f"{human_bytes(summary.nbytes)}" + (f", {dtypes}" if dtypes else "")
    )


def _parts(summary: Summary) -> str:
    return "; ".join(
        f"{part.role}: {_many(part.tensors, 'tensor')}, {human_bytes(part.nbytes)}"
        for part in summary.parts
    )


def _verdicts(report: Report, view: View) -> Iterator[str]:
    from ..diagnose import counts_for  # noqa: PLC0415  (it imports the rules; a report needs none)

    verdict, limits = report.verdict, _limits(report)
    assert verdict is not None
    nothing = "nothing found in what was judged" if limits else "nothing found against it"
    for purpose, word in (("serve", verdict.serve), ("resume", verdict.resume)):
        told = [f for f in report.findings if counts_for(f, purpose, report.weights)]
        errors = sum(f.severity is Severity.ERROR for f in told)
        warnings = sum(f.severity is Severity.WARNING for f in told)
        counts = [_many(n, kind) for n, kind in ((errors, "error"), (warnings, "warning")) if n]
        reason = " and ".join(counts) or nothing
        judged = f" ({report.weights} weights judged)" if purpose == "serve" else ""
        yield from _verdict(purpose, word, reason + judged, view)
    reason = "nothing found against it"
    if verdict.load == "unsafe":
        reason = "loading it the usual way can run code, hang or exhaust memory"
        if not any(f.unsafe for f in report.findings):
            reason += "; the finding that says so is left out"
    yield from _verdict("load", verdict.load, reason, view)
    if limits:
        yield from _wrap(f"judged  {limits}", view, _INDENT, " " * 10)


def _verdict(purpose: str, word: str, reason: str, view: View) -> Iterator[str]:
    first, *rest = _wrap(reason, view, " " * 19)
    yield f"{_INDENT}{purpose:8}{_word(word, view, 9)}{first.strip()}"
    yield from rest


def _limits(report: Report) -> str:
    """Tell what the verdicts leave out because the caller asked for less."""
    wishes, limits = report.wishes, []
    if report.judged is not None and report.table is not None:
        limits.append(f"{len(report.judged):,} of {_many(len(report.table), 'tensor')}")
    if wishes.select:
        limits.append(f"only {', '.join(wishes.select)}")
    if wishes.ignore:
        limits.append(f"without {', '.join(wishes.ignore)}")
    return display("; ".join(limits))


def _findings(report: Report, view: View) -> Iterator[str]:
    groups = _grouped(report.findings)
    notes = [group for group in groups if group[0].severity is Severity.NOTE]
    hidden = notes[_NOTES_SHOWN:] if len(notes) > _NOTES_SHOWN + 1 else []
    for group in groups:
        if group not in hidden:
            yield from _group(group, report, view)
    if hidden:
        yield f"{_INDENT}{_word('note', view, 9)}{sum(map(len, hidden))} more notes: --format json"


def _grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Put findings of the same kind together: about the file, those that say the same of it."""
    groups: dict[object, list[Finding]] = {}
    for f in findings:
        same = _VARIABLE.sub("#", f.message) if f.role == "container" else ""
        key = (f.code, f.severity, f.role, f.unsafe, bool(f.tensor), same)
        groups.setdefault(key, []).append(f)
    return list(groups.values())


_VARIABLE = re.compile(r"'[^']*'|0x[0-9a-f]+|[0-9][0-9,]*")
"""What differs between messages that say the same: quoted names, numbers."""


def _group(group: list[Finding], report: Report, view: View) -> Iterator[str]:
    from ..diagnose import counts_for  # noqa: PLC0415  (as above)

    first, purpose = group[0], report.wishes.purpose
    if first.role == "container":
        text = _said(first) + _at(first, report.file) + _others(group, report.file)
    elif len(group) == 1:
        text = _said(first)
    else:
        more = len(group) - _NAMES_SHOWN
        tail = f"; and {more:,} more" if more > 0 else ""
        named = "; ".join(map(_said, group[:_NAMES_SHOWN]))
        text = f"{len(group):,} {first.role} tensors: {named}{tail}"
    counts = counts_for(first, purpose, report.weights)
    aside = "" if counts else f" (does not count for {purpose})"
    lines = _wrap(f"{first.code} {first.name}{aside}: {text}", view, " " * 11)
    severity = first.severity.name.lower()
    word = _word(severity, view, 9) if counts else f"{severity:9}"
    yield f"{_INDENT}{word}{lines[0].strip()}"
    yield from lines[1:]


def _at(finding: Finding, file: str) -> str:
    where = finding.where
    if not where or where == file or where in finding.message:
        return ""
    return f" (at {_place(where, file)})"


def _others(group: list[Finding], file: str) -> str:
    """Where else the same was found, as far as a line or two can tell."""
    if len(group) == 1:
        return ""
    places = [_tensor(f) if f.tensor else _place(f.where, file) for f in group[1:]]
    shown = list(dict.fromkeys(places))[:_NAMES_SHOWN] if len(set(places)) == len(places) else []
    more = len(places) - len(shown)
    listed = [*shown, f"{more:,} more"] if more else shown
    return f"; the same of {', '.join(listed)}"


def _said(finding: Finding) -> str:
    """Name and message, the name once; a layer by the name that its framework gives it."""
    message = _message(finding)
    if not finding.tensor or repr(finding.tensor) in finding.message:
        return message
    layer, name = hidden_layer(finding.layer, finding.tensor), _tensor(finding)
    if layer:
        parts = name.split("/")
        path = "/".join([parts[0], "...", *parts[-2:]]) if len(parts) > 4 else name
        name = f"{shorten(display(layer), _NAME_LIMIT)} ({path})"
    return f"{name}: {message}"


def _place(where: str, file: str) -> str:
    """Shorten ``file:member+offset`` by the file, which the report is headed with."""
    inside = where.removeprefix(file).lstrip(":/")
    if inside.startswith("+"):
        inside = f"byte {inside[1:]}"
    return shorten(display(inside or where), _NAME_LIMIT)


def _tensor(finding: Finding) -> str:
    return shorten(display(finding.tensor), _NAME_LIMIT)


def _message(finding: Finding) -> str:
    return shorten(display(finding.message), _MESSAGE_LIMIT)


def _tensors(report: Report, view: View) -> Iterator[str]:
    mode = view.tensors or "suspect"
    if mode == "none":
        return
    infos = chosen_rows(report, view, "suspect")
    stats = report.stats
    assert stats is not None
    yield ""
    if not infos:
        yield f"{_INDENT}no suspect tensors" if mode == "suspect" else f"{_INDENT}no tensors"
        return
    if mode == "all":
        rows = [row_of(info, stats[info.name]) for info in infos]
    else:
        rows = folded(infos, stats)
    shown = rows if mode == "all" else rows[:LONGEST]
    yield from (_INDENT + line for line in render_table(shown, view.width - len(_INDENT)))
    rest = sum(row.count for row in rows[len(shown) :])
    if rest:
        yield f"{_INDENT}... and {rest:,} more suspect tensors"


def _next(report: Report, view: View) -> Iterator[str]:
    """Command that shows more, if there is more."""
    assert report.summary is not None
    if view.tensors == "all" or not report.summary.tensors:
        return
    yield ""
    again = command("ckptdoctor", "inspect", file=report.file, encoding=view.encoding)
    yield f"{_INDENT}Every tensor: {again} --tensors all"


def _quiet(report: Report, view: View) -> Iterator[str]:
    """One line for each kind of finding that fails, nothing for a clean file."""
    file = display(report.file)
    if report.error is not None:
        hint = f"; {report.error.hint}" if report.error.hint else ""
        yield f"{file}: could not be checked: {display(report.error.message + hint)}"
    if view.fail_on is None:
        return
    counting = [f for f, counts in zip(report.findings, report.relevant, strict=True) if counts]
    for group in _grouped(f for f in counting if f.severity >= view.fail_on):
        first = group[0]
        rest = len(group) - 1
        amount = _many(rest, "more tensor") if first.tensor else f"{rest:,} more like it"
        more = f" (and {amount})" if rest else ""
        severity = _word(first.severity.name.lower(), view)
        yield f"{file}: {severity} {first.code} {first.name}: {_said(first)}{more}"


def _wrap(text: str, view: View, indent: str, hanging: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(view.width, 40),
        initial_indent=indent,
        subsequent_indent=hanging or indent,
        break_on_hyphens=False,
    ) or [""]


def _word(word: str, view: View, width: int = 0) -> str:
    return _paint(word, _COLORS[word], view) + " " * max(0, width - len(word))


def _paint(text: str, code: str, view: View) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if view.color else text


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def human_bytes(count: int) -> str:
    """Bytes in the unit that a person would take.

    Examples
    --------
    >>> human_bytes(100), human_bytes(2048), human_bytes(3 << 30)
    ('100 bytes', '2.0 KiB', '3.0 GiB')
    """
    if count < 1024:
        return _many(count, "byte")
    value, unit = float(count), ""
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):  # noqa: B007
        value /= 1024
        if value < 1024:
            break
    return f"{value:.1f} {unit}"
