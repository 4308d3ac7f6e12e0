"""What stands where the edits of a plan go, and what will: words for the plan's table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from .edits import Edit, RepairPlan
from .outcome import Before
from .results import Report
from .tensors import Array, TensorTable
from .write.verify import elements
from .write.windows import aliases

__all__ = ["details_of", "in_words"]

_MADE = {"reinit": "drawn anew", "graft": "the donor's", "twin": "the copy's"}
"""Values that are made when they are written, by remedy."""


def details_of(table: TensorTable, plan: RepairPlan, before: Report) -> dict[int, Before]:
    """Tell of each change that overwrites elements, by its index in the plan.

    Parameters
    ----------
    table
        The open input.
    plan
        Its changes.
    before
        What was measured of the input: a tensor that is replaced whole is not read again.
    """
    shared: Mapping[str, int] = Counter(info.storage for info in table.values() if info.storage)
    return {
        index: _detail(table, change, before, shared)
        for index, change in enumerate(plan.changes)
        if isinstance(change, Edit)
    }


def _detail(table: TensorTable, edit: Edit, before: Report, shared: Mapping[str, int]) -> Before:
    info = table[edit.tensor]
    if edit.indices is None and before.stats is not None:
        stats = before.stats[info.name]
        was = _words(stats.nan, stats.posinf + stats.neginf, stats.minimum, stats.maximum)
    else:
        was = in_words(elements(table, edit.tensor, edit.indices))
    made = callable(edit.values)
    return Before(
        count=info.size if edit.indices is None else edit.indices.size,
        total=info.size,
        was=was,
        becomes=_MADE.get(edit.remedy, "new values") if made else in_words(edit.after()),
        aliases=aliases(table, info) if shared.get(info.storage, 0) > 1 else (),
    )


def in_words(values: Array) -> str:
    """Values as a table can hold them.

    Examples
    --------
    >>> in_words(np.array([np.nan, np.nan, 1.0])), in_words(np.array([2.0, 8.5]))
    ('2 NaN, 1', '2..8.5')
    """
    if values.dtype.fields or not values.size:
        return "complex" if values.size else ""
    with np.errstate(all="ignore"):
        real = np.abs(values) if values.dtype.kind == "c" else values
        flat = real.reshape(-1).astype(np.float64)
        finite = flat[np.isfinite(flat)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return _words(int(np.isnan(flat).sum()), int(np.isinf(flat).sum()), low, high)


def _words(nan: int, inf: int, low: float | None, high: float | None) -> str:
    parts = [f"{n:,} {word}" for n, word in ((nan, "NaN"), (inf, "Inf")) if n]
    if low is not None and high is not None:
        first, last = f"{low:.4g}", f"{high:.4g}"
        parts.append(first if first == last else f"{first}..{last}")
    return ", ".join(parts)
