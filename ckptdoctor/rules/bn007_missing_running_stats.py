"""BN007: a BatchNorm without its running statistics."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..layers import Layer
from .base import Case, Context, Rule, rule


@rule
class MissingRunningStats(Rule):
    """A BatchNorm was stored without its running mean or variance.

    What it means
    -------------
    A strict load fails.  One that is not strict leaves what is missing at 0 and 1, so that
    inference normalises with statistics that have nothing to do with the activations.

    How it happens
    --------------
    Buffers were left out when the file was written (parameters saved instead of the state dict),
    renamed or filtered by a conversion, or lost by an edit.  With ``track_running_stats=False``
    there are none, and none are needed.

    When to ignore it
    -----------------
    When the layer is meant to use the statistics of the batch also at inference.  A layer that is
    told from its siblings by its name alone is a warning.
    """

    code = "BN007"
    name = "missing-running-stats"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
        "https://docs.pytorch.org/docs/stable/notes/serialization.html: state_dict and buffers",
    )

    healthy = (
        Case("both statistics", {"bn.weight": [1.0], "bn.running_mean": [0.1],
             "bn.running_var": [0.9], "bn.num_batches_tracked": np.array(3)}),
        Case("a normalisation that has none", {"ln.weight": [1.0], "ln.bias": [0.0]}),
        Case("batch statistics at inference", {"bn1.weight": [1.0], "bn1.bias": [0.0]}),
        Case("a running mean of something else", {"reward.running_mean": [0.5]}),
    )  # fmt: skip
    sick = (
        Case("a mean without a variance", {"bn.weight": [1.0], "bn.running_mean": [0.1]}),
        Case("a variance without a mean", {"bn.weight": [1.0], "bn.running_var": [0.1]}),
        Case("a counter without what it counts", {"bn.weight": [1.0], "bn.bias": [0.0],
             "bn.num_batches_tracked": np.array(7)}),
        Case("a Keras layer's mean alone", {"bn/gamma": [1.0], "bn/moving_mean": [0.1]}),
        Case("a sibling without statistics", {
             **{f"{block}.bn.{part}": [0.9] for block in "abc"
                for part in ("weight", "bias", "running_mean", "running_var")},
             "d.bn.weight": [1.0], "d.bn.bias": [0.0]}, severity=Severity.WARNING),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        for layer in ctx.layers.batchnorms:
            finding = self._half(layer)
            if finding is not None:
                yield finding
        words: dict[str, int] = {}
        for layer in ctx.layers.of_kind("norm"):
            if not words:
                words = _words(ctx)
            finding = self._none(layer, words)
            if finding is not None:
                yield finding

    def _half(self, layer: Layer) -> Finding | None:
        """One statistic without the other, in a layer that shows that it is a BatchNorm."""
        parts = layer.parts
        if ("mean" in parts) == ("var" in parts):
            return None
        if "gamma" not in parts and "beta" not in parts and "count" not in parts:
            return None
        has, lacks = ("mean", "variance") if "mean" in parts else ("variance", "mean")
        info = parts.get("mean") or parts["var"]
        message = f"running {has} without a running {lacks}"
        return self.finding(info, message, channels=info.size, missing=1)

    def _none(self, layer: Layer, words: dict[str, int]) -> Finding | None:
        parts = layer.parts
        info = parts.get("gamma")
        if info is None or layer.class_name not in _POSSIBLE:
            return None
        settings = layer.config.settings if layer.config is not None else {}
        if "count" in parts:
            message = "batches were counted, but there is neither a running mean nor a variance"
            return self.finding(parts["count"], message, channels=info.size, missing=2)
        if "BatchNorm" in layer.class_name:
            if settings.get("track_running_stats") is not True:
                return None
            message = f"a {layer.class_name} that tracks statistics was stored without any"
            return self.finding(info, message, channels=info.size, missing=2)
        siblings = words.get(_word(layer), 0)
        if siblings < _SIBLINGS or not re.search(r"bn|batch_?norm", _word(layer)):
            return None
        message = f"no running statistics, which {siblings:,} layers of the same name have"
        return self.finding(info, message, severity=Severity.WARNING, channels=info.size, missing=2)


_SIBLINGS = 3
"""Layers with statistics that make one of the same name without them remarkable."""
_POSSIBLE = ("", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "BatchNormAct2d")
"""Classes as stored, the empty one of files that store none."""


def _words(ctx: Context) -> dict[str, int]:
    """How many BatchNorms have each last word of a name; never empty."""
    words = {"": 0}
    for layer in ctx.layers.batchnorms:
        word = _word(layer)
        words[word] = words.get(word, 0) + 1
    return words


def _word(layer: Layer) -> str:
    """Last component of a layer's name without its number: what kind of layer its author meant."""
    return re.sub(r"[\d_]+$", "", re.split(r"[./]", layer.name)[-1].lower())
