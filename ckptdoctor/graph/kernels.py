"""Whether a kernel can feed a BatchNorm of so many channels, and which of its axes are outputs."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..layers import Layer

__all__ = ["NO_FIT", "Fit", "fit", "is_kernel"]

_KERNELS = frozenset({"conv", "dense", "weightnorm", "spectralnorm", "quantised"})
_TRANSPOSED = (
    r"de_?conv|transpose|(?<![a-z])conv_?t(?![a-z])|(?<![a-z])t_?conv|(?<![a-z])up_?conv|conv_?up"
)


def is_kernel(layer: Layer) -> bool:
    """Whether a BatchNorm may stand behind it."""
    return layer.kind in _KERNELS


class Fit(NamedTuple):
    """How a kernel and so many channels go together.

    Parameters
    ----------
    axes
        Of the kernel that count outputs, if those are as many; else empty.
    sure
        False where only a transposed convolution has them there, and nothing says it is one.
    takes
        Whether its inputs may be as many: then a BatchNorm may stand before it instead.
    grouped
        Whether its inputs are as many only if it is a grouped convolution.
    """

    axes: tuple[int, ...]
    sure: bool
    takes: bool
    grouped: bool = False


NO_FIT = Fit((), sure=False, takes=False)


def fit(layer: Layer, channels: int) -> Fit:
    """Compare a kernel's outputs and inputs with a number of channels.

    A transposed convolution of torch has its inputs where an ordinary one has its outputs.  Its
    class tells them apart, or its name, or a bias; without those the axis of the right size may
    be either.
    """
    parts = layer.parts
    info = parts.get("kernel") or parts.get("v")
    if info is None or len(info.shape) < 2:
        return NO_FIT
    shape, rank = info.shape, len(info.shape)
    if "pointwise" in parts:
        outputs = parts["pointwise"].shape[-1] == channels
        return Fit(layer.unit_axes if outputs else (), outputs, shape[-2] == channels)
    usual, other = 0, 1
    if layer.keras:
        usual, other = rank - 1, rank - 2
        if len(layer.unit_axes) > 1 or (shape[usual] == 1 and rank > 2):  # depthwise
            outputs = shape[other] * shape[usual] == channels
            return Fit((other, usual) if outputs else (), outputs, shape[other] == channels)
    told = _told(layer, shape[usual], shape[other])
    if told == "transposed":
        outputs = shape[other] == channels
        return Fit((other,) if outputs else (), outputs, shape[usual] == channels)
    takes = shape[other] == channels or (shape[other] == 1 and shape[usual] == channels)
    if shape[usual] == channels:
        groups = channels // shape[other] if rank > 2 and shape[other] > 1 else 1
        grouped = groups > 1 and groups * shape[other] == channels
        return Fit((usual,), sure=True, takes=takes, grouped=grouped)
    if told == "ordinary" or rank == 2 or shape[other] != channels:
        return Fit((), sure=False, takes=takes)
    return Fit((other,), sure=False, takes=takes)


def _told(layer: Layer, usual: int, other: int) -> str:
    """Say what class, name or bias tell about a kernel: ``transposed``, ``ordinary`` or nothing."""
    class_name = layer.class_name.lower()
    if class_name:
        return "transposed" if "transpose" in class_name else "ordinary"
    bias = layer.parts.get("bias")
    if bias is not None and usual != other and bias.size in (usual, other):
        return "ordinary" if bias.size == usual else "transposed"
    return "transposed" if re.search(_TRANSPOSED, layer.name.lower()[-60:]) else ""
