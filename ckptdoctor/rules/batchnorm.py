"""What the BatchNorm rules share: statistics of all layers as columns, and what kernels allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..dtypes import DTYPES
from ..layers import Layer
from ..tensors import Array, TensorInfo
from .base import Context

__all__ = [
    "MAX_CHANNELS",
    "Norm",
    "Norms",
    "Reference",
    "channel_list",
    "norms_of",
    "per_channel",
    "short",
]

MAX_CHANNELS = 1 << 20
"""Longest vector that is read whole; a larger one is no BatchNorm that anybody runs."""

_PARTS = ("mean", "var", "gamma", "beta")
_FLOATS = frozenset(row.name for row in DTYPES.values() if row.kind == "float")


class Reference(NamedTuple):
    """How large the squared weights behind a BatchNorm are.

    Parameters
    ----------
    rough
        Mean over the channels, from the statistics alone.
    told_by
        Whose weights they are, as messages call them.
    exact
        Whether it is the kernel that feeds the layer; else the largest that could.
    dense
        Whether that kernel has no window: its inputs are features, often of one sign.
    """

    rough: float
    told_by: str
    exact: bool
    dense: bool


class Norm:
    """One BatchNorm and its per-channel vectors, each read at most once.

    Parameters
    ----------
    ctx, layer
        The checkpoint and the layer.
    index
        Its place among all BatchNorms.
    """

    def __init__(self, ctx: Context, layer: Layer, index: int) -> None:
        self._ctx, self.layer, self.index = ctx, layer, index

    @cached_property
    def mean(self) -> Array | None:
        """Running mean, float64, shape ``(channels,)``; None where it cannot be read."""
        return self._vector("mean")

    @cached_property
    def var(self) -> Array | None:
        """Running variance."""
        return self._vector("var")

    @cached_property
    def gamma(self) -> Array | None:
        """Learned gain."""
        return self._vector("gamma")

    @cached_property
    def beta(self) -> Array | None:
        """Learned offset."""
        return self._vector("beta")

    @property
    def epsilon(self) -> float:
        """What is added to the variance."""
        return self.layer.epsilon[0]

    @cached_property
    def first(self) -> bool:
        """Whether the scale of the model's input may reach it.

        No other normalisation is known to stand before it: one whose feed is not known may stand
        anywhere, as the last BatchNorm of a pre-activation net does that its file lists first.
        """
        graph = self._ctx.graph
        if self.layer.key in graph.first:
            return True
        if graph.feed(self.layer).kernel is not None:
            return False
        known = _first_known(self._ctx).get(self.layer.role)
        return known is not None and graph.depth(self.layer) < known

    @cached_property
    def on_input(self) -> bool:
        """Whether it normalises the model's input itself."""
        return self._ctx.graph.feed(self.layer).source == "input"

    @property
    def batches(self) -> float | None:
        """Batches that its statistics saw, None where nobody counted."""
        info = self.layer.parts.get("count")
        if info is None or info.size != 1:
            return None
        return self._ctx.stats[info.name].maximum

    @cached_property
    def gains(self) -> Array | None:
        """``|gamma| / sqrt(var + epsilon)``: by how much a channel multiplies what moves in it."""
        var, gamma = self.var, self.gamma
        if var is None:
            return None
        with np.errstate(all="ignore"):
            gains = 1 / np.sqrt(np.maximum(var, 0) + self.epsilon)
            if gamma is not None and gamma.size == gains.size:
                gains = np.abs(gamma) * gains
        return gains

    @cached_property
    def reference(self) -> Reference | None:
        """What it is compared with; None in a file without kernels."""
        return _feeding(self._ctx, self.layer) or _largest(self._ctx, self.layer)

    @cached_property
    def squared_norms(self) -> Array | None:
        """Squared norm of the weights behind each channel, or one number for all of them."""
        reference = self.reference
        if reference is None:
            return None
        if reference.exact:
            found = self._ctx.graph.feed(self.layer).squared_norms(self._ctx.read)
            if found is not None and self.var is not None and found.size == self.var.size:
                return found
        return np.asarray([reference.rough])

    def _vector(self, part: str) -> Array | None:
        info = self.layer.parts.get(part)
        return None if info is None else per_channel(self._ctx, info)


