"""WT005: outputs of a layer that are copies of each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, Kernels, kernels_of

_JUDGED = ("conv", "dense", "recurrent", "attention", "weightnorm", "spectralnorm", "lora")


@rule
class DuplicatedUnits(Rule):
    """All (or most) outputs of a layer have the same weights.

    What it means
    -------------
    Units with equal weights compute the same number for every input: a layer of 64 such units is
    a layer of one.  As an output layer it gives every class the same score but for its bias.

    How it happens
    --------------
    Constant initialisation: equal units get equal gradients, so training never tells them apart,
    in that layer and in those behind it.  Also a broadcast over the wrong axis in a conversion.

    When to ignore it
    -----------------
    Not reported: depthwise filters (each sees an input of its own), rows of embeddings, pruned
    units of zeros, experts and ensembles copied from one model.  Two units are compared at
    first, and the rest only if they agree: copies among a few units are not found.
    """

    code = "WT005"
    name = "duplicated-units"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.4: breaking symmetry",
    )
    healthy = (
        Case("units that differ", {"fc.weight": [[0.5, 1.0], [0.5, 1.5], [1.0, 0.5]]}),
        Case("depthwise blur", {"stem.weight": [[[[1.0, 2]]], [[[3.0, 4]]], [[[5.0, 6]]]],
                                "blur.weight": [[[[0.25, 0.5], [0.5, 0.25]]]] * 4}),
        Case("pruned units", {"fc.weight": [[0.0, 0.0], [0.0, 0.0], [1.0, 0.5]]}),
        Case("experts copied from one model", {"experts.weight": [[[1.0, 2], [3, 4]]] * 4}),
        Case("a single output", {"fc.weight": [[0.5, 1.0, 1.5]]}),
        Case("two of many that agree",
             {"fc.weight": [[0.5, 1.0], [0.5, 1.0], [1.0, 2], [3, 4], [5, 6]]}),
    )  # fmt: skip
    sick = (
        Case("constant initialisation, trained",
             {"fc.weight": [[0.5, 1.0, -1.0]] * 4, "fc.bias": [0.1] * 4}),
        Case("a Keras kernel", {"fc/kernel": [[0.5] * 4, [1.0] * 4, [-1.0] * 4]}),
        Case("most units", {"fc.weight": [*[[0.5, 1.0]] * 5, [1.0, 2.0]]}, severity=Severity.WARNING),
    )  # fmt: skip

    most: float = threshold(
        0.5,
        unit="share of units equal to the first",
        why="fewer copies leave a layer that works",
        healthy="no two units are equal in any of 1,120 kernels of 135 files",
    )
    peeks: int = threshold(
        200,
        unit="kernels whose first two units are compared, whatever the size of the file",
        why="looking takes 10 to 20 us a kernel, so 4 ms at most",
        healthy="limits the cost only: constant biases first, then no bias, then the largest",
    )
    more_peeks: float = threshold(
        0.5,
        unit="further kernels per megabyte of the kernels",
        why="3 % of the time that reading a megabyte takes",
        healthy="limits the cost only",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        wanted = kernels.of(*_JUDGED) & kernels.finite & (kernels.units > 1)
        wanted &= (kernels.peak > 0) & (kernels.zeros % kernels.units == 0)
        first = int(np.flatnonzero(wanted)[0]) if wanted.any() else 0
        for index in self._chosen(kernels, np.flatnonzero(wanted)):
            kernel = kernels[index]
            if kernel.grouped and index != first:
                continue
            if _agree(ctx, kernel) and not re.search(r"expert|ensemble|critic", kernel.info.name):
                yield from self._count(ctx, kernel)

    def _chosen(self, kernels: Kernels, wanted: Array) -> list[int]:
        """Kernels worth a look: all of them, or the likeliest and largest in a file of many."""
        megabytes = 4e-6 * float(kernels.size.sum())
        affordable = int(self.peeks + self.more_peeks * megabytes)
        if wanted.size > affordable:
            # units that never differed share their bias too
            doubt = (1 + kernels.biased - 2 * kernels.same_bias)[wanted]
            wanted = wanted[np.lexsort((-kernels.size[wanted], doubt))[:affordable]]
        listed: list[int] = np.sort(wanted).tolist()
        return listed

    def _count(self, ctx: Context, kernel: Kernel) -> Iterator[Finding]:
        equal = _equal_to_first(ctx, kernel)
        if equal <= self.most * kernel.units:
            return
        every = equal == kernel.units
        many = f"all {equal:,}" if every else f"{equal:,} of {kernel.units:,}"
        yield self.finding(
            kernel.info,
            f"{many} units have the same {kernel.fan_in:,} weights",
            severity=Severity.ERROR if every else Severity.WARNING,
            limit=f"more than {self.most:.0%} of the units",
            units=kernel.units,
            equal=equal,
        )


_SOME = 256
"""Units of a Keras kernel that are compared at first."""


def _agree(ctx: Context, kernel: Kernel) -> bool:
    """Whether the first two units are equal and not zero, as far as the first bytes tell."""
    info = kernel.info
    itemsize = info.kind.itemsize
    if kernel.keras:  # one row holds a weight of every unit
        some = min(kernel.units, _SOME)
        row = _bits(next(iter(ctx.table.blocks(info, some * itemsize)))[:some])
        return bool((row == row[0]).all())
    block = next(iter(ctx.table.blocks(info, 2 * kernel.fan_in * itemsize)))
    unit = _bits(block[: kernel.fan_in])
    return bool(
        (unit == _bits(block[kernel.fan_in : 2 * kernel.fan_in])[: unit.size]).all() and unit.any()
    )


def _equal_to_first(ctx: Context, kernel: Kernel) -> int:
    """Units equal to the first in every weight; 0 where that one is all zeros."""
    if kernel.keras:  # a row holds one weight of each unit
        same, zero = np.ones(kernel.units, np.bool_), True
        for rows in _rows(ctx, kernel, kernel.units):
            same &= (rows == rows[:, :1]).all(axis=0)
            zero &= not rows[:, 0].any()
        return 0 if zero else int(same.sum())
    equal, first = 0, None
    for rows in _rows(ctx, kernel, kernel.fan_in):
        first = rows[0] if first is None else first
        equal += int((rows == first).all(axis=1).sum())
    return equal if first is not None and first.any() else 0


def _rows(ctx: Context, kernel: Kernel, width: int) -> Iterator[Array]:
    """Weights as whole rows of ``width``, whatever the blocks they come in."""
    held: list[Array] = []
    size = 0
    for block in ctx.table.blocks(kernel.info):
        held.append(_bits(block))
        size += block.size
        if size >= width:
            flat = np.concatenate(held)
            whole = size // width * width
            yield flat[:whole].reshape(-1, width)
            held, size = [flat[whole:]], size - whole


def _bits(block: Array) -> Array:
    """Elements as unsigned words: exact, and fast for types that NumPy does not have."""
    words: Array = block.view(np.dtype(f"u{block.dtype.itemsize}"))
    return words
