"""
Which NaN and infinities are meant to be there: one row per convention, told by name and pattern.

A mask adds -Inf to the scores of what must not be seen, an observer starts at +Inf and -Inf, a
training loop's best score starts at infinity.  None of them is damage.  Damage has the names of
parameters and statistics (``weight``, ``running_var``), which no row here knows, holds NaN or
+Inf where a mask has only -Inf, or lies anywhere rather than on one side of the diagonal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..measure.stats import TensorStats
from ..tensors import TensorInfo
from .base import Context

__all__ = ["CONVENTIONS", "MASKED_SHARE", "Convention", "intended"]

MASKED_SHARE = 0.5
"""Share of -Inf up to which a bias masks classes; a head that masks more than it offers is sick."""


@dataclass(frozen=True, slots=True)
class Convention:
    """Non-finite values that a kind of tensor holds on purpose.

    Parameters
    ----------
    what
        What the tensor is, as messages call it.
    values
        ``-inf``: nothing but -Inf beside finite values; ``inf``: infinities, no NaN; ``any``.
    keys
        Regular expression for the last component of the name, matched whole, without case and
        without a ``:0``; empty for any name.
    roles
        Roles it is found in.
    seen_in
        Who writes such tensors.
    test
        What else must hold of the values.
    """

    what: str
    values: Literal["-inf", "inf", "any"]
    keys: str
    roles: tuple[str, ...]
    seen_in: str
    test: Callable[[Context, TensorInfo, TensorStats], bool] | None = None


def _few_masked(ctx: Context, info: TensorInfo, stats: TensorStats) -> bool:
    """Classes are masked: few of them, in a vector, beside a weight that is sound."""
    long = max(info.shape, default=0)
    layer = ctx.layers.of(info.name)
    kernel = layer.parts.get("kernel") if layer is not None else None
    sound = kernel is None or not ctx.stats[kernel.name].nonfinite
    return sound and long == info.size and stats.neginf <= MASKED_SHARE * stats.count


def _of_head(ctx: Context, info: TensorInfo, stats: TensorStats) -> bool:
    parent = re.split(r"[./]", info.layer)[-1]
    return _is(_HEAD, parent) and _few_masked(ctx, info, stats)


_HEAD = r"(.+_)?(head|classifier|logits?|predictions?|vocab|decoder|readout|fc)"


def _triangle(ctx: Context, info: TensorInfo, stats: TensorStats) -> bool:
    """-Inf on one side of the diagonal of every square matrix, and nowhere else."""
    if info.kind.kind == "complex":  # a mask adds to scores, which are real
        return False
    n = info.shape[-1] if len(info.shape) >= 2 else 0
    if n < 2 or info.shape[-2] != n or stats.neginf != stats.count // (n * n) * (n * (n - 1) // 2):
        return False
    start, upper, lower = 0, True, True
    for block in ctx.table.blocks(info):
        row, column = np.divmod(np.arange(start, start + block.size) % (n * n), n)
        masked = np.isneginf(block)
        upper &= bool((masked == (column > row)).all())
        lower &= bool((masked == (column < row)).all())
        if not upper and not lower:
            return False
        start += block.size
    return True


_WEIGHTS = ("model", "ema", "other")

CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        "state of the training loop", "inf", "", ("training",),
        "Lightning callbacks (best_model_score, kth_value), everybody's best loss",
    ),
    Convention(
        "bookkeeping that was never filled in", "any",
        r"(last|first)_(seen|used|hit|visit(ed)?|updated?|step|epoch|iter(ation)?|time|loss|score"
        r"|reset|value|lr)|.*_(seen|timestamp)|(best|kth)(_.+)?|prev(ious)?_(loss|score|value"
        r"|metric|step|time|error|lr)|(.+_)?(loss|score|metric|accuracy|fitness|reward|return"
        r"|perplexity)|(.+_)?history",
        ("training", *_WEIGHTS),
        "buffers that count visits, keep a best value or the history of one",
    ),
    Convention(
        "an observer's range", "any", r"(min|max)_?vals?", ("training", *_WEIGHTS),
        "torch.ao.quantization observers: +Inf and -Inf until the first batch",
    ),
    Convention(
        "a constant that stands for a missing value", "any",
        r"(neg_?|minus_?)?(nan|inf|infinity)(_value)?|.*sentinel.*|(fill|missing|unset)(_value)?",
        ("training", *_WEIGHTS),
        "buffers named for it",
    ),
    Convention(
        "an open bound", "inf",
        r"(.+_)?(low|high|lower|upper|min|max|minimum|maximum|bounds?|limits?|thresholds?|clamp"
        r"|cutoff)(_(value|val|bounds?|limits?))?",
        ("training", *_WEIGHTS),
        "spaces of reinforcement learning, clamps, observers of other frameworks",
    ),
    Convention(
        "an attention mask", "-inf",
        r"(?!.*(token|embed|emb$|weight|score|kernel))(.*_)?(mask(s|ed|ed_bias|_value)?|tril|triu"
        r"|causal)(_.*)?",
        _WEIGHTS,
        "transformers that register their mask as a buffer; a learned mask_token is none",
    ),
    Convention(
        "a causal mask", "-inf", "", _WEIGHTS,
        "the same under any name, ALiBi biases among them", _triangle,
    ),
    Convention(
        "a bias that masks classes", "-inf",
        r"(.+_)?(logits?|vocab|suppress(ed)?|forbid(den)?|ban(ned)?)(_(bias|ids?|tokens?|class(es)?))*",
        _WEIGHTS, "final_logits_bias of BART and Marian, suppressed tokens", _few_masked,
    ),
    Convention(
        "a bias that masks classes", "-inf", r"bias", _WEIGHTS,
        "heads padded to a round vocabulary size", _of_head,
    ),
    Convention(
        "logarithms of zero probabilities", "-inf",
        r"(.+_)?(transitions?|constraints?|log_?(prob(s|abilit(y|ies))?|priors?))", _WEIGHTS,
        "conditional random fields, hidden Markov models",
    ),
)  # fmt: skip

# Patterns are compiled when the first suspect asks: a healthy file never does, and it takes 2 ms.
_PARAMETER = (
    r"(.+_)?(weight|kernel|gamma|beta|running_(mean|var)|moving_(mean|variance)|scale)(_.*)?"
)


def _is(pattern: str, word: str) -> bool:
    return re.fullmatch(pattern, word, re.IGNORECASE) is not None


def intended(ctx: Context, info: TensorInfo, stats: TensorStats) -> str:
    """Tell what makes a tensor's non-finite values intended, as a noun phrase; empty for damage."""
    found: str = ctx.once("intended", info, lambda: _intended(ctx, info, stats))
    return found


def _intended(ctx: Context, info: TensorInfo, stats: TensorStats) -> str:
    leaf = re.split(r"[./]", re.sub(r"(:\d+|#\d+)+$", "", info.name))[-1]
    if leaf.isdigit():  # Keras 3 numbers the variables of a layer
        leaf = ctx.layers.part_of(info.name) or leaf
    for row in CONVENTIONS:
        if info.role not in row.roles:
            continue
        if (stats.nan and row.values != "any") or (stats.posinf and row.values == "-inf"):
            continue
        if row.keys and (not _is(row.keys, leaf) or _is(_PARAMETER, leaf)):
            continue
        if row.test is None or row.test(ctx, info, stats):
            return row.what
    return ""