class Norms:
    """BatchNorms of the model and the EMA in file order, statistics of their parts as columns.

    A checkpoint may have 20,000: `Norm` objects are made for suspects only.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._layers = tuple(ctx.layers.batchnorms)
        self._made: dict[int, Norm] = {}
        row_of = {name: row for row, name in enumerate(ctx.stats)} if self._layers else {}
        self._rows = {part: _rows(self._layers, part, row_of) for part in _PARTS}

    def norm(self, index: int) -> Norm:
        """Return one layer."""
        made = self._made.get(index)
        if made is None:
            made = self._made[index] = Norm(self._ctx, self._layers[index], index)
        return made

    def column(self, part: str, what: str) -> Array:
        """One statistic of one part, a number per layer; NaN where the part is not there.

        ``what`` is a column of the statistics: ``maximum``, ``nan`` ...
        """
        rows = self._rows[part]
        if not rows.size:
            return np.zeros(0)
        values = getattr(self._ctx.stats, what)[rows].astype(np.float64)
        values[rows < 0] = np.nan
        return np.asarray(values)

    def finite(self, part: str) -> Array:
        """Whether a part is there and holds nothing but finite values."""
        bad = sum(self.column(part, what) for what in ("nan", "posinf", "neginf"))
        return np.asarray(bad == 0) & np.isfinite(self.column(part, "maximum"))

    def peak(self, part: str) -> Array:
        """Greatest magnitude of a part."""
        low, high = self.column(part, "minimum"), self.column(part, "maximum")
        return np.maximum(np.abs(low), np.abs(high))

    def epsilons(self) -> Array:
        """Return what each layer adds to its variance."""
        return np.asarray([layer.epsilon[0] for layer in self._layers], np.float64)

    def where(self, screen: Array) -> Iterator[Norm]:
        """Yield the layers for which ``screen`` is true."""
        for index in np.flatnonzero(screen).tolist():
            yield self.norm(index)

    def carried(self, norm: Norm) -> float:
        """Return the largest mean variance before a layer in the stream that sums carry on.

        Those are the layers that no kernel feeds, and the first ones: in a pre-activation net the
        scale of the model's input goes past every normalisation.
        """
        graph, means = self._ctx.graph, self.column("var", "mean")
        depth = graph.depth(norm.layer)
        before = []
        for index in np.flatnonzero(self.finite("var")).tolist():
            layer = self._layers[index]
            if layer.role != norm.layer.role or graph.depth(layer) >= depth:
                continue
            if graph.feed(layer).kernel is None or self.norm(index).first:
                before.append(float(means[index]))
        return max(before, default=0.0)

    def typical(self, role: str) -> float:
        """Return what interior layers of a role have as mean variance by mean squared norm.

        Of one or two layers the middle says nothing: then 1, which healthy files have.
        """
        known: dict[str, float] = self._ctx.once(
            "typical variance", _anchor(self._ctx), self._typical
        )
        return known.get(role, 1.0)

    def _typical(self) -> dict[str, float]:
        means = self.column("var", "mean")
        shares: dict[str, list[float]] = {}
        for norm in self.where(self.finite("var") & (means > 0)):
            reference = None if norm.first else _feeding(self._ctx, norm.layer)
            if reference is not None and reference.rough > 0:
                share = means[norm.index] / reference.rough
                shares.setdefault(norm.layer.role, []).append(share)
        return {role: float(np.median(s)) for role, s in shares.items() if len(s) > 2}


def norms_of(ctx: Context) -> Norms:
    """BatchNorms of a checkpoint; gathered once.

    Examples
    --------
    >>> from .base import Case
    >>> ctx = Case("", {"bn.running_var": [1.0, 4.0], "bn.running_mean": [0.0, 0.0]}).context()
    >>> norms = norms_of(ctx)
    >>> norms.column("var", "maximum"), norms.norm(0).var, norms.column("gamma", "maximum")
    (array([4.]), array([1., 4.]), array([nan]))
    """
    if not ctx.table.infos:
        return Norms(ctx)
    found: Norms = ctx.once("norms", _anchor(ctx), lambda: Norms(ctx))
    return found


def _first_known(ctx: Context) -> dict[str, int]:
    """Role -> depth of its first BatchNorm whose kernel is known."""

    def look() -> dict[str, int]:
        found: dict[str, int] = {}
        for layer in ctx.layers.batchnorms:
            if ctx.graph.feed(layer).kernel is not None:
                depth = ctx.graph.depth(layer)
                found[layer.role] = min(depth, found.get(layer.role, depth))
        return found

    depths: dict[str, int] = ctx.once("first known feed", _anchor(ctx), look)
    return depths


def _anchor(ctx: Context) -> TensorInfo:
    """Tensor that what is known of the whole file is kept by."""
    return next(iter(ctx.table.infos.values()))


def per_channel(ctx: Context, info: TensorInfo) -> Array | None:
    """Values of a vector as float64, flat; None where they cannot be read or are no real floats."""
    if not _readable(info):
        return None
    vector: Array | None = ctx.once("channels", info, lambda: _read(ctx, info))
    return vector


def channel_list(mask: Array, most: int = 8) -> str:
    """Name the channels of a mask.

    Examples
    --------
    >>> channel_list(np.array([0, 1, 0, 1, 1, 1], bool)), channel_list(np.ones(9, bool), most=2)
    ('1, 3, 4, 5', '0, 1 and 7 more')
    """
    at = np.flatnonzero(mask).tolist()
    shown = ", ".join(str(i) for i in at[:most])
    return f"{shown} and {len(at) - most:,} more" if len(at) > most else shown


def short(number: float) -> str:
    """Write a number with the digits that a person reads.

    Examples
    --------
    >>> [short(x) for x in (0.00123, 0.5, 12.3, 4532.1, 123456.0, 4.6e8)]
    ['0.0012', '0.5', '12', '4,532', '123,456', '4.6e+08']
    """
    return f"{number:,.0f}" if 100 <= abs(number) < 1e6 else f"{number:.2g}"


def _readable(info: TensorInfo) -> bool:
    if info.encoding != "plain" or info.dtype not in _FLOATS:
        return False
    return 0 < info.size <= MAX_CHANNELS


def _read(ctx: Context, info: TensorInfo) -> Array:
    with np.errstate(all="ignore"):  # a signalling NaN of ml_dtypes warns
        return np.asarray(ctx.read(info).astype(np.float64).reshape(-1))


def _rows(layers: Sequence[Layer], part: str, row_of: dict[str, int]) -> Array:
    """Row of each layer's part in the table, -1 where there is none that can be read."""
    rows = np.full(len(layers), -1, np.int64)
    for index, layer in enumerate(layers):
        info = layer.parts.get(part)
        if info is not None and _readable(info):
            rows[index] = row_of[info.name]
    return rows


