"""Which kernel feeds which BatchNorm, in which order data flows, and how that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .layers import Layer, Layers
from .tensors import TensorTable

__all__ = ["Feed", "Graph", "read_graph"]


class Feed(NamedTuple):
    """What stands in front of a BatchNorm.

    Parameters
    ----------
    kernel
        The convolution or dense layer whose output it normalises; None where it is fed by a sum,
        a pool over several, the input itself, or nobody knows.
    source
        ``kernel``, ``input`` (no kernel between the model's input and it), ``sum``, ``concat`` or
        ``unknown``.
    how
        How that is known: ``the Keras config``, ``names that pair up``, ``file order and 64
        channels``, ``unknown``.
    """

    kernel: Layer | None
    source: str
    how: str


class Graph(NamedTuple):
    """Order and connections of the layers.

    Parameters
    ----------
    order
        Key of a layer -> its depth, 0 first; in data-flow order as far as ``order_from`` knows.
    order_from
        ``the Keras config``, ``the pickled module``, ``the file's order``, ``the names' natural
        order``.
    feeds
        Key of a BatchNorm -> what feeds it.
    first
        Keys of the BatchNorms that see the model's input, or an image of it by one kernel, with
        no other normalisation before them.
    """

    order: Mapping[str, int]
    order_from: str
    feeds: Mapping[str, Feed]
    first: frozenset[str]

    def depth(self, layer: Layer) -> int:
        """Place of a layer in the order."""
        return self.order.get(layer.key, len(self.order))


def read_graph(table: TensorTable, layers: Layers) -> Graph:
    """Tell what feeds what."""
    order = {layer.key: depth for depth, layer in enumerate(layers.all)}
    return Graph(order, "the file's order", {}, frozenset())
