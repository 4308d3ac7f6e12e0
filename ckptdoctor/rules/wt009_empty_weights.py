"""WT009: a weight without elements."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..findings import Finding, Severity
from ..tensors import Role, TensorInfo
from .base import Case, Context, Rule, rule, threshold


class _Weights:
    """Weights of one role: those without elements, and how many there are in all."""

    def __init__(self) -> None:
        self.empty: list[TensorInfo] = []
        self.all = 0


@rule
class EmptyWeights(Rule):
    """A weight has shape ``[0]``, or another shape without elements.

    What it means
    -------------
    The file holds the name and not the values: it cannot be loaded into the model, or loads (with
    shapes ignored) into one whose layers stay random.

    How it happens
    --------------
    DeepSpeed ZeRO-3 and FSDP split each parameter over the processes; ``state_dict()`` of the
    bare module then sees empty placeholders.  The values are in the engine's own checkpoint, from
    which ``zero_to_fp32.py`` puts them together, or are gathered with
    ``stage3_gather_16bit_weights_on_model_save``.

    When to ignore it
    -----------------
    Some layers have no parameters by configuration and keep an empty tensor: e3nn's products of
    representations (an ``output_mask`` beside it tells), layers of width 0, layers whose bias is
    empty as well.  Where other weights of the file are full, these are notes.
    """

    code = "WT009"
    name = "empty-weights"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "https://www.deepspeed.ai/docs/config-json/#zero-optimizations-for-fp16-training",
        "Rajbhandari et al. 2020, arXiv:1910.02054: ZeRO",
    )
    healthy = (
        Case("an empty buffer", {"fc.weight": [[1.0, 2.0]], "output_mask": []}),
        Case("an optimizer's empty group", {"optimizer.0.weight": []}, {"optimizer.0.weight": "optimizer"}),
    )  # fmt: skip
    sick = (
        Case("one placeholder beside a full bias",
             {"a.weight": [[1.0, 2.0]], "b.weight": [[1.0, 2.0]], "fc.weight": [], "fc.bias": [1.0, 2.0]}),
        Case("one placeholder among full weights",
             {"a.weight": [[1.0, 2.0]], "b.weight": [[1.0, 2.0]], "conv.weight": []}),
        Case("the only weight there is", {"fc.weight": []}),
        Case("a layer that has no parameters by configuration",
             {"a.weight": [[1.0, 2.0]], "b.weight": [[1.0, 2.0]], "tp.weight": [], "tp.output_mask": [1.0]},
             severity=Severity.NOTE),
        Case("a layer without inputs",
             {"a.weight": [[1.0, 2.0]], "b.weight": [[1.0, 2.0]], "fc.weight": [[], []], "fc.bias": [1.0, 2.0]},
             severity=Severity.WARNING),
    )  # fmt: skip

    share: float = threshold(
        0.5,
        unit="share of the weights that are empty",
        why="ZeRO-3 splits every parameter above a size; configurations leave out single ones",
        healthy="0 of 135 files hold an empty weight",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        if not any(0 in info.shape for info in ctx.table.infos.values()):
            return
        by_role: dict[Role, _Weights] = {}
        full: dict[str, bool] = {}
        for info in ctx.table.infos.values():
            if info.role not in ("model", "ema"):
                continue
            full[info.name] = 0 not in info.shape
            if not _is_weight(info):
                continue
            weights = by_role.setdefault(info.role, _Weights())
            weights.all += 1
            if 0 in info.shape:
                weights.empty.append(info)
        for weights in by_role.values():
            for info in weights.empty:
                yield self._found(info, weights, full)

    def _found(self, info: TensorInfo, weights: _Weights, full: dict[str, bool]) -> Finding:
        empty = len(weights.empty)
        many = empty >= self.share * weights.all
        plain = re.fullmatch(_PLAIN, info.name, re.DOTALL)
        stem, end = plain.groups() if plain else ("\0", "")
        bias = full.get(f"{stem}bias{end}")
        shape = list(info.shape)
        if many:
            severity = Severity.ERROR
            why = f"as {empty:,} of {weights.all:,} weights are: a placeholder, not the values"
        elif bias and len(shape) == 1:
            severity, why = Severity.ERROR, "though the layer's bias is stored"
        elif bias:
            severity, why = Severity.WARNING, "the layer's output is its bias"
        elif plain and bias is None and len(shape) == 1 and f"{stem}output_mask" not in full:
            severity, why = Severity.ERROR, "though other weights are stored: it cannot be loaded"
        else:
            severity, why = Severity.NOTE, "the layer may have no parameters by configuration"
        return self.finding(
            info,
            f"no elements (shape {shape}), {why}",
            severity=severity,
            limit=f"{self.share:.0%} of the weights" if many else "",
            shape=shape,
            empty=empty,
            weights=weights.all,
        )


_PLAIN = r"(|.*[./])(?:weight|(?:recurrent_)?kernel|embeddings)(|:\d+|_[ih]h\w*)"
"""Names of what a layer cannot do without; the same with ``bias`` is its bias."""


def _is_weight(info: TensorInfo) -> bool:
    leaf = info.name[max(info.name.rfind("."), info.name.rfind("/")) + 1 :]
    return "weight" in leaf or leaf.startswith(("kernel", "embeddings"))
