"""TS008: gradients that vanish or explode with depth, as the second moments remember them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array, Role, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .optimizer_slots import second_moments
from .training_state import shown


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
        for moments, infos in _by_depth(ctx):
            learning = moments > 0  # neither NaN nor a parameter that never had a gradient
            logs = np.log10(moments[learning]) / 2
            if logs.size < self.layers:
                continue
            quarter = logs.size // 4
            early, late = float(np.median(logs[:quarter])), float(np.median(logs[-quarter:]))
            trend = _correlation(logs)
            if abs(late - early) < np.log10(self.span) or abs(trend) < self.order:
                continue
            kind = "vanish" if late > early else "explode"
            first, last = 10.0**early, 10.0**late
            yield self.finding(
                infos[int(learning.argmax())],
                f"gradients {kind} towards the input: about {shown(first)} in the first of "
                f"{logs.size:,} weight matrices, {shown(last)} in the last",
                limit=f"at least {self.span:g} times apart",
                first=first,
                last=last,
                correlation=trend,
                layers=logs.size,
            )


def _by_depth(ctx: Context) -> Iterator[tuple[Array, list[TensorInfo]]]:
    """Means of the second moments of weight matrices, and their tensors, by depth.

    Their order is that of the parameters, which is that of the layers.  Keras stores names in
    alphabetical order, which tells nothing about depth: there only numbered variables are used.
    """
    found: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    rows, infos = second_moments(ctx)
    for place, info in enumerate(infos):
        path = info.path
        if len(info.shape) < 2 or len(path) < 2:
            continue
        if path[-1].isdecimal():  # optimizer/vars/7
            found.setdefault(path[:-1], []).append((_number(path[-1]), place))
        elif path[-1] in ("exp_avg_sq", "square_avg") and path[-2].isdecimal():
            found.setdefault(path[:-2], []).append((_number(path[-2]), place))
    for pairs in found.values():
        places = [place for _, place in sorted(pairs)]
        yield ctx.stats.mean[rows[places]], [infos[place] for place in places]


def _number(key: str) -> int:
    """Place of a parameter; before torch 1.6 keys were addresses, and the file's order is as good."""
    return int(key) if len(key) < 9 else 0


def _correlation(values: Array) -> float:
    """Pearson's correlation of values with their places; 0 where all are the same."""
    apart = values - values.mean()
    places = np.arange(values.size) - (values.size - 1) / 2
    spread = np.sqrt((apart @ apart) * (places @ places))
    return float(apart @ places / spread) if spread > 0 else 0.0
