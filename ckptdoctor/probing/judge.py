"""From what was seen to what is wrong: signs with their severity, and where it began."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..findings import Severity
from ..live.outliers import LARGE
from .norms import EXPLODED, OFF, STALE, Drift
from .origin import listed
from .precision import Precision
from .results import FirstBad, ProbeReport, Samples, Sign, TrainMode
from .training import closes, disagrees

__all__ = ["signs"]


def signs(report: ProbeReport) -> tuple[Sign, ...]:
    """Say what is wrong, errors first."""
    found = [
        *_about_samples(report.samples),
        *_about_scale(report),
        *_about_outputs(report),
        *_about_norms(report),
        *_about_training(report),
        *_about_precision(report),
        *_about_searches(report),
        *_about_saturation(report),
    ]
    return tuple(sorted(found, key=lambda sign: -sign.severity))


def _about_samples(samples: Samples | None) -> Iterator[Sign]:
    if samples is None:
        return
    bad = samples.nonfinite
    if bad:
        names = listed([str(s.index) for s in bad])
        message = (
            f"{len(bad):,} of {samples.used + len(bad):,} samples hold NaN or Inf ({names}): "
            "left out of all that follows"
        )
        yield Sign(
            kind="nonfinite-data",
            severity=Severity.ERROR,
            message=message,
            measured={"samples": [s.index for s in bad]},
        )
    if samples.alike:
        yield Sign(
            kind="same-data",
            severity=Severity.ERROR,
            message=f"the {samples.used:,} samples do not differ: they tell nothing of the model",
        )
    far = samples.outliers
    if far:
        names = listed([f"{s.index}: {s.low:.4g} to {s.high:.4g}" for s in far])
        message = (
            f"{len(far):,} of {samples.used:,} samples are far larger than the others, which reach "
            f"{samples.usual:.4g} ({names})"
        )
        yield Sign(
            kind="outlying-data",
            severity=Severity.WARNING,
            message=message,
            measured={"samples": [s.index for s in far], "usual": samples.usual},
        )
    if samples.large:
        names = listed([f"{s.index}: {s.low:.4g} to {s.high:.4g}" for s in samples.large])
        verb = "is" if len(samples.large) == 1 else "are"
        message = (
            f"{len(samples.large):,} of {samples.used:,} samples {verb} over {LARGE:g} times as "
            f"large as usual ({names}): kept out of training mode, and left out by recalibration"
        )
        yield Sign(
            kind="large-data",
            severity=Severity.NOTE,
            message=message,
            measured={"samples": [s.index for s in samples.large], "usual": samples.usual},
        )


def _about_scale(report: ProbeReport) -> Iterator[Sign]:
    scale = report.scale
    if scale is not None:
        yield Sign(
            kind="scale",
            severity=Severity.WARNING,
            message=f"{scale}: {scale.advice}",
            measured={
                "layer": scale.norm, "factor": scale.factor, "means_too": scale.together,
            },
        )  # fmt: skip


def _about_outputs(report: ProbeReport) -> Iterator[Sign]:
    first, used = report.first, report.samples.used if report.samples else 0
    if report.bad:
        kind = _kind_of_bad(first)
        message = f"the model's output is {kind} for {report.bad:,} of {used:,} samples"
        layer = first.row.layer if first else ""
        measured = {"samples": report.bad, "of": used, "origin": first.origin if first else ""}
        yield Sign(
            kind="nonfinite-output",
            severity=Severity.ERROR,
            message=message,
            layer=layer,
            measured=measured,
        )
    elif first is not None:
        severity = Severity.WARNING if first.row.outputs.badness == 2 else Severity.NOTE
        out = first.row.outputs
        message = (
            f"gives {_kind_of_bad(first)} in {out.nonfinite:,} of {out.size:,} values, "
            "which do not reach the model's output"
        )
        yield Sign(
            kind="nonfinite-inside", severity=severity, message=message, layer=first.row.layer
        )
    if report.constant:
        layer = report.frozen.layer if report.frozen else ""
        message = f"the model's output is the same for all {used:,} samples, which differ"
        yield Sign(kind="constant-output", severity=Severity.ERROR, message=message, layer=layer)
    elif report.frozen is not None and not report.bad:
        message = "gives the same for every sample, of inputs that differ"
        yield Sign(
            kind="constant-inside",
            severity=Severity.NOTE,
            message=message,
            layer=report.frozen.layer,
        )


def _kind_of_bad(first: FirstBad | None) -> str:
    if first is None or first.row.outputs.nan:
        return "NaN"
    out = first.row.outputs
    return "Inf" if out.posinf else "-Inf"


def _about_norms(report: ProbeReport) -> Iterator[Sign]:
    """Say which BatchNorms do not fit the data: errors where the outputs suffer."""
    random = report.samples is not None and report.samples.kind == "random"
    suffers = bool(report.bad) or report.constant or disagrees(report.train)
    grave = Severity.ERROR if suffers and not random else Severity.WARNING
    staleness = disagrees(report.train) and not random
    new = [d.layer for d in report.norms if d.new and (d.far or (d.stale and staleness))]
    if new:
        message = (
            f"the statistics of {_layers(len(new))} are those of a new layer (mean 0, variance 1) "
            f"and do not fit the data: {listed(new)}"
        )
        measured = {"layers": new}
        yield Sign(kind="new-statistics", severity=grave, message=message, measured=measured)
    for drift in sorted((d for d in report.norms if d.far and not d.new), key=lambda d: -d.score):
        severity = Severity.ERROR if drift.broken else grave
        aside = _uncalled(report, drift)
        if not drift.broken and drift.layer == _rescaled(report):
            severity, aside = Severity.WARNING, "; that is how these samples are scaled"
        yield Sign(
            kind="broken-statistics" if drift.broken else _kind_of_drift(drift),
            severity=severity,
            message=drift_in_words(drift) + aside,
            layer=drift.layer,
            measured={
                "nonfinite": drift.nonfinite,
                "negative": drift.negative,
                "channels": drift.channels,
                "ratio": drift.ratio,
                "typical": drift.typical,
                "distance": drift.distance,
            },
        )
    stale = [d for d in report.norms if d.stale and not d.far and not d.new]
    if stale and staleness:
        worst = max(stale, key=lambda d: d.score)
        message = (
            f"the statistics of {_layers(len(stale))} do not fit the data: a variance is "
            f"{STALE:.0f} times off, or a mean {OFF:.0f} standard deviation; the farthest, "
            f"{worst.layer}: {drift_in_words(worst)}"
        )
        yield Sign(
            kind="stale-statistics",
            severity=Severity.ERROR,
            message=message,
            measured={"layers": [d.layer for d in stale]},
        )


def _rescaled(report: ProbeReport) -> str | None:
    """Name the BatchNorm that is off for no other reason than samples that were not scaled."""
    return report.scale.norm if report.scale is not None and report.scale.refused else None


def _uncalled(report: ProbeReport, drift: Drift) -> str:
    """Say that a layer takes no part in inference, such as one of a head for training alone."""
    called = drift.values or drift.layer in report.blind
    return "" if called else "; it is not called on these data"


def _kind_of_drift(drift: Drift) -> str:
    ratio = drift.ratio or 1.0
    if ratio > EXPLODED:
        return "exploded-statistics"
    return "collapsed-statistics" if ratio < 1 / EXPLODED else "shifted-statistics"


def drift_in_words(drift: Drift) -> str:
    """Say in one line how a BatchNorm's statistics relate to the data.

    It is a clause about the layer, without its name.
    """
    if drift.nonfinite:
        return (
            f"running statistics are NaN or Inf in {drift.nonfinite} of {drift.channels} channels"
        )
    if drift.negative:
        return f"running variance is negative in {drift.negative} of {drift.channels} channels"
    parts = []
    if drift.var is not None and drift.data_var is not None:
        (low, high), (data_low, data_high) = drift.var, drift.data_var
        parts.append(
            f"running variance {_reach(low, high)}, the data's {_reach(data_low, data_high)}"
        )
    if drift.ratio is not None:
        times = drift.ratio if drift.ratio >= 1 else 1 / drift.ratio
        word = "larger" if drift.ratio >= 1 else "smaller"
        parts.append(f"up to {times:,.4g} times {word}")
    if drift.distance is not None and drift.distance > 1:
        parts.append(f"mean {drift.distance:,.3g} standard deviations off")
    return "; ".join(parts)


def _reach(low: float, high: float) -> str:
    words = f"{low:.3g}", f"{high:.3g}"
    return words[0] if words[0] == words[1] else " to ".join(words)


def _about_training(report: ProbeReport) -> Iterator[Sign]:
    train = report.train
    if train is None:
        return
    found, random = train.agreement, report.samples is not None and report.samples.kind == "random"
    if found.reference < found.samples:
        bad = found.samples - found.reference
        message = (
            f"in training mode the output is not finite for {bad:,} of {found.samples:,} samples"
        )
        yield Sign(kind="nonfinite-in-training", severity=Severity.WARNING, message=message)
    if not disagrees(train) or (random and not train.treated):
        return  # no healthy statistics fit random data
    healed, pooled = closes(train.healed, found), closes(train.pooled, found)
    words = f"inference and training mode {_agreeing(train)}"
    if train.healed is not None:
        count = len(train.treated)
        words += (
            f"; with the statistics of the batch in {_layers(count)} only: {_share(train.healed)}"
        )
        words += "" if healed or pooled else "; that does not explain it"
    if pooled and train.pooled is not None:
        words += (
            "; with statistics pooled over these samples in all BatchNorms: "
            f"{_share(train.pooled)}: the running statistics do not fit the data"
        )
    explained = healed or pooled
    severity = Severity.ERROR if explained and not random else Severity.WARNING
    if train.treated == (_rescaled(report),):
        severity = Severity.WARNING
    if not explained and not train.treated:
        severity = Severity.NOTE
        words += ", nor do statistics pooled over these samples" if train.pooled else ""
        words += ": small batches may do that"
    yield Sign(
        kind="train-eval-disagreement",
        severity=severity,
        message=words,
        measured={
            "share": found.share,
            "difference": found.difference,
            "treated": list(train.treated),
            "explained": explained,
        },
    )


def _agreeing(train: TrainMode) -> str:
    found = train.agreement
    if found.share is not None:
        return f"agree on {found.same:,} of {found.samples:,} samples"
    if found.finite < found.reference:
        bad = found.reference - found.finite
        return f"differ: {bad:,} of {found.samples:,} samples are finite in training mode only"
    return f"differ by {found.difference:.3g} of the outputs' size"


def _share(found: Any) -> str:
    if found.share is not None:
        return f"{found.same:,} of {found.samples:,}"
    return f"they differ by {found.difference:.3g} of it"


def _about_precision(report: ProbeReport) -> Iterator[Sign]:
    base = next((p for p in report.precisions if p.dtype == "float32"), None)
    for found in report.precisions:
        if found is base and found.training:
            message = "training on these samples would spoil its running statistics"
            yield _precision_sign("spoils", found, message, found.training)
        if base is None or found is base:
            continue
        if found.bad > base.bad:
            message = (
                f"in {found.dtype} the output is not finite for {found.bad:,} of "
                f"{found.samples:,} samples"
            )
            yield _precision_sign("overflows", found, message, found.first)
        elif found.first and found.first != base.first:
            message = f"in {found.dtype} its values leave the range of the type"
            yield _precision_sign("overflows", found, message, found.first)
        if found.training and found.training != base.training:
            message = (
                f"training in {found.dtype} on these samples would spoil its running statistics"
            )
            yield _precision_sign("spoils", found, message, found.training)


def _precision_sign(kind: str, found: Precision, message: str, layer: str) -> Sign:
    return Sign(
        kind=f"{kind}-{found.dtype}",
        severity=Severity.WARNING,
        message=message,
        layer=layer,
        measured={"bad": found.bad, "samples": found.samples},
    )


def _about_searches(report: ProbeReport) -> Iterator[Sign]:
    for search in report.searches:
        if search.clean:
            continue
        if search.everyone:
            message = f"{search.mode}: every sample breaks the model: it is not the data"
        else:
            parts = []
            if search.culprits:
                names = listed([f"{c.index}: {c.low:.4g} to {c.high:.4g}" for c in search.culprits])
                count = len(search.culprits)
                verb = "breaks" if count == 1 else "break"
                parts.append(f"{count:,} of {search.samples:,} samples {verb} the model ({names})")
            parts += [
                f"samples {listed([str(i) for i in group])} break it together only"
                for group in search.groups
            ]
            message = f"{search.mode}: {'; '.join(parts)}"
        rounded = " in " in search.mode
        yield Sign(
            kind="breaking-samples",
            severity=Severity.WARNING if rounded or search.everyone else Severity.ERROR,
            message=message,
            measured={"mode": search.mode, "samples": [c.index for c in search.culprits]},
        )


def _about_saturation(report: ProbeReport) -> Iterator[Sign]:
    stuck = [row for row in report.rows if row.stuck]
    if stuck:
        row = stuck[0]
        others = f"; so are {listed([r.layer for r in stuck[1:]])}" if stuck[1:] else ""
        message = f"is saturated: {row.saturated or 0:.1%} of its outputs are at a limit{others}"
        yield Sign(
            kind="saturated",
            severity=Severity.NOTE,
            message=message,
            layer=row.layer,
            measured={"layers": [r.layer for r in stuck]},
        )


def _layers(count: int) -> str:
    return "1 BatchNorm" if count == 1 else f"{count:,} BatchNorms"
