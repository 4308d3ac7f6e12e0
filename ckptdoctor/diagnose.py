"""Tensor table, statistics and rules -> findings and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from .diagnoses import conclude
from .dtypes import DTYPES
from .errors import CkptDoctorError, InternalError, UsageError
from .findings import Finding, Severity
from .results import Diagnosis, Fitness, Part, Summary, Verdict, Weights, Wishes
from .rules import Rule
from .rules.base import Context
from .selection import accepted, matcher, prefixes, rules_with, wanted
from .tensors import TensorTable

if TYPE_CHECKING:
    from .measure.scan import Measured

__all__ = [
    "SERVED_EMA",
    "USES",
    "Judgement",
    "Use",
    "counts_for",
    "diagnose",
    "judged_weights",
    "summarise",
    "verdict_of",
]


@dataclass(frozen=True, slots=True)
class Use:
    """What a role is used for, and so which verdict its findings move."""

    role: str
    serve: bool
    resume: bool
    worst: Severity
    """Highest severity that a finding about this role may have."""
    why: str


USES: Mapping[str, Use] = {
    use.role: use
    for use in (
        Use("model", True, True, Severity.ERROR, "served unless the EMA is, and trained on"),
        Use("ema", True, True, Severity.ERROR, "served where it is judged, and averaged on"),
        Use("optimizer", False, True, Severity.ERROR, "read by the next training step only"),
        Use("scaler", False, True, Severity.ERROR, "read by the next training step only"),
        Use("training", False, True, Severity.ERROR, "loop and callback state"),
        Use("other", True, True, Severity.WARNING, "constants, random state: their use is unknown"),
        Use(
            "container", True, True, Severity.ERROR, "the file itself: without it there is neither"
        ),
    )
}
"""Which findings count for which purpose, by the role of the tensor they are about."""

SERVED_EMA: Mapping[str, str] = {
    "ema": "Ultralytics and YOLOv5 load `ckpt['ema'] or ckpt['model']`; DiT samples from it",
    "state_dict_ema": "timm's load_state_dict(use_ema=True), its default",
    "model_ema": "timm's load_state_dict(use_ema=True); ConvNeXt",
    "params_ema": "BasicSR and Real-ESRGAN prefer it to `params`",
    "g_ema": "StyleGAN2 generates with it",
}
"""Outermost keys under which a framework serves the EMA when it finds one."""


_NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Findings of one table, weighed, and what they come to.

    ``relevant`` says of each finding whether it counts for the purpose asked for; a diagnosis
    names its findings by their index.
    """

    weights: str
    findings: tuple[Finding, ...]
    relevant: tuple[bool, ...]
    verdict: Verdict
    summary: Summary
    diagnoses: tuple[Diagnosis, ...] = ()
    judged: frozenset[str] | None = None


def diagnose(
    table: TensorTable,
    measured: Measured,
    wishes: Wishes = _NO_WISHES,
    *,
    rules: Iterable[Rule] | None = None,
) -> Judgement:
    """Judge a checkpoint by every rule.

    Parameters
    ----------
    table
        The checkpoint; its adapter's findings count as well.
    measured
        Statistics of the same table, and what measuring it found.
    wishes
        Weights ``auto`` follow `SERVED_EMA`.  Findings of codes or about tensors that are not
        wanted are left out, those with an exemption become notes; but the ``load`` verdict hears
        every finding: safety has no filter.
    rules
        Rules with their thresholds; where None, all, with the thresholds of ``wishes``.

    Raises
    ------
    UsageError
        If there are no such weights, codes, thresholds or tensors.
    InternalError
        If a rule crashes; ``findings`` holds those of the others.
    """
    select, ignore = prefixes(wishes.select), prefixes(wishes.ignore)
    judged = judged_weights(table, wishes.weights)
    chosen = _matching(table, wishes.tensors)
    every = rules_with(wishes.thresholds) if rules is None else list(rules)
    active = [rule for rule in every if wanted(rule.code, select, ignore)]
    context = Context(table, measured.stats, wishes.cast_to)
    seen = [*table.findings, *measured.findings]
    crash = _check(active, context, seen)
    seen = [_capped(f) for f in _one_code_per_fault(seen, active)]
    unsafe = any(f.unsafe for f in seen)
    kept = [
        f
        for f in seen
        if wanted(f.code, select, ignore) and (not chosen or not f.tensor or f.tensor in chosen)
    ]
    if wishes.exempt:
        kept = accepted(kept, wishes.exempt)
    kept.sort(key=lambda f: -f.severity)
    findings = tuple(kept)
    if crash is None:
        try:
            diagnoses = conclude(context, findings, file=table.path)
        except CkptDoctorError as error:
            error.findings = findings
            raise
        except Exception as error:  # noqa: BLE001  what it would have said is unknown
            crash = "diagnosis", error
    if crash:
        culprit, cause = crash
        message = f"{culprit} crashed: {type(cause).__name__}: {cause}"
        failure = InternalError(message, where=table.path)
        failure.findings = findings
        raise failure from cause
    return Judgement(
        weights=judged,
        findings=findings,
        relevant=tuple(counts_for(f, wishes.purpose, judged) for f in findings),
        verdict=verdict_of(findings, judged, unsafe=unsafe),
        summary=summarise(table, findings, judged),
        diagnoses=diagnoses,
        judged=chosen or None,
    )


