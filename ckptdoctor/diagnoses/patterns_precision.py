"""Illnesses of precision: a cast that was asked for, and values already stored too narrow."""

from __future__ import annotations

from .case import Case, Command, Pattern
from .commands import explain

__all__ = ["PRECISION"]

_NAMED = 8
"""Tensors of the keep-in-float32 list that the text names; JSON has them all."""
_WIDE = "bfloat16"
"""Half precision with float32's range: what no overflow speaks against."""


def _asked(case: Case) -> bool:
    return bool(case.facts.ctx.cast_to)


def _keep(case: Case) -> str:
    kept = [f.tensor for f in case.findings if f.measured.get("keep_float32")]
    kept = list(dict.fromkeys(kept))
    named = ", ".join(kept[:_NAMED])
    more = f" and {len(kept) - _NAMED:,} more" if len(kept) > _NAMED else ""
    wide = f", or cast to {_WIDE}, which has float32's range" if _narrow(case) else ""
    return f"Nothing is lost yet. Keep in float32: {named}{more}{wide}."


def _narrow(case: Case) -> bool:
    return case.facts.ctx.cast_to != _WIDE


def _try_wider(case: Case) -> Command:
    if not _narrow(case):
        return explain(case.findings[0].code)
    words = ("inspect", "{file}", "--cast-to", _WIDE)
    return Command(words, f"Shows the same for {_WIDE}.")


PRECISION: tuple[Pattern, ...] = (
    Pattern(
        key="cast-would-lose",
        codes=("PR001", "PR002", "PR003", "BN008"),
        when=_asked,
        rank=1,
        title=lambda case: f"Values do not fit {case.facts.ctx.cast_to}, which was asked about",
        inference="As stored: unchanged. After the cast: overflow gives Inf and NaN, underflow and "
        "saturation shift the outputs.",
        training="It is as it was: nothing is cast yet.",
        causes=("narrow-type",),
        repair=_keep,
        next=_try_wider,
    ),
    Pattern(
        key="cast-loses-values",
        codes=("PR001", "PR002", "PR003"),
        takes=("BN008",),
        rank=6,
        title="Values do not fit the narrow type that they are stored in",
        inference="Underflow and saturation shift the outputs; how much, only data can tell.",
        training="Fine in the wider type.",
        causes=("narrow-type",),
        repair="Nothing is lost while the original exists: keep the named tensors in float32, or "
        "use bfloat16, which has float32's range.",
        next=lambda case: explain(case.findings[0].code),
    ),
)
"""Patterns of narrow types; the first stands before all others, since nothing has happened yet."""
