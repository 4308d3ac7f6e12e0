"""The answers: what feeds a BatchNorm, the order of the layers, and how both are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..layers import Layer
from ..tensors import Array, TensorInfo

__all__ = ["Feed", "Graph", "LazyOrder"]


class Feed(NamedTuple):
    """What stands in front of a BatchNorm.

    Parameters
    ----------
    kernel
        The convolution or dense layer whose output it normalises; None where it is fed by
        anything else, or nobody knows.
    source
        ``kernel``, ``input`` (no kernel between the model's input and it), ``norm`` (another
        normalisation), ``sum`` (and products), ``concat`` or ``unknown``.
    how
        How that is known: ``the Keras config``, ``names that pair up``, ``file order and 64
        channels`` ...; where it is not, why.
    through
        Class names of what lies between, the nearest first, activation functions fused into the
        kernel too: an average pooling makes the variance smaller than the kernel alone would.
    axes
        Axes of the kernel tensor that count its outputs; empty without a kernel.
    channels
        Of the BatchNorm.
    """

    kernel: Layer | None
    source: str
    how: str
    through: tuple[str, ...] = ()
    axes: tuple[int, ...] = ()
    channels: int = 0

    @property
    def norm_part(self) -> TensorInfo | None:
        """Tensor that tells the norms of the kernel's outputs; None where none does.

        The kernel itself, or the ``g`` of a weight-norm pair, which holds the norms as they are.
        A spectral norm or a quantised kernel would have to be computed first.
        """
        kernel = self.kernel
        if kernel is None or kernel.kind not in ("conv", "dense", "weightnorm"):
            return None
        info = kernel.parts.get("g") or kernel.parts.get("kernel")
        if info is None or info.encoding != "plain" or info.kind.kind != "float":
            return None
        if kernel.kind == "weightnorm" and (self.axes != (0,) or info.size != kernel.units):
            return None
        return info

    def squared_norms(self, read: Callable[[TensorInfo], Array]) -> Array | None:
        """Squared norm of the kernel's weights for each channel of the BatchNorm.

        ``running_var[c] / squared_norms[c]`` is the mean square of the kernel's input that the
        variance implies.

        Parameters
        ----------
        read
            Gives a tensor's values in its shape: ``ctx.read`` of a rule.

        Returns
        -------
        numpy.ndarray or None
            float64, one value per channel; None where it is not known.  A dense layer whose units
            were reshaped to maps counts by the mean over the places of each channel.
        """
        info, kernel = self.norm_part, self.kernel
        if info is None or kernel is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            values = read(info).astype(np.float64)
            squares = np.square(values, out=values)
            if kernel.kind == "weightnorm":
                units = squares.reshape(-1)
            elif "pointwise" in kernel.parts:
                units = _separable(squares, np.square(_float64(read(kernel.parts["pointwise"]))))
            else:
                rest = tuple(axis for axis in range(squares.ndim) if axis not in self.axes)
                units = squares.sum(axis=rest).reshape(-1)
        return _per_channel(units, self.channels)


def _float64(values: Array) -> Array:
    return values.astype(np.float64)


def _separable(depthwise: Array, pointwise: Array) -> Array:
    """Keras: (window, in, multiplier) and (1, in * multiplier, out); both squared already."""
    windows = depthwise.reshape(-1, depthwise.shape[-2] * depthwise.shape[-1]).sum(axis=0)
    return np.asarray(windows @ pointwise.reshape(windows.size, -1))


def _per_channel(units: Array, channels: int) -> Array | None:
    """Fit units to channels where a reshape lies between: in Keras, channels vary fastest."""
    if not channels or not units.size:
        return None
    if units.size % channels == 0:
        return np.asarray(units.reshape(-1, channels).mean(axis=0))
    return np.tile(units, channels // units.size) if channels % units.size == 0 else None


class LazyOrder(Mapping[str, int]):
    """Key of a layer -> its depth; worked out when first asked for.

    100,000 layers take 0.1 s to sort, and most checkpoints have no finding that needs it.
    """

    def __init__(self, keys: Callable[[], list[str]]) -> None:
        self._keys = keys
        self._depths: dict[str, int] | None = None

    def _known(self) -> dict[str, int]:
        if self._depths is None:
            self._depths = {key: depth for depth, key in enumerate(self._keys())}
        return self._depths

    def __getitem__(self, key: str) -> int:
        return self._known()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


class Graph(NamedTuple):
    """Order and connections of the layers.

    Parameters
    ----------
    order
        Key of a layer -> its depth, 0 first; in data-flow order as far as ``order_from`` knows.
    order_from
        ``the Keras config``, ``the pickled module``, ``the TorchScript module``, ``the file's
        order``, ``the names' natural order``.
    feeds
        Key of a BatchNorm -> what feeds it.
    first
        Keys of the BatchNorms that see the model's input, or an image of it by kernels alone: no
        other normalisation stands before them.  Which of both, their feed tells.
    """

    order: Mapping[str, int]
    order_from: str
    feeds: Mapping[str, Feed]
    first: frozenset[str]

    def depth(self, layer: Layer) -> int:
        """Place of a layer in the order."""
        return self.order.get(layer.key, len(self.order))

    def feed(self, layer: Layer) -> Feed:
        """Return what feeds a BatchNorm; ``unknown`` for a layer that is none."""
        return self.feeds.get(layer.key) or Feed(None, "unknown", "unknown")