def _feeding(ctx: Context, layer: Layer) -> Reference | None:
    """Kernel that feeds the layer, if it is known."""
    feed = ctx.graph.feed(layer)
    info = feed.norm_part
    if info is not None and feed.kernel is not None and feed.channels:
        stats = ctx.stats[info.name]
        if stats.std is not None and stats.mean is not None and not stats.nonfinite:
            with np.errstate(over="ignore"):
                square = float(np.square(np.hypot(stats.std, stats.mean)))
            count = info.size if feed.kernel.kind == "weightnorm" else feed.channels
            windows = len(info.shape) > 2
            told_by = f"its kernel {feed.kernel.name!r:.120}"
            return Reference(square * info.size / count, told_by, True, not windows)
    return None


def _largest(ctx: Context, layer: Layer) -> Reference | None:
    """Largest kernel of the file that could feed the layer."""
    largest: dict[tuple[str, int], float] = ctx.once(
        "kernel norms", _anchor(ctx), lambda: _kernels(ctx)
    )
    channels = layer.channels
    square = largest.get((layer.role, channels))
    if square is not None and channels:
        return Reference(square, f"any kernel with {channels:,} outputs", False, False)
    square = largest.get((layer.role, 0))
    return None if square is None else Reference(square, "any kernel", False, False)


def _kernels(ctx: Context) -> dict[tuple[str, int], float]:
    """Greatest mean squared norm of the kernels by role and extent; 0 stands for any extent."""
    found: dict[tuple[str, int], float] = {}
    for layer in ctx.layers.of_kind("conv", "dense", "weightnorm", "spectralnorm", "recurrent"):
        info = layer.parts.get("pointwise") or layer.parts.get("kernel") or layer.parts.get("v")
        if info is None or info.encoding != "plain" or info.kind.kind != "float":
            continue
        stats = ctx.stats[info.name]
        if stats.std is None or stats.mean is None or stats.nonfinite or not layer.units:
            continue
        with np.errstate(over="ignore"):
            square = float(np.square(np.hypot(stats.std, stats.mean))) * info.size / layer.units
        for extent in {0, *info.shape}:
            key = (layer.role, extent)
            found[key] = max(square, found.get(key, 0.0))
    return found
