"""Where it begins: the first layer that gives what is not finite, or the same for every sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .norms import EXPLODED, Drift
from .precision import LIMITS
from .results import FirstBad, Origin
from .trace import LayerRow
from .weights import Known

__all__ = ["first_bad", "frozen_row", "listed"]

_SQUARES = 1e18
"""Magnitude whose square leaves float32."""
_HALF = 200.0
"""Magnitude whose square leaves float16."""
_LISTED = 5


def first_bad(rows: Sequence[LayerRow], known: Known, norms: Sequence[Drift]) -> FirstBad | None:
    """Find where values first stop being finite, and why; -Inf alone, as in masks, counts last."""
    began = [row for row in rows if row.began]
    if not began:
        return None
    grave = [row for row in began if row.outputs.badness == 2] or began
    row = grave[0]
    origin, reason = _cause(row, known, norms)
    others = [other.layer for other in grave[1:] if other.layer != row.layer]
    return FirstBad(
        row=row,
        origin=origin,
        reason=reason,
        said=known.said_of(row.layer),
        others=tuple(dict.fromkeys(others)),
    )


def _cause(row: LayerRow, known: Known, norms: Sequence[Drift]) -> tuple[Origin, str]:
    sick = list(_sick_tensors(row.layer, known))
    if sick:
        return "weights", f"its own {listed(sick)}: every input gives such values"
    drift = next((d for d in norms if d.layer == row.layer), None)
    if drift is not None and drift.negative:
        low = f", down to {drift.var[0]:.3g}" if drift.var else ""
        message = (
            f"its running variance is negative in {drift.negative} of {drift.channels} channels"
        )
        return "statistics", message + low
    overflow = _overflow(row, known)
    if overflow:
        return "overflow", overflow
    if not row.leaf:
        return "code", f"the layers inside it are fine: its own code makes them{_between(row)}"
    finite = "its weights and inputs are" if known.tensors_of(row.layer) else "its inputs are"
    hidden = "" if known.table.infos else ", or weights that are constants of the program"
    return "arithmetic", (
        f"{finite} finite: its own arithmetic makes them (a division by 0, a root or logarithm of "
        f"what is negative, Inf - Inf){hidden}"
    )


def _between(row: LayerRow) -> str:
    """Where in a layer's own code, by the layers inside it."""
    before, after = row.between
    if before and after:
        return f", between {before} (finite) and {after} (which is given them)"
    if after:
        return f", before {after} (which is given them)"
    return f", after {before} (finite)" if before else ""


def _sick_tensors(layer: str, known: Known) -> Iterator[str]:
    for name in known.tensors_of(layer):
        stats = known.stats.get(name)
        if stats is not None and stats.nonfinite:
            kind = "NaN" if stats.nan else "Inf"
            leaf = name[max(name.rfind("."), name.rfind("/")) + 1 :]
            yield f"{leaf} is {kind} in {stats.nonfinite:,} of {stats.count:,} values"


def _overflow(row: LayerRow, known: Known) -> str:
    """Tell an overflow by magnitudes near the end of the type; empty where it is none."""
    largest = max(row.inputs.largest, row.outputs.largest)
    dtypes = {known.table[name].dtype for name in known.tensors_of(row.layer)}
    if "float16" in dtypes and _HALF < largest <= LIMITS["float16"]:
        return f"an overflow: values reach {largest:.3g} in size, float16 ends at 65504"
    if largest > _SQUARES:
        return f"an overflow: values reach {largest:.3g} in size, float32 ends at 3.4e38"
    return ""


def frozen_row(
    rows: Sequence[LayerRow], norms: Sequence[Drift], *, constant: bool
) -> LayerRow | None:
    """First layer that gives the same for every sample, of inputs that differ.

    Where the model's output is ``constant``, a BatchNorm whose variance exploded comes first: it
    leaves a thousandth of the differences, which float32 loses in some layer further down.
    """
    crushing = {d.layer for d in norms if constant and (d.typical or 0.0) > EXPLODED}
    return next((row for row in rows if row.froze or row.layer in crushing), None)


def listed(words: Sequence[str]) -> str:
    """Join a few words; the rest are counted."""
    more = f" and {len(words) - _LISTED:,} more" if len(words) > _LISTED else ""
    return ", ".join(words[:_LISTED]) + more
