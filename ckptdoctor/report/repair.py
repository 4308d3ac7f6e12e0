"""Outcome of a repair as text: what happened, each change, what it costs, what is left."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from ..edits import Change, Edit, Refusal
from ..outcome import Outcome
from ..results import ErrorInfo, Report, View
from ..shell import quoted
from ..write.target import default_output
from .changes import LONGEST, change_table, layer_of, rows_of
from .escape import command, display, shorten
from .findings import grouped, place, said
from .headline import counts, headline, in_place, in_short
from .words import COLORS, INDENT, human_bytes, labelled, many, paint, word, wrap

__all__ = ["render"]

_LABEL = 11
"""Columns of the labels."""
_ROOM = " " * (len(INDENT) + _LABEL)
_SHOWN = 5
"""Findings, refusals and the like of one list; the rest are counted."""
_WARNINGS = 8
_NAMES = 3
"""Names in one line."""
_NAME_LIMIT = 60
_TITLE_LIMIT = 200
_TEXT_LIMIT = 700
"""Characters of one text: names in it may be as long as the file."""
_OPTION = re.compile(r"--?[a-z]")
"""Beginning of a hint that can be typed."""
_CLASSES = {
    "lossless": "the same model, or a file that could not be used",
    "statistical": "an estimate of what was there",
    "destructive": "values are invented or gone",
}


def render(outcome: Outcome, view: View) -> str:
    """Return the text; of a quiet view, and where nothing could be done, a single line."""
    if outcome.error is not None:
        return f"{_refusal(outcome, outcome.error)}\n"
    if view.quiet:
        return f"{'; '.join([headline(outcome), *in_short(outcome)])}\n"
    sections = (_head, _changes, _advice, _proof, _left)
    texts = ["\n".join(section(outcome, view)) for section in sections]
    return "\n\n".join(text for text in texts if text) + "\n"


def _refusal(outcome: Outcome, error: ErrorInfo) -> str:
    kind = f"{error.type}: " if error.bug else ""
    known = not error.where or error.where == outcome.file
    where = "" if known else f" (at {place(error.where, outcome.file)})"
    hint = f"; {_clean(error.hint)}" if error.hint else ""
    file, message = display(outcome.file), _clean(error.message)
    return f"{file}: not repaired: {kind}{message}{where}{hint}"


def _head(outcome: Outcome, view: View) -> Iterator[str]:
    """Say what happened; where paths are long, they get lines of their own."""
    line = headline(outcome)
    if len(line) <= view.width:
        yield paint(line, "1", view)
        return
    file, written = display(outcome.file), outcome.written
    yield paint(file, "1", view)
    rest = line.removeprefix(file).removeprefix(": ")
    if written is not None and rest.startswith(" -> "):
        target = f" -> {display(written.path)}"
        yield paint(f"{INDENT}{target.strip()}", "1", view)
        rest = rest.removeprefix(f"{target}: ")
    yield from wrap(rest, view, INDENT)


def _changes(outcome: Outcome, view: View) -> Iterator[str]:
    rows = rows_of(outcome)
    if not rows:
        return
    shown = rows if len(rows) <= LONGEST + 1 else rows[:LONGEST]
    yield from (INDENT + line for line in change_table(shown, view.width - len(INDENT)))
    rest = sum(row.tensors for row in rows[len(shown) :])
    if rest:
        yield f"{INDENT}... and {rest:,} more changes: --format json"


def _advice(outcome: Outcome, view: View) -> Iterator[str]:
    """Say what was done, what it costs, what is not done and what would do it."""
    plan = outcome.plan
    if plan is None:
        return
    yield from _list("remedy", _remedies(plan.changes), view)
    yield from _list("shared", _shared(outcome), view)
    yield from _list("donor", outcome.donor, view)
    yield from _list("samples", outcome.recalibration, view)
    yield from _warnings(tuple(dict.fromkeys(plan.warnings)), view)
    groups: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in plan.refusals:
        same = "" if _options(refusal.hint, view) else refusal.reason
        groups.setdefault((same, refusal.hint), []).append(refusal)
    for group in list(groups.values())[:_SHOWN]:
        yield from _refused(group, outcome, view)
    rest = sum(map(len, list(groups.values())[_SHOWN:]))
    if rest:
        yield from labelled("left alone", f"{rest:,} more: --format json", view, _LABEL)


def _warnings(texts: Sequence[str], view: View) -> Iterator[str]:
    """Each under a label of its own: none must look like a part of another."""
    for text in texts[:_WARNINGS]:
        yield from labelled("warning", _clean(text), view, _LABEL, "warning")
    if len(texts) > _WARNINGS:
        more = f"{len(texts) - _WARNINGS:,} more: --format json"
        yield from labelled("warning", more, view, _LABEL, "warning")


def _remedies(changes: Iterable[Change]) -> list[str]:
    """Each remedy with its class, what that means, and what it does."""
    titles: dict[tuple[str, str], dict[str, None]] = {}
    cures: dict[tuple[str, str], dict[str, None]] = {}
    for change in changes:
        key = change.remedy, change.kind
        titles.setdefault(key, {})[change.title] = None
        cures.setdefault(key, {}).update(dict.fromkeys(change.cures))
    return [
        f"{remedy}, {kind} ({_CLASSES[kind]}): {_some(titles[remedy, kind], '; ', _TITLE_LIMIT)}"
        + (f"; against {', '.join(sorted(cures[remedy, kind]))}" if cures[remedy, kind] else "")
        for remedy, kind in titles
    ]


def _shared(outcome: Outcome) -> list[str]:
    """Tensors that change along, because they are the same memory."""
    assert outcome.plan is not None
    told = []
    for index, change in enumerate(outcome.plan.changes):
        aliases = outcome.details[index].aliases if index in outcome.details else ()
        if isinstance(change, Edit) and aliases:
            names = _some(aliases, ", ")
            told.append(f"{names}: the same memory as {_name(change.tensor)}, changes with it")
    return told


def _refused(group: Sequence[Refusal], outcome: Outcome, view: View) -> Iterator[str]:
    """Say why several tensors are left alone, and type what would treat them."""
    first, table = group[0], outcome.before.table if outcome.before is not None else None
    layers = dict.fromkeys(layer_of(refusal.target, table) or refusal.target for refusal in group)
    text = "; ".join(dict.fromkeys(_clean(refusal.reason) for refusal in group[:_NAMES]))
    names = {first.target, *layers} - {""}
    if names and not text.startswith(tuple(f"{_name(name)} " for name in names)):
        text = f"{_some(layers if len(group) > 1 else [first.target], ', ')}: {text}"
    options = _options(first.hint, view)
    if first.hint and not options:
        text = f"{text.rstrip('.')}; {_clean(first.hint)}"
    yield from labelled("left alone", text, view, _LABEL)
    if options:
        yield f"{_ROOM}{_again(outcome, options, view)}"


def _options(hint: str, view: View) -> str:
    """Options that can be pasted, each word quoted anew: names in them may hold anything."""
    try:
        words = shlex.split(hint) if len(hint) <= _TEXT_LIMIT else []
    except ValueError:  # a quote without its other half
        return ""
    if not words or not _OPTION.match(words[0]):
        return ""
    return " ".join(quoted(text, view.encoding) for text in words)


def _again(outcome: Outcome, options: str, view: View) -> str:
    """Command that does more, over what was just written."""
    again = (
        f"{command('ckptdoctor', 'repair', file=outcome.file, encoding=view.encoding)} {options}"
    )
    written = outcome.written
    if written is None or in_place(outcome, written):
        return again
    usual = [default_output(outcome.file, folder=folder) for folder in (False, True)]
    output = command("-o", file=written.path, encoding=view.encoding)
    return f"{again} --force" + ("" if written.path in usual else f" {output}")


def _proof(outcome: Outcome, view: View) -> Iterator[str]:
    """Say what was verified, and where the original is."""
    written = outcome.written
    if written is None or written.identical:
        return
    if written.moved:
        compared = many(written.compared, "tensor")
        text = f"Bytes moved ({_clean(written.moved)}): {compared} compared with the original's."
    elif written.changed >= 0:
        share = f"{many(written.changed, 'byte')} of {human_bytes(written.size)}"
        text = f"{share} changed, every other byte is the same."
    else:
        text = "Read back as it was to be."
    yield from labelled("verified", text, view, _LABEL)
    if written.kept:
        text = f"{display(written.path)} was there already, just as it would be written."
        yield from labelled("output", text, view, _LABEL)
    if written.backup:
        text = f"kept as {display(written.backup)}"
    elif in_place(outcome, written):
        text = "replaced, and no copy of it was kept"
    else:
        text = f"{display(outcome.file)}, as it was"
    yield from labelled("original", text, view, _LABEL)


def _left(outcome: Outcome, view: View) -> Iterator[str]:
    """Cured or not, the verdicts, what remains, and how to see it."""
    cured, uncured = outcome.cured, outcome.uncured
    if cured:
        kinds = dict.fromkeys(f"{finding.code} {finding.name}" for finding in cured)
        text = f"{many(len(cured), 'finding')}: {_some(kinds, ', ')}"
        yield from labelled("cured", text, view, _LABEL)
    for finding in uncured[:_SHOWN]:
        text = f"{finding.code} {finding.name}: {said(finding)}; a fault of the remedy, please report it"
        yield from labelled("not cured", text, view, _LABEL, "error")
    if len(uncured) > _SHOWN:
        more = f"{len(uncured) - _SHOWN:,} more: --format json"
        yield from labelled("not cured", more, view, _LABEL, "error")
    yield from _verdicts(outcome.before, outcome.after, view)
    yield from _remaining(outcome, view)


def _verdicts(before: Report | None, after: Report | None, view: View) -> Iterator[str]:
    if before is None or before.verdict is None or after is None or after.verdict is None:
        return
    for purpose in ("serve", "resume", "load"):
        was, is_now = getattr(before.verdict, purpose), getattr(after.verdict, purpose)
        change = (
            word(is_now, view) if was == is_now else f"{word(was, view)} -> {word(is_now, view)}"
        )
        label = paint(purpose, COLORS["label"], view)
        yield f"{INDENT}{label}{' ' * (_LABEL - len(purpose))}{change}"


def _remaining(outcome: Outcome, view: View) -> Iterator[str]:
    if not outcome.remaining:
        return
    named = {(f.code, f.tensor) for f in outcome.uncured}
    groups = grouped(f for f in outcome.remaining if (f.code, f.tensor) not in named)
    label = "remaining" if outcome.written is not None else "would stay"
    yield from labelled(label, counts(outcome.remaining), view, _LABEL)
    for group in groups[:_SHOWN]:
        first, more = group[0], len(group) - 1
        severity = first.severity.name.lower()
        others = f" (and {more:,} more like it)" if more else ""
        text = f"{severity} {first.code} {first.name}: {said(first)}{others}"
        lines = wrap(text, view, _ROOM, _ROOM + "  ")
        start = f"{_ROOM}{severity}"
        yield lines[0].replace(start, f"{_ROOM}{word(severity, view)}", 1)
        yield from lines[1:]
    if len(groups) > _SHOWN:
        yield f"{_ROOM}and {many(sum(map(len, groups[_SHOWN:])), 'more finding')}"
    file = outcome.written.path if outcome.written is not None else outcome.file
    yield f"{_ROOM}{command('ckptdoctor', 'inspect', file=file, encoding=view.encoding)}"


def _list(label: str, texts: Sequence[str], view: View) -> Iterator[str]:
    """Texts under one label, the first few of them."""
    shown = texts if len(texts) <= _SHOWN + 1 else texts[:_SHOWN]
    for number, text in enumerate(shown):
        yield from labelled("" if number else label, _clean(text), view, _LABEL)
    if len(texts) > len(shown):
        yield from labelled(
            "", f"and {len(texts) - len(shown):,} more: --format json", view, _LABEL
        )


def _some(names: Iterable[str], joint: str, limit: int = _NAME_LIMIT) -> str:
    """Join the first of several names or texts, and count the rest."""
    listed = [shorten(display(name), limit) for name in names]
    if len(listed) > _NAMES + 1:
        listed[_NAMES:] = [f"{len(listed) - _NAMES:,} more"]
    return joint.join(listed)


def _name(name: str) -> str:
    return shorten(display(name), _NAME_LIMIT)


def _clean(text: str) -> str:
    return shorten(display(text), _TEXT_LIMIT)
