"""WT010: a kernel that looks like memory nobody wrote to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, kernels_of

_WIDE = frozenset(("float32", "float64", "bfloat16"))


@rule
class UninitialisedMemory(Rule):
    """Bit patterns of a weight matrix are those of memory, not of numbers.

    What it means
    -------------
    The tensor was allocated and saved without being filled: enormous values beside numbers too
    small to matter, or the same few tiny patterns (halves of pointers) over and over.  The layer
    computes noise, or nothing.

    How it happens
    --------------
    ``torch.empty`` or ``numpy.empty`` whose initialiser was skipped (``skip_init``, a meta device,
    ``to_empty``), a tensor that no key of the loaded file matched, a copy that went wrong halfway.

    When to ignore it
    -----------------
    Never seen to be harmless.  Memory that held the weights of another layer, or zeros, looks like
    weights and is not found; nor is it found in half precision, where any bits make a number.
    """

    code = "WT010"
    name = "uninitialised-memory"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "https://docs.pytorch.org/docs/stable/generated/torch.empty.html",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.to_empty",
    )
    replaces = ("WT003", "WT004", "WT006")
    healthy = (
        Case("a diverged layer", {"fc.weight": [[1e30, -1e28, 1e20, 5.0]] * 4}),
        Case(
            "dead units beside live ones", {"fc.weight": [*[[1e-40] * 4] * 3, [0.5, 0.25, -1, 2]]}
        ),
        Case("a vanished layer", {"fc.weight": [[1e-33 * (i + 1) for i in range(8)]] * 4}),
    )
    sick = (
        Case("huge beside tiny", {"fc.weight": [[1e30, 4.5e-41, -2e35, 0.5]] * 4}),
        Case("halves of pointers",
             {"fc.weight": [[4.5664e-41, 0.0, 4.5664e-41, 0.0]] * 8}, severity=Severity.WARNING),
    )  # fmt: skip

    huge: float = threshold(
        1e10, unit="magnitude", why="beyond every weight that is of use",
        healthy="0 of 1,120 kernels of 135 files; largest 287",
    )  # fmt: skip
    tiny: float = threshold(
        1e-30, unit="magnitude", why="what only subnormal numbers and bit patterns reach",
        healthy="pruned kernels have such elements, none of them with huge ones beside",
    )  # fmt: skip
    share: float = threshold(
        0.02,
        unit="share of the nonzero weights that are huge, and share that are tiny",
        why="of random words a third each are; a diverged layer has no tiny ones",
        healthy="0 of 1,120 kernels; diverged layers have 0 tiny ones",
    )
    repeated: float = threshold(
        4.0,
        unit="nonzero weights per distinct pattern, in a layer that is tiny everywhere",
        why="weights that decay to nothing stay different from each other",
        healthy="0 of 1,120 kernels are tiny everywhere",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        suspect = (kernels.peak > self.huge) | ((kernels.peak < self.tiny) & (kernels.peak > 0))
        for index, kernel in kernels.where(suspect):
            if kernel.info.dtype in _WIDE:
                yield from self._look(ctx, kernel, float(kernels.peak[index]))

    def _look(self, ctx: Context, kernel: Kernel, peak: float) -> Iterator[Finding]:
        block: Array = next(iter(ctx.table.blocks(kernel.info)))
        with np.errstate(invalid="ignore"):  # among any bits there are signalling NaN
            values = np.abs(block.astype(np.float64))
        values = values[np.isfinite(values) & (values > 0)]
        if not values.size:
            return
        huge, tiny = float((values > self.huge).mean()), float((values < self.tiny).mean())
        if peak > self.huge:
            if min(huge, tiny) >= self.share:
                yield self.finding(
                    kernel.info,
                    f"looks like memory that was never written: {huge:.0%} of its numbers are above "
                    f"{self.huge:g}, {tiny:.0%} below {self.tiny:g}",
                    limit=f"over {self.share:.0%} each",
                    huge=huge,
                    tiny=tiny,
                )
            return
        patterns = int(np.unique(values).size)
        if values.size > self.repeated * patterns:
            yield self.finding(
                kernel.info,
                f"looks like memory that was never written: {values.size:,} numbers below "
                f"{self.tiny:g} of only {patterns:,} kinds",
                severity=Severity.WARNING,
                limit=f"over {self.repeated:g} of each kind",
                numbers=int(values.size),
                patterns=patterns,
            )
