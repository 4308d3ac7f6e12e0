"""Which tensors a report lists, in which order; repeated blocks folded into one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..findings import Severity
from ..measure.stats import StatsTable, TensorStats
from ..results import Report, Sort, View
from ..tensors import TensorInfo

__all__ = [
    "SORTS",
    "Row",
    "chosen_rows",
    "fold_names",
    "folded",
    "hidden_layer",
    "row_of",
    "suspects",
]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a tensor, or ``count`` that differ only in the numbers in their names.

    ``layer`` is empty where the name tells it.  Numbers are of all of them together; ``mean`` and
    ``std`` are None for more than one.
    """

    layer: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    count: int
    nan: int
    posinf: int
    neginf: int
    zeros: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None


def _magnitude(stats: TensorStats) -> float:
    return max(abs(stats.minimum or 0.0), abs(stats.maximum or 0.0))


SORTS: dict[Sort, Callable[[TensorInfo, TensorStats], object] | None] = {
    "file": None,
    "name": lambda info, _: info.name,
    "size": lambda info, _: -info.size,
    "nonfinite": lambda _, stats: -(stats.nan + stats.posinf + stats.neginf),
    "max": lambda _, stats: -_magnitude(stats),
}
"""Orders of the table: how the file has it, or by a key; equal keys stay in file order."""


def suspects(report: Report) -> frozenset[str]:
    """Names of the tensors that an error or a warning is about."""
    return frozenset(f.tensor for f in report.findings if f.tensor and f.severity > Severity.NOTE)


def chosen_rows(report: Report, view: View, default: str) -> Sequence[TensorInfo]:
    """Tensors to list: what ``view`` asks for, in the order it asks for."""
    mode = view.tensors or default
    if report.table is None or report.stats is None or mode == "none":
        return ()
    infos: Iterable[TensorInfo] = report.table.infos.values()
    if report.judged is not None:
        judged = report.judged
        infos = [info for info in infos if info.name in judged]
    if mode == "suspect":
        wanted = suspects(report)
        infos = [info for info in infos if info.name in wanted]
    key = SORTS[view.sort]
    if key is None:
        return list(infos)
    stats = report.stats
    return sorted(infos, key=lambda info: key(info, stats[info.name]))  # type: ignore[arg-type,return-value]


def hidden_layer(layer: str, name: str) -> str:
    """Return the layer's name where the tensor's name does not hold it, else nothing.

    Examples
    --------
    >>> hidden_layer("post_bn", "layers/batch_normalization_6/vars/2")
    'post_bn'
    >>> hidden_layer("resnet/post_bn", "model_weights/resnet/post_bn/moving_mean")
    ''
    """
    inside = name.startswith((f"{layer}/", f"{layer}.")) or f"/{layer}/" in name
    return "" if not layer or inside else layer


def row_of(info: TensorInfo, s: TensorStats) -> Row:
    """Row of a single tensor."""
    return Row(
        hidden_layer(info.layer, info.name),
        info.name, info.dtype, info.shape, info.role, 1, s.nan, s.posinf, s.neginf, s.zeros,
        s.minimum, s.maximum, s.mean, s.std,
    )  # fmt: skip


def folded(infos: Iterable[TensorInfo], stats: StatsTable) -> list[Row]:
    """Rows with repeated blocks folded: same dtype, shape, role and name up to its numbers.

    The last component stays: ``vars/2`` and ``vars/3`` of a layer are its mean and its variance.
    """
    groups: dict[object, list[Row]] = {}
    for info in infos:
        row = row_of(info, stats[info.name])
        block, _, last = info.name.rpartition("/" if "/" in info.name else ".")
        words = (_NUMBER.sub("#", block), last, _NUMBER.sub("#", row.layer))
        groups.setdefault((words, info.dtype, info.shape, info.role), []).append(row)
    return [_merged(group) for group in groups.values()]


def _merged(group: list[Row]) -> Row:
    if len(group) == 1:
        return group[0]
    lows = [row.minimum for row in group if row.minimum is not None]
    highs = [row.maximum for row in group if row.maximum is not None]
    return replace(
        group[0],
        layer=fold_names([row.layer for row in group]),
        name=fold_names([row.name for row in group]),
        count=len(group),
        nan=sum(row.nan for row in group),
        posinf=sum(row.posinf for row in group),
        neginf=sum(row.neginf for row in group),
        zeros=sum(row.zeros for row in group),
        minimum=min(lows, default=None),
        maximum=max(highs, default=None),
        mean=None,
        std=None,
    )


_NUMBER = re.compile(r"[0-9]{1,9}")


def fold_names(names: Sequence[str]) -> str:
    """One pattern for names that differ in their numbers only; it may cover more than they are.

    Examples
    --------
    >>> fold_names(["layer1.0.bn1.bias", "layer1.1.bn1.bias", "layer1.2.bn1.bias"])
    'layer1.{0..2}.bn1.bias'
    >>> fold_names(["block4.w", "block7.w"])
    'block{4,7}.w'
    >>> fold_names([f"block{n}.w" for n in range(0, 160, 3)])
    'block{0,3,6,...,159}.w'
    """
    texts = _NUMBER.split(names[0])
    columns = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    slots = [_range(sorted({int(n) for n in column}), column[0]) for column in columns]
    return texts[0] + "".join(slot + text for slot, text in zip(slots, texts[1:], strict=True))


def _range(numbers: list[int], first: str) -> str:
    if len(numbers) == 1:
        return first
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    parts = [str(a) if a == b else f"{a},{b}" if b == a + 1 else f"{a}..{b}" for a, b in runs]
    if len(parts) > 4:
        parts[3:] = ["...", str(numbers[-1])]
    return "{" + ",".join(parts) + "}"
