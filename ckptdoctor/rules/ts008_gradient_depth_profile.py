"""TS008: gradients that vanish or explode with depth, as the second moments remember them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from ..findings import Finding, Severity
from ..tensors import Role, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .training_state import numbered_variables, second_moments, shown


def _net(sizes: Sequence[float]) -> dict[str, object]:
    return {f"optimizer.state.{n}.exp_avg_sq": [[size**2] * 2] for n, size in enumerate(sizes)}


_ROLES: dict[str, Role] = {f"optimizer.state.{n}.exp_avg_sq": "optimizer" for n in range(8)}


@rule
class GradientDepthProfile(Rule):
    """Gradients shrink or grow by orders of magnitude from the last layer to the first.

    What it means
    -------------
    The root of the second moment is the size of a weight's recent gradients.  Where it falls
    layer by layer towards the input, the first layers hardly learn (with Adam they follow noise);
    where it rises, the network is at the brink of an explosion: one batch more and it overflows.

    How it happens
    --------------
    Deep chains without normalisation or shortcuts, saturating activations, initial weights too
    small or too large, long recurrent sequences, a head that learns much faster than its trunk.

    When to ignore it
    -----------------
    It is a note: networks train with it.  Layers that are meant to learn slower (a pre-trained
    trunk beside a new head) look alike.
    """

    code = "TS008"
    name = "gradient-depth-profile"
    severity = Severity.NOTE
    since = "0.1"
    references = (
        "Glorot & Bengio 2010, AISTATS: gradients back-propagated through deep networks",
        "Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063: vanishing and exploding gradients",
    )
    span: float = threshold(
        1000.0,
        unit="median gradient of the last quarter of layers over the first's, or the reverse; "
        "inclusive",
        why="1,000 is 5 layers that each lose three quarters of the gradient",
        healthy="largest of 8 healthy checkpoints with enough layers 45",
    )
    order: float = threshold(
        0.8,
        unit="correlation of the gradients' order of magnitude with depth, inclusive",
        why="a trend through all layers, not one layer that stands out",
        healthy="not reached together with the span in 8 healthy checkpoints",
    )
    layers: float = threshold(
        6,
        unit="weight matrices with second moments, inclusive",
        why="fewer have no first and last quarter to compare",
        healthy="a matter of definition",
    )
    healthy = (
        Case("even", _net([1e-3] * 8), _ROLES),
        Case("one layer that stands out", _net([1e-9, 1e-9, *[1e-3] * 6]), _ROLES),
        Case("a gentle slope", _net([2.0**-n for n in range(8)]), _ROLES),
        Case("too few layers", _net([1e-12, 1e-9, 1e-6, 1e-3]), _ROLES),
    )
    sick = (
        Case("vanishing", _net([10.0 ** (n - 9) for n in range(8)]), _ROLES),
        Case("exploding", _net([10.0**-n for n in range(8)]), _ROLES),
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        for moments in _by_depth(ctx):
            sizes = [_gradient(ctx, info) for info in moments]
            layers = [(info, size) for info, size in zip(moments, sizes, strict=True) if size > 0]
            if len(layers) < self.layers:
                continue
            quarter = len(layers) // 4
            logs = [math.log10(size) for _, size in layers]
            gain = median(logs[-quarter:]) - median(logs[:quarter])
            trend = _correlation(logs)
            if abs(gain) < math.log10(self.span) or abs(trend) < self.order or gain * trend < 0:
                continue
            first, last = 10 ** median(logs[:quarter]), 10 ** median(logs[-quarter:])
            kind = "vanish" if gain > 0 else "explode"
            yield self.finding(
                layers[0][0],
                f"gradients {kind} towards the input: about {shown(first)} in the first of "
                f"{len(layers):,} weight matrices, {shown(last)} in the last",
                limit=f"at least {self.span:g} times apart",
                first=first,
                last=last,
                correlation=trend,
                layers=len(layers),
            )


def _by_depth(ctx: Context) -> Iterator[list[TensorInfo]]:
    """Second moments of weight matrices in the order of parameters, which is that of layers.

    Keras' names are stored in alphabetical order, which tells nothing about depth.
    """
    found: dict[str, list[tuple[int, TensorInfo]]] = {}
    numbered = {
        info.name: (group, place)
        for group, variables in numbered_variables(ctx).items()
        for place, info in enumerate(variables)
    }
    for info in second_moments(ctx):
        if len(info.shape) < 2:
            continue
        if info.name in numbered:
            group, place = numbered[info.name]
            found.setdefault(group, []).append((place, info))
        elif info.path[-1] in ("exp_avg_sq", "square_avg") and info.path[-2].isdecimal():
            # before torch 1.6 the keys were addresses, and the order of the file is as good
            place = int(info.path[-2]) if len(info.path[-2]) < 9 else 0
            found.setdefault(".".join(info.path[:-2]), []).append((place, info))
    for rows in found.values():
        yield [info for _, info in sorted(rows, key=lambda row: row[0])]


def _gradient(ctx: Context, info: TensorInfo) -> float:
    mean = ctx.stats[info.name].mean
    return math.sqrt(mean) if mean is not None and mean > 0 else 0.0


def _correlation(values: Sequence[float]) -> float:
    """Pearson's correlation of values with their places."""
    middle, average = (len(values) - 1) / 2, sum(values) / len(values)
    covariance = sum((i - middle) * (v - average) for i, v in enumerate(values))
    spread = sum((i - middle) ** 2 for i in range(len(values)))
    spread *= sum((v - average) ** 2 for v in values)
    return covariance / math.sqrt(spread) if spread > 0 else 0.0
