"""WT005: outputs of a layer that are copies of each other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, Kernels, kernels_of

_JUDGED = (
    "conv",
    "dense",
    "recurrent",
    "attention",
    "weightnorm",
    "spectralnorm",
    "lora",
    "embedding",
)


@rule
class DuplicatedUnits(Rule):
    """All (or most) outputs of a layer have the same weights.

    What it means
    -------------
    Units with equal weights compute the same number for every input: a layer of 64 such units is
    a layer of one.  As an output layer it gives every class the same score but for its bias, as an
    embedding every index the same vector.

    How it happens
    --------------
    Constant initialisation: equal units get equal gradients, so training never tells them apart,
    in that layer and in those behind it.  Also a broadcast over the wrong axis in a conversion.

    When to ignore it
    -----------------
    Not reported: depthwise filters (each sees an input of its own), pruned units of zeros, experts
    and ensembles copied from one model.  Up to eight units are compared at first, and the rest only
    if two of them agree: copies among a few units are not found.
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
        Case("an embedding of two types, one copied from the other",
             {"token_type_embeddings.weight": [[0.5, 1.0]] * 2, "embed.weight": [[0.5, 1.0], [2.0, 3.0]]}),
        Case("a grey filter for each of three colours",
             {"stem.weight": [[[[1.0, 2]]] * 3, [[[3.0, 4]]] * 3, [[[5.0, 6]]] * 3, [[[7.0, 8]]] * 3]}),
    )  # fmt: skip
    sick = (
        Case("constant initialisation, trained",
             {"fc.weight": [[0.5, 1.0, -1.0]] * 4, "fc.bias": [0.1] * 4}),
        Case("a Keras kernel", {"fc/kernel": [[0.5] * 4, [1.0] * 4, [-1.0] * 4]}),
        Case("a transposed convolution, whose outputs are its second axis",
             {"up.weight": [[[[1.0, 2]]] * 4, [[[3.0, 4]]] * 4, [[[5.0, 6]]] * 4], "up.bias": [0.1] * 4}),
        Case("an embedding", {"embed.weight": [[0.5, 1.0]] * 8}, severity=Severity.WARNING),
        Case("most units", {"fc.weight": [*[[0.5, 1.0]] * 5, [1.0, 2.0]]}, severity=Severity.WARNING),
    )  # fmt: skip

    most: float = threshold(
        0.5,
        unit="share of units equal to one of them",
        why="fewer copies leave a layer that works",
        healthy="no two units are equal in any of 1,120 kernels of 135 files",
    )
    tolerance: float = threshold(
        1e-5,
        unit="times the unit's largest weight",
        why="trained copies drift apart by rounding: 1e-7 after 60 steps",
        healthy="no two units are so close in any of 1,120 kernels of 135 files",
    )
    least_rows: int = threshold(
        8,
        unit="rows of an embedding",
        why="the two rows of a table of types are often copies of each other",
        healthy="no larger table has equal rows for the most part",
    )
    peeks: int = threshold(
        200,
        unit="kernels of which units are compared, whatever the size of the file",
        why="looking takes 30 to 80 us a kernel, so 16 ms at most",
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
        wanted = kernels.of(*_JUDGED) & kernels.finite & (kernels.units > 1) & (kernels.peak > 0)
        first = next(iter(np.flatnonzero(wanted)), None)
        for index in self._chosen(kernels, np.flatnonzero(wanted)):
            kernel = kernels[index]
            if kernel.grouped and index != first:
                continue
            if not re.search(r"expert|ensemble|critic", kernel.info.name):
                yield from self._look(ctx, kernel)

    def _chosen(self, kernels: Kernels, wanted: Array) -> list[int]:
        """Kernels worth a look: all of them, or the likeliest and largest in a file of many."""
        megabytes = 4e-6 * float(kernels.size.sum())
        affordable = int(self.peeks + self.more_peeks * megabytes)
        # units that never differed share their bias too
        doubt = (1 + kernels.biased - 2 * kernels.same_bias)[wanted]
        likeliest = wanted[np.lexsort((-kernels.size[wanted], doubt))]
        listed: list[int] = np.sort(likeliest[:affordable]).tolist()
        return listed

    def _look(self, ctx: Context, kernel: Kernel) -> Iterator[Finding]:
        table = kernel.layer.kind == "embedding"
        for axis in _axes(kernel):
            if table and axis.units < self.least_rows:
                continue
            unit = _with_copy(ctx, kernel.info, axis, self.tolerance)
            equal = 0 if unit is None else _equal(ctx, kernel.info, axis, unit, self.tolerance)
            if equal > self.most * axis.units:
                yield self._found(kernel.info, axis, equal, table)
                return

    def _found(self, info: TensorInfo, axis: _Axis, equal: int, table: bool) -> Finding:
        every = equal == axis.units
        many = f"all {equal:,}" if every else f"{equal:,} of {axis.units:,}"
        what = "rows" if table else "units"
        return self.finding(
            info,
            f"{many} {what} have the same {info.size // axis.units:,} weights",
            severity=Severity.ERROR if every and not table else Severity.WARNING,
            limit=f"more than {self.most:.0%} of the {what}",
            units=axis.units,
            equal=equal,
        )


class _Axis(NamedTuple):
    """How units lie in memory: each has ``run`` weights in a row, then it is the next one's turn."""

    units: int
    run: int


_TRANSPOSED = r"(^|[._/])(up|de_?conv|conv_?tr|tconv|generator|decoder)|transpose"
"""Names of transposed convolutions."""


def _axes(kernel: Kernel) -> list[_Axis]:
    """Axes that may be that of the units: transposed convolutions keep them before their inputs.

    The extent of the bias decides; without one the name does, or nothing, where the kernel is
    large either way.  A first convolution of few inputs may have equal ones: colours made of grey.
    """
    shape, size = kernel.info.shape, kernel.info.size
    rows = _Axis(shape[0], size // shape[0])
    if kernel.layer.kind == "embedding":
        return [rows]
    if kernel.keras:
        usual, other = _Axis(shape[-1], 1), _Axis(shape[-2], shape[-1])
    else:
        usual, other = rows, _Axis(shape[1], rows.run // shape[1])
    bias = kernel.layer.parts.get("bias")
    extents = (usual.units, other.units)
    if bias is not None and bias.size in extents and usual.units != other.units:
        return [usual if bias.size == usual.units else other]
    square = min(extents) >= 8 and max(extents) <= 4 * min(extents)
    named = re.search(_TRANSPOSED, kernel.info.name, re.IGNORECASE)
    return [usual, other] if len(shape) > 2 and (square or named) else [usual]


_COMPARED = 8
"""Units that are compared at first: of 8, two are copies where half of all are, 96 times in 100."""

_PEEK_BYTES = 1 << 15
"""What they may take, unless two take more: 8 units of 1,024 inputs in float32.  Four times as much
cost 18 ms of the 380 in which 2 GiB of convolutions are read."""


def _with_copy(ctx: Context, info: TensorInfo, axis: _Axis, tolerance: float) -> int | None:
    """Find a unit of which the first few hold a copy, as far as some of their weights tell."""
    slab = axis.units * axis.run
    wanted = _COMPARED * (axis.run if slab == info.size else slab)
    some = _head(ctx, info, max(2 * axis.run, min(wanted, _PEEK_BYTES // info.kind.itemsize)))
    turns, width = max(1, some.size // slab), min(axis.units, some.size // axis.run)
    turn = some[: turns * width * axis.run].reshape(turns, width, axis.run)
    step = max(1, width // _COMPARED)
    units = turn[:, ::step][:, :_COMPARED].swapaxes(0, 1)
    for part in (units[:, :, :: -(-axis.run // 16)], units):  # few weights nearly always tell
        values = _floats(part).reshape(len(units), -1)
        limit = tolerance * np.abs(values).max(axis=1, keepdims=True)
        copies = ((_distance(values[:, None], values, 2) <= limit) & (limit > 0)).sum(axis=1)
        best = int(copies.argmax())
        if copies[best] < 2:
            return None
    return best * step


def _head(ctx: Context, info: TensorInfo, size: int) -> Array:
    """First elements as they are stored; of stored views and compressed files blocks are larger."""
    held: list[Array] = []
    for block in ctx.table.blocks(info, size * info.kind.itemsize):
        held.append(block)
        if sum(part.size for part in held) >= size:
            break
    return np.concatenate(held)[:size]


def _equal(ctx: Context, info: TensorInfo, axis: _Axis, unit: int, tolerance: float) -> int:
    """Units equal to this one in every weight, but for rounding."""
    slab = axis.units * axis.run
    if slab < info.size:  # in every turn there is a piece of each unit
        apart, peak = np.zeros(axis.units), 0.0
        for turns in _rows(ctx, info, slab):
            turn = turns.reshape(-1, axis.units, axis.run)
            model = turn[:, unit : unit + 1]
            np.maximum(apart, _distance(turn, model, (0, 2)), out=apart)
            peak = max(peak, float(np.abs(model).max()))
        return int((apart <= tolerance * peak).sum())
    each = itertools.chain.from_iterable(_rows(ctx, info, axis.run))
    model = next(itertools.islice(each, unit, None))
    limit = tolerance * float(np.abs(model).max())
    return sum(
        int((_distance(rows, model, 1) <= limit).sum()) for rows in _rows(ctx, info, axis.run)
    )


def _distance(units: Array, model: Array, axes: int | tuple[int, ...]) -> Array:
    with np.errstate(over="ignore"):
        apart: Array = np.abs(units - model).max(axis=axes)
    return apart


def _rows(ctx: Context, info: TensorInfo, width: int) -> Iterator[Array]:
    """Weights as whole rows of ``width``, whatever the blocks they come in."""
    held: list[Array] = []
    for block in ctx.table.blocks(info):
        held.append(_floats(block))
        size = sum(part.size for part in held)
        if size >= width:
            flat = np.concatenate(held)
            whole = size // width * width
            yield flat[:whole].reshape(-1, width)
            held = [flat[whole:]]


def _floats(block: Array) -> Array:
    values: Array = block.astype(np.float64)
    return values
