"""Rows and controls as the text that is printed and that docs/detection.md holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tabulate import tabulate

from ckptdoctor.rules import RULES

from .reasons import reason
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
    """Every fault that takes effect and was not seen, alike ones in one line."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    tried: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.effective:
            tried[row.code, row.what] += 1
            if not row.detected:
                groups[row.code, row.what].append(row)
    lines = []
    for (code, what), group in sorted(groups.items()):
        effects = [row.effect for row in group if row.effect]
        reach = f"{min(effects):.2g} to {max(effects):.2g}" if effects else "by definition"
        reach = reach.replace("inf to inf", "not finite").replace("to inf", "to not finite")
        seen = Counter(said for row in group for said in row.seen or ("nothing",))
        where = sorted({row.patient.rpartition("/")[0] for row in group})
        if patients:
            where = [f"{row.patient} {row.place} ({row.layout}, {row.effect:.2g})" for row in group]
        refused = sorted({row.refused for row in group if row.refused})
        lines.append([
            code, what, f"{len(group)} of {tried[code, what]}", reach,
            ", ".join(f"{k} ({n})" for k, n in seen.most_common(4)) + "".join(f"; refused: {r}" for r in refused[:2]),
            "; ".join(where), reason(code, what),
        ])  # fmt: skip
    head = [
        "code",
        "fault",
        "missed",
        "change of the output",
        "said there instead",
        "models",
        "reason",
    ]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def alarms(controls: Iterable[Control], rows: Iterable[Row]) -> Iterator[str]:
    """Every error and warning on a healthy file, and every error at a tensor nothing was done to."""
    for control in controls:
        for kind, said in (("ERROR", control.errors), ("warning", control.warnings)):
            for text in said:
                yield f"{kind} on control [{control.name}] {text}"
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
