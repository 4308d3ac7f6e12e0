"""What a checkpoint shows, beyond single findings: which kinds of tensors are bad, and how deep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ..findings import Finding, Severity
from ..rules.intended import intended
from .hyperparameters import Settings, read_settings

if TYPE_CHECKING:
    from ..layers import Layer
    from ..measure.stats import TensorStats
    from ..rules.base import Context
    from ..tensors import TensorInfo

__all__ = ["Facts", "Place", "short_list"]

_CHANNELS_READ = 1 << 16
"""Elements of a vector that is read to name its channels."""


class Place(NamedTuple):
    """Where a finding is: depth first, so that places sort in data-flow order."""

    depth: int
    row: int
    layer: str


class Facts:
    """A checkpoint and its findings, asked by patterns, causes and advice."""

    def __init__(self, context: Context, findings: Sequence[Finding], file: str) -> None:
        self.ctx, self.findings, self.file = context, findings, file
        self._row = {name: row for row, name in enumerate(context.table.infos)}
        # asked again and again by patterns, causes and evidence; the findings outlive this object
        self._places: dict[int, Place] = {}

    @cached_property
    def settings(self) -> Settings:
        """Settings of the training run that the file stores."""
        return read_settings(self.ctx.table, self.ctx.stats, self.ctx.layers)

    @property
    def keras(self) -> bool:
        """Whether Keras wrote it."""
        return self.settings.keras

    @cached_property
    def bad(self) -> dict[str, dict[str, TensorStats]]:
        """Tensors with non-finite values that are not meant to be, by what they are.

        ``statistics`` are running means and variances, ``weights`` everything else of the model
        and its EMA, then ``optimizer``; loop state counts nowhere.
        """
        stats = self.ctx.stats
        found: dict[str, dict[str, TensorStats]] = {
            "statistics": {},
            "weights": {},
            "optimizer": {},
        }
        for info, numbers in self.ctx.where((stats.nan + stats.posinf + stats.neginf) > 0):
            if info.role in ("model", "ema"):
                kind = "statistics" if self.is_statistic(info.name) else "weights"
            elif info.role == "optimizer":
                kind = "optimizer"
            else:
                continue
            if not intended(self.ctx, info, numbers):
                found[kind][info.name] = numbers
        return found

    @cached_property
    def roles(self) -> dict[str, int]:
        """Tensors by role."""
        counts: dict[str, int] = {}
        for info in self.ctx.table.infos.values():
            counts[info.role] = counts.get(info.role, 0) + 1
        return counts

    def is_statistic(self, tensor: str) -> bool:
        """Whether a tensor is a running mean or variance of a BatchNorm."""
        layer = self.ctx.layers.of(tensor)
        return (
            layer is not None
            and layer.kind == "batchnorm"
            and self.ctx.layers.part_of(tensor) in ("mean", "var")
        )

    def code_of(self, finding: Finding) -> str:
        """Code by which patterns know a finding: what a general rule says in a special place."""
        if finding.code in ("NF001", "NF002"):
            if self.is_statistic(finding.tensor):
                return "BN001"
            return "TS001" if finding.role == "optimizer" else finding.code
        if finding.code == "BN003" and finding.severity < Severity.ERROR:
            layer = self.ctx.layers.of(finding.tensor)
            if layer is not None and layer.key in self.ctx.graph.first:
                return "BN003 first"
        return finding.code

    def place_of(self, finding: Finding) -> Place:
        """Depth of the layer that a finding is about, else its row in the table."""
        place = self._places.get(id(finding))
        if place is None:
            place = self._places[id(finding)] = self._place(finding)
        return place

    def _place(self, finding: Finding) -> Place:
        # the optimizer's tensors are numbered: the parameter they belong to has a name
        tensor = str(finding.measured.get("parameter", finding.tensor))
        layer = self.ctx.layers.of(tensor)
        row = self._row.get(tensor, len(self._row))
        if layer is None:
            return Place(len(self._row), row, finding.layer or finding.tensor)
        return Place(self.ctx.graph.depth(layer), row, layer.name)

    def info(self, tensor: str) -> TensorInfo | None:
        """Row of the table; None for numbers of the training state."""
        return self.ctx.table.infos.get(tensor)

    def layer(self, tensor: str) -> Layer | None:
        """Layer that a tensor is part of."""
        return self.ctx.layers.of(tensor)

    def numbers(self, layer: Layer, part: str) -> TensorStats | None:
        """Statistics of a part of a layer."""
        info = layer.parts.get(part)
        return None if info is None else self.ctx.stats[info.name]

    def bad_channels(self, info: TensorInfo) -> str:
        """Name the channels that are not finite, as ``3, 7, 9..12``; empty where all are."""
        import numpy as np  # noqa: PLC0415

        numbers = self.ctx.stats[info.name]
        if not 0 < numbers.nonfinite < numbers.count <= _CHANNELS_READ:
            return ""
        values = self.ctx.read(info).reshape(-1)
        with np.errstate(invalid="ignore"):
            return short_list(np.flatnonzero(~np.isfinite(values)).tolist())

    def exit_code(self, *, purpose: str = "any", weights: str = "model") -> int:
        """Exit code of ``inspect`` for this purpose: 1 where an error counts for it."""
        used = {weights, "container", "other"}
        return int(
            any(
                finding.severity is Severity.ERROR and (purpose != "serve" or finding.role in used)
                for finding in self.findings
            )
        )

    def float16(self, tensors: Iterable[str]) -> bool:
        """Whether any of these is stored in a type of a small range (float16, float8_e5m2)."""
        infos = (self.info(name) for name in tensors)
        return any(info is not None and info.dtype in ("float16", "float8_e5m2") for info in infos)


def short_list(numbers: Sequence[int], shown: int = 6) -> str:
    """Numbers with runs drawn together and the rest counted.

    Examples
    --------
    >>> short_list([3, 7, 9, 10, 11]), short_list(range(0, 40, 2))
    ('3, 7, 9..11', '0, 2, 4, 6, 8, 10 and 14 more')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [str(a) if a == b else f"{a}..{b}" for a, b in runs[:shown]]
    rest = sum(b - a + 1 for a, b in runs[shown:])
    return ", ".join(parts) + (f" and {rest:,} more" if rest else "")
