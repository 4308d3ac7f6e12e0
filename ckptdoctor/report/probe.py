"""A probe as text: what is wrong, where it begins, the layers around it, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from ..findings import Finding, Severity
from ..probing.norms import Agreement, Drift
from ..probing.results import FirstBad, ProbeReport, Sign
from ..probing.trace import LayerRow
from ..probing.training import closes
from ..probing.values import Span
from ..results import View
from .escape import display, shorten
from .grid import Column, grid
from .probe_layers import Layers, layer_name, layer_table
from .probe_types import types_table
from .words import INDENT, labelled, many, paint, prose, word

__all__ = ["render"]

_LABEL = 10
_NORMS = 12
_SAID = 3
_MESSAGE = 400


def render(report: ProbeReport, view: View, layers: Layers = "near") -> str:
    """Return the text; of a quiet view one line."""
    if report.error is not None:
        hint = f"; {report.error.hint}" if report.error.hint else ""
        message = display(report.error.message + hint)
        return f"{display(report.model)}: could not be probed: {message}\n"
    if view.quiet:
        return f"{_quiet(report, view)}\n"
    table = partial(layer_table, layers=layers)
    sections = (_head, _verdict, _first, _signs, _norms, table, types_table, _next)
    texts = ["\n".join(section(report, view)) for section in sections]
    return "\n\n".join(text for text in texts if text) + "\n"


def _quiet(report: ProbeReport, view: View) -> str:
    """Verdict with the worst sign, in one line."""
    verdict, reason = _judged(report)
    worst = report.signs[0] if verdict != "fit" else None
    tells = f": {worst.kind}: {_sentence(worst)}" if worst is not None else ""
    return f"{display(report.model)}: {word(verdict, view)}: {reason}{tells}"


def _head(report: ProbeReport, view: View) -> Iterator[str]:
    title = display(report.model)
    if report.file and report.file != report.model:
        title += f" with the weights of {display(report.file)}"
    first, *rest = prose(title, view, "", INDENT)
    yield paint(first, "1", view)
    yield from (paint(line, "1", view) for line in rest)
    calls, names = len(report.rows), len({row.layer for row in report.rows})
    counts = [many(names, "layer")]
    if calls > names:
        counts.append(f"{calls:,} calls of them")
    counts.append(_count_of_norms(report))
    if report.rows:
        yield from prose(f"{report.framework}: {', '.join(counts)}", view, INDENT)
    samples = report.samples
    if samples is not None:
        shapes = ", ".join(
            f"{'x'.join(map(str, shape)) or 'scalar'} {dtype}"
            for shape, dtype in zip(samples.shapes, samples.dtypes, strict=True)
        )
        of = "" if samples.used == samples.total else f" of {samples.total:,}"
        number_ = f"{samples.used:,}{of} {'sample' if samples.total == 1 else 'samples'}"
        text = f"data: {display(samples.source)}, {number_} of {shapes}, {_range(samples.span)}"
        yield from prose(text, view, INDENT, INDENT + "  ")
    for sign in report.signs:
        if sign.kind == "scale":  # of the samples: it explains much of what comes
            yield from _told(sign, view)
    for note in report.notes:
        yield from prose(display(note), view, INDENT, INDENT + "  ")


def _count_of_norms(report: ProbeReport) -> str:
    """How many BatchNorms there are, and why some were not compared."""
    total, compared = max(report.norms_of, len(report.norms)), len(report.norms)
    text = many(total, "BatchNorm")
    if compared < total and compared:
        text += f", {compared:,} of them compared"
    blind = len([name for name in report.blind if name not in {d.layer for d in report.norms}])
    return text + (f" ({blind:,} were given nothing finite)" if blind else "")


def _range(span: Span) -> str:
    if not span.finite:
        return "none of them finite" if span.size else "none"
    return f"{span.low:.4g} to {span.high:.4g}"


def _judged(report: ProbeReport) -> tuple[str, str]:
    """Verdict, and what it is from."""
    errors = [sign for sign in report.signs if sign.severity is Severity.ERROR]
    warnings = [sign for sign in report.signs if sign.severity is Severity.WARNING]
    verdict = "unfit" if errors else "suspect" if warnings else "fit"
    counts = [many(len(s), w) for s, w in ((errors, "error"), (warnings, "warning")) if s]
    return verdict, " and ".join(counts) or "nothing found against what it makes of these samples"


def _verdict(report: ProbeReport, view: View) -> Iterator[str]:
    verdict, reason = _judged(report)
    lines = prose(reason, view, " " * 19)
    yield f"{INDENT}{'model':8}{word(verdict, view, 9)}{lines[0].strip()}"
    yield from lines[1:]


def _first(report: ProbeReport, view: View) -> Iterator[str]:
    """Say where it begins: the layer, what it was given, why, and what the file says of it."""
    first, frozen = report.first, report.frozen
    if first is not None and (report.bad or first.row.outputs.badness == 2):
        yield from labelled("first", _began(first), view, _LABEL)
        yield from labelled(
            "inputs", f"{_range(first.row.inputs)}{_how_fine(first.row)}", view, _LABEL
        )
        yield from labelled("why", display(first.reason), view, _LABEL)
        if first.others:
            listed = ", ".join(layer_name(name) for name in first.others[:4])
            more = f" and {len(first.others) - 4:,} more" if len(first.others) > 4 else ""
            yield from labelled("also", f"begins in {listed}{more}", view, _LABEL)
        yield from _said(first.said, report, view)
    elif frozen is not None and report.constant:
        text = "gives the same for every sample"
        if not frozen.constant:
            text = "its running variance leaves next to nothing of the differences between samples"
        yield from labelled("first", f"{_title(frozen)}: {text}", view, _LABEL)
        yield from labelled("inputs", f"{_range(frozen.inputs)}, which differ", view, _LABEL)
        said = [f for f in report.said if report.layers.get(f.tensor) == frozen.layer]
        yield from _said(said, report, view)
    else:
        errors = [f for f in report.said if f.severity is Severity.ERROR]
        yield from _said(errors, report, view, only_layer=False)


def _how_fine(row: LayerRow) -> str:
    if not row.inputs.size:
        return ""
    if row.inputs.nonfinite:
        return f", {row.inputs.nonfinite:,} of them not finite"
    return ", all finite"


def _began(first: FirstBad) -> str:
    row, out = first.row, first.row.outputs
    kinds = [
        f"{name} in {count:,}"
        for name, count in (("NaN", out.nan), ("+Inf", out.posinf), ("-Inf", out.neginf))
        if count
    ]
    return f"{_title(row)}: {', '.join(kinds)} of {out.size:,} values"


def _title(row: LayerRow) -> str:
    call = f", call {row.index + 1}" if row.index else ""
    return f"{layer_name(row.layer)} ({display(row.class_name)}{call})"


def _said(
    findings: Sequence[Finding], report: ProbeReport, view: View, *, only_layer: bool = True
) -> Iterator[str]:
    """Say what the file says; of a tensor its last name, where the layer was named before."""
    label = "the file" if report.file else "weights"
    for finding in findings[:_SAID]:
        name = report.tensors.get(finding.tensor, finding.tensor)
        if only_layer:
            name = name[max(name.rfind("."), name.rfind("/")) + 1 :]
        about = f"{display(name)}: " if name else ""
        text = f"{finding.code} {finding.name}: {about}{display(finding.message)}"
        yield from labelled(label, shorten(text, _MESSAGE), view, _LABEL)
    if len(findings) > _SAID:
        yield from labelled("", f"and {many(len(findings) - _SAID, 'more finding')}", view, _LABEL)


def _signs(report: ProbeReport, view: View) -> Iterator[str]:
    """Each sign; of BatchNorms a few, since they have a table of their own."""
    norms = 0
    for sign in report.signs:
        if sign.kind == "scale":
            continue  # told beside the samples
        if sign.kind.endswith("-statistics") and sign.layer:
            norms += 1
            if norms > _SAID:
                continue
        yield from _told(sign, view)
    if norms > _SAID:
        text = f"{many(norms - _SAID, 'more BatchNorm')} of this kind: see below"
        yield from labelled("", text, view, _LABEL)


def _told(sign: Sign, view: View) -> Iterator[str]:
    severity = sign.severity.name.lower()
    yield from labelled(severity, shorten(_sentence(sign), 2 * _MESSAGE), view, _LABEL, severity)


def _sentence(sign: Sign) -> str:
    """Message with the layer it is about."""
    message = display(sign.message)
    if not sign.layer:
        return message
    if sign.kind in ("nonfinite-output", "constant-output"):
        return f"{message}; it begins in {layer_name(sign.layer)}"
    if sign.kind.startswith(("overflows", "spoils")):
        return f"{message}: {layer_name(sign.layer)}"
    return f"{layer_name(sign.layer)}: {message}"


# BatchNorms.

_NORM_COLUMNS = (
    Column("BatchNorm", right=False),
    Column("variance", 1),
    Column("of the data", 1),
    Column("ratio", 0),
    Column("mean off by", 2),
    Column("far", 0),
    Column("of", 0),
)


def _norms(report: ProbeReport, view: View) -> Iterator[str]:
    """Show the BatchNorms that do not fit the data, the worst first, and how the others do."""
    if not report.norms:
        return
    random = report.samples is not None and report.samples.kind == "random"
    stale = any(sign.kind == "stale-statistics" for sign in report.signs)
    new = [sign for sign in report.signs if sign.kind == "new-statistics"]  # alike: in a line
    known = [d for d in report.norms if not any(d.layer in s.measured["layers"] for s in new)]
    far = [d for d in known if d.far or (d.stale and stale)]
    far.sort(key=lambda d: -d.score)
    if far:
        rows = [_norm_row(drift) for drift in far[:_NORMS]]
        yield from (INDENT + line for line in grid(_NORM_COLUMNS, rows, view.width - len(INDENT)))
    if len(far) > _NORMS:
        yield f"{INDENT}... and {many(len(far) - _NORMS, 'more BatchNorm')}: --format json"
    rest = [d for d in known if d not in far and d.ratio is not None]
    if rest and random:
        others = "other " if len(rest) < len(report.norms) else ""
        yield from prose(
            f"{others}statistics cannot be judged by random data", view, INDENT, INDENT
        )
    elif rest:
        yield from prose(_fitting(rest, report, far), view, INDENT, INDENT)
    train = report.train
    if train is not None and (far or not random):
        text = f"inference and training mode: {_agreement(train.agreement)}"
        if train.healed is not None:
            text += (
                f"; with batch statistics in {many(len(train.treated), 'BatchNorm')} only: "
                f"{_agreement(train.healed)}"
            )
        if train.pooled is not None:
            text += f"; with statistics of other batches in all: {_agreement(train.pooled)}"
        yield from prose(f"{text} (batches of {train.batch})", view, INDENT, INDENT)


def _fitting(rest: Sequence[Drift], report: ProbeReport, far: Sequence[Drift]) -> str:
    """How well the BatchNorms do that are not named."""
    others = bool(far) or any(sign.kind == "new-statistics" for sign in report.signs)
    one, train = len(rest) == 1, report.train
    if train is not None and closes(train.pooled, train.agreement):
        fit = "is near the data" if one else "are each near the data"
    else:
        fit = "fits the data" if one else "fit the data"
    count = "BatchNorm" if one and others else many(len(rest), "BatchNorm")
    text = (
        f"{'the other ' if others else ''}{count} {fit}: variances within a factor of "
        f"{max(_factor(d) for d in rest):.3g}, means within "
        f"{max(d.distance or 0.0 for d in rest):.2g} standard deviations"
    )
    if far:
        return text
    worst = max(rest, key=lambda d: d.score)
    return f"{text} (the farthest: {layer_name(worst.layer)})"


def _factor(drift: Drift) -> float:
    ratio = drift.ratio or 1.0
    return max(ratio, 1 / ratio)


def _norm_row(drift: Drift) -> list[str]:
    bad = drift.nonfinite + drift.negative
    return [
        display(drift.layer),
        _pair(drift.var) if drift.var else "not finite",
        _pair(drift.data_var),
        "" if drift.ratio is None else f"{drift.ratio:.3g}",
        "" if drift.distance is None else f"{drift.distance:.2g} std",
        str(bad or drift.exploded),
        str(drift.channels),
    ]


def _pair(values: tuple[float, float] | None) -> str:
    return "" if values is None else f"{values[0]:.3g}..{values[1]:.3g}"


def _agreement(found: Agreement) -> str:
    if not found.reference:
        return "nothing finite in training mode either"
    if found.finite < found.samples:
        gone = found.samples - found.finite
        return f"{gone:,} of {found.samples:,} samples not finite in inference"
    difference = f"outputs differ by {found.difference:.2g} of their size"
    if found.share is not None:
        return f"same answer for {found.same:,} of {found.samples:,} samples, {difference}"
    return difference


def _next(report: ProbeReport, view: View) -> Iterator[str]:
    for command, tells in report.next:
        yield from labelled("next", display(tells[:1].upper() + tells[1:]) + ".", view, _LABEL)
        yield f"{INDENT}{' ' * _LABEL}{display(command)}"
