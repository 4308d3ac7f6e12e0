"""From names to layers, by the rows of the table."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..tensors import TensorInfo, TensorTable
from .conventions import CONVENTIONS, TORCH_CLASSES, Convention, Kind
from .groups import group_tensors, last_word, plain
from .layer import Layer, Layers
from .numbered import numbered_layer

__all__ = ["read_layers"]


class _Told(NamedTuple):
    """What a group of tensors may be, with the leaves as this file spells them (``kernel:0``)."""

    kind: Kind
    parts: Mapping[str, str]
    seen_in: str
    above: str


_CORRECTED = frozenset({"conv", "dense", "embedding", "norm"})
_Memo = dict[object, tuple[_Told, ...]]


def read_layers(table: TensorTable) -> Layers:
    """Group the model's and the EMA's tensors into layers.

    Examples
    --------
    >>> table = TensorTable.from_arrays({"bn1.weight": [1.0], "bn1.running_var": [2.0]})
    >>> [(layer.name, layer.kind, sorted(layer.parts)) for layer in read_layers(table).all]
    [('bn1', 'batchnorm', ['gamma', 'var'])]
    """
    memo: _Memo = {}
    found: list[Layer] = []
    for key, group in group_tensors(table).items():
        layer = _layer(table, key, group, memo) if group else None
        if layer is not None:
            found.append(layer)
    if any(layer.kind in ("lora", "recurrent") for layer in found):  # their groups were made anew
        rows = {name: row for row, name in enumerate(table.infos)}
        found.sort(key=lambda layer: min(rows[info.name] for info in layer.parts.values()))
    return Layers(tuple(found))


def _layer(
    table: TensorTable, key: str, group: Mapping[str, TensorInfo], memo: _Memo
) -> Layer | None:
    leaf, first = next(iter(group.items()))
    config = table.layers.get(first.layer) if table.layers else None
    if key.endswith("/vars"):
        return numbered_layer(key, group, config)
    # most groups of a file look like one before: a transformer of 100,000 tensors has ten kinds
    signature: object
    if len(group) == 1:
        signature = leaf, len(first.shape), first.shape == (1,)
    else:
        signature = tuple([(leaf, len(info.shape)) for leaf, info in group.items()])
    rows = memo.get(signature)
    if rows is None:
        rows = memo[signature] = _possible(group)
    told = next((row for row in rows if not row.above or _named(row.above, last_word(key))), None)
    if told is None:
        return None
    kind, class_name = told.kind, ""
    if config is not None:
        class_name = config.class_name
        stored = TORCH_CLASSES.get(class_name, kind) if kind in _CORRECTED else kind
        if stored is None:
            return None
        kind = stored
    parts = {told.parts[leaf]: info for leaf, info in group.items() if leaf in told.parts}
    if "kernel" in parts and parts["kernel"].encoding == "quantised":
        kind = "quantised"
    return Layer(
        name=_name(first, key),
        kind=kind,
        role=first.role,
        parts=parts,
        told_by=told.seen_in,
        class_name=class_name,
        config=config,
        key=key,
    )


def _possible(group: Mapping[str, TensorInfo]) -> tuple[_Told, ...]:
    """Rows that a group may be by its leaves and shapes, to the first that asks for no name."""
    spelt = {plain(leaf): leaf for leaf in group}
    found: list[_Told] = []
    for row in CONVENTIONS:
        if all(leaf in spelt for leaf in row.needs) and _fits(row, group, spelt):
            parts = {spelt[leaf]: part for leaf, part in row.parts.items() if leaf in spelt}
            found.append(_Told(row.kind, parts, row.seen_in, row.above))
            if not row.above:
                break
    return tuple(found)


def _fits(row: Convention, group: Mapping[str, TensorInfo], spelt: Mapping[str, str]) -> bool:
    needed = group[spelt[row.needs[0]]]
    if not row.dims[0] <= len(needed.shape) <= row.dims[1]:
        return False
    if row.kind == "norm" and needed.shape == (1,) and len(group) == 1:
        return False  # one number: the slope of a PReLU, a learned scale
    return not any(leaf in spelt for leaf in row.lacks)


@functools.lru_cache(maxsize=4096)
def _named(above: str, word: str) -> bool:
    return re.fullmatch(above, word[:200], re.IGNORECASE | re.DOTALL) is not None


def _name(info: TensorInfo, key: str) -> str:
    """Name of the layer: the stored one, else the path, without what torch puts between."""
    name = info.layer_name or key
    return name.removesuffix(".parametrizations.weight")