def _check(
    rules: Iterable[Rule], context: Context, seen: list[Finding]
) -> tuple[str, Exception] | None:
    """Add to what was seen by every rule; returns the first crash, after the rest have run."""
    crash: tuple[str, Exception] | None = None
    for rule in rules:
        try:
            # what rules compute of damaged values may overflow, or be NaN: they look at the result
            with np.errstate(all="ignore"):
                seen += rule.check(context)
        except CkptDoctorError as error:
            error.findings = tuple(seen)
            raise
        except Exception as error:  # noqa: BLE001  a lost finding must not look like health
            crash = crash or (f"rule {rule.code}", error)
    return crash


def judged_weights(table: TensorTable, wish: Weights = "auto") -> str:
    """``model`` or ``ema``: the weights by which ``serve`` is judged.

    Raises
    ------
    UsageError
        If ``wish`` names weights that the checkpoint does not hold.
    """
    roles = {info.role for info in table.infos.values()}
    if wish != "auto":
        if wish not in roles and (wish == "ema" or "ema" in roles):
            message = f"expected {wish} weights, found none"
            raise UsageError(message, where=table.path, hint="--weights auto takes what there is")
        return wish
    if "ema" not in roles or ("model" in roles and not _serves_ema(table)):
        return "model"
    return "ema"


def _serves_ema(table: TensorTable) -> bool:
    return any(
        info.role == "ema" and info.path and info.path[0].partition(".")[0].lower() in SERVED_EMA
        for info in table.values()
    )


def counts_for(finding: Finding, purpose: str, weights: str) -> bool:
    """Whether a finding bears on ``serve``, ``resume`` or ``any`` when ``weights`` are served.

    Examples
    --------
    >>> nan = Finding(code="NF001", name="nan-values", severity=Severity.ERROR, message="",
    ...               role="optimizer")
    >>> counts_for(nan, "serve", "model"), counts_for(nan, "resume", "model")
    (False, True)
    """
    use = USES[finding.role]
    if purpose == "any":
        return True
    if purpose == "resume":
        return use.resume
    return use.serve and (finding.role not in ("model", "ema") or finding.role == weights)


def verdict_of(findings: Iterable[Finding], weights: str, *, unsafe: bool) -> Verdict:
    """Draw the three answers that the findings lead to."""
    findings = tuple(findings)

    def fitness(purpose: str) -> Fitness:
        worst = max((f.severity for f in findings if counts_for(f, purpose, weights)), default=0)
        if worst == Severity.ERROR:
            return "unfit"
        return "suspect" if worst == Severity.WARNING else "fit"

    return Verdict(
        load="unsafe" if unsafe else "safe", serve=fitness("serve"), resume=fitness("resume")
    )


def summarise(table: TensorTable, findings: Iterable[Finding], weights: str) -> Summary:
    """Count tensors, elements, bytes and findings; memory that tensors share counts once."""
    # Tensors and elements by role and dtype; 0.4 us each, which 100,000 tensors notice.
    groups: dict[tuple[str, str], list[int]] = {}
    shared: set[tuple[str, int, int]] = set()
    for info in table.infos.values():
        group = groups.setdefault((info.role, info.dtype), [0, 0])
        group[0] += 1
        if info.encoding == "absent":
            continue
        if info.storage and info.extent is not None:
            key = (info.storage, info.extent.offset, info.extent.length)
            if key in shared:
                continue
            shared.add(key)
        group[1] += prod(info.shape)
    roles: dict[str, list[int]] = {}
    dtypes: dict[str, int] = {}
    for (role, dtype), (tensors, elements) in groups.items():
        part = roles.setdefault(role, [0, 0, 0])
        part[0] += tensors
        part[1] += elements
        part[2] += DTYPES[dtype].nbytes(elements)
        dtypes[dtype] = dtypes.get(dtype, 0) + tensors
    levels = [f.severity for f in findings]
    return Summary(
        tensors=len(table),
        parameters=roles.get(weights, [0, 0, 0])[1],
        nbytes=sum(part[2] for part in roles.values()),
        errors=levels.count(Severity.ERROR),
        warnings=levels.count(Severity.WARNING),
        notes=levels.count(Severity.NOTE),
        dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])),
        parts=tuple(Part(role, *numbers) for role, numbers in roles.items()),
    )


def _matching(table: TensorTable, patterns: Sequence[str]) -> frozenset[str]:
    if not patterns:
        return frozenset()
    found = frozenset(filter(matcher(patterns), table))
    if not found:
        listed = " or ".join(repr(pattern) for pattern in patterns)
        hint = "--tensors all lists every name"
        raise UsageError(f"no tensor matches {listed}", where=table.path, hint=hint)
    return found


def _one_code_per_fault(findings: list[Finding], rules: Iterable[Rule]) -> list[Finding]:
    """Leave out what a more telling rule says about the same tensor."""
    replaced_by = {rule.code: rule.replaces for rule in rules if rule.replaces}
    if not replaced_by:
        return findings
    covered = {(code, f.tensor) for f in findings for code in replaced_by.get(f.code, ())}
    return [f for f in findings if (f.code, f.tensor) not in covered]


def _capped(finding: Finding) -> Finding:
    worst = USES[finding.role].worst
    return finding if finding.severity <= worst else replace(finding, severity=worst)
