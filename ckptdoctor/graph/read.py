"""The graph of a checkpoint, from the best evidence that it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..layers import Layer, Layers
from ..tensors import TensorTable
from .config import HOW as CONFIG
from .config import config_feeds
from .feeds import Feed, Graph, LazyOrder
from .kernels import is_kernel
from .names import name_feeds
from .order import alphabetical, by_numbers, natural_key, net_of
from .siblings import is_number

__all__ = ["read_graph"]

FILE = "the file's order"
NATURAL = "the names' natural order"
_INPUT_NORM = (
    r"(?i)(.*[._/])?((input|in|data)_?(bn|norm|batch_?norm)|(bn|norm)_?(in|input|data|cont))"
)


def read_graph(table: TensorTable, layers: Layers) -> Graph:
    """Tell what feeds what.

    Examples
    --------
    >>> from ckptdoctor.layers import read_layers
    >>> ones = [[[[1.0]]]] * 2
    >>> table = TensorTable.from_arrays({"conv1.weight": ones, "bn1.running_var": [1.0, 1.0]})
    >>> graph = read_graph(table, read_layers(table))
    >>> feed = graph.feeds["bn1"]
    >>> feed.kernel.name, feed.source, feed.how, "bn1" in graph.first
    ('conv1', 'kernel', 'names that pair up', True)
    """
    if any(config.inputs for config in table.layers.values()):
        return _from_config(table, layers)
    sorted_names = alphabetical(table.infos.values()) if any(layers.batchnorms) else None
    return _from_names(table, layers.all, sorted_names)


def _from_config(table: TensorTable, layers: Layers) -> Graph:
    known = {layer.config.name: layer for layer in layers.all if layer.config is not None}
    feeds, first = config_feeds(table.layers, known)
    depths = {name: depth for depth, name in enumerate(table.layers)}

    def keys() -> list[str]:
        def depth(layer: Layer) -> int:
            return depths.get(layer.config.name, len(depths)) if layer.config else len(depths)

        return [layer.key for layer in sorted(layers.all, key=depth)]

    # layers that the configuration does not know: models of custom classes
    rest = [layer for layer in layers.all if layer.kind == "batchnorm" and layer.key not in feeds]
    if rest:
        graph = _from_names(table, layers.all, alphabetical(table.infos.values()))
        missing = {layer.key for layer in rest}
        feeds |= {key: feed for key, feed in graph.feeds.items() if key in missing}
        first |= graph.first & missing
    return Graph(LazyOrder(keys), CONFIG, feeds, frozenset(first))


def _from_names(table: TensorTable, layers: Sequence[Layer], sorted_names: bool | None) -> Graph:
    """Take the file's order, or where that is a dictionary's, the natural one of the names."""
    if sorted_names is None:  # no BatchNorm: nobody may ever ask for the order
        return Graph(LazyOrder(lambda: _lazily(table, layers)), FILE, {}, frozenset())
    nets: dict[tuple[str, ...], list[Layer]] = {}
    for layer in layers:
        nets.setdefault(net_of(layer), []).append(layer)
    sequences = _sequences(table)
    key = natural_key()
    feeds: dict[str, Feed] = {}
    first: set[str] = set()
    order: list[str] = []
    for net in nets.values():
        ordered = sorted(net, key=lambda layer: key(layer.name)) if sorted_names else net
        found: dict[str, Feed] = {}
        if any(layer.kind == "batchnorm" for layer in net):
            found, ahead = name_feeds(ordered, in_order=not sorted_names, sequences=sequences)
            if sorted_names and all(layer.key.endswith("/vars") for layer in net):
                ordered = by_numbers(ordered, found)
            elif sorted_names:
                ordered = _beside_kernels(ordered, found, ahead)
            first |= _first(ordered, found, trusted=not sorted_names)
        feeds |= found
        order += [layer.key for layer in ordered]
    return Graph(LazyOrder(lambda: order), _how(table, sorted_names), feeds, frozenset(first))


def _how(table: TensorTable, sorted_names: bool) -> str:
    if sorted_names:
        return NATURAL
    if not table.layers:
        return FILE
    return "the TorchScript module" if table.format == "torchscript" else "the pickled module"


def _lazily(table: TensorTable, layers: Sequence[Layer]) -> list[str]:
    if not alphabetical(table.infos.values()):
        return [layer.key for layer in layers]
    key = natural_key()
    nets: dict[tuple[str, ...], list[Layer]] = {}
    for layer in layers:
        nets.setdefault(net_of(layer), []).append(layer)
    return [
        layer.key for net in nets.values() for layer in sorted(net, key=lambda one: key(one.name))
    ]


def _sequences(table: TensorTable) -> dict[str, list[tuple[str, str]]]:
    """Name of each Sequential -> words and classes of its children, parameters or not."""
    found: dict[str, list[tuple[str, str]]] = {
        name: [] for name, config in table.layers.items() if config.class_name == "Sequential"
    }
    for name, config in table.layers.items():
        parent, _, word = name.rpartition(".")
        if parent in found:
            found[parent].append((word, config.class_name[:60]))
    return found


def _beside_kernels(
    ordered: Sequence[Layer], feeds: Mapping[str, Feed], ahead: Mapping[str, str]
) -> list[Layer]:
    """Put each BatchNorm right behind the kernel that feeds it, else before the one it feeds."""
    behind: dict[str, list[Layer]] = {}
    before: dict[str, list[Layer]] = {}
    for layer in ordered:
        feed = feeds.get(layer.key)
        if feed is not None and feed.kernel is not None:
            behind.setdefault(feed.kernel.key, []).append(layer)
        elif layer.key in ahead:
            before.setdefault(ahead[layer.key], []).append(layer)
    moved = {layer.key for near in (behind, before) for group in near.values() for layer in group}
    return [
        each
        for layer in ordered
        if layer.key not in moved
        for each in (*before.get(layer.key, ()), layer, *behind.get(layer.key, ()))
    ]


def _first(ordered: Sequence[Layer], feeds: dict[str, Feed], *, trusted: bool) -> set[str]:
    """BatchNorms of a net with no normalisation before them; those without a kernel get ``input``.

    Another kernel that takes as many channels as the very first one, where no layer before it puts
    out so many, sees the input too: nets with several branches.
    """
    first: set[str] = set()
    outputs: set[int] = set()
    # a layer that normalises the input may stand anywhere in an alphabetical file
    prepared = any(layer.kind == "normalization" for layer in ordered)
    normalised = prepared and not trusted
    trusted = trusted or _numbered(ordered)
    taken = 0
    for layer in ordered:
        if is_kernel(layer):
            taken = taken or _inputs(layer)
            outputs.add(layer.units)
        elif layer.kind == "batchnorm":
            feed = feeds[layer.key]
            alone = trusted and not taken and not normalised
            named = re.fullmatch(_INPUT_NORM, layer.name[-200:]) and layer.channels not in outputs
            if feed.source == "unknown" and (alone or named):
                feeds[layer.key] = feed._replace(source="input", how="no kernel stands before it")
                first.add(layer.key)
            branch = feed.kernel and not prepared and _branches(feed.kernel, taken, outputs)
            if branch or not normalised:
                first.add(layer.key)
            normalised = True
        elif layer.kind in _NORMALISING:
            normalised = True
    return first


def _numbered(ordered: Sequence[Layer]) -> bool:
    """Whether the first layer opens a Sequential that is the net: numbers tell that in any file."""
    parent, _, leaf = ordered[0].name.replace("/", ".").rpartition(".")
    start = f"{parent}." if parent else ""
    rest = (layer.name.replace("/", ".") for layer in ordered)
    return is_number(leaf) and all(
        name.startswith(start) and is_number(name[len(start) :].partition(".")[0]) for name in rest
    )


_NORMALISING = frozenset({"norm", "normalization", "embedding", "recurrent", "attention"})
"""Behind them, how large the numbers are says nothing about the model's input."""


def _branches(kernel: Layer, taken: int, outputs: set[int]) -> bool:
    """Whether a kernel sees the model's input: images and points have two to four channels."""
    return 1 < taken <= 4 and taken not in outputs and _inputs(kernel) == taken


def _inputs(layer: Layer) -> int:
    info = layer.parts.get("kernel") or layer.parts.get("v")
    if info is None or len(info.shape) < 2:
        return 0
    return info.shape[-2] if layer.keras else info.shape[1]
