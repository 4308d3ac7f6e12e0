"""BN009: running statistics that are a copy of something else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule, threshold
from .batchnorm import Norm, Norms, norms_of

_VAR = np.exp(np.arange(4))
_GAIN, _MEAN = np.cos(_VAR), np.sin(_VAR)


def _bn(name: str, mean: Array, var: Array, gamma: Array, beta: Array = _MEAN) -> dict[str, Array]:
    return {f"{name}.weight": gamma, f"{name}.bias": beta, f"{name}.running_mean": mean,
            f"{name}.running_var": var}  # fmt: skip


def _conv(name: str, scale: float) -> dict[str, Array]:
    return {f"{name}.weight": np.eye(4)[:, :, None, None] * scale}


@rule
class DuplicatedRunningStats(Rule):
    """The running statistics of a BatchNorm are a copy of another tensor, to the last bit.

    What it means
    -------------
    Mean, variance, gain and offset are learned from different things; two that agree in every
    channel were not both learned.  The layer normalises with numbers that are not its own.  The
    same holds for two layers with the same statistics that different kernels feed.

    How it happens
    --------------
    A conversion that mixed up the order of the four vectors, a load by position, a loop with the
    wrong name.

    When to ignore it
    -----------------
    When two layers share their statistics on purpose although their kernels differ.  Layers that
    are copies as a whole (a teacher and its student, two branches that started alike) are left
    alone, and so are layers whose kernel is not known: they may see the same input.
    """

    code = "BN009"
    name = "duplicated-running-stats"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
        "https://keras.io/api/layers/normalization_layers/batch_normalization/: order of weights",
    )

    alike: float = threshold(
        0.7,
        unit="correlation of gains and offsets",
        why="two layers of which one began as a copy of the other keep that; others have 0.0",
        healthy="0 of 1,672 layers of 99 files share statistics with a layer of other gains",
    )

    healthy = (
        Case("before training", _bn("bn", 0 * _VAR, _VAR**0, _VAR**0)),
        Case("a teacher and its student", {
             **_conv("a.conv", 1.0), **_bn("a.bn", _MEAN, _VAR, _GAIN),
             **_conv("b.conv", 1.1), **_bn("b.bn", _MEAN, _VAR, 1.01 * _GAIN)}),
        Case("two layers that normalise the same input", {
             **_bn("bn_a", _MEAN, _VAR, _GAIN), **_bn("bn_b", _MEAN, _VAR, -_GAIN, -_MEAN)}),
    )  # fmt: skip
    sick = (
        Case("a mean that is the variance", _bn("bn", _VAR, _VAR, _GAIN)),
        Case("a variance that is the gain", _bn("bn", _MEAN, _VAR, _VAR)),
        Case("another layer's statistics", {
             **_conv("conv1", 1.0), **_bn("bn1", _MEAN, _VAR, _GAIN),
             **_conv("conv2", 2.0), **_bn("bn2", _MEAN, _VAR, -_GAIN, -_MEAN)}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        norms = norms_of(ctx)
        named: set[int] = set()
        for part, name in (("mean", "mean"), ("gamma", "gain"), ("beta", "offset")):
            for norm in norms.where(_same(norms, part)):
                if norm.index not in named and _equal(norm.var, getattr(norm, part)):
                    named.add(norm.index)
                    yield self._within(norm, name)
        yield from self._between(ctx, norms, named)

    def _within(self, norm: Norm, name: str) -> Finding:
        return self.finding(
            norm.layer.parts["var"],
            f"the running variance equals the {name} in all {norm.layer.channels:,} channels",
            channels=norm.layer.channels,
            copy_of=name,
        )

    def _between(self, ctx: Context, norms: Norms, named: set[int]) -> Iterator[Finding]:
        groups: dict[tuple[object, ...], list[Norm]] = {}
        varied = norms.finite("mean") & norms.finite("var") & (_spread(norms) > 0)
        for norm in norms.where(varied & _repeated(norms.column("var", "std"), varied)):
            numbers = (ctx.stats[norm.layer.parts[part].name] for part in ("mean", "var"))
            key = (norm.layer.role, *numbers)
            groups.setdefault(key, []).append(norm)
        for group in groups.values():
            for at, norm in enumerate(group):
                if norm.index in named:
                    continue
                twins = ((one, self._copied(ctx, one, norm)) for one in group[:at])
                twin, severity = next((found for found in twins if found[1]), (norm, None))
                if severity is not None:
                    yield self._twin(norm, twin, severity)

    def _twin(self, norm: Norm, twin: Norm, severity: Severity) -> Finding:
        fed = ", which another kernel feeds" if severity is Severity.ERROR else ""
        return self.finding(
            norm.layer.parts["var"],
            f"mean and variance of all {norm.layer.channels:,} channels are those of "
            f"{twin.layer.name!r:.160}{fed}",
            severity=severity,
            channels=norm.layer.channels,
            copy_of=twin.layer.name[:160],
        )

    def _copied(self, ctx: Context, one: Norm, other: Norm) -> Severity | None:
        """How sure it is that two layers of different origin have the same statistics."""
        kernels = [ctx.graph.feed(norm.layer).norm_part for norm in (one, other)]
        known = [ctx.stats[info.name] for info in kernels if info is not None]
        if not known or (len(known) > 1 and known[0] == known[1]):
            return None  # they may see the same input, or be one layer stored twice
        if not _equal(one.mean, other.mean) or not _equal(one.var, other.var):
            return None
        alike = [
            _correlation(getattr(one, part), getattr(other, part)) for part in ("gamma", "beta")
        ]
        if min(alike) > self.alike:
            return None
        return Severity.ERROR if len(known) > 1 else Severity.WARNING


_TELLING = ("minimum", "maximum", "mean", "std")


def _spread(norms: Norms) -> Array:
    return norms.column("var", "maximum") - norms.column("var", "minimum")


def _repeated(values: Array, among: Array) -> Array:
    """Which of ``values`` occur more than once ``among`` those that count."""
    counted = np.where(among, values, np.nan)
    _, inverse, counts = np.unique(counted, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)


def _same(norms: Norms, part: str) -> Array:
    """Layers whose variance has the statistics of ``part``; constant vectors tell nothing."""
    same = norms.finite("var") & norms.finite(part) & (_spread(norms) > 0)
    for what in _TELLING:
        same &= norms.column("var", what) == norms.column(part, what)
    return same


def _equal(one: Array | None, other: Array | None) -> bool:
    return one is not None and np.array_equal(one, other)  # type: ignore[arg-type]


def _correlation(one: Array | None, other: Array | None) -> float:
    """Correlation of two vectors; infinite where it cannot be told: the other pair decides."""
    if one is None or other is None or one.size != other.size:
        return np.inf
    with np.errstate(all="ignore"):
        one, other = one - one.mean(), other - other.mean()
        share = float(one @ other / np.sqrt((one @ one) * (other @ other)))
    return share if np.isfinite(share) else np.inf
