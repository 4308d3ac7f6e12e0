"""Whether a kernel can feed a BatchNorm of so many channels, and which of its axes are outputs."""

from __future__ import annotations

import re

from ..layers import Layer
from ..tensors import TensorInfo

__all__ = ["feeding_axes", "is_kernel", "takes"]

_KERNELS = frozenset({"conv", "dense", "weightnorm", "spectralnorm", "quantised", "lora"})
_TRANSPOSED = r"de_?conv|transpose|(?<![a-z])conv_?t(?![a-z])|(?<![a-z])t_?conv|up_?conv|conv_?up"


def is_kernel(layer: Layer) -> bool:
    """Whether a BatchNorm may stand behind it."""
    return layer.kind in _KERNELS


def feeding_axes(layer: Layer, channels: int) -> tuple[int, ...] | None:
    """Axes of a kernel that count its outputs, if those are ``channels``; None if they are not.

    A transposed convolution has its inputs where an ordinary one has its outputs; unless its
    class is stored, the axis of the right size decides, and the ordinary one wins a draw.
    """
    info = _weights(layer)
    if info is None:
        return None
    if "pointwise" in layer.parts:
        return layer.unit_axes if layer.parts["pointwise"].shape[-1] == channels else None
    shape, rank = info.shape, len(info.shape)
    options = _options(layer, rank)
    for axes in options:
        count = 1
        for axis in axes:
            count *= shape[axis]
        if count == channels:
            return axes
    return None


def _options(layer: Layer, rank: int) -> list[tuple[int, ...]]:
    """List the sets of axes that may be outputs, the likeliest first."""
    if rank < 2:
        return []
    name = f"{layer.class_name} {layer.name}".lower()
    known = bool(layer.class_name)
    hinted = re.search(_TRANSPOSED, name) is not None
    ordinary: list[tuple[int, ...]] = [(0,)]
    transposed: list[tuple[int, ...]] = [(1,)]
    if layer.keras:
        if "depthwise" in name:
            return [(rank - 2, rank - 1)]
        ordinary, transposed = [(rank - 1,)], [(rank - 2,)]
        if not known and rank > 2:
            ordinary.append((rank - 2, rank - 1))
    if rank == 2:
        return ordinary
    if hinted:
        return transposed + ([] if known else ordinary)
    return ordinary + ([] if known else transposed)


def takes(layer: Layer, channels: int) -> bool:
    """Whether a kernel can have that many inputs: then a BatchNorm may stand before it."""
    info = _weights(layer)
    if info is None or len(info.shape) < 2:
        return False
    shape = info.shape
    if layer.keras:
        return shape[-2] == channels
    return shape[1] == channels or (shape[1] == 1 and shape[0] == channels)


def _weights(layer: Layer) -> TensorInfo | None:
    parts = layer.parts
    return parts.get("kernel") or parts.get("v") or parts.get("g")
