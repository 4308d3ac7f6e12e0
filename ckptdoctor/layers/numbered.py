"""Layers of a Keras 3 weights file: numbered variables, in the order in which their class makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..tensors import LayerConfig, TensorInfo
from .conventions import KERAS_CLASSES, Variables
from .layer import Layer

__all__ = ["numbered_layer"]

_NORM = Variables("batchnorm", ("gamma", "beta", "mean", "var"))


def numbered_layer(
    key: str, group: Mapping[str, TensorInfo], config: LayerConfig | None
) -> Layer | None:
    """Layer of the variables ``vars/0``, ``vars/1`` ...; None where nothing tells what they are."""
    infos = [group[leaf] for leaf in sorted(group, key=lambda leaf: (len(leaf), leaf))]
    if config is not None:
        class_name, told_by = config.class_name, "its class"
        word = _snake(class_name)
    else:
        class_name, told_by = "", "the group's name"
        word = re.sub(r"_\d+$", "", key.split("/")[-2]) if "/" in key else ""
    row = next((row for words, row in KERAS_CLASSES if re.fullmatch(words, word)), None)
    if row is None:
        row, told_by = _by_shape(key, infos), "its shapes"
    if row is None or row.kind is None:
        return None
    names = _parts(row, infos, config)
    return Layer(
        name=infos[0].layer_name or key.removesuffix("/vars"),
        kind=row.kind,
        role=infos[0].role,
        parts=dict(zip(names, infos, strict=False)),
        told_by=told_by,
        class_name=class_name or word,
        config=config,
        key=key,
    )


def _by_shape(key: str, infos: Sequence[TensorInfo]) -> Variables | None:
    """Two to four vectors of one length are a normalisation; a name that says so must agree."""
    if len({info.shape for info in infos}) != 1 or len(infos[0].shape) != 1:
        if len(infos) <= 2 and len(infos[0].shape) >= 2 and len(infos[-1].shape) != 2:
            return Variables("dense" if len(infos[0].shape) == 2 else "conv", ("kernel", "bias"))
        return None
    if len(infos) == 4:
        return _NORM
    named = re.search(r"(^|[/_])(bn|batch_?norm)", f"{key}/{infos[0].layer}", re.IGNORECASE)
    if named and 2 <= len(infos) <= 3:
        return _NORM
    return Variables("norm", ("gamma", "beta")) if len(infos) == 2 else None


def _parts(
    row: Variables, infos: Sequence[TensorInfo], config: LayerConfig | None
) -> Sequence[str]:
    """Names of the variables that are there: variance last, mean before it, absent ones dropped."""
    settings = config.settings if config is not None else {}
    if row.kind in ("batchnorm", "norm"):
        absent = {"gamma"} if settings.get("scale") is False else set()
        absent |= {"beta"} if settings.get("center") is False else set()
        names = [part for part in row.parts if part not in absent]
        if row.kind == "norm" or len(names) == len(infos):
            return names
        # without a configuration, of three it cannot be told whether gamma or beta is missing
        gains = {4: ["gamma", "beta"], 3: ["gamma_or_beta"], 2: []}.get(len(infos))
        return row.parts if gains is None else [*gains, "mean", "var"]
    if row.kind == "recurrent" and len(infos) == 4:  # a SeparableConvLSTM of the user's own
        return ("kernel", "recurrent")
    return row.parts


def _snake(name: str) -> str:
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name.rpartition(">")[2])
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
