"""NF003: NaN and infinities that are there on purpose."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule
from .intended import intended

_INF = float("inf")


@rule
class MaskedInfinities(Rule):
    """A tensor holds NaN or infinities that its kind is meant to hold.

    What it means
    -------------
    Nothing is wrong.  Masks and masked classes add -Inf to scores that must not win; observers,
    bounds and best scores start at infinity; some buffers say "not seen yet" with NaN.

    How it happens
    --------------
    The model registers its mask as a buffer, or the training loop saves its own state.  A tensor
    is taken for one of these by the conventions of `ckptdoctor.rules.intended`: its name, its
    role, and a pattern that damage does not make.

    When to ignore it
    -----------------
    Always, unless the tensor named is a learned parameter of yours: then tell us, and read it as
    NF001 or NF002.
    """

    code = "NF003"
    name = "masked-infinities"
    severity = Severity.NOTE
    since = "0.1"
    references = (
        "Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3: masking with -Inf",
        "https://docs.pytorch.org/docs/stable/generated/torch.ao.quantization.observer.MinMaxObserver.html",
    )
    healthy = (
        Case("finite values", {"attn.mask": [[0.0, -1e9], [0.0, 0.0]]}),
        Case("infinities off the triangle", {"x": [[0.0, 0.0], [1.0, -_INF]]}),
        Case("a bias that masks more than it offers", {"head.bias": [-_INF, -_INF, 0.0]}),
        Case(
            "a head whose weight is sick too",
            {"head.weight": [[_INF], [1.0], [1.0]], "head.bias": [-_INF, 0.0, 0.0]},
        ),
    )
    sick = (
        Case("a causal mask", {"mask": [[0.0, -_INF], [0.0, 0.0]]}),
        Case("a causal mask under any name", {"x": [[[[0.0, 0.0], [-_INF, 0.0]]]]}),
        Case("distance biases with a causal mask", {"alibi": [[0.0, -_INF], [-0.5, 0.0]]}),
        Case("masked classes", {"classifier.bias": [0.5, -_INF, 0.1]}),
        Case("forbidden transitions", {"crf.transitions": [[0.5, -_INF], [0.1, 0.2]]}),
        Case("an observer", {"fq.activation_post_process.max_val": -_INF}),
        Case("an unbounded space", {"space.low": [-_INF, -1.0]}),
        Case("a best score", {"callbacks.x": _INF}, {"callbacks.x": "training"}),
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        for info, stats in ctx.where(ctx.stats.nan + ctx.stats.posinf + ctx.stats.neginf):
            what = intended(ctx, info, stats)
            if not what:
                continue
            counts = ((stats.nan, "NaN"), (stats.posinf, "+Inf"), (stats.neginf, "-Inf"))
            kinds = " and ".join(f"{n:,} {kind}" for n, kind in counts if n)
            amount = f" among {stats.count:,} elements" if stats.count > 1 else ""
            yield self.finding(
                info,
                f"{kinds}{amount}, intended in {what}",
                elements=stats.count,
                nan=stats.nan,
                posinf=stats.posinf,
                neginf=stats.neginf,
            )
