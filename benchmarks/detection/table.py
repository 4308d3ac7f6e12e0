"""Rows and controls as the text that is printed and that docs/detection.md holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tabulate import tabulate

from ckptdoctor.rules import RULES

from .reasons import kind, reason
from .score import SIBLINGS, Control, Row

TARGET = 0.95


def names() -> dict[str, str]:
    return {rule.code: rule.name for rule in RULES}


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def share(rows: Sequence[Row]) -> tuple[int, int]:
    """Detected and all, of those that take effect."""
    return sum(row.detected for row in rows), len(rows)


def by_rule(rows: Iterable[Row], controls: Sequence[Control]) -> str:
    """One line per rule: sensitivity, and what it says about healthy files and healthy tensors."""
    groups: dict[str, list[Row]] = defaultdict(list)
    rows = list(rows)
    for row in rows:
        groups[row.code].append(row)
    errors = Counter(code for c in controls for code in {said[:5] for said in c.errors})
    warnings = Counter(code for c in controls for code in {said[:5] for said in c.warnings})
    notes = Counter(code for c in controls for code in {said[:5] for said in c.notes})
    wrong = Counter(code for row in rows for code in {said[:5] for said in row.wrong})
    known = names()
    lines = []
    for code in sorted({*groups, *known, *errors, *warnings, *wrong}):
        mine = groups.get(code, [])
        detected, effective = share([row for row in mine if row.effective])
        harm = share([row for row in mine if row.harmful])
        lines.append([
            code, known.get(code, "(no rule yet)"), len(mine), effective, detected,
            percent(detected, effective), percent(*harm), wrong[code], errors[code], warnings[code],
            notes[code],
        ])  # fmt: skip
    head = ["code", "name", "injected", "effective", "detected", "sensitivity", "if over 10 %",
            "errors elsewhere", "controls: errors", "warnings", "notes"]  # fmt: skip
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def misses(rows: Iterable[Row], patients: bool = False) -> str:
    """Every fault that takes effect and was not seen; those alike in kind and place in one line."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    tried: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.effective:
            tried[row.code, row.what] += 1
            if not row.detected:
                groups[row.code, row.what, kind(row.place, row.seen)].append(row)
    lines = [
        [code, what, f"{len(group)} of {tried[code, what]}", _reach(group), _said(group),
         _where(group, patients), reason(code, what, how)]
        for (code, what, how), group in sorted(groups.items())
    ]  # fmt: skip
    head = ["code", "fault", "missed", "change of the output", "said there", "where", "reason"]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def _reach(group: Sequence[Row]) -> str:
    """Least and largest change of the output."""
    effects = [row.effect for row in group if row.effect]
    if not effects:
        return "by definition"
    reach = f"{min(effects):.2g} to {max(effects):.2g}"
    return reach.replace("inf to inf", "not finite").replace("to inf", "to not finite")


def _said(group: Sequence[Row]) -> str:
    seen = Counter(said for row in group for said in row.seen or ("nothing",))
    refused = sorted({row.refused for row in group if row.refused})
    return ", ".join([*(f"{what} ({n})" for what, n in seen.most_common(4)),
                      *(f"refused: {why}" for why in refused[:2])])  # fmt: skip


def _where(group: Sequence[Row], patients: bool) -> str:
    """Models and layers; with ``patients`` every single file."""
    if patients:
        return "; ".join(f"{r.patient} {r.place} ({r.layout}, {r.effect:.2g})" for r in group)
    places = Counter(f"{row.patient.rpartition('/')[0]} {row.place}" for row in group)
    more = f"; {len(places) - 5} more places" if len(places) > 5 else ""
    return "; ".join(f"{place} ({n})" for place, n in places.most_common(5)) + more


def alarms(controls: Iterable[Control], rows: Iterable[Row]) -> Iterator[str]:
    """Every error and warning on a healthy file, and every error at a tensor nothing was done to."""
    for control in controls:
        for level, said in (("ERROR", control.errors), ("warning", control.warnings)):
            for text in said:
                yield f"{level} on control [{control.name}] {text}"
        if control.refused:
            yield f"REFUSED control [{control.name}] {control.refused}"
    for row in rows:
        for text in row.wrong:
            yield f"error elsewhere [{row.patient} {row.code} {row.what} at {row.place}] {text}"


def siblings() -> str:
    lines = [[code, ", ".join(more), why] for code, (more, why) in SIBLINGS.items()]
    return tabulate(lines, ["code", "counts as well", "because"], tablefmt="github")


def control_line(controls: Sequence[Control]) -> str:
    """Counts over all healthy files."""
    return (
        f"{len(controls)} healthy files: {sum(bool(c.errors) for c in controls)} with an error, "
        f"{sum(bool(c.warnings) for c in controls)} with a warning, "
        f"{sum(bool(c.refused) for c in controls)} refused."
    )
