"""Findings as text: by layer, each with the limit it crossed; layers that read the same folded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ..findings import Finding, Severity
from ..measure.stats import StatsTable
from ..results import Report, View
from .escape import display, shorten
from .rows import fold_names, hidden_layer
from .words import INDENT, many, word, wrap

__all__ = ["findings", "grouped", "place", "said"]

_PLACES_SHOWN = 3
"""Places named in a line about the file."""
_NAME_LIMIT = 100
_MESSAGE_LIMIT = 600
"""Characters: a name or a message may be as long as its file, a screen is not."""
_LONGEST_NAME = 300
_BLOCKS = 5
"""Layers, or groups of layers that read the same, of one severity; the rest are counted."""
_LINES = 4
"""Findings of one layer."""
_NOTES = 5
_TEXT = " " * 11
_NUMBER = re.compile(r"[0-9]{1,9}")
_VARIABLE = re.compile(r"'[^']*'|0x[0-9a-f]+|[0-9][0-9,]*")
"""What differs between messages that say the same: quoted names, numbers."""


def findings(report: Report, view: View) -> Iterator[str]:
    """Yield errors, then warnings, then notes; layers in depth order where a diagnosis knows it."""
    layers = [layer for d in report.diagnoses for layer in d.layers]
    depths = {layer: depth for depth, layer in enumerate(dict.fromkeys(layers))}
    for severity in (Severity.ERROR, Severity.WARNING, Severity.NOTE):
        mine = [f for f in report.findings if f.severity is severity]
        about_file = [f for f in mine if _on_file(f)]
        for group in grouped(about_file):
            yield from _about_file(group, report, view)
        blocks = _blocks([f for f in mine if not _on_file(f)], report)
        blocks.sort(key=lambda block: depths.get(block[0][0].layer, len(depths)))
        shown = _NOTES if severity is Severity.NOTE else _BLOCKS
        shown = len(blocks) if len(blocks) == shown + 1 else shown
        for block in blocks[:shown]:
            yield from _block(block, report, view)
        rest = sum(len(layer) for block in blocks[shown:] for layer in block)
        if rest:
            more = many(rest, f"more {severity.name.lower()}")
            yield f"{INDENT}{word(severity.name.lower(), view, 9)}{more}: --format json"


def _on_file(f: Finding) -> bool:
    return f.role == "container" or not (f.tensor or f.layer)


_Block = list[list[Finding]]
"""Layers that read the same, each with its findings."""


def _blocks(mine: Iterable[Finding], report: Report) -> list[_Block]:
    """Put findings together by layer, then layers that differ in their numbers only."""
    layers: dict[tuple[str, str], list[Finding]] = {}
    for f in mine:
        layers.setdefault((f.role, f.layer or f.tensor), []).append(f)
    blocks: dict[object, _Block] = {}
    for (role, layer), told in layers.items():
        kinds = tuple((f.code, _leaf(f)) for f in told)
        key = (role, _NUMBER.sub("#", layer), kinds, _state(told, report.stats))
        blocks.setdefault(key, []).append(told)
    return list(blocks.values())


def _leaf(f: Finding) -> str:
    """Last component of the tensor's name; Keras 3 numbers the variables of a layer."""
    leaf = f.tensor[max(f.tensor.rfind("."), f.tensor.rfind("/")) + 1 :]
    return f"vars/{leaf}" if f.tensor.endswith(f"/vars/{leaf}") else leaf


def _state(told: list[Finding], stats: StatsTable | None) -> str:
    """How much of what the findings are about is not finite; empty for mere numbers."""
    names = {f.tensor for f in told}
    rows = [stats[name] for name in names if name in stats] if stats is not None else []
    if not rows:
        return ""
    bad = sum(row.nonfinite for row in rows)
    if not bad:
        return "values FINITE"
    return "ALL values bad" if bad == sum(row.count for row in rows) else "SOME values bad"


def _block(block: _Block, report: Report, view: View) -> Iterator[str]:
    from ..diagnose import counts_for  # noqa: PLC0415  (it imports the rules; a report needs none)

    first = block[0]
    purpose = report.wishes.purpose
    counts = counts_for(first[0], purpose, report.weights)
    severity = first[0].severity.name.lower()
    # what is noted is meant to be so, and not bad
    state = _state(first, report.stats) if first[0].severity > Severity.NOTE else ""
    aside = [state, first[0].role if first[0].role != "model" else ""]
    aside += ["" if counts else f"does not count for {purpose}"]
    listed = ", ".join(part for part in aside if part)
    name = _layer_name(block) + (f"  ({listed})" if listed else "")
    lines = wrap(name, view, _TEXT)
    yield f"{INDENT}{word(severity, view, 9) if counts else f'{severity:9}'}{lines[0].strip()}"
    yield from lines[1:]
    for f in first[:_LINES]:
        alone = len(first) == 1 and _layer_name(block) == _shown(f.tensor)
        yield from wrap(_line(f, named=not alone), view, _TEXT, _TEXT + "  ")
    if len(first) > _LINES:
        yield f"{_TEXT}and {many(len(first) - _LINES, 'more finding')}"


