"""How alike a donor is, in words: how many tensors match, how far the weights lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import UsageError
from ..matching import Match
from ..rules.base import Context
from ..tensors import TensorTable
from .likeness import Likeness, compare

__all__ = [
    "FEWEST", "HINT", "NEAR", "OTHER_RUN", "check_architecture", "facts_of", "likeness_of",
    "listed", "warnings_of",
]  # fmt: skip

FEWEST = 0.625
"""Share of the patient's weights that must have a partner.  Of 7,696 ordered pairs of 89 files of
different models, unrelated ones share up to 0.607 (two residual networks for small images), 99 %
of all less than 0.6.  The same network without a last stage or without affine parameters has 0.64
and 0.68, with another head 0.9 and more."""

NEAR = 0.1
"""Median relative distance of the matrices up to which a donor counts as of the same run.
Five older checkpoints beside their patients: 0.028 to 0.041, and grafting all statistics cost at
most 0.8 points of accuracy.  A small network, trained three times, lost 1 point at 0.08, 1 to 9
at 0.14, 3 to 36 at 0.4 to 0.5."""

OTHER_RUN = 1.0
"""Distance from which it is another training run: random directions give the root of 2; five pairs
of other runs or a run's far ends have 1.37 to 1.58."""

HINT = "name an older or sibling checkpoint of the same model"

_SHOWN = 3
"""Names that a message lists of each side."""


def likeness_of(ctx: Context, table: TensorTable, found: Match) -> Likeness | None:
    """Compare matrices, or in a model without any all tensors but running statistics.

    Gains start at 1 and offsets at 0, in every run alike: they say little.
    """
    statistics = {
        layer.parts[part].name
        for layer in ctx.layers.of_kind("batchnorm", "normalization")
        for part in ("mean", "var", "count")
        if part in layer.parts
    }
    pairs = {
        name: other
        for name, other in found.pairs.items()
        if ctx.table[name].role in ("model", "ema") and name not in statistics
    }
    matrices = {name: other for name, other in pairs.items() if len(ctx.table[name].shape) > 1}
    return compare(ctx.table, table, matrices) or compare(ctx.table, table, pairs)


def facts_of(found: Match, likeness: Likeness | None) -> Iterator[str]:
    """Yield what a report says of a donor, one fact each."""
    yield f"{found.matched:,} of {found.judged:,} tensors match"
    if found.misshaped:
        names = listed([name for name, _ in found.misshaped])
        yield f"{len(found.misshaped):,} have another shape: {names}"
    if found.missing:
        yield f"{len(found.missing):,} are not in the donor: {listed(found.missing)}"
    if likeness is None:
        return
    if not likeness.worst:
        yield "its weights are the same"
        return
    median, worst = _percent(likeness.median), _percent(likeness.worst)
    where = f"{likeness.name!r:.120}"
    yield f"weights differ by {median} (median of {likeness.tensors:,}), at most {worst}: {where}"
    if likeness.median <= NEAR:
        yield "a checkpoint of the same run, by its weights"


def warnings_of(likeness: Likeness | None) -> Iterator[str]:
    """Yield what speaks against a donor, in sentences."""
    if likeness is None or likeness.median <= NEAR:
        return
    far = _percent(likeness.median)
    if likeness.median >= OTHER_RUN:
        yield (
            f"The donor's weights differ by {far}: it is another training run, whose BatchNorm "
            "statistics do not fit these weights."
        )
    else:
        yield (
            f"The donor's weights differ by {far}: its BatchNorm statistics fit these weights "
            "less well (between 1 and 36 points of accuracy were lost at 10 % to 50 %)."
        )


def _percent(share: float) -> str:
    """Give a share for people.

    Examples
    --------
    >>> _percent(0.0314), _percent(1.41), _percent(1e9)
    ('3.1 %', '141 %', '1e+11 %')
    """
    percent = share * 100
    if percent >= 1e4:
        return f"{percent:.0e} %"
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def check_architecture(found: Match, where: str) -> None:
    """Raise `UsageError` if too few weights have a partner, naming some that differ."""
    if found.matched >= FEWEST * found.judged and found.matched:
        return
    message = (
        f"the donor is another architecture: {found.matched:,} of {found.judged:,} tensors match"
    )
    for what, names in (
        ("another shape", [name for name, _ in found.misshaped]),
        ("only in the file to repair", found.missing),
        ("only in the donor", found.surplus),
    ):
        if names:
            message += f"; {what}: {listed(names)}"
    raise UsageError(message, where=where, hint=HINT)


def listed(names: Sequence[str]) -> str:
    """Name the first few."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{name!r:.80}" for name in names[:_SHOWN]) + more
