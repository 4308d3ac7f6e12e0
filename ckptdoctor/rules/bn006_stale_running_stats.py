"""BN006: running statistics that are still where they started."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule
from .batchnorm import Norm, Norms, norms_of


@rule
class StaleRunningStats(Rule):
    """The running mean is exactly 0 and the variance exactly 1, although the layer was trained.

    What it means
    -------------
    Inference normalises with statistics that have nothing to do with the activations: the answers
    are at the level of chance, while training, which uses the statistics of the batch, looks fine.
    An update moves every channel, and a moving average never comes back to exactly 0 and 1.

    How it happens
    --------------
    A momentum of 0 (torch) or 1 (Keras), which never learns; averaged weights (SWA, EMA of the
    parameters alone) without a pass over the data to update the statistics; statistics reset, or
    lost by a load that was not strict, and never filled again.

    What the fix does
    -----------------
    Statistics can only be recomputed, from data or from the layers before.

    When to ignore it
    -----------------
    When the layer was trained in evaluation mode, so that 0 and 1 are what it learned with.  If
    its counter says that it saw no batch, that is the likely story, and this is a note.
    """

    code = "BN006"
    name = "stale-running-stats"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Izmailov et al. 2018, arXiv:1803.05407, section 3.2: averaged weights need new statistics",
        "https://docs.pytorch.org/docs/stable/optim.html: update_bn",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html: momentum",
    )

    healthy = (
        Case("an untrained layer", {"bn.weight": [1.0] * 2, "bn.bias": [0.0] * 2,
             "bn.running_mean": [0.0] * 2, "bn.running_var": [1.0] * 2,
             "bn.num_batches_tracked": np.array(0)}),
        Case("gains that start at random", {"bn/gamma": [1.1, 0.9], "bn/beta": [0.0] * 2,
             "bn/moving_mean": [0.0] * 2, "bn/moving_variance": [1.0] * 2}),
        Case("an untrained Keras layer", {"bn/gamma": [1.0] * 2, "bn/beta": [0.0] * 2,
             "bn/moving_mean": [0.0] * 2, "bn/moving_variance": [1.0] * 2}),
        Case("a trained layer", {"bn.running_mean": [0.0, 0.1], "bn.running_var": [0.9, 1.0],
             "bn.num_batches_tracked": np.array(9)}),
    )  # fmt: skip
    sick = (
        Case("momentum 0", {"bn.weight": [1.1, 0.9], "bn.bias": [0.1, 0.0],
             "bn.running_mean": [0.0] * 2, "bn.running_var": [1.0] * 2,
             "bn.num_batches_tracked": np.array(184)}),
        Case("a trained Keras layer", {"bn/gamma": [1.1, 0.9], "bn/beta": [0.1, 0.0],
             "bn/moving_mean": [0.0] * 2, "bn/moving_variance": [1.0] * 2},
             severity=Severity.WARNING),
        Case("a layer without gain among trained ones", {"a.running_mean": [0.1, 0.2],
             "a.running_var": [0.5, 0.4], "b.running_mean": [0.0] * 2, "b.running_var": [1.0] * 2},
             severity=Severity.WARNING),
        Case("trained in evaluation mode", {"bn.weight": [1.1, 0.9], "bn.bias": [0.1, 0.0],
             "bn.running_mean": [0.0] * 2, "bn.running_var": [1.0] * 2,
             "bn.num_batches_tracked": np.array(0)}, severity=Severity.NOTE),
        Case("a variance reset alone", {"bn.running_mean": [0.1, 0.2], "bn.running_var": [1.0] * 2,
             "bn.num_batches_tracked": np.array(9)}, severity=Severity.WARNING),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        norms = norms_of(ctx)
        mean0, var1 = _constant(norms, "mean", 0.0), _constant(norms, "var", 1.0)
        known = norms.finite("mean") & norms.finite("var")
        moved, can_tell = _moved(norms)
        roles = {norm.layer.role for norm in norms.where(known & ~(mean0 & var1))}
        for norm in norms.where(mean0 & var1 & known):
            learned = bool(moved[norm.index])
            if not can_tell[norm.index]:  # neither gain nor offset: its siblings tell
                learned = norm.layer.role in roles and norm.batches is None
            if learned or norm.batches:
                yield self._both(norm)
        for norm in norms.where((mean0 != var1) & known):
            if batches := int(norm.batches or 0):
                yield self._one(norm, batches, bool(mean0[norm.index]))

    def _both(self, norm: Norm) -> Finding:
        batches, size = norm.batches, norm.layer.channels
        channels = f"all {size:,} channels" if size > 1 else "the only channel"
        severity, told = Severity.WARNING, ", although the model is trained"
        if batches:
            severity, told = Severity.ERROR, f", although the layer saw {batches:,.0f} batches"
        elif batches == 0:
            severity, told = Severity.NOTE, "; the layer is trained, but not in training mode"
        return self.finding(
            norm.layer.parts["var"],
            f"mean exactly 0 and variance exactly 1 in {channels}{told}",
            severity=severity,
            channels=size,
            batches=-1 if batches is None else int(batches),
        )

    def _one(self, norm: Norm, batches: int, mean: bool) -> Finding:
        part, value = ("mean", "0") if mean else ("var", "1")
        name = "mean" if mean else "variance"
        return self.finding(
            norm.layer.parts[part],
            f"the running {name} is exactly {value} in all {norm.layer.channels:,} channels, the "
            f"other statistic is not, and the layer saw {batches:,} batches",
            severity=Severity.WARNING,
            channels=norm.layer.channels,
            batches=batches,
        )


def _constant(norms: Norms, part: str, value: float) -> Array:
    low, high = norms.column(part, "minimum"), norms.column(part, "maximum")
    return np.asarray((low == value) & (high == value))


def _moved(norms: Norms) -> tuple[Array, Array]:
    """Tell which layers' offsets moved from 0, and of which that can be told.

    Gains are asked where there are no offsets: some nets start them at random.
    """
    beta = norms.finite("beta")
    gamma = norms.finite("gamma") & ~beta
    moved = beta & ~_constant(norms, "beta", 0.0)
    moved |= gamma & ~_constant(norms, "gamma", 1.0) & ~_constant(norms, "gamma", 0.0)
    return moved, beta | gamma