def _layer_name(block: _Block) -> str:
    names = [told[0].layer or told[0].tensor for told in block]
    if len(names) == 1:
        return _shown(names[0])
    return f"{_shown(fold_names(names))} ({len(names):,} layers; of the first:)"


def _shown(name: str) -> str:
    return shorten(display(name), _NAME_LIMIT)


def _line(f: Finding, *, named: bool) -> str:
    leaf = f"{_shown(_leaf(f))}: " if named and _leaf(f) not in f.message else ""
    limit = f" (limit: {display(f.limit)})" if f.limit else ""
    return f"{f.code} {f.name}: {leaf}{_message(f)}{limit}"


def grouped(listed: Iterable[Finding]) -> list[list[Finding]]:
    """Put findings of the same kind together: about the file, those that say the same of it."""
    groups: dict[object, list[Finding]] = {}
    for f in listed:
        same = _VARIABLE.sub("#", f.message) if f.role == "container" else ""
        key = (f.code, f.severity, f.role, f.unsafe, bool(f.tensor), same)
        groups.setdefault(key, []).append(f)
    return list(groups.values())


def _about_file(group: list[Finding], report: Report, view: View) -> Iterator[str]:
    from ..diagnose import counts_for  # noqa: PLC0415  (as above)

    first, purpose = group[0], report.wishes.purpose
    text = said(first) + _at(first, report.file) + _others(group, report.file)
    counts = counts_for(first, purpose, report.weights)
    aside = "" if counts else f" (does not count for {purpose})"
    lines = wrap(f"{first.code} {first.name}{aside}: {text}", view, _TEXT)
    severity = first.severity.name.lower()
    yield f"{INDENT}{word(severity, view, 9) if counts else f'{severity:9}'}{lines[0].strip()}"
    yield from lines[1:]
    if view.names:
        yield from (f"{_TEXT}  {line}" for f in group for line in _names(f))


def _names(finding: Finding) -> Iterator[str]:
    """Yield each name that a message only counts, to be searched for."""
    names = [
        name
        for kind in ("missing", "wrapped", "misshaped", "surplus")
        for name in finding.measured.get(kind, ())
    ]
    if all(repr(name) in finding.message for name in names):
        return
    yield from (shorten(display(name), _LONGEST_NAME) for name in names)
    rest = finding.measured.get("count", 0) - len(names)
    if rest > 0:
        yield f"and {rest:,} more"


def _at(finding: Finding, file: str) -> str:
    where = finding.where
    if not where or where == file or where in finding.message:
        return ""
    return f" (at {place(where, file)})"


def _others(group: list[Finding], file: str) -> str:
    """Where else the same was found, as far as a line or two can tell."""
    if len(group) == 1:
        return ""
    places = [_shown(f.tensor) if f.tensor else place(f.where, file) for f in group[1:]]
    shown = list(dict.fromkeys(places))[:_PLACES_SHOWN] if len(set(places)) == len(places) else []
    more = len(places) - len(shown)
    listed = [*shown, f"{more:,} more"] if more else shown
    return f"; the same of {', '.join(listed)}"


def said(finding: Finding) -> str:
    """Name and message, the name once; a layer by the name that its framework gives it."""
    message = _message(finding)
    if not finding.tensor or repr(finding.tensor) in finding.message:
        return message
    layer, name = hidden_layer(finding.layer, finding.tensor), _shown(finding.tensor)
    if layer:
        parts = name.split("/")
        path = "/".join([parts[0], "...", *parts[-2:]]) if len(parts) > 4 else name
        name = f"{_shown(layer)} ({path})"
    return f"{name}: {message}"


def place(where: str, file: str) -> str:
    """Shorten ``file:member+offset`` by the file, which the report is headed with."""
    inside = where.removeprefix(file).lstrip(":/")
    if inside.startswith("+"):
        inside = f"byte {inside[1:]}"
    return shorten(display(inside or where), _NAME_LIMIT)


def _message(finding: Finding) -> str:
    return shorten(display(finding.message), _MESSAGE_LIMIT)
