"""The first bad step, found on the live model: which tensor ceased to be finite, and when.

Every step leaves one number for each tensor on the tensor's own device, and nobody waits for it;
every so many steps they are looked at together.  So a rare look still tells the exact step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bad", "Gauge", "Slot", "Watch"]

Kind = Literal["weight", "statistic"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor that is watched: its layer, its own name there, and what it is."""

    layer: str
    part: str
    kind: Kind

    @property
    def shown(self) -> str:
        """Name as a person says it.

        Examples
        --------
        >>> Slot("layer4.1.bn2", "running_var", "statistic").shown
        "BatchNorm 'layer4.1.bn2' running_var"
        """
        if not self.layer:
            return self.part
        owner = "BatchNorm" if self.kind == "statistic" else "layer"
        return f"{owner} {self.layer!r:.200} {self.part}"


class Gauge(Protocol):
    """Reads all watched tensors of a model; one for each framework."""

    slots: Sequence[Slot]
    dear: bool
    """Whether reading is more than to start some work: then only when it is time to look."""

    def read(self) -> Any:
        """Start to measure every tensor, and do not wait for the result."""

    def suspects(self, readings: Sequence[Any]) -> NDArray[np.bool_]:
        """Tell, by reading and tensor, which measures are not finite: a value is not, or is huge."""

    def kind(self, slot: int) -> str:
        """``NaN`` or ``Inf`` if the tensor holds such a value now, else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """The first step after which a tensor was not finite.

    Parameters
    ----------
    step
        Steps done.
    tensor
        The first such tensor, in the model's order.
    kind
        ``weight`` or ``statistic``.
    value
        ``NaN`` or ``Inf``.
    others
        Further tensors that were not finite after the same step.
    weights_finite
        Whether every weight was finite then.
    from_start
        Whether it was so when training began: the step only says when that was.
    """

    step: int
    tensor: str
    kind: Kind
    value: str
    others: int = 0
    weights_finite: bool = False
    from_start: bool = False

    def told(self) -> str:
        """Say it in one line.

        Examples
        --------
        >>> print(Bad(step=1234, tensor="BatchNorm 'bn2' running_var", kind="statistic",
        ...           value="Inf", others=1, weights_finite=True).told())
        step 1,234: BatchNorm 'bn2' running_var became Inf (and 1 more tensor); weights are finite
        """
        more = f" (and {self.others:,} more tensor{'s' * (self.others > 1)})" if self.others else ""
        weights = "; weights are finite" if self.weights_finite else ""
        verb, when = ("was", " when training began") if self.from_start else ("became", "")
        return f"step {self.step:,}: {self.tensor} {verb} {self.value}{more}{when}{weights}"


class Watch:
    """Readings since the last look, each with the step after which it was taken."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self.dear = gauge.dear
        self._steps: list[int] = []
        self._readings: list[Any] = []

    def measure(self, step: int) -> None:
        """Measure after a step."""
        self._readings.append(self._gauge.read())
        self._steps.append(step)

    def look(self) -> Bad | None:
        """Look at what was measured since the last look."""
        steps, readings = self._steps, self._readings
        self._steps, self._readings = [], []
        if not steps or not self._gauge.slots:
            return None
        suspects = self._gauge.suspects(readings)
        # Measures overflow where values do not; NaN and Inf never heal, so asking now will do.
        kinds = {int(i): self._gauge.kind(int(i)) for i in np.flatnonzero(suspects.any(axis=0))}
        found = suspects & np.array([bool(kinds.get(i)) for i in range(suspects.shape[1])])
        if not found.any():
            return None
        at = int(np.argmax(found.any(axis=1)))
        here = [int(i) for i in np.flatnonzero(found[at])]
        slots, first = self._gauge.slots, here[0]
        return Bad(
            step=steps[at],
            tensor=slots[first].shown,
            kind=slots[first].kind,
            value=kinds[first],
            others=len(here) - 1,
            weights_finite=all(slots[i].kind != "weight" for i in here),
        )
