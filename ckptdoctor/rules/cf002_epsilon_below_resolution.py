"""CF002: a normalisation layer's epsilon that its arithmetic rounds to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..findings import Finding, Severity
from ..layers import Layer
from ..tensors import LayerConfig
from .base import Case, Context, Rule, rule

UPCASTS = frozenset(
    ["BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2",
     "SyncBatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"]
)  # fmt: skip
"""Keras' layers that cast 16-bit inputs to float32 before they add epsilon (Keras 3.15)."""

KERAS2_AS_IS: Mapping[str, tuple[str, ...]] = {
    "GroupNormalization": ("mixed_float16", "float16"),
    "LayerNormalization": ("float16",),
}
"""What Keras 2 (tf_keras 2.21) computes in float16 all the same: NaN on a constant input."""


class _Loss(NamedTuple):
    """What becomes of an epsilon."""

    dtype: str
    """Type in which it is 0."""
    certain: bool
    """Whether the layer's own arithmetic is of that type."""
    why: str


@rule
class LayerEpsilonBelowResolution(Rule):
    """Epsilon is zero in the type a normalisation layer computes in.

    What it means
    -------------
    Epsilon keeps 1/sqrt(variance + epsilon) finite where the variance is 0.  float16 has nothing
    between 0 and 6e-8: 1e-8 is 0 there, and a constant input becomes 0/0, NaN.

    Which layers that concerns was tried.  Keras 3 casts to float32 first in BatchNormalization,
    LayerNormalization, GroupNormalization and RMSNormalization, whatever the policy, and so do
    torch's own layers: a note, since an export to pure float16 loses it.  Keras 2 computes
    GroupNormalization in float16 under ``mixed_float16`` and ``float16``, LayerNormalization
    under ``float16``: a warning, as are layers of one's own.  An epsilon that is 0 in float32
    protects nothing anywhere.  It is an error where a stored variance is 0, and a note where the
    smallest one is above 0.

    How it happens
    --------------
    An epsilon copied from a float32 recipe (BERT's LayerNorm has 1e-12), or set to 0 to match
    another implementation.

    When to ignore it
    -----------------
    When the layer's own code casts its input to float32, or its input is never constant.
    """

    code = "CF002"
    name = "epsilon-below-resolution"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "IEEE 754-2019, table 3.5: binary16, smallest number 2^-24",
        "keras/src/layers/normalization/batch_normalization.py: call() casts to float32",
        "tf_keras/src/layers/normalization/layer_normalization.py: only where variables are float32",
    )
    healthy = (
        Case("Keras' default", {}, layers=(
            LayerConfig(name="bn", class_name="BatchNormalization", epsilon=1e-3,
                        dtype_policy="mixed_float16"),)),
        Case("BERT's epsilon in float32", {}, layers=(
            LayerConfig(name="ln", class_name="LayerNormalization", epsilon=1e-12,
                        dtype_policy="float32"),)),
        Case("bfloat16, which has the exponents of float32", {}, layers=(
            LayerConfig(name="ln", class_name="LayerNormalization", epsilon=1e-12,
                        dtype_policy="mixed_bfloat16"),)),
        Case("subnormal in float16 but there", {}, layers=(
            LayerConfig(name="norm", class_name="MyNorm", epsilon=6e-8,
                        dtype_policy="mixed_float16"),)),
        Case("torch's layers, which add it in float32", {}, layers=(
            LayerConfig(name="ln", class_name="LayerNorm", epsilon=1e-12),)),
        Case("another use of the word", {}, layers=(
            LayerConfig(name="loss", class_name="DiceScore", epsilon=0.0),)),
    )  # fmt: skip
    sick = (
        Case("a layer of one's own in float16", {}, layers=(
            LayerConfig(name="norm", class_name="MyNorm", epsilon=1e-8,
                        dtype_policy="mixed_float16"),)),
        Case("Keras casts to float32", {}, {}, Severity.NOTE, layers=(
            LayerConfig(name="bn", class_name="BatchNormalization", epsilon=1e-8,
                        dtype_policy="mixed_float16"),)),
        Case("no epsilon at all", {}, layers=(
            LayerConfig(name="ln", class_name="LayerNorm", epsilon=0.0),)),
        Case("no epsilon, and a variance of 0", {"bn.running_var": [0.0, 1.0]}, {}, Severity.ERROR,
             layers=(LayerConfig(name="bn", class_name="BatchNorm2d", epsilon=0.0),)),
        Case("no epsilon, and no variance near 0", {"bn.running_var": [0.5, 1.0]}, {},
             Severity.NOTE,
             layers=(LayerConfig(name="bn", class_name="FrozenBatchNorm2d", epsilon=0.0),)),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        keras2 = ctx.table.metadata.get("framework_version", "").startswith(("1.", "2."))
        lost = {
            config.name: loss
            for config in ctx.table.layers.values()
            if config.epsilon is not None and "norm" in config.class_name.lower()
            if (loss := _loss(config, keras2)) is not None
        }
        if not lost:
            return
        held = {layer.config.name: layer for layer in ctx.layers.all if layer.config is not None}
        for name, loss in lost.items():
            yield self._told(ctx, ctx.table.layers[name], loss, held.get(name))

    def _told(self, ctx: Context, config: LayerConfig, loss: _Loss, layer: Layer | None) -> Finding:
        info = layer.parts.get("var") if layer is not None else None
        stats = ctx.stats[info.name] if info is not None else None
        smallest = stats.minimum if stats is not None else None
        severity, and_ = Severity.WARNING if loss.certain else Severity.NOTE, ""
        if loss.certain and smallest is not None and smallest > 0:
            severity, and_ = Severity.NOTE, f"; no stored variance is below {smallest:.3g}"
        elif loss.dtype == "float32" and smallest is not None and stats is not None:
            severity, and_ = Severity.ERROR, f"; the least of its variances is {smallest:.3g}"
        message = f"epsilon {config.epsilon:g} is 0 in {loss.dtype}{loss.why}{and_}"
        finding = self.number_finding(
            info.name if info is not None else "",
            message,
            role=layer.role if layer is not None else "model",
            severity=severity,
            limit=f"half the smallest {loss.dtype} value",
            epsilon=config.epsilon,
            dtype=loss.dtype,
            used=loss.certain,
        )
        return replace(finding, layer=layer.name if layer is not None else config.name)


def _loss(config: LayerConfig, keras2: bool) -> _Loss | None:
    """In which type the layer's epsilon is 0; None where it is not."""
    epsilon = config.epsilon or 0.0
    with np.errstate(all="ignore"):
        if np.float32(epsilon) <= 0:
            return _Loss("float32", True, " and protects no variance of 0")
        policy = (config.dtype_policy or "").rpartition("_from_")[2]
        if policy.removeprefix("mixed_") != "float16" or np.float16(epsilon) > 0:
            return None
    if keras2 and policy in KERAS2_AS_IS.get(config.class_name, ()):
        return _Loss("float16", True, f", in which Keras 2 computes a {config.class_name}")
    if config.class_name in UPCASTS:
        return _Loss("float16", False, "; this layer computes in float32, an export may not")
    return _Loss("float16", True, f", the type that policy {policy!r} computes in")
