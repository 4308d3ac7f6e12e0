"""On which side of its BatchNorm a kernel stands, where its shape allows both.

In a pre-activation net ``bn2`` stands before ``conv2`` and behind ``conv1``.  Where a kernel has as
many inputs as outputs, other pairs of the same names tell: those whose shapes leave no choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from .kernels import Fit, is_kernel
from .siblings import Place
from .words import generic

__all__ = ["Sides"]


class Sides:
    """What the pairs of a net say about each other."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._votes: Counter[tuple[str, str]] = Counter()
        self._widths: Counter[int] = Counter()

    def vote(self, side: Literal["behind", "rather behind", "before"], norm: Place) -> None:
        """Count a BatchNorm that stands behind or before its kernel for sure."""
        for kind in ("", generic(norm.leaf), generic(norm.name)):
            self._votes[side, kind] += 1

    def open(self, norm: Place, kernel: Place, found: Fit) -> bool:
        """Whether the shape of a kernel with the right outputs lets it stand on either side."""
        if found.takes:
            return True
        if found.grouped and self._is_usual(kernel):
            self.vote("rather behind", norm)
            return True
        return False

    def _is_usual(self, kernel: Place) -> bool:
        """Whether other kernels of the net have as few inputs; an image's are taken by one."""
        inputs = _width(kernel)
        if not self._widths:
            self._widths.update(_width(place) for place in self._places if is_kernel(place.layer))
        return inputs > 4 or self._widths[inputs] > 1

    def told(self, norm: Place) -> str:
        """``behind``, ``before`` or, where the net has no example or several, nothing."""
        behind = before = 0
        for kind in (generic(norm.name), generic(norm.leaf), ""):
            if not behind and not before:
                behind, before = self._votes["behind", kind], self._votes["before", kind]
        if not behind and not before:  # a grouped convolution is the less likely reading
            behind = self._votes["rather behind", ""]
        if behind > 3 * before:
            return "behind"
        return "before" if before > 3 * behind else ""


def _width(kernel: Place) -> int:
    """Count the inputs of one group of a convolution; 0 for a dense layer."""
    info = kernel.layer.weights
    if info is None or len(info.shape) < 3:
        return 0
    return info.shape[-2] if kernel.layer.keras else info.shape[1]
