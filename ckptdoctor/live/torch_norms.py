"""Which modules are BatchNorms with running statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .subject import NormLayer

if TYPE_CHECKING:
    from torch import nn

__all__ = ["norm_of"]

_EPSILON = 1e-5
"""torch's default, for classes that do not say."""


def norm_of(name: str, module: nn.Module) -> NormLayer | None:
    """Describe a BatchNorm with running statistics, of whatever class; None for any other module.

    InstanceNorm holds statistics too, but of instances: a batch has no say in them.
    """
    buffers = dict(module.named_buffers(recurse=False))
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    if mean is None or var is None or mean.shape != var.shape or mean.dim() != 1:
        return None
    if any("InstanceNorm" in each.__name__ for each in type(module).__mro__):
        return None
    dot = f"{name}." if name else ""
    return NormLayer(
        name=name,
        channels=mean.numel(),
        axis=1,
        epsilon=float(getattr(module, "eps", _EPSILON)),
        unbiased=True,
        mean=f"{dot}running_mean",
        var=f"{dot}running_var",
    )
