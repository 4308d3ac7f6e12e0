"""How well a model in inference mode agrees with itself in training mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..live.subject import Arrays, Statistics, Subject
from ..tensors import Array

__all__ = ["Agreement", "alike", "compared", "holding"]

_ROUNDING = 1e-10
"""Share of the mean square below which a spread is that of rounding in float32."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Outputs of inference held against those of training mode.

    Parameters
    ----------
    error
        Mean square of the difference over the mean square by which training mode's outputs differ
        between samples: 0 is the same, 2 as far off as another sample's output; infinite where
        outputs are not finite.
    classes
        Share of samples whose largest output is the same one; None where outputs are no row of
        scores per sample.

    Examples
    --------
    >>> print(Agreement(0.0312, 0.984), Agreement(float("inf"), None), sep="; ")
    98.4 % same class, relative error 0.031; outputs not finite
    """

    error: float
    classes: float | None

    def __str__(self) -> str:
        if not np.isfinite(self.error):
            return "outputs not finite"
        told = f"relative error {self.error:.2g}"
        return told if self.classes is None else f"{100 * self.classes:.3g} % same class, {told}"


@contextmanager
def holding(subject: Subject, statistics: Mapping[str, Statistics]) -> Iterator[None]:
    """Have a model hold other statistics for a while."""
    own = {name: subject.statistics(name) for name in statistics}
    try:
        for name, values in statistics.items():
            subject.set_statistics(name, values)
        yield
    finally:
        for name, values in own.items():
            subject.set_statistics(name, values)


def compared(outputs: Sequence[Arrays], wanted: Sequence[Arrays]) -> Agreement | None:
    """Compare outputs, by batch, with those that are wanted; every output of a model counts alike.

    None where no output has one row per sample, as those of detectors may.  Where fewer are wanted,
    those without such rows were left out, such as a loss: they are left out of both.

    Examples
    --------
    >>> wanted = [(np.array([[1.0, 0.0], [0.0, 1.0]]),)]
    >>> compared([(np.array([[1.0, 0.5], [0.0, 1.0]]),)], wanted)
    Agreement(error=0.25, classes=1.0)
    """
    errors: list[float] = []
    classes: list[float] = []
    ours = [_aligned(*pair) for pair in zip(outputs, wanted, strict=False)]
    for one, other in zip(_columns(ours), _columns(wanted), strict=False):
        if one is None or other is None or one.shape != other.shape:
            continue
        flat, goal = (values.reshape(len(values), -1).astype(np.float64) for values in (one, other))
        errors.append(_error(flat, goal))
        if one.ndim == 2 and one.shape[1] > 1:
            classes.append(float(np.mean(flat.argmax(1) == goal.argmax(1))))
    if not errors:
        return None
    return Agreement(float(np.mean(errors)), float(np.mean(classes)) if classes else None)


def _aligned(one: Arrays, other: Arrays) -> Arrays:
    """Keep outputs with as many rows as those that are wanted, where there are more of them."""
    if len(one) <= len(other) or not other:
        return one
    return tuple(array for array in one if array.ndim and len(array) == len(other[0]))


def alike(outputs: Sequence[Arrays]) -> bool:
    """Whether no output, by batch, differs between samples by more than rounding.

    Examples
    --------
    >>> alike([(np.array([[1.0, 2.0], [1.0, 2.0]]),)]), alike([(np.array([[1.0], [2.0]]),)])
    (True, False)
    """
    columns = [column for column in _columns(outputs) if column is not None and column.size]
    return bool(columns) and all(
        _spread(flat) <= _ROUNDING * float(np.mean(np.square(flat)))
        for flat in (column.reshape(len(column), -1).astype(np.float64) for column in columns)
    )


def _columns(batches: Sequence[Arrays]) -> Iterator[Array | None]:
    """Each output over all batches; None where it does not line up."""
    for parts in zip(*batches, strict=False):
        shapes = {part.shape[1:] for part in parts}
        yield np.concatenate(parts) if len(shapes) == 1 and parts[0].ndim else None


def _error(one: Array, other: Array) -> float:
    if not np.isfinite(one).all() or not np.isfinite(other).all():
        return float("inf")
    spread = _spread(other)
    off = float(np.mean(np.square(one - other)))
    return off / spread if spread else (0.0 if not off else float("inf"))


def _spread(flat: Array) -> float:
    """Mean square by which rows differ from their mean."""
    return float(np.mean(np.square(flat - flat.mean(0))))
